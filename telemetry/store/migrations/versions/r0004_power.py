"""Windows of drawn power."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; its key begins with what it is asked and pruned by, so that no index stands beside it."""
    op.create_table(
        "power",
        sa.Column("level_s", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("start_s", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("domain", sa.String(512), primary_key=True),
        sa.Column("node", sa.String(512), primary_key=True),
        sa.Column("energy_j", sa.Float, nullable=False),
        sa.Column("covered_s", sa.Float, nullable=False),
        sa.Column("max_w", sa.Float, nullable=False),
        sa.Column("samples", sa.Integer, nullable=False),
        sa.Column("first_s", sa.Float, nullable=False),
        sa.Column("last_s", sa.Float, nullable=False),
        sa.Column("theta_max", sa.Float),
        sa.Column("capped_s", sa.Float),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("power")
