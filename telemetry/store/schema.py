"""Tables of the history: traffic and power rolled up by time, decisions, steps of actuation, windows of expert loads.

It exists apart from the store so that migrations are checked against one definition. Times are seconds since 1970.
"""

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, Index, Integer, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAME = String(512)
KEY = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts only INTEGER keys by itself."""
DECISION_ONCE = ("service", "digest", "solve_id")
STEP_ONCE = ("service", "digest", "step", "outcome", "epoch")


class Base(DeclarativeBase):
    """All tables."""


class TrafficRow(Base):
    """Traffic of one service in one window of ``level_s`` seconds."""

    __tablename__ = "traffic"
    level_s: Mapped[int] = mapped_column(Integer, primary_key=True)
    service: Mapped[str] = mapped_column(NAME, primary_key=True)
    start_s: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    samples: Mapped[int] = mapped_column(Integer)
    rate_mean_rps: Mapped[float] = mapped_column(Float)
    rate_max_rps: Mapped[float] = mapped_column(Float)
    desired: Mapped[int] = mapped_column(Integer)
    """Replicas asked for at the last sample."""
    ready: Mapped[int] = mapped_column(Integer)
    last_s: Mapped[float] = mapped_column(Float)
    """Time of the last sample taken in: in the finest windows, one that is not younger is a repetition."""
    running_max: Mapped[float | None] = mapped_column(Float)
    """Requests that engines worked on; largest sum at one time."""
    waiting_max: Mapped[float | None] = mapped_column(Float)
    ttft_p99_max_s: Mapped[float | None] = mapped_column(Float)
    """Percentiles cannot be averaged: the largest that was seen."""

    __table_args__ = (Index("traffic_by_age", "level_s", "start_s"),)


class DecisionRow(Base):
    """One Plan that was made."""

    __tablename__ = "decision"
    id: Mapped[int] = mapped_column(KEY, primary_key=True, autoincrement=True)
    t_s: Mapped[float] = mapped_column(Float)
    service: Mapped[str] = mapped_column(NAME)
    digest: Mapped[str] = mapped_column(String(128))
    solve_id: Mapped[str] = mapped_column(String(64))
    cost_usd_per_h: Mapped[float | None] = mapped_column(Float)
    lower_bound_usd_per_h: Mapped[float | None] = mapped_column(Float)
    gap_ratio: Mapped[float | None] = mapped_column(Float)
    desired: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Replicas by variant."""
    reasons: Mapped[list[Any]] = mapped_column(JSON)
    status: Mapped[str | None] = mapped_column(String(32))
    """What became of the solve: a `solver.domain.gpu_mix.PlanStatus`."""

    __table_args__ = (
        UniqueConstraint(*DECISION_ONCE, name="decision_once"),
        Index("decision_by_time", "service", "t_s"),
        Index("decision_by_age", "t_s"),
    )


class StepRow(Base):
    """One step of a Plan that was written or seen done."""

    __tablename__ = "step"
    id: Mapped[int] = mapped_column(KEY, primary_key=True, autoincrement=True)
    t_s: Mapped[float] = mapped_column(Float)
    service: Mapped[str] = mapped_column(NAME)
    digest: Mapped[str] = mapped_column(String(128))
    step: Mapped[int] = mapped_column(Integer)
    outcome: Mapped[str] = mapped_column(String(32))
    target: Mapped[str] = mapped_column(NAME)
    from_replicas: Mapped[int] = mapped_column(Integer)
    to_replicas: Mapped[int] = mapped_column(Integer)
    epoch: Mapped[int] = mapped_column(Integer)
    """Term of the leader that did it."""

    __table_args__ = (
        UniqueConstraint(*STEP_ONCE, name="step_once"),
        Index("step_by_time", "service", "t_s"),
        Index("step_by_age", "t_s"),
    )


class ExpertWindowRow(Base):
    """Routed tokens by layer and expert in one window of a recording, packed (`telemetry.store.expert_windows`)."""

    __tablename__ = "expert_window"
    recording: Mapped[str] = mapped_column(NAME, primary_key=True)
    end_s: Mapped[float] = mapped_column(Float, primary_key=True)
    start_s: Mapped[float] = mapped_column(Float)
    model: Mapped[str] = mapped_column(NAME)
    layers: Mapped[int] = mapped_column(Integer)
    experts: Mapped[int] = mapped_column(Integer)
    load: Mapped[bytes] = mapped_column(LargeBinary)
    transitions: Mapped[bytes | None] = mapped_column(LargeBinary)

    __table_args__ = (Index("expert_window_by_age", "end_s"),)


class PowerRow(Base):
    """What a node drew in one window of ``level_s`` seconds, or, with no name, its domain."""

    __tablename__ = "power"
    level_s: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    start_s: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    domain: Mapped[str] = mapped_column(NAME, primary_key=True)
    node: Mapped[str] = mapped_column(NAME, primary_key=True)
    energy_j: Mapped[float] = mapped_column(Float)
    """Over the seconds that are covered: only sums can be rolled up again."""
    covered_s: Mapped[float] = mapped_column(Float)
    max_w: Mapped[float] = mapped_column(Float)
    samples: Mapped[int] = mapped_column(Integer)
    first_s: Mapped[float] = mapped_column(Float)
    last_s: Mapped[float] = mapped_column(Float)
    """End of the last sample: in the finest windows, what begins earlier is a repetition."""
    theta_max: Mapped[float | None] = mapped_column(Float)
    capped_s: Mapped[float | None] = mapped_column(Float)

    __table_args__ = ({"sqlite_with_rowid": False},)
