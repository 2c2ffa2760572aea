# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Look at every picture and mask of a dataset, and say what a training would fail at, or be spoilt by.

    python examples/inspect_dataset.py --dataset my-data --output_dir inspected

The arguments about data are train_seg.py's; label names may still be missing. The output folder gets report.html, a
page of its own, report.json, pictures, and suggested files. The same command goes on where it was stopped, and after
files were mended looks at these alone. The exit status is 0, 1 where training would fail or be spoilt, or 2 if
arguments are wrong.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import datasets
import torch
from common_arguments import (
    add_data_arguments,
    escape_what_cannot_be_shown,
    expand_user,
    load_dataset,
    printing,
    write_pictures,
)
from inspection_page import render_page
from inspection_pictures import InspectionPictures, draw_pictures
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from van_hf.bands import check_readable
from van_hf.data import SegmentationDataset
from van_hf.data.findings import ERROR, SPLITS, Finding, Inspection, find_all, label_shares
from van_hf.data.inspection import ExampleRecord, InspectedExamples, LabelReading
from van_hf.data.loading import load_splits
from van_hf.files import claim_folder, read_json, write_json, write_text
from van_hf.training import DEFAULT_RECIPES, RECIPES
from van_hf.visualization import plot_label_frequencies

RECORDS_FILE = "examples.jsonl"
LABEL_ARGUMENTS = ("id2label", "label_table", "mask_values", "mask_palettes", "mask_tolerance", "ignore_unlisted")
NUM_PRINTED = 5


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--output_dir", type=expand_user, required=True, help="folder of the report")
    parser.add_argument("--recipe", choices=tuple(RECIPES), help="whose crops are shown; by default semantic_fpn_40k")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1, help="processes; all cores by default")
    args = parser.parse_args(argv)
    if args.num_workers < 0:
        parser.error(f"--num_workers must be 0 or more, got {args.num_workers}")
    if args.recipe is None:
        args.recipe = DEFAULT_RECIPES.get(args.dataset, "semantic_fpn_40k")
    return args


def load(args: argparse.Namespace) -> tuple[SegmentationDataset | datasets.DatasetDict, Inspection]:
    """Load the dataset or, where its labels are not settled, its splits; and what is known before files are opened.

    Raises:
        ValueError: there is no such dataset, or an argument does not fit it.
    """
    problems = []
    if args.bands is not None:
        check_readable(args.bands)
    try:
        dataset = load_dataset(args, problems)
    except ValueError as error:
        if args.annotations or any(getattr(args, name) for name in LABEL_ARGUMENTS):
            raise
        problems.clear()
        splits = load_splits(
            args.dataset,
            image_column=args.image_column,
            mask_column=args.mask_column,
            train_split=args.train_split,
            validation_split=args.validation_split,
            config_name=args.dataset_config_name,
            revision=args.dataset_revision,
            problems=problems,
        )
        bands = args.bands and tuple(args.bands)
        return splits, Inspection(args.dataset, {}, problems, label_error=str(error), bands=bands)
    return dataset, Inspection(
        args.dataset,
        {},
        problems,
        dataset.id2label,
        do_reduce_labels=dataset.do_reduce_labels,
        has_meaning=dataset.mask_meaning is not None,
        bands=dataset.bands,
    )


def read_records(path: Path) -> dict[str, dict[int, ExampleRecord]]:
    """Return the records that were written before, by split; lines that are no records are left out."""
    known = {split: {} for split in SPLITS}
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                split, _, content = line.partition(b" ")
                # The last line of a process that was killed, of another version, or of a damaged disk.
                with suppress(ValueError, TypeError, AttributeError, RecursionError):
                    record = ExampleRecord.from_json(content.decode())
                    known.setdefault(split.decode(), {})[record.idx] = record
    return known


def write_records(path: Path, records: dict[str, dict[int, ExampleRecord]]) -> None:
    """Write records as lines of a split's name and JSON, as [`read_records`] reads them."""
    lines = [f"{split} {record.to_json()}\n" for split, found in records.items() for record in found.values()]
    write_text(path, "".join(lines))


def look_at_split(examples: InspectedExamples, num_workers: int) -> Iterator[ExampleRecord]:
    """Yield the record of each example, in order; several processes read."""
    workers = min(num_workers, -(-len(examples) // 16)) if len(examples) > 32 else 0
    options = {"prefetch_factor": 16} if workers else {}
    yield from DataLoader(examples, batch_size=None, num_workers=workers, collate_fn=_as_it_is, **options)


def _as_it_is(record: ExampleRecord) -> ExampleRecord:
    return record


def look_at_all(
    splits: datasets.DatasetDict, reading: LabelReading, args: argparse.Namespace
) -> dict[str, list[ExampleRecord]]:
    """Return the records of all examples, which are written as they come, so that a run that is stopped can go on."""
    path = Path(args.output_dir) / RECORDS_FILE
    known = read_records(path)
    write_records(path, known)  # a last line that was cut off would spoil the next one
    records = {}
    total = sum(len(splits[split]) for split in SPLITS)
    interval = 0.5 if sys.stderr.isatty() else 15
    with path.open("a", encoding="utf-8") as file, tqdm(total=total, unit="picture", mininterval=interval) as progress:
        for split in SPLITS:
            progress.set_description(f"Looking at {split}")
            examples = InspectedExamples(splits[split], f"{args.dataset} {split}", reading, known[split])
            records[split] = []
            for record in look_at_split(examples, args.num_workers):
                before = known[split].get(record.idx)
                if before is None or before.digest != record.digest:
                    file.write(f"{split} {record.to_json()}\n")
                    file.flush()
                records[split].append(record)
                progress.update()
    write_records(path, {split: {r.idx: r for r in found} for split, found in records.items()})
    return records


def keep_edited(path: Path, suggested: dict) -> None:
    """Rename a suggested file that holds something else by now, such as the labels' names that were written."""
    try:
        is_edited = path.exists() and read_json(path) != suggested
    except ValueError:
        is_edited = True
    if is_edited:
        kept = path.with_name(f"{path.name}.before")
        os.replace(path, kept)
        print(f"warning: {path} is suggested anew; what was in it is in {kept}", file=sys.stderr)


def write_report(
    inspection: Inspection, findings: list[Finding], pictures: InspectionPictures, output_dir: Path
) -> None:
    """Write report.json, report.html, the pictures and the suggested files."""
    for finding in findings:
        for name, content in finding.suggested_files.items():
            keep_edited(output_dir / name, content)
            write_json(output_dir / name, content)
    report = inspection.report(findings)
    write_json(output_dir / "report.json", report)
    write_text(output_dir / "report.html", render_page(report, pictures))
    draw = {f"{name}.jpg": sheet.save for name, sheet in pictures.sheets().items()}
    if inspection.id2label is not None:
        shares = {s: label_shares(summary, len(inspection.id2label)) for s, summary in inspection.summaries().items()}
        if any(share.any() for share in shares.values()):
            draw["label_frequencies.png"] = lambda path: plot_label_frequencies(shares, inspection.id2label, path)
    write_pictures(output_dir, draw)


def inspect(args: argparse.Namespace) -> list[Finding]:
    """Look at the dataset, write the report, and return the findings."""
    dataset, inspection = load(args)
    output_dir = Path(args.output_dir)
    with claim_folder(output_dir):
        if isinstance(dataset, SegmentationDataset):
            splits = dataset.splits
            reading = LabelReading(dataset.num_labels, dataset.do_reduce_labels, dataset.mask_meaning, dataset.bands)
        else:
            splits, reading = dataset, LabelReading(bands=inspection.bands)
        inspection = replace(inspection, records=look_at_all(splits, reading, args))
        findings = [
            replace(finding, arguments=finding.arguments.replace("{folder}", shlex.quote(args.output_dir)))
            for finding in find_all(inspection)
        ]
        pictures = draw_pictures(dataset, inspection, RECIPES[args.recipe])
        write_report(inspection, findings, pictures, output_dir)
    return findings


def print_findings(findings: list[Finding], output_dir: str) -> None:
    """Print what was found, the errors first, with the first files of each."""
    for finding in findings:
        print(f"{finding.severity}: {finding.text}")
        for file in finding.files[:NUM_PRINTED]:
            print(f"    {file}")
        if len(finding.files) > NUM_PRINTED:
            print(f"    and {len(finding.files) - NUM_PRINTED} more")
        if finding.arguments:
            print(f"    add {finding.arguments}")
    num_errors = sum(finding.severity == ERROR for finding in findings)
    page = Path(output_dir) / "report.html"
    print(f"Errors: {num_errors}, other findings: {len(findings) - num_errors}; {page} shows it all")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    escape_what_cannot_be_shown()
    torch.set_num_threads(1)  # the processes have the cores
    try:
        findings = inspect(args)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with printing():
        print_findings(findings, args.output_dir)
    return int(any(finding.severity == ERROR for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
