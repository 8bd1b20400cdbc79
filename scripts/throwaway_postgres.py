"""Debian's PostgreSQL on a free loopback port for as long as a measurement takes, its settings its own, fsync on."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def throwaway_postgres() -> Iterator[str | None]:
    """Its address; that in ATTUNE_TEST_POSTGRES_URL where one is given; None where there is no PostgreSQL."""
    given = os.environ.get("ATTUNE_TEST_POSTGRES_URL")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if given or not found:
        yield given
        return
    folder, binaries = Path(tempfile.mkdtemp(prefix="attune-postgres-")), found[-1].parent
    as_root = os.geteuid() == 0  # initdb refuses root
    user = "postgres" if as_root else getpass.getuser()
    prefix = ["runuser", "-u", "postgres", "--"] if as_root else []
    if as_root:
        shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def call(*command: str) -> None:
        subprocess.run(
            [*prefix, *command], check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120
        )

    data = str(folder / "data")
    call(str(binaries / "initdb"), "-D", data, "-A", "trust", "-U", user, "-E", "UTF8", "--locale=C")
    options = f"-h 127.0.0.1 -p {port} -k {folder}"
    call(str(binaries / "pg_ctl"), "-D", data, "-w", "-l", str(folder / "server.log"), "-o", options, "start")
    try:
        yield f"postgresql://{user}@127.0.0.1:{port}/postgres"
    finally:
        call(str(binaries / "pg_ctl"), "-D", data, "-m", "fast", "stop")
        shutil.rmtree(folder, ignore_errors=True)
