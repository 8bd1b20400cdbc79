"""Online training inside the demo: PPO on a reward model's preference, on prompts nobody voted on as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.circle.rewarding import weighted_scorer
from alignment.circle.workspace import Workspace
from alignment.config import DemoSettings
from alignment.db import prompts as queries
from alignment.domain import Split, Version
from alignment.simulation.captions import draw_captions

if TYPE_CHECKING:
    from alignment.rewards.model import RewardModel
    from alignment.training.trainer import OnStep, TrainResult

SCALE_CLIPS = 128  # of the base, on which the reward's scale is measured
CAPTIONS_SEED = 5000  # other captions than those voted on and compared


def train_online(
    ws: Workspace, settings: DemoSettings, *, parent: Version, base: Version, reward: RewardModel,
    voted: Sequence[str], run_dir: Path, on_step: OnStep,
) -> TrainResult:  # fmt: skip
    """PPO from ``parent``; KL is measured to the base, and so is the reward's scale, on clips as long as those sung.

    Nobody needs to vote on what PPO sings: to the ``voted`` prompts come settings.align.online_captions others."""
    from alignment.music.codec import decode
    from alignment.music.sampler import sample
    from alignment.rewards.of_codes import CodesReward
    from alignment.rewards.scorers import SharedEncoder
    from alignment.training.ppo import train_ppo

    chosen = settings.ppo.model_copy(update={"seed": settings.seed})
    prompts = [*voted, *_more_captions(ws, settings, voted)]
    heard = prompts[:SCALE_CLIPS]
    model = ws.policy(base)
    seeds = [CAPTIONS_SEED + number for number in range(len(heard))]
    audio = decode(model, sample(model, heard, generation=chosen.generation.to_domain(), seeds=seeds).codes)
    weights = settings.align.online_reward
    scorer = weighted_scorer(reward, SharedEncoder(ws.encoder), weights, heard, audio, model.sample_rate_hz)
    policy = ws.policy(parent)
    return train_ppo(policy, prompts, CodesReward(policy, scorer), chosen, run_dir, on_step=on_step)


def _more_captions(ws: Workspace, settings: DemoSettings, voted: Sequence[str]) -> list[str]:
    """Captions worded unlike every recorded one, so that nothing held out is trained on."""
    wanted = settings.align.online_captions
    with ws.database.session(write=False) as s:
        known = {prompt.text for split in Split for prompt in queries.list_prompts(s, split=split)} | set(voted)
    drawn = draw_captions(2 * wanted, CAPTIONS_SEED + settings.seed, reserved=True)
    return [text for text, _ in drawn if text not in known][:wanted]
