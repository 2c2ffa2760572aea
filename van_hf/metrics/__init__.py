# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Metrics, each in a folder of its own that `evaluate.load` takes."""

from .mean_iou.mean_iou import MeanIoU, confusion_matrix, scores_from_confusion_matrix

__all__ = ["MeanIoU", "confusion_matrix", "scores_from_confusion_matrix"]
