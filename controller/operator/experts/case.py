"""What is known of one ExpertPlacement: what is remembered between rounds, and what one round sees.

It exists so that the loop, its Plans and its gauges speak of the same things. What is remembered saves work and may be
lost at any time; it decides nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from controller.operator.api import Object
from controller.operator.experts.outputs import Written, found, outputs_of
from controller.operator.experts.recorded import Look
from controller.operator.experts.restart import Rollout
from controller.operator.experts.smoothing import Smoothed
from controller.operator.experts.status import Progress, figures_of, refusal_of
from controller.operator.views import PlanView
from controller.operator.world import Key
from controller.resources.expert_placement import ExpertPlacementSpec
from controller.resources.plan import Phase
from solver.domain.moe import ExpertPlan

IN_FLIGHT = frozenset({Phase.PROPOSED, Phase.APPROVED, Phase.APPLYING})
_FIGURES = (
    "objectiveUs",
    "lowerBoundUs",
    "gap",
    "balance",
    "crossGpu",
    "crossNode",
    "movedRatio",
    "predictedMoveSeconds",
    "netGainSeconds",
)


@dataclass(slots=True, eq=False)
class Book:
    """What is remembered of one placement, to save work."""

    uid: str
    generation: int = -1
    spec: ExpertPlacementSpec | None = None
    trouble: str = ""
    source: Any = None
    """Of the loads that are remembered."""
    look: Look | None = None
    next_look_s: float = 0.0
    smoothed: Smoothed = field(default_factory=Smoothed)
    decided: tuple[Any, ...] | None = None
    """What the last answer was found for; the generation first."""
    answer: ExpertPlan | None = None
    solve_s: float | None = None
    """How long the last answer took."""
    plan_read: tuple[Any, tuple[PlanView | None, bool]] | None = None
    """The Plan as it was read last, with what it was read from."""
    failure: tuple[str, str] = ("", "")
    failures: int = 0
    until_s: float = 0.0
    """Monotonic: left out until then."""

    @property
    def solved(self) -> str:
        """Status of the last answer; empty: none yet."""
        return "" if self.answer is None else self.answer.status.value

    def standing(self, case: "Case") -> Progress:
        """Say what the last answer was."""
        kept = case.kept()
        if self.answer is None:
            return Progress(solved="feasible" if case.there else "", applied=case.applied, **kept)
        figures = figures_of(self.answer)
        refused = refusal_of(self.answer)
        return Progress(
            solved=self.solved, refused=refused, applied=case.applied, **{**kept, "figures": figures}
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One placement in one round."""

    key: Key
    body: Object
    book: Book
    spec: ExpertPlacementSpec
    plan: PlanView | None = None
    config_map: Object | None = None
    written: Written = field(default_factory=Written)
    rollout: Rollout | None = None
    """Of the target; None where no restart is asked for."""
    load: tuple[str, str] = ("", "")
    """Why the loads say nothing new."""

    @property
    def name(self) -> str:
        """Namespace and name."""
        return f"{self.key[0]}/{self.key[1]}"

    def seen(self, config_map: Object | None) -> "Case":
        """Return the case with the ConfigMap as it now is."""
        return replace(self, config_map=config_map, written=found(config_map, self.book.uid, self.spec))

    @property
    def there(self) -> bool:
        """A map is written."""
        return bool(self.written.data)

    @property
    def applied(self) -> bool:
        """What is written is what the target's pods have loaded, where that is ours to see to."""
        rollout = self.rollout
        return self.there and (
            rollout is None or (rollout.digest == self.written.digest and rollout.done and not self.in_flight)
        )

    @property
    def in_flight(self) -> bool:
        """A Plan waits, or is being applied."""
        return self.plan is not None and self.plan.current.phase in IN_FLIGHT

    @property
    def aim(self) -> tuple[str, bool]:
        """Digest of the map that will be in force when nothing more is decided; whether a restart is still missing."""
        if self.in_flight and self.plan is not None and self.plan.spec.experts is not None:
            return self.plan.spec.experts.map_digest, False
        behind = self.there and self.rollout is not None and self.rollout.digest != self.written.digest
        return self.written.digest, behind

    @property
    def another_wish(self) -> bool:
        """The spec is not the one that was decided on last: it does not wait for the interval."""
        decided, generation = self.book.decided, self.book.generation
        seen = int((self.body.get("status") or {}).get("observedGeneration") or 0)
        return generation != seen or (decided is not None and decided[0] != generation)

    def kept(self) -> dict[str, Any]:
        """Return what the status says already, and what the ConfigMap and the Plan say themselves."""
        plan = self.plan
        stands = plan is not None and plan.current.phase is not Phase.SUPERSEDED
        return kept_of(self.body) | {
            "outputs": tuple(outputs_of(self.key, self.spec, self.written.data)),
            "digest": self.written.digest,
            "made_at": self.written.made_at,
            "plan": plan.spec.digest if plan is not None and stands else "",
        }


def kept_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the status says already and nothing has replaced."""
    before = body.get("status") or {}
    return {
        "figures": {name: before[name] for name in _FIGURES if name in before},
        "outputs": tuple(before.get("outputs") or ()),
        "digest": str(before.get("digest") or ""),
        "made_at": str(before.get("madeAt") or ""),
        "plan": str((before.get("planRef") or {}).get("digest") or ""),
    }
