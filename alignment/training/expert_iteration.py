"""Expert iteration: imitate the clips a reward model likes best, by maximum likelihood on the adapter.

Best-of-N fine-tuning, as in arXiv:2305.18290 (Preferred-FT), ReST (arXiv:2308.08998) and RAFT (arXiv:2304.06767):
sample N clips a prompt, keep the best, train on them; a further round samples from the policy so trained. The loss is
the mean negative log-likelihood of a kept clip in nats per code, under the plain model that sampled it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.trainer_utils import set_seed

from alignment.config import ExpertSettings
from alignment.errors import ConfigError
from alignment.music.memory import require_training_fits
from alignment.training.arguments import training_arguments
from alignment.training.batches import ClipDataset, PolicyModule, collate_clips
from alignment.training.checkpoint import adapter_sha256, open_run
from alignment.training.examples import ClipExample, check_examples, examples_sha256, most_frames
from alignment.training.losses import chosen_nll
from alignment.training.trainer import (
    AdapterTrainer,
    OnStep,
    TrainResult,
    run_trainer,
)
from alignment.training.watching import Watch

if TYPE_CHECKING:
    from alignment.music.model import MusicModel


def train_expert(
    model: MusicModel,
    examples: Sequence[ClipExample],
    settings: ExpertSettings,
    run_dir: str | Path,
    *,
    watch: Watch | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> TrainResult:
    """Train the model's adapter to sing the examples, adding one where there is none; the model is left with it.

    Run folder, ``watch``, ``resume``, ``on_step`` and the weights of examples are as for ``train_dpo``. History: loss
    (nats per code), grad_norm, learning_rate, logps/chosen (nats a clip). Raises DataError for examples the model
    cannot score, TrainingError naming the step when the loss is no number."""
    started = time.monotonic()
    run_dir, examples = Path(run_dir), list(examples)
    if settings.eval_steps and watch is None:
        raise ConfigError(
            f"eval_steps is {settings.eval_steps} and there is no watch; expert iteration stops early by a watch alone."
        )
    check_examples(examples, codebooks=model.codebooks, codebook_size=model.codebook_size)
    require_training_fits(
        model, settings.per_device_train_batch_size, frames=most_frames(examples), lora=settings.lora,
        checkpointing=settings.gradient_checkpointing, what="Expert iteration",
    )  # fmt: skip
    arguments = training_arguments(settings, run_dir, model.device)
    about = {
        "settings": settings.model_dump(mode="json", exclude={"report_to"}),
        "examples": len(examples),
        "examples_sha256": examples_sha256(examples),
        "base_sha256": model.base_sha256,
        "start": adapter_sha256(model),
    }
    checkpoint = open_run(run_dir, about, resume=resume)
    if not model.has_adapter:
        model.add_adapter(settings.lora, seed=settings.seed)
    set_seed(settings.seed)

    policy = PolicyModule(model, bf16=settings.bf16)
    with policy.checkpointing(enabled=settings.gradient_checkpointing):
        dataset = ClipDataset(policy, examples)
        trainer = ExpertTrainer(policy, arguments, dataset, collate_clips, settings, on_step, watch=watch)
        result = run_trainer(trainer, model, run_dir, checkpoint)
    return replace(result, seconds=time.monotonic() - started)


class ExpertTrainer(AdapterTrainer):
    """Negative log-likelihood of whole clips."""

    method = "Expert iteration"

    def example_losses(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs = model(inputs["codes"], inputs["frames"], inputs["hidden"], inputs["mask"])  # (B,)
        losses = chosen_nll(logprobs, inputs["counts"].to(logprobs.dtype))
        return losses, {"logps/chosen": logprobs.detach()}
