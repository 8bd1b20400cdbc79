"""Direct preference optimisation of a music model's adapter.

Rafailov et al., arXiv:2305.18290, on transformers' Trainer with TRL's names. Departures: a completion is a clip of
K codebooks scored as it was sampled; the reference is the model with its adapter off, scored once beforehand; a
checkpoint holds the adapter, the optimizer and the random state, and nothing of the base.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import set_seed

from alignment.config import DpoSettings
from alignment.errors import ConfigError, StoreError, TrainingError
from alignment.training.batches import PairDataset, PolicyModule, collate
from alignment.training.examples import DpoExample, check_examples, examples_from_pairs, examples_sha256
from alignment.training.losses import chosen_nll, dpo_loss

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

__all__ = ["DpoExample", "DpoResult", "examples_from_pairs", "train_dpo"]

WEIGHTS = "policy.safetensors"
RUN = "run.json"
OnStep = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class DpoResult:
    """Where the adapter is and how training went: one entry of ``history`` per optimizer step, in TRL's names."""

    adapter_dir: Path
    history: list[dict[str, float]]
    examples: int
    steps: int
    seconds: float


def train_dpo(
    model: MusicModel,
    examples: Sequence[DpoExample],
    settings: DpoSettings,
    run_dir: str | Path,
    *,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> DpoResult:
    """Train the model's adapter on pairs, adding one where there is none; the model is left with it, trained.

    ``run_dir/adapter`` appears when training is complete. ``resume`` goes on from the last whole checkpoint of the
    same run (from the start when there is none yet) and ends where an uninterrupted run would; other settings, data or
    base are refused with ConfigError. ``on_step(step, steps, metrics)`` follows every optimizer step. Weights of
    examples count relative to their mean.

    History: loss, grad_norm, learning_rate; rewards/chosen, rewards/rejected, rewards/margins (nats times beta),
    rewards/accuracies; logps/chosen, logps/rejected (nats a clip); kl, KL(reference || policy) in nats a clip as
    estimated from the pairs' own clips, which is right when those were sampled by the reference. Raises DataError for
    examples the model cannot score, TrainingError naming the step when the loss is no number."""
    started = time.monotonic()
    run_dir = Path(run_dir)
    examples = list(examples)
    if settings.label_smoothing and settings.loss_type != "robust":
        raise ConfigError(
            f"label_smoothing is {settings.label_smoothing} with loss_type {settings.loss_type}; only robust reads it. "
            "Set loss_type to robust or label_smoothing to 0."
        )
    check_examples(examples, codebooks=model.codebooks, codebook_size=model.codebook_size)
    checkpoint = _open_run(run_dir, model, examples, settings, resume)
    if not model.has_adapter:
        model.add_adapter(settings.lora, seed=settings.seed)
    set_seed(settings.seed)

    policy = PolicyModule(model)
    with policy.checkpointing(enabled=settings.gradient_checkpointing):
        dataset = PairDataset.with_reference(policy, examples, batch_size=settings.per_device_train_batch_size)
        arguments = _training_arguments(settings, run_dir, policy.device)
        trainer = DpoTrainer(policy, arguments, dataset, settings, on_step)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        history = [dict(entry) for entry in trainer.state.log_history if "loss" in entry]
        steps = trainer.state.global_step
    adapter_dir = run_dir / "adapter"
    _save_adapter(model, adapter_dir)
    return DpoResult(adapter_dir, history, len(examples), steps, time.monotonic() - started)


class DpoTrainer(Trainer):
    """transformers' Trainer with DPO's loss; metrics as TRL's DPOTrainer logs them."""

    # Each micro-batch is divided by the pairs of its whole optimizer step (see get_batch_samples), not of itself.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        policy: PolicyModule,
        arguments: TrainingArguments,
        dataset: PairDataset,
        settings: DpoSettings,
        on_step: OnStep | None = None,
    ) -> None:
        self.settings = settings
        self.step_metrics: dict[str, float] = {}
        super().__init__(model=policy, args=arguments, train_dataset=dataset, data_collator=collate)
        for printing in (PrinterCallback, ProgressCallback):
            self.remove_callback(printing)  # stdout belongs to results
        self.add_callback(_StepCallback(on_step))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, int | None]:
        """The micro-batches of one optimizer step and how many pairs they hold, so that a ragged last one weighs
        what its pairs weigh."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(len(batch["weight"]) for batch in batches)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        settings = self.settings
        logprobs = model(inputs["codes"], inputs["frames"], inputs["hidden"], inputs["mask"])  # (2 B,)
        chosen, rejected = logprobs.chunk(2)
        chosen_codes, rejected_codes = inputs["counts"].to(logprobs.dtype).chunk(2)
        losses = dpo_loss(
            chosen, rejected, inputs["ref_chosen"], inputs["ref_rejected"], beta=settings.beta,
            loss_type=settings.loss_type, label_smoothing=settings.label_smoothing, chosen_codes=chosen_codes,
            rejected_codes=rejected_codes,
        )  # fmt: skip
        if settings.chosen_weight:
            losses = losses + settings.chosen_weight * chosen_nll(chosen, chosen_codes)
        loss = (inputs["weight"] * losses).sum() / (num_items_in_batch or len(losses))
        if not torch.isfinite(loss):
            raise TrainingError(
                f"DPO's loss is {loss.item()} at step {self.state.global_step + 1}; lower learning_rate "
                f"(it is {settings.learning_rate}) or beta ({settings.beta})."
            )
        self._note(chosen.detach(), rejected.detach(), inputs, share=len(losses) / (num_items_in_batch or len(losses)))
        return (loss, {"logprobs": logprobs}) if return_outputs else loss

    @torch.no_grad()
    def _note(self, chosen: Tensor, rejected: Tensor, inputs: dict[str, Any], *, share: float) -> None:
        """Add a micro-batch's part of the step's metrics: ``share`` is its share of the step's pairs."""
        reward_chosen = self.settings.beta * (chosen - inputs["ref_chosen"])
        reward_rejected = self.settings.beta * (rejected - inputs["ref_rejected"])
        for name, values in {
            "rewards/chosen": reward_chosen,
            "rewards/rejected": reward_rejected,
            "rewards/margins": reward_chosen - reward_rejected,
            "rewards/accuracies": (reward_chosen > reward_rejected).float(),
            "logps/chosen": chosen,
            "logps/rejected": rejected,
            "kl": -(reward_chosen + reward_rejected) / (2 * self.settings.beta),
        }.items():
            mean = self.accelerator.gather(values.contiguous()).mean()
            self.step_metrics[name] = self.step_metrics.get(name, 0.0) + share * float(mean)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self.step_metrics}
            self.step_metrics = {}
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trainable weights alone; the base is never copied."""
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            trainable = self.accelerator.unwrap_model(self.model).trainable()
            save_file({name: value.detach().contiguous() for name, value in trainable.items()}, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        trainable = self.accelerator.unwrap_model(self.model).trainable()
        if saved.keys() != trainable.keys():
            raise TrainingError(f"{resume_from_checkpoint}: its adapter has other weights; start again without resume.")
        with torch.no_grad():
            for name, value in trainable.items():
                value.copy_(saved[name])


class _StepCallback(TrainerCallback):
    """Hands each step's metrics on, and stops a run whose gradient is no number."""

    def __init__(self, on_step: OnStep | None) -> None:
        self.on_step = on_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        norm = logs.get("grad_norm")
        if norm is not None and not math.isfinite(float(norm)):
            raise TrainingError(f"DPO's gradient norm is {norm} at step {state.global_step}; lower learning_rate.")
        if self.on_step is not None:
            self.on_step(state.global_step, state.max_steps, dict(logs))


def _training_arguments(settings: DpoSettings, run_dir: Path, device: torch.device) -> TrainingArguments:
    """TRL's DPOConfig when TRL is installed, so that the run carries its names, else TrainingArguments."""
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
    try:
        from trl import DPOConfig
    except ImportError:
        arguments = TrainingArguments(**shared)
    else:
        arguments = DPOConfig(
            **shared, beta=settings.beta, loss_type=[settings.loss_type], label_smoothing=settings.label_smoothing,
            max_length=None, precompute_ref_log_probs=True,
        )  # fmt: skip
    # One process trains on one device; several are several processes (torchrun), never threads of this one.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def _open_run(
    run_dir: Path, model: MusicModel, examples: Sequence[DpoExample], settings: DpoSettings, resume: bool
) -> Path | None:
    """Claim a run folder for these settings, data and base; the checkpoint to go on from, if any."""
    about = {
        "settings": settings.model_dump(mode="json"),
        "examples": len(examples),
        "examples_sha256": examples_sha256(examples),
        "base_sha256": model.base_sha256,
    }
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
