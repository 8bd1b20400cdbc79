"""Fitting the heads to comparisons: batches, early stopping of each member, checkpoints.

All members see the same batches, so that a batch is read and multiplied once; they differ in their first weights and
in what dropout hides. Everything drawn comes from one generator whose state is in the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignment.config import RewardSettings
from alignment.errors import DataError, StoreError, TrainingError
from alignment.rewards.heads import HeadEnsemble
from alignment.rewards.losses import reward_loss
from alignment.rewards.table import PairTable
from alignment.rewards.terms import VoteTerms

Progress = Callable[[int, int, dict[str, float]], None]
CHECKPOINT = "reward-checkpoint.pt"
AT_ONCE = 4096  # comparisons of a validation pass that are in memory together
SAMPLED = 16_384  # comparisons that the features' means and deviations are taken from
TERM_RATE = 10.0  # terms are few and meet every batch: they learn this much faster than the weights


@dataclass
class Fitted:
    """``epochs`` run and the members' mean validation loss in nats, None without validation."""

    heads: HeadEnsemble
    terms: VoteTerms
    epochs: int
    valid_loss: float | None
    history: list[dict[str, float]] = field(default_factory=list)


def fit_heads(
    train: PairTable,
    valid: PairTable | None,
    settings: RewardSettings,
    *,
    on_progress: Progress | None = None,
    run_dir: Path | None = None,
) -> Fitted:
    """Heads fitted to the train comparisons, each member kept at its best epoch on the valid ones.

    With ``run_dir`` every epoch ends in a checkpoint there, and a run that was killed goes on from the last one to the
    same result, bit for bit on one device. Raises TrainingError when a loss is no number, naming step, batch and last
    checkpoint; DataError when the checkpoint there is of other data or settings."""
    heads = HeadEnsemble(train.audio.shape[1], hidden=settings.hidden, members=settings.ensemble,
                         dropout=settings.dropout, seed=settings.seed)  # fmt: skip
    fit_features(heads, train)
    terms = VoteTerms(
        settings.ensemble, train.raters, torch.from_numpy(train.targets), ties=settings.ties == "davidson",
        side=settings.side_term, rater_deviation=settings.rater_deviation,
    )  # fmt: skip
    run = _Run(heads, terms, settings)
    fingerprint = _fingerprint(train, valid, settings) if run_dir else ""
    path = None if run_dir is None else run_dir / CHECKPOINT
    if path is not None and path.exists():
        run.load(path, fingerprint)
    saved = path if run.epoch else None
    while run.epoch < settings.epochs and not run.stopped(valid is not None):
        metrics = {"loss": _train_epoch(run, train, saved)}
        if valid is not None:
            metrics["valid_loss"] = run.note_validation(_mean_loss(run, valid))
        run.history.append(metrics)
        if path is not None:
            run.save(path, fingerprint)
            saved = path
        if on_progress is not None:
            on_progress(run.epoch, settings.epochs, metrics)
    best = run.restore_best() if valid is not None else None
    return Fitted(heads, terms, run.epoch, best, run.history)


def fit_features(heads: HeadEnsemble, train: PairTable) -> None:
    """The features' means and deviations from all comparisons, or from 16,384 spread evenly over more."""
    rows = np.unique(np.linspace(0, len(train) - 1, min(len(train), SAMPLED)).round().astype(np.int64))
    audio = np.concatenate([train.audio[train.a[rows]], train.audio[train.b[rows]]])
    text = np.concatenate([train.text[train.text_a[rows]], train.text[train.text_b[rows]]])
    heads.fit_features(torch.from_numpy(audio), torch.from_numpy(text))
    if np.ptp(audio, axis=0).max() == 0 and len(audio) > 1:
        raise DataError(
            f"All {len(audio)} clips have one embedding, so every score would be the same; "
            "check the clips (is all of it silence?) and the encoder."
        )


def losses_of(
    heads: HeadEnsemble, terms: VoteTerms, table: PairTable, rows: np.ndarray, settings: RewardSettings,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Loss (M,) in nats of the comparisons ``rows``; dropout where a generator is given."""
    audio = torch.from_numpy(table.audio[np.concatenate([table.a[rows], table.b[rows]])])
    text_rows = table.text_a[rows] if table.one_text else np.concatenate([table.text_a[rows], table.text_b[rows]])
    text = torch.from_numpy(table.text[text_rows])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bf16):
        differences = heads.differences(audio, text, one_text=table.one_text, generator=generator)
    log_odds = terms(differences, torch.from_numpy(table.rater[rows]).long(), torch.from_numpy(table.side[rows]))
    return reward_loss(
        log_odds, torch.from_numpy(table.targets[rows]), settings.axis_weight, log_ties=terms.log_ties,
        smoothing=settings.label_smoothing,
    )  # fmt: skip


class _Run:
    """Everything that a restart needs."""

    def __init__(self, heads: HeadEnsemble, terms: VoteTerms, settings: RewardSettings) -> None:
        self.heads, self.terms, self.settings = heads, terms, settings
        self.generator = torch.Generator().manual_seed(settings.seed + 1)
        groups: list[dict[str, Any]] = [{"params": list(heads.parameters())}]
        if list(terms.parameters()):
            groups.append({"params": list(terms.parameters()), "lr": TERM_RATE * settings.learning_rate,
                           "weight_decay": 0.0})  # fmt: skip
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=True
        )
        self.epoch = self.step = 0
        self.best_loss = torch.full((heads.members,), torch.inf)
        self.waited = torch.zeros(heads.members, dtype=torch.int64)
        self.best = {name: value.detach().clone() for name, value in self._named()}
        self.history: list[dict[str, float]] = []

    def _named(self) -> list[tuple[str, Tensor]]:
        """Every parameter; each has the members as its first axis."""
        return [*self.heads.named_parameters(), *((f"terms.{n}", p) for n, p in self.terms.named_parameters())]

    def stopped(self, validated: bool) -> bool:
        return validated and bool((self.waited >= self.settings.patience).all())

    def note_validation(self, losses: Tensor) -> float:
        """Keeps each member that has never been better; the mean of the losses (M,)."""
        better = losses < self.best_loss
        self.best_loss = torch.where(better, losses, self.best_loss)
        self.waited = torch.where(better, 0, self.waited + 1)
        for name, value in self._named():
            self.best[name][better] = value.detach()[better]
        return float(losses.mean())

    def restore_best(self) -> float:
        with torch.no_grad():
            for name, value in self._named():
                value.copy_(self.best[name])
        return float(self.best_loss.mean())

    def save(self, path: Path, fingerprint: str) -> None:
        state = {
            "fingerprint": fingerprint, "parameters": dict(self._named()), "best": self.best,
            "optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state(), "epoch": self.epoch,
            "step": self.step, "best_loss": self.best_loss, "waited": self.waited, "history": self.history,
        }  # fmt: skip
        temporary = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:
            raise StoreError(f"{path}: the checkpoint cannot be written ({error}); free space.") from error

    def load(self, path: Path, fingerprint: str) -> None:
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise StoreError(f"{path}: the checkpoint is damaged ({error}); delete it and start again.") from error
        if state["fingerprint"] != fingerprint:
            raise DataError(
                f"{path}: a checkpoint of other votes or settings; give this run another folder, or delete the file."
            )
        with torch.no_grad():
            for name, value in self._named():
                value.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.best, self.best_loss, self.waited = state["best"], state["best_loss"], state["waited"]
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]


def _train_epoch(run: _Run, train: PairTable, saved: Path | None) -> float:
    """The mean loss in nats of an epoch of optimizer steps."""
    settings, total = run.settings, 0.0
    order = torch.randperm(len(train), generator=run.generator).numpy()
    for start in range(0, len(order), settings.batch_size):
        rows = order[start : start + settings.batch_size]
        losses = losses_of(run.heads, run.terms, train, rows, settings, run.generator)
        run.step += 1
        mean = float(losses.detach().mean())
        if not math.isfinite(mean):
            named = ", ".join(train.name(int(row)) for row in rows[:3]) + (" and others" if len(rows) > 3 else "")
            kept = f"the last good checkpoint is {saved}" if saved else "no checkpoint was written"
            raise TrainingError(
                f"The reward model's loss is {mean} at step {run.step} of epoch {run.epoch + 1}, in the batch of "
                f"{named}; {kept}. Lower learning_rate and look at these clips."
            )
        run.optimizer.zero_grad(set_to_none=True)
        # Members share no parameter, so each gets its own gradient. The prior counts once an epoch.
        (losses + run.terms.penalty() / len(train)).sum().backward()
        run.optimizer.step()
        total += mean * len(rows)
    run.epoch += 1
    return total / len(train)


@torch.no_grad()
def _mean_loss(run: _Run, table: PairTable) -> Tensor:
    """Validation loss (M,) in nats, the mean over heads' answers of the whole split."""
    total, weight = torch.zeros(run.heads.members), 0
    for start in range(0, len(table), AT_ONCE):
        rows = np.arange(start, min(start + AT_ONCE, len(table)))
        total += losses_of(run.heads, run.terms, table, rows, run.settings) * len(rows)
        weight += len(rows)
    return total / weight


def _fingerprint(train: PairTable, valid: PairTable | None, settings: RewardSettings) -> str:
    """sha256 of what a run is made of; of the embeddings a spread sample of rows."""
    digest = hashlib.sha256(json.dumps(settings.model_dump(mode="json"), sort_keys=True).encode())
    for table in (train, valid):
        if table is not None:
            for array in (table.a, table.b, table.text_a, table.text_b, table.targets, table.rater, table.side):
                digest.update(np.ascontiguousarray(array))
            for matrix in (table.audio, table.text):
                digest.update(np.ascontiguousarray(matrix[:: max(1, len(matrix) // 256)]))
    return digest.hexdigest()
