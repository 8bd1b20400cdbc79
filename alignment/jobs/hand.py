"""A job in a worker's hand: its steps run as child processes, which can be stopped at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from alignment.config import Settings
from alignment.db import jobs as queries
from alignment.db.engine import Database
from alignment.db.jobs import JobRecord
from alignment.errors import DatabaseError
from alignment.jobs import processes
from alignment.jobs.command import failure
from alignment.jobs.parts import Step
from alignment.jobs.status import home_of

LOOK_SECONDS = 0.1
GRACE_SECONDS = 2.0  # for a step to end by itself
COPY_SECONDS = 0.5  # between two copies of a step's log into the ledger
MOST_LINES = 2000  # of a step that the ledger keeps; the file keeps all
MOST_CRASHES = 2  # of a step killed by a signal (no memory, a kill by hand), before it counts as failed
LONG_SECONDS = 600.0  # an attempt that lived so long makes the crashes before it forgotten
LONGEST_OUTAGE_SECONDS = 900.0  # of a database, within one step
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
T = TypeVar("T")


class Stopped(Exception):
    """The job was taken out of this worker's hand: ``cancelled``, or ``lost`` to another run of the engine."""


def insist(ledger: Database, act: Callable[[Any], T], *, wait: Callable[[float], None], log: Callable[..., None]) -> T:
    """What ``act`` says of a session of the ledger; while that is away, ``wait`` is called with some seconds."""
    pause = _FIRST_PAUSE
    while True:
        try:
            with ledger.session() as s:
                return act(s)
        except DatabaseError as error:
            log("no-database", error=str(error), next_try_seconds=pause)
            wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


@dataclass
class Hand:
    """One job under way. ``stop`` may be called from any thread; the others belong to the thread of the job."""

    job: JobRecord
    settings: Settings
    ledger: Database
    log: Callable[..., None]

    def __post_init__(self) -> None:
        self.folder = home_of(self.settings) / "jobs" / self.job.id
        self.why: str | None = None
        self._stopped = threading.Event()
        self.at_rest = threading.Event()  # nothing runs any more, and nothing will

    def stop(self, why: str) -> None:
        """Ends what runs for the job, within seconds. ``why``: cancelled, lost, or ending (the worker ends)."""
        self.why = self.why or why
        self._stopped.set()

    def insist(self, act: Callable[[Any], T]) -> T:
        """What ``act`` says of a session of the ledger, asked again while the ledger is away."""
        return insist(self.ledger, act, wait=self.pause, log=self.log)

    def pause(self, seconds: float) -> None:
        """Raises Stopped when the job is taken away meanwhile; holds still for good when the worker ends."""
        if self._stopped.wait(seconds):
            if self.why == "ending":
                self.at_rest.set()
                threading.Event().wait()  # nothing more may be recorded: the job goes on in the next worker
            raise Stopped(self.why)

    def wait_until(self, moment: float) -> None:
        """Returns at ``moment`` (seconds since 1970)."""
        while (left := moment - time.time()) > 0:
            self.pause(min(left, 3600.0))

    def perform(self, step: Step, results: Mapping[str, Any]) -> dict[str, Any]:
        """What came of the step (see ``child.run``), after as many attempts as it allows; ``stopped`` when the job was
        taken away. An outage of a database is waited out; what a signal killed is started again, a few times."""
        failures, crashes, outage = 0, 0, 0.0
        while True:
            try:
                self.pause(0)
                answer = self._attempt(step, results)
                if answer["state"] != "failed":
                    return answer
                if answer.get("database") and outage < LONGEST_OUTAGE_SECONDS:
                    wait = min(_LONGEST_PAUSE, 1.0 + outage)
                    outage += wait + answer.get("seconds", 0.0)
                elif answer.get("crashed") and (crashes := _crashes(crashes, answer)) <= MOST_CRASHES:
                    wait = min(60.0, 2.0 ** (crashes - 1))
                elif failures < step.retries:
                    failures += 1
                    wait = min(60.0, 2.0**failures)
                else:
                    return answer
                said = f"{answer['reason']} Another attempt in {wait:.0f} s."
                self.insist(lambda s, said=said: queries.add_line(s, self.job.id, said, step=step.name))
                self.pause(wait)
            except Stopped as stopped:
                return {"state": "stopped", "reason": str(stopped)}

    def _attempt(self, step: Step, results: Mapping[str, Any]) -> dict[str, Any]:
        if leftovers := processes.end_leftovers(self.job.id):
            self.log("leftovers-ended", job=self.job.id, processes=leftovers)

        self.insist(lambda s: queries.begin_step(s, self.job.id, step.name))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            output = (self.folder / f"{step.name}.log").open("ab")
        except OSError as error:
            return {"state": "failed", "reason": f"{self.folder} cannot be written ({error.strerror}); free space or "
                    "mend its rights, then resume the job."}  # fmt: skip
        with output:
            copier = LogCopy(Path(output.name), lambda lines: self._copy(step.name, lines))
            child = [sys.executable, "-m", "alignment.jobs.child"]
            environment = {**os.environ, processes.MARK: self.job.id}
            process = processes.start(child, environment=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=output)  # fmt: skip
        try:
            return self._hear(process, copier, step.name, self._spec(step, results))
        finally:
            processes.end(process, grace=0.0)
            copier.copy(all_of_it=True)

    def _hear(
        self, process: subprocess.Popen[bytes], copier: LogCopy, step: str, spec: Mapping[str, Any]
    ) -> dict[str, Any]:
        told: dict[str, Any] = {}
        answers: list[dict[str, Any]] = []
        reader = threading.Thread(target=_read, args=(process.stdout, told, answers), daemon=True)
        reader.start()
        with contextlib.suppress(BrokenPipeError):  # it ended at once; its status says how
            process.stdin.write((json.dumps(spec) + "\n").encode())
            process.stdin.close()
        began = copied = time.monotonic()
        while process.poll() is None:
            if self._stopped.wait(LOOK_SECONDS):
                processes.end(process, grace=GRACE_SECONDS)
                self.pause(0)
            if time.monotonic() - copied > COPY_SECONDS:
                self._copy_progress(step, told)
                copier.copy()
                copied = time.monotonic()
        reader.join(5.0)
        if answers:
            return answers[-1]
        copier.copy(all_of_it=True)
        reason = failure(process.returncode, copier.last_words).replace("The command", "The step")
        crashed = {"crashed": True} if process.returncode < 0 else {}
        return {"state": "failed", "reason": reason, "seconds": round(time.monotonic() - began, 3), **crashed}

    def _copy_progress(self, step: str, told: dict[str, Any]) -> None:
        values = {key: told.pop(key) for key in list(told)}
        if "started" in values:  # the wait for the GPU slot is no work
            values["started"] = datetime.fromtimestamp(values["started"], UTC)
        if values:
            with contextlib.suppress(DatabaseError), self.ledger.session() as s:
                queries.set_step(s, self.job.id, step, **values)

    def _spec(self, step: Step, results: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "job_id": self.job.id, "kind": self.job.kind, "step": step.name, "home": str(home_of(self.settings)),
            "database_url": self.settings.database_url, "store": self.settings.store,
            "run_dir": str(self.folder), "recipe": dict(self.job.recipe), "results": dict(results),
        }  # fmt: skip

    def _copy(self, step: str, lines: list[str]) -> None:
        with self.ledger.session() as s:
            queries.add_lines(s, self.job.id, lines, step=step)
            queries.touch_job(s, self.job.id)


def _crashes(before: int, answer: Mapping[str, Any]) -> int:
    return 1 if answer.get("seconds", 0.0) > LONG_SECONDS else before + 1


def _read(stream: Any, told: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    """Keeps the newest of what a child says of its progress, and its answer."""
    for line in stream:
        said = json.loads(line)
        if "state" in said:
            answers.append(said)
        else:
            told.update(said)


class LogCopy:
    """Copies what is appended to a step's log file into the ledger, as far as the ledger takes it."""

    def __init__(self, path: Path, write: Callable[[list[str]], None]) -> None:
        self.path, self.write = path, write
        self.at, self.lines, self.last_words = path.stat().st_size, 0, [""]

    def copy(self, *, all_of_it: bool = False) -> None:
        """Whole lines that are new; ``all_of_it``: the last one even without its end."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.at)
                new = file.read(1 << 20)
        except OSError:
            return
        end = len(new) if all_of_it else new.rfind(b"\n") + 1
        texts = [line.rpartition("\r")[2] for line in new[:end].decode("utf-8", "replace").splitlines() if line.strip()]
        if not texts:
            return
        kept = texts[: max(0, MOST_LINES - self.lines)]
        if len(kept) < len(texts) and self.lines < MOST_LINES:
            kept.append(f"more stands in {self.path.name} of the job's folder")
        try:
            self.write(kept)
        except DatabaseError:
            return  # the next copy brings these lines, too
        self.at, self.lines, self.last_words = self.at + end, self.lines + len(texts), texts[-5:]
