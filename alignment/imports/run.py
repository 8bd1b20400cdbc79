"""An import from the first row to the commit: everything is checked before the database is written once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from alignment.db import external, people, prompts, studies
from alignment.db.base import utcnow
from alignment.db.engine import Database
from alignment.domain import EXTERNAL_BASE, REFERENCE_BASE, Split
from alignment.errors import DataError
from alignment.imports.audio import AudioIntake
from alignment.imports.incoming import Incoming, NotReleased
from alignment.imports.record import Recorder
from alignment.imports.rows import Row
from alignment.imports.staging import Staged, Staging, digest_of
from alignment.licences import UNKNOWN, is_known
from alignment.requests import split_of

BATCH = 200
SHOWN = 20  # faults that are told; the others are counted
_SYSTEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Parse = Callable[[Mapping[str, Any]], Incoming | NotReleased]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class ImportSettings:
    """How rows are taken. ``licence`` is for those that name none; ``prefix`` goes before every system's name."""

    source: str
    licence: str | None = None
    study: str | None = None  # of the votes; none: the source's name
    prefix: str = ""
    skip_bad: bool = False  # take what is whole and tell the rest; otherwise one fault stops everything
    prompt_set: str | None = None


@dataclass(frozen=True)
class Imported:
    """What an import added, and what it did not. ``known`` came before; ``faults`` are the first of ``bad`` rows."""

    source: str
    study: str | None
    simulated: bool
    rows: int = 0
    records: int = 0
    votes: int = 0
    clips: int = 0
    prompts: int = 0
    versions: tuple[str, ...] = ()
    known: int = 0
    mixed_down: int = 0  # clips whose files had more than two channels
    not_released: Mapping[str, int] = field(default_factory=dict)
    bad: int = 0
    faults: tuple[str, ...] = ()
    licences: Mapping[str, int] = field(default_factory=dict)


def import_rows(
    database: Database,
    intake: AudioIntake,
    secret: bytes,
    rows: Iterable[Row],
    parse: Parse,
    settings: ImportSettings,
    *,
    actor: str,
    progress: Progress = lambda rows: None,
) -> Imported:
    """What was added. Rows that came before are passed over, so that an import may be repeated.

    All rows are read, checked and their audio stored before the database is written, in one transaction. Raises
    DataError that names every bad row (up to twenty) unless ``skip_bad``; then nothing is in the database, and audio
    that was stored already is left to ``attune clips gc``."""
    check_source(settings)
    with Staging() as staging:
        checked = _Check(database, intake, parse, settings, staging)
        rest = iter(rows)
        while part := list(islice(rest, BATCH)):
            checked.take(part)
            progress(checked.rows)
        checked.finish()
        if checked.bad and not settings.skip_bad:
            raise DataError(_told(checked.bad, checked.rows, checked.faults))
        result = Imported(
            settings.source, None, checked.simulated or False, rows=checked.rows, known=checked.known,
            mixed_down=len(checked.mixed), not_released=dict(checked.not_released), bad=checked.bad,
            faults=tuple(checked.faults), licences=dict(sorted(checked.licences.items())),
        )  # fmt: skip
        if not len(staging):
            return result
        study = (settings.study or settings.source) if checked.has_votes else None
        with database.session() as s:
            recorder = Recorder(
                s, source=settings.source, secret=secret, study=study, simulated=result.simulated, now=utcnow()
            )
            made = recorder.write(staging)
            if settings.prompt_set is not None:
                studies.add_prompt_set(s, settings.prompt_set, made.prompts)
            result = replace(
                result, study=study, records=made.records, votes=made.votes, clips=len(made.clips),
                prompts=len(made.prompts), versions=tuple(sorted(made.versions)),
            )  # fmt: skip
            people.add_audit(
                s, actor=actor, action="import", subject=settings.source,
                after={"records": made.records, "votes": made.votes, "licences": dict(result.licences), "study": study},
            )  # fmt: skip
        return result


def check_source(settings: ImportSettings) -> None:
    """Raises DataError unless the source has a name, and the prefix is one that a version's name may begin with."""
    if not settings.source.strip() or len(settings.source) > 100:
        raise DataError("The source has no name, or one of more than 100 characters; give another with --source.")
    if settings.prefix and not _SYSTEM.fullmatch(settings.prefix):
        raise DataError(f"--prefix is {settings.prefix!r}; use letters, digits, dots, dashes and underscores.")


class _Check:
    """Rows checked in batches and staged; the faults of all of them."""

    def __init__(
        self, database: Database, intake: AudioIntake, parse: Parse, settings: ImportSettings, staging: Staging
    ) -> None:
        self._database, self._intake, self._parse = database, intake, parse
        self._settings, self._staging = settings, staging
        self._systems: dict[str, tuple[str, bool]] = {}  # name -> where it came first, whether it is a reference
        self.rows = self.known = self.bad = 0
        self.faults: list[str] = []
        self._new_faults: list[tuple[str, str]] = []  # (place, sentence) of the batch at hand
        self.licences: Counter[str] = Counter()
        self.not_released: Counter[str] = Counter()
        self.mixed: set[str] = set()  # sha256 of clips
        self.simulated: bool | None = None
        self.has_votes = False

    def take(self, part: Sequence[Row]) -> None:
        read: list[tuple[str, Incoming]] = []
        order = {place: number for number, (place, _) in enumerate(part)}
        for place, row in part:
            self.rows += 1
            try:
                if isinstance(row, DataError):
                    raise row
                incoming = self._parse(row)
                if isinstance(incoming, NotReleased):
                    self.not_released[incoming.reason] += 1
                else:
                    read.append((place, self._settled(incoming)))
            except DataError as error:
                self._fault(place, error)
        texts = {clip.prompt for _, one in read for clip in one.clips}
        with self._database.session(write=False) as s:
            before = external.known_records(s, self._settings.source, [one.source_id for _, one in read])
            splits = {text: prompt.split for text, prompt in prompts.known_prompts(s, texts).items()}
        for place, one in read:
            try:
                if self._came_before(one, before):
                    self.known += 1
                else:
                    self._stage(place, one, splits)
            except DataError as error:
                self._fault(place, error)
        self._keep(order)

    def finish(self) -> None:
        """Looks at what only all rows together tell: names that stand for versions of our own."""
        with self._database.session(write=False) as s:
            bases = external.bases_of(s, self._systems)
        for name, (place, is_reference) in self._systems.items():
            base = REFERENCE_BASE if is_reference else EXTERNAL_BASE
            if bases.get(name, base) != base:
                self._fault(place, DataError(f"system {name} has the name of a version here; give --prefix"))
        self._keep({})

    def _fault(self, place: str, error: DataError) -> None:
        self.bad += 1
        self._new_faults.append((place, f"{place}: {error}"))

    def _keep(self, order: Mapping[str, int]) -> None:
        """Adds a batch's faults, in the order of its rows, to those that are told."""
        self._new_faults.sort(key=lambda fault: order.get(fault[0], 0))
        self.faults += [text for _, text in self._new_faults][: SHOWN - len(self.faults)]
        self._new_faults = []

    def _settled(self, one: Incoming) -> Incoming:
        """The record with the import's prefix and licence. Raises DataError for systems that cannot be versions."""
        clips = tuple(replace(clip, system=self._settings.prefix + clip.system) for clip in one.clips)
        for clip in clips:
            if not _SYSTEM.fullmatch(clip.system):
                raise DataError(f"system {clip.system!r} is no name; letters, digits, dots, dashes, underscores are")
        licence = one.licence if one.licence is not None else self._settings.licence
        return replace(one, clips=clips, licence=licence if is_known(licence) else None)

    def _came_before(self, one: Incoming, before: Mapping[str, str]) -> bool:
        digest, staged = digest_of(one), self._staging.place_of(one.source_id)
        if staged is not None and staged[1] != digest:
            raise DataError(f"its id {one.source_id} is that of {staged[0]}, which says something else")
        if one.source_id in before and before[one.source_id] != digest:
            raise DataError(f"record {one.source_id} of {self._settings.source} came before and said something else; "
                            "give another --source")  # fmt: skip
        return staged is not None or one.source_id in before

    def _stage(self, place: str, one: Incoming, splits: Mapping[str, Split]) -> None:
        clips = []
        for clip in one.clips:
            given = splits.get(clip.prompt) or clip.split or split_of(clip.prompt)
            split = self._staging.split_of(clip.prompt, given)
            if clip.split not in (None, split):
                raise DataError(f"its prompt is in split {split}, not {clip.split}; a split never changes")
            clips.append(replace(clip, split=split))
            if self._systems.setdefault(clip.system, (place, clip.is_reference))[1] != clip.is_reference:
                raise DataError(f"{clip.system} is a system in one row and a reference in another")
        if one.vote is not None:
            if self.simulated is None:
                self.simulated = one.vote.simulated
            if self.simulated != one.vote.simulated:
                raise DataError("simulated and human votes stand in one file; import each kind apart")
        stored = tuple(self._intake.take(clip.audio) for clip in one.clips)
        if len(stored) == 2 and one.clips[0].system == one.clips[1].system and (
            stored[0].audio_sha256 == stored[1].audio_sha256
        ):  # fmt: skip
            raise DataError("both sides are the same clip, which a vote cannot tell apart")
        self.mixed.update(audio.audio_sha256 for audio in stored if audio.channels > 2)
        self.has_votes = self.has_votes or one.vote is not None
        self.licences[one.licence or UNKNOWN] += 1
        self._staging.add(Staged(place, replace(one, clips=tuple(clips)), stored))


def _told(bad: int, rows: int, faults: Sequence[str]) -> str:
    more = [f"  and {bad - len(faults)} more"] if bad > len(faults) else []
    return "\n".join(
        [
            f"{bad} of {rows} rows cannot be imported, so nothing was; mend them, or leave them out with --skip-bad:",
            *[f"  {fault}." for fault in faults],
            *more,
        ]
    )
