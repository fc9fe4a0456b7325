"""Reads a PowerDomain's spec as what the row's controller knows: servers, breaker, priorities, policy.

It exists so that the cluster runs the very policies and the very guarantee that `ballast simulate row` shows. It
decides nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from controller.operator.world import Node, Pod
from controller.resources.power_domain import Algorithm, BrakeAt, PowerClass, PowerDomainSpec, Thresholds
from solver.domain.errors import InputError
from solver.domain.power import BreakerCurve, PowerRow, Priority, ServerPowerModel, breaker_curve
from solver.power.policies.braking import BrakeAtPower, BrakeAtTheta, BrakeRule
from solver.power.policies.guard import Guard
from solver.power.policies.polca import Polca
from solver.power.policies.protocol import Policy
from solver.power.policies.uncapped import Uncapped
from solver.power.schedule import BudgetSchedule, DemandResponse, TimedFactor

DELIVERY_S = 2.0
"""From the end of a window to its decision: agents look once a second and are asked once a second."""


def curve_of(spec: PowerDomainSpec) -> BreakerCurve:
    """Return the breaker, with the margin taken off.

    Raises
    ------
    InputError
        Constants that no breaker has.
    """
    told = spec.breaker
    curve = breaker_curve(told.curve.value, tau_s=told.tau_seconds, trip_ratio=told.trip_factor)
    if not told.margin_fraction:
        return curve
    trip_ratio = 1.0 + (curve.trip_ratio - 1.0) * (1.0 - told.margin_fraction)
    return BreakerCurve(name=curve.name, tau_s=curve.tau_s, trip_ratio=trip_ratio)


def server_of(spec: PowerDomainSpec, *, static_w: float = 0.0) -> ServerPowerModel:
    """Return what one server draws, with its share of what is drawn always."""
    told = spec.server
    return ServerPowerModel(
        name="server",
        gpus=told.gpus,
        gpu_idle_w=told.gpu_idle_watts,
        gpu_tdp_w=told.gpu_tdp_watts,
        prompt_tdp_ratio=told.peak_ratio,
        token_tdp_ratio_at_0=0.58,  # these three are of the simulated plant: nothing here reads them
        token_tdp_ratio_at_full=0.68,
        full_batch=16,
        exponent=told.exponent,
        fixed_w=told.fixed_watts + static_w,
        draw_per_gpu_watt_ratio=told.watts_per_gpu_watt,
        provisioned_w=told.fixed_watts + told.watts_per_gpu_watt * told.gpus * told.gpu_tdp_watts,
        min_mhz=told.min_mhz,
        max_mhz=told.max_mhz,
        step_mhz=told.step_mhz,
        brake_mhz=min(max(spec.brake.mhz, told.min_mhz), told.max_mhz),
    )


def row_of(spec: PowerDomainSpec, priorities: Sequence[Priority], contract_w: float) -> PowerRow:
    """Return the row; `InputError` for what no row can be."""
    static_w = spec.members.static_watts if spec.members else 0.0
    server = server_of(spec, static_w=static_w / len(priorities))
    classes = sorted(spec.classes, key=lambda each: each.priority)
    limits = [clock_limits(each, server) for each in classes]
    return PowerRow(
        server=server,
        priorities=tuple(priorities),
        budget_w=contract_w,
        curve=curve_of(spec),
        low_floor_mhz=limits[0][0],
        high_floor_mhz=limits[-1][0],
        low_top_mhz=limits[0][1],
        high_top_mhz=limits[-1][1],
        sample_s=spec.telemetry.period_seconds,
        delivery_s=DELIVERY_S,
        clock_latency_s=spec.actuator_latency_seconds,
        brake_latency_s=spec.actuator_latency_seconds,
    )


def clock_limits(each: PowerClass, server: ServerPowerModel) -> tuple[int, int | None]:
    """Return the floor of a class and the cap that stands always, None where there is none.

    The floor is the highest of ``minMHz``, the lowest clock at which a GPU may draw ``minWatts``, and F / (1 + x) for
    an increase of at most x: whatever bounds the work, it takes at most F / f times as long.

    Raises
    ------
    InputError
        The cap is below the floor, or no clock lets a GPU draw ``minWatts``.
    """
    most, where = server.max_mhz, f"spec.classes[{each.name}]"
    floor = min(max(each.min_mhz, server.min_mhz), most)
    if each.min_watts is not None:
        allowed = (
            mhz for mhz in server.clocks_mhz if server.gpu_w(server.prompt_tdp_ratio, mhz) >= each.min_watts
        )
        by_watts = next(allowed, None)
        if by_watts is None:
            raise InputError(
                f"minWatts {each.min_watts:g}", where=where, right="at most what spec.server says of a GPU"
            )
        floor = max(floor, by_watts)
    if each.slo is not None:
        least = most / (1.0 + each.slo.max_increase)
        floor = max(floor, next(mhz for mhz in server.clocks_mhz if mhz >= least - 1e-9))
    if each.max_mhz is None or each.max_mhz >= most:
        return floor, None
    top = server.step_down(each.max_mhz)
    if top < floor:
        raise InputError(
            f"maxMHz {each.max_mhz} is below the floor of {floor} MHz",
            where=where,
            right="a higher maxMHz, or less of minMHz, minWatts and slo",
        )
    return floor, top


def policy_of(spec: PowerDomainSpec, *, acts: bool, trained: Thresholds | None = None) -> Policy:
    """Return the policy with the settings of the spec; one that orders nothing where nothing may be ordered.

    Thresholds that were trained stand in for those that are not told; until then the published ones do.
    """
    if not acts:
        return Uncapped()
    rule: BrakeRule = BrakeAtTheta() if spec.brake.at is BrakeAt.THETA else BrakeAtPower()
    if spec.algorithm is Algorithm.POLCA:
        polca = Polca(
            brake=rule if spec.brake.at is BrakeAt.THETA else None, without_brake=not spec.brake.enabled
        )
        told = spec.thresholds or (trained if spec.train is not None else None)
        if told is not None:
            polca = replace(polca, t1_ratio=told.t1, t2_ratio=told.t2, uncap_margin_ratio=told.uncap_margin)
        return polca
    settings: dict[str, Any] = {"brake": rule if spec.brake.enabled else None}
    if spec.target is not None:
        settings["most_target_ratio"] = spec.target
    return replace(Guard(), **settings)


def schedule_of(spec: PowerDomainSpec) -> BudgetSchedule:
    """Return the schedule and the events of the grid; `InputError` for a line or a time that is none."""
    try:
        events = tuple(
            DemandResponse(
                name=each.name,
                factor=each.budget_factor,
                deadline=datetime.fromisoformat(each.deadline).astimezone(UTC),
                until=datetime.fromisoformat(each.until).astimezone(UTC),
            )
            for each in spec.demand_response
        )
    except ValueError as error:
        raise InputError(str(error), where="spec.demandResponse", right="2026-11-21T17:00:00Z") from None
    return BudgetSchedule(
        lines=tuple(TimedFactor(cron=each.cron, factor=each.budget_factor) for each in spec.schedule),
        events=events,
    )


def factor_of(spec: PowerDomainSpec, schedule: BudgetSchedule, *, failover: bool, now_s: float) -> float:
    """Return what is left of the budget now, seconds since 1970; the schedule is meant in UTC."""
    factor = schedule.demand(
        datetime.fromtimestamp(now_s, UTC), lead_s=spec.actuator_latency_seconds + 10.0
    ).factor
    if failover and spec.failover is not None:
        factor = min(factor, spec.failover.budget_factor)
    return factor


def class_of(spec: PowerDomainSpec, node: Node | None, pods: Iterable[Pod]) -> int:
    """Return the class of a node, counted from the one that is slowed first: the strictest of its pods with GPUs.

    Power and clock belong to a whole GPU and here to a whole node, so one pod of the higher class protects all. A node
    without pods that ask for GPUs, or that nobody knows, is of the lowest class.
    """
    classes = sorted(spec.classes, key=lambda each: each.priority)
    labels = {} if node is None else node.labels
    found = 0
    for index, each in enumerate(classes):
        if each.node_selector and each.node_selector.items() <= labels.items():
            found = max(found, index)
        for pod in pods:
            chosen = bool(each.pod_selector) and (each.pod_selector or {}).items() <= pod.labels.items()
            if chosen or pod.priority >= each.priority:
                found = max(found, index)
    return found


def pods_by_node(pods: Mapping[tuple[str, str], Pod]) -> dict[str, list[Pod]]:
    """Return the pods that hold GPUs, by node."""
    found: dict[str, list[Pod]] = {}
    for pod in pods.values():
        if pod.gpus and pod.node:
            found.setdefault(pod.node, []).append(pod)
    return found
