# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""3x3 convolutions by Winograd's algorithm, with a quarter of the multiplications.

F(4x4, 3x3) of https://arxiv.org/abs/1509.09308, section 4.3: tiles of 6x6 pixels give 4x4 outputs with 36
multiplications for each pair of channels instead of 144.
"""

import math

import torch
from torch.nn import functional as F

from .custom_operators import is_transformed, operator_namespace

NAMESPACE = operator_namespace(__name__, "winograd_conv2d")

# Each transforms one side; both sides at once are the Kronecker product with itself.
_TILE_TRANSFORM = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
_WEIGHT_TRANSFORM = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
_OUTPUT_TRANSFORM = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)
# Tiles that are worked on at once: of 512 channels they take 9 MB, which fit in the cache.
_TILES_AT_ONCE = 128
# F(4x4, 3x3): a tile of 6x6 pixels, seen through a kernel of 3x3, gives 4x4 outputs.
_TILE, _KERNEL, _OUTPUT = 6, 3, 4


def winograd_conv2d(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return a 3x3 convolution that keeps the size.

    It has derivatives of every order in the reverse mode; where `torch.func` or the forward mode is at work, torch's
    own convolution runs.

    Args:
        features: (batch, in_channels, height, width), float32 or float64.
        weight: (out_channels, in_channels, 3, 3), of the same dtype.
        bias: (out_channels,), or None.

    Returns:
        (batch, out_channels, height, width), contiguous. In float32 it differs from the exact sum by up to 3e-5 of
        the outputs' standard deviation.
    """
    if is_transformed(features, weight, bias):
        return F.conv2d(features, weight, bias, padding=1)
    return _winograd_conv2d(features, weight, bias)


@torch.library.custom_op(f"{NAMESPACE}::winograd_conv2d", mutates_args=())
def _winograd_conv2d(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    tile_transform, weight_transform, output_transform = (
        torch.kron(side, side)
        for side in map(features.new_tensor, (_TILE_TRANSFORM, _WEIGHT_TRANSFORM, _OUTPUT_TRANSFORM))
    )
    out_channels, channels = weight.shape[:2]
    batch, _, height, width = features.shape
    rows, columns = -(-height // _OUTPUT), -(-width // _OUTPUT)  # of tiles
    weights = weight_transform @ weight.permute(2, 3, 0, 1).reshape(_KERNEL**2, -1)
    weights = weights.view(_TILE**2, out_channels, channels)
    outputs = features.new_empty(batch, out_channels, _OUTPUT * rows, _OUTPUT * columns)
    output_tiles = outputs.view(batch, out_channels, rows, _OUTPUT, columns, _OUTPUT)

    images_at_once = max(1, min(batch, _TILES_AT_ONCE // (rows * columns)))
    rows_at_once = max(1, min(rows, _TILES_AT_ONCE // columns))
    # Two buffers take turns: new memory would cost as much as the arithmetic.
    size = _TILE**2 * max(channels, out_channels) * images_at_once * rows_at_once * columns
    buffers = features.new_empty(size), features.new_empty(size)
    border = _KERNEL - 1  # the tiles' overlap, and the padding of both sides
    padded = features.new_zeros(images_at_once, channels, _OUTPUT * rows_at_once + border, _OUTPUT * columns + border)
    for image in range(0, batch, images_at_once):
        images = slice(image, min(image + images_at_once, batch))
        for row in range(0, rows, rows_at_once):
            num_rows = min(rows_at_once, rows - row)
            window = padded[: images.stop - image, :, : _OUTPUT * num_rows + border]
            _fill_window(window, features[images], top=_OUTPUT * row - 1)
            # (6, 6, channels, images, rows, columns)
            tiles = window.unfold(2, _TILE, _OUTPUT).unfold(3, _TILE, _OUTPUT).permute(4, 5, 1, 0, 2, 3)
            values = _part(buffers[0], *tiles.shape).copy_(tiles).view(_TILE**2, -1)
            values = torch.mm(tile_transform, values, out=_part(buffers[1], *values.shape))
            values = values.view(_TILE**2, channels, -1)  # of all tiles
            products = _part(buffers[0], _TILE**2, out_channels, values.shape[-1])
            products = torch.bmm(weights, values, out=products).view(_TILE**2, -1)
            result = _part(buffers[1], _OUTPUT**2, products.shape[-1])
            result = torch.mm(output_transform, products, out=result)
            # (4, 4, out_channels, images, rows, columns)
            result = result.view(_OUTPUT, _OUTPUT, out_channels, *tiles.shape[3:])
            if bias is not None:
                result += bias[:, None, None, None]
            output_tiles[images, :, row : row + num_rows] = result.permute(3, 2, 4, 0, 5, 1)
    # Not a view, which autograd would let nobody change in place.
    return outputs if outputs.shape[2:] == (height, width) else outputs[..., :height, :width].contiguous()


def _part(buffer: torch.Tensor, *shape: int) -> torch.Tensor:
    return buffer[: math.prod(shape)].view(shape)


def _fill_window(window: torch.Tensor, features: torch.Tensor, top: int):
    """Copy rows of `features` from `top` on into `window`, whose outer columns are padding; rows outside are 0."""
    height, width = features.shape[2:]
    first, last = max(top, 0), min(top + window.shape[2], height)
    window[:, :, : first - top].zero_()
    window[:, :, last - top :].zero_()
    window[:, :, first - top : last - top, 1 : width + 1] = features[:, :, first:last]


@_winograd_conv2d.register_fake
def _(features, weight, bias):
    return features.new_empty(features.shape[0], weight.shape[0], *features.shape[2:])


def _save_for_backward(ctx, inputs, output):
    features, weight, _ = inputs
    ctx.save_for_backward(features, weight)


def _backward(ctx, gradient):
    features, weight = ctx.saved_tensors
    needs_features, needs_weight, needs_bias = ctx.needs_input_grad
    for_features = for_weight = None
    if needs_features:
        for_features = _winograd_conv2d(gradient, weight.transpose(0, 1).flip(2, 3), None)
    if needs_weight:
        for_weight = torch.nn.grad.conv2d_weight(features, weight.shape, gradient, padding=1)
    return for_features, for_weight, gradient.sum(dim=(0, 2, 3)) if needs_bias else None


_winograd_conv2d.register_autograd(_backward, setup_context=_save_for_backward)
