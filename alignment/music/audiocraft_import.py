"""audiocraft 1.3.0, importable on this stack: what it imports and a MusicGen never calls is stood in for.

It runs unchanged, but imports at start-up much that its language model and codec never call (xformers, spacy, av ...).
``import_audiocraft`` stands in for whatever of that is missing while it imports.
"""

from __future__ import annotations

import abc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from alignment.errors import ModelError

# What audiocraft's packages import at the top of a file and a language model does not call.
ABSENT = ("av", "dac", "demucs", "dora", "flashy", "hydra", "laion_clap", "librosa", "spacy", "torchaudio",
          "torchmetrics", "xformers")  # fmt: skip


def import_audiocraft(name: str = "audiocraft.models.lm") -> types.ModuleType:
    """The module of audiocraft of that name. Raises ModelError when audiocraft is not installed."""
    if name in sys.modules:
        return sys.modules[name]
    if importlib.util.find_spec("audiocraft") is None:
        raise ModelError("audiocraft is not installed; run: pip install --no-deps audiocraft==1.3.0")
    _remember_what_is_installed()
    with _stand_ins():
        return importlib.import_module(name)


class _Anything(abc.ABCMeta):  # an ABC may inherit from a stand-in
    """A class on which every attribute is again such a class, so that it can be a base class or a decorator."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing(name)


def _nothing(name: str) -> type:
    return _Anything(name, (), {"__init__": lambda self, *args, **kwargs: None, "__call__": lambda self, given: given})


class _StandIn(types.ModuleType):
    """A module whose every attribute is a class that does nothing, but for xformers.ops.unbind, which is needed."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if (self.__name__, name) == ("xformers", "ops"):
            return types.SimpleNamespace(unbind=torch.unbind)
        return _nothing(name)


class _StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Found last, so that what is really installed is used."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if name.partition(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Afterwards nothing of them stays importable, or other libraries would believe them installed."""
    finder = _StandInFinder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _StandIn)]:
            del sys.modules[name]


def _remember_what_is_installed() -> None:
    """transformers caches these answers at the first question; ask before any stand-in could answer."""
    from transformers.utils import import_utils

    for name in dir(import_utils):
        question = getattr(import_utils, name)
        if name.startswith("is_") and name.endswith("_available") and callable(question):
            try:
                question()
            except Exception:  # noqa: S112 - some take arguments or probe hardware; they are not the ones in question
                continue
