"""Workers die: killed at any moment they lose nothing and double nothing, and told to end they end in time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from arena_support import count, make_arena, open_session, rows
from database_support import any_database, any_url, postgres_server, postgres_url, sqlite_database, sqlite_url
from jobs_support import patience
from music_support import save_tiny_music

from alignment.clips import ClipStore
from alignment.db.engine import Database
from alignment.music.model import MusicModel
from alignment.requests import ArenaService

__all__ = ["any_database", "any_url", "postgres_server", "postgres_url", "sqlite_database", "sqlite_url"]
ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
ATTUNE = [sys.executable, "-c", "from alignment.cli import main; main()"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = save_tiny_music(tmp_path_factory.mktemp("base"))
    return folder, MusicModel.load(folder).base_sha256


class Nursery:
    """Starts workers and hears what they say."""

    def __init__(self, base: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "worker_nursery.py"), str(base)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        self.wait_for("ready")

    def hear(self) -> str:
        word = self.process.stdout.readline().strip()
        assert word, "the nursery ended"
        return word

    def wait_for(self, beginning: str) -> str:
        while not (word := self.hear()).startswith(beginning):
            pass
        return word

    def start(self, url: str, store: Path, takeover: float) -> int:
        self.process.stdin.write(f"{url} {store} {takeover}\n")
        self.process.stdin.flush()
        return int(self.wait_for("started").split()[1])


@pytest.fixture(scope="module")
def nursery(base: tuple[Path, str]) -> Iterator[Nursery]:
    made = Nursery(base[0])
    yield made
    made.process.kill()
    made.process.wait()


def test_workers_killed_at_random_moments_lose_no_prompt_and_sing_none_into_two_pairs(
    any_database: Database, any_url: str, base: tuple[Path, str], nursery: Nursery, tmp_path: Path
) -> None:
    make_arena(any_database, base=base[0], base_sha256=base[1])
    service, rng, asked = ArenaService(any_database), random.Random(11), []
    for number in range(6):
        session = open_session(any_database)
        asked.append((session, service.ask(session, f"calm piano {number}", rng=rng).id))
    kills = []
    while any(service.status(*one).state != "done" for one in asked):
        worker = nursery.start(any_url, tmp_path / "store", 0.4)
        word = nursery.hear()
        for _ in range(rng.randrange(60)):
            word = nursery.hear()
            if word in ("sung", "before finish") and rng.random() < 0.5:  # the moments that matter most
                break
        # Two deaths of one request are survived by design, and a third one is a failure by design.
        left = rows(any_database, "generation_request", "attempts", "where state <> 'done'")
        while left and max(row[0] for row in left) >= 3:
            word = nursery.wait_for("sung")
            left = rows(any_database, "generation_request", "attempts", "where state <> 'done'")
        os.kill(worker, signal.SIGKILL)
        kills.append(word)
        assert len(kills) < 200
    assert len(kills) >= 5
    tickets = [service.status(*one) for one in asked]
    assert len({ticket.assignment.battle_id for ticket in tickets}) == 6
    for table, wanted in (("battle", 6), ("assignment", 6), ("clip", 12), ("generation_request", 6)):
        assert count(any_database, table) == wanted, table
    store = ClipStore(tmp_path / "store")
    for audio, codes in rows(any_database, "clip", "audio_sha256, codes_sha256"):
        store.verify(audio)
        store.verify(codes)


def test_sigterm_ends_the_command_within_five_seconds_and_its_request_waits_again(
    sqlite_database: Database, base: tuple[Path, str], tmp_path: Path
) -> None:
    # Long enough that it cannot be done before the signal comes.
    make_arena(sqlite_database, base=base[0], base_sha256=base[1], generation={"clip_seconds": 10.0})
    session = open_session(sqlite_database)
    service = ArenaService(sqlite_database)
    ticket = service.ask(session, "calm piano", rng=random.Random(1))
    worker = subprocess.Popen(
        [*ATTUNE, "worker", "--home", str(tmp_path)], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    try:
        told = {}
        while "singing" not in told:
            line = json.loads(worker.stderr.readline())
            told[line["event"]] = datetime.fromisoformat(line["time"])
        asked = datetime.now(UTC)
        worker.send_signal(signal.SIGTERM)
        for line in map(json.loads, worker.stderr):
            told[line["event"]] = datetime.fromisoformat(line["time"])
        assert worker.wait(30) == 0
    finally:
        worker.kill()
    assert list(told) == ["ready", "singing", "handed-back", "ended"]
    assert (told["handed-back"] - asked).total_seconds() < 5  # by its own clock: a busy machine ends processes slowly
    assert service.status(session, ticket.id).state == "waiting"
    assert rows(sqlite_database, "generation_request", "attempts")[0][0] == 0


def test_a_worker_deep_in_a_computation_still_hands_its_request_back_within_five_seconds(tmp_path: Path) -> None:
    # Stands in for a worker whose decoder runs for minutes in one call: Python's own handlers would have to wait.
    code = (
        "import threading, time, ctypes\n"
        "from alignment.cli.stopping import block_signals, stop_on_signals\n"
        "block_signals()\n"
        "class Deep:\n"
        "    ended = threading.Event()\n"
        "    def stop(self): print('stop', flush=True)\n"
        "    def hand_back_now(self): print('handed back', flush=True)\n"
        "stop_on_signals(Deep())\n"
        "print('ready', flush=True)\n"
        "ctypes.CDLL(None).sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read().split("\n")[:2] == ["stop", "handed back"]
        assert process.wait() == 0 and time.monotonic() - began < 5 * patience()
    finally:
        process.kill()


def test_a_worker_whose_parent_is_killed_ends_by_itself() -> None:
    child = (
        "import os, signal, sys\n"
        "from alignment.cli.stopping import block_signals, die_with_parent\n"
        "signal.alarm(30); block_signals(); die_with_parent(int(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "signal.sigwait({signal.SIGTERM}); print('told', flush=True)\n"
    )
    parent = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())])\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert process.stdout.readline() == "told\n"  # and the pipe ends, because the orphan does
    assert process.stdout.read() == ""
    process.wait()
