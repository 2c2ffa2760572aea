# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What "cracks" and "leaves" share: surfaces seen from near, and strokes that wander over them."""

from __future__ import annotations

import numpy as np

from .painting import Canvas, Light, noise

DAYLIGHT = (1.0, 1.0, 1.0)


def new_canvas(rng: np.random.Generator) -> Canvas:
    """An empty picture of "scenes"' sizes: 176 to 260 pixels by 132 to 176, one in four of them upright."""
    long_side, short_side = int(rng.integers(176, 261)), int(rng.integers(132, 177))
    height, width = (short_side, long_side) if rng.random() < 0.75 else (long_side, short_side)
    return Canvas(height, width, Light(DAYLIGHT, DAYLIGHT, int(rng.choice((-1, 1))), 0.0), rng)


def wander(
    rng: np.random.Generator,
    start: tuple[float, float],
    angle: float,
    length: float,
    step: float = 3.0,
    turn: float = 0.35,
    pull: float = 0.1,
) -> np.ndarray:
    """Points (n, 2), as x and y in pixels, of a line `length` long that sets out at `angle` (radians).

    Each `step` it turns by about `turn` radians, and is drawn back to `angle` by the share `pull`.
    """
    steps = max(2, round(length / step))
    heading, headings = angle, []
    for _ in range(steps):
        heading += turn * rng.standard_normal() - pull * (heading - angle)
        headings.append(heading)
    moves = step * np.stack((np.cos(headings), np.sin(headings)), axis=1)
    return np.concatenate((np.zeros((1, 2)), moves.cumsum(axis=0))) + np.asarray(start)


def stroke(canvas: Canvas, points: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Coverage in 0..1, float32 (height, width), of a line through `points` (n, 2), `widths` (n,) pixels wide."""
    moves = np.gradient(points, axis=0)
    lengths = np.linalg.norm(moves, axis=1, keepdims=True)
    across = np.stack((-moves[:, 1], moves[:, 0]), axis=1) / np.maximum(lengths, 1e-9)
    left, right = points + across * widths[:, None] / 2, points - across * widths[:, None] / 2
    quads = [(left[i], left[i + 1], right[i + 1], right[i]) for i in range(len(points) - 1)]
    radii = widths / 2
    joints = np.concatenate((points - radii[:, None], points + radii[:, None]), axis=1)
    return canvas.mask(polygons=[[tuple(corner) for corner in quad] for quad in quads], ellipses=joints)


def blob(canvas: Canvas, x: float, y: float, radius: float, roughness: float = 0.35) -> np.ndarray:
    """Coverage in 0..1, float32 (height, width), of a spot with a rough edge."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    wave = noise(canvas.rng, (1, 25), (1, 4))[0, :24]
    radii = radius * np.clip(1 + roughness * wave, 0.3, 2)
    return canvas.mask(polygons=[list(zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True))])


def relief(canvas: Canvas, height_map: np.ndarray, strength: float) -> np.ndarray:
    """Shade, a factor float32 (height, width), of a surface that light meets from the left or right above."""
    down, right = np.gradient(height_map)
    return np.clip(1 + strength * (down - canvas.light.sun * right), 0.4, 1.6).astype(np.float32)


def uneven_light(canvas: Canvas) -> np.ndarray:
    """A factor float32 (height, width): light that falls off to one side, and perhaps the edge of a shadow."""
    rng = canvas.rng
    angle = rng.uniform(0, 2 * np.pi)
    across = (np.cos(angle) * canvas.x + np.sin(angle) * canvas.y) / max(canvas.shape)
    across = across - across.mean()
    light = 1 + rng.uniform(0, 0.5) * across
    if rng.random() < 0.3:
        edge = across + 0.04 * noise(rng, canvas.shape, (30, 30)) - rng.uniform(-0.2, 0.2)
        light *= 1 - rng.uniform(0.25, 0.5) * np.clip(edge * rng.uniform(20, 120) + 0.5, 0, 1)
    return light.astype(np.float32)


def develop(canvas: Canvas, light: np.ndarray) -> np.ndarray:
    """The canvas as a picture, uint8 (height, width, 3): under `light`, with a tint and a camera's grain."""
    rng = canvas.rng
    tint = 1 + rng.uniform(-0.08, 0.08, 3)
    grain = rng.uniform(0.005, 0.03) * rng.standard_normal((*canvas.shape, 1), dtype=np.float32)
    pixels = canvas.pixels * light[..., None] * tint.astype(np.float32) + grain
    return (255 * np.clip(pixels, 0, 1)).round().astype(np.uint8)
