"""What a reward model has to beat: CLAP cosine, loudness, level and length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from alignment.audio_facts import FLOOR_DB
from alignment.rewards.scorers import CallableScorer

QUIETEST_LUFS = -70.0  # BS.1770's absolute gate: silence is heard as this


def loudness_lufs(audio: np.ndarray, sample_rate_hz: int) -> float:
    """Integrated loudness (ITU-R BS.1770) of mono audio (N,); silence is -70."""
    from alignment.audio_facts import measure

    lufs = measure(audio, sample_rate_hz).lufs
    return QUIETEST_LUFS if lufs is None else lufs


def level_dbfs(audio: np.ndarray, sample_rate_hz: int) -> float:
    """RMS level of mono audio (N,) in dB of full scale, at least -120."""
    power = float(np.mean(np.square(audio, dtype=np.float64)))
    return max(FLOOR_DB, 10 * math.log10(power)) if power > 0 else FLOOR_DB


def length_seconds(audio: np.ndarray, sample_rate_hz: int) -> float:
    """Length of audio (N,) in seconds."""
    return len(audio) / sample_rate_hz


MEASURES: dict[str, Callable[[np.ndarray, int], float]] = {
    "loudness": loudness_lufs,
    "level": level_dbfs,
    "length": length_seconds,
}
# How a preference for more, or for less, of each reads.
WORDS = {
    "loudness": ("the louder clip", "the quieter clip"),
    "level": ("the clip of higher level", "the clip of lower level"),
    "length": ("the longer clip", "the shorter clip"),
    "clap_cosine": ("the clip closer to its prompt in CLAP's space", "the clip farther from its prompt"),
}


def measures(audio: np.ndarray, sample_rate_hz: int) -> dict[str, float]:
    """{measure: value} of one clip (N,)."""
    return {name: measure(audio, sample_rate_hz) for name, measure in MEASURES.items()}


def measuring_scorer(name: str) -> CallableScorer:
    """One of the measures as a scorer, for comparison and as a penalty with a negative weight."""
    measure = MEASURES[name]

    def score(prompts: Sequence[str], audio: np.ndarray, sample_rate_hz: int) -> list[float]:
        return [measure(clip, sample_rate_hz) for clip in audio]

    return CallableScorer(score, name=name, licence="MIT")
