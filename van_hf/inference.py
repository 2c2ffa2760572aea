# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Whole-image, sliding-window and multi-scale + flip inference: the protocols of the papers' figures.

The scores of a picture at its full size, (num_labels, height, width), take 7 GB for 12 megapixels and 150 classes.
What is held instead are the models' own logits, at a quarter of the size or less, in [`Scores`] that work out any
block of pixels when it is asked for.
"""

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import cached_file

from .exports import ExportedSegmentationModel, is_export
from .model.configuration_van import VanConfig
from .model.image_processing_van import VanImageProcessor
from .model.interpolation import bilinear_taps, half_pixel_positions, resize_to
from .model.modeling_van import VanForSemanticSegmentation

if TYPE_CHECKING:
    from .data.band_statistics import BandStatistics

# What is computed in, by the names that accelerate has for mixed precision.
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Formats of pictures from strangers, by Pillow's names. JPEG includes MPO, as telephones write it. Pillow reads more,
# such as EPS, a program that it has run by another.
PICTURE_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
SIZE_DIVISOR = 32
# Class scores (float32) that a block of pixels may hold: 16 MB, which the allocator still reuses from block to block.
BLOCK_SCORES = 2**22
# Between infinite scores, as masked classes have them, interpolation finds NaN; between such large ones it does not.
MAX_SCORE = 1e30


class Scores(ABC):
    """Class scores of one picture, (num_labels, height, width) float32, of which any block can be worked out.

    Attributes:
        size: `(height, width)` in pixels.
        num_labels: number of classes.
    """

    size: tuple[int, int]
    num_labels: int

    @abstractmethod
    def block(self, rows: slice, columns: slice) -> torch.Tensor:
        """Return the scores of some rows and columns, slices with start and stop: (num_labels, rows, columns)."""

    def full(self) -> torch.Tensor:
        """Return all scores, (num_labels, height, width)."""
        return self.block(*(slice(0, side) for side in self.size))

    def blocks(self) -> Iterator[tuple[tuple[slice, slice], torch.Tensor]]:
        """Yield the place of each block, rows and columns, and its scores; together they are the picture.

        Each has at most `BLOCK_SCORES` scores, so that memory is bounded for a picture of any shape; blocks are as
        wide as the picture where that leaves a row.
        """
        height, width = self.size
        num_columns = max(min(BLOCK_SCORES // self.num_labels, width), 1)
        num_rows = max(BLOCK_SCORES // (self.num_labels * num_columns), 1)
        for top in range(0, height, num_rows):
            rows = slice(top, min(top + num_rows, height))
            for left in range(0, width, num_columns):
                columns = slice(left, min(left + num_columns, width))
                yield (rows, columns), self.block(rows, columns)

    def argmax(self) -> torch.Tensor:
        """Return the class of the highest score of each pixel, int64 (height, width)."""
        labels = None
        for place, scores in self.blocks():
            highest = scores.argmax(dim=0)
            labels = highest.new_empty(self.size) if labels is None else labels
            labels[place] = highest
        return labels


class LogitScores(Scores):
    """Scores that are there as a tensor (num_labels, height, width)."""

    def __init__(self, logits: torch.Tensor):
        self.logits = logits.float().clamp(-MAX_SCORE, MAX_SCORE)
        self.num_labels, *size = logits.shape
        self.size = tuple(size)

    def block(self, rows: slice, columns: slice) -> torch.Tensor:
        return self.logits[:, rows, columns]


class ResizedScores(Scores):
    """Scores interpolated bilinearly to another size, corners not aligned: `F.interpolate`'s, block by block."""

    def __init__(self, scores: Scores, size: tuple[int, int]):
        self.scores = scores
        self.size = tuple(size)
        self.num_labels = scores.num_labels

    def block(self, rows: slice, columns: slice) -> torch.Tensor:
        height, width = self.scores.size
        source_rows, *row_taps = _taps(height, self.size[0], rows)
        if columns == slice(0, self.size[1]):
            source_columns, column_taps = slice(0, width), None
        else:
            source_columns, *column_taps = _taps(width, self.size[1], columns)
        source = self.scores.block(source_rows, source_columns)
        num_rows, num_columns = rows.stop - rows.start, columns.stop - columns.start
        # The order that has fewer scores between the two steps: 32 columns of millions of rows could be many.
        if source.shape[1] * num_columns < num_rows * source.shape[2]:
            return _lerp(self._columns(source, column_taps), 1, *row_taps)
        return self._columns(_lerp(source, 1, *row_taps), column_taps)

    def _columns(self, block: torch.Tensor, taps: list[torch.Tensor] | None) -> torch.Tensor:
        if taps is not None:
            return _lerp(block, 2, *taps)
        # Faster than gathering columns, but it can't begin anywhere but at the border.
        return resize_to(block[None], (block.shape[1], self.size[1]))[0]


def _taps(length: int, new_length: int, places: slice) -> tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the range of old pixels that new ones lie between, both neighbours in it, and the second's weight."""
    before, after, weight = bilinear_taps(half_pixel_positions(length, new_length, places.start, places.stop), length)
    first = int(before[0])
    return slice(first, int(after[-1]) + 1), before - first, after - first, weight.float()


def _lerp(
    scores: torch.Tensor, dim: int, before: torch.Tensor, after: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    before, after, weight = (tap.to(scores.device) for tap in (before, after, weight))
    weight = weight.reshape(-1, *[1] * (scores.ndim - 1 - dim))
    return torch.lerp(scores.index_select(dim, before), scores.index_select(dim, after), weight)


class WindowScores(Scores):
    """The mean of overlapping windows' scores, each at its place."""

    def __init__(
        self,
        windows: Sequence[tuple[Scores, int, int]],
        size: tuple[int, int],
        weights: tuple[torch.Tensor, torch.Tensor] | None = None,
    ):
        """
        Args:
            windows: scores of each window with its top and left edge, in one order for all pixels. They may reach
                beyond the picture. Where none lies, scores are 0.
            size: `(height, width)` of the picture.
            weights: what each row and each column of a window counts, positive float32 (window height,) and (window
                width,), multiplied; by default all count the same.
        """
        self.windows = windows
        self.size = tuple(size)
        self.num_labels = windows[0][0].num_labels
        self.weights = weights

    def block(self, rows: slice, columns: slice) -> torch.Tensor:
        total, count = None, torch.zeros(rows.stop - rows.start, columns.stop - columns.start)
        for scores, top, left in self.windows:
            first, last = max(rows.start, top), min(rows.stop, top + scores.size[0])
            begin, end = max(columns.start, left), min(columns.stop, left + scores.size[1])
            if first >= last or begin >= end:
                continue
            part = scores.block(slice(first - top, last - top), slice(begin - left, end - left))
            if total is None:
                total = part.new_zeros(self.num_labels, *count.shape)
            region = slice(first - rows.start, last - rows.start), slice(begin - columns.start, end - columns.start)
            if self.weights is None:
                total[(slice(None), *region)] += part
                count[region] += 1
            else:
                row_weights, column_weights = self.weights
                weight = torch.outer(row_weights[first - top : last - top], column_weights[begin - left : end - left])
                total[(slice(None), *region)].addcmul_(part, weight.to(part.device))
                count[region] += weight
        if total is None:
            return torch.zeros(self.num_labels, *count.shape)
        return total / count.masked_fill_(count == 0, 1).to(total.device)


@dataclass
class MeanProbabilities(Scores):
    """The mean of the softmax of several views' scores of one size, some of them of the picture mirrored."""

    views: Sequence[tuple[Scores, bool]]

    def __post_init__(self):
        self.size = self.views[0][0].size
        self.num_labels = self.views[0][0].num_labels

    def block(self, rows: slice, columns: slice) -> torch.Tensor:
        total = None
        width = self.size[1]
        for scores, mirrored in self.views:
            if mirrored:
                scores = scores.block(rows, slice(width - columns.stop, width - columns.start)).flip(-1)
            else:
                scores = scores.block(rows, columns)
            probabilities = scores.softmax(dim=0)
            total = probabilities if total is None else total.add_(probabilities)
        return total / len(self.views)


def load_model(
    name_or_path: str,
    device: str | torch.device | None = None,
    trust_pickle: bool = False,
    num_threads: int | None = None,
) -> tuple[VanForSemanticSegmentation | ExportedSegmentationModel, VanImageProcessor]:
    """Load a trained segmentation model, in evaluation mode, or an export of one, and its image processor.

    Weights of half precision are brought to float32: what to compute in is [`predict`]'s to choose.

    Args:
        name_or_path: a folder, or a model of the Hub; OWNER/NAME/onnx is a folder of a model of the Hub.
        device: where the model goes, such as "cpu" or "cuda:1"; by default a GPU where there is one, for an export
            the CPU.
        trust_pickle: run the code that an export of the format "torch_export" holds.
        num_threads: of an export's runtime; PyTorch has its own number.

    Raises:
        ValueError: it is another kind of model, has no weights that fit parts of it, or its files are damaged; or
            there is no such device.
        OSError: it cannot be found.
    """
    repository, subfolder = split_subfolder(name_or_path)
    if is_export(repository, subfolder):
        model = ExportedSegmentationModel.from_pretrained(
            repository, subfolder, device=device or "cpu", num_threads=num_threads, trust_pickle=trust_pickle
        )
        return model, load_image_processor(name_or_path)
    model, new = load_weights(name_or_path, load_config(name_or_path))
    if new:
        raise ValueError(
            f"{name_or_path} is no trained segmentation model: it has no weights for {', '.join(new)};"
            " examples/train_seg.py makes one from it"
        )
    image_processor = load_image_processor(name_or_path)
    _check_channels(name_or_path, model.config, image_processor)
    try:
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"the device {device} cannot be used: {error}") from error
    return model.eval(), image_processor


def load_image_processor(name_or_path: str) -> VanImageProcessor:
    """Load the image processor of a model, or of an export.

    Raises:
        ValueError: its preprocessor_config.json is damaged.
        OSError: it cannot be found.
    """
    repository, subfolder = split_subfolder(name_or_path)
    with _named(name_or_path, "preprocessor_config.json"):
        image_processor = VanImageProcessor.from_pretrained(repository, subfolder=subfolder)
        # Parameters that make no sense fail only in use.
        image_processor(torch.zeros(image_processor.num_channels, 1, 1))
    return image_processor


def load_bands(name_or_path: str) -> "BandStatistics | None":
    """Return the bands that a model takes, with the statistics that they are normalized by.

    Args:
        name_or_path: a folder, or a model of the Hub.

    Returns:
        None where it takes RGB, as a backbone without an image processor does.

    Raises:
        ValueError: the image processor tells of bands that cannot be.
        OSError: its file is damaged.
    """
    from .data.band_statistics import BandStatistics  # with datasets, which prediction does without

    repository, subfolder = split_subfolder(name_or_path)
    with _named(name_or_path, "preprocessor_config.json"):
        options = {"subfolder": subfolder, "_raise_exceptions_for_missing_entries": False}
        if cached_file(repository, "preprocessor_config.json", **options) is None:
            return None
        saved, _ = VanImageProcessor.get_image_processor_dict(repository, subfolder=subfolder)
        if saved.get("bands") is None:
            return None
        image_processor = VanImageProcessor.from_dict(saved)
        units = image_processor.rescale_factor if image_processor.do_rescale else 1
        mean, std = (
            tuple(value / units for value in values)
            for values in (image_processor.image_mean, image_processor.image_std)
        )
        return BandStatistics(tuple(image_processor.bands), mean, std)


def _check_channels(name_or_path: str, config: VanConfig, image_processor: VanImageProcessor) -> None:
    if config.num_channels != image_processor.num_channels:
        found = f"bands {list(image_processor.bands)}" if image_processor.bands else "no bands, which is RGB"
        raise ValueError(
            f"{name_or_path}: the model takes {config.num_channels} channel(s), and preprocessor_config.json has"
            f" {found}; they must be as many"
        )


def split_subfolder(name_or_path: str) -> tuple[str, str]:
    """Return a folder, or a repository of the Hub, and the folder in it: ("someone/van", "onnx") for the three."""
    parts = str(name_or_path).split("/")
    if len(parts) < 3 or not all(parts) or parts[0] in (".", "..", "~") or os.path.exists(name_or_path):
        return str(name_or_path), ""
    return "/".join(parts[:2]), "/".join(parts[2:])


def load_config(name_or_path: str) -> VanConfig:
    """Return the configuration of a VAN of any kind.

    Args:
        name_or_path: a folder, or a model of the Hub.

    Raises:
        ValueError: it is another kind of model, or its config.json is damaged.
        OSError: it cannot be found.
    """
    repository, subfolder = split_subfolder(name_or_path)
    with _named(name_or_path, "config.json"):
        model_type = VanConfig.get_config_dict(repository, subfolder=subfolder)[0].get("model_type")
    if model_type is None:
        raise ValueError(f"{name_or_path} has no config.json with a model_type; it must be 'van'")
    if model_type != VanConfig.model_type:
        raise ValueError(f"{name_or_path} is a model of the type {model_type!r}; it must be 'van'")
    with _named(name_or_path, "config.json"):
        return VanConfig.from_pretrained(repository, subfolder=subfolder)


def load_weights(name_or_path: str, config: VanConfig) -> tuple[VanForSemanticSegmentation, list[str]]:
    """Load the weights of a VAN of any kind into a segmentation model, in float32 whatever they were saved in.

    Args:
        name_or_path: a folder, or a model of the Hub.
        config: what the segmentation model is to be like.

    Returns:
        The model; and its modules, by their first two names, that there were no weights of these shapes for: theirs
        are new, to be trained.

    Raises:
        ValueError: the weights are damaged, or do not fit the backbone.
        OSError: there are none.
    """
    repository, subfolder = split_subfolder(name_or_path)
    options = {"subfolder": subfolder, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with _named(name_or_path, "weights"):
        model, info = VanForSemanticSegmentation.from_pretrained(
            repository, config=config, dtype=torch.float32, **options
        )
    keys = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    return model, sorted({".".join(key.split(".")[:2]) for key in keys})


@contextmanager
def _named(name_or_path: str, part: str) -> Iterator[None]:
    """Turn the many kinds of errors that damaged files raise into a ValueError that names the part of the model.

    An `OSError` stays one, and names the model: that of a machine without network tells the Hub's address alone.
    """
    try:
        yield
    except OSError as error:
        if str(name_or_path) in str(error):
            raise
        raise OSError(f"the {part} of {name_or_path} cannot be loaded: {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".removeprefix("ValueError: ").splitlines()[0]
        raise ValueError(
            f"the {part} of {name_or_path} cannot be used ({reason}); download or save it again"
        ) from error


def digest_of_weights(model: VanForSemanticSegmentation | ExportedSegmentationModel) -> str:
    """Return a digest of a model's weights, or of an exported program, which no others have, in 32 characters."""
    if isinstance(model, ExportedSegmentationModel):
        return model.digest
    digest = hashlib.blake2b(digest_size=16)
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class Protocol:
    """How pictures are segmented for a figure. Predictions are always compared at the pictures' own sizes.

    Attributes:
        mode: "whole" pictures, or "slide": window by window, scores averaged where windows overlap.
        crop_size: side of the windows in pixels, None with "whole".
        stride: step between windows in pixels, None with "whole".
        ratios: sizes of the views whose class probabilities are averaged, as shares of the image processor's size.
        flip: whether each view is taken mirrored too.
    """

    mode: str = "whole"
    crop_size: int | None = None
    stride: int | None = None
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False

    def describe(self) -> str:
        """Return the protocol in words."""
        scales = "single scale"
        if len(self.ratios) > 1:
            scales = f"multi-scale ({', '.join(map(str, self.ratios))})"
        windows = "whole image"
        if self.mode == "slide":
            windows = f"windows of {self.crop_size} pixels every {self.stride}"
        return f"{scales}{' + flip' if self.flip else ''}, {windows}, compared at the original size"


def find_export_problems(model: ExportedSegmentationModel, protocol: Protocol, name: str) -> list[str]:
    """Return a line for everything of a protocol that an export, which is called `name`, cannot do."""
    problems, size = [], model.info.size
    if model.info.label_maps and protocol != Protocol():
        problems.append(
            f"--mode slide, --multi_scale and --flip average scores, and {name} returns label maps; export it without"
            " --label_maps"
        )
    windows = (protocol.crop_size, protocol.crop_size) if protocol.mode == "slide" else None
    if size is not None and (len(protocol.ratios) > 1 or windows not in (None, tuple(size))):
        problems.append(
            f"--multi_scale and --mode slide: {name} takes pictures of {size[0]}x{size[1]} pixels alone; export it"
            " without --size"
        )
    return problems


@torch.inference_mode()
def predict(
    model: VanForSemanticSegmentation | ExportedSegmentationModel,
    image_processor: VanImageProcessor,
    image: torch.Tensor,
    protocol: Protocol = Protocol(),
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Segment a picture.

    Args:
        model: in evaluation mode.
        image_processor: the model's.
        image: uint8 (3, height, width); of an image processor with bands float32 (bands, height, width), NaN where
            there are no data.
        protocol: how to segment it.
        dtype: what the model computes in, by `torch.autocast` where it is not float32; a model whose weights are of
            half precision, or an export, computes in its own.

    Returns:
        The label of each pixel, int64 (height, width), on the model's device.

    Raises:
        ValueError: the model is an export that does not take what the protocol gives it, or `dtype` is not float32.
    """
    if isinstance(model, ExportedSegmentationModel) and dtype != torch.float32:
        raise ValueError(f"an export computes in its own precision, {model.info.precision}, and cannot in {dtype}")
    options = {"size": tuple(image.shape[-2:]), "argmax": True}
    if protocol.mode == "slide":
        options |= {"crop_size": protocol.crop_size, "stride": protocol.stride}
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        if protocol.ratios != (1.0,) or protocol.flip:
            options |= {"ratios": protocol.ratios, "flip": protocol.flip, "image_processor": image_processor}
            return multi_scale_flip_inference(model, image, **options)[0]
        pixel_values = image_processor(image, return_tensors="pt")["pixel_values"].to(model.device)
        infer = slide_inference if protocol.mode == "slide" else whole_inference
        return infer(model, pixel_values, **options)[0]


@torch.inference_mode()
def predict_batch(
    model: VanForSemanticSegmentation | ExportedSegmentationModel,
    pixel_values: torch.Tensor,
    sizes: Sequence[tuple[int, int]],
    dtype: torch.dtype = torch.float32,
) -> list[torch.Tensor]:
    """Segment whole pictures that have one size at the model's input: what [`predict`] does, in a batch.

    Scores are those of single pictures but for rounding, so that labels can differ where two scores nearly tie.

    Args:
        model, dtype: see [`predict`].
        pixel_values: normalized pictures (batch, 3, height, width).
        sizes: `(height, width)` in pixels that each picture had before the image processor.

    Returns:
        The label of each pixel of each picture, int64 (height, width), on the model's device.
    """
    pixel_values = pixel_values.to(model.device)
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        if isinstance(model, ExportedSegmentationModel) and model.info.label_maps:
            return [
                whole_inference(model, own[None], size, argmax=True)[0]
                for own, size in zip(pixel_values, sizes, strict=True)
            ]
        scores = whole_scores(model, pixel_values)
        return [_collect([own], size, argmax=True)[0] for own, size in zip(scores, sizes, strict=True)]


@torch.inference_mode()
def whole_inference(
    model: PreTrainedModel, pixel_values: torch.Tensor, size: tuple[int, int] | None = None, argmax: bool = False
) -> torch.Tensor:
    """Segment whole pictures: mmsegmentation's `mode="whole"`.

    Args:
        model: a semantic segmentation model whose outputs have `logits`, in evaluation mode, of any precision.
        pixel_values: normalized pictures (batch, 3, height, width) on the model's device; they are brought to the
            dtype of its weights.
        size: `(height, width)` in pixels of the result, by default that of the input. The logits are interpolated
            to the input's size first, as in the original.
        argmax: return class ids, worked out in blocks of pixels, instead of scores.

    Returns:
        Scores, float32 (batch, num_labels, height, width), or class ids, int64 (batch, height, width).

    Raises:
        ValueError: the model is an export with label maps, and scores were asked for.
    """
    if argmax and isinstance(model, ExportedSegmentationModel) and model.info.label_maps:
        labels = model(pixel_values).labels
        size = size or tuple(labels.shape[-2:])
        return F.interpolate(labels[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0].long()
    return _collect(whole_scores(model, pixel_values), size, argmax)


@torch.inference_mode()
def slide_inference(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    crop_size: int | tuple[int, int],
    stride: int | tuple[int, int],
    size: tuple[int, int] | None = None,
    argmax: bool = False,
    batch_size: int = 4,
) -> torch.Tensor:
    """Segment pictures window by window and average the scores where windows overlap: `mode="slide"`.

    Windows start every `stride` pixels; the last ones of a row or column are moved back to end with the picture.

    Args:
        model, pixel_values, size, argmax: see [`whole_inference`].
        crop_size: side, or `(height, width)`, of the windows in pixels; smaller pictures are one window.
        stride: step, or `(vertical, horizontal)` steps, between windows in pixels, at most the window's side.
        batch_size: number of windows that go through the model at once.

    Returns:
        See [`whole_inference`].

    Raises:
        ValueError: a window or step is not positive, or steps leave gaps between windows.
    """
    return _collect(_slide_scores(model, pixel_values, crop_size, stride, batch_size), size, argmax)


@torch.inference_mode()
def multi_scale_flip_inference(
    model: PreTrainedModel,
    images,
    ratios: Sequence[float] = RATIOS,
    flip: bool = True,
    image_processor=None,
    size: tuple[int, int] | None = None,
    argmax: bool = False,
    crop_size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
) -> torch.Tensor:
    """Average the class probabilities of a picture at several sizes, and of its mirror images.

    The protocol of UperNet's published figures: each view's logits go to the view's size, then to the picture's, then
    through a softmax.

    Args:
        model: see [`whole_inference`].
        images: with `image_processor`, one picture in any form that it takes; else normalized pictures (batch, 3,
            height, width), of which views are made by bilinear resizing to sides rounded up to multiples of 32.
        ratios: the sizes of the views, as shares of the size that the picture is segmented at.
        flip: whether each view is mirrored too.
        image_processor: a [`VanImageProcessor`], whose `size` is scaled by each ratio, as in the original; where it
            does not resize, views are made as without one.
        size: `(height, width)` in pixels of the result, by default that of `images`.
        argmax: return class ids, worked out in blocks of pixels, instead of probabilities.
        crop_size, stride: segment each view window by window; see [`slide_inference`].

    Returns:
        Probabilities, float32 (batch, num_labels, height, width), or class ids, int64 (batch, height, width).

    Raises:
        ValueError: there are no ratios, or some are not positive.
    """
    if not ratios or min(ratios) <= 0:
        raise ValueError(f"ratios must hold one or more positive numbers, got {ratios}")
    ratios = sorted(ratios, reverse=True)  # the largest view needs the most memory, so it comes before any is kept
    if image_processor is not None:
        picture = image_processor.process_image(images, do_convert_rgb=True)
        size = size or tuple(picture.shape[-2:])
    if image_processor is not None and image_processor.do_resize:
        views = [_processed_view(picture, ratio, image_processor).to(model.device) for ratio in ratios]
    else:
        if image_processor is not None:
            images = image_processor(picture, return_tensors="pt")["pixel_values"].to(model.device)
        views = [_resized_view(images, ratio) for ratio in ratios]
        size = size or tuple(images.shape[-2:])

    per_view = []
    for view in views:
        for mirrored in (False, True) if flip else (False,):
            pixel_values = view.flip(-1) if mirrored else view
            if crop_size is None:
                scores = whole_scores(model, pixel_values)
            else:
                scores = _slide_scores(model, pixel_values, crop_size, stride or crop_size)
            per_view.append([(ResizedScores(picture_scores, size), mirrored) for picture_scores in scores])
    return _collect([MeanProbabilities(list(of_picture)) for of_picture in zip(*per_view, strict=True)], size, argmax)


def _resized_view(pixel_values: torch.Tensor, ratio: float) -> torch.Tensor:
    sides = [math.ceil(side * ratio / SIZE_DIVISOR) * SIZE_DIVISOR for side in pixel_values.shape[-2:]]
    return F.interpolate(pixel_values, size=sides, mode="bilinear")


def _processed_view(picture: torch.Tensor, ratio: float, image_processor) -> torch.Tensor:
    size = {name: int(side * ratio) for name, side in dict(image_processor.size).items() if side is not None}
    return image_processor(picture, size=size, return_tensors="pt")["pixel_values"]


def whole_scores(model: PreTrainedModel, pixel_values: torch.Tensor) -> list[Scores]:
    """Return the scores of each picture at its size, of which the logits are held; see [`whole_inference`]."""
    if isinstance(model, ExportedSegmentationModel) and model.info.label_maps:
        raise ValueError(
            "this export returns label maps, which cannot be averaged over windows, scales or mirror images: export"
            " the model without --label_maps"
        )
    size = tuple(pixel_values.shape[-2:])
    logits = model(pixel_values=pixel_values.to(model.dtype)).logits
    return [ResizedScores(LogitScores(of_picture), size) for of_picture in logits]


def _slide_scores(
    model: PreTrainedModel, pixel_values: torch.Tensor, crop_size, stride, batch_size: int = 4
) -> list[Scores]:
    crops, strides = _pair(crop_size), _pair(stride)
    for crop, step in zip(crops, strides, strict=True):
        if not 1 <= step <= crop:
            raise ValueError(f"stride must be from 1 to crop_size, else windows leave gaps; got {stride}, {crop_size}")
    size = tuple(pixel_values.shape[-2:])
    tops, lefts = (window_starts(*sides) for sides in zip(size, crops, strides, strict=True))
    places = [(idx, top, left) for idx in range(len(pixel_values)) for top in tops for left in lefts]
    windows: list[list] = [[] for _ in pixel_values]
    for start in range(0, len(places), batch_size):
        chosen = places[start : start + batch_size]
        crop = torch.stack(
            [pixel_values[idx, :, top : top + crops[0], left : left + crops[1]] for idx, top, left in chosen]
        )
        for (idx, top, left), scores in zip(chosen, whole_scores(model, crop), strict=True):
            windows[idx].append((scores, top, left))
    return [WindowScores(of_picture, size) for of_picture in windows]


def window_starts(length: int, crop: int, step: int) -> list[int]:
    """Return where windows begin along a side of `length` pixels: every `step`, the last one to end with the side."""
    count = math.ceil(max(length - crop, 0) / step) + 1
    return [min(idx * step, max(length - crop, 0)) for idx in range(count)]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _collect(scores: list[Scores], size: tuple[int, int] | None, argmax: bool) -> torch.Tensor:
    if size is not None:
        scores = [s if s.size == tuple(size) else ResizedScores(s, size) for s in scores]
    return torch.stack([s.argmax() if argmax else s.full() for s in scores])
