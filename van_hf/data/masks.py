# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What the pixels of a raw mask mean: label ids, other values, or colours. Everything reads masks through here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from ..model.image_processing_van import upright
from .augmentation import IGNORE_INDEX
from .coco import draw_annotation

Color = tuple[int, int, int]

# Modes in which a mask's pixels are single values: one channel (mode P holds indices into its palette).
MASK_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")
COLOR_MODES = ("RGB", "RGBA")
# Values with transparency; where all pixels are opaque it says nothing.
ALPHA_MODES = ("LA", "PA")
# What a listed table gives for a value that it does not list; such tables have labels below it.
UNLISTED = 254
NUM_SHOWN = 8


@dataclass(frozen=True)
class MaskMeaning:
    """How the pixels of raw masks become label ids.

    Attributes:
        values: `(raw value, label)` for masks of one channel, 255 being the ignored label; None where the values are
            the labels.
        colors: `((red, green, blue), label)` for coloured masks; None where there cannot be any.
        palettes_are_colors: whether masks with a palette go by its colours too, and not by the indices into it.
        tolerance: how far a value of mode L, or each channel of a colour, may be from the nearest one that is listed:
            masks that were compressed with loss, or resized with interpolation, have such.
        ignore_unlisted: whether what is not listed is ignored; it is an error otherwise.
    """

    values: tuple[tuple[int, int], ...] | None = None
    colors: tuple[tuple[Color, int], ...] | None = None
    palettes_are_colors: bool = False
    tolerance: int = 0
    ignore_unlisted: bool = False

    def is_coloured(self, mask: Image.Image) -> bool:
        """Return whether a mask is read by its colours."""
        if self.colors is None:
            return False
        return mask.mode in COLOR_MODES or (mask.mode in ("P", "PA") and self.palettes_are_colors)


def raw_labels(mask: Image.Image | str, meaning: MaskMeaning | None = None) -> np.ndarray:
    """Return the labels of an annotation, upright: uint8 or int64 (height, width).

    Labels are not checked, see [`check_labels`], nor reduced. Of coloured masks the transparency does not count.

    Args:
        mask: a PIL image, or what is to be drawn on one, see [`coco.load_coco`].
        meaning: what its pixels mean; by default they are the labels.

    Raises:
        ValueError: it is no picture, has several channels that are no colours, or has values or colours that are not
            listed. The message counts them.
    """
    if isinstance(mask, str):
        return draw_annotation(mask)
    check_picture(mask, "annotation")
    mask = without_alpha(upright(mask))
    meaning = meaning or MaskMeaning()
    if meaning.is_coloured(mask):
        channels = np.asarray(mask.convert("RGB")).astype(np.uint32)
        codes = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
        labels = _color_table(meaning.colors, meaning.tolerance)[codes]
        return _settle_unlisted(labels, codes, meaning, "colours")
    if mask.mode in ALPHA_MODES:
        raise ValueError(
            f"the annotation has mode {mask.mode}, and pixels that are not opaque; transparency means no label. Save "
            "it without an alpha channel, with 255 where nothing is to be learned."
        )
    if mask.mode not in MASK_MODES:
        raise ValueError(
            f"the annotation has mode {mask.mode}; expected one channel of label ids (mode L, P, I, I;16 or 1). "
            "Colours are read where the label names file tells the labels' colours, or mask_values (--mask_values) "
            "does; annotations of many channels, or of floating point numbers, are not."
        )
    values = np.array(mask, dtype=np.uint8 if mask.mode in ("1", "L", "P") else np.int64)
    if meaning.values is None:
        if mask.mode == "P" and meaning.colors is not None:
            _check_palette(mask, values, dict(meaning.colors))
        return values
    listed = dict(meaning.values)
    if mask.mode == "1" and 255 in listed and 1 not in listed:
        values *= 255  # what white is elsewhere
    # Indices and truth values that are near each other mean nothing alike.
    tolerance = 0 if mask.mode in ("1", "P") else meaning.tolerance
    if values.dtype == np.uint8:
        labels = _nearest_labels(np.arange(256), listed, tolerance)[values]
    else:
        found, places = np.unique(values, return_inverse=True)
        labels = _nearest_labels(found, listed, tolerance)[places.reshape(values.shape)]
    return _settle_unlisted(labels, values, meaning, "values")


def without_alpha(mask: Image.Image) -> Image.Image:
    """Return a mask of single values whose pixels are all opaque without its alpha channel; any other as it is."""
    if mask.mode in ALPHA_MODES and mask.getchannel("A").getextrema()[0] == 255:
        return mask.convert(mask.mode[0])
    return mask


def _check_palette(mask: Image.Image, values: np.ndarray, colors: dict[Color, int]) -> None:
    """Raise a ValueError where a palette has the labels' colours, but at other indices than their labels."""
    palette = mask.getpalette("RGB") or []
    for index in np.bincount(values.ravel()).nonzero()[0].tolist():
        color = tuple(palette[3 * index : 3 * index + 3])
        if colors.get(color, index) not in (index, IGNORE_INDEX):
            raise ValueError(
                f"the annotation's palette has the colour of label {colors[color]}, {list(color)}, at index {index}: "
                "the indices are no labels. mask_palettes (--mask_palettes) reads such masks by their colours"
            )


def _nearest_labels(values: np.ndarray, listed: Mapping[int, int], tolerance: int) -> np.ndarray:
    """The label of the nearest listed value of each of `values`, uint8; `UNLISTED` where none is near enough."""
    if not listed:
        return np.full(len(values), UNLISTED, dtype=np.uint8)
    known, labels = np.array(sorted(listed.items()), dtype=np.int64).T
    above = np.searchsorted(known, values).clip(max=len(known) - 1)
    below = (above - 1).clip(min=0)
    is_below = np.abs(values - known[below]) <= np.abs(values - known[above])
    nearest = np.where(is_below, below, above)
    return np.where(np.abs(values - known[nearest]) <= tolerance, labels[nearest], UNLISTED).astype(np.uint8)


@lru_cache(maxsize=4)
def _color_table(colors: tuple[tuple[Color, int], ...], tolerance: int) -> np.ndarray:
    """The label of each of the 2**24 colours, uint8, by the code 65536 red + 256 green + blue."""
    table = np.full((256, 256, 256), UNLISTED, dtype=np.uint8)
    if tolerance == 0:
        for color, label in colors:
            table[color] = label
        return table.ravel()
    least = np.full(table.shape, np.iinfo(np.int32).max, dtype=np.int32)  # squared distance to the nearest colour
    for color, label in colors:
        ranges = [np.arange(max(value - tolerance, 0), min(value + tolerance, 255) + 1) for value in color]
        place = tuple(slice(line[0], line[-1] + 1) for line in ranges)
        red, green, blue = ((line - value) ** 2 for line, value in zip(ranges, color, strict=True))
        distance = red[:, None, None] + green[:, None] + blue
        is_nearer = distance < least[place]
        least[place][is_nearer] = distance[is_nearer]
        table[place][is_nearer] = label
    return table.ravel()


def _settle_unlisted(labels: np.ndarray, raw: np.ndarray, meaning: MaskMeaning, kind: str) -> np.ndarray:
    """Ignore, or raise a ValueError about, pixels whose raw values, or codes of colours, are not listed."""
    is_unlisted = labels == UNLISTED
    if not is_unlisted.any():
        return labels
    if meaning.ignore_unlisted:
        return np.where(is_unlisted, np.uint8(IGNORE_INDEX), labels)
    found, counts = np.unique(raw[is_unlisted], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    show = describe_color if kind == "colours" else str
    shown = [f"{show(int(found[idx]))} ({counts[idx]} pixels)" for idx in order[:NUM_SHOWN]]
    more = f" and {len(found) - NUM_SHOWN} more" if len(found) > NUM_SHOWN else ""
    listed = dict(meaning.colors if kind == "colours" else meaning.values)
    if kind == "values" and IGNORE_INDEX in found:
        more += (
            ". Masks of labels have 255 where they are ignored: if these are such, as Cityscapes' labelTrainIds, "
            "leave out label_table and mask_values, and give the names by id2label. Otherwise"
        )
    raise ValueError(
        f"the annotation holds {kind} that no label has: {', '.join(shown)}{more}. {len(listed)} are listed. Add them "
        "to mask_values (--mask_values), to a label or to 'ignore'; ignore_unlisted (--ignore_unlisted) ignores all "
        "that is not listed; and mask_tolerance (--mask_tolerance) takes what is near for the same, as of masks that "
        "were saved as JPEG."
    )


def describe_color(code: int) -> str:
    """Return a colour as people write it, such as "#ff8000", of its code 65536 red + 256 green + blue."""
    return f"#{code:06x}"


def check_labels(labels: np.ndarray, num_labels: int, do_reduce_labels: bool) -> None:
    """Raise a ValueError that lists the raw labels, integers of any shape, that are out of range and not 255."""
    first = int(do_reduce_labels)
    last = num_labels - 1 + first
    # In uint8 the step up makes 0 of the ignored 255, and one maximum tells whether all is well.
    if labels.dtype == np.uint8 and (labels + np.uint8(1)).max() <= last + 1:
        return
    wrong = (labels != IGNORE_INDEX) & ((labels < 0) | (labels > last))
    if wrong.any():
        found = np.unique(labels[wrong]).tolist()
        shown = ", ".join(map(str, found[:NUM_SHOWN])) + (", …" if len(found) > NUM_SHOWN else "")
        other = ", 0 is other" if do_reduce_labels else ""
        raise ValueError(
            f"the annotation holds the labels {shown}; with {num_labels} labels and "
            f"do_reduce_labels={do_reduce_labels} they go from {first} to {last}{other}, and 255 is ignored. Where "
            "values mean other labels, mask_values (--mask_values) says which."
        )


def check_picture(picture: object, what: str) -> None:
    """Raise a ValueError where a column holds no PIL image, but nothing, say."""
    if not isinstance(picture, Image.Image):
        raise ValueError(f"the {what} is a {type(picture).__name__}; expected a PIL image.")


def add_listed(known: Mapping, more: Iterable[tuple]) -> tuple[tuple, ...] | None:
    """Return pairs of a raw value or colour and its label, what is listed anew in place of what was; None for none."""
    merged = {**known, **dict(more)}
    return tuple(sorted(merged.items())) or None
