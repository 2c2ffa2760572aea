# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import hashlib
import io
import json
import re
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import PROGRAMS, paired_folders
from loopback_hub import Commit, File, LoopbackHub, Repository
from PIL import Image
from torch.utils.data import DataLoader

from van_hf.data import TrainAugmentation, check_train_labels, describe_labels, load_segmentation_dataset, streaming
from van_hf.data.label_check import look_at_masks
from van_hf.data.samples import keyed_generator, make_sample
from van_hf.data.streaming import Place, StreamedTrainSamples, StreamPlaces, streams_per_process

NAMES = {0: "left", 1: "right"}
SHARDS = (4, 7, 3, 5, 4)  # pictures in each
NUM_PICTURES = sum(SHARDS)
AUGMENTATION = TrainAugmentation(16, (40, 24), photometric_distortion=False)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def file_of(image: Image.Image, name: str) -> dict:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": name}


def example(number: int, label_values: tuple[int, int] = (0, 1)) -> dict:
    """A picture of its own shade of red, and a mask with two halves."""
    labels = np.full((24, 32), label_values[0], dtype=np.uint8)
    labels[:, 16:] = label_values[1]
    image = Image.new("RGB", (32, 24), (10 * number + 5, 0, 0))
    return {"image": file_of(image, f"{number}.png"), "mask": file_of(Image.fromarray(labels), f"m{number}.png")}


def write_shard(path: Path, examples: list[dict], row_group_size: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image())
    # `Dataset.to_parquet` leaves out the names of the files.
    table = pa.Table.from_pylist(examples, schema=features.arrow_schema)
    pq.write_table(table, path, row_group_size=row_group_size)


def write_shards(folder: Path, sizes: tuple[int, ...] = SHARDS, **options) -> Path:
    first = 0
    for shard, size in enumerate(sizes):
        examples = [example(number, **options) for number in range(first, first + size)]
        write_shard(folder / f"train-{shard:05}-of-{len(sizes):05}.parquet", examples)
        first += size
    write_shard(folder / "validation-00000-of-00001.parquet", [example(20), example(21)])
    (folder / "id2label.json").write_text(json.dumps(NAMES))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "reds")


@pytest.fixture
def load(folder):
    return partial(load_segmentation_dataset, str(folder), streaming=True)


@pytest.fixture
def split(load):
    return load().splits["train"]


def samples_of(
    split, places: StreamPlaces, num_batches: int = 12, block_size: int = 4, seed: int = 0, **options
) -> StreamedTrainSamples:
    fields = {"num_labels": 2, "do_reduce_labels": False, "batch_size": 2} | options
    return StreamedTrainSamples(
        split,
        AUGMENTATION,
        places=places.places,
        num_streams=places.num_streams,
        block_size=block_size,
        num_batches=num_batches,
        seed=seed,
        **fields,
    )


def number_of(pixels: torch.Tensor) -> int:
    """The number of the picture that a sample shows; where it is padded, it is so at the right and at the bottom."""
    return (int(pixels[0, 0, 0]) - 5) // 10


def drawn(split, places: StreamPlaces, num_workers: int = 0, **options) -> list[tuple[int, int, int]]:
    """Stream, epoch and number of each picture that a process gets, and a digest of the sample; `places` follow."""
    samples, found = samples_of(split, places, **options), []
    for batch in DataLoader(samples, batch_size=2, num_workers=num_workers, generator=torch.Generator()):
        for pixels, place in zip(batch["pixel_values"], batch["place"].tolist(), strict=True):
            number = number_of(pixels)
            found.append((place[0], place[1], number, hash(pixels.numpy().tobytes())))
        places.follow(batch["place"][-1].tolist())
    return found


@pytest.mark.parametrize(
    ("num_processes", "num_workers", "block_size"),
    [(1, 0, 1), (1, 0, 99), (2, 0, 4)]
    + [pytest.param(*given, marks=pytest.mark.slow) for given in ((5, 0, 4), (1, 2, 4), (2, 2, 4))],
)
def test_every_picture_is_seen_once_an_epoch(split, num_processes, num_workers, block_size):
    each = streams_per_process(split.num_shards, num_processes, num_workers)
    assert each == max(num_workers, 1)
    seen = {0: Counter(), 1: Counter(), 2: Counter()}
    for process in range(num_processes):
        places = StreamPlaces(process, num_processes, each)
        for _, epoch, number, _ in drawn(split, places, num_workers, num_batches=60, block_size=block_size):
            if epoch in seen:
                seen[epoch][number] += 1
        # So that all have come through the epochs that are looked at.
        assert all(place.epoch > 2 for place in places.places)
    assert all(counts == Counter(range(NUM_PICTURES)) for counts in seen.values())


def test_the_order_is_that_of_seed_and_epoch(split):
    def numbers(seed: int) -> list[int]:
        return [entry[2] for entry in drawn(split, StreamPlaces(0, 1, 1), num_batches=NUM_PICTURES, seed=seed)]

    first = numbers(0)
    assert first == numbers(0) != numbers(1)
    assert first[:NUM_PICTURES] != first[NUM_PICTURES:]
    shards = np.repeat(np.arange(len(SHARDS)), SHARDS)
    order = list(dict.fromkeys(shards[first[:NUM_PICTURES]].tolist()))
    assert order != sorted(order)


@pytest.mark.parametrize(
    ("num_processes", "block_size", "step"),
    [(1, 4, 7)] + [pytest.param(*given, marks=pytest.mark.slow) for given in ((2, 4, 3), (1, 1, 4), (1, 99, 4))],
)
def test_a_stream_goes_on_from_any_place(split, num_processes, block_size, step):
    num_batches = 30
    for process in range(num_processes):
        whole = drawn(split, StreamPlaces(process, num_processes, 1), num_batches=num_batches, block_size=block_size)
        for cut in range(0, num_batches, step):
            places = StreamPlaces(process, num_processes, 1)
            found = drawn(split, places, num_batches=cut, block_size=block_size)
            places = saved_and_loaded(places, process)
            found += drawn(split, places, num_batches=num_batches - cut, block_size=block_size)
            assert found == whole


def saved_and_loaded(places: StreamPlaces, process: int = 0) -> StreamPlaces:
    places.gathered = [()] * process + [list(places.places)]
    loaded = StreamPlaces(process, places.num_streams // len(places.places), len(places.places))
    loaded.load_state_dict(json.loads(json.dumps(places.state_dict())))
    return loaded


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_what_is_loaded_ahead_is_not_lost(split, cut):
    """Batches come from the loading processes in turn, also where a run was ended after an odd number of them."""
    whole = drawn(split, StreamPlaces(1, 2, 2), num_workers=2, num_batches=9)
    places = StreamPlaces(1, 2, 2)
    samples, found = samples_of(split, places, num_batches=9), []
    loader = DataLoader(samples, batch_size=2, num_workers=2, generator=torch.Generator())
    for _, batch in zip(range(cut), loader, strict=False):
        places.follow(batch["place"][-1].tolist())
        found += batch["place"].tolist()
    assert [entry[0] for entry in found] == [entry[0] for entry in whole[: 2 * cut]]
    rest = drawn(split, saved_and_loaded(places, 1), num_workers=2, num_batches=9 - cut)
    assert rest == whole[2 * cut :]


def test_to_go_on_a_block_is_read_and_nothing_else_decoded(split, monkeypatch):
    places = StreamPlaces(0, 1, 1)
    drawn(split, places, num_batches=7, block_size=4)
    rows, decoded = [], []
    read, decode = streaming.StreamedSplit.read, datasets.Image.decode_example

    def reading(*given):
        for files in read(*given):
            rows.append(files)
            yield files

    def decoding(self, value, **options):
        decoded.append(value["path"])
        return decode(self, value, **options)

    monkeypatch.setattr(streaming.StreamedSplit, "read", reading)
    monkeypatch.setattr(datasets.Image, "decode_example", decoding)
    (place,) = places.places
    assert place.num_drawn == 2
    drawn(split, places, num_batches=1, block_size=4)
    # The block, one more for each picture that was drawn of it, and the next one.
    assert len(rows) == 4 + 4 + 1
    assert len(decoded) == 2 * 2


def test_a_sample_is_the_same_in_any_number_of_streams(split):
    def digests(num_processes: int) -> dict:
        found = {}
        for process in range(num_processes):
            for _, epoch, number, digest in drawn(split, StreamPlaces(process, num_processes, 1), num_batches=30):
                found[epoch, number] = digest
        return {key: digest for key, digest in found.items() if key[0] < 2}

    alone = digests(1)
    assert len(alone) == 2 * NUM_PICTURES and len({alone[epoch, 0] for epoch in (0, 1)}) == 2
    assert alone == {key: digest for key, digest in digests(2).items() if key in alone}


@pytest.mark.parametrize("jpeg_draft", [False, True])
def test_samples_are_made_as_those_that_are_not_streamed(folder, split, jpeg_draft):
    whole = load_segmentation_dataset(str(folder)).splits["train"]
    samples = samples_of(split, StreamPlaces(0, 1, 1), num_batches=5, jpeg_draft=jpeg_draft, seed=3)
    for sample in samples:
        number = number_of(sample["pixel_values"])
        shard = np.repeat(np.arange(len(SHARDS)), SHARDS)[number].item()
        row = number - sum(SHARDS[:shard])
        generator = keyed_generator(3, 3, sample["place"][1].item(), shard, row)
        expected = make_sample(whole[number], AUGMENTATION, generator, num_labels=2, do_reduce_labels=False)
        assert all(torch.equal(sample[name], expected[name]) for name in expected)


@pytest.mark.skipif(not hasattr(datasets.IterableDataset, "reshard"), reason="datasets 4.4 has no smaller shards")
def test_row_groups_are_shards_where_files_are_too_few(tmp_path):
    split = load_segmentation_dataset(str(write_shards(tmp_path, (5, 2))), streaming=True).splits["train"]
    assert split.num_shards == 2 and split.resharded(2) is split
    split = split.resharded(3)
    names = [f"train-00000-of-00002.parquet, part {part}" for part in range(3)] + ["train-00001-of-00002.parquet"]
    assert list(split.shard_names) == names
    assert [len(list(split.read(shard))) for shard in range(4)] == [2, 2, 1, 2]
    seen = Counter()
    for process in range(4):
        found = drawn(split, StreamPlaces(process, 4, 1), num_batches=3)
        seen.update(number for _, epoch, number, _ in found if epoch == 0)
    assert seen == Counter(range(7))


@pytest.mark.parametrize(
    ("num_shards", "num_processes", "num_workers", "expected"),
    [(8, 2, 4, 4), (8, 2, 0, 1), (7, 2, 4, 3), (2, 2, 4, 1), (1, 1, 0, 1)],
)
def test_each_stream_has_a_shard(num_shards, num_processes, num_workers, expected):
    assert streams_per_process(num_shards, num_processes, num_workers) == expected


def test_too_few_shards_are_refused():
    with pytest.raises(ValueError, match=r"lie in 2 shard\(s\), .* streamed to 3 processes\. Take fewer processes"):
        streams_per_process(2, 3, 0)


def test_streams_of_another_number_are_refused():
    places = StreamPlaces(0, 1, 2)
    with pytest.raises(ValueError, match="from stream 1, and not from 0"):
        places.follow(Place(1))
    with pytest.raises(ValueError, match=r"streams \[0, 1\], not those of this run"):
        StreamPlaces(0, 2, 2).load_state_dict({"places": [[list(Place(0)), list(Place(1))]]})


def test_only_the_validation_pictures_are_kept(folder, load, cache):
    streamed = load().splits["validation"]
    assert not list(cache.rglob("*train*.arrow")) and list(cache.rglob("*validation*.arrow"))
    whole = load_segmentation_dataset(str(folder)).splits["validation"]
    assert streamed.features == whole.features
    assert [np.asarray(image).tolist() for image in streamed["image"]] == [
        np.asarray(image).tolist() for image in whole["image"]
    ]
    assert len(load(validation_split="validation[:1]").splits["validation"]) == 1


def test_what_a_stream_is_of(load, folder):
    dataset = load()
    split = dataset.splits["train"]
    assert dataset.id2label == NAMES
    assert split.num_rows is None
    assert split.files == {path.name: path.stat().st_size for path in sorted(folder.glob("train*"))}
    assert split.shard_names == tuple(split.files)


def test_files_of_several_folders_are_told_apart(tmp_path):
    for part in ("a", "b"):
        write_shard(tmp_path / "train" / part / "0.parquet", [example(0)])
    write_shard(tmp_path / "validation" / "0.parquet", [example(1)])
    (tmp_path / "id2label.json").write_text(json.dumps(NAMES))
    split = load_segmentation_dataset(str(tmp_path), streaming=True).splits["train"]
    assert split.shard_names == tuple(split.files) == ("a/0.parquet", "b/0.parquet")


def test_a_card_tells_the_number_of_pictures(tmp_path):
    folder = write_shards(tmp_path)
    part = "\n    - name: {}\n      num_examples: {}"
    splits = part.format("train", NUM_PICTURES) + part.format("validation", 2)
    features = "".join(f"\n    - name: {name}\n      dtype: image" for name in ("image", "mask"))
    (folder / "README.md").write_text(f"---\ndataset_info:\n  features:{features}\n  splits:{splits}\n---\n")
    dataset = load_segmentation_dataset(str(folder), streaming=True)
    assert dataset.splits["train"].num_rows == NUM_PICTURES
    assert len(dataset.splits["validation"]) == 2


def test_masks_may_be_of_any_form(tmp_path):
    folder = write_shards(tmp_path, label_values=(0, 200))
    (folder / "id2label.json").unlink()
    dataset = load_segmentation_dataset(str(folder), streaming=True, mask_values=["0=left", "200=right", "1=right"])
    assert dataset.id2label == NAMES
    samples = samples_of(dataset.splits["train"], StreamPlaces(0, 1, 1), mask_meaning=dataset.mask_meaning)
    assert set(torch.cat([sample["labels"].flatten() for sample in samples]).tolist()) <= {0, 1, 255}
    assert check_train_labels(dataset).pixels.keys() == {0, 1}


def test_what_cannot_be_streamed_is_refused(tmp_path, folder, load):
    def error(name, **options) -> str:
        with pytest.raises(ValueError) as raised:
            load_segmentation_dataset(str(name), streaming=True, **options)
        return str(raised.value)

    assert "'scenes' is generated on this machine: there is nothing to stream" in error("scenes")
    assert "is read from its folder as it is" in error(paired_folders(tmp_path / "paired"))
    saved = tmp_path / "saved"
    load_segmentation_dataset(str(folder)).splits.save_to_disk(saved)
    assert "is read from its folder as it is" in error(saved)
    assert "streaming does not go with them" in error(folder, annotations="a.json")
    assert "is not a folder" in error(tmp_path / "missing")
    for options in (
        {"train_split": "train[:90%]"},
        {"validation_split": "train[90%:]"},
        {"validation_split": "test"},
    ):
        assert "do not fit dataset" in error(folder, **options)
    next(folder.glob("validation*")).rename(folder / "test.parquet")
    try:
        assert "has no split 'validation'; found: ['train', 'test']" in error(folder)
        assert len(load(validation_split="test").splits["validation"]) == 2
    finally:
        (folder / "test.parquet").rename(folder / "validation-00000-of-00001.parquet")


@pytest.mark.slow
def test_a_hub_dataset_is_streamed(tmp_path, folder):
    with LoopbackHub() as hub:
        hub.repositories["alice/reds"] = repository = Repository()
        content = {path.name: path.read_bytes() for path in folder.iterdir()}
        files = {name: File(data, hashlib.sha256(data).hexdigest()) for name, data in content.items()}
        hub.objects = {file.sha256: file.content for file in files.values()}
        repository.add("main", Commit("data", files))
        environment = hub.environment(tmp_path / "home") | {"PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, PROGRAMS / "stream_from_hub.py", "alice/reds"]
        output = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
        found = json.loads(output.stdout.splitlines()[-1])
        assert hub.unknown == []
    assert found["labels"] == list(NAMES.values()) and found["validation"] == 2
    assert found["whole"] == found["parts"] and len(found["whole"]) == 12
    assert found["files"] == {name: len(content[name]) for name in sorted(content) if name.startswith("train")}
    # Neither the files, nor what `datasets` makes of them.
    sizes = {path.stat().st_size for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert sizes.isdisjoint(found["files"].values())
    assert not list((tmp_path / "home").rglob("*train*.arrow"))


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_damaged_picture_is_named(tmp_path, column, num_workers):
    folder = write_shards(tmp_path, (2,))
    torn = example(3)
    torn[column]["bytes"] = torn[column]["bytes"][:60]
    write_shard(folder / "train-00001-of-00002.parquet", [example(2), torn])
    dataset = load_segmentation_dataset(str(folder), streaming=True)
    name = re.escape(f"{folder} train, train-00001-of-00002.parquet[1] ({torn[column]['path']}) cannot be read: ")
    with pytest.raises(ValueError, match=name):
        drawn(dataset.splits["train"], StreamPlaces(0, 1, 1), num_workers)
    if column == "mask":
        with pytest.raises(ValueError, match=name):
            look_at_masks(dataset)


def test_a_damaged_shard_is_named(tmp_path):
    folder = write_shards(tmp_path)
    path = folder / "train-00002-of-00005.parquet"
    content = bytearray(path.read_bytes())
    content[4:-2000] = bytes(len(content) - 2004)  # the pages, and not the footer
    path.write_bytes(content)
    split = load_segmentation_dataset(str(folder), streaming=True).splits["train"]
    with pytest.raises(ValueError, match=f"train, {path.name} cannot be read: "):
        drawn(split, StreamPlaces(0, 1, 1))


def empty_parquet(file: Path) -> None:
    """Leaves what a writer does that has written nothing."""
    pq.ParquetWriter(file, pa.schema(pq.read_schema(file))).close()


def test_a_stream_passes_by_files_without_pictures(tmp_path):
    folder = write_shards(tmp_path, (2, 1))
    empty_parquet(folder / "train-00001-of-00002.parquet")
    split = load_segmentation_dataset(str(folder), streaming=True).splits["train"]
    seen = [{number for _, _, number, _ in drawn(split, StreamPlaces(process, 2, 1))} for process in range(2)]
    assert seen == [{0, 1}, {0, 1}]
    if hasattr(split.dataset, "reshard"):
        resharded = split.resharded(3)
        assert resharded.shard_names == ("shard 1 of 1",) and len(list(resharded.read(0))) == 2
    empty_parquet(folder / "train-00000-of-00002.parquet")
    split = load_segmentation_dataset(str(folder), streaming=True).splits["train"]
    with pytest.raises(ValueError, match=r"train holds no pictures in train-00000-of-00002\.parquet, train-00001"):
        drawn(split, StreamPlaces(0, 2, 1))


def test_masks_are_looked_at_until_there_are_two_labels(tmp_path):
    folder = write_shards(tmp_path, label_values=(1, 1))
    dataset = load_segmentation_dataset(str(folder), streaming=True)
    with pytest.raises(ValueError, match="its 23 training masks hold 1 .* a model would learn nothing"):
        check_train_labels(dataset)
    write_shard(folder / "train-00004-of-00005.parquet", [example(19), example(20), example(21)])
    dataset = load_segmentation_dataset(str(folder), streaming=True)
    contents = look_at_masks(dataset, num_masks=3)
    assert (contents.num_seen, contents.num_masks) == (20, None)
    contents = {split: look_at_masks(dataset, split) for split in ("train", "validation")}
    assert "Looked at 22 of 22 train masks and 2 of 2 validation masks" in describe_labels(dataset, contents)
    contents["train"] = look_at_masks(dataset, num_masks=3)
    assert "Looked at the first 20 train masks and 2 of 2" in describe_labels(dataset, contents)
