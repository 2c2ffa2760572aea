# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The generated data set "cracks": binary segmentation of thin things that cover 1.5 percent of the pixels.

Walls and roads from near, with cracks in most of them. What is dark and thin need not be a crack: joints, seams,
wires, twigs, scratches and stains are "background". A crack is jagged, of changing width, and branches.
"""

from __future__ import annotations

from collections.abc import Iterator

import datasets
import numpy as np

from . import closeups, painting
from .closeups import blob, develop, new_canvas, relief, stroke, uneven_light, wander
from .generated import load_generated, paint_examples
from .painting import Canvas, Color, fractal_noise, noise, pick

BACKGROUND, CRACK = 0, 1
CLASS_NAMES = ("background", "crack")
ZERO_IS_OTHER = False
NUM_PICTURES = {"train": 160, "validation": 48}
SEED = 2024

ASPHALT_COLORS = ((0.30, 0.30, 0.32), (0.42, 0.41, 0.40), (0.52, 0.51, 0.50), (0.36, 0.34, 0.33))
CONCRETE_COLORS = ((0.68, 0.67, 0.65), (0.58, 0.58, 0.58), (0.74, 0.71, 0.66), (0.50, 0.51, 0.50))
PLASTER_COLORS = ((0.90, 0.88, 0.82), (0.88, 0.78, 0.58), (0.72, 0.80, 0.84), (0.84, 0.66, 0.56), (0.94, 0.94, 0.94))
BRICK_COLORS = ((0.62, 0.32, 0.24), (0.72, 0.42, 0.30), (0.52, 0.30, 0.26), (0.76, 0.66, 0.52))
MORTAR_COLORS = ((0.70, 0.68, 0.64), (0.46, 0.44, 0.42), (0.82, 0.80, 0.76))
WIRE_COLORS = ((0.10, 0.10, 0.11), (0.28, 0.20, 0.14), (0.36, 0.27, 0.19), (0.18, 0.19, 0.22))


def paint_asphalt(canvas: Canvas):
    rng = canvas.rng
    stones = rng.standard_normal(canvas.shape, dtype=np.float32)
    shade = 1 + 0.13 * stones + 0.08 * fractal_noise(rng, canvas.shape, (40, 40))
    canvas.paint(np.ones(canvas.shape, np.float32), pick(rng, ASPHALT_COLORS), shade, label=BACKGROUND)
    if rng.random() < 0.35:
        start, angle = rng.uniform(0, 1, 2) * (canvas.width, canvas.height), rng.uniform(0, np.pi)
        line = np.asarray(start) + np.outer([-400, 400], (np.cos(angle), np.sin(angle)))
        worn = np.clip(0.9 + 0.5 * fractal_noise(rng, canvas.shape, (12, 12)), 0, 1)
        width = rng.uniform(10, 26)
        paint = pick(rng, ((0.90, 0.90, 0.88), (0.86, 0.70, 0.22)))
        canvas.paint(stroke(canvas, line, np.full(2, width)) * worn, paint, 1 + 0.06 * stones)


def paint_concrete(canvas: Canvas):
    rng = canvas.rng
    shade = 1 + 0.09 * fractal_noise(rng, canvas.shape, (60, 60)) + 0.03 * noise(rng, canvas.shape, (1.5, 1.5))
    canvas.paint(np.ones(canvas.shape, np.float32), pick(rng, CONCRETE_COLORS), shade, label=BACKGROUND)
    pores = [(x, y, rng.uniform(0.5, 1.8)) for x, y in rng.uniform(0, 1, (rng.integers(0, 40), 2))]
    spots = [(x * canvas.width, y * canvas.height, r) for x, y, r in pores]
    canvas.paint(
        canvas.mask(ellipses=[(x - r, y - r, x + r, y + r) for x, y, r in spots]), painting.BLACK, 0.0, haze=0.2
    )
    if rng.random() < 0.6:
        paint_joints(canvas, spacing=rng.uniform(70, 140), width=rng.uniform(1.2, 3.5))


def paint_joints(canvas: Canvas, spacing: float, width: float):
    """Straight dark lines between slabs: as dark and as thin as cracks."""
    rng = canvas.rng
    tilt = rng.uniform(-0.06, 0.06)
    dark = canvas.pixels.mean(axis=(0, 1)) * rng.uniform(0.35, 0.6)
    for is_upright in (False, True)[: rng.integers(1, 3)]:
        along, across = (canvas.y, canvas.x) if is_upright else (canvas.x, canvas.y)
        distance = np.abs((across + tilt * along + rng.uniform(0, spacing)) % spacing - spacing / 2)
        canvas.paint(np.clip(width / 2 - distance + 0.5, 0, 1), dark)


def paint_plaster(canvas: Canvas):
    rng = canvas.rng
    rough = fractal_noise(rng, canvas.shape, (rng.uniform(4, 14),) * 2)
    shade = relief(canvas, rough, rng.uniform(0.1, 0.35)) * (1 + 0.04 * fractal_noise(rng, canvas.shape, (70, 70)))
    canvas.paint(np.ones(canvas.shape, np.float32), pick(rng, PLASTER_COLORS), shade, label=BACKGROUND)


def paint_bricks(canvas: Canvas):
    rng = canvas.rng
    row_height, joint = rng.uniform(20, 38), rng.uniform(1.5, 4)
    length = row_height * rng.uniform(2, 3.2)
    rows = np.floor(canvas.y / row_height)
    columns = canvas.x / length + 0.5 * (rows % 2)
    y, x = canvas.y % row_height, (columns % 1) * length
    seam = np.clip(joint - np.minimum(np.minimum(y, row_height - y), np.minimum(x, length - x)), 0, 1)
    kinds = rng.uniform(0.75, 1.2, (64, 64)).astype(np.float32)[
        rows.astype(int) % 64, np.floor(columns).astype(int) % 64
    ]
    rough = fractal_noise(rng, canvas.shape, (8, 8))
    canvas.paint(np.ones(canvas.shape, np.float32), pick(rng, BRICK_COLORS), kinds * (1 + 0.08 * rough), BACKGROUND)
    canvas.paint(seam, pick(rng, MORTAR_COLORS), 1 + 0.06 * rough)


SURFACES = {"asphalt": paint_asphalt, "concrete": paint_concrete, "plaster": paint_plaster, "bricks": paint_bricks}


def paint_stains(canvas: Canvas):
    rng = canvas.rng
    for _ in range(rng.integers(0, 4)):
        x, y = rng.uniform(0, canvas.width), rng.uniform(0, canvas.height)
        stain = blob(canvas, x, y, rng.uniform(4, 26), roughness=0.5) * rng.uniform(0.25, 0.7)
        canvas.paint(stain, canvas.pixels.mean(axis=(0, 1)) * rng.uniform(0.5, 0.9))


def paint_wire(canvas: Canvas):
    """A wire or twig that lies on the surface: smooth, of one width, with a shadow beside it."""
    rng = canvas.rng
    start = (rng.uniform(0, canvas.width), rng.uniform(0, canvas.height))
    points = wander(rng, start, rng.uniform(0, 2 * np.pi), rng.uniform(60, 220), turn=0.06, pull=0.0)
    widths = np.full(len(points), rng.uniform(1.4, 3.2))
    shift = np.asarray((-canvas.light.sun, 1)) * widths[0] * rng.uniform(0.7, 1.2)
    canvas.paint(stroke(canvas, points + shift, widths) * 0.4, painting.BLACK)
    color: Color = pick(rng, WIRE_COLORS)
    canvas.paint(stroke(canvas, points, widths), color, label=BACKGROUND)
    canvas.paint(stroke(canvas, points - 0.2 * shift, widths * 0.35) * 0.5, np.clip(color * 2.2, 0, 1))


def paint_scratch(canvas: Canvas):
    """Nearly straight, and lighter than the surface or a little darker."""
    rng = canvas.rng
    start = (rng.uniform(0, canvas.width), rng.uniform(0, canvas.height))
    points = wander(rng, start, rng.uniform(0, 2 * np.pi), rng.uniform(30, 120), turn=0.02)
    color = np.clip(canvas.pixels.mean(axis=(0, 1)) * rng.choice((1.35, 1.2, 0.6)), 0, 1)
    canvas.paint(stroke(canvas, points, np.full(len(points), rng.uniform(0.8, 2.0))) * 0.8, color)


def crack_strokes(canvas: Canvas) -> list[tuple[np.ndarray, np.ndarray]]:
    """Points and widths of one crack and its branches."""
    rng = canvas.rng
    start = (rng.uniform(0.05, 0.95) * canvas.width, rng.uniform(0.05, 0.95) * canvas.height)
    reach = max(canvas.shape)
    points = wander(rng, start, rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.1) * reach, turn=rng.uniform(0.3, 0.6))
    width = rng.uniform(1.3, 3.6)
    strokes = [(points, crack_widths(rng, len(points), width))]
    for _ in range(rng.integers(0, 4)):
        at = int(rng.integers(len(points) // 4, len(points)))
        angle = np.arctan2(*(points[at] - points[at - 1])[::-1]) + rng.choice((-1, 1)) * rng.uniform(0.4, 1.2)
        branch = wander(rng, tuple(points[at]), angle, rng.uniform(0.1, 0.4) * reach, turn=0.5)
        strokes.append((branch, crack_widths(rng, len(branch), width * rng.uniform(0.5, 0.9))))
    return strokes


def crack_widths(rng: np.random.Generator, count: int, width: float) -> np.ndarray:
    """Widths in pixels that change along the crack and run out at its end; float64 (count,)."""
    uneven = 1 + 0.35 * noise(rng, (1, count), (1, 3))[0]
    fade = np.clip(1.15 - np.linspace(0, 1, count) ** 3, 0.3, 1)
    return np.clip(width * uneven * fade, 0.9, 2.2 * width)


def paint_crack(canvas: Canvas):
    rng = canvas.rng
    dark = canvas.pixels * rng.uniform(0.4, 0.75)
    edge = np.asarray((canvas.light.sun * 0.8, 0.8))
    for points, widths in crack_strokes(canvas):
        canvas.paint(stroke(canvas, points + edge, widths) * 0.35, np.clip(canvas.pixels * 1.25, 0, 1))
        canvas.paint(stroke(canvas, points, widths), dark, label=CRACK)


def paint_surface(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str]:
    """A picture uint8 (height, width, 3), its labels uint8 (height, width) and the kind of surface."""
    kind = str(rng.choice(list(SURFACES)))
    canvas = new_canvas(rng)
    SURFACES[kind](canvas)
    paint_stains(canvas)
    for _ in range(rng.choice((0, 1, 2, 3), p=(0.15, 0.5, 0.25, 0.1))):
        paint_crack(canvas)
    for _ in range(rng.integers(0, 3)):
        (paint_wire if rng.random() < 0.5 else paint_scratch)(canvas)
    return develop(canvas, uneven_light(canvas)), canvas.labels, kind


def generate_examples(split: str) -> Iterator[dict]:
    """The examples of a split ("train" or "validation"); picture `i` depends on SEED, the split and `i` alone."""
    return paint_examples(paint_surface, SEED, NUM_PICTURES, split)


def load() -> datasets.DatasetDict:
    """The data set, generated at the first call and kept in `datasets`' cache; see `generated.load_generated`."""
    return load_generated("cracks", generate_examples, NUM_PICTURES, (__file__, closeups.__file__, painting.__file__))
