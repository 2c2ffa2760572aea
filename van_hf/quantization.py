# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Exported programs with convolutions in int8: weights and, calibrated on pictures, activations.

The runtimes' own packages do it: nncf for OpenVINO, onnxruntime for ONNX. transformers' quantizers are not used: they
take every model for a transformer.
"""

import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from .exports import in_a_line
from .openvino_process import openvino_kept_in_place

if TYPE_CHECKING:
    from transformers.exporters import ExportedModel

INPUT = "pixel_values"
# Attention, layer scales, and the factorization of the Hamburger heads: in int8 they took a B0 with Light-Ham, trained
# on the generated scenes, from 77.75 to 76.86 mean IoU; convolutions and sums alone leave it 77.84.
FLOAT_OPERATIONS = ["MatMul", "Multiply", "Divide"]


class Inputs(Protocol):
    """Pixel values, (batch, channels, height, width) float32 each, that can be gone through more than once."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[torch.Tensor]: ...


def quantize_export(exported: "ExportedModel", name: str, inputs: Inputs) -> None:
    """Quantize a program of `export_model` in place; equal inputs give equal programs.

    Args:
        exported: a program in memory.
        name: its format, "onnx" or "openvino".
        inputs: what the activations' ranges are calibrated on.

    Raises:
        ValueError: the format cannot be quantized, or the quantizer fails.
    """
    quantizers = {"onnx": _quantize_onnx, "openvino": _quantize_openvino}
    if name not in quantizers:
        raise ValueError(f"int8 is for {' and '.join(quantizers)}, not for {name}")
    (component,) = exported.components.values()
    try:
        with openvino_kept_in_place():
            component.program = quantizers[name](component.program, inputs)
    except Exception as error:  # of many kinds
        raise ValueError(f"the program cannot be quantized: {in_a_line(error)}") from error
    exported._runners = None


def _quantize_openvino(program, inputs: Inputs):
    nncf = import_module("nncf")
    # That of the Hamburger heads' bases stays in float too: OpenVINO 2026.4 cannot compile it in int8.
    of_bases = [
        op.get_friendly_name()
        for op in program.get_ordered_ops()
        if op.get_type_name() == "Convolution" and op.input_value(0).get_node().get_type_name() == "Unsqueeze"
    ]
    return nncf.quantize(
        program,
        nncf.Dataset(inputs, lambda pixel_values: {INPUT: pixel_values.numpy()}),
        subset_size=len(inputs),
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=of_bases, types=FLOAT_OPERATIONS, validate=False),
        # Weights of 7 bits: sums of two products of 8 overflow on processors without VNNI.
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
    )


def _quantize_onnx(program, inputs: Inputs):
    onnx_ir, quantization = import_module("onnx_ir"), import_module("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.inputs = iter(inputs)

        def get_next(self):
            pixel_values = next(self.inputs, None)
            return None if pixel_values is None else {INPUT: pixel_values.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, name)) for name in ("float.onnx", "int8.onnx")]
        onnx_ir.save(onnx_ir.external_data.load_to_model(program), paths[0])
        quantization.quantize_static(
            *paths,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            reduce_range=True,  # as with OpenVINO
            # Ranges are the pictures' averages, not the widest of all: the same B0 has 77.17 mean IoU, not 76.53.
            extra_options={"CalibMovingAverage": True},
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        quantized = onnx_ir.load(paths[1])
        for value in quantized.graph.initializers.values():  # into memory: the file goes
            value.const_value = onnx_ir.tensor(value.const_value.numpy(), name=value.name)
        quantized.meta.pop("path", None)
        return quantized
