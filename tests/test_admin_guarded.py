"""The organisers' pages inside the rating app: behind its guard, beside its page, apart from its cookie."""

from __future__ import annotations

import pytest
from admin_support import PASSWORD, log_in, token_in
from app_support import client_of, open_site, running
from browser_support import chromium, sync_api, visitor
from fastapi.testclient import TestClient

from rating_app.admin.app import CONTENT_SECURITY_POLICY
from rating_app.app import create_app
from rating_app.perimeter import Perimeter


@pytest.fixture
def site(tmp_path):
    with open_site(tmp_path) as site:
        from alignment.accounts import Accounts

        Accounts(site.database).add("ada", "admin", PASSWORD, actor="tests")
        yield site


def test_a_rater_reaches_no_admin_page_and_an_admin_cookie_stays_under_admin(site):
    rater = client_of(site)
    answer = rater.get("/admin/studies", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/admin/login")
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    admin = client_of(site, started=False)
    assert log_in(admin, "ada").status_code in (200, 303)
    page = admin.get("/admin/studies")
    assert page.status_code == 200 and "New study" in page.text
    seen = []
    admin.event_hooks["request"].append(lambda request: seen.append(request.headers.get("cookie", "")))
    admin.get("/rate/state")
    assert "attune_admin" not in seen[-1]
    foreign = admin.post("/admin/logout", data={"token": token_in(page.text)}, headers={"origin": "http://evil.test"})
    assert foreign.status_code == 403


def test_single_sign_on_asks_for_who_is_connected_and_not_for_whom_a_proxy_speaks(site, monkeypatch):
    import ipaddress

    monkeypatch.setenv("ATTUNE_SSO_HEADER", "X-Forwarded-User")
    monkeypatch.setenv("ATTUNE_SSO_PROXIES", "10.0.0.5")
    perimeter = Perimeter(trusted_proxies=(ipaddress.ip_network("10.0.0.5"), ipaddress.ip_network("10.0.0.6")))
    app = create_app(
        site.database, site.store, secret="x" * 32, study_name=site.study, with_page=False, perimeter=perimeter
    )

    def asked(peer: str, **headers: str) -> int:
        client = TestClient(app, base_url="http://attune.test", client=(peer, 1), follow_redirects=False)
        return client.get("/admin/studies", headers={"x-forwarded-user": "ada", **headers}).status_code

    assert asked("10.0.0.5", **{"x-forwarded-for": "203.0.113.9"}) == 200
    assert asked("10.0.0.6", **{"x-forwarded-for": "10.0.0.5"}) == 303  # trusted for addresses, not for names
    assert asked("203.0.113.9", **{"x-forwarded-for": "10.0.0.5"}) == 303


@pytest.mark.browser
def test_a_browser_can_log_in_and_out_behind_the_guard(site):
    with running(site.app) as address, chromium() as browser, visitor(browser, address) as context:
        page = context.new_page()
        page.goto("/admin")
        page.fill("[name=name]", "ada")
        page.fill("[name=password]", PASSWORD)
        page.click("main button")
        page.wait_for_url("**/admin/studies")
        page.click("text=Log out")
        page.wait_for_url("**/admin/login")
        page.goto("/admin/studies")
        sync_api.expect(page.locator("h1")).to_have_text("Log in")
