# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""README.md and examples/README.md: the worked example is run, other commands are read by what they start. And
examples/train_slurm.sh, with the SLURM of programs/slurm."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import PROGRAMS, paint_box
from loopback_hub import Commit, File, LoopbackHub, Repository
from PIL import Image
from test_push_to_hub import Runner

from van_hf import VanConfig, VanForImageClassification

ROOT = Path(__file__).parents[1]
READMES = (ROOT / "README.md", ROOT / "examples" / "README.md")


def blocks(readme: Path, heading: str) -> list[str]:
    """Returns the fenced blocks of a section."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", readme.read_text("utf-8"), re.M | re.S)[1]
    return re.findall(r"^```\w*\n(.*?)^```$", section, re.M | re.S)


def test_every_fixture_is_described(fixtures_dir):
    readme = (fixtures_dir / "README.md").read_text("utf-8")
    names = {path.name.partition(".")[0] for path in fixtures_dir.iterdir()} - {"README"}
    assert {name for name in names if f"`{name}" not in readme} == set()


def commands(text: str) -> list[list[str]]:
    """Returns the words of each command that starts one of the examples, in blocks or within a line."""
    found = re.findall(r"(?:accelerate launch|python) [^`\n]*examples/\w+\.py[^`\n]*", text.replace("\\\n", ""))
    return [shlex.split(command, comments=True) for command in found]


def script_and_arguments(command: list[str]) -> tuple[str, list[str]]:
    if command[0] == "python":
        return command[1], command[2:]
    args = launch_command_parser().parse_args(command[2:])
    # As accelerate judges them when it starts.
    assert args.multi_gpu + args.cpu + args.use_fsdp <= 1
    assert not args.multi_gpu or (args.num_processes > 1 and args.num_processes % (args.num_machines or 1) == 0)
    return args.training_script, args.training_script_args


@pytest.mark.parametrize("readme", READMES, ids=["README.md", "examples/README.md"])
def test_commands_are_understood(readme, monkeypatch):
    found = commands(readme.read_text("utf-8"))
    assert len(found) > 5
    for command in found:
        script, arguments = script_and_arguments(command)
        assert (ROOT / script).is_file()
        name = Path(script).stem
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        if name in ("train_seg", "eval_seg"):
            importlib.import_module(name.replace("_seg", "_arguments")).parse_arguments("")
        elif name in ("predict", "push_to_hub"):
            importlib.import_module(name).parse_args(arguments)


@pytest.mark.parametrize("readme", READMES, ids=["README.md", "examples/README.md"])
def test_links_lead_somewhere(readme):
    links = re.findall(r"\]\(([^)\s]+)\)", readme.read_text("utf-8"))
    for path, _, anchor in (link.partition("#") for link in links if "://" not in link):
        target = readme.parent / path if path else readme
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M)
            anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert anchor in anchors


def write_data(folder: Path, layout: str) -> list[str]:
    """Writes pictures and masks as README.md lays them out, and returns the label names that it gives."""
    names = re.search(r"id2label\.json +({.*})", layout)[1]
    rng = np.random.default_rng(0)
    folder.mkdir()
    (folder / "id2label.json").write_text(names)
    images = re.findall(r"(images/\w+)/(\d+)\.jpg", layout)
    masks = re.findall(r"(annotations/\w+)/(\d+)\.png", layout)
    for (images_folder, first), (masks_folder, _) in zip(images, masks, strict=True):
        (folder / images_folder).mkdir(parents=True)
        (folder / masks_folder).mkdir(parents=True)
        for number in range(int(first), int(first) + 3):
            example = paint_box(rng)
            example["image"].save(folder / images_folder / f"{number:04}.jpg")
            example["mask"].save(folder / masks_folder / f"{number:04}.png")
    return list(json.loads(names).values())


SMALL = ("--model_size", "mini", "--max_train_steps", "2", "--crop_size", "32", "--total_train_batch_size", "4")
MORE = {
    "train_seg.py": (*SMALL, "--dataloader_num_workers", "0"),
    "predict.py": ("--save", "masks", "--device", "cpu"),
}


@pytest.fixture
def hub(tmp_path):
    """A Hub that has a classifier of train_seg.py's size "mini" under the name of the authors' B2."""
    config = VanConfig(hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 2, 1], mlp_ratios=[4, 4, 4, 4], num_labels=2)
    VanForImageClassification(config).save_pretrained(tmp_path / "classifier")
    files = {path.name: File(path.read_bytes()) for path in (tmp_path / "classifier").iterdir()}
    with LoopbackHub() as hub:
        repository = hub.repositories["Visual-Attention-Network/van-base"] = Repository()
        repository.add("main", Commit("initial commit", files))
        yield hub
    assert hub.unknown == []


@pytest.mark.slow
def test_own_data_to_a_model_on_the_hub(hub, tmp_path):
    layout, block = blocks(READMES[0], "Train on your own data")
    names = write_data(tmp_path / "my-data", layout)
    runner = Runner(hub.environment(tmp_path / "home"), tmp_path)
    try:
        results = []
        for command in commands(block.replace("OWNER", "alice")):
            script, arguments = script_and_arguments(command)
            assert "alice/NAME" not in hub.repositories
            results.append(runner.run(Path(script).name, *arguments, *MORE.get(Path(script).name, ())))
            assert results[-1].status == 0, results[-1].err

        # The three lines that load it by its name.
        (lines,) = blocks(READMES[0], "From the Hub")
        saving = 'import numpy; numpy.savez("segments.npz", **{s["label"]: numpy.array(s["mask"]) for s in segments})'
        (tmp_path / "lines.py").write_text(lines.replace("OWNER", "alice") + saving)
        picture = next((tmp_path / "my-data" / "images" / "validation").iterdir())
        shutil.copy(picture, tmp_path / "picture.jpg")
        done = runner.run(tmp_path / "lines.py")
        assert done.status == 0, done.err
    finally:
        runner.stop()

    train, predict, dry_run, _ = results
    assert "New weights, to be trained from scratch: decode_head" in train.out
    assert "3 of 3 pictures segmented" in predict.out and "Would go to alice/NAME" in dry_run.out
    files = hub.repositories["alice/NAME"].files()
    model_dir = tmp_path / "outputs" / "my-model"
    assert files["model.safetensors"] == (model_dir / "model.safetensors").read_bytes()
    assert json.loads(files["config.json"])["id2label"] == dict(zip("012", names, strict=True))
    mask = np.array(Image.open(tmp_path / "predictions" / "masks" / f"{picture.stem}.png"))
    with np.load(tmp_path / "segments.npz") as segments:
        assert set(segments) == {names[idx] for idx in np.unique(mask)}
        assert all(np.array_equal(segments[name] > 0, mask == names.index(name)) for name in segments)


def run_slurm_file(folder: Path, *arguments: str, **variables: object) -> subprocess.CompletedProcess:
    """Runs train_slurm.sh as a job; each machine leaves the arguments of its launcher in `launch-RANK`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {"PATH": f"{PROGRAMS / 'slurm'}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_NODELIST": "node[0-29999]", "SLURM_JOB_ID": "54321", "SLURM_CPUS_PER_TASK": "6"}
    environment |= {name: str(value) for name, value in variables.items()}
    script = ROOT / "examples" / "train_slurm.sh"
    return subprocess.run(["bash", script, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("machines", "gpus"), [(1, 1), (1, 8), (2, 1), (3, 4)])
def test_slurm_job_has_a_launcher_per_machine(tmp_path, machines, gpus):
    done = run_slurm_file(tmp_path, "--dataset", "my data", SLURM_JOB_NUM_NODES=machines, SLURM_GPUS_ON_NODE=gpus)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("launch-*"))) == machines
    for rank in range(machines):
        command, *options = (tmp_path / f"launch-{rank}").read_text().splitlines()
        args = launch_command_parser().parse_args(options)
        assert command == "launch"
        assert (args.num_machines, args.machine_rank, args.num_processes) == (machines, rank, machines * gpus)
        assert (args.main_process_ip, args.main_process_port, args.rdzv_backend) == ("node0", 24321, "static")
        assert args.multi_gpu == (machines * gpus > 1)
        assert args.training_script == "examples/train_seg.py"
        assert args.training_script_args == ["--dataset", "my data"]


def test_slurm_job_without_gpus(tmp_path):
    done = run_slurm_file(tmp_path, SLURM_JOB_NUM_NODES=1)
    assert done.returncode != 0 and "the job has no GPUs; ask for them with --gpus-per-node" in done.stderr
    assert not list(tmp_path.glob("launch-*"))
