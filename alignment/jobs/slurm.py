"""A job's command on another machine, through submitit: Slurm, or submitit's local executor to try it with.

ATTUNE_RUNNER=slurm (or submitit-local); ATTUNE_SLURM="partition=gpu gpus_per_node=1 timeout_min=600" are submitit's
parameters. The command outlives this machine's worker: a worker that starts again finds it and goes on waiting.
Home and store have to be on a file system that both machines see.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.errors import ConfigError
from alignment.jobs.command import CommandFailed, Listener, Tell, argv_of, environment_of, failure, result_of
from alignment.jobs.parts import Command
from alignment.jobs.processes import MARK

RUNNERS = {"slurm": "slurm", "submitit-local": "local"}
LOOK_SECONDS = 0.5


def call(argv: list[str], environment: dict[str, str], output: str) -> int:
    """The command's exit status; on the other machine. What it says is appended to ``output``."""
    with open(output, "ab") as file:
        return subprocess.run(argv, env={**os.environ, **environment}, stdout=file, stderr=file, check=False).returncode


def run_elsewhere(command: Command, *, job_id: str, tell: Tell) -> dict[str, Any]:
    """The result of the command, submitted once and found again after a crash of this process.

    Raises ConfigError without submitit or with parameters it does not know, CommandFailed as a command here would."""
    folder = command.run_dir / "submitit"
    folder.mkdir(parents=True, exist_ok=True)
    known, output = folder / "submitted.json", folder / "output.log"
    heard = Listener(command, tell)
    job = _found(known, folder)
    try:
        if job is None:
            output.unlink(missing_ok=True)
            job = _submit(command, job_id, folder, output)
            known.write_text(json.dumps({"id": job.job_id}), encoding="utf-8")
        read = 0
        while not job.done():
            read = _hear(heard, output, read)
            time.sleep(LOOK_SECONDS)
        status = _status(job)
        _hear(heard, output, read)
    except SystemExit:  # cancelled here means cancelled there
        if job is not None:
            job.cancel()
        raise
    finally:  # whatever ended it but our own death, another attempt submits it anew
        known.unlink(missing_ok=True)
    if status:
        raise CommandFailed(failure(status, heard.last_words))
    return result_of(command, heard.result)


def _status(job: Any) -> int:
    try:
        return int(job.result())
    except Exception as error:  # submitit's own: the other machine died, or ran out of time
        raise CommandFailed(f"The command was lost on its machine ({str(error).splitlines()[0]}).") from None


def parameters() -> dict[str, Any]:
    """ATTUNE_SLURM as submitit takes it: whole numbers as numbers."""
    found: dict[str, Any] = {}
    for part in os.environ.get("ATTUNE_SLURM", "").split():
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"ATTUNE_SLURM has {part!r}; write NAME=VALUE, such as partition=gpu timeout_min=600.")
        found[name if "_" in name and name.startswith("slurm") else _shared(name)] = (
            int(value) if value.isdigit() else value
        )
    return found


def _shared(name: str) -> str:
    """submitit's own names stay; what only Slurm has gets its prefix."""
    shared = {"gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min", "nodes", "tasks_per_node", "name"}
    return name if name in shared else f"slurm_{name}"


def _executor(folder: Path) -> Any:
    try:
        import submitit
    except ModuleNotFoundError:
        raise ConfigError("ATTUNE_RUNNER needs submitit; install it with pip install 'attune[slurm]'.") from None
    runner = os.environ["ATTUNE_RUNNER"]
    if runner not in RUNNERS:
        raise ConfigError(f"ATTUNE_RUNNER is {runner!r}; write local, {' or '.join(RUNNERS)}.")
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=RUNNERS[runner])
        executor.update_parameters(**parameters())
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"submitit refuses ATTUNE_SLURM: {str(error).splitlines()[0]}") from None
    return executor


def _submit(command: Command, job_id: str, folder: Path, output: Path) -> Any:
    kept = ("PYTHONPATH", "HF_HUB_OFFLINE")
    shown: Mapping[str, str] = environment_of(command, job_id, None)
    os.environ.pop(MARK, None)  # it is no leftover of this machine: a worker that starts again finds it otherwise
    ours = {n: value for n, value in shown.items() if (n.startswith("ATTUNE_") and n != MARK) or n in kept}
    return _executor(folder).submit(call, list(argv_of(command)), {**ours, **command.environment}, str(output))


def _found(known: Path, folder: Path) -> Any:
    """The job that was submitted before a crash, if it still runs or has ended well."""
    if not known.exists():
        return None
    import submitit

    cls = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[RUNNERS[os.environ["ATTUNE_RUNNER"]]]
    return cls(folder=folder, job_id=json.loads(known.read_text())["id"])


def _hear(heard: Listener, output: Path, start: int) -> int:
    """Whole new lines of the output; where the next look begins."""
    if not output.exists():
        return start
    with output.open("rb") as file:
        file.seek(start)
        new = file.read()
    end = new.rfind(b"\n") + 1
    for line in new[:end].decode("utf-8", "replace").splitlines():
        heard.hear(line)
    return start + end
