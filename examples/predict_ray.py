# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Segment very many pictures with a trained model, on all cores or GPUs of a machine or of a Ray cluster.

    python examples/predict_ray.py outputs/van-scenes --input photographs --output_dir segmented

The pictures of a folder (and its folders), of Parquet files or of a dataset of the Hub go through Ray Data. What is
written does not depend on the number of workers. Stopped, killed or half-failed, the same command goes on; pictures
that cannot be read are listed in failed.jsonl, and the exit status is then 1. It is 2 where nothing could be begun.
"""

import argparse
import hashlib
import io
import json
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray Data starts actors in a way that Ray warns of
try:
    import ray
    from ray.data import ActorPoolStrategy, DataContext, Dataset
    from ray.exceptions import RayError
except ImportError:
    sys.exit('error: this script needs Ray Data, which is not installed: pip install -e ".[ray]"')

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from predict import add_inference_arguments, as_text, resolve_protocol
from tqdm.auto import tqdm

from van_hf import VanConfig, VanImageProcessor
from van_hf.files import claim_folder, read_json, write_json, write_text, write_whole
from van_hf.inference import Protocol, digest_of_weights, predict, predict_batch
from van_hf.machine import cores_per_process, use_huge_pages
from van_hf.picture_sources import PictureSource, open_source
from van_hf.prediction import describe_classes, load_predictor, mask_png, read_picture

CHUNK_SIZE = 32  # pictures that a task reads
BLOCK_SIZE = 2**26  # bytes of pixels after which it hands on what it has
# So that models on all cores leave room for the tasks that read; without GPUs Ray Data reads in the models' processes.
CPUS_PER_TASK = 0.5

READ = pa.schema(
    {
        "item": pa.int64(),  # number of the picture
        "error": pa.string(),
        "height": pa.int32(),  # of the picture
        "width": pa.int32(),
        "size": pa.list_(pa.int32(), 2),  # of what the model sees
        "pixels": pa.large_binary(),  # uint8 (3, *size), or float32 (bands, *size)
    }
)
SEGMENTED = pa.schema(
    {
        **{name: READ.field(name).type for name in ("item", "error", "height", "width")},
        "labels": pa.large_binary(),  # uint16 (height, width)
    }
)
CLASSES = pa.list_(pa.struct({"label": pa.string(), "id": pa.int32(), "share": pa.float64()}))
ENCODED = pa.schema(
    {
        **{name: READ.field(name).type for name in ("item", "error", "height", "width")},
        "mask": pa.binary(),
        "classes": CLASSES,
    }
)
WRITTEN = pa.schema(
    {
        "key": pa.string(),
        "mask": pa.binary(),
        "height": pa.int32(),
        "width": pa.int32(),
        "classes": CLASSES,
        "model_digest": pa.string(),
    }
)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a folder, of an export too, or a model of the Hub")
    parser.add_argument(
        "--input",
        required=True,
        metavar="FOLDER|PARQUET|HUB_DATASET",
        help="a folder of pictures, searched with the folders in it; a Parquet file or a folder of such; a dataset of"
        " the Hub, or one that was saved by save_to_disk, of which all splits are taken",
    )
    parser.add_argument("--image_column", help="column of the pictures; guessed from its name by default")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument(
        "--format",
        choices=("parquet", "png"),
        default="parquet",
        help="parquet: files of --shard_size pictures' masks, sizes and shares of the classes (the default); png: the"
        " same masks as predict.py --save masks writes",
    )
    parser.add_argument(
        "--shard_size", type=int, default=256, help="pictures that are written together, and lost together by a kill"
    )
    parser.add_argument("--num_workers", type=int, help="models at work; one per GPU by default, else one per core")
    parser.add_argument(
        "--batch_size", type=int, help="pictures of one size that go through a model at once; 8 on a GPU, else 1"
    )
    parser.add_argument("--address", help="of a Ray cluster, such as auto; by default this machine is the cluster")
    parser.add_argument(
        "--retry_failed", action="store_true", help="try the shards again that hold pictures listed in failed.jsonl"
    )
    add_inference_arguments(parser)
    args = parser.parse_args(argv)
    for name in ("shard_size", "num_workers", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(args, name)}")
    if args.device not in (None, "cpu", "cuda"):
        parser.error(f"--device must be cpu or cuda, got {args.device}: Ray chooses which GPU")
    return args


@dataclass(frozen=True)
class Segmentation:
    """How a worker segments pictures."""

    model: str
    device: str
    trust_pickle: bool
    dtype: str
    protocol: Protocol
    batch_size: int
    digest: str


def read_chunk(
    table: pa.Table, source: PictureSource, image_processor: VanImageProcessor, protocol: Protocol
) -> Iterator[pa.Table]:
    """Read, decode and resize the pictures of one chunk, whose numbers begin at `first`: rows of `READ`."""
    torch.set_num_threads(1)
    chunk = table.to_pylist()[0]
    rows, num_bytes = [], 0
    for item, content in enumerate(source.read(chunk["keys"]), start=chunk["first"]):
        rows.append({"item": item} | read_row(content, image_processor, protocol))
        num_bytes += len(rows[-1].get("pixels", b""))
        if num_bytes > BLOCK_SIZE:
            yield pa.Table.from_pylist(rows, schema=READ)
            rows, num_bytes = [], 0
    yield pa.Table.from_pylist(rows, schema=READ)


def read_row(content: bytes | Exception, image_processor: VanImageProcessor, protocol: Protocol) -> dict:
    """Return what a row of `READ` has beside the picture's number: an error, or pixels and sizes."""
    try:
        if isinstance(content, Exception):
            raise content
        picture = read_picture(io.BytesIO(content), image_processor)
        height, width = picture.shape[1:]
        if protocol == Protocol():  # other views are made of the picture itself
            options = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
            picture = image_processor(picture, **options)["pixel_values"][0]
        pixels = picture.numpy().tobytes()
        return {"height": height, "width": width, "size": picture.shape[1:], "pixels": pixels}
    except Exception as error:  # damaged pictures make Pillow's decoders raise errors of many kinds
        return {"error": describe_error(error)}


class Segmenter:
    """A model in a process of its own."""

    def __init__(self, options: Segmentation):
        # One each, so that arithmetic, and with it the labels, does not depend on the number of workers.
        torch.set_num_threads(1)
        use_huge_pages()
        self.options = options
        self.model, self.image_processor = load_predictor(
            *(options.model, options.protocol, options.dtype, options.device, options.trust_pickle), num_threads=1
        )
        if digest_of_weights(self.model) != options.digest:
            raise ValueError(f"{options.model} is another model on this machine than where the script was started")

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Segment the pictures of one block, rows of `READ`, in batches of one size.

        Yields:
            Rows of `SEGMENTED`; on the CPU, where other processes have no time to spare, of `ENCODED`.
        """
        for rows in self.segment_block(table):
            yield encode(rows, self.model.config) if self.options.device == "cpu" else rows

    def segment_block(self, table: pa.Table) -> Iterator[pa.Table]:
        whole = table.filter(pc.is_null(table["error"]))
        if failed := table.filter(pc.is_valid(table["error"])).select(["item", "error"]).to_pylist():
            yield pa.Table.from_pylist(failed, schema=SEGMENTED)
        groups = defaultdict(list)
        for number, size in enumerate(whole["size"].to_pylist()):
            groups[tuple(size)].append(number)
        for size, numbers in groups.items():
            for start in range(0, len(numbers), self.options.batch_size):
                yield self.segment(whole.take(numbers[start : start + self.options.batch_size]), size)

    def segment(self, rows: pa.Table, size: tuple[int, int]) -> pa.Table:
        """Segment a batch; where it fails, each picture alone, since one may be what the model cannot take."""
        dtype = torch.uint8 if self.image_processor.bands is None else torch.float32
        shape = (self.image_processor.num_channels, *size)
        pixels = [torch.frombuffer(bytearray(value.as_buffer()), dtype=dtype).view(shape) for value in rows["pixels"]]
        sizes = list(zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True))
        found = rows.select(["item", "height", "width"]).to_pylist()
        try:
            for row, labels in zip(found, self.predict(pixels, sizes), strict=True):
                row["labels"] = labels.to(torch.uint16).cpu().numpy().tobytes()
        except Exception as error:
            if self.options.device == "cuda":
                torch.cuda.synchronize()  # which fails where the GPU, not the picture, is at fault: the run then stops
            if len(rows) > 1:
                return pa.concat_tables([self.segment(rows.slice(idx, 1), size) for idx in range(len(rows))])
            found[0]["error"] = describe_error(error)
        return pa.Table.from_pylist(found, schema=SEGMENTED)

    def predict(self, pixels: Sequence[torch.Tensor], sizes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """Return label maps of the given sizes of pictures that [`read_chunk`] has made."""
        protocol, dtype = self.options.protocol, getattr(torch, self.options.dtype)
        if protocol != Protocol():
            return [predict(self.model, self.image_processor, picture, protocol, dtype) for picture in pixels]
        inputs = self.image_processor(list(pixels), do_resize=False, return_tensors="pt")
        return predict_batch(self.model, inputs["pixel_values"], sizes, dtype)


def encode(table: pa.Table, config: VanConfig) -> pa.Table:
    """Turn the label maps of rows of `SEGMENTED` into PNG files and shares of the classes: rows of `ENCODED`."""
    rows = table.to_pylist()
    for row in rows:
        content = row.pop("labels")
        if row["error"] is None:
            labels = np.frombuffer(content, dtype=np.uint16).reshape(row["height"], row["width"])
            row |= {"mask": mask_png(labels, config), "classes": describe_classes(labels, config.id2label)}
    return pa.Table.from_pylist(rows, schema=ENCODED)


def describe_error(error: Exception) -> str:
    return as_text(f"{type(error).__name__}: {error}")


class Output:
    """The output folder: settings.json, the results, and in `finished/` a file for each shard that is done.

    Shards are cut from the order of the pictures alone, `shard_size` each. Only one process may write to the folder.
    """

    def __init__(self, folder: Path, file_format: str, shard_size: int, keys: Sequence[str], digest: str):
        self.folder, self.format, self.shard_size = folder, file_format, shard_size
        self.keys, self.digest = keys, digest
        self.num_shards = -(-len(keys) // shard_size)

    def shard(self, number: int) -> range:
        """Return the numbers of the pictures of a shard."""
        return range(number * self.shard_size, min((number + 1) * self.shard_size, len(self.keys)))

    def marker(self, number: int) -> Path:
        """Return the file that is there once a shard is done; it lists the pictures that failed."""
        return self.folder / "finished" / f"{number:06d}.json"

    def parquet(self, number: int) -> Path:
        return self.folder / "shards" / f"{number:06d}.parquet"

    def png(self, item: int) -> Path:
        name = PurePosixPath(self.keys[item]).with_suffix("")
        return self.folder / "masks" / name.with_name(name.name + ".png")

    def begin(self, settings: dict) -> None:
        """Write the settings, or compare them with those of the run that is to go on.

        Raises:
            ValueError: they differ, or two pictures would be written to one file; the message names them.
        """
        if self.format == "png":
            places = {}
            for item, key in enumerate(self.keys):
                if (other := places.setdefault(self.png(item), key)) != key:
                    raise ValueError(f"{other} and {key} would both be written to {self.png(item)}: --format parquet")
        path = self.folder / "settings.json"
        if not path.exists():
            write_json(path, settings)
            return
        before = read_json(path)
        changed = [name for name in settings | before if settings.get(name) != before.get(name)]
        if changed:
            told = "; ".join(
                f"{name} was {_short(before.get(name))}, is now {_short(settings.get(name))}" for name in changed
            )
            raise ValueError(f"{self.folder} holds another run's output ({told}); name another --output_dir")
        for partial in self.folder.rglob(".partial-*"):  # of a run that was killed; nobody else may write here
            partial.unlink(missing_ok=True)

    def unfinished(self, retry_failed: bool) -> list[int]:
        """Return the shards that are not written, or that hold failed pictures which are to be tried again."""
        return [
            number
            for number in range(self.num_shards)
            if not self.marker(number).exists()
            or (self.format == "parquet" and not self.parquet(number).exists())
            or (retry_failed and read_json(self.marker(number))["failed"])
        ]

    def write(self, number: int, rows: Sequence[dict]) -> None:
        """Write a shard, rows of `ENCODED` of all of its pictures, and mark it as done."""
        rows = sorted(rows, key=lambda row: row["item"])
        whole = [row for row in rows if row["error"] is None]
        if self.format == "png":
            for row in whole:
                write_whole(self.png(row["item"]), lambda partial, row=row: partial.write_bytes(row["mask"]))
        else:
            table = pa.Table.from_pylist(
                [row | {"key": self.keys[row["item"]], "model_digest": self.digest} for row in whole], schema=WRITTEN
            )
            write_whole(self.parquet(number), lambda partial: pq.write_table(table, partial))
        failed = [{"key": self.keys[row["item"]], "error": row["error"]} for row in rows if row["error"] is not None]
        write_json(self.marker(number), {"pictures": len(rows), "failed": failed})

    def finish(self) -> int:
        """Write failed.jsonl, the failed pictures of all shards; return their number."""
        failed = [entry for number in range(self.num_shards) for entry in read_json(self.marker(number))["failed"]]
        path = self.folder / "failed.jsonl"
        if failed:
            write_text(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in failed))
        else:
            path.unlink(missing_ok=True)
        return len(failed)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def start_ray(args: argparse.Namespace) -> tuple[int, float]:
    """Start Ray, or join the cluster of `--address`; return the number of workers and the GPUs of each.

    Raises:
        ValueError: there is no cluster at the address, or it lacks the GPUs or the cores that are asked for.
    """
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    logging.getLogger("ray.data").setLevel("ERROR")  # it tells of every step
    if args.address is None:
        # A machine may be asked for more workers than it has cores.
        num_cpus = max(cores_per_process(), args.num_workers or 1)
        options |= {"num_cpus": num_cpus, "include_dashboard": False}
    if not ray.is_initialized():  # by a program that calls this
        try:
            ray.init(args.address or "local", **options)
        except Exception as error:  # Ray has no class of its own for a machine too busy to start it in time
            raise ValueError(f"Ray cannot be started, or joined, at {args.address or 'local'}: {error}") from error
    context = DataContext.get_current()
    context.enable_progress_bars = False
    resources = ray.cluster_resources()
    num_gpus = 0 if args.device == "cpu" else resources.get("GPU", 0)
    if args.device == "cuda" and not num_gpus:
        raise ValueError("--device cuda: Ray finds no GPU")
    num_cpus = int(resources.get("CPU", 0))
    num_workers = args.num_workers or int(num_gpus) or num_cpus
    if num_workers * CPUS_PER_TASK + CPUS_PER_TASK > num_cpus:
        raise ValueError(f"--num_workers {num_workers} is too much for the {num_cpus} cores of the cluster")
    return num_workers, min(1, num_gpus / num_workers)


def pipeline(
    source: PictureSource,
    output: Output,
    shards: Sequence[int],
    image_processor: VanImageProcessor,
    config: VanConfig,
    options: Segmentation,
    num_workers: int,
    num_gpus: float,
) -> Dataset:
    """Return the rows of `ENCODED` of all pictures of some shards, in any order, to be computed as they are taken.

    What is segmented at once depends on the order of the pictures and their sizes alone.
    """
    chunks = []
    for number in shards:
        items = output.shard(number)
        for first in range(items.start, items.stop, CHUNK_SIZE):
            chunks.append({"first": first, "keys": output.keys[first : min(first + CHUNK_SIZE, items.stop)]})
    form = {"batch_format": "pyarrow", "batch_size": None, "num_cpus": CPUS_PER_TASK}
    read = ray.data.from_items(chunks, override_num_blocks=len(chunks)).map_batches(
        read_chunk, fn_args=(source, image_processor, options.protocol), **form
    )
    models = ActorPoolStrategy(size=num_workers)
    rows = read.map_batches(Segmenter, fn_constructor_args=(options,), compute=models, num_gpus=num_gpus, **form)
    return rows if options.device == "cpu" else rows.map_batches(encode, fn_args=(config,), **form)


def segment_shards(rows: Dataset, output: Output, shards: Sequence[int]) -> None:
    """Write each shard as soon as all of its rows are there."""
    num_done = len(output.keys) - sum(len(output.shard(number)) for number in shards)
    progress = tqdm(
        total=len(output.keys),
        initial=num_done,
        desc="Segmenting",
        unit="picture",
        mininterval=0.5 if sys.stderr.isatty() else 15,
    )
    pending = defaultdict(list)
    with progress:
        for table in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in table.to_pylist():
                number = row["item"] // output.shard_size
                pending[number].append(row)
                if len(pending[number]) == len(output.shard(number)):
                    output.write(number, pending.pop(number))
            progress.update(len(table))


def describe_run(
    args: argparse.Namespace,
    options: Segmentation,
    output: Output,
    config: VanConfig,
    processor: VanImageProcessor,
) -> dict:
    """Return all that the output depends on, in the form of JSON."""
    path = Path(args.input).expanduser()
    settings = {
        # Keys tell the pictures of one input apart, and are the same in many: the rows of a file, numbered frames.
        "input": as_text(path.resolve()) if path.exists() else args.input,
        "image_column": args.image_column,
        "model_digest": options.digest,
        "image_processor": processor.to_dict(),
        "id2label": config.id2label,
        "palette": config.palette,
        "pictures": len(output.keys),
        "keys_digest": hashlib.blake2b("\n".join(output.keys).encode(), digest_size=16).hexdigest(),
        "format": output.format,
        "shard_size": output.shard_size,
        "ratios": options.protocol.ratios,
        "flip": options.protocol.flip,
        "device": options.device,
        "dtype": options.dtype,
        "batch_size": options.batch_size,
    }
    return json.loads(json.dumps(settings))


def prepare(args: argparse.Namespace) -> tuple[Output, list[int], Dataset | None]:
    """Return the output folder, the shards that are missing in it, and their rows, of which none is computed yet.

    Raises:
        ValueError, OSError: model, input, output folder or cluster are not what they must be.
    """
    source = open_source(args.input, args.image_column, args.output_dir)
    keys = source.keys()
    protocol = resolve_protocol(args)
    model, image_processor = load_predictor(args.model, protocol, args.dtype, "cpu", args.trust_pickle)
    config, digest = model.config, digest_of_weights(model)
    num_workers, num_gpus = start_ray(args)
    device = "cuda" if num_gpus else "cpu"
    batch_size = args.batch_size or (8 if num_gpus else 1)
    options = Segmentation(args.model, device, args.trust_pickle, args.dtype, protocol, batch_size, digest)
    output = Output(args.output_dir, args.format, args.shard_size, keys, digest)
    output.begin(describe_run(args, options, output, config, image_processor))
    shards = output.unfinished(args.retry_failed)
    if not shards:
        return output, shards, None
    return output, shards, pipeline(source, output, shards, image_processor, config, options, num_workers, num_gpus)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with ExitStack() as stack:
        try:
            stack.enter_context(claim_folder(args.output_dir))
            output, shards, rows = prepare(args)
        except (ValueError, OSError) as error:
            print("error:", *as_text(error).splitlines(), file=sys.stderr)
            return 2
        try:
            if rows is not None:
                segment_shards(rows, output, shards)
            num_failed = output.finish()
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on", file=sys.stderr)
            return 130
        except (RayError, OSError) as error:
            reason = as_text(error).strip().splitlines()[-1]
            print(f"error: stopped by {type(error).__name__}: {reason}; the same command goes on", file=sys.stderr)
            return 1
    print(f"{len(output.keys) - num_failed} of {len(output.keys)} pictures segmented, in {as_text(args.output_dir)}")
    if num_failed:
        print(f"{num_failed} are listed in {as_text(args.output_dir / 'failed.jsonl')}", file=sys.stderr)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
