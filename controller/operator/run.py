"""Puts the operator together and runs it until it is told to stop or loses its lease.

It exists so that threads, their order and their end stand in one place:
watch and audit fill the world on every replica; the election decides who leads; the loop, the sampler and the solver's
child act on the leader only. A leader that may have lost its lease ends at once, without tidying up: everything it
leaves behind can be continued. On SIGTERM it stops, then hands the lease over.
"""

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

import structlog

from controller.operator.api import (
    ABSENT,
    CONTROLLER,
    LEADERSHIPS,
    POWER_DOMAINS,
    Api,
    ApiError,
    Resource,
    connect,
)
from controller.operator.brain import Brain, BrainLimits
from controller.operator.experts.gauges import follow_experts
from controller.operator.experts.history import LoadHistory
from controller.operator.experts.loop import ExpertLoop, ExpertSettings
from controller.operator.experts.plans import plan_key
from controller.operator.gauges import Standing, follow
from controller.operator.heap import give_back
from controller.operator.leader import LEASE_NAME, Election, LeaseTimes
from controller.operator.loop import Loop, LoopSettings
from controller.operator.metrics import Metrics, Page
from controller.operator.notices import Notices
from controller.operator.power.agents import AgentAccess, Agents
from controller.operator.power.events import PowerEvents
from controller.operator.power.gauges import follow_power
from controller.operator.power.history import PowerHistory
from controller.operator.power.loop import PowerLoop, PowerSettings
from controller.operator.power.orders import OrderDesk
from controller.operator.power.study_desk import StudyDesk
from controller.operator.profiles import ProfileBook
from controller.operator.rate_history import RateHistory
from controller.operator.rehearsal.child import Replayer
from controller.operator.rehearsal.desk import Answered, RehearsalDesk
from controller.operator.rehearsal.gauges import follow_rehearsals
from controller.operator.rehearsal.hold import Rehearsals
from controller.operator.rehearsal.recorded import TraceTexts
from controller.operator.runtime import Audit, Watch
from controller.operator.sampler import Sampler
from controller.operator.views import ServiceView, Views
from controller.operator.world import OPTIONAL, WATCHED, Key, World
from controller.resources.plan import PlanSpec
from telemetry.sources.prometheus_access import PrometheusServers
from telemetry.store.buffered import BufferedStore
from telemetry.store.store import Decision, Entry, StepDone, TrafficSample, open_store

log = structlog.get_logger(__name__)
SILENT_LIMIT_S = 30.0
"""A watch known to be silent for so long is not healthy (it is known after at most two audits)."""
NEW_KIND_TRIES = 20
STALE_LIMIT_S = 120.0
"""A leader that finished no round for so long is not healthy."""
POWER_LIMIT_S = 30.0
"""The same for the loop over PowerDomains."""
POWER_REQUEST_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """Everything ``ballast controller run`` can be told."""

    namespace: str
    identity: str
    kubeconfig: str | None = None
    watch_namespaces: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8080
    lease: LeaseTimes = field(default_factory=LeaseTimes)
    loop: LoopSettings = field(default_factory=LoopSettings)
    brain: BrainLimits = field(default_factory=BrainLimits)
    gpu_resource: str = "nvidia.com/gpu"
    sample_s: float = 15.0
    traffic_window_s: float = 60.0
    audit_s: float = 30.0
    loads_folder: str = ""
    """Where volumes with recordings of expert loads are mounted."""
    watch_inactivity_s: float = 70.0
    database_url: str = ""
    agent_port: int = 9409
    """Where the agents of nodes answer."""
    agent_access: AgentAccess = field(default_factory=AgentAccess)
    prometheus: PrometheusServers = field(default_factory=PrometheusServers)
    """What Prometheus servers are brought."""


class Operator:
    """One replica of the operator."""

    def __init__(self, settings: OperatorSettings) -> None:
        self.settings = settings
        client = connect(settings.kubeconfig)
        self.metrics = Metrics()
        self._standing = Standing()
        follow(self.metrics, lambda: self._standing)
        self.world = World(gpu_resource=settings.gpu_resource)
        self.reading = Api(client=client)
        self.election = Election(
            api=Api(client=connect(settings.kubeconfig)),
            namespace=settings.namespace,
            identity=settings.identity,
            times=settings.lease,
            on_won=self._won,
            on_lost=self._lost,
        )
        self.writing = Api(client=client, may_write=self.election.leads)
        self.watch = Watch(
            world=self.world,
            resources=self._resources(),
            settings=lambda: client.configuration,
            namespaces=settings.watch_namespaces,
            inactivity_s=settings.watch_inactivity_s,
        )
        self.audit = Audit(
            world=self.world,
            api=self.reading,
            resources=self.watch.resources,
            namespaces=settings.watch_namespaces,
            interval_s=settings.audit_s,
            heard=self.watch.heard,
        )
        self.notices = Notices(api=self.writing, instance=settings.identity)
        self.sampler = Sampler(
            world=self.world,
            api=self.reading,
            sample_s=settings.sample_s,
            window_s=settings.traffic_window_s,
            active=self.election.leads,
            servers=settings.prometheus,
        )
        self.brain = Brain(limits=settings.brain)
        self.rehearsals = RehearsalDesk(
            replayer=Replayer(memory_mib=settings.brain.memory_mib),
            trace_of=TraceTexts(api=self.reading).read,
            on_answer=self._on_rehearsal,
        )
        follow_rehearsals(self.metrics, self.rehearsals)
        self.loop = Loop(
            world=self.world,
            api=self.writing,
            views=Views(world=self.world, book=ProfileBook(), gpu_label=settings.loop.gpu_label),
            brain=self.brain,
            notices=self.notices,
            traffic_of=self.sampler.traffic_of,
            settings=settings.loop,
            epoch=lambda: self.election.term or 0,
            rehearsals=Rehearsals(desk=self.rehearsals),
            on_plan=self._on_plan,
            on_step=self._on_step,
            on_round=self._on_round,
        )
        self.store: BufferedStore | None = None
        history: LoadHistory | None = None
        if settings.database_url:
            self.store = BufferedStore(open_store(settings.database_url))
            history = LoadHistory(store=open_store(settings.database_url), put=self._keep)
            self.sampler.past_rates = RateHistory(store=open_store(settings.database_url)).read
        self.experts = ExpertLoop(
            world=self.world,
            api=self.writing,
            reading=self.reading,
            notices=self.notices,
            settings=ExpertSettings(
                poll_s=settings.sample_s,
                paused=settings.loop.paused,
                loads_folder=settings.loads_folder,
                memory_mib=settings.brain.memory_mib,
            ),
            history=history,
            servers=settings.prometheus,
            epoch=lambda: self.election.term or 0,
            on_step=self._on_expert_step,
        )
        follow_experts(self.metrics, self.experts)
        # a client of its own: its requests wait for nobody else's
        power_client = connect(settings.kubeconfig)
        watching = Api(client=power_client, limit_s=POWER_REQUEST_S)
        ordering = Api(client=power_client, may_write=self.election.leads, limit_s=POWER_REQUEST_S)
        self.power = PowerLoop(
            world=self.world,
            api=ordering,
            reading=watching,
            settings=PowerSettings(
                namespace=settings.namespace,
                identity=settings.identity,
                paused=settings.loop.paused,
            ),
            agents=Agents(
                api=watching,
                namespace=settings.namespace,
                port=settings.agent_port,
                access=settings.agent_access,
                servers=settings.prometheus,
            ),
            desk=OrderDesk(api=ordering),
            history=PowerHistory(put=self._keep) if self.store is not None else None,
            events=PowerEvents(tell=self._on_power),
            studies=StudyDesk(url=settings.database_url, memory_mib=settings.brain.memory_mib),
        )
        follow_power(self.metrics, self.power)
        self._recorded_s = float("-inf")
        self._store_said = ""
        self.primed = threading.Event()
        self.ending = threading.Event()
        self.won_s = float("inf")

    def _on_power(self, name: str, uid: str, kind: str, reason: str, message: str) -> None:
        self.notices.event_for(POWER_DOMAINS, ("", name, uid), kind, reason, message)

    def _resources(self) -> tuple[Resource, ...]:
        """Leave out kinds that the cluster does not have; they are looked for again after a restart."""
        found = []
        for resource in WATCHED:
            try:
                listed = self._listed(resource)
            except ApiError as error:
                if resource.kind in OPTIONAL and error.code in {403, 404}:
                    continue
                raise
            if listed is not None:
                found.append(resource)
            elif resource.kind not in OPTIONAL:
                raise ApiError(
                    404,
                    f"the cluster has no {resource.plural}: install the chart's CustomResourceDefinitions",
                )
        return tuple(found)

    def _listed(self, resource: Resource) -> dict[tuple[str, str], str] | None:
        """List a kind; one that the API server has just been told of takes a moment (429)."""
        namespace = next(iter(self.settings.watch_namespaces), None) if resource.namespaced else None
        for _ in range(NEW_KIND_TRIES):
            try:
                return self.reading.names(resource, namespace)
            except ApiError as error:
                if error.code != 429:
                    raise
                time.sleep(1.0)
        return self.reading.names(resource, namespace)

    def run(self) -> int:
        """Run until stopped; returns the exit code."""
        give_back()
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, self._stop)
        page = Page(
            host=self.settings.host,
            port=self.settings.port,
            metrics=self.metrics,
            healthy=self.unhealthy,
            ready=self.unready,
        )
        port = page.start()
        log.info("started", identity=self.settings.identity, port=port, namespace=self.settings.namespace)
        for trouble in self.settings.prometheus.troubles():
            log.warning("access to Prometheus", told=trouble)  # power control must not wait for it
        threading.Thread(target=self.watch.run, name="watch", daemon=True).start()
        self._prime()
        threading.Thread(target=self.audit.run, name="audit", daemon=True).start()
        election = threading.Thread(target=self.election.run, name="election", daemon=True)
        election.start()
        while not self.ending.wait(0.2):
            if self.watch.failed:
                log.error("ending", reason=self.watch.failed)
                return 1
        log.info("stopping")
        self.loop.stopping.set()
        self.experts.stopping.set()
        self.power.stopping.set()
        self.notices.stopping.set()
        self.sampler.stopping.set()
        self.world.note()
        if self._loop_thread is not None:
            self._loop_thread.join(1.0)
        self.election.stopping.set()
        election.join(2.0)
        if self.store is not None:
            self.store.close(1.0)
        self.brain.close()
        self.rehearsals.close()
        self.experts.placer.close()
        page.stop()
        return 0

    _loop_thread: threading.Thread | None = None
    _power_began_s = float("inf")

    def _prime(self) -> None:
        """List everything once, so that the first round sees the whole cluster."""
        for resource in self.watch.resources:
            spaces = self.settings.watch_namespaces if resource.namespaced else ()
            for namespace in spaces or (None,):
                for body in self.reading.each(resource, namespace):
                    self.world.put(resource.kind, body)
        self.primed.set()

    def _won(self, term: int) -> None:
        log.info("leads", term=term)
        self.won_s = time.monotonic()
        self.metrics.leader.set(1)
        if self.store is not None:
            self.store.start()
        threading.Thread(target=self.notices.run, name="notices", daemon=True).start()
        threading.Thread(target=self.sampler.run, name="sampler", daemon=True).start()
        self._loop_thread = threading.Thread(target=self._lead, args=(term,), name="loop", daemon=True)
        self._loop_thread.start()

    def _lead(self, term: int) -> None:
        """Say who leads, for the admission policy that fences all others off; then go round."""
        metadata = {"name": LEASE_NAME, "namespace": self.settings.namespace}
        spec = {"holderIdentity": self.settings.identity, "epoch": term}
        while not self.loop.stopping.is_set():
            try:
                known = self.reading.get(LEADERSHIPS, self.settings.namespace, LEASE_NAME)
                # a write that arrives late must not undo the next leader's
                metadata["resourceVersion"] = (
                    ABSENT if known is None else known["metadata"]["resourceVersion"]
                )
                body = {"metadata": metadata, "spec": spec}
                self.writing.apply(LEADERSHIPS, body, manager=CONTROLLER, force=True)
                break
            except ApiError as error:
                if error.code == 404:
                    log.warning(
                        "not fenced", reason="the cluster has no Leadership resource: install the chart's"
                    )
                    break
                log.warning("leadership", error=str(error))
                self.loop.stopping.wait(0.5)
        self._power_began_s = time.monotonic()
        threading.Thread(target=self.power.run, name="power", daemon=True).start()
        threading.Thread(target=self.experts.run, name="experts", daemon=True).start()
        self.loop.run()

    def _lost(self, why: str) -> NoReturn:
        log.error("lease lost; ending at once", reason=why)
        sys.stderr.flush()
        self.brain.close()
        self.rehearsals.close()
        self.experts.placer.close()
        os._exit(1)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.ending.set()

    def unhealthy(self) -> str:
        """Say what is wrong with this process; empty if nothing is."""
        if self.watch.failed:
            return self.watch.failed
        silent_s = self.audit.silent_since_s()
        if silent_s is not None and time.monotonic() - silent_s > SILENT_LIMIT_S:
            return f"the watch of {', '.join(sorted(self.audit.behind))} is silent"
        last_s = max(self.loop.round_done_s, self.won_s if self.won_s < float("inf") else float("-inf"))
        limit_s = max(STALE_LIMIT_S, 3 * self.settings.loop.plan_interval_s)
        if self.election.term is not None and time.monotonic() - last_s > limit_s:
            return f"no round was finished for {limit_s:.0f} s"
        if time.monotonic() - max(self.power.done_s, self._power_began_s) > POWER_LIMIT_S:
            return f"no round over PowerDomains was finished for {POWER_LIMIT_S:.0f} s"
        return ""

    def unready(self) -> str:
        """Say what is missing before this process can take over."""
        return "" if self.primed.is_set() else "the cluster is not read yet"

    def _on_rehearsal(self, answered: Answered) -> None:
        self.metrics.rehearsed(answered.answer.reason, answered.answer.wall_s)
        self.world.note()

    def _on_plan(self, loop: Loop, decisions: Any) -> None:
        self.metrics.solved(decisions, loop.brain.last_s or 0.0)

    def _on_step(self, view: ServiceView, step: int, outcome: str, spec: PlanSpec | None = None) -> None:
        """Tell what was planned, written or observed."""
        if spec is not None:
            log.info(
                "plan",
                service=view.name,
                digest=spec.digest,
                solve_id=spec.solve_id,
                usd_per_hour=spec.cost_usd_per_hour,
                bound_usd_per_hour=spec.lower_bound_usd_per_hour,
                steps=len(spec.steps),
                why=spec.reasons[0] if spec.reasons else "",
            )
            self._keep(
                Decision(
                    service=view.name,
                    t_s=time.time(),
                    digest=spec.digest,
                    solve_id=spec.solve_id,
                    desired={wanted.variant: wanted.replicas for wanted in spec.desired},
                    reasons=spec.reasons,
                    cost_usd_per_h=spec.cost_usd_per_hour,
                    lower_bound_usd_per_h=spec.lower_bound_usd_per_hour,
                    gap_ratio=spec.gap_ratio,
                )
            )
        elif view.plan is not None:
            written = view.plan.spec.steps[step]
            log.info(
                "step",
                service=view.name,
                digest=view.plan.spec.digest,
                step=step + 1,
                of=len(view.plan.spec.steps),
                outcome=outcome,
                target=f"{written.target_ref.kind} {written.target_ref.name}",
                replicas=written.to_replicas,
                epoch=self.election.term,
            )
            self._keep(
                StepDone(
                    service=view.name,
                    t_s=time.time(),
                    digest=view.plan.spec.digest,
                    step=step,
                    outcome=outcome,
                    target=f"{written.target_ref.kind} {written.target_ref.name}",
                    from_replicas=written.from_replicas,
                    to_replicas=written.to_replicas,
                    epoch=self.election.term or 0,
                )
            )

    def _on_expert_step(self, key: Key, spec: PlanSpec, step: int, outcome: str) -> None:
        """Tell of a change of experts; its Plan has a name that no service's Plan has."""
        change = spec.experts
        if change is None:
            return
        name = "/".join(plan_key(key))
        if step < 0:
            log.info("plan", plan=name, digest=spec.digest, solve_id=spec.solve_id, why=spec.reasons[0])
            self._keep(
                Decision(
                    service=name,
                    t_s=time.time(),
                    digest=spec.digest,
                    solve_id=spec.solve_id,
                    desired={},
                    reasons=spec.reasons,
                    gap_ratio=spec.gap_ratio,
                )
            )
            return
        ref = change.steps[step].target_ref
        target = f"ConfigMap {change.config_map}" if ref is None else f"{ref.kind} {ref.name}"
        log.info("step", plan=name, digest=spec.digest, step=step + 1, outcome=outcome, target=target)
        self._keep(
            StepDone(
                service=name,
                t_s=time.time(),
                digest=spec.digest,
                step=step,
                outcome=outcome,
                target=target,
                from_replicas=0,  # no replicas change
                to_replicas=0,
                epoch=self.election.term or 0,
            )
        )

    def _keep(self, entry: Entry) -> None:
        if self.store is not None:
            self.store.put(entry)

    def _record_traffic(self, loop: Loop) -> None:
        """Keep what traffic is, as often as it is sampled."""
        now_s = time.time()
        if self.store is None or now_s - self._recorded_s < max(1.0, self.settings.sample_s):
            return
        self._recorded_s = now_s
        for view in loop.views.present().values():
            rate = view.traffic.rate_rps
            if rate is None or not view.traffic.fresh:
                continue
            targets = [variant.target for variant in view.variants if variant.target is not None]
            self.store.put(
                TrafficSample(
                    service=view.name,
                    t_s=now_s,
                    rate_rps=rate,
                    desired=sum(target.replicas for target in targets),
                    ready=sum(target.ready for target in targets),
                )
            )

    def _on_round(self, loop: Loop, seconds: float, error: str) -> None:
        self.metrics.reconcile.observe(seconds)
        if error:
            self.metrics.errors.labels("api" if error != "internal error" else "internal").inc()
        if not error:
            self._standing = Standing(
                views=loop.views.present(),
                gpus={"schedulable": dict(loop.inventory.gpus), "free": dict(loop.free_gpus)},
            )
            self._record_traffic(loop)
        if self.store is not None:
            self.metrics.store_ready.set(1 if self.store.healthy else 0)
            if self.store.reason != self._store_said:
                self._store_said = self.store.reason
                log.warning(
                    "history", ready=self.store.healthy, reason=self.store.reason, dropped=self.store.dropped
                )
