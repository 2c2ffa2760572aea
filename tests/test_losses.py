# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from conftest import assert_same_derivatives, tiny_config
from safetensors.torch import load_file
from torch.nn import functional as F

from van_hf import VanForSemanticSegmentation
from van_hf.losses import SegmentationLoss, _loss_and_gradient, segmentation_loss_reference
from van_hf.model import upsampled_scores
from van_hf.model.interpolation import resize_to
from van_hf.model.upsampled_scores import upsampled_blocks, upsampled_cross_entropy

IGNORE_INDEX = 255
WEIGHTS = (0.0, 1.0, 2.5, 0.25, 1.0)
LOSSES = [
    SegmentationLoss(class_weights=WEIGHTS),
    SegmentationLoss(label_smoothing=0.1),
    SegmentationLoss(label_smoothing=0.3, class_weights=WEIGHTS),
    SegmentationLoss.parse("focal"),
    SegmentationLoss.parse("focal", focal_gamma=0.5, class_weights=WEIGHTS),
    SegmentationLoss.parse("ohem", ohem_threshold=0.1),
    SegmentationLoss.parse("ohem", ohem_threshold=0.01, ohem_min_kept=0.4, class_weights=WEIGHTS, label_smoothing=0.1),
    SegmentationLoss.parse("dice"),
    SegmentationLoss.parse("dice", class_weights=WEIGHTS),
    SegmentationLoss.parse("cross_entropy+dice", label_smoothing=0.2, class_weights=WEIGHTS),
    SegmentationLoss.parse("focal+dice"),
    SegmentationLoss.parse("ohem+dice", class_weights=WEIGHTS),
    SegmentationLoss.parse("cross_entropy+ohem", label_smoothing=0.2),
    SegmentationLoss.parse("cross_entropy+focal"),
]
# (rows, columns) of the logits, (height, width) of the labels.
SIZES = [((9, 12), (33, 40)), ((20, 17), (7, 9)), ((1, 5), (1, 17)), ((6, 6), (6, 6))]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: str(loss))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks in pictures of a few rows and columns, the last of them smaller."""
    for name, value in {"CPU_LOSS_BLOCK_SCORES": 1, "MIN_CPU_SCORES": 0, "BAND_LENGTH": 10}.items():
        monkeypatch.setattr(upsampled_scores, name, value)
    torch.manual_seed(0)


def random_batch(logits_size=(9, 12), size=(33, 40), num_labels=5, dtype=torch.float32):
    logits = 2 * torch.randn(2, num_labels, *logits_size, dtype=dtype)
    labels = torch.randint(num_labels, (2, *size))
    labels[torch.rand(labels.shape) < 0.2] = IGNORE_INDEX
    return logits, labels


def value_and_gradient(function, logits, labels):
    logits = logits.detach().requires_grad_()
    value = function(logits, labels, IGNORE_INDEX)
    return value.detach(), *torch.autograd.grad(3 * value, logits)


def plain(loss):
    return lambda logits, labels, ignore_index: segmentation_loss_reference(loss, logits, labels, ignore_index)


def assert_same_loss(loss, logits, labels, gradient_error=2e-6):
    value, gradient = value_and_gradient(loss, logits, labels)
    expected_value, expected_gradient = value_and_gradient(plain(loss), logits, labels)
    torch.testing.assert_close(value, expected_value, rtol=1e-6, atol=5e-6)  # compares the dtypes too
    assert gradient.dtype == logits.dtype
    error = (gradient.double() - expected_gradient.double()).norm()
    assert error <= gradient_error * expected_gradient.double().norm()


def test_batches_are_several_blocks():
    places = [block.place for block in upsampled_blocks(random_batch()[0], (33, 40))]
    assert len(places) == 10 and places[-1] == (slice(1, 2), slice(32, 33))


@each_loss
@pytest.mark.parametrize("logits_size, size", SIZES)
def test_values_and_gradients_are_the_references(loss, logits_size, size):
    assert_same_loss(loss, *random_batch(logits_size, size))
    assert_same_loss(loss, *random_batch(logits_size, size, dtype=torch.float64), gradient_error=1e-12)


@each_loss
def test_half_precision_is_taken_in_float32(loss):
    logits, labels = random_batch(dtype=torch.bfloat16)
    assert loss(logits, labels, IGNORE_INDEX).dtype == torch.float32
    eps = torch.finfo(torch.bfloat16).eps
    assert_same_loss(loss, logits, labels, gradient_error=eps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_loss(loss, logits, labels, gradient_error=eps)
        assert_same_loss(loss, logits.float(), labels)


@each_loss
def test_nothing_is_learned_where_nothing_counts(loss):
    logits, labels = random_batch()
    for function in (loss, plain(loss)):
        value, gradient = value_and_gradient(function, logits, torch.full_like(labels, IGNORE_INDEX))
        assert value == 0 and not gradient.any()


@pytest.mark.parametrize(
    ("name", "smoothing"),
    [
        *((name, 0.0) for name in ("cross_entropy", "focal", "ohem", "dice", "ohem+dice")),
        ("cross_entropy", 0.1),
        ("ohem+dice", 0.1),
    ],
)
def test_pixels_of_weight_0_do_not_count(name, smoothing):
    loss = SegmentationLoss.parse(name, class_weights=(0, 1, 1, 1, 1), label_smoothing=smoothing)
    logits, labels = random_batch()
    for function in (loss, plain(loss)):
        value, gradient = value_and_gradient(function, logits, torch.zeros_like(labels))
        assert value == 0 and not gradient.any()


@each_loss
def test_scores_far_apart_have_finite_gradients(loss):
    logits, labels = random_batch()
    assert_same_loss(loss, 200 * logits, labels, gradient_error=1e-4)
    certain = 500 * F.one_hot(torch.zeros(2, 9, 12, dtype=torch.int64), 5).movedim(-1, 1).float()
    value, gradient = value_and_gradient(loss, certain, torch.zeros_like(labels))
    assert value.isfinite() and gradient.isfinite().all()


@each_loss
def test_every_kind_of_derivative(loss):
    logits, labels = random_batch((2, 3), (9, 5), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: loss(values, labels, IGNORE_INDEX), logits.clone().requires_grad_())
    if "ohem" not in loss.names:  # to find the threshold is more than some transforms can do
        assert_same_derivatives(
            lambda values: loss(values, labels, IGNORE_INDEX),
            lambda values: segmentation_loss_reference(loss, values, labels, IGNORE_INDEX),
            logits,
        )


@pytest.mark.parametrize(("weights", "smoothing"), [(WEIGHTS, 0.0), (None, 0.2), (WEIGHTS, 0.2)])
def test_cross_entropy_is_torchs(weights, smoothing):
    logits, labels = random_batch()
    loss = SegmentationLoss(class_weights=weights, label_smoothing=smoothing)
    expected = F.cross_entropy(
        resize_to(logits, labels.shape[1:]),
        labels,
        weight=None if weights is None else torch.tensor(weights),
        ignore_index=IGNORE_INDEX,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(loss(logits, labels, IGNORE_INDEX), expected)


def test_without_settings_it_is_the_models_own():
    logits, labels = random_batch()
    expected = value_and_gradient(upsampled_cross_entropy, logits, labels)
    torch.testing.assert_close(value_and_gradient(SegmentationLoss(), logits, labels), expected, rtol=0, atol=0)


def test_focal_loss_without_focus_is_the_cross_entropy():
    logits, labels = random_batch()
    expected = value_and_gradient(upsampled_cross_entropy, logits, labels)
    got = value_and_gradient(SegmentationLoss.parse("focal", focal_gamma=0), logits, labels)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.5, 0), (0.01, 0.25), (1, 0), (0.01, 1)])
def test_ohem_keeps_what_mmsegmentation_does(threshold, min_kept):
    """The rule of OHEMPixelSampler, written as it is there."""
    logits, labels = random_batch((8, 9), (31, 40), dtype=torch.float64)
    valid = labels != IGNORE_INDEX
    scores = resize_to(logits, labels.shape[1:])
    probabilities = scores.softmax(dim=1).gather(1, torch.where(valid, labels, 0)[:, None])[:, 0][valid]
    ordered, _ = probabilities.sort()
    kept_pixels = int(min_kept * valid.sum())
    kept = probabilities < max(ordered[min(kept_pixels, ordered.numel() - 1)].item() if kept_pixels else 0, threshold)
    pixel_losses = F.cross_entropy(scores, labels, ignore_index=IGNORE_INDEX, reduction="none")[valid]
    loss = SegmentationLoss.parse("ohem", ohem_threshold=threshold, ohem_min_kept=min_kept)
    torch.testing.assert_close(loss(logits, labels, IGNORE_INDEX), pixel_losses[kept].mean())


def test_dice_by_hand():
    """Two pixels, of which one is ignored; the class that does not occur has no part in the mean."""
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25], [0.3, 0.3, 0.4]]).log().T.reshape(1, 3, 1, 3)
    value = SegmentationLoss.parse("dice")(logits, torch.tensor([[[0, 1, IGNORE_INDEX]]]), IGNORE_INDEX)
    first, second = 2 * 0.7 / (1.2 + 1), 2 * 0.25 / (0.45 + 1)
    assert value.item() == pytest.approx(1 - (first + second) / 2)


@each_loss
def test_labels_out_of_range_are_refused(loss):
    logits, labels = random_batch()
    for label in (5, -1):
        labels[1, 19, 23] = label
        with pytest.raises((RuntimeError, IndexError), match="out of (bounds|range)"):
            loss(logits, labels, IGNORE_INDEX)


@pytest.mark.slow
def test_operator_is_sound():
    """torch's own checks: the schema, the gradient's registration, fake results like the real ones."""
    logits, labels = random_batch((5, 6), (9, 11))
    for settings in (("cross_entropy+dice", WEIGHTS, 0.1, 2.0, 0.7, 0.1), ("ohem", None, 0.0, 2.0, 0.7, 0.1)):
        torch.library.opcheck(_loss_and_gradient, (logits, labels, IGNORE_INDEX, False, *settings))
        arguments = (logits.clone().requires_grad_(), labels, IGNORE_INDEX, True, *settings)
        torch.library.opcheck(_loss_and_gradient, arguments)


@pytest.mark.parametrize("name", ["ohem+dice", "cross_entropy"])
def test_compiled_as_one_graph(name):
    loss = SegmentationLoss.parse(name, class_weights=WEIGHTS)
    batch = random_batch()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = value_and_gradient(loss, *batch)
    torch.testing.assert_close(value_and_gradient(compiled, *batch), expected, rtol=0, atol=0)


def test_scores_of_full_size_are_never_made():
    logits, labels = random_batch((32, 32), (128, 128), num_labels=20)
    loss = SegmentationLoss.parse("ohem+dice", label_smoothing=0.1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        value_and_gradient(loss, logits, labels)
    shapes = [shape for event in profiler.events() for shape in event.input_shapes or () if shape]
    largest = max(torch.Size(shape).numel() for shape in shapes if all(isinstance(side, int) for side in shape))
    assert largest <= max(logits.numel(), labels.numel())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ("hinge",)}, "one of cross_entropy, focal, ohem, dice, or two of them .*'hinge'"),
        ({"names": ()}, "got none"),
        ({"names": ("",)}, "got ''"),
        ({"names": "focal"}, r"names must be a tuple.*parse\(\) takes a text"),
        ({"names": ("dice", "dice")}, "the same loss twice; dice alone will do"),
        ({"names": ("ohem", "focal")}, "focal and ohem do not go together"),
        ({"names": ("cross_entropy", "focal", "dice")}, "at most two losses"),
        (
            {"names": ("focal", "dice"), "label_smoothing": 0.1},
            "no meaning for focal.dice.*needs cross_entropy",
        ),
        ({"label_smoothing": 1}, "label_smoothing must lie in"),
        ({"focal_gamma": float("nan")}, "focal_gamma must be 0 or more"),
        ({"ohem_threshold": 0}, "ohem_threshold must lie in"),
        ({"ohem_min_kept": 100_000}, "ohem_min_kept must be a share"),
        ({"class_weights": (1, -2, float("inf"))}, "got -2.0 of label 1, inf of label 2"),
        ({"class_weights": (0, 0)}, "must not all be 0"),
    ],
)
def test_what_makes_no_loss_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SegmentationLoss(**fields)


def test_weights_for_another_number_of_labels_are_refused():
    logits, labels = random_batch(num_labels=4)
    with pytest.raises(ValueError, match="one for each of the 4 labels, got 5"):
        SegmentationLoss(class_weights=WEIGHTS)(logits, labels.clamp(max=3), IGNORE_INDEX)


@pytest.fixture
def model():
    return VanForSemanticSegmentation(tiny_config(num_labels=5, classifier_dropout_prob=0.0, drop_path_rate=0.0))


def test_model_trains_by_another_loss(model, pixel_values):
    """Both heads do, in training only; copies take it along, and nothing of it is saved."""
    labels = torch.randint(5, (2, 64, 96))
    seen = []

    def loss_function(logits, labels, ignore_index):
        seen.append((logits.shape[2:], ignore_index))
        return 0 * logits.sum() + 1

    model.loss_function = loss_function
    weight = model.config.auxiliary_loss_weight
    assert model.train()(pixel_values, labels=labels).loss.item() == pytest.approx(1 + weight)
    assert seen == [((16, 24), 255), ((4, 6), 255)]
    outputs = model.eval()(pixel_values, labels=labels)
    assert outputs.loss == upsampled_cross_entropy(outputs.logits, labels, 255) and len(seen) == 2


def test_loss_of_a_model_is_not_saved_but_copied(model, tmp_path):
    assert model.loss_function is upsampled_cross_entropy
    model.save_pretrained(tmp_path / "plain")
    model.loss_function = loss = SegmentationLoss.parse("ohem+dice", class_weights=WEIGHTS)
    model.save_pretrained(tmp_path / "other")
    for name in ("plain", "other"):
        assert VanForSemanticSegmentation.from_pretrained(tmp_path / name).loss_function is upsampled_cross_entropy
    configs = [json.loads(Path(tmp_path, name, "config.json").read_text()) for name in ("plain", "other")]
    assert configs[0] == configs[1]
    assert load_file(tmp_path / "other" / "model.safetensors").keys() == model.state_dict().keys()
    assert copy.deepcopy(model).loss_function == pickle.loads(pickle.dumps(model)).loss_function == loss


def test_a_loss_that_is_a_module_is_used_and_no_part_of_the_model(tmp_path):
    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("factor", torch.tensor(3.0))

        def forward(self, logits, labels, ignore_index):
            return self.factor * logits.mean()

    model = VanForSemanticSegmentation(tiny_config("semantic_fpn")).train()
    names = list(model.state_dict())
    model.loss_function = Loss()
    outputs = model(torch.zeros(1, 3, 64, 64), labels=torch.zeros(1, 64, 64, dtype=torch.long))
    assert torch.equal(outputs.loss, 3 * outputs.logits.mean())
    assert list(model.state_dict()) == names and isinstance(copy.deepcopy(model).loss_function, Loss)
    assert not any(isinstance(module, Loss) for module in model.modules())
    model.loss_function = upsampled_cross_entropy
    assert model.loss_function is upsampled_cross_entropy
