"""Blindness: nothing that a browser receives tells which version sang which clip."""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import soundfile
from app_support import CONSENT, Clock, Site, client_of, open_site
from fastapi.testclient import TestClient

from alignment.clips import ClipStore
from alignment.db.clips import get_clips
from alignment.db.engine import Database
from alignment.db.listening import get_assignment
from rating_app.flac import SIZE_STEP_BYTES

MADE_UP = re.compile(r"[0-9a-f]{32,}")  # ids and signatures: other ones each time, and drawn without the versions
RANGES = ("bytes=0-0", "bytes=0-99", "bytes=-40", "bytes=1000-", "bytes=99999999-", "bytes=0-1,3-4")


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    with open_site(tmp_path, clock=Clock(), with_page=True) as site:
        yield site


def versions_of(site: Site, pair: dict) -> tuple[str, str]:
    """(version on the left, version on the right), which only the database knows."""
    with site.database.session(write=False) as s:
        assignment = get_assignment(s, uuid.UUID(pair["id"]))
        clips = get_clips(s, [assignment.left_clip_id, assignment.right_clip_id])
    return clips[assignment.left_clip_id].version, clips[assignment.right_clip_id].version


def both_ways(site: Site) -> dict[tuple[str, str], tuple[TestClient, dict, str]]:
    """One prompt's pair served with its versions on either side: a client, the pair and the answer it came in."""
    found: dict[str, dict[tuple[str, str], tuple[TestClient, dict, str]]] = {}
    for _ in range(60):
        client = client_of(site)
        answer = client.get("/rate/pair")
        pair = answer.json()["pair"]
        ways = found.setdefault(pair["prompt"], {})
        ways[versions_of(site, pair)] = (client, pair, answer.text)
        if len(ways) == 2:
            return ways
    raise AssertionError("in 60 sessions no pair was served both ways: sides are not drawn anew")


def words(answer) -> tuple:
    return answer.status_code, [(name, value) for name, value in answer.headers.raw if name != b"date"]


def metadata(flac: bytes) -> tuple[bytes, list[int]]:
    """(stream information, kinds of the metadata blocks)."""
    position, kinds, info, last = 4, [], b"", False
    while not last:
        last, kind = bool(flac[position] & 0x80), flac[position] & 0x7F
        length = int.from_bytes(flac[position + 1 : position + 4], "big")
        info = flac[position + 4 : position + 4 + length] if kind == 0 else info
        kinds.append(kind)
        position += 4 + length
    return info, kinds


def everything(client: TestClient, pair: dict, side: str) -> dict[str, object]:
    """All that a browser can get about one clip, but for its sound."""
    get = partial(client.get, pair["clips"][side])
    whole = get()
    seen: dict[str, object] = {"whole": words(whole), "size": len(whole.content), "metadata": metadata(whole.content)}
    seen["head"] = words(client.head(pair["clips"][side]))
    for span in RANGES:
        part = get(headers={"Range": span})
        seen[span] = (words(part), len(part.content))
    later = {"If-None-Match": "*", "If-Modified-Since": "Fri, 01 Jan 2027 00:00:00 GMT"}
    seen["unchanged?"] = words(get(headers=later))
    seen["address"] = MADE_UP.sub("#", pair["clips"][side])
    seen["other method"] = words(client.post(pair["clips"][side], json={}))
    return seen


def test_both_sides_and_both_orders_of_the_versions_look_the_same_in_everything_that_is_served(site):
    ways = both_ways(site)
    seen = [everything(client, pair, side) for client, pair, _ in ways.values() for side in ("left", "right")]
    assert seen[0]["size"] % SIZE_STEP_BYTES == 0
    assert seen[0]["metadata"][1] == [0, 1]  # stream information, padding
    for name, first in seen[0].items():
        for other in seen[1:]:
            assert other[name] == first, name
    # The pair's JSON: the same but for what is drawn at random for every assignment.
    shapes = {re.sub(r'"first_side":"(left|right)"', "", MADE_UP.sub("#", text)) for _, _, text in ways.values()}
    assert len(shapes) == 1
    for page in ("/", "/rate/state"):
        told = {re.sub(MADE_UP, "#", client.get(page).text) for client, _, _ in ways.values()}
        assert len(told) == 1, page


def test_the_sound_itself_is_each_clips_own(site):
    """What differs is the music: the test above would pass if both sides played the same clip."""
    (_, (client, pair, _)), *_ = both_ways(site).items()
    left, right = (soundfile.read(io.BytesIO(client.get(pair["clips"][side]).content))[0] for side in ("left", "right"))
    assert left.shape == right.shape and np.abs(left - right).max() > 0.01


def test_serving_one_side_does_the_same_work_as_serving_the_other(site, monkeypatch):
    client = client_of(site)
    pair = client.get("/rate/pair").json()["pair"]
    done: list[str] = []
    session, rendition, get_audio = Database.session, ClipStore.rendition, ClipStore.get_audio

    def watched(name, call):
        return lambda *given, **options: done.append(name) or call(*given, **options)

    monkeypatch.setattr(Database, "session", watched("transaction", session))
    monkeypatch.setattr(ClipStore, "rendition", watched("rendition", rendition))
    monkeypatch.setattr(ClipStore, "get_audio", watched("read", get_audio))
    work = []
    for side in ("left", "right", "left", "right"):
        done.clear()
        assert client.get(pair["clips"][side]).status_code == 200
        work.append(list(done))
    assert work[0] == work[1] == ["transaction"]  # the note that it was sent; the sound was made ready with the pair
    assert work[2] == work[3] == []


def test_which_side_and_which_clip_first_are_drawn_anew_for_every_session(site):
    drawn = set()
    for _ in range(60):
        pair = client_of(site).get("/rate/pair").json()["pair"]
        drawn.add((versions_of(site, pair), pair["first_side"]))
    assert len(drawn) == 4


def test_the_page_names_no_version_before_consent_either(site):
    client = client_of(site, started=False)
    for answer in (client.get("/"), client.get("/rate/state"), client.post("/rate/session", json=CONSENT)):
        assert "secret-" not in answer.text + repr(answer.headers)
