# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Training pictures drawn by their classes, so that rare classes are seen more often."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class RareClassSampling:
    """Draws a label, rare ones more often, and then one of the pictures in which it occurs.

    It is rare class sampling of DAFormer (Hoyer, Dai & Van Gool 2022, https://arxiv.org/abs/2111.14887, section 3.3):
    labels are drawn in proportion to exp((1 - f) / temperature), f being their share of the labelled pixels. Where the
    authors try ten crops for one that shows enough of the label, crops are laid around a pixel of it, see
    `TrainAugmentation.draw`.

    Args:
        pixels: number of pixels of each label in the training masks, int64 (num_labels,), see `LabelCounts`.
        pictures: for each label the numbers of the pictures in which it occurs, int64.
        temperature: the lower, the more often rare labels are drawn; above 0. At 0.01, the authors' value, labels with
            more than some percent of the pixels are hardly drawn, nor are pictures that hold only such.

    Raises:
        ValueError: the temperature is out of range, or no label occurs anywhere.
    """

    pixels: np.ndarray
    pictures: tuple[np.ndarray, ...]
    temperature: float = 0.01

    def __post_init__(self):
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"the temperature must be above 0 and finite, got {self.temperature}")
        if not self.pixels.any():
            raise ValueError("no label occurs in the training masks: there is nothing to draw pictures by")

    @cached_property
    def probabilities(self) -> np.ndarray:
        """How likely each label is to be drawn, float64 (num_labels,); 0 where it occurs nowhere."""
        shares = self.pixels / self.pixels.sum()
        # In the exponent only differences count; those to the rarest label cannot overflow.
        rarest = shares[self.pixels > 0].min()
        weights = np.where(self.pixels > 0, np.exp(np.minimum(rarest - shares, 0) / self.temperature), 0)
        return weights / weights.sum()

    def draw(self, generator: torch.Generator) -> tuple[int, int]:
        """Return the number of a picture, and the label that it was drawn for."""
        labels = self.probabilities.nonzero()[0]
        drawn = torch.rand((), generator=generator, dtype=torch.float64).item()
        position = np.searchsorted(self.probabilities[labels].cumsum(), drawn, side="right")
        # Rounding may leave the sum below what was drawn.
        label = int(labels[min(position, len(labels) - 1)])
        pictures = self.pictures[label]
        return int(pictures[torch.randint(len(pictures), (), generator=generator)]), label
