"""The worker: both versions sing what was typed, alike in length, and every fault ends in a sentence."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from arena_support import VERSIONS, count, make_arena, open_session, rows
from circle_support import attune
from database_support import (
    any_database,
    any_url,
    postgres_server,
    postgres_url,
    sqlite_database,
    sqlite_url,
)
from jobs_support import patience
from music_support import randomise_adapter, save_tiny_music

from alignment import clips as store_module
from alignment.circle.workspace import Workspace
from alignment.cli.worker import log
from alignment.clips import ClipStore
from alignment.config import LoraSettings
from alignment.db import migrate
from alignment.db.clips import get_clips
from alignment.db.engine import Database, open_database
from alignment.errors import StoreError
from alignment.music.model import MusicModel
from alignment.requests import ArenaService, ArenaTicket
from alignment.worker import Worker

__all__ = ["any_database", "any_url", "postgres_server", "postgres_url", "sqlite_database", "sqlite_url"]
RNG = random.Random(5)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A tiny model's folder and checksum."""
    folder = save_tiny_music(tmp_path_factory.mktemp("base"))
    return folder, MusicModel.load(folder).base_sha256


@pytest.fixture
def place(base: tuple[Path, str], tmp_path: Path) -> Callable[..., Workspace]:
    """Makes an arena on a database, its second version with an adapter, and returns the workspace."""

    def make(database: Database, **rules: Any) -> Workspace:
        folder, sha256 = base
        store = ClipStore(tmp_path / "store")
        model = MusicModel.load(folder)
        model.add_adapter(LoraSettings(r=2, lora_alpha=4), seed=1)
        randomise_adapter(model, scale=1.0)
        model.save_adapter(tmp_path / "adapter")
        make_arena(database, base=folder, base_sha256=sha256, adapter=store.put_folder(tmp_path / "adapter"), **rules)
        return Workspace(database, store, "secret")

    return make


@pytest.fixture
def own_signals():
    """The command leaves SIGINT and SIGTERM to a thread of its own; this process wants them back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Diary(list):
    """A worker's log, and something to do when an event comes."""

    def __init__(self, **reactions: Callable[[], None]) -> None:
        self.reactions = reactions

    def __call__(self, event: str, **fields: Any) -> None:
        self.append((event, fields))
        if event in self.reactions:
            self.reactions.pop(event)()

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self]


def ask(ws: Workspace, text: str = "calm piano") -> tuple[uuid.UUID, ArenaTicket]:
    session = open_session(ws.database)
    return session, ArenaService(ws.database).ask(session, text, rng=RNG)


def status(ws: Workspace, asked: tuple[uuid.UUID, ArenaTicket]) -> ArenaTicket:
    return ArenaService(ws.database).status(asked[0], asked[1].id)


def test_both_versions_sing_a_typed_prompt_equally_long_and_differently(any_database: Database, place) -> None:
    ws, diary = place(any_database), Diary()
    asked = [ask(ws), ask(ws, "bright flute")]
    assert Worker(ws, log=diary).run(once=True) == 0
    assert diary.events == ["singing", "sung"] * 2
    for one in asked:
        served = status(ws, one).assignment
        with ws.database.session(write=False) as s:
            pair = get_clips(s, [served.left_clip_id, served.right_clip_id])
        left, right = pair[served.left_clip_id], pair[served.right_clip_id]
        assert {left.version, right.version} == set(VERSIONS)
        assert left.facts.seconds == right.facts.seconds == 0.5
        assert left.audio_sha256 != right.audio_sha256 and left.codes_sha256 != right.codes_sha256
        assert left.generation == right.generation and left.generation.guidance == 2.0
        for clip in (left, right):
            ws.store.verify(clip.audio_sha256)
            assert ws.store.get_codes(clip.codes_sha256).shape == (4, 25)
    assert count(ws.database, "battle") == 2


def test_two_versions_of_one_base_without_adapters_still_sing_two_different_clips(
    sqlite_database: Database, base, tmp_path: Path
) -> None:
    make_arena(sqlite_database, base=base[0], base_sha256=base[1])
    ws = Workspace(sqlite_database, ClipStore(tmp_path / "store"), "secret")
    ask(ws)
    assert Worker(ws, log=Diary()).run(once=True) == 0
    assert len({row[0] for row in rows(ws.database, "clip", "audio_sha256")}) == 2


def test_the_base_is_loaded_once_and_what_open_arenas_need_is_loaded_before_the_first_prompt(
    sqlite_database: Database, place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, loads = place(sqlite_database), []
    load = MusicModel.load.__func__
    monkeypatch.setattr(
        MusicModel, "load", classmethod(lambda cls, source, **place: loads.append(source) or load(cls, source, **place))
    )
    worker = Worker(ws, log=Diary())
    assert worker.preload() == tuple(sorted(VERSIONS))
    for text in ("calm piano", "bright flute", "slow organ"):
        ask(ws, text)
    assert worker.run(once=True) == 0
    assert len(loads) == 1


def test_progress_grows_while_it_is_sung(sqlite_database: Database, place) -> None:
    ws = place(sqlite_database)
    asked, seen = ask(ws), []
    worker = Worker(ws, log=Diary(), takeover_seconds=2)
    beat = worker.queue.beat
    worker.beat_seconds = 0.005

    def spied(request: Any, share: float) -> bool:
        done = beat(request, share)
        seen.append((share, status(ws, asked).progress))
        return done

    worker.queue.beat = spied
    worker.run(once=True)
    shares = [share for share, _ in seen]
    assert shares == sorted(shares) and len(set(shares)) > 2
    assert all(0 <= shown <= 1 for _, shown in seen)
    assert status(ws, asked).progress == 1.0


def test_a_worker_told_to_stop_hands_its_request_back_at_once(any_database: Database, place) -> None:
    ws = place(any_database)
    asked, diary = ask(ws), Diary()
    worker = Worker(ws, log=diary)
    diary.reactions["singing"] = worker.stop
    assert worker.run() == 0
    assert diary.events == ["singing", "handed-back"] and worker.ended.is_set()
    assert status(ws, asked).state == "waiting"
    assert rows(ws.database, "generation_request", "attempts")[0][0] == 0
    assert Worker(ws, log=Diary()).run(once=True) == 0
    assert status(ws, asked).state == "done"


def test_a_worker_that_lost_its_request_stops_singing_it(sqlite_database: Database, place) -> None:
    ws = place(sqlite_database, generation={"clip_seconds": 5.0})
    asked, diary = ask(ws), Diary()
    worker = Worker(ws, log=diary)
    worker.beat_seconds = 0.005

    def steal() -> None:
        with ws.database.session() as s:
            s.execute(sa.text("update generation_request set worker = 'another', attempts = 2"))

    diary.reactions["singing"] = steal
    worker.run(once=True)
    assert diary.events == ["singing", "lost"]
    assert count(ws.database, "clip") == 0 and status(ws, asked).state == "running"
    assert not list(Path(ws.store.root).rglob("*.flac"))  # it did not sing on in vain


def test_a_full_disk_ends_the_worker_with_one_sentence_and_nothing_half_written(
    sqlite_database: Database, place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = place(sqlite_database)
    asked, diary, written = ask(ws), Diary(), []

    def full(handle: Any, data: bytes) -> None:
        written.append(1)
        handle.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(store_module, "_write", full)
        with pytest.raises(StoreError, match="cannot be written .*No space left.*half-written"):
            Worker(ws, log=diary).run()
    assert diary.events == ["singing", "gave-up"] and written == [1]
    assert not list(Path(ws.store.root).rglob("*.flac")) and not list(Path(ws.store.root).rglob("*.partial"))
    assert count(ws.database, "clip") == 0 and status(ws, asked).state == "waiting"
    assert Worker(ws, log=Diary()).run(once=True) == 0
    assert status(ws, asked).state == "done"


def test_a_version_that_cannot_be_loaded_fails_its_requests_and_spares_the_others(
    sqlite_database: Database, place, tmp_path: Path
) -> None:
    ws = place(sqlite_database)
    make_arena_of_missing_base(ws.database, tmp_path / "nowhere")
    session = open_session(ws.database, "broken")
    broken = session, ArenaService(ws.database).ask(session, "calm piano", rng=RNG)
    whole, diary = ask(ws), Diary()
    assert Worker(ws, log=diary).run(once=True) == 1
    assert diary.events == ["singing", "failed", "singing", "sung"]
    assert status(ws, broken).state == "failed" and status(ws, whole).state == "done"
    assert "nowhere" in rows(ws.database, "generation_request", "error", "where state = 'failed'")[0][0]
    assert "nowhere" not in status(ws, broken).error


def make_arena_of_missing_base(database: Database, folder: Path) -> None:
    with database.session() as s:
        s.execute(sa.text("update version set name = name || '-whole'"))
    make_arena(database, name="broken", base=folder)
    with database.session() as s:
        s.execute(sa.text("update version set name = 'broken-' || name where name in ('tuned', 'base')"))
        s.execute(sa.text("update version set name = replace(name, '-whole', '')"))
        recipe = "replace(replace(rules, '\"tuned\"', '\"broken-tuned\"'), '\"base\"', '\"broken-base\"')"
        s.execute(sa.text(f"update study set rules = {recipe} where name = 'broken'"))


def test_an_unexpected_fault_keeps_its_traceback_and_costs_an_attempt(
    sqlite_database: Database, place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = place(sqlite_database)
    asked = ask(ws)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("alignment.music.codec.render", broken)
    for attempt in (1, 2, 3):
        assert status(ws, asked).state == "waiting"
        with pytest.raises(RuntimeError, match="out of memory"):
            Worker(ws, log=Diary()).run(once=True)
        assert rows(ws.database, "generation_request", "attempts")[0][0] == attempt
    assert status(ws, asked).state == "failed"


def test_a_worker_lives_through_an_outage_of_the_database_before_and_while_it_sings(
    postgres_url: str, place, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(postgres_url)
    postgres_database = open_database(postgres_url)
    monkeypatch.setattr("alignment.worker._FIRST_PAUSE", 0.02)
    ws, diary = place(postgres_database), Diary()
    admin = sa.create_engine(sa.make_url(ws.database.url).set(database="postgres"), isolation_level="AUTOCOMMIT")
    name = sa.make_url(ws.database.url).database

    def cut() -> None:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            connection.execute(
                sa.text("select pg_terminate_backend(pid) from pg_stat_activity where datname = :name"), {"name": name}
            )

    def mend() -> None:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    asked = ask(ws)
    worker = Worker(ws, log=diary, poll_seconds=0.02)
    # Gone as soon as the request is claimed; back once the worker has noticed.
    diary.reactions |= {"singing": cut, "no-database": mend, "sung": worker.stop}
    worker.run()
    assert "no-database" in diary.events and diary.events[-1] == "sung"
    assert diary.events.count("singing") == 1  # what was sung is not sung again for an outage
    assert status(ws, asked).state == "done" and count(ws.database, "battle") == 1

    again = Diary()
    worker = Worker(ws, log=again, poll_seconds=0.02)
    cut()  # gone before it asks for work; then a prompt comes once it is back

    def back() -> None:
        mend()
        ask(ws, "bright flute")

    again.reactions |= {"no-database": back, "sung": worker.stop}
    worker.run()
    assert again.events[0] == "no-database" and again.events[-1] == "sung"
    admin.dispose()
    postgres_database.close()


def test_two_workers_share_a_queue_and_sing_nothing_twice(sqlite_database: Database, place) -> None:
    ws = place(sqlite_database)
    for number in range(6):
        ask(ws, f"calm piano {number}")
    diaries = [Diary(), Diary()]
    workers = [Worker(Workspace(ws.database, ws.store, "s"), log=diary) for diary in diaries]
    for worker in workers:
        worker.preload()  # loading a model is not for two threads of one process
    threads = [threading.Thread(target=worker.run, kwargs={"once": True}) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    sung = [fields["request"] for diary in diaries for event, fields in diary if event == "sung"]
    assert len(sung) == len(set(sung)) == 6 and count(ws.database, "battle") == 6


def test_the_command_sings_what_waits_and_says_so_in_lines_of_json(place, tmp_path: Path, capsys, own_signals) -> None:
    url = f"sqlite:///{tmp_path / 'attune.db'}"
    migrate.upgrade(url)
    database = open_database(url)
    ws = place(database)
    asked = ask(ws, "a private thought")
    began = time.monotonic()
    done = attune(capsys, "worker", "--once", "--home", tmp_path)
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert [line["event"] for line in lines] == ["ready", "singing", "sung", "ended"]
    assert lines[0]["versions"] == sorted(VERSIONS) and lines[2]["request"] == str(asked[1].id)
    assert "private" not in done.err and done.out == ""
    assert status(ws, asked).state == "done"
    database.close()
    assert time.monotonic() - began < 30 * patience()


def test_a_log_that_nobody_reads_any_more_stops_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as nobody, monkeypatch.context() as patched:
        patched.setattr("sys.stderr", nobody)
        for _ in range(3):
            log("sung", seconds=1)
        with contextlib.suppress(OSError):
            nobody.close()


def test_the_command_refuses_a_missing_database_and_a_missing_model_in_one_sentence(
    tmp_path: Path, capsys, own_signals
) -> None:
    done = attune(capsys, "worker", "--once", "--home", tmp_path)
    assert done.code == 1 and "run `attune db upgrade`" in done.err
    url = f"sqlite:///{tmp_path / 'attune.db'}"
    migrate.upgrade(url)
    database = open_database(url)
    make_arena(database, base=tmp_path / "nowhere")
    database.close()
    done = attune(capsys, "worker", "--home", tmp_path)
    assert done.code == 1 and "nowhere" in done.err.splitlines()[-1] and "Traceback" not in done.err
