# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import largest_file, tiny_config
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from van_hf import VanConfig, VanForSemanticSegmentation, VanModel, training
from van_hf.checkpoints import original_key
from van_hf.machine import EndSignals
from van_hf.training import (
    RECIPES,
    StepWatch,
    TrainingHistory,
    complete_checkpoints,
    create_ema,
    create_optimizer,
    create_scheduler,
    enable_gradient_checkpointing,
    freeze_stages,
    layer_depths,
    learning_rate_factor,
    load_best,
    parameter_groups,
    save_best,
    save_checkpoint,
)

FIXTURES = Path(__file__).parent / "fixtures"
ORIGINAL_RECIPES = json.loads((FIXTURES / "recipes.json").read_text())
HAM_RECIPES = json.loads((FIXTURES / "recipes_ham.json").read_text())
LEARNING_RATES = json.loads((FIXTURES / "learning_rates.json").read_text())
DEFAULT_BETAS = [0.9, 0.999]


def recipe_name(original_name: str, original: dict) -> str:
    if original_name.startswith("fpn"):
        return "semantic_fpn_40k"
    return "upernet_160k_batch32" if original["images_per_gpu"] == 4 else "upernet_160k"


@pytest.mark.parametrize("original_name", ORIGINAL_RECIPES)
def test_recipes_are_the_originals(original_name):
    original = ORIGINAL_RECIPES[original_name]
    recipe = RECIPES[recipe_name(original_name, original)]
    optimizer, schedule = original["optimizer"], original["lr_config"]
    exempt = optimizer.get("paramwise_cfg", {}).get("custom_keys", {})

    assert recipe.decode_head == ("semantic_fpn" if original_name.startswith("fpn") else "upernet")
    assert recipe.learning_rate == optimizer["lr"]
    assert recipe.weight_decay == optimizer["weight_decay"]
    assert list(recipe.betas) == optimizer.get("betas", DEFAULT_BETAS)
    # The other two names belong to position embeddings, which VAN has not.
    assert list(recipe.no_decay) == [name for name in exempt if name == "norm"]
    assert recipe.total_train_batch_size == original["images_per_gpu"] * original["gpus"]
    assert recipe.max_train_steps == original["max_iters"]
    assert recipe.eval_steps == original["evaluation"]["interval"]
    assert recipe.power == schedule["power"]
    assert recipe.warmup_steps == schedule.get("warmup_iters", 0)
    assert recipe.warmup_steps == 0 or recipe.warmup_ratio == schedule["warmup_ratio"]


@pytest.mark.parametrize("original_name", HAM_RECIPES)
def test_ham_recipes_are_the_originals(original_name):
    original = HAM_RECIPES[original_name]
    decode_head = "light_ham" if original_name.startswith("light_ham") else "ham"
    recipe = RECIPES[f"{decode_head}_160k"]
    assert recipe.decode_head == decode_head
    assert (original["optimizer"], original["schedule"], original["warmup"]) == ("AdamW", "poly", "linear")
    assert original["min_learning_rate"] == 0
    assert recipe.total_train_batch_size == original["total_batch_size"]
    for name in ("betas", "no_decay", "image_scale", "ratio_range"):
        assert list(getattr(recipe, name)) == original[name]
    for name in (
        "learning_rate",
        "weight_decay",
        "power",
        "warmup_steps",
        "warmup_ratio",
        "max_train_steps",
        "crop_size",
    ):
        assert getattr(recipe, name) == original[name]


def test_recipe_for_few_pictures_trains_heads_ten_times_as_fast():
    recipe = RECIPES["finetune"]
    optimizer = create_optimizer(VanForSemanticSegmentation(tiny_config()), recipe)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([6e-5, 6e-4])
    assert (recipe.crop_size, recipe.total_train_batch_size) == (512, 8)
    assert recipe.warmup_steps < recipe.eval_steps < recipe.max_train_steps


@pytest.mark.parametrize("name", LEARNING_RATES)
def test_learning_rates_are_the_originals(name):
    recipe = RECIPES[name]
    for step, expected in LEARNING_RATES[name]:
        assert recipe.learning_rate * learning_rate_factor(step, recipe) == pytest.approx(expected, rel=1e-12, abs=0)


def test_scheduler_sets_the_rate_of_each_step():
    recipe = replace(RECIPES["upernet_160k"], max_train_steps=10, warmup_steps=3)
    optimizer = create_optimizer(nn.Linear(2, 2), recipe)
    scheduler = create_scheduler(optimizer, recipe)
    for step in range(10):
        expected = recipe.learning_rate * learning_rate_factor(step, recipe)
        assert [group["lr"] for group in optimizer.param_groups] == [expected]
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0


def test_weight_decay_is_that_of_the_upernet_recipe():
    expected = json.loads((FIXTURES / "weight_decay_upernet_b0.json").read_text())
    with torch.device("meta"):
        model = VanForSemanticSegmentation(VanConfig.from_size("b0"))
    recipe = RECIPES["upernet_160k"]
    decayed, exempt = parameter_groups(model, recipe.weight_decay, recipe.no_decay)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.01, 0.0)

    original_names = {id(p): original_key(name, type(model)) for name, p in model.named_parameters()}
    assert sorted(original_names[id(p)] for p in exempt["params"]) == expected["no_weight_decay"]
    assert sorted(original_names[id(p)] for p in decayed["params"]) == sorted(expected["weight_decay_0.01"])


@pytest.mark.parametrize("decode_head", ["light_ham", "ham"])
def test_ham_recipes_decay_group_norms_but_no_norms_of_the_backbone(decode_head):
    model = VanForSemanticSegmentation(tiny_config(decode_head))
    recipe = RECIPES[f"{decode_head}_160k"]
    decayed, exempt = parameter_groups(model, recipe.weight_decay, recipe.no_decay)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.01, 0.0)
    original_names = {id(p): original_key(name, type(model), decode_head) for name, p in model.named_parameters()}
    decayed, exempt = ([original_names[id(p)] for p in group["params"]] for group in (decayed, exempt))
    # What the authors' rule makes of the checkpoint's names, and what that comes to.
    assert exempt == [name for name in original_names.values() if "norm" in name]
    assert len(decayed) + len(exempt) == len(original_names)
    group_norms = [name for name in original_names.values() if ".gn." in name]
    assert len(group_norms) == {"light_ham": 6, "ham": 10}[decode_head] and set(group_norms) <= set(decayed)
    assert {f"backbone.norm{stage}.weight" for stage in (1, 2, 3, 4)} <= set(exempt)
    assert all(name.startswith("backbone.") for name in exempt)


@pytest.mark.parametrize("num_stages", [1, 2, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_stages_stay_as_in_evaluation(num_stages, checkpointing):
    torch.manual_seed(0)
    model = VanForSemanticSegmentation(tiny_config(drop_path_rate=0.5, dropout_rate=0.3, depths=[2, 2, 1, 1]))
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    pixel_values = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(pixel_values, output_hidden_states=True).hidden_states
    if checkpointing:
        enable_gradient_checkpointing(model)
    freeze_stages(model, num_stages)
    ema = create_ema(model, 0.5)
    before = copy.deepcopy(model.state_dict())
    optimizer = create_optimizer(model, replace(RECIPES["upernet_160k"], layer_decay=0.9))
    for _ in range(2):
        model.train()
        outputs = model(pixel_values, labels=torch.randint(0, 7, (2, 64, 64)), output_hidden_states=True)
        for maps, others in zip(outputs.hidden_states[:num_stages], expected, strict=False):
            torch.testing.assert_close(maps, others)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(model)
    copied = ema.module.train().state_dict()
    frozen = tuple(f"van.encoder.stages.{stage}." for stage in range(num_stages))
    for name, value in model.state_dict().items():
        if name.startswith(frozen):
            assert torch.equal(value, before[name]) and torch.equal(copied[name], before[name])
        elif "running_mean" in name or name == "decode_head.classifier.weight":
            assert not torch.equal(value, before[name])
    assert not any(module.training for stage in model.van.encoder.stages[:num_stages] for module in stage.modules())
    assert not any(module.training for module in ema.module.van.encoder.stages[0].modules())
    assert all(stage.training for stage in model.van.encoder.stages[num_stages:]) and model.decode_head.training


def test_a_model_with_nothing_to_train_is_refused():
    backbone = VanModel(tiny_config())
    with pytest.raises(ValueError, match="with 4 stages frozen nothing of this VanModel is left"):
        freeze_stages(backbone, 4)
    assert backbone.training and all(parameter.requires_grad for parameter in backbone.parameters())
    with pytest.raises(ValueError, match="must lie in 0..4"):
        freeze_stages(backbone, 5)


def test_layers_are_counted_from_the_output():
    model = VanForSemanticSegmentation(tiny_config(depths=[1, 2, 1, 1]))
    depths = layer_depths(model)
    assert depths.keys() == dict(model.named_parameters()).keys()
    stage = "van.encoder.stages.{}".format
    expected = {
        f"{stage(0)}.embeddings.convolution.weight": 5,
        f"{stage(0)}.layers.0.mlp.in_dense.weight": 5,
        f"{stage(0)}.normalization.bias": 5,
        f"{stage(1)}.embeddings.normalization.weight": 4,
        f"{stage(1)}.layers.0.attention_scaling.weight": 4,
        f"{stage(1)}.layers.1.post_normalization.weight": 3,
        f"{stage(1)}.normalization.weight": 3,
        f"{stage(2)}.layers.0.mlp.out_dense.bias": 2,
        f"{stage(3)}.embeddings.convolution.bias": 1,
        f"{stage(3)}.normalization.weight": 1,
        "decode_head.classifier.weight": 0,
        "auxiliary_head.classifier.bias": 0,
    }
    assert {name: depths[name] for name in expected} == expected
    assert set(depths.values()) == set(range(6))
    assert {layer_depths(model.van)[name.removeprefix("van.")] - depth for name, depth in depths.items() if depth} == {
        0
    }


def test_heads_and_layers_have_rates_of_their_own():
    model = VanForSemanticSegmentation(tiny_config(depths=[1, 1, 1, 1]))
    recipe = replace(RECIPES["upernet_160k"], head_learning_rate_factor=10.0, layer_decay=0.5, warmup_steps=0)
    optimizer = create_optimizer(model, recipe)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    depths = layer_depths(model)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names.pop(id(parameter))
            factor = 0.5 ** depths[name] if depths[name] else 10.0
            assert group["lr"] == recipe.learning_rate * factor
            assert group["weight_decay"] == (0.0 if "norm" in name else recipe.weight_decay)
    assert not names
    rates = [group["lr"] for group in optimizer.param_groups]
    scheduler = create_scheduler(optimizer, recipe)
    optimizer.step()
    scheduler.step()
    decay = learning_rate_factor(1, recipe)
    assert [group["lr"] for group in optimizer.param_groups] == [rate * decay for rate in rates]


def test_one_rate_for_all_has_the_groups_of_old_checkpoints():
    model = VanForSemanticSegmentation(tiny_config())
    groups = create_optimizer(model, RECIPES["upernet_160k"]).param_groups
    expected = parameter_groups(model, 0.01)
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    for group, other in zip(groups, expected, strict=True):
        assert other.keys() == {"params", "weight_decay"}
        assert all(one is another for one, another in zip(group["params"], other["params"], strict=True))


def test_groups_leave_out_frozen_parameters_and_empty_groups():
    model = nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    (group,) = parameter_groups(model, 0.1)
    assert group["weight_decay"] == 0.1
    assert group["params"] == [model.weight]


def test_fpn_recipe_decays_everything():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = create_optimizer(model, RECIPES["semantic_fpn_40k"])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_updates_on_the_cpu_are_fused_and_adamws():
    """Also in the layout that models are trained in, and where a checkpoint from before goes on."""
    torch.manual_seed(0)
    recipe = RECIPES["upernet_160k"]
    models = [nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last) for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    plain = torch.optim.AdamW(parameter_groups(models[0], recipe.weight_decay), lr=recipe.learning_rate)
    fused, resumed = (create_optimizer(model, recipe) for model in models[1:])
    assert fused.param_groups[0]["fused"]
    for step in range(4):
        pixel_values = torch.randn(2, 8, 5, 5)
        for model, optimizer in zip(models, (plain, fused, resumed), strict=True):
            optimizer.zero_grad()
            model(pixel_values).square().sum().backward()
            optimizer.step()
        if step == 1:
            resumed.load_state_dict(copy.deepcopy(plain.state_dict()))
    for model in models[1:]:
        torch.testing.assert_close(model.weight, models[0].weight, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_not_finite_and_those_after_it_leave_the_optimizer_alone():
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    model, optimizer = accelerator.prepare(model, create_optimizer(model, RECIPES["upernet_160k"]))
    watch = StepWatch(accelerator, optimizer, EndSignals())
    kept = []
    for step, factor in enumerate((1.0, 2.0, float("nan"), 1.0)):
        loss = (model(torch.ones(2, 4)) * factor).square().sum()
        loss.backward()
        watch.add(loss.detach(), torch.tensor(float(step)))
        optimizer.step()
        optimizer.zero_grad()
        kept.append(copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"])))
    for weights, states in kept[2:]:
        assert all(torch.equal(tensor, kept[1][0][name]) for name, tensor in weights.items())
        for idx, state in states.items():
            assert all(torch.equal(tensor, kept[1][1][idx][name]) for name, tensor in state.items())
    assert not torch.equal(kept[0][0]["weight"], kept[1][0]["weight"])
    looked_at = watch.look()
    assert [norm for _, norm in looked_at] == [0, 1, 2, 3]
    assert [math.isnan(loss) for loss, _ in looked_at] == [False, False, True, False]
    assert watch.look() == []


def test_looks_are_some_time_apart(monkeypatch):
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.AdamW([nn.Parameter(torch.ones(1))], fused=True))
    watch = StepWatch(accelerator, optimizer, EndSignals())
    now = watch.looked_at
    monkeypatch.setattr(training.time, "perf_counter", lambda: now)
    # The first step takes long.
    for seconds, expected in ((5, 1), (0.25, 8), (8 * 0.5, 4), (4 * 3, 1)):
        while not watch.is_due:
            watch.add(torch.ones(()), torch.ones(()))
        now += seconds
        watch.look()
        assert watch.steps_between_looks == expected


def test_ema_averages_weights_and_running_statistics():
    model = nn.BatchNorm1d(1)
    ema = create_ema(model, decay=0.75)
    plain = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
    with torch.no_grad():
        for value in (1.0, 2.0, 4.0):
            model.weight.fill_(value)
            model.running_mean.fill_(10 * value)
            model.num_batches_tracked += 5
            ema.update_parameters(model)
            plain.update_parameters(model)
    assert ema.state_dict() == plain.state_dict()
    expected = 0.75 * (0.75 * 1 + 0.25 * 2) + 0.25 * 4
    assert ema.module.weight.item() == pytest.approx(expected)
    assert ema.module.running_mean.item() == pytest.approx(10 * expected)
    assert not ema.module.weight.requires_grad


def test_history_survives_its_state_dict():
    history = TrainingHistory()
    assert history.last_step == 0 and not history.is_evaluated
    history.add_step(0.1)
    history.losses.append(1.5)
    history.evaluations.append({"step": 1, "mean_iou": 0.25})
    assert history.is_evaluated
    history.add_step(0.2)
    assert not history.is_evaluated
    with pytest.raises(ValueError, match="step 2 was not looked at"):
        history.state_dict()
    history.losses.append(1.25)
    history.evaluations.append({"step": 2, "mean_iou": 0.5})
    history.seconds = 3.0

    restored = TrainingHistory()
    restored.load_state_dict(json.loads(json.dumps(history.state_dict())))
    assert restored == history
    assert restored.last_step == 2
    assert restored.steps == [1, 2]


def evaluated(*values: float) -> TrainingHistory:
    """A history with evaluations after steps 1, 2 and so on."""
    return TrainingHistory(evaluations=[{"step": step, "mean_iou": value} for step, value in enumerate(values, 1)])


@pytest.mark.parametrize(
    ("values", "best", "since"),
    [((0.5,), 1, 0), ((0.1, 0.3, 0.2), 2, 1), ((0.3, 0.3, 0.3), 1, 2), ((float("nan"), 0.0), 2, 0)],
)
def test_the_best_evaluation_is_the_earliest_of_the_highest(values, best, since):
    history = evaluated(*values)
    assert (history.best_evaluation["step"], history.evaluations_since_best) == (best, since)
    assert (evaluated().best_evaluation, evaluated().evaluations_since_best) == (None, 0)


def test_the_best_models_that_checkpoints_lead_back_to_are_kept(tmp_path):
    accelerator = Accelerator(cpu=True)
    model = VanForSemanticSegmentation(tiny_config())

    def names() -> set[str]:
        return {path.name for path in tmp_path.iterdir()} - {f"checkpoint-{step}" for step in range(9)}

    for step, (values, kept) in enumerate(
        [((0.1,), {"best-1"}), ((0.1, 0.2), {"best-1", "best-2"}), ((0.1, 0.2, 0.3), {"best-2", "best-3"})], start=1
    ):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for old in complete_checkpoints(tmp_path)[:-1]:
            old.rmdir()
        model.decode_head.classifier.bias.data.fill_(step)
        save_best(accelerator, tmp_path, evaluated(*values), model.save_pretrained)
        assert names() == kept

    history = evaluated(0.1, 0.2, 0.3)
    for size in (20, 4000):
        with largest_file(size), pytest.raises(OSError, match=r"best-3 cannot be written, with .* MB free"):
            save_best(accelerator, tmp_path, history, model.save_pretrained)
        assert names() == {"best-2", "best-3"}
    model.decode_head.classifier.bias.data.fill_(9)
    load_best(model, tmp_path, history)
    assert model.decode_head.classifier.bias.unique().tolist() == [3]
    (tmp_path / "best-3" / "model.safetensors").unlink()
    with pytest.raises(OSError, match="best-3, the best model so far, cannot be read"):
        load_best(model, tmp_path, history)


def test_a_run_from_an_older_checkpoint_keeps_the_best_models_of_later_ones(tmp_path):
    accelerator, model = Accelerator(cpu=True), VanForSemanticSegmentation(tiny_config())
    for name in ("checkpoint-1", "checkpoint-4", "best-1", "best-3"):
        (tmp_path / name).mkdir()
    for values, kept in [((0.1, 0.2), ["best-2", "best-3"]), ((0.1, 0.2, 0.3, 0.2), ["best-3"])]:
        save_best(accelerator, tmp_path, evaluated(*values), model.save_pretrained)
        assert sorted(path.name for path in tmp_path.glob("best-*")) == kept


def test_checkpoints_of_a_run_that_went_on_with_an_earlier_one_are_kept(tmp_path):
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(2, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    for step in (10, 20, 12, 14, 16):
        save_checkpoint(accelerator, tmp_path, step, {}, total_limit=2)
    assert [path.name for path in complete_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (14, 16, 20)]


def test_checkpoints_are_complete_or_absent(tmp_path, monkeypatch):
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(2, 2)
    model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    for step in (9, 10, 11):
        model.weight.data.fill_(step)
        save_checkpoint(accelerator, tmp_path, step, {"seed": 0}, total_limit=2)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-11"]
    assert json.loads((tmp_path / "checkpoint-11" / "run.json").read_text()) == {"seed": 0}

    def fail(folder):
        Path(folder).mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(accelerator, "save_state", fail)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(accelerator, tmp_path, 12, {}, total_limit=2)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-11"]

    for size in (20, 400):  # too small for the weights; for the optimizer, which torch saves
        with largest_file(size), pytest.raises(OSError, match=r"checkpoint-12 cannot be written, with .* MB free"):
            save_checkpoint(accelerator, tmp_path, 12, {}, total_limit=2)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11"]

    (tmp_path / "checkpoint-11.partial").mkdir()  # what a killed run has left
    save_checkpoint(accelerator, tmp_path, 12, {}, total_limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-11", "checkpoint-12"]
    accelerator.load_state(str(tmp_path / "checkpoint-11"))
    assert model.weight.unique().tolist() == [11]
