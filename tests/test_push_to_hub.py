# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""examples/push_to_hub.py and train_seg.py's --push_to_hub with the real client of the Hub, against a server of ours;
and what was pushed, loaded by its name."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import loopback_hub
import numpy as np
import pytest
import torch
import yaml
from conftest import PROGRAMS, needs_exporters, random_pixel_values, tiny_config
from huggingface_hub import ModelCard
from loopback_hub import Handler, LoopbackHub, Refused
from PIL import Image
from push_to_hub import in_bytes

from van_hf import VanForSemanticSegmentation, VanImageProcessor
from van_hf.exports import ExportInfo, export_model, package_versions, save_info
from van_hf.inference import digest_of_weights

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = dict(enumerate(["sky", "tree", "water", "sand", "car", "road", "wall"]))


class Runner:
    """A process that runs the examples; see programs/run_examples.py."""

    def __init__(self, environment: dict, folder: Path):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, PROGRAMS / "run_examples.py"],
            cwd=folder,
            env=environment | {"ACCELERATE_USE_CPU": "true"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, script: str, *arguments: object, token: str | None = "hf_alice") -> SimpleNamespace:
        request = [str(EXAMPLES / script), [str(argument) for argument in arguments], token]
        print(json.dumps(request), file=self.process.stdin, flush=True)
        status, out, err = json.loads(self.process.stdout.readline())
        return SimpleNamespace(status=status, out=out, err=err)

    def push(self, source: Path, repo: str, *options: object, token: str | None = "hf_alice") -> SimpleNamespace:
        return self.run("push_to_hub.py", source, "--hub_model_id", repo, *options, token=token)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def running_hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub):
    """An empty Hub."""
    running_hub.clear()
    yield running_hub
    assert running_hub.unknown == []


@pytest.fixture(scope="module")
def runner(running_hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runner")
    runner = Runner(running_hub.environment(folder / "home"), folder)
    yield runner
    runner.stop()


@pytest.fixture(scope="module")
def unconnected(tmp_path_factory):
    """A runner without token, and without a network: no one listens where its Hub should be."""
    folder = tmp_path_factory.mktemp("unconnected")
    with LoopbackHub() as hub:
        environment = hub.environment(folder / "home")
    runner = Runner(environment, folder)
    yield runner
    runner.stop()


def save_model(folder: Path, seed: int = 0, **results: object) -> VanForSemanticSegmentation:
    """Saves a model as train_seg.py does, with figures and pictures, and with what must not be released."""
    torch.manual_seed(seed)
    label2id = {name: idx for idx, name in NAMES.items()}
    model = VanForSemanticSegmentation(tiny_config("semantic_fpn", id2label=NAMES, label2id=label2id)).eval()
    model.save_pretrained(folder)
    VanImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}).save_pretrained(folder)
    results = {
        **{"mean_iou": 0.5, "mean_accuracy": 0.6, "overall_accuracy": 0.7, "device": "cpu"},
        "protocol": {"inference": "whole image, single scale", "metric": "mean IoU", "size": {"shortest_edge": 64}},
        "dataset": {"name": "boxes", "num_labels": 7, "validation": 5},
        "num_parameters": model.num_parameters(),
        "versions": {"van_hf": "0.1.0"},
    } | results
    (folder / "results.json").write_text(json.dumps(results))
    Image.new("RGB", (40, 30)).save(folder / "predictions.png")
    (folder / "checkpoint-6").mkdir(exist_ok=True)
    for name in ("checkpoint-6/optimizer.bin", "optimizer.pt", "events.out.tfevents.1", "notes.txt", "private.png"):
        (folder / name).write_bytes(b"not for the Hub")
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder)
    return folder


@pytest.fixture(scope="module")
def model_files(saved) -> set[str]:
    """The names of the files without which the saved model could not be used."""
    code = {path.name for path in saved.glob("*.py")}
    assert code >= {"configuration_van.py", "decode_heads.py", "image_processing_van.py", "modeling_van.py"}
    return code | {"config.json", "preprocessor_config.json", "model.safetensors"}


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of the saved model, to change."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_one_commit_holds_the_whole_release_and_nothing_else(hub, runner, saved, model_files):
    done = runner.push(saved, "alice/van")
    assert done.status == 0, done.err
    newest, first = hub.repositories["alice/van"].history()
    files = hub.repositories["alice/van"].files()
    assert files.keys() == model_files | {"README.md", "results.json", "predictions.png", ".gitattributes"}
    for name in files.keys() - {"README.md", ".gitattributes"}:
        assert files[name] == (saved / name).read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.eval_results[0].metric_value == 0.5
    assert f"a new repository: {hub.url}/alice/van/commit/{newest.sha}" in done.out
    assert not hub.repositories["alice/van"].private


def test_dry_run_lists_the_same_files_without_network_and_token(unconnected, saved, model_files):
    done = unconnected.push(saved, "alice/van", "--dry_run", "--revision", "trial", token=None)
    assert done.status == 0, done.err
    assert "alice/van, branch trial" in done.out
    rows = [line.split() for line in done.out.splitlines()]
    sizes = {row[0]: row[1] for row in rows if len(row) == 3 and row[1].endswith("B")}
    assert sizes.keys() == model_files | {"README.md", "results.json", "predictions.png"}
    assert sizes["predictions.png"] == f"{(saved / 'predictions.png').stat().st_size}B"
    kilobytes = (saved / "model.safetensors").stat().st_size / 1000
    assert sizes["model.safetensors"] == f"{kilobytes:.0f}kB"


@pytest.mark.parametrize(
    ("repo", "token", "status", "message"),
    [
        ("alice/van", None, 1, "there is no token; run `hf auth login`"),
        ("alice/van", "hf_wrong", 1, "does not accept the token"),
        ("alice/van", "hf_alice_read", 1, "the token can only read"),
        ("bob/van", "hf_alice", 1, "you may not write to bob/van: the token is for alice"),
        ("van", "hf_alice", 2, "--hub_model_id must be of the form owner/name, got 'van'"),
        ("alice/v an", "hf_alice", 2, "--hub_model_id alice/v an"),
    ],
)
def test_who_may_not_push_is_told_before_anything_is_sent(hub, runner, saved, repo, token, status, message):
    done = runner.push(saved, repo, token=token)
    assert (done.status, done.out) == (status, "")
    assert message in done.err and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert hub.repositories == {}


def test_no_network(unconnected, saved):
    done = unconnected.push(saved, "alice/van")
    assert done.status == 1
    assert "error: the connection to http://127.0.0.1:" in done.err and done.err.count("\n") == 1


def test_what_only_the_hub_knows_to_be_forbidden(hub, runner, saved):
    runner.push(saved, "bob/van", token="hf_bob")
    # As a fine-grained token, whose name does not tell what it may do.
    hub.tokens = hub.tokens | {"hf_fine": ("alice", "fineGrained")}
    done = runner.push(saved, "bob/van", token="hf_fine")
    assert done.status == 1
    assert "you may not write to bob/van with this token (Forbidden" in last_line(done)
    assert len(hub.repositories["bob/van"].history()) == 2


def last_line(done: SimpleNamespace) -> str:
    """The error, below what the client logs about its attempts."""
    return done.err.strip().splitlines()[-1]


def test_a_second_push_sends_only_what_changed(hub, runner, folder):
    runner.push(folder, "alice/van")
    uploads = hub.count("PUT", "/storage/")
    assert uploads == 2

    done = runner.push(folder, "alice/van")
    assert done.status == 0 and "Nothing has changed" in done.out
    assert len(hub.repositories["alice/van"].history()) == 2

    results = json.loads((folder / "results.json").read_text()) | {"mean_iou": 0.75}
    (folder / "results.json").write_text(json.dumps(results))
    done = runner.push(folder, "alice/van", "--commit_message", "Longer training")
    assert "the existing repository" in done.out
    newest = hub.repositories["alice/van"].history()[0]
    assert (newest.title, set(newest.sent)) == ("Longer training", {"README.md", "results.json"})
    assert hub.count("PUT", "/storage/") == uploads
    assert b"value: 0.75" in newest.files["README.md"].content


@pytest.mark.parametrize(
    ("method", "path", "status", "skip", "sent_again"),
    [
        ("PUT", "/storage/", 500, 1, 1),
        ("PUT", "/storage/", None, 1, 1),
        ("POST", "/lfs/verify", 502, 0, 0),
        ("POST", "/commit/", 503, 0, 0),
        ("POST", "/commit/", None, 0, 0),
        ("POST", "/preupload/", 500, 0, 2),
    ],
)
def test_a_push_that_was_cut_off_releases_nothing_and_is_completed(
    hub, runner, saved, method, path, status, skip, sent_again, model_files
):
    hub.fail(method, path, status, skip)
    done = runner.push(saved, "alice/van")
    assert done.status == 1
    assert last_line(done).startswith("error: ") and last_line(done).endswith("goes on with what is missing")
    assert str(status) in last_line(done) if status else "connection" in last_line(done)
    assert "Traceback" not in done.err
    assert hub.repositories["alice/van"].files().keys() == {".gitattributes"}

    hub.faults.clear()
    hub.requests.clear()
    assert runner.push(saved, "alice/van").status == 0
    assert hub.count("PUT", "/storage/") == sent_again
    assert len(hub.repositories["alice/van"].history()) == 2
    assert hub.repositories["alice/van"].files().keys() >= model_files


def test_a_transient_error_goes_unnoticed(hub, runner, saved):
    hub.fail("PUT", "/storage/", 500, times=2)
    assert runner.push(saved, "alice/van").status == 0


def test_someone_elses_commit_is_not_run_over(hub, runner, saved):
    runner.push(saved, "alice/van")
    hub.fail("POST", "/commit/", 412)
    done = runner.push(saved, "alice/van", "--no_pictures")
    assert done.status == 1 and "another commit in the meantime" in last_line(done)


def test_a_card_that_was_edited_on_the_hub_is_kept(hub, runner, folder):
    runner.push(folder, "alice/van")
    repository = hub.repositories["alice/van"]
    edited = repository.files()["README.md"].replace(b"## ", b"## My ", 1)
    repository.edit("README.md", edited)
    (folder / "per_class.csv").write_text("class,iou\n")
    done = runner.push(folder, "alice/van")
    assert "Kept README.md" in done.out
    assert repository.files()["README.md"] == edited
    assert "per_class.csv" in repository.files()

    done = runner.push(folder, "alice/van", "--overwrite_card")
    assert "Kept" not in done.out
    assert b"## My " not in repository.files()["README.md"]


def test_the_folders_own_card_goes(hub, runner, folder):
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nIn my own words.\n")
    assert runner.push(folder, "alice/van").status == 0
    assert hub.repositories["alice/van"].files()["README.md"].endswith(b"In my own words.\n")

    # As transformers' Trainer writes it.
    (folder / "README.md").write_text(f"---\nlicense: apache-2.0\nbase_model: {folder / 'base'}\n---\n")
    done = runner.push(folder, "alice/van")
    assert done.status == 2 and done.err.count("\n") == 1
    assert f"README.md, line 3, names a path of this machine: {folder}" in last_line(done)


@pytest.fixture
def told_paths(folder, tmp_path) -> Path:
    """The saved model's folder, the JSON files of which tell where things lie on this machine."""
    places = {
        "dataset": {"name": str(tmp_path / "pictures"), "num_labels": 7, "validation": 5},
        "arguments": {
            "dataset": str(tmp_path / "pictures"),
            "model_name_or_path": "C:\\Users\\alice\\base",
            "output_dir": "outputs/acme",
            "id2label": "~/alice/names.json",
        },
        "best_pictures": [{"name": "../alice/private/0001"}],
        "notes": ["file:///home/alice/notes.txt", "Visual-Attention-Network/van-base", "https://example.org/a/b"],
    }
    results = json.loads((folder / "results.json").read_text()) | places
    (folder / "results.json").write_text(json.dumps(results))
    config = json.loads((folder / "config.json").read_text()) | {"_name_or_path": str(tmp_path / "base")}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_no_path_of_this_machine_is_released(hub, runner, told_paths, tmp_path):
    before = {path.name: path.read_bytes() for path in told_paths.iterdir() if path.is_file()}
    done = runner.push(told_paths, "alice/van")
    assert done.status == 0, done.err
    files = hub.repositories["alice/van"].files()
    for name, content in files.items():
        assert str(tmp_path).encode() not in content, name
        assert b"alice/" not in content.replace(b"alice/van", b""), name
    results = json.loads(files["results.json"])
    assert results["dataset"]["name"] == results["arguments"]["dataset"] == "pictures"
    assert results["arguments"]["model_name_or_path"] == "base" and results["arguments"]["output_dir"] == "acme"
    assert results["best_pictures"] == [{"name": "0001"}]
    assert results["notes"] == ["notes.txt", "Visual-Attention-Network/van-base", "https://example.org/a/b"]
    assert results["mean_iou"] == 0.5
    assert json.loads(files["config.json"])["_name_or_path"] == "base"
    assert b"`pictures`" in files["README.md"]
    # What lies here stays as it is; what has no path goes as it is.
    assert before == {path.name: path.read_bytes() for path in told_paths.iterdir() if path.is_file()}
    assert files["preprocessor_config.json"] == before["preprocessor_config.json"]

    assert "Nothing has changed" in runner.push(told_paths, "alice/van").out
    assert len(hub.repositories["alice/van"].history()) == 2


def test_dry_run_shows_the_size_of_what_would_go(hub, runner, told_paths):
    (told_paths / "README.md").unlink(missing_ok=True)
    listed = runner.push(told_paths, "alice/van", "--dry_run").out
    sizes = dict(line.split()[:2] for line in listed.splitlines() if "B  " in line)
    runner.push(told_paths, "alice/van")
    pushed = hub.repositories["alice/van"].files()
    for name in ("results.json", "config.json"):
        assert sizes[name] == in_bytes(len(pushed[name])) != in_bytes((told_paths / name).stat().st_size)
    assert "paths cut to their last part" in next(line for line in listed.splitlines() if "results.json" in line)


def test_private_and_branch(hub, runner, saved, model_files):
    assert runner.push(saved, "alice/secret", "--private", "--revision", "trial/1").status == 0
    repository = hub.repositories["alice/secret"]
    assert repository.private
    assert repository.files("main").keys() == {".gitattributes"}
    assert repository.files("trial/1").keys() >= model_files

    runner.push(saved, "alice/open")
    done = runner.push(saved, "alice/open", "--private", "--no_pictures")
    assert done.status == 2 and "alice/open is on the Hub already, and public" in done.err
    assert len(hub.repositories["alice/open"].history()) == 2


def test_files_of_an_earlier_release_do_not_stay_beside_the_new(hub, runner, folder):
    hub.page_size = 4
    runner.push(folder, "alice/van")
    hub.repositories["alice/van"].edit("samples/private.png", b"mine")
    VanForSemanticSegmentation.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    done = runner.push(folder, "alice/van", "--no_pictures")
    assert "Deleted there, as this release has no such files: model.safetensors, predictions.png" in done.out
    files = hub.repositories["alice/van"].files()
    assert "model.safetensors" not in files and "predictions.png" not in files and "samples/private.png" in files
    shards = set(json.loads(files["model.safetensors.index.json"])["weight_map"].values())
    assert len(shards) > 1 and shards <= files.keys()


def test_an_authors_checkpoint_is_converted(hub, runner, fixtures_dir, tmp_path, model_files):
    checkpoint = fixtures_dir / "seed_upernet_van_tiny.pth"
    done = runner.push(checkpoint, "alice/van", "--dry_run")
    assert "converted" in done.out and hub.requests == []
    assert runner.push(checkpoint, "alice/van").status == 0
    files = hub.repositories["alice/van"].files()
    assert files.keys() == model_files | {"README.md", ".gitattributes"}
    uploads = hub.count("PUT", "/storage/")
    assert "Nothing has changed" in runner.push(checkpoint, "alice/van").out
    assert hub.count("PUT", "/storage/") == uploads

    classifier = runner.push(fixtures_dir / "seed_classification_van_tiny.pth.tar", "alice/van", "--dry_run")
    assert "modeling_van.py" in classifier.out and "image_processing_van.py" not in classifier.out

    (tmp_path / "cut.pth").write_bytes(checkpoint.read_bytes()[:100_000])
    done = runner.push(tmp_path / "cut.pth", "alice/other")
    assert done.status == 2 and "truncated, damaged" in done.err
    assert "alice/other" not in hub.repositories


def test_published_figures_are_for_published_models_only(hub, runner, fixtures_dir):
    done = runner.push(fixtures_dir / "seed_fpn_van_tiny.pth", "alice/van", "--released", "fpn_van_b0_ade20k_40k")
    assert done.status == 2 and "which are not its" in done.err
    assert hub.repositories == {}


def test_an_evaluation_goes_with_the_model_that_was_evaluated(hub, runner, folder, tmp_path, model_files):
    weights = hashlib.blake2b(digest_size=16)
    for name, value in VanForSemanticSegmentation.from_pretrained(folder).state_dict().items():
        weights.update(name.encode())
        weights.update(value.flatten().view(torch.uint8).numpy())
    results = json.loads((folder / "results.json").read_text()) | {"mean_iou": 0.625}
    results["model"] = {
        "name": str(folder),
        "weights": weights.hexdigest(),
        "num_parameters": results["num_parameters"],
    }
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "results.json").write_text(json.dumps(results))
    (evaluation / "per_class.csv").write_text("class,iou\n")
    Image.new("RGB", (40, 30), "red").save(evaluation / "best_pictures.png")
    done = runner.push(evaluation, "alice/van")
    assert done.status == 0, done.err
    files = hub.repositories["alice/van"].files()
    figures = {"results.json", "train_results.json", "per_class.csv", "predictions.png", "best_pictures.png"}
    assert files.keys() == model_files | figures | {"README.md", ".gitattributes"}
    assert json.loads(files["results.json"])["mean_iou"] == 0.625
    assert json.loads(files["train_results.json"])["mean_iou"] == 0.5
    assert b"value: 0.625" in files["README.md"]

    save_model(folder, seed=1)
    done = runner.push(evaluation, "alice/van")
    assert done.status == 2 and "holds an evaluation of other weights" in last_line(done)


def save_export(
    model_dir: Path, name: str, save_program: Callable[[Path], object], check: dict | None = None, **fields: object
) -> Path:
    """Saves an export of a saved model, as export.py does, with what must not be released.

    `save_program` is given the folder; `fields` are those of the ExportInfo.
    """
    folder = model_dir / name
    folder.mkdir()
    save_program(folder)
    model = VanForSemanticSegmentation.from_pretrained(model_dir)
    for file in ("config.json", "configuration_van.py"):
        shutil.copy(model_dir / file, folder)
    VanImageProcessor.from_pretrained(model_dir).save_pretrained(folder)
    info = {"model": str(model_dir), "digest": digest_of_weights(model), "format": "onnx"} | fields
    save_info(folder, ExportInfo(**info), {"agreement": 0.99999} if check is None else check)
    for unwanted in ("notes.py", "notes.json", "picture.png", ".secret"):
        (folder / unwanted).write_bytes(b"not for the Hub")
    return folder


def save_fake_program(folder: Path) -> None:
    """Saves what looks like an export to ONNX to all but onnxruntime."""
    (folder / "model.onnx").write_bytes(b"\0program" * 9000)
    (folder / "model.onnx.data").write_bytes(b"\0weights" * 30000)
    # An inputs' layout that could be taken for a path.
    metadata = {"in_spec": "[1,{/pixel_values/rank/4}]", "out_spec": '[1, {"context": "[\\"logits\\"]"}]'}
    metadata["note"] = str(folder / "log.txt")
    manifest = {"schema_version": 1, "components": {"model": {"file": "model.onnx", "metadata": metadata}}}
    (folder / "export.json").write_text(json.dumps(manifest))


@pytest.fixture
def exported(folder) -> Path:
    """The saved model's folder with an export in it, `onnx`."""
    save_export(folder, "onnx", save_fake_program)
    return folder


PROGRAM = {"model.onnx", "model.onnx.data"}
EXPORT = {"export.json", "export_info.json", "config.json", "preprocessor_config.json", "configuration_van.py"}


def test_exports_go_with_their_model_in_the_same_commit(hub, runner, exported, model_files, tmp_path):
    before = {path: path.read_bytes() for path in exported.glob("onnx/*")}
    mean_iou = {"num_pictures": 64, "model": 0.7204, "export": 0.7187}
    save_export(
        exported,
        "int8-512",
        save_fake_program,
        {"agreement": 0.98, "mean_iou": mean_iou},
        **{"size": (512, 768), "label_maps": True, "int8": {"dataset": "boxes", "num_pictures": 8, "seed": 0}},
    )
    done = runner.push(exported, "alice/van")
    assert done.status == 0, done.err
    assert len(hub.repositories["alice/van"].history()) == 2
    files = hub.repositories["alice/van"].files()
    code = {path.name for path in exported.glob("onnx/*.py")} - {"notes.py"}
    for folder in ("onnx", "int8-512"):
        sent = {path.removeprefix(f"{folder}/") for path in files if path.startswith(f"{folder}/")}
        assert sent == PROGRAM | EXPORT | code
        for name in PROGRAM | code | {"config.json"}:
            assert files[f"{folder}/{name}"] == (exported / folder / name).read_bytes()
    assert files.keys() >= model_files

    # No path of this machine is told, and what transformers reads stays as it was.
    assert not any(str(tmp_path).encode() in content for content in files.values())
    assert json.loads(files["onnx/export_info.json"])["source"]["model"] == "model"
    sent, kept = (json.loads(text) for text in (files["onnx/export.json"], before[exported / "onnx" / "export.json"]))
    kept["components"]["model"]["metadata"]["note"] = "log.txt"
    assert sent == kept
    assert before == {path: path.read_bytes() for path in exported.glob("onnx/*")}

    card = files["README.md"].decode()
    assert (
        "| `onnx` | `onnx` | float32 | free | scores | the same label for 99.9990 % of the pixels | 0.3 MB |" in card
    )
    assert (
        "| `int8-512` | `onnx` | int8, the rest float32 | 512x768 | label maps | mean IoU on 64 pictures 72.04 % ->"
        " 71.87 % | 0.3 MB |" in card
    )
    assert 'load_model("alice/van/int8-512")' in card and "runs any code" not in card
    assert "Nothing has changed" in runner.push(exported, "alice/van").out


def test_dry_run_lists_exports(unconnected, exported):
    done = unconnected.push(exported, "alice/van", "--dry_run", token=None)
    assert done.status == 0, done.err
    names = {line.split()[0] for line in done.out.splitlines() if "B  " in line}
    assert names >= {f"onnx/{name}" for name in PROGRAM | EXPORT} and "onnx/notes.py" not in names
    row = next(line for line in done.out.splitlines() if line.startswith("onnx/export_info.json"))
    assert row.endswith("a copy, paths cut to their last part")


def test_an_export_of_an_earlier_release_does_not_stay_beside_the_new(hub, runner, exported):
    runner.push(exported, "alice/van")
    repository = hub.repositories["alice/van"]
    for path in ("onnx/mine.txt", "samples/config.json"):
        repository.edit(path, b"mine")
    shutil.rmtree(exported / "onnx")
    done = runner.push(exported, "alice/van")
    assert done.status == 0 and "no such files: onnx/config.json, onnx/configuration_van.py, " in done.out
    assert {path for path in repository.files() if "/" in path} == {"onnx/mine.txt", "samples/config.json"}
    assert b"Other runtimes" not in repository.files()["README.md"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: save_model(folder.parent, seed=1), "onnx is an export of other weights than the model has"),
        (lambda folder: (folder / "model.onnx").unlink(), "has no model.onnx, which its export.json names"),
        (lambda folder: os.truncate(folder / "model.onnx.data", 50), "the program in "),
        (lambda folder: (folder / "model.onnx.data").unlink(), "the program in "),
        (lambda folder: (folder / "export.json").unlink(), "export.json cannot be read"),
        (lambda folder: (folder / "export.json").write_text('{"components": {"model": 3}}'), "export.json is damaged"),
        (lambda folder: change(folder, "export_info.json", version=2), "is of version 2"),
        (lambda folder: change(folder, "export_info.json", source={}), "does not tell what the program was made of"),
        (
            lambda folder: change(folder, "export_info.json", check={}),
            "onnx/export_info.json: check.agreement is miss",
        ),
        (lambda folder: (folder / "export_info.json").write_text("{"), "export_info.json cannot be read"),
        (lambda folder: (folder / "configuration_van.py").unlink(), "has no configuration_van.py, which its auto_map"),
        (lambda folder: (folder / "configuration_van.py").write_text("def ("), "configuration_van.py is damaged"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json cannot be read"),
        (lambda folder: folder.rename(folder.with_name("my onnx")), "my onnx holds an export: rename it"),
    ],
)
def test_what_is_no_whole_export_of_the_model_is_refused(unconnected, exported, spoil, message):
    spoil(exported / "onnx")
    done = unconnected.push(exported, "alice/van", "--dry_run")
    assert (done.status, done.out) == (2, "")
    assert message in last_line(done) and last_line(done).startswith("error: ")


LOAD_EXPORT = """
import torch
from van_hf.exports import ExportedSegmentationModel
model = ExportedSegmentationModel.from_pretrained("alice/van", subfolder="program", trust_pickle=True)
torch.save(model(torch.load("pixels.pt")).logits, "saved.pt")
"""


@needs_exporters
def test_a_fresh_process_loads_an_export_by_name(hub, runner, folder, tmp_path):
    model = VanForSemanticSegmentation.from_pretrained(folder).eval()
    exported = export_model(model, "torch_export", size=(64, 96))
    save_export(
        folder,
        "program",
        exported.save_pretrained,
        **{"format": "torch_export", "size": (64, 96), "packages": package_versions("torch_export")},
    )
    done = runner.push(folder, "alice/van")
    assert done.status == 0, done.err
    files = hub.repositories["alice/van"].files()
    assert b"modeling_van.py" not in files["program/model.pt2"]  # nor the folder that it lies in
    card = files["README.md"].decode()
    assert 'load_model("alice/van/program", trust_pickle=True)' in card
    assert "Loading `torch_export` runs any code" in card

    pixel_values = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    torch.save(pixel_values, tmp_path / "pixels.pt")
    subprocess.run(
        [sys.executable, "-c", LOAD_EXPORT],
        cwd=tmp_path,
        env=hub.environment(tmp_path / "empty_cache") | {"PYTHONPATH": str(EXAMPLES.parent)},
        check=True,
    )
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "saved.pt"), model(pixel_values).logits, rtol=0, atol=1e-4)


def change(folder: Path, name: str, **fields: object) -> None:
    """Sets fields of a JSON file."""
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))


def shard(folder: Path, weight_map: object) -> None:
    """Puts an index in the place of the weights."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json cannot be read"),
        (lambda folder: (folder / "decode_heads.py").unlink(), "decode_heads.py"),
        (lambda folder: (folder / "modeling_van.py").write_text("def ("), "modeling_van.py is damaged"),
        (lambda folder: (folder / "modeling_van.py").unlink(), "has no modeling_van.py, which its auto_map names"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "van"}'), "has no auto_map"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "vit"}'), "must be 'van'"),
        (lambda folder: (folder / "results.json").write_text("{}"), "results.json: mean_iou is missing"),
        (shutil.rmtree, "is neither a file nor a folder"),
        (lambda folder: os.truncate(folder / "model.safetensors", 50_000), "model.safetensors is damaged"),
        (lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs"), "is damaged"),
        (lambda folder: change(folder, "config.json", auto_map=["modeling_van.Van"]), "auto_map must be an object"),
        (lambda folder: change(folder, "config.json", auto_map={"AutoModel": 3}), "auto_map must be an object"),
        (lambda folder: shard(folder, ["model.safetensors"]), "weight_map must be an object"),
        (lambda folder: shard(folder, {"w": "../../secret.safetensors"}), "'../../secret.safetensors'"),
        (lambda folder: shard(folder, {"w": "model-00001-of-00002.safetensors"}), "has no model-00001-of-00002"),
    ],
)
def test_what_is_no_whole_model_is_refused(unconnected, folder, spoil, message):
    spoil(folder)
    done = unconnected.push(folder, "alice/van", "--dry_run")
    assert (done.status, done.out) == (2, "")
    assert message in last_line(done) and done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("evaluated", "message"),
    [
        ({"name": "nowhere"}, "holds an evaluation of 'nowhere', which is not a model's folder here"),
        ({"name": None}, "results.json names no model"),
        ("van", "results.json names no model"),
        (None, "results.json names no model"),
        ({"name": "broken"}, "broken cannot be used"),
        ({"name": "other"}, "is a model of the type 'vit'; it must be 'van'"),
    ],
)
def test_an_evaluation_without_its_model_is_refused(unconnected, folder, tmp_path, evaluated, message):
    for name in ("broken", "other"):
        shutil.copytree(folder, unconnected.folder / name, dirs_exist_ok=True)
    os.truncate(unconnected.folder / "broken" / "model.safetensors", 50_000)
    (unconnected.folder / "other" / "config.json").write_text('{"model_type": "vit"}')
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    results = json.loads((folder / "results.json").read_text()) | {"model": evaluated}
    (evaluation / "results.json").write_text(json.dumps(results))
    done = unconnected.push(evaluation, "alice/van", "--dry_run")
    assert (done.status, done.out) == (2, "")
    assert message in last_line(done) and done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--released", "van_b7"), "--released must be one of van_b0, "),
        (("--id2label", "nowhere.json"), "nowhere.json cannot be read as JSON"),
        (("--id2label", "."), "cannot be read as JSON"),
    ],
)
def test_bad_arguments_about_a_checkpoint(unconnected, fixtures_dir, options, message):
    done = unconnected.push(fixtures_dir / "seed_fpn_van_tiny.pth", "alice/van", "--dry_run", *options)
    assert (done.status, done.out) == (2, "")
    assert message in last_line(done)


@pytest.fixture
def spaces(hub, monkeypatch):
    """The Hub with Spaces too, under paths as the models'; a Space and a model may not have the same name here.

    `hub.sdks` are those that Spaces were created with, by their names without owners.
    """
    sdks = hub.sdks = {}

    def create_repo(handler: Handler) -> None:
        asked = json.loads(handler.body)
        if asked.get("type") == "space":
            if asked.get("sdk") not in ("gradio", "static"):
                raise Refused(400, '"sdk" must be one of gradio, docker, static')
            sdks[asked["name"]] = asked["sdk"]
        handler.create_repo()

    routes = [
        (
            method,
            f"/spaces{path}".replace("/spaces/api/models/", "/api/spaces/").replace(
                f"/spaces/api/{loopback_hub.KIND}/", "/api/spaces/"
            ),
            answer,
        )
        for method, path, answer in loopback_hub.ROUTES
        if loopback_hub.REPO in path
    ]
    routes = (("POST", "/api/repos/create", create_repo), *loopback_hub.ROUTES, *routes)
    monkeypatch.setattr(loopback_hub, "ROUTES", routes)
    return hub


def test_a_space_goes_with_its_model_in_a_commit_of_its_own(spaces, runner, saved, model_files):
    done = runner.push(saved, "alice/van", "--space", "alice/van-demo", "--private")
    assert done.status == 0, done.err
    assert spaces.repositories["alice/van"].files().keys() >= model_files
    space = spaces.repositories["alice/van-demo"]
    assert space.private and len(space.history()) == 2
    files = space.files()
    assert files["demo.py"] == (EXAMPLES / "demo.py").read_bytes()
    package = EXAMPLES.parent / "van_hf"
    code = {path.relative_to(package.parent).as_posix(): path.read_bytes() for path in package.rglob("*.py")}
    assert code.items() <= files.items() and "van_hf/data/ade20k_classes.json" in files
    assert not any("__pycache__" in path for path in files)

    assert b"'alice/van'" in files["app.py"]
    requirements = files["requirements.txt"].decode().splitlines()
    assert "torch>=2.6" in requirements and not any("pytest" in line or "van_hf" in line for line in requirements)
    metadata = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (metadata["sdk"], metadata["app_file"], metadata["models"]) == ("gradio", "app.py", ["alice/van"])
    assert metadata["python_version"] == "3.11"


def test_a_space_for_a_model_that_is_on_the_hub_already(spaces, runner, saved):
    arguments = ("push_to_hub.py", "--hub_model_id", "alice/van", "--space", "alice/van-demo")
    done = runner.run(*arguments)
    assert done.status == 2 and "there is no model alice/van for the Space to show" in last_line(done)
    assert spaces.repositories == {}

    runner.push(saved, "alice/van")
    assert runner.run(*arguments).status == 0
    assert "Nothing has changed" in runner.run(*arguments).out
    space = spaces.repositories["alice/van-demo"]
    assert len(space.history()) == 2
    assert len(spaces.repositories["alice/van"].history()) == 2

    space.edit("README.md", space.files()["README.md"].replace(b"Segments", b"My page segments"))
    space.edit("van_hf/old.py", b"")
    space.edit("mine.py", b"")
    done = runner.run(*arguments)
    assert "Deleted there, as this release has no such files: van_hf/old.py\n" in done.out
    assert "Kept README.md" in done.out and b"My page" in space.files()["README.md"]
    assert "mine.py" in space.files()


def test_dry_run_of_a_space(unconnected, saved):
    done = unconnected.push(saved, "alice/van", "--space", "alice/van-demo", "--dry_run", token=None)
    assert done.status == 0, done.err
    model, space = done.out.split("the Space alice/van-demo, in one commit")
    names = {line.split()[0] for line in space.splitlines() if line}
    assert "model.safetensors" in model and "model.safetensors" not in names
    assert names >= {"app.py", "demo.py", "requirements.txt", "van_hf/model/modeling_van.py"}


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--space", "van-demo"), 2, "--space must be of the form owner/name, got 'van-demo'"),
        (("--space", "bob/demo"), 1, "you may not write to bob/demo: the token is for alice"),
        ((), 2, "name a checkpoint or a folder, or a --space"),
        (("--static_space", "alice/page"), 2, "--static_space and --page are of use together only"),
        (("--page", "page"), 2, "--static_space and --page are of use together only"),
        (("--static_space", "page", "--page", "page"), 2, "--static_space must be of the form owner/name, got 'page'"),
        (("--space", "alice/p", "--static_space", "alice/p", "--page", "p"), 2, "must differ, got 'alice/p' for both"),
    ],
)
def test_what_cannot_be_a_space(spaces, runner, options, status, message):
    done = runner.run("push_to_hub.py", "--hub_model_id", "alice/van", *options)
    assert done.status == status and message in last_line(done)
    assert spaces.repositories == {}


@pytest.fixture
def page(tmp_path) -> Path:
    """A folder as web_demo.py writes it, and what must not be released."""
    page = tmp_path / "page"
    for name in ("model", "onnxruntime", "others"):
        (page / name).mkdir(parents=True)
    for name in (".secret", "notes.txt", "others/page.js"):
        (page / name).write_text("not for the Hub")
    for name in ("page.css", "page.js"):
        (page / name).write_text(f"/* {name} */")
    (page / "index.html").write_text("<title>Segmentation</title>\n")
    (page / "model.json").write_text('{"labels": ["road/street/way"]}\n')
    (page / "onnxruntime" / "ort.wasm").write_bytes(b"\0asm")
    (page / "model" / "model.onnx").write_bytes(b"\0program")
    return page


PAGE = {"index.html", "model.json", "page.css", "page.js", "model/model.onnx", "onnxruntime/ort.wasm"}


def test_a_page_goes_into_a_static_space(spaces, runner, saved, page):
    options = ("--static_space", "alice/van-page", "--page", page)
    done = runner.push(saved, "alice/van", "--space", "alice/van-demo", "--private", *options)
    assert done.status == 0, done.err
    assert spaces.sdks == {"van-demo": "gradio", "van-page": "static"}
    space = spaces.repositories["alice/van-page"]
    assert space.private and len(space.history()) == 2
    files = space.files()
    assert files.keys() == PAGE | {"README.md", ".gitattributes"}
    assert all(files[name] == (page / name).read_bytes() for name in PAGE)
    metadata = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (metadata["sdk"], metadata["app_file"], metadata["models"]) == ("static", "index.html", ["alice/van"])
    # Without these there are no threads in the browser.
    assert metadata["custom_headers"]["cross-origin-embedder-policy"] == "require-corp"

    shutil.rmtree(page / "onnxruntime")
    space.edit("mine.html", b"")
    done = runner.run("push_to_hub.py", "--hub_model_id", "alice/van", "--private", *options)
    assert done.status == 0 and "this release has no such files: onnxruntime/ort.wasm\n" in done.out
    assert space.files().keys() == PAGE - {"onnxruntime/ort.wasm"} | {"mine.html", "README.md", ".gitattributes"}
    assert b"custom_headers" not in space.files()["README.md"]
    assert len(spaces.repositories["alice/van"].history()) == 2


def test_dry_run_of_a_page(unconnected, page):
    options = ("--static_space", "alice/van-page", "--page", page, "--dry_run")
    done = unconnected.run("push_to_hub.py", "--hub_model_id", "alice/van", *options, token=None)
    assert done.status == 0, done.err
    assert "the static Space alice/van-page, in one commit" in done.out
    names = {line.split()[0] for line in done.out.splitlines() if "B  " in line}
    assert names == PAGE | {"README.md"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda page: (page / "index.html").unlink(), "has no index.html: it is no page that examples/web_demo.py"),
        (lambda page: (page / "model.json").unlink(), "has no model.json: it is no page"),
        (lambda page: (page / "model.json").write_text("{"), "model.json cannot be read as JSON"),
        (lambda page: (page / "index.html").write_text(f"<a href='{page}/x'>"), "index.html, line 1, names a path of"),
        (shutil.rmtree, "has no index.html"),
    ],
)
def test_what_is_no_page_is_refused_before_anything_is_sent(spaces, runner, saved, page, spoil, message):
    spoil(page)
    done = runner.push(saved, "alice/van", "--static_space", "alice/van-page", "--page", page)
    assert (done.status, done.out) == (2, "") and message in last_line(done)
    assert spaces.repositories == {}


TRAINING = (
    *("--recipe", "scenes", "--model_size", "mini", "--decode_head", "semantic_fpn", "--crop_size", "32"),
    *("--max_train_steps", "1", "--total_train_batch_size", "2", "--dataloader_num_workers", "0"),
    *("--push_to_hub", "--hub_model_id", "alice/boxes", "--hub_private_repo"),
)


def test_training_pushes_what_it_leaves(hub, runner, boxes, model_files):
    arguments = ("--dataset", boxes, *TRAINING, "--output_dir", "boxes")
    done = runner.run("train_seg.py", *arguments, token="hf_alice_read")
    assert done.status == 2 and "- --push_to_hub: the token can only read" in done.err
    assert not (runner.folder / "boxes").exists()

    hub.fail("POST", "/commit/", 503)
    done = runner.run("train_seg.py", *arguments)
    assert done.status == 1 and "The model is whole in boxes" in done.err
    script, *command = last_line(done).removeprefix("python examples/").split()
    assert hub.repositories["alice/boxes"].files().keys() == {".gitattributes"}

    hub.faults.clear()
    assert runner.run(script, *command).status == 0
    repository = hub.repositories["alice/boxes"]
    assert repository.private
    pictures = {"training_curves.png", "predictions.png", "example.png"}
    assert repository.files().keys() == model_files | pictures | {"README.md", "results.json", ".gitattributes"}
    assert json.loads((runner.folder / "boxes" / "results.json").read_text())["dataset"]["name"] == str(boxes)
    assert not any(str(boxes.parent).encode() in content for content in repository.files().values())


@pytest.fixture
def two_releases(hub, runner, tmp_path) -> tuple[list[VanForSemanticSegmentation], str]:
    """`alice/van` with a first model, of which the commit is returned, and a second, also on the branch trial."""
    models = [save_model(tmp_path / str(seed), seed) for seed in (0, 1)]
    for source, options in (("0", ()), ("1", ("--revision", "trial")), ("1", ())):
        assert runner.push(tmp_path / source, "alice/van", *options).status == 0
    return models, hub.repositories["alice/van"].history()[1].sha


@pytest.mark.parametrize("installed", [False, True])
def test_a_fresh_process_loads_by_name_and_revision(hub, two_releases, tmp_path, installed):
    (first, second), sha = two_releases
    pixels = np.random.default_rng(0).integers(0, 256, (50, 71, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    torch.save(random_pixel_values(), tmp_path / "pixels.pt")
    arguments = {"installed": installed, "revisions": ["main", "trial", sha], "output": "saved.pt"}
    subprocess.run(
        [sys.executable, PROGRAMS / "load_by_name.py", json.dumps(arguments)],
        cwd=tmp_path,
        env=hub.environment(tmp_path / "empty_cache"),
        check=True,
    )
    saved = torch.load(tmp_path / "saved.pt")

    inputs = VanImageProcessor.from_pretrained(tmp_path / "1")(Image.fromarray(pixels), return_tensors="pt")
    with torch.no_grad():
        outputs = second(**inputs)
        assert torch.equal(saved["main"], outputs.logits)
        assert torch.equal(saved["trial"], outputs.logits)
        assert torch.equal(saved[sha], first(**inputs).logits)
        if installed:
            assert torch.equal(saved["named class"], outputs.logits)
            assert torch.equal(saved["backbone"], second.van(random_pixel_values()).last_hidden_state)
    assert not torch.equal(saved["main"], saved[sha])
    processor = VanImageProcessor.from_pretrained(tmp_path / "1")
    labels = processor.post_process_semantic_segmentation(outputs, target_sizes=[(50, 71)])[0]
    assert saved["segments"].keys() == {NAMES[idx] for idx in labels.unique().tolist()}
    for label, mask in saved["segments"].items():
        assert torch.equal(torch.tensor(mask).view(50, 71) > 0, labels == second.config.label2id[label])
