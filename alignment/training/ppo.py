"""Proximal policy optimisation of a music model's adapter, and RLOO and GRPO as other advantages of the same loop.

Schulman et al., arXiv:1707.06347, for sampled music as in MusicRL (arXiv:2402.04229). An episode is a clip; an action
is a delayed step, all codebooks at once; the reward comes at the last step and every step pays for its KL to the
reference. Departures: the value head reads the decoder's states and sends no gradient back (alignment.training.value)
and its loss is not clipped; old log-probabilities are computed anew by the trainer, never taken from the sampler; the
adapter is the only thing that the policy's loss moves, one copy of the base serving as policy and reference.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from alignment.config import PpoSettings
from alignment.errors import TrainingError
from alignment.music.memory import require_training_fits
from alignment.training.batches import PolicyModule
from alignment.training.checkpoint import adapter_sha256, last_good, open_run, save_adapter
from alignment.training.experience import Experience, collect, frozen_adapter, prompts_of_step, require_rollouts
from alignment.training.policy_loss import adapted_kl_coef, approximate_kl, clipped_loss, step_logprobs
from alignment.training.ppo_state import PpoState, read_checkpoint, write_checkpoint
from alignment.training.processes import is_first_process
from alignment.training.ranks import Ranks
from alignment.training.reinforce import RewardFn
from alignment.training.reporting import Reporting, check_report_to
from alignment.training.tail_average import TailAverage
from alignment.training.trainer import OnStep, TrainResult
from alignment.training.value import ValueHead
from alignment.training.watching import PREFIX, MetricsFile, Watch, Watcher
from alignment.training.weights import adapter_parameters

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

VALUE_BATCH = 8  # clips of one step of the value head


def train_ppo(
    model: MusicModel,
    prompts: Sequence[str],
    reward: RewardFn,
    settings: PpoSettings,
    run_dir: str | Path,
    *,
    reference: Literal["base", "start"] = "base",
    watch: Watch | None = None,
    resume: bool = False,
    report_to: str = "none",
    on_step: OnStep | None = None,
) -> TrainResult:
    """Train the model's adapter to sing clips that ``reward`` likes; the model is left with it, trained.

    A step is one rollout (rollout_prompts x num_generations clips) and the updates made from it. ``run_dir/adapter``
    appears when training is complete. ``resume`` goes on from the last whole checkpoint of the same run and ends, on a
    CPU, bit for bit where an undisturbed run ends. ``reference``, from which KL is measured: the base, or the policy
    as it is handed over (a further stage). The reward must depend on prompts and codes alone.

    History, one entry a step: reward, reward_std and rewards/NAME for each of its parts; kl (nats a clip, policy
    from reference, on the clips just sung), kl_coef; loss, approx_kl (nats a step, since the rollout), clip_ratio,
    grad_norm, learning_rate; loss/value, explained_variance; entropy (nats a code); drift (sampler against trainer,
    nats a code); seconds/rollout, seconds/update. They are lines of metrics.jsonl too, and go to whatever of the
    Trainer's reporters ``report_to`` names. Raises ConfigError for settings that do not fit together,
    TrainingError, naming step, prompts and last good checkpoint, for a constant reward and anything not finite."""
    started = time.monotonic()
    run_dir, prompts = Path(run_dir), list(prompts)
    require_rollouts(prompts, settings)
    check_report_to(report_to)
    about = {
        "method": "ppo",
        "settings": settings.model_dump(mode="json"),
        "prompts": prompts,
        "base_sha256": model.base_sha256,
        "start": f"{reference} {adapter_sha256(model)}",
    }
    ranks = Ranks(model.device)
    frames, clips = model.frames(settings.generation.clip_seconds), settings.rollout_prompts * settings.num_generations
    require_training_fits(
        model, min(settings.per_device_train_batch_size, clips), frames=frames, lora=settings.lora,
        checkpointing=settings.gradient_checkpointing, what="PPO",
    )  # fmt: skip
    checkpoint = open_run(run_dir, about, resume=resume)
    if not model.has_adapter:
        model.add_adapter(settings.lora, seed=settings.seed)
    trainer = PpoTrainer(model, prompts, reward, settings, run_dir, ranks, reference=reference, watch=watch)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    reporting = Reporting(report_to, run_dir, max_steps=settings.max_steps, seed=settings.seed)
    with PolicyModule(model).checkpointing(enabled=settings.gradient_checkpointing):
        trainer.train(on_step, reporting)
    reporting.close()
    state, adapter_dir = trainer.state, run_dir / "adapter"
    save_adapter(model, adapter_dir)
    return TrainResult(
        adapter_dir, state.history, state.step * trainer.clips, state.step, time.monotonic() - started,
        watched=state.watched, kept_step=trainer.watcher.kept_step if trainer.watcher else None, stopped=state.stopped,
    )  # fmt: skip


class PpoTrainer:
    """The loop's parts: ``step`` sings a rollout, updates the policy, then the value head."""

    def __init__(
        self, model: MusicModel, prompts: Sequence[str], reward: RewardFn, settings: PpoSettings, run_dir: Path,
        ranks: Ranks, *, reference: str, watch: Watch | None = None,
    ) -> None:  # fmt: skip
        self.model, self.prompts, self.reward = model, list(prompts), reward
        self.settings, self.run_dir = settings, run_dir
        self.ranks = ranks
        self.parameters = model.trainable_parameters()
        self.head = ValueHead(model.width, settings.value.hidden, seed=settings.seed).to(model.device)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=settings.learning_rate, weight_decay=0.0)
        self.value_optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=settings.value.learning_rate, weight_decay=0.0
        )
        # The start of a further stage is kept beside the policy; the base needs no copy.
        self.start = [p.detach().clone() for p in self.parameters] if reference == "start" else None
        self.state = PpoState(kl_coef=settings.kl_coef)
        self.tail = TailAverage(adapter_parameters(model.hf), share=settings.tail_average, steps=settings.max_steps)
        self.watcher = None
        if watch is not None:
            self.watcher = Watcher(watch, model, run_dir, every=settings.eval_steps, patience=settings.patience)

    def train(self, on_step: OnStep | None = None, reporting: Reporting | None = None) -> None:
        """Steps until max_steps or until the watch has seen enough; then the adapter that it likes best is put on, or
        without a choice of the watch's the mean over the last steps."""
        settings, state = self.settings, self.state
        lines = MetricsFile(self.run_dir, after=state.step or None)
        if not state.step and (seen := self._look(0)):
            lines.write(0, seen)
        while state.step < settings.max_steps and not state.stopped:
            metrics = self.step()
            metrics |= self._look(state.step)
            self.tail.add(state.step)
            state.history.append({"step": state.step, **metrics})
            lines.write(state.step, metrics)
            if reporting is not None:
                reporting.write(state.step, metrics)
            if settings.save_steps and state.step % settings.save_steps == 0 and is_first_process():
                write_checkpoint(self.run_dir, state, self.model, self.head, self.optimizers, self.tail)
            if on_step is not None:
                on_step(state.step, settings.max_steps, metrics)
        if self.watcher is not None and self.watcher.kept_step is not None:
            self.watcher.put_best_back()
        else:
            self.tail.put()

    def _look(self, step: int) -> dict[str, float]:
        """What the watch says where it is due, named as in the history."""
        if self.watcher is None or not self.watcher.due(step, last=step == self.settings.max_steps):
            return {}
        if self.watcher.look(step):
            self.state.stopped = f"no better adapter in {self.settings.patience} evaluations"
        self.state.watched = self.watcher.watched
        return {f"{PREFIX}{name}": value for name, value in self.watcher.watched[-1][1].items()}

    def reference(self) -> AbstractContextManager:
        """Inside this block the model is what KL is measured from."""
        return self.model.reference() if self.start is None else frozen_adapter(self.model, self.start)

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint of this run."""
        self.state = read_checkpoint(checkpoint, self.model, self.head, self.optimizers, self.tail)
        if self.watcher is not None:
            self.watcher.remember(self.state.watched)

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        return self.optimizer, self.value_optimizer

    def step(self) -> dict[str, float]:
        """One rollout and its updates; its metrics."""
        settings, number, began = self.settings, self.state.step + 1, time.monotonic()
        rollout_prompts = prompts_of_step(self.prompts, settings.rollout_prompts, number, settings.seed)
        found = collect(
            self.model, self.head, rollout_prompts, self.reward, settings, step=number, kl_coef=self.state.kl_coef,
            reference=self.reference, ranks=self.ranks,
        )  # fmt: skip
        metrics = self._described(found) | {"seconds/rollout": time.monotonic() - began}
        began = time.monotonic()
        if settings.advantage != "gae" or number > settings.value.warmup_steps:
            metrics |= self._update_policy(found, number)
        if settings.advantage == "gae":
            metrics |= self._fit_values(found, number)
        metrics["seconds/update"] = time.monotonic() - began
        if settings.kl_target:
            self.state.kl_coef = adapted_kl_coef(self.state.kl_coef, metrics["kl"], target=settings.kl_target)
        self.state.step = number
        return metrics

    def _update_policy(self, found: Experience, number: int) -> dict[str, float]:
        """num_ppo_epochs passes over the rollout; means over their optimizer steps."""
        settings, sums = self.settings, torch.zeros(4, dtype=torch.float64)
        for epoch in range(settings.num_ppo_epochs):
            for batch in self._mini_batches(settings.num_mini_batches, number, epoch):
                rows, count = self._mine(batch)
                self.optimizer.zero_grad(set_to_none=True)
                measured = torch.zeros(3, dtype=torch.float64)
                for start in range(0, len(rows), settings.per_device_train_batch_size):
                    part = rows[start : start + settings.per_device_train_batch_size]
                    now = step_logprobs(
                        self.model.logprobs(
                            found.codes[part], found.text.rows(part), generation=settings.generation.to_domain()
                        ),
                        channels=self.model.channels,
                    )
                    old = found.logprobs[part]
                    losses, clipped = clipped_loss(now, old, found.advantages[part], cliprange=settings.cliprange)
                    (losses.sum() / count).backward()
                    moved = approximate_kl(now.detach(), old)
                    sizes = (losses.detach(), moved, clipped)
                    measured += torch.stack([x.double().sum().cpu() for x in sizes]) / count
                self.ranks.sum_gradients(self.parameters)
                measured = self.ranks.sum(measured.to(self.ranks.device)).cpu()
                norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.max_grad_norm)
                self._require_finite({"loss": float(measured[0]), "gradient norm": float(norm)}, found, rows, number)
                self.optimizer.step()
                sums += torch.cat([measured, norm.detach().double().cpu()[None]])
        loss, moved, clipped, norm = (sums / (settings.num_ppo_epochs * settings.num_mini_batches)).tolist()
        return {
            "loss": loss, "approx_kl": moved, "clip_ratio": clipped, "grad_norm": norm,
            "learning_rate": settings.learning_rate,
        }  # fmt: skip

    def _fit_values(self, found: Experience, number: int) -> dict[str, float]:
        """Passes of the value head alone over the rollout's states; its squared error in the last of them."""
        clips, total = self.clips, 0.0
        for epoch in range(self.settings.value.epochs):
            total = 0.0
            for batch in self._mini_batches(-(-clips // VALUE_BATCH), number, 1000 + epoch):
                rows, count = self._mine(batch)
                self.value_optimizer.zero_grad(set_to_none=True)
                errors = (self.head(found.states[rows]) - found.returns[rows]).square().mean(dim=1)
                loss = errors.sum() / count
                loss.backward()
                self.ranks.sum_gradients(list(self.head.parameters()))
                loss = float(self.ranks.sum(loss.detach()))
                self._require_finite({"value loss": loss}, found, rows, number)
                self.value_optimizer.step()
                total += loss * count / clips
        return {"loss/value": total, "explained_variance": self.ranks.explained_variance(found.returns, found.values)}

    @property
    def clips(self) -> int:
        """Clips of one rollout, over all processes."""
        return self.settings.rollout_prompts * self.settings.num_generations

    def _mini_batches(self, count: int, number: int, epoch: int) -> list[np.ndarray]:
        """The rollout's clips, by their numbers over all processes, in ``count`` parts drawn for this pass."""
        order = np.random.default_rng([self.settings.seed, 2, number, epoch]).permutation(self.clips)
        return np.array_split(order, count)

    def _mine(self, batch: np.ndarray) -> tuple[list[int], int]:
        """A mini-batch's rows in this process, and how many it has over all processes."""
        share, group = self.ranks.share(self.settings.rollout_prompts), self.settings.num_generations
        first, last = share.start * group, share.stop * group
        return [int(clip) - first for clip in batch if first <= clip < last], len(batch)

    def _described(self, found: Experience) -> dict[str, float]:
        """Means over all processes' clips."""
        total = self.ranks.join(found.rewards.total)
        parts = {f"rewards/{name}": self.ranks.join(values).mean() for name, values in found.rewards.parts.items()}
        each = np.stack(
            [found.kl.double().cpu().numpy(), -found.logprobs.double().sum(1).cpu().numpy() / found.codes[0].numel()], 1
        )
        kl, entropy = self.ranks.join(each).mean(axis=0)
        drift = self.ranks.join(np.array([found.drift])).mean()
        described = {"reward": total.mean(), "reward_std": total.std(), **parts, "kl": kl, "entropy": entropy}
        return {name: float(value) for name, value in described.items()} | {
            "kl_coef": self.state.kl_coef,
            "drift": float(drift),
        }

    def _require_finite(self, values: dict[str, float], found: Experience, rows: list[int], number: int) -> None:
        for name, value in values.items():
            if not np.isfinite(value):
                sung = ", ".join(f'"{found.prompts[row]}"' for row in dict.fromkeys(rows)) or "another process's"
                raise TrainingError(
                    f"PPO's {name} is {value} at step {number}; lower learning_rate (it is "
                    f"{self.settings.learning_rate}). Batch: {sung}; {last_good(self.run_dir)}."
                )
