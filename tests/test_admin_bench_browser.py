"""Jobs, versions, comparisons and the leaderboard in a real browser: live, by keyboard, on a phone, without scripts."""

from __future__ import annotations

import re

import pytest
from admin_support import PASSWORD
from bench_support import PROMPTS, STEPS, Bench, bench_site
from browser_support import PHONE, picture, serious_faults, sync_api, visitor

from alignment.db import job_workers, jobs

pytestmark = pytest.mark.browser
DESK = {"width": 1280, "height": 860}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_workers, "SILENT_SECONDS", 1e6)  # however long these tests take, its worker is not lost
        bench = bench_site(tmp_path_factory.mktemp("bench"))
        yield bench
        bench.site.database.close()


@pytest.fixture(scope="module")
def site(bench):
    return bench.site


def _log_in(page, name: str = "ada") -> None:
    page.goto("/admin/login")
    page.fill("[name=name]", name)
    page.fill("[name=password]", PASSWORD)
    page.click("main button")
    page.wait_for_url("**/admin/studies")


def _addresses(bench: Bench) -> dict[str, str]:
    return {
        "jobs": "/admin/jobs", "job": f"/admin/jobs/job/{bench.running}", "failed": f"/admin/jobs/job/{bench.failed}",
        "new job": "/admin/jobs/new?kind=compare", "versions": "/admin/versions", "version": bench.page("dpo-8"),
        "champion": bench.page("musicgen-small"), "compare": "/admin/compare?version=dpo-8",
        "comparison": f"/admin/compare/show/{bench.comparison}",
        "listen": "/admin/compare/listen?version=musicgen-small&version=dpo-8", "leaderboard": "/admin/leaderboard",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "looked_at"),
    [
        ("desk", {"viewport": DESK}, ("jobs", "job", "new job", "version", "comparison", "leaderboard")),
        ("phone", {"viewport": PHONE}, ("failed", "versions", "compare", "listen")),
        ("dark", {"viewport": DESK, "color_scheme": "dark"}, ("jobs", "comparison")),
    ],
)
def test_no_page_has_a_serious_fault_or_is_wider_than_its_window(browser, address, bench, name, options, looked_at):
    with visitor(browser, address, **options) as context:
        page, complaints = context.new_page(), []
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        _log_in(page)
        for title, where in _addresses(bench).items():
            # Every page is looked at once, those that differ most in both inks; every width is a phone's.
            if name != "phone" and title not in looked_at:
                continue
            page.goto(where)
            if title in ("comparison", "listen"):
                sync_api.expect(page.locator("#deck-time")).to_contain_text("/ 1.5 s")
            if title in looked_at:
                assert serious_faults(page) == [], title
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, title
            if name == "desk" and title in ("jobs", "version", "comparison"):
                picture(page, {"version": "versions", "comparison": "compare"}.get(title, title))
        assert complaints == []
        assert page.evaluate("window.injected") is None


def test_a_running_job_moves_on_the_page_and_its_log_grows_without_a_reload(browser, address, bench):
    with visitor(browser, address, viewport=DESK) as context:
        page = context.new_page()
        page.clock.install()
        _log_in(page)
        page.goto(f"/admin/jobs/job/{bench.running}")
        line = page.locator("[data-part=line]")
        sync_api.expect(line).to_contain_text("step 430 of 1000")
        with bench.ledger.session() as s:
            jobs.set_step(s, bench.running, "align", share=0.9, text="step 900 of 1000")
            jobs.add_line(s, bench.running, "loss 0.0111 <b>", step="align")
        page.clock.run_for(2000)
        sync_api.expect(line).to_contain_text("step 900 of 1000")
        sync_api.expect(page.locator("#log")).to_contain_text("align: loss 0.0111 <b>")
        assert page.get_attribute("#figures", "data-refreshed") is None  # figures alone, no new page
        with bench.ledger.session() as s:
            jobs.set_step(s, bench.running, "align", state="done", share=1.0, seconds=60.0)
            jobs.set_step(s, bench.running, STEPS[4], state="running")
            jobs.move_job(s, bench.running, to="running", step=STEPS[4])
        page.clock.run_for(2000)
        sync_api.expect(page.locator(".steps .step-running")).to_contain_text("register")
        sync_api.expect(page.locator(".steps .step-done")).to_have_count(4)
        assert page.locator("#log").inner_text().count("loss 0.0111") == 1
        context.clear_cookies()
        page.clock.run_for(2000)
        sync_api.expect(page.locator("#live")).to_contain_text("session ended")
        with bench.ledger.session() as s:
            jobs.set_step(s, bench.running, STEPS[4], state="pending")
            jobs.set_step(s, bench.running, "align", state="running", share=0.43, text="step 430 of 1000")
            jobs.move_job(s, bench.running, to="running", step="align")


def test_the_list_shows_a_job_that_begins_elsewhere_and_one_is_cancelled_and_resumed(browser, address, bench):
    with visitor(browser, address, viewport=DESK) as context:
        page = context.new_page()
        page.clock.install()
        _log_in(page)
        page.goto("/admin/jobs")
        with bench.ledger.session() as s:
            jobs.add_job(s, job_id="compare-9", kind="compare", recipe={"versions": ["a", "b"]}, asked_by="cli")
        page.clock.run_for(2000)
        card = page.locator('[data-job="compare-9"]')
        sync_api.expect(card).to_contain_text("waits for a worker")
        card.locator("h2 a").click()
        page.locator("summary", has_text="Cancel").click()
        page.evaluate("document.activeElement.blur()")
        with bench.ledger.session() as s:
            jobs.move_job(s, "compare-9", to="queued", reason="another one is before it")
        with page.expect_response("**/state?after=*"):
            page.clock.run_for(2000)
        sync_api.expect(page.locator("[data-part=line]")).to_have_text("another one is before it")
        page.clock.run_for(4000)
        assert page.get_attribute("#figures", "data-refreshed") is None  # an open question is not taken away
        page.click("text=Cancel this job")
        sync_api.expect(page.locator("h1 .badge")).to_have_text("cancelled")
        sync_api.expect(page.locator(".notice")).to_contain_text("Cancelled by ada")
        page.click("text=Resume")
        sync_api.expect(page.locator("h1 .badge")).to_have_text("queued")
        with bench.ledger.session() as s:
            jobs.end_job(s, "compare-9", "done", "The two are alike.")


def test_two_versions_are_heard_at_one_playhead_by_keyboard_alone(browser, address, bench):
    with visitor(browser, address, viewport=DESK) as context:
        page = context.new_page()
        _log_in(page)
        page.goto(f"/admin/compare/show/{bench.comparison}")
        time, deck = page.locator("#deck-time"), page.locator("#deck")
        sync_api.expect(time).to_contain_text("/ 1.5 s")
        page.keyboard.press("Space")
        sync_api.expect(deck).to_have_attribute("data-playing", "true")
        before = page.evaluate("window.attuneListening.player.position")
        page.keyboard.press("2")
        sync_api.expect(deck).to_have_attribute("data-side", "right")
        after = page.evaluate("window.attuneListening.player.position")
        assert page.evaluate("window.attuneListening.player.playing") and (after - before) % 1.5 < 1.0
        page.keyboard.press("Space")
        sync_api.expect(deck).to_have_attribute("data-playing", "false")
        page.keyboard.press("n")
        sync_api.expect(page.locator("#deck-prompt")).to_have_text(PROMPTS[1])
        sync_api.expect(page.locator(".is-playing .sung-prompt")).to_have_text(PROMPTS[1])
        page.keyboard.press("p")
        sync_api.expect(page.locator("#deck-prompt")).to_have_text(PROMPTS[0])
        page.keyboard.press("l")
        sync_api.expect(page.locator("[data-do=loop]")).to_have_attribute("aria-pressed", "false")
        # A third version takes the second side, with the take that was clicked.
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        link = page.locator('.sung > li:nth-child(3) [data-version="2"] a[data-take="1"]')
        link.focus()
        page.keyboard.press("Enter")
        sync_api.expect(page.locator("#deck-prompt")).to_have_text(PROMPTS[2])
        sync_api.expect(page.locator("[data-pick=right]")).to_have_value("2")
        sync_api.expect(deck).to_have_attribute("data-playing", "true")
        assert link.evaluate("one => one.href") in asked
        assert page.evaluate("window.attuneListening.player.side") == "right"


def test_both_sides_sound_what_their_versions_sang(browser, address, bench):
    """The sample of each side that the browser plays is the one that the server has for that version."""
    import io

    import numpy as np
    import soundfile

    with visitor(browser, address, viewport=DESK) as context:
        page = context.new_page()
        _log_in(page)
        page.goto(f"/admin/compare/show/{bench.comparison}")
        sync_api.expect(page.locator("#deck-time")).to_contain_text("/ 1.5 s")
        page.select_option("[data-pick=right]", "2")
        page.wait_for_timeout(0)
        sync_api.expect(page.locator('.is-chosen[data-version="2"]')).to_have_count(1)
        sync_api.expect(page.locator("#deck")).to_have_attribute("data-playing", "true")
        for side, index in (("left", 0), ("right", 4)):  # dpo-8's first take is the fifth clip of its prompt
            heard = page.evaluate(
                "side => Array.from(window.attuneListening.player.buffers[side].getChannelData(0)).length"
                " && window.attuneListening.player.buffers[side].getChannelData(0)"
                ".reduce((sum, x) => sum + x * x, 0) / window.attuneListening.player.buffers[side].length", side,
            )  # fmt: skip
            clip = page.request.get(f"/admin/compare/clip/{bench.clips[index]}").body()
            wave, _ = soundfile.read(io.BytesIO(clip))
            assert heard == pytest.approx(float(np.mean(wave**2)), rel=0.02), side


def test_a_lost_clip_is_told_and_the_next_prompt_still_plays(browser, address, bench):
    with visitor(browser, address, viewport=DESK) as context:
        page = context.new_page()
        _log_in(page)
        page.route(f"**/{bench.clips[0]}", lambda route: route.fulfill(status=503, body="gone"))
        page.goto(f"/admin/compare/show/{bench.comparison}")
        sync_api.expect(page.locator("#deck-fault")).to_contain_text("cannot be loaded")
        page.keyboard.press("n")
        sync_api.expect(page.locator("#deck")).to_have_attribute("data-playing", "true")
        sync_api.expect(page.locator("#deck-fault")).to_be_empty()


def test_everything_works_without_scripts(browser, address, bench):
    with visitor(browser, address, viewport=DESK, java_script_enabled=False) as context:
        page = context.new_page()
        _log_in(page)
        page.click("text=Jobs")
        page.click(f'a[href="/admin/jobs/job/{bench.failed}"]')
        sync_api.expect(page.locator(".problem")).to_contain_text("ran out of memory")
        page.click("text=the whole log")
        assert "asked for by schedule nightly" in page.inner_text("body")
        page.goto(f"/admin/compare/show/{bench.comparison}")
        assert not page.locator("#deck").is_visible() and page.locator(".sung a").count() == 24
        page.goto(bench.page("expert-2"))
        page.locator("summary", has_text="Retire it").click()
        retire = page.locator('form[action$="/retire"]')
        retire.locator("textarea").fill("it hisses")
        retire.locator("[name=sure]").check()
        retire.locator("button").click()
        sync_api.expect(page.locator("h1 .badge").first).to_have_text("retired")
        sync_api.expect(page.locator("main")).to_contain_text("it hisses")


def test_the_keyboard_alone_promotes_a_version_with_a_reason(browser, address, bench):
    with visitor(browser, address, viewport=DESK) as context:
        page = context.new_page()
        _log_in(page)
        page.goto(bench.page("dpo-8"))
        page.locator("summary", has_text="Make it champion").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.type("It won.")
        for key in ("Tab", "Tab", "Space", "Tab", "Enter"):
            page.keyboard.press(key)
        page.wait_for_url(re.compile(r"/admin/versions/[0-9a-f-]{36}$"))
        sync_api.expect(page.locator("h1 .badge").first).to_have_text("champion")
        sync_api.expect(page.locator("main")).to_contain_text("It won.")
