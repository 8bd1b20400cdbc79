"""Leaderboards, computed again only when votes came in, and one at a time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alignment.db import leaderboards as records
from alignment.db.engine import Database
from alignment.db.leaderboards import Slice
from alignment.errors import DataError
from alignment.evaluation.leaderboard import Leaderboard, make_leaderboard
from alignment.evaluation.vote_arrays import VoteArrays

_REMEMBERED = 16


@dataclass(frozen=True)
class Board:
    """A leaderboard and those of its versions that simulated votes trained; ``leaderboard`` is None where no vote of
    the selection counts. ``other_kind`` votes were given by the other kind of listeners."""

    leaderboard: Leaderboard | None
    simulated: bool
    simulated_versions: tuple[str, ...] = ()
    other_kind: int = 0


class LeaderboardCache:
    """At most one computation at a time: a page left open must not slow the votes down."""

    def __init__(self, database: Database, *, timer: Callable[[], float] = time.monotonic) -> None:
        self._database, self._timer = database, timer
        self._kept: OrderedDict[Any, tuple[Any, float, float, Board]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, chosen: Slice, *, simulated: bool | None) -> Board:
        """The slice's leaderboard, as fresh as its size allows: computing takes at most a tenth of the time.

        ``simulated`` None takes people's votes where there are any. Raises NotFoundError on an unknown study, tag or
        cohort."""
        key = (chosen, simulated)
        with self._lock:
            found, now = self._kept.get(key), self._timer()
            if found is not None and now - found[1] < 9 * found[2]:
                return found[3]
            with self._database.session(write=False) as s:
                counts = records.count_votes(s, chosen)
            if found is not None and found[0] == counts:
                return found[3]
            board = self._made(chosen, counts, simulated)
            self._kept[key] = (counts, self._timer(), self._timer() - now, board)
            self._kept.move_to_end(key)
            while len(self._kept) > _REMEMBERED:
                self._kept.popitem(last=False)
            return board

    def _made(self, chosen: Slice, counts: dict[bool, int], simulated: bool | None) -> Board:
        asked = counts[False] == 0 < counts[True] if simulated is None else simulated
        with self._database.session(write=False) as s:
            c = records.load_columns(s, chosen, simulated=asked)
        other = counts[not asked]
        if not len(c):
            return Board(None, asked, other_kind=other)
        votes = VoteArrays.from_labels(c.left, c.right, c.outcome, c.rater, c.prompt, c.names)
        try:
            board = make_leaderboard(votes, simulated=asked, slice=chosen.to_json())
        except DataError:
            return Board(None, asked, other_kind=other)
        return Board(board, asked, c.simulated_versions, other)
