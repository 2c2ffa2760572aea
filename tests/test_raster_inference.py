# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import math

import numpy as np
import pytest
import torch
from benchmarks.models import random_model
from conftest import tiny_config

from van_hf import VanImageProcessor, raster_inference
from van_hf.inference import slide_inference
from van_hf.raster_inference import RasterSegmenter, WindowGrid, blend_weights

NODATA = 255


@pytest.fixture(scope="module")
def model():
    return random_model(tiny_config("semantic_fpn"))


@pytest.fixture(scope="module")
def image_processor():
    return VanImageProcessor(size={"shortest_edge": 64})  # to which nothing here is resized


def paint(height: int, width: int) -> np.ndarray:
    noise = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1)[0]
    return (smooth * 255).byte().numpy()


class Picture:
    """A picture in memory that counts what is read of it."""

    def __init__(self, pixels: np.ndarray, valid: np.ndarray | None = None):
        self.pixels = pixels
        self.valid = np.ones(pixels.shape[1:], bool) if valid is None else valid
        self.largest = 0

    def read(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        assert 0 <= rows.start < rows.stop <= self.valid.shape[0]
        assert 0 <= columns.start < columns.stop <= self.valid.shape[1]
        self.largest = max(self.largest, (rows.stop - rows.start) * (columns.stop - columns.start))
        return self.pixels[:, rows, columns], self.valid[rows, columns]


def segment(model, image_processor, picture: Picture, grid: WindowGrid, skip=(), **options) -> np.ndarray:
    """Puts the tiles together, but for those whose numbers are to be skipped, which are 99."""
    labels = np.full(grid.size, 99, np.uint8)
    segmenter = RasterSegmenter(model, image_processor, grid, picture.read, NODATA, **options)
    tiles = [tile for number, tile in enumerate(grid.tiles()) if number not in skip]
    for tile, tile_labels in segmenter.segment(tiles):
        assert (labels[tile.rows, tile.columns] == 99).all() and tile_labels.dtype == np.uint8
        labels[tile.rows, tile.columns] = tile_labels
    return labels


@pytest.mark.parametrize("strip_length", [1, 3, 100])
@pytest.mark.parametrize(
    ("size", "crop_size", "stride"),
    [((150, 203), 48, 32), ((97, 64), 64, 64), ((40, 130), 64, 42), ((130, 40), 64, 10), ((20, 30), 64, 42)],
)
def test_labels_without_blending_are_those_of_slide_inference(
    model, image_processor, size, crop_size, stride, strip_length
):
    picture = Picture(paint(*size))
    pixel_values = image_processor(torch.from_numpy(picture.pixels), do_resize=False, return_tensors="pt")
    expected = slide_inference(model, pixel_values["pixel_values"], crop_size, stride, argmax=True)[0].numpy()
    assert len(np.unique(expected)) > 2
    grid = WindowGrid(size, crop_size, stride, strip_length)
    found = segment(model, image_processor, picture, grid, blend="none", batch_size=3)
    assert (found == expected).all()
    assert picture.largest <= crop_size * (strip_length * stride + 2 * crop_size)


@pytest.mark.parametrize("blend", ["smooth", "none"])
def test_a_run_that_goes_on_finds_the_same_labels(model, image_processor, blend):
    picture, grid = Picture(paint(150, 203)), WindowGrid((150, 203), 48, 32, 3)
    expected = segment(model, image_processor, picture, grid, blend=blend)
    skip = {0, 1, 2, 4, 7, 8}
    found = segment(model, image_processor, picture, grid, skip, blend=blend)
    skipped = [tile for number, tile in enumerate(grid.tiles()) if number in skip]
    for tile in skipped:
        assert (found[tile.rows, tile.columns] == 99).all()
        found[tile.rows, tile.columns] = expected[tile.rows, tile.columns]
    assert (found == expected).all()


def test_windows_without_data_are_skipped(model, image_processor):
    pixels = paint(150, 203)
    valid = np.zeros((150, 203), bool)
    valid[:40, 100:] = valid[149, 0] = True
    grid = WindowGrid((150, 203), 48, 32, 3)
    expected = segment(model, image_processor, Picture(pixels), grid)
    windows = []
    handle = model.register_forward_pre_hook(
        lambda _, __, inputs: windows.extend(inputs["pixel_values"]), with_kwargs=True
    )
    with handle:
        found = segment(model, image_processor, Picture(pixels, valid), grid)
    assert (found == np.where(valid, expected, NODATA)).all()
    # Of 5 x 6 windows the first two rows' four last ones and the last row's first one, two of them in both strips.
    assert len(windows) == 2 * (4 + 1) + 1


def test_weights_fall_to_the_ends():
    weights = blend_weights(48, 16)
    assert (weights[8:-8] == 1).all() and torch.equal(weights, weights.flip(0))
    assert 0 < weights[0] < 0.01 and (weights[:8].diff() > 0).all()
    assert (blend_weights(48, 0) == 1).all()
    assert blend_weights(5, 9).tolist() == pytest.approx([0.146447, 0.853553, 1, 0.853553, 0.146447], abs=1e-6)


def test_blended_scores_have_no_steps(model, image_processor):
    """Scores of neighbouring pixels differ less where a window ends than they do without blending."""
    picture, grid = Picture(paint(48, 203)), WindowGrid((48, 203), 48, 32, 100)
    steps = {}
    for blend in raster_inference.BLENDS:
        segmenter = RasterSegmenter(model, image_processor, grid, picture.read, NODATA, blend)
        held, _ = segmenter._compute_row(0, range(len(grid.lefts)))
        windows = [(held[column], 0, left) for column, left in enumerate(grid.lefts)]
        scores = raster_inference.WindowScores(windows, grid.size, segmenter._weights).full()
        edges = [*grid.lefts[1:], *(left + 48 for left in grid.lefts[:-1])]
        steps[blend] = (scores[:, :, edges] - scores[:, :, [edge - 1 for edge in edges]]).abs().mean()
    assert steps["smooth"] < 0.7 * steps["none"]


def test_strips_are_as_wide_as_memory_allows():
    grid = WindowGrid.that_fits((100_000, 100_000), 512, 341, num_labels=150, logits_stride=4)
    assert grid.num_strips == 18 and grid.strip_length == 17
    tiles = list(grid.tiles())
    assert sum(math.prod(tile.size) for tile in tiles) == 100_000**2
    for tile in tiles[:: len(grid.tops)]:
        rows, columns = grid.windows_over(tile.rows, tile.columns)
        assert len(columns) <= grid.strip_length + 2
    assert WindowGrid.that_fits((9, 100_000), 512, 341, num_labels=150, logits_stride=4).num_strips == 1
    # Windows of which one fills the memory by itself: at most half of them are computed twice.
    assert WindowGrid.that_fits((20_000, 20_000), 4096, 4096, num_labels=150, logits_stride=4).strip_length == 2


def test_what_makes_no_sense_is_refused(model, image_processor):
    with pytest.raises(ValueError, match="stride must be from 1 to crop_size 32, got 48"):
        WindowGrid((64, 64), 32, 48, 1)
    with pytest.raises(ValueError, match="blend must be one of smooth, none, got 'sharp'"):
        RasterSegmenter(model, image_processor, WindowGrid((64, 64), 32, 32, 1), None, NODATA, "sharp")
