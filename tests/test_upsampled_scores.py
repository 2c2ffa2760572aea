# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import importlib.util
import math
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import assert_same_derivatives

from van_hf.model import upsampled_scores
from van_hf.model.upsampled_scores import (
    upsampled_argmax,
    upsampled_argmax_reference,
    upsampled_cross_entropy,
    upsampled_cross_entropy_reference,
)

IGNORE_INDEX = 255
# (rows, columns) of the logits, (height, width) of the result: times 4, other ratios, fewer pixels, one side the same,
# both the same, one row, one column.
SIZES = [
    ((16, 12), (64, 48)),
    ((13, 9), (50, 33)),
    ((65, 43), (300, 281)),
    ((20, 17), (7, 9)),
    ((8, 9), (8, 30)),
    ((8, 9), (8, 9)),
    ((1, 5), (1, 17)),
    ((6, 1), (21, 1)),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks in pictures of a few rows and columns, the last of them smaller."""
    for name, value in {
        "CPU_BLOCK_SCORES": 1,
        "CPU_LOSS_BLOCK_SCORES": 1,
        "MIN_CPU_SCORES": 0,
        "BAND_LENGTH": 10,
    }.items():
        monkeypatch.setattr(upsampled_scores, name, value)
    torch.manual_seed(0)


def random_batch(logits_size, size, num_labels=7, dtype=torch.float32):
    logits = 3 * torch.randn(2, num_labels, *logits_size, dtype=dtype)
    labels = torch.randint(num_labels, (2, *size))
    labels[torch.rand(labels.shape) < 0.2] = IGNORE_INDEX
    return logits, labels


def loss_and_gradient(cross_entropy, logits, labels):
    logits = logits.detach().requires_grad_()
    loss = cross_entropy(logits, labels, IGNORE_INDEX)
    return loss.detach(), *torch.autograd.grad(3 * loss, logits)


def assert_same_cross_entropy(logits, labels, gradient_error=1e-6):
    loss, gradient = loss_and_gradient(upsampled_cross_entropy, logits, labels)
    expected_loss, expected_gradient = loss_and_gradient(upsampled_cross_entropy_reference, logits, labels)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-5)  # compares the dtypes too
    assert gradient.dtype == logits.dtype
    error = (gradient.double() - expected_gradient.double()).norm()
    assert error <= gradient_error * expected_gradient.double().norm()


@pytest.mark.parametrize("logits_size, size", SIZES)
def test_cross_entropy_and_its_gradient_are_the_references(logits_size, size):
    assert_same_cross_entropy(*random_batch(logits_size, size))


def test_cross_entropy_of_two_classes():
    assert_same_cross_entropy(*random_batch((9, 12), (33, 40), num_labels=2))


def test_cross_entropy_of_half_precision_is_taken_in_float32():
    for dtype in (torch.bfloat16, torch.float16):
        logits, labels = random_batch((9, 12), (33, 40), dtype=dtype)
        assert_same_cross_entropy(logits, labels, gradient_error=torch.finfo(dtype).eps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_same_cross_entropy(logits, labels, gradient_error=torch.finfo(dtype).eps)


def test_cross_entropy_takes_any_memory_format():
    logits, labels = random_batch((9, 12), (33, 40))
    assert_same_cross_entropy(logits.to(memory_format=torch.channels_last), labels)
    assert_same_cross_entropy(logits.mT, labels)
    assert_same_cross_entropy(logits[:, ::2], labels.clamp(max=3))


def test_cross_entropy_of_scores_far_apart():
    """Every class is some 100 below another at each pixel between two of the logits'."""
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0, 0, 1] = logits[0, 1, 0, 0] = -300
    assert_same_cross_entropy(logits, torch.zeros(1, 4, 8, dtype=torch.int64))
    assert_same_cross_entropy(1000 * torch.randn(1, 5, 6, 6), torch.randint(5, (1, 20, 23)))


def test_cross_entropy_is_zero_without_valid_pixels():
    logits, labels = random_batch((5, 6), (20, 24))
    loss, gradient = loss_and_gradient(upsampled_cross_entropy, logits, torch.full_like(labels, IGNORE_INDEX))
    assert loss == 0 and not gradient.any()


def test_gradcheck_of_cross_entropy():
    logits, labels = random_batch((3, 4), (7, 9), num_labels=3, dtype=torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda values: upsampled_cross_entropy(values, labels, IGNORE_INDEX), logits)


def test_every_kind_of_derivative_of_cross_entropy_is_the_references():
    logits, labels = random_batch((3, 4), (7, 9), num_labels=3, dtype=torch.float64)
    assert_same_derivatives(
        lambda values: upsampled_cross_entropy(values, labels, IGNORE_INDEX),
        lambda values: upsampled_cross_entropy_reference(values, labels, IGNORE_INDEX),
        logits,
    )


@pytest.mark.parametrize("label", [7, -1, 254])
def test_labels_out_of_range_are_refused(label):
    logits, labels = random_batch((5, 6), (20, 24))
    labels[1, 19, 23] = label
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        upsampled_cross_entropy(logits, labels, IGNORE_INDEX)


def test_shapes_that_do_not_fit_are_refused():
    logits, labels = random_batch((5, 6), (20, 24))
    with pytest.raises(ValueError, match=r"\(2, 7, 5, 6\) and \(1, 20, 24\)"):
        upsampled_cross_entropy(logits, labels[:1], IGNORE_INDEX)
    with pytest.raises(ValueError, match=r"got \(7, 5, 6\)"):
        upsampled_argmax(logits[0], (20, 24))


def smooth_logits(num_labels, rows, columns):
    """Regions of a few classes each, like those of pictures."""
    return 5 * torch.nn.functional.interpolate(torch.randn(2, num_labels, 4, 4), size=(rows, columns), mode="bicubic")


@pytest.mark.parametrize("logits_size, size", SIZES)
def test_argmax_is_the_references(logits_size, size):
    for logits in (torch.randn(2, 30, *logits_size), smooth_logits(30, *logits_size)):
        for values in (logits, logits.bfloat16(), logits.to(memory_format=torch.channels_last), logits.double()):
            assert torch.equal(upsampled_argmax(values, size), upsampled_argmax_reference(values, size))


def test_argmax_of_a_whole_picture_is_the_references(monkeypatch):
    monkeypatch.undo()
    logits = torch.randn(1, 150, 64, 86)
    assert torch.equal(upsampled_argmax(logits, (256, 343)), upsampled_argmax_reference(logits, (256, 343)))


def test_argmax_of_equal_scores_is_the_first_class():
    logits = torch.randn(1, 4, 9, 7)[:, [2, 0, 3, 0, 1, 2, 3, 1]]
    ids = upsampled_argmax(logits, (31, 30))
    assert torch.equal(ids, upsampled_argmax_reference(logits, (31, 30)))
    assert set(ids.unique().tolist()) <= {0, 1, 2, 4}
    assert not upsampled_argmax(torch.zeros(1, 4, 9, 7), (31, 30)).any()


@pytest.mark.parametrize(("logits_size", "size"), SIZES)
@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
def test_argmax_of_what_is_not_finite_is_the_references(logits_size, size, value):
    whole_class, single_values = 3 * torch.randn(2, 2, 7, *logits_size)
    whole_class[:, 3] = value
    single_values[torch.rand(single_values.shape) < 0.05] = value
    for logits in (whole_class, single_values):
        assert torch.equal(upsampled_argmax(logits, size), upsampled_argmax_reference(logits, size))


def test_argmax_beside_a_masked_class_is_the_references_at_any_size():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        rows, columns = torch.randint(1, 40, (2,), generator=generator).tolist()
        size = torch.randint(1, 120, (2,), generator=generator).tolist()
        logits = torch.randn(1, 6, rows, columns, generator=generator)
        logits[:, 3] = -math.inf
        assert torch.equal(upsampled_argmax(logits, size), upsampled_argmax_reference(logits, size))


def test_long_rows_are_worked_out_in_parts(monkeypatch):
    """The parts are small, and their ids the same."""
    monkeypatch.setattr(upsampled_scores, "MIN_BLOCK_COLUMNS", 100)
    logits = 3 * torch.randn(1, 40, 2, 50)
    assert torch.equal(upsampled_argmax(logits, (3, 5000)), upsampled_argmax_reference(logits, (3, 5000)))
    assert largest_numel(lambda: upsampled_argmax(logits, (3, 5000))) <= 40 * 3 * 100 * 4


def test_only_classes_that_cannot_win_are_left_out():
    logits = smooth_logits(40, 32, 32)[0, :, :3]
    classes = upsampled_scores._possible_winners(logits)
    assert 0 < len(classes) < 20
    winners = upsampled_argmax_reference(logits[None], (40, 200)).unique()
    assert set(winners.tolist()) <= set(classes.tolist())


def largest_numel(function) -> int:
    """Numbers in the largest tensor that any torch call takes, those inside the operators included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        function()
    shapes = [shape for event in profiler.events() for shape in event.input_shapes or () if shape]
    return max(math.prod(shape) for shape in shapes if all(isinstance(side, int) for side in shape))


def test_scores_of_full_size_are_never_made():
    logits, labels = random_batch((32, 32), (128, 128), num_labels=20)
    assert largest_numel(lambda: loss_and_gradient(upsampled_cross_entropy, logits, labels)) <= logits.numel()
    assert largest_numel(lambda: upsampled_argmax(logits, (128, 128))) <= logits.numel()
    assert largest_numel(lambda: upsampled_argmax_reference(logits, (128, 128))) == 16 * logits.numel()


def calls_of(function) -> list[str]:
    """The names of all torch calls, those inside the operators included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        function()
    return [event.name for event in profiler.events()]


def test_blocks_hold_several_pictures_of_few_classes(monkeypatch):
    monkeypatch.undo()
    logits, labels = 3 * torch.randn(8, 11, 16, 16), torch.randint(11, (8, 128, 128))
    calls = calls_of(lambda: loss_and_gradient(upsampled_cross_entropy, logits, labels))
    assert calls.count("aten::_log_softmax") == 2
    assert_same_cross_entropy(logits, labels)


@pytest.mark.parametrize(
    ("logits_size", "size", "in_blocks"),
    [((8, 8), (64, 64), False), ((64, 64), (256, 256), True), ((256, 256), (256, 256), False)],
)
def test_plain_where_blocks_do_not_pay(monkeypatch, logits_size, size, in_blocks):
    """Of few scores calling the operator is more work than they are, and at full size nothing is interpolated."""
    monkeypatch.undo()
    logits, labels = random_batch(logits_size, size)
    calls = calls_of(lambda: loss_and_gradient(upsampled_cross_entropy, logits, labels))
    assert (f"{upsampled_scores.NAMESPACE}::upsampled_cross_entropy" in calls) is in_blocks
    assert_same_cross_entropy(logits, labels)


def test_compiled_as_one_graph():
    logits, labels = random_batch((9, 12), (33, 40))
    expected = loss_and_gradient(upsampled_cross_entropy, logits, labels)
    compiled = torch.compile(upsampled_cross_entropy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(loss_and_gradient(compiled, logits, labels), expected, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(compiled(logits, labels, IGNORE_INDEX), expected[0], rtol=0, atol=0)
    compiled = torch.compile(upsampled_argmax, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits, (33, 40)), upsampled_argmax(logits, (33, 40)))


class LossAndLabels(torch.nn.Module):
    def forward(self, logits, labels):
        loss = upsampled_cross_entropy(logits, labels, IGNORE_INDEX)
        return loss, upsampled_argmax(logits, labels.shape[-2:])


def test_exported_with_a_free_size():
    logits, labels = random_batch((9, 12), (33, 40))
    dim = torch.export.Dim.DYNAMIC
    shapes = {"logits": {2: dim, 3: dim}, "labels": {1: dim, 2: dim}}
    exported = torch.export.export(LossAndLabels(), (logits, labels), dynamic_shapes=shapes, strict=False).module()
    for batch in ((logits, labels), random_batch((10, 8), (35, 30))):
        torch.testing.assert_close(exported(*batch), LossAndLabels()(*batch), rtol=0, atol=0)


@pytest.mark.parametrize("second_name", ["transformers_modules_of_0a1b2c.upsampled_scores", upsampled_scores.__name__])
def test_loaded_twice_in_one_process(second_name):
    """Code saved with a model is a second copy of the module; reloading it gives one of the same name."""
    first, second = [load_copy(name) for name in ("transformers_modules_of_van.upsampled_scores", second_name)]
    again = load_copy(second_name)
    logits, labels = random_batch((9, 12), (33, 40))
    expected = loss_and_gradient(upsampled_cross_entropy_reference, logits, labels)
    for module in (first, second, again, upsampled_scores):
        got = loss_and_gradient(module.upsampled_cross_entropy, logits, labels)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        compiled = torch.compile(module.upsampled_cross_entropy, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(loss_and_gradient(compiled, logits, labels), expected, rtol=0, atol=1e-5)
        ids = module.upsampled_argmax(logits, (33, 40))
        assert torch.equal(ids, upsampled_argmax_reference(logits, (33, 40)))


def load_copy(name):
    package = name.rpartition(".")[0]
    if package not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(Path(upsampled_scores.__file__).parent)]
    spec = importlib.util.spec_from_file_location(name, upsampled_scores.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.MIN_CPU_SCORES = 0
    return module


def test_operators_are_sound():
    """torch's own checks: the schema, the gradient's registration, fake results like the real ones."""
    logits, labels = random_batch((5, 6), (9, 11))
    operator = upsampled_scores._cross_entropy_and_gradient
    for values in (logits, logits.to(memory_format=torch.channels_last), logits.bfloat16()):
        torch.library.opcheck(operator, (values, labels, IGNORE_INDEX, False))
        torch.library.opcheck(operator, (values.clone().requires_grad_(), labels, IGNORE_INDEX, True))
    torch.library.opcheck(upsampled_scores._argmax, (logits, 9, 11))
