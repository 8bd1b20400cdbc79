"""What the benchmarks of the music model share: options read in one sentence, the machine, memory at its peak."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

MB = 2**20


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help.\n")


def names(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        found = list(dict.fromkeys(text.split(",")))
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return found

    return read


def one_of(known: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}")
        return text

    return read


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def counts(text: str) -> list[int]:
    return list(dict.fromkeys(count(part) for part in text.split(",")))


def count_or_none(text: str) -> int:
    return 0 if text == "0" else count(text)


def seconds(text: str) -> float:
    if not 0 < _number(text) <= 60:
        raise argparse.ArgumentTypeError(f"{text!r} is not a length above 0 and up to 60 seconds")
    return float(text)


def lengths(text: str) -> list[float]:
    return list(dict.fromkeys(seconds(part) for part in text.split(",")))


def from_one(text: str) -> float:
    if not 1 <= _number(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100")
    return float(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")  # within no bounds


def machine() -> dict[str, Any]:
    """Where and with what something was measured."""
    import torch

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "threads": torch.get_num_threads(),
        "machine": f"{_processor()}, {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **{package: installed(package) for package in ("torch", "transformers", "trl", "peft", "audiocraft")},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


class PeakMemory:
    """Memory in MB above what was in use at the start: of the GPU where the work is there, else of the process.

    Linux alone lets a process forget its highest memory; elsewhere it is None."""

    def __init__(self, device: str) -> None:
        import torch

        self.on_gpu = device.startswith("cuda")
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before: float | None = torch.cuda.memory_allocated() / MB
        else:
            self.before = self._forget()

    def above(self) -> float | None:
        import torch

        if self.on_gpu:
            return round(torch.cuda.max_memory_allocated() / MB - (self.before or 0), 1)
        highest = _status("VmHWM")
        return None if highest is None or self.before is None else round(highest - self.before, 1)

    @staticmethod
    def _forget() -> float | None:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return None
        return _status("VmRSS")


def _status(name: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return None
