"""Plans where experts sit, with a clock, and lets nothing out that its independent check finds wrong.

It exists because the solver knows no clock: the command and the operator's child process call it through here.
"""

import time
from dataclasses import dataclass, replace

import numpy as np

from solver.check.experts import check_experts
from solver.domain.moe import ExpertCosts, ExpertInstance, ExpertPlan, ExpertTopology
from solver.experts.place import PlaceOptions, place_experts

LEAST_LIMIT_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedExpertPlan:
    """A plan and the seconds that it took."""

    plan: ExpertPlan
    solve_s: float


def load_kernels() -> None:
    """Compile kernels, or load them, so that a time limit is not spent on that: solve a problem of no size."""
    tiny = ExpertInstance(
        name="tiny",
        load=np.array([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]]),
        top_k=1,
        transitions=np.ones((1, 3, 3)),
        topology=ExpertTopology(gpu_node=(0, 0, 1), slots_per_gpu=(2, 1, 1), gpu_speed=(1.0, 1.0, 1.0)),
        costs=ExpertCosts(
            token_expert_s=1e-6, token_copy_bytes=1e3, intra_node_bytes_per_s=1e9, inter_node_bytes_per_s=1e8
        ),
    )
    place_experts(tiny, options=PlaceOptions(), clock=time.monotonic)


def plan_experts(instance: ExpertInstance, *, options: PlaceOptions) -> TimedExpertPlan:
    """Solve within the time limit and check the answer.

    Raises
    ------
    RuntimeError
        If the answer fails its check: a fault of ours.
    """
    load_kernels()
    began_s = time.monotonic()
    plan = place_experts(
        instance,
        options=replace(options, time_limit_s=max(LEAST_LIMIT_S, options.time_limit_s)),
        clock=time.monotonic,
    )
    solve_s = time.monotonic() - began_s
    violations = check_experts(instance, plan, previous=options.previous)
    if violations:
        raise RuntimeError(f"the plan of {instance.name} fails its check: {violations[0]}; please report it")
    return TimedExpertPlan(plan=plan, solve_s=solve_s)
