"""What those who run the server see: liveness, readiness, logs and figures; and what the guard does behind a proxy."""

from __future__ import annotations

import asyncio
import io
import ipaddress
import json
import logging
import re
import shutil
import socket

import pytest
from app_support import CONSENT, Site, a_vote, client_of, next_pair, open_site
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient
from starlette.types import ASGIApp

from alignment.db.engine import Database
from alignment.errors import DatabaseError
from rating_app import guard
from rating_app.guard import ADMIN_POLICY, Guard
from rating_app.logs import NAMES, JsonLines, scrub
from rating_app.perimeter import Perimeter
from rating_app.server import PromptProtocol, make_server

TOKEN = "a token of sixteen and more"
BEHIND_PROXY = Perimeter(
    trusted_proxies=(ipaddress.ip_network("127.0.0.1"),), hosts=frozenset({"listen.test"}), https_only=True,
    metrics_token=TOKEN,
)  # fmt: skip


@pytest.fixture
def site(tmp_path):
    with open_site(tmp_path, perimeter=Perimeter(metrics_token=TOKEN), minimum_listening_seconds=0.0) as site:
        yield site


def figures(site: Site) -> dict[str, float]:
    page = TestClient(site.app).get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert page.status_code == 200
    found = (re.fullmatch(r"(attune_[^ ]+) (\S+)", line) for line in page.text.splitlines())
    return {match[1]: float(match[2]) for match in found if match}


def gone(*_arguments: object, **_options: object) -> None:
    raise DatabaseError("postgresql://attune@db.internal/attune cannot be reached (connection refused).")


def test_alive_without_a_database_but_not_ready(site: Site, monkeypatch: pytest.MonkeyPatch):
    client = client_of(site)
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/healthz/ready").json() == {"status": "ready", "database": "ok", "store": "ok"}
    monkeypatch.setattr(Database, "session", gone)
    assert client.get("/healthz").status_code == 200
    answer = client.get("/healthz/ready")
    assert answer.status_code == 503 and "internal" not in answer.text
    assert answer.json() == {"status": "not ready", "database": "failing", "store": "ok"}


def test_not_ready_without_its_store(site: Site):
    shutil.rmtree(site.store.root)
    answer = client_of(site, started=False).get("/healthz/ready")
    assert (answer.status_code, answer.json()["store"], answer.json()["database"]) == (503, "failing", "ok")


def test_the_figures_count_votes_refusals_repeats_sessions_and_database_errors(site: Site, monkeypatch):
    client = client_of(site)
    pair = next_pair(client)
    body = a_vote(pair, heard={"left": 0.1, "right": 0.1})
    for _ in range(3):
        assert client.post("/rate/votes", json=body).status_code == 200
    assert client.post("/rate/votes", json={**body, "outcome": "B"}).status_code == 409
    assert client.post("/rate/votes", json={}).status_code == 422
    assert client_of(site, started=False).post("/rate/votes", json=body).status_code == 401
    with monkeypatch.context() as patch:
        patch.setattr(Database, "session", gone)
        assert client.post("/rate/votes", json=body).status_code == 503
    found = figures(site)
    assert found["attune_votes_saved_total"] == 1 and found["attune_receipts_repeated_total"] == 2
    refused = {name: value for name, value in found.items() if name.startswith("attune_votes_refused_total")}
    assert refused == {
        f'attune_votes_refused_total{{reason="{reason}"}}': 1.0
        for reason in ("VoteRejected", "malformed", "no_session", "DatabaseError")
    }
    assert found["attune_database_errors_total"] == 1 and found["attune_open_sessions"] == 1
    votes = 'attune_request_seconds_count{method="POST",route="/rate/votes",status="2xx"}'
    assert found[votes] == 3
    assert found['attune_free_bytes{place="database"}'] > 0


def test_a_rating_is_counted_among_what_was_saved_like_a_vote(site: Site):
    site.add_study("single", mode="rating", minimum_listening_seconds=0)
    client = client_of(site, started=False)
    assert client.post("/rate/session", json={**CONSENT, "study": "single"}).status_code == 200
    item = client.get("/rate/item").json()["item"]
    client.get(item["clip"])
    body = {"item": item["id"], "key": "0" * 32, "quality": 50, "relevance": 50, "heard": 1.0}
    for _ in range(2):
        assert client.post("/rate/ratings", json=body).status_code == 200
    found = figures(site)
    assert (found["attune_votes_saved_total"], found["attune_receipts_repeated_total"]) == (1, 1)


@pytest.mark.parametrize("given", [None, "", "Bearer", f"Bearer {TOKEN}x", f"bearer {TOKEN}", f"Basic {TOKEN}"])
def test_figures_are_not_there_without_the_token(site: Site, given: str | None):
    headers = {} if given is None else {"Authorization": given}
    assert client_of(site).get("/metrics", headers=headers).status_code == 404


def test_figures_are_not_there_at_all_where_no_token_is_set(tmp_path):
    with open_site(tmp_path) as site:
        for given in ("Bearer ", "Bearer None", f"Bearer {TOKEN}"):
            assert client_of(site).get("/metrics", headers={"Authorization": given}).status_code == 404


def test_a_fault_of_ours_is_logged_with_its_place_and_answered_in_a_sentence(site: Site, monkeypatch, caplog):
    def fall(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("secret-base at 198.51.100.7 with cookie v1.0123456789abcdef.0123")

    client = client_of(site)
    monkeypatch.setattr(site.app.state.service, "next_pair", fall)
    with caplog.at_level(logging.INFO, logger="rating_app"):
        answer = client.get("/rate/pair")
    assert answer.status_code == 500 and answer.json() == {"error": "The server met a fault of its own."}
    assert answer.headers["content-security-policy"] and answer.headers["x-request-id"]
    lines = [JsonLines().format(record) for record in caplog.records]
    fault = next(json.loads(line) for line in lines if "RuntimeError" in line and "trace" in line)
    assert fault["said"] == "[name] at [address] with cookie [hidden]" or "[address]" in fault["said"]
    assert any("fall" in place for place in fault["trace"])
    assert not any(secret in "".join(lines) for secret in ("secret-base", "198.51", "0123456789abcdef"))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("GET /clip/00aa11 failed", "GET /clip/[hidden] failed"),
        ("connection to 10.0.0.3, port 5432", "connection to [address], port 5432"),
        ("from 2001:db8::1 again", "from [address] again"),
        ("postgresql://ann:pass@db/attune", "postgresql://[user]@db/attune"),
        ("vote 0190a1b2-3c4d-7e5f-8a9b-0c1d2e3f4a5b", "vote [id]"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [hidden]"),
        ("/?invite=AbC_d-1 opened", "/?invite= [hidden] opened"),
        ("at 12:30:45 UTC 3 votes", "at 12:30:45 UTC 3 votes"),
    ],
)
def test_log_messages_lose_what_tells_too_much_and_keep_the_rest(text: str, kept: str):
    assert scrub(text) == kept


def test_names_of_versions_are_hidden_longest_first():
    NAMES.add(["study-night-run", "study-night-run-dpo"])
    assert scrub("study-night-run-dpo beats study-night-run") == "[name] beats [name]"


def test_a_log_line_is_one_json_object_even_for_text_with_line_ends():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.Logger("x")
    logger.addHandler(handler)
    logger.warning("two\nlines %s", '"quoted"')
    assert json.loads(stream.getvalue())["message"] == 'two\nlines "quoted"' and stream.getvalue().count("\n") == 1


def test_behind_a_tls_proxy_cookies_are_secure_and_plain_http_is_refused(tmp_path):
    with open_site(tmp_path, perimeter=BEHIND_PROXY) as site:
        client = TestClient(site.app, base_url="http://listen.test", client=("127.0.0.1", 1))
        forwarded = {"X-Forwarded-For": "198.51.100.1", "X-Forwarded-Proto": "https"}
        assert client.get("/rate/state").status_code == 403
        assert client.get("/healthz").status_code == client.get("/healthz/ready").status_code == 200
        body = {"json": CONSENT}
        started = client.post("/rate/session", headers={**forwarded, "Origin": "https://listen.test"}, **body)
        assert started.status_code == 200 and "secure" in started.headers["set-cookie"].lower()
        assert started.headers["strict-transport-security"].startswith("max-age=")
        assert (
            client.post("/rate/session", headers={**forwarded, "Origin": "http://listen.test"}, **body).status_code
            == 403
        )
        assert client.get("/rate/state", headers={**forwarded, "Host": "evil.test"}).status_code == 421
        stranger = TestClient(site.app, base_url="http://listen.test", client=("203.0.113.7", 1))
        assert stranger.get("/rate/state", headers=forwarded).status_code == 403


def test_the_organisers_pages_keep_their_own_policy_or_get_a_strict_one():
    inner, own = FastAPI(), "default-src 'none'; style-src 'self'"

    @inner.get("/admin/")
    def page() -> HTMLResponse:
        return HTMLResponse("<p>", headers={"Content-Security-Policy": own, "Access-Control-Allow-Origin": "*"})

    @inner.get("/admin/other")
    def other() -> HTMLResponse:
        return HTMLResponse("<p>")

    @inner.post("/admin/login")
    def login() -> HTMLResponse:
        return HTMLResponse("in")

    client = TestClient(Guard(inner), base_url="http://attune.test")
    answer = client.get("/admin/")
    assert answer.headers["content-security-policy"] == own and "access-control-allow-origin" not in answer.headers
    policy = client.get("/admin/other").headers["content-security-policy"]
    assert policy == ADMIN_POLICY and "unsafe" not in policy
    form = {"data": {"name": "ann", "password": "x"}}
    assert client.post("/admin/login", **form).status_code == 200
    assert client.post("/admin/login", headers={"Origin": "https://evil.test"}, **form).status_code == 403
    assert client.post("/admin/login", headers={"Sec-Fetch-Site": "cross-site"}, **form).status_code == 403
    assert client.post("/admin/login", data={"x": "y" * 1_100_000}).status_code == 413
    for path in ("/admin/../rate/state", "/admin//x", "/admin/%2e%2e/x", "/administrator"):
        assert client.get(path).status_code == 404


class served:
    """A server in this process's own loop, with its patience made short."""

    def __init__(self, app: ASGIApp, header_seconds: float = 0.2) -> None:
        self.server = make_server(app, port=0)
        self.server.config.http_protocol_class = type("Hasty", (PromptProtocol,), {"header_seconds": header_seconds})
        self.server.config.load()
        self.server.config.http_protocol_class = type("Hasty", (PromptProtocol,), {"header_seconds": header_seconds})
        self.server.install_signal_handlers = lambda: None
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    async def __aenter__(self) -> served:
        self.task = asyncio.create_task(self.server._serve(sockets=[self.listener]))
        while not self.server.started:
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.should_exit = True
        await self.task
        self.listener.close()


async def say_and_wait(port: int, *parts: bytes) -> bytes:
    """What the server says before it closes the connection; it is given a minute to do so."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
    try:
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (b"GET /healthz",),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"X-More: 1\r\n"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /heal"),
    ],
    ids=["says nothing", "no line end", "no end of headers", "a second request without end"],
)
def test_a_request_that_is_not_sent_in_time_loses_its_connection(site: Site, parts: tuple[bytes, ...]):
    one_is_whole = len(parts) == 2 and b"\r\n\r\n" in parts[0]

    async def attack() -> bytes:
        # Where an answer is due, a busy machine needs time to send the request.
        async with served(site.app, header_seconds=1.0 if one_is_whole else 0.2) as server:
            return await say_and_wait(server.port, *parts)

    answer = asyncio.run(attack())
    assert answer.count(b"HTTP/1.1 200") == (1 if one_is_whole else 0)


def test_a_body_that_does_not_arrive_is_refused_and_blocks_no_thread(site: Site, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    head = b"POST /rate/session HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{"

    async def attack() -> list[bytes]:
        async with served(site.app) as server:
            return await asyncio.gather(*(say_and_wait(server.port, head) for _ in range(60)))

    assert all(answer.startswith(b"HTTP/1.1 408") for answer in asyncio.run(attack()))
