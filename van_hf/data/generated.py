# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What the generated data sets share: a painter of one picture becomes a data set in `datasets`' cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

# A picture (height, width, bands), its raw labels uint8 (height, width) and its category, all from the generator.
Painter = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray, str]]
# What the column `image` holds of a picture (height, width, bands) and its number in the split.
Encoder = Callable[[np.ndarray, int], Image.Image | dict]


def encode_bmp(pixels: np.ndarray, index: int) -> Image.Image:
    """A picture uint8 (height, width, 3) as `datasets` keeps it quickly decoded."""
    image = Image.fromarray(pixels)
    # So datasets keeps it. PNG, its choice, is two fifths smaller, but decoding it was half the time of a sample.
    image.format = "BMP"
    return image


def paint_examples(
    paint: Painter, seed: int, num_pictures: Mapping[str, int], split: str, encode: Encoder = encode_bmp
) -> Iterator[dict]:
    """The examples of a split of `num_pictures`; picture `i` depends on `paint`, `seed`, the split and `i` alone."""
    for index in range(num_pictures[split]):
        rng = np.random.default_rng([seed, list(num_pictures).index(split), index])
        pixels, labels, category = paint(rng)
        image = encode(pixels, index)
        yield {"image": image, "annotation": Image.fromarray(labels), "scene_category": category}


def load_generated(
    name: str,
    generate_examples: Callable[[str], Iterator[dict]],
    splits: Mapping[str, int],
    sources: tuple[str, ...],
    decode: bool = True,
) -> datasets.DatasetDict:
    """The data set, generated at the first call (some seconds) and kept in `datasets`' cache (HF_DATASETS_CACHE).

    Args:
        name: what the cache knows it by.
        generate_examples: the examples of a split: `image`, `annotation` (one channel), `scene_category`.
        splits: the names of the splits.
        sources: the files of the code that paints it; pictures are generated anew where these change.
        decode: whether the column `image` gives pictures, as PIL reads them, or {"bytes", "path"}.
    """
    features = datasets.Features(
        image=datasets.Image(decode=decode), annotation=datasets.Image(), scene_category=datasets.Value("string")
    )
    # datasets would know the generator by its name only, and keep pictures that the code no longer paints.
    digest = hashlib.sha256()
    for source in sources:
        digest.update(Path(source).read_bytes())
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_generator(
                generate_examples,
                features=features,
                gen_kwargs={"split": split},
                split=datasets.NamedSplit(split),
                fingerprint=f"van_hf_{name}_{split}_{digest.hexdigest()[:16]}",
            )
            for split in splits
        }
    )
