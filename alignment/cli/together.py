"""A command that torchrun started in several processes: they find each other, and one of them says why they end."""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta

# Whatever ended it has been said by the process that ended first, unless that one was killed.
LEFT_ALONE = (
    "Another process of this run ended without a word, perhaps killed for want of memory; see what torchrun says of "
    "it, then go on with --resume."
)


def is_one_of_several() -> bool:
    """Whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def meet_the_others() -> None:
    """Return when all processes of this command are there. First thing of a command that trains: from then on a process
    that ends is noticed by the others. Raises ConfigError for a device that this one does not have."""
    if is_one_of_several():
        from alignment.music.placement import choose
        from alignment.training.ranks import meet

        _end_with_torchrun()
        meet(choose().device)


def _end_with_torchrun() -> None:
    """From now on the kernel (Linux) ends this process when torchrun, which started it, was killed."""
    if sys.platform.startswith("linux"):
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)


def is_first_to_say() -> bool:
    """Whether this process is the first of them that has to say why it ends; alone it always is."""
    if not is_one_of_several():
        return True
    if "torch" not in sys.modules or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return os.environ.get("RANK", "0") == "0"  # before they met, what one finds wrong all do
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        return store.add(f"attune/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except (RuntimeError, OSError):  # torchrun is gone: rather twice than not at all
        return True


def is_left_alone(error: BaseException) -> bool:
    """Whether this is how a process notices that one that it works with has ended."""
    if not is_one_of_several() or not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ in ("DistBackendError", "DistNetworkError") or "gloo" in str(error).lower()


def take_leave(code: int) -> None:
    """Processes that torchrun started part in order when all went well: gloo aborts one that ends with the others still
    connected. One that failed goes at once, and the others notice."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    distributed.destroy_process_group()
