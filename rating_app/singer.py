"""The worker that `attune serve` starts for itself: a child process that is watched, restarted and never outlives us.

Models live in the child. This process reads its log lines to know how far the first clips are.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from alignment.errors import AttuneError, ModelError
from rating_app.logs import scrub

STOP_SECONDS = 6.0  # a worker needs five to hand its request back
LONG_ENOUGH_SECONDS = 60.0  # after so long a life the next start is at once again
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_MOST_STARTS = 3  # without the first clips there is nothing to serve, so that is not tried for ever
_TROUBLE = {"worker-ended", "no-database", "gave-up", "failed", "lost"}

_log = logging.getLogger(__name__)


def worker_command(*options: str) -> list[str]:
    """`attune worker` as a child of this process, ended by the kernel when this process ends."""
    return [sys.executable, "-m", "alignment.cli", "worker", "--parent", str(os.getpid()), *options]


class Singer:
    """Keeps one worker running. ``first_clips``: it sings these first, and ``wait_for_first_clips`` waits for them."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        first_clips: bool = False,
        first_pause: float = _FIRST_PAUSE,
    ) -> None:
        self._command, self._environment = list(command), {**os.environ, **environment}
        self._first_pause = first_pause
        self._stopping, self._settled = threading.Event(), threading.Event()
        self._wants_first_clips, self._error = first_clips, ""
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        # The kernel ties the child to the thread that starts it, so that one must live as long as the process.
        self._thread = threading.Thread(target=self._keep_running, name="singer", daemon=True)
        self.sung = (0, 0)  # first clips (done, in all)
        self.starts = 0

    def start(self) -> None:
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The child's id while there is one."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def wait_for_first_clips(self) -> None:
        """Returns once they are there. Raises AttuneError with the child's own sentence when they never will be."""
        self._settled.wait()
        if self._error:
            raise ModelError(self._error) if not self._stopping.is_set() else AttuneError("Stopped.")

    def stop(self) -> None:
        """Ends the child, giving it time to hand its request back."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        self._give_up("Stopped.")
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _keep_running(self) -> None:
        pause = self._first_pause
        while not self._stopping.is_set():
            began = time.monotonic()
            said, code = self._run_once()
            if self._stopping.is_set():
                return
            if self._wants_first_clips and not self._settled.is_set():
                if said or self.starts >= _MOST_STARTS:
                    return self._give_up(said or f"The worker ended with status {code} before it had sung anything.")
            pause = self._first_pause if time.monotonic() - began > LONG_ENOUGH_SECONDS else pause
            self._say("worker-ended", status=code, next_start_seconds=pause, said=said or None)
            self._stopping.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _run_once(self) -> tuple[str, int]:
        """(the sentence it ended with if any, its exit status)."""
        with self._lock:
            if self._stopping.is_set():
                return "", 0
            self.starts += 1
            # A session of its own: Ctrl-C reaches this process alone, which then ends the child in good order.
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
            )  # fmt: skip
        said = ""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.startswith("attune: "):
                said = line.removeprefix("attune: ").strip()
            else:
                self._heed(line)
        self._process.stderr.close()
        return said, self._process.wait()

    def _heed(self, line: str) -> None:
        """Takes in what the worker says, and passes on what an operator may want to read."""
        try:
            told = json.loads(line)
            event = told.pop("event")
        except (ValueError, KeyError, TypeError, AttributeError):
            if line.strip():
                _log.warning("worker: %s", line.strip())
            return
        if event == "first-clips":
            self.sung = (int(told["done"]), int(told["total"]))
            return
        if event == "ready":
            self._settled.set()
        self._say(event, **told)

    def _give_up(self, sentence: str) -> None:
        if not self._settled.is_set():
            self._error = sentence
            self._settled.set()

    def _say(self, event: str, **fields: object) -> None:
        """One line in the form of every other. It names no version: beside the requests that would end blindness."""
        kept = {
            name: scrub(value) if isinstance(value, str) else value
            for name, value in fields.items()
            if name not in ("time", "versions")
        }
        _log.log(logging.WARNING if event in _TROUBLE else logging.INFO, event, extra={"fields": {"worker": kept}})
