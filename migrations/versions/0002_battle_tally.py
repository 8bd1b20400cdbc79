"""A tally of answered assignments per battle, so that the least voted battle is found without counting votes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "battle_tally",
        sa.Column("battle_id", sa.Uuid(), nullable=False),
        sa.Column("study_id", sa.Uuid(), nullable=False),
        sa.Column("votes", sa.Integer(), nullable=False),
        sa.CheckConstraint("votes >= 0", name=op.f("ck_battle_tally_votes")),
        sa.ForeignKeyConstraint(["battle_id"], ["battle.id"], name=op.f("fk_battle_tally_battle_id")),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_battle_tally_study_id")),
        sa.PrimaryKeyConstraint("battle_id", name=op.f("pk_battle_tally")),
    )
    op.create_index("ix_battle_tally_study_id_votes_battle_id", "battle_tally", ["study_id", "votes", "battle_id"])
    # Corrections are further revisions of an assignment that was counted already.
    op.execute(
        "INSERT INTO battle_tally (battle_id, study_id, votes) "
        "SELECT battle.id, battle.study_id, count(vote.id) FROM battle "
        "LEFT JOIN assignment ON assignment.battle_id = battle.id "
        "LEFT JOIN vote ON vote.assignment_id = assignment.id AND vote.revision = 1 "
        "GROUP BY battle.id, battle.study_id"
    )


def downgrade() -> None:
    op.drop_index("ix_battle_tally_study_id_votes_battle_id", table_name="battle_tally")
    op.drop_table("battle_tally")
