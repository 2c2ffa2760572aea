# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import shutil

import pytest
import torch
from benchmarks.models import random_model
from conftest import tiny_config, write_export

from van_hf import VanForSemanticSegmentation, VanImageProcessor, exports
from van_hf.exports import (
    ExportedSegmentationModel,
    ExportInfo,
    check_export,
    check_packages,
    export_model,
)
from van_hf.files import read_json, write_json
from van_hf.inference import Protocol, digest_of_weights, load_model, predict, split_subfolder, whole_inference
from van_hf.model.interpolation import resize_to

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


def inputs_of(processor, pictures) -> list[torch.Tensor]:
    inputs = [processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures]
    return [*inputs, torch.cat([inputs[0], inputs[0].flip(-1)])]


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """An export of a fixed size, with its model."""
    folder = tmp_path_factory.mktemp("fixed")
    model = random_model(tiny_config("semantic_fpn"))
    write_export(folder, model, "torch_export", size=(64, 96))
    return folder, model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "decode_head"), [("onnx", "semantic_fpn"), ("openvino", "light_ham"), ("torch_export", "ham")]
)
def test_exports_of_free_size(name, decode_head, export_of, processor, pictures, monkeypatch):
    folder, model = export_of(name, decode_head)
    assert not model._is_fused()
    with monkeypatch.context() as context:  # no PyTorch model is made
        context.setattr(VanForSemanticSegmentation, "__init__", None)
        exported, own_processor = load_model(str(folder), trust_pickle=True)
    assert isinstance(exported, ExportedSegmentationModel) and exported.info.digest == digest_of_weights(model)
    assert own_processor.size.shortest_edge == 64 and exported.config.palette == model.config.palette
    check = check_export(exported, model, inputs_of(processor, pictures))
    assert check.num_pictures == 5 and len(check.sizes) == 3
    assert check.largest_difference < 1e-4 * max(check.largest_score, 1) and check.agreement > 0.999
    assert exported.config.id2label == model.config.id2label
    # The protocols take it where they take a model.
    for protocol in (Protocol(), Protocol(ratios=(0.75, 1.0), flip=True), Protocol("slide", 48, 32)):
        labels = predict(exported, processor, pictures[0], protocol)
        assert (labels == predict(model, processor, pictures[0], protocol)).float().mean() > 0.999
    with pytest.raises(ValueError, match="sides of 33 to 4096 pixels, got 32x96"):
        exported(torch.zeros(1, 3, 32, 96))
    with pytest.raises(ValueError, match=r"must be \(batch, 3, height, width\), got \(1, 4, 64, 96\)"):
        exported(torch.zeros(1, 4, 64, 96))


def test_export_of_a_fixed_size(fixed, processor):
    folder, model = fixed
    exported = ExportedSegmentationModel.from_pretrained(folder, trust_pickle=True)
    inputs = [torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))]  # of a batch, one by one
    check = check_export(exported, model, inputs)
    assert check.sizes == [(64, 96)] and check.num_pictures == 3 and check.agreement > 0.999
    check = check_export(exported, random_model(tiny_config("semantic_fpn"), seed=1), inputs)
    assert check.agreement < 0.9 and check.largest_difference > 0.01
    with pytest.raises(ValueError, match="takes pictures of 64x96 pixels alone, got 64x64"):
        exported(torch.zeros(1, 3, 64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        assert (exported(inputs[0]).logits == exported(inputs[0]).logits).all()
    with pytest.raises(ValueError, match="computes in its own precision, float32, and cannot in torch.bfloat16"):
        predict(exported, processor, torch.zeros(3, 64, 64, dtype=torch.uint8), dtype=torch.bfloat16)


@pytest.mark.parametrize(("num_labels", "dtype"), [(5, torch.uint8), (300, torch.int32)])
def test_label_maps(num_labels, dtype, processor, pictures, tmp_path):
    model = random_model(tiny_config("semantic_fpn", num_labels=num_labels))
    write_export(tmp_path, model, "torch_export", label_maps=True)
    exported = ExportedSegmentationModel.from_pretrained(tmp_path, trust_pickle=True)
    pixel_values = inputs_of(processor, pictures)[-1]
    labels = exported(pixel_values).labels
    expected = resize_to(model(pixel_values).logits, tuple(pixel_values.shape[-2:])).argmax(dim=1)
    assert labels.dtype == dtype and (labels == expected).float().mean() > 0.999
    check = check_export(exported, model, [pixel_values])
    assert check.agreement > 0.999 and check.largest_difference is None
    picture = torch.randint(256, (3, 128, 180), dtype=torch.uint8)
    labels = predict(exported, processor, picture)
    assert labels.shape == (128, 180) and labels.dtype == torch.int64
    assert (labels == predict(model, processor, picture)).float().mean() > 0.8  # but for the edges
    picture = picture[:, :64, :96]  # which is not resized
    labels = predict(exported, processor, picture)
    assert (labels == predict(model, processor, picture)).float().mean() > 0.999
    for protocol in (Protocol(flip=True), Protocol("slide", 48, 32)):
        with pytest.raises(ValueError, match="label maps, which cannot be averaged"):
            predict(exported, processor, picture, protocol)
    with pytest.raises(ValueError, match="label maps"):
        whole_inference(exported, pixel_values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype, processor, pictures, tmp_path):
    model = random_model(tiny_config("semantic_fpn"))
    info = write_export(tmp_path, model, "torch_export", dtype=dtype)
    assert info.precision == dtype and next(model.parameters()).dtype == torch.float32
    exported = ExportedSegmentationModel.from_pretrained(tmp_path, trust_pickle=True)
    pixel_values = inputs_of(processor, pictures)[0]
    assert exported(pixel_values).logits.dtype == exported.dtype == torch.float32
    check = check_export(exported, model, [pixel_values])
    assert check.agreement > 0.9 and 0 < check.largest_difference < 0.1 * check.largest_score


def test_exports_that_cannot_be_loaded(fixed, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(fixed[0], folder)
    with pytest.raises(ValueError, match="torch_export program, which runs any code .*--trust_pickle"):
        load_model(str(folder))
    content = read_json(folder / "export_info.json")
    for change, message in (
        ({"program": "0" * 32}, "is not the one that its export_info.json tells of"),
        ({"version": 2}, "is of version 2, and this package reads 1"),
        ({"source": {"format": "onnx"}}, "does not tell what the program was made of"),
        ({"source": content["source"] | {"format": "tflite"}}, "does not tell what the program was made of"),
        ({"source": content["source"] | {"format": ["onnx"]}}, "does not tell what the program was made of"),
        ({"source": content["source"] | {"size": [64]}}, "does not tell what the program was made of"),
        ({"source": content["source"] | {"dtype": "float99"}}, "does not tell what the program was made of"),
        ({"source": content["source"] | {"label_maps": "no"}}, "does not tell what the program was made of"),
        ({"source": content["source"] | {"label_maps": True}}, "must return labels of 64x96 pixels, got"),
    ):
        write_json(folder / "export_info.json", content | change)
        with pytest.raises(ValueError, match=message):
            load_model(str(folder), trust_pickle=True)
    write_json(folder / "export_info.json", content)
    manifest = read_json(folder / "export.json")
    for components in ({}, [], {"model": manifest["components"]["model"] | {"file": "../model.pt2"}}):
        write_json(folder / "export.json", manifest | {"components": components})
        with pytest.raises(ValueError, match="export.json must name one program in its own folder"):
            load_model(str(folder), trust_pickle=True)
    write_json(folder / "export.json", manifest)
    config = read_json(folder / "config.json")
    changed = config | {"id2label": {"0": "one", "1": "two"}, "label2id": {"one": 0, "two": 1}, "palette": None}
    write_json(folder / "config.json", changed)
    with pytest.raises(ValueError, match="must return scores of 2 labels, as its config.json says"):
        load_model(str(folder), trust_pickle=True)
    write_json(folder / "config.json", config)
    program = (folder / "model.pt2").read_bytes()
    (folder / "model.pt2").write_bytes(program[: len(program) // 2])
    with pytest.raises(ValueError, match="the export .* cannot be used|is not the one"):
        load_model(str(folder), trust_pickle=True)
    (folder / "export_info.json").unlink()
    with pytest.raises(ValueError, match="has no export_info.json, so it was not written by examples/export.py"):
        load_model(str(folder), trust_pickle=True)


def test_a_folder_of_a_repository_is_named_after_it(tmp_path):
    assert split_subfolder("someone/van/onnx") == ("someone/van", "onnx")
    assert split_subfolder("someone/van") == ("someone/van", "")
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in (str(tmp_path / "a" / "b"), "./a/b/c", "/a/b/c", "../a/b"):
        assert split_subfolder(name) == (name, "")


def test_scores_that_are_not_numbers_are_a_difference(processor, pictures):
    model = random_model(tiny_config("semantic_fpn"))

    class Exported:
        info = ExportInfo("tiny", "", "onnx")
        step = 1

        def __call__(self, pixel_values):
            outputs = model(pixel_values[..., :: self.step])
            outputs.logits[0, 0, 0, 0] = torch.nan
            return outputs

    inputs = inputs_of(processor, pictures)
    exported = Exported()
    assert check_export(exported, model, inputs).largest_difference > 1e30
    exported.step = 2
    with pytest.raises(ValueError, match="returns values of shape"):
        check_export(exported, model, inputs)


def test_what_cannot_be_exported(monkeypatch):
    model = random_model(tiny_config("semantic_fpn"))
    with pytest.raises(ValueError, match="the format must be one of onnx, openvino, .* got 'tflite'"):
        export_model(model, "tflite")
    with pytest.raises(ValueError, match=r"33 to 4096 pixels, got \(64,\)"):
        export_model(model, "torch_export", (64,))
    with pytest.raises(ValueError, match=r"33 to 4096 pixels, got \(32, 96\)"):
        export_model(model, "torch_export", (32, 96))
    with monkeypatch.context() as context:
        context.setattr(exports, "find_spec", lambda package: True)
        with pytest.raises(ValueError, match="executorch programs are for pictures of one size"):
            export_model(model, "executorch")
    with pytest.raises(ValueError, match="onnx computes in float32, float16, not in bfloat16"):
        export_model(model, "onnx", dtype="bfloat16")
    monkeypatch.setattr(type(model.decode_head), "forward", lambda self, features: features[0].nonsense())
    with pytest.raises(ValueError, match=r"cannot be exported to torch_export: .*nonsense"):
        export_model(model, "torch_export", (64, 96))
    monkeypatch.setattr(exports, "find_spec", lambda package: None if package == "openvino" else True)
    with pytest.raises(ValueError, match=r'openvino needs openvino, .*pip install -e "\.\[export\]"'):
        check_packages("openvino")
    check_packages("onnx")
    monkeypatch.setattr(exports, "find_spec", lambda package: None if package == "nncf" else True)
    check_packages("openvino")
    with pytest.raises(ValueError, match="openvino needs nncf"):
        check_packages("openvino", int8=True)
