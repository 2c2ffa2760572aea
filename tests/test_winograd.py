# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import pytest
import torch
from conftest import assert_same_derivatives
from torch.nn import functional as F

from van_hf.model import winograd
from van_hf.model.winograd import _winograd_conv2d, winograd_conv2d


@pytest.mark.parametrize("tiles_at_once", [1, 6, 128])
@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (5, 3, 7, 9), (2, 3, 17, 30), (1, 3, 1, 50)])
def test_any_share_of_the_tiles_at_once_gives_the_convolution(monkeypatch, tiles_at_once, shape):
    """Several images at once, several rows of one, parts of the last group, and more columns than tiles."""
    monkeypatch.setattr(winograd, "_TILES_AT_ONCE", tiles_at_once)
    features = torch.randn(shape, dtype=torch.float64)
    weight, bias = torch.randn(2, 3, 3, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    expected = F.conv2d(features, weight, bias, padding=1)
    torch.testing.assert_close(winograd_conv2d(features, weight, bias), expected, rtol=1e-12, atol=1e-12)


def test_float32_loses_little():
    torch.manual_seed(0)
    features, weight = torch.randn(1, 256, 24, 24), torch.randn(32, 256, 3, 3)
    exact = F.conv2d(features.double(), weight.double(), padding=1)
    error = (winograd_conv2d(features, weight, None) - exact).abs().max()
    assert error < 5e-5 * exact.std()


def test_output_may_be_changed_in_place():
    features = torch.randn(1, 2, 8, 8, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3)
    (gradient,) = torch.autograd.grad(winograd_conv2d(features, weight, None).relu_().sum(), features)
    (expected,) = torch.autograd.grad(F.conv2d(features, weight, padding=1).relu().sum(), features)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_operator_is_sound():
    for shape in [(2, 3, 8, 12), (1, 3, 5, 6)]:
        features, weight, bias = (torch.randn(s, requires_grad=True) for s in (shape, (4, 3, 3, 3), (4,)))
        torch.library.opcheck(_winograd_conv2d, (features, weight, bias))
        torch.library.opcheck(_winograd_conv2d, (features.to(memory_format=torch.channels_last), weight, None))


def test_every_kind_of_derivative_is_the_convolutions():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, generator=generator)
    features = torch.randn(1, 3, 5, 6, dtype=torch.float64, generator=generator)
    assert_same_derivatives(
        lambda features: winograd_conv2d(features, weight, None).sin().sum(),
        lambda features: F.conv2d(features, weight, padding=1).sin().sum(),
        features,
    )
    assert_same_derivatives(
        lambda weight: winograd_conv2d(features, weight, None).sin().sum(),
        lambda weight: F.conv2d(features, weight, padding=1).sin().sum(),
        weight,
    )
