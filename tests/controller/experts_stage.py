"""A loop over ExpertPlacements without a cluster: objects in memory, a clock of its own, a placer that can be told."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from controller.operator.api import (
    CONFIG_MAPS,
    EXPERT_PLACEMENTS,
    PLANS,
    STATEFUL_SETS,
    ApiError,
    Object,
    Resource,
)
from controller.operator.experts.child import Failure, Placer, Task
from controller.operator.experts.loop import ExpertLoop, ExpertSettings
from controller.operator.notices import Notices
from controller.operator.views import APPROVED
from controller.operator.world import Pod, World
from controller.resources.expert_placement import ExpertPlacementSpec
from solver.domain.moe import ExpertPlan, ExpertPlanStatus, Slots
from solver.experts.bounds import lower_bounds_s
from solver.experts.score import move_between, score_map
from tests.cluster.scene import expert_placement

SPACE = "team"
KEY = (SPACE, "moe")
HOT_FIRST = [[500.0, 500, 500, 500, 100, 100, 100, 100]] * 2
HOT_LAST = [[500.0, 500, 100, 100, 100, 100, 500, 500]] * 2
"""Under the map for the first, its hot experts meet on one GPU."""


@dataclass
class Cluster:
    """A store of objects with resource versions; writes are counted."""

    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    writes: list[tuple[str, str]] = field(default_factory=list)
    refuses: int = 0
    """Code that every write of some kind meets."""
    refused: Resource = CONFIG_MAPS
    version: int = 10

    def put(self, resource: Resource, name: str, **body: Any) -> Object:
        self.version += 1
        known = self.objects.get((resource.kind, name), {"metadata": {}})
        metadata = {
            **known["metadata"],
            "name": name,
            "namespace": SPACE,
            **body.pop("metadata", {}),
            "resourceVersion": str(self.version),
        }
        whole = {**known, **body, "metadata": metadata}
        self.objects[resource.kind, name] = whole
        return copy.deepcopy(whole)

    def get(self, resource: Resource, _namespace: str | None, name: str) -> Object | None:
        return copy.deepcopy(self.objects.get((resource.kind, name)))

    def apply(
        self,
        resource: Resource,
        body: Object,
        *,
        manager: str,
        subresource: str | None = None,
        force: bool = False,
    ) -> Object:
        del manager, force
        name = body["metadata"]["name"]
        if self.refuses and resource is self.refused:
            raise ApiError(self.refuses, "refused")
        known = self.objects.get((resource.kind, name))
        asked = body["metadata"]["resourceVersion"]
        if asked != ("1" if known is None else known["metadata"]["resourceVersion"]):
            raise ApiError(409, "the object has been modified")
        self.writes.append((resource.kind, subresource or name))
        new = copy.deepcopy(body)
        if resource is STATEFUL_SETS:
            new["spec"] = {**(known or {}).get("spec", {}), **new["spec"]}
        return self.put(resource, name, **new)


def zigzag(task: Task) -> Slots:
    """Place the hottest experts on different GPUs, the next in the other direction, and so on."""
    gpus = task.instance.topology.gpus
    each = task.instance.slots // gpus
    rows = []
    for load in task.instance.load:
        order = np.argsort(-load, kind="stable")
        held: list[list[int]] = [[] for _ in range(gpus)]
        for place in range(task.instance.slots):
            turn, at = divmod(place, gpus)
            held[at if turn % 2 == 0 else gpus - 1 - at].append(int(order[place % len(order)]))
        assert all(len(part) == each for part in held)
        rows.append([expert for part in held for expert in part])
    return np.array(rows, dtype=np.int32)


@dataclass
class Zigzag(Placer):
    """A solver of a few lines, by the same rules of refusal."""

    tasks: list[Task] = field(default_factory=list)
    fails: Failure | None = None

    def place(self, task: Task) -> ExpertPlan | Failure:
        self.tasks.append(task)
        if self.fails is not None:
            return self.fails
        instance, p2l = task.instance, zigzag(task)
        move = proposed = None
        if task.previous is not None:
            saved_s = score_map(instance, task.previous).dispatch_s - score_map(instance, p2l).dispatch_s
            move = move_between(instance, task.previous, p2l, saved_s=saved_s)
            if not (move.net_gain_s or 0.0) > task.least_gain_s:
                p2l, proposed = task.previous, move
        bounds = lower_bounds_s(instance, "dispatch")
        return ExpertPlan(
            instance_name=instance.name,
            status=ExpertPlanStatus.FEASIBLE,
            method="ballast",
            communication="dispatch",
            physical_to_logical=p2l,
            score=score_map(instance, p2l),
            lower_bound_s=float(bounds.sum()),
            lower_bound_by_layer_s=(),
            move=move,
            refused=proposed is not None,
            proposed=proposed,
        )


@dataclass
class Stage:
    """A loop, its cluster, and a clock."""

    cluster: Cluster
    world: World
    placer: Zigzag
    loop: ExpertLoop
    now_s: float = 1_800_000_000.0

    def put(self, body: Object, generation: int = 1, **annotations: str) -> None:
        """Create or change the placement."""
        name = body["metadata"]["name"]
        metadata = {"uid": f"uid-{name}", "generation": generation, "annotations": annotations}
        whole = self.cluster.put(EXPERT_PLACEMENTS, name, spec=body["spec"], metadata=metadata)
        self.world.put(EXPERT_PLACEMENTS.kind, whole)

    def load(self, rows: Any, **more: Any) -> None:
        """Record loads."""
        self.cluster.put(CONFIG_MAPS, "moe", data={"load.json": json.dumps({"load": rows, **more})})

    def go(self, rounds: int = 1, *, later_s: float = 0.0) -> Object:
        """Let the loop go round; returns the status."""
        self.now_s += later_s
        for _ in range(rounds):
            self.loop.once()
        status: Object = self.cluster.objects[EXPERT_PLACEMENTS.kind, "moe"].get("status") or {}
        return status

    def condition(self, kind: str) -> Object:
        status = self.cluster.objects[EXPERT_PLACEMENTS.kind, "moe"]["status"]
        return next(dict(c) for c in status["conditions"] if c["type"] == kind)

    def plan(self) -> Object:
        return self.cluster.objects[PLANS.kind, "moe-experts"]

    def approve(self, digest: str, **annotations: str) -> None:
        """Annotate the Plan."""
        metadata = {"annotations": {APPROVED: digest, **annotations}}
        self.world.put(PLANS.kind, self.cluster.put(PLANS, "moe-experts", metadata=metadata))

    def maps(self) -> Object | None:
        return self.cluster.objects.get((CONFIG_MAPS.kind, "moe-experts"))


@contextmanager
def staged() -> Iterator[Stage]:
    """Set a loop up."""
    cluster: Any = Cluster()
    world, placer = World(), Zigzag()
    notices = Notices(api=cluster, instance="tests")
    loop = ExpertLoop(
        world=world, api=cluster, reading=cluster, notices=notices, settings=ExpertSettings(), placer=placer
    )
    one = Stage(cluster=cluster, world=world, placer=placer, loop=loop)
    loop.clock = lambda: one.now_s
    yield one
    loop._pool.shutdown()


def wish(**more: Any) -> Object:
    migration = {"minIntervalSeconds": 0, "windowsUntilNext": 100_000}
    return expert_placement(
        SPACE, "moe", nodes=2, gpus=2, experts=8, layers=2, **{"migration": migration, **more}
    )


def source(**more: Any) -> Object:
    return {"configMap": {"name": "moe"}, "ewmaAlpha": 1.0, **more}


def stateful_set(stage: Stage, *, updated: int = 1) -> None:
    known = stage.cluster.objects.get(
        (STATEFUL_SETS.kind, "engine"), {"spec": {"replicas": 1, "template": {}}}
    )
    generation = int(known["metadata"].get("generation", 0)) + 1 if "metadata" in known else 1
    counts = {"readyReplicas": 1, "replicas": 1, "updatedReplicas": updated, "observedGeneration": generation}
    metadata = {"uid": "s", "generation": generation}
    stage.cluster.put(STATEFUL_SETS, "engine", spec=known["spec"], status=counts, metadata=metadata)


def rolled(**more: Any) -> Object:
    """Wish for a restart, with an interval so that no proposal takes another's place."""
    body = wish(
        loadSource=source(),
        apply="rolloutRestart",
        targetRef={"kind": "StatefulSet", "name": "engine"},
        **more,
    )
    body["spec"]["migration"]["minIntervalSeconds"] = 600
    return body


def template_of(stage: Stage) -> Object:
    template = stage.cluster.objects[STATEFUL_SETS.kind, "engine"]["spec"]["template"]
    return dict(template.get("metadata", {}).get("annotations") or {})


def pod(name: str, node: str, gpus: int, owner: tuple[str, str]) -> Pod:
    return Pod(key=(SPACE, name), node=node, gpus=gpus, owner=owner, ip="", ready=True, serves=True)


def spec_of(load_source: Object) -> ExpertPlacementSpec:
    return ExpertPlacementSpec.model_validate(wish(loadSource=load_source)["spec"])
