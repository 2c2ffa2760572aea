# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Measure parts of van_hf beside what they stand in for.

    python examples/benchmark.py inference --model_size b0 b2 --compile

All sides do the same work in one run and take turns, so that a busy machine is as slow for the one as for the other.
"""

import argparse
import os
import sys

import torch
from benchmarks import (
    complexity,
    heads,
    import_time,
    inference,
    loader,
    metric,
    plot,
    postprocess,
    throughput,
    training,
)
from benchmarks.measuring import machine, write_json

from van_hf.machine import use_huge_pages


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK", dest="benchmark")
    inference.add_command(commands)
    training.add_commands(commands)
    for module in (throughput, heads, plot, postprocess, metric, loader, import_time, complexity):
        module.add_command(commands)
    args = parser.parse_args(argv)
    use_huge_pages()
    if args.benchmark == "plot":
        try:
            plot.plot(args.file, args.output)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        return 0
    if args.json is not None:
        folder = args.json.absolute().parent
        if not folder.is_dir():
            parser.error(f"--json {args.json}: there is no folder {folder}")
        if args.json.is_dir() or not os.access(folder, os.W_OK):
            parser.error(f"--json {args.json}: {'it is a folder' if args.json.is_dir() else 'it cannot be written'}")
    if getattr(args, "num_threads", None) is not None:
        torch.set_num_threads(args.num_threads)
    facts = machine(getattr(args, "device", "cpu"))
    tables = []
    try:
        for table in args.run(args):
            print(table, end="\n\n", flush=True)
            tables.append(table)
    except KeyboardInterrupt:
        print("Stopped; no file was written.", file=sys.stderr)
        return 130
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    if args.json is not None:
        settings = {name: value for name, value in vars(args).items() if name not in ("run", "json", "benchmark")}
        write_json(args.json, args.benchmark, settings, facts, tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
