# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import io
import json
import shlex
import shutil
import sys
from pathlib import Path

import inspect_dataset
import numpy as np
import pytest
from conftest import paint_box
from PIL import ExifTags, Image

COLORS = ((200, 40, 10), (10, 60, 220), (90, 160, 20), (250, 250, 0), (0, 240, 250))
LABELS = ("sky", "ground", "box", "absent", "late")
SPLITS = {"training": 26, "validation": 5}
SLOW_FIXTURES = {"spoilt"}


def run(*arguments: object) -> int:
    return inspect_dataset.main([*map(str, arguments), "--num_workers", "0", "--recipe", "scenes"])


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def make(folder: Path, names: tuple | None = LABELS[:3]) -> Path:
    """A dataset without faults, of pictures large enough to tell apart."""
    rng = np.random.default_rng(2)
    for split, count in SPLITS.items():
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            example = paint_box(rng)
            noise = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((96, 64))
            noise.save(folder / "images" / split / f"{number:02}.jpg", quality=95)
            example["mask"].resize((96, 64), Image.Resampling.NEAREST).save(
                folder / "annotations" / split / f"{number:02}.png"
            )
    if names is not None:
        (folder / "id2label.json").write_text(json.dumps(dict(enumerate(names))))
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("data") / "clean")


@pytest.fixture
def spoilt(clean, tmp_path) -> Path:
    """A copy for a test to spoil, and then to inspect once or twice."""
    return shutil.copytree(clean, tmp_path / "data")


def plant_faults(folder: Path) -> dict[str, str]:
    """Spoil a dataset of `make`, and return by fault the file that the report must name under a kind of finding."""
    images, masks = folder / "images" / "training", folder / "annotations" / "training"
    named = [{"name": name, "color": color} for name, color in zip(LABELS, COLORS, strict=True)]
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(named))))

    def labels(number: int) -> np.ndarray:
        return np.array(Image.open(masks / f"{number:02}.png"))

    content = (images / "00.jpg").read_bytes()
    (images / "00.jpg").write_bytes(content[: len(content) // 2])
    content = (masks / "01.png").read_bytes()
    (masks / "01.png").write_bytes(content[: len(content) // 2])
    Image.fromarray(labels(2)[:40]).save(masks / "02.png")
    (masks / "03.png").unlink()
    (images / "04.jpg").unlink()
    (images / "05.jpg").write_bytes(b"")
    shutil.copy(images / "06.jpg", folder / "images" / "validation" / "00.jpg")
    with Image.open(images / "07.jpg") as image:
        image.resize((120, 80)).save(folder / "images" / "validation" / "01.jpg", quality=60)
    Image.fromarray(np.where(labels(8) == 2, 77, labels(8)).astype(np.uint8)).save(masks / "08.png")
    late = np.array(Image.open(folder / "annotations" / "validation" / "02.png"))
    late[:4] = 4
    Image.fromarray(late).save(folder / "annotations" / "validation" / "02.png")
    Image.fromarray(np.array(COLORS, dtype=np.uint8)[labels(9) % 5]).save(masks / "09.png")
    Image.fromarray(np.array(COLORS, dtype=np.uint8)[labels(10) % 5][..., ::-1].copy()).save(masks / "10.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.rot90(labels(11)).copy()).save(masks / "11.png", exif=exif)
    Image.fromarray(labels(12).astype(np.uint16)).save(masks / "12.png")
    with Image.open(images / "13.jpg") as image:
        image.convert("CMYK").save(images / "13.jpg")
    (images / "deep").mkdir()
    (images / "14.jpg").rename(images / "deep" / "14.jpg")
    Image.fromarray(np.full((64, 96), 255, dtype=np.uint8)).save(masks / "15.png")
    Image.fromarray(np.full((64, 96), 1, dtype=np.uint8)).save(masks / "16.png")
    Image.open(images / "17.jpg").resize((9, 6)).save(images / "17.jpg")
    Image.fromarray(labels(17)).resize((9, 6), Image.Resampling.NEAREST).save(masks / "17.png")
    Image.fromarray(labels(18).astype(np.float32)).save(masks / "18.tif")
    (masks / "18.png").unlink()
    return {
        "unreadable picture": "training/00.jpg",
        "unreadable mask": "training/01.png",
        "size": "training/02.png",
        "unpaired files": "training/03.jpg",
        "unpaired files ": "training/04.png",
        "empty picture": "training/05.jpg",
        "duplicates": "validation/00.jpg",
        "near duplicates": "validation/01.jpg",
        "values": "training/08.png",
        "swapped colours": "training/10.png",
        "turned masks": "training/11.png",
        "masks of 16 bits or more": "training/12.png",
        "pictures of mode CMYK": "training/13.jpg",
        "unpaired files  ": "training/deep/14.jpg",
        "unlabelled masks": "training/15.png",
        "masks of one label": "training/16.png",
        "tiny pictures": "training/17.jpg",
        "mask mode": "training/18.tif",
    }


def test_all_faults_are_named(spoilt, tmp_path, capsys):
    faults = plant_faults(spoilt)
    with Image.open(spoilt / "images" / "validation" / "01.jpg") as image:
        mask = Image.open(spoilt / "annotations" / "validation" / "01.png").resize(image.size, 0)
    mask.save(spoilt / "annotations" / "validation" / "01.png")
    assert run("--dataset", spoilt, "--output_dir", tmp_path / "out") == 1
    report = report_of(tmp_path / "out")
    files = {finding["kind"]: finding["files"] for finding in report["findings"]}
    missing = {
        kind: file for kind, file in faults.items() if not any(file in line for line in files.get(kind.strip(), []))
    }
    assert missing == {}
    texts = {finding["kind"]: finding["text"] for finding in report["findings"]}
    assert "3 'absent'" in texts["absent labels"] and "4 'late'" in texts["labels of one split"]
    # Nothing but the faults: each kind names as many files as are spoilt.
    assert {kind: len(found) for kind, found in files.items() if len(found) > 1} == {"unpaired files": 4, "values": 2}
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert all(Path(file).name in page for file in faults.values()) and "Traceback" not in capsys.readouterr().err


def test_a_clean_dataset(clean, tmp_path, capsys):
    assert run("--dataset", clean, "--output_dir", tmp_path) == 0
    report = report_of(tmp_path)
    assert [finding for finding in report["findings"] if finding["severity"] == "error"] == []
    assert report["splits"]["train"]["num_examples"] == SPLITS["training"]
    assert report["splits"]["train"]["sizes"] == {"96x64": SPLITS["training"]}
    expected = sum(
        np.bincount(np.array(Image.open(path)).ravel(), minlength=256)
        for path in (clean / "annotations" / "training").iterdir()
    )
    pixels = report["splits"]["train"]["label_pixels"]
    assert pixels == {str(label): int(expected[label]) for label in expected.nonzero()[0] if label != 255}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *("contact_sheet.jpg", "training_crops.jpg", "rarest_label.jpg", "label_frequencies.png"),
        *("report.json", "report.html", "examples.jsonl"),
    }
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "prefers-color-scheme: dark" in page and 'src="http' not in page and page.count("<img") > 12
    assert "Errors: 0," in capsys.readouterr().out


@pytest.mark.slow
def test_stopping_and_going_on_gives_the_same_report(clean, tmp_path, monkeypatch, capsys):
    assert run("--dataset", clean, "--output_dir", tmp_path / "whole") == 0
    look, seen = inspect_dataset.InspectedExamples.__getitem__, []

    def stopped(self, idx):
        if len(seen) == 15:
            raise KeyboardInterrupt
        seen.append(idx)
        return look(self, idx)

    with monkeypatch.context() as patch:
        patch.setattr(inspect_dataset.InspectedExamples, "__getitem__", stopped)
        assert run("--dataset", clean, "--output_dir", tmp_path / "parts") == 130
    assert "the same command goes on" in capsys.readouterr().err
    records = tmp_path / "parts" / inspect_dataset.RECORDS_FILE
    assert len(records.read_text().splitlines()) == 15
    records.write_text(records.read_text()[:-9])  # killed while it wrote a line
    inspected = []
    monkeypatch.setattr("van_hf.data.inspection._inspect_mask", lambda record, *_: inspected.append(record.idx))
    known = inspect_dataset.read_records(records)
    assert len(known["train"]) == 14 and inspected == []
    monkeypatch.undo()
    assert run("--dataset", clean, "--output_dir", tmp_path / "parts") == 0
    for name in ("report.json", "report.html", inspect_dataset.RECORDS_FILE):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_damaged_records_are_left_out(clean, tmp_path):
    assert run("--dataset", clean, "--output_dir", tmp_path) == 0
    records, report = tmp_path / inspect_dataset.RECORDS_FILE, report_of(tmp_path)
    first, *others = records.read_bytes().splitlines(keepends=True)
    damaged = [
        b"train \xff\xfe\n",
        b"\xff 1\n",
        b"train " + b"[" * 10**5 + b"\n",
        first.replace(b"{", b"[{", 2),
        bytes(99),
    ]
    records.write_bytes(b"".join([*damaged[:4], first[:50] + b"\x80" + first[50:], *others, damaged[4]]))
    known = inspect_dataset.read_records(records)
    assert sum(map(len, known.values())) == len(others)
    assert run("--dataset", clean, "--output_dir", tmp_path) == 0 and report_of(tmp_path) == report


def test_only_what_was_mended_is_looked_at_again(spoilt, tmp_path, monkeypatch):
    mask = spoilt / "annotations" / "training" / "03.png"
    content = mask.read_bytes()
    mask.write_bytes(b"no mask")
    assert run("--dataset", spoilt, "--output_dir", tmp_path / "out") == 1
    mask.write_bytes(content)
    looked_at, inspect_mask = [], inspect_dataset.InspectedExamples.__getitem__.__globals__["_inspect_mask"]
    monkeypatch.setattr(
        "van_hf.data.inspection._inspect_mask", lambda r, *rest: (looked_at.append(r.idx), inspect_mask(r, *rest))
    )
    assert run("--dataset", spoilt, "--output_dir", tmp_path / "out") == 0
    assert looked_at == [3]


def test_processes_find_the_same(spoilt, tmp_path):
    for number in range(26, 40):
        for kind, suffix in (("images", "jpg"), ("annotations", "png")):
            shutil.copy(spoilt / kind / "training" / f"00.{suffix}", spoilt / kind / "training" / f"{number}.{suffix}")
    for workers in (0, 2):
        arguments = ["--dataset", spoilt, "--output_dir", tmp_path / str(workers), "--num_workers", workers]
        assert inspect_dataset.main([*map(str, arguments), "--recipe", "scenes"]) == 0
    assert report_of(tmp_path / "0") == report_of(tmp_path / "2")


def test_masks_of_labels_under_a_table_of_raw_values_are_not_to_be_ignored(clean, tmp_path):
    assert run("--dataset", clean, "--output_dir", tmp_path, "--label_table", "cityscapes") == 1
    (found,) = [finding for finding in report_of(tmp_path)["findings"] if finding["kind"] == "unlisted"]
    assert "leave out --label_table" in found["text"] and found["arguments"] == ""
    assert len(found["files"]) == sum(SPLITS.values())


def test_suggested_files_that_were_edited_are_kept(spoilt, tmp_path, capsys):
    (spoilt / "id2label.json").unlink()
    suggested = tmp_path / "suggested_id2label.json"
    for _ in range(2):
        assert run("--dataset", spoilt, "--output_dir", tmp_path) == 1
        assert "suggested anew" not in capsys.readouterr().err
    content = suggested.read_text()
    suggested.write_text('["sky", "ground", "box"]')
    assert run("--dataset", spoilt, "--output_dir", tmp_path) == 1
    kept = suggested.with_name("suggested_id2label.json.before")
    assert suggested.read_text() == content and kept.read_text() == '["sky", "ground", "box"]'
    assert f"{suggested} is suggested anew; what was in it is in {kept}" in capsys.readouterr().err


def test_names_that_a_terminal_cannot_show_are_escaped(spoilt, tmp_path, monkeypatch):
    (spoilt / "annotations" / "training" / "03.png").rename(spoilt / "annotations" / "training" / "☃.png")
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run("--dataset", spoilt, "--output_dir", tmp_path / "out") == 1
    assert b"\\u2603.png has no counterpart" in terminal.buffer.getvalue()


def repaint(folder: Path, values: dict[int, object]) -> None:
    """Give the masks other values or colours."""
    for path in (folder / "annotations").rglob("*.png"):
        labels = np.array(Image.open(path))
        first = next(iter(values.values()))
        table = np.zeros((256, *np.shape(first)), dtype=np.uint8)
        for label, value in values.items():
            table[label] = value
        Image.fromarray(table[labels]).save(path)


@pytest.mark.parametrize(
    ("values", "has_names"),
    [
        ({0: 0, 1: 255, 2: 255, 255: 0}, False),
        ({0: 0, 1: 100, 2: 200, 255: 255}, True),
        ({0: 0, 1: 100, 2: 200, 255: 0}, False),
        ({0: 0, 1: 1, 2: 2, 255: 255}, False),
        ({0: COLORS[0], 1: COLORS[1], 2: COLORS[2], 255: COLORS[3]}, False),
        ({0: 1, 1: 2, 2: 3, 255: 0}, True),
    ],
)
def test_the_arguments_that_are_told_help(spoilt, tmp_path, values, has_names):
    repaint(spoilt, values)
    if not has_names:
        (spoilt / "id2label.json").unlink()
    assert run("--dataset", spoilt, "--output_dir", tmp_path / "the first") == 1
    findings = report_of(tmp_path / "the first")["findings"]
    told = [finding["arguments"] for finding in findings if finding["kind"] in ("raw values", "colours")]
    arguments = shlex.split(next(filter(None, told)))
    assert run("--dataset", spoilt, "--output_dir", tmp_path / "second", *arguments) == 0, arguments


@pytest.mark.parametrize("has_names", [True, False])
@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        ("validation", ["--train_split", "training[:90%]", "--validation_split", "training[90%:]"]),
        ("training", ["--train_split", "validation[:90%]", "--validation_split", "validation[90%:]"]),
    ],
)
def test_what_there_is_of_a_dataset_is_inspected(spoilt, tmp_path, missing, arguments, has_names, capsys):
    for kind in ("images", "annotations"):
        shutil.rmtree(spoilt / kind / missing)
    if not has_names:
        (spoilt / "id2label.json").unlink()
    assert run("--dataset", spoilt, "--output_dir", tmp_path / "out") == 1
    report = report_of(tmp_path / "out")
    errors = {finding["kind"]: finding for finding in report["findings"] if finding["severity"] == "error"}
    assert list(errors) == (["missing split"] if has_names else ["missing split", "label names", "raw values"])
    assert errors["missing split"]["arguments"].replace('"', "").split() == arguments
    numbers = {split: content["num_examples"] for split, content in report["splits"].items()}
    there = {"training": "train", "validation": "validation"}
    assert numbers == {name: 0 if split == missing else SPLITS[split] for split, name in there.items()}
    assert "found: " in capsys.readouterr().out
    if has_names:
        assert run("--dataset", spoilt, "--output_dir", tmp_path / "out", *arguments) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "/nowhere"), "/nowhere"),
        (("--validation_split", "test"), "validation_split='test' does not fit"),
        (("--label_table", "mars"), "label_table must be one of"),
        (("--id2label", "/nowhere.json"), "/nowhere.json"),
    ],
)
def test_wrong_arguments(clean, tmp_path, capsys, arguments, message):
    assert run("--dataset", clean, "--output_dir", tmp_path / "out", *arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed and not (tmp_path / "out").exists()
