"""The champion: by the gate's newest decision or by force with a reason, back again, out; each in the audit log."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from alignment.clips import ClipStore
from alignment.db import accounts, migrate, studies, version_changes, versions
from alignment.db.engine import Database, open_database
from alignment.db.tables import VersionRow
from alignment.domain import RaterKind, VersionStatus
from alignment.errors import DatabaseError, DataError, NotFoundError, StoreError
from alignment.versions import champion, promote, retire, rollback
from tests.database_support import (  # noqa: F401
    any_database,
    any_url,
    postgres_server,
    postgres_url,
    sqlite_url,
)
from tests.version_support import decide

BASE, ADAPTER = "0" * 64, "1" * 64


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite file under the newest schema, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "attune.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    database = open_database(f"sqlite:///{shutil.copy(migrated, tmp_path)}")
    yield database
    database.close()


def add(database: Database, *names: str, simulated: bool = False) -> None:
    """The base and these versions on it."""
    with database.session() as s:
        versions.add_version(s, name="base", base="tiny", base_sha256=BASE)
        for name in names:
            versions.add_version(
                s, name=name, base="tiny", base_sha256=BASE, parent="base", adapter_sha256=ADAPTER,
                adapter_uri=f"store://folders/{ADAPTER}", simulated=simulated,
            )  # fmt: skip


def statuses(database: Database) -> dict[str, str]:
    with database.session(write=False) as s:
        return {version.name: version.status.value for version in versions.list_versions(s)}


def audit(database: Database) -> list[tuple[str, str, str | None, str | None]]:
    with database.session(write=False) as s:
        return [(e.actor, e.action, e.subject, e.reason) for e in reversed(accounts.list_audit(s))]


def open_human_study(database: Database, state: str = "open") -> None:
    with database.session() as s:
        studies.create_study(
            s, name="people", versions=["base"], questions=["Which?"], minimum_listening_seconds=0.0,
            rater_kind=RaterKind.HUMAN, state=state,
        )  # fmt: skip


def test_the_gates_decision_makes_a_champion_and_the_one_before_a_candidate_again(any_database):  # noqa: F811
    add(any_database, "v1", "v2")
    assert champion(any_database) is None
    first = decide(any_database, "v1", "base")  # no champion yet: over the base
    assert promote(any_database, "v1", actor="ann").status is VersionStatus.CHAMPION
    second = decide(any_database, "v2", "v1")
    assert promote(any_database, "v2", actor="ann", decision=second, reason="heard it myself").name == "v2"
    assert champion(any_database).name == "v2"
    assert statuses(any_database) == {"base": "candidate", "v1": "candidate", "v2": "champion"}
    assert audit(any_database) == [
        ("ann", "version.promote", "v1", f"gate decision {first}"),
        ("ann", "version.promote", "v2", "heard it myself"),
    ]
    with any_database.session(write=False) as s:
        made = version_changes.list_changes(s)
    assert [(c.version, c.replaced, c.decision_id, c.forced) for c in made] == [
        ("v1", None, first, False), ("v2", "v1", second, False),
    ]  # fmt: skip


def test_promoting_the_champion_again_writes_nothing(sqlite):
    add(sqlite, "v1")
    made = decide(sqlite, "v1", "base")
    for _ in range(2):  # as a job does that was killed after the promotion
        assert promote(sqlite, "v1", actor="job:7", decision=made).name == "v1"
    assert len(audit(sqlite)) == 1


@pytest.mark.parametrize(
    ("decided", "named", "said"),
    [
        ((), None, "has not decided on v2 over v1; run attune gate check v2 --champion v1, or promote with --force"),
        ((("base", "promoted"),), None, r"has not decided on v2 over v1 \(the last was over base\)"),
        ((("base", "promoted"),), 0, "is on v2 over base, and the champion is v1"),
        ((("v1", "undecided"),), None, "newest decision on v2 over v1 is 'undecided'"),
        ((("v1", "promoted"), ("v1", "rejected")), None, "newest decision on v2 over v1 is 'rejected'"),
        ((("v1", "promoted"), ("v1", "rejected")), 0, "newest decision on v2 over v1 is 'rejected'"),
        ((("v1", "promoted"), ("v1", "promoted")), 0, "is not the newest on v2 over v1"),
        ((), "other", "No gate decision .* on v2 is on record"),
    ],
)
def test_without_a_standing_decision_over_the_present_champion_nothing_is_promoted(
    sqlite, decided, named, said
):  # fmt: skip
    add(sqlite, "v1", "v2")
    promote(sqlite, "v1", actor="ann", force=True, reason="the first")
    made = [decide(sqlite, "v2", over, outcome) for over, outcome in decided]
    given = uuid.uuid4() if named == "other" else None if named is None else made[named]
    with pytest.raises(DataError, match=said):
        promote(sqlite, "v2", actor="ann", decision=given)
    assert champion(sqlite).name == "v1" and len(audit(sqlite)) == 1


def test_a_decision_promotes_once(sqlite):
    add(sqlite, "v1", "v2")
    promote(sqlite, "v1", actor="ann", force=True, reason="the first")
    made = decide(sqlite, "v2", "v1")
    promote(sqlite, "v2", actor="ann")
    rollback(sqlite, actor="ann", reason="it clips")
    with pytest.raises(DataError, match=f"Decision {made} has promoted v2 before"):
        promote(sqlite, "v2", actor="ann")
    decide(sqlite, "v2", "v1")
    assert promote(sqlite, "v2", actor="ann").name == "v2"


@pytest.mark.parametrize("reason", [None, "", "  "])
def test_force_a_rollback_and_a_retirement_each_take_a_reason(sqlite, reason):
    add(sqlite, "v1")
    for attempt in (
        lambda: promote(sqlite, "v1", actor="ann", force=True, reason=reason),
        lambda: rollback(sqlite, actor="ann", reason=reason),
        lambda: retire(sqlite, "v1", actor="ann", reason=reason),
    ):
        with pytest.raises(DataError, match="takes a reason for the audit log; give one with --reason"):
            attempt()
    assert audit(sqlite) == [] and champion(sqlite) is None


def test_force_and_its_reason_are_in_the_audit_log(sqlite):
    add(sqlite, "v1")
    assert promote(sqlite, "v1", actor="ann", force=True, reason="a demo tomorrow").status == "champion"
    assert audit(sqlite) == [("ann", "version.promote.forced", "v1", "a demo tomorrow")]
    with sqlite.session(write=False) as s:
        (change,) = version_changes.list_changes(s, version="v1")
    assert change.forced and change.decision_id is None


def test_rollbacks_take_the_promotions_off_one_by_one(sqlite):
    add(sqlite, "v1", "v2", "v3")
    for name in ("v1", "v2", "v3"):
        promote(sqlite, name, actor="ann", force=True, reason="next")
    assert rollback(sqlite, actor="ann", reason="worse").name == "v2"
    assert rollback(sqlite, actor="ann", reason="worse still").name == "v1"
    with pytest.raises(DataError, match="No champion stands before v1; promote another version"):
        rollback(sqlite, actor="ann", reason="once more")
    assert champion(sqlite).name == "v1"
    # A promotion after rollbacks begins anew from there.
    promote(sqlite, "v3", actor="ann", force=True, reason="mended")
    assert rollback(sqlite, actor="ann", reason="no").name == "v1"
    assert [action for _, action, _, _ in audit(sqlite)].count("version.rollback") == 3


def test_a_rollback_passes_over_what_was_retired_since_and_needs_a_champion(sqlite):
    add(sqlite, "v1", "v2", "v3")
    with pytest.raises(DataError, match="There is no champion to roll back"):
        rollback(sqlite, actor="ann", reason="why not")
    for name in ("v1", "v2", "v3"):
        promote(sqlite, name, actor="ann", force=True, reason="next")
    retire(sqlite, "v2", actor="ann", reason="licence")
    assert rollback(sqlite, actor="ann", reason="worse").name == "v1"


def test_the_champion_is_not_retired_and_a_retired_version_returns_by_force_alone(sqlite):
    add(sqlite, "v1", "v2")
    promote(sqlite, "v1", actor="ann", force=True, reason="the first")
    with pytest.raises(DataError, match="v1 is the champion; promote another or roll back"):
        retire(sqlite, "v1", actor="ann", reason="old")
    for _ in range(2):
        assert retire(sqlite, "v2", actor="ann", reason="old").status is VersionStatus.RETIRED
    assert [line[1:] for line in audit(sqlite)][1:] == [("version.retire", "v2", "old")]
    decide(sqlite, "v2", "v1")
    with pytest.raises(DataError, match="v2 is retired"):
        promote(sqlite, "v2", actor="ann")
    assert promote(sqlite, "v2", actor="ann", force=True, reason="needed after all").name == "v2"


def test_simulated_votes_promote_where_nobody_listens_and_nowhere_else(sqlite):
    add(sqlite, "v1", simulated=True)
    add(sqlite, "v2")  # people trained it, and programs compare it
    decide(sqlite, "v1", "base", simulated=True)
    promote(sqlite, "v1", actor="ann")
    decide(sqlite, "v2", "v1", simulated=True)
    open_human_study(sqlite, "draft")  # nobody hears a draft
    promote(sqlite, "v2", actor="ann")
    rollback(sqlite, actor="ann", reason="in a simulation")
    decide(sqlite, "v2", "v1", simulated=True)
    with sqlite.session() as s:
        studies.set_state(s, studies.get_study(s, "people").id, "open")
    with pytest.raises(DataError, match="SIMULATED votes chose v2, and people listen here .study people"):
        promote(sqlite, "v2", actor="ann")
    promote(sqlite, "v2", actor="ann", force=True, reason="people trained it and I checked")
    for attempt in (
        lambda: promote(sqlite, "v1", actor="ann", force=True, reason="please"),
        lambda: rollback(sqlite, actor="ann", reason="please"),
    ):
        with pytest.raises(DataError, match="SIMULATED votes trained v1, and people listen here"):
            attempt()
    assert champion(sqlite).name == "v2"


def test_a_decision_that_hides_the_simulation_promotes_nothing(sqlite):
    add(sqlite, "v1", simulated=True)
    decide(sqlite, "v1", "base", simulated=False)
    with pytest.raises(DataError, match="does not say that simulated votes trained v1"):
        promote(sqlite, "v1", actor="ann")


def test_an_unknown_version_a_missing_adapter_and_what_is_only_audio_are_not_promoted(sqlite, tmp_path):
    add(sqlite, "v1")
    with sqlite.session() as s:
        for name, base in (("low-pass", "anchor"), ("suno", "external"), ("band", "reference")):
            versions.add_version(s, name=name, base=base, base_sha256=BASE)
    force = {"actor": "ann", "force": True, "reason": "try"}
    with pytest.raises(NotFoundError, match="known: base, v1"):
        promote(sqlite, "v9", **force)
    with pytest.raises(StoreError, match="is missing"):
        promote(sqlite, "v1", store=ClipStore(tmp_path / "store"), **force)
    for name in ("low-pass", "suno", "band"):
        with pytest.raises(DataError, match=f"{name} is audio and no model that could sing"):
            promote(sqlite, name, **force)
    assert champion(sqlite) is None and audit(sqlite) == []


def test_two_who_promote_at_once_leave_one_champion(any_database):  # noqa: F811
    names = [f"v{i}" for i in range(6)]
    add(any_database, *names)
    threads = [
        threading.Thread(target=promote, args=(any_database, n), kwargs={"actor": n, "force": True, "reason": "race"})
        for n in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with any_database.session(write=False) as s:
        made = version_changes.list_changes(s)
    assert list(statuses(any_database).values()).count("champion") == 1
    assert len(made) == 6, "they wait for each other, and nobody is turned away"
    # Each took over from the one before it, and the last one stands.
    assert [c.replaced for c in made] == [None, *(c.version for c in made[:-1])]
    assert champion(any_database).name == made[-1].version


def test_the_schema_itself_refuses_a_second_champion(any_database):  # noqa: F811
    add(any_database, "v1", "v2")
    with pytest.raises(DatabaseError), any_database.session() as s:
        s.execute(sa.update(VersionRow).values(status=VersionStatus.CHAMPION))
    assert "champion" not in statuses(any_database).values()
