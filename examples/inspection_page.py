# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The page of inspect_dataset.py, of inspection_page.html: one file, with the pictures in it."""

import base64
import io
import json
import math
from html import escape
from pathlib import Path
from string import Template

from inspection_pictures import InspectionPictures
from PIL import Image

TEMPLATE = Path(__file__).with_name("inspection_page.html")
NUM_SHOWN = 12  # of sizes, modes and values


def render_page(report: dict, pictures: InspectionPictures) -> str:
    """Return the page that shows a report of `Inspection.report`, as HTML."""
    severities = [finding["severity"] for finding in report["findings"]]
    counts = ", ".join(
        f"{number} {kind}{'' if number == 1 else 's'}"
        for kind in ("error", "warning", "note")
        for number in [severities.count(kind)]
    )
    verdict = "Training would fail or be spoilt" if "error" in severities else "Nothing stands in the way of training"
    return Template(TEMPLATE.read_text("utf-8")).substitute(
        title=escape(f"Dataset {report['dataset']}"),
        verdict=f"{verdict}: {counts}.",
        findings="\n".join(map(_finding, report["findings"])) or "<p>None.</p>",
        splits="\n".join(_split(name, split) for name, split in report["splits"].items()),
        labels=_labels(report, pictures) if report["id2label"] else "",
        pictures=_pictures(pictures),
    )


def _finding(finding: dict) -> str:
    parts = [f"<h3>{finding['severity']}: {escape(finding['kind'])}</h3>", f"<p>{escape(finding['text'])}</p>"]
    if finding["arguments"]:
        parts.append(f"<p>Add to the arguments:</p><pre>{escape(finding['arguments'])}</pre>")
    for name, content in finding["suggested_files"].items():
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
        parts.append(f"<p>{escape(name)}:</p><pre>{{\n{escape(lines)}\n}}</pre>")
    if files := finding["files"]:
        number = f"{len(files):,} files" if len(files) > 1 else "1 file"
        is_open = " open" if len(files) <= 5 else ""
        items = "".join(f"<li>{escape(file)}</li>" for file in files)
        parts.append(f"<details{is_open}><summary>{number}</summary><ul>{items}</ul></details>")
    return f'<article class="{finding["severity"]}">{"".join(parts)}</article>'


def _split(name: str, split: dict) -> str:
    share = split["ignored_share"]
    total = sum(split["raw"].values()) or 1
    raw = {key: f"{100 * count / total:.2g} %" for key, count in split["raw"].items()}
    facts = {
        "Pictures": f"{split['num_examples']:,}, of which {split['num_unusable']:,} cannot be used",
        "Sizes": _counted(split["sizes"]),
        "Modes": _counted(split["modes"]),
        "Formats": _counted(split["formats"]),
        "Mask modes": _counted(split["mask_modes"]),
        "Raw values": _counted(raw),
        "Not labelled": "labels are not settled" if share is None else f"{100 * share:.1f} % of the pixels",
    }
    items = "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    return f'<div class="card"><h3>{escape(name)}</h3><dl>{items}</dl></div>'


def _counted(counts: dict) -> str:
    shown = ", ".join(f"{key} ({count})" for key, count in list(counts.items())[:NUM_SHOWN])
    return (shown or "none") + (f" and {len(counts) - NUM_SHOWN:,} more" if len(counts) > NUM_SHOWN else "")


def _labels(report: dict, pictures: InspectionPictures) -> str:
    """A row for each label: bars, on a logarithmic scale, of its share of both splits' labelled pixels."""
    shares, num_pictures = {}, {}
    for name, split in report["splits"].items():
        total = sum(split["label_pixels"].values()) or 1
        shares[name] = {label: split["label_pixels"].get(label, 0) / total for label in report["id2label"]}
        num_pictures[name] = split["label_pictures"]
    least = min((share for split in shares.values() for share in split.values() if share > 0), default=1e-2)
    decades = max(1, math.ceil(-math.log10(least))) + 0.5
    rows = []
    for label in sorted(report["id2label"], key=lambda label: -shares["train"][label]):
        bars = "".join(
            f'<div class="bar {name}" style="width:{_width(split[label], decades):.1f}%"></div>'
            for name, split in shares.items()
        )
        figures = " ".join(
            f"{100 * split[label]:.2g}&nbsp;%&nbsp;in&nbsp;{num_pictures[name].get(label, 0):,}"
            for name, split in shares.items()
        )
        color = ",".join(map(str, pictures.palette[label]))
        rows.append(
            f'<div class="row"><span class="swatch" style="background:rgb({color})"></span>'
            f'<span class="name">{label} {escape(report["id2label"][label])}</span>'
            f'<div class="bars">{bars}</div><span class="figure">{figures}</span></div>'
        )
    keys = " ".join(f'<span class="key" style="background:var(--{name})"></span> {name}' for name in shares)
    return (
        f'<h2>Labels</h2><p class="muted">Share of the labelled pixels, on a logarithmic scale, and number of pictures'
        f' that the label is in: {keys}</p><div class="card{" many" if len(rows) > 30 else ""}">{"".join(rows)}</div>'
    )


def _width(share: float, decades: float) -> float:
    """Percent of the bar's room that a share takes."""
    return max(0.5, 100 * (1 + math.log10(share) / decades)) if share > 0 else 0


def _pictures(pictures: InspectionPictures) -> str:
    entries = "".join(
        f'<span><i class="swatch" style="background:rgb({",".join(map(str, color))})"></i>{escape(name)}</span>'
        for name, color in pictures.entries
    )
    legend = f'<details><summary>Legend</summary><div class="legend">{entries}</div></details>'
    if len(pictures.entries) <= 24:
        legend = f'<div class="legend">{entries}</div>'
    parts = []
    for title, tiles in pictures.tiles.items():
        if tiles:
            figures = "".join(map(_figure, tiles))
            parts.append(f'<h2>{escape(title)}</h2>{legend if not parts else ""}<div class="tiles">{figures}</div>')
    return "\n".join(parts)


def _figure(tile: tuple[Image.Image, str]) -> str:
    image, caption = tile
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=82)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}" loading="lazy"><figcaption>{text}</figcaption></figure>'
