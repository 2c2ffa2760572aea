# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What several test files share: the tiny VAN that the golden data was measured on, its files, a tiny dataset, and
the launcher of the examples."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Nothing that the tests need comes from the network, and models this small only lose by threads; the scripts that
# tests start inherit both.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from van_hf import VanConfig, files

TINY_BACKBONE = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
TINY_HEADS = {
    "upernet": {"decode_head": "upernet", "decoder_hidden_size": 24, "auxiliary_hidden_size": 12},
    "semantic_fpn": {"decode_head": "semantic_fpn", "decoder_hidden_size": 12, "fpn_hidden_size": 24},
}


def tiny_config(decode_head: str = "upernet", **overrides) -> VanConfig:
    """The golden data's architecture: 7 classes, segmentation's LayerNorm epsilon."""
    fields = {"layer_norm_eps": 1e-5, **TINY_BACKBONE, **TINY_HEADS[decode_head]}
    if "id2label" not in overrides:
        fields["num_labels"] = 7
    return VanConfig(**{**fields, **overrides})


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    return Path(__file__).parent / "fixtures"


def random_pixel_values() -> torch.Tensor:
    """(2, 3, 64, 96)."""
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return random_pixel_values()


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


@contextmanager
def held_folders(*folders: Path | str) -> Iterator[subprocess.Popen]:
    """Let another process, which has a child of its own, claim folders."""
    command = [sys.executable, Path(__file__).parent / "programs" / "hold_folder.py", files.__file__, *folders]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.stdin.close()
        process.stdout.read()  # ends when all of them have


def launch(script: Path, *arguments: object, num_processes: int = 1, cwd: Path) -> subprocess.Popen:
    """Starts a script as `accelerate launch` does, on the CPU, in a process group of its own."""
    # With --cpu accelerate's launcher starts several processes through MPI only; its other launcher is torchrun.
    kind = ["--cpu"] if num_processes == 1 else ["--multi_gpu", "--main_process_port", "0"]
    options = [*kind, "--num_processes", str(num_processes), "--num_cpu_threads_per_process", "1"]
    paths = os.pathsep.join(filter(None, (str(script.parents[1]), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", *options, str(script), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"},
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
