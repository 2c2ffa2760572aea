# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Parameters and multiply-adds of the models, by parts, exactly and without computing anything."""

import argparse
from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from van_hf import VanConfig, VanForImageClassification, VanForSemanticSegmentation
from van_hf.model.configuration_van import DECODE_HEADS, VAN_SIZES
from van_hf.model.convolutions import use_forms

from .measuring import Table, add_json_argument, integer_from

CLASSIFIER = "none"
AUXILIARY_HEAD = "auxiliary head (training only)"


class MultiplyAddCounter(TorchDispatchMode):
    """Count the multiply-adds of convolutions and matrix products while it is entered.

    Attributes:
        by_part: of each part of the model, by the module whose `forward` was at work.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.by_part: Counter[str] = Counter()
        self.at_work = [""]
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self.at_work.append(name))
            module.register_forward_hook(self.leave)

    def leave(self, *_) -> None:
        self.at_work.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        count_flops = flop_registry.get(func._overloadpacket)
        if count_flops is not None:
            self.by_part[part_of(self.at_work[-1])] += count_flops(*args, **(kwargs or {}), out_val=outputs) // 2
        return outputs


def part_of(name: str) -> str:
    """Return the row of the table that a module or a parameter belongs to."""
    names = name.removeprefix("van.encoder.").split(".")
    if names[0] == "stages" and len(names) > 2:
        kind = {"embeddings": "patch embedding", "layers": "blocks", "normalization": "LayerNorm"}[names[2]]
        return f"stage {int(names[1]) + 1}, {kind}"
    if names[0] == "decode_head" and len(names) > 1:
        return f"decode head, {names[1]}"
    return {"auxiliary_head": AUXILIARY_HEAD}.get(names[0], names[0] or "model")


def count_multiply_adds(model: nn.Module, pixel_values: torch.Tensor, forms: str) -> Counter[str]:
    """Return the multiply-adds of each part of a model, for some pictures, in the given forms of the operations."""
    with torch.no_grad(), use_forms(forms), MultiplyAddCounter(model) as counter:
        outputs = model(pixel_values, output_hidden_states=True)
        if getattr(model, "auxiliary_head", None) is not None:
            model.auxiliary_head(outputs.hidden_states)
    return counter.by_part


def complexity(config: VanConfig, height: int, width: int, classifier: bool = False, rewritten: bool = True) -> dict:
    """
    Counts a model's parameters, and the multiply-adds of one picture at inference.

    Those of convolutions, linear layers and products of matrices, which Light-Ham and HamNet have, count as they are
    defined, biases left out. Normalization, activations, elementwise products, pooling and interpolation do not. The
    auxiliary head's are counted, but it works in training only, so that they are not in the total.

    Args:
        config: the architecture.
        height: of the picture in pixels.
        width: of the picture in pixels.
        classifier: whether it is the classifier's, and not the segmentation model's.
        rewritten: whether to count the rewritten forms too, which takes as long again.

    Returns:
        `parts`: for each part of the model, in its order, `parameters`, `multiply_adds`, and `rewritten`: the
        multiply-adds of the forms with fewer of them, in which van_hf runs where they pay (Winograd's algorithm left
        out), if asked for. `total`: the sums.
    """
    model_class = VanForImageClassification if classifier else VanForSemanticSegmentation
    with torch.device("meta"):  # only shapes go through the model: it has no values
        model = model_class(config).eval().to("meta")
        pixel_values = torch.empty(1, config.num_channels, height, width)
    forms = {"multiply_adds": "plain", "rewritten": "fast"} if rewritten else {"multiply_adds": "plain"}
    counted = {name: count_multiply_adds(model, pixel_values, form) for name, form in forms.items()}
    parts: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parts.setdefault(part, {"parameters": 0, **{name: count[part] for name, count in counted.items()}})
        parts[part]["parameters"] += parameter.numel()
    total = {name: sum(part[name] for part in parts.values()) for name in ("parameters", *counted)}
    for name in counted:
        total[name] -= parts.get(AUXILIARY_HEAD, {name: 0})[name]
    return {"parts": parts, "total": total}


def add_command(commands) -> None:
    help = "parameters and multiply-adds by parts; computes nothing"
    parser = commands.add_parser("complexity", help=help, description=help)
    parser.add_argument("--model_size", nargs="+", choices=list(VAN_SIZES), default=["b0"], metavar="SIZE",
                        help=f"one or more of {', '.join(VAN_SIZES)} (b0)")  # fmt: skip
    heads = (*DECODE_HEADS, CLASSIFIER)
    parser.add_argument("--decode_head", nargs="+", choices=heads, default=["upernet"], metavar="HEAD",
                        help=f"one or more of {', '.join(heads)} (upernet); none is the classifier")  # fmt: skip
    parser.add_argument("--num_labels", type=integer_from(2), help="150 by default, 1000 of classifiers")
    parser.add_argument("--height", type=integer_from(1), default=512, help="of the pictures in pixels")
    parser.add_argument("--width", type=integer_from(1), default=512, help="of the pictures in pixels")
    add_json_argument(parser)
    parser.set_defaults(run=benchmark_complexity)


def benchmark_complexity(args: argparse.Namespace) -> Iterator[Table]:
    for size in args.model_size:
        for head in args.decode_head:
            is_classifier = head == CLASSIFIER
            config = VanConfig.from_size(
                size,
                decode_head="upernet" if is_classifier else head,
                num_labels=args.num_labels or (1000 if is_classifier else 150),
            )
            title = (
                f"VAN-{size.upper()} {'classifier' if is_classifier else '+ ' + head}, {args.height} x {args.width}"
            )
            yield describe(title, complexity(config, args.height, args.width, classifier=is_classifier))


def describe(title: str, counted: dict) -> Table:
    """Return what [`complexity`] has counted as a table."""
    rows = [
        {
            "part": name,
            "parameters (M)": part["parameters"] / 1e6,
            "GMACs": part["multiply_adds"] / 1e9,
            "share": None if name == AUXILIARY_HEAD else part["multiply_adds"] / counted["total"]["multiply_adds"],
            "rewritten GMACs": part["rewritten"] / 1e9,
        }
        for name, part in {**counted["parts"], "total at inference": counted["total"]}.items()
    ]
    notes = [
        "Convolutions, linear layers and products of matrices count. The total's parameters include the auxiliary",
        "head's, its GMACs do not.",
        "Rewritten are van_hf's forms with fewer multiply-adds, in which it runs where they pay; Winograd's algorithm",
        "is not counted.",
    ]
    return Table(title, rows, notes)
