# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What the command lines of train_seg.py and eval_seg.py have in common."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from van_hf.data import SegmentationDataset, load_segmentation_dataset

PRECISIONS = ("no", "fp16", "bf16")
LONE_PROCESS_WARNING = """\
accelerate launch --cpu starts several processes through MPI only; this is the only one. To have N without MPI:
ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N {script}"""


def add_data_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the arguments that name a dataset, which [`load_dataset`] loads, and returns their group."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", default="scenes", help="scenes, ade20k, a folder or a Hub dataset")
    data.add_argument("--dataset_config_name", help="configuration of a Hub dataset that has several")
    data.add_argument("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    data.add_argument("--train_split", help="such as train or train[:90%%]")
    data.add_argument("--validation_split", help="such as validation or train[90%%:]")
    data.add_argument("--image_column", help="column of the pictures; guessed from its name by default")
    data.add_argument("--mask_column", help="column of the masks; guessed from its name by default")
    data.add_argument("--id2label", help="JSON file of the label names; found with the dataset by default")
    data.add_argument("--do_reduce_labels", action=argparse.BooleanOptionalAction,
                      help="whether 0 in the masks means 'other' and is ignored")  # fmt: skip
    return data


def load_dataset(args: argparse.Namespace) -> SegmentationDataset:
    """Loads the dataset that the arguments name."""
    return load_segmentation_dataset(
        args.dataset,
        image_column=args.image_column,
        mask_column=args.mask_column,
        id2label=args.id2label,
        do_reduce_labels=args.do_reduce_labels,
        train_split=args.train_split,
        validation_split=args.validation_split,
        config_name=args.dataset_config_name,
        revision=args.dataset_revision,
    )


def find_common_problems(args: argparse.Namespace, state: PartialState) -> list[str]:
    """Files that are not there, and a precision that the device does not have."""
    problems = []
    if args.mixed_precision is not None and args.mixed_precision not in PRECISIONS:
        problems.append(f"--mixed_precision must be one of {', '.join(PRECISIONS)}, got {args.mixed_precision!r}")
    if args.mixed_precision == "fp16" and state.device.type == "cpu":
        problems.append("--mixed_precision fp16 needs a GPU; on the CPU bf16 or no will do")
    if args.id2label is not None and not Path(args.id2label).is_file():
        problems.append(f"--id2label {args.id2label} is not a file")
    path = args.model_name_or_path
    if path is not None and Path(path).is_dir() and not Path(path, "config.json").is_file():
        problems.append(f"--model_name_or_path {path} is a folder without a config.json, so it holds no model")
    if path is not None and path.startswith(("/", ".", "~")) and not Path(path).is_dir():
        problems.append(f"--model_name_or_path {path} is not a folder")
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        problems.append("accelerate launch --use_fsdp does not work with these scripts; --multi_gpu does")
    return problems


def mixed_precision(args: argparse.Namespace) -> str:
    """Returns the precision that was asked for here or, through its environment, of `accelerate launch`."""
    return args.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def unused_folder(first: Path, is_used: Callable[[Path], bool]) -> str:
    """Returns the first of `first`, `first-2`, `first-3` and so on that is not used."""
    folders = (first, *(first.with_name(f"{first.name}-{number}") for number in range(2, 10_000)))
    return str(next(folder for folder in folders if not is_used(folder)))


def process_state() -> PartialState:
    """Returns what tells the processes apart before there is an `Accelerator`: the arguments are judged first."""
    # `Accelerator` heeds `accelerate launch --cpu` by itself.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if not state.is_main_process:
        # What one process says, all would say.
        logging.getLogger("van_hf").setLevel(logging.ERROR)
    return state


def stop_at_problems(problems: list[str], state: PartialState) -> None:
    """Prints what is wrong with the arguments, once, and ends the script; returns if there is nothing."""
    if problems:
        if state.is_main_process:
            print("The arguments have problems:", *problems, sep="\n- ", file=sys.stderr)
        sys.exit(2)


def warn_of_lone_process(state: PartialState, script: str) -> None:
    """Says how to start several processes where the launcher could not."""
    if state.num_processes == 1 and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        print(LONE_PROCESS_WARNING.format(script=script), file=sys.stderr)
