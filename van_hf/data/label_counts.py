# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""How often each label occurs in all the training masks, and where."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from .label_check import count_raw_values, reduced_counts
from .loading import SegmentationDataset
from .masks import check_labels
from .progress import reading_progress
from .samples import named_errors


@dataclass(frozen=True)
class LabelCounts:
    """How often each label occurs, after reduction and without the ignored one.

    Attributes:
        pixels: number of pixels of each label, int64 (num_labels,).
        pixels_around: number of labelled pixels of those pictures in which each label occurs, int64 (num_labels,).
        pictures: for each label the numbers of the pictures in which it occurs, int64, ascending.
    """

    pixels: np.ndarray
    pixels_around: np.ndarray
    pictures: tuple[np.ndarray, ...]


def count_labels(dataset: SegmentationDataset) -> LabelCounts:
    """Count the labels of all training masks; their pictures are not decoded.

    Raises:
        ValueError: a mask cannot be read, or holds labels out of range; the message names it.
    """
    masks, name = dataset.splits["train"], f"{dataset.name} train"
    pixels, pixels_around = np.zeros((2, dataset.num_labels), dtype=np.int64)
    pictures = [array("q") for _ in dataset.id2label]
    counted = count_raw_values(masks, range(len(masks)), name, dataset.mask_meaning)
    for idx, counts in reading_progress(counted, total=len(masks), desc="Counting labels", unit="mask"):
        with named_errors(masks, idx, name):
            check_labels(np.array([*counts]), dataset.num_labels, dataset.do_reduce_labels)
        counts = reduced_counts(counts, dataset.do_reduce_labels)
        present = list(counts)
        pixels[present] += np.array(list(counts.values()), dtype=np.int64)
        pixels_around[present] += sum(counts.values())
        for label in present:
            pictures[label].append(idx)
    return LabelCounts(pixels, pixels_around, tuple(np.array(numbers, dtype=np.int64) for numbers in pictures))
