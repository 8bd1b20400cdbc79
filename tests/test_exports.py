"""What leaves the house: only what was agreed to, under names that lead nowhere, in files that run nothing."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import uuid
import zipfile

import pytest
import sqlalchemy as sa
from study_support import give_consent, voted_study

from alignment.db.base import utcnow, uuid7
from alignment.db.tables import ClipRatingRow, ListeningSessionRow, RaterRow
from alignment.domain import Outcome, RaterKind, RatingOutcome
from alignment.errors import DataError, StoreError
from alignment.exports import make_export, write_export, zipped
from alignment.flags import flag_study
from tests.database_support import (  # noqa: F401
    any_database,
    any_url,
    postgres_server,
    postgres_url,
    sqlite_database,
    sqlite_url,
)


def _rows(export, name="votes") -> list[dict]:
    return [json.loads(line) for line in export.files[f"{name}.jsonl"].decode().splitlines()]


def test_without_consent_to_publication_no_row_leaves_and_the_withheld_are_counted(any_database):  # noqa: F811
    # Rater 0 agreed, rater 1 refused, rater 2 was never asked, rater 3 agreed and withdrew, rater 4 thought again.
    filled, raters = voted_study(
        any_database, battles=3, raters=5, consent=lambda n: {0: True, 1: False, 3: True, 4: True}.get(n), comment="hm"
    )
    give_consent(any_database, raters[4], filled.study_id, publication=False)
    with any_database.session() as s:
        s.execute(sa.update(RaterRow).where(RaterRow.id == raters[3]).values(status="withdrawn", pseudonym=None))
    export = make_export(any_database, "study", actor="olga")
    assert export.counts == {
        "votes": 3, "ratings": 0, "comments": 3, "raters": 1, "withheld_without_publication_consent": 9,
        "withheld_withdrawn": 3, "withheld_without_licence": 0, "comments_withheld": 12,
    }  # fmt: skip
    assert len(_rows(export)) == len(_rows(export, "comments")) == 3
    give_consent(any_database, raters[1], filled.study_id, publication=True)
    assert make_export(any_database, "study", actor="olga").counts["votes"] == 6


def test_no_name_of_two_exports_is_the_same_and_none_is_in_the_database(any_database):  # noqa: F811
    voted_study(any_database, battles=4, raters=3)
    one, two = (_rows(make_export(any_database, "study", actor="olga")) for _ in range(2))

    def names(rows):
        return {row[column] for row in rows for column in ("vote", "rater", "session")}

    assert len(names(one)) == 12 + 3 + 3 and not names(one) & names(two)
    with any_database.engine.connect() as connection:
        kept = "".join(
            repr(connection.execute(sa.text(f"SELECT * FROM {table}")).all())
            for table in ("rater", "vote", "listening_session", "audit_log")
        )
    assert not any(name in kept for name in names(one))
    assert all(uuid.UUID(hex=h).hex not in json.dumps(one) for h in _ids(any_database))
    # The files' order tells nothing of the order of voting either.
    assert [row["vote"] for row in one] == sorted(row["vote"] for row in one)


def _ids(database) -> list[str]:
    with database.session(write=False) as s:
        return [i.hex for i in [*s.scalars(sa.select(RaterRow.id)), *s.scalars(sa.select(ListeningSessionRow.id))]]


def test_an_export_tells_no_address_no_browser_and_no_clock_time(sqlite_database):  # noqa: F811
    voted_study(sqlite_database, battles=2, raters=1, comment="words")
    with sqlite_database.session() as s:
        s.execute(sa.update(ListeningSessionRow).values(user_agent_family="Firefox-mark", audio_route="route-mark"))
        created = s.scalar(sa.select(ListeningSessionRow.started_at))
    export = make_export(sqlite_database, "study", actor="olga-mark")
    text = b"".join(export.files.values()).decode()
    for mark in ("Firefox-mark", "route-mark", "olga-mark", created.strftime("%H:%M:%S")):
        assert mark not in text
    assert _rows(export)[0]["day"] == created.date().isoformat() and _rows(export)[0]["decision_seconds"] == 9
    assert not {"rater", "vote", "session"} & set(_rows(export, "comments")[0])


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", " =1", "＝1", "\r=1"])
def test_no_spreadsheet_takes_a_comment_for_a_formula(sqlite_database, text):  # noqa: F811
    filled, _ = voted_study(sqlite_database, battles=1, raters=1, comment="x")
    with sqlite_database.session() as s:
        s.execute(sa.text("UPDATE vote_comment SET text = :text"), {"text": text})
        s.execute(sa.text("UPDATE rater SET cohort = '=cmd'"))
    export = make_export(sqlite_database, "study", actor="olga")
    for name in ("comments", "votes"):
        text_of_file = io.StringIO(export.files[f"{name}.csv"].decode(), newline="")
        cells = [cell for row in csv.reader(text_of_file) for cell in row]
        assert not any(cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "＝")) for cell in cells)
        assert any(cell.startswith("'") for cell in cells)
    assert _rows(export, "comments")[0]["text"] == text  # JSONL keeps the words as they were


def test_the_rows_say_what_was_voted_with_flags_and_the_winner_in_words(any_database):  # noqa: F811
    def say(assignment, number):
        return Outcome.TIE if number else Outcome.B

    voted_study(any_database, battles=2, raters=2, say=say, kind=RaterKind.SIMULATED)
    flag_study(any_database, "study", actor="olga")
    rows = _rows(make_export(any_database, "study", actor="olga"))
    assert sorted(row["outcome"] for row in rows) == ["B", "B", "TIE", "TIE"]
    assert {row["version_a"] for row in rows} | {row["version_b"] for row in rows} == {"base", "tuned"}
    assert rows[0]["flags"] == {"duplicate": "ok", "too fast": "ok"}
    assert (rows[0]["heard_seconds_a"], rows[0]["heard_seconds_b"]) == (3.0, 2.0)


def test_ratings_leave_under_the_same_rules(any_database):  # noqa: F811
    filled, raters = voted_study(any_database, battles=2, raters=2, consent=lambda n: n == 0)
    with any_database.session() as s:
        for session in s.scalars(sa.select(ListeningSessionRow.id)).all():
            s.execute(
                sa.insert(ClipRatingRow).values(
                    id=uuid7(), session_id=session, clip_id=filled.clips[0].id, quality=70, relevance=60, mos=4.0,
                    idempotency_key=uuid.uuid4().hex, created_at=utcnow(), heard_seconds=3.14, decision_ms=7600,
                )
            )  # fmt: skip
            for clip, outcome in ((1, RatingOutcome.SKIP), (2, RatingOutcome.FAULT)):  # nothing to publish
                s.execute(
                    sa.insert(ClipRatingRow).values(
                        id=uuid7(), session_id=session, clip_id=filled.clips[clip].id, outcome=outcome,
                        idempotency_key=uuid.uuid4().hex, created_at=utcnow(),
                    )
                )  # fmt: skip
    export = make_export(any_database, "study", actor="olga")
    (row,) = _rows(export, "ratings")
    assert (row["quality"], row["mos"], row["heard_seconds"], row["decision_seconds"]) == (70, 4.0, 3.1, 8)
    assert export.counts["withheld_without_publication_consent"] == 3  # two votes and a rating


def test_checksums_card_and_zip_agree_with_the_files(sqlite_database, tmp_path):  # noqa: F811
    voted_study(sqlite_database, battles=2, raters=1, kind=RaterKind.SIMULATED, consent=lambda n: None)
    export = make_export(sqlite_database, "study", actor="olga", licence="CC0")
    assert export.card["simulated"] and b"Simulated listeners" in export.files["README.md"]
    folder = write_export(export, tmp_path / "out")
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        assert name in ("datacard.json", "README.md") or export.card["files"][name]["sha256"] == digest
    assert {p.name for p in folder.iterdir()} == set(export.files)
    with zipfile.ZipFile(io.BytesIO(zipped(export))) as archive:
        assert archive.read("votes.csv") == export.files["votes.csv"]
    with pytest.raises(StoreError, match="exists already"):
        write_export(export, tmp_path / "out")
    with pytest.raises(DataError, match="licence"):
        make_export(sqlite_database, "study", actor="olga", licence=" ")
