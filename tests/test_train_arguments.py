# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json
import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import common_arguments
import pytest
import torch
import train_arguments
from accelerate import PartialState
from conftest import BOX_NAMES, tiny_config

from van_hf import VanForSemanticSegmentation
from van_hf.data import GENERATED_DATASETS
from van_hf.losses import SegmentationLoss
from van_hf.training import DEFAULT_RECIPES, RECIPES, Recipe

CPU, GPU = (Namespace(device=torch.device(name)) for name in ("cpu", "cuda"))
CLASSIFIER = Path(__file__).parent / "fixtures" / "hub_van_tiny"
LONG_NAME = "x" * 300


@pytest.fixture
def parse(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def parse(*arguments: object) -> Namespace:
        monkeypatch.setattr(sys, "argv", ["train_seg.py", *map(str, arguments)])
        return train_arguments.parse_arguments("")

    return parse


def resolve_recipe(args: Namespace) -> Recipe:
    return train_arguments.resolve_recipe(args, train_arguments.load_start_config(args))


def problems(args: Namespace) -> list[str]:
    state = PartialState(cpu=True)
    if found := train_arguments.find_problems(args, state):
        return found
    found = train_arguments.find_recipe_problems(args, resolve_recipe(args), state)
    return found or train_arguments.find_access_problems(args, state)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--learning_rate", -1, "--crop_size", 8, "--num_threads", 0], ["learning_rate", "crop_size", "num_threads"]),
        (["--num_threads", 100_000], ["num_threads"]),
        (["--head_learning_rate_factor", 0, "--layer_decay", 1.5], ["head_learning_rate_factor", "layer_decay"]),
        (["--freeze", "stage2", "head"], ["--freeze must be of stage1", "--freeze needs --model_name_or_path"]),
        (["--early_stopping_patience", 0], ["--early_stopping_patience must be 1 or more"]),
        (["--epochs", 0.5, "--max_train_steps", 9], ["--epochs and --max_train_steps both say"]),
        (["--epochs", "inf"], ["--epochs must be above 0 and finite"]),
        (["--recipe", "finetune"], ["--recipe finetune needs --model_name_or_path"]),
        (["--layer_decay", "nan"], ["layer_decay must be above 0 and at most 1"]),
        (["--recipe", "best", "--model_size", "b9", "--report_to", "paper"], ["recipe", "model_size", "report_to"]),
        (["--dataset", "ade20k"], ["recipe", "model_size"]),
        (["--mixed_precision", "fp16", "--ema_decay", 1], ["mixed_precision", "ema_decay"]),
        (["--id2label", "none.json", "--model_name_or_path", "./none"], ["id2label", "model_name_or_path"]),
        (
            ["--max_train_steps", 0, "--resume_from_checkpoint", "a/b"],
            ["1 or more, got 0; examples/eval_seg.py", "a/b"],
        ),
        (["--learning_rate", "nan", "--resume_from_checkpoint", "latest"], ["learning_rate", "latest needs"]),
        (["--resume_from_checkpoint", LONG_NAME, "--id2label", LONG_NAME], ["not a folder of", "is not a file"]),
        (["--loss", "hinge+dice", "--label_smoothing", 1, "--class_weights", "none.json"], ["'hinge'", "1.0", "none"]),
        (["--loss", "focal+ohem"], ["--loss: focal and ohem do not go together"]),
        (["--loss", "dice", "--label_smoothing", 0.1], ["--label_smoothing: label_smoothing has no meaning for dice"]),
        (["--total_train_batch_size", 9, "--per_device_train_batch_size", 2], ["total_train_batch_size"]),
        (["--decode_head", "upernet", "--total_train_batch_size", 1], ["per_device_train_batch_size"]),
    ],
)
def test_all_problems_are_reported_at_once(parse, arguments, expected):
    found = problems(parse(*arguments))
    assert len(found) == len(expected)
    for name in expected:
        assert any(name in problem for problem in found)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--dataset", "ade20k", "--recipe", "upernet_160k", "--model_size", "b0"],
        ["--dataset", "ade20k", "--recipe", "semantic_fpn_40k", "--model_name_or_path", CLASSIFIER],
        ["--dataset", "ade20k", "--recipe", "finetune", "--model_name_or_path", CLASSIFIER, "--freeze", "stage1"],
        ["--resume_from_checkpoint", "latest", "--output_dir", "new"],
    ],
)
def test_what_is_right_is_no_problem(parse, arguments):
    assert problems(parse(*arguments)) == []


def test_arguments_change_the_recipe(parse):
    original = train_arguments.RECIPES["upernet_160k"]
    recipe = resolve_recipe(parse("--recipe", "upernet_160k", "--learning_rate", 1, "--crop_size", 64))
    assert (recipe.learning_rate, recipe.crop_size) == (1, 64)
    assert (recipe.weight_decay, recipe.decode_head) == (original.weight_decay, original.decode_head)


@pytest.mark.parametrize(
    ("given", "num_processes", "expected"),
    [
        ([], 1, (16, 1)),
        ([], 8, (2, 1)),
        (["--per_device_train_batch_size", 2], 1, (2, 8)),
        (["--per_device_train_batch_size", 2], 4, (2, 2)),
        # The recipe's 16 pictures do not work out on 3 devices: 18.
        ([], 3, (6, 1)),
    ],
)
def test_accumulation_follows_from_the_devices(parse, given, num_processes, expected):
    args = parse("--recipe", "upernet_160k", *given)
    recipe = resolve_recipe(args)
    assert train_arguments.batch_sizes(args, recipe, num_processes) == expected


def test_decoding_at_reduced_size_is_part_of_the_run(parse):
    for given in ([], ["--jpeg_draft"]):
        args = parse(*given)
        run = train_arguments.describe_run(args, resolve_recipe(args), 1)
        assert run["jpeg_draft"] is args.jpeg_draft is bool(given)


def loss_arguments(parse, content, *arguments: object) -> Namespace:
    """With a file of weights, read as the script does."""
    Path("weights.json").write_text(json.dumps(content))
    args = parse("--class_weights", "weights.json", *arguments)
    assert problems(args) == []
    args.class_weights = train_arguments.given_class_weights(args)
    return args


BOXES = SimpleNamespace(id2label=BOX_NAMES)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "cross_entropy"),
        (["--dataset", "cracks"], "dice"),
        (["--dataset", "leaves", "--loss", "focal"], "focal"),
        (["--dataset", "cracks", "--recipe", "scenes"], "cross_entropy"),
    ],
)
def test_loss_of_the_recipe(parse, arguments, expected):
    args = parse(*arguments)
    assert problems(args) == []
    recipe = resolve_recipe(args)
    assert train_arguments.resolve_loss(args, recipe, BOXES, None) == SegmentationLoss.parse(expected)
    assert train_arguments.describe_run(args, recipe, 1)["loss"] == expected


def test_smoothing_must_go_with_the_loss_of_the_recipe(parse):
    (problem,) = problems(parse("--dataset", "cracks", "--label_smoothing", 0.1))
    assert "no meaning for dice" in problem


def test_generated_data_sets_have_recipes():
    assert DEFAULT_RECIPES.keys() == GENERATED_DATASETS.keys() and set(DEFAULT_RECIPES.values()) <= set(RECIPES)


def test_loss_of_the_arguments(parse):
    args = loss_arguments(parse, {"box": 5, "1": 0.5}, "--loss", "ohem+dice", "--label_smoothing", 0.1)
    assert train_arguments.find_class_weight_problems(args, BOXES) == []
    expected = SegmentationLoss(("ohem", "dice"), class_weights=(1, 0.5, 5), label_smoothing=0.1)
    assert train_arguments.resolve_loss(args, resolve_recipe(args), BOXES, None) == expected
    assert train_arguments.resolve_loss(parse(), RECIPES["scenes"], BOXES, None) == SegmentationLoss()


def test_weights_that_do_not_fit_the_labels_are_a_problem(parse):
    for content, message in (([1, 2], "has 2 weights, but there are 3 labels"), ({"sea": 1}, "weights for 'sea'")):
        (problem,) = train_arguments.find_class_weight_problems(loss_arguments(parse, content), BOXES)
        assert problem.startswith("--class_weights: the file ") and message in problem


def test_another_loss_is_another_run(parse):
    """A file's content counts, not its name; a checkpoint from before there was a choice has the default."""
    resume = ("--resume_from_checkpoint", "run/checkpoint-1")
    args = loss_arguments(parse, [1, 2, 3], "--loss", "focal")
    run = train_arguments.describe_run(args, resolve_recipe(args), 1)
    assert (run["loss"], run["class_weights"], run["label_smoothing"]) == ("focal", [1, 2, 3], 0)
    Path("run/checkpoint-1").mkdir(parents=True)
    saved = Path("run/checkpoint-1/run.json")
    saved.write_text(json.dumps(run))
    args.resume_from_checkpoint = resume[1]
    assert train_arguments.find_resume_problems(args, resolve_recipe(args), 1) == []
    found = problems(parse(*resume, "--label_smoothing", 0.1))
    assert [problem.split()[0] for problem in found] == ["class_weights", "label_smoothing", "loss"]
    for name in ("loss", "class_weights", "label_smoothing", "rare_class_sampling"):
        del run[name]
    saved.write_text(json.dumps(run))
    assert problems(parse(*resume)) == []
    (problem,) = problems(parse(*resume, "--rare_class_sampling"))
    assert problem.startswith("rare_class_sampling is 0.01, but ")
    (problem,) = problems(parse(*resume, "--loss", "dice"))
    assert problem == f"loss is 'dice', but {saved.parent} belongs to a run with 'cross_entropy'"


def test_folder_of_a_checkpoint_is_the_output_folder(parse):
    assert parse().output_dir is None
    assert parse("--resume_from_checkpoint", "runs/a/checkpoint-3").output_dir == "runs/a"


def test_home_folder_is_written_in_full(parse, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = parse("--output_dir=~/out", "--dataset=~/data", "--model_name_or_path=~/van", "--id2label=~/names.json")
    assert (args.output_dir, args.dataset) == (f"{tmp_path}/out", f"{tmp_path}/data")
    assert (args.model_name_or_path, args.id2label) == (f"{tmp_path}/van", f"{tmp_path}/names.json")


def test_head_that_is_trained_is_decided_once(parse, tmp_path):
    VanForSemanticSegmentation(tiny_config("semantic_fpn")).save_pretrained("whole")
    start = ("--recipe", "upernet_160k", "--model_name_or_path")
    heads = {
        (*start, "whole"): "semantic_fpn",
        (*start, "whole", "--decode_head", "upernet"): "upernet",
        # The architecture is that of the size, not of the model whose weights it starts from.
        (*start, "whole", "--model_size", "b0"): "upernet",
        # What this classifier's configuration says of a decode head is only the default.
        ("--recipe", "semantic_fpn_40k", "--model_name_or_path", CLASSIFIER): "semantic_fpn",
    }
    for arguments, head in heads.items():
        args = parse(*arguments)
        recipe = resolve_recipe(args)
        assert recipe.decode_head == train_arguments.describe_run(args, recipe, 1)["decode_head"] == head
    alone = ("--per_device_train_batch_size", 1)
    assert problems(parse(*start, "whole", *alone)) == []
    for given, maps in {
        ("--decode_head", "upernet"): "UperNet's pooled maps",
        ("--crop_size", 32): "the smallest",
    }.items():
        (problem,) = problems(parse(*start, "whole", *alone, *given))
        assert f"--per_device_train_batch_size must be 2 or more: {maps}" in problem


@pytest.mark.parametrize(
    ("epochs", "num_pictures", "expected"),
    # Eight pictures a step; the recipe's warmup takes 50.
    [
        (1, 800, (100, 10)),
        (100, 8, (100, 10)),
        (0.1, 800, (10, 1)),
        (2.5, 7, (3, 0)),
        (1, 801, (101, 10)),
        (0.01, 7, (1, 0)),
        (80, 80, (800, 50)),
    ],
)
def test_epochs_come_to_steps(parse, epochs, num_pictures, expected):
    args = parse("--epochs", epochs)
    recipe = resolve_recipe(args)
    found = train_arguments.with_length(args, recipe, num_pictures)
    assert (found.max_train_steps, found.warmup_steps) == expected
    assert found.eval_steps == recipe.eval_steps
    args = parse("--epochs", epochs, "--warmup_steps", 3)
    assert train_arguments.with_length(args, resolve_recipe(args), num_pictures).warmup_steps == 3
    assert train_arguments.with_length(parse(), recipe, num_pictures) is recipe


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--save_best"],
            ["--save_best has nothing to choose from: the run has 1 evaluation, --eval_steps 400 being"],
        ),
        (["--save_best", "--eval_steps", 99], []),
        (["--early_stopping_patience", 3, "--eval_steps", 25], ["--early_stopping_patience 3 cannot end the run"]),
        (["--early_stopping_patience", 2, "--eval_steps", 25], []),
        (["--layer_decay", 0.9, "--freeze", "backbone"], ["--layer_decay is about the backbone"]),
        (["--layer_decay", 0.9, "--freeze", "stage3"], []),
        (
            ["--warmup_steps", 100],
            ["--learning_rate 6e-05 is never reached: the warmup has 100 steps, and the run 100"],
        ),
    ],
)
def test_arguments_that_change_nothing_are_told(parse, arguments, expected):
    args = parse("--recipe", "finetune", "--model_name_or_path", CLASSIFIER, "--epochs", 10, *arguments)
    found = train_arguments.find_idle_arguments(args, train_arguments.with_length(args, resolve_recipe(args), 80))
    assert len(found) == len(expected) and all(map(str.startswith, found, expected))


def test_epochs_of_a_resumed_run_are_judged_when_the_pictures_are_counted(parse, saved_run):
    resume = saved_run("--max_train_steps", 20, "--warmup_steps", 2)
    args = parse(*resume, "--epochs", 2)
    assert problems(args) == []
    for num_pictures, expected in {80: [], 72: ["max_train_steps", "warmup_steps"]}.items():
        recipe = train_arguments.with_length(args, resolve_recipe(args), num_pictures)
        found = train_arguments.find_resume_problems(args, recipe, 1)
        assert [problem.split()[0] for problem in found] == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--class_weights", "balanced"], "--streaming does not go with --class_weights balanced, "),
        (["--rare_class_sampling"], "--streaming does not go with --rare_class_sampling, "),
        (["--annotations", "a.json"], "--streaming does not go with --annotations, "),
        (["--dataset", "cracks"], "--streaming does not go with --dataset cracks, which is generated"),
        (["--shuffle_buffer_size", 0], "--shuffle_buffer_size must be 1 or more"),
    ],
)
def test_what_cannot_be_streamed_is_a_problem(parse, arguments, expected):
    streaming = ("--streaming", "--dataset", "owner/data", "--recipe", "scenes", "--model_size", "mini")
    assert problems(parse(*streaming)) == []
    (problem,) = problems(parse(*streaming, *arguments))
    assert problem.startswith(expected)


def test_a_shuffle_buffer_is_that_of_a_stream(parse):
    assert problems(parse("--shuffle_buffer_size", 9)) == ["--shuffle_buffer_size needs --streaming"]


def test_a_streamed_run_is_resumed_as_it_was_split(parse, saved_run):
    streaming = ("--streaming", "--dataset", "owner/data", "--recipe", "scenes", "--model_size", "mini")
    streaming += ("--total_train_batch_size", 4)
    args = parse(*streaming, *saved_run(*streaming, "--dataloader_num_workers", 3, num_processes=2))
    assert train_arguments.find_resume_problems(args, resolve_recipe(args), 2) == []
    assert train_arguments.choose_num_workers(args, CPU) == 3
    (problem,) = train_arguments.find_resume_problems(args, resolve_recipe(args), 1)
    assert problem == f"num_processes is 1, but {Path('run/checkpoint-1')} belongs to a run with 2"
    for given, problem in {
        ("--dataloader_num_workers", 2): "dataloader_num_workers is 2",
        ("--shuffle_buffer_size", 9): "shuffle_buffer_size is 9",
    }.items():
        args = parse(*streaming, *given, "--resume_from_checkpoint", "run/checkpoint-1")
        (found,) = train_arguments.find_resume_problems(args, resolve_recipe(args), 2)
        assert found.startswith(f"{problem}, but")
    args = parse(*streaming, "--per_device_train_batch_size", 1, "--resume_from_checkpoint", "run/checkpoint-1")
    found = train_arguments.find_resume_problems(args, resolve_recipe(args), 2)
    assert any(problem.startswith("per_device_train_batch_size is 1, but") for problem in found)


def test_files_of_a_resumed_stream_are_named(parse, saved_run):
    streaming = ("--streaming", "--dataset", "owner/data", "--recipe", "scenes", "--model_size", "mini")
    args = parse(*streaming, "--dataloader_num_workers", 2)
    split = SimpleNamespace(num_shards=3, num_rows=None, files={"a": 1, "b": 2, "c": 3})
    dataset = SimpleNamespace(name="pets", splits={"train": split})
    assert train_arguments.find_stream_problems(args, dataset, 3) == []
    (problem,) = train_arguments.find_stream_problems(args, dataset, 4)
    assert problem.startswith("--streaming: the training pictures lie in 3 shard(s)")
    args.epochs = 2
    (problem,) = train_arguments.find_stream_problems(args, dataset, 3)
    assert problem.startswith("--epochs: dataset pets does not say how many training pictures it has")

    streaming += ("--dataloader_num_workers", 2)
    args = parse(*streaming, *saved_run(*streaming))
    run = json.loads(Path("run/checkpoint-1/run.json").read_text())
    for files, expected in (({"a": 1, "b": 2, "c": 3}, None), ({"a": 1, "b": 4, "d": 3}, "b, c, d were added")):
        Path("run/checkpoint-1/run.json").write_text(json.dumps(run | {"streamed_files": files}))
        assert train_arguments.find_resume_problems(args, resolve_recipe(args), 1) == []
        found = train_arguments.find_stream_problems(args, dataset, 3)
        assert [expected in problem for problem in found] == ([] if expected is None else [True])


def test_loading_processes_fit_the_machine(parse, monkeypatch):
    for cores, expected in {1: 1, 6: 6, 48: 8}.items():
        monkeypatch.setattr(train_arguments, "cores_per_process", lambda cores=cores: cores)
        assert train_arguments.choose_num_workers(parse(), GPU) == expected
        assert train_arguments.choose_num_workers(parse(), CPU) == 2
        assert train_arguments.choose_num_workers(parse("--dataloader_num_workers", 0), GPU) == 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "cores"),
        ({"OMP_NUM_THREADS": "1"}, "torch's"),
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, "cores"),
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}, "cores"),
        ({"OMP_NUM_THREADS": "3", "ACCELERATE_MIXED_PRECISION": "no"}, "torch's"),
    ],
)
def test_a_launchers_single_thread_is_nobodys_wish(parse, monkeypatch, environment, expected):
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(train_arguments, "cores_per_process", lambda: "cores")
    monkeypatch.setattr(torch, "get_num_threads", lambda: "torch's")
    assert train_arguments.choose_num_threads(parse(), CPU) == expected
    assert train_arguments.choose_num_threads(parse("--num_threads", 1), CPU) == 1
    assert train_arguments.choose_num_threads(parse(), GPU) is None


@pytest.mark.parametrize(("saved", "on_cpu", "on_gpu"), [(4, 4, 4), (None, "cores", None), ("nothing", 7, None)])
def test_threads_of_a_resumed_run(parse, monkeypatch, saved, on_cpu, on_gpu):
    """Those of the checkpoint; one from before they were recorded had what the environment says, a GPU's has none."""
    monkeypatch.setattr(train_arguments, "default_num_threads", lambda: "cores")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    args = parse("--resume_from_checkpoint", "run/checkpoint-1")
    run = train_arguments.describe_run(args, resolve_recipe(args), 1) | {"num_threads": saved}
    if saved == "nothing":
        del run["num_threads"]
    Path("run/checkpoint-1").mkdir(parents=True)
    Path("run/checkpoint-1/run.json").write_text(json.dumps(run))
    assert problems(args) == []
    assert train_arguments.choose_num_threads(args, CPU) == on_cpu
    assert train_arguments.choose_num_threads(args, GPU) == on_gpu
    args.num_threads = 5
    expected = [f"num_threads is 5, but {Path('run/checkpoint-1')} belongs to a run with 4"] if saved == 4 else []
    assert problems(args) == expected
    assert train_arguments.choose_num_threads(args, CPU) == 5


@pytest.fixture
def saved_run(parse):
    """Writes run.json of a checkpoint of a run with some arguments, without the fields that are named, and returns
    those that resume it."""

    def save(*arguments: object, without: tuple[str, ...] = (), num_processes: int = 1) -> list:
        args = parse(*arguments)
        run = train_arguments.describe_run(args, resolve_recipe(args), num_processes)
        Path("run/checkpoint-1").mkdir(parents=True, exist_ok=True)
        content = {name: value for name, value in run.items() if name not in without}
        Path("run/checkpoint-1/run.json").write_text(json.dumps(content))
        return ["--resume_from_checkpoint", "run/checkpoint-1"]

    return save


@pytest.mark.parametrize(
    ("num_processes", "asked_for", "expected"),
    # Two pictures on each of six devices before; or no more of a share than are asked for.
    [(6, None, (2, 1)), (4, None, (1, 3)), (3, None, (2, 2)), (1, None, (2, 6)), (12, None, (1, 1))]
    + [(6, 1, (1, 2)), (1, 5, (4, 3)), (2, 99, (6, 1))],
)
def test_steps_have_as_many_pictures_on_any_number_of_processes(parse, saved_run, num_processes, asked_for, expected):
    total = ("--total_train_batch_size", 12)
    resume = saved_run(*total, num_processes=6)
    given = () if asked_for is None else ("--per_device_train_batch_size", asked_for)
    args = parse(*resume, *total, *given)
    args.per_device_train_batch_size, _ = train_arguments.choose_batch_sizes(args, num_processes)
    recipe = resolve_recipe(args)
    assert train_arguments.batch_sizes(args, recipe, num_processes) == expected
    assert train_arguments.find_resume_problems(args, recipe, num_processes) == []


@pytest.mark.parametrize(
    ("asked_for", "sizes"),
    # On 4, 3 and 2 processes, twice. At the fifth start another number is asked for, which counts from then on.
    [({}, [3, 2, 3, 3, 2, 3]), ({4: 5}, [3, 2, 3, 3, 4, 3]), ({4: 1}, [3, 2, 3, 3, 1, 1])],
)
def test_numbers_of_processes_that_come_and_go_leave_the_pictures_of_each(parse, saved_run, asked_for, sizes):
    total = ("--total_train_batch_size", 12)
    resume, found = saved_run(*total, num_processes=4), []
    for attempt, num_processes in enumerate((4, 3, 2, 4, 3, 2)):
        given = ("--per_device_train_batch_size", asked_for[attempt]) if attempt in asked_for else ()
        args = parse(*resume, *total, *given)
        args.per_device_train_batch_size, args.largest_per_device_train_batch_size = (
            train_arguments.choose_batch_sizes(args, num_processes)
        )
        assert train_arguments.find_resume_problems(args, resolve_recipe(args), num_processes) == []
        run = train_arguments.describe_run(args, resolve_recipe(args), num_processes)
        Path("run/checkpoint-1/run.json").write_text(json.dumps(run))
        found.append(run["per_device_train_batch_size"])
    assert found == sizes


def test_what_cannot_be_split_evenly_is_a_problem(parse, saved_run):
    args = parse(*saved_run(num_processes=4))
    args.per_device_train_batch_size, _ = train_arguments.choose_batch_sizes(args, 3)
    (problem,) = train_arguments.find_resume_problems(args, resolve_recipe(args), 3)
    assert "8 pictures a step, which cannot be split evenly among 3 processes; among 1, 2, 4, 8 they can" in problem


def refused_fields(args: Namespace) -> list[str]:
    return [problem.split()[0] for problem in problems(args)]


def test_checkpoint_from_before_there_was_a_choice_is_resumed(parse, saved_run):
    added = tuple(train_arguments.ADDED_TO_RUNS)
    args = parse()
    run = train_arguments.describe_run(args, resolve_recipe(args), 1)
    assert {name: run[name] for name in added} == train_arguments.ADDED_TO_RUNS
    assert problems(parse(*saved_run(without=added))) == []


def test_a_stage_is_frozen_with_all_before_it(parse):
    for names, expected in {(): 0, ("stage1",): 1, ("stage1", "stage3"): 3, ("backbone",): 4, ("stage4",): 4}.items():
        assert train_arguments.frozen_stages(parse(*(("--freeze", *names) if names else ()))) == expected


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--head_learning_rate_factor", 10], "head_learning_rate_factor"),
        (["--layer_decay", 0.9], "layer_decay"),
        (["--freeze", "stage2", "stage1"], "frozen_stages"),
        (["--save_best"], "save_best"),
        (["--early_stopping_patience", 3], "early_stopping_patience"),
    ],
)
def test_what_decides_the_weights_is_kept_by_a_resumed_run(parse, saved_run, arguments, field):
    parse = partial(parse, "--model_name_or_path", CLASSIFIER)
    saved_run = partial(saved_run, "--model_name_or_path", CLASSIFIER)
    # Where evaluations decide which weights are kept, when and on what they are is part of the run.
    expected = ["eval_steps", field] if field in ("save_best", "early_stopping_patience") else [field]
    assert sorted(refused_fields(parse(*saved_run(), *arguments))) == sorted(expected)
    resume = saved_run(*arguments)
    assert problems(parse(*resume, *arguments)) == []
    assert sorted(refused_fields(parse(*resume))) == sorted(expected)
    found = problems(parse(*resume, *arguments, "--eval_steps", 7, "--validation_split", "test"))
    assert [problem.split()[0] for problem in found] == (
        ["eval_steps", "validation_split"] if len(expected) > 1 else []
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--push_to_hub"], ["--hub_model_id"]),
        (["--push_to_hub", "--hub_model_id", "van"], ["owner/name"]),
        (["--hub_model_id", "me/van", "--hub_private_repo"], ["--hub_model_id", "--hub_private_repo"]),
        # The tests run offline.
        (["--push_to_hub", "--hub_model_id", "me/van"], ["HF_HUB_OFFLINE is set"]),
    ],
)
def test_what_would_fail_at_the_end_is_found_at_the_beginning(parse, monkeypatch, arguments, expected):
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    found = problems(parse(*arguments))
    assert len(found) == len(expected)
    for part in expected:
        assert any(part in problem for problem in found)


def test_what_masks_mean_is_part_of_the_run(parse):
    plain = parse()
    assert "mask_values" not in train_arguments.describe_run(plain, resolve_recipe(plain), 1)  # as before there was it
    args = parse("--mask_values", "0=0", "255=1", "--mask_tolerance", 3)
    run = train_arguments.describe_run(args, resolve_recipe(args), 1)
    assert run["mask_values"] == ["0=0", "255=1"] and run["mask_tolerance"] == 3
    Path("run/checkpoint-1").mkdir(parents=True)
    Path("run/checkpoint-1/run.json").write_text(json.dumps(run))
    args = parse("--mask_values", "0=1", "255=0", "--resume_from_checkpoint", "run/checkpoint-1")
    expected = ["mask_tolerance is None", "mask_values is ['0=1', '255=0'], but"]
    assert [problem[: len(start)] for problem, start in zip(problems(args), expected, strict=True)] == expected


def test_the_contents_of_files_are_part_of_the_run(parse):
    Path("values.json").write_text('{"0": "a", "255": "b"}')
    args = parse("--mask_values", "values.json", "--resume_from_checkpoint", "run/checkpoint-1")
    run = train_arguments.describe_run(args, resolve_recipe(args), 1)
    Path("run/checkpoint-1").mkdir(parents=True)
    Path("run/checkpoint-1/run.json").write_text(json.dumps(run))
    assert problems(args) == []
    Path("values.json").write_text('{"255": "a", "0": "b"} ')
    (problem,) = problems(args)
    assert problem == "values.json is not what it was in the run that run/checkpoint-1 belongs to"
    del run["files"]  # as of a checkpoint from before they were recorded
    Path("run/checkpoint-1/run.json").write_text(json.dumps(run))
    assert problems(args) == []


def test_the_labels_of_the_data_set_are_part_of_the_run(parse, saved_run, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    names = data / "id2label.json"
    names.write_text('["a", "b"]')
    given = ("--dataset", data, "--recipe", "scenes", "--model_size", "mini")
    resume = saved_run(*given)
    assert problems(parse(*given, *resume)) == []
    names.write_text('["b", "a"]')
    (problem,) = problems(parse(*given, *resume))
    assert problem.startswith(f"{names} is not what it was")
    names.unlink()
    assert len(problems(parse(*given, *resume))) == 1


@pytest.mark.parametrize(
    "given", [["0=0", "-1=ignore", "1=1"], ["-1=ignore", "0=0", "1=1"], ["-1=ignore", "1=1", "0=0", "--seed", "-1"]]
)
def test_mask_values_may_be_negative(parse, boxes, given):
    args = parse("--dataset", boxes, "--mask_values", *given)
    assert common_arguments.load_dataset(args).mask_meaning.values == ((-1, 255), (0, 0), (1, 1))
    assert parse(f"--mask_values={given[0]}", "--mask_tolerance", 2).mask_values == given[:1]
    with pytest.raises(SystemExit):
        parse("--mask_values", "0=0", "-x=ignore")


@pytest.mark.parametrize("given", [["values.json"], ["0=0", "255=1"]])
def test_mask_values_are_a_file_or_pairs(parse, boxes, given):
    Path("values.json").write_text('{"0": 0, "255": 1}')
    names = Path("names.json")
    names.write_text('["a", "b"]')
    args = parse("--dataset", boxes, "--id2label", names, "--mask_values", *given)
    assert common_arguments.load_dataset(args).mask_meaning.values == ((0, 0), (255, 1))


def test_compiling_is_refused_without_a_compiler(parse, saved_run, monkeypatch):
    monkeypatch.setenv("CXX", "none++")
    with monkeypatch.context() as patch:
        patch.setattr(train_arguments, "OLDEST_COMPILER", "99.1")
        (problem,) = problems(parse("--torch_compile"))
        assert problem == f"--torch_compile needs torch 99.1, found {torch.__version__}"
    monkeypatch.setattr(train_arguments, "OLDEST_COMPILER", "2.0")
    resume = saved_run()
    assert problems(parse("--torch_compile")) == []
    # It may be turned on and off on the way.
    assert problems(parse(*resume, "--torch_compile")) == []
    monkeypatch.setattr(train_arguments.shutil, "which", lambda _: None)
    assert ["needs a C++ compiler" in problem for problem in problems(parse("--torch_compile"))] == [True]


def test_fsdp_is_refused(parse, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert ["--use_fsdp does not work" in problem for problem in problems(parse())] == [True]


@pytest.mark.slow
def test_the_hub_is_not_needed_without_a_push():
    script = "import sys, train_arguments; assert not {'van_hf.hub', 'van_hf.model_cards'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], cwd=Path(train_arguments.__file__).parent, check=True)
