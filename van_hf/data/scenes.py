# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The generated dataset "scenes": a small stand-in for ADE20K that needs no network.

A picture is composed back to front: sky, mountains, ground, water, road, and then the things that stand on the ground,
the far ones first. What is painted covers what was there before, in the colours and in the labels alike.

Columns, class names and the label convention are ADE20K's: `image` (RGB), `annotation` (one channel, 0 = other),
`scene_category`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import datasets
import numpy as np

from . import painting
from .generated import load_generated, paint_examples
from .painting import LABELS, Canvas, Light

CLASS_NAMES = tuple(LABELS)
ZERO_IS_OTHER = True
NUM_PICTURES = {"train": 320, "validation": 64}
SEED = 2022


@dataclass(frozen=True)
class Setting:
    """What a kind of place is made of: probabilities of the large parts, (least, most) numbers of the things."""

    grass: float
    sea: float = 0.0
    lake: float = 0.0
    road: float = 0.0
    mountain: float = 0.0
    building: tuple[int, int] = (0, 0)
    tree: tuple[int, int] = (0, 0)
    car: tuple[int, int] = (0, 0)
    person: tuple[int, int] = (0, 0)
    fence: tuple[int, int] = (0, 0)
    unknown: tuple[int, int] = (0, 2)


SETTINGS = {
    "street": Setting(
        grass=0.5, road=1.0, mountain=0.2, building=(3, 5), tree=(0, 2), car=(1, 2), person=(0, 2), fence=(0, 1)
    ),
    "park": Setting(
        grass=1.0, lake=0.5, road=0.3, mountain=0.3, building=(0, 2), tree=(3, 6), person=(1, 3), fence=(0, 1)
    ),
    "beach": Setting(
        grass=0.0, sea=1.0, mountain=0.4, building=(0, 2), tree=(0, 2), car=(0, 1), person=(1, 3), fence=(0, 1)
    ),
    "lake_natural": Setting(
        grass=0.5, lake=1.0, mountain=0.9, building=(0, 1), tree=(2, 5), person=(0, 2), fence=(0, 1)
    ),
    "highway": Setting(grass=0.4, road=1.0, mountain=0.7, building=(0, 1), tree=(1, 3), car=(1, 3), fence=(0, 1)),
    "village": Setting(
        grass=0.6, lake=0.3, mountain=0.5, building=(1, 3), tree=(1, 4), car=(0, 2), person=(0, 2), fence=(1, 1)
    ),
}

#          zenith              horizon             tint of everything  cloudiness
SKIES = (
    ((0.22, 0.45, 0.82), (0.72, 0.85, 0.96), (1.04, 1.02, 0.97), 0.5),
    ((0.35, 0.60, 0.90), (0.85, 0.92, 0.97), (1.08, 1.05, 1.00), 0.2),
    ((0.55, 0.58, 0.62), (0.78, 0.79, 0.80), (0.90, 0.91, 0.93), 1.0),
    ((0.70, 0.73, 0.75), (0.88, 0.88, 0.86), (0.96, 0.96, 0.95), 0.7),
    ((0.36, 0.34, 0.58), (0.98, 0.66, 0.42), (1.05, 0.88, 0.76), 0.6),
    ((0.62, 0.42, 0.50), (0.99, 0.80, 0.52), (1.06, 0.93, 0.78), 0.4),
    ((0.10, 0.14, 0.32), (0.42, 0.44, 0.62), (0.72, 0.76, 0.92), 0.3),
    ((0.45, 0.62, 0.66), (0.93, 0.90, 0.78), (1.02, 1.00, 0.90), 0.8),
)


@dataclass(frozen=True)
class Placement:
    """Where things of one kind may stand and how large they are.

    `near` and `scale` are (least, most): distance from the horizon (0) to the bottom of the picture (1), and size as a
    share of the picture's height at `near` 0 and 1.
    """

    paint: Callable[[Canvas, float, float, float], None]
    ground: tuple[str, ...]
    near: tuple[float, float]
    scale: tuple[float, float]


PLACEMENTS = {
    "building": Placement(painting.paint_building, ("grass", "sand"), (0.04, 0.4), (0.07, 0.2)),
    "tree": Placement(painting.paint_tree, ("grass", "sand"), (0.03, 0.6), (0.08, 0.3)),
    "car": Placement(painting.paint_car, ("road", "sand", "grass"), (0.25, 0.85), (0.1, 0.32)),
    "person": Placement(painting.paint_person, ("grass", "sand", "road"), (0.35, 0.95), (0.24, 0.6)),
    "fence": Placement(painting.paint_fence, ("grass", "sand"), (0.2, 0.9), (0.1, 0.32)),
    "unknown": Placement(painting.paint_unknown, ("grass", "sand", "road"), (0.2, 0.9), (0.1, 0.3)),
}


def paint_ground(canvas: Canvas, setting: Setting, horizon: float, sky: np.ndarray):
    """Grass or sand up to the horizon, then the setting's water and road."""
    rng = canvas.rng
    below = np.clip(canvas.y - horizon + 0.5, 0, 1)
    grassy = rng.random() < setting.grass
    (painting.paint_grass if grassy else painting.paint_sand)(canvas, below, horizon)
    if rng.random() < setting.sea:
        shore = horizon + (canvas.height - horizon) * rng.uniform(0.3, 0.6)
        bend = 0.06 * canvas.height * painting.noise(rng, (2, canvas.width), (2, canvas.width / 3))[0]
        painting.paint_water(canvas, below * np.clip(shore + bend - canvas.y + 0.5, 0, 1), horizon, sky)
    if rng.random() < setting.lake:
        lake = painting.lake_depth(canvas, horizon)
        if grassy and rng.random() < 0.6:
            painting.paint_sand(canvas, below * np.clip(10 * (lake + 0.4), 0, 1), horizon)
        painting.paint_water(canvas, below * np.clip(10 * lake, 0, 1), horizon, sky)
    if rng.random() < setting.road:
        painting.paint_road(canvas, horizon)


def paint_things(canvas: Canvas, setting: Setting, horizon: float):
    """Stand the setting's things on the ground, each where its kind may stand, and paint the far ones first."""
    rng = canvas.rng
    ground, depth = canvas.labels.copy(), canvas.height - horizon
    things = []
    for kind, placement in PLACEMENTS.items():
        least, most = getattr(setting, kind)
        for _ in range(rng.integers(least, most + 1)):
            rows = horizon + depth * np.asarray(placement.near)
            free = np.isin(ground, [LABELS[name] for name in placement.ground])
            free &= (canvas.y >= rows[0]) & (canvas.y < rows[1])
            spots = np.flatnonzero(free)
            if len(spots) == 0:
                continue
            y, x = divmod(int(rng.choice(spots)), canvas.width)
            near = (y - horizon) / depth
            scale = canvas.height * (placement.scale[0] + (placement.scale[1] - placement.scale[0]) * near)
            things.append((y, x, scale, placement.paint))
    for y, x, scale, paint in sorted(things, key=lambda thing: thing[0]):
        paint(canvas, x, y, scale)


def paint_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str]:
    """A picture uint8 (height, width, 3), its raw labels uint8 (height, width) and the kind of place."""
    category = str(rng.choice(list(SETTINGS)))
    setting = SETTINGS[category]
    long_side, short_side = int(rng.integers(176, 261)), int(rng.integers(132, 177))
    height, width = (short_side, long_side) if rng.random() < 0.75 else (long_side, short_side)
    zenith, horizon_color, tint, cloudiness = SKIES[rng.integers(len(SKIES))]
    light = Light(zenith, horizon_color, int(rng.choice((-1, 1))), cloudiness)
    canvas = Canvas(height, width, light, rng)
    horizon = height * rng.uniform(0.3, 0.55)

    sky = painting.sky_colors(canvas, horizon)
    canvas.paint(np.ones(canvas.shape, dtype=np.float32), sky, label=LABELS["sky"])
    if rng.random() < setting.mountain:
        painting.paint_mountains(canvas, horizon)
    paint_ground(canvas, setting, horizon, sky)
    paint_things(canvas, setting, horizon)

    grain = rng.uniform(0.005, 0.02) * rng.standard_normal((*canvas.shape, 1), dtype=np.float32)
    pixels = canvas.pixels * np.asarray(tint, dtype=np.float32) + grain
    return (255 * np.clip(pixels, 0, 1)).round().astype(np.uint8), canvas.labels, category


def generate_examples(split: str) -> Iterator[dict]:
    """The examples of a split ("train" or "validation"); picture `i` depends on SEED, the split and `i` alone."""
    return paint_examples(paint_scene, SEED, NUM_PICTURES, split)


def load() -> datasets.DatasetDict:
    """The dataset, generated at the first call (some seconds) and kept in `datasets`' cache (HF_DATASETS_CACHE)."""
    return load_generated("scenes", generate_examples, NUM_PICTURES, (__file__, painting.__file__))
