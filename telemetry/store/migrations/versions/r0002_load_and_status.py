"""What engines had to do, what became of a solve, and indexes to prune by."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

LOAD = ("running_max", "waiting_max", "ttft_p99_max_s")


def upgrade() -> None:
    """Add columns that may be empty."""
    for name in LOAD:
        op.add_column("traffic", sa.Column(name, sa.Float))
    op.add_column("decision", sa.Column("status", sa.String(32)))
    op.create_index("decision_by_age", "decision", ["t_s"])
    op.create_index("step_by_age", "step", ["t_s"])


def downgrade() -> None:
    """Take them away."""
    op.drop_index("step_by_age", "step")
    op.drop_index("decision_by_age", "decision")
    with op.batch_alter_table("decision") as table:
        table.drop_column("status")
    with op.batch_alter_table("traffic") as table:
        for name in LOAD:
            table.drop_column(name)
