"""Figures of studies, computed again only when something happened."""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from alignment.db.engine import Database
from alignment.db.figures import newest_mark
from alignment.db.studies import Study
from alignment.studies import rules_of
from alignment.study_figures import StudyFigures, study_figures

OLDEST_SECONDS = 60.0  # the last hour moves on, also without a vote
_REMEMBERED = 32


class FiguresCache:
    """At most one computation at a time: a dashboard left open must not slow the votes down."""

    def __init__(self, database: Database, *, timer: Callable[[], float] = time.monotonic) -> None:
        self._database, self._timer = database, timer
        self._kept: OrderedDict[uuid.UUID, tuple[Any, float, float, StudyFigures]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, study: Study) -> StudyFigures:
        """The study's figures, as fresh as its size allows: computing takes at most a tenth of the time."""
        with self._lock:
            found = self._kept.get(study.id)
            now = self._timer()
            if found is not None and now - found[1] < 9 * found[2]:
                return found[3]
            with self._database.session(write=False) as s:
                mark = (study.state, newest_mark(s, study.id))
            if found is not None and found[0] == mark and now - found[1] < OLDEST_SECONDS:
                return found[3]
            figures = study_figures(
                self._database, study.id, recipe=rules_of(study), state=study.state, rater_kind=study.rater_kind
            )
            self._kept[study.id] = (mark, self._timer(), self._timer() - now, figures)
            self._kept.move_to_end(study.id)
            while len(self._kept) > _REMEMBERED:
                self._kept.popitem(last=False)
            return figures
