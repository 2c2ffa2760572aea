# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The generated close-ups, "cracks" and "leaves"; tests/test_scenes.py has what all generated data sets share."""

import hashlib
import itertools
import logging

import datasets
import numpy as np
import pytest

from van_hf.data import cracks, leaves, load_segmentation_dataset

MODULES = {"cracks": cracks, "leaves": leaves}


@pytest.fixture(scope="module")
def pictures():
    return {name: list(itertools.islice(module.generate_examples("train"), 80)) for name, module in MODULES.items()}


def digest(example):
    return hashlib.sha256(example["image"].tobytes() + example["annotation"].tobytes()).hexdigest()


def label_counts(examples, num_labels):
    return np.stack([np.bincount(np.asarray(e["annotation"]).ravel(), minlength=num_labels) for e in examples])


@pytest.mark.parametrize("name", MODULES)
def test_pictures_are_repeatable_and_all_different(pictures, name):
    again = MODULES[name].generate_examples("train")
    assert [digest(next(again)) for _ in range(3)] == [digest(example) for example in pictures[name][:3]]
    validation = itertools.islice(MODULES[name].generate_examples("validation"), 3)
    assert len({digest(example) for example in [*pictures[name], *validation]}) == 83


@pytest.mark.parametrize("name", MODULES)
def test_modes_sizes_and_labels(pictures, name):
    num_labels = len(MODULES[name].CLASS_NAMES)
    for example in pictures[name]:
        assert (example["image"].mode, example["annotation"].mode) == ("RGB", "L")
        assert example["image"].size == example["annotation"].size
        assert all(130 <= side <= 260 for side in example["image"].size)
    assert label_counts(pictures[name], num_labels).shape[1] == num_labels
    assert len({example["scene_category"] for example in pictures[name]}) == 4


def test_cracks_are_thin_and_in_most_pictures(pictures):
    counts = label_counts(pictures["cracks"], 2)
    assert 0.01 < counts[:, cracks.CRACK].sum() / counts.sum() < 0.03
    assert 0.7 < (counts[:, cracks.CRACK] > 0).mean() < 0.95


def test_darkness_does_not_tell_a_crack(pictures):
    """Whatever the threshold, what is darker than it, or than its surroundings by it, is rarely a crack."""
    pairs = [
        (np.asarray(e["image"].convert("L"), float), np.asarray(e["annotation"]) == 1) for e in pictures["cracks"]
    ]
    truth = np.concatenate([mask.ravel() for _, mask in pairs])
    for darkness in ([255 - gray for gray, _ in pairs], [np.median(gray) - gray for gray, _ in pairs]):
        values = np.concatenate([gray.ravel() for gray in darkness])
        ious = []
        for threshold in np.quantile(values, np.linspace(0.8, 0.999, 30)):
            found = values > threshold
            ious.append((found & truth).sum() / (found | truth).sum())
        assert 0.05 < max(ious) < 0.25


def test_labels_of_leaves_are_imbalanced(pictures):
    counts = label_counts(pictures["leaves"], 5)
    shares, present = counts.sum(axis=0) / counts.sum(), (counts > 0).mean(axis=0)
    assert (np.diff(shares) < 0).all()
    assert shares[leaves.BLIGHT] < 0.02 and 0.0001 < shares[leaves.RUST] < 0.002
    assert present[leaves.VEIN] > 0.95 and 0.05 < present[leaves.RUST] < 0.3


@pytest.mark.parametrize("name", MODULES)
def test_they_are_loaded_by_name(monkeypatch, tmp_path, caplog, name):
    module = MODULES[name]
    monkeypatch.setattr(module, "NUM_PICTURES", {"train": 3, "validation": 2})
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    with caplog.at_level(logging.WARNING):
        dataset = load_segmentation_dataset(name)
    assert dataset.id2label == dict(enumerate(module.CLASS_NAMES)) and not dataset.do_reduce_labels
    assert {split: len(data) for split, data in dataset.splits.items()} == {"train": 3, "validation": 2}
    assert digest(dataset.splits["train"][0]) == digest(next(module.generate_examples("train")))
    assert f"./{name}" in caplog.text
    with pytest.raises(ValueError, match="no label names|no split|could not be loaded"):
        load_segmentation_dataset(f"./{name}")
