# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Semantic segmentation with the Visual Attention Network (VAN), for Hugging Face transformers.

Importing this package registers its classes with transformers' Auto classes and pipelines.
"""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    AutoVideoProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from .model.configuration_van import VanConfig
from .model.image_processing_van import VanImageProcessor
from .model.modeling_van import (
    VanBackbone,
    VanForImageClassification,
    VanForSemanticSegmentation,
    VanModel,
    VanPreTrainedModel,
)

__version__ = "0.1.0"

AutoConfig.register("van", VanConfig)
AutoModel.register(VanConfig, VanModel)
AutoBackbone.register(VanConfig, VanBackbone)
AutoModelForImageClassification.register(VanConfig, VanForImageClassification)
AutoModelForSemanticSegmentation.register(VanConfig, VanForSemanticSegmentation)
AutoImageProcessor.register(VanConfig, image_processor_classes={"torchvision": VanImageProcessor})
# The segmentation pipeline checks a model against this table of names, which registering does not reach.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["van"] = VanForSemanticSegmentation.__name__
# Every pipeline also tries for a video processor, and would ask the user whether to trust the image processor's saved
# code as one. That there is none has to be said.
AutoVideoProcessor.register(VanConfig, None)

# Saved models carry their code along, so that trust_remote_code=True loads them where van_hf is not installed.
VanConfig.register_for_auto_class()
VanModel.register_for_auto_class("AutoModel")
VanBackbone.register_for_auto_class("AutoBackbone")
VanForImageClassification.register_for_auto_class("AutoModelForImageClassification")
VanForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
VanImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = [
    "VanBackbone",
    "VanConfig",
    "VanForImageClassification",
    "VanForSemanticSegmentation",
    "VanImageProcessor",
    "VanModel",
    "VanPreTrainedModel",
]
