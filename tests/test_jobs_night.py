"""A whole nightly circle is killed at every step boundary and at random: its version is the undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from jobs_support import Place, gone, kill
from night_support import KINDS, STEPS, outcome, reached, working
from nightly_support import PROGRAMS, changed

from alignment.jobs import status

pytestmark = pytest.mark.slow
RECIPE = changed(
    PROGRAMS, min_new_votes=60, listeners=PROGRAMS["listeners"] | {"prompts": 24},
    align=PROGRAMS["align"] | {"train_prompts": 8},
)  # fmt: skip
# Kills somewhere inside these steps.
WITHIN = {"gather": 1, "reward": 1, "align": 2, "sing": 1, "check": 1, "decide": 1}


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
        for number, name in enumerate(STEPS, start=1):
            for _ in range(WITHIN.get(name, 0)):
                worker = place.work("--once", **KINDS)
                place.until(lambda number=number: reached(place, job_id, number), seconds=300)
                time.sleep(rng.uniform(0, 15))
                if worker.poll() is None:
                    kill(worker)
                    kills += 1
            # The effect has happened and nobody has recorded it; before it comes the last step that died so.
            again = 1 if name in WITHIN else 2
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
    return [pid for pid in working(job_id) if b"align" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
