# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Mean intersection over union that streams: of every batch it keeps how often each pair of ids occurred."""

from collections.abc import Mapping
from typing import NamedTuple

import datasets
import evaluate
import numpy as np
import torch

# What is counted at a time on the CPU: larger temporaries leave the cache, and cost more than the counting.
PIXELS_AT_ONCE = 2**16
# Ids within a span of this are counted as they are, others only after they have been sorted.
MAX_SPAN = 2**12
# Spans begin and end at multiples of this: most maps then have the same one, and their counts are quick to add.
SPAN_STEP = 2**6
# Predictions beyond are counted as this: no label is as large, and rubbish at ignored pixels must not take memory.
MAX_PREDICTION = 2**16
# Of a table of counts, which is 256 MiB then: enough for 5,000 labels, and too few for maps that hold no labels.
MAX_CELLS = 2**25

_DESCRIPTION = """
Mean intersection over union of semantic segmentation. Each batch is folded into a table of how many pixels each pair
of ids has, so memory does not grow with the number of images and nothing is written to disk.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: list of integer maps (height, width), or one array or tensor (batch, height, width), of class ids.
    references: the true maps, of the same shapes; `ignore_index` marks pixels that do not count.

The settings, given to `compute` or, for all calls of it, to `evaluate.load`:
    num_labels (int): number of classes, ids 0..num_labels - 1.
    ignore_index (int, 255 by default): id in the references of pixels that do not count, whatever is predicted there.
    nan_to_num (float, optional): replaces NaN in the results, after the means have been taken over the other classes.
    label_map (dict, optional): replaces ids in the references, all at once.
    reduce_labels (bool, False by default): turns raw reference ids, 0 meaning "other", into 255 and k - 1, after
        `label_map`. Leave it out for labels that are reduced already, as VanImageProcessor and van_hf.data give them.

Returns a dict of fractions; a class that occurs in neither maps is NaN and left out of the means:
    mean_iou (float), mean_accuracy (float), overall_accuracy (float),
    per_category_iou, per_category_accuracy (float64 arrays of num_labels).

Example:
    >>> metric = evaluate.load("van_hf/metrics/mean_iou")
    >>> metric.add_batch(predictions=[[[0, 1], [1, 1]]], references=[[[0, 1], [0, 255]]])
    >>> metric.compute(num_labels=2, ignore_index=255)["mean_iou"]
    0.5
"""


class _PairCounts(NamedTuple):
    """How many pixels each pair of ids has, before any setting of the metric is applied; int64, on the CPU.

    Attributes:
        reference_ids: ascending ids (num_references,); they hold all that occur, and may hold more.
        prediction_ids: the same of the predictions (num_predictions,).
        counts: (num_references, num_predictions).
    """

    reference_ids: torch.Tensor
    prediction_ids: torch.Tensor
    counts: torch.Tensor


_NO_COUNTS = _PairCounts(*(torch.zeros(shape, dtype=torch.int64) for shape in (0, 0, (0, 0))))


def _count_pairs(predictions: torch.Tensor, references: torch.Tensor) -> _PairCounts:
    """Count the pairs of ids of integer tensors of the same shape, on any device.

    Raises:
        ValueError: for shapes that differ, dtypes that are not integers, and more ids than labels can have.
    """
    if predictions.shape != references.shape:
        raise ValueError(
            f"predictions have shape {tuple(predictions.shape)} and references {tuple(references.shape)};"
            " they must be the same"
        )
    for name, ids in {"predictions": predictions, "references": references}.items():
        if ids.is_floating_point() or ids.is_complex():
            raise ValueError(f"{name} have dtype {ids.dtype}; they must be class ids, as argmax gives them")
    device = predictions.device
    prediction_ids, columns, first_column = _numbered(predictions.flatten(), MAX_PREDICTION)
    reference_ids, rows, first_row = _numbered(references.flatten().to(device))
    _check_size(reference_ids, prediction_ids)
    num_columns, num_cells = len(prediction_ids), len(reference_ids) * len(prediction_ids)
    num_pixels = max(PIXELS_AT_ONCE, num_cells) if device.type == "cpu" else max(len(rows), 1)
    counts = torch.zeros(num_cells, dtype=torch.int64, device=device)
    for row, column in zip(rows.split(num_pixels), columns.split(num_pixels), strict=True):
        cells = torch.add(column.to(torch.int64), row.to(torch.int64), alpha=num_columns)
        cells -= first_row * num_columns + first_column
        counts += torch.bincount(cells, minlength=num_cells)
    return _PairCounts(reference_ids, prediction_ids, counts.view(-1, num_columns).cpu())


def _numbered(ids: torch.Tensor, largest: int | None = None) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return (distinct, places, first): ascending int64 ids on the CPU, so that ids are distinct[places - first]."""
    if ids.dtype in (torch.uint16, torch.uint32, torch.uint64):
        ids = ids.to(torch.int64)  # torch finds no extremes of these
    low, high = torch.stack(ids.aminmax()).tolist() if ids.numel() else (0, 0)
    if largest is not None and max(-low, high) > largest:
        return _numbered(ids.clamp(-largest, largest))
    low, high = low // SPAN_STEP * SPAN_STEP, (high // SPAN_STEP + 1) * SPAN_STEP
    if high - low <= MAX_SPAN:
        return torch.arange(low, high), ids, low
    distinct, places = ids.unique(return_inverse=True)
    return distinct.to("cpu", torch.int64), places, 0


def _check_size(reference_ids: torch.Tensor, prediction_ids: torch.Tensor) -> None:
    if len(reference_ids) * len(prediction_ids) > MAX_CELLS:
        raise ValueError(
            f"references hold {len(reference_ids)} ids from {reference_ids[0]} to {reference_ids[-1]} and predictions"
            f" {len(prediction_ids)} from {prediction_ids[0]} to {prediction_ids[-1]}: too many for class ids"
        )


def _listed(ids: torch.Tensor) -> str:
    names = {MAX_PREDICTION: f"{MAX_PREDICTION} or more", -MAX_PREDICTION: f"-{MAX_PREDICTION} or less"}
    return ", ".join(str(names.get(id, id)) for id in ids[:10].tolist()) + (", ..." if len(ids) > 10 else "")


def _add_counts(first: _PairCounts, second: _PairCounts) -> _PairCounts:
    """Return the counts of two parts of the data together.

    Raises:
        ValueError: for more ids than labels can have.
    """
    if torch.equal(first.reference_ids, second.reference_ids) and torch.equal(
        first.prediction_ids, second.prediction_ids
    ):
        return first._replace(counts=first.counts + second.counts)
    reference_ids = torch.cat([first.reference_ids, second.reference_ids]).unique()
    prediction_ids = torch.cat([first.prediction_ids, second.prediction_ids]).unique()
    _check_size(reference_ids, prediction_ids)
    counts = torch.zeros(len(reference_ids), len(prediction_ids), dtype=torch.int64)
    for part in (first, second):
        rows = torch.searchsorted(reference_ids, part.reference_ids)
        columns = torch.searchsorted(prediction_ids, part.prediction_ids)
        _add_at(counts, rows, columns, part.counts)
    return _PairCounts(reference_ids, prediction_ids, counts)


def _add_at(matrix: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, counts: torch.Tensor) -> None:
    """Add counts[i, j] to matrix[rows[i], columns[j]], also where rows repeat."""
    cells = rows[:, None] * matrix.shape[1] + columns
    matrix.view(-1).index_add_(0, cells.flatten(), counts.flatten())


def _label_counts(
    pairs: _PairCounts,
    num_labels: int | None,
    ignore_index: int = 255,
    label_map: Mapping[int, int] | None = None,
    reduce_labels: bool = False,
) -> torch.Tensor:
    """Return the confusion matrix, int64 (num_labels, num_labels), that the metric's settings make of the counts.

    Raises:
        ValueError: when num_labels is missing, and for ids out of range at pixels that count.
    """
    if not num_labels:
        raise ValueError(
            "num_labels is not known: give it to compute, or when the metric is made, as in"
            " evaluate.load(path, num_labels=150)"
        )
    occurs = pairs.counts.sum(dim=1) > 0
    labels, counts = _mapped(pairs.reference_ids[occurs], label_map, reduce_labels), pairs.counts[occurs]
    counted = labels != ignore_index
    labels, counts = labels[counted], counts[counted]
    predicted = counts.sum(dim=0) > 0
    prediction_ids, counts = pairs.prediction_ids[predicted], counts[:, predicted]
    for name, ids in {"predictions": prediction_ids, "references": labels.unique()}.items():
        found = ids[(ids < 0) | (ids >= num_labels)]
        if len(found):
            raise ValueError(
                f"{name} hold ids out of range: {_listed(found)}; with num_labels={num_labels} they must be"
                f" 0..{num_labels - 1}" + (f" or ignore_index={ignore_index}" if name == "references" else "")
            )
    matrix = torch.zeros(num_labels, num_labels, dtype=torch.int64)
    _add_at(matrix, labels, prediction_ids, counts)
    return matrix


def _mapped(ids: torch.Tensor, label_map: Mapping[int, int] | None, reduce_labels: bool) -> torch.Tensor:
    if label_map:
        ids = torch.tensor([label_map.get(id, id) for id in ids.tolist()], dtype=torch.int64)
    if reduce_labels:
        beyond = ids[(ids < 0) | (ids > 255)]
        if len(beyond):
            raise ValueError(f"references hold ids {_listed(beyond)}; reduce_labels takes raw ids 0..255, 0 is other")
        ids = torch.where((ids == 0) | (ids == 255), 255, ids - 1)
    return ids


def confusion_matrix(
    predictions: torch.Tensor, references: torch.Tensor, num_labels: int, ignore_index: int = 255
) -> torch.Tensor:
    """Count pixels by reference (rows) and prediction (columns).

    Args:
        predictions: class ids 0..num_labels - 1, an integer tensor of any shape on any device.
        references: ids of the same shape; pixels of `ignore_index` do not count, whatever is predicted there.

    Returns:
        int64 (num_labels, num_labels) on the predictions' device. Matrices of parts of the data add up to the whole's.

    Raises:
        ValueError: for shapes that differ, dtypes that are not integers, and ids out of range at pixels that count.
    """
    return _label_counts(_count_pairs(predictions, references), num_labels, ignore_index).to(predictions.device)


def scores_from_confusion_matrix(matrix: torch.Tensor, nan_to_num: float | None = None) -> dict:
    """Return mean IoU and its companions.

    Args:
        matrix: int64 counts (num_labels, num_labels), rows references, columns predictions.
        nan_to_num: replaces NaN (a class that does not occur) in the results, after the means have been taken.

    Returns:
        `mean_iou`, `mean_accuracy`, `overall_accuracy` (floats), `per_category_iou`, `per_category_accuracy`
        (float64 arrays), all fractions.
    """
    matrix = matrix.cpu()
    correct, in_references, in_predictions = matrix.diagonal(), matrix.sum(dim=1), matrix.sum(dim=0)
    iou = correct.double() / (in_references + in_predictions - correct)
    accuracy = correct.double() / in_references
    scores = {
        "mean_iou": iou.nanmean(),
        "mean_accuracy": accuracy.nanmean(),
        "overall_accuracy": correct.sum().double() / matrix.sum(),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }
    if nan_to_num is not None:
        scores = {name: score.nan_to_num(nan=nan_to_num) for name, score in scores.items()}
    return {name: score.item() if score.ndim == 0 else score.numpy() for name, score in scores.items()}


class MeanIoU(evaluate.Metric):
    """`evaluate` module with the arguments and results of the Hub's `mean_iou`; see its `inputs_description`.

    The settings may be given here (through `evaluate.load`) or to `compute`, where they override these.
    In distributed evaluation each process has its own metric: sum the `confusion_matrix` of all of them and take
    `scores_from_confusion_matrix` of the sum.
    """

    def __init__(
        self,
        config_name: str | None = None,
        num_labels: int | None = None,
        ignore_index: int = 255,
        nan_to_num: float | None = None,
        label_map: Mapping[int, int] | None = None,
        reduce_labels: bool = False,
        **kwargs,
    ):
        if kwargs.get("num_process", 1) != 1:
            raise ValueError(
                f"num_process is {kwargs['num_process']}; this metric keeps no files for other processes to read."
                " Give each process its own, and sum their confusion_matrix"
            )
        super().__init__(config_name, **kwargs)
        self._settings = {
            "num_labels": num_labels,
            "ignore_index": ignore_index,
            "label_map": label_map,
            "reduce_labels": reduce_labels,
        }
        self._nan_to_num = nan_to_num
        self._counts = None

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _build_data_dir(self) -> str:
        # The parent makes this folder for its cache files, of which there are none.
        return self._data_dir_root

    @property
    def confusion_matrix(self) -> torch.Tensor:
        """Counts so far, int64 (num_labels, num_labels), rows references, columns predictions.

        Raises:
            ValueError: when num_labels was not given as the metric was made, and for ids out of range.
        """
        return _label_counts(_NO_COUNTS if self._counts is None else self._counts, **self._settings)

    def add(self, *, prediction=None, reference=None, predictions=None, references=None) -> None:
        """Count one map of class ids (height, width) and its reference; both have two names, as `evaluate` has it."""
        prediction = prediction if predictions is None else predictions
        reference = reference if references is None else references
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions, references) -> None:
        """Count a batch: lists of maps (height, width) of any sizes, or arrays or tensors (batch, height, width).

        Raises:
            ValueError: for maps that do not match or hold no integers; nothing of the batch is counted then.
        """
        self._counts = self._counts_with(predictions, references)

    def compute(self, *, predictions=None, references=None, **kwargs) -> dict:
        """Return the results of all that was added, and of `predictions` and `references`, and begin anew.

        Raises:
            ValueError: when nothing was added, num_labels is not known, a setting is unknown, or ids that count are
                out of range. What was added is kept then.
        """
        nan_to_num = kwargs.pop("nan_to_num", None)
        unknown = kwargs.keys() - self._settings.keys()
        if unknown:
            raise ValueError(f"unknown arguments {sorted(unknown)}; there are {[*self._settings, 'nan_to_num']}")
        settings = self._settings | {name: value for name, value in kwargs.items() if value is not None}
        counts = self._counts
        if predictions is not None or references is not None:
            counts = self._counts_with(predictions, references)
        if counts is None:
            raise ValueError("nothing to compute: call add or add_batch before, or give predictions and references")
        matrix = _label_counts(counts, **settings)
        self._counts = None
        return scores_from_confusion_matrix(matrix, self._nan_to_num if nan_to_num is None else nan_to_num)

    def _counts_with(self, predictions, references) -> _PairCounts:
        """Return the counts so far plus the batch's; `self` is left as it was."""
        if predictions is None or references is None or len(predictions) != len(references):
            found = [None if maps is None else len(maps) for maps in (predictions, references)]
            raise ValueError(f"found {found[0]} predictions and {found[1]} references; each map needs its reference")
        counts = _NO_COUNTS if self._counts is None else self._counts
        for index, maps in enumerate(zip(predictions, references, strict=True)):
            try:
                counts = _add_counts(counts, _count_pairs(*map(_as_tensor, maps)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"map {index} of the batch: {error}") from error
        return counts


def _as_tensor(ids) -> torch.Tensor:
    return ids if isinstance(ids, torch.Tensor) else torch.from_numpy(np.array(ids))
