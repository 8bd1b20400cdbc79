"""Processes of a job: each in a process group of its own, ended with its parent, found again after a crash."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LEASH = str(Path(__file__).with_name("leash.py"))
MARK = "ATTUNE_JOB"  # in the environment of every process that works for a job
GRACE_SECONDS = 3.0  # between SIGTERM and SIGKILL


def start(argv: Sequence[str], *, environment: Mapping[str, str], **options: Any) -> subprocess.Popen[bytes]:
    """The command as the leader of a new process group; it is killed when the calling thread or process dies.

    ``options`` are Popen's."""
    command = [sys.executable, "-I", "-S", LEASH, str(os.getpid()), *argv]
    return subprocess.Popen(command, start_new_session=True, env=dict(environment), **options)


def end(process: subprocess.Popen[bytes], *, grace: float = GRACE_SECONDS) -> None:
    """Ends the whole group: politely, then, ``grace`` seconds later, with SIGKILL. Returns when its leader is gone."""
    _signal(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    _signal(process.pid, signal.SIGKILL)
    process.wait()


def end_leftovers(job_id: str) -> int:
    """How many processes of this job outlived a killed worker (the ranks of a launcher, say) and were killed now.

    A group leader dies with its worker, what it started need not. Linux alone tells whose they are."""
    killed, until = 0, time.monotonic() + GRACE_SECONDS
    while (found := _marked(job_id)) and time.monotonic() < until:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        time.sleep(0.05)
    return killed


def _marked(job_id: str) -> list[int]:
    ours, mark = _ancestors(), f"{MARK}={job_id}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(folder.name)
            if pid in ours or mark not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            if (folder / "stat").read_text().rpartition(") ")[2][0] not in "ZX":  # the dead need no killing
                found.append(pid)
    return found


def _ancestors() -> set[int]:
    pid, found = os.getpid(), set()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
        except (OSError, ValueError):
            break
    return found


def _signal(group: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, what)
