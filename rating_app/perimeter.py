"""What surrounds the routes: the guard, rate limits, logs and metrics, put around an app in the right order."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import Scope

from alignment.config import Settings

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass
class RequestNote:
    """What one request turned out to be; filled in on its way, read by logs and metrics when it is answered."""

    request_id: str = ""
    address_key: str = ""  # a keyed hash that lasts a day, never the address itself
    session: str | None = None
    receipt: str | None = None  # "saved" or "repeated", after a vote
    error: Exception | None = None
    refusal: str | None = None  # a word for why the guard or a limit said no


def note_of(scope: Scope) -> RequestNote:
    """The request's note, the same one however often the scope is copied on its way inwards."""
    return scope.setdefault("attune.note", RequestNote())


@dataclass(frozen=True)
class Perimeter:
    """Who may reach the app, and how. The defaults fit a laptop."""

    trusted_proxies: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()
    https_only: bool = False
    metrics_token: str | None = field(default=None, repr=False)
    rate_scale: float = 1.0

    @classmethod
    def from_settings(cls, settings: Settings) -> Perimeter:
        return cls(
            trusted_proxies=tuple(ipaddress.ip_network(text, strict=False) for text in settings.trusted_proxies),
            hosts=frozenset(settings.hosts),
            https_only=settings.is_production,
            metrics_token=settings.metrics_token,
            rate_scale=settings.rate_scale,
        )

    def _trusts(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self.trusted_proxies)

    def caller(self, scope: Scope) -> tuple[str, str]:
        """(address, scheme) of who asks. Forwarding headers count only when a trusted proxy sent them.

        The list of addresses is read from its end, as far as trusted proxies wrote it: what stands before the first
        other address may have been made up by the client."""
        peer = (scope.get("client") or ("unknown", 0))[0]
        scheme = scope.get("scheme", "http")
        if not self._trusts(peer):
            return peer, scheme
        headers = Headers(scope=scope)
        said = [part.strip() for value in headers.getlist("x-forwarded-for") for part in value.split(",")]
        address = peer
        for hop in reversed(said):
            try:
                address = str(ipaddress.ip_address(hop.strip("[]")))
            except ValueError:
                break
            if not self._trusts(address):
                break
        forwarded = headers.get("x-forwarded-proto", "").split(",")[-1].strip().lower()
        return address, forwarded if forwarded in ("http", "https") else scheme


def protect(app: FastAPI, *, secret: str, perimeter: Perimeter, secret_names: Iterable[str] = ()) -> None:
    """Puts the guard, the limits, the logs and the metrics around ``app``. The last thing done to it.

    ``secret_names``: names of versions and studies that no log line may carry."""
    from rating_app.guard import Guard
    from rating_app.limits import Limiter, Limits
    from rating_app.logs import NAMES
    from rating_app.metrics import Metrics, Watch

    NAMES.add(secret_names)
    app.state.perimeter = perimeter
    app.state.metrics = Metrics()
    # Added last, asked first: Watch sees every answer, also the guard's.
    app.add_middleware(Limits, limiter=Limiter(secret, scale=perimeter.rate_scale), tokens=app.state.tokens)
    app.add_middleware(Guard, perimeter=perimeter)
    app.add_middleware(Watch, metrics=app.state.metrics)
