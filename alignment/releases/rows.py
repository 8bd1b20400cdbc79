"""Votes as rows for publication: no clock time, no name that two exports share."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.db.figures import FlagRow, StudyRating, StudyVote
from alignment.domain import Axis
from alignment.releases.consent import Pseudonyms, Publishable

VOTE_COLUMNS = (
    "vote", "rater", "session", "position", "day", "kind", "prompt", "version_a", "version_b", "audio_sha256_a",
    "audio_sha256_b", "outcome", "text_adherence", "quality", "confidence", "expected_winner", "repeats_vote",
    "heard_seconds_a", "heard_seconds_b", "switches", "decision_seconds", "cohort", "background", "flags", "licence",
)  # fmt: skip


def about(one: StudyVote | StudyRating, names: Pseudonyms) -> dict[str, Any]:
    """What votes and ratings tell of rater and time: no clock time, which could join two exports."""
    return {
        "rater": names.of("rater", one.rater_id),
        "session": names.of("session", one.session_id),
        "day": one.created_at.date().isoformat(),
        "prompt": one.prompt_text,
        "decision_seconds": None if one.decision_ms is None else round(one.decision_ms / 1000),
        "cohort": one.cohort,
        "background": {str(key): str(value) for key, value in sorted(one.background.items())},
    }


def vote_rows(
    leaving: Publishable, flags: Sequence[FlagRow], names: Pseudonyms, *, licence: str
) -> list[dict[str, Any]]:
    """A row with VOTE_COLUMNS for each vote that may leave; ``licence`` is that of our own."""
    by_vote: dict[uuid.UUID, dict[str, str]] = {}
    for flag in flags:
        by_vote.setdefault(flag.vote_id, {})[flag.detector] = flag.verdict
    of_assignment = {vote.assignment_id: vote.vote_id for vote in leaving.votes}
    rows = []
    for vote in leaving.votes:
        first = of_assignment.get(vote.repeats) if vote.repeats else None
        row = about(vote, names) | {
            "vote": names.of("vote", vote.vote_id), "position": vote.position, "kind": vote.kind.value,
            "version_a": vote.left_version, "version_b": vote.right_version, "audio_sha256_a": vote.left_audio,
            "audio_sha256_b": vote.right_audio, "outcome": vote.outcome.value,
            "text_adherence": vote.axes.get(Axis.TEXT_ADHERENCE), "quality": vote.axes.get(Axis.QUALITY),
            "confidence": vote.confidence,
            "expected_winner": None if vote.expected is None else {"left": "A", "right": "B"}[vote.expected.value],
            "repeats_vote": None if first is None else names.of("vote", first),
            "heard_seconds_a": round(vote.heard_left_seconds, 1), "heard_seconds_b": round(vote.heard_right_seconds, 1),
            "switches": vote.switches, "flags": dict(sorted(by_vote.get(vote.vote_id, {}).items())),
            "licence": leaving.licence_of(vote.vote_id, licence),
        }  # fmt: skip
        rows.append({name: row[name] for name in VOTE_COLUMNS})
    # By keyed name: the order in which votes came in would tell who sat together, and join two exports.
    return sorted(rows, key=lambda row: row["vote"])


def jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
