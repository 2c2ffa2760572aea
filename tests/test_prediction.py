# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import io
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

from van_hf import VanImageProcessor
from van_hf.prediction import describe_classes, list_pictures, mask_png, read_picture


def test_pictures_of_a_folder(tmp_path):
    for name in ("b.JPG", "a.png", "day/c.tif", ".hidden/d.png", ".e.png", "notes.txt", "out/f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_pictures(tmp_path, True, tmp_path / "out") == [Path("a.png"), Path("b.JPG"), Path("day/c.tif")]
    assert list_pictures(tmp_path, False, tmp_path / "out") == [Path("a.png"), Path("b.JPG")]


def test_pictures_are_read_from_files_and_from_memory(tmp_path):
    path = tmp_path / "a.png"
    Image.new("LA", (5, 4), (0, 0)).save(path)  # black, all of it transparent
    for file in (path, io.BytesIO(path.read_bytes())):
        picture = read_picture(file, VanImageProcessor())
        assert picture.shape == (3, 4, 5) and (picture == 255).all()
    with pytest.raises(Image.UnidentifiedImageError):
        read_picture(io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0"), VanImageProcessor())


@pytest.mark.parametrize(("num_labels", "mode"), [(7, "P"), (300, "I;16")])
def test_label_maps_become_png(num_labels, mode):
    labels = np.random.default_rng(0).integers(0, num_labels, (9, 6))
    mask = Image.open(io.BytesIO(mask_png(labels, tiny_config(num_labels=num_labels))))
    assert mask.format == "PNG" and mask.mode == mode
    assert (np.asarray(mask) == labels).all()


def test_classes_come_largest_first():
    labels = np.array([[2, 0, 2, 2]])
    assert describe_classes(labels, {0: "sky", 1: "tree", 2: "road"}) == [
        {"label": "road", "id": 2, "share": 0.75},
        {"label": "sky", "id": 0, "share": 0.25},
    ]
