# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Training: a step beside the plain form of the same model and transformers' UperNet; and the loss alone."""

import argparse
import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import nn
from tqdm.auto import tqdm

from van_hf import VanConfig, VanForSemanticSegmentation
from van_hf.losses import SegmentationLoss, segmentation_loss_reference
from van_hf.model.configuration_van import DECODE_HEADS
from van_hf.model.decode_heads import Hamburger
from van_hf.model.upsampled_scores import upsampled_cross_entropy_reference
from van_hf.training import enable_gradient_checkpointing

from .measuring import (
    DTYPES,
    IGNORE_INDEX,
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
from .models import add_model_arguments, forms_of, random_model, stock_name, stock_upernet

BASELINES = ("plain", "transformers")
CHECKPOINTED = "van_hf checkpointed"
SIDES = ("plain", "van_hf")
WARM_UP_SIZE = 64
COMPARED_SIZE = 128  # float64 is slow
# A batch normalization takes away what is added before it, so that this gradient is nothing but rounding.
WITHOUT_GRADIENT = "embeddings.convolution.bias"


def add_commands(commands) -> None:
    help = "a training step beside the plain form of the same model and transformers' UperNet"
    parser = commands.add_parser("training", help=help, description=help)
    add_model_arguments(parser)
    parser.add_argument("--batch_size", type=integer_from(2), default=2)
    parser.add_argument("--crop_size", type=integer_from(32), default=256, help="side of the pictures in pixels")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of autocast")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="measure van_hf with it too")
    add_common_arguments(parser, repeats=5)
    parser.set_defaults(run=benchmark_training)

    help = "the loss of logits that are smaller than the labels, forward and backward"
    parser = commands.add_parser("loss", help=help, description=f"{help}; of several values of an argument, all "
                                 "combinations")  # fmt: skip
    parser.add_argument("--loss", type=loss_argument, default=[SegmentationLoss()], nargs="+",
                        help="cross_entropy, focal, ohem, dice, or two as in ohem+dice (cross_entropy)")  # fmt: skip
    parser.add_argument("--batch_size", type=integer_from(1), default=[2], nargs="+")
    parser.add_argument("--num_labels", type=integer_from(2, IGNORE_INDEX), default=[150], nargs="+")
    parser.add_argument("--size", type=size_argument, default=[(512, 512)], nargs="+", metavar="HEIGHTxWIDTH",
                        help="of the labels in pixels (512x512)")  # fmt: skip
    parser.add_argument("--stride", type=integer_from(1), default=[4], nargs="+",
                        help="pixels of the labels to one of the logits (4)")  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the logits")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True,
                        help="measure memory too, which takes two processes for each size and loss")  # fmt: skip
    add_common_arguments(parser, repeats=7)
    parser.set_defaults(run=benchmark_loss)


def loss_argument(text: str) -> SegmentationLoss:
    """Return the loss of a name, for argparse."""
    try:
        return SegmentationLoss.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def random_labels(shape: tuple[int, ...], num_labels: int, device: str) -> torch.Tensor:
    """Return int64 labels (batch, height, width), a tenth of them ignored."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(num_labels, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.1] = IGNORE_INDEX
    return labels.to(device)


def benchmark_training(args: argparse.Namespace) -> Iterator[Table]:
    for size in args.model_size:
        for head in args.decode_head:
            # What is dropped at random would differ from side to side, and transformers' head has no dropout.
            config = VanConfig.from_size(
                size, decode_head=head, num_labels=args.num_labels, drop_path_rate=0.0, classifier_dropout_prob=0.0
            )
            title = (
                f"Training VAN-{size.upper()} + {head}, {args.batch_size} x {args.crop_size} x {args.crop_size}, "
                f"{args.dtype}: forward, loss and backward"
            )
            yield compare_training(title, config, args.batch_size, args.crop_size, args)


def build_model(kind: str, weights: VanForSemanticSegmentation, device: str) -> nn.Module:
    """Return a side's model in training mode with the weights of another, which is left unchanged."""
    model = stock_upernet(weights, use_auxiliary_head=True) if kind == "transformers" else copy.deepcopy(weights)
    if kind == CHECKPOINTED:
        enable_gradient_checkpointing(model)
    return model.to(device).train()


def with_fixed_bases(model: nn.Module) -> nn.Module:
    """Return a model in training mode without the bases that a Hamburger draws, other ones on each side."""
    for module in model.modules():
        if isinstance(module, Hamburger):
            module.eval()
    return model


def random_batch(config: VanConfig, batch_size: int, crop_size: int, device: str) -> dict[str, torch.Tensor]:
    """Return the same noise each time: `pixel_values` (batch, channels, crop, crop), `labels` (batch, crop, crop)."""
    shape = (batch_size, config.num_channels, crop_size, crop_size)
    pixel_values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
    labels = random_labels((batch_size, crop_size, crop_size), config.num_labels, device)
    return {"pixel_values": pixel_values, "labels": labels}


def training_step(kind: str, model: nn.Module, batch: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Forward, loss and backward; the gradients of the step before go first."""
    model.zero_grad(set_to_none=True)
    device = batch["labels"].device.type
    with forms_of(kind):
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            loss = model(**batch).loss
        loss.backward()


def peak_memory_of_step(
    kind: str, config: VanConfig, batch_size: int, crop_size: int, dtype: torch.dtype, device: str
) -> float:
    """Return the bytes that a step needs above the weights and the batch; the gradients are among them."""
    weights = random_model(config)
    model = build_model(kind, weights, device)
    del weights
    batch = random_batch(config, batch_size, crop_size, device)
    # Libraries set themselves up in the first call.
    training_step(kind, model, random_batch(config, batch_size, min(crop_size, WARM_UP_SIZE), device), dtype)
    model.zero_grad(set_to_none=True)
    return peak_memory_of(lambda: training_step(kind, model, batch, dtype), device)


def largest_relative_difference(
    gradients: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]
) -> tuple[float, str]:
    """Return the largest difference of any tensor, as a share of its largest gradient, and that tensor's name."""
    differences = {
        name: ((gradients[name] - expected).abs().max() / expected.abs().max()).item()
        for name, expected in reference.items()
    }
    worst = max(differences, key=differences.get)
    return differences[worst], worst


def gradients_of(kind: str, model: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    """Return the gradients by our names."""
    parameters = dict(model.named_parameters())
    return {name: parameters[stock_name(name) if kind == "transformers" else name].grad.clone() for name in names}


def compare_gradients(
    kinds: list[str], weights: VanForSemanticSegmentation, batch: dict[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, dict]:
    """Return for each side how far its gradients are from those of the plain form in float64.

    Rounding alone sends a score on the edge of a ReLU to its other side, and its gradient comes or goes. So the same
    is asked of the sides in float64, too.
    """
    device = str(batch["labels"].device)
    names = [name for name, _ in weights.named_parameters() if not name.endswith(WITHOUT_GRADIENT)]
    exact_batch = {**batch, "pixel_values": batch["pixel_values"].double()}
    reference: dict[str, torch.Tensor] = {}
    compared = {}
    for kind in tqdm(kinds, desc="Comparing gradients", unit="side", leave=False):
        model = with_fixed_bases(build_model(kind, weights, device)).double()
        training_step(kind, model, exact_batch, torch.float32)
        exact = gradients_of(kind, model, names)
        reference = reference or exact  # plain is the first
        model = with_fixed_bases(build_model(kind, weights, device))
        training_step(kind, model, batch, dtype)
        difference, name = largest_relative_difference(gradients_of(kind, model, names), reference)
        compared[kind] = {
            "largest relative difference": difference,
            "of the gradients of": name,
            "difference in float64": largest_relative_difference(exact, reference)[0],
        }
    return compared


def compare_training(
    title: str, config: VanConfig, batch_size: int, crop_size: int, args: argparse.Namespace
) -> Table:
    """Measure a step of all sides of one model."""
    dtype, device = DTYPES[args.dtype], args.device
    kinds = ["plain", *(["transformers"] if config.decode_head == "upernet" else []), "van_hf"]
    kinds += [CHECKPOINTED] if args.gradient_checkpointing else []
    weights = random_model(config)
    small_batch = random_batch(config, batch_size, min(crop_size, COMPARED_SIZE), device)
    compared = compare_gradients(kinds, weights, small_batch, dtype)
    batch = random_batch(config, batch_size, crop_size, device)
    models = {kind: build_model(kind, weights, device) for kind in kinds}
    steps = {
        kind: lambda kind=kind, model=model: training_step(kind, model, batch, dtype) for kind, model in models.items()
    }
    seconds = take_turns(steps, args.repeats, device, desc=title)
    del steps, models
    peaks = {
        kind: in_new_process(peak_memory_of_step, kind, config, batch_size, crop_size, dtype, device) / MEGABYTE
        for kind in kinds
    }
    fastest = min(seconds[kind] for kind in kinds if kind in BASELINES)
    smallest = min(peaks[kind] for kind in kinds if kind in BASELINES)
    rows = [
        {
            "side": kind,
            "seconds": seconds[kind],
            "speedup": fastest / seconds[kind],
            "peak memory": peaks[kind],
            "share of peak": share(peaks[kind], smallest),
            **compared[kind],
        }
        for kind in kinds
    ]
    notes = [
        "Speedups and shares are against the faster and the smaller of plain and transformers.",
        f"Gradients are against plain in float64, of crops of {small_batch['labels'].shape[-1]} pixels: plain's own",
        "difference is rounding, which moves scores to the other side of a ReLU. In float64 all sides should agree.",
    ]
    if config.decode_head != "upernet":
        notes.append(f"transformers has no {DECODE_HEADS[config.decode_head].name} head to compare with.")
    return Table(title, rows, notes)


def loss_step(
    kind: str, function: SegmentationLoss, logits: torch.Tensor, labels: torch.Tensor
) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Return what gives the loss and its gradients by the logits, in plain form or ours."""
    if kind == "plain" and function == SegmentationLoss():
        function = upsampled_cross_entropy_reference
    elif kind == "plain":
        function = partial(segmentation_loss_reference, function)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        leaf = logits.detach().requires_grad_()
        loss = function(leaf, labels, IGNORE_INDEX)
        loss.backward()
        return loss.detach(), leaf.grad

    return step


class LossSizes(NamedTuple):
    """What the loss is measured of: logits (batch, num_labels, height / stride, width / stride), rounded up, and
    labels (batch, height, width)."""

    batch: int
    num_labels: int
    height: int
    width: int
    stride: int

    def inputs(self, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return random logits and labels."""
        shape = (self.batch, self.num_labels, -(-self.height // self.stride), -(-self.width // self.stride))
        logits = 5 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
        labels = random_labels((self.batch, self.height, self.width), self.num_labels, device)
        return logits.to(device=device, dtype=dtype), labels


# Large enough for the loss to be worked out in blocks.
WARM_UP_SIZES = LossSizes(batch=2, num_labels=2, height=256, width=256, stride=4)


def peak_memory_of_loss(
    kind: str, function: SegmentationLoss, sizes: LossSizes, dtype: torch.dtype, device: str
) -> float:
    """Return the bytes that the loss and its gradients need above logits and labels."""
    logits, labels = sizes.inputs(dtype, device)
    loss_step(kind, function, *WARM_UP_SIZES.inputs(dtype, device))()
    return peak_memory_of(loss_step(kind, function, logits, labels), device)


def benchmark_loss(args: argparse.Namespace) -> Iterator[Table]:
    dtype = DTYPES[args.dtype]
    combinations = [
        LossSizes(batch, num_labels, *labels_size, stride)
        for num_labels, labels_size, stride, batch in product(args.num_labels, args.size, args.stride, args.batch_size)
    ]
    rows = []
    for sizes in tqdm(combinations, desc="Loss", unit="size", leave=False):
        rows += compare_loss(sizes, dtype, args)
    notes = ["Differences are to plain in float32: of the loss, and relative to the largest gradient."]
    yield Table(f"Loss, forward and backward, {args.dtype}", rows, notes)


def compare_loss(sizes: LossSizes, dtype: torch.dtype, args: argparse.Namespace) -> list[dict]:
    """Measure the sides of all losses, which take turns; return a row for each."""
    device = args.device
    sides = list(product(args.loss, SIDES))
    logits, labels = sizes.inputs(dtype, device)
    steps = {(loss, kind): loss_step(kind, loss, logits, labels) for loss, kind in sides}
    seconds = take_turns(steps, args.repeats, device, desc=f"{sizes.num_labels} labels")
    peaks = dict.fromkeys(sides, math.nan)
    if args.memory:
        peaks = {
            (loss, kind): in_new_process(peak_memory_of_loss, kind, loss, sizes, dtype, device) / MEGABYTE
            for loss, kind in sides
        }
    rows = []
    for (function, kind), step in steps.items():
        reference_loss, reference = loss_step("plain", function, logits.float(), labels)()
        loss, gradients = step()
        difference, _ = largest_relative_difference({"logits": gradients}, {"logits": reference})
        rows.append({
            "loss": str(function),
            "side": kind,
            "labels": sizes.num_labels,
            "logits": f"{sizes.batch} x {logits.shape[2]} x {logits.shape[3]}",
            "size": f"{sizes.height} x {sizes.width}",
            "seconds": seconds[function, kind],
            "speedup": seconds[function, "plain"] / seconds[function, kind],
            "peak memory": peaks[function, kind],
            "share of peak": share(peaks[function, kind], peaks[function, "plain"]),
            "largest difference": abs(loss.item() - reference_loss.item()),
            "largest relative difference": difference,
        })  # fmt: skip
    return rows
