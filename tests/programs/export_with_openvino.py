# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Export a model to the FOLDER of the first argument, in int8 too; use two exports, drop them, and handle a signal.

Not in the process of the tests: nncf behaves itself where it sees pytest. Prints what was handled, and the reports to
their makers that the packages would have sent, had they had a network.
"""

import gc
import json
import os
import signal
import sys
from pathlib import Path

import torch
from conftest import tiny_config, write_export
from openvino_telemetry.utils.sender import TelemetrySender

from van_hf import VanForSemanticSegmentation
from van_hf.exports import ExportedSegmentationModel, export_model
from van_hf.quantization import quantize_export

folder, reports, handled = Path(sys.argv[1]), [], []
TelemetrySender.send = lambda self, backend, message: reports.append(str(message))
os.environ.pop("CI", None)

model = VanForSemanticSegmentation(tiny_config("semantic_fpn")).eval()
write_export(folder, model, "openvino")
quantize_export(export_model(model, "openvino"), "openvino", [torch.rand(1, 3, 64, 64)])
first = ExportedSegmentationModel.from_pretrained(folder)
second = ExportedSegmentationModel.from_pretrained(folder)
for used in ("first", "second"):  # the order in which OpenVINO leaves a stack that is gone
    del globals()[used]
    gc.collect()
signal.signal(signal.SIGINT, lambda *_: handled.append(1))
os.kill(os.getpid(), signal.SIGINT)
print(json.dumps({"handled": len(handled), "reports": reports, "CI": os.environ.get("CI")}))
