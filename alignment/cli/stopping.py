"""How a long-running command ends: at a signal within five seconds, and with the process that started it.

Imports nothing heavy, because signals must be blocked before numpy or torch start threads of their own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Protocol

GRACE_SECONDS = 3.0  # between SIGTERM and handing a request back over the singer's head


class Stoppable(Protocol):
    ended: threading.Event

    def stop(self) -> None: ...

    def hand_back_now(self) -> None: ...


def stop_on_signals(worker: Stoppable, parent: int | None = None) -> None:
    """Lets SIGTERM and SIGINT stop the worker within five seconds, also while it is deep in a computation.

    Call ``block_signals`` before anything starts a thread. ``parent``: stop, too, when this process is orphaned."""

    def wait() -> None:
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        worker.stop()
        if not worker.ended.wait(GRACE_SECONDS):
            worker.hand_back_now()
            os._exit(0)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="signals", daemon=True).start()
    if parent is not None:
        threading.Thread(target=watch, name="parent", daemon=True).start()


def block_signals() -> None:
    """Leaves SIGTERM and SIGINT to the thread of ``stop_on_signals``; threads started later inherit this."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})


def die_with_parent(parent: int) -> None:
    """Asks the kernel, where it can, for a SIGTERM at the parent's death, however it dies."""
    if sys.platform.startswith("linux"):
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked
        os._exit(0)
