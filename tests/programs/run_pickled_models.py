# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Runs pickled models in a process that has imported nothing of van_hf: run_pickled_models.py FOLDER."""

import sys
from pathlib import Path

import torch

folder = Path(sys.argv[1])
pixel_values = torch.load(folder / "pixel_values.pt")
for path in sorted(folder.glob("*.model")):
    model = torch.load(path, weights_only=False)
    with torch.no_grad():
        outputs = model(pixel_values, output_hidden_states=True)
    torch.save(dict(outputs), path.with_suffix(".outputs"))
