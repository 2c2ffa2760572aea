# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The convolutions of VAN and its heads, each beside its plain definition in torch.

Both forms give the same values up to rounding; `_is_fast` decides which one runs.
"""

import os
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn import functional as F

from .custom_operators import is_exporting, is_transformed
from .interpolation import resize_to
from .triton_convolutions import can_run_triton, triton_depthwise_conv2d
from .winograd import winograd_conv2d

_FORMS = ("measured", "plain", "fast")
_forms = os.environ.get("VAN_HF_FORMS", "measured")
if _forms not in _FORMS:
    raise ValueError(f"the environment variable VAN_HF_FORMS must be one of {', '.join(_FORMS)}, got {_forms!r}")


@contextmanager
def use_forms(forms: str):
    """Choose the forms that the operations run in, within a `with` block. They give the same values up to rounding.

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


def _is_fast(operation: str, features: torch.Tensor, pays: Callable[[], bool] = lambda: True) -> bool:
    """Return whether an operation runs in its fast form: the one place where that is decided.

    Args:
        operation: "upsampled", "winograd", "phases", "bands", "layout" or "triton".
        features: its input.
        pays: returns whether the fast form is faster for these sizes on the CPU, as measured. It is not called while
            exporting, where a comparison of sizes would tie the program to the answer.
    """
    if _forms == "plain" or not features.is_floating_point() or is_transformed(features):
        return False
    if operation == "upsampled":
        # In exports too: fewer multiply-adds, in any runtime.
        return _forms == "fast" or is_exporting() or (features.device.type == "cpu" and pays())
    if is_exporting():
        return False  # they keep to what every runtime has
    if operation == "triton":
        return _forms == "fast" and can_run_triton(features)  # never measured on a GPU
    if features.device.type != "cpu":
        return False
    if operation == "bands":
        # A gradient would need what lies between the layers; a compiler fuses the layers in its own way.
        return not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if operation == "winograd":
        # Its transforms lose two digits, more than half precision has to give.
        full_precision = features.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
        return full_precision and (_forms == "fast" or pays())
    return _forms == "fast" or pays()


def channels_last(features: torch.Tensor) -> torch.Tensor:
    """Return (batch, channels, height, width) in the layout in which depthwise convolutions are fastest."""
    return features.contiguous(memory_format=torch.channels_last) if _is_fast("layout", features) else features


def channels_first(features: torch.Tensor) -> torch.Tensor:
    """Return (batch, channels, height, width) in the layout in which 3x3 convolutions of many channels are fastest."""
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
    # Of a kernel that is larger than its map, taps that lie a whole map off the middle only ever meet zeros.
    middle = weight.shape[-1] // 2
    reach = (min(middle, rows - 1), min(middle, columns - 1))
    weight = weight[:, :, middle - reach[0] : middle + reach[0] + 1, middle - reach[1] : middle + reach[1] + 1]
    convolved = F.conv2d(phases, weight, bias, padding=reach, groups=channels).permute(0, 2, 3, 1)
    convolved = convolved.reshape(batch, dilation, dilation, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
    convolved = convolved.reshape(batch, rows * dilation, columns * dilation, channels)
    return convolved[:, :height, :width].permute(0, 3, 1, 2)


def depthwise_conv2d_reference(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, dilation: int = 1
) -> torch.Tensor:
    """[`depthwise_conv2d`] as torch has it."""
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(features, weight, bias, padding=padding, dilation=dilation, groups=features.shape[1])


BAND_BYTES = 8 * 2**20  # of the widest map; larger maps leave the processor's cache between two layers, as measured


def in_bands(
    spatial: Callable[[torch.Tensor], torch.Tensor],
    pointwise: Callable[[torch.Tensor], torch.Tensor],
    features: torch.Tensor,
    widest: int,
    reach: int = 1,
) -> torch.Tensor:
    """`pointwise(spatial(features))`, at inference a band of rows at a time: so large maps between the layers are
    never whole in memory, which takes less of it and less time.

    Args:
        spatial: layers that keep a map's size, in which a row depends on `reach` rows on either side. They pad with
            zeros.
        pointwise: layers that keep a map's size, in which a pixel depends on no other.
        features: (batch, channels, height, width), any floating dtype.
        widest: number of channels of the widest map between the layers.
        reach: in rows.

    Returns:
        (batch, out_channels, height, width).
    """
    batch, _, height, width = features.shape
    row_bytes = width * widest * features.element_size()
    if not _is_fast("bands", features) or batch * height * row_bytes <= BAND_BYTES:
        return pointwise(spatial(features))
    if batch > 1:
        pictures = max(BAND_BYTES // (height * row_bytes), 1)
        return torch.cat([in_bands(spatial, pointwise, part, widest, reach) for part in features.split(pictures)])
    # Rows beside a band are computed twice: a band of very wide rows has eight times as many all the same.
    num_bands = -(-height // max(BAND_BYTES // row_bytes, 8 * reach))
    rows = -(-height // num_bands)
    bands = []
    for start in range(0, height, rows):
        above = min(start, reach)
        band = spatial(features[:, :, start - above : start + rows + reach])
        bands.append(pointwise(band[:, :, above : above + rows]))
    return torch.cat(bands, dim=2)


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

    def pays() -> bool:
        # Below these sizes the transforms cost more than they save.
        return min(weight.shape[:2]) >= 128 and batch * height * width >= 1024

    if weight.shape[-1] != 3 or not _is_fast("winograd", features, pays):
        return conv2d_reference(features, weight, bias)
    return winograd_conv2d(features, weight, bias)


def conv2d_reference(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """[`conv2d`] as torch has it."""
    return F.conv2d(features, weight, bias, padding=weight.shape[-1] // 2)


def conv2d_over_upsampled(
    maps: list[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The 3x3 or 1x1 convolution of maps that are interpolated bilinearly to the first one's size and concatenated.

    A convolution of a concatenation is a sum of convolutions. One of an upsampled map is nine 1x1 convolutions, each
    shifted by a pixel, summed, and mixing channels commutes with shifting and interpolating. So each tap is applied at
    the map's own size, where it costs a fourth, a sixteenth or a 64th, and its result goes to the large size by two
    small matrices that interpolate and shift, and are zero beyond the border as the convolution's padding is. A 1x1
    convolution is a single tap, which is interpolated as it is.

    Args:
        maps: of shapes (batch, channels[i], height[i], width[i]), of one floating dtype.
        weight: (out_channels, sum of channels, kernel, kernel), the kernel's side 1 or 3.
        bias: (out_channels,).

    Returns:
        (batch, out_channels, height[0], width[0]).
    """
    size = maps[0].shape[-2:]
    batch, out_channels = maps[0].shape[0], weight.shape[0]
    taps_of_maps = weight.split([features.shape[1] for features in maps], dim=1)
    if weight.shape[-1] == 1 and _is_fast("upsampled", maps[0]):
        outputs = F.conv2d(maps[0], taps_of_maps[0], bias)
        for features, taps in zip(maps[1:], taps_of_maps[1:], strict=True):
            outputs = outputs + resize_to(F.conv2d(features, taps), size)
        return outputs
    at_full_size, at_own_size = [(maps[0], taps_of_maps[0])], []
    for features, taps in zip(maps[1:], taps_of_maps[1:], strict=True):
        is_small = partial(_is_small_map, features, taps, size)
        if _is_fast("upsampled", features, is_small):
            at_own_size.append((features, taps))
        else:
            at_full_size.append((resize_to(features, size), taps))
    full_size_maps, full_size_taps = zip(*at_full_size, strict=True)
    outputs = conv2d(_concatenated(full_size_maps), _concatenated(full_size_taps), bias)
    upsampled = None
    for features, taps in at_own_size:
        rows, columns = features.shape[-2:]
        taps = taps.permute(0, 3, 2, 1).reshape(out_channels * 9, -1)  # (out_channels, columns' taps, rows' taps)
        if is_exporting():
            outputs = outputs + _upsampled_for_export(features, taps, size)
            continue
        # As a product of matrices autograd would have it copied.
        mixed = F.conv2d(features, taps[:, :, None, None]).reshape(batch * out_channels * 3, 3 * rows, columns)
        tall = mixed.transpose(1, 2) @ _shifted_interpolation(rows, size[0], mixed)
        del mixed  # nine times as large as its map
        tall = tall.view(batch * out_channels, 3 * columns, size[0])
        across = _shifted_interpolation(columns, size[1], tall).expand(tall.shape[0], -1, -1)
        if upsampled is None:
            upsampled = torch.bmm(tall.transpose(1, 2), across)
        else:
            upsampled = upsampled.baddbmm_(tall.transpose(1, 2), across)
    return outputs if upsampled is None else upsampled.view(outputs.shape).add_(outputs)


def _is_small_map(features: torch.Tensor, taps: torch.Tensor, size: torch.Size) -> bool:
    return min(taps.shape[:2]) >= 64 and 2 * features.shape[-2:].numel() <= size.numel()


def _upsampled_for_export(features: torch.Tensor, taps: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """The same steps in four dimensions: to flatten a free length is a condition that torch cannot prove for all."""

    def merged(tensor: torch.Tensor) -> torch.Tensor:
        # (batch, out_channels * n, rows, columns) -> (batch, out_channels * n / 3, 3 * rows, columns)
        return torch.cat(tensor.unflatten(1, (-1, 3)).unbind(2), dim=2)

    mixed = merged(F.conv2d(features, taps[:, :, None, None]))
    tall = merged(mixed.transpose(2, 3) @ _shifted_interpolation(features.shape[2], size[0], mixed))
    return tall.transpose(2, 3) @ _shifted_interpolation(features.shape[3], size[1], mixed)


def _concatenated(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)  # of one tensor, `cat` makes a copy


def conv2d_over_upsampled_reference(
    maps: list[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """[`conv2d_over_upsampled`] as it is defined."""
    size = maps[0].shape[-2:]
    return conv2d_reference(torch.cat([resize_to(features, size) for features in maps], dim=1), weight, bias)


def _shifted_interpolation(length: int, new_length: int, like: torch.Tensor) -> torch.Tensor:
    """Interpolation of a line, read a place before, at and a place after each new one: (3 * length, new_length)."""
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    # Maps of one row: not all exporters interpolate lines.
    impulses = torch.eye(length, dtype=dtype, device=like.device)[None, :, None]
    padded = F.pad(resize_to(impulses, (1, new_length))[0, :, 0], (1, 1))
    return torch.cat([padded[:, shift : shift + new_length] for shift in range(3)]).to(like.dtype)
