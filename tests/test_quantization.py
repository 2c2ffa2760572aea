# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import PROGRAMS, child_environment

from van_hf.exports import ExportedSegmentationModel, read_info
from van_hf.openvino_process import ISA, openvino_kept_in_place
from van_hf.quantization import quantize_export

pytest.importorskip("transformers.exporters", reason="exports need transformers 5.23")
if torch.__version__ < "2.11":
    pytest.skip("exports need torch 2.11", allow_module_level=True)


def inputs() -> list[torch.Tensor]:
    """Pictures of two sizes, as those of a data set are."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 3, *size, generator=generator) for size in ((64, 96), (80, 64), (64, 96))]


def constants(name: str, program) -> list[bytes]:
    """The quantized weights, and the ranges of activations."""
    if name == "onnx":
        return [value.const_value.tobytes() for value in program.graph.initializers.values()]
    return [op.data.tobytes() for op in program.get_ops() if op.get_type_name() == "Constant"]


def is_quantized(program, kind: str) -> list[bool]:
    """Whether what goes into each operation of a kind has been."""
    operations = [op for op in program.get_ops() if op.get_type_name() == kind]
    assert operations
    return [op.input_value(0).get_node().get_type_name() == "FakeQuantize" for op in operations]


@pytest.mark.slow
def test_openvino_leaves_the_process_and_its_user_alone(tmp_path):
    command = [sys.executable, PROGRAMS / "export_with_openvino.py", tmp_path / "export"]
    run = subprocess.run(
        command, env={**child_environment(), "HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == {"handled": 1, "reports": [], "CI": None}
    assert not (tmp_path / "intel").exists()  # where the user would get an identity


@pytest.mark.slow
@pytest.mark.parametrize(("name", "decode_head"), [("onnx", "semantic_fpn"), ("openvino", "light_ham")])
def test_int8(name, decode_head, export_of):
    exporters = importlib.import_module("transformers.exporters")
    folder, model = export_of(name, decode_head)
    with openvino_kept_in_place():
        exported, again = (exporters.ExportedModel.from_pretrained(folder, device="cpu") for _ in range(2))
    size = sum(map(len, constants(name, exported.program)))
    for each in (exported, again):
        quantize_export(each, name, inputs())
    assert sorted(constants(name, again.program)) == sorted(constants(name, exported.program))
    assert sum(map(len, constants(name, exported.program))) < 0.6 * size

    if name == "openvino":  # products of maps stay in float
        assert not any(is_quantized(exported.program, "MatMul"))
        assert sum(is_quantized(exported.program, "Convolution")) > 10

    pixel_values = torch.cat([inputs()[0], inputs()[2]])
    with torch.no_grad():
        expected = model(pixel_values).logits
    info, _ = read_info(folder, "", str(folder))
    logits = ExportedSegmentationModel(exported, info)(pixel_values).logits
    difference = (logits - expected).abs()
    # Of random weights, which are the worst for it; trained models' labels agree to 98 %.
    assert 0 < difference.mean() < 0.1 * expected.abs().max()
    assert (logits.argmax(dim=1) == expected.argmax(dim=1)).float().mean() > 0.7


def test_what_cannot_be_quantized(monkeypatch):
    class Exported:
        components = {"model": None}

    with pytest.raises(ValueError, match="int8 is for onnx and openvino, not for torch_export"):
        quantize_export(Exported(), "torch_export", [])
    nncf = pytest.importorskip("nncf")

    class Program:
        get_ordered_ops = list

    class Component:
        program = Program

    def fail(*_, **__):
        raise RuntimeError("no luck\nand more")

    monkeypatch.setattr(nncf, "quantize", fail)
    Exported.components = {"model": Component()}
    with pytest.raises(ValueError, match="the program cannot be quantized: RuntimeError: no luck$"):
        quantize_export(Exported(), "openvino", [])


@pytest.mark.parametrize("given", [None, "AVX2"])
def test_openvino_is_kept_from_amx_unless_the_user_says_otherwise(monkeypatch, given):
    """Its int8 convolutions for AMX kill the process; that exports work there shows in test_export.py."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv(ISA, raising=False)
    if given is not None:
        monkeypatch.setenv(ISA, given)
    with openvino_kept_in_place():
        assert (os.environ["CI"], os.environ[ISA]) == ("true", given or "AVX512_CORE_FP16")
    assert (os.environ.get("CI"), os.environ.get(ISA)) == (None, given)
