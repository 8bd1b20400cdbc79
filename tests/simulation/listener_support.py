"""Clips as a judge might hear them, made up: no audio, no model."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from alignment.simulation.agreement import HeardPair
from alignment.simulation.captions import ATTRIBUTE_VALUES

TAGS = {"lead": "piano", "tempo": "slow", "mode": "major", "accompaniment": "none", "drums": "no"}


@dataclass(frozen=True, eq=False)
class Heard:
    """All that a listener asks of a judgement."""

    attributes: Mapping[str, Mapping[str, float]]
    cleanliness: float

    def adherence(self, tags: Mapping[str, str]) -> float:
        return sum(self.attributes[name][value] for name, value in tags.items()) / len(tags)


def heard(asked: float, cleanliness: float = 0.5) -> Heard:
    """A clip that has every attribute asked for in TAGS with the probability ``asked``."""
    attributes = {}
    for name, values in ATTRIBUTE_VALUES.items():
        rest = (1 - asked) / (len(values) - 1)
        attributes[name] = {value: asked if value == TAGS[name] else rest for value in values}
    return Heard(attributes, cleanliness)


def random_clip(rng: random.Random) -> Heard:
    """Sure of some attributes, unsure of others; anything from faulty to clean."""
    attributes = {}
    for name, values in ATTRIBUTE_VALUES.items():
        weights = [rng.random() ** 4 for _ in values]
        attributes[name] = {value: weight / sum(weights) for value, weight in zip(values, weights, strict=True)}
    return Heard(attributes, rng.betavariate(4, 1.5))


def random_pairs(count: int, seed: int = 0, *, prompts: int = 60) -> list[HeardPair]:
    """Pairs of clips of ``prompts`` prompts that all ask for TAGS."""
    rng = random.Random(seed)
    return [HeardPair(i % prompts, TAGS, random_clip(rng), random_clip(rng)) for i in range(count)]
