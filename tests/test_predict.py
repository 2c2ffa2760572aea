# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import predict
import pytest
import torch
from conftest import tiny_config
from PIL import Image

from van_hf import VanForImageClassification, VanForSemanticSegmentation, VanImageProcessor
from van_hf.inference import RATIOS, multi_scale_flip_inference, whole_inference
from van_hf.visualization import overlay

NAMES = {0: "sky", 1: "tree", 2: "road", 3: "house"}
PALETTE = [[120, 180, 240], [30, 140, 40], [90, 90, 90], [200, 60, 50]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model whose random weights tell all four classes apart."""
    torch.manual_seed(0)
    model = VanForSemanticSegmentation(tiny_config("semantic_fpn", id2label=NAMES, palette=PALETTE)).eval()
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    VanImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return VanForSemanticSegmentation.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def image_processor(folder):
    return VanImageProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Three pictures, one of them in a folder of its own, and one that its EXIF tag turns by a quarter."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "day").mkdir()
    rng = np.random.default_rng(0)
    for name, size in {"a.png": (12, 9), "b.c.JPG": (10, 12), "day/a.png": (8, 8)}.items():
        noise = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        exif = Image.Exif()
        if name.endswith("JPG"):
            exif[0x0112] = 6
        noise.resize((size[1] * 8, size[0] * 8)).save(folder / name, exif=exif)
    return folder


def run(*arguments: object) -> int:
    return predict.main([*map(str, arguments), "--device", "cpu"])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def read_upright(path: Path, image_processor) -> torch.Tensor:
    with Image.open(path) as image:
        return image_processor.process_image(image, do_convert_rgb=True)


def test_all_outputs_of_a_folder(folder, model, image_processor, pictures, tmp_path, capsys):
    kinds = ("overlays", "masks", "shares")
    assert run(folder, pictures, "--output_dir", tmp_path, "--recursive", "--save", *kinds) == 0
    assert "3 of 3 pictures segmented" in capsys.readouterr().out
    expected_files = [f"{kind}/{name}" for kind in ("masks", "overlays") for name in ("a.png", "b.c.png", "day/a.png")]
    assert files(tmp_path) == [*expected_files, "shares/a.json", "shares/b.c.json", "shares/day/a.json"]

    picture = read_upright(pictures / "b.c.JPG", image_processor)
    assert picture.shape == (3, 96, 80)  # turned: the file's is 80 x 96
    inputs = image_processor(picture, return_tensors="pt")
    labels = whole_inference(model, inputs["pixel_values"], picture.shape[-2:], argmax=True)[0].numpy()
    mask = Image.open(tmp_path / "masks/b.c.png")
    assert mask.mode == "P" and (np.asarray(mask) == labels).all()
    assert len(np.unique(labels)) > 1
    assert mask.getpalette()[:12] == [channel for color in PALETTE for channel in color]

    drawn = Image.open(tmp_path / "overlays/b.c.png")
    upright = Image.fromarray(picture.permute(1, 2, 0).numpy())
    expected = np.asarray(overlay(upright, labels, PALETTE))
    assert (np.asarray(drawn)[: picture.shape[1], : picture.shape[2]] == expected).all()
    assert drawn.height > picture.shape[1]

    shares = json.loads((tmp_path / "shares/b.c.json").read_text())
    assert (shares["height"], shares["width"]) == labels.shape
    assert shares["image"] == str(pictures / "b.c.JPG")
    assert {entry["label"]: entry["share"] for entry in shares["classes"]} == {
        NAMES[label]: (labels == label).mean() for label in np.unique(labels)
    }
    ordered = [entry["share"] for entry in shares["classes"]]
    assert ordered == sorted(ordered, reverse=True)


def test_broken_pictures_are_left_out(folder, pictures, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    whole = (pictures / "a.png").read_bytes()
    (mixed / "1.png").write_bytes(whole[: len(whole) // 2])
    (mixed / "2.jpg").write_text("no picture")
    (mixed / "3.png").write_bytes(whole)
    assert run(folder, mixed, "--output_dir", tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert f"{mixed / '1.png'} is left out: OSError: " in printed.err
    assert f"{mixed / '2.jpg'} is left out: UnidentifiedImageError: " in printed.err
    assert "1 of 3 pictures segmented" in printed.out
    assert files(tmp_path / "out") == ["overlays/3.png"]


def test_outputs_that_cannot_be_written_stop_nothing_else(folder, pictures, tmp_path, capsys):
    source = (pictures / "a.png").read_bytes()
    odd = tmp_path / "odd"
    odd.mkdir()
    long, too_long = "a" * 250, "b" * 251  # a name has at most 255 bytes, ".json" among them
    for name in (long, too_long, "line\nbreak", "$x_"):
        (odd / f"{name}.png").write_bytes(source)
    kinds = ("overlays", "masks", "shares")
    out = tmp_path / "out"
    assert run(folder, odd, "--output_dir", out, "--save", *kinds) == 1
    printed = capsys.readouterr()
    assert f"{odd / too_long}.png: {out / 'shares' / too_long}.json is left out: OSError: " in printed.err
    assert printed.err.count("is left out") == 1
    assert "3 of 4 pictures segmented" in printed.out
    for kind, suffix in predict.SUFFIXES.items():
        names = {long, "line\nbreak", "$x_"} | ({too_long} if kind != "shares" else set())
        assert {path.name for path in (out / kind).iterdir()} == {name + suffix for name in names}


@pytest.mark.slow
def test_names_that_are_no_utf8(folder, pictures, tmp_path):
    """In a process of its own, whose output takes UTF-8 only."""
    source, out = os.fsencode(tmp_path / "caf") + b"\xe9.png", os.fsencode(tmp_path) + b"/\xe9"
    Path(os.fsdecode(source)).write_bytes((pictures / "a.png").read_bytes())
    command = [sys.executable, predict.__file__, folder, source, "--output_dir", out, "--save", *predict.SUFFIXES]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == f"1 of 1 pictures segmented: overlays, masks, shares in {tmp_path}/\\udce9\n"
    shares = json.loads(Path(os.fsdecode(out + b"/shares/caf\xe9.json")).read_text(encoding="utf-8"))
    assert shares["image"] == f"{tmp_path}/caf\\udce9.png"


@pytest.mark.parametrize("name", ["two\nlines", "$\\frac{$", "", "_", "x" * 3000, "\0", "日本"])
def test_labels_of_odd_names(folder, pictures, tmp_path, name):
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"id2label": NAMES | {0: name}, "label2id": {name: 0, "tree": 1, "road": 2, "house": 3}}
    (model / "config.json").write_text(json.dumps(config))
    assert run(model, pictures / "a.png", "--output_dir", tmp_path / "out", "--save", *predict.SUFFIXES) == 0
    shares = json.loads((tmp_path / "out/shares/a.json").read_text(encoding="utf-8"))
    assert name in [entry["label"] for entry in shares["classes"]]
    assert Image.open(tmp_path / "out/overlays/a.png").width < 2000


def test_outputs_are_replaced_only_when_asked(folder, pictures, tmp_path, capsys):
    arguments = (folder, pictures / "a.png", "--output_dir", tmp_path, "--save", "masks")
    assert run(*arguments) == 0
    (tmp_path / "masks/a.png").write_text("precious")
    assert run(*arguments) == 2
    assert f"{tmp_path / 'masks/a.png'} is there already" in capsys.readouterr().err
    assert (tmp_path / "masks/a.png").read_text() == "precious"
    assert run(*arguments, "--overwrite") == 0
    assert Image.open(tmp_path / "masks/a.png").mode == "P"


@pytest.mark.parametrize(
    ("options", "ratios", "flip"),
    [(("--multi_scale", "--flip"), RATIOS, True), (("--multi_scale",), RATIOS, False), (("--flip",), (1.0,), True)],
)
def test_multi_scale_and_flip(folder, model, image_processor, pictures, tmp_path, options, ratios, flip):
    assert run(folder, pictures / "a.png", "--output_dir", tmp_path, "--save", "masks", *options) == 0
    picture = read_upright(pictures / "a.png", image_processor)
    labels = multi_scale_flip_inference(model, picture, ratios, flip, image_processor, argmax=True)[0]
    assert (np.asarray(Image.open(tmp_path / "masks/a.png")) == labels.numpy()).all()


def test_lower_precision_is_near(folder, pictures, tmp_path):
    masks = []
    for dtype in ("float32", "bfloat16"):
        arguments = (folder, pictures / "a.png", "--output_dir", tmp_path / dtype, "--save", "masks", "--dtype", dtype)
        assert run(*arguments) == 0
        masks.append(np.asarray(Image.open(tmp_path / dtype / "masks/a.png")))
    assert 0.8 < (masks[0] == masks[1]).mean() < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [(), ("--multi_scale",), ("--dtype", "bfloat16")])
def test_checkpoints_of_half_precision(folder, model, pictures, tmp_path, dtype, options):
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    VanForSemanticSegmentation.from_pretrained(folder).to(dtype).save_pretrained(half)
    assert json.loads((half / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    masks = []
    for name in (folder, half):
        out = tmp_path / f"of {name.name}"
        assert run(name, pictures / "a.png", "--output_dir", out, "--save", "masks", *options) == 0
        masks.append(np.asarray(Image.open(out / "masks/a.png")))
    assert (masks[0] == masks[1]).mean() > 0.9


def test_pictures_are_found_by_their_place(pictures, tmp_path):
    find = predict.find_images
    assert [str(name) for name in find([pictures], False, tmp_path)] == ["a", "b.c"]
    assert list(find([pictures, pictures / "a.png"], True, tmp_path)) == [Path("a"), Path("b.c"), Path("day/a")]
    assert list(find([pictures], True, pictures / "day")) == [Path("a"), Path("b.c")]
    with pytest.raises(ValueError, match="day/a.png would both be named a;"):
        find([pictures / "a.png", pictures / "day/a.png"], False, tmp_path)
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        find([pictures / "none.png"], False, tmp_path)
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".a.png").touch()
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(ValueError, match="holds no picture .*--recursive"):
        find([tmp_path], False, tmp_path / "out")


@pytest.mark.parametrize("arguments", [("--alpha", "1.5"), ("--save", "pdf"), ("--dtype", "int8")])
def test_usage_errors(arguments, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run("model", "picture.png", "--output_dir", tmp_path, *arguments)
    assert stopped.value.code == 2


def test_models_that_cannot_segment_are_refused(folder, pictures, tmp_path, capsys):
    VanForImageClassification(tiny_config()).save_pretrained(tmp_path / "classifier")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "segformer"}')
    image = pictures / "a.png"
    for model, message in {
        tmp_path / "classifier": "has no weights for",
        foreign: "type 'segformer'; it must be 'van'",
        tmp_path / "nowhere": "nowhere",
    }.items():
        assert run(model, image, "--output_dir", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
    assert predict.main([str(folder), str(image), "--output_dir", str(tmp_path / "out"), "--device", "tpu9"]) == 2
    assert "the device tpu9 cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_models_are_an_error_of_one_line(folder, pictures, tmp_path, capsys):
    for name, content in {
        "model.safetensors": (folder / "model.safetensors").read_bytes()[:-1000],
        "config.json": b"3",
        "preprocessor_config.json": b"[]",
    }.items():
        model = tmp_path / name
        shutil.copytree(folder, model)
        (model / name).write_bytes(content)
        capsys.readouterr()
        assert run(model, pictures / "a.png", "--output_dir", tmp_path / "out") == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(errors) == 1 and str(model) in errors[0] and "cannot be used" in errors[0]
    assert not (tmp_path / "out").exists()


def test_output_folders_that_cannot_be_made(folder, pictures, tmp_path, capsys):
    (tmp_path / "file").touch()
    for output_dir in (tmp_path / "file", tmp_path / "file" / "out"):
        assert run("no-model", pictures / "a.png", "--output_dir", output_dir) == 2
        assert f"{tmp_path / 'file'} is not a folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("script", ["predict", "demo"])
def test_scripts_need_neither_accelerate_nor_datasets(script):
    if script == "demo":
        pytest.importorskip("gradio")
    program = Path(__file__).with_name("programs") / "import_without.py"
    command = [sys.executable, program, script, "accelerate", "datasets", "evaluate"]
    paths = os.pathsep.join(str(Path(__file__).parents[1] / name) for name in ("", "examples"))
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr


def test_pictures_that_are_programs_are_left_out(folder, tmp_path, capsys):
    """PostScript, which Pillow has another program run."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    assert run(folder, tmp_path / "a.png", "--output_dir", tmp_path / "out") == 1
    assert "cannot identify image file" in capsys.readouterr().err


def test_an_output_folder_that_is_a_circle_of_links(folder, pictures, tmp_path, capsys):
    (tmp_path / "out").symlink_to("out")
    assert run(folder, pictures, "--output_dir", tmp_path / "out" / "more") == 2
    assert "error: " in capsys.readouterr().err
