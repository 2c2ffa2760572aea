# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The operations for which a plain composition of torch calls is slow or large, each beside its plain definition.

The convolutions have two forms with the same values; `_is_fast` decides which one runs. The loss and the class ids at
full size are worked out in blocks of rows that stay in the cache: the scores themselves, (batch, num_labels, height,
width), would be the largest tensor of a segmentation model, 630 MB for 4 pictures of 512 x 512 and 150 classes.
"""

import os
from contextlib import contextmanager

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .operator_namespace import operator_namespace
from .ops_triton import can_run_triton, triton_depthwise_conv2d
from .winograd import winograd_conv2d

# Scores that a block of rows holds: 2 MB fit the cache of a CPU, a GPU wants few and large kernels.
CPU_BLOCK_SCORES = 2**19
ACCELERATOR_BLOCK_SCORES = 2**25
MIN_BLOCK_ROWS = 8

NAMESPACE = operator_namespace(__name__, "upsampled_cross_entropy")

_FORMS = ("measured", "plain", "fast")
_forms = os.environ.get("VAN_HF_FORMS", "measured")
if _forms not in _FORMS:
    raise ValueError(f"the environment variable VAN_HF_FORMS must be one of {', '.join(_FORMS)}, got {_forms!r}")
# Before torch 2.7 exporting could not be told from compiling.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


@contextmanager
def use_forms(forms: str):
    """Chooses the forms that the operations run in, within a `with` block. They give the same values up to rounding.

    The environment variable VAN_HF_FORMS sets what holds outside of any block.

    Args:
        forms: "measured", the faster one where that was measured, the default; "plain", the compositions of torch's
            own operations; "fast", the package's wherever they can run, on GPUs and at sizes not measured too.
    """
    global _forms
    if forms not in _FORMS:
        raise ValueError(f"forms must be one of {', '.join(_FORMS)}, got {forms!r}")
    before, _forms = _forms, forms
    try:
        yield
    finally:
        _forms = before


def _is_fast(operation: str, features: torch.Tensor, pays: bool = True) -> bool:
    """Whether an operation runs in its fast form: the one place where that is decided.

    Args:
        operation: "upsampled", "winograd", "phases", "layout" or "triton".
        features: its input.
        pays: whether the fast form is faster for these sizes on the CPU, as measured.
    """
    if _forms == "plain" or not features.is_floating_point():
        return False
    exporting = _is_exporting() or torch.jit.is_tracing()
    if operation == "upsampled":
        # In exports too: fewer multiply-adds, in any runtime.
        return _forms == "fast" or exporting or (pays and features.device.type == "cpu")
    if exporting:
        return False  # they keep to what every runtime has
    if operation == "triton":
        return _forms == "fast" and can_run_triton(features)  # never measured on a GPU
    if features.device.type != "cpu":
        return False
    if operation == "winograd":
        # Its transforms lose two digits, more than half precision has to give.
        full_precision = features.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
        return full_precision and (_forms == "fast" or pays)
    return _forms == "fast" or pays


def resize_to(features: torch.Tensor, size: torch.Size, mode: str = "bilinear") -> torch.Tensor:
    """Interpolates `features` (batch, channels, height, width) to `size` (height, width), corners not aligned."""
    if features.shape[-2:] == size:
        return features
    return F.interpolate(features, size=size, mode=mode, align_corners=False if mode == "bilinear" else None)


def channels_last(features: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) in the layout in which depthwise convolutions are fastest."""
    return features.contiguous(memory_format=torch.channels_last) if _is_fast("layout", features) else features


def channels_first(features: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) in the layout in which 3x3 convolutions of many channels are fastest."""
    return features.contiguous() if _is_fast("layout", features) else features


def depthwise_conv2d(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, dilation: int = 1
) -> torch.Tensor:
    """A depthwise convolution that keeps the size.

    oneDNN has no fast path for a dilated one. On the CPU it is taken apart into its phases (for VAN, every third row
    and column): an undilated convolution of dilation**2 times as many maps. For GPUs there is a Triton kernel.

    Args:
        features: (batch, channels, height, width), any floating dtype; fastest with channels last.
        weight: (channels, 1, kernel, kernel), the kernel's side odd.
        bias: (channels,).
        dilation: step between the kernel's taps in pixels.

    Returns:
        (batch, channels, height, width).
    """
    if _is_fast("triton", features):
        return triton_depthwise_conv2d(features, weight, bias, dilation)
    if dilation == 1 or not _is_fast("phases", features):
        return depthwise_conv2d_reference(features, weight, bias, dilation)
    batch, channels, height, width = features.shape
    rows, columns = -(-height // dilation), -(-width // dilation)
    padded = F.pad(features.permute(0, 2, 3, 1), (0, 0, 0, columns * dilation - width, 0, rows * dilation - height))
    phases = padded.view(batch, rows, dilation, columns, dilation, channels).permute(0, 2, 4, 1, 3, 5)
    phases = phases.reshape(batch * dilation**2, rows, columns, channels).permute(0, 3, 1, 2)
    convolved = F.conv2d(phases, weight, bias, padding=weight.shape[-1] // 2, groups=channels).permute(0, 2, 3, 1)
    convolved = convolved.reshape(batch, dilation, dilation, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
    convolved = convolved.reshape(batch, rows * dilation, columns * dilation, channels)
    return convolved[:, :height, :width].permute(0, 3, 1, 2)


def depthwise_conv2d_reference(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, dilation: int = 1
) -> torch.Tensor:
    """[`depthwise_conv2d`] as torch has it."""
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(features, weight, bias, padding=padding, dilation=dilation, groups=features.shape[1])


def conv2d(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A convolution that keeps the size; a 3x3 one of many channels is done by Winograd's algorithm.

    Args:
        features: (batch, in_channels, height, width), any floating dtype.
        weight: (out_channels, in_channels, kernel, kernel), the kernel's side odd.
        bias: (out_channels,).

    Returns:
        (batch, out_channels, height, width).
    """
    batch, _, height, width = features.shape
    # Below these sizes the transforms cost more than they save.
    pays = min(weight.shape[:2]) >= 128 and batch * height * width >= 1024
    if weight.shape[-1] != 3 or not _is_fast("winograd", features, pays):
        return conv2d_reference(features, weight, bias)
    return winograd_conv2d(features, weight, bias)


def conv2d_reference(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """[`conv2d`] as torch has it."""
    return F.conv2d(features, weight, bias, padding=weight.shape[-1] // 2)


def conv2d_over_upsampled(
    maps: list[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The 3x3 convolution of maps that are interpolated bilinearly to the first one's size and concatenated.

    A convolution of a concatenation is a sum of convolutions. One of an upsampled map is nine 1x1 convolutions, each
    shifted by a pixel, summed, and mixing channels commutes with shifting and interpolating. So each tap is applied at
    the map's own size, where it costs a fourth, a sixteenth or a 64th, and its result goes to the large size by two
    small matrices that interpolate and shift, and are zero beyond the border as the convolution's padding is.

    Args:
        maps: of shapes (batch, channels[i], height[i], width[i]), of one floating dtype.
        weight: (out_channels, sum of channels, 3, 3).
        bias: (out_channels,).

    Returns:
        (batch, out_channels, height[0], width[0]).
    """
    size = maps[0].shape[-2:]
    batch, out_channels = maps[0].shape[0], weight.shape[0]
    taps_of_maps = weight.split([features.shape[1] for features in maps], dim=1)
    at_full_size, at_own_size = [(maps[0], taps_of_maps[0])], []
    for features, taps in zip(maps[1:], taps_of_maps[1:], strict=True):
        pays = min(taps.shape[:2]) >= 64 and 2 * features.shape[-2:].numel() <= size.numel()
        if _is_fast("upsampled", features, pays):
            at_own_size.append((features, taps))
        else:
            at_full_size.append((resize_to(features, size), taps))
    full_size_maps, full_size_taps = zip(*at_full_size, strict=True)
    outputs = conv2d(_concatenated(full_size_maps), _concatenated(full_size_taps), bias)
    upsampled = None
    for features, taps in at_own_size:
        rows, columns = features.shape[-2:]
        taps = taps.permute(0, 3, 2, 1).reshape(out_channels * 9, -1)  # (out_channels, columns' taps, rows' taps)
        mixed = (taps @ features.flatten(2)).view(batch * out_channels * 3, 3 * rows, columns)
        tall = mixed.transpose(1, 2) @ _shifted_interpolation(rows, size[0], mixed)
        tall = tall.view(batch * out_channels, 3 * columns, size[0])
        across = _shifted_interpolation(columns, size[1], mixed).expand(len(tall), -1, -1)
        if upsampled is None:
            upsampled = torch.bmm(tall.transpose(1, 2), across)
        else:
            upsampled = upsampled.baddbmm_(tall.transpose(1, 2), across)
    return outputs if upsampled is None else upsampled.view(outputs.shape).add_(outputs)


def _concatenated(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)  # of one tensor, `cat` makes a copy


def conv2d_over_upsampled_reference(
    maps: list[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """[`conv2d_over_upsampled`] as it is defined."""
    size = maps[0].shape[-2:]
    return F.conv2d(torch.cat([resize_to(features, size) for features in maps], dim=1), weight, bias, padding=1)


def _shifted_interpolation(length: int, new_length: int, like: torch.Tensor) -> torch.Tensor:
    """Interpolation of a line, read a place before, at and a place after each new one: (3 * length, new_length)."""
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    impulses = torch.eye(length, dtype=dtype, device=like.device)[None]
    padded = F.pad(F.interpolate(impulses, size=new_length, mode="linear")[0], (1, 1))
    return torch.cat([padded[:, shift : shift + new_length] for shift in range(3)]).to(like.dtype)


def upsampled_cross_entropy_reference(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """The definition of [`upsampled_cross_entropy`]."""
    scores = resize_to(logits.to(_score_dtype(logits)), labels.shape[-2:])
    num_valid = (labels != ignore_index).sum().clamp(min=1)
    return F.cross_entropy(scores, labels, ignore_index=ignore_index, reduction="sum") / num_valid


def upsampled_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Mean cross entropy, over the valid pixels, of logits interpolated bilinearly to the labels' size.

    The gradient is worked out together with the loss. It can be taken once: a second derivative is an error.

    Args:
        logits: floating point, (batch, num_labels, rows, columns), of any size.
        labels: int64 (batch, height, width), ids 0..num_labels - 1 or `ignore_index`.
        ignore_index: the id of pixels that do not count.

    Returns:
        A scalar, float32, or float64 for such logits; 0 where no pixel is valid.

    Raises:
        ValueError: when the shapes do not fit.
        RuntimeError: when an id is out of range; on an accelerator torch asserts it.
    """
    if logits.ndim != 4 or labels.ndim != 3 or logits.shape[0] != labels.shape[0]:
        raise ValueError(
            "logits must be (batch, num_labels, rows, columns) and labels (batch, height, width), "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    needs_gradient = logits.requires_grad and torch.is_grad_enabled()
    return _cross_entropy_and_gradient(logits, labels, ignore_index, needs_gradient)[0]


@torch.library.custom_op(f"{NAMESPACE}::upsampled_cross_entropy", mutates_args=())
def _cross_entropy_and_gradient(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int, needs_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and its gradient in the shape of `logits` and the dtype of the loss; empty if it is not needed."""
    dtype = _score_dtype(logits)
    num_valid = (labels != ignore_index).sum().clamp(min=1)
    loss = logits.new_zeros((), dtype=dtype)
    gradient = _empty_gradient(logits, needs_gradient)
    for index, (picture, picture_labels) in enumerate(zip(logits, labels, strict=True)):
        # Classes last: the softmax of a pixel runs over consecutive numbers.
        scores = picture.permute(1, 2, 0).to(dtype).contiguous()  # (rows, columns, num_labels)
        scores_gradient = torch.zeros_like(scores) if needs_gradient else None
        loss += _add_picture(scores, picture_labels, ignore_index, scores_gradient)
        if needs_gradient:
            torch.div(scores_gradient.permute(2, 0, 1), num_valid, out=gradient[index])
    return loss / num_valid, gradient


def _add_picture(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int, gradient: torch.Tensor | None
) -> torch.Tensor:
    """The sum of one picture's cross entropy; adds its gradient to `gradient`, (rows, columns, num_labels)."""
    rows, columns, num_labels = logits.shape
    height, width = labels.shape
    upper, lower, lower_weight = _row_taps(rows, height, logits)
    total = logits.new_zeros(())
    step = _block_rows(num_labels * width, logits.device)
    for start in range(0, height, step):
        block = slice(start, start + step)
        weight = lower_weight[block, None, None]
        # Rows first, at the logits' width; then columns, which torch does fast where classes come last in memory.
        narrow = torch.lerp(logits.index_select(0, upper[block]), logits.index_select(0, lower[block]), weight)
        narrow = narrow.transpose(1, 2)[:, :, None]
        scores = F.interpolate(narrow, size=(1, width), mode="bilinear", align_corners=False)
        log_probabilities = scores[:, :, 0].transpose(1, 2).log_softmax(dim=2)  # (block's rows, width, num_labels)
        del scores
        valid = labels[block] != ignore_index
        target = torch.where(valid, labels[block], 0)[:, :, None]
        total -= torch.where(valid, log_probabilities.gather(2, target)[:, :, 0], 0).sum()
        if gradient is None:
            continue
        # The gradient of the sum: probabilities, less one at the label.
        scores_gradient = log_probabilities.exp_()
        scores_gradient.scatter_add_(2, target, scores_gradient.new_full((), -1).expand(target.shape))
        scores_gradient *= valid[:, :, None]
        narrow_gradient = torch.ops.aten.upsample_bilinear2d_backward(
            scores_gradient.transpose(1, 2)[:, :, None], (1, width), narrow.shape, False
        )
        narrow_gradient = narrow_gradient[:, :, 0].transpose(1, 2)  # (block's rows, columns, num_labels)
        gradient.index_add_(0, lower[block], narrow_gradient * weight)
        gradient.index_add_(0, upper[block], narrow_gradient * (1 - weight))
    return total


@_cross_entropy_and_gradient.register_fake
def _(logits, labels, ignore_index, needs_gradient):
    return logits.new_empty((), dtype=_score_dtype(logits)), _empty_gradient(logits, needs_gradient)


def _keep_gradient(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype


@once_differentiable
def _scale_gradient(ctx, loss_gradient, _):
    if loss_gradient is None:
        return None, None, None, None
    (gradient,) = ctx.saved_tensors
    return (gradient * loss_gradient).to(ctx.dtype), None, None, None


_cross_entropy_and_gradient.register_autograd(_scale_gradient, setup_context=_keep_gradient)


def upsampled_argmax_reference(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The definition of [`upsampled_argmax`]."""
    return resize_to(logits.to(_score_dtype(logits)), torch.Size(size)).argmax(dim=1)


def upsampled_argmax(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The class of the largest of each pixel's scores, which are logits interpolated bilinearly to `size`.

    Args:
        logits: floating point, (batch, num_labels, rows, columns), of any size.
        size: `(height, width)` in pixels of the result.

    Returns:
        Class ids, int64 (batch, height, width); of equal scores' classes the first.

    Raises:
        ValueError: when `logits` has another number of dimensions.
    """
    if logits.ndim != 4:
        raise ValueError(f"logits must be (batch, num_labels, rows, columns), got {tuple(logits.shape)}")
    return _argmax(logits, *size)


@torch.library.custom_op(f"{NAMESPACE}::upsampled_argmax", mutates_args=())
def _argmax(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    num_labels, rows, columns = logits.shape[1:]
    if (rows, columns) == (height, width):
        return logits.argmax(dim=1)
    ids = logits.new_empty((len(logits), height, width), dtype=torch.int64)
    for picture, picture_ids in zip(logits, ids, strict=True):
        picture = picture.to(_score_dtype(logits))
        upper, lower, lower_weight = _row_taps(rows, height, picture)
        step = _block_rows(num_labels * width, logits.device)
        for start in range(0, height, step):
            block = slice(start, start + step)
            first, last = int(upper[block][0]), int(lower[block][-1])
            source = picture[:, first : last + 1]
            classes = _possible_winners(source)
            source = source.index_select(0, classes)
            wide = F.interpolate(source[None], size=(last + 1 - first, width), mode="bilinear", align_corners=False)[0]
            # The order of these operations is F.interpolate's on the CPU: the same numbers come out, to the last bit.
            weight = lower_weight[block, None]
            scores = wide.index_select(1, lower[block] - first).mul_(weight)
            scores.addcmul_(wide.index_select(1, upper[block] - first), 1 - weight)
            picture_ids[block] = classes[scores.max(dim=0).indices]
    return ids


def _possible_winners(logits: torch.Tensor) -> torch.Tensor:
    """The classes that may have the highest score somewhere between rows of `logits`, (num_labels, rows, columns).

    An interpolated score lies between the logits around it. A class whose highest is below another's lowest there
    cannot win there: of 150 classes most drop out.
    """
    highest, lowest = logits.amax(dim=1), logits.amin(dim=1)
    right = torch.arange(1, logits.shape[2] + 1, device=logits.device).clamp(max=logits.shape[2] - 1)
    highest = torch.maximum(highest, highest[:, right])
    lowest = torch.minimum(lowest, lowest[:, right])
    rounding = 8 * torch.finfo(logits.dtype).eps * torch.maximum(highest.abs(), lowest.abs()).amax()
    # A comparison with NaN is false, and the class stays.
    return (highest < lowest.amax(dim=0) - rounding).all(dim=1).logical_not_().nonzero()[:, 0]


@_argmax.register_fake
def _(logits, height, width):
    return logits.new_empty((logits.shape[0], height, width), dtype=torch.int64)


def _score_dtype(logits: torch.Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _empty_gradient(logits: torch.Tensor, needs_gradient: bool) -> torch.Tensor:
    dtype = _score_dtype(logits)
    return torch.empty_like(logits, dtype=dtype) if needs_gradient else logits.new_empty(0, dtype=dtype)


def _block_rows(row_scores: int, device: torch.device) -> int:
    block_scores = CPU_BLOCK_SCORES if device.type == "cpu" else ACCELERATOR_BLOCK_SCORES
    return max(block_scores // row_scores, MIN_BLOCK_ROWS)


def _row_taps(rows: int, height: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each of `height` interpolated rows the two rows that it lies between, and the lower one's weight."""
    # In the scores' dtype, step by step as torch does it: weights rounded otherwise would differ in the 5th digit.
    ratio = torch.tensor(rows, dtype=like.dtype) / height
    position = ((torch.arange(height, dtype=like.dtype) + 0.5) * ratio - 0.5).clamp(min=0)
    upper = position.floor().long().clamp(max=rows - 1)
    lower = (upper + 1).clamp(max=rows - 1)
    return upper.to(like.device), lower.to(like.device), (position - upper).to(like.device)
