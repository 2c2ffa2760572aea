# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import train_seg
from accelerate import Accelerator, PartialState
from conftest import BOX_NAMES, finish, launch, paired_folders
from PIL import Image
from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[1] / "examples" / "train_seg.py"

# Two batches are accumulated to a step, so that a wrong count of batches after resuming would show.
TRAINING = (
    *("--recipe", "scenes", "--model_size", "mini", "--crop_size", "32", "--max_train_steps", "6"),
    *("--total_train_batch_size", "4", "--per_device_train_batch_size", "2", "--eval_steps", "3"),
    *("--checkpointing_steps", "2", "--dataloader_num_workers", "0", "--ema_decay", "0.8"),
)


SLOW_FIXTURES = {"runs"}


@pytest.fixture(scope="module")
def runs(boxes, tmp_path_factory) -> Path:
    """Folder with `whole`, a finished run and its `output.txt`, and `resumed`, one killed on the way and continued."""
    folder = tmp_path_factory.mktemp("runs")
    whole = launch(SCRIPT, "--dataset", boxes, *TRAINING, "--output_dir", "whole", cwd=folder)
    killed = launch(SCRIPT, "--dataset", boxes, *TRAINING, "--output_dir", "resumed", cwd=folder)
    while not (folder / "resumed" / "checkpoint-2").exists() and killed.poll() is None:
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (folder / "resumed" / "results.json").exists(), "the run ended before it could be killed"
    resume = ("--resume_from_checkpoint", "latest")
    finish(launch(SCRIPT, "--dataset", boxes, *TRAINING, "--output_dir", "resumed", *resume, cwd=folder))
    (folder / "output.txt").write_text(finish(whole))
    return folder


def test_resumed_run_ends_with_the_same_weights(runs):
    whole, resumed = (load_file(runs / name / "model.safetensors") for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    whole, resumed = (json.loads((runs / name / "results.json").read_text()) for name in ("whole", "resumed"))
    assert whole["evaluations"] == resumed["evaluations"]
    assert whole["run"] == resumed["run"]
    states = [torch.load(runs / name / "checkpoint-6" / "optimizer.bin") for name in ("whole", "resumed")]
    moments = [[entry["exp_avg"] for entry in state["state"].values()] for state in states]
    assert all(torch.equal(*pair) for pair in zip(*moments, strict=True))


def test_run_leaves_model_figures_and_pictures(runs):
    results = json.loads((runs / "whole" / "results.json").read_text())
    assert 0 <= results["mean_iou"] <= 1
    assert results["iou"].keys() == set(BOX_NAMES.values())
    assert [evaluation["step"] for evaluation in results["evaluations"]] == [3, 6]
    assert results["labels_without_pixels"] == []
    assert results["run"]["gradient_accumulation_steps"] == 2
    assert results["arguments"]["ema_decay"] == 0.8
    names = {path.name for path in (runs / "whole").iterdir()}
    assert names >= {"model.safetensors", "config.json", "preprocessor_config.json", "example.png"}
    assert {name for name in names if name.startswith("checkpoint")} == {"checkpoint-4", "checkpoint-6"}
    assert not [name for name in names if name.endswith((".partial", ".removed"))]
    for name in ("training_curves.png", "predictions.png"):
        with Image.open(runs / "whole" / name) as picture:
            assert min(picture.size) > 500


def test_printed_lines_use_the_model(runs, monkeypatch):
    monkeypatch.chdir(runs)
    output = (runs / "output.txt").read_text()
    lines = output[output.index("import transformers, van_hf") :].strip().splitlines()
    assert len(lines) == 2
    scope = {}
    exec(lines[0], scope)
    segments = eval(lines[1], scope)
    assert {segment["label"] for segment in segments} <= set(BOX_NAMES.values())
    assert segments[0]["mask"].size == Image.open(runs / "whole" / "example.png").size


def test_two_processes_evaluate_as_one(runs, boxes):
    arguments = ("--dataset", boxes, "--recipe", "scenes", "--max_train_steps", 0)
    arguments += ("--model_name_or_path", "whole", "--output_dir", "evaluated")
    finish(launch(SCRIPT, *arguments, num_processes=2, cwd=runs))
    evaluated = json.loads((runs / "evaluated" / "results.json").read_text())
    trained = json.loads((runs / "whole" / "results.json").read_text())
    assert (trained["run"]["num_processes"], evaluated["run"]["num_processes"]) == (1, 2)
    for name in ("mean_iou", "mean_accuracy", "overall_accuracy", "iou"):
        assert evaluated[name] == trained[name]
    assert not (runs / "evaluated" / "model.safetensors").exists()


def test_two_processes_train(runs, boxes):
    arguments = ("--dataset", boxes, *TRAINING, "--model_name_or_path", "whole", "--decode_head", "semantic_fpn")
    arguments += ("--max_train_steps", 2, "--report_to", "tensorboard", "--output_dir", "parallel")
    output = finish(launch(SCRIPT, *arguments, num_processes=2, cwd=runs))
    assert "New weights, to be trained from scratch: decode_head" in output
    results = json.loads((runs / "parallel" / "results.json").read_text())
    assert results["run"]["num_processes"] == 2
    assert results["run"]["gradient_accumulation_steps"] == 1
    assert list((runs / "parallel").rglob("events.out.tfevents*"))
    before, after = (load_file(runs / name / "model.safetensors") for name in ("whole", "parallel"))
    name = "van.encoder.stages.0.embeddings.convolution.weight"
    assert 0 < (before[name] - after[name]).abs().max() < 0.02


def problems(monkeypatch, *arguments: object) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["train_seg.py", *map(str, arguments)])
    args = train_seg.parse_arguments("")
    return train_seg.find_problems(args, train_seg.resolve_recipe(args), PartialState(cpu=True))


def test_runs_are_kept_apart(monkeypatch, runs, boxes):
    monkeypatch.chdir(runs)
    data = ("--dataset", boxes)
    (problem,) = problems(monkeypatch, *data, *TRAINING, "--output_dir", "whole")
    assert "finished run" in problem

    resume = ("--resume_from_checkpoint", "whole/checkpoint-6", "--output_dir", "elsewhere")
    assert problems(monkeypatch, *data, *TRAINING, *resume) == []
    found = problems(monkeypatch, *data, *TRAINING, *resume, "--seed", 5, "--max_train_steps", 9)
    assert [problem.split()[0] for problem in found] == ["max_train_steps", "seed"]
    assert "seed is 5" in found[1]

    resume = ("--resume_from_checkpoint", "whole/checkpoint-6", "--output_dir", "resumed")
    (runs / "resumed" / "results.json").rename(runs / "results.json")
    (problem,) = problems(monkeypatch, *data, *TRAINING, *resume)
    assert "another run" in problem


def test_problems_end_the_script_before_anything_is_loaded(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_seg.py", "--dataset", "none", "--learning_rate", "0"])
    with pytest.raises(SystemExit) as stop:
        train_seg.main()
    assert stop.value.code == 2
    assert "--learning_rate must be above 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_masks_without_a_label_beside_background_stop_the_script(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for mask in paired_folders(tmp_path / "fields").glob("annotations/*/*.png"):
        Image.linear_gradient("L").resize((8, 6)).point(lambda value: 255 * (value > 99)).save(mask)
    (tmp_path / "fields" / "id2label.json").write_text('["soil", "crop"]')
    arguments = ("--dataset", "fields", *TRAINING, "--output_dir", "run")
    monkeypatch.setattr(sys, "argv", ["train_seg.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        train_seg.main()
    assert stop.value.code == 2
    assert re.search(
        r"masks hold 0 \(.* %\) and 255 \(.* %\), and 255 is ignored: the only label is 0 'soil'",
        capsys.readouterr().err,
    )
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_what_is_not_finite_stops_the_run(tmp_path, loss, norm):
    accelerator = Accelerator(cpu=True)
    train_seg.stop_if_not_finite(accelerator, 1.0, 1.0, 3, tmp_path)
    with pytest.raises(FloatingPointError, match="step 3: .*checkpoint: none"):
        train_seg.stop_if_not_finite(accelerator, loss, norm, 3, tmp_path)
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(FloatingPointError, match="checkpoint-2"):
        train_seg.stop_if_not_finite(accelerator, loss, norm, 3, tmp_path)


def test_crops_are_normalized_as_pictures_are():
    image_processor = train_seg.VanImageProcessor(do_resize=False)
    crop = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = image_processor(crop[0], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(train_seg.normalize(crop, image_processor), expected, rtol=0, atol=0)
