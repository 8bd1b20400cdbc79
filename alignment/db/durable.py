"""Commits of SQLite that reach the disk together: one flush serves every writer who waits for it.

With ``synchronous=FULL`` SQLite flushes its write-ahead log inside each commit, while every other writer waits for the
lock: at 5 ms a flush no more than 200 votes a second, whatever the processor. Here SQLite runs with
``synchronous=NORMAL``, which leaves out that flush and no other; it is made right after the lock is released, by one
of the waiting threads for all of them, and ``Database.session`` returns only then. What a caller was told is saved is
on the disk, as before: https://www.sqlite.org/pragma.html#pragma_synchronous
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from alignment.errors import DatabaseError


class LogFlusher:
    """Flushes one database's write-ahead log. ``committed`` under the write lock, ``wait`` after it."""

    def __init__(self, database: Path) -> None:
        self._path = Path(f"{database}-wal")
        self._shown = database
        self._state = threading.Condition()
        self._commits = 0  # written to the log
        self._flushed = 0  # of these, safe on the disk
        self._flushing = False
        self._failed: OSError | None = None

    def committed(self, *, changed: bool) -> int:
        """A ticket for ``wait``. What read only waits for the commits before it: they are what it saw."""
        with self._state:
            self._commits += changed
            return self._commits

    def wait(self, ticket: int) -> None:
        """Returns when every commit up to the ticket is on the disk. Raises DatabaseError when the disk refuses.

        After a refusal nothing more is written: the kernel drops pages that it could not write and reports it once,
        so that a second flush would succeed without them."""
        while True:
            with self._state:
                while self._flushing and self._flushed < ticket:
                    self._state.wait()
                if self._failed is not None:
                    raise DatabaseError(
                        f"{self._shown} could not be written to the disk ({self._failed.strerror}); check the disk, "
                        "then start again. Nothing is acknowledged until then."
                    ) from self._failed
                if self._flushed >= ticket:
                    return
                self._flushing, upto = True, self._commits
            failed = None
            try:
                flush(self._path)
            except OSError as error:
                failed = error
            with self._state:
                self._flushing, self._failed = False, failed
                if failed is None:
                    self._flushed = upto
                self._state.notify_all()


def flush(path: Path) -> None:
    """Returns when the file's content is on the disk. A log that is gone was moved into the database, and flushed."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        getattr(os, "fdatasync", os.fsync)(handle)
    finally:
        os.close(handle)
