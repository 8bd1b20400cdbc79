"""`attune serve`: from an empty folder to a pair to rate, and one clear sentence for whatever stands in the way."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from app_support import BROWSER_ARGUMENTS, fill, running
from arena_support import count, make_arena, rows
from circle_support import attune
from database_support import postgres_server, postgres_url, sqlite_database, sqlite_url
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

import rating_app.serve as serving
from alignment.clips import ClipStore
from alignment.db import migrate
from alignment.db.engine import Database, open_database
from alignment.db.studies import create_study, get_study, list_battles
from alignment.db.versions import add_version, list_versions
from alignment.domain import RaterKind
from alignment.errors import ModelError, SchemaVersionError
from alignment.requests import ArenaService
from alignment.studies import rules_of
from rating_app.demo import default_study, ensure_arena_study, ensure_demo_study, newcomers_rules
from rating_app.doorway import Doorway
from rating_app.logs import configure_logging
from rating_app.server import settle
from rating_app.singer import Singer
from scripts.vote_load import free_port

__all__ = ["postgres_server", "postgres_url", "sqlite_database", "sqlite_url"]
ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def ask_until(done: Callable[[], object], *, seconds: float = 300) -> object:
    """What ``done`` returns once it returns something; asked over and over, because it is another process's doing."""
    until = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)
    return found


# From an empty folder ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first_start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen, str, Path]]:
    """`attune serve` in an empty folder: the process, its address, the folder."""
    folder, port = tmp_path_factory.mktemp("empty"), free_port()
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("ATTUNE")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "alignment.cli", "serve", "--port", str(port)],
            cwd=folder, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    yield process, f"http://127.0.0.1:{port}", folder
    process.kill()
    process.wait()


def children_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task")
    return [int(child) for task in path.iterdir() for child in (task / "children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_an_empty_folder_says_that_clips_are_being_sung_and_then_serves_a_pair(first_start) -> None:
    process, address, folder = first_start
    with httpx.Client(base_url=address, timeout=20) as browser:

        def answers() -> httpx.Response | None:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                return browser.get("/rate/state")
            except httpx.TransportError:
                return None

        waiting = ask_until(answers)
        assert waiting.status_code == 503 and waiting.json()["preparing"]["done"] == 0
        page = browser.get("/")
        assert page.status_code == 200 and "clips are being sung" in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for name in ("preparing.js", "preparing.css"):
            assert f"/player/{name}" in page.text and browser.get(f"/player/{name}").status_code == 200
        state = ask_until(lambda: (found := answers()) is not None and found.status_code == 200 and found)
        assert "preparing" not in state.text
        assert "clips are being sung" not in browser.get("/").text
    database = open_database(f"sqlite:///{folder / 'data' / 'attune.db'}")
    with database.session(write=False) as s:
        study = get_study(s, "listening demo: two clips of tiny-base")
        assert len(list_battles(s, study.id)) == 12
    title = rules_of(study).title
    assert title and "tiny" not in title and "base" not in title
    assert count(database, "clip") == 24
    assert {row[0] for row in rows(database, "clip", "seconds")} == {5.0}
    database.close()


def test_the_running_server_has_no_torch_in_it_and_its_child_has(first_start) -> None:
    process, _, _ = first_start
    libraries = Path(f"/proc/{process.pid}/maps").read_text()
    assert "libpython" in libraries or "python" in libraries
    assert "libtorch" not in libraries
    (child,) = children_of(process.pid)
    assert "libtorch" in Path(f"/proc/{child}/maps").read_text()


def test_a_prompt_typed_there_is_sung_by_the_child(first_start) -> None:
    _, _, folder = first_start
    from alignment.votes import VoteService

    database = open_database(f"sqlite:///{folder / 'data' / 'attune.db'}")
    ask_until(lambda: rows(database, "study", "name", "where mode = 'arena'"))
    votes = VoteService(database, secret="s")
    session = votes.open_session(votes.enrol_rater("me", kind=RaterKind.HUMAN), "your-words")
    arena = ArenaService(database)
    ticket = arena.ask(session, "slow piano with strings", rng=random.Random(1))
    ask_until(lambda: arena.status(session, ticket.id).state == "done")
    served = arena.status(session, ticket.id).assignment
    sung = {row[0] for row in rows(database, "clip", "audio_sha256", "order by created_at desc limit 2")}
    assert len(sung) == 2 and served.prompt_text == "slow piano with strings"
    database.close()


def test_the_child_is_started_again_when_it_is_killed_and_dies_with_the_server(first_start) -> None:
    process, _, _ = first_start
    (child,) = children_of(process.pid)
    os.kill(child, signal.SIGKILL)
    heir = ask_until(lambda: [pid for pid in children_of(process.pid) if pid != child and is_alive(pid)])[0]
    ask_until(lambda: "prctl" in Path(f"/proc/{heir}/syscall").read_text() or "libtorch" in maps(heir))
    process.kill()  # no chance to say goodbye
    process.wait()
    ask_until(lambda: not is_alive(heir), seconds=10)


def maps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


# The door ---------------------------------------------------------------------------------------------------------


def test_the_door_opens_when_the_app_is_there_and_lives_the_apps_life() -> None:
    life, ready = [], threading.Event()

    @asynccontextmanager
    async def lifespan(_: FastAPI):
        life.append("started")
        yield
        life.append("ended")

    inside = FastAPI(lifespan=lifespan)
    inside.add_api_route("/rate/state", lambda: {"inside": True})

    def prepare() -> FastAPI:
        ready.wait(20)
        return inside

    with running(Doorway(prepare, sung=lambda: (8, 24))) as address, httpx.Client(base_url=address) as browser:
        waiting = browser.get("/rate/state")
        assert waiting.status_code == 503 and waiting.json()["preparing"] == {"done": 8, "total": 24}
        assert waiting.headers["retry-after"] == "2"
        assert browser.get("/healthz").status_code == 200 and browser.get("/healthz/ready").status_code == 503
        assert browser.post("/rate/votes", json={}).status_code == 503
        assert browser.get("/rate/../etc/passwd").status_code == 503
        assert browser.head("/").content == b"" and life == []
        ready.set()
        ask_until(lambda: browser.get("/rate/state").status_code == 200, seconds=20)
        assert browser.get("/rate/state").json() == {"inside": True} and life == ["started"]
    assert life == ["started", "ended"]


def test_a_door_that_cannot_be_opened_says_why_and_stays_shut() -> None:
    said = threading.Event()

    def prepare() -> FastAPI:
        raise ModelError("the model is gone")

    door = Doorway(prepare, sung=lambda: (0, 0))
    door.on_failure = said.set
    with running(door) as address:
        assert said.wait(20)
        assert httpx.get(f"{address}/rate/state").status_code == 503
    assert str(door.error) == "the model is gone"


@pytest.mark.browser
def test_the_waiting_page_counts_the_clips_and_goes_on_by_itself() -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or "/usr/bin/chromium"
    if not Path(chromium).exists():
        message = f"{chromium} is not there; `make system` installs Debian's chromium."
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    sung, ready, inside = [0, 24], threading.Event(), FastAPI()
    inside.add_api_route("/rate/state", lambda: {"study": {}})
    inside.add_api_route("/", lambda: HTMLResponse("<h1>Which one do you prefer?</h1>"))
    door = Doorway(lambda: ready.wait(60) and inside, sung=lambda: (sung[0], sung[1]))
    with running(door) as address, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER_ARGUMENTS)
        page, faults = browser.new_page(viewport={"width": 360, "height": 740}), []
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: "Security Policy" in said.text and faults.append(said.text))
        page.on("request", lambda asked: asked.url.startswith((address, "data:")) or faults.append(asked.url))
        page.goto(address)
        page.get_by_text("0 of 24 clips").wait_for()
        sung[0] = 16
        page.get_by_text("16 of 24 clips").wait_for()
        assert page.get_by_role("progressbar").evaluate("bar => bar.value / bar.max") == 16 / 24
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ready.set()
        page.get_by_role("heading", name="Which one do you prefer?").wait_for()
        browser.close()
    assert faults == []


def test_a_server_told_to_end_does_not_wait_for_clips_that_are_still_being_sung() -> None:
    never = threading.Event()
    server = uvicorn.Server(
        uvicorn.Config(
            Doorway(lambda: never.wait() or FastAPI(), sung=lambda: (0, 24)), port=free_port(), log_level="error"
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    ask_until(lambda: server.started, seconds=20)
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()
    never.set()


# The child --------------------------------------------------------------------------------------------------------


def fake(*lines: str) -> list[str]:
    """A worker's stand-in: a process that runs these lines of Python."""
    return [sys.executable, "-c", "\n".join(("import sys, os, time, signal, json", *lines))]


READY = "print(json.dumps({'event': 'ready'}), file=sys.stderr, flush=True)"


def test_a_child_that_crashes_is_started_again_with_growing_pauses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses = []
    singer = Singer(fake(READY, "os._exit(3)"), environment={}, first_pause=0.01)
    wait = singer._stopping.wait
    monkeypatch.setattr(singer._stopping, "wait", lambda seconds: pauses.append(seconds) or wait(0.001))
    singer.start()
    ask_until(lambda: singer.starts >= 4, seconds=30)
    singer.stop()
    assert pauses[:3] == [0.01, 0.02, 0.04]
    ended = [record for record in caplog.records if record.message == "worker-ended"]
    assert [record.fields["worker"]["status"] for record in ended[:2]] == [3, 3]
    assert {record.levelname for record in ended} == {"WARNING"}


def test_what_a_child_says_becomes_lines_like_all_others_and_names_no_version() -> None:
    log = io.StringIO()
    before = logging.getLogger().handlers[:]
    configure_logging(log)
    try:
        said = (
            "told = {'time': 'now', 'event': 'ready', 'worker': 'w1', 'versions': ['the-base']}",
            "print(json.dumps(told), file=sys.stderr)",
            "print(json.dumps({'event': 'gave-up', 'error': 'no host 10.0.0.7'}), file=sys.stderr)",
            "print('[1, 2]', file=sys.stderr)",
            "print('a library warns of 10.0.0.8', file=sys.stderr, flush=True)",
        )
        singer = Singer(fake(*said, "signal.pause()"), environment={})
        singer.start()
        ask_until(lambda: len(log.getvalue().splitlines()) == 4)
        singer.stop()
    finally:
        logging.getLogger().handlers[:] = before
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("info", "ready"), ("warning", "gave-up"), ("warning", "worker: [1, 2]"),
        ("warning", "worker: a library warns of [address]"),
    ]  # fmt: skip
    assert lines[0]["worker"] == {"worker": "w1"} and lines[1]["worker"]["error"] == "no host [address]"
    assert "the-base" not in log.getvalue() and {line["logger"] for line in lines} == {"rating_app.singer"}


def test_stopping_ends_the_child_and_starts_no_other() -> None:
    singer = Singer(fake(READY, "signal.pause()"), environment={})
    singer.start()
    pid = ask_until(lambda: singer.pid)
    singer.stop()
    assert not is_alive(pid) and singer.pid is None and singer.starts == 1


def test_the_first_clips_are_waited_for_and_counted() -> None:
    told = "print(json.dumps({'event': 'first-clips', 'done': 8, 'total': 24}), file=sys.stderr, flush=True)"
    singer = Singer(fake(told, READY, "signal.pause()"), environment={}, first_clips=True)
    singer.start()
    singer.wait_for_first_clips()
    assert singer.sung == (8, 24)
    singer.stop()


def test_a_child_that_cannot_sing_the_first_clips_passes_its_sentence_on() -> None:
    refuse = "print('attune: tiny is damaged; fetch it again.', file=sys.stderr); sys.exit(1)"
    singer = Singer(fake(refuse), environment={}, first_clips=True)
    singer.start()
    with pytest.raises(ModelError, match="^tiny is damaged; fetch it again.$"):
        singer.wait_for_first_clips()
    assert singer.starts == 1
    silent = Singer(fake("os._exit(9)"), environment={}, first_clips=True, first_pause=0.01)
    silent.start()
    with pytest.raises(ModelError, match="status 9"):
        silent.wait_for_first_clips()
    assert silent.starts == 3


# Which study ------------------------------------------------------------------------------------------------------


def test_an_organisers_open_study_goes_before_the_demo_and_pairs_before_typed_prompts(
    sqlite_database: Database, tmp_path: Path
) -> None:
    store = ClipStore(tmp_path / "store")
    fill(sqlite_database, store, seconds=0.5, prompts=("slow piano", "fast flute"))
    assert default_study(sqlite_database) is None
    ensure_demo_study(sqlite_database, rules=newcomers_rules)
    ensure_arena_study(sqlite_database, store)
    assert default_study(sqlite_database) is None
    with sqlite_database.session() as s:
        for name, mode, state, kind in (
            ("typed", "arena", "open", RaterKind.HUMAN),
            ("simulated", "ab", "open", RaterKind.SIMULATED),
            ("draft", "ab", "draft", RaterKind.HUMAN),
        ):
            create_study(
                s, name=name, versions=["secret-base"], questions=["quality"], minimum_listening_seconds=1,
                rater_kind=kind, mode=mode, state=state,
            )  # fmt: skip
    assert default_study(sqlite_database) == "typed"
    with sqlite_database.session() as s:
        for name, mode in (("first", "ab"), ("second", "ab"), ("typed later", "arena")):
            create_study(
                s, name=name, versions=["secret-base"], questions=["quality"], minimum_listening_seconds=1,
                rater_kind=RaterKind.HUMAN, mode=mode,
            )  # fmt: skip
    assert default_study(sqlite_database) == "second"


def test_the_demo_study_is_made_once_and_one_from_before_is_kept(sqlite_database: Database, tmp_path: Path) -> None:
    fill(sqlite_database, ClipStore(tmp_path / "store"), seconds=0.5, prompts=("slow piano",))
    old = ensure_demo_study(sqlite_database)  # without rules, as it always was
    assert ensure_demo_study(sqlite_database, rules=newcomers_rules) == old
    assert count(sqlite_database, "study") == count(sqlite_database, "battle") == 1


def test_an_arena_of_base_and_newest_adapter_is_made_once(sqlite_database: Database, tmp_path: Path) -> None:
    store = ClipStore(tmp_path / "store")
    with sqlite_database.session() as s:
        add_version(s, name="base", base="tiny", base_sha256="0" * 64)
    alone = ensure_arena_study(sqlite_database, store)
    assert ensure_arena_study(sqlite_database, store) == alone == "your-words"
    with sqlite_database.session() as s:
        assert {version.name for version in list_versions(s)} == {"base", "base-twin"}
        study = get_study(s, alone)
        assert study.mode == "arena" and study.state == "open"
        for number in (1, 2):
            add_version(
                s, name=f"v{number}", base="tiny", base_sha256="0" * 64, parent="base", adapter_sha256=f"{number}" * 64,
                adapter_uri="x",
            )  # fmt: skip
    assert rules_of(study).versions == ("base", "base-twin") and "Taylor Swift" in rules_of(study).arena.blocked_artists
    tuned = ensure_arena_study(sqlite_database, store)
    with sqlite_database.session(write=False) as s:
        assert rules_of(get_study(s, tuned)).versions == ("base", "v2")
    assert ensure_arena_study(sqlite_database, store) == tuned == "your-words-2"


def test_where_there_is_an_adapter_no_second_name_is_given_to_the_base(
    sqlite_database: Database, tmp_path: Path
) -> None:
    with sqlite_database.session() as s:
        add_version(s, name="base", base="tiny", base_sha256="0" * 64)
        add_version(
            s, name="v1", base="tiny", base_sha256="0" * 64, parent="base", adapter_sha256="1" * 64, adapter_uri="x"
        )
    ensure_arena_study(sqlite_database, ClipStore(tmp_path / "store"))
    with sqlite_database.session(write=False) as s:
        assert [version.name for version in list_versions(s)] == ["base", "v1"]


# One clear sentence -----------------------------------------------------------------------------------------------


def refused(done, *words: str) -> None:
    assert done.code == 1 and done.out == "", done
    line = done.err.strip().splitlines()[-1]
    assert line.startswith("attune: ") and "Traceback" not in done.err
    for word in words:
        assert word in line, line


def test_a_port_that_is_taken_is_refused_before_anything_is_made(tmp_path: Path, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(attune(capsys, "serve", "--home", tmp_path / "home", "--port", port), port, "give another --port")
    refused(attune(capsys, "serve", "--home", tmp_path / "home", "--host", "no.such.host.invalid"), "another --host")
    assert not (tmp_path / "home").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    refused(attune(capsys, "serve", "--home", tmp_path / "file", "--port", free_port()), "cannot be created")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "store").write_text("")
    refused(attune(capsys, "serve", "--home", tmp_path / "home", "--port", free_port()), "store", "cannot be created")


def test_without_clips_and_without_a_worker_there_is_nothing_to_serve(tmp_path: Path, capsys) -> None:
    done = attune(capsys, "serve", "--home", tmp_path, "--port", free_port(), "--no-worker")
    refused(done, "no clips", "attune generate")
    refused(attune(capsys, "serve", "--home", tmp_path, "--port", free_port(), "--study", "nobody"), "nobody")


def test_on_postgresql_nothing_is_made_by_itself(postgres_url: str, tmp_path: Path, capsys) -> None:
    options = ("--database", postgres_url, "--home", tmp_path, "--port", free_port())
    refused(attune(capsys, "serve", *options), "attune db upgrade")
    assert migrate.current_revision(postgres_url) is None
    migrate.upgrade(postgres_url)
    database = open_database(postgres_url)
    fill(database, ClipStore(tmp_path / "clips"), seconds=0.5, prompts=("slow piano",))
    refused(attune(capsys, "serve", *options), "attune study create")
    assert count(database, "study") == 0 and not (tmp_path / "store").exists()
    database.close()


def test_in_production_an_sqlite_file_is_not_made_either(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'attune.db'}"
    wishes = serving.Wishes(url, str(tmp_path / "store"), "secret", port=free_port(), production=True)
    with pytest.raises(SchemaVersionError, match="attune db upgrade"):
        serving.serve(wishes)
    assert list(tmp_path.iterdir()) == []


def test_on_postgresql_an_organisers_study_is_served_without_a_child(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(postgres_url)
    database = open_database(postgres_url)
    make_arena(database)
    served = []
    monkeypatch.setattr(serving, "create_app", lambda *_, study_name, **__: served.append(study_name) or FastAPI())
    monkeypatch.setattr(serving, "_run", lambda app, wishes, listener, singer: served.append(singer))
    serving.serve(serving.Wishes(postgres_url, str(tmp_path), "secret", port=free_port()))
    assert served == ["arena", None]
    assert rows(database, "study", "name") == [("arena",)]
    database.close()


def test_what_was_built_is_settled_before_the_first_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'attune.db'}"
    migrate.upgrade(url)
    database = open_database(url)
    make_arena(database)
    database.close()
    done = []
    monkeypatch.setattr(serving, "create_app", lambda *_, **__: done.append("built") or FastAPI())
    monkeypatch.setattr("rating_app.server.settle", lambda: done.append("settled"))
    monkeypatch.setattr(serving, "_run", lambda *_: done.append("served"))
    before = logging.getLogger().handlers[:]
    try:
        wishes = serving.Wishes(
            url, str(tmp_path / "store"), "secret", port=free_port(), study_name="arena", worker=False
        )
        serving.serve(wishes)
    finally:
        logging.getLogger().handlers[:] = before
    assert done == ["built", "settled", "served"]


def test_settling_frees_what_is_garbage_and_hides_the_rest_from_later_collections() -> None:
    class Node:
        pass

    def cycle() -> weakref.ref:
        one, other = Node(), Node()
        one.other, other.one = other, one
        return weakref.ref(one)

    gc.collect()
    gc.disable()  # nothing is collected but by what is tested
    try:
        garbage, kept = cycle(), Node()
        kept.itself = kept
        settle()
        assert garbage() is None  # or it would be kept for ever
        assert gc.get_freeze_count() > 0 and not any(one is kept for one in gc.get_objects())
        later = cycle()
        gc.collect()
        assert later() is None  # what requests leave behind goes as ever
    finally:
        gc.enable()
        gc.unfreeze()


@pytest.mark.parametrize(
    ("terminal", "production", "writable"),
    [(True, False, True), (False, False, True), (True, True, True), (True, False, False)],
)
def test_on_a_terminal_requests_are_logged_to_a_file_and_the_address_says_where(
    terminal: bool, production: bool, writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    url = f"sqlite:///{tmp_path / 'attune.db'}"
    migrate.upgrade(url)
    database = open_database(url)
    make_arena(database)
    database.close()
    if not writable:
        (tmp_path / "log").write_text("a file where the folder would be")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(serving, "create_app", lambda *_, **__: FastAPI())

    def serve(*_) -> None:
        logging.getLogger("rating_app.metrics").info("request", extra={"fields": {"route": "/rate/votes"}})
        logging.getLogger("rating_app.guard").warning("careful")

    monkeypatch.setattr(serving, "_run", serve)
    before = logging.getLogger().handlers[:]
    try:
        serving.serve(
            serving.Wishes(
                url, str(tmp_path / "store"), "secret", port=free_port(), study_name="arena", worker=False,
                production=production,
            )
        )  # fmt: skip
    finally:
        for handler in logging.getLogger().handlers:
            handler.close()
        logging.getLogger().handlers[:] = before
    told = capsys.readouterr().err
    file = tmp_path / "log" / "requests.jsonl"
    (address,) = [line for line in told.splitlines() if line.startswith("Listening page: ")]
    to_a_file = terminal and not production and writable
    assert (str(file) in address) is to_a_file and file.exists() is to_a_file
    assert "careful" in told  # warnings are for whoever looks on
    assert ('"route": "/rate/votes"' in told) is not to_a_file
    if to_a_file:
        assert [json.loads(line)["message"] for line in file.read_text().splitlines()] == ["request", "careful"]


@pytest.mark.parametrize(
    "sentence",
    ["tiny is not a folder of a model; fetch it again.", "store/audio cannot be written (No space left on device)."],
)
def test_first_clips_that_cannot_be_sung_end_the_server_with_the_singers_sentence(
    sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = fake(f"print({f'attune: {sentence}'!r}, file=sys.stderr); sys.exit(1)")
    monkeypatch.setattr(serving, "worker_command", lambda *_: fails)
    url = f"sqlite:///{tmp_path / 'attune.db'}"
    wishes = serving.Wishes(url, str(tmp_path / "store"), "secret", port=free_port())
    with pytest.raises(ModelError) as refusal:
        serving.serve(wishes)
    assert str(refusal.value) == sentence
    database = open_database(url)
    assert count(database, "study") == count(database, "version") == count(database, "clip") == 0
    database.close()


def test_the_web_process_imports_no_torch() -> None:
    code = (
        "import sys, rating_app.app, rating_app.serve, rating_app.demo, alignment.requests\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
