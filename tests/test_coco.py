# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from pycocotools import mask as coco_mask

from van_hf.data import TrainAugmentation, TrainSamples, load_segmentation_dataset, read_example
from van_hf.data.coco import draw_annotation, load_coco
from van_hf.data.inspection import InspectedExamples, LabelReading
from van_hf.data.label_check import look_at_masks
from van_hf.data.samples import digests_of_files

SIZE = (40, 56)
# Of each region its category, and left, top, right and bottom; the second lies on the first, which is larger.
REGIONS = [(7, (4, 2, 40, 30)), (3, (10, 6, 20, 26)), (7, (44, 32, 56, 40))]
CATEGORIES = [{"id": 7, "name": "house"}, {"id": 3, "name": "road"}]


def expected_mask() -> np.ndarray:
    """0 is background, 1 road, 2 house: in the order of the ids."""
    mask = np.zeros(SIZE, dtype=np.uint8)
    for category, (left, top, right, bottom) in REGIONS:
        mask[top:bottom, left:right] = {3: 1, 7: 2}[category]
    return mask


def polygon(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def region(left, top, right, bottom) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    return mask


def compressed(*box):
    code = coco_mask.encode(region(*box))
    return {"size": list(SIZE), "counts": code["counts"].decode()}


def plain_runs(*box):
    values = np.concatenate([[0], region(*box).ravel(order="F"), [2]])
    changes = np.flatnonzero(np.diff(values))
    return {"size": list(SIZE), "counts": np.diff(np.concatenate([[0], changes])).tolist()}


def write(folder: Path, segmentation=polygon, categories=CATEGORIES, **changes) -> Path:
    """Pictures in `pictures/`, and a file of them."""
    (folder / "pictures" / "deep").mkdir(parents=True)
    images = []
    for idx, name in enumerate(("a.png", "deep/b.png")):
        pixels = np.random.default_rng(idx).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / name)
        images.append({"id": idx, "file_name": Path(name).name, "height": SIZE[0], "width": SIZE[1]})
    annotations = [
        {"id": number, "image_id": 0, "category_id": category, "segmentation": segmentation(*box), "iscrowd": 0}
        | {"area": (box[2] - box[0]) * (box[3] - box[1])}
        for number, (category, box) in enumerate(REGIONS)
    ]
    content = {"images": images, "annotations": annotations[::-1], "categories": categories} | changes
    file = folder / "instances.json"
    file.write_text(json.dumps(content))
    return file


def load(file: Path, **arguments):
    return load_segmentation_dataset(str(file.parent / "pictures"), annotations=[file, file], **arguments)


@pytest.mark.parametrize("segmentation", [polygon, compressed, plain_runs])
def test_regions_become_masks(segmentation, tmp_path):
    dataset = load(write(tmp_path, segmentation))
    assert dataset.id2label == {0: "background", 1: "road", 2: "house"}
    settings = {"num_labels": 3, "do_reduce_labels": False}
    image, labels = read_example(dataset.splits["train"], 0, name="train", **settings)
    np.testing.assert_array_equal(labels, expected_mask())
    image, labels = read_example(dataset.splits["validation"], 1, name="validation", **settings)
    assert image.shape == (3, *SIZE) and not labels.any()
    samples = TrainSamples(
        dataset.splits["train"], TrainAugmentation(crop_size=32, scale=(64, 48)), seed=0, num_samples=2, **settings
    )
    assert {tuple(sample["labels"].shape) for sample in samples} == {(32, 32)}
    assert look_at_masks(dataset).labels(False) == [0, 1, 2]
    assert len(set(digests_of_files(dataset.splits["train"], "train"))) == 2


def test_background_may_be_ignored(tmp_path):
    dataset = load(write(tmp_path), do_reduce_labels=True)
    assert dataset.id2label == {0: "road", 1: "house"} and dataset.do_reduce_labels
    _, labels = read_example(dataset.splits["train"], 0, num_labels=2, do_reduce_labels=True, name="train")
    np.testing.assert_array_equal(labels, expected_mask() - np.uint8(1))


def test_a_category_may_be_the_background(tmp_path):
    dataset = load(write(tmp_path, categories=[{"id": 0, "name": "Background"}, *CATEGORIES]))
    assert list(dataset.id2label.values()) == ["background", "road", "house"]


def test_parts_of_one_file(tmp_path):
    file = write(tmp_path)
    dataset = load_segmentation_dataset(
        str(tmp_path / "pictures"), annotations=file, train_split="train[:50%]", validation_split="train[50%:]"
    )
    assert [len(split) for split in dataset.splits.values()] == [1, 1]


def test_panoptic_masks(tmp_path):
    segments = [{"id": 1000, "category_id": 3}, {"id": 70000, "category_id": 7}]
    annotations = [{"image_id": idx, "file_name": f"{idx}.png", "segments_info": segments} for idx in range(2)]
    file = write(tmp_path, annotations=annotations)
    ids = np.array([0, 1000, 70000])[expected_mask()]
    file.with_suffix("").mkdir()
    for idx in range(2):
        pixels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(file.with_suffix("") / f"{idx}.png")
    dataset = load(file)
    _, labels = read_example(dataset.splits["train"], 1, num_labels=3, do_reduce_labels=False, name="train")
    np.testing.assert_array_equal(labels, np.array([255, 1, 2])[expected_mask()])
    digests = digests_of_files(dataset.splits["train"], "train")
    inspected = InspectedExamples(dataset.splits["train"], "train", LabelReading(3))
    known = {record.idx: record for record in inspected}
    Image.fromarray(np.zeros_like(pixels)).save(file.with_suffix("") / "1.png")
    is_same = [
        old == new for old, new in zip(digests, digests_of_files(dataset.splits["train"], "train"), strict=True)
    ]
    again = list(InspectedExamples(dataset.splits["train"], "train", LabelReading(3), known))
    assert is_same == [again[idx] is known[idx] for idx in range(2)] == [True, False]
    assert again[1].labels == {255: SIZE[0] * SIZE[1]}
    (file.with_suffix("") / "0.png").unlink()
    with pytest.raises(ValueError, match="1 of 2 masks are not in .*/instances: 0.png"):
        load(file)
    problems = []
    splits, _ = load_coco(tmp_path / "pictures", [file], problems)
    assert len(splits["train"]) == 1 and [Path(problem.file).name for problem in problems] == ["0.png"]
    (file.with_suffix("") / "1.png").unlink()
    file.with_suffix("").rmdir()
    with pytest.raises(ValueError, match="2 of 2 masks are not in .*/instances, which does not exist: 0.png, 1.png"):
        load(file)
    with pytest.raises(ValueError, match="none of its pictures can be used: .*the mask .*0.png is missing"):
        load_coco(tmp_path / "pictures", [file], [])


def turn_pictures(file: Path, orientation: int, side: str, crop: int | None = None, kind: str = "PNG") -> np.ndarray:
    """Give pictures an orientation, and regions that are drawn on either side of it; return the mask to come out."""
    content = json.loads(file.read_text())
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored_mask = expected_mask()[:crop, :crop]
    for name in ("a.png", "deep/b.png"):
        path = file.parent / "pictures" / name
        Image.open(path).crop((0, 0, *stored_mask.shape[::-1])).save(path, kind, exif=exif)
    mask = Image.fromarray(stored_mask)
    mask.getexif()[ExifTags.Base.Orientation] = orientation
    turned = np.array(ImageOps.exif_transpose(mask))
    drawn = stored_mask if side == "stored" else turned
    annotations = [
        {"id": int(value), "image_id": idx, "category_id": {1: 3, 2: 7}[int(value)], "area": 1}
        | {"segmentation": {"size": list(drawn.shape), "counts": runs_of(drawn == value)}}
        for idx in range(2)
        for value in np.unique(drawn)[1:]
    ]
    images = [entry | dict(zip(("height", "width"), drawn.shape, strict=True)) for entry in content["images"]]
    file.write_text(json.dumps(content | {"images": images, "annotations": annotations}))
    return turned


def runs_of(region: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(region).astype(np.uint8, order="F"))["counts"].decode()


def read_labels(file: Path, idx: int = 0) -> np.ndarray:
    image, labels = read_example(load(file).splits["train"], idx, num_labels=3, do_reduce_labels=False, name="train")
    assert image.shape[1:] == labels.shape
    return labels.numpy()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("side", ["stored", "shown"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_sizes_tell_how_turned_pictures_were_drawn_on(tmp_path, orientation, side, kind, caplog):
    file = write(tmp_path)
    turned = turn_pictures(file, orientation, side, kind=kind)
    for idx in range(2):
        np.testing.assert_array_equal(read_labels(file, idx), turned)
    assert not caplog.records


@pytest.mark.parametrize(
    ("orientation", "crop"), [(2, None), (3, None), (4, None), (5, 40), (6, 40), (7, 40), (8, 40)]
)
def test_where_sizes_do_not_tell_regions_are_drawn_on_what_is_stored(tmp_path, orientation, crop, caplog):
    file = write(tmp_path)
    np.testing.assert_array_equal(turn_pictures(file, orientation, "stored", crop), read_labels(file))
    assert "2 pictures are turned or mirrored by EXIF, and sizes do not tell" in caplog.text


@pytest.mark.parametrize("side", ["stored", "shown"])
def test_one_picture_tells_how_the_others_of_a_file_were_drawn_on(tmp_path, side, caplog):
    file = write(tmp_path)
    turned = turn_pictures(file, 3, side)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(tmp_path / "pictures" / "deep" / "b.png") as picture:
        stored = picture.convert("RGB") if side == "stored" else picture.convert("RGB").transpose(Image.ROTATE_90)
    stored.save(tmp_path / "pictures" / "deep" / "b.png", exif=exif)
    np.testing.assert_array_equal(read_labels(file), turned)
    assert not caplog.records


def annotation(**changes) -> dict:
    sound = {"id": 5, "image_id": 0, "category_id": 3, "segmentation": polygon(1, 1, 9, 9), "area": 64}
    return {key: value for key, value in {**sound, **changes}.items() if value != "none"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": "none"}, "no list of annotations"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "several categories have the id 1"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "the name 'a' .ids 1, 2.;"),
        ({"categories": [{"id": 4, "name": "a  b"}, {"id": 2, "name": " a\tb"}]}, "the name 'a b' .ids 2, 4.; white"),
        ({"categories": [{"id": 1}]}, "each category must have an id and a name"),
        ({"images": [{"id": 0, "file_name": "c.png", "height": 4, "width": 4}]}, "1 of 1 pictures are not in.*c.png"),
        (
            {"images": [{"id": 0, "file_name": "../x.png", "height": 4, "width": 4}]},
            "1 of 1 pictures are not in.*x.png",
        ),
        ({"images": [{"id": 0, "file_name": "a.png", "height": 40, "width": 57}]}, "a.png has 56x40, not 57x40"),
        ({"images": [{"id": 0, "file_name": "a.png", "height": 0, "width": 56}]}, "has 56x0 pixels"),
        ({"images": [{"id": 0, "file_name": "a.png", "height": 1e999, "width": 56}]}, "inf is no whole number"),
        ({"annotations": [annotation(segmentation=[[2, 2, float("nan"), 9, 8, 8]])]}, "no numbers, or beyond"),
        ({"annotations": [annotation(segmentation=[[2, 2, 10**400, 9, 8, 8]])]}, "no numbers, or beyond"),
        ({"annotations": [annotation(segmentation={"size": [40, 56], "counts": [0.5, 2239.5]})]}, "whole numbers"),
        ({"annotations": [annotation(segmentation={"size": [40, 56], "counts": [-1, 2241]})]}, "whole numbers"),
        ({"annotations": [annotation(segmentation={"size": [40, 56], "counts": "0"})]}, "it covers 0 of 2240"),
        ({"annotations": [annotation(segmentation={"size": [40, 56], "counts": "é"})]}, "it holds 'é'"),
        ({"annotations": [annotation(segmentation={"size": [40, 56], "counts": "P"})]}, "ends within a number"),
        ({"annotations": [annotation(), annotation(segments_info=[], file_name="a.png")]}, "and other annotations"),
        ({"images": [{"id": 0}]}, "each image must have id, file_name"),
        ({"annotations": [annotation(image_id=9)]}, "annotation 5: image 9 is not in the file"),
        ({"annotations": [annotation(category_id=9)] * 7}, "7 annotations cannot be used.*category 9.*and 2 more"),
        ({"annotations": [annotation(segmentation=[])]}, "a box, but no segmentation"),
        ({"annotations": [annotation(segmentation="none")]}, "it has no 'segmentation'"),
        ({"annotations": [annotation(segmentation=polygon(1, 1, 90, 9))]}, "from 1, 1 to 90, 9, outside of the 56x40"),
        ({"annotations": [annotation(segmentation=[[1, 2, 3, 4]])]}, "of three points at least"),
        ({"annotations": [annotation(segmentation={"size": [4, 4], "counts": [16]})]}, "of size .4, 4., its image of"),
    ],
)
def test_files_that_cannot_be_used(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path, **changes))


def test_a_code_that_was_cut_is_found_as_the_file_is_read(tmp_path):
    code = compressed(*REGIONS[0][1])
    for length in range(len(code["counts"])):
        damaged = annotation(segmentation=code | {"counts": code["counts"][:length]})
        with pytest.raises(ValueError, match="annotation 5: a run-length code is damaged"):
            load(write(tmp_path / str(length), annotations=[damaged]))


def test_codes_are_read_as_pycocotools_reads_them():
    rng = np.random.default_rng(0)
    for share in (0.01, 0.5, 0.99):
        mask = np.asfortranarray(rng.random(SIZE) < share).astype(np.uint8, order="F")
        segmentation = {"counts": coco_mask.encode(mask)["counts"].decode()}
        text = json.dumps({"size": SIZE, "parts": [[3, segmentation]]})
        np.testing.assert_array_equal(draw_annotation(text), 3 * mask)


def test_polygons_are_drawn_as_pycocotools_draws_them():
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = (rng.random((rng.integers(3, 9), 2)) * 1.04 - 0.02) * (SIZE[1], SIZE[0])
        segmentation = [points.ravel().tolist(), (points / 2).ravel().tolist()]
        expected = coco_mask.decode(coco_mask.frPyObjects(segmentation, *SIZE)).any(axis=2)
        text = json.dumps({"size": SIZE, "parts": [[1, segmentation]]})
        assert (draw_annotation(text) != expected).sum() <= 2 * len(points)  # pixels that lie on the picture's edge


def test_two_images_are_not_the_same_picture(tmp_path):
    images = [{"id": idx, "file_name": f"{idx}/a.png", "height": SIZE[0], "width": SIZE[1]} for idx in range(2)]
    with pytest.raises(ValueError, match="several images are the same picture: .*a.png"):
        load(write(tmp_path, images=images))


def test_places_and_numbers_as_tools_write_them(tmp_path):
    """With backslashes, or of another machine; numbers as texts; a byte order mark."""
    images = [
        {"id": 0, "file_name": "..\\x\\a.png", "height": "40", "width": 56},
        {"id": 1, "file_name": "/data/b.png", "height": 40, "width": 56},
    ]
    categories = [{"id": str(entry["id"]), "name": entry["name"]} for entry in CATEGORIES]
    file = write(tmp_path, images=images, categories=categories)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    _, labels = read_example(load(file).splits["train"], 0, num_labels=3, do_reduce_labels=False, name="train")
    np.testing.assert_array_equal(labels, expected_mask())


def test_files_of_one_name_beside_the_pictures(tmp_path):
    """As Roboflow lays them out."""
    content = json.loads(write(tmp_path).read_text())
    files = []
    for place, (split, name) in enumerate((("train", "a.png"), ("valid", "deep/b.png"))):
        files.append(tmp_path / "export" / split / "_annotations.coco.json")
        files[-1].parent.mkdir(parents=True)
        (tmp_path / "pictures" / name).rename(files[-1].parent / Path(name).name)
        kept = {"images": content["images"][place : place + 1], "categories": content["categories"]}
        annotations = [{**entry, "image_id": place} for entry in content["annotations"]]
        files[-1].write_text(json.dumps(kept | {"annotations": annotations}))
    dataset = load_segmentation_dataset(str(tmp_path / "export"), annotations=files)
    for split in dataset.splits.values():
        _, labels = read_example(split, 0, num_labels=3, do_reduce_labels=False, name="")
        np.testing.assert_array_equal(labels, expected_mask())


def test_arguments_that_do_not_go_together(tmp_path):
    with pytest.raises(ValueError, match="leave out id2label and mask_values"):
        load(write(tmp_path), id2label=3, mask_values={0: 1})


def test_all_that_cannot_be_used_is_left_out_where_problems_are_collected(tmp_path):
    path = write(tmp_path)
    content = json.loads(path.read_text())
    content["images"].append({"id": 9, "file_name": "missing.png", "height": 4, "width": 4})
    content["annotations"].append({"id": 77, "image_id": 0, "category_id": 5, "segmentation": polygon(1, 1, 3, 3)})
    content["annotations"].append({"id": 78, "image_id": 55, "category_id": 3, "segmentation": polygon(1, 1, 3, 3)})
    path.write_text(json.dumps(content))
    problems = []
    splits, _ = load_coco(tmp_path / "pictures", [path], problems)
    assert len(splits["train"]) == 2
    told = " ".join(problem.text for problem in problems)
    assert len(problems) == 3 and "missing.png" in told and "annotation 77" in told and "annotation 78" in told
