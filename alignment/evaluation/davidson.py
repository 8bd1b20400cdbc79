"""Davidson's model of comparisons with ties, fitted by Newton's method to many sets of counts at once.

With u = (theta_left - theta_right + side) / 2 the log-odds of (left wins, right wins, tie) are (u, -u, tie): Davidson
(1970, JASA 65, 317-328), side term as in Davidson and Beaver (1977, Biometrics 33, 693-702). Votes enter as counts of
each ordered pair of versions, which are sufficient: a million votes over 50 versions are 2,450 rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from alignment.evaluation.vote_arrays import LEFT_WON, RIGHT_WON, TIED, VoteArrays

LARGEST = 30.0  # a strength beyond this is odds of e^30: the votes leave it unbounded
_STEPS = 100
_CHUNK_CELLS = 8_000_000  # numbers held at once in one array: 64 MB


@dataclass(frozen=True)
class Matchups:
    """The ordered pairs of versions that met. left, right (M,): positions of versions; D parameters = strengths,
    then the side term, then the tie term, the last two only where ``side`` and ``tie`` say so."""

    versions: int
    left: np.ndarray
    right: np.ndarray
    side: bool
    tie: bool

    @property
    def dimensions(self) -> int:
        return self.versions + self.side + self.tie

    @property
    def incidence(self) -> sparse.csr_array:
        """(versions, M): 1 where the version was left, -1 where it was right."""
        rows, columns = np.concatenate([self.left, self.right]), np.tile(np.arange(len(self.left)), 2)
        signs = np.repeat([1.0, -1.0], len(self.left))
        return sparse.csr_array((signs, (rows, columns)), shape=(self.versions, len(self.left)))


def aggregate(votes: VoteArrays, *, side: bool) -> tuple[Matchups, np.ndarray]:
    """The ordered pairs that met, and for each vote the column of the (M, 3) counts, flattened, that it adds to: its
    pair's left won, right won, or neither (a tie or both bad)."""
    met, pair = np.unique(votes.left.astype(np.int64) * len(votes.versions) + votes.right, return_inverse=True)
    left, right = np.divmod(met, len(votes.versions))
    tie = bool((votes.outcome >= TIED).any())
    return Matchups(len(votes.versions), left, right, side, tie), pair * 3 + np.minimum(votes.outcome, TIED)


def count_columns(columns: np.ndarray, matchups: Matchups) -> np.ndarray:
    """(M, 3) counts of the columns (n,) that ``aggregate`` gave."""
    return np.bincount(columns, minlength=3 * len(matchups.left)).reshape(-1, 3).astype(np.float64)


def penalty(matchups: Matchups, ridge: float) -> np.ndarray:
    """(D, D) quadratic penalty: the ridge, one that pins the strengths' mean to 0 (it changes no likelihood), and a
    floor that keeps the Hessian invertible where a resample lost all ties or all losses of a version."""
    matrix = (ridge + 1e-6) * np.eye(matchups.dimensions)
    matrix[: matchups.versions, : matchups.versions] += 1.0
    return matrix


def _chances(beta: np.ndarray, matchups: Matchups) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each round and matchup, (rounds, M): u, log of the summed odds, chance of left less that of right, chance of
    a tie; beta (rounds, D)."""
    u = beta[:, matchups.left] - beta[:, matchups.right]
    if matchups.side:
        u += beta[:, [matchups.versions]]
    u *= 0.5
    left = np.exp(u)
    right = 1.0 / left
    odds = left + right
    if not matchups.tie:
        return u, np.log(odds), (left - right) / odds, np.zeros_like(u)
    tie = np.exp(beta[:, -1:])
    odds += tie
    return u, np.log(odds), (left - right) / odds, tie / odds


def loss(beta: np.ndarray, matchups: Matchups, counts: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """(rounds,) penalised negative log-likelihood in nats of counts (rounds, M, 3) under beta (rounds, D)."""
    u, log_odds, _, _ = _chances(beta, matchups)
    value = (counts.sum(axis=2) * log_odds).sum(axis=1)
    value -= ((counts[..., LEFT_WON] - counts[..., RIGHT_WON]) * u).sum(axis=1)
    if matchups.tie:
        value -= counts[..., TIED].sum(axis=1) * beta[:, -1]
    return value + 0.5 * np.einsum("rd,de,re->r", beta, pull, beta)


def derivatives(
    beta: np.ndarray, matchups: Matchups, counts: np.ndarray, pull: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient (rounds, D) and Hessian (rounds, D, D) of ``loss``."""
    rounds, size, v = len(beta), matchups.dimensions, matchups.versions
    _, _, lead, tie = _chances(beta, matchups)
    totals = counts.sum(axis=2)
    to_versions = matchups.incidence
    slope = 0.5 * (totals * lead - (counts[..., LEFT_WON] - counts[..., RIGHT_WON]))
    curve = 0.25 * totals * (1.0 - tie - lead**2)
    gradient = beta @ pull
    hessian = np.zeros((rounds, size, size))
    among = np.zeros((rounds, v * v))
    among[:, matchups.left * v + matchups.right] = -curve
    among = among.reshape(rounds, v, v)
    hessian[:, :v, :v] = among + among.transpose(0, 2, 1)
    diagonal = np.arange(v)
    hessian[:, diagonal, diagonal] -= hessian[:, :v, :v].sum(axis=2)
    gradient[:, :v] += (to_versions @ slope.T).T
    if matchups.side:
        gradient[:, v] += slope.sum(axis=1)
        hessian[:, v, v] = curve.sum(axis=1)
        hessian[:, :v, v] = hessian[:, v, :v] = (to_versions @ curve.T).T
    if matchups.tie:
        cross = -0.5 * totals * lead * tie
        gradient[:, -1] += (totals * tie - counts[..., TIED]).sum(axis=1)
        hessian[:, -1, -1] = (totals * tie * (1.0 - tie)).sum(axis=1)
        hessian[:, :v, -1] = hessian[:, -1, :v] = (to_versions @ cross.T).T
        if matchups.side:
            hessian[:, v, -1] = hessian[:, -1, v] = cross.sum(axis=1)
    return gradient, hessian + pull


def fit(start: np.ndarray, matchups: Matchups, counts: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """(rounds, D) strengths of least ``loss`` for counts (rounds, M, 3), from ``start`` (D,).

    Newton steps no longer than 2, halved where they would raise the loss; it is convex, so that ends at its floor."""
    found = np.empty((len(counts), matchups.dimensions))
    chunk = max(1, _CHUNK_CELLS // max(3 * len(matchups.left), matchups.dimensions**2))
    for at in range(0, len(counts), chunk):
        found[at : at + chunk] = _newton(start, matchups, counts[at : at + chunk], pull)
    return found


def _newton(start: np.ndarray, matchups: Matchups, counts: np.ndarray, pull: np.ndarray) -> np.ndarray:
    beta = np.tile(start, (len(counts), 1))
    value = loss(beta, matchups, counts, pull)
    for _ in range(_STEPS):
        gradient, hessian = derivatives(beta, matchups, counts, pull)
        step = -np.linalg.solve(hessian, gradient[..., None])[..., 0]
        step *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
        step = np.clip(beta + step, -LARGEST, LARGEST) - beta
        longest = float(np.abs(step).max())
        after = loss(beta + step, matchups, counts, pull)
        while (worse := after > value + 1e-9 * (1.0 + np.abs(value))).any():
            step[worse] *= 0.5
            after[worse] = loss(beta[worse] + step[worse], matchups, counts[worse], pull)
        beta, value = beta + step, after
        if longest < 1e-7:  # the next step would be its square
            break
    return beta
