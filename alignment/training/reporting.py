"""A loop of our own told to TensorBoard or whatever else the Trainer knows, by the Trainer's own callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import IntervalStrategy

from alignment.errors import ConfigError
from alignment.training.processes import is_first_process


def check_report_to(name: str) -> None:
    """Raise ConfigError, before anything is trained, when what should be told of the run is unknown or not there."""
    if name == "none":
        return
    try:
        for reporter in get_reporting_integration_callbacks([name]):
            reporter()
    except (ValueError, RuntimeError, ImportError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"report_to is {name!r}: {line} Every run also writes metrics.jsonl by itself.") from None


class Reporting:
    """Steps and their metrics, as the Trainer would log them; on the first process alone, and "none" tells nobody.

    Raises ConfigError when ``report_to`` is unknown or its package is not there."""

    def __init__(self, report_to: str, run_dir: Path, *, max_steps: int, seed: int) -> None:
        check_report_to(report_to)
        self.handler: CallbackHandler | None = None
        if report_to == "none" or not is_first_process():
            return
        reporters = [kind() for kind in get_reporting_integration_callbacks([report_to])]
        self.arguments = TrainingArguments(
            output_dir=str(run_dir), report_to=[], use_cpu=True, seed=seed, bf16=False, max_steps=max_steps,
            logging_strategy=IntervalStrategy.STEPS, logging_steps=1, disable_tqdm=True,
        )  # fmt: skip
        self.state = TrainerState(
            max_steps=max_steps, is_world_process_zero=True, is_local_process_zero=True, num_train_epochs=1
        )
        self.handler = CallbackHandler(reporters, None, None, None, None)
        self.control = self.handler.on_train_begin(self.arguments, self.state, TrainerControl())

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One step's metrics."""
        if self.handler is not None:
            self.state.global_step = step
            self.control = self.handler.on_log(self.arguments, self.state, self.control, dict(metrics))

    def close(self) -> None:
        """The run is over."""
        if self.handler is not None:
            self.handler.on_train_end(self.arguments, self.state, self.control)
