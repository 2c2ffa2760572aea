# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Saved models in transformers' own pipelines and Auto classes."""

import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from van_hf import VanForImageClassification, VanForSemanticSegmentation, VanImageProcessor

NAMES = ["sky", "tree", "water", "sand", "car", "road", "wall"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    id2label = dict(enumerate(NAMES))
    config = tiny_config(id2label=id2label, label2id={name: idx for idx, name in id2label.items()})
    VanForSemanticSegmentation(config).save_pretrained(folder)
    VanImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 71, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_auto_image_processor(folder):
    processor = AutoImageProcessor.from_pretrained(folder)
    assert type(processor) is VanImageProcessor
    assert processor.size == {"shortest_edge": 64, "longest_edge": 256}


def test_image_segmentation(folder, image):
    segments = pipeline("image-segmentation", model=str(folder))(image)
    masks = np.stack([np.array(segment["mask"]) for segment in segments]) > 0
    assert masks.shape[1:] == (50, 71)
    assert (masks.sum(axis=0) == 1).all()
    processor = VanImageProcessor.from_pretrained(folder)
    model = VanForSemanticSegmentation.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    expected = processor.post_process_semantic_segmentation(outputs, target_sizes=[(50, 71)])[0]
    for segment, mask in zip(segments, masks, strict=True):
        assert ((expected == NAMES.index(segment["label"])).numpy() == mask).all()


def test_image_classification(tmp_path, image):
    torch.manual_seed(0)
    VanForImageClassification(tiny_config(id2label=dict(enumerate(NAMES)))).save_pretrained(tmp_path)
    VanImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    scores = pipeline("image-classification", model=str(tmp_path), top_k=7)(image)
    assert {score["label"] for score in scores} == set(NAMES)
    assert sum(score["score"] for score in scores) == pytest.approx(1.0)
