# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
from van_hf.data import ade20k


def test_classes_and_palette():
    assert len(ade20k.CLASS_NAMES) == len(set(ade20k.CLASS_NAMES)) == len(ade20k.PALETTE) == 150
    assert ade20k.CLASS_NAMES[:8] == ("wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed")
    assert ade20k.CLASS_NAMES[-1] == "flag"
    assert ade20k.PALETTE[0] == [120, 120, 120] and ade20k.PALETTE[-1] == [92, 0, 255]
    assert all(name == name.strip() for name in ade20k.CLASS_NAMES)
    assert all(len(color) == 3 and set(color) <= set(range(256)) for color in ade20k.PALETTE)
