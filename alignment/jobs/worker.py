"""The worker of jobs: takes what waits, looks after what it has in hand, and asks for what its schedules say."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from typing import Any, Protocol

from alignment.config import Settings
from alignment.db import job_workers
from alignment.db import jobs as queries
from alignment.db.jobs import JobRecord
from alignment.db.tables_jobs import OPEN_STATES, jobs_url
from alignment.errors import AttuneError, ConfigError, DatabaseError
from alignment.jobs import schedules
from alignment.jobs.course import Record, code_of, run_course, shape_of
from alignment.jobs.hand import Hand, Stopped, insist
from alignment.jobs.kinds import KINDS
from alignment.jobs.parts import JobKind
from alignment.jobs.slots import locked
from alignment.jobs.status import home_of, ledger_of

LOOK_SECONDS = 0.5
BEAT_SECONDS = 5.0
ENDED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")  # the engine's words
STOP_SECONDS = 2.8  # for ending what runs, at the end of a worker


class Log(Protocol):
    def __call__(self, event: str, **fields: Any) -> None: ...


def worker_name(name: str | None) -> str:
    """The executor's id: this machine's name, and ``name`` where several workers share it."""
    if name is not None and not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", name):
        raise ConfigError(f"--name {name!r} cannot be used; letters, digits, dots and dashes, at most 40.")
    host = socket.gethostname()[:100]
    return host if name is None else f"{host}:{name}"


class Worker:
    """Runs jobs in this process. ``start``, then ``wait``; ``stop`` may be called from any thread."""

    def __init__(self, settings: Settings, *, log: Log, name: str | None = None, at_once: int = 16) -> None:
        self.settings, self.log, self.at_once = settings, log, at_once
        self.name = worker_name(name)
        self.ledger = ledger_of(settings)
        self.kinds = _kinds()
        self.code = code_of(self.kinds.values())
        self.ended = threading.Event()
        self._hands: dict[str, Hand] = {}
        self._enqueued: set[str] = set()
        self._refused: set[str] = set()
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self._held = contextlib.ExitStack()
        self._beaten = 0.0

    def start(self) -> None:
        """Raises ConfigError when another process is this worker already, DatabaseError when there is no ledger."""
        from alignment.jobs import engine

        lock = home_of(self.settings) / "jobs" / f"worker-{self.name.replace(':', '-')}.lock"
        if self._held.enter_context(locked(lock, wait=False)) is None:
            raise ConfigError(
                f"A worker called {self.name} runs already on this home (its lock is {lock}); stop it, or give this "
                "one another --name."
            )
        with self.ledger.session() as s:
            self._beat(s)
        engine.launch(
            jobs_url(self.settings.database_url), executor=self.name, version=self.code, at_once=self.at_once,
            course=self._run,
        )  # fmt: skip
        threading.Thread(target=self._look_after, name="jobs", daemon=True).start()

    def stop(self) -> None:
        """Ends what runs; the jobs stay open and go on when a worker starts again."""
        self._stop.set()
        with self._guard:
            hands = list(self._hands.values())
        for hand in hands:
            hand.stop("ending")
        for hand in hands:
            hand.at_rest.wait(STOP_SECONDS)
        self._say_goodbye()

    def hand_back_now(self) -> None:
        """Nothing to hand back: what is not recorded is done again."""

    def close(self) -> None:
        """After the last job: ends the engine, so that this process may go on with other things."""
        from alignment.jobs import engine

        self._stop.set()
        engine.shut_down()
        self._say_goodbye()
        self._held.close()

    def idle(self) -> bool:
        """Whether nothing is in hand and nothing this worker may take waits."""
        with self.ledger.session(write=False) as s:
            waiting = queries.list_jobs(s, limit=None, states=OPEN_STATES)
        mine = [job for job in waiting if job.state == "queued" or job.executor == self.name]
        return not self._hands and all(job.id in self._refused for job in mine)

    def _run(self, job_id: str, workflow: str, record: Record) -> str:
        """The course of one job, from its beginning or again after a crash; in a thread of the engine."""
        hand = None
        try:
            hand = self._take(job_id, workflow)
            if hand is None:
                return "lost"  # cancelled, or another run of the engine has it now
            self.log("job", job=job_id, kind=hand.job.kind, attempt=hand.job.attempt)
            state = run_course(hand, self.kinds[hand.job.kind], record)
            self.log(state, job=job_id)
            return state
        except Stopped as stopped:
            if str(stopped) == "cancelled" and hand is not None:
                self._insist(lambda s: queries.end_job(s, job_id, "cancelled", None, workflow=workflow))
            self.log(str(stopped), job=job_id)
            return str(stopped)
        except Exception as error:  # of the engine's own store, mostly: a full disk, say
            first = str(error).strip().split("\n")[0]
            self.log("failed", job=job_id, error=f"{type(error).__name__}: {first}")
            if hand is not None:
                reason = f"The job's course could not be recorded ({type(error).__name__}: {first}); mend that, resume."
                self._insist(lambda s: queries.end_job(s, job_id, "failed", reason, workflow=workflow))
            raise
        finally:
            with self._guard:
                if self._hands.get(job_id) is hand:
                    self._hands.pop(job_id, None)

    def _insist(self, act: Any) -> Any:
        return insist(self.ledger, act, wait=self._wait, log=self.log)

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            threading.Event().wait()  # nothing more may be recorded: the next worker goes on

    def _take(self, job_id: str, workflow: str) -> Hand | None:
        def take(s: Any) -> tuple[bool, JobRecord]:
            job = queries.get_job(s, job_id)
            taken = queries.move_job(
                s, job_id, to="running", workflow=workflow, executor=self.name, code=self.code,
                shape=shape_of(self.kinds[job.kind]), started=job.started or queries.utcnow(), reason=None,
            )  # fmt: skip
            return taken, queries.get_job(s, job_id)

        taken, job = self._insist(take)
        if not taken:
            return None
        hand = Hand(job, self.settings, self.ledger, self.log)
        with self._guard:
            self._hands[job_id] = hand
        if self._stop.is_set():
            hand.stop("ending")
        return hand

    def _look_after(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self._look()
            except DatabaseError as error:
                self.log("no-database", error=str(error))
                self._stop.wait(5 * LOOK_SECONDS)
            except AttuneError as error:
                self.log("refused", error=str(error))
            except Exception as error:  # the engine's store is away: its own words
                self.log("trouble", error=f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}")
                self._stop.wait(5 * LOOK_SECONDS)

    def _look(self) -> None:
        with self._guard:
            hands = dict(self._hands)
        if time.monotonic() - self._beaten > BEAT_SECONDS:
            with self.ledger.session() as s:
                self._beat(s)
        with self.ledger.session(write=False) as s:
            waiting = queries.list_jobs(s, limit=None, states=OPEN_STATES)
        known = {job.id: job for job in waiting}
        for job_id, hand in hands.items():
            job = known.get(job_id)
            if job is None or job.workflow != hand.job.workflow:
                hand.stop("lost")
            elif job.cancel_asked is not None:
                hand.stop("cancelled")
        for job in reversed(waiting):
            if job.id not in hands:
                self._consider(job)
        schedules.ask_for_due(self.settings, self.log)

    def _consider(self, job: JobRecord) -> None:
        """Enqueues what waits; a job that this worker had under other code goes on if its steps are the same."""
        from alignment.jobs import engine

        kind, ours = self.kinds.get(job.kind), job.executor in (self.name, None)
        if kind is None or job.shape not in (None, shape_of(kind)):
            if job.id not in self._refused and (job.state == "queued" or ours):
                self._refused.add(job.id)
                said = "is not known to it" if kind is None else "has other steps in its code"
                why = (
                    f"Worker {self.name} cannot go on with this job: its kind {job.kind} {said}; start the Attune that "
                    "it began with, or cancel it and ask for a new one."
                )
                self.log("other-code", job=job.id, reason=why)
                with self.ledger.session() as s:
                    queries.touch_job(s, job.id, reason=why, executor=None)
                    queries.add_line(s, job.id, why)
        elif job.state == "queued":
            if job.workflow not in self._enqueued:
                held_by = engine.enqueue(job.id, job.workflow, job.previous, self.code)
                self._enqueued.add(job.workflow)
                if held_by != self.code and not self._alive(held_by):  # those whose it was are gone
                    with self.ledger.session() as s:
                        queries.requeue(s, job, why=f"waits for {self.code} now: no worker with {held_by} is alive")
        elif ours and job.code != self.code:
            with self.ledger.session() as s:
                queries.requeue(s, job, why=f"goes on with newer code that has the same steps ({self.code})")

        elif job.executor == self.name and engine.state_of(job.workflow) in ENDED:
            with self.ledger.session() as s:
                queries.end_job(s, job.id, "failed", "Its course ended without an outcome; resume it.",
                                workflow=job.workflow)  # fmt: skip

    def _alive(self, code: str) -> bool:
        with self.ledger.session(write=False) as s:
            return any(one.alive and one.code == code for one in job_workers.list_workers(s))

    def _beat(self, s: Any) -> None:
        job_workers.beat(s, name=self.name, host=socket.gethostname()[:100], pid=os.getpid(), code=self.code)
        self._beaten = time.monotonic()

    def _say_goodbye(self) -> None:
        with contextlib.suppress(DatabaseError):
            with self.ledger.session() as s:
                job_workers.ended(s, self.name)
        self.ended.set()


def _kinds() -> dict[str, JobKind]:
    """The kinds of this installation that can be loaded."""
    found = {}
    for name in KINDS:
        with contextlib.suppress(AttuneError):
            found[name] = KINDS[name].load()
    return found
