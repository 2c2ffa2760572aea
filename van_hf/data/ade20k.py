# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""ADE20K's scene parsing benchmark: its 150 classes, and where its data are.

In the annotations 0 is "other" and 1..150 are the classes; `CLASS_NAMES[i]` is raw label i + 1.
"""

from __future__ import annotations

import json
from pathlib import Path

# {class name: [red, green, blue]}, in the order of the labels.
_CLASSES = json.loads((Path(__file__).parent / "ade20k_classes.json").read_text(encoding="utf-8"))
CLASS_NAMES = tuple(_CLASSES)
PALETTE = [list(color) for color in _CLASSES.values()]

# The Hub repository's main branch holds a loading script, which datasets >= 4 refuses; this commit of its
# refs/convert/parquet holds the same data as parquet files.
HUB_REPOSITORY = "zhoubolei/scene_parse_150"
HUB_REVISION = "e660d866a1351c70bcf07925d2600b60bd6e3bc3"
HUB_DATA_FILES = {
    "train": "scene_parsing/train/*.parquet",
    "validation": "scene_parsing/validation/*.parquet",
}
