# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The models that are measured: van_hf's, the plain form of it, transformers' own UperNet with the same weights; and
other models that a user might pick instead."""

import argparse
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from van_hf import VanConfig, VanForSemanticSegmentation
from van_hf.model.configuration_van import DECODE_HEADS, VAN_SIZES
from van_hf.model.convolutions import use_forms
from van_hf.model.modeling_van import VanLayerScaling

from .measuring import integer_from

LARGEST_LOGIT = 20.0
CALIBRATION_SIZE = 128
# As in the configurations of nvidia/segformer-b0-finetuned-ade-512-512 to b3.
SEGFORMER_SIZES = {
    # size: (hidden_sizes, depths, decoder_hidden_size)
    "b0": ([32, 64, 160, 256], [2, 2, 2, 2], 256),
    "b1": ([64, 128, 320, 512], [2, 2, 2, 2], 256),
    "b2": ([64, 128, 320, 512], [3, 4, 6, 3], 768),
    "b3": ([64, 128, 320, 512], [3, 4, 18, 3], 768),
}
# As in the configuration of openmmlab/upernet-convnext-tiny.
CONVNEXT_TINY = {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name the models: each size with each head is measured."""
    parser.add_argument("--model_size", nargs="+", choices=list(VAN_SIZES), default=["b0"], metavar="SIZE",
                        help=f"one or more of {', '.join(VAN_SIZES)} (b0)")  # fmt: skip
    parser.add_argument("--decode_head", nargs="+", choices=DECODE_HEADS, default=["upernet"], metavar="HEAD",
                        help=f"one or more of {', '.join(DECODE_HEADS)} (upernet)")  # fmt: skip
    parser.add_argument("--num_labels", type=integer_from(2, 255), default=150)


@torch.no_grad()
def random_model(config: VanConfig, seed: int = 0) -> VanForSemanticSegmentation:
    """Return a float32 model, in evaluation mode, in whose logits every weight shows.

    New models hide their blocks behind layer scales of 0.01 and have statistics of 0 and 1. Here layer scales, affine
    parameters and biases are random, the statistics are those of random pictures, moved a little, and the largest
    logit is about 20.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VanForSemanticSegmentation(config).train()
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for module in model.modules():
            if isinstance(module, VanLayerScaling):
                module.weight.uniform_(0.1, 0.3)
            elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
                module.weight.uniform_(0.5, 1.5)
            if isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.normal_(std=0.1)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        pictures = torch.randn(2, config.num_channels, CALIBRATION_SIZE, CALIBRATION_SIZE)
        outputs = model(pictures, output_hidden_states=True)
        if model.auxiliary_head is not None:
            model.auxiliary_head(outputs.hidden_states)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.running_mean.add_(torch.randn_like(norm.running_mean) * norm.running_var.sqrt(), alpha=0.1)
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.25))
        model.eval()
        # If one class won everywhere, half precision would agree whatever it did.
        logits = model(pictures).logits
        means = logits.mean(dim=(0, 2, 3))
        factor = LARGEST_LOGIT / (logits - means[:, None, None]).abs().max()
        model.decode_head.classifier.bias.sub_(means).mul_(factor)
        model.decode_head.classifier.weight.mul_(factor)
    return model


def stock_name(name: str) -> str:
    """Return what transformers' `UperNetForSemanticSegmentation` calls a weight of ours."""
    if name.startswith("van."):
        return "backbone." + name.removeprefix("van.")
    return name.replace(".bn.", ".batch_norm.")


def stock_upernet(model: VanForSemanticSegmentation, use_auxiliary_head: bool) -> UperNetForSemanticSegmentation:
    """Return transformers' own UperNet over a `VanBackbone`, with the weights of ours, in the same mode.

    Its logits come out at the size of the input, and it has no dropout.
    """
    config = model.config
    backbone = copy.deepcopy(config)
    backbone.out_features = list(backbone.stage_names)
    stock = UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=backbone,
            hidden_size=config.decoder_hidden_size or 512,
            pool_scales=list(config.pool_scales),
            use_auxiliary_head=use_auxiliary_head and model.auxiliary_head is not None,
            auxiliary_loss_weight=config.auxiliary_loss_weight,
            auxiliary_channels=config.auxiliary_hidden_size,
            loss_ignore_index=config.semantic_loss_ignore_index,
            num_labels=config.num_labels,
        )
    )
    weights = {stock_name(name): weight for name, weight in model.state_dict().items()}
    if not stock.config.use_auxiliary_head:
        weights = {name: weight for name, weight in weights.items() if not name.startswith("auxiliary_head.")}
    stock.load_state_dict(weights)
    return stock.train(model.training)


def segformer(size: str, num_labels: int = 150) -> SegformerForSemanticSegmentation:
    """Return transformers' Segformer of a published size, with random weights, in evaluation mode."""
    hidden_sizes, depths, decoder_hidden_size = SEGFORMER_SIZES[size]
    config = SegformerConfig(
        hidden_sizes=hidden_sizes, depths=depths, decoder_hidden_size=decoder_hidden_size, num_labels=num_labels
    )
    return SegformerForSemanticSegmentation(config).eval()


def upernet_convnext_tiny(num_labels: int = 150) -> UperNetForSemanticSegmentation:
    """Return transformers' UperNet with ConvNeXt-T, with random weights, in evaluation mode."""
    backbone = ConvNextConfig(**CONVNEXT_TINY, out_features=["stage1", "stage2", "stage3", "stage4"])
    auxiliary_in_channels = backbone.hidden_sizes[2]
    config = UperNetConfig(
        backbone_config=backbone, auxiliary_in_channels=auxiliary_in_channels, num_labels=num_labels
    )
    return UperNetForSemanticSegmentation(config).eval()


class OtherModel(NamedTuple):
    """Another model to measure beside one of van_hf: its name, in which `{size}` is "B0" to "B6", and what builds it.

    `build` takes the size, "b0" to "b6", and the number of labels.
    """

    name: str
    build: Callable[[str, int], nn.Module]


# By the names that the command line has for them. UperNet over VAN is measured in its plain form: see [`forms_of`].
OTHER_MODELS = {
    "segformer": OtherModel("Segformer-{size}", segformer),
    "upernet": OtherModel(
        "plain UperNet-{size}",
        lambda size, num_labels: random_model(VanConfig.from_size(size, "upernet", num_labels=num_labels)),
    ),
    "upernet_convnext_tiny": OtherModel(
        "UperNet + ConvNeXt-T", lambda size, num_labels: upernet_convnext_tiny(num_labels)
    ),
}


def forms_of(kind: str) -> AbstractContextManager:
    """Return the context that a side runs in: all but van_hf's own have the plain forms of all operations.

    That holds for transformers' UperNet too, whose `VanBackbone` would else be faster than without van_hf.
    """
    return use_forms("measured" if kind.startswith("van_hf") else "plain")
