# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import io
import sys
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
import rasterio
import torch
from conftest import random_bands, write_tiff
from PIL import Image
from rasterio.enums import ColorInterp

from van_hf.bands import DTYPES, copy_without_place, open_bands
from van_hf.data import (
    SegmentationDataset,
    TrainAugmentation,
    TrainSamples,
    load_segmentation_dataset,
    read_bands,
    read_example,
)

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def load(folder, bands=(4, 2)) -> SegmentationDataset:
    return load_segmentation_dataset(str(folder), bands=bands)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bands_of_any_numbers_are_read_as_they_are(tmp_path, dtype):
    if dtype == "int8" and "int8" not in rasterio.dtypes.dtype_fwd.values():
        pytest.skip("this GDAL has no int8")
    values = random_bands(dtype)
    path = write_tiff(tmp_path / "a.tif", values)
    read = read_bands(path, [4, 2])
    assert read.dtype == torch.float32
    np.testing.assert_array_equal(read, values[[3, 1]].astype(np.float32))
    torch.testing.assert_close(read_bands(path.read_bytes(), (4, 2)), read, rtol=0, atol=0)
    torch.testing.assert_close(read_bands({"bytes": None, "path": str(path)}, (4, 2)), read, rtol=0, atol=0)
    with open_bands(path, [1, 3]) as picture:
        assert (picture.size, picture.dtype, picture.count) == ((30, 40), dtype, 4)
        part = picture.read(slice(5, 9), slice(30, 40))
    np.testing.assert_array_equal(part, values[[0, 2], 5:9, 30:40].astype(np.float32))


def test_what_has_no_data_is_nan(tmp_path):
    values = random_bands("float32")
    values[2, 0, 0], values[1, 5, 5], values[3, 9, 9] = np.nan, -1, np.inf
    read = read_bands(write_tiff(tmp_path / "a.tif", values, nodata=-1), [1, 2, 3, 4]).numpy()
    missing = np.zeros(values.shape, dtype=bool)
    missing[2, 0, 0] = missing[1, 5, 5] = missing[3, 9, 9] = True
    np.testing.assert_array_equal(np.isnan(read), missing)
    np.testing.assert_array_equal(read[~missing], values[~missing])


def test_a_band_that_gdal_takes_for_transparency_is_data_where_it_is_asked_for(tmp_path):
    values = random_bands("uint8")
    values[3, :15] = 0
    path = write_tiff(tmp_path / "a.tif", values, photometric="rgb", alpha="yes")
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[3] == ColorInterp.alpha  # what makes this a trap
    np.testing.assert_array_equal(read_bands(path, [1, 2, 3, 4]), values.astype(np.float32))
    # Without it, it says which pixels there are.
    np.testing.assert_array_equal(read_bands(path, [1]).isnan().numpy()[0], values[3] == 0)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_transparent_pixels_have_no_data_whatever_the_number_of_bands(tmp_path, count):
    values = random_bands("uint16", count=count) + np.uint16(1)
    values[-1, :9] = 0
    path = write_tiff(tmp_path / "a.tif", values)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [*[ColorInterp.undefined] * (count - 1), ColorInterp.alpha]
    read = read_bands(path, list(range(1, count)))
    assert read[:, :9].isnan().all()
    np.testing.assert_array_equal(read[:, 9:], values[: len(read), 9:].astype(np.float32))


def test_reading_does_not_repeat_what_was_warned_of(tmp_path):
    path = write_tiff(tmp_path / "a.tif", random_bands())
    read_bands(path, [1])
    filters = list(warnings.filters)
    read_bands(path, [1])
    assert warnings.filters == filters
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            read_bands(path, [1])
            warnings.warn("again", stacklevel=1)
    assert [str(warning.message) for warning in seen].count("again") == 1


@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha"])
def test_copies_tell_nothing_but_the_values(tmp_path, kind):
    values = random_bands("uint16") + np.uint16(1)
    values[3, :9] = 0
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 4.2e6)}
    path = write_tiff(tmp_path / "a.tif", values, **place, **({"nodata": 7} if kind == "nodata" else {}))
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(secret="here")
        dataset.colorinterp = [
            *[ColorInterp.undefined] * 3,
            ColorInterp.alpha if kind == "alpha" else ColorInterp.gray,
        ]
        if kind == "mask":
            dataset.write_mask(values[0] > 50)
    copy_without_place(path, tmp_path / "b.tif")
    for bands in ([1, 2, 3], [4, 1]):
        torch.testing.assert_close(
            read_bands(tmp_path / "b.tif", bands), read_bands(path, bands), rtol=0, atol=0, equal_nan=True
        )
    assert (kind == "alpha") == read_bands(path, [1])[0, :9].isnan().all()
    with rasterio.open(tmp_path / "b.tif") as dataset:
        assert dataset.crs is None and dataset.transform.is_identity and "secret" not in dataset.tags()
        assert dataset.dtypes == ("uint16",) * 4


def test_what_is_no_picture_of_these_bands_is_told(tmp_path):
    path = write_tiff(tmp_path / "a.tif", random_bands())
    for bands in ([0], [1, 1], [], [1.0], 3):
        with pytest.raises(ValueError, match="bands must be numbers of bands, from 1"):
            read_bands(path, bands)
    with pytest.raises(ValueError, match=r"has 4 band\(s\), and no band 5, 12"):
        read_bands(path, [1, 5, 12])
    complex_path = write_tiff(tmp_path / "c.tif", random_bands("complex64"))
    with pytest.raises(ValueError, match="bands of complex64; it must be one of uint8"):
        read_bands(complex_path, [1])
    (tmp_path / "text.tif").write_text("no picture")
    with pytest.raises(ValueError, match="no picture in one of GTiff"):
        read_bands(tmp_path / "text.tif", [1])
    with pytest.raises(ValueError, match="no picture in one of GTiff"):
        read_bands(b"", [1])
    with pytest.raises(FileNotFoundError):
        read_bands(tmp_path / "none.tif", [1])
    damaged = tmp_path / "damaged.tif"
    write_tiff(damaged, random_bands(height=400, width=400), tiled=True, blockxsize=64, blockysize=64)
    damaged.write_bytes(damaged.read_bytes()[:100_000])
    with pytest.raises((OSError, ValueError)):
        read_bands(damaged, [1])


def test_a_file_that_names_other_files_is_not_read(tmp_path):
    write_tiff(tmp_path / "a.tif", random_bands())
    (tmp_path / "b.vrt").write_text(
        '<VRTDataset rasterXSize="40" rasterYSize="30"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{tmp_path}/a.tif</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with rasterio.open(tmp_path / "b.vrt"):  # which rasterio alone would open
        pass
    for file in (tmp_path / "b.vrt", (tmp_path / "b.vrt").read_bytes()):
        with pytest.raises(ValueError, match="no picture in one of GTiff"):
            read_bands(file, [1])


def test_examples_have_bands_and_ignore_what_none_has(band_files):
    dataset = load(band_files)
    arguments = {"num_labels": 3, "do_reduce_labels": False, "name": "scenes train", "bands": dataset.bands}
    image, labels = read_example(dataset.splits["train"], 1, **arguments)
    assert image.dtype == torch.float32 and image.shape == (2, 31, 40)
    assert image[:, :10].isnan().all() and not image[:, 10:].isnan().any()
    assert (labels[:10] == 255).all()
    np.testing.assert_array_equal(labels[10:].flatten(), np.arange(400, 1240) % 3)
    # Of one band that has no data the others still tell something.
    image, labels = read_example(dataset.splits["train"], 1, **arguments | {"bands": (1, 2)})
    assert image[0, 20].isnan().all() and not image[1, 20].isnan().any() and (labels[20] < 3).all()


def test_splits_in_parquet_files_are_read_too(tmp_path, band_files):
    """And what is read of them is the same."""
    folder = tmp_path / "parquet"
    source = load(band_files)
    folder.mkdir()
    for name, split in source.splits.items():
        contents = [Path(row["image"]["path"]).read_bytes() for row in split]
        rows = [
            {"image": {"bytes": content, "path": None}, "annotation": row["annotation"]}
            for content, row in zip(contents, split, strict=True)
        ]
        features = datasets.Features(image=datasets.Image(decode=False), annotation=datasets.Image())
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{name}.parquet")
    dataset = load_segmentation_dataset(str(folder), bands=[4, 2], id2label=["a", "b", "c"])
    arguments = {"num_labels": 3, "do_reduce_labels": False, "name": "x", "bands": (4, 2)}
    for idx in range(3):
        for mine, other in zip(
            read_example(dataset.splits["train"], idx, **arguments),
            read_example(source.splits["train"], idx, **arguments),
            strict=True,
        ):
            torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)


def train_samples(dataset, num_samples=12, **augmentation):
    return TrainSamples(
        dataset.splits["train"],
        TrainAugmentation(24, **{"scale": (60, 40), "photometric_distortion": False} | augmentation),
        num_labels=3,
        do_reduce_labels=False,
        seed=0,
        num_samples=num_samples,
        bands=dataset.bands,
    )


def test_samples_of_bands_are_crops_without_rounding(band_files):
    dataset = load(band_files)
    samples = train_samples(dataset)
    for index in range(12):
        sample = samples[index]
        assert sample["pixel_values"].dtype == torch.float32 and sample["pixel_values"].shape == (2, 24, 24)
        missing = sample["pixel_values"].isnan().all(dim=0)
        assert (sample["labels"][missing] == 255).all() and (sample["labels"][~missing] < 3).all()


def test_crops_of_a_picture_at_its_own_size_are_parts_of_it(band_files):
    dataset = load(band_files)
    dataset.splits["train"] = dataset.splits["train"].select([0])
    samples = train_samples(dataset, scale=(40, 30), ratio_range=(1, 1), cat_max_ratio=1)
    values = read_bands(dataset.splits["train"][0]["image"], dataset.bands)
    places = values.unfold(1, 24, 1).unfold(2, 24, 1).flatten(1, 2).movedim(1, 0)
    for index in range(6):
        crop = samples[index]["pixel_values"]
        assert ((places == crop) | (places.flip(-1) == crop)).flatten(1).all(dim=1).any()


def test_pixels_without_data_stay_alone_in_crops_of_a_pictures_own_size(band_files):
    dataset = load(band_files)
    dataset.splits["train"] = dataset.splits["train"].select([1])
    samples = train_samples(dataset, scale=(40, 31), ratio_range=(1, 1), cat_max_ratio=1, flip_probability=0)
    values = read_bands(dataset.splits["train"][0]["image"], dataset.bands)
    counts = {int(samples[index]["pixel_values"].isnan().sum()) for index in range(12)}
    places = values.isnan().unfold(1, 24, 1).unfold(2, 24, 1).sum(dim=(0, 3, 4))
    assert counts <= set(places.flatten().tolist()) and max(counts) > 0


def test_colours_of_bands_are_not_distorted(band_files):
    samples = train_samples(load(band_files), photometric_distortion=True)
    with pytest.raises(ValueError, match="photometric_distortion is for 8-bit RGB"):
        samples[0]


def test_a_damaged_picture_is_named(tmp_path, band_files):
    dataset = load(band_files)
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"II*\0 no TIFF")
    annotation = dataset.splits["train"][0]["annotation"]
    split = datasets.Dataset.from_dict({"image": [str(bad)]}).cast_column("image", datasets.Image(decode=False))
    split = split.add_column("annotation", [None]).cast_column("annotation", datasets.Image())
    with pytest.raises(ValueError, match=r"y\[0\]"):
        read_example(split, 0, num_labels=3, do_reduce_labels=False, name="y", bands=(1,))
    rows = {"image": [{"bytes": None, "path": str(bad)}], "annotation": [annotation]}
    features = datasets.Features(image=datasets.Image(decode=False), annotation=datasets.Image())
    split = datasets.Dataset.from_dict(rows, features=features)
    with pytest.raises(ValueError, match=r"y\[0\] \(.*bad.tif.*no picture in one of GTiff"):
        read_example(split, 0, num_labels=3, do_reduce_labels=False, name="y", bands=(1,))


def test_without_rasterio_the_message_names_the_pip_line(monkeypatch, tmp_path, band_files):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    for read in (lambda: read_bands(tmp_path / "a.tif", [1]), lambda: load(band_files)):
        with pytest.raises(ValueError, match=r'pip install "van_hf\[raster\]"'):
            read()


def test_pictures_are_as_before_without_bands(tmp_path):
    """A TIFF of RGB is read by Pillow, to the bit."""
    values = random_bands("uint8", count=3)
    path = write_tiff(tmp_path / "a.tif", values, photometric="rgb")
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        split = [{"image": image, "annotation": Image.new("L", image.size)}]
        read, _ = read_example(split, 0, num_labels=3, do_reduce_labels=False, name="x")
    assert read.dtype == torch.uint8
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("count", [3, 4])
def test_bands_are_not_read_as_rgb_in_silence(tmp_path, count):
    path = write_tiff(tmp_path / "a.tif", random_bands("uint16", count=count), photometric="rgb")
    arguments = {"num_labels": 3, "do_reduce_labels": False, "name": "x"}
    with Image.open(path) as image:
        assert image.mode == "RGB"  # the upper bytes of three bands
        split = [{"image": image, "annotation": Image.new("L", image.size)}]
        if count == 3:  # as photographs of 16 bits are
            assert read_example(split, 0, **arguments)[0].shape == (3, 30, 40)
            return
        with pytest.raises(ValueError, match=r"the TIFF has 4 bands of 16 bits.*with --bands 1 2 3 4"):
            read_example(split, 0, **arguments)


def test_what_pillow_cannot_read_of_a_tiff_leads_to_bands(tmp_path):
    path = write_tiff(tmp_path / "a.tif", random_bands("float32"))
    rows = {"image": [str(path)], "annotation": [None]}
    features = datasets.Features(image=datasets.Image(), annotation=datasets.Image())
    split = datasets.Dataset.from_dict(rows, features=features)
    with pytest.raises(ValueError, match=r"x\[0\] .*a.tif.*trained with --bands"):
        read_example(split, 0, num_labels=3, do_reduce_labels=False, name="x")
