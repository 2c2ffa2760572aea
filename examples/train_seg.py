# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Trains a VAN segmentation model, evaluates it with mean IoU and saves it.

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
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from common_arguments import load_dataset, process_state, stop_at_problems, warn_of_lone_process
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import to_pil_image
from tqdm.auto import tqdm
from train_arguments import (
    batch_sizes,
    checkpoint_to_resume,
    describe_run,
    find_problems,
    parse_arguments,
    resolve_recipe,
)

from van_hf import VanConfig, VanForSemanticSegmentation, VanImageProcessor, __version__
from van_hf.data import SegmentationDataset, TrainAugmentation, TrainSamples
from van_hf.evaluation import evaluate, load_trained, read_validation_example
from van_hf.inference import DTYPES, Protocol, load_weights, predict
from van_hf.model.configuration_van import VAN_SIZES
from van_hf.training import (
    Recipe,
    TrainingHistory,
    complete_checkpoints,
    create_ema,
    create_optimizer,
    create_scheduler,
    save_checkpoint,
)
from van_hf.visualization import plot_predictions, plot_training_curves

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
    "auxiliary_hidden_size": 32,
}
NUM_PICTURES_SHOWN = 6


def create_model(
    args: argparse.Namespace, recipe: Recipe, dataset: SegmentationDataset
) -> tuple[VanForSemanticSegmentation, list[str]]:
    """Returns the model to train, with the dataset's labels, and the names of its modules that have new weights."""
    labels = {
        "id2label": dataset.id2label,
        "label2id": {label: idx for idx, label in dataset.id2label.items()},
        "palette": dataset.palette,
    }
    path = args.model_name_or_path
    if args.model_size in VAN_SIZES:
        config = VanConfig.from_size(args.model_size, decode_head=recipe.decode_head, **labels)
    elif args.model_size == "mini" or path is None:
        config = VanConfig(**MINI, decode_head=recipe.decode_head, **labels)
    else:
        config = VanConfig.from_pretrained(path, **labels)
        if args.decode_head is not None or "VanForSemanticSegmentation" not in (config.architectures or []):
            config.decode_head = recipe.decode_head
    if path is None:
        return VanForSemanticSegmentation(config), ["all"]
    return load_weights(path, config)


def create_loader(
    args: argparse.Namespace, recipe: Recipe, dataset: SegmentationDataset, per_device: int, first_sample: int
) -> DataLoader:
    """Returns the batches of the rest of a run; `accelerator.prepare` deals them out to the processes in turn."""
    samples = TrainSamples(
        dataset.splits["train"],
        TrainAugmentation(
            crop_size=recipe.crop_size,
            scale=recipe.image_scale,
            ratio_range=recipe.ratio_range,
            photometric_distortion=recipe.photometric_distortion,
        ),
        num_labels=dataset.num_labels,
        do_reduce_labels=dataset.do_reduce_labels,
        seed=args.seed,
        num_samples=recipe.max_train_steps * recipe.total_train_batch_size,
        name=f"{dataset.name} train",
        jpeg_draft=args.jpeg_draft,
    )
    return DataLoader(
        samples,
        batch_size=per_device,
        sampler=range(first_sample, len(samples)),
        num_workers=args.dataloader_num_workers,
        pin_memory=torch.cuda.is_available(),
        # Without a generator of its own the loader draws from the one that stochastic depth uses.
        generator=torch.Generator(),
    )


def normalize(pixel_values: torch.Tensor, image_processor: VanImageProcessor) -> torch.Tensor:
    """Turns crops, uint8 (batch, 3, crop, crop), into what the image processor would make of them, on their device."""
    mean, std = image_processor.image_mean, image_processor.image_std
    return image_processor.rescale_and_normalize(pixel_values, True, image_processor.rescale_factor, True, mean, std)


def train(
    accelerator: Accelerator,
    args: argparse.Namespace,
    recipe: Recipe,
    dataset: SegmentationDataset,
    model: VanForSemanticSegmentation,
    image_processor: VanImageProcessor,
) -> tuple[VanForSemanticSegmentation, TrainingHistory]:
    """Trains a model, from the beginning or from a checkpoint.

    Returns:
        The model to use, in evaluation mode, with `--ema_decay` the averaged one; and the history, which ends with its
        evaluation.
    """
    output_dir = Path(args.output_dir)
    run = describe_run(args, recipe, accelerator.num_processes)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    ema = create_ema(model, args.ema_decay) if args.ema_decay is not None else None
    trained_model = ema.module if ema else model
    optimizer = create_optimizer(model, recipe)
    scheduler = create_scheduler(optimizer, recipe)
    history = TrainingHistory()
    wrapped_model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(scheduler, history, *([ema] if ema else []))
    # From here on every process has random numbers of its own, for stochastic depth and dropout.
    set_seed(args.seed, device_specific=True)
    if checkpoint := checkpoint_to_resume(args):
        accelerator.load_state(str(checkpoint))
    first_sample = history.last_step * recipe.total_train_batch_size
    batches = iter(
        accelerator.prepare(create_loader(args, recipe, dataset, run["per_device_train_batch_size"], first_sample))
    )

    model.train()
    started = time.perf_counter() - history.seconds
    progress = progress_bar(accelerator, recipe, history.last_step)
    while history.last_step < recipe.max_train_steps:
        learning_rate = scheduler.get_last_lr()[0]
        loss, gradient_norm = backward(accelerator, wrapped_model, batches, image_processor, args.max_grad_norm)
        stop_if_not_finite(accelerator, loss, gradient_norm, history.last_step + 1, output_dir)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if ema:
            ema.update_parameters(model)
        history.add_step(loss, learning_rate)
        step = history.last_step
        accelerator.log({"loss": loss, "learning_rate": learning_rate}, step=step)
        show_progress(progress, loss, learning_rate, recipe.total_train_batch_size)

        if step % recipe.eval_steps == 0 or step == recipe.max_train_steps:
            prepare_evaluation(trained_model)
            predict_picture = partial(
                predict, trained_model, image_processor, dtype=DTYPES[accelerator.mixed_precision]
            )
            figures = evaluate(accelerator, predict_picture, dataset)
            history.evaluations.append({"step": step, **figures})
            accelerator.log({"mean_iou": figures["mean_iou"]}, step=step)
            if accelerator.is_main_process:
                progress.write(f"Step {step}: validation mean IoU {figures['mean_iou']:.4f}")
            model.train()
        history.seconds = time.perf_counter() - started
        if step % (args.checkpointing_steps or recipe.eval_steps) == 0:
            save_checkpoint(accelerator, output_dir, step, run, args.checkpoints_total_limit)
    progress.close()
    prepare_evaluation(trained_model)
    return trained_model, history


def backward(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Iterator[dict],
    image_processor: VanImageProcessor,
    max_grad_norm: float | None,
) -> tuple[float, float]:
    """Accumulates the gradients of one optimizer step.

    The loss is the mean over the step's batches, and within each over its pixels that are not ignored, as in
    transformers.

    Returns:
        The loss over all processes, and the norm of the gradients before clipping.
    """
    total = torch.zeros((), device=accelerator.device)
    for _ in range(accelerator.gradient_accumulation_steps):
        batch = next(batches)
        with accelerator.accumulate(model):
            pixel_values = normalize(batch["pixel_values"], image_processor)
            loss = model(pixel_values=pixel_values, labels=batch["labels"]).loss
            accelerator.backward(loss)
            total += loss.detach() / accelerator.gradient_accumulation_steps
    gradient_norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm or float("inf"))
    return accelerator.reduce(total, reduction="mean").item(), float(gradient_norm)


def stop_if_not_finite(
    accelerator: Accelerator, loss: float, gradient_norm: float, step: int, output_dir: Path
) -> None:
    """Raises a `FloatingPointError`, on all processes, before NaN or infinity can reach the weights."""
    # In fp16 gradients overflow now and then; accelerate's gradient scaler skips such steps.
    finite = math.isfinite(loss) and (math.isfinite(gradient_norm) or accelerator.scaler is not None)
    if not finite:
        checkpoints = complete_checkpoints(output_dir)
        last_good = checkpoints[-1] if checkpoints else "none"
        raise FloatingPointError(
            f"step {step}: loss {loss}, gradient norm {gradient_norm}. Last good checkpoint: {last_good}. "
            "A lower --learning_rate, a longer --warmup_steps or --max_grad_norm may help."
        )


def prepare_evaluation(model: nn.Module) -> None:
    """Puts a model into evaluation mode, with the same weights on all processes."""
    model.eval()
    # Each process has BatchNorm statistics of its own; those of the first are the ones that are saved.
    broadcast(list(model.buffers()), from_process=0)


def progress_bar(accelerator: Accelerator, recipe: Recipe, initial: int) -> tqdm:
    """Returns the bar of optimizer steps; where no one watches, as in a log file, it is printed now and then."""
    return tqdm(
        total=recipe.max_train_steps,
        initial=initial,
        desc="Training",
        unit="step",
        mininterval=0.5 if sys.stderr.isatty() else 15,
        disable=not accelerator.is_main_process,
    )


def show_progress(progress: tqdm, loss: float, learning_rate: float, batch_size: int) -> None:
    """Advances the bar by a step."""
    values = {"loss": f"{loss:.3f}", "lr": f"{learning_rate:.1e}"}
    if steps_per_second := progress.format_dict["rate"]:
        values["images/s"] = f"{batch_size * steps_per_second:.0f}"
    progress.set_postfix(values, refresh=False)
    progress.update()


def draw_predictions(
    accelerator: Accelerator,
    dataset: SegmentationDataset,
    model: VanForSemanticSegmentation,
    image_processor: VanImageProcessor,
    folder: Path,
) -> None:
    """Saves validation pictures beside truth and prediction, and the first of them by itself, to try the model on."""
    total = len(dataset.splits["validation"])
    indices = sorted({idx * total // NUM_PICTURES_SHOWN for idx in range(NUM_PICTURES_SHOWN)})
    images, references = zip(*(read_validation_example(dataset, idx) for idx in indices), strict=True)
    dtype = DTYPES[accelerator.mixed_precision]
    predictions = [predict(model, image_processor, image, dtype=dtype).cpu().numpy() for image in images]
    references = [labels.numpy() for labels in references]
    pictures = [to_pil_image(image) for image in images]
    plot_predictions(
        pictures, references, predictions, dataset.id2label, folder / "predictions.png", palette=dataset.palette
    )
    pictures[0].save(folder / "example.png")


def describe_results(
    accelerator: Accelerator,
    args: argparse.Namespace,
    recipe: Recipe,
    dataset: SegmentationDataset,
    model: VanForSemanticSegmentation,
    image_processor: VanImageProcessor,
    history: TrainingHistory,
) -> dict:
    """Returns the content of results.json: figures, and what is needed to judge and to repeat them."""
    packages = ("torch", "torchvision", "transformers", "datasets", "accelerate")
    return {
        **history.evaluations[-1],
        "protocol": {
            "metric": "mean IoU over the labels that occur, from one confusion matrix over all pixels; 255 is ignored",
            "inference": Protocol().describe(),
            "size": dict(image_processor.size),
        },
        "dataset": {
            "name": dataset.name,
            "num_labels": dataset.num_labels,
            "train": len(dataset.splits["train"]),
            "validation": len(dataset.splits["validation"]),
        },
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "evaluations": history.evaluations,
        "seconds": round(history.seconds, 1),
        "run": describe_run(args, recipe, accelerator.num_processes),
        "arguments": vars(args),
        "device": str(accelerator.device),
        "versions": {"python": platform.python_version(), "van_hf": __version__}
        | {name: version(name) for name in packages},
    }


def write_results(
    accelerator: Accelerator,
    args: argparse.Namespace,
    recipe: Recipe,
    dataset: SegmentationDataset,
    model: VanForSemanticSegmentation,
    image_processor: VanImageProcessor,
    history: TrainingHistory,
) -> None:
    """Writes model, figures and pictures into the output folder, all of them whole or not at all."""
    output_dir = Path(args.output_dir)
    staging = output_dir / "results.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    if recipe.max_train_steps > 0:
        accelerator.unwrap_model(model).save_pretrained(staging)
        image_processor.save_pretrained(staging)
        curves = (history.steps, history.losses, history.learning_rates, history.evaluations)
        plot_training_curves(*curves, staging / "training_curves.png")
    draw_predictions(accelerator, dataset, model, image_processor, staging)
    results = describe_results(accelerator, args, recipe, dataset, model, image_processor, history)
    (staging / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    # Without config.json a folder is no model, and with results.json the run is finished: they come last.
    last = ("config.json", "results.json")
    for path in sorted(staging.iterdir(), key=lambda path: last.index(path.name) if path.name in last else -1):
        os.replace(path, output_dir / path.name)
    staging.rmdir()


def print_summary(args: argparse.Namespace, recipe: Recipe, history: TrainingHistory) -> None:
    """Says what came out, where it lies, and how to use it."""
    folder = args.output_dir
    figures = history.evaluations[-1]
    print(f"\nValidation mean IoU {figures['mean_iou']:.4f}, after {history.seconds:.0f} s. Results are in {folder}")
    if recipe.max_train_steps > 0:
        print("\nTo use the model:\n")
        print("import transformers, van_hf")
        print(f'transformers.pipeline("image-segmentation", model="{folder}")("{folder}/example.png")')


def push_results(args: argparse.Namespace) -> None:
    """Releases what lies in the output folder on the Hub."""
    from van_hf.hub import collect_files, create_card, push

    try:
        files = collect_files(args.output_dir)
        card = create_card(files, args.hub_model_id)
        print(push(files, args.hub_model_id, card=card, private=args.hub_private_repo).describe())
    except (ValueError, OSError) as error:
        private = " --private" if args.hub_private_repo else ""
        sys.exit(
            f"error: {error}\nThe model is whole in {args.output_dir}. To push it:\n"
            f"python examples/push_to_hub.py {args.output_dir} --hub_model_id {args.hub_model_id}{private}"
        )


def main() -> None:
    """Runs the script."""
    args = parse_arguments(__doc__)
    state = process_state()
    recipe = resolve_recipe(args)
    stop_at_problems(find_problems(args, recipe, state), state)
    per_device, accumulation = batch_sizes(args, recipe, state.num_processes)
    total = per_device * accumulation * state.num_processes
    if total != recipe.total_train_batch_size:
        state.print(
            f"{total} pictures per step, for the recipe's {recipe.total_train_batch_size} do not work out here"
        )
        recipe = replace(recipe, total_train_batch_size=total)
    warn_of_lone_process(state, "examples/train_seg.py")
    accelerator = Accelerator(
        gradient_accumulation_steps=accumulation,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_dir=args.output_dir,
    )
    if args.report_to is not None:
        arguments = {name: value for name, value in vars(args).items() if value is not None}
        accelerator.init_trackers("van_hf", config=arguments)
    set_seed(args.seed)
    with accelerator.main_process_first():
        dataset = load_dataset(args)

    if recipe.max_train_steps == 0:
        model, image_processor = load_trained(args.model_name_or_path, dataset)
        model.to(accelerator.device, memory_format=torch.channels_last)
        started = time.perf_counter()
        prepare_evaluation(model)
        predict_picture = partial(predict, model, image_processor, dtype=DTYPES[accelerator.mixed_precision])
        figures = evaluate(accelerator, predict_picture, dataset)
        history = TrainingHistory(evaluations=[{"step": 0, **figures}], seconds=time.perf_counter() - started)
    else:
        model, new = create_model(args, recipe, dataset)
        longest, shortest = recipe.image_scale
        image_processor = VanImageProcessor(
            size={"shortest_edge": shortest, "longest_edge": longest}, do_reduce_labels=dataset.do_reduce_labels
        )
        accelerator.print(f"New weights, to be trained from scratch: {', '.join(new) or 'none'}")
        model, history = train(accelerator, args, recipe, dataset, model, image_processor)

    if accelerator.is_main_process:
        write_results(accelerator, args, recipe, dataset, model, image_processor, history)
        print_summary(args, recipe, history)
    # A process that leaves early can hang the main one as it closes their connection.
    accelerator.wait_for_everyone()
    accelerator.end_training()
    # Last, as the other processes would not wait for as long as an upload may take.
    if args.push_to_hub and accelerator.is_main_process:
        push_results(args)


if __name__ == "__main__":
    main()
