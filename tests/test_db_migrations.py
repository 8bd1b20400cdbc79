"""Migrations go both ways, lose nothing, and end where the tables say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from alignment.db import migrate
from alignment.db.engine import create_engine, open_database
from alignment.db.tables import APPEND_ONLY, metadata
from alignment.errors import DatabaseError, SchemaVersionError
from tests.database_support import (  # noqa: F401
    any_database,
    any_url,
    postgres_server,
    postgres_url,
    sqlite_database,
    sqlite_url,
)


def _tables(url: str) -> set[str]:
    engine = create_engine(url)
    try:
        return set(sa.inspect(engine).get_table_names()) - {"alembic_version"}
    finally:
        engine.dispose()


def _checks(engine: sa.Engine) -> dict[str, set[str]]:
    inspector = sa.inspect(engine)
    return {table: {str(c["name"]) for c in inspector.get_check_constraints(table)} for table in metadata.tables}


def test_the_migrated_schema_has_no_drift_from_the_tables(any_database):  # noqa: F811
    with any_database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_the_migrated_schema_has_every_check_the_tables_have(any_database, tmp_path):  # noqa: F811
    # Alembic's comparison does not look at CHECK constraints.
    wanted = {
        table.name: {str(c.name) for c in table.constraints if isinstance(c, sa.CheckConstraint)}
        for table in metadata.tables.values()
    }
    assert _checks(any_database.engine) == wanted


def test_every_table_goes_away_on_the_way_down_and_comes_back_on_the_way_up(any_url):  # noqa: F811
    migrate.upgrade(any_url)
    assert _tables(any_url) == set(metadata.tables)
    migrate.downgrade(any_url, "base")
    assert _tables(any_url) == set()
    assert migrate.current_revision(any_url) is None
    migrate.upgrade(any_url)
    assert migrate.current_revision(any_url) == migrate.head_revision()


def test_upgrading_twice_changes_nothing(sqlite_url):  # noqa: F811
    migrate.upgrade(sqlite_url)
    migrate.upgrade(sqlite_url)
    assert migrate.current_revision(sqlite_url) == migrate.head_revision()


POPULATED = """
INSERT INTO prompt VALUES ('{p}', 'sha-p', 'a slow waltz', 'test', '{{}}', 'train', '{t}');
INSERT INTO version (id, name, base, base_sha256, simulated, status, created_at)
  VALUES ('{v}', 'base', 'tiny', 'sha-b', {true}, 'candidate', '{t}');
INSERT INTO generation_config VALUES ('{g}', 'sha-g', 1.0, 0, 1.0, 4.0, '{t}');
INSERT INTO clip (id, prompt_id, version_id, generation_config_id, seed, audio_sha256, codes_reencoded, source,
  sample_rate_hz, seconds, true_peak_dbtp, silence_ratio, clipping_ratio, created_at)
  VALUES ('{c1}', '{p}', '{v}', '{g}', 1, 'a1', {false}, 'generated', 16000, 4.0, -1.0, 0.0, 0.0, '{t}'),
         ('{c2}', '{p}', '{v}', '{g}', 2, 'a2', {false}, 'generated', 16000, 4.0, -1.0, 0.0, 0.0, '{t}');
INSERT INTO study (id, name, questions, minimum_listening_seconds, gold_share, repeat_share, reveal, rater_kind,
  created_at) VALUES ('{s}', 'old', '[]', 0, 0, 0, {false}, 'simulated', '{t}');
INSERT INTO battle (id, study_id, prompt_id, clip_1_id, clip_2_id, kind, sampler_version, propensity, created_at)
  VALUES ('{b1}', '{s}', '{p}', '{c1}', '{c2}', 'normal', '1', 1.0, '{t}'),
         ('{b2}', '{s}', '{p}', '{c2}', '{c1}', 'repeat', '1', 1.0, '{t}');
INSERT INTO rater (id, consent_version, kind, status, created_at) VALUES ('{r}', '1', 'simulated', 'active', '{t}');
INSERT INTO listening_session (id, rater_id, study_id, started_at) VALUES ('{l}', '{r}', '{s}', '{t}');
INSERT INTO assignment VALUES ('{a}', '{b1}', '{l}', {true}, 'left', 'nonce', '{t}', '{t}');
INSERT INTO vote (id, assignment_id, revision, session_id, position, outcome, heard_left_seconds,
  heard_right_seconds, switches, idempotency_key, previous_hash, row_hash, created_at)
  VALUES ('{w1}', '{a}', 1, '{l}', 1, 'A', 4, 4, 0, 'key-1', 'h0', 'h1', '{t}'),
         ('{w2}', '{a}', 2, '{l}', 2, 'TIE', 4, 4, 0, 'key-2', 'h1', 'h2', '{t}')
"""


def _populate(engine: sa.Engine) -> None:
    names = ("p", "v", "g", "c1", "c2", "s", "b1", "b2", "r", "l", "a", "w1", "w2")
    values = {name: f"{number:032x}" for number, name in enumerate(names, start=1)}
    postgres = engine.dialect.name == "postgresql"
    words = {"true": "true", "false": "false"} if postgres else {"true": "1", "false": "0"}
    script = POPULATED.format(**values, **words, t="2026-01-02 03:04:05.000000")
    with engine.begin() as connection:
        for statement in script.split(";"):
            connection.exec_driver_sql(statement)


def test_a_populated_older_database_keeps_its_votes_and_gets_its_battles_counted(any_url):  # noqa: F811
    migrate.upgrade(any_url, "0001")
    engine = create_engine(any_url)
    _populate(engine)
    newest = migrate.head_revision()
    with pytest.raises(SchemaVersionError, match=f"has schema 0001, older than {newest}.*attune db upgrade"):
        open_database(any_url)
    migrate.upgrade(any_url)
    with engine.connect() as connection:
        tally = connection.exec_driver_sql("SELECT votes FROM battle_tally ORDER BY battle_id").scalars().all()
        outcomes = connection.exec_driver_sql("SELECT outcome FROM vote ORDER BY position").scalars().all()
    # One assignment was answered and then corrected: it counts once. The other battle was never served.
    assert tally == [1, 0]
    assert outcomes == ["A", "TIE"]
    open_database(any_url).close()
    migrate.downgrade(any_url, "0001")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM vote").scalar_one() == 2
    assert "battle_tally" not in _tables(any_url)
    engine.dispose()


def test_ratings_of_an_older_database_are_ratings_and_what_has_none_has_no_answer(any_url):  # noqa: F811
    migrate.upgrade(any_url, "0001")
    engine = create_engine(any_url)
    _populate(engine)
    migrate.upgrade(any_url, "0004")
    rating = (
        "INSERT INTO clip_rating (id, session_id, clip_id, quality, idempotency_key, created_at{more}) "
        "VALUES ('{id}', '{session}', '{clip}', {quality}, 'rating-{id}', '2026-01-02 03:04:05'{value})"
    )
    about = {"session": f"{KNOWN['l']:032x}"}
    one, two = f"{KNOWN['c1']:032x}", f"{KNOWN['c1'] + 1:032x}"
    with engine.begin() as connection:
        old = rating.format(id=f"{70:032x}", clip=one, quality=60, more="", value="", **about)
        connection.exec_driver_sql(old)
    migrate.upgrade(any_url)
    skip = {"id": f"{71:032x}", "clip": two, "more": ", outcome", **about}
    for quality, word in ((60, "SKIP"), (60, "FAULT"), ("NULL", "LATER")):
        with pytest.raises(sa.exc.IntegrityError, match="outcome"), engine.begin() as connection:
            connection.exec_driver_sql(rating.format(quality=quality, value=f", '{word}'", **skip))
    with engine.begin() as connection:
        connection.exec_driver_sql(rating.format(quality="NULL", value=", 'SKIP'", **skip))
        read = "SELECT outcome, quality FROM clip_rating ORDER BY id"
        assert connection.exec_driver_sql(read).all() == [("RATED", 60), ("SKIP", None)]
    migrate.downgrade(any_url, "0004")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT quality FROM clip_rating ORDER BY id").scalars().all() == [60, None]
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM clip_rating")
    engine.dispose()


def test_append_only_tables_refuse_to_change_or_lose_a_row_after_the_upgrade(any_url):  # noqa: F811
    migrate.upgrade(any_url, "0001")
    engine = create_engine(any_url)
    _populate(engine)
    migrate.upgrade(any_url)
    with engine.begin() as connection:
        _fill_the_rest(connection)
    for table in APPEND_ONLY:
        column = sa.inspect(engine).get_columns(table)[-1]["name"]
        for statement in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"):
            with pytest.raises(sa.exc.DBAPIError, match="append-only"), engine.begin() as connection:
                connection.exec_driver_sql(statement)
        if engine.dialect.name == "postgresql":
            with pytest.raises(sa.exc.DBAPIError, match="append-only"), engine.begin() as connection:
                connection.exec_driver_sql(f"TRUNCATE {table} CASCADE")
    engine.dispose()


KNOWN = {"p": 1, "v": 2, "c1": 4, "s": 6, "r": 9, "l": 10, "a": 11, "w1": 12, "x": 99}  # the rest of _populate's ids


def _fill_the_rest(connection: sa.Connection) -> None:
    ids = {name: f"{number:032x}" for name, number in KNOWN.items()}
    yes = "true" if connection.dialect.name == "postgresql" else "1"
    time = "2026-01-02 03:04:05"
    for statement in (
        f"INSERT INTO listen_event (assignment_id, seq, type, received_at) VALUES ('{ids['a']}', 0, 'play', '{time}')",
        f"INSERT INTO vote_axis VALUES ('{ids['w1']}', 'quality', 1)",
        "INSERT INTO clip_rating (id, session_id, clip_id, idempotency_key, created_at) "
        f"VALUES ('{ids['x']}', '{ids['l']}', '{ids['c1']}', 'rating-1', '{time}')",
        "INSERT INTO vote_flag (id, vote_id, detector, detector_version, verdict, created_at) "
        f"VALUES ('{ids['x']}', '{ids['w1']}', 'speed', '1', 'ok', '{time}')",
        "INSERT INTO consent (id, rater_id, study_id, text_version, training, publication, created_at) "
        f"VALUES ('{ids['x']}', '{ids['r']}', '{ids['s']}', '1', {yes}, {yes}, '{time}')",
        "INSERT INTO invite (id, study_id, token_sha256, created_at) "
        f"VALUES ('{ids['x']}', '{ids['s']}', '0', '{time}')",
        f"INSERT INTO invite_use (session_id, invite_id, created_at) VALUES ('{ids['l']}', '{ids['x']}', '{time}')",
        "INSERT INTO rating_item (id, study_id, prompt_id, clip_id, kind, created_at) "
        f"VALUES ('{ids['x']}', '{ids['s']}', '{ids['p']}', '{ids['c1']}', 'normal', '{time}')",
        "INSERT INTO version_change (id, version_id, action, forced, actor, created_at) "
        f"VALUES ('{ids['x']}', '{ids['v']}', 'retire', {yes}, 'someone', '{time}')",
        f"INSERT INTO audit_log (id, actor, action, created_at) VALUES ('{ids['x']}', 'someone', 'looked', '{time}')",
    ):
        connection.exec_driver_sql(statement)


def test_the_schema_keeps_simulated_and_human_raters_apart(any_url):  # noqa: F811
    """Whatever writes to the database, with or without the service."""
    migrate.upgrade(any_url, "0001")
    engine = create_engine(any_url)
    _populate(engine)  # study 6, rater 9, session 10 and votes 12, 13 are simulated
    migrate.upgrade(any_url)
    ids = {n: f"{number:032x}" for n, number in {"s": 6, "r": 9, "l": 10, "w1": 12, "h": 50, "x": 51}.items()}
    yes, no = ("true", "false") if engine.dialect.name == "postgresql" else ("1", "0")
    time = "2026-01-02 03:04:05"
    session = "INSERT INTO listening_session (id, rater_id, study_id, started_at) VALUES ('{x}', '{who}', '{s}', '{t}')"
    snapshot = (
        "INSERT INTO snapshot (id, name, policy, content_sha256, uri, simulated, created_at) "
        "VALUES ('{id}', '{name}', '{{}}', '0', 'x', {simulated}, '{t}')"
    )
    member = "INSERT INTO snapshot_member VALUES ('{snapshot}', '{vote}', 'train')"
    mark = f"{60:032x}", f"{61:032x}"
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO rater (id, consent_version, kind, status, created_at) "
            f"VALUES ('{ids['h']}', '1', 'human', 'active', '{time}')"
        )
        for one, name, simulated in ((mark[0], "true mark", yes), (mark[1], "false mark", no)):
            connection.exec_driver_sql(snapshot.format(id=one, name=name, simulated=simulated, t=time))
        connection.exec_driver_sql(session.format(**ids, who=ids["r"], t=time))
        connection.exec_driver_sql(member.format(snapshot=mark[0], vote=ids["w1"]))
    for statement, said in (
        (session.format(x=f"{52:032x}", s=ids["s"], who=ids["h"], t=time), "never share a study"),
        (f"UPDATE listening_session SET rater_id = '{ids['h']}' WHERE id = '{ids['l']}'", "never share a study"),
        (member.format(snapshot=mark[1], vote=ids["w1"]), "never share a snapshot"),
        (f"UPDATE snapshot_member SET snapshot_id = '{mark[1]}'", "never share a snapshot"),
        (f"UPDATE rater SET kind = 'human' WHERE id = '{ids['r']}'", "rater.kind never changes"),
        (f"UPDATE study SET rater_kind = 'human' WHERE id = '{ids['s']}'", "study.rater_kind never changes"),
        (f"UPDATE snapshot SET simulated = {no} WHERE id = '{mark[0]}'", "snapshot.simulated never changes"),
    ):
        with pytest.raises(sa.exc.DBAPIError, match=said), engine.begin() as connection:
            connection.exec_driver_sql(statement)
    with engine.begin() as connection:  # anything else may change
        connection.exec_driver_sql(f"UPDATE rater SET status = 'withdrawn' WHERE id = '{ids['r']}'")
    migrate.downgrade(any_url, "0002")
    with engine.begin() as connection:
        connection.exec_driver_sql(session.format(x=f"{52:032x}", s=ids["s"], who=ids["h"], t=time))
    engine.dispose()


def test_replacing_a_row_on_sqlite_is_refused_like_deleting_it(sqlite_url):  # noqa: F811
    migrate.upgrade(sqlite_url)
    engine = create_engine(sqlite_url)
    statement = "INSERT OR REPLACE INTO audit_log (id, actor, action, created_at) VALUES ('1', '{}', 'x', '2026-01-01')"
    with engine.begin() as connection:
        connection.exec_driver_sql(statement.format("first"))
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), engine.begin() as connection:
        connection.exec_driver_sql(statement.format("second"))
    engine.dispose()


def test_a_migration_that_fails_half_way_leaves_the_schema_as_it_was(sqlite_url, monkeypatch):  # noqa: F811
    migrate.upgrade(sqlite_url, "0001")
    engine = create_engine(sqlite_url)
    with engine.begin() as connection:
        # The second statement of 0002 will find its name taken, after the first has made the table.
        connection.exec_driver_sql("CREATE INDEX ix_battle_tally_study_id_votes_battle_id ON study (name)")
    before = _tables(sqlite_url)
    with pytest.raises(DatabaseError, match="already exists"):
        migrate.upgrade(sqlite_url)
    assert _tables(sqlite_url) == before
    assert migrate.current_revision(sqlite_url) == "0001"
    engine.dispose()


def test_migrations_run_from_any_folder(tmp_path):
    code = (
        "from alignment.db import migrate; migrate.upgrade('sqlite:///here.db'); "
        "print(migrate.current_revision('sqlite:///here.db'))"
    )
    root = str(Path(migrate.__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == migrate.head_revision()
    assert (tmp_path / "here.db").exists()
