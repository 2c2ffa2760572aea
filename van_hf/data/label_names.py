# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The names of labels: one for each, and no two alike."""

from __future__ import annotations

import json
import logging
from collections import Counter
from numbers import Real
from pathlib import Path

logger = logging.getLogger(__name__)


def read_id2label(value: dict[int, str] | list[str] | str | Path | int, origin: str = "id2label") -> dict[int, str]:
    """Return label names {0: name, ...} in the order of their numbers, without white space around them.

    Args:
        value: the names by number or in a list, a JSON file of either, or a number of labels, which are then called
            LABEL_0, LABEL_1 and so on. Names that occur several times are told apart, see [`unique_names`].
        origin: what the value is called in errors, if it is no file.

    Raises:
        ValueError: the file cannot be read, the numbers are not 0, 1, 2 and so on, or a label has no name.
    """
    if isinstance(value, (str, Path)):
        origin = f"id2label file {value}"
        value = read_unique_json(value, origin)
    if isinstance(value, int) and not isinstance(value, bool):
        value = [f"LABEL_{index}" for index in range(value)]
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    try:
        names = {int(key): label for key, label in value.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{origin} is {value!r}; expected label names by number, such as {{0: 'wall', 1: 'sky'}}."
        ) from error
    if not names or sorted(names) != list(range(len(value))):
        numbers = sorted(int(key) for key in value)
        raise ValueError(
            f"{origin} numbers its {len(value)} labels {numbers}; expected 0, 1, 2, … without gaps, as they are after "
            "reduction: with do_reduce_labels raw label 1 is number 0, and 'other' and 'ignored' have no number."
        )
    return unique_names({key: _checked_name(key, names[key], origin) for key in sorted(names)}, origin)


def unique_names(id2label: dict[int, str], origin: str = "id2label") -> dict[int, str]:
    """Return label names in which each that several labels share is followed by the label's number.

    Real lists have such names: COCO's "N/A" for numbers out of use, ImageNet's two kinds of "crane". Figures,
    `label2id` and the pipeline's segments go by name, so that all but one of the labels would be lost. A warning tells
    the new names.

    Args:
        id2label: {number: name}.
        origin: what the names are called in the warning.
    """
    counts = Counter(id2label.values())
    unique = {key: f"{name} ({key})" if counts[name] > 1 else name for key, name in id2label.items()}
    if unique != id2label:
        renamed = [name for key, name in unique.items() if name != id2label[key]]
        logger.warning(
            "%s has the same name for several labels, which are now called %s.", origin, ", ".join(map(repr, renamed))
        )
        # "crane (134)" may have been there before.
        return unique_names(unique, origin)
    return unique


def _checked_name(number: int, name: object, origin: str) -> str:
    # NaN, the one value that differs from itself, is what pandas makes of an empty cell.
    is_name = isinstance(name, (str, Real)) and not isinstance(name, bool) and name == name and str(name).strip()
    if not is_name:
        raise ValueError(
            f"{origin}: label {number} is called {json.dumps(name, default=repr)}; expected a name. What is not to be "
            "learned has no number: its pixels are 255 in the masks."
        )
    return str(name).strip()


def read_unique_json(path: str | Path, origin: str) -> object:
    """Return what a JSON file holds, in which no object has a key twice.

    Raises:
        ValueError: it cannot be read; the message calls it `origin`.
    """
    try:
        # Windows' editors begin a file with a byte order mark.
        return json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_unique_keys)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{origin} cannot be read as JSON: {error}") from error


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object that JSON's pairs make; of equal keys `json` would keep the last, without a word."""
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"it has several entries for {', '.join(map(repr, twice))}")
    return dict(pairs)
