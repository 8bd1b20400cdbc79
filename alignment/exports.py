"""A study's votes, ratings and comments as files that may be published: consent checked, pseudonyms keyed afresh."""

from __future__ import annotations

import csv
import hashlib
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
from alignment.db.figures import StudyComment, StudyRating, StudyVote
from alignment.db.people import add_audit
from alignment.db.studies import Study
from alignment.errors import StoreError
from alignment.releases.consent import (
    DEFAULT_LICENCE,
    NO_CONSENT,
    NO_LICENCE,
    WITHDRAWN,
    Pseudonyms,
    Publishable,
    publishable,
    require_licence,
)
from alignment.releases.rows import VOTE_COLUMNS, about, jsonl, vote_rows

__all__ = ["DEFAULT_LICENCE", "Export", "make_export", "write_export", "zipped"]

FORMAT = 1
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # the wide ones too: spreadsheets fold them

RATING_COLUMNS = (
    "rating", "rater", "session", "day", "kind", "prompt", "version", "audio_sha256", "quality", "relevance", "mos",
    "heard_seconds", "decision_seconds", "cohort", "background", "licence",
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


def make_export(database: Database, study_name: str, *, actor: str, licence: str = DEFAULT_LICENCE) -> Export:
    """The study's publishable answers as JSONL and CSV, with a data card and checksums; writes an audit line.

    Of people, only answers whose newest consent in this study allows publication leave the database; the others, and
    those of raters who withdrew, are counted. Simulated listeners need no consent and are marked in the card. What came
    from elsewhere keeps the licence it came under; ``licence`` is that of the rest. Raises
    NotFoundError for an unknown study and DataError for an empty licence."""
    licence = require_licence(licence)
    with database.session(write=False) as s:
        leaving = publishable(s, study_name)
        flags = queries.latest_flags(s, [vote.vote_id for vote in leaving.votes])
        comments = queries.comments_of(s, leaving.said)
    names = Pseudonyms()
    rows_of_votes = vote_rows(leaving, flags, names, licence=licence)
    rating_rows = sorted((_rating_row(r, names, leaving, licence) for r in leaving.ratings), key=lambda r: r["rating"])
    comment_rows = _comment_rows(comments, {v.vote_id: v for v in leaving.votes})
    files: dict[str, bytes] = {}
    for name, rows, columns in (
        ("votes", rows_of_votes, VOTE_COLUMNS),
        ("ratings", rating_rows, RATING_COLUMNS),
        ("comments", comment_rows, COMMENT_COLUMNS),
    ):
        files[f"{name}.jsonl"] = jsonl(rows)
        files[f"{name}.csv"] = _csv(rows, columns)
    counts = {
        "votes": len(rows_of_votes), "ratings": len(rating_rows), "comments": len(comment_rows),
        "raters": len({one.rater_id for one in [*leaving.votes, *leaving.ratings]}),
        "withheld_without_publication_consent": leaving.withheld[NO_CONSENT],
        "withheld_withdrawn": leaving.withheld[WITHDRAWN],
        "withheld_without_licence": leaving.withheld[NO_LICENCE],
        "comments_withheld": len(comments) - len(comment_rows),
    }  # fmt: skip
    licences = Counter(row["licence"] for row in (*rows_of_votes, *rating_rows))
    card = _card(leaving.study, licence, leaving.simulated, counts, files) | {
        "licences": dict(sorted(licences.items()))
    }
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


def _rating_row(rating: StudyRating, names: Pseudonyms, leaving: Publishable, licence: str) -> dict[str, Any]:
    row = about(rating, names) | {
        "rating": names.of("rating", rating.rating_id), "kind": rating.kind, "version": rating.version,
        "audio_sha256": rating.audio, "quality": rating.quality, "relevance": rating.relevance, "mos": rating.mos,
        "heard_seconds": round(rating.heard_seconds, 1),
        "licence": leaving.licence_of(rating.rating_id, licence),
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
            "licence": "of the answer; what came from elsewhere keeps the licence that it came under",
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
        f"Licence: {'; '.join(card['licences']) or card['licence']}. Made on {card['made_on']}. "
        f"Versions: {', '.join(card['versions'])}.",
        "",
        f"{counts['votes']} votes, {counts['ratings']} ratings and {counts['comments']} comments of {counts['raters']} "
        f"raters. Withheld: {counts['withheld_without_publication_consent']} answers without consent to publication, "
        f"{counts['withheld_withdrawn']} of raters who withdrew, {counts['withheld_without_licence']} without a known "
        "licence.",
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
