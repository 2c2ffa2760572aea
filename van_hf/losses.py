# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Losses for the training on data in which few classes have most of the pixels, each beside its plain definition.

    model.loss_function = SegmentationLoss.parse("ohem+dice")

Like the model's own loss they interpolate the logits to the labels' size block by block, so that the scores at full
size are never there. What depends on all pixels, such as the sums of dice, takes a pass over the blocks of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .model.custom_operators import is_transformed, operator_namespace
from .model.interpolation import resize_to
from .model.upsampled_scores import (
    UpsampledBlock,
    check_shapes,
    empty_gradient,
    pays_off_in_blocks,
    score_dtype,
    upsampled_blocks,
    upsampled_cross_entropy,
)

LOSS_NAMES = ("cross_entropy", "focal", "ohem", "dice")
SMOOTHED_NAMES = ("cross_entropy", "ohem")
# The fields of [`SegmentationLoss`] but the first, in the order in which its operator takes them.
SETTINGS = ("class_weights", "label_smoothing", "focal_gamma", "ohem_threshold", "ohem_min_kept")

NAMESPACE = operator_namespace(__name__, "segmentation_loss")


def parse_loss_names(text: str) -> tuple[str, ...]:
    """Return the losses that a text such as "cross_entropy+dice" adds up.

    Raises:
        ValueError: a loss is unknown, or they do not go together; the message says what would do.
    """
    names = tuple(name.strip() for name in text.split("+"))
    _check_names(names)
    return names


def _check_names(names: tuple[str, ...]) -> None:
    known = f"{', '.join(LOSS_NAMES)}, or two of them as in cross_entropy+dice"
    unknown = [name for name in names if name not in LOSS_NAMES]
    if unknown or not names:
        raise ValueError(f"a loss must be one of {known}, got {', '.join(map(repr, unknown)) or 'none'}")
    if len(names) > 2:
        raise ValueError(f"at most two losses can be added up, got {'+'.join(names)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{'+'.join(names)} adds up the same loss twice; {names[0]} alone will do")
    if {"focal", "ohem"} <= set(names):
        raise ValueError("focal and ohem do not go together, as both single out the hard pixels; choose one of them")


@dataclass(frozen=True)
class SegmentationLoss:
    """A loss of logits interpolated bilinearly to the labels' size, for `model.loss_function`.

    The losses of `names` are added up. Each is a mean over the batch, of several processes over the batch of each:

    - "cross_entropy": over all valid pixels.
    - "focal": the cross entropy times `(1 - p) ** focal_gamma`, where p is the probability of the pixel's class by
      softmax (https://arxiv.org/abs/1708.02002), over all valid pixels.
    - "ohem": the cross entropy over the hard pixels: p is below `ohem_threshold` or, where fewer than
      `ohem_min_kept` of the valid pixels are so hard, below the p that this share of them lies below. This is the rule
      of mmsegmentation's `OHEMPixelSampler`, which counts `min_kept` in pixels per picture, and where the loss is then
      divided by the number of all pixels instead of the hard ones.
    - "dice": 1 less the mean, over the classes that occur in the batch, of `2 * sum(p * t) / (sum(p) + sum(t))`. The
      sums are over the batch's valid pixels, p is the class's probability and t whether a pixel has that class.

    The mean over pixels is weighted with the weights of the pixels' classes: divided by their sum, as with
    `torch.nn.functional.cross_entropy(weight=...)`, not by the number of pixels. Weights all twice as large change
    nothing. Dice's mean over the classes is weighted in the same way. Where nothing counts, as in a batch without
    valid pixels, or of pixels whose weights are 0, the loss is 0.

    Args:
        names: one or two of `LOSS_NAMES`. Focal and ohem do not go together.
        class_weights: one for each label, 0 or more, None for 1 each.
        label_smoothing: share of the target, in [0, 1), that all classes have in equal parts, weighted as in
            `torch.nn.functional.cross_entropy`. It is part of cross entropy and ohem; focal and dice have no targets
            but the true class.
        focal_gamma: exponent, 0 or more; the larger it is, the less count pixels that are right already.
        ohem_threshold: probability in (0, 1] of the true class below which a pixel is hard.
        ohem_min_kept: share in [0, 1] of the batch's valid pixels.

    Raises:
        ValueError: losses that do not go together, or values out of range.
    """

    names: tuple[str, ...] = ("cross_entropy",)
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    ohem_threshold: float = 0.7
    ohem_min_kept: float = 1 / 16

    def __post_init__(self):
        if isinstance(self.names, str):
            raise ValueError(f"names must be a tuple, such as ('focal',), got {self.names!r}; parse() takes a text")
        # Lists would make it unhashable.
        object.__setattr__(self, "names", tuple(self.names))
        _check_names(self.names)
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", tuple(map(float, self.class_weights)))
            check_class_weights(self.class_weights)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if self.label_smoothing > 0 and not set(SMOOTHED_NAMES) & set(self.names):
            raise ValueError(
                f"label_smoothing has no meaning for {'+'.join(self.names)}, which has no targets but the true class; "
                f"it needs {' or '.join(SMOOTHED_NAMES)}"
            )
        if not 0 <= self.focal_gamma < math.inf:
            raise ValueError(f"focal_gamma must be 0 or more and finite, got {self.focal_gamma}")
        if not 0 < self.ohem_threshold <= 1:
            raise ValueError(f"ohem_threshold must lie in (0, 1], got {self.ohem_threshold}")
        if not 0 <= self.ohem_min_kept <= 1:
            raise ValueError(f"ohem_min_kept must be a share in [0, 1], got {self.ohem_min_kept}")

    @classmethod
    def parse(cls, text: str, **fields) -> "SegmentationLoss":
        """Return the loss of a text such as "focal" or "cross_entropy+dice", with other fields by their names.

        Raises:
            ValueError: see the class, and [`parse_loss_names`].
        """
        return cls(parse_loss_names(text), **fields)

    def __str__(self) -> str:
        return "+".join(self.names)

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
        """Return the loss; its gradient is worked out with it.

        Args:
            logits: floating point, (batch, num_labels, rows, columns), of any size.
            labels: int64 (batch, height, width), ids 0..num_labels - 1 or `ignore_index`.
            ignore_index: the id of pixels that do not count.

        Returns:
            A scalar, float32, or float64 for such logits.

        Raises:
            ValueError: when the shapes do not fit, or there are weights for another number of classes.
            RuntimeError, IndexError: when an id is out of range; on an accelerator torch asserts it.
        """
        if self.names == ("cross_entropy",) and self.class_weights is None and self.label_smoothing == 0:
            return upsampled_cross_entropy(logits, labels, ignore_index)
        check_shapes(logits, labels)
        if self.class_weights is not None and len(self.class_weights) != logits.shape[1]:
            raise ValueError(
                f"class_weights must be one for each of the {logits.shape[1]} labels, got {len(self.class_weights)}"
            )
        if is_transformed(logits, labels) or not pays_off_in_blocks(logits, labels):
            return segmentation_loss_reference(self, logits, labels, ignore_index)
        needs_gradient = logits.requires_grad and torch.is_grad_enabled()
        settings = [getattr(self, name) for name in SETTINGS]
        return _loss_and_gradient(logits, labels, ignore_index, needs_gradient, str(self), *settings)[0]


def check_class_weights(weights: Sequence[float]) -> None:
    """Raise a ValueError unless the weights are finite, none below 0 and one above it."""
    wrong = [f"{weight} of label {label}" for label, weight in enumerate(weights) if not 0 <= weight < math.inf]
    if wrong:
        raise ValueError(f"class weights must be 0 or more and finite, got {', '.join(wrong)}")
    if not any(weights):
        raise ValueError("class weights must not all be 0: nothing would be learned")


def segmentation_loss_reference(
    loss: SegmentationLoss, logits: torch.Tensor, labels: torch.Tensor, ignore_index: int
) -> torch.Tensor:
    """The definition of [`SegmentationLoss`]."""
    log_probabilities = resize_to(logits.to(score_dtype(logits)), labels.shape[-2:]).log_softmax(dim=1)
    valid = labels != ignore_index
    targets = torch.where(valid, labels, 0)
    log_true = log_probabilities.gather(1, targets[:, None])[:, 0]
    class_weights = _class_weights(loss, log_true, logits.shape[1])
    weights = class_weights[targets] * valid
    total = log_true.new_zeros(())
    for name in loss.names:
        if name == "dice":
            pixels, common = (
                values.new_zeros(logits.shape[1]).index_add(0, targets.flatten(), values.flatten())
                for values in (valid.long(), log_true.exp() * valid)
            )
            probabilities = (log_probabilities.exp() * valid[:, None]).sum(dim=(0, 2, 3))
            dice = 2 * common / (probabilities + pixels).clamp(min=1)
            present = class_weights * (pixels > 0)
            total = total + (present * (1 - dice)).sum() / _divisor(present)
            continue
        pixel_losses = -log_true
        if name == "focal":
            pixel_losses = _focal_factor(log_true, loss.focal_gamma) * pixel_losses
        kept = valid & (log_true < _log_threshold(loss, log_true.detach(), valid)) if name == "ohem" else valid
        pixel_losses = weights * pixel_losses
        if loss.label_smoothing > 0 and name in SMOOTHED_NAMES:
            even = -(class_weights[:, None, None] * log_probabilities).mean(dim=1)
            pixel_losses = (1 - loss.label_smoothing) * pixel_losses + loss.label_smoothing * even
        total = total + torch.where(kept, pixel_losses, 0).sum() / _divisor(weights * kept)
    return total


def _class_weights(loss: SegmentationLoss, like: torch.Tensor, num_labels: int) -> torch.Tensor:
    return like.new_ones(num_labels) if loss.class_weights is None else like.new_tensor(loss.class_weights)


def _divisor(weights: torch.Tensor) -> torch.Tensor:
    """The sum of weights or, where it is 0, infinity: nothing counts then, a smoothed target neither."""
    total = weights.sum()
    return torch.where(total > 0, total, math.inf)


def _focal_factor(log_true: torch.Tensor, gamma: float) -> torch.Tensor:
    return _missing_probability(log_true) ** gamma


def _missing_probability(log_true: torch.Tensor) -> torch.Tensor:
    """1 - p, by log(p); above 0, where a power below 1 would have an infinite derivative."""
    return -torch.expm1(log_true).clamp(max=-torch.finfo(log_true.dtype).tiny)


def _log_threshold(loss: SegmentationLoss, log_true: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The logarithm of the probability that ohem keeps the pixels below."""
    threshold = log_true.new_tensor(loss.ohem_threshold).log()
    ordered = torch.where(valid, log_true, math.inf).flatten()
    num_valid = int(valid.sum())
    num_kept = min(int(loss.ohem_min_kept * num_valid), num_valid - 1)
    if num_kept < 1 or num_kept < int((ordered < threshold).sum()):
        return threshold
    # Logarithms, as probabilities near 1 are rounded to the same number.
    return torch.maximum(ordered.kthvalue(num_kept + 1).values, threshold)


class _Totals(NamedTuple):
    """What a block has to know of the whole batch.

    Attributes:
        weights: of the pixels, those of their classes, 0 where ignored; (batch, height, width).
        divisors: what the sum over the pixels is divided by, for each of the losses over pixels.
        log_threshold: of ohem.
        dice: the whole loss.
        dice_slopes: its derivatives by the sums over the probabilities of each class at all pixels, and at those that
            have the class; (2, num_labels).
    """

    weights: torch.Tensor
    divisors: dict[str, torch.Tensor]
    log_threshold: torch.Tensor | None
    dice: torch.Tensor | None
    dice_slopes: torch.Tensor | None


# torch 2.6 cannot read it from the annotations.
SCHEMA = (
    "(Tensor logits, Tensor labels, int ignore_index, bool needs_gradient, str names, float[]? class_weights, "
    "float label_smoothing, float focal_gamma, float ohem_threshold, float ohem_min_kept) -> (Tensor, Tensor)"
)


@torch.library.custom_op(f"{NAMESPACE}::segmentation_loss", mutates_args=(), schema=SCHEMA)
def _loss_and_gradient(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int,
    needs_gradient: bool,
    names: str,
    class_weights: Sequence[float] | None,
    label_smoothing: float,
    focal_gamma: float,
    ohem_threshold: float,
    ohem_min_kept: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and its gradient in the shape of `logits` and the dtype of the loss; empty if it is not needed."""
    settings = (class_weights, label_smoothing, focal_gamma, ohem_threshold, ohem_min_kept)
    loss = SegmentationLoss.parse(names, **dict(zip(SETTINGS, settings, strict=True)))
    gradient = empty_gradient(logits, needs_gradient).zero_()
    with torch.autocast(logits.device.type, enabled=False):
        valid = labels != ignore_index
        targets = torch.where(valid, labels, 0)
        totals = _totals(loss, logits, targets, valid)
        value = logits.new_zeros((), dtype=gradient.dtype) if totals.dice is None else totals.dice
        if needs_gradient or totals.divisors:
            for block in upsampled_blocks(logits, labels.shape[1:]):
                value += _block_loss(
                    loss, totals, block, targets[block.place], valid[block.place], gradient if needs_gradient else None
                )
    return value, gradient


def _totals(loss: SegmentationLoss, logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> _Totals:
    """What depends on all pixels; where the losses are more than sums over them, it takes a pass over the blocks."""
    like = logits.new_empty(0, dtype=score_dtype(logits))
    class_weights = _class_weights(loss, like, logits.shape[1])
    weights = torch.where(valid, class_weights[targets], 0) if loss.class_weights is not None else valid.to(like.dtype)
    divisors = dict.fromkeys((name for name in loss.names if name != "dice"), _divisor(weights))
    log_threshold = dice = dice_slopes = None
    if {"ohem", "dice"} & set(loss.names):
        log_true, sums = _first_pass(loss, logits, targets, valid)
        if "ohem" in loss.names:
            log_threshold = _log_threshold(loss, log_true, valid)
            divisors["ohem"] = _divisor(weights * (log_true < log_threshold))
        if "dice" in loss.names:
            dice, dice_slopes = _dice(log_true, sums, targets, valid, class_weights)
    return _Totals(weights, divisors, log_threshold, dice, dice_slopes)


def _first_pass(
    loss: SegmentationLoss, logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logarithm of the probability of each pixel's class, (batch, height, width), and for dice the sum over the
    valid pixels of each class's probability, (num_labels,)."""
    log_true = logits.new_empty(targets.shape, dtype=score_dtype(logits))
    sums = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device)
    for block in upsampled_blocks(logits, targets.shape[1:]):
        values = _softmax(block, is_log="ohem" in loss.names)
        true_values = values.gather(2, targets[block.place][:, :, None])[:, :, 0]
        log_true[block.place] = true_values if "ohem" in loss.names else true_values.log()
        if "dice" in loss.names:
            probabilities = values.exp_() if "ohem" in loss.names else values
            # Where einsum is a product of matrices and vectors, `@` is five times slower.
            sums += torch.einsum("prcw,prw->c", probabilities, valid[block.place].to(values.dtype))
        values = probabilities = None  # before the next block is made
    return log_true, sums


def _softmax(block: UpsampledBlock, is_log: bool) -> torch.Tensor:
    """The probabilities, (pictures, rows, num_labels, width), or their logarithms, exact where they vanish."""
    return block.scores().log_softmax(dim=2) if is_log else block.scores().softmax(dim=2)


def _dice(
    log_true: torch.Tensor,
    sums: torch.Tensor,
    targets: torch.Tensor,
    valid: torch.Tensor,
    class_weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and its slopes, see `_Totals`."""
    counted = valid.flatten().to(sums.dtype)
    pixels, common = (
        torch.zeros_like(sums).index_add_(0, targets.flatten(), values)
        for values in (counted, log_true.flatten().exp() * counted)
    )
    total = (sums + pixels).clamp(min=1)
    present = class_weights * (pixels > 0)
    present = present / _divisor(present)
    dice = (present * (1 - 2 * common / total)).sum()
    slopes = torch.stack([present * 2 * common / total.square(), -2 * present / total])
    return dice.to(log_true.dtype), slopes.to(log_true.dtype)


def _block_loss(
    loss: SegmentationLoss,
    totals: _Totals,
    block: UpsampledBlock,
    targets: torch.Tensor,
    valid: torch.Tensor,
    gradient: torch.Tensor | None,
) -> torch.Tensor:
    """A block's share of the losses over pixels; its gradient is added to that by all logits, if there is one.

    With p the probabilities, the gradient by the scores is `p * factor`, less a number at each pixel's class and, with
    smoothed labels, less one at each class.
    """
    is_log = bool(totals.divisors)
    values = _softmax(block, is_log)
    at_targets = targets[:, :, None]
    log_true = values.gather(2, at_targets)[:, :, 0]
    if not is_log:
        log_true = log_true.log_()
    weights = totals.weights[block.place]
    value, at_true, smoothed = _pixel_losses(loss, totals, log_true, weights, valid)
    factor = at_true
    num_labels = values.shape[2]
    class_weights = _class_weights(loss, log_true, num_labels)
    if smoothed is not None:
        even = smoothed * (loss.label_smoothing / num_labels)
        value -= (even * (class_weights @ values)).sum()
        factor = factor + class_weights.sum() * even
    if gradient is None:
        return value
    probabilities = values.exp_() if is_log else values
    if totals.dice_slopes is None:
        probabilities *= factor[:, :, None]
    else:
        at_all, at_own = totals.dice_slopes
        own_slopes = at_own[targets] * log_true.exp() * valid
        factor = factor - (at_all @ probabilities) - own_slopes
        probabilities *= at_all[:, None] + factor[:, :, None]
        probabilities *= valid[:, :, None]
        at_true = at_true - own_slopes
    probabilities.scatter_add_(2, at_targets, -at_true[:, :, None])
    if smoothed is not None:
        probabilities -= class_weights[:, None] * even[:, :, None]
    block.add_transposed(probabilities, gradient)
    return value


def _pixel_losses(
    loss: SegmentationLoss, totals: _Totals, log_true: torch.Tensor, weights: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The losses over pixels of a block, but for what smoothing spreads over all classes.

    Returns:
        The sum of the losses; their derivatives by `log_true` with the sign changed; the shares of the pixels in what
        is spread over all classes, None without smoothing. All but the sum are like `log_true`.
    """
    value = log_true.new_zeros(())
    slopes = torch.zeros_like(log_true)
    smoothed = torch.zeros_like(log_true) if loss.label_smoothing > 0 else None
    for name, divisor in totals.divisors.items():
        shares = weights / divisor
        if name == "focal":
            missing = _missing_probability(log_true)
            factor = missing**loss.focal_gamma
            value -= (shares * factor * log_true).sum()
            slope = factor - loss.focal_gamma * missing ** (loss.focal_gamma - 1) * log_true.exp() * log_true
            slopes += shares * slope
            continue
        kept = log_true < totals.log_threshold if name == "ohem" else None
        if kept is not None:
            shares = shares * kept
        shares = shares * (1 - loss.label_smoothing)
        value -= (shares * log_true).sum()
        slopes += shares
        if smoothed is not None:
            smoothed += (valid if kept is None else valid & kept) / divisor
    return value, slopes, smoothed


@_loss_and_gradient.register_fake
def _(logits, labels, ignore_index, needs_gradient, *settings):
    return logits.new_empty((), dtype=score_dtype(logits)), empty_gradient(logits, needs_gradient)


def _keep_gradient(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    logits, labels, ctx.ignore_index, _, ctx.names, *ctx.settings = inputs
    ctx.save_for_backward(logits, labels, output[1])


def _backward(ctx, loss_gradient, _):
    no_gradients = (None,) * (4 + len(SETTINGS))
    if loss_gradient is None:
        return None, *no_gradients
    logits, labels, gradient = ctx.saved_tensors
    if torch.is_grad_enabled():  # as with create_graph=True: the gradient will be differentiated in its turn
        loss = SegmentationLoss.parse(ctx.names, **dict(zip(SETTINGS, ctx.settings, strict=True)))
        value = segmentation_loss_reference(loss, logits, labels, ctx.ignore_index)
        (gradient,) = torch.autograd.grad(value, logits, loss_gradient, create_graph=True)
        return gradient, *no_gradients
    return (gradient * loss_gradient).to(logits.dtype), *no_gradients


_loss_and_gradient.register_autograd(_backward, setup_context=_keep_gradient)
