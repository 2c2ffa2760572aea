# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Decode heads: feature maps of a pyramid in, class scores at the size of one of them out.

The heads know nothing of the backbone. Their layers are made as torch's own are, for tools that make more of the same
class (peft's adapters). Each head takes the list of the backbone's maps, finest first, and the list of their
channels; of the configuration they read the fields of the heads alone. They are the heads that the authors' models use
of mmsegmentation 0.26, and the two of their own, with the originals' parameter names but for `classifier`, there
`conv_seg`, and `hamburger`.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval
from transformers.utils.generic import maybe_autocast

from .configuration_van import DECODE_HEADS, GROUP_NORM_GROUPS, VanConfig
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


class ConvLayers(nn.Module):
    """A convolution without bias that keeps the size, a normalization, and ReLU. A subclass adds the normalization,
    under the name that checkpoints have for it.

    With gradient checkpointing all but the output of a larger convolution than 1x1, which takes the most time, is
    computed anew in the backward pass.
    """

    norm_name: str
    gradient_checkpointing = False  # transformers sets it, and `_gradient_checkpointing_func` with it

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.is_pointwise = kernel_size == 1
        self.conv = Conv(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.activation = nn.ReLU(inplace=True)

    @property
    def norm(self) -> nn.Module:
        """The normalization; an `nn.Identity` once it is folded into the convolution."""
        return getattr(self, self.norm_name)

    def forward(self, features: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        maps = [features] if isinstance(features, torch.Tensor) else features
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return self._normalized(self._convolved(*maps))
        # Reentrant checkpoints have no gradients where no input needs one, as above a frozen backbone.
        if self.is_pointwise and any(features.requires_grad for features in maps):
            return self._gradient_checkpointing_func(lambda *maps: self._normalized(self._convolved(*maps)), *maps)
        return self._gradient_checkpointing_func(self._normalized, self._convolved(*maps))

    def _convolved(self, *maps: torch.Tensor) -> torch.Tensor:
        if len(maps) == 1:
            return self.conv(maps[0])
        # Another package's layer in the place of ours, as an adapter's, takes one map.
        if not isinstance(self.conv, Conv):
            return self.conv(torch.cat([resize_to(features, maps[0].shape[-2:]) for features in maps], dim=1))
        return self.conv(list(maps))

    def _normalized(self, convolved: torch.Tensor) -> torch.Tensor:
        return self.activation(normalize(self.norm, convolved))


class ConvModule(ConvLayers):
    """[`ConvLayers`] with batch normalization: mmcv's `ConvModule`."""

    # The name matters: the recipes exempt what is called `norm` from weight decay, and these, as `gn`, are decayed.
    norm_name = "bn"

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(in_channels, out_channels, kernel_size)
        self.bn = nn.BatchNorm2d(out_channels)

    def fuse(self):
        """Fold the normalization into the convolution, for inference; a second call does nothing."""
        if not isinstance(self.bn, nn.Identity):
            self.conv = fuse_conv_bn_eval(self.conv, self.bn)
            self.bn = nn.Identity()


class GroupNormConvModule(ConvLayers):
    """[`ConvLayers`] with group normalization, which cannot be folded."""

    norm_name = "gn"

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(in_channels, out_channels, kernel_size)
        self.gn = nn.GroupNorm(GROUP_NORM_GROUPS, out_channels)


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


class Hamburger(nn.Module):
    """A map and what is left of it in a low-rank form, its global context: https://arxiv.org/abs/2109.04553.

    Between two 1x1 convolutions ("bread") the map, as a non-negative matrix of channels x pixels, is factorized into
    bases, channels x rank, and coefficients, rank x pixels, by multiplicative updates (Lee & Seung); the product goes
    on. The original draws the bases that the updates begin with at random at every call. So does this in training,
    from torch's random state. In evaluation they are always the buffer `bases`, (channels, rank), drawn from a fixed
    seed and saved with the weights: results can be repeated, and a picture's do not depend on those beside it.

    How much the bases decide: with 10 seeds of them, the mean IoU of a small Light-Ham model, trained on the generated
    scenes, lay between 73.4 and 74.3 percent, and that of a second one between 71.2 and 72.0.
    """

    SEED = 0

    def __init__(self, config: VanConfig):
        super().__init__()
        channels = config.ham_hidden_size
        self.train_steps, self.eval_steps = config.ham_train_steps, config.ham_eval_steps
        self.ham_in = Conv(channels, channels, kernel_size=1)
        self.ham_out = nn.Sequential()
        self.ham_out.add_module("conv", Conv(channels, channels, kernel_size=1, bias=False))
        self.ham_out.add_module("gn", nn.GroupNorm(GROUP_NORM_GROUPS, channels))
        self.register_buffer("bases", self.fixed_bases(channels, config.ham_rank).to(torch.empty(0).device))

    @classmethod
    def fixed_bases(cls, channels: int, rank: int, seed: int = SEED) -> torch.Tensor:
        """Return the bases of a seed, (channels, rank), on the CPU, in torch's default dtype."""
        generator = torch.Generator("cpu").manual_seed(seed)
        bases = torch.rand((channels, rank), generator=generator, device="cpu", dtype=torch.float32)
        return F.normalize(bases, dim=0).to(torch.get_default_dtype())

    def initial_bases(self, batch: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the bases that the updates begin with, (batch, channels, rank)."""
        shape = (batch, *self.bases.shape[-2:])
        if not self.training:
            return self.bases.to(dtype).expand(shape)
        return F.normalize(torch.rand(shape, dtype=dtype, device=self.bases.device), dim=1)

    def factorize(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factors of a non-negative map: coefficients (batch, pixels, rank), bases (batch, channels, rank).

        They are float32 for a map of half precision, in which the denominators' 1e-6 would vanish.
        """
        dtype = torch.promote_types(features.dtype, torch.float32)
        matrix = _pixels(features.to(dtype)).mT  # (batch, pixels, channels)
        bases = self.initial_bases(matrix.shape[0], dtype)
        correlation = matrix @ bases
        coefficients = correlation.softmax(dim=2)
        for _ in range(self.train_steps if self.training else self.eval_steps):
            coefficients = coefficients * correlation / (coefficients @ (bases.mT @ bases) + 1e-6)
            bases = bases * (matrix.mT @ coefficients) / (bases @ (coefficients.mT @ coefficients) + 1e-6)
            correlation = matrix @ bases
        return coefficients * correlation / (coefficients @ (bases.mT @ bases) + 1e-6), bases

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return a map of the shape of `features`, (batch, channels, height, width)."""
        matrix = F.relu(self.ham_in(features), inplace=True)
        with maybe_autocast(features.device.type, enabled=False):
            coefficients, bases = self.factorize(matrix)
        if features.dtype != coefficients.dtype:
            # Only the factors' product is of the map's range; half precision has no room for what each may reach.
            scale = bases.amax(dim=1, keepdim=True).clamp(min=1e-6)
            coefficients, bases = coefficients * scale, bases / scale
        # A 1x1 convolution of the factors' product is the product with the convolution of the bases, which are few.
        bases = self.ham_out.conv(bases.to(features.dtype)[..., None])[..., 0]
        context = _from_pixels(coefficients.to(bases.dtype) @ bases.mT, features)
        return F.relu(features + self.ham_out.gn(context), inplace=True)


def _pixels(features: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) as (batch, channels, pixels), for [`_from_pixels`] to undo."""
    if _only_free_side(features) is None:
        return features.flatten(2)
    # Exporting, torch cannot prove that the sides can be flattened, but can that their rows are concatenated.
    return torch.cat(features.unbind(5 - _only_free_side(features)), dim=2)


def _from_pixels(pixels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """(batch, pixels, channels) as (batch, channels, height, width) of the size of `features`, channels last."""
    is_transposed = _only_free_side(features) == 2
    sides = reversed(features.shape[2:]) if is_transposed else features.shape[2:]
    maps = pixels.view(pixels.shape[0], *sides, pixels.shape[2]).permute(0, 3, 1, 2)
    return maps.mT if is_transposed else maps


def _only_free_side(features: torch.Tensor) -> int | None:
    """The dimension of the side that is free in an export for which the other one is fixed."""
    free = [side for side in (2, 3) if not isinstance(features.shape[side], int)]
    return free[0] if is_exporting() and len(free) == 1 else None


class LightHamHead(nn.Module):
    """All maps but the first, brought to the second one's size, and their global context.

    The head of the authors' Light-Ham models (VAN-Segmentation), and of SegNeXt, https://arxiv.org/abs/2209.08575.
    """

    def __init__(self, config: VanConfig, in_channels: list[int]):
        super().__init__()
        channels = config.decoder_hidden_size or 512
        self.squeeze = GroupNormConvModule(sum(in_channels[1:]), config.ham_hidden_size, kernel_size=1)
        self.hamburger = Hamburger(config)
        self.align = GroupNormConvModule(config.ham_hidden_size, channels, kernel_size=1)
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = Classifier(channels, config.num_labels, kernel_size=1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """
        Args:
            features: maps of shape (batch, in_channels[i], height / 4 / 2**i, width / 4 / 2**i), of any sizes.

        Returns:
            Scores of shape (batch, num_labels, height / 8, width / 8).
        """
        squeezed = self.squeeze(list(features[1:]))  # (batch, ham_hidden_size, height / 8, width / 8)
        return self.classifier(self.dropout(self.align(self.hamburger(squeezed))))


class HamHead(nn.Module):
    """3x3 convolutions around the global context of the last map: HamNet's head.

    Section 3.3 of https://arxiv.org/abs/2109.04553, in the form of VAN-Segmentation, on a backbone that keeps its last
    two maps at the size of the second.
    """

    def __init__(self, config: VanConfig, in_channels: list[int]):
        super().__init__()
        channels, last_channels = config.decoder_hidden_size or 512, in_channels[-1]
        self.squeeze = GroupNormConvModule(last_channels, config.ham_hidden_size, kernel_size=3)
        self.hamburger = Hamburger(config)
        self.align = GroupNormConvModule(config.ham_hidden_size, channels, kernel_size=3)
        self.conv_cat = GroupNormConvModule(last_channels + channels, channels, kernel_size=3)
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = Classifier(channels, config.num_labels, kernel_size=1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """
        Args:
            features: maps, of which the last counts, (batch, in_channels[-1], height / 8, width / 8).

        Returns:
            Scores of shape (batch, num_labels, height / 8, width / 8).
        """
        last = channels_first(features[-1])
        aligned = self.align(self.hamburger(self.squeeze(last)))  # (batch, channels, height / 8, width / 8)
        fused = self.conv_cat(torch.cat([last, aligned], dim=1))
        return self.classifier(self.dropout(fused))


class FcnHead(nn.Module):
    """A convolution and a classifier on the last map but one: the auxiliary head, mmsegmentation's `FCNHead`."""

    def __init__(self, config: VanConfig, in_channels: list[int]):
        super().__init__()
        channels = config.auxiliary_hidden_size
        conv_module = GroupNormConvModule if DECODE_HEADS[config.decode_head].has_hamburger else ConvModule
        self.convs = nn.Sequential(conv_module(in_channels[-2], channels, kernel_size=3))
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = Classifier(channels, config.num_labels, kernel_size=1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """
        Args:
            features: maps, of which the last but one counts, (batch, in_channels[-2], height / 16, width / 16) for
                UperNet.

        Returns:
            Scores at that map's size, (batch, num_labels, height / 16, width / 16).
        """
        return self.classifier(self.dropout(self.convs(features[-2])))


DECODE_HEAD_CLASSES = {
    "upernet": UperNetHead,
    "semantic_fpn": SemanticFpnHead,
    "light_ham": LightHamHead,
    "ham": HamHead,
}
