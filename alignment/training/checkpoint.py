"""A run's folder: what it holds, which checkpoint is whole, and the adapter that a finished run leaves in it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from alignment.errors import ConfigError, StoreError
from alignment.training.processes import is_first_process, wait_for_all

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

RUN, WEIGHTS = "run.json", "policy.safetensors"


def open_run(run_dir: Path, about: Mapping[str, Any], *, resume: bool) -> Path | None:
    """Claim a run folder for what ``about`` says of settings, data and base; the checkpoint to go on from, if any.

    Raises ConfigError when the folder holds another run, or one that is not to be resumed."""
    checkpoints = whole_checkpoints(run_dir)
    if resume and (run_dir / RUN).is_file():
        try:
            found = json.loads((run_dir / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise StoreError(f"{run_dir / RUN} is damaged; start again in an empty folder.") from None
        differing = [name for name in about if found.get(name) != about[name]]
        if differing:
            raise ConfigError(
                f"{run_dir} holds a run with other {', '.join(differing)}; resume with what it was started with, or "
                "give an empty folder."
            )
        return checkpoints[-1] if checkpoints else None
    if checkpoints or (run_dir / "adapter").exists():
        raise ConfigError(f"{run_dir} already holds a run; resume it or give an empty folder.")
    if not is_first_process():
        return None
    temporary = run_dir / f".{RUN}.partial"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(about, indent=1, sort_keys=True), encoding="utf-8")
        temporary.replace(run_dir / RUN)
    except OSError as error:
        raise StoreError(f"{run_dir}: cannot be written ({error}); free space or choose another folder.") from error
    return None


def whole_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints written to the end, oldest first: the trainer's state is the last file of each."""
    whole = []
    for folder in run_dir.glob("checkpoint-*"):
        try:
            whole.append((json.loads((folder / "trainer_state.json").read_text())["global_step"], folder))
        except (OSError, ValueError, KeyError):
            continue  # killed while it was written: the one before it is used
    return [folder for _, folder in sorted(whole)]


def last_good(run_dir: Path) -> str:
    """Where a run that broke can be taken up, in words: its last whole checkpoint whose weights are all numbers."""
    for folder in reversed(whole_checkpoints(run_dir)):
        try:
            if all(value.isfinite().all() for value in load_file(folder / WEIGHTS).values()):
                return f"the last good checkpoint is {folder}"
        except (SafetensorError, OSError):
            continue
    return "there is no checkpoint to go back to; set save_steps to keep some"


def save_adapter(model: MusicModel, adapter_dir: Path) -> None:
    """Write the model's adapter, whole or not at all; the first process writes, and all return when it is there."""
    if is_first_process():
        _write_adapter(model, adapter_dir)
    wait_for_all()


def _write_adapter(model: MusicModel, adapter_dir: Path) -> None:
    temporary = adapter_dir.with_name(f".{adapter_dir.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_adapter(temporary)
        if adapter_dir.exists():
            shutil.rmtree(adapter_dir)
        temporary.replace(adapter_dir)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StoreError(f"{adapter_dir}: the adapter cannot be written ({error}); free space.") from error


def adapter_sha256(model: MusicModel) -> str:
    """sha256, hex, of the adapter that training starts from; empty when there is none yet."""
    if not model.has_adapter:
        return ""
    digest = hashlib.sha256()
    for value in model.trainable_parameters():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
