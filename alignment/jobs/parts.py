"""What jobs are made of: a kind has steps, a step returns a result or says why it has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.config import Recipe


@dataclass(frozen=True)
class Skip:
    """This step had nothing to do; the job goes on."""

    reason: str


@dataclass(frozen=True)
class Finish:
    """The job ends here, successfully, with this reason; the steps that follow are skipped."""

    reason: str


@dataclass(frozen=True)
class Wait:
    """Ask this step again in ``seconds``; a worker may end and start in between, and no GPU slot is held."""

    reason: str
    seconds: float


@dataclass(frozen=True)
class Command:
    """A command that can be stopped at any moment and started again; it runs in the GPU slot, in a process group of
    its own, which ends with the worker.

    The last line of stdout that is a JSON object is the step's result; ``result`` adds to it or makes another of it.
    Lines ``{"share": 0.4, "text": ...}``, ``{"step": 3, "steps": 10}`` or ``{"progress": NAME, "done": 3,
    "total": 10}`` on stdout or stderr, and ``run_dir/metrics.jsonl`` with ``steps`` in all, say how far it is.
    ``several_gpus``: the launcher of the settings (torchrun, accelerate) may start it, once for each GPU.
    """

    argv: tuple[str, ...]
    run_dir: Path
    result: Callable[[Mapping[str, Any]], Mapping[str, Any]] | Mapping[str, Any] | None = None
    steps: int | None = None
    several_gpus: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def _unheard(*_: Any) -> None:
    """Says nothing."""


@dataclass
class StepContext:
    """What a step is given. ``run_dir`` is the job's own folder, ``home`` the folder of database and clips, and
    ``results`` what the steps before it returned, by their names; skipped ones are missing.

    ``say`` adds a line to the job's log; ``progress`` takes the share of this step that is done, 0 to 1, and what is
    being done."""

    job_id: str
    step: str
    home: Path
    database_url: str
    run_dir: Path
    recipe: Mapping[str, Any]
    results: Mapping[str, Any] = field(default_factory=dict)
    store: str = ""
    say: Callable[[str], None] = _unheard
    progress: Callable[[float, str], None] = _unheard


Outcome = Mapping[str, Any] | Skip | Finish | Wait | Command


@dataclass(frozen=True)
class Step:
    """One durable step. ``gpu``: it runs in the GPU slot. ``retries``: how often a failure is tried again.

    It runs in a process of its own, so that a crash or a cancel ends the step and never the worker."""

    name: str
    run: Callable[[StepContext], Outcome]
    gpu: bool = False
    retries: int = 0


@dataclass(frozen=True)
class JobKind:
    """A kind of job: its steps in order, and the recipe they share."""

    name: str
    recipe: type[Recipe]
    steps: tuple[Step, ...]
    about: str
