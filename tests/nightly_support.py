"""A trivial driver of a job kind inside the test process, and homes in which a night can turn."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from alignment.circle import listen
from alignment.circle.captions import add_captions
from alignment.circle.generate import generate_clips
from alignment.circle.nightly import NIGHTLY
from alignment.circle.workspace import Workspace
from alignment.config import LoraSettings, Settings
from alignment.db.clips import get_clips
from alignment.db.migrate import upgrade
from alignment.db.snapshots import list_snapshots
from alignment.db.studies import get_study, list_battles
from alignment.db.votes import counted_votes
from alignment.domain import Axis, ClipRef, Consent, GenerationConfig, Outcome, RaterKind, Split, VoteDraft
from alignment.jobs import Command, Finish, Skip, StepContext, Wait
from alignment.versions import register_adapter, register_base
from alignment.votes import VoteService
from tests.music_support import randomise_adapter


class Killed(BaseException):
    """The process died here."""


@dataclass
class Drive:
    """One job. ``results`` is what a durable engine would have recorded; ``said`` why steps were skipped or ended."""

    home: Path
    recipe: Mapping[str, Any]
    job_id: str = "job-1"
    results: dict[str, Any] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    ended: str | None = None
    done: list[str] = field(default_factory=list)

    def context(self, step: str) -> StepContext:
        return StepContext(
            job_id=self.job_id, step=step, home=self.home, database_url=f"sqlite:///{self.home / 'attune.db'}",
            run_dir=self.home / "jobs" / self.job_id, recipe=self.recipe,
            results=json.loads(json.dumps(self.results, allow_nan=False)), store=str(self.home / "store"),
            say=self.lines.append,
        )  # fmt: skip

    def step(self, name: str) -> Any:
        """Run one step once, without recording what it returned."""
        run = next(one.run for one in NIGHTLY.steps if one.name == name)
        found = run(self.context(name))
        if isinstance(found, Command):
            found = run_command(found)
        return found

    def record(self, name: str, found: Any) -> None:
        if isinstance(found, Skip):
            self.said[name] = found.reason
        elif isinstance(found, Finish):
            self.said[name] = self.ended = found.reason
        else:
            self.results[name] = dict(found)
        self.done.append(name)

    def run(self, *, until: str | None = None, times: int = 1, on_wait: Callable[[], None] | None = None) -> Drive:
        """Run the steps that are left, each ``times`` times; stops before ``until``, at the end, or at a wait that
        ``on_wait`` does nothing about."""
        for step in NIGHTLY.steps:
            if self.ended is not None or step.name == until:
                return self
            if step.name in self.done:
                continue
            for _ in range(times):
                found = self.step(step.name)
                while isinstance(found, Wait):
                    self.waits.append(found)
                    if on_wait is None:
                        return self
                    on_wait()
                    found = self.step(step.name)
            self.record(step.name, found)
        return self


def run_command(command: Command) -> dict[str, Any]:
    """The last JSON line of an `attune` command, run in this process: torch is loaded here already."""
    from typer.testing import CliRunner

    from alignment.cli import app

    assert command.argv[1:3] == ("-m", "alignment.cli")
    with patch.dict(os.environ, command.environment), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        done = CliRunner().invoke(app, list(command.argv[3:]), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.output.strip().splitlines()[-1])


PEOPLE: dict[str, Any] = {
    "name": "tonight", "min_new_votes": 40, "generation": {"clip_seconds": 0.5},
    "metrics": {"rounds": 100, "training_clips": 10, "reference": "none"},
    "contest": {"captions": 8, "access": "open", "minimum_listening_seconds": 0.0, "look_seconds": 60, "days": 3},
    "reward": {"folds": 3, "card": "any"},
    "gate": {"alpha_budget": 0.4, "alpha_share": 0.5, "most_votes": 50, "axis_margin": 2.0, "base_margin": 0.45,
             "metrics": {"silence": [None, 1.0], "duplicates": [None, 1.0]}, "flat_win_rate": 0.51},
    "align": {
        "generation": {"clip_seconds": 0.5}, "reward": {"epochs": 4, "ensemble": 2}, "train_prompts": 4,
        "watch": {"prompts": 4, "clips_per_prompt": 2, "best_of": [2]}, "beside": None,
        "stages": [{"name": "dpo", "method": "dpo", "clips_per_prompt": 2,
                    "dpo": {"per_device_train_batch_size": 4, "num_train_epochs": 1, "learning_rate": 4e-3,
                            "lora": {"r": 2}}}],
    },
}  # fmt: skip
PROGRAMS: dict[str, Any] = PEOPLE | {
    "min_new_votes": 20,
    "simulated": True,
    "listeners": {"raters": 4, "prompts": 8, "clips_per_prompt": 2, "look_votes": 10},
}


def workspace(home: Path) -> Workspace:
    return Workspace.open(
        Settings.from_environment(database=f"sqlite:///{home / 'attune.db'}", store=str(home / "store"))
    )


def vote(ws: Workspace, study: str, says: Callable[[str, str], Outcome], *, raters: int, votes: int = 1000) -> int:
    """People vote in turns, through the vote service: ``says`` gets (left, right) as "version audio" each."""
    with ws.database.session(write=False) as s:
        battles = list_battles(s, get_study(s, study).id)
        clips = get_clips(s, {clip for one in battles for clip in (one.clip_1_id, one.clip_2_id)})
    service, saved = VoteService(ws.database, secret=ws.secret, listening_slack_seconds=math.inf), 0
    panel = []
    for number in range(raters):
        rater = service.enrol_rater(f"{study} rater {number}", kind=RaterKind.HUMAN)
        consent = Consent("1", training=True, publication=False)
        panel.append((service.open_session(rater, study, consent=consent), random.Random(number)))
    while panel and saved < votes:
        for session, rng in list(panel):
            pair = service.next_assignment(session, rng=rng)
            if pair is None or saved == votes:
                panel.remove((session, rng))
                continue
            sides = [clips[one] for one in (pair.left_clip_id, pair.right_clip_id)]
            outcome = says(*(f"{clip.version} {clip.audio_sha256}" for clip in sides))
            axis = {Outcome.A: -1, Outcome.B: 1}.get(outcome, 0)
            service.record_vote(session, VoteDraft(
                pair.id, f"key {pair.id}", outcome, dict.fromkeys(Axis, axis), heard_left_seconds=0.5,
                heard_right_seconds=0.5,
            ))  # fmt: skip
            saved += 1
    return saved


def prefers(name: str) -> Callable[[str, str], Outcome]:
    """A rater who always likes this version best, and says so of either side."""
    return lambda left, right: Outcome.A if left.startswith(f"{name} ") else Outcome.B


def voted_home(home: Path) -> None:
    """Twelve captions sung twice by attune-tiny, and people's votes on them: the higher hash wins."""
    home.mkdir(parents=True, exist_ok=True)
    upgrade(f"sqlite:///{home / 'attune.db'}")
    ws = workspace(home)
    register_base(ws.database, name="tiny-base", base="tiny", base_sha256=ws.base_model("tiny").base_sha256)
    asked = add_captions(ws, 12, 99, lambda text: Split.VALID if len(text) % 5 == 0 else Split.TRAIN)
    generation = GenerationConfig(clip_seconds=0.5)
    clips = generate_clips(ws, "tiny-base", asked, generation, per_prompt=2, seed=5)
    listen.open_study(ws, "people", listen.pairs_within(clips, 12, 1), rater_kind=RaterKind.HUMAN)
    vote(ws, "people", lambda a, b: Outcome.A if a.split()[1] > b.split()[1] else Outcome.B, raters=4)
    ws.database.close()


def changed(recipe: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The recipe with other values; a mapping is merged into the one there."""
    out = dict(recipe)
    for key, value in more.items():
        out[key] = {**out.get(key, {}), **value} if isinstance(value, dict) else value
    return out


def sing_otherwise(home: Path, job_id: str, name: str, *, seed: int = 1) -> Path:
    """A version whose adapter is random, registered as a training of that job would: the folder of the adapter."""
    ws, folder = workspace(home), home / "runs" / name / "adapter"
    base = ws.version("tiny-base")
    model = ws.policy(base)
    model.add_adapter(LoraSettings(r=2))
    randomise_adapter(model, seed=seed)
    model.save_adapter(folder)
    with ws.database.session(write=False) as s:
        known = {one.name: one.id for one in list_snapshots(s)}
    run = {"kind": "dpo", "snapshot_id": known.get(name), "config": {}, "metrics": {}}
    register_adapter(ws.database, ws.store, name=name, parent=base, adapter=folder, run=run, commit="c0ffee",
                     simulated=False, job_id=f"{job_id}/{name}")  # fmt: skip
    ws.database.close()
    return folder


def cast(
    ws: Workspace, study: str, side: Callable[[ClipRef], str] = lambda clip: clip.audio_sha256
) -> list[tuple[int, str, str, str, str, dict[str, int]]]:
    """The votes of a study in the order of their saving, without what differs from home to home: number of the rater in
    the order of enrolment, prompt, left and right side, outcome, axes."""
    with ws.database.session(write=False) as s:
        rows = counted_votes(s, study_ids=[get_study(s, study).id])
    raters = sorted({row.rater_id for row in rows})  # their ids are in the order of enrolment
    return [
        (raters.index(row.rater_id), row.prompt_text, side(row.left), side(row.right), row.outcome.value,
         {axis.value: step for axis, step in row.axes.items()})
        for row in rows
    ]  # fmt: skip


def tables(home: Path, names: Iterable[str]) -> dict[str, int]:
    """Rows of each table, counted beside Attune."""
    import sqlite3

    with sqlite3.connect(home / "attune.db") as c:
        return {name: c.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names}
