"""No vote lost, doubled or altered on its way from the browser: whatever clicks, tabs, networks and servers do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from app_support import Site, open_site
from browser_support import (
    answer,
    hear_both,
    pair_id,
    rate,
    start,
    visitor,
    wait_for_another_pair,
    wait_until_saved,
)

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    with open_site(tmp_path_factory.mktemp("site"), with_page=True) as site:
        yield site


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
    assert page.evaluate("window.attune.outbox.held") == [voted]
    page.unroute("**/rate/votes")
    page.evaluate("window.dispatchEvent(new Event('online'))")
    wait_until_saved(page)
    assert len(set(attempts)) == 1 and len(site.votes()) == before + 1


def test_what_was_heard_and_answered_survives_a_reload(page):
    start(page)
    shown = pair_id(page)
    hear_both(page)
    answer(page, "a")
    page.evaluate("window.attune.player.seek(0.5)")
    page.click('[data-do="here"]')
    page.keyboard.type("the second one is out of tune")
    page.reload()
    page.wait_for_selector('#attune[data-phase="rate"][data-unlocked="true"]')
    assert pair_id(page) == shown
    assert page.evaluate("window.attune.pairs.ballot.chosen('outcome')") == "A"
    assert page.input_value('[data-at="comment"]') == "the second one is out of tune"
    assert "at 0.5 s" in page.inner_text('[data-at="moment-text"]')
    assert page.is_enabled('[data-at="submit"]')


def test_three_clicks_are_one_vote(page, site):
    before = len(site.votes())
    start(page)
    hear_both(page)
    answer(page, "b")
    voted = pair_id(page)
    page.locator('[data-at="submit"]').click(click_count=3, delay=0)
    page.evaluate("() => { for (let i = 0; i < 3; i++) document.querySelector('[data-at=\"submit\"]').click(); }")
    wait_for_another_pair(page, voted)
    wait_until_saved(page)
    assert len(site.votes()) == before + 1


def test_votes_cast_offline_are_kept_and_arrive_when_the_connection_is_back(page, site):
    before = len(site.votes())
    start(page)
    page.wait_for_function("window.attune.pairs.ahead.next")
    page.evaluate("async () => { await window.attune.pairs.ahead.next; }")
    page.context.set_offline(True)
    first = rate(page, "a")
    wait_for_another_pair(page, first)  # it was here before the connection went
    second = rate(page, "b")
    page.wait_for_selector('#attune[data-phase="problem"]')  # a third one was not
    assert page.evaluate("window.attune.outbox.held") == [first, second]
    assert len(site.votes()) == before
    page.context.set_offline(False)
    wait_until_saved(page)
    assert [vote.outcome for vote in site.votes()[before:]] == ["A", "B"]
    page.wait_for_selector('#attune[data-phase="rate"]')  # goes on by itself
    assert pair_id(page) not in (first, second)


FAULTS = {
    "503": {"status": 503, "json": {"error": "The server cannot reach its data at the moment."}},
    "500": {"status": 500, "body": "oops"},
    "429": {"status": 429, "json": {"error": "Too many requests."}},
    "portal": {"status": 200, "content_type": "text/html", "body": "<h1>Log in to the hotel's network</h1>"},
    "proxy": {"status": 404, "content_type": "text/html", "body": "not found, says a proxy"},
    "another service": {"status": 200, "json": {"ok": True}},
}


def test_no_answer_but_the_servers_own_saved_lets_go_of_a_vote(page, site):
    before = len(site.votes())
    start(page)
    voted, told = pair_id(page), []
    name = next(iter(FAULTS))
    page.route("**/rate/votes", lambda route: route.fulfill(**FAULTS[name]))  # whichever it is by then
    page.keyboard.press("s")
    page.wait_for_selector('[data-at="status"][data-kind="waiting"]')
    for name in FAULTS:
        page.evaluate("window.attune.outbox.flush()")
        told.append((name, page.evaluate("window.attune.outbox.held"), len(site.votes()) - before))
    assert told == [(name, [voted], 0) for name in FAULTS]
    page.unroute("**/rate/votes")
    page.evaluate("window.attune.outbox.flush()")
    wait_until_saved(page)
    assert page.inner_text('[data-at="status"]') == "Saved"


def test_a_refusal_is_told_and_does_not_hold_up_the_next_vote(page, site):
    before = len(site.votes())
    start(page)
    first = pair_id(page)
    refusal = {"error": "This pair was served too long ago; load the next one."}
    page.route("**/rate/votes", lambda route: route.fulfill(status=409, json=refusal))
    page.keyboard.press("s")
    page.wait_for_selector('[data-at="status"][data-kind="refused"]')
    assert refusal["error"] in page.inner_text('[data-at="status"]')
    assert page.evaluate("window.attune.outbox.empty")
    wait_for_another_pair(page, first)
    page.unroute("**/rate/votes")
    rate(page, "a")
    wait_until_saved(page)
    assert len(site.votes()) == before + 1


@pytest.mark.parametrize("status", [422, 500])
def test_a_vote_that_cannot_be_saved_is_kept_and_told_while_later_ones_go_on_and_a_reload_sends_it(page, site, status):
    before = len(site.votes())
    start(page)
    first, tries = pair_id(page), []

    def break_on_the_first(route) -> None:
        if route.request.post_data_json["pair"] != first:
            return route.continue_()
        tries.append(route.request.post_data_json["key"])
        route.fulfill(status=status, json={"error": "The server cannot use this request."})

    page.route("**/rate/votes", break_on_the_first)
    page.keyboard.press("s")
    wait_for_another_pair(page, first)
    rate(page, "a")
    page.wait_for_selector('[data-at="stuck"]:visible')
    page.wait_for_function("window.attune.outbox.held.length === 1")
    told = "1 vote could not be saved; it stays on this device."
    assert page.inner_text('[data-at="stuck"]') == told
    assert page.inner_text('[data-at="status"]') in ("Saved", "Both are heard; you can vote.")
    assert page.evaluate("window.attune.outbox.held") == [first]
    assert [vote.outcome for vote in site.votes()[before:]] == ["A"]
    page.wait_for_selector('#attune[data-phase="rate"]')
    page.click('[data-do="stop"]')
    page.wait_for_selector('#attune[data-phase="done"]')
    assert "Every other answer is saved" in page.inner_text('[data-at="done-text"]')
    sent = len(tries)
    page.reload()
    page.wait_for_function("window.attune?.study && window.attune.outbox.flushing === null")
    assert len(tries) > sent and page.evaluate("window.attune.outbox.held") == [first]
    page.unroute("**/rate/votes")
    page.reload()
    page.wait_for_function("window.attune?.study && window.attune.outbox.empty")
    assert page.is_hidden('[data-at="stuck"]') and len(set(tries)) == 1
    assert sorted(vote.outcome for vote in site.votes()[before:]) == ["A", "SKIP"]


def test_one_pair_in_two_tabs_is_voted_on_once_and_the_other_tab_goes_on(browser, address, site):
    before = len(site.votes())
    with visitor(browser, address) as context:
        first, second = context.new_page(), context.new_page()
        for page in (first, second):
            start(page)
        shown = pair_id(first)
        assert pair_id(second) == shown
        keys = {page.evaluate("window.attune.pairs.voteKey") for page in (first, second)}
        assert len(keys) == 1  # should both be sent, they are one vote
        hear_both(second)
        answer(second, "b")
        rate(first, "a")
        wait_for_another_pair(second, shown)
        assert "another tab" in second.inner_text('[data-at="status"]')
        for page in (first, second):
            wait_until_saved(page)
    assert [vote.outcome for vote in site.votes()[before:]] == ["A"]


def test_storage_that_is_full_loses_no_vote_while_the_page_is_open(page, site):
    before = len(site.votes())
    start(page)
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); }; }")
    tries = []

    def fail_once(route) -> None:
        tries.append(route.request.post_data_json["key"])
        route.abort() if len(tries) == 1 else route.continue_()

    page.route("**/rate/votes", fail_once)
    voted = rate(page, "b")
    wait_for_another_pair(page, voted)
    page.wait_for_selector('[data-at="status"][data-kind="waiting"]')
    assert page.evaluate("window.attune.outbox.held") == [voted]
    page.evaluate("window.attune.outbox.flush()")
    wait_until_saved(page)
    assert [vote.outcome for vote in site.votes()[before:]] == ["B"]
