"""Base models by name: registered once, found again where they lie, imported from audiocraft and written back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.circle.learn import check_name
from alignment.db.bases import list_bases, move_base
from alignment.db.engine import Database
from alignment.db.people import add_audit
from alignment.db.versions import find_version
from alignment.domain import GenerationConfig, Version
from alignment.errors import DataError, ModelError
from alignment.music import checkpoint
from alignment.rewards.licences import UNKNOWN, licence_of_folder
from alignment.versions import register_base

if TYPE_CHECKING:
    from alignment.circle.workspace import Workspace

LISTENING = GenerationConfig(temperature=1.0, top_k=250, guidance=3.0, clip_seconds=10.0)  # as MusicGen is heard


@dataclass(frozen=True)
class BaseFacts:
    """What a checkpoint's files say of it, read without its weights; ``state`` is "here" or what is missing."""

    state: str
    parameters: int | None = None  # of the decoder
    codebooks: int | None = None
    channels: int | None = None
    sample_rate_hz: int | None = None
    text_only: bool = False  # it would take a melody too, and nothing is conditioned on one


def add_base(ws: Workspace, name: str, source: str, *, licence: str | None = None, actor: str) -> Version:
    """The checkpoint in ``source`` (a folder, ``tiny``, or a hub name) as a version called ``name``, ready to sing and
    to be trained from.

    A name that is there already, with the same weights elsewhere, is moved to the new place with every version on it.
    Raises ModelError for what is no usable MusicGen and DataError for a name that stands for other weights."""
    check_name(name)
    source = _kept_as(source)
    with ws.database.session(write=False) as s:
        known = find_version(s, name)
    sha256 = ws.base_model(source).base_sha256
    if known is not None and known.adapter_sha256 is None and known.base_sha256 == sha256 and known.base != source:
        with ws.database.session() as s:
            count = move_base(s, base=known.base, base_sha256=sha256, to=source)
            add_audit(
                s, actor=actor, action="base.move", subject=name, before={"base": known.base},
                after={"base": source, "versions": count},
            )  # fmt: skip
    elif known is not None and known.base_sha256 != sha256:
        raise DataError(
            f"{name} stands for a base of other weights ({known.base_sha256[:12]}; {source} is {sha256[:12]}); choose "
            "another name."
        )
    folder = _folder(source)
    if licence is None and folder is not None and (found := licence_of_folder(folder)) != UNKNOWN:
        licence = found
    return register_base(
        ws.database, name=name, base=source, base_sha256=sha256, listening=_listening(source), licence=licence
    )


def bases(database: Database) -> list[tuple[Version, BaseFacts]]:
    """The registered bases with what their files say. Reads no weights."""
    with database.session(write=False) as s:
        found = list_bases(s)
    return [(version, facts_of(version.base)) for version in found]


def facts_of(source: str) -> BaseFacts:
    """What the files of a checkpoint say of it."""
    folder = _folder(source)
    if folder is None:
        return BaseFacts(f"missing: put it into {checkpoint.models_folder() / source}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        decoder, codec = config["decoder"], config["audio_encoder"]
        return BaseFacts(
            "here" if any(folder.glob("*.safetensors")) else "missing: its weights",
            checkpoint.decoder_parameters(folder),
            decoder.get("num_codebooks"),
            decoder.get("audio_channels", 1),
            codec.get("sampling_rate"),
            config.get("model_type") == checkpoint.MELODY,
        )
    except (OSError, ValueError, KeyError, TypeError, ModelError):
        return BaseFacts(f"missing: config.json of {folder} cannot be read")


def _folder(source: str) -> Path | None:
    """Where the checkpoint lies on this machine, without asking anybody."""
    if source == "tiny":
        return checkpoint.TINY
    for place in (Path(source), checkpoint.models_folder() / source):
        if place.is_dir():
            return place
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(source, "config.json")
    except ValueError:  # not a name that a hub could have
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _kept_as(source: str) -> str:
    """How a place is written down: relative to the folder of models where it lies in it, so that a home can move to
    another machine; otherwise a folder's whole path."""
    folder = Path(source)
    if not folder.is_dir():
        return source
    inside = checkpoint.models_folder().resolve()
    return str(folder.resolve().relative_to(inside) if folder.resolve().is_relative_to(inside) else folder.resolve())


def _listening(source: str) -> GenerationConfig:
    """How clips of it are heard: what its generation_config.json says, where it says it, MusicGen's ways otherwise."""
    folder = _folder(source)
    said: dict[str, Any] = {}
    if folder is not None:
        try:
            said = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            said = {}
    if source == "tiny" or not isinstance(said, dict):
        return GenerationConfig()
    return GenerationConfig(
        float(said.get("temperature") or LISTENING.temperature),
        int(said.get("top_k") or LISTENING.top_k),
        float(said.get("guidance_scale") or LISTENING.guidance),
        LISTENING.clip_seconds,
    )
