"""A night of a very small model, killed fifty times on SQLite and between two workers on PostgreSQL, is the same night.

Its steps are forked from a process that has imported torch, or starting them would be most of the work."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from database_support import postgres_server, postgres_url
from jobs_support import Forked, Place, kill, patience
from jobs_warm import warm
from night_support import KINDS, STEPS, outcome, reached, small_night, working

from alignment.jobs import status

__all__ = ["postgres_server", "postgres_url"]
pytestmark = pytest.mark.slow
WITHIN = {"gather": 1, "reward": 1, "align": 3, "sing": 1, "check": 1, "decide": 1}  # kills inside these


@dataclass(frozen=True)
class Undisturbed:
    """What a night leaves behind that nobody kills, how long its steps took, and how workers start steps warm."""

    left: dict[str, Any]
    seconds: dict[str, float]
    environment: dict[str, str]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    server, warmth = warm(str(tmp_path_factory.mktemp("warm")))
    environment = KINDS | warmth
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTUNE_JOB_KINDS", KINDS["ATTUNE_JOB_KINDS"])
        place, job_id = small_night(tmp_path_factory.mktemp("whole") / "home")
        assert place.work("--once", **environment).wait(600) == 0
        took = {step.name: step.seconds or 0.0 for step in place.job(job_id).steps}
        yield Undisturbed(outcome(place, job_id), took, environment)
    server.stdin.close()
    server.wait(60)


def shoot(rng: random.Random, workers: list[Forked], job_id: str) -> int:
    """Kills a worker, or what works for it, or both at once: 1, or 0 when nothing was alive any more."""
    what, alive = rng.choice(["worker", "trainer", "both"]), [one for one in workers if one.poll() is None]
    trainers, done = working(job_id), 0
    if what != "worker" and trainers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(trainers), signal.SIGKILL)
            done = 1
    if (what != "trainer" or not done) and alive:
        kill(rng.choice(alive))
        done = 1
    return done


def go_on(place: Place, job_id: str) -> None:
    """What was killed too often under one worker has failed; somebody resumes it."""
    if place.job(job_id).state == "failed":
        status.resume(place.settings, job_id)


# Before each step; when its effect has happened and nobody has recorded it; behind its record.
@pytest.mark.parametrize("moment", ["before perform {again}", "after perform {again}", "after _recorded {number}"])
def test_fifty_kills_of_a_real_night_on_sqlite_leave_what_an_undisturbed_one_leaves(
    moment: str, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    """In three nights: twelve kills at one kind of boundary, and eight inside steps, in each."""
    place, job_id = small_night(tmp_path / "killed")
    seed, kills, inside, began = random.randrange(10**6), 0, 0, time.monotonic()
    rng = random.Random(seed)
    try:
        for number, name in enumerate(STEPS, start=1):
            for _ in range(WITHIN.get(name, 0)):
                worker = place.work("--once", **undisturbed.environment)
                place.until(lambda number=number: reached(place, job_id, number), seconds=120)
                time.sleep(rng.uniform(0, undisturbed.seconds[name]))
                inside += shoot(rng, [worker], job_id)
                if worker.poll() is None:
                    kill(worker)
                go_on(place, job_id)
            # Before this step comes the last one that died so and was not recorded.
            again = 1 if name in WITHIN or number == 1 else 2
            life = moment.format(again=again, number=number)
            worker = place.work("--once", DIE_AT=life, **undisturbed.environment)
            kills += worker.wait(300) == -signal.SIGKILL
            go_on(place, job_id)
        assert place.work("--once", **undisturbed.environment).wait(300) == 0
        print(f"{moment}, seed {seed}: {kills} kills there, {inside} inside, {time.monotonic() - began:.0f} s")
        assert outcome(place, job_id) == undisturbed.left
        assert kills + inside >= 17 and kills >= 9, (kills, inside)
    finally:
        place.close()


def test_kills_of_two_workers_of_a_real_night_on_postgresql_leave_what_an_undisturbed_one_leaves(
    tmp_path: Path, undisturbed: Undisturbed, postgres_url: str
) -> None:
    place, job_id = small_night(tmp_path / "killed", postgres_url)
    seed, kills, moved, began = random.randrange(10**6), 0, 0, time.monotonic()
    rng, workers, turn = random.Random(seed), {}, 0
    try:
        while place.job(job_id).is_open:
            # Each performs a step, and dies before or after the next one, which nobody has recorded then.
            for name in ("one", "two"):
                if name not in workers or workers[name].poll() is not None:
                    life = {} if turn >= 60 else {"DIE_AT": f"{rng.choice(['before', 'after'])} perform 2"}
                    workers[name] = place.work("--name", name, **undisturbed.environment, **life)
            turn += 1
            if turn % 3 == 0:  # and one is killed inside
                step = place.job(job_id).step
                time.sleep(rng.uniform(0, undisturbed.seconds.get(step or "", 1.0)) * patience() ** 0.5)
                kills += shoot(rng, list(workers.values()), job_id)
            place.until(lambda: any(one.poll() is not None for one in workers.values())
                        or not place.job(job_id).is_open, seconds=300)  # fmt: skip
            for name, worker in workers.items():
                if worker.poll() is not None:
                    kills += worker.poll() == -signal.SIGKILL and turn % 3 != 0
                    if rng.random() < 0.5:  # it stays away for a while; the other one gets its job
                        host = [one.name for one in status.list_workers(place.settings) if one.name.endswith(name)]
                        moved += len(
                            [found for one in host for found in status.reassign(place.settings, one, force=True)]
                        )
            go_on(place, job_id)
        print(f"seed {seed}: {kills} kills, {moved} times moved, {time.monotonic() - began:.0f} s")
        assert outcome(place, job_id) == undisturbed.left
        assert kills >= 10 and moved >= 1, (kills, moved)
    finally:
        place.close()
