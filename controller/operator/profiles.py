"""What a replica of a variant sustains at given request sizes: from the rows of its GpuProfile, or from the model.

It exists so that profiles, which are tables or a promise to use the performance model, become one number per request
size. It reads no cluster.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.resources.gpu_profile import GpuProfileSpec, ThroughputRow
from controller.resources.model_service import SloSpec
from controller.trace_planning import Catalogues, read_catalogues
from solver.domain.errors import InputError
from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import parse_slo
from solver.performance.capacity import DEFAULT_ENGINE, throughput_rps
from solver.performance.protocol import OutsideRangeError, ReplicaKind
from telemetry.catalogue.read import find_gpu, find_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Sustained:
    """Requests per second of one replica by bucket (0: not within the SLO), and what is worth saying about it."""

    throughput_rps: tuple[float, ...]
    trouble: str = ""


MOST_LABELLED = 1000


@dataclass(slots=True)
class ProfileBook:
    """Answers what profiles sustain, and remembers."""

    _catalogues: Catalogues | None = None
    _labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _known: dict[tuple[str, SloSpec, tuple[tuple[float, float], ...]], Sustained] = field(
        default_factory=dict
    )

    def sustained(
        self, profile: GpuProfileSpec, version: str, slo: SloSpec, buckets: Sequence[RequestBucket]
    ) -> Sustained:
        """Return what one replica sustains; ``version`` names this state of the profile."""
        sizes = tuple((bucket.input_tokens or 0.0, bucket.output_tokens or 0.0) for bucket in buckets)
        key = (version, slo, sizes)
        if key not in self._known:
            if len(self._known) > 20_000:
                self._known.clear()
            self._known[key] = (
                self._modelled(profile, slo, buckets) if profile.modelled else _from_rows(profile, slo, sizes)
            )
        return self._known[key]

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

    def _modelled(self, profile: GpuProfileSpec, slo: SloSpec, buckets: Sequence[RequestBucket]) -> Sustained:
        nothing = (0.0,) * len(buckets)
        try:
            catalogues = self._read()
            kind = ReplicaKind(
                gpu_type=find_gpu(catalogues.gpus, profile.gpu_type).name,
                gpus_per_replica=profile.gpus_per_replica,
                model=find_model(catalogues.models, profile.model).name,
                precision=str(profile.precision),
            )
            model = catalogues.book.performance(kind)
            if model.kv_capacity_tokens() <= 0:
                return Sustained(throughput_rps=nothing, trouble="the weights do not fit its memory")
            rates = throughput_rps(
                model,
                buckets,
                slo=parse_slo(
                    f"ttft_p{slo.percentile}={slo.ttft_seconds},tbt_p{slo.percentile}={slo.tbt_seconds}"
                ),
                engine=DEFAULT_ENGINE,
            )
        except (InputError, OutsideRangeError) as error:
            return Sustained(throughput_rps=nothing, trouble=f"it cannot be modelled: {error}")
        return Sustained(throughput_rps=tuple(float(rate) for rate in rates))


def _from_rows(profile: GpuProfileSpec, slo: SloSpec, sizes: Sequence[tuple[float, float]]) -> Sustained:
    """Read the table: rows outside the SLO do not count.

    Between the rows of a grid the time per request, 1 / maxRps, is interpolated bilinearly; elsewhere the cheapest row
    with at least as many input and output tokens stands in. Sizes beyond every such row cannot be served.
    """
    within = [
        row
        for row in profile.throughput
        if row.ttft_seconds <= slo.ttft_seconds and row.tbt_seconds <= slo.tbt_seconds
    ]
    rates = tuple(_rate(within, *size) for size in sizes)
    trouble = ""
    if not within:
        trouble = (
            f"none of its {len(profile.throughput)} rows is within ttft {slo.ttft_seconds:g} s"
            f" and tbt {slo.tbt_seconds:g} s"
        )
    elif 0.0 in rates:
        missing = sizes[rates.index(0.0)]
        trouble = (
            f"no row within the SLO covers {missing[0]:.0f} input and {missing[1]:.0f} output tokens;"
            " add one, or use modelled: true"
        )
    return Sustained(throughput_rps=rates, trouble=trouble)


def _rate(rows: Sequence[ThroughputRow], input_tokens: float, output_tokens: float) -> float:
    best: dict[tuple[int, int], float] = {}
    for row in rows:
        size = (row.input_tokens, row.output_tokens)
        best[size] = max(best.get(size, 0.0), row.max_rps)
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


def _between(points: Sequence[int], value: float) -> tuple[tuple[int, float], ...] | None:
    """Neighbours of a value with their weights; a value below all counts as the smallest; None above all."""
    if not points or value > points[-1]:
        return None
    if value <= points[0]:
        return ((points[0], 1.0),)
    place = bisect_left(points, value)
    low, high = points[place - 1], points[place]
    share = (value - low) / (high - low)
    return ((low, 1.0 - share), (high, share))
