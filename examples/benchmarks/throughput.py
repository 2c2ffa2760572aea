# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Pictures per second of models and exports as they are served: batches, in one or several processes at once."""

import argparse
import multiprocessing
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from van_hf import VanForSemanticSegmentation
from van_hf.exports import ExportedSegmentationModel, is_export
from van_hf.inference import load_model
from van_hf.machine import cores_per_process

from .measuring import Table, add_json_argument, integer_from

START_TIMEOUT = 600  # seconds that a model may take to load


def add_command(commands) -> None:
    help = "pictures per second of trained models and of exports: batches, in one or several streams at once"
    parser = commands.add_parser("throughput", help=help, description=help)
    parser.add_argument(
        "models", nargs="+", metavar="FOLDER", help="trained models, and what examples/export.py wrote"
    )
    parser.add_argument("--batch_size", type=integer_from(1), nargs="+", default=[1, 4])
    parser.add_argument("--streams", type=integer_from(1), nargs="+", default=[1, cores_per_process()],
                        help="processes at once, which share the cores (1, and one for each core)")  # fmt: skip
    parser.add_argument("--height", type=integer_from(33), default=512, help="of the pictures in pixels")
    parser.add_argument("--width", type=integer_from(33), default=512, help="of the pictures in pixels")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (%(default)s)")
    parser.add_argument("--trust_pickle", action="store_true", help="run any code that a torch_export model holds")
    add_json_argument(parser)
    parser.set_defaults(run=benchmark_throughput)


def benchmark_throughput(args: argparse.Namespace) -> Iterator[Table]:
    rows = []
    for batch_size in args.batch_size:
        for num_streams in dict.fromkeys(args.streams):
            row = {"batch": batch_size, "streams": num_streams}
            num_threads = max(cores_per_process() // num_streams, 1)
            for folder in args.models:
                shape = (batch_size, 3, args.height, args.width)
                row[f"{Path(folder).name} images/s"] = images_per_second(
                    folder, shape, num_streams, num_threads, args.seconds, args.trust_pickle
                )
            rows.append(row)
    notes = [f"Each stream is a process with a model of its own; together they have {cores_per_process()} threads."]
    yield Table(f"Throughput at {args.height} x {args.width}", rows, notes)


def images_per_second(
    folder: str, shape: tuple[int, ...], num_streams: int, num_threads: int, seconds: float, trust_pickle: bool
) -> float:
    """Return how many pictures all streams together segment in a second.

    Args:
        folder: a model's, or an export's.
        shape: (batch, channels, height, width) of what goes through at once.
        num_streams: number of processes.
        num_threads: of each.
        seconds: how long to measure, from when all are ready.
    """
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(num_streams), context.Queue()
    arguments = (folder, shape, num_threads, seconds, trust_pickle, barrier, results)
    processes = [context.Process(target=stream, args=arguments, daemon=True) for _ in range(num_streams)]
    for process in processes:
        process.start()
    try:
        found = [results.get(timeout=START_TIMEOUT + seconds) for _ in processes]
    except queue.Empty as error:
        raise SystemExit(f"error: {folder} was not ready after {START_TIMEOUT} s") from error
    finally:
        for process in processes:
            process.terminate()
            process.join()
    for value in found:
        if isinstance(value, str):
            raise SystemExit(f"error: {folder}: {value}")
    return sum(found)


def stream(
    folder: str,
    shape: tuple[int, ...],
    num_threads: int,
    seconds: float,
    trust_pickle: bool,
    barrier: threading.Barrier,
    results: multiprocessing.Queue,
) -> None:
    """Segment batches for some seconds; leave pictures per second, or what went wrong, in the queue."""
    torch.set_num_threads(num_threads)
    pixel_values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    try:
        model = load_stream_model(folder, num_threads, trust_pickle)
        with torch.inference_mode():
            model(pixel_values)
            barrier.wait()
            started, num_pictures = time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                model(pixel_values)
                num_pictures += len(pixel_values)
        results.put(num_pictures / (time.perf_counter() - started))
    except Exception as error:  # whatever it is, the others must not wait for this stream
        barrier.abort()
        results.put(f"{type(error).__name__}: {error}")


def load_stream_model(
    folder: str, num_threads: int, trust_pickle: bool
) -> VanForSemanticSegmentation | ExportedSegmentationModel:
    """Return a model, fused, or an export with a number of threads."""
    if is_export(folder):
        return ExportedSegmentationModel.from_pretrained(folder, num_threads=num_threads, trust_pickle=trust_pickle)
    return load_model(folder, "cpu")[0].fuse()
