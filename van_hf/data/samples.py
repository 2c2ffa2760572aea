# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Examples as tensors, and the sequence of training samples."""

from __future__ import annotations

import datasets
import numpy as np
import torch
from PIL import ImageOps

from ..image_processing_van import VanImageProcessor, reduce_labels
from .augmentation import IGNORE_INDEX, TrainAugmentation

# Pictures are read as at inference: upright, any mode as RGB, transparent ones over white.
_PROCESSOR = VanImageProcessor()
# Modes in which a mask's pixels are label ids: one channel (mode P holds indices into its palette).
MASK_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")


def read_example(
    example: dict, *, num_labels: int, do_reduce_labels: bool, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """An example's picture and labels as tensors.

    Args:
        example: `image` and `annotation`, both PIL images. Each is turned as its EXIF orientation says, and the
            picture is read as `VanImageProcessor` reads it.
        num_labels: labels must be below it, or 255.
        do_reduce_labels: whether 0 in the annotation means "other", see `van_hf.image_processing_van.reduce_labels`.
        name: what the example is called in errors, such as "scenes train[17]".

    Returns:
        uint8 (3, height, width) in RGB and uint8 (height, width), 255 where ignored.

    Raises:
        ValueError: picture and annotation differ in size, the annotation has several channels, or labels are out of
            range.
    """
    mask = ImageOps.exif_transpose(example["annotation"])
    if mask.mode not in MASK_MODES:
        raise ValueError(
            f"{name}: the annotation has mode {mask.mode}; expected one channel of label ids (mode L, P, I, I;16 or "
            "1). Colours must be turned into label ids first."
        )
    try:
        image = _PROCESSOR.process_image(example["image"], do_convert_rgb=True)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    height, width = image.shape[1:]
    if (width, height) != mask.size:
        raise ValueError(
            f"{name}: the picture has {width}x{height} pixels and its annotation {mask.width}x{mask.height}."
        )
    labels = torch.from_numpy(np.array(mask, dtype=np.uint8 if mask.mode in ("1", "L", "P") else np.int64))
    first = int(do_reduce_labels)
    last = num_labels - 1 + first
    wrong = (labels != IGNORE_INDEX) & ((labels < 0) | (labels > last))
    if wrong.any():
        found = labels[wrong].unique().tolist()
        shown = ", ".join(map(str, found[:8])) + (", …" if len(found) > 8 else "")
        other = ", 0 is other" if do_reduce_labels else ""
        raise ValueError(
            f"{name}: the annotation holds the labels {shown}; with {num_labels} labels and "
            f"do_reduce_labels={do_reduce_labels} they go from {first} to {last}{other}, and 255 is ignored."
        )
    labels = labels.to(torch.uint8)
    return image, reduce_labels(labels) if do_reduce_labels else labels


class TrainSamples(torch.utils.data.Dataset):
    """The samples of a whole training run, numbered from 0 in the order in which they are trained on.

    Sample `i` depends on `seed` and `i` alone: every epoch goes through all pictures in an order of its own, and each
    sample has its own random numbers for the augmentation. A run resumes by going on with the next number, and the
    numbers may be dealt out to any workers and processes.

    Args:
        split: a dataset with the columns `image` and `annotation`.
        augmentation: applied to every sample.
        num_labels: see `read_example`.
        do_reduce_labels: see `read_example`.
        seed: of the order and the augmentation, 0 or above.
        num_samples: the length of the run.
        name: what the split is called in errors.
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
    ):
        if len(split) == 0:
            raise ValueError(f"{name} holds no pictures to train on.")
        self.split = split
        self.augmentation = augmentation
        self.num_labels = num_labels
        self.do_reduce_labels = do_reduce_labels
        self.seed = seed
        self.num_samples = num_samples
        self.name = name

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`pixel_values` uint8 (3, crop, crop) and `labels` int64 (crop, crop), 255 where ignored."""
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of a run of {self.num_samples}")
        epoch, position = divmod(index, len(self.split))
        order = torch.randperm(len(self.split), generator=_generator(self.seed, 0, epoch))
        picture = int(order[position])
        image, labels = read_example(
            self.split[picture],
            num_labels=self.num_labels,
            do_reduce_labels=self.do_reduce_labels,
            name=f"{self.name}[{picture}]",
        )
        image, labels = self.augmentation(image, labels, _generator(self.seed, 1, index))
        return {"pixel_values": image, "labels": labels.long()}


def _generator(*key: int) -> torch.Generator:
    """A generator of its own for every key; keys that are alike give unrelated random numbers."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))
