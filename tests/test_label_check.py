# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import datasets
import numpy as np
import pytest
from PIL import Image

from van_hf.data import SegmentationDataset, check_train_labels, check_validation_labels, describe_labels
from van_hf.data.label_check import MaskContents, count_raw_values, look_at_masks

NAMES = {0: "background", 1: "crop", 2: "weed"}


def dataset_of(masks, names=NAMES, do_reduce_labels=False):
    """A dataset with these training masks, PIL images or rows of labels, and no pictures."""
    masks = [mask if isinstance(mask, Image.Image) else Image.fromarray(np.array(mask)) for mask in masks]
    features = datasets.Features(image=datasets.Image(), annotation=datasets.Image())
    split = datasets.Dataset.from_dict({"image": [None] * len(masks), "annotation": masks}, features=features)
    return SegmentationDataset("fields", datasets.DatasetDict(train=split), names, do_reduce_labels, None)


def mask_of(*values, size=(5, 2), dtype=np.uint8):
    mask = np.zeros(size, dtype=dtype)
    mask.flat[: len(values)] = values
    return mask


def test_masks_of_0_and_255_are_refused():
    with pytest.raises(ValueError) as error:
        check_train_labels(dataset_of([mask_of(255), mask_of()] * 3, {0: "background", 1: "crop"}))
    assert str(error.value) == (
        "dataset 'fields': its 6 training masks hold 0 (95.0 %) and 255 (5.0 %), and 255 is ignored: the only label "
        "is 0 'background', and a model would learn nothing. Write masks of 0, 1, … in the order of the label names, "
        "with 255 only where nothing is to be learned; masks of 0 and 255 are read by mask_values "
        "{0: 0, 255: 1} (--mask_values 0=0 255=1)."
    )


@pytest.mark.parametrize(
    ("values", "do_reduce_labels", "words"),
    [
        ((), False, ("hold 0 (100.0 %): the only label is 0 'background'", "masks of 0, 1, …")),
        ((2,) * 10, False, ("hold 2 (100.0 %): the only label is 2 'weed'",)),
        ((255,) * 10, False, ("hold 255 (100.0 %), and 255 is ignored: the masks hold no label at all",)),
        ((1,), True, ("0 means 'other' and is ignored", "only label is 0 'background'", "do_reduce_labels=False")),
        ((255,), True, ("and 255 is ignored: the masks hold no label at all", "do_reduce_labels=False")),
        ((3,) * 10, True, ("only label is 2 'weed'", "Write masks of 1, 2, …")),
    ],
)
def test_fewer_than_two_labels_are_refused(values, do_reduce_labels, words):
    with pytest.raises(ValueError, match="a model would learn nothing") as error:
        check_train_labels(dataset_of([mask_of(*values)] * 2, do_reduce_labels=do_reduce_labels))
    assert all(word in str(error.value) for word in words)


def test_validation_masks_without_a_label_are_refused():
    dataset = dataset_of([mask_of(1)])
    for masks in ([mask_of(*[255] * 10)] * 2, [mask_of(*[255] * 10), mask_of()]):
        dataset.splits["validation"] = dataset_of(masks).splits["train"]
        if masks[1].any():
            with pytest.raises(
                ValueError, match="'fields': its 2 validation masks hold 255 .*: the masks hold no label"
            ):
                check_validation_labels(dataset)
        else:
            check_validation_labels(dataset)  # one label will do


def test_a_dataset_of_one_label_is_refused():
    with pytest.raises(ValueError, match="name two labels at least"):
        check_train_labels(dataset_of([mask_of()], {0: "crop"}))


@pytest.mark.parametrize("do_reduce_labels", [False, True])
def test_two_labels_will_do(do_reduce_labels):
    masks = [mask_of(1, 2, 255, 3 * do_reduce_labels)]
    contents = check_train_labels(dataset_of(masks, do_reduce_labels=do_reduce_labels))
    assert contents.labels(do_reduce_labels) == [0, 1, 2]


def description_of(train, validation, names=NAMES, do_reduce_labels=False):
    dataset = dataset_of(train, names, do_reduce_labels)
    dataset.splits["validation"] = dataset_of(validation).splits["train"]
    contents = {"train": check_train_labels(dataset), "validation": check_validation_labels(dataset)}
    return describe_labels(dataset, contents)


def test_labels_are_told_in_a_table():
    told = description_of([mask_of(2), mask_of(255)], [mask_of(1, 1)])
    assert told.splitlines() == [
        "Labels of dataset 'fields', with their shares of the labelled pixels and their numbers of masks:",
        "                           train        validation",
        "  0 background    94.74 %      2    80.00 %      1",
        "  2 weed           5.26 %      1        0 %      0",
        "  1 crop              0 %      0    20.00 %      1",
        "Looked at 2 of 2 train masks and 1 of 1 validation masks, of whose pixels 5.0 % and 0 % are not labelled",
        "warning: Labels that are in validation masks alone cannot be learned: 1 'crop'.",
        "warning: Labels that are in training masks alone are not measured: 2 'weed'.",
    ]


def test_each_label_has_one_line_of_the_table():
    told = description_of([mask_of(2)], [mask_of(1)], {0: "back\nground", 1: "crop " * 9, 2: "weed"}).splitlines()
    assert told[2].startswith("  0 back ground  ") and f"  1 {'crop ' * 6}c…  " in "\n".join(told)
    assert len({len(line) for line in told[1:5]}) == 1


def test_reduced_labels_are_told_in_a_table():
    told = description_of([mask_of(1, 2)], [mask_of(3)], do_reduce_labels=True)
    assert (
        "  0 background    50.00 %      1        0 %      0" in told and "80.0 % and 90.0 % are not labelled" in told
    )
    assert "    add --no-do_reduce_labels" in told


def test_the_table_has_the_rarest_of_many_labels():
    names = {label: f"label {label}" for label in range(150)} | {7: "long" * 20}
    frequent = np.repeat(np.arange(8), 1000).reshape(80, 100).astype(np.uint8)
    told = description_of([frequent] * 2, [frequent], names)
    rows = told.splitlines()[2:-2]
    assert len(rows) == 21 and rows[10] == "    … 130 labels between these are left out"
    assert rows[7].startswith("  7 longlonglonglonglonglonglonglon…    12.50 %      2")
    assert rows[20].startswith("149 ") and told.endswith("16 'label 16', 17 'label 17' and 132 more.")


def test_rare_labels_are_told_with_what_helps():
    rare = np.zeros((200, 100), dtype=np.uint8)
    rare[0, :3] = 2
    rare[100:] = 1
    assert description_of([rare], [rare]).endswith(
        "note: Labels of less than 0.1 % of the training pixels: 2 'weed' (0.015 %).\n    add --class_weights balanced"
    )


def test_of_a_sample_no_more_is_told_than_it_shows():
    names = dict(enumerate("abcdefghijklmno"))
    dataset = dataset_of([mask_of(1)] * 300, names)
    assert look_at_masks(dataset, num_masks=20) == MaskContents({0: 180, 1: 20}, 20, 300, {0: 20, 1: 20})
    told = description_of([mask_of(1)] * 300, [mask_of(2)], names)
    assert "Looked at 200 of 300 train masks and 1 of 1 validation masks" in told
    assert "python examples/inspect_dataset.py, with the same arguments about data, looks at all" in told
    assert "Labels that occur in none of the masks that were looked at: 3 'd', " in told and "alone" not in told


def test_the_sample_lies_all_over_the_split():
    dataset = dataset_of([mask_of(number // 50) for number in range(100)])
    assert look_at_masks(dataset, num_masks=20).pixels.keys() == {0, 1}


@pytest.mark.parametrize("place", [0, 40, 99])
def test_a_label_that_is_rare_is_found_before_masks_are_refused(place):
    masks = [mask_of()] * 100
    masks[place] = mask_of(2)
    contents = look_at_masks(dataset_of(masks), num_masks=5)
    assert contents.labels(False) == [0, 2]
    masks[place] = mask_of()
    assert look_at_masks(dataset_of(masks), num_masks=5) == MaskContents({0: 1000}, 100, 100, {0: 100})


@pytest.mark.parametrize("mode", ["1", "L", "P", "I", "I;16"])
def test_masks_of_any_kind_are_counted(mode):
    mask = mask_of(1, 1, 1)
    mask = {
        "1": lambda: Image.fromarray(mask.astype(bool)),
        "L": lambda: Image.fromarray(mask),
        "P": lambda: Image.fromarray(mask, mode="P"),
        "I": lambda: Image.fromarray(mask.astype(np.int32)),
        "I;16": lambda: Image.fromarray(mask.astype(np.uint16)),
    }[mode]()
    split = dataset_of([mask]).splits["train"]
    assert split[0]["annotation"].mode == mode
    assert list(count_raw_values(split, [0], "fields train")) == [(0, {0: 7, 1: 3})]


def test_values_out_of_range_can_be_counted():
    split = dataset_of([mask_of(-1, 300, dtype=np.int32), mask_of(128)]).splits["train"]
    assert list(count_raw_values(split, [1, 0], "")) == [(1, {0: 9, 128: 1}), (0, {-1: 1, 0: 8, 300: 1})]


def test_masks_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"fields train\[1\]: the annotation holds the labels 128; with 3 labels"):
        check_train_labels(dataset_of([mask_of(1), mask_of(128)]))
    with pytest.raises(ValueError, match=r"fields train\[0\]: the annotation has mode RGB; expected one channel"):
        check_train_labels(dataset_of([Image.new("RGB", (3, 2))]))
    (tmp_path / "torn.png").write_bytes(b"torn")
    dataset = dataset_of([mask_of(1)])
    split = datasets.Dataset.from_dict(
        {"image": [None], "annotation": [str(tmp_path / "torn.png")]}, features=dataset.splits["train"].features
    )
    dataset.splits["train"] = split
    with pytest.raises(ValueError, match=r"fields train\[0\] \(.*torn.png\) cannot be read: "):
        check_train_labels(dataset)


def test_a_transform_of_the_split_is_respected():
    def invert(rows):
        assert "image" in rows
        return {**rows, "annotation": [Image.eval(mask, lambda value: 2 - value) for mask in rows["annotation"]]}

    split = dataset_of([mask_of(1)]).splits["train"].with_transform(invert)
    assert list(count_raw_values(split, [0], "")) == [(0, {1: 1, 2: 9})]


def test_contents_are_put_into_words():
    assert MaskContents({0: 99_000, 1: 990, 255: 10}, 1, 1).describe() == "0 (99.0 %), 1 (1.0 %) and 255 (<0.1 %)"
    assert MaskContents({7: 3}, 1, 1).describe() == "7 (100.0 %)"
