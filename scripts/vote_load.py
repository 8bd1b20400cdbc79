"""Many raters at once against a running server, and the count afterwards: what was lost, doubled or altered.

A rater behaves as the page does: a vote stays in its outbox under one key until the server has said "saved".
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from alignment.clips import ClipStore
from alignment.db import migrate
from alignment.db.clips import NewClip, add_clips
from alignment.db.engine import Database, open_database
from alignment.db.prompts import add_prompts
from alignment.db.studies import NewBattle, add_battles, create_study
from alignment.db.tables import ListeningSessionRow, VoteAxisRow, VoteCommentRow, VoteTable
from alignment.db.versions import add_version
from alignment.db.votes import chain_faults
from alignment.domain import Axis, GenerationConfig, RaterKind, Split

STUDY = "load"
SECRET = "a secret for load tests only, of no use elsewhere"
RATE_HZ = 16_000
CONSENT: dict[str, Any] = {"consent": {"version": "1", "training": True, "publication": True}}
OUTCOMES = ("A", "B", "TIE", "BOTH_BAD", "SKIP", "FAULT")


class Refused(Exception):
    """The server understood a request of an honest rater and said no."""


def prepare(url: str, store_root: Path, *, battles: int) -> None:
    """A new database under the newest schema with an open study of that many battles and no minimum of listening."""
    migrate.upgrade(url)
    database, store = open_database(url), ClipStore(store_root)
    rng = np.random.default_rng(0)
    sung = [store.put_audio(0.2 * rng.uniform(-1, 1, RATE_HZ // 2), RATE_HZ) for _ in range(2)]
    generation = GenerationConfig(clip_seconds=0.5)
    with database.session() as s:
        for name in ("load-base", "load-tuned"):
            add_version(s, name=name, base="folder", base_sha256="0" * 64)
        prompts = add_prompts(s, [(f"load test {number}", "load", Split.TEST, {}) for number in range(battles)])
        clips = add_clips(
            s,
            [
                NewClip(prompt.id, version, generation, 1, sha256, None, facts)
                for prompt in prompts
                for version, (sha256, facts) in zip(("load-base", "load-tuned"), sung, strict=True)
            ],
        )
        study = create_study(
            s, name=STUDY, versions=["load-base", "load-tuned"], questions=[axis.value for axis in Axis],
            minimum_listening_seconds=0.0, rater_kind=RaterKind.HUMAN,
        )  # fmt: skip
        add_battles(
            s,
            study,
            [NewBattle(prompt.id, clips[2 * i].id, clips[2 * i + 1].id) for i, prompt in enumerate(prompts)],
        )
    database.close()


class Connection:
    """One keep-alive HTTP/1.1 connection; opened when needed, opened anew after a failure. Light: no client library."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.host, self.port = host, port
        self.cookie: str | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """(status, JSON or bytes). Raises OSError or EOFError when no whole answer comes."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self.host, self.port)
            return await self._exchange(*self._streams, method, path, body)
        except BaseException:
            self.close()
            raise

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, body: object
    ) -> tuple[int, Any]:
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
        if self.cookie:
            head += f"Cookie: {self.cookie}\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        writer.write(head.encode() + b"\r\n" + content)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        if "set-cookie" in headers:
            self.cookie = headers["set-cookie"].partition(";")[0]
        if headers.get("transfer-encoding") == "chunked":
            data = b""
            while size := int(await reader.readline(), 16):
                data += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        else:
            data = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        is_json = headers.get("content-type", "").startswith("application/json")
        return int(lines[0].split(" ")[1]), json.loads(data) if is_json else data

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


@dataclass
class Ledger:
    """What raters sent, by idempotency key, and which of it the server said was saved."""

    sent: dict[str, dict[str, Any]] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)  # how often
    reasons: Counter[str] = field(default_factory=Counter)  # why requests were sent again

    @property
    def retries(self) -> int:
        return self.reasons.total()


@dataclass
class Rater:
    """One browser. ``stop`` is asked before each new vote; a vote once begun is sent until it is acknowledged."""

    port: int
    ledger: Ledger
    rng: random.Random
    patience_seconds: float = 0.05

    def __post_init__(self) -> None:
        self.connection = Connection(self.port)

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """The answer of a request that is repeated until there is one, less and less often, as the page's outbox does.

        Raises Refused on a 4xx that is not "later"."""
        patience = self.patience_seconds
        while True:
            try:
                status, answer = await self.connection.request(method, path, body)
            except (OSError, EOFError, ValueError, IndexError) as error:
                self.ledger.reasons[type(error).__name__] += 1
                await asyncio.sleep(patience)
                patience = min(0.5, 1.5 * patience)
                continue
            if status == 200:
                return answer
            if status not in (408, 429) and status < 500:
                raise Refused(f"{method} {path}: {status} {answer} for {body}")
            self.ledger.reasons[str(status)] += 1
            await asyncio.sleep(patience)
            patience = min(0.5, 1.5 * patience)

    async def start(self) -> None:
        await self.ask("POST", "/rate/session", CONSENT)

    async def next_pair(self) -> dict[str, Any] | None:
        return (await self.ask("GET", "/rate/pair"))["pair"]

    def draw_vote(self, pair: str) -> dict[str, Any]:
        """A vote with something in every field."""
        draw = self.rng
        outcome = draw.choice(OUTCOMES)
        return {
            "pair": pair,
            "key": f"{draw.getrandbits(128):032x}",
            "outcome": outcome,
            "axes": {axis.value: draw.randint(-2, 2) for axis in Axis},
            "confidence": draw.choice([None, 1, 2, 3]),
            "comment": draw.choice([None, f'remark {draw.getrandbits(64):x} é "quoted" \'; DROP TABLE vote; --']),
            "heard": {"left": draw.randint(0, 10) / 1000, "right": draw.randint(0, 10) / 1000},
            "switches": draw.randint(0, 50),
            "decision_ms": draw.randint(0, 100_000),
        }

    async def send(self, vote: dict[str, Any]) -> dict[str, Any]:
        """The receipt; asked for twice now and then, as an impatient rater's second tab does."""
        self.ledger.sent[vote["key"]] = vote
        receipt = await self.ask("POST", "/rate/votes", vote)
        if receipt.get("saved") is not True:
            raise Refused(f"The receipt says {receipt}.")
        self.ledger.acknowledged[vote["key"]] = self.ledger.acknowledged.get(vote["key"], 0) + 1
        return receipt

    async def rate_until(self, stop: asyncio.Event) -> None:
        """Votes on pair after pair until told to stop or the study has no more."""
        await self.start()
        while not stop.is_set():
            pair = await self.next_pair()
            if pair is None:
                return
            for address in pair["clips"].values():
                await self.ask("GET", address)
            vote = self.draw_vote(pair["id"])
            await self.send(vote)
            if self.rng.random() < 0.1:
                await self.send(vote)


@dataclass(frozen=True)
class Count:
    """The votes in a database against what raters sent and were told."""

    votes: int
    lost: list[str]  # acknowledged and not there
    doubled: list[str]  # assignments or keys with more than one vote
    altered: list[str]  # there with other content than was sent
    unknown: list[str]  # there and never sent
    chain_faults: list[str]

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.altered or self.unknown or self.chain_faults)


def count(database: Database, ledger: Ledger) -> Count:
    """Every vote of the database held against the ledger."""
    with database.session(write=False) as s:
        rows = s.scalars(sa.select(VoteTable)).all()
        axes: dict[uuid.UUID, dict[str, int]] = {}
        for vote_id, axis, value in s.execute(sa.select(VoteAxisRow.vote_id, VoteAxisRow.axis, VoteAxisRow.value)):
            axes.setdefault(vote_id, {})[Axis(axis).value] = value
        comments: dict[uuid.UUID, list[str]] = {}
        for vote_id, text in s.execute(sa.select(VoteCommentRow.vote_id, VoteCommentRow.text)):
            comments.setdefault(vote_id, []).append(text)
        faults = [
            fault for session in s.scalars(sa.select(ListeningSessionRow.id)) for fault in chain_faults(s, session)
        ]
    by_key = Counter(row.idempotency_key for row in rows)
    by_assignment = Counter(row.assignment_id for row in rows)
    altered = []
    for row in rows:
        sent = ledger.sent.get(row.idempotency_key)
        if sent is None:
            continue
        kept = {
            "pair": row.assignment_id.hex,
            "key": row.idempotency_key,
            "outcome": row.outcome.value,
            "axes": axes.get(row.id, {}),
            "confidence": row.confidence,
            "comment": "\n".join(comments.get(row.id, [])) or None,
            "heard": {"left": row.heard_left_seconds, "right": row.heard_right_seconds},
            "switches": row.switches,
            "decision_ms": row.decision_ms,
        }
        if kept != {name: sent[name] for name in kept}:
            altered.append(row.idempotency_key)
    return Count(
        votes=len(rows),
        lost=[key for key in ledger.acknowledged if key not in by_key],
        doubled=[key for key, times in by_key.items() if times > 1]
        + [str(assignment) for assignment, times in by_assignment.items() if times > 1],
        altered=altered,
        unknown=[key for key in by_key if key not in ledger.sent],
        chain_faults=faults,
    )


def free_port() -> int:
    """A port of this machine that nobody listens at; below those that Linux gives to outgoing connections, one of which
    could otherwise have it by the time that a server starts there."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
