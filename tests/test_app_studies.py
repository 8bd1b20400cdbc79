"""Many studies behind one page: whom each address lets in, and which session a request is about."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from app_support import CONSENT, Clock, Site, a_vote, client_of, listened, next_pair, open_site
from fastapi.testclient import TestClient

from alignment.db.engine import Database
from alignment.db.tables import RaterRow, VoteCommentRow, VoteFlagRow
from alignment.db.versions import list_versions
from alignment.domain import Side
from alignment.invites import create_invite
from alignment.studies import set_study_state
from rating_app.admission import INVITE_OVER, INVITED_ONLY, UNKNOWN_STUDY


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path, clock) -> Iterator[Site]:
    with open_site(tmp_path, clock=clock) as site:
        yield site


def state_of(client: TestClient, **address: str) -> dict:
    answer = client.get("/rate/state", params=address)
    assert answer.status_code == 200, answer.text
    return answer.json()


def join(client: TestClient, **about: object) -> dict:
    answer = client.post("/rate/session", json={**CONSENT, **about})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_state_tells_what_the_page_needs_and_neither_the_studys_name_nor_its_versions(site):
    site.add_study("secret-study", title="Slow music", ask_confidence=True, pacing={"break_every": 3})
    answer = client_of(site, started=False).get("/rate/state", params={"study": "secret-study"})
    study = answer.json()["study"]
    assert set(study) == {
        "title", "mode", "questions", "minimum_listening_seconds", "ask_confidence", "ask_comment", "scales", "reveal",
        "demo", "access", "onboarding", "pacing", "arena", "practice_pairs",
    }  # fmt: skip
    assert (study["title"], study["mode"], study["access"]) == ("Slow music", "ab", "open")
    assert study["ask_confidence"] is True
    assert study["pacing"]["break_every"] == 3 and study["arena"] == {"longest_prompt": 300}
    assert study["demo"] is True  # one of its versions learned from simulated votes
    assert answer.json()["invited"] is None and answer.json()["problem"] is None
    assert "secret" not in answer.text


def test_an_address_without_a_study_opens_the_default_one_and_later_the_one_that_was_begun(site):
    site.add_study("other", title="The other one")
    client = client_of(site, started=False)
    assert state_of(client)["study"]["title"] == ""
    join(client, study="other")
    again = state_of(client)
    assert again["study"]["title"] == "The other one" and again["session"] is True
    set_study_state(site.database, "other", "closed", actor="tests")
    assert state_of(client)["study"]["title"] == ""


@pytest.mark.parametrize(("state", "word"), [("paused", "paused"), ("closed", "ended")])
def test_a_study_that_is_paused_or_closed_says_so_kindly_and_takes_nobody_in(site, state, word):
    site.add_study("other", title="The other one")
    client = client_of(site, started=False)
    join(client, study="other")
    set_study_state(site.database, "other", state, actor="tests")
    for visitor in (client, client_of(site, started=False)):
        told = state_of(visitor, study="other")
        assert word in told["problem"] and told["session"] is False and told["study"]["title"] == "The other one"
    refused = client_of(site, started=False).post("/rate/session", json={**CONSENT, "study": "other"})
    assert refused.status_code == 409 and word in refused.json()["error"]


def test_drafts_and_studies_that_are_not_there_cannot_be_told_apart(site):
    site.add_study("a-draft", state="draft")
    client = client_of(site, started=False)
    for name in ("a-draft", "nowhere"):
        told = state_of(client, study=name)
        assert told["problem"] == UNKNOWN_STUDY and told["study"] is None
        assert client.post("/rate/session", json={**CONSENT, "study": name}).json()["error"] == UNKNOWN_STUDY


def test_a_study_by_invitation_opens_with_its_link_only_and_the_browser_that_was_let_in_stays_in(site):
    site.add_study("closed-circle", access="invited")
    link = create_invite(site.database, "closed-circle", most_uses=1, actor="tests")
    stranger = client_of(site, started=False)
    assert state_of(stranger, study="closed-circle")["problem"] == INVITED_ONLY
    assert state_of(stranger, study="closed-circle")["invited"] is False
    assert stranger.post("/rate/session", json={**CONSENT, "study": "closed-circle"}).status_code == 409
    guest = client_of(site, started=False)
    told = state_of(guest, invite=link)
    assert (told["invited"], told["problem"], told["session"]) == (True, None, False)
    join(guest, invite=link)
    # The one use is taken: for others the link is over, for this browser the session goes on, by either address.
    assert state_of(stranger, invite=link)["problem"] == INVITE_OVER
    assert state_of(stranger, invite="x" * 22)["problem"] == INVITE_OVER
    assert stranger.post("/rate/session", json={**CONSENT, "invite": link}).status_code == 409
    for address in ({"invite": link}, {"study": "closed-circle"}, {}):
        assert state_of(guest, **address)["session"] is True
    # Who stops and later goes on is not sent away.
    for address in ({"invite": link}, {"study": "closed-circle"}):
        assert guest.post("/rate/finish", json={}).json()["available"] > 0
        assert state_of(guest, **address)["problem"] is None
        assert join(guest, **address)["session"] is True


def test_two_tabs_with_two_studies_each_keep_their_own_session(site, clock):
    site.add_study("other")
    client = client_of(site, started=False)
    first = join(client)["session_key"]
    second = join(client, study="other")["session_key"]
    assert first != second
    tabs = {key: {"X-Attune-Session": key} for key in (first, second)}
    pairs = {key: next_pair(client, headers=headers) for key, headers in tabs.items()}
    clock.pass_seconds(5)
    for number, (key, headers) in enumerate(tabs.items()):
        vote = a_vote(pairs[key], key=f"{number}" * 32)
        assert client.post("/rate/votes", json=vote, headers=headers).status_code == 200
    assert len(site.votes()) == len(site.votes("other")) == 1
    assert client.get("/rate/pair", headers={"X-Attune-Session": "0" * 32}).status_code == 401


def test_starting_twice_in_one_browser_is_one_session(site):
    client = client_of(site, started=False)
    assert join(client)["session_key"] == join(client)["session_key"]


def test_nobody_takes_part_under_a_consent_text_that_they_did_not_read(site):
    site.add_study("other", onboarding={"consent_version": "2"})
    answer = client_of(site, started=False).post("/rate/session", json={**CONSENT, "study": "other"})
    assert answer.status_code == 409 and "consent text has changed" in answer.json()["error"]


def test_a_comment_is_kept_with_its_place_and_a_broken_clip_with_its_side(site, clock):
    client = client_of(site)
    first = next_pair(client)
    clock.pass_seconds(5)
    place = {"side": "right", "start": 0.25, "end": 0.5}
    vote = a_vote(first, comment="a click", comment_range=place)
    assert client.post("/rate/votes", json=vote).status_code == 200
    second = next_pair(client)
    clock.pass_seconds(0.6)
    heard = {"left": 0.6, "right": 0}
    broken = a_vote(second, key="1" * 32, outcome="B", axes={}, heard=heard, broken="left")
    assert client.post("/rate/votes", json=broken).status_code == 200
    with site.database.session(write=False) as s:
        comment = s.scalars(sa.select(VoteCommentRow)).one()
        flag = s.scalars(sa.select(VoteFlagRow)).one()
    assert (comment.text, comment.side) == ("a click", Side.RIGHT)
    assert (comment.start_seconds, comment.end_seconds) == (0.25, 0.5)
    assert flag.detail == {"broken": "left"}
    backwards = a_vote(next_pair(client), key="2" * 32, comment="x", comment_range={**place, "end": 0.1})
    assert client.post("/rate/votes", json=backwards).status_code == 422


def test_the_versions_are_told_after_the_vote_and_only_where_the_study_tells_them(site, clock):
    site.add_study("open-book", reveal=True)
    client = client_of(site, started=False)
    join(client, study="open-book")
    pair = next_pair(client)
    clock.pass_seconds(5)
    early = client.get("/rate/reveal", params={"pair": pair["id"]})
    assert early.status_code == 409 and "secret" not in early.text
    client.post("/rate/votes", json=a_vote(pair))
    (vote,) = site.votes("open-book")
    told = client.get("/rate/reveal", params={"pair": pair["id"]}).json()
    assert told == {"left": vote.left.version, "right": vote.right.version}
    sealed = client_of(site, started=False)
    join(sealed)
    pair = next_pair(sealed)
    clock.pass_seconds(5)
    sealed.post("/rate/votes", json=a_vote(pair, key="1" * 32))
    answer = sealed.get("/rate/reveal", params={"pair": pair["id"]})
    assert answer.status_code == 409 and "secret" not in answer.text


def test_the_summary_counts_the_session_and_gives_the_code_that_leads_to_its_rater(site, clock):
    client = client_of(site)
    pair = next_pair(client)
    clock.pass_seconds(90)
    client.post("/rate/votes", json=a_vote(pair))
    told = client.post("/rate/finish", json={}).json()
    assert (told["answered"], told["minutes"], told["available"]) == (1, 1.5, 2)
    with site.database.session(write=False) as s:
        pseudonym = s.scalars(sa.select(RaterRow.pseudonym)).one()
    assert told["code"].replace("-", "") == pseudonym[:16]
    # The session is over; the same browser starts another and is the same rater.
    assert state_of(client)["session"] is False
    assert join(client)["progress"]["done"] == 1


def test_a_vote_and_a_clip_cost_few_transactions(site, clock, monkeypatch):
    client = client_of(site)
    pair = next_pair(client, fetched=False)
    client.get(pair["clips"]["left"])
    seen: list[bool] = []
    session = Database.session

    def counted(self, *, write: bool = True):
        seen.append(write)
        return session(self, write=write)

    monkeypatch.setattr(Database, "session", counted)
    client.get(pair["clips"]["right"])
    assert seen == [True]  # only the note that it was sent
    client.get(pair["clips"]["right"])
    assert seen == [True]  # and no second note
    clock.pass_seconds(5)
    seen.clear()
    assert client.post("/rate/votes", json=a_vote(pair, events=listened())).status_code == 200
    assert seen == [True]  # vote, events and the new count in one


def test_versions_are_not_named_in_any_answer_of_a_session(site, clock):
    site.add_study("quiet", title="Quiet")
    client = client_of(site, started=False)
    answers = [client.get("/rate/state", params={"study": "quiet"})]
    answers.append(client.post("/rate/session", json={**CONSENT, "study": "quiet"}))
    answers.append(client.get("/rate/pair"))
    pair = next_pair(client)
    clock.pass_seconds(5)
    answers.append(client.post("/rate/events", json={"pair": pair["id"], "events": []}))
    answers.append(client.post("/rate/votes", json=a_vote(pair)))
    answers.append(client.post("/rate/votes", json=a_vote(pair, outcome="B")))
    answers.append(client.get("/rate/reveal", params={"pair": pair["id"]}))
    answers.append(client.post("/rate/finish", json={}))
    with site.database.session(write=False) as s:
        versions = list_versions(s)
    names = {word for version in versions for word in (version.name, str(version.id), version.id.hex)} | {"quiet"}
    for answer in answers:
        assert not [name for name in names if name in answer.text or name in repr(answer.headers)]
