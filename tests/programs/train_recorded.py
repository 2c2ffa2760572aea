# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""train_seg.py, which leaves in the folder RECORDS the numbers of the samples that each step was taken with.

Each process appends lines `STEP NUMBER NUMBER ...` to a file of its own, `ATTEMPT-RANK`. Samples of a stream, which
have no numbers, are recorded by digests. The attempts of a run are
numbered by the variable ATTEMPT and, within it, by torchrun's restarts. Before the step DIE_AT, if there is such, the
last process is killed, unless it was restarted.
"""

import hashlib
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import train_seg

train_on_batches = train_seg.backward


class NumberedSamples(train_seg.TrainSamples):
    """Training samples with their numbers."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "number": index}


def digest(pixel_values):
    """Return a number that no other crop has."""
    return int.from_bytes(hashlib.blake2b(pixel_values.numpy().tobytes(), digest_size=6).digest(), "big")


def backward(run, model, forward, batches):
    """Take a step with samples that are recorded."""
    numbers = []

    def record(batch):
        numbers.extend(batch["number"].tolist() if "number" in batch else map(digest, batch["pixel_values"]))
        return batch

    step, rank = run.history.last_step + 1, run.accelerator.process_index
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if (str(step), rank, restarts) == (os.environ.get("DIE_AT"), run.accelerator.num_processes - 1, "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    results = train_on_batches(run, model, forward, map(record, batches))
    with open(Path(os.environ["RECORDS"], f"{os.environ['ATTEMPT']}.{restarts}-{rank}"), "a") as file:
        print(step, *numbers, file=file)
    return results


if __name__ == "__main__":
    train_seg.TrainSamples, train_seg.backward = NumberedSamples, backward
    train_seg.main()
