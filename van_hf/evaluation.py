# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Mean IoU of a model on a dataset's validation split, on one or several processes."""

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

from .data import SegmentationDataset, read_example
from .image_processing_van import VanImageProcessor
from .inference import multi_scale_flip_inference, slide_inference, whole_inference
from .metrics.mean_iou.mean_iou import confusion_matrix, scores_from_confusion_matrix
from .modeling_van import VanForSemanticSegmentation

MAX_THREADS = 8
# By the names that accelerate has for them.
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Protocol:
    """How pictures are segmented for a figure. Predictions are always compared at the pictures' own sizes.

    Attributes:
        mode: "whole" pictures, or "slide": window by window, scores averaged where windows overlap.
        crop_size: side of the windows in pixels, None with "whole".
        stride: step between windows in pixels, None with "whole".
        ratios: sizes of the views whose class probabilities are averaged, as shares of the image processor's size.
        flip: whether each view is taken mirrored too.
    """

    mode: str = "whole"
    crop_size: int | None = None
    stride: int | None = None
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False

    def describe(self) -> str:
        """Returns the protocol in words."""
        scales = "single scale"
        if len(self.ratios) > 1:
            scales = f"multi-scale ({', '.join(map(str, self.ratios))})"
        windows = "whole image"
        if self.mode == "slide":
            windows = f"windows of {self.crop_size} pixels every {self.stride}"
        return f"{scales}{' + flip' if self.flip else ''}, {windows}, compared at the original size"


def digest_of_weights(model: VanForSemanticSegmentation) -> str:
    """Returns what tells a model's weights from all others, in 32 characters."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.inference_mode()
def predict(
    model: VanForSemanticSegmentation,
    image_processor: VanImageProcessor,
    image: torch.Tensor,
    protocol: Protocol = Protocol(),
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Segments a picture.

    Args:
        model: In evaluation mode.
        image_processor: Of the model.
        image: uint8 (3, height, width).
        protocol: How to segment it.
        dtype: What the model computes in, by `torch.autocast` where it is not float32.

    Returns:
        The label of each pixel, int64 (height, width), on the model's device.
    """
    options = {"size": tuple(image.shape[-2:]), "argmax": True}
    if protocol.mode == "slide":
        options |= {"crop_size": protocol.crop_size, "stride": protocol.stride}
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        if protocol.ratios != (1.0,) or protocol.flip:
            options |= {"ratios": protocol.ratios, "flip": protocol.flip, "image_processor": image_processor}
            return multi_scale_flip_inference(model, image, **options)[0]
        pixel_values = image_processor(image, return_tensors="pt")["pixel_values"].to(model.device)
        infer = slide_inference if protocol.mode == "slide" else whole_inference
        return infer(model, pixel_values, **options)[0]


def load_trained(path: str, dataset: SegmentationDataset) -> tuple[VanForSemanticSegmentation, VanImageProcessor]:
    """Returns a model to evaluate, in evaluation mode, and its image processor.

    Raises:
        ValueError: weights are missing, or the model has another number of labels than the dataset.
    """
    model, info = VanForSemanticSegmentation.from_pretrained(path, output_loading_info=True)
    if new := new_weights(info):
        raise ValueError(f"{path} is no trained segmentation model: it has no weights for {', '.join(new)}")
    if model.config.num_labels != dataset.num_labels:
        raise ValueError(f"{path} has {model.config.num_labels} labels, dataset {dataset.name} {dataset.num_labels}")
    return model, AutoImageProcessor.from_pretrained(path)


def new_weights(info: dict) -> list[str]:
    """Returns the modules that `from_pretrained` had no fitting weights for, by their first two names."""
    keys = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    return sorted({".".join(key.split(".")[:2]) for key in keys})


def read_validation_example(dataset: SegmentationDataset, idx: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a validation picture, uint8 (3, height, width), and its labels, uint8 (height, width), 255 ignored."""
    return read_example(
        dataset.splits["validation"][idx],
        num_labels=dataset.num_labels,
        do_reduce_labels=dataset.do_reduce_labels,
        name=f"{dataset.name} validation[{idx}]",
    )


@dataclass(frozen=True)
class PictureResult:
    """What came out for one picture; both tensors on the CPU.

    Attributes:
        idx: number of the picture in the validation split.
        prediction: label of each pixel, uint8 (height, width).
        counts: confusion matrix, int64 (num_labels, num_labels), rows are the truth.
    """

    idx: int
    prediction: torch.Tensor
    counts: torch.Tensor


def evaluate_pictures(
    accelerator: Accelerator,
    predict: Callable[[torch.Tensor], torch.Tensor],
    dataset: SegmentationDataset,
    indices: Sequence[int],
    counted: torch.Tensor | None = None,
) -> Iterator[PictureResult]:
    """Predicts this process's share of validation pictures, each by itself, behind a progress bar.

    Close the generator (`contextlib.closing`) where what is done with the results may fail: its threads go on else.

    Args:
        accelerator: Tells the processes apart.
        predict: Returns the label of each pixel, integers (height, width) on the accelerator's device, of a picture,
            uint8 (3, height, width). Called from several threads.
        dataset: Dataset with the split "validation".
        indices: Numbers of the pictures that are dealt out, the same on all processes.
        counted: Confusion matrix of pictures that were evaluated before, for the mean IoU that the bar shows.
    """

    def evaluate_picture(idx: int) -> PictureResult:
        image, labels = read_validation_example(dataset, idx)
        prediction = predict(image)
        counts = confusion_matrix(prediction, labels.to(accelerator.device), dataset.num_labels)
        return PictureResult(idx, prediction.to(torch.uint8).cpu(), counts.cpu())

    own_pictures = indices[accelerator.process_index :: accelerator.num_processes]
    num_threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) // accelerator.num_processes))
    # One thread for each picture: a convolution over several threads rounds differently with their number.
    pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))
    total = len(dataset.splits["validation"])
    progress = tqdm(
        total=total,
        initial=total - len(indices),
        desc="Evaluating",
        unit="image",
        mininterval=0.5 if sys.stderr.isatty() else 15,
        leave=False,
        disable=not accelerator.is_main_process,
    )
    matrix = torch.zeros(dataset.num_labels, dataset.num_labels, dtype=torch.int64)
    matrix += 0 if counted is None else counted
    try:
        for result in pool.map(evaluate_picture, own_pictures):
            yield result
            matrix += result.counts
            if not progress.disable:
                mean_iou = scores_from_confusion_matrix(matrix)["mean_iou"]
                progress.set_postfix({"mIoU": f"{mean_iou:.4f}"}, refresh=False)
            # The bar is about all processes, which are as fast as this one.
            progress.update(min(accelerator.num_processes, total - progress.n))
    finally:
        progress.close()
        pool.shutdown(cancel_futures=True)  # an error or Ctrl-C must not wait for the pictures that are left


def evaluate(
    accelerator: Accelerator, predict: Callable[[torch.Tensor], torch.Tensor], dataset: SegmentationDataset
) -> dict:
    """Scores predictions on the validation split, which is dealt out to the processes; for all of them to call.

    What is added up are integers, so that the figures depend neither on the number of processes nor on that of
    threads.

    Args:
        accelerator, predict, dataset: See [`evaluate_pictures`].

    Returns:
        See [`figures_by_label`].
    """
    matrix = torch.zeros(dataset.num_labels, dataset.num_labels, dtype=torch.int64)
    pictures = range(len(dataset.splits["validation"]))
    with closing(evaluate_pictures(accelerator, predict, dataset, pictures)) as results:
        for result in results:
            matrix += result.counts
    matrix = accelerator.reduce(matrix.to(accelerator.device), reduction="sum")
    return figures_by_label(scores_from_confusion_matrix(matrix), dataset.id2label)


def figures_by_label(scores: dict, id2label: dict[int, str]) -> dict:
    """Returns a metric's scores as they go into a JSON file.

    Args:
        scores: What mean IoU's `compute` returns.
        id2label: Name of each label.

    Returns:
        Fractions: `mean_iou`, `mean_accuracy`, `overall_accuracy`; and `iou`, a dict by label name, None where a
        label occurs in neither truth nor prediction.
    """
    iou = {
        id2label[label]: None if math.isnan(value) else float(value)
        for label, value in enumerate(scores["per_category_iou"])
    }
    return {name: float(scores[name]) for name in ("mean_iou", "mean_accuracy", "overall_accuracy")} | {"iou": iou}


def append_counts(file: TextIO, result: PictureResult) -> None:
    """Adds a picture's counts to a file, as one line of JSON: its number, the cells that are not 0, their counts."""
    cells = result.counts.flatten().nonzero().flatten()
    record = {"idx": result.idx, "cells": cells.tolist(), "counts": result.counts.flatten()[cells].tolist()}
    file.write(json.dumps(record) + "\n")
    file.flush()


def read_counts(folder: Path, num_labels: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields what [`append_counts`] wrote to `*.jsonl` files of a folder, one picture at a time, each picture once.

    A last line that was not written to its end, because its process was killed, is left out.

    Yields:
        Number of the picture and its confusion matrix, int64 (num_labels, num_labels).

    Raises:
        ValueError: a line is not what `append_counts` writes.
    """
    seen = set()
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith("\n"):
                    continue
                try:
                    record = json.loads(line)
                    matrix = torch.zeros(num_labels**2, dtype=torch.int64)
                    matrix[record["cells"]] = torch.tensor(record["counts"], dtype=torch.int64)
                    idx = int(record["idx"])
                except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                    raise ValueError(f"{path}, line {number}, is no record of counts; remove {folder}") from error
                if idx not in seen:
                    seen.add(idx)
                    yield idx, matrix.view(num_labels, num_labels)
