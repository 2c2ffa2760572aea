# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Datasets that are folders of pictures beside folders of masks."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

logger = logging.getLogger(__name__)

MASK_FOLDERS = ("annotations", "masks", "labels")
PICTURE_SUFFIXES = frozenset(ImageFolder.EXTENSIONS)
# What systems leave in folders of pictures, in lower case.
LEFTOVERS = frozenset({"thumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"})


def mask_folders(folder: Path) -> list[Path]:
    """Return the folders that may be those of the masks."""
    return [folder / name for name in MASK_FOLDERS if (folder / name).is_dir()]


def pair_folders(folder: Path) -> datasets.DatasetDict:
    """Return the pictures of a folder with their masks.

    Args:
        folder: holds `images/SPLIT` and the masks in `annotations/SPLIT` (`masks` or `labels`). A mask has the name of
            its picture up to the suffix; both may lie in further folders, which are the same for both, such as
            `images/train/berlin/1.jpg` and `masks/train/berlin/1.png`. Hidden files, what systems leave behind
            (`Thumbs.db`), and files that are no pictures are left out.

    Returns:
        A split for each folder in `images`, with the columns `image` and `annotation`, in the order of the names.

    Raises:
        ValueError: the folder is not laid out like this, or a file has no counterpart; the message names it.
    """
    found = mask_folders(folder)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder} has several folders of masks: {names}. Keep the one that goes with images/.")
    try:
        splits = {
            entry.name: _pair_split(Path(entry.path), found[0] / entry.name)
            for entry in _entries(folder / "images")
            if entry.is_dir()
        }
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error}") from error
    if not splits:
        raise ValueError(
            f"{folder / 'images'} has no split folders: expected training and validation (or train and val)."
        )
    return datasets.DatasetDict(splits)


def _pair_split(images_folder: Path, masks_folder: Path) -> datasets.Dataset:
    if not masks_folder.is_dir():
        raise ValueError(f"{images_folder} has no masks: there is no folder {masks_folder}.")
    images, masks = _files_by_name(images_folder), _files_by_name(masks_folder)
    unpaired = images.keys() ^ masks.keys()
    left_out = []
    for name in sorted(unpaired):
        here, there, folder = (images, masks, masks_folder) if name in images else (masks, images, images_folder)
        if _is_picture(here[name]):
            similar = _similar(name, {other: there[other] for other in sorted(there.keys() & unpaired)})
            raise ValueError(
                f"{here[name]} has no counterpart: no file {name}.* in {folder}. Add it, or remove this one.{similar}"
            )
        left_out.append(here[name].name)
    if left_out:
        logger.warning(
            "%s and %s: %d files are left out, as they are no pictures and have no counterpart: %s",
            *(images_folder, masks_folder, len(left_out), ", ".join(left_out[:5])),
        )
    names = sorted(images.keys() & masks.keys())
    if not names:
        raise ValueError(f"{images_folder} holds no pictures.")
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


def _files_by_name(folder: Path) -> dict[str, Path]:
    """All files below a folder, by their path in it without the suffix."""
    files = {}
    for path in _files(folder):
        name = os.path.splitext(path.relative_to(folder))[0]
        if name in files and _is_picture(files[name]) == _is_picture(path):
            raise ValueError(
                f"{path.parent} holds both {files[name].name} and {path.name}: names must differ before the suffix."
            )
        # What lies beside a picture under the same name, such as the polygons of its labels, is no second picture.
        if name not in files or _is_picture(path):
            files[name] = path
    return files


def _files(folder: Path) -> Iterator[Path]:
    for entry in _entries(folder):
        path = Path(entry.path)
        if not entry.is_dir():
            yield path
        elif entry.is_symlink() and path.parent.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{path} is a link to a folder that it lies in. Remove it.")
        else:
            yield from _files(path)


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    """Files and folders in a folder, by name, without the hidden ones and what systems leave behind."""
    with os.scandir(folder) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in LEFTOVERS:
            continue
        if not (entry.is_file() or entry.is_dir()):
            what = f"a link to {os.readlink(entry.path)}, which is not there" if entry.is_symlink() else "no file"
            raise ValueError(f"{entry.path} is {what}. Mend or remove it.")
        try:
            entry.path.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{ascii(entry.path)} has a name that is not UTF-8. Rename it.") from error
        yield entry


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES
