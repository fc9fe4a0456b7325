"""Power caps of a planned fleet: one ratio of the TDP for all GPUs, chosen so that the worst case keeps the budget.

It exists because a cap changes what an instance carries, so that caps and replicas are chosen together: for each ratio
it is asked what would be needed at it. It is no control loop; that is `solver.power`, in the simulated row.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from controller.closed_loop.deciders import Asked
from controller.closed_loop.pools import TrackedPool
from controller.closed_loop.services import Services

CAP_RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
_LEAST_CHANGE_S = 300.0
"""A cap that was changed is raised again after so long at the earliest."""


@dataclass(slots=True, kw_only=True)
class PowerCaps:
    """The cap that holds now, as a ratio of every GPU's TDP."""

    services: Services
    budget_w: float
    ratio: float = 1.0
    _changed_s: float = -math.inf

    def choose(self, asked: Mapping[str, Asked], now_s: float) -> None:
        """Take the highest cap at which all that is needed, each GPU at its cap, stays within the budget.

        Where there is none, take the one at which it draws least.
        """
        chosen, least_w = CAP_RATIOS[-1], math.inf
        for ratio in CAP_RATIOS:
            needed = self.services.decider.needed(self.services.states(asked, now_s, ratio))
            if any(replicas is None for replicas in needed.values()):
                continue
            worst_w = self._worst_w(needed, ratio, now_s)
            if worst_w < least_w:  # capped instances carry less, so a lower cap may draw more
                chosen, least_w = ratio, worst_w
            if worst_w <= self.budget_w:
                break
        early = now_s - self._changed_s < _LEAST_CHANGE_S
        if chosen == self.ratio or (chosen > self.ratio and early):
            return
        self.ratio, self._changed_s = chosen, now_s
        if now_s >= 0.0:
            self.write(now_s)

    def _worst_w(self, needed: Mapping[str, tuple[int, ...] | None], cap_ratio: float, now_s: float) -> float:
        total_w = 0.0
        for model in self.services.models:
            replicas = needed.get(model.name) or (0,) * len(model.pools)
            for pool, count in zip(model.pools.values(), replicas, strict=True):
                gpus = max(count, pool.held(now_s)) * pool.gpus_per_instance
                total_w += gpus * _gpu_cap_w(pool, cap_ratio)
        return total_w

    def cap_w(self, pool: TrackedPool) -> float | None:
        """Return the cap of a pool's GPUs; None: none."""
        if self.ratio >= 1.0:
            return pool.own_cap_w
        return _gpu_cap_w(pool, self.ratio)

    def write(self, now_s: float) -> None:
        """Cap every pool."""
        for pool in self.services.pools:
            pool.cap(self.cap_w(pool), now_s)


def _gpu_cap_w(pool: TrackedPool, ratio: float) -> float:
    return min(pool.tdp_w * ratio, pool.own_cap_w or math.inf)
