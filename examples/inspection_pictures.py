# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The pictures of inspect_dataset.py: examples with their masks, training crops, the rarest label."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import datasets
import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from van_hf.data import SegmentationDataset, TrainAugmentation, TrainSamples, read_example
from van_hf.data.findings import Inspection, rarest_label
from van_hf.data.inspection import ExampleRecord
from van_hf.data.masks import MASK_MODES
from van_hf.model.image_processing_van import upright
from van_hf.training import Recipe
from van_hf.visualization import IGNORED_COLOR, colorize, default_palette, draw_bands, overlay, tile_sheet

NUM_EXAMPLES = {"train": 8, "validation": 4}
NUM_CROPS = 8
NUM_RAREST = 4
SIDE = 480  # pixels of the long side of a picture in the page
MOST_ENTRIES = 40

T = TypeVar("T")
Tiles = list[tuple[Image.Image, str]]


@dataclass
class InspectionPictures:
    """Pictures and their captions.

    Attributes:
        tiles: by title; those of the same title belong together.
        entries: the legend, names and colours.
        palette: [red, green, blue] of each label.
    """

    tiles: dict[str, Tiles] = field(default_factory=dict)
    entries: list[tuple[str, Sequence[int]]] = field(default_factory=list)
    palette: list[list[int]] | None = None

    def sheets(self) -> dict[str, Image.Image]:
        """Return one picture for each title, by the name of its file."""
        return {
            title.lower().split(":")[0].replace(" ", "_"): tile_sheet(tiles, self.entries[:MOST_ENTRIES])
            for title, tiles in self.tiles.items()
            if tiles
        }


def draw_pictures(
    dataset: SegmentationDataset | datasets.DatasetDict, inspection: Inspection, recipe: Recipe
) -> InspectionPictures:
    """Draw what there is to be seen of a dataset that was inspected; with raw values where labels are not settled."""
    if not isinstance(dataset, SegmentationDataset):
        return _draw_raw(dataset, inspection)
    palette = dataset.palette or default_palette(dataset.num_labels)
    pictures = InspectionPictures(palette=palette)
    usable = {split: _usable(records) for split, records in inspection.records.items()}
    pictures.tiles["Contact sheet"] = [
        (shown, f"{split}: {_file_name(record.picture)}")
        for split, records in usable.items()
        for record in _spread(records, NUM_EXAMPLES[split])
        if (shown := _drawn(_overlay, dataset, split, record, palette)) is not None
    ]
    if usable["train"]:
        pictures.tiles["Training crops"] = _drawn(_crops, dataset, usable["train"], recipe, palette) or []
    summary = inspection.summaries()["train"]
    label = rarest_label(summary)
    if label is not None:
        best = sorted(usable["train"], key=lambda r: -r.labels.get(label, 0) / sum(r.labels.values()))[:NUM_RAREST]
        name = dataset.id2label[label]
        pictures.tiles[f"Rarest label: {label} {name}"] = [
            (shown, _file_name(record.picture))
            for record in best
            if record.labels.get(label)
            and (shown := _drawn(_overlay, dataset, "train", record, palette, only=label)) is not None
        ]
    order = sorted(dataset.id2label, key=lambda label: -summary.label_pixels[label])
    pictures.entries = [(dataset.id2label[label], palette[label]) for label in order]
    pictures.entries.append(("(not labelled)", IGNORED_COLOR))
    return pictures


def _drawn(draw: Callable[..., T], *args, **kwargs) -> T | None:
    """What a function draws; None, and a warning, where it cannot: a file may have changed since it was looked at."""
    try:
        return draw(*args, **kwargs)
    except Exception as error:  # of any kind, as Pillow's
        print(f"warning: a picture could not be drawn: {error}", file=sys.stderr)
        return None


def _usable(records: list[ExampleRecord]) -> list[ExampleRecord]:
    return [record for record in records if not record.problems]


def _spread(records: list, number: int) -> list:
    """So many of a list, evenly from all over it."""
    places = np.linspace(0, len(records) - 1, min(number, len(records))).round().astype(int)
    return [records[place] for place in places]


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _overlay(
    dataset: SegmentationDataset,
    split: str,
    record: ExampleRecord,
    palette: list[list[int]],
    only: int | None = None,
) -> Image.Image:
    image, labels = read_example(
        dataset.splits[split],
        record.idx,
        num_labels=dataset.num_labels,
        do_reduce_labels=dataset.do_reduce_labels,
        name=f"{dataset.name} {split}",
        mask_meaning=dataset.mask_meaning,
        bands=dataset.bands,
    )
    image, labels = _as_picture(image), labels.numpy()
    if only is None:
        return _small(overlay(image, labels, palette))
    # All else in grey, or a few pixels of a label would be lost among the colours.
    grey = np.asarray(image.convert("L").convert("RGB")) // 2 + 96
    found = (labels == only)[..., None]
    shown = np.where(found, np.asarray(image) // 2 + np.array(palette[only], dtype=np.uint8) // 2, grey)
    return _small(Image.fromarray(shown.astype(np.uint8)))


def _as_picture(image: torch.Tensor) -> Image.Image:
    """A picture as it was read; of bands the first three, or the first of fewer."""
    if image.dtype == torch.uint8:
        return to_pil_image(image)
    return draw_bands(image[: 3 if len(image) >= 3 else 1])


def _small(image: Image.Image) -> Image.Image:
    image.thumbnail((SIDE, SIDE))
    return image


def _crops(
    dataset: SegmentationDataset, usable: list[ExampleRecord], recipe: Recipe, palette: list[list[int]]
) -> Tiles:
    """Crops as the recipe trains on them, each beside its labels."""
    augmentation = TrainAugmentation(
        crop_size=recipe.crop_size,
        scale=recipe.image_scale,
        ratio_range=recipe.ratio_range,
        photometric_distortion=recipe.photometric_distortion and dataset.bands is None,
    )
    samples = TrainSamples(
        dataset.splits["train"].select([record.idx for record in usable]),
        augmentation,
        num_labels=dataset.num_labels,
        do_reduce_labels=dataset.do_reduce_labels,
        seed=0,
        num_samples=NUM_CROPS,
        mask_meaning=dataset.mask_meaning,
        bands=dataset.bands,
    )
    tiles = []
    for idx in range(NUM_CROPS):
        image, labels = pil_to_tensor(_as_picture(samples[idx]["pixel_values"])), samples[idx]["labels"]
        pair = torch.cat([image, torch.from_numpy(colorize(labels.numpy(), palette)).permute(2, 0, 1)], dim=2)
        tiles.append((_small(to_pil_image(pair)), f"crop {idx + 1} of {recipe.crop_size}x{recipe.crop_size}"))
    return tiles


def _draw_raw(splits: datasets.DatasetDict, inspection: Inspection) -> InspectionPictures:
    """Pictures beside their masks, whose values are told apart by colours that mean nothing."""
    summaries = inspection.summaries().values()
    values = sorted({int(raw) for s in summaries for raw in s.raw if raw.lstrip("-").isdigit()})[:256]
    palette = default_palette(max(1, len(values)))
    pictures = InspectionPictures()
    pictures.entries = [(f"value {value}", palette[place]) for place, value in enumerate(values)]
    tiles = []
    for split, records in inspection.records.items():
        for record in _spread(_usable(records), NUM_EXAMPLES[split]):
            shown = _drawn(_raw_overlay, splits[split], record, values, palette)
            if shown is not None:
                tiles.append((shown, f"{split}: {_file_name(record.picture)}"))
    pictures.tiles["Contact sheet"] = tiles
    return pictures


def _raw_overlay(
    split: datasets.Dataset, record: ExampleRecord, values: list[int], palette: list[list[int]]
) -> Image.Image:
    example = split[record.idx]
    image, mask = (upright(example[column]) for column in ("image", "annotation"))
    if mask.mode in MASK_MODES:
        pixels = np.array(mask, dtype=np.int64)
        places = np.searchsorted(values, pixels).clip(0, len(values) - 1)
        known = np.asarray(values)[places] == pixels
        mask = Image.fromarray(colorize(np.where(known, places, -1), palette))
    return _small(Image.blend(image.convert("RGB"), mask.convert("RGB"), 0.6))
