"""A backup holds all that it names or does not exist; what comes back is served, and its chains of votes are whole."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from app_support import SECRET, a_vote, fill
from fastapi.testclient import TestClient

from alignment import backup as backups
from alignment.backup import MANIFEST, back_up, restore
from alignment.clips import ClipStore
from alignment.db import migrate
from alignment.db.engine import create_engine, open_database
from alignment.db.tables import ListeningSessionRow
from alignment.db.versions import add_version
from alignment.db.votes import chain_faults
from alignment.errors import AttuneError, ConfigError, DatabaseError, DataError, StoreError
from rating_app.app import create_app
from rating_app.demo import ensure_demo_study
from scripts.vote_load import CONSENT
from tests.database_support import any_url, postgres_server, postgres_url, sqlite_url  # noqa: F401

PROMPTS = ("a waltz", "a march")


def votes_of(url: str, store: ClipStore, *, times: int = 2) -> int:
    """Serves the app over the database to a new rater who votes, and returns how many votes there are then."""
    database = open_database(url)
    study = ensure_demo_study(database, base="secret-base", candidate="secret-aligned", minimum_listening_seconds=0.0)
    app = create_app(database, store, secret=SECRET, study_name=study, with_page=False)
    client = TestClient(app, base_url="http://attune.test")
    assert client.post("/rate/session", json=CONSENT).status_code == 200
    for number in range(times):
        pair = client.get("/rate/pair").json()["pair"]
        for address in pair["clips"].values():
            assert client.get(address).status_code == 200
        key = f"{random.getrandbits(128):032x}"
        vote = a_vote(pair, key, outcome="SKIP", heard={"left": 0.1, "right": 0.1}, comment=f"remark {number}")
        assert client.post("/rate/votes", json=vote).json()["saved"] is True
    assert client.get("/healthz/ready").status_code == 200
    with database.session(write=False) as s:
        found = s.scalar(sa.text("SELECT count(*) FROM vote"))
        for session in s.scalars(sa.select(ListeningSessionRow.id)):
            assert chain_faults(s, session) == []
    database.close()
    return found


@pytest.fixture
def store(tmp_path: Path) -> ClipStore:
    return ClipStore(tmp_path / "store")


@pytest.fixture
def source(any_url: str, store: ClipStore, tmp_path: Path) -> str:  # noqa: F811
    """A database with clips, an adapter and two votes."""
    migrate.upgrade(any_url)
    database = open_database(any_url)
    fill(database, store, seconds=0.5, prompts=PROMPTS)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"weights")
    digest, uri = store.put_folder(folder)
    with database.session() as s:
        add_version(
            s, name="third", base="folder", base_sha256="0" * 64, parent="secret-base", adapter_sha256=digest,
            adapter_uri=uri, simulated=False,
        )  # fmt: skip
    database.close()
    assert votes_of(any_url, store) == 2
    return any_url


def empty_like(url: str, tmp_path: Path) -> str:
    """Where to restore to: a file that does not exist, or a fresh database on the same server."""
    if url.startswith("sqlite"):
        return f"sqlite:///{tmp_path / 'restored' / 'attune.db'}"
    name = f"restored_{random.getrandbits(64):x}"
    engine = create_engine(url).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return sa.make_url(url).set(database=name).render_as_string(hide_password=False)


def drop(url: str, source_url: str) -> None:
    if url.startswith("postgresql"):
        engine = create_engine(source_url).execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {sa.make_url(url).database} WITH (FORCE)")
        engine.dispose()


def test_what_was_backed_up_comes_back_and_is_served(source: str, store: ClipStore, tmp_path: Path):
    made = back_up(source, store, tmp_path / "backup")
    # Two prompts with two clips, and an adapter of one file with its list.
    assert (made.rows["vote"], made.rows["clip"], made.files, made.faults) == (2, 4, 6, ())
    assert votes_of(source, store) == 4  # the original goes on; the backup does not
    url, elsewhere = empty_like(source, tmp_path), ClipStore(tmp_path / "restored" / "store")
    try:
        back = restore(tmp_path / "backup", url, elsewhere)
        assert back.rows == made.rows and back.rows["vote_comment"] == 2
        shutil.rmtree(store.root)  # nothing of the original is needed
        assert votes_of(url, elsewhere) == 4
        database = open_database(url)
        with pytest.raises(DatabaseError, match="append-only"), database.session() as s:
            s.execute(sa.text("UPDATE vote SET switches = 7"))
        database.close()
        with pytest.raises(DataError, match="restore never overwrites"):
            restore(tmp_path / "backup", url, elsewhere)
    finally:
        drop(url, source)


def test_a_backup_never_overwrites_and_leaves_nothing_half_done(source: str, store: ClipStore, tmp_path: Path):
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError, match="a backup never overwrites"):
        back_up(source, store, tmp_path / "there")
    sha256 = next(Path(store.root).glob("audio/*/*.flac"))
    sha256.write_bytes(b"altered")
    with pytest.raises(StoreError, match="was altered after it was stored"):
        back_up(source, store, tmp_path / "new" / "backup")
    sha256.unlink()
    with pytest.raises(StoreError, match="is missing"):
        back_up(source, store, tmp_path / "new" / "backup", with_store=False)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_store_that_is_copied_by_other_means_is_checked_and_left_out(source: str, store: ClipStore, tmp_path: Path):
    made = back_up(source, store, tmp_path / "backup", with_store=False)
    assert made.files == 6 and not (tmp_path / "backup" / "store").exists()
    url = empty_like(source, tmp_path)
    try:
        with pytest.raises(StoreError, match="is missing"):
            restore(tmp_path / "backup", url, ClipStore(tmp_path / "nowhere"))
        assert restore(tmp_path / "backup", url, store).rows["vote"] == 2
    finally:
        drop(url, source)


@pytest.fixture
def kept(sqlite_url: str, store: ClipStore, tmp_path: Path) -> Path:  # noqa: F811
    """A backup of an SQLite database with two votes."""
    migrate.upgrade(sqlite_url)
    database = open_database(sqlite_url)
    fill(database, store, seconds=0.5, prompts=PROMPTS)
    database.close()
    votes_of(sqlite_url, store)
    return back_up(sqlite_url, store, tmp_path / "backup").path


def seal(kept: Path) -> None:
    """Makes the manifest fit the altered database file, as a forger would."""
    manifest = json.loads((kept / MANIFEST).read_text())
    manifest["database"]["sha256"] = backups._sha256(kept / "attune.db")
    (kept / MANIFEST).write_text(json.dumps(manifest))


def alter_database(kept: Path, *statements: str) -> None:
    with sqlite3.connect(kept / "attune.db") as database:
        database.execute("DROP TRIGGER vote_refuses_update")
        database.execute("DROP TRIGGER vote_refuses_delete")
        for statement in statements:
            database.execute(statement)
    database.close()
    seal(kept)


def a_flipped_byte(kept: Path) -> None:
    data = bytearray((kept / "attune.db").read_bytes())
    data[len(data) // 2] ^= 1
    (kept / "attune.db").write_bytes(data)


def a_changed_vote(kept: Path) -> None:
    alter_database(kept, "UPDATE vote SET switches = switches + 1 WHERE position = 1")


def a_missing_vote(kept: Path) -> None:
    alter_database(kept, "PRAGMA foreign_keys=OFF", "DELETE FROM vote WHERE position = 1")


def a_missing_last_vote(kept: Path) -> None:
    alter_database(kept, "PRAGMA foreign_keys=OFF", "DELETE FROM vote WHERE position = 2")


def an_altered_clip(kept: Path) -> None:
    next((kept / "store").glob("audio/*/*.flac")).write_bytes(b"other music")


def a_lost_clip(kept: Path) -> None:
    next((kept / "store").glob("audio/*/*.flac")).unlink()


def no_manifest(kept: Path) -> None:
    (kept / MANIFEST).unlink()


def half_a_manifest(kept: Path) -> None:
    (kept / MANIFEST).write_text((kept / MANIFEST).read_text()[:100])


def another_format(kept: Path) -> None:
    (kept / MANIFEST).write_text('{"format": 2}')


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (a_flipped_byte, "is not as it was when the backup was made"),
        (a_changed_vote, "was altered after it was saved"),
        (a_missing_vote, "is missing"),
        (a_missing_last_vote, "vote has 1 rows and had 2"),
        (an_altered_clip, "was altered after it was stored"),
        (a_lost_clip, "is missing"),
        (no_manifest, "is no finished backup"),
        (half_a_manifest, "cannot be read"),
        (another_format, "of a format this code does not know"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_harmed_backup_is_refused_and_nothing_is_left_of_it(kept: Path, tmp_path: Path, harm, told: str):
    harm(kept)
    place = tmp_path / "restored"
    with pytest.raises(AttuneError, match=told):
        restore(kept, f"sqlite:///{place / 'attune.db'}", ClipStore(place / "store"))
    assert not (place / "attune.db").exists()
    assert not list(place.glob(".attune*"))


def test_a_broken_chain_is_told_when_it_is_backed_up(sqlite_url: str, kept: Path, store: ClipStore, tmp_path: Path):  # noqa: F811
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as database:
        database.execute("DROP TRIGGER vote_refuses_update")
        database.execute("UPDATE vote SET switches = 77")
    database.close()
    made = back_up(sqlite_url, store, tmp_path / "second")
    assert len(made.faults) == 2 and "was altered after it was saved" in made.faults[0]
    with pytest.raises(DataError, match="were broken when the backup was made"):
        restore(made.path, f"sqlite:///{tmp_path / 'restored.db'}", store)


def test_a_clip_that_differs_is_not_overwritten(kept: Path, tmp_path: Path):
    place = tmp_path / "restored"
    theirs = next((kept / "store").glob("audio/*/*.flac"))
    mine = place / "store" / theirs.relative_to(kept / "store")
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my music")
    with pytest.raises(StoreError, match="was altered"):
        restore(kept, f"sqlite:///{place / 'attune.db'}", ClipStore(place / "store"))
    assert mine.read_bytes() == b"my music"


def test_a_backup_taken_while_raters_vote_is_of_one_moment(
    sqlite_url: str,  # noqa: F811
    kept: Path,
    store: ClipStore,
    tmp_path: Path,
):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        raters = [pool.submit(votes_of, sqlite_url, store) for _ in range(6)]
        made = [back_up(sqlite_url, store, tmp_path / f"moment {number}") for number in range(3)]
        for rater in raters:
            rater.result()
    for number, one in enumerate(made):
        place = tmp_path / f"restored {number}"
        assert restore(one.path, f"sqlite:///{place / 'attune.db'}", store).rows == one.rows


def test_without_postgresqls_tools_the_next_step_is_told(
    postgres_url: str,  # noqa: F811
    store: ClipStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    migrate.upgrade(postgres_url)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="pg_dump is not installed.*install postgresql-client"):
        back_up(postgres_url, store, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_the_commands_say_what_they_did(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from typer.testing import CliRunner

    from alignment.cli import app

    home = tmp_path / "home"
    run = CliRunner().invoke(app, ["db", "restore", str(kept), "--home", str(home)])
    assert run.exit_code == 0, run.output
    assert run.stdout.strip() == f"{home / 'attune.db'}: 2 votes, 4 clips, 4 files; every chain is whole"
    run = CliRunner().invoke(app, ["db", "backup", str(tmp_path / "again"), "--home", str(home), "--json"])
    assert run.exit_code == 0 and json.loads(run.stdout.splitlines()[-1])["rows"]["vote"] == 2
