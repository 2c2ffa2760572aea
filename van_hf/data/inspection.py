# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What each picture and mask of a dataset holds, whether or not its labels are settled; damaged files are counted."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

import datasets
import numpy as np
import torch
from PIL import Image

from ..bands import check_is_rgb, hint_at_bands, open_bands
from ..model.image_processing_van import orientation_of, upright
from .augmentation import IGNORE_INDEX
from .masks import (
    ALPHA_MODES,
    COLOR_MODES,
    MASK_MODES,
    MaskMeaning,
    check_labels,
    describe_color,
    raw_labels,
    without_alpha,
)
from .samples import content_of, read_pixels, undecoded

# Of a mask that holds more values or colours, as photographs and masks saved as JPEG do, those with the most pixels.
MAX_RAW_VALUES = 256
# Pixels of a picture's small copy, and how far apart its grey values must be for the copy to tell pictures apart.
HASH_SIZE = 8
LEAST_CONTRAST = 16
# Bits of 128 in which the hashes of near duplicates differ at most: re-encoded and resized copies differ in 9 at most,
# of 200 pictures, and no two of these in fewer than 31.
NEAR_DUPLICATE_BITS = 10


@dataclass(frozen=True)
class LabelReading:
    """How pictures are read, and masks become labels.

    Attributes:
        num_labels: number of labels; None where they are not settled, and only raw values can be told.
        do_reduce_labels: see `read_example`.
        mask_meaning: see `read_example`.
        bands: see `read_example`.
    """

    num_labels: int | None = None
    do_reduce_labels: bool = False
    mask_meaning: MaskMeaning | None = None
    bands: tuple[int, ...] | None = None


@dataclass
class ExampleRecord:
    """What was found in an example's files.

    Attributes:
        idx: its number in the split.
        digest: of the files and of how they were read; another wherever one of them is another.
        picture, mask: paths of the files, or what they are called where they have none.
        picture_digest: of the picture's file.
        picture_size, mask_size: [width, height], upright; None where they cannot be read.
        picture_mode, mask_mode: Pillow's modes; of pictures of bands, "4 x uint16".
        picture_format, mask_format: such as "JPEG".
        mask_orientation: EXIF's, 1 is upright.
        raw_kind: "values" or "colours".
        raw: number of pixels by raw value, or colour such as "#ff8000", of up to `MAX_RAW_VALUES`.
        num_raw: number of different raw values.
        labels: number of pixels by label, after reduction, 255 being ignored; None where that cannot be told.
        picture_hash: difference hash in 32 hexadecimal digits; None for pictures without contrast.
        problems: [kind, text] of all that keeps the example from being trained on.
    """

    idx: int
    digest: str
    picture: str
    mask: str
    picture_digest: str | None = None
    picture_size: list[int] | None = None
    picture_mode: str | None = None
    picture_format: str | None = None
    mask_size: list[int] | None = None
    mask_mode: str | None = None
    mask_format: str | None = None
    mask_orientation: int = 1
    raw_kind: str = "values"
    raw: dict[str, int] = field(default_factory=dict)
    num_raw: int = 0
    labels: dict[int, int] | None = None
    picture_hash: str | None = None
    problems: list[list[str]] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the record as a line of JSON, which [`from_json`] reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> ExampleRecord:
        """Return the record that a line tells of.

        Raises:
            ValueError: the line holds no record.
        """
        content = json.loads(line)
        if not isinstance(content, dict) or content.keys() != {entry.name for entry in fields(cls)}:
            raise ValueError("the line is no record of an example")
        if content["labels"] is not None:
            content["labels"] = {int(label): count for label, count in content["labels"].items()}
        return cls(**content)


class InspectedExamples(torch.utils.data.Dataset):
    """The records of a split's examples, made when they are asked for; nothing in a file makes it fail.

    Args:
        split: has the columns `image` and `annotation`.
        name: what the split is called.
        reading: how masks become labels.
        known: records of before, by the example's number; those of files that have changed since are made anew.
    """

    def __init__(
        self,
        split: datasets.Dataset,
        name: str,
        reading: LabelReading,
        known: Mapping[int, ExampleRecord] | None = None,
    ):
        self.files = undecoded(split)
        self.name = name
        self.reading = reading
        self.known = known or {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, idx: int) -> ExampleRecord:
        files = self.files[idx]
        names = [_name(files[column], f"{self.name}[{idx}]") for column in ("image", "annotation")]
        record = ExampleRecord(idx, "", *names)
        contents = [
            _read(files[column], record, kind) for column, kind in (("image", "picture"), ("annotation", "mask"))
        ]
        digest = hashlib.blake2b(repr(self.reading).encode(), digest_size=16)
        for content in contents:
            digest.update(hashlib.blake2b(b"missing" if content is None else content).digest())
        record.digest = digest.hexdigest()
        known = self.known.get(idx)
        if known is not None and (known.digest, known.picture, known.mask) == (record.digest, *names):
            return known
        if contents[0]:
            if self.reading.bands is None:
                _inspect_picture(record, contents[0])
            else:
                _inspect_bands(record, files["image"], contents[0], self.reading.bands)
        if contents[1]:
            drawn = isinstance(files["annotation"], str)
            _inspect_mask(record, files["annotation"] if drawn else contents[1], self.reading)
        if record.picture_size and record.mask_size and record.picture_size != record.mask_size:
            sizes = ["x".join(map(str, size)) for size in (record.picture_size, record.mask_size)]
            record.problems.append(["size", f"the picture has {sizes[0]} pixels and its annotation {sizes[1]}"])
        return record


def _name(file: dict | str | None, example: str) -> str:
    path = file.get("path") if isinstance(file, dict) else None
    return path or example


def _read(file: dict | str | None, record: ExampleRecord, kind: str) -> bytes | None:
    """The bytes of a file; None, and a problem, where there are none."""
    try:
        if file is None:
            raise ValueError("there is none")
        content = content_of(file)
    except Exception as error:  # of any kind, as of remote files
        record.problems.append([f"unreadable {kind}", str(error) or type(error).__name__])
        return None
    if not content:
        record.problems.append([f"empty {kind}", "the file is empty"])
    return content


def _inspect_picture(record: ExampleRecord, content: bytes) -> None:
    record.picture_digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            check_is_rgb(image)
            record.picture_mode, record.picture_format = image.mode, image.format
            size = list(image.size)
            # All of a JPEG's data is still decoded, and its damages are met, but only the small copy is computed.
            image.draft("L" if image.mode == "RGB" else None, (16 * HASH_SIZE, 16 * HASH_SIZE))
            image.load()
            turned = orientation_of(image) > 4
            record.picture_hash = difference_hash(image)
        record.picture_size = size[::-1] if turned else size
    # Pillow raises errors of any kind over a damaged file.
    except Exception as error:
        hint = "" if isinstance(error, ValueError) else hint_at_bands(record.picture)
        record.problems.append(["unreadable picture", (str(error) or type(error).__name__) + hint])


def _inspect_bands(record: ExampleRecord, file: dict, content: bytes, bands: tuple[int, ...]) -> None:
    record.picture_digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    try:
        with open_bands(file, bands) as picture:
            record.picture_mode, record.picture_format = f"{picture.count} x {picture.dtype}", picture.format
            values = picture.read()
            record.picture_size = list(picture.size[::-1])
        if np.isnan(values).all():
            raise ValueError(f"none of the bands {list(bands)} has data")
        band = next(band for band in values if not np.isnan(band).all())
        low, high = np.nanmin(band), np.nanmax(band)
        shades = np.nan_to_num((band - low) / max(high - low, 1e-12) * 255)
        record.picture_hash = difference_hash(Image.fromarray(shades.astype(np.uint8)))
    except Exception as error:  # of any kind, see `_inspect_picture`
        record.problems.append(["unreadable picture", str(error) or type(error).__name__])


def difference_hash(image: Image.Image) -> str | None:
    """Return 128 bits, in hexadecimal digits, that are nearly the same for copies of a picture.

    Each bit tells which of two neighbours, side by side or one above the other, is brighter in a copy of 9x9 pixels.

    Returns:
        None for pictures of nearly one colour, whose bits would be noise.
    """
    if image.mode != "L":
        # As training reads it, whatever its mode; and as JPEG weighs its channels.
        image = Image.fromarray(read_pixels(upright(image)).permute(1, 2, 0).numpy()).convert("L")
    else:
        image = upright(image)
    small = image.resize((HASH_SIZE + 1, HASH_SIZE + 1), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.int16)
    if np.ptp(grey) < LEAST_CONTRAST:
        return None
    bits = [grey[:-1, 1:] > grey[:-1, :-1], grey[1:, :-1] > grey[:-1, :-1]]
    return np.packbits(np.stack(bits)).tobytes().hex()


def _inspect_mask(record: ExampleRecord, content: bytes | str, reading: LabelReading) -> None:
    try:
        if isinstance(content, str):
            labels = raw_labels(content)
            record.mask_mode, record.mask_size = "drawn", list(labels.shape[::-1])
            record.raw = _counts_of_values(labels, record)
            _count_labels(record, content, reading)
            return
        with Image.open(io.BytesIO(content)) as mask:
            record.mask_mode, record.mask_format = mask.mode, mask.format
            record.mask_orientation = orientation_of(mask)
            mask.load()
            size = list(mask.size)
            record.mask_size = size[::-1] if record.mask_orientation > 4 else size
            opaque = without_alpha(upright(mask))
            _count_raw(record, opaque, reading.mask_meaning)
            _count_labels(record, opaque, reading)
    except Exception as error:  # of any kind, see `_inspect_picture`
        record.problems.append(["unreadable mask", str(error) or type(error).__name__])


def _count_raw(record: ExampleRecord, mask: Image.Image, meaning: MaskMeaning | None) -> None:
    """Count the values, or colours, as they are in the file."""
    palettes = meaning is not None and meaning.is_coloured(mask)
    if mask.mode in ALPHA_MODES and not palettes:  # transparent in part, which is told as a problem
        return
    if mask.mode not in (*MASK_MODES, "F") or palettes:
        record.raw_kind = "colours"
        image = mask.convert("RGB")
        found = image.getcolors(MAX_RAW_VALUES)  # far faster than sorting the pixels
        if found is not None:
            pairs = [((red << 16) + (green << 8) + blue, count) for count, (red, green, blue) in found]
            codes, counts = np.array(sorted(pairs)).T
        else:
            channels = np.asarray(image).astype(np.uint32)
            codes = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
            codes, counts = np.unique(codes, return_counts=True)
        record.raw = _most(codes, counts, record, lambda code: describe_color(int(code)))
        return
    dtype = {"1": np.uint8, "L": np.uint8, "P": np.uint8, "F": np.float64}.get(mask.mode, np.int64)
    record.raw = _counts_of_values(np.array(mask, dtype=dtype), record)


def _counts_of_values(values: np.ndarray, record: ExampleRecord) -> dict[str, int]:
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel())
        found = counts.nonzero()[0]
        return _most(found, counts[found], record, str)
    return _most(*np.unique(values, return_counts=True), record, str)


def _most(found: np.ndarray, counts: np.ndarray, record: ExampleRecord, show) -> dict[str, int]:
    record.num_raw = len(found)
    kept = np.sort(np.argsort(-counts, kind="stable")[:MAX_RAW_VALUES])
    return {show(found[place]): int(counts[place]) for place in kept}


def _count_labels(record: ExampleRecord, mask: Image.Image | str, reading: LabelReading) -> None:
    """Count the labels, if they are settled; where pixels have none, that is a problem."""
    if not isinstance(mask, str) and mask.mode not in MASK_MODES:
        coloured = reading.mask_meaning is not None and reading.mask_meaning.is_coloured(mask)
        if not coloured and (reading.num_labels is not None or mask.mode not in COLOR_MODES):
            kind = "colours" if mask.mode in COLOR_MODES else "mask mode"
            record.problems.append([kind, _error_of(lambda: raw_labels(mask, reading.mask_meaning))])
            return
    if reading.num_labels is None:
        return
    try:
        labels = raw_labels(mask, reading.mask_meaning)
        check_labels(labels, reading.num_labels, reading.do_reduce_labels)
    except ValueError as error:
        record.problems.append(["values", str(error)])
        return
    counts = np.bincount(labels.astype(np.uint8).ravel(), minlength=IGNORE_INDEX + 1)
    if reading.do_reduce_labels:
        counts = np.concatenate([counts[1:IGNORE_INDEX], [0, counts[IGNORE_INDEX] + counts[0]]])
    record.labels = {int(label): int(counts[label]) for label in counts.nonzero()[0]}


def _error_of(read) -> str:
    try:
        read()
    except ValueError as error:
        return str(error)
    return "the mask cannot be read as labels"


@dataclass
class SplitSummary:
    """What the examples of a split hold together.

    Attributes:
        num_examples: number of examples, with those that have problems.
        num_unusable: number of examples that cannot be trained on.
        sizes, modes, formats, mask_modes: number of pictures, or masks, of each.
        raw: pixels by raw value or colour.
        raw_masks: masks by raw value or colour.
        label_pixels: pixels by label, without the ignored ones; empty where labels are not settled.
        label_pictures: pictures by label.
        ignored_pixels: number of pixels that are not labelled.
    """

    num_examples: int = 0
    num_unusable: int = 0
    sizes: Counter = field(default_factory=Counter)
    modes: Counter = field(default_factory=Counter)
    formats: Counter = field(default_factory=Counter)
    mask_modes: Counter = field(default_factory=Counter)
    raw: Counter = field(default_factory=Counter)
    raw_masks: Counter = field(default_factory=Counter)
    label_pixels: Counter = field(default_factory=Counter)
    label_pictures: Counter = field(default_factory=Counter)
    ignored_pixels: int = 0

    @property
    def ignored_share(self) -> float | None:
        """Share of the pixels, 0 to 1, that are not labelled; None where labels are not known."""
        total = self.label_pixels.total() + self.ignored_pixels
        return self.ignored_pixels / total if total else None


def summarize(records: Iterable[ExampleRecord]) -> SplitSummary:
    """Return what the records of a split say together."""
    summary = SplitSummary()
    for record in records:
        summary.num_examples += 1
        summary.num_unusable += bool(record.problems)
        if record.picture_size is not None:
            summary.sizes["x".join(map(str, record.picture_size))] += 1
            summary.modes[record.picture_mode] += 1
            summary.formats[record.picture_format] += 1
        if record.mask_mode is not None:
            summary.mask_modes[record.mask_mode] += 1
        summary.raw.update(record.raw)
        summary.raw_masks.update(dict.fromkeys(record.raw, 1))
        for label, count in (record.labels or {}).items():
            if label == IGNORE_INDEX:
                summary.ignored_pixels += count
            else:
                summary.label_pixels[label] += count
                summary.label_pictures[label] += 1
    return summary


def find_duplicates(
    train: Sequence[ExampleRecord], validation: Sequence[ExampleRecord]
) -> tuple[list[tuple[ExampleRecord, ExampleRecord]], list[tuple[ExampleRecord, ExampleRecord]]]:
    """Return the pairs of a training and a validation picture whose files are the same, and those that look the same.

    Each validation picture is in one pair at most, with the training picture that is nearest to it.
    """
    by_digest = {record.picture_digest: record for record in reversed(train) if record.picture_digest}
    exact = [(by_digest[r.picture_digest], r) for r in validation if r.picture_digest in by_digest]
    taken = {id(record) for _, record in exact}
    train = [record for record in train if record.picture_hash]
    validation = [record for record in validation if record.picture_hash and id(record) not in taken]
    near = []
    if train and validation:
        train_bits, bits = _signs(train), _signs(validation)
        for start in range(0, len(bits), 256):
            # The sum of the products of signs is the number of equal bits less that of the others.
            distances = (train_bits.shape[1] - bits[start : start + 256] @ train_bits.T) / 2
            nearest = distances.argmin(axis=1)
            for row, place in enumerate(nearest.tolist()):
                if distances[row, place] <= NEAR_DUPLICATE_BITS:
                    near.append((train[place], validation[start + row]))
    return exact, near


def _signs(records: Sequence[ExampleRecord]) -> np.ndarray:
    """The bits of the hashes as -1 and 1: float32 (number of records, 128)."""
    hashes = np.frombuffer(bytes.fromhex("".join(record.picture_hash for record in records)), dtype=np.uint8)
    return np.unpackbits(hashes.reshape(len(records), -1), axis=1).astype(np.float32) * 2 - 1
