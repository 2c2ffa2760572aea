# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The streaming mean IoU against the original metric's figures, and what it refuses."""

import json
import os
import sys
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
    metric = MeanIoU()
    assert_scores(metric.compute(predictions=predictions, references=references, **settings), case)
    metric.add_batch(predictions=predictions, references=references)
    assert_scores(metric.compute(**settings), case)


def test_evaluate_loads_the_folder_and_writes_no_predictions(golden, tmp_path):
    predictions, references, case = golden[0]
    metric = evaluate.load(str(MODULE_DIR), num_labels=5, ignore_index=255, cache_dir=str(tmp_path))
    metric.add_batch(predictions=predictions, references=references)
    assert not os.listdir(tmp_path)
    assert_scores(metric.compute(), case)
    assert not os.listdir(tmp_path)


def test_the_folder_needs_nothing_of_the_package(golden, monkeypatch):
    predictions, references, case = golden[1]
    for name in [name for name in sys.modules if name.partition(".")[0] == "van_hf"]:
        monkeypatch.setitem(sys.modules, name, None)
    metric = evaluate.load(str(MODULE_DIR))
    settings = {name: case[name] for name in ("num_labels", "ignore_index", "reduce_labels")}
    assert_scores(metric.compute(predictions=predictions, references=references, **settings), case)


def test_serves_the_example_scripts_of_transformers():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 4, 6, generator=generator)
    labels = torch.randint(0, 5, (3, 16, 24), generator=generator)
    labels[:, 0] = 255
    predictions = torch.nn.functional.interpolate(logits, size=(16, 24), mode="bilinear").argmax(dim=1)
    expected = scores_from_confusion_matrix(confusion_matrix(predictions, labels, num_labels=5))
    metric = MeanIoU()
    for _ in range(2):
        # run_semantic_segmentation_no_trainer.py
        for prediction, reference in zip(predictions.split(2), labels.split(2), strict=True):
            metric.add_batch(predictions=prediction, references=reference)
        assert_scores(metric.compute(num_labels=5, ignore_index=255, reduce_labels=False), expected)
        # run_semantic_segmentation.py
        scores = metric.compute(
            predictions=predictions.numpy(),
            references=labels.numpy(),
            num_labels=5,
            ignore_index=255,
            reduce_labels=False,
        )
        assert_scores(scores, expected)


def test_add_takes_the_names_of_both_evaluate_and_its_docstring():
    metric = MeanIoU(num_labels=2)
    metric.add(prediction=[[0, 1]], reference=[[0, 0]])
    metric.add(predictions=[[0, 1]], references=[[0, 0]])
    assert metric.confusion_matrix.tolist() == [[2, 2], [0, 0]]


def test_combines_with_other_metrics():
    one_map, settings = [[0, 1, 1], [1, 0, 1]], {"num_labels": 2, "ignore_index": 255}
    combined = evaluate.combine({"ours": MeanIoU(), "fixed": evaluate.load(str(MODULE_DIR), num_labels=2)})
    combined.add(prediction=one_map, reference=one_map)
    combined.add(predictions=one_map, references=one_map)
    combined.add_batch(predictions=[one_map], references=[[[0, 0, 255], [1, 0, 1]]])
    scores = combined.compute(**settings)
    assert scores["ours_overall_accuracy"] == scores["fixed_overall_accuracy"] == 16 / 17
    scores = evaluate.combine([str(MODULE_DIR)]).compute(predictions=[one_map], references=[one_map], **settings)
    assert scores["mean_iou"] == 1.0


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


@pytest.mark.parametrize("reduce_labels", [False, True])
@pytest.mark.parametrize("label_map", [None, {0: 3, 3: 255, 255: 4}])
def test_settings_given_after_the_maps_are_as_good_as_applied_to_them(label_map, reduce_labels):
    rng = np.random.default_rng(0)
    predictions, raw = rng.integers(0, 4, (3, 20, 30)), rng.choice([0, 1, 2, 3, 255], (3, 20, 30))
    references = raw.copy()
    for old_id, new_id in (label_map or {}).items():
        references[raw == old_id] = new_id
    if reduce_labels:
        references = np.where((references == 0) | (references == 255), 255, references - 1)
    expected = MeanIoU().compute(predictions=predictions, references=references, num_labels=5)
    metric = MeanIoU(num_labels=17, ignore_index=1)
    metric.add_batch(predictions=predictions, references=raw)
    settings = {"num_labels": 5, "ignore_index": 255, "label_map": label_map, "reduce_labels": reduce_labels}
    assert_scores(metric.compute(**settings), expected)


@pytest.mark.parametrize("ignore_index", [-(2**63), -100, -1, 3, 5000, 65535, 2**40])
def test_ignored_pixels_have_any_id_and_any_prediction(ignore_index):
    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, 3, (2, 4, 300, 400))
    expected = scores_from_confusion_matrix(
        confusion_matrix(torch.tensor(predictions), torch.tensor(references), num_labels=3)
    )
    metric = MeanIoU()
    for prediction, reference in zip(predictions, references, strict=True):
        rubbish = rng.integers(-(2**63), 2**63 - 1, prediction.shape)
        ignored = np.full_like(reference, ignore_index)
        metric.add(prediction=np.stack([prediction, rubbish]), reference=np.stack([reference, ignored]))
    assert_scores(metric.compute(num_labels=3, ignore_index=ignore_index), expected)


def test_references_may_hold_colours_that_label_map_turns_into_labels():
    colours, generator = torch.tensor([0, 0x80_00_00, 0xFF_FF_FF]), torch.Generator().manual_seed(0)
    predictions, references = torch.randint(0, 3, (2, 5, 9, 11), generator=generator)
    metric = MeanIoU(num_labels=3, label_map={colour: label for label, colour in enumerate(colours.tolist())})
    metric.add_batch(predictions=predictions, references=colours[references])
    assert torch.equal(metric.confusion_matrix, confusion_matrix(predictions, references, num_labels=3))


def test_ids_out_of_range_are_named_and_the_counts_kept():
    metric = MeanIoU(num_labels=3)
    metric.add(prediction=[[7, -1, 99999], [0, 2, 1]], reference=[[0, 0, 0], [0, 254, 255]])
    metric.add(prediction=[[0, 0]], reference=[[300, 255]])
    predictions = r"predictions hold ids out of range: -1, 7, 65536 or more; with num_labels=3 they must be 0\.\.2$"
    references = r"references hold ids out of range: 254, 300; .* 0\.\.2 or ignore_index=0$"
    with pytest.raises(ValueError, match=predictions):
        metric.compute()
    with pytest.raises(ValueError, match=predictions):
        _ = metric.confusion_matrix
    with pytest.raises(ValueError, match=references):
        metric.compute(ignore_index=0, label_map={255: 0})
    with pytest.raises(ValueError, match="references hold ids 300; reduce_labels takes raw ids 0..255"):
        metric.compute(reduce_labels=True)
    matrix = metric.compute(label_map={0: 255, 254: 1, 300: 1})
    np.testing.assert_array_equal(matrix["per_category_accuracy"], [np.nan, 0.0, np.nan])


DEPTHS = np.arange(2**18).reshape(512, 512)


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        ([[0.0, 1.0]], [[0, 1]], "predictions have dtype torch.float"),
        ([[0, 1]], torch.tensor([[0.0, 1.0]]), "references have dtype torch.float"),
        ([[0, 1]], [[0], [1]], r"predictions have shape \(1, 2\) and references \(2, 1\)"),
        ([[0, 1]], None, "object"),
        (
            DEPTHS % 9999,
            DEPTHS,
            "references hold 262144 ids from 0 to 262143 and predictions 9999 from 0 to 9998: too",
        ),
    ],
)
def test_a_batch_with_a_bad_map_is_not_counted_and_the_map_named(prediction, reference, message):
    metric = MeanIoU(num_labels=2)
    good = np.eye(2, dtype=np.int64)
    metric.add(prediction=good, reference=good)
    with pytest.raises(ValueError, match=f"map 1 of the batch: .*{message}"):
        metric.add_batch(predictions=[good, prediction], references=[good, reference])
    assert metric.confusion_matrix.tolist() == [[2, 0], [0, 2]]


@pytest.mark.parametrize("references", [[], None, [[[0, 1]], [[0, 1]]]])
def test_each_map_needs_its_reference(references):
    number = None if references is None else len(references)
    for method in (MeanIoU(num_labels=2).add_batch, MeanIoU(num_labels=2).compute):
        with pytest.raises(ValueError, match=f"found 1 predictions and {number} references"):
            method(predictions=[[[0, 1]]], references=references)


def test_settings_are_asked_for_and_those_of_compute_come_first():
    ids = [[[0, 1]]]
    metric = MeanIoU()
    metric.add_batch(predictions=ids, references=ids)
    with pytest.raises(ValueError, match="num_labels is not known"):
        metric.compute()
    with pytest.raises(ValueError, match="num_labels is not known"):
        _ = metric.confusion_matrix
    with pytest.raises(ValueError, match="unknown arguments.*'average'"):
        metric.compute(num_labels=2, average="macro")
    assert metric.compute(num_labels=2)["per_category_iou"].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="num_process is 2"):
        MeanIoU(num_labels=2, num_process=2)
    metric = MeanIoU(num_labels=9, ignore_index=7, nan_to_num=0.5)
    metric.add_batch(predictions=ids, references=ids)
    assert metric.compute(num_labels=3, ignore_index=1)["per_category_iou"].tolist() == [1.0, 0.5, 0.5]


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
