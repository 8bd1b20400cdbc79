"""The GPU slot: a lock file that the kernel opens again when its holder dies, so that no crash leaves it taken."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from alignment.errors import ConfigError, StoreError

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Slot:
    """A taken slot. A process that inherits ``fd`` holds the slot, too, until it ends."""

    number: int
    fd: int
    environment: dict[str, str]


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[int | None]:
    """The descriptor of an exclusive lock on a file, free at the end of the block or of the process; None when it is
    taken and ``wait`` is False. Who waits is served in turn. Raises StoreError when the file cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"{path} cannot be made ({error.strerror}); free space or mend its folder's rights.") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def gpu_slot(folder: Path, *, on_wait: Callable[[], None]) -> Iterator[Slot]:
    """One of the slots kept in ``folder``, first come, first served; ``on_wait`` is called once when all are taken."""
    with contextlib.ExitStack() as gate:  # who stands in it is next
        if gate.enter_context(locked(folder / "next.lock", wait=False)) is None:
            on_wait()
            gate.enter_context(locked(folder / "next.lock", wait=True))
        taken = _any_slot(folder)
        if taken is None:
            on_wait()
        while taken is None:
            time.sleep(POLL_SECONDS)
            taken = _any_slot(folder)
    slot, lock = taken
    with lock:
        yield slot


def _any_slot(folder: Path) -> tuple[Slot, contextlib.ExitStack] | None:
    for number in range(slots()):
        with contextlib.ExitStack() as lock:
            fd = lock.enter_context(locked(folder / f"gpu-{number}.lock", wait=False))
            if fd is not None:
                return Slot(number, fd, _devices(number)), lock.pop_all()
    return None


def slots() -> int:
    """How many GPU slots this machine has: ATTUNE_GPU_SLOTS, one by default. Raises ConfigError for nonsense."""
    given = os.environ.get("ATTUNE_GPU_SLOTS") or "1"
    if not given.isdigit() or not 1 <= int(given) <= 64:
        raise ConfigError(f"ATTUNE_GPU_SLOTS is {given!r}; write how many jobs may train at once, from 1 to 64.")
    return int(given)


def slots_folder(home: Path) -> Path:
    """ATTUNE_SLOTS_FOLDER, which several homes of one machine may share, or a folder in ``home``."""
    given = os.environ.get("ATTUNE_SLOTS_FOLDER")
    return Path(given) if given else home / "jobs" / "slots"


def _devices(number: int) -> dict[str, str]:
    """With several slots each has its own share of the GPUs that are visible."""
    if slots() == 1:
        return {}
    visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    if not visible:
        return {"CUDA_VISIBLE_DEVICES": str(number)}
    each = max(1, len(visible) // slots())
    return {"CUDA_VISIBLE_DEVICES": ",".join(visible[number * each : (number + 1) * each] or visible[-1:])}
