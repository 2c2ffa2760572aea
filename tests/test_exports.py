# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import pytest
import torch
from benchmarks.models import random_model
from conftest import tiny_config

from van_hf import VanImageProcessor, exports
from van_hf.exports import check_export, check_packages, export_model, load_export
from van_hf.inference import Protocol, predict

pytest.importorskip("transformers.exporters", reason="exports need transformers 5.23")
if torch.__version__ < "2.11":
    pytest.skip("exports need torch 2.11", allow_module_level=True)


@pytest.fixture(scope="module")
def processor():
    return VanImageProcessor(size={"shortest_edge": 64})


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 64, 90), (3, 70, 64), (3, 200, 64)]
    return [torch.randint(256, shape, dtype=torch.uint8, generator=generator) for shape in shapes]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "decode_head"), [("onnx", "light_ham"), ("openvino", "upernet"), ("torch_export", "ham")]
)
def test_exports_of_free_size(name, decode_head, processor, pictures, tmp_path):
    model = random_model(tiny_config(decode_head))
    export_model(model, name).save_pretrained(tmp_path)
    assert not model._is_fused()
    exported = load_export(tmp_path, name)
    check = check_export(exported, model, processor, pictures)
    assert check.num_pictures == 5 and len(check.sizes) == 3
    assert check.largest_difference < 1e-4 * max(check.largest_score, 1) and check.agreement > 0.999
    assert exported.config.id2label == model.config.id2label
    # The protocols take it where they take a model.
    for protocol in (Protocol(), Protocol(ratios=(0.75, 1.0), flip=True), Protocol("slide", 48, 32)):
        labels = predict(exported, processor, pictures[0], protocol)
        assert (labels == predict(model, processor, pictures[0], protocol)).float().mean() > 0.999


def test_export_of_a_fixed_size(processor, pictures, tmp_path):
    model = random_model(tiny_config("semantic_fpn"))
    export_model(model, "torch_export", (64, 96)).save_pretrained(tmp_path)
    exported = load_export(tmp_path, "torch_export")
    check = check_export(exported, model, processor, pictures, (64, 96))
    assert check.sizes == [(64, 96)] and check.num_pictures == 3 and check.agreement > 0.999
    other = random_model(tiny_config("semantic_fpn"), seed=1)
    check = check_export(exported, other, processor, pictures, (64, 96))
    assert check.agreement < 0.9 and check.largest_difference > 0.01


def test_scores_that_are_not_numbers_are_a_difference(processor, pictures):
    model = random_model(tiny_config("semantic_fpn"))

    def exported(pixel_values):
        outputs = model(pixel_values)
        outputs.logits[0, 0, 0, 0] = torch.nan
        return outputs

    assert check_export(exported, model, processor, pictures).largest_difference > 1e30
    with pytest.raises(ValueError, match="returns scores of shape"):
        check_export(lambda pixel_values: model(pixel_values[..., ::2]), model, processor, pictures)


def test_what_cannot_be_exported(monkeypatch):
    model = random_model(tiny_config("semantic_fpn"))
    with pytest.raises(ValueError, match=r"33 to 4096 pixels, got \(32, 96\)"):
        export_model(model, "torch_export", (32, 96))
    monkeypatch.setattr(type(model.decode_head), "forward", lambda self, features: features[0].nonsense())
    with pytest.raises(ValueError, match=r"cannot be exported to torch_export: .*nonsense"):
        export_model(model, "torch_export", (64, 96))
    monkeypatch.setattr(exports, "find_spec", lambda package: None if package == "openvino" else True)
    with pytest.raises(ValueError, match=r'openvino needs openvino, .*pip install -e "\.\[export\]"'):
        check_packages("openvino")
    check_packages("onnx")
