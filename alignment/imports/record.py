"""Staged records written into the database, inside the one transaction of their caller."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy.orm import Session

from alignment.db import external, listening, people, prompts, studies
from alignment.db.batches import batches
from alignment.db.clips import NewClip, add_clips
from alignment.db.external import SAMPLER, ImportedVote, NewRecord
from alignment.db.studies import NewBattle
from alignment.db.versions import add_version
from alignment.domain import (
    EXTERNAL_BASE,
    REFERENCE_BASE,
    Clip,
    ClipSource,
    Consent,
    GenerationConfig,
    Prompt,
    RaterKind,
    canonical_sha256,
    rater_pseudonym,
)
from alignment.errors import DataError, NotFoundError
from alignment.imports.staging import Staged
from alignment.licences import UNKNOWN

BATCH = 500
CACHE_KIB = 64 * 1024
# How a clip from elsewhere was sampled nobody knows; 0 seconds stand for "as long as it is".
GENERATION = GenerationConfig(temperature=1.0, top_k=0, guidance=1.0, clip_seconds=0.0)


@dataclass
class Written:
    """What an import has added so far."""

    records: int = 0
    votes: int = 0
    clips: set[uuid.UUID] = field(default_factory=set)
    prompts: set[uuid.UUID] = field(default_factory=set)
    versions: set[str] = field(default_factory=set)


class Recorder:
    """Writes records of one source. ``study`` names the closed study that their votes belong to."""

    def __init__(self, s: Session, *, source: str, secret: bytes, study: str | None, simulated: bool, now: datetime):
        self._s, self._source, self._secret, self._now = s, source, secret, now
        if s.get_bind().dialect.name == "sqlite":
            # Keys are hashes: every row touches pages all over the indexes, and SQLite keeps 2 MB of them by itself.
            s.connection().exec_driver_sql(f"PRAGMA cache_size=-{CACHE_KIB}")
        self._kind = RaterKind.SIMULATED if simulated else RaterKind.HUMAN
        self._study = None if study is None else self._study_id(study)
        self._raters: dict[str, uuid.UUID] = {}  # of one batch
        self.written = Written()

    def write(self, records: Iterable[Staged]) -> Written:
        """What was added. The caller commits, or rolls everything back."""
        for part in batches(records, BATCH):
            self._write(part)
        return self.written

    def _write(self, part: Sequence[Staged]) -> None:
        known = self._prompts(part)
        new_clips = []
        for one in part:
            for clip, stored in zip(one.incoming.clips, one.stored, strict=True):
                self._version(clip.system, clip.is_reference)
                # The seed only has to tell the clips of one prompt apart.
                seed = int(stored.audio_sha256[:12], 16)
                new_clips.append(
                    NewClip(
                        known[clip.prompt].id, clip.system, GENERATION, seed, stored.audio_sha256, stored.codes_sha256,
                        stored.facts, source=ClipSource.EXTERNAL,
                    )
                )  # fmt: skip
        rest = iter(add_clips(self._s, new_clips))
        clips = [tuple(next(rest) for _ in one.incoming.clips) for one in part]
        self.written.clips.update(clip.id for both in clips for clip in both)
        votes = iter(self._votes([(one, both) for one, both in zip(part, clips, strict=True) if one.incoming.vote]))
        external.add_records(
            self._s,
            self._source,
            [
                NewRecord(
                    one.incoming.source_id, one.incoming.payload, one.incoming.licence, tuple(c.id for c in both),
                    next(votes) if one.incoming.vote else None,
                )
                for one, both in zip(part, clips, strict=True)
            ],
        )  # fmt: skip
        self.written.records += len(part)

    def _prompts(self, part: Sequence[Staged]) -> dict[str, Prompt]:
        wanted = {clip.prompt: clip.split for one in part for clip in one.incoming.clips}
        found = prompts.add_prompts(self._s, [(text, self._source, split, {}) for text, split in wanted.items()])
        self.written.prompts.update(prompt.id for prompt in found)
        return {prompt.text: prompt for prompt in found}

    def _version(self, name: str, is_reference: bool) -> None:
        if name in self.written.versions:
            return
        base = REFERENCE_BASE if is_reference else EXTERNAL_BASE
        add_version(self._s, name=name, base=base, base_sha256=canonical_sha256({base: name}))
        self.written.versions.add(name)
        if self._study is not None:
            external.add_study_versions(self._s, self._study, [name])

    def _votes(self, voted: Sequence[tuple[Staged, tuple[Clip, ...]]]) -> list[uuid.UUID]:
        if not voted or self._study is None:
            return []
        battles = studies.add_battles(
            self._s,
            self._study,
            [NewBattle(a.prompt_id, a.id, b.id, sampler_version=SAMPLER) for _, (a, b) in voted],
        )
        made = []
        for (one, _), battle in zip(voted, battles, strict=True):
            said, at = one.incoming.vote, one.incoming.vote.at or self._now
            key = f"import:{canonical_sha256([self._source, one.incoming.source_id])}"
            made.append(
                ImportedVote(
                    battle.id, self._session(said.rater, one.incoming.licence, at), key, said.outcome, at,
                    said.heard_left_seconds, said.heard_right_seconds, said.first_side, said.confidence, said.comment,
                    said.axes,
                )
            )  # fmt: skip
        self.written.votes += len(made)
        return external.add_votes(self._s, made)

    def _session(self, name: str, licence: str | None, at: datetime) -> uuid.UUID:
        """The rater's session, opened with the first vote, under the consent that the release's licence stands for."""
        pseudonym = rater_pseudonym(self._secret, self._kind, f"{self._source}:{name}")
        if pseudonym in self._raters:
            return self._raters[pseudonym]
        rater = listening.add_rater(
            self._s, pseudonym=pseudonym, kind=self._kind, cohort=None, consent_version=f"import:{self._source}"[:40],
            now=self._now,
        )  # fmt: skip
        session = external.session_of(self._s, rater, self._study)
        if session is None:
            session = listening.add_session(self._s, rater_id=rater, study_id=self._study, now=at)
            agreed = Consent(f"licence {licence or UNKNOWN}"[:40], training=True, publication=True)
            people.add_consent(self._s, rater_id=rater, study_id=self._study, consent=agreed, now=self._now)
        if len(self._raters) > 10_000:
            self._raters.clear()
        self._raters[pseudonym] = session
        return session

    def _study_id(self, name: str) -> uuid.UUID:
        """The study of imported votes of this name, made when it is new: closed, because nobody is asked anything."""
        try:
            study = studies.get_study(self._s, name)
        except NotFoundError:
            return studies.create_study(
                self._s, name=name, versions=[], questions=[], minimum_listening_seconds=0.0, rater_kind=self._kind,
                state="closed",
            )  # fmt: skip
        if study.mode != "ab" or study.state != "closed" or external.has_own_battles(self._s, study.id):
            raise DataError(f"Study {name} is one of your own; give another name with --study. Nothing was imported.")
        if study.rater_kind != self._kind:
            raise DataError(
                f"Study {name} holds {study.rater_kind.value} votes and these are {self._kind.value}, which never "
                "share a study; give another name with --study. Nothing was imported."
            )
        return study.id
