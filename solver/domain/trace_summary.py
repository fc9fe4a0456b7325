"""What a trace says about load, gathered chunk by chunk in bounded memory.

It exists so that a trace of any size can be described and turned into demand: summaries of neighbouring parts are
joined (`TraceSummary.then`), and joining is associative, so where chunks begin makes no difference beyond the last
bits of floating-point sums. It is not a simulation and keeps no request.

Exact: counts, sums, means, largest and smallest values, correlation, the coefficient of variation of inter-arrival
times, window counts, and token quantiles below 131,072 tokens. Binned: token quantiles above that (relative error
below 2^-16) and the joint histogram of sizes, whose cells keep exact sums (see `SizeHistogram`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solver.domain.errors import InputError
from solver.domain.trace import Floats, Ints, Requests, Windows, windows

_EXACT_BITS = 17
BINS_PER_OCTAVE = 8
_KEY_STRIDE = 1024  # more than the bins of one axis: 63 octaves x 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenCounts:
    """How often each token count occurs: ``values`` rising, ``counts`` beside them.

    Values of more than 17 bits are cut to their first 17, which bounds the number of entries (about 1.1 million).
    """

    values: Ints
    counts: Ints
    total: int
    """Exact sum of all tokens."""
    smallest: int
    largest: int

    @property
    def mean(self) -> float:
        """Mean tokens per request, exact."""
        return self.total / int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """Return numpy's linear quantile of the recorded values."""
        position = share * (int(self.counts.sum()) - 1)
        low = math.floor(position)
        ends = np.cumsum(self.counts)
        at = np.searchsorted(ends, [low, min(low + 1, int(ends[-1]) - 1)], side="right")
        below, above = self.values[at].tolist()
        return float(below + (above - below) * (position - low))

    def then(self, other: "TokenCounts") -> "TokenCounts":
        """Join with the counts of another part."""
        values, counts = _summed_by_key(
            np.concatenate((self.values, other.values)), np.concatenate((self.counts, other.counts))
        )
        return TokenCounts(
            values=values,
            counts=counts,
            total=self.total + other.total,
            smallest=min(self.smallest, other.smallest),
            largest=max(self.largest, other.largest),
        )


def token_counts(tokens: Ints) -> TokenCounts:
    """Count the values of one column (not empty)."""
    cut = tokens
    if tokens.max() >> _EXACT_BITS:
        surplus_bits = np.maximum(np.frexp(tokens.astype(np.float64))[1] - _EXACT_BITS, 0).astype(np.int64)
        cut = (tokens >> surplus_bits) << surplus_bits
    values, counts = np.unique(cut, return_counts=True)
    return TokenCounts(
        values=values,
        counts=counts,
        total=int(tokens.sum()),
        smallest=int(tokens.min()),
        largest=int(tokens.max()),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SizeHistogram:
    """Requests by (prompt, output) size in cells of 1/8 octave by 1/8 octave; only occupied cells are kept.

    Each cell keeps the number of its requests and exact sums, so totals and cell means carry no binning error:
    ``kv`` is the sum of output x (prompt + output / 2), the KV tokens that the decode iterations of a request
    read in total.
    """

    keys: Ints
    counts: Ints
    prompt: Floats
    output: Floats
    kv: Floats

    def then(self, other: "SizeHistogram") -> "SizeHistogram":
        """Join with the histogram of another part."""

        def joined(column: str) -> NDArray[Any]:
            return np.concatenate((getattr(self, column), getattr(other, column)))

        keys, counts, prompt, output, kv = _summed_by_key(
            joined("keys"), joined("counts"), joined("prompt"), joined("output"), joined("kv")
        )
        return SizeHistogram(keys=keys, counts=counts, prompt=prompt, output=output, kv=kv)

    def coarsened(self, cells: int) -> "SizeHistogram":
        """Return a histogram of at most ``cells`` cells, halving the resolution of both axes until it fits."""
        result = self
        prompt_bin, output_bin = np.divmod(self.keys, _KEY_STRIDE)
        while len(result.keys) > cells:
            prompt_bin, output_bin = prompt_bin >> 1, output_bin >> 1
            keys, counts, prompt, output, kv = _summed_by_key(
                prompt_bin * _KEY_STRIDE + output_bin, self.counts, self.prompt, self.output, self.kv
            )
            result = SizeHistogram(keys=keys, counts=counts, prompt=prompt, output=output, kv=kv)
        return result


def size_histogram(prompt_tokens: Ints, output_tokens: Ints) -> SizeHistogram:
    """Histogram the sizes of requests (token counts of at least 1)."""
    prompt, output = prompt_tokens.astype(np.float64), output_tokens.astype(np.float64)
    keys, counts, prompts, outputs, kv = _summed_by_key(
        _bin(prompt) * _KEY_STRIDE + _bin(output),
        np.ones(len(prompt), dtype=np.int64),
        prompt,
        output,
        output * (prompt + output / 2),
    )
    return SizeHistogram(keys=keys, counts=counts, prompt=prompts, output=outputs, kv=kv)


def _bin(tokens: Floats) -> Ints:
    result: Ints = np.floor(np.log2(tokens) * BINS_PER_OCTAVE).astype(np.int64)
    return result


def _summed_by_key(keys: Ints, *columns: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return the sorted distinct keys and the sums of the columns over equal keys."""
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    first = np.flatnonzero(np.concatenate(([True], np.diff(sorted_keys) != 0)))
    return (sorted_keys[first], *(np.add.reduceat(column[order], first) for column in columns))


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Means and centred sums of squares of pairs (x, y), joined after Chan, Golub and LeVeque (1979)."""

    number: int
    mean_x: float
    mean_y: float
    xx: float
    yy: float
    xy: float

    def then(self, other: "Moments") -> "Moments":
        """Join with the moments of another part."""
        number = self.number + other.number
        if number == 0:
            return self
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        share, weight = other.number / number, self.number * other.number / number
        return Moments(
            number=number,
            mean_x=self.mean_x + dx * share,
            mean_y=self.mean_y + dy * share,
            xx=self.xx + other.xx + dx * dx * weight,
            yy=self.yy + other.yy + dy * dy * weight,
            xy=self.xy + other.xy + dx * dy * weight,
        )

    @property
    def correlation(self) -> float | None:
        """Pearson's correlation; None where one of the two never changes."""
        spread = math.sqrt(self.xx) * math.sqrt(self.yy)
        return max(-1.0, min(1.0, self.xy / spread)) if spread > 0 else None

    @property
    def cv_x(self) -> float | None:
        """Coefficient of variation of x (standard deviation over mean); None where the mean is 0."""
        return math.sqrt(self.xx / self.number) / self.mean_x if self.number and self.mean_x > 0 else None


def moments(x: Floats, y: Floats) -> Moments:
    """Moments of pairs; empty arrays have number 0."""
    if not len(x):
        return Moments(number=0, mean_x=0.0, mean_y=0.0, xx=0.0, yy=0.0, xy=0.0)
    mean_x, mean_y = float(x.mean()), float(y.mean())
    dx, dy = x - mean_x, y - mean_y
    return Moments(
        number=len(x),
        mean_x=mean_x,
        mean_y=mean_y,
        # Not dx @ dx: the rounding of a product in the linear algebra library depends on its threads.
        xx=float((dx * dx).sum()),
        yy=float((dy * dy).sum()),
        xy=float((dx * dy).sum()),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TraceSummary:
    """What `summarise` gathers; times in seconds from the start of the trace."""

    requests: int
    first_s: float
    last_s: float
    prompt: TokenCounts
    output: TokenCounts
    sizes: SizeHistogram
    size_moments: Moments
    """x: prompt tokens, y: output tokens."""
    gap_moments: Moments
    """x: seconds between one arrival and the next."""
    equal_stamps: int
    """Requests that arrived at the very instant of the one before."""
    windows: tuple[Windows, ...]

    @property
    def duration_s(self) -> float:
        """Seconds from the first to the last arrival."""
        return self.last_s - self.first_s

    @property
    def mean_rps(self) -> float | None:
        """Requests per second of the duration; None where the trace has no length."""
        return self.requests / self.duration_s if self.duration_s > 0 else None

    @property
    def correlation(self) -> float | None:
        """Pearson's correlation of prompt and output tokens."""
        return self.size_moments.correlation

    @property
    def burstiness_cv(self) -> float | None:
        """Coefficient of variation of inter-arrival times: 1 for a Poisson process, more for bursts."""
        return self.gap_moments.cv_x

    def windows_of(self, window_s: float) -> Windows:
        """Return the counts of one window length (KeyError if it was not asked for)."""
        for counted in self.windows:
            if counted.window_s == window_s:
                return counted
        raise KeyError(window_s)

    def then(self, later: "TraceSummary") -> "TraceSummary":
        """Join with the summary of the part that follows (its windows counted from this one's start)."""
        step = np.array([later.first_s - self.last_s])
        return replace(
            self,
            requests=self.requests + later.requests,
            last_s=later.last_s,
            prompt=self.prompt.then(later.prompt),
            output=self.output.then(later.output),
            sizes=self.sizes.then(later.sizes),
            size_moments=self.size_moments.then(later.size_moments),
            gap_moments=self.gap_moments.then(moments(step, np.zeros(1))).then(later.gap_moments),
            equal_stamps=self.equal_stamps + later.equal_stamps + int(step[0] == 0),
            windows=tuple(mine.then(its) for mine, its in zip(self.windows, later.windows, strict=True)),
        )


def summarise_part(
    requests: Requests, *, windows_s: Sequence[float], start_s: float | None = None
) -> TraceSummary:
    """Summarise one chunk that is not empty; ``start_s`` is where the windows begin (default: its first arrival)."""
    gaps = np.diff(requests.arrival_s)
    return TraceSummary(
        requests=len(requests),
        first_s=float(requests.arrival_s[0]),
        last_s=float(requests.arrival_s[-1]),
        prompt=token_counts(requests.prompt_tokens),
        output=token_counts(requests.output_tokens),
        sizes=size_histogram(requests.prompt_tokens, requests.output_tokens),
        size_moments=moments(
            requests.prompt_tokens.astype(np.float64), requests.output_tokens.astype(np.float64)
        ),
        gap_moments=moments(gaps, np.zeros(len(gaps))),
        equal_stamps=int((gaps == 0).sum()),
        windows=tuple(
            windows(requests.arrival_s, window_s=window_s, start_s=start_s) for window_s in windows_s
        ),
    )


def summarise(chunks: Iterable[Requests], *, windows_s: Sequence[float] = (60.0,)) -> TraceSummary:
    """Summarise a trace given in chunks; memory does not grow with its number of requests.

    Raises
    ------
    InputError
        If there is no request at all, or too many windows.
    """
    result: TraceSummary | None = None
    for chunk in chunks:
        if not len(chunk):
            continue
        if result is None:
            result = summarise_part(chunk, windows_s=windows_s)
        else:
            result = result.then(summarise_part(chunk, windows_s=windows_s, start_s=result.first_s))
    if result is None:
        raise InputError("no request to summarise", right="a trace with at least one request")
    return result
