# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Export a trained model for another runtime, and check the result there against PyTorch.

    python examples/export.py outputs/van-scenes outputs/van-scenes-onnx --format onnx
    python examples/export.py outputs/van-scenes outputs/van-scenes-int8 --format openvino --int8 scenes

The program takes pictures of any number and size, or with --size one of a fixed size. It is run on 16 pictures or more
of several sizes: in float32, where less than 99.99 % of the pixels get the model's label, the command fails and leaves
nothing. With --int8 or in half precision it is the mean IoU on a data set's validation pictures that must hold, to
half a point. The folder that it writes goes where a model's folder goes in predict.py, eval_seg.py and demo.py. Needs
`pip install -e ".[export]"`.
"""

import argparse
import copy
import errno
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from common_arguments import add_data_arguments, load_dataset
from predict import IMAGE_SUFFIXES, as_text, find_images
from tqdm.auto import tqdm

from van_hf import VanForSemanticSegmentation, VanImageProcessor
from van_hf.data import SegmentationDataset, read_example
from van_hf.data.scenes import paint_scene
from van_hf.evaluation import check_labels, evaluate, match_bands, read_validation_example
from van_hf.exports import (
    EXPORT_FORMATS,
    MAX_SIDE,
    MIN_SIDE,
    ExportCheck,
    ExportedSegmentationModel,
    ExportInfo,
    check_export,
    check_packages,
    export_model,
    in_a_line,
    package_versions,
    save_info,
)
from van_hf.files import whole_folder
from van_hf.inference import RATIOS, digest_of_weights, load_model, predict
from van_hf.model.interpolation import resize_to
from van_hf.prediction import read_picture
from van_hf.quantization import quantize_export
from van_hf.visualization import palette_of

if TYPE_CHECKING:
    from transformers.exporters import ExportedModel

DTYPES = ("float32", "bfloat16", "float16")
NUM_PICTURES = 16
MIN_AGREEMENT = 0.9999
ALLOWED_LOSS = 0.5  # points of mean IoU
TIMED_CALLS = 5


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a folder, or a model of the Hub")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", type=Path, help="must not be there yet")
    parser.add_argument("--format", choices=EXPORT_FORMATS, required=True, help="of the program")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="what the program computes in")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the one picture that it takes, in pixels"
    )
    parser.add_argument(
        "--label_maps", action="store_true", help="let the program return labels at the input's size, not scores"
    )
    parser.add_argument(
        "--images",
        metavar="IMAGE_OR_FOLDER",
        nargs="+",
        type=Path,
        help=f"at least {NUM_PICTURES} pictures to check it on; by default those of the data set, or generated scenes",
    )
    add_data_arguments(parser)
    parser.set_defaults(dataset=None)
    quantization = parser.add_argument_group("int8 and half precision")
    quantization.add_argument(
        "--int8",
        metavar="DATASET",
        help="convolutions in int8, calibrated on training pictures of this data set: what --dataset takes",
    )
    quantization.add_argument("--num_calibration_pictures", type=int, default=128, help="(%(default)s)")
    quantization.add_argument("--seed", type=int, default=0, help="of which pictures these are (%(default)s)")
    quantization.add_argument(
        "--num_eval_pictures",
        type=int,
        default=500,
        help="validation pictures, evenly spread, of --int8's or --dataset's data set for the mean IoU (%(default)s)",
    )
    quantization.add_argument(
        "--allow_loss", type=float, default=ALLOWED_LOSS, metavar="POINTS", help="of mean IoU in percent (%(default)s)"
    )
    args = parser.parse_args(argv)
    if args.int8 is not None and args.dataset is not None:
        parser.error("--int8 names the data set; leave --dataset out")
    if args.dtype != "float32" and args.int8 is None and args.dataset is None:
        parser.error(f"--dtype {args.dtype} is judged by the mean IoU: name a data set with --dataset")
    if args.int8 is not None and EXPORT_FORMATS[args.format].quantizer is None:
        parser.error(f"--int8 is not to be had for {args.format}")
    for name in ("num_calibration_pictures", "num_eval_pictures"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(args, name)}")
    args.dataset = args.int8 or args.dataset
    return args


@dataclass(frozen=True)
class CalibrationPictures:
    """Training pictures as the model takes them, read each time that they are asked for.

    Attributes:
        dataset: has the split "train".
        image_processor: the export's.
        indices: numbers of the pictures.
    """

    dataset: SegmentationDataset
    image_processor: VanImageProcessor
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for idx in progress_bar(self.indices, "Calibrating"):
            image, _ = read_example(
                self.dataset.splits["train"],
                idx,
                num_labels=self.dataset.num_labels,
                do_reduce_labels=self.dataset.do_reduce_labels,
                name=f"{self.dataset.name} train",
                mask_meaning=self.dataset.mask_meaning,
                bands=self.dataset.bands,
            )
            yield self.image_processor(image, return_tensors="pt")["pixel_values"]


def progress_bar(items: Sequence, desc: str) -> tqdm:
    return tqdm(items, desc=desc, unit="image", mininterval=0.1 if sys.stderr.isatty() else 15)


def calibration_pictures(
    dataset: SegmentationDataset, image_processor: VanImageProcessor, number: int, seed: int
) -> CalibrationPictures:
    """Draw training pictures; the same data set and seed give the same ones."""
    total = len(dataset.splits["train"])
    indices = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:number].sort().values.tolist()
    return CalibrationPictures(dataset, image_processor, indices)


def read_pictures(
    image_processor: VanImageProcessor, sources: list[Path] | None, dataset: SegmentationDataset | None
) -> list[torch.Tensor]:
    """Return the pictures to check the export on, each as [`read_picture`] returns it.

    Args:
        image_processor: the model's.
        sources: files and folders; without them the data set's validation pictures are taken, or generated ones.
        dataset: has the split "validation", if there is one.

    Raises:
        ValueError: there are too few, or one cannot be read.
    """
    if sources is None and dataset is not None:
        total = len(dataset.splits["validation"])
        return [read_validation_example(dataset, idx % total)[0] for idx in range(NUM_PICTURES)]
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
            pictures.append(read_picture(path, image_processor))
        except Exception as error:
            raise ValueError(f"the picture {path} cannot be read ({type(error).__name__}: {error})") from error
    return pictures


def check_inputs(
    image_processor: VanImageProcessor, pictures: Sequence[torch.Tensor], is_fixed: bool
) -> Iterator[torch.Tensor]:
    """Yield pixel values of one picture each, (1, 3, height, width), to check an export on.

    Those of a free size are taken at other multiples of the image processor's size in turn, of those of multi-scale
    inference, and in the end two at once.
    """
    pixel_values = None
    for picture, ratio in zip(progress_bar(pictures, "Checking"), cycle(RATIOS)):
        pixel_values = image_processor(picture, return_tensors="pt")["pixel_values"]
        if not is_fixed:
            sides = (min(max(round(side * ratio), MIN_SIDE), MAX_SIDE) for side in pixel_values.shape[-2:])
            pixel_values = resize_to(pixel_values, tuple(sides))
        yield pixel_values
    if not is_fixed and pixel_values is not None:
        yield torch.cat([pixel_values, pixel_values.flip(-1)])


def compare_mean_iou(
    model: VanForSemanticSegmentation,
    exported: ExportedSegmentationModel,
    image_processors: tuple[VanImageProcessor, VanImageProcessor],
    dataset: SegmentationDataset,
    number: int,
) -> dict[str, float | int]:
    """Return the mean IoU of a model and of its export, each with its image processor, on validation pictures."""
    split = dataset.splits["validation"]
    indices = torch.linspace(0, len(split) - 1, min(number, len(split))).round().long().tolist()
    dataset = replace(dataset, splits=type(dataset.splits)(dataset.splits, validation=split.select(indices)))
    accelerator = Accelerator(cpu=True)
    figures = {"num_pictures": len(indices)}
    for name, side, processor in zip(("model", "export"), (model, exported), image_processors, strict=True):
        print(f"Mean IoU of the {name} on {len(indices)} pictures", flush=True)
        figures[name] = evaluate(accelerator, partial(predict, side, processor), dataset)["mean_iou"]
    return figures


def compare_speed(
    quantized: ExportedSegmentationModel, unquantized: ExportedSegmentationModel, pixel_values: torch.Tensor
) -> float:
    """Return how many times as fast one export is as another on this machine, by the median of calls in turns."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for turn in range(TIMED_CALLS + 1):
        for idx, exported in enumerate((quantized, unquantized)):
            started = time.perf_counter()
            exported(pixel_values)
            if turn:  # the first call makes ready
                seconds[idx].append(time.perf_counter() - started)
    return statistics.median(seconds[1]) / statistics.median(seconds[0])


def describe(check: ExportCheck) -> str:
    """Return the figures of a check in words."""
    smallest, largest = check.sizes[0], check.sizes[-1]
    text = (
        f"{100 * check.agreement:.4f} % of the pixels of {check.num_pictures} pictures of {len(check.sizes)} sizes "
        f"({smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]}) get the same label"
    )
    if check.largest_difference is not None:
        text += (
            f"; the largest difference of the scores, which go up to {check.largest_score:.3g}, is"
            f" {check.largest_difference:.1e}"
        )
    return text


def check_loss(mean_iou: dict[str, float | int], allowed: float) -> str:
    """Return what half precision or int8 has cost, in words; raise a ValueError where it is more than allowed."""
    before, after = 100 * mean_iou["model"], 100 * mean_iou["export"]
    text = f"mean IoU on {mean_iou['num_pictures']} validation pictures {before:.2f} before and {after:.2f} after"
    if not before - after <= allowed:
        raise ValueError(
            f"{text}: {before - after:.2f} points are lost, and {allowed} may be; --allow_loss takes more, and other"
            " or more --num_calibration_pictures may lose less"
        )
    return text


def check_space(folder: Path, model: VanForSemanticSegmentation) -> None:
    """Raise an OSError where an export may not fit on the disk: not every exporter survives a full one."""
    # Twice the weights, with --int8; graphs and constants of fixed sizes take the rest.
    needed = 3 * sum(parameter.numel() * 4 for parameter in model.parameters()) + 2**25
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"{free / 1e6:.0f} MB are free, and an export may take {needed / 1e6:.0f}", str(folder)
        )


def save_program(program: "ExportedModel", folder: Path) -> None:
    """Write a program; whatever its exporter raises on a full disk is an OSError that names the folder."""
    try:
        program.save_pretrained(folder)
    except Exception as error:
        raise OSError(getattr(error, "errno", None) or errno.EIO, in_a_line(error), str(folder)) from error


def export(args: argparse.Namespace, folder: Path, scratch: Path) -> list[str]:
    """Write an export to a folder, and check it.

    Args:
        args: the command line.
        folder: where the export goes; it is there, and empty.
        scratch: where what is needed meanwhile goes.

    Returns:
        What there is to say of it, in sentences without full stops.

    Raises:
        ValueError: packages, the model, the data set or the pictures are not as they must be, or the export is not
            the model's equal.
    """
    check_packages(args.format, int8=args.int8 is not None)
    size = tuple(args.size) if args.size else None
    model, own_processor = load_model(args.model, "cpu")
    if isinstance(model, ExportedSegmentationModel):
        raise ValueError(f"{args.model} is an export itself; name the model that it was made of")
    if own_processor.bands is not None and args.images is None and args.dataset is None:
        raise ValueError(
            f"{args.model} takes bands, which the pictures that are generated to check it on have not; give --images"
            " or --dataset"
        )
    check_space(folder, model)
    dataset = None
    if args.dataset is not None:
        dataset = match_bands(load_dataset(args), own_processor, args.model)
        check_labels(args.model, model.config, dataset)
    image_processor = own_processor
    if size is not None:
        changes = {"size": {"height": size[0], "width": size[1]}, "do_resize": True}
        image_processor = VanImageProcessor.from_dict(own_processor.to_dict(), **changes)
    pictures = read_pictures(image_processor, args.images, dataset)

    print(f"Exporting to {args.format}: it takes seconds to minutes", flush=True)
    labelled = copy.deepcopy(model)
    labelled.config.palette = palette_of(model.config)  # so that the folder says all
    program = export_model(labelled, args.format, size, args.dtype, args.label_maps)
    info = ExportInfo(
        model=args.model,
        digest=digest_of_weights(model),
        format=args.format,
        dtype=args.dtype,
        size=size,
        label_maps=args.label_maps,
        packages=package_versions(args.format, int8=args.int8 is not None),
    )
    unquantized = None
    if args.int8 is not None:
        save_program(program, scratch)
        save_info(scratch, info, {})
        unquantized = ExportedSegmentationModel.from_pretrained(scratch)
        calibration = calibration_pictures(dataset, image_processor, args.num_calibration_pictures, args.seed)
        quantize_export(program, args.format, calibration)
        info = replace(info, int8={"dataset": args.int8, "num_pictures": len(calibration), "seed": args.seed})
    save_program(program, folder)
    image_processor.save_pretrained(folder)
    save_info(folder, info, {})
    del program
    exported = ExportedSegmentationModel.from_pretrained(folder, trust_pickle=True)  # it was written here

    check = check_export(exported, model, check_inputs(image_processor, pictures, size is not None))
    content, sentences = check._asdict(), [describe(check)]
    if check.largest_difference is not None and not math.isfinite(check.largest_difference):
        raise ValueError(f"the scores of the export, or those of {args.model} itself, are not all numbers")
    if args.dtype == "float32" and args.int8 is None:
        if not check.agreement >= MIN_AGREEMENT:
            raise ValueError(
                f"the export is not the model's equal: {describe(check)}; at least {100 * MIN_AGREEMENT} % must"
            )
    else:
        processors = (own_processor, image_processor)
        mean_iou = compare_mean_iou(model, exported, processors, dataset, args.num_eval_pictures)
        content["mean_iou"] = mean_iou
        sentences.append(check_loss(mean_iou, args.allow_loss))
    if unquantized is not None:
        pixel_values = image_processor(pictures[0], return_tensors="pt")["pixel_values"]
        speedup = content["speedup"] = compare_speed(exported, unquantized, pixel_values)
        height, width = pixel_values.shape[-2:]
        slower = ": SLOWER than without --int8, as it can be on processors without instructions for it"
        sentences.append(
            f"on this machine int8 is {speedup:.2f} times as fast as {args.dtype} at {height}x{width}"
            + (slower if speedup < 1 else "")
        )
    save_info(folder, info, content)
    return sentences


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        with whole_folder(args.output_dir) as folder, tempfile.TemporaryDirectory() as scratch:
            sentences = export(args, folder, Path(scratch))
    except (ValueError, OSError) as error:
        print("error:", *as_text(error).splitlines(), file=sys.stderr)
        return 2
    for sentence in sentences:
        print(f"{sentence[0].upper()}{sentence[1:]}.")
    print(f"The export is in {as_text(args.output_dir)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
