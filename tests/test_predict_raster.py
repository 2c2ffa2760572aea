# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import predict_raster
import pytest
import rasterio
import rasterio.shutil
import torch
from benchmarks.models import random_model
from conftest import PROGRAMS, ROOT, child_environment, largest_file, needs_exporters, tiny_config
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from van_hf import VanForSemanticSegmentation, VanImageProcessor, raster_inference, rasters
from van_hf.inference import slide_inference

NAMES = {0: "water", 1: "<forest & field>", 2: "road\n", 3: "roof"}
PALETTE = [[0, 0, 255], [0, 160, 0], [90, 90, 90], [200, 60, 50]]
HEIGHT, WIDTH = 150, 203
PLACE = {"crs": "EPSG:32633", "transform": from_origin(500_000, 4_200_000, 10, 10)}
RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)

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


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(folder, scene, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(raster_inference, "MAX_HELD_BYTES", 2**16)
    out = tmp_path / "mask.tif"
    arguments = [folder, scene, "--output", out, "--blend", "none", "--device", "cpu"]
    work = tmp_path / ".partial-mask.tif"
    for function, call in {"savez_compressed": 3, "write": 2}.items():
        command = [sys.executable, PROGRAMS / "predict_raster_killed.py", function, str(call), *arguments]
        paths = os.pathsep.join(str(ROOT / name) for name in ("", "tests", "examples"))
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not out.exists() and len(list(work.glob("0*.npz"))) == (2 if call == 3 else 15)
    # As a machine that lost its power could leave a file.
    (work / "000001-0000.npz").write_bytes((work / "000001-0000.npz").read_bytes()[:-30])
    computed = []
    monkeypatch.setattr(predict_raster.Job, "save", counted(predict_raster.Job.save, computed))
    assert run(*arguments[:-2]) == 0
    assert [(tile.row, tile.strip) for tile in computed] == [(1, 0)]
    assert (read(out) == expected).all()
    assert files(tmp_path) == ["mask.tif", "mask.tif.aux.xml", "scene.tif"] and not work.exists()


def counted(save, tiles: list):
    def saved(self, tile, labels):
        tiles.append(tile)
        save(self, tile, labels)

    return saved


def stop_after(monkeypatch, number: int) -> None:
    """Lets the disk be full after a number of tiles."""
    save, tiles = predict_raster.Job.save, []

    def full(self, tile, labels):
        tiles.append(tile)
        if len(tiles) > number:
            with largest_file(10):
                save(self, tile, labels)
        save(self, tile, labels)

    monkeypatch.setattr(predict_raster.Job, "save", full)


def test_a_full_disk_stops_a_run_that_goes_on_later(folder, scene, expected, tmp_path, monkeypatch, capsys):
    out, work = tmp_path / "mask.tif", tmp_path / ".partial-mask.tif"
    arguments = (folder, scene, "--output", out, "--blend", "none")
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        assert run(*arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        error.startswith("error: ") and f"{work / '000002-0000.npz'}" in error and "the same command goes on" in error
    )
    assert files(work) == ["000000-0000.npz", "000001-0000.npz", "settings.json"]

    # The GeoTIFF itself finds no room, of which rasterio says nothing.
    with monkeypatch.context() as patched:

        def on_a_full_disk(*args):
            with largest_file(1000):
                rasters.write_labels(*args)

        patched.setattr(predict_raster, "write_labels", on_a_full_disk)
        assert run(*arguments) == 1
    assert f"error: {work / 'mask.tif'} cannot be written: " in capsys.readouterr().err
    assert not out.exists()

    assert run(folder, scene, "--output", out, "--blend", "smooth", "--stride", 40) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{work} holds what a run with another --crop_size or --stride, another --blend has done" in error
    assert run(*arguments) == 0
    assert (read(out) == expected).all()
    assert files(tmp_path) == ["mask.tif", "mask.tif.aux.xml", "scene.tif"]


def test_a_run_goes_on_with_the_same_picture_only(folder, scene, pixels, tmp_path, monkeypatch, capsys):
    out = tmp_path / "mask.tif"
    for number_of_tiles in (1, 2):
        with monkeypatch.context() as patched:
            stop_after(patched, 1)
            assert run(folder, scene, "--output", out) == 1
        assert len(files(tmp_path / ".partial-mask.tif")) == number_of_tiles + 1
        Path(f"{scene}.aux.xml").write_text("<PAMDataset />")  # as programs leave that only look at the picture
    write(scene, pixels[::-1], **PLACE)
    assert run(folder, scene, "--output", out) == 2
    assert "another picture has done" in capsys.readouterr().err


@pytest.mark.parametrize("overwritten", [False, True])
def test_a_run_that_was_killed_as_it_cleared_up_is_finished(
    folder, scene, expected, tmp_path, monkeypatch, capsys, overwritten
):
    output = tmp_path / "mask.tif"
    arguments = (folder, scene, "--output", output, "--crop_size", 48, "--stride", 32, "--blend", "none")

    def die(job):
        next(job.folder.glob("*.npz")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(predict_raster.Job, "clear", die)
        with pytest.raises(KeyboardInterrupt):
            run(*arguments)
    job_folder = tmp_path / ".partial-mask.tif"
    assert output.exists() and job_folder.exists()
    if overwritten:  # by something else: then it is in the way, as ever
        output.write_bytes(b"another")
        assert run(*arguments) == 2
        assert "is there already" in capsys.readouterr().err and job_folder.exists()
        return
    before = output.stat()
    monkeypatch.setattr(predict_raster, "load_model", None)
    assert run(*arguments) == 0
    assert "was finished" in capsys.readouterr().out
    assert output.stat() == before and not job_folder.exists()
    with rasterio.open(output) as dataset:
        np.testing.assert_array_equal(dataset.read(1), expected)


def test_an_output_that_another_run_has_written_meanwhile_stays(folder, scene, tmp_path, monkeypatch, capsys):
    out = tmp_path / "mask.tif"

    def load_slowly(*arguments):
        out.write_text("of another run")
        return load_model(*arguments)

    load_model = predict_raster.load_model
    monkeypatch.setattr(predict_raster, "load_model", load_slowly)
    assert run(folder, scene, "--output", out) == 2
    assert f"--output {out} is there already" in capsys.readouterr().err
    assert out.read_text() == "of another run" and files(tmp_path) == ["mask.tif", "scene.tif"]


def test_a_tile_that_is_damaged_anywhere_is_computed_anew(tmp_path):
    grid = raster_inference.WindowGrid((48, 48), 48, 32, 1)
    job = predict_raster.Job(tmp_path, grid)
    (tile,) = grid.tiles()
    labels = np.random.default_rng(0).integers(0, 7, size=tile.size, dtype=np.uint8)
    job.save(tile, labels)
    path = job.path(0, 0)
    whole = path.read_bytes()
    missing = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        found = job.load(0, 0)
        missing += found is None
        assert found is None or (found == labels).all(), place
    assert missing > 0.9 * len(whole)


def test_a_picture_that_changes_meanwhile_gives_no_labels(folder, scene, pixels, tmp_path, monkeypatch, capsys):
    save, out = predict_raster.Job.save, tmp_path / "mask.tif"

    def replaced(*arguments):
        save(*arguments)
        write(scene, pixels[::-1], **PLACE)

    with monkeypatch.context() as patched:
        patched.setattr(predict_raster.Job, "save", replaced)
        assert run(folder, scene, "--output", out) == 1
    work = tmp_path / ".partial-mask.tif"
    assert f"error: {scene} was changed meanwhile" in capsys.readouterr().err and not out.exists()
    assert run(folder, scene, "--output", out) == 2
    assert f"{work} holds what a run with another picture has done" in capsys.readouterr().err


def as_written(tmp_path: Path, pixels: np.ndarray) -> dict[str, tuple[Path, bool]]:
    """Files of one picture by their kind, and whether it is grey."""
    grey = pixels[:1]
    opaque = np.full_like(grey, 255)
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    with_alpha = {"photometric": "rgb", "colorinterp": RGBA}
    swapped = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    kinds = {
        "BigTIFF": (write(tmp_path / "big.tif", pixels, bigtiff="yes", compress="lzw", **tiles), False),
        "PNG": (write(tmp_path / "rgb.png", pixels, "PNG"), False),
        "RGBA": (write(tmp_path / "rgba.tif", np.concatenate([pixels, opaque]), **with_alpha), False),
        "RGBA PNG": (write(tmp_path / "rgba.png", np.concatenate([pixels, opaque]), "PNG"), False),
        "grey": (write(tmp_path / "grey.tif", grey), True),
        "grey and alpha": (write(tmp_path / "grey.png", np.concatenate([grey, opaque]), "PNG"), True),
        "BGR": (write(tmp_path / "bgr.tif", pixels[::-1], photometric="minisblack", colorinterp=swapped), False),
    }
    rasterio.shutil.copy(tmp_path / "big.tif", tmp_path / "big.vrt", driver="VRT")
    return kinds | {"VRT": (tmp_path / "big.vrt", False)}


def test_pixels_of_all_kinds_of_files(pixels, tmp_path):
    rows, columns = slice(40, 90), slice(100, 203)
    for kind, (path, is_grey) in as_written(tmp_path, pixels).items():
        with rasters.open_raster(path) as raster:
            found, valid = raster.read(rows, columns)
            assert raster.size == (HEIGHT, WIDTH) and valid.all() and valid.shape == (50, 103), kind
            assert (found == (pixels[:1] if is_grey else pixels)[:, rows, columns]).all(), kind
            assert found.shape == (3, 50, 103), kind
    with rasters.open_raster(tmp_path / "big.vrt") as raster:
        assert {path.name for path in raster.files} == {"big.vrt", "big.tif"}


def test_large_jpegs_are_read(pixels, tmp_path):
    path = write(tmp_path / "photo.jpg", pixels, "JPEG", quality=95)
    with rasters.open_raster(path) as raster:
        found, valid = raster.read(slice(0, HEIGHT), slice(0, WIDTH))
    assert valid.all() and np.abs(found.astype(int) - pixels).mean() < 6


@pytest.mark.parametrize("kind", ["nodata value", "alpha", "mask"])
def test_nodata_stays_nodata(folder, pixels, tmp_path, kind):
    hidden = np.zeros((HEIGHT, WIDTH), bool)
    hidden[:, :90] = hidden[100:, :] = True
    hidden[120, 20] = False
    shown = np.where(hidden, 0, np.maximum(pixels, 1))
    visible = np.where(hidden, 0, 255).astype(np.uint8)
    path = tmp_path / "scene.tif"
    if kind == "nodata value":
        write(path, shown, nodata=0)
    elif kind == "alpha":
        write(path, np.concatenate([shown, visible[None]]), photometric="rgb", colorinterp=RGBA)
    else:
        write(path, shown, mask=visible)
    out = tmp_path / "mask.tif"
    assert run(folder, path, "--output", out) == 0
    labels = read(out)
    assert ((labels == 255) == hidden).all()


def test_ground_control_points_go_along(folder, pixels, tmp_path):
    points = [
        GroundControlPoint(row, col, 10 + col / 100, 50 - row / 100) for row, col in ((0, 0), (0, 200), (150, 0))
    ]
    path = write(tmp_path / "scene.tif", pixels, gcps=points, crs="EPSG:4326")
    assert run(folder, path, "--output", tmp_path / "mask.tif") == 0
    with rasterio.open(tmp_path / "mask.tif") as dataset:
        found, crs = dataset.gcps
    assert crs == "EPSG:4326"
    assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]


def test_overviews_are_of_the_most_frequent_label(tmp_path, pixels):
    labels = np.zeros((1100, 700), np.uint8)
    labels[:, 350:] = 1
    labels[::3, ::3] = 2  # never half of four pixels
    labels[:, 600:] = 255
    path = write(tmp_path / "scene.png", np.zeros((3, 1100, 700), np.uint8), "PNG")
    out = tmp_path / "mask.tif"
    with rasters.open_raster(path) as raster:
        rasters.write_labels(out, raster, lambda: np.split(labels, [300]), list("abc"), PALETTE[:3], 255, {})
    with rasterio.open(out) as dataset:
        assert dataset.overviews(1) == [2, 4]
        assert (dataset.read(1) == labels).all()
    with rasterio.open(out, overview_level=0) as dataset:
        found = dataset.read(1)
    assert (found[:, :170] == 0).all() and (found[:, 180:298] == 1).all() and (found[:, 302:] == 255).all()


def test_more_labels_than_8_bits_have(tmp_path):
    labels = np.arange(300, dtype=np.uint16).reshape(20, 15)
    labels[0, 0] = 65535
    path = write(tmp_path / "scene.png", np.zeros((3, 20, 15), np.uint8), "PNG")
    palette = [[label % 256, label // 256, 7] for label in range(300)]
    with rasters.open_raster(path) as raster:
        names = [f"name {label}" for label in range(300)]
        rasters.write_labels(tmp_path / "mask.tif", raster, lambda: [labels], names, palette, 65535, {})
    with rasterio.open(tmp_path / "mask.tif") as dataset:
        assert dataset.dtypes == ("uint16",) and dataset.nodata == 65535 and (dataset.read(1) == labels).all()
        assert dataset.colormap(1)[299] == (43, 1, 7, 255)


def odd_files(tmp_path: Path, pixels: np.ndarray) -> dict[Path, str]:
    """Files that cannot be segmented, and what is said of them."""
    four = np.concatenate([pixels, pixels[:1]])
    palette = write(tmp_path / "palette.tif", pixels[:1], photometric="palette")
    with rasterio.open(palette, "r+") as dataset:
        dataset.write_colormap(1, {0: (1, 2, 3)})
    (tmp_path / "text.tif").write_text("no picture")
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 256}
    return {
        tmp_path / "nowhere.tif": "is no file",
        tmp_path: "is no file",
        tmp_path / "text.tif": "is no picture that can be read",
        write(tmp_path / "deep.tif", pixels.astype(np.uint16)): "bands of uint16; .* -ot Byte",
        write(tmp_path / "ink.png", pixels[:1] // 128, "PNG", nbits=1): "has 1 bit.* -scale 0 1 0 255",
        write(tmp_path / "four.tif", four, photometric="minisblack"): "has 4 bands .* -b 1 -b 2 -b 3",
        palette: "-expand rgb",
        write(tmp_path / "blocks.tif", pixels, **tiles): "blocks of 256 x 128 pixels.* TILED=YES",
    }


def test_pictures_that_cannot_be_segmented_are_named(folder, pixels, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rasters, "MAX_BLOCK_BYTES", 256 * 127 * 3)
    out = tmp_path / "out" / "mask.tif"
    for path, message in odd_files(tmp_path, pixels).items():
        assert run(folder, path, "--output", out) == 2
        assert re.search(f"^error: {re.escape(str(path))} .*{message}", capsys.readouterr().err, re.M)
    assert not out.parent.exists()


def test_a_picture_damaged_in_the_middle_is_named(folder, pixels, tmp_path, capsys):
    path = write(tmp_path / "scene.png", pixels, "PNG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run(folder, path, "--output", tmp_path / "mask.tif") == 1
    assert f"error: {path} cannot be read at rows " in capsys.readouterr().err
    assert not (tmp_path / "mask.tif").exists()


def test_a_picture_that_a_vrt_of_a_vrt_is_made_of_stays(folder, scene, tmp_path, capsys):
    rasterio.shutil.copy(scene, tmp_path / "inner.vrt", driver="VRT")
    inner = (tmp_path / "inner.vrt").read_text()
    outer = tmp_path / "outer.vrt"
    outer.write_text(inner.replace(scene.name, "inner.vrt"))
    before = scene.read_bytes()
    assert run(folder, outer, "--output", scene, "--overwrite") == 2
    assert "is the picture itself, or a part of it" in capsys.readouterr().err
    assert scene.read_bytes() == before


def test_outputs_that_cannot_be_written(folder, scene, tmp_path, capsys):
    taken = tmp_path / "taken.tif"
    taken.write_text("something")
    before = scene.read_bytes()
    for output, message in {
        scene: "is the picture itself",
        taken: "is there already; name another one, or add --overwrite",
        tmp_path: "must end with .tif or .tiff",
        tmp_path / "mask.png": "must end with .tif or .tiff",
        taken / "mask.tif": "taken.tif",
        tmp_path / os.fsdecode(b"mask\xff.tif"): "is a name that is not UTF-8",
    }.items():
        assert run(folder, scene, "--output", output) == 2
        assert message in capsys.readouterr().err
    assert run(folder, scene, "--output", scene, "--overwrite") == 2
    assert scene.read_bytes() == before
    assert run(folder, scene, "--output", taken, "--overwrite") == 0
    assert read(taken).shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--crop_size", 16), "--crop_size must be 32 or more, got 16"),
        (("--crop_size", 64, "--stride", 65), "--stride must be from 1 to --crop_size 64, got 65"),
    ],
)
def test_windows_that_make_no_sense(folder, scene, tmp_path, capsys, arguments, message):
    assert run(folder, scene, "--output", tmp_path / "mask.tif", *arguments) == 2
    assert message in capsys.readouterr().err
    assert files(tmp_path) == ["scene.tif"]


@pytest.mark.slow
def test_without_rasterio_it_says_what_to_install():
    command = [sys.executable, PROGRAMS / "import_without.py", "predict_raster", "rasterio"]
    environment = child_environment(PYTHONPATH=os.pathsep.join(str(ROOT / name) for name in ("", "examples")))
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: pictures of any size need rasterio, which is not installed: pip install")


@needs_exporters
def test_exports_are_segmented_in_windows_of_their_size(export_of, scene, tmp_path, capsys):
    folder, _ = export_of("torch_export", "semantic_fpn")
    options = ("--trust_pickle", "--crop_size", 48)
    assert run(folder, scene, "--output", tmp_path / "mask.tif", *options) == 0
    assert len(np.unique(read(tmp_path / "mask.tif"))) > 1
    assert run(folder, scene, "--output", tmp_path / "b.tif", *options, "--dtype", "bfloat16") == 2
    assert "computes in its own precision" in capsys.readouterr().err
