# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Datasets that are folders of pictures beside folders of masks."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

logger = logging.getLogger(__name__)

MASK_FOLDERS = ("annotations", "masks", "labels")
PICTURE_SUFFIXES = frozenset(ImageFolder.EXTENSIONS)
# What systems leave in folders of pictures, in lower case.
LEFTOVERS = frozenset({"thumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"})
NUM_SHOWN = 20


@dataclass(frozen=True)
class FileProblem:
    """A file that a dataset cannot be made of, or a split that there is not.

    Attributes:
        file: its path; of a split, the dataset's name.
        text: what is wrong with it, and what would help; it names the file.
        arguments: the arguments of train_seg.py that help; empty where there are none.
    """

    file: str
    text: str
    arguments: str = ""


def raise_problems(problems: list[FileProblem], of: Path) -> None:
    """Raise a ValueError that names all files which have problems, up to `NUM_SHOWN`; return if there are none."""
    if len(problems) == 1:
        raise ValueError(problems[0].text)
    if problems:
        shown = [problem.text for problem in problems[:NUM_SHOWN]]
        if len(problems) > NUM_SHOWN:
            shown.append(f"and {len(problems) - NUM_SHOWN} more; examples/inspect_dataset.py lists all.")
        raise ValueError("\n- ".join([f"{of}: {len(problems)} files cannot be used.", *shown]))


def mask_folders(folder: Path) -> list[Path]:
    """Return the folders that may be those of the masks."""
    return [folder / name for name in MASK_FOLDERS if (folder / name).is_dir()]


def pair_folders(folder: Path, problems: list[FileProblem] | None = None) -> datasets.DatasetDict:
    """Return the pictures of a folder with their masks.

    Args:
        folder: holds `images/SPLIT` and the masks in `annotations/SPLIT` (`masks` or `labels`). A mask has the name of
            its picture up to the suffix; both may lie in further folders, which are the same for both, such as
            `images/train/berlin/1.jpg` and `masks/train/berlin/1.png`. Hidden files, what systems leave behind
            (`Thumbs.db`), and files that are no pictures are left out. Without a folder in `images`, all pictures are
            of one split.
        problems: where each file that has no counterpart, or cannot be used, is added to, to be left out; by default
            they are an error.

    Returns:
        A split for each folder in `images`, or the split "train", with the columns `image` and `annotation`, in the
        order of the names.

    Raises:
        ValueError: the folder is not laid out like this, or files have no counterpart; the message names them.
    """
    found = mask_folders(folder)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder} has several folders of masks: {names}. Keep the one that goes with images/.")
    met = []
    try:
        entries = list(_entries(folder / "images", met))
        names = [entry.name for entry in entries if entry.is_dir()]
        splits = {name: _pair_split(folder / "images" / name, found[0] / name, met) for name in names}
        if not names and entries:
            splits = {"train": _pair_split(folder / "images", found[0], met)}
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error}") from error
    if problems is None:
        raise_problems(met, folder)
    else:
        problems.extend(met)
    splits = {name: split for name, split in splits.items() if split is not None}
    if not splits:
        raise_problems(met, folder)
        raise ValueError(
            f"{folder / 'images'} has no split folders: expected training and validation (or train and val)."
        )
    return datasets.DatasetDict(splits)


def _pair_split(images_folder: Path, masks_folder: Path, problems: list[FileProblem]) -> datasets.Dataset | None:
    """The pairs of a split; None, and a problem, where there are none."""
    if not masks_folder.is_dir():
        text = f"{images_folder} has no masks: there is no folder {masks_folder}."
        problems.append(FileProblem(str(images_folder), text))
        return None
    images, masks = _files_by_name(images_folder, problems), _files_by_name(masks_folder, problems)
    unpaired = images.keys() ^ masks.keys()
    left_out, num_before = [], len(problems)
    for name in sorted(unpaired):
        here, there, folder = (images, masks, masks_folder) if name in images else (masks, images, images_folder)
        if _is_picture(here[name]):
            similar = _similar(name, {other: there[other] for other in sorted(there.keys() & unpaired)})
            text = (
                f"{here[name]} has no counterpart: no file {name}.* in {folder}. Add it, or remove this one.{similar}"
            )
            problems.append(FileProblem(str(here[name]), text))
        else:
            left_out.append(here[name].name)
    if left_out:
        logger.warning(
            "%s and %s: %d files are left out, as they are no pictures and have no counterpart: %s",
            *(images_folder, masks_folder, len(left_out), ", ".join(left_out[:5])),
        )
    names = sorted(images.keys() & masks.keys())
    if not names:
        if len(problems) == num_before:
            problems.append(FileProblem(str(images_folder), f"{images_folder} holds no pictures."))
        return None
    columns = {"image": [str(images[name]) for name in names], "annotation": [str(masks[name]) for name in names]}
    features = datasets.Features(image=datasets.Image(), annotation=datasets.Image())
    return datasets.Dataset.from_dict(columns, features=features)


def _similar(name: str, files: dict[str, Path]) -> str:
    """A hint at the file that was perhaps meant: it lies elsewhere, or one name is the beginning of the other."""
    last = os.path.basename(name)
    for other, path in files.items():
        if os.path.basename(other) == last or other.startswith(name) or name.startswith(other):
            return f" There is {path}, but names must be the same up to the suffix, and so must the folders."
    return ""


def _files_by_name(folder: Path, problems: list[FileProblem]) -> dict[str, Path]:
    """All files below a folder, by their path in it without the suffix."""
    files = {}
    for path in _files(folder, problems):
        name = os.path.splitext(path.relative_to(folder))[0]
        if name in files and _is_picture(files[name]) == _is_picture(path):
            text = f"{path.parent} holds both {files[name].name} and {path.name}: names must differ before the suffix."
            problems.append(FileProblem(str(path), text))
            continue
        # What lies beside a picture under the same name, such as the polygons of its labels, is no second picture.
        if name not in files or _is_picture(path):
            files[name] = path
    return files


def _files(folder: Path, problems: list[FileProblem]) -> Iterator[Path]:
    for entry in _entries(folder, problems):
        path = Path(entry.path)
        if not entry.is_dir():
            yield path
        elif entry.is_symlink() and path.parent.resolve().is_relative_to(path.resolve()):
            problems.append(FileProblem(str(path), f"{path} is a link to a folder that it lies in. Remove it."))
        else:
            yield from _files(path, problems)


def _entries(folder: Path, problems: list[FileProblem]) -> Iterator[os.DirEntry]:
    """Files and folders in a folder, by name, without the hidden ones and what systems leave behind."""
    with os.scandir(folder) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in LEFTOVERS:
            continue
        if not (entry.is_file() or entry.is_dir()):
            what = f"a link to {os.readlink(entry.path)}, which is not there" if entry.is_symlink() else "no file"
            problems.append(FileProblem(entry.path, f"{entry.path} is {what}. Mend or remove it."))
            continue
        try:
            entry.path.encode()
        except UnicodeEncodeError:
            name = ascii(entry.path)
            problems.append(FileProblem(name, f"{name} has a name that is not UTF-8. Rename it."))
            continue
        yield entry


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES
