# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import errno
import io
import json
import os
import re
import shutil
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import datasets
import eval_seg
import numpy as np
import pytest
import torch
import train_seg
from accelerate import Accelerator
from conftest import (
    BOX_NAMES,
    PROGRAMS,
    finish,
    held_folders,
    largest_file,
    launch,
    paint_box,
    paired_folders,
    tiny_config,
)
from PIL import Image
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile
from train_arguments import OLDEST_COMPILER, SPLIT

from van_hf import VanConfig, VanForImageClassification, VanForSemanticSegmentation
from van_hf.machine import END_SIGNALS, cores_per_process
from van_hf.model_cards import model_card_for_folder
from van_hf.training import RECIPES, StepWatch, complete_checkpoints

SCRIPT = Path(__file__).parents[1] / "examples" / "train_seg.py"
# Models this small only lose by more threads; from a launcher, OMP_NUM_THREADS=1 does not ask for one.
launch_training = partial(launch, SCRIPT, "--num_threads", 1)

# Two batches are accumulated to a step, so that a wrong count of batches after resuming would show.
TRAINING = (
    *("--recipe", "scenes", "--model_size", "mini", "--crop_size", "32", "--max_train_steps", "6"),
    *("--total_train_batch_size", "4", "--per_device_train_batch_size", "2", "--eval_steps", "3"),
    *("--checkpointing_steps", "2", "--dataloader_num_workers", "0", "--ema_decay", "0.8"),
)


SLOW_FIXTURES = {"runs"}


@pytest.fixture(scope="module")
def runs(boxes, tmp_path_factory) -> Path:
    """Folder with `whole`, a finished run and its `output.txt`, and `resumed`, one killed on the way and continued,
    with less memory."""
    folder = tmp_path_factory.mktemp("runs")
    whole = launch_training("--dataset", boxes, *TRAINING, "--output_dir", "whole", cwd=folder)
    killed = launch_training("--dataset", boxes, *TRAINING, "--output_dir", "resumed", cwd=folder)
    while not (folder / "resumed" / "checkpoint-2").exists() and killed.poll() is None:
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (folder / "resumed" / "results.json").exists(), "the run ended before it could be killed"
    resume = ("--resume_from_checkpoint", "latest", "--gradient_checkpointing")
    finish(launch_training("--dataset", boxes, *TRAINING, "--output_dir", "resumed", *resume, cwd=folder))
    (folder / "output.txt").write_text(finish(whole))
    return folder


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def assert_same_weights(*folders: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in folders)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def run_here(monkeypatch, script: ModuleType, *arguments: object) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def run_refused(monkeypatch, capsys, *arguments: object) -> list[str]:
    """The problems that a run ends with."""
    with pytest.raises(SystemExit) as stop:
        run_here(monkeypatch, train_seg, *arguments)
    assert stop.value.code == 2
    headline, *problems = capsys.readouterr().err.split("The arguments have problems:")[1].splitlines()
    assert headline == "" and all(problem.startswith("- ") for problem in problems)
    return problems


def test_resumed_run_ends_with_the_same_weights(runs):
    assert_same_weights(runs / "whole", runs / "resumed")
    whole, resumed = (results_of(runs / name) for name in ("whole", "resumed"))
    assert [results["arguments"]["gradient_checkpointing"] for results in (whole, resumed)] == [False, True]
    assert whole["evaluations"] == resumed["evaluations"]
    assert whole["run"] == resumed["run"]
    states = [torch.load(runs / name / "checkpoint-6" / "optimizer.bin") for name in ("whole", "resumed")]
    moments = [[entry["exp_avg"] for entry in state["state"].values()] for state in states]
    assert all(torch.equal(*pair) for pair in zip(*moments, strict=True))


def test_run_leaves_model_figures_and_pictures(runs):
    results = results_of(runs / "whole")
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


def test_two_processes_train(monkeypatch, runs, boxes):
    arguments = ("--dataset", boxes, *TRAINING, "--model_name_or_path", "whole", "--decode_head", "upernet")
    arguments += ("--max_train_steps", 2, "--report_to", "tensorboard", "--output_dir", "parallel")
    arguments += ("--gradient_checkpointing",)
    output = finish(launch_training(*arguments, num_processes=2, cwd=runs))
    assert re.search("New weights, to be trained from scratch: .*decode_head", output)
    results = results_of(runs / "parallel")
    assert results["run"]["num_processes"] == 2
    assert results["run"]["gradient_accumulation_steps"] == 1
    assert list((runs / "parallel").rglob("events.out.tfevents*"))
    before, after = (load_file(runs / name / "model.safetensors") for name in ("whole", "parallel"))
    name = "van.encoder.stages.0.embeddings.convolution.weight"
    assert 0 < (before[name] - after[name]).abs().max() < 0.02

    # One process evaluates as the two did.
    monkeypatch.chdir(runs)
    run_here(
        monkeypatch, eval_seg, "--dataset", boxes, "--model_name_or_path", "parallel", "--output_dir", "evaluated"
    )
    evaluated = results_of(runs / "evaluated")
    assert evaluated["num_processes"] == 1
    for name in ("mean_iou", "mean_accuracy", "overall_accuracy", "iou"):
        assert evaluated[name] == results[name]


def steps_of(records: Path) -> dict[int, list[int]]:
    """The numbers of the samples of each step, of the last attempt at it; see programs/train_recorded.py."""
    steps = {}
    for path in sorted(records.iterdir()):
        attempt = path.name.split("-")[0]
        for line in path.read_text().splitlines():
            step, *numbers = map(int, line.split())
            steps.setdefault(step, {}).setdefault(attempt, []).extend(numbers)
    return {step: attempts[max(attempts)] for step, attempts in steps.items()}


@pytest.mark.slow
def test_any_number_of_processes_goes_on(tmp_path, boxes):
    """Every sample of each step once, from 2 processes to 1 and back; with 2 throughout as if nothing had been."""
    arguments = ("--num_threads", 1, "--dataset", boxes, *TRAINING, "--per_device_train_batch_size", 1)
    arguments += ("--decode_head", "semantic_fpn", "--crop_size", 64, "--checkpoints_total_limit", 9)

    def go_on(attempt: int, num_processes: int, output_dir: str, **options) -> dict:
        records = tmp_path / f"records-{output_dir}"
        records.mkdir(exist_ok=True)
        given = (*arguments, "--output_dir", output_dir, "--resume_from_checkpoint", "latest")
        options |= {"num_processes": num_processes, "RECORDS": str(records), "ATTEMPT": str(attempt)}
        finish(launch(PROGRAMS / "train_recorded.py", *given, cwd=tmp_path, **options))
        assert {step: sorted(numbers) for step, numbers in steps_of(records).items()} == {
            step: list(range(4 * step - 4, 4 * step)) for step in range(1, 7)
        }
        return results_of(tmp_path / output_dir)

    def stop_after(step: int, output_dir: str) -> None:
        for path in (tmp_path / output_dir).iterdir():
            if not path.is_dir():
                path.unlink()
            elif int(path.name.split("-")[1]) > step:
                shutil.rmtree(path)

    whole = go_on(0, 2, "whole")
    for name in ("same", "other"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        shutil.copytree(tmp_path / "records-whole", tmp_path / f"records-{name}")
        stop_after(2, name)
    same = go_on(1, 2, "same")
    assert_same_weights(tmp_path / "whole", tmp_path / "same")
    assert whole["evaluations"] == same["evaluations"]
    # The launcher restarts all where one of them is killed.
    go_on(0, 2, "restarted", max_restarts=1, DIE_AT="6")
    assert {path.name for path in (tmp_path / "records-restarted").iterdir()} == {"0.0-0", "0.0-1", "0.1-0", "0.1-1"}
    assert (tmp_path / "records-restarted" / "0.1-0").read_text().startswith("5 ")
    assert_same_weights(tmp_path / "whole", tmp_path / "restarted")
    splits = [go_on(1, 1, "other")["run"]]
    stop_after(4, "other")
    splits.append(go_on(2, 2, "other")["run"])
    assert [[split[name] for name in SPLIT] for split in splits] == [[1, 1, 4, 1], [2, 1, 2, 1]]


@pytest.fixture(scope="module")
def box_shards(tmp_path_factory) -> Path:
    """Folder of a dataset like `boxes`, in Parquet files: 23 pictures in 5 of them to train on, 5 to validate on."""
    rng = np.random.default_rng(2)
    folder = tmp_path_factory.mktemp("data") / "box_shards"
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image())
    for split, sizes in {"train": (4, 7, 3, 5, 4), "validation": (5,)}.items():
        for shard, size in enumerate(sizes):
            examples = datasets.Dataset.from_list([paint_box(rng) for _ in range(size)], features=features)
            examples.to_parquet(folder / "data" / f"{split}-{shard:05}-of-{len(sizes):05}.parquet")
    (folder / "id2label.json").write_text(json.dumps(BOX_NAMES))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 0), (2, 2)])
def test_streamed_run_goes_on_as_if_nothing_had_been(monkeypatch, tmp_path, box_shards, num_processes, num_workers):
    """A process is killed after an odd number of batches, and with pictures loaded ahead."""
    arguments = (
        "--num_threads",
        1,
        "--dataset",
        box_shards,
        *TRAINING,
        "--per_device_train_batch_size",
        1,
        "--checkpointing_steps",
        1,
    )
    arguments += ("--decode_head", "semantic_fpn", "--crop_size", 64, "--streaming", "--shuffle_buffer_size", 6)
    arguments += ("--dataloader_num_workers", num_workers, "--resume_from_checkpoint", "latest")

    def run(output_dir: str, attempt: int, **options) -> tuple[int, str]:
        records = tmp_path / f"records-{output_dir}"
        records.mkdir(exist_ok=True)
        options |= {"num_processes": num_processes, "RECORDS": str(records), "ATTEMPT": str(attempt)}
        program = PROGRAMS / "train_recorded.py"
        process = launch(program, *arguments, "--output_dir", output_dir, cwd=tmp_path, **options)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    status, output = run("whole", 0)
    assert status == 0, output
    streams = num_processes * max(num_workers, 1)
    assert f"Streaming 5 shard(s) of training pictures to {streams} stream(s)" in output
    status, output = run("killed", 0, DIE_AT="4")
    assert status != 0, output
    assert complete_checkpoints(tmp_path / "killed")[-1].name == "checkpoint-3"
    status, output = run("killed", 1)
    assert status == 0, output
    steps, resumed = (steps_of(tmp_path / f"records-{name}") for name in ("whole", "killed"))
    assert steps == resumed
    assert len({number for numbers in steps.values() for number in numbers}) == 6 * 4
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    whole, killed = (results_of(tmp_path / name) for name in ("whole", "killed"))
    assert whole["evaluations"] == killed["evaluations"] and whole["run"] == killed["run"]

    # Without streaming the same figures come out.
    monkeypatch.chdir(tmp_path)
    run_here(monkeypatch, eval_seg, "--dataset", box_shards, "--model_name_or_path", "whole", "--output_dir", "again")
    assert all(results_of(Path("again"))[name] == whole[name] for name in ("mean_iou", "overall_accuracy", "iou"))


@pytest.mark.slow
def test_streamed_run_is_resumed_as_it_was(monkeypatch, capsys, tmp_path, box_shards):
    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(box_shards, "data")
    arguments = ("--dataset", "data", *TRAINING, "--num_threads", 1, "--streaming", "--output_dir", "out")
    arguments += ("--dataloader_num_workers", 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_seg, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_here(patch, train_seg, *arguments)
    resume = ("--resume_from_checkpoint", "latest")
    (problem,) = run_refused(monkeypatch, capsys, *arguments, *resume, "--dataloader_num_workers", 2)
    assert "dataloader_num_workers is 2, but out/checkpoint-3 belongs to a run with 1" in problem
    (problem,) = run_refused(monkeypatch, capsys, *arguments, *resume, "--shuffle_buffer_size", 8)
    assert "shuffle_buffer_size is 8" in problem
    process = launch_training(*arguments, *resume, num_processes=2, cwd=tmp_path)
    output, _ = process.communicate(timeout=300)
    assert "num_processes is 2, but out/checkpoint-3 belongs to a run with 1" in output

    shard = Path("data/data/train-00001-of-00005.parquet")
    shard.rename("data/data/train-00001-of-00006.parquet")
    (problem,) = run_refused(monkeypatch, capsys, *arguments, *resume)
    assert "the training files of dataset data are not those of the run that out/checkpoint-3 belongs to" in problem
    assert "train-00001-of-00005.parquet" in problem and "train-00001-of-00006.parquet" in problem
    Path("data/data/train-00001-of-00006.parquet").rename(shard)
    (problem,) = run_refused(monkeypatch, capsys, *arguments, "--epochs", 2, "--output_dir", "other")
    assert "--epochs" in problem
    run_here(monkeypatch, train_seg, *arguments, *resume)
    assert results_of(Path("out"))["run"]["dataloader_num_workers"] == 1
    assert results_of(Path("out"))["dataset"]["train"] is None


@pytest.mark.slow
def test_two_processes_fine_tune_what_is_not_frozen(tmp_path, boxes):
    start = VanForSemanticSegmentation(tiny_config("light_ham", id2label=BOX_NAMES, drop_path_rate=0.3))
    start.save_pretrained(tmp_path / "start")
    arguments = ("--dataset", boxes, "--recipe", "finetune", "--model_name_or_path", "start", "--crop_size", 64)
    arguments += ("--freeze", "stage2", "--layer_decay", 0.8, "--ema_decay", 0.5, "--gradient_checkpointing")
    arguments += ("--total_train_batch_size", 4, "--epochs", 2.2, "--eval_steps", 1, "--save_best")
    arguments += ("--learning_rate", 0.01, "--early_stopping_patience", 9, "--dataloader_num_workers", 0)
    output = finish(launch_training(*arguments, "--output_dir", "out", num_processes=2, cwd=tmp_path))
    assert "2.2 epochs of 7 pictures are 4 steps, of which 0 are warmup" in output
    assert output.count("Looked at 7 of 7 train masks and 5 of 5 validation masks") == 1
    results, weights = results_of(tmp_path / "out"), load_file(tmp_path / "out" / "model.safetensors")
    best = max(results["evaluations"], key=lambda evaluation: evaluation["mean_iou"])
    assert (results["step"], results["last_step"]) == (best["step"], 4)
    assert f"The model is that of step {best['step']}, the best of 4 evaluations" in output
    saved = load_file(tmp_path / "out" / f"best-{best['step']}" / "model.safetensors")
    for name, tensor in start.state_dict().items():
        assert torch.equal(weights[name], saved[name])
        if name.startswith(("van.encoder.stages.0.", "van.encoder.stages.1.")):
            assert torch.equal(weights[name], tensor)
    for name in ("van.encoder.stages.2.layers.0.mlp.in_dense.weight", "decode_head.classifier.weight"):
        assert not torch.equal(weights[name], start.state_dict()[name])


def test_runs_are_kept_apart(monkeypatch, capsys, runs, boxes):
    monkeypatch.chdir(runs)
    refused = partial(run_refused, monkeypatch, capsys, "--dataset", boxes, *TRAINING)
    (problem,) = refused("--output_dir", "whole")
    assert "finished run" in problem

    resume = ("--resume_from_checkpoint", "whole/checkpoint-6", "--output_dir")
    found = refused(*resume, "elsewhere", "--seed", 5, "--max_train_steps", 9)
    assert [problem.split()[1] for problem in found] == ["max_train_steps", "seed"]
    assert "seed is 5" in found[1] and not (runs / "elsewhere").exists()

    results = (runs / "resumed" / "results.json").rename(runs / "results.json")
    (problem,) = refused(*resume, "resumed")
    assert "another run" in problem
    results.rename(runs / "resumed" / "results.json")


def test_one_command_begins_a_run_and_goes_on_until_it_is_finished(monkeypatch, capsys, tmp_path, boxes):
    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    arguments = ("--dataset", boxes, *TRAINING, "--max_train_steps", 3, "--num_threads", 1)
    command = (*arguments, "--output_dir", "out", "--resume_from_checkpoint", "latest")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_seg, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_here(patch, train_seg, *command)
    assert "There is no checkpoint in out yet: a new run begins" in capsys.readouterr().out
    run_here(monkeypatch, train_seg, *command)
    assert "Going on with out/checkpoint-3: 1 process(es)" in capsys.readouterr().out
    results = Path("out/results.json").read_bytes()
    with pytest.raises(SystemExit) as stop:
        run_here(monkeypatch, train_seg, *command)
    assert stop.value.code == 0
    assert "The run in out is finished: there is nothing left to do" in capsys.readouterr().err
    assert Path("out/results.json").read_bytes() == results
    (problem,) = run_refused(monkeypatch, capsys, *command, "--seed", 1)
    assert "seed is 1" in problem


@pytest.mark.parametrize("during", ["backward", "evaluate"])
def test_signal_saves_a_checkpoint_and_ends_the_run(monkeypatch, capsys, tmp_path, boxes, end_signals, during):
    monkeypatch.setattr(StepWatch, "SECONDS_BETWEEN_LOOKS", 0)
    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    arguments = ("--dataset", boxes, *TRAINING, "--max_train_steps", 4, "--checkpointing_steps", 9, "--num_threads", 1)
    command = (*arguments, "--eval_steps", 2, "--resume_from_checkpoint", "latest", "--output_dir")
    run_here(monkeypatch, train_seg, *command, "whole")
    interrupted, calls = getattr(train_seg, during), []

    def signalled(*given):
        calls.append(given)
        # The first step, or the second evaluation.
        if len(calls) == (1 if during == "backward" else 2):
            os.kill(os.getpid(), signal.SIGTERM if during == "backward" else signal.SIGUSR1)
        return interrupted(*given)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(train_seg, during, signalled)
        run_here(patch, train_seg, *command, "ended")
    assert stop.value.code == train_seg.STATUS_TO_GO_ON
    step = 1 if during == "backward" else 4
    assert f"A signal has ended the run after step {step}. Go on with the same command" in capsys.readouterr().err
    assert complete_checkpoints(Path("ended"))[-1].name == f"checkpoint-{step}"
    assert all(signal.getsignal(number) == signal.SIG_IGN for number in END_SIGNALS)
    run_here(monkeypatch, train_seg, *command, "ended")
    assert_same_weights(Path("whole"), Path("ended"))
    assert results_of(Path("whole"))["evaluations"] == results_of(Path("ended"))["evaluations"]


def test_a_damaged_checkpoint_is_named(monkeypatch, capsys, tmp_path, boxes):
    monkeypatch.chdir(tmp_path)
    command = ("--dataset", boxes, *TRAINING, "--num_threads", 1, "--output_dir", "out")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_seg, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_here(patch, train_seg, *command)
    files = [path for path in Path("out/checkpoint-3").iterdir() if path.name != "run.json"]
    assert len(files) >= 5
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(SystemExit) as stop:
            run_here(monkeypatch, train_seg, *command, "--resume_from_checkpoint", "latest")
        assert stop.value.code == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert line.startswith("error: out/checkpoint-3 cannot be read: ")
        assert line.endswith("; --resume_from_checkpoint out/checkpoint-2 goes on from the one before it")
        path.write_bytes(content)


@pytest.fixture
def torch_threads():
    """What tests set the threads of torch to ends with them."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_resumed_run_has_the_threads_of_its_checkpoint(monkeypatch, torch_threads, tmp_path, boxes):
    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    arguments = ("--dataset", boxes, *TRAINING, "--max_train_steps", 3, "--output_dir")
    run_here(monkeypatch, train_seg, *arguments, "whole", "--num_threads", 2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_seg, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_here(patch, train_seg, *arguments, "resumed", "--num_threads", 2)
    torch.set_num_threads(1)
    run_here(monkeypatch, train_seg, *arguments, "resumed", "--resume_from_checkpoint", "latest")
    assert torch.get_num_threads() == results_of(Path("resumed"))["run"]["num_threads"] == 2
    assert_same_weights(Path("whole"), Path("resumed"))


@pytest.mark.slow
@pytest.mark.parametrize("given", ["balanced", "file"])
def test_resumed_run_has_its_loss_and_its_sampling(monkeypatch, capsys, tmp_path, boxes, given):
    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    Path("file").write_text('{"box": 4, "0": 0.5}')
    arguments = ("--dataset", boxes, *TRAINING, "--max_train_steps", 3, "--num_threads", 1, "--loss", "ohem+dice")
    arguments += ("--class_weights", given, "--label_smoothing", 0.1, "--rare_class_sampling", "--output_dir")
    run_here(monkeypatch, train_seg, *arguments, "whole", "--report_to", "tensorboard")
    printed = capsys.readouterr().out
    assert "Loss: ohem+dice, labels smoothed by 0.1, class weights from " in printed
    assert "Pictures are drawn for box " in printed
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_seg, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_here(patch, train_seg, *arguments, "resumed")
    resume = ("--resume_from_checkpoint", Path("resumed/checkpoint-2"))
    (problem,) = run_refused(monkeypatch, capsys, *arguments, "resumed", *resume, "--label_smoothing", 0.2)
    assert "label_smoothing is 0.2" in problem
    run_here(monkeypatch, train_seg, *arguments, "resumed", *resume)
    assert_same_weights(Path("whole"), Path("resumed"))
    results = results_of(Path("whole"))
    assert results["run"]["loss"] == "ohem+dice"
    weights = results["class_weights"]
    assert weights.keys() == set(BOX_NAMES.values())
    if given == "balanced":
        assert weights["box"] > weights["sky"] >= weights["ground"] > 0
        assert results["run"]["class_weights"] == "balanced"
    else:
        assert weights == {"sky": 0.5, "ground": 1, "box": 4}
        assert results["run"]["class_weights"] == {"box": 4, "0": 0.5}


COLORS = np.array([(90, 160, 250), (128, 64, 128), (255, 127, 0)], dtype=np.uint8)


def with_palette(labels: np.ndarray) -> Image.Image:
    """The colours of the labels at other places of the palette."""
    mask = Image.fromarray(labels + 3)
    mask.putpalette([1, 2, 3] * 3 + COLORS.ravel().tolist())
    return mask


# What a mask of labels is made of them, and the arguments that say what it means.
FORMS = {
    "labels": (Image.fromarray, []),
    "values": (lambda labels: Image.fromarray(labels * 100), ["--mask_values", "0=0", "100=1", "200=2"]),
    "colours": (lambda labels: Image.fromarray(COLORS[labels]), []),
    "palette": (with_palette, ["--mask_palettes"]),
}


def write_boxes(folder: Path, encode) -> dict[str, list[np.ndarray]]:
    """A folder of boxes, all pixels labelled; the labels of each split's masks."""
    rng = np.random.default_rng(0)
    written = {"training": [], "validation": []}
    for split, count in (("training", 4), ("validation", 2)):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for idx in range(count):
            example = paint_box(rng)
            labels = np.array(example["mask"]) % 255
            example["image"].save(folder / "images" / split / f"{idx}.png")
            encode(labels).save(folder / "annotations" / split / f"{idx}.png")
            written[split].append(labels)
    names = {idx: {"name": name, "color": COLORS[idx].tolist()} for idx, name in BOX_NAMES.items()}
    (folder / "id2label.json").write_text(json.dumps(names))
    return written


def write_polygons(folder: Path, written: dict[str, list[np.ndarray]]) -> list[Path]:
    """COCO's files of the same masks; what has no polygon is the sky."""
    files = []
    for split, masks in written.items():
        images, annotations = [], []
        for idx, labels in enumerate(masks):
            height, width = labels.shape
            images.append({"id": idx, "file_name": f"{split}/{idx}.png", "height": height, "width": width})
            for label in (1, 2):
                (top, bottom), (left, right) = ((at.min(), at.max() + 1) for at in (labels == label).nonzero())
                corners = np.array([left, top, right, top, right, bottom, left, bottom]).tolist()
                annotation = {"id": len(annotations), "image_id": idx, "category_id": label, "area": 1, "iscrowd": 0}
                annotations.append(annotation | {"segmentation": [corners]})
        files.append(folder / f"{split}.json")
        categories = [{"id": label, "name": BOX_NAMES[label]} for label in (1, 2)]
        files[-1].write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return files


@pytest.mark.slow
def test_masks_in_any_form_give_the_same_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)
    data = {}
    for form, (encode, arguments) in FORMS.items():
        written = write_boxes(tmp_path / "data" / form, encode)
        data[form] = [tmp_path / "data" / form, *arguments]
    data["polygons"] = [tmp_path / "data/labels/images", "--annotations", *write_polygons(tmp_path, written)]
    for form, arguments in data.items():
        length = ("--max_train_steps", 2, "--num_threads", 1, "--output_dir", tmp_path / form)
        run_here(monkeypatch, train_seg, "--dataset", *arguments, *TRAINING, *length)
        assert_same_weights(tmp_path / "labels", tmp_path / form)
        assert results_of(tmp_path / form)["mean_iou"] == results_of(tmp_path / "labels")["mean_iou"]


def test_weights_of_other_labels_stop_the_script(monkeypatch, capsys, tmp_path, boxes):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("[1, 2, 3, 4]")
    (problem,) = run_refused(monkeypatch, capsys, "--dataset", boxes, *TRAINING, "--class_weights", "file")
    assert "--class_weights: the file has 4 weights, but there are 3 labels" in problem


@pytest.mark.slow
def test_launched_run_takes_the_cores_that_are_there(tmp_path, boxes):
    output = finish(launch(SCRIPT, "--dataset", boxes, *SHORT, "--output_dir", "out", cwd=tmp_path))
    assert results_of(tmp_path / "out")["run"]["num_threads"] == cores_per_process()
    assert f"Threads of each process: {cores_per_process()}" in output


SHORT = (*TRAINING, "--max_train_steps", 1, "--eval_steps", 1)


def test_damaged_validation_picture_costs_nothing(monkeypatch, capsys, tmp_path, box_files):
    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    data = Path(shutil.copytree(box_files, "data"))
    arguments = ("--dataset", data, *TRAINING, "--output_dir")
    run_here(monkeypatch, train_seg, *arguments, "whole")

    picture = data / "images" / "validation" / "3.png"
    content = picture.read_bytes()
    picture.write_bytes(content[:100])
    with pytest.raises(SystemExit) as stop:
        run_here(monkeypatch, train_seg, *arguments, "mended")
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert "the evaluation after step 3 failed: " in error
    assert "--output_dir mended --resume_from_checkpoint latest" in error
    assert {path.name for path in Path("mended").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}

    picture.write_bytes(content)
    run_here(monkeypatch, train_seg, *arguments, "mended", "--resume_from_checkpoint", "latest")
    assert_same_weights(Path("whole"), Path("mended"))
    assert results_of(Path("whole"))["evaluations"] == results_of(Path("mended"))["evaluations"]


def test_full_disk_keeps_the_training(monkeypatch, capsys, tmp_path, boxes):
    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    save_checkpoint = train_seg.save_checkpoint

    def save_on_full_disk(accelerator, output_dir, step, *arguments):
        with largest_file(10_000 if step == full_at else 10**9):
            save_checkpoint(accelerator, output_dir, step, *arguments)

    way_on = "go on with the same command and --output_dir out --resume_from_checkpoint latest"
    expected = {
        1: ("There is no checkpoint yet. When this is mended, give the same command again", []),
        2: (f"The training is kept in out/checkpoint-1. When this is mended, {way_on}", ["checkpoint-1"]),
    }
    arguments = ("--dataset", boxes, *TRAINING, "--max_train_steps", 2, "--checkpointing_steps", 1)
    arguments += ("--output_dir", "out")
    for full_at, (message, left) in expected.items():
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(train_seg, "save_checkpoint", save_on_full_disk)
            run_here(patch, train_seg, *arguments)
        assert stop.value.code == 1
        error = capsys.readouterr().err
        assert f"error: out/checkpoint-{full_at} cannot be written, with " in error and message in error
        assert [path.name for path in Path("out").glob("checkpoint*")] == left

    resume = (*arguments, "--resume_from_checkpoint", "latest")
    write_results = train_seg.write_results

    def write_on_full_disk(*results):
        with largest_file(10_000):
            write_results(*results)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(train_seg, "write_results", write_on_full_disk)
        run_here(patch, train_seg, *resume)
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert "error: the results cannot be written to out: " in error
    assert f"The training is kept in out/checkpoint-2. When this is mended, {way_on}" in error
    assert {path.name for path in Path("out").iterdir()} == {"checkpoint-1", "checkpoint-2"}
    run_here(monkeypatch, train_seg, *resume)
    assert results_of(Path("out"))["mean_iou"] >= 0


def test_summary_that_cannot_be_printed_costs_nothing(monkeypatch, capsys, tmp_path, boxes):
    def fail(_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)
    monkeypatch.setattr(train_seg, "print_summary", fail)
    run_here(monkeypatch, train_seg, "--dataset", boxes, *SHORT, "--output_dir", tmp_path)
    assert "warning: the summary could not be printed: [Errno 32] Broken pipe" in capsys.readouterr().err
    assert results_of(tmp_path)["mean_iou"] >= 0


@pytest.mark.parametrize("step", [3, 6])
def test_run_stopped_in_an_evaluation_begins_with_it(monkeypatch, tmp_path, runs, boxes, step):
    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)

    def stop_at_step(run, model):
        if run.history.last_step == step:
            raise KeyboardInterrupt
        return evaluate_model(run, model)

    evaluate_model = train_seg.evaluate_model
    arguments = ("--dataset", boxes, *TRAINING, "--output_dir", tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_seg, "evaluate_model", stop_at_step)
        run_here(patch, train_seg, *arguments)
    assert complete_checkpoints(tmp_path)[-1].name == f"checkpoint-{step}"
    run_here(monkeypatch, train_seg, *arguments, "--resume_from_checkpoint", "latest")
    assert_same_weights(runs / "whole", tmp_path)
    assert results_of(runs / "whole")["evaluations"] == results_of(tmp_path)["evaluations"]


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < OLDEST_COMPILER, reason="needs a newer torch")
def test_compiled_run_leaves_plain_names_and_can_be_resumed(monkeypatch, tmp_path, boxes):
    """As torch traces it, in torch's own operations: to compile programs of them takes minutes."""
    compiled = []

    def trace(model):
        compiled.append(torch.compile(model, dynamic=False, backend="eager"))
        return compiled[-1]

    monkeypatch.setattr(train_seg, "compile_for_training", trace)
    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    arguments = ("--dataset", boxes, *TRAINING, "--num_threads", 1, "--max_train_steps", 3, "--output_dir")
    run_here(monkeypatch, train_seg, *arguments, "plain")
    assert not compiled
    run_here(monkeypatch, train_seg, *arguments, "compiled", "--torch_compile")
    resume = ("--resume_from_checkpoint", "compiled/checkpoint-2")
    run_here(monkeypatch, train_seg, *arguments, "resumed", *resume)
    shutil.rmtree("resumed")
    run_here(monkeypatch, train_seg, *arguments, "resumed", *resume, "--torch_compile")
    assert len(compiled) == 2
    plain = load_file("plain/model.safetensors")
    for name in ("compiled", "resumed"):
        weights = load_file(f"{name}/model.safetensors")
        assert weights.keys() == plain.keys()
        assert load_file(f"{name}/checkpoint-3/model.safetensors").keys() == plain.keys()
        for key, tensor in plain.items():
            torch.testing.assert_close(weights[key], tensor, rtol=1e-3, atol=1e-3)
    assert_same_weights(Path("compiled"), Path("resumed"))


@pytest.mark.slow
def test_trackers_get_pictures_of_predictions(monkeypatch, capsys, tmp_path, boxes):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    arguments = ("--dataset", boxes, *TRAINING, "--max_train_steps", 2, "--eval_steps", 1, "--num_threads", 1)
    arguments += ("--report_to", "tensorboard", "--output_dir")
    run_here(monkeypatch, train_seg, *arguments, "shown")
    found = EventAccumulator(str(next(Path("shown").rglob("events.out.tfevents*")).parent), {"images": 0}).Reload()
    events = found.Images(found.Tags()["images"][0])
    assert [event.step for event in events] == [1, 2]
    with Image.open(io.BytesIO(events[0].encoded_image_string)) as picture:
        assert min(picture.size) > 300

    monkeypatch.setattr(train_seg, "plot_predictions", lambda *_, **__: 1 / 0)
    capsys.readouterr()
    run_here(monkeypatch, train_seg, *arguments, "blind")
    assert "warning: predictions after step 1 could not be logged: division by zero" in capsys.readouterr().err
    assert_same_weights(Path("shown"), Path("blind"))


@pytest.mark.parametrize(
    ("name", "options"), [("wandb", {}), ("trackio", {}), ("tensorboard", {"dataformats": "NHWC"})]
)
def test_each_tracker_is_given_pictures_in_its_own_way(monkeypatch, name, options):
    logged = []
    tracker = SimpleNamespace(
        name=name,
        log=lambda values, **given: logged.append((values["predictions"], given)),
        log_images=lambda values, **given: logged.append((*values["predictions"], given)),
    )
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(Image=lambda picture: picture))
    monkeypatch.setattr(train_seg, "draw_predictions", lambda run, model, path, _: Image.new("RGB", (5, 4)).save(path))
    run = SimpleNamespace(history=SimpleNamespace(last_step=7), accelerator=SimpleNamespace(trackers=[tracker]))
    train_seg.log_predictions(run, None)
    ((picture, given),) = logged
    assert (picture.shape, picture.dtype) == ((4, 5, 3), "uint8")
    assert given == {"step": 7, **options}


def test_best_model_outlives_rotation_and_resuming(monkeypatch, capsys, tmp_path, boxes):
    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    values = {1: 0.2, 2: 0.5, 3: 0.5, 4: 0.4}
    seen, stop_at = {}, None
    evaluate, evaluate_model = train_seg.evaluate, train_seg.evaluate_model

    def evaluate_as_planned(run, model):
        step = run.history.last_step
        seen[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        monkeypatch.setattr(train_seg, "evaluate", lambda *given: {**evaluate(*given), "mean_iou": values[step]})
        if step == stop_at:
            raise KeyboardInterrupt
        return evaluate_model(run, model)

    monkeypatch.setattr(train_seg, "evaluate_model", evaluate_as_planned)
    arguments = ("--dataset", boxes, *TRAINING, "--eval_steps", 1, "--save_best", "--early_stopping_patience", 2)
    arguments += ("--checkpoints_total_limit", 2, "--num_threads", 1, "--output_dir")
    run_here(monkeypatch, train_seg, *arguments, "whole")
    best = seen[2]
    stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        run_here(monkeypatch, train_seg, *arguments, "resumed")
    stop_at = None
    shutil.copytree("resumed", "older")
    shutil.rmtree("older/checkpoint-4")
    resume = ("--resume_from_checkpoint", "latest")
    for name in ("resumed", "older"):
        run_here(monkeypatch, train_seg, *arguments, name, *resume)
    run_here(monkeypatch, train_seg, *arguments, "moved", "--resume_from_checkpoint", "resumed/checkpoint-4")
    for name in ("whole", "resumed", "older", "moved"):
        assert {folder.name for folder in Path(name).glob("best*")} == {"best-2"}
        results, weights = results_of(Path(name)), load_file(f"{name}/model.safetensors")
        assert weights.keys() == best.keys() and all(torch.equal(weights[key], best[key]) for key in best)
        assert (results["step"], results["mean_iou"], results["last_step"]) == (2, 0.5, 4)
        assert results["stopped_early"] and results["chosen"].startswith("the best")
        assert [evaluation["mean_iou"] for evaluation in results["evaluations"]] == list(values.values())
        assert (
            "| steps | 6 of 4 pictures; stopped after step 4, when 2 eval" in model_card_for_folder(name, "a/b").text
        )
    output = capsys.readouterr().out
    assert "The model is that of step 2, the best of 4 evaluations" in output and "Stopped after step 4" in output

    shutil.rmtree("resumed/best-2")
    with pytest.raises(SystemExit) as stop:
        run_here(monkeypatch, train_seg, *arguments, "again", "--resume_from_checkpoint", "resumed/checkpoint-4")
    assert stop.value.code == 1 and "resumed/best-2, the best model of the run" in capsys.readouterr().err


def test_picture_that_cannot_be_drawn_costs_nothing_else(monkeypatch, capsys, tmp_path, boxes):
    monkeypatch.setattr(train_seg, "plot_training_curves", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(train_seg, "write_example", lambda *_: 1 / 0)
    run_here(monkeypatch, train_seg, "--dataset", boxes, *SHORT, "--output_dir", tmp_path)
    output, error = capsys.readouterr()
    for name in ("training_curves.png", "example.png"):
        assert f"warning: {tmp_path / name} could not be drawn: division by zero" in error
    assert results_of(tmp_path)["mean_iou"] >= 0 and (tmp_path / "model.safetensors").exists()
    assert {path.name for path in tmp_path.glob("*.png")} == {"predictions.png"}
    assert '("picture.jpg")' in output


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoint_is_trained_in_float32(monkeypatch, tmp_path, boxes, dtype):
    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    model = VanForSemanticSegmentation(VanConfig(**train_seg.MINI)).to(dtype)
    model.save_pretrained("half")
    model.float().save_pretrained("full")
    arguments = ("--dataset", boxes, *TRAINING, "--max_train_steps", 2, "--eval_steps", 1, "--output_dir", "out")
    run_here(monkeypatch, train_seg, *arguments, "--model_name_or_path", "full")
    Path("out").rename("from_full")
    arguments += ("--model_name_or_path", "half")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_seg, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_here(patch, train_seg, *arguments)
    run_here(monkeypatch, train_seg, *arguments, "--resume_from_checkpoint", "latest")
    assert_same_weights(Path("from_full"), Path("out"))
    assert {tensor.dtype for tensor in load_file("out/model.safetensors").values()} == {torch.float32, torch.int64}
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("size", [None, "mini", "b0"])
@pytest.mark.parametrize("start", ["classifier", "semantic_fpn", "ham", None])
@pytest.mark.parametrize("decode_head", ["light_ham", "ham"])
def test_every_head_has_its_strides(monkeypatch, tmp_path, size, start, decode_head):
    """Whatever training starts from; but a whole model keeps its own."""
    monkeypatch.chdir(tmp_path)
    if start is not None:
        model_class = VanForImageClassification if start == "classifier" else VanForSemanticSegmentation
        config = tiny_config("light_ham" if start == "classifier" else start, decoder_hidden_size=32)
        model_class(config).save_pretrained(start)
    monkeypatch.setattr(train_seg, "load_weights", lambda path, config: (VanForSemanticSegmentation(config), []))
    monkeypatch.setitem(train_seg.VAN_SIZES, "b0", ([8, 32, 32, 32], [1, 1, 1, 1], {decode_head: 0.1}))
    args = SimpleNamespace(model_name_or_path=start, model_size=size)
    recipe = replace(RECIPES["scenes"], decode_head=decode_head)
    dataset = SimpleNamespace(id2label=BOX_NAMES, palette=None)
    model, _ = train_seg.create_model(args, recipe, train_seg.VanImageProcessor(), dataset)
    assert model.config.decode_head == decode_head
    assert list(model.config.strides) == ([4, 2, 1, 1] if decode_head == "ham" else [4, 2, 2, 2])
    assert model.config.logits_stride == 8


def test_head_of_the_start_model_is_trained_and_recorded(monkeypatch, tmp_path, boxes):
    monkeypatch.chdir(tmp_path)
    VanForSemanticSegmentation(tiny_config("semantic_fpn")).save_pretrained("start")
    # UperNet, the recipe's head, could not be trained on single pictures.
    arguments = ("--recipe", "upernet_160k", "--model_name_or_path", "start", "--total_train_batch_size", 1)
    arguments += ("--crop_size", 64, "--max_train_steps", 1, "--dataloader_num_workers", 0, "--output_dir", "out")
    run_here(monkeypatch, train_seg, "--dataset", boxes, *arguments)
    recorded = [results_of(Path("out"))["run"]]
    recorded += [json.loads(Path("out", name).read_text()) for name in ("config.json", "checkpoint-1/run.json")]
    assert [content["decode_head"] for content in recorded] == ["semantic_fpn"] * 3


def test_running_run_keeps_its_folder(monkeypatch, capsys, tmp_path, runs, boxes):
    monkeypatch.chdir(tmp_path)
    arguments = ("--dataset", boxes, *TRAINING)
    shutil.copytree(runs / "whole" / "checkpoint-6", "resumed/checkpoint-6")
    with held_folders("outputs/van-boxes", "named", "resumed"):
        for folder in (["named"], ["resumed", "--resume_from_checkpoint", "latest"]):
            (problem,) = run_refused(monkeypatch, capsys, *arguments, "--output_dir", *folder)
            assert f"--output_dir {folder[0]}: another process is writing to {folder[0]}; wait for" in problem
        run_here(monkeypatch, train_seg, "--dataset", boxes, *SHORT)
    assert {path.name for path in Path("outputs").iterdir()} == {"van-boxes-2"}
    assert results_of(Path("outputs/van-boxes-2"))["arguments"]["output_dir"] == "outputs/van-boxes-2"


def change_config(model: Path, **fields: object) -> None:
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(content | fields))


def test_what_cannot_be_loaded_or_written_is_a_problem_of_the_arguments(monkeypatch, capsys, tmp_path, boxes):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_seg, "train", None)  # nothing may be trained
    start = VanForSemanticSegmentation(tiny_config())
    for name in ("other", "field", "weights"):
        start.save_pretrained(name)
    Path("file").touch()
    change_config(Path("other"), model_type="segformer")
    change_config(Path("field"), depths="many")
    weights = Path("weights/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    before = sorted(Path.cwd().iterdir())
    expected = {
        ("--output_dir", "file/out"): "--output_dir file/out cannot be written to: Not a directory",
        ("--output_dir", "x" * 300): "cannot be written to: File name too long",
        ("--dataset", "none"): "--dataset: dataset 'none' could not be loaded: ",
        ("--train_split", "train[90%:"): "--dataset: train_split='train[90%:' does not fit",
        (
            "--model_name_or_path",
            "someone/van",
        ): "the config.json of someone/van cannot be loaded: We couldn't connect to",
        ("--model_name_or_path", "other"): "other is a model of the type 'segformer'; it must be 'van'",
        (
            "--model_name_or_path",
            "field",
        ): "the config.json of field cannot be used (Validation error for field ",
        ("--model_name_or_path", "weights"): "the weights of weights cannot be used (SafetensorError: ",
    }
    for arguments, message in expected.items():
        found = run_refused(monkeypatch, capsys, "--dataset", boxes, *TRAINING, "--model_size", "b0", *arguments)
        assert len(found) == 1 and message in found[0]
    assert sorted(Path.cwd().iterdir()) == before


@pytest.mark.slow
def test_one_of_two_processes_reports_a_problem(tmp_path):
    done = launch_training("--dataset", "none", *TRAINING, num_processes=2, cwd=tmp_path)
    output, _ = done.communicate(timeout=300)
    assert done.returncode != 0 and list(tmp_path.iterdir()) == []
    assert output.count("- --dataset: dataset 'none' could not be loaded: ") == 1
    assert "exitcode  : 2 " in output


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
    for mask in paired_folders(tmp_path / "farm").glob("annotations/*/*.png"):
        Image.linear_gradient("L").resize((8, 6)).point(lambda value: 255 * (value > 99)).save(mask)
    (tmp_path / "farm" / "id2label.json").write_text('["soil", "crop"]')
    arguments = ("--dataset", "farm", *TRAINING, "--output_dir", "run")
    monkeypatch.setattr(sys, "argv", ["train_seg.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        train_seg.main()
    assert stop.value.code == 2
    assert re.search(
        r"masks hold 0 \(.* %\) and 255 \(.* %\), and 255 is ignored: the only label is 0 'soil'",
        capsys.readouterr().err,
    )
    assert not list(tmp_path.glob("run/*"))


def test_validation_masks_without_a_label_stop_the_script(monkeypatch, capsys, tmp_path, box_files):
    data = Path(shutil.copytree(box_files, tmp_path / "data"))
    for path in data.glob("annotations/validation/*.png"):
        with Image.open(path) as mask:
            Image.new("L", mask.size, 255).save(path)
    (problem,) = run_refused(monkeypatch, capsys, "--dataset", data, *TRAINING, "--output_dir", tmp_path / "run")
    assert "its 5 validation masks hold 255 (100.0 %), and 255 is ignored: the masks hold no label at all" in problem
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_what_is_not_finite_stops_the_run(tmp_path, loss, norm):
    accelerator = Accelerator(cpu=True)
    train_seg.stop_if_not_finite(accelerator, 1.0, 1.0, 3, tmp_path)
    with pytest.raises(FloatingPointError, match="step 3: .*checkpoint: none"):
        train_seg.stop_if_not_finite(accelerator, loss, norm, 3, tmp_path)
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(FloatingPointError, match="checkpoint-2"):
        train_seg.stop_if_not_finite(accelerator, loss, norm, 3, tmp_path)


@pytest.mark.parametrize("precedes", ["loss", "weights"])
def test_a_step_that_is_not_finite_changes_nothing(monkeypatch, tmp_path, boxes, precedes):
    """Whether the loss is not or, behind a finite one, the gradients; steps after it are taken until the next look."""
    monkeypatch.setattr(StepWatch, "SECONDS_BETWEEN_LOOKS", 1e9)
    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)
    arguments = ("--dataset", boxes, *TRAINING, "--num_threads", 1, "--max_train_steps", 6, "--output_dir")
    run_here(monkeypatch, train_seg, *arguments, tmp_path / "whole")
    backward, save_state, taken = train_seg.backward, train_seg.save_state, []

    def break_step(run, model, *given):
        taken.append([parameter.clone() for parameter in model.parameters()])
        loss, norm = backward(run, model, *given)
        if len(taken) != 4:
            return loss, norm
        for parameter in model.parameters():
            parameter.grad.fill_(float("nan"))
        return (loss * float("nan"), norm) if precedes == "loss" else (loss, norm * float("inf"))

    monkeypatch.setattr(train_seg, "backward", break_step)
    monkeypatch.setattr(train_seg, "save_state", lambda run: len(taken) == 3 and save_state(run))
    monkeypatch.setattr(train_seg, "evaluate_model", lambda run, _: run.history.evaluations.append({"step": 3}))
    with pytest.raises(FloatingPointError, match="^step 4: loss .*Last good checkpoint: .*checkpoint-3"):
        run_here(
            monkeypatch, train_seg, *arguments, tmp_path / "broken", "--eval_steps", 3, "--checkpointing_steps", 6
        )
    assert len(taken) == 6
    assert not any(torch.equal(*pair) for pair in zip(taken[2], taken[3], strict=True))
    for later in taken[4:]:
        assert all(torch.equal(*pair) for pair in zip(taken[3], later, strict=True))
    assert [path.name for path in complete_checkpoints(tmp_path / "broken")] == ["checkpoint-3"]


@pytest.mark.parametrize("asks", [False, True])
def test_steps_between_looks_do_not_wait_for_the_device(monkeypatch, tmp_path, boxes, asks):
    """But where each of them asks for its loss, which shows that it would be seen."""
    monkeypatch.setattr(StepWatch, "SECONDS_BETWEEN_LOOKS", 1e9)
    monkeypatch.setattr(train_seg, "write_pictures", lambda *_: None)
    # On the CPU alone the model looks at the labels.
    monkeypatch.setattr(VanForSemanticSegmentation, "_checked_labels", lambda _, labels, batch_size: labels)
    backward, look, steps, looked_at = train_seg.backward, StepWatch.look, [], []
    profiler = profile(activities=[ProfilerActivity.CPU])
    monkeypatch.setattr(StepWatch, "look", lambda watch: looked_at.append(len(steps)) or look(watch))

    def watched(*given):
        steps.append(len(steps) + 1)
        if len(steps) == 3:
            profiler.start()
        if len(steps) == 6:
            profiler.stop()
        loss, gradient_norm = backward(*given)
        if asks:
            loss.item()
        return loss, gradient_norm

    monkeypatch.setattr(train_seg, "backward", watched)
    arguments = ("--eval_steps", 6, "--checkpointing_steps", 6, "--loss", "focal+dice", "--max_grad_norm", 1)
    arguments += ("--decode_head", "light_ham", "--crop_size", 64, "--output_dir", tmp_path)
    run_here(monkeypatch, train_seg, "--dataset", boxes, *TRAINING[:-2], *arguments)
    waits = []
    for event in profiler.events():
        if event.name == "aten::_local_scalar_dense":
            parents = [event]
            while parents[-1].cpu_parent is not None:
                parents.append(parents[-1].cpu_parent)
            waits.append(" < ".join(parent.name for parent in parents))
    # Samples are numbers on the CPU, and so are the counts of steps that AdamW has there.
    others = [wait for wait in waits if "DataLoader" not in wait and "_fused_adamw_" not in wait]
    assert waits and len(others) == (3 if asks else 0)
    assert looked_at == [1, 6]


def test_crops_are_normalized_as_pictures_are():
    image_processor = train_seg.VanImageProcessor(do_resize=False)
    crop = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = image_processor(crop[0], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(train_seg.normalize(crop, image_processor), expected, rtol=0, atol=0)
