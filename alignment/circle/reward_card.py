"""The card of a recorded reward model: its votes, their clips and what is asked of it, gathered from a workspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from alignment.circle.learn import NamedSnapshot, load_reward_model, load_snapshot, outside_contests
from alignment.circle.workspace import Progress, Workspace, no_progress
from alignment.db import runs, snapshots
from alignment.domain import Outcome, Pair
from alignment.errors import DataError
from alignment.evaluation.intervals import Interval
from alignment.evaluation.level_probe import QUIETER_DB
from alignment.evaluation.reward_card import RewardCard, make_card
from alignment.study_figures import agreement

if TYPE_CHECKING:
    from alignment.rewards.card import Deal
    from alignment.rewards.model import RewardModel

PROBED_CLIPS = 100


@dataclass(frozen=True)
class _Answer:
    """A vote as the raters' agreement reads it."""

    left_clip_id: str
    right_clip_id: str
    outcome: Outcome
    chosen_clip_id: str | None
    rater_id: str


def make_reward_card(
    ws: Workspace,
    name: str,
    *,
    snapshot: str | None = None,
    folds: int | None = None,
    curve: bool = True,
    progress: Progress = no_progress,
) -> RewardCard:
    """The card of the reward model ``name`` on its own snapshot's votes, or on another's.

    The test split is asked, or with ``folds`` (or without a decisive test vote) all votes by cross-validation; those of
    contests are left out and counted. Raises NotFoundError for an unknown model or snapshot, DataError when nothing
    decisive can be asked, StoreError when a clip is missing."""
    from alignment.rewards import card

    model = load_reward_model(ws, name)
    taken = load_snapshot(ws, snapshot or _own_snapshot(ws, name))
    pairs = outside_contests(taken.frozen.pairs)
    if not pairs:
        raise DataError(
            f"All votes of snapshot {taken.name} are of contests, which train nothing; name a snapshot with other "
            "votes by --snapshot."
        )
    deals = card.deal_votes(pairs, folds=folds, seed=card.settings_of(model).seed)
    shas = list(dict.fromkeys(ref.audio_sha256 for pair in pairs for ref in (pair.a, pair.b)))
    measured = _measured(ws, shas)
    audio, text = ws.embed_audio(shas), ws.embed_text([pair.prompt_text for pair in pairs])
    evidence = card.gather(
        model, deals, audio, text, measured, curve_shares=card.CURVE_SHARES if curve else (), on_progress=progress
    )
    return make_card(
        name, evidence, simulated=taken.frozen.simulated, heard_by=pairs, alpha=_alpha(pairs),
        contest_votes=len(taken.frozen.pairs) - len(pairs),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"), level_shifts=_level_shifts(ws, model, deals),
        facts=_facts(ws, name, model, taken, deals),
    )  # fmt: skip


def _own_snapshot(ws: Workspace, name: str) -> str:
    """The name of the snapshot that the model learnt from."""
    with ws.database.session(write=False) as s:
        run = runs.get_train_run(s, runs.get_reward_model(s, name).train_run_id)
        known = {one.id: one.name for one in snapshots.list_snapshots(s)}
    if run.snapshot_id not in known:
        raise DataError(f"Reward model {name} has no snapshot on record; name one with --snapshot.")
    return known[run.snapshot_id]


def _measured(ws: Workspace, shas: Sequence[str]) -> dict[str, dict[str, float]]:
    from alignment.rewards.baselines import measures

    return {sha: measures(*ws.store.get_audio(sha)) for sha in shas}


def _level_shifts(ws: Workspace, model: RewardModel, deals: Sequence[Deal]) -> tuple[list[str], np.ndarray]:
    """(prompts, score as it is less score 6 dB quieter) of up to a hundred clips asked about."""
    from alignment.rewards.card import level_shifts

    heard = {pair.a.audio_sha256: pair.prompt_text for deal in deals for pair in deal.asked}
    chosen = sorted(heard)[:: max(1, -(-len(heard) // PROBED_CLIPS))]  # named by hash, so evenly drawn
    prompts = [heard[sha] for sha in chosen]
    quieter = []
    for sha in chosen:
        audio, rate = ws.store.get_audio(sha)
        quieter.append(ws.encoder.audio([audio * 10 ** (-QUIETER_DB / 20)], rate)[0])
    audio = ws.embed_audio(chosen)
    before = np.stack([audio[sha] for sha in chosen])
    return prompts, level_shifts(model, prompts, before, np.stack(quieter), ws.embed_text(prompts))


def _alpha(pairs: Sequence[Pair]) -> Interval | None:
    """Krippendorff's alpha of the raters' answers, with the pairs heard twice or more as its clusters."""
    chosen = {Outcome.A: "a", Outcome.B: "b"}
    found = agreement([
        _Answer(p.a.clip_id, p.b.clip_id, p.outcome,
                getattr(p, chosen[p.outcome]).clip_id if p.outcome in chosen else None, p.rater_id)
        for p in pairs
    ])  # fmt: skip
    return found and Interval(found.alpha, found.low, found.high, n=found.n, clusters=found.pairs)


def _facts(ws: Workspace, name: str, model: RewardModel, taken: NamedSnapshot, deals: Sequence[Deal]) -> dict[str, str]:
    with ws.database.session(write=False) as s:
        record = runs.get_reward_model(s, name)
        run = runs.get_train_run(s, record.train_run_id)
    asked = [pair for deal in deals for pair in deal.asked]
    return {
        "Reward model": f"{name}, {record.artefact_sha256[:12]}",
        "Encoder": model.encoder,
        "Trained heads": ", ".join(model.trained_heads),
        "Temperatures": ", ".join(f"{head} {value:.2f}" for head, value in sorted(model.temperatures.items())),
        "Votes": f"snapshot {taken.name}, {taken.frozen.content_sha256[:12]}",
        "Asked about": f"{len(asked):,} votes on {len({p.prompt_id for p in asked}):,} prompts by "
                       f"{len({p.rater_id for p in asked}):,} raters",
        "Settings": ", ".join(f"{key} {value}" for key, value in sorted(model.settings.items())),
        "Commit": (run.commit or "not recorded")[:12],
    }  # fmt: skip
