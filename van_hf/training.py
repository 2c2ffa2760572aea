# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""How VAN segmentation models are trained: recipes, optimizer, schedule, weight average, steps, checkpoints."""

import copy
import math
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from glob import glob
from itertools import chain
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import load
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel

from .evaluation import fail_together
from .files import write_json
from .machine import EndSignals
from .model.image_processing_van import VanImageProcessor
from .model.modeling_van import VanEncoder


@dataclass(frozen=True)
class Recipe:
    """One training recipe: everything that decides how a model is trained, but not which model and which data.

    Args:
        decode_head: Decode head that the recipe belongs to, one of `DECODE_HEADS`.
        learning_rate: AdamW's peak learning rate, that of the backbone where heads or layers have their own.
        weight_decay: AdamW's decoupled weight decay.
        betas: AdamW's decay rates of the two moment estimates.
        no_decay: Parameters whose name holds one of these strings are not decayed.
        power: Exponent of the polynomial decay of the learning rate to zero.
        warmup_steps: Optimizer steps of linear warmup, 0 for none.
        warmup_ratio: Share of the learning rate that the warmup starts from.
        max_train_steps: Optimizer steps of the whole run.
        total_train_batch_size: Images per optimizer step, over all devices and accumulated batches.
        crop_size: Side of the square training crop, in pixels.
        image_scale: `(longest, shortest)` edge in pixels that images are resized to, keeping their ratio: before the
            random scaling of training, and in evaluation.
        ratio_range: `(least, largest)` of the random scaling in training.
        photometric_distortion: Whether colours are distorted in training.
        eval_steps: Optimizer steps between two evaluations.
        head_learning_rate_factor: How many times the backbone's learning rate the decode heads' is.
        layer_decay: By what the learning rate falls from each layer to the one before it, see [`layer_depths`].
        loss: What is minimized, see [`losses.SegmentationLoss`].
    """

    decode_head: str
    learning_rate: float
    weight_decay: float
    max_train_steps: int
    total_train_batch_size: int
    eval_steps: int
    betas: tuple[float, float] = (0.9, 0.999)
    no_decay: tuple[str, ...] = ()
    power: float = 1.0
    warmup_steps: int = 0
    warmup_ratio: float = 1e-6
    crop_size: int = 512
    image_scale: tuple[int, int] = (2048, 512)
    ratio_range: tuple[float, float] = (0.5, 2.0)
    photometric_distortion: bool = True
    head_learning_rate_factor: float = 1.0
    layer_decay: float = 1.0
    loss: str = "cross_entropy"


# A full disk is an error of safetensors where it writes, and a RuntimeError, without the reason, of torch.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError, ValueError)

# What runs had before these fields were there, which their files therefore lack.
ADDED_FIELDS = {"head_learning_rate_factor": 1.0, "layer_decay": 1.0, "loss": "cross_entropy"}

_UPERNET_160K = Recipe(
    decode_head="upernet",
    learning_rate=6e-5,
    weight_decay=0.01,
    no_decay=("norm",),
    warmup_steps=1500,
    max_train_steps=160_000,
    total_train_batch_size=16,
    eval_steps=16_000,
)

# Small enough for two CPU cores; goes with the generated dataset "scenes". With two seeds each and the same time, this
# head gets as far as any: mean IoU 72.9 percent on average, UperNet 72.4, Light-Ham 71.2, HamNet below 60.
_SCENES = Recipe(
    decode_head="semantic_fpn",
    learning_rate=4e-3,
    weight_decay=0.01,
    no_decay=("norm",),
    warmup_steps=50,
    max_train_steps=1050,
    total_train_batch_size=8,
    crop_size=128,
    image_scale=(512, 160),
    ratio_range=(0.75, 1.5),
    photometric_distortion=False,
    eval_steps=350,
)

RECIPES = {
    "scenes": _SCENES,
    # For "cracks" and "leaves", whose rare labels cross entropy alone hardly learns in this time.
    "closeups": replace(_SCENES, loss="dice"),
    # For a few hundred pictures, from pretrained weights. Common practice, and not tuned on real data: optimizer and
    # schedule that SegFormer and Light-Ham are trained with, heads at ten times the backbone's rate, a short
    # warmup, and about a hundred passes over 320 pictures. The loss is the one that was better than cross entropy on
    # all three generated data sets, rare labels or not.
    "finetune": Recipe(
        decode_head="light_ham",
        learning_rate=6e-5,
        weight_decay=0.01,
        no_decay=("norm",),
        warmup_steps=200,
        max_train_steps=4000,
        total_train_batch_size=8,
        eval_steps=400,
        head_learning_rate_factor=10.0,
        loss="cross_entropy+dice",
    ),
    # The authors' configurations for ADE20K (VAN-Segmentation, mmsegmentation 0.26), on 8 GPUs.
    "upernet_160k": _UPERNET_160K,
    # What the authors used for B4: 4 instead of 2 images per GPU, all else unchanged.
    "upernet_160k_batch32": replace(_UPERNET_160K, total_train_batch_size=32),
    "semantic_fpn_40k": Recipe(
        decode_head="semantic_fpn",
        learning_rate=2e-4,
        weight_decay=1e-4,
        power=0.9,
        max_train_steps=40_000,
        total_train_batch_size=32,
        eval_steps=4_000,
    ),
    # What the authors trained Light-Ham and HamNet with (VAN-Segmentation at 2573491, mmsegmentation 0.12): UperNet's,
    # but for HamNet's 4 images per GPU.
    "light_ham_160k": replace(_UPERNET_160K, decode_head="light_ham"),
    "ham_160k": replace(_UPERNET_160K, decode_head="ham", total_train_batch_size=32),
}

# Of the generated data sets, where no other recipe is asked for.
DEFAULT_RECIPES = {"scenes": "scenes", "cracks": "closeups", "leaves": "closeups", "fields": "scenes"}


def enable_gradient_checkpointing(model: PreTrainedModel, **arguments) -> None:
    """Let a model compute anew in the backward pass what would take the most memory to keep.

    Args:
        model: Model to train.
        arguments: For `torch.utils.checkpoint.checkpoint`; by default `use_reentrant=False`.
    """
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(arguments or None)
    else:  # transformers has renamed it
        model.gradient_checkpointing_enable(arguments or None)


def compile_for_training(model: nn.Module) -> Callable:
    """Return a model's forward pass, compiled for training; the model itself, and its parameters' names, stay.

    It draws what is dropped at random as the model would, and equals it up to rounding. Evaluate with the model: every
    other size of pictures would be compiled anew.

    Args:
        model: Model as it is wrapped for several processes and for half precision.
    """
    return torch.compile(model, dynamic=False, options={"fallback_random": True})


def channel_sources(
    image_processor: VanImageProcessor, old_bands: Sequence[int] | None, num_channels: int
) -> list[int | None]:
    """Return which channel of a trained model each channel of a new one is most like; None for none of them.

    Args:
        image_processor: of the new one; the bands that it draws as red, green and blue are taken for these.
        old_bands: what the trained model takes, by the numbers of bands; None where it takes RGB.
        num_channels: of the trained model.
    """
    if image_processor.bands is None:
        return list(range(3)) if num_channels == 3 and old_bands is None else [None] * 3
    if old_bands is None:
        drawn = image_processor.drawn_bands
        old_bands = drawn if num_channels == len(drawn) == 3 else ()
    return [list(old_bands).index(band) if band in old_bands else None for band in image_processor.bands]


def adapt_stem(model: PreTrainedModel, sources: Sequence[int | None]) -> None:
    """Have a trained model take other channels, in place.

    Each of them gets the filters of one of the channels that the model has, or the mean over all of them, multiplied
    by the old number of channels over the new one: where channels are alike, the sums stay as they were.

    Args:
        model: VAN of any kind.
        sources: for each new channel the number of the old one, or None for the mean.
    """
    embeddings = _stages(model)[0].embeddings
    old = embeddings.convolution
    if list(sources) == list(range(old.in_channels)):
        return
    weight = old.weight.detach()
    mean = weight.mean(dim=1)
    filters = torch.stack([mean if source is None else weight[:, source] for source in sources], dim=1)
    new = copy.deepcopy(old)
    new.in_channels = len(sources)
    new.weight = nn.Parameter(filters * (old.in_channels / len(sources)))
    embeddings.convolution = new
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.num_channels = len(sources)


def _stages(model: PreTrainedModel) -> nn.ModuleList:
    (stages,) = [module.stages for module in model.modules() if isinstance(module, VanEncoder)]
    return stages


def freeze_stages(model: PreTrainedModel, num_stages: int) -> None:
    """Keep the backbone's first stages as they are: without gradients, and in evaluation mode whatever comes.

    BatchNorm there goes on with the statistics that it has, nothing is dropped at random, and `model.train()` does not
    change that. To be called before the optimizer is made, and before the model is wrapped for several processes.

    Args:
        model: VAN of any kind.
        num_stages: Number of stages, counted from the picture, 0 for none.

    Raises:
        ValueError: The backbone has fewer stages, or there would be nothing left to train.
    """
    stages = _stages(model)
    if not 0 <= num_stages <= len(stages):
        raise ValueError(f"num_stages must lie in 0..{len(stages)}, the backbone's stages, got {num_stages}")
    frozen = {id(parameter) for stage in stages[:num_stages] for parameter in stage.parameters()}
    if all(id(parameter) in frozen for parameter in model.parameters() if parameter.requires_grad):
        raise ValueError(f"with {num_stages} stages frozen nothing of this {type(model).__name__} is left to train")
    for stage in stages[:num_stages]:
        stage.freeze()


def layer_depths(model: PreTrainedModel) -> dict[str, int]:
    """Return how many layers lie between each parameter and the output, for decay of the learning rate by layers.

    A layer is a block of the backbone: its last one, of the last stage, is at depth 1, its first one, of the first
    stage, at depth `sum(config.depths)`. A stage's patch embedding belongs to the stage's first block, its LayerNorm
    to its last. Decode heads, and all else outside of the backbone, are at depth 0.

    Args:
        model: VAN of any kind.

    Returns:
        The depth of each parameter by its dotted name.
    """
    depths = model.config.depths
    found = {}
    for name, _ in model.named_parameters():
        match = re.search(r"(?:^|\.)encoder\.stages\.(\d+)\.(?:layers\.(\d+)\.|(embeddings)\.)?", name)
        if match is None:
            found[name] = 0
            continue
        stage, block, embeddings = int(match[1]), match[2], match[3]
        in_stage = int(block) if block is not None else 0 if embeddings else depths[stage] - 1
        found[name] = sum(depths[stage:]) - in_stage
    return found


def learning_rate_factors(model: PreTrainedModel, recipe: Recipe) -> dict[str, float]:
    """Return how many times the recipe's learning rate each parameter's is, by its dotted name."""
    return {
        name: recipe.layer_decay**depth if depth > 0 else recipe.head_learning_rate_factor
        for name, depth in layer_depths(model).items()
    }


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    no_decay: Iterable[str] = ("norm",),
    learning_rates: Mapping[str, float] | None = None,
) -> list[dict]:
    """Split a model's trainable parameters into AdamW's groups with and without weight decay.

    The rule is by name, as in the authors' recipe: the backbone's normalization layers are not decayed, the decode
    heads' BatchNorms, which are called `bn`, and all biases are.

    Args:
        model: Model whose parameters with `requires_grad` are taken.
        weight_decay: Weight decay of the first group.
        no_decay: Parameters whose dotted name holds one of these strings go into the second group.
        learning_rates: Peak learning rate of each parameter by its dotted name. By default there is one for all, the
            optimizer's.

    Returns:
        One or two groups `{"params": [...], "weight_decay": ...}`; a group without parameters is left out. With
        `learning_rates` one or two for each of them, lowest first, which have it as `"lr"`.
    """
    no_decay = tuple(no_decay)
    groups: dict[tuple[float | None, bool], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            learning_rate = None if learning_rates is None else learning_rates[name]
            is_exempt = any(part in name for part in no_decay)
            groups.setdefault((learning_rate, is_exempt), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if is_exempt else weight_decay}
        | ({} if learning_rate is None else {"lr": learning_rate})
        for (learning_rate, is_exempt), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def create_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Return the recipe's AdamW over a model's trainable parameters, in torch's fused form, see [`StepWatch`]."""
    learning_rates = None
    # One rate for all has the two groups that checkpoints have always had.
    if (recipe.head_learning_rate_factor, recipe.layer_decay) != (1.0, 1.0):
        factors = learning_rate_factors(model, recipe)
        learning_rates = {name: recipe.learning_rate * factor for name, factor in factors.items()}
    groups = parameter_groups(model, recipe.weight_decay, recipe.no_decay, learning_rates)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)
    optimizer.register_load_state_dict_pre_hook(_stay_fused)
    return optimizer


def _stay_fused(optimizer: torch.optim.Optimizer, state_dict: dict) -> dict:
    """The state of an optimizer that may not have been fused, for one that is."""
    groups = [group | {"fused": True, "foreach": None} for group in state_dict["param_groups"]]
    return state_dict | {"param_groups": groups}


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Return the learning rate at a step as a share of the peak: polynomial decay times linear warmup.

    This is mmcv's "poly" policy with linear warmup by iteration: the decay runs from step 0, and the warmup scales
    what the decay gives.

    Args:
        step: Number of optimizer steps already taken, 0 to `recipe.max_train_steps`.
        recipe: Recipe with the schedule's numbers.

    Returns:
        A factor in [0, 1].
    """
    decay = (1 - step / recipe.max_train_steps) ** recipe.power
    if step >= recipe.warmup_steps:
        return decay
    return decay * (1 - (1 - step / recipe.warmup_steps) * (1 - recipe.warmup_ratio))


def create_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the scheduler of `learning_rate_factor`, to be stepped once per optimizer step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, partial(learning_rate_factor, recipe=recipe))


def create_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a model, to be updated with `update_parameters` after each step.

    The buffers are averaged too, since BatchNorm's running statistics must belong to the averaged weights; the
    first update copies the model.

    Args:
        model: Model to average, without a distributed wrapper.
        decay: Share of the old average that a step keeps, in (0, 1).
    """
    ema = _WeightAverage(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return ema.requires_grad_(False)


class _WeightAverage(AveragedModel):
    """torch's, without the copy of the number of updates to the device, which would wait for all that is queued."""

    def update_parameters(self, model: nn.Module) -> None:
        if self.n_averaged == 0:  # which lies on the CPU
            super().update_parameters(model)
            return
        averages = chain(self.module.parameters(), self.module.buffers())
        pairs = list(zip(averages, chain(model.parameters(), model.buffers()), strict=True))
        for is_float in (True, False):
            group = [pair for pair in pairs if pair[0].is_floating_point() == is_float]
            self.multi_avg_fn([average for average, _ in group], [value for _, value in group], self.n_averaged)
        self.n_averaged += 1


@dataclass
class TrainingHistory:
    """What a run has measured so far; has the `state_dict` methods that `accelerate` saves and restores.

    Args:
        steps: Optimizer steps, 1, 2, ...
        losses: Training loss of each of these steps, averaged over the step's batches; of the last ones, which were
            not looked at yet, it is missing.
        learning_rates: Learning rate that each of these steps was taken with, before factors of heads and layers.
        evaluations: One `{"step": ..., "mean_iou": ..., ...}` per evaluation, figures as fractions.
        seconds: Time spent on training and evaluation, in seconds, over all parts of an interrupted run.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    evaluations: list[dict] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def last_step(self) -> int:
        """Number of optimizer steps taken."""
        return self.steps[-1] if self.steps else 0

    @property
    def is_evaluated(self) -> bool:
        """Whether the model of the last step was evaluated."""
        return bool(self.evaluations) and self.evaluations[-1]["step"] == self.last_step

    @property
    def best_evaluation(self) -> dict | None:
        """The evaluation with the highest mean IoU, the earliest of several; None before the first."""
        evaluations = [evaluation for evaluation in self.evaluations if not math.isnan(evaluation["mean_iou"])]
        return max(evaluations or self.evaluations, key=lambda evaluation: evaluation["mean_iou"], default=None)

    @property
    def evaluations_since_best(self) -> int:
        """Number of evaluations after the best one."""
        best = self.best_evaluation
        return 0 if best is None else len(self.evaluations) - 1 - self.evaluations.index(best)

    def add_step(self, learning_rate: float) -> None:
        """Record the next optimizer step; its loss follows when it was looked at."""
        self.steps.append(self.last_step + 1)
        self.learning_rates.append(learning_rate)

    def state_dict(self) -> dict:
        """Return the history as plain containers, when all steps were looked at."""
        if len(self.losses) < len(self.steps):
            raise ValueError(f"step {self.last_step} was not looked at yet, but {len(self.losses)} steps")
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        """Replace the history by one from `state_dict`."""
        vars(self).update(state)


class StepWatch:
    """Loss and gradient norm of each step, looked at now and then: a look waits for the device, and for all processes.

    Between two looks the values stay on the device, where it is also decided that a step which is not finite changes
    neither weights nor the optimizer's state, and no step after it does: the fused AdamW takes a flag for that.

    Args:
        accelerator: Tells the processes apart. A gradient scaler, which fp16 has, skips steps by itself instead.
        optimizer: Prepared optimizer, see [`create_optimizer`].
        signals: Those that this process gets.

    Attributes:
        is_asked_to_end: Whether one of the processes had got a signal by the last look; the same on all.
    """

    # Enough for one who watches; steps that take longer are looked at one by one.
    SECONDS_BETWEEN_LOOKS = 2.0

    def __init__(self, accelerator: Accelerator, optimizer: AcceleratedOptimizer, signals: EndSignals):
        self.accelerator = accelerator
        self.optimizer = optimizer.optimizer
        self.signals = signals
        self.is_asked_to_end = False
        self.values: list[torch.Tensor] = []
        self.is_broken = torch.zeros((), device=accelerator.device)
        self.steps_between_looks = 1
        self.looked_at = time.perf_counter()

    def add(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> None:
        """Add a step, before the optimizer takes it: this process's loss and the norm of the gradients, scalars."""
        values = torch.stack((loss, gradient_norm))
        self.values.append(values)
        if self.accelerator.scaler is None:
            self.is_broken = torch.maximum(self.is_broken, 1 - values.isfinite().all().float())
            self.optimizer.found_inf = self.is_broken

    @property
    def is_due(self) -> bool:
        """Whether it is time for a look, on all processes alike."""
        return len(self.values) >= self.steps_between_looks

    def look(self) -> list[tuple[float, float]]:
        """Return loss and gradient norm of the steps since the last look, means over all processes, which all call it.

        A step of which one process has a value that is not finite has one here.
        """
        if not self.values:
            return []
        own = torch.stack(self.values).flatten().tolist()
        now = time.perf_counter()
        own += [(now - self.looked_at) / len(self.values), float(self.signals.received)]
        everyone = self.accelerator.gather(torch.tensor([own], device=self.accelerator.device))
        # In double precision it does not matter in which order they are added up.
        *values, seconds, asked_to_end = everyone.cpu().double().mean(dim=0).float().tolist()
        self.steps_between_looks = max(1, int(self.SECONDS_BETWEEN_LOOKS / seconds))
        self.is_asked_to_end = asked_to_end > 0
        self.looked_at = now
        self.values = []
        return list(zip(values[::2], values[1::2], strict=True))


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """Return the folders `checkpoint-STEP` in a folder, oldest first: those that `save_checkpoint` has finished."""
    return _numbered_folders(output_dir, "checkpoint")


def _numbered_folders(output_dir: Path, kind: str) -> list[Path]:
    found = [name for name in glob(f"{kind}-*", root_dir=output_dir) if re.fullmatch(rf"{kind}-\d+", name)]
    return sorted((output_dir / name for name in found), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.split("-")[1])


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, run: dict, total_limit: int) -> None:
    """Save the state of a run as `checkpoint-STEP`, then remove the oldest checkpoints; for all processes to call.

    The folder gets its name when all is written, so that a run killed at any moment leaves complete checkpoints only.

    Args:
        accelerator: Holds what is to be saved: prepared and registered objects, and the random states.
        output_dir: Folder of the checkpoints.
        step: Number of optimizer steps taken.
        run: What the run is, for `run.json` in the checkpoint.
        total_limit: Number of checkpoints to keep, this one and those of earlier steps.

    Raises:
        OSError: The checkpoint cannot be written, in any of the processes; those that were there stay.
    """
    checkpoint = output_dir / f"checkpoint-{step}"
    partial_folder = output_dir / f"checkpoint-{step}.partial"
    if accelerator.is_main_process:
        for left in output_dir.glob("checkpoint-*.partial"):  # by runs that were killed
            shutil.rmtree(left, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        with fail_together():
            accelerator.save_state(str(partial_folder))
        with fail_together():
            if accelerator.is_main_process:
                write_json(partial_folder / "run.json", run)
                _remove_checkpoint(checkpoint)
                partial_folder.rename(checkpoint)
                # Later ones are there where a run goes on with an earlier one; they must not cost the new ones' place.
                checkpoints = [folder for folder in complete_checkpoints(output_dir) if _step(folder) <= step]
                for old in checkpoints[:-total_limit]:
                    _remove_checkpoint(old)
    except WRITE_ERRORS as error:
        raise _not_written(accelerator, checkpoint, error) from error


def load_checkpoint(accelerator: Accelerator, model: nn.Module, checkpoint: Path) -> None:
    """Restore what `save_checkpoint` has saved, on any number of processes; for all of them to call.

    A process that the checkpoint has no random states of keeps its own.

    Args:
        accelerator: Holds what was saved, as it did then.
        model: Prepared model.
        checkpoint: Folder `checkpoint-STEP`.

    Raises:
        OSError: One of its files is damaged, or not of this model; the message names the folder.
    """

    def rename(module: nn.Module, state_dict: dict, *_: object) -> None:
        # What wraps a model for several processes adds a prefix to its names, which one process has not.
        consume_prefix_in_state_dict_if_present(state_dict, "module.")
        if isinstance(module, DistributedDataParallel):
            for name in list(state_dict):
                state_dict[f"module.{name}"] = state_dict.pop(name)

    random_states = checkpoint / f"random_states_{accelerator.process_index}.pkl"
    try:
        with fail_together(), model.register_load_state_dict_pre_hook(rename):
            if random_states.exists():
                load(random_states)  # accelerate says nothing where they are damaged
            accelerator.load_state(str(checkpoint))
    except Exception as error:  # torch's, pickle's or safetensors', which have nothing in common
        raise OSError(f"{checkpoint} cannot be read: {error or type(error).__name__}") from error
    # accelerate counts batches to know which end a step; a step may now have another number of them.
    accelerator.step = 0


def best_model(output_dir: Path, history: TrainingHistory) -> Path:
    """Return the folder `best-STEP` of the model with the best evaluation so far, of which there must be one."""
    return output_dir / f"best-{history.best_evaluation['step']}"


def save_best(
    accelerator: Accelerator, output_dir: Path, history: TrainingHistory, save: Callable[[Path], object]
) -> None:
    """Save the model that was just evaluated as `best-STEP` if none was better; for all processes to call.

    The folder gets its name when all is written. In any case those of earlier steps go, but for what the checkpoints
    that are there lead back to: a run that is resumed from an older one has the best model from before that, too.
    Those of later steps, which such a run finds, belong to later checkpoints.

    Args:
        accelerator: Tells the processes apart.
        output_dir: Folder of the run and of its checkpoints.
        history: Has one evaluation or more.
        save: Writes the model into the folder that it is given; called in the main process alone.

    Raises:
        OSError: It cannot be written; what was there stays.
    """
    folder = best_model(output_dir, history)
    try:
        with fail_together():
            if accelerator.is_main_process:
                if history.evaluations_since_best == 0:
                    _write_folder(folder, save)
                needed = {folder, *_best_before_checkpoints(output_dir, history)}
                for other in _numbered_folders(output_dir, "best"):
                    if other not in needed and _step(other) <= history.evaluations[-1]["step"]:
                        _remove_checkpoint(other)
    except WRITE_ERRORS as error:
        raise _not_written(accelerator, folder, error) from error


def copy_best(accelerator: Accelerator, source_dir: Path, output_dir: Path, history: TrainingHistory) -> None:
    """Have in a folder the best model of a run that was in another, or the same; for all processes to call.

    Args:
        accelerator: Tells the processes apart.
        source_dir: Folder of the run that is resumed.
        output_dir: Folder to go on in.
        history: Has one evaluation or more.

    Raises:
        OSError: The model is gone, or cannot be written.
    """
    source, folder = (best_model(path, history) for path in (source_dir, output_dir))
    with fail_together():
        if not source.is_dir():
            raise OSError(f"{source}, the best model of the run that is to be resumed, is gone")
    try:
        with fail_together():
            if accelerator.is_main_process and source.resolve() != folder.resolve():
                _write_folder(folder, partial(shutil.copytree, source))
    except WRITE_ERRORS as error:
        raise _not_written(accelerator, folder, error) from error


def _write_folder(folder: Path, save: Callable[[Path], object]) -> None:
    partial_folder = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    save(partial_folder)
    _remove_checkpoint(folder)
    partial_folder.rename(folder)


def load_best(model: PreTrainedModel, output_dir: Path, history: TrainingHistory) -> None:
    """Give a model the weights and buffers that `save_best` has saved.

    Raises:
        OSError: They are not there, or cannot be read.
    """
    folder = best_model(output_dir, history)
    try:
        files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
        model.load_state_dict({name: tensor for content in files for name, tensor in content.items()})
    except (OSError, RuntimeError, SafetensorError) as error:
        raise OSError(f"{folder}, the best model so far, cannot be read: {error}") from error


def _best_before_checkpoints(output_dir: Path, history: TrainingHistory) -> list[Path]:
    """The best models that the checkpoints know of: each is saved before its own evaluation."""
    known = []
    for checkpoint in complete_checkpoints(output_dir):
        earlier = [evaluation for evaluation in history.evaluations if evaluation["step"] < _step(checkpoint)]
        if earlier:
            known.append(best_model(output_dir, TrainingHistory(evaluations=earlier)))
    return known


def _not_written(accelerator: Accelerator, folder: Path, error: Exception) -> OSError:
    """Remove what was written of a folder, on all processes, and return the error that says so."""
    free = shutil.disk_usage(folder.parent).free / 1e6
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder.with_name(f"{folder.name}.partial"), ignore_errors=True)
    return OSError(f"{folder} cannot be written, with {free:.1f} MB free on its disk: {error}")


def _remove_checkpoint(checkpoint: Path) -> None:
    # Under another name first: a half-deleted folder must not pass for a checkpoint.
    if checkpoint.exists():
        removed = checkpoint.with_name(f"{checkpoint.name}.removed")
        shutil.rmtree(removed, ignore_errors=True)
        checkpoint.rename(removed)
        shutil.rmtree(removed)
