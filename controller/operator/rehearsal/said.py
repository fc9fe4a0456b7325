"""What is said of a Plan's rehearsal on the Plan, and from there on its ModelService.

It exists so that the result outlives the leader that rehearsed, and stands where people look. It rehearses nothing.
"""

from controller.operator.conditions import APPLIED, REHEARSED, Finding
from controller.operator.rehearsal.question import NOT_NEEDED, WAITS
from controller.operator.views import APPROVED, PlanView, ServiceView
from controller.resources.plan import Action, Phase
from controller.resources.schema import Condition

WORDS = {"True": True, "False": False}


def said_of(plan: PlanView) -> Condition | None:
    """Return what was said of the rehearsal of the Plan that stands."""
    return next((found for found in plan.current.conditions if found.type == REHEARSED), None)


def takes_away(plan: PlanView) -> bool:
    """Whether some step of a Plan takes replicas away."""
    return any(
        step.to_replicas < step.from_replicas for step in plan.spec.steps if step.action is not Action.SHIFT
    )


def rehearsed(view: ServiceView) -> list[Finding]:
    """Say what came of the rehearsal of a service's Plan; nothing where none is wished."""
    spec, plan = view.spec, view.plan
    if spec is None or spec.rehearsal is None or not spec.rehearsal.enabled:
        return []
    if plan is None or plan.current.phase is Phase.SUPERSEDED:
        message = "there is no plan to rehearse"
        return [Finding(type=REHEARSED, status=None, reason="NoPlan", message=message)]
    said = said_of(plan)
    if said is not None:
        status = WORDS.get(said.status)
        return [Finding(type=REHEARSED, status=status, reason=said.reason, message=said.message)]
    if takes_away(plan) and plan.current.phase is Phase.PROPOSED:
        return [Finding(type=REHEARSED, status=None, reason=WAITS, message="the plan is being rehearsed")]
    message = "the plan takes nothing away, or was needed at once"
    return [Finding(type=REHEARSED, status=True, reason=NOT_NEEDED, message=message)]


def warning(plan: PlanView) -> str:
    """Warn whoever is to approve a Plan whose rehearsal fell short; empty where there is nothing to warn of."""
    said = said_of(plan)
    return (
        f"its rehearsal fell short, {said.message}; " if said is not None and said.status == "False" else ""
    )


def held(view: ServiceView, why: str) -> Finding:
    """Say that the Plan is held for its rehearsal, and how to apply it all the same."""
    digest = "" if view.plan is None else view.plan.spec.digest
    return Finding(
        type=APPLIED,
        status=False,
        reason="HeldByRehearsal",
        message=f"{why}; to apply it all the same: kubectl annotate -n {view.key[0]} plan/{view.key[1]}"
        f" --overwrite {APPROVED}={digest}",
    )
