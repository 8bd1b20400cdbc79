"""Ratings of versions from comparisons: Davidson's model with ties, a side intercept and a ridge.

The model is ``davidson``'s. Intervals come from the same two-way clustered bootstrap as every other interval here, each
resample warm-started at the fit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse, stats
from scipy.sparse import csgraph

from alignment.domain import Comparison
from alignment.errors import DataError
from alignment.evaluation import davidson
from alignment.evaluation.intervals import Interval, TwoWayDraws, check_bootstrap, integer_codes, two_way_draws
from alignment.evaluation.vote_arrays import BOTH_BAD, VoteArrays
from alignment.evaluation.win_rate import WinRate, win_rate

__all__ = ["ELO_PER_NAT", "Rating", "Ratings", "WinRate", "fit_ratings", "rate_votes", "win_rate"]

ELO_PER_NAT = 400 / math.log(10)  # a difference of 400 is odds of ten to one
ELO_CENTRE = 1000.0


@dataclass(frozen=True)
class Rating:
    """A version's strength in nats (the versions' mean is 0) and on an Elo-like scale (their mean is 1000)."""

    version: str
    strength: Interval
    elo: Interval


@dataclass(frozen=True)
class Ratings:
    """Fitted strengths, best first. ``side`` is the log-odds of the left clip between equals, ``tie`` the log tie
    propensity (None when no vote was a tie).

    ``separable`` is True when some versions, named in ``unbounded``, never lost, nor drew, against the rest, or never
    won: only the ridge keeps their strengths finite, so treat them as provisional.
    """

    ratings: tuple[Rating, ...]
    side: Interval | None
    tie: float | None
    votes: int
    raters: int
    prompts: int
    ridge: float
    separable: bool
    confidence: float
    unbounded: tuple[str, ...] = ()
    _draws: TwoWayDraws = field(repr=False, compare=False, kw_only=True)
    _model_covariance: np.ndarray = field(repr=False, compare=False, kw_only=True)
    _columns: tuple[str, ...] = field(repr=False, compare=False, kw_only=True)

    def __getitem__(self, version: str) -> Rating:
        for rating in self.ratings:
            if rating.version == version:
                return rating
        raise DataError(f"{version} has no rating; rated are {', '.join(self._columns)}.")

    def difference(self, version: str, other: str) -> Interval:
        """Strength of ``version`` minus that of ``other`` in nats: narrower than two intervals side by side."""
        value = self[version].strength.value - self[other].strength.value
        direction = self._contrasts([(version, other)])
        return _intervals(
            np.array([value]), direction, self._draws, self._model_covariance, self.votes, self.confidence
        )[0]

    def standard_error(self, version: str, other: str) -> tuple[float, float]:
        """Standard error in nats of ``difference``, with the votes clustered and were they all independent."""
        self[version], self[other]
        direction = self._contrasts([(version, other)])
        alone = float((direction @ self._model_covariance @ direction.T)[0, 0])
        return math.sqrt(max(float(self._draws.variances(direction)[0]), alone)), math.sqrt(alone)

    def ranks(self, among: Collection[str] | None = None) -> dict[str, tuple[int, int]]:
        """Best and worst rank of each version that its differences from all others leave open, at ``confidence``;
        ``among`` only some versions, if given.

        A version is above another when their difference's interval, at Bonferroni's level for the versions - 1
        comparisons, lies above 0 (Mogstad, Romano, Shaikh and Wilhelm 2024, Review of Economic Studies 91(1))."""
        kept = [rating for rating in self.ratings if among is None or rating.version in among]
        names, strengths = [rating.version for rating in kept], np.array([rating.strength.value for rating in kept])
        level = 1 - (1 - self.confidence) / max(1, len(names) - 1)
        found = {}
        for at, version in enumerate(names):
            others = [i for i in range(len(names)) if i != at]
            gaps = _intervals(
                strengths[others] - strengths[at], self._contrasts([(names[i], version) for i in others]), self._draws,
                self._model_covariance, self.votes, level,
            )  # fmt: skip
            found[version] = 1 + sum(gap.low > 0 for gap in gaps), len(names) - sum(gap.high < 0 for gap in gaps)
        return found

    def _contrasts(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """(K, D) directions whose products with the parameters are the differences of the pairs."""
        directions = np.zeros((len(pairs), self._draws.by_cell.shape[1]))
        for row, (version, other) in enumerate(pairs):
            directions[row, self._columns.index(version)] += 1
            directions[row, self._columns.index(other)] -= 1
        return directions


def _intervals(
    values: np.ndarray, directions: np.ndarray, draws: TwoWayDraws, covariance: np.ndarray, votes: int,
    confidence: float,
) -> list[Interval]:  # fmt: skip
    quantile = float(stats.t.ppf(0.5 + confidence / 2, draws.degrees_of_freedom))
    # Resamples of a version that never lost hardly vary; the model's own variance is the floor there.
    model = np.einsum("kd,de,ke->k", directions, covariance, directions)
    halves = quantile * np.sqrt(np.maximum(draws.variances(directions), model)) if len(values) else []
    return [
        Interval(float(value), float(value - half), float(value + half), n=votes, confidence=confidence)
        for value, half in zip(values, halves, strict=True)
    ]


def islands(votes: VoteArrays) -> list[tuple[int, ...]]:
    """Groups of positions of versions that some chain of votes connects, the group with most versions first."""
    count = len(votes.versions)
    met = sparse.csr_array((np.ones(len(votes)), (votes.left, votes.right)), shape=(count, count))
    number, label = csgraph.connected_components(met, directed=True, connection="weak")
    groups = [tuple(np.flatnonzero(label == i).tolist()) for i in range(number)]
    return sorted(groups, key=lambda group: (-len(group), group))


def _unbounded(matchups: davidson.Matchups, counts: np.ndarray) -> tuple[int, ...]:
    """Versions outside the largest group in which each, by some chain, beat or drew with each other (Ford 1957,
    American Mathematical Monthly 64(8)): the data alone bound no difference from that group."""
    size = matchups.versions
    beaten = np.zeros((size, size))
    beaten[matchups.left, matchups.right] += counts[:, 0] + counts[:, 2]
    beaten[matchups.right, matchups.left] += counts[:, 1] + counts[:, 2]
    number, label = csgraph.connected_components(sparse.csr_array(beaten), directed=True, connection="strong")
    if number == 1:
        return ()
    return tuple(np.flatnonzero(label != np.bincount(label).argmax()).tolist())


def _check(votes: VoteArrays, ridge: float, confidence: float, rounds: int) -> None:
    check_bootstrap(confidence, rounds)
    if not (ridge >= 0 and math.isfinite(ridge)):
        raise DataError(f"ridge is {ridge}; it must be 0 or above. 0.1 is the default.")
    if not len(votes):
        raise DataError("No counted vote among those given: ratings need at least one.")
    if len(groups := islands(votes)) > 1:
        named = "; ".join(", ".join(votes.versions[i] for i in group) for group in groups)
        raise DataError(
            f"The comparisons fall into {len(groups)} groups with no vote between them ({named}); ratings need one "
            "connected group. Collect votes across the groups, or rate each apart."
        )


def rate_votes(
    votes: VoteArrays, *, ridge: float = 0.1, side: bool = True, confidence: float = 0.95, rounds: int = 400,
    seed: int = 0,
) -> Ratings:  # fmt: skip
    """Davidson ratings of every version in the votes, with intervals clustered by rater and prompt; both bad is a tie.

    ``ridge`` is the precision of a normal prior around 0 on each strength (0.1: a standard deviation of 3.2 nats);
    ``side`` fits the left clip's advantage. Raises DataError without votes, on versions that no vote connects, and,
    at ridge 0, on strengths the votes leave unbounded."""
    _check(votes, ridge, confidence, rounds)
    if len(np.unique(np.concatenate([votes.left, votes.right]))) < len(votes.versions):
        votes = votes.take(np.arange(len(votes)))
    matchups, columns = davidson.aggregate(votes, side=side)
    counts = davidson.count_columns(columns, matchups)
    unbounded = tuple(votes.versions[i] for i in _unbounded(matchups, counts))
    if unbounded and ridge == 0:
        raise DataError(
            "Some versions never lost against the rest, so their ratings are unbounded without a ridge. Collect more "
            "votes, or set ridge above 0 (0.1 is the default)."
        )
    pull = davidson.penalty(matchups, ridge)
    beta = davidson.fit(np.zeros(matchups.dimensions), matchups, counts[None], pull)[0]

    def refit(totals: np.ndarray) -> np.ndarray:
        resampled = np.zeros((len(totals), counts.size))
        resampled[:, : totals.shape[1]] = totals  # the last columns may have no vote
        return davidson.fit(beta, matchups, resampled.reshape(-1, *counts.shape), pull)

    draws = two_way_draws(
        columns, integer_codes(votes.rater), integer_codes(votes.prompt), refit, rounds=rounds, seed=seed, robust=True
    )
    version_count = len(votes.versions)
    centring = np.eye(len(beta))
    centring[:version_count, :version_count] -= 1 / version_count
    _, hessian = davidson.derivatives(beta[None], matchups, counts[None], pull)
    covariance = centring @ np.linalg.inv(hessian[0] + 1e-9 * np.eye(len(beta))) @ centring
    found = _intervals(beta, np.eye(len(beta)), draws, covariance, len(votes), confidence)
    rated = [Rating(name, x, _elo(x)) for name, x in zip(votes.versions, found, strict=False)]
    return Ratings(
        ratings=tuple(sorted(rated, key=lambda r: (-r.strength.value, r.version))),
        side=found[version_count] if side else None,
        tie=float(beta[-1]) if matchups.tie else None,
        votes=len(votes),
        raters=draws.raters,
        prompts=draws.prompts,
        ridge=ridge,
        separable=bool(unbounded),
        confidence=confidence,
        unbounded=unbounded,
        _draws=draws,
        _model_covariance=covariance,
        _columns=votes.versions,
    )


def _elo(strength: Interval) -> Interval:
    value, low, high = (ELO_CENTRE + ELO_PER_NAT * x for x in (strength.value, strength.low, strength.high))
    return Interval(value, low, high, n=strength.n, confidence=strength.confidence)


def fit_ratings(
    comparisons: Sequence[Comparison], *, ridge: float = 0.1, side: bool = True, both_bad: str = "tie",
    confidence: float = 0.95, rounds: int = 400, seed: int = 0,
) -> Ratings:  # fmt: skip
    """``rate_votes`` of comparisons. ``both_bad`` says what BOTH_BAD means: "tie" or "drop". SKIP and FAULT never
    count. Raises DataError as ``rate_votes`` does, and on another ``both_bad``."""
    if both_bad not in ("tie", "drop"):
        raise DataError(f"both_bad is {both_bad!r}; it must be 'tie' or 'drop'.")
    votes = VoteArrays.from_comparisons(comparisons)
    if both_bad == "drop":
        votes = votes.take(votes.outcome != BOTH_BAD)
    if not len(votes):
        raise DataError(f"No counted vote among the {len(comparisons)} given: ratings need at least one.")
    return rate_votes(votes, ridge=ridge, side=side, confidence=confidence, rounds=rounds, seed=seed)
