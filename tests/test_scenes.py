# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import hashlib
import multiprocessing

import datasets
import numpy as np
import pytest

from van_hf.data import ade20k, scenes


@pytest.fixture(scope="module")
def pictures():
    examples = scenes.generate_examples("train")
    return [next(examples) for _ in range(80)]


@pytest.fixture
def few_pictures(monkeypatch, tmp_path):
    monkeypatch.setattr(scenes, "NUM_PICTURES", {"train": 3, "validation": 2})
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path


def digest(example):
    return hashlib.sha256(example["image"].tobytes() + example["annotation"].tobytes()).hexdigest()


def test_class_names_are_ade20k_names_in_its_order():
    positions = [ade20k.CLASS_NAMES.index(name) for name in scenes.CLASS_NAMES]
    assert positions == sorted(positions) and len(positions) >= 10


def test_there_are_enough_pictures():
    assert scenes.NUM_PICTURES["train"] >= 300 and scenes.NUM_PICTURES["validation"] >= 50


def test_pictures_are_repeatable_and_all_different(pictures):
    again = scenes.generate_examples("train")
    assert [digest(next(again)) for _ in range(4)] == [digest(example) for example in pictures[:4]]
    digests = {digest(example) for example in pictures}
    validation = scenes.generate_examples("validation")
    digests |= {digest(next(validation)) for _ in range(4)}
    assert len(digests) == len(pictures) + 4


def test_columns_modes_and_sizes(pictures):
    sizes = {example["image"].size for example in pictures}
    assert len(sizes) > 40 and all(130 <= side <= 260 for size in sizes for side in size)
    for example in pictures:
        assert example["image"].mode == "RGB" and example["annotation"].mode == "L"
        assert example["image"].size == example["annotation"].size
        assert np.asarray(example["annotation"]).max() <= len(scenes.CLASS_NAMES)
    assert {example["scene_category"] for example in pictures} == set(scenes.SETTINGS)


def test_every_class_is_in_many_pictures_with_a_sizeable_area(pictures):
    num_raw = len(scenes.CLASS_NAMES) + 1
    counts = np.stack([np.bincount(np.asarray(p["annotation"]).ravel(), minlength=num_raw) for p in pictures])
    shares = counts / counts.sum(axis=1, keepdims=True)
    assert ((shares > 0.01).mean(axis=0)[1:] > 0.25).all()
    assert (shares.mean(axis=0)[1:] > 0.015).all()
    assert 0.005 < shares.mean(axis=0)[0] < 0.08


def test_colour_alone_does_not_tell_the_class(pictures):
    """The best guess from a pixel's colour, learnt from half of the pictures, is far from the truth in the others."""
    num_raw = len(scenes.CLASS_NAMES) + 1

    def pixels(examples):
        colors = np.concatenate([np.asarray(p["image"]).reshape(-1, 3) // 16 for p in examples]).astype(int)
        labels = np.concatenate([np.asarray(p["annotation"]).ravel() for p in examples])
        return colors @ (256, 16, 1), labels

    bins, labels = pixels(pictures[::2])
    table = np.zeros((16**3, num_raw))
    np.add.at(table, (bins, labels), 1)
    bins, labels = pixels(pictures[1::2])
    guesses = table.argmax(axis=1)[bins]
    ious = [((guesses == k) & (labels == k)).sum() / ((guesses == k) | (labels == k)).sum() for k in range(1, num_raw)]
    assert np.mean(ious) < 0.3


def test_loading_is_cached(few_pictures):
    first = scenes.load()
    assert {split: len(data) for split, data in first.items()} == {"train": 3, "validation": 2}
    written = {path: path.stat().st_mtime_ns for path in few_pictures.rglob("*.arrow")}
    second = scenes.load()
    assert len(written) == 2 and written == {p: p.stat().st_mtime_ns for p in few_pictures.rglob("*.arrow")}
    example = next(scenes.generate_examples("train"))
    assert digest(second["train"][0]) == digest(example)
    assert second["train"].features == datasets.Features(
        image=datasets.Image(), annotation=datasets.Image(), scene_category=datasets.Value("string")
    )
    undecoded = second["train"].cast_column("image", datasets.Image(decode=False))
    assert undecoded[0]["image"]["bytes"].startswith(b"BM")  # quickly decoded


def load_in_process(queue):
    queue.put([digest(example) for example in scenes.load()["train"]])


def test_two_processes_may_ask_at_once(few_pictures):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=load_in_process, args=(queue,)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert results[0] == results[1] and len(results[0]) == 3
