"""An anytime-valid test of a win rate by betting: look after every vote and stop when it is clear, at no cost.

A bet on credits y in [0, 1] multiplies the wealth by 1 + bet (y - m) / m. Where each credit's mean, given all before,
is at most m, wealth is a nonnegative supermartingale, and Ville's inequality gives P(it ever reaches 1 / alpha) <=
alpha, however often one looks (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting",
JRSS B 86(1); Shafer 2021, JRSS A 184(2)). The wealth here is the mean over ``BETS`` held throughout, an e-value too;
on single decisive votes it is the mixture likelihood ratio with a uniform prior on win rates above one half.

What makes it valid is the unit of a bet: given the bets before, its mean must not depend on them. Votes of one rater,
or on one prompt, resemble each other, so ``Unit`` says what is fresh in each bet, and ``bets`` leaves out votes that
are not. How many bets there will be is free; how many votes make a bet is fixed beforehand.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignment.errors import DataError
from alignment.evaluation.vote_arrays import LEFT_WON, RIGHT_WON, VoteArrays

BETS = (np.arange(40) + 0.5) / 40  # shares of the wealth staked, evenly over (0, 1)
_MOST = 700.0  # nats: beyond it exp overflows, and nobody doubts any more
_GRID = np.linspace(0.005, 0.995, 199)  # win rates tried for the confidence sequence


class Unit(enum.StrEnum):
    """What each bet has that no bet before had, and so for whom the test speaks.

    VOTE: a fresh pair of clips, one vote each. PROMPT: a fresh prompt, with several votes. Both speak for the raters
    who voted: they must take turns, or be drawn by chance, and the null hypothesis is that *they* do not prefer the
    candidate. RATER: a fresh rater, on prompts that no bet before had; it speaks for the raters of whom these are a
    sample, and needs some dozens of them."""

    VOTE = "vote"
    PROMPT = "prompt"
    RATER = "rater"


def bets(credits: np.ndarray, rater: np.ndarray, prompt: np.ndarray, unit: Unit, *, size: int = 1) -> np.ndarray:
    """(B,) mean credits in [0, 1], a bet each, in the order in which they were complete.

    credits (n,) of the candidate, 0.5 a tie, in the order of voting; rater, prompt (n,) codes. ``size`` is the number
    of votes that make a bet of PROMPT or RATER; a bet takes its first ``size`` votes and waits until they are there,
    for a bet settled early when it looks well would not be fair. Raises DataError on a size below 1."""
    if size < 1:
        raise DataError(f"A bet of {size} votes; it must be 1 vote or more, fixed before the study.")
    unit = Unit(unit)
    size = 1 if unit is Unit.VOTE else size
    found: list[float] = []
    if unit is Unit.RATER:
        owner: dict[int, int] = {}  # a prompt belongs to the rater who was first on it
        fresh = [owner.setdefault(p, r) == r for p, r in zip(prompt.tolist(), rater.tolist(), strict=True)]
        keys = rater
    else:
        fresh, keys = [True] * len(credits), prompt
    filled: dict[int, list[float]] = {}
    for key, credit, usable in zip(keys.tolist(), credits.tolist(), fresh, strict=True):
        block = filled.setdefault(key, [])
        if not usable or len(block) >= size:
            continue
        block.append(credit)
        if len(block) == size:
            found.append(sum(block) / size)
    return np.array(found)


def log_wealth(credits: np.ndarray, null: float | np.ndarray = 0.5) -> np.ndarray:
    """(..., B) log of the wealth after each bet on credits (..., B) in [0, 1], against a mean of at most ``null``.

    ``null`` (...) in (0, 1). exp of it is an e-value at any time; exp of minus its largest an anytime-valid p."""
    null = np.asarray(null, dtype=np.float64)
    edge = (credits - null[..., None]) / null[..., None]
    total = np.full(edge.shape, -np.inf)
    for bet in BETS:
        total = np.logaddexp(total, np.cumsum(np.log1p(bet * edge), axis=-1))
    return total - math.log(len(BETS))


@dataclass(frozen=True)
class Sequential:
    """Where a sequential test stands. ``e_value`` is the largest wealth so far against "the candidate does not win more
    than half", ``against_candidate`` the same against "it does not lose more than half"; each alone exceeds 1 / alpha
    in at most a share alpha of all studies in which its hypothesis is true.

    low, high: the win rate's confidence sequence, valid at all times together at ``confidence``. ``n`` bets were
    settled out of ``votes`` counted votes, ``votes_used`` of them in these bets."""

    unit: Unit
    size: int
    value: float
    low: float
    high: float
    n: int
    votes: int
    votes_used: int
    e_value: float
    against_candidate: float
    alpha: float
    confidence: float
    crossed_at: int | None  # the bet after which the candidate had won, from 1

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "open"; what came first stays."""
        if self.crossed_at is not None:
            return "better"
        return "worse" if self.against_candidate >= 1 / self.alpha else "open"


def sequential_test(
    credits: np.ndarray, rater: np.ndarray, prompt: np.ndarray, *, unit: Unit, size: int = 1, alpha: float = 0.05,
    confidence: float = 0.95,
) -> Sequential:  # fmt: skip
    """The test of "the candidate wins more than half" on its credits (n,) so far, in the order of voting.

    Run it as often as you like, with the same unit, size and alpha. Raises DataError on an alpha or confidence outside
    (0, 1), a credit outside [0, 1], or columns of different lengths."""
    if not 0 < alpha < 1 or not 0 < confidence < 1:
        raise DataError(
            f"alpha is {alpha} and confidence {confidence}; both lie between 0 and 1. 0.05, 0.95 are usual."
        )
    credits = np.asarray(credits, dtype=np.float64)
    if not len(credits) == len(rater) == len(prompt):
        raise DataError("Credits, raters and prompts differ in number; give one of each for every vote.")
    if len(credits) and not (0 <= credits.min() and credits.max() <= 1):
        raise DataError("A credit is outside 0 to 1; a win is 1, a tie 0.5, a loss 0.")
    placed = bets(credits, rater, prompt, unit, size=size)
    size = 1 if Unit(unit) is Unit.VOTE else size
    up, down = log_wealth(placed), log_wealth(1 - placed)
    limit = -math.log(alpha)
    crossed, fell = (np.flatnonzero(path >= limit) for path in (up, down))
    # Whichever crossed first decided the study; what came after was not waited for.
    better = bool(len(crossed)) and not (len(fell) and fell[0] < crossed[0])
    low, high = confidence_sequence(placed, confidence)
    return Sequential(
        unit=Unit(unit), size=size, value=float(placed.mean()) if len(placed) else 0.5, low=low, high=high,
        n=len(placed), votes=len(credits), votes_used=len(placed) * size,
        e_value=math.exp(min(up.max(initial=0.0), _MOST)),
        against_candidate=math.exp(min(down.max(initial=0.0), _MOST)),
        alpha=alpha, confidence=confidence, crossed_at=int(crossed[0]) + 1 if better else None,
    )  # fmt: skip


def confidence_sequence(credits: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) for the mean of the bets' credits (B,): means that no bet against them has yet made rich, to half a
    point. At all times together the true mean is inside with this confidence. (0, 1) without a bet."""
    limit = math.log(2 / (1 - confidence))  # half of alpha for either side
    if not len(credits):
        return 0.0, 1.0
    tried = np.broadcast_to(credits, (len(_GRID), len(credits)))
    too_low = log_wealth(tried, _GRID).max(axis=1) >= limit
    too_high = log_wealth(1 - tried, 1 - _GRID).max(axis=1) >= limit
    low = float(_GRID[too_low].max()) if too_low.any() else 0.0
    high = float(_GRID[too_high].min()) if too_high.any() else 1.0
    return min(low, high), max(low, high)


def credits_of(votes: VoteArrays, candidate: str, opponent: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(credits of the candidate, raters, prompts) of the votes between the two, in their order; ties and both bad are
    0.5. Raises DataError on a version without votes among these."""
    for name in (candidate, opponent):
        if name not in votes.versions:
            raise DataError(f"{name} has no vote here; voted on are {', '.join(votes.versions) or 'no versions'}.")
    one, two = votes.versions.index(candidate), votes.versions.index(opponent)
    rows = ((votes.left == one) & (votes.right == two)) | ((votes.left == two) & (votes.right == one))
    left = np.where(votes.outcome == LEFT_WON, 1.0, np.where(votes.outcome == RIGHT_WON, 0.0, 0.5))
    credits = np.where(votes.left == one, left, 1 - left)
    return credits[rows], votes.rater[rows], votes.prompt[rows]


def next_alpha(spent: Sequence[float], *, budget: float = 0.05, share: float = 0.1) -> float:
    """What the next candidate's test may spend: ``share`` of what is left of the budget.

    ``spent`` are the alphas of all candidates before, promoted or not. With all of them false, the chance that any is
    ever promoted is at most ``budget`` by the union bound, for any number of nights; nights far on test hardly at all,
    so start a new budget on purpose when you mean to. Raises DataError when more was spent than there is."""
    if not 0 < budget < 1 or not 0 < share <= 1:
        raise DataError(
            f"An alpha budget of {budget}, spent by {share} a time; the first lies in 0 to 1, so the second."
        )
    left = budget - math.fsum(spent)
    if any(alpha < 0 for alpha in spent) or left < -1e-12:
        raise DataError(
            f"The candidates have spent {math.fsum(spent):g} of an alpha budget of {budget:g}; open a new budget."
        )
    return max(0.0, left) * share
