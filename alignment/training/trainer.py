"""What every trainer of an adapter shares: transformers' Trainer around it, its run folder, its early stop.

A checkpoint holds the adapter, the optimizer and the random state, and nothing of the base.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from alignment.config import AdapterSettings
from alignment.errors import TrainingError
from alignment.training.batches import EpochOrder, ExampleDataset, PolicyModule
from alignment.training.checkpoint import WEIGHTS, last_good, save_adapter
from alignment.training.watching import (
    PREFIX,
    BestAdapter,
    MetricsFile,
    Watch,
    Watched,
    Watcher,
)
from alignment.training.weights import adapter_parameters, read_weights, write_tensors

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

OnStep = Callable[[int, int, dict[str, float]], None]
NAMED = 3  # prompts that an error names
Collate = Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class TrainResult:
    """Where the adapter is and how training went: one entry of ``history`` per optimizer step, in TRL's names.

    ``valid`` is (step, loss on the validation examples) and ``watched`` (step, metrics of the watch) wherever they
    were measured. The adapter is that of ``best_step``: the one with the highest held-out reward where a watch gave
    one and eval_steps is set, else the one with the least validation loss, else the last. ``stopped`` says why
    training ended before its last step, empty when it did not."""

    adapter_dir: Path
    history: list[dict[str, float]]
    examples: int
    steps: int
    seconds: float
    valid: list[tuple[int, float]] = field(default_factory=list)
    watched: Watched = field(default_factory=list)
    kept_step: int | None = None
    stopped: str = ""

    @property
    def best_step(self) -> int:
        return self.steps if self.kept_step is None else self.kept_step


class AdapterTrainer(Trainer):
    """transformers' Trainer on a policy's adapter. Subclasses give ``example_losses``; each example weighs the same
    whatever micro-batch it falls into."""

    # Each micro-batch is divided by the examples of its whole optimizer step (see get_batch_samples), not of itself.
    loss_is_scaled_for_ga = True
    method = "training"

    def __init__(
        self,
        policy: PolicyModule,
        arguments: TrainingArguments,
        dataset: ExampleDataset,
        collate: Collate,
        settings: AdapterSettings,
        on_step: OnStep | None = None,
        valid: ExampleDataset | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.settings, self.valid, self.stopped = settings, valid, ""
        batch = arguments.per_device_train_batch_size * arguments.world_size
        fill = batch if arguments.world_size > 1 else 1
        self.order = EpochOrder(len(dataset), seed=settings.seed, fill=fill)
        self.step_indices: list[int] = []  # the examples of this process's part of the step
        self.step_metrics: dict[str, float] = {}  # of the step so far, over all its micro-batches
        self.measured: dict[str, float] = {}  # at the end of the step, by validation and the watch
        run_dir, every, patience = Path(arguments.output_dir), settings.eval_steps, settings.patience
        self.best_valid = BestAdapter(policy.music, run_dir, patience)
        self.watcher = None
        if watch is not None:
            self.watcher = Watcher(watch, policy.music, run_dir, every=every, patience=patience)
        super().__init__(model=policy, args=arguments, train_dataset=dataset, data_collator=collate)
        for printing in (PrinterCallback, ProgressCallback):
            self.remove_callback(printing)  # stdout belongs to results
        self.add_callback(_StepCallback(self, on_step))

    def example_losses(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of each example, (B,), and detached metrics (B,) by name."""
        raise NotImplementedError

    def reason_to_stop(self, metrics: Mapping[str, float]) -> str:
        """Why a step's metrics should end the run; empty when they should not."""
        return ""

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        return self.order

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, float]:
        """The micro-batches of one optimizer step and how many examples it has in all, divided by the processes whose
        gradients are averaged: so each example weighs the same, in a ragged micro-batch or beside a blank."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.step_indices = [int(n) for batch in batches for n in batch["index"] if n >= 0]
        count = torch.tensor(float(len(self.step_indices)), device=device)
        return batches, float(self.accelerator.reduce(count, "sum")) / self.args.world_size

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        losses, metrics = self.example_losses(model, inputs)
        count = num_items_in_batch or len(losses)
        loss = (inputs["weight"] * losses).sum() / count
        if not torch.isfinite(loss):
            bad = inputs["index"][~torch.isfinite(losses)].tolist() or inputs["index"].tolist()
            raise self.broken("loss", loss.item(), self.state.global_step + 1, bad)
        real = inputs["index"] >= 0
        sums = torch.stack([values[real].double().sum() for values in metrics.values()])
        sums = self.accelerator.reduce(sums, "sum") / (count * self.args.world_size)
        for name, part in zip(metrics, sums.tolist(), strict=True):  # a micro-batch's part of the step's metrics
            self.step_metrics[name] = self.step_metrics.get(name, 0.0) + part
        return (loss, {"losses": losses}) if return_outputs else loss

    def broken(self, what: str, value: float, step: int, indices: Sequence[int]) -> TrainingError:
        """The error of a run whose ``what`` is no number at a step, on the examples of these indices."""
        prompts = list(dict.fromkeys(self.train_dataset.prompts[n] for n in indices if n >= 0))
        named = ", ".join(repr(prompt) for prompt in prompts[:NAMED])
        named += f" and {len(prompts) - NAMED} more" if len(prompts) > NAMED else ""
        return TrainingError(
            f"{self.method}'s {what} is {value} at step {step}, on the batch of {named}; "
            f"{last_good(Path(self.args.output_dir))}. Lower learning_rate (it is {self.settings.learning_rate}) and "
            "start again in an empty folder."
        )

    @torch.no_grad()
    def valid_loss(self) -> float:
        """Mean loss of the validation examples under the adapter as it is now."""
        size = self.args.per_device_train_batch_size
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        starts = range(0, len(self.valid), size)  # each process takes its share of the batches
        for start in starts[self.args.process_index :: self.args.world_size]:
            inputs = self.data_collator(self.valid.items[start : start + size])
            inputs = {name: value.to(self.args.device) for name, value in inputs.items()}
            total += self.example_losses(self.accelerator.unwrap_model(self.model), inputs)[0].sum()
        return float(self.accelerator.reduce(total, "sum")) / len(self.valid)

    def measure(self, step: int, *, last: bool) -> bool:
        """Call the watch and validate where they are due. True when the patience of what chooses is over.

        Where a watch gives a held-out reward that alone chooses; the validation loss is measured all the same."""
        stop = False
        if self.watcher is not None and self.watcher.due(step, last=last):
            stop = self.watcher.look(step)
            self.measured |= {f"{PREFIX}{name}": value for name, value in self.watcher.watched[-1][1].items()}
        every = self.settings.eval_steps if self.valid is not None else 0
        if every and step and (step % every == 0 or last):
            loss = self.valid_loss()
            self.measured["valid_loss"] = loss
            stop = self.best_valid.offer(step, -loss) and not self._watch_chooses or stop
        return stop

    @property
    def _watch_chooses(self) -> bool:
        return self.watcher is not None and self.watcher.kept_step is not None

    @property
    def kept_step(self) -> int | None:
        """The step whose adapter is kept; None where it is the last one, chosen by nothing."""
        return self.watcher.kept_step if self._watch_chooses else self.best_valid.step

    def put_best_back(self) -> None:
        """Put the adapter of ``kept_step`` onto the policy."""
        (self.watcher.best if self._watch_chooses else self.best_valid).put_back()

    def remember(self) -> None:
        """Take up again what the checkpoint that training goes on from knew of validation and the watch."""
        history = self.state.log_history
        self.best_valid.scores = [(e["step"], -e["valid_loss"]) for e in history if "valid_loss" in e]
        if self.watcher is not None:
            self.watcher.remember(
                (e["step"], {k.removeprefix(PREFIX): v for k, v in e.items() if k.startswith(PREFIX)})
                for e in history
                if any(name.startswith(PREFIX) for name in e)
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self.step_metrics, **self.measured}
            self.step_metrics, self.measured = {}, {}
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trainable weights alone; the base is never copied."""
        if self.args.should_save:
            trainable = adapter_parameters(self.accelerator.unwrap_model(self.model))
            write_tensors(trainable, Path(output_dir or self.args.output_dir) / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        read_weights(
            adapter_parameters(self.accelerator.unwrap_model(self.model)), Path(resume_from_checkpoint) / WEIGHTS
        )


class _StepCallback(TrainerCallback):
    """Hands each step's metrics on, validates, and stops a run whose gradient is no number."""

    def __init__(self, trainer: AdapterTrainer, on_step: OnStep | None) -> None:
        self.trainer, self.on_step = trainer, on_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer.remember()
        self.metrics = MetricsFile(Path(args.output_dir), after=state.global_step or None)
        if state.global_step == 0:
            trainer.measure(0, last=False)
            if trainer.measured:
                state.log_history.append({**trainer.measured, "step": 0})
                self.metrics.write(0, trainer.measured)
                trainer.measured = {}

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # accelerate does not reach a sampler behind batches that are skipped and shared among processes.
        self.trainer.order.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.measure(state.global_step, last=state.global_step == state.max_steps):
            control.should_training_stop = True
            self.trainer.stopped = f"no better adapter in {self.trainer.settings.patience} evaluations"

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        norm = logs.get("grad_norm")
        if norm is not None and not math.isfinite(float(norm)):
            raise self.trainer.broken("gradient norm", norm, state.global_step, self.trainer.step_indices)
        self.metrics.write(state.global_step, logs)
        if self.on_step is not None and state.is_world_process_zero:
            self.on_step(state.global_step, state.max_steps, dict(logs))
        reason = self.trainer.reason_to_stop(logs)
        if reason and self.trainer.kept_step is None:
            raise TrainingError(f"{self.trainer.method} stopped at step {state.global_step}: {reason}")
        if reason:
            control.should_training_stop, self.trainer.stopped = True, reason


def run_trainer(trainer: AdapterTrainer, model: MusicModel, run_dir: Path, checkpoint: Path | None) -> TrainResult:
    """Train to the end, put the best adapter on where one was chosen, and save it as ``run_dir/adapter``."""
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.put_best_back()
    adapter_dir = run_dir / "adapter"
    save_adapter(model, adapter_dir)
    history = trainer.state.log_history
    return TrainResult(
        adapter_dir,
        [dict(entry) for entry in history if "loss" in entry],
        len(trainer.train_dataset),
        trainer.state.global_step,
        time.monotonic() - started,
        [(entry["step"], entry["valid_loss"]) for entry in history if "valid_loss" in entry],
        [] if trainer.watcher is None else trainer.watcher.watched,
        trainer.kept_step,
        trainer.stopped,
    )
