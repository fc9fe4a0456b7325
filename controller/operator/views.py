"""Each ModelService as the planner should see it: its spec read, its targets and profiles found, what is wrong said.

It exists so that objects of the cluster become `solver.domain.cluster.ServiceState` in one place, and so that a
service whose inputs did not change is not read again. It writes nothing and decides nothing but who may own a target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from controller.operator.api import (
    AUTOSCALERS,
    CONTROLLER,
    GPU_PROFILES,
    MODEL_SERVICES,
    NODES,
    PLANS,
    PODS,
    RESOURCE_SLICES,
    SCALED_OBJECTS,
)
from controller.operator.inventory import (
    Inventory,
    InventoryRules,
    OwnerKey,
    PoolKey,
    pool_key,
    published_devices,
    take_inventory,
)
from controller.operator.profiles import ADD_ROWS, ProfileBook, rows_missing
from controller.operator.traffic import Traffic
from controller.operator.variants import (
    VariantView,
    kv_bytes_per_token,
    unlimited,
    unserved,
    variant_state,
)
from controller.operator.world import Key, Target, World
from controller.resources.gpu_profile import GpuProfileSpec
from controller.resources.model_service import Mode, ModelServiceSpec, VariantSpec
from controller.resources.plan import Phase, PlanSpec, PlanStatus
from solver.domain.cluster import ServiceState, Stance, VariantState

MANAGED = "ballast.dev/managed"
PAUSED = "ballast.dev/paused"
APPROVED = "ballast.dev/approved"
ADOPTED_BY = "ballast.dev/adopted-by"
PREVIOUS_MANAGER = "ballast.dev/previous-manager"
TAKE_OVER = "ballast.dev/take-over"

Entry = tuple[Mapping[str, Any], ModelServiceSpec | None, str]
"""A ModelService as it is written: body, spec, what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanView:
    """A Plan as it stands in the cluster."""

    spec: PlanSpec
    status: PlanStatus
    version: str
    approved: str
    """Digest that somebody approved."""
    paused: bool

    @property
    def current(self) -> PlanStatus:
        """The status if it speaks of this spec, else a fresh one."""
        if self.status.digest == self.spec.digest:
            return self.status
        return PlanStatus(digest=self.spec.digest, steps=self.spec.step_count)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    """One ModelService, read."""

    key: Key
    uid: str
    generation: int
    body: Mapping[str, Any]
    spec: ModelServiceSpec | None
    trouble: str
    """Why the whole service cannot be planned for."""
    paused: bool
    variants: tuple[VariantView, ...]
    traffic: Traffic
    plan: PlanView | None
    state: ServiceState | None
    """None while it cannot be planned for."""
    unserved: str = ""
    """Which variants cannot serve some of the traffic, and why."""
    unlimited: str = ""
    """Which KV links are stated and yet limit nothing, and why."""

    @property
    def name(self) -> str:
        """Namespace and name."""
        return f"{self.key[0]}/{self.key[1]}"

    @property
    def version(self) -> str:
        """Resource version the view was made of."""
        return str(self.body["metadata"].get("resourceVersion") or "")


def plan_view(body: Mapping[str, Any]) -> PlanView | None:
    """Read a Plan; None for one that is not ours to read."""
    metadata = body["metadata"]
    annotations = metadata.get("annotations") or {}
    try:
        return PlanView(
            spec=PlanSpec.model_validate(body["spec"]),
            status=PlanStatus.model_validate(body.get("status") or {}),
            version=str(metadata.get("resourceVersion") or ""),
            approved=str(annotations.get(APPROVED) or ""),
            paused=annotations.get(PAUSED) == "true",
        )
    except ValidationError:
        return None


def first_problem(error: ValidationError) -> str:
    """Say what is wrong with an object in one line."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"spec.{where}: {problem['msg']}"


@dataclass(slots=True, kw_only=True)
class Views:
    """Reads services; keeps what it read until something of it changes."""

    world: World
    book: ProfileBook
    gpu_label: str
    _specs: dict[tuple[str, int], tuple[ModelServiceSpec | None, str]] = field(default_factory=dict)
    _profiles: dict[Key, tuple[str, GpuProfileSpec | None, str]] = field(default_factory=dict)
    _plans: dict[Key, tuple[Any, PlanView | None]] = field(default_factory=dict)
    _views: dict[Key, tuple[tuple[Any, ...], ServiceView]] = field(default_factory=dict)

    def specs(self) -> dict[Key, Entry]:
        """Read the specs of all ModelServices."""
        found = {}
        bodies = self.world.all(MODEL_SERVICES.kind)
        alive = set()
        for key, body in bodies.items():
            metadata = body["metadata"]
            if metadata.get("deletionTimestamp"):
                continue
            state = (str(metadata.get("uid")), int(metadata.get("generation") or 0))
            alive.add(state)
            if state not in self._specs:
                try:
                    self._specs[state] = (ModelServiceSpec.model_validate(body["spec"]), "")
                except ValidationError as error:
                    self._specs[state] = (None, first_problem(error))
            found[key] = (body, *self._specs[state])
        for state in self._specs.keys() - alive:
            del self._specs[state]
        for gone in self._views.keys() - found.keys():
            del self._views[gone]
        for gone in self._plans.keys() - found.keys():
            del self._plans[gone]
        for gone in self._profiles.keys() - self.world.all(GPU_PROFILES.kind).keys():
            del self._profiles[gone]
        self.book.variants = sum(len(spec.variants) for _, spec, _ in found.values() if spec is not None)
        return found

    def profile(self, name: str) -> tuple[GpuProfileSpec | None, str]:
        """Read a GpuProfile; with what is wrong if it cannot be."""
        key = ("", name)
        body = self.world.get(GPU_PROFILES.kind, key)
        known = self._profiles.get(key)
        version = self.version_of(name)
        if known is not None and known[0] == version:
            return known[1], known[2]
        spec, trouble = None, f"GpuProfile {name} does not exist"
        if body is not None:
            try:
                spec, trouble = GpuProfileSpec.model_validate(body["spec"]), ""
            except ValidationError as error:
                trouble = f"GpuProfile {name}: {first_problem(error)}"
        self._profiles[key] = (version, spec, trouble)
        return spec, trouble

    def profile_paused(self, name: str) -> bool:
        """Whether somebody paused a profile: nothing that stands on it is changed."""
        body = self.world.get(GPU_PROFILES.kind, ("", name))
        return body is not None and (body["metadata"].get("annotations") or {}).get(PAUSED) == "true"

    def version_of(self, name: str) -> str:
        """Name the present state of a profile."""
        body = self.world.get(GPU_PROFILES.kind, ("", name))
        if body is None:
            return ""
        return f"{body['metadata'].get('uid')}/{body['metadata'].get('generation')}"

    def plan(self, key: Key) -> PlanView | None:
        """Read the Plan of a service."""
        body = self.world.get(PLANS.kind, key)
        known = self._plans.get(key)
        if known is not None and known[0] is body:
            return known[1]
        view = None if body is None else plan_view(body)
        if view is not None and view.spec.model_service_ref is None:
            view = None  # of an ExpertPlacement
        self._plans[key] = (body, view)
        return view

    def pool_of(self, profile: GpuProfileSpec) -> PoolKey:
        """Return the pool of a profile."""
        return pool_key(profile, self.gpu_label, self.book.labels_of)

    def owners(self, specs: Mapping[Key, Entry]) -> dict[OwnerKey, Key]:
        """Say which service owns each target: the oldest that names it (then by name)."""
        ordered = sorted(
            (str(body["metadata"].get("creationTimestamp") or ""), key)
            for key, (body, spec, _) in specs.items()
            if spec is not None
        )
        owners: dict[OwnerKey, Key] = {}
        for _, key in ordered:
            spec = specs[key][1]
            for variant in spec.variants if spec is not None else ():
                owner = (variant.target_ref.kind, key[0], variant.target_ref.name)
                owners.setdefault(owner, key)
        return owners

    def autoscaled(self) -> dict[OwnerKey, str]:
        """Name the autoscaler of each target that has one."""
        found: dict[OwnerKey, str] = {}
        for kind in (AUTOSCALERS.kind, SCALED_OBJECTS.kind):
            for key, (target_kind, namespace, name) in self.world.all(kind).items():
                found[target_kind, namespace, name] = f"{kind} {key[1]}"
        return found

    def inventory(
        self,
        specs: Mapping[Key, Entry],
        owners: Mapping[OwnerKey, Key],
        *,
        dra_driver: str,
    ) -> Inventory:
        """Count the GPUs of the pools that services name, and the pods of their targets."""
        pools: dict[PoolKey, list[Target]] = {}
        ours = set()
        for key, (_, spec, _) in specs.items():
            for variant in spec.variants if spec is not None else ():
                owner = (variant.target_ref.kind, key[0], variant.target_ref.name)
                target = self.world.get(owner[0], (owner[1], owner[2]))
                profile = self.profile(variant.gpu_profile)[0]
                if profile is None:
                    continue
                targets = pools.setdefault(self.pool_of(profile), [])
                if target is not None and owners.get(owner) == key:
                    targets.append(target)
                    ours.add(owner)
        slices = self.world.all(RESOURCE_SLICES.kind)
        return take_inventory(
            self.world.all(NODES.kind),
            self.world.all(PODS.kind),
            pools,
            ours=ours,
            rules=InventoryRules(gpu_label=self.gpu_label, labels_of=self.book.labels_of),
            devices=published_devices(slices, dra_driver) if slices else None,
        )

    def view(
        self,
        key: Key,
        entry: Entry,
        *,
        traffic: Traffic,
        owners: Mapping[OwnerKey, Key],
        autoscaled: Mapping[OwnerKey, str],
        inventory: Inventory,
        hold: str = "",
    ) -> ServiceView:
        """Read one service; ``hold`` says why the solver is kept from it."""
        body, spec, trouble = entry
        plan = self.plan(key)
        names = (
            [] if spec is None else [(v.target_ref.kind, key[0], v.target_ref.name) for v in spec.variants]
        )
        inputs: tuple[Any, ...] = (
            body,
            traffic,
            plan,
            hold,
            *(self.world.get(name[0], (name[1], name[2])) for name in names),
            *(owners.get(name) == key for name in names),
            *(autoscaled.get(name) for name in names),
            *(len(inventory.pods.get(name, ())) for name in names),
            *(self.profile(v.gpu_profile)[0] for v in (spec.variants if spec is not None else ())),
            *(self.profile_paused(v.gpu_profile) for v in (spec.variants if spec is not None else ())),
            *self._room(spec, inventory),
        )
        known = self._views.get(key)
        if known is not None and _same(known[0], inputs):
            return known[1]
        annotations = body["metadata"].get("annotations") or {}
        variants = tuple(
            self._variant(key, variant, owners, autoscaled)
            for variant in (spec.variants if spec is not None else ())
        )
        paused = bool(spec is not None and spec.paused) or annotations.get(PAUSED) == "true"
        if plan is not None:
            paused = paused or plan.paused
        paused = paused or any(self.profile_paused(v.gpu_profile) for v in (spec.variants if spec else ()))
        state = (
            None
            if spec is None
            else self._state(
                key,
                spec,
                variants=variants,
                traffic=traffic,
                plan=plan,
                inventory=inventory,
                paused=paused,
                hold=hold,
            )
        )
        if known is not None and known[1].state == state:
            state = known[1].state  # who remembers it knows it again, and it is held once
        view = ServiceView(
            unserved="" if spec is None else unserved(self.book, spec, variants, traffic),
            unlimited="" if spec is None else unlimited(self.book, spec, variants),
            key=key,
            uid=str(body["metadata"].get("uid") or ""),
            generation=int(body["metadata"].get("generation") or 0),
            body=body,
            spec=spec,
            trouble=trouble,
            paused=paused,
            variants=variants,
            traffic=traffic,
            plan=plan,
            state=state,
        )
        self._views[key] = (inputs, view)
        return view

    def present(self) -> dict[Key, ServiceView]:
        """Return the views as they were read last."""
        return {key: view for key, (_, view) in self._views.items()}

    def _room(self, spec: ModelServiceSpec | None, inventory: Inventory) -> list[int]:
        rooms = []
        for variant in spec.variants if spec is not None else ():
            profile = self.profile(variant.gpu_profile)[0]
            if profile is not None:
                rooms.append(
                    inventory.replicas_that_fit(self.pool_of(profile).name, profile.gpus_per_replica)
                )
        return rooms

    def _variant(
        self,
        key: Key,
        variant: VariantSpec,
        owners: Mapping[OwnerKey, Key],
        autoscaled: Mapping[OwnerKey, str],
    ) -> VariantView:
        ref = variant.target_ref
        name = (ref.kind, key[0], ref.name)
        target: Target | None = self.world.get(ref.kind, (key[0], ref.name))
        profile, trouble = self.profile(variant.gpu_profile)
        conflict: tuple[str, str] | None = None
        owner = owners.get(name, key)
        if owner != key:
            conflict = (
                "TargetTaken",
                f"{ref.kind} {ref.name} belongs to ModelService {owner[1]}; name each target in one only",
            )
            return VariantView(spec=variant, trouble=conflict[1], conflict=conflict)
        if target is None:
            trouble = trouble or f"{ref.kind} {ref.name} does not exist in {key[0]}"
        elif name in autoscaled:
            conflict = (
                "AutoscalerOwnsReplicas",
                (
                    f"{autoscaled[name]} scales {ref.kind} {ref.name}: let it follow the metric"
                    " ballast_desired_replicas, or remove it"
                ),
            )
        elif (
            target.annotations.get(ADOPTED_BY) == f"{key[0]}/{key[1]}"
            and ref.kind != "LeaderWorkerSet"
            and CONTROLLER not in target.replicas_managers
            and target.annotations.get(TAKE_OVER) != "true"
        ):
            others = ", ".join(target.replicas_managers) or "somebody"
            conflict = (
                "FieldOwned",
                (
                    f"{others} has set spec.replicas of {ref.kind} {ref.name}; leave it to Ballast by"
                    f" kubectl annotate {ref.kind.lower()}/{ref.name} {TAKE_OVER}=true"
                ),
            )
        unknown = "" if profile is None else rows_missing(profile, variant.role)
        if unknown:
            stays = f"{unknown}; {ADD_ROWS}; its replicas stay as they are"
            trouble = trouble or f"GpuProfile {variant.gpu_profile}: {stays}"
        return VariantView(
            spec=variant,
            unknown=bool(unknown),
            target=target,
            profile=profile,
            profile_version=self.version_of(variant.gpu_profile),
            pool="" if profile is None else self.pool_of(profile).name,
            trouble=trouble,
            conflict=conflict,
            autoscaled=name in autoscaled,
        )

    def _state(
        self,
        key: Key,
        spec: ModelServiceSpec,
        *,
        variants: Sequence[VariantView],
        traffic: Traffic,
        plan: PlanView | None,
        inventory: Inventory,
        paused: bool,
        hold: str,
    ) -> ServiceState | None:
        usable = [variant for variant in variants if variant.usable]
        if not usable:
            return None
        states = tuple(variant_state(self.book, spec, variant, traffic, inventory) for variant in usable)
        under_way = plan is not None and plan.current.phase in {Phase.APPROVED, Phase.APPLYING}
        stance = Stance.APPLIED
        if spec.mode is Mode.OBSERVE or paused or hold or not traffic.fresh or not traffic.buckets:
            stance = Stance.FIXED
        elif spec.mode is Mode.RECOMMEND:
            stance = Stance.FIXED if under_way else Stance.PROPOSED
        if stance is Stance.FIXED and under_way and plan is not None:
            wanted = {w.variant: w.replicas for w in plan.spec.desired}
            states = tuple(_holding(state, wanted.get(state.name, 0)) for state in states)
        return ServiceState(
            name=f"{key[0]}/{key[1]}",
            stance=stance,
            buckets=traffic.buckets,
            variants=states,
            headroom_ratio=spec.headroom_ratio,
            survive=spec.survive,
            start_cost_usd=spec.change.start_cost_usd,
            stop_cost_usd=spec.change.stop_cost_usd,
            kv_bytes_per_prompt_token=(kv_bytes_per_token(self.book, spec) or 0.0)
            if any(state.kv_link_bytes_per_s is not None for state in states)
            else 0.0,
        )


def _holding(state: VariantState, wanted: int) -> VariantState:
    return replace(state, held=max(state.held, wanted))


def _same(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    """Whether inputs are the very same objects, or equal plain values."""
    return len(first) == len(second) and all(
        a is b or (isinstance(a, int | str | Traffic) and a == b) for a, b in zip(first, second, strict=True)
    )


def targets_of(specs: Mapping[Key, Entry]) -> set[OwnerKey]:
    """Return all targets that services name."""
    return {
        (variant.target_ref.kind, key[0], variant.target_ref.name)
        for key, (_, spec, _) in specs.items()
        if spec is not None
        for variant in spec.variants
    }
