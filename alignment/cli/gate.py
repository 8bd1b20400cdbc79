"""`attune gate`: whether a candidate may be promoted, on the evidence so far."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Home, bar, emit, settings_of, table

if TYPE_CHECKING:
    from alignment.db.votes import VoteRow
    from alignment.evaluation.gate import Evidence, GateRecipe

app = typer.Typer(no_args_is_help=True, help="The gate: what a candidate must show to be promoted.")


@app.callback()
def _gate() -> None:
    """Keeps `check` a word of its own."""


@app.command("check")
def check(
    candidate: Annotated[str, typer.Argument(help="The version that may be promoted.")],
    champion: Annotated[str, typer.Option(help="The version it must win over.")],
    base: Annotated[str, typer.Option(help="The fixed base that it must hold against.")],
    study: Annotated[list[str], typer.Option(help="A study of these versions; may be given again.")],
    recipe: Annotated[Path, typer.Option(help="What promotion takes.")] = Path("configs/gate.yaml"),
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Decide from a study's votes, reward scores and metrics, and record the decision; promotes nothing itself.

    Look as often as you like: a candidate keeps the alpha that it had at the first look."""
    from alignment.config import load_recipe
    from alignment.db import gates
    from alignment.db.engine import open_database
    from alignment.db.versions import get_version
    from alignment.evaluation.gate import GateRecipe, decide
    from alignment.evaluation.sequential import next_alpha

    wanted = load_recipe(recipe, GateRecipe)
    db = open_database(settings_of(home, database).database_url)
    try:
        with bar("gate"):
            with db.session(write=False) as s:
                trained = [get_version(s, name).simulated for name in (candidate, champion, base)][0]
                before = [one.alpha_spent for one in gates.list_decisions(s, candidate=candidate)]
                spent = gates.spent_alphas(s, besides=candidate)
            alpha = before[0] if before else next_alpha(spent, budget=wanted.alpha_budget, share=wanted.alpha_share)
            evidence = _evidence(db, candidate, champion, base, study, wanted, alpha, trained)
            decision = decide(evidence, wanted)
            with db.session() as s:
                new = gates.record_decision(
                    s, candidate=candidate, champion=champion, outcome=decision.outcome, alpha_spent=alpha,
                    evidence={**evidence.to_json(), "studies": study, "recipe": wanted.model_dump(mode="json"),
                              "reasons": [vars(reason) for reason in decision.reasons]},
                )  # fmt: skip
    finally:
        db.close()
    rows = [{"check": r.check, "state": r.state, "why": r.sentence} for r in decision.reasons]
    marked = " (SIMULATED listeners)" if evidence.simulated else ""
    emit(
        {"decision": str(new), "candidate": candidate, "champion": champion, "outcome": decision.outcome,
         "simulated": evidence.simulated, "alpha": alpha, "checks": rows},
        f"{table(rows, ['check', 'state', 'why'])}\n\n{candidate} is {decision.outcome}{marked}; alpha {alpha:.3g}",
        as_json,
    )  # fmt: skip


def _evidence(
    db, candidate: str, champion: str, base: str, studies: Sequence[str], recipe: GateRecipe, alpha: float,
    trained_on_simulated: bool,
) -> Evidence:  # fmt: skip
    from alignment.db import figures, gates
    from alignment.db.studies import get_study
    from alignment.db.votes import counted_votes
    from alignment.domain import Axis, RaterKind
    from alignment.errors import DataError
    from alignment.evaluation.gate import Evidence
    from alignment.evaluation.intervals import Interval

    with db.session(write=False) as s:
        found = [get_study(s, name) for name in studies]
        kinds = {one.rater_kind for one in found}
        if len(kinds) > 1:
            raise DataError("Some of these studies have simulated raters and some people; name those of one kind.")
        votes = [v for v in counted_votes(s, study_ids=[one.id for one in found]) if v.outcome.trains]
        duel = [v for v in votes if {v.left.version, v.right.version} == {candidate, champion}]
        clips = {clip for v in duel for clip in (v.left.clip_id, v.right.clip_id)}
        scores = figures.clip_scores(s, [_uuid(clip) for clip in clips])
        measured = gates.latest_metrics(s, candidate)
    newest = {str(clip): score for clip, (score, _) in next(iter(scores.values()), {}).items()}
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


def _uuid(text: str):
    import uuid

    return uuid.UUID(text)


def _mean(told: list[tuple[float, VoteRow]], *, by_prompt: bool = False):
    from alignment.study_figures import clustered_mean

    prompts = [vote.prompt_id for _, vote in told]
    return clustered_mean([x for x, _ in told], prompts if by_prompt else [v.rater_id for _, v in told], prompts)


def _test(votes: list[VoteRow], candidate: str, recipe: GateRecipe, alpha: float):
    import numpy as np

    from alignment.domain import Outcome
    from alignment.evaluation.intervals import label_codes
    from alignment.evaluation.sequential import sequential_test

    if not votes:
        return None
    left = {Outcome.A: 1.0, Outcome.B: 0.0}
    credits = [left.get(v.outcome, 0.5) for v in votes]
    own = [c if v.left.version == candidate else 1 - c for c, v in zip(credits, votes, strict=True)]
    return sequential_test(
        np.array(own), label_codes([v.rater_id for v in votes]), label_codes([v.prompt_id for v in votes]),
        unit=recipe.unit, size=recipe.votes_per_bet, alpha=alpha,
    )  # fmt: skip
