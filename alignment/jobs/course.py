"""The course of a job: its steps in order, each recorded once, told to the ledger; knows nothing of the engine.

It is a deterministic function of what the steps returned, so that the engine can run it again after a crash with the
recorded answers. What it tells the ledger may be told twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from alignment.db import jobs as queries
from alignment.jobs.hand import Hand
from alignment.jobs.parts import JobKind, Step

# Runs a step once and records what came of it under the step's name, or gives what was recorded before.
Record = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]
UNFINISHED = ("failed", "stopped")  # recorded answers that a resumed job asks for anew
PROTOCOL = 1  # of what is recorded


def run_course(hand: Hand, kind: JobKind, record: Record) -> str:
    """The state in which the job ended: done, failed or cancelled.

    Raises Stopped when it was taken away between two steps."""
    results: dict[str, Any] = {}
    hand.insist(lambda s: queries.step_names(s, hand.job.id, [step.name for step in kind.steps]))
    for place, step in enumerate(kind.steps):
        answer = _asked_until_it_waits_no_more(hand, step, results, record)
        state, reason = answer["state"], answer.get("reason")
        if state == "stopped":
            return _end(hand, "cancelled", None)  # of a job that is lost the ledger lets nothing be said
        ended = {"finished": "done"}.get(state, state)
        hand.insist(
            lambda s, step=step, ended=ended, reason=reason, answer=answer: queries.end_step(
                s, hand.job.id, step.name, ended, reason=reason, seconds=answer.get("seconds")
            )
        )
        if state == "failed":
            return _end(hand, "failed", f"{step.name}: {reason}")
        if state == "finished":
            for later in kind.steps[place + 1 :]:
                hand.insist(
                    lambda s, later=later, reason=reason: queries.end_step(
                        s, hand.job.id, later.name, "skipped", reason=reason, seconds=None
                    )
                )
            return _end(hand, "done", reason)
        if state == "done":
            results[step.name] = answer["result"]
    return _end(hand, "done", None)


def _asked_until_it_waits_no_more(hand: Hand, step: Step, results: Mapping[str, Any], record: Record) -> dict[str, Any]:
    while True:
        answer = record(step.name, lambda: hand.perform(step, results))
        if answer["state"] != "waiting":
            return answer
        hand.insist(lambda s, answer=answer: queries.wait_step(s, hand.job.id, step.name, answer))
        hand.wait_until(answer["until"])


def _end(hand: Hand, state: str, reason: str | None) -> str:
    hand.insist(lambda s: queries.end_job(s, hand.job.id, state, reason, workflow=hand.job.workflow))
    return state


def shape_of(kind: JobKind) -> str:
    """Twelve digits that change with the names or the order of a kind's steps: what a recorded course fits."""
    return _digest([PROTOCOL, kind.name, [step.name for step in kind.steps]])


def code_of(kinds: Iterable[JobKind]) -> str:
    """Twelve digits that change with the steps of any kind: which workers may go on with each other's jobs."""
    return _digest([PROTOCOL, sorted(shape_of(kind) for kind in kinds)])


def unfinished_from(recorded: Iterable[tuple[int, Mapping[str, Any] | None]]) -> int:
    """The number from which a resumed course asks anew, given the (number, answer) of what was recorded: behind the
    last answer, or the first one that is a failure, a stop, or an error."""
    last = 0
    for number, answer in recorded:
        if answer is None or answer.get("state") in UNFINISHED:
            return number
        last = number
    return last + 1


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]
