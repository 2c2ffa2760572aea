# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Loads models by the code that was saved with them, as where van_hf is not installed.

    python load_saved_code.py FOLDER

Each line of FOLDER/cases.txt names a model's folder in FOLDER and the Auto class that loads it. What the model returns
for FOLDER/pixel_values.pt, the logits or the last of its other outputs, goes to FOLDER/NAME.pt.
"""

import sys
from pathlib import Path

import huggingface_hub
import torch
import transformers

sys.modules["van_hf"] = None  # importing it fails from here on
huggingface_hub.HfApi.repo_exists = lambda *_: True  # AutoBackbone asks the Hub for a folder too

folder = Path(sys.argv[1])
for line in (folder / "cases.txt").read_text().splitlines():
    name, auto_class = line.split()
    auto_class = getattr(transformers, auto_class)
    model = auto_class.from_pretrained(folder / name, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.no_grad():
        outputs = model(torch.load(folder / "pixel_values.pt"))
    outputs = outputs.logits if hasattr(outputs, "logits") else outputs[0]
    torch.save(outputs[-1] if isinstance(outputs, tuple) else outputs, folder / f"{name}.pt")
