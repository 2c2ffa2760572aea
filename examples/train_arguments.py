# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The command line of train_seg.py: the arguments, all that can be wrong with them, and what follows from them."""

import argparse
import hashlib
import json
import math
import os
import shutil
from dataclasses import asdict, fields, replace
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from common_arguments import (
    add_data_arguments,
    expand_user,
    find_common_problems,
    find_output_problems,
    is_finished,
    mask_values,
    mixed_precision,
    stop_at_problems,
)

from van_hf.data import (
    GENERATED_DATASETS,
    BandStatistics,
    LabelCounts,
    RareClassSampling,
    SegmentationDataset,
    balanced_class_weights,
    check_train_labels,
    check_validation_labels,
    count_labels,
    describe_labels,
    measure_bands,
    read_band_statistics,
    read_class_weights,
    resolve_class_weights,
)
from van_hf.data.loading import LABEL_NAMES_FILE, default_bands
from van_hf.data.streaming import streams_per_process
from van_hf.files import read_json
from van_hf.inference import load_config
from van_hf.losses import LOSS_NAMES, SegmentationLoss, parse_loss_names
from van_hf.machine import cores_per_process
from van_hf.model.configuration_van import DECODE_HEADS, VAN_SIZES, VanConfig
from van_hf.model.image_processing_van import check_rgb_bands
from van_hf.training import ADDED_FIELDS, DEFAULT_RECIPES, RECIPES, Recipe, complete_checkpoints

MOST_THREADS = os.cpu_count() or 1
BALANCED = "balanced"
BAND_STATISTICS = "band_statistics"  # what a checkpoint tells of the run beside what its arguments say
CPU_WORKERS = 2  # they wait most of the time, as training itself keeps the cores busy
MOST_WORKERS = 8
SHUFFLE_BUFFER_SIZE = 1000
TRACKERS = ("tensorboard", "trackio", "wandb")
# What runs had before there was a choice, which their checkpoints do not tell.
ADDED_TO_RUNS = {
    **ADDED_FIELDS,
    **{"frozen_stages": 0, "save_best": False, "early_stopping_patience": None},
    **{"class_weights": None, "label_smoothing": 0.0, "rare_class_sampling": None},
}
# torch 2.6 fails at the wrappers of transformers' forward passes; 2.7 was not tried.
OLDEST_COMPILER = "2.8"
# How the pictures of a step are split, which may be another way when a run is resumed.
SPLIT = (
    *("num_processes", "per_device_train_batch_size", "gradient_accumulation_steps"),
    "largest_per_device_train_batch_size",
)
# How many of the backbone's stages each name freezes.
FREEZABLE = {"stage1": 1, "stage2": 2, "stage3": 3, "stage4": 4, "backbone": 4}


def parse_arguments(description: str) -> argparse.Namespace:
    """Read the command line. Values are judged in `find_problems`, which reports all that is wrong at once."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = add_data_arguments(parser)
    data.add_argument("--dataloader_num_workers", type=int, help="loading processes per device; by default "
                      f"{CPU_WORKERS} on the CPU, on a GPU the process's cores, {MOST_WORKERS} at most")  # fmt: skip
    data.add_argument("--streaming", action="store_true", help="read the training pictures of a Hub dataset, or of a "
                      "folder of Parquet files, as they are needed, instead of keeping them on the disk")  # fmt: skip
    data.add_argument("--shuffle_buffer_size", type=int, help="with --streaming, how many pictures each process "
                      f"keeps in memory, not decoded, to draw from; {SHUFFLE_BUFFER_SIZE} by default")  # fmt: skip
    data.add_argument("--jpeg_draft", action="store_true", help="decode JPEGs that are resized to half or less at "
                      "1/2, 1/4 or 1/8: faster, pictures slightly smoother, the same crops and labels")  # fmt: skip

    data.add_argument("--band_statistics", type=expand_user, metavar="FILE", help="mean and standard deviation of the "
                      "bands, as band_statistics.py writes them; those of the model to start from, or measured at the "
                      "start, by default")  # fmt: skip
    data.add_argument("--rgb_bands", nargs="+", type=int, metavar="BAND", help="the three of --bands to draw as red, "
                      "green and blue, or one; by default the first three, or the first of fewer")  # fmt: skip

    model = parser.add_argument_group("model")
    model.add_argument("--model_size", help=f"architecture to train: mini, {', '.join(VAN_SIZES)}")
    model.add_argument("--model_name_or_path", type=expand_user, help="weights to start from: a backbone, classifier "
                       "or whole model, whose architecture is trained if there is no --model_size")  # fmt: skip
    model.add_argument("--decode_head", help=f"{' or '.join(DECODE_HEADS)}. By default a whole model that is "
                       "trained further keeps its head; any other gets the recipe's")  # fmt: skip
    model.add_argument("--freeze", nargs="+", metavar="STAGE", help="stage1 to stage4, or backbone: keep it, and all "
                       "stages before it, as they are, BatchNorm's statistics included")  # fmt: skip

    training = parser.add_argument_group("training; the recipe has the values that are not given")
    training.add_argument("--recipe", help=f"one of {', '.join(RECIPES)}")
    training.add_argument("--max_train_steps", type=int, help="optimizer steps")
    training.add_argument("--epochs", type=float, help="passes over the training pictures, from which the steps "
                          "follow")  # fmt: skip
    training.add_argument("--learning_rate", type=float, help="peak learning rate")
    training.add_argument("--head_learning_rate_factor", type=float, help="how many times that of the backbone the "
                          "decode heads' learning rate is, e.g. 10")  # fmt: skip
    training.add_argument("--layer_decay", type=float, help="by what the learning rate falls from each block of the "
                          "backbone to the one before it, e.g. 0.9; 1 for not at all")  # fmt: skip
    training.add_argument("--weight_decay", type=float)
    training.add_argument("--warmup_steps", type=int)
    training.add_argument("--total_train_batch_size", type=int, help="pictures per step, over all devices")
    training.add_argument("--per_device_train_batch_size", type=int, help="pictures per device and forward pass; what "
                          "is missing to the total is accumulated. By default the device's whole share")  # fmt: skip
    training.add_argument("--crop_size", type=int, help="side of the training crops in pixels")
    training.add_argument("--loss", help=f"{', '.join(LOSS_NAMES)}, or two of them as in "
                          "cross_entropy+dice")  # fmt: skip
    training.add_argument("--class_weights", type=expand_user, help="of the classes in the loss: balanced, by their "
                          "frequency in the training masks, or a JSON file: a list or an object by label")  # fmt: skip
    training.add_argument("--label_smoothing", type=float, default=0.0, help="share of the target that all classes "
                          "have in equal parts, e.g. 0.1; for cross_entropy and ohem")  # fmt: skip
    training.add_argument("--rare_class_sampling", type=float, nargs="?", metavar="T",
                          const=RareClassSampling.temperature, help="draw pictures by their classes, rare "
                          f"ones more often; the lower the temperature T, {RareClassSampling.temperature} by default, "
                          "the more")  # fmt: skip
    training.add_argument("--max_grad_norm", type=float, help="clip gradients to this norm")
    training.add_argument("--ema_decay", type=float, help="evaluate and save an average of the weights, e.g. 0.999")
    training.add_argument("--mixed_precision", help="no, fp16 or bf16; accelerate's setting by default")
    training.add_argument("--gradient_checkpointing", action="store_true", help="need about half the memory: what "
                          "would take the most to keep is computed anew in the backward pass")  # fmt: skip
    training.add_argument("--torch_compile", action="store_true", help="compile the training step, which takes "
                          "minutes at first; measure whether it pays")  # fmt: skip
    training.add_argument("--num_threads", type=int, help="of each process on the CPU, all cores together by default "
                          "or, outside of a launcher, OMP_NUM_THREADS")  # fmt: skip
    training.add_argument("--seed", type=int, default=0)

    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=expand_user, help="by default a folder of its own in outputs/")
    output.add_argument("--eval_steps", type=int, help="steps between evaluations")
    output.add_argument("--save_best", action="store_true", help="end with the weights of the best evaluation, by "
                        "mean IoU, instead of the last ones")  # fmt: skip
    output.add_argument("--early_stopping_patience", type=int, help="end after so many evaluations without a better "
                        "one")  # fmt: skip
    output.add_argument("--checkpointing_steps", type=int, help="steps between checkpoints, beside those that are "
                        "saved before each evaluation")  # fmt: skip
    output.add_argument("--checkpoints_total_limit", type=int, default=2, help="checkpoints to keep, the newest")
    output.add_argument("--resume_from_checkpoint", type=expand_user, help="a checkpoint's folder, or latest: "
                        "the newest in --output_dir, if there is one yet")  # fmt: skip
    output.add_argument("--report_to", help=f"{', '.join(TRACKERS)}; nothing by default")
    output.add_argument("--push_to_hub", action="store_true", help="release the model, with figures and pictures")
    output.add_argument("--hub_model_id", help="owner/name on the Hub")
    output.add_argument("--hub_private_repo", action="store_true", help="a new repository only its owner sees")
    parser.set_defaults(largest_per_device_train_batch_size=None)  # see `choose_batch_sizes`
    args = parser.parse_args()
    if args.output_dir is None and args.resume_from_checkpoint not in (None, "latest"):
        args.output_dir = str(Path(args.resume_from_checkpoint).parent)
    return args


def recipe_name(args: argparse.Namespace) -> str | None:
    """Return the name of the recipe, which need not be one that there is; None if it must be given."""
    return args.recipe or DEFAULT_RECIPES.get(args.dataset)


def load_start_config(args: argparse.Namespace) -> VanConfig | None:
    """Return the configuration of the model that training starts from, None if it starts from scratch.

    Raises:
        ValueError: it is no VAN, or its config.json is damaged.
        OSError: it cannot be found.
    """
    return load_config(args.model_name_or_path) if args.model_name_or_path is not None else None


def is_segmentation_model(config: VanConfig) -> bool:
    """Return whether the configuration is that of a whole model, decode head included."""
    return "VanForSemanticSegmentation" in (config.architectures or [])


def resolve_recipe(args: argparse.Namespace, start: VanConfig | None) -> Recipe:
    """Return the recipe with what the arguments, and the head of the model to start from, change in it.

    Args:
        args: without problems, see [`find_problems`].
        start: what [`load_start_config`] returned.
    """
    given = {field.name: getattr(args, field.name, None) for field in fields(Recipe)}
    if args.decode_head is None and args.model_size is None and start is not None and is_segmentation_model(start):
        given["decode_head"] = start.decode_head
    return replace(RECIPES[recipe_name(args)], **{name: value for name, value in given.items() if value is not None})


def find_problems(args: argparse.Namespace, state: PartialState) -> list[str]:
    """Return a line for everything that is wrong with the arguments each by itself, without loading anything."""
    return [*find_value_problems(args), *find_choice_problems(args, state), *find_folder_problems(args)]


def find_recipe_problems(args: argparse.Namespace, recipe: Recipe, state: PartialState) -> list[str]:
    """Return a line for everything that does not go together, of arguments that make sense each by itself."""
    return find_batch_problems(args, recipe, state) + find_resume_problems(
        args, recipe, state.num_processes, is_length_known=args.epochs is None
    )


def find_value_problems(args: argparse.Namespace) -> list[str]:
    """Numbers out of range."""
    at_least = {
        1: (
            "total_train_batch_size",
            "per_device_train_batch_size",
            "eval_steps",
            "checkpointing_steps",
            "early_stopping_patience",
            "num_threads",
            "shuffle_buffer_size",
        ),
        0: ("warmup_steps", "weight_decay", "dataloader_num_workers", "seed"),
        32: ("crop_size",),
    }
    problems = []
    for least, names in at_least.items():
        for name in names:
            value = getattr(args, name)
            if value is not None and not value >= least:
                problems.append(f"--{name} must be {least} or more, got {value}")
    if args.max_train_steps is not None and args.max_train_steps < 1:
        problems.append(
            f"--max_train_steps must be 1 or more, got {args.max_train_steps}; examples/eval_seg.py evaluates a model"
        )
    if args.num_threads is not None and args.num_threads > MOST_THREADS and args.resume_from_checkpoint is None:
        problems.append(
            f"--num_threads must be at most {MOST_THREADS}, the machine's processors, got {args.num_threads}: more "
            "would wait for each other"
        )
    if args.checkpoints_total_limit < 1:
        problems.append(f"--checkpoints_total_limit must be 1 or more, got {args.checkpoints_total_limit}")
    for name in ("epochs", "learning_rate", "head_learning_rate_factor", "max_grad_norm", "rare_class_sampling"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            problems.append(f"--{name} must be above 0 and finite, got {value}")
    if args.layer_decay is not None and not 0 < args.layer_decay <= 1:
        problems.append(f"--layer_decay must be above 0 and at most 1, got {args.layer_decay}")
    if args.ema_decay is not None and not 0 < args.ema_decay < 1:
        problems.append(f"--ema_decay must lie between 0 and 1, got {args.ema_decay}")
    return problems


def find_choice_problems(args: argparse.Namespace, state: PartialState) -> list[str]:
    """Unknown names, files that are not there, and choices that do not go together."""
    problems = find_common_problems(args, state)
    choices = {
        "model_size": ("mini", *VAN_SIZES),
        "decode_head": DECODE_HEADS,
        "recipe": tuple(RECIPES),
        "report_to": TRACKERS,
    }
    for name, known in choices.items():
        value = getattr(args, name)
        if value is not None and value not in known:
            problems.append(f"--{name} must be one of {', '.join(known)}, got {value!r}")
    for name in args.freeze or ():
        if name not in FREEZABLE:
            problems.append(f"--freeze must be of {', '.join(FREEZABLE)}, got {name!r}")
    if args.freeze and args.model_name_or_path is None:
        problems.append("--freeze needs --model_name_or_path: weights that were never trained are no use as they are")
    if args.epochs is not None and args.max_train_steps is not None:
        problems.append("--epochs and --max_train_steps both say how long training takes; give one of them")
    if args.recipe == "finetune" and args.model_name_or_path is None:
        problems.append("--recipe finetune needs --model_name_or_path: it is for weights that were trained before")
    if recipe_name(args) is None:
        problems.append(f"--recipe is needed for --dataset {args.dataset}: one of {', '.join(RECIPES)}")
    if args.dataset not in GENERATED_DATASETS and args.model_size is None and args.model_name_or_path is None:
        problems.append(f"--model_size or --model_name_or_path is needed for --dataset {args.dataset}")
    if args.report_to in TRACKERS and find_spec(args.report_to) is None:
        problems.append(f"--report_to {args.report_to} needs the package {args.report_to}, which is not installed")
    if args.torch_compile and torch.__version__ < OLDEST_COMPILER:
        problems.append(f"--torch_compile needs torch {OLDEST_COMPILER}, found {torch.__version__}")
    elif args.torch_compile and not can_compile(state):
        needed = "a C++ compiler: g++, clang++ or CXX" if state.device.type == "cpu" else "the package triton"
        problems.append(f"--torch_compile needs {needed}, which is not there")
    problems += find_streaming_problems(args) + find_band_problems(args)
    return problems + find_loss_problems(args) + find_hub_problems(args)


def find_band_problems(args: argparse.Namespace) -> list[str]:
    """What does not go with --bands, or needs it."""
    problems = []
    bands = args.bands or default_bands(args.dataset)
    if bands is None:
        given = [name for name in ("band_statistics", "rgb_bands") if getattr(args, name) is not None]
        return [f"--{name} needs --bands; without them pictures are read as 8-bit RGB" for name in given]
    if args.jpeg_draft:
        problems.append("--jpeg_draft is for JPEG pictures in RGB; leave it out with bands")
    if args.rgb_bands is not None:
        try:
            check_rgb_bands(bands, args.rgb_bands)
        except ValueError as error:
            problems.append(f"--{error}")
    if args.band_statistics is not None:
        try:
            read_band_statistics(args.band_statistics, bands)
        except ValueError as error:
            problems.append(f"--band_statistics: {error}")
    return problems


def find_streaming_problems(args: argparse.Namespace) -> list[str]:
    """What does not go with pictures that are read one after the other, and what needs such."""
    if not args.streaming:
        return [] if args.shuffle_buffer_size is None else ["--shuffle_buffer_size needs --streaming"]
    problems = []
    if args.class_weights == BALANCED:
        problems.append("--streaming does not go with --class_weights balanced, which counts all masks; a file does")
    if args.rare_class_sampling is not None:
        problems.append("--streaming does not go with --rare_class_sampling, which draws pictures from all of them")
    if args.annotations is not None:
        problems.append("--streaming does not go with --annotations, whose pictures lie in a folder as they are")
    if args.dataset in GENERATED_DATASETS:
        problems.append(f"--streaming does not go with --dataset {args.dataset}, which is generated on this machine")
    return problems


def find_loss_problems(args: argparse.Namespace) -> list[str]:
    """A loss that there is not, and what does not go together with it or is no file of weights."""
    problems, names = [], None
    loss = RECIPES.get(recipe_name(args), Recipe).loss if args.loss is None else args.loss
    try:
        names = parse_loss_names(loss)
    except ValueError as error:
        problems.append(f"--loss: {error}")
    if not 0 <= args.label_smoothing < 1:
        problems.append(f"--label_smoothing must be 0 or more and below 1, got {args.label_smoothing}")
    elif names is not None:
        try:
            SegmentationLoss(names, label_smoothing=args.label_smoothing)
        except ValueError as error:
            problems.append(f"--label_smoothing: {error}")
    try:
        given_class_weights(args)
    except ValueError as error:
        problems.append(f"--class_weights: {error}")
    return problems


def given_class_weights(args: argparse.Namespace) -> str | list[float] | dict[str, float] | None:
    """Return the content of the file that `--class_weights` names, "balanced", or None.

    Raises:
        ValueError: the file cannot be read, or holds no weights.
    """
    if args.class_weights in (None, BALANCED):
        return args.class_weights
    return read_class_weights(args.class_weights)


def can_compile(state: PartialState) -> bool:
    """Return whether there is what torch.compile makes programs with."""
    if state.device.type != "cpu":
        return find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def find_hub_problems(args: argparse.Namespace) -> list[str]:
    """Arguments for the Hub that cannot be, or do not go together."""
    if not args.push_to_hub:
        given = [name for name in ("hub_model_id", "hub_private_repo") if getattr(args, name)]
        return [f"--{name} needs --push_to_hub" for name in given]
    if args.hub_model_id is None:
        return ["--push_to_hub needs --hub_model_id, the model's owner/name on the Hub"]
    from van_hf.hub import check_name

    try:
        check_name(args.hub_model_id)
    except ValueError as error:
        return [str(error)]
    return []


def find_access_problems(args: argparse.Namespace, state: PartialState) -> list[str]:
    """What the end of the training would fail at: no network, or no token that may write the model."""
    # One process asks, as the Hub answers this question only so many times.
    if not args.push_to_hub or not state.is_main_process:
        return []
    from van_hf.hub import check_access

    try:
        check_access(args.hub_model_id)
    except OSError as error:
        return [f"--push_to_hub: {error}"]
    return []


def find_label_problems(dataset: SegmentationDataset, state: PartialState) -> list[str]:
    """Masks that a model could learn nothing from, or not be evaluated by.

    The main process looks at some hundred, and where they will do prints the table of the labels.
    """
    problems, contents = [], {}
    if state.is_main_process:
        for split, check in (("train", check_train_labels), ("validation", check_validation_labels)):
            try:
                contents[split] = check(dataset)
            except ValueError as error:
                problems.append(f"--dataset: {error}")
        if not problems:
            print(describe_labels(dataset, contents))
    return problems


def find_class_weight_problems(args: argparse.Namespace, dataset: SegmentationDataset) -> list[str]:
    """Weights of labels that the data have not, or not of all."""
    if args.class_weights in (None, BALANCED):
        return []
    try:
        resolve_class_weights(args.class_weights, dataset.id2label, "the file")
    except ValueError as error:
        return [f"--class_weights: {error}"]
    return []


def resolve_band_statistics(
    args: argparse.Namespace, dataset: SegmentationDataset, start: BandStatistics | None, state: PartialState
) -> BandStatistics | None:
    """Return the statistics of the dataset's bands, None for RGB; for all processes.

    They are those of the run that is resumed, of the file that was given, or of the model to start from if it has all
    of the bands. Else the main process measures them; where they cannot be measured, the script ends.

    Args:
        args: without problems.
        dataset: what is trained on.
        start: the bands of the model to start from, None if it takes RGB.
        state: of the processes.
    """
    if dataset.bands is None:
        return None
    if checkpoint := checkpoint_to_resume(args):
        return BandStatistics.from_dict(read_json(checkpoint / "run.json")[BAND_STATISTICS])
    if args.band_statistics is not None:
        return read_band_statistics(args.band_statistics, dataset.bands)
    if start is not None and set(dataset.bands) <= set(start.bands):
        return start.select(dataset.bands)
    if args.streaming:
        problem = "--streaming with --bands needs --band_statistics: not all pictures are read before the training"
        stop_at_problems([problem], state)
    statistics, problems = None, []
    if state.is_main_process:
        try:
            statistics = measure_bands(dataset)
        except (OSError, ValueError) as error:
            problems.append(f"--bands: {error}")
    stop_at_problems(problems, state)
    return broadcast_object_list([statistics])[0]


def count_train_labels(
    args: argparse.Namespace, dataset: SegmentationDataset, state: PartialState
) -> LabelCounts | None:
    """Return how often each label occurs in the training masks, where the arguments ask for it; for all processes.

    The masks are counted by the main process, and what cannot be counted ends the script.
    """
    counts, problems = None, []
    if state.is_main_process and (args.class_weights == BALANCED or args.rare_class_sampling is not None):
        try:
            counts = count_labels(dataset)
        except ValueError as error:
            problems.append(f"--dataset: {error}")
    stop_at_problems(problems, state)
    return broadcast_object_list([counts])[0]


def resolve_loss(
    args: argparse.Namespace, recipe: Recipe, dataset: SegmentationDataset, counts: LabelCounts | None
) -> SegmentationLoss:
    """Return the loss to train with.

    Args:
        args: without problems; `class_weights` is what [`given_class_weights`] returned.
        recipe: with what the arguments change in it.
        dataset: what the weights are of.
        counts: what [`count_train_labels`] returned.
    """
    weights = args.class_weights
    if weights == BALANCED:
        weights = balanced_class_weights(counts)
    elif weights is not None:
        weights = resolve_class_weights(weights, dataset.id2label)
    return SegmentationLoss.parse(recipe.loss, class_weights=weights, label_smoothing=args.label_smoothing)


def find_batch_problems(args: argparse.Namespace, recipe: Recipe, state: PartialState) -> list[str]:
    """Batch sizes that cannot be had with this number of devices, or with the head."""
    problems = []
    per_device, accumulation = batch_sizes(args, recipe, state.num_processes)
    total = args.total_train_batch_size
    if total is not None and per_device * accumulation * state.num_processes != total:
        problems.append(
            f"--total_train_batch_size {total} is no multiple of {state.num_processes} device(s) times "
            f"--per_device_train_batch_size {per_device}"
        )
    synchronized = state.num_processes > 1 and state.device.type == "cuda"
    has_single_pixels = recipe.decode_head == "upernet" or recipe.crop_size <= 32
    if per_device < 2 and has_single_pixels and not synchronized:
        maps = "UperNet's pooled maps" if recipe.decode_head == "upernet" else "the smallest maps of such a crop"
        problems.append(
            f"--per_device_train_batch_size must be 2 or more: {maps} have one pixel, "
            "of which BatchNorm cannot take statistics over a single picture"
        )
    return problems


def find_folder_problems(args: argparse.Namespace) -> list[str]:
    """An output folder that is in use, or a checkpoint that is not there."""
    if args.output_dir is None:
        if args.resume_from_checkpoint == "latest":
            return ["--resume_from_checkpoint latest needs --output_dir, the folder of the run to go on with"]
        return []
    output_dir = Path(args.output_dir)
    if not is_complete(args) and (problems := find_output_problems(args)):
        return problems
    checkpoint = checkpoint_to_resume(args)
    if checkpoint is not None and not os.path.isfile(checkpoint / "run.json"):
        return [f"--resume_from_checkpoint {checkpoint} is not a folder of a complete checkpoint"]
    if complete_checkpoints(output_dir) and (
        checkpoint is None or checkpoint.resolve().parent != output_dir.resolve()
    ):
        return [
            f"--output_dir {output_dir} holds checkpoints of another run; continue that with "
            "--resume_from_checkpoint latest, or name another folder"
        ]
    return []


def find_resume_problems(
    args: argparse.Namespace, recipe: Recipe, num_processes: int, is_length_known: bool = True
) -> list[str]:
    """Differences from the run that a checkpoint belongs to; of `--epochs` steps follow when the data are loaded.

    A step must have as many pictures as before, whatever the number of processes that they are split among.
    """
    checkpoint = checkpoint_to_resume(args)
    if checkpoint is None:
        return []
    try:
        saved = ADDED_TO_RUNS | read_json(checkpoint / "run.json")
    except ValueError as error:
        return [f"--resume_from_checkpoint: {error}"]
    now = describe_run(args, recipe, num_processes)
    if None in (now["num_threads"], saved.get("num_threads")):
        # Not asked for, or not told: a checkpoint of a GPU, or from before it was recorded. See `choose_num_threads`.
        saved["num_threads"] = now["num_threads"]
    saved.pop("streamed_files", None)  # see `find_stream_problems`
    saved.pop(BAND_STATISTICS, None)  # a resumed run takes them
    # Older checkpoints have recorded none of the files, or not the data set's own.
    files, digests = saved.pop("files", {}), now.pop("files")
    problems = [
        f"{path} is not what it was in the run that {checkpoint} belongs to"
        for path, digest in files.items()
        if digests.get(path) != digest
    ]
    if not is_length_known:
        saved |= {name: now[name] for name in ("max_train_steps", "warmup_steps")}
    total = saved.get("total_train_batch_size", 0)
    if args.total_train_batch_size is None and total % num_processes > 0:
        numbers = ", ".join(str(number) for number in range(1, total + 1) if total % number == 0)
        problems.append(
            f"{checkpoint} belongs to a run with {total} pictures a step, which cannot be split evenly among "
            f"{num_processes} processes; among {numbers} they can"
        )
        saved["total_train_batch_size"] = now["total_train_batch_size"]
    # The pictures of a streamed step depend on how it is split, which follows from the number of processes.
    if not args.streaming or saved["num_processes"] != num_processes:
        saved |= {name: now[name] for name in SPLIT if not (args.streaming and name == "num_processes")}
    if args.streaming and now["dataloader_num_workers"] is None:  # what it was, see `choose_num_workers`
        saved["dataloader_num_workers"] = None
    return problems + [
        f"{name} is {now.get(name)!r}, but {checkpoint} belongs to a run with {saved.get(name)!r}"
        for name in sorted(now.keys() | saved.keys())
        if now.get(name) != saved.get(name)
    ]


def find_stream_problems(args: argparse.Namespace, dataset: SegmentationDataset, num_processes: int) -> list[str]:
    """Training files that cannot be streamed to so many processes, or are others than those of the run to resume."""
    split, checkpoint = dataset.splits["train"], checkpoint_to_resume(args)
    problems = []
    if args.epochs is not None and split.num_rows is None:
        problems.append(f"--epochs: dataset {dataset.name} does not say how many training pictures it has, which "
                        "takes a card with `dataset_info`; --max_train_steps does without")  # fmt: skip
    try:
        streams_per_process(split.num_shards, num_processes, args.dataloader_num_workers)
    except ValueError as error:
        problems.append(f"--streaming: {error}")
    if checkpoint is not None:
        saved = read_json(checkpoint / "run.json")["streamed_files"]
        changed = [name for name in saved.keys() | split.files.keys() if saved.get(name) != split.files.get(name)]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            problems.append(
                f"the training files of dataset {dataset.name} are not those of the run that {checkpoint} belongs to: "
                f"{', '.join(sorted(changed)[:3])}{more} were added, removed, or have another size"
            )
    return problems


def is_complete(args: argparse.Namespace) -> bool:
    """Return whether the run that `--resume_from_checkpoint latest` would go on with is finished."""
    return args.resume_from_checkpoint == "latest" and is_finished(Path(args.output_dir))


def resolve_latest(args: argparse.Namespace, state: PartialState) -> str | None:
    """Return the checkpoint to resume, by its folder; None for none. For all processes to call.

    The main process finds the latest one: machines may come to see new files of a shared folder at different times.
    """
    checkpoint = checkpoint_to_resume(args)
    if checkpoint is None and args.resume_from_checkpoint is not None:
        state.print(f"There is no checkpoint in {args.output_dir} yet: a new run begins")
    return broadcast_object_list([None if checkpoint is None else str(checkpoint)])[0]


def checkpoint_to_resume(args: argparse.Namespace) -> Path | None:
    """Return the checkpoint that `--resume_from_checkpoint` means; None if nothing is to be, or can be, resumed."""
    if args.resume_from_checkpoint == "latest":
        checkpoints = complete_checkpoints(Path(args.output_dir))
        return checkpoints[-1] if checkpoints else None
    return Path(args.resume_from_checkpoint) if args.resume_from_checkpoint is not None else None


def with_length(args: argparse.Namespace, recipe: Recipe, num_pictures: int) -> Recipe:
    """Return the recipe with the steps that `--epochs` comes to; as it is without.

    A warmup that was not asked for takes a tenth of them at most.

    Args:
        args: without problems, see [`find_problems`].
        recipe: with the batch size of the run.
        num_pictures: that are trained on.
    """
    if args.epochs is None:
        return recipe
    # As it was written: 0.1 as a float is a little more, which would round up to another step.
    steps = math.ceil(Fraction(str(args.epochs)) * num_pictures / recipe.total_train_batch_size)
    warmup_steps = min(recipe.warmup_steps, steps // 10) if args.warmup_steps is None else args.warmup_steps
    return replace(recipe, max_train_steps=steps, warmup_steps=warmup_steps)


def find_idle_arguments(args: argparse.Namespace, recipe: Recipe) -> list[str]:
    """Return a line for each argument that does nothing for this run, as it is too short, say.

    Args:
        args: without problems, see [`find_problems`].
        recipe: with the steps of the run.
    """
    evaluations = -(-recipe.max_train_steps // recipe.eval_steps)
    number = "1 evaluation" if evaluations == 1 else f"{evaluations} evaluations"
    length = f"{number}, --eval_steps {recipe.eval_steps} being that of {recipe.max_train_steps} steps"
    idle = []
    if args.save_best and evaluations == 1:
        idle.append(f"--save_best has nothing to choose from: the run has {length}")
    patience = args.early_stopping_patience
    if patience is not None and evaluations <= patience + 1:  # the last one ends the run anyway
        idle.append(f"--early_stopping_patience {patience} cannot end the run before its time: it has {length}")
    if recipe.warmup_steps >= recipe.max_train_steps:
        idle.append(
            f"--learning_rate {recipe.learning_rate:g} is never reached: the warmup has {recipe.warmup_steps} steps, "
            f"and the run {recipe.max_train_steps}; fewer --warmup_steps would do"
        )
    if recipe.layer_decay != 1 and frozen_stages(args) == FREEZABLE["backbone"]:
        idle.append("--layer_decay is about the backbone, which is frozen")
    return idle


def choose_num_workers(args: argparse.Namespace, state: PartialState) -> int:
    """Return the loading processes of each device; they decide nothing but the time that it takes.

    With `--streaming`, though, they decide the order of the pictures. So it is one number on all processes and, unless
    the arguments say otherwise, that of the checkpoint which is resumed. For all processes to call.

    Args:
        args: without problems, see [`find_problems`] and [`find_recipe_problems`].
        state: tells the processes apart.
    """
    if args.dataloader_num_workers is not None:
        return args.dataloader_num_workers
    checkpoint = checkpoint_to_resume(args)
    if args.streaming and checkpoint is not None:
        return read_json(checkpoint / "run.json")["dataloader_num_workers"]
    num_workers = default_num_workers(state)
    return broadcast_object_list([num_workers])[0] if args.streaming else num_workers


def default_num_workers(state: PartialState) -> int:
    """Return the loading processes of each device where nothing was asked for."""
    return CPU_WORKERS if state.device.type == "cpu" else min(cores_per_process(), MOST_WORKERS)


def choose_batch_sizes(args: argparse.Namespace, num_processes: int) -> tuple[int | None, int | None]:
    """Return the pictures of each device and forward pass, and the most of them that the run took so far.

    A run that is resumed takes no more than were asked for or, as memory may hold no more, than it ever took before:
    the most that divide its share, on any number of processes.

    Args:
        args: without problems, see [`find_problems`].
        num_processes: of the run from now on.

    Returns:
        None for the device's whole share; None for the most where it does not count, as another number is asked for.

    Raises:
        ValueError: the checkpoint's run.json is damaged.
    """
    checkpoint = checkpoint_to_resume(args)
    if checkpoint is None:
        return args.per_device_train_batch_size, None
    saved = read_json(checkpoint / "run.json")
    largest = None
    if args.per_device_train_batch_size is None:
        # Before it was recorded, it was what the run took last.
        largest = saved.get("largest_per_device_train_batch_size", saved["per_device_train_batch_size"])
    share = saved["total_train_batch_size"] // num_processes
    most = args.per_device_train_batch_size or largest
    return max(size for size in range(1, most + 1) if share % size == 0), largest


def choose_num_threads(args: argparse.Namespace, state: PartialState) -> int | None:
    """Return the threads that each process trains on; None on a GPU, where they decide nothing.

    Sums depend on the number of threads. So it is one on all processes and, unless the arguments say otherwise, that
    of the checkpoint which is resumed, even where there are fewer cores. For all processes to call.

    Args:
        args: without problems, see [`find_problems`] and [`find_recipe_problems`].
        state: tells the processes apart.
    """
    checkpoint = checkpoint_to_resume(args)
    num_threads = args.num_threads
    if num_threads is None and checkpoint is not None:
        saved = read_json(checkpoint / "run.json")
        # Before it was recorded, it was what the environment said.
        num_threads = saved.get("num_threads", torch.get_num_threads() if state.device.type == "cpu" else None)
    if num_threads is None and state.device.type == "cpu":
        num_threads = default_num_threads()
    return broadcast_object_list([num_threads])[0]


def default_num_threads() -> int:
    """Return the threads of a process on the CPU for which nothing was asked: OMP_NUM_THREADS, or else all its cores.

    Launchers set OMP_NUM_THREADS=1 where the user has said nothing, which cannot be told from a 1 that the user asked
    them for. From a launcher it is therefore taken for nothing, and `--num_threads 1` is the way to ask.
    """
    said = os.environ.get("OMP_NUM_THREADS")
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_WORLD_SIZE" in os.environ
    return cores_per_process() if said is None or (said == "1" and launched) else torch.get_num_threads()


def first_output_dir(args: argparse.Namespace) -> Path:
    """Return the folder that is taken by default if nothing stands in the way, `outputs/van-DATASET`."""
    return Path("outputs", f"van-{Path(args.dataset).name}")


def is_used(output_dir: Path) -> bool:
    """Return whether a folder holds results or checkpoints of a run."""
    return is_finished(output_dir) or bool(complete_checkpoints(output_dir))


def describe_run(args: argparse.Namespace, recipe: Recipe, num_processes: int) -> dict:
    """Return everything that decides a run's weights; a checkpoint is resumed only where all but `SPLIT` is the same.

    Args:
        args: `class_weights` is what [`given_class_weights`] returned: a file's content decides, not its name.
        recipe: with what the arguments change in it.
        num_processes: of the run.
    """
    names = (
        *("dataset", "dataset_config_name", "dataset_revision", "train_split", "image_column", "mask_column"),
        *("id2label", "do_reduce_labels", "model_size", "model_name_or_path", "max_grad_norm", "ema_decay", "seed"),
        *("jpeg_draft", "num_threads", "save_best", "early_stopping_patience"),
        *("class_weights", "label_smoothing", "rare_class_sampling"),
    )
    # Absent unless given, as in checkpoints from before there were such.
    data_names = (
        *("annotations", "label_table", "mask_values", "mask_palettes", "mask_tolerance", "ignore_unlisted"),
        *("bands", "rgb_bands"),
    )
    per_device, accumulation = batch_sizes(args, recipe, num_processes)
    run = {name: getattr(args, name) for name in names} | asdict(recipe)
    run |= {name: value for name in data_names if (value := getattr(args, name))}
    run["files"] = digests_of_arguments(args)
    run |= {
        "total_train_batch_size": per_device * accumulation * num_processes,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
        "largest_per_device_train_batch_size": max(per_device, args.largest_per_device_train_batch_size or 0),
        "num_processes": num_processes,
        "mixed_precision": mixed_precision(args),
    }
    run["frozen_stages"] = frozen_stages(args)
    if args.streaming:
        run["streaming"] = True
        run["shuffle_buffer_size"] = args.shuffle_buffer_size or SHUFFLE_BUFFER_SIZE
        run["dataloader_num_workers"] = args.dataloader_num_workers
    if args.save_best or args.early_stopping_patience is not None:
        run["validation_split"] = args.validation_split  # evaluations decide which weights are kept
    else:
        del run["eval_steps"]
    # As it will be read back from a checkpoint, with lists for tuples.
    return json.loads(json.dumps(run))


def frozen_stages(args: argparse.Namespace) -> int:
    """Return how many of the backbone's stages, counted from the picture, are not trained."""
    return max((FREEZABLE[name] for name in args.freeze or ()), default=0)


def digests_of_arguments(args: argparse.Namespace) -> dict[str, str]:
    """Return the digests of the files that say what masks mean: with other contents they would be another data set."""
    values = mask_values(args)
    paths = [args.id2label or os.path.join(args.dataset, LABEL_NAMES_FILE), *(args.annotations or ())]
    paths += [values if isinstance(values, str) else None, getattr(args, "band_statistics", None)]
    return {path: _digest(path, os.stat(path).st_mtime_ns) for path in paths if path and os.path.isfile(path)}


@cache
def _digest(path: str, modified: int) -> str:
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()


def batch_sizes(args: argparse.Namespace, recipe: Recipe, num_processes: int) -> tuple[int, int]:
    """Return pictures per device and forward pass, and the number of passes that are accumulated to a step.

    A recipe's total that cannot be split evenly among the devices is rounded up; one that was asked for with
    `--total_train_batch_size` is not, see [`find_batch_problems`].
    """
    total = recipe.total_train_batch_size
    per_device = args.per_device_train_batch_size or -(-total // num_processes)
    return per_device, -(-total // (per_device * num_processes))
