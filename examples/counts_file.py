# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The file in which eval_seg.py keeps the counts of each picture, so that an evaluation that was stopped can go on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import torch

from van_hf.evaluation import PictureResult


def append_counts(file: TextIO, result: PictureResult, digest: str) -> None:
    """Add a picture's counts to a file, as one line of JSON: its number, the cells that are not 0, their counts.

    `digest` tells what the counts are of: see [`van_hf.data.samples.digests_of_files`].
    """
    cells = result.counts.flatten().nonzero().flatten()
    counts = result.counts.flatten()[cells]
    record = {"idx": result.idx, "digest": digest, "cells": cells.tolist(), "counts": counts.tolist()}
    file.write(json.dumps(record) + "\n")
    file.flush()


def read_counts(folder: Path, num_labels: int, digests: list[str]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield what [`append_counts`] wrote to `*.jsonl` files of a folder, one picture at a time, each picture once.

    The last line of a process that was killed while it wrote it is left out, and so are the counts of a picture whose
    files have changed since: a mended mask keeps its name.

    Args:
        folder: where the files are.
        num_labels: number of labels.
        digests: of each picture's files, as they are now.

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
                    is_current = record["digest"] == digests[idx]
                except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                    raise ValueError(f"{path}, line {number}, is no record of counts; remove {folder}") from error
                if is_current and idx not in seen:
                    seen.add(idx)
                    yield idx, matrix.view(num_labels, num_labels)
