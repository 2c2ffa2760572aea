# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import datasets
import numpy as np
import pytest
from PIL import Image

from van_hf.data import SegmentationDataset, balanced_class_weights, count_labels


def dataset_of(masks: list, do_reduce_labels: bool = False) -> SegmentationDataset:
    features = datasets.Features(annotation=datasets.Image())
    pictures = [{"annotation": Image.fromarray(np.array(mask, dtype=np.uint8))} for mask in masks]
    splits = datasets.DatasetDict(train=datasets.Dataset.from_list(pictures, features=features))
    return SegmentationDataset("fields", splits, {0: "a", 1: "b", 2: "c", 3: "d"}, do_reduce_labels, None)


@pytest.mark.parametrize("do_reduce_labels", [False, True])
def test_labels_are_counted_and_where_they_occur(do_reduce_labels):
    """Of 6 and 2 labelled pixels: 0 has 5 of 8, 1 has 1 of 6, 2 has 2 of 8; 3 occurs nowhere."""
    masks = np.array([[[0, 0, 0, 0], [1, 2, 255, 255]], [[0, 2, 255, 255], [255] * 4]], dtype=np.uint8)
    counts = count_labels(dataset_of(list(masks + np.uint8(do_reduce_labels)), do_reduce_labels))
    assert counts.pixels.tolist() == [5, 1, 2, 0]
    assert counts.pixels_around.tolist() == [8, 6, 8, 0]
    assert [pictures.tolist() for pictures in counts.pictures] == [[0, 1], [0], [0, 1], []]
    expected = [0.25 / frequency for frequency in (5 / 8, 1 / 6, 2 / 8)] + [0]
    assert balanced_class_weights(counts) == pytest.approx(expected)


def test_masks_out_of_range_are_not_counted():
    with pytest.raises(ValueError, match=r"fields train\[1\].*holds the labels 4"):
        count_labels(dataset_of([[[0, 1]], [[4, 0]]]))
