"""The loop over PowerDomains: every two seconds or faster, on the leader alone, in a thread of its own.

It exists beside the loop over services because a breaker waits for nobody: no solve, no list of pods and no dead
source may delay it. It places the domains in their tree, lets each decide on a grid of its own, renews leases and says
how things stand. All writes go through the fenced `Api`, in threads. Status and NodePowers are what the next leader
goes on from.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from pydantic import ValidationError

from controller.operator.api import (
    CONTROLLER,
    LEASES,
    NODE_POWERS,
    POWER_DOMAINS,
    STATUS,
    Api,
    ApiError,
    Object,
)
from controller.operator.conditions import Finding
from controller.operator.leader import stamp
from controller.operator.power import tree
from controller.operator.power.agents import Agents
from controller.operator.power.domain import DomainRun, Moment, warmed
from controller.operator.power.events import PowerEvents
from controller.operator.power.figures import (
    ACCEPTED,
    SERVERS_FIT,
    TRAINED,
    Figures,
    idle_w,
    refused_figures,
)
from controller.operator.power.history import PowerHistory
from controller.operator.power.orders import OrderDesk
from controller.operator.power.row import (
    class_of,
    clock_limits,
    curve_of,
    factor_of,
    pods_by_node,
    schedule_of,
    server_of,
)
from controller.operator.power.shares import Grants
from controller.operator.power.status import lasting, status_of
from controller.operator.power.studies import question_of, servers_fit, thresholds_trained
from controller.operator.power.study_desk import StudyDesk
from controller.operator.power.tree import Place, Wish
from controller.operator.times import parse_time, written_time
from controller.operator.views import PAUSED
from controller.operator.world import World
from controller.resources.power_domain import PowerDomainSpec, PowerMode, TelemetrySource, Thresholds
from solver.domain.errors import InputError
from solver.domain.power import BreakerCurve
from solver.power.breaker import theta_after, worst_theta
from solver.power.schedule import BudgetSchedule

log = structlog.get_logger(__name__)
FAILOVER = "ballast.dev/failover"
RELEASE = "ballast.dev/release"
FINALIZER = "ballast.dev/power-release"
STATUS_EVERY_S = 10.0
LEASE_PREFIX = "ballast-power-"
LEASE_MOST_S = 60.0
"""The longest lease that a domain may have."""
SETTLED_S = 4.0
RELEASE_LIMIT_S = 60.0
"""A domain that is deleted waits for its agents so long at most."""
LATE_S = 0.5
"""A decision this late is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSettings:
    """Where things are, and whether anything may be written."""

    namespace: str
    identity: str
    paused: bool = False


@dataclass(slots=True, kw_only=True)
class _Domain:
    """What is remembered of a PowerDomain."""

    uid: str
    generation: int = -1
    spec: PowerDomainSpec | None = None
    schedule: BudgetSchedule = field(default_factory=BudgetSchedule)
    trouble: str = ""
    run: DomainRun | None = None
    next_s: float = -math.inf
    figures: Figures | None = None
    theta: float | None = None
    """Of a domain with children."""
    judged: dict[str, dict[str, Any]] | None = None
    """What recorded power said last, as the status has it: admission and trained; None: not looked up yet."""
    told: Any = None
    told_s: float = -math.inf
    saying: "Future[Any] | None" = None
    leased_s: float = -math.inf
    lease: "Future[Any] | None" = None
    leaving_s: float | None = None
    """Since when it is being deleted."""
    clearing: bool = False
    """Its NodePowers are being deleted: nothing is told to nodes any more."""


@dataclass(slots=True, kw_only=True)
class PowerLoop:
    """State that may be lost at any time."""

    world: World
    api: Api
    reading: Api
    settings: PowerSettings
    agents: Agents
    desk: OrderDesk
    history: PowerHistory | None = None
    events: PowerEvents | None = None
    studies: StudyDesk = field(default_factory=lambda: StudyDesk(url=""))
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    stopping: threading.Event = field(default_factory=threading.Event)
    rounds: int = 0
    done_s: float = -math.inf
    """When the last round ended."""
    late_s: float = 0.0
    """How late the last round began."""
    took_s: float = 0.0
    _domains: dict[str, _Domain] = field(default_factory=dict)
    _found: dict[str, Object] | None = None
    _grants: Grants = field(default_factory=Grants)

    def run(self) -> None:
        """Go round until stopped."""
        threading.Thread(target=self.agents.run, name="agents", daemon=True).start()
        while not self.stopping.is_set():
            began_s = self.clock()
            try:
                next_s = self.once(began_s)
            except Exception:
                log.exception("power round failed")
                self.stopping.wait(1.0)
                continue
            self.done_s = self.clock()
            self.took_s = self.done_s - began_s
            self.stopping.wait(min(max(next_s - self.clock(), 0.02), 1.0))
        if self.history is not None:
            self.history.close()
        self.studies.close()
        self.agents.stopping.set()
        self.desk.close()

    def present(self) -> dict[str, Figures]:
        """Return how each domain stands; for any thread."""
        return {name: kept.figures for name, kept in self._domains.copy().items() if kept.figures is not None}

    # -- a round --------------------------------------------------------------------------------------------------

    def once(self, now_s: float) -> float:
        """Let every domain decide whose time has come; returns when the next one's comes."""
        bodies = {key[1]: body for key, body in self.world.all(POWER_DOMAINS.kind).items()}
        for gone in self._domains.keys() - bodies.keys():
            del self._domains[gone]
            self.studies.forget(gone)
            if self.events is not None:
                self.events.forget(gone)
        if not bodies:
            self.agents.want(())
            return now_s + 1.0
        if self._found is None and not self._look():
            return now_s + 1.0
        for name, body in bodies.items():
            self._read(name, body)
        nodes = {key[1]: node for key, node in self.world.all("Node").items()}
        pods = pods_by_node(self.world.all("Pod"))

        def class_now(wish: Wish, node: str) -> int:
            run = self._domains[wish.name].run
            known = None if run is None else run.class_by_node.get(node)
            return class_of(wish.spec, nodes.get(node), pods.get(node, ())) if known is None else known

        places = self._granted(tree.placed(self._wishes(bodies), nodes, class_now), now_s)
        self._follow(places)
        for name in sorted(
            places, key=lambda each: (bool(places[each].children), -_depth(each, self._specs()))
        ):
            kept = self._domains[name]
            if now_s < kept.next_s:
                continue
            period_s = 2.0 if kept.spec is None else kept.spec.telemetry.period_seconds
            grid_s = now_s if math.isinf(kept.next_s) else kept.next_s
            if now_s - grid_s >= period_s:  # rounds were missed: the samples between are missing, too
                grid_s += period_s * ((now_s - grid_s) // period_s)
            self.late_s = now_s - grid_s
            if self.late_s > LATE_S:
                log.warning("a decision is late", domain=name, seconds=round(self.late_s, 2))
            kept.next_s = grid_s + period_s
            moment = Moment(
                now_s=grid_s,
                wall_s=self.wall() - (self.clock() - grid_s),
                nodes=nodes,
                pods=pods,
                held=self._held(bodies[name]) or kept.clearing,
                release=self._releases(bodies[name], kept),
                trained=self._trained(bodies[name], kept, places[name]),
            )
            try:
                kept.figures = self._decided(name, kept, places, moment)
                kept.figures = self._with_studies(name, kept, places[name], now_s)
            except InputError as error:
                kept.figures = refused_figures(places[name], kept.spec, tree.INVALID_SPEC, str(error))
            except Exception:  # one odd object must not stand in the way of others
                log.exception("power domain", name=name)
                continue
            if self.history is not None:
                self.history.take(name, kept.figures, end_s=moment.wall_s, covered_s=period_s)
            self._keep_up(name, bodies[name], kept, now_s)
        for name, kept in self._domains.items():
            if name not in places and now_s >= kept.next_s:
                kept.next_s = now_s + 2.0
                kept.figures = refused_figures(Place(), None, tree.INVALID_SPEC, kept.trouble)
                self._keep_up(name, bodies[name], kept, now_s)
        self.rounds += 1
        return min(kept.next_s for kept in self._domains.values())

    def _look(self) -> bool:
        """Read what nodes were told by the leader before; without it nothing may be told."""
        try:
            self._found = {body["metadata"]["name"]: body for body in self.reading.each(NODE_POWERS)}
        except ApiError as error:
            log.warning("power", error=str(error))
            return False
        return True

    def _specs(self) -> dict[str, PowerDomainSpec]:
        return {name: kept.spec for name, kept in self._domains.items() if kept.spec is not None}

    def _read(self, name: str, body: Object) -> None:
        metadata = body["metadata"]
        uid, generation = str(metadata.get("uid") or ""), int(metadata.get("generation") or 0)
        kept = self._domains.get(name)
        if kept is None or kept.uid != uid:
            kept = self._domains[name] = _Domain(uid=uid)
        if metadata.get("deletionTimestamp") and kept.leaving_s is None:
            kept.leaving_s = self.clock()
        if kept.generation == generation:
            return
        kept.generation, kept.trouble = generation, ""
        try:
            kept.spec = PowerDomainSpec.model_validate(body["spec"])
            kept.schedule = schedule_of(kept.spec)
            curve_of(kept.spec)
            for each in kept.spec.classes:
                clock_limits(each, server_of(kept.spec))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            kept.spec, kept.trouble = None, f"spec.{place}: {first['msg']}"
        except InputError as error:
            kept.spec, kept.trouble = None, str(error)

    def _wishes(self, bodies: Mapping[str, Object]) -> dict[str, Wish]:
        wishes = {}
        for name, kept in self._domains.items():
            if kept.spec is None:
                continue
            metadata = bodies[name]["metadata"]
            failover = (metadata.get("annotations") or {}).get(FAILOVER) == "true"
            wishes[name] = Wish(
                name=name,
                spec=kept.spec,
                made_at=str(metadata.get("creationTimestamp") or ""),
                factor=factor_of(kept.spec, kept.schedule, failover=failover, now_s=self.wall()),
            )
        return wishes

    def _granted(self, places: Mapping[str, Place], now_s: float) -> dict[str, Place]:
        """Let nobody have more before others have less."""
        wanted = {name: (place.contract_w, place.budget_w) for name, place in places.items()}
        parents = {
            name: None if (spec := self._domains[name].spec) is None else spec.parent_ref for name in places
        }
        given = self._grants.settled(wanted, parents, now_s)
        return {
            name: replace(place, contract_w=given[name][0], budget_w=given[name][1])
            for name, place in places.items()
        }

    def _follow(self, places: Mapping[str, Place]) -> None:
        """Ask the agents of all domains that are run, and the meters."""
        run = {name: place for name, place in places.items() if not place.refused[0]}
        self.agents.want(tuple(sorted({node for place in run.values() for node in place.nodes})))
        self.agents.meters = {
            name: (told.url, told.query)
            for name in run
            if (spec := self._domains[name].spec) is not None
            and (told := spec.telemetry).source is not TelemetrySource.SUM_OF_NODES
            and told.url is not None
        }

    # -- what recorded power says -------------------------------------------------------------------------------------

    @staticmethod
    def _trained(body: Object, kept: _Domain, place: Place) -> Thresholds | None:
        """Return thresholds that were trained for this budget and so many servers."""
        if kept.judged is None:
            status = body.get("status") or {}
            kept.judged = {
                name: dict(status[name])
                for name in ("admission", "trained")
                if isinstance(status.get(name), dict)
            }
        found = kept.judged.get("trained")
        if kept.spec is None or kept.spec.train is None or found is None:
            return None
        same = found.get("budgetWatts") == round(place.contract_w) and found.get("servers") == len(
            place.nodes
        )
        try:
            return Thresholds.model_validate(found) if same else None
        except ValidationError:
            return None

    def _with_studies(self, name: str, kept: _Domain, place: Place, now_s: float) -> Figures:
        """Add what was asked of recorded power to how a domain stands."""
        figures, spec, row = kept.figures, kept.spec, None if kept.run is None else kept.run.row
        if figures is None:
            raise RuntimeError("decided without figures")
        if spec is None or row is None or (spec.admission is None and spec.train is None):
            return figures
        question = question_of(name, spec, place, row)
        found = self.studies.ask(question, now_s=now_s, wall_s=self.wall())
        judged = kept.judged if kept.judged is not None else {}
        for kind, answer in (("admission", found.admission), ("trained", found.training)):
            if answer.told is not None:
                judged[kind] = answer.told
        findings = dict(figures.findings)
        admission = trained = None
        if spec.admission is not None:
            admission = judged.get("admission")
            findings[SERVERS_FIT] = servers_fit(found, admission, spec, len(place.nodes))
        if spec.train is not None:
            trained = judged.get("trained")
            in_force = self._trained({}, kept, place) is not None
            findings[TRAINED] = thresholds_trained(found, in_force=in_force)
        return replace(figures, findings=findings, admission=admission, trained=trained)

    def _held(self, body: Object) -> bool:
        return self.settings.paused or (body["metadata"].get("annotations") or {}).get(PAUSED) == "true"

    @staticmethod
    def _releases(body: Object, kept: _Domain) -> bool:
        if (body["metadata"].get("annotations") or {}).get(RELEASE) == "true":
            return True
        figures = kept.figures
        fits = figures is not None and figures.full_w is not None and figures.full_w <= figures.budget_w
        return kept.leaving_s is not None and fits

    def _decided(self, name: str, kept: _Domain, places: Mapping[str, Place], moment: Moment) -> Figures:
        spec, place = kept.spec, places[name]
        if spec is None:
            raise RuntimeError("a domain without a spec has no place")
        if place.refused[0]:
            kept.run = None
            return refused_figures(place, spec, *place.refused)
        if place.children:
            return self._parent(name, kept, places, moment)
        floor_w = idle_w(spec, len(place.nodes))
        if place.contract_w <= floor_w:
            kept.run = None
            why = f"{place.contract_w:.0f} W for {len(place.nodes)} nodes that draw {floor_w:.0f} W without work"
            return refused_figures(place, spec, tree.BUDGET_BELOW_IDLE, why)
        if kept.run is None:
            status = dict((self.world.get(POWER_DOMAINS.kind, ("", name)) or {}).get("status") or {})
            sampled_s = parse_time(str(status.get("lastSampleTime") or ""))
            kept.run = DomainRun(
                name=name,
                lease={"namespace": self.settings.namespace, "name": _lease_name(name)},
                agents=self.agents,
                desk=self.desk,
                found=self._found or {},
                status={**status, "_sampled_s": sampled_s},
            )
        return kept.run.tick(spec, place, moment)

    def _parent(self, name: str, kept: _Domain, places: Mapping[str, Place], moment: Moment) -> Figures:
        """Add the children up: their budgets fit into this one's, so what is left is to say how warm its breaker is."""
        spec, place = kept.spec, places[name]
        if spec is None:
            raise RuntimeError("a domain without a spec has no place")
        stands = [self._domains[child].figures for child in place.children]
        static_w = spec.members.static_watts if spec.members else 0.0

        def total(values: list[float | None]) -> float | None:
            known = [value for value in values if value is not None]
            return static_w + sum(known) if known and len(known) == len(values) else None

        power_w = total([None if each is None else each.power_w for each in stands])
        worst_w = total([None if each is None else each.worst_w for each in stands])
        full_w = total([None if each is None else each.full_w for each in stands])
        curve = curve_of(spec)
        if kept.theta is None:
            kept.theta = self._parents_theta(name, worst_w, place.budget_w, curve)
        draw_w = worst_w if power_w is None else power_w
        if draw_w is not None:
            period_s = spec.telemetry.period_seconds
            kept.theta = theta_after(kept.theta, draw_w / place.budget_w, period_s, curve.tau_s)
        recourse_s = max((each.recourse_s for each in stands if each is not None), default=math.inf)
        enforced = all(
            (child := self._domains[each].spec) is not None and child.mode is PowerMode.AUTO
            for each in place.children
        )
        base = refused_figures(place, spec, "Accepted", "").findings
        findings = dict(base)
        worst = None
        if worst_w is not None:
            worst = worst_theta(
                kept.theta, worst_w / place.budget_w, recourse_s if enforced else math.inf, curve
            )
        findings.update(_parent_findings(place, power_w, worst, curve.trip_theta, stands))
        return Figures(
            budget_w=place.budget_w,
            power_w=power_w,
            theta=kept.theta,
            worst_theta=worst,
            worst_w=worst_w,
            full_w=full_w,
            recourse_s=recourse_s,
            nodes=sum(each.nodes for each in stands if each is not None),
            sampled_s=None if power_w is None else moment.wall_s,
            findings=findings,
            measured_w=total([None if each is None else each.measured_w for each in stands]),
            capped=any(each.capped for each in stands if each is not None),
        )

    def _parents_theta(self, name: str, worst_w: float | None, budget_w: float, curve: BreakerCurve) -> float:
        """Return the most that θ of a parent can be by now; of one that nobody looked after as at its rating."""
        status = (self.world.get(POWER_DOMAINS.kind, ("", name)) or {}).get("status") or {}
        theta, sampled_s = status.get("theta"), parse_time(str(status.get("lastSampleTime") or ""))
        if not isinstance(theta, int | float) or not sampled_s:
            return 1.0
        worst = math.inf if worst_w is None else worst_w / budget_w
        if not math.isfinite(worst):
            return 1.0
        age_s = max(self.wall() - sampled_s, 0.0)
        most = warmed(float(theta), worst, age_s=age_s, lease_s=LEASE_MOST_S, tau_s=curve.tau_s)
        return min(most, curve.trip_theta - 1e-6)

    # -- write ----------------------------------------------------------------------------------------------------

    def _keep_up(self, name: str, body: Object, kept: _Domain, now_s: float) -> None:
        """Say how it stands, renew its Lease, keep or drop its finalizer; all of it in threads."""
        figures, spec = kept.figures, kept.spec
        if figures is None:
            return
        if self.events is not None:
            self.events.take(body, figures, released=self._releases(body, kept))
        if kept.leaving_s is not None:
            if spec is not None and kept.run is not None and self._releases(body, kept) and not kept.clearing:
                self._renew(name, spec, kept, now_s)
            self._leave(name, body, kept, now_s)
            return
        run = kept.run is not None and not self._held(body)
        if run and spec is not None and (spec.mode is PowerMode.AUTO or self._releases(body, kept)):
            self._renew(name, spec, kept, now_s)
            if FINALIZER not in (body["metadata"].get("finalizers") or ()):
                self.desk.submit(lambda: self._finalize(name, body, held=True))
        if kept.saying is not None and not kept.saying.done():
            return
        status = status_of(body, figures, now=written_time(self.wall()))
        if lasting(status) == kept.told and now_s - kept.told_s < STATUS_EVERY_S:
            return
        if kept.saying is not None and kept.saying.result() is not True:
            kept.told = None  # it was not taken: again after a while
            kept.saying = None
            kept.told_s = now_s - STATUS_EVERY_S + 2.0
            return
        kept.told, kept.told_s = lasting(status), now_s
        kept.saying = self.desk.submit(lambda: self._say(name, status))

    def _say(self, name: str, status: dict[str, Any]) -> bool:
        try:
            answer = self.api.apply(
                POWER_DOMAINS,
                {"metadata": {"name": name}, "status": status},
                manager=STATUS,
                subresource="status",
                force=True,
            )
        except ApiError as error:
            log.warning("power status", domain=name, error=str(error))
            return error.code == 404
        self.world.put(POWER_DOMAINS.kind, answer)
        return True

    def _renew(self, name: str, spec: PowerDomainSpec, kept: _Domain, now_s: float) -> None:
        """Renew the Lease that the agents of a domain watch: only ever after a decision."""
        due = now_s - kept.leased_s >= spec.lease_duration_seconds / 3.0 - 1e-6
        if due and (kept.lease is None or kept.lease.done()):
            kept.leased_s = now_s
            kept.lease = self.desk.submit(lambda: self._lease(name, spec.lease_duration_seconds))

    def _lease(self, name: str, duration_s: int) -> None:
        metadata = {"name": _lease_name(name), "namespace": self.settings.namespace}
        spec = {
            "holderIdentity": self.settings.identity,
            "leaseDurationSeconds": duration_s,
            "renewTime": stamp(),
        }
        try:
            self.api.apply(LEASES, {"metadata": metadata, "spec": spec}, manager=CONTROLLER, force=True)
        except ApiError as error:
            log.warning("power lease", domain=name, error=str(error))

    def _finalize(self, name: str, body: Object, *, held: bool) -> None:
        """Put the finalizer on, or take it off; those of others stay."""
        others = [each for each in body["metadata"].get("finalizers") or () if each != FINALIZER]
        metadata = {
            "finalizers": [*others, FINALIZER] if held else others,
            "resourceVersion": body["metadata"].get("resourceVersion"),
        }
        try:
            self.world.put(
                POWER_DOMAINS.kind, self.api.patch(POWER_DOMAINS, None, name, {"metadata": metadata})
            )
        except ApiError as error:
            if error.code not in {404, 409}:
                log.warning("power finalizer", domain=name, error=str(error))

    def _leave(self, name: str, body: Object, kept: _Domain, now_s: float) -> None:
        """End a domain that is being deleted: released agents first give back what they found."""
        if FINALIZER not in (body["metadata"].get("finalizers") or ()) or kept.leaving_s is None:
            return
        releases, waited_s = self._releases(body, kept), now_s - kept.leaving_s
        waits = kept.run is not None and (waited_s < SETTLED_S or not kept.run.released())
        if releases and waits and waited_s < RELEASE_LIMIT_S:
            return
        kept.clearing = True
        if kept.run is not None and any(book.pending is not None for book in kept.run.books.values()):
            return
        if kept.saying is not None and not kept.saying.done():
            return
        nodes = () if kept.run is None else tuple(kept.run.books)
        kept.saying = self.desk.submit(lambda: self._clear(name, body, nodes))

    def _clear(self, name: str, body: Object, nodes: tuple[str, ...]) -> bool:
        for node in nodes:
            try:
                self.api.delete(NODE_POWERS, None, node)
            except ApiError as error:
                if error.code != 404:
                    log.warning("power", node=node, error=str(error))
                    return False
        self._finalize(name, body, held=False)
        return True


def _lease_name(domain: str) -> str:
    return f"{LEASE_PREFIX}{domain}"[:253].rstrip("-.")


def _depth(name: str, specs: Mapping[str, PowerDomainSpec]) -> int:
    depth, at = 0, specs.get(name)
    while at is not None and at.parent_ref is not None and at.parent_ref in specs and depth <= len(specs):
        depth, at = depth + 1, specs.get(at.parent_ref)
    return depth


def _parent_findings(
    place: Place,
    power_w: float | None,
    worst: float | None,
    trip: float,
    stands: list[Figures | None],
) -> dict[str, Any]:
    holds = worst is not None and worst < trip
    over = power_w is not None and power_w > place.budget_w
    found = {
        ACCEPTED: Finding(
            type=ACCEPTED, status=not place.odd[0], reason=place.odd[0] or "Accepted", message=place.odd[1]
        ),
        "GuaranteeHolds": Finding(
            type="GuaranteeHolds",
            status=holds,
            reason="WorstCaseBelowTrip" if holds else "WorstCaseTrips",
            message=""
            if holds
            else "its children could warm it beyond its trip state, or one of them is not run",
        ),
        "TelemetryFresh": Finding(
            type="TelemetryFresh",
            status=power_w is not None,
            reason="Fresh" if power_w is not None else "ChildSilent",
        ),
        "WithinBudget": Finding(
            type="WithinBudget",
            status=None if power_w is None else not over,
            reason="NotYetKnown" if power_w is None else "OverBudget" if over else "WithinBudget",
        ),
    }
    for kind, bad in (("LeaseValid", False), ("ActuatorsHealthy", False), ("GpuLost", True)):
        told = [each.findings.get(kind) for each in stands if each is not None]
        worst_told = next((one for one in told if one is not None and one.status is bad), None)
        found[kind] = worst_told or Finding(
            type=kind, status=not bad if told else None, reason="AllChildren" if told else "NotYetKnown"
        )
    return found
