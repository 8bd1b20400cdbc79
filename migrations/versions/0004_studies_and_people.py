"""What a study's rules say, who was invited and agreed to what, absolute ratings, typed prompts, propensities."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

APPEND_ONLY = ("consent", "invite_use", "rating_item")
# Plain columns: SQLite adds them in place, and the tables keep their triggers.
COLUMNS = (
    ("study", sa.Column("mode", sa.String(length=20), nullable=False, server_default="ab")),
    ("study", sa.Column("state", sa.String(length=20), nullable=False, server_default="open")),
    ("study", sa.Column("rules", sa.JSON(), nullable=False, server_default="{}")),
    ("invite", sa.Column("label", sa.String(length=200), nullable=True)),
    ("invite", sa.Column("most_uses", sa.Integer(), nullable=True)),
    ("invite", sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True)),
    ("account", sa.Column("password_changed_at", sa.DateTime(timezone=True), nullable=True)),
    ("account", sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True)),
    ("rater", sa.Column("background", sa.JSON(), nullable=False, server_default="{}")),
    ("listening_session", sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True)),
    ("assignment", sa.Column("policy", sa.String(length=40), nullable=False, server_default="balanced-1")),
    ("assignment", sa.Column("propensity", sa.Double(), nullable=False, server_default="1.0")),
    ("assignment", sa.Column("left_fetched_at", sa.DateTime(timezone=True), nullable=True)),
    ("assignment", sa.Column("right_fetched_at", sa.DateTime(timezone=True), nullable=True)),
    ("clip_rating", sa.Column("heard_seconds", sa.Double(), nullable=False, server_default="0.0")),
    ("clip_rating", sa.Column("decision_ms", sa.BigInteger(), nullable=True)),
    ("vote_flag", sa.Column("detail", sa.JSON(), nullable=False, server_default="{}")),
    ("generation_request", sa.Column("generation", sa.JSON(), nullable=False, server_default="{}")),
    ("generation_request", sa.Column("seed", sa.BigInteger(), nullable=False, server_default="0")),
    ("generation_request", sa.Column("progress", sa.Double(), nullable=False, server_default="0.0")),
    ("generation_request", sa.Column("attempts", sa.Integer(), nullable=False, server_default="0")),
    ("generation_request", sa.Column("worker", sa.String(length=200), nullable=True)),
    ("generation_request", sa.Column("started_at", sa.DateTime(timezone=True), nullable=True)),
    ("generation_request", sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True)),
    ("generation_request", sa.Column("error", sa.Text(), nullable=True)),
)


def upgrade() -> None:
    for table, column in COLUMNS:
        op.add_column(table, column.copy())
    op.create_index("uq_clip_rating_session_id_clip_id", "clip_rating", ["session_id", "clip_id"], unique=True)
    op.create_table(
        "consent",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("rater_id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("text_version", sa.String(length=40), nullable=False),
        sa.Column("training", sa.Boolean(), nullable=False),
        sa.Column("publication", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["rater_id"], ["rater.id"], name=op.f("fk_consent_rater_id")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_consent_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consent")),
    )
    op.create_index("ix_consent_rater_id", "consent", ["rater_id"])
    op.create_table(
        "invite_use",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("invite_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["session_id"], ["listening_session.id"], name=op.f("fk_invite_use_session_id")),
        sa.ForeignKeyConstraint(["invite_id"], ["invite.id"], name=op.f("fk_invite_use_invite_id")),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_invite_use")),
    )
    op.create_index("ix_invite_use_invite_id", "invite_use", ["invite_id"])
    op.create_table(
        "battle_repeat",
        sa.Column("battle_id", sa.Uuid(), nullable=False),
        sa.Column("assignment_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["battle_id"], ["battle.id"], name=op.f("fk_battle_repeat_battle_id")),
        sa.ForeignKeyConstraint(["assignment_id"], ["assignment.id"], name=op.f("fk_battle_repeat_assignment_id")),
        sa.PrimaryKeyConstraint("battle_id", name=op.f("pk_battle_repeat")),
        sa.UniqueConstraint("assignment_id", name=op.f("uq_battle_repeat_assignment_id")),
    )
    op.create_table(
        "rating_item",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("prompt_id", sa.Uuid(), nullable=False),
        sa.Column("clip_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('normal', 'reference', 'anchor')", name=op.f("ck_rating_item_kind")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_rating_item_study_id")),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_rating_item_prompt_id")),
        sa.ForeignKeyConstraint(["clip_id"], ["clip.id"], name=op.f("fk_rating_item_clip_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rating_item")),
        sa.UniqueConstraint("study_id", "clip_id", name=op.f("uq_rating_item_study_id_clip_id")),
    )
    op.create_table(
        "rating_assignment",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("item_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("served_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("fetched_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["item_id"], ["rating_item.id"], name=op.f("fk_rating_assignment_item_id")),
        sa.ForeignKeyConstraint(["session_id"], ["listening_session.id"], name=op.f("fk_rating_assignment_session_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rating_assignment")),
        sa.UniqueConstraint("item_id", "session_id", name=op.f("uq_rating_assignment_item_id_session_id")),
    )
    op.create_index("ix_rating_assignment_session_id", "rating_assignment", ["session_id"])
    op.create_table(
        "arena_request",
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("battle_id", sa.Uuid(), nullable=True),
        sa.ForeignKeyConstraint(["request_id"], ["generation_request.id"], name=op.f("fk_arena_request_request_id")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_arena_request_study_id")),
        sa.ForeignKeyConstraint(["session_id"], ["listening_session.id"], name=op.f("fk_arena_request_session_id")),
        sa.ForeignKeyConstraint(["battle_id"], ["battle.id"], name=op.f("fk_arena_request_battle_id")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_arena_request")),
    )
    op.create_index("ix_arena_request_session_id", "arena_request", ["session_id"])
    op.create_table(
        "clip_score",
        sa.Column("reward_model_id", sa.Uuid(), nullable=False),
        sa.Column("clip_id", sa.Uuid(), nullable=False),
        sa.Column("preference", sa.Double(), nullable=False),
        sa.Column("uncertainty", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["reward_model_id"], ["reward_model.id"], name=op.f("fk_clip_score_reward_model_id")),
        sa.ForeignKeyConstraint(["clip_id"], ["clip.id"], name=op.f("fk_clip_score_clip_id")),
        sa.PrimaryKeyConstraint("reward_model_id", "clip_id", name=op.f("pk_clip_score")),
    )
    for table in APPEND_ONLY:
        _refuse_change(table)


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
    for table in (
        "clip_score", "arena_request", "rating_assignment", "rating_item", "battle_repeat", "invite_use", "consent",
    ):  # fmt: skip
        op.drop_table(table)
    op.drop_index("uq_clip_rating_session_id_clip_id", table_name="clip_rating")
    for table, column in reversed(COLUMNS):
        op.drop_column(table, column.name)
