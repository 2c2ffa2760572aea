# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Draw validation pictures beside truth and prediction.

    python examples/show_predictions.py outputs/van-scenes --pictures 0 5 --output predictions.png

draws the first and the sixth of what examples/train_seg.py without arguments was validated on. The arguments about
data are train_seg.py's. The exit status is 0, or 2 if model, data or arguments are wrong.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from common_arguments import add_data_arguments, load_dataset
from matplotlib.figure import Figure

from van_hf.evaluation import load_trained, match_bands, read_validation_example
from van_hf.files import write_whole
from van_hf.inference import predict
from van_hf.machine import use_huge_pages
from van_hf.visualization import as_picture, plot_predictions


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a folder, or a model of the Hub")
    parser.add_argument("--output", type=Path, required=True, help="file to write, such as predictions.png")
    parser.add_argument("--pictures", nargs="+", type=int, default=[0], help="their numbers, from 0; 0 by default")
    add_data_arguments(parser)
    args = parser.parse_args(argv)
    known = Figure().canvas.get_supported_filetypes()
    if args.output.suffix.removeprefix(".") not in known:
        parser.error(f"--output must end in one of .{', .'.join(sorted(known))}, got {args.output}")
    return args


def draw(args: argparse.Namespace) -> None:
    """Predict the pictures that the arguments name, and write the file."""
    dataset = load_dataset(args)
    total = len(dataset.splits["validation"])
    if not all(0 <= idx < total for idx in args.pictures):
        raise ValueError(f"--pictures must be numbers from 0 to {total - 1}, got {args.pictures}")
    model, image_processor = load_trained(args.model, dataset)
    dataset = match_bands(dataset, image_processor, args.model)
    images, references = zip(*(read_validation_example(dataset, idx) for idx in args.pictures), strict=True)
    plot = partial(
        plot_predictions,
        [as_picture(image, image_processor) for image in images],
        [labels.numpy() for labels in references],
        [predict(model, image_processor, image).numpy() for image in images],
        dataset.id2label,
        palette=dataset.palette,
    )
    write_whole(args.output, lambda path: plot(path=path))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    use_huge_pages()
    try:
        draw(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output} shows {len(args.pictures)} of the validation pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
