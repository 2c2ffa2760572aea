# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Files that are there whole or not at all, JSON that is what it should be, and folders for one process alone."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

LOCK = ".lock"
PROBE_SIZE = 4096  # bytes; an empty file can be made even on a full disk


def read_json(path: Path) -> dict:
    """Return the object in a JSON file.

    Raises:
        ValueError: the file cannot be read, or holds no JSON object; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors begin with a mark
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def write_whole(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file, which appears at `path` once it is whole; on failure, what was there stays.

    Args:
        path: where the file goes; folders that are missing are made.
        save: writes to the path that it is given, which has the suffix of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process of its own each, so that two that write the same file do not meet.
    partial = path.with_name(f".partial-{os.getpid()}{path.suffix}")
    try:
        with named_file(path):
            save(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def named_file(path: Path) -> Iterator[None]:
    """Name the file that is written in an `OSError` that names none, as that of a full disk.

    Raises:
        OSError: of the same kind, with `path` as its `filename`; one without a code has the path in its message.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        if error.errno is None:
            raise OSError(f"{path} cannot be written: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write text, UTF-8, as [`write_whole`] does."""
    # What is not UTF-8 in the name of a file becomes an escape, which JSON reads back as it was.
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, content: dict) -> None:
    """Write an object as indented JSON, as [`write_whole`] does."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def claim_folder(folder: Path) -> Iterator[bool]:
    """Keep a folder for this process to write to, until the block ends or the process dies, however it does.

    The folder is made if it is missing, and removed again if nothing was written to it. What tells other processes is
    a lock on the file `.lock` in it; after a process was killed the file is still there, and means nothing.

    Yields:
        Whether no other process can have the folder. False if it was there before, on a file system without locks.

    Raises:
        BlockingIOError: another process has claimed the folder.
        OSError: the folder cannot be made or written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True)
            is_new = True
        except FileExistsError:
            if not folder.is_dir():
                raise
            is_new = False
        with tempfile.NamedTemporaryFile(prefix=".partial-", dir=folder, buffering=0) as probe:
            probe.write(bytes(PROBE_SIZE))
            os.fsync(probe.fileno())  # on network file systems only now would a full disk show
        lock = _lock(folder / LOCK)
        try:
            yield is_new or lock is not None
        finally:
            if lock is not None:
                with suppress(OSError):
                    os.unlink(folder / LOCK)
                os.close(lock)
    finally:
        for path in made:
            with suppress(OSError):  # most often because it is not empty
                path.rmdir()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Let the block write a folder, which appears in its place once it is whole; on failure nothing is left.

    It is written beside its place, to `.partial-NAME/new`. What a killed run has left there goes to the next one.

    Yields:
        An empty folder to write to.

    Raises:
        ValueError: something is in its place that is not an empty folder.
        BlockingIOError: another process is writing it.
        OSError: it cannot be made or written to.
    """
    place = Path(os.path.abspath(folder))
    in_the_way = place.is_symlink() or not place.is_dir() or any(place.iterdir())
    if os.path.lexists(place) and in_the_way:
        raise ValueError(f"{folder} is there already; name another OUTPUT_DIR, or remove it")
    partial = place.parent / f".partial-{place.name}"
    new = partial / "new"
    with claim_folder(partial):
        try:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            yield new
            os.replace(new, place)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    with suppress(OSError):  # it is gone unless a killed run had made it
        partial.rmdir()


def _lock(path: Path) -> int | None:
    """Return a descriptor of a file that is locked until it is closed; None where files cannot be locked."""
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # The locks of flock would be inherited by the processes of data loaders, which outlive one that is killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(f"another process is writing to {path.parent}") from error
        with suppress(OSError):
            os.unlink(path)
        return None
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    # The process that had it locked has just removed it.
    os.close(descriptor)
    return _lock(path)
