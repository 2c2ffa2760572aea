# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Export a trained model for another runtime, and check the result there against PyTorch.

    python examples/export.py outputs/van-scenes outputs/van-scenes-onnx --format onnx

The program takes pictures of any number and size, or with --size one of a fixed size. It is run on 16 pictures or more
of several sizes; where less than 99.99 % of the pixels get the model's label, the command fails and leaves nothing.
The folder that it writes has the program, config.json with the labels, the image processor and check.json. Needs
`pip install -e ".[export]"`.
"""

import argparse
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from predict import IMAGE_SUFFIXES, as_text, find_images
from tqdm.auto import tqdm

from van_hf import VanImageProcessor
from van_hf.data.scenes import paint_scene
from van_hf.exports import EXPORT_FORMATS, ExportCheck, check_export, check_packages, export_model, load_export
from van_hf.files import write_json
from van_hf.inference import PICTURE_FORMATS, digest_of_weights, load_model

NUM_PICTURES = 16
MIN_AGREEMENT = 0.9999


@dataclass(frozen=True)
class Source:
    """What an export was made of.

    Attributes:
        model: the folder, or the name on the Hub.
        digest: of its weights.
        format: one of `EXPORT_FORMATS`.
        size: `(height, width)` of the input in pixels; None where it is free.
        packages: versions by name.
    """

    model: str
    digest: str
    format: str
    size: tuple[int, int] | None
    packages: dict[str, str]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a folder, or a model of the Hub")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", type=Path, help="must not be there yet")
    parser.add_argument("--format", choices=EXPORT_FORMATS, required=True, help="of the program")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the one picture that it takes, in pixels"
    )
    parser.add_argument(
        "--images",
        metavar="IMAGE_OR_FOLDER",
        nargs="+",
        type=Path,
        help=f"at least {NUM_PICTURES} pictures to check it on; generated scenes by default",
    )
    return parser.parse_args(argv)


def read_pictures(image_processor: VanImageProcessor, sources: list[Path] | None) -> list[torch.Tensor]:
    """Return the first pictures of files and folders, or generated ones: uint8 (3, height, width) each.

    Raises:
        ValueError: there are too few, or one cannot be read.
    """
    if sources is None:
        rng = np.random.default_rng(0)
        return [
            torch.from_numpy(np.ascontiguousarray(paint_scene(rng)[0])).permute(2, 0, 1) for _ in range(NUM_PICTURES)
        ]
    paths = list(find_images(sources, recursive=True, output_dir=Path(os.devnull)).values())
    if len(paths) < NUM_PICTURES:
        raise ValueError(f"--images holds {len(paths)} pictures ({', '.join(IMAGE_SUFFIXES)}), not {NUM_PICTURES}")
    pictures = []
    for path in islice(paths, NUM_PICTURES):
        try:
            with Image.open(path, formats=PICTURE_FORMATS) as image:
                pictures.append(image_processor.process_image(image, do_convert_rgb=True))
        except Exception as error:
            raise ValueError(f"the picture {path} cannot be read ({type(error).__name__}: {error})") from error
    return pictures


def describe(check: ExportCheck) -> str:
    """Return the figures of a check in words."""
    smallest, largest = check.sizes[0], check.sizes[-1]
    return (
        f"{100 * check.agreement:.4f} % of the pixels of {check.num_pictures} pictures of {len(check.sizes)} sizes "
        f"({smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]}) get the same label; the largest difference of "
        f"the scores, which go up to {check.largest_score:.3g}, is {check.largest_difference:.1e}"
    )


def export(args: argparse.Namespace, folder: Path) -> ExportCheck:
    """Write an export to a folder, and check it.

    Raises:
        ValueError: packages, the model or the pictures are not as they must be, or the export is not the model's
            equal.
    """
    size = tuple(args.size) if args.size else None
    check_packages(args.format)
    model, image_processor = load_model(args.model, "cpu")
    pictures = read_pictures(image_processor, args.images)
    print(f"Exporting to {args.format}: it takes seconds to minutes", flush=True)
    export_model(model, args.format, size).save_pretrained(folder)
    image_processor.save_pretrained(folder)
    exported = load_export(folder, args.format)
    progress = tqdm(pictures, desc="Checking", unit="image", mininterval=0.1 if sys.stderr.isatty() else 15)
    check = check_export(exported, model, image_processor, progress, size)
    if not check.agreement >= MIN_AGREEMENT:
        raise ValueError(
            f"the export is not the model's equal: {describe(check)}; at least {100 * MIN_AGREEMENT} % must"
        )
    packages = ["transformers", "torch", *EXPORT_FORMATS[args.format].packages]
    source = Source(
        args.model, digest_of_weights(model), args.format, size, {name: version(name) for name in packages}
    )
    write_json(folder / "check.json", {"source": asdict(source), "check": check._asdict()})
    return check


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    output_dir = args.output_dir
    try:
        if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
            raise ValueError(f"{output_dir} is there already; name another OUTPUT_DIR, or remove it")
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, which it takes whole.
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=output_dir.parent) as folder:
            os.chmod(folder, 0o777 & ~_umask())  # other users may read what others may read in general
            check = export(args, Path(folder))
            os.replace(folder, output_dir)
            os.mkdir(folder)  # for the block to remove
    except (ValueError, OSError) as error:
        print("error:", *as_text(error).splitlines(), file=sys.stderr)
        return 2
    print(f"{describe(check)}. The export is in {as_text(output_dir)}")
    return 0


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


if __name__ == "__main__":
    sys.exit(main())
