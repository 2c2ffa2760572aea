# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Loads alice/van from the Hub, with van_hf installed or by the code beside the weights.

    python load_by_name.py '{"installed": true, "revisions": ["main"], "output": "saved.pt"}'

runs it on image.png and pixels.pt of the working directory. The output file holds a dict: the logits of each revision,
what the named class and AutoBackbone return where van_hf is installed, and the masks of the pipeline's segments.
"""

import json
import sys

import torch
from PIL import Image
from transformers import AutoBackbone, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

arguments = json.loads(sys.argv[1])
if arguments["installed"]:
    import van_hf
else:
    sys.modules["van_hf"] = None  # importing it fails from here on

trust = {} if arguments["installed"] else {"trust_remote_code": True}
image = Image.open("image.png")
saved = {}
for revision in arguments["revisions"]:
    options = {"revision": revision, **trust}
    processor = AutoImageProcessor.from_pretrained("alice/van", **options)
    model = AutoModelForSemanticSegmentation.from_pretrained("alice/van", **options)
    module = "van_hf." if arguments["installed"] else "transformers_modules."
    assert type(model).__module__.startswith(module) and type(processor).__module__.startswith(module)
    with torch.no_grad():
        saved[revision] = model(**processor(image, return_tensors="pt")).logits
if arguments["installed"]:
    backbone = AutoBackbone.from_pretrained("alice/van")
    model = van_hf.VanForSemanticSegmentation.from_pretrained("alice/van")
    with torch.no_grad():
        saved["backbone"] = backbone(torch.load("pixels.pt")).feature_maps[-1]
        saved["named class"] = model(**processor(image, return_tensors="pt")).logits
segments = pipeline("image-segmentation", model="alice/van", **trust)(image)
saved["segments"] = {segment["label"]: list(segment["mask"].getdata()) for segment in segments}
torch.save(saved, arguments["output"])
