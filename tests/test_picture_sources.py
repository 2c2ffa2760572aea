# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import pickle

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from van_hf.picture_sources import open_source


def open_and_read(path, tmp_path, image_column=None, chosen=slice(None)) -> dict:
    source = open_source(str(path), image_column, tmp_path / "out")
    keys = source.keys()[chosen]
    return dict(zip(keys, pickle.loads(pickle.dumps(source)).read(keys), strict=True))


def test_a_folder(tmp_path):
    (tmp_path / "in/day").mkdir(parents=True)
    (tmp_path / "in/b.png").write_bytes(b"b")
    (tmp_path / "in/day/a.JPG").write_bytes(b"a")
    (tmp_path / "in/rows.parquet").touch()  # of pictures that are there as files
    assert open_and_read(tmp_path / "in", tmp_path) == {"b.png": b"b", "day/a.JPG": b"a"}
    source = open_source(str(tmp_path / "in"), None, tmp_path / "out")
    (error, content) = source.read(["c.png", "b.png"])
    assert isinstance(error, FileNotFoundError) and content == b"b"


@pytest.mark.parametrize("row_group_size", [1, 3, 100])
@pytest.mark.parametrize("chosen", [slice(None), slice(2, 5), slice(4, 9)])
def test_parquet_files(tmp_path, row_group_size, chosen):
    expected = {}
    for name, count in {"a.parquet": 6, "more/b.parquet": 4}.items():
        contents = [f"{name} {row}".encode() for row in range(count)]
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"image": [{"bytes": content, "path": "x.png"} for content in contents], "id": range(count)})
        pq.write_table(table, tmp_path / "in" / name, row_group_size=row_group_size)
        expected |= {f"{name}/{row}": content for row, content in enumerate(contents)}
    found = open_and_read(tmp_path / "in", tmp_path, chosen=chosen)
    assert list(found.items()) == list(expected.items())[chosen]


def test_a_parquet_file_of_bytes_and_gaps(tmp_path):
    table = pa.table({"thumbnail": pa.array([b"t"] * 3), "photograph": pa.array([b"a", None, b"c"])})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="thumbnail .binary., photograph .* --image_column"):
        open_source(str(tmp_path / "a.parquet"), None, tmp_path / "out")
    found = open_and_read(tmp_path / "a.parquet", tmp_path, "photograph")
    assert [found["a.parquet/0"], found["a.parquet/2"]] == [b"a", b"c"]
    assert "holds no picture" in str(found["a.parquet/1"])


def test_a_damaged_parquet_file(tmp_path):
    pq.write_table(pa.table({"image": [bytes(range(256)) * 50] * 4}), tmp_path / "a.parquet", use_dictionary=False)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:40] = bytes(36)  # the header of the first page
    (tmp_path / "a.parquet").write_bytes(content)
    found = open_and_read(tmp_path / "a.parquet", tmp_path)
    assert len(found) == 4 and all(isinstance(error, Exception) for error in found.values())
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="a.parquet cannot be read as Parquet"):
        open_source(str(tmp_path / "a.parquet"), None, tmp_path / "out")


def test_a_saved_dataset(boxes, tmp_path):
    found = open_and_read(boxes, tmp_path)
    assert list(found) == [f"train/{row}" for row in range(7)] + [f"validation/{row}" for row in range(5)]
    splits = datasets.load_from_disk(boxes).cast_column("image", datasets.Image(decode=False))
    assert found["validation/3"] == splits["validation"][3]["image"]["bytes"]


def test_inputs_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        open_source(str(tmp_path / "empty"), None, tmp_path / "out").keys()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="notes.txt must be a folder"):
        open_source(str(tmp_path / "notes.txt"), None, tmp_path / "out")
    with pytest.raises(ValueError, match="nowhere"):
        open_source(str(tmp_path / "nowhere"), None, tmp_path / "out")
