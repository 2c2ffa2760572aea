# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import copy
import json
import os
import shutil
import subprocess
import sys
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
    MeanProbabilities,
    Protocol,
    ResizedScores,
    WindowScores,
    load_config,
    load_model,
    load_weights,
    multi_scale_flip_inference,
    predict,
    predict_batch,
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


@pytest.fixture(params=[7 * 128 * 5, 7 * 23], ids=["rows", "parts of rows"])
def small_blocks(request, monkeypatch):
    """Blocks of a few rows, as large pictures have them, or of parts of rows, as pictures with a row of millions."""
    monkeypatch.setattr(inference_module, "BLOCK_SCORES", request.param)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder, max_shard_size="10KB")
    VanImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}).save_pretrained(folder)
    return folder


def test_golden_whole(golden):
    model, pixel_values, expected = golden
    scores = whole_inference(model, pixel_values)
    assert scores.shape == (2, 7, 96, 128)
    np.testing.assert_allclose(scores[..., ::5, ::5], expected["full_size_logits"], atol=3e-5)


@pytest.mark.parametrize("decode_head", ["light_ham", "ham"])
def test_golden_labels_of_logits_at_an_eighth(fixtures_dir, decode_head):
    """The original's labels at full size, by each protocol's way to labels and by post-processing."""
    path = fixtures_dir / f"seed_{decode_head}_van_tiny"
    model, processor = convert_checkpoint(path.with_suffix(".pth"), ham_rank=8)
    golden = np.load(path.with_suffix(".npz"))
    size = golden["full_size_argmax"].shape[1:]
    for pixel_values, bases, expected in zip(
        *(torch.from_numpy(golden[name]) for name in ("pixel_values", "bases", "full_size_argmax")), strict=True
    ):
        model.decode_head.hamburger.bases.copy_(bases)
        with torch.no_grad():
            outputs = model(pixel_values[None])
        labels = [
            whole_inference(model, pixel_values[None], argmax=True)[0],
            slide_inference(model, pixel_values[None], crop_size=max(size), stride=32, argmax=True)[0],
            processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0],
        ]
        for found in labels:
            assert (found == expected).double().mean() > 0.9999


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


def put_together(scores) -> torch.Tensor:
    whole = torch.full((scores.num_labels, *scores.size), torch.nan)
    for (rows, columns), block in scores.blocks():
        assert block.numel() <= max(inference_module.BLOCK_SCORES, scores.num_labels)
        whole[:, rows, columns] = block
    return whole


@pytest.mark.parametrize("source", [(16, 24), (13, 9), (1, 1)])
@pytest.mark.parametrize("size", [(64, 96), (50, 71), (7, 5), (16, 24), (1, 300), (300, 1)])
def test_blocks_are_those_of_the_whole(source, size, small_blocks):
    logits = torch.randn(7, *source, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(logits[None], size=size, mode="bilinear")[0]
    scores = ResizedScores(LogitScores(logits), size)
    torch.testing.assert_close(scores.full(), expected)
    torch.testing.assert_close(put_together(scores), expected)
    torch.testing.assert_close(scores.block(slice(size[0] - 1, size[0]), slice(0, size[1])), expected[:, -1:])
    torch.testing.assert_close(scores.block(slice(0, size[0]), slice(size[1] - 1, size[1])), expected[..., -1:])
    assert torch.equal(scores.argmax(), put_together(scores).argmax(dim=0))


def test_blocks_of_windows_and_views(small_blocks):
    generator = torch.Generator().manual_seed(0)
    left, right = (LogitScores(torch.randn(7, 20, 60, generator=generator)) for _ in range(2))
    windows = WindowScores([(left, 0, 0), (right, 0, 37)], (20, 97))
    expected = torch.zeros(7, 20, 97)
    expected[..., :60] += left.logits
    expected[..., 37:] += right.logits
    expected[..., 37:60] /= 2
    torch.testing.assert_close(windows.full(), expected)
    torch.testing.assert_close(put_together(windows), expected)

    views = MeanProbabilities([(windows, False), (windows, True)])
    probabilities = (expected.softmax(dim=0) + expected.flip(-1).softmax(dim=0)) / 2
    torch.testing.assert_close(put_together(views), probabilities)


@pytest.mark.slow
def test_memory_is_bounded_for_any_shape():
    """All scores of a row would be 180 MB, and more on the way to a column; labels and picture are 4 MB."""
    program = Path(__file__).with_name("programs") / "predict_thin.py"
    paths = os.pathsep.join([str(program.parents[1]), str(program.parents[2])])
    command, environment = [sys.executable, program, "300000"], os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert all(float(peak) < 100 for peak in done.stdout.split()), done.stdout


def test_batches_of_pictures_that_had_other_sizes(model):
    """At the model's input all are 64 x 64."""
    image_processor = VanImageProcessor(size={"height": 64, "width": 64})
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in ((20, 30), (64, 50))
    ]
    pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
    maps = predict_batch(model, pixel_values, [image.shape[1:] for image in images])
    for image, labels in zip(images, maps, strict=True):
        expected = predict(model, image_processor, image)
        assert labels.shape == expected.shape and labels.dtype == expected.dtype
        assert (labels == expected).float().mean() > 0.999  # but for near ties


def test_masked_classes_are_never_predicted():
    logits = torch.randn(5, 8, 9, generator=torch.Generator().manual_seed(0))
    logits[2] = -torch.inf
    for size in ((8, 9), (16, 18), (8, 27), (20, 9)):
        scores = ResizedScores(ResizedScores(LogitScores(logits), size), (21, 30))
        assert not scores.full().isnan().any()
        assert set(scores.argmax().unique().tolist()) == {0, 1, 3, 4}


@pytest.mark.parametrize("size", [None, (61, 200)])
def test_argmax_in_blocks(model, pixel_values, size, small_blocks):
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_any_precision(model, pixel_values, dtype):
    other = copy.deepcopy(model).to(dtype)
    picture = torch.randint(0, 256, (3, 50, 71), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    processor = VanImageProcessor(size={"shortest_edge": 64, "longest_edge": 256})

    def near(infer, **kwargs):
        expected, scores = infer(model, pixel_values, **kwargs), infer(other, pixel_values, **kwargs)
        assert scores.dtype == torch.float32
        assert (scores - expected).abs().max() < 0.1 * expected.abs().max()

    near(whole_inference)
    near(slide_inference, crop_size=48, stride=32)
    near(multi_scale_flip_inference, ratios=(0.5, 1.25))
    for protocol in (Protocol(), Protocol("slide", 48, 32), Protocol(ratios=(1.0, 1.5), flip=True)):
        labels = [predict(each, processor, picture, protocol) for each in (model, other)]
        assert (labels[0] == labels[1]).float().mean() > 0.9
    with torch.inference_mode():
        outputs = other(pixel_values.to(dtype))
    [found, _] = processor.post_process_semantic_segmentation(outputs, original_sizes=[(64, 96)] * 2)
    assert torch.equal(found, outputs.logits[0].float().argmax(dim=0))


def test_views_of_pictures_that_are_not_resized(model):
    processor = VanImageProcessor(do_resize=False)
    picture = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    probabilities = multi_scale_flip_inference(model, picture, (0.5, 1.0), image_processor=processor)
    pixel_values = processor(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(probabilities, multi_scale_flip_inference(model, pixel_values, (0.5, 1.0)))
    assert not torch.allclose(probabilities, multi_scale_flip_inference(model, pixel_values, (1.0,)))


def test_a_saved_model_is_loaded(folder, model):
    loaded, image_processor = load_model(str(folder), "cpu")
    assert not loaded.training and loaded.dtype == torch.float32
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    assert image_processor.size == {"shortest_edge": 64, "longest_edge": 256}


SHARD, INDEX = "model-00002-of-", "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (SHARD, lambda whole: whole[: len(whole) // 2], "the weights of .* cannot be used .*SafetensorError"),
        (SHARD, lambda whole: b"", "the weights of .*SafetensorError"),
        (SHARD, lambda whole: b"<html>" * 100, "the weights of .*SafetensorError"),
        (SHARD, None, SHARD),
        (INDEX, lambda whole: whole.replace(SHARD.encode(), b"gone-"), "gone-"),
        (INDEX, lambda whole: b"{", "the weights of .*JSONDecodeError"),
        (INDEX, lambda whole: b"[]", "the weights of .*TypeError"),
        (INDEX, lambda whole: b"{}", "the weights of .*KeyError"),
        (INDEX, None, "no file named model.safetensors"),
        ("pytorch_model.bin", lambda whole: b"", "the weights of .*EOFError"),
        ("pytorch_model.bin", lambda whole: b"PK" * 100, "the weights of .*Error"),
        ("config.json", lambda whole: b"", "config.json"),
        ("config.json", lambda whole: b"3", "config.json .*TypeError"),
        ("config.json", lambda whole: b"{}", "model_type"),
        ("config.json", lambda whole: b"\xff\xfe", "config.json"),
        ("config.json", None, "model_type"),
        ("preprocessor_config.json", lambda whole: b"{", "preprocessor_config.json"),
        ("preprocessor_config.json", lambda whole: b"3", "preprocessor_config.json .*AttributeError"),
        ("preprocessor_config.json", lambda whole: b"\xff\xfe", "preprocessor_config.json .*UnicodeDecodeError"),
        ("preprocessor_config.json", lambda whole: b'{"size": []}', "preprocessor_config.json .*IndexError"),
        ("preprocessor_config.json", lambda whole: b'{"size": {"height": -1, "width": 9}}', "size is .*-1"),
        ("preprocessor_config.json", lambda whole: b'{"image_mean": [1, 2]}', "preprocessor_config.json .*Error"),
        ("preprocessor_config.json", lambda whole: b'{"resample": 99}', "preprocessor_config.json .*KeyError"),
        ("preprocessor_config.json", None, "image processor"),
    ],
)
def test_damaged_files_are_named(folder, tmp_path, name, content, message):
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    if name == "pytorch_model.bin":
        (damaged / INDEX).unlink()
    path = next(damaged.glob(f"{name}*"), damaged / name)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content(path.read_bytes() if path.exists() else b""))
    with pytest.raises((OSError, ValueError), match=message) as caught:
        load_model(str(damaged), "cpu")
    assert type(caught.value) is ValueError or isinstance(caught.value, OSError)
    assert len(str(caught.value).splitlines()) == 1


def test_weights_of_other_shapes_are_named(model, tmp_path):
    model.save_pretrained(tmp_path)
    VanImageProcessor().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    labels = [f"label {idx}" for idx in range(9)]
    config |= {"id2label": dict(enumerate(labels)), "label2id": {name: idx for idx, name in enumerate(labels)}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has no weights for decode_head.classifier"):
        load_model(str(tmp_path), "cpu")


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


def test_a_model_that_cannot_be_had_is_named():
    with pytest.raises(OSError, match="the config.json of someone/vann cannot be loaded: We couldn't connect"):
        load_config("someone/vann")


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
