"""Runs an app with uvicorn as a public server must be run: no patience for half-sent requests, JSON logs."""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import Any

import anyio.to_thread
import h11
from starlette.types import ASGIApp
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

# Threads that run routes. Python runs one at a time, so more of them only take turns at each other's cost: with 40, a
# vote costs a fifth more processor time than with 8.
WORKER_THREADS = 8
HEADER_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 65  # longer than nginx keeps its side (60 s), so that no request meets a closing connection
MOST_CONNECTIONS = 2000
MOST_HEADER_BYTES = 32 * 1024


class PromptProtocol(H11Protocol):
    """HTTP/1.1 that closes connections whose next request does not have its headers sent in time.

    uvicorn bounds only the idle time between requests: a client that sends a byte now and then would keep its
    connection for ever."""

    header_seconds = HEADER_SECONDS
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()  # the beginning of the next request may have come while this one was answered

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        # IDLE: no request is under way. With bytes in the buffer, or none ever, one has begun and must get on.
        waiting = self.conn.their_state is h11.IDLE and (self.conn.trailing_data[0] or self.cycle is None)
        if not waiting:
            self._stop_watching()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.header_seconds, self._too_slow)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()


class _Server(Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = WORKER_THREADS
        await super().startup(sockets=sockets)


def settle() -> None:
    """Takes what an app is made of out of the garbage collector's sight; called when an app is built.

    Gradio and SQLAlchemy bring so many objects that one full collection stops every request for a sixth of a second,
    and frees nothing of them. What requests leave behind is collected as ever, in a few milliseconds."""
    gc.collect()
    gc.freeze()


def make_server(app: ASGIApp, *, host: str = "127.0.0.1", port: int = 7860, **options: Any) -> Server:
    """A uvicorn server for one process, because Gradio and the rate limits keep their state in memory."""
    return _Server(
        Config(
            app,
            host=host,
            port=port,
            http=PromptProtocol,
            ws="none",
            workers=1,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the guard reads them, and only from proxies it was told to trust
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=10,
            limit_concurrency=MOST_CONNECTIONS,
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
            **options,
        )
    )
