# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What the values of each band of pictures are like, by which they are normalized."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..bands import open_bands
from ..files import read_json
from ..model.image_processing_van import check_band_values, check_bands
from .loading import SegmentationDataset
from .progress import reading_progress
from .samples import named_errors

# Values that are read at once, of a picture of any size.
BLOCK_SIZE = 2**22


@dataclass(frozen=True)
class BandStatistics:
    """What the values of each band are like, over all pixels that have data.

    Attributes:
        bands: their numbers, from 1.
        mean, std, minimum, maximum: of each of them, in the units of the files; `std` is that of the population.
    """

    bands: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...] | None = None
    maximum: tuple[float, ...] | None = None

    def __post_init__(self):
        check_bands(self.bands)
        for name in ("mean", "std", "minimum", "maximum"):
            values = getattr(self, name)
            if values is not None or name in ("mean", "std"):
                check_band_values(self.bands, name, values, are_deviations=name == "std")

    def select(self, bands: Sequence[int]) -> BandStatistics:
        """Return the statistics of some of the bands, in another order.

        Raises:
            ValueError: one of them is not there.
        """
        if missing := [str(band) for band in bands if band not in self.bands]:
            raise ValueError(f"there are the bands {list(self.bands)}, and not {', '.join(missing)}")
        places = [self.bands.index(band) for band in bands]
        chosen = {
            name: tuple(values[place] for place in places)
            for name in ("mean", "std", "minimum", "maximum")
            if (values := getattr(self, name)) is not None
        }
        return BandStatistics(tuple(bands), **chosen)

    @classmethod
    def from_dict(cls, content: dict) -> BandStatistics:
        """Return the statistics that an object of JSON tells of: {"bands": [...], "mean": [...], "std": [...]}.

        Raises:
            ValueError: it tells of none.
        """
        names = ("bands", "mean", "std", "minimum", "maximum")
        known = {name: content[name] for name in names if content.get(name) is not None}
        if not {"mean", "std"} <= known.keys() or not all(isinstance(values, list) for values in known.values()):
            raise ValueError('it must hold lists: {"bands": [...], "mean": [...], "std": [...]}')
        return cls(**{name: tuple(values) for name, values in known.items()})

    def to_dict(self) -> dict:
        """Return what [`from_dict`] takes."""
        return {name: value and list(value) for name, value in asdict(self).items() if value is not None}

    def describe(self) -> str:
        """Return a table of the bands."""
        lines = [f"{'band':>6} {'mean':>12} {'std':>12} {'minimum':>12} {'maximum':>12}"]
        for number, band in enumerate(self.bands):
            values = (getattr(self, name) for name in ("mean", "std", "minimum", "maximum"))
            cells = " ".join(f"{'' if of_all is None else f'{of_all[number]:.6g}':>12}" for of_all in values)
            lines.append(f"{band:>6} {cells}")
        return "\n".join(lines)


def measure_bands(dataset: SegmentationDataset) -> BandStatistics:
    """Return the statistics of the bands of all training pictures.

    Raises:
        ValueError: the dataset's pictures have no bands, one of them cannot be read, or a band is the same everywhere,
            or has no data.
    """
    split, bands = dataset.splits["train"], dataset.bands
    if bands is None:
        raise ValueError(f"dataset {dataset.name!r} is read as RGB; say which bands to take")
    count, mean, squares = (np.zeros(len(bands)) for _ in range(3))
    low, high = np.full(len(bands), np.inf), np.full(len(bands), -np.inf)
    files = split.select_columns("image")
    for idx in reading_progress(range(len(files)), desc="Measuring bands", unit="image"):
        with named_errors(split, idx, f"{dataset.name} train"):
            for place, values in _values(files[idx]["image"], bands):
                # Chan's way to join means and sums of squares, which large values do not spoil.
                total, shift = count[place] + len(values), values.mean() - mean[place]
                squares[place] += ((values - values.mean()) ** 2).sum()
                squares[place] += shift**2 * count[place] * len(values) / total
                mean[place] += shift * len(values) / total
                count[place] = total
                low[place], high[place] = min(low[place], values.min()), max(high[place], values.max())
    if empty := [str(band) for band, number in zip(bands, count, strict=True) if number == 0]:
        raise ValueError(f"band(s) {', '.join(empty)} of dataset {dataset.name!r} have no data; leave them out")
    of_all = (mean, np.sqrt(squares / count), low, high)
    return BandStatistics(tuple(bands), *(tuple(values.tolist()) for values in of_all))


def _values(file: dict, bands: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """The place among the bands, and values that there are, float64 and one or more, of each block of a picture."""
    with open_bands(file, bands) as picture:
        height, width = picture.size
        step = max(BLOCK_SIZE // (width * len(bands)), 1)
        for top in range(0, height, step):
            for place, values in enumerate(picture.read(slice(top, min(top + step, height)), slice(0, width))):
                values = values[~np.isnan(values)]
                if len(values):
                    yield place, values.astype(np.float64)


def read_band_statistics(path: str | Path, bands: Sequence[int]) -> BandStatistics:
    """Return the statistics of some bands from a JSON file: {"bands": [...], "mean": [...], "std": [...]}.

    Args:
        path: what examples/band_statistics.py writes, or the like; without "bands" they are of `bands`, in this order.
        bands: the numbers of those that are wanted, from 1.

    Raises:
        ValueError: it is no such file, or a band is missing in it.
    """
    content = read_json(Path(path))
    try:
        return BandStatistics.from_dict({"bands": list(bands)} | content).select(bands)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
