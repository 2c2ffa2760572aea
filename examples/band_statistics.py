# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Measure the mean and standard deviation of each band of a dataset's training pictures.

    python examples/band_statistics.py --dataset my_scenes --bands 4 3 2 8 --output bands.json

prints a table and writes what train_seg.py takes as --band_statistics; without that file a training measures them
itself, which is the same. The arguments about data are train_seg.py's. The exit status is 0, or 2 if data or arguments
are wrong.
"""

import argparse
import sys
from pathlib import Path

from common_arguments import add_data_arguments, load_dataset

from van_hf.data import measure_bands
from van_hf.files import write_json


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        statistics = measure_bands(load_dataset(args))
        if args.output is not None:
            write_json(args.output, statistics.to_dict())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(statistics.describe())
    return 0


if __name__ == "__main__":
    sys.exit(main())
