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


@pytest.fixture(scope="module", params=["upernet", "light_ham"])  # logits at 1/4 and at 1/8
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    id2label = dict(enumerate(NAMES))
    config = tiny_config(request.param, id2label=id2label, label2id={name: idx for idx, name in id2label.items()})
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


def masks_of(segments: list[dict]) -> dict[str, np.ndarray]:
    return {segment["label"]: np.array(segment["mask"]) > 0 for segment in segments}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_image_segmentation_of_half_precision(folder, image, tmp_path, dtype):
    VanForSemanticSegmentation.from_pretrained(folder).to(dtype).save_pretrained(tmp_path)
    VanImageProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    segments = pipeline("image-segmentation", model=str(tmp_path))
    assert segments.model.dtype == dtype
    found, expected = masks_of(segments(image)), masks_of(pipeline("image-segmentation", model=str(folder))(image))
    same = sum((found[name] & expected[name]).sum() for name in found.keys() & expected.keys())
    assert same > 0.8 * image.width * image.height


def test_batches_of_pictures_of_different_sizes(folder, image):
    """The pipeline puts pictures together that were processed one by one, so it needs them at one size."""
    processor = VanImageProcessor.from_pretrained(folder, size={"height": 64, "width": 96})
    segments = pipeline("image-segmentation", model=str(folder), image_processor=processor)
    images = [image, image.resize((40, 90)), image.resize((64, 64))]
    for batched, each in zip(segments(images, batch_size=2), images, strict=True):
        found, expected = masks_of(batched), masks_of(segments(each))
        assert found.keys() == expected.keys()
        for name, mask in found.items():
            assert mask.shape == (each.height, each.width) and (mask == expected[name]).mean() > 0.99


def test_image_classification(tmp_path, image):
    torch.manual_seed(0)
    VanForImageClassification(tiny_config(id2label=dict(enumerate(NAMES)))).save_pretrained(tmp_path)
    VanImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    scores = pipeline("image-classification", model=str(tmp_path), top_k=7)(image)
    assert {score["label"] for score in scores} == set(NAMES)
    assert sum(score["score"] for score in scores) == pytest.approx(1.0)
