# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Triton kernels for the two depthwise convolutions of VAN's large-kernel attention on a GPU.

One kernel computes a depthwise convolution and, with its taps in reverse, the gradient of its input; another the
gradient of its weights. Both work in channels-last: a thread then holds 8 neighbouring channels of a pixel, so that
an access is 16 bytes wide and aligned whatever the dilation, and each address and bound check serves 8 channels.

The 5x5 and the 7x7 convolution are not fused: 49 + 25 multiply-adds for an element read and one written are bound by
instructions, not by memory, and the 5x5 convolution over the halo of 9 pixels on each side of a tile adds more of them
than the one pass over memory it saves is worth.
"""

import torch
from torch.nn import functional as F

from .custom_operators import is_transformed, operator_namespace

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

NAMESPACE = operator_namespace(__name__, "depthwise_conv2d")
# Pixels times channels of a program's tile: what its accumulators leave registers for, by the report of
# Triton 3.9 for sm_90 (at most 104 and 97 registers per thread for 16-bit values, nothing spilled).
_TILE = 2048
_WEIGHT_GRADIENT_TILE = 1024
_WEIGHT_GRADIENT_PROGRAMS = 4096  # several rounds of programs for the 132 multiprocessors of an H100

if triton is not None:

    @triton.jit
    def _convolution_kernel(
        input_ptr,  # (batch, height, width, channels), as output_ptr
        taps_ptr,  # (kernel_size * kernel_size, channels)
        bias_ptr,  # (channels,)
        output_ptr,
        num_pixels,  # batch * height * width
        height,
        width,
        channels,
        KERNEL_SIZE: tl.constexpr,
        DILATION: tl.constexpr,
        HAS_BIAS: tl.constexpr,
        ACCUMULATOR: tl.constexpr,
        PIXELS: tl.constexpr,
        CHANNELS: tl.constexpr,
    ):
        first = tl.program_id(0) * PIXELS
        pixel = first + tl.arange(0, PIXELS)
        row = pixel // width % height
        column = pixel % width
        channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        is_channel = channel < channels
        is_pixel = pixel < num_pixels
        input_ptr += first.to(tl.int64) * channels
        output_ptr += first.to(tl.int64) * channels
        offsets = tl.arange(0, PIXELS)[:, None] * channels + channel[None, :]
        total = tl.zeros((PIXELS, CHANNELS), dtype=ACCUMULATOR)
        if HAS_BIAS:
            total += tl.load(bias_ptr + channel, mask=is_channel, other=0.0).to(ACCUMULATOR)[None, :]
        # A loop at run time: with all taps unrolled, the compiler moves all loads to the front and spills registers.
        for tap_row in range(KERNEL_SIZE):
            shift_y = (tap_row - KERNEL_SIZE // 2) * DILATION
            row_inside = is_pixel & (row + shift_y >= 0) & (row + shift_y < height)
            for tap_column in tl.static_range(KERNEL_SIZE):
                shift_x = (tap_column - KERNEL_SIZE // 2) * DILATION
                inside = row_inside & (column + shift_x >= 0) & (column + shift_x < width)
                values = tl.load(
                    input_ptr + offsets + (shift_y * width + shift_x) * channels,
                    mask=inside[:, None] & is_channel[None, :],
                    other=0.0,
                )
                tap = tl.load(
                    taps_ptr + (tap_row * KERNEL_SIZE + tap_column) * channels + channel, mask=is_channel, other=0.0
                )
                total = tl.fma(values.to(ACCUMULATOR), tap[None, :], total)
        tl.store(
            output_ptr + offsets,
            total.to(output_ptr.dtype.element_ty),
            mask=is_pixel[:, None] & is_channel[None, :],
        )

    @triton.jit
    def _weight_gradient_kernel(
        input_ptr,  # (batch, height, width, channels), as grad_ptr
        grad_ptr,
        partial_ptr,  # (number of programs on axis 2, kernel_size, kernel_size, channels)
        num_pixels,  # batch * height * width
        height,
        width,
        channels,
        KERNEL_SIZE: tl.constexpr,
        DILATION: tl.constexpr,
        ACCUMULATOR: tl.constexpr,
        PIXELS: tl.constexpr,
        CHANNELS: tl.constexpr,
        COLUMNS: tl.constexpr,  # the power of two from KERNEL_SIZE on
    ):
        # One row of taps; every program on axis 2 adds up its own share of the pixels, always in the same order.
        tap_row = tl.program_id(0)
        tap_column = tl.arange(0, COLUMNS)[:, None, None]
        shift_y = (tap_row - KERNEL_SIZE // 2) * DILATION
        shift_x = (tap_column - KERNEL_SIZE // 2) * DILATION
        channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, None, :]
        is_channel = channel < channels
        total = tl.zeros((COLUMNS, PIXELS, CHANNELS), dtype=ACCUMULATOR)
        first = tl.program_id(2) * PIXELS
        while first < num_pixels:  # Triton 3.2's interpreter has no `range` over values known at run time only
            pixel = first + tl.arange(0, PIXELS)[None, :, None]
            row = pixel // width % height + shift_y
            column = pixel % width + shift_x
            is_pixel = (pixel < num_pixels) & (row >= 0) & (row < height)
            inside = is_pixel & (column >= 0) & (column < width) & (tap_column < KERNEL_SIZE)
            offsets = pixel.to(tl.int64) * channels + channel
            grad = tl.load(grad_ptr + offsets, mask=is_pixel & is_channel, other=0.0)
            values = tl.load(
                input_ptr + offsets + (shift_y * width + shift_x) * channels, mask=inside & is_channel, other=0.0
            )
            total = tl.fma(values.to(ACCUMULATOR), grad.to(ACCUMULATOR), total)
            first += tl.num_programs(2) * PIXELS
        taps = (tl.program_id(2) * KERNEL_SIZE + tap_row) * KERNEL_SIZE + tap_column
        tl.store(
            partial_ptr + taps * channels + channel,
            tl.sum(total, axis=1)[:, None, :],
            mask=(tap_column < KERNEL_SIZE) & is_channel,
        )


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _block_channels(channels: int) -> int:
    """64 are a cache line of 16-bit values, 32 half of one; VAN's widths are multiples of 32."""
    return 64 if channels % 64 == 0 else 32


@torch.library.custom_op(
    f"{NAMESPACE}::depthwise_conv2d",
    mutates_args=(),
    schema="(Tensor hidden_states, Tensor weight, Tensor? bias, int dilation) -> Tensor",
)
def _depthwise_conv2d(hidden_states, weight, bias, dilation):
    hidden_states = hidden_states.contiguous(memory_format=torch.channels_last)
    output = torch.empty_like(hidden_states)
    if output.numel() == 0:
        return output
    batch, channels, height, width = hidden_states.shape
    kernel_size = weight.shape[-1]
    accumulator = _accumulator(hidden_states.dtype)
    taps = torch.empty((kernel_size**2, channels), dtype=accumulator, device=weight.device)
    taps.copy_(weight.flatten(1).t())
    num_pixels = batch * height * width
    block_channels = _block_channels(channels)
    pixels = _TILE // block_channels
    with torch.cuda.device_of(hidden_states):
        _convolution_kernel[triton.cdiv(num_pixels, pixels), triton.cdiv(channels, block_channels)](
            hidden_states,
            taps,
            taps if bias is None else bias.contiguous(),
            output,
            num_pixels,
            height,
            width,
            channels,
            KERNEL_SIZE=kernel_size,
            DILATION=dilation,
            HAS_BIAS=bias is not None,
            ACCUMULATOR=tl.float64 if accumulator == torch.float64 else tl.float32,
            PIXELS=pixels,
            CHANNELS=block_channels,
        )
    return output


@_depthwise_conv2d.register_fake
def _(hidden_states, weight, bias, dilation):
    return torch.empty_like(hidden_states, memory_format=torch.channels_last)


@torch.library.custom_op(
    f"{NAMESPACE}::depthwise_conv2d_weight_gradient",
    mutates_args=(),
    schema="(Tensor hidden_states, Tensor grad_output, int kernel_size, int dilation) -> Tensor",
)
def _weight_gradient(hidden_states, grad_output, kernel_size, dilation):
    hidden_states = hidden_states.contiguous(memory_format=torch.channels_last)
    grad_output = grad_output.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = hidden_states.shape
    accumulator = _accumulator(hidden_states.dtype)
    if hidden_states.numel() == 0:
        return hidden_states.new_zeros((channels, 1, kernel_size, kernel_size), dtype=accumulator)
    num_pixels = batch * height * width
    block_channels = _block_channels(channels)
    channel_blocks = triton.cdiv(channels, block_channels)
    pixels = _WEIGHT_GRADIENT_TILE // block_channels
    shares = min(triton.cdiv(num_pixels, pixels), triton.cdiv(_WEIGHT_GRADIENT_PROGRAMS, channel_blocks * kernel_size))
    partial = hidden_states.new_empty((shares, kernel_size, kernel_size, channels), dtype=accumulator)
    with torch.cuda.device_of(hidden_states):
        _weight_gradient_kernel[kernel_size, channel_blocks, shares](
            hidden_states,
            grad_output,
            partial,
            num_pixels,
            height,
            width,
            channels,
            KERNEL_SIZE=kernel_size,
            DILATION=dilation,
            ACCUMULATOR=tl.float64 if accumulator == torch.float64 else tl.float32,
            PIXELS=pixels,
            CHANNELS=block_channels,
            COLUMNS=triton.next_power_of_2(kernel_size),
        )
    return partial.sum(0).permute(2, 0, 1).unsqueeze(1).contiguous()


@_weight_gradient.register_fake
def _(hidden_states, grad_output, kernel_size, dilation):
    return hidden_states.new_empty(
        (hidden_states.shape[1], 1, kernel_size, kernel_size), dtype=_accumulator(hidden_states.dtype)
    )


def _save_convolution(ctx, inputs, output):
    hidden_states, weight, bias, ctx.dilation = inputs
    ctx.save_for_backward(hidden_states, weight, bias)


def _convolution_backward(ctx, grad_output):
    hidden_states, weight, bias = ctx.saved_tensors
    grad_input = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_input = _depthwise_conv2d(grad_output, weight.flip((2, 3)), None, ctx.dilation)
    if ctx.needs_input_grad[1]:
        grad_weight = _weight_gradient(hidden_states, grad_output, weight.shape[-1], ctx.dilation).to(weight.dtype)
    if ctx.needs_input_grad[2]:
        grad_bias = grad_output.sum((0, 2, 3), dtype=_accumulator(grad_output.dtype)).to(bias.dtype)
    return grad_input, grad_weight, grad_bias, None


def _save_weight_gradient(ctx, inputs, output):
    hidden_states, grad_output, _, ctx.dilation = inputs
    ctx.save_for_backward(hidden_states, grad_output)


def _weight_gradient_backward(ctx, grad_weight):
    """The weight's gradient is linear in the input and in the output's gradient, so this is for second derivatives."""
    hidden_states, grad_output = ctx.saved_tensors
    grad_input = _depthwise_conv2d(grad_output, grad_weight.flip((2, 3)), None, ctx.dilation)
    return grad_input, _depthwise_conv2d(hidden_states, grad_weight, None, ctx.dilation), None, None


_depthwise_conv2d.register_autograd(_convolution_backward, setup_context=_save_convolution)
_weight_gradient.register_autograd(_weight_gradient_backward, setup_context=_save_weight_gradient)


def can_run_triton(hidden_states: torch.Tensor) -> bool:
    """Whether Triton is installed and the tensor is one that its kernels take: on a CUDA or ROCm GPU, and float."""
    return triton is not None and hidden_states.is_cuda and hidden_states.is_floating_point()


def triton_depthwise_conv2d(
    hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, dilation: int = 1
) -> torch.Tensor:
    """
    `torch.nn.functional.conv2d` with `groups=channels` and the padding that keeps the size.

    Sums are float32 (float64 for float64 input). Under autocast the input is cast as convolutions' are; the weights,
    which are multiplied as float32 anyway, are not. It can be differentiated any number of times in the reverse mode,
    and gives the same bits every time. Where `torch.func` or the forward mode is at work, torch's own convolution
    runs.

    Args:
        hidden_states: (batch, channels, height, width), float16, bfloat16, float32 or float64. Other layouts than
            channels-last are copied.
        weight: (channels, 1, kernel_size, kernel_size), `kernel_size` odd, any floating type.
        bias: (channels,), any floating type.

    Returns:
        (batch, channels, height, width) in channels-last layout, of the input's type (autocast's under autocast).

    Raises:
        ValueError: the shapes do not fit together.
    """
    channels, kernel_size = hidden_states.shape[1], weight.shape[-1]
    if hidden_states.ndim != 4 or weight.shape != (channels, 1, kernel_size, kernel_size) or kernel_size % 2 == 0:
        raise ValueError(
            "expected hidden_states (batch, channels, height, width), weight (channels, 1, kernel_size, kernel_size) "
            f"and an odd kernel_size, got {tuple(hidden_states.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must hold one number for each of the {channels} channels, got {tuple(bias.shape)}")
    if torch.is_autocast_enabled(hidden_states.device.type):
        hidden_states = hidden_states.to(torch.get_autocast_dtype(hidden_states.device.type))
    if is_transformed(hidden_states, weight, bias):
        padding = dilation * (kernel_size // 2)
        return F.conv2d(hidden_states, weight, bias, padding=padding, dilation=dilation, groups=channels)
    return _depthwise_conv2d(hidden_states, weight, bias, dilation)
