"""Pairs, examples and stand-ins for TRL's trainers that the training tests share."""

from __future__ import annotations

import os
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
import torch

from alignment.domain import ClipRef, Outcome, Pair, RaterKind, Split
from alignment.training.examples import DpoExample


def clip(name: str) -> ClipRef:
    return ClipRef(f"clip-{name}", "base", f"audio-{name}", f"codes-{name}")


def pair(
    number: int,
    outcome: Outcome = Outcome.A,
    *,
    prompt: str = "calm piano",
    split: Split = Split.TRAIN,
    axes: dict[str, int] | None = None,
    a: str | None = None,
    b: str | None = None,
) -> Pair:
    preference = {Outcome.A: 1.0, Outcome.B: 0.0}.get(outcome, 0.5)
    return Pair(
        f"vote-{number}", f"prompt-{prompt}", prompt, split, clip(a or f"{number}a"), clip(b or f"{number}b"), outcome,
        preference, axes or {}, "rater-1", RaterKind.SIMULATED,
    )  # fmt: skip


def unit_vectors(names: list[str], width: int, seed: int) -> dict[str, np.ndarray]:
    values = np.random.default_rng(seed).normal(size=(len(names), width))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return dict(zip(names, values.astype(np.float32), strict=True))


def random_examples(model: Any, prompts: list[str], *, frames: int = 6, seed: int = 0) -> list[DpoExample]:
    """One example a prompt with codes drawn evenly."""
    rng = np.random.default_rng(seed)
    shape = (model.codebooks, frames)
    return [
        DpoExample(prompt, rng.integers(model.codebook_size, size=shape), rng.integers(model.codebook_size, size=shape))
        for prompt in prompts
    ]


class TrlModel:
    """A 'model' whose forward returns given values, so that TRL's own loss code runs on them."""

    training = True

    def __init__(self, **outputs: Any) -> None:
        self.outputs = SimpleNamespace(**outputs)

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        return self.outputs


def trl_state(**settings: Any) -> SimpleNamespace:
    """What a TRL trainer's loss reads of its trainer."""
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    return SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator, _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0, _tp_size=1, **settings,
    )  # fmt: skip


def trl_dpo_loss(
    policy: torch.Tensor, reference: torch.Tensor, lengths: list[int], *, beta: float, loss_type: str, smoothing: float
) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """(loss, metrics) of TRL's DPOTrainer. policy (2 B, T) log-probabilities a token, chosen first, zero beyond
    ``lengths``; reference (2 B,) summed."""
    from trl import DPOTrainer

    rows, longest = policy.shape
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    # One prompt token in front: TRL scores positions 1 and later.
    completion_mask = torch.cat([torch.zeros(rows, 1, dtype=torch.long), mask], dim=1)
    zeros = torch.zeros(rows, longest)
    model = TrlModel(log_probs=policy, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    ref_chosen, ref_rejected = reference.chunk(2)
    state = trl_state(
        beta=beta, label_smoothing=smoothing, loss_types=[loss_type], loss_weights=[1.0], aux_loss_enabled=False,
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", use_weighting=False,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.zeros_like(completion_mask), "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask, "ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected,
    }  # fmt: skip
    return DPOTrainer._compute_loss(state, model, inputs, False), state._metrics["train"]
