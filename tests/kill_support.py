"""A real server process that can be killed, raters that do not give up, and the count afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from scripts.vote_load import Connection, Ledger, Rater, free_port

ROOT = Path(__file__).resolve().parent.parent


class Server:
    """The rating app in a process of its own, at one port through all its lives."""

    def __init__(self, url: str, folder: Path, *, bare: bool = True, port: int | None = None) -> None:
        self.port = port or free_port()
        self.log = folder / "server.log"
        options = ["--bare"] if bare else []
        self.command = [
            sys.executable, "-m", "scripts.vote_server", "--database", url, "--store", str(folder / "store"),
            "--port", str(self.port), *options,
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    async def ready(self) -> None:
        """Returns when the server answers. Raises AssertionError with its log when it has died."""
        while True:
            assert self.process is not None and self.process.poll() is None, self.log.read_text()[-3000:]
            connection = Connection(self.port)
            with contextlib.suppress(OSError, EOFError, ValueError):
                if (await connection.request("GET", "/healthz"))[0] == 200:
                    return
            connection.close()
            await asyncio.sleep(0.02)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


@dataclass(frozen=True)
class Killing:
    ledger: Ledger
    kills: int


async def kill_under_load(server: Server, *, raters: int, kills: int, votes: int, seed: int) -> Killing:
    """Raters vote without a pause while the server is killed at random moments of its life and started again.

    A life lasts for a random number of votes, on average ``votes / kills``, and then a random fraction of a second, so
    that the kill meets whatever is under way. Ends when there were that many kills and acknowledged votes."""
    rng, ledger, stop = random.Random(seed), Ledger(), asyncio.Event()
    server.start()
    async with _at_work([Rater(server.port, ledger, random.Random(rng.random())) for _ in range(raters)], stop) as work:

        async def saved(least: float) -> None:
            while len(ledger.acknowledged) < least:
                await asyncio.sleep(0.005)
                _raise_first(work)
                assert not all(task.done() for task in work), "the study has too few battles for so many votes"

        for _ in range(kills):
            await server.ready()
            await saved(len(ledger.acknowledged) + 1 + rng.uniform(0, 2 * votes / kills))
            await asyncio.sleep(rng.uniform(0, 0.1))
            server.kill()
            server.start()
        await server.ready()
        await saved(votes)
        stop.set()
        await asyncio.gather(*work)
    return Killing(ledger, kills)


def _raise_first(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


@contextlib.asynccontextmanager
async def _at_work(raters: list[Rater], stop: asyncio.Event) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(rater.rate_until(stop)) for rater in raters]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for rater in raters:
            rater.connection.close()
