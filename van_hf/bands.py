# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Reading pictures of any number of bands, of 8 bits or more.

Files are read through rasterio, of the extra `raster`, which is imported where the first of them is.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from PIL import TiffImagePlugin as TiffTags

from .model.image_processing_van import check_bands

if TYPE_CHECKING:
    import rasterio

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
        message = 'bands are read through rasterio, which is not installed: pip install "van_hf[raster]"'
        raise ValueError(message) from error
    _ignore(NotGeoreferencedWarning)
    return rasterio


def check_readable(bands: Sequence[int]) -> None:
    """Raise a ValueError where these are no numbers of bands, or there is nothing to read them with."""
    check_bands(list(bands))
    import_rasterio()


@cache
def _ignore(category: type[Warning]) -> None:
    """Have no warnings, once: as filters change, Python forgets which warnings it has shown already."""
    # That a picture lies nowhere on Earth is no matter here.
    warnings.filterwarnings("ignore", category=category)


def check_is_rgb(image: Image.Image) -> None:
    """Raise a ValueError where Pillow would read the upper bytes of three of a TIFF file's bands, and no others."""
    tags = getattr(image, "tag_v2", {})
    extra = tags.get(TiffTags.EXTRASAMPLES, ())
    bits = max(tags.get(TiffTags.BITSPERSAMPLE, (8,)))
    if image.mode == "RGB" and bits > 8 and 0 in extra:
        raise ValueError(
            f"the TIFF has {3 + len(extra)} bands of {bits} bits, and as 8-bit RGB would lose most of what they hold; "
            f"train a model with bands, as with --bands 1 2 3 {3 + len(extra)}"
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
        enums = import_rasterio().enums
        kinds = zip(dataset.indexes, dataset.colorinterp, strict=True)
        # GDAL takes the fourth of four bands for transparency unless told otherwise; one that was asked for is data.
        # Of other numbers of bands its own masks leave transparency out.
        self._alphas = [band for band, kind in kinds if kind == enums.ColorInterp.alpha and band not in bands]
        self._masked = [
            enums.MaskFlags.all_valid not in flags and enums.MaskFlags.alpha not in flags
            for flags in (dataset.mask_flag_enums[band - 1] for band in bands)
        ]

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
            for alpha in self._alphas:
                values[:, self._dataset.read(alpha, window=window) == 0] = np.nan
        except rasterio.errors.RasterioError as error:
            raise OSError(str(error.__cause__ or error)) from error
        values[~np.isfinite(values)] = np.nan
        return values

    def copy(self, path: Path) -> None:
        """Write all bands of the file, and where they have no data, see [`copy_without_place`]."""
        rasterio, source = import_rasterio(), self._dataset
        profile = {name: source.profile[name] for name in ("height", "width", "count", "dtype", "nodata")}
        flags = rasterio.enums.MaskFlags
        has_mask = any(flags.per_dataset in kinds and flags.alpha not in kinds for kinds in source.mask_flag_enums)
        with rasterio.open(path, "w", driver="GTiff", compress="deflate", photometric="minisblack", **profile) as copy:
            copy.colorinterp = source.colorinterp
            copy.write(source.read())
            if has_mask:
                copy.write_mask(source.dataset_mask())


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
                from datasets.utils.file_utils import xopen  # not needed for files of this machine

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


def copy_without_place(file: str | Path | bytes | dict, path: Path) -> None:
    """Write all bands of a picture as a TIFF file that says neither where on Earth it lies nor what else it is of.

    Args:
        file: see [`open_bands`].
        path: the file to write.

    Raises:
        ValueError, OSError: see [`open_bands`].
    """
    with open_bands(file, [1]) as picture:
        picture.copy(path)


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
