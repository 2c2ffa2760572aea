# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Seconds beside published accuracy: of all published models, and of others of transformers that a user might pick."""

import argparse
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from torch import nn

from van_hf.model.configuration_van import DECODE_HEADS, VAN_SIZES, VanConfig
from van_hf.released_checkpoints import IMAGENET, RELEASED_CHECKPOINTS, ReleasedCheckpoint

from .inference import logits_function, random_pictures
from .measuring import DTYPES, Table, add_common_arguments, integer_from, take_turns
from .models import random_model, segformer, upernet_convnext_tiny

# Mean IoU on ADE20K's validation pictures, at multiple scales, in percent.
SEGFORMER_MEAN_IOU = {"b0": 38.0, "b1": 43.1, "b2": 47.5, "b3": 50.0}  # https://arxiv.org/abs/2105.15203, table 1
CONVNEXT_TINY_MEAN_IOU = 46.7  # https://arxiv.org/abs/2201.03545, table 4


class PublishedModel(NamedTuple):
    """A model that has a published figure.

    Attributes:
        family: what the models of all sizes are called.
        size: which one of them it is.
        package: what runs it.
        mean_iou: on ADE20K's validation pictures, in percent.
        protocol: what that was measured with.
        publisher: who measured it.
        build: returns the model in evaluation mode, with random weights.
    """

    family: str
    size: str
    package: str
    mean_iou: float
    protocol: str
    publisher: str
    build: Callable[[], nn.Module]


def size_label(checkpoint: ReleasedCheckpoint) -> str:
    """Return the size, and the head's channels where they are not what models of that size have by default."""
    channels = checkpoint.config().decoder_hidden_size
    if channels == VanConfig.from_size(checkpoint.size, checkpoint.decode_head).decoder_hidden_size:
        return checkpoint.size
    return f"{checkpoint.size}, {channels} channels"


def published_models(sizes: list[str]) -> list[PublishedModel]:
    """Return the models of the given sizes whose mean IoU was published, all from ImageNet-1K, and ConvNeXt-T's."""
    models = [
        PublishedModel(
            DECODE_HEADS[checkpoint.decode_head].name,
            size_label(checkpoint),
            "van_hf",
            checkpoint.figure,
            re.sub(r" \(.*?\)", "", checkpoint.protocol).partition(",")[0],
            "VAN's authors",
            partial(random_model, checkpoint.config()),
        )
        for checkpoint in RELEASED_CHECKPOINTS.values()
        if checkpoint.decode_head is not None
        and checkpoint.figure is not None
        and checkpoint.pretraining == IMAGENET.name
        and checkpoint.size in sizes
    ]
    models += [
        PublishedModel(
            "Segformer", size, "transformers", mean_iou, "multi-scale", "Segformer's authors", partial(segformer, size)
        )
        for size, mean_iou in SEGFORMER_MEAN_IOU.items()
        if size in sizes
    ]
    models.append(
        PublishedModel(
            "UperNet + ConvNeXt",
            "T",
            "transformers",
            CONVNEXT_TINY_MEAN_IOU,
            "multi-scale",
            "ConvNeXt's authors",
            upernet_convnext_tiny,
        )
    )
    return models


def add_command(commands) -> None:
    help = "all heads and sizes, transformers' Segformer and UperNet + ConvNeXt-T in one run, beside published figures"
    parser = commands.add_parser("heads", help=help, description=help)
    parser.add_argument("--model_size", nargs="+", choices=list(VAN_SIZES), default=list(VAN_SIZES), metavar="SIZE",
                        help=f"some of {', '.join(VAN_SIZES)} (all that have a figure)")  # fmt: skip
    parser.add_argument("--height", type=integer_from(1), default=512, help="of the picture in pixels")
    parser.add_argument("--width", type=integer_from(1), default=512, help="of the picture in pixels")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    add_common_arguments(parser, repeats=7)
    parser.set_defaults(run=benchmark_heads)


def benchmark_heads(args: argparse.Namespace) -> Iterator[Table]:
    dtype, device = DTYPES[args.dtype], args.device
    pixel_values = random_pictures((1, 3, args.height, args.width), dtype, device)
    rows, calls = [], {}
    for model in published_models(args.model_size):
        module = model.build()
        rows.append({
            "model": model.family,
            "size": model.size,
            "package": model.package,
            "seconds": None,  # not before all are there
            "parameters (M)": sum(parameter.numel() for parameter in module.parameters()) / 1e6,
            "mean IoU": model.mean_iou,
            "protocol": model.protocol,
            "published by": model.publisher,
        })  # fmt: skip
        logits = logits_function(model.package, module.to(device=device, dtype=dtype))
        calls[f"{model.family} {model.size}"] = partial(logits, pixel_values)
    title = f"Published models, 1 x {args.height} x {args.width}, {args.dtype}"
    for row, seconds in zip(rows, take_turns(calls, args.repeats, device, desc=title).values(), strict=True):
        row["seconds"] = seconds
    notes = [
        "Nothing is fused or compiled, and weights are random. Mean IoU is in percent, on ADE20K's validation",
        "pictures, as published: it was not measured here. All backbones began from ImageNet-1K.",
    ]
    yield Table(title, rows, notes)
