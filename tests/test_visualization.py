# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numpy as np
import pytest
from PIL import Image

from van_hf.visualization import (
    IGNORED_COLOR,
    MAX_NAME_LENGTH,
    add_legend,
    class_shares,
    colorize,
    default_palette,
    drawable,
    legend_text,
    mask_image,
    overlay,
    overlay_with_legend,
    plot_confusion_matrix,
    plot_label_frequencies,
    plot_predictions,
    plot_training_curves,
    smooth,
    tile_sheet,
)

# Formulas of matplotlib's, whole and broken, what it leaves out of legends, what Pillow cannot measure, and the like.
ODD_NAMES = [
    "$5 & $6",
    "$\\frac{$",
    "a$b",
    "_hidden",
    "",
    "two\nlines",
    "\0",
    "\x1b[31m\t\r",
    "x" * 5000,
    "日本語 🦀",
    "100 %s {}",
    "caf\udce9",
    "\\textbf{",
]


def test_names_become_one_line_that_can_be_drawn():
    assert [drawable(name) for name in ("two\nlines ", "$5", "_a", "caf\udce9", "日本 é", "\0", None)] == [
        "two lines",
        "$5",
        "_a",
        "caf\\udce9",
        "日本 é",
        "",
        "None",
    ]
    assert drawable("x" * 5000) == "x" * (MAX_NAME_LENGTH - 1) + "…"


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


def test_masks_hold_class_numbers(tmp_path):
    labels = np.array([[0, 1], [255, 2]])
    mask_image(labels, [[idx, 0, 255 - idx] for idx in range(256)]).save(tmp_path / "mask.png")
    mask = Image.open(tmp_path / "mask.png")
    assert mask.mode == "P" and np.asarray(mask).tolist() == labels.tolist()
    assert mask.convert("RGB").getpixel((0, 1)) == (255, 0, 0)


def test_masks_of_more_than_256_classes_have_16_bits(tmp_path):
    labels = np.array([[0, 255], [256, 299]])
    mask_image(labels, [[0, 0, 0]] * 300).save(tmp_path / "mask.png")
    mask = Image.open(tmp_path / "mask.png")
    assert mask.mode == "I;16" and np.asarray(mask).tolist() == labels.tolist()


def test_shares_begin_with_the_largest_class():
    shares = class_shares(np.array([[3, 3, 0], [3, 1, 1]], dtype=np.uint8))
    assert shares == {3: 1 / 2, 1: 1 / 3, 0: 1 / 6} and list(shares) == [3, 1, 0]
    assert legend_text("sky", 1 / 3) == "sky 33.3%" and legend_text("sky", 0.0004) == "sky <0.1%"
    assert legend_text("two\nlines", 1.0) == "two lines 100.0%" and legend_text("", 0.5) == "50.0%"


def test_legend_shows_every_class_and_wraps():
    colors = [[200, 10 * idx, 0] for idx in range(8)]
    entries = [(f"class {idx}", color) for idx, color in enumerate(colors)]
    picture = Image.new("RGB", (300, 200), "navy")
    drawn = add_legend(picture, entries)
    assert drawn.width == 300 and drawn.crop((0, 0, 300, 200)).getcolors() == [(60_000, (0, 0, 128))]
    below = np.asarray(drawn)[200:]
    rows = {int(np.argwhere((below == color).all(axis=-1))[0, 0]) for color in colors}
    assert len(rows) > 1
    one_row = add_legend(picture, entries[:1])
    assert one_row.height < drawn.height
    assert add_legend(Image.new("RGB", (4, 4)), entries).width > 50


def test_legends_of_odd_names():
    labels = np.arange(len(ODD_NAMES))[None].repeat(20, axis=0)
    picture = Image.new("RGB", (len(ODD_NAMES), 20), "navy")
    palette = default_palette(len(ODD_NAMES))
    drawn = overlay_with_legend(picture, labels, dict(enumerate(ODD_NAMES)), palette, alpha=1)
    assert drawn.width < 1000
    below = np.asarray(drawn)[20:]
    assert all((below == color).all(axis=-1).any() for color in palette)


@pytest.mark.parametrize("size", [(8_000_000, 1), (1, 8_000_000)])
def test_legends_that_would_take_gigabytes_are_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels has no room for a legend"):
        add_legend(Image.new("RGB", size), [("sky", [1, 2, 3])])
    assert add_legend(Image.new("RGB", (65_535, 1)), [("sky", [1, 2, 3])]).width == 65_535


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


@pytest.mark.filterwarnings("ignore:Glyph")
def test_odd_names_are_drawn_as_they_are(tmp_path):
    """Really drawn: matplotlib takes formulas apart only then."""
    labels = np.arange(len(ODD_NAMES))[None].repeat(8, axis=0)
    image = Image.new("RGB", (len(ODD_NAMES), 8))
    names = dict(enumerate(ODD_NAMES))
    rows = [image] * 2, [labels] * 2, [labels] * 2
    plot_predictions(*rows, names, tmp_path / "grid.png", captions=["$\\frac{$\n", "caf\udce9.png"])
    plot_confusion_matrix(np.eye(len(names), dtype=int), names, tmp_path / "matrix.png")
    for name in ("grid.png", "matrix.png"):
        with Image.open(tmp_path / name) as drawn:
            assert min(drawn.size) > 500 and max(drawn.size) < 3000


def test_no_odd_name_is_left_out(monkeypatch, tmp_path):
    labels = np.arange(len(ODD_NAMES))[None]
    image, names = Image.new("RGB", (len(ODD_NAMES), 1)), dict(enumerate(ODD_NAMES))
    expected = [drawable(name) for name in ODD_NAMES]
    assert legend_texts(monkeypatch, [image], [labels], [labels], names, tmp_path / "grid.png") == expected
    rows, columns, _ = drawn_confusion(monkeypatch, tmp_path, np.eye(len(names), dtype=int), names)
    assert rows == columns == expected


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


def drawn_confusion(
    monkeypatch, tmp_path, matrix: np.ndarray, names: dict[int, str] | None = None, **kwargs
) -> tuple[list[str], list[str], np.ndarray]:
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    names = names or {label: f"class {label}" for label in range(len(matrix))}
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


def test_a_sheet_of_tiles():
    tiles = [(Image.new("RGB", (80, 40), color), f"{color}/" + "x" * 90) for color in ("red", "green", "blue")]
    sheet = tile_sheet(tiles, [("red", (255, 0, 0))], columns=2, side=100)
    plain = tile_sheet(tiles, columns=2, side=100)
    assert plain.width == 2 * 100 + 3 * 5 and sheet.height > plain.height
    # Rows are as high as their pictures, 50 pixels here.
    assert plain.height < 2 * 100
    assert [plain.getpixel(place) for place in ((55, 30), (160, 30))] == [(255, 0, 0), (0, 128, 0)]
    with pytest.raises(ValueError, match="one picture or more"):
        tile_sheet([])


def test_label_frequencies(tmp_path):
    shares = {"train": np.array([0.9, 0.1, 0.0]), "validation": np.array([0.5, 0.0, 0.5])}
    plot_label_frequencies(shares, {0: "_a", 1: "$b$", 2: "c"}, tmp_path / "labels.png")
    empty = {"train": np.zeros(2), "validation": np.zeros(2)}
    plot_label_frequencies(empty, {0: "a", 1: "b"}, tmp_path / "empty.png")
    assert (tmp_path / "labels.png").stat().st_size > 5000 and (tmp_path / "empty.png").exists()
