# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Takes a step of transformers' Trainer on 8 equal pictures and prints the loss and a weight after it as JSON:
train_with_trainer.py OUTPUT_DIR PICTURES_PER_DEVICE ACCUMULATED_BATCHES."""

import json
import os
import sys

import torch
from accelerate import PartialState
from conftest import tiny_config
from transformers import Trainer, TrainingArguments

from van_hf import VanForImageClassification, VanForSemanticSegmentation


def take_a_step(
    model_class, output_dir: str, per_device: int, accumulated: int, gradient_checkpointing: bool = False
) -> tuple[float, float]:
    torch.manual_seed(0)
    # All pictures are the same, and with them BatchNorm's statistics, whatever the batches are.
    model = model_class(tiny_config("semantic_fpn", classifier_dropout_prob=0.0))
    shape = (64, 64) if model_class is VanForSemanticSegmentation else ()
    example = {"pixel_values": torch.randn(3, 64, 64), "labels": torch.randint(0, 7, shape)}
    arguments = TrainingArguments(
        output_dir,
        max_steps=1,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulated,
        gradient_checkpointing=gradient_checkpointing,
        learning_rate=1.0,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=[example] * 8)
    trainer.train()
    head = model.decode_head.classifier if hasattr(model, "decode_head") else model.classifier
    return trainer.state.log_history[0]["loss"], head.bias.sum().item() + head.weight.square().sum().item()


if __name__ == "__main__":
    output_dir, per_device, accumulated = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    steps = {
        model_class.__name__: take_a_step(model_class, output_dir, per_device, accumulated)
        for model_class in (VanForSemanticSegmentation, VanForImageClassification)
    }
    if PartialState().is_main_process:
        print("RESULT", json.dumps(steps), flush=True)
    # Without taking the group of processes down, in which torch aborts or hangs now and then.
    os._exit(0)
