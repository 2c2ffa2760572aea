# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Training pictures that are read as they are needed, and of which the disk never holds more than a few.

A split consists of shards, files as a rule, which `datasets` reads from the Hub or a folder. Every epoch they are put
into an order of their own and dealt out to the streams of the run, of which each process has one per loading process.
A stream reads its shards one after the other, in blocks of pictures that it yields in random order, and then begins
with the next epoch's, whether or not the others have come as far: no process ever waits for another's last pictures.

A block is filled as the one before it is drawn from, so that there are as many pictures in memory at any time. Thereby
a stream is determined by the `Place` of its block's first picture: a run that is resumed reads from there. `datasets`
has a shuffle buffer, too, and states to resume from; but these know nothing of the pictures in the buffer, which a
resumed run would never see.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import datasets
import fsspec.asyn
import torch
from accelerate.utils import gather_object
from datasets.utils.file_utils import xgetsize

from .augmentation import TrainAugmentation
from .masks import MaskMeaning
from .samples import errors_of_example, keyed_generator, make_sample


@dataclass(frozen=True)
class StreamedSplit:
    """A split that is read shard by shard.

    Attributes:
        name: what it is called in errors, such as "parts train".
        dataset: with all its columns.
        files: the size in bytes of each of the files that the split consists of, in order, by its path in the folder
            that they have in common.
        shard_names: what the shards are called in errors.
        num_rows: the number of examples; None where the data set does not tell it.
        columns: the names of the columns `image` and `annotation` in the dataset.
    """

    name: str
    dataset: datasets.IterableDataset
    files: dict[str, int]
    shard_names: tuple[str, ...]
    num_rows: int | None = None
    columns: tuple[str, str] = ("image", "annotation")

    @property
    def num_shards(self) -> int:
        return len(self.shard_names)

    def resharded(self, least: int) -> StreamedSplit:
        """Return the split in `least` shards or more, if it can be: of Parquet files row groups can be shards."""
        if self.num_shards >= least or not hasattr(self.dataset, "reshard"):  # which datasets 4.4 has not
            return self
        counts = [self.dataset.shard(self.num_shards, shard).reshard().num_shards for shard in range(self.num_shards)]
        names = [
            f"{name}, part {part}" if count > 1 else name
            for name, count in zip(self.shard_names, counts, strict=True)
            for part in range(count)
        ]
        dataset = self.dataset.reshard()
        if dataset.num_shards != len(names):  # a file without row groups is a shard when it is alone, and none here
            names = numbered_shards(dataset.num_shards)
        return replace(self, dataset=dataset, shard_names=tuple(names))

    def read(self, shard: int, first_row: int = 0) -> Iterator[dict]:
        """Yield the examples of a shard from a row on; the rows before it are read, too, but nothing is decoded.

        Yields:
            `image` and `annotation`, each {"bytes": ..., "path": ...}.

        Raises:
            ValueError: it cannot be read; the message names it.
        """
        rows = self.dataset.shard(self.num_shards, shard).skip(first_row).select_columns(list(self.columns))
        for column in self.columns:
            rows = rows.cast_column(column, datasets.Image(decode=False))
        try:
            # Unlike `iter(rows)`, this does not deal out the one shard to the loading processes of torch.
            for batch in rows.iter(batch_size=1):
                image, annotation = (batch[column][0] for column in self.columns)
                yield {"image": image, "annotation": annotation}
        except Exception as error:  # pyarrow's, fsspec's or the Hub's, which have nothing in common
            problem = f"{self.name}, {self.shard_names[shard]} cannot be read: {error or type(error).__name__}"
            raise ValueError(problem) from error

    def errors_of(self, shard: int, row: int, files: dict) -> AbstractContextManager:
        """Return a context whose errors name an example: "parts train, 0001.parquet[17] (a.jpg): ..."."""
        found = [file for file in files.values() if isinstance(file, dict)]
        return errors_of_example(f"{self.name}, {self.shard_names[shard]}[{row}]", lambda: found)


def numbered_shards(num_shards: int) -> tuple[str, ...]:
    """Return names for shards of which it cannot be told what files they are."""
    return tuple(f"shard {shard + 1} of {num_shards}" for shard in range(num_shards))


def stream_split(builder: datasets.DatasetBuilder, split: str, name: str) -> StreamedSplit:
    """Return a split of what `datasets.load_dataset_builder` has found, whose columns are yet to be chosen.

    Args:
        builder: tells the files.
        split: which to take, a whole one.
        name: what it is called in errors.

    Raises:
        ValueError: it cannot be told what columns, or which files, it has.
    """
    paths = (builder.config.data_files or {}).get(split)
    dataset = builder.as_streaming_dataset(split=split)
    if not paths or dataset.features is None:
        raise ValueError(f"the files or columns of its split {split!r} cannot be told before they are read")
    # The rest is another where the folder was moved, or a commit on the Hub has left the files as they are.
    folder, slash, _ = os.path.commonprefix(list(paths)).rpartition("/")
    files = {path.removeprefix(folder + slash): xgetsize(path) for path in paths}
    shard_names = tuple(files)
    if dataset.num_shards != len(files):
        shard_names = numbered_shards(dataset.num_shards)
    known = (builder.info.splits or {}).get(split)
    return StreamedSplit(name, dataset, files, shard_names, known.num_examples if known else None)


class Place(NamedTuple):
    """How far a stream has come.

    Args:
        stream: its number among all streams of the run.
        epoch: that of the block which it draws from.
        turn: which of the stream's shards in this epoch the first example of the block is in.
        row: of that example in the shard.
        num_drawn: how many examples of the block were drawn.
    """

    stream: int
    epoch: int = 0
    turn: int = 0
    row: int = 0
    num_drawn: int = 0


class _Example(NamedTuple):
    """An example, not decoded, and where it is."""

    epoch: int
    turn: int
    row: int
    shard: int
    files: dict


def streams_per_process(num_shards: int, num_processes: int, num_workers: int) -> int:
    """Return how many streams a process has: one per loading process, as long as each gets a shard.

    Args:
        num_shards: of the split.
        num_processes: of the run.
        num_workers: loading processes that each of them may have; 0 where it loads by itself.

    Raises:
        ValueError: there are more processes than shards.
    """
    if num_shards < num_processes:
        raise ValueError(
            f"the training pictures lie in {num_shards} shard(s), files or row groups of Parquet files, which cannot "
            f"be streamed to {num_processes} processes. Take fewer processes, or write the pictures into more files, "
            "as with push_to_hub(num_shards=...)"
        )
    return min(max(num_workers, 1), num_shards // num_processes)


class StreamPlaces:
    """The places of this process's streams, by what the run has been given; what is loaded ahead does not count.

    Has the `state_dict` methods that `accelerate` saves and restores; see [`gather`].

    Args:
        process_index: of this process, from 0.
        num_processes: of the run.
        streams_per_process: see [`streams_per_process`].
    """

    def __init__(self, process_index: int, num_processes: int, streams_per_process: int):
        self.process_index = process_index
        self.num_streams = num_processes * streams_per_process
        streams = range(process_index, self.num_streams, num_processes)
        # The one that the next batch comes from is the first.
        self.places = deque(Place(stream) for stream in streams)
        self.gathered: list[list[Place]] = []

    def follow(self, place: Sequence[int]) -> None:
        """Take in the place after the last sample of a batch, which batches come from in turn.

        Raises:
            ValueError: it was another stream's turn.
        """
        place = Place(*place)
        expected = self.places.popleft().stream
        if place.stream != expected:
            raise ValueError(f"a batch came from stream {place.stream}, and not from {expected}")
        self.places.append(place)

    def gather(self) -> None:
        """Tell the processes each other's places, before they are saved; for all of them to call."""
        self.gathered = gather_object([list(self.places)])

    def state_dict(self) -> dict:
        """Return the places of all processes, as they were gathered last."""
        return {"places": [[list(place) for place in places] for places in self.gathered]}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state of a run with as many processes and streams."""
        places = [Place(*place) for place in state["places"][self.process_index]]
        if sorted(place.stream for place in places) != sorted(place.stream for place in self.places):
            raise ValueError(f"it has the streams {[place.stream for place in places]}, not those of this run")
        self.places = deque(places)


class StreamedTrainSamples(torch.utils.data.IterableDataset):
    """The samples of the rest of a run that one process trains on; see the module.

    How an example is augmented depends on the seed, the epoch, and where the example is in the split; in which order
    a stream yields them, on the number of streams and the size of the blocks as well.

    Args:
        split: what is trained on, of one shard or more for each stream of the run.
        augmentation: applied to every sample.
        places: the streams of this process, where they go on. The loader's worker `i` takes the one at `i`, or the
            process itself the only one, so that batches come from them in turn.
        num_streams: in all processes.
        block_size: how many examples a stream draws from, 1 for none but the next.
        batch_size: of the loader.
        num_batches: which the loader is to have.
        num_labels, do_reduce_labels, mask_meaning, jpeg_draft, bands: see [`samples.TrainSamples`].
        seed: of the order and the augmentation, 0 or above.
    """

    def __init__(
        self,
        split: StreamedSplit,
        augmentation: TrainAugmentation,
        *,
        places: Sequence[Place],
        num_streams: int,
        block_size: int,
        batch_size: int,
        num_batches: int,
        num_labels: int,
        do_reduce_labels: bool,
        seed: int,
        jpeg_draft: bool = False,
        mask_meaning: MaskMeaning | None = None,
        bands: tuple[int, ...] | None = None,
    ):
        self.split = split
        self.augmentation = augmentation
        self.places = list(places)
        self.num_streams = num_streams
        self.block_size = block_size
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.num_labels = num_labels
        self.do_reduce_labels = do_reduce_labels
        self.seed = seed
        self.jpeg_draft = jpeg_draft
        self.mask_meaning = mask_meaning
        self.bands = bands

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield `pixel_values`, `labels`, see [`samples.make_sample`], and `place` int64 (5,), the one after it.

        Raises:
            ValueError: an example or a shard cannot be read; the message names it.
        """
        worker = torch.utils.data.get_worker_info()
        number = 0 if worker is None else worker.id
        if worker is not None:
            # As in datasets' own iteration in a loading process: a lock that was held when it was forked stays held.
            fsspec.asyn.reset_lock()
        own_batches = range(number, self.num_batches, len(self.places))
        drawn = self._draw(self.places[number])
        for place, example in islice(drawn, len(own_batches) * self.batch_size):
            yield {**self._make_sample(example), "place": torch.tensor(place)}

    def _make_sample(self, example: _Example) -> dict[str, torch.Tensor]:
        key = (example.epoch, example.shard, example.row)
        is_undecoded = self.jpeg_draft or self.bands is not None
        with self.split.errors_of(example.shard, example.row, example.files):
            image, annotation = example.files["image"], example.files["annotation"]
            return make_sample(
                {
                    "image": image if is_undecoded else datasets.Image().decode_example(image),
                    "annotation": datasets.Image().decode_example(annotation),
                },
                self.augmentation,
                keyed_generator(self.seed, 3, *key),
                num_labels=self.num_labels,
                do_reduce_labels=self.do_reduce_labels,
                mask_meaning=self.mask_meaning,
                jpeg_draft=self.jpeg_draft,
                bands=self.bands,
            )

    def _draw(self, place: Place) -> Iterator[tuple[Place, _Example]]:
        """The examples of a stream from a place on, without an end, each with the place after it."""
        examples = self._read(place)
        upcoming = next(examples)
        following = []

        def add_next() -> bool:
            """Adds an example to the following block, unless that is full, or the example is of the next epoch."""
            nonlocal upcoming
            if len(following) == self.block_size or (following and following[0].epoch != upcoming.epoch):
                return False
            following.append(upcoming)
            upcoming = next(examples)
            return True

        num_drawn = place.num_drawn
        while True:
            while add_next():
                pass
            block, following = following, []
            start = place._replace(epoch=block[0].epoch, turn=block[0].turn, row=block[0].row)
            generator = keyed_generator(self.seed, 4, start.stream, start.epoch, start.turn, start.row)
            for number, idx in enumerate(torch.randperm(len(block), generator=generator).tolist(), start=1):
                add_next()
                if number > num_drawn:
                    yield start._replace(num_drawn=number), block[idx]
                block[idx] = None  # so that there are no more in memory than a block has
            num_drawn = 0

    def _read(self, place: Place) -> Iterator[_Example]:
        """The examples of a stream as they lie in its shards, from the first of a place's block on, without an end."""
        stream, epoch, turn, row, _ = place
        empty = set()  # that were met; of the other shards there may be one in each epoch but this
        while len(empty) < self.split.num_shards:
            for shard in self._shards(stream, epoch)[turn:]:
                for files in self.split.read(shard, row):
                    yield _Example(epoch, turn, row, shard, files)
                    row += 1
                if row == 0:
                    empty.add(shard)
                turn, row = turn + 1, 0
            epoch, turn = epoch + 1, 0
        raise ValueError(f"{self.split.name} holds no pictures in {', '.join(self.split.shard_names)}")

    def _shards(self, stream: int, epoch: int) -> list[int]:
        """The shards of a stream in an epoch, in the order in which it reads them."""
        order = torch.randperm(self.split.num_shards, generator=keyed_generator(self.seed, 5, epoch))
        return order[stream :: self.num_streams].tolist()
