# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numpy as np
import pytest

from van_hf.data import painting
from van_hf.data.painting import LABELS, OTHER, Canvas, Light


@pytest.fixture
def canvas():
    light = Light(zenith=(0.2, 0.4, 0.8), horizon=(0.8, 0.9, 1.0), sun=1, cloudiness=0.5)
    return Canvas(90, 140, light, np.random.default_rng(3))


def test_noise_has_the_asked_shape_mean_and_smoothness():
    rng = np.random.default_rng(0)
    fine, coarse = painting.noise(rng, (200, 300), (1, 1)), painting.noise(rng, (200, 300), (20, 20))
    assert fine.shape == coarse.shape == (200, 300) and fine.dtype == np.float32
    assert abs(fine.mean()) < 0.05
    assert np.abs(np.diff(coarse, axis=1)).mean() < 0.2 * np.abs(np.diff(fine, axis=1)).mean()


def test_paint_covers_pixels_and_labels_alike(canvas):
    mask = canvas.mask(polygons=[[(10, 20), (50, 20), (50, 60), (10, 60)]])
    canvas.paint(mask, (0.5, 0.25, 1.0), label=7)
    assert (canvas.labels[22:58, 12:48] == 7).all() and (canvas.labels[:, 60:] == 0).all()
    np.testing.assert_allclose(canvas.pixels[40, 30], (0.5, 0.25, 1.0), atol=1e-6)
    assert (canvas.pixels[:, 60:] == 0).all()


def test_paint_with_haze_moves_towards_the_horizon_and_without_label_keeps_labels(canvas):
    canvas.paint(np.ones(canvas.shape, np.float32), painting.BLACK, haze=0.5)
    np.testing.assert_allclose(canvas.pixels[0, 0], (0.4, 0.45, 0.5), atol=1e-6)
    assert (canvas.labels == 0).all()


def test_paint_of_nothing_changes_nothing(canvas):
    canvas.paint(np.zeros(canvas.shape, np.float32), (1, 1, 1), label=3)
    assert not canvas.pixels.any() and not canvas.labels.any()


@pytest.mark.parametrize("name", ["building", "tree", "car", "person", "fence"])
@pytest.mark.parametrize("seed", range(3))
def test_things_label_themselves_and_nothing_else(canvas, name, seed):
    canvas.rng = np.random.default_rng(seed)
    canvas.labels[:] = LABELS["grass"]
    getattr(painting, f"paint_{name}")(canvas, 70, 80, 22)
    assert set(np.unique(canvas.labels)) == {LABELS["grass"], LABELS[name]}
    assert (canvas.labels == LABELS[name]).sum() > 40


@pytest.mark.parametrize("seed", range(4))
def test_unknown_things_are_other(canvas, seed):
    canvas.rng = np.random.default_rng(seed)
    canvas.labels[:] = LABELS["sand"]
    painting.paint_unknown(canvas, 70, 80, 22)
    assert set(np.unique(canvas.labels)) == {LABELS["sand"], OTHER}


def test_things_may_reach_over_the_edge(canvas):
    for x, y in ((-5, 85), (140, 89), (70, 5)):
        painting.paint_tree(canvas, x, y, 30)
        painting.paint_building(canvas, x, y, 12)
    assert np.isfinite(canvas.pixels).all()
