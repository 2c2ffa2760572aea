# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What may be published: names, but no paths of the machine that a model was made on."""

import os
import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import unquote

# What stands for a path without a last part, such as "/" or "..".
NAMELESS = "a local folder"
# Arguments of the scripts that are always paths, even where they look like a name on the Hub, owner/name.
_PATH_ARGUMENTS = re.compile(r"\w+_dir|id2label|resume_from_checkpoint")
_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://\S*", re.IGNORECASE)
_REVISION = re.compile(r"refs/\S*")
_ROOT = r"file:[/\\]*|~\w*(?:[/\\]|$)|\.{1,2}(?:[/\\]|$)|[a-z]:[/\\]|[/\\]"
_STARTS_LIKE_A_PATH = re.compile(_ROOT, re.IGNORECASE)
_PART = r"""[^\s/\\"'`,;()]+"""
_PATH_IN_TEXT = re.compile(rf"(?<![\w.:/\\~-])(?:{_ROOT}){_PART}(?:[/\\]+{_PART})*", re.IGNORECASE)


def public_name(name: str) -> str:
    """Return a name, or a text, in which the last part of each path stands for it.

    Paths are what begins like one (`/`, `~`, `./`, `../`, `C:\\`, `file:`), what exists on this machine, and what has
    three parts or more. Names on the Hub (`owner/name`), revisions (`refs/...`) and URLs stay.
    """
    if _URL.fullmatch(name) or _REVISION.fullmatch(name):
        return name
    if _is_path(name):
        return _last_part(name)
    return _PATH_IN_TEXT.sub(lambda match: _last_part(match[0]), name)


def public_json(content: Any, labels: Collection[str] = (), key: str = "") -> Any:
    """Return what a JSON file holds with all its texts, keys too, at any depth, as [`public_name`] returns them.

    Args:
        content: what was read from the file, or a part of it; it stays as it is.
        labels: names of a model's labels, which its configuration publishes. They are no paths, whatever they look
            like.
        key: what the part goes by.
    """
    if isinstance(content, Mapping):
        # Keys may be paths too, as those of the files that a run has read.
        return {public_json(name, labels): public_json(value, labels, name) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [public_json(value, labels, key) for value in content]
    if not isinstance(content, str) or content in labels:
        return content
    return _last_part(content) if _PATH_ARGUMENTS.fullmatch(key) else public_name(content)


def _is_path(name: str) -> bool:
    if _STARTS_LIKE_A_PATH.match(name):
        return True
    num_parts = len(re.split(r"[/\\]", name))
    if num_parts > 1 and os.path.exists(name):
        return True
    return not re.search(r"\s", name) and ("\\" in name or num_parts > 2)


def _last_part(path: str) -> str:
    if path.lower().startswith("file:"):
        path = unquote(path[len("file:") :])
    parts = [part for part in re.split(r"[/\\]", re.sub(r"^~\w*", "", path)) if part not in ("", ".", "..")]
    return parts[-1] if parts else NAMELESS
