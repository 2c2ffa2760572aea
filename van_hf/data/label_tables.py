# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Names, colours and raw values of labels: those of well-known datasets, and the files in which people have theirs."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .augmentation import IGNORE_INDEX
from .label_names import read_id2label, read_unique_json
from .masks import Color

# How columns and fields go by in the files of CamVid, Cityscapes, Mapillary and others, in lower case.
NAME_KEYS = ("name", "class_name", "label_name", "readable", "category_name", "label", "class")
COLOR_KEYS = ("color", "colour", "rgb", "hex")
ID_KEYS = (
    *("id", "label_id", "class_id", "index", "idx", "label_index", "class_index", "class_idx", "number"),
    *("value", "pixel_value", "gray", "grey", "gray_value"),
)
MAYBE_ID_KEYS = ("label", "class")  # where they are no names
TRAIN_ID_KEYS = ("trainid", "train_id")


@dataclass(frozen=True)
class LabelTable:
    """What is known of a dataset's labels.

    Attributes:
        id2label: names by label.
        colors: label, or 255 (ignored), by colour; empty where none are known.
        values: label, or 255, by raw value, where masks hold other values than labels; empty where they do not.
    """

    id2label: dict[int, str]
    colors: dict[Color, int] = field(default_factory=dict)
    values: dict[int, int] = field(default_factory=dict)

    @property
    def palette(self) -> list[list[int]] | None:
        """[red, green, blue] of each label, or None where one has no colour."""
        by_label = {label: list(color) for color, label in reversed(self.colors.items())}
        return [by_label[label] for label in self.id2label] if by_label.keys() >= self.id2label.keys() else None


def read_label_table(value: dict | list | str | Path | int, origin: str = "id2label") -> LabelTable:
    """Return the names of labels and, where they are told, their colours and raw values.

    Args:
        value: what [`read_id2label`] takes, in which a name may also be `{"name": ..., "color": ...}`; or a file: JSON
            of such, a CSV table, or CVAT's labelmap.txt. A row has `name`, and may have `color` (or `r`, `g` and `b`),
            `id` (its raw value) and, as Cityscapes has it, `trainId`, its label, which is 255 or negative where the
            row is ignored. Without `trainId` a row's label is its `id` or, without that, its place.
        origin: what the value is called in errors, if it is no file.

    Raises:
        ValueError: the file cannot be read, labels are not 0, 1, 2 and so on, a label has no name, only some have
            colours, or two have the same.
    """
    if isinstance(value, (str, Path)):
        origin, path = f"id2label file {value}", Path(value)
        if path.suffix.lower() in (".csv", ".tsv", ".txt"):
            try:
                value = _read_rows(path.read_text(encoding="utf-8-sig"))
            except (OSError, ValueError, csv.Error) as error:
                raise ValueError(f"{origin} cannot be read as a table: {error}") from error
        else:
            value = read_unique_json(path, origin)
        if isinstance(value, dict) and isinstance(value.get("labels"), list):  # as Mapillary's
            value = value["labels"]
    if isinstance(value, Mapping) and any(isinstance(entry, Mapping) for entry in value.values()):
        entries = [entry if isinstance(entry, Mapping) else {"name": entry} for entry in value.values()]
        value = [{**entry, "id": key} for key, entry in zip(value, entries, strict=True)]
    if not (isinstance(value, (list, tuple)) and any(isinstance(entry, Mapping) for entry in value)):
        return LabelTable(read_id2label(value, origin))
    rows = [entry if isinstance(entry, Mapping) else {"name": entry} for entry in value]
    return _table_of_rows([{str(key).strip().lower(): entry for key, entry in row.items()} for row in rows], origin)


def _read_rows(text: str) -> list[dict]:
    """The rows of a CSV table with a heading, or of CVAT's `name:red,green,blue:parts:actions`."""
    lines = [line for line in text.splitlines() if line.strip()]
    while lines and (lines[0].lstrip().startswith("#") or lines[0].lower().startswith("sep=")):
        del lines[0]
    if not lines:
        raise ValueError("it is empty")
    if re.fullmatch(r"[^:]+:\s*\d+\s*,\s*\d+\s*,\s*\d+\s*(:.*)?", lines[0]):
        parts = [line.split(":") for line in lines]
        return [{"name": part[0], "color": part[1]} for part in parts if len(part) > 1]
    delimiter = max(",;\t", key=lines[0].count)
    rows = list(csv.DictReader(io.StringIO("\n".join(lines)), delimiter=delimiter, skipinitialspace=True))
    heading = {str(key).strip().lower() for key in rows[0]} if rows else set()
    if heading.isdisjoint(NAME_KEYS):
        raise ValueError(
            f"its first line is {lines[0]!r}; expected a heading with a column {NAME_KEYS[0]!r} and, for the colours, "
            f"{COLOR_KEYS[0]!r} or 'r', 'g' and 'b'"
        )
    return rows


def _table_of_rows(rows: list[dict], origin: str) -> LabelTable:
    names, colors, ignored_colors, values = {}, {}, {}, {}
    name_key = next((key for key in NAME_KEYS if any(key in row for row in rows)), NAME_KEYS[0])
    id_keys = (*ID_KEYS, *(key for key in MAYBE_ID_KEYS if key != name_key and _are_numbers(rows, key)))
    for place, row in enumerate(rows):
        identity = _integer(_get(row, id_keys, place), origin, place)
        train_id = _get(row, TRAIN_ID_KEYS)
        label = identity if train_id is None else _integer(train_id, origin, place)
        is_ignored = train_id is not None and not 0 <= label < IGNORE_INDEX
        if train_id is not None:
            if values.get(identity, label) not in (label, IGNORE_INDEX if is_ignored else label):
                raise ValueError(f"{origin} has several entries for the id {identity}")
            values[identity] = IGNORE_INDEX if is_ignored else label
        if (color := _color_of_row(row, f"{origin}: row {place}")) is not None:
            if not is_ignored and colors.get(color, label) != label:
                raise ValueError(f"{origin}: labels {colors[color]} and {label} have the same colour {list(color)}")
            (ignored_colors if is_ignored else colors)[color] = IGNORE_INDEX if is_ignored else label
        if is_ignored:
            continue
        if label in names:
            raise ValueError(f"{origin} has several entries for label {label}")
        names[label] = _get(row, (name_key,))
    id2label = read_id2label(names, origin)
    if colors and (missing := [f"{label} {id2label[label]!r}" for label in set(id2label) - set(colors.values())]):
        raise ValueError(f"{origin}: some labels have colours, and these have none: {', '.join(missing)}")
    # Cityscapes' "polegroup", ignored, has the colour of "pole".
    return LabelTable(id2label, {**ignored_colors, **colors}, {k: v for k, v in values.items() if k >= 0})


def _get(row: dict, keys: Iterable[str], default: object = None) -> object:
    return next((row[key] for key in keys if row.get(key) not in (None, "")), default)


def _are_numbers(rows: list[dict], key: str) -> bool:
    values = [str(row.get(key, "")).strip() for row in rows]
    return all(re.fullmatch(r"-?\d+", value) for value in values)


def _integer(value: object, origin: str, place: int) -> int:
    try:
        return int(str(value).strip())
    except ValueError:
        raise ValueError(f"{origin}: row {place} has {value!r} where a whole number was expected") from None


def _color_of_row(row: dict, origin: str) -> Color | None:
    separate = [
        next((row[key] for key in keys if key in row), None) for keys in (("r", "red"), ("g", "green"), ("b", "blue"))
    ]
    value = _get(row, COLOR_KEYS, None if None in separate else separate)
    return None if value is None else parse_color(value, origin)


def parse_color(value: object, origin: str) -> Color:
    """Return a colour of three numbers 0..255 in a list or a text, or "#ff8000".

    Raises:
        ValueError: it is no colour.
    """
    if isinstance(value, str) and re.fullmatch(r"\s*#[0-9a-fA-F]{6}\s*", value):
        return tuple(bytes.fromhex(value.strip()[1:]))
    parts = re.split(r"[\s,;]+", value.strip("()[] \t")) if isinstance(value, str) else value
    try:
        color = tuple(int(str(part)) for part in parts)
    except (TypeError, ValueError):
        color = ()
    if len(color) == 4:
        color = color[:3]  # without the opacity
    if len(color) != 3 or not all(0 <= channel <= 255 for channel in color):
        raise ValueError(f"{origin} has the colour {value!r}; expected [red, green, blue] in 0..255 or '#ff8000'")
    return color


def read_mask_values(value: Mapping | Iterable[str] | str | Path) -> dict[int | Color, int | str]:
    """Return labels by raw value or colour, as they were written: label ids, names, or 255 for what is ignored.

    Args:
        value: {raw: label}, a JSON file of it, or texts "raw=label". A raw value is a number, or a colour such as
            "#ff8000" or "255,128,0"; a label is an id, a name, or "ignore" (or None).

    Raises:
        ValueError: the file cannot be read, a raw value is no number and no colour, or occurs twice.
    """
    origin = "mask_values"
    if isinstance(value, str) and "=" in value and not Path(value).exists():
        value = [value]
    if isinstance(value, (str, Path)):
        origin = f"mask_values file {value}"
        value = read_unique_json(value, origin)
    if not isinstance(value, Mapping):
        pairs = [str(text).split("=", 1) for text in value] if isinstance(value, Iterable) else [[value]]
        if wrong := [pair[0] for pair in pairs if len(pair) != 2]:
            raise ValueError(f"{origin}: {wrong[0]!r} is not of the form RAW=LABEL, such as 255=1, 7=ignore or 0=road")
        pairs = [(raw.strip(), label.strip()) for raw, label in pairs]
    else:
        pairs = list(value.items())
    if not pairs:
        raise ValueError(f"{origin} is empty; expected labels by raw value, such as {{0: 0, 255: 1}}")
    entries = [(_raw_value(raw, origin), _label(label, origin)) for raw, label in pairs]
    twice = [raw for raw, count in Counter(raw for raw, _ in entries).items() if count > 1]
    if twice:
        raise ValueError(f"{origin} has several entries for {', '.join(map(str, twice))}")
    return dict(entries)


def _raw_value(raw: object, origin: str) -> int | Color:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and re.fullmatch(r"\s*-?\d+\s*", raw):
        return int(raw)
    return parse_color(raw, origin)


def _label(label: object, origin: str) -> int | str:
    if label is None or (isinstance(label, str) and label.strip().lower() in ("ignore", "ignored")):
        return IGNORE_INDEX
    if isinstance(label, str) and re.fullmatch(r"\s*\d+\s*", label):
        return int(label)
    if isinstance(label, str) and label.strip():
        return label.strip()
    if isinstance(label, int) and not isinstance(label, bool) and label >= 0:
        return label
    raise ValueError(f"{origin} has the label {label!r}; expected a label's number or name, or 'ignore'")


def _table(names: str, colors: str, values: dict[int, int] | None = None, ignored: str = "") -> LabelTable:
    labels = [name.strip() for name in names.split(",")]
    listed = {parse_color(f"#{color}", names): label for label, color in enumerate(colors.split())}
    borders = {parse_color(f"#{color}", names): IGNORE_INDEX for color in ignored.split()}
    return LabelTable(dict(enumerate(labels)), {**borders, **listed}, values or {})


_ISPRS = _table(
    "impervious surface, building, low vegetation, tree, car, clutter",
    "ffffff 0000ff 00ffff 00ff00 ffff00 ff0000",
    ignored="000000",  # the borders of the copies without them
)
# Of Cityscapes' ids 0 to 33 those that are trained on; cityscapesScripts, helpers/labels.py.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

LABEL_TABLES = {
    "cityscapes": _table(
        "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
        "rider, car, truck, bus, train, motorcycle, bicycle",
        "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046 "
        "003c64 005064 0000e6 770b20",
        {**dict.fromkeys(range(34), IGNORE_INDEX), **{raw: label for label, raw in enumerate(_CITYSCAPES_IDS)}},
        ignored="000000 6f4a00 510051 faaaa0 e6968c b4a5b4 966464 96785a 00005a 00006e",
    ),
    # VOC2012's devkit; its masks have palettes, whose indices are the labels, and 255 at the borders.
    "pascal_voc": _table(
        "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, horse, "
        "motorbike, person, potted plant, sheep, sofa, train, tv/monitor",
        "000000 800000 008000 808000 000080 800080 008080 808080 400000 c00000 408000 c08000 400080 c00080 408080 "
        "c08080 004000 804000 00c000 80c000 004080",
        ignored="e0e0c0",
    ),
    # Wang et al., LoveDA, 2021: 0 is no data.
    "loveda": _table(
        "background, building, road, water, barren, forest, agricultural",
        "ffffff ff0000 ffff00 0000ff 9f81b7 00ff00 ffc380",
        {0: IGNORE_INDEX, **{raw: raw - 1 for raw in range(1, 8)}},
    ),
    # ISPRS 2D Semantic Labeling Contest.
    "potsdam": _ISPRS,
    "vaihingen": _ISPRS,
}
