"""Figures of the running app in Prometheus's format, and one log line a request. They name routes, never paths."""

from __future__ import annotations

import hmac
import logging
import secrets
import shutil
import time
from collections import OrderedDict
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alignment.errors import AttuneError, DatabaseError
from rating_app.logs import REQUEST_ID
from rating_app.perimeter import RequestNote, note_of

log = logging.getLogger(__name__)

OPEN_SECONDS = 15 * 60
_MOST_SESSIONS = 20_000
_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """Counters of one app, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options = {"registry": self.registry}
        self.saved = Counter("attune_votes_saved", "Votes and ratings committed.", **options)
        self.repeated = Counter(
            "attune_receipts_repeated", "Receipts given again: the outbox had sent a vote twice.", **options
        )
        self.refused = Counter("attune_votes_refused", "Votes and ratings refused.", ["reason"], **options)
        self.database_errors = Counter("attune_database_errors", "Requests that the database failed.", **options)
        self.limited = Counter("attune_rate_limited", "Requests answered with 429.", ["route"], **options)
        self.seconds = Histogram(
            "attune_request_seconds", "Time to answer.", ["method", "route", "status"], buckets=_BUCKETS, **options
        )
        self._open: OrderedDict[str, float] = OrderedDict()
        Gauge("attune_open_sessions", "Listening sessions heard of in 15 minutes.", **options).set_function(self.open)
        self._free = Gauge("attune_free_bytes", "Room left where data lies.", ["place"], **options)
        self._places: dict[str, Path] = {}

    def watch_room(self, place: str, folder: Path) -> None:
        """From now on tells how much room is left at ``folder``."""
        self._places[place] = folder

    def open(self) -> int:
        """Sessions that asked for something in the last 15 minutes."""
        since = time.monotonic() - OPEN_SECONDS
        while self._open and next(iter(self._open.values())) < since:
            self._open.popitem(last=False)
        return len(self._open)

    def observe(self, note: RequestNote, *, method: str, route: str, status: int, seconds: float) -> None:
        self.seconds.labels(method, route, f"{status // 100}xx").observe(seconds)
        if note.session is not None:
            self._open[note.session] = time.monotonic()
            self._open.move_to_end(note.session)
            if len(self._open) > _MOST_SESSIONS:
                self._open.popitem(last=False)
        if isinstance(note.error, DatabaseError):
            self.database_errors.inc()
        if status == 429:
            self.limited.labels(route).inc()
        if note.receipt == "saved":
            self.saved.inc()
        elif note.receipt == "repeated":
            self.repeated.inc()
        elif status >= 400 and method == "POST" and route in ("/rate/votes", "/rate/ratings"):
            self.refused.labels(reason_of(note, status)).inc()

    def page(self) -> bytes:
        """What Prometheus reads."""
        for place, folder in self._places.items():
            self._free.labels(place).set(shutil.disk_usage(folder).free)
        return generate_latest(self.registry)

    @staticmethod
    def may_read(authorization: str | None, token: str | None) -> bool:
        """Whether the Authorization header holds the bearer token; never when there is none."""
        given = (authorization or "").encode()
        return token is not None and hmac.compare_digest(given, f"Bearer {token}".encode())


def reason_of(note: RequestNote, status: int) -> str:
    """A word from a short list for why a vote was not saved."""
    if note.refusal is not None:
        return note.refusal.replace(" ", "_")
    if isinstance(note.error, AttuneError):
        return type(note.error).__name__
    return {401: "no_session", 422: "malformed"}.get(status, f"status_{status}")


def route_of(scope: Scope) -> str:
    """The route's template, such as /clip/{token}; for what has none, the kind of thing asked for."""
    route = scope.get("route")
    path = getattr(route, "path_format", None) or getattr(route, "path", None)
    asked = scope.get("attune.asked", "")
    if asked.startswith("/admin"):
        return f"/admin{path}" if path and not path.startswith("/admin") else path or "/admin"
    if path and asked.startswith(("/rate/", "/clip/", "/player/", "/healthz", "/metrics", "/favicon.ico")):
        return path
    return "page" if asked == "/" or asked.startswith(("/assets/", "/static/", "/theme.css")) else "none"


class Watch:
    """ASGI middleware, the outermost: gives every request an id, times it, counts it and writes one log line."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        note = note_of(scope)
        note.request_id = secrets.token_hex(8)
        scope["attune.asked"] = scope["path"]
        REQUEST_ID.set(note.request_id)
        began, status = time.perf_counter(), 0

        async def send_watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= 400:  # for a person who asks for help; the two clips of a pair carry no such thing
                    message["headers"] = [*message.get("headers", ()), (b"x-request-id", note.request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_watched)
        finally:
            seconds = time.perf_counter() - began
            route = route_of(scope)
            self.metrics.observe(note, method=scope["method"], route=route, status=status, seconds=seconds)
            fields: dict[str, object] = {
                "method": scope["method"], "route": route, "status": status, "ms": round(seconds * 1000, 1),
            }  # fmt: skip
            if note.receipt is not None:
                fields["receipt"] = note.receipt
            if note.refusal is not None:
                fields.update(refusal=note.refusal, caller=note.address_key)
            if note.error is not None:
                fields["error"] = type(note.error).__name__
            log.info("request", extra={"fields": fields})
