"""Training of a reward model on pairs.

Bradley-Terry with soft targets (a tie is a half, a step on an axis is a quarter), AdamW, early stopping for each
member of the ensemble on the validation split, then one temperature a head so that a difference of scores is the
log-odds of a vote (Guo et al., arXiv:1706.04599). Members differ in their initial weights, order and dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from alignment.config import RewardSettings
from alignment.domain import Axis, Outcome, Pair, Split
from alignment.errors import DataError, TrainingError
from alignment.rewards.heads import HEADS, HeadEnsemble, soft_bradley_terry
from alignment.rewards.model import Embeddings, RewardModel, stack

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class PairTensors:
    """N pairs as tensors. ``targets`` (N, 3) is the credit of clip a under each head, NaN where nobody answered."""

    audio_a: Tensor  # (N, D)
    audio_b: Tensor  # (N, D)
    text: Tensor  # (N, D)
    targets: Tensor  # (N, 3), in the order of HEADS

    def __len__(self) -> int:
        return len(self.targets)


def train_reward(
    pairs: Sequence[Pair],
    audio_embeddings: Embeddings,
    text_embeddings: Embeddings,
    settings: RewardSettings,
    on_progress: Progress | None = None,
    *,
    encoder: str = "",
) -> RewardModel:
    """A reward model trained on the train pairs and stopped on the valid pairs; other splits are never looked at.

    Embeddings are by audio sha256 and by prompt text. ``on_progress(epoch, epochs, metrics)`` follows every epoch.
    Without validation pairs it trains for all epochs and stays uncalibrated. A head whose question nobody answered is
    left out of ``trained_heads``. Raises DataError when no train vote is decisive, TrainingError when the loss is no
    number. The same pairs and settings give the same model, bit for bit on one device."""
    usable = [p for p in pairs if not (p.outcome == Outcome.BOTH_BAD and settings.both_bad == "drop")]
    train_pairs = [pair for pair in usable if pair.split == Split.TRAIN]
    valid_pairs = [pair for pair in usable if pair.split == Split.VALID]
    if not train_pairs:
        raise DataError(f"None of {len(pairs)} pairs is in the train split; there is nothing to learn from.")
    if all(pair.preference == 0.5 for pair in train_pairs):
        raise DataError(f"All {len(train_pairs)} train votes are ties; a reward model needs decisive votes.")
    train = pair_tensors(train_pairs, audio_embeddings, text_embeddings)
    valid = pair_tensors(valid_pairs, audio_embeddings, text_embeddings) if valid_pairs else None

    width = train.audio_a.shape[1]
    heads = HeadEnsemble(width, hidden=settings.hidden, members=settings.ensemble, dropout=settings.dropout,
                         seed=settings.seed)  # fmt: skip
    heads.fit_features(torch.cat([train.audio_a, train.audio_b]), torch.cat([train.text, train.text]))
    answered = ~train.targets.isnan().all(0)
    trained = tuple(head for head, any_answer in zip(HEADS, answered.tolist(), strict=True) if any_answer)
    epochs, best = _fit(heads, train, valid, settings, on_progress)

    model = RewardModel(heads, encoder, {head: 1.0 for head in trained}, trained, settings.model_dump())
    if valid is not None:
        model.temperatures = {head: _temperature(heads, valid, head) for head in trained}
    model.metrics = {"epochs": epochs, "train_pairs": len(train_pairs), "valid_pairs": len(valid_pairs),
                     "valid_loss": best}  # fmt: skip
    return model


def cross_validate(
    pairs: Sequence[Pair],
    audio_embeddings: Embeddings,
    text_embeddings: Embeddings,
    settings: RewardSettings,
    *,
    folds: int = 5,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Pair], dict[str, np.ndarray]]:
    """(the decisive pairs, {head: agreement (n,) of a reward model that never saw the pair's prompt}).

    Prompts are dealt into ``folds``, whatever their split: each fold is predicted by a model trained on the others, of
    which the next one stops its training. Raises DataError with fewer prompts than folds."""
    prompts = sorted({pair.prompt_text for pair in pairs})
    if len(prompts) < folds:
        raise DataError(f"The votes are on {len(prompts)} prompts; {folds} folds need at least as many.")
    order = np.random.default_rng(settings.seed).permutation(len(prompts))
    fold_of = {prompts[p]: place % folds for place, p in enumerate(order)}
    tested: list[Pair] = []
    found: dict[str, list[np.ndarray]] = {}
    for fold in range(folds):
        split_of = {fold: Split.TEST, (fold + 1) % folds: Split.VALID}
        dealt = [replace(pair, split=split_of.get(fold_of[pair.prompt_text], Split.TRAIN)) for pair in pairs]
        decisive = [pair for pair in dealt if pair.split == Split.TEST and pair.preference != 0.5]
        if decisive:
            model = train_reward(dealt, audio_embeddings, text_embeddings, settings)
            tested += decisive
            for head in model.trained_heads:
                agreement = model.agreement(decisive, audio_embeddings, text_embeddings, head=head)
                found.setdefault(head, []).append(agreement)
        if on_progress is not None:
            on_progress(fold + 1, folds)
    # A head that one fold's model had no answer for has no agreement over all pairs.
    whole = {head: np.concatenate(parts) for head, parts in found.items()}
    return tested, {head: values for head, values in whole.items() if len(values) == len(tested)}


def pair_tensors(pairs: Sequence[Pair], audio_embeddings: Embeddings, text_embeddings: Embeddings) -> PairTensors:
    """The embeddings and targets of the pairs. Raises DataError on a missing, misshapen or non-finite embedding."""
    audio_a = stack(audio_embeddings, [pair.a.audio_sha256 for pair in pairs], "embedding of clip")
    audio_b = stack(audio_embeddings, [pair.b.audio_sha256 for pair in pairs], "embedding of clip")
    text = stack(text_embeddings, [pair.prompt_text for pair in pairs], "text embedding of prompt")
    if audio_a.shape != text.shape:
        raise DataError(f"Audio embeddings are {audio_a.shape}, text embeddings {text.shape}; one encoder gives both.")
    if not all(np.isfinite(values).all() for values in (audio_a, audio_b, text)):
        raise DataError("An embedding is not finite; is a clip silent or damaged?")
    targets = np.array([[axis_target(pair, Axis.TEXT_ADHERENCE), axis_target(pair, Axis.QUALITY), pair.preference]
                        for pair in pairs], dtype=np.float32)  # fmt: skip
    return PairTensors(*map(torch.from_numpy, (audio_a, audio_b, text, targets)))


def axis_target(pair: Pair, axis: Axis) -> float:
    """Credit of clip a on an axis: -2 (clearly a) gives 1, 0 gives 0.5, 2 (clearly b) gives 0; NaN if unanswered."""
    step = pair.axes.get(axis.value)
    return float("nan") if step is None else 0.5 - step / 4


def reward_loss(
    scores_a: dict[str, Tensor], scores_b: dict[str, Tensor], targets: Tensor, axis_weight: float
) -> Tensor:
    """Loss of each member in nats, (M,): the vote's, plus ``axis_weight`` times each axis's over those answered.

    scores (M, B) by head; targets (B, 3) or (M, B, 3) in the order of HEADS, NaN = not asked."""
    total = torch.zeros(scores_a["preference"].shape[0], device=targets.device)
    for column, head in enumerate(HEADS):
        target = targets[..., column]
        answered = ~target.isnan()
        losses = soft_bradley_terry(scores_a[head], scores_b[head], target.nan_to_num(0.5)) * answered
        mean = losses.sum(-1) / answered.sum(-1).clamp(min=1)
        total = total + (mean if head == "preference" else axis_weight * mean)
    return total


def _fit(
    heads: HeadEnsemble, train: PairTensors, valid: PairTensors | None, settings: RewardSettings,
    on_progress: Progress | None,
) -> tuple[int, float | None]:  # fmt: skip
    """Fit in place, each member at its own best epoch; returns epochs run and the members' mean validation loss."""
    generator = torch.Generator().manual_seed(settings.seed + 1)
    optimizer = torch.optim.AdamW(
        heads.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=True
    )
    members = heads.members
    best_loss = torch.full((members,), torch.inf)
    best = {name: value.detach().clone() for name, value in heads.named_parameters()}
    waited = torch.zeros(members, dtype=torch.int64)
    epoch = 0
    for epoch in range(1, settings.epochs + 1):
        order = torch.stack([torch.randperm(len(train), generator=generator) for _ in range(members)])  # (M, N)
        total = 0.0
        for batch in order.split(settings.batch_size, dim=1):  # (M, B)
            losses = _loss(heads, train, batch, settings.axis_weight, generator)
            optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()  # members share no weight, so each gets its own gradient
            optimizer.step()
            total += float(losses.detach().mean()) * batch.shape[1]
        metrics = {"loss": total / len(train)}
        if not np.isfinite(metrics["loss"]):
            raise TrainingError(f"The reward model's loss is {metrics['loss']} at epoch {epoch}; lower learning_rate.")
        if valid is not None:
            with torch.no_grad():
                every = torch.arange(len(valid)).expand(members, -1)
                valid_loss = _loss(heads, valid, every, settings.axis_weight, None)
            better = valid_loss < best_loss
            best_loss = torch.where(better, valid_loss, best_loss)
            waited = torch.where(better, 0, waited + 1)
            for name, value in heads.named_parameters():
                best[name][better] = value.detach()[better]
            metrics["valid_loss"] = float(valid_loss.mean())
        if on_progress is not None:
            on_progress(epoch, settings.epochs, metrics)
        if valid is not None and bool((waited >= settings.patience).all()):
            break
    if valid is None:
        return epoch, None
    heads.load_state_dict(best, strict=False)  # the buffers did not change
    return epoch, float(best_loss.mean())


def _loss(
    heads: HeadEnsemble, pairs: PairTensors, index: Tensor, axis_weight: float, generator: torch.Generator | None
) -> Tensor:
    """Loss (M,) on the pairs index (M, B)."""
    text = pairs.text[index]  # (M, B, D)
    scores_a = heads(heads.features(pairs.audio_a[index], text), generator=generator)
    scores_b = heads(heads.features(pairs.audio_b[index], text), generator=generator)
    return reward_loss(scores_a, scores_b, pairs.targets[index], axis_weight)


@torch.no_grad()
def _temperature(heads: HeadEnsemble, valid: PairTensors, head: str) -> float:
    """The divisor of a head's scores, from 0.1 to 10, with the least validation loss of the ensemble's mean score."""
    target = valid.targets[:, HEADS.index(head)]
    answered = ~target.isnan()
    if not bool(answered.any()):
        return 1.0
    mean_a, mean_b = (heads(heads.features(audio, valid.text))[head].mean(0)[answered]
                      for audio in (valid.audio_a, valid.audio_b))  # fmt: skip
    grid = torch.logspace(-1, 1, 201)  # steps of 2.3%, far finer than any validation split can tell apart
    losses = torch.stack([soft_bradley_terry(mean_a / t, mean_b / t, target[answered]).mean() for t in grid])
    return float(grid[losses.argmin()])
