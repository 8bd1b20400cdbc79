"""What answers while the first clips are being sung: a page that says so and begins by itself, then the app."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATIC = Path(__file__).resolve().parent / "static"
_FILES = {
    "/": ("preparing.html", b"text/html; charset=utf-8"),
    "/player/preparing.js": ("preparing.js", b"text/javascript"),
    "/player/preparing.css": ("preparing.css", b"text/css"),
}
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        b"form-action 'none'; frame-ancestors 'none'",
    ),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
_SENTENCE = "The first clips are being sung; try again in a few seconds."


class Doorway:
    """An ASGI app that is another one as soon as ``prepare`` has made it.

    ``prepare`` runs in a thread; ``sung`` tells (clips done, in all). When it raises, ``error`` holds what and
    ``on_failure`` is called."""

    def __init__(self, prepare: Callable[[], ASGIApp], *, sung: Callable[[], tuple[int, int]]) -> None:
        self._prepare, self._sung = prepare, sung
        self._app: ASGIApp | None = None
        self.error: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _live(self, receive: Receive, send: Send) -> None:
        """The server's life: the app behind the door is started when it is there, and ended with the server."""
        await receive()
        closing = asyncio.Event()
        inside = asyncio.create_task(self._open(closing))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        closing.set()
        if self._app is None:
            inside.cancel()
        await asyncio.gather(inside, return_exceptions=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def _open(self, closing: asyncio.Event) -> None:
        try:
            await self._run(await _in_a_thread(self._prepare), closing)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.error = error
            self.on_failure()

    async def _run(self, app: ASGIApp, closing: asyncio.Event) -> None:
        """Lives the app's own life inside ours: its start, the open door, and its end when ours is told to."""
        asked_to_start = False

        async def receive() -> Message:
            nonlocal asked_to_start
            if not asked_to_start:
                asked_to_start = True
                return {"type": "lifespan.startup"}
            await closing.wait()
            return {"type": "lifespan.shutdown"}

        async def send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._app = app
            elif message["type"] == "lifespan.startup.failed":
                raise RuntimeError(message.get("message") or "the app could not start")

        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

    async def _answer(self, scope: Scope, send: Send) -> None:
        path, reading = scope["path"], scope["method"] in ("GET", "HEAD")
        done, total = self._sung()
        extra: list[tuple[bytes, bytes]] = []
        if reading and path in _FILES:
            name, kind = _FILES[path]
            status, body = 200, (STATIC / name).read_bytes()
        elif reading and path == "/healthz":
            status, kind, body = 200, b"application/json", b'{"status": "ok"}'
        else:
            status, kind = 503, b"application/json"
            body = json.dumps({"error": _SENTENCE, "preparing": {"done": done, "total": total}}).encode()
            extra = [(b"retry-after", b"2")]
        headers = [*_HEADERS, *extra, (b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def _in_a_thread(step: Callable[[], ASGIApp]) -> ASGIApp:
    """What the step returns or raises. Unlike asyncio's own threads, nobody waits for this one when we are ended."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[ASGIApp] = loop.create_future()

    def settle(app: ASGIApp | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            assert app is not None
            future.set_result(app)

    def run() -> None:
        try:
            answer: tuple[ASGIApp | None, BaseException | None] = (step(), None)
        except BaseException as error:
            answer = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(settle, *answer)

    threading.Thread(target=run, name="preparing", daemon=True).start()
    return await future
