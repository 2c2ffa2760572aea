# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""examples/convert_checkpoint.py, as users call it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import convert_checkpoint
import numpy as np
import PIL.Image
import pytest
import torch

from van_hf import VanForSemanticSegmentation, VanModel
from van_hf.checkpoints import load_original_checkpoint

SCRIPT = Path(__file__).parents[1] / "examples" / "convert_checkpoint.py"


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_printed_lines_use_the_model(fixtures_dir, tmp_path):
    done = run(fixtures_dir / "seed_upernet_van_tiny.pth", "converted", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "with UperNet and its auxiliary head" in done.stdout
    assert "hidden_sizes [8, 16, 24, 32], depths [1, 2, 1, 1]" in done.stdout
    num_parameters = sum(
        p.numel() for p in VanForSemanticSegmentation.from_pretrained(tmp_path / "converted").parameters()
    )
    assert f"{num_parameters:,}" in done.stdout
    assert "7: class_0, class_1" in done.stdout
    assert os.listdir(tmp_path) == ["converted"]

    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "picture.jpg")
    lines = done.stdout.strip().splitlines()[-2:]
    used = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert used.returncode == 0, used.stderr
    assert "'label': 'class_" in used.stdout


def main(*arguments):
    """The script in this process: its exit status."""
    return convert_checkpoint.main([str(argument) for argument in arguments])


@pytest.mark.slow
def test_refused_checkpoints_leave_nothing(fixtures_dir, tmp_path):
    (tmp_path / "cut.pth").write_bytes((fixtures_dir / "seed_fpn_van_tiny.pth").read_bytes()[:100_000])
    done = run("cut.pth", "converted", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: cut.pth is truncated, damaged")
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert os.listdir(tmp_path) == ["cut.pth"]


def test_missing_keys_leave_nothing(fixtures_dir, tmp_path, capsys):
    state_dict, meta = load_original_checkpoint(fixtures_dir / "seed_fpn_van_tiny.pth")
    del state_dict["neck.fpn_convs.1.conv.bias"]
    torch.save({"state_dict": state_dict, "meta": meta}, tmp_path / "incomplete.pth")
    assert main(tmp_path / "incomplete.pth", tmp_path / "converted") == 2
    assert "Tensors missing: neck.fpn_convs.1.conv.bias" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["incomplete.pth"]


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("light_ham", "Light-Ham of rank {} (no tensor tells it)\n"),
        ("ham", "HamNet of rank {} (no tensor tells it) and its auxiliary head\n"),
    ],
)
def test_the_rank_is_named(fixtures_dir, tmp_path, capsys, name, head):
    checkpoint = fixtures_dir / f"seed_{name}_van_tiny.pth"
    for rank, arguments in {64: (), 8: ("--ham_rank", 8)}.items():
        assert main(checkpoint, tmp_path / f"rank{rank}", *arguments) == 0
        assert f"with {head.format(rank)}" in capsys.readouterr().out
        config = json.loads((tmp_path / f"rank{rank}" / "config.json").read_text())
        assert (config["decode_head"], config["ham_rank"]) == (name, rank)


def test_a_wrong_rank_is_refused(fixtures_dir, tmp_path, capsys):
    arguments = (fixtures_dir / "seed_light_ham_van_tiny.pth", tmp_path / "converted", "--ham_rank")
    for rank in ("0", "-3", "many"):
        with pytest.raises(SystemExit) as stop:
            main(*arguments, rank)
        assert stop.value.code == 2 and "--ham_rank" in capsys.readouterr().err.splitlines()[-1]
    assert main(fixtures_dir / "seed_fpn_van_tiny.pth", *arguments[1:], 8) == 2
    assert "only Light-Ham and HamNet have a rank; this has Semantic FPN" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


WEIGHT = "backbone.patch_embed1.proj.weight"
DAMAGES = {
    "without plain numbers.*" + WEIGHT: lambda tensors, meta: [
        ({**tensors, WEIGHT: changed(tensors[WEIGHT])}, meta)
        for changed in (
            lambda weight: weight.bool(),
            lambda weight: weight.to(torch.complex64),
            lambda weight: weight.int(),
            lambda weight: weight.to_sparse(),
            lambda weight: weight.to("meta"),
            lambda weight: weight[:0],
        )
    ],
    "of [0-9]+ tensors one is backbone.block1.999999999": lambda tensors, meta: [
        ({**tensors, "backbone.block1.999999999.x": torch.zeros(1)}, meta)
    ],
    "CLASSES.* must be a list": lambda tensors, meta: [
        (tensors, {**meta, "CLASSES": classes}) for classes in (5, torch.zeros(7))
    ],
    "PALETTE.* must be a list": lambda tensors, meta: [
        (tensors, {**meta, "PALETTE": palette}) for palette in (5, [None] * 7, "random", [[float("nan")] * 3] * 7)
    ],
    "more than tensors.*posix.system": lambda tensors, meta: [(tensors, Evil())],
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damaged_and_hostile_checkpoints_are_one_line(fixtures_dir, tmp_path, capsys, monkeypatch, message):
    monkeypatch.chdir(tmp_path)
    tensors, meta = load_original_checkpoint(fixtures_dir / "seed_upernet_van_tiny.pth")
    for state_dict, changed_meta in DAMAGES[message](tensors, meta):
        torch.save({"state_dict": state_dict, "meta": changed_meta}, "damaged.pth")
        assert main("damaged.pth", "converted") == 2
        assert re.search(f"error: damaged.pth.*{message}", capsys.readouterr().err)
        assert os.listdir(tmp_path) == ["damaged.pth"]


def test_tensors_that_are_one_in_the_file_are_converted(fixtures_dir, tmp_path):
    tensors, meta = load_original_checkpoint(fixtures_dir / "seed_upernet_van_tiny.pth")
    first, second = "backbone.norm1.weight", "backbone.norm1.bias"
    torch.save({"state_dict": {**tensors, second: tensors[first]}, "meta": meta}, tmp_path / "tied.pth")
    assert main(tmp_path / "tied.pth", tmp_path / "converted") == 0
    normalization = (
        VanForSemanticSegmentation.from_pretrained(tmp_path / "converted").van.encoder.stages[0].normalization
    )
    assert torch.equal(normalization.weight, normalization.bias)


def test_trust_pickle(fixtures_dir, tmp_path, capsys):
    state_dict, meta = load_original_checkpoint(fixtures_dir / "seed_fpn_van_tiny.pth")
    torch.save({"state_dict": state_dict, "meta": meta, "metric": np.float64(1)}, tmp_path / "objects.pth")
    assert main(tmp_path / "objects.pth", tmp_path / "converted") == 2
    assert "allow it with --trust_pickle" in capsys.readouterr().err
    assert main(tmp_path / "objects.pth", tmp_path / "converted", "--trust_pickle") == 0
    assert "with Semantic FPN" in capsys.readouterr().out


def test_names_from_a_file(fixtures_dir, tmp_path, capsys):
    checkpoint = fixtures_dir / "seed_classification_van_tiny.pth.tar"
    names = tmp_path / "id2label.json"
    names.write_text(json.dumps(dict(enumerate("abcde"))))
    assert main(checkpoint, tmp_path / "converted", "--id2label", names) == 0
    printed = capsys.readouterr().out
    assert "classifier" in printed and "5: a, b, c, d, ..." in printed and '"image-classification"' in printed
    assert json.loads((tmp_path / "converted" / "config.json").read_text())["label2id"]["e"] == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "names.json cannot be read as JSON"),
        ("not json", "names.json cannot be read as JSON"),
        ('["a", "b"]', "id2label has 2 names, but the model has 5 labels"),
        ('{"first": "a"}', "expected label names by number"),
    ],
)
def test_bad_names_file(fixtures_dir, tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "names.json").write_text(content)
    checkpoint = fixtures_dir / "seed_classification_van_tiny.pth.tar"
    assert main(checkpoint, tmp_path / "converted", "--id2label", tmp_path / "names.json") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "converted").exists()


def test_a_folder_with_something_in_it_is_refused_first(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("precious")
    assert main("does-not-matter.pth", tmp_path) == 2
    assert f"{tmp_path} is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output_dir", "message"),
    [
        ("file", "is a file"),
        ("file/converted", "cannot be made"),
        (256 * "x", "cannot be made"),
        ("locked/converted", "cannot be made"),
    ],
)
def test_what_cannot_be_written_is_told_before_anything_is_loaded(tmp_path, monkeypatch, capsys, output_dir, message):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "locked").mkdir()
    # The tests may be run by root, who may write anywhere.
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    assert main("does-not-exist.pth", tmp_path / output_dir) == 2
    printed = capsys.readouterr().err
    assert message in printed and "does-not-exist" not in printed and printed.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["file", "locked"]


def test_a_folder_with_the_longest_name(fixtures_dir, tmp_path):
    assert main(fixtures_dir / "seed_fpn_van_tiny.pth", tmp_path / (255 * "x")) == 0
    assert os.listdir(tmp_path) == [255 * "x"]


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("nowhere.pth", "nowhere.pth does not exist"),
        (".", "is a folder; give the checkpoint file itself"),
        ("cut.safetensors", "cut.safetensors is truncated, damaged"),
        ("text.pth", "text.pth is truncated, damaged"),
        (256 * "x", "cannot be opened"),
    ],
)
def test_a_wrong_checkpoint_is_one_line(fixtures_dir, tmp_path, monkeypatch, capsys, checkpoint, message):
    monkeypatch.chdir(tmp_path)
    safetensors = fixtures_dir / "hub_van_tiny" / "model.safetensors"
    (tmp_path / "cut.safetensors").write_bytes(safetensors.read_bytes()[:100_000])
    (tmp_path / "text.pth").write_text("version https://git-lfs.github.com/spec/v1")
    assert main(checkpoint, "converted") == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("error: ") and printed.count("\n") == 1


def test_backbone_only(fixtures_dir, tmp_path, capsys):
    state_dict, _ = load_original_checkpoint(fixtures_dir / "seed_classification_van_tiny.pth.tar")
    torch.save({key: value for key, value in state_dict.items() if not key.startswith("head.")}, tmp_path / "b.pth")
    assert main(tmp_path / "b.pth", tmp_path / "converted") == 0
    printed = capsys.readouterr().out
    assert "backbone only: the file has no head" in printed
    namespace = {}
    exec("\n".join(printed.strip().splitlines()[-2:]), namespace)
    assert namespace["model"].config.num_labels == 150
    assert isinstance(namespace["model"].van, VanModel)
