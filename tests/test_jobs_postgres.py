"""Several workers against one PostgreSQL: a lost one's jobs are reassigned, an outage is waited out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from database_support import postgres_server, postgres_url
from jobs_support import CHAIN_12, Place, gone, kill

from alignment.errors import DataError, NotFoundError
from alignment.jobs import status

__all__ = ["postgres_server", "postgres_url"]


@pytest.fixture
def place(tmp_path: Path, postgres_url: str) -> Iterator[Place]:
    made = Place(tmp_path, postgres_url)
    yield made
    made.close()


def test_the_jobs_of_a_lost_worker_are_reassigned_to_another_one_and_nothing_happens_twice(place: Place) -> None:
    first = place.work("--name", "first")
    jobs = [place.submit(pause=0.2, steps=12)]
    place.until(lambda: (place.folder(jobs[0]) / "train" / "checkpoint.json").exists())
    place.work("--name", "second")
    with pytest.raises(NotFoundError, match="No worker nobody ever ran here; known workers: .*:first"):
        status.reassign(place.settings, "nobody")
    lost = next(one for one in status.list_workers(place.settings) if one.name.endswith(":first"))
    with pytest.raises(DataError, match="gave a sign of life less than 30 s ago; stop it first, wait, or give --force"):
        status.reassign(place.settings, lost.name)
    kill(first)
    time.sleep(0.5)
    assert place.job(jobs[0]).executor == lost.name  # nobody takes it by himself
    assert status.reassign(place.settings, lost.name, asked_by="test", force=True) == jobs
    jobs += [place.submit(votes=1) for _ in range(3)]
    for job_id in jobs:
        assert place.ended(job_id).state == "done"
        assert place.job(job_id).executor.endswith(":second")
    assert (place.home / "versions" / jobs[0]).read_text() == CHAIN_12
    assert place.attempts(jobs[0]).count("collect") == 1 and place.attempts(jobs[0]).count("register") == 1
    assert all(gone(pid) for pid in place.trainers(jobs[0]))
    # The lost one comes back: it finds its old run cancelled and its job done, and does nothing.
    place.work("--name", "first", "--once").wait(60)
    assert place.attempts(jobs[0]).count("register") == 1 and place.job(jobs[0]).state == "done"
