"""Direct preference optimisation of a music model's adapter.

Rafailov et al., arXiv:2305.18290, on transformers' Trainer with TRL's names. Departures: a completion is a clip of
K codebooks scored as it was sampled; the reference is the model with its adapter off, or the policy at the start of
this stage, scored once beforehand; a checkpoint holds the adapter and nothing of the base.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import TrainingArguments
from transformers.trainer_utils import set_seed

from alignment.config import DpoSettings
from alignment.errors import ConfigError
from alignment.music.memory import require_training_fits
from alignment.training.arguments import training_arguments
from alignment.training.batches import PairDataset, PolicyModule, collate
from alignment.training.checkpoint import adapter_sha256, open_run
from alignment.training.examples import DpoExample, check_examples, examples_from_pairs, examples_sha256, most_frames
from alignment.training.losses import chosen_nll, labelled_dpo_loss
from alignment.training.trainer import (
    AdapterTrainer,
    OnStep,
    TrainResult,
    run_trainer,
)
from alignment.training.watching import Watch

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

__all__ = ["DpoExample", "TrainResult", "examples_from_pairs", "train_dpo"]


def train_dpo(
    model: MusicModel,
    examples: Sequence[DpoExample],
    settings: DpoSettings,
    run_dir: str | Path,
    *,
    valid: Sequence[DpoExample] = (),
    reference: Literal["base", "start"] = "base",
    watch: Watch | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> TrainResult:
    """Train the model's adapter on pairs, adding one where there is none; the model is left with it, trained.

    ``run_dir/adapter`` appears when training is complete. ``resume`` goes on from the last whole checkpoint of the
    same run (from the start when there is none yet) and ends where an uninterrupted run would; other settings, data or
    base are refused with ConfigError. ``on_step(step, steps, metrics)`` follows every optimizer step. Weights of
    examples count relative to their mean. ``reference``: the base, or the policy as it is handed over (a further
    round). With ``valid`` pairs and settings.eval_steps the adapter kept is that of the least validation loss; with a
    ``watch`` that gives held_out_reward, the one with the highest.

    History: loss, grad_norm, learning_rate; rewards/chosen, rewards/rejected, rewards/margins (nats times beta),
    rewards/accuracies; logps/chosen, logps/rejected (nats a clip); chosen_change, of the chosen clips' log-probability
    against the reference (nats a code); kl, KL(reference || policy) in nats a clip as
    estimated from the pairs' own clips, which is right when those were sampled by the reference. Raises DataError for
    examples the model cannot score; TrainingError naming the step, the batch and the last good checkpoint when the
    loss is no number, and when chosen_change falls below -chosen_floor with no better adapter to keep."""
    started = time.monotonic()
    run_dir, examples, valid = Path(run_dir), list(examples), list(valid)
    if settings.loss_type == "dpop" and not settings.chosen_weight:
        raise ConfigError(
            "loss_type dpop without chosen_weight is sigmoid; set chosen_weight (its paper takes 5 to 50)."
        )
    if valid and not settings.eval_steps or settings.eval_steps and not (valid or watch):
        raise ConfigError(
            f"eval_steps is {settings.eval_steps} and there are {len(valid)} validation pairs; early stopping needs "
            "eval_steps with validation pairs or a watch, training to the end none of them."
        )
    for part in (examples, valid) if valid else (examples,):
        check_examples(part, codebooks=model.codebooks, codebook_size=model.codebook_size)
    require_training_fits(
        model, settings.per_device_train_batch_size, frames=most_frames([*examples, *valid]), lora=settings.lora,
        checkpointing=settings.gradient_checkpointing, what="DPO", clips_each=2,
    )  # fmt: skip
    arguments = _arguments(settings, run_dir, model.device)
    about = {
        "settings": settings.model_dump(mode="json", exclude={"report_to"}),
        "examples": len(examples),
        "examples_sha256": examples_sha256([*examples, *valid]),
        "base_sha256": model.base_sha256,
        "start": f"{reference} {adapter_sha256(model)}",
    }
    checkpoint = open_run(run_dir, about, resume=resume)
    if not model.has_adapter:
        model.add_adapter(settings.lora, seed=settings.seed)
    set_seed(settings.seed)

    policy, size = PolicyModule(model, bf16=settings.bf16), settings.per_device_train_batch_size
    with policy.checkpointing(enabled=settings.gradient_checkpointing):
        score = {"batch_size": size, "at_start": reference == "start"}
        dataset = PairDataset.with_reference(policy, examples, cache=run_dir / "reference.safetensors", **score)
        held = None
        if valid:
            held = PairDataset.with_reference(policy, valid, cache=run_dir / "reference-valid.safetensors", **score)
        trainer = DpoTrainer(policy, arguments, dataset, collate, settings, on_step, held, watch)
        result = run_trainer(trainer, model, run_dir, checkpoint)
    return replace(result, seconds=time.monotonic() - started)


class DpoTrainer(AdapterTrainer):
    """DPO's loss; metrics as TRL's DPOTrainer logs them."""

    method = "DPO"

    def example_losses(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.settings
        logprobs = model(inputs["codes"], inputs["frames"], inputs["hidden"], inputs["mask"])  # (2 B,)
        chosen, rejected = logprobs.chunk(2)
        chosen_codes, rejected_codes = inputs["counts"].to(logprobs.dtype).chunk(2)
        labels = inputs["label"]
        if settings.loss_type != "robust":  # robust reads the rate itself and stays unbiased
            labels = labels - settings.label_smoothing * (2 * labels - 1)
        losses = labelled_dpo_loss(
            chosen, rejected, inputs["ref_chosen"], inputs["ref_rejected"], labels=labels, beta=settings.beta,
            loss_type=settings.loss_type, label_smoothing=settings.label_smoothing, chosen_codes=chosen_codes,
            rejected_codes=rejected_codes, dpop_lambda=settings.chosen_weight,
        )  # fmt: skip
        if settings.chosen_weight and settings.loss_type != "dpop":
            losses = losses + settings.chosen_weight * chosen_nll(chosen, chosen_codes)
        return losses, self._metrics(chosen.detach(), rejected.detach(), inputs, chosen_codes)

    def reason_to_stop(self, metrics: Mapping[str, float]) -> str:
        floor = self.settings.chosen_floor
        if not floor or metrics["chosen_change"] >= -floor:
            return ""
        return (
            f"the chosen clips' log-probability has fallen {-metrics['chosen_change']:.3g} nats a code below the "
            f"reference (chosen_floor is {floor:g}): both sides fall, the rejected one faster. Set chosen_weight, take "
            "loss_type dpop, or lower learning_rate."
        )

    def _metrics(
        self, chosen: Tensor, rejected: Tensor, inputs: dict[str, Any], chosen_codes: Tensor
    ) -> dict[str, Tensor]:
        reward_chosen = self.settings.beta * (chosen - inputs["ref_chosen"])
        reward_rejected = self.settings.beta * (rejected - inputs["ref_rejected"])
        return {
            "rewards/chosen": reward_chosen,
            "rewards/rejected": reward_rejected,
            "rewards/margins": reward_chosen - reward_rejected,
            "rewards/accuracies": (reward_chosen > reward_rejected).float(),
            "logps/chosen": chosen,
            "logps/rejected": rejected,
            "chosen_change": (chosen - inputs["ref_chosen"]) / chosen_codes,
            "kl": -(reward_chosen + reward_rejected) / (2 * self.settings.beta),
        }


def _arguments(settings: DpoSettings, run_dir: Path, device: torch.device) -> TrainingArguments:
    """TRL's DPOConfig when TRL is installed, so that the run carries its names, else TrainingArguments."""
    try:
        from trl import DPOConfig
    except ImportError:
        return training_arguments(settings, run_dir, device)
    return training_arguments(
        settings, run_dir, device, DPOConfig, beta=settings.beta, loss_type=[settings.loss_type],
        label_smoothing=settings.label_smoothing, max_length=None, precompute_ref_log_probs=True,
    )  # fmt: skip
