"""A database of very many votes, written as rows and not through the vote service: for benchmarks and tests only."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa

from alignment.db import migrate
from alignment.db.engine import open_database
from alignment.db.prompts import add_prompts
from alignment.db.studies import create_study
from alignment.db.tables import (
    AssignmentRow,
    BattleRow,
    ClipRow,
    GenerationConfigRow,
    ListeningSessionRow,
    RaterRow,
    VoteTable,
)
from alignment.db.versions import add_version
from alignment.domain import BattleKind, ClipSource, Outcome, RaterKind, Side, Split
from alignment.evaluation.vote_arrays import VoteArrays

BEGAN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
_OUTCOMES = (Outcome.A, Outcome.B, Outcome.TIE, Outcome.BOTH_BAD)
_CHUNK = 20_000


def filled_database(
    url: str, votes: VoteArrays, *, kind: RaterKind = RaterKind.SIMULATED, study: str = "votes",
    cohort: Callable[[int], str | None] = lambda rater: None, tags: Callable[[int], dict[str, str]] = lambda prompt: {},
) -> None:  # fmt: skip
    """Writes the votes in their order, a minute apart, under the newest schema; may be called again for another study.

    Each prompt, named by its number, one clip of each version; cohort and tags by code."""
    migrate.upgrade(url)
    database = open_database(url)
    raters = np.unique(votes.rater).tolist()
    prompt_codes = np.unique(votes.prompt).tolist()
    stamp = {"created_at": BEGAN}
    with database.session() as s:
        versions = {v: add_version(s, name=v, base="tiny", base_sha256="0" * 64).id for v in votes.versions}
        made = add_prompts(s, [(f"prompt {code}", "rows", Split.TEST, tags(code)) for code in prompt_codes])
        prompt_ids = {code: prompt.id for code, prompt in zip(prompt_codes, made, strict=True)}
        study_id = create_study(
            s, name=study, versions=list(votes.versions), questions=["Which?"], minimum_listening_seconds=0.0,
            reveal=False, rater_kind=kind,
        )  # fmt: skip
        config = uuid.uuid5(study_id, "config")
        s.execute(
            sa.insert(GenerationConfigRow).values(
                id=config, sha256=config.hex * 2, temperature=1.0, top_k=0, guidance=1.0, clip_seconds=4.0, **stamp
            )
        )
        people = {code: uuid.uuid5(study_id, f"rater {code}") for code in raters}
        s.execute(
            sa.insert(RaterRow),
            [
                {"id": people[code], "pseudonym": people[code].hex * 2, "cohort": cohort(code), "consent_version": "1",
                 "kind": kind, "status": "active", **stamp}
                for code in raters
            ],
        )  # fmt: skip
        clips: dict[tuple[int, int], uuid.UUID] = {}
        battles: dict[tuple[int, int, int], uuid.UUID] = {}
        sessions: dict[tuple[int, int], uuid.UUID] = {}
        turns: dict[tuple[int, uuid.UUID], int] = {}
        for start in range(0, len(votes), _CHUNK):
            rows: dict[Any, list[dict[str, Any]]] = {t: [] for t in _TABLES}
            columns = (getattr(votes, name)[start : start + _CHUNK].tolist() for name in _COLUMNS)
            for number, (left, right, outcome, rater, prompt) in enumerate(zip(*columns, strict=True), start=start):
                one, two = sorted((left, right))
                for version in (one, two):
                    if (prompt, version) not in clips:
                        clips[prompt, version] = new = _id(study_id, "c", len(clips))
                        rows[ClipRow].append(_clip(new, prompt_ids[prompt], versions[votes.versions[version]], config))
                key = (prompt, one, two)
                if key not in battles:
                    battles[key] = _id(study_id, "b", len(battles))
                    rows[BattleRow].append(
                        {"id": battles[key], "study_id": study_id, "prompt_id": prompt_ids[prompt],
                         "clip_1_id": clips[prompt, one], "clip_2_id": clips[prompt, two], "kind": BattleKind.NORMAL,
                         "sampler_version": "rows", "propensity": 1.0, **stamp}
                    )  # fmt: skip
                # A session hears a pair once; a rater asked again is in another session.
                turn = turns[rater, battles[key]] = turns.get((rater, battles[key]), -1) + 1
                if (rater, turn) not in sessions:
                    sessions[rater, turn] = _id(study_id, "s", len(sessions))
                    rows[ListeningSessionRow].append(
                        {"id": sessions[rater, turn], "rater_id": people[rater], "study_id": study_id,
                         "started_at": BEGAN}
                    )  # fmt: skip
                session = sessions[rater, turn]
                served, vote = _id(study_id, "a", number), _id(study_id, "v", number)
                at = BEGAN + timedelta(minutes=number)
                rows[AssignmentRow].append(
                    {"id": served, "battle_id": battles[key], "session_id": session,
                     "left_is_clip_1": left == one, "first_side": Side.LEFT, "nonce": served.hex, "served_at": at,
                     "expires_at": at, "policy": "rows", "propensity": 1.0}
                )  # fmt: skip
                rows[VoteTable].append(
                    {"id": vote, "assignment_id": served, "revision": 1, "session_id": session,
                     "position": number + 1, "outcome": _OUTCOMES[outcome], "heard_left_seconds": 4.0,
                     "heard_right_seconds": 4.0, "switches": 1, "idempotency_key": vote.hex,
                     "previous_hash": "0" * 64, "row_hash": vote.hex * 2, "created_at": at}
                )  # fmt: skip
            for table, made_rows in rows.items():
                if made_rows:
                    s.execute(sa.insert(table.__table__), made_rows)
    database.close()


_TABLES = (ListeningSessionRow, ClipRow, BattleRow, AssignmentRow, VoteTable)
_COLUMNS = ("left", "right", "outcome", "rater", "prompt")


def _id(study: uuid.UUID, kind: str, number: int) -> uuid.UUID:
    """Ids that grow with the number, as UUIDv7 do, and differ by study and kind."""
    return uuid.UUID(int=(number << 80) | (ord(kind) << 56) | (study.int & ((1 << 56) - 1)))


def _clip(new: uuid.UUID, prompt: uuid.UUID, version: uuid.UUID, config: uuid.UUID) -> dict[str, Any]:
    return {
        "id": new, "prompt_id": prompt, "version_id": version, "generation_config_id": config, "seed": 1,
        "audio_sha256": new.hex * 2, "codes_reencoded": False, "source": ClipSource.GENERATED,
        "sample_rate_hz": 16_000, "seconds": 4.0, "lufs": -20.0, "true_peak_dbtp": -1.5, "silence_ratio": 0.0,
        "clipping_ratio": 0.0, "created_at": BEGAN,
    }  # fmt: skip
