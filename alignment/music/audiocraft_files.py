"""Native audiocraft checkpoints on disk: read without running anything in them, imported, and written.

A checkpoint is a folder with ``state_dict.bin`` (the language model) and ``compression_state_dict.bin`` (the codec, or
the name of one), as audiocraft.utils.export writes them; a training run's own file is read too. Its text encoder, a T5,
is not in it. Files are opened with ``weights_only``: tensors, plain values and OmegaConf's containers, nothing else.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from alignment.errors import ModelError
from alignment.music.audiocraft_config import NativeConfig

LM_FILE, CODEC_FILE = "state_dict.bin", "compression_state_dict.bin"
BEST = ("best_state", "fsdp_best_state")  # where a training run keeps its best weights


def read_native(path: Path) -> tuple[dict[str, Tensor] | None, NativeConfig | str]:
    """(weights by audiocraft's names, its config) of one file; (None, name) of a file that only names a codec.

    Raises ModelError for a file that is missing, damaged, of another kind, or holds anything that could run code."""
    held = _load(path)
    if not isinstance(held, Mapping):
        raise ModelError(f"{path}: holds a {type(held).__name__}, not a checkpoint; give a file that audiocraft wrote.")
    if isinstance(held.get("pretrained"), str):
        return None, held["pretrained"]
    weights = next((found for found in map(held.get, BEST) if found), None)
    if isinstance(weights, Mapping) and isinstance(weights.get("model"), Mapping):
        weights = weights["model"]
    if "xp.cfg" not in held or not isinstance(weights, Mapping):
        listed = ", ".join(sorted(map(str, held))[:5]) or "nothing"
        raise ModelError(f"{path}: holds {listed}; a checkpoint of audiocraft has best_state and xp.cfg.")
    strange = [str(name) for name, tensor in weights.items() if not isinstance(tensor, Tensor)]
    if strange:
        raise ModelError(f"{path}: {strange[0]} is no tensor; give a file that audiocraft exported.")
    broken = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ModelError(f"{path}: {broken[0]} holds values that are not numbers; its training broke, use another.")
    return dict(weights), NativeConfig(_plain(held["xp.cfg"], path), str(path))


def write_native(path: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any], version: str) -> None:
    """One file as audiocraft.utils.export writes it, its config as YAML text."""
    package = {
        "best_state": {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()},
        "xp.cfg": yaml.safe_dump(dict(config), sort_keys=False),
        "version": version,
        "exported": True,
    }
    torch.save(package, path)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; an audiocraft checkpoint is a folder with {LM_FILE} and {CODEC_FILE}.")
    try:
        with _omegaconf_allowed():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        held = f"holds {found[1]}, which could run code when opened" if found else "is damaged"
        raise ModelError(f"{path}: {held}; export the checkpoint with audiocraft.utils.export.") from None
    # torch raises many kinds for a file that is no checkpoint; all mean the same to the reader.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
        raise ModelError(f"{path}: is damaged or no checkpoint ({reason}); fetch it again.") from None


@contextmanager
def _omegaconf_allowed() -> Any:
    """Inside, ``weights_only`` also builds OmegaConf's containers, as runs of audiocraft pickle them."""
    import collections
    import typing

    try:
        from omegaconf import base, dictconfig, listconfig, nodes
    except ImportError:
        yield
        return
    allowed: list[Any] = [
        dictconfig.DictConfig, listconfig.ListConfig, base.ContainerMetadata, base.Metadata, nodes.AnyNode,
        nodes.StringNode, nodes.IntegerNode, nodes.FloatNode, nodes.BooleanNode, collections.defaultdict, dict, list,
        int, float, str, bool, (typing.Any, "typing.Any"),
    ]  # fmt: skip
    with torch.serialization.safe_globals(allowed):
        yield


def _plain(config: Any, path: Path) -> Any:
    """The config as plain mappings, references unresolved: a resolver could read this machine's environment."""
    if isinstance(config, str):
        try:
            return yaml.safe_load(config)
        except yaml.YAMLError as error:
            where = getattr(error, "problem_mark", None)
            line = f" at line {where.line + 1}" if where else ""
            raise ModelError(f"{path}: its xp.cfg is not valid YAML{line}; export the checkpoint again.") from None
    if isinstance(config, Mapping) and not isinstance(config, dict):
        from omegaconf import OmegaConf

        return OmegaConf.to_container(config, resolve=False)
    return config
