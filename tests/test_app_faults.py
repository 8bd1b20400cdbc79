"""A full disk or a database that is away: the answer is "try again", nothing is acknowledged, and later it is saved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from app_support import running

from alignment.clips import ClipStore
from alignment.db import durable
from alignment.db.engine import Database, create_engine, open_database
from alignment.errors import DatabaseError
from rating_app.app import create_app
from scripts.vote_load import CONSENT, SECRET, STUDY, Ledger, Rater, count, prepare
from tests.database_support import any_url, postgres_server, postgres_url, sqlite_url  # noqa: F401


@contextmanager
def no_room(database: Database) -> Iterator[None]:
    """The disk is full: SQLite may not grow by a page; PostgreSQL raises what it raises when a file cannot grow."""
    if database.is_sqlite:

        @sa.event.listens_for(database.engine, "begin")
        def fill_the_disk(connection: sa.Connection) -> None:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

        yield
        sa.event.remove(database.engine, "begin", fill_the_disk)
        sa.event.listen(database.engine, "begin", lambda c: c.exec_driver_sql("PRAGMA max_page_count=1000000"))
        return
    with database.session() as s:
        s.execute(
            sa.text(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
                "'could not extend file \"base/1/2\": No space left on device' USING ERRCODE = '53100'; END $$"
            )
        )
        s.execute(sa.text("CREATE TRIGGER full_disk BEFORE INSERT ON vote_axis EXECUTE FUNCTION full_disk()"))
    yield
    with database.session() as s:
        s.execute(sa.text("DROP TRIGGER full_disk ON vote_axis"))


@contextmanager
def gone(database: Database) -> Iterator[None]:
    """The database is away: PostgreSQL ends all connections and takes no new one; SQLite's disk fails every read."""
    if database.is_sqlite:

        @sa.event.listens_for(database.engine, "begin")
        def fail(connection: sa.Connection) -> None:
            import sqlite3

            raise sa.exc.OperationalError("BEGIN", {}, sqlite3.OperationalError("disk I/O error"))

        yield
        sa.event.remove(database.engine, "begin", fail)
        return
    url = database.engine.url
    name = url.database
    engine = create_engine(url.set(database="postgres")).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        yield
        connection.exec_driver_sql(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    engine.dispose()


def pair_of(browser: httpx.Client) -> str:
    """The id of the next pair, both clips of which were fetched."""
    pair = browser.get("/rate/pair").json()["pair"]
    assert all(browser.get(address).status_code == 200 for address in pair["clips"].values())
    return pair["id"]


@pytest.mark.parametrize("trouble", [no_room, gone])
def test_a_vote_in_times_of_trouble_is_not_acknowledged_and_is_saved_later(any_url, tmp_path: Path, trouble):  # noqa: F811
    prepare(any_url, tmp_path / "store", battles=3)
    database = open_database(any_url)
    app = create_app(database, ClipStore(tmp_path / "store"), secret=SECRET, study_name=STUDY, with_page=False)
    drawn, ledger = Rater(0, Ledger(), random.Random(1)), Ledger()
    with running(app) as address, httpx.Client(base_url=address, timeout=60) as browser:
        assert browser.post("/rate/session", json=CONSENT).status_code == 200
        vote = drawn.draw_vote(pair_of(browser))
        vote |= {"outcome": "A", "comment": "\N{MUSICAL SYMBOL G CLEF}" * 2000}  # more than fits a page
        ledger.sent[vote["key"]] = vote
        with trouble(database):
            for _ in range(2):
                answer = browser.post("/rate/votes", json=vote)
                assert answer.status_code == 503, answer.text
                assert "saved" not in answer.text and str(tmp_path) not in answer.text
            assert browser.get("/healthz").status_code == 200
            if trouble is gone:
                assert browser.get("/healthz/ready").status_code == 503
        assert count(database, ledger).votes == 0
        assert browser.post("/rate/votes", json=vote).json()["saved"] is True
        assert browser.post("/rate/votes", json=vote).json()["repeated"] is True
        assert browser.get("/healthz/ready").status_code == 200
    ledger.acknowledged[vote["key"]] = 1
    counted = count(database, ledger)
    database.close()
    assert counted.clean and counted.votes == 1


def test_a_vote_is_acknowledged_after_its_flush_and_never_after_one_that_failed(sqlite_url, tmp_path, monkeypatch):  # noqa: F811
    prepare(sqlite_url, tmp_path / "store", battles=3)
    database = open_database(sqlite_url)
    app = create_app(database, ClipStore(tmp_path / "store"), secret=SECRET, study_name=STUDY, with_page=False)
    rater, flushed = Rater(0, Ledger(), random.Random(1)), []
    plain = durable.flush
    with running(app) as address, httpx.Client(base_url=address, timeout=60) as browser:
        assert browser.post("/rate/session", json=CONSENT).status_code == 200
        first = pair_of(browser)
        monkeypatch.setattr(durable, "flush", lambda path: (flushed.append(path), plain(path)))
        vote = rater.draw_vote(first)
        assert browser.post("/rate/votes", json=vote).json()["saved"] is True
        assert flushed and flushed[-1].name == "attune.db-wal" and flushed[-1].exists()
        flushed.clear()
        assert browser.post("/rate/votes", json=vote).json()["repeated"] is True
        assert flushed == []  # nothing new was written
        after = rater.draw_vote(pair_of(browser))

        def broken(path: Path) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(durable, "flush", broken)
        assert browser.post("/rate/votes", json=after).status_code == 503
        monkeypatch.setattr(durable, "flush", plain)
        # The kernel may have dropped the page it could not write: what it says from now on counts for nothing.
        assert browser.post("/rate/votes", json=after).status_code == 503
    with pytest.raises(DatabaseError, match="could not be written to the disk.*start again"), database.session() as s:
        s.execute(sa.text("SELECT 1"))
    database.close()


def test_writers_who_wait_together_share_one_flush(tmp_path: Path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor
    from threading import Event

    running_flush, go_on, flushes = Event(), Event(), []

    def slow(path: Path) -> None:
        flushes.append(path)
        running_flush.set()
        assert go_on.wait(20)

    monkeypatch.setattr(durable, "flush", slow)
    flusher = durable.LogFlusher(tmp_path / "x.db")
    with ThreadPoolExecutor(12) as pool:
        first = pool.submit(flusher.wait, flusher.committed(changed=True))
        assert running_flush.wait(20)
        tickets = [flusher.committed(changed=True) for _ in range(10)]
        waiting = [pool.submit(flusher.wait, ticket) for ticket in tickets]
        go_on.set()
        for one in (first, *waiting):
            one.result(20)
    assert len(flushes) == 2  # the first's own, begun too early for the others, and one for all of those
    assert flusher.wait(flusher.committed(changed=False)) is None and len(flushes) == 2
