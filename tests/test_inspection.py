# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import io
from dataclasses import replace

import datasets
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageEnhance

from van_hf.data import MaskMeaning
from van_hf.data.inspection import (
    MAX_RAW_VALUES,
    ExampleRecord,
    InspectedExamples,
    LabelReading,
    difference_hash,
    find_duplicates,
    summarize,
)

FEATURES = datasets.Features(image=datasets.Image(), annotation=datasets.Image())


def picture(seed: int = 0, size: tuple[int, int] = (96, 64)) -> Image.Image:
    grid = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def inspect(image: bytes | None, mask: bytes | None, reading: LabelReading = LabelReading()) -> ExampleRecord:  # noqa: B008
    files = [{"bytes": content, "path": None} if content is not None else None for content in (image, mask)]
    split = datasets.Dataset.from_dict(dict(zip(FEATURES, [[file] for file in files], strict=True)), features=FEATURES)
    return InspectedExamples(split, "boxes train", reading)[0]


def labels_of(values: list, dtype=np.uint8) -> Image.Image:
    """A mask of the picture's size with as many columns of each value."""
    return Image.fromarray(np.tile(np.repeat(np.array(values, dtype=dtype), 96 // len(values), axis=0), (64, 1)))


def test_a_record_of_labels():
    mask = encoded(labels_of([0, 1, 2, 255]))
    record = inspect(encoded(picture(), "JPEG"), mask, LabelReading(3))
    assert record.problems == [] and record.picture == "boxes train[0]"
    assert (record.picture_size, record.picture_mode, record.picture_format) == ([96, 64], "RGB", "JPEG")
    quarter = 24 * 64
    assert record.raw == dict.fromkeys(("0", "1", "2", "255"), quarter) and record.raw_kind == "values"
    assert record.labels == dict.fromkeys((0, 1, 2, 255), quarter)
    assert ExampleRecord.from_json(record.to_json()) == record
    reduced = inspect(encoded(picture()), mask, LabelReading(2, do_reduce_labels=True))
    assert reduced.labels == {0: quarter, 1: quarter, 255: 2 * quarter}
    unsettled = inspect(encoded(picture()), mask)
    assert unsettled.labels is None and unsettled.problems == [] and unsettled.raw == record.raw
    assert len({record.digest, reduced.digest, unsettled.digest}) == 3


def test_colours_are_counted_whether_or_not_they_are_listed():
    pixels = np.zeros((64, 96, 3), dtype=np.uint8)
    pixels[:, :48] = (255, 128, 0)
    mask = encoded(Image.fromarray(pixels))
    raw = {"#000000": 3072, "#ff8000": 3072}
    unsettled = inspect(encoded(picture()), mask)
    assert unsettled.raw == raw and unsettled.raw_kind == "colours" and unsettled.problems == []
    meaning = MaskMeaning(colors=(((0, 0, 0), 0), ((255, 128, 0), 1)))
    assert inspect(encoded(picture()), mask, LabelReading(2, mask_meaning=meaning)).labels == {0: 3072, 1: 3072}
    assert [kind for kind, _ in inspect(encoded(picture()), mask, LabelReading(2)).problems] == ["colours"]
    photograph = inspect(encoded(picture()), encoded(picture(1)))
    assert photograph.num_raw > len(photograph.raw) == MAX_RAW_VALUES


def with_hole(mask):
    mask = mask.convert("LA")
    mask.putpixel((1, 1), (0, 0))
    return mask


def test_values_of_masks_with_an_alpha_channel_are_counted():
    record = inspect(encoded(picture()), encoded(labels_of([0, 1]).convert("LA")), LabelReading(2))
    assert (record.mask_mode, record.raw_kind, record.raw) == ("LA", "values", {"0": 3072, "1": 3072})
    record = inspect(encoded(picture()), encoded(with_hole(labels_of([0, 1]))), LabelReading())
    assert record.raw == {} and [kind for kind, _ in record.problems] == ["mask mode"]


@pytest.mark.parametrize(
    ("image", "mask", "kinds"),
    [
        (b"", encoded(labels_of([0, 1])), ["empty picture"]),
        (encoded(picture()), b"", ["empty mask"]),
        (None, encoded(labels_of([0, 1])), ["unreadable picture"]),
        (encoded(picture()), None, ["unreadable mask"]),
        (b"no picture", b"no mask", ["unreadable picture", "unreadable mask"]),
        (encoded(picture(), "JPEG")[:-400], encoded(labels_of([0, 1])), ["unreadable picture"]),
        (encoded(picture(size=(90, 64))), encoded(labels_of([0, 1])), ["size"]),
        (encoded(picture()), encoded(labels_of([0, 9])), ["values"]),
        (encoded(picture()), encoded(labels_of([0, 1], np.float32), "TIFF"), ["mask mode"]),
        (encoded(picture()), encoded(labels_of([0, 70000], np.int32), "TIFF"), ["values"]),
        (encoded(picture()), encoded(labels_of([0, 1]).convert("LA")), []),
        (encoded(picture()), encoded(with_hole(labels_of([0, 1]))), ["mask mode"]),
    ],
)
def test_nothing_in_a_file_makes_it_fail(image, mask, kinds):
    record = inspect(image, mask, LabelReading(2))
    assert [kind for kind, _ in record.problems] == kinds
    assert all(text for _, text in record.problems)


def test_sizes_are_those_of_upright_pictures():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    record = inspect(encoded(picture(), "JPEG", exif=exif), encoded(labels_of([0, 1]), exif=exif), LabelReading(2))
    assert record.problems == [] and record.picture_size == record.mask_size == [64, 96]
    assert record.mask_orientation == 6


def test_known_records_are_kept_where_files_are_the_same():
    columns = {"image": [encoded(picture(seed)) for seed in range(2)], "annotation": [encoded(labels_of([0, 1]))] * 2}
    files = {key: [{"bytes": content, "path": None} for content in value] for key, value in columns.items()}
    split = datasets.Dataset.from_dict(files, features=FEATURES)
    records = [InspectedExamples(split, "boxes", LabelReading(2))[idx] for idx in range(2)]
    marked = {0: replace(records[0], raw={"marked": 1}), 1: replace(records[1], digest="of before")}
    again = InspectedExamples(split, "boxes", LabelReading(2), marked)
    assert again[0] is marked[0] and again[1] == records[1]
    assert InspectedExamples(split, "boxes", LabelReading(3), marked)[0].raw == records[0].raw
    summary = summarize(records)
    assert (summary.num_examples, summary.num_unusable) == (2, 0)
    assert summary.label_pixels == {0: 6144, 1: 6144} and summary.label_pictures == {0: 2, 1: 2}


def test_copies_are_found_and_other_pictures_are_not():
    train = [inspect(encoded(picture(seed), "JPEG"), None) for seed in range(60)]
    copies = {
        "same": encoded(picture(3), "JPEG"),
        "quality": encoded(picture(4), "JPEG", quality=30),
        "size": encoded(picture(5).resize((61, 40))),
        "brighter": encoded(ImageEnhance.Brightness(picture(6)).enhance(0.8)),
        "other": encoded(picture(1000)),
        "grey": encoded(Image.new("RGB", (96, 64), "gray")),
    }
    validation = [inspect(content, None) for content in copies.values()]
    exact, near = find_duplicates(train, validation)
    assert exact == [(train[3], validation[0])]
    assert near == [(train[4], validation[1]), (train[5], validation[2]), (train[6], validation[3])]
    assert difference_hash(Image.new("L", (20, 20))) is None and find_duplicates([], validation) == ([], [])
