"""A version's listening config and licence, one champion at a time, every change of status with its reason, and the
reward models that a training used."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    kind = "UUID" if op.get_bind().dialect.name == "postgresql" else "CHAR(32)"
    # With its key in the column's own definition, SQLite adds it in place.
    op.execute(
        f"ALTER TABLE version ADD COLUMN listening_config_id {kind} "
        "CONSTRAINT fk_version_listening_config_id REFERENCES generation_config (id)"
    )
    op.add_column("version", sa.Column("licence", sa.Text(), nullable=True))
    champion = sa.text("status = 'champion'")
    op.create_index(
        "uq_version_champion", "version", ["status"], unique=True, sqlite_where=champion, postgresql_where=champion
    )
    op.add_column("audit_log", sa.Column("reason", sa.Text(), nullable=True))
    op.create_table(
        "version_change",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("action", sa.String(length=20), nullable=False),
        sa.Column("replaced_id", sa.Uuid(), nullable=True),
        sa.Column("decision_id", sa.Uuid(), nullable=True),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("action IN ('promote', 'rollback', 'retire')", name=op.f("ck_version_change_action")),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name=op.f("fk_version_change_version_id")),
        sa.ForeignKeyConstraint(["replaced_id"], ["version.id"], name=op.f("fk_version_change_replaced_id")),
        sa.ForeignKeyConstraint(["decision_id"], ["gate_decision.id"], name=op.f("fk_version_change_decision_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_version_change")),
    )
    op.create_index("ix_version_change_version_id", "version_change", ["version_id"])
    op.create_table(
        "train_run_reward_model",
        sa.Column("train_run_id", sa.Uuid(), nullable=False),
        sa.Column("reward_model_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["train_run_id"], ["train_run.id"], name=op.f("fk_train_run_reward_model_train_run_id")
        ),
        sa.ForeignKeyConstraint(
            ["reward_model_id"], ["reward_model.id"], name=op.f("fk_train_run_reward_model_reward_model_id")
        ),
        sa.PrimaryKeyConstraint("train_run_id", "reward_model_id", name=op.f("pk_train_run_reward_model")),
    )
    _refuse_change("version_change")
    _name_reward_models()


def _name_reward_models() -> None:
    """Runs of recipes kept the names of their reward models in their config."""
    run = sa.table("train_run", sa.column("id", sa.Uuid()), sa.column("config", sa.JSON()))
    model = sa.table("reward_model", sa.column("id", sa.Uuid()), sa.column("name", sa.String()))
    used = sa.table(
        "train_run_reward_model", sa.column("train_run_id", sa.Uuid()), sa.column("reward_model_id", sa.Uuid())
    )
    connection = op.get_bind()
    known: dict[str, uuid.UUID] = {name: key for key, name in connection.execute(sa.select(model.c.id, model.c.name))}
    rows = []
    for key, config in connection.execute(sa.select(run.c.id, run.c.config)):
        names = config.get("reward_models") if isinstance(config, dict) else None
        for name in dict.fromkeys(names if isinstance(names, list) else ()):
            if name in known:
                rows.append({"train_run_id": key, "reward_model_id": known[name]})
    if rows:
        connection.execute(sa.insert(used), rows)


def _refuse_change(table: str) -> None:
    if op.get_bind().dialect.name == "postgresql":  # the function is the first schema's
        op.execute(
            f"CREATE TRIGGER {table}_refuses_change BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION attune_refuse_change()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_refuses_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION attune_refuse_change()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_refuses_{change.lower()} BEFORE {change} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )


def downgrade() -> None:
    op.drop_table("train_run_reward_model")
    op.drop_table("version_change")
    op.drop_index("uq_version_champion", table_name="version")
    op.drop_column("audit_log", "reason")
    op.drop_column("version", "licence")
    op.drop_column("version", "listening_config_id")
