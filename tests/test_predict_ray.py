# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import predict
import psutil
import pytest
from benchmarks.models import random_model
from conftest import PROGRAMS, child_environment, tiny_config
from PIL import Image

from van_hf import VanImageProcessor

ray = pytest.importorskip("ray", reason="needs the extra ray")
pytest.importorskip("ray.data")
import predict_ray  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

SLOW_FIXTURES = ("cluster",)
NUM_PICTURES = 14
DAMAGED = "day/03.png"
PATHS = os.pathsep.join([child_environment()["PYTHONPATH"], str(Path(predict.__file__).parent)])


@pytest.fixture(scope="module")
def cluster():
    """One Ray session for all tests, to be joined by other processes; more cores than the machine may have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATHS)  # for the workers
        context = ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    model = random_model(tiny_config("semantic_fpn"))
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    VanImageProcessor(size={"shortest_edge": 32, "longest_edge": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Pictures of several sizes in two folders, one of them cut off."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "day").mkdir()
    rng = np.random.default_rng(0)
    for number in range(NUM_PICTURES):
        noise = Image.fromarray(rng.integers(0, 256, (5, 4 + number % 3, 3), dtype=np.uint8))
        name = f"{number:02d}.png" if number % 2 else f"day/{number + 1:02d}.png"
        noise.resize((noise.width * 8, noise.height * 8)).save(folder / name)
    content = (folder / DAMAGED).read_bytes()
    (folder / DAMAGED).write_bytes(content[: len(content) // 2])
    return folder


@pytest.fixture(scope="module")
def reference(cluster, folder, pictures, tmp_path_factory) -> Path:
    """What one worker writes."""
    out = tmp_path_factory.mktemp("out")
    assert run(folder, pictures, out, "--num_workers", 1) == 1
    return out


def arguments(folder: Path, pictures: Path, out: Path, *more: object) -> list[str]:
    return [str(part) for part in (folder, "--input", pictures, "--output_dir", out, "--shard_size", 4, *more)]


def run(*parts: object) -> int:
    return predict_ray.main([*arguments(*parts), "--device", "cpu"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_picture_is_there_once(reference, folder, pictures, tmp_path):
    names = sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*.png"))
    rows = [row for path in sorted(reference.glob("shards/*")) for row in pq.read_table(path).to_pylist()]
    assert [row["key"] for row in rows] == [name for name in names if name != DAMAGED]
    failed = [json.loads(line) for line in (reference / "failed.jsonl").read_text().splitlines()]
    assert [entry["key"] for entry in failed] == [DAMAGED]
    assert failed[0]["error"].startswith("OSError: ")
    assert predict.main([str(folder), str(pictures), "--recursive", "--output_dir", str(tmp_path), "--device", "cpu",
                         "--save", "masks", "shares"]) == 1  # fmt: skip
    for row in rows:
        name = Path(row["key"]).with_suffix(".png")
        assert row["mask"] == (tmp_path / "masks" / name).read_bytes()
        shares = json.loads((tmp_path / "shares" / name.with_suffix(".json")).read_text())
        del shares["image"]
        assert {key: row[key] for key in ("height", "width", "classes")} == shares


def test_png_files_are_those_of_predict(reference, folder, pictures, tmp_path):
    assert run(folder, pictures, tmp_path, "--num_workers", 2, "--format", "png") == 1
    masks = contents(tmp_path / "masks")
    rows = [row for path in reference.glob("shards/*") for row in pq.read_table(path).to_pylist()]
    assert masks == {row["key"]: row["mask"] for row in rows}


def test_a_worker_is_killed(reference, folder, pictures, tmp_path, monkeypatch):
    write, killed = predict_ray.Output.write, []

    def write_and_kill(self, *parts):
        write(self, *parts)
        if not killed:
            workers = [process for process in psutil.process_iter() if "MapWorker" in process.name()]
            mine = [worker for worker in workers if os.getpid() in (parent.pid for parent in worker.parents())]
            killed.append(mine[0].pid)
            os.kill(mine[0].pid, signal.SIGKILL)

    monkeypatch.setattr(predict_ray.Output, "write", write_and_kill)
    assert run(folder, pictures, tmp_path, "--num_workers", 2) == 1
    assert killed and contents(tmp_path) == contents(reference)


def test_the_script_is_killed(cluster, reference, folder, pictures, tmp_path):
    command = [sys.executable, PROGRAMS / "killed_predict_ray.py", *arguments(folder, pictures, tmp_path)]
    command += ["--device", "cpu", "--num_workers", "1", "--address", cluster]
    done = subprocess.run(command, env=child_environment(PYTHONPATH=PATHS), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (shard,) = (tmp_path / "shards").iterdir()
    written = shard.stat().st_mtime_ns
    (tmp_path / "shards" / f".partial-1{shard.suffix}").touch()
    assert run(folder, pictures, tmp_path, "--num_workers", 3) == 1
    assert shard.stat().st_mtime_ns == written
    assert contents(tmp_path) == contents(reference)


def test_damaged_pictures_are_tried_again(reference, folder, pictures, tmp_path):
    mended, out = tmp_path / "mended", tmp_path / "out"
    shutil.copytree(pictures, mended)
    shutil.copytree(reference, out)
    settings = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps(settings | {"input": str(mended)}))
    before = contents(out)
    shutil.copy(pictures / "day/01.png", mended / DAMAGED)
    assert run(folder, mended, out) == 1  # all is there
    assert contents(out) == before
    (out / "shards/000003.parquet").unlink()
    assert run(folder, mended, out, "--num_workers", 1, "--retry_failed") == 0
    rows = [row for path in sorted(out.glob("shards/*")) for row in pq.read_table(path).to_pylist()]
    assert len(rows) == NUM_PICTURES and not (out / "failed.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--flip",), "flip was False, is now True"),
        (("--batch_size", 2), "batch_size was 1, is now 2"),
        (("--format", "png"), "format was 'parquet', is now 'png'"),
        (("--image_column", "left"), "image_column was None, is now 'left'"),
    ],
)
def test_other_settings_are_refused(reference, folder, pictures, capsys, more, message):
    before = contents(reference)
    assert run(folder, pictures, reference, *more) == 2
    assert message in capsys.readouterr().err
    assert contents(reference) == before


def test_other_pictures_are_refused(reference, folder, pictures, tmp_path, capsys):
    shutil.copytree(pictures, tmp_path / "more")
    shutil.copy(pictures / "01.png", tmp_path / "more/new.png")
    assert run(folder, tmp_path / "more", reference) == 2
    assert f"pictures was {NUM_PICTURES}, is now {NUM_PICTURES + 1}; keys_digest was" in capsys.readouterr().err


def test_another_input_with_the_same_keys_is_refused(reference, folder, pictures, tmp_path, capsys):
    shutil.copytree(pictures, tmp_path / "others")
    before = contents(reference)
    assert run(folder, tmp_path / "others", reference) == 2
    assert f"(input was {str(pictures)!r}, is now '" in capsys.readouterr().err
    assert contents(reference) == before


def test_masks_of_one_name_are_refused(cluster, folder, pictures, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (32, 32)).save(tmp_path / "in" / name)
    assert run(folder, tmp_path / "in", tmp_path / "out", "--format", "png") == 2
    assert "a.jpg and a.png would both be written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_without_ray(tmp_path):
    command = [sys.executable, PROGRAMS / "import_without.py", "predict_ray", "ray"]
    done = subprocess.run(command, env=child_environment(PYTHONPATH=PATHS), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == 'error: this script needs Ray Data, which is not installed: pip install -e ".[ray]"\n'
