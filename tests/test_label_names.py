# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json

import numpy as np
import pytest

from van_hf.data.label_names import read_id2label, unique_names


def test_names_come_in_the_order_of_their_numbers():
    assert list(read_id2label({"1": "sky ", 0: " wall"}).items()) == [(0, "wall"), (1, "sky")]
    assert read_id2label(["wall", "sky"]) == {0: "wall", 1: "sky"}
    assert read_id2label(2) == {0: "LABEL_0", 1: "LABEL_1"}


def test_names_may_be_numbers():
    assert read_id2label([7, 1.5, np.int64(2)]) == {0: "7", 1: "1.5", 2: "2"}


def test_equal_names_are_told_apart(tmp_path, caplog):
    file = tmp_path / "id2label.json"
    file.write_text(json.dumps(["N/A", "person", "crane", "N/A ", "crane"]))
    names = read_id2label(file)
    assert names == {0: "N/A (0)", 1: "person", 2: "crane (2)", 3: "N/A (3)", 4: "crane (4)"}
    assert f"id2label file {file} has the same name for several labels" in caplog.text
    assert "'N/A (0)', 'crane (2)', 'N/A (3)', 'crane (4)'" in caplog.text
    caplog.clear()
    assert read_id2label(names) == names and not caplog.records


def test_names_told_apart_differ_from_all_others():
    names = unique_names({0: "a", 1: "a", 2: "a (0)"})
    assert len(set(names.values())) == 3 and names[1] == "a (1)"


@pytest.mark.parametrize("name", [None, "", " ", True, float("nan"), np.float32("nan"), ["wall"], {"name": "wall"}])
def test_a_label_without_name_is_an_error(name):
    with pytest.raises(ValueError, match=r"id2label: label 1 is called .*; expected a name.*255 in the masks"):
        read_id2label({0: "sky", 1: name})


def test_null_is_no_name(tmp_path):
    (tmp_path / "names.json").write_text('{"0": "sky", "1": null}')
    with pytest.raises(ValueError, match="names.json: label 1 is called null; expected a name"):
        read_id2label(tmp_path / "names.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"0": "sky", "1": "wall", "1": "road"}', "several entries for '1'"),
        ('{"0": "sky", "00": "wall"}', r"numbers its 2 labels \[0, 0\]"),
        ("true", "is True; expected label names by number"),
        ("null", "is None; expected label names by number"),
        ('["sky"', "cannot be read as JSON"),
    ],
)
def test_files_that_would_lose_labels_are_refused(tmp_path, text, message):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(ValueError, match=f"names.json .*{message}"):
        read_id2label(tmp_path / "names.json")


@pytest.mark.parametrize("value", [True, False])
def test_a_boolean_is_no_number_of_labels(value):
    with pytest.raises(ValueError, match=f"id2label is {value}; expected label names by number"):
        read_id2label(value)


def test_files_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "names.json").write_text('["Straße"]', encoding="utf-8-sig")
    assert read_id2label(str(tmp_path / "names.json")) == {0: "Straße"}
