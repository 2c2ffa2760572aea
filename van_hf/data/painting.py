# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What the pictures of "scenes" are painted with: a canvas, noise, and one function per class.

Every class comes in many colours, and classes share colours (dry grass and sand, lake and sky, autumn trees and
brick), so that texture, shape and surroundings are needed to tell them apart. Positions are in pixels, x to the right
and y downwards; colours are RGB in 0..1; masks are float32 (height, width) in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

OTHER = 0
# Raw labels as in ADE20K: its class names, in its order, numbered from 1.
LABELS = {
    name: index
    for index, name in enumerate(
        ("building", "sky", "tree", "road", "grass", "person", "mountain", "car", "water", "fence", "sand"), start=1
    )
}

# Masks are drawn this many times larger and averaged down, which gives the colours smooth edges.
SUPERSAMPLING = 2

Color = tuple[float, float, float]
BLACK = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Light:
    """The light of one picture: RGB colours in 0..1, `sun` is -1 (from the left) or 1 (from the right)."""

    zenith: Color
    horizon: Color
    sun: int
    cloudiness: float


GRASS_COLORS = ((0.30, 0.52, 0.18), (0.42, 0.58, 0.22), (0.70, 0.62, 0.32), (0.36, 0.50, 0.24), (0.22, 0.38, 0.20))
SAND_COLORS = ((0.86, 0.74, 0.50), (0.78, 0.66, 0.44), (0.90, 0.84, 0.70), (0.70, 0.58, 0.40), (0.88, 0.78, 0.58))
ROAD_COLORS = ((0.36, 0.36, 0.38), (0.26, 0.26, 0.28), (0.52, 0.50, 0.48), (0.58, 0.46, 0.38), (0.42, 0.42, 0.44))
MOUNTAIN_COLORS = ((0.44, 0.44, 0.48), (0.48, 0.40, 0.32), (0.30, 0.42, 0.28), (0.36, 0.44, 0.58), (0.64, 0.46, 0.36))
LEAF_COLORS = (
    (0.22, 0.44, 0.16), (0.34, 0.54, 0.20), (0.14, 0.32, 0.20), (0.76, 0.56, 0.16), (0.74, 0.34, 0.14),
    (0.86, 0.62, 0.68),
)  # fmt: skip
WALL_COLORS = (
    (0.66, 0.34, 0.26), (0.84, 0.78, 0.66), (0.60, 0.60, 0.62), (0.88, 0.88, 0.86), (0.42, 0.54, 0.68),
    (0.80, 0.62, 0.34), (0.50, 0.60, 0.46), (0.44, 0.36, 0.32),
)  # fmt: skip
PAINT_COLORS = (
    (0.80, 0.14, 0.12), (0.14, 0.28, 0.62), (0.92, 0.92, 0.92), (0.12, 0.12, 0.14), (0.60, 0.62, 0.64),
    (0.90, 0.72, 0.14), (0.16, 0.46, 0.28), (0.46, 0.26, 0.50),
)  # fmt: skip
FENCE_COLORS = ((0.92, 0.92, 0.90), (0.54, 0.38, 0.24), (0.36, 0.26, 0.20), (0.30, 0.42, 0.32), (0.62, 0.60, 0.58))
SKIN_COLORS = ((0.95, 0.78, 0.66), (0.80, 0.60, 0.46), (0.56, 0.38, 0.28), (0.36, 0.24, 0.18))


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> np.ndarray:
    """Smooth zero-mean noise, float32 of `shape`: normal values every `cell` (rows, columns) pixels, interpolated."""
    grid = tuple(int(np.ceil(size / step)) + 1 for size, step in zip(shape, cell, strict=True))
    values = Image.fromarray(rng.standard_normal(grid, dtype=np.float32))
    return np.asarray(values.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def fractal_noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> np.ndarray:
    """Four octaves of `noise`, each twice as fine and 0.6 times as strong as the one before."""
    octaves = range(4)
    return sum(0.6**k * noise(rng, shape, (max(cell[0] / 2**k, 1), max(cell[1] / 2**k, 1))) for k in octaves)


def pick(rng: np.random.Generator, colors: tuple[Color, ...], jitter: float = 0.06) -> np.ndarray:
    """One of `colors`, each channel moved by up to `jitter` and all of them made brighter or darker together."""
    color = np.asarray(colors[rng.integers(len(colors))]) + rng.uniform(-jitter, jitter, 3)
    return np.clip(color * rng.uniform(0.85, 1.15), 0.03, 0.97).astype(np.float32)


@dataclass
class Canvas:
    """A picture in the making: `pixels` float32 (height, width, 3) in 0..1 and `labels` uint8 (height, width).

    `x` and `y` hold every pixel's column and row, float32 (height, width).
    """

    height: int
    width: int
    light: Light
    rng: np.random.Generator
    pixels: np.ndarray = field(init=False)
    labels: np.ndarray = field(init=False)

    def __post_init__(self):
        self.pixels = np.zeros((self.height, self.width, 3), dtype=np.float32)
        self.labels = np.zeros((self.height, self.width), dtype=np.uint8)
        self.y, self.x = np.mgrid[: self.height, : self.width].astype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    def mask(self, *, polygons=(), ellipses=()) -> np.ndarray:
        """Coverage in 0..1, float32 (height, width), of `polygons` [(x, y), ...] and `ellipses` (x0, y0, x1, y1)."""
        large = Image.new("L", (self.width * SUPERSAMPLING, self.height * SUPERSAMPLING))
        draw = ImageDraw.Draw(large)
        for polygon in polygons:
            draw.polygon([(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in polygon], fill=255)
        for x0, y0, x1, y1 in ellipses:
            draw.ellipse([side * SUPERSAMPLING for side in (x0, y0, x1, y1)], fill=255)
        return np.asarray(large.reduce(SUPERSAMPLING), dtype=np.float32) / 255

    def paint(
        self, mask: np.ndarray, color, shade: np.ndarray | float = 1.0, label: int | None = None, haze: float = 0.0
    ):
        """Cover what `mask` (height, width) shows with `color` * `shade`, and set its labels.

        Args:
            mask: coverage in 0..1; where it is at least a half the pixel's label becomes `label`.
            color: RGB in 0..1, (3,) or (height, width, 3).
            shade: a factor, one or (height, width).
            label: the raw label, or None to leave the labels as they are (windows, markings, shadows).
            haze: how much of the horizon's colour is mixed in, 0..1.
        """
        rows = np.flatnonzero(mask.any(axis=1))
        columns = np.flatnonzero(mask.any(axis=0))
        if len(rows) == 0:
            return
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        alpha = mask[window][..., None]
        color = np.asarray(color, dtype=np.float32)
        color = color[window] if color.ndim == 3 else color
        shade = shade[window][..., None] if np.ndim(shade) == 2 else shade
        color = (1 - haze) * color * shade + haze * np.asarray(self.light.horizon, dtype=np.float32)
        self.pixels[window] += alpha * (color - self.pixels[window])
        if label is not None:
            self.labels[window][mask[window] >= 0.5] = label

    def shadow(self, x: float, y: float, radius: float, strength: float = 0.4):
        """Darken the ground beside a thing of half-width `radius` that stands at (x, y), away from the sun."""
        shift = -0.7 * radius * self.light.sun
        ellipse = (x - 1.4 * radius + shift, y - 0.28 * radius, x + 1.4 * radius + shift, y + 0.28 * radius)
        self.paint(strength * self.mask(ellipses=[ellipse]), BLACK)


def mix(first, second, share: np.ndarray) -> np.ndarray:
    """`first` where `share` (height, width) is 0, `second` where it is 1: RGB (height, width, 3)."""
    first, second = np.asarray(first, dtype=np.float32), np.asarray(second, dtype=np.float32)
    return first + (second - first) * share[..., None].astype(np.float32)


def box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    """A rectangle as a polygon."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def distance_haze(scale: float) -> float:
    """How hazy a thing is whose size in pixels is `scale`: the small ones are far away."""
    return float(np.clip(0.3 - scale / 60, 0, 0.3))


def ridge(canvas: Canvas, base: float, amplitude: float, cell: float) -> np.ndarray:
    """Mask of everything below a jagged line about `base` (a row)."""
    line = fractal_noise(canvas.rng, (2, canvas.width), (2, cell))[0]
    top = base - amplitude * (0.6 + 0.5 * line)
    return np.clip(canvas.y - top + 0.5, 0, 1).astype(np.float32)


def sky_colors(canvas: Canvas, horizon: float) -> np.ndarray:
    """Gradient from zenith to horizon with clouds and the sun's glow: (height, width, 3)."""
    rng, light = canvas.rng, canvas.light
    colors = mix(light.zenith, light.horizon, np.clip(canvas.y / horizon, 0, 1) ** 1.4)
    clouds = fractal_noise(rng, canvas.shape, (rng.uniform(18, 40), rng.uniform(40, 90)))
    cover = np.clip(0.7 * (clouds + 1.6 * light.cloudiness - 0.8), 0, 1) * rng.uniform(0.5, 0.9)
    brightness = 0.9 + 0.12 * np.clip(clouds, -1, 1)
    colors = (
        mix(colors, np.clip(np.asarray(light.horizon) * 1.08, 0, 1), cover)
        * (1 - cover + cover * brightness)[..., None]
    )
    glow_x = canvas.width * (0.5 + 0.4 * light.sun)
    distance = np.hypot(canvas.x - glow_x, canvas.y - horizon * rng.uniform(0.1, 0.9)) / canvas.width
    return mix(colors, (1.0, 0.97, 0.88), 0.55 * np.exp(-5 * distance))


def paint_mountains(canvas: Canvas, horizon: float):
    """One or two ridges, the far one first, hazy, some with snow."""
    rng = canvas.rng
    ridges = rng.integers(1, 3)
    snow = rng.random() < 0.4
    for index in range(ridges):
        height = horizon * rng.uniform(0.4, 0.8) * (1 - 0.4 * index)
        mask = ridge(canvas, horizon, height, rng.uniform(40, 90))
        rock = fractal_noise(rng, canvas.shape, (26, 20))
        # Light falls on the slopes that face the sun: the sideways derivative of the relief.
        slopes = np.gradient(rock, axis=1) * canvas.light.sun
        color = np.broadcast_to(pick(rng, MOUNTAIN_COLORS), (*canvas.shape, 3))
        if snow:
            line = horizon - 0.55 * height + 6 * rock
            color = mix(color, (0.95, 0.96, 0.98), np.clip((line - canvas.y) / 4, 0, 1))
        shade = np.clip(1 - 1.3 * slopes + 0.06 * rock, 0.5, 1.5)
        canvas.paint(mask, color, shade, LABELS["mountain"], haze=rng.uniform(0.05, 0.25) * (1 - 0.5 * index))


def nearness(canvas: Canvas, horizon: float) -> np.ndarray:
    """0 at the horizon and above, 1 at the bottom of the picture: (height, width)."""
    return np.clip((canvas.y - horizon) / (canvas.height - horizon), 0, 1)


def paint_grass(canvas: Canvas, mask: np.ndarray, horizon: float):
    """Upright blades, longer in front, in patches of two colours."""
    rng, near = canvas.rng, nearness(canvas, horizon)
    blades = noise(rng, canvas.shape, (5, 1.4)) * (0.3 + 0.7 * near) + 0.5 * noise(rng, canvas.shape, (2.5, 1))
    patches = fractal_noise(rng, canvas.shape, (14, 40))
    color = mix(pick(rng, GRASS_COLORS), pick(rng, GRASS_COLORS), np.clip(0.3 + 0.4 * patches, 0, 1) * 0.6)
    canvas.paint(mask, color, np.clip(1 + 0.17 * blades, 0.4, 1.6), LABELS["grass"])


def paint_sand(canvas: Canvas, mask: np.ndarray, horizon: float):
    """Fine grain on smooth ripples and dunes."""
    rng, near = canvas.rng, nearness(canvas, horizon)
    wander = noise(rng, canvas.shape, (20, 40))
    ripples = np.sin(60 * np.sqrt(near) * rng.uniform(0.7, 1.2) + 1.6 * wander)
    dunes = noise(rng, canvas.shape, (30, 80))
    grain = rng.standard_normal(canvas.shape, dtype=np.float32)
    shade = 1 + 0.07 * ripples + 0.07 * dunes + 0.025 * grain
    canvas.paint(mask, pick(rng, SAND_COLORS), shade, LABELS["sand"])


def paint_water(canvas: Canvas, mask: np.ndarray, horizon: float, sky: np.ndarray):
    """Water mirrors the sky above the horizon, is darkened by its own colour and broken by level ripples."""
    rng, near = canvas.rng, nearness(canvas, horizon)
    mirrored = np.clip(2 * horizon - canvas.y, 0, canvas.height - 1).astype(np.int32)
    own = pick(
        rng, ((0.10, 0.32, 0.42), (0.16, 0.30, 0.28), (0.12, 0.22, 0.40), (0.34, 0.36, 0.30), (0.20, 0.52, 0.56))
    )
    color = mix(sky[mirrored, canvas.x.astype(np.int32)], own, rng.uniform(0.2, 0.5) + 0.35 * near)
    ripples = noise(rng, canvas.shape, (1.6, 12)) * (1 - near) + noise(rng, canvas.shape, (3.2, 26)) * near
    glints = np.clip(ripples - 1.1, 0, 1)
    canvas.paint(mask, mix(color, (1, 1, 1), 0.5 * glints), 1 + 0.11 * ripples, LABELS["water"])


def lake_depth(canvas: Canvas, horizon: float) -> np.ndarray:
    """Above 0 inside a lake of irregular outline that lies on the ground, 1 at its middle: (height, width)."""
    rng, ground = canvas.rng, canvas.height - horizon
    middle_x, middle_y = canvas.width * rng.uniform(0.2, 0.8), horizon + ground * rng.uniform(0.3, 0.6)
    half_width, half_height = canvas.width * rng.uniform(0.3, 0.6), ground * rng.uniform(0.22, 0.4)
    outline = ((canvas.x - middle_x) / half_width) ** 2 + ((canvas.y - middle_y) / half_height) ** 2
    return 1 - outline + 0.25 * noise(rng, canvas.shape, (16, 40))


def road_edges(canvas: Canvas, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """A road that runs away from the viewer, bent a little: its left and right column in every row, two (height,)."""
    rng = canvas.rng
    rows = np.arange(canvas.height, dtype=np.float32)
    near = np.clip((rows - horizon) / (canvas.height - horizon), 0, 1)
    far_x, near_x = canvas.width * rng.uniform(0.25, 0.75), canvas.width * rng.uniform(0.2, 0.8)
    middle = far_x + (near_x - far_x) * near + canvas.width * rng.uniform(-0.25, 0.25) * near * (1 - near)
    half = canvas.width * (0.025 + rng.uniform(0.28, 0.5) * near)
    return middle - half, middle + half


def paint_road(canvas: Canvas, horizon: float):
    """Asphalt or gravel from the horizon to the bottom, mostly with markings."""
    rng, near = canvas.rng, nearness(canvas, horizon)
    left, right = road_edges(canvas, horizon)
    across = (canvas.x - left[:, None]) / (right - left)[:, None]
    edge = (right - left)[:, None] * np.minimum(across, 1 - across)
    mask = np.clip(edge + 0.5, 0, 1) * (canvas.y > horizon)
    grain = noise(rng, canvas.shape, (1.2, 1.2))
    worn = noise(rng, canvas.shape, (60, 12))
    canvas.paint(mask, pick(rng, ROAD_COLORS), 1 + 0.06 * grain + 0.06 * worn, LABELS["road"])
    if rng.random() < 0.75:
        dashes = np.sin(9 / (near + 0.12) + rng.uniform(0, 6)) > rng.uniform(-0.6, 0.6)
        lines = (np.abs(across - 0.5) < 0.014) * dashes
        if rng.random() < 0.6:
            lines = lines + (np.abs(np.abs(across - 0.5) - 0.44) < 0.012)
        paint = pick(rng, ((0.92, 0.92, 0.88), (0.90, 0.76, 0.26)))
        canvas.paint(np.clip(lines, 0, 1) * mask * 0.85, paint)


def paint_building(canvas: Canvas, x: float, y: float, scale: float):
    """A house or a block with its lit front, its darker side, a roof and rows of windows; `scale` is a storey."""
    rng, sun = canvas.rng, canvas.light.sun
    storey = scale * rng.uniform(0.85, 1.15)
    storeys, bays = rng.integers(2, 6), rng.integers(2, 6)
    width, height, depth = bays * storey * 0.85, storeys * storey, storey * rng.uniform(0.3, 1.2)
    left, right, top = x - width / 2, x + width / 2, y - height
    haze = distance_haze(scale)
    color = pick(rng, WALL_COLORS)
    canvas.shadow(x, y, width * 0.6)

    # The side is seen on the side that faces the picture's middle.
    inwards = 1 if x < canvas.width / 2 else -1
    corner = right if inwards == 1 else left
    rise = 0.25 * depth
    back = corner + inwards * depth
    side = canvas.mask(polygons=[[(corner, top), (back, top + rise), (back, y - rise), (corner, y)]])
    front = canvas.mask(polygons=[box(left, top, right, y)])
    surface = wall_texture(canvas, storey)
    lit = 1.08 if sun != inwards else 0.9
    canvas.paint(side, color, surface * (1.98 - lit) * 0.72, LABELS["building"], haze)
    canvas.paint(front, color, surface * lit, LABELS["building"], haze)
    if storeys <= 3 and rng.random() < 0.75:
        peak, eaves = top - rng.uniform(0.5, 1.0) * storey, 0.12 * width
        roof = [(left - eaves, top), (left + width * 0.2, peak), (right - width * 0.2, peak), (right + eaves, top)]
        tiles = 1 + 0.12 * np.sin(canvas.y * 2.2) + 0.05 * noise(rng, canvas.shape, (2, 3))
        canvas.paint(canvas.mask(polygons=[roof]), pick(rng, WALL_COLORS) * 0.75, tiles, LABELS["building"], haze)
    else:
        canvas.paint(canvas.mask(polygons=[box(left, top, right, top + 2)]), color * 0.6, haze=haze)

    panes = window_panes(rng, (left, top, right, y), storeys, bays)
    lit_panes = rng.random(len(panes)) < 0.25
    darks = [pane for pane, is_lit in zip(panes, lit_panes, strict=True) if not is_lit]
    lights = [pane for pane, is_lit in zip(panes, lit_panes, strict=True) if is_lit]
    glass = pick(rng, ((0.16, 0.20, 0.26), (0.30, 0.38, 0.46), (0.10, 0.10, 0.12)))
    canvas.paint(canvas.mask(polygons=darks), glass, 1 + 0.1 * noise(rng, canvas.shape, (6, 6)), haze=haze)
    lamp = pick(rng, ((0.98, 0.84, 0.50), canvas.light.horizon))
    canvas.paint(canvas.mask(polygons=lights), lamp, haze=haze)


def window_panes(rng: np.random.Generator, front: tuple[float, float, float, float], storeys: int, bays: int) -> list:
    """One pane for each storey and bay of a front (left, top, right, bottom), all of one size."""
    left, top, right, bottom = front
    bay, storey = (right - left) / bays, (bottom - top) / storeys
    half_width, half_height = storey * rng.uniform(0.18, 0.28), storey * rng.uniform(0.2, 0.31)
    middles = [(left + (i + 0.5) * bay, top + (k + 0.5) * storey) for k in range(storeys) for i in range(bays)]
    return [box(x - half_width, y - half_height, x + half_width, y + half_height) for x, y in middles]


def wall_texture(canvas: Canvas, storey: float) -> np.ndarray:
    """Bricks, panels or plaster as a factor about 1: (height, width)."""
    rng = canvas.rng
    plaster = 1 + 0.05 * noise(rng, canvas.shape, (10, 8))
    kind = rng.integers(3)
    if kind == 0:
        return plaster
    brick_height, brick_width = (2.6, 6.0) if kind == 1 else (storey, storey * 0.85)
    course = (canvas.y / brick_height).astype(np.int32)
    column = ((canvas.x + (course % 2) * (brick_width / 2) * (kind == 1)) / brick_width).astype(np.int32)
    tones = rng.uniform(0.85, 1.15, (64, 64))
    return plaster * tones[course % 64, column % 64]


def paint_tree(canvas: Canvas, x: float, y: float, scale: float):
    """A broad crown of many balls or a conifer of jagged tiers on a trunk; `scale` is the crown's half-width."""
    rng, sun = canvas.rng, canvas.light.sun
    radius = scale * rng.uniform(0.8, 1.2)
    haze = distance_haze(scale)
    color = pick(rng, LEAF_COLORS)
    trunk_width, trunk = radius * 0.14, radius * rng.uniform(0.4, 0.9)
    canvas.shadow(x, y, radius)
    bark = [(x - trunk_width, y), (x - trunk_width * 0.6, y - trunk - radius * 0.4)]
    bark += [(x + trunk_width * 0.6, y - trunk - radius * 0.4), (x + trunk_width, y)]
    stripes = 1 + 0.2 * noise(rng, canvas.shape, (6, 1.2))
    canvas.paint(
        canvas.mask(polygons=[bark]),
        pick(rng, ((0.34, 0.24, 0.16), (0.46, 0.42, 0.38))),
        stripes,
        LABELS["tree"],
        haze,
    )

    if rng.random() < 0.35:
        tiers, height = 4, radius * 2.8
        polygons = []
        for tier in range(tiers):
            base, half = y - trunk * 0.5 - tier * height / 5, radius * (1 - tier / 5) * 0.8
            polygons.append([(x - half, base), (x, base - height * 0.42), (x + half, base)])
        mask, middle = canvas.mask(polygons=polygons), y - height / 2
    else:
        middle = y - trunk - radius * 0.8
        angles = rng.uniform(0, 2 * np.pi, 12)
        reach, size = radius * rng.uniform(0.2, 0.65, 12), radius * rng.uniform(0.3, 0.5, 12)
        centers = [(x + r * np.cos(a), middle + 0.8 * r * np.sin(a)) for r, a in zip(reach, angles, strict=True)]
        balls = [(cx - s, cy - s, cx + s, cy + s) for (cx, cy), s in zip(centers, size, strict=True)]
        mask = canvas.mask(ellipses=balls)
    leaves = noise(rng, canvas.shape, (3.2, 3.2)) + 0.6 * noise(rng, canvas.shape, (1.5, 1.5))
    facing = (sun * (canvas.x - x) - (canvas.y - middle)) / radius
    canvas.paint(mask, color, np.clip(1 + 0.24 * leaves + 0.22 * facing, 0.3, 1.8), LABELS["tree"], haze)


def paint_car(canvas: Canvas, x: float, y: float, scale: float):
    """A car seen from the side; `scale` is its height."""
    rng = canvas.rng
    height, length = scale, scale * rng.uniform(2.1, 2.7)
    wheel, facing = 0.2 * height, rng.choice((-1, 1))
    canvas.shadow(x, y, length * 0.5, 0.55)

    def place(points):
        return [(x + facing * px * length, y - py * height) for px, py in points]

    nose, hood, roof = rng.uniform(0.42, 0.62), rng.uniform(0.12, 0.24), rng.uniform(0.28, 0.44)
    body = place([(-0.5, 0.16), (-0.5, 0.56), (-roof, 0.6), (hood, 0.6), (0.46, nose * 0.95), (0.5, 0.2)])
    cabin = place([(-roof, 0.58), (-roof + 0.09, 1.0), (hood - 0.14, 1.0), (hood + 0.02, 0.58)])
    color = pick(rng, PAINT_COLORS)
    shine = np.clip(1.25 - 0.6 * (canvas.y - y + height) / height, 0.6, 1.3)
    canvas.paint(canvas.mask(polygons=[body, cabin]), color, shine, LABELS["car"])
    pillar = (-roof + hood) / 2
    panes = [
        place([(-roof + 0.04, 0.64), (-roof + 0.1, 0.93), (pillar - 0.03, 0.93), (pillar - 0.03, 0.64)]),
        place([(pillar + 0.01, 0.64), (pillar + 0.01, 0.93), (hood - 0.15, 0.93), (hood - 0.03, 0.64)]),
    ]
    canvas.paint(canvas.mask(polygons=panes), (0.20, 0.26, 0.32), shine)
    lamps = [place([(0.44, 0.4), (0.49, 0.4), (0.49, 0.5), (0.44, 0.5)])]
    canvas.paint(canvas.mask(polygons=lamps), (0.98, 0.94, 0.75))
    hubs = [(x + side * 0.3 * length, y - wheel) for side in (-1, 1)]
    for share, tone in ((1.0, 0.08), (0.5, 0.62)):
        r = wheel * share
        wheels = canvas.mask(ellipses=[(cx - r, cy - r, cx + r, cy + r) for cx, cy in hubs])
        canvas.paint(wheels, (tone, tone, tone), label=LABELS["car"])


def paint_person(canvas: Canvas, x: float, y: float, scale: float):
    """Someone standing or walking; `scale` is the height."""
    rng = canvas.rng
    height = scale * rng.uniform(0.85, 1.1)
    canvas.shadow(x, y, height * 0.2, 0.5)

    def limb(x0, y0, x1, y1, half):
        return [
            (x + height * (px + side * half), y - height * py)
            for px, py, side in ((x0, y0, -1), (x1, y1, -1), (x1, y1, 1), (x0, y0, 1))
        ]

    stride, swing = rng.uniform(0.03, 0.11), rng.uniform(0.15, 0.24)
    legs = [limb(-0.06, 0.5, -stride - 0.02, 0, 0.06), limb(0.06, 0.5, stride + 0.02, 0, 0.06)]
    arms = [limb(-0.13, 0.8, -swing, 0.45, 0.04), limb(0.13, 0.8, swing, 0.45, 0.04)]
    torso = [
        (x + height * px, y - height * py) for px, py in ((-0.17, 0.82), (0.17, 0.82), (0.14, 0.46), (-0.14, 0.46))
    ]
    folds = 1 + 0.1 * noise(rng, canvas.shape, (6, 3)) + 0.012 * canvas.light.sun * (canvas.x - x)
    shirt, skin, person = pick(rng, PAINT_COLORS), pick(rng, SKIN_COLORS, 0.03), LABELS["person"]
    canvas.paint(canvas.mask(polygons=legs), pick(rng, PAINT_COLORS) * 0.7, folds, person)
    canvas.paint(canvas.mask(polygons=arms), shirt * 0.85, folds, person)
    canvas.paint(canvas.mask(polygons=[torso]), shirt, folds, person)
    head, neck = height * 0.1, y - height * 0.92
    canvas.paint(
        canvas.mask(ellipses=[(x - head, neck - head * 1.2, x + head, neck + head * 1.1)]), skin, label=person
    )
    hair = canvas.mask(ellipses=[(x - head * 1.05, neck - head * 1.35, x + head * 1.05, neck - head * 0.45)])
    canvas.paint(hair, pick(rng, ((0.10, 0.08, 0.06), (0.36, 0.22, 0.12), (0.80, 0.66, 0.36))), label=person)


def paint_fence(canvas: Canvas, x: float, y: float, scale: float):
    """Boards side by side, pointed or level, with dark gaps, over a part of the width; `scale` is the height."""
    rng = canvas.rng
    height, half = scale * rng.uniform(0.85, 1.2), canvas.width * rng.uniform(0.2, 0.45)
    board, slope = max(3.5, height * rng.uniform(0.14, 0.24)), rng.uniform(-0.06, 0.06)
    point = board * rng.choice((0.0, 0.5))
    starts = np.arange(x - half, x + half, board)
    boards, tones = [], rng.uniform(0.85, 1.12, len(starts))
    for start in starts:
        foot = y + slope * (start - x)
        top = foot - height
        outline = [(start, foot), (start, top), (start + board / 2, top - point)]
        boards.append([*outline, (start + board, top), (start + board, foot)])
    mask = canvas.mask(polygons=boards)
    within = (canvas.x - starts[0]) / board
    index = np.clip(within.astype(np.int32), 0, len(starts) - 1)
    shade = tones[index] * (1 + 0.06 * noise(rng, canvas.shape, (9, 1.3)))
    gap = within - np.floor(within)
    shade = shade * np.where(gap < 0.9 / board + 0.08, 0.4, 1.0)
    rail_distance = np.abs(canvas.y - (y + slope * (canvas.x - x)) + height * 0.72)
    shade = shade * np.where(rail_distance < 0.05 * height, 0.75, 1.0)
    foot = [(starts[0], y), (starts[-1] + board, y), (starts[-1], y + 4), (starts[0], y + 4)]
    canvas.paint(0.3 * canvas.mask(polygons=[foot]), BLACK)
    canvas.paint(mask, pick(rng, FENCE_COLORS), shade, LABELS["fence"])


def paint_unknown(canvas: Canvas, x: float, y: float, scale: float):
    """Something that is none of the classes (a parasol, a crate, a boulder), labelled 0; `scale` is its height."""
    rng = canvas.rng
    half, kind = scale * rng.uniform(0.4, 0.6), rng.integers(3)
    color = pick(rng, PAINT_COLORS)
    canvas.shadow(x, y, half)
    if kind == 0:
        canvas.paint(canvas.mask(polygons=[box(x - 1, y - scale, x + 1, y)]), (0.8, 0.8, 0.8), label=OTHER)
        cap = [
            (x + 1.3 * half * np.cos(a), y - scale * 0.7 - 0.5 * scale * np.sin(a)) for a in np.linspace(0, np.pi, 12)
        ]
        stripes = np.where(np.sin((canvas.x - x) * 7 / half) > 0, 1.0, 1.5)
        canvas.paint(canvas.mask(polygons=[cap]), color, stripes, OTHER)
    elif kind == 1:
        slats = np.where((canvas.y - y) % 6 < 1.2, 0.55, 1.0)
        canvas.paint(
            canvas.mask(polygons=[box(x - half, y - 2 * half, x + half, y)]), pick(rng, FENCE_COLORS), slats, OTHER
        )
    else:
        angles = np.linspace(0, np.pi, 9)
        reach = scale * rng.uniform(0.6, 0.9, 9)
        rock = [(x + 1.1 * r * np.cos(a), y - r * np.sin(a)) for r, a in zip(reach, angles, strict=True)]
        facets = 1 + 0.16 * fractal_noise(rng, canvas.shape, (9, 9)) - 0.02 * (canvas.y - y + half)
        canvas.paint(canvas.mask(polygons=[rock]), pick(rng, MOUNTAIN_COLORS), facets, OTHER)
