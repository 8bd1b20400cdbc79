"""Queries about clips and the settings they were sampled with."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.at_once import insert_new
from alignment.db.base import utcnow, uuid7
from alignment.db.batches import batches
from alignment.db.generations import add_generation_config, generation_of
from alignment.db.tables import ClipRow, GenerationConfigRow, VersionRow
from alignment.db.versions import get_version
from alignment.domain import AudioFacts, Clip, ClipSource, GenerationConfig
from alignment.errors import DataError, NotFoundError

_QUERY = (
    sa.select(ClipRow, VersionRow.name, GenerationConfigRow)
    .join(VersionRow, ClipRow.version_id == VersionRow.id)
    .join(GenerationConfigRow, ClipRow.generation_config_id == GenerationConfigRow.id)
)


@dataclass(frozen=True)
class NewClip:
    """A clip that is in the store and not yet in the database."""

    prompt_id: uuid.UUID
    version: str
    generation: GenerationConfig
    seed: int
    audio_sha256: str
    codes_sha256: str | None
    facts: AudioFacts
    generation_seconds: float | None = None
    source: ClipSource = ClipSource.GENERATED


def _clip(row: ClipRow, version: str, config: GenerationConfigRow) -> Clip:
    return Clip(
        id=row.id,
        prompt_id=row.prompt_id,
        version=version,
        generation=generation_of(config),
        seed=row.seed,
        audio_sha256=row.audio_sha256,
        codes_sha256=row.codes_sha256,
        facts=AudioFacts(
            sample_rate_hz=row.sample_rate_hz,
            seconds=row.seconds,
            lufs=row.lufs,
            true_peak_dbtp=row.true_peak_dbtp,
            silence_ratio=row.silence_ratio,
            clipping_ratio=row.clipping_ratio,
        ),
        source=row.source,
        generation_seconds=row.generation_seconds,
    )


def add_clips(s: Session, clips: Sequence[NewClip]) -> list[Clip]:
    """The clips in the order given; one that is known by (prompt, version, generation, seed) is returned as stored.

    Raises NotFoundError for an unknown version and DataError when a known clip comes with other audio or codes."""
    version_ids = {name: get_version(s, name).id for name in {clip.version for clip in clips}}
    configs = {g: add_generation_config(s, g) for g in dict.fromkeys(clip.generation for clip in clips)}
    keys = [(c.prompt_id, version_ids[c.version], configs[c.generation], c.seed) for c in clips]
    known = _by_key(s, keys)
    fresh = []
    now = utcnow()
    for key, new in zip(keys, clips, strict=True):
        if key in known:
            _require_same(known[key], new)
            continue
        clip = Clip(
            id=uuid7(),
            prompt_id=new.prompt_id,
            version=new.version,
            generation=new.generation,
            seed=new.seed,
            audio_sha256=new.audio_sha256,
            codes_sha256=new.codes_sha256,
            facts=new.facts,
            source=new.source,
            generation_seconds=new.generation_seconds,
        )
        known[key] = clip
        fresh.append(
            {
                "id": clip.id,
                "prompt_id": key[0],
                "version_id": key[1],
                "generation_config_id": key[2],
                "seed": new.seed,
                "audio_sha256": new.audio_sha256,
                "codes_sha256": new.codes_sha256,
                "codes_reencoded": new.source == ClipSource.EXTERNAL and new.codes_sha256 is not None,
                "source": new.source,
                "sample_rate_hz": new.facts.sample_rate_hz,
                "seconds": new.facts.seconds,
                "lufs": new.facts.lufs,
                "true_peak_dbtp": new.facts.true_peak_dbtp,
                "silence_ratio": new.facts.silence_ratio,
                "clipping_ratio": new.facts.clipping_ratio,
                "generation_seconds": new.generation_seconds,
                "created_at": now,
            }
        )
    if fresh and insert_new(s, ClipRow, fresh, key=_KEY):
        known |= _by_key(s, keys)
        for key, new in zip(keys, clips, strict=True):
            _require_same(known[key], new)
    return [known[key] for key in keys]


def _require_same(old: Clip, new: NewClip) -> None:
    if (old.audio_sha256, old.codes_sha256) != (new.audio_sha256, new.codes_sha256):
        raise DataError(
            f"Version {new.version} has sung this prompt with seed {new.seed} before and it sounded "
            f"otherwise ({old.audio_sha256[:12]} instead of {new.audio_sha256[:12]}); use another seed."
        )


_KEY = ("prompt_id", "version_id", "generation_config_id", "seed")


def _by_key(s: Session, keys: Sequence[tuple]) -> dict[tuple, Clip]:
    """The clips on record of these (prompt, version, generation, seed)."""
    found: dict[tuple, Clip] = {}
    versions = {version for _, version, _, _ in keys}
    for part in batches(dict.fromkeys((prompt, seed) for prompt, _, _, seed in keys)):
        # The prompts alone once more, because SQLite finds no index for pairs.
        asked = (
            ClipRow.prompt_id.in_({prompt for prompt, _ in part}),
            sa.tuple_(ClipRow.prompt_id, ClipRow.seed).in_(part),
        )
        for row, version, config in s.execute(_QUERY.where(*asked, ClipRow.version_id.in_(versions))):
            found[tuple(getattr(row, name) for name in _KEY)] = _clip(row, version, config)
    return found


def list_clips(
    s: Session,
    *,
    version: str | None = None,
    prompt_ids: Iterable[uuid.UUID] | None = None,
    generation: GenerationConfig | None = None,
) -> list[Clip]:
    """The clips of a version, of some prompts, under a setting; in the order in which they were added."""
    query = _QUERY
    if version is not None:
        query = query.where(VersionRow.name == version)
    if generation is not None:
        query = query.where(GenerationConfigRow.sha256 == generation.sha256)
    if prompt_ids is None:
        found = [_clip(*row) for row in s.execute(query)]
    else:
        found = []
        for part in batches(dict.fromkeys(prompt_ids)):
            found += [_clip(*row) for row in s.execute(query.where(ClipRow.prompt_id.in_(part)))]
    return sorted(found, key=lambda clip: clip.id)


def get_clips(s: Session, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Clip]:
    """The clips by id. Raises NotFoundError when one is missing."""
    wanted = list(dict.fromkeys(ids))
    found = {}
    for part in batches(wanted):
        for row in s.execute(_QUERY.where(ClipRow.id.in_(part))):
            found[row[0].id] = _clip(*row)
    missing = [str(i) for i in wanted if i not in found]
    if missing:
        raise NotFoundError(f"No clip has the id {missing[0]} ({len(missing)} of {len(wanted)} are missing).")
    return found
