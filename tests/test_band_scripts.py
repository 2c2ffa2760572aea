# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The scripts on pictures of bands, from training to prediction."""

import json
import shutil
import sys
from pathlib import Path

import band_statistics
import datasets
import eval_seg
import inspect_dataset
import numpy as np
import predict
import predict_raster
import pytest
import rasterio
import show_predictions
import torch
import train_arguments
import train_seg
from benchmarks.models import random_model
from conftest import tiny_config
from PIL import Image
from safetensors.torch import load_file

from van_hf import VanForSemanticSegmentation, VanImageProcessor
from van_hf import inference as van_inference
from van_hf.data import fields, read_bands
from van_hf.inference import load_bands, load_model
from van_hf.model_cards import model_card_for_folder

SLOW_FIXTURES = ("trained",)

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
TRAINING = (
    *("--recipe", "scenes", "--model_size", "mini", "--max_train_steps", 4, "--total_train_batch_size", 2),
    *("--crop_size", 64, "--eval_steps", 2, "--dataloader_num_workers", 0),
)
NUM_PICTURES = {"training": 6, "validation": 3}


@pytest.fixture(scope="module")
def farmland(tmp_path_factory) -> Path:
    """A folder of pictures of four bands of 16 bits, as files."""
    folder = tmp_path_factory.mktemp("data") / "farmland"
    for number, (split, count) in enumerate(NUM_PICTURES.items()):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            pixels, labels, _ = fields.paint_land(np.random.default_rng([7, number, index]))
            content = fields.encode_geotiff(pixels[:96, :128], index)["bytes"]
            (folder / "images" / split / f"{index}.tif").write_bytes(content)
            Image.fromarray(labels[:96, :128]).save(folder / "annotations" / split / f"{index}.png")
    (folder / "id2label.json").write_text(json.dumps(fields.CLASS_NAMES))
    return folder


def train(monkeypatch, *arguments: object) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(sys, "argv", ["train_seg.py", *map(str, arguments)])
    train_seg.main()


@pytest.fixture(scope="module")
def trained(farmland, tmp_path_factory) -> Path:
    """A model of the bands 4, 1, 2 and 3, which are drawn as 3, 2, 1."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    with pytest.MonkeyPatch.context() as monkeypatch:
        bands = ("--bands", 4, 1, 2, 3, "--rgb_bands", 3, 2, 1)
        train(monkeypatch, "--dataset", farmland, *bands, *TRAINING, "--output_dir", folder)
    return folder


def test_a_model_is_trained_with_the_statistics_of_its_bands(trained, farmland, tmp_path, capsys):
    model, image_processor = load_model(str(trained), "cpu")
    assert model.config.num_channels == 4 and image_processor.bands == [4, 1, 2, 3]
    assert image_processor.drawn_bands == [3, 2, 1]
    measured = tmp_path / "bands.json"
    arguments = ["--dataset", str(farmland), "--bands", "1", "2", "3", "4", "--output", str(measured)]
    assert band_statistics.main(arguments) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == ["band", "1", "2", "3", "4"]
    statistics = json.loads(measured.read_text())
    places = [statistics["bands"].index(band) for band in image_processor.bands]
    assert list(image_processor.image_mean) == [statistics["mean"][place] for place in places]
    assert list(image_processor.image_std) == [statistics["std"][place] for place in places]
    assert {path.name for path in trained.iterdir()} >= {"example.tif", "predictions.png", "results.json"}
    assert not (trained / "example.png").exists()


def test_every_script_reads_the_bands_of_the_model(trained, farmland, tmp_path, monkeypatch, capsys):
    picture = farmland / "images" / "validation" / "0.tif"
    model, image_processor = load_model(str(trained), "cpu")
    expected = van_inference.predict(model, image_processor, read_bands(picture, [4, 1, 2, 3])).numpy()
    save = ("--save", "masks", "overlays")
    assert predict.main([str(trained), str(picture), "--output_dir", str(tmp_path / "p"), *save]) == 0
    with Image.open(tmp_path / "p" / "masks" / "0.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), expected)
    with Image.open(tmp_path / "p" / "overlays" / "0.png") as overlay:
        assert overlay.mode == "RGB" and np.asarray(overlay).std() > 20

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    arguments = ["--model_name_or_path", trained, "--dataset", farmland, "--output_dir", tmp_path / "evaluated"]
    monkeypatch.setattr(sys, "argv", ["eval_seg.py", *map(str, arguments)])
    eval_seg.main()
    figures = [json.loads((folder / "results.json").read_text()) for folder in (trained, tmp_path / "evaluated")]
    assert figures[0]["mean_iou"] == figures[1]["mean_iou"]

    shown = tmp_path / "shown.png"
    assert show_predictions.main([str(trained), "--dataset", str(farmland), "--output", str(shown)]) == 0
    capsys.readouterr()
    other = ["--dataset", str(farmland), "--bands", "1", "2", "3", "4", "--output", str(shown)]
    assert show_predictions.main([str(trained), *other]) == 2
    assert "read with the bands [1, 2, 3, 4], but" in capsys.readouterr().err


def test_predict_raster_takes_the_bands_of_the_model(trained, farmland, tmp_path, capsys):
    picture = farmland / "images" / "validation" / "1.tif"
    values = read_bands(picture, [4, 1, 2, 3])
    with rasterio.open(picture) as dataset:
        profile, all_bands = dataset.profile, dataset.read()
    all_bands[:, 10:30, 20:50] = 0  # which is nodata
    all_bands[2, 60:70] = 0  # of one band alone
    scene = tmp_path / "scene.tif"
    with rasterio.open(scene, "w", **profile) as dataset:
        dataset.write(all_bands)
    output = tmp_path / "labels.tif"
    arguments = [trained, scene, "--output", output, "--crop_size", 64, "--stride", 40, "--blend", "none"]
    assert predict_raster.main([*map(str, arguments), "--device", "cpu"]) == 0
    with rasterio.open(output) as dataset:
        labels, nodata = dataset.read(1), dataset.nodata
    assert nodata == 255 and (labels[10:30, 20:50] == 255).all()
    model, image_processor = load_model(str(trained), "cpu")
    values = read_bands(scene, [4, 1, 2, 3])
    inputs = image_processor(values, do_resize=False, return_tensors="pt")["pixel_values"]
    expected = van_inference.slide_inference(model, inputs, 64, 40, argmax=True)[0].numpy()
    expected[values.isnan().all(dim=0).numpy()] = 255
    np.testing.assert_array_equal(labels, expected)

    grey = tmp_path / "grey.tif"
    Image.new("L", (64, 64)).save(grey)
    assert predict_raster.main([str(trained), str(grey), "--output", str(tmp_path / "g.tif")]) == 2
    assert "no band 4, 2, 3; the model takes the bands [4, 1, 2, 3]" in capsys.readouterr().err


def test_a_resumed_run_measures_nothing_again(trained, farmland, tmp_path, monkeypatch):
    folder = tmp_path / "resumed"
    shutil.copytree(trained / "checkpoint-2", folder / "checkpoint-2")
    monkeypatch.setattr(train_arguments, "measure_bands", None)
    bands = ("--bands", 4, 1, 2, 3, "--rgb_bands", 3, 2, 1)
    resume = ("--output_dir", folder, "--resume_from_checkpoint", "latest")
    train(monkeypatch, "--dataset", farmland, *bands, *TRAINING, *resume)
    first, second = (load_file(path / "model.safetensors") for path in (trained, folder))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_more_bands_are_added_to_a_trained_model(trained, farmland, tmp_path, monkeypatch, capsys):
    """Those that it has keep their filters and their statistics, in whatever order."""
    folder = tmp_path / "further"
    start = ("--model_name_or_path", trained, "--bands", 2, 4)
    arguments = [argument if argument != "mini" else None for argument in TRAINING]
    arguments = [a for a in arguments if a not in (None, "--model_size")]
    monkeypatch.setattr(train_arguments, "measure_bands", None)
    train(monkeypatch, "--dataset", farmland, *start, *arguments, "--learning_rate", 1e-30, "--output_dir", folder)
    assert "band 2 has those of channel 3, band 4 has those of channel 1" in capsys.readouterr().out
    name = "van.encoder.stages.0.embeddings.convolution.weight"
    old, new = (next(w for n, w in load_file(f / "model.safetensors").items() if n.endswith(name[4:]))
                for f in (trained, folder))  # fmt: skip
    torch.testing.assert_close(new, old[:, [2, 0]] * 2, rtol=1e-5, atol=1e-6)
    before, after = load_bands(str(trained)), load_bands(str(folder))
    assert after == before.select((2, 4))


def test_a_model_of_bands_becomes_one_for_rgb(trained, boxes, tmp_path, monkeypatch, capsys):
    arguments = [a for a in TRAINING if a not in ("--model_size", "mini")]
    given = ("--dataset", boxes, "--model_name_or_path", trained, "--max_train_steps", 1)
    train(monkeypatch, *given[:4], *arguments, *given[4:], "--output_dir", tmp_path / "rgb")
    assert "red the mean over all channels, green the mean" in capsys.readouterr().out
    assert load_model(str(tmp_path / "rgb"), "cpu")[0].config.num_channels == 3


def test_a_model_whose_processor_is_damaged_is_no_start(trained, farmland, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(trained, folder)
    (folder / "preprocessor_config.json").write_text('{"bands": [4, 1')
    arguments = [a for a in TRAINING if a not in ("--model_size", "mini")]
    given = ("--dataset", farmland, "--bands", 4, 1, "--model_name_or_path", folder, "--output_dir", tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        train(monkeypatch, *given, *arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"{folder}/preprocessor_config.json' is not a valid JSON file" in error


def test_a_model_for_rgb_gets_filters_for_its_bands(farmland, tmp_path, monkeypatch, capsys):
    start = tmp_path / "rgb"
    model = random_model(tiny_config("semantic_fpn"))
    model.save_pretrained(start)
    VanImageProcessor().save_pretrained(start)
    arguments = [a for a in TRAINING if a not in ("--model_size", "mini")]
    bands = ("--bands", 4, 3, 2, 1, "--rgb_bands", 3, 2, 1, "--learning_rate", 1e-30, "--max_train_steps", 1)
    folder = tmp_path / "bands"
    given = ("--dataset", farmland, "--model_name_or_path", start, *arguments)
    train(monkeypatch, *given, *bands, "--output_dir", folder)
    output = capsys.readouterr().out
    assert "band 3 has those of channel 1, band 2 has those of channel 2, band 1 has those of channel 3" in output
    assert "band 4 the mean over all channels" in output
    trained = VanForSemanticSegmentation.from_pretrained(folder)
    old, new = (m.state_dict() for m in (model, trained))
    (name,) = [name for name in old if name.endswith("stages.0.embeddings.convolution.weight")]
    mean = old[name].mean(dim=1, keepdim=True)
    torch.testing.assert_close(new[name], torch.cat([mean, old[name]], dim=1) * 0.75, rtol=1e-5, atol=1e-6)
    # On RGB the same script takes the weights as they are.
    assert load_bands(str(start)) is None and load_bands(str(folder)).bands == (4, 3, 2, 1)


def test_inspection_without_rasterio_says_what_to_install(farmland, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    given = ["--dataset", str(farmland), "--bands", "1", "--output_dir", str(tmp_path / "inspected")]
    assert inspect_dataset.main(given) == 2
    assert 'pip install "van_hf[raster]"' in capsys.readouterr().err and not (tmp_path / "inspected").exists()


def test_inspection_looks_at_the_bands(farmland, tmp_path, capsys):
    folder = tmp_path / "farmland"
    shutil.copytree(farmland, folder)
    training = folder / "images" / "training"
    (training / "0.tif").write_bytes((training / "0.tif").read_bytes()[:30_000])
    with rasterio.open(training / "1.tif") as dataset:
        profile, values = dataset.profile, dataset.read()
    with rasterio.open(training / "1.tif", "w", **profile) as dataset:
        dataset.write(np.zeros_like(values))
    with rasterio.open(training / "2.tif", "w", **profile | {"dtype": "float32", "predictor": 1}) as dataset:
        dataset.write(values.astype(np.float32) / 1e4)
    output = tmp_path / "inspected"
    arguments = ["--dataset", str(folder), "--output_dir", str(output), "--num_workers", "0"]
    inspect_dataset.main([*arguments, "--bands", "1", "2", "4"])
    report = json.loads((output / "report.json").read_text())
    found = {finding["kind"]: finding for finding in report["findings"]}
    unreadable = found["unreadable picture"]["files"]
    assert unreadable[0].startswith(str(training / "0.tif")) and "1.tif: none of the bands" in unreadable[1]
    assert "4 x uint16 (7), 4 x float32 (1)" in found["different bands"]["text"]
    assert report["splits"]["train"]["sizes"] == {"128x96": 5}
    assert {"contact_sheet.jpg", "training_crops.jpg"} <= {path.name for path in output.iterdir()}
    # Without bands what cannot be read leads to them.
    inspect_dataset.main([*arguments[:3], str(tmp_path / "rgb"), *arguments[4:]])
    report = json.loads((tmp_path / "rgb" / "report.json").read_text())
    found = {finding["kind"]: finding for finding in report["findings"]}
    assert "--bands" in str(found["unreadable picture"]["files"])


def test_card_of_a_model_of_bands_shows_how_it_is_used(trained):
    card = str(model_card_for_folder(trained, "someone/farmland"))
    assert "| 4, 1, 2, 3 |" in card and 'read_bands("picture.tif", image_processor.bands)' in card
    assert "transformers.pipeline" not in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--band_statistics", "bands.json"), "--band_statistics needs --bands"),
        (("--rgb_bands", 1), "--rgb_bands needs --bands"),
        (("--bands", 1, 1), "--bands: bands must be numbers of bands"),
        (("--bands", 1, 2, "--jpeg_draft"), "--jpeg_draft is for JPEG pictures"),
        (("--bands", 1, 2, "--rgb_bands", 3), "--rgb_bands must be one or three of the bands [1, 2]"),
        (("--bands", 1, 2, "--band_statistics", "none.json"), "--band_statistics: none.json"),
    ],
)
def test_arguments_about_bands_that_cannot_be_are_told(farmland, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train(monkeypatch, "--dataset", farmland, *TRAINING, *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_bands_that_the_pictures_have_not_are_told_before_training(farmland, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        train(monkeypatch, "--dataset", farmland, *TRAINING, "--bands", 1, 9, "--output_dir", folder)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "farmland train[0]" in error and "has 4 band(s), and no band 9" in error and "0.tif" in error


def test_models_and_processors_that_do_not_fit_are_told(tmp_path):
    random_model(tiny_config("semantic_fpn", num_channels=4)).save_pretrained(tmp_path)
    VanImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"takes 4 channel\(s\), and preprocessor_config.json has no bands"):
        load_model(str(tmp_path), "cpu")


@pytest.fixture(scope="module")
def hidden_boxes(tmp_path_factory) -> Path:
    """A folder of pictures of noise, in which boxes are seen in the fourth band alone."""
    folder = tmp_path_factory.mktemp("data") / "hidden"
    rng = np.random.default_rng(0)
    for split, count in (("training", 12), ("validation", 4)):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            labels = np.zeros((64, 64), dtype=np.uint8)
            for top, left in rng.integers(0, 40, (2, 2)):
                labels[top : top + 24, left : left + 24] = 1
            values = rng.integers(0, 3000, (4, 64, 64)).astype(np.uint16)
            values[3] += labels * np.uint16(2000)
            content = fields.encode_geotiff(values.transpose(1, 2, 0), index)["bytes"]
            (folder / "images" / split / f"{index}.tif").write_bytes(content)
            Image.fromarray(labels).save(folder / "annotations" / split / f"{index}.png")
    (folder / "id2label.json").write_text('["nothing", "box"]')
    return folder


@pytest.mark.slow
def test_what_only_the_fourth_band_shows_is_learnt_from_it_alone(hidden_boxes, monkeypatch, tmp_path):
    iou = {}
    for bands in ((1, 2, 3, 4), (1, 2, 3)):
        folder = tmp_path / str(len(bands))
        train(
            *(monkeypatch, "--dataset", hidden_boxes, "--bands", *bands, *TRAINING, "--output_dir", folder),
            *("--max_train_steps", 60, "--eval_steps", 60, "--warmup_steps", 5, "--total_train_batch_size", 4),
        )
        iou[len(bands)] = json.loads((folder / "results.json").read_text())["iou"]["box"]
    assert iou[4] > 0.6 and iou[3] < 0.4


def test_pictures_of_bands_are_streamed(farmland, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "parquet"
    folder.mkdir()
    features = datasets.Features(image=datasets.Image(decode=False), annotation=datasets.Image(decode=False))
    for split in ("training", "validation"):
        paths = [sorted((farmland / kind / split).iterdir()) for kind in ("images", "annotations")]
        rows = [
            {name: {"bytes": path.read_bytes(), "path": path.name} for name, path in zip(features, pair, strict=True)}
            for pair in zip(*paths, strict=True)
        ]
        name = "train" if split == "training" else split
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{name}.parquet")
    shutil.copy(farmland / "id2label.json", folder)
    given = ("--dataset", folder, "--streaming", "--bands", 4, 2, *TRAINING)
    with pytest.raises(SystemExit) as stop:
        train(monkeypatch, *given, "--output_dir", tmp_path / "out")
    assert stop.value.code == 2
    assert "--streaming with --bands needs --band_statistics" in capsys.readouterr().err

    statistics = tmp_path / "bands.json"
    arguments = ["--dataset", str(farmland), "--bands", "4", "2", "--output", str(statistics)]
    assert band_statistics.main(arguments) == 0
    train(monkeypatch, *given, "--band_statistics", statistics, "--output_dir", tmp_path / "out")
    model, image_processor = load_model(str(tmp_path / "out"), "cpu")
    assert model.config.num_channels == 2 and image_processor.bands == [4, 2]
    assert list(image_processor.image_mean) == json.loads(statistics.read_text())["mean"]
