"""Entries for the tests of the history, and ways to look at a store from outside."""

import time
from collections.abc import Callable

from sqlalchemy import text

from telemetry.store.store import Decision, StepDone, Store, TrafficSample


def sample(t_s: float, rate: float = 1.0, service: str = "a/b") -> TrafficSample:
    return TrafficSample(service=service, t_s=t_s, rate_rps=rate, desired=3, ready=2)


def decision(digest: str = "d1", t_s: float = 5.0, service: str = "a/b") -> Decision:
    return Decision(
        service=service,
        t_s=t_s,
        digest=digest,
        solve_id="s",
        desired={"a10g": 3},
        reasons=("first plan",),
        cost_usd_per_h=1.25,
        lower_bound_usd_per_h=1.0,
        gap_ratio=0.2,
        status="optimal",
    )


def step(number: int = 0, outcome: str = "written") -> StepDone:
    return StepDone(
        service="a/b",
        t_s=6.0,
        digest="d1",
        step=number,
        outcome=outcome,
        target="Deployment chat",
        from_replicas=0,
        to_replicas=3,
        epoch=1,
    )


def emptied(store: Store) -> Store:
    """Take everything out of a PostgreSQL database."""
    with store.engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    return store


def eventually(what: Callable[[], object], *, within_s: float = 60.0) -> bool:
    """Wait until something holds."""
    deadline = time.monotonic() + within_s
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
