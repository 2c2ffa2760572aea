# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What a training would fail at, or be spoilt by, in a dataset that was inspected; and the arguments that help."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from .augmentation import IGNORE_INDEX
from .folders import FileProblem
from .inspection import ExampleRecord, SplitSummary, find_duplicates, summarize
from .label_tables import LABEL_TABLES
from .masks import MASK_MODES, UNLISTED

ERROR, WARNING, NOTE = "error", "warning", "note"
SPLITS = ("train", "validation")
# As many values as an argument is readable with; more are written to a file.
MAX_IN_ARGUMENT = 12
# Values, or colours, that hold this share of the pixels are meant, unless they are as near as `TOLERANCE` to one with
# more pixels; all others come of interpolation or compression.
MEANT_SHARE = 0.002
TOLERANCE = 20
# In JPEGs it is the share of all that is so near, and so many of the values with the most pixels are looked at.
JPEG_SHARE = 0.005
MAX_COMPARED = 500
RARE_SHARE = 0.001
# The least side, in pixels, at which VAN's coarsest feature map has a pixel of the picture's own.
LEAST_SIDE = 32
KINDS = {
    "unreadable picture": "Pictures that cannot be read, to be mended or removed",
    "unreadable mask": "Masks that cannot be read, to be mended or removed",
    "empty picture": "Pictures that are empty files",
    "empty mask": "Masks that are empty files",
    "size": "Masks of another size than their pictures",
    "mask mode": "Masks whose pixels are neither whole numbers nor colours",
    "colours": "Masks of colours, where labels have none",
    "values": "Masks with values, or colours, that no label has",
}


@dataclass(frozen=True)
class Finding:
    """Something that was found, and what to do about it.

    Attributes:
        severity: "error" where training would fail or be spoilt, "warning", or "note".
        kind: what it is about, in a word or two.
        text: what was found.
        files: all the files that it is about, each with what is wrong with it where that differs.
        arguments: the arguments of train_seg.py that help; empty where there are none. `{folder}` is where
            `suggested_files` are written to.
        suggested_files: what to write, by file name: JSON objects.
    """

    severity: str
    kind: str
    text: str
    files: list[str] = field(default_factory=list)
    arguments: str = ""
    suggested_files: dict[str, dict] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """All that is known of a dataset after each of its files was looked at.

    Attributes:
        name: what it was loaded as.
        records: of each split, in order.
        file_problems: files of which there are no examples.
        id2label: the label names; None where labels are not settled.
        label_error: why they are not.
        do_reduce_labels: whether 0 in the masks is ignored.
        has_meaning: whether values or colours are listed.
        bands: which are read of pictures that are not RGB.
    """

    name: str
    records: dict[str, list[ExampleRecord]]
    file_problems: list[FileProblem] = field(default_factory=list)
    id2label: dict[int, str] | None = None
    label_error: str | None = None
    do_reduce_labels: bool = False
    has_meaning: bool = False
    bands: tuple[int, ...] | None = None

    def summaries(self) -> dict[str, SplitSummary]:
        """Return what the examples of each split hold together."""
        return {split: summarize(records) for split, records in self.records.items()}

    def report(self, findings: Sequence[Finding]) -> dict:
        """Return all that was found as an object for JSON."""
        splits = {}
        for split, summary in self.summaries().items():
            content = {
                name: dict(value.most_common()) if isinstance(value, Counter) else value
                for name, value in vars(summary).items()
            }
            splits[split] = content | {"ignored_share": summary.ignored_share}
        return {
            "dataset": self.name,
            "id2label": self.id2label,
            "do_reduce_labels": self.do_reduce_labels,
            "splits": splits,
            "findings": [asdict(finding) for finding in findings],
        }


def find_all(inspection: Inspection) -> list[Finding]:
    """Return all findings, the errors first."""
    summaries = inspection.summaries()
    found = [
        *_file_findings(inspection),
        *_meaning_findings(inspection, summaries),
        *_label_findings(inspection, summaries),
        *_duplicate_findings(inspection),
        *_picture_findings(inspection),
        *_mask_findings(inspection),
    ]
    return sorted(found, key=lambda finding: (ERROR, WARNING, NOTE).index(finding.severity))


def _file_findings(inspection: Inspection) -> Iterator[Finding]:
    if texts := [problem.text for problem in inspection.file_problems if not problem.arguments]:
        yield Finding(
            ERROR, "unpaired files", f"Files without a counterpart, or that cannot be used: {len(texts)}.", texts
        )
    for problem in inspection.file_problems:
        if problem.arguments:
            yield Finding(ERROR, "missing split", problem.text, arguments=problem.arguments)
    by_kind = defaultdict(list)
    for record in _all_records(inspection):
        for kind, text in record.problems:
            file = record.picture if kind.endswith("picture") else record.mask
            by_kind[kind].append(f"{file}: {text}")
    for kind, files in by_kind.items():
        yield Finding(ERROR, kind, f"{KINDS[kind]}: {len(files)}.", files)


def _meaning_findings(inspection: Inspection, summaries: dict[str, SplitSummary]) -> Iterator[Finding]:
    """What the raw values and colours seem to mean, where that is not settled or does not fit."""
    if inspection.label_error is not None:
        yield Finding(ERROR, "label names", f"The labels are not settled: {inspection.label_error}")
    unread = [kind for record in _all_records(inspection) for kind, _ in record.problems if kind in KINDS]
    fits = inspection.id2label is not None and not {"values", "colours"} & set(unread)
    raw = {"values": Counter(), "colours": Counter()}
    num_masks, num_jpegs = Counter(), Counter()
    for record in _all_records(inspection):
        if record.mask_mode != "F":
            raw[record.raw_kind].update(record.raw)
            num_masks[record.raw_kind] += bool(record.raw)
            num_jpegs[record.raw_kind] += record.mask_format == "JPEG"
    if not fits:
        if raw["colours"] and not inspection.has_meaning:
            yield _advise_colours(inspection, raw["colours"], num_masks["colours"], num_jpegs["colours"] > 0)
        if raw["values"] and not inspection.has_meaning:
            pixels = {int(key): count for key, count in raw["values"].items()}
            yield _advise_values(inspection, pixels, num_jpegs["values"] > 0)
        if inspection.has_meaning:
            yield from _advise_unlisted(inspection)
    elif not inspection.has_meaning and raw["values"].keys() == {"0", "255"}:
        yield _advise_values(inspection, {0: raw["values"]["0"], 255: raw["values"]["255"]})


def _advise_values(inspection: Inspection, pixels: dict[int, int], are_jpegs: bool = False) -> Finding:
    shown = _shares(Counter({str(value): count for value, count in pixels.items()}))
    meant = _meant(pixels, are_jpegs)
    traces, tolerance = _describe_traces(meant, pixels)
    names = inspection.id2label
    # With which labels that are listed do not go together.
    no_reduction = " --no-do_reduce_labels" if inspection.do_reduce_labels else ""
    if set(meant) == {0, IGNORE_INDEX}:
        text = f"Masks hold {f'{len(pixels)} values:' if traces else 'nothing but'} {shown}.{traces}"
        text += " 255 would be ignored; if it is a label, say so."
        if names and len(names) < 2:
            text += f" There is one label name, {names[0]!r}: name two labels, the background being one."
            return Finding(ERROR, "raw values", text)
        pairs = "0=0 255=1" if names else "0=background 255=object"
        return Finding(ERROR, "raw values", text, arguments=f"--mask_values {pairs}{tolerance}{no_reduction}")
    labels = sorted(value for value in pixels if value != IGNORE_INDEX)
    text = f"Masks hold {len(pixels)} values: {shown}."
    if names and labels and labels[0] >= 0 and labels[-1] == len(names) and not inspection.do_reduce_labels:
        text += f" {len(names)} labels go from 0 to {len(names) - 1}: if 0 means 'other', say so."
        return Finding(ERROR, "raw values", text, arguments="--do_reduce_labels")
    text += traces
    labels = sorted(value for value in meant if value != IGNORE_INDEX)
    if len(labels) > UNLISTED:
        return Finding(ERROR, "raw values", f"{text} These are more than labels can be; masks must hold labels.")
    if names is None and not tolerance and labels == list(range(len(labels))):
        suggested = {str(label): f"label {label}" for label in labels}
        text += " They are numbered as labels are: write their names into id2label.json."
        return Finding(ERROR, "raw values", text, [], "--id2label {folder}/suggested_id2label.json",
                       {"suggested_id2label.json": suggested})  # fmt: skip
    if names and len(labels) != len(names):
        if sum(value in names for value in labels) < 2:
            text += (
                f" {len(names)} labels have names: name all labels, or say with --mask_values which one each value is."
            )
            return Finding(ERROR, "raw values", text)
        values = {str(value): value if value in names else "ignore" for value in labels}
    else:
        values = {str(value): place if names else f"value {value}" for place, value in enumerate(labels)}
    if IGNORE_INDEX in meant:
        values[str(IGNORE_INDEX)] = "ignore"
    text += f" Say which label each is{', by number or name' if names else ', by a name'}."
    if len(values) <= MAX_IN_ARGUMENT:
        pairs = (
            f"{raw}={label if isinstance(label, int) else label.replace(' ', '_')}" for raw, label in values.items()
        )
        arguments = f"--mask_values {' '.join(pairs)}{tolerance}{no_reduction}"
        return Finding(ERROR, "raw values", text, arguments=arguments)
    arguments = "--mask_values {folder}/suggested_mask_values.json" + tolerance + no_reduction
    return Finding(ERROR, "raw values", text, [], arguments, {"suggested_mask_values.json": values})


def _advise_colours(inspection: Inspection, pixels: Counter, num_masks: int, are_jpegs: bool) -> Finding:
    text = f"Masks hold {len(pixels)} colours ({num_masks} masks): {_shares(pixels)}."
    colours = set(pixels)
    for name, table in LABEL_TABLES.items():
        known = {f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in table.colors}
        if len(colours) >= 4 and colours <= known:
            return Finding(ERROR, "colours", f"{text} They are those of {name}.", arguments=f"--label_table {name}")
    meant = sorted(_meant(pixels, are_jpegs))
    traces, tolerance = _describe_traces(meant, pixels)
    text += traces
    if len(meant) > UNLISTED:
        return Finding(ERROR, "colours", f"{text} These are more than labels can be: are these masks, or photographs?")
    names = inspection.id2label or {}
    suggested = {
        str(label): {
            "name": names.get(label, f"colour {colour}"),
            "color": list(bytes.fromhex(colour[1:])),
        }
        for label, colour in enumerate(meant)
    }
    text += " Write them into id2label.json like this, with their names."
    return Finding(ERROR, "colours", text, [], "--id2label {folder}/suggested_id2label.json" + tolerance,
                   {"suggested_id2label.json": suggested})  # fmt: skip


def _advise_unlisted(inspection: Inspection) -> Iterator[Finding]:
    """Of listed colours and values: masks whose red and blue are swapped, and what to do about the rest."""
    swapped, with_ignored, others = [], [], []
    usual = {colour for record in _all_records(inspection) if not record.problems for colour in record.raw}
    for record in _all_records(inspection):
        unlisted = [text for kind, text in record.problems if kind == "values" and "that no label has" in text]
        if not unlisted:
            continue
        if "Masks of labels have 255" in unlisted[0]:
            with_ignored.append(record.mask)
            continue
        turned = {f"#{colour[5:7]}{colour[3:5]}{colour[1:3]}" for colour in record.raw if colour.startswith("#")}
        (swapped if turned and turned <= usual else others).append(record.mask)
    if swapped:
        text = (
            f"Masks of the listed colours with red and blue swapped, as OpenCV writes them: {len(swapped)}. Swap them."
        )
        yield Finding(ERROR, "swapped colours", text, swapped)
    if with_ignored:
        text = (
            f"Masks with 255, which is not listed: {len(with_ignored)}. If they hold labels already, as Cityscapes' "
            "labelTrainIds do, leave out --label_table and --mask_values; otherwise say with --mask_values what it is."
        )
        yield Finding(ERROR, "unlisted", text, with_ignored)
    if others:
        text = f"Masks with values or colours that are not listed: {len(others)}. List them, or ignore them."
        yield Finding(ERROR, "unlisted", text, others, "--ignore_unlisted")


def _label_findings(inspection: Inspection, summaries: dict[str, SplitSummary]) -> Iterator[Finding]:
    if inspection.id2label is not None:
        yield from label_findings(inspection.id2label, summaries, inspection.do_reduce_labels)


def label_findings(
    names: dict[int, str], summaries: dict[str, SplitSummary], do_reduce_labels: bool, is_sample: bool = False
) -> Iterator[Finding]:
    """Yield what the numbers of pixels by label tell.

    Args:
        names: the label names by label id.
        summaries: of "train", "validation" or both. Nothing is told of what has no examples.
        do_reduce_labels: whether 0 in the masks is ignored.
        is_sample: whether there are masks that were not counted, which may hold what these lack.
    """
    summaries = {split: summary for split, summary in summaries.items() if summary.num_examples}
    train, validation = (summaries.get(split) for split in SPLITS)
    if train and len(train.label_pixels) < 2:
        yield Finding(ERROR, "nothing to learn", f"The training masks hold {len(train.label_pixels)} labels; a model "
                      "learns nothing of fewer than two.")  # fmt: skip
    if validation and not validation.label_pixels:
        yield Finding(ERROR, "nothing to evaluate", "The validation masks hold no label at all.")
    met = {split: {label for label in names if summary.label_pixels[label]} for split, summary in summaries.items()}
    absent = sorted(names.keys() - set().union(*met.values()))
    if absent:
        masks = "none of the masks that were looked at" if is_sample else "no mask"
        yield Finding(WARNING, "absent labels", f"Labels that occur in {masks}: {_named(names, absent)}.")
    if train and validation and not is_sample:
        if unlearned := sorted(met["validation"] - met["train"]):
            text = f"Labels that are in validation masks alone cannot be learned: {_named(names, unlearned)}."
            yield Finding(WARNING, "labels of one split", text)
        if unmeasured := sorted(met["train"] - met["validation"]):
            text = f"Labels that are in training masks alone are not measured: {_named(names, unmeasured)}."
            yield Finding(WARNING, "labels of one split", text)
    total = train.label_pixels.total() if train else 0
    rare = [label for label in names if total and 0 < train.label_pixels[label] < RARE_SHARE * total]
    if rare:
        shares = [f"{label} {names[label]!r} ({100 * train.label_pixels[label] / total:.2g} %)" for label in rare[:10]]
        more = f" and {len(rare) - 10} more" if len(rare) > 10 else ""
        text = f"Labels of less than {100 * RARE_SHARE:g} % of the training pixels"
        yield Finding(NOTE, "rare labels", f"{text}: {', '.join(shares)}{more}.", arguments="--class_weights balanced")
    for split, summary in summaries.items():
        if (summary.ignored_share or 0) > 0.5:
            text = f"{100 * summary.ignored_share:.0f} % of the {split} pixels are not labelled."
            help_text = " If 0 is a label and not 'other', say so." if do_reduce_labels else ""
            yield Finding(WARNING, "unlabelled", text + help_text,
                          arguments="--no-do_reduce_labels" if help_text else "")  # fmt: skip


def _duplicate_findings(inspection: Inspection) -> Iterator[Finding]:
    exact, near = find_duplicates(*(inspection.records[split] for split in SPLITS))
    files = [[f"{second.picture} = {first.picture}" for first, second in pairs] for pairs in (exact, near)]
    if exact:
        text = f"Validation pictures that are training pictures too: {len(exact)}. Figures would be too good."
        yield Finding(ERROR, "duplicates", f"{text} Remove them from either.", files[0])
    if near:
        text = (
            f"Validation pictures that look like a training picture, as copies and frames of videos do: {len(near)}."
        )
        yield Finding(WARNING, "near duplicates", f"{text} Look at them.", files[1])


def _picture_findings(inspection: Inspection) -> Iterator[Finding]:
    records = [record for record in _all_records(inspection) if record.picture_size is not None]
    tiny = [r.picture for r in records if min(r.picture_size) < LEAST_SIDE]
    if tiny:
        yield Finding(WARNING, "tiny pictures", f"Pictures with a side below {LEAST_SIDE} pixels: {len(tiny)}.", tiny)
    by_mode = defaultdict(list)
    for record in records:
        if inspection.bands is not None or record.picture_mode not in ("RGB", "L"):
            by_mode[record.picture_mode].append(record.picture)
    if inspection.bands is not None:
        if len(by_mode) > 1:
            counts = ", ".join(f"{mode} ({len(files)})" for mode, files in by_mode.items())
            rarest = min(by_mode.values(), key=len)
            text = f"Pictures have different bands: {counts}. Look whether their units are the same."
            yield Finding(WARNING, "different bands", text, rarest)
        return
    for mode, files in by_mode.items():
        severity = WARNING if mode in ("CMYK", "LAB", "F", "I", "I;16") else NOTE
        text = f"Pictures of mode {mode}, which are read as RGB: {len(files)}. Look whether colours are right."
        yield Finding(severity, f"pictures of mode {mode}", text, files)


def _mask_findings(inspection: Inspection) -> Iterator[Finding]:
    records = list(_all_records(inspection))
    turned = [r.mask for r in records if r.mask_orientation != 1]
    if turned:
        text = (
            f"Masks with an EXIF orientation: {len(turned)}. They are turned, as pictures are; most programs do not."
        )
        yield Finding(WARNING, "turned masks", text, turned)
    wide = [r.mask for r in records if r.mask_mode in MASK_MODES and r.mask_mode not in ("1", "L", "P")]
    if wide:
        yield Finding(NOTE, "masks of 16 bits or more", f"Masks of more than 8 bits: {len(wide)}.", wide)
    lossy = [r.mask for r in records if r.mask_format in ("JPEG", "WEBP") and r.num_raw > 16]
    if lossy:
        text = f"Masks saved with loss, with values or colours between the labels': {len(lossy)}. Save PNGs."
        yield Finding(
            WARNING, "lossy masks", text, lossy, f"--mask_tolerance {TOLERANCE}" if inspection.has_meaning else ""
        )
    ignored = [r.mask for r in records if r.labels is not None and r.labels.keys() <= {IGNORE_INDEX}]
    if ignored:
        yield Finding(WARNING, "unlabelled masks", f"Masks without any label: {len(ignored)}.", ignored)
    single = [r.mask for r in records if r.labels is not None and len(r.labels.keys() - {IGNORE_INDEX}) == 1]
    if single:
        yield Finding(NOTE, "masks of one label", f"Masks of one label alone: {len(single)}.", single)


def _all_records(inspection: Inspection) -> Iterator[ExampleRecord]:
    for split in SPLITS:
        yield from inspection.records[split]


def _meant(pixels: dict, are_jpegs: bool) -> list:
    """The values, or colours, that are no traces of compression or interpolation; all where there are no traces."""
    values, counts = list(pixels), np.array(list(pixels.values()))
    if len(values) <= 16 and not are_jpegs:
        return values
    channels = np.array([list(bytes.fromhex(value[1:])) if isinstance(value, str) else [value] for value in values])
    total, is_frequent = counts.sum(), counts >= MEANT_SHARE * counts.sum()
    meant, is_near = [], np.zeros(len(values), dtype=bool)
    for place in np.argsort(-counts, kind="stable")[: MAX_COMPARED if are_jpegs else is_frequent.sum()]:
        if is_near[place]:
            continue
        around = np.abs(channels - channels[place]).max(axis=1) <= TOLERANCE
        # JPEG leaves little of a colour as it was.
        if not are_jpegs or counts[around & ~is_near].sum() >= JPEG_SHARE * total:
            meant.append(values[place])
            is_near |= around
    # Rare labels hold few pixels too; it is the traces' number that tells them, where the format does not.
    explained = is_near if are_jpegs else is_frequent
    are_traces = counts[explained].sum() > 0.8 * total and (are_jpegs or len(values) >= 3 * is_frequent.sum())
    return meant if are_traces and len(meant) >= 2 else values


def _describe_traces(meant: list, pixels: dict) -> tuple[str, str]:
    """That there are values beside those that are meant, in words, and the argument that takes them for these."""
    if len(meant) == len(pixels):
        return "", ""
    text = f" {len(meant)} of them hold most pixels; the others come of lossy compression or interpolation."
    return text, f" --mask_tolerance {TOLERANCE}"


def _shares(pixels: Counter, most: int = 8) -> str:
    total = pixels.total()
    shown = [f"{raw} ({100 * count / total:.2g} %)" for raw, count in pixels.most_common(most)]
    return ", ".join(shown) + (f" and {len(pixels) - most} more" if len(pixels) > most else "")


def _named(names: dict[int, str], labels: Sequence[int], most: int = 10) -> str:
    shown = ", ".join(f"{label} {names[label]!r}" for label in labels[:most])
    return shown + (f" and {len(labels) - most} more" if len(labels) > most else "")


def rarest_label(summary: SplitSummary) -> int | None:
    """Return the label with the fewest pixels of those that occur; None where none does."""
    found = [(count, label) for label, count in summary.label_pixels.items() if count]
    return min(found)[1] if found else None


def label_shares(summary: SplitSummary, num_labels: int) -> np.ndarray:
    """Return each label's share of the labelled pixels: float64 (num_labels,)."""
    pixels = np.array([summary.label_pixels[label] for label in range(num_labels)], dtype=np.float64)
    return pixels / max(pixels.sum(), 1)
