# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Decode heads: feature maps of a pyramid in, class scores at the first map's size out.

The heads know nothing of the backbone. Their layers are made as torch's own are, for tools that make more of the same
class (peft's adapters). Each head takes the list of the backbone's maps, finest first, and the list of their
channels; of the configuration they read the fields of the heads alone. They are the heads that the authors' models use
of mmsegmentation 0.26, with its parameter names but for `classifier`, there `conv_seg`.
"""

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from .configuration_van import VanConfig
from .convolutions import channels_first, conv2d, conv2d_over_upsampled
from .custom_operators import is_exporting
from .interpolation import resize_to
from .normalization import normalize


class Conv(nn.Conv2d):
    """A convolution that keeps the size, of a map or of several that are brought to the first one's size and
    concatenated."""

    def forward(self, features: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        if isinstance(features, torch.Tensor):
            return conv2d(features, self.weight, self.bias)
        return conv2d_over_upsampled(features, self.weight, self.bias)


class ConvModule(nn.Module):
    """A convolution without bias that keeps the size, batch normalization and ReLU: mmcv's `ConvModule`.

    With gradient checkpointing all but the output of a larger convolution than 1x1, which takes the most time, is
    computed anew in the backward pass.
    """

    gradient_checkpointing = False  # transformers sets it, and `_gradient_checkpointing_func` with it

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.is_pointwise = kernel_size == 1
        self.conv = Conv(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        # The name matters: the recipes exempt what is called `norm` from weight decay, and these are decayed.
        self.bn = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        # Another package's layer in its place, as an adapter's, takes one map.
        if isinstance(features, list) and not isinstance(self.conv, Conv):
            features = torch.cat([resize_to(maps, features[0].shape[-2:]) for maps in features], dim=1)
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return self._normalized(self.conv(features))
        if isinstance(features, torch.Tensor) and self.is_pointwise:
            return self._gradient_checkpointing_func(lambda maps: self._normalized(self.conv(maps)), features)
        return self._gradient_checkpointing_func(self._normalized, self.conv(features))

    def _normalized(self, convolved: torch.Tensor) -> torch.Tensor:
        return self.activation(normalize(self.bn, convolved))

    def fuse(self):
        """Fold the normalization into the convolution, for inference; a second call does nothing."""
        if not isinstance(self.bn, nn.Identity):
            self.conv = fuse_conv_bn_eval(self.conv, self.bn)
            self.bn = nn.Identity()


class PyramidConv(Conv):
    """A convolution of Semantic FPN's pyramid: a class of its own for its Xavier initialization."""


class Classifier(nn.Conv2d):
    """A 1x1 convolution to class scores: a class of its own for its small initial weights."""


class PyramidPool(nn.AdaptiveAvgPool2d):
    """The means of a map over a grid of `output_size` x `output_size` parts, which may overlap."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not is_exporting():
            return super().forward(features)
        # The ONNX form of torch's own has the parts of the example's size, whatever the input's is.
        if self.output_size == 1:
            return features.mean(dim=(2, 3), keepdim=True)
        rows, columns = (_part_means(side, self.output_size, features) for side in features.shape[2:])
        return ((features @ columns.T).transpose(2, 3) @ rows.T).transpose(2, 3)


def _part_means(length: int, num_parts: int, like: torch.Tensor) -> torch.Tensor:
    """A matrix (num_parts, length) that takes the mean of each part of a line."""
    part, place = torch.arange(num_parts, device=like.device)[:, None], torch.arange(length, device=like.device)
    start, stop = part * length // num_parts, ((part + 1) * length + num_parts - 1) // num_parts
    return ((start <= place) & (place < stop)).to(like.dtype) / (stop - start)


class UperNetHead(nn.Module):
    """Pyramid pooling on the last map, a feature pyramid over all, and their fusion at the first map's size.

    Section 3.1 of https://arxiv.org/abs/1807.10221, in the form of mmsegmentation's `UPerHead`.
    """

    def __init__(self, config: VanConfig, in_channels: list[int]):
        super().__init__()
        channels = config.decoder_hidden_size or 512
        last_channels = in_channels[-1]
        self.psp_modules = nn.ModuleList(
            nn.Sequential(PyramidPool(scale), ConvModule(last_channels, channels, kernel_size=1))
            for scale in config.pool_scales
        )
        self.bottleneck = ConvModule(last_channels + len(config.pool_scales) * channels, channels, kernel_size=3)
        self.lateral_convs = nn.ModuleList(ConvModule(width, channels, kernel_size=1) for width in in_channels[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, kernel_size=3) for _ in in_channels[:-1])
        self.fpn_bottleneck = ConvModule(len(in_channels) * channels, channels, kernel_size=3)
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = Classifier(channels, config.num_labels, kernel_size=1)

    def pool_pyramid(self, features: torch.Tensor) -> torch.Tensor:
        """Return the last map with its surroundings at several scales, (batch, channels, height / 32, width / 32)."""
        return self.bottleneck([features, *(module(features) for module in self.psp_modules)])

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """
        Args:
            features: maps of shape (batch, in_channels[i], height / 4 / 2**i, width / 4 / 2**i), of any sizes.

        Returns:
            Scores of shape (batch, num_labels, height / 4, width / 4).
        """
        features = [channels_first(maps) for maps in features]
        laterals = [conv(maps) for conv, maps in zip(self.lateral_convs, features[:-1], strict=True)]
        laterals.append(self.pool_pyramid(features[-1]))  # (batch, channels, height / 32, width / 32)
        for idx in range(len(laterals) - 1, 0, -1):
            laterals[idx - 1] = laterals[idx - 1] + resize_to(laterals[idx], laterals[idx - 1].shape[-2:])
        pyramid = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals[:-1], strict=True)]
        pyramid.append(laterals[-1])
        del laterals  # the largest maps there are; the next lines need room
        fused = self.fpn_bottleneck(pyramid)  # (batch, channels, height / 4, width / 4)
        return self.classifier(self.dropout(fused))


class SemanticFpnHead(nn.Module):
    """A feature pyramid; its maps, brought to the first one's size by convolutions and doublings, are summed.

    Section 3 of https://arxiv.org/abs/1901.02446, in the form of mmsegmentation's `FPN` neck and `FPNHead`: the
    pyramid's top-down path is interpolated with nearest neighbours, the head's branches bilinearly.
    """

    def __init__(self, config: VanConfig, in_channels: list[int]):
        super().__init__()
        channels = config.decoder_hidden_size or 128
        pyramid_channels = config.fpn_hidden_size
        self.lateral_convs = nn.ModuleList(
            PyramidConv(width, pyramid_channels, kernel_size=1) for width in in_channels
        )
        self.fpn_convs = nn.ModuleList(
            PyramidConv(pyramid_channels, pyramid_channels, kernel_size=3, padding=1) for _ in in_channels
        )
        self.scale_heads = nn.ModuleList()
        for num_doublings in range(len(in_channels)):
            layers: list[nn.Module] = []
            for idx in range(max(1, num_doublings)):
                layers.append(ConvModule(pyramid_channels if idx == 0 else channels, channels, kernel_size=3))
                if num_doublings > 0:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.scale_heads.append(nn.Sequential(*layers))
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = Classifier(channels, config.num_labels, kernel_size=1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """
        Args:
            features: maps of shape (batch, in_channels[i], height / 4 / 2**i, width / 4 / 2**i), of any sizes.

        Returns:
            Scores of shape (batch, num_labels, height / 4, width / 4).
        """
        features = [channels_first(maps) for maps in features]
        laterals = [conv(maps) for conv, maps in zip(self.lateral_convs, features, strict=True)]
        for idx in range(len(laterals) - 1, 0, -1):
            size = laterals[idx - 1].shape[-2:]
            laterals[idx - 1] = laterals[idx - 1] + resize_to(laterals[idx], size, mode="nearest")
        branches = [
            head(conv(lateral)) for head, conv, lateral in zip(self.scale_heads, self.fpn_convs, laterals, strict=True)
        ]
        fused = branches[0]  # (batch, channels, height / 4, width / 4)
        for branch in branches[1:]:
            fused = fused + resize_to(branch, fused.shape[-2:])
        return self.classifier(self.dropout(fused))


class FcnHead(nn.Module):
    """A convolution and a classifier on the last map but one: UperNet's auxiliary head, mmsegmentation's `FCNHead`."""

    def __init__(self, config: VanConfig, in_channels: list[int]):
        super().__init__()
        channels = config.auxiliary_hidden_size
        self.convs = nn.Sequential(ConvModule(in_channels[-2], channels, kernel_size=3))
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = Classifier(channels, config.num_labels, kernel_size=1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """
        Args:
            features: maps of shape (batch, in_channels[i], height / 4 / 2**i, width / 4 / 2**i).

        Returns:
            Scores at the last but one map's size, (batch, num_labels, height / 16, width / 16).
        """
        return self.classifier(self.dropout(self.convs(features[-2])))


DECODE_HEADS = {"upernet": UperNetHead, "semantic_fpn": SemanticFpnHead}
