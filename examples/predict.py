# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Segment pictures with a trained model: overlays with a legend, label maps, shares of the classes.

    python examples/predict.py outputs/van-scenes photo.jpg holiday/ --recursive --output_dir predictions

The pictures of a folder are written under their paths in it: holiday/day1/beach.jpg to overlays/day1/beach.png,
masks/day1/beach.png and shares/day1/beach.json. A picture that cannot be segmented, or an output that cannot be
written, is reported and left out; the exit status is then 1. It is 2 where nothing could be begun.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from van_hf import VanConfig, VanForSemanticSegmentation, VanImageProcessor
from van_hf.bands import hint_at_bands
from van_hf.exports import ExportedSegmentationModel
from van_hf.files import claim_folder, write_json, write_whole
from van_hf.inference import RATIOS, Protocol, predict
from van_hf.machine import use_huge_pages
from van_hf.prediction import IMAGE_SUFFIXES, describe_classes, list_pictures, load_predictor, mask_png, read_picture
from van_hf.visualization import as_picture, overlay_with_legend, palette_of

SUFFIXES = {"overlays": ".png", "masks": ".png", "shares": ".json"}  # of what --save can name
DTYPES = ("float32", "bfloat16", "float16")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a folder, of an export too, or a model of the Hub")
    parser.add_argument("images", metavar="IMAGE_OR_FOLDER", nargs="+", type=Path)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that are there already")
    parser.add_argument("--recursive", action="store_true", help="look into the folders of folders too")
    parser.add_argument(
        "--save",
        nargs="+",
        choices=SUFFIXES,
        default=["overlays"],
        help="overlays: pictures under their classes' colours, with a legend (the default); masks: PNGs of class "
        "numbers with the colours as palette, 16-bit grey above 256 classes; shares: JSON of each class's share of "
        "the pixels",
    )
    parser.add_argument("--alpha", type=float, default=0.6, help="strength of an overlay's colours, 0 to 1")
    add_inference_arguments(parser)
    args = parser.parse_args(argv)
    if not 0 <= args.alpha <= 1:
        parser.error(f"--alpha must be 0 to 1, got {args.alpha}")
    return args


def add_inference_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how pictures are segmented."""
    parser.add_argument("--multi_scale", action="store_true", help=f"average over {len(RATIOS)} sizes of each picture")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    add_model_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how a model is run."""
    parser.add_argument("--device", help="such as cpu or cuda:1; a GPU by default where there is one")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="what the model computes in; an export has its own"
    )
    parser.add_argument("--trust_pickle", action="store_true", help="run any code that a torch_export model holds")


def resolve_protocol(args: argparse.Namespace) -> Protocol:
    return Protocol(ratios=RATIOS if args.multi_scale else (1.0,), flip=args.flip)


def find_images(sources: Sequence[Path], recursive: bool, output_dir: Path) -> dict[Path, Path]:
    """Find the pictures to segment.

    Args:
        sources: files, and folders of which hidden files, files that are no pictures by their suffix, and
            `output_dir` are left out.
        recursive: whether to go into the folders of folders.
        output_dir: where outputs of earlier runs may lie.

    Returns:
        The file by the path that its outputs are named after: relative to its folder, without suffix, in order.

    Raises:
        ValueError: a source is missing, a folder holds no picture, or two pictures would get the same name.
    """
    images: dict[Path, Path] = {}
    for source in sources:
        if source.is_dir():
            found = list_pictures(source, recursive, output_dir)
            if not found:
                hint = "" if recursive else "; --recursive looks into its folders too"
                raise ValueError(f"{source} holds no picture ({', '.join(IMAGE_SUFFIXES)}){hint}")
            paths, names = [source / path for path in found], [path.with_suffix("") for path in found]
        elif source.is_file():
            paths, names = [source], [Path(source.stem)]
        else:
            raise ValueError(f"{source} is neither a file nor a folder")
        for name, path in zip(names, paths, strict=True):
            other = images.setdefault(name, path)
            if os.path.realpath(other) != os.path.realpath(path):
                raise ValueError(
                    f"the outputs of {other} and {path} would both be named {name}; segment them into different"
                    " --output_dir, or give a folder above both with --recursive"
                )
    return images


def output_path(output_dir: Path, kind: str, name: Path) -> Path:
    """Return where an output of the picture `name` goes, `kind` being one of `SUFFIXES`."""
    return output_dir / kind / name.with_name(name.name + SUFFIXES[kind])


def check_outputs(images: dict[Path, Path], output_dir: Path, kinds: Sequence[str], overwrite: bool) -> None:
    """Raise a ValueError where outputs are in the way, or cannot be written."""
    folder = next(parent for parent in (output_dir, *output_dir.parents) if os.path.exists(parent))
    if not folder.is_dir():
        raise ValueError(f"--output_dir {output_dir} cannot be made: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"--output_dir {output_dir} cannot be written: you may not write to {folder}")
    paths = (output_path(output_dir, kind, name) for name in images for kind in kinds)
    present = [path for path in paths if os.path.exists(path)]  # Path.exists raises an error for a name too long
    if present and not overwrite:
        raise ValueError(
            f"{present[0]} is there already, as are {len(present) - 1} other outputs; name another --output_dir, or"
            " add --overwrite"
        )


def describe_shares(source: Path, labels: np.ndarray, id2label: dict[int, str]) -> dict:
    """Return the size and the classes of a picture, the largest class first."""
    height, width = labels.shape
    classes = describe_classes(labels, id2label)
    return {"image": as_text(source), "height": height, "width": width, "classes": classes}


def as_text(path: object) -> str:
    """Return a path, or an error, as text that can be written as UTF-8: what is no text in it becomes escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def write_output(
    kind: str, path: Path, source: Path, picture: Image.Image, labels: np.ndarray, config: VanConfig, alpha: float
) -> None:
    """Write one of `SUFFIXES` of an RGB picture with labels (height, width)."""
    if kind == "overlays":
        drawn = overlay_with_legend(picture, labels, config.id2label, palette_of(config), alpha)
        write_whole(path, drawn.save)
    elif kind == "masks":
        write_whole(path, lambda partial: partial.write_bytes(mask_png(labels, config)))
    else:
        write_json(path, describe_shares(source, labels, config.id2label))


def predict_picture(
    model: VanForSemanticSegmentation | ExportedSegmentationModel,
    image_processor: VanImageProcessor,
    name: Path,
    source: Path,
    args: argparse.Namespace,
) -> Iterator[str]:
    """Segment a picture and write its outputs; yield what is left out, and why.

    Damaged pictures make Pillow's decoders raise errors of many kinds, and so do outputs that cannot be drawn or
    written: none of them is to stop the other outputs, and the other pictures.
    """
    protocol = resolve_protocol(args)
    try:
        pixels = read_picture(source, image_processor)
        labels = predict(model, image_processor, pixels, protocol, getattr(torch, args.dtype)).cpu().numpy()
        picture = as_picture(pixels, image_processor)
    except Exception as error:
        hint = "" if image_processor.bands or isinstance(error, ValueError) else hint_at_bands(source)
        yield f"{source} is left out: {type(error).__name__}: {error}{hint}"
        return
    for kind in args.save:
        path = output_path(args.output_dir, kind, name)
        try:
            write_output(kind, path, source, picture, labels, model.config, args.alpha)
        except Exception as error:
            yield f"{source}: {path} is left out: {type(error).__name__}: {error}"


def predict_pictures(
    model: VanForSemanticSegmentation | ExportedSegmentationModel,
    image_processor: VanImageProcessor,
    images: dict[Path, Path],
    args: argparse.Namespace,
) -> int:
    """Segment pictures and write their outputs; return the number of pictures of which something is left out."""
    num_failed = 0
    progress = tqdm(images.items(), desc="Segmenting", unit="image", mininterval=0.1 if sys.stderr.isatty() else 15)
    for name, source in progress:
        failures = list(predict_picture(model, image_processor, name, source, args))
        for failure in failures:
            progress.write(as_text(failure), file=sys.stderr)
        num_failed += bool(failures)
    return num_failed


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    use_huge_pages()
    try:
        images = find_images(args.images, args.recursive, args.output_dir)
        check_outputs(images, args.output_dir, args.save, args.overwrite)
        with suppress(BlockingIOError), claim_folder(args.output_dir):
            pass  # it can be made and written to; the pictures of several runs may go there
        protocol = resolve_protocol(args)
        model, image_processor = load_predictor(args.model, protocol, args.dtype, args.device, args.trust_pickle)
    except (ValueError, OSError) as error:
        print("error:", *as_text(error).splitlines(), file=sys.stderr)
        return 2
    num_failed = predict_pictures(model, image_processor, images, args)
    num_written = len(images) - num_failed
    print(f"{num_written} of {len(images)} pictures segmented: {', '.join(args.save)} in {as_text(args.output_dir)}")
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
