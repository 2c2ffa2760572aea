# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What several test files share: the tiny VAN that the golden data was measured on, its files, a tiny dataset, and
the launcher of the examples."""

import functools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Nothing that the tests need comes from the network, and models this small only lose by threads; the scripts that
# tests start inherit both.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from van_hf import VanConfig, VanForSemanticSegmentation, VanImageProcessor, files
from van_hf.exports import ExportInfo, export_model, package_versions, save_info
from van_hf.inference import digest_of_weights
from van_hf.machine import END_SIGNALS
from van_hf.model.configuration_van import DECODE_HEADS
from van_hf.visualization import default_palette

ROOT = Path(__file__).parents[1]
PROGRAMS = ROOT / "tests" / "programs"  # what tests run in processes of their own
TINY_BACKBONE = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
TINY_HEADS = {
    "upernet": {"decode_head": "upernet", "decoder_hidden_size": 24, "auxiliary_hidden_size": 12},
    "semantic_fpn": {"decode_head": "semantic_fpn", "decoder_hidden_size": 12, "fpn_hidden_size": 24},
    "light_ham": {"decode_head": "light_ham", "decoder_hidden_size": 32, "ham_hidden_size": 64, "ham_rank": 8},
    "ham": {
        **{"decode_head": "ham", "decoder_hidden_size": 32, "ham_hidden_size": 64, "ham_rank": 8},
        **{"strides": [4, 2, 1, 1], "auxiliary_hidden_size": 32},
    },
}


def tiny_config(decode_head: str = "upernet", **overrides) -> VanConfig:
    """The golden data's architecture: 7 classes, the LayerNorm epsilon of the head's published models."""
    layer_norm_eps = DECODE_HEADS[decode_head].layer_norm_eps
    fields = {"layer_norm_eps": layer_norm_eps, **TINY_BACKBONE, **TINY_HEADS[decode_head]}
    if "id2label" not in overrides:
        fields["num_labels"] = 7
    return VanConfig(**{**fields, **overrides})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests as slow that ask for a fixture which their module names in SLOW_FIXTURES."""
    for item in items:
        if not set(item.fixturenames).isdisjoint(getattr(item.module, "SLOW_FIXTURES", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    return Path(__file__).parent / "fixtures"


def random_pixel_values() -> torch.Tensor:
    """(2, 3, 64, 96)."""
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return random_pixel_values()


needs_exporters = pytest.mark.skipif(
    find_spec("transformers.exporters") is None or torch.__version__ < "2.11",
    reason="exports need transformers 5.23 and torch 2.11",
)


@pytest.fixture(scope="session")
def export_of(tmp_path_factory) -> Callable[[str, str], tuple[Path, VanForSemanticSegmentation]]:
    """Returns the folder of an export of free size, as examples/export.py writes it, and its model, by format and
    decode head; each is made once, because real exporters take their time."""

    from benchmarks.models import random_model  # the programs that import this file do not find the examples

    @functools.cache
    def export(name: str, decode_head: str) -> tuple[Path, VanForSemanticSegmentation]:
        model = random_model(tiny_config(decode_head))
        model.config.palette = default_palette(model.config.num_labels)
        folder = tmp_path_factory.mktemp("exports") / f"{name}-{decode_head}"
        write_export(folder, model, name)
        return folder, model

    return export


def write_export(folder: Path, model: VanForSemanticSegmentation, name: str, **options) -> ExportInfo:
    """Write an export as examples/export.py does."""
    export_model(model, name, **options).save_pretrained(folder)
    VanImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder)
    info = ExportInfo("tiny", digest_of_weights(model), name, packages=package_versions(name), **options)
    save_info(folder, info, {})
    return info


def _second_derivative(function, point, direction):
    point = point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point) * point.sum(), point, create_graph=True)
    return torch.autograd.grad((gradient * direction).sum(), point)[0]


def _forward_derivative(function, point, direction):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(point, direction)
        return torch.autograd.forward_ad.unpack_dual(function(dual)).tangent


DERIVATIVES = {
    "second": _second_derivative,
    "second, of a scalar alone": lambda function, point, _: torch.autograd.functional.hessian(function, point),
    "forward mode": _forward_derivative,
    "func.grad": lambda function, point, _: torch.func.grad(function)(point),
    "func.vjp": lambda function, point, _: torch.func.vjp(function, point)[1](point.new_ones(()))[0],
    "func.jvp": lambda function, point, direction: torch.func.jvp(function, (point,), (direction,))[1],
    "func.hessian": lambda function, point, _: torch.func.hessian(function)(point),
    "func.vmap of func.grad": lambda function, point, direction: torch.func.vmap(torch.func.grad(function))(
        torch.stack([point, direction])
    ),
}


def assert_same_derivatives(function, reference, point: torch.Tensor):
    """That every kind of derivative that torch can take of a scalar function is that of its plain form."""
    direction = torch.randn(point.shape, dtype=point.dtype, generator=torch.Generator().manual_seed(1))
    for name, derivative in DERIVATIVES.items():
        result = derivative(function, point, direction)
        assert result is not None, name
        torch.testing.assert_close(result, derivative(reference, point, direction), rtol=1e-9, atol=1e-9, msg=name)


BOX_NAMES = {0: "sky", 1: "ground", 2: "box"}


def paint_box(rng: np.random.Generator) -> dict:
    height, width = rng.integers(30, 60, size=2)
    labels = np.zeros((height, width), dtype=np.uint8)
    labels[height // 2 :] = 1
    labels[height // 4 : height // 2, : width // 3] = 2
    labels[0, 0] = 255
    colors = rng.integers(0, 255, size=(256, 3))
    image = np.clip(colors[labels] + rng.normal(0, 20, size=(height, width, 3)), 0, 255).astype(np.uint8)
    return {"image": Image.fromarray(image), "mask": Image.fromarray(labels)}


@pytest.fixture(scope="session")
def boxes(tmp_path_factory) -> Path:
    """Folder of a dataset with 7 pictures to train on and 5 to validate on, all of different sizes."""
    import datasets

    rng = np.random.default_rng(0)
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image())
    splits = {
        split: datasets.Dataset.from_list([paint_box(rng) for _ in range(count)], features=features)
        for split, count in {"train": 7, "validation": 5}.items()
    }
    folder = tmp_path_factory.mktemp("data") / "boxes"
    datasets.DatasetDict(splits).save_to_disk(folder)
    (folder / "id2label.json").write_text(json.dumps(BOX_NAMES))
    return folder


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file that this process writes grow beyond a number of bytes, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def end_signals() -> Iterator[None]:
    """Restores the handlers of the signals that end a run, which are ignored after one was received."""
    handlers = list(map(signal.getsignal, END_SIGNALS))
    yield
    for number, handler in zip(END_SIGNALS, handlers, strict=True):
        signal.signal(number, handler)


def child_environment(**variables: str) -> dict[str, str]:
    """The environment of a process that imports the van_hf that is tested."""
    paths = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": paths, **variables}


def paired_folders(
    folder: Path, masks: str = "annotations", splits: tuple = ("training", "validation"), names: tuple = ("p1", "p2")
) -> Path:
    """Makes a folder of black pictures (.jpg) and masks of zeros (.png) of the same names, and returns it."""
    for split in splits:
        for kind, mode, suffix in (("images", "RGB", ".jpg"), (masks, "L", ".png")):
            for name in names:
                path = folder / kind / split / (name + suffix)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new(mode, (8, 6)).save(path)
    return folder


@pytest.fixture(scope="session")
def box_files(tmp_path_factory) -> Path:
    """Folder of a dataset like `boxes`, of which each picture and mask is a file; for tests to copy and to damage."""
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("data") / "box_files"
    for split, count in {"training": 7, "validation": 5}.items():
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            example = paint_box(rng)
            example["image"].save(folder / "images" / split / f"{number}.png")
            example["mask"].save(folder / "annotations" / split / f"{number}.png")
    (folder / "id2label.json").write_text(json.dumps(BOX_NAMES))
    return folder


def random_bands(dtype="uint16", count=4, height=30, width=40, seed=0) -> np.ndarray:
    """(count, height, width), 0 to 99."""
    return np.random.default_rng(seed).integers(0, 100, (count, height, width)).astype(dtype)


def write_tiff(path: Path, values: np.ndarray, **profile) -> Path:
    """Writes values (bands, height, width), and returns the path."""
    import rasterio

    count, height, width = values.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype} | profile
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(values)
    return path


@pytest.fixture(scope="session")
def band_files(tmp_path_factory) -> Path:
    """Folder of a dataset of 3 and 2 pictures of 4 bands, two of which have pixels without data; each is a file."""
    folder = tmp_path_factory.mktemp("data") / "band_files"
    for split, count in (("training", 3), ("validation", 2)):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            values = random_bands("int16", seed=number, height=30 + number) * 100 - 3000
            if number == 1:
                values[:, :10] = -9999
                values[0, 20] = -9999
            write_tiff(folder / "images" / split / f"{number}.tif", values, nodata=-9999)
            labels = (np.arange(values[0].size) % 3).astype(np.uint8).reshape(values[0].shape)
            Image.fromarray(labels).save(folder / "annotations" / split / f"{number}.png")
    (folder / "id2label.json").write_text('["a", "b", "c"]')
    return folder


@contextmanager
def held_folders(*folders: Path | str) -> Iterator[subprocess.Popen]:
    """Let another process, which has a child of its own, claim folders."""
    command = [sys.executable, Path(__file__).parent / "programs" / "hold_folder.py", files.__file__, *folders]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.stdin.close()
        process.stdout.read()  # ends when all of them have


def launch(
    script: Path, *arguments: object, num_processes: int = 1, max_restarts: int = 0, cwd: Path, **variables: str
) -> subprocess.Popen:
    """Starts a script as `accelerate launch` does, on the CPU, in a process group of its own."""
    # With --cpu accelerate's launcher starts several processes through MPI only; its other launcher is torchrun.
    kind = ["--cpu"] if num_processes == 1 else ["--multi_gpu", "--main_process_port", "0"]
    if max_restarts:
        kind += ["--rdzv_backend", "c10d", "--max_restarts", str(max_restarts)]
        variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # https://github.com/pytorch/pytorch/issues/135712
    options = [*kind, "--num_processes", str(num_processes), "--num_cpu_threads_per_process", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", *options, str(script), *map(str, arguments)],
        cwd=cwd,
        env=child_environment(HF_HUB_OFFLINE="1", ACCELERATE_USE_CPU="true", **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Waits for a script that must succeed, and returns what it printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output
