"""Whether a reward model hears level, or something that goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignment.evaluation.intervals import Interval
from alignment.evaluation.metrics import bootstrap_mean
from alignment.evaluation.terminal import number
from alignment.rewards.card import Evidence

QUIETER_DB = 6.0


@dataclass(frozen=True)
class LevelProbe:
    """What 6 dB of level do to the preference score, in typical differences between two clips of a pair.

    ``shift``: what a clip loses when it is itself played 6 dB quieter. ``by_nature``: how much less, by least squares,
    a clip scores than the other of its pair for each 6 dB that it is quieter. A model that hears level has the two
    alike; one that hears what goes with level, such as a dense piece, has the second alone."""

    shift: Interval
    by_nature: float

    @property
    def hears_level(self) -> bool:
        """Whether at least half of what goes with level is level itself."""
        return self.shift.value * self.by_nature > 0 and abs(self.shift.value) >= abs(self.by_nature) / 2

    @property
    def sentence(self) -> str:
        """The finding in words."""
        low, high = number(self.shift.low), number(self.shift.high)
        return (
            f"Played {QUIETER_DB:g} dB quieter, the same clip loses {number(self.shift.value)} ({low} to {high}) of a "
            f"typical difference between two clips; a clip that is so much quieter by nature, {number(self.by_nature)}"
        )


def level_probe(evidence: Evidence, prompts: Sequence[str], shifts: np.ndarray) -> LevelProbe:
    """The probe of the evidence; ``shifts`` (n,): what each clip's score drops when it is played 6 dB quieter."""
    preference = evidence.differences["preference"]
    typical = float(np.sqrt(np.mean(preference**2))) or 1.0
    quieter = next((one.values for one in evidence.baselines if one.name == "level"), np.zeros((len(preference), 2)))
    lower = quieter[:, 1] - quieter[:, 0]  # dB by which clip a is quieter than clip b
    slope = -float(lower @ preference) / (float(lower @ lower) or 1.0)  # score lost per dB
    return LevelProbe(bootstrap_mean(shifts / typical, prompts), QUIETER_DB * slope / typical)
