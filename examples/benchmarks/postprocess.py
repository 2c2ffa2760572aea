# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Arg max of upsampled logits, and the image processor's post-processing around it."""

import argparse
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

from van_hf import VanImageProcessor
from van_hf.model import upsampled_scores

from .measuring import (
    MEGABYTE,
    Table,
    add_common_arguments,
    in_new_process,
    integer_from,
    peak_memory_of,
    share,
    take_turns,
)
from .measuring import size as size_argument

LOGITS_KINDS = ("noise", "smooth")
SMOOTH_STRIDE = 16


def add_command(commands) -> None:
    help = "arg max of logits brought to a picture's size, and the image processor's post-processing"
    parser = commands.add_parser("postprocess", help=help, description=help)
    parser.add_argument("--num_labels", type=integer_from(2, 255), default=150)
    parser.add_argument("--logits_size", type=size_argument, default=(128, 171), metavar="HEIGHTxWIDTH")
    parser.add_argument("--size", type=size_argument, nargs="+", default=[(512, 683), (2048, 2732)],
                        metavar="HEIGHTxWIDTH", help="of the label maps in pixels (512x683 2048x2732)")  # fmt: skip
    add_common_arguments(parser, repeats=5)
    parser.set_defaults(run=benchmark_postprocess)


def random_logits(kind: str, num_labels: int, size: tuple[int, int], device: str) -> torch.Tensor:
    """Return logits (1, num_labels, height, width): "noise", or "smooth" as those of trained models are."""
    generator = torch.Generator().manual_seed(3)
    if kind == "noise":
        return 5 * torch.randn((1, num_labels, *size), generator=generator).to(device)
    coarse = torch.randn((1, num_labels, *(-(-side // SMOOTH_STRIDE) for side in size)), generator=generator)
    return 5 * F.interpolate(coarse, size=size, mode="bicubic", align_corners=False).to(device)


def process(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the label maps (batch, height, width) that the image processor makes of logits."""
    maps = VanImageProcessor().post_process_semantic_segmentation({"logits": logits}, target_sizes=[size])
    return torch.stack(maps)


SIDES: dict[str, Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]] = {
    "plain": upsampled_scores.upsampled_argmax_reference,
    "van_hf": upsampled_scores.upsampled_argmax,
    "van_hf, image processor": process,
}


def peak_memory_of_side(
    side: str, kind: str, num_labels: int, logits_size: tuple[int, int], size: tuple[int, int], device: str
) -> float:
    """Return the bytes that one call of a side needs above the logits; the label maps are among them."""
    logits = random_logits(kind, num_labels, logits_size, device)
    SIDES[side](logits[..., :8, :8], (16, 16))  # libraries set themselves up in the first call
    return peak_memory_of(lambda: SIDES[side](logits, size), device)


def benchmark_postprocess(args: argparse.Namespace) -> Iterator[Table]:
    for size in args.size:
        for kind in LOGITS_KINDS:
            yield compare_argmax(kind, size, args)


@torch.inference_mode()
def compare_argmax(kind: str, size: tuple[int, int], args: argparse.Namespace) -> Table:
    """Measure all sides at one size of the label maps."""
    logits = random_logits(kind, args.num_labels, args.logits_size, args.device)
    expected = SIDES["plain"](logits, size)
    identical = {name: (function(logits, size) == expected).double().mean().item() for name, function in SIDES.items()}
    calls = {name: lambda function=function: function(logits, size) for name, function in SIDES.items()}
    labels, (rows, columns), (height, width) = args.num_labels, args.logits_size, size
    title = f"Arg max of {labels} x {rows} x {columns} logits ({kind}) at {height} x {width}"
    seconds = take_turns(calls, args.repeats, args.device, desc=title)
    peaks = {
        name: in_new_process(peak_memory_of_side, name, kind, labels, args.logits_size, size, args.device) / MEGABYTE
        for name in SIDES
    }
    table = [
        {
            "side": name,
            "seconds": seconds[name],
            "speedup": seconds["plain"] / seconds[name],
            "peak memory": peaks[name],
            "share of peak": share(peaks[name], peaks["plain"]),
            "identical": identical[name],
        }
        for name in SIDES
    ]
    return Table(title, table)
