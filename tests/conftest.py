# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Fixtures that several test files share: the tiny VAN that the golden data was measured on, and its files."""

import os
from pathlib import Path

import pytest

# Nothing that the tests need comes from the network, and models this small only lose by threads; the scripts that
# tests start inherit both.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from van_hf import VanConfig

TINY_BACKBONE = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
TINY_HEADS = {
    "upernet": {"decode_head": "upernet", "decoder_hidden_size": 24, "auxiliary_hidden_size": 12},
    "semantic_fpn": {"decode_head": "semantic_fpn", "decoder_hidden_size": 12, "fpn_hidden_size": 24},
}


def tiny_config(decode_head: str = "upernet", **overrides) -> VanConfig:
    """The golden data's architecture: 7 classes, segmentation's LayerNorm epsilon."""
    fields = {"layer_norm_eps": 1e-5, **TINY_BACKBONE, **TINY_HEADS[decode_head]}
    if "id2label" not in overrides:
        fields["num_labels"] = 7
    return VanConfig(**{**fields, **overrides})


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    return Path(__file__).parent / "fixtures"


def random_pixel_values() -> torch.Tensor:
    """(2, 3, 64, 96)."""
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return random_pixel_values()
