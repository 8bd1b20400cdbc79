"""MusicRL on attune-tiny with simulated listeners, from the base's clips to the table; a stopped run goes on.

Cideron et al. 2024, arXiv:2402.04229. Departures: attune-tiny instead of MusicLM; PPO with Attune's rewards; the text
and quality rewards are heads learnt from selected raters' votes on the base's clips, not MuLan and a MOS predictor
(CLAP's cosine can be given a weight); checkpoints are chosen by held-out reward models, not by ear; every listener is
a program.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from alignment.circle import listen, methods, musicrl_contests, musicrl_curves, musicrl_runs, musicrl_votes
from alignment.circle.contest import ClipOf, Panel
from alignment.circle.demo_report import LIBRARIES, machine, peak_memory_mb
from alignment.circle.generate import Clips
from alignment.circle.kept import Kept, StageBar
from alignment.circle.musicrl_contests import BASE
from alignment.circle.musicrl_runs import ORDER, Terms, TrainedRun, version_name
from alignment.circle.musicrl_votes import PREFIX, Asked, Learnt, listener_seed
from alignment.circle.workspace import Workspace, current_commit
from alignment.config import MusicRlSettings
from alignment.domain import Pair, canonical_sha256
from alignment.errors import DataError
from alignment.evaluation import musicrl_page
from alignment.evaluation.intervals import Interval
from alignment.evaluation.musicrl_report import Heard, Meeting, MusicRlReport, RunCurve, summary_of
from alignment.evaluation.report import FigureTrace, Stage
from alignment.simulation.agreement import PerfectScorer
from alignment.simulation.judge import Judge
from alignment.simulation.listeners import load_listeners
from alignment.training.best_of_n import best_of_n_kl
from alignment.versions import BASE_NAME, register_base

EXPERT = "expert"
QUICK_NOTE = (
    "A quick run: R alone, on few clips and votes. Its intervals are wide, and it may miss what the full run finds."
)
WHO = (
    "Text and quality are learnt from simulated {raters} listeners, the preference from simulated {users} listeners, "
    "both on clips of the base; {raters} listeners who voted on nothing before compare, as MusicRL's raters did."
)


@dataclass(frozen=True)
class MusicRlResult:
    """What ``attune reproduce musicrl --json`` prints, and the report behind it."""

    summary: dict[str, Any]
    report: MusicRlReport


@dataclass(frozen=True)
class Trained:
    """The runs in order, and who sings the held-out prompts: {entrant: version}."""

    runs: list[TrainedRun]
    versions: dict[str, str]
    weights: Mapping[str, float]  # of best-of-N and expert iteration


def run_musicrl(ws: Workspace, settings: MusicRlSettings, folder: Path, bar: StageBar) -> MusicRlResult:
    """The whole study in ``folder``, or what is left of it: finished stages are read, the one that was cut goes on.

    Raises ConfigError when the folder holds a run of another recipe."""
    kept = Kept(folder, settings.model_dump(mode="json"))
    judge = Judge()
    with kept.timed("prompts", bar):
        base_sha256 = ws.base_model("tiny").base_sha256
        register_base(ws.database, name=BASE_NAME, base="tiny", base_sha256=base_sha256)
        asked = musicrl_votes.ask(ws, settings)
    with kept.timed("clips to vote on", bar) as progress:
        clips = {
            "voted": musicrl_votes.sing_base(ws, asked.voted, settings, progress),
            "held-out": musicrl_votes.sing_base(ws, asked.held_out, settings, progress),
        }
    learnt = musicrl_votes.learn_rewards(ws, settings, kept, judge, clips, bar)
    terms = Terms(ws, learnt, asked.voted, clips["voted"], asked, ws.base_model("tiny"))
    trained = _train_all(ws, settings, kept, terms, asked, learnt, clips["voted"], folder, bar)
    panel = Panel(ws, judge, settings.test_listeners, listener_seed(settings, "test"), settings.raters)
    heard, sung = _sing_all(ws, settings, kept, terms, trained, asked, bar)
    meetings, alike = _meet_all(ws, settings, kept, panel, heard, bar)
    with kept.timed("judge", bar) as progress:
        figures = musicrl_contests.judged(ws, panel, kept, asked.test, heard, sung, progress)
        curves = [_curve(ws, settings, kept, run, asked, judge) for run in trained.runs]
    with kept.timed("report", bar):
        accuracy = musicrl_votes.accuracies(ws, learnt)
        perfect = _perfect(
            ws, settings, learnt["users-held-out"].snapshot.frozen.pairs, asked, clips["held-out"], judge
        )
        report = MusicRlReport(
            created_at=datetime.now(UTC).isoformat(timespec="seconds"), simulated=True, meetings=meetings,
            curves=curves, heard=_heard(settings, figures), accuracy=accuracy, perfect=perfect, users=settings.users,
            raters=settings.raters,
            votes={panel: len(found.snapshot.frozen.pairs) for panel, found in learnt.items()},
            stages=[Stage(name, seconds) for name, seconds in kept.seconds.items()],
            traces=_traces(settings, meetings, trained, learnt, ws), run=_run_facts(ws, settings),
            notes=[*([QUICK_NOTE] if settings.quick else []), *alike, _who(settings)],
            peak_memory_mb=peak_memory_mb(),
        )  # fmt: skip
        return _finish(ws, settings, kept, report, folder)


def _train_all(
    ws: Workspace, settings: MusicRlSettings, kept: Kept, terms: Terms, asked: Asked, learnt: Mapping[str, Learnt],
    voted: Clips, folder: Path, bar: StageBar,
) -> Trained:  # fmt: skip
    runs = []
    for run in ORDER:
        if run in settings.runs:
            with kept.timed(f"train {run}", bar) as progress:
                runs.append(musicrl_runs.train_run(ws, settings, kept, run, terms, asked, learnt, folder, progress))
    # Beside every run: what choosing alone, and imitating what was chosen, make of the same rewards.
    weights = settings.runs["joint" if "joint" in settings.runs else "R"].weights
    with kept.timed(f"train {EXPERT}", bar) as progress:
        snapshot = learnt["raters"].snapshot
        musicrl_runs.train_expert_run(
            ws, settings, kept, weights, terms, asked.voted, voted, snapshot, folder, progress
        )
    versions = {run.run: run.version.name for run in runs} | {EXPERT: version_name(EXPERT)}
    return Trained(runs, versions, weights)


def _sing_all(
    ws: Workspace, settings: MusicRlSettings, kept: Kept, terms: Terms, trained: Trained, asked: Asked, bar: StageBar
) -> tuple[dict[str, ClipOf], dict[str, Clips]]:
    """(one clip of each held-out prompt by entrant, all clips of those entrants that sang)."""
    with kept.timed("sing held-out prompts", bar) as progress:
        sung = musicrl_contests.sing(ws, settings, trained.versions, asked.test, progress)
        heard: dict[str, ClipOf] = {name: methods.firsts(asked.test, clips) for name, clips in sung.items()}
        best = musicrl_contests.best_of(ws, settings, terms, trained.weights, asked.test, sung[BASE])
        heard[f"best-of-{settings.test_pool}"] = best
    return heard, sung


def _meet_all(
    ws: Workspace, settings: MusicRlSettings, kept: Kept, panel: Panel, heard: Mapping[str, ClipOf], bar: StageBar
) -> tuple[list[Meeting], list[str]]:
    """Every comparison, and a sentence for each that there was nothing to hear in."""
    wanted = [(*pair, panel, "") for pair in musicrl_contests.meetings([name for name in heard if name != BASE])]
    if settings.users != settings.raters:  # those whose votes trained U, other listeners
        seed = listener_seed(settings, "test-users")
        users = Panel(ws, panel.judge, settings.test_listeners, seed, settings.users, heard=panel.heard)
        wanted += [(BASE, run, users, "-users") for run in settings.runs]
    met, alike = [], []
    with kept.timed("compare blind", bar) as progress:
        for opponent, candidate, judges, suffix in wanted:
            found = musicrl_contests.meet(
                judges, kept, opponent, candidate, heard, settings.test_votes, progress, suffix=suffix
            )
            if found is not None:
                met.append(Meeting(candidate, opponent, found[1], judges.population, found[0], headline=not suffix))
            elif not suffix:
                alike.append(
                    f"{candidate} and {opponent} sing exactly alike: no step of {candidate} pleased the held-out "
                    "reward models more than its start."
                )
    if not met:
        raise DataError("Every entrant sings exactly as the base does, so nothing can be compared; train for longer.")
    return met, alike


def _who(settings: MusicRlSettings) -> str:
    return WHO.format(raters=settings.raters, users=settings.users)


def _curve(
    ws: Workspace, settings: MusicRlSettings, kept: Kept, run: TrainedRun, asked: Asked, judge: Judge
) -> RunCurve:
    found = kept.stage(
        f"curve-{run.run}",
        lambda: musicrl_curves.hear_curve(
            run.curve, asked.watch, ws.base_model("tiny"), judge, population=settings.raters,
            listeners=settings.test_listeners, seed=listener_seed(settings, "test"),
        ),
    )  # fmt: skip
    figures = {name: np.array(values) for name, values in found.items() if name != "step"}
    return RunCurve(run.run, settings.runs[run.run].weights, found["step"], figures, run.kept_step, run.seconds)


def _perfect(
    ws: Workspace, settings: MusicRlSettings, pairs: Sequence[Pair], asked: Asked, clips: Clips, judge: Judge
) -> Interval:
    """How often users' decisive votes agree with the users' own mean taste: hardly more than that can be learnt."""
    heard = listen.judge_clips(ws, judge, [clip for own in clips.values() for clip in own])
    scorer = PerfectScorer.of_population(load_listeners(), settings.users)
    tags = {prompt.text: prompt.tags for prompt in asked.held_out}
    decisive = [pair for pair in pairs if pair.preference != 0.5]
    scores = [[scorer.score(heard[ref.audio_sha256], tags[pair.prompt_text]) for ref in (pair.a, pair.b)]
              for pair in decisive]  # fmt: skip
    return musicrl_votes.by_listener_and_prompt(decisive, musicrl_votes.agrees(decisive, np.array(scores)))


def _heard(settings: MusicRlSettings, figures: Mapping[str, Mapping[str, Any]]) -> list[Heard]:
    out = []
    for name, found in figures.items():
        heard = [np.array(found[figure]) for figure in ("reward", "adherence", "cleanliness")]
        kl, diversity = ((Interval(**found[key]) if key in found else None) for key in ("kl", "diversity"))
        bound = best_of_n_kl(settings.test_pool) if name.startswith("best-of-") else None
        out.append(Heard(name, *heard, kl=kl, kl_bound=bound, diversity=diversity))
    return out


def _traces(
    settings: MusicRlSettings, meetings: list[Meeting], trained: Trained, learnt: Mapping[str, Learnt], ws: Workspace
) -> list[FigureTrace]:
    config = canonical_sha256(settings.model_dump(mode="json"))
    snapshots = {panel: found.snapshot.frozen.content_sha256 for panel, found in learnt.items()}
    out = []
    for meeting in meetings:
        name = trained.versions.get(meeting.candidate)
        run = settings.runs.get(meeting.candidate)
        panel = "users" if run and "preference" in run.weights else "raters"
        adapter = ws.version(name).adapter_sha256 or "" if name else ""
        label = f"{meeting.candidate} vs {meeting.opponent}"
        out.append(
            FigureTrace(
                label, meeting.study, meeting.rate.votes, snapshots[panel], f"{PREFIX}-{panel}", adapter, config
            )
        )
    held = learnt["users-held-out"]
    out.append(
        FigureTrace("reward accuracy", f"{PREFIX}-users-held-out", len(held.snapshot.frozen.pairs),
                    snapshots["users-held-out"], f"{PREFIX}-users", config_sha256=config)
    )  # fmt: skip
    return out


def _run_facts(ws: Workspace, settings: MusicRlSettings) -> dict[str, str]:
    return {
        "seed": str(settings.seed), "commit": current_commit() or "not a checkout", "database": ws.database.url,
        "machine": machine(), **{name: metadata.version(name) for name in LIBRARIES},
    }  # fmt: skip


def _finish(ws: Workspace, settings: MusicRlSettings, kept: Kept, report: MusicRlReport, folder: Path) -> MusicRlResult:
    """Write report.html and summary.json into the run's folder."""
    path = musicrl_page.write(report, folder / "report.html")
    summary = {
        "meetings": [summary_of(meeting) for meeting in report.meetings], "aims": report.aims,
        "claims": [dataclasses.asdict(claim) for claim in report.claims],
        "accuracy": {name: dataclasses.asdict(found) for name, found in report.accuracy.items()},
        "perfect": dataclasses.asdict(report.perfect),
        "runs": {
            curve.run: {"kept_step": curve.kept_step, "last_step": curve.steps[-1], "seconds": round(curve.seconds, 1),
                        "over_optimised": bool(curve.over and curve.over.shown)}
            for curve in report.curves
        },
        "quick": settings.quick, "seed": settings.seed, "users": settings.users, "raters": settings.raters,
        "simulated": True, "seconds": round(sum(kept.seconds.values()), 1),
        "stages": {name: round(value, 1) for name, value in kept.seconds.items()},
        "peak_memory_mb": round(peak_memory_mb()), "database": ws.database.url, "report": str(path),
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return MusicRlResult(summary, report)
