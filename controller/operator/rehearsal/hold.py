"""Whether a Plan waits for its rehearsal, goes ahead, or is refused; kept as a condition on the Plan.

It exists so that a plan that would keep the SLO less than what runs is not applied, and so that no rehearsal ever
stands between traffic and capacity: what only adds, and whatever is needed at once, goes ahead unrehearsed. Only plans
that wait are looked at; one that is being applied is never stopped half-way. In mode Recommend the result is said, and
whoever approves decides. A digest approved by hand goes ahead in any mode.

Answers come from `controller.operator.rehearsal.desk`. They stand while the Plan's digest does and the traffic is much
the same; a refused plan is rehearsed anew for other traffic, not more often than every `AGAIN_S`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from controller.operator.conditions import REHEARSED, STATUS, Finding
from controller.operator.rehearsal.desk import RehearsalDesk
from controller.operator.rehearsal.question import (
    CANNOT,
    CRASHED,
    FALLS,
    MEMORY,
    NOT_NEEDED,
    OVERRAN,
    WAITS,
    RehearsalAnswer,
    RehearsalQuestion,
    question_of,
)
from controller.operator.rehearsal.said import said_of, takes_away
from controller.operator.rollout import Actuation, note
from controller.operator.views import PlanView, ServiceView
from controller.operator.world import Key
from controller.resources.model_service import Mode
from controller.resources.plan import Phase
from controller.resources.schema import Condition
from solver.domain.cluster import ServiceDecision, ServiceState, Stance
from solver.services.plan import serves

AGAIN_S = 300.0
WAIT_LIMIT_S = 900.0
"""After which a plan goes unrehearsed (or, where that is strict, stays): others may be before it, kernels compiled."""
FAILED = frozenset({OVERRAN, MEMORY, CRASHED})
Decided = Mapping[str, tuple[ServiceState, ServiceDecision]]


@dataclass(slots=True, kw_only=True)
class Rehearsals:
    """The gate before the first step of a Plan. For the loop's thread."""

    desk: RehearsalDesk = field(default_factory=RehearsalDesk)
    clock: Callable[[], float] = time.monotonic
    _views: Mapping[Key, ServiceView] = field(default_factory=dict)
    _decided: Decided = field(default_factory=dict)
    _gpus: Mapping[str, int] = field(default_factory=dict)
    _wanted: dict[str, int] | None = None
    _since: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By service: the digest that waits, and since when."""
    _needs: dict[str, tuple[ServiceView, ServiceDecision | None, str]] = field(default_factory=dict)
    """By service: why its plan cannot wait, as far as the service itself says."""
    _questions: dict[str, tuple[ServiceView, RehearsalQuestion | str]] = field(default_factory=dict)

    def begin(self, views: Mapping[Key, ServiceView], decided: Decided, gpus: Mapping[str, int]) -> None:
        """Take what a round sees; nothing is made of it unless a plan waits."""
        self._views, self._decided, self._gpus, self._wanted = views, decided, gpus, None
        if self._needs:
            for service in self._needs.keys() - {view.name for view in views.values()}:
                self._forget(service)

    def hold(self, view: ServiceView, act: Actuation) -> str:
        """Say what a Plan that waits is held for; empty: it may go ahead as its mode lets it.

        What is found is written on the Plan, so whoever brings it forward must read it anew.

        Raises
        ------
        ApiError
            If the result cannot be written on the Plan.
        """
        spec, plan, state = view.spec, view.plan, view.state
        if spec is None or spec.rehearsal is None or not spec.rehearsal.enabled:
            if view.name in self._needs:
                self._forget(view.name)
            return ""
        self.desk.prepare()
        if plan is None or state is None or not plan.spec.steps:
            return ""
        if plan.current.phase is not Phase.PROPOSED:
            return ""
        said = said_of(plan)
        if plan.approved == plan.spec.digest:
            if said is not None and said.reason == WAITS:
                message = "it was approved before it was rehearsed"
                note(view, act, Finding(type=REHEARSED, status=True, reason=NOT_NEEDED, message=message))
            return ""
        need = self._need(view, state, plan)
        if need:
            # in mode Auto it goes ahead at once, so nobody need be told
            silent = spec.mode is Mode.AUTO or not takes_away(plan)
            if not silent if said is None else said.reason != NOT_NEEDED:
                note(view, act, Finding(type=REHEARSED, status=True, reason=NOT_NEEDED, message=need))
            return ""
        if not view.traffic.buckets:
            return self._judged(view, act, self._unmeasured(view, plan, said), said)
        question = self._question(view)
        if isinstance(question, RehearsalQuestion):
            answer = self._answer(question, strict=spec.rehearsal.strict)
        else:
            answer = RehearsalAnswer(allowed=None, reason=CANNOT, message=question)
        return self._judged(view, act, answer, said)

    def _question(self, view: ServiceView) -> RehearsalQuestion | str:
        """Return what is to be asked, or why it cannot be; the same as long as the view is."""
        known = self._questions.get(view.name)
        if known is None or known[0] is not view:
            known = self._questions[view.name] = (view, question_of(view))
        return known[1]

    def _need(self, view: ServiceView, state: ServiceState, plan: PlanView) -> str:
        """Say why the plan goes ahead unrehearsed; what only the service itself decides is not looked at twice."""
        decision = self._decided.get(view.name, (state, None))[1]
        wanted = {entry.variant: entry.replicas for entry in plan.spec.desired}
        known = self._needs.get(view.name)
        if known is None or known[0] is not view or known[1] is not decision:
            known = self._needs[view.name] = (view, decision, made_at_once(state, wanted, decision))
        if known[2]:
            return known[2]
        given = {v.pool for v in state.variants if wanted.get(v.name, 0) < v.replicas}
        crowded = any(self._crowded(view, pool) for pool in given)
        return "others need the GPUs that it gives back" if crowded else ""

    def _judged(
        self, view: ServiceView, act: Actuation, answer: RehearsalAnswer | None, said: Condition | None
    ) -> str:
        """Say on the Plan what is known, once; return what it is held for."""
        spec = view.spec
        if spec is None or spec.rehearsal is None:
            return ""
        auto, strict = spec.mode is Mode.AUTO, spec.rehearsal.strict
        if answer is None:
            if said is None:  # what an earlier leader, or an earlier rehearsal, said stands meanwhile
                message = "what runs and what is planned are simulated on the last window of traffic"
                note(view, act, Finding(type=REHEARSED, status=None, reason=WAITS, message=message))
            return "the plan is rehearsed before it is applied" if auto else ""
        message = answer.message
        if answer.allowed is None:
            message += "; the plan is held (rehearsal.strict)" if strict else "; the plan is not held back"
        found = Finding(type=REHEARSED, status=answer.allowed, reason=answer.reason, message=message[:4096])
        same = said is not None and (said.status, said.reason, said.message) == (
            STATUS[found.status],
            found.reason,
            found.message,
        )
        if not same:
            note(view, act, found)
            if answer.reason == FALLS:
                act.event(view, "Warning", "PlanRefused" if auto else "PlanRehearsed", message)
        if not auto:
            return ""
        if answer.allowed is False:
            return f"the plan is not applied: {message}"
        if answer.allowed is None and strict:
            return f"the plan cannot be rehearsed: {message}"
        return ""

    def _answer(self, question: RehearsalQuestion, *, strict: bool) -> RehearsalAnswer | None:
        """Return what is known, and see to it that it is known soon; None: not yet."""
        service, now_s = question.service, self.clock()
        known = self.desk.known(service)
        if known is not None and known.question.digest == question.digest:
            early = now_s - known.at_s < AGAIN_S
            failed = strict and known.answer.reason in FAILED
            if early or (known.question.much_like(question) and not failed):
                return known.answer
        waits = self.desk.waits(service)
        if waits is None or waits.digest != question.digest:  # traffic that never rests must not begin anew
            self.desk.ask(question)
        late = self._late(service, question.digest)
        if known is not None and known.question.digest == question.digest:
            return known.answer  # until there is a newer one
        if not late:
            return None
        return RehearsalAnswer(
            allowed=None, reason=OVERRAN, message=f"there was no answer within {WAIT_LIMIT_S:.0f} s"
        )

    def _unmeasured(
        self, view: ServiceView, plan: PlanView, said: Condition | None
    ) -> RehearsalAnswer | None:
        """Return what holds while nothing is known of the traffic: what was refused stays so; None: not yet."""
        if said is not None and said.reason == FALLS:
            return RehearsalAnswer(allowed=False, reason=FALLS, message=said.message)
        if not self._late(view.name, plan.spec.digest):
            return None
        return RehearsalAnswer(allowed=None, reason=CANNOT, message="the traffic is not known")

    def _late(self, service: str, digest: str) -> bool:
        """Whether a plan has waited long enough for its first answer; the first call begins to count."""
        now_s = self.clock()
        waits, since_s = self._since.get(service, ("", now_s))
        if waits != digest:
            self._since[service] = (digest, since_s := now_s)
        return now_s - since_s >= WAIT_LIMIT_S

    def _forget(self, service: str) -> None:
        self._since.pop(service, None)
        self._needs.pop(service, None)
        self._questions.pop(service, None)
        self.desk.forget(service)

    def _crowded(self, view: ServiceView, pool: str) -> bool:
        """Whether others need GPUs of a pool that this service would keep if its plan were held."""
        if self._wanted is None:
            self._wanted = {}
            for one in self._views.values():
                for name, gpus in self._wish(one).items():
                    self._wanted[name] = self._wanted.get(name, 0) + gpus
        own = self._wish(view).get(pool, 0)
        kept = _gpus_of(view.state, {}).get(pool, 0)
        return self._wanted.get(pool, 0) - own + kept > self._gpus.get(pool, 0)

    def _wish(self, view: ServiceView) -> dict[str, int]:
        """GPUs that a service holds or is to have, whichever is more, by pool."""
        state, decision = view.state, self._decided.get(view.name)
        wanted: Mapping[str, int] = {}
        if state is not None and decision is not None and state.stance is Stance.APPLIED:
            names = [variant.name for variant in decision[0].variants]
            wanted = dict(zip(names, decision[1].replicas or (), strict=False))
        return _gpus_of(state, wanted)


def _gpus_of(state: ServiceState | None, wanted: Mapping[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for variant in state.variants if state is not None else ():
        count = max(variant.held, wanted.get(variant.name, 0))
        found[variant.pool] = found.get(variant.pool, 0) + count * variant.gpus_per_replica
    return found


def made_at_once(state: ServiceState, wanted: Mapping[str, int], decision: ServiceDecision | None) -> str:
    """Say why a change is made without a rehearsal; empty: it can wait for one.

    Parameters
    ----------
    state
        What runs, and its traffic.
    wanted
        Replicas by variant that are planned.
    decision
        That the plan came from, if it is known.
    """
    if all(wanted.get(variant.name, 0) >= variant.replicas for variant in state.variants):
        return "the plan takes nothing away"
    if state.buckets and not state.rate_rps:  # without buckets it is not known
        return "no traffic, so nothing to rehearse"
    outside = [
        variant.name
        for variant in state.variants
        if variant.max_replicas is not None and variant.replicas > variant.max_replicas
    ]
    if outside:
        return f"{', '.join(outside)} may not have so many replicas any more"
    ready = [min(variant.ready, variant.replicas) for variant in state.variants]
    if (
        not any(ready)  # even if it is not known what they would have to carry
        or not serves(state, state.replicas, headroom_ratio=state.headroom_ratio)
        or not serves(state, ready)
    ):
        return "what runs does not carry the traffic, so a change is needed at once"
    if decision is not None and decision.together_with:
        return "GPUs are short: it was decided together with others"
    return ""
