# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""COCO's files: polygons, run-length codes and panoptic masks, drawn as label masks when they are asked for.

The format is that of https://cocodataset.org/#format-data; pycocotools, of the extra `coco`, draws.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
from PIL import ExifTags, Image

from ..files import read_json
from ..model.image_processing_van import orientation_of, upright, upright_size
from .folders import FileProblem
from .progress import reading_progress

logger = logging.getLogger(__name__)

BACKGROUND = "background"
# Pixels by which polygons may leave the picture: tools round.
MARGIN = 1
# Of pictures, in pixels.
MAX_SIDE = 2**16
NUM_SHOWN = 5
MAX_NAMED = 20


def load_coco(
    folder: Path, files: Sequence[Path], problems: list[FileProblem] | None = None
) -> tuple[datasets.DatasetDict, list[str]]:
    """Return pictures with what is to be drawn on their masks. Of the pictures only the headers are read.

    In the masks 0 is the background, and category k, in the order of the ids, is k + 1; a category that is called
    "background" is 0 itself. Where regions overlap, smaller ones lie on top; crowds count as any other.

    Regions may have been drawn on a picture as it is stored, or on what its EXIF orientation makes of it; the height
    and width that a file has of the picture tell which. Masks come out upright, as pictures do. Where sizes do not
    tell, as of square or mirrored pictures, and no other picture of the file does, regions are taken for those of the
    picture as it is stored, which is how torchvision's CocoDetection opens it; a warning counts these pictures.

    Args:
        folder: where the pictures lie, by the path that a file tells or, if it is the only one, by its last part.
        files: of the training pictures and, if there are two, the validation pictures. Of "instances" or "stuff", or
            "panoptic", whose masks lie in a folder of the file's name without suffix.
        problems: where each picture that is missing, and each annotation that cannot be used, is added to, to be left
            out; by default they are an error.

    Returns:
        The splits "train" and "validation" with the columns `image` and `annotation`, which is what
        [`draw_annotation`] takes; and the names of the values 0, 1, 2 and so on.

    Raises:
        ValueError: pycocotools is missing; a file is no such file; pictures, or the files of panoptic masks, are
            missing; or annotations are damaged, lie outside of their picture, or have unknown categories. The message
            counts them.
    """
    if find_spec("pycocotools") is None:
        raise ValueError('annotations need the package pycocotools: pip install "van_hf[coco]", or pycocotools itself')
    if not folder.is_dir():
        raise ValueError(f"dataset {str(folder)!r} must be the folder of the pictures that annotations tell of")
    if not 1 <= len(files) <= 2:
        raise ValueError(f"annotations must be one file or two, of training and validation, got {len(files)}")
    contents = [_read(path) for path in files]
    categories = [_categories(path, content) for path, content in zip(files, contents, strict=True)]
    if categories[0] != categories[-1]:
        raise ValueError(f"{files[0]} and {files[1]} have different categories")
    names = list(categories[0].values())
    has_background = [name.lower() for name in names].count(BACKGROUND) == 1
    others = [key for key, name in categories[0].items() if not (has_background and name.lower() == BACKGROUND)]
    values = dict.fromkeys(categories[0], 0) | {key: place + 1 for place, key in enumerate(others)}
    splits = {
        split: _split(folder, path, content, values, problems)
        for split, path, content in zip(("train", "validation"), files, contents, strict=False)
    }
    return datasets.DatasetDict(splits), [BACKGROUND, *(categories[0][key] for key in others)]


def _read(path: Path) -> dict:
    content = read_json(path)
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if missing:
        raise ValueError(f"{path} is no COCO file: it has no list of {' and '.join(missing)}")
    return content


def _categories(path: Path, content: dict) -> dict[int, str]:
    """{id: name}, in the order of the ids."""
    try:
        pairs = sorted((_whole(entry["id"]), _name(entry["name"])) for entry in content["categories"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: each category must have an id and a name; {error!r}") from error
    names, ids = dict(pairs), defaultdict(list)
    for key, name in pairs:
        ids[name].append(str(key))
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"{path}: several categories have the id {', '.join(map(repr, twice[:NUM_SHOWN]))}")
    if twice := [f"{name!r} (ids {', '.join(keys)})" for name, keys in ids.items() if len(keys) > 1]:
        shown = ", ".join(twice[:NUM_SHOWN])
        raise ValueError(f"{path}: several categories have the name {shown}; white space makes no difference")
    if not pairs:
        raise ValueError(f"{path} has no categories")
    return names


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no name")
    return " ".join(value.split())


def _split(
    folder: Path, path: Path, content: dict, values: dict[int, int], problems: list[FileProblem] | None
) -> datasets.Dataset:
    try:
        images = {image["id"]: image for image in content["images"]}
        sizes = {key: (_whole(image["height"]), _whole(image["width"])) for key, image in images.items()}
        if wrong := [key for key, size in sizes.items() if not 0 < min(size) <= max(size) < MAX_SIDE]:
            raise ValueError(f"image {wrong[0]!r} has {sizes[wrong[0]][1]}x{sizes[wrong[0]][0]} pixels")
        names = [str(image["file_name"]) for image in images.values()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: each image must have id, file_name, height and width; {error!r}") from error
    if len(images) < len(content["images"]):
        raise ValueError(f"{path}: several images have the same id")
    files = dict(zip(images, _find_pictures(folder, path, names, problems), strict=True))
    turns = _turns(path, {file: sizes[key] for key, file in files.items() if file is not None}, problems)
    drawn, unusable = defaultdict(list), []
    for annotation in content["annotations"]:
        try:
            key = annotation["image_id"]
            if key not in images:
                raise ValueError(f"image {key!r} is not in the file")
            drawn[key].append(_part(annotation, sizes[key], values, path))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            problem = f"it has no {error}" if isinstance(error, KeyError) else error
            name = annotation.get("id", annotation.get("image_id")) if isinstance(annotation, dict) else annotation
            unusable.append(f"annotation {name!r}: {problem}")
    if unusable and problems is None:
        more = f", and {len(unusable) - NUM_SHOWN} more" if len(unusable) > NUM_SHOWN else ""
        raise ValueError(
            f"{path}: {len(unusable)} annotations cannot be used: {'; '.join(unusable[:NUM_SHOWN])}{more}"
        )
    if unusable:
        problems.extend(FileProblem(str(path), f"{path}: {text}") for text in unusable)
    if not images:
        raise ValueError(f"{path} has no images")
    for key, parts in drawn.items():
        if len(parts) > 1 and any(isinstance(part, dict) for _, part in parts):
            raise ValueError(f"{path}: image {key!r} has a panoptic mask and other annotations; one mask tells all")
        parts.sort(key=lambda part: -part[0])
    without_mask = _missing_masks(path, drawn, problems)
    images = [key for key in images if files[key] is not None and key not in without_mask]
    if not images:
        raise ValueError(f"{path}: none of its pictures can be used: {problems[0].text}")
    texts = []
    for key in images:
        text = {"size": sizes[key], "parts": [part for _, part in drawn[key]]}
        texts.append(json.dumps(text | ({"orientation": turns[files[key]]} if files[key] in turns else {})))
    features = datasets.Features(image=datasets.Image(), annotation=datasets.Value("string"))
    columns = {"image": [files[key] for key in images], "annotation": texts}
    return datasets.Dataset.from_dict(columns, features=features)


def _missing_masks(path: Path, drawn: dict, problems: list[FileProblem] | None) -> set:
    """The images whose panoptic masks are no files, which is an error, or added to the problems."""
    masks = {key: part["file"] for key, parts in drawn.items() for _, part in parts if isinstance(part, dict)}
    missing = {key: file for key, file in masks.items() if not os.path.isfile(file)}
    if not missing:
        return set()
    folder = path.with_suffix("")
    if problems is not None:
        problems.extend(FileProblem(file, f"{path}: the mask {file} is missing") for file in missing.values())
        return set(missing)
    shown = ", ".join(map(os.path.basename, list(missing.values())[:MAX_NAMED]))
    more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
    there = "" if folder.is_dir() else ", which does not exist"
    raise ValueError(
        f"{path}: {len(missing)} of {len(masks)} masks are not in the folder {folder}{there}: {shown}{more}"
    )


def _whole(value: object) -> int:
    """A whole number, which some tools write as text."""
    if type(value) is int or (isinstance(value, str) and value.strip().isdecimal() and len(value) < 20):
        return int(value)
    raise ValueError(f"{value!r} is no whole number")


def _turns(path: Path, sizes: dict[str, tuple[int, int]], problems: list[FileProblem] | None) -> dict[str, int]:
    """The EXIF orientation by which masks are to be turned, of those pictures that regions are drawn on as stored.

    Raises a ValueError where pictures, by their headers, have other sizes, unless problems are collected: who does so
    looks at each picture anyway. Damaged ones tell as they are read.
    """
    wrong, turned, is_upright = [], {}, {}
    for file, size in reading_progress(sizes.items(), desc="Reading headers", unit="picture"):
        try:
            with Image.open(file) as picture:
                orientation, shown = orientation_of(picture), upright_size(picture)
        except Exception:  # of many kinds
            continue
        stored = shown[::-1] if orientation > 4 else shown
        if size not in (stored, shown):
            wrong.append(f"{file} has {shown[1]}x{shown[0]}, not {size[1]}x{size[0]}")
        elif orientation != 1:
            turned[file] = orientation
            if stored != shown:
                is_upright[file] = size == shown
    if wrong and problems is None:
        raise ValueError(
            f"{path} has other sizes than {len(wrong)} pictures: "
            f"{'; '.join(wrong[:NUM_SHOWN])}{'; …' if len(wrong) > NUM_SHOWN else ''}"
        )
    unclear = [file for file in turned if file not in is_upright]
    found = set(is_upright.values())
    if unclear and len(found) != 1:
        logger.warning(
            "%s: %d pictures are turned or mirrored by EXIF, and sizes do not tell whether regions were drawn on them "
            "as they are stored, which is assumed. Look at them (examples/inspect_dataset.py): %s",
            *(path, len(unclear), ", ".join(unclear[:NUM_SHOWN]) + (", …" if len(unclear) > NUM_SHOWN else "")),
        )
    default = found == {True}  # tools treat all pictures alike
    return {file: orientation for file, orientation in turned.items() if not is_upright.get(file, default)}


def _find_pictures(folder: Path, path: Path, names: list[str], problems: list[FileProblem] | None) -> list[str | None]:
    """The file of each name: at its place in the folder or, where there is but one of that name, anywhere in it.

    Of those that are missing, where there is a list for the problems, there is None.
    """
    # Windows' exports have backslashes; places elsewhere, as Label Studio's, leave the name alone.
    names = [name.replace("\\", "/") for name in names]
    is_inside = [not os.path.isabs(name) and os.path.normpath(name).split("/")[0] != ".." for name in names]
    found = [
        os.path.join(folder, name if inside else os.path.basename(name))
        for name, inside in zip(names, is_inside, strict=True)
    ]
    by_name = defaultdict(list)
    if not all(map(os.path.isfile, found)):
        for place, _, files in os.walk(folder):
            for name in files:
                by_name[name].append(os.path.join(place, name))
    missing = []
    for idx, name in enumerate(names):
        if not os.path.isfile(found[idx]):
            others = by_name[os.path.basename(name)]
            if len(others) == 1:
                (found[idx],) = others
            else:
                missing.append(f"{name} (several of that name)" if others else name)
                if problems is not None:
                    text = f"{path}: {missing[-1]} is not in {folder}"
                    problems.append(FileProblem(found[idx], text))
                    found[idx] = None
    if missing and problems is None:
        shown = ", ".join(missing[:NUM_SHOWN]) + (", …" if len(missing) > NUM_SHOWN else "")
        raise ValueError(f"{path}: {len(missing)} of {len(names)} pictures are not in {folder}: {shown}")
    if twice := [file for file, count in Counter(map(os.path.normpath, filter(None, found))).items() if count > 1]:
        raise ValueError(f"{path}: several images are the same picture: {', '.join(twice[:NUM_SHOWN])}")
    return found


def _part(annotation: dict, size: tuple[int, int], values: dict[int, int], path: Path) -> tuple[float, object]:
    """The size of an annotation's region, by which regions are stacked, and what is drawn of it."""
    if "segments_info" in annotation:  # panoptic: all of a picture in one file
        name = annotation["file_name"]
        if os.path.basename(name) != name:
            raise ValueError(f"its file_name {name!r} must be a name alone")
        ids = {int(segment["id"]): _value(segment["category_id"], values) for segment in annotation["segments_info"]}
        return math.inf, {"file": os.path.join(path.with_suffix(""), name), "values": list(ids.items())}
    segmentation = annotation["segmentation"]
    value = _value(annotation["category_id"], values)
    if not segmentation:
        raise ValueError("it has a box, but no segmentation")
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != list(size):
            raise ValueError(f"its run-length code is of size {segmentation['size']}, its image of {list(size)}")
        _runs(segmentation["counts"], *size)
    else:
        for polygon in segmentation:
            _check_polygon(polygon, size)
    area = annotation.get("area")
    return (area if isinstance(area, (int, float)) and area >= 0 else math.inf), [value, segmentation]


def _value(category: object, values: dict[int, int]) -> int:
    if _whole(category) not in values:
        raise ValueError(f"category {category!r} is not in the file")
    return values[_whole(category)]


def _check_polygon(polygon: list[float], size: tuple[int, int]) -> None:
    height, width = size
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("a polygon must be a list of x, y, x, y and so on, of three points at least")
    if not all(isinstance(value, (int, float)) and abs(value) < MAX_SIDE for value in polygon):  # NaN is not
        raise ValueError("a polygon has coordinates that are no numbers, or beyond any picture")
    x, y = polygon[::2], polygon[1::2]
    inside = min(x) >= -MARGIN and max(x) <= width + MARGIN and min(y) >= -MARGIN and max(y) <= height + MARGIN
    if not inside:
        raise ValueError(
            f"a polygon reaches from {min(x):g}, {min(y):g} to {max(x):g}, {max(y):g}, outside of the "
            f"{width}x{height} pixels of its image"
        )


def draw_annotation(text: str) -> np.ndarray:
    """Return the mask that an annotation of [`load_coco`] tells of, upright: uint8 (height, width).

    Outside of all regions it is 0, the background, and in panoptic masks, where that is no segment, 255.

    Raises:
        ValueError: a run-length code is damaged, or a panoptic mask is missing or has segments that the file lacks.
    """
    content = json.loads(text)
    labels = _draw_parts(content["parts"], *content["size"])
    if "orientation" not in content:
        return labels
    mask = Image.fromarray(labels)
    mask.getexif()[ExifTags.Base.Orientation] = content["orientation"]
    return np.array(upright(mask))


def content_of_annotation(text: str) -> bytes:
    """Return all that [`draw_annotation`] draws by: the text, and of panoptic masks the file, too.

    Raises:
        OSError: a panoptic mask cannot be read.
    """
    masks = [part["file"] for part in json.loads(text)["parts"] if isinstance(part, dict)]
    return b"".join([text.encode(), *(Path(mask).read_bytes() for mask in masks)])


def _draw_parts(parts: list, height: int, width: int) -> np.ndarray:
    labels = np.zeros((height, width), dtype=np.uint8)
    for part in parts:
        if isinstance(part, dict):
            return _draw_panoptic(part)
        value, segmentation = part
        if isinstance(segmentation, list):
            for polygon in segmentation:
                _draw_polygon(labels, value, polygon)
        else:
            runs = _runs(segmentation["counts"], height, width)
            region = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
            labels[region.reshape(width, height).T] = value  # column by column
    return labels


def _draw_polygon(labels: np.ndarray, value: int, polygon: list[float]) -> None:
    """Draw one of `labels`, (height, width), within the box around it: of many small ones each would be a picture."""
    from pycocotools import mask as coco_mask

    points = np.array(polygon, dtype=float).reshape(-1, 2)
    size = labels.shape[::-1]
    left, top = np.clip(np.floor(points.min(axis=0)), 0, size).astype(int).tolist()
    right, bottom = np.clip(np.ceil(points.max(axis=0)) + 1, 0, size).astype(int).tolist()
    if right > left and bottom > top:
        moved = (points - (left, top)).ravel().tolist()
        region = coco_mask.decode(coco_mask.frPyObjects([moved], bottom - top, right - left))[..., 0]
        labels[top:bottom, left:right][region > 0] = value


def _runs(counts: list[int] | str, height: int, width: int) -> list[int]:
    """The lengths of a run-length code's runs, of 0 and 1 in turn; checked here, as pycocotools does not."""
    if isinstance(counts, str):
        counts = _decode_counts(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("a run-length code must be a text, or a list of whole numbers, 0 or more")
    if sum(counts) != height * width:
        raise ValueError(f"a run-length code is damaged: it covers {sum(counts)} of {height * width} pixels")
    return counts


def _decode_counts(text: str) -> list[int]:
    """Decode COCO's compressed code: 5 bits a character, the lowest first, of differences to the last run but one."""
    counts, value, shift = [], 0, 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or shift > 60:
            raise ValueError(f"a run-length code is damaged: it holds {character!r}")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("a run-length code is damaged: it ends within a number")
    return counts


def _draw_panoptic(part: dict) -> np.ndarray:
    with Image.open(part["file"]) as mask:
        channels = np.asarray(mask.convert("RGB")).astype(np.int64)
    ids, places = np.unique(channels @ np.array([1, 256, 256**2]), return_inverse=True)
    values = {0: 255, **dict(part["values"])}  # 0 belongs to no segment
    if unknown := [int(number) for number in ids if number not in values]:
        raise ValueError(f"{part['file']} has segments that are not in the file: {unknown[:NUM_SHOWN]}")
    labels = np.array([values[number] for number in ids.tolist()], dtype=np.uint8)[places]
    return labels.reshape(channels.shape[:2])
