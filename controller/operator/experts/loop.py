"""The loop over ExpertPlacements: look at loads, place, write Plans, bring them forward, say how things stand.

It exists beside the loop over services because nothing ties them: experts share no GPUs with others, and a slow solve
or a dead source must delay no replica. It runs on the leader alone, in a thread of its own, and writes through the same
fenced `Api`. The map and the Plan in the cluster are its only memory; what it keeps itself saves work, nothing else.
"""

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from pydantic import ValidationError

from controller.operator.api import (
    ABSENT,
    CONFIG_MAPS,
    CONTROLLER,
    EXPERT_PLACEMENTS,
    PLANS,
    PODS,
    STATUS,
    Api,
    ApiError,
    Object,
)
from controller.operator.experts.case import Book, Case, kept_of
from controller.operator.experts.child import Failure, Placer, Task
from controller.operator.experts.freshness import stale, take
from controller.operator.experts.group import instance_of, topology_of
from controller.operator.experts.history import LoadHistory
from controller.operator.experts.outputs import data_of
from controller.operator.experts.plans import (
    body_of_plan,
    needs_approval,
    plan_key,
    plan_of,
    same_change,
    steps_of,
    write_plan,
)
from controller.operator.experts.recorded import Look, look
from controller.operator.experts.restart import observed
from controller.operator.experts.rollout import FAILED, Actuation, Waits, bring_forward, supersede
from controller.operator.experts.smoothing import Smoothed
from controller.operator.experts.status import Progress, status_of
from controller.operator.notices import Notices
from controller.operator.status import unchanged
from controller.operator.times import parse_time, written_time
from controller.operator.views import PAUSED, PlanView
from controller.operator.world import Key, World
from controller.resources.expert_placement import ApplyMode, Approval, ExpertPlacementSpec
from controller.resources.plan import ExpertStep, Phase, PlanSpec
from solver.domain.errors import InputError
from solver.domain.moe import ExpertPlan, ExpertTopology
from telemetry.sources.prometheus_access import PrometheusServers

log = structlog.get_logger(__name__)
READERS = 8
AGAIN_S = 15.0
"""An odd object is looked at again after so long."""
MOST_BACKOFF_S = 600.0
FAILED_WAIT_S = 60.0
WRITE_REFUSED = "WriteRefused"
REFUSED = frozenset({400, 403, 413, 422})
"""What the API server says of one object for what it is: it waits, no other does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSettings:
    """How often to look, and what may be used."""

    poll_s: float = 15.0
    paused: bool = False
    loads_folder: str = ""
    """Where volumes with recordings are mounted, one folder per claim."""
    memory_mib: int = 4096


@dataclass(slots=True, kw_only=True)
class ExpertLoop:
    """State that may be lost at any time."""

    world: World
    api: Api
    reading: Api
    notices: Notices
    settings: ExpertSettings
    placer: Placer = field(default_factory=Placer)
    history: LoadHistory | None = None
    """None: no database."""
    servers: PrometheusServers = field(default_factory=PrometheusServers)
    """What Prometheus servers are brought."""
    epoch: Callable[[], int] = lambda: 0
    on_step: Callable[[Key, PlanSpec, int, str], None] = lambda *_args: None
    """Told of every Plan and step, with the key of the Plan."""
    clock: Callable[[], float] = time.time
    stopping: threading.Event = field(default_factory=threading.Event)
    rounds: int = 0
    _books: dict[Key, Book] = field(default_factory=dict)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(READERS, "loads"))

    def run(self) -> None:
        """Go round until stopped."""
        known: list[Any] = []
        seen, last_s = -1, float("-inf")
        while not self.stopping.is_set():
            left_s = last_s + self.settings.poll_s - time.monotonic()
            seen = self.world.wait(seen, timeout_s=max(0.05, left_s))
            if self.stopping.wait(0.1):
                break
            if self._known() == known and time.monotonic() < last_s + self.settings.poll_s:
                continue
            last_s = time.monotonic()
            try:
                self.once()
            except ApiError as error:
                log.warning("experts", error=str(error))
            except Exception:
                log.exception("experts' round failed")
            known = self._known()
            self.rounds += 1
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.placer.close()

    def _known(self) -> list[Any]:
        """Return what a round starts from: versions of placements and of their Plans, which people approve."""
        versions = self.world.known(EXPERT_PLACEMENTS.kind)
        plans = [self.world.get(PLANS.kind, plan_key(key)) for key in versions]
        return [versions, *(None if p is None else p["metadata"].get("resourceVersion") for p in plans)]

    def present(self) -> dict[Key, tuple[Mapping[str, Any], Book]]:
        """Return the status and what is remembered of every placement that is there; for any thread."""
        bodies = self.world.all(EXPERT_PLACEMENTS.kind)
        return {
            key: (bodies[key].get("status") or {}, book)
            for key, book in self._books.copy().items()
            if key in bodies
        }

    def once(self) -> None:
        """Bring every placement as far as it can go now."""
        bodies = self.world.all(EXPERT_PLACEMENTS.kind)
        for gone in self._books.keys() - bodies.keys():
            del self._books[gone]
        for key, body in bodies.items():
            self._read(key, body)
        self._look(bodies)
        for key, body in bodies.items():
            if self.stopping.is_set():
                return
            book = self._books[key]
            if body["metadata"].get("deletionTimestamp"):
                continue
            tries = time.monotonic() >= book.until_s
            try:
                progress = self._advance(key, body, book)
                if tries and book.failure[0] == WRITE_REFUSED:  # it was not refused again
                    book.failures, book.failure = 0, ("", "")
                self._say(key, body, book.spec, progress)
            except ApiError as error:
                self._refused(key, book, error)
            except Exception:  # one odd object must not stand in the way of others
                log.exception("placement", name=f"{key[0]}/{key[1]}")
                book.until_s = time.monotonic() + AGAIN_S

    # -- what there is --------------------------------------------------------------------------------------------

    def _read(self, key: Key, body: Object) -> None:
        metadata = body["metadata"]
        uid, generation = str(metadata.get("uid") or ""), int(metadata.get("generation") or 0)
        book = self._books.get(key)
        if book is None or book.uid != uid:
            book = self._books[key] = Book(uid=uid)
        if book.generation == generation:
            return
        book.generation = generation
        try:
            book.spec, book.trouble = ExpertPlacementSpec.model_validate(body["spec"]), ""
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            book.spec, book.trouble = None, f"spec.{place}: {first['msg']}"
            return
        book.failures, book.until_s, book.failure = 0, 0.0, ("", "")
        source = (book.spec.load_source, book.spec.model_ref)
        if book.source != source:
            book.source, book.look, book.smoothed, book.next_look_s = source, None, Smoothed(), 0.0

    def _paused(self, body: Object, spec: ExpertPlacementSpec | None) -> str:
        if self.settings.paused:
            return "paused by the chart's values: nothing is changed"
        annotations = body["metadata"].get("annotations") or {}
        if annotations.get(PAUSED) == "true" or (spec is not None and spec.paused):
            return "paused: nothing is changed until it is taken off"
        return ""

    def _look(self, bodies: Mapping[Key, Object]) -> None:
        """Read the loads of all that are due, side by side."""
        now_s = time.monotonic()
        due = [
            (key, book)
            for key, book in self._books.items()
            if book.spec is not None
            and now_s >= book.next_look_s
            and not bodies[key]["metadata"].get("deletionTimestamp")
            and not self._paused(bodies[key], book.spec)
        ]

        def one(entry: tuple[Key, Book]) -> Look:
            key, book = entry
            assert book.spec is not None  # noqa: S101 - for the type checker: so chosen
            return look(
                self.reading,
                key,
                book.spec,
                folder=self.settings.loads_folder,
                known=book.look,
                history=self.history,
                servers=self.servers,
            )

        for (_, book), found_now in zip(due, self._pool.map(one, due), strict=True):
            take(book, found_now)

    # -- decide and act -------------------------------------------------------------------------------------------

    def _advance(self, key: Key, body: Object, book: Book) -> Progress:
        spec = book.spec
        if spec is None:
            return Progress(trouble=book.trouble, **kept_of(body))
        plan, taken = self._plan(key, book)
        paused = self._paused(body, spec)
        if plan is not None and plan.paused:
            paused = paused or f"Plan {plan_key(key)[1]} is paused: nothing is changed until it is taken off"
        if paused:
            return Progress(paused=paused, **kept_of(body))
        case = Case(key=key, body=body, book=book, spec=spec, plan=plan, load=stale(book, spec, self.clock()))
        if spec.apply is ApplyMode.NONE:
            return self._decided(self._taken_back(case, "apply: none"))
        case = case.seen(self.reading.get(CONFIG_MAPS, *plan_key(key)))
        blocked = self._obstacle(case, taken=taken)
        if blocked[0]:
            return self._blocked(case, blocked)
        if book.failure[0] == WRITE_REFUSED and time.monotonic() < book.until_s:
            standing = replace(book.standing(case), applied=False)
            return replace(standing, load=case.load, blocked=book.failure)
        if spec.apply is ApplyMode.ROLLOUT_RESTART and spec.target_ref is not None:
            try:
                case = replace(case, rollout=observed(self.reading, key, spec.target_ref))
            except ApiError as error:
                if error.code != 404:
                    raise
                return self._blocked(case, ("TargetMissing", str(error)))
        if case.in_flight and plan is not None and plan.spec.generation != book.generation:
            case = self._taken_back(case, "the ExpertPlacement changed")
        case, waits = self._forward(case)
        if waits[0] and waits[0] != "WaitingForApproval":
            return self._blocked(case, waits)
        unready = self._unready(case)
        if unready[0] and not case.another_wish:
            # a map that is not rolled out is not the one in force: no other is sought before
            return self._blocked(case, unready)
        progress = self._decided(case)
        case = replace(case, plan=self._plan(key, book)[0])
        if not case.in_flight:
            return progress
        case, waits = self._forward(case)
        kept = {name: value for name, value in case.kept().items() if name != "figures"}
        return replace(progress, blocked=waits, applied=case.applied, **kept)

    def _obstacle(self, case: Case, *, taken: bool) -> Waits:
        name = plan_key(case.key)[1]
        if not case.written.ours:
            return "ConfigMapTaken", f"ConfigMap {name} is somebody else's: rename or delete it"
        if taken:
            return "PlanTaken", f"Plan {name} is somebody else's: one of the two needs another name"
        return "", ""

    def _blocked(self, case: Case, why: Waits) -> Progress:
        return Progress(load=case.load, solved=case.book.solved, blocked=why, **case.kept())

    def _unready(self, case: Case) -> Waits:
        """Say why what was restarted does not run."""
        rollout, plan, target = case.rollout, case.plan, case.spec.target_ref
        if rollout is None or target is None or case.in_flight or not case.there:
            return "", ""
        if rollout.done or rollout.digest != case.written.digest:
            return "", ""
        if plan is not None and plan.current.phase is Phase.FAILED:
            return FAILED, plan.current.message
        name = f"{target.kind} {target.name}"
        return "TargetNotReady", f"{name}: not all pods are of the present template, and ready"

    # -- Plans ----------------------------------------------------------------------------------------------------

    def _plan(self, key: Key, book: Book) -> tuple[PlanView | None, bool]:
        """Read the Plan of a placement; with whether one of its name is somebody else's."""
        body = self.world.get(PLANS.kind, plan_key(key))
        if book.plan_read is None or book.plan_read[0] is not body:
            book.plan_read = (body, plan_of(body, book.uid))
        return book.plan_read[1]

    def _actuation(self, case: Case) -> Actuation:
        now_s = self.clock()

        def tell(reason: str, message: str, *, warning: bool = False) -> None:
            self._tell(case.key, case.book, reason, message, warning=warning)

        return Actuation(
            key=case.key,
            uid=case.book.uid,
            api=self.api,
            reading=self.reading,
            epoch=self.epoch(),
            now=written_time(now_s),
            now_s=now_s,
            config_map=case.config_map,
            put=self.world.put,
            tell=tell,
            on_step=self.on_step,
        )

    def _forward(self, case: Case) -> tuple[Case, Waits]:
        """Bring a Plan forward that is not done yet."""
        if case.plan is None or not case.in_flight:
            return case, ("", "")
        act = self._actuation(case)
        automatic = case.spec.mode is Approval.AUTO or not needs_approval(case.plan.spec)
        plan, waits = bring_forward(case.plan, act, automatic=automatic)
        return replace(case, plan=plan).seen(act.config_map), waits

    def _taken_back(self, case: Case, why: str) -> Case:
        if case.plan is None or not case.in_flight:
            return case
        return replace(case, plan=supersede(case.plan, self._actuation(case), why))

    def _proposed(
        self, case: Case, answer: ExpertPlan, data: dict[str, str], steps: Sequence[ExpertStep]
    ) -> Case:
        """Write a Plan."""
        key, book = case.key, case.book
        spec = write_plan(
            case,
            answer,
            data,
            steps,
            solve_id=uuid.uuid4().hex[:12],
            made_at=written_time(self.clock()),
        )
        known = self.world.get(PLANS.kind, plan_key(key))
        version = ABSENT if known is None else str(known["metadata"]["resourceVersion"])
        if case.plan is not None:
            version = case.plan.version
        body = body_of_plan(key, book.uid, spec, version=version)
        self.world.put(PLANS.kind, self.api.apply(PLANS, body, manager=CONTROLLER, force=True))
        self._tell(key, book, "PlanMade", f"Plan {spec.digest}: {spec.reasons[0]}; {spec.reasons[1]}")
        self.on_step(key, spec, -1, "planned")
        return replace(case, plan=self._plan(key, book)[0])

    # -- decide ---------------------------------------------------------------------------------------------------

    def _decided(self, case: Case) -> Progress:
        """Seek a map if something changed and it is time, and propose it."""
        book, spec, kept = case.book, case.spec, case.kept()
        if case.load[0]:
            return Progress(load=case.load, solved=book.solved, applied=case.applied, **kept)
        try:
            topology = topology_of(case.key, spec, self.world.all(PODS.kind))
        except InputError as error:
            return Progress(infeasible=("TopologyUnknown", str(error)), applied=case.applied, **kept)
        if book.decided == _state(case, topology):
            return book.standing(case)
        if time.monotonic() < book.until_s:
            return Progress(solver=book.failure, applied=case.applied, **kept)
        least_s = self._too_soon_s(case)
        if least_s:
            waits = f"another map is sought {least_s:.0f} s after the last"
            return replace(book.standing(case), waits=waits)
        answer = self._placed(case, topology)
        if isinstance(answer, Progress):
            return answer
        book.answer = answer
        if book.failure[0] != WRITE_REFUSED:  # that a map is found does not say that it may be written
            book.failures, book.failure = 0, ("", "")
        log.info(
            "experts",
            placement=case.name,
            objective_us=answer.objective_s * 1e6,
            gap=answer.gap_ratio,
            refused=answer.refused,
        )
        if spec.apply is not ApplyMode.NONE:
            try:
                data = data_of(spec, topology, answer.physical_to_logical)
            except InputError as error:
                book.decided = _state(case, topology)
                return Progress(infeasible=("EngineRefuses", str(error)), applied=case.applied, **kept)
            steps = steps_of(spec, case.written, data, case.rollout)
            if not steps:
                case = self._taken_back(case, "the move does not pay any more")
            elif case.plan is None or not case.in_flight or not same_change(case.plan, data, steps):
                case = self._proposed(case, answer, data, steps)
        book.decided = _state(case, topology)
        return book.standing(case)

    def _too_soon_s(self, case: Case) -> float:
        """Return the time between maps if the last is too young for another; one for another wish does not wait."""
        if case.another_wish:
            return 0.0
        least_s = float(case.spec.migration.min_interval_seconds)
        times = [case.written.made_at] if case.written.p2l is not None else []
        plan = case.plan
        if plan is not None and plan.current.phase is Phase.FAILED:
            least_s = max(least_s, FAILED_WAIT_S)
            times.append(plan.spec.made_at)
        elif plan is not None and case.in_flight:
            times.append(plan.spec.made_at)
        age_s = min((self.clock() - parse_time(at) for at in times), default=float("inf"))
        return least_s if age_s < least_s else 0.0

    def _placed(self, case: Case, topology: ExpertTopology) -> ExpertPlan | Progress:
        """Solve; a Progress says why there is no answer."""
        spec, book, kept = case.spec, case.book, case.kept()
        try:
            instance = instance_of(case.key, spec, topology, book.smoothed)
        except InputError as error:
            return Progress(infeasible=("LoadInsufficient", str(error)), applied=case.applied, **kept)
        began_s = time.monotonic()
        answer = self.placer.place(
            Task(
                instance=instance,
                communication=spec.comm_model.value,
                mode=spec.solver.mode.value,
                time_limit_s=float(spec.solver.time_limit_seconds),
                seed=spec.solver.seed,
                previous=case.written.p2l,
                max_moved_ratio=spec.migration.max_moved_ratio,
                least_gain_s=spec.migration.min_net_gain_seconds,
            )
        )
        book.solve_s = time.monotonic() - began_s
        if isinstance(answer, Failure):
            self._set_back(book, answer.reason, answer.message)
            return Progress(solver=book.failure, applied=case.applied, **kept)
        return answer

    def _set_back(self, book: Book, reason: str, message: str) -> None:
        book.failures += 1
        book.failure = (reason, message)
        book.until_s = time.monotonic() + min(MOST_BACKOFF_S, 10.0 * 2 ** (book.failures - 1))

    def _refused(self, key: Key, book: Book, error: ApiError) -> None:
        """Keep a placement whose write or read failed; the next round sees it as it then is, and says so."""
        log.warning("experts", placement=f"{key[0]}/{key[1]}", code=error.code, error=str(error))
        if not error.passing and error.code in REFUSED:
            self._set_back(book, WRITE_REFUSED, f"a write was refused: {error}")
            self._tell(key, book, "WriteFailed", str(error), warning=True)

    # -- say ------------------------------------------------------------------------------------------------------

    def _say(self, key: Key, body: Object, spec: ExpertPlacementSpec | None, progress: Progress) -> None:
        now = self.world.get(EXPERT_PLACEMENTS.kind, key) or body
        status = status_of(now, spec, progress, now=written_time(self.clock()))
        if unchanged(status, now.get("status") or {}):
            return
        metadata = {
            "name": key[1],
            "namespace": key[0],
            "resourceVersion": now["metadata"]["resourceVersion"],
        }
        try:
            answer = self.api.apply(
                EXPERT_PLACEMENTS,
                {"metadata": metadata, "status": status},
                manager=STATUS,
                subresource="status",
                force=True,
            )
        except ApiError as error:
            if error.code != 404 and not error.passing:
                raise
            return
        self.world.put(EXPERT_PLACEMENTS.kind, answer)

    def _tell(self, key: Key, book: Book, reason: str, message: str, *, warning: bool = False) -> None:
        kind = "Warning" if warning else "Normal"
        self.notices.event_for(EXPERT_PLACEMENTS, (*key, book.uid), kind, reason, message)


def _state(case: Case, topology: ExpertTopology) -> tuple[Any, ...]:
    """Return what an answer depends on; the generation first."""
    return (case.book.generation, case.book.smoothed.windows, topology, *case.aim)
