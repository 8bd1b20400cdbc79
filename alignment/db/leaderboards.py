"""Queries about leaderboards: the votes of a slice as columns, and a fit of ratings as recorded."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from alignment.db.base import utcnow, uuid7
from alignment.db.studies import get_study
from alignment.db.tables import (
    AssignmentRow,
    BattleRow,
    ClipRow,
    LeaderboardEntryRow,
    LeaderboardRunRow,
    ListeningSessionRow,
    PromptRow,
    RaterRow,
    VersionRow,
    VoteTable,
)
from alignment.domain import ANCHOR_BASE, BattleKind, Outcome, RaterKind
from alignment.errors import DataError, NotFoundError

_FETCHED = 20_000  # rows at a time


@dataclass(frozen=True)
class Slice:
    """Which votes a leaderboard counts. ``tag`` is ``name=value`` or a value of any tag of the prompt; ``cohort`` the
    rater's cohort or one of the parts between its commas; ``since`` inclusive, ``until`` not."""

    studies: tuple[str, ...] = ()
    tag: str | None = None
    cohort: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """What was asked, empty for everything."""
        values = {
            "studies": list(self.studies), "tag": self.tag, "cohort": self.cohort,
            "since": self.since.isoformat() if self.since else None,
            "until": self.until.isoformat() if self.until else None,
        }  # fmt: skip
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True)
class VoteColumns:
    """Counted votes in the order of their saving, a list a column, every id as text without dashes. Versions are in
    ``names`` by id; ``simulated_versions`` are those among them that simulated votes trained."""

    outcome: list[Outcome]
    left: list[str]
    right: list[str]
    rater: list[str]
    prompt: list[str]
    names: Mapping[str, str]
    simulated_versions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.outcome)


def _text(column: Any, name: str) -> Any:
    """An id as the driver has it: to make a UUID of each of a million would take longer than to read them."""
    return sa.type_coerce(column, sa.String).label(name)


def _key(value: Any) -> str:
    return str(value).replace("-", "")


def count_votes(s: Session, chosen: Slice) -> dict[bool, int]:
    """How many votes of the slice's studies and dates simulated raters (True) and people (False) gave; tag and cohort
    are not looked at, nor whether a vote counts."""
    query = _joined(sa.select(RaterRow.kind, sa.func.count())).where(*_conditions(s, chosen)).group_by(RaterRow.kind)
    found = {kind == RaterKind.SIMULATED: number for kind, number in s.execute(query)}
    return {simulated: found.get(simulated, 0) for simulated in (True, False)}


def _joined(query: sa.Select[Any]) -> sa.Select[Any]:
    return (
        query.select_from(VoteTable)
        .join(AssignmentRow, VoteTable.assignment_id == AssignmentRow.id)
        .join(BattleRow, AssignmentRow.battle_id == BattleRow.id)
        .join(ListeningSessionRow, VoteTable.session_id == ListeningSessionRow.id)
        .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
    )


def _conditions(s: Session, chosen: Slice) -> list[sa.ColumnElement[bool]]:
    found = [BattleRow.kind == BattleKind.NORMAL, RaterRow.status != "withdrawn"]
    if chosen.studies:
        found.append(BattleRow.study_id.in_([get_study(s, name).id for name in chosen.studies]))
    if chosen.since is not None:
        found.append(VoteTable.created_at >= chosen.since)
    if chosen.until is not None:
        found.append(VoteTable.created_at < chosen.until)
    return found


def _tagged(s: Session, tag: str) -> set[str]:
    name, equals, value = tag.partition("=")
    found = set()
    known: set[str] = set()
    for prompt, tags in s.execute(sa.select(_text(PromptRow.id, "prompt"), PromptRow.tags)):
        known |= {f"{k}={v}" for k, v in tags.items()}
        if (str(tags.get(name)) == value) if equals else (tag in map(str, tags.values())):
            found.add(_key(prompt))
    if not found:
        some = ", ".join(sorted(known)[:8]) + (" ..." if len(known) > 8 else "")
        raise NotFoundError(f"No prompt is tagged {tag}; tags are {some or 'not given to any prompt'}.")
    return found


def _cohort(s: Session, cohort: str) -> set[str]:
    rows = s.execute(sa.select(_text(RaterRow.id, "rater"), RaterRow.cohort).where(RaterRow.cohort.is_not(None))).all()
    found = {_key(rater) for rater, own in rows if cohort == own or cohort in (part.strip() for part in own.split(","))}
    if not found:
        known = sorted({own for _, own in rows})
        some = "; ".join(known[:8]) + (" ..." if len(known) > 8 else "")
        raise NotFoundError(f"No rater is of the cohort {cohort}; cohorts are {some or 'not recorded for any rater'}.")
    return found


def load_columns(s: Session, chosen: Slice, *, simulated: bool) -> VoteColumns:
    """The counted votes of the slice that people gave, or simulated listeners (``simulated``): never both.

    Latest revisions only; no SKIP or FAULT, no checks of raters, no anchors, no clips of one version alone, nobody who
    withdrew. Raises NotFoundError on a study, tag or cohort that does not exist."""
    prompts = _tagged(s, chosen.tag) if chosen.tag else None
    raters = _cohort(s, chosen.cohort) if chosen.cohort else None
    versions = s.execute(
        sa.select(_text(VersionRow.id, "version"), VersionRow.name, VersionRow.base, VersionRow.simulated)
    ).all()
    names = {_key(id_): name for id_, name, base, _ in versions if base != ANCHOR_BASE}
    one, two, later = aliased(ClipRow), aliased(ClipRow), aliased(VoteTable)
    query = (
        _joined(
            sa.select(
                _text(VoteTable.outcome, "outcome"), AssignmentRow.left_is_clip_1, _text(one.version_id, "version_1"),
                _text(two.version_id, "version_2"), _text(ListeningSessionRow.rater_id, "rater"),
                _text(BattleRow.prompt_id, "prompt"),
            )
        )
        .join(one, BattleRow.clip_1_id == one.id)
        .join(two, BattleRow.clip_2_id == two.id)
        .where(
            *_conditions(s, chosen),
            RaterRow.kind == (RaterKind.SIMULATED if simulated else RaterKind.HUMAN),
            VoteTable.outcome.in_([outcome for outcome in Outcome if outcome.trains]),
            one.version_id != two.version_id,
            ~sa.exists().where(later.assignment_id == VoteTable.assignment_id, later.revision > VoteTable.revision),
        )
        .order_by(VoteTable.id)
    )  # fmt: skip
    columns: tuple[list[Any], ...] = ([], [], [], [], [])
    said = {outcome.value: outcome for outcome in Outcome}
    rows = s.connection().execute(query, execution_options={"yield_per": _FETCHED})
    for part in rows.partitions():
        for outcome, first_left, version_1, version_2, rater, prompt in part:
            if not isinstance(version_1, str):
                version_1, version_2, rater, prompt = _key(version_1), _key(version_2), _key(rater), _key(prompt)
            if version_1 not in names or version_2 not in names:
                continue
            if (prompts is not None and prompt not in prompts) or (raters is not None and rater not in raters):
                continue
            left, right = (version_1, version_2) if first_left else (version_2, version_1)
            for column, value in zip(columns, (said[outcome], left, right, rater, prompt), strict=True):
                column.append(value)
    present = set(columns[1]) | set(columns[2])
    return VoteColumns(
        *columns, names={id_: names[id_] for id_ in present},
        simulated_versions=tuple(sorted(name for id_, name, _, by in versions if by and _key(id_) in present)),
    )  # fmt: skip


@dataclass(frozen=True)
class RecordedEntry:
    """One line of a recorded leaderboard; ratings on the Elo-like scale."""

    version: str
    rating: float
    rating_low: float
    rating_high: float
    rank_low: int
    rank_high: int
    votes: int
    wins: int
    losses: int
    ties: int
    provisional: bool


@dataclass(frozen=True)
class RecordedLeaderboard:
    """One fit of ratings as recorded, best first; its entries' ``ties`` hold both-bad votes where the rule is tie."""

    id: uuid.UUID
    method: str
    method_version: str
    slice: Mapping[str, Any]
    tie_rule: str
    both_bad_rule: str
    side_coefficient: float | None
    simulated: bool
    created_at: datetime
    entries: tuple[RecordedEntry, ...]


def record_leaderboard(
    s: Session, *, method: str, method_version: str, slice: Mapping[str, Any], tie_rule: str, both_bad_rule: str,
    side_coefficient: float | None, simulated: bool, entries: Sequence[RecordedEntry],
) -> uuid.UUID:  # fmt: skip
    """The id of the fit as written. Raises NotFoundError on an unknown version, DataError without entries."""
    if not entries:
        raise DataError("A leaderboard without versions is not recorded; collect votes first.")
    ids = dict(s.execute(sa.select(VersionRow.name, VersionRow.id)).tuples().all())
    unknown = [entry.version for entry in entries if entry.version not in ids]
    if unknown:
        raise NotFoundError(f"No version is called {', '.join(unknown)}; register it before it is rated.")
    new = uuid7()
    s.execute(
        sa.insert(LeaderboardRunRow).values(
            id=new, method=method, method_version=method_version, slice=dict(slice), tie_rule=tie_rule,
            both_bad_rule=both_bad_rule, side_coefficient=side_coefficient, simulated=simulated, created_at=utcnow(),
        )
    )  # fmt: skip
    fields = [name for name in RecordedEntry.__dataclass_fields__ if name != "version"]
    rows = [
        {"leaderboard_run_id": new, "version_id": ids[e.version], **{name: getattr(e, name) for name in fields}}
        for e in entries
    ]
    s.execute(sa.insert(LeaderboardEntryRow), rows)
    return new


def list_leaderboards(s: Session, *, limit: int = 20) -> list[RecordedLeaderboard]:
    """The newest recorded leaderboards, newest first."""
    runs = list(s.scalars(sa.select(LeaderboardRunRow).order_by(LeaderboardRunRow.id.desc()).limit(limit)))
    query = (
        sa.select(LeaderboardEntryRow, VersionRow.name)
        .join(VersionRow, LeaderboardEntryRow.version_id == VersionRow.id)
        .where(LeaderboardEntryRow.leaderboard_run_id.in_([run.id for run in runs]))
        .order_by(LeaderboardEntryRow.rating.desc(), VersionRow.name)
    )
    found: dict[uuid.UUID, list[RecordedEntry]] = {run.id: [] for run in runs}
    fields = [name for name in RecordedEntry.__dataclass_fields__ if name != "version"]
    for row, name in s.execute(query):
        found[row.leaderboard_run_id].append(RecordedEntry(name, *(getattr(row, field) for field in fields)))
    return [
        RecordedLeaderboard(
            run.id, run.method, run.method_version, run.slice, run.tie_rule, run.both_bad_rule, run.side_coefficient,
            run.simulated, run.created_at, tuple(found[run.id]),
        )
        for run in runs
    ]  # fmt: skip
