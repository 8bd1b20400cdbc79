"""Proximal policy optimisation of a music model's adapter (signature; the loop follows)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment.config import PpoSettings
from alignment.training.reinforce import RewardFn
from alignment.training.trainer import OnStep, TrainResult

if TYPE_CHECKING:
    from alignment.music.model import MusicModel


def train_ppo(
    model: MusicModel,
    prompts: Sequence[str],
    reward: RewardFn,
    settings: PpoSettings,
    run_dir: str | Path,
    *,
    reference: Literal["base", "start"] = "base",
    watch: Any | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> TrainResult:
    """Train the model's adapter to sing clips that ``reward`` likes; the model is left with it, trained."""
    raise NotImplementedError
