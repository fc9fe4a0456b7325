"""What the engine refuses, whom it rejects, and that it always comes to an end."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from simulator.engine.run import LARGEST_TOKENS, simulate
from simulator.fleet import (
    EventKind,
    Fleet,
    FleetEvent,
    InstanceKind,
    Links,
    Pool,
    Role,
    RouterKind,
    Scheduler,
)
from simulator.record import RejectReason, RequestStatus
from solver.domain.errors import InputError
from solver.domain.trace import PrefixBlocks, Requests
from tests.simulator.plain_engine import PlainEngine
from tests.simulator.random_fleets import Scenario, scenarios
from tests.simulator.simple_fleets import LARGEST_BATCH, fleet, kind, pool, requests, table

ONE = requests((0.0, 10, 5))
SHAPE = (LARGEST_BATCH + 1, 1)


def scheduler(**changes: Any) -> Fleet:
    return fleet(scheduler=Scheduler(**{"max_batch": 8, "max_batch_tokens": 2048, **changes}))


def of(built: InstanceKind) -> Fleet:
    return fleet(kinds=(built,))


def cap(**changes: Any) -> Fleet:
    values = {"time_s": 1.0, "kind": EventKind.CAP, "pool": 0, "index": 0, "instance_kind": 0}
    return fleet(events=(FleetEvent(**{**values, **changes}),))


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda: fleet(pool(count=0)), "the fleet has no instance"),
        (lambda: fleet(pool(count=40_000)), "40000 instances"),
        (lambda: fleet(pool(), pool(count=-1), pool()), "-1 instances of kind 0"),
        (lambda: fleet(pool(kind=1)), "of kind 1"),
        (lambda: fleet(pool(model=1)), "for model 1"),
        (lambda: fleet(pool(start_s=-1.0)), "start_s -1"),
        (lambda: fleet(pool(drain_s=math.nan)), "drain_s nan"),
        (lambda: scheduler(max_batch=0), "max_batch and max_batch_tokens"),
        (lambda: scheduler(max_batch_tokens=0), "max_batch and max_batch_tokens"),
        (lambda: scheduler(max_batch_tokens=8), "leaves a full batch of 8 no room"),
        (lambda: scheduler(max_batch=LARGEST_BATCH + 1), f"ends at {LARGEST_BATCH} sequences"),
        (lambda: scheduler(watermark_ratio=1.0), "watermark_ratio 1"),
        (lambda: scheduler(watermark_ratio=-0.1), "watermark_ratio -0.1"),
        (lambda: scheduler(max_preemptions=-1), "max_preemptions -1"),
        (lambda: fleet(links=Links(bytes_per_s=0.0)), "a link of 0 bytes/s"),
        (lambda: fleet(links=Links(bytes_per_s=math.nan)), "a link of nan bytes/s"),
        (lambda: fleet(links=Links(prefix_cache_blocks=-1)), "a prefix cache of -1 blocks"),
        (lambda: fleet(links=Links(block_tokens=0)), "blocks of 0 tokens"),
        (lambda: of(kind(0)), "no room for KV cache"),
        (lambda: of(kind(kv_bytes_per_token=math.inf)), "inf bytes of KV cache per token"),
        (lambda: of(kind(step_table=table(decode_slope_s=np.full(SHAPE, -1e-3)))), "less than no time"),
        (lambda: of(kind(step_table=table(decode_s=np.full(SHAPE, -1e-3)))), "less than no time"),
        (
            lambda: of(kind(step_table=table(prefill_s=np.array([0.0, 2.0, 1.0]), prefill_w=np.ones(3)))),
            "no time",
        ),
        (lambda: cap(pool=1), "for instance 0 of pool 1"),
        (lambda: cap(index=1), "for instance 1 of pool 0"),
        (lambda: cap(index=-1), "for instance -1 of pool 0"),
        (lambda: cap(instance_kind=-1), "to kind -1"),
        (lambda: cap(time_s=math.nan), "an event at nan s"),
    ],
)
def test_fleets_that_make_no_sense_are_refused_in_one_line(build: Callable[[], Fleet], what: str) -> None:
    with pytest.raises(InputError) as refused:
        simulate(build(), ONE)
    assert what in str(refused.value)
    assert "\n" not in str(refused.value)


def asked(**changes: Any) -> Requests:
    values = {"arrival_s": np.array([0.0, 1.0]), "prompt_tokens": np.ones(2), "output_tokens": np.ones(2)}
    return Requests(**{**values, **changes})


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda: requests((0.0, 1, 1)).take(slice(0, 0)), "no request"),
        (lambda: asked(arrival_s=np.array([1.0, 0.0])), "arrivals go back"),
        (lambda: asked(arrival_s=np.array([-1.0, 0.0])), "arrivals go back"),
        (lambda: asked(arrival_s=np.array([0.0, math.nan])), "not finite"),
        (lambda: asked(arrival_s=np.array([0.0, math.inf])), "not finite"),
        (lambda: asked(prompt_tokens=np.array([1, 0])), "prompt_tokens between 0 and 1"),
        (lambda: asked(output_tokens=np.array([1, 0])), "output_tokens between 0 and 1"),
        (lambda: asked(output_tokens=np.array([1, LARGEST_TOKENS + 1])), "output_tokens between 1 and"),
        (
            lambda: asked(blocks=PrefixBlocks(ids=np.array([1]), offsets=np.array([0, 1]))),
            "prefix blocks that do not match",
        ),
        (
            lambda: asked(blocks=PrefixBlocks(ids=np.array([1]), offsets=np.array([0, 1, 2]))),
            "prefix blocks that do not match",
        ),
    ],
)
def test_requests_that_make_no_sense_are_refused_in_one_line(
    build: Callable[[], Requests], what: str
) -> None:
    with pytest.raises(InputError) as refused:
        simulate(fleet(), build())
    assert what in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"model_of_request": np.array([0])}, "model_of_request has 1 entries for 2"),
        ({"model_of_request": np.array([0, 1])}, "model_of_request from 0 to 1"),
        ({"model_of_request": np.array([0, -1])}, "model_of_request from -1 to 0"),
        ({"priority_of_request": np.arange(3)}, "priority_of_request has 3 entries for 2"),
    ],
)
def test_columns_that_make_no_sense_are_refused_in_one_line(columns: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError) as refused:
        simulate(fleet(), asked(), **columns)
    assert what in str(refused.value)
    assert "\n" not in str(refused.value)


# -- rejected requests ------------------------------------------------------------------------------------------------


def test_requests_too_long_for_every_instance_are_rejected_and_say_so() -> None:
    """Prompt and answer must fit but for the last token; the rest is served as if the others were not there."""
    rows = (0.0, 60, 41), (0.0, 60, 42), (0.1, 101, 1), (0.2, 100, 1), (0.3, 1, 100)
    record = simulate(fleet(kinds=(kind(100),)), requests(*rows))
    assert record.status.tolist() == [1, 2, 2, 1, 1]
    assert record.reject_reason.tolist() == [0, RejectReason.TOO_LONG, RejectReason.TOO_LONG, 0, 0]
    assert record.prefill_instance.tolist() == [0, -1, -1, 0, 0]
    assert np.array_equal(np.isnan(record.e2e_s), record.status == RequestStatus.REJECTED)
    others = simulate(fleet(kinds=(kind(100),)), requests(rows[0], *rows[3:]))
    assert np.array_equal(record.e2e_s[[0, 3, 4]], others.e2e_s)


@pytest.mark.parametrize("router", list(RouterKind))
def test_split_pools_check_both_places(router: RouterKind) -> None:
    """A prefiller of 50 tokens and a decoder of 100."""
    built = fleet(pool(Role.PREFILL), pool(Role.DECODE, kind=1), kinds=(kind(50), kind(100)))
    built = dataclasses.replace(built, router=dataclasses.replace(built.router, kind=router))
    record = simulate(built, requests((0.0, 50, 51), (9.0, 50, 52), (19.0, 20, 2)))
    mixed = router is RouterKind.MIXED_POOL  # the peer's rule counts the last token too
    assert record.reject_reason.tolist() == [RejectReason.TOO_LONG if mixed else 0, RejectReason.TOO_LONG, 0]


def test_nobody_up_is_another_reason() -> None:
    down = FleetEvent(time_s=0.0, kind=EventKind.DOWN, pool=0, index=0)
    up = FleetEvent(time_s=1.0, kind=EventKind.UP, pool=0, index=0)
    built = fleet(pool(start_s=2.0), events=(down, up))
    record = simulate(built, requests((0.5, 10, 2), (1.5, 10, 2), (1.6, 2000, 2)))
    assert record.reject_reason.tolist() == [RejectReason.NO_INSTANCE, 0, RejectReason.TOO_LONG]
    assert record.queue_s[1] == pytest.approx(1.5)
    assert record.up_s[0] == pytest.approx(record.horizon_s - 1.0)


def test_a_model_without_instances_is_rejected() -> None:
    built = fleet(models=("served", "missing"))
    record = simulate(built, asked(), model_of_request=np.array([0, 1]))
    assert record.reject_reason.tolist() == [0, RejectReason.NO_INSTANCE]


def test_requests_of_the_last_instance_to_fail_are_rejected() -> None:
    built = fleet(events=(FleetEvent(time_s=0.05, kind=EventKind.DOWN, pool=0, index=0),))
    record = simulate(built, requests((0.0, 10, 50), (0.0, 1, 2), (0.04, 100, 2), (0.1, 5, 1)))
    assert record.reject_reason.tolist() == [RejectReason.NO_INSTANCE, 0, *[RejectReason.NO_INSTANCE] * 2]
    assert np.isfinite(record.ttft_s[0])
    assert record.energy_j[0] > 0.0


def test_one_instance_per_pool_without_a_decoder() -> None:
    """A lone prefill pool can serve answers of one token only."""
    record = simulate(
        fleet(Pool(name="p", kind=0, count=1, role=Role.PREFILL)), requests((0.0, 5, 1), (0.0, 5, 2))
    )
    assert record.status.tolist() == [RequestStatus.COMPLETED, RequestStatus.REJECTED]


# -- it ends ----------------------------------------------------------------------------------------------------------


@settings(max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios(most_requests=60))
def test_every_run_ends_and_leaves_nobody_behind(scenario: Scenario) -> None:
    """Every iteration processes a token, and tokens are processed again only after a loss of KV."""
    columns: dict[str, Any] = {
        "model_of_request": scenario.models,
        "priority_of_request": scenario.priorities,
    }
    record = simulate(scenario.fleet, scenario.requests, seed=scenario.seed, **columns)
    tokens = scenario.requests.prompt_tokens + scenario.requests.output_tokens
    assert record.iterations <= (tokens * (1 + record.preemptions + len(scenario.fleet.events))).sum()
    if np.any(record.status == RequestStatus.INCOMPLETE):
        assert scenario.fleet.router.kind is RouterKind.MIXED_POOL
        plain = PlainEngine(scenario.fleet, scenario.requests, seed=scenario.seed, **columns).run()
        holders = [machine for machine in plain.machines if machine.held]
        # each holds KV for the next, and the last for the first
        assert len(holders) > 1
        assert all(job.decode_at in holders for machine in holders for job in machine.held)
