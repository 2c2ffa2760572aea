# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What the scripts that segment people's pictures share: finding and reading them, and the forms of the result."""

import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from .bands import check_is_rgb, read_bands
from .exports import ExportedSegmentationModel
from .inference import PICTURE_FORMATS, Protocol, find_export_problems, load_model
from .model.configuration_van import VanConfig
from .model.image_processing_van import VanImageProcessor
from .model.modeling_van import VanForSemanticSegmentation
from .visualization import class_shares, mask_image, palette_of

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def list_pictures(folder: Path, recursive: bool, output_dir: Path) -> list[Path]:
    """Return the pictures of a folder, in the order of their paths, relative to it.

    Args:
        folder: hidden files, files that are no pictures by their suffix, and `output_dir` are left out.
        recursive: whether to go into the folders of folders.
        output_dir: where outputs of earlier runs may lie.
    """
    outputs = os.path.realpath(output_dir)  # unlike Path.resolve, it bears links that lead in a circle
    return [
        path.relative_to(folder)
        for path in sorted(folder.glob("**/*" if recursive else "*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
        and not Path(os.path.realpath(path)).is_relative_to(outputs)
    ]


def load_predictor(
    name_or_path: str,
    protocol: Protocol,
    dtype: str,
    device: str | torch.device | None = None,
    trust_pickle: bool = False,
    num_threads: int | None = None,
) -> tuple[VanForSemanticSegmentation | ExportedSegmentationModel, VanImageProcessor]:
    """Load a model, or an export, that can segment pictures as it is asked to, and its image processor.

    Args:
        name_or_path, device, trust_pickle, num_threads: see [`load_model`].
        protocol: how pictures are to be segmented.
        dtype: what a model is to compute in, such as "bfloat16"; an export has its own, and takes "float32" alone.

    Raises:
        ValueError, OSError: see [`load_model`]; or it is an export that cannot do what is asked for.
    """
    model, image_processor = load_model(name_or_path, device, trust_pickle, num_threads)
    check_predictor(model, name_or_path, protocol, dtype)
    return model, image_processor


def check_predictor(
    model: VanForSemanticSegmentation | ExportedSegmentationModel, name_or_path: str, protocol: Protocol, dtype: str
) -> None:
    """Raise a `ValueError` if the model is an export that cannot do what is asked for, see [`load_predictor`]."""
    if isinstance(model, ExportedSegmentationModel):
        if dtype != "float32":
            raise ValueError(f"--dtype: {name_or_path} computes in its own precision, {model.info.precision}")
        if problems := find_export_problems(model, protocol, name_or_path):
            raise ValueError("; ".join(problems))


def read_picture(file: Path | BinaryIO, image_processor: VanImageProcessor) -> torch.Tensor:
    """Return a picture upright, transparent ones over white: uint8 (3, height, width).

    For an image processor with bands it is float32 (bands, height, width), see [`read_bands`].

    Raises:
        Exception: it is damaged, or of a format that is not in `PICTURE_FORMATS`; Pillow's errors are of many kinds.
    """
    if image_processor.bands is not None:
        return read_bands(file if isinstance(file, Path) else file.read(), image_processor.bands)
    with Image.open(file, formats=PICTURE_FORMATS) as image:
        check_is_rgb(image)
        return image_processor.process_image(image, do_convert_rgb=True)


def mask_png(labels: np.ndarray, config: VanConfig) -> bytes:
    """Return the PNG file of a label map, integers (height, width); see [`mask_image`] for its mode and colours."""
    file = io.BytesIO()
    mask_image(labels, palette_of(config)).save(file, format="PNG")
    return file.getvalue()


def describe_classes(labels: np.ndarray, id2label: dict[int, str]) -> list[dict]:
    """Return `label`, `id` and `share` of the pixels, from 0 to 1, of each class that occurs, the largest first.

    Args:
        labels: integers (height, width), keys of `id2label`.
    """
    return [{"label": id2label[label], "id": label, "share": share} for label, share in class_shares(labels).items()]
