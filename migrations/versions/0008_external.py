"""Which clips and votes came with which record from elsewhere, so that its licence travels with them."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "external_clip",
        sa.Column("record_id", sa.Uuid(), nullable=False),
        sa.Column("clip_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["record_id"], ["external_record.id"], name=op.f("fk_external_clip_record_id")),
        sa.ForeignKeyConstraint(["clip_id"], ["clip.id"], name=op.f("fk_external_clip_clip_id")),
        sa.PrimaryKeyConstraint("record_id", "clip_id", name=op.f("pk_external_clip")),
    )
    op.create_index("ix_external_clip_clip_id", "external_clip", ["clip_id"])
    op.create_table(
        "external_vote",
        sa.Column("record_id", sa.Uuid(), nullable=False),
        sa.Column("vote_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["record_id"], ["external_record.id"], name=op.f("fk_external_vote_record_id")),
        sa.ForeignKeyConstraint(["vote_id"], ["vote.id"], name=op.f("fk_external_vote_vote_id")),
        sa.PrimaryKeyConstraint("record_id", name=op.f("pk_external_vote")),
        sa.UniqueConstraint("vote_id", name=op.f("uq_external_vote_vote_id")),
    )


def downgrade() -> None:
    op.drop_table("external_vote")
    op.drop_table("external_clip")
