"""A trivial driver of a job kind inside the test process, and homes in which a night can turn."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from alignment.circle.nightly import NIGHTLY
from alignment.jobs import Command, Finish, Skip, StepContext, Wait


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


SMALL: dict[str, Any] = {
    "name": "tonight", "min_new_votes": 120, "listeners": {"raters": 8, "prompts": 16, "clips_per_prompt": 3,
                                                           "look_votes": 30},
    "simulated": True, "generation": {"clip_seconds": 0.5},
    "metrics": {"rounds": 100, "training_clips": 40},
    "contest": {"captions": 24},
    "reward": {"folds": 3, "card": "any"},
    "gate": {"alpha_budget": 0.5, "alpha_share": 0.9, "axis_margin": 2.0, "base_margin": 0.45, "metrics": {},
             "flat_win_rate": 0.51},
    "align": {
        "generation": {"clip_seconds": 0.5}, "reward": {"epochs": 8, "ensemble": 2}, "train_prompts": 6,
        "watch": {"prompts": 4, "clips_per_prompt": 2, "best_of": [2]}, "beside": None,
        "stages": [{"name": "dpo", "method": "dpo", "clips_per_prompt": 2,
                    "dpo": {"per_device_train_batch_size": 4, "num_train_epochs": 1, "learning_rate": 4e-3,
                            "lora": {"r": 2}}}],
    },
}  # fmt: skip


def changed(recipe: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The recipe with other values; a mapping is merged into the one there."""
    out = dict(recipe)
    for key, value in more.items():
        out[key] = {**out.get(key, {}), **value} if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def tables(home: Path, names: Iterable[str]) -> dict[str, int]:
    """Rows of each table, counted beside Attune."""
    import sqlite3

    with sqlite3.connect(home / "attune.db") as c:
        return {name: c.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names}
