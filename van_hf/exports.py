# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Models for other runtimes: export by transformers' exporters, and the check of what came out in its own runtime.

This is the one place that knows `transformers.exporters`, which are experimental, and need transformers 5.23, torch
2.11 and the packages of setup.cfg's extra `export`.
"""

import copy
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from .inference import RATIOS
from .model.image_processing_van import VanImageProcessor
from .model.interpolation import resize_to
from .model.modeling_van import VanForSemanticSegmentation

if TYPE_CHECKING:
    from transformers.exporters import ExportedModel

# Sides in pixels that a program of free size takes; below, a stage's map would have a single row.
MIN_SIDE, MAX_SIDE = 33, 4096


class ExportFormat(NamedTuple):
    """A runtime's format.

    Attributes:
        exporter, config: names of the classes in `transformers.exporters`.
        packages: what must be installed besides torch, by the names to import.
        options: of the runtime, for [`load_export`].
    """

    exporter: str
    config: str
    packages: tuple[str, ...] = ()
    options: dict = {}


EXPORT_FORMATS = {
    "onnx": ExportFormat("OnnxExporter", "OnnxConfig", ("onnx", "onnxscript", "onnxruntime")),
    # Processors with instructions for bfloat16 would compute in it, unless told not to.
    "openvino": ExportFormat(
        "OpenVINOExporter", "OpenVINOConfig", ("openvino",), {"config": {"INFERENCE_PRECISION_HINT": "f32"}}
    ),
    "torch_export": ExportFormat("DynamoExporter", "DynamoConfig"),
}


class ExportCheck(NamedTuple):
    """How far an exported program is from its model.

    Attributes:
        num_pictures: number of pictures that both segmented.
        sizes: `(height, width)` of the inputs in pixels, without repeats, in order.
        largest_difference: of the scores.
        largest_score: by its absolute value, to compare it with.
        agreement: share of the scores' pixels, 0 to 1, with the same label.
    """

    num_pictures: int
    sizes: list[tuple[int, int]]
    largest_difference: float
    largest_score: float
    agreement: float


def check_packages(name: str) -> None:
    """Raise a ValueError that names what is missing for a format, one of `EXPORT_FORMATS`."""
    missing = [package for package in EXPORT_FORMATS[name].packages if find_spec(package) is None]
    if find_spec("transformers.exporters") is None:
        missing.insert(0, "transformers>=5.23")
    if missing:
        raise ValueError(f'{name} needs {", ".join(missing)}, not installed here: pip install -e ".[export]"')


def export_model(model: VanForSemanticSegmentation, name: str, size: tuple[int, int] | None = None) -> "ExportedModel":
    """Export a model, fused, as a program that takes `pixel_values` and returns `logits`, both float32.

    Args:
        model: a segmentation model in float32; it is left as it is.
        name: one of `EXPORT_FORMATS`.
        size: `(height, width)` in pixels of the one picture that the program takes. By default it takes
            (batch, channels, height, width) of any batch, and sides of 33 to 4096 pixels.

    Raises:
        ValueError: packages are missing, a side is not of 33 to 4096 pixels, or the exporter fails.
    """
    check_packages(name)
    if size is not None and not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
        raise ValueError(f"an export's height and width must be {MIN_SIDE} to {MAX_SIDE} pixels, got {size}")
    exporters, format = import_module("transformers.exporters"), EXPORT_FORMATS[name]
    model = copy.deepcopy(model).cpu().fuse()
    # Sides that differ, and none that divides the other, so that the program does not depend on such a thing.
    batch, height, width = (2, 96, 160) if size is None else (1, *size)
    inputs = {"pixel_values": torch.zeros(batch, model.config.num_channels, height, width)}
    config = getattr(exporters, format.config)()
    if size is None:
        sides = {2: torch.export.Dim("height", min=MIN_SIDE, max=MAX_SIDE)}
        sides[3] = torch.export.Dim("width", min=MIN_SIDE, max=MAX_SIDE)
        config.dynamic_shapes = {"pixel_values": {0: torch.export.Dim("batch"), **sides}}
    try:
        return getattr(exporters, format.exporter)().export(model, inputs, config)
    except Exception as error:  # of many kinds, most of them thousands of lines long
        reason = next(iter(str(error).splitlines()), "")[:500]
        raise ValueError(f"the model cannot be exported to {name}: {type(error).__name__}: {reason}") from error


def load_export(folder: Path, name: str) -> "ExportedModel":
    """Load what [`export_model`]'s `save_pretrained` wrote, on the CPU, in its own runtime.

    Args:
        folder: the folder.
        name: its format, one of `EXPORT_FORMATS`. Loading "torch_export" runs code of the file.

    Returns:
        A callable with `config`, `device` and `dtype` that takes `pixel_values`, (batch, channels, height, width)
        float32, by this name, and returns an object with `logits`.
    """
    check_packages(name)
    exported_model = import_module("transformers.exporters").ExportedModel
    trust = name == "torch_export"
    return exported_model.from_pretrained(
        folder, device="cpu", trust_remote_code=trust, **EXPORT_FORMATS[name].options
    )


@torch.inference_mode()
def check_export(
    exported: "ExportedModel",
    model: VanForSemanticSegmentation,
    image_processor: VanImageProcessor,
    pictures: Iterable[torch.Tensor],
    size: tuple[int, int] | None = None,
) -> ExportCheck:
    """Run an exported program and its model on the same pictures.

    Args:
        exported: of [`load_export`].
        model: what was exported, in evaluation mode, float32, on the CPU.
        image_processor: the model's.
        pictures: uint8 (3, height, width) each, at least one.
        size: `(height, width)` of a program of a fixed size; else each picture is taken at another multiple of the
            image processor's size, of those of multi-scale inference, and two are taken at once in the end.
    """
    sizes, num_pictures, num_pixels, num_equal, difference, largest = {}, 0, 0, 0, 0.0, 0.0
    for pixel_values in _inputs(image_processor, pictures, size):
        expected, logits = model(pixel_values).logits, exported(pixel_values=pixel_values).logits
        if logits.shape != expected.shape:
            raise ValueError(
                f"the exported program returns scores of shape {tuple(logits.shape)} for an input of "
                f"{tuple(pixel_values.shape)}, the model {tuple(expected.shape)}"
            )
        sizes[tuple(pixel_values.shape[-2:])] = None
        num_pictures += len(pixel_values)
        num_pixels += expected[:, 0].numel()
        num_equal += (logits.argmax(dim=1) == expected.argmax(dim=1)).sum().item()
        # NaN is a difference like no other: `max` would lose it.
        difference = max(difference, torch.nan_to_num((logits - expected).abs(), nan=torch.inf).max().item())
        largest = max(largest, expected.abs().max().item())
    return ExportCheck(num_pictures, sorted(sizes), difference, largest, num_equal / num_pixels)


def _inputs(
    image_processor: VanImageProcessor, pictures: Iterable[torch.Tensor], size: tuple[int, int] | None
) -> Iterator[torch.Tensor]:
    """Yield `pixel_values` of one picture each; without a size, of one picture and its mirror image in the end."""
    pixel_values = None
    for picture, ratio in zip(pictures, cycle(RATIOS)):
        pixel_values = image_processor(picture, return_tensors="pt")["pixel_values"]
        own_size = [round(side * ratio) for side in pixel_values.shape[-2:]]
        pixel_values = resize_to(pixel_values, size or tuple(min(max(s, MIN_SIDE), MAX_SIDE) for s in own_size))
        yield pixel_values
    if size is None and pixel_values is not None:
        yield torch.cat([pixel_values, pixel_values.flip(-1)])
