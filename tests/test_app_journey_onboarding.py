"""Onboarding in a real browser: what is asked, what is sent, what may be skipped, and what survives a reload."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa
from app_support import Site
from browser_support import PHONE, answer, hear_both, picture, serious_faults, visitor
from journey_support import a_recipe, open_studies

from alignment.db.tables import ConsentRow, RaterRow, VoteTable
from alignment.db.tables_listening import ListeningSessionRow

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=window.injected=1>${window.injected=1}{{prompt}}"
ALL = {
    "consent_version": "7b",
    "consent_text": f"My answers are stored under a pseudonym.\n\n{HOSTILE}",
    "instructions": f"Please sit in a quiet room. {HOSTILE}",
    "headphone_check": "tested",
    "background": ["musical_training", "culture", "age_group"],
    "practice_pairs": 1,
}
STUDIES = (
    a_recipe("all", title="Which one do you prefer?", onboarding=ALL),
    a_recipe("asked", onboarding={"headphone_check": "asked"}),
    a_recipe("bare", onboarding={
        "ask_training": False, "ask_publication": False, "level_check": False, "headphone_check": "off",
        "practice_pairs": 0,
    }),
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    with open_studies(tmp_path_factory.mktemp("site"), *STUDIES, with_page=True) as site:
        yield site


def heading(page, text: str) -> None:
    """Waits for the screen with this heading, which has the focus for those who do not see it."""
    page.wait_for_selector(f'[data-phase-of="welcome"] h1:text-is("{text}")')
    assert page.evaluate("document.activeElement.tagName") == "H1"


def agree(page, path: str = "/") -> None:
    page.goto(path)
    page.check('[data-at="consent"]')
    page.click('[data-at="next"]')
    heading(page, "How it works")


def sent_session(page) -> list[dict]:
    sent: list[dict] = []
    page.on("request", lambda request: request.url.endswith("/rate/session") and sent.append(request.post_data_json))
    return sent


def newest(site: Site, row: type) -> sa.Row:
    order = row.started_at if row is ListeningSessionRow else row.created_at
    with site.database.session(write=False) as s:
        return s.execute(sa.select(row.__table__).order_by(order.desc(), row.id.desc()).limit(1)).one()


def test_consent_to_taking_part_training_and_publication_are_three_answers_and_kept_with_their_version(page, site):
    sent = sent_session(page)
    page.goto("/")
    page.click('[data-at="next"]')  # without consent there is no going on, and the box gets the focus
    assert "tick this box" in page.inner_text("#at-consent-fault")
    assert page.evaluate("document.activeElement.dataset.at") == "consent"
    for name in ("consent", "training", "publication"):
        assert not page.is_checked(f'[data-at="{name}"]')  # nothing is agreed for anybody
    page.check('[data-at="consent"]')
    page.check('[data-at="publication"]')
    page.click('[data-at="next"]')
    page.click('[data-at="start"]')
    page.wait_for_selector('#attune[data-phase="rate"]')
    assert [body["consent"] for body in sent] == [{"version": "7b", "training": False, "publication": True}]
    kept = newest(site, ConsentRow)
    assert (kept.text_version, kept.training, kept.publication) == ("7b", False, True)


def test_where_nothing_is_asked_apart_the_page_says_what_taking_part_includes(page, site):
    sent = sent_session(page)
    page.goto("/?study=bare")
    assert "Taking part includes that the answers may train music models." in page.inner_text(
        '[data-at="consent-text"]'
    )
    assert page.query_selector('[data-at="training"]') is None
    page.check('[data-at="consent"]')
    page.click('[data-at="next"]')
    page.click('[data-at="start"]')
    page.wait_for_selector('#attune[data-phase="rate"]')
    assert sent[0]["consent"] == {"version": "1", "training": True, "publication": False}
    assert sent[0]["study"] == "bare" and sent[0]["headphone_check"] is None


def test_texts_of_the_study_are_shown_as_text_and_never_run(page):
    page.goto("/")
    assert HOSTILE in page.inner_text('[data-at="consent-text"]')
    page.check('[data-at="consent"]')
    page.click('[data-at="next"]')
    assert HOSTILE in page.inner_text(".at-own")
    assert page.evaluate("window.injected") is None and page.query_selector("#attune img") is None


def short_tones(page) -> list[str]:
    """The trials' sounds in a tenth of a second; the addresses asked for, in order."""
    file, asked = io.BytesIO(), []
    soundfile.write(file, np.zeros((3200, 2)), 32000, format="FLAC")

    def send(route) -> None:
        asked.append(route.request.url)
        route.fulfill(body=file.getvalue(), content_type="audio/flac")

    page.route("**/clip/practice/*", send)
    return asked


def do_trials(page, asked: list[str], quiet: dict[str, int], *, right: bool) -> None:
    for number in range(1, 7):
        page.wait_for_selector(f'h1:text-is("Three tones, round {number}"), [data-at="verdict"]')
        if page.query_selector('[data-at="verdict"]'):
            break
        before = len(asked)
        page.click('[data-at="tones"]')
        page.wait_for_selector('[data-at="tone-1"]:enabled')
        assert len(asked) == before + 1
        place = quiet["/clip/" + asked[-1].split("/clip/")[1]]
        page.click(f'[data-at="tone-{(place if right else (place + 1) % 3) + 1}"]')
    page.wait_for_selector('[data-at="verdict"]')


def test_the_headphone_check_keeps_its_result_and_refuses_nobody(page, site):
    sent = sent_session(page)
    agree(page)
    page.click('[data-at="next"]')
    heading(page, "Set your volume")
    page.click('[data-at="next"]')
    heading(page, "Headphone check")
    quiet = {trial["url"]: trial["quiet"] for trial in page.evaluate("window.attune.call('/rate/check')")["trials"]}
    asked = short_tones(page)
    page.click('[data-at="next"]')
    do_trials(page, asked, quiet, right=False)
    assert len(asked) == 3 and "loudspeakers" in page.inner_text('[data-at="verdict"]')
    page.click('[data-at="next"]')  # try again, now with headphones
    heading(page, "Headphone check")
    page.click('[data-at="next"]')
    do_trials(page, asked, quiet, right=True)
    assert len(asked) == 6 and "That sounded like headphones" in page.inner_text('[data-at="verdict"]')
    assert len(set(asked[3:])) == 3  # no trial comes twice
    page.click('[data-at="next"]')
    heading(page, "About you")
    page.click('[data-at="next"]')
    page.click('[data-at="skip"]')
    page.wait_for_selector('#attune[data-phase="rate"]')
    assert sent[0]["headphone_check"] is True and newest(site, ListeningSessionRow).headphone_check is True


def test_the_headphone_verdict_needs_five_of_six_and_guessing_passes_once_in_twenty_two(page):
    page.goto("/")  # scripts may be imported there
    verdicts = page.evaluate(
        """async () => {
          const { headphoneVerdict: verdict } = await import("/player/test/checks.js");
          let passed = 0;
          for (let code = 0; code < 3 ** 6; code++) { // every way to guess six times, a third of them right
            const answers = [];
            for (let rest = code; answers.length < 6 && verdict(answers) === null; rest = Math.floor(rest / 3))
              answers.push(rest % 3 === 0);
            passed += verdict(answers);
          }
          const some = ["yy", "yyy", "nn", "nny", "yny", "ynyyy", "ynyyyy", "yynn"];
          return [passed, some.map((text) => verdict([...text].map((each) => each === "y")))];
        }"""
    )
    # Three right at once: 27 of 729. One wrong among the first three and the rest right: 3 places, 2 ways: 6.
    assert verdicts == [33, [None, True, None, False, None, None, True, False]]


def test_asked_what_one_listens_with_the_answer_is_kept_or_withheld(page, site):
    sent = sent_session(page)
    agree(page, "/?study=asked")
    page.click('[data-at="next"]')
    page.click('[data-at="next"]')
    heading(page, "Headphones")
    assert page.is_checked('input[name="route"][value=""]')
    page.click('.at-option:has(input[value="loudspeakers"])')
    page.click('[data-at="next"]')
    page.click('[data-at="skip"]')
    page.wait_for_selector('#attune[data-phase="rate"]')
    assert sent[0]["audio_route"] == "loudspeakers" and sent[0]["headphone_check"] is None
    assert newest(site, ListeningSessionRow).audio_route == "loudspeakers"


def test_the_level_sound_plays_until_it_is_stopped_or_left(page):
    agree(page)
    page.click('[data-at="next"]')
    heading(page, "Set your volume")
    page.evaluate(
        """() => {
          window.sounding = 0;
          const start = AudioBufferSourceNode.prototype.start;
          AudioBufferSourceNode.prototype.start = function (...how) {
            window.sounding += this.loop ? 1 : 100;
            this.addEventListener("ended", () => (window.sounding -= 1));
            return start.apply(this, how);
          };
        }"""
    )
    page.click('[data-at="level"]')
    page.wait_for_selector('[data-at="level"][aria-pressed="true"]')
    assert page.evaluate("window.sounding") == 1
    page.click('[data-at="level"]')
    page.wait_for_function("window.sounding === 0")
    page.click('[data-at="level"]')
    page.wait_for_selector('[data-at="level"][aria-pressed="true"]')
    page.click('[data-at="next"]')
    page.wait_for_function("window.sounding === 0")


def test_the_background_goes_into_the_cohort_and_prefer_not_to_say_is_not_an_answer(page, site):
    sent = sent_session(page)
    agree(page)
    for _ in range(2):
        page.click('[data-at="next"]')
    page.click('[data-at="skip"]')
    heading(page, "About you")
    for name in ("musical_training", "culture", "age_group"):
        assert page.input_value(f'[data-at="{name}"]') == ""
    page.select_option('[data-at="musical_training"]', "Some, for fun")
    page.select_option('[data-at="age_group"]', "25 to 34")
    page.select_option('[data-at="age_group"]', "")
    page.click('[data-at="next"]')
    page.click('[data-at="skip"]')
    page.wait_for_selector('#attune[data-phase="rate"]')
    assert sent[0]["background"] == {"musical_training": "Some, for fun"}
    assert newest(site, RaterRow).cohort == "musical_training: Some, for fun"


def test_practice_gives_feedback_and_leaves_nothing_behind(page, site):
    posted = []
    page.on("request", lambda request: request.method == "POST" and posted.append(request.url.split("/rate/")[-1]))
    agree(page, "/?study=asked")
    for _ in range(3):
        page.click('[data-at="next"]')
    heading(page, "A little practice")
    page.click('[data-at="next"]')
    for prompt, lesson in (("a calm melody", "hiss"), ("fast drums", "no drums at all")):
        # The page of the first pair stays until the second one has come.
        page.wait_for_selector(f'#attune[data-practice][data-phase="rate"] [data-at="prompt"]:has-text("{prompt}")')
        hear_both(page)
        answer(page, "b")
        page.keyboard.press("Enter")
        page.wait_for_selector(f'[data-at="after-lines"]:has-text("{lesson}")')
        page.keyboard.press("Enter")
    heading(page, "That was the practice")
    assert posted == []
    page.click('[data-at="start"]')
    page.wait_for_selector('#attune[data-phase="rate"]:not([data-practice])')
    assert posted == ["session"]
    with site.database.session(write=False) as s:
        assert s.scalar(sa.select(sa.func.count()).select_from(VoteTable)) == 0


def test_a_reload_in_the_middle_goes_on_where_it_was_and_a_known_browser_skips_it_all(page, site):
    sent = sent_session(page)
    page.goto("/")
    page.check('[data-at="consent"]')
    page.check('[data-at="training"]')
    page.reload()
    page.wait_for_selector('[data-at="consent"]:checked')
    page.click('[data-at="next"]')
    for _ in range(2):
        page.click('[data-at="next"]')
    page.click('[data-at="skip"]')
    page.select_option('[data-at="culture"]', "Several of these")
    page.reload()
    page.wait_for_selector('h1:text-is("About you")')
    assert page.input_value('[data-at="culture"]') == "Several of these"
    page.click('[data-at="back"]')
    heading(page, "Headphone check")
    page.click('[data-at="skip"]')
    page.click('[data-at="next"]')
    page.click('[data-at="skip"]')
    page.wait_for_selector('#attune[data-phase="rate"]')
    assert sent[0]["consent"]["training"] is True and sent[0]["background"] == {"culture": "Several of these"}
    page.reload()
    page.wait_for_selector('#attune[data-phase="rate"]')
    assert len(sent) == 1


def test_a_lost_answer_to_the_session_asks_nothing_twice(page):
    agree(page, "/?study=bare")
    page.route("**/rate/session", lambda route: route.abort())
    page.click('[data-at="start"]')
    page.wait_for_selector('#attune[data-phase="problem"]')
    page.unroute("**/rate/session")
    page.click('[data-do="retry"]')
    page.wait_for_selector('#attune[data-phase="rate"]')


def test_the_keyboard_alone_leads_through_everything(page):
    def tab_to(selector: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"Tab never reaches {selector}")

    short_tones(page)
    page.goto("/")
    page.wait_for_selector('[data-at="consent"]')
    tab_to('[data-at="consent"]')
    page.keyboard.press("Space")
    tab_to('[data-at="next"]')
    page.keyboard.press("Enter")
    heading(page, "How it works")
    tab_to('[data-at="next"]')
    page.keyboard.press("Enter")
    heading(page, "Set your volume")
    tab_to('[data-at="level"]')
    page.keyboard.press("Space")
    page.wait_for_selector('[data-at="level"][aria-pressed="true"]')
    tab_to('[data-at="next"]')
    page.keyboard.press("Enter")
    heading(page, "Headphone check")
    tab_to('[data-at="next"]')
    page.keyboard.press("Enter")
    for number in range(1, 7):
        page.wait_for_selector(f'h1:text-is("Three tones, round {number}"), [data-at="verdict"]')
        if page.query_selector('[data-at="verdict"]'):
            break
        tab_to('[data-at="tones"]')
        page.keyboard.press("Enter")
        page.wait_for_function("document.activeElement.dataset.at === 'tone-1'")  # the focus comes to the answers
        page.keyboard.press("Enter")
    tab_to('[data-at="skip"], [data-at="next"]:only-of-type')
    page.keyboard.press("Enter")
    page.wait_for_selector('h1:text-is("About you"), h1:text-is("Headphone check")')
    if page.query_selector('[data-at="verdict"]') is None and page.query_selector('[data-at="culture"]') is None:
        tab_to('[data-at="skip"]')
        page.keyboard.press("Enter")
    heading(page, "About you")
    tab_to('[data-at="culture"]')
    page.keyboard.type("Europe")
    tab_to('[data-at="next"]')
    page.keyboard.press("Enter")
    heading(page, "A little practice")
    page.unroute("**/clip/practice/*")
    tab_to('[data-at="next"]')
    page.keyboard.press("Enter")
    page.wait_for_selector('#attune[data-practice][data-phase="rate"]')
    hear_both(page)
    page.keyboard.press("b")
    for name in ("text_adherence", "quality"):
        tab_to(f'input[name="{name}"]')
        page.keyboard.press("Space")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-at="after"]:visible')
    page.keyboard.press("Enter")
    heading(page, "That was the practice")
    tab_to('[data-at="start"]')
    page.keyboard.press("Enter")
    page.wait_for_selector('#attune[data-phase="rate"]:not([data-practice])')


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_screen_fits_a_small_phone_and_axe_finds_nothing_serious(browser, address, scheme):
    with visitor(browser, address, viewport=PHONE, color_scheme=scheme) as context:
        page = context.new_page()
        short_tones(page)

        def look(title: str) -> None:
            page.wait_for_selector(f'h1:text-is("{title}")')
            assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"], title
            assert serious_faults(page) == [], title

        page.goto("/")
        look("Which one do you prefer?")
        page.click('[data-at="next"]')
        look("Which one do you prefer?")
        page.check('[data-at="consent"]')
        page.click('[data-at="next"]')
        look("How it works")
        page.click('[data-at="next"]')
        page.wait_for_selector('[data-at="level"]')
        look("Set your volume")
        page.click('[data-at="next"]')
        look("Headphone check")
        page.click('[data-at="next"]')
        look("Three tones, round 1")
        page.click('[data-at="tones"]')
        page.wait_for_selector('[data-at="tone-1"]:enabled')
        look("Three tones, round 1")
        page.click('[data-at="next"]')  # skips the check
        look("About you")
        page.click('[data-at="next"]')
        look("A little practice")


def test_pictures_of_onboarding(browser, address):
    with visitor(browser, address, viewport={"width": 860, "height": 760}) as context:
        page = context.new_page()
        agree(page, "/?study=asked")
        page.click('[data-at="back"]')
        page.wait_for_selector('[data-at="consent"]:checked')
        page.mouse.move(0, 0)
        picture(page, "onboarding")
