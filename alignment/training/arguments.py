"""A recipe's settings as transformers' TrainingArguments."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from alignment.config import AdapterSettings
from alignment.training.reporting import check_report_to


def training_arguments(
    settings: AdapterSettings,
    run_dir: Path,
    device: torch.device,
    kind: type[TrainingArguments] = TrainingArguments,
    **more: Any,
) -> TrainingArguments:
    """The settings as the Trainer's arguments, of class ``kind`` with ``more`` of its own.

    Under torchrun this is where the processes find each other. Raises ConfigError when ``report_to`` cannot be used."""
    check_report_to(settings.report_to)
    shared: dict[str, Any] = {
        "output_dir": str(run_dir),
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.num_train_epochs,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "warmup_steps": settings.warmup_ratio,  # below 1, transformers reads it as a share of all steps
        "max_grad_norm": settings.max_grad_norm,
        "weight_decay": 0.0,
        "save_strategy": "steps" if settings.save_steps else "no",
        "save_steps": settings.save_steps or 500,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "bf16": False,  # TRL's default is bf16; PolicyModule has it, so that the reference has it too
        "remove_unused_columns": False,
        "label_names": [],
        "report_to": settings.report_to,
        "ddp_find_unused_parameters": False,
        "push_to_hub": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": device.type == "cpu",
    }
    # Off here, since PolicyModule turns it on where it is wanted; TRL's default is on. The name is changing.
    known = {field.name for field in fields(TrainingArguments)}
    shared["activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"] = False
    arguments = kind(**shared, **more)
    # One process trains on one device; several are several processes (torchrun), never threads of this one.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
