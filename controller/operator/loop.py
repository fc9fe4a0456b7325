"""The one loop of the leader: look, decide, write Plans, bring them forward, say how things stand.

It exists because the optimum is a global one: handlers of single objects cannot find it. Every round starts from what
is observed, never from what an earlier round remembers; memory is only used not to do work twice. It runs on the
leader alone and writes through an `Api` that refuses to write for anybody else.
"""

import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from controller.operator.annotated import wanted_services
from controller.operator.api import (
    ABSENT,
    CONTROLLER,
    GPU_PROFILES,
    MODEL_SERVICES,
    PLANS,
    STATUS,
    TARGETS,
    Api,
    ApiError,
    Object,
)
from controller.operator.brain import Brain
from controller.operator.inventory import Inventory
from controller.operator.notices import Notices
from controller.operator.plans import standing_replicas, write_plan
from controller.operator.profile_status import profile_status
from controller.operator.rehearsal.hold import Rehearsals
from controller.operator.rollout import Actuation, bring_forward, supersede
from controller.operator.status import Progress, status_of, unchanged
from controller.operator.targets import release
from controller.operator.times import parse_time, written_time
from controller.operator.traffic import Traffic
from controller.operator.views import ADOPTED_BY, PAUSED, ServiceView, Views
from controller.operator.world import Key, World
from controller.resources.kinds import API_VERSION
from controller.resources.model_service import Mode
from controller.resources.plan import Action, Phase, PlanSpec
from solver.domain.cluster import ClusterState, GpuPool, ServiceDecision, ServiceState, Stance
from solver.services.settle import MEASURED_SLACK_RATIO, Standing, added, restated, settle
from solver.services.steps import plan_steps

log = structlog.get_logger(__name__)
MOST_DEBOUNCES = 2.0
"""A change waits for a quiet moment no longer than so many debounce times."""
FAILED_WAIT_S = 60.0
MOST_BACKOFF_S = 60.0
WRITERS = 8
ENDED = frozenset({Phase.APPLIED, Phase.FAILED, Phase.SUPERSEDED})
REFUSED = frozenset({400, 403, 413, 422})
"""What the API server says of one object for what it is: its service waits, no other does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """How often to look and to decide, and whether to act at all."""

    plan_interval_s: float = 60.0
    debounce_s: float = 2.0
    coalesce_s: float = 0.2
    paused: bool = False
    gpu_label: str = "nvidia.com/gpu.product"
    dra_driver: str = "gpu.nvidia.com"
    whole_cluster: bool = True
    """No other installation of Ballast runs in this cluster."""


@dataclass(slots=True, kw_only=True)
class Backoff:
    """Writes of one service that failed: it waits, the others do not."""

    times: int = 0
    until_s: float = 0.0
    why: str = ""

    def failed(self, *, first_s: float) -> float:
        """Wait twice as long as the last time, but not for ever; returns the seconds."""
        wait_s = min(MOST_BACKOFF_S, first_s * math.pow(2.0, min(self.times, 20)))
        self.times += 1
        self.until_s = time.monotonic() + wait_s
        return wait_s


@dataclass(slots=True, kw_only=True)
class PlanWrite:
    """A new Plan, or the end of one without steps: nothing else of a round hangs on it, so many are written at once."""

    view: ServiceView
    act: Actuation
    body: Object | None = None
    """None: the Plan stands, and is to be brought forward."""
    written: PlanSpec | None = None
    events: list[tuple[Any, ...]] = field(default_factory=list)

    def done(self) -> Exception | None:
        """Write; return what stood against it."""
        try:
            if self.body is not None:
                answer = self.act.api.apply(PLANS, self.body, manager=CONTROLLER, force=True)
                self.act.world.put(PLANS.kind, answer)
            else:
                bring_forward(self.view, replace(self.act, event=lambda *said: self.events.append(said)))
        except Exception as error:  # noqa: BLE001 - told by `Loop._back_off`
            return error
        return None


@dataclass(slots=True, kw_only=True)
class Loop:
    """State of the loop that may be lost at any time."""

    world: World
    api: Api
    views: Views
    brain: Brain
    notices: Notices
    traffic_of: Callable[[Mapping[Key, Any]], Mapping[Key, Traffic]]
    """Traffic of services by key, from their specs."""
    settings: LoopSettings
    epoch: Callable[[], int]
    rehearsals: Rehearsals = field(default_factory=Rehearsals)
    on_plan: Callable[..., None] = lambda *_args, **_kwargs: None
    on_step: Callable[..., None] = lambda *_args, **_kwargs: None
    on_round: Callable[..., None] = lambda *_args, **_kwargs: None
    stopping: threading.Event = field(default_factory=threading.Event)
    rounds: int = 0
    round_done_s: float = float("-inf")
    """Monotonic time of the last whole round."""
    _decided: dict[str, tuple[ServiceState, ServiceDecision]] = field(default_factory=dict)
    _decided_pools: tuple[GpuPool, ...] = ()
    _decided_s: float = float("-inf")
    inventory: Inventory = field(default_factory=Inventory)
    """As it was taken last."""
    free_gpus: dict[str, int] = field(default_factory=dict)
    """By pool, after the last round's writes."""
    _solve_id: str = ""
    _under_way: bool = False
    """Some plan is being applied."""
    _dirty_since_s: float | None = None
    _backoffs: dict[str, Backoff] = field(default_factory=dict)
    _written: dict[Key, tuple[Any, ...]] = field(default_factory=dict)
    _failures: dict[str, tuple[str, str]] = field(default_factory=dict)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(WRITERS, "write"))

    def run(self) -> None:
        """Go round until stopped."""
        seen = -1
        while not self.stopping.is_set():
            seen = self.world.wait(seen, timeout_s=self._nap_s())
            self.stopping.wait(self.settings.coalesce_s)
            if self.stopping.is_set():
                return
            began_s = time.monotonic()
            try:
                self.once()
                error = ""
            except ApiError as problem:
                error = str(problem)
                log.warning("round", error=error)
            except Exception:
                error = "internal error"
                log.exception("round failed")
            if error:
                self.stopping.wait(1.0)
            else:
                self.round_done_s = time.monotonic()
            self.rounds += 1
            self.on_round(self, time.monotonic() - began_s, error)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _nap_s(self) -> float:
        """Until the next look if nothing happens: soon while something is under way, else a plan interval."""
        if self._dirty_since_s is not None:
            return 0.2
        naps_s = [self.settings.plan_interval_s]
        if self._under_way or self.brain.setbacks:
            naps_s.append(2.0)
        now_s = time.monotonic()
        # one whose time has come and who is not tried again (it is paused, or well) keeps nobody awake
        naps_s += [max(0.2, b.until_s - now_s) for b in self._backoffs.values() if b.until_s > now_s]
        return min(naps_s)

    def once(self) -> None:
        """One round."""
        now_s = time.time()
        now = written_time(now_s)
        specs = self.views.specs()
        owners = self.views.owners(specs)
        autoscaled = self.views.autoscaled()
        inventory = self.views.inventory(specs, owners, dra_driver=self.settings.dra_driver)
        traffic = self.traffic_of(specs)
        views = {}
        for key, entry in specs.items():
            hold = self.brain.held(f"{key[0]}/{key[1]}", time.monotonic())
            views[key] = self.views.view(
                key,
                entry,
                traffic=traffic.get(key, Traffic()),
                owners=owners,
                autoscaled=autoscaled,
                inventory=inventory,
                hold=hold,
            )
        if not self.settings.paused:
            self._annotated(owners)
        progress: dict[Key, Progress] = {}
        self._decide(views, inventory)
        moving = {Phase.APPROVED, Phase.APPLYING}
        self._under_way = any(v.plan is not None and v.plan.current.phase in moving for v in views.values())
        free = self._free(views, inventory)
        self.rehearsals.begin(views, self._decided, inventory.gpus)
        writes: list[PlanWrite] = []
        for view in views.values():
            progress[view.key] = self._advance(view, inventory, free, writes, now=now, now_s=now_s)
        self._write_side_by_side(writes, progress)
        self.inventory, self.free_gpus = inventory, free
        if not self.settings.paused:
            self._release(specs, owners)
        self._statuses(views, progress, now)
        self._profiles(specs, inventory, now)
        self._forget_gone(views)

    # -- what there is ------------------------------------------------------------------------------------------

    def _free(self, views: Mapping[Key, ServiceView], inventory: Inventory) -> dict[str, int]:
        free = dict(inventory.gpus)
        for view in views.values():
            for variant in view.state.variants if view.state is not None else ():
                # what runs, not what a plan under way may hold later
                target = next((v.target for v in view.variants if v.spec.name == variant.name), None)
                if target is None:
                    continue
                owner = (target.kind, *target.key)
                alive = (
                    target.running if target.kind == "LeaderWorkerSet" else len(inventory.pods.get(owner, ()))
                )
                held = max(target.replicas, alive) * variant.gpus_per_replica
                free[variant.pool] = free.get(variant.pool, 0) - held
        return free

    # -- decide -------------------------------------------------------------------------------------------------

    def _decide(self, views: Mapping[Key, ServiceView], inventory: Inventory) -> None:
        """Solve when something changed and has been quiet for a moment, or when it is time."""
        services = tuple(view.state for view in views.values() if view.state is not None)
        pools = tuple(GpuPool(name=name, gpus=gpus) for name, gpus in sorted(inventory.gpus.items()))
        moving = {s.name: s for s in services if s.stance is not Stance.FIXED}
        same = pools == self._decided_pools and all(
            name in self._decided and self._decided[name][0] == state for name, state in moving.items()
        )
        now_s = time.monotonic()
        proved = all(decision.status != "timed-out" for _, decision in self._decided.values())
        again = not proved and now_s - self._decided_s >= self.settings.plan_interval_s
        if same and not again and not (moving.keys() ^ self._decided.keys()):
            self._dirty_since_s = None
            return
        if self._dirty_since_s is None:
            self._dirty_since_s = now_s
        quiet = now_s - self.world.changed_s >= self.settings.debounce_s
        waited = now_s - self._dirty_since_s
        # a cluster in which something always changes is never quiet: nobody waits for that
        if (
            self._decided_s > float("-inf")
            and not quiet
            and waited < MOST_DEBOUNCES * self.settings.debounce_s
        ):
            return
        self._dirty_since_s = None
        decisions = self.brain.decide(ClusterState(pools=pools, services=services))
        self._decided_s = time.monotonic()
        if decisions is None:
            for name, setback in self.brain.setbacks.items():
                self._failures[name] = (setback.reason, setback.message)
            self.world.note()
            return
        self._solve_id = uuid.uuid4().hex[:12]
        self._decided_pools = pools
        self._decided = {d.service: (moving[d.service], d) for d in decisions}
        for name in [name for name in self._failures if name not in self.brain.setbacks]:
            del self._failures[name]
        self.on_plan(self, decisions)

    # -- act ----------------------------------------------------------------------------------------------------

    def _advance(
        self,
        view: ServiceView,
        inventory: Inventory,
        free: dict[str, int],
        writes: list[PlanWrite],
        *,
        now: str,
        now_s: float,
    ) -> Progress:
        """Bring one service forward; writes that nothing else hangs on are put to ``writes``."""
        reason, message = self._failures.get(view.name, ("", ""))
        setback = self.brain.setbacks.get(view.name)
        if setback is not None and not reason:
            reason, message = setback.reason, setback.message
        known = self._decided.get(view.name)
        decision = known[1] if known is not None else None
        progress = Progress(decision=decision, solver_reason=reason, solver_message=message)
        if self.settings.paused:
            return replace(progress, held="paused by the chart's values: nothing is changed")
        if view.spec is None or view.paused:
            return progress
        backoff = self._backoffs.get(view.name)
        if backoff is not None and time.monotonic() < backoff.until_s:
            return replace(progress, waits_for=backoff.why)
        act = Actuation(
            api=self.api,
            world=self.world,
            free_gpus=free,
            epoch=self.epoch(),
            now=now,
            now_s=now_s,
            event=self.notices.event,
            on_step=self.on_step,
        )
        try:
            if view.spec.mode is Mode.OBSERVE:
                supersede(view, act, "mode Observe: the plan is not applied")
                return progress
            refused = ""
            if known is not None and known[0] == view.state:
                job = self._propose(view, known[1], inventory, free, act)
                if isinstance(job, PlanWrite):
                    writes.append(job)
                    return progress
                refused = job
            waits_for = held_back = ""
            if self._plan_is_current(view) and view.plan is not None:
                if not view.plan.spec.steps and view.plan.current.phase not in ENDED:
                    writes.append(PlanWrite(view=view, act=act))  # it takes no GPUs: nobody hangs on it
                    return replace(progress, refused=refused)
                held_back = self.rehearsals.hold(view, act)
                plan = self.views.plan(view.key)
                now_view = view if plan is view.plan else replace(view, plan=plan)
                waits_for = "" if held_back else bring_forward(now_view, act)
        except Exception as error:  # noqa: BLE001 - one service's trouble is nobody else's
            return replace(progress, waits_for=self._back_off(view, error))
        self._backoffs.pop(view.name, None)
        return replace(progress, refused=refused, waits_for=waits_for, held_back=held_back)

    def _plan_is_current(self, view: ServiceView) -> bool:
        """Whether the view's Plan is the one in the cluster (not just replaced by us)."""
        now = self.views.plan(view.key)
        return view.plan is not None and now is not None and now.spec.digest == view.plan.spec.digest

    def _write_side_by_side(self, writes: Sequence[PlanWrite], progress: dict[Key, Progress]) -> None:
        """Write new Plans, and that Plans without steps are applied."""
        for write, error in zip(writes, self._pool.map(PlanWrite.done, writes), strict=True):
            view = write.view
            for event in write.events:
                self.notices.event(*event)
            if error is not None:
                progress[view.key] = replace(progress[view.key], waits_for=self._back_off(view, error))
                continue
            self._backoffs.pop(view.name, None)
            if write.written is not None:
                first = write.written.reasons[0]
                self.notices.event(view, "Normal", "PlanMade", f"Plan {write.written.digest}: {first}")
                self.on_step(view, -1, "planned", write.written)

    def _back_off(self, view: ServiceView, error: Exception) -> str:
        """Let a service wait after something failed; returns what its owner should know of it."""
        backoff = self._backoffs.setdefault(view.name, Backoff())
        wait_s = backoff.failed(first_s=1.0)
        if isinstance(error, ApiError) and error.passing:
            wait_s = 0.2
            backoff.until_s = time.monotonic() + wait_s
        if not isinstance(error, ApiError):
            log.error("service failed", service=view.name, again_in_s=wait_s, exc_info=error)
            backoff.why = (
                f"an internal error ({type(error).__name__}), see the controller's log; others go on"
            )
            self.notices.event(view, "Warning", "InternalError", backoff.why)
            return backoff.why
        log.warning("write", service=view.name, code=error.code, error=str(error), again_in_s=wait_s)
        if not error.passing:
            backoff.why = f"a write was refused: {error}"
            self.notices.event(view, "Warning", "WriteFailed", str(error))
        return backoff.why

    def _propose(
        self,
        view: ServiceView,
        decision: ServiceDecision,
        inventory: Inventory,
        free: Mapping[str, int],
        act: Actuation,
    ) -> "str | PlanWrite":
        """Return a Plan to write if the decision calls for it, or why it cannot be reached, if so."""
        state, spec, plan = view.state, view.spec, view.plan
        if decision.replicas is None or state is None or spec is None or state.stance is Stance.FIXED:
            return ""
        old = standing_replicas(plan, state)
        status = None if plan is None else plan.current
        since_s = float("inf")
        if plan is not None:
            since_s = act.now_s - parse_time(plan.spec.made_at)
            if status is not None and status.phase is Phase.FAILED and since_s < FAILED_WAIT_S:
                return ""
        held: dict[str, int] = {}
        for name, gpus in free.items():
            held[name] = inventory.gpus.get(name, 0) - gpus
        overdrawn = any(
            held.get(variant.pool, 0) > inventory.gpus.get(variant.pool, 0) for variant in state.variants
        )
        verdict = settle(
            state,
            decision.replicas,
            Standing(
                replicas=old,
                same_wish=plan is not None and plan.spec.generation == view.generation,
                since_s=since_s,
                reached=status is not None and status.phase is Phase.APPLIED,
            ),
            settled=view.traffic.settled,
            slack_ratio=0.0 if view.traffic.stated else MEASURED_SLACK_RATIO,
            overdrawn=overdrawn,
            min_interval_s=spec.change.min_interval_seconds,
        )
        rollout = None
        if verdict.add_only and old is not None and not decision.together_with:
            more = added(state, decision.replicas, old)
            way = plan_steps(state, more, free)
            if not way.refused:  # else GPUs are short, and the better mix is the only way
                decision, rollout = restated(state, decision, more), way
        if not verdict.replace:
            waiting = (
                status is not None and status.phase is Phase.PROPOSED and plan is not None and old is not None
            )
            if not waiting or plan is None or old is None:
                return ""
            # a proposal must start from what runs now, or its approval would not fit
            first: dict[str, int] = {}
            for step in [s for s in plan.spec.steps if s.action is not Action.SHIFT]:
                first.setdefault(step.variant, step.from_replicas)
            fits = all(first.get(v.name, v.replicas) == v.replicas for v in state.variants) and all(
                v.name in first or want == v.replicas for v, want in zip(state.variants, old, strict=True)
            )
            if fits:
                return ""
            rollout = plan_steps(state, old, free)
            if rollout.refused:
                return rollout.refused
            decision = restated(state, decision, old)
        if rollout is None:
            rollout = plan_steps(state, decision.replicas or (), free)
        if rollout.refused:
            return rollout.refused
        written = write_plan(
            view,
            state,
            decision,
            rollout,
            solve_id=self._solve_id,
            made_at=act.now,
            why=verdict.why if verdict.replace else "what runs changed",
        )
        body: Object = {
            "metadata": {
                "name": view.key[1],
                "namespace": view.key[0],
                "labels": {"app.kubernetes.io/managed-by": "ballast"},
                "ownerReferences": [
                    {
                        "apiVersion": API_VERSION,
                        "kind": MODEL_SERVICES.kind,
                        "name": view.key[1],
                        "uid": view.uid,
                        "controller": True,
                        "blockOwnerDeletion": False,
                    }
                ],
            },
            "spec": written.written(),
        }
        known = self.world.get(PLANS.kind, view.key)
        if known is not None and known["spec"].get("experts"):
            return f"Plan {view.key[1]} is that of an ExpertPlacement: one of the two needs another name"
        version = ABSENT if known is None else str(known["metadata"]["resourceVersion"])
        body["metadata"]["resourceVersion"] = version if plan is None else plan.version
        return PlanWrite(view=view, act=act, body=body, written=written)

    def _annotated(self, owners: Mapping[Any, Key]) -> None:
        """Make an observing ModelService for targets that ask for one by annotation."""
        named = set(owners)
        for kind in TARGETS:
            for target in self.world.all(kind).values():
                body, trouble = wanted_services(target, named)
                if trouble:
                    self.notices.event_on(target, "Warning", "AnnotationsIncomplete", trouble)
                if body is None:
                    continue
                try:
                    self.api.create(MODEL_SERVICES, target.key[0], body)
                except ApiError as error:
                    if error.code != 409:
                        self.notices.event_on(target, "Warning", "NoModelService", str(error))

    def _release(self, specs: Mapping[Key, Any], owners: Mapping[Any, Key]) -> None:
        """Give back targets whose service is gone, paused, only observes, or names them no more."""
        for kind in TARGETS:
            for target in self.world.all(kind).values():
                adopter = target.annotations.get(ADOPTED_BY)
                if adopter is None:
                    continue
                namespace, _, name = adopter.partition("/")
                key = (namespace, name)
                entry = specs.get(key)
                if entry is not None:
                    body, spec, _ = entry
                    if spec is None:
                        continue  # it cannot be read: nothing is changed
                    annotations = body["metadata"].get("annotations") or {}
                    idle = spec.paused or annotations.get(PAUSED) == "true" or spec.mode is Mode.OBSERVE
                    named = owners.get((kind, *target.key)) == key
                    if named and not idle:
                        continue
                backoff = self._backoffs.setdefault(f"release {kind} {target.key}", Backoff())
                if time.monotonic() < backoff.until_s:
                    continue
                try:
                    body = release(self.api, target)
                except ApiError as error:
                    backoff.failed(first_s=0.4)
                    log.warning("release", target=target.key[1], error=str(error))
                    continue
                self._backoffs.pop(f"release {kind} {target.key}", None)
                if body is not None:
                    self.world.put(kind, body)
                self.notices.event_on(target, "Normal", "Released", f"left at {target.replicas} replicas")

    # -- say ----------------------------------------------------------------------------------------------------

    def _statuses(self, views: Mapping[Key, ServiceView], progress: Mapping[Key, Progress], now: str) -> None:
        jobs = []
        for key, view in views.items():
            inputs = (view.body, view, progress[key])
            known = self._written.get(key)
            if known is not None and known[1] is view and known[2] == progress[key]:
                continue
            backoff = self._backoffs.get(f"status {key}")
            if backoff is not None and time.monotonic() < backoff.until_s:
                continue
            try:
                status = status_of(view, progress[key], now=now)
            except Exception as trouble:  # noqa: BLE001 - one service's trouble is nobody else's
                self._status_failed(view, trouble)
                continue
            if unchanged(status, view.body.get("status") or {}):
                self._written[key] = inputs
                self._backoffs.pop(f"status {key}", None)
                continue
            jobs.append((view, status, inputs))
        errors = list(self._pool.map(self._write_status, jobs))
        for (view, _, _), error in zip(jobs, errors, strict=True):
            if error is None:
                self._backoffs.pop(f"status {view.key}", None)
            elif error.passing or error.code == 404:
                continue
            elif error.code in REFUSED:
                self._status_failed(view, error)
            else:
                raise error

    def _forget_gone(self, views: Mapping[Key, ServiceView]) -> None:
        """Let go of what is remembered of services and targets that are gone: it would also keep naps short."""
        for key in self._written.keys() - views.keys():
            del self._written[key]
        names = {view.name for view in views.values()}
        for kept in (self._failures, self.brain.setbacks):
            for name in kept.keys() - names:
                del kept[name]
        if self._backoffs:
            waits = names | {f"status {key}" for key in views}
            waits |= {f"release {kind} {key}" for kind in TARGETS for key in self.world.all(kind)}
            for name in self._backoffs.keys() - waits:
                del self._backoffs[name]

    def _status_failed(self, view: ServiceView, error: Exception) -> None:
        """Let a service's status wait."""
        backoff = self._backoffs.setdefault(f"status {view.key}", Backoff())
        backoff.failed(first_s=1.0)
        if isinstance(error, ApiError):
            log.warning("status", service=view.name, code=error.code, error=str(error))
        else:
            log.error("status failed", service=view.name, exc_info=error)

    def _profiles(self, specs: Mapping[Key, Any], inventory: Inventory, now: str) -> None:
        """Say on each GpuProfile what it stands for; several installations would say it differently, without end."""
        if not self.settings.whole_cluster:
            return
        users: dict[str, int] = {}
        for _, spec, _ in specs.values():
            for variant in spec.variants if spec is not None else ():
                users[variant.gpu_profile] = users.get(variant.gpu_profile, 0) + 1
        for key, body in self.world.all(GPU_PROFILES.kind).items():
            spec, trouble = self.views.profile(key[1])
            status = profile_status(
                body,
                spec,
                trouble=trouble,
                pool="" if spec is None else self.views.pool_of(spec).name,
                inventory=inventory,
                users=users.get(key[1], 0),
                now=now,
            )
            if unchanged(status, body.get("status") or {}):
                continue
            try:
                answer = self.api.apply(
                    GPU_PROFILES,
                    {
                        "metadata": {"name": key[1], "resourceVersion": body["metadata"]["resourceVersion"]},
                        "status": status,
                    },
                    manager=STATUS,
                    subresource="status",
                    force=True,
                )
            except ApiError as error:
                if error.code != 404 and not error.passing:
                    log.warning("write", profile=key[1], error=str(error))
                continue
            self.world.put(GPU_PROFILES.kind, answer)

    def _write_status(self, job: tuple[ServiceView, dict[str, Any], tuple[Any, ...]]) -> ApiError | None:
        view, status, inputs = job
        body: Object = {
            "metadata": {
                "name": view.key[1],
                "namespace": view.key[0],
                "resourceVersion": view.body["metadata"]["resourceVersion"],
            },
            "status": status,
        }
        try:
            answer = self.api.apply(MODEL_SERVICES, body, manager=STATUS, subresource="status", force=True)
        except ApiError as error:
            return error
        self._written[view.key] = inputs
        self.world.put(MODEL_SERVICES.kind, answer)
        return None
