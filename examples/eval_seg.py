# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Evaluates a segmentation model with mean IoU, to the protocols of the papers.

    accelerate launch examples/eval_seg.py

evaluates what examples/train_seg.py without arguments has left. README.md beside this file shows the arguments for
published models on ADE20K. An evaluation that was stopped goes on where the same command is given again.
"""

import argparse
import csv
import json
import math
import platform
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pyarrow.compute
import torch
from accelerate import Accelerator
from common_arguments import load_dataset, mixed_precision, process_state, stop_at_problems, warn_of_lone_process
from counts_file import append_counts, read_counts
from eval_arguments import find_problems, parse_arguments, resolve_protocol
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from van_hf import VanForSemanticSegmentation, VanImageProcessor, __version__
from van_hf.data import SegmentationDataset
from van_hf.evaluation import (
    describe_missing_labels,
    evaluate_pictures,
    figures_by_label,
    load_trained,
    read_validation_example,
)
from van_hf.files import write_json
from van_hf.inference import DTYPES, digest_of_weights, predict
from van_hf.metrics.mean_iou.mean_iou import scores_from_confusion_matrix
from van_hf.visualization import plot_confusion_matrix, plot_predictions

NUM_PICTURES_SHOWN = 6


def load_hub_metric() -> evaluate.Metric:
    """Returns the Hub's mean_iou. Loaded before the evaluation, which it would be a pity to have done in vain."""
    try:
        return evaluate.load("mean_iou")
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(
            f"--metric mean_iou could not be loaded from the Hub: {error}\n"
            "Without --metric the evaluation takes this package's own: the same figures, and no network is needed"
        ) from error


def describe_settings(
    accelerator: Accelerator,
    args: argparse.Namespace,
    dataset: SegmentationDataset,
    model: VanForSemanticSegmentation,
    image_processor: VanImageProcessor,
) -> dict:
    """Returns everything that decides the predictions; an evaluation goes on only where all of it is the same."""
    settings = {
        "model": args.model_name_or_path,
        "weights": digest_of_weights(model),
        "image_processor": image_processor.to_dict(),
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.splits["validation"]._fingerprint,
        "labels": list(dataset.id2label.values()),
        "do_reduce_labels": dataset.do_reduce_labels,
        **asdict(resolve_protocol(args)),
        "mixed_precision": mixed_precision(args),
        "device": accelerator.device.type,
        "save_predictions": args.save_predictions,
    }
    # As they will be read back, with lists for tuples.
    return json.loads(json.dumps(settings, default=str))


def find_resume_problems(progress_dir: Path, settings: dict) -> list[str]:
    """Differences from the evaluation that was begun in this folder."""
    file = progress_dir / "settings.json"
    if not file.exists():
        return []
    begun = json.loads(file.read_text(encoding="utf-8"))
    return [
        f"{name} is {settings.get(name)!r}, but {progress_dir.parent} holds an evaluation that was begun with "
        f"{begun.get(name)!r}; go on with that, name another --output_dir, or remove this one"
        for name in sorted(settings.keys() | begun.keys())
        if settings.get(name) != begun.get(name)
    ]


def mask_names(dataset: SegmentationDataset) -> list[str]:
    """Returns the file names of the masks: the pictures' own where the dataset knows them, else by their number."""
    split = dataset.splits["validation"].cast_column("image", datasets.Image(decode=False))
    pictures = split.select_columns("image").with_format("arrow")[:]["image"]
    names = [Path(path).stem if path else None for path in pyarrow.compute.struct_field(pictures, "path").to_pylist()]
    if None in names or len(set(names)) < len(names):
        names = [f"val_{number:08d}" for number in range(1, len(names) + 1)]
    return [f"{name}.png" for name in names]


def evaluate_remaining(
    accelerator: Accelerator,
    args: argparse.Namespace,
    dataset: SegmentationDataset,
    predict_picture: Callable[[torch.Tensor], torch.Tensor],
    names: list[str],
) -> int:
    """Evaluates the pictures that the progress folder has no counts of, and leaves their counts there.

    Returns:
        How many pictures these were, over all processes.
    """
    progress_dir = Path(args.output_dir, "progress")
    done, counted = set(), torch.zeros(dataset.num_labels, dataset.num_labels, dtype=torch.int64)
    for idx, matrix in read_counts(progress_dir, dataset.num_labels):
        done.add(idx)
        counted += matrix
    if done:
        accelerator.print(f"{len(done)} pictures were evaluated before; going on with the others")
    remaining = [idx for idx in range(len(dataset.splits["validation"])) if idx not in done]
    # What is done must be the same for all, so none may write before all have read.
    accelerator.wait_for_everyone()
    counts_path = progress_dir / f"{time.time_ns()}-{accelerator.process_index}.jsonl"
    results = evaluate_pictures(accelerator, predict_picture, dataset, remaining, counted)
    with closing(results), counts_path.open("x", encoding="utf-8") as file:
        for result in results:
            if args.save_predictions:
                mask = Image.fromarray(result.prediction.numpy() + np.uint8(1))
                mask.save(Path(args.output_dir, "predictions", names[result.idx]))
            # Only now is the picture done: its mask is there.
            append_counts(file, result)
    accelerator.wait_for_everyone()
    return len(remaining)


def collect_counts(
    progress_dir: Path, dataset: SegmentationDataset, names: list[str]
) -> tuple[torch.Tensor, list[dict]]:
    """Returns the confusion matrix over all pictures, and the pictures with their mean IoU, from the best down."""
    matrix, pictures = torch.zeros(dataset.num_labels, dataset.num_labels, dtype=torch.int64), []
    for idx, counts in read_counts(progress_dir, dataset.num_labels):
        matrix += counts
        mean_iou = scores_from_confusion_matrix(counts)["mean_iou"]
        pictures.append({"idx": idx, "name": Path(names[idx]).stem, "mean_iou": mean_iou})
    if len(pictures) != len(names):
        raise ValueError(
            f"{progress_dir} has counts of {len(pictures)} pictures, not of {len(names)}; all processes must see the "
            "same --output_dir"
        )
    if matrix.sum() == 0:
        raise ValueError(f"dataset {dataset.name} has no labelled pixel in its validation split")
    # A picture without a labelled pixel has no figure.
    pictures = [picture for picture in pictures if not math.isnan(picture["mean_iou"])]
    return matrix, sorted(pictures, key=lambda picture: (-picture["mean_iou"], picture["idx"]))


def hub_scores(metric: evaluate.Metric, dataset: SegmentationDataset, masks: list[Path]) -> dict:
    """Returns the scores that the Hub's metric gives the saved masks."""
    for idx, path in enumerate(masks):
        _, labels = read_validation_example(dataset, idx)
        with Image.open(path) as mask:
            metric.add(prediction=np.asarray(mask) - np.uint8(1), reference=labels.numpy())
    return metric.compute(num_labels=dataset.num_labels, ignore_index=255, reduce_labels=False)


def class_rows(scores: dict, matrix: torch.Tensor, id2label: dict[int, str]) -> list[dict]:
    """Returns a row of figures for each class: fractions, None where it does not occur; `share` of labelled pixels."""
    shares = (matrix.sum(dim=1).double() / matrix.sum()).tolist()
    return [
        {
            "id": idx,
            "label": label,
            "iou": None if math.isnan(iou := scores["per_category_iou"][idx]) else float(iou),
            "accuracy": None if math.isnan(accuracy := scores["per_category_accuracy"][idx]) else float(accuracy),
            "share": shares[idx],
        }
        for idx, label in id2label.items()
    ]


def describe_results(
    accelerator: Accelerator,
    args: argparse.Namespace,
    settings: dict,
    dataset: SegmentationDataset,
    model: VanForSemanticSegmentation,
    scores: dict,
    pictures: list[dict],
    time_taken: dict,
) -> dict:
    """Returns the content of results.json: figures, and what is needed to judge and to repeat them."""
    protocol = resolve_protocol(args)
    packages = ("torch", "torchvision", "transformers", "datasets", "accelerate", "evaluate")
    return {
        **figures_by_label(scores, dataset.id2label),
        "protocol": {
            "inference": protocol.describe(),
            "metric": "mean IoU over the labels that occur, from one confusion matrix over all pixels; 255 is ignored",
            "computed_by": "the Hub's mean_iou" if args.metric == "mean_iou" else "van_hf/metrics/mean_iou",
            **asdict(protocol),
            "size": settings["image_processor"]["size"],
            "size_divisor": settings["image_processor"]["size_divisor"],
            "mixed_precision": settings["mixed_precision"],
        },
        "dataset": {
            "name": dataset.name,
            "fingerprint": settings["dataset_fingerprint"],
            "num_labels": dataset.num_labels,
            "validation": len(dataset.splits["validation"]),
        },
        "model": {
            "name": args.model_name_or_path,
            "weights": settings["weights"],
            "decode_head": model.config.decode_head,
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "best_pictures": pictures[:NUM_PICTURES_SHOWN],
        "worst_pictures": pictures[::-1][:NUM_PICTURES_SHOWN],
        "time": time_taken,
        "num_processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "arguments": vars(args),
        "versions": {"python": platform.python_version(), "van_hf": __version__}
        | {name: version(name) for name in packages},
    }


def draw_pictures(
    dataset: SegmentationDataset,
    predict_picture: Callable[[torch.Tensor], torch.Tensor],
    pictures: list[dict],
    path: Path,
) -> None:
    """Saves validation pictures beside truth and prediction, each with its mean IoU."""
    if not pictures:
        return
    examples = [read_validation_example(dataset, picture["idx"]) for picture in pictures]
    plot_predictions(
        [to_pil_image(image) for image, _ in examples],
        [labels.numpy() for _, labels in examples],
        [predict_picture(image).cpu().numpy() for image, _ in examples],
        dataset.id2label,
        path,
        palette=dataset.palette,
        captions=[f"{picture['name']}: mIoU {picture['mean_iou']:.3f}" for picture in pictures],
    )


def write_results(
    args: argparse.Namespace,
    dataset: SegmentationDataset,
    predict_picture: Callable[[torch.Tensor], torch.Tensor],
    matrix: torch.Tensor,
    rows: list[dict],
    results: dict,
) -> None:
    """Writes figures and pictures into the output folder; with results.json, the last, the run is finished."""
    output_dir = Path(args.output_dir)
    with (output_dir / "per_class.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plot_confusion_matrix(matrix.numpy(), dataset.id2label, output_dir / "confusion_matrix.png")
    for name in ("best_pictures", "worst_pictures"):
        draw_pictures(dataset, predict_picture, results[name], output_dir / f"{name}.png")
    write_json(output_dir / "results.json", results)
    shutil.rmtree(output_dir / "progress")


def print_summary(args: argparse.Namespace, results: dict, rows: list[dict]) -> None:
    """Prints the classes' figures in percent, the means, and where everything lies."""

    def percent(value: float | None) -> str:
        return f"{'-':>8}" if value is None else f"{100 * value:8.2f}"

    width = max(len(row["label"]) for row in rows)
    print(f"\n{'class':{width}} {'IoU':>8} {'accuracy':>8} {'share':>8}  (percent)")
    for row in rows:
        print(f"{row['label']:{width}} {percent(row['iou'])} {percent(row['accuracy'])} {percent(row['share'])}")
    if missing := describe_missing_labels(results):
        print(f"\n{missing}")
    print(
        f"\nMean IoU {100 * results['mean_iou']:.2f}, mean accuracy {100 * results['mean_accuracy']:.2f}, overall "
        f"accuracy {100 * results['overall_accuracy']:.2f}, with {results['protocol']['inference']}."
        f"\nResults are in {args.output_dir}"
    )


def main() -> None:
    """Runs the script."""
    args = parse_arguments(__doc__)
    state = process_state()
    stop_at_problems(find_problems(args, state), state)
    warn_of_lone_process(state, "examples/eval_seg.py")
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    hub_metric = None
    if args.metric == "mean_iou" and accelerator.is_main_process:
        try:
            hub_metric = load_hub_metric()
        except ValueError as error:
            sys.exit(str(error))
    with accelerator.main_process_first():
        dataset = load_dataset(args)
    model, image_processor = load_trained(args.model_name_or_path, dataset)
    model.to(accelerator.device, memory_format=torch.channels_last).eval()

    output_dir = Path(args.output_dir)
    settings = describe_settings(accelerator, args, dataset, model, image_processor)
    stop_at_problems(find_resume_problems(output_dir / "progress", settings), state)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (output_dir / "progress").mkdir(parents=True, exist_ok=True)
        write_json(output_dir / "progress" / "settings.json", settings)
        if args.save_predictions:
            (output_dir / "predictions").mkdir(exist_ok=True)
    accelerator.wait_for_everyone()

    dtype = DTYPES[accelerator.mixed_precision]
    predict_picture = partial(predict, model, image_processor, protocol=resolve_protocol(args), dtype=dtype)
    names = mask_names(dataset)
    started = time.perf_counter()
    num_evaluated = evaluate_remaining(accelerator, args, dataset, predict_picture, names)
    time_taken = {
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 1),
        "pictures_in_these_seconds": num_evaluated,
    }
    if accelerator.is_main_process:
        matrix, pictures = collect_counts(output_dir / "progress", dataset, names)
        scores = scores_from_confusion_matrix(matrix)
        if hub_metric is not None:
            scores = hub_scores(hub_metric, dataset, [output_dir / "predictions" / name for name in names])
        results = describe_results(accelerator, args, settings, dataset, model, scores, pictures, time_taken)
        rows = class_rows(scores, matrix, dataset.id2label)
        write_results(args, dataset, predict_picture, matrix, rows, results)
        print_summary(args, results, rows)
    # A process that leaves early can hang the main one as it closes their connection.
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
