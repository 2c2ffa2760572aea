# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Segmentation datasets in one form, wherever they come from."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from ..bands import check_readable
from . import ade20k, cracks, fields, leaves, scenes
from .coco import load_coco
from .folders import FileProblem, mask_folders, pair_folders
from .label_names import read_id2label, unique_names
from .label_tables import LABEL_TABLES, LabelTable, read_label_table, read_mask_values
from .masks import IGNORE_INDEX, UNLISTED, MaskMeaning, add_listed
from .streaming import StreamedSplit, stream_split

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "pixel_values", "img", "picture", "photo")
MASK_COLUMNS = (
    "annotation",
    "label",
    "labels",
    "mask",
    "segmentation_mask",
    "segmentation_map",
    "semantic_segmentation",
    "seg_map",
    "segmentation",
    "annotations",
    "gt",
)
TRAIN_SPLITS = ("train", "training")
VALIDATION_SPLITS = ("validation", "val", "valid", "dev")
LABEL_NAMES_FILE = "id2label.json"
# Painted on this machine, for trying things out with no download.
GENERATED_DATASETS = {"scenes": scenes, "cracks": cracks, "leaves": leaves, "fields": fields}
# Labels are kept as uint8, in which 255 is the ignored one.
MAX_LABELS = 255


@dataclass(frozen=True)
class SegmentationDataset:
    """A dataset that is ready for training and evaluation.

    Attributes:
        name: what it was loaded as.
        splits: "train" and "validation", with the columns `image` and `annotation` (`datasets.Image`, decoded when
            asked for; annotations have one channel) and `scene_category` where there is one. Where "train" is
            streamed, it is a [`streaming.StreamedSplit`].
        id2label: the label names by label id, 0..num_labels - 1, as they are after reduction; no two are alike.
        do_reduce_labels: whether 0 in the annotations means "other", so that raw label k is label k - 1.
        palette: [red, green, blue] in 0..255 for each label, or None.
        mask_meaning: how the annotations' pixels become labels; None where they are the labels.
        bands: the numbers of the bands that pictures are read with, from 1, in the order of the model's channels;
            the column `image` is then not decoded. None where pictures are 8-bit RGB.
    """

    name: str
    splits: datasets.DatasetDict
    id2label: dict[int, str]
    do_reduce_labels: bool
    palette: list[list[int]] | None
    mask_meaning: MaskMeaning | None = None
    bands: tuple[int, ...] | None = None

    def with_bands(self, bands: Sequence[int]) -> SegmentationDataset:
        """Return the same dataset, read with these bands.

        Raises:
            ValueError: they are no numbers of bands, or rasterio, which reads them, is not installed.
        """
        check_readable(bands)
        undecoded = datasets.Image(decode=False)
        splits = {
            name: split if isinstance(split, StreamedSplit) else split.cast_column("image", undecoded)
            for name, split in self.splits.items()
        }
        return replace(self, splits=datasets.DatasetDict(splits), bands=tuple(bands))

    @property
    def num_labels(self) -> int:
        return len(self.id2label)


@dataclass(frozen=True)
class _Source:
    """What a place holds, before splits, columns and labels are settled.

    `class_names`, where the place tells them, and `zero_is_other` are facts, unless `guessed_from` says from what they
    were guessed. `bands` are those of pictures that cannot be read as RGB.
    """

    splits: datasets.DatasetDict
    class_names: tuple[str, ...] | None = None
    zero_is_other: bool = False
    guessed_from: str | None = None
    bands: tuple[int, ...] | None = None


def load_segmentation_dataset(
    name_or_path: str,
    *,
    image_column: str | None = None,
    mask_column: str | None = None,
    id2label: dict[int, str] | str | Path | int | None = None,
    do_reduce_labels: bool | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    annotations: str | Path | Sequence[str | Path] | None = None,
    label_table: str | None = None,
    mask_values: Mapping | Iterable[str] | str | Path | None = None,
    mask_palettes: bool = False,
    mask_tolerance: int = 0,
    ignore_unlisted: bool = False,
    bands: Sequence[int] | None = None,
    problems: list[FileProblem] | None = None,
    streaming: bool = False,
) -> SegmentationDataset:
    """Load a dataset of pictures and masks. Nothing is decoded before it is asked for.

    What is guessed where there is room for doubt (that a folder is ADE20K, one of several columns of pictures, label
    names of a column) is told in a warning, with how to say otherwise.

    Args:
        name_or_path: one of

            - "scenes", "cracks", "leaves" or "fields": generated on this machine, see the modules of these names;
            - "ade20k": the Hub's parquet copy of ADE20K's scene parsing benchmark;
            - a folder with `images/{training,validation}` and the masks, of the same names up to the suffix, in
              `annotations/{training,validation}`: the unpacked ADEChallengeData2016, or any other laid out like it
              (`masks` or `labels`, `train` and `val` will do), see `folders.pair_folders`;
            - any other folder that `datasets.load_from_disk` or `datasets.load_dataset` takes;
            - any dataset on the Hub.
        image_column: the column of the pictures. Guessed from its name by default.
        mask_column: the column of the masks. Guessed from its name by default.
        id2label: the label names {0: name, ...} as they are after reduction, a JSON file that holds them (an object or
            a list), or a number of labels, which then go by numbers; see `label_names.read_id2label`. Names may come
            with colours, by which coloured masks are read, and from CSV tables too; see
            `label_tables.read_label_table`. "ade20k" and what is generated know theirs. For all others they are
            looked for in `id2label.json` in the folder or Hub repository; a folder without one that looks like ADE20K
            (its name, `objectInfo150.txt` or files called `ADE_train_*`) gets ADE20K's; for any other a column that
            lists class labels tells them.
        do_reduce_labels: whether 0 in the masks means "other": 0 becomes 255 (ignored) and k becomes k - 1. By default
            True for "scenes", "ade20k" and for a folder that looks like ADE20K, unless it has an `id2label.json` or
            `id2label` is not of 150 labels; False for everything else.
        train_split: what to train on, as `datasets` writes splits: "train", "train[:90%]". By default "train".
        validation_split: what to validate on. By default "validation", "val", "valid" or "dev".
        config_name: the configuration of a Hub dataset that has several.
        revision: the branch, tag or commit of a Hub dataset. For "ade20k" one commit is the default.
        annotations: COCO's JSON file of the training pictures, or those of training and validation pictures, which lie
            in the folder `name_or_path`. Categories are the labels, and all the rest is label 0, "background", or
            ignored with `do_reduce_labels`; see `coco.load_coco`. Of one file `train_split` and `validation_split`
            take parts.
        label_table: whose names, colours and raw values the masks have, one of `label_tables.LABEL_TABLES`:
            "cityscapes" (`labelIds` masks), "pascal_voc", "loveda", "potsdam" or "vaihingen".
        mask_values: what raw values, or colours, of the masks mean, as {0: 0, 255: 1, 7: "ignore"}, texts such as
            "255=1", or a JSON file; see `label_tables.read_mask_values`. Labels may be written by name; where nothing
            else tells the names, theirs are the labels in the order in which they are first written.
        mask_palettes: whether masks with a palette go by its colours; otherwise the indices into it are the values.
        mask_tolerance: how far a value, or each channel of a colour, may be from what is listed, 0 to 127.
        ignore_unlisted: ignore values and colours that are not listed; by default they are an error when they are met.
        bands: the numbers of the bands to read of TIFF files, from 1 as GDAL counts them, in the order in which a
            model is to take them: any number, of any integers or floats, as they are. By default pictures are read
            as 8-bit RGB, but "fields" with all of its four bands. The extra `raster` has what reads them.
        problems: where files without a counterpart, and COCO's annotations that cannot be used, are added to, to be
            left out, and a split that is missing, to be empty; by default they are an error.
        streaming: whether the training pictures are read as they are needed, and not kept on the disk, see
            `streaming`: of "ade20k", a folder that `datasets.load_dataset` takes, or any dataset on the Hub.
            `train_split` is then one whole split, and of the others those in `validation_split` alone are loaded.

    Raises:
        ValueError: there is no such dataset, or its columns, splits or label names are missing or not clear. The
            message says what was found and what would do.
    """
    name = str(name_or_path)
    streamed = None
    if streaming and annotations is not None:
        raise ValueError(
            "annotations are of pictures that lie in a folder, as they are; streaming does not go with them"
        )
    if streaming:
        source, streamed = _open_streamed(name, config_name, revision, train_split, validation_split)
    elif annotations is None:
        source = _open(name, config_name, revision, problems)
    else:
        given = {"image_column": image_column, "mask_column": mask_column, "id2label": id2label}
        given |= {"label_table": label_table, "mask_values": mask_values}
        given = [key for key, value in given.items() if value]
        source = _open_coco(name, annotations, bool(do_reduce_labels), given, problems)
    splits = source.splits
    if streamed is None:
        splits = _choose_splits(name, splits, train_split, validation_split, problems)
    if annotations is None:
        splits = _choose_columns(name, splits, image_column, mask_column)
    if mask_values is not None:
        mask_values = read_mask_values(mask_values)
        do_reduce_labels = bool(do_reduce_labels)
    if label_table is not None:
        table, do_reduce_labels = _named_table(label_table, id2label, do_reduce_labels), False
    else:
        names = _names_in_values(mask_values)
        table, do_reduce_labels = _settle_labels(name, source, id2label, names, do_reduce_labels, revision)
    names = table.id2label
    most = MAX_LABELS - do_reduce_labels
    if len(names) > most:
        raise ValueError(f"dataset {name!r} has {len(names)} labels; at most {most} fit beside 255 (ignored).")
    colors = dict(zip(ade20k.CLASS_NAMES, ade20k.PALETTE, strict=True))
    palette = table.palette
    if palette is None and tuple(names.values()) == source.class_names and colors.keys() >= set(source.class_names):
        palette = [colors[label] for label in names.values()]
    meaning = _settle_meaning(table, mask_values, do_reduce_labels, mask_palettes, mask_tolerance, ignore_unlisted)
    splits = splits.select_columns(
        [c for c in ("image", "annotation", "scene_category") if c in splits["train"].features]
    )
    if streamed is not None:
        features = streamed.dataset.features
        image_column = _choose_column(name, features, "image_column", image_column, IMAGE_COLUMNS)
        mask_column = _choose_column(name, features, "mask_column", mask_column, MASK_COLUMNS)
        splits["train"] = replace(streamed, columns=(image_column, mask_column))
    dataset = SegmentationDataset(name, splits, names, do_reduce_labels, palette, meaning)
    bands = source.bands if bands is None else bands
    return dataset if bands is None else dataset.with_bands(bands)


def load_splits(
    name_or_path: str,
    *,
    image_column: str | None = None,
    mask_column: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    problems: list[FileProblem] | None = None,
) -> datasets.DatasetDict:
    """Return a dataset's pictures and masks, whose labels need not be settled.

    The arguments are those of [`load_segmentation_dataset`], as are `image` and `annotation` of "train" and
    "validation" that are returned.

    Raises:
        ValueError: there is no such dataset, or its columns or splits are missing or not clear.
    """
    name = str(name_or_path)
    source = _open(name, config_name, revision, problems)
    splits = _choose_splits(name, source.splits, train_split, validation_split, problems)
    return _choose_columns(name, splits, image_column, mask_column).select_columns(["image", "annotation"])


def load_pictures(
    name_or_path: str, *, image_column: str | None = None, config_name: str | None = None, revision: str | None = None
) -> datasets.DatasetDict:
    """Return the pictures of all splits of a dataset, which needs no masks, undecoded in the column `image`.

    The arguments are those of [`load_segmentation_dataset`].

    Raises:
        ValueError: there is no such dataset, or no column, or several, that can be that of the pictures.
    """
    name = str(name_or_path)
    splits = _open(name, config_name, revision).splits
    column = _choose_column(name, next(iter(splits.values())).features, "image_column", image_column, IMAGE_COLUMNS)
    splits = splits.select_columns(column).rename_columns({column: "image"} if column != "image" else {})
    return splits.cast_column("image", datasets.Image(decode=False))


def _open(
    name: str, config_name: str | None, revision: str | None, problems: list[FileProblem] | None = None
) -> _Source:
    if name in GENERATED_DATASETS:
        if Path(name).is_dir():
            logger.warning("dataset %r is the generated one; the folder of this name is ./%s.", name, name)
        module = GENERATED_DATASETS[name]
        return _Source(module.load(), module.CLASS_NAMES, module.ZERO_IS_OTHER, bands=default_bands(name))
    if name == "ade20k":
        splits = _load(
            ade20k.HUB_REPOSITORY, data_files=ade20k.HUB_DATA_FILES, revision=revision or ade20k.HUB_REVISION
        )
        return _Source(splits, ade20k.CLASS_NAMES, zero_is_other=True)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists() or name.startswith(("/", ".", "~")):
            raise ValueError(f"dataset {name!r} is not a folder. {_WHAT_WOULD_DO}")
        return _Source(_load(name, config_name, revision=revision))
    if _is_paired(folder):
        splits = pair_folders(folder, problems)
        if evidence := _ade20k_evidence(folder):
            return _Source(splits, ade20k.CLASS_NAMES, zero_is_other=True, guessed_from=evidence)
        return _Source(splits)
    if _is_saved(folder):
        try:
            saved = datasets.load_from_disk(str(folder))
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"dataset {name!r} cannot be read: {error}") from error
        return _Source(saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict(train=saved))
    return _Source(_load(str(folder), config_name))


def _open_coco(
    name: str,
    annotations: str | Path | Sequence[str | Path],
    do_reduce_labels: bool,
    given: list[str],
    problems: list[FileProblem] | None,
) -> _Source:
    if given:
        raise ValueError(f"annotations tell all of the labels; leave out {' and '.join(given)}")
    files = [annotations] if isinstance(annotations, (str, Path)) else annotations
    splits, names = load_coco(Path(name).expanduser(), [Path(file).expanduser() for file in files], problems)
    return _Source(splits, tuple(unique_names(dict(enumerate(names[do_reduce_labels:]))).values()), do_reduce_labels)


def default_bands(name_or_path: str) -> tuple[int, ...] | None:
    """Return the bands that a dataset is read with where none are asked for; None for RGB."""
    names = getattr(GENERATED_DATASETS.get(name_or_path), "BANDS", None)
    return names and tuple(range(1, len(names) + 1))


_WHAT_WOULD_DO = (
    "What would do: 'scenes', 'ade20k', a folder (ADEChallengeData2016 or laid out like it, saved with "
    "save_to_disk, or one that datasets.load_dataset takes), or the name of a Hub dataset."
)


def _load(path: str, config_name: str | None = None, **kwargs) -> datasets.DatasetDict:
    with _saying_what_would_do(path):
        return datasets.load_dataset(path, config_name, **kwargs)


@contextmanager
def _saying_what_would_do(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"dataset {path!r} could not be loaded: {error}\n{_WHAT_WOULD_DO} Of several configurations one is chosen "
            "with config_name; a Hub dataset with a loading script often has a parquet copy at "
            "revision='refs/convert/parquet'."
        ) from error


def _open_streamed(
    name: str, config_name: str | None, revision: str | None, train_split: str | None, validation_split: str | None
) -> tuple[_Source, StreamedSplit]:
    """What `_open` returns, with the splits chosen and "train" empty; and what this one is to be streamed from."""
    folder, names, options = Path(name).expanduser(), None, {"revision": revision}
    path = name
    if name == "ade20k":
        path, names = ade20k.HUB_REPOSITORY, ade20k.CLASS_NAMES
        options = {"data_files": ade20k.HUB_DATA_FILES, "revision": revision or ade20k.HUB_REVISION}
    elif name in GENERATED_DATASETS or _is_paired(folder) or _is_saved(folder):
        kind = "generated on this machine" if name in GENERATED_DATASETS else "read from its folder as it is"
        raise ValueError(f"dataset {name!r} is {kind}: there is nothing to stream, and nothing gained by it.")
    elif folder.is_dir():
        path, options = str(folder), {}
    elif folder.exists() or name.startswith(("/", ".", "~")):
        raise ValueError(f"dataset {name!r} is not a folder. {_WHAT_WOULD_DO}")
    with _saying_what_would_do(path):
        builder = datasets.load_dataset_builder(path, config_name, **options)
    files = {str(split): list(paths) for split, paths in (builder.config.data_files or {}).items()}
    train = _choose_streamed(name, files, "train", train_split, TRAIN_SPLITS)
    validation = _choose_streamed(name, files, "validation", validation_split, VALIDATION_SPLITS)
    parts = {part.partition("[")[0].strip() for part in validation.split("+")}
    if train not in files or not parts <= files.keys() or train in parts:
        raise ValueError(
            f"train_split={train!r} and validation_split={validation!r} do not fit dataset {name!r} with the splits "
            f"{list(files)}: one whole split can be streamed, and of the others all, or parts, be validated on."
        )
    with _saying_what_would_do(path):
        streamed = stream_split(builder, train, f"{name} train")
        # Of the files of all splits, `builder` itself would download each.
        loaded = datasets.load_dataset(builder.name, data_files={part: files[part] for part in sorted(parts)})
    features = streamed.dataset.features
    empty = datasets.Dataset.from_dict({column: [] for column in features}, features=features)
    splits = {"train": empty, "validation": _take_split(name, loaded, "validation_split", validation)}
    return _Source(datasets.DatasetDict(splits), names, zero_is_other=names is not None), streamed


def _choose_streamed(name: str, files: Mapping, kind: str, split: str | None, candidates: tuple[str, ...]) -> str:
    """The split that is meant, by its usual name unless another is given."""
    split = split or next((candidate for candidate in candidates if candidate in files), None)
    if split is None:
        raise ValueError(f"dataset {name!r} has no split {kind!r}; found: {list(files)}. Name one with {kind}_split.")
    return split


def _is_paired(folder: Path) -> bool:
    return (folder / "images").is_dir() and bool(mask_folders(folder))


def _is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _ade20k_evidence(folder: Path) -> str | None:
    """What makes a folder look like ADE20K. Other datasets have its layout too, but not its names."""
    if folder.resolve().name == "ADEChallengeData2016":
        return "the folder is called ADEChallengeData2016"
    if (folder / "objectInfo150.txt").exists():
        return "it holds objectInfo150.txt"
    if any((folder / "images").glob("train*/ADE_train_*")):
        return "its pictures are called ADE_train_*"
    return None


def _choose_splits(
    name: str,
    splits: datasets.DatasetDict,
    train_split: str | None,
    validation_split: str | None,
    problems: list[FileProblem] | None,
) -> datasets.DatasetDict:
    train, validation = train_split, validation_split
    if train is None:
        train = next((split for split in TRAIN_SPLITS if split in splits), None)
        if validation is not None and validation.partition("[")[0] == train:
            raise ValueError(
                f"validation_split={validation!r} comes from {train!r}, which is all trained on; give train_split "
                f"the other part, such as '{train}[:90%]' beside '{train}[90%:]'."
            )
    if validation is None:
        validation = next((split for split in VALIDATION_SPLITS if split in splits), None)
    missing = _missing_splits(name, splits, train, validation)
    if missing and (problems is None or len(missing) > 1):
        raise ValueError(missing[0].text)
    chosen = {
        split: _take_split(name, splits, f"{split}_split", spec)
        for split, spec in (("train", train), ("validation", validation))
        if spec is not None
    }
    if missing:
        problems.extend(missing)
        (present,) = chosen.values()
    return datasets.DatasetDict(
        {split: chosen[split] if split in chosen else present.select([]) for split in ("train", "validation")}
    )


def _missing_splits(
    name: str, splits: datasets.DatasetDict, train: str | None, validation: str | None
) -> list[FileProblem]:
    """That the splits which were chosen are missing, where they are None, and what would do."""
    found = ", ".join(f"{split} ({data.num_rows} pictures)" for split, data in splits.items())
    missing = []
    for split, chosen, other in (("train", train, validation), ("validation", validation, train)):
        if chosen is not None:
            continue
        source = next(iter(splits)) if other is None else other.partition("[")[0]
        more = [entry for entry in splits if entry != source]
        arguments = (
            f"--{split}_split {more[0]}"
            if more
            else f'--train_split "{source}[:90%]" --validation_split "{source}[90%:]"'
        )
        text = (
            f"dataset {name!r} has no split {split!r}; found: {found}. Name one with {split}_split, or cut one off: "
            f"train_split='{source}[:90%]', validation_split='{source}[90%:]'."
        )
        missing.append(FileProblem(name, text, arguments))
    return missing


def _take_split(name: str, splits: datasets.DatasetDict, argument: str, split: str) -> datasets.Dataset:
    lengths = {key: data.num_rows for key, data in splits.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
        parts = [part for part in parts if part.from_ < part.to]
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"{argument}={split!r} does not fit dataset {name!r} with the splits {lengths}: {error}"
        ) from error
    if not parts:
        raise ValueError(f"{argument}={split!r} of dataset {name!r} is empty; it has the splits {lengths}.")
    return datasets.concatenate_datasets([splits[part.splitname].select(range(part.from_, part.to)) for part in parts])


def _choose_columns(
    name: str, splits: datasets.DatasetDict, image_column: str | None, mask_column: str | None
) -> datasets.DatasetDict:
    features = splits["train"].features
    is_guess = image_column is None or mask_column is None
    image_column = _choose_column(name, features, "image_column", image_column, IMAGE_COLUMNS)
    mask_column = _choose_column(name, features, "mask_column", mask_column, MASK_COLUMNS)
    if image_column == mask_column:
        raise ValueError(f"image_column and mask_column of dataset {name!r} are both {image_column!r}.")
    pictures = {key for key, feature in features.items() if isinstance(feature, datasets.Image)}
    if is_guess and (others := sorted(pictures - {image_column, mask_column})):
        logger.warning(
            "dataset %r: the column %r is taken for the pictures and %r for the masks, by their names; it also has "
            "pictures in %s. image_column and mask_column say otherwise.",
            *(name, image_column, mask_column, ", ".join(others)),
        )
    kept = [image_column, mask_column]
    if "scene_category" in features and "scene_category" not in kept:
        kept.append("scene_category")
    chosen = {}
    for split, data in splits.items():
        missing = [column for column in kept if column not in data.features]
        if missing:
            raise ValueError(f"dataset {name!r}: {split} lacks the columns {missing}, which train has.")
        data = data.select_columns(kept).rename_columns({image_column: "image.", mask_column: "annotation."})
        data = data.rename_columns({"image.": "image", "annotation.": "annotation"})
        chosen[split] = data.cast_column("image", datasets.Image()).cast_column("annotation", datasets.Image())
    return datasets.DatasetDict(chosen)


def _choose_column(
    name: str, features: datasets.Features, argument: str, column: str | None, candidates: tuple[str, ...]
) -> str:
    found = f"Found columns: {', '.join(f'{key} ({type(value).__name__})' for key, value in features.items())}."
    if column is not None:
        if not isinstance(features.get(column), datasets.Image):
            raise ValueError(f"{argument}={column!r} is not a column of pictures of dataset {name!r}. {found}")
        return column
    fitting = [key for key in candidates if isinstance(features.get(key), datasets.Image)]
    if len(fitting) != 1:
        problem = (
            f"several may be meant: {', '.join(fitting)}"
            if fitting
            else f"none goes by a usual name ({candidates[0]}, …)"
        )
        raise ValueError(
            f"{argument} of dataset {name!r} is not clear, {problem}. {found} Name the one with {argument}."
        )
    return fitting[0]


def _settle_labels(
    name: str,
    source: _Source,
    id2label: dict[int, str] | str | Path | int | None,
    names_in_values: dict[int, str] | None,
    do_reduce_labels: bool | None,
    revision: str | None,
) -> tuple[LabelTable, bool]:
    """The labels and whether 0 is "other". What the user wrote comes before what is guessed."""
    known = source.class_names is not None and source.guessed_from is None
    file = None if known or id2label is not None else _label_names_file(name, revision)
    if id2label is not None or file is not None:
        table = read_label_table(file if id2label is None else id2label)
    elif names_in_values is not None and not known:
        return LabelTable(names_in_values), bool(do_reduce_labels)
    elif source.class_names is not None:
        table = LabelTable(dict(enumerate(source.class_names)))
    else:
        table = LabelTable(_label_names_of_columns(name, source.splits))
    names = table.id2label
    if source.guessed_from is None:
        return table, source.zero_is_other if do_reduce_labels is None else do_reduce_labels
    is_guess = do_reduce_labels is None
    if is_guess:
        # Names in an argument may be translations; a file beside the data, or another number, describes other masks.
        is_translation = len(names) == len(source.class_names) and _label_names_file(name, revision) is None
        do_reduce_labels = source.zero_is_other and is_translation
    zero = "means 'other' and is ignored" if do_reduce_labels else f"is label 0, {names[0]!r}"
    if file is None and id2label is None:
        logger.warning(
            "dataset %r is taken for ADE20K, because %s: it gets ADE20K's %d labels, and 0 in the masks %s. For other "
            "data, write the label names into %s or give id2label; do_reduce_labels says whether 0 means 'other'.",
            *(name, source.guessed_from, len(names), zero, Path(name) / LABEL_NAMES_FILE),
        )
    elif is_guess:
        logger.warning(
            "dataset %r looks like ADE20K, because %s, but its %d label names were given. 0 in the masks %s; "
            "do_reduce_labels says otherwise.",
            *(name, source.guessed_from, len(names), zero),
        )
    return table, do_reduce_labels


def _named_table(label_table: str, id2label: object, do_reduce_labels: bool | None) -> LabelTable:
    """A well-known dataset's labels, which leave nothing else to be said."""
    if label_table not in LABEL_TABLES:
        raise ValueError(f"label_table must be one of {', '.join(LABEL_TABLES)}, got {label_table!r}")
    given = [key for key, value in (("id2label", id2label), ("do_reduce_labels", do_reduce_labels)) if value]
    if given:
        raise ValueError(f"label_table={label_table!r} tells all of the labels; leave out {' and '.join(given)}")
    return LABEL_TABLES[label_table]


def _names_in_values(mask_values: dict | None) -> dict[int, str] | None:
    """Labels in the order of their names in `mask_values`; None where there are none, or numbers are among them."""
    if mask_values is None:
        return None
    labels = list(dict.fromkeys(label for label in mask_values.values() if label != IGNORE_INDEX))
    return dict(enumerate(labels)) if labels and all(isinstance(label, str) for label in labels) else None


def _settle_meaning(
    table: LabelTable,
    mask_values: dict | None,
    do_reduce_labels: bool,
    mask_palettes: bool,
    mask_tolerance: int,
    ignore_unlisted: bool,
) -> MaskMeaning | None:
    """What the pixels of the masks mean; None where they are the labels, and there are no colours."""
    if type(mask_tolerance) is not int or not 0 <= mask_tolerance <= 127:
        raise ValueError(f"mask_tolerance must be from 0 to 127, got {mask_tolerance}")
    listed = mask_values or {}
    if do_reduce_labels and (table.values or listed):
        raise ValueError(
            "mask_values say which label each raw value is; do_reduce_labels, by which 0 is ignored and k is label "
            "k - 1, does not go with them. Write 0=ignore 1=0 2=1 and so on, and --no-do_reduce_labels"
        )
    labels = {raw: _label_id(label, table.id2label) for raw, label in listed.items()}
    values = add_listed(table.values, ((raw, label) for raw, label in labels.items() if isinstance(raw, int)))
    if values is None and labels:
        # Tools save what has no colour, of a set of coloured masks, as shades of grey.
        values = tuple((raw[0], label) for raw, label in sorted(labels.items()) if len(set(raw)) == 1)
    # Coloured masks have labels as they are after reduction, which is yet to come.
    known = {color: label + (do_reduce_labels and label != IGNORE_INDEX) for color, label in table.colors.items()}
    colors = add_listed(known, ((raw, label) for raw, label in labels.items() if not isinstance(raw, int)))
    if values is None and colors is None:
        unused = {"mask_palettes": mask_palettes, "mask_tolerance": mask_tolerance, "ignore_unlisted": ignore_unlisted}
        if given := [key for key, value in unused.items() if value]:
            raise ValueError(
                f"{' and '.join(given)} need values or colours that are listed: by mask_values, label_table, or "
                f"colours in {LABEL_NAMES_FILE}"
            )
        return None
    if mask_palettes and colors is None:
        raise ValueError(f"mask_palettes needs the labels' colours: by mask_values, or in {LABEL_NAMES_FILE}")
    if len(table.id2label) + do_reduce_labels > UNLISTED:
        raise ValueError(f"of masks with listed values or colours at most {UNLISTED} labels can be told apart")
    return MaskMeaning(values, colors, mask_palettes, mask_tolerance, ignore_unlisted)


def _label_id(label: int | str, id2label: dict[int, str]) -> int:
    """The label's number in `mask_values`, which may tell its name."""
    if label == IGNORE_INDEX or label in id2label:
        return label
    numbers = [number for number, name in id2label.items() if name == label]
    if len(numbers) != 1:
        names = ", ".join(f"{number} {name!r}" for number, name in list(id2label.items())[:20])
        raise ValueError(f"mask_values names the label {label!r}, which is none of the {len(id2label)}: {names}")
    return numbers[0]


def _label_names_file(name: str, revision: str | None) -> Path | None:
    folder = Path(name).expanduser()
    file = folder / LABEL_NAMES_FILE if folder.is_dir() else _download_label_names(name, revision)
    return file if file is not None and file.exists() else None


def _label_names_of_columns(name: str, splits: datasets.DatasetDict) -> dict[int, str]:
    features = next(iter(splits.values())).features
    listed = {
        column: tuple(feature.feature.names)
        for column, feature in features.items()
        if isinstance(getattr(feature, "feature", None), datasets.ClassLabel)
    }
    if len(set(listed.values())) != 1:
        raise ValueError(
            f"dataset {name!r} has no label names: no {LABEL_NAMES_FILE} beside its data and "
            f"{'several columns' if listed else 'no column'} of class labels. Give id2label: a dict {{0: name, ...}}, "
            "a JSON file of it, or the number of labels."
        )
    column, names = next(iter(listed.items()))
    logger.warning(
        "dataset %r: the label names are those of the column %r, %d of them. If the masks hold other labels, give "
        "id2label.",
        *(name, column, len(names)),
    )
    return read_id2label(names, f"column {column!r} of dataset {name!r}")


def _download_label_names(repository: str, revision: str | None) -> Path | None:
    try:
        return Path(hf_hub_download(repository, LABEL_NAMES_FILE, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError):
        return None
