# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
from pathlib import Path

import numpy as np
import predict_raster
import pytest
import rasterio
import rasterio.shutil
import torch
from benchmarks.models import random_model
from conftest import tiny_config
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from van_hf import VanForSemanticSegmentation, VanImageProcessor
from van_hf.inference import slide_inference

NAMES = {0: "water", 1: "<forest & field>", 2: "road\n", 3: "roof"}
PALETTE = [[0, 0, 255], [0, 160, 0], [90, 90, 90], [200, 60, 50]]
HEIGHT, WIDTH = 150, 203
PLACE = {"crs": "EPSG:32633", "transform": from_origin(500_000, 4_200_000, 10, 10)}

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    model = random_model(tiny_config("semantic_fpn", id2label=NAMES, palette=PALETTE))
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    VanImageProcessor(size={"shortest_edge": 48}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    noise = torch.rand(1, 3, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, size=(HEIGHT, WIDTH), mode="bicubic").clamp(0, 1)[0]
    return (smooth * 255).byte().numpy()


def write(path: Path, pixels: np.ndarray, driver: str = "GTiff", mask: np.ndarray | None = None, **options) -> Path:
    count, height, width = pixels.shape
    profile = {"driver": driver, "dtype": pixels.dtype, "count": count, "height": height, "width": width, **options}
    colorinterp = profile.pop("colorinterp", None)
    with rasterio.open(path, "w", **profile) as dataset:
        if colorinterp:
            dataset.colorinterp = colorinterp
        dataset.write(pixels)
        if mask is not None:
            dataset.write_mask(mask)
    return path


@pytest.fixture
def scene(pixels, tmp_path) -> Path:
    return write(tmp_path / "scene.tif", pixels, **PLACE)


@pytest.fixture(scope="module")
def expected(folder, pixels) -> np.ndarray:
    """The labels of slide_inference on the whole picture."""
    model = VanForSemanticSegmentation.from_pretrained(folder).eval()
    inputs = VanImageProcessor.from_pretrained(folder)(torch.from_numpy(pixels), do_resize=False, return_tensors="pt")
    labels = slide_inference(model, inputs["pixel_values"], 48, 32, argmax=True)[0].numpy()
    assert len(np.unique(labels)) == len(NAMES)
    return labels


def run(*arguments: object) -> int:
    return predict_raster.main([*map(str, arguments), "--device", "cpu"])


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_geotiff_of_the_labels_of_slide_inference(folder, scene, expected, tmp_path, capsys):
    out = tmp_path / "mask.tif"
    assert run(folder, scene, "--output", out, "--blend", "none") == 0
    assert f"150 x 203 pixels segmented: {out}" in capsys.readouterr().out
    with rasterio.open(out) as dataset:
        assert (dataset.read(1) == expected).all()
        assert dataset.crs == PLACE["crs"] and dataset.transform == PLACE["transform"]
        assert dataset.dtypes == ("uint8",) and dataset.nodata == 255 and dataset.colorinterp == (ColorInterp.palette,)
        assert [list(dataset.colormap(1)[label][:3]) for label in NAMES] == PALETTE
        assert dataset.descriptions == ("label",)
        tags = dataset.tags(1)
        assert [tags[f"label_{label}"] for label in NAMES] == ["water", "<forest & field>", "road", "roof"]
        assert dataset.tags()["windows"] == "48 pixels every 32, blend none"
        assert dataset.profile["compress"] == "deflate" and dataset.profile["tiled"]
    # The names where GDAL itself looks for them.
    rasterio.shutil.copy(out, tmp_path / "copy.vrt", driver="VRT")
    assert "<Category>&lt;forest &amp; field&gt;</Category>" in (tmp_path / "copy.vrt").read_text()
    assert files(tmp_path) == ["copy.vrt", "mask.tif", "mask.tif.aux.xml", "scene.tif"]


def test_blending_is_the_default_and_changes_little(folder, scene, expected, tmp_path):
    assert run(folder, scene, "--output", tmp_path / "mask.tif") == 0
    assert 0.8 < (read(tmp_path / "mask.tif") == expected).mean() < 1
