"""Prompts, votes and scorers that the tests of watched runs share."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from alignment.circle.watch import Scorers
from alignment.domain import GenerationConfig, Outcome, Pair, Prompt, Split
from alignment.evaluation.overoptimisation import Look
from alignment.rewards.scorers import CallableScorer, Scale, SharedEncoder, WeightedScorer
from tests.training_support import pair

SHORT = GenerationConfig(clip_seconds=0.5)
TEXTS = ("calm piano", "fast violin", "dark organ", "bright flute")


class Ears:
    """An encoder of audio by its energy in eight equal stretches, of text by its letters."""

    name = "ears"

    def audio(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        parts = np.array_split(np.asarray(audio, dtype=np.float64), 8, axis=1)
        found = np.stack([np.sqrt((part**2).mean(1)) for part in parts], axis=1) + 1e-6
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    def text(self, prompts: Sequence[str]) -> np.ndarray:
        found = np.array([[1.0 + prompt.count(letter) for letter in "aeiorstn"] for prompt in prompts])
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def loudness(prompts: Sequence[str], audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """The level of each clip: a reward that is known without a model."""
    return np.log(np.sqrt((np.asarray(audio, dtype=np.float64) ** 2).mean(1)) + 1e-9)


def scorers() -> Scorers:
    """Loudness as the proxy, its opposite as the held-out reward."""
    unit = {"loudness": Scale(0.0, 1.0)}
    louder = CallableScorer(loudness, name="loudness", licence="own")
    return Scorers(WeightedScorer([(louder, 1.0)], unit), WeightedScorer([(louder, -1.0)], unit), SharedEncoder(Ears()))


def prompts(texts: Sequence[str] = TEXTS) -> list[Prompt]:
    return [Prompt(uuid.uuid5(uuid.NAMESPACE_URL, text), text, "tests", Split.TRAIN, {}) for text in texts]


def votes(raters: int = 6, texts: int = 10, seed: int = 0) -> list[Pair]:
    """Every rater on every prompt: decisive votes with axes; the last two prompts are for validation."""
    rng = np.random.default_rng(seed)
    out = []
    for text in range(texts):
        for rater in range(raters):
            number = text * raters + rater
            outcome = Outcome.A if rng.random() < 0.5 else Outcome.B
            one = pair(
                number, outcome, prompt=f"prompt {text:02d}", split=Split.TRAIN if text < texts - 2 else Split.VALID,
                axes={"quality": 1, "text_adherence": -1}, a=f"{text}a", b=f"{text}b",
            )  # fmt: skip
            out.append(replace(one, rater_id=f"rater-{rater}"))
    return out


def look(step: int, proxy: np.ndarray, held_out: np.ndarray, **more: np.ndarray) -> Look:
    """A look of given rewards (P, n); the clips themselves are all alike."""
    zeros = np.zeros_like(proxy)
    names = ("kl", "diversity", "duplicates", "level_lufs", "silence", "onset_rate_hz", "pitch_class_entropy_bits")
    values = {name: zeros + step / 10 for name in names}
    return Look(step, values | {"proxy_reward": proxy, "held_out_reward": held_out} | more, zeros[..., None, None])
