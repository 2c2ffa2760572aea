# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Many pictures without masks, each under a key: a folder's, those of Parquet files, those of a dataset.

Sources are small, whatever the number of pictures, and go to other processes by pickling.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from .data.loading import IMAGE_COLUMNS, load_pictures
from .data.samples import content_of
from .prediction import IMAGE_SUFFIXES, list_pictures

ROWS_AT_ONCE = 32


class PictureSource(ABC):
    """Pictures in an order that never changes, each with a key of its own, which is a relative path of UTF-8."""

    @abstractmethod
    def keys(self) -> list[str]:
        """Return the keys of all pictures, in order.

        Raises:
            ValueError: there are none, or they cannot be told.
        """

    @abstractmethod
    def read(self, keys: Sequence[str]) -> Iterator[bytes | Exception]:
        """Yield the file of each picture, or what went wrong as it was read; faster where keys lie together."""


class FolderPictures(PictureSource):
    """The pictures of a folder and of the folders in it; keys are paths in it, with their suffixes."""

    def __init__(self, folder: Path, output_dir: Path):
        """
        Args:
            folder, output_dir: see [`list_pictures`].
        """
        self.folder, self.output_dir = folder, output_dir

    def keys(self) -> list[str]:
        keys = [path.as_posix() for path in list_pictures(self.folder, True, self.output_dir)]
        if not keys:
            raise ValueError(
                f"{self.folder} holds no picture ({', '.join(IMAGE_SUFFIXES)}), no .parquet and no saved dataset"
            )
        for key in keys:
            try:
                key.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{ascii(key)} in {self.folder} is a name that is not UTF-8. Rename it.") from error
        return keys

    def read(self, keys: Sequence[str]) -> Iterator[bytes | Exception]:
        for key in keys:
            try:
                yield (self.folder / key).read_bytes()
            except OSError as error:
                yield error


class ParquetPictures(PictureSource):
    """The rows of Parquet files; keys are FILE/ROW.

    Rows are read with those before them in their row group, so that row groups should have thousands of rows at most.
    """

    def __init__(self, path: Path, image_column: str | None, output_dir: Path):
        """
        Args:
            path: a file, or a folder whose files, in folders of folders too, are taken, but those in `output_dir`.
            image_column: holds files of pictures, as bytes or as `datasets` and the Hub have them, as `bytes` and
                `path`. By default the one column that goes by a usual name.
            output_dir: where outputs of earlier runs may lie.

        Raises:
            ValueError: a file cannot be read, or the column is missing or not clear.
        """
        self.folder = path if path.is_dir() else path.parent
        files = sorted(path.glob("**/*.parquet")) if path.is_dir() else [path]
        files = [file for file in files if not file.resolve().is_relative_to(output_dir.resolve())]
        self.num_rows = {}
        columns = set()
        for file in files:
            try:
                with pq.ParquetFile(file) as opened:
                    self.num_rows[file.relative_to(self.folder).as_posix()] = opened.metadata.num_rows
                    columns.add(_image_column(file, opened.schema_arrow, image_column))
            except (OSError, pa.ArrowException) as error:
                raise ValueError(f"{file} cannot be read as Parquet: {error}") from error
        if len(columns) > 1:
            raise ValueError(f"{path} has pictures in several columns, {', '.join(sorted(columns))}: --image_column")
        self.column = next(iter(columns), None)

    def keys(self) -> list[str]:
        keys = [f"{name}/{row}" for name, num_rows in self.num_rows.items() for row in range(num_rows)]
        if not keys:
            raise ValueError(f"the Parquet files of {self.folder} have no rows")
        return keys

    def read(self, keys: Sequence[str]) -> Iterator[bytes | Exception]:
        for name, of_file in groupby((key.rpartition("/") for key in keys), key=lambda parts: parts[0]):
            rows = [int(row) for _, _, row in of_file]
            yield from _each(self._contents(self.folder / name, rows[0], rows[-1] + 1), len(rows))

    def _contents(self, file: Path, start: int, stop: int) -> Iterator[dict | bytes | None]:
        with pq.ParquetFile(file) as opened:
            first = 0  # row of what comes next
            for group in range(opened.num_row_groups):
                num_rows = opened.metadata.row_group(group).num_rows
                if first + num_rows <= start or first >= stop:
                    first += num_rows
                    continue
                for batch in opened.iter_batches(ROWS_AT_ONCE, [group], [self.column]):
                    below, above = max(start - first, 0), min(stop - first, len(batch))
                    if below < above:
                        yield from batch.column(0).slice(below, above - below).to_pylist()
                    first += len(batch)


class DatasetPictures(PictureSource):
    """The pictures of all splits of a dataset; keys are SPLIT/ROW."""

    def __init__(self, splits: datasets.DatasetDict):
        """
        Args:
            splits: see [`load_pictures`].
        """
        self.splits = splits

    def keys(self) -> list[str]:
        keys = [f"{name}/{row}" for name, split in self.splits.items() for row in range(len(split))]
        if not keys:
            raise ValueError(f"the splits {', '.join(self.splits)} have no rows")
        return keys

    def read(self, keys: Sequence[str]) -> Iterator[bytes | Exception]:
        for key in keys:
            name, _, row = key.rpartition("/")
            try:
                yield _content(self.splits[name][int(row)]["image"])
            except Exception as error:  # of a cache that is damaged, or not on this machine
                yield error


def open_source(name_or_path: str, image_column: str | None, output_dir: Path) -> PictureSource:
    """Return the pictures of a folder, of a Parquet file or a folder of such, or of a dataset.

    Args:
        name_or_path: what exists on this machine is a folder of pictures, of Parquet files, or of a dataset that was
            saved by `save_to_disk`; all else is a dataset of the Hub, or one that is generated, such as "scenes".
        image_column: of Parquet files and datasets; guessed from its name by default.
        output_dir: what lies in it is no input.

    Raises:
        ValueError: there is nothing of the kind, or it cannot be read.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file() and path.suffix.lower() != ".parquet":
        raise ValueError(f"--input {path} must be a folder, a .parquet file or a dataset of the Hub")
    is_saved = (path / "dataset_dict.json").exists() or (path / "state.json").exists()
    if is_saved or not path.exists():
        return DatasetPictures(load_pictures(name_or_path, image_column=image_column))
    if path.is_file() or (any(path.glob("**/*.parquet")) and not list_pictures(path, True, output_dir)):
        return ParquetPictures(path, image_column, output_dir)
    return FolderPictures(path, output_dir)


def _each(values: Iterator[dict | bytes | None], count: int) -> Iterator[bytes | Exception]:
    """Yield the files of `count` values; what ends their reader is the error of all that are left."""
    for number in range(count):
        try:
            value = next(values)
        except Exception as error:  # of damaged files, of many kinds
            yield from [error] * (count - number)
            return
        yield _content(value)


def _content(value: dict | bytes | None) -> bytes | Exception:
    """The file of a picture, as it lies in a column."""
    if value is None or value == {"bytes": None, "path": None}:
        return ValueError("the row holds no picture")
    try:
        return value if isinstance(value, bytes) else content_of(value)
    except Exception as error:  # of a path that leads nowhere, or to another machine
        return error


def _image_column(file: Path, schema: pa.Schema, column: str | None) -> str:
    """The column of the pictures, by its name and by what it holds."""
    fitting = [field.name for field in schema if _holds_files(field.type)]
    if column is not None:
        usual = [name for name in fitting if name == column]
    else:
        usual = [name for name in IMAGE_COLUMNS if name in fitting] or (fitting if len(fitting) == 1 else [])
    if len(usual) != 1:
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        wanted = f"no column {column!r} of files of pictures" if column else "no one column that must be the pictures'"
        raise ValueError(f"{file} has {wanted}; found {found}. Name the one of bytes with --image_column.")
    return usual[0]


def _holds_files(kind: pa.DataType) -> bool:
    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_files(field.type) for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)
