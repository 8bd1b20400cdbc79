"""A home with jobs, and workers as processes that can be killed."""

from __future__ import annotations

import atexit
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from alignment.config import Settings
from alignment.db import migrate
from alignment.jobs import status

ROOT = Path(__file__).resolve().parent.parent
KINDS = "ATTUNE_JOB_KINDS"
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
    KINDS: "tests.jobs_fake:KINDS",
}  # fmt: skip
CHAIN_12 = "d889d8bcd76e98f4"  # sha256, sixteen digits of it, twelve times over "start"


def patience() -> float:
    """How many times as long a machine may take that has more to do than it has cores."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Nursery:
    """Starts workers by forking a warm process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "jobs_nursery.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=ENVIRONMENT, cwd=ROOT,
        )  # fmt: skip
        self.started: queue.Queue[int] = queue.Queue()
        self.ended: dict[int, int] = {}
        threading.Thread(target=self._hear, daemon=True).start()

    def _hear(self) -> None:
        for line in self.process.stdout:
            word, pid, *status = line.split()
            if word == "started":
                self.started.put(int(pid))
            else:
                self.ended[int(pid)] = int(status[0])

    def start(self, words: list[str], log: Path, environment: dict[str, str]) -> Forked:
        asked = {"words": words, "log": str(log), "environment": environment}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return Forked(self.started.get(timeout=60), self)


@lru_cache(maxsize=1)
def nursery() -> Nursery:
    """One for all tests; it ends with the pipe to it."""
    return Nursery()


class Forked:
    """A worker, as a Popen would show it."""

    def __init__(self, pid: int, nursery: Nursery) -> None:
        self.pid, self.nursery = pid, nursery

    def poll(self) -> int | None:
        return self.nursery.ended.get(self.pid)

    def wait(self, seconds: float = 60.0) -> int:
        began = time.monotonic()
        while (status := self.poll()) is None:
            assert time.monotonic() - began < seconds * patience(), "the worker does not end"
            time.sleep(0.02)
        return status

    def send_signal(self, what: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, what)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@lru_cache(maxsize=1)
def _empty_database() -> Path:
    """A database under the newest schema, made once for all tests."""
    folder = Path(tempfile.mkdtemp(prefix="attune-jobs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    migrate.upgrade(f"sqlite:///{folder / 'attune.db'}")
    return folder / "attune.db"


class Place:
    """A database, its ledger, and the workers that were started on it."""

    def __init__(self, home: Path, url: str | None = None) -> None:
        self.home, self._kinds_before = home, os.environ.get(KINDS)
        os.environ.setdefault(KINDS, ENVIRONMENT[KINDS])
        self.settings = Settings.from_environment(
            database=url or f"sqlite:///{home / 'attune.db'}", store=str(home / "store")
        )
        if url is None:
            shutil.copy(_empty_database(), home / "attune.db")
        else:
            migrate.upgrade(url)
        self.workers: list[Forked] = []

    def attune(self, *words: str, **environment: str) -> Forked:
        """`attune jobs ...` on this home; what it says goes to a file."""
        where = ["--home", str(self.home), "--database", self.settings.database_url]
        process = nursery().start(["jobs", *words, *where], self.home / "worker.log", environment)
        self.workers.append(process)
        return process

    def work(self, *words: str, **environment: str) -> Forked:
        return self.attune("work", *words, **environment)

    def submit(self, kind: str = "fake", **recipe: Any) -> str:
        return status.submit(self.settings, kind, recipe, asked_by="test")

    def job(self, job_id: str) -> status.JobView:
        return status.get_job(self.settings, job_id)

    def log(self, job_id: str) -> list[str]:
        return [line.text for line in status.log_lines(self.settings, job_id)]

    def folder(self, job_id: str) -> Path:
        return self.home / "jobs" / job_id

    def attempts(self, job_id: str) -> list[str]:
        path = self.folder(job_id) / "attempts.txt"
        return path.read_text().split() if path.exists() else []

    def trainers(self, job_id: str) -> list[int]:
        path = self.folder(job_id) / "train" / "trainers.txt"
        return [int(word) for word in path.read_text().split()] if path.exists() else []

    def until(self, true: Callable[[], Any], *, seconds: float = 60.0) -> Any:
        """What ``true`` says as soon as it is true. Raises AssertionError with the workers' words after a while."""
        began = time.monotonic()
        while not (found := true()):
            assert time.monotonic() - began < seconds * patience(), (self.home / "worker.log").read_text()[-3000:]
            time.sleep(0.05)
        return found

    def ended(self, job_id: str, **more: Any) -> status.JobView:
        """The job when it has ended."""
        self.until(lambda: not self.job(job_id).is_open, **more)
        return self.job(job_id)

    def kill_all(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()

    def close(self) -> None:
        self.kill_all()
        os.environ.pop(KINDS, None)
        if self._kinds_before is not None:
            os.environ[KINDS] = self._kinds_before


def kill(process: Forked) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def gone(pid: int) -> bool:
    """Whether a process is dead, or dying."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except OSError:
        return True
