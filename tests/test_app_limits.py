"""Rate limits: honest raters never meet them, one who hammers does; and addresses are known by a day's hash only."""

from __future__ import annotations

import ipaddress

import pytest
from app_support import a_vote, client_of, open_site

from rating_app.limits import LISTEN, LOGIN, PAGE, SESSION, VOTE, Limiter, Rate, Rule, rule_of
from rating_app.perimeter import Perimeter


class Time:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def limiter(time: Time) -> Limiter:
    return Limiter("secret", clock=time)


def asks(limiter: Limiter, method: str, path: str, browser: str | None, address: str = "203.0.113.7") -> float:
    return limiter.wait(rule_of(method, path), address_key=limiter.address_key(address), browser=browser)


def test_a_bucket_lets_its_burst_through_and_then_its_rate(limiter: Limiter, time: Time):
    rule = Rule("x", address=Rate(3, 0.5))
    assert [limiter.wait(rule, address_key="a", browser=None) for _ in range(4)] == [0, 0, 0, 2]
    time.now = 1.9
    assert limiter.wait(rule, address_key="a", browser=None) == pytest.approx(0.1)
    time.now = 2.0
    assert limiter.wait(rule, address_key="a", browser=None) == 0
    assert limiter.wait(rule, address_key="another", browser=None) == 0


def test_who_is_refused_by_one_bucket_takes_nothing_from_the_other(limiter: Limiter, time: Time):
    rule = Rule("x", address=Rate(3, 0.001), browser=Rate(1, 1))
    assert limiter.wait(rule, address_key="a", browser="b") == 0
    for _ in range(50):
        assert limiter.wait(rule, address_key="a", browser="b") > 0
    assert [limiter.wait(rule, address_key="a", browser=name) for name in "cde"][:2] == [0, 0]


@pytest.mark.parametrize("pace_seconds", [20.0, 5.0])
def test_two_hundred_raters_behind_one_address_are_never_refused(limiter: Limiter, time: Time, pace_seconds: float):
    for rater in range(200):  # all open the page in the same second
        for _ in range(70):
            assert asks(limiter, "GET", "/assets/x.js", None) == 0
        assert asks(limiter, "GET", "/rate/state", None) == 0
        assert asks(limiter, "POST", "/rate/session", None) == 0
        for _ in range(2):
            assert asks(limiter, "GET", "/rate/pair", f"b{rater}") == 0
        for _ in range(4):
            assert asks(limiter, "GET", "/clip/x", f"b{rater}") == 0
    for second in range(300):
        time.now = float(second)
        for rater in range(200):
            if (second + rater) % pace_seconds == 0:
                for method, path, times in (
                    ("POST", "/rate/events", 2),
                    ("POST", "/rate/votes", 1),
                    ("GET", "/rate/pair", 1),
                    ("GET", "/clip/x", 2),
                ):
                    for _ in range(times):
                        assert asks(limiter, method, path, f"b{rater}") == 0, (second, rater, path)


def test_a_rater_back_from_an_hour_offline_empties_the_outbox_at_once(limiter: Limiter):
    assert all(asks(limiter, "POST", "/rate/votes", "b") == 0 for _ in range(50))


def test_passwords_cannot_be_guessed_at_speed(limiter: Limiter, time: Time):
    tries = 0
    for second in range(3600):
        time.now = float(second)
        tries += sum(asks(limiter, "POST", "/admin/login", None) == 0 for _ in range(10))
    assert tries <= 20 + 3600 * 0.1 + 1


def test_kinds_of_requests_have_limits_of_their_own():
    assert rule_of("POST", "/rate/votes") is rule_of("POST", "/rate/ratings") is VOTE
    assert rule_of("POST", "/rate/session") is SESSION and rule_of("GET", "/rate/pair") is LISTEN
    assert rule_of("GET", "/") is rule_of("GET", "/player/x/page.js") is PAGE
    assert rule_of("POST", "/admin/login") is LOGIN and rule_of("GET", "/admin/login") is not LOGIN


def test_buckets_that_are_full_again_are_forgotten_and_their_number_is_bounded(time: Time):
    limiter = Limiter("secret", clock=time, most_buckets=100)
    for number in range(5000):
        time.now += 1.0
        asks(limiter, "POST", "/rate/votes", f"browser {number}", f"10.0.{number // 250}.{number % 250}")
    assert len(limiter) < 10
    for number in range(5000):
        asks(limiter, "POST", "/rate/votes", f"browser {number}", f"10.1.{number // 250}.{number % 250}")
    assert len(limiter) <= 200


def test_an_address_is_known_by_a_hash_that_changes_every_day():
    day = ["2026-01-01"]
    limiter, other = Limiter("secret", today=lambda: day[0]), Limiter("another secret", today=lambda: day[0])
    key = limiter.address_key("203.0.113.7")
    assert key == limiter.address_key("203.0.113.7") != limiter.address_key("203.0.113.8")
    assert "203" not in key and key != other.address_key("203.0.113.7")
    assert limiter.address_key("2001:db8:1:2::1") == limiter.address_key("2001:db8:1:2:ffff::9")
    assert limiter.address_key("2001:db8:1:2::1") != limiter.address_key("2001:db8:1:3::1")
    day[0] = "2026-01-02"
    assert key != limiter.address_key("203.0.113.7")


def scope(peer: str, *headers: tuple[str, str]) -> dict:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return {"type": "http", "client": (peer, 1), "scheme": "http", "headers": raw}


@pytest.mark.parametrize(
    ("peer", "headers", "caller"),
    [
        ("203.0.113.7", [("x-forwarded-for", "10.9.9.9"), ("x-forwarded-proto", "https")], ("203.0.113.7", "http")),
        ("127.0.0.1", [], ("127.0.0.1", "http")),
        ("127.0.0.1", [("x-forwarded-for", "198.51.100.1"), ("x-forwarded-proto", "https")], ("198.51.100.1", "https")),
        ("127.0.0.1", [("x-forwarded-for", "6.6.6.6, 198.51.100.1")], ("198.51.100.1", "http")),
        ("127.0.0.1", [("x-forwarded-for", "6.6.6.6, 198.51.100.1, 10.0.0.3")], ("198.51.100.1", "http")),
        ("127.0.0.1", [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "198.51.100.1")], ("198.51.100.1", "http")),
        ("127.0.0.1", [("x-forwarded-for", "198.51.100.1, nonsense")], ("127.0.0.1", "http")),
        ("127.0.0.1", [("x-forwarded-proto", "https, javascript")], ("127.0.0.1", "http")),
        ("127.0.0.1", [("x-forwarded-for", "2001:db8::1")], ("2001:db8::1", "http")),
    ],
)
def test_a_forwarding_header_is_believed_as_far_as_trusted_proxies_wrote_it(peer, headers, caller):
    trusted = tuple(ipaddress.ip_network(text) for text in ("127.0.0.1", "10.0.0.0/8"))
    assert Perimeter(trusted_proxies=trusted).caller(scope(peer, *headers)) == caller
    assert Perimeter().caller(scope(peer, *headers)) == (peer, "http")


def test_a_vote_that_comes_too_fast_is_told_when_to_come_again(tmp_path):
    with open_site(tmp_path, perimeter=Perimeter(rate_scale=1 / 60), minimum_listening_seconds=0.0) as site:
        client = client_of(site)  # one vote at once, and one every 30 s
        pair = {"id": "0" * 32}
        body = a_vote(pair, heard={"left": 0.1, "right": 0.1})
        assert client.post("/rate/votes", json={}).status_code == 422
        refused = client.post("/rate/votes", json=body)
        assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.headers["cache-control"] == "private, no-store" and site.votes() == []
