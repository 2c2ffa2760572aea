# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Weights of the classes in a training loss: from a file, or from how often the classes occur."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np

from .label_counts import LabelCounts
from .label_names import read_unique_json


def read_class_weights(path: str | Path) -> list[float] | dict[str, float]:
    """Return the weights in a JSON file, a list or an object, for [`resolve_class_weights`].

    Raises:
        ValueError: the file cannot be read, or holds something else than 0 and numbers from 1e-30 to 1e30, one of
            these at least; the message names it.
    """
    content = read_unique_json(path, str(path))
    if not isinstance(content, (list, dict)) or not content:
        raise ValueError(
            f'{path} must hold weights in a list, one for each label, or by label, such as {{"sky": 0.5, "box": 2}}; '
            f"got {content!r}"
        )
    weights = content if isinstance(content, dict) else dict(enumerate(content))
    wrong = [f"{json.dumps(weight)} for {label!r}" for label, weight in weights.items() if not _is_weight(weight)]
    if wrong:
        raise ValueError(f"{path} must hold weights that are 0, or from 1e-30 to 1e30, got {', '.join(wrong)}")
    if isinstance(content, list) and not any(content):
        raise ValueError(f"{path} has the weight 0 for all labels: nothing would be learned")
    return content


def _is_weight(value: object) -> bool:
    # Of float32, in which losses are taken, with room for products.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and (value == 0 or 1e-30 <= value <= 1e30)


def resolve_class_weights(
    content: list[float] | dict[str, float], id2label: dict[int, str], origin: str = "class weights"
) -> tuple[float, ...]:
    """Return the weight of each label, in the order of the labels.

    Args:
        content: one weight for each label, or weights by the names or the numbers of labels, of which those left out
            weigh 1; checked by [`read_class_weights`].
        id2label: the label names by number.
        origin: what the weights are called in errors.

    Raises:
        ValueError: there are weights for another number of labels, for unknown ones, twice for one, or all are 0.
    """
    if isinstance(content, list):
        if len(content) != len(id2label):
            raise ValueError(f"{origin} has {len(content)} weights, but there are {len(id2label)} labels")
        return tuple(map(float, content))
    # A label may be called by a number that is another's.
    numbers = {str(label): label for label in id2label} | {name: label for label, name in id2label.items()}
    unknown = [key for key in content if key not in numbers]
    if unknown:
        known = ", ".join(map(repr, list(id2label.values())[:10])) + (", …" if len(id2label) > 10 else "")
        raise ValueError(
            f"{origin} has weights for {', '.join(map(repr, unknown))}; the labels are {known}, "
            f"or 0 to {len(id2label) - 1}"
        )
    weights = dict.fromkeys(id2label, 1.0)
    given = [numbers[key] for key in content]
    twice = sorted({label for label in given if given.count(label) > 1})
    if twice:
        listed = ", ".join(f"{label} {id2label[label]!r}" for label in twice)
        raise ValueError(f"{origin} has several weights for {listed}, by name and by number")
    weights |= {numbers[key]: float(weight) for key, weight in content.items()}
    if not any(weights.values()):
        raise ValueError(f"{origin} has the weight 0 for all labels: nothing would be learned")
    return tuple(weights[label] for label in sorted(weights))


def balanced_class_weights(counts: LabelCounts) -> tuple[float, ...]:
    """Return weights by median frequency balancing (Eigen & Fergus 2015, https://arxiv.org/abs/1411.4734).

    A label's frequency is its share of the labelled pixels of those training pictures in which it occurs; its weight
    is the median of all labels' frequencies, divided by its own. A label that occurs nowhere has the weight 0.
    """
    frequencies = (counts.pixels / np.maximum(counts.pixels_around, 1)).tolist()
    median = statistics.median([frequency for frequency in frequencies if frequency > 0] or [0.0])
    return tuple(median / frequency if frequency > 0 else 0.0 for frequency in frequencies)
