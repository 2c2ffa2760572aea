# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json

import datasets
import numpy as np
import pytest
import rasterio
from conftest import write_tiff

from van_hf.data import BandStatistics, load_segmentation_dataset, measure_bands, read_band_statistics
from van_hf.data import band_statistics as module

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.mark.parametrize("block_size", [1, 1000, module.BLOCK_SIZE])
def test_statistics_are_those_of_all_pixels_that_have_data(band_files, monkeypatch, block_size):
    monkeypatch.setattr(module, "BLOCK_SIZE", block_size)
    statistics = measure_bands(load_segmentation_dataset(str(band_files), bands=(1, 3)))
    for place, band in enumerate((1, 3)):
        values = []
        for path in sorted((band_files / "images" / "training").iterdir()):
            with rasterio.open(path) as dataset:
                of_file = dataset.read(band)
            values.append(of_file[of_file != -9999].astype(np.float64))
        values = np.concatenate(values)
        found = [getattr(statistics, name)[place] for name in ("mean", "std", "minimum", "maximum")]
        np.testing.assert_allclose(found, [values.mean(), values.std(), values.min(), values.max()], rtol=1e-12)


def test_large_values_do_not_spoil_the_statistics(tmp_path, band_files):
    """Sums of squares of such values would have lost what is small."""
    dataset = load_segmentation_dataset(str(band_files), bands=(1,))
    rng = np.random.default_rng(0)
    files = [rng.integers(2**23 - 3, 2**23 + 4, (1, 30, 40)).astype(np.float32) for _ in range(3)]
    rows = [{"image": {"bytes": None, "path": str(write_tiff(tmp_path / f"{n}.tif", v))}} for n, v in enumerate(files)]
    split = datasets.Dataset.from_list(rows, features=datasets.Features(image=datasets.Image(decode=False)))
    dataset.splits["train"] = split
    statistics = measure_bands(dataset)
    np.testing.assert_allclose(statistics.std, np.std(np.concatenate(files), dtype=np.float64), rtol=1e-12)


def test_bands_without_anything_to_learn_are_told(tmp_path):
    for name, values in {"flat": np.full((1, 9, 9), 7, np.uint8), "empty": np.zeros((1, 9, 9), np.uint8)}.items():
        folder = tmp_path / name
        for kind in ("images", "annotations"):
            for split in ("training", "validation"):
                (folder / kind / split).mkdir(parents=True)
                path = folder / kind / split / "a.tif"
                write_tiff(path, values, **({"nodata": 0} if kind == "images" else {}))
        dataset = load_segmentation_dataset(str(folder), bands=[1], id2label=8)
        wanted = "above 0, and is not for band.s. 1[.]" if name == "flat" else "have no data; leave them out"
        with pytest.raises(ValueError, match=wanted):
            measure_bands(dataset)


def test_statistics_are_read_from_files(tmp_path):
    path = tmp_path / "bands.json"
    statistics = BandStatistics((4, 3, 8), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), (0, 0, 0), (9, 9, 9))
    path.write_text(json.dumps(statistics.to_dict()))
    assert read_band_statistics(path, (4, 3, 8)) == statistics
    assert read_band_statistics(path, (8, 4)) == BandStatistics((8, 4), (3.0, 1.0), (6.0, 4.0), (0, 0), (9, 9))
    path.write_text('{"mean": [1, 2], "std": [3, 4]}')  # by hand
    assert read_band_statistics(path, (7, 5)).mean == (1, 2)
    for content, message in {
        '{"mean": [1, 2], "std": [3, 0]}': "above 0, and is not for band.s. 5[.]",
        '{"mean": [1, 2], "std": [3]}': "std is .* a finite number for each",
        '{"mean": [1, NaN], "std": [3, 4]}': "mean is .* a finite number",
        '{"mean": [1, 1e999], "std": [3, 4]}': "mean is .* a finite number",
        '{"mean": [1, %s], "std": [3, 4]}' % ("9" * 400): "mean is .* a finite number",
        '{"mean": [1, "2"], "std": [3, 4]}': "mean is .* a finite number",
        '{"mean": [1, 2], "std": [3, -1]}': "above 0, and is not for band.s. 5[.]",
        '{"mean": [1, 2], "std": [3, 1e-300]}': "above 0, and is not for band.s. 5[.]",
        '{"mean": 1, "std": [3, 4]}': "must hold lists",
        '{"bands": [7], "mean": [1], "std": [3]}': "there are the bands .7., and not 5",
        '{"bands": [7, 7], "mean": [1, 1], "std": [3, 3]}': "bands must be numbers",
        '{"mean": [1, 2]}': "must hold lists",
        "[]": "bands.json",
    }.items():
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_band_statistics(path, (7, 5))
