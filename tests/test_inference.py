# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config
from torch.nn import functional as F

from van_hf import VanForSemanticSegmentation, VanImageProcessor
from van_hf import inference as inference_module
from van_hf.checkpoints import convert_checkpoint
from van_hf.inference import (
    LogitScores,
    ResizedScores,
    load_config,
    load_weights,
    multi_scale_flip_inference,
    slide_inference,
    whole_inference,
)


@pytest.fixture(scope="module", params=["upernet", "fpn"])
def golden(request, fixtures_dir):
    """The original's checkpoint, its input, and every 5th row and column of what mmsegmentation 0.26 made of it."""
    name = f"{request.param}_van_tiny"
    model, _ = convert_checkpoint(fixtures_dir / f"seed_{name}.pth")
    pixel_values = torch.from_numpy(np.load(fixtures_dir / f"seed_{name}.npz")["pixel_values"])
    return model, pixel_values, np.load(fixtures_dir / f"inference_{name}.npz")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = VanForSemanticSegmentation(tiny_config("semantic_fpn")).eval()
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    return model


@pytest.fixture
def small_bands(monkeypatch):
    """Bands of a few rows, as large pictures have them."""
    monkeypatch.setattr(inference_module, "BAND_SCORES", 7 * 128 * 5)


def test_golden_whole(golden):
    model, pixel_values, expected = golden
    scores = whole_inference(model, pixel_values)
    assert scores.shape == (2, 7, 96, 128)
    np.testing.assert_allclose(scores[..., ::5, ::5], expected["full_size_logits"], atol=3e-5)


def test_golden_slide(golden):
    model, pixel_values, expected = golden
    scores = slide_inference(model, pixel_values, crop_size=48, stride=32)
    assert scores.shape == (2, 7, 96, 128)
    np.testing.assert_allclose(scores[..., ::5, ::5], expected["slide_crop48_stride32_logits"], atol=3e-5)


def test_golden_multi_scale_flip(golden):
    model, pixel_values, expected = golden
    probabilities = multi_scale_flip_inference(model, pixel_values[:1])
    assert probabilities.shape == (1, 7, 96, 128)
    np.testing.assert_allclose(probabilities[..., ::5, ::5], expected["tta_probabilities_first_image"], atol=2e-6)


@pytest.mark.parametrize("source", [(16, 24), (13, 9), (1, 1)])
@pytest.mark.parametrize("size", [(64, 96), (50, 71), (7, 5), (16, 24)])
def test_bands_are_those_of_the_whole(source, size, small_bands):
    logits = torch.randn(7, *source, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(logits[None], size=size, mode="bilinear")[0]
    scores = ResizedScores(LogitScores(logits), size)
    torch.testing.assert_close(scores.full(), expected)
    torch.testing.assert_close(torch.cat([band for _, band in scores.bands()], dim=1), expected)
    torch.testing.assert_close(scores.rows(size[0] - 1, size[0]), expected[:, -1:])


@pytest.mark.parametrize("size", [None, (61, 200)])
def test_argmax_in_bands(model, pixel_values, size, small_bands):
    def check(inference, **kwargs):
        scores = inference(model, pixel_values, size=size, **kwargs)
        labels = inference(model, pixel_values, size=size, argmax=True, **kwargs)
        assert labels.shape == (2, *(size or (64, 96))) and labels.dtype == torch.int64
        assert (scores.gather(1, labels[:, None])[:, 0] >= scores.amax(dim=1) - 1e-5).all()

    check(whole_inference)
    check(slide_inference, crop_size=48, stride=32)
    check(multi_scale_flip_inference, ratios=(0.5, 1.25))


def test_slide_windows_of_any_size(model, pixel_values):
    whole = whole_inference(model, pixel_values)
    torch.testing.assert_close(slide_inference(model, pixel_values, crop_size=(64, 96), stride=(64, 96)), whole)
    torch.testing.assert_close(slide_inference(model, pixel_values, crop_size=512, stride=341), whole)
    one_by_one = slide_inference(model, pixel_values, crop_size=40, stride=25, batch_size=1)
    torch.testing.assert_close(
        slide_inference(model, pixel_values, 40, 25, batch_size=7), one_by_one, atol=1e-4, rtol=0
    )


def test_pictures_go_through_the_image_processor(model):
    processor = VanImageProcessor(size={"shortest_edge": 64, "longest_edge": 256})
    picture = torch.randint(0, 256, (3, 50, 71), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    probabilities = multi_scale_flip_inference(model, picture, ratios=(1.5,), flip=False, image_processor=processor)
    inputs = processor(picture, size={"shortest_edge": 96, "longest_edge": 384}, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 96, 160)
    scores = whole_inference(model, inputs["pixel_values"], size=(50, 71))
    torch.testing.assert_close(probabilities, scores.softmax(dim=1))


def test_mirrored_views_are_turned_back(model, pixel_values):
    probabilities = multi_scale_flip_inference(model, pixel_values, ratios=(1.0,))
    mirrored = multi_scale_flip_inference(model, pixel_values.flip(-1), ratios=(1.0,))
    torch.testing.assert_close(mirrored.flip(-1), probabilities)


def test_bad_arguments_are_named(model, pixel_values):
    with pytest.raises(ValueError, match="stride must be from 1 to crop_size"):
        slide_inference(model, pixel_values, crop_size=32, stride=48)
    with pytest.raises(ValueError, match="ratios must hold"):
        multi_scale_flip_inference(model, pixel_values, ratios=())


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "saved"
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "segformer"}', "is a model of the type 'segformer'; it must be 'van'"),
        # That it comes with code is no reason to ask whether to run it.
        ('{"model_type": "new", "auto_map": {"AutoConfig": "new.NewConfig"}}', "is a model of the type 'new'"),
        ('{"model_type": "van", "depths": "many"}', "config.json of .* cannot be used .*depths"),
        ('{"depths": [1, 1, 1, 1]}', "has no config.json with a model_type"),
        ("[]", "config.json of .* cannot be used"),
    ],
)
def test_configurations_that_are_no_vans_are_named(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_config(str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_loaded_in_float32(model, saved, tmp_path, dtype):
    copy.deepcopy(model).to(dtype).save_pretrained(tmp_path)
    config = load_config(str(tmp_path))
    loaded, new = load_weights(str(tmp_path), config)
    assert new == [] and {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert all(map(torch.equal, loaded.parameters(), copy.deepcopy(model).to(dtype).float().parameters()))
    loaded.save_pretrained(tmp_path / "again")
    assert load_config(str(tmp_path / "again")).dtype == torch.float32

    _, new = load_weights(str(saved), tiny_config("semantic_fpn", num_labels=3))
    assert new == ["decode_head.classifier"]


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02}q\x00X"])
def test_damaged_weights_are_named(saved, tmp_path, content):
    shutil.copy(saved / "config.json", tmp_path)
    for name in ("pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="the weights of .* cannot be used"):
            load_weights(str(tmp_path), load_config(str(tmp_path)))
