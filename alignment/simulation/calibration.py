"""Which noise and indifference give a profile the agreement and the share of ties one wants, on given clips."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from alignment.errors import ConfigError, DataError
from alignment.simulation.agreement import HeardPair, PerfectScorer
from alignment.simulation.listeners import Listener, ListenerProfile

LEAST_NOISE, MOST_NOISE = 1e-3, 1e3
STEPS = 40  # halvings


@dataclass(frozen=True)
class Expected:
    """Over listeners, pairs and both sides: share without a preference, and agreement of the decisive rest."""

    undecided: float
    agreement: float


def vote_chances(profile: ListenerProfile, differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(left) and P(right), both of the shape of ``differences``: utility of the left clip less that of the right one.

    The closed form of ``Listener.vote`` (Rao and Kupper 1967); what is left over is no preference."""

    def wins(difference: np.ndarray) -> np.ndarray:
        beyond = difference - profile.indifference
        return expit(beyond / profile.noise) if profile.noise > 0 else (beyond > 0).astype(float)

    def both(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return wins(difference + profile.side_bias), wins(-difference - profile.side_bias)

    honest, contrary = both(differences), both(-differences)
    taste = [(1 - profile.contrary) * h + profile.contrary * c for h, c in zip(honest, contrary, strict=True)]
    left, right = (profile.carelessness / 2 + (1 - profile.carelessness) * share for share in taste)
    return left, right


def own_differences(profile: ListenerProfile, pairs: Sequence[HeardPair], listeners: int, seed: int) -> np.ndarray:
    """(listeners, P): what each of freshly drawn listeners finds between the two clips of each pair."""
    panel = [Listener(profile, seed * 10_007 + number) for number in range(listeners)]
    return np.array([[x.utility(p.left, p.tags) - x.utility(p.right, p.tags) for p in pairs] for x in panel])


def expected(profile: ListenerProfile, own: np.ndarray, mean: np.ndarray) -> Expected:
    """What the profile's votes come to in the long run, sides drawn evenly.

    own (listeners, P) as from :func:`own_differences`; mean (P,) the perfect scorer's differences."""
    left, right = vote_chances(profile, own)
    swapped_left, swapped_right = vote_chances(profile, -own)
    one, other = (left + swapped_right) / 2, (right + swapped_left) / 2  # chances that each clip is picked
    decisive = one + other
    credit = (1 + np.sign(mean)) / 2  # of picking the first clip
    picked = (one * credit + other * (1 - credit)).sum()
    return Expected(float(1 - decisive.mean()), float(picked / max(decisive.sum(), 1e-300)))


def calibrate(
    profile: ListenerProfile,
    pairs: Sequence[HeardPair],
    *,
    agreement: float,
    undecided: float,
    listeners: int = 48,
    seed: int = 0,
) -> tuple[ListenerProfile, Expected]:
    """The profile with the noise and indifference that give these figures on these pairs, and what they give.

    ``undecided`` is the share of ties and both-bad together. Bisection, one within the other: for each noise the
    indifference that gives the share, and the noise whose agreement is then right. Raises DataError without pairs and
    ConfigError when no noise gives the figures; likes, side bias and carelessness bound what can be reached."""
    if not pairs:
        raise DataError("There are no pairs to calibrate on; give at least two different clips a prompt.")
    if not 0 <= undecided < 1 - profile.carelessness:
        raise ConfigError(
            f"A share of ties of {undecided:g} cannot be reached: {profile.carelessness:.0%} of the profile's votes "
            f"are coin tosses, so it must lie from 0 to below {1 - profile.carelessness:g}."
        )
    scorer = PerfectScorer.of_profile(profile)
    own = own_differences(profile, pairs, listeners, seed)
    mean = np.array([scorer.difference(pair) for pair in pairs])
    widest = float(np.abs(own).max()) + abs(profile.side_bias)

    def with_ties(noise: float) -> ListenerProfile:
        noisy = profile.model_copy(update={"noise": noise})
        if undecided == 0:
            return noisy.model_copy(update={"indifference": 0.0})
        # Beyond this zone at most a share of exp(-40) is decisive.
        zone = _bisect(
            lambda x: expected(noisy.model_copy(update={"indifference": x}), own, mean).undecided - undecided,
            0.0, widest + 40 * noise,
        )  # fmt: skip
        return noisy.model_copy(update={"indifference": zone})

    def miss(log_noise: float) -> float:
        return expected(with_ties(math.exp(log_noise)), own, mean).agreement - agreement

    low, high = math.log(LEAST_NOISE), math.log(MOST_NOISE)
    ends = [miss(low) + agreement, miss(high) + agreement]
    if not min(ends) <= agreement <= max(ends):
        raise ConfigError(
            f"An agreement of {agreement:g} cannot be reached on these clips: with hardly any noise it is "
            f"{ends[0]:.3f}, with nothing but noise {ends[1]:.3f}. Change the wish, or the profile's likes, "
            "carelessness or contrary."
        )
    found = with_ties(math.exp(_bisect(miss, low, high)))
    rounded = found.model_copy(
        update={"noise": float(f"{found.noise:.4g}"), "indifference": float(f"{found.indifference:.4g}")}
    )
    return rounded, expected(rounded, own, mean)


def _bisect(miss: Callable[[float], float], low: float, high: float) -> float:
    """Where ``miss`` changes its sign between low and high; the nearer end when it does not."""
    at_low = miss(low)
    if at_low * miss(high) > 0:
        return low if abs(at_low) < abs(miss(high)) else high
    for _ in range(STEPS):
        middle = (low + high) / 2
        if miss(middle) * at_low > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
