# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import paired_folders
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from van_hf.data import ade20k, load_segmentation_dataset, loading, scenes

IMAGES = datasets.Features(image=datasets.Image(), annotation=datasets.Image())
THREE = {0: "a", 1: "b", 2: "c"}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def rows(number, image="image", mask="annotation", **columns):
    pictures = [Image.new("RGB", (8, 6), (index, 0, 0)) for index in range(number)]
    masks = [Image.new("L", (8, 6), index % 3) for index in range(number)]
    return {image: pictures, mask: masks, **columns}


def split(number, image="image", mask="annotation"):
    return datasets.Dataset.from_dict(
        rows(number, image, mask), features=datasets.Features({image: datasets.Image(), mask: datasets.Image()})
    )


def saved(folder, train=4, validation=2, image="image", mask="annotation", id2label=THREE, **more):
    splits = {"train": train, "validation": validation, **more}
    datasets.DatasetDict({k: split(n, image, mask) for k, n in splits.items() if n}).save_to_disk(str(folder))
    if id2label is not None:
        (folder / "id2label.json").write_text(json.dumps(id2label))
    return folder


def reds(data):
    return [np.asarray(image)[0, 0, 0].item() for image in data["image"]]


def test_scenes(monkeypatch):
    monkeypatch.setattr(scenes, "NUM_PICTURES", {"train": 3, "validation": 2})
    loaded = load_segmentation_dataset("scenes")
    assert loaded.name == "scenes" and loaded.do_reduce_labels
    assert {key: len(data) for key, data in loaded.splits.items()} == {"train": 3, "validation": 2}
    assert loaded.id2label == dict(enumerate(scenes.CLASS_NAMES)) and loaded.num_labels == len(scenes.CLASS_NAMES)
    assert loaded.palette[loaded.num_labels - 1] == ade20k.PALETTE[ade20k.CLASS_NAMES.index(scenes.CLASS_NAMES[-1])]
    assert loaded.splits["train"].column_names == ["image", "annotation", "scene_category"]


def test_ade20k_is_the_pinned_parquet_copy(monkeypatch):
    asked = []

    def load_dataset(path, name, **kwargs):
        asked.append((path, name, kwargs))
        return datasets.DatasetDict(train=split(2), validation=split(1))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load_segmentation_dataset("ade20k")
    load_segmentation_dataset("ade20k", revision="other")
    files = {"train": "scene_parsing/train/*.parquet", "validation": "scene_parsing/validation/*.parquet"}
    pinned = "e660d866a1351c70bcf07925d2600b60bd6e3bc3"
    assert asked[0] == ("zhoubolei/scene_parse_150", None, {"data_files": files, "revision": pinned})
    assert asked[1][2]["revision"] == "other"


def test_ade20k_from_parquet_files_of_the_hub_format(monkeypatch, tmp_path):
    features = datasets.Features(
        image=datasets.Image(),
        annotation=datasets.Image(),
        scene_category=datasets.ClassLabel(names=["airport", "bar"]),
    )
    for part, number in (("train", 3), ("validation", 2), ("test", 1)):
        (tmp_path / "scene_parsing" / part).mkdir(parents=True)
        data = datasets.Dataset.from_dict(rows(number, scene_category=[1] * number), features=features)
        data.to_parquet(str(tmp_path / "scene_parsing" / part / "0000.parquet"))
    monkeypatch.setattr(ade20k, "HUB_REPOSITORY", str(tmp_path))
    loaded = load_segmentation_dataset("ade20k")
    assert {key: len(data) for key, data in loaded.splits.items()} == {"train": 3, "validation": 2}
    assert loaded.num_labels == 150 and loaded.do_reduce_labels and loaded.palette == ade20k.PALETTE
    assert loaded.splits["train"].column_names == ["image", "annotation", "scene_category"]
    assert loaded.splits["train"][0]["image"].size == (8, 6)


@pytest.mark.parametrize(
    "name, files",
    [("ADEChallengeData2016", ("p1", "p2")), ("renamed", ("ADE_train_00000001",))],
)
def test_unpacked_ade20k(tmp_path, name, files):
    folder = paired_folders(tmp_path / name, names=files)
    (folder / "images" / "training" / ".DS_Store").write_text("")
    loaded = load_segmentation_dataset(str(folder))
    assert loaded.num_labels == 150 and loaded.do_reduce_labels and loaded.palette == ade20k.PALETTE
    assert len(loaded.splits["train"]) == len(loaded.splits["validation"]) == len(files)
    example = loaded.splits["train"][0]
    assert example["image"].mode == "RGB" and example["annotation"].mode == "L"
    assert Path(example["image"].filename).stem == Path(example["annotation"].filename).stem == files[0]


def looks_like_ade20k(folder, evidence):
    if evidence == "objectInfo150.txt":
        folder = paired_folders(folder)
        (folder / evidence).write_text("")
        return folder
    return paired_folders(folder / evidence, names=("ADE_train_00000001",) if evidence == "renamed" else ("p1",))


LIKE_ADE20K = pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        ("ADEChallengeData2016", "because the folder is called ADEChallengeData2016"),
        ("objectInfo150.txt", "because it holds objectInfo150.txt"),
        ("renamed", r"because its pictures are called ADE_train_\*"),
    ],
)


@LIKE_ADE20K
def test_own_label_names_come_before_those_of_ade20k(tmp_path, evidence, reason, caplog):
    folder = looks_like_ade20k(tmp_path, evidence)
    (folder / "id2label.json").write_text('["soil", "crop"]')
    loaded = load_segmentation_dataset(str(folder))
    assert loaded.id2label == {0: "soil", 1: "crop"} and loaded.do_reduce_labels is False and loaded.palette is None
    assert re.search(
        f"looks like ADE20K, {reason}, but its 2 label names were given. 0 in the masks is label 0, 'soil'",
        caplog.text,
    )
    (folder / "id2label.json").write_text(json.dumps([f"kind {number}" for number in range(150)]))
    assert load_segmentation_dataset(str(folder)).do_reduce_labels is False
    caplog.clear()
    assert load_segmentation_dataset(str(folder), do_reduce_labels=True).do_reduce_labels is True
    assert not caplog.records


@LIKE_ADE20K
def test_that_a_folder_is_taken_for_ade20k_is_told(tmp_path, evidence, reason, caplog):
    folder = looks_like_ade20k(tmp_path, evidence)
    loaded = load_segmentation_dataset(str(folder))
    assert loaded.num_labels == 150 and loaded.do_reduce_labels is True
    assert re.search(f"taken for ADE20K, {reason}: .* 150 labels, and 0 in the masks means 'other'", caplog.text)
    assert str(folder / "id2label.json") in caplog.text and "do_reduce_labels" in caplog.text
    assert load_segmentation_dataset(str(folder), do_reduce_labels=False).do_reduce_labels is False
    assert "0 in the masks is label 0, 'wall'" in caplog.text


def test_label_names_given_for_what_looks_like_ade20k(tmp_path, caplog):
    folder = looks_like_ade20k(tmp_path, "renamed")
    loaded = load_segmentation_dataset(str(folder), id2label={0: "soil", 1: "crop"})
    assert loaded.num_labels == 2 and loaded.do_reduce_labels is False
    assert "0 in the masks is label 0, 'soil'" in caplog.text
    translated = [f"Wort {number}" for number in range(150)]
    loaded = load_segmentation_dataset(str(folder), id2label=dict(enumerate(translated)))
    assert loaded.id2label[149] == "Wort 149" and loaded.do_reduce_labels is True
    assert "0 in the masks means 'other'" in caplog.text
    (folder / "id2label.json").write_text('["soil", "crop"]')
    assert load_segmentation_dataset(str(folder), id2label=3).num_labels == 3
    assert load_segmentation_dataset(str(folder), id2label=150).do_reduce_labels is False


def test_what_is_known_is_not_told(monkeypatch, tmp_path, caplog):
    splits = datasets.DatasetDict(train=split(2), validation=split(1))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: splits)
    loaded = load_segmentation_dataset("ade20k", id2label=3)
    assert loaded.num_labels == 3 and loaded.do_reduce_labels is True
    load_segmentation_dataset("ade20k")
    load_segmentation_dataset(str(saved(tmp_path)))
    assert not caplog.records


def test_a_column_that_was_guessed_among_several_is_told(tmp_path, caplog):
    features = datasets.Features({key: datasets.Image() for key in ("image", "mask", "instances")})
    picture = Image.new("L", (4, 4))
    data = datasets.Dataset.from_dict({key: [picture] for key in features}, features=features)
    datasets.DatasetDict(train=data, validation=data).save_to_disk(str(tmp_path))
    load_segmentation_dataset(str(tmp_path), id2label=3)
    assert "column 'image' is taken for the pictures and 'mask' for the masks" in caplog.text
    assert "also has pictures in instances" in caplog.text
    caplog.clear()
    load_segmentation_dataset(str(tmp_path), id2label=3, image_column="image", mask_column="mask")
    assert not caplog.records


def test_folders_of_pairs_that_are_not_ade20k_need_label_names(tmp_path):
    folder = paired_folders(tmp_path / "fields", masks="masks", splits=("train", "val"))
    with pytest.raises(ValueError, match="no label names.*id2label.json.*number of labels"):
        load_segmentation_dataset(str(folder))
    (folder / "id2label.json").write_text('["soil", "crop"]')
    loaded = load_segmentation_dataset(str(folder))
    assert loaded.id2label == {0: "soil", 1: "crop"} and not loaded.do_reduce_labels and loaded.palette is None
    assert load_segmentation_dataset(str(folder), do_reduce_labels=True).do_reduce_labels


@pytest.mark.parametrize("kind, other", [("images", "annotations"), ("annotations", "images")])
def test_a_file_without_counterpart_is_named(tmp_path, kind, other):
    folder = paired_folders(tmp_path / "ADEChallengeData2016")
    lone = next((folder / kind / "validation").glob("p2.*"))
    next((folder / other / "validation").glob("p2.*")).unlink()
    with pytest.raises(ValueError) as error:
        load_segmentation_dataset(str(folder))
    assert str(lone) in str(error.value) and f"p2.* in {folder / other / 'validation'}" in str(error.value)


def test_broken_layouts_are_named(tmp_path):
    folder = paired_folders(tmp_path / "ADEChallengeData2016")
    (folder / "images" / "extra").mkdir()
    with pytest.raises(ValueError, match="extra has no masks"):
        load_segmentation_dataset(str(folder))
    (folder / "annotations" / "extra").mkdir()
    with pytest.raises(ValueError, match="extra holds no pictures"):
        load_segmentation_dataset(str(folder))
    (folder / "masks").mkdir()
    with pytest.raises(ValueError, match="several folders of masks: annotations, masks"):
        load_segmentation_dataset(str(folder))
    twice = paired_folders(tmp_path / "twice")
    Image.new("RGB", (8, 6)).save(twice / "images" / "training" / "p1.png")
    with pytest.raises(ValueError, match="both p1.jpg and p1.png"):
        load_segmentation_dataset(str(twice))
    (tmp_path / "flat" / "images").mkdir(parents=True)
    (tmp_path / "flat" / "masks").mkdir()
    with pytest.raises(ValueError, match="has no split folders"):
        load_segmentation_dataset(str(tmp_path / "flat"))


def test_saved_dataset_with_other_column_names(tmp_path):
    loaded = load_segmentation_dataset(str(saved(tmp_path, image="pixel_values", mask="label")))
    assert loaded.splits["train"].features == IMAGES and loaded.id2label == THREE
    assert reds(loaded.splits["train"]) == [0, 1, 2, 3]
    assert np.asarray(loaded.splits["train"][2]["annotation"]).max() == 2


def test_columns_may_be_given_and_swapped(tmp_path):
    folder = saved(tmp_path, image="annotation", mask="image")
    loaded = load_segmentation_dataset(str(folder), image_column="annotation", mask_column="image")
    assert loaded.splits["train"][0]["image"].mode == "RGB" and loaded.splits["train"][0]["annotation"].mode == "L"


def test_parquet_folder_and_label_names_from_features(tmp_path, caplog):
    features = datasets.Features(
        image=datasets.Image(), mask=datasets.Image(), present=datasets.List(datasets.ClassLabel(names=["cat", "dog"]))
    )
    for part in ("train", "validation"):
        data = datasets.Dataset.from_dict(rows(2, mask="mask", present=[[0], [0, 1]]), features=features)
        data.to_parquet(str(tmp_path / f"{part}-00000-of-00001.parquet"))
    loaded = load_segmentation_dataset(str(tmp_path))
    assert loaded.id2label == {0: "cat", 1: "dog"} and loaded.splits["train"].column_names == ["image", "annotation"]
    assert "label names are those of the column 'present', 2 of them" in caplog.text


def test_hub_dataset(monkeypatch, tmp_path):
    asked = []

    def load_dataset(path, name, **kwargs):
        asked.append((path, name, kwargs))
        return datasets.DatasetDict(train=split(2), validation=split(1))

    def download(repository, file, **kwargs):
        asked.append((repository, file, kwargs))
        (tmp_path / file).write_text('{"0": "a", "1": "b"}')
        return str(tmp_path / file)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(loading, "hf_hub_download", download)
    loaded = load_segmentation_dataset("someone/fields", config_name="fine", revision="v2")
    assert loaded.id2label == {0: "a", 1: "b"}
    assert asked == [
        ("someone/fields", "fine", {"revision": "v2"}),
        ("someone/fields", "id2label.json", {"repo_type": "dataset", "revision": "v2"}),
    ]


def test_hub_dataset_without_label_names(monkeypatch):
    def download(*args, **kwargs):
        raise LocalEntryNotFoundError("offline")

    splits = datasets.DatasetDict(train=split(2), validation=split(1))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: splits)
    monkeypatch.setattr(loading, "hf_hub_download", download)
    with pytest.raises(ValueError, match="'someone/fields' has no label names.*Give id2label"):
        load_segmentation_dataset("someone/fields")
    assert load_segmentation_dataset("someone/fields", id2label=3).id2label == {
        0: "LABEL_0",
        1: "LABEL_1",
        2: "LABEL_2",
    }


@pytest.mark.parametrize(
    "error", [FileNotFoundError("no such dataset"), ConnectionError("offline"), ValueError("pick one")]
)
def test_what_datasets_cannot_load(monkeypatch, error):
    def load_dataset(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=f"'no/such' could not be loaded: {error}(.|\n)*'scenes', 'ade20k', a folder"):
        load_segmentation_dataset("no/such")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "dataset_dict.json").write_text('{"splits": ["train"'),
        lambda folder: (folder / "dataset_dict.json").write_text("{}"),
        lambda folder: (folder / "train" / "state.json").unlink(),
        lambda folder: (folder / "train" / "data-00000-of-00001.arrow").write_bytes(b"torn"),
    ],
)
def test_a_saved_dataset_that_is_damaged_is_named(tmp_path, damage):
    damage(saved(tmp_path))
    with pytest.raises(ValueError, match=f"dataset '{tmp_path}' cannot be read: "):
        load_segmentation_dataset(str(tmp_path))


def test_a_missing_folder_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises(ValueError, match="is not a folder.*'scenes'"):
        load_segmentation_dataset(str(tmp_path / "nowhere"))
    (tmp_path / "file.parquet").write_text("")
    with pytest.raises(ValueError, match="is not a folder"):
        load_segmentation_dataset(str(tmp_path / "file.parquet"))


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="could not be loaded"):
        load_segmentation_dataset(str(tmp_path))


def test_missing_and_unclear_columns(tmp_path):
    images = datasets.Features(
        photo_file=datasets.Image(), mask=datasets.Image(), label=datasets.Image(), labels=datasets.Value("int64")
    )
    columns = {key: [Image.new("L", (4, 4))] for key in ("photo_file", "mask", "label")} | {"labels": [1]}
    data = datasets.Dataset.from_dict(columns, features=images)
    datasets.DatasetDict(train=data, validation=data).save_to_disk(str(tmp_path))
    name = str(tmp_path)
    with pytest.raises(
        ValueError, match=r"image_column .*none goes by a usual name.*photo_file \(Image\).*labels \(Value\)"
    ):
        load_segmentation_dataset(name, id2label=3)
    with pytest.raises(ValueError, match="mask_column .*several may be meant: label, mask"):
        load_segmentation_dataset(name, id2label=3, image_column="photo_file")
    with pytest.raises(ValueError, match="mask_column='labels' is not a column of pictures"):
        load_segmentation_dataset(name, id2label=3, image_column="photo_file", mask_column="labels")
    with pytest.raises(ValueError, match="both 'mask'"):
        load_segmentation_dataset(name, id2label=3, image_column="mask", mask_column="mask")
    loaded = load_segmentation_dataset(name, id2label=3, image_column="photo_file", mask_column="mask")
    assert loaded.splits["train"].features == IMAGES


def test_columns_must_be_in_both_splits(tmp_path):
    datasets.DatasetDict(train=split(2), validation=split(2, mask="mask")).save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match="validation lacks the columns \\['annotation'\\]"):
        load_segmentation_dataset(str(tmp_path), id2label=3)


def test_splits_by_other_names_and_slices(tmp_path):
    name = str(saved(tmp_path, train=10, validation=0, test=4))
    with pytest.raises(ValueError, match=r"no split 'validation'; found: train \(10 pictures\), test \(4 pictures\)"):
        load_segmentation_dataset(name)
    problems = []
    loaded = load_segmentation_dataset(name, problems=problems)
    assert [len(data) for data in loaded.splits.values()] == [10, 0]
    assert [problem.arguments for problem in problems] == ["--validation_split test"]
    loaded = load_segmentation_dataset(name, validation_split="test[1:3]")
    assert len(loaded.splits["train"]) == 10 and reds(loaded.splits["validation"]) == [1, 2]
    loaded = load_segmentation_dataset(name, train_split="train[:80%]+test+test[4:]", validation_split="train[80%:]")
    assert reds(loaded.splits["train"]) == [*range(8), 0, 1, 2, 3] and reds(loaded.splits["validation"]) == [8, 9]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"validation_split": "dev"}, "validation_split='dev' does not fit .*'train': 4"),
        ({"train_split": "train[:x]"}, r"train_split='train\[:x\]' does not fit"),
        ({"train_split": "train[4:]"}, r"train_split='train\[4:\]' .* is empty"),
        ({"validation_split": "train"}, "all trained on"),
        ({"validation_split": "train[90%:]"}, "all trained on.*give train_split the other part"),
    ],
)
def test_splits_that_do_not_fit(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset(str(saved(tmp_path)), **arguments)


def test_a_dataset_without_training_split(tmp_path):
    with pytest.raises(ValueError, match="no split 'train'; found: validation"):
        load_segmentation_dataset(str(saved(tmp_path, train=0)))


def test_a_dataset_without_either_split(tmp_path):
    with pytest.raises(ValueError, match=r"no split 'train'; found: test .*train_split='test\[:90%\]'"):
        load_segmentation_dataset(str(saved(tmp_path, train=0, validation=0, test=3)), problems=[])


def test_label_names_given_win(tmp_path):
    folder = saved(tmp_path)
    other = tmp_path / "names.json"
    other.write_text('{"1": "y", "0": "x"}')
    assert list(load_segmentation_dataset(str(folder), id2label=str(other)).id2label.items()) == [(0, "x"), (1, "y")]
    assert load_segmentation_dataset(str(folder), id2label={0: "only"}).id2label == {0: "only"}


@pytest.mark.parametrize(
    "id2label, message",
    [
        ({1: "a", 2: "b"}, r"\[1, 2\]; expected 0, 1, 2"),
        ({0: "a", 255: "void"}, r"\[0, 255\]; expected 0, 1, 2"),
        ({"sky": 0}, "expected label names by number"),
        ({}, "numbers its 0 labels"),
        (0, "numbers its 0 labels"),
        ("missing.json", "id2label file missing.json cannot be read"),
        (256, "256 labels; at most 255"),
        ({0: "sky", 1: None}, "label 1 is called null; expected a name"),
    ],
)
def test_label_names_that_will_not_do(tmp_path, id2label, message):
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset(str(saved(tmp_path)), id2label=id2label)


def test_equal_label_names_are_told_apart(tmp_path):
    loaded = load_segmentation_dataset(str(saved(tmp_path, id2label={0: "N/A", 1: "person", 2: "N/A"})))
    assert loaded.id2label == {0: "N/A (0)", 1: "person", 2: "N/A (2)"}


def test_255_labels_are_too_many_with_reduction(tmp_path):
    name = str(saved(tmp_path))
    assert load_segmentation_dataset(name, id2label=255).num_labels == 255
    with pytest.raises(ValueError, match="at most 254"):
        load_segmentation_dataset(name, id2label=255, do_reduce_labels=True)


def test_broken_label_file_is_named(tmp_path):
    folder = saved(tmp_path)
    (folder / "id2label.json").write_text("{0: ")
    with pytest.raises(ValueError, match="id2label.json cannot be read as JSON"):
        load_segmentation_dataset(str(folder))
