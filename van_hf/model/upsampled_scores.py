# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The loss and the class ids of scores that are interpolated to full size, each beside its plain definition.

The scores at full size, (batch, num_labels, height, width), would be the largest tensor of a segmentation model:
630 MB for 4 pictures of 512 x 512 and 150 classes. They are worked out in blocks of rows that stay in the cache,
unless there are so few of them that they do all together.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .custom_operators import is_exporting, is_transformed, operator_namespace
from .interpolation import bilinear_taps, half_pixel_positions, resize_to

# Scores that a block of rows holds: 2 MB fit the cache of a CPU, a GPU wants few and large kernels.
CPU_BLOCK_SCORES = 2**19
ACCELERATOR_BLOCK_SCORES = 2**25
MIN_BLOCK_ROWS = 8
MIN_BLOCK_COLUMNS = 1024
# The loss is fastest in blocks twice as large but, of few classes, of no more pixels than these.
CPU_LOSS_BLOCK_SCORES = 2**20
CPU_LOSS_BLOCK_PIXELS = 2**17
# Rows or columns that one product of matrices interpolates: over more of them most weights would be 0.
BAND_LENGTH = 128
# Fewer scores than these, all of them together, are a smaller work than calling the loss's operator.
MIN_CPU_SCORES = 2**18

NAMESPACE = operator_namespace(__name__, "upsampled_cross_entropy")


def upsampled_cross_entropy_reference(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """The definition of [`upsampled_cross_entropy`]."""
    scores = resize_to(logits.to(score_dtype(logits)), labels.shape[-2:])
    num_valid = (labels != ignore_index).sum().clamp(min=1)
    return F.cross_entropy(scores, labels, ignore_index=ignore_index, reduction="sum") / num_valid


def upsampled_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Return the mean cross entropy, over the valid pixels, of logits interpolated bilinearly to the labels' size.

    The gradient is worked out together with the loss. Small inputs, higher derivatives, forward-mode ones and
    transforms of `torch.func` go through the plain definition.

    Args:
        logits: floating point, (batch, num_labels, rows, columns), of any size.
        labels: int64 (batch, height, width), ids 0..num_labels - 1 or `ignore_index`.
        ignore_index: the id of pixels that do not count.

    Returns:
        A scalar, float32, or float64 for such logits; 0 where no pixel is valid.

    Raises:
        ValueError: when the shapes do not fit.
        RuntimeError, IndexError: when an id is out of range; on an accelerator torch asserts it.
    """
    check_shapes(logits, labels)
    if is_transformed(logits, labels) or not pays_off_in_blocks(logits, labels):
        return upsampled_cross_entropy_reference(logits, labels, ignore_index)
    needs_gradient = logits.requires_grad and torch.is_grad_enabled()
    return _cross_entropy_and_gradient(logits, labels, ignore_index, needs_gradient)[0]


def check_shapes(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise a ValueError unless a loss can be taken of logits and labels of these shapes."""
    if logits.ndim != 4 or labels.ndim != 3 or logits.shape[0] != labels.shape[0]:
        raise ValueError(
            "logits must be (batch, num_labels, rows, columns) and labels (batch, height, width), "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )


def pays_off_in_blocks(logits: torch.Tensor, labels: torch.Tensor) -> bool:
    """Return whether a loss is worked out in blocks: the one place where that is decided, as measured on CPUs."""
    # A comparison of sizes would tie an exported program to the answer. Accelerators were not measured.
    if is_exporting() or logits.device.type != "cpu":
        return True
    is_interpolated = logits.shape[-2:] != labels.shape[-2:]
    return is_interpolated and logits.shape[1] * labels.numel() >= MIN_CPU_SCORES


@torch.library.custom_op(f"{NAMESPACE}::upsampled_cross_entropy", mutates_args=())
def _cross_entropy_and_gradient(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int, needs_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and its gradient in the shape of `logits` and the dtype of the loss; empty if it is not needed."""
    valid = labels != ignore_index
    num_valid = valid.sum().clamp(min=1)
    loss = logits.new_zeros((), dtype=score_dtype(logits))
    gradient = empty_gradient(logits, needs_gradient).zero_()
    for block in upsampled_blocks(logits, labels.shape[1:]):
        loss += _block_cross_entropy(
            block, labels[block.place], valid[block.place], gradient if needs_gradient else None
        )
    return loss / num_valid, gradient.div_(num_valid)


def _block_cross_entropy(
    block: "UpsampledBlock", labels: torch.Tensor, valid: torch.Tensor, gradient: torch.Tensor | None
) -> torch.Tensor:
    """The sum of the cross entropy over a block, whose gradient is added to that by all logits, if there is one.

    Args:
        block: gives the scores, (pictures, rows, num_labels, width).
        labels: (pictures, rows, width).
        valid: which of them count, (pictures, rows, width).
        gradient: (batch, num_labels, rows, columns).
    """
    log_probabilities = block.scores().log_softmax(dim=2)
    target = torch.where(valid, labels, 0)[:, :, None]
    loss = -torch.where(valid, log_probabilities.gather(2, target)[:, :, 0], 0).sum()
    if gradient is not None:
        # The gradient of the sum: probabilities, less one at the label.
        scores_gradient = log_probabilities.exp_()
        scores_gradient.scatter_add_(2, target, scores_gradient.new_full((), -1).expand(target.shape))
        scores_gradient *= valid[:, :, None]
        block.add_transposed(scores_gradient, gradient)
    return loss


class Band(NamedTuple):
    """A part of an interpolated line.

    Attributes:
        place: where it lies on the new line.
        source: the part of the old line that it rests on.
        weights: bilinear, (length of `place`, length of `source`).
    """

    place: slice
    source: slice
    weights: torch.Tensor


class UpsampledBlock:
    """Some rows of some pictures' scores at full size, and the way back for gradients by them.

    Rows come first in memory, so that they are interpolated in one product of matrices, and the softmax of many
    neighbouring columns is taken at once, be the classes few or many. The products write into a given tensor:
    autocast leaves those alone.

    Attributes:
        place: where the block lies in (batch, height, width): its pictures and its rows.
    """

    def __init__(self, logits: torch.Tensor, pictures: slice, down: Band, across: list[Band], dtype: torch.dtype):
        """
        Args:
            logits: (batch, num_labels, rows, columns).
            pictures: which of them.
            down: the block's rows, and how they are interpolated.
            across: how the columns are interpolated.
            dtype: of the scores.
        """
        self.place = (pictures, down.place)
        self._logits_place = (pictures, slice(None), down.source)
        self._row_weights, self._across = down.weights, across
        # (pictures, source rows, num_labels, columns)
        logits = logits[self._logits_place].to(dtype).transpose(1, 2)
        self._logits_shape = logits.shape
        self._narrow = logits.reshape(-1, logits.shape[-1])

    def scores(self) -> torch.Tensor:
        """Return the scores, (pictures, rows, num_labels, width), as a new tensor."""
        num_pictures, num_sources, num_labels, _ = self._logits_shape
        width = self._across[-1].place.stop
        self._wide = self._narrow.new_empty(num_pictures, num_sources, num_labels * width)
        wide_lines = self._wide.view(-1, width)
        for band in self._across:
            torch.mm(self._narrow[:, band.source], band.weights.T, out=wide_lines[:, band.place])
        scores = self._wide.new_empty(num_pictures, len(self._row_weights), num_labels, width)
        torch.bmm(self._row_weights.expand(num_pictures, -1, -1), self._wide, out=scores.flatten(2))
        return scores

    def add_transposed(self, scores_gradient: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add a gradient by the scores to the one by the logits that they rest on; the last use of a block.

        Args:
            scores_gradient: (pictures, rows, num_labels, width), contiguous.
            gradient: of all logits, (batch, num_labels, rows, columns), in the dtype of the scores.
        """
        row_weights = self._row_weights.expand(len(scores_gradient), -1, -1)
        torch.bmm(row_weights.mT, scores_gradient.flatten(2), out=self._wide)
        wide_lines = self._wide.view(-1, scores_gradient.shape[-1])
        narrow_gradient = torch.zeros_like(self._narrow)
        for band in self._across:
            narrow_gradient[:, band.source].addmm_(wide_lines[:, band.place], band.weights)
        gradient[self._logits_place] += narrow_gradient.view(self._logits_shape).transpose(1, 2)
        del self._wide, self._narrow  # before the next block is made


def upsampled_blocks(logits: torch.Tensor, size: tuple[int, int]) -> Iterator[UpsampledBlock]:
    """Yield the scores that logits, (batch, num_labels, rows, columns), are interpolated to, block by block.

    Args:
        logits: floating point, of any size.
        size: `(height, width)` in pixels of the scores, which are float32, or float64 for such logits.
    """
    height, width = size
    dtype = score_dtype(logits)
    num_pictures, num_rows = _loss_block(logits, height, width)
    across = _bands(logits.shape[3], width, BAND_LENGTH, dtype, logits.device)
    down = _bands(logits.shape[2], height, num_rows, dtype, logits.device)
    for start in range(0, len(logits), num_pictures):
        for band in down:
            yield UpsampledBlock(logits, slice(start, start + num_pictures), band, across, dtype)


def _loss_block(logits: torch.Tensor, height: int, width: int) -> tuple[int, int]:
    """Pictures and rows of a block of the loss."""
    num_labels = logits.shape[1]
    scores = ACCELERATOR_BLOCK_SCORES
    if logits.device.type == "cpu":
        scores = min(CPU_LOSS_BLOCK_SCORES, CPU_LOSS_BLOCK_PIXELS * num_labels)
    rows = min(max(scores // (num_labels * width), MIN_BLOCK_ROWS), height, BAND_LENGTH)
    return max(scores // (num_labels * width * rows), 1), rows


def _bands(length: int, new_length: int, step: int, dtype: torch.dtype, device: torch.device) -> list[Band]:
    """How a line of `length` is interpolated to `new_length`, in parts of `step`."""
    # In the scores' dtype, as torch does it: weights rounded otherwise would differ in the 5th digit.
    before, after, after_weight = bilinear_taps(half_pixel_positions(length, new_length, dtype=dtype), length)
    bands = []
    for start in range(0, new_length, step):
        place = slice(start, min(start + step, new_length))
        source = slice(int(before[start]), int(after[place.stop - 1]) + 1)
        weights = after_weight.new_zeros(place.stop - place.start, source.stop - source.start)
        weights.scatter_add_(1, before[place, None] - source.start, 1 - after_weight[place, None])
        weights.scatter_add_(1, after[place, None] - source.start, after_weight[place, None])
        bands.append(Band(place, source, weights.to(device)))
    return bands


@_cross_entropy_and_gradient.register_fake
def _(logits, labels, ignore_index, needs_gradient):
    return logits.new_empty((), dtype=score_dtype(logits)), empty_gradient(logits, needs_gradient)


def _keep_gradient(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    logits, labels, ctx.ignore_index, _ = inputs
    ctx.save_for_backward(logits, labels, output[1])


def _backward(ctx, loss_gradient, _):
    if loss_gradient is None:
        return None, None, None, None
    logits, labels, gradient = ctx.saved_tensors
    if torch.is_grad_enabled():  # as with create_graph=True: the gradient will be differentiated in its turn
        loss = upsampled_cross_entropy_reference(logits, labels, ctx.ignore_index)
        (gradient,) = torch.autograd.grad(loss, logits, loss_gradient, create_graph=True)
        return gradient, None, None, None
    return (gradient * loss_gradient).to(logits.dtype), None, None, None


_cross_entropy_and_gradient.register_autograd(_backward, setup_context=_keep_gradient)


def upsampled_argmax_reference(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The definition of [`upsampled_argmax`]."""
    return resize_to(logits.to(score_dtype(logits)), torch.Size(size)).argmax(dim=1)


def upsampled_argmax(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the class of the largest of each pixel's scores, which are logits interpolated bilinearly to `size`.

    Logits that are not finite count as in `torch.nn.functional.interpolate`: NaN is the largest, and where a weight is
    0, as on the border, it makes NaN of an infinity. To keep a class out, give it a large negative number instead.

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
    return upsampled_argmax_reference(logits, size) if is_transformed(logits) else _argmax(logits, *size)


@torch.library.custom_op(f"{NAMESPACE}::upsampled_argmax", mutates_args=())
def _argmax(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    num_labels, rows, columns = logits.shape[1:]
    if (rows, columns) == (height, width):
        return logits.argmax(dim=1)
    if not logits.isfinite().all():
        return _argmax_by_classes(logits, torch.Size((height, width)))
    ids = logits.new_empty((len(logits), height, width), dtype=torch.int64)
    for picture, picture_ids in zip(logits, ids, strict=True):
        picture = picture.to(score_dtype(logits))
        upper, lower, lower_weight = _taps(rows, height, picture)
        step = _block_rows(num_labels * width, logits.device)
        for start in range(0, height, step):
            block = slice(start, start + step)
            first, last = int(upper[block][0]), int(lower[block][-1])
            source = picture[:, first : last + 1]
            classes = _possible_winners(source)
            source = source.index_select(0, classes)
            weight = lower_weight[block, None]
            for across, wide in _widened(source, width):
                # The order of operations is F.interpolate's on the CPU: the same numbers come out, but for rounding.
                scores = wide.index_select(1, lower[block] - first).mul_(weight)
                scores.addcmul_(wide.index_select(1, upper[block] - first), 1 - weight)
                picture_ids[block, across] = classes[scores.max(dim=0).indices]
    return ids


def _argmax_by_classes(logits: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """The class ids a few classes at a time, with F.interpolate's own weights: rounded otherwise they might be 0 where
    its are not, and 0 times infinity is NaN."""
    highest = logits.new_full((len(logits), *size), -torch.inf, dtype=score_dtype(logits))
    ids = torch.zeros(highest.shape, dtype=torch.int64, device=logits.device)
    step = max(_block_scores(logits.device) // max(highest.numel(), 1), 1)
    for first in range(0, logits.shape[1], step):
        scores = resize_to(logits[:, first : first + step].to(highest.dtype), size)
        values, indices = scores.max(dim=1)
        is_higher = (values > highest) | (values.isnan() & ~highest.isnan())
        ids = torch.where(is_higher, first + indices, ids)
        highest = torch.where(is_higher, values, highest)
    return ids


def _widened(logits: torch.Tensor, width: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Interpolate rows of `logits`, (num_labels, rows, columns), to `width`: all columns at once or, in rows so long
    that a few of them are a whole block, parts of the columns, each with its place."""
    step = max(_block_scores(logits.device) // (len(logits) * MIN_BLOCK_ROWS), MIN_BLOCK_COLUMNS)
    if step >= width:
        yield slice(0, width), F.interpolate(logits, size=width, mode="linear", align_corners=False)
        return
    for start in range(0, width, step):
        across = slice(start, min(start + step, width))
        left, right, right_weight = _taps(logits.shape[2], width, logits, across)
        wide = logits.index_select(2, right).mul_(right_weight)
        yield across, wide.addcmul_(logits.index_select(2, left), 1 - right_weight)


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


def score_dtype(logits: torch.Tensor) -> torch.dtype:
    """Return the dtype that scores are interpolated in: float32, or float64 for such logits."""
    return torch.promote_types(logits.dtype, torch.float32)


def empty_gradient(logits: torch.Tensor, needs_gradient: bool) -> torch.Tensor:
    """Return what takes a gradient by the logits, in the scores' dtype; without elements if none is needed."""
    dtype = score_dtype(logits)
    return torch.empty_like(logits, dtype=dtype) if needs_gradient else logits.new_empty(0, dtype=dtype)


def _block_scores(device: torch.device) -> int:
    return CPU_BLOCK_SCORES if device.type == "cpu" else ACCELERATOR_BLOCK_SCORES


def _block_rows(row_scores: int, device: torch.device) -> int:
    return max(_block_scores(device) // row_scores, MIN_BLOCK_ROWS)


def _taps(
    length: int, new_length: int, like: torch.Tensor, part: slice = slice(0, None)
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each of `new_length` interpolated rows the two rows that it lies between, and the latter one's weight."""
    # In the scores' dtype, as torch does it: weights rounded otherwise would differ in the 5th digit.
    positions = half_pixel_positions(length, new_length, part.start, part.stop, dtype=like.dtype)
    before, after, after_weight = bilinear_taps(positions, length)
    return before.to(like.device), after.to(like.device), after_weight.to(like.device)
