# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Streams the training pictures of a Hub data set through two loading processes, from the beginning and once more from
its middle, and prints as JSON what they are.

    stream_from_hub.py NAME
"""

import json
import sys

import torch

from van_hf.data import TrainAugmentation, load_segmentation_dataset
from van_hf.data.streaming import StreamedTrainSamples, StreamPlaces


def read(split, places, num_batches):
    """Return a line for each sample of a process."""
    samples = StreamedTrainSamples(
        split, TrainAugmentation(16, (40, 24)), places=places.places, num_streams=2, block_size=4, batch_size=1,
        num_batches=num_batches, num_labels=2, do_reduce_labels=False, seed=0,
    )  # fmt: skip
    lines = []
    for batch in torch.utils.data.DataLoader(samples, num_workers=2, generator=torch.Generator()):
        places.follow(batch["place"][-1].tolist())
        lines.append([*places.places[-1], batch["pixel_values"].sum().item()])
    return lines


if __name__ == "__main__":
    dataset = load_segmentation_dataset(sys.argv[1], streaming=True)
    split = dataset.splits["train"]
    whole, places = read(split, StreamPlaces(0, 1, 2), 12), StreamPlaces(0, 1, 2)
    parts = read(split, places, 5) + read(split, places, 7)
    print(json.dumps({"files": split.files, "labels": list(dataset.id2label.values()), "whole": whole, "parts": parts,
                      "validation": len(dataset.splits["validation"])}))  # fmt: skip
