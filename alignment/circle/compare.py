"""Two versions on held-out prompts: clips, blind simulated votes, win rate, report."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Protocol

from alignment.circle import listen, measure
from alignment.circle.captions import add_captions
from alignment.circle.generate import generate_clips
from alignment.circle.workspace import Progress, Workspace, current_commit
from alignment.db.engine import shown
from alignment.domain import GenerationConfig, RaterKind, Split
from alignment.errors import DataError
from alignment.evaluation import report as rep
from alignment.evaluation.win_rate import WinRate, win_rate
from alignment.simulation.judge import Judge
from alignment.simulation.listeners import load_listeners


class StageBar(Protocol):
    def __call__(self, name: str) -> AbstractContextManager[Progress]: ...


def compare_versions(
    ws: Workspace, candidate: str, opponent: str, *, prompts: int, votes: int, raters: int, population: str,
    seed: int, bar: StageBar,
) -> tuple[rep.ReportData, WinRate]:  # fmt: skip
    """Win rate of ``candidate`` over ``opponent`` by simulated listeners, with its report.

    The prompts are captions outside every training split, and the listeners are none of ``simulate-votes``'s.
    Raises DataError when both names are the same."""
    if candidate == opponent:
        raise DataError(f"{candidate} cannot be compared with itself; name two versions.")
    both = {name: ws.version(name) for name in (candidate, opponent)}
    asked = add_captions(ws, prompts, 500_000 + seed, lambda _: Split.LEADERBOARD)
    clips = {}
    for name in both:
        with bar(f"{name} sings") as progress:
            clips[name] = generate_clips(
                ws, name, asked, GenerationConfig(), per_prompt=2, seed=seed, progress=progress
            )
    first = {name: {prompt: own[0] for prompt, own in mine.items()} for name, mine in clips.items()}
    study = f"compare {candidate} {opponent}, {prompts} prompts, {raters} of {population}, seed {seed}"
    judge = Judge()
    with bar("simulated votes") as progress:
        listen.open_study(
            ws, study, listen.pairs_across(first[opponent], first[candidate]), rater_kind=RaterKind.SIMULATED
        )
        done = len(listen.votes_of(ws, study))
        if done < votes:
            listen.simulate_votes(
                ws, study, load_listeners(), judge=judge, population=population, raters=raters, votes=votes - done,
                seed=2 * seed + 1, progress=progress,
            )  # fmt: skip
    rows = listen.votes_of(ws, study)
    rate = win_rate(listen.comparisons(rows, lambda _, version: version), candidate)
    spread = {name: measure.diversity_of(ws, asked, clips[name]) for name in both}
    data = rep.ReportData(
        title=f"{candidate} against {opponent}", created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        simulated=True, candidate=candidate, base=opponent,
        contests=[rep.Contest(f"{candidate} vs {opponent}", rate, "held-out prompts, blind")],
        metrics=[rep.MetricRow("diversity", spread[opponent], spread[candidate], "",
                               "mean distance in CLAP space between two clips of one prompt")],
        traces=[rep.FigureTrace("win rate", study, rate.votes, adapter_sha256=both[candidate].adapter_sha256 or "")],
        run={"seed": str(seed), "commit": current_commit() or "not a checkout", "database": shown(ws.database.url)},
        next_command=f"attune versions show {candidate}",
    )  # fmt: skip
    return data, rate
