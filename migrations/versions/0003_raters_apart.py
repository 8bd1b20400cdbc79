"""The schema itself keeps simulated and human raters apart: in sessions, in snapshots, and for ever."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SESSION = (
    "(SELECT kind FROM rater WHERE rater.id = NEW.rater_id) "
    "<> (SELECT rater_kind FROM study WHERE study.id = NEW.study_id)"
)
MEMBER = (
    "(SELECT rater.kind FROM vote JOIN listening_session ON listening_session.id = vote.session_id "
    "JOIN rater ON rater.id = listening_session.rater_id WHERE vote.id = NEW.vote_id) "
    "<> (SELECT CASE WHEN snapshot.simulated THEN 'simulated' ELSE 'human' END FROM snapshot "
    "WHERE snapshot.id = NEW.snapshot_id)"
)
RULES = (
    # table, what may not be, what is said
    ("listening_session", SESSION, "simulated and human raters never share a study"),
    ("snapshot_member", MEMBER, "simulated and human votes never share a snapshot"),
)
FIXED = (("rater", "kind"), ("study", "rater_kind"), ("snapshot", "simulated"))


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table, forbidden, message in RULES:
            _postgres_trigger(f"{table}_apart", "INSERT OR UPDATE", table, forbidden, message)
        for table, column in FIXED:
            changed = f"NEW.{column} <> OLD.{column}"
            _postgres_trigger(f"{table}_{column}_stays", "UPDATE", table, changed, f"{table}.{column} never changes")
        return
    for table, forbidden, message in RULES:
        for change in ("INSERT", "UPDATE"):
            _sqlite_trigger(f"{table}_apart_{change.lower()}", change, table, forbidden, message)
    for table, column in FIXED:
        changed = f"NEW.{column} <> OLD.{column}"
        _sqlite_trigger(f"{table}_{column}_stays", "UPDATE", table, changed, f"{table}.{column} never changes")


def _postgres_trigger(name: str, change: str, table: str, forbidden: str, message: str) -> None:
    op.execute(
        f"CREATE FUNCTION attune_{name}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF {forbidden} THEN RAISE EXCEPTION '{message}'; END IF; RETURN NEW; END $$"
    )
    op.execute(f"CREATE TRIGGER {name} BEFORE {change} ON {table} FOR EACH ROW EXECUTE FUNCTION attune_{name}()")


def _sqlite_trigger(name: str, change: str, table: str, forbidden: str, message: str) -> None:
    op.execute(
        f"CREATE TRIGGER {name} BEFORE {change} ON {table} WHEN {forbidden} BEGIN SELECT RAISE(ABORT, '{message}'); END"
    )


def downgrade() -> None:
    postgres = op.get_bind().dialect.name == "postgresql"
    for table, _, _ in RULES:
        if postgres:
            op.execute(f"DROP FUNCTION attune_{table}_apart() CASCADE")  # its trigger goes with it
        else:
            for change in ("insert", "update"):
                op.execute(f"DROP TRIGGER {table}_apart_{change}")
    for table, column in FIXED:
        if postgres:
            op.execute(f"DROP FUNCTION attune_{table}_{column}_stays() CASCADE")
        else:
            op.execute(f"DROP TRIGGER {table}_{column}_stays")
