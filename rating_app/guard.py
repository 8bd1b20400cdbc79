"""The door in front of everything: which paths exist, who may post, and which headers every answer carries."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 256 * 1024

# Our own routes.
_OWN_PREFIXES = ("/rate/", "/clip/", "/player/")
_OWN_PATHS = ("/healthz", "/favicon.ico")
# All that a Gradio page without events needs. Gradio's uploads, files, queue, component server, heartbeat, login,
# API description and reset stay closed because they are not here.
_SHELL_PREFIXES = ("/assets/", "/static/")
_SHELL_PATHS = ("/", "/theme.css")

# Gradio's front end compiles even a static template with `new Function` and boots from inline scripts, hence the
# two unsafe words; text from prompts and raters only ever reaches the page through textContent.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "media-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """ASGI middleware. Refuses what is not on the list; answers carry no CORS permission."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name in [name for name in headers if name.lower().startswith("access-control-")]:
                    del headers[name]
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            return await _answer(send_guarded, *refusal)
        if scope["path"] in _SHELL_PATHS:
            scope = {**scope, "query_string": b""}  # Gradio's deep links and views are not part of this page
        await self.app(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        path, method, headers = scope["path"], scope["method"], Headers(scope=scope)
        own = path in _OWN_PATHS or path.startswith(_OWN_PREFIXES)
        shell = path in _SHELL_PATHS or path.startswith(_SHELL_PREFIXES)
        if not own and not (shell and method in ("GET", "HEAD")):
            return 404, "There is nothing at this address."
        if method in ("GET", "HEAD"):
            return None
        if method != "POST":
            return 405, "This address cannot be used that way."
        # A page of another origin must not vote with this browser's cookie.
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
        if foreign or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "This request came from another site."
        if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return 415, "Send JSON."
        length = headers.get("content-length", "")
        if not length.isdigit():
            return 411, "Say how long the request is."
        if int(length) > MAX_BODY_BYTES:
            return 413, f"The request is larger than {MAX_BODY_BYTES // 1024} KiB."
        return None


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
