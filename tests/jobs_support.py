"""A home with jobs, and workers as processes that can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignment.config import Settings
from alignment.db import migrate
from alignment.jobs import status

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("ATTUNE_JOB_KINDS", "tests.jobs_fake:KINDS")
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
    "ATTUNE_JOB_KINDS": "tests.jobs_fake:KINDS",
}  # fmt: skip
CHAIN_12 = "d889d8bcd76e98f4"  # sha256, sixteen digits of it, twelve times over "start"


class Place:
    """A database, its ledger, and the workers that were started on it."""

    def __init__(self, home: Path, url: str | None = None) -> None:
        self.home = home
        self.settings = Settings.from_environment(
            database=url or f"sqlite:///{home / 'attune.db'}", store=str(home / "store")
        )
        migrate.upgrade(self.settings.database_url)
        self.workers: list[subprocess.Popen[bytes]] = []

    def attune(self, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        """`attune jobs ...` on this home; what it says goes to a file."""
        with (self.home / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "alignment.cli", "jobs", *words, "--home", str(self.home),
                 "--database", self.settings.database_url],
                env={**ENVIRONMENT, **environment}, stdout=log, stderr=log, cwd=ROOT,
            )  # fmt: skip
        self.workers.append(process)
        return process

    def work(self, *words: str, **environment: str) -> subprocess.Popen[bytes]:
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

    def until(self, true: Callable[[], Any], *, seconds: float = 90.0) -> Any:
        """What ``true`` says as soon as it is true. Raises AssertionError with the workers' words after a while."""
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, (self.home / "worker.log").read_text()[-3000:]
            time.sleep(0.02)
        return found

    def ended(self, job_id: str, **more: Any) -> status.JobView:
        """The job when it has ended."""
        self.until(lambda: not self.job(job_id).is_open, **more)
        return self.job(job_id)

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def gone(pid: int) -> bool:
    """Whether a process is dead, or dying."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except OSError:
        return True
