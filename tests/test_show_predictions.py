# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
from pathlib import Path

import numpy as np
import pytest
import show_predictions
import torch
from conftest import BOX_NAMES, tiny_config
from PIL import Image

from van_hf import VanForSemanticSegmentation, VanImageProcessor


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    VanForSemanticSegmentation(tiny_config("semantic_fpn", id2label=BOX_NAMES)).save_pretrained(folder)
    VanImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}).save_pretrained(folder)
    return folder


def run(*arguments: object) -> int:
    return show_predictions.main([str(argument) for argument in arguments])


def test_a_row_for_each_picture(folder, boxes, tmp_path):
    sizes = {}
    for name, pictures in {"one.png": (0,), "two.png": (3, 1)}.items():
        assert run(folder, "--dataset", boxes, "--pictures", *pictures, "--output", tmp_path / "new" / name) == 0
        with Image.open(tmp_path / "new" / name) as image:
            sizes[name] = image.size
            # Neither empty nor of one colour.
            assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 100
    assert sizes["one.png"][0] == sizes["two.png"][0] and sizes["one.png"][1] < sizes["two.png"][1]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["one.png", "two.png"]


def test_predictions_are_the_models(folder, boxes, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        show_predictions, "plot_predictions", lambda *args, **kwargs: shown.update(args=args, **kwargs)
    )
    monkeypatch.setattr(show_predictions, "write_whole", lambda path, save: save(path))
    assert run(folder, "--dataset", boxes, "--pictures", 2, "--output", tmp_path / "row.png") == 0
    (image,), (reference,), (prediction,), id2label = shown["args"]
    model = VanForSemanticSegmentation.from_pretrained(folder).eval()
    image_processor = VanImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        outputs = model(**image_processor(image, return_tensors="pt"))
    size = (image.height, image.width)
    expected = image_processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0].numpy()
    assert prediction.shape == reference.shape == size
    # Interpolated in one step there, in two here.
    assert (prediction == expected).mean() > 0.99
    assert reference[0, 0] == 255 and id2label == BOX_NAMES


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (None, ("--pictures", "0", "5"), "--pictures must be numbers from 0 to 4, got [0, 5]"),
        (None, ("--pictures", "-1"), "--pictures must be numbers from 0 to 4, got [-1]"),
        ("/nowhere", (), "/nowhere"),
        (None, ("--validation_split", "test"), "validation_split='test' does not fit"),
    ],
)
def test_what_is_wrong_is_one_line(folder, boxes, tmp_path, capsys, model, options, message):
    assert run(model or folder, "--dataset", boxes, "--output", tmp_path / "row.png", *options) == 2
    printed = capsys.readouterr().err
    assert "error: " in printed and message in printed
    assert "Traceback" not in printed and not (tmp_path / "row.png").exists()


def test_an_unknown_format_is_refused_before_anything_is_loaded(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run("nowhere", "--output", tmp_path / "row.docx")
    assert stop.value.code == 2
    assert "--output must end in one of " in capsys.readouterr().err
