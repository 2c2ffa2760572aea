# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What some hundred masks hold, looked at before a training that could learn or measure nothing by them.

This is the short form of an inspection, which looks at all files; `findings.py` decides for both what is wrong.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from functools import partial

import datasets
import numpy as np

from .augmentation import IGNORE_INDEX
from .findings import ERROR, SPLITS, label_findings, label_shares
from .inspection import SplitSummary
from .loading import SegmentationDataset
from .masks import MaskMeaning, check_labels, raw_labels
from .progress import reading_progress
from .samples import named_errors
from .streaming import StreamedSplit

# Enough to meet all labels but the rare ones, and read in a second or two.
NUM_MASKS = 200
MAX_THREADS = 8
# Of a table of labels; names that are longer are cut.
MAX_ROWS = 20
MAX_NAME = 32


@dataclass(frozen=True)
class MaskContents:
    """What the masks hold that were looked at.

    Attributes:
        pixels: number of pixels by raw value, the values in ascending order.
        num_seen: number of masks that were looked at.
        num_masks: number of masks in the split; None where it is not known, of a stream.
        masks: number of masks by raw value.
    """

    pixels: dict[int, int]
    num_seen: int
    num_masks: int | None
    masks: dict[int, int] = field(default_factory=dict)

    def summary(self, do_reduce_labels: bool) -> SplitSummary:
        """Return what is known of pixels and masks by label, after reduction."""
        label_pixels = Counter(reduced_counts(self.pixels, do_reduce_labels))
        return SplitSummary(
            num_examples=self.num_seen,
            label_pixels=label_pixels,
            label_pictures=Counter(reduced_counts(self.masks, do_reduce_labels)),
            ignored_pixels=sum(self.pixels.values()) - sum(label_pixels.values()),
        )

    def labels(self, do_reduce_labels: bool) -> list[int]:
        """Return the labels that occur, after reduction and without the ignored one, in ascending order."""
        return sorted(self.summary(do_reduce_labels).label_pixels)

    def describe_size(self) -> str:
        """Return how many masks were looked at, and of how many, in words."""
        return f"the first {self.num_seen}" if self.num_masks is None else f"{self.num_seen} of {self.num_masks}"

    def describe(self) -> str:
        """Return the raw values with their shares of the pixels, such as "0 (93.1 %) and 255 (6.9 %)"."""
        total = sum(self.pixels.values())
        shares = [f"{value} ({_percent(count / total)})" for value, count in self.pixels.items()]
        return " and ".join(filter(None, (", ".join(shares[:-1]), shares[-1])))


def check_train_labels(dataset: SegmentationDataset) -> MaskContents:
    """Look at training masks, and return what they hold.

    Raises:
        ValueError: a mask cannot be read, or there is nothing to learn: fewer than two labels occur in all the masks.
            The message says what they hold, and what would do.
    """
    return _check_labels(dataset, "train", "training", "a model would learn nothing")


def check_validation_labels(dataset: SegmentationDataset) -> MaskContents:
    """Look at validation masks, and return what they hold.

    Raises:
        ValueError: a mask cannot be read, or there is nothing to evaluate: no label occurs in any of the masks. The
            message says what they hold, and what would do.
    """
    return _check_labels(dataset, "validation", "validation", "a model could not be evaluated")


def _check_labels(dataset: SegmentationDataset, split: str, kind: str, consequence: str) -> MaskContents:
    contents = look_at_masks(dataset, split)
    summary = contents.summary(dataset.do_reduce_labels)
    found = label_findings(dataset.id2label, {split: summary}, dataset.do_reduce_labels)
    if any(finding.severity == ERROR for finding in found):
        raise ValueError(_describe_lack(dataset, contents, sorted(summary.label_pixels), kind, consequence))
    return contents


def describe_labels(dataset: SegmentationDataset, contents: Mapping[str, MaskContents]) -> str:
    """Return a table of the labels, those with most pixels first, and what there is to know of them before a training.

    Of more than `MAX_ROWS` labels those between the most frequent and the rarest are left out.

    Args:
        dataset: what was looked at.
        contents: what [`check_train_labels`] and [`check_validation_labels`] returned, by split.
    """
    summaries = {split: contents[split].summary(dataset.do_reduce_labels) for split in SPLITS}
    is_sample = any(seen.num_seen != seen.num_masks for seen in contents.values())
    seen = " and ".join(f"{contents[split].describe_size()} {split} masks" for split in SPLITS)
    ignored = " and ".join(_percent(summaries[split].ignored_share or 0) for split in SPLITS)
    lines = [
        f"Labels of dataset {dataset.name!r}, with their shares of the labelled pixels and their numbers of masks:",
        *_label_rows(dataset, summaries),
        f"Looked at {seen}, of whose pixels {ignored} are not labelled",
    ]
    if is_sample and not isinstance(dataset.splits["train"], StreamedSplit):
        lines[-1] += "; python examples/inspect_dataset.py, with the same arguments about data, looks at all"
    for finding in label_findings(dataset.id2label, summaries, dataset.do_reduce_labels, is_sample):
        lines.append(f"{finding.severity}: {finding.text}")
        if finding.arguments:
            lines.append(f"    add {finding.arguments}")
    return "\n".join(lines)


def _label_rows(dataset: SegmentationDataset, summaries: Mapping[str, SplitSummary]) -> list[str]:
    shares = {split: label_shares(summaries[split], dataset.num_labels) for split in SPLITS}
    labels = sorted(dataset.id2label, key=lambda label: (*(-shares[split][label] for split in SPLITS), label))
    names = {label: " ".join(name.split()) for label, name in dataset.id2label.items()}  # in one line
    names = {label: name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…" for label, name in names.items()}
    width = max(map(len, names.values()))
    rows = [f"{'':{width + 4}}" + "".join(f"{split:>18}" for split in SPLITS)]
    for label in labels:
        cells = [
            f"{_percent(shares[split][label], 2):>11}{summaries[split].label_pictures[label]:>7}" for split in SPLITS
        ]
        rows.append(f"{label:>3} {names[label]:<{width}}{''.join(cells)}")
    half = MAX_ROWS // 2
    if len(labels) > MAX_ROWS:
        rows[1 + half : -half] = [f"    … {len(labels) - MAX_ROWS} labels between these are left out"]
    return rows


def look_at_masks(dataset: SegmentationDataset, split: str = "train", num_masks: int = NUM_MASKS) -> MaskContents:
    """Count the raw values in a sample of a split's masks, which lie all over it and are the same every time.

    If no two labels occur among them, the other masks are looked at too, until there are two. Of a stream they are
    the first ones.

    Args:
        dataset: its masks are decoded, not its pictures.
        split: "train" or "validation".
        num_masks: size of the sample.

    Raises:
        ValueError: a mask cannot be read, or holds labels out of range; the message names it.
    """
    masks, name = dataset.splits[split], f"{dataset.name} {split}"
    if isinstance(masks, StreamedSplit):
        total, counted = masks.num_rows, _count_streamed(masks, dataset.mask_meaning)
    else:
        total, order = len(masks), np.random.default_rng(0).permutation(len(masks)).tolist()
        counted = (
            (partial(named_errors, masks, idx, name), counts)
            for idx, counts in count_raw_values(masks, order, name, dataset.mask_meaning)
        )
    contents = MaskContents({}, 0, total)
    progress = reading_progress(total=min(num_masks, total or num_masks), desc="Looking at masks", unit="mask")
    with progress, closing(counted):
        for errors_of_mask, counts in counted:
            with errors_of_mask():
                check_labels(np.array([*counts]), dataset.num_labels, dataset.do_reduce_labels)
            pixels = Counter(contents.pixels) + Counter(counts)
            in_masks = Counter(contents.masks) + Counter(dict.fromkeys(counts, 1))
            contents = MaskContents(dict(sorted(pixels.items())), contents.num_seen + 1, total, dict(in_masks))
            progress.update()
            if contents.num_seen >= num_masks:
                if len(contents.labels(dataset.do_reduce_labels)) > 1:
                    break
                progress.total = total
        else:
            return replace(contents, num_masks=contents.num_seen)
    return contents


def _count_streamed(
    split: StreamedSplit, mask_meaning: MaskMeaning | None
) -> Iterator[tuple[Callable[[], AbstractContextManager], dict[int, int]]]:
    """What `count_raw_values` yields, of one mask of a stream after the other, with the context that names it."""
    for shard in range(split.num_shards):
        for row, files in enumerate(split.read(shard)):
            errors_of_mask = partial(split.errors_of, shard, row, {"annotation": files["annotation"]})
            with errors_of_mask():
                labels = raw_labels(datasets.Image().decode_example(files["annotation"]), mask_meaning)
            yield errors_of_mask, _count_values(labels)


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
        return idx, _count_values(labels)

    num_threads = min(MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_threads) as pool:
        # All at once would wait in the queue for nothing where the caller soon has seen enough.
        for start in range(0, len(indices), 4 * num_threads):
            yield from pool.map(count, indices[start : start + 4 * num_threads])


def _count_values(labels: np.ndarray) -> dict[int, int]:
    if labels.dtype == np.uint8:
        counts = np.bincount(labels.ravel())
        values = counts.nonzero()[0]
        counts = counts[values]
    else:
        values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def reduced_counts(counts: Mapping[int, int], do_reduce_labels: bool) -> dict[int, int]:
    """Return what was counted by raw value by label: after reduction, and without the ignored one."""
    first = int(do_reduce_labels)
    return {value - first: count for value, count in counts.items() if first <= value != IGNORE_INDEX}


def _percent(share: float, digits: int = 1) -> str:
    """A share in words, "0 %" only where there is nothing."""
    least = 10.0**-digits
    return f"{100 * share:.{digits}f} %" if 100 * share >= least / 2 else f"<{least:g} %" if share else "0 %"


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
