# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Pictures of what a model sees and of how it learnt.

Imports matplotlib, so it is not part of `import van_hf`. No function touches pyplot's global state.
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

# Paler than any class in ADE20K's palette, which has its greys for roads and walls.
IGNORED_COLOR = (255, 255, 255)
_GOLDEN_RATIO = (5**0.5 - 1) / 2
_LINE_COLOR = "#2563a8"
_MUTED_COLOR = "#b5c9e2"


def default_palette(num_labels: int) -> list[list[int]]:
    """Returns one `[red, green, blue]` in 0..255 per label, neighbouring labels far apart in hue."""
    colors = []
    for label in range(num_labels):
        saturation, value = ((0.75, 0.95), (0.55, 0.70), (0.90, 0.60))[label % 3]
        red_green_blue = colorsys.hsv_to_rgb(label * _GOLDEN_RATIO % 1, saturation, value)
        colors.append([round(255 * channel) for channel in red_green_blue])
    return colors


def colorize(segmentation: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Paints a map of labels.

    Args:
        segmentation: Integers `(height, width)`: indices into `palette`, anything else (such as 255) is ignored.
        palette: One `[red, green, blue]` in 0..255 per label.

    Returns:
        uint8 `(height, width, 3)`; ignored pixels are white.
    """
    segmentation = np.asarray(segmentation)
    colors = np.array([*palette, IGNORED_COLOR], dtype=np.uint8)
    known = (segmentation >= 0) & (segmentation < len(palette))
    return colors[np.where(known, segmentation, len(palette))]


def overlay(
    image: Image.Image,
    segmentation: np.ndarray,
    palette: Sequence[Sequence[int]] | None = None,
    alpha: float = 0.6,
) -> Image.Image:
    """Lays a map of labels over a picture.

    Args:
        image: Picture of any PIL mode.
        segmentation: Integers `(height, width)` at the picture's size; what is not in the palette is ignored.
        palette: One `[red, green, blue]` in 0..255 per label, by default `default_palette`'s.
        alpha: Share of the labels' colour, from 0 (the picture alone) to 1.

    Returns:
        An RGB picture of the same size.

    Raises:
        ValueError: The sizes differ or `alpha` is out of range.
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


def plot_predictions(
    images: Sequence[Image.Image],
    references: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    id2label: dict[int, str],
    path: str | Path,
    palette: Sequence[Sequence[int]] | None = None,
    captions: Sequence[str] | None = None,
) -> None:
    """Saves a grid of pictures beside truth and prediction, with a legend of the classes that occur in it.

    Args:
        images: One picture per row.
        references: True labels, integers `(height, width)` at each picture's size, 255 ignored.
        predictions: Predicted labels of the same shapes.
        id2label: Name of each label.
        path: Where to save the image, in a format that matplotlib knows by its suffix.
        palette: One `[red, green, blue]` in 0..255 per label, by default `default_palette`'s.
        captions: A line below each picture.

    Raises:
        ValueError: There is no picture, or the three lists differ in length.
    """
    if not len(images) == len(references) == len(predictions) > 0:
        raise ValueError(
            "images, references and predictions must be as many, and one or more; "
            f"got {len(images)}, {len(references)} and {len(predictions)}"
        )
    palette = palette or default_palette(len(id2label))
    column_width = 3.2  # inches
    row_heights = [column_width * min(image.height / image.width, 1.0) for image in images]
    present = np.unique(np.concatenate([np.ravel(labels) for labels in (*references, *predictions)]))
    present = [int(label) for label in present]
    legend_columns = 6
    legend_rows = -(-(len(present)) // legend_columns)
    between_rows = 0.4 if captions else 0.1
    height = sum(row_heights) + between_rows * len(images) + 0.6 + 0.28 * legend_rows

    figure = Figure(figsize=(3 * column_width + 0.4, height), layout="constrained")
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
        row[0].text(0, -0.02, caption, transform=row[0].transAxes, va="top", fontsize=10)
    figure.legend(
        handles=_legend_patches(present, id2label, palette),
        loc="outside lower center",
        ncols=min(legend_columns, len(present)),
        frameon=False,
        fontsize=10,
    )
    figure.savefig(path, dpi=110, facecolor="white")


def plot_confusion_matrix(
    matrix: np.ndarray, id2label: dict[int, str], path: str | Path, max_labels: int = 40
) -> None:
    """Saves a picture of where the pixels of each class went, as shares of the class.

    Args:
        matrix: Counts `(num_labels, num_labels)`, rows are the truth and columns the prediction.
        id2label: Name of each label.
        path: Where to save the image, in a format that matplotlib knows by its suffix.
        max_labels: Of more classes only those with the most pixels are drawn; a last column holds what was taken for
            any of the others.
    """
    matrix = np.asarray(matrix)
    pixels = matrix.sum(axis=1)
    labels = np.flatnonzero(pixels)
    labels = np.sort(labels[np.argsort(-pixels[labels], kind="stable")[:max_labels]])
    names = [id2label[int(label)] for label in labels]
    shares = matrix[labels] / pixels[labels, None]
    columns, column_names = shares[:, labels], names
    if len(labels) < len(matrix):
        others = np.clip(1 - columns.sum(axis=1, keepdims=True), 0, 1)
        columns, column_names = np.concatenate([columns, others], axis=1), [*names, "(any other)"]

    cell = 0.3 if len(names) > 15 else 0.55  # inches
    figure = Figure(figsize=(cell * len(column_names) + 3.5, cell * len(names) + 2.6), layout="constrained")
    axis = figure.subplots()
    # The square root of the shares: a tenth that goes astray must show beside nine tenths that do not.
    image = axis.imshow(columns, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    for row, column in zip(*np.nonzero(columns >= 0.005), strict=True):
        share = columns[row, column]
        color = "white" if share > 0.4 else "black"
        size = 6.5 if len(names) > 15 else 9
        axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=size, color=color)
    axis.set_xticks(range(len(column_names)), column_names, rotation=90, fontsize=9)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_xlabel("Prediction", fontsize=11)
    axis.set_ylabel("Truth", fontsize=11)
    title = "Percent of each class's pixels"
    if len(labels) < np.count_nonzero(pixels):
        title += f", the {len(labels)} classes with the most pixels"
    axis.set_title(title, loc="left", fontsize=12)
    colorbar = figure.colorbar(image, ax=axis, shrink=0.6, ticks=[0, 0.05, 0.2, 0.5, 1])
    colorbar.ax.set_yticklabels(["0", "5", "20", "50", "100"])
    figure.savefig(path, dpi=110, facecolor="white")


def _legend_patches(labels: list[int], id2label: dict[int, str], palette: Sequence[Sequence[int]]) -> list[Patch]:
    patches = [
        Patch(facecolor=np.array(palette[label]) / 255, edgecolor="0.6", label=id2label[label])
        for label in labels
        if label in id2label
    ]
    if any(label not in id2label for label in labels):
        patches.append(Patch(facecolor=np.array(IGNORED_COLOR) / 255, edgecolor="0.6", label="(not labelled)"))
    return patches


def plot_training_curves(
    steps: Sequence[int],
    losses: Sequence[float],
    learning_rates: Sequence[float],
    evaluations: Sequence[dict],
    path: str | Path,
) -> None:
    """Saves a picture of training loss, learning rate and validation mean IoU over the optimizer steps.

    Args:
        steps: Optimizer steps, increasing.
        losses: Training loss of each step.
        learning_rates: Learning rate of each step.
        evaluations: One `{"step": ..., "mean_iou": ...}` per evaluation, the mean IoU as a fraction.
        path: Where to save the image, in a format that matplotlib knows by its suffix.
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
    """Returns the mean over the `window` values around each one, over fewer of them at both ends."""
    values = np.asarray(values, dtype=float)
    kernel = np.ones(min(window, len(values)))
    return np.convolve(values, kernel, mode="same") / np.convolve(np.ones_like(values), kernel, mode="same")
