# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Examples as tensors, and the sequence of training samples."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import datasets
import numpy as np
import torch
from datasets.utils.file_utils import xopen
from PIL import Image

from ..bands import check_is_rgb, hint_at_bands, open_bands, read_bands
from ..model.image_processing_van import (
    VanImageProcessor,
    ignore_missing,
    orientation_of,
    reduce_labels,
    upright,
    upright_size,
)
from .augmentation import DrawnAugmentation, TrainAugmentation, source_box
from .coco import content_of_annotation
from .masks import MaskMeaning, check_labels, check_picture, raw_labels
from .rare_classes import RareClassSampling

# Pictures are read as at inference: upright, any mode as RGB, transparent ones over white.
_PROCESSOR = VanImageProcessor()


def read_example(
    split: datasets.Dataset,
    idx: int,
    *,
    num_labels: int,
    do_reduce_labels: bool,
    name: str,
    mask_meaning: MaskMeaning | None = None,
    bands: tuple[int, ...] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the picture and the labels of an example as tensors.

    Args:
        split: has the columns `image` and `annotation`, both decoded to PIL images. Each is turned as its EXIF
            orientation says, and the picture is read as `VanImageProcessor` reads it. With `bands`, pictures are
            undecoded, see [`SegmentationDataset`].
        idx: the number of the example in the split.
        num_labels: labels must be below it, or 255.
        do_reduce_labels: whether 0 in the annotation means "other", see `reduce_labels`.
        name: what the split is called in errors, such as "scenes train".
        mask_meaning: how the annotation's pixels become labels; by default they are the labels.
        bands: which bands the picture has, by their numbers in the file; by default it is 8-bit RGB.

    Returns:
        uint8 (3, height, width) in RGB and uint8 (height, width), 255 where ignored. With `bands`, float32 (bands,
        height, width) as [`read_bands`] returns it, and 255 also where no band has data.

    Raises:
        ValueError: a file is missing or damaged, picture and annotation differ in size, the annotation has several
            channels, labels are out of range, or values or colours are not listed; see [`named_errors`].
    """
    with named_errors(split, idx, name):
        example = split[idx]
        labels = _read_labels(example["annotation"], num_labels, do_reduce_labels, mask_meaning)
        image = read_pixels(example["image"]) if bands is None else read_bands(example["image"], bands)
        _check_size(image.shape[1:], labels.shape)
    labels = reduce_labels(labels) if do_reduce_labels else labels
    return image, labels if bands is None else ignore_missing(labels, image)


@contextmanager
def named_errors(split: datasets.Dataset, idx: int, name: str) -> Iterator[None]:
    """Turn whatever goes wrong while an example is read into an error that names it: "scenes train[17] (a.jpg): ...".

    Args:
        split: its columns `image` and `annotation` tell the names of the files, where they know them. If one of the
            files cannot be decoded, only that one is named.
        idx: the number of the example in the split.
        name: what the split is called.

    Raises:
        ValueError: there was an error.
    """
    with errors_of_example(f"{name}[{idx}]", lambda: _files(split, idx)):
        yield


@contextmanager
def errors_of_example(example: str, find_files: Callable[[], list[dict]]) -> Iterator[None]:
    """Turn whatever goes wrong into an error that names an example, and its files, see [`named_errors`].

    Args:
        example: what it is called.
        find_files: returns its files, undecoded; called where something has gone wrong.

    Raises:
        ValueError: there was an error.
    """
    try:
        yield
    # Pillow raises errors of any kind over a damaged file: OSError, SyntaxError, struct.error, its own for bombs.
    except Exception as error:
        files, problem = find_files(), ":"
        if not isinstance(error, ValueError):
            files = [file for file in files if not _can_be_decoded(file)] or files
            problem = " cannot be read:"
        names = ", ".join(file["path"] for file in files if file["path"] is not None)
        listed = f" ({names})" if names else ""
        hint = "" if isinstance(error, ValueError) else "".join({hint_at_bands(file["path"]) for file in files})
        raise ValueError(f"{example}{listed}{problem} {error or type(error).__name__}{hint}") from error


def digests_of_files(split: datasets.Dataset, name: str) -> list[str]:
    """Return a digest of each example's files, undecoded, in 32 characters: another wherever one of them is another.

    Args:
        split: has the columns `image` and `annotation` of the type `datasets.Image`, or what annotations are drawn of.
        name: what the split is called in errors, see [`named_errors`].

    Raises:
        ValueError: a file cannot be read.
    """
    digests = []
    for idx, files in enumerate(undecoded(split)):
        digest = hashlib.blake2b(digest_size=16)
        with named_errors(split, idx, name):
            for file in filter(None, files.values()):
                # Of the same length each, so that no byte can pass from one file to the other.
                digest.update(hashlib.blake2b(content_of(file)).digest())
        digests.append(digest.hexdigest())
    return digests


def content_of(file: dict | str) -> bytes:
    """Return the bytes of a file that is not decoded, {"bytes": ..., "path": ...}, or all that a mask is drawn by."""
    if isinstance(file, str):
        return content_of_annotation(file)
    if file["bytes"] is not None:
        return file["bytes"]
    with xopen(file["path"], "rb") as opened:
        return opened.read()


def undecoded(split: datasets.Dataset) -> datasets.Dataset:
    """Return the columns that hold files, as {"bytes": ..., "path": ...}, and annotations that are to be drawn."""
    kinds = {column: split.features.get(column) for column in ("image", "annotation")}
    columns = [column for column, kind in kinds.items() if isinstance(kind, (datasets.Image, datasets.Value))]
    split = split.with_format(None).select_columns(columns)
    for column in columns:
        if isinstance(kinds[column], datasets.Image):
            split = split.cast_column(column, datasets.Image(decode=False))
    return split


def _files(split: datasets.Dataset, idx: int) -> list[dict]:
    """The files of an example, undecoded, as far as the split has such."""
    if not isinstance(split, datasets.Dataset):
        return []
    try:
        return [file for file in undecoded(split)[idx].values() if isinstance(file, dict)]
    except Exception:  # what cannot be read at all has been reported by the first error
        return []


def _can_be_decoded(file: dict) -> bool:
    try:
        datasets.Image().decode_example(file)
    except Exception:  # of any kind, see `named_errors`
        return False
    return True


def _read_labels(
    mask: Image.Image, num_labels: int, do_reduce_labels: bool, meaning: MaskMeaning | None
) -> torch.Tensor:
    """The labels of an annotation, checked but not yet reduced: uint8 (height, width)."""
    labels = raw_labels(mask, meaning)
    check_labels(labels, num_labels, do_reduce_labels)
    return torch.from_numpy(labels.astype(np.uint8, copy=False))


def read_pixels(image: Image.Image) -> torch.Tensor:
    """Return a picture, or a part of one, as uint8 (3, height, width) in RGB."""
    check_picture(image, "picture")
    check_is_rgb(image)
    return _PROCESSOR.process_image(image, do_convert_rgb=True)


def _check_size(size: tuple[int, int], labels_size: tuple[int, int]) -> None:
    """Raise a ValueError where picture and labels, both (height, width), differ."""
    if tuple(size) != tuple(labels_size):
        raise ValueError(
            f"the picture has {size[1]}x{size[0]} pixels and its annotation {labels_size[1]}x{labels_size[0]}."
        )


class TrainSamples(torch.utils.data.Dataset):
    """The samples of a whole training run, numbered from 0 in the order in which they are trained on.

    Sample `i` depends on `seed` and `i` alone: every epoch goes through all pictures in an order of its own, unless
    they are drawn by their classes, and each sample has its own random numbers for the augmentation. A run resumes by
    going on with the next number, and the numbers may be dealt out to any workers and processes.

    Args:
        split: a dataset with the columns `image` and `annotation`.
        augmentation: applied to every sample.
        num_labels: see `read_example`.
        do_reduce_labels: see `read_example`.
        seed: of the order and the augmentation, 0 or above.
        num_samples: the length of the run.
        name: what the split is called in errors.
        jpeg_draft: whether JPEG pictures that are at least halved by the resize that was drawn are decoded at 1/2,
            1/4 or 1/8 of their size, never smaller than they are resized to. Decoding and resizing get faster. As the
            decoder averages where the resize would leave pixels out, such pictures come out a little smoother, as
            with an antialiased reduction. Crops, labels and all other pictures stay the same. A split with a format
            or transform of its own decodes its pictures itself, and they stay as they are.
        mask_meaning: see `read_example`.
        rare_class_sampling: draws the picture of each sample, and the label that its crop shows.
        bands: see `read_example`.
    """

    def __init__(
        self,
        split: datasets.Dataset,
        augmentation: TrainAugmentation,
        *,
        num_labels: int,
        do_reduce_labels: bool,
        seed: int,
        num_samples: int,
        name: str = "train",
        jpeg_draft: bool = False,
        mask_meaning: MaskMeaning | None = None,
        rare_class_sampling: RareClassSampling | None = None,
        bands: tuple[int, ...] | None = None,
    ):
        if len(split) == 0:
            raise ValueError(f"{name} holds no pictures to train on.")
        self.bands = bands
        self.jpeg_draft = jpeg_draft and split.features["image"] == datasets.Image() and split.format["type"] is None
        self.split = split.cast_column("image", datasets.Image(decode=False)) if self.jpeg_draft else split
        self.augmentation = augmentation
        self.num_labels = num_labels
        self.do_reduce_labels = do_reduce_labels
        self.seed = seed
        self.num_samples = num_samples
        self.name = name
        self.mask_meaning = mask_meaning
        self.rare_class_sampling = rare_class_sampling

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return `pixel_values` uint8 (3, crop, crop) and `labels` int64 (crop, crop), 255 where ignored.

        With `bands`, `pixel_values` are float32 (bands, crop, crop), NaN where there are no data.

        Raises:
            ValueError: the example cannot be read, see `read_example`.
        """
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of a run of {self.num_samples}")
        picture, shown_label = self._choose_picture(index)
        with named_errors(self.split, picture, self.name):
            return make_sample(
                self.split[picture],
                self.augmentation,
                keyed_generator(self.seed, 1, index),
                num_labels=self.num_labels,
                do_reduce_labels=self.do_reduce_labels,
                mask_meaning=self.mask_meaning,
                jpeg_draft=self.jpeg_draft,
                shown_label=shown_label,
                bands=self.bands,
            )

    def _choose_picture(self, index: int) -> tuple[int, int | None]:
        """The number of a sample's picture, and the label that its crop is to show, if any."""
        if self.rare_class_sampling is not None:
            return self.rare_class_sampling.draw(keyed_generator(self.seed, 2, index))
        epoch, position = divmod(index, len(self.split))
        order = torch.randperm(len(self.split), generator=keyed_generator(self.seed, 0, epoch))
        return int(order[position]), None


def make_sample(
    example: dict,
    augmentation: TrainAugmentation,
    generator: torch.Generator,
    *,
    num_labels: int,
    do_reduce_labels: bool,
    mask_meaning: MaskMeaning | None = None,
    jpeg_draft: bool = False,
    shown_label: int | None = None,
    bands: tuple[int, ...] | None = None,
) -> dict[str, torch.Tensor]:
    """Return a training sample, drawn from an example, as [`TrainSamples`] does.

    Args:
        example: `annotation` is decoded to a PIL image, and so is `image`, which may also be {"bytes", "path"}.
        augmentation: says what is drawn.
        generator: its random numbers.
        num_labels, do_reduce_labels, mask_meaning: see `read_example`.
        jpeg_draft: see [`TrainSamples`]; of an `image` that is not decoded.
        shown_label: that the crop is to show, if any.
        bands: see `read_example`; of an `image` that is not decoded.

    Returns:
        `pixel_values` uint8 (3, crop, crop) and `labels` int64 (crop, crop), 255 where ignored. With `bands`,
        `pixel_values` are float32 (bands, crop, crop), NaN where there are no data.

    Raises:
        Exception: of any kind, where the example cannot be read; [`errors_of_example`] names it.
    """
    labels = _read_labels(example["annotation"], num_labels, do_reduce_labels, mask_meaning)
    drawn = augmentation.draw(labels, generator, do_reduce_labels, shown_label)
    if bands is None:
        part, reduction = _read_part(example["image"], labels.shape, drawn, jpeg_draft)
    else:
        part, reduction = _read_bands_of_part(example["image"], labels.shape, drawn, bands), 1
    image, labels = augmentation.apply(drawn, part, labels.shape, reduction)
    return {"pixel_values": image, "labels": labels.long()}


def _read_part(
    image: Image.Image | dict, source_size: tuple[int, int], drawn: DrawnAugmentation, jpeg_draft: bool
) -> tuple[torch.Tensor, int]:
    """The part of a picture that a sample needs, see `resized_crop`, and how far the picture was reduced."""
    if isinstance(image, dict):
        image = _open_undecoded(image)
    check_picture(image, "picture")
    check_is_rgb(image)
    # Closes the file, if it is one.
    with image:
        _check_size(upright_size(image), source_size)
        reduction = _draft(image, drawn.size) if jpeg_draft else 1
        image.load()
        box = source_box(source_size, drawn.size, drawn.window, reduction)
        return read_pixels(upright(image).crop(box)), reduction


def _read_bands_of_part(
    image: dict, source_size: tuple[int, int], drawn: DrawnAugmentation, bands: tuple[int, ...]
) -> torch.Tensor:
    with open_bands(image, bands) as picture:
        _check_size(picture.size, source_size)
        left, top, right, bottom = source_box(source_size, drawn.size, drawn.window)
        return torch.from_numpy(picture.read(slice(top, bottom), slice(left, right)))


def _open_undecoded(value: dict) -> Image.Image:
    """What `datasets.Image(decode=False)` gives as a picture whose pixels are, where possible, not decoded yet."""
    if value["bytes"] is not None:
        return Image.open(io.BytesIO(value["bytes"]))
    if value["path"] is not None and os.path.isfile(value["path"]):
        return Image.open(value["path"])
    return datasets.Image().decode_example(value)


def _draft(image: Image.Image, size: tuple[int, int]) -> int:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8, the least that `size`, (height, width) upright, does not exceed.

    Returns:
        By what the picture's sides will be divided; 1 if it is no JPEG, or decoded already, or too small.
    """
    orientation = orientation_of(image)
    width, height = image.size
    least_height, least_width = size[::-1] if orientation > 4 else size
    for reduction in (8, 4, 2):
        # What is left over at the end of a side would be at the beginning once the picture is turned.
        divides = width % reduction == 0 and height % reduction == 0
        if height >= reduction * least_height and width >= reduction * least_width and (divides or orientation == 1):
            drafted = image.draft(None, (width // reduction, height // reduction)) is not None
            return reduction if drafted else 1
    return 1


def keyed_generator(*key: int) -> torch.Generator:
    """Return a generator of its own for every key; keys that are alike give unrelated random numbers."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))
