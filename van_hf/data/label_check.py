# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What the masks of a dataset hold, looked at before a training that could learn or measure nothing by them."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import datasets
import numpy as np
from tqdm.auto import tqdm

from .augmentation import IGNORE_INDEX
from .loading import SegmentationDataset
from .masks import MaskMeaning, check_labels, raw_labels
from .samples import named_errors

logger = logging.getLogger(__name__)

# Enough to meet all labels but the rare ones, and read in a second or two.
NUM_MASKS = 200
MAX_THREADS = 8


@dataclass(frozen=True)
class MaskContents:
    """What the masks hold that were looked at.

    Attributes:
        pixels: number of pixels by raw value, the values in ascending order.
        num_seen: number of masks that were looked at.
        num_masks: number of masks in the split.
    """

    pixels: dict[int, int]
    num_seen: int
    num_masks: int

    def labels(self, do_reduce_labels: bool) -> list[int]:
        """Return the labels that occur, after reduction and without the ignored one, in ascending order."""
        first = int(do_reduce_labels)
        return [value - first for value in self.pixels if value != IGNORE_INDEX and value >= first]

    def describe(self) -> str:
        """Return the raw values with their shares of the pixels, such as "0 (93.1 %) and 255 (6.9 %)"."""
        total = sum(self.pixels.values())
        shares = [f"{value} ({_percent(count / total)})" for value, count in self.pixels.items()]
        return " and ".join(filter(None, (", ".join(shares[:-1]), shares[-1])))


def check_train_labels(dataset: SegmentationDataset) -> None:
    """Look at the training masks, and warn of labels that occur nowhere among them.

    Raises:
        ValueError: a mask cannot be read, or there is nothing to learn: fewer than two labels occur in all the masks.
            The message says what they hold, and what would do.
    """
    contents = look_at_masks(dataset)
    labels = contents.labels(dataset.do_reduce_labels)
    if len(labels) < 2:
        raise ValueError(_describe_lack(dataset, contents, labels, "training", "a model would learn nothing"))
    missing = [f"{label} {name!r}" for label, name in dataset.id2label.items() if label not in labels]
    if missing:
        seen = f"the {contents.num_seen} training masks looked at, of {contents.num_masks},"
        logger.warning(
            "dataset %r: %s lack %d of the %d labels: %s",
            dataset.name,
            seen if contents.num_seen < contents.num_masks else f"its {contents.num_masks} training masks",
            len(missing),
            dataset.num_labels,
            ", ".join(missing[:10]) + (", …" if len(missing) > 10 else ""),
        )


def check_validation_labels(dataset: SegmentationDataset) -> None:
    """Look at the validation masks.

    Raises:
        ValueError: a mask cannot be read, or there is nothing to evaluate: no label occurs in any of the masks. The
            message says what they hold, and what would do.
    """
    contents = look_at_masks(dataset, "validation")
    labels = contents.labels(dataset.do_reduce_labels)
    if not labels:
        raise ValueError(_describe_lack(dataset, contents, labels, "validation", "a model could not be evaluated"))


def look_at_masks(dataset: SegmentationDataset, split: str = "train", num_masks: int = NUM_MASKS) -> MaskContents:
    """Count the raw values in a sample of a split's masks, which lie all over it and are the same every time.

    If no two labels occur among them, the other masks are looked at too, until there are two.

    Args:
        dataset: its masks are decoded, not its pictures.
        split: "train" or "validation".
        num_masks: size of the sample.

    Raises:
        ValueError: a mask cannot be read, or holds labels out of range; the message names it.
    """
    masks, name = dataset.splits[split], f"{dataset.name} {split}"
    order = np.random.default_rng(0).permutation(len(masks)).tolist()
    contents = MaskContents({}, 0, len(masks))
    progress = tqdm(
        total=min(num_masks, len(masks)),
        desc="Looking at masks",
        unit="mask",
        delay=2,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        leave=False,
    )
    with progress, closing(count_raw_values(masks, order, name, dataset.mask_meaning)) as counted:
        for idx, counts in counted:
            with named_errors(masks, idx, name):
                check_labels(np.array([*counts]), dataset.num_labels, dataset.do_reduce_labels)
            pixels = Counter(contents.pixels) + Counter(counts)
            contents = MaskContents(dict(sorted(pixels.items())), contents.num_seen + 1, len(masks))
            progress.update()
            if contents.num_seen >= num_masks:
                if len(contents.labels(dataset.do_reduce_labels)) > 1:
                    break
                progress.total = len(masks)
    return contents


def count_raw_values(
    split: datasets.Dataset, indices: Sequence[int], name: str, mask_meaning: MaskMeaning | None = None
) -> Iterator[tuple[int, dict[int, int]]]:
    """Yield the number of pixels by raw value of one mask after the other; several are decoded at a time.

    Args:
        split: has the column `annotation`, decoded to PIL images.
        indices: the numbers of the masks in the split.
        name: what the split is called in errors, such as "scenes train".
        mask_meaning: how pixels become labels; by default the raw values are counted.

    Yields:
        The number of the mask, and {label before reduction: number of pixels}. They may be out of range.

    Raises:
        ValueError: a mask cannot be read; the message names it.
    """
    # A transform of the split's own may need the pictures too.
    masks = split.select_columns("annotation") if split.format["type"] is None else split

    def count(idx: int) -> tuple[int, dict[int, int]]:
        with named_errors(masks, idx, name):
            labels = raw_labels(masks[idx]["annotation"], mask_meaning)
        if labels.dtype == np.uint8:
            counts = np.bincount(labels.ravel())
            values = counts.nonzero()[0]
            counts = counts[values]
        else:
            values, counts = np.unique(labels, return_counts=True)
        return idx, dict(zip(values.tolist(), counts.tolist(), strict=True))

    num_threads = min(MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_threads) as pool:
        # All at once would wait in the queue for nothing where the caller soon has seen enough.
        for start in range(0, len(indices), 4 * num_threads):
            yield from pool.map(count, indices[start : start + 4 * num_threads])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "<0.1 %"


def _describe_lack(
    dataset: SegmentationDataset, contents: MaskContents, labels: list[int], kind: str, consequence: str
) -> str:
    """That the masks of a kind hold too few labels, in words, with the consequence, and what would do."""
    ignored = []
    if dataset.do_reduce_labels and 0 in contents.pixels:
        ignored.append("0 means 'other' and is ignored (do_reduce_labels=True)")
    if IGNORE_INDEX in contents.pixels:
        ignored.append("255 is ignored")
    found = f"only label is {labels[0]} {dataset.id2label[labels[0]]!r}" if labels else "masks hold no label at all"
    first = int(dataset.do_reduce_labels)
    order = f"{first}, {first + 1}, … in the order of the label names"
    advice = [f"Write masks of {order}, with 255 only where nothing is to be learned"]
    if not dataset.do_reduce_labels and contents.pixels.keys() == {0, IGNORE_INDEX}:
        advice.append("masks of 0 and 255 are read by mask_values {0: 0, 255: 1} (--mask_values 0=0 255=1)")
    if dataset.do_reduce_labels and 0 in contents.pixels:
        advice.append("if 0 is a label and not 'other', give do_reduce_labels=False (--no-do_reduce_labels)")
    if dataset.num_labels < 2:
        advice.append("name two labels at least, the background being one")
    return (
        f"dataset {dataset.name!r}: its {contents.num_masks} {kind} masks hold {contents.describe()}"
        f"{''.join(f', and {reason}' for reason in ignored)}: the {found}, and {consequence}. "
        f"{'; '.join(advice)}."
    )
