# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Mean IoU beside the algorithm of the Hub's metric."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator

import datasets
import evaluate
import numpy as np
from tqdm.auto import tqdm

from van_hf.metrics.mean_iou.mean_iou import MeanIoU

from .measuring import IGNORE_INDEX, MEGABYTE, Table, add_common_arguments, in_new_process, integer_from, peak_memory


class HubMeanIoU(evaluate.Metric):
    """The algorithm of the Hub's `mean_iou` metric (evaluate-metric/mean_iou), stated anew to measure it offline.

    Like the Hub's it declares maps of uint16 that `evaluate` writes to an Arrow file as they are added. `compute` gets
    all of them back as nested lists, and takes three histograms of each pair: of the pixels that are right, predicted
    and true. Of the Hub's settings it has the two that the benchmark needs.
    """

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
        return evaluate.MetricInfo(
            description="Mean IoU over all maps at the end.",
            citation="",
            inputs_description="",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _compute(self, predictions, references, num_labels: int, ignore_index: int) -> dict:
        totals = np.zeros((3, num_labels))
        for prediction, reference in zip(predictions, references, strict=True):
            prediction, reference = np.array(prediction), np.array(reference)
            counted = reference != ignore_index
            prediction, reference = prediction[counted], reference[counted]
            right = prediction[prediction == reference]
            for total, ids in zip(totals, (right, prediction, reference), strict=True):
                total += np.histogram(ids, bins=num_labels, range=(0, num_labels - 1))[0]
        correct, predicted, true = totals
        with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of a label that does not occur
            iou, accuracy = correct / (predicted + true - correct), correct / true
        return {
            "mean_iou": np.nanmean(iou),
            "mean_accuracy": np.nanmean(accuracy),
            "overall_accuracy": correct.sum() / true.sum(),
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
        }


def create_metric(algorithm: str, cache_dir: str) -> evaluate.Metric:
    """Return the metric called "hub", which keeps its maps in `cache_dir`, or "van_hf"."""
    return {"hub": HubMeanIoU, "van_hf": MeanIoU}[algorithm](cache_dir=cache_dir)


def random_maps(index: int, height: int, width: int, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a prediction, half of it right, and its reference, a tenth of it ignored: int64 (height, width)."""
    rng = np.random.default_rng(index)
    reference, other = rng.integers(num_labels, size=(2, height, width))
    prediction = np.where(rng.random((height, width)) < 0.5, reference, other)
    reference[rng.random((height, width)) < 0.1] = IGNORE_INDEX
    return prediction, reference


def measure_metric(algorithm: str, num_images: int, height: int, width: int, num_labels: int) -> dict:
    """Score the first half of the maps, then all of them, in a process where nothing else has been measured.

    Returns:
        `seconds` of adding and computing all maps, without the time to make them; `figures`, the metric's results;
        `peak_bytes` for half and all of the maps, above what the process needed before.
    """
    seconds, peaks, figures = 0.0, [], {}
    with tempfile.TemporaryDirectory() as cache_dir:
        metric = create_metric(algorithm, cache_dir)
        # Imports on first use, and the maps that are at hand at any time, belong to neither algorithm.
        tiny = random_maps(0, 8, 8, num_labels)
        metric.compute(predictions=[tiny[0]], references=[tiny[1]], num_labels=num_labels, ignore_index=IGNORE_INDEX)
        random_maps(0, height, width, num_labels)
        before = peak_memory()
        for count in (num_images // 2, num_images):
            seconds = 0.0
            for index in range(count):
                prediction, reference = random_maps(index, height, width, num_labels)
                start = time.perf_counter()
                metric.add_batch(predictions=[prediction], references=[reference])
                seconds += time.perf_counter() - start
            start = time.perf_counter()
            figures = metric.compute(num_labels=num_labels, ignore_index=IGNORE_INDEX)
            seconds += time.perf_counter() - start
            peaks.append(peak_memory() - before)
    return {"seconds": seconds, "figures": figures, "peak_bytes": peaks}


def largest_difference(figures: dict, others: dict) -> float:
    """Return the largest absolute difference of two metrics' figures; infinity where one is NaN and one is not."""
    differences = [0.0]
    for name, values in figures.items():
        values, other = np.atleast_1d(values), np.atleast_1d(others[name])
        if (np.isnan(values) != np.isnan(other)).any():
            return float("inf")
        differences.append(float(np.max(np.abs(values - other), where=~np.isnan(values), initial=0)))
    return max(differences)


def benchmark_metric(args: argparse.Namespace) -> Iterator[Table]:
    """Measure both algorithms in turn, each time in a process of its own."""
    measured: dict[str, list[dict]] = {"hub": [], "van_hf": []}
    turns = [algorithm for _ in range(args.repeats) for algorithm in measured]
    for algorithm in tqdm(turns, desc="Measuring", unit="process", leave=False):
        sizes = (args.num_images, args.height, args.width, args.num_labels)
        measured[algorithm].append(in_new_process(measure_metric, algorithm, *sizes))
    difference = largest_difference(*(runs[0]["figures"] for runs in measured.values()))
    rows = []
    for algorithm, runs in measured.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        half, whole = (statistics.median(run["peak_bytes"][idx] for run in runs) / MEGABYTE for idx in range(2))
        rows.append(
            {
                "side": {"hub": "the Hub's algorithm"}.get(algorithm, algorithm),
                "seconds": seconds,
                "speedup": rows[0]["seconds"] / seconds if rows else 1.0,
                "images/s": args.num_images / seconds,
                "peak memory": whole,
                "memory growth": whole - half,
                "largest difference": difference if rows else 0.0,
            }
        )
    title = f"Mean IoU of {args.num_images} maps of {args.height} x {args.width}, {args.num_labels} labels"
    notes = [f"Memory grew from {args.num_images // 2} maps to {args.num_images}."]
    yield Table(title, rows, notes)


def add_command(commands) -> None:
    help = "mean IoU of random maps: the Hub's algorithm, which keeps all of them, and ours"
    parser = commands.add_parser("metric", help=help, description=help)
    parser.add_argument("--num_images", type=integer_from(2), default=200)
    parser.add_argument("--height", type=integer_from(1), default=512, help="of the maps in pixels")
    parser.add_argument("--width", type=integer_from(1), default=683, help="of the maps in pixels")
    parser.add_argument("--num_labels", type=integer_from(2, IGNORE_INDEX), default=150)
    add_common_arguments(parser, repeats=1, device=False)
    parser.set_defaults(run=benchmark_metric)
