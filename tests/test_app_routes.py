"""The rating app's HTTP routes, asked as a browser would and as an attacker would."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
from app_support import (
    CLIP_SECONDS,
    CONSENT,
    PROMPTS,
    RATE_HZ,
    SECRET,
    Clock,
    Site,
    a_vote,
    client_of,
    fake_music,
    listened,
    next_pair,
    open_site,
)
from fastapi.testclient import TestClient

from alignment.db.studies import create_study
from alignment.db.versions import list_versions
from alignment.domain import Axis, Outcome, RaterKind, Side
from alignment.errors import DataError, NotFoundError
from rating_app.app import create_app
from rating_app.demo import ensure_demo_study
from rating_app.flac import SIZE_STEP_BYTES, alone, twins
from rating_app.sending import byte_range
from rating_app.tokens import RaterCookie, Tokens


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path, clock) -> Iterator[Site]:
    with open_site(tmp_path, clock=clock) as site:
        yield site


def test_a_visitor_without_consent_gets_no_session_and_no_pair(site):
    client = client_of(site, started=False)
    assert client.get("/rate/state").json()["session"] is False
    for refused in ({}, {"consent": False}, {"consent": {"version": "1"}}):
        assert client.post("/rate/session", json=refused).status_code == 422
    assert client.get("/rate/pair").status_code == 401
    assert not client.cookies


def test_the_session_cookie_is_closed_to_scripts_and_other_sites_and_says_nothing(site):
    client = client_of(site, started=False)
    header = client.post("/rate/session", json=CONSENT).headers["set-cookie"]
    assert "HttpOnly" in header and "SameSite=strict" in header and "Secure" not in header
    assert client.get("/rate/state").json()["session"] is True
    https = TestClient(site.app, base_url="https://attune.test")
    assert "Secure" in https.post("/rate/session", json=CONSENT).headers["set-cookie"]


def test_a_cookie_with_one_changed_letter_is_nobody(site):
    client = client_of(site)
    value = client.cookies["attune"]
    client.cookies.clear()
    client.cookies.set("attune", value[:10] + ("0" if value[10] != "0" else "1") + value[11:])
    assert client.get("/rate/state").json()["session"] is False
    assert client.get("/rate/pair").status_code == 401


def test_a_vote_reaches_the_database_as_it_was_cast(site, clock):
    client = client_of(site)
    pair = next_pair(client)
    clock.pass_seconds(5)
    answer = client.post("/rate/votes", json=a_vote(pair, comment="<b>more bass</b>", events=listened()))
    assert answer.status_code == 200
    assert answer.json() == {"saved": True, "repeated": False, "progress": {"done": 1, "available": len(PROMPTS) - 1}}
    (vote,) = site.votes()
    assert (vote.outcome, vote.prompt_text) == (Outcome.A, pair["prompt"])
    assert dict(vote.axes) == {Axis.TEXT_ADHERENCE: -1, Axis.QUALITY: 2}
    assert vote.rater_kind is RaterKind.HUMAN
    assert {vote.left.version, vote.right.version} == {"secret-base", "secret-aligned"}


def test_the_same_vote_sent_again_is_saved_once(site, clock):
    client = client_of(site)
    pair = next_pair(client)
    clock.pass_seconds(5)
    answers = [client.post("/rate/votes", json=a_vote(pair)).json() for _ in range(3)]
    assert [answer["repeated"] for answer in answers] == [False, True, True]
    assert len(site.votes()) == 1


def test_the_clip_that_plays_as_a_is_the_one_recorded_as_left(site, clock):
    client = client_of(site)
    pair = next_pair(client)
    heard, _ = soundfile.read(io.BytesIO(client.get(pair["clips"]["left"]).content))
    clock.pass_seconds(5)
    client.post("/rate/votes", json=a_vote(pair))
    (vote,) = site.votes()
    original, _ = site.store.get_audio(vote.left.audio_sha256)
    other, _ = site.store.get_audio(vote.right.audio_sha256)
    # The rendition differs by one gain, which correlation does not see.
    assert np.corrcoef(heard, original)[0, 1] > 0.999
    assert abs(np.corrcoef(heard, other)[0, 1]) < 0.9


def test_a_clip_not_heard_long_enough_is_refused_with_a_sentence_and_nothing_is_stored(site, clock):
    client = client_of(site)
    pair = next_pair(client)
    clock.pass_seconds(5)
    answer = client.post("/rate/votes", json=a_vote(pair, heard={"left": 0.9, "right": 0.1}))
    assert answer.status_code == 409
    assert "right clip" in answer.json()["error"]
    assert site.votes() == []
    assert client.post("/rate/votes", json=a_vote(pair, key="1" * 32, outcome="FAULT", axes={})).status_code == 200


def test_nobody_is_believed_to_have_heard_more_than_the_time_since_the_clips_were_sent(site, clock):
    client = client_of(site)
    pair = next_pair(client)
    clock.pass_seconds(0.1)  # with half a second of slack 0.6 s count, 0.3 s a side; 0.4 s are needed
    assert client.post("/rate/votes", json=a_vote(pair)).status_code == 409
    clock.pass_seconds(0.4)
    assert client.post("/rate/votes", json=a_vote(pair)).status_code == 200


def test_a_clip_that_was_never_sent_cannot_have_been_heard(site, clock):
    client = client_of(site)
    pair = next_pair(client, fetched=False)
    client.get(pair["clips"]["left"])
    client.head(pair["clips"]["right"])
    clock.pass_seconds(60)
    assert client.post("/rate/votes", json=a_vote(pair)).status_code == 409
    client.get(pair["clips"]["right"])
    clock.pass_seconds(5)
    assert client.post("/rate/votes", json=a_vote(pair)).status_code == 200


def test_votes_kept_without_a_connection_are_all_taken_when_they_arrive_together(site, clock):
    client = client_of(site)
    first = next_pair(client)
    second = next_pair(client, first)
    clock.pass_seconds(4 * 3600)
    for number, pair in enumerate((first, second)):
        assert client.post("/rate/votes", json=a_vote(pair, key=f"{number}" * 32)).status_code == 200
    assert len(site.votes()) == 2


def test_the_next_pair_is_another_one_and_a_reload_gives_the_first_again(site):
    client = client_of(site)
    first = next_pair(client)
    second = next_pair(client, first)
    assert second["id"] != first["id"] and second["prompt"] != first["prompt"]
    assert next_pair(client)["id"] == first["id"]
    third = next_pair(client, first, second)
    assert next_pair(client, first, second, third) is None


def test_a_browser_that_starts_again_keeps_its_votes_and_another_browser_starts_afresh(site, clock):
    client = client_of(site)
    pair = next_pair(client)
    clock.pass_seconds(5)
    client.post("/rate/votes", json=a_vote(pair))
    again = client.post("/rate/session", json=CONSENT).json()
    assert again["progress"] == {"done": 1, "available": len(PROMPTS) - 1}
    other = client_of(site, started=False).post("/rate/session", json=CONSENT).json()
    assert other["progress"] == {"done": 0, "available": len(PROMPTS)}


def test_everything_served_for_the_two_sides_is_alike_and_names_no_version(site):
    client = client_of(site)
    answer = client.get("/rate/pair")
    pair = answer.json()["pair"]
    clips = [client.get(pair["clips"][side]) for side in ("left", "right")]
    assert dict(clips[0].headers) == dict(clips[1].headers)
    assert clips[0].headers["last-modified"] == "Thu, 01 Jan 2026 00:00:00 GMT"
    assert "no-store" in clips[0].headers["cache-control"] and "private" in clips[0].headers["cache-control"]
    assert "etag" not in clips[0].headers and "content-disposition" not in clips[0].headers
    assert len(clips[0].content) == len(clips[1].content) and len(clips[0].content) % SIZE_STEP_BYTES == 0
    known = [b"secret-base", b"secret-aligned", b"PEAK", b"Lavf", b"libFLAC", b"reference"]
    with site.database.session(write=False) as s:
        known += [str(version.id).encode() for version in list_versions(s)]
    seen = b"".join(
        page.content + repr(page.headers.raw).encode() for page in (*clips, answer, client.get("/rate/state"))
    )
    assert not [name for name in known if name in seen]
    assert set(pair) == {"id", "prompt", "first_side", "clips"}


def test_a_clip_address_opens_for_no_other_session_and_no_other_side(site):
    client, thief = client_of(site), client_of(site)
    url = next_pair(client)["clips"]["left"]
    assert client.get(url).status_code == 200
    assert thief.get(url).status_code == 404
    assert client_of(site, started=False).get(url).status_code == 401
    assert client.get(url[:-1] + ("0" if url[-1] != "0" else "1")).status_code == 404


def test_a_vote_on_another_sessions_pair_is_refused(site, clock):
    pair = next_pair(client_of(site))
    clock.pass_seconds(5)
    thief = client_of(site)
    assert thief.post("/rate/votes", json=a_vote(pair)).status_code in (404, 409)
    assert thief.post("/rate/events", json={"pair": pair["id"], "events": []}).status_code == 200
    assert thief.post("/rate/votes", json=a_vote({"id": uuid.uuid4().hex})).status_code in (404, 409)
    assert site.votes() == []


def test_ranges_and_head_agree_with_the_whole_clip(site):
    client = client_of(site)
    url = next_pair(client)["clips"]["right"]
    whole = client.get(url).content
    part = client.get(url, headers={"Range": "bytes=4-9"})
    assert (part.status_code, part.content) == (206, whole[4:10])
    assert part.headers["content-range"] == f"bytes 4-9/{len(whole)}"
    head = client.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(whole)))
    assert client.get(url, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 0)),
        ("bytes=90-", (90, 99)),
        ("bytes=-10", (90, 99)),
        ("bytes=-500", (0, 99)),
        ("bytes=50-500", (50, 99)),
        ("bytes=100-", "unsatisfiable"),
        ("bytes=-0", "unsatisfiable"),
        ("bytes=5-2", None),
        ("bytes=0-1,3-4", None),
        ("bytes=-", None),
        ("items=0-1", None),
        (None, None),
    ],
)
def test_byte_ranges_of_a_hundred_bytes_follow_rfc_9110(header, expected):
    assert byte_range(header, 100) == expected


@pytest.mark.parametrize(
    "broken",
    [
        {"outcome": "C"},
        {"axes": {"quality": 3}},
        {"axes": {"loudness": 0}},
        {"heard": {"left": -1, "right": 1}},
        {"heard": {"left": "inf", "right": 1}},
        {"key": "short"},
        {"comment": "x" * 2001},
        {"extra": 1},
    ],
)
def test_a_malformed_vote_is_refused_in_one_sentence_that_names_the_field(site, clock, broken):
    client = client_of(site)
    pair = next_pair(client)
    clock.pass_seconds(5)
    answer = client.post("/rate/votes", json=a_vote(pair, **broken))
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("The request has faults in: " + next(iter(broken)))
    assert site.votes() == []


def test_a_study_of_simulated_listeners_is_never_opened_to_people(site):
    with site.database.session() as s:
        versions = [version.name for version in list_versions(s)]
        create_study(
            s, name="robots", versions=versions, questions=[], minimum_listening_seconds=0,
            rater_kind=RaterKind.SIMULATED,
        )  # fmt: skip
    with pytest.raises(DataError, match="simulated listeners"):
        create_app(site.database, site.store, secret=SECRET, study_name="robots", with_page=False)
    with pytest.raises(NotFoundError, match="robots"):
        create_app(site.database, site.store, secret=SECRET, study_name="nobody", with_page=False)


def test_the_demo_study_is_human_compares_base_and_newest_and_is_made_once(site):
    study = ensure_demo_study(site.database, minimum_listening_seconds=0.4)
    assert study == site.study == ensure_demo_study(site.database, minimum_listening_seconds=0.4)
    service = site.app.state.service
    assert service.study.rater_kind is RaterKind.HUMAN
    assert set(service.study.versions) == {"secret-base", "secret-aligned"}
    assert service.is_demo(service.study) and client_of(site).get("/rate/state").json()["study"]["demo"] is True
    assert client_of(site).get("/rate/state").json()["progress"] == {"done": 0, "available": len(PROMPTS)}


def test_twin_clips_have_one_size_no_tags_and_their_own_sound():
    flacs = []
    for seed, seconds in ((1, CLIP_SECONDS), (2, 3 * CLIP_SECONDS)):
        buffer = io.BytesIO()
        with soundfile.SoundFile(buffer, "w", RATE_HZ, 1, "PCM_16", format="FLAC") as file:
            file.title, file.artist = "secret-base", "secret-aligned"
            file.write(fake_music(seed, seconds))
        flacs.append(buffer.getvalue())
    assert b"secret-base" in flacs[0]
    made = twins(*flacs)
    assert len(made[0]) == len(made[1]) and len(made[0]) % SIZE_STEP_BYTES == 0
    for before, after in zip(flacs, made, strict=True):
        assert b"secret" not in after
        np.testing.assert_array_equal(soundfile.read(io.BytesIO(before))[0], soundfile.read(io.BytesIO(after))[0])


@pytest.mark.parametrize("channels", [1, 2])
def test_clips_heard_alone_have_one_size_however_well_they_compress(channels):
    rng = np.random.default_rng(1)
    noise = rng.uniform(-1, 1, (RATE_HZ * 2, channels))
    sounds = [noise, noise * 0.01, np.zeros_like(noise)]
    flacs = []
    for sound in sounds:
        buffer = io.BytesIO()
        soundfile.write(buffer, sound, RATE_HZ, format="FLAC", subtype="PCM_16")
        flacs.append(buffer.getvalue())
    assert len({len(twins(flac, flac)[0]) for flac in flacs}) == 3  # by steps alone the three would be told apart
    made = [alone(flac) for flac in flacs]
    assert len({len(flac) for flac in made}) == 1 and len(made[0]) % SIZE_STEP_BYTES == 0
    assert sounds[0].size * 2 <= len(made[0]) < sounds[0].size * 2 + 2 * SIZE_STEP_BYTES
    for before, after in zip(flacs, made, strict=True):
        np.testing.assert_array_equal(soundfile.read(io.BytesIO(before))[0], soundfile.read(io.BytesIO(after))[0])


def test_tokens_of_another_secret_are_worthless():
    ours, theirs = Tokens("ours"), Tokens("theirs")
    cookie = RaterCookie(ours.new_browser_id(), (uuid.uuid4(), uuid.uuid4()))
    assert ours.read_cookie(ours.cookie(cookie)) == cookie
    assert theirs.read_cookie(ours.cookie(cookie)) is None
    session, assignment = uuid.uuid4(), uuid.uuid4()
    for side in Side:
        token = ours.clip_token(session, assignment, side)
        assert ours.read_clip_token(session, token) == (assignment, side)
        assert ours.read_clip_token(uuid.uuid4(), token) is None
        assert theirs.read_clip_token(session, token) is None
