"""The loop over ExpertPlacements: look at loads, place, write the map, restart if asked, say how things stand.

It exists beside the loop over services because nothing ties them: experts share no GPUs with others, and a slow solve
or a dead source must delay no replica. It runs on the leader alone, in a thread of its own, and writes through the same
fenced `Api`. The map in the cluster is its only memory; what it keeps itself saves work, nothing else.
"""

import threading
import time
from collections.abc import Callable, Mapping
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
    PODS,
    STATUS,
    Api,
    ApiError,
    Object,
)
from controller.operator.experts.child import Failure, Placer, Task
from controller.operator.experts.group import instance_of, topology_of
from controller.operator.experts.outputs import (
    Written,
    body_of,
    data_of,
    found,
    name_of,
    outputs_of,
)
from controller.operator.experts.recorded import Look, look, measured
from controller.operator.experts.restart import observed, restart
from controller.operator.experts.smoothing import Smoothed
from controller.operator.experts.status import Progress, figures_of, refusal_of, status_of
from controller.operator.notices import Notices
from controller.operator.status import unchanged
from controller.operator.times import parse_time, written_time
from controller.operator.views import APPROVED, PAUSED
from controller.operator.world import Key, World
from controller.resources.expert_placement import ApplyMode, Approval, ExpertPlacementSpec
from solver.domain.errors import InputError
from solver.domain.moe import ExpertPlan, ExpertTopology

log = structlog.get_logger(__name__)
READERS = 8
AGAIN_S = 15.0
"""A measured source that failed is asked again after so long, or after a window if that is shorter."""
MOST_BACKOFF_S = 600.0
FRESH_WINDOWS = 3
WRITE_REFUSED = "WriteRefused"
REFUSED = frozenset({400, 403, 413, 422})
"""What the API server says of one object for what it is: it waits, no other does."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSettings:
    """How often to look, and what may be used."""

    poll_s: float = 15.0
    paused: bool = False
    loads_folder: str = ""
    """Where volumes with recordings are mounted, one folder per claim."""
    memory_mib: int = 4096


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
    """What the last answer was found for."""
    plan: ExpertPlan | None = None
    failure: tuple[str, str] = ("", "")
    failures: int = 0
    until_s: float = 0.0
    """Monotonic: left out until then."""

    def standing(self, case: "Case", *, applied: bool) -> Progress:
        """Say what the last answer was."""
        kept = case.kept()
        if self.plan is None:
            return Progress(solved="feasible" if case.there else "", applied=applied, **kept)
        figures = figures_of(self.plan)
        refused = refusal_of(self.plan)
        return Progress(
            solved=_solved(self), refused=refused, applied=applied, **{**kept, "figures": figures}
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One placement in one round."""

    key: Key
    body: Object
    book: Book
    spec: ExpertPlacementSpec
    written: Written = field(default_factory=Written)
    load: tuple[str, str] = ("", "")
    """Why the loads say nothing new."""

    @property
    def name(self) -> str:
        """Namespace and name."""
        return f"{self.key[0]}/{self.key[1]}"

    @property
    def there(self) -> bool:
        """A map is written."""
        return bool(self.written.data)

    def kept(self) -> dict[str, Any]:
        """Return what the status says already, and what the ConfigMap itself says."""
        return _kept(self.body) | {
            "outputs": tuple(outputs_of(self.key, self.spec, self.written.data)),
            "digest": self.written.digest,
            "made_at": self.written.made_at,
        }


@dataclass(slots=True, kw_only=True)
class ExpertLoop:
    """State that may be lost at any time."""

    world: World
    api: Api
    reading: Api
    notices: Notices
    settings: ExpertSettings
    placer: Placer = field(default_factory=Placer)
    clock: Callable[[], float] = time.time
    stopping: threading.Event = field(default_factory=threading.Event)
    rounds: int = 0
    _books: dict[Key, Book] = field(default_factory=dict)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(READERS, "loads"))

    def run(self) -> None:
        """Go round until stopped."""
        known: dict[Key, str] = {}
        seen, last_s = -1, float("-inf")
        while not self.stopping.is_set():
            left_s = last_s + self.settings.poll_s - time.monotonic()
            seen = self.world.wait(seen, timeout_s=max(0.05, left_s))
            if self.stopping.wait(0.1):
                break
            now_known = self.world.known(EXPERT_PLACEMENTS.kind)
            if now_known == known and time.monotonic() < last_s + self.settings.poll_s:
                continue
            last_s = time.monotonic()
            try:
                self.once()
            except ApiError as error:
                log.warning("experts", error=str(error))
            except Exception:
                log.exception("experts' round failed")
            known = self.world.known(EXPERT_PLACEMENTS.kind)
            self.rounds += 1
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.placer.close()

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
            try:
                progress = self._advance(key, body, book)
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
            return look(self.reading, key, book.spec, folder=self.settings.loads_folder, known=book.look)

        for (_, book), found_now in zip(due, self._pool.map(one, due), strict=True):
            self._take(book, found_now)

    def _take(self, book: Book, now: Look) -> None:
        spec = book.spec
        if spec is None:
            return
        before, book.look = book.look, now
        window_s = spec.load_source.window_seconds
        if not measured(spec):
            book.next_look_s = 0.0
        elif now.recording is None:
            book.next_look_s = time.monotonic() + min(AGAIN_S, window_s)
        else:
            book.next_look_s = time.monotonic() + window_s
        if now.recording is None:
            # what was read stays known, so that the same recording is no new window when it is back
            if before is not None:
                book.look = replace(before, reason=now.reason, message=now.message)
            return
        fresh = before is None or before.recording is None or before.version != now.version
        if measured(spec):
            fresh = True
        if not now.recording.load.sum() > 0.0:
            book.look = replace(now, reason="NoTokens", message="the recording holds no tokens")
        elif fresh:
            book.smoothed.add(now.recording, spec.load_source.ewma_alpha)

    def _stale(self, book: Book, spec: ExpertPlacementSpec) -> tuple[str, str]:
        known = book.look
        if known is None:
            return "LoadMissing", "the loads were not read yet"
        if known.reason:
            return known.reason, known.message
        limit_s = spec.load_source.max_age_seconds
        if limit_s is None and measured(spec):
            limit_s = FRESH_WINDOWS * spec.load_source.window_seconds
        age_s = self.clock() - known.at_s
        if limit_s is not None and age_s > limit_s:
            return "LoadOld", f"the recording is older than {limit_s} s"
        return "", ""

    # -- decide and act -------------------------------------------------------------------------------------------

    def _advance(self, key: Key, body: Object, book: Book) -> Progress:
        spec = book.spec
        if spec is None:
            return Progress(trouble=book.trouble, **_kept(body))
        paused = self._paused(body, spec)
        if paused:
            return Progress(paused=paused, **_kept(body))
        case = Case(key=key, body=body, book=book, spec=spec, load=self._stale(book, spec))
        if spec.apply is ApplyMode.NONE:
            return self._decided(case)
        written = found(self.reading.get(CONFIG_MAPS, key[0], name_of(key)), book.uid, spec)
        if not written.ours:
            taken = f"ConfigMap {name_of(key)} is somebody else's: rename or delete it"
            return Progress(load=case.load, blocked=("ConfigMapTaken", taken), **case.kept())
        case = replace(case, written=written)
        if book.failure[0] == WRITE_REFUSED and time.monotonic() < book.until_s:
            return replace(book.standing(case, applied=False), load=case.load, blocked=book.failure)
        waiting = self._restarted(case)
        if waiting[0]:
            # a map that is not rolled out yet is not the one in force: no other is sought before
            return Progress(load=case.load, solved=_solved(book), blocked=waiting, **case.kept())
        return self._decided(case)

    def _decided(self, case: Case) -> Progress:
        """Seek a map if something changed and it is time, and write it."""
        book, spec, written, kept = case.book, case.spec, case.written, case.kept()
        if case.load[0]:
            return Progress(load=case.load, solved=_solved(book), applied=case.there, **kept)
        try:
            topology = topology_of(case.key, spec, self.world.all(PODS.kind))
        except InputError as error:
            return Progress(infeasible=("TopologyUnknown", str(error)), applied=case.there, **kept)
        state = (book.generation, book.smoothed.windows, topology, written.digest)
        if book.decided == state:
            return book.standing(case, applied=case.there)
        if time.monotonic() < book.until_s:
            return Progress(solver=book.failure, applied=case.there, **kept)
        if self._too_soon(case):
            waits = f"another map is sought {spec.migration.min_interval_seconds} s after the last"
            return replace(book.standing(case, applied=case.there), waits=waits)
        answer = self._placed(case, topology)
        if isinstance(answer, Progress):
            return answer
        book.plan, book.failures, book.failure = answer, 0, ("", "")
        log.info(
            "experts",
            placement=case.name,
            objective_us=answer.objective_s * 1e6,
            gap=answer.gap_ratio,
            refused=answer.refused,
        )
        if spec.apply is ApplyMode.NONE:
            book.decided = state
            return book.standing(case, applied=False)
        try:
            data = data_of(spec, topology, answer.physical_to_logical)
        except InputError as error:
            book.decided = state
            return Progress(infeasible=("EngineRefuses", str(error)), applied=case.there, **kept)
        if data == written.data:
            book.decided = state
            return book.standing(case, applied=True)
        return self._write(case, answer, topology, data)

    def _too_soon(self, case: Case) -> bool:
        """Whether the last map is too young for another; one for another wish does not wait."""
        written = case.written
        if written.p2l is None or case.book.generation != _seen_generation(case.body):
            return False
        age_s = self.clock() - parse_time(written.made_at)
        return age_s < case.spec.migration.min_interval_seconds

    def _placed(self, case: Case, topology: ExpertTopology) -> ExpertPlan | Progress:
        """Solve; a Progress says why there is no answer."""
        spec, book, kept = case.spec, case.book, case.kept()
        try:
            instance = instance_of(case.key, spec, topology, book.smoothed)
        except InputError as error:
            return Progress(infeasible=("LoadInsufficient", str(error)), applied=case.there, **kept)
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
        if isinstance(answer, Failure):
            self._set_back(book, answer.reason, answer.message)
            return Progress(solver=book.failure, applied=case.there, **kept)
        return answer

    def _write(
        self, case: Case, plan: ExpertPlan, topology: ExpertTopology, data: dict[str, str]
    ) -> Progress:
        key, book, written = case.key, case.book, case.written
        same_map = written.p2l is not None and plan.refused
        made_at = written.made_at if same_map and written.made_at else written_time(self.clock())
        config_map = body_of(key, book.uid, data, made_at=made_at, version=written.version or ABSENT)
        answer = self.api.apply(CONFIG_MAPS, config_map, manager=CONTROLLER, force=True)
        case = replace(case, written=found(answer, book.uid, case.spec))
        book.decided = (book.generation, book.smoothed.windows, topology, case.written.digest)
        if not same_map:
            moved = "" if plan.move is None else f", {plan.move.moved_ratio:.1%} of the experts move"
            said = (
                f"{name_of(key)}: {plan.objective_s * 1e6:.6g} µs per window, gap {plan.gap_ratio:.2%}{moved}"
            )
            self._tell(key, book, "MapWritten", said)
        waiting = self._restarted(case)
        standing = book.standing(case, applied=not waiting[0])
        return replace(standing, blocked=waiting)

    def _restarted(self, case: Case) -> tuple[str, str]:
        """Roll a written map out, if that is asked for; returns what it waits for."""
        key, spec, digest = case.key, case.spec, case.written.digest
        target = spec.target_ref
        if spec.apply is not ApplyMode.ROLLOUT_RESTART or not case.there or target is None:
            return "", ""
        name = f"{target.kind} {target.name}"
        try:
            rollout = observed(self.reading, key, target)
        except ApiError as error:
            if error.code != 404:
                raise
            return "TargetMissing", str(error)
        if rollout.digest == digest and rollout.done:
            return "", ""
        restarting = ("Restarting", f"{name} is being restarted with map {digest}")
        if rollout.digest == digest:
            return restarting
        approved = (case.body["metadata"].get("annotations") or {}).get(APPROVED) == digest
        if spec.mode is not Approval.AUTO and not approved:
            command = f"kubectl annotate -n {key[0]} expertplacement/{key[1]} --overwrite {APPROVED}={digest}"
            return "WaitingForApproval", f"restart {name} by: {command}"
        restart(self.api, key, target, rollout, digest)
        self._tell(key, case.book, "Restarted", f"{name} is restarted with map {digest}")
        return restarting

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


def _solved(book: Book) -> str:
    return "" if book.plan is None else book.plan.status.value


def _seen_generation(body: Object) -> int:
    """Return the generation that the last status speaks of: a changed wish does not wait for the interval."""
    return int((body.get("status") or {}).get("observedGeneration") or 0)


def _kept(body: Object) -> dict[str, Any]:
    """Return what the status says already and nothing has replaced."""
    before = body.get("status") or {}
    return {
        "figures": {name: before[name] for name in _FIGURES if name in before},
        "outputs": tuple(before.get("outputs") or ()),
        "digest": str(before.get("digest") or ""),
        "made_at": str(before.get("madeAt") or ""),
    }
