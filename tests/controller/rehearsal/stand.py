"""A service, its Plan and a fake API for tests of the rehearsal's gate; and questions with known answers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from controller.operator.api import NODES, PLANS
from controller.operator.inventory import InventoryRules, PoolKey, take_inventory
from controller.operator.profiles import ProfileBook
from controller.operator.rehearsal.desk import Answered
from controller.operator.rehearsal.question import RehearsalAnswer, RehearsalQuestion, RehearsedVariant
from controller.operator.rollout import Actuation
from controller.operator.traffic import Traffic, stated
from controller.operator.views import APPROVED, ServiceView, Views
from controller.operator.world import World
from solver.domain.gpu_mix import RequestBucket

NOW = "2026-11-01T12:00:00Z"
LABEL = "nvidia.com/gpu.product"
KEY = ("team", "chat")
Object = dict[str, Any]


def question(
    running: int = 4,
    planned: int = 1,
    *,
    rate: float = 20.0,
    carried: float = 7.0,
    measured: bool = False,
    model: str = "meta-llama/Llama-3.1-8B-Instruct",
    gpu: str = "A100-80-SXM",
    **changes: Any,
) -> RehearsalQuestion:
    """Return a question about replicas on one GPU each; at 20 requests/s one is too few, and four are enough."""
    values: Object = {
        "service": "team/chat",
        "digest": "d1",
        "solve_id": "s1",
        "buckets": (
            RequestBucket(rate_rps=0.7 * rate, input_tokens=512.0, output_tokens=128.0),
            RequestBucket(rate_rps=0.3 * rate, input_tokens=1500.0, output_tokens=200.0),
        ),
        "trace": None,
        "window_s": 300.0,
        "slo": "ttft_p99=1.0,tbt_p99=0.05",
        "percentile": 99.0,
        "variants": (
            RehearsedVariant(
                name="a",
                gpu_profile="fast",
                model=model,
                precision="bf16",
                gpu_type=gpu,
                gpus_per_replica=1,
                serves=(0, 1),
                carried_rps=carried,
                measured=measured,
                running=running,
                planned=planned,
            ),
        ),
    }
    return RehearsalQuestion(**values | changes)


def reference(name: str) -> Object:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}


@dataclass(slots=True)
class FakeApi:
    """Takes statuses of Plans, and counts them."""

    world: World
    writes: int = 0

    def apply(self, resource: Any, body: Object, **_said: Any) -> Object:
        known = self.world.get(resource.kind, (body["metadata"]["namespace"], body["metadata"]["name"]))
        assert known is not None
        assert body["metadata"]["resourceVersion"] == known["metadata"]["resourceVersion"]
        self.writes += 1
        metadata = known["metadata"] | {"resourceVersion": str(int(known["metadata"]["resourceVersion"]) + 1)}
        return {**known, "metadata": metadata, "status": json.loads(json.dumps(body["status"]))}


@dataclass(slots=True)
class Stand:
    """A service, team/chat unless it is named: what runs and is planned by variant, 1 request/s per replica."""

    running: Mapping[str, int]
    wanted: Mapping[str, int]
    rate: float = 2.0
    mode: str = "Auto"
    rehearsal: Object | None = field(default_factory=lambda: {"enabled": True})
    phase: str = "Proposed"
    approved: str = ""
    gpus: int = 64
    ready: Mapping[str, int] | None = None
    most: int | None = None
    name: str = "chat"
    world: World = field(default_factory=World)
    events: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec: Object = {
            "model": "m",
            "mode": self.mode,
            "slo": {"ttftSeconds": 1.0, "tbtSeconds": 0.05},
            "traffic": {
                "histogram": {"buckets": [{"inputTokens": 512, "outputTokens": 128, "rateRps": self.rate}]}
            },
            "variants": [
                {"name": name, "targetRef": reference(f"{self.name}-{name}"), "gpuProfile": "fast"}
                | ({} if self.most is None else {"maxReplicas": self.most})
                for name in self.running
            ],
            "headroomRatio": 0.0,
        }
        if self.rehearsal is not None:
            spec["rehearsal"] = self.rehearsal
        metadata: Object = {"name": self.name, "namespace": "team", "uid": self.uid, "resourceVersion": "1"}
        self.world.put("ModelService", {"metadata": metadata | {"generation": 1}, "spec": spec})
        self.world.put(
            "GpuProfile",
            {
                "metadata": {"name": "fast", "uid": "p", "generation": 1},
                "spec": {
                    "model": "meta-llama/Llama-3.1-8B",
                    "gpuType": "A100-80-SXM",
                    "nodeSelector": {LABEL: "A"},
                    "priceUsdPerHour": 1.0,
                    "provenance": {"kind": "measured"},
                    "throughput": [
                        {
                            "inputTokens": 4096,
                            "outputTokens": 1024,
                            "ttftSeconds": 0.5,
                            "tbtSeconds": 0.02,
                            "maxRps": 1.0,
                        }
                    ],
                },
            },
        )
        self.world.put(
            "Node",
            {
                "metadata": {"name": "n", "labels": {LABEL: "A"}},
                "status": {
                    "allocatable": {"nvidia.com/gpu": str(self.gpus)},
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            },
        )
        for name, count in self.running.items():
            ready = count if self.ready is None else self.ready[name]
            self.world.put(
                "Deployment",
                {
                    "metadata": {"name": f"{self.name}-{name}", "namespace": "team", "annotations": {}},
                    "spec": {"replicas": count},
                    "status": {"replicas": count, "readyReplicas": ready},
                },
            )
        self.plan("d1")

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name of the service and its Plan."""
        return KEY[0], self.name

    @property
    def uid(self) -> str:
        """Of the service."""
        return "u1" if self.name == KEY[1] else f"u-{self.name}"

    def plan(self, digest: str) -> None:
        """Put a Plan."""
        known = self.world.get(PLANS.kind, self.key)
        version = 1 if known is None else int(known["metadata"]["resourceVersion"]) + 1
        steps = [
            {
                "index": index,
                "targetRef": reference(f"{self.name}-{name}"),
                "variant": name,
                "fromReplicas": self.running[name],
                "toReplicas": count,
                "action": "ScaleUp" if count > self.running[name] else "ScaleDown",
            }
            for index, (name, count) in enumerate(
                (name, count) for name, count in self.wanted.items() if count != self.running[name]
            )
        ]
        self.world.put(
            PLANS.kind,
            {
                "metadata": {
                    "name": self.name,
                    "namespace": "team",
                    "resourceVersion": str(version),
                    "annotations": {APPROVED: self.approved} if self.approved else {},
                },
                "spec": {
                    "solveId": "s1",
                    "digest": digest,
                    "modelServiceRef": {"name": self.name, "uid": self.uid, "generation": 1},
                    "madeAt": NOW,
                    "desired": [
                        {"variant": name, "targetRef": reference(f"{self.name}-{name}"), "replicas": count}
                        for name, count in self.wanted.items()
                    ],
                    "steps": steps,
                },
                "status": {"phase": self.phase, "digest": digest, "steps": len(steps)},
            },
        )

    def view(self, *, rate: float | None = None, traffic: Traffic | None = None) -> ServiceView:
        """Read the service as it is now; its traffic is stated unless it is given."""
        views = Views(world=self.world, book=ProfileBook(), gpu_label=LABEL)
        specs = views.specs()
        owners = views.owners(specs)
        found = views.profile("fast")[0]
        assert found is not None
        pool: PoolKey = views.pool_of(found)
        inventory = take_inventory(
            self.world.all(NODES.kind),
            {},
            {pool: list(self.world.all("Deployment").values())},
            ours=set(owners),
            rules=InventoryRules(gpu_label=LABEL, labels_of=views.book.labels_of),
        )
        buckets = [
            RequestBucket(
                rate_rps=self.rate if rate is None else rate, input_tokens=512.0, output_tokens=128.0
            )
        ]
        return views.view(
            self.key,
            specs[self.key],
            traffic=traffic or stated(buckets, at=NOW),
            owners=owners,
            autoscaled={},
            inventory=inventory,
        )

    def act(self, api: FakeApi) -> Actuation:
        """Return what a write needs."""
        return Actuation(
            api=api,  # type: ignore[arg-type]
            world=self.world,
            free_gpus={},
            epoch=1,
            now=NOW,
            now_s=0.0,
            event=lambda _view, _type, reason, _message: self.events.append(reason),
            on_step=lambda *_said: None,
        )


def partial(view: ServiceView) -> ServiceView:
    """Let the traffic be of two sizes, of which the second variant serves only the first."""
    assert view.state is not None
    first, second = view.state.variants
    sizes = ((100.0, 50.0), (4000.0, 500.0))
    state = replace(
        view.state,
        buckets=tuple(RequestBucket(rate_rps=1.0, input_tokens=i, output_tokens=o) for i, o in sizes),
        variants=(
            replace(first, throughput_rps=(2.0, 1.0)),
            replace(second, throughput_rps=(1.5, 0.0)),
        ),
    )
    return replace(view, state=state)


@dataclass(slots=True)
class FakeDesk:
    """Remembers what was asked; answers when told."""

    now_s: float = 0.0
    asked: list[RehearsalQuestion] = field(default_factory=list)
    pending: RehearsalQuestion | None = None
    answered: Answered | None = None
    prepared: bool = False

    def prepare(self) -> None:
        self.prepared = True

    def ask(self, asked: RehearsalQuestion) -> None:
        self.asked.append(asked)
        self.pending = asked

    def known(self, _service: str) -> Answered | None:
        return self.answered

    def waits(self, _service: str) -> RehearsalQuestion | None:
        return self.pending

    def forget(self, _service: str) -> None:
        self.pending = self.answered = None

    def answer(self, reason: str, message: str = "so it is", *, allowed: bool | None) -> None:
        assert self.pending is not None
        self.answered = Answered(
            question=self.pending,
            answer=RehearsalAnswer(allowed=allowed, reason=reason, message=message),
            at_s=self.now_s,
        )
        self.pending = None
