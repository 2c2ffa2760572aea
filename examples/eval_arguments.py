# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The command line of eval_seg.py: the arguments, all that can be wrong with them, and what follows from them."""

import argparse
import os
from pathlib import Path

from accelerate import PartialState
from common_arguments import add_data_arguments, expand_user, find_common_problems, find_output_problems

from van_hf.inference import RATIOS, Protocol

DEFAULT_MODEL = "outputs/van-scenes"
MODES = ("whole", "slide")
METRICS = ("streaming", "mean_iou")


def parse_arguments(description: str) -> argparse.Namespace:
    """Read the command line. Values are judged in `find_problems`, which reports all that is wrong at once."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    protocol = parser.add_argument_group("model and protocol")
    protocol.add_argument("--model_name_or_path", type=expand_user, default=DEFAULT_MODEL,
                          help="a trained segmentation model, or the folder of an export")  # fmt: skip
    protocol.add_argument("--trust_pickle", action="store_true", help="run any code that a torch_export model holds")
    protocol.add_argument("--mode", default="whole", help="whole pictures at once, or slide: window by window")
    protocol.add_argument("--crop_size", type=int, help="side of the windows in pixels; 512 by default")
    protocol.add_argument("--stride", type=int, help="step between windows; two thirds of --crop_size by default")
    protocol.add_argument("--multi_scale", action="store_true", help=f"average over the sizes x {RATIOS}")
    protocol.add_argument("--flip", action="store_true", help="average over pictures and their mirror images")
    protocol.add_argument("--mixed_precision", help="no, fp16 or bf16; accelerate's setting by default")
    protocol.add_argument("--metric", default="streaming", help="streaming, this package's; or mean_iou, the Hub's, "
                          "which reads --save_predictions' masks at the end and needs memory for all")  # fmt: skip

    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=expand_user, help="by default a folder of its own in outputs/; an "
                        "evaluation that was stopped goes on where the same one is started again")  # fmt: skip
    output.add_argument("--save_predictions", action="store_true", help="save masks: PNGs of label + 1, as ADE20K's "
                        "benchmark takes them")  # fmt: skip
    args = parser.parse_args()
    args.save_predictions |= args.metric == "mean_iou"
    if args.mode == "slide":
        args.crop_size = 512 if args.crop_size is None else args.crop_size
        args.stride = max(args.crop_size * 2 // 3, 1) if args.stride is None else args.stride
    return args


def find_problems(args: argparse.Namespace, state: PartialState) -> list[str]:
    """Return a line for everything that is wrong with the arguments, without loading anything."""
    problems = find_common_problems(args, state)
    for name, known in {"mode": MODES, "metric": METRICS}.items():
        if getattr(args, name) not in known:
            problems.append(f"--{name} must be one of {', '.join(known)}, got {getattr(args, name)!r}")
    if args.mode == "slide":
        if args.crop_size < 32:
            problems.append(f"--crop_size must be 32 or more, got {args.crop_size}")
        if not 1 <= args.stride <= args.crop_size:
            problems.append(f"--stride must be from 1 to --crop_size {args.crop_size}, got {args.stride}")
    else:
        given = (name for name in ("crop_size", "stride") if getattr(args, name) is not None)
        problems += [f"--{name} goes with --mode slide only" for name in given]
    if args.model_name_or_path == DEFAULT_MODEL and not os.path.exists(DEFAULT_MODEL):
        problems.append(
            f"--model_name_or_path is {DEFAULT_MODEL} by default, what examples/train_seg.py without arguments "
            "leaves; that is not there yet. Train it, or name another model"
        )
    return problems + find_output_problems(args)


def resolve_protocol(args: argparse.Namespace) -> Protocol:
    """Return the protocol that the arguments ask for."""
    ratios = RATIOS if args.multi_scale else (1.0,)
    return Protocol(args.mode, args.crop_size, args.stride, ratios, args.flip)


def first_output_dir(args: argparse.Namespace) -> Path:
    """Return the folder that is taken by default if nothing stands in the way, `outputs/eval-MODEL-DATASET`."""
    return Path("outputs", f"eval-{Path(args.model_name_or_path).name}-{Path(args.dataset).name}")
