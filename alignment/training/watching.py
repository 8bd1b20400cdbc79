"""What is seen of a run while it trains: the watch, the adapter that did best under it, and a line of metrics a step.

A watch looks at the policy from outside, with clips and scorers that training never meets. It runs on the first
process alone, and leaves the random numbers of training as they were: a watched run trains as an unwatched one.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from alignment.errors import StoreError, TrainingError
from alignment.training.processes import from_first_process, is_first_process, wait_for_all
from alignment.training.weights import adapter_parameters, read_weights, write_tensors

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

HELD_OUT = "held_out_reward"
METRICS = "metrics.jsonl"
PREFIX = "watch/"  # before a watch's metrics where they stand among those of training
Watched = list[tuple[int, dict[str, float]]]


class Watch(Protocol):
    """Looks at a policy before training, at some steps of it and at its end; what it returns is kept.

    ``held_out_reward`` among the metrics is what the adapter is chosen by: higher is better."""

    def __call__(self, step: int, model: MusicModel) -> Mapping[str, float]: ...


class BestAdapter:
    """The adapter's weights at the step with the highest score so far, in ``run_dir``; the first one among equals."""

    def __init__(self, model: MusicModel, run_dir: Path, patience: int) -> None:
        self.model, self.run_dir, self.patience = model, run_dir, patience
        self.scores: list[tuple[int, float]] = []  # (step, score) in the order of the offers; part of a checkpoint

    @property
    def step(self) -> int | None:
        """The step with the highest score; None before the first."""
        return max(self.scores, key=lambda found: found[1])[0] if self.scores else None

    def offer(self, step: int, score: float) -> bool:
        """Keep the weights as they are now when they are the best. True after ``patience`` offers without a better."""
        self.scores.append((step, score))
        if self.step == step and is_first_process():
            write_tensors(adapter_parameters(self.model.hf), self._file(step))
        return len(self.scores) - 1 - [found[0] for found in self.scores].index(self.step) >= self.patience

    def put_back(self) -> None:
        """Put the best weights onto the model; without an offer nothing happens."""
        wait_for_all()
        if self.step is not None:
            read_weights(adapter_parameters(self.model.hf), self._file(self.step))

    def _file(self, step: int) -> Path:
        # By step: a run that was killed and goes on from an earlier checkpoint still finds what was best then.
        return self.run_dir / f"best-{step}.safetensors"


class Watcher:
    """Calls a watch at step 0, every ``every`` steps (0: not between) and at the end, and keeps what it says in
    ``watched``. With ``every``, the adapter with the highest held-out reward is kept."""

    def __init__(self, watch: Watch, model: MusicModel, run_dir: Path, *, every: int, patience: int) -> None:
        self.watch, self.model, self.every = watch, model, every
        self.watched: Watched = []
        self.best = BestAdapter(model, run_dir, patience)

    def remember(self, watched: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Go on from what a checkpoint knew."""
        self.watched = [(step, dict(found)) for step, found in watched]
        self.best.scores = [(step, found[HELD_OUT]) for step, found in self.watched if HELD_OUT in found]

    def due(self, step: int, *, last: bool = False) -> bool:
        """Whether the watch looks at this step; never twice at the same one."""
        if self.watched and self.watched[-1][0] == step:
            return False
        return step == 0 or last or bool(self.every and step % self.every == 0)

    def look(self, step: int) -> bool:
        """Call the watch. True when training should stop: ``patience`` calls brought no better held-out reward.

        Raises TrainingError when the watch returns something else than finite numbers."""
        found = from_first_process(lambda: self._call(step))
        self.watched.append((step, found))
        return bool(self.every) and HELD_OUT in found and self.best.offer(step, found[HELD_OUT])

    @property
    def kept_step(self) -> int | None:
        """The step whose adapter is kept; None where the last one is."""
        return self.best.step if self.every else None

    def put_best_back(self) -> None:
        """Put the kept adapter onto the model."""
        if self.every:
            self.best.put_back()

    def _call(self, step: int) -> dict[str, float]:
        hf = self.model.hf
        training = hf.training
        hf.eval()
        try:
            with torch.no_grad(), random_numbers_untouched():
                found = {name: float(value) for name, value in self.watch(step, self.model).items()}
        finally:
            hf.train(training)
        wrong = sorted(name for name, value in found.items() if not math.isfinite(value))
        if wrong:
            raise TrainingError(
                f"The watch's {', '.join(wrong)} at step {step} is no finite number; leave out a metric that has "
                "nothing to say, or look at what it scores."
            )
        return found


class MetricsFile:
    """``run_dir/metrics.jsonl``: one object a step, with ``step``, ``time`` (seconds since 1970, UTC) and metrics.

    A run that goes on from ``after`` drops what was written beyond it, so that each step stands there once."""

    def __init__(self, run_dir: Path, *, after: int | None = None) -> None:
        self.path = run_dir / METRICS
        if not is_first_process():
            return
        kept = [line for line in self._lines() if after is not None and json.loads(line)["step"] <= after]
        temporary = self.path.with_name(f".{METRICS}.partial")
        try:
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(self.path)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({error}); free space.") from None

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one step's metrics; on the first process alone."""
        if not is_first_process():
            return
        line = json.dumps({"step": step, "time": round(time.time(), 3), **metrics})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({error}); free space.") from None

    def _lines(self) -> Iterator[str]:
        """Whole lines; what a kill left unfinished is no line."""
        if self.path.is_file():
            with self.path.open(encoding="utf-8") as file:
                yield from (line for line in file if line.endswith("\n"))


@contextmanager
def random_numbers_untouched() -> Iterator[None]:
    """Whatever is drawn inside this block, the global generators go on after it as if nothing had been."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
