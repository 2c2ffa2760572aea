# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Training samples beside the plain way, which resizes the whole picture before it crops."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from van_hf.data import TrainAugmentation, TrainSamples
from van_hf.data.augmentation import CROP_TRIES, PADDING_COLOR
from van_hf.model.interpolation import keep_ratio_size

from .measuring import IGNORE_INDEX, Table, add_common_arguments, integer_from, take_turns
from .measuring import size as size_argument

NUM_LABELS = 150
JPEG_QUALITY = 90
DETAIL = 24  # side in pixels of the largest details of the generated pictures


def add_command(commands) -> None:
    help = "training samples from JPEG files, beside resizing the whole picture with torchvision"
    parser = commands.add_parser("loader", help=help, description=help)
    parser.add_argument("--size", type=size_argument, nargs="+", default=[(512, 683), (1600, 2400)],
                        metavar="HEIGHTxWIDTH", help="of the pictures in pixels (512x683 1600x2400)")  # fmt: skip
    parser.add_argument("--crop_size", type=integer_from(1), default=512, help="side of the samples in pixels")
    parser.add_argument("--num_images", type=integer_from(1), default=4, help="pictures of each size (%(default)s)")
    parser.add_argument("--num_samples", type=integer_from(1), default=16, help="samples of a turn (%(default)s)")
    add_common_arguments(parser, repeats=5, device=False)
    parser.set_defaults(run=benchmark_loader)


class PlainAugmentation:
    """The training augmentation as a plain composition of torchvision's transforms.

    The whole picture is resized, by the rule and the random ratio of [`TrainAugmentation`], then cropped, flipped and
    distorted.
    """

    def __init__(self, crop_size: int):
        self.rules = TrainAugmentation(crop_size)
        self.distort = v2.RandomPhotometricDistort()

    def __call__(
        self, image: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (3, height, width) and (height, width) -> uint8 (3, crop, crop) and (crop, crop)."""
        least, most = self.rules.ratio_range
        ratio = least + (most - least) * torch.rand((), generator=generator).item()
        long_side, short_side = (int(side * ratio) for side in sorted(self.rules.scale, reverse=True))
        size = list(keep_ratio_size(*labels.shape, short_side, long_side))
        image = F.resize(image, size, antialias=False)
        labels = F.resize(labels[None], size, interpolation=v2.InterpolationMode.NEAREST)
        shown = [min(side, self.rules.crop_size) for side in size]
        for _ in range(CROP_TRIES):
            corner = [
                int(torch.randint(side - part + 1, (), generator=generator))
                for side, part in zip(size, shown, strict=True)
            ]
            cropped = F.crop(labels, *corner, *shown)
            counts = torch.bincount(cropped.flatten(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
            if counts.max() < self.rules.cat_max_ratio * counts.sum():
                break
        image = F.crop(image, *corner, *shown)
        if torch.rand((), generator=generator) < self.rules.flip_probability:
            image, cropped = F.horizontal_flip(image), F.horizontal_flip(cropped)
        padding = [0, 0, *(self.rules.crop_size - part for part in reversed(shown))]
        image = F.pad(self.distort(image), padding, fill=list(PADDING_COLOR))
        return image, F.pad(cropped, padding, fill=IGNORE_INDEX)[0]


def write_pictures(folder: Path, num_images: int, height: int, width: int) -> datasets.Dataset:
    """Return a dataset of new JPEG pictures and PNG masks, files in `folder`; they have details of all sizes."""
    rng = np.random.default_rng(0)
    paths: dict[str, list[str]] = {"image": [], "annotation": []}
    for index in range(num_images):
        coarse = rng.integers(0, 255, (height // DETAIL + 2, width // DETAIL + 2, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        pixels = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        regions = rng.integers(0, NUM_LABELS, (4, 5), dtype=np.uint8)
        mask = Image.fromarray(regions).resize((width, height), Image.Resampling.NEAREST)
        paths["image"].append(str(folder / f"{index}.jpg"))
        paths["annotation"].append(str(folder / f"{index}.png"))
        Image.fromarray(pixels).save(paths["image"][-1], quality=JPEG_QUALITY)
        mask.save(paths["annotation"][-1])
    features = datasets.Features(image=datasets.Image(), annotation=datasets.Image())
    return datasets.Dataset.from_dict(paths, features=features)


def decode(example: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an example's picture, uint8 (3, height, width), and its mask, uint8 (height, width)."""
    return F.pil_to_tensor(example["image"].convert("RGB")), F.pil_to_tensor(example["annotation"])[0]


def load_plainly(split: datasets.Dataset, crop_size: int, num_samples: int) -> None:
    augmentation, generator = PlainAugmentation(crop_size), torch.Generator().manual_seed(0)
    for index in range(num_samples):
        augmentation(*decode(split[index % len(split)]), generator)


def decode_all(split: datasets.Dataset, num_samples: int) -> None:
    for index in range(num_samples):
        decode(split[index % len(split)])


def load_all(samples: TrainSamples) -> None:
    for index in range(len(samples)):
        samples[index]


def loader_sides(split: datasets.Dataset, crop_size: int, num_samples: int) -> dict[str, Callable[[], None]]:
    """Return what loads the samples in each way, and what only decodes as many pictures and masks."""
    fields = {"num_labels": NUM_LABELS, "do_reduce_labels": False, "seed": 0, "num_samples": num_samples}
    ours = TrainAugmentation(crop_size)
    return {
        "plain": partial(load_plainly, split, crop_size, num_samples),
        "van_hf": partial(load_all, TrainSamples(split, ours, **fields)),
        "van_hf, jpeg_draft": partial(load_all, TrainSamples(split, ours, jpeg_draft=True, **fields)),
        "decoding alone": partial(decode_all, split, num_samples),
    }


def benchmark_loader(args: argparse.Namespace) -> Iterator[Table]:
    for height, width in args.size:
        title = f"Samples of {args.crop_size} x {args.crop_size} from JPEG pictures of {height} x {width}, one process"
        with tempfile.TemporaryDirectory() as folder:
            split = write_pictures(Path(folder), args.num_images, height, width)
            seconds = take_turns(loader_sides(split, args.crop_size, args.num_samples), args.repeats, desc=title)
        decoding = seconds["decoding alone"]
        rows = [
            {
                "side": name,
                "seconds": measured / args.num_samples,
                "samples/s": args.num_samples / measured,
                "speedup": seconds["plain"] / measured,
                # A draft is decoded in another way, in a share of its own that is not known.
                "decoding": None if name.endswith("jpeg_draft") else decoding / measured,
            }
            for name, measured in seconds.items()
        ]
        yield Table(title, rows, ["Decoding is of picture and mask at full size, as a share of the side's time."])
