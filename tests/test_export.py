# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json

import export
import pytest
import torch
from benchmarks.models import random_model
from conftest import tiny_config
from PIL import Image

from van_hf import VanImageProcessor
from van_hf.exports import ExportCheck

pytest.importorskip("transformers.exporters", reason="exports need transformers 5.23")
if torch.__version__ < "2.11":
    pytest.skip("exports need torch 2.11", allow_module_level=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    random_model(tiny_config("semantic_fpn")).save_pretrained(folder)
    VanImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder)
    return folder


def run(*arguments) -> int:
    return export.main([str(argument) for argument in arguments])


def test_the_folder_says_what_it_is(trained, tmp_path, capsys):
    output_dir = tmp_path / "new" / "export"
    assert run(trained, output_dir, "--format", "torch_export", "--size", 64, 96) == 0
    assert "100.0000 % of the pixels of 16 pictures of 1 sizes (64x96 to 64x96)" in capsys.readouterr().out
    assert [path.name for path in output_dir.parent.iterdir()] == ["export"]
    names = {path.name for path in output_dir.iterdir()}
    assert {"model.pt2", "config.json", "preprocessor_config.json", "export.json", "check.json"} <= names
    content = json.loads((output_dir / "check.json").read_text())
    assert content["source"]["size"] == [64, 96] and len(content["source"]["digest"]) == 32
    assert content["check"]["agreement"] == 1 and set(content["source"]["packages"]) == {"transformers", "torch"}
    assert run(trained, output_dir, "--format", "torch_export") == 2
    assert f"{output_dir} is there already" in capsys.readouterr().err


def test_an_export_that_is_not_the_models_equal_is_left_nowhere(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "check_export", lambda *_: ExportCheck(16, [(64, 96)], 1.0, 2.0, 0.9998))
    assert run(trained, tmp_path / "export", "--format", "torch_export", "--size", 64, 96) == 2
    assert "not the model's equal: 99.9800 % of the pixels" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_input(trained, tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "one.png")
    for arguments, message in (
        ((tmp_path / "missing", "--format", "torch_export"), "missing"),
        ((trained, "--format", "torch_export", "--size", 8, 96), "33 to 4096 pixels"),
        ((trained, "--format", "torch_export", "--images", tmp_path / "one.png"), "holds 1 pictures"),
    ):
        assert run(arguments[0], tmp_path / "export", *arguments[1:]) == 2
        assert message in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["one.png"]
