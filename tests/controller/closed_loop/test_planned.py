"""The planner in the simulated clock: it sees no future, loses no capacity, and answers the same twice."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.closed_loop.caps import CAP_RATIOS
from controller.closed_loop.pools import LARGEST_PHASE
from controller.closed_loop.record import PlannedRun
from simulator.fleet import EventKind
from solver.domain.cluster import ServiceState
from solver.domain.errors import InputError
from solver.domain.fleet import Role
from solver.domain.trace import Requests
from solver.services.settle import settle
from tests.controller.closed_loop.days import (
    APART,
    SPLIT,
    VALUES,
    catalogues,
    history,
    planned,
    requests,
    scenario,
)

COURSE = (3.0, 5.0, 8.0, 4.0, 9.0, 3.0)
BEFORE = [3.0 + 2.0 * np.sin(k / 20.0) for k in range(200)]
Pools = list[dict[str, Any]]
POOLS: tuple[Pools, ...] = (VALUES["pools"], SPLIT, APART)
every_pools = pytest.mark.parametrize("pools", POOLS, ids=("whole", "all", "apart"))


def until(run: PlannedRun, time_s: float) -> tuple[Any, ...]:
    """All that was decided before a time."""
    rows = run.times_s < time_s
    return (
        [decision for decision in run.decisions if decision.time_s < time_s],
        [event for event in run.scenario.events if 0.0 < event.time_s < time_s],
        run.ready[rows].tolist(),
        run.rate_rps[rows].tolist(),
    )


@settings(max_examples=9, deadline=None)
@given(
    cut=st.integers(1, 5),
    later=st.lists(st.floats(0.5, 12.0), min_size=6, max_size=6),
    before=st.sampled_from([BEFORE, []]),
    policy=st.sampled_from(["ballast", "hpa"]),
    pools=st.sampled_from(POOLS),
)
def test_decisions_do_not_depend_on_what_arrives_later(
    cut: int, later: list[float], before: list[float], policy: str, pools: Pools
) -> None:
    whole, other = requests(COURSE, seed=1), requests(later, seed=2)
    cut_s = cut * 600.0
    first, second = whole.arrival_s < cut_s, other.arrival_s >= cut_s
    changed = Requests(
        arrival_s=np.concatenate((whole.arrival_s[first], other.arrival_s[second])),
        prompt_tokens=np.concatenate((whole.prompt_tokens[first], 3 * other.prompt_tokens[second])),
        output_tokens=np.concatenate((whole.output_tokens[first], 2 * other.output_tokens[second])),
    )
    known = history(before) if before else None
    one, two = (planned(each, known, policy=policy, window_s=300, pools=pools) for each in (whole, changed))
    assert until(one, cut_s) == until(two, cut_s)


@pytest.fixture(scope="module")
def run() -> PlannedRun:
    """Follow a course with steps up and down."""
    return planned(requests(COURSE), history(BEFORE), window_s=600)


@every_pools
def test_what_serves_carries_the_rate_whenever_something_is_taken_away(pools: Pools) -> None:
    course = (9.0, 9.0, 2.0, 2.0, 2.0, 6.0, 2.0, 2.0, 2.0)
    run = planned(requests(course), history([9.0] * 200), forecast=False, pools=pools)
    fewer = np.flatnonzero(np.any(np.diff(run.ready, axis=0) < 0, axis=1)) + 1
    assert len(fewer)
    for row in fewer.tolist():
        assert run.capacity_rps[row] >= run.rate_rps[row]


def test_an_instance_serves_only_after_its_start_up(run: PlannedRun) -> None:
    ups = [event for event in run.scenario.events if event.kind is EventKind.UP]
    assert ups
    assert run.started == len(ups)
    for pool, name in enumerate(["h100", "a100"]):
        mine = sorted(event.time_s for event in ups if event.pool == name)
        gains = [
            run.times_s[row]
            for row in range(1, len(run.times_s))
            for _ in range(max(0, int(run.ready[row, pool] - run.ready[row - 1, pool])))
        ]
        assert len(gains) <= len(mine)  # those that are stopped before they are ready never serve
        for gain in gains:
            assert any(abs(gain - up - 120.0) < 1e-6 for up in mine)


def test_begins_with_what_the_history_called_for(run: PlannedRun) -> None:
    assert run.times_s[0] == 0.0
    assert run.capacity_rps[0] > BEFORE[-1]
    assert run.ready[0].tolist() != [2, 0]


def test_begins_with_the_scenarios_own_counts_where_nothing_is_known() -> None:
    cold = planned(requests(COURSE))
    assert cold.ready[0].tolist() == [2, 0]
    assert cold.decisions[0].time_s > 0.0


def test_equal_inputs_give_equal_answers(run: PlannedRun) -> None:
    again = planned(requests(COURSE), history(BEFORE), window_s=600)
    assert again.decisions == run.decisions
    assert again.scenario == run.scenario
    assert again.lane_of_request is not None
    assert run.lane_of_request is not None
    assert np.array_equal(again.lane_of_request, run.lane_of_request)


def test_requests_go_only_to_pools_that_serve(run: PlannedRun) -> None:
    given_requests = requests(COURSE)
    row = np.searchsorted(run.times_s, given_requests.arrival_s, side="right") - 1
    assert run.lane_of_request is not None
    assert (run.ready[row, run.lane_of_request] > 0).all()


@pytest.mark.parametrize("policy", ["ballast", "oracle"])
def test_requests_are_sent_where_both_phases_serve(policy: str) -> None:
    given_requests = requests(COURSE)
    split = planned(given_requests, history(BEFORE), policy=policy, pools=SPLIT)
    names = [pool["name"] for pool in SPLIT]
    row = np.searchsorted(split.times_s, given_requests.arrival_s, side="right") - 1
    assert split.lane_of_request is not None
    ready = dict(zip(names, split.ready[row].T, strict=True))
    whole = split.lane_of_request == names.index("whole")
    assert set(split.lane_of_request.tolist()) <= {names.index("whole"), names.index("in")}
    assert (ready["whole"][whole] > 0).all()
    assert (ready["in"][~whole] > 0).all()
    assert ((ready["out"] + ready["fast"])[~whole] > 0).all()


def test_a_phase_is_one_kind_of_instance_once_all_is_done() -> None:
    split = planned(requests([6.0] * 6), history([6.0] * 200), pools=APART)
    kinds = (split.ready[-1][1:] > 0).sum()
    assert kinds == 1
    assert split.ready[-1][0] > 0


def test_a_phase_is_never_taken_to_carry_more_than_its_size_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from controller.closed_loop import deciders
    from controller.closed_loop.pools import Carrying

    sizes: dict[tuple[str, float], int] = {}
    read = Carrying.rate_rps

    def noted(self: Carrying, pool: int, cap_ratio: float, mix: Any, *, phase_size: int = 1) -> float:
        found = read(self, pool, cap_ratio, mix, phase_size=phase_size)
        if self.role(pool) is not Role.BOTH:
            sizes[self.role(pool), found] = min(phase_size, LARGEST_PHASE)
        return found

    asked: list[tuple[ServiceState, tuple[int, ...]]] = []
    judge: Any = settle

    def settled(state: ServiceState, decided: Any, standing: Any, **rest: Any) -> Any:
        asked.extend((state, counts) for counts in (tuple(decided), standing.replicas) if counts is not None)
        return judge(state, decided, standing, **rest)

    monkeypatch.setattr(Carrying, "rate_rps", noted)
    monkeypatch.setattr(deciders, "settle", settled)
    planned(requests(COURSE), history(BEFORE), pools=APART)
    assert len(asked) > 50
    for state, counts in asked:
        for role in (Role.PREFILL, Role.DECODE):
            pools = [v for v, one in enumerate(state.variants) if one.role is role]
            planned_size = sum(counts[v] for v in pools)
            for v in pools:
                rate_rps = state.variants[v].throughput_rps[0]
                if counts[v] and rate_rps:
                    assert sizes[role, rate_rps] <= planned_size


def test_a_slow_link_calls_for_more_instances_or_for_whole_requests() -> None:
    quick = planned(requests([6.0] * 3), history([6.0] * 200), pools=APART, policy="static")
    slow = planned(
        requests([6.0] * 3), history([6.0] * 200), pools=APART, policy="static", kv={"link_gib_per_s": 0.5}
    )
    assert slow.ready[-1].sum() > quick.ready[-1].sum()
    whole = planned(
        requests([6.0] * 3), history([6.0] * 200), pools=SPLIT, policy="static", kv={"link_gib_per_s": 0.5}
    )
    assert whole.ready[-1][1:].sum() == 0


def test_the_autoscaler_scales_each_phase_where_no_pool_serves_whole_requests() -> None:
    apart = planned(requests(COURSE), history(BEFORE), policy="hpa", pools=APART)
    assert (apart.ready[:, 0] > 0).all()
    assert ((apart.ready[:, 1] + apart.ready[:, 2]) > 0).all()
    whole = planned(requests(COURSE), history(BEFORE), policy="hpa", pools=SPLIT)
    assert (whole.ready[:, 1:] == 0).all()


def test_with_roles_allowed_a_plan_is_never_dearer() -> None:
    price = {"h100": 1.0, "whole": 1.0, "in": 1.0, "fast": 1.0}
    costs = []
    for pools in (VALUES["pools"][:1], [pool for pool in SPLIT if pool["name"] != "out"]):
        static = planned(requests(COURSE), history(BEFORE), policy="static", pools=pools)
        costs.append(float(static.ready[-1] @ [price[str(pool["name"])] for pool in pools]))
    assert costs[1] <= costs[0]


@every_pools
def test_static_never_changes_and_the_oracle_is_never_dearer_in_capacity(pools: Pools) -> None:
    given_requests = requests(COURSE)
    static = planned(given_requests, policy="static", pools=pools)
    assert static.started == static.stopped == 0
    assert len(static.times_s) <= 2
    oracle = planned(given_requests, policy="oracle", pools=pools)
    widths = np.diff(np.append(oracle.times_s, given_requests.arrival_s[-1]))
    mean_rps = float((oracle.capacity_rps * widths).sum() / widths.sum())
    assert mean_rps < static.capacity_rps[-1]
    if pools is not VALUES["pools"]:
        return  # phases come up one after the other: what is needed may be there a start-up later
    for window in range(len(COURSE)):
        row = np.searchsorted(oracle.times_s, 600.0 * window, side="right") - 1
        arrived = int((given_requests.arrival_s // 600.0 == window).sum())
        assert oracle.capacity_rps[row] >= 0.99 * arrived / 600.0


def test_limits_are_kept_draining_instances_counted() -> None:
    tight = planned(requests(COURSE), history(BEFORE), limits={"H100-SXM": 8, "A100-80-SXM": 8})
    assert (tight.asked <= 1).all()
    assert tight.no_plan


def test_caps_keep_the_worst_case_within_the_budget() -> None:
    tdp_w = [700.0, 400.0]
    budget_w = 14_500.0
    free = planned(requests(COURSE), history(BEFORE))
    assert (free.cap_ratio == 1.0).all()
    assert (free.asked * [8 * watts for watts in tdp_w]).sum(axis=1).max() > budget_w
    capped = planned(requests(COURSE), history(BEFORE), power={"budget_w": budget_w, "policy": "caps"})
    assert set(capped.cap_ratio.tolist()) <= set(CAP_RATIOS)
    assert capped.cap_ratio.min() < 1.0
    worst_w = (capped.asked * [8 * watts for watts in tdp_w]).sum(axis=1) * capped.cap_ratio
    fits = capped.cap_ratio > CAP_RATIOS[-1]
    assert (worst_w[fits] <= budget_w * (1 + 1e-9)).all()
    caps = [event for event in capped.scenario.events if event.kind is EventKind.CAP]
    assert caps
    assert all(event.value_w is None or event.value_w <= 700.0 for event in caps)


def test_nothing_that_could_ever_run_is_told() -> None:
    empty = scenario(policy="hpa")
    assert empty.planner is not None
    from dataclasses import replace

    from controller.closed_loop.run import plan_over_time

    nobody = replace(empty, pools=tuple(replace(pool, count=0) for pool in empty.pools))
    few = requests((0.01,))
    with pytest.raises(InputError, match="no instance ever runs"):
        plan_over_time(nobody, catalogues(), few, np.zeros(len(few), dtype=np.int64))
