# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""README.md, examples/README.md and CONTRIBUTING.md: Python blocks and the worked example are run, other commands are
parsed by what they start. And examples/train_slurm.sh, with the SLURM of programs/slurm."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from conftest import BOX_NAMES, PROGRAMS, paint_box, tiny_config
from loopback_hub import Commit, File, LoopbackHub, Repository
from PIL import Image
from test_push_to_hub import Runner
from train_seg import STATUS_TO_GO_ON

from van_hf import VanConfig, VanForImageClassification, VanForSemanticSegmentation, VanImageProcessor, __version__

ROOT = Path(__file__).parents[1]
READMES = (ROOT / "README.md", ROOT / "examples" / "README.md")
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"


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
        elif name == "benchmark":
            # It has no function that only parses.
            benchmarks = importlib.import_module("benchmark").main
            with pytest.raises(SystemExit) as stop:
                benchmarks([*arguments, "--help"])
            assert stop.value.code == 0
        elif name == "model_cards":
            assert arguments == []
        elif find_spec({"demo": "gradio", "predict_ray": "ray"}.get(name, name)) is not None:
            importlib.import_module(name).parse_args(arguments)


def test_the_set_up_lines():
    lines = READMES[0].read_text("utf-8").splitlines()
    # CI takes the second one from here.
    assert lines.index("pip install -e . && accelerate launch examples/train_seg.py") < 25
    assert lines.index('pip install -e ".[test]" && pytest') < 25


def test_the_pictures():
    paths = re.findall(r"^!\[[^]]+\]\((\S+)\)$", READMES[0].read_text("utf-8"), re.M)
    for path in paths:
        assert (ROOT / path).stat().st_size < 150_000
    with Image.open(ROOT / paths[0]) as image:
        assert image.width > 2 * image.height
    # The commands that draw them, to these files.
    found = [command[1:] for command in commands(READMES[0].read_text("utf-8"))]
    draws = [c for c in found if c[0] == "examples/show_predictions.py" or c[:2] == ["examples/benchmark.py", "plot"]]
    assert [command[-2:] for command in draws] == [["--output", path] for path in paths]


def test_the_version_is_described():
    assert f"**{__version__}**" in READMES[0].read_text("utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with what the examples need of the default training run: a model and a picture, of smaller sizes."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    model = VanForSemanticSegmentation(tiny_config(id2label=BOX_NAMES))
    model.save_pretrained(folder / "outputs" / "van-scenes")
    VanImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}).save_pretrained(folder / "outputs/van-scenes")
    paint_box(np.random.default_rng(0))["image"].save(folder / "outputs" / "van-scenes" / "example.png")
    return folder


def test_python_blocks_run(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    found = re.findall(r"^```python\n(.*?)^```$", READMES[0].read_text("utf-8"), re.M | re.S)
    # The one with a model of the Hub is tried below.
    found = [block for block in found if "OWNER" not in block]
    assert len(found) == 4
    for block in found:
        namespace = {}
        exec(block, namespace)
        if "labels" in namespace:
            image, labels = namespace["image"], namespace["labels"]
            assert labels.shape == (image.height, image.width) and labels.max() < len(BOX_NAMES)
        elif "backbone" in namespace:
            with torch.inference_mode():
                assert namespace["model"].eval()(torch.zeros(1, 3, 64, 64)).logits.shape[:2] == (1, 150)
    printed = capsys.readouterr().out
    assert "torch.Size([1, 150, 32, 32])" in printed and any(name in printed for name in BOX_NAMES.values())


def test_first_commands_run(trained, monkeypatch):
    monkeypatch.chdir(trained)
    predict, _ = commands(blocks(READMES[0], "First steps")[-2])
    script, arguments = script_and_arguments(predict)
    assert importlib.import_module(Path(script).stem).main([*arguments, "--device", "cpu"]) == 0
    assert (trained / "predictions" / "overlays" / "example.png").is_file()


@pytest.mark.parametrize(
    "readme", [*READMES, CONTRIBUTING], ids=["README.md", "examples/README.md", "CONTRIBUTING.md"]
)
def test_paths_and_names_are_there(readme):
    for path in re.findall(r"`((?:van_hf|examples|tests|model_cards|\.ci)/[\w./]*)`", readme.read_text("utf-8")):
        assert (ROOT / path).exists(), path


def test_the_layout_is_whole():
    text = CONTRIBUTING.read_text("utf-8")
    for path in (ROOT / "van_hf").iterdir():
        if path.name.startswith("__") or path.suffix not in ("", ".py"):
            continue
        name = f"`van_hf/{path.name}" if path.is_dir() else f"`van_hf/{path.name}`"
        assert name in text, f"CONTRIBUTING.md does not say what {path.name} is"


def test_the_steps_to_a_decode_head_name_what_there_is():
    steps = CONTRIBUTING.read_text("utf-8").split("## How to add a decode head")[1]
    places = {
        "van_hf/model/decode_heads.py": ("DECODE_HEAD_CLASSES", "channels_first", "ConvModule", "class Classifier"),
        "van_hf/model/configuration_van.py": ("DECODE_HEADS", "VAN_SIZES", "def validate_architecture"),
        "tests/conftest.py": ("TINY_HEADS",),
        "tests/test_modeling_van.py": ("SegmentationSuite", "golden_name", "def suites"),
        "van_hf/checkpoints.py": ("SEGMENTATION_KEYS", "def _infer_heads"),
        "van_hf/training.py": ("RECIPES",),
    }
    for path, names in places.items():
        for name in names:
            assert name in (ROOT / path).read_text("utf-8") and name.split()[-1] in steps, (path, name)


@pytest.mark.parametrize(
    "readme", [*READMES, CONTRIBUTING], ids=["README.md", "examples/README.md", "CONTRIBUTING.md"]
)
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


SLOW_FIXTURES = {"runner"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub that has a classifier of train_seg.py's size "mini" under the names of the authors' B0 and B2."""
    folder = tmp_path_factory.mktemp("classifier")
    config = VanConfig(hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 2, 1], mlp_ratios=[4, 4, 4, 4], num_labels=2)
    VanForImageClassification(config).save_pretrained(folder)
    files = {path.name: File(path.read_bytes()) for path in folder.iterdir()}
    with LoopbackHub() as hub:
        for name in ("van-tiny", "van-base"):
            repository = hub.repositories[f"Visual-Attention-Network/{name}"] = Repository()
            repository.add("main", Commit("initial commit", files))
        yield hub
    assert hub.unknown == []


@pytest.fixture(scope="module")
def runner(hub, tmp_path_factory):
    """Runs the commands of all worked examples in one folder."""
    runner = Runner(hub.environment(tmp_path_factory.mktemp("home")), tmp_path_factory.mktemp("commands"))
    yield runner
    runner.stop()


def run_commands(runner: Runner, found: list[list[str]], status: int = 0) -> list:
    """Runs commands, in small, and returns what came of each."""
    results = []
    for command in found:
        script, arguments = script_and_arguments(command)
        results.append(runner.run(Path(script).name, *arguments, *MORE.get(Path(script).name, ())))
        assert results[-1].status == status, (command, results[-1].err)
    return results


def assert_worked(folder: Path, name: str, names: list[str], results: list) -> None:
    """What both worked examples leave."""
    inspected, train, _, shown, predict = results
    assert "Errors: 0," in inspected.out and (folder / "inspected" / name / "report.html").exists()
    assert f"Labels of dataset {name!r}" in train.out.replace("leaves/pictures", "leaves")
    trained, evaluated = (folder / "outputs" / end for end in (name, f"{name}-evaluated"))
    assert list(json.loads((trained / "config.json").read_text())["id2label"].values()) == names
    results = [json.loads((path / "results.json").read_text()) for path in (trained, evaluated)]
    assert results[0]["iou"] == results[1]["iou"] and results[0]["iou"].keys() == set(names)
    assert "shows 2 of the validation pictures" in shown.out
    assert (folder / "outputs" / f"{name}-predictions.png").stat().st_size > 10_000
    assert "pictures segmented" in predict.out


def test_the_worked_example_of_black_and_white_masks(runner):
    layout, first, rest = blocks(READMES[1], "Worked examples")[:3]
    rng = np.random.default_rng(0)
    for split in re.findall(r"images/(\w+)/", layout):
        for number in range(4):
            example = paint_box(rng)
            white = Image.fromarray(np.where(np.array(example["mask"]) == 2, 255, 0).astype(np.uint8))
            for kind, picture, suffix in (("images", example["image"], "jpg"), ("masks", white, "png")):
                (runner.folder / "road-cracks" / kind / split).mkdir(parents=True, exist_ok=True)
                picture.save(runner.folder / "road-cracks" / kind / split / f"{number:04}.{suffix}")
    shutil.copytree(runner.folder / "road-cracks" / "images" / "validation", runner.folder / "new-photographs")
    (told,) = run_commands(runner, commands(first), status=1)
    assert "add --mask_values 0=background 255=object" in told.out and "Errors: 2," in told.out
    assert_worked(runner.folder, "road-cracks", ["background", "crack"], run_commands(runner, commands(rest)))


def test_the_worked_example_of_polygons(runner):
    rng = np.random.default_rng(0)
    categories = [{"id": 4, "name": "leaf"}, {"id": 7, "name": "spot"}]
    content = {"images": [], "annotations": [], "categories": categories}
    (runner.folder / "leaves" / "pictures").mkdir(parents=True)
    for number in range(10):
        picture = paint_box(rng)["image"]
        picture.save(runner.folder / "leaves" / "pictures" / f"{number:04}.jpg")
        width, height = picture.size
        entry = {"id": number, "file_name": f"{number:04}.jpg", "width": width, "height": height}
        content["images"].append(entry)
        for category, top, bottom in ((4, height // 2, height), (7, height // 4, height // 2)):
            polygon = [0, top, width // 3, top, width // 3, bottom, 0, bottom]
            annotation = {"id": 2 * number + category, "image_id": number, "category_id": category}
            content["annotations"].append(annotation | {"segmentation": [polygon]})
    (runner.folder / "leaves" / "instances.json").write_text(json.dumps(content))
    results = run_commands(runner, commands(blocks(READMES[1], "Worked examples")[4]))
    assert_worked(runner.folder, "leaves", ["background", "leaf", "spot"], results)


def test_own_data_to_a_model_on_the_hub(hub, runner):
    layout, block = blocks(READMES[0], "Train on your own data")
    names = write_data(runner.folder / "my-data", layout)
    *found, push = commands(block.replace("OWNER", "alice"))
    results = run_commands(runner, found)
    assert "alice/NAME" not in hub.repositories
    results += run_commands(runner, [push])

    # The three lines that load it by its name.
    _, lines = blocks(READMES[0], "Release on the Hub")
    saving = 'import numpy; numpy.savez("segments.npz", **{s["label"]: numpy.array(s["mask"]) for s in segments})'
    (runner.folder / "lines.py").write_text(lines.replace("OWNER", "alice") + saving)
    picture = next((runner.folder / "my-data" / "images" / "validation").iterdir())
    shutil.copy(picture, runner.folder / "picture.jpg")
    done = runner.run(runner.folder / "lines.py")
    assert done.status == 0, done.err

    inspected, train, predict, dry_run, _ = results
    assert "Errors: 0," in inspected.out and (runner.folder / "inspected" / "report.html").exists()
    assert "New weights, to be trained from scratch: decode_head" in train.out
    assert "3 of 3 pictures segmented" in predict.out and "Would go to alice/NAME" in dry_run.out
    files = hub.repositories["alice/NAME"].files()
    model_dir = runner.folder / "outputs" / "my-model"
    assert files["model.safetensors"] == (model_dir / "model.safetensors").read_bytes()
    assert json.loads(files["config.json"])["id2label"] == dict(zip("012", names, strict=True))
    mask = np.array(Image.open(runner.folder / "predictions" / "masks" / f"{picture.stem}.png"))
    with np.load(runner.folder / "segments.npz") as segments:
        assert set(segments) == {names[idx] for idx in np.unique(mask)}
        assert all(np.array_equal(segments[name] > 0, mask == names.index(name)) for name in segments)


def run_slurm_file(folder: Path, *arguments: str, **variables: object) -> subprocess.CompletedProcess:
    """Runs train_slurm.sh as a job; each process leaves its arguments in `process-RANK`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {"PATH": f"{PROGRAMS / 'slurm'}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_NODELIST": "node[0-29999]", "SLURM_JOB_ID": "54321", "SLURM_CPUS_PER_TASK": "6"}
    environment |= {name: str(value) for name, value in variables.items()}
    script = ROOT / "examples" / "train_slurm.sh"
    return subprocess.run(["bash", script, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("machines", "gpus"), [(1, 1), (1, 8), (2, 1), (3, 4)])
def test_slurm_job_has_a_process_per_gpu(tmp_path, machines, gpus):
    given = {"SLURM_JOB_NUM_NODES": machines, "SLURM_GPUS_ON_NODE": gpus, "SLURM_CPUS_PER_TASK": 6 * gpus}
    done = run_slurm_file(tmp_path, "--dataset", "my data", **given)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {f"process-{rank}" for rank in range(machines * gpus)}
    for rank in range(machines * gpus):
        local_rank, total, *arguments = (tmp_path / f"process-{rank}").read_text().splitlines()
        assert (int(local_rank), int(total)) == (rank % gpus, machines * gpus)
        assert arguments[:3] == ["node0", "24321", "examples/train_seg.py"]
        assert arguments[3:] == ["--resume_from_checkpoint", "latest", "--dataset", "my data"]


@pytest.mark.parametrize(("status", "is_requeued"), [(STATUS_TO_GO_ON, True), (1, False), (0, False)])
def test_slurm_job_is_requeued_when_a_signal_has_ended_it(tmp_path, status, is_requeued):
    done = run_slurm_file(tmp_path, SLURM_JOB_NUM_NODES=2, SLURM_GPUS_ON_NODE=1, STATUS=status)
    assert done.returncode == status
    assert (tmp_path / "scontrol").exists() == is_requeued
    if is_requeued:
        assert (tmp_path / "scontrol").read_text() == "requeue 54321\n"


def test_slurm_job_without_gpus(tmp_path):
    done = run_slurm_file(tmp_path, SLURM_JOB_NUM_NODES=1)
    assert done.returncode != 0 and "the job has no GPUs; ask for them with --gpus-per-node" in done.stderr
    assert not list(tmp_path.glob("process-*"))
