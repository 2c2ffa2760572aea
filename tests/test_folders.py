# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
from pathlib import Path

import pytest
from conftest import paired_folders
from PIL import Image

from van_hf.data.folders import pair_folders


def stems(split):
    """The names of the pictures and of the masks, with the folders below the split's."""
    split = split.with_format("arrow")[:]
    for column, folder in (("image", "images"), ("annotation", "annotations")):
        paths = [Path(value["path"]) for value in split[column].to_pylist()]
        yield [path.with_suffix("").as_posix().partition(f"{folder}/train/")[2] for path in paths]


def pictures(folder, **options):
    images, masks = stems(pair_folders(paired_folders(folder, splits=("train",), **options))["train"])
    assert images == masks
    return images


def test_pictures_in_nested_folders_go_with_the_masks_of_the_same_path(tmp_path):
    names = ("berlin/1", "berlin/2", "ulm/1", "ulm/west/3", "0")
    assert pictures(tmp_path, names=names) == sorted(names)


def test_pictures_without_folders_are_of_one_split(tmp_path):
    paired_folders(tmp_path, splits=("",), names=("p1", "p2"))
    splits = pair_folders(tmp_path)
    assert list(splits) == ["train"]
    for column in ("image", "annotation"):
        assert [Path(picture.filename).stem for picture in splits["train"][column]] == ["p1", "p2"]
    (tmp_path / "annotations" / "p1.png").unlink()
    with pytest.raises(ValueError, match=r"p1.jpg has no counterpart: no file p1.\* in .*annotations\."):
        pair_folders(tmp_path)


def test_folders_that_are_nested_on_one_side_only_are_named(tmp_path):
    paired_folders(tmp_path, splits=("train",), names=("p1",))
    (tmp_path / "images" / "train" / "ulm").mkdir()
    (tmp_path / "images" / "train" / "p1.jpg").rename(tmp_path / "images" / "train" / "ulm" / "p1.jpg")
    with pytest.raises(ValueError, match=r"p1.png has no counterpart: no file p1.\* in .*There is .*train/ulm/p1.jpg"):
        pair_folders(tmp_path)


@pytest.mark.parametrize(
    "leftover", ["Thumbs.db", "desktop.ini", ".DS_Store", "._p1.jpg", ".ipynb_checkpoints/p1.jpg", "__MACOSX/p1.jpg"]
)
@pytest.mark.parametrize("where", ["images", "images/train", "annotations/train"])
def test_what_systems_leave_behind_is_no_picture(tmp_path, leftover, where, caplog):
    (tmp_path / where / leftover).parent.mkdir(parents=True)
    (tmp_path / where / leftover).write_text("")
    assert pictures(tmp_path) == ["p1", "p2"]
    assert not caplog.records


def test_files_that_are_no_pictures_are_left_out_and_told(tmp_path, caplog):
    paired_folders(tmp_path, splits=("train",))
    for name in ("images/train/readme.txt", "annotations/train/classes.json", "annotations/train/p1_polygons.json"):
        (tmp_path / name).write_text("")
    assert pictures(tmp_path) == ["p1", "p2"]
    assert "3 files are left out, as they are no pictures and have no counterpart" in caplog.text
    assert all(name in caplog.text for name in ("readme.txt", "classes.json", "p1_polygons.json"))


@pytest.mark.parametrize("sidecar", ["p1.json", "p1.xml"])
def test_what_lies_beside_a_picture_is_no_second_picture(tmp_path, sidecar):
    (tmp_path / "annotations" / "train").mkdir(parents=True)
    (tmp_path / "annotations" / "train" / sidecar).write_text("")
    folder = paired_folders(tmp_path, splits=("train",))
    masks = [path.filename for path in pair_folders(folder)["train"]["annotation"]]
    assert [Path(mask).name for mask in masks] == ["p1.png", "p2.png"]


def test_suffixes_may_be_upper_case_or_missing(tmp_path):
    paired_folders(tmp_path, splits=("train",), names=("p1", "p2", "a.b"))
    for old, new in (("p1.jpg", "p1.JPG"), ("p2.jpg", "p2"), ("a.b.jpg", "a.b.JPEG")):
        (tmp_path / "images" / "train" / old).rename(tmp_path / "images" / "train" / new)
    pairs = pair_folders(tmp_path)["train"]
    assert [Path(image.filename).name for image in pairs["image"]] == ["a.b.JPEG", "p1.JPG", "p2"]


def test_pictures_of_one_name_are_refused_whatever_their_suffixes(tmp_path):
    paired_folders(tmp_path, splits=("train",))
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "train" / "p1.JPG", format="JPEG")
    with pytest.raises(ValueError, match="both p1.JPG and p1.jpg"):
        pair_folders(tmp_path)


def test_masks_that_are_called_otherwise_are_named(tmp_path):
    paired_folders(tmp_path, splits=("train",), names=("1", "10"))
    folder = tmp_path / "annotations" / "train"
    (folder / "10.png").rename(folder / "10_mask.png")
    with pytest.raises(ValueError, match=r"10.jpg has no counterpart.*There is .*/10_mask.png, but names must be the"):
        pair_folders(tmp_path)


def test_pictures_without_masks_are_not_left_out_with_other_files(tmp_path):
    paired_folders(tmp_path, splits=("train",))
    (tmp_path / "annotations" / "train" / "p3.npy").write_bytes(b"")
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "train" / "p4.webp")
    with pytest.raises(ValueError, match="p4.webp has no counterpart"):
        pair_folders(tmp_path)


def test_links_are_followed(tmp_path):
    elsewhere = paired_folders(tmp_path / "elsewhere", splits=("train",), names=("p1", "ulm/p2"))
    folder = tmp_path / "data"
    for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
        (folder / kind / "train").mkdir(parents=True)
        (folder / kind / "train" / f"p1{suffix}").symlink_to(elsewhere / kind / "train" / f"p1{suffix}")
        (folder / kind / "train" / "ulm").symlink_to(elsewhere / kind / "train" / "ulm")
    assert [list(names) for names in stems(pair_folders(folder)["train"])] == [["p1", "ulm/p2"]] * 2


@pytest.mark.parametrize("target", [".", "..", "../../images"])
def test_links_in_a_circle_are_refused(tmp_path, target):
    paired_folders(tmp_path, splits=("train",))
    (tmp_path / "images" / "train" / "again").symlink_to(target)
    with pytest.raises(ValueError, match="again is a link to a folder that it lies in"):
        pair_folders(tmp_path)


def test_links_to_nothing_are_named(tmp_path):
    paired_folders(tmp_path, splits=("train",))
    (tmp_path / "images" / "train" / "p2.jpg").unlink()
    (tmp_path / "images" / "train" / "p2.jpg").symlink_to("gone.jpg")
    with pytest.raises(ValueError, match="p2.jpg is a link to gone.jpg, which is not there"):
        pair_folders(tmp_path)


def test_names_that_are_not_utf_8_are_refused(tmp_path):
    paired_folders(tmp_path, splits=("train",))
    try:
        (tmp_path / "images" / "train" / os.fsdecode(b"stra\xdfe.jpg")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    with pytest.raises(ValueError, match=r"stra\\udcdfe.jpg' has a name that is not UTF-8"):
        pair_folders(tmp_path)


def test_folders_that_may_not_be_read_are_named(tmp_path, monkeypatch):
    paired_folders(tmp_path, splits=("train",), names=("p1", "ulm/p2"))
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "ulm":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match="cannot be read: .*ulm"):
        pair_folders(tmp_path)


def test_all_files_without_a_counterpart_are_named(tmp_path):
    folder = paired_folders(tmp_path, names=("p1", "p2", "p3", "p4"))
    removed = [folder / "annotations" / "training" / "p1.png", folder / "images" / "validation" / "p3.jpg"]
    for path in removed:
        path.unlink()
    with pytest.raises(ValueError, match=r"2 files cannot be used.*\n.*p1\.jpg has no .*\n.*p3\.png has no "):
        pair_folders(folder)
    problems = []
    splits = pair_folders(folder, problems)
    assert {split: len(data) for split, data in splits.items()} == {"training": 3, "validation": 3}
    assert [problem.file.rpartition("/")[2] for problem in problems] == ["p1.jpg", "p3.png"]
