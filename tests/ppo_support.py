"""A tiny music model, quick settings and a reward that reads codes, for the tests of PPO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from alignment.config import PpoSettings
from alignment.training.reinforce import Rewards

PROMPTS = ["calm slow piano", "fast violin with drums and bright strings", "dark organ", "lively guitar in major"]
QUICK = PpoSettings(
    learning_rate=1e-2, max_steps=4, rollout_prompts=4, num_generations=4, num_ppo_epochs=2, num_mini_batches=2,
    per_device_train_batch_size=16, kl_coef=0.05, generation={"clip_seconds": 0.5}, lora={"r": 4, "lora_alpha": 8},
    value={"hidden": 16, "lam": 0.95, "warmup_steps": 0, "epochs": 2},
)  # fmt: skip


def settings(**changes: object) -> PpoSettings:
    return PpoSettings.model_validate({**QUICK.model_dump(), **changes})


def low_codes(prompts: Sequence[str], codes: torch.Tensor) -> Rewards:
    """Four times the share of the first five frames' codes of book 0 that lie in the lower half of 64, and a tenth for
    each word, so that prompts differ. Few codes, so that few clips show what earns it."""
    low = (codes[:, 0, :5] < 32).double().mean(dim=1).numpy()
    words = np.array([len(prompt.split()) for prompt in prompts], dtype=float)
    return Rewards(4 * low + 0.1 * words, {"low": low, "words": words})


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def without_times(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in entry.items() if not name.startswith("seconds/")} for entry in history]
