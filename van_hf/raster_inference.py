# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Labels of a picture that is larger than memory: sliding windows, read as they are needed, tile by tile.

The windows are those of [`slide_inference`]. A tile is a part of a row of windows: all of its pixels are known once
the windows down to this row are, so that of the windows above only those that reach into the tile are held, as logits.
Tiles follow one another from the top to the bottom of a strip of columns, then of the next strip. Windows that two
strips share are computed for each of them, which is the price for strips that fit into memory: a column of windows in
17, with 150 labels and windows of 512 pixels every 341.

What is held grows with the number of labels and the windows' size, up to `MAX_HELD_BYTES`, and not with the picture.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from .exports import ExportedSegmentationModel
from .inference import Scores, WindowScores, whole_scores, window_starts
from .model.image_processing_van import VanImageProcessor
from .model.modeling_van import VanForSemanticSegmentation

BLENDS = ("smooth", "none")
# Of the windows that are held at once, their logits and pixels.
MAX_HELD_BYTES = 3 * 2**27

# Takes rows and columns, slices with start and stop, and returns their pixels, (channels, rows, columns) as the image
# processor takes them, and which of them belong to the picture, bool (rows, columns).
ReadPixels = Callable[[slice, slice], tuple[np.ndarray, np.ndarray]]


class Tile(NamedTuple):
    """The pixels that become known with a row of windows, of one strip: its number, the strip's, and its place."""

    row: int
    strip: int
    rows: slice
    columns: slice

    @property
    def size(self) -> tuple[int, int]:
        """`(height, width)` in pixels."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


@dataclass(frozen=True)
class WindowGrid:
    """Where the windows of a picture lie, and its tiles.

    Attributes:
        size: `(height, width)` of the picture in pixels.
        crop_size: side of the windows in pixels; a picture that is smaller in one direction has smaller ones.
        stride: step between windows in pixels, from 1 to `crop_size`.
        strip_length: columns of windows that begin in a strip, at most.
        tops, lefts: where windows begin, in pixels, as in [`slide_inference`].

    Raises:
        ValueError: the windows would leave gaps.
    """

    size: tuple[int, int]
    crop_size: int
    stride: int
    strip_length: int
    tops: list[int] = field(init=False, repr=False)
    lefts: list[int] = field(init=False, repr=False)

    def __post_init__(self):
        if not 1 <= self.stride <= self.crop_size:
            raise ValueError(f"stride must be from 1 to crop_size {self.crop_size}, got {self.stride}")
        for name, length in zip(("tops", "lefts"), self.size, strict=True):
            object.__setattr__(self, name, window_starts(length, self.crop_size, self.stride))

    @classmethod
    def that_fits(
        cls, size: tuple[int, int], crop_size: int, stride: int, num_labels: int, logits_stride: int
    ) -> "WindowGrid":
        """Return the grid whose strips are as wide as `MAX_HELD_BYTES` allows, and about the same width.

        Args:
            size, crop_size, stride: see above.
            num_labels, logits_stride: of the model, whose logits (num_labels, height / logits_stride, width /
                logits_stride) are float32.
        """
        grid = cls(size, crop_size, stride, 1)
        sides = [min(crop_size, length) for length in size]
        logits = num_labels * math.prod(math.ceil(side / logits_stride) for side in sides)
        window_bytes = 4 * (logits + math.prod(sides))
        num_rows, shared = (_most_overlapping(starts, crop_size) for starts in (grid.tops, grid.lefts))
        fitting = MAX_HELD_BYTES // (num_rows * window_bytes) - (shared - 1)
        num_strips = math.ceil(len(grid.lefts) / max(fitting, shared))
        return cls(size, crop_size, stride, math.ceil(len(grid.lefts) / num_strips))

    @property
    def num_strips(self) -> int:
        return math.ceil(len(self.lefts) / self.strip_length)

    def tiles(self) -> Iterator[Tile]:
        """Yield the tiles, which together are the picture, in the order in which they are worked out."""
        tops, lefts = ([*starts, length] for starts, length in zip((self.tops, self.lefts), self.size, strict=True))
        for strip, first in enumerate(range(0, len(self.lefts), self.strip_length)):
            columns = slice(lefts[first], lefts[min(first + self.strip_length, len(self.lefts))])
            for row in range(len(self.tops)):
                yield Tile(row, strip, slice(tops[row], tops[row + 1]), columns)

    def windows_over(self, rows: slice, columns: slice) -> tuple[range, range]:
        """Return which rows and columns of windows reach into some rows and columns of pixels."""
        return tuple(
            range(bisect_right(starts, places.start - self.crop_size), bisect_right(starts, places.stop - 1))
            for starts, places in ((self.tops, rows), (self.lefts, columns))
        )


def _most_overlapping(starts: list[int], crop_size: int) -> int:
    """The windows that lie over one pixel, at most."""
    return max(number - bisect_right(starts, start - crop_size) + 1 for number, start in enumerate(starts))


def blend_weights(length: int, overlap: int) -> torch.Tensor:
    """Return what each pixel of a window counts along one side: 1, and a raised cosine that falls to 0 at both ends.

    It falls over half of what neighbours share: no window ends with a step, and yet most of the shared pixels have the
    mean of both, whose labels are better, on generated scenes, than those of the nearer window.

    Args:
        length: of the window in pixels.
        overlap: pixels that it shares with the next one.

    Returns:
        Positive, float32 (length,).
    """
    ramp_length = min(overlap, length) // 2
    weights = torch.ones(length)
    if ramp_length:
        ramp = torch.sin((torch.arange(ramp_length) + 0.5) * (math.pi / 2 / ramp_length)) ** 2
        weights[:ramp_length] = ramp
        weights[-ramp_length:] = ramp.flip(0)
    return weights


@dataclass
class RasterSegmenter:
    """Works out the labels of a picture's tiles, holding the windows that the next tile needs as well.

    Attributes:
        model: in evaluation mode; not an export that returns label maps.
        image_processor: the model's. Windows are rescaled and normalized as it says, and not resized.
        grid: where the windows lie.
        read: gives pixels.
        blend: "smooth": windows count as [`blend_weights`] says; "none": all the same, as in [`slide_inference`].
        batch_size: number of windows that go through the model at once.
        dtype: what the model computes in; see [`predict`].
        nodata: the label of pixels that do not belong to the picture, above those of the model.
    """

    model: VanForSemanticSegmentation | ExportedSegmentationModel
    image_processor: VanImageProcessor
    grid: WindowGrid
    read: ReadPixels
    nodata: int
    blend: str = "smooth"
    batch_size: int = 4
    dtype: torch.dtype = torch.float32

    def __post_init__(self):
        if self.blend not in BLENDS:
            raise ValueError(f"blend must be one of {', '.join(BLENDS)}, got {self.blend!r}")
        sides = [min(self.grid.crop_size, length) for length in self.grid.size]
        self._weights = None
        if self.blend == "smooth":
            overlap = self.grid.crop_size - self.grid.stride
            self._weights = tuple(blend_weights(side, overlap) for side in sides)

    def segment(self, tiles: Iterable[Tile]) -> Iterator[tuple[Tile, np.ndarray]]:
        """Yield tiles and their labels, integers (height, width) of the smallest dtype that holds `nodata`.

        They are those of [`slide_inference`] where `blend` is "none", up to the rounding of float32.

        Args:
            tiles: of the grid, in its order, of which any may be missing.
        """
        held: dict[int, dict[int, Scores]] = {}  # of a strip's windows, by row and column
        strip = None
        for tile in tiles:
            window_rows, window_columns = self.grid.windows_over(tile.rows, tile.columns)
            held = {row: held[row] for row in window_rows if row in held and tile.strip == strip}
            strip = tile.strip
            # In this order the row of the tile itself is never there before.
            for row in window_rows:
                if row not in held:
                    held[row], valid = self._compute_row(row, window_columns)
            yield tile, self._label(tile, held, window_columns, valid)

    @torch.inference_mode()
    def _compute_row(self, row: int, window_columns: range) -> tuple[dict[int, Scores], np.ndarray]:
        """Return the scores of a row's windows by their columns, and which of the pixels that were read are valid.

        Windows without any valid pixel are left out.
        """
        grid = self.grid
        crop = grid.crop_size
        height, width = grid.size
        left = grid.lefts[window_columns[0]]
        rows = slice(grid.tops[row], min(grid.tops[row] + crop, height))
        pixels, valid = self.read(rows, slice(left, min(grid.lefts[window_columns[-1]] + crop, width)))
        places = {
            column: slice(grid.lefts[column] - left, grid.lefts[column] - left + min(crop, width))
            for column in window_columns
        }
        places = {column: place for column, place in places.items() if valid[:, place].any()}
        scores: dict[int, Scores] = {}
        device, precision = self.model.device, self.dtype
        for start in range(0, len(places), self.batch_size):
            columns = list(places)[start : start + self.batch_size]
            windows = torch.from_numpy(np.stack([pixels[:, :, places[column]] for column in columns]))
            inputs = self.image_processor(windows, do_resize=False, return_tensors="pt")["pixel_values"].to(device)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                scores.update(zip(columns, whole_scores(self.model, inputs), strict=True))
        return scores, valid

    @torch.inference_mode()
    def _label(
        self, tile: Tile, held: dict[int, dict[int, Scores]], window_columns: range, valid: np.ndarray
    ) -> np.ndarray:
        """Return the labels of a tile; `valid` is of the pixels of its row of windows."""
        grid, height = self.grid, tile.size[0]
        left = grid.lefts[window_columns[0]]
        part = slice(tile.columns.start - left, tile.columns.stop - left)
        labels = np.full(tile.size, self.nodata, np.min_scalar_type(self.nodata))
        windows = [
            (scores, grid.tops[row] - tile.rows.start, grid.lefts[column] - left)
            for row, of_row in held.items()
            for column, scores in of_row.items()
        ]
        if windows:
            # Over whole windows, also those that reach beyond the tile: parts of them are interpolated in another
            # way, whose rounding isn't that of slide_inference.
            scores = WindowScores(windows, (height, valid.shape[1]), self._weights)
            labels[:] = scores.argmax()[:, part].cpu().numpy()
        labels[~valid[:height, part]] = self.nodata
        return labels
