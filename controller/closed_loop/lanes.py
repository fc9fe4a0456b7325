"""Where a request of a model goes: drawn by what the model's serving instances carry at its arrival.

It exists because a plan's mix is only right if requests are spread over it as planned, as the weights of an HTTPRoute
do. A request is sent to a lane: a pool that serves whole requests, or all pools of its model that serve one phase only;
within a lane the scenario's router chooses. It plans nothing.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.fleet import Fleet, Role
from simulator.scenario import Scenario
from solver.domain.trace import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Pools, by index, that serve whole requests together."""

    model: int
    prompts: tuple[int, ...]
    """Those that take prompts: one of role both, or all of role prefill."""
    decodes: tuple[int, ...] = ()

    @property
    def number(self) -> int:
        """What the lane is called: its first pool that takes prompts."""
        return self.prompts[0]

    def carried_rps(self, carried: Floats) -> Floats:
        """Whole requests from what pools carry of their phases, [..., pools]: the least of both phases."""
        first: Floats = carried[..., list(self.prompts)].sum(axis=-1)
        return np.minimum(first, carried[..., list(self.decodes)].sum(axis=-1)) if self.decodes else first


def lanes_of(scenario: Scenario) -> tuple[Lane, ...]:
    """Return the lanes of all models, by their numbers."""
    names = [model.name for model in scenario.models]
    return _lanes([(names.index(pool.model), pool.role) for pool in scenario.pools])


def _lanes(pools: Sequence[tuple[int, Role]]) -> tuple[Lane, ...]:
    """Return the lanes of pools with these models and roles."""
    members: dict[Hashable, list[int]] = {}
    decodes: dict[int, list[int]] = {}
    for p, (model, role) in enumerate(pools):
        if role is Role.DECODE:
            decodes.setdefault(model, []).append(p)
        else:
            members.setdefault(p if role is Role.BOTH else (model,), []).append(p)
    return tuple(
        Lane(
            model=pools[own[0]][0],
            prompts=tuple(own),
            decodes=() if pools[own[0]][1] is Role.BOTH else tuple(decodes.get(pools[own[0]][0], ())),
        )
        for own in members.values()
    )


def whole_requests(scenario: Scenario, carried: Floats) -> Floats:
    """Turn what pools carry of their phases into whole requests [..., pools], whose sum is what all carry together.

    Where phases are split, each phase counts for half of what both carry, and its pools for their parts of it.
    """
    told = carried.copy()
    for lane in lanes_of(scenario):
        if not lane.decodes:
            continue
        half = lane.carried_rps(carried) / 2.0
        for phase in (lane.prompts, lane.decodes):
            own = carried[..., list(phase)]
            total = own.sum(axis=-1)
            ratio = np.divide(half, total, out=np.zeros_like(half), where=total > 0.0)
            told[..., list(phase)] = own * ratio[..., None]
    return told


def drawn_lanes(
    scenario: Scenario, model_of_request: Ints, weights: Floats, row_of_request: Ints, *, seed: int
) -> Ints | None:
    """Draw the lane of every request (its number); None: every model has one.

    Parameters
    ----------
    weights
        [rows, pools] what the serving instances of each pool carry, of whole requests or of their phase.
    row_of_request
        Row that holds at each arrival.
    """
    lanes = lanes_of(scenario)
    if len(lanes) == len(scenario.models):
        return None
    draws = np.random.default_rng([seed, 3]).random(len(model_of_request))
    chosen = np.zeros(len(model_of_request), dtype=np.int64)
    for m in range(len(scenario.models)):
        mine = np.flatnonzero(model_of_request == m)
        own = [lane for lane in lanes if lane.model == m]
        carried = np.stack([lane.carried_rps(weights) for lane in own], axis=-1)
        numbers = [lane.number for lane in own]
        chosen[mine] = _drawn(carried, row_of_request[mine], draws[mine], numbers)
    return chosen


def _drawn(weights: Floats, row: Ints, draws: Floats, numbers: Sequence[int]) -> Ints:
    """Draw a lane for each request from the weights of its row; equal ones where none serves."""
    sums = weights.sum(axis=1, keepdims=True)
    shares = np.where(sums > 0.0, weights / np.where(sums > 0.0, sums, 1.0), 1.0 / weights.shape[1])
    limits = np.cumsum(shares, axis=1)
    last = np.where(shares > 0.0, np.arange(shares.shape[1]), 0).max(axis=1)
    found: Ints = (draws[:, None] >= limits[row]).sum(axis=1)
    lanes: Ints = np.array(numbers, dtype=np.int64)[np.minimum(found, last[row])]
    return lanes


def apart(fleet: Fleet) -> Fleet:
    """Let each lane be a model of its own to the engine, by its number."""
    lane_of_pool = {
        p: lane.number
        for lane in _lanes([(pool.model, pool.role) for pool in fleet.pools])
        for p in (*lane.prompts, *lane.decodes)
    }
    return replace(
        fleet,
        models=tuple(pool.name for pool in fleet.pools),
        pools=tuple(replace(pool, model=lane_of_pool[p]) for p, pool in enumerate(fleet.pools)),
    )
