# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The streaming mean IoU against the original metric's figures, and what it refuses."""

import json
import os
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

import van_hf.metrics
from van_hf.metrics import MeanIoU, confusion_matrix, scores_from_confusion_matrix
from van_hf.metrics.mean_iou.mean_iou import PIXELS_AT_ONCE

MODULE_DIR = Path(van_hf.metrics.__file__).parent / "mean_iou"
SCORES = ["mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy"]


@pytest.fixture(scope="session")
def golden(fixtures_dir):
    maps = np.load(fixtures_dir / "mean_iou_cases.npz")
    cases = json.loads((fixtures_dir / "mean_iou_cases.json").read_text())
    return [(maps[f"predictions_{i}"], maps[f"references_{i}"], case) for i, case in enumerate(cases)]


def assert_scores(found, expected):
    for name in SCORES:
        np.testing.assert_allclose(
            found[name], np.array(expected[name], dtype=float), rtol=0, atol=1e-12, err_msg=name
        )


@pytest.mark.parametrize("index", range(4))
def test_equals_the_original_metric(golden, index):
    predictions, references, case = golden[index]
    settings = {name: case[name] for name in ("num_labels", "ignore_index", "reduce_labels")}
    metric = MeanIoU(**settings)
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert_scores(metric.compute(), case)
    assert_scores(MeanIoU().compute(predictions=predictions, references=references, **settings), case)


def test_evaluate_loads_the_folder_and_writes_no_predictions(golden, tmp_path):
    predictions, references, case = golden[0]
    metric = evaluate.load(str(MODULE_DIR), num_labels=5, ignore_index=255, cache_dir=str(tmp_path))
    metric.add_batch(predictions=predictions, references=references)
    assert not os.listdir(tmp_path)
    assert_scores(metric.compute(), case)
    assert not os.listdir(tmp_path)


def test_counts_by_reference_and_prediction():
    predictions = torch.tensor([[0, 1, 2], [2, 2, 7]])
    references = torch.tensor([[0, 0, 2], [1, 2, 255]], dtype=torch.uint8)
    matrix = confusion_matrix(predictions, references, num_labels=3)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 2]]


def test_batches_of_unequal_sizes_of_any_type_add_up_and_compute_begins_anew():
    generator = torch.Generator().manual_seed(0)
    predictions = [torch.randint(0, 4, size, generator=generator) for size in [(5, 7), (3, 2), (6, 6)]]
    references = [torch.randint(0, 4, tuple(map_.shape), generator=generator) for map_ in predictions]
    metric = MeanIoU(num_labels=4)
    assert metric.confusion_matrix.sum() == 0
    metric.add_batch(
        predictions=predictions[:2], references=[map_.numpy().astype(np.uint16) for map_ in references[:2]]
    )
    metric.add_batch(predictions=[predictions[2].tolist()], references=references[2:])
    whole = confusion_matrix(
        torch.cat([p.flatten() for p in predictions]), torch.cat([r.flatten() for r in references]), 4
    )
    assert torch.equal(metric.confusion_matrix, whole)
    assert_scores(metric.compute(), scores_from_confusion_matrix(whole))
    assert metric.confusion_matrix.sum() == 0
    with pytest.raises(ValueError, match="nothing to compute"):
        metric.compute()


def test_absent_classes_are_nan_and_nan_to_num_comes_after_the_means():
    ids = [[[0, 0], [1, 1]]]
    scores = MeanIoU(num_labels=3).compute(predictions=ids, references=ids)
    assert np.isnan(scores["per_category_iou"][2]) and scores["mean_iou"] == 1.0
    scores = MeanIoU(num_labels=3).compute(predictions=ids, references=ids, nan_to_num=0.0)
    assert scores["per_category_iou"].tolist() == [1.0, 1.0, 0.0] and scores["mean_iou"] == 1.0


def test_label_map_replaces_all_ids_at_once():
    metric = MeanIoU(num_labels=3, label_map={0: 1, 1: 2})
    metric.add(prediction=[[1, 2, 2]], reference=[[0, 1, 2]])
    assert metric.confusion_matrix.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 2]]


def test_ids_out_of_range_are_named_and_the_batch_is_not_counted():
    metric = MeanIoU(num_labels=3)
    good = torch.zeros(2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"map 1 of the batch: predictions hold ids out of range: -1, 7;.*0\.\.2"):
        metric.add_batch(predictions=[good, torch.tensor([[7, -1], [0, 2]])], references=[good, good])
    with pytest.raises(ValueError, match="references hold ids out of range: 254;"):
        metric.add_batch(predictions=[good], references=[torch.tensor([[254, 255], [0, 2]])])
    assert metric.confusion_matrix.sum() == 0


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[[0.0, 1.0]]], [[[0, 1]]], "dtype torch.float"),
        ([[[0, 1]]], [[[0], [1]]], r"shape \(1, 2\) and references \(2, 1\)"),
        ([[[0, 1]]], [], "1 predictions and 0 references"),
        ([[[0, 1]]], None, "1 predictions and None references"),
    ],
)
def test_maps_that_do_not_match_are_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        MeanIoU(num_labels=2).add_batch(predictions=predictions, references=references)


def test_settings_are_asked_for_and_kept():
    ids = [[[0, 1]]]
    with pytest.raises(ValueError, match="num_labels is not known"):
        MeanIoU().add_batch(predictions=ids, references=ids)
    with pytest.raises(ValueError, match="num_process is 2"):
        MeanIoU(num_labels=2, num_process=2)
    metric = MeanIoU(num_labels=2)
    metric.add_batch(predictions=ids, references=ids)
    with pytest.raises(ValueError, match="batches were added with"):
        metric.compute(num_labels=3)
    with pytest.raises(ValueError, match="unknown arguments.*'average'"):
        metric.compute(average="macro")
    assert metric.compute(num_labels=2, ignore_index=255)["mean_iou"] == 1.0


def test_large_maps_are_counted_in_pieces():
    generator = torch.Generator().manual_seed(0)
    predictions, references = torch.randint(0, 5, (2, 3, 300, 311), generator=generator)
    references[:, :20] = 255
    assert predictions.numel() > 2 * PIXELS_AT_ONCE
    expected = torch.tensor(
        [
            [int(((references == true) & (predictions == predicted)).sum()) for predicted in range(5)]
            for true in range(5)
        ]
    )
    assert torch.equal(confusion_matrix(predictions, references, num_labels=5), expected)
    predictions[-1, -1, -1] = 7
    with pytest.raises(ValueError, match="predictions hold ids out of range: 7"):
        confusion_matrix(predictions, references, num_labels=5)
