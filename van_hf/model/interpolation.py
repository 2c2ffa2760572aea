# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Bilinear interpolation between half-pixel centres (corners not aligned), as torch, OpenCV and the papers have it."""

import torch
from torch.nn import functional as F

from .custom_operators import is_exporting


def resize_to(features: torch.Tensor, size: torch.Size, mode: str = "bilinear") -> torch.Tensor:
    """Return `features` (batch, channels, height, width) interpolated to `size` (height, width)."""
    # A comparison of sizes would tie an exported program to the answer.
    if not is_exporting() and features.shape[-2:] == size:
        return features
    return F.interpolate(features, size=size, mode=mode, align_corners=False if mode == "bilinear" else None)


def half_pixel_positions(
    length: float, new_length: int, start: int = 0, stop: int | None = None, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Return where the centres of new pixels lie on the old pixels' axis, on which pixel `i` has its centre at `i`.

    Args:
        length: number of old pixels along the side.
        new_length: number of new pixels along the side.
        start, stop: range of the new pixels, by default all.
        dtype: what is computed in; torch's own interpolation computes in the dtype of what it interpolates.

    Returns:
        (stop - start,), on the CPU. The outermost may lie beyond the centres of the first and the last old pixel.
    """
    ratio = torch.tensor(length, dtype=dtype) / new_length
    return (torch.arange(start, new_length if stop is None else stop, dtype=dtype) + 0.5) * ratio - 0.5


def bilinear_taps(positions: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the two old pixels that each of `positions` lies between, and the second one's weight.

    Args:
        positions: as [`half_pixel_positions`] returns them. Beyond the outermost pixels' centres, these count alone.
        length: number of old pixels along the side.

    Returns:
        Indices int64 of the pixels before and after, and weights in [0, 1) of the dtype of `positions`.
    """
    positions = positions.clamp(min=0)
    before = positions.floor().long().clamp(max=length - 1)
    return before, (before + 1).clamp(max=length - 1), positions - before


def keep_ratio_size(height: int, width: int, short_side: int, long_side: int | None = None) -> tuple[int, int]:
    """Return the size `(height, width)` of a picture scaled, its ratio kept, as far as the bounds of its sides allow.

    The rule, rounding included, is mmcv's `rescale_size`.

    Args:
        height, width: size of the picture in pixels.
        short_side: bound of its shorter side in pixels.
        long_side: bound of its longer side in pixels, None for none.
    """
    scale = short_side / min(height, width)
    if long_side is not None:
        scale = min(scale, long_side / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
