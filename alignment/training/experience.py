"""One rollout as PPO learns from it: clips sampled now, scored by the reward, the policy, the reference and the value
head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from alignment.config import PpoSettings
from alignment.errors import ConfigError, DataError, TrainingError
from alignment.music.memory import rollout_batch
from alignment.music.sampler import sample
from alignment.music.text import TextBatch, encode_prompts
from alignment.training.advantages import gae, grpo, rloo
from alignment.training.policy_loss import kl_per_step, step_logprobs, step_rewards
from alignment.training.ranks import Ranks
from alignment.training.reinforce import RewardFn, Rewards, checked_rewards, refuse_constant
from alignment.training.value import ValueHead, decoder_states

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

ROLLOUT_BATCH = 128  # clips sung at once, where there is room
MOST_DRIFT = 0.05  # nats a code between sampler and trainer; bf16 gives some 0.005


def require_rollouts(prompts: Sequence[str], settings: PpoSettings) -> None:
    """Raises DataError without prompts, ConfigError for settings that make no rollout PPO could learn from."""
    if not prompts:
        raise DataError("There are no prompts to sing; give at least one.")
    clips = settings.rollout_prompts * settings.num_generations
    if settings.advantage != "gae" and settings.num_generations < 2:
        raise ConfigError(
            f"advantage is {settings.advantage} and num_generations {settings.num_generations}; it compares clips of "
            "one prompt, so set num_generations to 2 or more, or advantage to gae."
        )
    if settings.num_mini_batches > clips:
        raise ConfigError(f"num_mini_batches is {settings.num_mini_batches} for {clips} clips a rollout; lower it.")
    if settings.generation.top_k:
        raise ConfigError(
            f"generation.top_k is {settings.generation.top_k}: a code that it cuts off after an update has no "
            "log-probability. Set it to 0; listeners may still hear clips sung with it."
        )


@dataclass(frozen=True)
class Experience:
    """A process's b clips of one rollout. codes (b, K, T); log-probabilities (b, S) in nats under the policy that sang
    them and under the reference; states (b, S, D); values, advantages and returns (b, S); ``drift`` is what sampler
    and trainer differ by, nats a code."""

    prompts: list[str]
    text: TextBatch
    codes: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    states: Tensor
    values: Tensor
    rewards: Rewards
    advantages: Tensor
    returns: Tensor
    drift: float

    @property
    def kl(self) -> Tensor:
        """log p - log ref of each clip, (b,), nats."""
        return kl_per_step(self.logprobs, self.ref_logprobs).sum(dim=1)


def prompts_of_step(prompts: Sequence[str], count: int, step: int, seed: int) -> list[str]:
    """The ``count`` prompts of a rollout. Prompts are gone through in passes, each in an order of its own; a function
    of step and seed alone, so that a resumed run draws what an undisturbed one draws."""
    chosen: list[str] = []
    for index in range((step - 1) * count, step * count):
        turn, place = divmod(index, len(prompts))
        chosen.append(prompts[np.random.default_rng([seed, 0, turn]).permutation(len(prompts))[place]])
    return chosen


def clip_seeds(clips: int, step: int, seed: int) -> list[int]:
    """The sampler's seed of every clip of a rollout."""
    return [int(value) for value in np.random.default_rng([seed, 1, step]).integers(2**62, size=clips)]


def collect(
    model: MusicModel,
    head: ValueHead,
    prompts: Sequence[str],
    reward: RewardFn,
    settings: PpoSettings,
    *,
    step: int,
    kl_coef: float,
    reference: Callable[[], AbstractContextManager],
    ranks: Ranks,
) -> Experience:
    """Sing this process's part of a rollout and score it. ``prompts`` are the whole rollout's, each sung
    num_generations times. Raises TrainingError for rewards that are not finite or all alike, and when sampler and
    trainer do not agree."""
    group, mine = settings.num_generations, ranks.share(len(prompts))
    seeds = clip_seeds(len(prompts) * group, step, settings.seed)[mine.start * group : mine.stop * group]
    sung = [prompts[i] for i in mine for _ in range(group)]
    generation = settings.generation.to_domain()
    size = rollout_batch(
        model, min(len(sung), ROLLOUT_BATCH), seconds=generation.clip_seconds, guidance=generation.guidance,
        what=f"Step {step}: a rollout",
    )  # fmt: skip
    rollout = sample(model, sung, generation=generation, seeds=seeds, batch_size=max(1, size))
    rewards = checked_rewards(reward(sung, rollout.codes), sung, step=step)
    refuse_constant(ranks.join(rewards.total), step=step)
    text = encode_prompts(model, sung)
    logprobs, states = _score(model, rollout.codes, text, settings)
    with reference():
        ref_logprobs, _ = _score(model, rollout.codes, text, settings, keep_states=False)
    drift = float((logprobs - rollout.logprobs.to(logprobs)).abs().mean())
    if not drift < MOST_DRIFT:  # NaN as well
        raise TrainingError(
            f"Step {step}: sampler and trainer differ by {drift:.3g} nats a code; what is trained is not what sang. "
            "Is the model in an odd precision, or did something move its weights in between?"
        )
    old, ref = (step_logprobs(each, channels=model.channels) for each in (logprobs, ref_logprobs))
    with torch.no_grad():
        values = torch.cat([head(part) for part in states.split(settings.per_device_train_batch_size)])
    totals = torch.from_numpy(rewards.total).to(old)
    advantages, returns = estimate(totals, kl_per_step(old, ref), values, settings, kl_coef=kl_coef, ranks=ranks)
    return Experience(
        sung, text, rollout.codes, old, ref, states, values, rewards, advantages, returns, drift
    )  # fmt: skip


def estimate(
    rewards: Tensor, kl: Tensor, values: Tensor, settings: PpoSettings, *, kl_coef: float, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """Advantages (b, S) and returns (b, S) of b clips: rewards (b,), kl and values (b, S).

    gae: from the value head, then standardised over the whole rollout. rloo and grpo: one advantage a clip, of its
    reward minus the price of its KL, for all of its steps."""
    earned = step_rewards(rewards, kl, kl_coef=kl_coef)
    if settings.advantage == "gae":
        advantages, returns = gae(earned, values, lam=settings.value.lam)
        return _standardised(advantages, ranks), returns
    totals = earned.sum(dim=1).view(-1, settings.num_generations)
    clips = (rloo if settings.advantage == "rloo" else grpo)(totals).flatten()
    return clips[:, None].expand_as(kl).contiguous(), totals.flatten()[:, None].expand_as(kl).contiguous()


def _standardised(values: Tensor, ranks: Ranks) -> Tensor:
    """Mean 0 and deviation 1 over all entries of all processes."""
    exact = values.double()
    found = ranks.sum(torch.stack([exact.new_tensor(values.numel()), exact.sum(), exact.square().sum()]))
    mean = found[1] / found[0]
    deviation = (found[2] / found[0] - mean**2).clamp_min(0).sqrt()
    return ((exact - mean) / (deviation + 1e-8)).to(values)


def _score(
    model: MusicModel, codes: Tensor, text: TextBatch, settings: PpoSettings, *, keep_states: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (b, K, T) of codes and the states (b, S, D) they were read from."""
    generation, size = settings.generation.to_domain(), settings.per_device_train_batch_size
    logprobs, states = [], []
    with torch.no_grad():
        for start in range(0, len(codes), size):
            rows = slice(start, start + size)
            with decoder_states(model) as found:
                logprobs.append(model.logprobs(codes[rows], text.rows(rows), generation=generation))
            if keep_states:
                states.append(found[0])  # with guidance a second pass follows, without the prompt
    return torch.cat(logprobs), torch.cat(states) if keep_states else logprobs[0].new_zeros(0)


@contextmanager
def frozen_adapter(model: MusicModel, weights: Sequence[Tensor]) -> Iterator[None]:
    """Inside this block the adapter has these weights: the policy as it was at the start of its stage."""
    parameters = model.trainable_parameters()
    own = [parameter.data for parameter in parameters]
    try:
        for parameter, value in zip(parameters, weights, strict=True):
            parameter.data = value
        yield
    finally:
        for parameter, value in zip(parameters, own, strict=True):
            parameter.data = value
