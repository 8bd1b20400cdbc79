"""`attune worker`: sings the prompts that raters type, apart from the web process."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from alignment.cli.common import DatabaseUrl, Device, Dtype, Home, settings_of


def worker(
    once: Annotated[bool, typer.Option("--once", help="Sing what waits now, then end; for cron and tests.")] = False,
    poll: Annotated[float, typer.Option(min=0.05, max=60, help="Seconds between looks at an empty queue.")] = 0.5,
    takeover: Annotated[
        float, typer.Option(min=2, max=3600, help="Silent seconds after which another worker's request is taken over.")
    ] = 30.0,
    device: Device = None,
    dtype: Dtype = None,
    home: Home = None,
    database: DatabaseUrl = None,
    first_clips: Annotated[int, typer.Option("--first-clips", min=0, hidden=True)] = 0,
    parent: Annotated[int | None, typer.Option("--parent", hidden=True)] = None,
) -> None:
    """Sing the prompts that raters of arena studies type; run as many as there are GPUs, SIGTERM stops one.

    Logs one line of JSON for each thing it does, on stderr. Ends with 1 when, with --once, a request failed."""
    from alignment.cli.stopping import block_signals, die_with_parent, stop_on_signals

    block_signals()  # before numpy and torch start threads
    if parent is not None:
        die_with_parent(parent)
    settings = settings_of(home, database)

    from alignment.circle.workspace import Workspace
    from alignment.worker import Worker

    ws = Workspace.open(settings)
    try:
        singer = Worker(ws, log=log, poll_seconds=poll, takeover_seconds=takeover)
        stop_on_signals(singer, parent)
        if first_clips:
            from alignment.circle.first_clips import sing_first_clips

            sing_first_clips(ws, first_clips, progress=lambda done, total: log("first-clips", done=done, total=total))
        if parent is not None:
            os.nice(5)  # from now on the web process beside it goes first
        log("ready", worker=singer.name, versions=singer.preload())
        failed = singer.run(once=once)
        log("ended", worker=singer.name, failed=failed)
    finally:
        ws.database.close()
    if failed and once:
        raise typer.Exit(1)


def log(event: str, **fields: Any) -> None:
    """One line of JSON on stderr. Prompts are never in it: they are what a person typed."""
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    # Whoever read along may have died, or the log's disk be full: what is in hand matters more.
    with contextlib.suppress(OSError):
        print(json.dumps({"time": moment, "event": event, **fields}, default=str), file=sys.stderr, flush=True)
