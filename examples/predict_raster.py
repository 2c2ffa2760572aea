# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Segment a picture that is larger than memory, such as a satellite's or a microscope's, to a GeoTIFF of labels.

    python examples/predict_raster.py outputs/van-scenes scene.tif --output mask.tif

The picture is read and segmented window by window, at its own size: the image processor's resizing is left out. A run
that was stopped, however it was, goes on where the same command is given again: until the end, what is done lies in
the folder .partial-NAME beside the output. The exit status is 0; 1 if it could not be finished; 2 if nothing could be
begun.
"""

import argparse
import json
import math
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from predict import add_model_arguments, as_text
from tqdm.auto import tqdm

try:
    from van_hf.rasters import SUFFIXES, Raster, category_names_path, open_raster, write_labels
except ModuleNotFoundError as error:
    if error.name != "rasterio":
        raise
    sys.exit('error: pictures of any size need rasterio, which is not installed: pip install -e ".[raster]"')

from van_hf import VanConfig, VanForSemanticSegmentation, VanImageProcessor, __version__
from van_hf.data.progress import reading_progress
from van_hf.exports import ExportedSegmentationModel
from van_hf.files import LOCK, claim_folder, read_json, write_json, write_whole
from van_hf.inference import Protocol, digest_of_weights, load_image_processor, load_model
from van_hf.machine import use_huge_pages
from van_hf.prediction import check_predictor
from van_hf.raster_inference import BLENDS, RasterSegmenter, Tile, WindowGrid
from van_hf.visualization import palette_of

MIN_CROP_SIZE = 32
SETTINGS, WRITTEN = "settings.json", "written.json"
# Of pixels that do not belong to the picture; the second one for models of more than 255 labels.
NODATA, WIDE_NODATA = 255, 65535


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a folder, of an export too, or a model of the Hub")
    parser.add_argument("image", metavar="IMAGE", type=Path, help="GeoTIFF, PNG, JPEG, VRT, ...: 8-bit RGB or "
                        "grey, or with the bands that the model was trained with")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="the GeoTIFF to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there already")
    parser.add_argument("--crop_size", type=int, help="side of the windows in pixels; by default the image "
                        "processor's short side, or the size of an export that has one")  # fmt: skip
    parser.add_argument("--stride", type=int, help="step between windows; two thirds of --crop_size by default")
    parser.add_argument("--blend", choices=BLENDS, default="smooth", help="smooth: a window counts less towards its "
                        "edges; none: its pixels all count the same, as in eval_seg.py --mode slide")  # fmt: skip
    parser.add_argument("--batch_size", type=int, default=4, help="windows that go through the model at once")
    add_model_arguments(parser)
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"--batch_size must be 1 or more, got {args.batch_size}")
    return args


def check_output(args: argparse.Namespace, sources: list[Path]) -> None:
    """Raise a ValueError where the output has another format, is in the way, or is a file of the picture."""
    try:
        os.path.abspath(args.output).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"--output {args.output} is a name that is not UTF-8, which GDAL cannot write") from error
    if args.output.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--output {args.output} must end with {' or '.join(SUFFIXES)}: a GeoTIFF is written")
    if os.path.lexists(args.output):
        if not args.output.is_file():
            raise ValueError(f"--output {args.output} is there already, and no file; name another one")
        for source in sources:
            if os.path.samefile(source, args.output):
                raise ValueError(f"--output {args.output} is the picture itself, or a part of it; name another file")
        if not args.overwrite:
            raise ValueError(f"--output {args.output} is there already; name another one, or add --overwrite")


def resolve_protocol(
    args: argparse.Namespace,
    model: VanForSemanticSegmentation | ExportedSegmentationModel,
    image_processor: VanImageProcessor,
) -> Protocol:
    """Return the windows' size and step; raise a ValueError where they cannot be, or are not the model's."""
    crop_size, stride = args.crop_size, args.stride
    if crop_size is None:
        size = image_processor.size
        crop_size = size.shortest_edge or min(size.height, size.width)
        if isinstance(model, ExportedSegmentationModel) and model.info.size is not None:
            crop_size = model.info.size[0]
    if stride is None:
        stride = max(crop_size * 2 // 3, 1)
    if crop_size < MIN_CROP_SIZE:
        raise ValueError(f"--crop_size must be {MIN_CROP_SIZE} or more, got {crop_size}")
    if not 1 <= stride <= crop_size:
        raise ValueError(f"--stride must be from 1 to --crop_size {crop_size}, got {stride}")
    protocol = Protocol("slide", crop_size, stride)
    check_predictor(model, args.model, protocol, args.dtype)
    return protocol


class Job:
    """The folder of what is done of a picture, `.partial-NAME` beside the output: a file for each tile.

    Each file is there whole or not at all, as they are renamed to their names; one that a crash of the machine has
    damaged all the same is not readable, and counts as not there.
    """

    def __init__(self, folder: Path, grid: WindowGrid):
        self.folder, self.grid = folder, grid

    def path(self, row: int, strip: int) -> Path:
        return self.folder / f"{row:06d}-{strip:04d}.npz"

    def save(self, tile: Tile, labels: np.ndarray) -> None:
        write_whole(self.path(tile.row, tile.strip), lambda path: np.savez_compressed(path, labels=labels))

    def load(self, row: int, strip: int) -> np.ndarray | None:
        """Return the labels of a tile; None where they are not there, or damaged."""
        with (
            # numpy, zipfile and zlib have no error in common for what is damaged.
            suppress(OSError, zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, NotImplementedError),
            np.load(self.path(row, strip)) as arrays,
        ):
            return arrays["labels"]
        return None

    def parts(self) -> Iterator[np.ndarray]:
        """Yield all labels from the top to the bottom, (rows, width) each."""
        for row in range(len(self.grid.tops)):
            yield np.concatenate([self.load(row, strip) for strip in range(self.grid.num_strips)], axis=1)

    def begin(self, settings: dict) -> list[Tile]:
        """Return the tiles that are still to be done.

        Raises:
            ValueError: there are tiles of other settings.
        """
        path = self.folder / SETTINGS
        settings = json.loads(json.dumps(settings, default=str))  # as they are read back, with lists for tuples
        if any(self.folder.glob("[0-9]*.npz")):
            others = read_json(path) if path.exists() else {}
            changed = [name for name in settings if settings[name] != others.get(name)]
            if changed:
                raise ValueError(
                    f"{self.folder} holds what a run with another {', another '.join(changed)} has done of this"
                    " output; give its arguments to go on with it, or remove this folder"
                )
        write_json(path, settings)
        tiles = reading_progress(list(self.grid.tiles()), desc="Looking for what is done", unit="tile")
        return [tile for tile in tiles if self.load(tile.row, tile.strip) is None]

    def is_written(self, output: Path) -> bool:
        """Return whether the output is what a run has written that was killed before it could clear the folder."""
        path = self.folder / WRITTEN
        return path.exists() and output.is_file() and read_json(path) == _stamp(output)

    def clear(self) -> None:
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == WRITTEN):
            if path.name != LOCK:
                path.unlink(missing_ok=True)


def _stamp(file: Path) -> dict:
    """What a file keeps when it is renamed, and no other has."""
    stat = file.stat()
    return {"size": stat.st_size, "modified": stat.st_mtime_ns}


def describe_settings(
    args: argparse.Namespace,
    model: VanForSemanticSegmentation | ExportedSegmentationModel,
    image_processor: VanImageProcessor,
    raster: Raster,
    grid: WindowGrid,
) -> dict:
    """Return everything that decides the labels; a run goes on only where all of it is the same."""
    return {
        "version of van_hf": __version__,
        "model": digest_of_weights(model),
        "image processor": image_processor.to_dict(),
        "picture": raster.state,
        "size of the picture": grid.size,
        "--crop_size or --stride": (grid.crop_size, grid.stride, grid.strip_length),
        "--blend": args.blend,
        "--dtype": args.dtype,
    }


def segment_picture(segmenter: RasterSegmenter, job: Job, tiles: list[Tile]) -> None:
    """Segment tiles and save each of them as soon as it is done."""
    total = math.prod(segmenter.grid.size)
    with tqdm(
        desc="Segmenting",
        total=total,
        initial=total - sum(math.prod(tile.size) for tile in tiles),
        unit="px",
        unit_scale=True,
        mininterval=0.5 if sys.stderr.isatty() else 15,
    ) as progress:
        for tile, labels in segmenter.segment(tiles):
            job.save(tile, labels)
            progress.update(labels.size)


def write_output(output: Path, job: Job, raster: Raster, config: VanConfig, nodata: int, tags: dict[str, str]) -> None:
    """Write the GeoTIFF, and the file of category names beside it, which appear once they are whole."""
    partial = job.folder / output.name
    names = [config.id2label[label] for label in range(config.num_labels)]
    with reading_progress(desc="Writing", total=2 * len(job.grid.tops), unit="row") as progress:

        def parts() -> Iterator[np.ndarray]:
            for labels in job.parts():
                yield labels
                progress.update()

        write_labels(partial, raster, parts, names, palette_of(config), nodata, tags)
    with partial.open("r+b") as file:
        os.fsync(file.fileno())  # the tiles are removed next
    write_json(job.folder / WRITTEN, _stamp(partial))
    os.replace(category_names_path(partial), category_names_path(output))
    os.replace(partial, output)


def run(args: argparse.Namespace, raster: Raster) -> int:
    """Segment an open picture; return the exit status."""
    folder = args.output.with_name(f".partial-{args.output.name}")
    if not args.overwrite and finish(args.output, folder):
        print(f"{as_line(args.output)} was finished by a run that was stopped at its end")
        return 0
    check_output(args, raster.files)
    model, image_processor = load_model(args.model, args.device, args.trust_pickle)
    config = model.config
    nodata = NODATA if config.num_labels <= NODATA else WIDE_NODATA
    protocol = resolve_protocol(args, model, image_processor)
    grid = WindowGrid.that_fits(
        raster.size, protocol.crop_size, protocol.stride, config.num_labels, config.logits_stride
    )
    segmenter = RasterSegmenter(
        model, image_processor, grid, raster.read, nodata, args.blend, args.batch_size, getattr(torch, args.dtype)
    )
    settings = describe_settings(args, model, image_processor, raster, grid)
    tags = {"model": settings["model"], "windows": f"{grid.crop_size} pixels every {grid.stride}, blend {args.blend}"}
    job = Job(folder, grid)
    with claim_folder(job.folder):
        check_output(args, raster.files)  # until now another run may have written it
        tiles = job.begin(settings)
        try:
            segment_picture(segmenter, job, tiles)
            if raster.has_changed:
                message = f"{raster.path} was changed meanwhile, so labels may be of both; remove {job.folder}"
                print(f"error: {as_line(message)} and begin anew", file=sys.stderr)
                return 1
            write_output(args.output, job, raster, config, nodata, tags)
        except OSError as error:
            print(f"error: {as_line(error)}; what is done is kept, and the same command goes on", file=sys.stderr)
            return 1
        job.clear()
    remove_folder(job.folder)
    print(f"{raster.size[0]} x {raster.size[1]} pixels segmented: {as_line(args.output)}")
    return 0


def finish(output: Path, folder: Path) -> bool:
    """Clear the folder of a run that has put its output in its place, and was killed; return whether there is one."""
    if not (folder / WRITTEN).exists():
        return False
    with claim_folder(folder):
        job = Job(folder, None)
        if not job.is_written(output):
            return False
        job.clear()
    remove_folder(folder)
    return True


def remove_folder(folder: Path) -> None:
    with suppress(OSError):  # it is gone unless an earlier run had made it
        folder.rmdir()


def as_line(value: object) -> str:
    """Return an error or a path as one line of UTF-8."""
    return " ".join(as_text(value).split())


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    use_huge_pages()
    try:
        bands = load_image_processor(args.model).bands
        with open_raster(args.image, bands) as raster:
            return run(args, raster)
    except (ValueError, OSError) as error:
        print(f"error: {as_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
