"""The listening page in a real browser: what is heard, what is saved, and what survives."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_support import BROWSER_ARGUMENTS, PROMPTS, Site, open_site, running

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
PATIENCE_MS = 60_000  # on a busy machine; nothing waits longer than it must


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    with open_site(tmp_path_factory.mktemp("site"), with_page=True) as site:
        yield site


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    with running(site.app) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    if not Path(CHROMIUM).exists():
        message = f"{CHROMIUM} is not there; `make system` installs Debian's chromium."
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """A page of a new rater on a small phone; it fails the test on script errors and requests to other hosts."""
    context = browser.new_context(viewport={"width": 360, "height": 740}, base_url=address)
    context.set_default_timeout(PATIENCE_MS)
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(f"script error: {error}"))
    own = (address, "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(own) or faults.append(f"outside: {request.url}"))
    yield page
    context.close()
    assert faults == []


def start(page) -> None:
    page.goto("/")
    page.check('[data-at="consent"]')
    page.click('[data-do="start"]')
    page.wait_for_selector('#attune[data-phase="rate"]')


def pair_id(page) -> str:
    return page.evaluate("window.attune.pair.info.id")


def hear_both(page) -> None:
    """Plays, switches sides once the first is heard, and pauses when the vote is unlocked."""
    page.keyboard.press("Space")
    for _ in range(2):
        side = page.get_attribute("#attune", "data-side")
        page.wait_for_function("side => window.attune.missingSeconds(side) === 0", arg=side)
        page.keyboard.press("2" if side == "left" else "1")
    page.wait_for_selector('#attune[data-unlocked="true"]')
    page.keyboard.press("Space")
    page.wait_for_selector('#attune[data-playing="false"]')


def answer(page, letter: str) -> None:
    page.keyboard.press(letter)
    for name in ("text_adherence", "quality"):
        page.click(f'label:has(input[name="{name}"][value="1"])')
    page.wait_for_selector('[data-at="submit"]:enabled')


def test_a_switch_keeps_the_playhead_and_ramps_over_ten_milliseconds(page, address):
    page.goto("/healthz")
    # A is a sine, B a constant; both are rendered to samples, with the switch in the middle and a seek later.
    seen = page.evaluate(
        """async () => {
          const { ABPlayer, RAMP_SECONDS } = await import("/player/test/abplayer.js");
          const rate = 48000, length = rate;
          const context = new OfflineAudioContext(1, length, rate);
          const clip = (value) => {
            const buffer = context.createBuffer(1, length, rate);
            buffer.getChannelData(0).forEach((_, i, all) => (all[i] = value(i)));
            return buffer;
          };
          const player = new ABPlayer(context);
          const ramp = (i) => i / length; // A's value tells the playhead
          player.setClips(clip(ramp), clip((i) => -ramp(i)), "left");
          player.start();
          const at = 128 * 150; // 0.4 s, on the boundary of a render block
          context.suspend(at / rate).then(() => { player.switchTo("right"); context.resume(); });
          context.suspend((2 * at) / rate).then(() => { player.seek(0.1); context.resume(); });
          const out = (await context.startRendering()).getChannelData(0);
          const steps = Array.from(out, (x, i) => (i ? Math.abs(x - out[i - 1]) : 0));
          const ramped = Math.round(RAMP_SECONDS * rate);
          return {
            ramp_seconds: RAMP_SECONDS,
            before: out[at - 1] - ramp(at - 1),
            after: out[at + ramped + 1] + ramp(at + ramped + 1),
            sought: out[2 * at + ramped + 10] + 0.1 + ramp(ramped + 10),
            largest_step: Math.max(...steps),
            heard: [player.heardSeconds("left"), player.heardSeconds("right")],
          };
        }"""
    )
    assert seen["ramp_seconds"] == 0.01
    # One playhead: sample for sample, B goes on where A was, and a seek lands where it was aimed.
    assert abs(seen["before"]) < 1e-6 and abs(seen["after"]) < 1e-6
    assert abs(seen["sought"]) < 1e-3
    # From +0.4 to -0.4, and later from -0.8 to -0.1, within 480 samples: at most 0.8 / 480 a sample and the signal's
    # own slope of 1 / 48000. A click would be a step of 0.8.
    assert seen["largest_step"] < 0.8 / 480 + 3 / 48000
    # 0.4 s of A; then B until 0.8 s. A bin of 0.05 s counts when its middle was heard.
    assert seen["heard"] == pytest.approx([0.4, 0.4], abs=0.051)


def test_a_rater_listens_votes_by_keyboard_and_sees_saved_only_after_the_commit(page, site):
    before = len(site.votes())
    start(page)
    assert page.inner_text('[data-at="prompt"]') in PROMPTS
    assert page.is_disabled('input[name="outcome"][value="A"]') and page.is_disabled('[data-at="submit"]')
    page.keyboard.press("a")  # too early: nothing happens
    assert page.evaluate("window.attune.chosen('outcome')") is None
    hear_both(page)
    answer(page, "b")

    committed_when_answered = []

    def watch(route) -> None:
        shown = page.inner_text('[data-at="status"]')
        response = route.fetch()
        committed_when_answered.append((shown, len(site.votes()) - before))
        route.fulfill(response=response)

    page.route("**/rate/votes", watch)
    first = pair_id(page)
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-at="status"][data-kind="saved"]')
    assert committed_when_answered == [("Saving…", 1)]
    page.wait_for_function("first => window.attune.pair?.info.id && window.attune.pair.info.id !== first", arg=first)
    assert page.inner_text('[data-at="progress-text"]') == f"1 of {len(PROMPTS)}"
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    vote = site.votes()[-1]
    assert vote.outcome == "B" and dict(vote.axes) == {"text_adherence": 1, "quality": 1}


def test_a_prompt_is_shown_as_text_and_never_run(page):
    start(page)
    hostile = PROMPTS[1]
    for _ in PROMPTS:
        if page.inner_text('[data-at="prompt"]') == hostile:
            break
        shown = pair_id(page)
        page.keyboard.press("s")
        page.wait_for_function("shown => window.attune.pair && window.attune.pair.info.id !== shown", arg=shown)
    assert page.inner_text('[data-at="prompt"]') == hostile
    assert page.evaluate("document.querySelector('[data-at=\"prompt\"]').childElementCount") == 0
    assert page.evaluate("window.injected") is None


def test_a_vote_survives_a_lost_answer_and_a_reload_and_is_saved_once(page, site):
    before = len(site.votes())
    start(page)
    hear_both(page)
    answer(page, "t")
    attempts = []

    def lose(route) -> None:
        attempts.append(route.request.post_data_json["key"])
        if len(attempts) == 1:
            route.fetch()  # committed, and the answer is lost
        route.abort()

    page.route("**/rate/votes", lose)
    voted = pair_id(page)
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-at="status"][data-kind="waiting"]')
    assert len(site.votes()) == before + 1
    page.reload()
    page.wait_for_selector('#attune[data-phase="rate"]')
    assert pair_id(page) != voted
    assert page.evaluate("window.attune.outbox.votes.map(vote => vote.pair)") == [voted]
    page.unroute("**/rate/votes")
    page.evaluate("window.dispatchEvent(new Event('online'))")
    page.wait_for_selector('[data-at="status"][data-kind="saved"]')
    assert page.evaluate("window.attune.outbox.votes") == []
    assert len(set(attempts)) == 1 and len(site.votes()) == before + 1


def test_what_was_heard_and_answered_survives_a_reload(page):
    start(page)
    shown = pair_id(page)
    hear_both(page)
    answer(page, "a")
    page.fill('[data-at="comment"]', "the second one is out of tune")
    page.reload()
    page.wait_for_selector('#attune[data-phase="rate"][data-unlocked="true"]')
    assert pair_id(page) == shown
    assert page.evaluate("window.attune.chosen('outcome')") == "A"
    assert page.input_value('[data-at="comment"]') == "the second one is out of tune"
    assert page.is_enabled('[data-at="submit"]')
