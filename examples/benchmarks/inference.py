# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Inference: van_hf beside the plain form of the same model, transformers' UperNet over it, other models, exports."""

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SemanticSegmenterOutput

from van_hf import VanConfig, VanForSemanticSegmentation
from van_hf.exports import ExportedSegmentationModel, LabelMaps, read_info
from van_hf.inference import load_model
from van_hf.model.configuration_van import DECODE_HEADS

from .complexity import complexity
from .measuring import (
    DTYPES,
    MEGABYTE,
    Table,
    add_common_arguments,
    in_new_process,
    integer_from,
    matrix_product,
    peak_memory_of,
    take_turns,
)
from .models import OTHER_MODELS, SEGFORMER_SIZES, add_model_arguments, forms_of, random_model, stock_upernet

BASELINES = ("plain", "transformers")
KINDS = (*BASELINES, "van_hf", "van_hf fused")
COMPILED = " compiled"
WARM_UP_SIZE = 64


def add_command(commands) -> None:
    help = "inference beside the plain form of the same model, transformers' UperNet over it, and other models"
    parser = commands.add_parser("inference", help=help, description=help)
    add_model_arguments(parser)
    parser.add_argument("--compare", nargs="*", choices=OTHER_MODELS, default=["segformer", "upernet"],
                        metavar="MODEL", help="other models to measure in turn with each: segformer, transformers' of "
                        "the same number (B0 to B3); upernet, VAN's in its plain form; upernet_convnext_tiny, "
                        "transformers' (segformer upernet)")  # fmt: skip
    parser.add_argument("--exports", nargs="+", default=[], metavar="FOLDER", help="what export.py wrote, measured "
                        "in turn with all others; with weights of their own")  # fmt: skip
    parser.add_argument("--trust_pickle", action="store_true", help="run any code that a torch_export model holds")
    parser.add_argument("--height", type=integer_from(1), default=512, help="of the pictures in pixels")
    parser.add_argument("--width", type=integer_from(1), default=512, help="of the pictures in pixels")
    parser.add_argument("--batch_size", type=integer_from(1), default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--compile", action="store_true", help="measure every side compiled too")
    add_common_arguments(parser, repeats=7)
    parser.set_defaults(run=benchmark_inference)


def benchmark_inference(args: argparse.Namespace) -> Iterator[Table]:
    if args.exports and (args.device != "cpu" or args.dtype != "float32"):
        raise SystemExit("error: --exports goes with --device cpu and --dtype float32")
    try:
        for folder in args.exports:
            load_model(folder, trust_pickle=args.trust_pickle)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: --exports: {error}") from error
    for size in args.model_size:
        for head in args.decode_head:
            config = VanConfig.from_size(size, decode_head=head, num_labels=args.num_labels)
            shape = (args.batch_size, config.num_channels, args.height, args.width)
            title = f"VAN-{size.upper()} + {head}, {args.batch_size} x {args.height} x {args.width}, {args.dtype}"
            yield compare_inference(title, size, config, shape, args)


def side_names(size: str, decode_head: str, others: list[str], compiled: bool) -> list[str]:
    """Return the sides there are for a model: transformers has UperNet alone of the heads, and Segformer to B3.

    Args:
        others: the other models that are asked for, by their names in `OTHER_MODELS`.
    """
    kinds = [kind for kind in KINDS if kind != "transformers" or decode_head == "upernet"]
    missing = {decode_head} if size in SEGFORMER_SIZES else {decode_head, "segformer"}  # its own plain form is there
    kinds += [other for other in dict.fromkeys(others) if other not in missing]
    return kinds + [kind + COMPILED for kind in kinds if compiled]


def side_title(name: str, size: str) -> str:
    """Return what the table calls a side."""
    kind = name.removesuffix(COMPILED)
    if kind not in OTHER_MODELS:
        return name
    return OTHER_MODELS[kind].name.format(size=size.upper()) + name.removeprefix(kind)


def export_title(folder: str) -> str:
    """Return what the table calls an export: its folder's name, runtime and precision."""
    info, _ = read_info(folder, "", folder)
    return f"{Path(folder).name} ({info.format}, {info.precision})"


def build_model(
    kind: str, size: str, weights: VanForSemanticSegmentation, dtype: torch.dtype, device: str
) -> nn.Module:
    """Return a side's model: with the weights of a float32 model, which is left unchanged; another of its size; or an
    export, whose folder is then the side's name, with as many threads as torch has."""
    if kind not in KINDS and kind not in OTHER_MODELS:
        return ExportedSegmentationModel.from_pretrained(kind, num_threads=torch.get_num_threads(), trust_pickle=True)
    if kind in OTHER_MODELS:
        model = OTHER_MODELS[kind].build(size, weights.config.num_labels)
    elif kind == "transformers":
        model = stock_upernet(weights, use_auxiliary_head=False)
    else:
        model = copy.deepcopy(weights)
    if kind == "van_hf fused":
        model = model.fuse()
    return model.to(device=device, dtype=dtype)


def logits_function(name: str, model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what gives a side's logits of pictures (batch, channels, height, width)."""
    # Sizes never change here; left open they would be compiled once more, for any size.
    forward = torch.compile(model, dynamic=False) if name.endswith(COMPILED) else model

    def logits(pixel_values: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), forms_of(name):
            outputs: SemanticSegmenterOutput | LabelMaps = forward(pixel_values)
        return outputs[0]

    return logits


def random_pictures(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Return the same normalized noise each time, of the given (batch, channels, height, width)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device=device, dtype=dtype)


def peak_memory_of_side(
    name: str, size: str, config: VanConfig, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> float:
    """Return the bytes that one call of a side needs above its weights and its input."""
    weights = random_model(config)
    logits = logits_function(name, build_model(name, size, weights, dtype, device))
    del weights
    pixel_values = random_pictures(shape, dtype, device)
    logits(pixel_values[..., :WARM_UP_SIZE, :WARM_UP_SIZE])  # libraries set themselves up in the first call
    return peak_memory_of(lambda: logits(pixel_values), device)


def compare_logits(
    logits: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype
) -> dict[str, float]:
    """Return the largest difference to the plain model's float32 logits, and to its float64 ones, which is rounding.

    Of half precision it is the agreement. transformers' logits have the size of the input, so that they are compared
    with the others brought to it.

    Args:
        logits: (batch, num_labels, height, width).
        plain: float32 (batch, num_labels, height / stride, width / stride).
        exact: the same in float64.
    """
    if logits.shape != plain.shape:
        plain, exact = (
            F.interpolate(other, size=logits.shape[-2:], mode="bilinear", align_corners=False)
            for other in (plain, exact)
        )
    if dtype != torch.float32:
        return {"agreement": (logits.argmax(dim=1) == plain.argmax(dim=1)).double().mean().item()}
    return {
        "largest difference": (logits - plain).abs().max().item(),
        "rounding error": (logits - exact).abs().max().item(),
    }


def compare_inference(
    title: str, size: str, config: VanConfig, shape: tuple[int, ...], args: argparse.Namespace
) -> Table:
    """Measure all sides of one model, and what a matrix product of the same device and type takes.

    Args:
        size: the model's, "b0" to "b6".
        config: the model's.
        shape: (batch, channels, height, width) of the pictures.
    """
    dtype, device = DTYPES[args.dtype], args.device
    names = side_names(size, config.decode_head, args.compare, args.compile) + args.exports
    weights = random_model(config)
    pixel_values = random_pictures(shape, dtype, device)
    plain = build_model("plain", size, weights, torch.float32, device)
    reference = logits_function("plain", plain)(pixel_values.float())
    exact = logits_function("plain", plain.double())(pixel_values.double())
    kinds = dict.fromkeys(name.removesuffix(COMPILED) for name in names)
    models = {kind: build_model(kind, size, weights, dtype, device) for kind in kinds}
    del plain, weights
    sides = {name: logits_function(name, models[name.removesuffix(COMPILED)]) for name in names}

    if args.compile:
        torch.compiler.reset()  # the models measured before count towards the limit of recompilations
    compared = {
        name: compare_logits(logits(pixel_values), reference, exact, dtype)
        for name, logits in sides.items()
        if name.removesuffix(COMPILED) in KINDS
    }
    calls = {name: lambda logits=logits: logits(pixel_values) for name, logits in sides.items()}
    calls["matrix product"], products = matrix_product(device, dtype)
    seconds = take_turns(calls, args.repeats, device, desc=title)
    del calls, sides, models
    # Not of compiled sides, which would have to be compiled once more.
    peaks = {
        kind: in_new_process(peak_memory_of_side, kind, size, config, shape, dtype, device) / MEGABYTE
        for kind in kinds
    }

    baselines = [kind for kind in kinds if kind in BASELINES or kind in OTHER_MODELS]
    rows = [
        {
            "side": export_title(name) if name in args.exports else side_title(name, size),
            "seconds": seconds[name],
            **{f"over {side_title(kind, size)}": seconds[kind] / seconds[name] for kind in baselines},
            **compared.get(name, {}),
            "peak memory": peaks.get(name),
        }
        for name in names
    ]
    notes = [
        "Speedups are over the named sides, not compiled; differences are to plain in float32, rounding errors to",
        f"plain in float64. The logits go up to {reference.abs().max():.1f}. Other models have weights of their own.",
    ]
    if config.decode_head != "upernet":
        notes.append(f"transformers has no {DECODE_HEADS[config.decode_head].name} head to compare with.")
    rate = products / seconds["matrix product"]
    notes += floor_notes(config, shape, rate)
    return Table(title, rows, notes)


def floor_notes(config: VanConfig, shape: tuple[int, ...], rate: float) -> list[str]:
    """Return what the multiply-adds would take at a matrix product's rate, as sentences.

    Args:
        rate: multiply-adds per second.
    """
    counted = complexity(config, *shape[-2:])["total"]
    notes = [f"A big matrix product runs at {rate / 1e9:.1f} G multiply-adds per second. At that rate"]
    for title, key in {"plain": "multiply_adds", "van_hf (without Winograd's algorithm)": "rewritten"}.items():
        multiply_adds = shape[0] * counted[key]
        notes.append(f"  the {multiply_adds / 1e9:.1f} G of {title} take {multiply_adds / rate:.3f} s")
    return notes
