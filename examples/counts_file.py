# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The file in which eval_seg.py keeps the counts of each picture, so that an evaluation that was stopped can go on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import torch

from van_hf.evaluation import PictureResult


def append_counts(file: TextIO, result: PictureResult) -> None:
    """Add a picture's counts to a file, as one line of JSON: its number, the cells that are not 0, their counts."""
    cells = result.counts.flatten().nonzero().flatten()
    record = {"idx": result.idx, "cells": cells.tolist(), "counts": result.counts.flatten()[cells].tolist()}
    file.write(json.dumps(record) + "\n")
    file.flush()


def read_counts(folder: Path, num_labels: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield what [`append_counts`] wrote to `*.jsonl` files of a folder, one picture at a time, each picture once.

    The last line of a process that was killed while it wrote it is left out.

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
