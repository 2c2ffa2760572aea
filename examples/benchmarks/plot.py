# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""A picture of what `heads` has measured: published accuracy over seconds."""

import textwrap
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from van_hf.files import read_json, write_whole

BENCHMARK = "heads"
COLORS = ("#d9822b", "#3a9a6c", "#2563a8", "#8e44ad")
OTHER_COLOR = "0.35"
OTHER_MARKERS = "sD"
TICKS = [digit * 10**power for power in range(-4, 4) for digit in (1, 2, 5)]  # seconds
CAPTION_WIDTH = 132  # characters
LONGEST_ABOVE = 4  # characters


def add_command(commands) -> None:
    help = "draw what `heads --json FILE` has written"
    parser = commands.add_parser("plot", help=help, description=help)
    parser.add_argument("file", type=Path, metavar="FILE", help="written by heads --json FILE")
    parser.add_argument("--output", type=Path, required=True, help="the picture; its suffix gives the format")


def plot(path: Path, output: Path) -> None:
    """Draw published accuracy over measured seconds, a line for the sizes of each head.

    Args:
        path: a file that `heads --json` has written.
        output: where to save the picture, in a format that matplotlib knows by its suffix.

    Raises:
        ValueError: `path` cannot be read, is damaged or another's; `output` is a folder, or matplotlib does not know
            its suffix.
    """
    if output.is_dir() or not output.suffix:
        raise ValueError(f"--output {output} must be a file whose suffix gives the format, such as speed.png")
    run = read_json(path)
    if run.get("benchmark") != BENCHMARK:
        found = run.get("benchmark")
        raise ValueError(f"{path} must be what `heads --json` has written, but it is of the benchmark {found!r}")
    try:
        if not all(row["seconds"] > 0 and row["mean IoU"] > 0 for row in run["tables"][0]["rows"]):
            raise ValueError("seconds and mean IoU must be above 0")
        figure = draw(run)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        kind = type(error).__name__
        raise ValueError(f"{path} is not what `heads --json` of this version writes ({kind}: {error})") from error
    write_whole(output, lambda partial: figure.savefig(partial, dpi=110, facecolor="white"))


def draw(run: dict) -> Figure:
    """Return the picture of what `heads --json` has written."""
    families: dict[str, list[dict]] = {}
    for row in run["tables"][0]["rows"]:
        families.setdefault(row["model"], []).append(row)
    figure = Figure(figsize=(9, 7), layout="constrained")
    axis = figure.subplots()
    colors, markers = cycle(COLORS), cycle(OTHER_MARKERS)
    for rows in families.values():
        if rows[0]["package"] == "van_hf":
            plot_family(axis, rows, color=next(colors), marker="o", linewidth=2)
        else:
            plot_family(axis, rows, color=OTHER_COLOR, marker=next(markers), linewidth=1, linestyle="--")
    settings = run["settings"]
    axis.set_xscale("log")
    axis.margins(0.07)
    shortest, longest = axis.get_xlim()
    axis.set_xticks([seconds for seconds in TICKS if shortest < seconds < longest])
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(
        f"Seconds for a picture of {settings['height']} x {settings['width']} pixels, measured", fontsize=11
    )
    axis.set_ylabel("Mean IoU on ADE20K in percent, published", fontsize=11)
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, fontsize=10, frameon=False)  # in the axes it would hide points
    text = "\n".join(textwrap.fill(line, CAPTION_WIDTH) for line in caption(run, families))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8.5, color="0.3")
    return figure


def plot_family(axis: Axes, rows: list[dict], **style: object) -> None:
    """Draw the sizes of one head as a line of points with their names, and its protocols into the legend."""
    protocols = ", ".join(dict.fromkeys(row["protocol"] for row in rows))
    places = [(row["seconds"], row["mean IoU"]) for row in rows]
    axis.plot(*zip(*places, strict=True), label=f"{rows[0]['model']} ({rows[0]['package']}), {protocols}", **style)
    for row, place in zip(rows, places, strict=True):
        # Ours and theirs away from each other, but long ones away from the edge on the left.
        is_above = row["package"] == "van_hf" and len(row["size"]) <= LONGEST_ABOVE
        offset, side = ((-5, 5), "right") if is_above else ((6, -10), "left")
        label = axis.annotate(row["size"], place, xytext=offset, textcoords="offset points", ha=side, fontsize=9.5)
        label.set(color=style["color"], path_effects=[withStroke(linewidth=2.5, foreground="white")])


def caption(run: dict, families: dict[str, list[dict]]) -> list[str]:
    """Return what was measured where and when, and whose the published figures are."""
    machine, settings = run["machine"], run["settings"]
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    measured = (
        f"Seconds: the median of {settings['repeats']} turns in one run, one picture at a time, {settings['dtype']}, "
        f"not fused or compiled; {where}, torch {machine['torch']}, transformers {machine['transformers']}, "
        f"{machine['date']}."
    )
    publishers: dict[str, list[str]] = {}
    for family, rows in families.items():
        publishers.setdefault(rows[0]["published by"], []).append(family)
    figures = "; ".join(f"{', '.join(names)}: {publisher}" for publisher, names in publishers.items())
    return [measured, f"Mean IoU: as published, not measured here. {figures}. All backbones began from ImageNet-1K."]
