"""The arena in a real browser: typed words, the wait, the blind pair, and what happens when it does not work out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from app_support import Site
from browser_support import answer, hear_both, picture, serious_faults, start, visitor, wait_until_saved
from journey_support import VERSIONS, FakeWorker, a_recipe, open_studies

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=window.injected=1> drums"
STUDY = a_recipe(
    "arena", mode="arena",
    arena={"generation": {"clip_seconds": 1.0}, "blocked_words": ["gun"], "longest_prompt": 80},
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    with open_studies(tmp_path_factory.mktemp("site"), STUDY, with_page=True) as site:
        yield site


def type_prompt(page, text: str) -> None:
    page.fill('[data-at="arena-text"]', text)
    page.keyboard.press("Enter")


def stage(page, words: str) -> None:
    page.wait_for_function("words => window.attune?.part('arena-stage')?.textContent.includes(words)", arg=words)


def sung(page, site: Site) -> FakeWorker:
    worker = FakeWorker(site)
    stage(page, "next in line")
    assert worker.claim()
    return worker


def test_typed_words_are_followed_sung_and_rated_blind_and_then_come_the_next(page, site):
    before = len(site.votes())
    start(page, phase="arena")
    type_prompt(page, "a slow waltz")
    page.wait_for_selector('[data-at="arena-wait"]:visible')
    assert page.inner_text('[data-at="arena-words"]') == "a slow waltz"
    assert page.get_attribute('[data-at="arena-stage"]', "aria-live") == "polite"
    worker = sung(page, site)
    worker.progress(0.6)
    stage(page, "more than 50%")
    assert page.evaluate("window.attune.part('arena-progress').value") == 0.6
    worker.finish()
    page.wait_for_selector('#attune[data-phase="rate"]')
    assert page.inner_text('[data-at="prompt"]') == "a slow waltz"
    assert not any(name in page.content() for name in VERSIONS)
    hear_both(page)
    answer(page, "a")
    page.keyboard.press("Enter")
    page.wait_for_selector('h1:text-is("What should come next?")')
    wait_until_saved(page)
    assert len(site.votes()) == before + 1 and site.votes()[-1].outcome == "A"
    page.click('[data-at="arena-finish"]')
    page.wait_for_selector('#attune[data-phase="done"]')


def test_a_refused_prompt_keeps_the_words_and_says_why_in_one_sentence(page, site):
    start(page, phase="arena")
    type_prompt(page, "a gun and drums")
    page.wait_for_function("window.attune.part('arena-refusal').textContent !== ''")
    refusal = page.inner_text('[data-at="arena-refusal"]')
    assert refusal.endswith(".") and "gun" not in refusal
    assert page.input_value('[data-at="arena-text"]') == "a gun and drums"
    assert page.evaluate("document.activeElement.dataset.at") == "arena-text"
    page.fill('[data-at="arena-text"]', "x" * 81)
    assert page.inner_text('[data-at="arena-count"]') == "1 too many"
    page.click('[data-at="arena-ask"]')
    assert page.inner_text('[data-at="arena-refusal"]') == "That is too long: 80 characters fit."
    page.fill('[data-at="arena-text"]', "  ")
    page.click('[data-at="arena-ask"]')
    assert "one of the examples" in page.inner_text('[data-at="arena-refusal"]')
    page.click('[data-at="arena-examples"] button')
    assert page.input_value('[data-at="arena-text"]').startswith("a slow piano waltz")


def test_after_a_failure_the_same_words_may_be_tried_again_or_others_written(page, site):
    start(page, phase="arena")
    type_prompt(page, "calm strings")
    sung(page, site).fail()
    page.wait_for_selector('[data-at="arena-again"]:visible')
    assert "could not be sung" in page.inner_text('[data-at="arena-fault"]')
    page.keyboard.press("Enter")  # the focus is on it
    sung(page, site).fail()
    page.wait_for_selector('[data-at="arena-other"]:visible')
    page.click('[data-at="arena-other"]')
    page.wait_for_selector('[data-at="arena-form"]:visible')
    assert page.input_value('[data-at="arena-text"]') == ""


def test_a_reload_or_a_lost_connection_while_it_is_sung_loses_nothing_and_hostile_words_stay_words(page, site):
    asked = []
    page.on("request", lambda request: request.method == "POST" and request.url.endswith("/arena") and asked.append(1))
    start(page, phase="arena")
    type_prompt(page, HOSTILE)
    worker = sung(page, site)
    page.reload()
    stage(page, "being made")
    assert page.inner_text('[data-at="arena-words"]') == HOSTILE
    page.context.set_offline(True)
    stage(page, "cannot be reached")
    worker.finish()
    page.context.set_offline(False)
    page.wait_for_selector('#attune[data-phase="rate"]')
    assert page.inner_text('[data-at="prompt"]') == HOSTILE and len(asked) == 1
    assert page.evaluate("window.injected") is None and page.query_selector("#attune img") is None


def test_whoever_begins_again_after_the_end_types_into_one_box_and_asks_once(page, site):
    asked = []
    page.on("request", lambda request: request.method == "POST" and request.url.endswith("/arena") and asked.append(1))
    page.goto("/")
    page.check('[data-at="consent"]')
    page.click('[data-at="next"]')
    page.click('[data-at="start"]')
    page.wait_for_selector('#attune[data-phase="arena"]')
    for _ in range(2):
        page.evaluate("window.attune.act('arena-finish')")
        page.wait_for_selector('#attune[data-phase="done"]')
        page.evaluate("window.attune.act('again')")
        page.wait_for_selector('#attune[data-phase="arena"]')
    type_prompt(page, "three drums")
    sung(page, site).finish()
    page.wait_for_selector('#attune[data-phase="rate"]')
    assert len(asked) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_of_its_screens_and_all_fit_a_small_phone(browser, address, site, scheme):
    with visitor(browser, address, color_scheme=scheme) as context:
        page = context.new_page()

        def look() -> None:
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            assert serious_faults(page) == []

        start(page, phase="arena")
        look()
        type_prompt(page, "a gun")
        page.wait_for_function("window.attune.part('arena-refusal').textContent !== ''")
        look()
        type_prompt(page, "fast drums")
        worker = sung(page, site)
        worker.progress(0.3)
        stage(page, "more than 25%")
        look()
        if scheme == "light":
            page.set_viewport_size({"width": 860, "height": 560})
            picture(page, "arena-wait")
            page.set_viewport_size({"width": 360, "height": 740})
        worker.fail()
        page.wait_for_selector('[data-at="arena-again"]:visible')
        look()


def test_pictures_of_the_arena(browser, address):
    with visitor(browser, address, viewport={"width": 860, "height": 640}) as context:
        page = context.new_page()
        start(page, phase="arena")
        page.fill('[data-at="arena-text"]', "fast drums and a bright marimba over a walking bass")
        picture(page, "arena")
