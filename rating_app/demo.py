"""A human study over clips that already exist, so that a fresh database can be listened to at once."""

from __future__ import annotations

import uuid
from collections import defaultdict

from alignment.db.clips import list_clips
from alignment.db.engine import Database
from alignment.db.prompts import list_prompts
from alignment.db.studies import NewBattle, add_battles, create_study, list_battles
from alignment.db.versions import list_versions
from alignment.domain import Axis, Clip, RaterKind, Split
from alignment.errors import DataError

MINIMUM_LISTENING_SECONDS = 2.0


def ensure_demo_study(
    database: Database,
    *,
    base: str | None = None,
    candidate: str | None = None,
    minimum_listening_seconds: float = MINIMUM_LISTENING_SECONDS,
) -> str:
    """Name of a human study over clips that exist, made if it is new.

    Battles stand between ``base`` (default: the first version) and ``candidate`` (default: the newest one) on held-out
    prompts both have sung; where there is no such prompt, between two clips of the base. Votes of people are never
    mixed with simulated ones: this study is its own. Raises DataError when there are not two clips for any prompt.
    """
    with database.session() as s:
        versions = [version.name for version in list_versions(s)]
        if not versions:
            raise DataError("The database holds no version and no clips yet; run `attune demo` first.")
        base, candidate = base or versions[0], candidate or versions[-1]
        held_out = {p.id for split in (Split.LEADERBOARD, Split.TEST) for p in list_prompts(s, split=split)}
        base_clips = _by_prompt(list_clips(s, version=base))
        other_clips = _by_prompt(list_clips(s, version=candidate)) if candidate != base else {}
        battles = [
            NewBattle(prompt_id, clip.id, twin.id, sampler_version="demo-1")
            for prompt_id, clips in base_clips.items()
            if prompt_id in held_out
            for clip in clips[:1]
            for twin in _alike(clip, other_clips.get(prompt_id, []))[:1]
        ]
        pair = f"{candidate} and {base}" if battles else f"two clips of {base}"
        if not battles:
            battles = [
                NewBattle(prompt_id, clips[0].id, twin.id, sampler_version="demo-1")
                for prompt_id, clips in base_clips.items()
                for twin in _alike(clips[0], clips[1:])[:1]
            ]
        if not battles:
            raise DataError(f"No prompt has two clips of one length to compare; run `attune generate` for {base}.")
        name = f"listening demo: {pair}"
        study_id = create_study(
            s,
            name=name,
            versions=sorted({base, candidate}) if "two clips" not in pair else [base],
            questions=[axis.value for axis in Axis],
            minimum_listening_seconds=minimum_listening_seconds,
            reveal=False,
            rater_kind=RaterKind.HUMAN,
        )
        if not list_battles(s, study_id):
            add_battles(s, study_id, battles)
        return name


def _by_prompt(clips: list[Clip]) -> dict[uuid.UUID, list[Clip]]:
    found: dict[uuid.UUID, list[Clip]] = defaultdict(list)
    for clip in clips:
        found[clip.prompt_id].append(clip)
    return found


def _alike(clip: Clip, others: list[Clip]) -> list[Clip]:
    """Those that could be told apart by nothing but their sound: same length, same rate, other audio."""
    return [
        other
        for other in others
        if other.generation.clip_seconds == clip.generation.clip_seconds
        and other.facts.sample_rate_hz == clip.facts.sample_rate_hz
        and other.audio_sha256 != clip.audio_sha256
    ]
