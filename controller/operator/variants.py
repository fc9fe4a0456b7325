"""One variant of a ModelService: what was found for it, and what it is to the planner.

It exists so that what a variant carries, holds and lacks is said in one place, for plans and for messages. It looks
nothing up in the cluster; `controller.operator.views` does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from controller.operator.inventory import Inventory
from controller.operator.profiles import ProfileBook, Sustained
from controller.operator.traffic import Traffic
from controller.operator.world import Target
from controller.resources.gpu_profile import GpuProfileSpec
from controller.resources.model_service import ModelServiceSpec, VariantSpec
from solver.domain.cluster import VariantState
from solver.domain.fleet import Role

BYTES_OF_GBYTE = 1e9
MOST_NAMED = 3
"""Profiles of which a message speaks by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantView:
    """One variant: what was found for it, and why Ballast may not scale it."""

    spec: VariantSpec
    target: Target | None = None
    profile: GpuProfileSpec | None = None
    profile_version: str = ""
    pool: str = ""
    trouble: str = ""
    """Why it cannot be planned for."""
    conflict: tuple[str, str] | None = None
    """Reason and message if somebody else owns the number of replicas."""
    autoscaled: bool = False
    """An autoscaler follows our gauge."""
    unknown: bool = False
    """Its profile tells nothing of its role (`trouble` says so): its replicas stay as they are."""

    @property
    def named(self) -> str:
        """Its name, after its role where it serves only one phase."""
        return self.spec.name if self.spec.role is Role.BOTH else f"{self.spec.role.value} {self.spec.name}"

    @property
    def usable(self) -> bool:
        """Whether it takes part in plans."""
        return self.target is not None and self.profile is not None

    @property
    def link_gbytes_per_s(self) -> float | None:
        """GB/s of KV that a replica sends or takes; None where it serves whole requests, or nobody says."""
        if self.spec.role is Role.BOTH or self.profile is None:
            return None
        return self.profile.kv_link_gbytes_per_second


def variant_state(
    book: ProfileBook,
    spec: ModelServiceSpec,
    variant: VariantView,
    traffic: Traffic,
    inventory: Inventory,
) -> VariantState:
    """Write a usable variant as the planner knows it."""
    target, profile = variant.target, variant.profile
    if target is None or profile is None:
        raise ValueError(f"variant {variant.spec.name} is not usable")
    sustained = _sustained(book, spec, variant, profile, traffic)
    link_gbytes_per_s = variant.link_gbytes_per_s
    groups = target.kind == "LeaderWorkerSet"
    alive = target.running if groups else len(inventory.pods.get((target.kind, *target.key), ()))
    most = variant.spec.max_replicas
    if not groups:
        fit = inventory.replicas_that_fit(variant.pool, profile.gpus_per_replica)
        most = fit if most is None else min(most, fit)
    return VariantState(
        name=variant.spec.name,
        pool=variant.pool,
        gpus_per_replica=profile.gpus_per_replica,
        price_usd_per_h=profile.price_usd_per_hour,
        throughput_rps=sustained.throughput_rps,
        replicas=target.replicas,
        ready=target.ready,
        held=max(target.replicas, alive),
        min_replicas=min(variant.spec.min_replicas, most) if most is not None else variant.spec.min_replicas,
        max_replicas=most,
        locked=variant.unknown or (variant.conflict is not None and not variant.autoscaled),
        role=variant.spec.role,
        kv_link_bytes_per_s=None if link_gbytes_per_s is None else link_gbytes_per_s * BYTES_OF_GBYTE,
    )


def unserved(
    book: ProfileBook, spec: ModelServiceSpec, variants: Sequence[VariantView], traffic: Traffic
) -> str:
    """Say which variants cannot serve some of the traffic, and why; empty if all can."""
    found = []
    for variant in variants:
        if variant.usable and variant.profile is not None and not variant.unknown:
            sustained = _sustained(book, spec, variant, variant.profile, traffic)
            if sustained.trouble and traffic.buckets:
                found.append(
                    f"variant {variant.spec.name}, GpuProfile {variant.spec.gpu_profile}: {sustained.trouble}"
                )
    return "; ".join(found)


def _sustained(
    book: ProfileBook,
    spec: ModelServiceSpec,
    variant: VariantView,
    profile: GpuProfileSpec,
    traffic: Traffic,
) -> Sustained:
    return book.sustained(
        profile,
        variant.profile_version,
        spec.slo,
        traffic.buckets,
        role=variant.spec.role,
        pool_size=variant.spec.min_replicas,
    )


def unlimited(book: ProfileBook, spec: ModelServiceSpec, variants: Sequence[VariantView]) -> str:
    """Say which KV links are stated and yet limit nothing, and why; empty if none is."""
    linked = sorted({v.spec.gpu_profile for v in variants if v.link_gbytes_per_s is not None})
    if not linked or kv_bytes_per_token(book, spec) is not None:
        return ""
    more = f" and {len(linked) - MOST_NAMED} more" if len(linked) > MOST_NAMED else ""
    named = f"{', '.join(linked[:MOST_NAMED])}{more}"
    return (
        f"kvLinkGbytesPerSecond of GpuProfile {named} limits nothing: no catalogue knows {spec.model};"
        " set kvBytesPerPromptToken"
    )


def kv_bytes_per_token(book: ProfileBook, spec: ModelServiceSpec) -> float | None:
    """Bytes that move from prefill to decode for each token of a prompt; None if nobody says."""
    if spec.kv_bytes_per_prompt_token is not None:
        return spec.kv_bytes_per_prompt_token
    return book.kv_bytes_per_token(spec.model)
