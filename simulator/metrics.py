"""Figures of a run: latencies, SLO, utilisation, power, energy, cost.

It exists so that every engine is judged by the same definitions (`definitions` says them in words, for outputs). It
prints nothing, and whether a fleet kept up is decided in `simulator.saturation`.

Which requests count: those that arrive at ``warm_up_s`` or later. Latencies are over the completed ones. A target of
the SLO is judged over the completed and the rejected ones, a rejected request counting as infinitely late; and no SLO
is met while a request that counts is incomplete, because nobody knows how late it would have been.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.record import REJECT_WORDS, RejectReason, RequestStatus, RunRecord, Saturation
from simulator.saturation import saturation_of
from solver.domain.slo import Slo, SloMetric, SloTarget
from solver.domain.trace import Floats, Requests

Flags = NDArray[np.bool_]
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """A quantity over the requests that have it; percentiles are numpy's linear ones."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alone:
    """The latencies of each request, were it alone on the reference instance. [R]; NaN: it has none."""

    ttft_s: Floats
    tbt_s: Floats
    e2e_s: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCounts:
    """What became of the requests, those of the warm-up included."""

    offered: int
    completed: int
    rejected: int
    incomplete: int
    counted: int
    """Requests after the warm-up: those the latencies and the SLO are about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SloCheck:
    """One target, judged."""

    target: SloTarget
    value: float | None
    """Seconds, or times the request alone; None: no request has the quantity, or rejected ones make it infinite."""
    met: bool
    margin_ratio: float
    """Value over limit: above 1 it is missed; infinite where ``value`` is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SloFigures:
    """The SLO, judged."""

    met: bool | None
    """None: the scenario asks for nothing."""
    attainment_ratio: float | None
    """Share of the completed requests within the limits of all targets, percentiles left aside."""
    checks: tuple[SloCheck, ...]

    @property
    def limiting(self) -> SloCheck | None:
        """The target furthest over its limit, or nearest to it."""
        return max(self.checks, key=lambda check: check.margin_ratio, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFigures:
    """One pool over the whole run."""

    name: str
    utilisation_ratio: float | None
    """Share of the up time in which an iteration ran; None: never up."""
    energy_j: float | None
    """None: watts are not known."""
    idle_j: float | None
    cost_usd: float | None
    """Up time times price; None: no price."""
    prompt_tokens: float
    output_tokens: float
    mean_running: float
    """Requests in batches, per instance that is up."""
    mean_waiting: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerFigures:
    """Watts of all instances together."""

    mean_w: float
    p99_w: float
    """Of the means over the bins of the series, as ``max_w``."""
    max_w: float
    bin_s: float
    budget_w: float | None
    over_budget_s: float | None
    """Length of the bins above the budget; None: no budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFigures:
    """All figures of a run."""

    requests: RequestCounts
    rejected_because: Mapping[str, int]
    """Reason in words: requests."""
    ttft_s: Distribution | None
    """None: no request that counts has it."""
    tbt_s: Distribution | None
    e2e_s: Distribution | None
    queue_s: Distribution | None
    slo: SloFigures
    requests_per_s: float | None
    """Completions per second while requests arrive: from the end of the warm-up to the last arrival."""
    output_tokens_per_s: float | None
    pools: tuple[PoolFigures, ...]
    power: PowerFigures | None
    """None, as all joules: the watts of a pool are not known."""
    energy_j: float | None
    energy_j_per_output_token: float | None
    cost_usd: float | None
    """None: a pool without a price."""
    cost_usd_per_million_tokens: float | None
    """Per million output tokens of completed requests."""
    cost_usd_per_million_tokens_in_and_out: float | None
    """The same, prompt tokens counting too."""
    transfers: int
    transfer_bytes: float
    cached_tokens: float
    preemptions: int
    end_time_s: float
    horizon_s: float
    saturation: Saturation
    stopped_early: bool
    warm_up_s: float


def definitions(*, tbt_per_output_token: bool = False) -> dict[str, str]:
    """Say in words what the figures mean."""
    gaps = "output tokens" if tbt_per_output_token else "output tokens - 1"
    return {
        "ttft_s": "end of the iteration that completes the prompt, minus arrival",
        "tbt_s": f"(e2e - ttft) / ({gaps}) of one request; requests of one output token have none",
        "e2e_s": "last token, minus arrival",
        "percentiles": "numpy linear, over completed requests that arrived after the warm-up",
        "slo": "a rejected request counts as infinitely late; not met while a counted request is incomplete",
        "attainment_ratio": "share of completed requests inside the limits of all targets, percentiles left aside",
        "throughput": "completions per second from warm-up to last arrival; of the whole run if all arrive at once",
        "utilisation": "share of a pool's up time in which an iteration ran",
        "power_w": "of all GPUs; p99 and max over means of bin_s seconds",
        "cost_usd_per_million_tokens": "cost of the whole run per million output tokens of completed requests",
    }


def tbt_of(record: RunRecord, requests: Requests, *, per_output_token: bool = False) -> Floats:
    """Return the mean gap between tokens of each request; NaN without a second token, or without an end."""
    gaps = requests.output_tokens - (0 if per_output_token else 1)
    has = requests.output_tokens > 1
    tbt_s: Floats = np.full(len(requests), np.nan)
    np.divide(record.e2e_s - record.ttft_s, gaps, out=tbt_s, where=has)
    return tbt_s


def inside_limits(
    record: RunRecord,
    requests: Requests,
    slo: Slo,
    *,
    alone: Alone | None = None,
    tbt_per_output_token: bool = False,
) -> Flags:
    """Mask of the completed requests that are inside the limits of all targets, percentiles left aside."""
    values = {
        SloMetric.TTFT: record.ttft_s,
        SloMetric.TBT: tbt_of(record, requests, per_output_token=tbt_per_output_token),
        SloMetric.E2E: record.e2e_s,
    }
    inside: Flags = record.completed()
    for target in slo.targets:
        value, limit = _against(target, values[target.metric], alone)
        inside &= ~(value > limit)  # a request without the quantity (NaN) is inside
    return inside


def _against(target: SloTarget, value: Floats, alone: Alone | None) -> tuple[Floats, float]:
    """Return what a target compares with its limit, and the limit."""
    if target.limit_s is not None:
        return value, target.limit_s
    return value / getattr(alone, f"{target.metric}_s"), target.limit_ratio or math.nan


def figures_of(
    record: RunRecord,
    requests: Requests,
    *,
    pools: Sequence[str],
    price_usd_per_h: Sequence[float | None],
    slo: Slo | None = None,
    alone: Alone | None = None,
    warm_up_s: float = 0.0,
    tbt_per_output_token: bool = False,
    watts_known: bool = True,
    budget_w: float | None = None,
) -> ClusterFigures:
    """Judge a run.

    Parameters
    ----------
    pools, price_usd_per_h
        Name, and price of one instance, of every pool in the record's order; None: no price known.
    alone
        What relative targets compare with; needed if there are any.
    warm_up_s
        In simulated seconds.
    tbt_per_output_token
        Divide by output tokens instead of the gaps between them, as the phase-splitting peer does.
    watts_known
        False: the record's joules mean nothing, and no figure of power or energy is given.
    """
    slo = Slo() if slo is None else slo
    counted: Flags = requests.arrival_s >= warm_up_s
    done: Flags = record.completed()
    used = counted & done
    values = {
        SloMetric.TTFT: record.ttft_s,
        SloMetric.TBT: tbt_of(record, requests, per_output_token=tbt_per_output_token),
        SloMetric.E2E: record.e2e_s,
    }
    rejected: Flags = record.status == RequestStatus.REJECTED
    since_s, until_s = warm_up_s, float(requests.arrival_s[-1])
    if until_s <= since_s:
        until_s = record.end_time_s
    ended_s = requests.arrival_s + record.e2e_s
    timely = done & (ended_s >= since_s) & (ended_s <= until_s)
    output_tokens = int(requests.output_tokens[done].sum())
    all_tokens = output_tokens + int(requests.prompt_tokens[done].sum())
    energy_j = float(record.energy_j_of_instance.sum())
    pool_figures = tuple(
        _pool(record, p, name, price, watts_known=watts_known)
        for p, (name, price) in enumerate(zip(pools, price_usd_per_h, strict=True))
    )
    cost_usd = _sum_of_known([pool.cost_usd for pool in pool_figures])
    return ClusterFigures(
        requests=RequestCounts(
            offered=len(record),
            completed=int(done.sum()),
            rejected=int(rejected.sum()),
            incomplete=int((~done & ~rejected).sum()),
            counted=int(counted.sum()),
        ),
        rejected_because={
            words: number
            for reason, words in REJECT_WORDS.items()
            if (number := int((rejected & (record.reject_reason == RejectReason(reason))).sum()))
        },
        ttft_s=distribution(values[SloMetric.TTFT][used]),
        tbt_s=distribution(values[SloMetric.TBT][used]),
        e2e_s=distribution(values[SloMetric.E2E][used]),
        queue_s=distribution(record.queue_s[used]),
        slo=_judged(slo, values, alone, requests, used=used, rejected=counted & rejected, counted=counted),
        requests_per_s=_ratio(float(timely.sum()), until_s - since_s),
        output_tokens_per_s=_ratio(float(requests.output_tokens[timely].sum()), until_s - since_s),
        pools=pool_figures,
        power=_power(record, energy_j, budget_w) if watts_known else None,
        energy_j=energy_j if watts_known else None,
        energy_j_per_output_token=_ratio(energy_j, output_tokens) if watts_known else None,
        cost_usd=cost_usd,
        cost_usd_per_million_tokens=None if cost_usd is None else _ratio(cost_usd * 1e6, output_tokens),
        cost_usd_per_million_tokens_in_and_out=None
        if cost_usd is None
        else _ratio(cost_usd * 1e6, all_tokens),
        transfers=record.transfers,
        transfer_bytes=record.transfer_bytes,
        cached_tokens=record.cached_tokens,
        preemptions=int(record.preemptions.sum()),
        end_time_s=record.end_time_s,
        horizon_s=record.horizon_s,
        saturation=saturation_of(record, requests),
        stopped_early=record.stopped_early,
        warm_up_s=warm_up_s,
    )


def distribution(values: Floats) -> Distribution | None:
    """Summarise the values that are numbers; None if there is none."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    p50, p90, p95, p99 = np.percentile(known, [50.0, 90.0, 95.0, 99.0]).tolist()
    return Distribution(mean=float(known.mean()), p50=p50, p90=p90, p95=p95, p99=p99, max=float(known.max()))


def percentile_with_missing(values: Floats, percentile: float, missing: int) -> float:
    """Return numpy's linear percentile of values and ``missing`` infinite ones; NaN of nothing."""
    total = len(values) + missing
    if not total:
        return math.nan
    if not missing:
        return float(np.percentile(values, percentile))
    rank = percentile / 100.0 * (total - 1)
    low = math.floor(rank)
    if low >= len(values) or (rank > low and low + 1 >= len(values)):
        return math.inf
    ordered = np.sort(values)
    if rank == low:
        return float(ordered[low])
    return float(ordered[low] + (ordered[low + 1] - ordered[low]) * (rank - low))


def _judged(
    slo: Slo,
    values: Mapping[SloMetric, Floats],
    alone: Alone | None,
    requests: Requests,
    *,
    used: Flags,
    rejected: Flags,
    counted: Flags,
) -> SloFigures:
    if not slo.targets:
        return SloFigures(met=None, attainment_ratio=None, checks=())
    if slo.relative and alone is None:
        raise ValueError("relative targets need the latencies of each request alone")
    checks: list[SloCheck] = []
    inside = used.copy()
    for target in slo.targets:
        value, limit = _against(target, values[target.metric], alone)
        inside &= ~(value > limit)  # a request without the quantity (NaN) is inside
        lost = rejected & (requests.output_tokens > 1) if target.metric is SloMetric.TBT else rejected
        known = value[used]
        reached = percentile_with_missing(known[np.isfinite(known)], target.percentile, int(lost.sum()))
        # A target that speaks of no request is met by all of them.
        margin = 0.0 if math.isnan(reached) else reached / limit
        checks.append(
            SloCheck(
                target=target,
                value=reached if math.isfinite(reached) else None,
                met=margin <= 1.0,
                margin_ratio=margin,
            )
        )
    incomplete = bool(np.any(counted & ~used & ~rejected))
    completed = int(used.sum())
    return SloFigures(
        met=all(check.met for check in checks) and not incomplete,
        attainment_ratio=float(inside.sum()) / completed if completed else None,
        checks=tuple(checks),
    )


def _pool(
    record: RunRecord, p: int, name: str, price_usd_per_h: float | None, *, watts_known: bool
) -> PoolFigures:
    mine = record.pool_of_instance == p
    up_s, busy_s = float(record.up_s[mine].sum()), float(record.busy_s[mine].sum())
    series = record.series
    up = float(series.up[p].sum())
    return PoolFigures(
        name=name,
        utilisation_ratio=_ratio(busy_s, up_s),
        energy_j=float(record.energy_j_of_instance[mine].sum()) if watts_known else None,
        idle_j=float(record.idle_j[mine].sum()) if watts_known else None,
        cost_usd=None if price_usd_per_h is None else price_usd_per_h * up_s / 3600.0,
        prompt_tokens=float(record.prompt_tokens_done[mine].sum()),
        output_tokens=float(record.output_tokens_done[mine].sum()),
        mean_running=float(series.running[p].sum()) / up if up else 0.0,
        mean_waiting=float(series.waiting[p].sum()) / up if up else 0.0,
    )


def _power(record: RunRecord, energy_j: float, budget_w: float | None) -> PowerFigures:
    series = record.series
    bins_w = series.power_w.sum(axis=0)
    # The run ends inside the last bin, whose mean is over the whole bin: too low to be a peak, and left out.
    whole = bins_w[:-1] if len(bins_w) > 1 else bins_w
    mean_w = energy_j / record.horizon_s if record.horizon_s > 0.0 else 0.0
    return PowerFigures(
        mean_w=mean_w,
        p99_w=float(np.percentile(whole, 99.0)),
        max_w=float(whole.max()),
        bin_s=series.bin_s,
        budget_w=budget_w,
        over_budget_s=None
        if budget_w is None
        else float((whole > budget_w * (1.0 + _ROUNDING)).sum()) * series.bin_s,
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _sum_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
