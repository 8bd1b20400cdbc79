"""The guard in front of the app: attacked as a stranger on the network or another site would."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from app_support import CONSENT, SECRET, Site, client_of, open_site

from rating_app.page import static_template


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with open_site(tmp_path_factory.mktemp("site"), with_page=True) as site:
        yield site


@pytest.mark.parametrize(
    "path",
    [
        "/openapi.json",
        "/docs",
        "/config",
        "/info",
        "/login",
        "/token",
        "/upload",
        "/queue/join",
        "/queue/data",
        "/cancel",
        "/reset",
        "/component_server",
        "/monitoring",
        "/file=/etc/passwd",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/upload",
        "/gradio_api/upload_progress",
        "/gradio_api/queue/join",
        "/gradio_api/component_server",
        "/gradio_api/heartbeat/x",
        "/gradio_api/startup-events",
        "/gradio_api/proxy=http://example.org/",
        "/gradio_api/stream/a/b/c/playlist.m3u8",
        "//gradio_api/info",
        "/static/../gradio_api/info",
        "/%67radio_api/info",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_gradios_own_routes_are_closed(site: Site, path: str, method: str):
    answer = client_of(site, started=False).request(method, path, headers={"Range": "bytes=0-1", "Cookie": "a=private"})
    assert answer.status_code == 404
    assert "private" not in answer.text


def test_the_page_itself_is_served_with_a_policy_that_names_no_other_host(site):
    answer = client_of(site, started=False).get("/?view=api&deep_link=x", headers={"Origin": "https://evil.test"})
    assert answer.status_code == 200 and "data-phase" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert "'unsafe-inline'" not in scripts and scripts.count("'sha256-") >= 3
    assert "http" not in policy and "*" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "secret-" not in answer.text and SECRET not in answer.text
    assert '"analytics_enabled":false' in answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.test"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Origin": "http://attune.test", "Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_only_this_page_may_start_a_session(site, headers, status):
    client = client_of(site, started=False)
    answer = client.post(
        "/rate/session", content=json.dumps(CONSENT), headers={"Content-Type": "application/json", **headers}
    )
    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_oversized_request_is_refused_before_it_is_read(site):
    client = client_of(site)
    assert client.post("/rate/votes", json={"comment": "x" * 300_000}).status_code == 413
    chunks = client.post("/rate/votes", content=iter([b"{}"]), headers={"Content-Type": "application/json"})
    assert chunks.status_code == 411


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(site, method):
    assert client_of(site).request(method, "/rate/votes").status_code == 405


def test_static_files_stay_within_their_folder(site):
    client = client_of(site, started=False)
    assert client.get("/player/x/abplayer.js").headers["content-type"].startswith("text/javascript")
    for path in ("/player/x/page.html", "/player/x/..%2fapp.py", "/player/..%2f/app.py", "/player/x/%2e%2e%2fapp.py"):
        assert client.get(path).status_code == 404


def test_the_template_gives_gradio_nothing_to_evaluate():
    text = static_template()
    assert "<script" not in text and "javascript:" not in text
    assert not re.search(r"\son[a-z]+=", text)


def test_the_app_loads_no_torch():
    code = "import sys, rating_app.app, rating_app.serve; sys.exit('torch' in sys.modules or 'gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
