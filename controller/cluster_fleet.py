"""Looks the names of a scenario up: GPU types, models, tables, prices, and from them the fleet that an engine takes.

It exists as the one place where a scenario meets the catalogues, so that a name nobody knows is told with the field it
stands in. It runs nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from controller.splitwise_cluster import (
    MODEL_NAMES,
    PROVENANCE,
    alone_on_machine,
    reference_machine,
    splitwise_fleet_of,
)
from simulator.alone import alone_on
from simulator.blis import in_microseconds
from simulator.fleet import EventKind, Fleet, FleetEvent, InstanceKind, Pool, Role
from simulator.metrics import Alone
from simulator.scenario import Scenario, ScenarioPool, StepModelKind
from simulator.splitwise.machines import KNOWN_ERROR as SPLITWISE_ERROR
from simulator.splitwise.machines import SplitwiseFleet
from simulator.step_models import instance_kind
from solver.domain.errors import InputError
from solver.domain.hardware import GpuType, parse_precision
from solver.domain.llm import ModelShape
from solver.domain.trace import Ints, Requests
from solver.performance.book import PerformanceBook
from solver.performance.capped import KNOWN_ERROR as CAP_ERROR
from solver.performance.capped import capped
from solver.performance.fitted import Fitted, StepFit
from solver.performance.profile_table import ProfileTable
from solver.performance.protocol import PerformanceModel, ReplicaKind
from solver.performance.roofline import Roofline
from solver.performance.trained_physics import KNOWN_ERROR as PHYSICS_ERROR
from solver.performance.trained_physics import TrainedPhysics
from telemetry.catalogue.read import by_kind, find_gpu, find_model, read_gpus, read_models
from telemetry.catalogue.read_profiles import SHIPPED, read_profiles
from telemetry.sources.step_fits import read_step_fits

TABLE_ERROR = (
    "the shipped tables on their own left-out runs: 1.2 % (prompt) and 0.5 % (decode) in the median; watts and memory"
    " are the roofline's (docs/accuracy.md)"
)
Found = TypeVar("Found")

OWN_TABLE_ERROR = (
    "a table of your own, not judged here; watts and memory are the roofline's (docs/accuracy.md)"
)
BLIS_ERROR = (
    "BLIS's own rules and equation, in whole microseconds: equal to its recorded runs; against engines, "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolInUse:
    """A pool as it is simulated, with names and sources; in the order of `RunRecord.pool_of_instance`."""

    name: str
    model: str
    """As the scenario calls it."""
    role: Role
    gpu_type: str
    gpus_per_instance: int
    count: int
    step_model: str
    """Kind of the step model."""
    provenance: str
    """Where the times come from, in one line."""
    known_error: str
    """How far off they are known to be, in one line."""
    price_usd_per_h: float | None
    """Of one instance; None: not known."""
    kv_capacity_tokens: int
    """Of one instance."""
    idle_w: float | None
    """Of one instance; None: watts are not known."""
    power_cap_w_per_gpu: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterCatalogues:
    """What is known of GPUs and models, and the measured tables; read once for many scenarios."""

    gpus: Mapping[str, GpuType]
    models: Mapping[str, ModelShape]
    tables: tuple[ProfileTable, ...]
    fits: tuple[StepFit, ...] = ()
    kinds: dict[object, tuple[InstanceKind, StepModelKind]] = field(
        default_factory=dict, repr=False, compare=False
    )
    """Instance kinds that were built before."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResolvedCluster:
    """A scenario with every name looked up."""

    scenario: Scenario
    fleet: Fleet | SplitwiseFleet
    pools: tuple[PoolInUse, ...]
    alone: Callable[[Requests, Ints], Alone] | None
    """Latencies of requests (with the index of their model) alone on the reference instance; None: none is named."""
    whole_us: bool = False
    """The fleet counts in whole microseconds (`simulator.blis`)."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, as the scenario calls them."""
        return tuple(model.name for model in self.scenario.models)

    @property
    def tbt_per_output_token(self) -> bool:
        """Whether TBT divides by output tokens, as the phase-splitting peer's does."""
        return isinstance(self.fleet, SplitwiseFleet)


def read_cluster_catalogues(files: Sequence[Path] = (), *, table: str | None = None) -> ClusterCatalogues:
    """Read the shipped catalogues and profiles, with the user's files on top."""
    gpu_files, model_files = by_kind(files)
    gpus, models = read_gpus(gpu_files), read_models(model_files)
    extra = () if table is None else (Path(table),)
    return ClusterCatalogues(gpus=gpus, models=models, tables=read_profiles(gpus, models, extra))


def catalogues_for(scenario: Scenario, files: Sequence[Path] = ()) -> ClusterCatalogues:
    """Read what a scenario needs.

    Raises
    ------
    InputError
        If the scenario's table is neither a file nor the name of a shipped one, or a file is not sound.
    """
    table = scenario.step_model.table
    shipped = {name: name for name in SHIPPED} | {Path(name).stem: name for name in SHIPPED}
    if table is not None and table not in shipped and not Path(table).is_file():
        raise InputError(
            f"no table {table!r}",
            where=scenario.place("step_model.table"),
            right=f"a profile file, or {' or '.join(Path(name).stem for name in SHIPPED)}",
        )
    known = read_cluster_catalogues(files, table=None if table is None or table in shipped else table)
    fit = scenario.step_model.fit
    return known if fit is None else replace(known, fits=read_step_fits(fit))


def replicas_of(scenario: Scenario, catalogues: ClusterCatalogues) -> tuple[ReplicaKind, ...]:
    """Name the kind of replica of each pool.

    Raises
    ------
    InputError
        As `resolve`.
    """
    lookup = _Lookup(scenario, catalogues, longest_prompt_tokens=1)
    models = {model.name: model for model in scenario.models}
    return tuple(
        lookup.replica(
            models[pool.model].model,
            models[pool.model].precision,
            pool.gpu_type,
            pool.gpus_per_instance,
            f"pools[{p}]",
        )
        for p, pool in enumerate(scenario.pools)
    )


def performance_of_pools(
    scenario: Scenario, catalogues: ClusterCatalogues, *, cap_ratio: float = 1.0
) -> tuple[PerformanceModel, ...]:
    """Return how fast an instance of each pool is, as it will be simulated.

    Parameters
    ----------
    cap_ratio
        Cap of every GPU, as a share of its TDP; a lower cap of the pool itself stays.

    Raises
    ------
    InputError
        As `resolve`.
    """
    lookup = _Lookup(scenario, catalogues, longest_prompt_tokens=1)
    return tuple(
        lookup.pool_performance(pool, f"pools[{p}]", cap_ratio) for p, pool in enumerate(scenario.pools)
    )


def performance_of_reference(
    scenario: Scenario, catalogues: ClusterCatalogues
) -> Mapping[str, PerformanceModel]:
    """Return how fast the reference instance is with each model; empty where none is named."""
    lookup = _Lookup(scenario, catalogues, longest_prompt_tokens=1)
    named = scenario.reference
    if named is None:
        return {}
    path = "reference_instance"
    return {
        model.name: lookup.performance(
            lookup.replica(model.model, model.precision, named.gpu_type, named.gpus, path), path
        )[1]
        for model in scenario.models
    }


def resolve(
    scenario: Scenario, catalogues: ClusterCatalogues, *, longest_prompt_tokens: int
) -> ResolvedCluster:
    """Look every name of a scenario up.

    Parameters
    ----------
    longest_prompt_tokens
        Of the requests to come: how far tables must reach where prompts run whole.

    Raises
    ------
    InputError
        For the first name that is not known or cannot be, with the scenario's field.
    """
    lookup = _Lookup(scenario, catalogues, longest_prompt_tokens)
    if scenario.step_model.kind is StepModelKind.SPLITWISE_COMPAT:
        return lookup.splitwise()
    return lookup.general()


class _Lookup:
    def __init__(self, scenario: Scenario, catalogues: ClusterCatalogues, longest_prompt_tokens: int) -> None:
        self._scenario = scenario
        self._catalogues = catalogues
        self._book = PerformanceBook(
            gpus=catalogues.gpus, models=catalogues.models, tables=catalogues.tables, extrapolate_tables=True
        )
        self._shapes = {
            model.name: self.model(model.model, f"models[{m}].model")
            for m, model in enumerate(scenario.models)
        }
        self._gpu_types = tuple(
            self.gpu(pool.gpu_type, f"pools[{p}].gpu_type") for p, pool in enumerate(scenario.pools)
        )
        scheduler = scenario.scheduler
        self._longest_step_tokens = (
            scheduler.max_batch_tokens
            if scheduler.chunked_prefill
            else max(scheduler.max_batch_tokens, longest_prompt_tokens)
        )

    # -- names

    def at(self, path: str, find: Callable[[], Found]) -> Found:
        """Let an error that knows no place name this field."""
        try:
            return find()
        except InputError as error:
            raise InputError(error.what, where=self._scenario.place(path), right=error.right) from None

    def gpu(self, name: str, path: str) -> GpuType:
        return self.at(path, lambda: find_gpu(self._catalogues.gpus, name))

    def model(self, name: str, path: str) -> ModelShape:
        return self.at(path, lambda: find_model(self._catalogues.models, name))

    # -- the phase-splitting peer

    def splitwise(self) -> ResolvedCluster:
        scenario = self._scenario
        shape = self._shapes[scenario.models[0].name]
        fleet = splitwise_fleet_of(scenario, model=shape.name, gpu_types=self._gpu_types)
        alone = None
        if scenario.reference is not None:
            gpu_type = self.gpu(scenario.reference.gpu_type, "reference_instance.gpu_type")
            machine = reference_machine(scenario, gpu_type, scenario.reference.gpus)
            name = MODEL_NAMES[shape.name]

            def alone(requests: Requests, _model_of: Ints) -> Alone:
                return alone_on_machine(machine, name, requests.prompt_tokens, requests.output_tokens)

        pools = tuple(
            PoolInUse(
                name=pool.name,
                model=pool.model,
                role=pool.role,
                gpu_type=gpu_type.name,
                gpus_per_instance=pool.gpus_per_instance,
                count=pool.count,
                step_model=StepModelKind.SPLITWISE_COMPAT.value,
                provenance=f"{PROVENANCE}: {group.machine.name}",
                known_error=SPLITWISE_ERROR,
                price_usd_per_h=_price(pool, gpu_type),
                kv_capacity_tokens=(group.machine.memory_bytes - fleet.model.weights_bytes)
                // fleet.model.kv_bytes_per_token,
                idle_w=group.machine.idle_w_per_gpu * group.machine.gpus,
                power_cap_w_per_gpu=pool.power_cap_w_per_gpu,
            )
            for pool, gpu_type, group in zip(scenario.pools, self._gpu_types, fleet.groups, strict=True)
        )
        return ResolvedCluster(scenario=scenario, fleet=fleet, pools=pools, alone=alone)

    # -- everything else

    def general(self) -> ResolvedCluster:
        scenario = self._scenario
        kinds: list[InstanceKind] = []
        pools: list[Pool] = []
        used: list[PoolInUse] = []
        models = [model.name for model in scenario.models]
        for p, (pool, gpu_type) in enumerate(zip(scenario.pools, self._gpu_types, strict=True)):
            kind, step_model = self.kind_of_pool(pool, p, pool.power_cap_w_per_gpu, "power_cap_w_per_gpu")
            pools.append(
                Pool(
                    name=pool.name,
                    kind=_index(kinds, kind),
                    count=pool.count,
                    role=pool.role,
                    model=models.index(pool.model),
                    start_s=pool.start_s,
                    drain_s=pool.drain_s,
                )
            )
            used.append(
                PoolInUse(
                    name=pool.name,
                    model=pool.model,
                    role=pool.role,
                    gpu_type=gpu_type.name,
                    gpus_per_instance=pool.gpus_per_instance,
                    count=pool.count,
                    step_model=step_model.value,
                    provenance=kind.provenance,
                    known_error=kind.known_error,
                    price_usd_per_h=kind.price_usd_per_h,
                    kv_capacity_tokens=kind.kv_capacity_tokens,
                    idle_w=kind.table.idle_w if kind.table.watts_known else None,
                    power_cap_w_per_gpu=pool.power_cap_w_per_gpu,
                )
            )
        events = self.events(kinds)
        fleet = Fleet(
            models=tuple(models),
            kinds=tuple(kinds),
            pools=tuple(pools),
            scheduler=scenario.scheduler,
            router=scenario.router,
            links=scenario.links,
            events=tuple(events),
        )
        alone = self.reference()
        whole_us = scenario.step_model.kind is StepModelKind.BLIS_COMPAT
        return ResolvedCluster(
            scenario=scenario,
            fleet=in_microseconds(fleet) if whole_us else fleet,
            pools=tuple(used),
            alone=alone,
            whole_us=whole_us,
        )

    def events(self, kinds: list[InstanceKind]) -> list[FleetEvent]:
        found = []
        names = [pool.name for pool in self._scenario.pools]
        for e, event in enumerate(self._scenario.events):
            p = names.index(event.pool)
            pool = self._scenario.pools[p]
            capped = -1
            if event.kind is EventKind.CAP:
                kind, _ = self.kind_of_pool(pool, p, event.value_w, f"events[{e}].value")
                capped = _index(kinds, kind)
            members = range(pool.count) if event.index is None else (event.index,)
            found += [
                FleetEvent(time_s=event.time_s, kind=event.kind, pool=p, index=index, instance_kind=capped)
                for index in members
            ]
        return found

    def kind_of_pool(
        self, pool: ScenarioPool, p: int, cap_w: float | None, cap_path: str
    ) -> tuple[InstanceKind, StepModelKind]:
        path = f"pools[{p}]"
        cap_path = cap_path if cap_path.startswith("events") else f"{path}.{cap_path}"
        model = next(m for m in self._scenario.models if m.name == pool.model)
        replica = self.replica(model.model, model.precision, pool.gpu_type, pool.gpus_per_instance, path)
        return self.kind(replica, cap_w=cap_w, path=path, cap_path=cap_path)

    def pool_performance(self, pool: ScenarioPool, path: str, cap_ratio: float) -> PerformanceModel:
        model = next(m for m in self._scenario.models if m.name == pool.model)
        replica = self.replica(model.model, model.precision, pool.gpu_type, pool.gpus_per_instance, path)
        _, performance, _, _ = self.performance(replica, path)
        gpu = self._catalogues.gpus[replica.gpu_type]
        cap_w = min(gpu.tdp_w * cap_ratio, pool.power_cap_w_per_gpu or math.inf)
        if cap_w >= gpu.tdp_w:
            return performance
        return self.at(path, lambda: capped(performance, cap_w, gpu))

    def replica(self, model: str, precision: str | None, gpu_type: str, gpus: int, path: str) -> ReplicaKind:
        shape = find_model(self._catalogues.models, model)
        weights = (
            shape.default_precision
            if precision is None
            else self.at(
                f"models[{[m.model for m in self._scenario.models].index(model)}].precision",
                lambda: parse_precision(precision),
            )
        )
        gpu = find_gpu(self._catalogues.gpus, gpu_type)
        self.at(path, lambda: gpu.flops(weights))
        return ReplicaKind(
            model=shape.name, gpu_type=gpu.name, gpus_per_replica=gpus, precision=weights.value
        )

    def kind(
        self, replica: ReplicaKind, *, cap_w: float | None, path: str, cap_path: str
    ) -> tuple[InstanceKind, StepModelKind]:
        scheduler = self._scenario.scheduler
        wanted = self._scenario.step_model
        key = (replica, cap_w, wanted, scheduler.max_batch, self._longest_step_tokens)
        known = self._catalogues.kinds.get(key)
        if known is not None:
            return known
        step_model, performance, provenance, error = self.performance(replica, path)
        gpu = self._catalogues.gpus[replica.gpu_type]
        shape = self._catalogues.models[replica.model]
        if cap_w is not None and cap_w < gpu.tdp_w:
            uncapped, limit_w = performance, cap_w
            performance = self.at(cap_path, lambda: capped(uncapped, limit_w, gpu))
            provenance += f"; capped at {cap_w:g} W per GPU"
            error += f"; {CAP_ERROR}"
        price = gpu.price_usd_per_h
        kind = self.at(
            path,
            lambda: instance_kind(
                f"{replica.gpus_per_replica} x {replica.gpu_type}",
                performance,
                shape,
                max_batch=scheduler.max_batch,
                longest_step_tokens=self._longest_step_tokens,
                price_usd_per_h=None if price is None else price * replica.gpus_per_replica,
                provenance=provenance,
                known_error=error,
            ),
        )
        self._catalogues.kinds[key] = (kind, step_model)
        return kind, step_model

    def performance(
        self, replica: ReplicaKind, path: str
    ) -> tuple[StepModelKind, PerformanceModel, str, str]:
        """Choose the model of an instance: its kind, itself, where it comes from, how far off it is."""
        wanted = self._scenario.step_model.kind
        if wanted is StepModelKind.FITTED:
            return self.fitted(replica)
        entry = self.at(path, lambda: self._book.entry(replica))
        if entry.measured and wanted in {None, StepModelKind.TABLE_KV}:
            shipped = isinstance(entry.performance, ProfileTable) and entry.performance.provenance in SHIPPED
            error = TABLE_ERROR if shipped else OWN_TABLE_ERROR
            return StepModelKind.TABLE_KV, entry.performance, entry.provenance, error
        if wanted is StepModelKind.TABLE_KV:
            raise InputError(
                f"no table of {replica}",
                where=self._scenario.place("step_model.kind"),
                right="a profile file as step_model.table, or kind physics",
            )
        roofline = Roofline.of(
            replica, self._catalogues.gpus[replica.gpu_type], self._catalogues.models[replica.model]
        )
        provenance = "trained-physics equation and coefficients of BLIS; watts and memory from the roofline"
        physics = TrainedPhysics(roofline=roofline)
        if wanted is StepModelKind.BLIS_COMPAT:
            return wanted, physics, provenance, BLIS_ERROR + PHYSICS_ERROR
        return StepModelKind.PHYSICS, physics, provenance, PHYSICS_ERROR

    def fitted(self, replica: ReplicaKind) -> tuple[StepModelKind, PerformanceModel, str, str]:
        fit = next((fit for fit in self._catalogues.fits if fit.kind == replica), None)
        if fit is None:
            raise InputError(
                f"no fit of {replica}",
                where=self._scenario.place("step_model.fit"),
                right="a fit of it in that file (ballast simulate validate --calibrate makes them)",
            )
        roofline = Roofline.of(
            replica, self._catalogues.gpus[replica.gpu_type], self._catalogues.models[replica.model]
        )
        model = Fitted(fit=fit, roofline=roofline)
        provenance = f"fitted to {fit.source or 'requests'}; watts and memory from the roofline"
        return StepModelKind.FITTED, model, provenance, fit.known_error

    # -- the reference instance

    def reference(self) -> Callable[[Requests, Ints], Alone] | None:
        scenario = self._scenario
        named = scenario.reference
        if named is None:
            return None
        self.gpu(named.gpu_type, "reference_instance.gpu_type")
        path = "reference_instance"
        kinds = []
        for model in scenario.models:
            replica = self.replica(model.model, model.precision, named.gpu_type, named.gpus, path)
            kinds.append(self.kind(replica, cap_w=None, path=path, cap_path=path)[0])
        chunk_tokens = scenario.scheduler.max_batch_tokens if scenario.scheduler.chunked_prefill else None

        def alone(requests: Requests, model_of: Ints) -> Alone:
            return alone_on(
                kinds, model_of, requests.prompt_tokens, requests.output_tokens, chunk_tokens=chunk_tokens
            )

        return alone


def _index(kinds: list[InstanceKind], kind: InstanceKind) -> int:
    """Return the place of a kind in the list, appending it where it is new."""
    for k, other in enumerate(kinds):
        if other is kind:
            return k
    kinds.append(kind)
    return len(kinds) - 1


def _price(pool: ScenarioPool, gpu_type: GpuType) -> float | None:
    price = gpu_type.price_usd_per_h
    return None if price is None else price * pool.gpus_per_instance
