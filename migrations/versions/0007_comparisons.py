"""Comparisons of versions: the clips that were measured, the figures, and the studies in which listeners compared."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

LINKS = (("version", True), ("clip", True), ("metric_result", False), ("study", False))


def upgrade() -> None:
    op.create_table(
        "comparison",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("content_sha256", sa.String(length=64), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("about", sa.JSON(), nullable=False),
        sa.Column("differences", sa.JSON(), nullable=False),
        sa.Column("job_id", sa.String(length=200), nullable=True),
        sa.Column("commit", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparison")),
        sa.UniqueConstraint("name", name=op.f("uq_comparison_name")),
        sa.UniqueConstraint("job_id", name=op.f("uq_comparison_job_id")),
    )
    for other, ordered in LINKS:
        table, column = f"comparison_{other.removesuffix('_result')}", f"{other}_id"
        op.create_table(
            table,
            sa.Column("comparison_id", sa.Uuid(), nullable=False),
            sa.Column(column, sa.Uuid(), nullable=False),
            *([sa.Column("position", sa.Integer(), nullable=False)] if ordered else []),
            sa.ForeignKeyConstraint(["comparison_id"], ["comparison.id"], name=op.f(f"fk_{table}_comparison_id")),
            sa.ForeignKeyConstraint([column], [f"{other}.id"], name=op.f(f"fk_{table}_{column}")),
            sa.PrimaryKeyConstraint("comparison_id", column, name=op.f(f"pk_{table}")),
        )


def downgrade() -> None:
    for other, _ in reversed(LINKS):
        op.drop_table(f"comparison_{other.removesuffix('_result')}")
    op.drop_table("comparison")
