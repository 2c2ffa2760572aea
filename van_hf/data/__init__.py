# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Datasets for semantic segmentation, through `datasets`, and the training augmentation."""

from ..bands import read_bands
from .augmentation import TrainAugmentation
from .band_statistics import BandStatistics, measure_bands, read_band_statistics
from .class_weights import balanced_class_weights, read_class_weights, resolve_class_weights
from .label_check import check_train_labels, check_validation_labels, describe_labels
from .label_counts import LabelCounts, count_labels
from .label_tables import LABEL_TABLES
from .loading import GENERATED_DATASETS, SegmentationDataset, load_segmentation_dataset
from .masks import MaskMeaning
from .rare_classes import RareClassSampling
from .samples import TrainSamples, read_example

__all__ = [
    "GENERATED_DATASETS",
    "LABEL_TABLES",
    "BandStatistics",
    "LabelCounts",
    "MaskMeaning",
    "RareClassSampling",
    "SegmentationDataset",
    "TrainAugmentation",
    "TrainSamples",
    "balanced_class_weights",
    "check_train_labels",
    "check_validation_labels",
    "count_labels",
    "describe_labels",
    "load_segmentation_dataset",
    "measure_bands",
    "read_band_statistics",
    "read_bands",
    "read_class_weights",
    "read_example",
    "resolve_class_weights",
]
