# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Files that are there whole or not at all, and JSON that is what it should be."""

import json
import os
from collections.abc import Callable
from pathlib import Path


def read_json(path: Path) -> dict:
    """Return the object in a JSON file.

    Raises:
        ValueError: the file cannot be read, or holds no JSON object; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
        save(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text, UTF-8, as [`write_whole`] does."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: dict) -> None:
    """Write an object as indented JSON, as [`write_whole`] does."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
