"""Traffic, decisions and steps."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "traffic",
        sa.Column("level_s", sa.Integer, primary_key=True),
        sa.Column("service", sa.String(512), primary_key=True),
        sa.Column("start_s", sa.BigInteger, primary_key=True),
        sa.Column("samples", sa.Integer, nullable=False),
        sa.Column("rate_mean_rps", sa.Float, nullable=False),
        sa.Column("rate_max_rps", sa.Float, nullable=False),
        sa.Column("desired", sa.Integer, nullable=False),
        sa.Column("ready", sa.Integer, nullable=False),
        sa.Column("last_s", sa.Float, nullable=False),
    )
    op.create_index("traffic_by_age", "traffic", ["level_s", "start_s"])
    op.create_table(
        "decision",
        sa.Column("id", KEY, primary_key=True, autoincrement=True),
        sa.Column("t_s", sa.Float, nullable=False),
        sa.Column("service", sa.String(512), nullable=False),
        sa.Column("digest", sa.String(128), nullable=False),
        sa.Column("solve_id", sa.String(64), nullable=False),
        sa.Column("cost_usd_per_h", sa.Float),
        sa.Column("lower_bound_usd_per_h", sa.Float),
        sa.Column("gap_ratio", sa.Float),
        sa.Column("desired", sa.JSON, nullable=False),
        sa.Column("reasons", sa.JSON, nullable=False),
        sa.UniqueConstraint("service", "digest", "solve_id", name="decision_once"),
    )
    op.create_index("decision_by_time", "decision", ["service", "t_s"])
    op.create_table(
        "step",
        sa.Column("id", KEY, primary_key=True, autoincrement=True),
        sa.Column("t_s", sa.Float, nullable=False),
        sa.Column("service", sa.String(512), nullable=False),
        sa.Column("digest", sa.String(128), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("target", sa.String(512), nullable=False),
        sa.Column("from_replicas", sa.Integer, nullable=False),
        sa.Column("to_replicas", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.UniqueConstraint("service", "digest", "step", "outcome", "epoch", name="step_once"),
    )
    op.create_index("step_by_time", "step", ["service", "t_s"])


def downgrade() -> None:
    """Drop the tables."""
    for name in ("step", "decision", "traffic"):
        op.drop_table(name)
