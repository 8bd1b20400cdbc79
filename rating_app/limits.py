"""Rate limits: token buckets per browser and per address. Generous to people, also to many behind one address.

Two hundred raters in one building share one public address; at one vote every five seconds each they send 40 votes,
80 clips and some 80 other requests a second, and at the start all of them load the page at once. The limits of an
address lie above that; those of a browser lie above what one person can do. Buckets live in memory: one process
serves the app.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Receive, Scope, Send

from rating_app.perimeter import note_of
from rating_app.tokens import COOKIE_NAME, Tokens

MOST_BUCKETS = 50_000


@dataclass(frozen=True)
class Rate:
    """``burst`` requests at once, and ``per_second`` in the long run."""

    burst: float
    per_second: float


@dataclass(frozen=True)
class Rule:
    """The limits of one kind of request."""

    name: str
    address: Rate
    browser: Rate | None = None


PAGE = Rule("page", address=Rate(30_000, 200))  # the page is some sixty files
HEALTH = Rule("health", address=Rate(300, 20))
SESSION = Rule("session", address=Rate(600, 2), browser=Rate(20, 0.1))
VOTE = Rule("vote", address=Rate(1500, 100), browser=Rate(60, 2))
CLIP = Rule("clip", address=Rate(3000, 200), browser=Rate(120, 6))
ARENA = Rule("arena", address=Rate(300, 2), browser=Rate(10, 0.1))
LISTEN = Rule("listen", address=Rate(4000, 300), browser=Rate(200, 8))
LOGIN = Rule("login", address=Rate(20, 0.1))
ADMIN = Rule("admin", address=Rate(600, 20))


def rule_of(method: str, path: str) -> Rule:
    """Which limits a request falls under."""
    if path.startswith("/rate/"):
        if method == "POST":
            return {
                "/rate/session": SESSION,
                "/rate/votes": VOTE,
                "/rate/ratings": VOTE,
                "/rate/arena": ARENA,
            }.get(path, LISTEN)
        return LISTEN
    if path.startswith("/clip/"):
        return CLIP
    if path.startswith("/admin"):
        return LOGIN if method == "POST" and "login" in path else ADMIN
    if path.startswith(("/healthz", "/metrics")):
        return HEALTH
    return PAGE


class Limiter:
    """Token buckets by kind of request and by a keyed hash of who asks. For one event loop, hence without locks."""

    def __init__(
        self,
        secret: str,
        *,
        scale: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], str] = lambda: datetime.now(UTC).date().isoformat(),
        most_buckets: int = MOST_BUCKETS,
    ) -> None:
        self._key = hmac.digest(secret.encode(), b"attune address of a day v1", sha256)
        self._scale, self._clock, self._today, self._most = scale, clock, today, most_buckets
        # (tokens, when) of each key, unused for longest first, apart for each rate.
        self._buckets: dict[Rate, OrderedDict[str, tuple[float, float]]] = {}
        self._day, self._day_key = "", b""

    def address_key(self, address: str) -> str:
        """A hash that stands for an address for one day; nobody without the secret can find the address again.

        An IPv6 customer has a whole /64, so that is what counts as one address."""
        if (day := self._today()) != self._day:
            self._day, self._day_key = day, hmac.digest(self._key, day.encode(), sha256)
        try:
            parsed = ipaddress.ip_address(address)
            if parsed.version == 6:
                address = str(ipaddress.ip_network((parsed, 64), strict=False))
        except ValueError:
            pass
        return hmac.digest(self._day_key, address.encode(), sha256).hex()[:16]

    def wait(self, rule: Rule, *, address_key: str, browser: str | None) -> float:
        """0 when the request may pass, which takes a token from each bucket; else seconds until it may."""
        found = [(rule.address, f"{rule.name} {address_key}")]
        if browser is not None and rule.browser is not None:
            found.append((rule.browser, f"{rule.name} {browser}"))
        now, waits = self._clock(), 0.0
        left = []
        for rate, key in found:
            tokens = self._tokens(rate, key, now)
            if tokens < 1:
                waits = max(waits, (1 - tokens) / (rate.per_second * self._scale))
            left.append(tokens)
        for (rate, key), tokens in zip(found, left, strict=True):
            buckets = self._buckets.setdefault(rate, OrderedDict())
            buckets[key] = (tokens if waits else tokens - 1, now)
            buckets.move_to_end(key)
            self._forget(rate, buckets, now)
        return waits

    def __len__(self) -> int:
        """How many buckets are remembered."""
        return sum(len(buckets) for buckets in self._buckets.values())

    def _tokens(self, rate: Rate, key: str, now: float) -> float:
        burst = rate.burst * self._scale
        tokens, since = self._buckets.get(rate, {}).get(key, (burst, now))
        return min(burst, tokens + (now - since) * rate.per_second * self._scale)

    def _forget(self, rate: Rate, buckets: OrderedDict[str, tuple[float, float]], now: float) -> None:
        """Drops what is full again, for that is as good as unknown; and beyond the limit the one unused for longest."""
        for _ in range(2):
            oldest = next(iter(buckets))
            full = self._tokens(rate, oldest, now) >= rate.burst * self._scale
            if not full and len(buckets) <= self._most:
                return
            del buckets[oldest]
            if not buckets:
                return


class Limits:
    """ASGI middleware: 429 with Retry-After, which the page's outbox takes for "try again later"."""

    def __init__(self, app: ASGIApp, *, limiter: Limiter, tokens: Tokens) -> None:
        self.app, self.limiter, self.tokens = app, limiter, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        note = note_of(scope)
        note.address_key = self.limiter.address_key((scope.get("client") or ("unknown", 0))[0])
        cookie = self.tokens.read_cookie(_cookie(scope))
        if cookie is not None:
            note.session = cookie.session_id.hex
        rule = rule_of(scope["method"], scope["path"])
        # Only a cookie we signed counts as a browser: one who makes cookies up meets the limits of the address.
        wait = self.limiter.wait(
            rule, address_key=note.address_key, browser=cookie.browser_id if cookie is not None else None
        )
        if not wait:
            return await self.app(scope, receive, send)
        note.refusal = "too many"
        seconds = max(1, math.ceil(wait))
        unit = "second" if seconds == 1 else "seconds"
        body = json.dumps({"error": f"Too many requests at once; try again in {seconds} {unit}."}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(seconds).encode()),
            (b"cache-control", b"private, no-store"),
        ]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _cookie(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"cookie" and COOKIE_NAME.encode() in value:
            return cookie_parser(value.decode("latin-1")).get(COOKIE_NAME)
    return None
