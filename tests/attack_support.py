"""The app as `attune serve` runs it, in a process of its own, and raw sockets to be rude to it with."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from app_support import CLIP_SECONDS, PROMPTS, filled_folder

from alignment.db.engine import open_database
from rating_app.demo import ensure_demo_study
from scripts.vote_load import CONSENT, free_port

ROOT = Path(__file__).resolve().parent.parent
SECRET = "a long secret that only these attacks are told about"
METRICS_TOKEN = "a-token-for-whoever-reads-the-figures"


@dataclass(frozen=True)
class Target:
    """A running server."""

    port: int
    folder: Path
    log_path: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def raw(self, request: bytes, *, patience: float = 20.0) -> bytes:
        """Everything the server says to these bytes until it closes the connection or has answered once."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=patience) as connection:
            connection.sendall(request)
            return read_answer(connection)

    def ask(self, method: str, target: str, *headers: str, body: bytes = b"") -> tuple[int, bytes]:
        """(status, whole answer) for a target sent exactly as written."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *headers, "Connection: close"]
        answer = self.raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        return int(answer.split(b" ")[1]), answer

    def browser(self, *, started: bool = True) -> httpx.Client:
        """A browser without a page; ``started``: it has consented."""
        client = httpx.Client(base_url=self.url, timeout=30)
        if started:
            assert client.post("/rate/session", json=CONSENT).status_code == 200
        return client

    def log_text(self) -> str:
        """The server's log without the addresses that it tells a person when it begins."""
        lines = self.log_path.read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in lines if not line.startswith(("Listening page: ", "Type prompts yourself: ")))

    def log(self) -> list[dict]:
        """The server's log lines; each of them must be JSON."""
        return [json.loads(line) for line in self.log_text().splitlines()]


def read_answer(connection: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return data
        if not part:
            return data
        data += part
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if lengths and b"connection: close" not in head.lower() and len(body) >= int(lengths[0].split(b":")[1]):
            return data


@contextmanager
def attune_serve(folder: Path, **environment: str) -> Iterator[Target]:
    """`attune serve` over a filled database in ``folder``."""
    shutil.copytree(filled_folder(CLIP_SECONDS, PROMPTS), folder, dirs_exist_ok=True)
    database = open_database(f"sqlite:///{folder / 'attune.db'}")
    study = ensure_demo_study(database, minimum_listening_seconds=0.0)
    database.close()
    port, log_path = free_port(), folder / "server.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-c", "from alignment.cli import main; main()", "serve", "--home", str(folder),
                "--study", study, "--port", str(port),
            ],
            cwd=ROOT, stdout=log, stderr=log,
            env={
                **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ATTUNE_SECRET": SECRET,
                "ATTUNE_METRICS_TOKEN": METRICS_TOKEN, **environment,
            },
        )  # fmt: skip
    target = Target(port, folder, log_path)
    try:
        while True:
            assert process.poll() is None, log_path.read_text()[-3000:]
            try:
                target.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                break
            except OSError:
                time.sleep(0.05)
        yield target
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
