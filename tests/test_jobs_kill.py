"""Workers and trainers of jobs die: the job goes on from its last checkpoint, and no effect happens twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from database_support import postgres_server, postgres_url
from jobs_support import CHAIN_12, Place, gone, kill

from alignment.jobs import status

__all__ = ["postgres_server", "postgres_url"]
STEPS = ["collect", "optional", "train", "judge", "register"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def check_whole(place: Place, job_id: str) -> None:
    """The job is done, each effect happened once, and its result is the undisturbed one."""
    job = place.job(job_id)
    assert (job.state, job.share) == ("done", 1.0), (job.state, job.reason, place.log(job_id))
    assert [(one.name, one.state) for one in job.steps] == [
        ("collect", "done"), ("optional", "skipped"), ("train", "done"), ("judge", "done"), ("register", "done"),
    ]  # fmt: skip
    assert (place.home / "versions" / job_id).read_text() == CHAIN_12
    effects = [path.name for folder in (place.home / "versions", place.folder(job_id) / "effects")
               for path in folder.iterdir()]  # fmt: skip
    assert not [name for name in effects if name.endswith(".twice")], effects
    attempts = place.attempts(job_id)
    assert list(dict.fromkeys(attempts)) == STEPS, attempts  # in order, none left out
    assert place.trainers(job_id) and all(gone(pid) for pid in place.trainers(job_id))


def checkpointed(place: Place, job_id: str) -> bool:
    return (place.folder(job_id) / "train" / "checkpoint.json").exists()


def test_a_job_whose_worker_trainer_and_both_are_killed_ends_as_an_undisturbed_one(place: Place) -> None:
    job_id = place.submit(pause=0.15)
    worker = place.work()
    first = place.until(lambda: checkpointed(place, job_id) and place.trainers(job_id)[0])
    kill(worker)
    place.until(lambda: gone(first), seconds=5)  # the kernel ends the trainer with the worker
    worker = place.work("--once")
    second = place.until(lambda: place.trainers(job_id)[1:])[0]
    os.kill(second, signal.SIGKILL)
    third = place.until(lambda: place.trainers(job_id)[2:])[0]
    os.kill(third, signal.SIGKILL)
    kill(worker)
    assert place.work("--once").wait() == 0
    check_whole(place, job_id)
    assert len(place.trainers(job_id)) == 4
    assert place.attempts(job_id).count("collect") == 1  # what was recorded is not done again
    assert any("SIGKILL" in line for line in place.log(job_id))


def boundaries() -> list[str]:
    """Moments at which a worker dies, one life each: around being asked for, around each step, around the end."""
    lives = ["before enqueue 1", "after enqueue 1", "before _take 1", "after _take 1"]
    for number in range(1, len(STEPS) + 1):
        # After `perform` the effect has happened and nobody has recorded it.
        lives += ["before perform 1", "after perform 1", f"after _recorded {number}", f"before end_step {number}",
                  f"after end_step {number}"]  # fmt: skip
    return [*lives, "before end_job 1", "after end_job 1"]


@pytest.mark.slow
def test_a_worker_killed_at_every_step_boundary_leaves_an_undisturbed_result(place: Place) -> None:
    job_id, died = place.submit(), 0
    for moment in boundaries():
        worker = place.work("--once", DIE_AT=moment)
        died += worker.wait(120) == -signal.SIGKILL
    place.work("--once").wait(120)
    check_whole(place, job_id)
    assert died == len(boundaries()) == 31
    assert place.attempts(job_id).count("register") <= 4


def kill_at_random(place: Place, jobs: list[str], *, kills: int, names: list[str], seed: int) -> int:
    """How often the workers ``names``, trainers, or all at once were killed until there were so many kills."""
    rng, done = random.Random(seed), 0
    workers = {name: place.work("--name", name) for name in names}
    while done < kills and any(place.job(job_id).is_open for job_id in jobs):
        time.sleep(rng.uniform(0.05, 3.0))
        trainers = [pid for job_id in jobs for pid in place.trainers(job_id) if not gone(pid)]
        what = rng.choice(["worker", "trainer", "both"])
        if what in ("trainer", "both") and trainers:
            os.kill(rng.choice(trainers), signal.SIGKILL)
            done += 1
        if what in ("worker", "both"):
            name = rng.choice(names)
            kill(workers[name])
            workers[name] = place.work("--name", name)
            done += 1
        for job_id in jobs:
            if place.job(job_id).state == "failed":  # three kills of one trainer in one worker's life are too many
                status.resume(place.settings, job_id)
    return done


@pytest.mark.slow
def test_fifty_kills_at_random_on_sqlite_leave_undisturbed_results(place: Place) -> None:
    seed, killed, jobs = random.randrange(10**6), 0, []
    while killed < 50:
        jobs += [place.submit(pause=0.2), place.submit(pause=0.2)]
        killed += kill_at_random(place, jobs, kills=50 - killed, names=["one"], seed=seed + killed)
        place.kill_all()
    place.work("--name", "one", "--once").wait(300)
    for job_id in jobs:
        check_whole(place, job_id)
    print(f"seed {seed}: {killed} kills, {len(jobs)} jobs")


@pytest.mark.slow
def test_kills_of_two_workers_on_postgresql_leave_undisturbed_results(tmp_path: Path, postgres_url: str) -> None:
    place = Place(tmp_path, postgres_url)
    seed, killed, jobs = random.randrange(10**6), 0, []
    try:
        while killed < 16:
            jobs += [place.submit(pause=0.2) for _ in range(2)]
            killed += kill_at_random(place, jobs, kills=16 - killed, names=["one", "two"], seed=seed + killed)
            place.kill_all()
        # One of them never comes back: the other one gets its jobs.
        place.work("--name", "one")
        host = next(one.name for one in status.list_workers(place.settings) if one.name.endswith(":two"))
        status.reassign(place.settings, host, force=True)
        for job_id in jobs:
            place.ended(job_id, seconds=300)
            check_whole(place, job_id)
        print(f"seed {seed}: {killed} kills, {len(jobs)} jobs")
    finally:
        place.close()
