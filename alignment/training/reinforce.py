"""What online training asks of a reward: a number for each clip that was just sampled, and what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from alignment.errors import TrainingError
from alignment.rewards.of_codes import Rewards

__all__ = ["RewardFn", "Rewards", "checked_rewards"]

# Prompts (B) and codes (B, K, T) int64 on the CPU to their rewards. The same clips must always get the same rewards:
# a resumed run asks for them again.
RewardFn = Callable[[Sequence[str], Tensor], Rewards]


def checked_rewards(rewards: Rewards, prompts: Sequence[str], *, step: int) -> Rewards:
    """The rewards in float64. Raises TrainingError naming the step and the prompt when one is missing or not finite."""
    total = np.asarray(rewards.total, dtype=np.float64)
    parts = {name: np.asarray(values, dtype=np.float64) for name, values in rewards.parts.items()}
    for name, values in {"total": total, **parts}.items():
        if values.shape != (len(prompts),):
            raise TrainingError(f"Step {step}: rewards ({name}) are {values.shape} for {len(prompts)} clips; one each.")
    wrong = np.flatnonzero(~np.isfinite(total))
    if len(wrong):
        raise TrainingError(
            f"Step {step}: the reward of {len(wrong)} of {len(total)} clips is no number, first for the prompt "
            f'"{prompts[wrong[0]]}"; is a clip silent, or a scorer damaged?'
        )
    return Rewards(total, parts)


def refuse_constant(total: np.ndarray, *, step: int) -> None:
    """Raise TrainingError when every one of several clips, (B,), has the same reward: there is nothing to learn."""
    if len(total) > 1 and np.ptp(total) <= 1e-12 * max(1.0, float(np.abs(total).max())):
        raise TrainingError(
            f"All {len(total)} clips of step {step} have the reward {total[0]:g}: a constant reward teaches nothing. "
            "Check the scorers and their weights."
        )
