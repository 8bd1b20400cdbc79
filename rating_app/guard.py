"""The door in front of everything: which paths exist, who may post, and which headers every answer carries."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
from hashlib import sha256
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rating_app.perimeter import Perimeter, note_of

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 256 * 1024
MAX_ADMIN_BODY_BYTES = 1024 * 1024
BODY_SECONDS = 20.0

# Our own routes.
_OWN_PREFIXES = ("/rate/", "/clip/", "/player/", "/admin/")
_HEALTH_PATHS = ("/healthz", "/healthz/ready", "/metrics")
_OWN_PATHS = ("/favicon.ico", "/admin", *_HEALTH_PATHS)
# All that a Gradio page without events needs. Gradio's uploads, files, queue, component server, heartbeat, login,
# API description and reset stay closed because they are not here.
_SHELL_PREFIXES = ("/assets/", "/static/")
_SHELL_PATHS = ("/", "/theme.css")
# What Gradio gets to see of a request: no cookie, no forwarding headers that it would build addresses from, no range.
_SHELL_HEADERS = (b"host", b"accept", b"accept-encoding", b"accept-language", b"if-none-match", b"if-modified-since")
_FORWARDING_HEADERS = (b"forwarded", b"x-real-ip")
# Single sign-on may use one of these; the admin believes it from a named proxy alone.
_SIGN_ON_HEADERS = (b"x-forwarded-user", b"x-forwarded-preferred-username", b"x-forwarded-email")
_FORM_TYPES = ("application/json", "application/x-www-form-urlencoded", "multipart/form-data")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+)(:\d{1,5})?")

# Gradio's front end compiles even a static template with `new Function`, hence 'unsafe-eval', and sets inline styles.
# Its inline scripts are allowed one by one, by their hashes: no other inline script or handler runs. Text from prompts
# and raters only ever reaches the page through textContent.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'{hashes}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' blob:; "
    "worker-src 'self' blob:; manifest-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-src 'none'; frame-ancestors 'none'"
)
# For the organisers' pages, unless they set a policy of their own.
ADMIN_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# For everything that is not a page.
_DATA_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
_INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.S | re.I)


def page_policy(html: bytes) -> str:
    """The policy of the rating page: its own inline scripts by hash, and no others."""
    digests = (base64.b64encode(sha256(script).digest()).decode() for script in _INLINE_SCRIPT.findall(html))
    return _PAGE_POLICY.format(hashes="".join(f" 'sha256-{digest}'" for digest in digests))


class Guard:
    """ASGI middleware. Refuses what is not on the list; answers carry no CORS permission."""

    def __init__(self, app: ASGIApp, *, perimeter: Perimeter | None = None) -> None:
        self.app = app
        self.perimeter = perimeter or Perimeter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        scope["attune.peer"] = (scope.get("client") or ("unknown", 0))[0]  # who is connected: single sign-on asks
        address, scheme = self.perimeter.caller(scope)
        scope["client"], scope["scheme"] = (address, 0), scheme
        outwards = _Outwards(scope, send)
        refusal = self._refusal(scope)
        if refusal is not None:
            status, sentence = refusal
            note_of(scope).refusal = {403: "foreign", 404: "no such path"}.get(status, "not acceptable")
            return await _answer(outwards, status, sentence)
        if scope["method"] == "POST":
            body = await _read_body(scope, receive)
            if isinstance(body, tuple):
                note_of(scope).refusal = "slow or cut short"
                return await _answer(outwards, *body)
            receive = _replay(body, receive)
        inner = _for_shell(scope) if _is_shell(scope["path"]) else _without_forwarding(scope)
        try:
            await self.app(inner, receive, outwards)
        except Exception as error:  # the last net: whatever it is, the answer is one sentence with the usual headers
            note_of(scope).error = error
            log.exception("A request failed.")
            if outwards.started:
                raise
            await _answer(outwards, 500, "The server met a fault of its own.")
        finally:
            if "route" in inner:
                scope["route"] = inner["route"]

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        path, method, headers = scope["path"], scope["method"], Headers(scope=scope)
        own = path in _OWN_PATHS or path.startswith(_OWN_PREFIXES)
        if _is_crooked(scope) or not own and not (_is_shell(path) and method in ("GET", "HEAD")):
            return 404, "There is nothing at this address."
        if path not in _HEALTH_PATHS:
            fault = self._wrong_door(scope, headers)
            if fault is not None:
                return fault
        site = headers.get("sec-fetch-site", "same-origin")
        admin = path.startswith("/admin")
        if method in ("GET", "HEAD"):
            # Other sites may link to pages; they may not load pairs, clips or votes into theirs.
            if path.startswith(("/rate/", "/clip/")) and site not in ("same-origin", "none"):
                return 403, "This request came from another site."
            return None
        if method != "POST":
            return 405, "This address cannot be used that way."
        # A page of another origin must not vote with this browser's cookie.
        origin = headers.get("origin")
        if origin is not None and not self._is_ours(origin, scope, headers) or site not in ("same-origin", "none"):
            return 403, "This request came from another site."
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind not in (_FORM_TYPES if admin else _FORM_TYPES[:1]):
            return 415, "Send JSON."
        length, most = headers.get("content-length", ""), MAX_ADMIN_BODY_BYTES if admin else MAX_BODY_BYTES
        if not re.fullmatch(r"[0-9]{1,15}", length):
            return 411, "Say how long the request is."
        if int(length) > most:
            return 413, f"The request is larger than {most // 1024} KiB."
        return None

    def _wrong_door(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        host = _HOST.fullmatch(headers.get("host", ""))
        if host is None:  # Gradio writes the name into its page
            return 400, "The request does not name this server."
        if self.perimeter.hosts and host[1].lower() not in self.perimeter.hosts:
            return 421, "This server answers to another name."
        if self.perimeter.https_only and scope["scheme"] != "https":
            return 403, "Use https."
        return None

    def _is_ours(self, origin: str, scope: Scope, headers: Headers) -> bool:
        parts = urlsplit(origin)
        if self.perimeter.https_only and parts.scheme != "https":
            return False
        return parts.scheme in ("http", "https") and parts.netloc == headers.get("host")


class _Outwards:
    """``send`` with our headers on every answer. A page is held back until its inline scripts have been hashed."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self.send, self.started = scope, send, False
        self._page: Message | None = None
        self._html = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.lower().startswith("access-control-")]:
                del headers[name]
            if self.scope["path"].startswith("/admin"):
                headers.setdefault("content-security-policy", ADMIN_POLICY)
            else:
                headers["content-security-policy"] = _DATA_POLICY
            headers.update(_HEADERS)
            if self.scope["scheme"] == "https":
                headers["strict-transport-security"] = "max-age=31536000"
            if self.scope["path"] == "/" and headers.get("content-type", "").startswith("text/html"):
                self._page = message
                return
            self.started = True
        elif self._page is not None:
            self._html += message.get("body", b"")
            if message.get("more_body"):
                return
            headers = MutableHeaders(scope=self._page)
            headers["content-security-policy"] = page_policy(self._html)
            headers["cache-control"] = "no-cache"
            self.started = True
            await self.send(self._page)
            message, self._page = {**message, "body": self._html, "more_body": False}, None
        await self.send(message)


def _is_shell(path: str) -> bool:
    return path in _SHELL_PATHS or path.startswith(_SHELL_PREFIXES)


def _is_crooked(scope: Scope) -> bool:
    """Whether a path is written in a way that some part behind the guard might read otherwise."""
    path, raw = scope["path"], scope.get("raw_path") or b""
    if re.search(rb"%(?:2f|2e|5c|25|00)", raw, re.I) or re.search(r"[\x00-\x1f\x7f\\]|//", path):
        return True
    if any(part in (".", "..") for part in path.split("/")):
        return True
    return path != "/" and path.endswith("/") and not path.startswith("/admin/")


def _for_shell(scope: Scope) -> Scope:
    kept = [(name, value) for name, value in scope["headers"] if name in _SHELL_HEADERS]
    if scope["path"] == "/":  # read on its way out, so not compressed
        kept = [(name, value) for name, value in kept if name != b"accept-encoding"]
    # Gradio's deep links and views are not part of this page.
    return {**scope, "headers": kept, "query_string": b""}


def _without_forwarding(scope: Scope) -> Scope:
    kept = [
        (name, value)
        for name, value in scope["headers"]
        if (not name.startswith(b"x-forwarded-") and name not in _FORWARDING_HEADERS)
        or (name in _SIGN_ON_HEADERS and scope["path"].startswith("/admin"))
    ]
    return {**scope, "headers": kept}


async def _read_body(scope: Scope, receive: Receive) -> bytes | tuple[int, str]:
    """The whole body, which is small; or the refusal of a client that does not get it sent. No thread waits for it."""
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return 400, "The request was cut short."
                body += message.get("body", b"")
                if len(body) > MAX_ADMIN_BODY_BYTES:
                    return 413, "The request is too large."
                if not message.get("more_body"):
                    return body
    except TimeoutError:
        return 408, "The request took too long to arrive."


def _replay(body: bytes, receive: Receive) -> Receive:
    told = False

    async def replayed() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"private, no-store"),
    ]
    if status in (408, 411, 413):  # what is left of the request must not be taken for the next one
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
