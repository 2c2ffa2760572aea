# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The originals' training augmentation at the cost of the crop.

It is mmsegmentation 0.26's Resize, RandomCrop, RandomFlip, PhotoMetricDistortion and Pad, but of the enlarged picture
only what the crop will show is ever interpolated. Colours stay unrounded until the end, where the originals truncate
them to 8 bits after every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from ..model.image_processing_van import ignore_missing, reduce_labels
from ..model.interpolation import bilinear_taps, half_pixel_positions, keep_ratio_size

IGNORE_INDEX = 255
# The originals pad with 0 after normalization. Before it, that is ImageNet's mean colour.
PADDING_COLOR = (124, 116, 104)
CROP_TRIES = 10
BRIGHTNESS_DELTA = 32.0
CONTRAST_RANGE = (0.5, 1.5)
SATURATION_RANGE = (0.5, 1.5)
HUE_DELTA_DEGREES = 36.0


def source_box(
    source_size: tuple[int, int], size: tuple[int, int], window: tuple[int, int, int, int], reduction: int = 1
) -> tuple[int, int, int, int]:
    """The part of a picture that `resized_crop` reads, as PIL's `crop` takes it: (left, top, right, bottom).

    Args:
        source_size: (height, width) of the whole picture.
        size, window: as in `resized_crop`.
        reduction: see `resized_crop`. The box counts the pixels that the reduced picture has.
    """
    top, left, height, width = window
    rows_before, rows_after, _ = _bilinear_taps(source_size[0], size[0], top, height, reduction)
    columns_before, columns_after, _ = _bilinear_taps(source_size[1], size[1], left, width, reduction)
    return int(columns_before[0]), int(rows_before[0]), int(columns_after[-1]) + 1, int(rows_after[-1]) + 1


def resized_crop(
    image: torch.Tensor,
    size: tuple[int, int],
    window: tuple[int, int, int, int],
    source_size: tuple[int, int] | None = None,
    reduction: int = 1,
) -> torch.Tensor:
    """What `window` shows of a picture resized to `size` (bilinear, half-pixel centers, no antialiasing).

    That is how cv2 resizes. The result is that of resizing the whole image and cropping, up to rounding, but only the
    window is computed.

    Args:
        image: uint8 or float32 (channels, height, width), the whole picture or, with `source_size`, its part in
            `source_box`.
        size: (height, width) of the whole resized image.
        window: (top, left, height, width) in the resized image, inside it.
        source_size: (height, width) of the whole picture, before any reduction.
        reduction: `image` comes from a picture that was reduced by this whole number: each of its pixels stands for
            `reduction` x `reduction` of the original's, and the last row and column for what is left over.

    Returns:
        float32 (channels, window height, window width), in the picture's range, not rounded; NaN next to NaN.
    """
    top, left, height, width = window
    if source_size is None:
        source_size = image.shape[1:]
        first_column, first_row, end_column, end_row = source_box(source_size, size, window)
        image = image[:, first_row:end_row, first_column:end_column]
    rows_before, rows_after, row_weights = _bilinear_taps(source_size[0], size[0], top, height, reduction)
    columns_before, columns_after, column_weights = _bilinear_taps(source_size[1], size[1], left, width, reduction)
    if image.is_floating_point():  # of what has no data, NaN, nothing is still NaN
        rows_after = np.where(row_weights > 0, rows_after, rows_before)
        columns_after = np.where(column_weights > 0, columns_after, columns_before)
    # Of a picture that is made smaller most rows are never looked at.
    rows, positions = np.unique(np.concatenate([rows_before, rows_after]), return_inverse=True)
    # Rows lie together in memory if channels are last, as PIL has them; the rest is faster with channels first.
    part = image.permute(1, 2, 0).numpy()[rows - rows_before[0]]
    part = np.ascontiguousarray(part.transpose(2, 0, 1)).astype(np.float32)
    before = torch.from_numpy(part.take(columns_before - columns_before[0], axis=2))
    after = torch.from_numpy(part.take(columns_after - columns_before[0], axis=2))
    part = before.lerp_(after, torch.from_numpy(column_weights))
    before, after = (part.index_select(1, taps) for taps in torch.from_numpy(positions).split(height))
    return before.lerp_(after, torch.from_numpy(row_weights)[:, None])


def nearest_resized_crop(
    labels: torch.Tensor, size: tuple[int, int], window: tuple[int, int, int, int]
) -> torch.Tensor:
    """What `window` (top, left, height, width) shows of `labels` (height, width) resized to `size`.

    Output position i shows source position floor(i * source length / length), worked out in
    integers; cv2 and torch round the same rule, and so differ at ties.
    """
    top, left, height, width = window
    rows = np.arange(top, top + height) * labels.shape[0] // size[0]
    columns = np.arange(left, left + width) * labels.shape[1] // size[1]
    return torch.from_numpy(labels.numpy()[rows].take(columns, axis=1))


def _bilinear_taps(
    source_length: int, length: int, start: int, count: int, reduction: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The source positions before and after `count` output positions from `start`, and the weight of the latter."""
    positions = half_pixel_positions(source_length / reduction, length, start, start + count)
    before, after, weight = bilinear_taps(positions, -(-source_length // reduction))
    return before.numpy(), after.numpy(), weight.numpy().astype(np.float32)


def distort(
    image: torch.Tensor, *, brightness: float, contrast: float, saturation: float, hue: float, contrast_first: bool
) -> torch.Tensor:
    """Photometric distortion with given strengths; each step is clamped to 0..255.

    Args:
        image: float32 (3, height, width), RGB, 0..255.
        brightness: added to all channels, 0 for none.
        contrast: factor of all channels, 1 for none; before saturation and hue if `contrast_first`, else after them.
        saturation: factor of HSV's saturation, 1 for none.
        hue: degrees by which HSV's hue is turned, 0 for none.

    Returns:
        float32 (3, height, width), 0..255.
    """
    if brightness != 0:
        image = (image + brightness).clamp_(0, 255)
    if contrast != 1 and contrast_first:
        image = (image * contrast).clamp_(0, 255)
    if saturation != 1 or hue != 0:
        image = _adjust_saturation_and_hue(image, saturation, hue)
    if contrast != 1 and not contrast_first:
        image = (image * contrast).clamp_(0, 255)
    return image


def draw_distortion(generator: torch.Generator) -> dict[str, float | bool]:
    """Strengths for `distort`: each of the four steps happens with probability 0.5."""

    def sometimes(low: float, high: float, otherwise: float) -> float:
        happens, strength = _uniform(generator) < 0.5, _uniform(generator, low, high)
        return strength if happens else otherwise

    return {
        "brightness": sometimes(-BRIGHTNESS_DELTA, BRIGHTNESS_DELTA, 0.0),
        "contrast": sometimes(*CONTRAST_RANGE, 1.0),
        "saturation": sometimes(*SATURATION_RANGE, 1.0),
        "hue": sometimes(-HUE_DELTA_DEGREES, HUE_DELTA_DEGREES, 0.0),
        "contrast_first": _uniform(generator) < 0.5,
    }


def _adjust_saturation_and_hue(image: torch.Tensor, saturation: float, hue: float) -> torch.Tensor:
    # HSV's value is the largest channel and its chroma the distance to the smallest. Without a change of hue every
    # channel keeps its place between the two, which spares the way through HSV.
    red, green, blue = image
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    if hue == 0:
        factor = (value / chroma.clamp(min=1e-3)).clamp_(max=saturation)
        return value - (value - image) * factor
    new_chroma = torch.minimum(chroma * saturation, value)
    scale = chroma.clamp_(min=1e-3).reciprocal_()
    sixths = torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale)
    sixths = torch.where(value == red, (green - blue) * scale, sixths).add_(hue / 60).remainder_(6)
    shares = torch.stack([(sixths - 3).abs_().sub_(1), 2 - (sixths - 2).abs_(), 2 - (sixths - 4).abs_()]).clamp_(0, 1)
    return shares.sub_(1).mul_(new_chroma).add_(value)


@dataclass(frozen=True)
class DrawnAugmentation:
    """All that is random about a sample, drawn before its picture is looked at.

    Attributes:
        size: (height, width) of the whole picture after resizing.
        window: (top, left, height, width) of the crop in it.
        labels: what the window shows of the labels, uint8 (height, width), 255 where ignored; not flipped.
        flip: whether the crop is flipped left-right.
        distortion: strengths for `distort`, or None.
    """

    size: tuple[int, int]
    window: tuple[int, int, int, int]
    labels: torch.Tensor
    flip: bool
    distortion: dict[str, float | bool] | None


class TrainAugmentation:
    """Random resize, crop, flip and photometric distortion, then padding to the crop's size.

    The picture is resized to `scale` times a random ratio, keeping its proportions. Of the crops of the result that
    are tried the first one is taken in which no label covers `cat_max_ratio` or more of the labelled pixels.

    Args:
        crop_size: side of the square result in pixels.
        scale: bounds of the (long, short) side at ratio 1, in pixels.
        ratio_range: least and largest ratio.
        cat_max_ratio: the share of one label that a crop must stay below, of the pixels that are not ignored; 1
            accepts every crop.
        flip_probability: of a left-right flip.
        photometric_distortion: whether brightness, contrast, saturation and hue are changed, each with
            probability 0.5.
    """

    def __init__(
        self,
        crop_size: int = 512,
        scale: tuple[int, int] = (2048, 512),
        ratio_range: tuple[float, float] = (0.5, 2.0),
        cat_max_ratio: float = 0.75,
        flip_probability: float = 0.5,
        photometric_distortion: bool = True,
    ):
        if crop_size < 1:
            raise ValueError(f"crop_size is {crop_size}; a crop has at least 1 pixel a side.")
        if not 0 < ratio_range[0] <= ratio_range[1]:
            raise ValueError(
                f"ratio_range is {tuple(ratio_range)}; give the least and the largest ratio, both above 0."
            )
        self.crop_size = crop_size
        self.scale = scale
        self.ratio_range = ratio_range
        self.cat_max_ratio = cat_max_ratio
        self.flip_probability = flip_probability
        self.photometric_distortion = photometric_distortion

    def __call__(
        self, image: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment one picture; all randomness comes from `generator`.

        Args:
            image: uint8 (3, height, width), RGB; or float32 (bands, height, width) of any range, NaN where there are
                no data, whose colours cannot be distorted.
            labels: uint8 (height, width), already reduced, 255 where ignored.

        Returns:
            uint8 (3, crop_size, crop_size), padded right and bottom with ImageNet's mean colour (124, 116, 104), and
            uint8 (crop_size, crop_size), padded with 255. Of bands, float32 (bands, crop_size, crop_size), padded with
            NaN; labels are 255, too, where no band has data.

        Raises:
            ValueError: colours were to be distorted of what is no 8-bit RGB.
        """
        return self.apply(self.draw(labels, generator), image)

    def draw(
        self,
        labels: torch.Tensor,
        generator: torch.Generator,
        do_reduce_labels: bool = False,
        shown_label: int | None = None,
    ) -> DrawnAugmentation:
        """Draw everything that is random; of the picture nothing but its labels is needed for that.

        Args:
            labels: uint8 (height, width), 255 where ignored.
            generator: all randomness comes from it.
            do_reduce_labels: whether the labels are still to be reduced, which is done to the crops alone.
            shown_label: a label that occurs in the picture, after reduction: each crop that is tried is laid around
                one of its pixels, all of which are as likely. By default crops lie anywhere.
        """
        ratio = _uniform(generator, *self.ratio_range)
        long_side, short_side = (int(side * ratio) for side in sorted(self.scale, reverse=True))
        size = keep_ratio_size(*labels.shape, short_side, long_side)
        pixels = None if shown_label is None else (labels == shown_label + int(do_reduce_labels)).nonzero()
        window, labels = self._choose_crop(labels, size, generator, do_reduce_labels, pixels)
        flip = _uniform(generator) < self.flip_probability
        distortion = draw_distortion(generator) if self.photometric_distortion else None
        return DrawnAugmentation(size, window, labels, flip, distortion)

    def apply(
        self,
        drawn: DrawnAugmentation,
        image: torch.Tensor,
        source_size: tuple[int, int] | None = None,
        reduction: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the sample that was drawn.

        Args:
            drawn: what `draw` returned for the picture's labels.
            image, source_size, reduction: the picture or a part of it, RGB or bands, see `resized_crop`.

        Returns:
            As `__call__` does.
        """
        has_bands = image.is_floating_point()
        if has_bands and drawn.distortion is not None:
            raise ValueError("photometric_distortion is for 8-bit RGB; of bands in other units it makes no sense")
        image, labels = resized_crop(image, drawn.size, drawn.window, source_size, reduction), drawn.labels
        if drawn.flip:
            image, labels = F.horizontal_flip(image), F.horizontal_flip(labels)
        if has_bands:
            return self._pad(image, ignore_missing(labels, image), torch.nan)
        if drawn.distortion is not None:
            image = distort(image, **drawn.distortion)
        image = image.round_().to(torch.uint8)
        return self._pad(image, labels, list(PADDING_COLOR))

    def _choose_crop(
        self,
        labels: torch.Tensor,
        size: tuple[int, int],
        generator: torch.Generator,
        do_reduce_labels: bool,
        pixels: torch.Tensor | None,
    ):
        # The originals look at ten crops and, when none will do, take an eleventh unseen.
        for attempt in range(CROP_TRIES + 1):
            if pixels is None:
                window = self._draw_window(size, generator)
            else:
                pixel = pixels[torch.randint(len(pixels), (), generator=generator)].tolist()
                window = self._draw_window_around(pixel, labels.shape, size, generator)
            cropped = nearest_resized_crop(labels, size, window)
            if do_reduce_labels:
                cropped = reduce_labels(cropped)
            if attempt == CROP_TRIES or self.cat_max_ratio >= 1 or self._is_varied(cropped):
                return window, cropped

    def _draw_window(self, size: tuple[int, int], generator: torch.Generator) -> tuple[int, int, int, int]:
        height, width = (min(side, self.crop_size) for side in size)
        top, left = (
            int(torch.randint(side - shown + 1, (), generator=generator))
            for side, shown in zip(size, (height, width), strict=True)
        )
        return top, left, height, width

    def _draw_window_around(
        self, pixel: list[int], source_size: tuple[int, int], size: tuple[int, int], generator: torch.Generator
    ) -> tuple[int, int, int, int]:
        """A window that shows a pixel (row, column) of the labels or, where they are made smaller, the next one."""
        shown = [min(side, self.crop_size) for side in size]
        first = []
        for position, source_side, side, length in zip(pixel, source_size, size, shown, strict=True):
            position = min(-(-position * side // source_side), side - 1)
            least, most = max(0, position - length + 1), min(position, side - length)
            first.append(least + int(torch.randint(most - least + 1, (), generator=generator)))
        return *first, *shown

    def _is_varied(self, labels: torch.Tensor) -> bool:
        counts = torch.bincount(labels.flatten(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
        largest, total = int(counts.max()), int(counts.sum())
        return 0 < largest < total and largest < self.cat_max_ratio * total

    def _pad(
        self, image: torch.Tensor, labels: torch.Tensor, fill: float | list[float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = labels.shape
        padding = [0, 0, self.crop_size - width, self.crop_size - height]
        labels = F.pad(labels[None], padding, fill=IGNORE_INDEX)[0]
        return F.pad(image, padding, fill=fill), labels


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()
