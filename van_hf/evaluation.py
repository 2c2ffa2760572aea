# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Mean IoU of a model on a dataset's validation split, on one or several processes."""

import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from .data import SegmentationDataset, read_example
from .metrics.mean_iou.mean_iou import confusion_matrix, scores_from_confusion_matrix

MAX_THREADS = 8


def read_validation_example(dataset: SegmentationDataset, idx: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a validation picture, uint8 (3, height, width), and its labels, uint8 (height, width), 255 ignored."""
    return read_example(
        dataset.splits["validation"][idx],
        num_labels=dataset.num_labels,
        do_reduce_labels=dataset.do_reduce_labels,
        name=f"{dataset.name} validation[{idx}]",
    )


def evaluate(
    accelerator: Accelerator, predict: Callable[[torch.Tensor], torch.Tensor], dataset: SegmentationDataset
) -> dict:
    """Scores predictions on the validation split, which is dealt out to the processes; for all of them to call.

    Every picture is predicted by itself and compared at its own size. What is added up are integers, so that the
    figures depend neither on the number of processes nor on that of threads.

    Args:
        accelerator: Tells the processes apart, and adds up what they counted.
        predict: Returns the label of each pixel, integers (height, width) on the accelerator's device, of a picture,
            uint8 (3, height, width). Called from several threads.
        dataset: Dataset with the split "validation".

    Returns:
        Fractions: `mean_iou`, `mean_accuracy`, `overall_accuracy`; and `iou`, a dict by label name, None where a
        label occurs in neither truth nor prediction.
    """

    def count_pixels(idx: int) -> torch.Tensor:
        image, labels = read_validation_example(dataset, idx)
        return confusion_matrix(predict(image), labels.to(accelerator.device), dataset.num_labels)

    matrix = torch.zeros(dataset.num_labels, dataset.num_labels, dtype=torch.int64, device=accelerator.device)
    own_pictures = range(accelerator.process_index, len(dataset.splits["validation"]), accelerator.num_processes)
    num_threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) // accelerator.num_processes))
    # One thread for each picture: a convolution over several threads rounds differently with their number.
    pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))
    progress = tqdm(
        pool.map(count_pixels, own_pictures),
        total=len(own_pictures),
        desc="Evaluating",
        unit="image",
        mininterval=0.5 if sys.stderr.isatty() else 15,
        leave=False,
        disable=not accelerator.is_main_process,
    )
    try:
        for counts in progress:
            matrix += counts
    finally:
        pool.shutdown(cancel_futures=True)  # an error or Ctrl-C must not wait for the pictures that are left
    scores = scores_from_confusion_matrix(accelerator.reduce(matrix, reduction="sum"))
    iou = {
        dataset.id2label[label]: None if math.isnan(value) else float(value)
        for label, value in enumerate(scores["per_category_iou"])
    }
    return {name: scores[name] for name in ("mean_iou", "mean_accuracy", "overall_accuracy")} | {"iou": iou}
