"""What every trainer of an adapter shares: transformers' Trainer around it, its run folder, its early stop.

A checkpoint holds the adapter, the optimizer and the random state, and nothing of the base.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from alignment.config import AdapterSettings
from alignment.errors import TrainingError
from alignment.training.batches import PolicyModule
from alignment.training.checkpoint import save_adapter
from alignment.training.watching import (
    PREFIX,
    BestAdapter,
    MetricsFile,
    Watch,
    Watched,
    Watcher,
    adapter_parameters,
    read_weights,
    write_weights,
)

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

WEIGHTS = "policy.safetensors"
OnStep = Callable[[int, int, dict[str, float]], None]
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
        dataset: Dataset,
        collate: Collate,
        settings: AdapterSettings,
        on_step: OnStep | None = None,
        valid: Dataset | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.settings, self.valid, self.stopped = settings, valid, ""
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

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, int | None]:
        """The micro-batches of one optimizer step and how many examples they hold, so that a ragged last one weighs
        what its examples weigh."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(len(batch["weight"]) for batch in batches)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        losses, metrics = self.example_losses(model, inputs)
        count = num_items_in_batch or len(losses)
        loss = (inputs["weight"] * losses).sum() / count
        if not torch.isfinite(loss):
            raise TrainingError(
                f"{self.method}'s loss is {loss.item()} at step {self.state.global_step + 1}; lower learning_rate "
                f"(it is {self.settings.learning_rate})."
            )
        for name, values in metrics.items():  # a micro-batch's part of the step's metrics
            mean = self.accelerator.gather(values.contiguous()).mean()
            self.step_metrics[name] = self.step_metrics.get(name, 0.0) + len(losses) / count * float(mean)
        return (loss, {"losses": losses}) if return_outputs else loss

    @torch.no_grad()
    def valid_loss(self) -> float:
        """Mean loss of the validation examples under the adapter as it is now."""
        size, total = self.args.per_device_train_batch_size, 0.0
        for start in range(0, len(self.valid), size):
            items = [self.valid[i] for i in range(start, min(start + size, len(self.valid)))]
            inputs = {name: value.to(self.args.device) for name, value in self.data_collator(items).items()}
            total += float(self.example_losses(self.accelerator.unwrap_model(self.model), inputs)[0].sum())
        return total / len(self.valid)

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
            write_weights(trainable, Path(output_dir or self.args.output_dir) / WEIGHTS)

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

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.measure(state.global_step, last=state.global_step == state.max_steps):
            control.should_training_stop = True
            self.trainer.stopped = f"no better adapter in {self.trainer.settings.patience} evaluations"

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        norm = logs.get("grad_norm")
        if norm is not None and not math.isfinite(float(norm)):
            raise TrainingError(
                f"{self.trainer.method}'s gradient norm is {norm} at step {state.global_step}; lower learning_rate."
            )
        self.metrics.write(state.global_step, logs)
        if self.on_step is not None:
            self.on_step(state.global_step, state.max_steps, dict(logs))


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


def training_arguments(
    settings: AdapterSettings,
    run_dir: Path,
    device: torch.device,
    kind: type[TrainingArguments] = TrainingArguments,
    **more: Any,
) -> TrainingArguments:
    """The settings as the Trainer's arguments, of class ``kind`` with ``more`` of its own."""
    shared: dict[str, Any] = {
        "output_dir": str(run_dir),
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.num_train_epochs,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "warmup_steps": settings.warmup_ratio,  # below 1, transformers reads it as a share of all steps
        "max_grad_norm": settings.max_grad_norm,
        "weight_decay": 0.0,
        "save_strategy": "steps" if settings.save_steps else "no",
        "save_steps": settings.save_steps or 500,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "bf16": False,  # TRL's default is bf16
        "remove_unused_columns": False,
        "label_names": [],
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": device.type == "cpu",
    }
    # Off here, since PolicyModule turns it on where it is wanted; TRL's default is on. The name is changing.
    known = {field.name for field in fields(TrainingArguments)}
    shared["activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"] = False
    arguments = kind(**shared, **more)
    # One process trains on one device; several are several processes (torchrun), never threads of this one.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
