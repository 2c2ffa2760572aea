# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
from pathlib import Path

import pytest

from van_hf.files import read_json, write_json, write_whole


def test_nothing_is_left_of_an_output_that_failed(tmp_path):
    def save(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    (tmp_path / "a.png").write_text("before")
    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "a.png", save)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_text() == "before"


def test_json_is_read_as_it_was_written(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"größe": [1, None]})
    assert read_json(tmp_path / "new" / "a.json") == {"größe": [1, None]}


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff{}", None])
def test_what_is_no_json_object_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="a.json"):
        read_json(path)
