"""Workers and trainers of jobs die: the job goes on from its last checkpoint, and no effect happens twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from database_support import postgres_server, postgres_url
from jobs_support import CHAIN_12, Place, gone, kill

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
    assert place.work("--once").wait(60) == 0
    check_whole(place, job_id)
    assert len(place.trainers(job_id)) == 4
    assert place.attempts(job_id).count("collect") == 1  # what was recorded is not done again
    assert any("SIGKILL" in line for line in place.log(job_id))
