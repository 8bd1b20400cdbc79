"""What every trainer of an adapter shares: transformers' Trainer around it, its run folder, its early stop.

A checkpoint holds the adapter, the optimizer and the random state, and nothing of the base.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from alignment.config import DpoSettings, ExpertSettings
from alignment.errors import ConfigError, StoreError, TrainingError
from alignment.training.batches import PolicyModule

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

WEIGHTS = "policy.safetensors"
BEST = "best.safetensors"
RUN = "run.json"
OnStep = Callable[[int, int, dict[str, float]], None]
Collate = Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class TrainResult:
    """Where the adapter is and how training went: one entry of ``history`` per optimizer step, in TRL's names.

    ``valid`` is (step, loss on the validation examples) wherever it was measured; the adapter is then the one of the
    step with the least, ``best_step``."""

    adapter_dir: Path
    history: list[dict[str, float]]
    examples: int
    steps: int
    seconds: float
    valid: list[tuple[int, float]] = field(default_factory=list)

    @property
    def best_step(self) -> int:
        return min(self.valid, key=lambda found: found[1])[0] if self.valid else self.steps


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
        settings: DpoSettings | ExpertSettings,
        on_step: OnStep | None = None,
        valid: Dataset | None = None,
    ) -> None:
        self.settings, self.valid = settings, valid
        self.step_metrics: dict[str, float] = {}
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

    def validate(self, control: Any) -> None:
        """Measure the validation loss, keep the adapter when it is the best so far, stop when patience is over."""
        before = [loss for _, loss in self.valid_history]
        loss = self.valid_loss()
        # Not self.log: it would tell the Trainer that this step's own metrics are logged already.
        self.state.log_history.append({"valid_loss": loss, "step": self.state.global_step})
        if not before or loss < min(before):
            self._write_weights(Path(self.args.output_dir) / BEST)
        losses = [*before, loss]
        if len(losses) - 1 - losses.index(min(losses)) >= self.settings.patience:
            control.should_training_stop = True

    @property
    def valid_history(self) -> list[tuple[int, float]]:
        """(step, validation loss); it is part of every checkpoint."""
        return [(e["step"], e["valid_loss"]) for e in self.state.log_history if "valid_loss" in e]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self.step_metrics}
            self.step_metrics = {}
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trainable weights alone; the base is never copied."""
        if self.args.should_save:
            self._write_weights(Path(output_dir or self.args.output_dir) / WEIGHTS)

    def _write_weights(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        trainable = self.accelerator.unwrap_model(self.model).trainable()
        temporary = path.with_name(f".{path.name}.partial")
        save_file({name: value.detach().contiguous() for name, value in trainable.items()}, temporary)
        temporary.replace(path)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.read_weights(Path(resume_from_checkpoint) / WEIGHTS)

    def read_weights(self, path: Path) -> None:
        """Put the adapter's weights in a file onto the policy. Raises TrainingError when they are others."""
        saved = load_file(path)
        trainable = self.accelerator.unwrap_model(self.model).trainable()
        if saved.keys() != trainable.keys():
            raise TrainingError(f"{path.parent}: its adapter has other weights; start again without resume.")
        with torch.no_grad():
            for name, value in trainable.items():
                value.copy_(saved[name])


class _StepCallback(TrainerCallback):
    """Hands each step's metrics on, validates, and stops a run whose gradient is no number."""

    def __init__(self, trainer: AdapterTrainer, on_step: OnStep | None) -> None:
        self.trainer, self.on_step = trainer, on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = self.trainer.settings.eval_steps if self.trainer.valid is not None else 0
        if every and (state.global_step % every == 0 or state.global_step == state.max_steps):
            self.trainer.validate(control)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        norm = logs.get("grad_norm")
        if norm is not None and not math.isfinite(float(norm)):
            raise TrainingError(
                f"{self.trainer.method}'s gradient norm is {norm} at step {state.global_step}; lower learning_rate."
            )
        if self.on_step is not None:
            self.on_step(state.global_step, state.max_steps, dict(logs))


def run_trainer(
    trainer: AdapterTrainer, model: MusicModel, run_dir: Path, checkpoint: Path | None
) -> tuple[Path, list[dict[str, float]]]:
    """Train to the end, put the best adapter on where validation chose one, and save it as ``run_dir/adapter``."""
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.valid_history:
        trainer.read_weights(run_dir / BEST)
    adapter_dir = run_dir / "adapter"
    _save_adapter(model, adapter_dir)
    return adapter_dir, [dict(entry) for entry in trainer.state.log_history if "loss" in entry]


def training_arguments(
    settings: DpoSettings | ExpertSettings,
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


def open_run(run_dir: Path, about: Mapping[str, Any], *, resume: bool) -> Path | None:
    """Claim a run folder for what ``about`` says of settings, data and base; the checkpoint to go on from, if any.

    Raises ConfigError when the folder holds another run, or one that is not to be resumed."""
    checkpoints = _whole_checkpoints(run_dir)
    if resume and (run_dir / RUN).is_file():
        try:
            found = json.loads((run_dir / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise StoreError(f"{run_dir / RUN} is damaged; start again in an empty folder.") from None
        differing = [name for name in about if found.get(name) != about[name]]
        if differing:
            raise ConfigError(
                f"{run_dir} holds a run with other {', '.join(differing)}; resume with what it was started with, or "
                "give an empty folder."
            )
        return checkpoints[-1] if checkpoints else None
    if checkpoints or (run_dir / "adapter").exists():
        raise ConfigError(f"{run_dir} already holds a run; resume it or give an empty folder.")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / RUN).write_text(json.dumps(about, indent=1, sort_keys=True), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{run_dir}: cannot be written ({error}); free space or choose another folder.") from error
    return None


def _whole_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints written to the end, oldest first: the trainer's state is the last file of each."""
    whole = []
    for folder in run_dir.glob("checkpoint-*"):
        try:
            whole.append((json.loads((folder / "trainer_state.json").read_text())["global_step"], folder))
        except (OSError, ValueError, KeyError):
            continue  # killed while it was written: the one before it is used
    return [folder for _, folder in sorted(whole)]


def _save_adapter(model: MusicModel, adapter_dir: Path) -> None:
    temporary = adapter_dir.with_name(f".{adapter_dir.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_adapter(temporary)
        if adapter_dir.exists():
            shutil.rmtree(adapter_dir)
        temporary.replace(adapter_dir)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StoreError(f"{adapter_dir}: the adapter cannot be written ({error}); free space.") from error


def adapter_sha256(model: MusicModel) -> str:
    """sha256, hex, of the adapter that training starts from; empty when there is none yet."""
    if not model.has_adapter:
        return ""
    digest = hashlib.sha256()
    for value in model.trainable_parameters():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
