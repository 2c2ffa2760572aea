# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""VAN model configuration."""

import math
from typing import NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)


class DecodeHead(NamedTuple):
    """What the authors' models with a decode head have in common.

    Attributes:
        name: how texts call the head.
        logits_stage: index of the stage at whose size the logits come out; -1 is the last.
        strides: of the stages' patch embeddings.
        layer_norm_eps: epsilon of the stages' LayerNorm.
        has_auxiliary_head: whether there is an auxiliary FCN head in training.
        has_hamburger: whether the head factorizes a map; its layers then have group normalization.
    """

    name: str
    logits_stage: int = 0
    strides: tuple[int, ...] = (4, 2, 2, 2)
    layer_norm_eps: float = 1e-5
    has_auxiliary_head: bool = False
    has_hamburger: bool = False


DECODE_HEADS = {
    "upernet": DecodeHead("UperNet", has_auxiliary_head=True),
    "semantic_fpn": DecodeHead("Semantic FPN"),
    "light_ham": DecodeHead("Light-Ham", logits_stage=1, layer_norm_eps=1e-6, has_hamburger=True),
    "ham": DecodeHead(
        "HamNet", -1, strides=(4, 2, 1, 1), layer_norm_eps=1e-6, has_auxiliary_head=True, has_hamburger=True
    ),
}
GROUP_NORM_GROUPS = 32

# The published sizes. Stochastic depth is what each head's training configuration sets; where a size was never trained
# with a head, it is UperNet's or, for HamNet, Light-Ham's.
VAN_SIZES = {
    # size: (hidden_sizes, depths, {decode head: drop_path_rate})
    "b0": ([32, 64, 160, 256], [3, 3, 5, 2], {"upernet": 0.1, "semantic_fpn": 0.2, "light_ham": 0.1, "ham": 0.1}),
    "b1": ([64, 128, 320, 512], [2, 2, 4, 2], {"upernet": 0.1, "semantic_fpn": 0.2, "light_ham": 0.1, "ham": 0.1}),
    "b2": ([64, 128, 320, 512], [3, 3, 12, 3], {"upernet": 0.1, "semantic_fpn": 0.2, "light_ham": 0.1, "ham": 0.1}),
    "b3": ([64, 128, 320, 512], [3, 5, 27, 3], {"upernet": 0.3, "semantic_fpn": 0.3, "light_ham": 0.25, "ham": 0.25}),
    "b4": ([64, 128, 320, 512], [3, 6, 40, 3], {"upernet": 0.4, "semantic_fpn": 0.4, "light_ham": 0.4, "ham": 0.4}),
    "b5": ([96, 192, 480, 768], [3, 3, 24, 3], {"upernet": 0.4, "semantic_fpn": 0.4, "light_ham": 0.4, "ham": 0.4}),
    "b6": ([96, 192, 384, 768], [6, 6, 90, 6], {"upernet": 0.5, "semantic_fpn": 0.5, "light_ham": 0.5, "ham": 0.5}),
}


def published_size(hidden_sizes: list[int], depths: list[int]) -> str | None:
    """Return `"b0"` to `"b6"` if the authors published a VAN of these channels and blocks per stage, or None."""
    for size, (published_hidden_sizes, published_depths, _) in VAN_SIZES.items():
        if (list(hidden_sizes), list(depths)) == (published_hidden_sizes, published_depths):
            return size
    return None


def _validate_num_labels(num_labels: object):
    if not isinstance(num_labels, int) or num_labels < 1:
        raise ValueError(f"num_labels must be a positive integer, got {num_labels!r}")


@strict
class VanConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of the Visual Attention Network (https://arxiv.org/abs/2202.09741): the backbone, whose fields are
    those of transformers 4.57's `VanConfig`, and the decode heads of [`VanForSemanticSegmentation`]. The defaults are
    VAN-B2's as a classifier; [`VanConfig.from_size`] gives the published segmentation architectures.

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            Number of channels of `pixel_values`.
        image_size (`int`, *optional*, defaults to 224):
            Side in pixels of the classifier's training pictures. The network itself takes any size.
        patch_sizes (`list[int]`, *optional*, defaults to `[7, 3, 3, 3]`):
            Kernel size of each stage's overlapping patch embedding.
        strides (`list[int]`, *optional*, defaults to `[4, 2, 2, 2]`):
            Stride of each stage's patch embedding.
        hidden_sizes (`list[int]`, *optional*, defaults to `[64, 128, 320, 512]`):
            Channels of each stage.
        depths (`list[int]`, *optional*, defaults to `[3, 3, 12, 3]`):
            Number of blocks of each stage.
        mlp_ratios (`list[int]`, *optional*, defaults to `[8, 8, 4, 4]`):
            Channels of each stage's feed-forward layers, as a multiple of the stage's channels.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of attention and feed-forward layers, a name in `transformers.activations.ACT2FN`.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of linear layers.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of each stage's LayerNorm: 1e-6 in the authors' classifiers, 1e-5 in their segmentation models.
        layer_scale_init_value (`float`, *optional*, defaults to 1e-2):
            Initial value of the layer scales.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth's rate at the last block, in [0, 1); it grows linearly over the blocks, from 0.
        dropout_rate (`float`, *optional*, defaults to 0.0):
            Dropout rate of the feed-forward layers, in [0, 1).
        decode_head (`str`, *optional*, defaults to `"upernet"`):
            Head of the segmentation model: `"upernet"` (https://arxiv.org/abs/1807.10221), `"semantic_fpn"`
            (https://arxiv.org/abs/1901.02446), or `"light_ham"` or `"ham"`, Light-Ham and HamNet
            (https://arxiv.org/abs/2109.04553). HamNet goes with the `strides` `[4, 2, 1, 1]`.
        decoder_hidden_size (`int`, *optional*):
            Channels of the decode head: by default 128 for Semantic FPN, 512 for the others.
        fpn_hidden_size (`int`, *optional*, defaults to 256):
            Channels of the feature pyramid below Semantic FPN's head.
        pool_scales (`list[int]`, *optional*, defaults to `[1, 2, 3, 6]`):
            Sides of the grids that UperNet's pyramid pooling module averages the last feature map to.
        ham_hidden_size (`int`, *optional*, defaults to 512):
            Channels of the map that the Hamburger of Light-Ham and HamNet factorizes.
        ham_rank (`int`, *optional*, defaults to 64):
            Rank of that factorization. No checkpoint of the authors tells it: it is 64, or 16 with 256 channels.
        ham_train_steps (`int`, *optional*, defaults to 6):
            Multiplicative updates of the factorization's two factors in training; gradients go through them all.
        ham_eval_steps (`int`, *optional*, defaults to 7):
            The same in evaluation.
        classifier_dropout_prob (`float`, *optional*, defaults to 0.1):
            Rate, in [0, 1), at which whole channels are dropped before a head's classifier.
        use_auxiliary_head (`bool`, *optional*, defaults to `True`):
            Whether UperNet and HamNet have an auxiliary FCN head on the last but one stage. It is used in training
            only.
        auxiliary_hidden_size (`int`, *optional*, defaults to 256):
            Channels of the auxiliary head.
        auxiliary_loss_weight (`float`, *optional*, defaults to 0.4):
            Weight of the auxiliary head's loss.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
            Label id that the loss leaves out.
        palette (`list[list[int]]`, *optional*):
            One `[red, green, blue]` in 0..255 for each label, for drawing. It is dropped when the configuration is
            given another number of labels.
        out_features (`list[str]`, *optional*):
            Stages that [`VanBackbone`] returns, of `"stage1"` to `"stage4"`. Defaults to the last.
        out_indices (`list[int]`, *optional*):
            The same as indices, 0 for `"stage1"`.

    Raises:
        ValueError: a field has a value that makes no network; the message names the field.

    Example:

    ```python
    >>> from van_hf import VanConfig, VanForSemanticSegmentation

    >>> config = VanConfig.from_size("b0", decode_head="upernet")
    >>> model = VanForSemanticSegmentation(config)
    ```"""

    model_type = "van"

    num_channels: int = 3
    image_size: int | list[int] | tuple[int, ...] = 224
    patch_sizes: list[int] | tuple[int, ...] = (7, 3, 3, 3)
    strides: list[int] | tuple[int, ...] = (4, 2, 2, 2)
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 320, 512)
    depths: list[int] | tuple[int, ...] = (3, 3, 12, 3)
    mlp_ratios: list[int] | tuple[int, ...] = (8, 8, 4, 4)
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    layer_scale_init_value: float = 1e-2
    drop_path_rate: float | int = 0.0
    dropout_rate: float | int = 0.0
    decode_head: str = "upernet"
    decoder_hidden_size: int | None = None
    fpn_hidden_size: int = 256
    pool_scales: list[int] | tuple[int, ...] = (1, 2, 3, 6)
    ham_hidden_size: int = 512
    ham_rank: int = 64
    ham_train_steps: int = 6
    ham_eval_steps: int = 7
    classifier_dropout_prob: float | int = 0.1
    use_auxiliary_head: bool = True
    auxiliary_hidden_size: int = 256
    auxiliary_loss_weight: float | int = 0.4
    semantic_loss_ignore_index: int = 255
    palette: list[list[int]] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self._validate_common_fields(kwargs)
        self.validate_stages()
        self.stage_names = [f"stage{idx}" for idx in range(1, len(self.depths) + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        # That the parent sets labels where there are none yet is no change of them.
        palette, self.palette = self.palette, None
        super().__post_init__(**kwargs)
        self.palette = palette
        # `strict` runs this too, but wraps what it raises in an exception that is no ValueError.
        self.validate_architecture()

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        # A new set of labels, as for fine-tuning.
        if name == "id2label" and value and self.palette is not None and len(self.palette) != len(value):
            logger.warning(
                "The palette of %d colours is dropped: there are %d labels now.", len(self.palette), len(value)
            )
            self.palette = None

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """[`~transformers.PreTrainedConfig.from_dict`]; a field of a wrong type is a `ValueError` that names it."""
        # Set afterwards, as any other field is: the parent puts it beside the file's own labels.
        num_labels, id2label = kwargs.pop("num_labels", None), kwargs.get("id2label")
        if num_labels is not None:
            _validate_num_labels(num_labels)
            if isinstance(id2label, dict) and len(id2label) != num_labels:
                raise ValueError(f"num_labels is {num_labels}, but id2label has {len(id2label)} names; give either")
        try:
            loaded = super().from_dict(config_dict, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(" ".join(str(error).split())) from error
        if num_labels is not None:
            config = loaded[0] if isinstance(loaded, tuple) else loaded
            config.num_labels = num_labels
        return loaded

    def _validate_common_fields(self, kwargs: dict):
        """Raise a `ValueError` for fields of transformers' own that it stumbles over without naming them."""
        self._validate_labels()
        _validate_num_labels(kwargs.get("num_labels", 2))
        for name, dtype in {"dtype": self.dtype, "torch_dtype": kwargs.get("torch_dtype")}.items():
            known = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
            if dtype is not None and not isinstance(known, torch.dtype):
                raise ValueError(f"{name} must name one of torch's dtypes, such as 'float32', got {dtype!r}")
        architectures = self.architectures or []
        if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
            raise ValueError(f"architectures must be a list of names of classes, got {self.architectures!r}")

    def _validate_labels(self):
        for name in ("id2label", "label2id"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, dict):
                raise ValueError(f"{name} must be a dict, got {value!r}")
        if self.id2label is None:
            return
        # The keys are strings in JSON, and may be in any order.
        are_names = all(isinstance(label, str) for label in self.id2label.values())
        if not are_names or {str(key) for key in self.id2label} != set(map(str, range(len(self.id2label)))):
            raise ValueError(f"id2label must map 0, 1, 2 and so on to names, got {self.id2label!r}")

    def validate_stages(self):
        """Raise a `ValueError` that names the first field at fault of those with an entry for each stage."""
        num_stages = len(self.hidden_sizes)
        if num_stages < 2:
            raise ValueError(f"hidden_sizes must hold two stages or more, got {self.hidden_sizes}")
        for name in ("patch_sizes", "strides", "hidden_sizes", "depths", "mlp_ratios"):
            values = getattr(self, name)
            if any(value < 1 for value in values):
                raise ValueError(f"{name} must hold positive integers, got {values}")
            if len(values) != num_stages:
                raise ValueError(f"{name} must have one entry for each of the {num_stages} hidden_sizes, got {values}")

    def validate_architecture(self):
        """Raise a `ValueError` that names the first field found at fault. Part of `strict`'s validation."""
        self.validate_stages()
        self._validate_labels()
        if not self.pool_scales or any(scale < 1 for scale in self.pool_scales):
            raise ValueError(f"pool_scales must hold positive integers, one or more, got {self.pool_scales}")
        for name in (
            *("num_channels", "fpn_hidden_size", "auxiliary_hidden_size", "decoder_hidden_size"),
            *("ham_hidden_size", "ham_rank", "ham_train_steps", "ham_eval_steps"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value}")
        sides = [self.image_size] if isinstance(self.image_size, int) else self.image_size
        if len(sides) not in (1, 2) or any(side < 1 for side in sides):
            raise ValueError(f"image_size must be a side or (height, width) in pixels, got {self.image_size}")
        for name in ("drop_path_rate", "dropout_rate", "classifier_dropout_prob"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {value}")
        if not 0 <= self.initializer_range < float("inf"):
            raise ValueError(f"initializer_range must not be negative, got {self.initializer_range}")
        if not 0 < self.layer_norm_eps < float("inf"):
            raise ValueError(f"layer_norm_eps must be positive, got {self.layer_norm_eps}")
        if not 0 <= self.auxiliary_loss_weight < float("inf"):
            raise ValueError(f"auxiliary_loss_weight must not be negative, got {self.auxiliary_loss_weight}")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {', '.join(sorted(ACT2FN))}, got {self.hidden_act!r}")
        if self.decode_head not in DECODE_HEADS:
            raise ValueError(f"decode_head must be one of {', '.join(DECODE_HEADS)}, got {self.decode_head!r}")
        self._validate_group_norms()
        if self.palette is not None:
            self._validate_palette()

    def _validate_group_norms(self):
        head = DECODE_HEADS[self.decode_head]
        names = ["ham_hidden_size", "decoder_hidden_size"] if head.has_hamburger else []
        if head.has_hamburger and head.has_auxiliary_head and self.use_auxiliary_head:
            names.append("auxiliary_hidden_size")
        for name in names:
            value = getattr(self, name)
            if value is not None and value % GROUP_NORM_GROUPS != 0:
                raise ValueError(
                    f"{name} must be a multiple of {GROUP_NORM_GROUPS}, the groups of the group normalizations of "
                    f"{head.name}, got {value}"
                )

    def _validate_palette(self):
        if len(self.palette) != self.num_labels:
            raise ValueError(
                f"palette must have one colour for each of the {self.num_labels} labels, got {len(self.palette)}"
            )
        for idx, colour in enumerate(self.palette):
            if len(colour) != 3 or any(not 0 <= value <= 255 for value in colour):
                raise ValueError(f"palette[{idx}] must be [red, green, blue] in 0..255, got {colour}")

    @property
    def logits_stride(self) -> int:
        """The side, in pixels of the picture, of what one place of a segmentation model's logits stands for.

        The logits have the picture's size divided by it, rounded up: it is 4 for UperNet and Semantic FPN, 8 for
        Light-Ham and HamNet, with the published strides.
        """
        last_stage = range(len(self.strides))[DECODE_HEADS[self.decode_head].logits_stage]
        return math.prod(self.strides[: last_stage + 1])

    @classmethod
    def from_size(cls, size: str, decode_head: str = "upernet", **overrides) -> "VanConfig":
        """
        Return the published architecture of a size, as its ADE20K segmentation model has it.

        Args:
            size (`str`): `"b0"` to `"b6"`.
            decode_head (`str`, *optional*, defaults to `"upernet"`):
                `"upernet"`, `"semantic_fpn"`, `"light_ham"` or `"ham"`.
            overrides: fields with other values; `num_labels` (or `id2label`) is 150 unless given.

        Raises:
            ValueError: the size or the decode head is unknown, or an override is refused.

        Example: the authors' smallest Light-Ham model

        ```python
        >>> sizes = {"decoder_hidden_size": 256, "ham_hidden_size": 256, "ham_rank": 16}
        >>> config = VanConfig.from_size("b0", decode_head="light_ham", **sizes)
        ```"""
        if size not in VAN_SIZES:
            raise ValueError(f"size must be one of {', '.join(VAN_SIZES)}, got {size!r}")
        if decode_head not in DECODE_HEADS:
            raise ValueError(f"decode_head must be one of {', '.join(DECODE_HEADS)}, got {decode_head!r}")
        hidden_sizes, depths, drop_path_rates = VAN_SIZES[size]
        fields = {
            "hidden_sizes": list(hidden_sizes),
            "depths": list(depths),
            "strides": list(DECODE_HEADS[decode_head].strides),
            "layer_norm_eps": DECODE_HEADS[decode_head].layer_norm_eps,
            "drop_path_rate": drop_path_rates[decode_head],
            "decode_head": decode_head,
        }
        if decode_head == "light_ham":
            fields["ham_hidden_size"] = min(512, sum(hidden_sizes[1:]))  # no more than its maps have together
        if overrides.get("id2label") is None:
            fields["num_labels"] = 150
        return cls(**{**fields, **overrides})


__all__ = ["VanConfig"]
