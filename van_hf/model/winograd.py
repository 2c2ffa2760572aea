# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""3x3 convolutions by Winograd's algorithm, with a quarter of the multiplications.

F(4x4, 3x3) of https://arxiv.org/abs/1509.09308, section 4.3: tiles of 6x6 pixels give 4x4 outputs with 36
multiplications for each pair of channels in place of 144.
"""

import math

import torch

from .operator_namespace import operator_namespace

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
# Tiles that are worked on at once: of 512 channels they take 9 MB, which stay in the cache.
_TILES_AT_ONCE = 128


@torch.library.custom_op(f"{NAMESPACE}::winograd_conv2d", mutates_args=())
def winograd_conv2d(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A 3x3 convolution that keeps the size.

    Args:
        features: (batch, in_channels, height, width), float32 or float64.
        weight: (out_channels, in_channels, 3, 3), of the same dtype.
        bias: (out_channels,), or None.

    Returns:
        (batch, out_channels, height, width), contiguous. In float32 it differs from the exact sum by up to 3e-5 of
        the outputs' standard deviation.
    """
    tile_transform, weight_transform, output_transform = (
        torch.kron(side, side)
        for side in map(features.new_tensor, (_TILE_TRANSFORM, _WEIGHT_TRANSFORM, _OUTPUT_TRANSFORM))
    )
    out_channels, channels = weight.shape[:2]
    batch, _, height, width = features.shape
    rows, columns = -(-height // 4), -(-width // 4)
    weights = (weight_transform @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(36, out_channels, channels)
    outputs = features.new_empty(batch, out_channels, 4 * rows, 4 * columns)
    output_tiles = outputs.view(batch, out_channels, rows, 4, columns, 4)

    images_at_once = max(1, min(batch, _TILES_AT_ONCE // (rows * columns)))
    rows_at_once = max(1, min(rows, _TILES_AT_ONCE // columns))
    # Two buffers take turns: new memory would cost as much as the arithmetic.
    size = 36 * max(channels, out_channels) * images_at_once * rows_at_once * columns
    buffers = features.new_empty(size), features.new_empty(size)
    padded = features.new_zeros(images_at_once, channels, 4 * rows_at_once + 2, 4 * columns + 2)
    for image in range(0, batch, images_at_once):
        images = slice(image, min(image + images_at_once, batch))
        for row in range(0, rows, rows_at_once):
            num_rows = min(rows_at_once, rows - row)
            window = padded[: images.stop - image, :, : 4 * num_rows + 2]
            _fill_window(window, features[images], top=4 * row - 1)
            tiles = window.unfold(2, 6, 4).unfold(3, 6, 4).permute(4, 5, 1, 0, 2, 3)
            shape = tiles.shape[3:]  # images, rows and columns of tiles
            values = _part(buffers[0], *tiles.shape).copy_(tiles).view(36, -1)
            values = torch.mm(tile_transform, values, out=_part(buffers[1], *values.shape)).view(36, channels, -1)
            products = _part(buffers[0], 36, out_channels, values.shape[-1])
            products = torch.bmm(weights, values, out=products).view(36, -1)
            result = torch.mm(output_transform, products, out=_part(buffers[1], 16, products.shape[-1]))
            result = result.view(4, 4, out_channels, *shape)
            if bias is not None:
                result += bias[:, None, None, None]
            output_tiles[images, :, row : row + num_rows] = result.permute(3, 2, 4, 0, 5, 1)
    # Not a view, which autograd would let nobody change in place.
    return outputs if outputs.shape[2:] == (height, width) else outputs[..., :height, :width].contiguous()


def _part(buffer: torch.Tensor, *shape: int) -> torch.Tensor:
    return buffer[: math.prod(shape)].view(shape)


def _fill_window(window: torch.Tensor, features: torch.Tensor, top: int):
    """Copies rows of `features` from `top` on into `window`, whose outer columns are padding; rows outside are 0."""
    height, width = features.shape[2:]
    first, last = max(top, 0), min(top + window.shape[2], height)
    window[:, :, : first - top].zero_()
    window[:, :, last - top :].zero_()
    window[:, :, first - top : last - top, 1 : width + 1] = features[:, :, first:last]


@winograd_conv2d.register_fake
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
        for_features = winograd_conv2d(gradient, weight.transpose(0, 1).flip(2, 3), None)
    if needs_weight:
        for_weight = torch.nn.grad.conv2d_weight(features, weight.shape, gradient, padding=1)
    return for_features, for_weight, gradient.sum(dim=(0, 2, 3)) if needs_bias else None


winograd_conv2d.register_autograd(_backward, setup_context=_save_for_backward)
