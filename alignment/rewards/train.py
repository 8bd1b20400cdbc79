"""Training of a reward model on pairs and ratings.

Davidson's model of votes (or Bradley-Terry with ties as half a win), AdamW, early stopping for each member of the
ensemble on the validation split, then one temperature a head so that a difference of scores is the log-odds of a
decisive vote. Members differ in their initial weights and dropout. docs/reward-models.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignment.config import RewardSettings
from alignment.domain import Outcome, Pair, RatedClip, Split
from alignment.errors import DataError
from alignment.rewards.calibration import best_temperature, calibration_error
from alignment.rewards.embeddings import Embeddings
from alignment.rewards.fit import Progress, fit_heads
from alignment.rewards.heads import HEADS, HeadEnsemble
from alignment.rewards.model import RewardModel
from alignment.rewards.table import PairTable, table_of


def train_reward(
    pairs: Sequence[Pair],
    audio_embeddings: Embeddings,
    text_embeddings: Embeddings,
    settings: RewardSettings,
    on_progress: Progress | None = None,
    *,
    encoder: str = "",
    ratings: Sequence[RatedClip] = (),
    run_dir: Path | None = None,
) -> RewardModel:
    """A reward model trained on the train pairs and ratings and stopped on the valid ones; other splits are never
    looked at.

    Embeddings are by audio sha256 and by prompt text. ``on_progress(epoch, epochs, metrics)`` follows every epoch.
    Without validation pairs it trains for all epochs and stays uncalibrated. A head to whose question no answer was
    decisive is left out of ``trained_heads``. With ``run_dir`` a run that was killed goes on from its last epoch.
    Raises DataError when no train vote is decisive and there are no ratings, TrainingError when the loss is no number.
    The same pairs and settings give the same model, bit for bit on one device."""
    usable = [p for p in pairs if not (p.outcome == Outcome.BOTH_BAD and settings.both_bad == "drop")]
    parts = {split: ([p for p in usable if p.split == split], [r for r in ratings if r.split == split])
             for split in (Split.TRAIN, Split.VALID)}  # fmt: skip
    train_pairs, train_ratings = parts[Split.TRAIN]
    if not train_pairs and not train_ratings:
        raise DataError(f"None of {len(pairs)} pairs is in the train split; there is nothing to learn from.")
    if all(pair.preference == 0.5 for pair in train_pairs) and not train_ratings:
        raise DataError(f"All {len(train_pairs)} train votes are ties; a reward model needs decisive votes.")
    raters = {rater: row for row, rater in enumerate(sorted({pair.rater_id for pair in train_pairs}))}
    train, valid = (
        table_of(voted, audio_embeddings, text_embeddings, ratings=rated, raters=raters, seed=settings.seed)
        if voted or rated else None
        for voted, rated in parts.values()
    )  # fmt: skip
    facts = {
        "train_pairs": len(train_pairs), "valid_pairs": len(parts[Split.VALID][0]),
        "train_ratings": len(train_ratings), "raters_of_votes": len(raters),
        "versions": len({ref.version for pair in train_pairs for ref in (pair.a, pair.b)}),
        "contradicted_pairs": contradicted(train_pairs),
    }  # fmt: skip
    return train_on_table(train, valid, settings, on_progress, encoder=encoder, facts=facts, run_dir=run_dir)


def train_on_table(
    train: PairTable,
    valid: PairTable | None,
    settings: RewardSettings,
    on_progress: Progress | None = None,
    *,
    encoder: str = "",
    facts: dict[str, Any] | None = None,
    run_dir: Path | None = None,
) -> RewardModel:
    """As train_reward, of comparisons that are arrays already: nothing here grows with their number."""
    decided = ~np.isnan(train.targets) & (train.targets != 0.5)
    trained = tuple(head for head, any_decided in zip(HEADS, decided.any(0), strict=True) if any_decided)
    if not trained:
        raise DataError(f"None of {len(train)} comparisons is decisive; a reward model needs some that are.")
    fitted = fit_heads(train, valid, settings, on_progress=on_progress, run_dir=run_dir)
    terms = fitted.terms.summary()
    model = RewardModel(fitted.heads, encoder, dict.fromkeys(trained, 1.0), trained, settings.model_dump())
    model.ties = {head: terms["ties"][head] for head in trained} if "ties" in terms else {}
    model.metrics = {**(facts or {}), "epochs": fitted.epochs, "valid_loss": fitted.valid_loss}
    model.metrics |= {name: terms[name] for name in ("side", "raters") if name in terms}
    if valid is not None:
        calibrate(model, valid)
    return model


def calibrate(model: RewardModel, valid: PairTable) -> None:
    """Sets the temperature of each trained head from the valid comparisons, and notes the calibration error on the
    same ones in ``metrics["valid_ece"]``."""
    difference = mean_differences(model.heads, valid)
    errors = {}
    for head in model.trained_heads:
        credit = torch.from_numpy(valid.targets[:, HEADS.index(head)])
        model.temperatures[head] = best_temperature(difference[head], credit)
        won = ((credit == 0) | (credit == 1)).numpy()
        if won.any():
            probability = torch.sigmoid(difference[head] / model.temperatures[head]).double().numpy()
            errors[head] = calibration_error(probability[won], credit.numpy()[won])
    model.metrics["valid_ece"] = errors


@torch.no_grad()
def mean_differences(heads: HeadEnsemble, table: PairTable, *, at_once: int = 4096) -> dict[str, torch.Tensor]:
    """{head: the ensemble's mean score of a minus that of b, (N,)}, before any temperature."""
    parts: dict[str, list[torch.Tensor]] = {head: [] for head in HEADS}
    for start in range(0, len(table), at_once):
        rows = slice(start, start + at_once)
        a, b = (
            heads(heads.features(torch.from_numpy(table.audio[clips[rows]]), torch.from_numpy(table.text[texts[rows]])))
            for clips, texts in ((table.a, table.text_a), (table.b, table.text_b))
        )
        for head in HEADS:
            parts[head].append((a[head] - b[head]).mean(0))
    return {head: torch.cat(values) for head, values in parts.items()}


def contradicted(pairs: Sequence[Pair]) -> int:
    """Pairs of clips that won and lost against each other: they pull both ways, and only their balance is learnt."""
    winners: dict[tuple[str, frozenset[str]], set[str]] = {}
    for pair in pairs:
        if pair.preference != 0.5:
            clips = frozenset((pair.a.audio_sha256, pair.b.audio_sha256))
            won = pair.a if pair.preference > 0.5 else pair.b
            winners.setdefault((pair.prompt_text, clips), set()).add(won.audio_sha256)
    return sum(len(found) > 1 for found in winners.values())


def cross_validate(
    pairs: Sequence[Pair],
    audio_embeddings: Embeddings,
    text_embeddings: Embeddings,
    settings: RewardSettings,
    *,
    folds: int = 5,
    ratings: Sequence[RatedClip] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Pair], dict[str, np.ndarray]]:
    """(the decisive pairs, {head: agreement (n,) of a reward model that never saw the pair's prompt}).

    Prompts are dealt into ``folds``, whatever their split: each fold is predicted by a model trained on the others, of
    which the next one stops its training; ``ratings`` go with their prompts. Raises DataError with fewer prompts than
    folds."""
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
        rated = [replace(one, split=split_of.get(fold_of.get(one.prompt_text, -1), Split.TRAIN)) for one in ratings]
        decisive = [pair for pair in dealt if pair.split == Split.TEST and pair.preference != 0.5]
        if decisive:
            model = train_reward(dealt, audio_embeddings, text_embeddings, settings, ratings=rated)
            tested += decisive
            for head in model.trained_heads:
                agreement = model.agreement(decisive, audio_embeddings, text_embeddings, head=head)
                found.setdefault(head, []).append(agreement)
        if on_progress is not None:
            on_progress(fold + 1, folds)
    # A head that one fold's model had no answer for has no agreement over all pairs.
    whole = {head: np.concatenate(parts) for head, parts in found.items()}
    return tested, {head: values for head, values in whole.items() if len(values) == len(tested)}
