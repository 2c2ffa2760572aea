# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import train_arguments
from accelerate import PartialState


@pytest.fixture
def parse(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def parse(*arguments: object) -> Namespace:
        monkeypatch.setattr(sys, "argv", ["train_seg.py", *map(str, arguments)])
        return train_arguments.parse_arguments("")

    return parse


def problems(args: Namespace) -> list[str]:
    return train_arguments.find_problems(args, train_arguments.resolve_recipe(args), PartialState(cpu=True))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--learning_rate", -1, "--crop_size", 8, "--seed", -2], ["learning_rate", "crop_size", "seed"]),
        (["--recipe", "best", "--model_size", "b9", "--report_to", "paper"], ["recipe", "model_size", "report_to"]),
        (["--dataset", "ade20k"], ["recipe", "model_size"]),
        (["--mixed_precision", "fp16", "--ema_decay", 1], ["mixed_precision", "ema_decay"]),
        (["--id2label", "none.json", "--model_name_or_path", "./none"], ["id2label", "model_name_or_path"]),
        (["--max_train_steps", 0, "--resume_from_checkpoint", "a/b"], ["max_train_steps", "nothing", "complete"]),
        (["--learning_rate", "nan", "--resume_from_checkpoint", "latest"], ["learning_rate", "latest"]),
        (["--total_train_batch_size", 9, "--per_device_train_batch_size", 2], ["total_train_batch_size"]),
        (["--total_train_batch_size", 1], ["per_device_train_batch_size"]),
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
        ["--dataset", "ade20k", "--recipe", "semantic_fpn_40k", "--model_name_or_path", "someone/van"],
    ],
)
def test_what_is_right_is_no_problem(parse, arguments):
    assert problems(parse(*arguments)) == []


def test_arguments_change_the_recipe(parse):
    original = train_arguments.RECIPES["upernet_160k"]
    recipe = train_arguments.resolve_recipe(parse("--recipe", "upernet_160k", "--learning_rate", 1, "--crop_size", 64))
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
    recipe = train_arguments.resolve_recipe(args)
    assert train_arguments.batch_sizes(args, recipe, num_processes) == expected


def test_decoding_at_reduced_size_is_part_of_the_run(parse):
    for given in ([], ["--jpeg_draft"]):
        args = parse(*given)
        run = train_arguments.describe_run(args, train_arguments.resolve_recipe(args), 1)
        assert run["jpeg_draft"] is args.jpeg_draft is bool(given)


def test_default_folder_is_a_new_one(parse, tmp_path):
    assert parse().output_dir == "outputs/van-scenes"
    (tmp_path / "outputs" / "van-scenes").mkdir(parents=True)
    (tmp_path / "outputs" / "van-scenes" / "results.json").touch()
    assert parse().output_dir == "outputs/van-scenes-2"
    assert parse("--resume_from_checkpoint", "runs/a/checkpoint-3").output_dir == "runs/a"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--push_to_hub"], ["--hub_model_id"]),
        (["--push_to_hub", "--hub_model_id", "van"], ["owner/name"]),
        (
            ["--push_to_hub", "--hub_model_id", "me/van", "--max_train_steps", 0],
            ["--model_name_or_path", "no model to"],
        ),
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


def test_fsdp_is_refused(parse, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert ["--use_fsdp does not work" in problem for problem in problems(parse())] == [True]


@pytest.mark.slow
def test_the_hub_is_not_needed_without_a_push():
    script = "import sys, train_arguments; assert not {'van_hf.hub', 'van_hf.model_cards'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], cwd=Path(train_arguments.__file__).parent, check=True)
