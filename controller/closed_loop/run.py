"""The Planner inside the simulated clock: who decides when, what that starts and stops, and where requests then go.

It exists so that a scenario with a planner is simulated by the same engine as one without: what is decided depends on
arrivals, which no instance changes, so all decisions are made first, each from what had arrived by then, and become
events of the scenario. Steps are ordered and held back as in the operator (`solver.services.steps`). It simulates no
request; `controller.simulation` does. What a state says, caps, rehearsals and the record are modules beside it.

Requests of a model with several lanes (`controller.closed_loop.lanes`) are spread over them by what the instances that
serve at the time carry, as the weights of an HTTPRoute do; within a lane the scenario's router chooses.
"""

import math

from controller.closed_loop.caps import CAP_RATIOS, PowerCaps
from controller.closed_loop.deciders import Asked, Wish, decider_of
from controller.closed_loop.history import read_history, read_sizes
from controller.closed_loop.pools import EDGE_S, Carrying, TrackedPool
from controller.closed_loop.record import Decision, PlannedRun, Record
from controller.closed_loop.rehearsals import Rehearsals
from controller.closed_loop.seen import Seen, latest_start_s, sizes_of
from controller.closed_loop.services import PlannedModel, Services
from controller.cluster_fleet import (
    ClusterCatalogues,
    performance_of_pools,
    performance_of_reference,
)
from simulator.scenario import PlannerPolicy, PlannerRules, Scenario
from solver.domain.errors import InputError
from solver.domain.fleet import Role
from solver.domain.gpu_mix import RequestBucket
from solver.domain.rate_windows import RateWindows
from solver.domain.trace import Ints, Requests
from solver.services.steps import Move, next_move, plan_steps
from telemetry.catalogue.read import find_gpu, find_model

WARM_UP_S = 3600.0
"""Before the trace: so long the decider follows the history, so that the day does not begin with a cold start."""
NO_LIMIT = 1_000_000
KNOWING = frozenset({PlannerPolicy.STATIC, PlannerPolicy.ORACLE})
"""They know what comes, so they need no history, and know the sizes."""


def plan_over_time(
    scenario: Scenario,
    catalogues: ClusterCatalogues,
    requests: Requests,
    model_of_request: Ints,
    *,
    seed: int = 0,
    history: RateWindows | None = None,
    known_sizes: tuple[RequestBucket, ...] | None = None,
) -> PlannedRun:
    """Decide for the whole of a trace, each time from what had arrived by then.

    Parameters
    ----------
    history
        Rates before the trace, on the trace's clock, instead of the file that the planner names.
    known_sizes
        Sizes known at the start, instead of the trace that the planner names.

    Raises
    ------
    InputError
        For a history or a trace of sizes that makes no sense, or a pool whose price is not known.
    """
    rules = scenario.planner
    if rules is None:
        raise ValueError("the scenario has no planner")
    if history is None and rules.history is not None:
        history = read_history(scenario, rules.history)
    if known_sizes is None:
        known_sizes = read_sizes(rules)
    if not known_sizes and rules.policy in KNOWING:
        known_sizes = sizes_of(requests.prompt_tokens, requests.output_tokens)
    return _Clock(
        scenario, rules, catalogues, requests, model_of_request, history=history, known_sizes=known_sizes
    ).run(seed)


class _Clock:
    """Goes from decision to decision and from one ready instance to the next."""

    def __init__(
        self,
        scenario: Scenario,
        rules: PlannerRules,
        catalogues: ClusterCatalogues,
        requests: Requests,
        model_of_request: Ints,
        *,
        history: RateWindows | None,
        known_sizes: tuple[RequestBucket, ...],
    ) -> None:
        self._scenario = scenario
        self._rules = rules
        self._requests = requests
        self._model_of_request = model_of_request
        self._pools = [_tracked(scenario, p, catalogues) for p in range(len(scenario.pools))]
        ratios = CAP_RATIOS if scenario.power.caps else (1.0,)
        carrying = Carrying(
            scenario=scenario,
            performance={
                ratio: performance_of_pools(scenario, catalogues, cap_ratio=ratio) for ratio in ratios
            },
            reference=performance_of_reference(scenario, catalogues),
            kv_bytes_per_token={
                model.name: find_model(catalogues.models, model.model).kv_bytes_per_token()
                for model in scenario.models
            },
        )
        self._models = [
            self._model(m, model.name, history, known_sizes) for m, model in enumerate(scenario.models)
        ]
        self._gpus = {pool.gpu_type: NO_LIMIT for pool in self._pools} | {
            find_gpu(catalogues.gpus, name).name: gpus for name, gpus in rules.limits.items()
        }
        self._end_s = float(requests.arrival_s[-1])
        self._no_plan: dict[str, int] = {}
        self._decider = decider_of(rules, self._gpus, end_s=self._end_s, no_plan=self._no_plan)
        self._services = Services(
            pools=self._pools, models=self._models, carrying=carrying, rules=rules, decider=self._decider
        )
        self._caps = PowerCaps(services=self._services, budget_w=scenario.power.budget_w or math.inf)
        self._rehearsals = Rehearsals(
            scenario=scenario,
            catalogues=catalogues,
            requests=requests,
            model_of_request=model_of_request,
            services=self._services,
        )
        self._record = Record(scenario=scenario, services=self._services)

    def _model(
        self, m: int, name: str, history: RateWindows | None, known_sizes: tuple[RequestBucket, ...]
    ) -> PlannedModel:
        mine = self._model_of_request == m
        whole = bool(mine.all())
        requests = self._requests
        return PlannedModel(
            name=name,
            seen=Seen(
                name=name,
                arrival_s=requests.arrival_s if whole else requests.arrival_s[mine],
                prompt_tokens=requests.prompt_tokens if whole else requests.prompt_tokens[mine],
                output_tokens=requests.output_tokens if whole else requests.output_tokens[mine],
                history=history,
                known_sizes=known_sizes,
            ),
            pools={p: self._pools[p] for p, pool in enumerate(self._scenario.pools) if pool.model == name},
        )

    def run(self, seed: int) -> PlannedRun:
        begin_s = max(-WARM_UP_S, latest_start_s([model.seen for model in self._models]))
        if self._rules.policy in KNOWING:
            begin_s = -WARM_UP_S
        if begin_s >= 0.0:
            self._begin()
        times = self._decider.times(begin_s, self._end_s)
        decide_s = next(times, math.inf)
        now_s = begin_s
        while True:
            ready_s = min(pool.next_ready_s(now_s) for pool in self._pools)
            next_s = min(decide_s, ready_s)
            if now_s < 0.0 <= next_s:
                self._begin()  # what is decided at 0 is decided in the trace
                now_s = 0.0
                continue
            if next_s > self._end_s or next_s == math.inf:
                break
            now_s = next_s
            if decide_s <= now_s + EDGE_S:
                self._decide(now_s)
                decide_s = next(times, math.inf)
            self._move(now_s)
            self._record.note(now_s, self._caps.ratio)
        if now_s < 0.0:
            self._begin()
        return self._record.planned_run(
            self._requests,
            self._model_of_request,
            rehearsals=self._rehearsals,
            no_plan=self._no_plan,
            seed=seed,
        )

    def _begin(self) -> None:
        """Begin the trace: with what the history called for, or with the scenario's own counts."""
        for model in self._models:
            if not any(pool.asked for pool in model.pools.values()):
                for p, pool in model.pools.items():
                    pool.scale(self._scenario.pools[p].count, -math.inf, cap_w=None)
            model.steps.clear()
        for pool in self._pools:
            pool.begin()
        if self._caps.ratio < 1.0:
            self._caps.write(0.0)
        self._record.note(0.0, self._caps.ratio)

    def _decide(self, now_s: float) -> None:
        asked: dict[str, Asked] = {}
        for model in self._models:
            found = self._decider.asked(model.seen, now_s) if model.seen.sizes(now_s=now_s) else None
            model.asked = found
            if found is not None:
                asked[model.name] = found
                if now_s >= 0.0:
                    self._record.rules[found.rule] = self._record.rules.get(found.rule, 0) + 1
        if not asked:
            return
        if self._scenario.power.caps:
            self._caps.choose(asked, now_s)
        states = self._services.states(asked, now_s, self._caps.ratio)
        for wish in self._decider.wishes(states, asked, now_s):
            self._accept(wish, now_s)

    def _accept(self, wish: Wish, now_s: float) -> None:
        model = next(model for model in self._models if model.name == wish.model)
        if self._rehearsals.refuse(wish, model, now_s, self._caps.ratio):
            self._decider.refused(wish.model, tuple(pool.asked for pool in model.pools.values()))
            return
        model.steps.clear()
        model.wanted = wish.replicas
        if wish.at_once:
            for pool, count in zip(model.pools.values(), wish.replicas, strict=True):
                pool.scale(count, now_s, cap_w=self._caps.cap_w(pool))
        else:
            state = self._services.state(model, wish.asked.rate_rps, now_s, self._caps.ratio)
            model.steps.extend(plan_steps(state, wish.replicas, self._free(now_s)).steps)
        if now_s >= 0.0:
            self._record.decisions.append(
                Decision(
                    time_s=now_s,
                    model=wish.model,
                    rate_rps=wish.asked.rate_rps,
                    rule=wish.asked.rule,
                    why=wish.why,
                    replicas=wish.replicas,
                )
            )

    def _free(self, now_s: float) -> dict[str, int]:
        free = dict(self._gpus)
        for pool in self._pools:
            free[pool.gpu_type] -= pool.held(now_s) * pool.gpus_per_instance
        return free

    def _move(self, now_s: float) -> None:
        """Take every model's steps as far as they can go now."""
        for model in self._models:
            pools = list(model.pools.values())
            while model.steps and model.asked is not None:
                state = self._services.state(model, model.asked.rate_rps, now_s, self._caps.ratio)
                step = model.steps[0]
                move = next_move(state, step, free_gpus=self._free(now_s), fresh=True)
                if move.move is Move.WAIT:
                    if step.to_replicas > pools[step.variant].ready(now_s):
                        break
                    # A drain is observed by nobody here: its GPUs count as held, and the next step may go on.
                    if pools[step.variant].asked != step.to_replicas:
                        break
                    model.steps.pop(0)
                elif move.move is Move.ADVANCE:
                    model.steps.pop(0)
                else:
                    pool = pools[step.variant]
                    pool.scale(step.to_replicas, now_s, cap_w=self._caps.cap_w(pool))


def _tracked(scenario: Scenario, p: int, catalogues: ClusterCatalogues) -> TrackedPool:
    rules = scenario.planner
    given = scenario.pools[p]
    gpu = find_gpu(catalogues.gpus, given.gpu_type)
    if gpu.price_usd_per_h is None:
        raise InputError(
            f"no price of {gpu.name} is known",
            where=scenario.place(f"pools[{p}].gpu_type"),
            right="a price in a GPU catalogue file of your own, with --catalogue",
        )
    return TrackedPool(
        name=given.name,
        gpu_type=gpu.name,
        gpus_per_instance=given.gpus_per_instance,
        role=Role(given.role.value),
        tdp_w=gpu.tdp_w,
        price_usd_per_h=gpu.price_usd_per_h * given.gpus_per_instance,
        own_cap_w=given.power_cap_w_per_gpu,
        start_s=given.start_s if rules is None else rules.start_s,
        drain_s=given.drain_s if rules is None else rules.drain_s,
    )
