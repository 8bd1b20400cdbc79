"""Several workers against one PostgreSQL: a lost one's jobs are reassigned, an outage is waited out."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from database_support import postgres_server, postgres_url
from jobs_support import CHAIN_12, Place, gone, kill

from alignment.errors import DataError, NotFoundError
from alignment.jobs import status

__all__ = ["postgres_server", "postgres_url"]


class Proxy:
    """Between workers and a server: it can be away for a while."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.server, self.open, self.ends = server, True, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            ours, _ = self.listener.accept()
            if not self.open:
                ours.close()
                continue
            theirs = socket.create_connection(self.server)
            self.ends += [ours, theirs]
            for one, other in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self.open = False
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_a_database_that_is_gone_for_a_minute_stops_nobody_for_good(tmp_path: Path, postgres_url: str) -> None:
    url = sa.make_url(postgres_url)
    proxy = Proxy((url.host, url.port))
    place = Place(tmp_path, postgres_url)
    through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
    try:
        job_id = place.submit(pause=0.2, steps=12)
        direct, place.settings = place.settings, place.settings.model_copy(update={"database_url": through})
        worker = place.work()
        place.settings = direct
        trainer = place.until(lambda: place.trainers(job_id))[0]
        proxy.cut()
        time.sleep(60)
        assert worker.poll() is None and gone(trainer)  # it trained to its end meanwhile
        proxy.open = True
        assert place.ended(job_id, seconds=120).state == "done"
        assert place.attempts(job_id) == ["collect", "optional", "train", "judge", "register"]
        assert (place.home / "versions" / job_id).read_text() == CHAIN_12
    finally:
        place.close()


@pytest.fixture
def place(tmp_path: Path, postgres_url: str) -> Iterator[Place]:
    made = Place(tmp_path, postgres_url)
    yield made
    made.close()


@pytest.mark.slow
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
    place.work("--name", "first", "--once").wait()
    assert place.attempts(jobs[0]).count("register") == 1 and place.job(jobs[0]).state == "done"
