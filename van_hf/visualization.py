# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Pictures of what a model sees and of how it learnt.

Names of labels and files are drawn as they are, whatever they hold: see [`drawable`].

Imports matplotlib, so it is not part of `import van_hf`. No function touches pyplot's global state.
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.v2.functional import to_pil_image

from .model.configuration_van import VanConfig
from .model.image_processing_van import VanImageProcessor

# Paler than any class in ADE20K's palette, which has its greys for roads and walls.
IGNORED_COLOR = (255, 255, 255)
MAX_NAME_LENGTH = 60  # characters of a name that are drawn
# Pixels that a picture with its legend may have, or four times the picture's where that is more.
MAX_CANVAS_PIXELS = 2**27
_GOLDEN_RATIO = (5**0.5 - 1) / 2
_LINE_COLOR = "#2563a8"
_MUTED_COLOR = "#b5c9e2"


def default_palette(num_labels: int) -> list[list[int]]:
    """Return one `[red, green, blue]` in 0..255 per label, neighbouring labels far apart in hue."""
    colors = []
    for label in range(num_labels):
        saturation, value = ((0.75, 0.95), (0.55, 0.70), (0.90, 0.60))[label % 3]
        red_green_blue = colorsys.hsv_to_rgb(label * _GOLDEN_RATIO % 1, saturation, value)
        colors.append([round(255 * channel) for channel in red_green_blue])
    return colors


def palette_of(config: VanConfig) -> list[list[int]]:
    """Return the colours of a model's labels: the model's own, or `default_palette`'s where it has none."""
    return config.palette or default_palette(config.num_labels)


def drawable(name: object) -> str:
    """Return a name as one line of text that can be drawn.

    Line breaks and other characters that cannot be printed become spaces, bytes of a file's name that are no UTF-8
    become escapes, and of a long name the first `MAX_NAME_LENGTH` characters are kept.
    """
    text = str(name).encode("utf-8", "backslashreplace").decode("utf-8")
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= MAX_NAME_LENGTH else text[: MAX_NAME_LENGTH - 1] + "…"


def as_picture(pixels: torch.Tensor, image_processor: VanImageProcessor) -> Image.Image:
    """Return a picture to look at of what an image processor takes.

    Args:
        pixels: uint8 (3, height, width), RGB; for an image processor with bands float32 (bands, height, width).
        image_processor: says which bands to draw; each goes from two standard deviations below its mean, black, to
            two above it. What has no data is black.

    Returns:
        An RGB picture.
    """
    if image_processor.bands is None:
        return to_pil_image(pixels)
    places = [list(image_processor.bands).index(band) for band in image_processor.drawn_bands]
    mean, std = (
        torch.tensor([values[place] for place in places])
        for values in (image_processor.image_mean, image_processor.image_std)
    )
    if image_processor.do_rescale:
        mean, std = mean / image_processor.rescale_factor, std / image_processor.rescale_factor
    return draw_bands(pixels[places], mean, std)


def draw_bands(pixels: torch.Tensor, mean: torch.Tensor | None = None, std: torch.Tensor | None = None) -> Image.Image:
    """Return one band in grey, or three as red, green and blue, as an RGB picture; see [`as_picture`].

    Args:
        pixels: float32 (1 or 3, height, width), NaN where there are no data.
        mean, std: of each band, float32 (1 or 3,); by default those of the picture.
    """
    if mean is None or std is None:
        mean = pixels.nanmean(dim=(1, 2))
        std = (pixels - mean[:, None, None]).square().nanmean(dim=(1, 2)).sqrt().clamp(min=1e-12)
    shades = ((pixels - mean[:, None, None]) / std[:, None, None] / 4 + 0.5).clamp(0, 1).nan_to_num() * 255
    return to_pil_image(shades.round().to(torch.uint8).expand(3, -1, -1))


def colorize(segmentation: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Paint a map of labels.

    Args:
        segmentation: integers `(height, width)`: indices into `palette`, anything else (such as 255) is ignored.
        palette: one `[red, green, blue]` in 0..255 per label.

    Returns:
        uint8 `(height, width, 3)`; ignored pixels are white.
    """
    segmentation = np.asarray(segmentation)
    colors = np.array([*palette, IGNORED_COLOR], dtype=np.uint8)
    known = (segmentation >= 0) & (segmentation < len(palette))
    return colors[np.where(known, segmentation, len(palette))]


def mask_image(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> Image.Image:
    """Return a picture whose pixels are class numbers, to be saved as a PNG.

    Args:
        labels: integers `(height, width)`, indices into `palette`.
        palette: one `[red, green, blue]` in 0..255 per label.

    Returns:
        Mode P with the colours as its palette; mode I;16, without colours, for more than 256 classes.
    """
    if len(palette) > 256:
        return Image.fromarray(labels.astype(np.uint16))
    mask = Image.fromarray(labels.astype(np.uint8))
    mask.putpalette([channel for color in palette for channel in color])
    return mask


def class_shares(labels: np.ndarray) -> dict[int, float]:
    """Return the share of the pixels, from 0 to 1, of each class number that occurs, the largest first.

    Args:
        labels: non-negative integers of any shape.
    """
    counts = np.bincount(labels.ravel())
    order = np.argsort(-counts, kind="stable")
    return {int(label): int(counts[label]) / labels.size for label in order if counts[label]}


def legend_text(name: object, share: float) -> str:
    """Return a class's text in a legend: its name and its share of the pixels, which is given as 0 to 1."""
    return f"{drawable(name)} {f'{share:.1%}' if share >= 0.0005 else '<0.1%'}".lstrip()


def overlay(
    image: Image.Image,
    segmentation: np.ndarray,
    palette: Sequence[Sequence[int]] | None = None,
    alpha: float = 0.6,
) -> Image.Image:
    """Lay a map of labels over a picture.

    Args:
        image: picture of any PIL mode.
        segmentation: integers `(height, width)` at the picture's size; what is not in the palette is ignored.
        palette: one `[red, green, blue]` in 0..255 per label, by default `default_palette`'s.
        alpha: share of the labels' colour, from 0 (the picture alone) to 1.

    Returns:
        An RGB picture of the same size.

    Raises:
        ValueError: the sizes differ or `alpha` is out of range.
    """
    segmentation = np.asarray(segmentation)
    if segmentation.shape != (image.height, image.width):
        raise ValueError(
            f"segmentation must have the picture's size (height, width) = {(image.height, image.width)}, "
            f"got {segmentation.shape}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if palette is None:
        palette = default_palette(int(segmentation.max()) + 1)
    return Image.blend(image.convert("RGB"), Image.fromarray(colorize(segmentation, palette)), alpha)


def overlay_with_legend(
    image: Image.Image,
    labels: np.ndarray,
    id2label: dict[int, str],
    palette: Sequence[Sequence[int]],
    alpha: float = 0.6,
) -> Image.Image:
    """Lay a map of labels over a picture, and put its classes and their shares of the pixels below, the largest first.

    Args:
        image, palette, alpha: see [`overlay`].
        labels: integers `(height, width)`, keys of `id2label` and indices into `palette`.
        id2label: name of each label.

    Raises:
        ValueError: see [`overlay`] and [`add_legend`].
    """
    entries = [(legend_text(id2label[label], share), palette[label]) for label, share in class_shares(labels).items()]
    return add_legend(overlay(image, labels, palette, alpha), entries)


def add_legend(picture: Image.Image, entries: Sequence[tuple[str, Sequence[int]]]) -> Image.Image:
    """Put names beside samples of their colours, as many to a row as fit, on white below a picture.

    Args:
        picture: RGB picture.
        entries: one line of text, such as [`legend_text`] returns, and `[red, green, blue]` in 0..255 of each.

    Returns:
        An RGB picture that begins with the given one, at the top left. It is wider where the longest text needs it.

    Raises:
        ValueError: there is no room for a legend below the picture, which is a few pixels high and millions wide or
            the other way round: see `MAX_CANVAS_PIXELS`.
    """
    font_size = max(12, round((picture.width * picture.height) ** 0.5 / 45))
    font = ImageFont.truetype(findfont("DejaVu Sans"), font_size)
    gap, row_height = font_size // 2, round(1.6 * font_size)
    widths = [font_size + gap + round(font.getlength(text)) + 2 * gap for text, _ in entries]
    width = max(picture.width, gap + max(widths))
    places, left, top = [], gap, picture.height + gap
    for entry_width in widths:
        if left + entry_width > width:
            left, top = gap, top + row_height
        places.append((left, top))
        left += entry_width
    height = top + row_height + gap
    if width * height > max(MAX_CANVAS_PIXELS, 4 * picture.width * picture.height):
        raise ValueError(
            f"a picture of {picture.width} x {picture.height} pixels has no room for a legend: with it, it would have"
            f" {width} x {height} pixels"
        )
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for (left, top), (text, color) in zip(places, entries, strict=True):
        middle = top + row_height // 2
        sample = (left, middle - font_size // 2, left + font_size, middle + font_size // 2)
        draw.rectangle(sample, fill=tuple(color), outline="gray")
        draw.text((left + font_size + gap, middle), text, fill="black", font=font, anchor="lm")
    return canvas


def plot_predictions(
    images: Sequence[Image.Image],
    references: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    id2label: dict[int, str],
    path: str | Path,
    palette: Sequence[Sequence[int]] | None = None,
    captions: Sequence[str] | None = None,
) -> None:
    """Save a grid of pictures beside truth and prediction, with a legend of the classes that occur in it.

    Args:
        images: one picture per row.
        references: true labels, integers `(height, width)` at each picture's size, 255 ignored.
        predictions: predicted labels of the same shapes.
        id2label: name of each label.
        path: where to save the image, in a format that matplotlib knows by its suffix.
        palette: one `[red, green, blue]` in 0..255 per label, by default `default_palette`'s.
        captions: a line below each picture.

    Raises:
        ValueError: there is no picture, or the three lists differ in length.
    """
    if not len(images) == len(references) == len(predictions) > 0:
        raise ValueError(
            "images, references and predictions must be as many, and one or more; "
            f"got {len(images)}, {len(references)} and {len(predictions)}"
        )
    palette = palette or default_palette(max(id2label) + 1)
    column_width = 3.2  # inches
    row_heights = [column_width * min(image.height / image.width, 1.0) for image in images]
    width = 3 * column_width + 0.4
    present = np.unique(np.concatenate([np.unique(labels) for labels in (*references, *predictions)]))
    entries = _legend_entries([int(label) for label in present], id2label, palette)
    longest = max(len(name) for name, _ in entries)
    legend_columns = max(1, min(6, len(entries), int(width / (0.6 + 0.09 * longest))))
    legend_rows = -(-len(entries) // legend_columns)
    between_rows = 0.4 if captions else 0.1
    height = sum(row_heights) + between_rows * len(images) + 0.6 + 0.28 * legend_rows

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(len(images), 3, squeeze=False, gridspec_kw={"height_ratios": row_heights})
    for row, image, reference, prediction in zip(axes, images, references, predictions, strict=True):
        row[0].imshow(image.convert("RGB"))
        row[1].imshow(overlay(image, reference, palette, alpha=0.8))
        row[2].imshow(overlay(image, prediction, palette, alpha=0.8))
    for axis, title in zip(axes[0], ("Picture", "Truth", "Prediction"), strict=True):
        axis.set_title(title, fontsize=13)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, caption in zip(axes, captions or (), strict=False):
        position = {"transform": row[0].transAxes, "va": "top"}
        row[0].text(0, -0.02, drawable(caption), fontsize=10, parse_math=False, **position)
    legend = figure.legend(
        handles=[Patch(facecolor=np.array(color) / 255, edgecolor="0.6") for _, color in entries],
        labels=[""] * len(entries),
        loc="outside lower center",
        ncols=legend_columns,
        frameon=False,
        fontsize=10,
    )
    # Given as labels, names that begin with "_" would be left out, and dollar signs taken for formulas.
    for text, (name, _) in zip(legend.get_texts(), entries, strict=True):
        text.set(text=name, parse_math=False)
    figure.savefig(path, dpi=110, facecolor="white")


def plot_confusion_matrix(
    matrix: np.ndarray, id2label: dict[int, str], path: str | Path, max_labels: int = 40
) -> None:
    """Save a picture of where the pixels of each class went, as shares of the class.

    Args:
        matrix: counts `(num_labels, num_labels)`, rows are the truth and columns the prediction.
        id2label: name of each label.
        path: where to save the image, in a format that matplotlib knows by its suffix.
        max_labels: of more classes only those with the most pixels are drawn; a last column holds what was taken for
            any of the others.
    """
    matrix = np.asarray(matrix)
    pixels = matrix.sum(axis=1)
    labels = np.flatnonzero(pixels)
    labels = np.sort(labels[np.argsort(-pixels[labels], kind="stable")[:max_labels]])
    names = [drawable(id2label[int(label)]) for label in labels]
    shares = matrix[labels] / pixels[labels, None]
    columns, column_names = shares[:, labels], names
    if len(labels) < len(matrix):
        others = np.clip(1 - columns.sum(axis=1, keepdims=True), 0, 1)
        columns, column_names = np.concatenate([columns, others], axis=1), [*names, "(any other)"]

    cell = 0.3 if len(names) > 15 else 0.55  # inches
    long_names = 0.075 * max(0, *(len(name) - 20 for name in column_names))  # inches
    figure_size = (cell * len(column_names) + 3.5 + long_names, cell * len(names) + 2.6 + long_names)
    figure = Figure(figsize=figure_size, layout="constrained")
    axis = figure.subplots()
    # The square root of the shares: a tenth that goes astray must show beside nine tenths that do not.
    image = axis.imshow(columns, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    for row, column in zip(*np.nonzero(columns >= 0.005), strict=True):
        share = columns[row, column]
        color = "white" if share > 0.4 else "black"
        size = 6.5 if len(names) > 15 else 9
        axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=size, color=color)
    axis.set_xticks(range(len(column_names)), column_names, rotation=90, fontsize=9, parse_math=False)
    axis.set_yticks(range(len(names)), names, fontsize=9, parse_math=False)
    axis.set_xlabel("Prediction", fontsize=11)
    axis.set_ylabel("Truth", fontsize=11)
    title = "Percent of each class's pixels"
    if len(labels) < np.count_nonzero(pixels):
        title += f", the {len(labels)} classes with the most pixels"
    axis.set_title(title, loc="left", fontsize=12)
    colorbar = figure.colorbar(image, ax=axis, shrink=0.6, ticks=[0, 0.05, 0.2, 0.5, 1])
    colorbar.ax.set_yticklabels(["0", "5", "20", "50", "100"])
    figure.savefig(path, dpi=110, facecolor="white")


def tile_sheet(
    tiles: Sequence[tuple[Image.Image, str]],
    entries: Sequence[tuple[str, Sequence[int]]] = (),
    columns: int = 4,
    side: int = 320,
) -> Image.Image:
    """Put pictures side by side with a line of text below each, and a legend below them all.

    Args:
        tiles: pictures of any size, which are fitted into squares, and their texts.
        entries: see [`add_legend`]; none for no legend.
        columns: pictures to a row.
        side: of the squares, in pixels.

    Raises:
        ValueError: there are no pictures.
    """
    if not tiles:
        raise ValueError("a sheet needs one picture or more")
    font = ImageFont.truetype(findfont("DejaVu Sans"), side // 22)
    gap, text_height = side // 20, side // 12
    columns = min(columns, len(tiles))
    scales = [side / max(image.size) for image, _ in tiles]
    fitted = [
        image.convert("RGB").resize([max(1, round(length * scale)) for length in image.size])
        for (image, _), scale in zip(tiles, scales, strict=True)
    ]
    heights = [max(image.height for image in fitted[row : row + columns]) for row in range(0, len(tiles), columns)]
    bottoms = np.cumsum([gap + height + text_height for height in heights]).tolist()
    sheet = Image.new("RGB", (gap + columns * (side + gap), bottoms[-1] + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (image, (_, caption)) in enumerate(zip(fitted, tiles, strict=True)):
        left, bottom = gap + place % columns * (side + gap), bottoms[place // columns] - text_height
        sheet.paste(image, (left + (side - image.width) // 2, bottom - image.height))
        text = drawable(caption)
        while len(text) > 1 and font.getlength(text) > side:
            text = f"…{text[2:]}" if text.startswith("…") else f"…{text[1:]}"  # the end of a path tells more
        draw.text((left + side // 2, bottom + text_height // 2), text, fill="black", font=font, anchor="mm")
    return add_legend(sheet, entries) if entries else sheet


def plot_label_frequencies(shares: dict[str, np.ndarray], id2label: dict[int, str], path: str | Path) -> None:
    """Save a picture of each label's share of the labelled pixels, on a logarithmic scale, the most frequent first.

    Args:
        shares: of each split, `(num_labels,)` from 0 to 1.
        id2label: name of each label.
        path: where to save the image, in a format that matplotlib knows by its suffix.
    """
    first = next(iter(shares.values()))
    order = np.argsort(-first, kind="stable")
    height = 0.22 if len(order) > 40 else 0.34  # inches of a row
    figure = Figure(figsize=(9, 1.4 + height * len(order)), layout="constrained")
    axis = figure.subplots()
    rows = np.arange(len(order))
    thickness = 0.8 / len(shares)
    least = min((share[share > 0].min() for share in shares.values() if (share > 0).any()), default=0.01)
    for number, (split, share) in enumerate(shares.items()):
        place = rows + (number - (len(shares) - 1) / 2) * thickness
        color = (_LINE_COLOR, "#d98b2b")[number % 2]
        axis.barh(place, np.maximum(100 * share[order], 0), thickness, left=0, color=color, label=split)
    if any(share.any() for share in shares.values()):
        axis.set_xscale("log")
    axis.set_xlim(100 * least / 3, 130)
    names = [drawable(id2label[int(label)]) for label in order]
    axis.set_yticks(rows, names, fontsize=7 if len(order) > 40 else 9, parse_math=False)
    axis.set_ylim(len(order) - 0.4, -0.6)
    axis.set_xlabel("Percent of the labelled pixels")
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110, facecolor="white")


def _legend_entries(
    labels: list[int], id2label: dict[int, str], palette: Sequence[Sequence[int]]
) -> list[tuple[str, Sequence[int]]]:
    entries = [(drawable(id2label[label]), palette[label]) for label in labels if label in id2label]
    if any(label not in id2label for label in labels):
        entries.append(("(not labelled)", IGNORED_COLOR))
    return entries


def plot_training_curves(
    steps: Sequence[int],
    losses: Sequence[float],
    learning_rates: Sequence[float],
    evaluations: Sequence[dict],
    path: str | Path,
) -> None:
    """Save a picture of training loss, learning rate and validation mean IoU over the optimizer steps.

    Args:
        steps: optimizer steps, increasing.
        losses: training loss of each step.
        learning_rates: learning rate of each step.
        evaluations: one `{"step": ..., "mean_iou": ...}` per evaluation, the mean IoU as a fraction.
        path: where to save the image, in a format that matplotlib knows by its suffix.
    """
    figure = Figure(figsize=(8, 9), layout="constrained")
    loss_axis, rate_axis, iou_axis = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1.6, 3]})
    loss_axis.plot(steps, losses, color=_MUTED_COLOR, linewidth=0.8, label="each step")
    loss_axis.plot(steps, smooth(losses), color=_LINE_COLOR, linewidth=1.8, label="smoothed")
    loss_axis.set_ylim(bottom=0)
    loss_axis.legend(frameon=False)
    rate_axis.plot(steps, learning_rates, color=_LINE_COLOR, linewidth=1.8)
    rate_axis.set_ylim(bottom=0)
    rate_axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    _plot_mean_iou(iou_axis, evaluations)
    for axis, title in zip(
        (loss_axis, rate_axis, iou_axis), ("Training loss", "Learning rate", "Validation mean IoU"), strict=True
    ):
        axis.set_title(title, loc="left", fontsize=12)
        axis.grid(color="0.92")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    iou_axis.set_xlabel("Optimizer step")
    iou_axis.margins(x=0.03)
    figure.savefig(path, dpi=110, facecolor="white")


def _plot_mean_iou(axis: Axes, evaluations: Sequence[dict]) -> None:
    axis.set_ylim(0, 1)
    if not evaluations:
        return
    steps = [evaluation["step"] for evaluation in evaluations]
    values = [evaluation["mean_iou"] for evaluation in evaluations]
    axis.plot(steps, values, color=_LINE_COLOR, linewidth=1.8, marker="o", markersize=5)
    axis.annotate(
        f"{values[-1]:.3f}",
        (steps[-1], values[-1]),
        xytext=(0, 9),
        textcoords="offset points",
        ha="center",
        fontsize=11,
    )


def smooth(values: Sequence[float], window: int = 25) -> np.ndarray:
    """Return the mean over the `window` values around each one, over fewer of them at both ends."""
    values = np.asarray(values, dtype=float)
    kernel = np.ones(min(window, len(values)))
    return np.convolve(values, kernel, mode="same") / np.convolve(np.ones_like(values), kernel, mode="same")
