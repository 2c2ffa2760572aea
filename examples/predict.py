# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Segments pictures with a trained model: overlays with a legend, label maps, shares of the classes.

    python examples/predict.py outputs/van-scenes photo.jpg holiday/ --recursive --output_dir predictions

The pictures of a folder are written under their paths in it: holiday/day1/beach.jpg to overlays/day1/beach.png,
masks/day1/beach.png and shares/day1/beach.json. A picture that cannot be segmented is reported and left out; the exit
status is then 1. It is 2 where nothing could be begun.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from van_hf import VanConfig, VanForSemanticSegmentation, VanImageProcessor
from van_hf.files import write_text, write_whole
from van_hf.inference import RATIOS, Protocol, load_model, predict
from van_hf.visualization import default_palette, overlay

SUFFIXES = {"overlays": ".png", "masks": ".png", "shares": ".json"}  # of what --save can name
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
DTYPES = ("float32", "bfloat16", "float16")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a folder, or a model of the Hub")
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
    parser.add_argument("--multi_scale", action="store_true", help=f"average over {len(RATIOS)} sizes of each picture")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    parser.add_argument("--device", help="such as cpu or cuda:1; a GPU by default where there is one")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="what the model computes in")
    args = parser.parse_args(argv)
    if not 0 <= args.alpha <= 1:
        parser.error(f"--alpha must be 0 to 1, got {args.alpha}")
    return args


def find_images(sources: Sequence[Path], recursive: bool, output_dir: Path) -> dict[Path, Path]:
    """Finds the pictures to segment.

    Args:
        sources: Files, and folders of which hidden files, files that are no pictures by their suffix, and
            `output_dir` are left out.
        recursive: Whether to go into the folders of folders.
        output_dir: Where outputs of earlier runs may lie.

    Returns:
        The file by the path that its outputs are named after: relative to its folder, without suffix, in order.

    Raises:
        ValueError: A source is missing, a folder holds no picture, or two pictures would get the same name.
    """
    images: dict[Path, Path] = {}
    for source in sources:
        if source.is_dir():
            paths = [
                path
                for path in sorted(source.glob("**/*" if recursive else "*"))
                if path.suffix.lower() in IMAGE_SUFFIXES
                and not any(part.startswith(".") for part in path.relative_to(source).parts)
                and not path.resolve().is_relative_to(output_dir.resolve())
                and path.is_file()
            ]
            if not paths:
                hint = "" if recursive else "; --recursive looks into its folders too"
                raise ValueError(f"{source} holds no picture ({', '.join(IMAGE_SUFFIXES)}){hint}")
            names = [path.relative_to(source).with_suffix("") for path in paths]
        elif source.is_file():
            paths, names = [source], [Path(source.stem)]
        else:
            raise ValueError(f"{source} is neither a file nor a folder")
        for name, path in zip(names, paths, strict=True):
            other = images.setdefault(name, path)
            if other.resolve() != path.resolve():
                raise ValueError(
                    f"the outputs of {other} and {path} would both be named {name}; segment them into different"
                    " --output_dir, or give a folder above both with --recursive"
                )
    return images


def output_path(output_dir: Path, kind: str, name: Path) -> Path:
    """Returns where an output of the picture `name` goes, `kind` being one of `SUFFIXES`."""
    return output_dir / kind / name.with_name(name.name + SUFFIXES[kind])


def check_outputs(images: dict[Path, Path], output_dir: Path, kinds: Sequence[str], overwrite: bool) -> None:
    """Raises a ValueError where outputs are in the way."""
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir {output_dir} is not a folder")
    present = [path for name in images for kind in kinds if (path := output_path(output_dir, kind, name)).exists()]
    if present and not overwrite:
        raise ValueError(
            f"{present[0]} is there already, as are {len(present) - 1} other outputs; name another --output_dir, or"
            " add --overwrite"
        )


def class_shares(labels: np.ndarray) -> dict[int, float]:
    """Returns the share of the pixels, from 0 to 1, of each class number that occurs, the largest first."""
    counts = np.bincount(labels.ravel())
    order = np.argsort(-counts, kind="stable")
    return {int(label): int(counts[label]) / labels.size for label in order if counts[label]}


def add_legend(picture: Image.Image, entries: Sequence[tuple[str, Sequence[int]]]) -> Image.Image:
    """Puts names beside samples of their colours, as many to a row as fit, on white below a picture.

    Args:
        picture: RGB picture.
        entries: Text and `[red, green, blue]` in 0..255 of each.

    Returns:
        An RGB picture that begins with the given one, at the top left. It is wider where the longest text needs it.
    """
    font_size = max(12, round((picture.width * picture.height) ** 0.5 / 45))
    font = ImageFont.truetype(findfont("DejaVu Sans"), font_size)
    gap, row_height = font_size // 2, round(1.6 * font_size)
    widths = [font_size + gap + round(font.getlength(text)) + 2 * gap for text, _ in entries]
    width = max(picture.width, gap + max(widths))
    places, left, top = [], gap, picture.height + gap
    for entry_width in widths:
        if left + entry_width > width:
            left, top = gap, top + row_height
        places.append((left, top))
        left += entry_width
    canvas = Image.new("RGB", (width, top + row_height + gap), "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for (left, top), (text, color) in zip(places, entries, strict=True):
        middle = top + row_height // 2
        sample = (left, middle - font_size // 2, left + font_size, middle + font_size // 2)
        draw.rectangle(sample, fill=tuple(color), outline="gray")
        draw.text((left + font_size + gap, middle), text, fill="black", font=font, anchor="lm")
    return canvas


def draw_overlay(
    picture: torch.Tensor,
    labels: np.ndarray,
    id2label: dict[int, str],
    palette: Sequence[Sequence[int]],
    alpha: float,
) -> Image.Image:
    """Returns a picture, uint8 (3, height, width), under its classes' colours, with their shares in the legend."""
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    entries = [
        (f"{id2label[label]} {f'{share:.1%}' if share >= 0.0005 else '<0.1%'}", palette[label])
        for label, share in class_shares(labels).items()
    ]
    return add_legend(overlay(image, labels, palette, alpha), entries)


def describe_shares(source: Path, labels: np.ndarray, id2label: dict[int, str]) -> str:
    """Returns JSON of the size and the classes of a picture, the largest class first."""
    height, width = labels.shape
    classes = [
        {"label": id2label[label], "id": label, "share": share} for label, share in class_shares(labels).items()
    ]
    content = {"image": str(source), "height": height, "width": width, "classes": classes}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def draw_mask(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> Image.Image:
    """Returns a map whose pixels are class numbers: of mode P, or of mode I;16 for more than 256 classes."""
    if len(palette) > 256:
        return Image.fromarray(labels.astype(np.uint16))
    mask = Image.fromarray(labels.astype(np.uint8))
    mask.putpalette([channel for color in palette for channel in color])
    return mask


def write_outputs(
    name: Path, source: Path, picture: torch.Tensor, labels: np.ndarray, config: VanConfig, args: argparse.Namespace
) -> None:
    """Writes what `--save` asks for of one picture."""
    palette = config.palette or default_palette(config.num_labels)
    paths = {kind: output_path(args.output_dir, kind, name) for kind in args.save}
    if "overlays" in paths:
        write_whole(paths["overlays"], draw_overlay(picture, labels, config.id2label, palette, args.alpha).save)
    if "masks" in paths:
        write_whole(paths["masks"], draw_mask(labels, palette).save)
    if "shares" in paths:
        text = describe_shares(source, labels, config.id2label)
        write_text(paths["shares"], text)


def predict_pictures(
    model: VanForSemanticSegmentation,
    image_processor: VanImageProcessor,
    images: dict[Path, Path],
    args: argparse.Namespace,
) -> int:
    """Segments pictures and writes the outputs; returns the number of those that could not be segmented."""
    num_failed = 0
    protocol = Protocol(ratios=RATIOS if args.multi_scale else (1.0,), flip=args.flip)
    progress = tqdm(images.items(), desc="Segmenting", unit="image", mininterval=0.1 if sys.stderr.isatty() else 15)
    for name, source in progress:
        try:
            with Image.open(source) as image:
                picture = image_processor.process_image(image, do_convert_rgb=True)
            labels = predict(model, image_processor, picture, protocol, getattr(torch, args.dtype)).cpu().numpy()
        except Exception as error:  # damaged files make Pillow's decoders raise errors of many kinds
            num_failed += 1
            progress.write(f"{source} is left out: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        write_outputs(name, source, picture, labels, model.config, args)
    return num_failed


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        images = find_images(args.images, args.recursive, args.output_dir)
        check_outputs(images, args.output_dir, args.save, args.overwrite)
        model, image_processor = load_model(args.model, args.device)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    num_failed = predict_pictures(model, image_processor, images, args)
    num_written = len(images) - num_failed
    print(f"{num_written} of {len(images)} pictures segmented: {', '.join(args.save)} in {args.output_dir}")
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
