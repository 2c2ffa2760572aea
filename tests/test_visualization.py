# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numpy as np
import pytest
from PIL import Image

from van_hf.visualization import (
    IGNORED_COLOR,
    colorize,
    default_palette,
    overlay,
    plot_confusion_matrix,
    plot_predictions,
    plot_training_curves,
    smooth,
)


def test_default_palette_tells_labels_apart():
    palette = np.array(default_palette(150))
    assert palette.shape == (150, 3)
    assert palette.min() >= 0
    assert palette.max() <= 255
    assert len(np.unique(palette, axis=0)) == 150
    assert np.abs(np.diff(palette, axis=0)).sum(axis=1).min() > 100
    assert default_palette(3) == default_palette(150)[:3]


def test_colorize_paints_labels_and_leaves_the_rest_white():
    colors = colorize(np.array([[0, 1], [255, 2]]), [[1, 2, 3], [4, 5, 6]])
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[[1, 2, 3], [4, 5, 6]], [list(IGNORED_COLOR), list(IGNORED_COLOR)]]


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, (100, 100, 100)), (0.5, (150, 50, 50)), (1.0, (200, 0, 0))])
def test_overlay_blends(alpha, expected):
    image = Image.new("L", (3, 2), 100)
    blended = overlay(image, np.zeros((2, 3), dtype=np.uint8), [[200, 0, 0]], alpha=alpha)
    assert blended.size == image.size
    assert blended.getcolors() == [(6, expected)]


def test_overlay_has_a_palette_of_its_own():
    blended = overlay(Image.new("RGB", (2, 1)), np.array([[0, 1]]), alpha=1)
    assert [blended.getpixel((x, 0)) for x in range(2)] == [tuple(color) for color in default_palette(2)]


def test_overlay_refuses_other_sizes_and_strengths():
    image = Image.new("RGB", (3, 2))
    with pytest.raises(ValueError, match=r"\(2, 3\), got \(3, 2\)"):
        overlay(image, np.zeros((3, 2), dtype=int))
    with pytest.raises(ValueError, match="alpha .* 1.5"):
        overlay(image, np.zeros((2, 3), dtype=int), alpha=1.5)


def legend_texts(monkeypatch, *args, **kwargs) -> list[str]:
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    plot_predictions(*args, **kwargs)
    return [text.get_text() for text in figures[0].legends[0].get_texts()]


def test_predictions_are_drawn_with_the_palette(tmp_path):
    images = [Image.new("RGB", size, "white") for size in ((60, 40), (40, 60))]
    references = [np.zeros((image.height, image.width), dtype=np.uint8) for image in images]
    predictions = [np.ones((image.height, image.width), dtype=np.int64) for image in images]
    path = tmp_path / "grid.png"
    plot_predictions(images, references, predictions, {0: "a", 1: "b"}, path, palette=[[255, 0, 0], [0, 0, 255]])
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    # Overlays of a white picture and a primary colour.
    for color in ((255, 51, 51), (51, 51, 255)):
        assert (pixels == color).all(axis=1).mean() > 0.1


def test_legend_names_what_occurs(monkeypatch, tmp_path):
    image = Image.new("RGB", (4, 4))
    reference, prediction = np.full((4, 4), 2), np.full((4, 4), 0)
    names = {0: "sky", 1: "tree", 2: "road"}
    path = tmp_path / "grid.png"
    assert legend_texts(monkeypatch, [image], [reference], [prediction], names, path) == ["sky", "road"]
    reference[0, 0] = 255
    texts = legend_texts(monkeypatch, [image], [reference], [prediction], names, path)
    assert texts == ["sky", "road", "(not labelled)"]


def test_predictions_must_be_as_many(tmp_path):
    image, labels = Image.new("RGB", (4, 4)), np.zeros((4, 4), dtype=int)
    with pytest.raises(ValueError, match="1, 1 and 2"):
        plot_predictions([image], [labels], [labels, labels], {0: "a"}, tmp_path / "grid.png")
    with pytest.raises(ValueError, match="0, 0 and 0"):
        plot_predictions([], [], [], {0: "a"}, tmp_path / "grid.png")


def test_captions_stand_below_the_pictures(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    image, labels = Image.new("RGB", (4, 4)), np.zeros((4, 4), dtype=int)
    path = tmp_path / "grid.png"
    plot_predictions([image] * 2, [labels] * 2, [labels] * 2, {0: "sky"}, path, captions=["a", "b"])
    assert [text.get_text() for axis in figures[0].axes for text in axis.texts] == ["a", "b"]


def drawn_confusion(monkeypatch, tmp_path, matrix: np.ndarray, **kwargs) -> tuple[list[str], list[str], np.ndarray]:
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    names = {label: f"class {label}" for label in range(len(matrix))}
    plot_confusion_matrix(matrix, names, tmp_path / "matrix.png", **kwargs)
    axis = figures[0].axes[0]
    rows, columns = ([tick.get_text() for tick in ticks] for ticks in (axis.get_yticklabels(), axis.get_xticklabels()))
    return rows, columns, np.asarray(axis.images[0].get_array())


def test_confusion_is_drawn_as_shares_of_the_truth(monkeypatch, tmp_path):
    rows, columns, shares = drawn_confusion(monkeypatch, tmp_path, np.array([[3, 1], [0, 20]]))
    assert rows == columns == ["class 0", "class 1"]
    assert shares == pytest.approx(np.array([[0.75, 0.25], [0, 1]]))


def test_confusion_of_many_classes_shows_the_most_frequent(monkeypatch, tmp_path):
    matrix = np.diag([5, 50, 0, 500]) + np.eye(4, k=-1, dtype=int) * 10
    rows, columns, shares = drawn_confusion(monkeypatch, tmp_path, matrix, max_labels=2)
    assert rows == ["class 1", "class 3"]
    assert columns == ["class 1", "class 3", "(any other)"]
    assert shares == pytest.approx(np.array([[50, 0, 10], [0, 500, 10]]) / [[60], [510]])


@pytest.mark.parametrize("evaluations", [[], [{"step": 2, "mean_iou": 0.25}, {"step": 4, "mean_iou": 0.5}]])
def test_curves_are_drawn(tmp_path, evaluations):
    path = tmp_path / "curves.png"
    plot_training_curves([1, 2, 3, 4], [2.0, 1.5, 1.2, 1.0], [0.1, 0.2, 0.1, 0.0], evaluations, path)
    with Image.open(path) as picture:
        assert min(picture.size) > 500


def test_smoothing_keeps_constants_and_length():
    assert smooth([2.0] * 7, window=5) == pytest.approx([2.0] * 7)
    assert smooth([0.0, 3.0, 0.0], window=3) == pytest.approx([1.5, 1.0, 1.5])
    assert smooth([4.0], window=25) == pytest.approx([4.0])
