"""The organisers' pages in a real browser: no serious fault for assistive technology, nothing from outside, live."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from admin_support import PASSWORD, AdminSite, admin_site
from browser_support import picture, serious_faults, sync_api, visitor

from alignment.flags import flag_study

pytestmark = pytest.mark.browser
DESK = {"width": 1180, "height": 860}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = admin_site(tmp_path_factory.mktemp("site"))
    flag_study(site.database, "Autumn listening", actor="tests")
    yield site
    site.database.close()


def _log_in(page) -> None:
    page.goto("/admin/login")
    page.fill("[name=name]", "ada")
    page.fill("[name=password]", PASSWORD)
    page.click("main button")
    page.wait_for_url("**/admin/studies")


def _addresses(site: AdminSite) -> dict[str, str]:
    study = f"/admin/study/{site.study_id}"
    return {
        "studies": "/admin/studies", "new": "/admin/studies/new", "dashboard": study, "setup": f"{study}/setup",
        "invites": f"{study}/invites", "raters": f"{study}/raters", "export": f"{study}/export",
        "edit": f"{study}/edit", "rating": f"/admin/study/{site.rating_id}", "accounts": "/admin/accounts",
        "log": "/admin/log", "password": "/admin/password", "missing": "/admin/nothing",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("desk", {"viewport": DESK}),
        ("phone", {"viewport": {"width": 360, "height": 740}}),
        ("dark", {"viewport": DESK, "color_scheme": "dark"}),
    ],
)
def test_no_page_has_a_serious_fault_or_is_wider_than_its_window(browser, address, site, name, options):
    with visitor(browser, address, **options) as context:
        page, complaints = context.new_page(), []
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto("/admin/login")
        assert serious_faults(page) == []
        _log_in(page)
        for title, where in _addresses(site).items():
            page.goto(where)
            # Other widths and inks are looked at where they differ most; every page is looked at once.
            if name == "desk" or title in ("dashboard", "new"):
                assert serious_faults(page) == [], title
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, title
            if title == "dashboard":
                picture(page, {"desk": "dashboard"}.get(name, f"dashboard-{name}"))
            if title == "studies" and name == "desk":
                picture(page, "admin")
        # A browser logs the one page that is not there; a blocked script or style would be told here too.
        assert [one for one in complaints if "404" not in one] == []
        assert page.evaluate("window.injected") is None


@pytest.fixture
def withdrawable(site):
    """A function that withdraws the study's first rater, who is back after the test."""
    from alignment.db.tables import RaterRow

    def set_status(status: str) -> None:
        with site.database.session() as s:
            s.execute(sa.update(RaterRow).where(RaterRow.id == sa.select(sa.func.min(RaterRow.id)).scalar_subquery())
                      .values(status=status))  # fmt: skip
        site.admin.state.figures._kept.clear()

    yield lambda: set_status("withdrawn")
    set_status("active")


def test_the_dashboard_renews_its_figures_by_itself_and_says_when_the_session_ended(
    browser, address, site, withdrawable
):
    # No wait_for_function: it evaluates text, which the page's policy forbids.
    with visitor(browser, address, viewport=DESK) as context:
        page = context.new_page()
        page.clock.install()
        _log_in(page)
        page.goto(f"/admin/study/{site.study_id}")
        assert page.inner_text(".tile b") == "404"
        withdrawable()
        page.clock.run_for(5000)
        sync_api.expect(page.locator(".tile b").first).not_to_have_text("404")
        assert "more withdrawn" in page.inner_text(".tile span")
        context.clear_cookies()
        page.clock.run_for(5000)
        sync_api.expect(page.locator("#live")).to_contain_text("session ended")


def test_figures_stay_while_somebody_reads_or_uses_them(browser, address, site):
    with visitor(browser, address, viewport=DESK) as context:
        page = context.new_page()
        page.clock.install()
        _log_in(page)
        page.goto(f"/admin/study/{site.study_id}")
        page.focus("#figures form button")
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.clock.run_for(20_000)
        assert asked == []
        page.evaluate("document.activeElement.blur()")
        with page.expect_response("**/figures"):
            page.clock.run_for(5000)


def test_everything_works_without_scripts(browser, address, site):
    with visitor(browser, address, viewport=DESK, java_script_enabled=False) as context:
        page = context.new_page()
        _log_in(page)
        page.click("text=Autumn listening")
        assert page.locator("noscript").count() and page.locator(".tile b").first.inner_text() == "404"
        page.click("text=Invites")
        page.fill("[name=count]", "2")
        page.click("text=Make links")
        sync_api.expect(page.locator("textarea[readonly]")).to_be_visible()
        assert "/?invite=" in page.input_value("textarea[readonly]")
        page.click("text=Log out")
        page.wait_for_url("**/admin/login")


def test_the_keyboard_alone_opens_a_study(browser, address):
    with visitor(browser, address, viewport=DESK) as context:
        page = context.new_page()
        page.goto("/admin/login")
        sync_api.expect(page.locator("[name=name]")).to_be_focused()
        page.keyboard.type("olga")
        page.keyboard.press("Tab")
        sync_api.expect(page.locator("[name=password]")).to_be_focused()
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url("**/admin/studies")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.innerText") == "Skip to the content"
        page.keyboard.press("Enter")
        for _ in range(2):  # past the button for a new study
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url("**/admin/study/*")
