"""What a replica of a variant sustains at given request sizes: from the rows of its GpuProfile, or from the model.

It exists so that profiles, which are tables or a promise to use the performance model, become one number per request
size: whole requests, or prompts or decodes alone where a variant serves only one phase. It reads no cluster.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from controller.resources.gpu_profile import GpuProfileSpec, ThroughputRow
from controller.resources.model_service import SloSpec
from controller.trace_planning import Catalogues, read_catalogues
from solver.domain.errors import InputError
from solver.domain.fleet import Role
from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import Slo, parse_slo
from solver.performance.capacity import DEFAULT_ENGINE, throughput_rps
from solver.performance.phase_capacity import pool_capacity
from solver.performance.protocol import OutsideRangeError, PerformanceModel, ReplicaKind
from telemetry.catalogue.read import find_gpu, find_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Sustained:
    """Requests per second of one replica by bucket (0: not within the SLO), and what is worth saying about it."""

    throughput_rps: tuple[float, ...]
    trouble: str = ""


MOST_LABELLED = 1000
MOST_PHASES = 20_000
LEAST_KNOWN = 1000
KNOWN_PER_VARIANT = 4
"""Answers that are remembered: so many for each variant that there is, or `LEAST_KNOWN` if that is more."""
ADD_ROWS = "add rows measured so, or use modelled: true"
Sizes = tuple[tuple[float, float], ...]


@dataclass(slots=True)
class ProfileBook:
    """Answers what profiles sustain, and remembers."""

    variants: int = 0
    """How many there are that are asked for."""
    _catalogues: Catalogues | None = None
    _labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _kv_bytes: dict[str, float | None] = field(default_factory=dict)
    _known: dict[tuple[str, SloSpec, Sizes, Role, int], Sustained] = field(default_factory=dict)
    """What was asked for last comes last: measured sizes hardly ever come again."""
    _phases: dict[tuple[str, SloSpec, tuple[float, float], Role, int], float] = field(default_factory=dict)

    def sustained(
        self,
        profile: GpuProfileSpec,
        version: str,
        slo: SloSpec,
        buckets: Sequence[RequestBucket],
        *,
        role: Role = Role.BOTH,
        pool_size: int = 1,
    ) -> Sustained:
        """Return what one replica sustains; ``version`` names this state of the profile.

        ``pool_size``: replicas that are there at least. It matters to what is modelled of one phase, because requests
        wait less the more servers there are.
        """
        sizes = tuple((bucket.input_tokens or 0.0, bucket.output_tokens or 0.0) for bucket in buckets)
        pool_size = max(1, pool_size) if profile.modelled and role is not Role.BOTH else 1
        key = (version, slo, sizes, role, pool_size)
        found = self._known.pop(key, None)
        if found is None:
            found = (
                self._modelled(profile, version, slo, buckets, role=role, pool_size=pool_size)
                if profile.modelled
                else _from_rows(profile, slo, sizes, role)
            )
        self._known[key] = found
        most = max(LEAST_KNOWN, KNOWN_PER_VARIANT * self.variants)
        for old in list(islice(self._known, max(0, len(self._known) - most))):
            del self._known[old]
        return found

    def kv_bytes_per_token(self, model: str) -> float | None:
        """Bytes of KV cache per token of a model of the catalogue; None for one that is not there."""
        if model not in self._kv_bytes:
            if len(self._kv_bytes) > MOST_LABELLED:
                self._kv_bytes.clear()
            try:
                shape = find_model(self._read().models, model)
            except InputError:
                self._kv_bytes[model] = None
            else:
                self._kv_bytes[model] = shape.kv_bytes_per_token()
        return self._kv_bytes[model]

    def labels_of(self, gpu_type: str) -> tuple[str, ...]:
        """Values of the product label that mean a GPU type."""
        if gpu_type not in self._labels:
            if len(self._labels) > MOST_LABELLED:
                self._labels.clear()
            try:
                gpu = find_gpu(self._read().gpus, gpu_type)
            except InputError:
                self._labels[gpu_type] = (gpu_type,)
            else:
                self._labels[gpu_type] = (gpu_type, gpu.name, *gpu.product_labels)
        return self._labels[gpu_type]

    def _read(self) -> Catalogues:
        if self._catalogues is None:
            self._catalogues = read_catalogues()
        return self._catalogues

    def performance(self, profile: GpuProfileSpec) -> PerformanceModel:
        """Return the step times of a replica (`InputError` for a GPU or model that no catalogue knows)."""
        catalogues = self._read()
        kind = ReplicaKind(
            gpu_type=find_gpu(catalogues.gpus, profile.gpu_type).name,
            gpus_per_replica=profile.gpus_per_replica,
            model=find_model(catalogues.models, profile.model).name,
            precision=str(profile.precision),
        )
        return catalogues.book.performance(kind)

    def _modelled(
        self,
        profile: GpuProfileSpec,
        version: str,
        slo: SloSpec,
        buckets: Sequence[RequestBucket],
        *,
        role: Role,
        pool_size: int,
    ) -> Sustained:
        nothing = (0.0,) * len(buckets)
        try:
            model = self.performance(profile)
            if model.kv_capacity_tokens() <= 0:
                return Sustained(throughput_rps=nothing, trouble="the weights do not fit its memory")
            targets = parse_slo(
                f"ttft_p{slo.percentile}={slo.ttft_seconds},tbt_p{slo.percentile}={slo.tbt_seconds}"
            )
            if role is Role.BOTH:
                rates = throughput_rps(model, buckets, slo=targets, engine=DEFAULT_ENGINE)
                return Sustained(throughput_rps=tuple(float(rate) for rate in rates))
            sizes = [
                _point(role, bucket.input_tokens or 1.0, bucket.output_tokens or 1.0) for bucket in buckets
            ]
            known = [(version, slo, size, role, pool_size) for size in sizes]
            for key in known:
                if key not in self._phases:
                    if len(self._phases) > MOST_PHASES:
                        self._phases.clear()
                    self._phases[key] = _phase_rps(model, targets, key[2], role=role, pool_size=pool_size)
            phases = tuple(self._phases[key] for key in known)
        except (InputError, OutsideRangeError) as error:
            return Sustained(throughput_rps=nothing, trouble=f"it cannot be modelled: {error}")
        trouble = ""
        if 0.0 in phases:
            size = sizes[phases.index(0.0)]
            trouble = f"as modelled, {_told(role, *size)} are not served within {_limits_of(role, slo)}"
        return Sustained(throughput_rps=phases, trouble=trouble)


def _phase_rps(
    model: PerformanceModel, slo: Slo, size: tuple[float, float], *, role: Role, pool_size: int
) -> float:
    """Rate of one phase for one size alone, as `throughput_rps` tells it of whole requests.

    Told of each size alone rates stand still while the mixture moves; added up linearly they are at most about what
    `pool_capacity` gives the mixture (docs/operator-split.md has the figures).
    """
    bucket = RequestBucket(rate_rps=1.0, input_tokens=size[0], output_tokens=size[1])
    return pool_capacity(model, [bucket], slo, DEFAULT_ENGINE, role=role, replicas=pool_size).rate_rps


def rows_missing(profile: GpuProfileSpec, role: Role) -> str:
    """Say that a profile tells nothing of a role; empty if it does."""
    if profile.modelled or any(row.role is role for row in profile.throughput):
        return ""
    others = " and ".join(sorted({row.role.value for row in profile.throughput})) or "none"
    return f"it has no rows of role {role.value} (of {others} only)"


def _from_rows(
    profile: GpuProfileSpec, slo: SloSpec, sizes: Sequence[tuple[float, float]], role: Role
) -> Sustained:
    """Read the table: rows of other roles, and rows outside what a role answers for of the SLO, do not count.

    Between the rows of a grid the time per request, 1 / maxRps, is interpolated bilinearly; elsewhere the cheapest row
    with at least as many input and output tokens stands in. Sizes beyond every such row cannot be served. To prompts
    alone outputs do not matter, so rows of role prefill are told apart by their input tokens only.
    """
    missing = rows_missing(profile, role)
    if missing:
        return Sustained(throughput_rps=(0.0,) * len(sizes), trouble=f"{missing}; {ADD_ROWS}")
    own = [row for row in profile.throughput if row.role is role]
    within = [row for row in own if _within(row, slo)]
    points = [_point(role, row.input_tokens, row.output_tokens) for row in within]
    table = [(point, row.max_rps) for point, row in zip(points, within, strict=True)]
    rates = tuple(_rate(table, *_point(role, *size)) for size in sizes)
    trouble = ""
    if not within:
        kind = "" if role is Role.BOTH else f" of role {role.value}"
        trouble = f"none of its {len(own)} rows{kind} is within {_limits_of(role, slo)}"
    elif 0.0 in rates:
        kind = "" if role is Role.BOTH else f" of role {role.value}"
        size = _told(role, *sizes[rates.index(0.0)])
        trouble = f"no row{kind} within the SLO covers {size}; add one, or use modelled: true"
    return Sustained(throughput_rps=rates, trouble=trouble)


def _within(row: ThroughputRow, slo: SloSpec) -> bool:
    """Whether a row keeps what its role answers for; a time that is missing is not kept."""
    ttft = row.ttft_seconds is not None and row.ttft_seconds <= slo.ttft_seconds
    tbt = row.tbt_seconds is not None and row.tbt_seconds <= slo.tbt_seconds
    return (ttft or row.role is Role.DECODE) and (tbt or row.role is Role.PREFILL)


def _limits_of(role: Role, slo: SloSpec) -> str:
    ttft, tbt = f"ttft {slo.ttft_seconds:g} s", f"tbt {slo.tbt_seconds:g} s"
    return {Role.BOTH: f"{ttft} and {tbt}", Role.PREFILL: ttft, Role.DECODE: tbt}[role]


def _told(role: Role, input_tokens: float, output_tokens: float) -> str:
    outputs = "" if role is Role.PREFILL else f" and {output_tokens:.0f} output"
    return f"{input_tokens:.0f} input{outputs} tokens"


def _point(role: Role, input_tokens: float, output_tokens: float) -> tuple[float, float]:
    return (input_tokens, 1.0 if role is Role.PREFILL else output_tokens)


def _rate(
    rows: Sequence[tuple[tuple[float, float], float]], input_tokens: float, output_tokens: float
) -> float:
    best: dict[tuple[float, float], float] = {}
    for size, max_rps in rows:
        best[size] = max(best.get(size, 0.0), max_rps)
    inputs = sorted({size[0] for size in best})
    outputs = sorted({size[1] for size in best})
    across, down = _between(inputs, input_tokens), _between(outputs, output_tokens)
    if across is not None and down is not None:
        corners = [
            (weight_i * weight_o, best.get((i, o)))
            for i, weight_i in across
            for o, weight_o in down
            if weight_i * weight_o > 0
        ]
        if all(rate is not None for _, rate in corners):
            return 1.0 / sum(weight / rate for weight, rate in corners if rate is not None)
    enough = [rate for size, rate in best.items() if size[0] >= input_tokens and size[1] >= output_tokens]
    return max(enough, default=0.0)


def _between(points: Sequence[float], value: float) -> tuple[tuple[float, float], ...] | None:
    """Neighbours of a value with their weights; a value below all counts as the smallest; None above all."""
    if not points or value > points[-1]:
        return None
    if value <= points[0]:
        return ((points[0], 1.0),)
    place = bisect_left(points, value)
    low, high = points[place - 1], points[place]
    share = (value - low) / (high - low)
    return ((low, 1.0 - share), (high, share))
