"""A database that cannot be used says why in one sentence, and nothing is half-written."""

from __future__ import annotations

import random
import sqlite3

import pytest
import sqlalchemy as sa

from alignment.db import engine as engine_module
from alignment.db import migrate, prompts
from alignment.db.engine import open_database
from alignment.domain import Axis, Outcome, RaterKind, Split, VoteDraft
from alignment.errors import DatabaseError, DataError, SchemaVersionError
from alignment.votes import VoteService
from tests.database_support import (  # noqa: F401
    any_database,
    any_url,
    fill,
    postgres_server,
    postgres_url,
    sqlite_database,
    sqlite_url,
)


def test_a_database_that_does_not_exist_is_not_created_by_opening_it(tmp_path):
    with pytest.raises(SchemaVersionError, match="no database yet; run `attune db upgrade`"):
        open_database(f"sqlite:///{tmp_path / 'folder' / 'attune.db'}")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_asks_for_the_upgrade(any_url):  # noqa: F811
    open_database(any_url, check_schema=False).close()
    if any_url.startswith("sqlite"):
        sqlite3.connect(any_url.removeprefix("sqlite:///")).close()
    with pytest.raises(SchemaVersionError, match="run `attune db upgrade`"):
        open_database(any_url)


def test_a_database_newer_than_the_code_asks_for_the_newer_code(any_database):  # noqa: F811
    with any_database.session() as s:
        s.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaVersionError, match=f"9999, newer than {migrate.head_revision()}.*update Attune"):
        open_database(any_database.url)
    with pytest.raises(SchemaVersionError, match="update Attune"):
        migrate.upgrade(any_database.url)


def test_a_file_that_is_no_database_is_told_apart_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary, " * 100)
    with pytest.raises(DatabaseError, match="notes.txt is not a database"):
        open_database(f"sqlite:///{path}")
    with pytest.raises(DatabaseError, match="notes.txt is not a database"):
        migrate.upgrade(f"sqlite:///{path}")
    assert path.read_text() == "dear diary, " * 100


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://someone:secret@127.0.0.1:1/attune", "cannot be reached"),
        ("mysql://localhost/attune", "mysql is not supported"),
        ("not an address", "is not a database address"),
        ("sqlite://", "would lose every vote"),
    ],
)
def test_an_address_that_leads_nowhere_is_explained_without_its_password(url, sentence):
    with pytest.raises(DatabaseError, match=sentence) as caught:
        open_database(url)
    assert "secret" not in str(caught.value)


def test_a_read_only_database_is_refused_when_it_is_opened(sqlite_database):  # noqa: F811
    path = sqlite_database.engine.url.database
    with pytest.raises(DatabaseError, match="read-only"):
        open_database(f"sqlite:///file:{path}?mode=ro&uri=true")


def test_a_read_only_postgres_is_refused_when_it_is_opened(postgres_url):  # noqa: F811
    migrate.upgrade(postgres_url)
    with pytest.raises(DatabaseError, match="is read-only"):
        open_database(postgres_url + "?options=-c%20default_transaction_read_only%3Don")


def test_a_full_disk_refuses_the_vote_and_leaves_nothing_of_it(sqlite_database):  # noqa: F811
    fill(sqlite_database)
    service = VoteService(sqlite_database, secret="secret")
    session = service.open_session(service.enrol_rater("ann", kind=RaterKind.SIMULATED), "study")
    assignment = service.next_assignment(session, rng=random.Random(1))
    draft = VoteDraft(assignment.id, "key-number-1", Outcome.A, {Axis.QUALITY: 1}, comment="x" * 5000)

    @sa.event.listens_for(sqlite_database.engine, "begin")
    def fill_the_disk(connection):
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    with pytest.raises(DatabaseError, match="has no room left"):
        service.record_vote(session, draft)
    sa.event.remove(sqlite_database.engine, "begin", fill_the_disk)
    with sqlite_database.session() as s:
        s.execute(sa.text("PRAGMA max_page_count=1000000"))
        for table in ("vote", "vote_axis", "vote_comment"):
            assert s.scalar(sa.text(f"SELECT count(*) FROM {table}")) == 0
        assert s.scalar(sa.text("SELECT sum(votes) FROM battle_tally")) == 0
    assert service.record_vote(session, draft).repeated is False


def test_a_session_rolls_back_when_its_block_fails(any_database):  # noqa: F811
    with pytest.raises(RuntimeError), any_database.session() as s:
        prompts.add_prompts(s, [("a waltz", "test", Split.TRAIN, {})])
        raise RuntimeError
    with any_database.session(write=False) as s:
        assert prompts.list_prompts(s) == []


def test_a_second_writing_session_in_a_thread_is_told_instead_of_waiting_for_ever(sqlite_database):  # noqa: F811
    with sqlite_database.session(), pytest.raises(DatabaseError, match="already open in this thread"):
        with sqlite_database.session():
            pass


def test_a_connection_that_was_cut_while_it_lay_idle_is_replaced_unnoticed(postgres_url, monkeypatch):  # noqa: F811
    migrate.upgrade(postgres_url)
    database, other = open_database(postgres_url), sa.create_engine(postgres_url)
    pid = sa.text("select pg_backend_pid()")
    with database.session() as s:
        first = s.scalar(pid)
    with other.begin() as connection:
        connection.execute(sa.text("select pg_terminate_backend(:pid, 5000)"), {"pid": first})
    monkeypatch.setattr(engine_module, "IDLE_SECONDS", 0.0)
    with database.session() as s:
        assert s.scalar(pid) != first
    database.close()
    other.dispose()


def test_adding_prompts_again_gives_the_same_ones_and_a_split_never_changes(any_database):  # noqa: F811
    items = [("a waltz", "test", Split.TRAIN, {"lead": "flute"}), ("a march", "test", Split.TEST, {})]
    with any_database.session() as s:
        first = prompts.add_prompts(s, items)
    with any_database.session() as s:
        assert prompts.add_prompts(s, items) == first == prompts.list_prompts(s)
        assert prompts.list_prompts(s, split=Split.TEST) == [first[1]]
    with pytest.raises(DataError, match="never changes"), any_database.session() as s:
        prompts.add_prompts(s, [("a waltz", "test", Split.TEST, {})])


def test_a_changed_vote_is_refused_in_a_sentence(any_database):  # noqa: F811
    fill(any_database)
    with pytest.raises(DatabaseError, match="append-only"), any_database.session() as s:
        s.execute(sa.text("UPDATE battle SET propensity = 0.25"))
