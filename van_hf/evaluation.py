# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Mean IoU of a model on a dataset's validation split, on one or several processes."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from .data import SegmentationDataset, read_example
from .data.label_names import unique_names
from .data.loading import default_bands
from .exports import ExportedSegmentationModel
from .inference import load_model
from .machine import cores_per_process
from .metrics.mean_iou.mean_iou import confusion_matrix, scores_from_confusion_matrix
from .model.configuration_van import VanConfig
from .model.image_processing_van import VanImageProcessor
from .model.modeling_van import VanForSemanticSegmentation

MAX_THREADS = 8


def load_trained(
    path: str, dataset: SegmentationDataset, trust_pickle: bool = False
) -> tuple[VanForSemanticSegmentation | ExportedSegmentationModel, VanImageProcessor]:
    """Return a model, or an export, to evaluate on a dataset, on the CPU, and its image processor; see [`load_model`].

    Raises:
        ValueError: the model has another number of labels than the dataset.
    """
    model, image_processor = load_model(path, device="cpu", trust_pickle=trust_pickle)
    check_num_labels(path, model.config, dataset)
    return model, image_processor


def match_bands(dataset: SegmentationDataset, image_processor: VanImageProcessor, path: str) -> SegmentationDataset:
    """Return a dataset whose pictures are read as a model takes them, which is called `path`.

    Raises:
        ValueError: the dataset was loaded with other bands than the model's, which were asked for.
    """
    bands = image_processor.bands and tuple(image_processor.bands)
    if dataset.bands == bands:
        return dataset
    if bands is not None and dataset.bands in (None, default_bands(dataset.name)):
        return dataset.with_bands(bands)
    theirs = f"the bands {list(bands)}: --bands {' '.join(map(str, bands))}" if bands else "8-bit RGB, without --bands"
    raise ValueError(f"dataset {dataset.name} is read with the bands {list(dataset.bands)}, but {path} takes {theirs}")


def check_num_labels(path: str, config: VanConfig, dataset: SegmentationDataset) -> None:
    """Raise a ValueError where a model has another number of labels than a dataset, or the same in another order."""
    if config.num_labels != dataset.num_labels:
        raise ValueError(f"{path} has {config.num_labels} labels, dataset {dataset.name} {dataset.num_labels}")
    ours, theirs = list(config.id2label.values()), list(dataset.id2label.values())
    if ours != theirs and sorted(ours) == sorted(theirs):
        raise ValueError(f"{path} has the labels of dataset {dataset.name} in another order: {ours[:5]}, {theirs[:5]}")


def check_labels(path: str, config: VanConfig, dataset: SegmentationDataset) -> None:
    """Raise a ValueError where a model has other labels than a dataset."""
    check_num_labels(path, config, dataset)
    for idx, label in dataset.id2label.items():
        if config.id2label[idx] != label:
            raise ValueError(
                f"label {idx} of {path} is {config.id2label[idx]!r}, of dataset {dataset.name} {label!r}: it must be a"
                " dataset with the model's labels; --id2label gives it other names"
            )


def read_validation_example(dataset: SegmentationDataset, idx: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a validation picture, uint8 (3, height, width), and its labels, uint8 (height, width), 255 ignored.

    Of a dataset with bands the picture is float32 (bands, height, width), NaN where there are no data.

    Raises:
        ValueError: the example cannot be read, see [`read_example`]; the message names it.
    """
    return read_example(
        dataset.splits["validation"],
        idx,
        num_labels=dataset.num_labels,
        do_reduce_labels=dataset.do_reduce_labels,
        name=f"{dataset.name} validation",
        mask_meaning=dataset.mask_meaning,
        bands=dataset.bands,
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
    """Predict this process's share of validation pictures, each by itself, and show a progress bar.

    Close the generator (`contextlib.closing`) if what is done with the results may fail: otherwise its threads go on
    predicting.

    Args:
        accelerator: Tells the processes apart.
        predict: Returns the label of each pixel, integers (height, width) on the accelerator's device, of a picture,
            uint8 (3, height, width), or float32 with bands. Called from several threads.
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
    num_threads = min(MAX_THREADS, cores_per_process())
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
            # The bar is for all processes, and takes them to be as fast as this one.
            progress.update(min(accelerator.num_processes, total - progress.n))
    finally:
        progress.close()
        pool.shutdown(cancel_futures=True)  # an error or Ctrl-C must not wait for the pictures that are left


def evaluate(
    accelerator: Accelerator, predict: Callable[[torch.Tensor], torch.Tensor], dataset: SegmentationDataset
) -> dict:
    """Score predictions on the validation split, which is dealt out to the processes: each must call this.

    Counts of pixels are added up, which are integers: the figures depend neither on the number of processes nor on
    that of threads. An error in one process is raised by all, see [`fail_together`].

    Args:
        accelerator, predict, dataset: See [`evaluate_pictures`].

    Returns:
        See [`figures_by_label`].
    """
    matrix = torch.zeros(dataset.num_labels, dataset.num_labels, dtype=torch.int64)
    pictures = range(len(dataset.splits["validation"]))
    with fail_together(), closing(evaluate_pictures(accelerator, predict, dataset, pictures)) as results:
        for result in results:
            matrix += result.counts
    matrix = accelerator.reduce(matrix.to(accelerator.device), reduction="sum")
    return figures_by_label(scores_from_confusion_matrix(matrix), dataset.id2label)


@contextmanager
def fail_together() -> Iterator[None]:
    """Run a block on all processes, and wait for each at its end; if it fails in one of them, it fails in all.

    Otherwise the others would wait for the one that failed.

    Raises:
        ValueError: the block failed in another process; the message is the same as there.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    messages = gather_object([failure and (str(failure) or type(failure).__name__)])
    if failure is not None:
        raise failure
    for message in messages:
        if message is not None:
            raise ValueError(message)


def figures_by_label(scores: dict, id2label: dict[int, str]) -> dict:
    """Return a metric's scores as they go into a JSON file.

    Args:
        scores: What mean IoU's `compute` returns.
        id2label: Name of each label.

    Returns:
        Fractions: `mean_iou`, `mean_accuracy`, `overall_accuracy`; `iou`, a dict by label name, None where a label
        occurs in neither truth nor prediction; and `labels_without_pixels`, the names of the labels that do not occur
        in the truth, so that the figures say nothing of them.
    """
    names = unique_names(id2label)
    iou = {
        names[label]: None if math.isnan(value) else float(value)
        for label, value in enumerate(scores["per_category_iou"])
    }
    figures = {name: float(scores[name]) for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}
    # An accuracy is a share of the truth's pixels, and is NaN where there are none.
    missing = [names[label] for label, value in enumerate(scores["per_category_accuracy"]) if math.isnan(value)]
    return {**figures, "iou": iou, "labels_without_pixels": missing}


def describe_missing_labels(figures: dict) -> str:
    """Return a sentence about the labels that do not occur in the truth; "" if all of them do.

    Args:
        figures: See [`figures_by_label`]; those of a checkpoint from before `labels_without_pixels` lack it.
    """
    missing = figures.get("labels_without_pixels")
    if not missing:
        return ""
    return f"The truth lacks {len(missing)} of the {len(figures['iou'])} labels: {', '.join(missing)}"
