"""Running a step's command: started under a leash, listened to line by line, ended as a group."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.errors import StoreError, TrainingError
from alignment.jobs import processes
from alignment.jobs.parts import Command
from alignment.jobs.slots import Slot, locked

RESULT_SHOWN = 300  # characters of a command's JSON result in its log
METRICS = "metrics.jsonl"  # what every training run writes
LOOK_SECONDS = 0.5
Tell = Callable[[float | None, str], None]


class CommandFailed(TrainingError):
    """A command of a job ended with an error; its last words say why. ``crashed``: a signal killed it."""

    crashed = False


class CommandKilled(CommandFailed):
    crashed = True


def argv_of(command: Command) -> tuple[str, ...]:
    """What is started: with ATTUNE_LAUNCHER (`torchrun --standalone --nproc-per-node 4`) in place of python where the
    command may run once for each GPU."""
    launcher = shlex.split(os.environ.get("ATTUNE_LAUNCHER", ""))
    if not command.several_gpus or not launcher or command.argv[:1] != (sys.executable,):
        return command.argv
    return (*launcher, *command.argv[1:])


def environment_of(command: Command, job_id: str, slot: Slot | None) -> dict[str, str]:
    shown = {"ATTUNE_PROGRESS": "json", "PYTHONUNBUFFERED": "1", processes.MARK: job_id}
    return {**os.environ, **shown, **(slot.environment if slot else {}), **command.environment}


def run_command(command: Command, *, job_id: str, slot: Slot | None, tell: Tell) -> dict[str, Any]:
    """The result of the command, which has the run folder for itself. Its output goes to our stdout.

    Raises CommandFailed with its last words when it fails, StoreError when the run folder cannot be had."""
    with locked(command.run_dir / ".job.lock", wait=True) as lock:
        assert lock is not None
        heard = Listener(command, tell)
        inherited = [lock, *([slot.fd] if slot else [])]  # both stay taken while the command lives
        try:
            process = processes.start(
                argv_of(command), environment=environment_of(command, job_id, slot), pass_fds=inherited,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except OSError as error:
            raise StoreError(f"The command cannot be started ({error.strerror}); free memory or space.") from None
        try:
            watch = threading.Thread(target=heard.watch_metrics, daemon=True)
            watch.start()
            heard.listen(process.stdout)
            status = process.wait()
        finally:
            heard.ended.set()
            processes.end(process)
    if status:
        raise (CommandKilled if status < 0 else CommandFailed)(failure(status, heard.last_words))
    return result_of(command, heard.result)


def result_of(command: Command, said: Mapping[str, Any]) -> dict[str, Any]:
    if callable(command.result):
        return dict(command.result(said))
    return {**said, **(command.result or {})}


def failure(status: int, last_words: Sequence[str]) -> str:
    """Why a command failed, in one sentence: what it said last, or the signal that ended it."""
    if status < 0:
        name = signal.Signals(-status).name if -status in signal.Signals._value2member_map_ else str(-status)
        hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
        return f"The command was ended by {name}{hint}."
    words = last_words[-1] if last_words else ""
    said = words.removeprefix("attune: ").strip()
    return said if words.startswith("attune: ") else f"The command ended with status {status}: {said or 'no word'}."


class Listener:
    """Hears a command: copies its lines, and keeps the last JSON object, the last words and how far it is."""

    def __init__(self, command: Command, tell: Tell) -> None:
        self.command, self.tell = command, tell
        self.result: dict[str, Any] = {}
        self.last_words: list[str] = []
        self.ended = threading.Event()

    def listen(self, stream: Any) -> None:
        """Reads to the end."""
        for raw in stream:
            line = raw.decode("utf-8", "replace").rstrip("\n").rpartition("\r")[2]
            self.hear(line)

    def hear(self, line: str) -> None:
        said = _object(line)
        if said is not None and (told := progress_of(said, self.command.steps)) is not None:
            self.tell(*told)
            return
        if said is not None:
            self.result = said
        if line.strip():
            self.last_words = [*self.last_words[-4:], line]
            with contextlib.suppress(OSError):  # a full disk takes the log, not the run
                print(line if said is None else _shortened(line), flush=True)

    def watch_metrics(self) -> None:
        """Tells the newest step of the run folder's metrics until the command has ended."""
        path, seen = self.command.run_dir / METRICS, 0.0
        while not self.ended.wait(LOOK_SECONDS):
            with contextlib.suppress(OSError):
                if (changed := path.stat().st_mtime) > seen:
                    seen = changed
                    said = _object(_last_line(path))
                    if said is not None and (told := progress_of(said, self.command.steps)) is not None:
                        self.tell(*told)


def progress_of(said: Mapping[str, Any], steps: int | None) -> tuple[float | None, str] | None:
    """Share and words of a JSON line that tells how far a command is; None for any other object."""
    if isinstance(said.get("share"), int | float):
        return float(said["share"]), str(said.get("text", ""))
    if "progress" in said and "done" in said:
        done, total = said["done"], said.get("total")
        return (done / total if total else None), f"{said['progress']}: {done} of {total or '?'}"
    if isinstance(said.get("step"), int):
        total = said.get("steps") or steps
        if isinstance(total, int) and total > 0:
            return min(1.0, said["step"] / total), f"step {said['step']} of {total}"
        return (None, f"step {said['step']}") if "time" in said else None
    return None


def _object(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _shortened(line: str) -> str:
    """A result as the log shows it; the whole of it is kept as the step's."""
    return line if len(line) <= RESULT_SHOWN else f"{line[:RESULT_SHOWN]} ... ({len(line):,} characters)"


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 16384))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return lines[-1] if lines else ""
