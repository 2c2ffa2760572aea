# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Pictures of any size in files, read part by part, and GeoTIFFs of their labels.

Imports rasterio, of the extra `raster`, so it is not part of `import van_hf`.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.windows import Window

from .bands import BandPicture
from .visualization import IGNORED_COLOR, drawable

# Of GDAL's cache, whose default is a share of the machine's memory. 512 rows of 100,000 pixels, as they are read anew
# from files that have no tiles, take 150 MB.
CACHE_MEGABYTES = 256
MAX_BLOCK_BYTES = 2**27
TILE_SIDE = 512  # of the GeoTIFF's own tiles
SUFFIXES = (".tif", ".tiff")


class Raster:
    """An open picture: 8-bit grey or RGB, with or without an alpha channel, a mask or a nodata value; or any bands.

    Attributes:
        path: its file.
        size: `(height, width)` in pixels, as they lie in the file: an EXIF orientation is not followed.
        files: all that it is made of, such as those that a VRT names, and those that a VRT among them names.
        state: their names, sizes and times when the picture was opened, without what is not needed for pixels.
    """

    def __init__(self, path: Path, dataset: rasterio.DatasetReader, bands: Sequence[int] | None = None):
        """
        Args:
            path, dataset: the file and what it is open as.
            bands: the numbers of those to read, from 1; 8-bit RGB or grey by default.

        Raises:
            ValueError: the picture is of another kind, or has no such bands; the message says what would help.
        """
        self.path = path
        self.size = (dataset.height, dataset.width)
        self.files = _files_of(dataset) or [path]
        self.state = self._current_state()
        self._dataset = dataset
        _check_blocks(path, dataset)
        self._picture = None if bands is None else _open_bands(path, dataset, bands)
        if bands is None:
            self._alpha, self._bands = _find_bands(path, dataset)
            self._all_valid = all(MaskFlags.all_valid in dataset.mask_flag_enums[band - 1] for band in self._bands)

    def _current_state(self) -> list[tuple[str, int, int]]:
        # QGIS writes statistics and overviews beside a picture that is only looked at.
        stats = [(path.name, path.stat()) for path in self.files if not path.name.endswith((".aux.xml", ".ovr"))]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    @property
    def has_changed(self) -> bool:
        """Whether a file was replaced or written to since the picture was opened; an OSError if one is gone."""
        return self._current_state() != self.state

    def read(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels, uint8 (3, rows, columns), and which of them are no nodata, bool (rows, columns).

        With bands they are float32 (bands, rows, columns), NaN where one has no data; where none has, it is nodata.

        Args:
            rows, columns: slices with start and stop, within the picture.

        Raises:
            OSError: the file is damaged there; the message names it.
        """
        window = Window.from_slices(rows, columns)
        try:
            if self._picture is not None:
                values = self._picture.read(rows, columns)
                return values, ~np.isnan(values).all(axis=0)
            pixels = self._dataset.read(self._bands, window=window)
            if self._alpha is not None:
                valid = self._dataset.read(self._alpha, window=window) > 0
            elif self._all_valid:
                valid = np.ones(pixels.shape[1:], bool)
            else:
                valid = self._dataset.dataset_mask(window=window) > 0
        except OSError as error:  # which RasterioIOError is
            place = f"rows {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop}"
            raise OSError(f"{self.path} cannot be read at {place}: {error.__cause__ or error}") from error
        return np.broadcast_to(pixels, (3, *valid.shape)), valid

    @property
    def georeference(self) -> dict:
        """What says where on Earth the pixels lie, as the arguments of a file that has them in the same places."""
        points, points_crs = self._dataset.gcps
        found = {"crs": self._dataset.crs or points_crs, "gcps": points or None, "rpcs": self._dataset.rpcs}
        if not points and not self._dataset.transform.is_identity:
            found["transform"] = self._dataset.transform
        return {name: value for name, value in found.items() if value is not None}


def _files_of(dataset: rasterio.DatasetReader) -> list[Path]:
    found = {}
    pending = list(dataset.files)
    for name in pending:
        file = Path(name)
        if name in found or not file.is_file():
            continue
        found[name] = file
        if file.suffix.lower() == ".vrt":  # of those in a VRT GDAL names no files
            with suppress(RasterioIOError), rasterio.open(file) as inner:
                pending += inner.files
    return list(found.values())


def _find_bands(path: Path, dataset: rasterio.DatasetReader) -> tuple[int | None, list[int]]:
    """Return the number of the alpha band, None where there is none, and those of one or three colour bands."""
    if dataset.subdatasets and not dataset.count:
        names = ", ".join(dataset.subdatasets[:3])
        raise ValueError(
            f"{path} holds {len(dataset.subdatasets)} pictures ({names}, ...); take one out of it: gdal_translate -of"
            f" VRT '{dataset.subdatasets[0]}' one.vrt"
        )
    kinds = dataset.colorinterp
    if ColorInterp.palette in kinds:
        raise ValueError(
            f"{path} holds the numbers of colours in a palette; give it as RGB: gdal_translate -of VRT -expand rgb"
            f" {path} rgb.vrt"
        )
    others = sorted(set(dataset.dtypes) - {"uint8"})
    if others:
        raise ValueError(
            f"{path} has bands of {', '.join(others)}; models that were not trained with --bands take 8 bits a"
            " channel, scaled as their training's pictures were, such as: gdal_translate -of VRT -ot Byte"
            f" -scale 0 65535 0 255 {path} 8bit.vrt"
        )
    alpha = [band for band, kind in zip(dataset.indexes, kinds, strict=True) if kind == ColorInterp.alpha]
    bands = [band for band in dataset.indexes if band not in alpha]
    if len(bands) not in (1, 3) or len(alpha) > 1:
        described = ", ".join(kind.name for kind in kinds)
        raise ValueError(
            f"{path} has {dataset.count} bands ({described}); a picture has red, green and blue, or grey, and no more"
            f" than one alpha band, for a model that is not trained with --bands. Choose three: gdal_translate -of VRT"
            f" -b 1 -b 2 -b 3 {path} rgb.vrt"
        )
    named = {kind: band for band, kind in zip(dataset.indexes, kinds, strict=True)}
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if set(colours) <= set(named):
        bands = [named[colour] for colour in colours]
    bits = [dataset.tags(band, ns="IMAGE_STRUCTURE").get("NBITS") for band in bands]
    if few := [int(number) for number in bits if number is not None and int(number) < 8]:
        raise ValueError(
            f"{path} has {few[0]} bit(s) a channel; models take 8, scaled such as: gdal_translate -of VRT -ot Byte"
            f" -scale 0 {2 ** few[0] - 1} 0 255 {path} 8bit.vrt"
        )
    return (alpha[0] if alpha else None), bands


def _open_bands(path: Path, dataset: rasterio.DatasetReader, bands: Sequence[int]) -> BandPicture:
    try:
        return BandPicture(dataset, bands)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; the model takes the bands {list(bands)}") from error


def _check_blocks(path: Path, dataset: rasterio.DatasetReader) -> None:
    """Raise a ValueError where parts of a picture can only be read with all of it."""
    widest = max((math.prod(shape) for shape in dataset.block_shapes), default=0)
    bytes_of_all = sum(np.dtype(kind).itemsize for kind in dataset.dtypes)
    if widest * bytes_of_all > MAX_BLOCK_BYTES:
        height, width = dataset.block_shapes[0]
        raise ValueError(
            f"{path} is stored in blocks of {height} x {width} pixels, which can only be read whole; write it anew in"
            f" tiles: gdal_translate -co TILED=YES -co COMPRESS=DEFLATE -co BIGTIFF=IF_SAFER {path} tiled.tif"
        )


@contextmanager
def open_raster(path: Path, bands: Sequence[int] | None = None) -> Iterator[Raster]:
    """Open a picture, in any format that GDAL reads, until the block ends; GDAL's cache is bounded in it.

    Args:
        path: its file.
        bands: see [`Raster`].

    Raises:
        ValueError: it is no picture, or one of another kind than [`Raster`].
        OSError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MEGABYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            dataset = rasterio.open(path)
        except RasterioIOError as error:
            raise ValueError(f"{path} is no picture that can be read: {error}") from error
        with dataset:
            yield Raster(path, dataset, bands)


def write_labels(
    path: Path,
    raster: Raster,
    parts: Callable[[], Iterator[np.ndarray]],
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
    nodata: int,
    tags: dict[str, str],
) -> None:
    """Write the labels of a picture: a tiled GeoTIFF, compressed without loss, with overviews.

    It has the picture's georeference and a colour table. The labels' names are in its metadata, and as category names
    in the file NAME.tif.aux.xml beside it, which is where GDAL and QGIS look for them.

    Args:
        path: where the file goes; what is there is replaced.
        raster: the picture.
        parts: called for the labels, and once more to compare them with what was written; returns them from the top
            to the bottom, as integers (rows, width) of the dtype that the file gets, uint8 or uint16.
        names: of the labels.
        palette: one `[red, green, blue]` in 0..255 per label.
        nodata: the label of pixels that do not belong to the picture.
        tags: further metadata.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    height, width = raster.size
    profile = {
        **{"driver": "GTiff", "height": height, "width": width, "count": 1, "nodata": nodata},
        **{"tiled": True, "blockxsize": TILE_SIDE, "blockysize": TILE_SIDE},
        **{"compress": "deflate", "bigtiff": "if_safer", "photometric": "palette"},
        "dtype": np.min_scalar_type(nodata).name,
        **raster.georeference,
    }
    colors = {label: (*color, 255) for label, color in enumerate(palette)} | {nodata: (*IGNORED_COLOR, 0)}
    for old in (path, category_names_path(path)):
        old.unlink(missing_ok=True)  # rasterio opens what is there, and fails if that is damaged
    try:
        with rasterio.open(path, "w", **profile) as dataset:
            dataset.write_colormap(1, colors)
            dataset.set_band_description(1, "label")
            dataset.update_tags(**tags)
            dataset.update_tags(1, **{f"label_{label}": drawable(name) for label, name in enumerate(names)})
            for window, labels in _placed(parts(), width):
                dataset.write(labels, 1, window=window)
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews(_overview_factors(raster.size), Resampling.mode)
        # GDAL writes a part when a file is closed, and errors are lost there.
        with rasterio.open(path) as dataset:
            whole = all(
                np.array_equal(dataset.read(1, window=window), part) for window, part in _placed(parts(), width)
            )
    except Exception as error:  # rasterio has several kinds that have nothing in common
        raise OSError(f"{path} cannot be written: {error.__cause__ or error}") from error
    if not whole:
        raise OSError(f"{path} cannot be written: what was read back is not what was written")
    _write_category_names(path, names)


def _placed(parts: Iterator[np.ndarray], width: int) -> Iterator[tuple[Window, np.ndarray]]:
    top = 0
    for labels in parts:
        yield Window(0, top, width, len(labels)), labels
        top += len(labels)


def _overview_factors(size: tuple[int, int]) -> list[int]:
    """The powers of 2 down to an overview that is a single tile."""
    return [2**level for level in range(1, max(math.ceil(math.log2(max(size) / TILE_SIDE)), 0) + 1)]


def category_names_path(path: Path) -> Path:
    """Return the file in which GDAL looks for the category names of a GeoTIFF."""
    return path.with_name(f"{path.name}.aux.xml")


def _write_category_names(path: Path, names: Sequence[str]) -> None:
    root = ElementTree.Element("PAMDataset")
    categories = ElementTree.SubElement(ElementTree.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    for name in names:
        ElementTree.SubElement(categories, "Category").text = drawable(name)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(category_names_path(path), encoding="utf-8")
