"""A whole nightly circle is killed at every step boundary and at random: its version is the undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from jobs_support import Place, gone, kill
from nightly_support import PROGRAMS, changed, tables

from alignment.circle.nightly import NIGHTLY
from alignment.db.versions import list_versions
from alignment.jobs import status

pytestmark = pytest.mark.slow
STEPS = [step.name for step in NIGHTLY.steps]
RECIPE = changed(
    PROGRAMS, min_new_votes=60, listeners=PROGRAMS["listeners"] | {"prompts": 24},
    align=PROGRAMS["align"] | {"train_prompts": 8},
)  # fmt: skip
# Votes of the contest are left out: a look that is interrupted is cast by other listeners when it is cast again.
COUNTED = ("version", "train_run", "snapshot", "reward_model", "study", "gate_decision", "metric_result")
WITHIN = {"reward": 2, "align": 3, "sing": 1, "check": 1}  # kills somewhere inside these steps
KINDS = {"ATTUNE_JOB_KINDS": "tests.night_kind:KINDS"}


def outcome(place: Place, job_id: str) -> dict[str, Any]:
    """What a night left behind, without what bears its name: how many rows, and the adapter by its digest."""
    from alignment.circle.workspace import Workspace

    job = place.job(job_id)
    assert job.state == "done", (job.state, job.reason, place.log(job_id)[-20:])
    ws = Workspace.open(place.settings)
    with ws.database.session(write=False) as s:
        adapters = sorted(version.adapter_sha256 or "base" for version in list_versions(s))
    ws.database.close()
    # The first step votes where votes are missing: asked again after its effect, it has nothing to do.
    states = {step.name: step.state for step in job.steps if step.name != "gather"}
    return {"adapters": adapters, "states": states, **tables(place.home, COUNTED)}


def night(home: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Place, str]:
    home.mkdir()
    for name, value in KINDS.items():
        monkeypatch.setenv(name, value)
    place = Place(home)
    return place, place.submit("night", **RECIPE)


def life(place: Place, **environment: str) -> int:
    worker = place.work("--once", **KINDS, **environment)
    return worker.wait(900)


def test_a_night_killed_at_every_step_boundary_and_at_random_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, undisturbed = night(tmp_path / "whole", monkeypatch)
    assert life(whole) == 0
    wanted = outcome(whole, undisturbed)
    place, job_id = night(tmp_path / "killed", monkeypatch)
    kills, seed = 0, random.randrange(10**6)
    rng = random.Random(seed)
    try:
        for name in STEPS:
            for _ in range(WITHIN.get(name, 0)):
                worker = place.work("--once", **KINDS)
                place.until(lambda name=name: place.job(job_id).step == name, seconds=300)
                time.sleep(rng.uniform(0, 15))
                if worker.poll() is None:
                    kill(worker)
                    kills += 1
            # The effect has happened and nobody has recorded it; before it comes the last step that died so.
            again = 1 if name in WITHIN or name == STEPS[0] else 2
            kills += life(place, DIE_AT=f"after perform {again}") == -signal.SIGKILL
        assert life(place) == 0
        print(f"seed {seed}: {kills} kills; {place.log(job_id)[-1]}")
        assert outcome(place, job_id) == wanted
        assert kills >= 15
    finally:
        place.close()


def test_a_trainer_of_a_night_that_is_killed_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, job_id = night(tmp_path / "killed", monkeypatch)
    try:
        worker = place.work("--once", **KINDS)
        place.until(lambda: place.job(job_id).step == "align", seconds=900)
        trainer = place.until(lambda: _trainers(job_id), seconds=300)[0]
        time.sleep(5)
        os.kill(trainer, signal.SIGKILL)
        place.until(lambda: gone(trainer), seconds=10)
        assert worker.wait(900) == 0 and place.job(job_id).state == "done"
        assert any("SIGKILL" in line.text for line in status.log_lines(place.settings, job_id))
    finally:
        place.close()


def _trainers(job_id: str) -> list[int]:
    """The process ids of `attune align` under this job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            ours = f"ATTUNE_JOB={job_id}".encode() in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if ours and b"align" in words:
            found.append(int(folder.name))
    return found
