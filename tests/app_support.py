"""A database with fake clips, a rating app over it, and a browser, for the tests of the listening page."""

from __future__ import annotations

import atexit
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from alignment.clips import ClipStore
from alignment.db import migrate
from alignment.db.clips import NewClip, add_clips
from alignment.db.engine import Database, open_database
from alignment.db.prompts import add_prompts
from alignment.db.studies import get_study
from alignment.db.versions import add_version
from alignment.db.votes import VoteRow, counted_votes
from alignment.domain import GenerationConfig, Split
from alignment.studies import StudyRecipe, create_study_from_recipe
from rating_app.app import create_app
from rating_app.demo import ensure_demo_study

SECRET = "a secret for tests only"
RATE_HZ = 16000
CLIP_SECONDS = 1.0
CONSENT = {"consent": {"version": "1", "training": True, "publication": True}}
PROMPTS = (
    "a slow piano waltz in a minor key with a soft double bass",
    "<img src=x onerror=window.injected=1>${window.injected=1}{{prompt}}",
    "bright marimba over a steady drum loop",
)


def fake_music(seed: int, seconds: float = CLIP_SECONDS) -> np.ndarray:
    """A plucked chord pattern, (samples,) float32; another one for every seed."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    audio = np.zeros_like(time)
    for start in np.arange(0, seconds, 0.25):
        since = np.clip(time - start, 0, None)
        pitch = 220 * 2 ** (rng.choice([0, 3, 5, 7, 10, 12]) / 12)
        audio += np.sin(2 * np.pi * pitch * since) * np.exp(-since * rng.uniform(4, 16)) * (time >= start)
    return (0.3 * audio / np.abs(audio).max() * rng.uniform(0.5, 1)).astype(np.float32)


class Clock:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Site:
    """A rating app with what lies behind it."""

    database: Database
    store: ClipStore
    study: str
    app: FastAPI

    def votes(self, study: str | None = None) -> list[VoteRow]:
        """The counted votes of a study, of the site's own without a name."""
        with self.database.session(write=False) as s:
            return counted_votes(s, study_ids=[get_study(s, study or self.study).id])

    def add_study(self, name: str, *, state: str = "open", **rules: object) -> str:
        """A study made from a recipe over the clips there are; its name."""
        recipe = StudyRecipe.model_validate(
            {"name": name, "versions": ["secret-base", "secret-aligned"], "minimum_listening_seconds": 0.4, **rules}
        )
        return create_study_from_recipe(self.database, self.store, recipe, actor="tests", state=state).name


@cache
def filled_folder(seconds: float, prompts: tuple[str, ...]) -> Path:
    """A folder with a filled database and store, made once and copied for every test."""
    keeper = tempfile.TemporaryDirectory(prefix="attune-tests-")
    atexit.register(keeper.cleanup)
    folder = Path(keeper.name)
    url = f"sqlite:///{folder / 'attune.db'}"
    migrate.upgrade(url)
    database = open_database(url)
    fill(database, ClipStore(str(folder / "store")), seconds=seconds, prompts=prompts)
    database.close()
    return folder


def fill(database: Database, store: ClipStore, *, seconds: float, prompts: tuple[str, ...]) -> None:
    """Two versions with one clip each for every prompt, all on the test split."""
    generation = GenerationConfig(clip_seconds=seconds)
    with database.session() as s:
        add_version(s, name="secret-base", base="folder", base_sha256="0" * 64)
        add_version(
            s, name="secret-aligned", base="folder", base_sha256="0" * 64, parent="secret-base",
            adapter_sha256="1" * 64, adapter_uri="adapters/1", simulated=True,
        )  # fmt: skip
        clips = []
        for number, prompt in enumerate(add_prompts(s, [(text, "tests", Split.TEST, {}) for text in prompts])):
            for shift, version in enumerate(("secret-base", "secret-aligned")):
                seed = 2 * number + shift
                sha256, facts = store.put_audio(fake_music(seed, seconds), RATE_HZ)
                clips.append(NewClip(prompt.id, version, generation, seed, sha256, None, facts))
        add_clips(s, clips)


@contextmanager
def open_site(
    folder: Path, *, minimum_listening_seconds: float = 0.4, seconds: float = CLIP_SECONDS, with_page: bool = False,
    prompts: tuple[str, ...] = PROMPTS, **options: object,
) -> Iterator[Site]:  # fmt: skip
    """A fresh database and store under ``folder``, filled, with the app over them."""
    shutil.copytree(filled_folder(seconds, prompts), folder, dirs_exist_ok=True)
    database, store = open_database(f"sqlite:///{folder / 'attune.db'}"), ClipStore(str(folder / "store"))
    try:
        study = ensure_demo_study(database, minimum_listening_seconds=minimum_listening_seconds)
        app = create_app(database, store, secret=SECRET, study_name=study, with_page=with_page, **options)
        yield Site(database, store, study, app)
    finally:
        database.close()


def client_of(site: Site, *, started: bool = True) -> TestClient:
    """A browser without a page; ``started``: it has consented and holds a session."""
    client = TestClient(site.app, base_url="http://attune.test")
    if started:
        answer = client.post("/rate/session", json=CONSENT)
        assert answer.status_code == 200, answer.text
    return client


def fetch_clips(client: TestClient, pair: dict) -> dict[str, bytes]:
    """Both clips of a pair, as a player loads them; listening counts from then on."""
    answers = {side: client.get(address) for side, address in pair["clips"].items()}
    assert {answer.status_code for answer in answers.values()} == {200}
    return {side: answer.content for side, answer in answers.items()}


def next_pair(client: TestClient, *held: dict, fetched: bool = True, **options: object) -> dict | None:
    """The next pair, with its clips loaded as a player would: listening counts from then on."""
    answer = client.get("/rate/pair", params={"except": ",".join(pair["id"] for pair in held)}, **options)
    assert answer.status_code == 200, answer.text
    pair = answer.json()["pair"]
    if pair and fetched:
        fetch_clips(client, pair)
    return pair


def listened() -> list[dict]:
    """What a player tells that played the left clip once and then the right one."""
    told = (("play", "left", 0.0), ("switch", "right", 0.0), ("pause", "right", 0.0))
    return [
        {"seq": seq, "type": type, "side": side, "position": position, "at_ms": 1000 * (seq + 1)}
        for seq, (type, side, position) in enumerate(told)
    ]


def a_vote(pair: dict, key: str = "0" * 32, **changes: object) -> dict:
    """The JSON of a vote by someone who heard both clips."""
    return {
        "pair": pair["id"],
        "key": key,
        "outcome": "A",
        "axes": {"text_adherence": -1, "quality": 2},
        "comment": None,
        "heard": {"left": 0.9, "right": 0.9},
        "switches": 3,
        "decision_ms": 4000,
        **changes,
    }


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The app behind a real port, in a thread; yields its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


BROWSER_ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required"
).split()
