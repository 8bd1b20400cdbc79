"""A rating study's clip may be passed over, or reported as broken, and then has no rating on any scale."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

RULE = "outcome = 'RATED' OR (outcome IN ('SKIP', 'FAULT') AND quality IS NULL AND relevance IS NULL AND mos IS NULL)"


def upgrade() -> None:
    # With its check in the column's own definition, SQLite adds it in place: the table keeps its triggers.
    op.execute(
        "ALTER TABLE clip_rating ADD COLUMN outcome VARCHAR(20) DEFAULT 'RATED' NOT NULL "
        f"CONSTRAINT ck_clip_rating_outcome CHECK ({RULE})"
    )


def downgrade() -> None:
    # Nothing is deleted from a table that only grows: what was passed over stays, as a rating without any answer.
    op.drop_column("clip_rating", "outcome")
