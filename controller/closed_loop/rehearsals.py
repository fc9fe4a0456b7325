"""Rehearsals of what was decided in a simulated cluster: each on the requests that arrived last.

It exists so that a decision which takes something away is tried before it is carried out, as in the operator. It counts
what was refused; the judgement is `controller.closed_loop.gate`.
"""

from dataclasses import dataclass

from controller.closed_loop.deciders import Wish
from controller.closed_loop.gate import rehearse_change, window_before
from controller.closed_loop.services import PlannedModel, Services
from controller.cluster_fleet import ClusterCatalogues
from simulator.scenario import Scenario
from solver.domain.trace import Ints, Requests


@dataclass(slots=True, kw_only=True, eq=False)
class Rehearsals:
    """Those of one trace."""

    scenario: Scenario
    catalogues: ClusterCatalogues
    requests: Requests
    model_of_request: Ints
    services: Services
    made: int = 0
    refused: int = 0

    def refuse(self, wish: Wish, model: PlannedModel, now_s: float, cap_ratio: float) -> bool:
        """Rehearse a wish on the last window, where that is asked for and something would be taken away.

        Returns
        -------
        bool
            Whether the change is not to be made.
        """
        services, rules = self.services, self.services.rules
        if not rules.rehearse or now_s <= 0.0:
            return False
        running = {pool.name: pool.asked for pool in services.pools}
        planned = running | {
            pool.name: count for pool, count in zip(model.pools.values(), wish.replicas, strict=True)
        }
        if all(planned[name] >= count for name, count in running.items()):
            return False
        carried: dict[str, float] = {}
        for one in services.models:
            sizes = one.seen.sizes(now_s=now_s)
            carried |= {
                pool.name: services.carrying.linked_rps(
                    p, cap_ratio, sizes, phase_size=one.phase_size(pool.role)
                )
                for p, pool in one.pools.items()
                if sizes
            }
        window, rows = window_before(self.requests, now_s, rules.judged_window_s)
        found = rehearse_change(
            self.scenario,
            self.catalogues,
            window,
            self.model_of_request[rows],
            running=running,
            planned=planned,
            carried_rps=carried,
        )
        self.made += 1
        self.refused += not found.allowed
        return not found.allowed
