# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The models under transformers' own Trainer."""

import json

import pytest
from conftest import PROGRAMS, finish, launch
from train_with_trainer import take_a_step

from van_hf import VanForImageClassification, VanForSemanticSegmentation

MODEL_CLASSES = (VanForSemanticSegmentation, VanForImageClassification)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, tuple[float, float]]:
    """Loss and weight after a step over 8 pictures at once, for each kind of model."""
    folder = str(tmp_path_factory.mktemp("trainer"))
    return {model_class.__name__: take_a_step(model_class, folder, 8, 1) for model_class in MODEL_CLASSES}


@pytest.mark.parametrize("accumulated", [4, 8])
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_accumulation_changes_nothing(expected, tmp_path, model_class, accumulated):
    step = take_a_step(model_class, str(tmp_path), 8 // accumulated, accumulated)
    assert step == pytest.approx(expected[model_class.__name__], rel=1e-3)


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_gradient_checkpointing_changes_nothing(expected, tmp_path, model_class):
    step = take_a_step(model_class, str(tmp_path), 8, 1, gradient_checkpointing=True)
    assert step == expected[model_class.__name__]


@pytest.mark.slow
def test_two_processes_change_nothing(expected, tmp_path):
    output = finish(launch(PROGRAMS / "train_with_trainer.py", tmp_path, 2, 2, num_processes=2, cwd=tmp_path))
    steps = json.loads(output[output.index("RESULT ") + len("RESULT ") :].splitlines()[0])
    for name, step in steps.items():
        assert step == pytest.approx(expected[name], rel=1e-3)
