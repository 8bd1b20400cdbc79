"""Simulated listeners: a hidden taste, noise, a side bias, an indifference zone, a floor and some carelessness.

A listener hears a clip through the gold judge only. Its utility, from 0 (nothing asked for, nothing clean) to the sum
of its weights (everything asked for, all clean), give or take what it likes, is

    u = adherence_weight * adherence + cleanliness_weight * cleanliness + likes

and it votes on ``d = u_left - u_right + side_bias + noise * L`` with L standard logistic: the left clip above
``indifference``, the right one below minus that, else no preference. That is Bradley and Terry's model with the ties
of Rao and Kupper (1967, J. Am. Stat. Assoc. 62, 194-204) and theta = exp(indifference / noise). "No preference" is a
tie, or "both bad" when both clips are under ``floor``. Profiles are data: ``configs/listeners.yaml``; what a profile
does not state is off. Everything a listener does is marked simulated. Guide: ``docs/listeners.md``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from alignment.config import REPOSITORY, Recipe, load_recipe
from alignment.domain import Axis, Outcome
from alignment.errors import ConfigError
from alignment.simulation.captions import ATTRIBUTE_VALUES

if TYPE_CHECKING:
    from alignment.simulation.judge import Judgement

LISTENERS_YAML = REPOSITORY / "configs" / "listeners.yaml"


class ListenerProfile(Recipe):
    """How a kind of listener votes. All but the two shares are in units of utility."""

    adherence_weight: float = Field(6.0, ge=0, description="utility from nothing asked for to everything asked for")
    cleanliness_weight: float = Field(4.0, ge=0, description="utility from as faulty as can be to spotless")
    likes: float = Field(0.0, ge=0, description="deviation of the personal liking of each attribute value")
    noise: float = Field(0.0, ge=0, description="scale of the logistic noise on a difference of utilities")
    side_bias: float = Field(0.0, description="added to the left clip")
    indifference: float = Field(0.0, ge=0, description="noisy differences within this are no preference")
    floor: float = Field(0.0, description="no preference between two clips below this is both bad, not a tie")
    carelessness: float = Field(0.0, ge=0, le=1, description="share of votes that are a coin toss")
    contrary: float = Field(0.0, ge=0, le=1, description="share of the other votes cast against the own taste")


class Listeners(Recipe):
    """Profiles by name, and populations as shares of profiles."""

    profiles: dict[str, ListenerProfile] = Field(min_length=1)
    populations: dict[str, dict[str, float]] = Field(min_length=1)

    def population(self, name: str) -> dict[str, float]:
        """Shares by profile. Raises ConfigError naming the known populations."""
        if name not in self.populations:
            raise ConfigError(f"no population {name}; configs/listeners.yaml has {', '.join(self.populations)}.")
        return self.populations[name]


def load_listeners(path: Path = LISTENERS_YAML) -> Listeners:
    """Profiles and populations. Raises ConfigError for unknown keys or profiles, and shares that do not make one."""
    listeners = load_recipe(path, Listeners)
    for name, shares in listeners.populations.items():
        unknown = set(shares) - set(listeners.profiles)
        if unknown:
            raise ConfigError(
                f"{path}: population {name} names {', '.join(sorted(unknown))}; "
                f"the profiles are {', '.join(sorted(listeners.profiles))}."
            )
        if min(shares.values(), default=0.0) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
            raise ConfigError(
                f"{path}: population {name} has the shares {', '.join(f'{v:g}' for v in shares.values()) or 'none'}; "
                "they must be 0 or more and add up to 1."
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
        """What the clip is worth to this listener, when the caption asks for ``tags``."""
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
        sign = -1.0 if rng.random() < profile.contrary else 1.0
        u_left, u_right = self.utility(left, tags), self.utility(right, tags)
        difference = sign * (u_left - u_right) + profile.side_bias + profile.noise * _logistic(rng)
        adherence = profile.adherence_weight * (right.adherence(tags) - left.adherence(tags))
        quality = profile.cleanliness_weight * (right.cleanliness - left.cleanliness)
        axes = {
            Axis.TEXT_ADHERENCE: self._step(sign * adherence, rng),
            Axis.QUALITY: self._step(sign * quality, rng),
        }
        if difference > profile.indifference:
            return Outcome.A, axes
        if difference < -profile.indifference:
            return Outcome.B, axes
        return (Outcome.BOTH_BAD if max(u_left, u_right) < profile.floor else Outcome.TIE), axes

    def _step(self, difference: float, rng: random.Random) -> int:
        """A noisy difference in favour of the right clip, on five steps."""
        noisy = difference + self.profile.noise * _logistic(rng)
        size = 0 if abs(noisy) <= self.profile.indifference else 1 if abs(noisy) < 3 * self.profile.indifference else 2
        return size if noisy > 0 else -size


def draw_population(listeners: Listeners, population: str, count: int, seed: int) -> list[tuple[str, Listener]]:
    """``count`` listeners with their profile names, in drawn order.

    Each profile has its share of them, rounded by largest remainder, so that a small panel is as mixed as it can be.
    Raises ConfigError for an unknown population."""
    shares = listeners.population(population)
    exact = {name: share * count for name, share in shares.items()}
    heads = {name: math.floor(number + 1e-9) for name, number in exact.items()}
    for name in sorted(exact, key=lambda name: round(heads[name] - exact[name], 9))[: count - sum(heads.values())]:
        heads[name] += 1
    names = [name for name, number in heads.items() for _ in range(number)]
    random.Random(seed).shuffle(names)
    return [(name, Listener(listeners.profiles[name], seed=seed * 10_007 + i)) for i, name in enumerate(names)]
