"""Attacks on the running app, over real HTTP: a stranger on the network, another site, another rater."""

from __future__ import annotations

import base64
import os
import re
import socket
import uuid
from collections.abc import Iterator

import httpx
import pytest
import sqlalchemy as sa
from app_support import PROMPTS, a_vote
from attack_support import METRICS_TOKEN, SECRET, Target, attune_serve, read_answer

from alignment.db.engine import open_database
from rating_app.tokens import RaterCookie, Tokens
from scripts.vote_load import CONSENT

JSON = "Content-Type: application/json"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with attune_serve(tmp_path_factory.mktemp("target")) as target:
        yield target


def pair_of(browser: httpx.Client) -> dict:
    answer = browser.get("/rate/pair")
    assert answer.status_code == 200, answer.text
    pair = answer.json()["pair"]
    for address in pair["clips"].values() if pair else ():
        assert browser.get(address).status_code == 200
    return pair


def short_vote(pair: dict, key: str | None = None, **changes: object) -> dict:
    return a_vote(pair, key or uuid.uuid4().hex, heard={"left": 0.1, "right": 0.1}, **changes)


# Gradio's own routes


@pytest.mark.parametrize(
    "path",
    [
        "/openapi.json", "/docs", "/redoc", "/config", "/info", "/token", "/login", "/logout", "/app_id", "/monitoring",
        "/upload", "/upload_progress?upload_id=1", "/queue/join", "/queue/data?session_hash=x", "/queue/status",
        "/cancel", "/reset", "/run/predict", "/api/predict", "/call/vote", "/component_server", "/heartbeat/x",
        "/file=/etc/passwd", "/file/etc/passwd", "/proxy=http://127.0.0.1/", "/custom_component/x/y/z/style.css",
        "/gradio_api/file=/etc/passwd", "/gradio_api/file=attune.db", "/gradio_api/info", "/gradio_api/openapi.json",
        "/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/queue/data?session_hash=x", "/gradio_api/cancel",
        "/gradio_api/reset", "/gradio_api/component_server", "/gradio_api/heartbeat/x", "/gradio_api/call/vote",
        "/gradio_api/startup-events", "/gradio_api/proxy=http://127.0.0.1/", "/gradio_api/deep_link",
        "/gradio_api/stream/a/b/c/playlist.m3u8", "/gradio_api/vibe-editor/", "/manifest.json", "/robots.txt",
        "/svelte/svelte.js", "/js/x", "/pwa_icon", "/mcp", "/gradio_api/mcp/sse",
    ],
)  # fmt: skip
def test_what_gradio_would_answer_is_not_there(target: Target, path: str):
    told = ("Range: bytes=0-1", "Cookie: attune=zzmine", "Authorization: Bearer zzmine", "X-Mine: zzmine")
    for method, more in (("GET", ()), ("POST", (JSON, "Content-Length: 2")), ("POST", ("Content-Type: text/plain",))):
        status, answer = target.ask(method, path, *told, *more, body=b"{}" if JSON in more else b"")
        assert status == 404, (method, path)
        assert b"zzmine" not in answer and b"root:" not in answer


@pytest.mark.parametrize(
    "path",
    [
        "//gradio_api/info", "///", "/./gradio_api/info", "/rate/../gradio_api/info", "/static/../gradio_api/info",
        "/static/..%2fgradio_api/info", "/static/%2e%2e/gradio_api/info", "/static/%2e%2e%2fgradio_api%2finfo",
        "/static%2f..%2f..%2f..%2fetc%2fpasswd", "/assets/..%5c..%5cconfig", "/assets/..\\..\\config",
        "/%67radio_api/info", "/%2567radio_api/info", "/gradio%5fapi/info", "/GRADIO_API/info",
        "/assets/%252e%252e/config", "/assets//etc/passwd", "/assets/%00", "/assets/x%00.js", "/rate/pair%00",
        "/rate/state/", "/rate/pair/", "/healthz/", "/metrics/", "/static/", "/assets/", "/player/", "/clip/",
        "/rate/state;x=1", "/rate//state", "/rate/%73tate/", "/rate/state%0d%0aSet-Cookie:%20a=b", "/rate/state%20",
        "/player/x/..%2fapp.py", "/player/%2e%2e/app.py", "/player/x/page.html", "/player/x/.js", "/player/x/%2e.js",
        "/clip/" + "0" * 64, "/clip/" + "0" * 64 + "/", "/clip/../rate/state", "/clip/%2e%2e%2frate%2fstate",
        "/.git/config", "/.env", "/attune.db", "/data/attune.db", "/" + "a" * 4000,
    ],
)  # fmt: skip
def test_no_spelling_of_a_path_leads_past_the_door(target: Target, path: str):
    status, answer = target.ask("GET", path)
    assert status in (401, 404) and (status == 404 or path.startswith("/clip")), answer
    head = answer.lower().split(b"\r\n\r\n")[0]
    assert b"location:" not in head and b"set-cookie" not in head
    assert b"named_endpoints" not in answer and b"root:" not in answer and b"gradio_config" not in answer


@pytest.mark.parametrize(
    "request_line",
    ["GET http://evil.test/gradio_api/info HTTP/1.1", "OPTIONS * HTTP/1.1", "CONNECT evil.test:443 HTTP/1.1",
     "TRACE / HTTP/1.1", "PROPFIND / HTTP/1.1", "GET gradio_api/info HTTP/1.1", "\x16\x03\x01"],
)  # fmt: skip
def test_strange_request_lines_get_no_page(target: Target, request_line: str):
    answer = target.raw(f"{request_line}\r\nHost: 127.0.0.1:{target.port}\r\nConnection: close\r\n\r\n".encode())
    assert not answer.startswith(b"HTTP/1.1 2") and b"gradio_config" not in answer


# Requests that are too large, too slow, or not what they say


def test_headers_without_end_are_cut_off(target: Target):
    many = b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(200))
    answer = target.raw(b"GET /rate/state HTTP/1.1\r\nHost: x\r\n" + many + b"\r\n")
    assert not answer.startswith(b"HTTP/1.1 2")
    assert target.ask("GET", "/healthz")[0] == 200


def test_bodies_must_say_how_long_they_are_and_be_small(target: Target):
    browser = target.browser()
    assert browser.post("/rate/votes", json={"comment": "x" * 300_000}).status_code == 413
    assert browser.post("/rate/votes", content=iter([b"{", b"}"]), headers={"Content-Type": "application/json"}).status_code == 411  # fmt: skip  # noqa: E501
    for length in ("-1", "1e3", "99999999999999999999", "2, 3", "+2", ""):
        status, _ = target.ask("POST", "/rate/votes", JSON, f"Content-Length: {length}", body=b"{}")
        assert status in (400, 411, 413), length


def test_two_readings_of_one_request_are_not_both_answered(target: Target):
    hidden = b"GET /rate/state HTTP/1.1\r\nHost: x\r\n\r\n"
    both = b"POST /rate/session HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for framing in (
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
        b"Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}" + hidden,
        b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n" + hidden,
        b"Transfer-Encoding : chunked\r\nContent-Length: 0\r\n\r\n" + hidden,
    ):
        with socket.create_connection(("127.0.0.1", target.port), timeout=20) as connection:
            connection.sendall(both + framing)
            answer = read_answer(connection)
            assert re.match(rb"HTTP/1.1 4\d\d", answer) and b"minimum_listening" not in answer, framing


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "text/json", "*/*"],
)
def test_only_json_is_taken(target: Target, kind: str):
    status, _ = target.ask(
        "POST",
        "/rate/session",
        *([f"Content-Type: {kind}"] if kind else []),
        "Content-Length: 16",
        body=b'{"consent":true}',
    )
    assert status == 415


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b'{"consent": "yes"}', b'{"__proto__": {}}', b"\xff\xfe", b"[" * 50_000,
     b'{"a":' * 20_000, b'{"consent": 1e999}', b'{"consent": NaN}'],
    ids=range(12),
)  # fmt: skip
def test_malformed_json_is_a_refusal_and_no_fault_of_ours(target: Target, body: bytes):
    for path in ("/rate/session", "/rate/votes", "/rate/events"):
        cookie = f"Cookie: attune={target.browser().cookies['attune']}"
        status, answer = target.ask("POST", path, JSON, cookie, f"Content-Length: {len(body)}", body=body)
        assert status in (400, 422), (path, answer[:300])


def test_connections_that_never_finish_their_request_stop_nobody(target: Target):
    idlers = []
    try:
        for beginning in (
            b"",
            b"GET /",
            b"POST /rate/votes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n{",
        ) * 40:  # noqa: E501
            idler = socket.create_connection(("127.0.0.1", target.port), timeout=20)
            idler.sendall(beginning)
            idlers.append(idler)
        browser = target.browser()
        assert browser.post("/rate/votes", json=short_vote(pair_of(browser))).json()["saved"] is True
    finally:
        for idler in idlers:
            idler.close()


def test_a_websocket_is_not_opened(target: Target):
    key = base64.b64encode(os.urandom(16)).decode()
    for path in ("/", "/gradio_api/queue/join", "/rate/state", "/queue/join"):
        status, answer = target.ask(
            "GET", path, "Upgrade: websocket", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"
        )
        assert status != 101 and b"sec-websocket-accept" not in answer.lower()


# Other sites


@pytest.mark.parametrize(
    "origin", ["https://evil.test", "null", "http://127.0.0.1", "http://127.0.0.1.evil.test", "file://", "x"]
)
def test_another_site_can_neither_read_nor_write_with_this_browsers_cookie(target: Target, origin: str):
    browser = target.browser()
    pair = pair_of(browser)
    for path, body in (("/rate/votes", short_vote(pair)), ("/rate/session", CONSENT), ("/rate/events", {"pair": pair["id"], "events": []})):  # fmt: skip  # noqa: E501
        assert browser.post(path, json=body, headers={"Origin": origin}).status_code == 403
        assert browser.post(path, json=body, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert browser.post(path, json=body, headers={"Sec-Fetch-Site": "same-site"}).status_code == 403
    preflight = browser.options("/rate/votes", headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
    assert preflight.status_code == 405
    for path in ("/", "/rate/state", "/rate/pair", "/theme.css", pair["clips"]["left"], "/nothing"):
        answer = browser.get(path, headers={"Origin": origin})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    for path in ("/rate/pair", "/rate/state", pair["clips"]["left"]):
        assert browser.get(path, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert browser.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200  # a link to the study


def test_the_cookie_is_for_this_page_alone(target: Target):
    answer = target.browser(started=False).post("/rate/session", json=CONSENT)
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "domain" not in cookie


@pytest.mark.parametrize(
    "header",
    ['Host: x"><script>alert(1)</script>', "Host: x';alert(1)//", "Host: a b", "Host: x/../y", "Host:", "Host: x\\y"],
)
def test_a_name_that_would_be_code_in_the_page_is_refused(target: Target, header: str):
    answer = target.raw(f"GET / HTTP/1.1\r\n{header}\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400") and b"alert" not in answer


def test_nothing_a_request_says_comes_back_in_the_page(target: Target):
    mark = "zzmarkzz"
    browser = target.browser(started=False)
    plain = browser.get("/").text
    answer = browser.get(
        f"/?{mark}=1&view={mark}&deep_link={mark}&session_hash={mark}&__theme={mark}",
        headers={
            "X-Forwarded-Host": mark, "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": f"/{mark}",
            "Forwarded": f"host={mark}",
            "Referer": f"http://{mark}/", "Cookie": f"attune={mark}", "User-Agent": mark, "Accept-Language": mark,
        },
    )  # fmt: skip
    assert mark not in answer.text and mark not in str(answer.headers)
    assert len(answer.text) == pytest.approx(len(plain), abs=8)
    assert "secret-base" not in plain and SECRET not in plain and str(target.folder) not in plain


def test_the_pages_policy_allows_its_own_inline_scripts_and_no_others(target: Target):
    browser = target.browser(started=False)
    answer = browser.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert "'unsafe-inline'" not in policy["script-src"]
    inline = re.findall(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", answer.text, flags=re.S)
    assert len(inline) >= 3 and policy["script-src"].count("'sha256-") == len(inline)
    assert policy["default-src"] == policy["frame-ancestors"] == policy["object-src"] == "'none'"
    assert "http" not in answer.headers["content-security-policy"].replace("https", "http").replace("'self'", "")
    for path in ("/rate/state", "/healthz", "/nothing", "/player/x/page.js"):
        assert browser.get(path).headers["content-security-policy"].startswith("default-src 'none'")
        assert browser.get(path).headers["x-content-type-options"] == "nosniff"


# Other raters


def test_a_made_up_or_mixed_cookie_is_nobody(target: Target):
    one, other = target.browser(), target.browser()
    mine, theirs = (Tokens(SECRET).read_cookie(browser.cookies["attune"]) for browser in (one, other))
    parts, more = one.cookies["attune"].split("."), other.cookies["attune"].split(".")
    forged = [
        "", "v1", "x" * 5000, one.cookies["attune"][:-1] + "0", one.cookies["attune"].upper(),
        ".".join([*parts[:2], more[2], parts[3]]), ".".join([parts[0], more[1], *parts[2:]]),
        Tokens("attune-development-secret").cookie(mine), Tokens("").cookie(mine),
        Tokens("guess").cookie(RaterCookie(mine.browser_id, theirs.sessions)), "v3" + one.cookies["attune"][2:],
        one.cookies["attune"] + "." + parts[3], "' OR 1=1 --",
    ]  # fmt: skip
    for value in forged:
        status, answer = target.ask("GET", "/rate/pair", f"Cookie: attune={value}")
        assert status == 401, (value, answer)


def test_a_clip_address_works_in_its_own_session_alone(target: Target):
    one, other = target.browser(), target.browser()
    pair = pair_of(one)
    for address in pair["clips"].values():
        assert one.get(address).status_code == 200
        assert other.get(address).status_code == 404
        assert httpx.get(target.url + address).status_code == 401
        token = address.rpartition("/")[2]
        for changed in (
            token[:-1] + ("0" if token[-1] != "0" else "1"),
            token.upper(),
            token[::-1],
            token[:32],
            token * 2,
        ):
            assert one.get(f"/clip/{changed}").status_code == 404
    mixed = pair["clips"]["left"].rpartition("/")[2][:32] + pair_of(other)["clips"]["left"].rpartition("/")[2][32:]
    assert one.get(f"/clip/{mixed}").status_code == other.get(f"/clip/{mixed}").status_code == 404


def test_nobody_votes_on_the_pair_of_another_session(target: Target):
    one, other = target.browser(), target.browser()
    pair, before = pair_of(one), votes_in(target)
    for body in (short_vote(pair), short_vote({"id": uuid.uuid4().hex}), short_vote(pair, outcome="BROKEN")):
        assert other.post("/rate/votes", json=body).status_code in (404, 409, 422)
    assert other.post("/rate/events", json={"pair": pair["id"], "events": [
        {"seq": 0, "side": "left", "type": "play", "position": 0, "at_ms": 1}]}).status_code in (404, 409)  # fmt: skip
    assert votes_in(target) == before


def test_a_replayed_vote_is_the_same_vote(target: Target):
    browser = target.browser()
    vote, before = short_vote(pair_of(browser), uuid.uuid4().hex), votes_in(target)
    answers = [browser.post("/rate/votes", json=vote) for _ in range(3)]
    assert [answer.json()["repeated"] for answer in answers] == [False, True, True]
    thief = target.browser()
    assert thief.post("/rate/votes", json={**vote, "pair": pair_of(thief)["id"]}).status_code == 409
    assert browser.post("/rate/votes", json={**vote, "outcome": "B"}).status_code == 409
    assert votes_in(target) == before + 1


@pytest.mark.parametrize(
    "text",
    [
        "'; DROP TABLE vote; --", "\"; UPDATE vote SET outcome='A'; --", "%s %(x)s {0} {self}", "{{7*7}} ${7*7} #{7*7}",
        "<script>window.injected=1</script>", "<img src=x onerror=alert(1)>", "\u202e\u0007", "=cmd|'/c calc'!A1",
    ],
)  # fmt: skip
def test_a_comment_is_kept_as_it_was_written_and_does_nothing(target: Target, text: str):
    browser = target.browser()
    assert browser.post("/rate/votes", json=short_vote(pair_of(browser), comment=text)).json()["saved"] is True
    database = open_database(f"sqlite:///{target.folder / 'attune.db'}")
    with database.session(write=False) as s:
        kept = set(s.scalars(sa.text("SELECT text FROM vote_comment")))
    database.close()
    assert text in kept


def test_a_null_byte_in_a_comment_breaks_nothing(target: Target):
    browser = target.browser()
    assert browser.post("/rate/votes", json=short_vote(pair_of(browser), comment="a\u0000b")).status_code in (
        200,
        409,
        422,
    )


def test_a_prompt_that_is_code_arrives_as_text(target: Target):
    browser, seen = target.browser(), set()
    while (pair := pair_of(browser)) is not None:
        seen.add(pair["prompt"])
        browser.post("/rate/votes", json=short_vote(pair, outcome="TIE"))
    assert seen == set(PROMPTS)
    answer = browser.get("/rate/pair")
    assert answer.headers["content-type"].startswith("application/json")
    assert not any(prompt in browser.get("/").text for prompt in PROMPTS)


def test_parameters_are_data(target: Target):
    browser = target.browser()
    for value in (
        "' OR 1=1 --",
        "x" * 5000,
        ",".join([uuid.uuid4().hex] * 100),
        "\u0000",
        "..%2f",
        "1);DROP TABLE vote;--",
    ):
        assert browser.get("/rate/pair", params={"except": value}).status_code in (200, 400, 422)
        assert browser.get("/rate/state", params={"study": value, "invite": value}).status_code in (200, 400, 404, 422)
    assert votes_in(target) > 0


# Figures and limits


def test_figures_are_there_for_who_holds_the_token_and_nobody_else(target: Target):
    for given in (
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        f"Basic {METRICS_TOKEN}",
        METRICS_TOKEN,
        f"Bearer {METRICS_TOKEN} ",
    ):
        if given.rstrip() != f"Bearer {METRICS_TOKEN}":
            status, answer = target.ask("GET", "/metrics", *([f"Authorization: {given}"] if given else []))
            assert status == 404 and b"attune_" not in answer
    status, answer = target.ask("GET", f"/metrics?token={METRICS_TOKEN}")
    assert status == 404
    status, answer = target.ask("GET", "/metrics", f"Authorization: Bearer {METRICS_TOKEN}")
    assert status == 200
    figures = answer.decode()
    for name in ("votes_saved_total", "receipts_repeated_total", 'votes_refused_total{reason="', "open_sessions", "database_errors_total", 'route="/rate/votes"', 'free_bytes{place="database"}'):  # fmt: skip  # noqa: E501
        assert f"attune_{name}" in figures or name in figures, name
    assert float(re.search(r"^attune_receipts_repeated_total (\S+)", figures, re.M)[1]) >= 2
    assert "secret-base" not in figures and "/clip/0" not in figures and "127.0.0.1" not in figures


def test_one_browser_that_hammers_is_told_to_wait_and_nobody_else_is(target: Target):
    hammer, person = target.browser(), target.browser()
    answers = [hammer.post("/rate/votes", json={}) for _ in range(90)]
    limited = [answer for answer in answers if answer.status_code == 429]
    assert limited and {answer.status_code for answer in answers} == {422, 429}
    assert int(limited[0].headers["retry-after"]) >= 1 and "try again" in limited[0].json()["error"]
    assert person.post("/rate/votes", json=short_vote(pair_of(person))).json()["saved"] is True


def test_a_forwarding_header_from_a_stranger_changes_nothing(target: Target):
    cookie = f"Cookie: attune={target.browser().cookies['attune']}"
    statuses = {
        target.ask(
            "POST", "/rate/session", JSON, cookie, f"X-Forwarded-For: 10.0.0.{i}", "Content-Length: 2", body=b"{}"
        )[0]
        for i in range(40)
    }
    assert 429 in statuses  # a limit of the browser; its 40 made-up addresses did not help
    answer = httpx.post(f"{target.url}/rate/session", json=CONSENT, headers={"X-Forwarded-Proto": "https"})
    assert "secure" not in answer.headers["set-cookie"].lower()


def test_the_log_of_all_this_is_json_and_tells_no_secret(target: Target):
    browser = target.browser()
    assert browser.get("/").status_code == 200
    pair = pair_of(browser)
    browser.get(pair["clips"]["left"])
    browser.post("/rate/votes", json=short_vote(pair, comment="a remark nobody else should read"))
    target.ask("GET", "/gradio_api/file=/etc/passwd")
    lines, text = target.log(), target.log_text()
    requests = [line for line in lines if line["message"] == "request"]
    assert {"time", "level", "request", "method", "route", "status", "ms"} <= set(requests[-1])
    assert {"/clip/{token}", "/rate/votes", "none", "page"} <= {line["route"] for line in requests}
    for secret in (
        browser.cookies["attune"], pair["id"], str(uuid.UUID(pair["id"])), pair["clips"]["left"], METRICS_TOKEN, SECRET,
        "a remark", "127.0.0.1", "secret-base", "secret-aligned", "passwd", "DROP TABLE",
    ):  # fmt: skip
        assert secret not in text, secret
    assert not [line for line in lines if line["level"] == "error"], "an attack met a fault of ours"


def votes_in(target: Target) -> int:
    database = open_database(f"sqlite:///{target.folder / 'attune.db'}")
    with database.session(write=False) as s:
        found = s.scalar(sa.text("SELECT count(*) FROM vote"))
    database.close()
    return found
