"""The first schema: prompts, versions, clips, studies, votes and what is made of them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = ("clip", "battle", "listen_event", "vote", "vote_axis", "clip_rating", "vote_flag", "audit_log")


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("role IN ('organiser', 'admin')", name=op.f("ck_account_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account")),
        sa.UniqueConstraint("name", name=op.f("uq_account_name")),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("action", sa.String(length=200), nullable=False),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("before_sha256", sa.String(length=64), nullable=True),
        sa.Column("after_sha256", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_table(
        "external_record",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("source", sa.String(length=200), nullable=False),
        sa.Column("source_id", sa.String(length=200), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("licence", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_external_record")),
        sa.UniqueConstraint("source", "source_id", name=op.f("uq_external_record_source_source_id")),
    )
    op.create_table(
        "generation_config",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("temperature", sa.Double(), nullable=False),
        sa.Column("top_k", sa.Integer(), nullable=False),
        sa.Column("guidance", sa.Double(), nullable=False),
        sa.Column("clip_seconds", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_generation_config")),
        sa.UniqueConstraint("sha256", name=op.f("uq_generation_config_sha256")),
    )
    op.create_table(
        "leaderboard_run",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("method", sa.String(length=40), nullable=False),
        sa.Column("method_version", sa.String(length=40), nullable=False),
        sa.Column("slice", sa.JSON(), nullable=False),
        sa.Column("tie_rule", sa.String(length=40), nullable=False),
        sa.Column("both_bad_rule", sa.String(length=40), nullable=False),
        sa.Column("side_coefficient", sa.Double(), nullable=True),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leaderboard_run")),
    )
    op.create_table(
        "prompt",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("source", sa.String(length=200), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column(
            "split",
            sa.Enum("train", "valid", "test", "leaderboard", name="split", native_enum=False, length=20),
            nullable=False,
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("split IN ('train', 'valid', 'test', 'leaderboard')", name=op.f("ck_prompt_split")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompt")),
        sa.UniqueConstraint("sha256", name=op.f("uq_prompt_sha256")),
    )
    op.create_index(op.f("ix_prompt_source"), "prompt", ["source"], unique=False)
    op.create_index(op.f("ix_prompt_split"), "prompt", ["split"], unique=False)
    op.create_table(
        "prompt_set",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompt_set")),
        sa.UniqueConstraint("name", name=op.f("uq_prompt_set_name")),
    )
    op.create_table(
        "rater",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("pseudonym", sa.String(length=64), nullable=True),
        sa.Column("cohort", sa.Text(), nullable=True),
        sa.Column("consent_version", sa.Text(), nullable=False),
        sa.Column(
            "kind", sa.Enum("human", "simulated", name="raterkind", native_enum=False, length=20), nullable=False
        ),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('human', 'simulated')", name=op.f("ck_rater_kind")),
        sa.CheckConstraint("status IN ('active', 'withdrawn', 'blocked')", name=op.f("ck_rater_status")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rater")),
        sa.UniqueConstraint("pseudonym", name=op.f("uq_rater_pseudonym")),
    )
    op.create_table(
        "snapshot",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("policy", sa.JSON(), nullable=False),
        sa.Column("high_water_mark", sa.Text(), nullable=True),
        sa.Column("content_sha256", sa.String(length=64), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("licence", sa.Text(), nullable=True),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshot")),
        sa.UniqueConstraint("name", name=op.f("uq_snapshot_name")),
    )
    op.create_index(op.f("ix_snapshot_content_sha256"), "snapshot", ["content_sha256"], unique=False)
    op.create_table(
        "generation_request",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("prompt_id", sa.Uuid(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('waiting', 'running', 'done', 'failed')", name=op.f("ck_generation_request_state")
        ),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_generation_request_prompt_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_generation_request")),
    )
    op.create_index(op.f("ix_generation_request_state"), "generation_request", ["state"], unique=False)
    op.create_table(
        "prompt_set_member",
        sa.Column("prompt_set_id", sa.Uuid(), nullable=False),
        sa.Column("prompt_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_prompt_set_member_prompt_id")),
        sa.ForeignKeyConstraint(["prompt_set_id"], ["prompt_set.id"], name=op.f("fk_prompt_set_member_prompt_set_id")),
        sa.PrimaryKeyConstraint("prompt_set_id", "prompt_id", name=op.f("pk_prompt_set_member")),
    )
    op.create_table(
        "study",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("prompt_set_id", sa.Uuid(), nullable=True),
        sa.Column("questions", sa.JSON(), nullable=False),
        sa.Column("minimum_listening_seconds", sa.Double(), nullable=False),
        sa.Column("gold_share", sa.Double(), nullable=False),
        sa.Column("repeat_share", sa.Double(), nullable=False),
        sa.Column("reveal", sa.Boolean(), nullable=False),
        sa.Column(
            "rater_kind", sa.Enum("human", "simulated", name="raterkind", native_enum=False, length=20), nullable=False
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("rater_kind IN ('human', 'simulated')", name=op.f("ck_study_rater_kind")),
        sa.CheckConstraint(
            "gold_share >= 0 AND repeat_share >= 0 AND gold_share + repeat_share <= 1", name=op.f("ck_study_shares")
        ),
        sa.CheckConstraint("minimum_listening_seconds >= 0", name=op.f("ck_study_minimum_listening_seconds")),
        sa.ForeignKeyConstraint(["prompt_set_id"], ["prompt_set.id"], name=op.f("fk_study_prompt_set_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study")),
        sa.UniqueConstraint("name", name=op.f("uq_study_name")),
    )
    op.create_table(
        "train_run",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("snapshot_id", sa.Uuid(), nullable=True),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("artefact_sha256", sa.String(length=64), nullable=True),
        sa.Column("artefact_uri", sa.Text(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("job_id", sa.String(length=200), nullable=True),
        sa.Column("commit", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["snapshot_id"], ["snapshot.id"], name=op.f("fk_train_run_snapshot_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_train_run")),
        sa.UniqueConstraint("job_id", name=op.f("uq_train_run_job_id")),
    )
    op.create_index(op.f("ix_train_run_kind"), "train_run", ["kind"], unique=False)
    op.create_table(
        "withdrawal",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("rater_id", sa.Uuid(), nullable=False),
        sa.Column("versions_reached", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["rater_id"], ["rater.id"], name=op.f("fk_withdrawal_rater_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_withdrawal")),
        sa.UniqueConstraint("rater_id", name=op.f("uq_withdrawal_rater_id")),
    )
    op.create_table(
        "invite",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_invite_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invite")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_invite_token_sha256")),
    )
    op.create_index(op.f("ix_invite_study_id"), "invite", ["study_id"], unique=False)
    op.create_table(
        "listening_session",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("rater_id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("user_agent_family", sa.Text(), nullable=True),
        sa.Column("audio_route", sa.Text(), nullable=True),
        sa.Column("headphone_check", sa.Boolean(), nullable=True),
        sa.Column("app_commit", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["rater_id"], ["rater.id"], name=op.f("fk_listening_session_rater_id")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_listening_session_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_listening_session")),
    )
    op.create_index(op.f("ix_listening_session_rater_id"), "listening_session", ["rater_id"], unique=False)
    op.create_index(op.f("ix_listening_session_study_id"), "listening_session", ["study_id"], unique=False)
    op.create_table(
        "reward_model",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("train_run_id", sa.Uuid(), nullable=False),
        sa.Column("encoder", sa.Text(), nullable=False),
        sa.Column("heads", sa.JSON(), nullable=False),
        sa.Column("calibration", sa.JSON(), nullable=False),
        sa.Column("artefact_sha256", sa.String(length=64), nullable=False),
        sa.Column("artefact_uri", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["train_run_id"], ["train_run.id"], name=op.f("fk_reward_model_train_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reward_model")),
        sa.UniqueConstraint("name", name=op.f("uq_reward_model_name")),
    )
    op.create_table(
        "version",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("base_sha256", sa.String(length=64), nullable=False),
        sa.Column("adapter_sha256", sa.String(length=64), nullable=True),
        sa.Column("adapter_uri", sa.Text(), nullable=True),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("train_run_id", sa.Uuid(), nullable=True),
        sa.Column("commit", sa.Text(), nullable=True),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column(
            "status",
            sa.Enum("candidate", "champion", "retired", name="versionstatus", native_enum=False, length=20),
            nullable=False,
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("status IN ('candidate', 'champion', 'retired')", name=op.f("ck_version_status")),
        sa.ForeignKeyConstraint(["parent_id"], ["version.id"], name=op.f("fk_version_parent_id")),
        sa.ForeignKeyConstraint(["train_run_id"], ["train_run.id"], name=op.f("fk_version_train_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_version")),
        sa.UniqueConstraint("name", name=op.f("uq_version_name")),
    )
    op.create_table(
        "clip",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("prompt_id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("generation_config_id", sa.Uuid(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("audio_sha256", sa.String(length=64), nullable=False),
        sa.Column("codes_sha256", sa.String(length=64), nullable=True),
        sa.Column("codes_reencoded", sa.Boolean(), nullable=False),
        sa.Column(
            "source", sa.Enum("generated", "external", name="clipsource", native_enum=False, length=20), nullable=False
        ),
        sa.Column("sample_rate_hz", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("lufs", sa.Double(), nullable=True),
        sa.Column("true_peak_dbtp", sa.Double(), nullable=False),
        sa.Column("silence_ratio", sa.Double(), nullable=False),
        sa.Column("clipping_ratio", sa.Double(), nullable=False),
        sa.Column("generation_seconds", sa.Double(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("source IN ('generated', 'external')", name=op.f("ck_clip_source")),
        sa.CheckConstraint("seconds > 0", name=op.f("ck_clip_seconds")),
        sa.ForeignKeyConstraint(
            ["generation_config_id"], ["generation_config.id"], name=op.f("fk_clip_generation_config_id")
        ),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_clip_prompt_id")),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name=op.f("fk_clip_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clip")),
        sa.UniqueConstraint(
            "prompt_id",
            "version_id",
            "generation_config_id",
            "seed",
            name=op.f("uq_clip_prompt_id_version_id_generation_config_id_seed"),
        ),
    )
    op.create_index(op.f("ix_clip_audio_sha256"), "clip", ["audio_sha256"], unique=False)
    op.create_index(op.f("ix_clip_version_id"), "clip", ["version_id"], unique=False)
    op.create_table(
        "gate_decision",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("candidate_id", sa.Uuid(), nullable=False),
        sa.Column("champion_id", sa.Uuid(), nullable=True),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("outcome", sa.String(length=20), nullable=False),
        sa.Column("alpha_spent", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("outcome IN ('promoted', 'rejected', 'undecided')", name=op.f("ck_gate_decision_outcome")),
        sa.CheckConstraint("alpha_spent >= 0 AND alpha_spent <= 1", name=op.f("ck_gate_decision_alpha_spent")),
        sa.ForeignKeyConstraint(["candidate_id"], ["version.id"], name=op.f("fk_gate_decision_candidate_id")),
        sa.ForeignKeyConstraint(["champion_id"], ["version.id"], name=op.f("fk_gate_decision_champion_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gate_decision")),
    )
    op.create_index(op.f("ix_gate_decision_candidate_id"), "gate_decision", ["candidate_id"], unique=False)
    op.create_table(
        "leaderboard_row",
        sa.Column("leaderboard_run_id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("rating", sa.Double(), nullable=False),
        sa.Column("rating_low", sa.Double(), nullable=False),
        sa.Column("rating_high", sa.Double(), nullable=False),
        sa.Column("rank_low", sa.Integer(), nullable=False),
        sa.Column("rank_high", sa.Integer(), nullable=False),
        sa.Column("votes", sa.Integer(), nullable=False),
        sa.Column("wins", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("ties", sa.Integer(), nullable=False),
        sa.Column("provisional", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["leaderboard_run_id"], ["leaderboard_run.id"], name=op.f("fk_leaderboard_row_leaderboard_run_id")
        ),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name=op.f("fk_leaderboard_row_version_id")),
        sa.PrimaryKeyConstraint("leaderboard_run_id", "version_id", name=op.f("pk_leaderboard_row")),
    )
    op.create_table(
        "metric_result",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("metric", sa.String(length=80), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("value_low", sa.Double(), nullable=True),
        sa.Column("value_high", sa.Double(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name=op.f("fk_metric_result_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metric_result")),
    )
    op.create_index(op.f("ix_metric_result_version_id"), "metric_result", ["version_id"], unique=False)
    op.create_table(
        "study_version",
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_study_version_study_id")),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name=op.f("fk_study_version_version_id")),
        sa.PrimaryKeyConstraint("study_id", "version_id", name=op.f("pk_study_version")),
    )
    op.create_table(
        "battle",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("prompt_id", sa.Uuid(), nullable=False),
        sa.Column("clip_1_id", sa.Uuid(), nullable=False),
        sa.Column("clip_2_id", sa.Uuid(), nullable=False),
        sa.Column(
            "kind",
            sa.Enum("normal", "gold", "repeat", "anchor", name="battlekind", native_enum=False, length=20),
            nullable=False,
        ),
        sa.Column("expected_winner", sa.Integer(), nullable=True),
        sa.Column("sampler_version", sa.String(length=40), nullable=False),
        sa.Column("propensity", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('normal', 'gold', 'repeat', 'anchor')", name=op.f("ck_battle_kind")),
        sa.CheckConstraint("clip_1_id <> clip_2_id", name=op.f("ck_battle_two_clips")),
        sa.CheckConstraint("expected_winner IN (1, 2)", name=op.f("ck_battle_expected_winner")),
        sa.CheckConstraint("propensity > 0 AND propensity <= 1", name=op.f("ck_battle_propensity")),
        sa.ForeignKeyConstraint(["clip_1_id"], ["clip.id"], name=op.f("fk_battle_clip_1_id")),
        sa.ForeignKeyConstraint(["clip_2_id"], ["clip.id"], name=op.f("fk_battle_clip_2_id")),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name=op.f("fk_battle_prompt_id")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_battle_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_battle")),
    )
    op.create_index(op.f("ix_battle_study_id"), "battle", ["study_id"], unique=False)
    op.create_table(
        "clip_rating",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("clip_id", sa.Uuid(), nullable=False),
        sa.Column("quality", sa.Integer(), nullable=True),
        sa.Column("relevance", sa.Integer(), nullable=True),
        sa.Column("mos", sa.Double(), nullable=True),
        sa.Column("idempotency_key", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("mos BETWEEN 1 AND 5", name=op.f("ck_clip_rating_mos")),
        sa.CheckConstraint("quality BETWEEN 1 AND 100", name=op.f("ck_clip_rating_quality")),
        sa.CheckConstraint("relevance BETWEEN 1 AND 100", name=op.f("ck_clip_rating_relevance")),
        sa.ForeignKeyConstraint(["clip_id"], ["clip.id"], name=op.f("fk_clip_rating_clip_id")),
        sa.ForeignKeyConstraint(["session_id"], ["listening_session.id"], name=op.f("fk_clip_rating_session_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clip_rating")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_clip_rating_idempotency_key")),
    )
    op.create_index(op.f("ix_clip_rating_clip_id"), "clip_rating", ["clip_id"], unique=False)
    op.create_table(
        "rendition",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("clip_id", sa.Uuid(), nullable=False),
        sa.Column("codec", sa.String(length=20), nullable=False),
        sa.Column("gain_db", sa.Double(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("token", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["clip_id"], ["clip.id"], name=op.f("fk_rendition_clip_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rendition")),
        sa.UniqueConstraint("clip_id", "codec", "gain_db", name=op.f("uq_rendition_clip_id_codec_gain_db")),
        sa.UniqueConstraint("token", name=op.f("uq_rendition_token")),
    )
    op.create_table(
        "assignment",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("battle_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("left_is_clip_1", sa.Boolean(), nullable=False),
        sa.Column("first_side", sa.Enum("left", "right", name="side", native_enum=False, length=20), nullable=False),
        sa.Column("nonce", sa.String(length=64), nullable=False),
        sa.Column("served_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("first_side IN ('left', 'right')", name=op.f("ck_assignment_first_side")),
        sa.ForeignKeyConstraint(["battle_id"], ["battle.id"], name=op.f("fk_assignment_battle_id")),
        sa.ForeignKeyConstraint(["session_id"], ["listening_session.id"], name=op.f("fk_assignment_session_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assignment")),
        sa.UniqueConstraint("battle_id", "session_id", name=op.f("uq_assignment_battle_id_session_id")),
        sa.UniqueConstraint("nonce", name=op.f("uq_assignment_nonce")),
    )
    op.create_index(op.f("ix_assignment_session_id"), "assignment", ["session_id"], unique=False)
    op.create_table(
        "listen_event",
        sa.Column("assignment_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("side", sa.Enum("left", "right", name="side", native_enum=False, length=20), nullable=True),
        sa.Column("type", sa.String(length=20), nullable=False),
        sa.Column("media_seconds", sa.Double(), nullable=True),
        sa.Column("client_ms", sa.BigInteger(), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("side IN ('left', 'right')", name=op.f("ck_listen_event_side")),
        sa.CheckConstraint(
            "type IN ('play', 'pause', 'seek', 'switch', 'loop', 'ended', 'blur', 'stall')",
            name=op.f("ck_listen_event_type"),
        ),
        sa.CheckConstraint("seq >= 0", name=op.f("ck_listen_event_seq")),
        sa.ForeignKeyConstraint(["assignment_id"], ["assignment.id"], name=op.f("fk_listen_event_assignment_id")),
        sa.PrimaryKeyConstraint("assignment_id", "seq", name=op.f("pk_listen_event")),
    )
    op.create_table(
        "vote",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("assignment_id", sa.Uuid(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column(
            "outcome",
            sa.Enum("A", "B", "TIE", "BOTH_BAD", "SKIP", "FAULT", name="outcome", native_enum=False, length=20),
            nullable=False,
        ),
        sa.Column("confidence", sa.Integer(), nullable=True),
        sa.Column("heard_left_seconds", sa.Double(), nullable=False),
        sa.Column("heard_right_seconds", sa.Double(), nullable=False),
        sa.Column("switches", sa.Integer(), nullable=False),
        sa.Column("decision_ms", sa.BigInteger(), nullable=True),
        sa.Column("idempotency_key", sa.String(length=200), nullable=False),
        sa.Column("previous_hash", sa.String(length=64), nullable=False),
        sa.Column("row_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("outcome IN ('A', 'B', 'TIE', 'BOTH_BAD', 'SKIP', 'FAULT')", name=op.f("ck_vote_outcome")),
        sa.CheckConstraint("confidence BETWEEN 1 AND 3", name=op.f("ck_vote_confidence")),
        sa.CheckConstraint("heard_left_seconds >= 0 AND heard_right_seconds >= 0", name=op.f("ck_vote_heard")),
        sa.CheckConstraint("revision >= 1", name=op.f("ck_vote_revision")),
        sa.ForeignKeyConstraint(["assignment_id"], ["assignment.id"], name=op.f("fk_vote_assignment_id")),
        sa.ForeignKeyConstraint(["session_id"], ["listening_session.id"], name=op.f("fk_vote_session_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vote")),
        sa.UniqueConstraint("assignment_id", "revision", name=op.f("uq_vote_assignment_id_revision")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_vote_idempotency_key")),
        sa.UniqueConstraint("row_hash", name=op.f("uq_vote_row_hash")),
        sa.UniqueConstraint("session_id", "position", name=op.f("uq_vote_session_id_position")),
    )
    op.create_table(
        "snapshot_member",
        sa.Column("snapshot_id", sa.Uuid(), nullable=False),
        sa.Column("vote_id", sa.Uuid(), nullable=False),
        sa.Column(
            "split",
            sa.Enum("train", "valid", "test", "leaderboard", name="split", native_enum=False, length=20),
            nullable=False,
        ),
        sa.CheckConstraint("split IN ('train', 'valid', 'test', 'leaderboard')", name=op.f("ck_snapshot_member_split")),
        sa.ForeignKeyConstraint(["snapshot_id"], ["snapshot.id"], name=op.f("fk_snapshot_member_snapshot_id")),
        sa.ForeignKeyConstraint(["vote_id"], ["vote.id"], name=op.f("fk_snapshot_member_vote_id")),
        sa.PrimaryKeyConstraint("snapshot_id", "vote_id", name=op.f("pk_snapshot_member")),
    )
    op.create_index(op.f("ix_snapshot_member_vote_id"), "snapshot_member", ["vote_id"], unique=False)
    op.create_table(
        "vote_axis",
        sa.Column("vote_id", sa.Uuid(), nullable=False),
        sa.Column(
            "axis", sa.Enum("text_adherence", "quality", name="axis", native_enum=False, length=20), nullable=False
        ),
        sa.Column("value", sa.Integer(), nullable=False),
        sa.CheckConstraint("axis IN ('text_adherence', 'quality')", name=op.f("ck_vote_axis_axis")),
        sa.CheckConstraint("value BETWEEN -2 AND 2", name=op.f("ck_vote_axis_value")),
        sa.ForeignKeyConstraint(["vote_id"], ["vote.id"], name=op.f("fk_vote_axis_vote_id")),
        sa.PrimaryKeyConstraint("vote_id", "axis", name=op.f("pk_vote_axis")),
    )
    op.create_table(
        "vote_comment",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("vote_id", sa.Uuid(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("after_reveal", sa.Boolean(), nullable=False),
        sa.Column("side", sa.Enum("left", "right", name="side", native_enum=False, length=20), nullable=True),
        sa.Column("start_seconds", sa.Double(), nullable=True),
        sa.Column("end_seconds", sa.Double(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("side IN ('left', 'right')", name=op.f("ck_vote_comment_side")),
        sa.ForeignKeyConstraint(["vote_id"], ["vote.id"], name=op.f("fk_vote_comment_vote_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vote_comment")),
    )
    op.create_index(op.f("ix_vote_comment_vote_id"), "vote_comment", ["vote_id"], unique=False)
    op.create_table(
        "vote_flag",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("vote_id", sa.Uuid(), nullable=False),
        sa.Column("detector", sa.String(length=200), nullable=False),
        sa.Column("detector_version", sa.String(length=40), nullable=False),
        sa.Column("verdict", sa.String(length=20), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("verdict IN ('ok', 'suspect', 'invalid', 'unknown')", name=op.f("ck_vote_flag_verdict")),
        sa.ForeignKeyConstraint(["vote_id"], ["vote.id"], name=op.f("fk_vote_flag_vote_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vote_flag")),
    )
    op.create_index(op.f("ix_vote_flag_vote_id"), "vote_flag", ["vote_id"], unique=False)
    _create_triggers()


def _create_triggers() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION attune_refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
        )
        for table in APPEND_ONLY:
            op.execute(
                f"CREATE TRIGGER {table}_refuses_change BEFORE UPDATE OR DELETE ON {table} "
                "FOR EACH ROW EXECUTE FUNCTION attune_refuse_change()"
            )
            op.execute(
                f"CREATE TRIGGER {table}_refuses_truncate BEFORE TRUNCATE ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION attune_refuse_change()"
            )
        return
    for table in APPEND_ONLY:
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_refuses_{change.lower()} BEFORE {change} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )


def downgrade() -> None:
    # Dropping a table drops its triggers.
    op.drop_index(op.f("ix_vote_flag_vote_id"), table_name="vote_flag")
    op.drop_table("vote_flag")
    op.drop_index(op.f("ix_vote_comment_vote_id"), table_name="vote_comment")
    op.drop_table("vote_comment")
    op.drop_table("vote_axis")
    op.drop_index(op.f("ix_snapshot_member_vote_id"), table_name="snapshot_member")
    op.drop_table("snapshot_member")
    op.drop_table("vote")
    op.drop_table("listen_event")
    op.drop_index(op.f("ix_assignment_session_id"), table_name="assignment")
    op.drop_table("assignment")
    op.drop_table("rendition")
    op.drop_index(op.f("ix_clip_rating_clip_id"), table_name="clip_rating")
    op.drop_table("clip_rating")
    op.drop_index(op.f("ix_battle_study_id"), table_name="battle")
    op.drop_table("battle")
    op.drop_table("study_version")
    op.drop_index(op.f("ix_metric_result_version_id"), table_name="metric_result")
    op.drop_table("metric_result")
    op.drop_table("leaderboard_row")
    op.drop_index(op.f("ix_gate_decision_candidate_id"), table_name="gate_decision")
    op.drop_table("gate_decision")
    op.drop_index(op.f("ix_clip_version_id"), table_name="clip")
    op.drop_index(op.f("ix_clip_audio_sha256"), table_name="clip")
    op.drop_table("clip")
    op.drop_table("version")
    op.drop_table("reward_model")
    op.drop_index(op.f("ix_listening_session_study_id"), table_name="listening_session")
    op.drop_index(op.f("ix_listening_session_rater_id"), table_name="listening_session")
    op.drop_table("listening_session")
    op.drop_index(op.f("ix_invite_study_id"), table_name="invite")
    op.drop_table("invite")
    op.drop_table("withdrawal")
    op.drop_index(op.f("ix_train_run_kind"), table_name="train_run")
    op.drop_table("train_run")
    op.drop_table("study")
    op.drop_table("prompt_set_member")
    op.drop_index(op.f("ix_generation_request_state"), table_name="generation_request")
    op.drop_table("generation_request")
    op.drop_index(op.f("ix_snapshot_content_sha256"), table_name="snapshot")
    op.drop_table("snapshot")
    op.drop_table("rater")
    op.drop_table("prompt_set")
    op.drop_index(op.f("ix_prompt_split"), table_name="prompt")
    op.drop_index(op.f("ix_prompt_source"), table_name="prompt")
    op.drop_table("prompt")
    op.drop_table("leaderboard_run")
    op.drop_table("generation_config")
    op.drop_table("external_record")
    op.drop_table("audit_log")
    op.drop_table("account")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION attune_refuse_change()")
