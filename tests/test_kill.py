"""No vote lost, doubled or altered: the server is killed again and again while raters vote, then votes are counted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from kill_support import Killing, Server, kill_under_load

from alignment.db.engine import open_database
from scripts.vote_load import Ledger, count, prepare
from tests.database_support import any_url, postgres_server, postgres_url, sqlite_url  # noqa: F401

SLOW_KILLS = int(os.environ.get("ATTUNE_TEST_KILLS", "25"))  # on each of the two databases
SLOW_VOTES = 200 * SLOW_KILLS


@pytest.fixture
def server(any_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:  # noqa: F811
    options = getattr(request, "param", {"battles": 300})
    prepare(any_url, tmp_path / "store", battles=options["battles"])
    server = Server(any_url, tmp_path, bare=options.get("bare", True))
    server.url = any_url
    yield server
    server.stop()


def check(server: Server, killing: Killing) -> int:
    """Counts and returns the votes."""
    database = open_database(server.url)
    try:
        counted = count(database, killing.ledger)
    finally:
        database.close()
    assert counted.clean, counted
    assert counted.votes == len(killing.ledger.acknowledged) == len(killing.ledger.sent)
    return counted.votes


def test_every_acknowledged_vote_outlives_the_servers_sudden_death(server: Server):
    killing = asyncio.run(kill_under_load(server, raters=8, kills=2, votes=150, seed=1))
    assert check(server, killing) >= 150 and killing.ledger.retries > 0
    assert max(killing.ledger.acknowledged.values()) > 1  # some were sent twice, and told so twice


@pytest.mark.slow
@pytest.mark.parametrize("server", [{"battles": 1500, "bare": False}], indirect=True)
def test_ten_thousand_votes_over_fifty_kills_are_all_there_once(server: Server):
    killing = asyncio.run(kill_under_load(server, raters=24, kills=SLOW_KILLS, votes=SLOW_VOTES, seed=2))
    votes = check(server, killing)
    print(f"{server.url.split(':')[0]}: {votes} votes, {killing.kills} kills, {killing.ledger.retries} retries")
    assert votes >= SLOW_VOTES and killing.kills == SLOW_KILLS


def test_the_count_finds_what_it_is_there_to_find(server: Server):
    killing = asyncio.run(kill_under_load(server, raters=2, kills=0, votes=8, seed=3))
    ledger = killing.ledger
    first, second, third, *_ = ledger.sent
    database = open_database(server.url)
    lied = Ledger(dict(ledger.sent), {**ledger.acknowledged, "f" * 32: 1})
    lied.sent[first] = {**lied.sent[first], "switches": 99}
    del lied.sent[second]
    found = count(database, lied)
    assert (found.lost, found.altered, found.unknown) == (["f" * 32], [first], [second])
    with database.session() as s:  # append-only triggers keep others out; a thief with the file has no such scruples
        off = "DROP TRIGGER vote_refuses_update" if database.is_sqlite else "ALTER TABLE vote DISABLE TRIGGER USER"
        s.execute(sa.text(off))
        s.execute(sa.text("UPDATE vote SET switches = 77 WHERE idempotency_key = :key"), {"key": third})
    found = count(database, ledger)
    database.close()
    assert found.altered == [third] and any("altered after it was saved" in fault for fault in found.chain_faults)
