# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Evaluate a segmentation model with mean IoU, to the protocols of the papers.

    accelerate launch examples/eval_seg.py

evaluates what examples/train_seg.py without arguments has left. README.md beside this file shows the arguments for
published models on ADE20K. An evaluation that was stopped goes on where the same command is given again.
"""

import argparse
import csv
import json
import math
import os
import platform
import shutil
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pyarrow.compute
import torch
from accelerate import Accelerator, PartialState
from common_arguments import (
    claim_output_dir,
    is_finished,
    load_dataset,
    load_or_stop,
    mixed_precision,
    printing,
    process_state,
    stop,
    stop_at_problems,
    warn_of_lone_process,
    write_pictures,
)
from counts_file import append_counts, read_counts
from eval_arguments import find_output_problems, find_problems, first_output_dir, parse_arguments, resolve_protocol
from PIL import Image

from van_hf import VanForSemanticSegmentation, VanImageProcessor, __version__
from van_hf.data import SegmentationDataset
from van_hf.data.samples import digests_of_files
from van_hf.evaluation import (
    describe_missing_labels,
    evaluate_pictures,
    fail_together,
    figures_by_label,
    load_trained,
    match_bands,
    read_validation_example,
)
from van_hf.exports import ExportedSegmentationModel, package_versions
from van_hf.files import named_file, read_json, write_json, write_whole
from van_hf.inference import DTYPES, digest_of_weights, find_export_problems, load_config, predict
from van_hf.machine import use_huge_pages
from van_hf.metrics.mean_iou.mean_iou import scores_from_confusion_matrix
from van_hf.visualization import as_picture, plot_confusion_matrix, plot_predictions

NUM_PICTURES_SHOWN = 6
MAX_NAME_LENGTH = 250  # bytes of a file's name without its suffix; 255 with it is what most systems allow


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation is made of.

    Attributes:
        args: the command line, with the output folder that was claimed.
        dataset: dataset whose split "validation" is evaluated.
        model: model in evaluation mode, on the accelerator's device.
        image_processor: image processor of the model.
        accelerator: tells the processes apart.
    """

    args: argparse.Namespace
    dataset: SegmentationDataset
    model: VanForSemanticSegmentation | ExportedSegmentationModel
    image_processor: VanImageProcessor
    accelerator: Accelerator

    @property
    def output_dir(self) -> Path:
        return Path(self.args.output_dir)

    @property
    def progress_dir(self) -> Path:
        """Folder of the settings and of the counts of the pictures that are done."""
        return self.output_dir / "progress"

    def describe(self) -> dict:
        """Return everything that decides the predictions; an evaluation goes on only where all of it is the same."""
        settings = {
            "model": self.args.model_name_or_path,
            "weights": digest_of_weights(self.model),
            "image_processor": self.image_processor.to_dict(),
            "dataset": self.dataset.name,
            "dataset_fingerprint": self.dataset.splits["validation"]._fingerprint,
            "labels": list(self.dataset.id2label.values()),
            "do_reduce_labels": self.dataset.do_reduce_labels,
            "mask_meaning": asdict(self.dataset.mask_meaning) if self.dataset.mask_meaning else None,
            **asdict(resolve_protocol(self.args)),
            "mixed_precision": mixed_precision(self.args),
            "device": self.accelerator.device.type,
            "save_predictions": self.args.save_predictions,
        }
        # As they will be read back, with lists for tuples.
        return json.loads(json.dumps(settings, default=str))

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        """Return the label of each pixel, int64 (height, width), of a picture, see [`predict`]."""
        dtype = DTYPES[self.accelerator.mixed_precision]
        labels = predict(self.model, self.image_processor, image, resolve_protocol(self.args), dtype)
        return labels.to(self.accelerator.device)  # an export runs where its runtime does

    def digests(self) -> list[str]:
        """Return a digest of each validation example's files as they are now; the fingerprint covers but their names.

        Raises:
            ValueError: a file cannot be read; the message names it.
        """
        return digests_of_files(self.dataset.splits["validation"], f"{self.dataset.name} validation")

    def mask_paths(self) -> list[Path]:
        """Return where the predictions go: named as the pictures where the dataset knows that, else numbered."""
        split = self.dataset.splits["validation"].cast_column("image", datasets.Image(decode=False))
        pictures = split.select_columns("image").with_format("arrow")[:]["image"]
        paths = pyarrow.compute.struct_field(pictures, "path").to_pylist()
        names = [Path(path).stem if path else None for path in paths]
        too_long = any(name and len(os.fsencode(name)) > MAX_NAME_LENGTH for name in names)
        if None in names or len(set(names)) < len(names) or too_long:
            names = [f"val_{number:08d}" for number in range(1, len(names) + 1)]
        return [self.output_dir / "predictions" / f"{name}.png" for name in names]


def create_evaluation(args: argparse.Namespace, state: PartialState) -> Evaluation:
    """Load data and model; where that fails, the script ends. For all processes to call."""
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    dataset = load_or_stop(partial(load_dataset, args), "--dataset", state)
    load_model = partial(load_trained, args.model_name_or_path, dataset, args.trust_pickle)
    model, image_processor = load_or_stop(load_model, "--model_name_or_path", state)
    stop_at_problems(find_model_problems(args, model), state)
    dataset = load_or_stop(partial(match_bands, dataset, image_processor, args.model_name_or_path), "--bands", state)
    model.to(accelerator.device, memory_format=torch.channels_last).eval()
    return Evaluation(args, dataset, model, image_processor, accelerator)


def find_model_problems(
    args: argparse.Namespace, model: VanForSemanticSegmentation | ExportedSegmentationModel
) -> list[str]:
    """What an export cannot do, which the first picture would fail by."""
    if not isinstance(model, ExportedSegmentationModel):
        return []
    problems = find_export_problems(model, resolve_protocol(args), args.model_name_or_path)
    if mixed_precision(args) != "no":
        name = args.model_name_or_path
        problems.append(f"--mixed_precision: {name} computes in its own precision, {model.info.precision}")
    return problems


def load_hub_metric() -> evaluate.Metric:
    """Return the Hub's mean_iou. Call this before the evaluation, which would be lost if it failed."""
    try:
        return evaluate.load("mean_iou")
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(
            f"mean_iou could not be loaded from the Hub: {error}. Without --metric the evaluation takes this "
            "package's own: the same figures, and no network is needed"
        ) from error


def find_resume_problems(evaluation: Evaluation, settings: dict) -> list[str]:
    """Differences from the evaluation that was begun in the output folder."""
    file = evaluation.progress_dir / "settings.json"
    if not file.exists():
        return []
    try:
        begun = read_json(file)
    except ValueError as error:
        return [f"--output_dir: {error}; name another, or remove this one"]
    return [
        f"{name} is {settings.get(name)!r}, but {evaluation.output_dir} holds an evaluation that was begun with "
        f"{begun.get(name)!r}; go on with that, name another --output_dir, or remove this one"
        for name in sorted(settings.keys() | begun.keys())
        if settings.get(name) != begun.get(name)
    ]


def evaluate_remaining(evaluation: Evaluation) -> int:
    """Evaluate the pictures that the progress folder has no counts of, and leave their counts there.

    Returns:
        How many pictures these were, over all processes.
    """
    accelerator, dataset = evaluation.accelerator, evaluation.dataset
    done, counted = set(), torch.zeros(dataset.num_labels, dataset.num_labels, dtype=torch.int64)
    # What is done must be the same for all, so none may write before all have read.
    with fail_together():
        # Taken before the files are read: counts of one that is replaced meanwhile are not taken for those of the new.
        digests = evaluation.digests()
        for idx, matrix in read_counts(evaluation.progress_dir, dataset.num_labels, digests):
            done.add(idx)
            counted += matrix
    if done:
        accelerator.print(f"{len(done)} pictures were evaluated before; going on with the others")
    remaining = [idx for idx in range(len(dataset.splits["validation"])) if idx not in done]
    mask_paths = evaluation.mask_paths()
    counts_path = evaluation.progress_dir / f"{time.time_ns()}-{accelerator.process_index}.jsonl"
    with fail_together():
        results = evaluate_pictures(accelerator, evaluation.predict, dataset, remaining, counted)
        with closing(results), counts_path.open("x", encoding="utf-8") as file:
            for result in results:
                if evaluation.args.save_predictions:
                    with named_file(mask_paths[result.idx]):
                        Image.fromarray(result.prediction.numpy() + np.uint8(1)).save(mask_paths[result.idx])
                # Only now is the picture done: its mask is there.
                with named_file(counts_path):
                    append_counts(file, result, digests[result.idx])
    return len(remaining)


def collect_counts(evaluation: Evaluation) -> tuple[torch.Tensor, list[dict]]:
    """Return the confusion matrix over all pictures, and the pictures with their mean IoU, from the best down."""
    dataset, progress_dir, mask_paths = evaluation.dataset, evaluation.progress_dir, evaluation.mask_paths()
    matrix, pictures = torch.zeros(dataset.num_labels, dataset.num_labels, dtype=torch.int64), []
    for idx, counts in read_counts(progress_dir, dataset.num_labels, evaluation.digests()):
        matrix += counts
        mean_iou = scores_from_confusion_matrix(counts)["mean_iou"]
        pictures.append({"idx": idx, "name": mask_paths[idx].stem, "mean_iou": mean_iou})
    if len(pictures) != len(mask_paths):
        raise ValueError(
            f"{progress_dir} has counts of {len(pictures)} pictures as they are now, not of {len(mask_paths)}; none "
            "may change during the evaluation, and all processes must see the same --output_dir"
        )
    if matrix.sum() == 0:
        raise ValueError(f"dataset {dataset.name} has no labelled pixel in its validation split")
    # A picture without a labelled pixel has no figure.
    pictures = [picture for picture in pictures if not math.isnan(picture["mean_iou"])]
    return matrix, sorted(pictures, key=lambda picture: (-picture["mean_iou"], picture["idx"]))


def hub_scores(metric: evaluate.Metric, dataset: SegmentationDataset, masks: list[Path]) -> dict:
    """Return the scores that the Hub's metric gives the saved masks."""
    for idx, path in enumerate(masks):
        _, labels = read_validation_example(dataset, idx)
        with Image.open(path) as mask:
            metric.add(prediction=np.asarray(mask) - np.uint8(1), reference=labels.numpy())
    return metric.compute(num_labels=dataset.num_labels, ignore_index=255, reduce_labels=False)


def class_rows(scores: dict, matrix: torch.Tensor, id2label: dict[int, str]) -> list[dict]:
    """Return a row of figures for each class: fractions, None where it does not occur; `share` of labelled pixels."""
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


def describe_results(evaluation: Evaluation, settings: dict, scores: dict, pictures: list[dict]) -> dict:
    """Return the content of results.json but for the time: figures, and what is needed to judge and to repeat them.

    Args:
        evaluation: what was done.
        settings: what decided the predictions.
        scores: what mean IoU's `compute` returned.
        pictures: those with a figure, from the best down.
    """
    args, dataset, model = evaluation.args, evaluation.dataset, evaluation.model
    protocol = resolve_protocol(args)
    packages = ("torch", "torchvision", "transformers", "datasets", "accelerate", "evaluate")
    return {
        **figures_by_label(scores, dataset.id2label),
        "protocol": {
            "inference": protocol.describe(),
            "metric": "mean IoU over the labels that occur, from one confusion matrix over all pixels; 255 is ignored",
            "computed_by": "the Hub's mean_iou" if args.metric == "mean_iou" else "van_hf.metrics.mean_iou",
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
            **describe_runtime(model),
        },
        "best_pictures": pictures[:NUM_PICTURES_SHOWN],
        "worst_pictures": pictures[::-1][:NUM_PICTURES_SHOWN],
        "num_processes": evaluation.accelerator.num_processes,
        "device": str(model.device),
        "arguments": vars(args),
        "versions": {"python": platform.python_version(), "van_hf": __version__}
        | {name: version(name) for name in packages}
        | (package_versions(model.info.format) if isinstance(model, ExportedSegmentationModel) else {}),
    }


def describe_runtime(model: VanForSemanticSegmentation | ExportedSegmentationModel) -> dict:
    """Return what runs the model: for an export, what it was made of; else the number of its parameters."""
    if isinstance(model, ExportedSegmentationModel):
        return {"runtime": model.info.format, "precision": model.info.precision, "export": asdict(model.info)}
    return {"runtime": "torch", "num_parameters": sum(parameter.numel() for parameter in model.parameters())}


def write_rows(rows: list[dict], path: Path) -> None:
    """Write rows of the same columns as CSV."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def draw_pictures(evaluation: Evaluation, pictures: list[dict], path: Path) -> None:
    """Save validation pictures beside truth and prediction, each with its mean IoU."""
    examples = [read_validation_example(evaluation.dataset, picture["idx"]) for picture in pictures]
    plot_predictions(
        [as_picture(image, evaluation.image_processor) for image, _ in examples],
        [labels.numpy() for _, labels in examples],
        [evaluation.predict(image).cpu().numpy() for image, _ in examples],
        evaluation.dataset.id2label,
        path,
        palette=evaluation.dataset.palette,
        captions=[f"{picture['name']}: mIoU {picture['mean_iou']:.3f}" for picture in pictures],
    )


def write_results(evaluation: Evaluation, matrix: torch.Tensor, rows: list[dict], results: dict) -> None:
    """Write figures into the output folder, then pictures; with results.json the evaluation is finished."""
    output_dir, id2label = evaluation.output_dir, evaluation.dataset.id2label
    write_whole(output_dir / "per_class.csv", partial(write_rows, rows))
    write_json(output_dir / "results.json", results)
    shutil.rmtree(evaluation.progress_dir)
    pictures = {"confusion_matrix.png": partial(plot_confusion_matrix, matrix.numpy(), id2label)}
    if results["best_pictures"]:
        pictures |= {
            f"{name}.png": partial(draw_pictures, evaluation, results[name])
            for name in ("best_pictures", "worst_pictures")
        }
    write_pictures(output_dir, pictures)


def print_summary(args: argparse.Namespace, results: dict, rows: list[dict]) -> None:
    """Print the classes' figures in percent, the means, and where everything lies."""

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


def begin_or_go_on(evaluation: Evaluation, settings: dict) -> None:
    """Make the output folder ready; where another evaluation was begun in it, the script ends."""
    state = evaluation.accelerator.state
    stop_at_problems(find_resume_problems(evaluation, settings), state)
    with fail_together():
        if state.is_main_process:
            write_json(evaluation.progress_dir / "settings.json", settings)
            if evaluation.args.save_predictions:
                (evaluation.output_dir / "predictions").mkdir(exist_ok=True)


def evaluate_and_write(evaluation: Evaluation, hub_metric: evaluate.Metric | None) -> tuple[dict, list[dict]] | None:
    """Evaluate, and write the results; for all processes to call.

    Returns:
        The content of results.json and the rows of the classes, in the main process; None in the others.
    """
    settings = evaluation.describe()
    begin_or_go_on(evaluation, settings)
    started = time.perf_counter()
    num_evaluated = evaluate_remaining(evaluation)
    time_taken = {
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 1),
        "pictures_in_these_seconds": num_evaluated,
    }
    # All wait here: a process that leaves early can hang the main one as it closes their connection.
    with fail_together():
        if evaluation.accelerator.is_main_process:
            matrix, pictures = collect_counts(evaluation)
            scores = scores_from_confusion_matrix(matrix)
            if hub_metric is not None:
                scores = hub_scores(hub_metric, evaluation.dataset, evaluation.mask_paths())
            results = describe_results(evaluation, settings, scores, pictures) | {"time": time_taken}
            rows = class_rows(scores, matrix, evaluation.dataset.id2label)
            write_results(evaluation, matrix, rows, results)
            return results, rows


def main() -> None:
    """Run the script."""
    args = parse_arguments(__doc__)
    use_huge_pages()
    state = process_state()
    stop_at_problems(find_problems(args, state), state)
    load_or_stop(partial(load_config, args.model_name_or_path), "--model_name_or_path", state)
    hub_metric = None
    if args.metric == "mean_iou":
        hub_metric = load_or_stop(load_hub_metric, "--metric", state)
    warn_of_lone_process(state, "examples/eval_seg.py")
    with claim_output_dir(args, state, first_output_dir(args), is_finished):
        # Until now another evaluation may have written there.
        stop_at_problems(find_output_problems(args), state)
        evaluation = create_evaluation(args, state)
        try:
            written = evaluate_and_write(evaluation, hub_metric)
        except (OSError, ValueError) as error:
            stop(
                f"error: {error}\nWhat was evaluated is kept. When this is mended, go on with the same command and "
                f"--output_dir {args.output_dir}",
                state,
            )
        evaluation.accelerator.end_training()
        if written is not None:
            with printing():
                print_summary(args, *written)


if __name__ == "__main__":
    main()
