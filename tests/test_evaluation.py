# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import paired_folders, tiny_config
from counts_file import append_counts, read_counts
from PIL import Image

from van_hf import VanForSemanticSegmentation, VanImageProcessor, evaluation
from van_hf.data import SegmentationDataset, load_segmentation_dataset
from van_hf.evaluation import (
    PictureResult,
    describe_missing_labels,
    evaluate,
    evaluate_pictures,
    fail_together,
    load_trained,
    read_validation_example,
)
from van_hf.inference import RATIOS, Protocol, multi_scale_flip_inference, predict, slide_inference

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


@pytest.mark.parametrize("kind", ["image", "annotation"])
def test_a_damaged_file_is_named(kind, tmp_path):
    folder = paired_folders(tmp_path)
    file = next(folder.glob(f"{kind}s/validation/p2.*"))
    file.write_bytes(b"torn")
    halves = load_segmentation_dataset(folder, id2label=2)
    with pytest.raises(ValueError) as error:
        evaluate(Accelerator(cpu=True), lambda image: image[0].long(), halves)
    assert str(error.value).startswith(f"{folder} validation[1] ({file}) cannot be read: ")


def test_labels_that_the_truth_lacks_are_told(dataset):
    figures = evaluate(Accelerator(cpu=True), lambda image: torch.full_like(image[0], 2, dtype=torch.int64), dataset)
    assert figures["iou"]["water"] == 0
    assert figures["labels_without_pixels"] == ["water"]
    assert describe_missing_labels(figures) == "The truth lacks 1 of the 3 labels: water"
    assert describe_missing_labels(figures | {"labels_without_pixels": []}) == ""


def test_labels_of_one_name_keep_figures_of_their_own(dataset):
    twins = SegmentationDataset("halves", dataset.splits, {0: "crane", 1: "crane", 2: "water"}, True, None)
    figures = evaluate(Accelerator(cpu=True), lambda image: image[0].long().clamp(min=1) - 1, twins)
    assert figures["iou"] == {"crane (0)": 1, "crane (1)": 1, "water": None}


def test_an_error_in_one_process_is_raised_by_all(monkeypatch):
    with fail_together():
        pass
    with pytest.raises(KeyError, match="this one"), fail_together():
        raise KeyError("this one")
    # What two other processes sent: the second had an error without a message.
    monkeypatch.setattr(evaluation, "gather_object", lambda own: [*own, None, "EOFError"])
    with pytest.raises(ValueError, match="EOFError"), fail_together():
        pass


def test_only_the_pictures_asked_for_are_evaluated(dataset):
    results = list(evaluate_pictures(Accelerator(cpu=True), lambda image: image[0].long() * 0, dataset, [2, 0]))
    assert [result.idx for result in results] == [2, 0]
    assert results[1].prediction.shape == SIZES[0]
    assert results[1].prediction.dtype == torch.uint8
    assert results[0].counts.tolist() == [[1, 0, 0], [2, 0, 0], [0, 0, 0]]


def test_counts_are_read_as_they_were_written(tmp_path):
    generator = torch.Generator().manual_seed(0)
    written = {idx: torch.randint(0, 3, (4, 4), generator=generator) for idx in (5, 0, 2)}
    for name, indices in {"a": (5, 0), "b": (2, 5)}.items():
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for idx in indices:
                append_counts(file, PictureResult(idx, torch.zeros(1, 1), written[idx]), f"digest {idx}")
            file.write('{"idx": 7, "cells": [1, 2')
    read = list(read_counts(tmp_path, 4, [f"digest {idx}" for idx in range(6)]))
    assert [idx for idx, _ in read] == [5, 0, 2]
    assert all(torch.equal(matrix, written[idx]) for idx, matrix in read)


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        '{"idx": 1, "digest": "", "cells": [99], "counts": [1]}',
        '{"idx": 1, "cells": [0], "counts": [1]}',
        "[]",
    ],
)
def test_broken_counts_are_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"a.jsonl, line 1, is no record"):
        list(read_counts(tmp_path, 4, ["digest"] * 2))


def test_counts_of_files_that_have_changed_are_left_out(tmp_path):
    for name, digests in {"a": ["old", "same"], "b": ["new"]}.items():
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for idx, digest in enumerate(digests):
                append_counts(file, PictureResult(idx, torch.zeros(1, 1), torch.full((1, 1), ord(name))), digest)
    assert {idx: int(matrix) for idx, matrix in read_counts(tmp_path, 1, ["new", "same"])} == {
        0: ord("b"),
        1: ord("a"),
    }


def test_protocols_choose_the_inference():
    torch.manual_seed(0)
    model, processor = VanForSemanticSegmentation(tiny_config()).eval(), VanImageProcessor(size={"shortest_edge": 64})
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    size = {"size": (50, 70), "argmax": True}
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    windows = {"crop_size": 48, "stride": 32}
    expected = {
        Protocol("slide", 48, 32): slide_inference(model, pixel_values, **windows, **size),
        Protocol(ratios=RATIOS): multi_scale_flip_inference(
            model, image, flip=False, image_processor=processor, **size
        ),
        Protocol("slide", 48, 32, flip=True): multi_scale_flip_inference(
            model, image, ratios=(1.0,), image_processor=processor, **windows, **size
        ),
    }
    for protocol, labels in expected.items():
        found = predict(model, processor, image, protocol)
        assert torch.equal(found, labels[0])


def test_protocols_are_put_into_words():
    assert Protocol().describe() == "single scale, whole image, compared at the original size"
    words = Protocol("slide", 512, 341, (0.5, 1.0), True).describe()
    assert words.startswith("multi-scale (0.5, 1.0) + flip, windows of 512 pixels every 341,")


def test_only_a_trained_model_of_the_labels_is_evaluated(dataset, tmp_path):
    VanImageProcessor().save_pretrained(tmp_path)
    VanForSemanticSegmentation(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 7 labels, dataset halves 3"):
        load_trained(tmp_path, dataset)
    model = VanForSemanticSegmentation(tiny_config(id2label=dataset.id2label))
    model.van.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no weights for .*decode_head"):
        load_trained(tmp_path, dataset)
