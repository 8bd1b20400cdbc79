"""Simulated listeners die while they vote: the rest is cast by those who would have cast it, and as they would."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from alignment.circle import listen
from alignment.circle.workspace import Workspace
from alignment.clips import ClipStore
from alignment.db.engine import open_database
from alignment.db.migrate import upgrade
from alignment.db.tables import AssignmentRow, ListeningSessionRow, RaterRow, VoteTable
from alignment.domain import Clip
from alignment.simulation.captions import ATTRIBUTE_VALUES
from alignment.simulation.listeners import load_listeners
from alignment.votes import VoteService
from tests.database_support import fill
from tests.nightly_support import Killed, cast

TABLES = (RaterRow, ListeningSessionRow, AssignmentRow, VoteTable)
RATERS, PAIRS, PER_PAIR = 5, 7, 3


class Heard:
    """A judgement of a clip that is asked for nothing and as clean as given."""

    attributes = {name: dict.fromkeys(values, 1 / len(values)) for name, values in ATTRIBUTE_VALUES.items()}

    def __init__(self, cleanliness: float) -> None:
        self.cleanliness = cleanliness

    def adherence(self, tags: dict[str, str]) -> float:
        return 0.5


class Hall:
    """A study of seven pairs in a database of its own, and listeners who may be asked again."""

    def __init__(self, folder: Path, empty: Path) -> None:
        folder.mkdir()
        shutil.copyfile(empty, folder / "attune.db")
        self.database = open_database(f"sqlite:///{folder / 'attune.db'}")
        self.ws = Workspace(self.database, ClipStore(str(folder / "store")), "a secret for tests")
        made = fill(self.database, battles=PAIRS)
        self.heard = {clip.audio_sha256: Heard(self.clean(clip)) for clip in made.clips}

    @staticmethod
    def clean(clip: Clip) -> float:
        return {"base": 0.6, "tuned": 0.5}[clip.version]

    def vote(self, **more: Any) -> int:
        asked = {"votes": 18, "per_pair": PER_PAIR, "resume": True, "seed": 11} | more
        return listen.simulate_votes(
            self.ws, "study", load_listeners(), judge=None, raters=RATERS, heard=self.heard, **asked
        )

    def votes(self) -> list[Any]:
        return cast(self.ws, "study", lambda clip: clip.version)

    def left(self) -> tuple[list[Any], list[int]]:
        """The votes without what differs from home to home, and the rows of each table."""
        with self.database.session(write=False) as s:
            rows = [s.scalar(sa.select(sa.func.count()).select_from(table)) for table in TABLES]
        return self.votes(), rows


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "attune.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def hall(tmp_path: Path, empty: Path) -> Iterator[Callable[[str], Hall]]:
    made: list[Hall] = []

    def make(name: str) -> Hall:
        made.append(Hall(tmp_path / name, empty))
        return made[-1]

    yield make
    for one in made:
        one.database.close()


def die(patch: pytest.MonkeyPatch, step: str, *, after: bool, number: int) -> None:
    """The so-manieth call of this step is the last thing that happens, or does not happen any more."""
    plain, calls = getattr(VoteService, step), itertools.count(1)

    def last(self: VoteService, *args: Any, **more: Any) -> Any:
        now = next(calls) == number
        if now and not after:
            raise Killed
        found = plain(self, *args, **more)
        if now:
            raise Killed
        return found

    patch.setattr(VoteService, step, last)


def moments() -> Iterator[tuple[str, bool, int]]:
    """(step, after it, which call): while the panel gathers, then in turn around each step of a vote. A life casts one
    vote at the most, most cast none."""
    yield "enrol_rater", True, 3
    for _ in range(RATERS - 2):  # two have sat down already
        yield from (("open_session", after, 1) for after in (False, True))
    yield from itertools.cycle(
        (step, after, 1) for step in ("enrol_rater", "next_assignment", "record_vote") for after in (False, True)
    )


def lives(hall: Hall, **more: Any) -> int:
    """Kills until the same call, again and again, came to its end."""
    for kills, (step, after, number) in enumerate(moments()):
        with pytest.MonkeyPatch.context() as patch:
            die(patch, step, after=after, number=number)
            try:
                hall.vote(**more)
            except Killed:
                continue
            if step == "next_assignment" or step == "record_vote":
                return kills
            raise AssertionError(f"Nobody died at {step}.")
    raise AssertionError


def test_listeners_killed_anywhere_cast_the_votes_of_an_undisturbed_night(hall: Callable[[str], Hall]) -> None:
    whole, killed = hall("whole"), hall("killed")
    assert whole.vote() == 18
    votes, rows = whole.left()
    assert len(votes) == 18 and rows == [5, 5, 18, 18] and len({vote[4] for vote in votes}) >= 3
    assert lives(killed) >= 100
    assert killed.left() == (votes, rows)
    assert killed.vote() == 0 and killed.left() == (votes, rows)  # all of them are there


def test_listeners_who_have_heard_all_they_may_stay_away_after_a_kill_as_well(hall: Callable[[str], Hall]) -> None:
    whole, killed = hall("whole"), hall("killed")
    assert whole.vote(votes=99) == PAIRS * PER_PAIR
    assert lives(killed, votes=99) >= 100 and killed.left() == whole.left()


def test_a_pair_whose_hour_is_over_is_served_with_the_sides_it_had(hall: Callable[[str], Hall]) -> None:
    whole, killed = hall("whole"), hall("killed")
    whole.vote()
    for number in (2, 3, 5):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            die(patch, "record_vote", after=False, number=number)
            killed.vote()
        with killed.database.session() as s:
            s.execute(sa.update(AssignmentRow).values(expires_at=AssignmentRow.served_at))
    killed.vote()
    assert killed.left() == whole.left()


def test_two_looks_have_panels_of_their_own_and_a_kill_in_the_second_leaves_the_first_alone(
    hall: Callable[[str], Hall],
) -> None:
    whole, killed = hall("whole"), hall("killed")
    for one in (whole, killed):
        assert one.vote(votes=8, per_pair=None, seed=1) == 8
    assert whole.vote(votes=6, per_pair=None, seed=3) == 6
    assert lives(killed, votes=6, per_pair=None, seed=3) >= 40
    assert killed.left() == whole.left() and killed.left()[1] == [10, 10, 14, 14]


def test_votes_asked_for_without_resume_are_cast_anew_by_the_same_listeners(hall: Callable[[str], Hall]) -> None:
    """As `attune simulate-votes` does, which adds so many votes each time, in sessions of their own."""
    one, other = hall("one"), hall("other")
    for each in (one, other):
        assert each.vote(votes=9, resume=False) == 9
    assert one.left() == other.left()
    assert one.vote(votes=9, resume=False) == 9 and one.left()[1] == [5, 10, 18, 18]
