"""What is known of a candidate for the gate: votes as sequential tests, axes, metrics, the reward beside them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import numpy as np

from alignment.db import figures, gates
from alignment.db.engine import Database
from alignment.db.studies import get_study
from alignment.db.versions import get_version
from alignment.db.votes import VoteRow, counted_votes
from alignment.domain import Axis, Outcome, RaterKind
from alignment.errors import DataError
from alignment.evaluation.gate import Evidence, GateRecipe
from alignment.evaluation.intervals import Interval, label_codes
from alignment.evaluation.sequential import Sequential, next_alpha, sequential_test
from alignment.study_figures import clustered_mean


def candidate_alpha(s, candidate: str, recipe: GateRecipe) -> float:
    """What the candidate's test may spend: what it had at its first look, or its share of what is left."""
    before = [one.alpha_spent for one in gates.list_decisions(s, candidate=candidate) if one.alpha_spent]
    spent = gates.spent_alphas(s, besides=candidate)
    return before[0] if before else next_alpha(spent, budget=recipe.alpha_budget, share=recipe.alpha_share)


def gather_evidence(
    database: Database, candidate: str, champion: str, base: str, studies: Sequence[str], recipe: GateRecipe, *,
    alpha: float, reward: str | None = None,
) -> Evidence:  # fmt: skip
    """The evidence of the studies' votes so far, and of what was measured of the candidate.

    ``reward`` is the reward model whose scores stand beside the votes; none: the newest that scored these clips. Raises
    DataError when people voted in one study and programs in another, NotFoundError for an unknown version or study."""
    with database.session(write=False) as s:
        trained_on_simulated = get_version(s, candidate).simulated
        for name in (champion, base):
            get_version(s, name)
        found = [get_study(s, name) for name in studies]
        kinds = {one.rater_kind for one in found}
        if len(kinds) > 1:
            raise DataError("Some of these studies have simulated raters and some people; name those of one kind.")
        votes = [v for v in counted_votes(s, study_ids=[one.id for one in found]) if v.outcome.trains]
        duel = [v for v in votes if {v.left.version, v.right.version} == {candidate, champion}]
        clips = {clip for v in duel for clip in (v.left.clip_id, v.right.clip_id)}
        scores = figures.clip_scores(s, [uuid.UUID(clip) for clip in clips])
        measured = gates.latest_metrics(s, candidate)
    scored = scores.get(reward, {}) if reward is not None else next(iter(scores.values()), {})
    newest = {str(clip): score for clip, (score, _) in scored.items()}
    axes = {}
    for axis in Axis:
        if told := [(v.axes[axis] * (1 if v.right.version == candidate else -1), v) for v in duel if axis in v.axes]:
            axes[axis.value] = _mean(told)
    rises = {
        (v.left.clip_id, v.right.clip_id): ((newest[v.right.clip_id] - newest[v.left.clip_id])
                                            * (1 if v.right.version == candidate else -1), v)
        for v in duel if v.left.clip_id in newest and v.right.clip_id in newest
    }  # fmt: skip
    others = [v for v in votes if {v.left.version, v.right.version} == {candidate, base}]
    return Evidence(
        candidate, champion, base,
        over_champion=_test(duel, candidate, recipe, alpha),
        over_base=_test(others, candidate, recipe, alpha) if base != champion else None,
        axes=axes, reward=_mean(list(rises.values()), by_prompt=True) if rises else None,
        metrics={name: Interval(value, low, high, n=n) for name, (value, low, high, n) in measured.items()},
        simulated=trained_on_simulated or kinds == {RaterKind.SIMULATED},
    )  # fmt: skip


def _mean(told: list[tuple[float, VoteRow]], *, by_prompt: bool = False) -> Interval:
    prompts = [vote.prompt_id for _, vote in told]
    return clustered_mean([x for x, _ in told], prompts if by_prompt else [v.rater_id for _, v in told], prompts)


def _test(votes: list[VoteRow], candidate: str, recipe: GateRecipe, alpha: float) -> Sequential | None:
    if not votes:
        return None
    left = {Outcome.A: 1.0, Outcome.B: 0.0}
    credits = [left.get(v.outcome, 0.5) for v in votes]
    own = [c if v.left.version == candidate else 1 - c for c, v in zip(credits, votes, strict=True)]
    return sequential_test(
        np.array(own), label_codes([v.rater_id for v in votes]), label_codes([v.prompt_id for v in votes]),
        unit=recipe.unit, size=recipe.votes_per_bet, alpha=alpha,
    )  # fmt: skip
