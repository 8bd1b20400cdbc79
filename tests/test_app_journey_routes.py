"""Routes of practice, checks, ratings and the arena: what they serve, what they refuse, and that they tell nothing."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from app_support import CONSENT, Site, client_of
from journey_support import VERSIONS, FakeWorker, a_recipe, open_studies

from alignment.db.tables_listening import ClipRatingRow
from rating_app.flac import SIZE_STEP_BYTES

RATING = a_recipe(
    "rating",
    mode="rating",
    scales=["quality", "relevance", "mos"],
    shares={"anchors": 0.25},
    minimum_listening_seconds=0,
)
ARENA = a_recipe(
    "arena", mode="arena", minimum_listening_seconds=0,
    arena={"generation": {"clip_seconds": 1.0}, "blocked_words": ["gun"], "longest_prompt": 60, "requests_per_hour": 5},
)  # fmt: skip


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    with open_studies(tmp_path, RATING, ARENA) as site:
        yield site


def joined(site: Site, study: str):
    client = client_of(site, started=False)
    answer = client.post("/rate/session", json={**CONSENT, "study": study})
    assert answer.status_code == 200, answer.text
    return client


def a_rating(item: dict, /, key: str = "0" * 32, **changes: object) -> dict:
    answers = {"quality": 70, "relevance": 30, "mos": 4, "heard": 0.9, "decision_ms": 4000}
    return {"item": item["id"], "key": key, **answers} | changes


def ratings(site: Site) -> list[tuple]:
    with site.database.session(write=False) as s:
        query = sa.select(ClipRatingRow.quality, ClipRatingRow.relevance, ClipRatingRow.mos)
        return [tuple(row) for row in s.execute(query.order_by(ClipRatingRow.created_at))]


def test_practice_and_check_sounds_need_no_session_and_are_sent_like_clips(site):
    client = client_of(site, started=False)
    pairs = client.get("/rate/practice").json()["pairs"]
    check = client.get("/rate/check").json()
    urls = [pair["clips"][side] for pair in pairs for side in ("left", "right")]
    urls += [check["level"], *(trial["url"] for trial in check["trials"])]
    assert len(pairs) == 5 and len(check["trials"]) == 6
    kinds = set()
    for url in urls:
        answer = client.get(url)
        assert answer.status_code == 200 and answer.content[:4] == b"fLaC"
        kept = {name: value for name, value in answer.headers.items() if name not in ("content-length", "date")}
        kinds.add(tuple(sorted(kept.items())))
        part = client.get(url, headers={"Range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, answer.content[4:8])
    assert len(kinds) == 1
    headers = dict(kinds.pop())
    assert headers["cache-control"] == "private, no-store"
    assert headers["last-modified"] == "Thu, 01 Jan 2026 00:00:00 GMT" and "etag" not in headers
    assert client.get("/clip/practice/" + "0" * 32).status_code == 404
    assert client.get("/clip/practice/..%2f..%2fpractice.py").status_code == 404


def test_a_rating_is_saved_once_however_often_it_is_sent(site):
    client = joined(site, "rating")
    item = client.get("/rate/item").json()["item"]
    assert client.get(item["clip"]).content[:4] == b"fLaC"
    first = client.post("/rate/ratings", json=a_rating(item)).json()
    again = client.post("/rate/ratings", json=a_rating(item)).json()
    assert (first["saved"], first["repeated"], again["repeated"]) == (True, False, True)
    assert first["progress"]["done"] == again["progress"]["done"] == 1
    assert client.post("/rate/ratings", json=a_rating(item, key="1" * 32)).status_code == 409
    assert ratings(site) == [(70, 30, 4.0)]
    assert client.get("/rate/item").json()["item"]["id"] != item["id"]


def test_references_and_anchors_are_served_exactly_like_any_other_clip(site):
    client = joined(site, "rating")
    shapes, seen = set(), []
    for number in range(100):
        told = client.get("/rate/item").json()
        if told["item"] is None:
            break
        sound = client.get(told["item"]["clip"])
        assert len(sound.content) % SIZE_STEP_BYTES == 0
        kept = {name: value for name, value in sound.headers.items() if name != "date"}
        shapes.add((tuple(told), tuple(told["item"]), tuple(sorted(kept.items()))))
        seen.append(told["item"]["id"])
        for text in (str(told), str(sound.headers)):
            assert not any(name in text for name in (*VERSIONS, "anchor", "reference", "normal"))
        saved = client.post("/rate/ratings", json=a_rating(told["item"], key=f"{number:032x}"))
        assert saved.status_code == 200, saved.text
    # 6 clips of both versions, and anchors for a quarter of all: 2.
    assert len(seen) == len(set(seen)) == 8
    assert len(shapes) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"quality": 0}, {"quality": 101}, {"quality": 50.5}, {"relevance": -1}, {"mos": 6}, {"mos": 0}, {"heard": -1},
        {"heard": float("1e9")}, {"key": "no"}, {"kind": "anchor"}, {"item": "x"},
    ],
    ids=lambda changes: str(changes),
)  # fmt: skip
def test_a_malformed_rating_is_refused(site, changes):
    client = joined(site, "rating")
    item = client.get("/rate/item").json()["item"]
    assert client.post("/rate/ratings", json=a_rating(item, **changes)).status_code == 422
    assert ratings(site) == []


def test_a_clip_of_another_session_is_neither_heard_nor_rated(site):
    owner, stranger = joined(site, "rating"), joined(site, "rating")
    item = owner.get("/rate/item").json()["item"]
    assert stranger.get(item["clip"]).status_code == 404
    assert stranger.post("/rate/ratings", json=a_rating(item)).status_code == 409
    nobody = client_of(site, started=False)
    assert nobody.get(item["clip"]).status_code == 401 and nobody.get("/rate/item").status_code == 401
    assert nobody.post("/rate/ratings", json=a_rating(item)).status_code == 401


def test_a_typed_prompt_waits_is_sung_and_becomes_a_blind_pair(site):
    client, worker = joined(site, "arena"), FakeWorker(site)
    assert client.get("/rate/pair").json()["pair"] is None
    asked = client.post("/rate/arena", json={"text": "a slow waltz"}).json()
    assert (asked["state"], asked["queue_position"], asked["pair"]) == ("waiting", 1, None)
    assert worker.claim()
    worker.progress(0.5)
    half = client.get(f"/rate/arena/{asked['id']}").json()
    assert (half["state"], half["progress"]) == ("running", 0.5)
    worker.finish()
    done = client.get(f"/rate/arena/{asked['id']}").json()
    pair = client.get("/rate/pair").json()["pair"]
    assert done["state"] == "done" and done["pair"] == pair["id"] and pair["prompt"] == "a slow waltz"
    assert not any(name in f"{asked}{half}{done}" for name in VERSIONS)


def test_a_refused_prompt_is_answered_with_one_sentence_that_names_no_list(site):
    client = joined(site, "arena")
    for text in ("a gun shot", "", "x" * 61):
        answer = client.post("/rate/arena", json={"text": text})
        assert answer.status_code == 409, text
        sentence = answer.json()["error"]
        assert sentence.endswith(".") and "gun" not in sentence and "\n" not in sentence
    assert client.post("/rate/arena", json={"text": "x" * 2001}).status_code == 422
    assert client.post("/rate/arena", json={"text": "a", "versions": ["x"]}).status_code == 422


def test_a_prompt_of_another_session_is_unknown(site):
    owner, stranger = joined(site, "arena"), joined(site, "arena")
    asked = owner.post("/rate/arena", json={"text": "a slow waltz"}).json()
    assert stranger.get(f"/rate/arena/{asked['id']}").status_code == 404
    assert owner.get(f"/rate/arena/{uuid.uuid4().hex}").status_code == 404
    assert owner.get("/rate/arena/nonsense").status_code == 422
    assert client_of(site, started=False).post("/rate/arena", json={"text": "a waltz"}).status_code == 401
