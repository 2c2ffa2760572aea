# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Without a GPU the kernels run in Triton's interpreter, on tiny sizes. Triton reads the setting when it is imported,
which other tests may have done: so the tests that need it run in a process of their own, all of them in one."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from van_hf.model import triton_convolutions
from van_hf.model.convolutions import depthwise_conv2d_reference
from van_hf.model.triton_convolutions import triton_depthwise_conv2d

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(triton_convolutions.triton is None, reason="Triton is not installed")
# (batch, channels, height, width): within the dilated kernel's reach; blocks of channels and pixels that are not full
SHAPES = [(2, 5, 7, 11), (1, 33, 4, 3), (3, 2, 1, 25)]


def make_arguments(shape=SHAPES[0], dtype=torch.float32, weight_dtype=None, kernel_sizes=(3, 3), device="cpu"):
    """Kernels are 3x3 where nothing depends on their size: the interpreter takes a millisecond or more for a tap."""
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]
    first, second = kernel_sizes
    shapes = [shape, (channels, 1, first, first), (channels,), (channels, 1, second, second), (channels,)]
    scales = [1, 1 / first, 1, 1 / second, 1]  # sums stay near 1
    dtypes = [dtype] + [weight_dtype or dtype] * 4
    return [
        (torch.randn(size, generator=generator) * scale).to(device, dtype).requires_grad_()
        for size, scale, dtype in zip(shapes, scales, dtypes, strict=True)
    ]


def load_copy(name):
    spec = importlib.util.spec_from_file_location(name, triton_convolutions.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def large_kernel_depthwise(hidden_states, weight, bias, dilated_weight, dilated_bias, conv=triton_depthwise_conv2d):
    """The depthwise part of VAN's large-kernel attention."""
    return conv(conv(hidden_states, weight, bias), dilated_weight, dilated_bias, 3)


def plain_large_kernel_depthwise(*arguments):
    return large_kernel_depthwise(*arguments, conv=depthwise_conv2d_reference)


def output_and_gradients(function, arguments):
    output = function(*arguments)
    grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return output, *torch.autograd.grad(output, arguments, grad_output)


def assert_equal_to_plain(arguments, tolerance):
    """Values and all gradients, against the definition in float64; errors are relative to the tensor's norm."""
    results = output_and_gradients(large_kernel_depthwise, arguments)
    exact = [argument.detach().double().requires_grad_() for argument in arguments]
    expected = output_and_gradients(plain_large_kernel_depthwise, exact)
    assert [result.shape for result in results] == [value.shape for value in expected]
    assert [result.dtype for result in results] == [arg.dtype for arg in (arguments[0], *arguments)]
    for name, result, value in zip(
        ("output", "x", "w", "b", "dilated w", "dilated b"), results, expected, strict=True
    ):
        error = (result.double() - value).norm() / value.norm()
        assert error < tolerance, f"{name}: {error:.2e}"


def test_can_run_needs_a_gpu():
    assert not triton_convolutions.can_run_triton(torch.zeros(1, 2, 3, 4))


def test_imports_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert load_copy("van_hf.model.triton_convolutions_without_triton").triton is None


def test_shapes_are_checked():
    hidden_states = torch.zeros(1, 4, 3, 3)
    for weight_shape in [(4, 1, 4, 4), (4, 1, 3, 5), (2, 1, 3, 3), (4, 2, 3, 3)]:
        with pytest.raises(ValueError, match="odd kernel_size"):
            triton_depthwise_conv2d(hidden_states, torch.zeros(weight_shape))
    with pytest.raises(ValueError, match=r"each of the 4 channels, got \(3,\)"):
        triton_depthwise_conv2d(hidden_states, torch.zeros(4, 1, 3, 3), torch.zeros(3))


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="is in the interpreter's process already")
def test_in_the_interpreter():
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::TestInterpreted"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and "skipped" not in result.stdout, result.stdout + result.stderr


@needs_triton
@pytest.mark.skipif(not INTERPRETED, reason="test_in_the_interpreter runs these")
class TestInterpreted:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_float32(self, shape):
        assert_equal_to_plain(make_arguments(shape, kernel_sizes=(5, 7)), 1e-6)

    # Sums are float32, so that errors are those of rounding x, the result between the convolutions and the output.
    @pytest.mark.parametrize(
        "dtype, weight_dtype, tolerance",
        [
            (torch.bfloat16, torch.bfloat16, 8e-3),
            (torch.bfloat16, torch.float32, 8e-3),
            (torch.float16, torch.float16, 1e-3),
        ],
        ids=str,
    )
    def test_16_bits(self, dtype, weight_dtype, tolerance):
        assert_equal_to_plain(make_arguments(dtype=dtype, weight_dtype=weight_dtype), tolerance)

    def test_layouts(self):
        arguments = make_arguments()
        expected = large_kernel_depthwise(*arguments)
        assert expected.is_contiguous(memory_format=torch.channels_last)
        channels_last = arguments[0].to(memory_format=torch.channels_last)
        strided = torch.stack([arguments[0]] * 2, dim=-1)[..., 1]
        for hidden_states in (channels_last, strided):
            assert torch.equal(large_kernel_depthwise(hidden_states, *arguments[1:]), expected)

    def test_gradient_of_a_sum(self):  # its strides are all 0
        hidden_states, weight, bias, _, _ = make_arguments()
        inputs = (hidden_states, weight, bias)
        gradients = torch.autograd.grad(triton_depthwise_conv2d(*inputs).sum(), inputs)
        expected = torch.autograd.grad(F.conv2d(*inputs, padding=1, groups=5).sum(), inputs)
        torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-5)

    def test_first_and_second_derivatives(self):
        hidden_states, weight, bias, _, _ = make_arguments((2, 2, 3, 4), dtype=torch.float64)
        arguments = (hidden_states, weight, bias, 2)
        assert torch.autograd.gradcheck(triton_depthwise_conv2d, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(triton_depthwise_conv2d, arguments, fast_mode=True)

    @pytest.mark.parametrize("programs", [1, 9], ids=str)
    def test_weight_gradient_in_shares(self, monkeypatch, programs):
        """Each program adds up three tiles of pixels, or one; the sum has the same bits every time."""
        monkeypatch.setattr(triton_convolutions, "_WEIGHT_GRADIENT_PROGRAMS", programs)
        hidden_states, weight, bias, _, _ = make_arguments((2, 3, 5, 7))
        first, second = (
            torch.autograd.grad(triton_depthwise_conv2d(hidden_states, weight, bias, 2).square().sum(), weight)[0]
            for _ in range(2)
        )
        (expected,) = torch.autograd.grad(
            F.conv2d(hidden_states, weight, bias, padding=2, dilation=2, groups=3).square().sum(), weight
        )
        assert torch.equal(first, second)
        torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-5)

    def test_nothing_to_compute(self):
        arguments = make_arguments((0, 3, 4, 5))
        output, *gradients = output_and_gradients(large_kernel_depthwise, arguments)
        assert output.shape == (0, 3, 4, 5) and not any(gradient.any() for gradient in gradients)

    def test_autocast(self):
        arguments = make_arguments()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = large_kernel_depthwise(*arguments)
        gradients = torch.autograd.grad(output.float().square().sum(), arguments)
        assert output.dtype == torch.bfloat16 and all(gradient.dtype == torch.float32 for gradient in gradients)
        torch.testing.assert_close(output.float(), plain_large_kernel_depthwise(*arguments), rtol=0.02, atol=0.02)

    def test_compiles_without_graph_breaks(self):
        compiled = torch.compile(triton_depthwise_conv2d, backend="aot_eager", fullgraph=True)
        arguments = make_arguments()[:3]
        results = output_and_gradients(compiled, arguments)
        torch.testing.assert_close(
            results, output_and_gradients(triton_depthwise_conv2d, arguments), rtol=1e-5, atol=1e-5
        )

    def test_operators_are_well_formed(self):
        hidden_states, weight, bias, _, _ = make_arguments((2, 3, 4, 5))
        torch.library.opcheck(triton_convolutions._depthwise_conv2d, (hidden_states, weight, bias, 2))
        torch.library.opcheck(triton_convolutions._weight_gradient, (hidden_states, hidden_states.detach() + 1, 3, 2))

    def test_loads_twice(self):
        """As when the package and a model that brings its own code are in one process."""
        copies = [load_copy(name) for name in ("van_hf.model.triton_convolutions_copy", triton_convolutions.__name__)]
        hidden_states, weight, _, _, _ = make_arguments((1, 2, 3, 4))
        for module in (triton_convolutions, *copies):
            output = module.triton_depthwise_conv2d(hidden_states, weight)
            assert torch.equal(output, triton_depthwise_conv2d(hidden_states, weight))
            assert all(gradient.any() for gradient in torch.autograd.grad(output.sum(), (hidden_states, weight)))


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="needs a GPU")
class TestOnGpu:
    # A stage of VAN-B2 each on pictures of 512 x 512, and widths and sizes that fill no block.
    @pytest.mark.parametrize("shape", [(4, 64, 128, 128), (4, 320, 32, 32), (2, 160, 33, 47), (2, 7, 5, 3)], ids=str)
    @pytest.mark.parametrize(
        "dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)], ids=str
    )
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
    def test_equals_the_definition(self, shape, dtype, tolerance, memory_format):
        arguments = make_arguments(shape, dtype, kernel_sizes=(5, 7), device="cuda")
        arguments[0] = arguments[0].detach().to(memory_format=memory_format).requires_grad_()
        assert triton_convolutions.can_run_triton(arguments[0])
        assert_equal_to_plain(arguments, tolerance)

    def test_compiled_under_autocast(self):
        arguments = make_arguments((2, 64, 32, 32), kernel_sizes=(5, 7), device="cuda")
        compiled = torch.compile(large_kernel_depthwise, fullgraph=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            output = compiled(*arguments)
            expected = large_kernel_depthwise(*arguments)
        assert output.dtype == torch.bfloat16
        for result, value in zip(
            torch.autograd.grad(output.float().square().sum(), arguments),
            torch.autograd.grad(expected.float().square().sum(), arguments),
            strict=True,
        ):
            torch.testing.assert_close(result, value, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(output, expected)
