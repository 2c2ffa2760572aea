# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""examples/export.py, and the other scripts on what it writes."""

import json
import re
import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import benchmark
import eval_seg
import export
import numpy as np
import predict
import pytest
import torch
from accelerate import Accelerator
from benchmarks import throughput
from benchmarks.models import random_model
from conftest import BOX_NAMES, child_environment, finish, launch, tiny_config
from PIL import Image
from transformers import pipeline

from van_hf import VanImageProcessor, inference
from van_hf.data import load_segmentation_dataset
from van_hf.evaluation import evaluate
from van_hf.exports import ExportCheck
from van_hf.inference import load_model

pytest.importorskip("transformers.exporters", reason="exports need transformers 5.23")
if torch.__version__ < "2.11":
    pytest.skip("exports need torch 2.11", allow_module_level=True)

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    random_model(tiny_config("semantic_fpn", id2label=BOX_NAMES)).save_pretrained(folder)
    VanImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """An export of free size, quickly made."""
    folder = tmp_path_factory.mktemp("exports") / "free"
    assert run(trained, folder, "--format", "torch_export") == 0
    return folder


@pytest.fixture(scope="module")
def label_maps(trained, tmp_path_factory):
    """An export of a fixed size that returns label maps."""
    folder = tmp_path_factory.mktemp("exports") / "label_maps"
    assert run(trained, folder, "--format", "torch_export", "--size", 64, 96, "--label_maps") == 0
    return folder


def run(*arguments) -> int:
    return export.main([str(argument) for argument in arguments])


def test_the_folder_says_what_it_is(trained, tmp_path, capsys):
    output_dir = tmp_path / "new" / "export"
    assert run(trained, output_dir, "--format", "torch_export", "--size", 64, 96) == 0
    assert "100.0000 % of the pixels of 16 pictures of 1 sizes (64x96 to 64x96)" in capsys.readouterr().out
    assert [path.name for path in output_dir.parent.iterdir()] == ["export"]
    names = {path.name for path in output_dir.iterdir()}
    assert {"model.pt2", "config.json", "preprocessor_config.json", "export.json", "export_info.json"} <= names
    content = json.loads((output_dir / "export_info.json").read_text())
    assert content["source"]["size"] == [64, 96] and len(content["source"]["digest"]) == 32
    assert content["check"]["agreement"] == 1 and set(content["source"]["packages"]) == {"transformers", "torch"}
    model, image_processor = load_model(str(output_dir), trust_pickle=True)
    assert len(model.config.palette) == model.config.num_labels  # of the folder's own, though the model has none
    assert image_processor.get_resized_size(500, 500) == (64, 96)
    assert run(trained, output_dir, "--format", "torch_export") == 2
    assert f"{output_dir} is there already" in capsys.readouterr().err


def test_an_export_that_is_not_the_models_equal_is_left_nowhere(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "check_export", lambda *_: ExportCheck(16, [(64, 96)], 1.0, 2.0, 0.9998))
    assert run(trained, tmp_path / "export", "--format", "torch_export", "--size", 64, 96) == 2
    assert "not the model's equal: 99.9800 % of the pixels" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_computes_no_numbers_is_not_exported(tmp_path, capsys):
    model = random_model(tiny_config("semantic_fpn"))
    model.decode_head.classifier.bias.data[0] = torch.nan
    model.save_pretrained(tmp_path / "model")
    VanImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path / "model")
    assert run(tmp_path / "model", tmp_path / "export", "--format", "torch_export", "--size", 64, 96) == 2
    assert "are not all numbers" in capsys.readouterr().err and not (tmp_path / "export").exists()


def test_a_full_disk(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export.shutil, "disk_usage", lambda path: Namespace(free=2**20))
    assert run(trained, tmp_path / "export", "--format", "torch_export") == 2
    assert "1 MB are free, and an export may take" in capsys.readouterr().err and list(tmp_path.iterdir()) == []

    class Program:
        def save_pretrained(self, folder):
            raise RuntimeError("file write failed\nand more")

    with pytest.raises(OSError, match="file write failed: '.*export'"):
        export.save_program(Program(), tmp_path / "export")


def test_what_a_killed_run_has_left_goes(trained, tmp_path):
    left = tmp_path / ".partial-export"
    (left / "new").mkdir(parents=True)
    (left / "new" / "model.pt2").write_bytes(b"half")
    assert run(trained, tmp_path / "export", "--format", "torch_export", "--size", 64, 96) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_half_precision_is_judged_by_the_mean_iou(trained, boxes, tmp_path, monkeypatch, capsys):
    arguments = (trained, tmp_path / "export", "--format", "torch_export", "--dtype", "bfloat16", "--size", 64, 96)
    assert run(*arguments, "--dataset", boxes, "--num_eval_pictures", 2, "--allow_loss", 100) == 0
    assert "ean IoU on 2 validation pictures" in capsys.readouterr().out
    content = json.loads((tmp_path / "export" / "export_info.json").read_text())
    assert content["source"]["dtype"] == "bfloat16" and set(content["check"]["mean_iou"]) == {
        "num_pictures",
        "model",
        "export",
    }
    figures = {"num_pictures": 2, "model": 0.5, "export": 0.494}
    with pytest.raises(ValueError, match="50.00 before and 49.40 after: 0.60 points are lost, and 0.5 may be"):
        export.check_loss(figures, 0.5)
    assert "50.00 before and 49.40 after" in export.check_loss(figures, 0.7)
    with pytest.raises(ValueError, match="nan after"):
        export.check_loss(figures | {"export": float("nan")}, 0.5)


@pytest.mark.slow
def test_int8(trained, boxes, tmp_path, capsys):
    arguments = ("--int8", boxes, "--num_calibration_pictures", 3, "--num_eval_pictures", 2, "--allow_loss", 100)
    assert run(trained, tmp_path / "export", "--format", "openvino", *arguments) == 0
    assert re.search(r"On this machine int8 is \d+\.\d\d times as fast as float32 at ", capsys.readouterr().out)
    content = json.loads((tmp_path / "export" / "export_info.json").read_text())
    assert content["source"]["int8"] == {"dataset": str(boxes), "num_pictures": 3, "seed": 0}
    assert content["check"]["speedup"] > 0
    assert load_model(str(tmp_path / "export"))[0].info.precision == "int8, the rest float32"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_calibration_pictures_are_the_same_for_a_seed(boxes):
    dataset = export.load_dataset(export.parse_args(["m", "o", "--format", "onnx", "--int8", str(boxes)]))
    draw = [export.calibration_pictures(dataset, VanImageProcessor(), 3, seed) for seed in (0, 0, 1)]
    assert draw[0].indices == draw[1].indices != draw[2].indices and len(draw[0]) == 3
    for first, second in zip(draw[0], draw[0], strict=True):  # read anew each time
        assert (first == second).all()
    assert len(export.calibration_pictures(dataset, VanImageProcessor(), 10**6, 0)) == len(dataset.splits["train"])


def test_bad_input(trained, exported, boxes, tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "one.png")
    (tmp_path / "labels.json").write_text(json.dumps({str(idx): f"other {idx}" for idx in BOX_NAMES}))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert run(trained, tmp_path / "link", "--format", "torch_export") == 2
    assert run(trained, "/", "--format", "torch_export") == 2
    assert run(trained, "", "--format", "torch_export") == 2
    assert capsys.readouterr().err.count("is there already; name another OUTPUT_DIR") == 3
    (tmp_path / "link").unlink()
    for arguments, message in (
        ((tmp_path / "missing", "--format", "torch_export"), "missing"),
        ((exported, "--format", "torch_export"), "torch_export program"),
        ((trained, "--format", "torch_export", "--size", 8, 96), "33 to 4096 pixels"),
        ((trained, "--format", "torch_export", "--images", tmp_path / "one.png"), "holds 1 pictures"),
        ((trained, "--format", "onnx", "--dtype", "bfloat16", "--dataset", boxes), "not in bfloat16"),
        ((trained, "--format", "openvino", "--int8", tmp_path / "none"), "none"),
        ((trained, "--format", "openvino", "--int8", "scenes"), "labels, dataset scenes"),
        (
            (trained, "--format", "openvino", "--int8", boxes, "--id2label", tmp_path / "labels.json"),
            "it must be a dataset with the model's labels",
        ),
    ):
        assert run(arguments[0], tmp_path / "export", *arguments[1:]) == 2
        assert message in capsys.readouterr().err
        assert {path.name for path in tmp_path.iterdir()} == {"one.png", "labels.json"}
    for arguments, message in (
        (("--format", "torch_export", "--int8", boxes), "--int8 is not to be had for torch_export"),
        (("--format", "onnx", "--int8", boxes, "--dataset", boxes), "leave --dataset out"),
        (("--format", "onnx", "--dtype", "float16"), "name a data set with --dataset"),
        (("--format", "onnx", "--int8", boxes, "--num_eval_pictures", 0), "must be 1 or more"),
        (("--format", "tflite"), "invalid choice: 'tflite'"),
    ):
        with pytest.raises(SystemExit):
            run(trained, tmp_path / "export", *arguments)
        assert message in capsys.readouterr().err


def test_predict_takes_an_export(trained, exported, label_maps, tmp_path, capsys):
    Image.effect_noise((100, 80), 90).convert("RGB").save(tmp_path / "picture.png")

    def segment(folder, name, *arguments) -> int:
        return predict.main([str(folder), str(tmp_path / "picture.png"), "--output_dir", str(tmp_path / name),
                             "--save", "masks", *arguments])  # fmt: skip

    masks = {}
    for name, folder, arguments in (
        ("torch", trained, ("--flip",)),
        ("export", exported, ("--flip", "--trust_pickle")),
        ("label_maps", label_maps, ("--trust_pickle",)),
    ):
        assert segment(folder, name, *arguments) == 0
        masks[name] = np.asarray(Image.open(tmp_path / name / "masks" / "picture.png"))
    assert (masks["torch"] == masks["export"]).mean() > 0.999 and masks["label_maps"].shape == (80, 100)
    for folder, arguments, message in (
        (exported, (), "runs any code that its file holds"),
        (exported, ("--trust_pickle", "--dtype", "bfloat16"), "computes in its own precision, float32"),
        (label_maps, ("--trust_pickle", "--flip"), "returns label maps; export it without --label_maps"),
    ):
        assert segment(folder, "none", *arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_eval_seg_takes_an_export(trained, exported, boxes, tmp_path):
    arguments = (EXAMPLES / "eval_seg.py", "--dataset", boxes, "--flip", "--model_name_or_path", exported)
    finish(launch(*arguments, "--trust_pickle", "--output_dir", "export", cwd=tmp_path))
    results = json.loads((tmp_path / "export" / "results.json").read_text())
    model, image_processor = load_model(str(trained), "cpu")
    dataset = load_segmentation_dataset(str(boxes))
    segment = partial(inference.predict, model, image_processor, protocol=inference.Protocol(flip=True))
    assert abs(evaluate(Accelerator(cpu=True), segment, dataset)["mean_iou"] - results["mean_iou"]) < 1e-3
    assert results["model"]["runtime"] == "torch_export" and results["model"]["precision"] == "float32"
    assert results["model"]["export"]["size"] is None and results["device"] == "cpu"


def test_what_eval_seg_cannot_do_with_an_export(exported, label_maps):
    def problems(folder, **changes) -> list[str]:
        chosen = {"mode": "whole", "crop_size": None, "stride": None, "multi_scale": False, "flip": False}
        args = Namespace(model_name_or_path=str(folder), **{"mixed_precision": None} | chosen | changes)
        return eval_seg.find_model_problems(args, load_model(str(folder), trust_pickle=True)[0])

    slide = {"mode": "slide", "crop_size": 64, "stride": 32}
    assert problems(exported, multi_scale=True, flip=True, **slide) == [] == problems(label_maps)
    for folder, changes, messages in (
        (exported, {"mixed_precision": "bf16"}, ["--mixed_precision: "]),
        (label_maps, {"flip": True}, ["--flip average scores"]),
        (label_maps, {"multi_scale": True}, ["--flip average scores", "takes pictures of 64x96 pixels alone"]),
        (label_maps, slide, ["--flip average scores", "takes pictures of 64x96 pixels alone"]),
    ):
        found = problems(folder, **changes)
        assert len(found) == len(messages) and all(map(str.__contains__, found, messages))


def test_the_pipeline_takes_an_export(trained, exported, caplog):
    model, image_processor = load_model(str(exported), trust_pickle=True)
    picture = Image.effect_noise((100, 80), 90).convert("RGB")
    segments = pipeline("image-segmentation", model=model, image_processor=image_processor)(picture)
    expected = pipeline("image-segmentation", model=str(trained))(picture)
    assert "is not supported" not in caplog.text
    assert [segment["label"] for segment in segments] == [segment["label"] for segment in expected]
    for segment, other in zip(segments, expected, strict=True):
        assert (np.asarray(segment["mask"]) == np.asarray(other["mask"])).mean() > 0.999


def test_benchmarks_take_an_export(exported, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(throughput, "START_TIMEOUT", 100)
    with pytest.raises(SystemExit, match=r"--exports: .*trust_pickle"):
        benchmark.main(["inference", "--exports", str(exported)])
    with pytest.raises(SystemExit, match="goes with --device cpu and --dtype float32"):
        benchmark.main(["inference", "--exports", str(exported), "--dtype", "bfloat16"])
    arguments = ["throughput", str(exported), "--batch_size", "2", "--streams", "1", "--seconds", "0.01"]
    sizes = ["--height", "64", "--width", "64", "--json", str(tmp_path / "figures.json")]
    assert benchmark.main([*arguments, *sizes, "--trust_pickle"]) == 0
    (row,) = json.loads((tmp_path / "figures.json").read_text())["tables"][0]["rows"]
    assert row["batch"] == 2 and row["free images/s"] > 0


@pytest.mark.slow
def test_the_example_without_pytorch(export_of, tmp_path):
    """The program in examples/README.md, where only onnxruntime, numpy and Pillow are."""
    folder, model = export_of("onnx", "semantic_fpn")
    model.save_pretrained(tmp_path / "model")
    VanImageProcessor.from_pretrained(folder).save_pretrained(tmp_path / "model")
    text = (EXAMPLES / "README.md").read_text("utf-8")
    program = re.search(r"^### Without PyTorch\n.*?^```python\n(.*?)^```$", text, re.M | re.S)[1]
    (tmp_path / "segment.py").write_text(program)
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'transformers', 'van_hf']));"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8))
    # The first is taken as it is; resizing, the image processor rounds as OpenCV does.
    for size, agreement in (((96, 64), 0.999), ((130, 90), 0.98)):
        noise.resize(size, Image.Resampling.BICUBIC).save(tmp_path / "picture.png")
        paths = (tmp_path / "segment.py", folder, tmp_path / "picture.png", tmp_path / "mask.png")
        subprocess.run([sys.executable, "-c", code, *map(str, paths)], check=True, env=child_environment())
        outputs = ("--output_dir", str(tmp_path / "predictions"), "--save", "masks", "--overwrite")
        predict.main([str(tmp_path / "model"), str(tmp_path / "picture.png"), *outputs])
        with (
            Image.open(tmp_path / "mask.png") as mask,
            Image.open(tmp_path / "predictions/masks/picture.png") as other,
        ):
            assert mask.mode == other.mode == "P" and mask.getpalette() == other.getpalette()
            assert (np.asarray(mask) == np.asarray(other)).mean() > agreement
