# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import datasets
import eval_seg
import numpy as np
import pytest
import torch
from accelerate import PartialState
from conftest import BOX_NAMES, child_environment, finish, held_folders, launch, paired_folders, tiny_config
from PIL import Image

from van_hf import VanForSemanticSegmentation, VanImageProcessor
from van_hf.data import load_segmentation_dataset
from van_hf.metrics.mean_iou.mean_iou import MeanIoU

SCRIPT = Path(__file__).parents[1] / "examples" / "eval_seg.py"

FIGURES = ("mean_iou", "mean_accuracy", "overall_accuracy", "iou", "best_pictures", "worst_pictures")
SLIDE = ("--mode", "slide", "--crop_size", 128, "--stride", 100, "--multi_scale", "--flip", "--save_predictions")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    VanForSemanticSegmentation(tiny_config(id2label=BOX_NAMES)).save_pretrained(folder)
    # Pictures are processed much larger than they are, so that there is time to kill the process between two.
    VanImageProcessor(size={"shortest_edge": 256, "longest_edge": 768}).save_pretrained(folder)
    return folder


SLOW_FIXTURES = {"runs"}


@pytest.fixture(scope="module")
def quick_model(model, tmp_path_factory) -> Path:
    """The same model for pictures as they are."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(model, folder)
    VanImageProcessor(do_resize=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(boxes, model, tmp_path_factory) -> Path:
    """Folder with `whole`, a finished run of one process and its `output.txt`, and `resumed`, killed after the first
    picture and continued by two processes."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = (SCRIPT, "--dataset", boxes, "--model_name_or_path", model, *SLIDE, "--output_dir")
    killed = launch(*arguments, "resumed", cwd=folder)
    while not number_of_records(folder / "resumed") and killed.poll() is None:
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert 0 < number_of_records(folder / "resumed") < 5
    with next((folder / "resumed" / "progress").glob("*.jsonl")).open("a") as file:
        file.write('{"idx": 4, "cells": [0')  # as a kill in the middle of a line leaves it
    whole = launch(*arguments, "whole", cwd=folder)
    output = finish(launch(*arguments, "resumed", num_processes=2, cwd=folder))
    assert "evaluated before" in output
    (folder / "output.txt").write_text(finish(whole))
    return folder


def number_of_records(folder: Path) -> int:
    return sum(path.read_text().count("\n") for path in (folder / "progress").glob("*.jsonl"))


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def run_here(monkeypatch, *arguments: object) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(sys, "argv", ["eval_seg.py", *map(str, arguments)])
    eval_seg.main()


def test_killed_and_resumed_by_two_processes_gives_the_same_figures(runs):
    whole, resumed = (results_of(runs / name) for name in ("whole", "resumed"))
    assert (whole["num_processes"], resumed["num_processes"]) == (1, 2)
    assert whole["time"]["pictures_in_these_seconds"] == 5
    assert 0 < resumed["time"]["pictures_in_these_seconds"] < 5
    for name in (*FIGURES, "protocol", "dataset", "model"):
        assert whole[name] == resumed[name]
    masks = sorted(path.name for path in (runs / "whole" / "predictions").iterdir())
    assert masks == [f"val_{number:08d}.png" for number in range(1, 6)]
    for name in masks:
        whole, resumed = (np.asarray(Image.open(runs / run / "predictions" / name)) for run in ("whole", "resumed"))
        assert np.array_equal(whole, resumed)


def test_run_leaves_figures_and_pictures(runs):
    results = results_of(runs / "whole")
    assert results["protocol"]["inference"].startswith("multi-scale (0.5, 0.75, 1.0, 1.25, 1.5, 1.75) + flip, windows")
    assert results["protocol"]["stride"] == 100
    assert results["dataset"]["fingerprint"]
    assert [picture["idx"] for picture in results["worst_pictures"]] == [
        picture["idx"] for picture in results["best_pictures"][::-1]
    ]
    with (runs / "whole" / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == list(BOX_NAMES.values())
    assert {row["label"]: float(row["iou"]) for row in rows} == results["iou"]
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1)
    for name in ("confusion_matrix.png", "best_pictures.png", "worst_pictures.png"):
        with Image.open(runs / "whole" / name) as picture:
            assert min(picture.size) > 300
    assert not (runs / "whole" / "progress").exists()
    output = (runs / "output.txt").read_text()
    assert f"Mean IoU {100 * results['mean_iou']:.2f}" in output
    assert all(f"\n{name:6} " in output for name in BOX_NAMES.values())


def test_figures_are_those_of_the_saved_masks(runs, boxes):
    dataset = load_segmentation_dataset(boxes)
    masks = sorted((runs / "whole" / "predictions").iterdir())
    scores = eval_seg.hub_scores(MeanIoU(num_labels=3), dataset, masks)
    results = results_of(runs / "whole")
    assert scores["mean_iou"] == results["mean_iou"]
    assert scores["per_category_iou"].tolist() == list(results["iou"].values())


def test_whole_pictures(monkeypatch, tmp_path, boxes, quick_model):
    monkeypatch.chdir(tmp_path)
    arguments = ("--dataset", boxes, "--model_name_or_path", quick_model)
    run_here(monkeypatch, *arguments)
    folder = tmp_path / "outputs" / "eval-tiny-boxes"
    results = results_of(folder)
    assert results["protocol"]["inference"] == "single scale, whole image, compared at the original size"
    assert 0 <= results["mean_iou"] <= 1
    assert not (folder / "predictions").exists()
    run_here(monkeypatch, *arguments)
    assert results_of(tmp_path / "outputs" / "eval-tiny-boxes-2")["iou"] == results["iou"]


def test_labels_that_the_truth_lacks_are_told(monkeypatch, tmp_path, model, capsys):
    monkeypatch.chdir(tmp_path)
    folder = paired_folders(tmp_path / "fields")
    (folder / "id2label.json").write_text(json.dumps(BOX_NAMES))
    run_here(monkeypatch, "--dataset", folder, "--model_name_or_path", model)
    assert results_of(tmp_path / "outputs" / "eval-tiny-fields")["labels_without_pixels"] == ["ground", "box"]
    assert "The truth lacks 2 of the 3 labels: ground, box" in capsys.readouterr().out


def test_another_evaluation_is_not_continued(monkeypatch, tmp_path, boxes, quick_model, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ("--dataset", boxes, "--model_name_or_path", quick_model, "--output_dir", "begun")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(eval_seg, "append_counts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_here(patch, *arguments)
    with pytest.raises(SystemExit) as stop:
        run_here(monkeypatch, *arguments, "--flip", "--validation_split", "validation[1:]")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "flip is True, but begun holds an evaluation that was begun with False" in error
    assert "dataset_fingerprint is" in error
    run_here(monkeypatch, *arguments)
    assert results_of(tmp_path / "begun")["time"]["pictures_in_these_seconds"] == 5


@pytest.mark.slow
def test_damaged_picture_stops_all_processes_and_costs_nothing(monkeypatch, tmp_path, box_files, quick_model):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(eval_seg, "write_pictures", lambda *_: None)
    data = Path(shutil.copytree(box_files, "data"))
    arguments = ("--dataset", data, "--model_name_or_path", quick_model, "--output_dir")
    run_here(monkeypatch, *arguments, "whole")

    picture = data / "images" / "validation" / "3.png"
    content = picture.read_bytes()
    picture.write_bytes(content[:100])
    process = launch(SCRIPT, *arguments, "mended", num_processes=2, cwd=tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert output.count("error: ") == output.count("What was evaluated is kept") == 1
    assert number_of_records(tmp_path / "mended") == 4

    picture.write_bytes(content)
    run_here(monkeypatch, *arguments, "mended")
    whole, mended = results_of(tmp_path / "whole"), results_of(tmp_path / "mended")
    assert mended["time"]["pictures_in_these_seconds"] == 1
    assert [whole[name] for name in FIGURES] == [mended[name] for name in FIGURES]


@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_what_was_replaced_meanwhile_is_evaluated_again(monkeypatch, tmp_path, box_files, quick_model, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(eval_seg, "write_pictures", lambda *_: None)
    data = Path(shutil.copytree(box_files, "data"))
    arguments = ("--dataset", data, "--model_name_or_path", quick_model, "--output_dir")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(eval_seg, "collect_counts", lambda *_: (_ for _ in ()).throw(OSError("full")))
        run_here(patch, *arguments, "mended")
    file = data / kind / "validation" / "1.png"
    with Image.open(file) as content:
        content.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(file)
    run_here(monkeypatch, *arguments, "mended")
    run_here(monkeypatch, *arguments, "whole")
    whole, mended = results_of(tmp_path / "whole"), results_of(tmp_path / "mended")
    assert mended["time"]["pictures_in_these_seconds"] == 1
    assert [whole[name] for name in FIGURES] == [mended[name] for name in FIGURES]


def test_masks_without_a_label_can_be_mended(monkeypatch, capsys, tmp_path, quick_model):
    monkeypatch.setattr(eval_seg, "write_pictures", lambda *_: None)
    folder = paired_folders(tmp_path / "fields")
    (folder / "id2label.json").write_text(json.dumps(BOX_NAMES))
    masks = sorted(folder.glob("annotations/validation/*.png"))
    arguments = ("--dataset", folder, "--model_name_or_path", quick_model, "--output_dir", tmp_path / "out")
    for mask in masks:
        Image.new("L", (8, 6), 255).save(mask)
    with pytest.raises(SystemExit) as stop:
        run_here(monkeypatch, *arguments)
    assert stop.value.code == 1 and "no labelled pixel in its validation split" in capsys.readouterr().err
    for mask in masks:
        Image.new("L", (8, 6), 1).save(mask)
    run_here(monkeypatch, *arguments)
    assert results_of(tmp_path / "out")["labels_without_pixels"] == ["sky", "box"]


@pytest.mark.slow
def test_output_that_cannot_be_printed_costs_nothing(tmp_path, box_files, quick_model):
    data = Path(shutil.copytree(box_files, tmp_path / "data"))
    (data / "id2label.json").write_text(json.dumps(["sky \N{CLOUD}", "ground \ud800", "box"]))
    command = [sys.executable, SCRIPT, "--dataset", data, "--model_name_or_path", quick_model, "--output_dir"]
    environment = child_environment(PYTHONIOENCODING="latin-1", ACCELERATE_USE_CPU="true")
    options = {"cwd": tmp_path, "env": environment, "stderr": subprocess.PIPE, "encoding": "latin-1"}
    done = subprocess.run([*command, "plain"], stdout=subprocess.PIPE, **options)
    assert done.returncode == 0, done.stderr
    assert "\nsky \\u2601 " in done.stdout and "\nground \\ud800 " in done.stdout
    assert "Results are in plain" in done.stdout

    with subprocess.Popen([*command, "closed"], stdout=subprocess.PIPE, **options) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 0, error
    assert "warning: the summary could not be printed: [Errno 32] Broken pipe" in error
    assert results_of(tmp_path / "closed")["iou"] == results_of(tmp_path / "plain")["iou"]


@pytest.mark.parametrize("name", ["append_counts", "write_rows"])
def test_full_disk_is_told_with_the_file(monkeypatch, capsys, tmp_path, boxes, quick_model, name):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    arguments = ("--dataset", boxes, "--model_name_or_path", quick_model, "--output_dir", tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(eval_seg, name, fail)
        run_here(patch, *arguments)
    assert stop.value.code == 1
    file = {"append_counts": r"progress/\d+-0.jsonl", "write_rows": "per_class.csv"}[name]
    assert re.search(rf"No space left on device: '{tmp_path}/out/{file}'", capsys.readouterr().err)


def test_picture_that_cannot_be_drawn_costs_nothing_else(monkeypatch, capsys, tmp_path, boxes, quick_model):
    monkeypatch.setattr(eval_seg, "plot_predictions", lambda *_, **__: 1 / 0)
    run_here(monkeypatch, "--dataset", boxes, "--model_name_or_path", quick_model, "--output_dir", tmp_path)
    output, error = capsys.readouterr()
    for name in ("best_pictures.png", "worst_pictures.png"):
        assert f"warning: {tmp_path / name} could not be drawn: division by zero" in error
    assert f"Results are in {tmp_path}" in output
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"results.json", "per_class.csv", "confusion_matrix.png"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoint_is_evaluated_in_float32(monkeypatch, tmp_path, boxes, quick_model, dtype):
    monkeypatch.setattr(eval_seg, "write_pictures", lambda *_: None)
    model = VanForSemanticSegmentation.from_pretrained(quick_model).to(dtype)
    results = []
    for name in ("half", "full"):
        shutil.copytree(quick_model, tmp_path / name)
        model.save_pretrained(tmp_path / name)
        arguments = ("--model_name_or_path", tmp_path / name, "--output_dir", tmp_path / f"{name}_evaluated")
        run_here(monkeypatch, "--dataset", boxes, *arguments)
        results.append(results_of(tmp_path / f"{name}_evaluated"))
        model = model.float()
    half, full = results
    assert half["model"]["weights"] == full["model"]["weights"]
    assert [half[name] for name in FIGURES] == [full[name] for name in FIGURES]


def run_refused(monkeypatch, capsys, *arguments: object) -> list[str]:
    """The problems that an evaluation ends with."""
    with pytest.raises(SystemExit) as stop:
        run_here(monkeypatch, *arguments)
    assert stop.value.code == 2
    headline, *problems = capsys.readouterr().err.split("The arguments have problems:")[1].splitlines()
    assert headline == "" and all(problem.startswith("- ") for problem in problems)
    return problems


def test_running_evaluation_keeps_its_folder(monkeypatch, capsys, tmp_path, boxes, quick_model):
    monkeypatch.chdir(tmp_path)
    arguments = ("--dataset", boxes, "--model_name_or_path", quick_model)
    with held_folders("outputs/eval-tiny-boxes", "named"):
        (problem,) = run_refused(monkeypatch, capsys, *arguments, "--output_dir", "named")
        assert "--output_dir named: another process is writing to named; wait for its end" in problem
        Path("outputs/eval-tiny-boxes-2").touch()
        run_here(monkeypatch, *arguments)
    assert {path.name for path in Path("outputs").iterdir() if path.is_dir()} == {"eval-tiny-boxes-3"}


def test_default_folder_that_cannot_be_written_is_a_problem(monkeypatch, capsys, tmp_path, boxes, quick_model):
    monkeypatch.chdir(tmp_path)
    Path("outputs").touch()
    (problem,) = run_refused(monkeypatch, capsys, "--dataset", boxes, "--model_name_or_path", quick_model)
    assert "--output_dir outputs/eval-tiny-boxes cannot be written to: Not a directory" in problem


def test_what_cannot_be_loaded_or_written_is_a_problem_of_the_arguments(
    monkeypatch, capsys, tmp_path, boxes, quick_model
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    shutil.copytree(quick_model, "damaged")
    Path("damaged/model.safetensors").write_bytes(b"{}")
    VanForSemanticSegmentation(tiny_config()).save_pretrained("seven")
    VanImageProcessor().save_pretrained("seven")
    before = sorted(Path.cwd().iterdir())
    expected = {
        ("--output_dir", "file/out"): "--output_dir file/out cannot be written to: Not a directory",
        ("--dataset", "none"): "--dataset: dataset 'none' could not be loaded: ",
        (
            "--model_name_or_path",
            "someone/van",
        ): "the config.json of someone/van cannot be loaded: We couldn't connect to",
        ("--model_name_or_path", "damaged"): "the weights of damaged cannot be used (SafetensorError: ",
        ("--model_name_or_path", "seven"): "seven has 7 labels, dataset",
        ("--metric", "mean_iou"): "--metric: mean_iou could not be loaded from the Hub: ",
    }
    for arguments, message in expected.items():
        arguments = ("--dataset", boxes, "--model_name_or_path", quick_model, *arguments)
        (problem,) = run_refused(monkeypatch, capsys, *arguments)
        assert message in problem
    assert sorted(Path.cwd().iterdir()) == before


def test_masks_are_named_as_the_pictures(tmp_path):
    for split, numbers in {"training": (1,), "validation": (7, 3)}.items():
        for number in numbers:
            for kind, suffix in {"images": "jpg", "annotations": "png"}.items():
                path = tmp_path / kind / split / f"ADE_{split[:5]}_{number:08d}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (2, 2)).save(path)
    dataset = load_segmentation_dataset(tmp_path, id2label=3)
    evaluation = eval_seg.Evaluation(Namespace(output_dir="out"), dataset, None, None, None)
    names = ["ADE_valid_00000003.png", "ADE_valid_00000007.png"]
    assert evaluation.mask_paths() == [Path("out", "predictions", name) for name in names]
    twice = datasets.DatasetDict(validation=datasets.concatenate_datasets([dataset.splits["validation"]] * 2))
    object.__setattr__(dataset, "splits", twice)
    assert [path.name for path in evaluation.mask_paths()] == [f"val_{number:08d}.png" for number in range(1, 5)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["examples/train_seg.py without arguments"]),
        (["--mode", "tiles", "--metric", "dice", "--mixed_precision", "fp8"], ["mode", "metric", "mixed_precision"]),
        (["--crop_size", 64, "--stride", 32], ["--crop_size goes with", "--stride goes with"]),
        (["--mode", "slide", "--crop_size", 8, "--stride", 9], ["32 or more, got 8", "from 1 to --crop_size 8"]),
        (["--id2label", "none.json", "--output_dir", "finished"], ["id2label", "finished run"]),
    ],
)
def test_all_problems_are_reported_at_once(monkeypatch, tmp_path, arguments, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished" / "results.json").touch()
    model = ["--model_name_or_path", "someone/van"] if arguments else []
    monkeypatch.setattr(sys, "argv", ["eval_seg.py", *map(str, [*model, *arguments])])
    found = eval_seg.find_problems(eval_seg.parse_arguments(""), PartialState(cpu=True))
    assert len(found) == len(expected)
    for part in expected:
        assert any(part in problem for problem in found)


def test_windows_have_a_default_size(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["eval_seg.py", "--mode", "slide"])
    args = eval_seg.parse_arguments("")
    assert (args.crop_size, args.stride) == (512, 341)
