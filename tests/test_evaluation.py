# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from van_hf.data import SegmentationDataset
from van_hf.evaluation import evaluate, read_validation_example

SIZES = [(4, 6), (5, 3), (2, 2)]


@pytest.fixture(scope="module")
def dataset() -> SegmentationDataset:
    """Pictures whose red channel is the label: the upper half is sky, the rest ground; raw labels, 0 is other."""
    rows = []
    for height, width in SIZES:
        labels = np.full((height, width), 2, dtype=np.uint8)
        labels[: height // 2] = 1
        labels[0, 0] = 0
        image = np.stack([labels, labels, labels], axis=2)
        rows.append({"image": Image.fromarray(image), "annotation": Image.fromarray(labels)})
    features = datasets.Features(image=datasets.Image(), annotation=datasets.Image())
    split = datasets.Dataset.from_list(rows, features=features)
    names = {0: "sky", 1: "ground", 2: "water"}
    return SegmentationDataset("halves", datasets.DatasetDict(validation=split), names, True, None)


def test_examples_are_read_with_reduced_labels(dataset):
    image, labels = read_validation_example(dataset, 1)
    assert image.shape == (3, 5, 3)
    assert labels.tolist() == [[255, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]]


def test_right_predictions_score_one(dataset):
    figures = evaluate(Accelerator(cpu=True), lambda image: image[0].long().clamp(min=1) - 1, dataset)
    assert figures["mean_iou"] == figures["mean_accuracy"] == figures["overall_accuracy"] == 1
    assert figures["iou"] == {"sky": 1, "ground": 1, "water": None}


def test_pixels_of_all_pictures_are_counted_once(dataset):
    figures = evaluate(Accelerator(cpu=True), lambda image: torch.zeros_like(image[0], dtype=torch.int64), dataset)
    sky = sum((height // 2) * width - 1 for height, width in SIZES)
    labelled = sum(height * width - 1 for height, width in SIZES)
    assert figures["overall_accuracy"] == sky / labelled
    assert figures["iou"] == {"sky": sky / labelled, "ground": 0, "water": None}


def test_every_picture_is_predicted_in_one_thread(dataset):
    before, seen = torch.get_num_threads(), []

    def predict(image):
        seen.append(torch.get_num_threads())
        return torch.zeros_like(image[0], dtype=torch.int64)

    evaluate(Accelerator(cpu=True), predict, dataset)
    assert seen == [1] * len(SIZES)
    assert torch.get_num_threads() == before


def test_an_error_names_the_example(dataset):
    broken = SegmentationDataset("halves", dataset.splits, {0: "sky"}, True, None)
    with pytest.raises(ValueError, match=r"halves validation\[0\].*2"):
        evaluate(Accelerator(cpu=True), lambda image: image[0].long(), broken)
