"""A fresh SQLite file per test, and a real PostgreSQL: one that is given, or Debian's started for the session."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from alignment.db import clips, migrate, prompts, studies, versions
from alignment.db.engine import Database, create_engine, open_database
from alignment.domain import AudioFacts, Battle, Clip, GenerationConfig, Prompt, RaterKind, Split
from scripts.vote_load import free_port

FACTS = AudioFacts(
    sample_rate_hz=16000, seconds=4.0, lufs=-20.0, true_peak_dbtp=-1.5, silence_ratio=0.0, clipping_ratio=0.0
)


@dataclass(frozen=True)
class Filled:
    """What ``fill`` put into a database."""

    prompts: list[Prompt]
    clips: list[Clip]
    battles: list[Battle]
    study_id: uuid.UUID
    study: str


def fill(
    database: Database,
    *,
    battles: int = 4,
    kind: RaterKind = RaterKind.SIMULATED,
    minimum_listening_seconds: float = 0.0,
    reveal: bool = False,
    study: str = "study",
) -> Filled:
    """Two versions, a prompt, two clips and a battle for each of ``battles``, and one study."""
    with database.session() as s:
        made = prompts.add_prompts(s, [(f"{study} {i}", "test", Split.TRAIN, {"n": str(i)}) for i in range(battles)])
        for name in ("base", "tuned"):
            versions.add_version(s, name=name, base="tiny", base_sha256="0" * 64)
        sung = clips.add_clips(
            s,
            [
                clips.NewClip(
                    prompt_id=prompt.id,
                    version=version,
                    generation=GenerationConfig(),
                    seed=7,
                    audio_sha256=uuid.uuid5(prompt.id, version).hex * 2,
                    codes_sha256=None,
                    facts=FACTS,
                )
                for prompt in made
                for version in ("base", "tuned")
            ],
        )
        study_id = studies.create_study(
            s,
            name=study,
            versions=["base", "tuned"],
            questions=["Which fits the words better?"],
            minimum_listening_seconds=minimum_listening_seconds,
            reveal=reveal,
            rater_kind=kind,
        )
        fought = studies.add_battles(
            s,
            study_id,
            [
                studies.NewBattle(prompt.id, sung[2 * i].id, sung[2 * i + 1].id, propensity=0.5)
                for i, prompt in enumerate(made)
            ],
        )
    return Filled(made, sung, fought, study_id, study)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The address of an SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'attune.db'}"


@pytest.fixture
def sqlite_database(sqlite_url: str) -> Iterator[Database]:
    """An empty database under the newest schema."""
    migrate.upgrade(sqlite_url)
    database = open_database(sqlite_url)
    yield database
    database.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL where databases can be made. Skips without one, but fails where CI is set."""
    given = os.environ.get("ATTUNE_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        message = "No PostgreSQL: set ATTUNE_TEST_POSTGRES_URL or install Debian's postgresql."
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with _debian_server(found[-1].parent) as url:
        yield url


@contextmanager
def _debian_server(binaries: Path) -> Iterator[str]:
    """A throw-away server on a free loopback port; as user postgres when we are root, which initdb refuses."""
    folder = Path(tempfile.mkdtemp(prefix="attune-postgres-"))
    as_root = os.geteuid() == 0
    user = "postgres" if as_root else getpass.getuser()
    prefix = ["runuser", "-u", "postgres", "--"] if as_root else []
    if as_root:
        shutil.chown(folder, "postgres")
    port = free_port()

    def call(*command: str) -> None:
        # Into a file: a server that inherits a pipe would keep us waiting for its end.
        with (folder.parent / f"{folder.name}.log").open("ab") as log:
            subprocess.run([*prefix, *command], check=True, cwd="/", stdout=log, stderr=log, timeout=120)

    data = str(folder / "data")
    call(str(binaries / "initdb"), "-D", data, "-A", "trust", "-U", user, "-E", "UTF8", "--locale=C", "-N")
    options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off -c shared_buffers=16MB"
    call(str(binaries / "pg_ctl"), "-D", data, "-w", "-l", str(folder / "server.log"), "-o", options, "start")
    try:
        yield f"postgresql://{user}@127.0.0.1:{port}/postgres"
    finally:
        call(str(binaries / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{folder.name}.log").unlink(missing_ok=True)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The address of a fresh, empty database on a real PostgreSQL."""
    name = f"attune_{uuid.uuid4().hex}"
    engine = create_engine(postgres_server).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield sa.make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def any_url(request: pytest.FixtureRequest) -> str:
    """An empty database's address, once on SQLite and once on PostgreSQL."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def any_database(any_url: str) -> Iterator[Database]:
    """A database under the newest schema, once on SQLite and once on PostgreSQL."""
    migrate.upgrade(any_url)
    database = open_database(any_url)
    yield database
    database.close()
