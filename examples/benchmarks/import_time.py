# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""`import van_hf` beside importing what it imports of torch and transformers, each in new processes."""

import argparse
import ast
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm.auto import tqdm

from .measuring import Table, add_common_arguments

PACKAGE = "van_hf"
BASE_PACKAGES = ("torch", "transformers")
HEAVY_MODULES = (
    "accelerate", "cv2", "datasets", "evaluate", "IPython", "matplotlib", "onnxruntime", "pandas", "pyarrow", "scipy",
    "sklearn", "tensorboard", "tensorflow", "torch._dynamo", "torch._inductor", "torchvision", "torchvision.io",
    "torchvision.models", "triton",
)  # fmt: skip
PROGRAM = """\
import json, sys, time
start = time.perf_counter()
{statements}
seconds = time.perf_counter() - start
print(json.dumps({{"seconds": seconds, "modules": sorted(sys.modules)}}))
"""


def add_command(commands) -> None:
    help = "import van_hf beside what it imports of torch and transformers"
    parser = commands.add_parser("import", help=help, description=help)
    add_common_arguments(parser, repeats=7, device=False)
    parser.set_defaults(run=benchmark_import)


def run_imports(statements: str) -> dict:
    """Return the `seconds` that import statements take in a new process, and the names of all `modules` there."""
    command = [sys.executable, "-c", PROGRAM.format(statements=statements)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def baseline_statements(modules: list[str]) -> str:
    """Return the import statements of torch and transformers that stand at the top of van_hf's modules.

    Args:
        modules: names of modules, of which those of van_hf are read.
    """
    statements: dict[str, None] = {}
    for name in modules:
        if name.split(".")[0] != PACKAGE:
            continue
        source = Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported = [node.module]
            else:
                continue
            if any(other.split(".")[0] in BASE_PACKAGES for other in imported):
                statements[ast.unparse(node)] = None
    return "\n".join(statements)


def benchmark_import(args: argparse.Namespace) -> Iterator[Table]:
    sides = {PACKAGE: f"import {PACKAGE}"}
    warm_up = run_imports(sides[PACKAGE])  # reads the files from the disk, too
    sides = {"torch and transformers": baseline_statements(warm_up["modules"]), **sides}
    runs: dict[str, list[dict]] = {name: [] for name in sides}
    turns = [name for _ in range(args.repeats) for name in sides]
    for name in tqdm(turns, desc="Importing", unit="process", leave=False):
        runs[name].append(run_imports(sides[name]))
    seconds = {name: statistics.median(run["seconds"] for run in measured) for name, measured in runs.items()}
    loaded = {name: set(measured[0]["modules"]) for name, measured in runs.items()}
    base = "torch and transformers"
    beyond = loaded[PACKAGE] - loaded[base]
    rows = [
        {
            "side": name,
            "seconds": seconds[name],
            "share": seconds[name] / seconds[base],
            "modules": len(loaded[name]),
            "heavy modules beyond": ", ".join(sorted(beyond.intersection(HEAVY_MODULES))) or "none"
            if name == PACKAGE
            else None,
        }
        for name in sides
    ]
    packages = sorted({name.split(".")[0] for name in beyond} - {PACKAGE})
    notes = [
        f"Packages of the modules that van_hf loads beyond: {', '.join(packages) or 'none'}.",
        "The baseline's statements:",
        *("  " + line for line in sides[base].splitlines()),
    ]
    yield Table("import van_hf", rows, notes)
