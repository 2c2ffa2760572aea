# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Datasets for semantic segmentation, through `datasets`, and the training augmentation."""

from .augmentation import TrainAugmentation
from .loading import SegmentationDataset, load_segmentation_dataset
from .samples import TrainSamples, read_example

__all__ = ["SegmentationDataset", "TrainAugmentation", "TrainSamples", "load_segmentation_dataset", "read_example"]
