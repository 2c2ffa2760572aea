# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from van_hf.data import (
    RareClassSampling,
    SegmentationDataset,
    TrainAugmentation,
    TrainSamples,
    count_labels,
    read_example,
)
from van_hf.data import samples as samples_module


def example(mask, size=None, image=None):
    mask = mask if isinstance(mask, Image.Image) else Image.fromarray(np.asarray(mask))
    return {"image": image or Image.new("RGB", size or mask.size, (10, 20, 30)), "annotation": mask}


def read(mask, num_labels=3, do_reduce_labels=True, **kwargs):
    split = [None] * 7 + [example(mask, **kwargs)]
    return read_example(split, 7, num_labels=num_labels, do_reduce_labels=do_reduce_labels, name="pets train")


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


def samples(split, seed=0, num_samples=20, jpeg_draft=False, rare_class_sampling=None, **augmentation):
    return TrainSamples(
        split,
        TrainAugmentation(16, (40, 24), **augmentation),
        num_labels=3,
        do_reduce_labels=True,
        seed=seed,
        num_samples=num_samples,
        jpeg_draft=jpeg_draft,
        rare_class_sampling=rare_class_sampling,
    )


def wavy_picture(width=203, height=131, mode="RGB"):
    """Waves of 80 pixels: long enough to survive a reduction, steep enough to tell a shift by one pixel."""
    rows, columns = np.mgrid[:height, :width] * (2 * np.pi / 80)
    waves = np.stack([np.sin(rows), np.sin(columns), np.sin(rows + columns)], axis=-1) * 80 + 128
    return Image.fromarray(waves.astype(np.uint8)).convert(mode)


def file_of(image, name="picture.jpg", orientation=1):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if name.endswith(".jpg") else {}
    image.save(file, Image.registered_extensions()[name[name.index(".") :]], exif=exif, **options)
    return {"bytes": file.getvalue(), "path": name}


def split_of_files(image, size):
    """One example: a picture as a file's {"bytes", "path"}, and random labels of (width, height)."""
    labels = np.random.default_rng(0).integers(0, 4, size[::-1], dtype=np.uint8)
    features = datasets.Features(image=datasets.Image(), annotation=datasets.Image())
    rows = {"image": [image], "annotation": [file_of(Image.fromarray(labels), "mask.png")]}
    return datasets.Dataset.from_dict(rows, features=features)


def compare_draft(split, num_samples=8):
    """Whether pictures were decoded at reduced size, and the mean difference that it makes; labels must not change."""
    plain, drafted = (samples(split, num_samples=num_samples, jpeg_draft=draft) for draft in (False, True))
    differences = []
    for index in range(num_samples):
        assert plain[index]["labels"].equal(drafted[index]["labels"])
        pictures = (run[index]["pixel_values"].float() for run in (plain, drafted))
        differences.append(float((next(pictures) - next(pictures)).abs().mean()))
    return max(differences) > 0, sum(differences) / num_samples


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


def test_samples_are_those_of_whole_pictures(split):
    """Reading only what the crop shows gives what reading, reducing and augmenting the whole example gives."""
    run = samples(split, num_samples=10)
    for index in range(10):
        order = torch.randperm(5, generator=samples_module.keyed_generator(0, 0, index // 5))
        whole = read_example(split, int(order[index % 5]), num_labels=3, do_reduce_labels=True, name="")
        image, labels = run.augmentation(*whole, samples_module.keyed_generator(0, 1, index))
        assert run[index]["pixel_values"].equal(image) and run[index]["labels"].equal(labels.long())


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "CMYK", "L", "1", "I;16"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_parts_of_any_picture_are_those_of_the_whole(mode, orientation):
    image = wavy_picture(60, 44).convert("I" if mode == "I;16" else mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(wavy_picture(60, 44).getchannel(1))
    name = "picture.tif" if mode in ("CMYK", "I;16") else "picture.png"
    split = split_of_files(file_of(image.convert(mode), name, orientation), (44, 60) if orientation == 6 else (60, 44))
    assert split[0]["image"].mode == mode
    run = samples(split, num_samples=3)
    whole = read_example(split, 0, num_labels=3, do_reduce_labels=True, name="")
    for index in range(3):
        expected = run.augmentation(*whole, samples_module.keyed_generator(0, 1, index))[0]
        assert run[index]["pixel_values"].equal(expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size, orientation", [((203, 131), 1), ((208, 136), 3), ((208, 136), 6), ((203, 131), 6)])
def test_jpegs_decoded_at_reduced_size_look_the_same(size, orientation, mode):
    file = file_of(wavy_picture(*size, mode), orientation=orientation)
    drafted, difference = compare_draft(split_of_files(file, size[::-1] if orientation == 6 else size))
    # Turned, a side that is no multiple would have its remainder in front.
    assert drafted is (orientation == 1 or size == (208, 136))
    # A shift by one pixel of the original alone makes more than 5 levels.
    assert difference < 2.5


def test_jpeg_files_are_decoded_at_reduced_size(tmp_path):
    file = file_of(wavy_picture())
    (tmp_path / "picture.jpg").write_bytes(file["bytes"])
    assert compare_draft(split_of_files({"bytes": None, "path": str(tmp_path / "picture.jpg")}, (203, 131)))[0]


@pytest.mark.parametrize(
    "size, reduction", [((131, 203), 1), ((66, 100), 1), ((65, 101), 2), ((33, 50), 2), ((32, 50), 4), ((16, 25), 8)]
)
def test_a_draft_is_never_smaller_than_the_resized_picture(size, reduction):
    image = Image.open(io.BytesIO(file_of(wavy_picture())["bytes"]))
    assert samples_module._draft(image, size) == reduction
    assert image.size == (-(-203 // reduction), -(-131 // reduction))
    image.load()
    assert samples_module._draft(image, size) == 1


def test_turned_pictures_are_measured_upright():
    image = Image.open(io.BytesIO(file_of(wavy_picture(240, 80), orientation=6)["bytes"]))
    assert samples_module._draft(image, (60, 20)) == 4


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("name", ["picture.png", "picture.tif"])
def test_other_pictures_do_not_change_with_jpeg_draft(name, orientation):
    file = file_of(wavy_picture(), name, orientation)
    assert not compare_draft(split_of_files(file, (131, 203) if orientation == 6 else (203, 131)))[0]


def test_transforms_of_the_split_are_respected():
    def invert(rows):
        return {**rows, "image": [Image.eval(image, lambda value: 255 - value) for image in rows["image"]]}

    split = split_of_files(file_of(wavy_picture()), (203, 131))
    inverted = samples(split.with_transform(invert), jpeg_draft=True, photometric_distortion=False)
    plain = samples(split, photometric_distortion=False)
    shown = plain[0]["labels"] != 255
    sums = (inverted[0]["pixel_values"].int() + plain[0]["pixel_values"].int())[:, shown]
    assert shown.any() and ((sums - 255).abs() <= 1).all()


@pytest.mark.parametrize("jpeg_draft", [False, True])
@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda file: file | {"bytes": file["bytes"][:900]}, "cannot be read: .*truncated"),
        (lambda file: file | {"bytes": b"no picture"}, "cannot be read: "),
        (lambda file: file_of(wavy_picture(131, 203)), "131x203 pixels and its annotation 203x131"),
        (lambda file: None, "the picture is a NoneType"),
    ],
)
def test_pictures_that_cannot_be_used_are_named(spoil, message, jpeg_draft):
    split = split_of_files(spoil(file_of(wavy_picture())), (203, 131))
    with pytest.raises(ValueError, match=rf"train\[0\].*{message}"):
        samples(split, jpeg_draft=jpeg_draft)[0]


def break_second_chunk(content):
    """A PNG over whose second chunk of pixels Pillow raises a SyntaxError."""
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    return content[:second] + bytes(4) + content[second + 4 :]


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"no picture",
    "broken chunk": break_second_chunk,
    "missing": None,
}


def split_of_noise(folder):
    """Two examples as files, PNGs whose pixels fill several chunks; the second is the one to damage."""
    rows = {"image": [], "annotation": []}
    for idx in range(2):
        for column, mode in (("image", "RGB"), ("annotation", "L")):
            noise = np.random.default_rng(idx).integers(0, 3, (700, 701), dtype=np.uint8)
            path = folder / f"{column}-{idx}.png"
            Image.fromarray(noise).convert(mode).save(path)
            rows[column].append(str(path))
    features = datasets.Features(image=datasets.Image(), annotation=datasets.Image())
    return datasets.Dataset.from_dict(rows, features=features)


def error_of(split, reader):
    """What reading the second example raises."""
    with pytest.raises(ValueError) as error:
        if reader == "whole":
            read_example(split, 1, num_labels=3, do_reduce_labels=False, name="pets train")
        else:
            run = TrainSamples(split, TrainAugmentation(16, (40, 24)), num_labels=3, do_reduce_labels=False, seed=0,
                               num_samples=2, name="pets train", jpeg_draft=reader == "draft")  # fmt: skip
            list(run)
    return str(error.value)


@pytest.mark.parametrize("reader", ["whole", "samples", "draft"])
@pytest.mark.parametrize("column, other", [("image", "annotation"), ("annotation", "image")])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_cannot_be_decoded_is_named(tmp_path, damage, column, other, reader):
    split = split_of_noise(tmp_path)
    path = tmp_path / f"{column}-1.png"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert error_of(split, reader).startswith(f"pets train[1] ({path}) cannot be read: ")


@pytest.mark.parametrize("reader", ["whole", "samples", "draft"])
def test_decompression_bombs_are_named(tmp_path, reader, monkeypatch):
    split = split_of_noise(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200_000)
    error = error_of(split.select([1, 1]), reader)
    assert "image-1.png" in error and "annotation-1.png) cannot be read: Image size" in error


@pytest.mark.parametrize("reader", ["whole", "samples", "draft"])
@pytest.mark.parametrize("column", ["image", "annotation"])
def test_a_file_in_a_table_is_named(column, reader):
    file = file_of(Image.new("L", (400, 300)), "fine.png")
    damaged = {"bytes": file["bytes"][:99], "path": "torn.png"}
    rows = {key: [damaged if key == column else file] * 2 for key in ("image", "annotation")}
    split = datasets.Dataset.from_dict(rows, features=datasets.Features({key: datasets.Image() for key in rows}))
    assert error_of(split, reader).startswith(("pets train[1] (torn.png) cannot", "pets train[0] (torn.png) cannot"))


@pytest.mark.parametrize("reader", ["whole", "samples", "draft"])
def test_files_that_do_not_go_together_are_both_named(tmp_path, reader):
    split = split_of_noise(tmp_path)
    Image.new("L", (3, 2)).save(tmp_path / "annotation-1.png")
    files = f"({tmp_path / 'image-1.png'}, {tmp_path / 'annotation-1.png'})"
    assert error_of(split, reader) == f"pets train[1] {files}: the picture has 701x700 pixels and its annotation 3x2."
    Image.new("L", (701, 700), 3).save(tmp_path / "annotation-1.png")
    assert error_of(split, reader).startswith(f"pets train[1] {files}: the annotation holds the labels 3;")


@pytest.mark.parametrize("reader", ["whole", "samples", "draft"])
@pytest.mark.parametrize("column, what", [("image", "picture"), ("annotation", "annotation")])
def test_nothing_in_place_of_a_picture_is_named(column, what, reader):
    file = file_of(Image.new("L", (40, 30)), "fine.png")
    rows = {key: [file, None if key == column else file] for key in ("image", "annotation")}
    split = datasets.Dataset.from_dict(rows, features=datasets.Features({key: datasets.Image() for key in rows}))
    assert error_of(split, reader) == f"pets train[1] (fine.png): the {what} is a NoneType; expected a PIL image."


def test_errors_of_a_transform_name_the_example(split):
    def fail(rows):
        raise KeyError("depth")

    with pytest.raises(ValueError, match=r"pets train\[3\] cannot be read: 'depth'"):
        read_example(split.with_transform(fail), 3, num_labels=3, do_reduce_labels=True, name="pets train")


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


def test_rare_labels_are_sampled_more_often(split):
    """Sample i depends on the seed and i alone; the augmentation's random numbers are those of any other run."""
    masks = [np.full((20, 30), 1, dtype=np.uint8) for _ in range(5)]
    masks[3][4, 7] = 3
    rows = {"image": split["image"][:1] * 5, "annotation": [Image.fromarray(mask) for mask in masks]}
    rare = datasets.Dataset.from_dict(rows, features=split.features)
    counts = count_labels(SegmentationDataset("rare", {"train": rare}, dict(enumerate("abc")), True, None))
    run = samples(rare, rare_class_sampling=RareClassSampling(counts.pixels, counts.pictures))
    shown = [(run[index]["labels"] == 2).any() for index in range(20)]
    assert sum(shown) >= 15
    again = samples(rare, rare_class_sampling=RareClassSampling(counts.pixels, counts.pictures))
    assert all(again[index]["labels"].equal(run[index]["labels"]) for index in (19, 3))
