# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The generated data set "leaves": five labels, of which three are thin or rare, in few pictures.

Leaves on soil, boards, stone or cloth, with their veins, and two diseases: blight, brown spots on every third leaf,
and rust, tiny pustules on one leaf in ten, some 0.05 percent of the pixels. Chaff, pebbles, drops of water and holes
look like them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import numpy as np

from . import closeups, painting
from .closeups import blob, develop, new_canvas, relief, stroke, uneven_light, wander
from .generated import load_generated, paint_examples
from .painting import Canvas, fractal_noise, noise, pick

CLASS_NAMES = ("background", "leaf", "vein", "blight", "rust")
BACKGROUND, LEAF, VEIN, BLIGHT, RUST = range(len(CLASS_NAMES))
ZERO_IS_OTHER = False
NUM_PICTURES = {"train": 160, "validation": 48}
SEED = 2025

LEAF_COLORS = (
    (0.28, 0.48, 0.18), (0.40, 0.58, 0.24), (0.20, 0.36, 0.20), (0.56, 0.60, 0.24), (0.74, 0.62, 0.22),
    (0.62, 0.30, 0.18), (0.46, 0.22, 0.24),
)  # fmt: skip
SOIL_COLORS = ((0.34, 0.26, 0.20), (0.46, 0.36, 0.26), (0.26, 0.22, 0.20), (0.60, 0.48, 0.34))
BOARD_COLORS = ((0.62, 0.46, 0.30), (0.46, 0.32, 0.22), (0.72, 0.60, 0.44), (0.50, 0.48, 0.44))
STONE_COLORS = ((0.56, 0.56, 0.55), (0.68, 0.66, 0.62), (0.42, 0.43, 0.45), (0.36, 0.44, 0.34))
CLOTH_COLORS = ((0.92, 0.92, 0.90), (0.30, 0.42, 0.56), (0.40, 0.52, 0.36), (0.16, 0.16, 0.18), (0.80, 0.72, 0.56))
CHAFF_COLORS = ((0.70, 0.58, 0.36), (0.42, 0.28, 0.18), (0.72, 0.40, 0.16), (0.30, 0.36, 0.18))
BLIGHT_COLORS = ((0.40, 0.26, 0.14), (0.28, 0.20, 0.14), (0.54, 0.38, 0.20))
RUST_COLORS = ((0.78, 0.40, 0.10), (0.66, 0.30, 0.10), (0.86, 0.54, 0.14))


def paint_soil(canvas: Canvas):
    rng = canvas.rng
    crumbs = fractal_noise(rng, canvas.shape, (rng.uniform(4, 12),) * 2)
    canvas.paint(np.ones(canvas.shape, np.float32), pick(rng, SOIL_COLORS), relief(canvas, crumbs, 0.3), BACKGROUND)


def paint_boards(canvas: Canvas):
    rng = canvas.rng
    width = rng.uniform(24, 60)
    grain = fractal_noise(rng, canvas.shape, (rng.uniform(1.5, 3), 60))
    tone = rng.uniform(0.85, 1.15, 64).astype(np.float32)[(canvas.y // width).astype(int)]
    canvas.paint(np.ones(canvas.shape, np.float32), pick(rng, BOARD_COLORS), tone * (1 + 0.12 * grain), BACKGROUND)
    gap = np.clip(1.2 - np.abs(canvas.y % width - width / 2), 0, 1)
    canvas.paint(gap, painting.BLACK)


def paint_stone(canvas: Canvas):
    rng = canvas.rng
    shade = 1 + 0.1 * fractal_noise(rng, canvas.shape, (40, 40)) + 0.07 * noise(rng, canvas.shape, (1.5, 1.5))
    canvas.paint(np.ones(canvas.shape, np.float32), pick(rng, STONE_COLORS), shade, BACKGROUND)


def paint_cloth(canvas: Canvas):
    rng = canvas.rng
    weave = np.sin(canvas.x * rng.uniform(1.2, 2.4)) * np.sin(canvas.y * rng.uniform(1.2, 2.4))
    folds = relief(canvas, 8 * noise(rng, canvas.shape, (50, 50)), 0.3)
    canvas.paint(np.ones(canvas.shape, np.float32), pick(rng, CLOTH_COLORS), folds * (1 + 0.05 * weave), BACKGROUND)


GROUNDS = {"soil": paint_soil, "boards": paint_boards, "stone": paint_stone, "cloth": paint_cloth}


def paint_litter(canvas: Canvas):
    """Pebbles, chaff and twigs, in the colours of the diseases and as thin as veins."""
    rng = canvas.rng
    for _ in range(rng.integers(0, 14)):
        x, y = rng.uniform(0, canvas.width), rng.uniform(0, canvas.height)
        canvas.paint(blob(canvas, x, y, rng.uniform(0.8, 5)), pick(rng, CHAFF_COLORS + STONE_COLORS))
    for _ in range(rng.integers(0, 4)):
        start = (rng.uniform(0, canvas.width), rng.uniform(0, canvas.height))
        points = wander(rng, start, rng.uniform(0, 2 * np.pi), rng.uniform(15, 90), turn=0.12)
        canvas.paint(stroke(canvas, points, np.full(len(points), rng.uniform(1, 2.5))), pick(rng, CHAFF_COLORS))


@dataclass(frozen=True)
class Leaf:
    """Where a leaf lies: its stalk's end `base` and its `tip` (x, y), both in pixels, and the shape of its halves.

    `outline` (n,) is the half's width along the midrib, as a share of the leaf's length; `bend` how far the midrib
    leaves the straight line, as a share of it too.
    """

    base: np.ndarray
    tip: np.ndarray
    outline: np.ndarray
    bend: float

    @property
    def length(self) -> float:
        return float(np.linalg.norm(self.tip - self.base))

    def points(self, along: np.ndarray, aside: np.ndarray | float) -> np.ndarray:
        """Points (n, 2) in pixels: `along` the midrib from 0 (base) to 1 (tip), `aside` as a share of the width."""
        forward = self.tip - self.base
        sideways = np.stack((-forward[1], forward[0]))
        width = np.interp(along, np.linspace(0, 1, len(self.outline)), self.outline)
        shift = self.bend * np.sin(np.pi * along) + aside * width
        return self.base + along[:, None] * forward + shift[:, None] * sideways


def new_leaf(canvas: Canvas) -> Leaf:
    rng = canvas.rng
    length = min(canvas.shape) * rng.uniform(0.5, 1.1)
    middle = np.asarray((rng.uniform(0.2, 0.8) * canvas.width, rng.uniform(0.2, 0.8) * canvas.height))
    angle = rng.uniform(0, 2 * np.pi)
    half = length / 2 * np.asarray((np.cos(angle), np.sin(angle)))
    along = np.linspace(0, 1, 60)
    widest = rng.uniform(0.3, 0.55)
    belly = np.where(along < widest, along / widest, (1 - along) / (1 - widest))
    outline = rng.uniform(0.16, 0.38) * np.sin(np.pi / 2 * belly) ** rng.uniform(0.7, 1.2)
    lobes = rng.choice((0.0, 0.0, 0.1, 0.3))
    outline *= 1 - lobes * (0.5 + 0.5 * np.cos(2 * np.pi * along * rng.integers(5, 14)))
    return Leaf(middle - half, middle + half, outline, rng.uniform(-0.12, 0.12))


def paint_veins(canvas: Canvas, leaf: Leaf, blade: np.ndarray, color: np.ndarray):
    """The midrib and its branches, lighter or darker than the blade."""
    rng = canvas.rng
    tone = np.clip(color * rng.choice((0.62, 1.35, 1.5)) + rng.uniform(0, 0.06), 0, 1)
    along = np.linspace(0, 0.97, 40)
    midrib = rng.uniform(0.012, 0.024) * leaf.length
    strokes = [(leaf.points(along, 0.0), np.clip(midrib * (1 - 0.75 * along), 0.9, None))]
    slant, pairs = rng.uniform(0.1, 0.3), rng.integers(4, 9)
    for at in np.linspace(0.08, 0.8, pairs):
        for side in (-1, 1):
            reach = np.linspace(0, 0.92, 14)
            branch = leaf.points(np.clip(at + slant * reach**1.2, 0, 1), side * reach)
            strokes.append((branch, np.clip(0.55 * midrib * (1 - 0.6 * reach), 0.8, None)))
    for points, widths in strokes:
        canvas.paint(stroke(canvas, points, widths) * blade, tone, label=VEIN)


def spots_on(canvas: Canvas, leaf: Leaf, count: int) -> np.ndarray:
    """`count` places (x, y) on the leaf, in pixels."""
    rng = canvas.rng
    return leaf.points(rng.uniform(0.1, 0.9, count), rng.uniform(-0.8, 0.8, count))


def paint_blight(canvas: Canvas, leaf: Leaf, blade: np.ndarray):
    rng = canvas.rng
    color = pick(rng, BLIGHT_COLORS)
    for x, y in spots_on(canvas, leaf, int(rng.integers(1, 5))):
        radius = rng.uniform(0.02, 0.08) * leaf.length
        halo = blob(canvas, x, y, radius * 1.4, 0.3) * 0.5
        canvas.paint(halo * blade, (0.80, 0.72, 0.30))
        rings = 1 + 0.15 * np.sin(np.hypot(canvas.x - x, canvas.y - y) * 1.8)
        canvas.paint(blob(canvas, x, y, radius) * blade, color, rings, label=BLIGHT)


def paint_rust(canvas: Canvas, leaf: Leaf, blade: np.ndarray):
    rng = canvas.rng
    color = pick(rng, RUST_COLORS)
    for center in spots_on(canvas, leaf, int(rng.integers(1, 4))):
        for x, y in center + 0.05 * leaf.length * rng.standard_normal((int(rng.integers(4, 12)), 2)):
            canvas.paint(blob(canvas, x, y, rng.uniform(1.0, 2.2), 0.2) * blade, color, label=RUST)


def paint_drops_and_holes(canvas: Canvas, leaf: Leaf, blade: np.ndarray, ground: np.ndarray):
    """What is neither disease: drops of water, which are leaf, and holes that insects have eaten."""
    rng = canvas.rng
    for x, y in spots_on(canvas, leaf, int(rng.integers(0, 6))):
        drop = blob(canvas, x, y, rng.uniform(1.5, 4), 0.15) * blade
        canvas.paint(drop * 0.4, painting.BLACK)
        glint = canvas.mask(ellipses=[(x - 1.2, y - 1.5, x + 0.4, y)])
        canvas.paint(glint * blade, (1.0, 1.0, 1.0))
    for x, y in spots_on(canvas, leaf, int(rng.integers(0, 3))):
        canvas.paint(blob(canvas, x, y, rng.uniform(2, 6)) * blade, ground, 0.6, label=BACKGROUND)


def paint_leaf(canvas: Canvas, ground: np.ndarray):
    rng = canvas.rng
    leaf = new_leaf(canvas)
    along = np.linspace(0, 1, 80)
    edge = np.concatenate((leaf.points(along, 1.0), leaf.points(along[::-1], -1.0)))
    shadow = edge + np.asarray((-canvas.light.sun, 1)) * rng.uniform(1.5, 5)
    canvas.paint(canvas.mask(polygons=[[tuple(point) for point in shadow]]) * 0.5, painting.BLACK)
    stalk = wander(rng, tuple(leaf.base), np.arctan2(*(leaf.base - leaf.tip)[::-1]), 0.2 * leaf.length, turn=0.1)
    color = pick(rng, LEAF_COLORS)
    canvas.paint(stroke(canvas, stalk, np.full(len(stalk), 0.02 * leaf.length)), color * 0.8, label=LEAF)
    blade = canvas.mask(polygons=[[tuple(point) for point in edge]])
    shade = relief(canvas, fractal_noise(rng, canvas.shape, (9, 9)), 0.08)
    shade = shade * (1 + 0.08 * fractal_noise(rng, canvas.shape, (50, 50)))
    canvas.paint(blade, color, shade, label=LEAF)
    paint_veins(canvas, leaf, blade, color)
    if rng.random() < 0.33:
        paint_blight(canvas, leaf, blade)
    if rng.random() < 0.1:
        paint_rust(canvas, leaf, blade)
    paint_drops_and_holes(canvas, leaf, blade, ground)


def paint_picture(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str]:
    """A picture uint8 (height, width, 3), its labels uint8 (height, width) and what the leaves lie on."""
    kind = str(rng.choice(list(GROUNDS)))
    canvas = new_canvas(rng)
    GROUNDS[kind](canvas)
    paint_litter(canvas)
    ground = canvas.pixels.copy()
    for _ in range(rng.integers(1, 4)):
        paint_leaf(canvas, ground)
    return develop(canvas, uneven_light(canvas)), canvas.labels, kind


def generate_examples(split: str) -> Iterator[dict]:
    """The examples of a split ("train" or "validation"); picture `i` depends on SEED, the split and `i` alone."""
    return paint_examples(paint_picture, SEED, NUM_PICTURES, split)


def load() -> datasets.DatasetDict:
    """The data set, generated at the first call and kept in `datasets`' cache; see `generated.load_generated`."""
    return load_generated("leaves", generate_examples, NUM_PICTURES, (__file__, closeups.__file__, painting.__file__))
