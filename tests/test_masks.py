# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from van_hf.data import LABEL_TABLES, TrainAugmentation, TrainSamples, load_segmentation_dataset, read_example
from van_hf.data.label_check import check_train_labels, look_at_masks
from van_hf.data.masks import MaskMeaning, raw_labels

NAMES = ("field", "road", "house")
COLORS = ((0, 0, 0), (128, 64, 128), (255, 127, 0))
COLORED = {str(idx): {"name": name, "color": COLORS[idx]} for idx, name in enumerate(NAMES)}


def labels_of(seed: int) -> np.ndarray:
    """(40, 56), with a border that is ignored."""
    labels = np.random.default_rng(seed).integers(0, 3, (5, 7)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    labels[:2] = 255
    return labels


def colored(labels: np.ndarray) -> np.ndarray:
    table = np.full((256, 3), 9, dtype=np.uint8)
    table[:3] = COLORS
    return table[labels]


def of_values(*values: int, ignored: int) -> np.ndarray:
    table = np.full(256, ignored)
    table[: len(values)] = values
    return table


def with_palette(labels: np.ndarray) -> Image.Image:
    """Its indices are not the labels."""
    mask = Image.fromarray((7 - labels.astype(int)).clip(0).astype(np.uint8)).convert("P")
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[[7, 6, 5]] = COLORS
    palette[0] = 9
    mask.putpalette(palette.ravel().tolist())
    return mask


IGNORED_COLOR = ["9,9,9=ignore"]
ENCODINGS = {
    "labels": (lambda labels: Image.fromarray(labels), NAMES, {}),
    "0, 128 and 255": (
        lambda labels: Image.fromarray(of_values(0, 128, 255, ignored=7)[labels].astype(np.uint8)),
        NAMES,
        {"mask_values": ["0=0", "128=road", "255=2", "7=ignore"]},
    ),
    "names alone": (
        lambda labels: Image.fromarray(of_values(0, 128, 255, ignored=7)[labels].astype(np.uint8)),
        None,
        {"mask_values": {0: "field", 128: "road", 255: "house", 7: None}},
    ),
    "16 bits": (
        lambda labels: Image.fromarray(of_values(1000, 40000, 3, ignored=0)[labels].astype(np.uint16)),
        NAMES,
        {"mask_values": ["1000=0", "40000=1", "3=2"], "ignore_unlisted": True},
    ),
    "colours": (lambda labels: Image.fromarray(colored(labels)), COLORED, {"mask_values": IGNORED_COLOR}),
    "colours, transparent": (
        lambda labels: Image.fromarray(colored(labels)).convert("RGBA"),
        COLORED,
        {"ignore_unlisted": True},
    ),
    "colours in the argument": (
        lambda labels: Image.fromarray(colored(labels)),
        None,
        {"mask_values": ["#000000=field", "#804080=road", "255,127,0=house", "#090909=ignore"]},
    ),
    "palette": (with_palette, COLORED, {"mask_palettes": True, "mask_values": IGNORED_COLOR}),
    "noisy colours": (
        lambda labels: Image.fromarray(
            (colored(labels) + np.random.default_rng(0).integers(-4, 5, (*labels.shape, 3))).clip(0, 255).astype("u1")
        ),
        {**COLORED, "0": {"name": "field", "color": [30, 30, 30]}},
        {"mask_values": [*IGNORED_COLOR, "0,0,0=field"], "mask_tolerance": 4},
    ),
}


def write_dataset(folder: Path, encode, id2label) -> Path:
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for seed in range(2):
            rng = np.random.default_rng(seed)
            image = Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8))
            image.save(folder / "images" / split / f"{seed}.png")
            encode(labels_of(seed)).save(folder / "annotations" / split / f"{seed}.png")
    if id2label is not None:
        (folder / "id2label.json").write_text(json.dumps(id2label))
    return folder


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_masks_as_people_have_them_give_the_same_tensors(encoding, tmp_path):
    encode, id2label, arguments = ENCODINGS[encoding]
    dataset = load_segmentation_dataset(str(write_dataset(tmp_path / "data", encode, id2label)), **arguments)
    assert tuple(dataset.id2label.values()) == NAMES
    settings = {"num_labels": 3, "do_reduce_labels": False, "mask_meaning": dataset.mask_meaning}
    for idx in range(2):
        image, labels = read_example(dataset.splits["validation"], idx, name="validation", **settings)
        assert image.shape == (3, 40, 56)
        np.testing.assert_array_equal(labels, labels_of(idx))
    samples = TrainSamples(
        dataset.splits["train"], TrainAugmentation(crop_size=32, scale=(64, 48)), seed=0, num_samples=4, **settings
    )
    samples = pickle.loads(pickle.dumps(samples))
    plain = load_segmentation_dataset(str(write_dataset(tmp_path / "plain", *ENCODINGS["labels"][:2])))
    settings["mask_meaning"] = plain.mask_meaning
    expected = TrainSamples(
        plain.splits["train"], TrainAugmentation(crop_size=32, scale=(64, 48)), seed=0, num_samples=4, **settings
    )
    for ours, theirs in zip(samples, expected, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    check_train_labels(dataset)
    assert look_at_masks(dataset).labels(False) == [0, 1, 2]
    if id2label is COLORED:
        assert dataset.palette == [list(color) for color in COLORS]


def test_zero_as_other_goes_with_colours(tmp_path):
    """Coloured masks have no 0: their labels are those after reduction."""
    encode, id2label, _ = ENCODINGS["colours"]
    folder = write_dataset(tmp_path / "data", encode, id2label)
    dataset = load_segmentation_dataset(str(folder), do_reduce_labels=True, ignore_unlisted=True)
    _, labels = read_example(
        dataset.splits["train"],
        0,
        num_labels=3,
        do_reduce_labels=True,
        name="train",
        mask_meaning=dataset.mask_meaning,
    )
    np.testing.assert_array_equal(labels, labels_of(0))


@pytest.mark.parametrize(
    ("mask", "meaning", "message"),
    [
        (
            np.array([[0, 7, 7], [9, 255, 0]], dtype=np.uint8),
            MaskMeaning(values=((0, 0), (255, 1))),
            r"holds values that no label has: 7 \(2 pixels\), 9 \(1 pixels\). 2 are listed",
        ),
        (
            np.array([[[1, 2, 3]] * 3, [[0, 0, 0]] * 3], dtype=np.uint8),
            MaskMeaning(colors=(((0, 0, 0), 0),)),
            r"holds colours that no label has: #010203 \(3 pixels\). 1 are listed.*--mask_tolerance",
        ),
        (np.zeros((2, 3, 3), dtype=np.uint8), MaskMeaning(values=((0, 0),)), "has mode RGB.*--mask_values"),
        (np.arange(500, 900, dtype=np.uint16)[None], MaskMeaning(values=((0, 0),)), "500 .1 pixels.* and 392 more"),
    ],
)
def test_what_is_not_listed_is_counted(mask, meaning, message):
    with pytest.raises(ValueError, match=message):
        raw_labels(Image.fromarray(mask), meaning)


def test_the_nearest_within_the_tolerance_counts():
    meaning = MaskMeaning(
        values=((0, 0), (100, 1), (110, 2)), colors=(((0, 0, 0), 0), ((0, 0, 9), 1)), tolerance=6, ignore_unlisted=True
    )
    values = np.array([[6, 7, 93, 94, 105, 106, 116, 117]])
    expected = [[0, 255, 255, 1, 1, 2, 2, 255]]
    for dtype in (np.uint8, np.uint16):
        assert raw_labels(Image.fromarray(values.astype(dtype)), meaning).tolist() == expected
    colors = np.array([[[6, 6, 4], [6, 6, 5], [0, 0, 15], [0, 0, 16], [7, 0, 0], [255, 255, 255]]], dtype=np.uint8)
    assert raw_labels(Image.fromarray(colors), meaning).tolist() == [[0, 1, 1, 255, 255, 255]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_values": ["0"]}, "'0' is not of the form RAW=LABEL"),
        ({"mask_values": ["0=0", "0=1"]}, "several entries for 0"),
        ({"mask_values": ["0=0", "255=3"]}, "names the label 3, which is none of the 3: 0 'field'"),
        ({"mask_values": ["0=lake"]}, "names the label 'lake', which is none of the 3"),
        ({"mask_values": ["red=1"]}, "'red'; expected .red, green, blue."),
        ({"mask_values": ["0,0,300=1"]}, "'0,0,300'"),
        ({"mask_values": {}}, "mask_values is empty"),
        ({"mask_values": {0: 1.5}}, "has the label 1.5"),
        ({"mask_values": "nowhere.json"}, "nowhere.json cannot be read"),
        ({"mask_values": ["0=0"], "do_reduce_labels": True}, "does not go with them"),
        ({"mask_palettes": True}, "mask_palettes need values or colours"),
        ({"mask_values": ["0=0"], "mask_palettes": True}, "mask_palettes needs the labels' colours"),
        ({"mask_tolerance": 3, "ignore_unlisted": True}, "mask_tolerance and ignore_unlisted need"),
        ({"mask_values": ["0=0"], "mask_tolerance": 200}, "from 0 to 127, got 200"),
        ({"label_table": "citiscapes"}, "one of cityscapes, pascal_voc, .*got 'citiscapes'"),
        ({"label_table": "loveda", "id2label": 7}, "leave out id2label"),
    ],
)
def test_arguments_that_cannot_be(arguments, message, tmp_path):
    folder = write_dataset(tmp_path / "data", *ENCODINGS["labels"][:2])
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset(str(folder), **arguments)


def test_a_folder_as_cvat_exports_it(tmp_path):
    """Segmentation mask 1.1, with two of its folders renamed."""
    colors = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255)], dtype=np.uint8)
    labels = [labels_of(seed) % 3 for seed in range(2)]
    for folder, content in (("images", labels), ("masks", labels), ("SegmentationObject", labels)):
        (tmp_path / folder).mkdir()
        for number, mask in enumerate(content):
            Image.fromarray(colors[mask]).save(tmp_path / folder / f"{number}.png")
    rows = ["# label:color_rgb:parts:actions", "background:0,0,0::", "crack:250,50,83::", "leaf:51,221,255::"]
    (tmp_path / "labelmap.txt").write_text("\n".join(rows) + "\n")
    parts = {"train_split": "train[:50%]", "validation_split": "train[50%:]"}
    dataset = load_segmentation_dataset(str(tmp_path), id2label=tmp_path / "labelmap.txt", **parts)
    assert list(dataset.id2label.values()) == ["background", "crack", "leaf"]
    for split, expected in zip(dataset.splits.values(), labels, strict=True):
        np.testing.assert_array_equal(raw_labels(split[0]["annotation"], dataset.mask_meaning), expected)


def with_alpha(labels: np.ndarray, mode: str, alpha: int = 255) -> Image.Image:
    mask = with_palette(labels) if mode == "PA" else Image.fromarray(labels)
    mask = mask.convert(mode)
    opacity = np.full(labels.shape, 255, dtype=np.uint8)
    opacity[3:5] = alpha
    mask.putalpha(Image.fromarray(opacity))
    assert mask.mode == mode
    return mask


@pytest.mark.parametrize("mode", ["LA", "PA"])
def test_alpha_says_nothing_where_all_is_opaque(mode):
    labels = labels_of(0)
    mask = with_alpha(labels, mode)
    np.testing.assert_array_equal(raw_labels(mask), np.array(with_palette(labels)) if mode == "PA" else labels)
    meaning = MaskMeaning(colors=tuple((color, label) for label, color in enumerate(COLORS)), palettes_are_colors=True)
    meaning = replace(meaning, ignore_unlisted=True)
    np.testing.assert_array_equal(raw_labels(mask, meaning), labels)
    mask.getexif()[0x0112] = 6
    assert raw_labels(mask).shape == labels.shape[::-1]
    for alpha in (0, 254):
        with pytest.raises(ValueError, match=f"mode {mode}, and pixels that are not opaque.*with 255 where nothing"):
            raw_labels(with_alpha(labels, mode, alpha))


def test_the_tolerance_is_not_for_indices():
    meaning = MaskMeaning(values=((0, 0), (255, 1)), tolerance=20)
    binary = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert raw_labels(binary, meaning).tolist() == [[0, 1]]  # white is 255 where 1 is not listed
    assert raw_labels(binary, MaskMeaning(values=((0, 1), (1, 0)))).tolist() == [[1, 0]]
    with pytest.raises(ValueError, match=r"1 \(1 pixels\)"):
        raw_labels(Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P"), meaning)


def test_a_palette_in_another_order_is_no_mask_of_labels():
    colors = tuple((color, label) for label, color in enumerate(COLORS))
    mask = with_palette(labels_of(0))
    with pytest.raises(ValueError, match=r"colour of label 2, \[255, 127, 0\], at index 5.*--mask_palettes"):
        raw_labels(mask, MaskMeaning(colors=colors))
    ordered = Image.fromarray(np.array([[0, 1, 2, 7]], dtype=np.uint8)).convert("P")
    ordered.putpalette(np.array([*COLORS, *[(1, 1, 1)] * 9], dtype=np.uint8).ravel().tolist())
    assert raw_labels(ordered, MaskMeaning(colors=colors)).tolist() == [[0, 1, 2, 7]]


def test_masks_in_shades_of_grey_go_by_colours_that_were_listed(tmp_path):
    folder = write_dataset(tmp_path / "data", *ENCODINGS["labels"][:2])
    arguments = {"mask_values": ["#000000=0", "#ffffff=1", "#804080=2"]}
    meaning = load_segmentation_dataset(str(folder), **arguments).mask_meaning
    assert raw_labels(Image.fromarray(np.array([[0, 255]], dtype=np.uint8)), meaning).tolist() == [[0, 1]]


def test_many_listed_values_take_little_memory():
    listed = tuple((value, value % 3) for value in range(60_000))
    mask = Image.fromarray(np.arange(60_000, dtype=np.uint16).reshape(200, 300))
    np.testing.assert_array_equal(raw_labels(mask, MaskMeaning(values=listed)).ravel(), np.arange(60_000) % 3)


def test_masks_of_train_ids_are_recognized():
    mask = Image.fromarray(np.array([[0, 13, 255]], dtype=np.uint8))
    meaning = MaskMeaning(values=tuple(LABEL_TABLES["cityscapes"].values.items()))
    with pytest.raises(ValueError, match="labelTrainIds, leave out label_table"):
        raw_labels(mask, meaning)
