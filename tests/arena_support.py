"""An arena study with a rater, its clips without a model, and a clock that stands still, for the tests of the queue."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from alignment.db import requests
from alignment.db.base import utcnow
from alignment.db.clips import NewClip
from alignment.db.engine import Database
from alignment.db.requests import SingingRequest
from alignment.db.studies import create_study
from alignment.db.versions import add_version
from alignment.domain import AudioFacts, RaterKind
from alignment.studies import ArenaRules, StudyRecipe
from alignment.votes import VoteService
from alignment.worker import clip_seed

SECRET = "a secret for tests only"
VERSIONS = ("tuned", "base")  # not in alphabetical order: the recipe's order is the one that counts
FACTS = AudioFacts(16000, 0.5, -20.0, -1.5, 0.0, 0.0)
_raters = itertools.count()


@dataclass
class Clock:
    """The time, moved by hand."""

    now: datetime = field(default_factory=utcnow)

    def __call__(self) -> datetime:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def make_arena(
    database: Database, *, name: str = "arena", base: Path | str = "tiny", base_sha256: str = "0" * 64,
    adapter: tuple[str, str] | None = None, mode: str = "arena", state: str = "open", **rules: object,
) -> uuid.UUID:  # fmt: skip
    """The id of an arena study of the versions ``tuned`` and ``base``, its clips half a second long."""
    generation = {"clip_seconds": 0.5, "guidance": 2.0}
    recipe = StudyRecipe(
        name=name, mode=mode, versions=VERSIONS, arena=ArenaRules(**{"generation": generation, **rules})
    )
    with database.session() as s:
        add_version(s, name="base", base=str(base), base_sha256=base_sha256)
        sha256, uri = adapter or (None, None)
        add_version(
            s, name="tuned", base=str(base), base_sha256=base_sha256, parent="base", adapter_sha256=sha256,
            adapter_uri=uri,
        )  # fmt: skip
        study = create_study(
            s, name=name, versions=VERSIONS, questions=["quality"], minimum_listening_seconds=0.0,
            rater_kind=RaterKind.HUMAN,
        )  # fmt: skip
        requests.describe_study(s, study, mode=mode, rules=recipe.model_dump(mode="json"))
        s.execute(sa.text("update study set state = :state where name = :name"), {"state": state, "name": name})
    return study


def open_session(database: Database, name: str = "arena", *, rater: str | None = None) -> uuid.UUID:
    """A listening session of a rater, by default a new one."""
    service = VoteService(database, secret=SECRET)
    who = service.enrol_rater(rater or f"rater {next(_raters)}", kind=RaterKind.HUMAN)
    return service.open_session(who, name)


def silent_clips(request: SingingRequest) -> list[NewClip]:
    """What a worker would hand in, without the music."""
    return [
        NewClip(
            request.prompt_id, version, request.generation, clip_seed(request.seed, place),
            uuid.uuid5(request.id, version).hex * 2, None, FACTS,
        )
        for place, version in enumerate(request.versions)
    ]  # fmt: skip


def rows(database: Database, table: str, columns: str = "*", order: str = "") -> list[sa.Row]:
    with database.session(write=False) as s:
        return list(s.execute(sa.text(f"select {columns} from {table} {order}")))


def count(database: Database, table: str) -> int:
    return rows(database, table, "count(*)")[0][0]
