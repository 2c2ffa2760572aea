# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Normalization in layers that gradient checkpointing computes twice."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def normalize(norm: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Apply a normalization, whose running statistics move once in a training step, with gradient checkpointing too.

    Gradient checkpointing computes layers anew in the backward pass. torch's BatchNorm, SyncBatchNorm too, would count
    the same batch again.

    Args:
        norm: any normalization, or what stands in its place.
        features: (batch, channels, height, width).

    Returns:
        `norm(features)`.
    """
    if not (isinstance(norm, _BatchNorm) and norm.track_running_stats and _is_in_backward_pass()):
        return norm(features)
    momentum, num_batches_tracked = norm.momentum, norm.num_batches_tracked
    # Without the statistics as inputs autograd would save other tensors than in the forward pass, an error.
    norm.momentum, norm.num_batches_tracked = 0.0, num_batches_tracked.clone()
    try:
        return norm(features)
    finally:
        norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked


def _is_in_backward_pass() -> bool:
    """Return whether autograd is at work in this thread."""
    # A compiled program updates statistics in its forward part alone, from torch 2.7 on.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
