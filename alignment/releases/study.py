"""A study's votes in Music Arena's format, and as Parquet for `datasets`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.clips import ClipStore
from alignment.db import figures
from alignment.db.clips import get_clips
from alignment.db.engine import Database
from alignment.db.figures import StudyVote
from alignment.db.prompts import known_prompts
from alignment.domain import Axis, BattleKind, Clip, Outcome, Split
from alignment.errors import ConfigError, DataError
from alignment.releases.bundle import Bundle, readme
from alignment.releases.consent import DEFAULT_LICENCE, Pseudonyms, Publishable, publishable, require_licence
from alignment.releases.rows import VOTE_COLUMNS, vote_rows

NOT_THERE = (Outcome.SKIP, Outcome.FAULT)  # Music Arena has no such answers
BATCH = 100
PRIVACY = (
    "Raters, sessions and votes carry names keyed for this export alone; the key was not kept. Times are given by day. "
    "Comments are left out, because their words would join this export with another."
)


def export_music_arena(
    database: Database,
    store: ClipStore,
    study: str,
    folder: Path,
    *,
    actor: str,
    licence: str = DEFAULT_LICENCE,
    audio: bool = True,
) -> dict[str, Any]:
    """The data card of a new folder with battles.jsonl, in Music Arena's 28 fields and a few of ours, and the clips.

    Only answers that may be published leave (``releases.consent``); what came from elsewhere keeps its licence, and
    ``licence`` is that of the rest. SKIP, FAULT and pairs that check the rater have no counterpart there and are
    counted. Raises NotFoundError for an unknown study, DataError when nothing may leave, StoreError when the folder
    exists or a clip is missing."""
    licence = require_licence(licence)
    with Bundle(database, store, folder) as bundle:
        leaving = _leaving(database, study)
        votes = [one for one in leaving.votes if one.outcome not in NOT_THERE and one.kind is BattleKind.NORMAL]
        names, licences = Pseudonyms(), Counter()
        # By keyed name: the order in which votes came in would tell who sat together.
        votes.sort(key=lambda vote: names.of("vote", vote.vote_id))
        with bundle.lines("battles.jsonl") as add:
            for vote, clips, split in _with_clips(database, votes):
                row = _battle(vote, clips, names) | {
                    "split": split.value, "licence": leaving.licence_of(vote.vote_id, licence),
                    "simulated": leaving.simulated,
                }  # fmt: skip
                licences[row["licence"]] += 1
                for side, clip in zip("ab", clips, strict=True):
                    row[f"audio_{side}"] = bundle.audio(clip.audio_sha256, clip.version) if audio else ""
                add(row)
        counts = {"votes": len(votes), "without_counterpart": len(leaving.votes) - len(votes),
                  "raters": len({vote.rater_id for vote in votes})}  # fmt: skip
        card = _card(leaving, licence, counts, licences)
        told = [
            "`battles.jsonl` has a vote a line, in the fields of Music Arena's release. `date` is the day; "
            "`timestamp`, `feedback`, `hardware_*` and times of generation are empty; `text_adherence` and `quality` "
            "(-2 clearly A to 2 clearly B), `confidence`, `split`, `licence` and `simulated` are added. Pairs that "
            "checked the rater are left out.",
            PRIVACY,
        ]
        return bundle.finish(card, readme(f"Listening study: {study}", card, told), actor, "export.music-arena", study)


def export_parquet(
    database: Database,
    store: ClipStore,
    study: str,
    folder: Path,
    *,
    actor: str,
    licence: str = DEFAULT_LICENCE,
    audio: bool = True,
) -> dict[str, Any]:
    """The data card of a new folder with votes.parquet, which `datasets` loads, each clip's FLAC in its row.

    The columns are those of `attune study export`, with ``audio_a`` and ``audio_b``. The same rules as above, SKIP and
    FAULT included."""
    licence = require_licence(licence)
    with Bundle(database, store, folder) as bundle:
        leaving = _leaving(database, study)
        with database.session(write=False) as s:
            flags = figures.latest_flags(s, [vote.vote_id for vote in leaving.votes])
        rows = vote_rows(leaving, flags, Pseudonyms(), licence=licence)
        _write_parquet(bundle, rows, audio)
        licences = Counter(row["licence"] for row in rows)
        counts = {"votes": len(rows), "raters": len({vote.rater_id for vote in leaving.votes})}
        card = _card(leaving, licence, counts, licences)
        told = [
            '`datasets.load_dataset("parquet", data_files="votes.parquet")` loads it. Audio comes as the bytes of FLAC '
            "files, not decoded: cast the columns to `datasets.Audio()` to decode them.",
            PRIVACY,
        ]
        return bundle.finish(card, readme(f"Listening study: {study}", card, told), actor, "export.parquet", study)


def _leaving(database: Database, study: str) -> Publishable:
    with database.session(write=False) as s:
        leaving = publishable(s, study)
    if not leaving.votes:
        kept = ", ".join(f"{count} {reason}" for reason, count in sorted(leaving.withheld.items())) or "there are none"
        raise DataError(f"No vote of study {study} may be published ({kept}); nothing was written.")
    return leaving


def _with_clips(database: Database, votes: Sequence[StudyVote]) -> Iterator[tuple[StudyVote, tuple[Clip, Clip], Split]]:
    for start in range(0, len(votes), BATCH):
        part = votes[start : start + BATCH]
        with database.session(write=False) as s:
            clips = get_clips(s, {clip for vote in part for clip in (vote.left_clip_id, vote.right_clip_id)})
            known = known_prompts(s, {vote.prompt_text for vote in part})
        for vote in part:
            yield vote, (clips[vote.left_clip_id], clips[vote.right_clip_id]), known[vote.prompt_text].split


def _battle(vote: StudyVote, clips: tuple[Clip, Clip], names: Pseudonyms) -> dict[str, Any]:
    """The row's fields, A left, in Music Arena's order."""
    a, b = (clip.facts for clip in clips)
    return {
        "battle_uuid": names.of("vote", vote.vote_id), "date": vote.created_at.date().isoformat(),
        "prompt": vote.prompt_text, "is_instrumental": None, "is_prebaked": None,
        "user_pseudonym": names.of("rater", vote.rater_id), "audio_a": "", "system_a": vote.left_version,
        "audio_b": "", "system_b": vote.right_version, "preference": vote.outcome.value,
        "total_listening_time_a": round(vote.heard_left_seconds, 1),
        "total_listening_time_b": round(vote.heard_right_seconds, 1), "feedback": "", "timestamp": None, "lyrics": "",
        "hardware_a": None, "hardware_b": None, "system_time_a": None, "system_time_b": None, "gateway_time_a": None,
        "gateway_time_b": None, "duration_a": a.seconds, "duration_b": b.seconds, "sample_rate_a": a.sample_rate_hz,
        "sample_rate_b": b.sample_rate_hz, "listen_data_a": None, "listen_data_b": None,
        "text_adherence": vote.axes.get(Axis.TEXT_ADHERENCE), "quality": vote.axes.get(Axis.QUALITY),
        "confidence": vote.confidence,
    }  # fmt: skip


def _write_parquet(bundle: Bundle, rows: Sequence[Mapping[str, Any]], audio: bool) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        raise ConfigError("Parquet is written by pyarrow, which is not installed; pip install pyarrow.") from None
    kinds = {
        "position": pa.int64(), "text_adherence": pa.int64(), "quality": pa.int64(), "confidence": pa.int64(),
        "switches": pa.int64(), "decision_seconds": pa.int64(), "heard_seconds_a": pa.float64(),
        "heard_seconds_b": pa.float64(),
    }  # fmt: skip
    columns = [pa.field(name, kinds.get(name, pa.string())) for name in VOTE_COLUMNS]
    told: dict[str, Any] = {
        name: {"dtype": str(kind).replace("double", "float64"), "_type": "Value"}
        for name, kind in ((field.name, field.type) for field in columns)
    }
    clip = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if audio:
        columns += [pa.field(f"audio_{side}", clip) for side in "ab"]
        # What `datasets` reads a column's kind from; not decoded, because decoding needs more packages than loading.
        told |= {f"audio_{side}": {"decode": False, "_type": "Audio"} for side in "ab"}
    schema = pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": told}})})
    with parquet.ParquetWriter(bundle.path("votes.parquet"), schema) as file:
        for start in range(0, len(rows), BATCH):
            part = []
            for row in rows[start : start + BATCH]:
                flat = {**row, "background": json.dumps(row["background"]), "flags": json.dumps(row["flags"])}
                for side in "ab" if audio else "":
                    sha256, version = row[f"audio_sha256_{side}"], row[f"version_{side}"]
                    flat[f"audio_{side}"] = {"bytes": bundle.tagged(sha256, version), "path": f"{sha256}.flac"}
                part.append(flat)
            file.write_table(pa.Table.from_pylist(part, schema))


def _card(leaving: Publishable, licence: str, counts: Mapping[str, int], licences: Mapping[str, int]) -> dict[str, Any]:
    return {
        "study": leaving.study.name, "versions": list(leaving.study.versions), "simulated": leaving.simulated,
        "licence": licence, "licences": dict(licences), "counts": dict(counts), "withheld": dict(leaving.withheld),
    }  # fmt: skip
