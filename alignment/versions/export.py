"""Versions that leave the house: the bare adapter, a merged model, or clips, each with a card."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Literal

from alignment.clips import ClipStore
from alignment.db import clips, gates, metric_results, prompts, versions
from alignment.db.engine import Database
from alignment.domain import Clip, ClipSource, Version
from alignment.errors import DataError, StoreError
from alignment.evaluation.version_card import CardFacts, Form, GateResult, MeasuredFigure, version_card
from alignment.versions.lineage import tree
from alignment.versions.register import require_base

CARD = "README.md"
LIBRARIES = ("torch", "transformers", "peft", "soundfile")
AudioFormat = Literal["flac", "wav"]


def provenance(version: str) -> str:
    """What every exported clip says of itself."""
    return f"AI-generated, version {version}"


def export_adapter(store: ClipStore, database: Database, name: str, folder: Path) -> Path:
    """The version's adapter in PEFT's format with its card; ``peft`` loads it without Attune.

    Raises DataError for a version without adapter, StoreError for a folder that is not empty and for adapter files
    that are missing or altered, ModelError for an adapter that is not finite or of another base."""
    from alignment.music.adapter import check

    version = _version(database, name)
    if version.adapter_uri is None:
        raise DataError(f"Version {name} has no adapter, it is the base itself; export it with --merged.")
    with _new_folder(Path(folder)) as place:
        source = store.path_of(version.adapter_uri)
        check(source, base_sha256=version.base_sha256)
        shutil.copytree(source, place, dirs_exist_ok=True)
        (place / CARD).write_text(card(database, name, form="adapter"), encoding="utf-8")
    return Path(folder)


def export_merged(store: ClipStore, database: Database, name: str, folder: Path) -> Path:
    """The version as one ``save_pretrained`` folder with tokenizer and card; ``transformers`` loads it without Attune.

    Takes the base's memory in float32. Raises StoreError as ``export_adapter`` does, ModelError when the base is gone
    or is another one."""
    from alignment.music.export import write_merged
    from alignment.music.model import MusicModel

    version = _version(database, name)
    with _new_folder(Path(folder)) as place:
        adapter = store.path_of(version.adapter_uri) if version.adapter_uri else None
        model = MusicModel.load(version.base)
        require_base(version, model.base_sha256)
        if adapter is not None:
            model.load_adapter(adapter)
        write_merged(model, place, listening=version.listening)
        (place / CARD).write_text(card(database, name), encoding="utf-8")
    return Path(folder)


def export_audio(
    store: ClipStore, database: Database, name: str, folder: Path, *, audio_format: AudioFormat = "flac"
) -> Path:
    """The clips that the version sang, as they are stored, each with the tag "AI-generated, version x", with a table of
    prompts and seeds (clips.csv) and the card. What raters hear never carries a tag.

    Raises DataError when it has sung nothing, StoreError as ``export_adapter`` does."""
    if audio_format not in ("flac", "wav"):
        raise DataError(f"Clips cannot be exported as {audio_format!r}; choose flac or wav.")
    version = _version(database, name)
    with database.session(write=False) as s:
        sung = [clip for clip in clips.list_clips(s, version=name) if clip.source == ClipSource.GENERATED]
        texts = {prompt.id: prompt.text for prompt in prompts.list_prompts(s)}
    if not sung:
        raise DataError(f"Version {name} has sung nothing yet; run attune generate --version {name} first.")
    with _new_folder(Path(folder)) as place:
        with (place / "clips.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(
                ["file", "prompt", "seed", "temperature", "top_k", "guidance", "seconds", "audio_sha256", "tag"]
            )
            for number, clip in enumerate(sung, start=1):
                target = place / f"{number:05d}-{clip.audio_sha256[:12]}.{audio_format}"
                _write_clip(store, clip, target, version, texts[clip.prompt_id])
                sampled = clip.generation
                rows.writerow(
                    [target.name, texts[clip.prompt_id], clip.seed, sampled.temperature, sampled.top_k,
                     sampled.guidance, clip.facts.seconds, clip.audio_sha256, provenance(name)]
                )  # fmt: skip
        (place / CARD).write_text(card(database, name, form="audio", clips=len(sung)), encoding="utf-8")
    return Path(folder)


def _write_clip(store: ClipStore, clip: Clip, target: Path, version: Version, prompt: str) -> None:
    import io

    import soundfile

    samples, rate = soundfile.read(io.BytesIO(store.open_flac(clip.audio_sha256)), dtype="int16")
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    form = "FLAC" if target.suffix == ".flac" else "WAV"
    with soundfile.SoundFile(target, "w", rate, channels, "PCM_16", format=form) as file:
        # Vorbis comments in FLAC, an INFO list in WAV; they stand before the samples.
        file.comment = provenance(version.name) + (", trained by SIMULATED listeners" if version.simulated else "")
        file.title = prompt
        if version.licence:
            file.copyright = version.licence
        file.write(samples)


def _version(database: Database, name: str) -> Version:
    with database.session(write=False) as s:
        version = versions.get_version(s, name)
    if not version.is_model:
        raise DataError(f"{name} is audio and no model that could sing; there is nothing to export.")
    return version


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its place when the block ends well, and is gone otherwise.

    Raises StoreError when ``folder`` is a file or holds anything, and when the disk refuses."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} is not an empty folder; give a new one, nothing was written.")
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        yield partial
        partial.chmod(0o755)
        for file in partial.iterdir():
            file.chmod(0o644)  # safetensors writes for its owner alone, and an export is for others
        os.replace(partial, folder)  # an empty folder gives way
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written ({error.strerror or error}); free space or choose another folder. Nothing was "
            "half-written."
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def card(database: Database, name: str, *, form: Form = "merged", clips: int = 0) -> str:
    """The version's card as Markdown, for one form of export (``clips`` of the audio's). Raises NotFoundError."""
    with database.session(write=False) as s:
        figures = metric_results.latest(s, name)
        made = gates.list_decisions(s, candidate=name)
    facts = CardFacts(
        name, form, tree(database, name).to_json(),
        figures=[MeasuredFigure(one.metric, one.model, one.value, one.low, one.high, one.n) for one in figures],
        decisions=[
            GateResult(
                one.champion, one.outcome, f"{one.created_at:%Y-%m-%d}", bool(one.evidence.get("simulated")),
                _win_rate(one.evidence.get("over_champion")),
            )
            for one in made
        ],
        clips=clips, versions={library: number for library in LIBRARIES if (number := _installed(library))},
    )  # fmt: skip
    return version_card(facts)


def _win_rate(test: Any) -> tuple[float, float, float, int] | None:
    keys = ("value", "low", "high", "n")
    if not isinstance(test, dict) or any(test.get(key) is None for key in keys):
        return None
    return test["value"], test["low"], test["high"], int(test["n"])


def _installed(library: str) -> str | None:
    try:
        return installed(library)
    except PackageNotFoundError:
        return None
