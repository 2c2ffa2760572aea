# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Mean intersection over union that streams: every batch is folded into a confusion matrix and let go."""

from collections.abc import Iterable, Mapping

import datasets
import evaluate
import numpy as np
import torch

# What is counted at a time on the CPU: larger temporaries leave the cache, and cost more than the counting.
PIXELS_AT_ONCE = 2**16

_DESCRIPTION = """
Mean intersection over union of semantic segmentation. Each batch is folded into an integer confusion matrix, so
memory does not grow with the number of images and nothing is written to disk.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: list of integer maps (height, width), or one array or tensor (batch, height, width), of class ids.
    references: the true maps, of the same shapes; `ignore_index` marks pixels that do not count.
    num_labels (int): number of classes, ids 0..num_labels - 1; `add` and `add_batch` need it given to `evaluate.load`.
    ignore_index (int, 255 by default): id in the references of pixels that do not count.
    nan_to_num (float, optional): replaces NaN in the results, after the means have been taken over the other classes.
    label_map (dict, optional): replaces ids in the references, all at once.
    reduce_labels (bool, False by default): turns raw reference ids, 0 meaning "other", into 255 and k - 1. Leave it
        out for labels that are reduced already, as VanImageProcessor and van_hf.data give them.

Returns a dict of fractions; a class that occurs in neither maps is NaN and left out of the means:
    mean_iou (float), mean_accuracy (float), overall_accuracy (float),
    per_category_iou, per_category_accuracy (float64 arrays of num_labels).

Example:
    >>> metric = evaluate.load("van_hf/metrics/mean_iou", num_labels=2, ignore_index=255)
    >>> metric.add_batch(predictions=[[[0, 1], [1, 1]]], references=[[[0, 1], [0, 255]]])
    >>> metric.compute()["mean_iou"]
    0.5
"""


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
    if predictions.shape != references.shape:
        raise ValueError(
            f"predictions have shape {tuple(predictions.shape)} and references {tuple(references.shape)};"
            " they must be the same"
        )
    for name, ids in {"predictions": predictions, "references": references}.items():
        if ids.is_floating_point() or ids.is_complex():
            raise ValueError(f"{name} have dtype {ids.dtype}; they must be class ids, as argmax gives them")
    predictions, references = predictions.flatten(), references.flatten().to(predictions.device)
    num_pixels = PIXELS_AT_ONCE if predictions.device.type == "cpu" else max(len(predictions), 1)
    counts = torch.zeros(num_labels**2 + 1, dtype=torch.int64, device=predictions.device)
    for predicted, true in zip(predictions.split(num_pixels), references.split(num_pixels), strict=True):
        counts += _count_pairs(predicted.to(torch.int64), true.to(torch.int64), num_labels, ignore_index)
    return counts[1:].view(num_labels, num_labels)


def _count_pairs(
    predictions: torch.Tensor, references: torch.Tensor, num_labels: int, ignore_index: int
) -> torch.Tensor:
    """Counts int64 (num_labels ** 2 + 1,): of ignored pixels, then of each pair of reference and prediction."""
    counted = references != ignore_index
    references = references * counted
    _check_ids("predictions", predictions, counted, num_labels)
    _check_ids("references", references, counted, num_labels)
    # Multiplying is several times as fast as masking.
    pairs = references.mul_(num_labels).add_(predictions).add_(1).mul_(counted)
    return torch.bincount(pairs, minlength=num_labels**2 + 1)


def _check_ids(name: str, ids: torch.Tensor, counted: torch.Tensor, num_labels: int) -> None:
    if ids.numel() == 0:
        return
    low, high = torch.stack(ids.aminmax()).tolist()
    if low >= 0 and high < num_labels:
        return
    found = ids[counted & ((ids < 0) | (ids >= num_labels))].unique().tolist()
    if found:
        listed = ", ".join(map(str, found[:10])) + (", ..." if len(found) > 10 else "")
        raise ValueError(
            f"{name} hold ids out of range: {listed}; with num_labels={num_labels} they must be 0..{num_labels - 1}"
            + (" or ignore_index" if name == "references" else "")
        )


def scores_from_confusion_matrix(matrix: torch.Tensor, nan_to_num: float | None = None) -> dict:
    """Mean IoU and its companions from int64 counts (num_labels, num_labels), rows references, columns predictions.

    Args:
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
        self._matrix = None

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
        """Counts so far, int64 (num_labels, num_labels), rows references, columns predictions; a copy.

        Raises:
            ValueError: when nothing was added and num_labels is not known.
        """
        if self._matrix is None:
            return self._zeros(self._settings["num_labels"])
        return self._matrix.clone()

    def add(self, *, prediction, reference) -> None:
        """Fold in one map of class ids (height, width) and its reference."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions, references) -> None:
        """Fold in a batch: lists of maps (height, width) of any sizes, or arrays or tensors (batch, height, width).

        Raises:
            ValueError: for maps that do not match or hold ids out of range; nothing of the batch is counted then.
        """
        self._matrix = self._folded(predictions, references, self._settings)

    def compute(self, *, predictions=None, references=None, **kwargs) -> dict:
        """Results of all that was added, and of `predictions` and `references`; begins anew afterwards.

        Raises:
            ValueError: when nothing was added, or a setting differs from the one that earlier batches were added with.
        """
        nan_to_num = kwargs.pop("nan_to_num", None)
        unknown = kwargs.keys() - self._settings.keys()
        if unknown:
            raise ValueError(f"unknown arguments {sorted(unknown)}; there are {[*self._settings, 'nan_to_num']}")
        settings = self._settings | {name: value for name, value in kwargs.items() if value is not None}
        if self._matrix is not None and settings != self._settings:
            raise ValueError(f"compute got {kwargs}, but batches were added with {self._settings}")
        matrix = self._matrix
        if predictions is not None or references is not None:
            matrix = self._folded(predictions, references, settings)
        if matrix is None:
            raise ValueError("nothing to compute: call add or add_batch before, or give predictions and references")
        self._matrix = None
        return scores_from_confusion_matrix(matrix, self._nan_to_num if nan_to_num is None else nan_to_num)

    def _zeros(self, num_labels: int | None) -> torch.Tensor:
        if not num_labels:
            raise ValueError(
                "num_labels is not known yet: give it when the metric is made,"
                " as in evaluate.load(path, num_labels=150, ignore_index=255)"
            )
        return torch.zeros(num_labels, num_labels, dtype=torch.int64)

    def _folded(self, predictions, references, settings: dict) -> torch.Tensor:
        """The matrix so far plus the batch's; `self` is left as it was."""
        matrix = self._zeros(settings["num_labels"]) if self._matrix is None else self._matrix
        if predictions is None or references is None or len(predictions) != len(references):
            found = [None if maps is None else len(maps) for maps in (predictions, references)]
            raise ValueError(f"found {found[0]} predictions and {found[1]} references; each map needs its reference")
        for index, (prediction, reference) in enumerate(_pairs(predictions, references)):
            reference = _mapped(reference, settings["label_map"], settings["reduce_labels"])
            try:
                counts = confusion_matrix(prediction, reference, settings["num_labels"], settings["ignore_index"])
            except ValueError as error:
                raise ValueError(f"map {index} of the batch: {error}") from error
            matrix = counts + matrix.to(counts.device)
        return matrix


def _pairs(predictions, references) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    for prediction, reference in zip(predictions, references, strict=True):
        yield tuple(
            ids if isinstance(ids, torch.Tensor) else torch.from_numpy(np.array(ids))
            for ids in (prediction, reference)
        )


def _mapped(reference: torch.Tensor, label_map: Mapping[int, int] | None, reduce_labels: bool) -> torch.Tensor:
    if label_map or reduce_labels:
        reference = reference.to(torch.int64)
    if label_map:
        original, reference = reference, reference.clone()
        for old_id, new_id in label_map.items():
            reference[original == old_id] = new_id
    if reduce_labels:
        from van_hf.model.image_processing_van import reduce_labels as reduced

        reference = reduced(reference)
    return reference
