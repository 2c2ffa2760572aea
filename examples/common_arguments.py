# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What train_seg.py and eval_seg.py have in common: arguments, their problems, the output folder, how to stop."""

import argparse
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NoReturn, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env
from tqdm.auto import tqdm

from van_hf.bands import check_readable
from van_hf.data import GENERATED_DATASETS, LABEL_TABLES, SegmentationDataset, load_segmentation_dataset
from van_hf.data.folders import FileProblem
from van_hf.files import claim_folder, write_whole

T = TypeVar("T")
PRECISIONS = ("no", "fp16", "bf16")
LONE_PROCESS_WARNING = """\
accelerate launch --cpu starts several processes through MPI only; this is the only one. To have N without MPI:
ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N {script}"""


def expand_user(path: str) -> str:
    """Return a path with ~ for the home folder, which shells leave in `--option=~/path`, in full."""
    return os.path.expanduser(path)


def add_data_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the arguments that name a dataset, which [`load_dataset`] loads, and return their group."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", type=expand_user, default="scenes", help=f"{', '.join(GENERATED_DATASETS)}, "
                      "ade20k, a folder or a Hub dataset")  # fmt: skip
    data.add_argument("--dataset_config_name", help="configuration of a Hub dataset that has several")
    data.add_argument("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    data.add_argument("--train_split", help="such as train or train[:90%%]")
    data.add_argument("--validation_split", help="such as validation or train[90%%:]")
    data.add_argument("--image_column", help="column of the pictures; guessed from its name by default")
    data.add_argument("--mask_column", help="column of the masks; guessed from its name by default")
    data.add_argument(
        "--id2label",
        type=expand_user,
        help="file of the label names and, if need be, colours: JSON, a CSV table or "
        "CVAT's labelmap.txt; found with the dataset by default",
    )
    data.add_argument("--do_reduce_labels", action=argparse.BooleanOptionalAction,
                      help="whether 0 in the masks means 'other' and is ignored")  # fmt: skip
    data.add_argument("--annotations", nargs="+", type=expand_user, metavar="FILE", help="COCO's JSON of the training "
                      "pictures, and of the validation pictures, in the folder --dataset")  # fmt: skip
    data.add_argument("--label_table", help=f"whose labels, colours and raw values the masks have: "
                      f"{', '.join(LABEL_TABLES)}")  # fmt: skip
    data.add_argument("--mask_values", nargs="+", metavar="RAW=LABEL", help="what masks hold, if not labels, such as "
                      "0=0 255=1 -1=ignore, 0=background 255=crack or '#ff0000=car'; or a JSON file")  # fmt: skip
    # Values may be negative; argparse takes `-1` for a value, but `-1=ignore`, unless told so, for an option.
    parser._negative_number_matcher = re.compile(r"^-\d+(=.*)?$|^-\d*\.\d+$", re.DOTALL)
    data.add_argument("--mask_palettes", action="store_true", help="read masks with palettes by their colours")
    data.add_argument("--mask_tolerance", type=int, default=0, help="how far values, or channels of colours, may be "
                      "from those listed, as in masks that were saved as JPEG")  # fmt: skip
    data.add_argument("--ignore_unlisted", action="store_true", help="ignore mask values and colours not listed")
    data.add_argument("--bands", nargs="+", type=int, metavar="BAND", help="numbers, from 1, of the bands to read of "
                      "TIFF files of any integers or floats, such as 4 3 2 8; 8-bit RGB by default")  # fmt: skip
    return data


def load_dataset(
    args: argparse.Namespace, problems: list[FileProblem] | None = None, streaming: bool = False
) -> SegmentationDataset:
    """Load the dataset that the arguments name; files that cannot be used are an error, or added to `problems`."""
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
        annotations=args.annotations,
        label_table=args.label_table,
        mask_values=mask_values(args),
        mask_palettes=args.mask_palettes,
        mask_tolerance=args.mask_tolerance,
        ignore_unlisted=args.ignore_unlisted,
        bands=args.bands,
        problems=problems,
        streaming=streaming,
    )


def mask_values(args: argparse.Namespace) -> str | list[str] | None:
    """Return what --mask_values names: a file, or the pairs themselves."""
    given = args.mask_values
    return expand_user(given[0]) if given is not None and len(given) == 1 and "=" not in given[0] else given


def find_common_problems(args: argparse.Namespace, state: PartialState) -> list[str]:
    """Files that are not there, and a precision that the device does not have."""
    problems = []
    if args.mixed_precision is not None and args.mixed_precision not in PRECISIONS:
        problems.append(f"--mixed_precision must be one of {', '.join(PRECISIONS)}, got {args.mixed_precision!r}")
    if mixed_precision(args) == "fp16" and state.device.type == "cpu":
        problems.append("--mixed_precision fp16 needs a GPU; on the CPU bf16 or no will do")
    if args.id2label is not None and not os.path.isfile(args.id2label):
        problems.append(f"--id2label {args.id2label} is not a file")
    if args.label_table is not None and args.label_table not in LABEL_TABLES:
        problems.append(f"--label_table must be one of {', '.join(LABEL_TABLES)}, got {args.label_table!r}")
    if not 0 <= args.mask_tolerance <= 127:
        problems.append(f"--mask_tolerance must be from 0 to 127, got {args.mask_tolerance}")
    if args.bands is not None:
        try:
            check_readable(args.bands)
        except ValueError as error:
            problems.append(f"--bands: {error}")
    path = args.model_name_or_path
    if path is not None and os.path.isdir(path) and not os.path.isfile(os.path.join(path, "config.json")):
        problems.append(f"--model_name_or_path {path} is a folder without a config.json, so it holds no model")
    if path is not None and path.startswith(("/", ".", "~")) and not os.path.isdir(path):
        problems.append(f"--model_name_or_path {path} is not a folder")
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        problems.append("accelerate launch --use_fsdp does not work with these scripts; --multi_gpu does")
    return problems


def find_output_problems(args: argparse.Namespace) -> list[str]:
    """An output folder that cannot be one, or that a run has finished in."""
    if args.output_dir is None:
        return []
    if os.path.exists(args.output_dir) and not os.path.isdir(args.output_dir):
        return [f"--output_dir {args.output_dir} is not a folder"]
    if is_finished(Path(args.output_dir)):
        return [f"--output_dir {args.output_dir} holds the results of a finished run; name another, or remove it"]
    return []


def is_finished(output_dir: Path) -> bool:
    """Return whether a folder holds the results of a run."""
    return os.path.exists(output_dir / "results.json")


def mixed_precision(args: argparse.Namespace) -> str:
    """Return the precision that was asked for here or, through its environment, of `accelerate launch`."""
    return args.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def process_state() -> PartialState:
    """Return what tells the processes apart before there is an `Accelerator`: the arguments are judged first."""
    # `Accelerator` heeds `accelerate launch --cpu` by itself.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    escape_what_cannot_be_shown()
    if not state.is_main_process:
        # What one process says, all would say.
        logging.getLogger("van_hf").setLevel(logging.ERROR)
    return state


def escape_what_cannot_be_shown() -> None:
    """Have stdout write escapes for what a terminal cannot show, such as names of files, as stderr does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def warn_of_lone_process(state: PartialState, script: str) -> None:
    """Say how to start several processes where the launcher could not."""
    if state.num_processes == 1 and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        print(LONE_PROCESS_WARNING.format(script=script), file=sys.stderr)


@contextmanager
def claim_output_dir(
    args: argparse.Namespace, state: PartialState, first: Path, is_used: Callable[[Path], bool]
) -> Iterator[None]:
    """Keep the output folder for this run alone; for all processes to call.

    The folder is --output_dir or else, and then `args.output_dir` is set on all processes, the first of `first`,
    `first-2`, `first-3` and so on that is not used and that no other run is writing to. If it cannot be had, the
    script ends.
    """
    with ExitStack() as claim:
        problems = []
        if state.is_main_process:
            try:
                if args.output_dir is None:
                    args.output_dir = str(claim_unused(first, is_used, claim))
                elif not claim.enter_context(claim_folder(Path(args.output_dir))):
                    print(
                        f"warning: {args.output_dir} cannot be locked; no other run may write there", file=sys.stderr
                    )
            except BlockingIOError as error:
                problems = [f"--output_dir {args.output_dir}: {error}; wait for its end, or name another folder"]
            except OSError as error:
                problems = [f"--output_dir {args.output_dir or first} cannot be written to: {error.strerror or error}"]
        stop_at_problems(problems, state)
        (args.output_dir,) = broadcast_object_list([args.output_dir])
        yield


def claim_unused(first: Path, is_used: Callable[[Path], bool], claim: ExitStack) -> Path:
    """Claim the first of `first`, `first-2` and so on that is to be had, until `claim` is closed, and return it."""
    for number in count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        if is_used(folder) or (os.path.lexists(folder) and not folder.is_dir()):
            continue
        try:
            is_ours = claim.enter_context(claim_folder(folder))
        except BlockingIOError:
            continue
        # Another run may just have finished in it.
        if is_ours and not is_used(folder):
            return folder
        claim.close()


def load_or_stop(load: Callable[[], T], option: str, state: PartialState) -> T:
    """Return what `load` returns, or end the script with the error as a problem of an option.

    For all processes to call: the main one loads first, and an error in any of them ends them all.
    """
    loaded, problems = None, []
    with state.main_process_first():
        try:
            loaded = load()
        except (OSError, ValueError) as error:
            problems.append(f"{option}: {' '.join(str(error).split())}")
    stop_at_problems(problems, state)
    return loaded


def stop_at_problems(problems: list[str], state: PartialState) -> None:
    """End the script with what is wrong with the arguments; return if there is nothing.

    For all processes to call: what any of them has found ends them all.
    """
    if problems := list(dict.fromkeys(gather_object(problems))):
        stop("\n- ".join(["The arguments have problems:", *problems]), state, status=2)


def stop(message: str, state: PartialState, status: int = 1) -> NoReturn:
    """End the script with a message, which the main process prints; for all processes to call."""
    if state.is_main_process:
        tqdm.write(message, file=sys.stderr)
    # The launcher ends all processes as soon as one has: not before the message is out.
    state.wait_for_everyone()
    sys.exit(status)


@contextmanager
def printing() -> Iterator[None]:
    """Print the summary of what is done, and stays done where the output goes nowhere, as into a closed pipe."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):
            print(f"warning: the summary could not be printed: {error}", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                # What is left in the buffer would fail again as Python ends, and be the script's exit status.
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), stream.fileno())


def write_pictures(folder: Path, draw: dict[str, Callable[[Path], object]]) -> None:
    """Write pictures by their names; one that cannot be drawn is reported, and costs nothing else."""
    for name, save in draw.items():
        try:
            write_whole(folder / name, save)
        except Exception as error:
            print(f"warning: {folder / name} could not be drawn: {error}", file=sys.stderr)
