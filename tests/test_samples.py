# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from van_hf.data import TrainAugmentation, TrainSamples, read_example


def example(mask, size=None, image=None):
    mask = mask if isinstance(mask, Image.Image) else Image.fromarray(np.asarray(mask))
    return {"image": image or Image.new("RGB", size or mask.size, (10, 20, 30)), "annotation": mask}


def read(mask, num_labels=3, do_reduce_labels=True, **kwargs):
    return read_example(
        example(mask, **kwargs), num_labels=num_labels, do_reduce_labels=do_reduce_labels, name="pets train[7]"
    )


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    rows = {"image": [], "annotation": []}
    for index in range(5):
        rows["image"].append(Image.new("RGB", (30 + index, 20), (50 * index, 9, 9)))
        rows["annotation"].append(Image.fromarray(rng.integers(0, 4, (20, 30 + index), dtype=np.uint8)))
    return datasets.Dataset.from_dict(
        rows, features=datasets.Features(image=datasets.Image(), annotation=datasets.Image())
    )


def samples(split, seed=0, num_samples=20, **augmentation):
    return TrainSamples(
        split,
        TrainAugmentation(16, (40, 24), **augmentation),
        num_labels=3,
        do_reduce_labels=True,
        seed=seed,
        num_samples=num_samples,
    )


def test_labels_are_reduced_when_asked():
    raw = np.array([[0, 1, 2], [3, 255, 1]], dtype=np.uint8)
    image, labels = read(raw)
    assert labels.tolist() == [[255, 0, 1], [2, 255, 0]] and labels.dtype == torch.uint8
    assert image.dtype == torch.uint8 and image[:, 0, 0].tolist() == [10, 20, 30] and image.shape == (3, 2, 3)
    assert read(raw, num_labels=4, do_reduce_labels=False)[1].tolist() == raw.tolist()


def test_palette_masks_keep_their_indices():
    mask = Image.fromarray(np.array([[0, 1], [2, 3]], dtype=np.uint8), mode="P")
    mask.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    assert read(mask)[1].tolist() == [[255, 0], [1, 2]]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, bool])
def test_masks_of_other_depths(dtype):
    raw = np.array([[0, 1], [1, 0]], dtype=dtype)
    assert read(raw)[1].tolist() == [[255, 0], [0, 255]]


def test_colour_masks_are_refused_by_name():
    with pytest.raises(ValueError, match=r"pets train\[7\].*mode RGB.*one channel"):
        read(Image.new("RGB", (3, 2)))


@pytest.mark.parametrize("raw, shown", [([[4, 1, 9]], "4, 9"), ([[256, 1, 0]], "256"), ([[-1, 1, 0]], "-1")])
def test_labels_out_of_range_are_named(raw, shown):
    with pytest.raises(
        ValueError, match=rf"pets train\[7\].*labels {shown};.*3 labels.*from 1 to 3, 0 is other, and 255"
    ):
        read(np.array(raw, dtype=np.int32))


def test_without_reduction_the_range_starts_at_0():
    with pytest.raises(ValueError, match="labels 3; .*from 0 to 2, and 255"):
        read(np.array([[3, 0]], dtype=np.uint8), do_reduce_labels=False)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"pets train\[7\].*4x6 pixels.*annotation 3x2"):
        read(np.zeros((2, 3), np.uint8), size=(4, 6))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_pictures_of_any_mode_become_rgb(mode):
    image, _ = read(np.zeros((2, 3), np.uint8), image=Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode))
    assert image.shape == (3, 2, 3) and (image == 255).all()


def test_pictures_of_unknown_range_are_refused_by_name():
    with pytest.raises(ValueError, match=r"pets train\[7\].*mode F"):
        read(np.zeros((2, 3), np.uint8), image=Image.new("F", (3, 2)))


def test_exif_orientation_turns_the_picture(tmp_path):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    turned, labels = read(np.zeros((4, 2), np.uint8), image=Image.open(tmp_path / "turned.png"))
    assert turned.shape == (3, 4, 2) and labels.shape == (4, 2)
    assert turned[0].tolist() == [[12, 0], [15, 3], [18, 6], [21, 9]]


def test_samples_have_the_promised_form(split):
    sample = samples(split)[0]
    assert sample["pixel_values"].shape == (3, 16, 16) and sample["pixel_values"].dtype == torch.uint8
    assert sample["labels"].shape == (16, 16) and sample["labels"].dtype == torch.int64
    assert set(sample["labels"].unique().tolist()) <= {0, 1, 2, 255}


def test_every_epoch_shows_every_picture_once_in_its_own_order(split):
    run = samples(split, photometric_distortion=False)
    seen = [round(int(run[i]["pixel_values"][0, 0, 0]) / 50) for i in range(20)]
    epochs = [seen[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_sample_depends_on_seed_and_number_alone(split):
    run, later = samples(split), samples(split)
    forwards = [run[i] for i in range(8)]
    for index in reversed(range(8)):
        again = later[index]
        assert again["pixel_values"].equal(forwards[index]["pixel_values"])
        assert again["labels"].equal(forwards[index]["labels"])
    other = samples(split, seed=1)
    assert any(not other[i]["pixel_values"].equal(forwards[i]["pixel_values"]) for i in range(8))


def test_samples_of_a_run_differ(split):
    run = samples(split.select([2]))
    assert len({run[i]["labels"].numpy().tobytes() for i in range(10)}) > 5


def test_workers_give_the_same_samples(split):
    run = samples(split, num_samples=6)
    loaded = list(torch.utils.data.DataLoader(run, batch_size=2, num_workers=2, multiprocessing_context="fork"))
    assert torch.cat([batch["pixel_values"] for batch in loaded]).equal(
        torch.stack([run[i]["pixel_values"] for i in range(6)])
    )


def test_the_run_has_an_end(split):
    run = samples(split, num_samples=6)
    assert len(run) == 6 and len(list(run)) == 6
    with pytest.raises(IndexError):
        run[6]


def test_an_empty_split_is_refused(split):
    with pytest.raises(ValueError, match="train holds no pictures"):
        samples(split.select([]))


def test_errors_name_the_picture(split):
    run = TrainSamples(
        split,
        TrainAugmentation(16, (40, 24)),
        num_labels=2,
        do_reduce_labels=True,
        seed=0,
        num_samples=5,
        name="x train",
    )
    with pytest.raises(ValueError, match=r"x train\[\d\]: .*labels 3;"):
        run[0]
