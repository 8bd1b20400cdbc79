"""`python -m alignment.jobs.child`: runs one step in a process of its own; what came of it is one line of JSON.

The spec comes on stdin (it may hold a password), the answer goes to stdout; whatever the step prints is its log.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from alignment.errors import AttuneError, DatabaseError
from alignment.jobs.kinds import KINDS
from alignment.jobs.parts import Command, Finish, Outcome, Skip, Step, StepContext, Wait

TELL_SECONDS = 0.25  # between two signs of progress
NO_SLOT = "waits for the GPU slot"


class Teller:
    """Tells the worker how far the step is, now and then: lines of JSON before the one with the answer."""

    def __init__(self, fd: int) -> None:
        self.fd, self.last, self.guard = fd, 0.0, threading.Lock()

    def progress(self, share: float | None, text: str) -> None:
        now = time.monotonic()
        if now - self.last >= TELL_SECONDS or share == 1:
            self.last = now
            known = {} if share is None else {"share": min(1.0, max(0.0, float(share)))}
            self.tell(text=text[:500], **known)

    def tell(self, **said: Any) -> None:
        with self.guard:
            os.write(self.fd, (json.dumps(said) + "\n").encode())


def main() -> None:
    spec = json.loads(sys.stdin.readline())
    teller = Teller(os.dup(1))
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    answer = run(spec, teller)
    sys.stdout.flush()
    teller.tell(**answer)


def run(spec: dict[str, Any], teller: Teller) -> dict[str, Any]:
    """What came of the step: ``state`` (done, skipped, finished, waiting, failed) with result or reason and the
    seconds of work. ``database``: it failed because a database was away."""
    began = [time.monotonic()]
    try:
        step = next(one for one in KINDS[spec["kind"]].load().steps if one.name == spec["step"])
        answer = _told(_outcome(step, spec, teller, began))
    except AttuneError as error:
        answer = {"state": "failed", "reason": str(error), "database": isinstance(error, DatabaseError),
                  "crashed": getattr(error, "crashed", False)}  # fmt: skip
    except OSError as error:
        traceback.print_exc()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = f"{error.filename or 'A file'} cannot be used ({error.strerror or error})"
        answer = {"state": "failed", "reason": f"{what}; {'free space' if full else 'mend that'}, then resume the job."}
    except Exception as error:
        traceback.print_exc()
        first = str(error).strip().split("\n")[0]
        answer = {"state": "failed", "reason": f"{type(error).__name__}: {first or 'no word'}; the log says where."}
    return answer | {"seconds": round(time.monotonic() - began[0], 3)}


def _outcome(step: Step, spec: dict[str, Any], teller: Teller, began: list[float]) -> Outcome:
    from alignment.jobs.slots import gpu_slot, slots_folder

    context = StepContext(
        job_id=spec["job_id"], step=step.name, home=Path(spec["home"]), database_url=spec["database_url"],
        run_dir=Path(spec["run_dir"]), recipe=spec["recipe"], results=spec["results"], store=spec["store"],
        say=lambda text: print(text, flush=True), progress=teller.progress,
    )  # fmt: skip
    context.run_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        slot = None

        def take_slot() -> Any:
            taken = held.enter_context(gpu_slot(slots_folder(context.home), on_wait=lambda: teller.tell(text=NO_SLOT)))
            os.environ.update(taken.environment)
            began[0] = time.monotonic()
            teller.tell(text="", started=time.time())
            return taken

        if step.gpu:
            slot = take_slot()
        outcome = step.run(context)
        if not isinstance(outcome, Command):
            return outcome
        if os.environ.get("ATTUNE_RUNNER", "local") != "local":
            from alignment.jobs.slurm import run_elsewhere

            return run_elsewhere(outcome, job_id=context.job_id, tell=teller.progress)
        from alignment.jobs.command import run_command

        return run_command(outcome, job_id=context.job_id, slot=slot or take_slot(), tell=teller.progress)


def _told(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Skip):
        return {"state": "skipped", "reason": outcome.reason}
    if isinstance(outcome, Finish):
        return {"state": "finished", "reason": outcome.reason}
    if isinstance(outcome, Wait):
        return {"state": "waiting", "reason": outcome.reason, "until": time.time() + max(0.0, outcome.seconds)}
    if outcome is not None and not hasattr(outcome, "keys"):
        raise TypeError(f"the step returned a {type(outcome).__name__}, no mapping, Skip, Finish, Wait or Command")
    result = dict(outcome or {})
    try:
        json.dumps(result)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the step's result must be JSON ({error})") from None
    return {"state": "done", "result": result}


if __name__ == "__main__":
    main()
