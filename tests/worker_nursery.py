"""Forks workers that are there to be killed: torch and the base are loaded once, every worker is a process of its own.

    python worker_nursery.py BASE      then, line by line on stdin: DATABASE_URL STORE TAKEOVER_SECONDS

Each line starts one worker, whose id comes first; from then on it says every moment of its work on stdout.
"""

from __future__ import annotations

import os
import signal
import sys

from alignment.circle.workspace import Workspace
from alignment.cli.stopping import die_with_parent
from alignment.clips import ClipStore
from alignment.db.engine import open_database
from alignment.music.codec import decode
from alignment.music.model import MusicModel
from alignment.music.sampler import sample
from alignment.requests import RequestQueue
from alignment.worker import Worker

assert decode and sample  # imported here, so that no child has to
MOMENTS = {RequestQueue: ("claim", "beat", "finish"), ClipStore: ("put_audio", "put_codes")}


def say(word: str) -> None:
    os.write(1, f"{word}\n".encode())


def tell_moments() -> None:
    """Makes the worker say when it enters and leaves each step of its work."""
    for owner, names in MOMENTS.items():
        for name in names:
            plain = getattr(owner, name)

            def told(self: object, *args: object, _plain=plain, _name=name) -> object:
                say(f"before {_name}")
                answer = _plain(self, *args)
                say(f"after {_name}")
                return answer

            setattr(owner, name, told)


def work(base: MusicModel, url: str, store: str, takeover: float) -> None:
    tell_moments()
    ws = Workspace(open_database(url), ClipStore(store), "secret", _models={base.source: base})
    Worker(ws, log=lambda event, **_: say(event), poll_seconds=0.02, takeover_seconds=takeover).run()


def main() -> None:
    base = MusicModel.load(sys.argv[1])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead leave nothing to collect
    say("ready")
    nursery = os.getpid()
    for line in sys.stdin:
        url, store, takeover = line.split()
        child = os.fork()
        if child == 0:
            try:
                die_with_parent(nursery)
                work(base, url, store, float(takeover))
            finally:
                os._exit(1)
        say(f"started {child}")


if __name__ == "__main__":
    main()
