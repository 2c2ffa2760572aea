# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What the VAN authors released: their checkpoints, the figures they published, and where they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .data import ade20k
from .files import read_json
from .inference import RATIOS, Protocol
from .model.configuration_van import DECODE_HEADS, VAN_SIZES, VanConfig

SEGMENTATION_URL = "https://github.com/Visual-Attention-Network/VAN-Segmentation"
# Where Light-Ham and HamNet were published; later commits list them no more.
HAM_URL = f"{SEGMENTATION_URL}/tree/2573491c4da4ad0691039a1b41a3d743fa5ed1e0"
CLASSIFICATION_URL = "https://github.com/Visual-Attention-Network/VAN-Classification"
# The decode heads of the one publication.
HAM_HEADS = tuple(name for name, head in DECODE_HEADS.items() if head.has_hamburger)
# The authors' classifiers on the Hub, in transformers 4's format, which van_hf loads as it is.
HUB_CLASSIFIERS = {
    "b0": "Visual-Attention-Network/van-tiny",
    "b1": "Visual-Attention-Network/van-small",
    "b2": "Visual-Attention-Network/van-base",
    "b3": "Visual-Attention-Network/van-large",
}
# What the authors' figures were measured with, by decode head; None is a classifier.
PUBLISHED_PROTOCOLS = {
    **dict.fromkeys(("upernet", *HAM_HEADS), Protocol(ratios=RATIOS, flip=True).describe()),
    "semantic_fpn": Protocol().describe(),
    None: "top-1, 224x224 pixels from the middle of the picture",
}
# (height, width) in pixels of the pictures that the authors count multiply-adds for, by decode head.
GMACS_SIZES = {
    **dict.fromkeys(("upernet", "semantic_fpn"), (512, 2048)),
    **dict.fromkeys(HAM_HEADS, (512, 512)),
    None: (224, 224),
}
# The authors' own evaluation of five Light-Ham models on ADE20K, in percent, the classes in label order.
PER_CLASS_FILE = Path(__file__).parent / "published_per_class.json"


class DataSet(NamedTuple):
    """A data set as cards name it, and its id on the Hub if it is known to be there."""

    name: str
    hub_id: str | None = None


ADE20K = DataSet("ADE20K", ade20k.HUB_REPOSITORY)
IMAGENET = DataSet("ImageNet-1K", "ILSVRC/imagenet-1k")


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """What the authors published about one of their checkpoints, from the README files of their two repositories.

    Attributes:
        size: `"b0"` to `"b6"`.
        decode_head: `"upernet"`, `"semantic_fpn"`, `"light_ham"` or `"ham"`; None for a classifier.
        figure: mean IoU on ADE20K's validation pictures, or a classifier's top-1 accuracy on ImageNet-1K's, in
            percent; None if they print none.
        first_figure: the same figure in their first release, where it differed.
        parameters: the number of parameters that they print, in millions; None if they print none.
        gmacs: the multiply-adds that they print, in 10^9, for a picture of `gmacs_size`; None if they print none.
        recipe: name of a segmentation model's recipe in `van_hf.training.RECIPES`.
        pretraining: the data that a segmentation model's backbone was trained on before.
        overrides: fields of the configuration that are not the size's and decode head's.
    """

    size: str
    decode_head: str | None
    figure: float | None = None
    first_figure: float | None = None
    parameters: float | None = None
    gmacs: float | None = None
    recipe: str | None = None
    pretraining: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gmacs_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the picture that `gmacs` are for."""
        return GMACS_SIZES[self.decode_head]

    @property
    def data_set(self) -> DataSet:
        """What the checkpoint was trained and evaluated on."""
        return IMAGENET if self.decode_head is None else ADE20K

    @property
    def url(self) -> str:
        """Address of the authors' repository that the checkpoint is from."""
        if self.decode_head is None:
            return CLASSIFICATION_URL
        return HAM_URL if self.decode_head in HAM_HEADS else SEGMENTATION_URL

    @property
    def protocol(self) -> str:
        """What `figure` was measured with."""
        return PUBLISHED_PROTOCOLS[self.decode_head]

    def config(self) -> VanConfig:
        """Return the checkpoint's architecture."""
        if self.decode_head is not None:
            return VanConfig.from_size(self.size, decode_head=self.decode_head, **self.overrides)
        hidden_sizes, depths, _ = VAN_SIZES[self.size]
        return VanConfig(hidden_sizes=hidden_sizes, depths=depths, num_labels=1000)


def _upernet(size, figure, first_figure=None, parameters=None, gmacs=None, data="ImageNet-1K"):
    recipe = "upernet_160k_batch32" if size == "b4" else "upernet_160k"
    return ReleasedCheckpoint(size, "upernet", figure, first_figure, parameters, gmacs, recipe, data)


def _semantic_fpn(size, figure=None):
    return ReleasedCheckpoint(size, "semantic_fpn", figure, recipe="semantic_fpn_40k", pretraining="ImageNet-1K")


def _light_ham(size, figure=None, parameters=None, gmacs=None, **overrides):
    fields = {"recipe": "light_ham_160k", "pretraining": "ImageNet-1K", "overrides": overrides}
    return ReleasedCheckpoint(size, "light_ham", figure, parameters=parameters, gmacs=gmacs, **fields)


def _ham(size, figure, parameters, gmacs):
    fields = {"recipe": "ham_160k", "pretraining": "ImageNet-1K"}
    return ReleasedCheckpoint(size, "ham", figure, parameters=parameters, gmacs=gmacs, **fields)


_D256 = {"decoder_hidden_size": 256, "ham_hidden_size": 256, "ham_rank": 16}

# By the names of the authors' training configurations, which their checkpoints are named after.
RELEASED_CHECKPOINTS = {
    "van_b0": ReleasedCheckpoint("b0", None, 75.4, parameters=4.1, gmacs=0.9),
    "van_b1": ReleasedCheckpoint("b1", None, 81.1, parameters=13.9, gmacs=2.5),
    "van_b2": ReleasedCheckpoint("b2", None, 82.8, parameters=26.6, gmacs=5.0),
    "van_b3": ReleasedCheckpoint("b3", None, 83.9, parameters=44.8, gmacs=9.0),
    "van_b4": ReleasedCheckpoint("b4", None),
    "van_b5": ReleasedCheckpoint("b5", None),
    "van_b6": ReleasedCheckpoint("b6", None),
    "upernet_van_b0_512x512_160k_ade20k": _upernet("b0", 41.1, parameters=32),
    "upernet_van_b1_512x512_160k_ade20k": _upernet("b1", 44.9, parameters=44),
    "upernet_van_b2_512x512_160k_ade20k": _upernet("b2", 50.1, first_figure=48.3, parameters=57, gmacs=948),
    "upernet_van_b3_512x512_160k_ade20k": _upernet("b3", 50.6, first_figure=50.1, parameters=75, gmacs=1030),
    "upernet_van_b4_512x512_160k_ade20k": _upernet("b4", 52.2, parameters=90, gmacs=1098),
    "upernet_van_b4_512x512_160k_ade20k_22k": _upernet("b4", 53.5, parameters=90, gmacs=1098, data="ImageNet-22K"),
    "upernet_van_b5_512x512_160k_ade20k_22k": _upernet("b5", 53.9, parameters=117, gmacs=1208, data="ImageNet-22K"),
    "upernet_van_b6_512x512_160k_ade20k_22k": _upernet("b6", 54.7, parameters=231, gmacs=1658, data="ImageNet-22K"),
    "fpn_van_b0_ade20k_40k": _semantic_fpn("b0", 38.5),
    "fpn_van_b1_ade20k_40k": _semantic_fpn("b1", 42.9),
    "fpn_van_b2_ade20k_40k": _semantic_fpn("b2", 46.7),
    "fpn_van_b3_ade20k_40k": _semantic_fpn("b3", 48.1),
    "fpn_van_b4_ade20k_40k": _semantic_fpn("b4"),
    "hamnet_light_van_tiny_d256_512x512_160k_ade20k": _light_ham("b0", 40.9, 4.2, 6.5, **_D256),
    "hamnet_light_van_tiny_512x512_160k_ade20k": _light_ham("b0", 42.3, 4.9, 11.3),
    "hamnet_light_van_small_512x512_160k_ade20k": _light_ham("b1", 45.7, 14.7, 21.4),
    "hamnet_light_van_base_512x512_160k_ade20k": _light_ham("b2", 49.6, 27.4, 34.4),
    "hamnet_light_van_large_512x512_160k_ade20k": _light_ham("b3", 51.0, 45.6, 55.0),
    "hamnet_light_van_huge_512x512_160k_ade20k": _light_ham("b4"),
    "hamnet_van_tiny_512x512_160k_ade20k": _ham("b0", 41.5, 11.9, 50.8),
    "hamnet_van_small_512x512_160k_ade20k": _ham("b1", 45.1, 24.2, 100.6),
    "hamnet_van_base_512x512_160k_ade20k": _ham("b2", 48.7, 36.9, 153.6),
    "hamnet_van_large_512x512_160k_ade20k": _ham("b3", 50.2, 55.1, 227.7),
}


class PerClass(NamedTuple):
    """An evaluation's figures, in percent.

    Attributes:
        mean_iou, mean_accuracy: means over the classes.
        overall_accuracy: share of the pixels.
        iou, accuracy: of each class by its name, in label order.
    """

    mean_iou: float
    mean_accuracy: float
    overall_accuracy: float
    iou: dict[str, float]
    accuracy: dict[str, float]


def read_per_class(name: str) -> PerClass | None:
    """Return the authors' evaluation of one of [`RELEASED_CHECKPOINTS`] by classes; None if they published none."""
    figures = read_json(PER_CLASS_FILE).get(name)
    if figures is None:
        return None
    by_name = {key: dict(zip(ade20k.CLASS_NAMES, figures[key], strict=True)) for key in ("iou", "accuracy")}
    return PerClass(**{**figures, **by_name})
