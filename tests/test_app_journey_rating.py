"""The absolute rating mode in a real browser: what is heard, what is saved, and what survives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from app_support import PROMPTS, Site
from browser_support import picture, serious_faults, start, visitor, wait_until_saved
from journey_support import NOTHING_BEFORE, a_recipe, open_studies

from alignment.db.tables_listening import ClipRatingRow

pytestmark = pytest.mark.browser
SCALES = ["quality", "relevance", "mos"]
STUDIES = (
    a_recipe("rating", mode="rating", scales=SCALES, shares={"anchors": 0.25}),
    a_recipe("practised", mode="rating", scales=SCALES, onboarding={**NOTHING_BEFORE, "practice_pairs": 2}),
    a_recipe(
        "short", mode="rating", scales=["mos"],
        pacing={"pairs_per_session": 2, "break_every": 1, "break_seconds": 0},
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    with open_studies(tmp_path_factory.mktemp("site"), *STUDIES, with_page=True) as site:
        yield site


def ratings(site: Site) -> list[tuple]:
    columns = (ClipRatingRow.quality, ClipRatingRow.relevance, ClipRatingRow.mos)
    with site.database.session(write=False) as s:
        return [tuple(row) for row in s.execute(sa.select(*columns).order_by(ClipRatingRow.created_at))]


def item_id(page) -> str:
    return page.evaluate("window.attune.mode.item?.info.id")


def another_item(page, than: str) -> None:
    page.wait_for_function("than => window.attune.mode.item && window.attune.mode.item.info.id !== than", arg=than)


def hear(page) -> None:
    page.keyboard.press("Space")
    page.wait_for_selector('#attune[data-unlocked="true"]')
    page.keyboard.press("Space")
    page.wait_for_selector('#attune[data-playing="false"]')


def rate(page, quality: int = 73) -> None:
    """Hears the clip and answers everything, up to the enabled button."""
    hear(page)
    page.fill('[data-number="quality"]', str(quality))
    page.fill('[data-number="relevance"]', "20")
    page.click('label:has(input[name="mos"][value="4"])')
    page.wait_for_selector('[data-at="rating-submit"]:enabled')


def test_three_clicks_save_one_rating_and_saved_appears_only_after_the_commit(page, site):
    before = len(ratings(site))
    start(page, phase="rating")
    assert page.inner_text('[data-at="rating-prompt"]') in PROMPTS
    assert page.is_disabled('[data-number="quality"]') and page.is_disabled('[data-at="rating-submit"]')
    rate(page)
    seen = []

    def watch(route) -> None:
        shown = page.inner_text('[data-at="status"]')
        response = route.fetch()
        seen.append((shown, len(ratings(site)) - before))
        route.fulfill(response=response)

    page.route("**/rate/ratings", watch)
    first = item_id(page)
    page.evaluate("for (let i = 0; i < 3; i++) document.querySelector('[data-at=\"rating-submit\"]').click()")
    page.wait_for_selector('[data-at="status"][data-kind="saved"]')
    assert seen == [("Saving…", 1)]
    another_item(page, first)
    assert ratings(site)[-1] == (73, 20, 4.0)
    assert page.inner_text('[data-at="progress-text"]') == "1 of 8"
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_a_scale_stands_nowhere_until_it_is_touched_and_its_middle_is_an_answer_like_any_other(page):
    start(page, phase="rating")
    hear(page)
    slider, number = '[data-scale="quality"]', '[data-number="quality"]'
    assert page.get_attribute(slider, "aria-valuetext") == "not answered yet"
    assert page.get_attribute(slider, "data-unset") == "" and page.input_value(number) == ""
    assert page.evaluate("window.attune.mode.scales.values.quality") is None
    box = page.locator(slider).bounding_box()
    page.mouse.click(box["x"] + box["width"] * 49 / 99, box["y"] + box["height"] / 2)  # where the hidden knob waits
    assert page.evaluate("window.attune.mode.scales.values.quality") in (49, 50, 51)
    assert page.input_value(number) == page.get_attribute(slider, "aria-valuetext")
    page.fill(number, "101")  # out of range: no answer
    assert page.evaluate("window.attune.mode.scales.values.quality") is None
    page.focus(number)
    page.keyboard.press("Control+a")
    page.keyboard.type("88")
    assert page.evaluate("window.attune.mode.scales.values.quality") == 88
    assert page.input_value(slider) == "88"


def test_a_rating_survives_a_lost_answer_and_a_reload_and_is_saved_once(page, site):
    before = len(ratings(site))
    start(page, phase="rating")
    rate(page)
    attempts = []

    def lose(route) -> None:
        attempts.append(route.request.post_data_json["key"])
        if len(attempts) == 1:
            route.fetch()  # committed, and the answer is lost
        route.abort()

    page.route("**/rate/ratings", lose)
    rated = item_id(page)
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-at="status"][data-kind="waiting"]')
    assert len(ratings(site)) == before + 1
    page.reload()
    page.wait_for_selector('#attune[data-phase="rating"]')
    assert item_id(page) != rated and page.evaluate("window.attune.outbox.held") == [rated]
    page.unroute("**/rate/ratings")
    page.evaluate("window.dispatchEvent(new Event('online'))")
    wait_until_saved(page)
    assert len(set(attempts)) == 1 and len(ratings(site)) == before + 1


def test_offline_the_next_clip_is_there_already_and_the_rating_is_sent_later(page, site):
    before = len(ratings(site))
    start(page, phase="rating")
    rate(page)
    page.evaluate("window.attune.mode.ahead.next")  # the clip fetched ahead
    first = item_id(page)
    page.context.set_offline(True)
    page.keyboard.press("Enter")
    another_item(page, first)
    page.wait_for_selector('[data-at="status"][data-kind="waiting"]')
    assert len(ratings(site)) == before
    page.context.set_offline(False)
    wait_until_saved(page)
    assert len(ratings(site)) == before + 1


def test_what_was_heard_and_answered_survives_a_reload(page):
    start(page, phase="rating")
    shown = item_id(page)
    rate(page, quality=41)
    page.reload()
    page.wait_for_selector('#attune[data-phase="rating"][data-unlocked="true"]')
    assert item_id(page) == shown
    assert page.evaluate("window.attune.mode.scales.answers") == {"quality": 41, "relevance": 20, "mos": 4}
    assert page.is_enabled('[data-at="rating-submit"]')


def outcomes(site: Site) -> list[str]:
    with site.database.session(write=False) as s:
        return [one.value for one in s.scalars(sa.select(ClipRatingRow.outcome).order_by(ClipRatingRow.created_at))]


def test_a_clip_may_be_skipped_or_reported_unheard_and_counts_as_answered(page, site):
    before = len(ratings(site))
    start(page, phase="rating")
    first = item_id(page)
    page.keyboard.press("s")
    another_item(page, first)
    second = item_id(page)
    page.evaluate("window.attune.mode.scales.set('quality', 55)")  # an answer that is begun is not sent along
    assert page.is_hidden('[data-at="rating-trouble"]')
    page.keyboard.press("f")
    assert page.get_attribute('.at-rating [data-do="trouble"]', "aria-expanded") == "true"
    assert page.evaluate("document.activeElement.dataset.do") == "fault"
    page.keyboard.press("Escape")
    assert page.is_hidden('[data-at="rating-trouble"]') and item_id(page) == second
    page.click('.at-rating [data-do="trouble"]')
    page.keyboard.press("Enter")  # the focus is on the report
    another_item(page, second)
    assert page.is_hidden('[data-at="rating-trouble"]')
    wait_until_saved(page)
    assert outcomes(site)[before:] == ["SKIP", "FAULT"]
    assert ratings(site)[before:] == [(None, None, None)] * 2
    assert page.inner_text('[data-at="progress-text"]') == "2 of 8"


def test_a_prompt_is_shown_as_text_and_never_run(page):
    start(page, phase="rating")
    for _ in range(8):
        if page.inner_text('[data-at="rating-prompt"]') == PROMPTS[1]:
            break
        shown = item_id(page)
        rate(page)
        page.keyboard.press("Enter")
        another_item(page, shown)
    assert page.inner_text('[data-at="rating-prompt"]') == PROMPTS[1]
    assert page.evaluate("document.querySelector('[data-at=\"rating-prompt\"]').childElementCount") == 0
    assert page.evaluate("window.injected") is None


def test_a_session_has_its_break_its_end_and_its_summary(page):
    start(page, "/?study=short", phase="rating")
    assert page.query_selector('[data-scale="quality"]') is None  # the study asks one scale only
    for last in (False, True):
        shown = item_id(page)
        hear(page)
        page.click('label:has(input[name="mos"][value="2"])')
        page.keyboard.press("Enter")
        if not last:
            page.wait_for_selector('#attune[data-phase="break"]')
            page.click('[data-do="continue"]')
            another_item(page, shown)
    page.wait_for_selector('#attune[data-phase="done"]')
    assert "2" in page.inner_text('[data-at="figures"]') and "clips rated" in page.inner_text('[data-at="figures"]')


def test_whoever_stops_and_begins_again_rates_the_clip_that_is_shown_and_no_other(page, site):
    posted = []
    page.on("request", lambda request: request.url.endswith("/rate/ratings") and posted.append(request.post_data_json))
    page.goto("/")
    page.check('[data-at="consent"]')
    page.click('[data-at="next"]')
    page.click('[data-at="start"]')
    page.wait_for_selector('#attune[data-phase="rating"]')
    rate(page, quality=11)  # answered, and then not saved
    page.click('[data-do="stop"]')
    page.wait_for_selector('#attune[data-phase="done"]')
    page.click('[data-do="again"]')
    page.wait_for_selector('#attune[data-phase="rating"]')
    page.wait_for_function("window.attune.mode.item")
    shown = item_id(page)
    rate(page, quality=99)
    page.click('[data-at="rating-submit"]')
    another_item(page, shown)
    wait_until_saved(page)
    assert [(one["item"], one["quality"]) for one in posted] == [(shown, 99)]


def test_practice_in_this_mode_is_with_single_clips_and_sends_nothing(page):
    posted = []
    page.on("request", lambda request: request.method == "POST" and posted.append(request.url.split("/rate/")[-1]))
    page.goto("/?study=practised")
    page.check('[data-at="consent"]')
    page.click('[data-at="next"]')
    page.click('[data-at="next"]')
    page.wait_for_selector('h1:text-is("A little practice")')
    page.click('[data-at="next"]')
    for lesson in ("clean", "hiss"):
        page.wait_for_selector('#attune[data-practice][data-phase="rating"] [data-at="rating-form"]:visible')
        rate(page)
        page.keyboard.press("Enter")
        page.wait_for_selector(f'[data-at="rating-lesson"]:has-text("{lesson}")')
        page.keyboard.press("Enter")
    page.wait_for_selector('h1:text-is("That was the practice")')
    assert posted == []
    page.click('[data-at="start"]')
    page.wait_for_selector('#attune[data-phase="rating"]:not([data-practice])')
    assert posted == ["session"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_locked_or_open_and_the_picture_shows_it(browser, address, scheme):
    with visitor(browser, address, viewport={"width": 860, "height": 760}, color_scheme=scheme) as context:
        page = context.new_page()
        start(page, phase="rating")
        assert serious_faults(page) == []
        rate(page)
        assert serious_faults(page) == []
        if scheme == "light":
            page.mouse.move(0, 0)
            picture(page, "rating-mode")
        page.keyboard.press("f")
        assert serious_faults(page) == []
        if scheme == "light":
            picture(page, "rating-trouble")
