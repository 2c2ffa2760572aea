# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Pictures of any number of bands, of 8 bits or more: reading them, and what each band is like.

Files are read through rasterio, of the extra `raster`, which is imported where the first of them is.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from datasets.utils.file_utils import xopen
from PIL import Image
from PIL import TiffImagePlugin as TiffTags

from ..files import read_json
from ..model.image_processing_van import check_bands
from .progress import reading_progress

if TYPE_CHECKING:
    import rasterio

    from .loading import SegmentationDataset

# GDAL reads more, some of which names further files or addresses to read.
FORMATS = ("GTiff", "JP2OpenJPEG", "PNG", "JPEG")
TIFF_SUFFIXES = (".tif", ".tiff")
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")


def import_rasterio():
    """Return the package rasterio.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
    except ModuleNotFoundError as error:
        if error.name != "rasterio":
            raise
        raise ValueError(
            'bands are read through rasterio, which is not installed: pip install "van_hf[raster]"'
        ) from (error)
    # That a picture lies nowhere on Earth is no matter here.
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    return rasterio


def check_is_rgb(image: Image.Image) -> None:
    """Raise a ValueError where Pillow would read the upper bytes of three of a TIFF file's bands, and no others."""
    tags = getattr(image, "tag_v2", {})
    extra = tags.get(TiffTags.EXTRASAMPLES, ())
    bits = max(tags.get(TiffTags.BITSPERSAMPLE, (8,)))
    if image.mode == "RGB" and bits > 8 and 0 in extra:
        raise ValueError(
            f"the TIFF has {3 + len(extra)} bands of {bits} bits, and as 8-bit RGB would lose most of what they hold; "
            f"bands (--bands) says which to read, such as 1 2 3 {3 + len(extra)}"
        )


def hint_at_bands(path: str | Path | None) -> str:
    """Return what may help where Pillow cannot read a file: a sentence in brackets for TIFFs, else nothing."""
    if path is None or Path(path).suffix.lower() not in TIFF_SUFFIXES:
        return ""
    return " (TIFFs of other than 8-bit grey or RGB are read by a model that was trained with --bands)"


class BandPicture:
    """Some bands of an open file.

    Attributes:
        size: `(height, width)` in pixels, as they lie in the file: an EXIF orientation is not followed.
        format: GDAL's name of the file's, such as "GTiff".
        dtype: the name of what the file holds, such as "uint16"; of several, the widest.
        count: number of bands in the file.
    """

    def __init__(self, dataset: rasterio.DatasetReader, bands: Sequence[int]):
        """
        Raises:
            ValueError: the file has no such bands, or they hold complex numbers.
        """
        check_bands(bands)
        self.count, self.format = dataset.count, dataset.driver
        if missing := [band for band in bands if band > dataset.count]:
            raise ValueError(f"the picture has {dataset.count} band(s), and no band {', '.join(map(str, missing))}")
        kinds = [dataset.dtypes[band - 1] for band in bands]
        if others := sorted(set(kinds) - set(DTYPES)):
            raise ValueError(f"the picture has bands of {', '.join(others)}; it must be one of {', '.join(DTYPES)}")
        self.size = (dataset.height, dataset.width)
        self.dtype = np.result_type(*kinds).name
        self._dataset, self._bands = dataset, list(bands)
        flags = import_rasterio().enums.MaskFlags
        # GDAL takes the fourth of four bands for transparency, unless told so; one that was asked for is data.
        self._masked = [
            flags.all_valid not in of_band and not (flags.alpha in of_band and self._has_alpha(dataset, bands))
            for of_band in (dataset.mask_flag_enums[band - 1] for band in bands)
        ]

    @staticmethod
    def _has_alpha(dataset: rasterio.DatasetReader, bands: Sequence[int]) -> bool:
        alpha = import_rasterio().enums.ColorInterp.alpha
        return any(dataset.colorinterp[band - 1] == alpha for band in bands)

    def read(self, rows: slice | None = None, columns: slice | None = None) -> np.ndarray:
        """Return values as they are in the file, float32 (bands, rows, columns), NaN where there are none.

        There are none where the file says so (nodata, a mask, transparency), and where they are not finite.

        Args:
            rows, columns: slices with start and stop, within the picture; all by default.

        Raises:
            OSError: the file is damaged there.
        """
        rasterio = import_rasterio()
        height, width = self.size
        window = rasterio.windows.Window.from_slices(rows or slice(0, height), columns or slice(0, width))
        try:
            with np.errstate(over="ignore"):  # doubles beyond float32 become infinite
                values = self._dataset.read(self._bands, window=window).astype(np.float32)
            for value, band, is_masked in zip(values, self._bands, self._masked, strict=True):
                if is_masked:
                    value[self._dataset.read_masks(band, window=window) == 0] = np.nan
        except rasterio.errors.RasterioError as error:
            raise OSError(str(error.__cause__ or error)) from error
        values[~np.isfinite(values)] = np.nan
        return values


@contextmanager
def open_bands(file: str | Path | bytes | dict, bands: Sequence[int]) -> Iterator[BandPicture]:
    """Open a picture to read some of its bands, until the block ends.

    Args:
        file: a path, the content of a file, or both as `datasets.Image(decode=False)` has them.
        bands: their numbers, from 1, in the order in which they are wanted.

    Raises:
        ValueError: it is no picture in one of `FORMATS`, has no such bands, or rasterio is not installed.
        FileNotFoundError: there is no such file.
    """
    rasterio = import_rasterio()
    if isinstance(file, dict):
        file = file["path"] if file["bytes"] is None else file["bytes"]
    with ExitStack() as stack:
        made_up = None  # the name that GDAL gives a file in memory
        try:
            if not isinstance(file, bytes) and not os.path.isfile(file):
                with xopen(str(file), "rb") as remote:
                    file = remote.read()
            stack.enter_context(rasterio.Env())
            if file == b"":
                raise ValueError("the file is empty")
            if isinstance(file, bytes):
                memory = stack.enter_context(rasterio.MemoryFile(file))
                made_up = memory.name.rpartition("/")[2]
                opened = memory.open(driver=list(FORMATS))
            else:
                # `rasterio.open` takes one driver alone.
                opened = rasterio.io.DatasetReader(os.path.abspath(file), driver=list(FORMATS))
            dataset = stack.enter_context(opened)
        except FileNotFoundError:
            raise
        except (rasterio.errors.RasterioError, OSError, ValueError) as error:
            reason = str(error).replace(f"{made_up}: ", "")
            raise ValueError(f"it is no picture in one of {', '.join(FORMATS)}: {reason}") from error
        yield BandPicture(dataset, bands)


def read_bands(file: str | Path | bytes | dict, bands: Sequence[int]) -> torch.Tensor:
    """Return bands of a picture as an image processor with these `bands` takes them.

    Args:
        file, bands: see [`open_bands`].

    Returns:
        float32 (bands, height, width), values as they are in the file, NaN where there are none.

    Raises:
        ValueError, OSError: see [`open_bands`] and [`BandPicture`].
    """
    with open_bands(file, bands) as picture:
        return torch.from_numpy(picture.read())


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
            if values is None and name in ("minimum", "maximum"):
                continue
            if len(values) != len(self.bands) or not all(
                type(value) in (int, float) and math.isfinite(value) for value in values
            ):
                raise ValueError(f"{name} must be a finite number for each of the bands {list(self.bands)}: {values}")
        if flat := [band for band, std in zip(self.bands, self.std, strict=True) if not std > 0]:
            raise ValueError(
                f"the standard deviation of band(s) {', '.join(map(str, flat))} is 0: a band that is the same "
                "everywhere teaches nothing; leave it out"
            )

    def select(self, bands: Sequence[int]) -> BandStatistics:
        """Return the statistics of some of the bands, in another order."""
        places = [self.bands.index(band) for band in bands]
        chosen = {
            name: tuple(values[place] for place in places)
            for name in ("mean", "std", "minimum", "maximum")
            if (values := getattr(self, name)) is not None
        }
        return BandStatistics(tuple(bands), **chosen)

    def to_dict(self) -> dict:
        """Return the content of a file that [`read_band_statistics`] reads."""
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
    from .samples import named_errors

    split, bands = dataset.splits["train"], dataset.bands
    if bands is None:
        raise ValueError(f"dataset {dataset.name!r} is read as RGB; say which bands to take")
    count, mean, squares = (np.zeros(len(bands)) for _ in range(3))
    low, high = np.full(len(bands), np.inf), np.full(len(bands), -np.inf)
    files = split.select_columns("image")
    for idx in reading_progress(range(len(files)), desc="Measuring bands", unit="image"):
        with named_errors(split, idx, f"{dataset.name} train"):
            values = read_bands(files[idx]["image"], bands).flatten(1).numpy()
        for number, of_band in enumerate(values):
            of_band = of_band[~np.isnan(of_band)].astype(np.float64)
            if not len(of_band):
                continue
            # Chan's way to join means and sums of squares, which large values do not spoil.
            total, shift = count[number] + len(of_band), of_band.mean() - mean[number]
            squares[number] += ((of_band - of_band.mean()) ** 2).sum()
            squares[number] += shift**2 * count[number] * len(of_band) / total
            mean[number] += shift * len(of_band) / total
            count[number] = total
            low[number], high[number] = min(low[number], of_band.min()), max(high[number], of_band.max())
    if empty := [band for band, number in zip(bands, count, strict=True) if number == 0]:
        raise ValueError(
            f"band(s) {', '.join(map(str, empty))} of dataset {dataset.name!r} have no data; leave them out"
        )
    std = np.sqrt(squares / count)
    return BandStatistics(tuple(bands), *(tuple(values.tolist()) for values in (mean, std, low, high)))


def read_band_statistics(path: str | Path, bands: Sequence[int]) -> BandStatistics:
    """Return the statistics of some bands from a JSON file: {"bands": [...], "mean": [...], "std": [...]}.

    Args:
        path: what examples/band_statistics.py writes, or the like; without "bands" they are of `bands`, in this order.
        bands: the numbers of those that are wanted, from 1.

    Raises:
        ValueError: it is no such file, or a band is missing in it.
    """
    content = read_json(Path(path))
    if not isinstance(content, dict) or not {"mean", "std"} <= content.keys():
        raise ValueError(f'{path} must hold {{"bands": [...], "mean": [...], "std": [...]}}')
    listed = content.get("bands", list(bands))
    known = {name: content[name] for name in ("mean", "std", "minimum", "maximum") if content.get(name) is not None}
    try:
        if not all(isinstance(values, list) for values in (listed, *known.values())):
            raise ValueError(f"bands, {', '.join(known)} must be lists")
        statistics = BandStatistics(tuple(listed), **{name: tuple(values) for name, values in known.items()})
        if missing := [band for band in bands if band not in listed]:
            raise ValueError(f"it has the bands {listed}, and not {', '.join(map(str, missing))}")
        return statistics.select(bands)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
