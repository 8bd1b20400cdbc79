"""Simulated listeners: a hidden taste, noise, a side bias, an indifference zone and a floor.

A listener hears a clip through the gold judge only. Its utility is

    u = adherence_weight * adherence + cleanliness_weight * cleanliness + likes

and it votes on ``u_left - u_right + side_bias + noise`` with logistic noise (Bradley-Terry with ties,
Rao & Kupper 1967): inside ``indifference`` it calls a tie, or "both bad" when both clips fall below ``floor``.
Profiles are data: ``configs/listeners.yaml``. Everything a listener does is marked simulated.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from alignment.config import REPOSITORY, Recipe, load_recipe
from alignment.domain import Axis, Outcome
from alignment.errors import ConfigError
from alignment.simulation.captions import ATTRIBUTE_VALUES
from alignment.simulation.judge import Judgement


class ListenerProfile(Recipe):
    """How a kind of listener votes; utilities are in the unit of ``noise``'s logistic scale."""

    adherence_weight: float = Field(4.0, description="weight of what the caption asked for")
    cleanliness_weight: float = Field(10.0, description="weight of clean sound")
    likes: float = Field(0.25, ge=0, description="deviation of the personal liking of each attribute value")
    noise: float = Field(0.5, ge=0, description="scale of the logistic noise on a difference of utilities")
    side_bias: float = Field(0.1, description="added to the left clip")
    indifference: float = Field(0.6, ge=0, description="differences within this are ties")
    floor: float = Field(8.0, description="a tie of two clips below this is both bad")
    carelessness: float = Field(0.02, ge=0, le=1, description="share of votes that are a coin toss")


class Listeners(Recipe):
    """Profiles by name, and populations as shares of profiles."""

    profiles: dict[str, ListenerProfile] = Field(min_length=1)
    populations: dict[str, dict[str, float]] = Field(min_length=1)


def load_listeners(path: Path = REPOSITORY / "configs" / "listeners.yaml") -> Listeners:
    listeners = load_recipe(path, Listeners)
    for name, shares in listeners.populations.items():
        unknown = set(shares) - set(listeners.profiles)
        if unknown:
            raise ConfigError(
                f"{path}: population {name} names {', '.join(sorted(unknown))}; "
                f"the profiles are {', '.join(sorted(listeners.profiles))}."
            )
    return listeners


def _logistic(rng: random.Random) -> float:
    share = min(max(rng.random(), 1e-12), 1 - 1e-12)
    return math.log(share / (1 - share))


class Listener:
    """One simulated rater. ``seed`` fixes the hidden taste; votes draw from ``rng`` given with each pair."""

    def __init__(self, profile: ListenerProfile, seed: int) -> None:
        self.profile = profile
        rng = random.Random(seed)
        self.taste = {
            (name, value): rng.gauss(0, profile.likes) for name, values in ATTRIBUTE_VALUES.items() for value in values
        }

    def utility(self, heard: Judgement, tags: Mapping[str, str]) -> float:
        liking = sum(
            share * self.taste[name, value]
            for name, shares in heard.attributes.items()
            for value, share in shares.items()
        )
        profile = self.profile
        return (
            profile.adherence_weight * heard.adherence(tags) + profile.cleanliness_weight * heard.cleanliness + liking
        )

    def vote(
        self, left: Judgement, right: Judgement, tags: Mapping[str, str], rng: random.Random
    ) -> tuple[Outcome, dict[Axis, int]]:
        """The overall vote and the two axes (-2 clearly left .. 2 clearly right)."""
        profile = self.profile
        if rng.random() < profile.carelessness:
            coin = rng.choice((Outcome.A, Outcome.B))
            return coin, {Axis.TEXT_ADHERENCE: rng.randint(-2, 2), Axis.QUALITY: rng.randint(-2, 2)}
        u_left, u_right = self.utility(left, tags), self.utility(right, tags)
        difference = u_left - u_right + profile.side_bias + profile.noise * _logistic(rng)
        axes = {
            Axis.TEXT_ADHERENCE: self._step(
                profile.adherence_weight * (right.adherence(tags) - left.adherence(tags)), rng
            ),
            Axis.QUALITY: self._step(profile.cleanliness_weight * (right.cleanliness - left.cleanliness), rng),
        }
        if abs(difference) > profile.indifference:
            return (Outcome.A if difference > 0 else Outcome.B), axes
        return (Outcome.BOTH_BAD if max(u_left, u_right) < profile.floor else Outcome.TIE), axes

    def _step(self, difference: float, rng: random.Random) -> int:
        """A noisy difference in favour of the right clip, on five steps."""
        noisy = difference + self.profile.noise * _logistic(rng)
        size = 0 if abs(noisy) < self.profile.indifference else 1 if abs(noisy) < 3 * self.profile.indifference else 2
        return size if noisy > 0 else -size


def draw_population(listeners: Listeners, population: str, count: int, seed: int) -> list[tuple[str, Listener]]:
    """``count`` listeners with their profile names, profiles in the population's shares."""
    if population not in listeners.populations:
        raise ConfigError(f"no population {population}; configs/listeners.yaml has {', '.join(listeners.populations)}.")
    shares = listeners.populations[population]
    rng = random.Random(seed)
    names = rng.choices(list(shares), weights=list(shares.values()), k=count)
    return [(name, Listener(listeners.profiles[name], seed=seed * 10_007 + i)) for i, name in enumerate(names)]
