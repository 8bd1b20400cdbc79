"""Several processes that train together: which one this is, and what one of them knows told to all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def process_count() -> int:
    """How many processes train together; 1 outside torchrun."""
    return torch.distributed.get_world_size() if _many() else 1


def process_number() -> int:
    """Which of them this one is, from 0."""
    return torch.distributed.get_rank() if _many() else 0


def is_first_process() -> bool:
    """Whether this process is the only one, or the first of those that train together."""
    return process_number() == 0


def wait_for_all() -> None:
    """Return when every process that trains along has come here."""
    if _many():
        torch.distributed.barrier()


def from_first_process(make: Callable[[], T]) -> T:
    """What ``make`` returns on the first process, on all of them; what it raises there is raised everywhere."""
    if not _many():
        return make()
    answer: list[Any] = [None, None]
    if is_first_process():
        try:
            answer[0] = make()
        except Exception as error:  # the others wait for an answer: it has to reach them
            answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def _many() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
