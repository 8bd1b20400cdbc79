"""Ratings of versions from comparisons: Davidson's model with ties, a side intercept and a ridge.

With u = (theta_left - theta_right + side) / 2 the log-odds of (left wins, right wins, tie) are (u, -u, tie): Davidson
(1970, JASA 65, 317-328), side term as in Davidson and Beaver (1977, Biometrics 33, 693-702). Intervals come from the
same two-way clustered bootstrap as every other interval here, each resample warm-started at the fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import optimize, sparse, stats
from scipy.sparse import csgraph
from scipy.special import logsumexp, softmax

from alignment.domain import Comparison, Outcome
from alignment.errors import DataError
from alignment.evaluation.intervals import Interval, TwoWayDraws, check_bootstrap, label_codes, two_way_draws
from alignment.evaluation.win_rate import WinRate, counted, win_rate

__all__ = ["ELO_PER_NAT", "Rating", "Ratings", "WinRate", "fit_ratings", "win_rate"]

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

    ``separable`` is True when some versions never lost, nor drew, against the rest: only the ridge keeps their
    strengths finite, so treat them as provisional.
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
    _draws: TwoWayDraws = field(repr=False, compare=False)
    _model_covariance: np.ndarray = field(repr=False, compare=False)
    _columns: tuple[str, ...] = field(repr=False, compare=False)

    def __getitem__(self, version: str) -> Rating:
        for rating in self.ratings:
            if rating.version == version:
                return rating
        raise DataError(f"{version} has no rating; rated are {', '.join(self._columns)}.")

    def difference(self, version: str, other: str) -> Interval:
        """Strength of ``version`` minus that of ``other`` in nats: narrower than two intervals side by side."""
        value = self[version].strength.value - self[other].strength.value
        direction = np.zeros(self._draws.by_cell.shape[1])
        direction[self._columns.index(version)] += 1
        direction[self._columns.index(other)] -= 1
        return _interval(value, direction, self._draws, self._model_covariance, self.votes, self.confidence)


def _interval(
    value: float, direction: np.ndarray, draws: TwoWayDraws, covariance: np.ndarray, votes: int, confidence: float
) -> Interval:
    quantile = float(stats.t.ppf(0.5 + confidence / 2, draws.degrees_of_freedom))
    # Resamples of a version that never lost hardly vary; the model's own variance is the floor there.
    half = quantile * math.sqrt(max(draws.variance(direction), float(direction @ covariance @ direction)))
    return Interval(value, value - half, value + half, n=votes, confidence=confidence)


def _check_connected(versions: list[str], comparisons: Sequence[Comparison], ridge: float) -> bool:
    """Whether the data alone leave some strength unbounded (Ford 1957). Raises DataError on separate islands."""
    position = {version: i for i, version in enumerate(versions)}
    beaten = np.zeros((len(versions), len(versions)))
    for c in comparisons:
        left, right = position[c.version_left], position[c.version_right]
        beaten[left, right] += c.credit
        beaten[right, left] += 1 - c.credit
    graph = sparse.csr_array(beaten)
    islands, label = csgraph.connected_components(graph, directed=True, connection="weak")
    if islands > 1:
        groups = "; ".join(
            ", ".join(v for v, at in zip(versions, label, strict=True) if at == i) for i in range(islands)
        )
        raise DataError(
            f"The comparisons fall into {islands} groups with no vote between them ({groups}); ratings need one "
            "connected group. Collect votes across the groups, or rate each apart."
        )
    separable = csgraph.connected_components(graph, directed=True, connection="strong")[0] > 1
    if separable and ridge == 0:
        raise DataError(
            "Some versions never lost against the rest, so their ratings are unbounded without a ridge. Collect more "
            "votes, or set ridge above 0 (0.1 is the default)."
        )
    return bool(separable)


def _design(versions: list[str], matchups: list[tuple[str, str]], side: bool, tie: bool) -> np.ndarray:
    """(M, 3, D) features of (left wins, right wins, tie) for each ordered matchup; D = versions + side + tie."""
    count = len(versions)
    features = np.zeros((len(matchups), 3, count + side + tie))
    for m, (left, right) in enumerate(matchups):
        features[m, 0, versions.index(left)] = 0.5
        features[m, 0, versions.index(right)] = -0.5
        if side:
            features[m, 0, count] = 0.5
    features[:, 1] = -features[:, 0]
    if tie:
        features[:, 2, -1] = 1.0
        return features
    return features[:, :2]


def _penalty(versions: int, dimensions: int, ridge: float) -> np.ndarray:
    """(D, D) quadratic penalty: the ridge, and one that pins the strengths' mean to 0 (it changes no likelihood)."""
    penalty = ridge * np.eye(dimensions)
    penalty[:versions, :versions] += 1.0
    return penalty


def _loss_and_gradient(
    beta: np.ndarray, features: np.ndarray, counts: np.ndarray, penalty: np.ndarray
) -> tuple[float, np.ndarray]:
    """Penalised negative log-likelihood in nats of counts (M, O) under strengths beta (D,), and its gradient (D,)."""
    logits = features @ beta  # (M, O)
    expected = counts.sum(axis=1, keepdims=True) * softmax(logits, axis=1)
    loss = float((counts.sum(axis=1) * logsumexp(logits, axis=1)).sum() - (counts * logits).sum())
    gradient = np.einsum("mo,mod->d", expected - counts, features)
    return loss + 0.5 * float(beta @ penalty @ beta), gradient + penalty @ beta


def _hessian(chances: np.ndarray, totals: np.ndarray, features: np.ndarray) -> np.ndarray:
    """(rounds, D, D) second derivatives of the negative log-likelihood; chances (rounds, M, O), totals (rounds, M)."""
    dimensions = features.shape[2]
    outer = np.einsum("mod,moe->mode", features, features).reshape(-1, dimensions * dimensions)
    expected = (totals[..., None] * chances).reshape(len(totals), -1)
    mean = np.einsum("rmo,mod->rmd", chances, features)
    spread = np.einsum("rm,rmd,rme->rde", totals, mean, mean)
    return (expected @ outer).reshape(-1, dimensions, dimensions) - spread


def _newton(start: np.ndarray, features: np.ndarray, counts: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """(rounds, D) fits to counts (rounds, M, O), all rounds at once, from ``start`` (D,). Damped Newton steps."""
    rounds, dimensions = len(counts), len(start)
    beta = np.tile(start, (rounds, 1))
    # A resample may lose all ties or all losses of a version; this floor keeps the Hessian invertible there.
    penalty = penalty + 1e-6 * np.eye(dimensions)
    totals = counts.sum(axis=2)  # (rounds, M)
    for _ in range(25):
        chances = softmax(np.einsum("mod,rd->rmo", features, beta), axis=2)
        gradient = np.einsum("rmo,mod->rd", totals[..., None] * chances - counts, features) + beta @ penalty
        hessian = _hessian(chances, totals, features) + penalty
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        longest = np.abs(step).max(axis=1, keepdims=True)
        beta = np.clip(beta - step / np.maximum(1.0, longest / 2.0), -30, 30)
        if longest.max() < 1e-8:
            break
    return beta


def fit_ratings(
    comparisons: Sequence[Comparison],
    *,
    ridge: float = 0.1,
    side: bool = True,
    both_bad: str = "tie",
    confidence: float = 0.95,
    rounds: int = 400,
    seed: int = 0,
) -> Ratings:
    """Davidson ratings of every version in the comparisons, with intervals clustered by rater and prompt.

    ``ridge`` is the precision of a normal prior around 0 on each strength (0.1: a standard deviation of 3.2 nats);
    ``side`` fits the left clip's advantage; ``both_bad`` says what BOTH_BAD means: "tie" or "drop". SKIP and FAULT
    never count. Raises DataError without votes, on versions that no vote connects, and, at ridge 0, on strengths
    the votes leave unbounded.
    """
    check_bootstrap(confidence, rounds)
    if not (ridge >= 0 and math.isfinite(ridge)):
        raise DataError(f"ridge is {ridge}; it must be 0 or above. 0.1 is the default.")
    if both_bad not in ("tie", "drop"):
        raise DataError(f"both_bad is {both_bad!r}; it must be 'tie' or 'drop'.")
    kept = [c for c in counted(comparisons) if both_bad == "tie" or c.outcome is not Outcome.BOTH_BAD]
    if not kept:
        raise DataError(f"No counted vote among the {len(comparisons)} given: ratings need at least one.")
    versions = sorted({v for c in kept for v in (c.version_left, c.version_right)})
    separable = _check_connected(versions, kept, ridge)

    pairs = [(c.version_left, c.version_right) for c in kept]
    matchups = list(dict.fromkeys(pairs))
    has_ties = any(not c.outcome.is_decisive for c in kept)
    features = _design(versions, matchups, side, has_ties)  # (M, O, D)
    shape = features.shape[:2]
    outcome = np.array([{1.0: 0, 0.0: 1, 0.5: 2}[c.credit] for c in kept])
    column = label_codes(pairs) * shape[1] + outcome
    cells = (np.arange(len(kept)), column)
    votes = sparse.csr_array((np.ones(len(kept)), cells), shape=(len(kept), shape[0] * shape[1]))
    counts = np.asarray(votes.sum(axis=0), dtype=np.float64).reshape(shape)

    penalty = _penalty(len(versions), features.shape[2], ridge)
    fit = optimize.minimize(
        _loss_and_gradient,
        np.zeros(features.shape[2]),
        args=(features, counts, penalty),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-30, 30)] * features.shape[2],
        options={"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9},
    )
    beta = np.asarray(fit.x)
    draws = two_way_draws(
        votes,
        label_codes([c.rater_id for c in kept]),
        label_codes([c.prompt_id for c in kept]),
        lambda totals: _newton(beta, features, totals.reshape(-1, *shape), penalty),
        rounds=rounds,
        seed=seed,
        robust=True,
    )

    centring = np.eye(len(beta))
    centring[: len(versions), : len(versions)] -= 1 / len(versions)
    hessian = _hessian(softmax(features @ beta, axis=1)[None], counts.sum(axis=1)[None], features)[0]
    covariance = centring @ np.linalg.inv(hessian + penalty + 1e-9 * np.eye(len(beta))) @ centring

    def of(index: int) -> Interval:
        return _interval(float(beta[index]), np.eye(len(beta))[index], draws, covariance, len(kept), confidence)

    rated = []
    for index, version in enumerate(versions):
        strength = of(index)
        elo = Interval(
            *(ELO_CENTRE + ELO_PER_NAT * x for x in (strength.value, strength.low, strength.high)),
            n=len(kept),
            confidence=confidence,
        )
        rated.append(Rating(version, strength, elo))
    return Ratings(
        ratings=tuple(sorted(rated, key=lambda r: (-r.strength.value, r.version))),
        side=of(len(versions)) if side else None,
        tie=float(beta[-1]) if has_ties else None,
        votes=len(kept),
        raters=draws.raters,
        prompts=draws.prompts,
        ridge=ridge,
        separable=separable,
        confidence=confidence,
        _draws=draws,
        _model_covariance=covariance,
        _columns=tuple(versions),
    )
