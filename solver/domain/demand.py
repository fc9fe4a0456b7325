"""From a trace summary to demand: a few representative request sizes and how many of each arrive per second.

It exists because the solver works on request-size buckets (Mélange's workload histogram), while a trace holds
millions of different sizes; the fewer buckets, the smaller the problem. It reads no trace and chooses no GPU.

Method. The cells of `solver.domain.trace_summary.SizeHistogram` (at most `LARGEST_CELL_COUNT`, coarsened if there
are more) are points (log2 prompt, log2 output). k of them are chosen as medoids by the BUILD step of partitioning
around medoids (Kaufman and Rousseeuw 1990: each new one is the cell that lowers the weighted squared distance most,
so no seed is needed), then moved by Lloyd's iteration until no cell changes its group. A cell weighs the mean of its
shares of the requests, the prompt tokens and the output tokens: where load is, buckets are fine.

Representative size. A group is represented by one (prompt, output) size at the rate of its requests:

- output: the mean output. Decode tokens are kept exactly.
- prompt: the larger of the mean prompt and the prompt that keeps the KV tokens read by decode iterations, the sum
  of output x (prompt + output / 2). A plain mean would understate that sum wherever long prompts meet long answers,
  because the mean of a product is not the product of means.

So decode tokens are exact, and prefill tokens and KV reads are never understated (beyond rounding); how much they
are overstated is told in the answer. Upper quantiles of a group were not taken: they overstate all loads by the width
of the group, and the request that the SLO's percentile is about lies in a bucket of its own size anyway.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from solver.domain.errors import InputError
from solver.domain.gpu_mix import RequestBucket
from solver.domain.trace import Floats
from solver.domain.trace_summary import SizeHistogram, TraceSummary

LARGEST_CELL_COUNT = 2048
_LARGEST_ROUND_COUNT = 100


@dataclass(frozen=True, slots=True)
class GivenRate:
    """A rate that comes from elsewhere, such as a forecast; the trace gives the sizes."""

    rate_rps: float


RateBasis = Literal["mean", "peak"] | float | GivenRate


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Traffic of one service as request-size buckets, sorted by prompt, then output size."""

    buckets: tuple[RequestBucket, ...]
    rate_rps: float
    """Sum of the buckets' rates."""
    prefill_error_ratio: float
    """Prefill tokens per request that the buckets stand for, relative to those recorded, minus 1; never below 0."""
    decode_error_ratio: float
    """The same for decode tokens: 0 but for rounding."""
    kv_error_ratio: float
    """The same for KV tokens read by decode iterations; never below 0."""


def chosen_rate_rps(summary: TraceSummary, rate: RateBasis, *, window_s: float) -> float:
    """Return the rate to plan for, in requests per second.

    ``rate`` is ``"mean"`` (of the whole trace), ``"peak"`` (largest window), a share such as 0.99: the rate not
    exceeded in that share of the windows of ``window_s`` seconds, which must be among those counted, or a given rate.

    Raises
    ------
    InputError
        If the share is not in [0, 1], or the mean is asked of a trace of no length.
    """
    if isinstance(rate, GivenRate):
        return rate.rate_rps
    if rate == "mean":
        if summary.mean_rps is None:
            raise InputError(
                "all requests arrive at one instant, so there is no mean rate", right="the peak rate"
            )
        return summary.mean_rps
    counted = summary.windows_of(window_s)
    if rate == "peak":
        return counted.peak_rps
    if not 0 <= rate <= 1:
        raise InputError(f"quantile {rate:g} of the rate", right="a share between 0 and 1")
    return counted.quantile_rps(rate)


def demand_of(
    summary: TraceSummary, *, largest_bucket_count: int = 16, rate: RateBasis = "mean", window_s: float = 60.0
) -> Demand:
    """Return the demand of a summarised trace as at most ``largest_bucket_count`` buckets at the chosen rate.

    The mix of sizes is that of the whole trace; only the rate is that of the peak or quantile window.
    """
    rate_rps = chosen_rate_rps(summary, rate, window_s=window_s)
    return representative_buckets(summary.sizes, largest_bucket_count=largest_bucket_count, rate_rps=rate_rps)


def representative_buckets(histogram: SizeHistogram, *, largest_bucket_count: int, rate_rps: float) -> Demand:
    """Reduce a histogram (not empty) to at most so many buckets whose rates sum to ``rate_rps``."""
    if largest_bucket_count < 1:
        raise InputError(f"{largest_bucket_count} buckets", right="at least 1")
    cells = histogram.coarsened(max(LARGEST_CELL_COUNT, largest_bucket_count))
    groups = _groups(cells, largest_bucket_count)
    counts, prompt, output, kv = (
        np.bincount(groups, weights=column) for column in (cells.counts, cells.prompt, cells.output, cells.kv)
    )
    mean_output = output / counts
    bucket_prompt = np.maximum(prompt / counts, kv / output - mean_output / 2)
    total = float(counts.sum())
    order = np.lexsort((mean_output, bucket_prompt))
    return Demand(
        buckets=tuple(
            RequestBucket(
                rate_rps=rate_rps * (float(counts[i]) / total),
                input_tokens=float(bucket_prompt[i]),
                output_tokens=float(mean_output[i]),
            )
            for i in order
        ),
        rate_rps=rate_rps,
        prefill_error_ratio=_error_ratio(counts * bucket_prompt, prompt),
        decode_error_ratio=_error_ratio(counts * mean_output, output),
        kv_error_ratio=_error_ratio(output * (bucket_prompt + mean_output / 2), kv),
    )


def _error_ratio(represented: NDArray[Any], recorded: NDArray[Any]) -> float:
    return math.fsum(represented) / math.fsum(recorded) - 1.0


def _groups(cells: SizeHistogram, largest_bucket_count: int) -> NDArray[np.int64]:
    """Return the group of each cell, numbered from 0 without gaps."""
    number = len(cells.keys)
    if number <= largest_bucket_count:
        return np.arange(number)
    points = np.log2(np.stack((cells.prompt / cells.counts, cells.output / cells.counts), axis=1))
    weights = (
        cells.counts / cells.counts.sum()
        + cells.prompt / cells.prompt.sum()
        + cells.output / cells.output.sum()
    ) / 3
    centres = points[_medoids(points, weights, largest_bucket_count)]
    groups = np.zeros(number, dtype=np.int64)
    for turn in range(_LARGEST_ROUND_COUNT):
        nearest = _squared_distances(points, centres).argmin(axis=1)
        if turn and np.array_equal(nearest, groups):
            break
        groups = nearest
        mass = np.bincount(groups, weights=weights, minlength=len(centres))
        for axis in (0, 1):
            moved = np.bincount(groups, weights=weights * points[:, axis], minlength=len(centres))
            # A group that lost its last cell stays where it was; it may win one again.
            centres[:, axis] = np.where(mass > 0, moved / np.where(mass > 0, mass, 1.0), centres[:, axis])
    compact: NDArray[np.int64] = np.unique(groups, return_inverse=True)[1]
    return compact


def _medoids(points: Floats, weights: Floats, wanted: int) -> list[int]:
    """Choose cells one after the other, each lowering the weighted squared distance of all most (BUILD)."""
    between = _squared_distances(points, points)
    nearest = np.full(len(points), np.inf)
    chosen: list[int] = []
    for _ in range(wanted):
        # Not a matrix product: its rounding may change with the number of threads, and with it a tie.
        cost = (weights[:, None] * np.minimum(nearest[:, None], between)).sum(axis=0)
        chosen.append(int(cost.argmin()))
        nearest = np.minimum(nearest, between[:, chosen[-1]])
    return chosen


def _squared_distances(points: Floats, centres: Floats) -> Floats:
    across = points[:, None, 0] - centres[None, :, 0]
    up = points[:, None, 1] - centres[None, :, 1]
    distances: Floats = across * across + up * up
    return distances
