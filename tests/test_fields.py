# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The generated data set "fields"; few pictures, painted once."""

import itertools
import sys

import datasets
import numpy as np
import pytest
from rasterio import MemoryFile
from rasterio.enums import ColorInterp

from van_hf.data import fields

SIDE = fields.SIDE
WINDOW = 5  # pixels


@pytest.fixture(scope="module")
def examples():
    return list(itertools.islice(fields.generate_examples("train"), 24))


@pytest.fixture(scope="module")
def pictures(examples):
    """Values (24, height, width, 4) and labels (24, height, width)."""
    values = np.stack([read(example) for example in examples])
    return values, np.stack([np.asarray(example["annotation"]) for example in examples])


def read(example):
    with MemoryFile(example["image"]["bytes"]) as memory, memory.open() as dataset:
        return dataset.read().transpose(1, 2, 0)


def paint(index):
    return fields.paint_land(np.random.default_rng([fields.SEED, 0, index]))


def test_pictures_are_repeatable_and_all_different(examples):
    again = list(itertools.islice(fields.generate_examples("train"), 3))
    validation = list(itertools.islice(fields.generate_examples("validation"), 3))
    assert again == examples[:3]
    assert len({read(example).tobytes() for example in [*examples, *validation]}) == 27


def test_files_are_geotiffs_of_four_bands(examples, pictures):
    for index, example in enumerate(examples):
        assert example["image"]["path"] == f"{index:06}.tif"
        assert (example["annotation"].mode, example["annotation"].size) == ("L", (SIDE, SIDE))
    with MemoryFile(examples[7]["image"]["bytes"]) as memory, memory.open() as dataset:
        assert (dataset.driver, dataset.dtypes, dataset.shape) == ("GTiff", ("uint16",) * 4, (SIDE, SIDE))
        assert (dataset.descriptions, dataset.nodatavals) == (fields.BANDS, (0.0,) * 4)
        rgb = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        assert dataset.colorinterp == (*rgb, ColorInterp.undefined)
        assert dataset.compression.name == "deflate" and dataset.crs.is_projected
        assert dataset.scales == (1e-4,) * 4 and "van_hf" in dataset.tags()["TIFFTAG_IMAGEDESCRIPTION"]
        np.testing.assert_array_equal(dataset.read().transpose(1, 2, 0), paint(7)[0])
    assert {example["scene_category"] for example in examples} == set(fields.LANDSCAPES)
    assert 255 < pictures[0].max() < 20_000


def test_a_few_pictures_lack_data_and_labels_in_the_same_places(pictures):
    values, labels = pictures
    is_missing = (values == fields.NODATA).all(axis=-1)
    np.testing.assert_array_equal(is_missing, (values == fields.NODATA).any(axis=-1))
    np.testing.assert_array_equal(is_missing, labels == fields.IGNORED)
    shares = is_missing.mean(axis=(1, 2))
    assert 1 <= (shares > 0).sum() <= 5 and shares.max() < 0.35


def test_shares_of_the_labels(pictures):
    counts = np.bincount(pictures[1].ravel(), minlength=256)
    assert set(np.flatnonzero(counts)) == {*range(len(fields.CLASS_NAMES)), fields.IGNORED}
    shares = counts[: len(fields.CLASS_NAMES)] / counts.sum()
    assert 0.05 < shares[fields.STRESSED_CROP] < 0.15 and shares[fields.CROP] > 0.3
    assert shares.min() > 0.02


def test_stress_changes_near_infrared_alone(monkeypatch):
    """Red, green and blue are the same to the bit, so nothing that is made of them can tell."""
    stressed, labels, _ = paint(0)
    monkeypatch.setattr(fields, "stress_patches", lambda rng, shape: np.zeros(shape, np.float32))
    healthy, healthy_labels, _ = paint(0)
    np.testing.assert_array_equal(stressed[..., :3], healthy[..., :3])
    suffers = labels == fields.STRESSED_CROP
    assert suffers.any() and (healthy_labels[suffers] == fields.CROP).all()
    np.testing.assert_array_equal(labels[~suffers], healthy_labels[~suffers])
    ratio = stressed[suffers][:, 3] / healthy[suffers][:, 3]
    assert np.median(ratio) < 0.6 and ratio.max() < 1


def plants(values, labels):
    """Features, the logarithms of means over windows (n, 4), and whether the plants suffer (n,)."""
    windows = np.lib.stride_tricks.sliding_window_view
    means = windows(values.astype(np.float32), (WINDOW, WINDOW), axis=(0, 1)).mean(axis=(-2, -1))
    around = windows(labels, (WINDOW, WINDOW))
    low, high = around.min(axis=(-2, -1)), around.max(axis=(-2, -1))
    is_pure = (low == high) & np.isin(low, (fields.CROP, fields.STRESSED_CROP))
    return np.log(means[is_pure]), low[is_pure] == fields.STRESSED_CROP


def balanced_accuracy(train, test, bands):
    """Of a linear discriminant learnt from some pictures and tried on others."""
    (features, truth), (tried, answers) = [(pair[0][:, bands], pair[1]) for pair in (train, test)]
    healthy, suffering = features[~truth], features[truth]
    spread = np.atleast_2d(np.cov(healthy.T) + np.cov(suffering.T))
    weights = np.linalg.solve(spread, suffering.mean(axis=0) - healthy.mean(axis=0))
    guesses = tried @ weights > (suffering.mean(axis=0) + healthy.mean(axis=0)) @ weights / 2
    return (guesses[answers].mean() + (~guesses[~answers]).mean()) / 2


def cross_validated(halves, bands):
    return np.mean([balanced_accuracy(*pair, bands) for pair in (halves, halves[::-1])])


def test_stress_is_told_by_the_fourth_band_only(pictures):
    found = [plants(values, labels) for values, labels in zip(*pictures, strict=True)]
    halves = [[np.concatenate(parts) for parts in zip(*found[start::2], strict=True)] for start in (0, 1)]
    for bands in ([0], [1], [2], [0, 1, 2]):
        assert 0.45 < cross_validated(halves, bands) < 0.55
    assert cross_validated(halves, [0, 1, 2, 3]) > 0.95


def test_near_infrared_alone_does_not_tell_the_label(pictures):
    """The best guess from a pixel's value, learnt from half of the pictures, is far from the truth in the others."""
    values, labels = pictures
    bins, num_labels = np.minimum(values[..., fields.NEAR_INFRARED] // 100, 99), len(fields.CLASS_NAMES)
    table = np.zeros((100, 256))
    np.add.at(table, (bins[::2], labels[::2]), 1)
    guesses, truth = table[:, :num_labels].argmax(axis=1)[bins[1::2]], labels[1::2]
    guesses, truth = guesses[truth != fields.IGNORED], truth[truth != fields.IGNORED]
    ious = [((guesses == k) & (truth == k)).sum() / ((guesses == k) | (truth == k)).sum() for k in range(num_labels)]
    assert ious[fields.STRESSED_CROP] < 0.2 and np.mean(ious) < 0.5


def test_it_is_loaded_from_the_cache(monkeypatch, tmp_path, examples):
    monkeypatch.setattr(fields, "NUM_PICTURES", {"train": 3, "validation": 2})
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    first = fields.load()
    assert {split: len(data) for split, data in first.items()} == {"train": 3, "validation": 2}
    assert first["train"].features["image"] == datasets.Image(decode=False)
    monkeypatch.setattr(fields, "paint_land", None)  # what is cached is not painted again
    again = fields.load()
    for example, expected in zip(again["train"], examples, strict=False):
        assert example["image"] == expected["image"]
        np.testing.assert_array_equal(example["annotation"], expected["annotation"])


def test_without_rasterio_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    for ask in (fields.load, lambda: fields.generate_examples("train")):
        with pytest.raises(ValueError, match=r'needs the package rasterio: pip install "van_hf\[raster\]"'):
            ask()
    assert not list(tmp_path.iterdir())
