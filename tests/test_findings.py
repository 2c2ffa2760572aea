# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import pytest

from van_hf.data.findings import Inspection, find_all
from van_hf.data.inspection import ExampleRecord

NAMES = {0: "sky", 1: "ground", 2: "box"}


def record(raw: dict, labels: dict | None = None, **fields) -> ExampleRecord:
    size = {"picture_size": [64, 64], "mask_size": [64, 64], "picture_mode": "RGB", "mask_mode": "L"}
    raw = {str(key): count for key, count in raw.items()}
    return ExampleRecord(0, "", "a.jpg", "a.png", raw=raw, num_raw=len(raw), labels=labels, **{**size, **fields})


def findings(example: ExampleRecord, names: dict | None = None, **fields) -> dict:
    inspection = Inspection("boxes", {"train": [example], "validation": [example]}, [], names, **fields)
    return {finding.kind: finding for finding in find_all(inspection)}


WRONG = {"problems": [["values", "the annotation holds the labels …"]]}


@pytest.mark.parametrize(
    ("raw", "names", "arguments"),
    [
        ({0: 9, 255: 1}, None, "--mask_values 0=background 255=object"),
        ({0: 9, 255: 1}, {0: "sky", 1: "crack"}, "--mask_values 0=0 255=1"),
        ({0: 5, 100: 5, 200: 5, 255: 1}, NAMES, "--mask_values 0=0 100=1 200=2 255=ignore"),
        ({0: 5, 1: 5, 2: 5, 7: 1, 9: 1}, NAMES, "--mask_values 0=0 1=1 2=2 7=ignore 9=ignore"),
        ({0: 5, 1: 5, 2: 5, 3: 1}, NAMES, "--do_reduce_labels"),
        ({0: 5, 1: 5, 2: 5}, None, "--id2label {folder}/suggested_id2label.json"),
        ({value * 2: 5 for value in range(20)}, None, "--mask_values {folder}/suggested_mask_values.json"),
        (
            {**dict.fromkeys(range(40), 1), 0: 40000, 128: 30000},
            None,
            "--mask_values 0=value_0 128=value_128 --mask_tolerance 20",
        ),
        ({0: 9, 255: 1}, {0: "crack"}, ""),
        ({10: 5, 20: 5, 30: 5}, {0: "sky", 1: "crack"}, ""),
    ],
)
def test_what_values_seem_to_mean(raw, names, arguments):
    found = findings(record(raw, **(WRONG if names and len(raw) > 2 else {})), names)
    assert found["raw values"].arguments == arguments and found["raw values"].severity == "error"


@pytest.mark.parametrize(
    ("names", "pairs"), [(None, "0=background 255=object"), ({0: "sky", 1: "crack"}, "0=0 255=1")]
)
@pytest.mark.parametrize("raw", [{0: 99, 1: 3, 254: 2, 255: 90}, dict.fromkeys(range(40), 1) | {0: 9000, 255: 700}])
def test_traces_of_compression_and_interpolation_are_no_labels(raw, names, pairs):
    """JPEG has them beside each value that was meant."""
    example = record(raw, mask_format="JPEG", **(WRONG if names else {}))
    assert findings(example, names)["raw values"].arguments == f"--mask_values {pairs} --mask_tolerance 20"
    colours = {f"#{value:02x}0000": count for value, count in raw.items()}
    example = record(colours, mask_format="JPEG", raw_kind="colours", mask_mode="RGB", problems=[["colours", "…"]])
    found = findings(example, names)["colours"]
    suggested = found.suggested_files["suggested_id2label.json"]
    assert [entry["color"] for entry in suggested.values()] == [[0, 0, 0], [255, 0, 0]]
    assert found.arguments == "--id2label {folder}/suggested_id2label.json --mask_tolerance 20"


def test_a_colour_that_jpeg_has_spread_is_meant():
    spread = {f"#00{green:02x}{blue:02x}": 10 for green in range(120, 140) for blue in range(170, 190)}
    example = record({"#000000": 10**5, "#804080": 10**5, **spread}, mask_format="JPEG", raw_kind="colours")
    suggested = findings(example)["colours"].suggested_files["suggested_id2label.json"]
    assert [entry["name"] for entry in suggested.values()] == ["colour #000000", "colour #0078aa", "colour #804080"]


def test_photographs_are_no_masks():
    raw = {f"#{red:02x}{green:02x}00": 9 for red in range(0, 256, 5) for green in range(0, 256, 5)}
    found = findings(record(raw, mask_format="JPEG", raw_kind="colours", mask_mode="RGB"))["colours"]
    assert found.arguments == "" and "are these masks, or photographs?" in found.text


def test_advice_about_values_goes_with_reduction():
    found = findings(record({0: 9, 255: 1}), {0: "sky", 1: "crack"}, do_reduce_labels=True)
    assert found["raw values"].arguments == "--mask_values 0=0 255=1 --no-do_reduce_labels"


def test_what_colours_seem_to_mean():
    raw = dict.fromkeys(("#000000", "#800000", "#008000", "#808000", "#e0e0c0"), 5)
    colours = {"raw_kind": "colours", "mask_mode": "RGB"}
    assert findings(record(raw, **colours))["colours"].arguments == "--label_table pascal_voc"
    found = findings(record({"#010203": 5, "#ff8000": 3}, **colours), label_error="no names")["colours"]
    assert found.suggested_files["suggested_id2label.json"] == {
        "0": {"name": "colour #010203", "color": [1, 2, 3]},
        "1": {"name": "colour #ff8000", "color": [255, 128, 0]},
    }


def test_too_many_values_are_no_labels():
    found = findings(record(dict.fromkeys(range(1000), 5), mask_mode="I;16"))["raw values"]
    assert found.arguments == "" and "more than labels can be" in found.text


def test_labels_that_spoil_a_training():
    found = findings(record({0: 100, 255: 300}, {0: 100, 255: 300}), NAMES)
    assert found["nothing to learn"].severity == "error" and "75 %" in found["unlabelled"].text
    assert "1 'ground', 2 'box'" in found["absent labels"].text and found["masks of one label"].files == ["a.png"] * 2
    found = findings(record({255: 9}, {255: 9}), NAMES)
    assert found["nothing to evaluate"].severity == "error" and len(found["unlabelled masks"].files) == 2
    found = findings(record({0: 10**4, 1: 10**4, 2: 4}, {0: 10**4, 1: 10**4, 2: 4}), NAMES)
    assert list(found) == ["rare labels"]
    assert "2 'box' (0.02 %)" in found["rare labels"].text
    assert found["rare labels"].arguments == "--class_weights balanced"


def test_a_report_is_json_of_all_findings():
    import json

    inspection = Inspection("boxes", {"train": [record({0: 9}, {0: 9})], "validation": []}, [], NAMES)
    found = find_all(inspection)
    report = json.loads(json.dumps(inspection.report(found)))
    assert [finding["kind"] for finding in report["findings"]] == [finding.kind for finding in found]
    assert report["splits"]["train"]["label_pixels"] == {"0": 9} and report["splits"]["validation"]["raw"] == {}
