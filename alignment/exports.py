"""A study's votes, ratings and comments as files that may be published: consent checked, pseudonyms keyed afresh."""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import json
import os
import secrets
import shutil
import uuid
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.db import figures as queries
from alignment.db.base import utcnow
from alignment.db.engine import Database
from alignment.db.figures import FlagRow, StudyComment, StudyRating, StudyVote
from alignment.db.people import add_audit
from alignment.db.studies import Study, get_study
from alignment.domain import Axis, RaterKind, RatingOutcome
from alignment.errors import DataError, StoreError

FORMAT = 1
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # the wide ones too: spreadsheets fold them
DEFAULT_LICENCE = "CC BY 4.0"

VOTE_COLUMNS = (
    "vote", "rater", "session", "position", "day", "kind", "prompt", "version_a", "version_b", "audio_sha256_a",
    "audio_sha256_b", "outcome", "text_adherence", "quality", "confidence", "expected_winner", "repeats_vote",
    "heard_seconds_a", "heard_seconds_b", "switches", "decision_seconds", "cohort", "background", "flags",
)  # fmt: skip
RATING_COLUMNS = (
    "rating", "rater", "session", "day", "kind", "prompt", "version", "audio_sha256", "quality", "relevance", "mos",
    "heard_seconds", "decision_seconds", "cohort", "background",
)  # fmt: skip
COMMENT_COLUMNS = (
    "comment", "prompt", "version_a", "version_b", "outcome", "side", "start_seconds", "end_seconds", "after_reveal",
    "text",
)  # fmt: skip


@dataclass(frozen=True)
class Export:
    """The files of an export by name, and what its data card says."""

    study: str
    files: Mapping[str, bytes]
    card: Mapping[str, Any]

    @property
    def counts(self) -> Mapping[str, Any]:
        return self.card["counts"]


class _Pseudonyms:
    """Names of this export alone: the key is drawn here and forgotten with it."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def of(self, kind: str, value: uuid.UUID) -> str:
        """16 hex digits; the same thing has the same name within this export and another one in the next."""
        return hmac.new(self._key, f"{kind}:{value}".encode(), hashlib.sha256).hexdigest()[:16]


def make_export(database: Database, study_name: str, *, actor: str, licence: str = DEFAULT_LICENCE) -> Export:
    """The study's publishable answers as JSONL and CSV, with a data card and checksums; writes an audit line.

    Of people, only answers whose newest consent in this study allows publication leave the database; the others, and
    those of raters who withdrew, are counted. Simulated listeners need no consent and are marked in the card. Raises
    NotFoundError for an unknown study and DataError for an empty licence."""
    if not licence.strip():
        raise DataError(f"The export names no licence; give one, for example {DEFAULT_LICENCE}.")
    with database.session(write=False) as s:
        study = get_study(s, study_name)
        votes = queries.study_votes(s, study.id)
        ratings = [one for one in queries.study_ratings(s, study.id) if one.outcome == RatingOutcome.RATED]
        agreed = queries.publication_consents(s, study.id)
        flags = queries.latest_flags(s, [vote.vote_id for vote in votes])
        comments = queries.comments_of(s, [vote.vote_id for vote in votes])
    simulated = study.rater_kind == RaterKind.SIMULATED

    def leaves(one: StudyVote | StudyRating) -> bool:
        return not one.withdrawn and (simulated or agreed.get(one.rater_id) is True)

    out_votes, out_ratings = [v for v in votes if leaves(v)], [r for r in ratings if leaves(r)]
    names = _Pseudonyms()
    vote_rows = _vote_rows(out_votes, flags, names)
    rating_rows = sorted((_rating_row(r, names) for r in out_ratings), key=lambda row: row["rating"])
    comment_rows = _comment_rows(comments, {v.vote_id: v for v in out_votes})
    files: dict[str, bytes] = {}
    for name, rows, columns in (
        ("votes", vote_rows, VOTE_COLUMNS),
        ("ratings", rating_rows, RATING_COLUMNS),
        ("comments", comment_rows, COMMENT_COLUMNS),
    ):
        files[f"{name}.jsonl"] = _jsonl(rows)
        files[f"{name}.csv"] = _csv(rows, columns)
    withheld = Counter(
        "withdrawn" if one.withdrawn else "without publication consent"
        for one in [*votes, *ratings] if not leaves(one)
    )  # fmt: skip
    counts = {
        "votes": len(vote_rows), "ratings": len(rating_rows), "comments": len(comment_rows),
        "raters": len({one.rater_id for one in [*out_votes, *out_ratings]}),
        "withheld_without_publication_consent": withheld["without publication consent"],
        "withheld_withdrawn": withheld["withdrawn"],
        "comments_withheld": len(comments) - len(comment_rows),
    }  # fmt: skip
    card = _card(study, licence.strip(), simulated, counts, files)
    files["datacard.json"] = (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode()
    files["README.md"] = _readme(card).encode()
    files["SHA256SUMS"] = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items())
    ).encode()
    with database.session() as s:
        add_audit(s, actor=actor, action="study.export", subject=study_name, after=card)
    return Export(study_name, files, card)


def write_export(export: Export, folder: str | Path) -> Path:
    """The new folder with the export's files, there whole or not at all. Raises StoreError when it exists already."""
    folder = Path(folder)
    if folder.exists():
        raise StoreError(f"{folder} exists already; name a new folder for the export.")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        for name, data in export.files.items():
            (temporary / name).write_bytes(data)
        temporary.rename(folder)
    except OSError as error:
        raise StoreError(
            f"{folder}: the export cannot be written ({error.strerror}); choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def zipped(export: Export) -> bytes:
    """The export as one ZIP file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in export.files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _about(one: StudyVote | StudyRating, names: _Pseudonyms) -> dict[str, Any]:
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


def _vote_rows(votes: Sequence[StudyVote], flags: Sequence[FlagRow], names: _Pseudonyms) -> list[dict[str, Any]]:
    by_vote: dict[uuid.UUID, dict[str, str]] = {}
    for flag in flags:
        by_vote.setdefault(flag.vote_id, {})[flag.detector] = flag.verdict
    of_assignment = {vote.assignment_id: vote.vote_id for vote in votes}
    rows = []
    for vote in votes:
        first = of_assignment.get(vote.repeats) if vote.repeats else None
        row = _about(vote, names) | {
            "vote": names.of("vote", vote.vote_id), "position": vote.position, "kind": vote.kind.value,
            "version_a": vote.left_version, "version_b": vote.right_version, "audio_sha256_a": vote.left_audio,
            "audio_sha256_b": vote.right_audio, "outcome": vote.outcome.value,
            "text_adherence": vote.axes.get(Axis.TEXT_ADHERENCE), "quality": vote.axes.get(Axis.QUALITY),
            "confidence": vote.confidence,
            "expected_winner": None if vote.expected is None else {"left": "A", "right": "B"}[vote.expected.value],
            "repeats_vote": None if first is None else names.of("vote", first),
            "heard_seconds_a": round(vote.heard_left_seconds, 1), "heard_seconds_b": round(vote.heard_right_seconds, 1),
            "switches": vote.switches, "flags": dict(sorted(by_vote.get(vote.vote_id, {}).items())),
        }  # fmt: skip
        rows.append({name: row[name] for name in VOTE_COLUMNS})
    # By keyed name: the order in which votes came in would tell who sat together, and join two exports.
    return sorted(rows, key=lambda row: row["vote"])


def _rating_row(rating: StudyRating, names: _Pseudonyms) -> dict[str, Any]:
    row = _about(rating, names) | {
        "rating": names.of("rating", rating.rating_id), "kind": rating.kind, "version": rating.version,
        "audio_sha256": rating.audio, "quality": rating.quality, "relevance": rating.relevance, "mos": rating.mos,
        "heard_seconds": round(rating.heard_seconds, 1),
    }  # fmt: skip
    return {name: row[name] for name in RATING_COLUMNS}


def _comment_rows(comments: Sequence[StudyComment], votes: Mapping[uuid.UUID, StudyVote]) -> list[dict[str, Any]]:
    """Comments without rater or vote: the same words stand in every export and would join their pseudonyms."""
    rows = []
    for comment in comments:
        vote = votes.get(comment.vote_id)
        if vote is None:
            continue
        side = None if comment.side is None else {"left": "A", "right": "B"}[comment.side.value]
        rows.append(
            {"comment": secrets.token_hex(8), "prompt": vote.prompt_text, "version_a": vote.left_version,
             "version_b": vote.right_version, "outcome": vote.outcome.value, "side": side,
             "start_seconds": comment.start_seconds, "end_seconds": comment.end_seconds,
             "after_reveal": comment.after_reveal, "text": comment.text}
        )  # fmt: skip
    return sorted(rows, key=lambda row: row["comment"])


def _jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row[column]) for column in columns])
    return buffer.getvalue().encode()


def _cell(value: Any) -> Any:
    """The value as a cell that no spreadsheet takes for a formula (OWASP, "CSV injection"): text that begins like one
    gets an apostrophe in front. Numbers stay numbers."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        value = json.dumps(value, ensure_ascii=False) if value else ""
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value


def _card(
    study: Study, licence: str, simulated: bool, counts: Mapping[str, int], files: Mapping[str, bytes]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "study": study.name,
        "versions": list(study.versions),
        "questions": list(study.questions),
        "minimum_listening_seconds": study.minimum_listening_seconds,
        "made_on": utcnow().date().isoformat(),
        "licence": licence,
        "simulated": simulated,
        "counts": dict(counts),
        "consent": (
            "The answers are SIMULATED: no person gave them."
            if simulated
            else "Each answer is here because its rater agreed to publication in this study; the newest consent "
            "counts. Answers without that consent, and those of raters who withdrew, stayed behind and are counted."
        ),
        "pseudonyms": (
            "Raters, sessions and votes carry names keyed for this export alone; the key was not kept. Names of two "
            "exports of a study cannot be joined. Times are given by day, decision times by second, and comments "
            "without rater. A rater with many answers may still be recognised by the answers themselves when two "
            "exports are laid side by side: publish one."
        ),
        "not_included": "names, addresses, browsers, exact times, unpublished answers, clips of a rating study that "
        "were passed over or reported as broken, audio",
        "columns": {
            "outcome": "A or B is better, TIE, BOTH_BAD, SKIP (passed over), FAULT (audio broken); A was shown left",
            "text_adherence, quality": "-2 clearly A, 0 equal, 2 clearly B",
            "kind": "votes: normal, gold (known winner), repeat (asked again, sides swapped), anchor (one clip spoilt "
            "on purpose); ratings: normal, reference, anchor",
            "flags": "detector: verdict (ok, suspect, invalid, unknown); flags annotate, no vote was removed for one",
        },
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()
        },
    }


def _readme(card: Mapping[str, Any]) -> str:
    counts = card["counts"]
    lines = [
        f"# Listening study: {card['study']}",
        "",
        *(["**Simulated listeners gave these answers, no person did.**", ""] if card["simulated"] else []),
        f"Licence: {card['licence']}. Made on {card['made_on']}. Versions: {', '.join(card['versions'])}.",
        "",
        f"{counts['votes']} votes, {counts['ratings']} ratings and {counts['comments']} comments of {counts['raters']} "
        f"raters. Withheld: {counts['withheld_without_publication_consent']} answers without consent to publication, "
        f"{counts['withheld_withdrawn']} of raters who withdrew.",
        "",
        card["consent"],
        "",
        card["pseudonyms"],
        "",
        f"Not included: {card['not_included']}.",
        "",
        "## Columns",
        "",
        *[f"- `{name}`: {text}" for name, text in card["columns"].items()],
        "",
        "## Files",
        "",
        *[f"- `{name}`: {about['bytes']} bytes, sha256 {about['sha256']}" for name, about in card["files"].items()],
        "",
    ]
    return "\n".join(lines)
