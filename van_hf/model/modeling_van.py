# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""PyTorch VAN model.

The Visual Attention Network (https://arxiv.org/abs/2202.09741) as backbone, classifier and segmentation model. Module
names are those of transformers 4.57's VAN (its `pre_normomalization` included), so that its checkpoints load as they
are.
"""

import math

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
    SemanticSegmenterOutput,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder

from .configuration_van import DECODE_HEADS, VanConfig
from .convolutions import channels_last, depthwise_conv2d, in_bands
from .custom_operators import is_transformed
from .decode_heads import DECODE_HEAD_CLASSES, Classifier, ConvModule, FcnHead, Hamburger, PyramidConv
from .normalization import normalize
from .upsampled_scores import upsampled_cross_entropy


class VanDropPath(nn.Module):
    """Stochastic depth per sample (https://arxiv.org/abs/1603.09382): identity outside training."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1 - self.drop_prob
        keep = hidden_states.new_empty((hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1))
        return hidden_states * keep.bernoulli_(keep_prob).div_(keep_prob)

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class VanLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (batch, channels, height, width)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class VanOverlappingPatchEmbedder(nn.Module):
    """A strided convolution whose windows overlap: (batch, in_channels, height, width) -> (batch, hidden_size,
    height / stride, width / stride), rounded up."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int, stride: int):
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels, hidden_size, kernel_size=patch_size, stride=stride, padding=patch_size // 2
        )
        self.normalization = nn.BatchNorm2d(hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.normalization(self.convolution(hidden_states))


class VanDepthwiseConv(nn.Conv2d):
    """A depthwise convolution of (batch, hidden_size, height, width), which keeps the size."""

    @classmethod
    def of_size(cls, hidden_size: int, kernel_size: int, dilation: int = 1) -> "VanDepthwiseConv":
        padding = dilation * (kernel_size // 2)
        return cls(hidden_size, hidden_size, kernel_size, padding=padding, dilation=dilation, groups=hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.groups < self.in_channels:  # an adapter's, which makes more of this class
            return super().forward(hidden_states)
        return depthwise_conv2d(hidden_states, self.weight, self.bias, dilation=self.dilation[0])


class VanMlpLayer(nn.Module):
    """The feed-forward layers: 1x1, 3x3 depthwise and 1x1 convolution of (batch, hidden_size, height, width)."""

    def __init__(self, config: VanConfig, hidden_size: int, mlp_ratio: int):
        super().__init__()
        self.inner_size = hidden_size * mlp_ratio
        self.in_dense = nn.Conv2d(hidden_size, self.inner_size, kernel_size=1)
        self.depth_wise = VanDepthwiseConv.of_size(self.inner_size, kernel_size=3)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.dropout_rate)
        self.out_dense = nn.Conv2d(self.inner_size, hidden_size, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # Hooks are to see whole maps, dropout draws for whole maps.
        if self.training or any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.modules()):
            return self._reduced(self._expanded(hidden_states))
        return in_bands(self._expanded, self._reduced, hidden_states, widest=self.inner_size)

    def _expanded(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.depth_wise(self.in_dense(hidden_states))

    def _reduced(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.out_dense(self.dropout(self.activation(hidden_states))))


class VanLargeKernelAttention(nn.Module):
    """A 21x21 convolution taken apart: 5x5 depthwise, 7x7 depthwise with dilation 3, 1x1. Section 3.1 of the paper."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.depth_wise = VanDepthwiseConv.of_size(hidden_size, kernel_size=5)
        self.depth_wise_dilated = VanDepthwiseConv.of_size(hidden_size, kernel_size=7, dilation=3)
        self.point_wise = nn.Conv2d(hidden_size, hidden_size, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.point_wise(self.depth_wise_dilated(self.depth_wise(hidden_states)))


class VanLargeKernelAttentionLayer(nn.Module):
    """The input, multiplied by its large-kernel attention."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.attention = VanLargeKernelAttention(hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.attention(hidden_states)


class VanSpatialAttentionLayer(nn.Module):
    """Large-kernel attention between two 1x1 projections, with a residual of its own around all three."""

    def __init__(self, config: VanConfig, hidden_size: int):
        super().__init__()
        self.pre_projection = nn.Sequential()
        self.pre_projection.add_module("conv", nn.Conv2d(hidden_size, hidden_size, kernel_size=1))
        self.pre_projection.add_module("act", ACT2FN[config.hidden_act])
        self.attention_layer = VanLargeKernelAttentionLayer(hidden_size)
        self.post_projection = nn.Conv2d(hidden_size, hidden_size, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.post_projection(self.attention_layer(self.pre_projection(hidden_states)))


class VanLayerScaling(nn.Module):
    """The sum of two maps (batch, channels, height, width), the second one times a learnt factor per channel."""

    def __init__(self, config: VanConfig, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((hidden_size,), float(config.layer_scale_init_value)))

    def forward(self, residual: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(residual, self.weight[:, None, None], hidden_states)


class VanLayer(GradientCheckpointingLayer):
    """A block: attention and feed-forward layers, each normalized, scaled and dropped at random around a residual."""

    def __init__(self, config: VanConfig, hidden_size: int, mlp_ratio: int, drop_path_rate: float):
        super().__init__()
        self.drop_path = VanDropPath(drop_path_rate)
        self.pre_normomalization = nn.BatchNorm2d(hidden_size)
        self.attention = VanSpatialAttentionLayer(config, hidden_size)
        self.attention_scaling = VanLayerScaling(config, hidden_size)
        self.post_normalization = nn.BatchNorm2d(hidden_size)
        self.mlp = VanMlpLayer(config, hidden_size, mlp_ratio)
        self.mlp_scaling = VanLayerScaling(config, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        attended = self.attention(normalize(self.pre_normomalization, hidden_states))
        hidden_states = self.attention_scaling(hidden_states, self.drop_path(attended))
        transformed = self.mlp(normalize(self.post_normalization, hidden_states))
        return self.mlp_scaling(hidden_states, self.drop_path(transformed))


FUSED_CANNOT_BE_SAVED = "a fused model cannot be saved: its weights fit no other model. Save it before fuse()."


class VanFusedLayer(nn.Module):
    """A [`VanLayer`] for inference, its normalizations and layer scales folded into the 1x1 convolutions beside them.

    Of the attention's own residual, `scale * norm(x)`, a factor of each channel is left, and a part of a bias.
    """

    def __init__(self, layer: VanLayer):
        super().__init__()
        factor, shift = _affine(layer.pre_normomalization)
        scale = layer.attention_scaling.weight
        attention, mlp = layer.attention, layer.mlp
        self.pre_projection = _fold_before(factor, shift, attention.pre_projection.conv)
        self.activation = attention.pre_projection.act
        self.attention_layer = attention.attention_layer
        self.post_projection = _fold_after(attention.post_projection, scale, shift * scale)
        self.skip = nn.Parameter((1 + scale * factor)[:, None, None], requires_grad=False)
        self.mlp = mlp
        mlp.in_dense = _fold_before(*_affine(layer.post_normalization), mlp.in_dense)
        mlp.out_dense = _fold_after(mlp.out_dense, layer.mlp_scaling.weight)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        attended = self.attention_layer(self.activation(self.pre_projection(hidden_states)))
        hidden_states = torch.addcmul(self.post_projection(attended), hidden_states, self.skip)
        return hidden_states + self.mlp(hidden_states)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        # Inside other people's models too, which would save it without a word. Exporting keeps the variables.
        if not keep_vars:
            raise ValueError(FUSED_CANNOT_BE_SAVED)
        super()._save_to_state_dict(destination, prefix, keep_vars)


def _affine(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and shift of each channel that a normalization is at inference."""
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return factor, norm.bias - norm.running_mean * factor


def _fold_before(factor: torch.Tensor, shift: torch.Tensor, conv: nn.Conv2d) -> nn.Conv2d:
    """`conv(factor * x + shift)` as one 1x1 convolution, in place."""
    conv.bias.add_(conv.weight[:, :, 0, 0] @ shift)
    conv.weight.mul_(factor[:, None, None])
    return conv


def _fold_after(conv: nn.Conv2d, factor: torch.Tensor, shift: torch.Tensor | float = 0.0) -> nn.Conv2d:
    """`factor * conv(x) + shift` as one convolution, in place."""
    conv.weight.mul_(factor[:, None, None, None])
    conv.bias.mul_(factor).add_(shift)
    return conv


class VanStage(nn.Module):
    """Patch embedding, blocks and LayerNorm: (batch, channels of the stage before, height, width) -> (batch,
    hidden_sizes[stage_idx], height / stride, width / stride). One that is frozen stays in evaluation mode."""

    def __init__(self, config: VanConfig, stage_idx: int):
        super().__init__()
        self.is_frozen = False
        hidden_size = config.hidden_sizes[stage_idx]
        self.embeddings = VanOverlappingPatchEmbedder(
            config.num_channels if stage_idx == 0 else config.hidden_sizes[stage_idx - 1],
            hidden_size,
            patch_size=config.patch_sizes[stage_idx],
            stride=config.strides[stage_idx],
        )
        # The rate grows over the blocks of all stages, not of this one.
        first_block = sum(config.depths[:stage_idx])
        last_block_of_all = max(sum(config.depths) - 1, 1)
        self.layers = nn.ModuleList(
            VanLayer(
                config,
                hidden_size,
                mlp_ratio=config.mlp_ratios[stage_idx],
                drop_path_rate=config.drop_path_rate * block / last_block_of_all,
            )
            for block in range(first_block, first_block + config.depths[stage_idx])
        )
        self.normalization = VanLayerNorm(hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.embeddings(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.normalization(hidden_states)

    def freeze(self):
        """Let training change neither weights nor BatchNorm's statistics, and drop nothing at random."""
        self.is_frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True):
        """[`~torch.nn.Module.train`], of which a frozen stage takes no notice."""
        return super().train(mode and not self.is_frozen)

    def fuse(self):
        """Fold what is linear at inference into the convolutions, in place; a second call does nothing."""
        if isinstance(self.embeddings.normalization, nn.Identity):
            return
        self.embeddings.convolution = fuse_conv_bn_eval(self.embeddings.convolution, self.embeddings.normalization)
        self.embeddings.normalization = nn.Identity()
        self.layers = nn.ModuleList(VanFusedLayer(layer) for layer in self.layers)


class VanEncoder(nn.Module):
    """The stages."""

    def __init__(self, config: VanConfig):
        super().__init__()
        self.stages = nn.ModuleList(VanStage(config, stage_idx) for stage_idx in range(len(config.hidden_sizes)))

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return each stage's output, (batch, hidden_sizes[0], height / 4, width / 4) to (batch, hidden_sizes[3],
        height / 32, width / 32), of pictures (batch, num_channels, height, width)."""
        hidden_states = channels_last(pixel_values)
        all_hidden_states = []
        for stage in self.stages:
            hidden_states = stage(hidden_states)
            all_hidden_states.append(hidden_states)
        return tuple(all_hidden_states)


class VanPreTrainedModel(PreTrainedModel):
    """Weight initialization and loading, common to all VAN models."""

    config_class = VanConfig
    config: VanConfig
    base_model_prefix = "van"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VanLayer"]
    # The hidden states are those of the stages alone: transformers 5.17 looks here where only some are asked for. No
    # module is recorded, as the encoder returns them.
    _can_record_outputs = {"hidden_states": OutputRecorder(None, capture_initial_hidden_state=False)}
    # The losses are means over what a forward pass sees, and know nothing of `num_items_in_batch`. Unless told so,
    # `Trainer` concludes from `**kwargs` that they do, and leaves gradient accumulation undivided.
    accepts_loss_kwargs = False
    # transformers 4.57 saved a final LayerNorm that neither it nor the authors' classifier ever used.
    _keys_to_ignore_on_load_unexpected = [r"^(van\.)?layernorm\."]

    def __init__(self, config: VanConfig, *args, **kwargs):
        # `from_pretrained(..., field=value)` sets fields after the configuration has checked itself.
        config.validate_architecture()
        super().__init__(config, *args, **kwargs)

    def __setattr__(self, name: str, value: object):
        # Of a loss that is a module, torch makes a part of the model, where transformers' property does not look.
        if name in ("loss_function", "_loss_function"):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """The authors' initialization of backbone and classifier, mmsegmentation's of the heads."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, Classifier):
            init.normal_(module.weight, std=0.01)
        elif isinstance(module, PyramidConv):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        elif isinstance(module, VanLayerScaling):
            init.constant_(module.weight, self.config.layer_scale_init_value)
        elif isinstance(module, Hamburger):
            init.copy_(module.bases, module.fixed_bases(*module.bases.shape))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info=False, **kwargs):
        """
        [`~transformers.PreTrainedModel.from_pretrained`]; it takes the checkpoints that transformers 4.57 saved too.

        Raises:
            ValueError: the checkpoint lacks weights of the backbone, or has them in other sizes. A head that the
                checkpoint lacks is initialized and reported in a warning, as usual.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        mismatched = {key for key, *_ in info["mismatched_keys"]}
        not_loaded = sorted(key for key in mismatched.union(info["missing_keys"]) if "encoder." in key)
        if not_loaded:
            shown = ", ".join(not_loaded[:5]) + (", ..." if len(not_loaded) > 5 else "")
            raise ValueError(
                f"{pretrained_model_name_or_path} does not hold {len(not_loaded)} of the backbone's weights, or has "
                f"them in other sizes: {shown}. Is it a VAN checkpoint of the sizes in its config.json? The authors' "
                "own files need examples/convert_checkpoint.py first."
            )
        return (model, info) if output_loading_info else model

    @torch.no_grad()
    def fuse(self):
        """Fold normalizations and layer scales into the convolutions beside them, in place, for faster inference.

        The outputs remain the same up to rounding. Only loading the model again undoes it: a fused model can be
        neither trained nor saved.

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: a layer was replaced by one that nothing can be folded into, such as an adapter's.
        """
        for name, module in self.named_modules():
            has_own_weight = not isinstance(module, nn.Conv2d) or "weight" in module._parameters
            if hasattr(module, "base_layer") or not has_own_weight:
                raise ValueError(
                    f"{name} is a {type(module).__name__}, into which nothing can be folded; merge adapters "
                    "(merge_and_unload() of peft) and remove parametrizations before fuse()"
                )
        self.eval()
        for module in list(self.modules()):
            if isinstance(module, (VanStage, ConvModule)):
                module.fuse()
        return self

    def _is_fused(self) -> bool:
        return any(isinstance(module, VanFusedLayer) for module in self.modules())

    def train(self, mode: bool = True):
        """[`~torch.nn.Module.train`]; a fused model refuses it with a `ValueError`."""
        if mode and self._is_fused():
            raise ValueError("a fused model cannot be trained: its normalizations are gone. Load it anew.")
        return super().train(mode)

    def save_pretrained(self, *args, **kwargs):
        """[`~transformers.PreTrainedModel.save_pretrained`]; a fused model refuses it with a `ValueError`."""
        if self._is_fused():
            raise ValueError(FUSED_CANNOT_BE_SAVED)  # before the configuration is written
        return super().save_pretrained(*args, **kwargs)


class VanModel(VanPreTrainedModel):
    """
    The backbone, without a head.

    Args:
        config ([`VanConfig`]): the configuration.
    """

    def __init__(self, config: VanConfig):
        super().__init__(config)
        self.encoder = VanEncoder(config)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`):
                Normalized pictures of any size, as [`VanImageProcessor`] returns them.
            output_hidden_states (`bool`, *optional*): whether to return each stage's output.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutputWithPoolingAndNoAttention`]: `last_hidden_state` of shape
            `(batch, hidden_sizes[3], height / 32, width / 32)`, `pooler_output` (its mean over the pixels) of shape
            `(batch, hidden_sizes[3])`, `hidden_states` of shapes `(batch, hidden_sizes[0], height / 4, width / 4)` to
            those of `last_hidden_state`. Sizes are rounded up.
        """
        hidden_states = self.encoder(pixel_values)
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=hidden_states[-1],
            pooler_output=hidden_states[-1].mean(dim=(-2, -1)),
            hidden_states=hidden_states,
        )


class VanBackbone(BackboneMixin, VanPreTrainedModel):
    """
    The backbone as other people's heads use it: the stages named in `config.out_features`, with their `channels`.

    Args:
        config ([`VanConfig`]): the configuration.
    """

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = [r"^(van\.)?layernorm\.", r"^(classifier|decode_head|auxiliary_head)\."]

    def __init__(self, config: VanConfig):
        super().__init__(config)
        self.num_features = list(config.hidden_sizes)
        self.encoder = VanEncoder(config)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): normalized pictures.
            output_hidden_states (`bool`, *optional*): whether to return every stage's output too.

        Returns:
            [`~transformers.modeling_outputs.BackboneOutput`]: `feature_maps`, one for each of `out_features`, stage i
            (from 1) of shape `(batch, hidden_sizes[i - 1], height / 2**(i + 1), width / 2**(i + 1))`, rounded up.
        """
        hidden_states = self.encoder(pixel_values)
        feature_maps = tuple(
            maps for stage, maps in zip(self.stage_names, hidden_states, strict=True) if stage in self.out_features
        )
        return BackboneOutput(feature_maps=feature_maps, hidden_states=hidden_states)


class VanForImageClassification(VanPreTrainedModel):
    """
    VAN with a linear classifier on the mean of its last feature map.

    Args:
        config ([`VanConfig`]): the configuration; `num_labels` is the number of classes.
    """

    def __init__(self, config: VanConfig):
        super().__init__(config)
        self.van = VanModel(config)
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> ImageClassifierOutputWithNoAttention:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): normalized pictures.
            labels (`torch.LongTensor` of shape `(batch,)`, *optional*):
                Class ids in 0..num_labels-1. The loss follows `config.problem_type`, as everywhere in transformers.
            output_hidden_states (`bool`, *optional*): whether to return each stage's output.

        Returns:
            [`~transformers.modeling_outputs.ImageClassifierOutputWithNoAttention`]: `loss`, a scalar, if there are
            labels; `logits` of shape `(batch, num_labels)`; `hidden_states`.
        """
        outputs = self.van(pixel_values, **{**kwargs, "return_dict": True})
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class VanForSemanticSegmentation(VanPreTrainedModel):
    """
    VAN with the decode head that `config.decode_head` names: UperNet, Semantic FPN, Light-Ham or HamNet. UperNet and
    HamNet have an auxiliary FCN head in training.

    In evaluation mode the same picture has the same logits at every call: up to float rounding, as a picture's place
    in a batch, and the batch's size, decide how products are summed up.

    `model.loss_function = ...` sets another loss for training, of both heads: a callable of `(logits, labels,
    ignore_index)` as [`upsampled_cross_entropy`] is, the default; `van_hf.losses` has some. It is no part of what is
    saved. Evaluation mode keeps the cross entropy. An `nn.Module` with such a `forward` will do, but is no part of the
    model: it does not move to another device with it, and its parameters are not trained.

    `Trainer` trains it, but for `label_smoothing_factor`: its smoothing takes the classes to be the last dimension of
    the logits, and labels to be of the logits' size. A smoothed loss goes into `model.loss_function`.

    Args:
        config ([`VanConfig`]): the configuration; `num_labels` is the number of classes.

    Raises:
        ValueError: `num_labels` is below 2. Two classes are a background and a foreground.
    """

    _keys_to_ignore_on_load_unexpected = [r"^(van\.)?layernorm\.", r"^(classifier|auxiliary_head)\."]
    _keys_to_ignore_on_load_missing = [r"\.hamburger\.bases$"]  # drawn from their fixed seed, and never trained

    def __init__(self, config: VanConfig):
        if config.num_labels < 2:
            raise ValueError(
                f"num_labels must be 2 or more for semantic segmentation, got {config.num_labels}: every pixel gets "
                "the class of the highest score, so a single class needs num_labels=2: background and foreground"
            )
        super().__init__(config)
        self.van = VanModel(config)
        in_channels = list(config.hidden_sizes)
        self.decode_head = DECODE_HEAD_CLASSES[config.decode_head](config, in_channels)
        has_auxiliary_head = DECODE_HEADS[config.decode_head].has_auxiliary_head and config.use_auxiliary_head
        self.auxiliary_head = FcnHead(config, in_channels) if has_auxiliary_head else None
        self.loss_function = upsampled_cross_entropy
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> SemanticSegmenterOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`):
                Normalized pictures of any size, as [`VanImageProcessor`] returns them.
            labels (`torch.Tensor` of shape `(batch, label_height, label_width)`, *optional*):
                Class ids in 0..num_labels-1, or `config.semantic_loss_ignore_index`, of any integer dtype.
            output_hidden_states (`bool`, *optional*): whether to return each stage's output.

        Returns:
            [`~transformers.modeling_outputs.SemanticSegmenterOutput`]: `loss`, a scalar, if there are labels: the
            cross entropy of the logits, interpolated to the labels' size, averaged over the pixels that are not
            ignored (0 where all are). In training mode it is that of `model.loss_function`, and
            `auxiliary_loss_weight` times the auxiliary head's are added;
            `logits` of shape `(batch, num_labels, height / s, width / s)`, rounded up, where s is
            `config.logits_stride`, 4 for UperNet and Semantic FPN and 8 for Light-Ham and HamNet; `hidden_states` of
            shapes `(batch, hidden_sizes[0], height / 4, width / 4)` to `(batch, hidden_sizes[3], height / 32,
            width / 32)`, the last two of HamNet's at 1/8.

        Raises:
            ValueError: `labels` have another shape, are no integers or hold other ids (on a GPU, torch itself stops
                at those).
        """
        outputs = self.van(pixel_values, **{**kwargs, "return_dict": True})
        logits = self.decode_head(outputs.hidden_states)
        loss = None
        if labels is not None:
            labels = self._checked_labels(labels, batch_size=pixel_values.shape[0])
            ignore_index = self.config.semantic_loss_ignore_index
            loss_function = self.loss_function if self.training else upsampled_cross_entropy
            loss = loss_function(logits, labels, ignore_index)
            if self.auxiliary_head is not None and self.training:
                auxiliary_loss = loss_function(self.auxiliary_head(outputs.hidden_states), labels, ignore_index)
                loss = loss + self.config.auxiliary_loss_weight * auxiliary_loss
        return SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

    def _checked_labels(self, labels: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Return the labels as int64."""
        if labels.ndim != 3 or labels.shape[0] != batch_size:
            raise ValueError(f"labels must have the shape ({batch_size}, height, width), got {tuple(labels.shape)}")
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"labels must be integers, one class id per pixel, got {labels.dtype}")
        labels = labels.long()
        # On an accelerator the look at the values would hold up the queue; there torch's own assertion guards them.
        if labels.device.type != "cpu" or torch.compiler.is_compiling() or is_transformed(labels):
            return labels
        valid = labels != self.config.semantic_loss_ignore_index
        # With a right id in place of the ignored ones: to pick the others out takes ten times as long.
        lowest, highest = torch.where(valid, labels, 0).aminmax() if labels.numel() > 0 else (0, 0)
        if not 0 <= lowest <= highest < self.config.num_labels:
            lowest, highest = labels[valid].aminmax()
            raise ValueError(
                f"labels must lie in 0..{self.config.num_labels - 1} or be {self.config.semantic_loss_ignore_index}, "
                f"got ids from {lowest} to {highest}. Does the dataset need do_reduce_labels?"
            )
        return labels


__all__ = ["VanBackbone", "VanForImageClassification", "VanForSemanticSegmentation", "VanModel", "VanPreTrainedModel"]
