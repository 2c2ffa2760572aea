# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Measures parts of van_hf beside what they stand in for.

    python examples/benchmark.py metric

Both sides do the same work in one run and take turns, so that a busy machine is as slow for the one as for the other.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import datasets
import evaluate
import numpy as np
from tqdm.auto import tqdm

from van_hf.metrics.mean_iou.mean_iou import MeanIoU

IGNORE_INDEX = 255
MEGABYTE = 1e6


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


def create_metric(algorithm: str, num_labels: int, cache_dir: str) -> evaluate.Metric:
    """Returns the metric called "hub", which keeps its maps in `cache_dir`, or "van_hf"."""
    if algorithm == "hub":
        return HubMeanIoU(cache_dir=cache_dir)
    return MeanIoU(num_labels=num_labels, ignore_index=IGNORE_INDEX)


def random_maps(index: int, height: int, width: int, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a prediction, half of it right, and its reference, a tenth of it ignored: int64 (height, width)."""
    rng = np.random.default_rng(index)
    reference, other = rng.integers(num_labels, size=(2, height, width))
    prediction = np.where(rng.random((height, width)) < 0.5, reference, other)
    reference[rng.random((height, width)) < 0.1] = IGNORE_INDEX
    return prediction, reference


def peak_memory() -> int:
    """Returns the most memory that this process has had resident so far, in bytes; mapped files count.

    The kernel's VmHWM, which starts with the process; `ru_maxrss` starts from the parent's.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measure_metric(algorithm: str, num_images: int, height: int, width: int, num_labels: int) -> dict:
    """Scores the first half of the maps, then all of them, in a process where nothing else has been measured.

    Returns:
        `seconds` of adding and computing all maps, without the time to make them; `figures`, the metric's results;
        `peak_bytes` for half and all of the maps, above what the process needed before.
    """
    seconds, peaks, figures = 0.0, [], {}
    with tempfile.TemporaryDirectory() as cache_dir:
        metric = create_metric(algorithm, num_labels, cache_dir)
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


def in_new_process(function: Callable, *arguments):
    """Returns what a function of an importable module returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def largest_difference(figures: dict, others: dict) -> float:
    """Returns the largest absolute difference of two metrics' figures; infinity where one is NaN and one is not."""
    differences = [0.0]
    for name, values in figures.items():
        values, other = np.atleast_1d(values), np.atleast_1d(others[name])
        if (np.isnan(values) != np.isnan(other)).any():
            return float("inf")
        differences.append(float(np.max(np.abs(values - other), where=~np.isnan(values), initial=0)))
    return max(differences)


def compare_metrics(args: argparse.Namespace) -> dict:
    """Measures both algorithms in turn.

    Returns:
        Of each algorithm the median `seconds`, `images_per_second`, and in MB (10^6 bytes) the median `peak_memory`
        and the `memory_growth` from half of the images to all; `speedup` and `largest_difference` of ours to the
        Hub's.
    """
    measured: dict[str, list[dict]] = {"hub": [], "van_hf": []}
    turns = [algorithm for _ in range(args.repeats) for algorithm in measured]
    for algorithm in tqdm(turns, desc="Measuring", unit="process"):
        sizes = (args.num_images, args.height, args.width, args.num_labels)
        measured[algorithm].append(in_new_process(measure_metric, algorithm, *sizes))
    results: dict = {"algorithms": {}}
    for algorithm, runs in measured.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        half, whole = (statistics.median(run["peak_bytes"][idx] for run in runs) / MEGABYTE for idx in range(2))
        results["algorithms"][algorithm] = {
            "seconds": seconds,
            "images_per_second": args.num_images / seconds,
            "peak_memory": whole,
            "memory_growth": whole - half,
        }
    seconds = [results["algorithms"][algorithm]["seconds"] for algorithm in ("hub", "van_hf")]
    results["speedup"] = seconds[0] / seconds[1]
    figures = [measured[algorithm][0]["figures"] for algorithm in ("hub", "van_hf")]
    results["largest_difference"] = largest_difference(*figures)
    return results


def describe_metrics(results: dict, num_images: int) -> str:
    """Returns the results of [`compare_metrics`] as a table."""
    lines = [
        f"{'':16} {'seconds':>9} {'images/s':>9} {'peak memory':>12}"
        f" {f'growth from {num_images // 2} to {num_images} images':>32}"
    ]
    for algorithm, title in {"hub": "Hub's algorithm", "van_hf": "van_hf"}.items():
        row = results["algorithms"][algorithm]
        lines.append(
            f"{title:16} {row['seconds']:9.2f} {row['images_per_second']:9.1f} {row['peak_memory']:9.1f} MB"
            f" {row['memory_growth']:29.1f} MB"
        )
    lines.append(
        f"van_hf is {results['speedup']:.1f} times as fast; largest difference of a figure:"
        f" {results['largest_difference']:.1e}"
    )
    return "\n".join(lines)


def benchmark_metric(args: argparse.Namespace) -> None:
    results = compare_metrics(args)
    print(describe_metrics(results, args.num_images))
    if args.json is not None:
        names = ("num_images", "height", "width", "num_labels", "repeats")
        settings = {name: getattr(args, name) for name in names}
        args.json.write_text(json.dumps({**settings, **results}, indent=2) + "\n", encoding="utf-8")


def integer_from(least: int, most: int | None = None) -> Callable[[str], int]:
    """Returns an argparse type: integers of `least` to `most`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be {least} {'or more' if most is None else f'to {most}'}: {text}")
        return value

    return integer


def add_metric_command(commands) -> None:
    help = "mean IoU of random maps: the Hub's algorithm, which keeps all of them, and ours"
    parser = commands.add_parser("metric", help=help, description=help)
    parser.add_argument("--num_images", type=integer_from(2), default=200)
    parser.add_argument("--height", type=integer_from(1), default=512, help="of the maps in pixels")
    parser.add_argument("--width", type=integer_from(1), default=683, help="of the maps in pixels")
    parser.add_argument("--num_labels", type=integer_from(2, IGNORE_INDEX), default=150)
    parser.add_argument("--repeats", type=integer_from(1), default=1, help="the figures are the median of these")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.set_defaults(run=benchmark_metric)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    add_metric_command(commands)
    args = parser.parse_args(argv)
    args.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
