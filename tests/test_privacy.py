# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import pytest

from van_hf.privacy import NAMELESS, public_json, public_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/home/alice/pictures", "pictures"),
        ("/home/alice/my pictures/set 1/", "set 1"),
        ("~/pictures", "pictures"),
        ("~alice/pictures", "pictures"),
        ("./pictures", "pictures"),
        ("../data/x", "x"),
        ("..\\data\\x", "x"),
        ("C:\\Users\\alice\\pictures", "pictures"),
        ("d:/data/pictures", "pictures"),
        ("\\\\server\\share\\pictures", "pictures"),
        ("data\\pictures", "pictures"),
        ("file:///home/alice/my%20pictures", "my pictures"),
        ("FILE:C:/data/pictures", "pictures"),
        ("clients/acme/run-3", "run-3"),
        # There is no last part to take.
        ("/", NAMELESS),
        (".", NAMELESS),
        ("../..", NAMELESS),
        ("~", NAMELESS),
        ("~alice", NAMELESS),
    ],
)
def test_paths_become_their_last_part(name, expected):
    assert public_name(name) == expected
    assert public_name(expected) == expected


@pytest.mark.parametrize(
    "name",
    [
        "scenes",
        "my-data",
        "Visual-Attention-Network/van-base",
        "https://huggingface.co/datasets/owner/name/resolve/main/x.zip",
        "hf://datasets/owner/name/train.parquet",
        "s3://bucket/pictures/train",
        "refs/convert/parquet",
        "train[:90%]",
        "cuda:0",
        "2.15.0+cpu",
        "~5 % of the pixels",
        "and/or, pictures/second, A / B / C",
        "multi-scale (0.5, 0.75, 1.0) + flip, whole image, compared at the original size",
        "",
    ],
)
def test_everything_else_stays(name):
    assert public_name(name) == name


def test_a_folder_that_is_here_is_no_name_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "acme" / "van-base").mkdir(parents=True)
    (tmp_path / "my data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert public_name("acme/van-base") == "van-base"
    assert public_name("acme/van-large") == "acme/van-large"
    assert public_name("my data/") == "my data"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("read from /home/alice/x.json, then (../y/z) and 'C:\\data\\set'", "read from x.json, then (z) and 'set'"),
        ("--output_dir=~/runs/7 --seed 1", "--output_dir=7 --seed 1"),
        ("see https://example.org/a/b?path=c and file:///srv/a/b", "see https://example.org/a/b?path=c and b"),
    ],
)
def test_paths_within_a_text(text, expected):
    assert public_name(text) == expected


def test_json_is_walked_whatever_the_keys_are():
    content = {
        "dataset": {"name": "/srv/pictures", "validation": 5},
        "arguments": {"dataset": "/srv/pictures", "files": [["~/a/b.json"], None, True, 0.5]},
        "anything": {"deep": [{"down": "C:\\x\\y"}], "/srv/alice/id2label.json": "5f"},
        "model": "Visual-Attention-Network/van-base",
    }
    assert public_json(content) == {
        "dataset": {"name": "pictures", "validation": 5},
        "arguments": {"dataset": "pictures", "files": [["b.json"], None, True, 0.5]},
        "anything": {"deep": [{"down": "y"}], "id2label.json": "5f"},
        "model": "Visual-Attention-Network/van-base",
    }
    assert content["dataset"]["name"] == "/srv/pictures"


def test_arguments_that_are_always_paths():
    arguments = {"output_dir": "outputs/acme", "id2label": "acme/names.json", "resume_from_checkpoint": "acme/ckpt"}
    expected = {"output_dir": "acme", "id2label": "names.json", "resume_from_checkpoint": "ckpt"}
    assert public_json({**arguments, "dataset": "owner/name"}) == {**expected, "dataset": "owner/name"}
    assert public_json({"resume_from_checkpoint": "latest", "id2label": None, "output_dir": 3}) == {
        "resume_from_checkpoint": "latest",
        "id2label": None,
        "output_dir": 3,
    }


def test_names_of_labels_stay_as_they_are_in_the_configuration():
    content = {"iou": {"/m/01g317": 0.5}, "classes": [{"label": "/m/01g317", "source": "/m/0199g"}]}
    assert public_json(content, labels={"/m/01g317"}) == {
        "iou": {"/m/01g317": 0.5},
        "classes": [{"label": "/m/01g317", "source": "0199g"}],
    }
