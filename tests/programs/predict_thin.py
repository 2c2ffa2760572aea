# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Segment a picture of one row and one of one column, of NUMBER pixels each; print the peak memory in MB of each."""

import resource
import sys

import torch
from conftest import tiny_config

from van_hf import VanForSemanticSegmentation, VanImageProcessor
from van_hf.inference import predict


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


length = int(sys.argv[1])
torch.manual_seed(0)
model = VanForSemanticSegmentation(tiny_config("semantic_fpn", num_labels=150)).eval()
predict(model, VanImageProcessor(), torch.zeros(3, 32, 2048, dtype=torch.uint8))
before = peak()
for height, width in ((1, length), (length, 1)):
    labels = predict(model, VanImageProcessor(), torch.zeros(3, height, width, dtype=torch.uint8))
    assert labels.shape == (height, width)
    print(f"{peak() - before:.0f}")
