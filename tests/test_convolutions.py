# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import itertools
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from van_hf import VanConfig
from van_hf.model import convolutions
from van_hf.model.convolutions import (
    conv2d,
    conv2d_over_upsampled,
    conv2d_over_upsampled_reference,
    conv2d_reference,
    depthwise_conv2d,
    depthwise_conv2d_reference,
    in_bands,
    use_forms,
)
from van_hf.model.modeling_van import VanMlpLayer
from van_hf.model.winograd import _winograd_conv2d


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def parameters(*shapes, dtype=torch.float32):
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def fast(operation, *arguments):
    with use_forms("fast"):
        return operation(*arguments)


def assert_same_convolution(operation, reference, arguments, tensors, rtol=1e-5):
    """Values and all gradients; errors are relative to the largest number."""
    results, expected = [], []
    for function, found in ((lambda: fast(operation, *arguments), results), (lambda: reference(*arguments), expected)):
        output = function()
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
        found.extend((output, *torch.autograd.grad(output, tensors, direction)))
    for result, value in zip(results, expected, strict=True):
        assert result.shape == value.shape and result.dtype == value.dtype
        assert (result.double() - value.double()).abs().max() <= rtol * value.double().abs().max()


def counts_of(function) -> dict[str, int]:
    """How often each of torch's operators is called."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        function()
    return {event.key: event.count for event in profiler.key_averages()}


# Sizes that the dilation divides and does not, maps smaller than the kernel, one row.
@pytest.mark.parametrize("size", [(12, 9), (13, 17), (4, 5), (1, 7)])
def test_depthwise_convolution_in_phases(size):
    for dilation in (3, 2):
        features, weight, bias = tensors = parameters((2, 6, *size), (6, 1, 7, 7), (6,))
        for arguments in (tensors, (features.to(memory_format=torch.channels_last), weight, bias), (features, weight)):
            used = [features, weight, bias][: len(arguments)]
            dilated = [partial(f, dilation=dilation) for f in (depthwise_conv2d, depthwise_conv2d_reference)]
            assert_same_convolution(*dilated, arguments, used)


def test_phases_smaller_than_the_kernel_take_the_taps_that_meet_them():
    features, weight = parameters((2, 6, 8, 5), (6, 1, 7, 7))
    with FlopCounterMode(display=False) as counter:
        fast(partial(depthwise_conv2d, dilation=3), features, weight)
    # Of 3 x 2 pixels each, two phases a side of the kernel's middle: 5 x 3 taps.
    assert counter.get_total_flops() == 2 * (2 * 9 * 6) * (3 * 2) * (5 * 3)


@pytest.mark.parametrize("batch, size", [(1, (16, 16)), (3, (13, 10)), (2, (3, 5)), (1, (1, 1)), (2, (40, 60))])
def test_convolution_by_winograd(batch, size):
    features, weight, bias = parameters((batch, 6, *size), (5, 6, 3, 3), (5,))
    assert_same_convolution(conv2d, conv2d_reference, (features, weight, bias), [features, weight, bias])
    last = features.to(memory_format=torch.channels_last)
    assert_same_convolution(conv2d, conv2d_reference, (last, weight), [features, weight])


# Sizes of maps: halvings as VAN has them, other ratios, a map that is larger, one that is of the same size, one row.
MAP_SIZES = [
    ((16, 24), (8, 12), (4, 6), (2, 3)),
    ((13, 18), (7, 9), (4, 5), (1, 2)),
    ((9, 11), (7, 10), (12, 5)),
    ((6, 7), (6, 7), (3, 7)),
    ((1, 8), (1, 3)),
    ((5, 6),),
]


@pytest.mark.parametrize("sizes", MAP_SIZES)
def test_convolution_over_upsampled_maps(sizes):
    maps = parameters(*[(2, 3 + idx, *size) for idx, size in enumerate(sizes)])
    weight, bias = parameters((4, sum(features.shape[1] for features in maps), 3, 3), (4,))
    functions = (conv2d_over_upsampled, conv2d_over_upsampled_reference)
    assert_same_convolution(*functions, (maps, weight, bias), [*maps, weight, bias])
    maps_last = [features.to(memory_format=torch.channels_last) for features in maps]
    assert_same_convolution(*functions, (maps_last, weight), [*maps, weight])


def test_convolution_over_upsampled_maps_in_half_precision():
    maps = [features.bfloat16() for features in parameters((2, 8, 16, 24), (2, 8, 8, 12), (2, 8, 4, 6))]
    weight = parameters((4, 24, 3, 3))[0].bfloat16()
    tensors = [features.detach().requires_grad_() for features in maps]
    weight = weight.detach().requires_grad_()
    functions = (conv2d_over_upsampled, conv2d_over_upsampled_reference)
    assert_same_convolution(*functions, (tensors, weight), [*tensors, weight], rtol=0.03)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = fast(conv2d_over_upsampled, [features.float() for features in maps], weight.float())
    assert output.dtype == torch.bfloat16
    expected = conv2d_over_upsampled_reference([features.float() for features in maps], weight.float())
    assert (output - expected).abs().max() < 0.03 * expected.abs().max()


def test_convolution_over_upsampled_maps_neither_copies_nor_keeps_its_largest_map():
    *maps, weight = parameters((8, 4, 32, 32), (8, 4, 16, 16), (16, 8, 3, 3))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        fast(conv2d_over_upsampled, maps, weight)
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    peak = max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    output, mixed, tall = (4 * 8 * 16 * numbers for numbers in (32 * 32, 9 * 16 * 16, 3 * 16 * 32))
    assert peak < output + mixed + tall + output  # so that at no time there are all and the upsampled output


# Heights that the bands divide and do not; two pictures fit a band together, one does, none does.
@pytest.mark.parametrize("size", [(2, 4, 8), (3, 8, 8), (1, 32, 8), (2, 33, 8), (1, 35, 100)])
def test_layers_in_bands_of_rows(size, monkeypatch):
    monkeypatch.setattr(convolutions, "BAND_BYTES", 4 * 6 * 8 * 8)  # 8 rows of 8 pixels
    features, weight, bias = torch.randn(size[0], 6, *size[1:]), torch.randn(6, 1, 5, 5), torch.randn(6)
    heights = []

    def spatial(maps):
        return depthwise_conv2d(maps, weight, bias)

    def pointwise(maps):
        heights.append(maps.shape[-2])
        return torch.relu(maps)

    with torch.no_grad():
        output = in_bands(spatial, pointwise, features, widest=6, reach=2)
    torch.testing.assert_close(output, torch.relu(spatial(features)))
    assert max(heights) <= max(8, 8 * 2) and sum(heights) == size[1] * (size[0] if size != (2, 4, 8) else 1)


def test_a_layer_with_a_hook_or_a_gradient_or_dropout_sees_whole_maps(monkeypatch):
    monkeypatch.setattr(convolutions, "BAND_BYTES", 1)
    layer = VanMlpLayer(VanConfig(), hidden_size=4, mlp_ratio=2).eval()
    features, heights, convolve = torch.randn(1, 4, 20, 5), [], layer.depth_wise.forward
    layer.depth_wise.forward = lambda maps: heights.append(maps.shape[2]) or convolve(maps)
    expected = layer(features)
    with torch.inference_mode():
        torch.testing.assert_close(layer(features), expected)
    assert len(heights) == 4 and heights[0] == 20 > max(heights[1:])
    del heights[:]
    with torch.no_grad():
        with layer.out_dense.register_forward_hook(lambda *_: None):
            layer(features)
        layer.train()(features)
    assert heights == [20, 20]


def test_gradcheck_of_convolutions():
    with use_forms("fast"):
        features, weight, depthwise, bias = parameters(
            (1, 2, 5, 6), (2, 2, 3, 3), (2, 1, 3, 3), (2,), dtype=torch.float64
        )
        assert torch.autograd.gradcheck(conv2d, (features, weight, bias))
        assert torch.autograd.gradcheck(lambda *inputs: depthwise_conv2d(*inputs, 3), (features, depthwise, bias))
        low, both = parameters((1, 1, 3, 2), (2, 3, 3, 3), dtype=torch.float64)
        assert torch.autograd.gradcheck(
            lambda high, low, *others: conv2d_over_upsampled([high, low], *others), (features, low, both, bias)
        )


def test_the_form_follows_what_was_measured():
    features, weight = torch.randn(1, 128, 32, 32), torch.randn(128, 128, 3, 3)
    winograd = _winograd_conv2d._qualname
    assert counts_of(lambda: conv2d(features, weight))[winograd] == 1
    for function in (
        lambda: conv2d(features[..., :31], weight),  # too few pixels to pay for the transforms
        lambda: conv2d(features[:, :64], weight[:, :64]),  # too few channels
        lambda: conv2d(features, weight[..., 1:2, 1:2]),
        lambda: conv2d(features.bfloat16(), weight.bfloat16()),
    ):
        assert winograd not in counts_of(function)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv2d(features, weight).dtype == torch.bfloat16
    with use_forms("plain"):
        assert winograd not in counts_of(lambda: conv2d(features, weight))


def test_forms_hold_within_their_block():
    features, weight = torch.randn(1, 2, 8, 8), torch.randn(2, 2, 3, 3)
    with pytest.raises(KeyError), use_forms("fast"):
        assert _winograd_conv2d._qualname in counts_of(lambda: conv2d(features, weight))
        raise KeyError
    assert _winograd_conv2d._qualname not in counts_of(lambda: conv2d(features, weight))
    with pytest.raises(ValueError, match="measured, plain, fast, got 'quick'"), use_forms("quick"):
        pass


class Convolutions(torch.nn.Module):
    def __init__(self):
        super().__init__()
        shapes = (4, 9, 3, 3), (4, 4, 3, 3), (4, 1, 7, 7)
        self.weights = torch.nn.ParameterList(weight.detach() / 9 for weight in parameters(*shapes))

    def forward(self, high, low):
        features = conv2d(conv2d_over_upsampled([high, low], self.weights[0]), self.weights[1])
        return depthwise_conv2d(features, self.weights[2], None, 3)


def test_convolutions_compiled_as_one_graph():
    inputs = parameters((1, 4, 9, 12), (1, 5, 5, 6))
    module = Convolutions()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = [
        (output := fast(function, *inputs), *torch.autograd.grad(output.square().sum(), [*inputs, *module.weights]))
        for function in (module, compiled)
    ]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-4)


def test_exports_hold_torchs_own_operators_only():
    """And still the convolution over upsampled maps in its fast form, at any size."""
    inputs = [features.detach() for features in parameters((1, 4, 10, 12), (1, 5, 5, 6))]
    dim = torch.export.Dim.DYNAMIC
    shapes = {"high": {2: dim, 3: dim}, "low": {2: dim, 3: dim}}
    with use_forms("fast"):
        exported = torch.export.export(Convolutions(), tuple(inputs), dynamic_shapes=shapes, strict=False)
    names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not [name for name in names if "van_hf" in name]
    assert any("matmul" in name for name in names)
    module = Convolutions()
    module.load_state_dict(exported.state_dict)
    for high, low in (inputs, parameters((1, 4, 13, 16), (1, 5, 7, 4))):
        with use_forms("plain"):
            torch.testing.assert_close(exported.module()(high, low), module(high, low), rtol=1e-4, atol=1e-3)
