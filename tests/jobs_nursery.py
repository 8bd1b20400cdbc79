"""Forks `attune jobs` processes from a warm one: python tests/jobs_nursery.py, a JSON line for each on stdin.

Starting Python and importing the engine takes longer than what most tests of jobs look at."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback

import alignment.cli
import alignment.jobs.engine
import alignment.jobs.worker  # noqa: F401 imported here, so that no child has to


def die_at(moment: str) -> None:
    """Kills this worker before or after the so-manieth call of one of its functions: "after perform 1", say."""
    from alignment.db import jobs as queries
    from alignment.jobs import engine
    from alignment.jobs.hand import Hand
    from alignment.jobs.worker import Worker

    when, name, number = moment.split()
    owners = {"perform": Hand, "_take": Worker, "enqueue": engine, "_recorded": engine, "end_step": queries,
              "end_job": queries}  # fmt: skip
    plain, calls = getattr(owners[name], name), [0]

    def counted(*args: object, **more: object) -> object:
        calls[0] += 1
        now = calls[0] == int(number)
        if now and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = plain(*args, **more)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owners[name], name, counted)


def reap(*_: object) -> None:
    """Says how children ended."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            os.write(1, f"ended {ended[0]} {os.waitstatus_to_exitcode(ended[1])}\n".encode())
    except ChildProcessError:
        pass


def main() -> None:
    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.environ.update(asked["environment"])
            sys.executable = os.environ.get("ATTUNE_WARM_PYTHON", sys.executable)  # tests/jobs_warm.py
            log = os.open(asked["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            for standard in (1, 2):
                os.dup2(log, standard)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.argv = ["attune", *asked["words"]]
            status = 1
            if os.environ.get("DIE_AT"):
                die_at(os.environ["DIE_AT"])
            try:
                alignment.cli.main()
            except SystemExit as end:
                status = end.code or 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        os.write(1, f"started {child}\n".encode())


if __name__ == "__main__":
    main()
