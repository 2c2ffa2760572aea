# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The generated data set "fields": farmland from above in red, green, blue and near infrared, as GeoTIFFs of 16 bits.

Plants under stress reflect less near infrared and look like the others in red, green and blue. In near infrared alone
they look like soil, conifers or a shadow, and the light differs from picture to picture; together the bands tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import datasets
import numpy as np

from . import closeups, painting
from .closeups import blob, relief, stroke, uneven_light, wander
from .generated import load_generated, paint_examples
from .painting import Canvas, Light, fractal_noise, mix, noise

BANDS = ("red", "green", "blue", "near infrared")
NEAR_INFRARED = BANDS.index("near infrared")
CLASS_NAMES = ("soil", "crop", "stressed crop", "water", "woods")
SOIL, CROP, STRESSED_CROP, WATER, WOODS = range(len(CLASS_NAMES))
IGNORED = 255  # the label where a picture has no data
ZERO_IS_OTHER = False
NUM_PICTURES = {"train": 160, "validation": 48}
SEED = 2026

SIDE = 192  # of a picture, in pixels of a metre
REFLECTANCE_SCALE = 10_000
NODATA = 0
NODATA_SHARE = 0.12  # of the pictures

# Reflectances in 0..1, in the order of BANDS.
Reflectance = tuple[float, float, float, float]
BLACK = (0.0, 0.0, 0.0, 0.0)
SOILS = ((0.16, 0.12, 0.09, 0.22), (0.22, 0.17, 0.12, 0.30), (0.10, 0.085, 0.07, 0.14), (0.27, 0.23, 0.18, 0.35))
GRAVELS = ((0.28, 0.25, 0.21, 0.33), (0.22, 0.20, 0.18, 0.26), (0.34, 0.31, 0.27, 0.38))
CROPS = (
    (0.06, 0.11, 0.05, 0.44), (0.04, 0.08, 0.035, 0.48), (0.20, 0.22, 0.06, 0.46), (0.15, 0.15, 0.08, 0.40),
    (0.03, 0.07, 0.03, 0.50), (0.09, 0.14, 0.07, 0.46),
)  # fmt: skip
TREES = ((0.03, 0.05, 0.03, 0.30), (0.045, 0.065, 0.035, 0.38), (0.02, 0.035, 0.025, 0.20))
WATERS = ((0.02, 0.035, 0.05, 0.012), (0.03, 0.055, 0.045, 0.02), (0.10, 0.09, 0.07, 0.04))
HAZE = np.asarray((0.3, 0.5, 1.0, 0.1), dtype=np.float32)  # how much of the air's light each band gets


class Land(Canvas):
    """A canvas of four bands: its `pixels`, float32 (height, width, 4), are reflectances; its colours are too."""

    def __post_init__(self):
        super().__post_init__()
        self.pixels = np.zeros((*self.shape, len(BANDS)), dtype=np.float32)


def new_land(rng: np.random.Generator) -> Land:
    return Land(SIDE, SIDE, Light(BLACK, BLACK, int(rng.choice((-1, 1))), 0.0), rng)


def pick(rng: np.random.Generator, reflectances: tuple[Reflectance, ...]) -> np.ndarray:
    """One of `reflectances`, float32 (4,), each band changed a little, and all of them together."""
    chosen = np.asarray(reflectances[rng.integers(len(reflectances))])
    return (chosen * rng.uniform(0.9, 1.1, len(BANDS)) * rng.uniform(0.85, 1.15)).astype(np.float32)


def cut(corners: np.ndarray, point: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """What of a convex polygon (n, 2) lies where `normal` (2,) points to from a line through `point` (2,)."""
    heights = (corners - point) @ normal
    kept = []
    for index in range(len(corners)):
        (start, end), (low, high) = corners[[index - 1, index]], heights[[index - 1, index]]
        if (low < 0) != (high < 0):
            kept.append(start + (end - start) * low / (low - high))
        if high >= 0:
            kept.append(end)
    return np.asarray(kept).reshape(-1, 2)


def edges_of(corners: np.ndarray) -> np.ndarray:
    """The edges (n, 2) of a polygon (n, 2); edge `i` sets out from corner `i`."""
    return np.roll(corners, -1, axis=0) - corners


def inset(corners: np.ndarray, gap: float) -> np.ndarray:
    """A convex polygon (n, 2), clockwise on the screen, without the `gap` pixels along its edges."""
    inner = corners
    for corner, edge in zip(corners, edges_of(corners), strict=True):
        inward = np.asarray((-edge[1], edge[0])) / max(np.linalg.norm(edge), 1e-9)
        inner = cut(inner, corner + gap * inward, inward)
    return inner


def area_of(corners: np.ndarray) -> float:
    x, y = corners.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def parcels(rng: np.random.Generator, corners: np.ndarray, area: float) -> list[np.ndarray]:
    """A convex polygon (n, 2) cut across its longest edge, and its parts again, into parts of up to `area` pixels."""
    if area_of(corners) < area * rng.uniform(0.6, 1.4):
        return [corners]
    edges = edges_of(corners)
    longest = int(np.linalg.norm(edges, axis=1).argmax())
    point = corners[longest] + edges[longest] * rng.uniform(0.35, 0.65)
    angle = np.arctan2(*edges[longest][::-1]) + rng.uniform(-0.1, 0.1)
    normal = np.asarray((np.cos(angle), np.sin(angle)))
    return parcels(rng, cut(corners, point, normal), area) + parcels(rng, cut(corners, point, -normal), area)


def strips(rng: np.random.Generator, corners: np.ndarray, width: float) -> list[np.ndarray]:
    """A convex polygon (n, 2) cut into strips side by side along its longest edge, each about `width` pixels wide."""
    edges = edges_of(corners)
    longest = int(np.linalg.norm(edges, axis=1).argmax())
    length = np.linalg.norm(edges[longest])
    normal = edges[longest] / length
    found, rest = [], corners
    for share in np.arange(width, length - width / 2, width) / length:
        point = corners[longest] + edges[longest] * (share + rng.uniform(-0.2, 0.2) * width / length)
        found.append(cut(rest, point, -normal))
        rest = cut(rest, point, normal)
    return [strip for strip in (*found, rest) if len(strip) >= 3]


def rows_along(land: Land, corners: np.ndarray) -> np.ndarray:
    """How far each pixel is across the rows of a field (n, 2), which follow its longest edge: (height, width)."""
    edges = edges_of(corners)
    longest = int(np.linalg.norm(edges, axis=1).argmax())
    right, down = edges[longest] / np.linalg.norm(edges[longest])
    crooked = land.rng.uniform(0, 1.5) * noise(land.rng, land.shape, (60, 60))
    return down * land.x - right * land.y + crooked


def paint_soil(land: Land, mask: np.ndarray, across: np.ndarray):
    """Ploughed: furrows, clods, and wet places that are darker in all bands."""
    rng = land.rng
    furrows = np.sin(across * 2 * np.pi / rng.uniform(3, 8)) * rng.uniform(0.02, 0.12)
    wet = np.clip(0.5 * fractal_noise(rng, land.shape, (50, 50)), 0, 1) * rng.uniform(0, 0.45)
    clods = 0.06 * noise(rng, land.shape, (2, 2))
    land.paint(mask, pick(rng, SOILS), (1 + furrows + clods) * (1 - wet), label=SOIL)


def paint_crop(land: Land, mask: np.ndarray, across: np.ndarray):
    """Rows that hide the soil more or less, and the tracks of the tractor."""
    rng = land.rng
    rows = np.sin(across * 2 * np.pi / rng.uniform(3, 6)) * rng.uniform(0.02, 0.14)
    growth = rng.uniform(0.02, 0.08) * fractal_noise(rng, land.shape, (40, 40)) + 0.05 * noise(rng, land.shape, (2, 2))
    cover = rng.uniform(0.72, 0.95) + rows + growth
    spacing = rng.uniform(22, 40)
    for wheel in (0, 4):
        track = np.abs((across + wheel) % spacing - spacing / 2)
        cover = cover - 0.35 * np.clip(1.3 - track, 0, 1)
    color = mix(pick(rng, SOILS), pick(rng, CROPS), np.clip(cover, 0, 1))
    land.paint(mask, color, 1 + 0.05 * noise(rng, land.shape, (1.5, 1.5)), label=CROP)


def stress_patches(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """How much the plants suffer at each place, were they to grow there: 0..1, (height, width)."""
    if rng.random() < 0.2:
        return np.zeros(shape, dtype=np.float32)
    wave = fractal_noise(rng, shape, (rng.uniform(20, 45),) * 2)
    return np.clip((wave - np.quantile(wave, rng.uniform(0.6, 0.9))) * 8 + 0.5, 0, 1)


def stress(land: Land, mask: np.ndarray):
    """Take near infrared from the plants of a field in patches, and nothing from what the eye sees."""
    # A generator of its own: red, green and blue are the same to the bit whether or where plants suffer.
    rng = np.random.default_rng(land.rng.integers(2**63))
    patches = stress_patches(rng, land.shape)
    land.pixels[..., NEAR_INFRARED] *= 1 - rng.uniform(0.5, 0.62) * patches * mask
    land.labels[(mask >= 0.5) & (patches >= 0.5)] = STRESSED_CROP


def paint_woods(land: Land, mask: np.ndarray):
    """Crowns lit from one side, and the shadow that they throw on what is beside them."""
    rng = land.rng
    ragged = np.clip(2 * mask - 0.5 + 0.4 * noise(rng, land.shape, (4, 4)), 0, 1) * (mask > 0)
    reach = int(rng.integers(2, 6))
    around = np.pad(ragged, reach, mode="edge")
    down, right = reach // 2, -reach * land.light.sun
    shadow = np.roll(around, (down, right), axis=(0, 1))[reach:-reach, reach:-reach]
    land.paint(shadow * 0.55, BLACK)
    crowns = noise(rng, land.shape, (rng.uniform(3, 5),) * 2) + 0.4 * noise(rng, land.shape, (1.5, 1.5))
    shade = relief(land, crowns, rng.uniform(0.4, 0.7)) * np.clip(1 + 0.3 * crowns, 0.35, 1.5)
    color = mix(pick(rng, TREES), pick(rng, TREES), np.clip(0.5 + noise(rng, land.shape, (6, 6)), 0, 1))
    land.paint(ragged, color, shade, label=WOODS)


def paint_hedge(land: Land, corners: np.ndarray):
    """Trees along one edge of a parcel (n, 2)."""
    rng = land.rng
    index = int(rng.integers(len(corners)))
    start, edge = corners[index], edges_of(corners)[index]
    count = max(2, int(np.linalg.norm(edge) / 4))
    points = start + np.linspace(0, 1, count)[:, None] * edge + rng.uniform(-1, 1, (count, 2))
    paint_woods(land, stroke(land, points, rng.uniform(3, 8, count)))


def paint_water(land: Land, mask: np.ndarray):
    rng = land.rng
    banks = np.clip(2.5 * mask, 0, 1) * 0.25
    land.paint(banks, pick(rng, SOILS))
    depth = 1 + 0.12 * fractal_noise(rng, land.shape, (40, 40)) + 0.04 * noise(rng, land.shape, (1.5, 3))
    land.paint(mask, pick(rng, WATERS), np.clip(depth, 0.5, 1.6), label=WATER)


def across_picture(rng: np.random.Generator, turn: float) -> np.ndarray:
    """Points (n, 2) of a winding line from beyond one side of a picture to beyond the other."""
    angle = rng.uniform(0, 2 * np.pi)
    forward = np.asarray((np.cos(angle), np.sin(angle)))
    aside = np.asarray((-forward[1], forward[0])) * rng.uniform(-0.25, 0.25) * SIDE
    return wander(rng, tuple(SIDE / 2 + aside - 0.85 * SIDE * forward), angle, 1.7 * SIDE, turn=turn, pull=0.05)


def paint_river(land: Land):
    rng = land.rng
    points = across_picture(rng, turn=0.12)
    widths = rng.uniform(10, 26) * np.clip(1 + 0.25 * noise(rng, (1, len(points)), (1, 12))[0], 0.5, 1.6)
    paint_woods(land, stroke(land, points, widths + rng.uniform(0, 14)) * (noise(rng, land.shape, (25, 25)) > 0.1))
    paint_water(land, stroke(land, points, widths))


def paint_lakes(land: Land):
    rng = land.rng
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(0, SIDE, 2)
        paint_water(land, blob(land, x, y, rng.uniform(12, 38)))


def paint_forest(land: Land):
    rng = land.rng
    wave = fractal_noise(rng, land.shape, (70, 70))
    edge = np.quantile(wave, rng.uniform(0.55, 0.85))
    paint_woods(land, np.clip((wave - edge) * 8 + 0.5, 0, 1))


def paint_road(land: Land):
    points = across_picture(land.rng, turn=0.03)
    width = np.full(len(points), land.rng.uniform(2.5, 6))
    land.paint(stroke(land, points, width), pick(land.rng, GRAVELS), label=SOIL)


# What lies between the fields. "strips" has nothing, and narrow fields instead.
LANDSCAPES = {"strips": None, "river": paint_river, "lakes": paint_lakes, "forest": paint_forest}


def paint_fields(land: Land, are_narrow: bool):
    """Parcels between paths, each with a crop, with bare soil or with trees."""
    rng = land.rng
    grain = 1 + 0.08 * fractal_noise(rng, land.shape, (8, 8))
    land.paint(np.ones(land.shape, np.float32), pick(rng, GRAVELS), grain, label=SOIL)
    angle = rng.uniform(0, np.pi)
    turned = np.asarray(((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))))
    square = np.asarray(((-1, -1), (1, -1), (1, 1), (-1, 1))) * 0.75 * SIDE
    blocks = parcels(rng, square @ turned + SIDE / 2, rng.uniform(0.1, 0.35) * SIDE**2)
    if are_narrow:
        width = rng.uniform(14, 30)
        blocks = [strip for block in blocks for strip in strips(rng, block, width)]
    for block in blocks:
        corners = inset(block, rng.uniform(0.6, 2.5))
        mask = land.mask(polygons=[[tuple(corner) for corner in corners]] if len(corners) >= 3 else [])
        if not mask.any():
            continue
        kind = rng.choice(("crop", "soil", "woods"), p=(0.68, 0.22, 0.1))
        if kind == "crop":
            paint_crop(land, mask, rows_along(land, corners))
            stress(land, mask)
        elif kind == "soil":
            paint_soil(land, mask, rows_along(land, corners))
        else:
            paint_woods(land, mask)
        if rng.random() < 0.2:
            paint_hedge(land, block)


def develop(land: Land) -> np.ndarray:
    """Reflectances times 10,000 as a sensor has them, uint16 (height, width, 4): under a light of its own, hazy."""
    rng = land.rng
    light = uneven_light(land) * rng.uniform(0.6, 1.4)
    bands = rng.uniform(0.93, 1.07, len(BANDS)).astype(np.float32)
    grain = rng.uniform(0.002, 0.006) * rng.standard_normal(land.pixels.shape, dtype=np.float32)
    values = land.pixels * light[..., None] * bands + rng.uniform(0, 0.03) * HAZE + grain
    return np.clip(REFLECTANCE_SCALE * values, NODATA + 1, np.iinfo(np.uint16).max).round().astype(np.uint16)


def without_data(land: Land) -> np.ndarray:
    """Where a scene ends within the picture, bool (height, width): a corner, or a strip along a side."""
    rng = land.rng
    angle = rng.integers(4) * np.pi / 2 + rng.choice((0.15, np.pi / 4)) + rng.uniform(-0.1, 0.1)
    far = np.cos(angle) * land.x + np.sin(angle) * land.y
    return far > np.quantile(far, rng.uniform(0.7, 0.95))


def paint_land(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str]:
    """A picture uint16 (height, width, 4), its labels uint8 (height, width) and the kind of landscape."""
    kind = str(rng.choice(list(LANDSCAPES)))
    land = new_land(rng)
    paint_fields(land, are_narrow=kind == "strips")
    if LANDSCAPES[kind] is not None:
        LANDSCAPES[kind](land)
    if rng.random() < 0.5:
        paint_road(land)
    if rng.random() < 0.3:
        x, y = rng.uniform(0, SIDE, 2)
        paint_water(land, blob(land, x, y, rng.uniform(4, 14)))
    pixels, labels = develop(land), land.labels
    if rng.random() < NODATA_SHARE:
        is_missing = without_data(land)
        pixels[is_missing], labels[is_missing] = NODATA, IGNORED
    return pixels, labels, kind


def encode_geotiff(pixels: np.ndarray, index: int) -> dict:
    """Picture `index`, uint16 (height, width, 4), as the `bytes` of a GeoTIFF, and a name as their `path`."""
    from rasterio import Affine, MemoryFile
    from rasterio.enums import ColorInterp

    height, width, count = pixels.shape
    profile = {
        **{"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": pixels.dtype.name},
        **{"nodata": NODATA, "compress": "deflate", "predictor": 2, "photometric": "rgb"},
        # Side by side in the sea south of Ghana, where nobody takes them for a place.
        **{"crs": "EPSG:32631", "transform": Affine(1, 0, 300_000 + 2 * SIDE * index, 0, -1, 100_000)},
    }
    with MemoryFile() as memory:
        with memory.open(**profile) as dataset:
            dataset.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined)
            dataset.write(pixels.transpose(2, 0, 1))
            dataset.descriptions = BANDS
            dataset.scales = (1 / REFLECTANCE_SCALE,) * count
            dataset.update_tags(TIFFTAG_IMAGEDESCRIPTION='painted farmland of the data set "fields" of van_hf')
        return {"bytes": bytes(memory.getbuffer()), "path": f"{index:06}.tif"}


def check_rasterio() -> None:
    """Raise a ValueError if rasterio, of the extra `raster`, is missing."""
    if find_spec("rasterio") is None:
        raise ValueError('the data set "fields" needs the package rasterio: pip install "van_hf[raster]"')


def generate_examples(split: str) -> Iterator[dict]:
    """The examples of a split ("train" or "validation"); picture `i` depends on SEED, the split and `i` alone.

    Raises:
        ValueError: rasterio is missing.
    """
    check_rasterio()
    return paint_examples(paint_land, SEED, NUM_PICTURES, split, encode_geotiff)


def load() -> datasets.DatasetDict:
    """The data set, generated at the first call and kept in `datasets`' cache; see `generated.load_generated`.

    Its pictures are not decoded, `image` is {"bytes": a GeoTIFF's, "path": a name}: of such a file PIL gives three
    bands, and the upper 8 bits, without a word.

    Raises:
        ValueError: rasterio is missing.
    """
    check_rasterio()
    sources = (__file__, closeups.__file__, painting.__file__)
    return load_generated("fields", generate_examples, NUM_PICTURES, sources, decode=False)
