"""Windows of expert loads."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "expert_window",
        sa.Column("recording", sa.String(512), primary_key=True),
        sa.Column("end_s", sa.Float, primary_key=True),
        sa.Column("start_s", sa.Float, nullable=False),
        sa.Column("model", sa.String(512), nullable=False),
        sa.Column("layers", sa.Integer, nullable=False),
        sa.Column("experts", sa.Integer, nullable=False),
        sa.Column("load", sa.LargeBinary, nullable=False),
        sa.Column("transitions", sa.LargeBinary),
    )
    op.create_index("expert_window_by_age", "expert_window", ["end_s"])


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("expert_window")
