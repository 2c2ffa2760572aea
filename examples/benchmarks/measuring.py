# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Time and memory of several sides that take turns, processes of their own, tables and their JSON form."""

import argparse
import ctypes
import datetime
import gc
import json
import math
import multiprocessing
import os
import platform
import signal
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from tqdm.auto import tqdm

IGNORE_INDEX = 255
MEGABYTE = 1e6
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MATRIX_SIDES = {"cpu": 2048, "cuda": 8192}
# How the columns of all tables are printed; one that is not here is printed as it is.
FORMATS = {
    "seconds": "{:.4g}",
    "speedup": "x{:.2f}",
    "share": "{:.1%}",
    "decoding": "{:.1%}",
    "identical": "{:.4%}",
    "agreement": "{:.4%}",
    "largest difference": "{:.1e}",
    "rounding error": "{:.1e}",
    "largest relative difference": "{:.1e}",
    "difference in float64": "{:.1e}",
    "images/s": "{:.1f}",
    "samples/s": "{:.1f}",
    "peak memory": "{:,.1f} MB",
    "memory growth": "{:,.1f} MB",
    "share of peak": "{:.1%}",
    "parameters (M)": "{:.3f}",
    "GMACs": "{:.3f}",
    "rewritten GMACs": "{:.3f}",
}


@dataclass
class Table:
    """What a benchmark found: `rows` map the names of columns to values, None or NaN where there is none."""

    title: str
    rows: list[dict]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        cells = [columns, *([format_cell(name, row.get(name)) for name in columns] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in cells
        ]
        return "\n".join([self.title, *lines, *self.notes])


def format_cell(column: str, value: object) -> str:
    """Return a value as the table shows it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if column.startswith("over "):  # a speedup that says over what
        column = "speedup"
    return FORMATS.get(column, "{}").format(value)


def machine(device: str = "cpu") -> dict:
    """Return what the figures depend on besides the code: processor, threads, versions, device; and the day."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device,
    }
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def processor_name() -> str:
    """Return the processor's name, or its kind where the system does not tell."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write_json(path: Path, benchmark: str, settings: dict, facts: dict, tables: list[Table]) -> None:
    """Write the tables, the command line's settings and the machine's facts; NaN becomes null."""

    def known(value: object) -> object:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    contents = {
        "benchmark": benchmark,
        "machine": facts,
        "settings": settings,
        "tables": [
            {
                "title": table.title,
                "rows": [{name: known(value) for name, value in row.items()} for row in table.rows],
                "notes": table.notes,
            }
            for table in tables
        ],
    }
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(contents, indent=2, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)


def take_turns(
    sides: dict[str, Callable[[], object]], repeats: int, device: str = "cpu", desc: str = "Measuring"
) -> dict[str, float]:
    """Run all sides once to warm up, then in turn, so that a busy machine is as slow for the one as for the other.

    Returns:
        The median seconds of each side's `repeats` runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    turns = [name for _ in range(1 + repeats) for name in sides]
    for name in tqdm(turns, desc=desc, unit="run", leave=False):
        seconds[name].append(seconds_of(sides[name], device))
    return {name: statistics.median(measured[1:]) for name, measured in seconds.items()}


def seconds_of(function: Callable[[], object], device: str = "cpu") -> float:
    """Return the seconds that one call takes, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    """Wait for what a GPU has been given to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def matrix_product(device: str, dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """Return a product of two big square matrices as a side for [`take_turns`], and its number of multiply-adds."""
    length = MATRIX_SIDES[torch.device(device).type]
    left, right = torch.randn(2, length, length, device=device).to(dtype)
    return lambda: left @ right, length**3


def peak_memory() -> float:
    """Return the most memory that this process has had resident so far, in bytes; mapped files count.

    The kernel's VmHWM, which starts with the process; `ru_maxrss` starts from the parent's. NaN where it is not told
    (outside Linux).
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    return 1024.0 * int(status.read_text(encoding="ascii").split("VmHWM:")[1].split()[0])


def peak_memory_of(function: Callable[[], object], device: str = "cpu") -> float:
    """Return the most memory, in bytes, that a call needs above what is held before it; NaN where it is not told.

    On the CPU only a process in which nothing else has been measured tells the truth: memory that was let go may stay
    with the process, and is then used again unseen.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return float(torch.cuda.max_memory_allocated(device) - before)
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # what glibc has kept of the preparations
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5", encoding="ascii")  # the peak so far becomes what is resident now
    before = peak_memory()
    function()
    return peak_memory() - before


def share(value: float, whole: float) -> float:
    """Return value / whole; NaN where the whole is 0, as is the memory of a call that finds enough at hand."""
    return value / whole if whole else math.nan


def in_new_process(function: Callable, *arguments, num_threads: int | None = None):
    """Return what a function of an importable module returns in a process of its own.

    Ctrl-C ends that process too.
    """
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by the process, which is ended from here
    try:
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        future = pool.submit(call_with_threads, num_threads or torch.get_num_threads(), function, *arguments)
    finally:
        signal.signal(signal.SIGINT, handler)
    with pool:
        try:
            return future.result()
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def call_with_threads(num_threads: int, function: Callable, *arguments):
    """Call a function where torch has that many threads."""
    torch.set_num_threads(num_threads)
    return function(*arguments)


def integer_from(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return an argparse type: integers of `least` to `most`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be {least} {'or more' if most is None else f'to {most}'}: {text}")
        return value

    return integer


def size(text: str) -> tuple[int, int]:
    """An argparse type: HEIGHTxWIDTH in pixels."""
    height, separator, width = text.partition("x")
    if not (separator and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH in pixels, such as 512x683: {text!r}")
    return int(height), int(width)


def device_name(text: str) -> str:
    """An argparse type: a device that torch has here."""
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:NUMBER: {text!r}") from error
    if device.type not in MATRIX_SIDES:
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:NUMBER: {text!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text}: torch finds {torch.cuda.device_count()} GPUs here")
    return text


def add_common_arguments(parser: argparse.ArgumentParser, repeats: int, device: bool = True) -> None:
    """Add the arguments of every sub-command that takes times; the device only where there is a choice."""
    parser.add_argument("--repeats", type=integer_from(1), default=repeats,
                        help="turns of each side; times are their median (%(default)s)")  # fmt: skip
    parser.add_argument("--num_threads", type=integer_from(1), help="of torch on the CPU; by default its own choice")
    if device:
        parser.add_argument("--device", type=device_name, default="cpu", help="cpu, cuda or cuda:NUMBER")
    add_json_argument(parser)


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add what every sub-command has."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
