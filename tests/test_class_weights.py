# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import pytest
from conftest import BOX_NAMES

from van_hf.data import read_class_weights, resolve_class_weights


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[1, 2", "cannot be read as JSON"),
        ('{"sky": 1, "sky": 2}', "several entries for 'sky'"),
        ("3", "must hold weights in a list"),
        ("[]", "must hold weights in a list"),
        ('[1, -2, NaN, true, "4"]', 'got -2 for 1, NaN for 2, true for 3, "4" for 4'),
        ("[1, 1e39, 1e-46, 1%s]" % ("0" * 400), "1e[+]39 for 1, 1e-46 for 2, 100000*0 for 3"),
        ('{"sky": null}', "null for 'sky'"),
        ("[0, 0.0]", "0 for all labels"),
    ],
)
def test_files_without_weights_are_refused(tmp_path, content, message):
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_class_weights(path)
    assert str(path) in str(error.value)


def test_files_of_weights(tmp_path):
    path = tmp_path / "weights.json"
    for content in ("[1, 0, 2.5]", '\ufeff{"sky": 1}'):
        path.write_text(content, encoding="utf-8")
        assert read_class_weights(path) in ([1, 0, 2.5], {"sky": 1})
    with pytest.raises(ValueError, match="none.json cannot be read"):
        read_class_weights(tmp_path / "none.json")


def test_weights_by_name_and_number():
    assert resolve_class_weights([1, 0, 2.5], BOX_NAMES) == (1, 0, 2.5)
    assert resolve_class_weights({"box": 4, "0": 0.5}, BOX_NAMES) == (0.5, 1, 4)
    # The name comes first.
    assert resolve_class_weights({"1": 7}, {0: "1", 1: "0"}) == (7, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "has 2 weights, but there are 3 labels"),
        ({"sea": 1, "3": 2}, "weights for 'sea', '3'; the labels are 'sky', 'ground', 'box', or 0 to 2"),
        ({"sky": 1, "0": 2}, "several weights for 0 'sky', by name and by number"),
        ({"sky": 0, "1": 0, "box": 0}, "0 for all labels"),
    ],
)
def test_weights_that_do_not_fit_are_refused(content, message):
    with pytest.raises(ValueError, match=f"^the file .*{message}"):
        resolve_class_weights(content, BOX_NAMES, "the file")
