"""How much a rater can have heard: what their claims are held against, without ever wronging one who listened.

A person has one pair of ears. What they claim of a pair must fit, together with what they claim of all others, into
the time in which those clips were there to be heard: this is one-machine scheduling with release times (a pair's clips
were sent) and deadlines (its vote arrived), so all claims fit exactly when, for every moment a, the pairs sent at a or
later claim no more than the time from a until the newest vote (Horn 1974, the feasibility of earliest deadline first).
Every vote is checked when it arrives and is then the latest deadline, so one sweep over the release times is enough.
Subtracting whole claims of votes that arrived since a pair was sent would wrong a rater whose next pair came late.

Claims come from a player that counts in ticks of 0.05 s, so each may be a tick too long; one more slack covers clocks.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from alignment.domain import Side

TICK_SECONDS = 0.05
# A clip shorter than the minimum is heard when this much of it was: its last tick may never sound.
WHOLE = 0.95
RATERS_KEPT = 1024


def room(claims: Iterable[tuple[float, datetime]], *, since: datetime, now: datetime, slack_seconds: float) -> float:
    """The most seconds that can have been heard of a pair whose clips were there ``since``, beside the other
    ``claims``: (seconds, since when they could be heard). Negative when the others alone do not fit."""
    most = (now - since).total_seconds()
    later = 0.0
    rest: list[tuple[datetime, float]] = []
    for seconds, sent in claims:
        taken = max(0.0, seconds - TICK_SECONDS)
        if sent >= since:
            later += taken
        elif taken > 0:
            rest.append((sent, taken))
    most -= later
    for sent, taken in sorted(rest, reverse=True):
        later += taken
        most = min(most, (now - sent).total_seconds() - later)
    return most + slack_seconds


def needed_seconds(minimum: float, clip_seconds: float) -> float:
    """Distinct seconds of a clip to be heard before judging it."""
    return min(minimum, WHOLE * clip_seconds)


def capped(left: float, right: float, allowed: float) -> tuple[float, float]:
    """The claims of both sides, made smaller alike where together they exceed what is ``allowed``."""
    claimed = left + right
    if claimed <= allowed:
        return left, right
    share = max(0.0, allowed) / claimed
    return left * share, right * share


@dataclass
class Ledger:
    """What raters claimed so far, remembered between votes. Votes are only ever added, so a count that is the
    database's shows that what is remembered is all there is."""

    _raters: OrderedDict[Any, tuple[int, dict[Any, tuple[float, datetime]]]]

    def __init__(self) -> None:
        self._raters = OrderedDict()

    def get(self, rater: Any, votes: int) -> dict[Any, tuple[float, datetime]] | None:
        """The rater's claims by pair, when they are those of this many votes; else None."""
        known = self._raters.get(rater)
        return known[1] if known is not None and known[0] == votes else None

    def put(self, rater: Any, votes: int, claims: Mapping[Any, tuple[float, datetime]]) -> None:
        self._raters[rater] = (votes, dict(claims))
        self._raters.move_to_end(rater)
        while len(self._raters) > RATERS_KEPT:
            self._raters.popitem(last=False)


# (seq, type, side, media seconds, client milliseconds), as the player told them
Event = tuple[int, str, Side | None, float | None, int | None]


def coverage(events: Sequence[Event], seconds: float, *, last_seq: int) -> dict[Side, float] | None:
    """The most distinct seconds of each side that a player which did this can have played, or None when the events
    do not tell: they end before ``last_seq``, one is missing, or times run backwards.

    ``seconds`` is the length of the longer clip: the player pads the other one and loops both alike."""
    ordered = sorted(events, key=lambda event: event[0])
    if not ordered or [event[0] for event in ordered] != list(range(last_seq + 1)):
        return None
    if any(side is None or at is None or ms is None for _, _, side, at, ms in ordered):
        return None
    spans: dict[Side, list[tuple[float, float]]] = {Side.LEFT: [], Side.RIGHT: []}
    playing = False
    for event, after in zip(ordered, [*ordered[1:], None], strict=True):
        _, kind, side, at, ms = event
        if kind == "play":
            playing = True
        elif kind in ("pause", "ended"):
            playing = False
        if after is not None and after[4] < ms:
            return None  # the clock was set back, and who knows how far
        if not playing:
            continue
        # A player that was never told to stop may have gone on to the end.
        length = math.inf if after is None else (after[4] - ms) / 1000 + TICK_SECONDS
        start = min(max(0.0, at - TICK_SECONDS / 2), seconds)
        if length >= seconds:
            spans[Side(side)].append((0.0, seconds))
        elif start + length <= seconds:
            spans[Side(side)].append((start, start + length))
        else:
            spans[Side(side)] += [(start, seconds), (0.0, start + length - seconds)]
    return {side: _union(own) + TICK_SECONDS * (1 + len(own)) for side, own in spans.items()}


def _union(spans: list[tuple[float, float]]) -> float:
    total, end = 0.0, -math.inf
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
