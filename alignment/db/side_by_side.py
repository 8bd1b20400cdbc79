"""Queries about what several versions sang of the same prompts."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.clips import list_clips
from alignment.db.comparisons import ComparedPrompt
from alignment.db.prompts import get_prompts
from alignment.db.tables import ClipRow, PromptRow, VersionRow
from alignment.db.typed_prompts import DELETED
from alignment.domain import Clip, GenerationConfig

MOST_TAKES = 4


def sung_by_all(s: Session, versions: Sequence[str], *, limit: int = 60) -> list[ComparedPrompt]:
    """The newest prompts that every one of the versions has sung under one setting, with up to four takes of each.

    Where they share several settings, the one under which they sang last."""
    wanted = list(dict.fromkeys(versions))
    newest = sa.func.max(ClipRow.created_at).label("newest")
    query = (
        sa.select(ClipRow.prompt_id, newest)
        .join(VersionRow, ClipRow.version_id == VersionRow.id)
        .join(PromptRow, ClipRow.prompt_id == PromptRow.id)
        .where(VersionRow.name.in_(wanted), PromptRow.source != DELETED)
        .group_by(ClipRow.prompt_id, ClipRow.generation_config_id)
        .having(sa.func.count(sa.distinct(ClipRow.version_id)) == len(wanted))
        .order_by(newest.desc(), ClipRow.prompt_id.desc())
        .limit(4 * limit)
    )
    ids = list(dict.fromkeys(row.prompt_id for row in s.execute(query)))[:limit]
    if not ids:
        return []
    heard: dict[uuid.UUID, dict[GenerationConfig, dict[str, list[Clip]]]] = {id_: {} for id_ in ids}
    for name in wanted:
        for clip in list_clips(s, version=name, prompt_ids=ids):
            heard[clip.prompt_id].setdefault(clip.generation, {}).setdefault(name, []).append(clip)
    prompts, found = get_prompts(s, ids), []
    for id_ in ids:
        shared = [by_version for by_version in heard[id_].values() if len(by_version) == len(wanted)]
        best = max(shared, key=lambda by_version: max(clip.id for takes in by_version.values() for clip in takes))
        takes = min(MOST_TAKES, *(len(own) for own in best.values()))
        found.append(ComparedPrompt(prompts[id_], {name: tuple(best[name][:takes]) for name in wanted}))
    return found
