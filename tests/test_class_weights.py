# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import datasets
import numpy as np
import pytest
from conftest import BOX_NAMES
from PIL import Image

from van_hf.data import SegmentationDataset, balanced_class_weights, read_class_weights, resolve_class_weights


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[1, 2", "cannot be read as JSON"),
        ('{"sky": 1, "sky": 2}', "several entries for 'sky'"),
        ("3", "must hold weights in a list"),
        ("[]", "must hold weights in a list"),
        ('[1, -2, NaN, true, "4"]', 'got -2 for 1, NaN for 2, true for 3, "4" for 4'),
        ('{"sky": null}', "null for 'sky'"),
        ("[0, 0.0]", "0 for all labels"),
    ],
)
def test_files_without_weights_are_refused(tmp_path, content, message):
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_class_weights(path)
    assert str(path) in str(error.value)


def test_files_of_weights(tmp_path):
    path = tmp_path / "weights.json"
    for content in ("[1, 0, 2.5]", '\ufeff{"sky": 1}'):
        path.write_text(content, encoding="utf-8")
        assert read_class_weights(path) in ([1, 0, 2.5], {"sky": 1})
    with pytest.raises(ValueError, match="none.json cannot be read"):
        read_class_weights(tmp_path / "none.json")


def test_weights_by_name_and_number():
    assert resolve_class_weights([1, 0, 2.5], BOX_NAMES) == (1, 0, 2.5)
    assert resolve_class_weights({"box": 4, "0": 0.5}, BOX_NAMES) == (0.5, 1, 4)
    # The name comes first.
    assert resolve_class_weights({"1": 7}, {0: "1", 1: "0"}) == (7, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "has 2 weights, but there are 3 labels"),
        ({"sea": 1, "3": 2}, "weights for 'sea', '3'; the labels are 'sky', 'ground', 'box', or 0 to 2"),
        ({"sky": 1, "0": 2}, "several weights for 0 'sky', by name and by number"),
        ({"sky": 0, "1": 0, "box": 0}, "0 for all labels"),
    ],
)
def test_weights_that_do_not_fit_are_refused(content, message):
    with pytest.raises(ValueError, match=f"^the file .*{message}"):
        resolve_class_weights(content, BOX_NAMES, "the file")


def dataset_of(masks: list, do_reduce_labels: bool = False) -> SegmentationDataset:
    features = datasets.Features(annotation=datasets.Image())
    pictures = [{"annotation": Image.fromarray(np.array(mask, dtype=np.uint8))} for mask in masks]
    splits = datasets.DatasetDict(train=datasets.Dataset.from_list(pictures, features=features))
    return SegmentationDataset("fields", splits, {0: "a", 1: "b", 2: "c", 3: "d"}, do_reduce_labels, None)


def test_balanced_weights_are_those_of_the_median_frequency():
    """Of 6 and 2 labelled pixels: 0 has 5 of 8, 1 has 1 of 6, 2 has 2 of 8; 3 occurs nowhere."""
    masks = [[[0, 0, 0, 0], [1, 2, 255, 255]], [[0, 2, 255, 255], [255] * 4]]
    frequencies = (5 / 8, 1 / 6, 2 / 8)
    expected = [0.25 / frequency for frequency in frequencies] + [0]
    assert balanced_class_weights(dataset_of(masks)) == pytest.approx(expected)
    reduced = [[[(value + 1) % 256 for value in row] for row in mask] for mask in masks]
    assert balanced_class_weights(dataset_of(reduced, do_reduce_labels=True)) == pytest.approx(expected)


def test_balanced_weights_of_masks_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"fields train\[1\].*holds the labels 4"):
        balanced_class_weights(dataset_of([[[0, 1]], [[4, 0]]]))
