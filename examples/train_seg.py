# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Train a VAN segmentation model, evaluate it with mean IoU and save it.

    accelerate launch examples/train_seg.py

trains a small model on generated pictures in a few minutes, on any machine. README.md beside this file shows the
arguments for ADE20K and for data of one's own.
"""

import argparse
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DataLoaderConfiguration,
    broadcast,
    broadcast_object_list,
    gather_object,
    send_to_device,
    set_seed,
)
from common_arguments import (
    claim_output_dir,
    load_dataset,
    load_or_stop,
    printing,
    process_state,
    stop,
    stop_at_problems,
    warn_of_lone_process,
    write_pictures,
)
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import to_pil_image
from tqdm.auto import tqdm
from train_arguments import (
    BAND_STATISTICS,
    batch_sizes,
    checkpoint_to_resume,
    choose_batch_sizes,
    choose_num_threads,
    choose_num_workers,
    count_train_labels,
    describe_run,
    find_access_problems,
    find_class_weight_problems,
    find_folder_problems,
    find_idle_arguments,
    find_label_problems,
    find_problems,
    find_recipe_problems,
    find_resume_problems,
    find_stream_problems,
    first_output_dir,
    frozen_stages,
    given_class_weights,
    is_complete,
    is_segmentation_model,
    is_used,
    load_start_config,
    parse_arguments,
    resolve_band_statistics,
    resolve_latest,
    resolve_loss,
    resolve_recipe,
    with_length,
)

from van_hf import VanConfig, VanForSemanticSegmentation, VanImageProcessor, __version__
from van_hf.bands import copy_without_place
from van_hf.data import BandStatistics, RareClassSampling, SegmentationDataset, TrainAugmentation, TrainSamples
from van_hf.data.streaming import StreamedTrainSamples, StreamPlaces, streams_per_process
from van_hf.evaluation import describe_missing_labels, evaluate, fail_together, read_validation_example
from van_hf.files import write_json
from van_hf.inference import DTYPES, Protocol, load_bands, load_config, load_weights, predict
from van_hf.losses import SegmentationLoss
from van_hf.machine import EndSignals, leave_end_signals_to_parent, use_huge_pages
from van_hf.model.configuration_van import DECODE_HEADS, VAN_SIZES
from van_hf.training import (
    Recipe,
    StepWatch,
    TrainingHistory,
    adapt_stem,
    channel_sources,
    compile_for_training,
    complete_checkpoints,
    copy_best,
    create_ema,
    create_optimizer,
    create_scheduler,
    enable_gradient_checkpointing,
    freeze_stages,
    learning_rate_factor,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from van_hf.visualization import as_picture, plot_predictions, plot_training_curves

# The model of a run without arguments: small enough to be trained from scratch on two CPU cores.
MINI = {
    "hidden_sizes": [16, 32, 64, 128],
    "depths": [1, 1, 2, 1],
    "mlp_ratios": [4, 4, 4, 4],
    "layer_norm_eps": 1e-5,
    # The published models' 0.01 needs far longer training.
    "layer_scale_init_value": 1.0,
    "decoder_hidden_size": 32,
    "fpn_hidden_size": 32,
    "ham_hidden_size": 64,
    "ham_rank": 16,
    "auxiliary_hidden_size": 32,
}
NUM_PICTURES_SHOWN = 6
NUM_PICTURES_LOGGED = 3
# The exit status of a run that a signal has ended, and that the same command goes on with; train_slurm.sh knows it.
STATUS_TO_GO_ON = 85


@dataclass(frozen=True)
class Run:
    """All that a training run is made of.

    Attributes:
        args: the command line, with the output folder that was claimed.
        recipe: with what the command line changes in it.
        dataset: what is trained and evaluated on.
        model: what is trained, on its way from the weights to start from.
        image_processor: what is saved with the model.
        accelerator: tells the processes apart, and logs.
        loss: what the model is trained with.
        rare_class_sampling: how training pictures are drawn, if not each as often as the others.
        history: what was measured so far.
        signals: whether this process was asked to end.
        places: where the streams of training pictures are, with `--streaming`.
    """

    args: argparse.Namespace
    recipe: Recipe
    dataset: SegmentationDataset
    model: VanForSemanticSegmentation
    image_processor: VanImageProcessor
    accelerator: Accelerator
    loss: SegmentationLoss = SegmentationLoss()
    rare_class_sampling: RareClassSampling | None = None
    history: TrainingHistory = field(default_factory=TrainingHistory)
    signals: EndSignals = field(default_factory=EndSignals)
    places: StreamPlaces | None = None

    @property
    def output_dir(self) -> Path:
        return Path(self.args.output_dir)

    @property
    def evaluation(self) -> dict:
        """The evaluation of the weights that the run ends with."""
        return self.history.best_evaluation if self.args.save_best else self.history.evaluations[-1]

    @property
    def is_stopped_early(self) -> bool:
        """Whether too many evaluations were no better than the best, before the last step."""
        patience, history = self.args.early_stopping_patience, self.history
        is_over = history.last_step == self.recipe.max_train_steps
        return patience is not None and history.evaluations_since_best >= patience and not is_over

    def describe(self) -> dict:
        """Return what decides the weights, see [`describe_run`], and the files of a stream."""
        described = describe_run(self.args, self.recipe, self.accelerator.num_processes)
        if self.image_processor.bands is not None:
            processor = self.image_processor
            statistics = BandStatistics(*map(tuple, (processor.bands, processor.image_mean, processor.image_std)))
            described[BAND_STATISTICS] = statistics.to_dict()
        if self.args.streaming:
            described["streamed_files"] = self.dataset.splits["train"].files
        return described

    def predict(self, model: VanForSemanticSegmentation, image: torch.Tensor) -> torch.Tensor:
        """Return a model's label of each pixel, int64 (height, width), of a picture, see [`predict`]."""
        return predict(model, self.image_processor, image, dtype=DTYPES[self.accelerator.mixed_precision])


def create_run(args: argparse.Namespace, recipe: Recipe, state: PartialState) -> Run:
    """Load data and model; where that fails, the script ends. For all processes to call."""
    per_device, accumulation = batch_sizes(args, recipe, state.num_processes)
    total = per_device * accumulation * state.num_processes
    if total != recipe.total_train_batch_size:
        state.print(
            f"A step has {total} pictures: the recipe's {recipe.total_train_batch_size} cannot be split evenly here"
        )
        recipe = replace(recipe, total_train_batch_size=total)
    if checkpoint := checkpoint_to_resume(args):
        state.print(
            f"Going on with {checkpoint}: {state.num_processes} process(es), each of which takes {per_device} "
            f"picture(s) at a time, {accumulation} time(s) a step"
        )
    accelerator = Accelerator(
        gradient_accumulation_steps=accumulation,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_dir=args.output_dir,
        # A copy to the GPU that is waited for would hold up the queue at every step.
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
    )
    set_seed(args.seed)
    dataset = load_or_stop(partial(load_dataset, args, streaming=args.streaming), "--dataset", state)
    places = create_streams(args, dataset, state) if args.streaming else None
    if args.epochs is not None:
        num_pictures = dataset.splits["train"].num_rows
        recipe = with_length(args, recipe, num_pictures)
        state.print(
            f"{args.epochs:g} epochs of {num_pictures} pictures are {recipe.max_train_steps} steps, of which "
            f"{recipe.warmup_steps} are warmup"
        )
        stop_at_problems(find_resume_problems(args, recipe, state.num_processes), state)
    for line in find_idle_arguments(args, recipe):
        state.print(f"warning: {line}", file=sys.stderr)
    stop_at_problems(find_label_problems(dataset, state) + find_class_weight_problems(args, dataset), state)
    counts = count_train_labels(args, dataset, state)
    loss = resolve_loss(args, recipe, dataset, counts)
    start_bands = load_or_stop(partial(load_start_bands, args), "--model_name_or_path", state)
    statistics = resolve_band_statistics(args, dataset, start_bands, state)
    image_processor = create_image_processor(args, recipe, dataset, statistics)
    model, new = load_or_stop(
        partial(create_model, args, recipe, image_processor, dataset), "--model_name_or_path", state
    )
    if args.num_threads is not None:
        accelerator.print(f"Threads of each process: {args.num_threads}")
    accelerator.print(f"New weights, to be trained from scratch: {', '.join(new) or 'none'}")
    if args.model_name_or_path is not None:
        sources = channel_sources(image_processor, start_bands and start_bands.bands, model.config.num_channels)
        adapt_stem(model, sources)
        if dataset.bands is not None or start_bands is not None:
            accelerator.print(describe_stem(dataset.bands, sources))
        if None in sources and args.freeze:
            state.print("warning: --freeze keeps filters that are a mean, and were never trained", file=sys.stderr)
    if dataset.bands is not None:
        accelerator.print(f"The bands, by which pictures are normalized:\n{statistics.describe()}")
    if dataset.bands is not None and recipe.photometric_distortion:
        accelerator.print("Colours are not distorted, which is for 8-bit RGB alone")
    if loss != SegmentationLoss():
        model.loss_function = loss
        accelerator.print(describe_loss(loss, dataset.id2label))
    freeze_stages(model, frozen_stages(args))
    if args.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    sampling = None
    if args.rare_class_sampling is not None:
        sampling = RareClassSampling(counts.pixels, counts.pictures, args.rare_class_sampling)
        accelerator.print(describe_sampling(sampling, dataset))
    return Run(args, recipe, dataset, model, image_processor, accelerator, loss, sampling, places=places)


def create_streams(args: argparse.Namespace, dataset: SegmentationDataset, state: PartialState) -> StreamPlaces:
    """Have the training pictures in a shard for each stream, and return the places at which the streams begin."""
    wanted = state.num_processes * max(args.dataloader_num_workers, 1)
    resharded = partial(dataset.splits["train"].resharded, wanted)
    dataset.splits["train"] = load_or_stop(resharded, "--streaming", state)
    stop_at_problems(find_stream_problems(args, dataset, state.num_processes), state)
    num_shards = dataset.splits["train"].num_shards
    each = streams_per_process(num_shards, state.num_processes, args.dataloader_num_workers)
    state.print(f"Streaming {num_shards} shard(s) of training pictures to {state.num_processes * each} stream(s)")
    if each < args.dataloader_num_workers:
        state.print(f"Loading processes per device: {each}, and not {args.dataloader_num_workers}, for lack of shards")
    return StreamPlaces(state.process_index, state.num_processes, each)


def load_start_bands(args: argparse.Namespace) -> BandStatistics | None:
    """Return the bands of the model to start from, None where it takes RGB or there is none."""
    return None if args.model_name_or_path is None else load_bands(args.model_name_or_path)


def describe_stem(bands: Sequence[int] | None, sources: Sequence[int | None]) -> str:
    """Return in words where the filters of the first convolution come from, see [`channel_sources`]; None is RGB."""
    names = ["red", "green", "blue"] if bands is None else [f"band {band}" for band in bands]
    pairs = list(zip(names, sources, strict=True))
    parts = [f"{name} has those of channel {source + 1}" for name, source in pairs if source is not None]
    parts += [f"{name} the mean over all channels" for name, source in pairs if source is None]
    return f"Filters of the first convolution: {', '.join(parts)} of the model to start from"


def describe_loss(loss: SegmentationLoss, id2label: dict[int, str]) -> str:
    """Return the loss in words, with the labels that weigh the most and the least."""
    words = [f"Loss: {loss}"]
    if loss.label_smoothing > 0:
        words.append(f"labels smoothed by {loss.label_smoothing:g}")
    if loss.class_weights is not None:
        ends = sorted(id2label, key=lambda label: loss.class_weights[label])
        least, most = (f"{loss.class_weights[label]:.3g} ({id2label[label]})" for label in (ends[0], ends[-1]))
        words.append(f"class weights from {least} to {most}")
    return ", ".join(words)


def describe_sampling(sampling: RareClassSampling, dataset: SegmentationDataset) -> str:
    """Return the labels that are drawn the most, and how many pictures that leaves, in words."""
    order = np.argsort(-sampling.probabilities, kind="stable").tolist()
    labels = [label for label in order if sampling.probabilities[label] >= 0.001]
    listed = ", ".join(f"{dataset.id2label[label]} {sampling.probabilities[label]:.1%}" for label in labels[:5])
    num_pictures = len(np.unique(np.concatenate([sampling.pictures[label] for label in labels])))
    return (
        f"Pictures are drawn for {listed}{', …' if len(labels) > 5 else ''}: {num_pictures} of the "
        f"{len(dataset.splits['train'])} hold what is drawn once in a thousand times or more"
    )


def create_image_processor(
    args: argparse.Namespace, recipe: Recipe, dataset: SegmentationDataset, statistics: BandStatistics | None
) -> VanImageProcessor:
    """Return what prepares pictures for the model, and is saved with it."""
    longest, shortest = recipe.image_scale
    bands = {}
    if statistics is not None:
        bands = {"bands": list(dataset.bands), "rgb_bands": args.rgb_bands}
        bands |= {"image_mean": list(statistics.mean), "image_std": list(statistics.std)}
    return VanImageProcessor(
        size={"shortest_edge": shortest, "longest_edge": longest}, do_reduce_labels=dataset.do_reduce_labels, **bands
    )


def create_model(
    args: argparse.Namespace, recipe: Recipe, image_processor: VanImageProcessor, dataset: SegmentationDataset
) -> tuple[VanForSemanticSegmentation, list[str]]:
    """Return the model to train, with the dataset's labels, and the names of its modules that have new weights.

    One that starts from trained weights takes the channels that these do, see [`adapt_stem`].
    """
    fields = {
        "decode_head": recipe.decode_head,
        "id2label": dataset.id2label,
        "label2id": {label: idx for idx, label in dataset.id2label.items()},
        "palette": dataset.palette,
    }
    path, strides = args.model_name_or_path, list(DECODE_HEADS[recipe.decode_head].strides)
    fields["num_channels"] = image_processor.num_channels if path is None else load_config(path).num_channels
    if args.model_size in VAN_SIZES:
        config = VanConfig.from_size(args.model_size, **fields)
    elif args.model_size == "mini" or path is None:
        config = VanConfig(**MINI, strides=strides, **fields)
    else:
        start = load_config(path)
        if not is_segmentation_model(start) or start.decode_head != recipe.decode_head:
            fields["strides"] = strides  # the new head's
        config = VanConfig.from_pretrained(path, **fields)
    if path is None:
        return VanForSemanticSegmentation(config), ["all"]
    return load_weights(path, config)


def create_augmentation(recipe: Recipe, dataset: SegmentationDataset) -> TrainAugmentation:
    """Return the recipe's augmentation; the colours of bands are not distorted."""
    return TrainAugmentation(
        crop_size=recipe.crop_size,
        scale=recipe.image_scale,
        ratio_range=recipe.ratio_range,
        photometric_distortion=recipe.photometric_distortion and dataset.bands is None,
    )


def create_loader(run: Run) -> DataLoader:
    """Return the batches of the rest of a run; `accelerator.prepare` deals them out to the processes in turn."""
    args, recipe, dataset = run.args, run.recipe, run.dataset
    samples = TrainSamples(
        dataset.splits["train"],
        create_augmentation(recipe, dataset),
        num_labels=dataset.num_labels,
        do_reduce_labels=dataset.do_reduce_labels,
        seed=args.seed,
        num_samples=recipe.max_train_steps * recipe.total_train_batch_size,
        name=f"{dataset.name} train",
        jpeg_draft=args.jpeg_draft,
        mask_meaning=dataset.mask_meaning,
        rare_class_sampling=run.rare_class_sampling,
        bands=dataset.bands,
    )
    return DataLoader(
        samples,
        sampler=range(run.history.last_step * recipe.total_train_batch_size, len(samples)),
        num_workers=args.dataloader_num_workers,
        **loader_options(run),
    )


def loader_options(run: Run) -> dict:
    """Return what all loaders of training samples have in common."""
    return {
        "batch_size": run.describe()["per_device_train_batch_size"],
        "pin_memory": torch.cuda.is_available(),
        # Without a generator of its own the loader draws from the one that stochastic depth uses.
        "generator": torch.Generator(),
        "worker_init_fn": leave_end_signals_to_parent,
    }


def streamed_batches(run: Run) -> Iterator[dict[str, torch.Tensor]]:
    """Yield this process's batches of the rest of a run from its streams, in turn.

    `accelerator.prepare` would have one process read everything, or each process, and take a part.
    """
    args, recipe, dataset, places = run.args, run.recipe, run.dataset, run.places
    options = loader_options(run)
    num_steps = recipe.max_train_steps - run.history.last_step
    samples = StreamedTrainSamples(
        dataset.splits["train"],
        create_augmentation(recipe, dataset),
        places=places.places,
        num_streams=places.num_streams,
        block_size=max(1, run.describe()["shuffle_buffer_size"] // len(places.places)),
        batch_size=options["batch_size"],
        num_batches=num_steps * run.accelerator.gradient_accumulation_steps,
        num_labels=dataset.num_labels,
        do_reduce_labels=dataset.do_reduce_labels,
        seed=args.seed,
        jpeg_draft=args.jpeg_draft,
        mask_meaning=dataset.mask_meaning,
        bands=dataset.bands,
    )
    num_workers = min(args.dataloader_num_workers, len(places.places))
    for batch in DataLoader(samples, num_workers=num_workers, **options):
        places.follow(batch.pop("place")[-1].tolist())
        yield send_to_device(batch, run.accelerator.device, non_blocking=True)


def normalize(pixel_values: torch.Tensor, image_processor: VanImageProcessor) -> torch.Tensor:
    """Turn crops, (batch, channels, crop, crop), into what the image processor would make of them, on their device."""
    rescale = image_processor.do_rescale, image_processor.rescale_factor
    mean, std = image_processor.image_mean, image_processor.image_std
    return image_processor.rescale_and_normalize(pixel_values, *rescale, True, mean, std)


def train(run: Run) -> VanForSemanticSegmentation:
    """Train a model, from the beginning or from a checkpoint; the history then ends with its evaluation.

    Returns:
        The model to use, in evaluation mode: with `--ema_decay` the averaged one, with `--save_best` of the step with
        the best evaluation.
    """
    args, recipe, model, accelerator, history = run.args, run.recipe, run.model, run.accelerator, run.history
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    ema = create_ema(model, args.ema_decay) if args.ema_decay is not None else None
    trained_model = ema.module if ema else model
    optimizer = create_optimizer(model, recipe)
    scheduler = create_scheduler(optimizer, recipe)
    wrapped_model, optimizer = accelerator.prepare(model, optimizer)
    forward = compile_for_training(wrapped_model) if args.torch_compile else wrapped_model
    registered = (scheduler, history, ema, run.places)
    accelerator.register_for_checkpointing(*(entry for entry in registered if entry is not None))
    # From here on every process has random numbers of its own, for stochastic depth and dropout.
    set_seed(args.seed, device_specific=True)
    if checkpoint := checkpoint_to_resume(args):
        try:
            load_checkpoint(accelerator, wrapped_model, checkpoint)
            if args.save_best and history.evaluations:
                copy_best(accelerator, checkpoint.parent, run.output_dir, history)
        except (OSError, ValueError) as error:
            siblings = complete_checkpoints(checkpoint.parent)
            earlier = siblings[: siblings.index(checkpoint)] if checkpoint in siblings else []
            way_on = f"; --resume_from_checkpoint {earlier[-1]} goes on from the one before it" if earlier else ""
            stop(f"error: {error}{way_on}", accelerator.state)
    batches = streamed_batches(run) if args.streaming else iter(accelerator.prepare(create_loader(run)))

    started = time.perf_counter() - history.seconds
    progress = progress_bar(run)
    watch = StepWatch(accelerator, optimizer, run.signals)
    while True:
        # A checkpoint is saved before its evaluation, which a resumed run therefore begins with.
        if evaluation_is_due(run) and not history.is_evaluated:
            evaluate_model(run, trained_model)
            history.seconds = time.perf_counter() - started
        if history.last_step == recipe.max_train_steps or run.is_stopped_early:
            break

        model.train()
        learning_rate = recipe.learning_rate * learning_rate_factor(history.last_step, recipe)
        watch.add(*backward(run, wrapped_model, forward, batches))
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if ema:
            ema.update_parameters(model)
        history.add_step(learning_rate)

        is_checkpoint = args.checkpointing_steps is not None and history.last_step % args.checkpointing_steps == 0
        is_saved = is_checkpoint or evaluation_is_due(run)
        if is_saved or watch.is_due:
            look_at_steps(run, watch, progress)
            history.seconds = time.perf_counter() - started
        if is_saved or watch.is_asked_to_end:
            save_state(run)
        if watch.is_asked_to_end:
            stop_to_go_on(run)
    progress.close()
    if args.save_best:
        try:
            with fail_together():
                load_best(trained_model, run.output_dir, history)
        except (OSError, ValueError) as error:
            stop_and_keep(run, str(error))
    prepare_evaluation(trained_model)
    return trained_model


def save_state(run: Run) -> None:
    """Save a checkpoint; where that fails, the script ends. For all processes to call."""
    step, limit = run.history.last_step, run.args.checkpoints_total_limit
    if run.places is not None:
        run.places.gather()
    try:
        save_checkpoint(run.accelerator, run.output_dir, step, run.describe(), limit)
    except OSError as error:
        stop_and_keep(run, str(error))


def look_at_steps(run: Run, watch: StepWatch, progress: tqdm) -> None:
    """Record, log and show the steps since the last look; for all processes to call.

    Raises:
        FloatingPointError: one of them was not finite; neither it nor those after it have changed the weights.
    """
    history, seen = run.history, len(run.history.losses)
    for loss, gradient_norm in watch.look():
        step, learning_rate = len(history.losses) + 1, history.learning_rates[len(history.losses)]
        stop_if_not_finite(run.accelerator, loss, gradient_norm, step, run.output_dir)
        history.losses.append(loss)
        run.accelerator.log({"loss": loss, "learning_rate": learning_rate}, step=step)
    show_progress(progress, history, len(history.losses) - seen, run.recipe.total_train_batch_size)


def backward(
    run: Run, model: nn.Module, forward: Callable, batches: Iterator[dict]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Accumulate the gradients of one optimizer step.

    The loss is the mean over the step's batches, and within each over its pixels that are not ignored, as in
    transformers; or what --loss makes of each.

    Args:
        run: the run.
        model: the run's model as `accelerator.prepare` has wrapped it.
        forward: the same, or its compiled form.
        batches: the batches of the rest of the run.

    Returns:
        This process's loss, and the norm of the gradients of all processes before clipping; scalars on the device.
    """
    accelerator = run.accelerator
    total = torch.zeros((), device=accelerator.device)
    for _ in range(accelerator.gradient_accumulation_steps):
        batch = next(batches)
        with accelerator.accumulate(model):
            pixel_values = normalize(batch["pixel_values"], run.image_processor)
            loss = forward(pixel_values=pixel_values, labels=batch["labels"]).loss
            accelerator.backward(loss)
            total += loss.detach() / accelerator.gradient_accumulation_steps
    gradient_norm = accelerator.clip_grad_norm_(model.parameters(), run.args.max_grad_norm or float("inf"))
    return total, gradient_norm


def stop_if_not_finite(
    accelerator: Accelerator, loss: float, gradient_norm: float, step: int, output_dir: Path
) -> None:
    """Raise a `FloatingPointError`, on all processes, before NaN or infinity can reach the weights."""
    # In fp16 gradients overflow now and then; accelerate's gradient scaler skips such steps.
    finite = math.isfinite(loss) and (math.isfinite(gradient_norm) or accelerator.scaler is not None)
    if not finite:
        checkpoints = complete_checkpoints(output_dir)
        last_good = checkpoints[-1] if checkpoints else "none"
        raise FloatingPointError(
            f"step {step}: loss {loss}, gradient norm {gradient_norm}. Last good checkpoint: {last_good}. "
            "A lower --learning_rate, a longer --warmup_steps or --max_grad_norm may help."
        )


def evaluation_is_due(run: Run) -> bool:
    """Return whether the step that was taken last is one with an evaluation."""
    step = run.history.last_step
    return step == run.recipe.max_train_steps or (step > 0 and step % run.recipe.eval_steps == 0)


def evaluate_model(run: Run, model: VanForSemanticSegmentation) -> None:
    """Add a model's figures to the history; where a picture cannot be evaluated, the script ends.

    For all processes to call, when the state is saved: whatever happens here costs no training.
    """
    step = run.history.last_step
    prepare_evaluation(model)

    def predict_unless_asked_to_end(image: torch.Tensor) -> torch.Tensor:
        if run.signals.received:
            raise InterruptedError("a signal has ended it")
        return run.predict(model, image)

    try:
        figures = evaluate(run.accelerator, predict_unless_asked_to_end, run.dataset)
    except (OSError, ValueError) as error:
        if any(gather_object([run.signals.received])):
            stop_to_go_on(run)
        stop_and_keep(run, f"the evaluation after step {step} failed: {error}")
    run.history.evaluations.append({"step": step, **figures})
    if run.args.save_best:
        try:
            save_best(run.accelerator, run.output_dir, run.history, partial(save_model, run, model))
        except OSError as error:
            stop_and_keep(run, str(error))
    run.accelerator.log({"mean_iou": figures["mean_iou"]}, step=step)
    if run.accelerator.is_main_process:
        tqdm.write(f"Step {step}: validation mean IoU {figures['mean_iou']:.4f}")
        if run.args.report_to is not None:
            log_predictions(run, model)


def log_predictions(run: Run, model: VanForSemanticSegmentation) -> None:
    """Show a tracker some validation pictures beside truth and prediction; what fails is reported, and costs nothing.

    For the main process to call, as the trackers of the others do nothing.
    """
    step = run.history.last_step
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "predictions.png")
            draw_predictions(run, model, path, NUM_PICTURES_LOGGED)
            with Image.open(path) as opened:
                picture = np.array(opened.convert("RGB"))
        for tracker in run.accelerator.trackers:
            if tracker.name == "trackio":  # for which accelerate has no log_images
                import trackio

                tracker.log({"predictions": trackio.Image(picture)}, step=step)
            else:
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"predictions": picture[None]}, step=step, **layout)
    except Exception as error:
        tqdm.write(f"warning: predictions after step {step} could not be logged: {error}", file=sys.stderr)


def save_model(run: Run, model: VanForSemanticSegmentation, folder: Path) -> None:
    """Write a model and its image processor into a folder."""
    model.save_pretrained(folder)
    run.image_processor.save_pretrained(folder)


def stop_and_keep(run: Run, error: str) -> NoReturn:
    """End the script with an error that costs no more than the steps since a checkpoint; for all processes to call."""
    checkpoints = complete_checkpoints(run.output_dir)
    if checkpoints:
        way_on = (
            f"The training is kept in {checkpoints[-1]}. When this is mended, go on with the same command and "
            f"--output_dir {run.output_dir} --resume_from_checkpoint latest"
        )
    else:
        way_on = "There is no checkpoint yet. When this is mended, give the same command again"
    stop(f"error: {error}\n{way_on}", run.accelerator.state)


def stop_to_go_on(run: Run) -> NoReturn:
    """End the script as a signal has asked for, when the state is saved; for all processes to call."""
    for tracker in run.accelerator.trackers:
        tracker.finish()
    stop(
        f"A signal has ended the run after step {run.history.last_step}. Go on with the same command and "
        f"--output_dir {run.output_dir} --resume_from_checkpoint latest",
        run.accelerator.state,
        status=STATUS_TO_GO_ON,
    )


def prepare_evaluation(model: nn.Module) -> None:
    """Put a model into evaluation mode, with the same weights on all processes."""
    model.eval()
    # Each process has BatchNorm statistics of its own; those of the first are the ones that are saved.
    broadcast(list(model.buffers()), from_process=0)


def progress_bar(run: Run) -> tqdm:
    """Return the bar of optimizer steps; where no one watches, as in a log file, it is printed now and then."""
    return tqdm(
        total=run.recipe.max_train_steps,
        initial=run.history.last_step,
        desc="Training",
        unit="step",
        mininterval=0.5 if sys.stderr.isatty() else 15,
        disable=not run.accelerator.is_main_process,
    )


def show_progress(progress: tqdm, history: TrainingHistory, num_steps: int, batch_size: int) -> None:
    """Advance the bar by the last steps."""
    values = {"loss": f"{history.losses[-1]:.3f}", "lr": f"{history.learning_rates[-1]:.1e}"}
    if steps_per_second := progress.format_dict["rate"]:
        values["images/s"] = f"{batch_size * steps_per_second:.0f}"
    progress.set_postfix(values, refresh=False)
    progress.update(num_steps)


def describe_results(run: Run) -> dict:
    """Return the content of results.json: figures, and what is needed to judge and to repeat them."""
    packages = ("torch", "torchvision", "transformers", "datasets", "accelerate")
    return {
        **run.evaluation,
        "chosen": "the best of the evaluations, by mean IoU" if run.args.save_best else "the last step",
        "last_step": run.history.last_step,
        "stopped_early": run.is_stopped_early,
        "protocol": {
            "metric": "mean IoU over the labels that occur, from one confusion matrix over all pixels; 255 is ignored",
            "inference": Protocol().describe(),
            "size": dict(run.image_processor.size),
        },
        "dataset": {
            "name": run.dataset.name,
            "num_labels": run.dataset.num_labels,
            "train": run.dataset.splits["train"].num_rows,
            "validation": len(run.dataset.splits["validation"]),
        },
        "class_weights": describe_class_weights(run),
        "num_parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "evaluations": run.history.evaluations,
        "seconds": round(run.history.seconds, 1),
        "run": run.describe(),
        "arguments": vars(run.args),
        "device": str(run.accelerator.device),
        "versions": {"python": platform.python_version(), "van_hf": __version__}
        | {name: version(name) for name in packages},
    }


def describe_class_weights(run: Run) -> dict[str, float] | None:
    """Return the weights of the labels in the loss by name, as they came out of the file or the masks."""
    weights = run.loss.class_weights
    return None if weights is None else dict(zip(run.dataset.id2label.values(), weights, strict=True))


def write_results(run: Run, model: VanForSemanticSegmentation) -> None:
    """Write model and figures into the output folder, each file whole or not at all, and then the pictures."""
    staging = run.output_dir / "results.partial"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        save_model(run, model, staging)
        write_json(staging / "results.json", describe_results(run))
        # Without config.json a folder is no model, and with results.json the run is finished: they come last.
        last = ("config.json", "results.json")
        for path in sorted(staging.iterdir(), key=lambda path: last.index(path.name) if path.name in last else -1):
            os.replace(path, run.output_dir / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    write_pictures(
        run.output_dir,
        {
            "training_curves.png": partial(draw_curves, run.history),
            "predictions.png": partial(draw_predictions, run, model),
            example_name(run.dataset): partial(write_example, run),
        },
    )


def draw_curves(history: TrainingHistory, path: Path) -> None:
    """Save the curves of loss, learning rate and mean IoU."""
    plot_training_curves(history.steps, history.losses, history.learning_rates, history.evaluations, path)


def draw_predictions(
    run: Run, model: VanForSemanticSegmentation, path: Path, num_pictures: int = NUM_PICTURES_SHOWN
) -> None:
    """Save validation pictures beside truth and prediction."""
    total = len(run.dataset.splits["validation"])
    indices = sorted({idx * total // num_pictures for idx in range(num_pictures)})
    images, references = zip(*(read_validation_example(run.dataset, idx) for idx in indices), strict=True)
    plot_predictions(
        [as_picture(image, run.image_processor) for image in images],
        [labels.numpy() for labels in references],
        [run.predict(model, image).cpu().numpy() for image in images],
        run.dataset.id2label,
        path,
        palette=run.dataset.palette,
    )


def example_name(dataset: SegmentationDataset) -> str:
    """Return the name of the file of [`write_example`]."""
    return "example.png" if dataset.bands is None else "example.tif"


def write_example(run: Run, path: Path) -> None:
    """Save the first validation picture, to try the model on; one of bands with all of them."""
    if run.dataset.bands is not None:
        copy_without_place(run.dataset.splits["validation"][0]["image"], path)
        return
    image, _ = read_validation_example(run.dataset, 0)
    to_pil_image(image).save(path)


def print_summary(run: Run) -> None:
    """Say what came out, where it lies, and how to use it."""
    figures, seconds = run.evaluation, run.history.seconds
    if run.is_stopped_early:
        print(f"\nStopped after step {run.history.last_step}: the evaluations since were no better than the best")
    if run.args.save_best:
        print(f"\nThe model is that of step {figures['step']}, the best of {len(run.history.evaluations)} evaluations")
    print(f"\nValidation mean IoU {figures['mean_iou']:.4f}, after {seconds:.0f} s. Results are in {run.output_dir}")
    if missing := describe_missing_labels(figures):
        print(missing)
    print("\nTo use the model:\n")
    example = run.output_dir / example_name(run.dataset)
    if run.dataset.bands is not None:
        picture = example if example.exists() else "picture.tif"
        print(f'python examples/predict.py "{run.output_dir}" "{picture}" --output_dir predictions')
        return
    print("import transformers, van_hf")
    picture = example if example.exists() else "picture.jpg"
    print(f'transformers.pipeline("image-segmentation", model="{run.output_dir}")("{picture}")')


def push_results(args: argparse.Namespace) -> None:
    """Release what lies in the output folder on the Hub."""
    from van_hf.hub import collect_files, create_card, push

    try:
        files = collect_files(args.output_dir)
        card = create_card(files, args.hub_model_id)
        pushed = push(files, args.hub_model_id, card=card, private=args.hub_private_repo)
    except (ValueError, OSError) as error:
        private = " --private" if args.hub_private_repo else ""
        sys.exit(
            f"error: {error}\nThe model is whole in {args.output_dir}. To push it:\n"
            f"python examples/push_to_hub.py {args.output_dir} --hub_model_id {args.hub_model_id}{private}"
        )
    with printing():
        print(pushed.describe())


def main() -> None:
    """Run the script."""
    args = parse_arguments(__doc__)
    use_huge_pages()
    state = process_state()
    stop_at_problems(find_problems(args, state), state)
    is_over = broadcast_object_list([is_complete(args)])[0]
    args.resume_from_checkpoint = resolve_latest(args, state)
    args.class_weights = load_or_stop(partial(given_class_weights, args), "--class_weights", state)
    start = load_or_stop(partial(load_start_config, args), "--model_name_or_path", state)
    recipe = resolve_recipe(args, start)
    args.per_device_train_batch_size, args.largest_per_device_train_batch_size = load_or_stop(
        partial(choose_batch_sizes, args, state.num_processes), "--resume_from_checkpoint", state
    )
    stop_at_problems(find_recipe_problems(args, recipe, state), state)
    if is_over:
        stop(f"The run in {args.output_dir} is finished: there is nothing left to do", state, status=0)
    args.num_threads = choose_num_threads(args, state)
    if args.num_threads is not None:
        torch.set_num_threads(args.num_threads)
    args.dataloader_num_workers = choose_num_workers(args, state)
    stop_at_problems(find_access_problems(args, state), state)
    warn_of_lone_process(state, "examples/train_seg.py")
    # Signals are heeded in training; what comes before and after it would not be done sooner if it were ended.
    with claim_output_dir(args, state, first_output_dir(args), is_used), EndSignals() as signals:
        # Until now another run may have written there.
        stop_at_problems(find_folder_problems(args), state)
        run = replace(create_run(args, recipe, state), signals=signals)
        if args.report_to is not None:
            arguments = {name: value for name, value in vars(args).items() if value is not None}
            if isinstance(args.class_weights, (list, dict)):
                arguments["class_weights"] = json.dumps(args.class_weights)  # TensorBoard takes no containers
            run.accelerator.init_trackers("van_hf", config=arguments)
        model = train(run)
        try:
            # All wait here: a process that leaves early can hang the main one as it closes their connection.
            with fail_together():
                if state.is_main_process:
                    write_results(run, model)
        except (OSError, SafetensorError, ValueError) as error:
            stop_and_keep(run, f"the results cannot be written to {run.output_dir}: {error}")
        # Torch's threads free what was gathered last, for which they need Python, which the end would keep from them.
        state.wait_for_everyone()
        run.accelerator.end_training()
        if state.is_main_process:
            with printing():
                print_summary(run)
        # Last, as the other processes would not wait for as long as an upload may take.
        if args.push_to_hub and state.is_main_process:
            push_results(args)


if __name__ == "__main__":
    main()
