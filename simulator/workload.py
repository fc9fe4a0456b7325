"""Generates request traces: seeded arrivals with a chosen burstiness and daily swing, sizes resampled or fitted.

It exists so that a plan or a simulation can be tried on traffic that nobody recorded, and so that the project ships a
trace of its own. It writes no file. The same specification and seed give the same requests, in chunks, in
bounded memory.

Arrivals are a renewal process in operational time, stretched to the wanted rate: unit-mean gaps (exponential,
Gamma or Weibull with a given coefficient of variation) are summed to L, and the arrival is the time t at which the
integral of the rate reaches L. So a daily swing, or the course of recorded rates, changes the rate and leaves the
burstiness as it is.

Sizes are resampled from recorded pairs (jointly: drawing prompt and output apart would lose their correlation), or
drawn from two quantile tables joined by the Farlie-Gumbel-Morgenstern copula C(u,v) = uv (1 + theta (1-u)(1-v)). It
covers weak correlation, which is what conversation and code traffic have, and needs nothing but uniform numbers, so
the bytes do not depend on a library's special functions.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Protocol

import numpy as np

from solver.domain.errors import InputError
from solver.domain.rate_windows import RateWindows
from solver.domain.trace import LARGEST_TIME_S, Floats, Ints, Requests

_CHUNK = 1 << 16
_GRID = 1 << 14
_DAY_S = 86400.0
_SMALLEST_CV, _LARGEST_CV = 0.05, 100.0


class Arrivals(StrEnum):
    """Distribution of the gaps between arrivals."""

    POISSON = "poisson"
    GAMMA = "gamma"
    WEIBULL = "weibull"


class Sizes(Protocol):
    """Something that draws (prompt, output) token counts."""

    def draw(self, randomness: np.random.Generator, number: int) -> tuple[Ints, Ints]:
        """Draw so many pairs of at least 1 token each."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResampledSizes:
    """Pairs drawn with equal chance from recorded ones, each pair kept whole."""

    prompt_tokens: Ints
    output_tokens: Ints

    def draw(self, randomness: np.random.Generator, number: int) -> tuple[Ints, Ints]:
        """Draw so many pairs."""
        index = (randomness.random(number) * len(self.prompt_tokens)).astype(np.int64)
        return self.prompt_tokens[index], self.output_tokens[index]


def resampled_sizes(
    chunks: Iterable[Requests], *, seed: int, largest_count: int = 1_000_000
) -> ResampledSizes:
    """Keep the sizes of a trace for resampling: all of them, or so many chosen at random with equal chance.

    Each request gets a random key and the smallest keys stay, so memory is bounded and chunks make no difference.
    """
    randomness = np.random.default_rng(seed)
    kept = np.empty((0, 3))
    for chunk in chunks:
        keys = randomness.random(len(chunk))
        kept = np.concatenate((kept, np.stack((keys, chunk.prompt_tokens, chunk.output_tokens), axis=1)))
        if len(kept) > largest_count:
            smallest = np.argpartition(kept[:, 0], largest_count - 1)[:largest_count]
            kept = kept[np.sort(smallest)]
    if not len(kept):
        raise InputError("no request to resample", right="a trace with at least one request")
    return ResampledSizes(
        prompt_tokens=kept[:, 1].astype(np.int64), output_tokens=kept[:, 2].astype(np.int64)
    )


@dataclass(frozen=True, kw_only=True)
class QuantileTable:
    """A distribution of token counts given by its mean and by some quantiles, the smallest and largest among them.

    Between two knots (u, q) and (u', q') the quantile function is q (q'/q)^(s^bend) with s running from 0 to 1: a
    straight line in log tokens, bent for all segments alike until the mean is right.
    """

    mean_tokens: float
    knots: tuple[tuple[float, float], ...]
    """(share, tokens), both rising; shares from 0 to 1."""

    @cached_property
    def bend(self) -> float:
        """Exponent that gives the mean, found by bisection.

        Raises
        ------
        InputError
            If no bend gives it: the mean contradicts the quantiles.
        """
        low, high = 0.02, 50.0  # a larger bend keeps longer to the lower knot: a smaller mean
        for _ in range(60):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self._mean(middle) > self.mean_tokens else (low, middle)
        if abs(self._mean(low) / self.mean_tokens - 1) > 1e-6:
            raise InputError(
                f"a mean of {self.mean_tokens:g} tokens contradicts the quantiles",
                right=f"between {self._mean(50.0):.6g} and {self._mean(0.02):.6g}",
            )
        return low

    def at(self, shares: Floats) -> Floats:
        """Return the quantiles (not rounded to whole tokens)."""
        return self._at(shares, self.bend)

    @cached_property
    def tilt(self) -> float:
        """Integral of (1 - 2u) Q(u) over the standard deviation: how far a copula term can move the correlation."""
        shares = _midpoints()
        values = self.at(shares)
        return float(((1 - 2 * shares) * values).mean() / values.std())

    def _mean(self, bend: float) -> float:
        return float(self._at(_midpoints(), bend).mean())

    def _at(self, shares: Floats, bend: float) -> Floats:
        places = np.array([share for share, _ in self.knots])
        logs = np.log(np.array([tokens for _, tokens in self.knots]))
        segment = np.clip(np.searchsorted(places, shares, side="right") - 1, 0, len(places) - 2)
        along = (shares - places[segment]) / (places[segment + 1] - places[segment])
        values: Floats = np.exp(logs[segment] + (logs[segment + 1] - logs[segment]) * along**bend)
        return values


def _midpoints() -> Floats:
    return (np.arange(_GRID) + 0.5) / _GRID


@dataclass(frozen=True, kw_only=True)
class FittedSizes:
    """Sizes from two quantile tables with a given correlation of prompt and output tokens."""

    prompt: QuantileTable
    output: QuantileTable
    correlation: float

    @cached_property
    def theta(self) -> float:
        """Parameter of the copula: Pearson's correlation is theta times the product of the two tilts.

        Raises
        ------
        InputError
            If the correlation is out of the copula's reach (theta beyond -1 to 1).
        """
        reach = self.prompt.tilt * self.output.tilt
        theta = self.correlation / reach
        if abs(theta) > 1:
            raise InputError(
                f"a correlation of {self.correlation:g}", right=f"between -{reach:.3g} and {reach:.3g}"
            )
        return theta

    def draw(self, randomness: np.random.Generator, number: int) -> tuple[Ints, Ints]:
        """Draw so many pairs: u is uniform, v solves dC/du = w for a uniform w (a quadratic equation)."""
        u, w = randomness.random((number, 2)).T
        a = self.theta * (1 - 2 * u)
        v = 2 * w / (1 + a + np.sqrt((1 + a) ** 2 - 4 * a * w))
        return _whole_tokens(self.prompt.at(u)), _whole_tokens(self.output.at(v))


def _whole_tokens(values: Floats) -> Ints:
    whole: Ints = np.maximum(1, np.rint(values)).astype(np.int64)
    return whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What to generate.

    ``rate_rps`` is the mean over a whole period of the daily swing, which begins at its low: the rate at time t is
    rate_rps (1 - diurnal_ratio cos(2 pi t / diurnal_period_s)). With ``rates`` it is the mean over all of these
    windows, whose course the rate follows from the first on, gaps bridged.
    """

    sizes: Sizes
    rate_rps: float
    duration_s: float
    arrivals: Arrivals = Arrivals.POISSON
    cv: float = 1.0
    """Coefficient of variation of the gaps; Poisson has 1."""
    diurnal_ratio: float = 0.0
    diurnal_period_s: float = _DAY_S
    rates: RateWindows | None = None

    def __post_init__(self) -> None:
        for name, good, right in (
            ("rate_rps", 0 < self.rate_rps < math.inf, "a number above 0"),
            ("duration_s", 0 < self.duration_s <= LARGEST_TIME_S, f"above 0, at most {LARGEST_TIME_S:,.0f}"),
            ("cv", _SMALLEST_CV <= self.cv <= _LARGEST_CV, f"from {_SMALLEST_CV:g} to {_LARGEST_CV:g}"),
            ("diurnal_ratio", 0 <= self.diurnal_ratio < 1, "from 0 to below 1"),
            ("diurnal_period_s", 0 < self.diurnal_period_s < math.inf, "a number above 0"),
        ):
            if not good:
                raise InputError(f"{getattr(self, name):g} as {name}", right=right)
        if self.arrivals is Arrivals.POISSON and self.cv != 1:
            raise InputError(
                f"a cv of {self.cv:g} with poisson arrivals", right="gamma or weibull arrivals, or cv 1"
            )
        if self.rates is None:
            return
        if self.diurnal_ratio:
            raise InputError("a daily swing over recorded rates", right="either of them")
        if self.duration_s > self.rates.duration_s:
            raise InputError(
                f"{self.duration_s:g} s of rates recorded for {self.rates.duration_s:g} s",
                right="a duration of at most that",
            )
        if not self.rates.filled().rate_rps.any():
            raise InputError(
                f"no window of {self.rates.name!r} has requests", right="windows with rates above 0"
            )


def generate(workload: Workload, *, seed: int) -> Iterator[Requests]:
    """Yield the requests of a workload in chunks; arrivals in whole microseconds from 0 to its duration.

    Arrivals and sizes have random streams of their own: the same seed gives the same sizes whatever the arrivals.
    """
    arrival_seed, size_seed = np.random.SeedSequence(seed).spawn(2)
    arrival_randomness = np.random.Generator(np.random.PCG64(arrival_seed))
    size_randomness = np.random.Generator(np.random.PCG64(size_seed))
    to_time = _Clock(workload)
    shape = _weibull_shape(workload.cv) if workload.arrivals is Arrivals.WEIBULL else workload.cv**-2
    passed = 0.0
    while passed < to_time.last:
        operational = passed + np.cumsum(_gaps(arrival_randomness, workload.arrivals, shape))
        passed = float(operational[-1])
        operational = operational[operational < to_time.last]
        prompt, output = workload.sizes.draw(size_randomness, _CHUNK)
        number = len(operational)
        if number:
            yield Requests(
                arrival_s=np.round(to_time(operational), 6),
                prompt_tokens=prompt[:number],
                output_tokens=output[:number],
            )


class _Clock:
    """From operational time (expected number of arrivals so far) to seconds."""

    def __init__(self, workload: Workload) -> None:
        self._rate_rps = workload.rate_rps
        self._swing_s = workload.diurnal_ratio * workload.diurnal_period_s / (2 * math.pi)
        self._per_s = 2 * math.pi / workload.diurnal_period_s
        self._ends_s: Floats = np.empty(0)
        self._passed_at_ends: Floats = np.empty(0)
        if workload.rates is not None:
            course = workload.rates.filled().rate_rps
            arrivals = np.cumsum(course) * (
                workload.rates.window_s * workload.rate_rps / float(course.mean())
            )
            self._ends_s = workload.rates.window_s * np.arange(len(course) + 1, dtype=np.float64)
            self._passed_at_ends = np.concatenate(([0.0], arrivals))
        self.last = float(self._passed(np.array([workload.duration_s]))[0])
        self._duration_s = workload.duration_s

    def __call__(self, operational: Floats) -> Floats:
        """Solve for t by bisection, halving to below a microsecond's rounding (skipped where the rate is constant)."""
        if not self._swing_s and not len(self._ends_s):
            return operational / self._rate_rps
        low, high = np.zeros(len(operational)), np.full(len(operational), self._duration_s)
        for _ in range(64):
            middle = (low + high) / 2
            early = self._passed(middle) < operational
            low, high = np.where(early, middle, low), np.where(early, high, middle)
        return high

    def _passed(self, time_s: Floats) -> Floats:
        if len(self._ends_s):
            return np.interp(time_s, self._ends_s, self._passed_at_ends)
        passed: Floats = self._rate_rps * (time_s - self._swing_s * np.sin(self._per_s * time_s))
        return passed


def _gaps(randomness: np.random.Generator, arrivals: Arrivals, shape: float) -> Floats:
    """Draw a chunk of gaps of mean 1."""
    if arrivals is Arrivals.GAMMA:
        return randomness.standard_gamma(shape, _CHUNK) / shape
    exponential: Floats = -np.log1p(-randomness.random(_CHUNK))
    if arrivals is Arrivals.POISSON:
        return exponential
    gaps: Floats = exponential ** (1 / shape) / math.gamma(1 + 1 / shape)
    return gaps


def _weibull_shape(cv: float) -> float:
    """Return k with 1 + cv^2 = G(1 + 2/k) / G(1 + 1/k)^2 (G the gamma function), by bisection."""
    low, high = 0.1, 100.0
    for _ in range(80):
        middle = math.sqrt(low * high)
        excess = math.expm1(math.lgamma(1 + 2 / middle) - 2 * math.lgamma(1 + 1 / middle)) - cv * cv
        low, high = (middle, high) if excess > 0 else (low, middle)
    return low


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A kind of traffic with the arrivals and sizes of a published trace."""

    name: str
    rate_rps: float
    cv: float
    sizes: FittedSizes


def _knots(*tokens: float) -> tuple[tuple[float, float], ...]:
    return tuple(zip((0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0), tokens, strict=True))


# Statistics of the Azure LLM inference traces of November 2023 (Patel et al., Splitwise, ISCA 2024; AzurePublicDataset,
# CC-BY 4.0): rate, mean, quantiles, extremes and correlation of the one-hour files, cv of the gaps between arrivals.
PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="conversation",
            rate_rps=5.53,
            cv=1.094,
            sizes=FittedSizes(
                prompt=QuantileTable(
                    mean_tokens=1154.7,
                    knots=_knots(2, 207, 396, 1020, 1189, 2734.5, 4142, 6179, 14050),
                ),
                output=QuantileTable(
                    mean_tokens=211.1,
                    knots=_knots(7, 54, 85, 129, 395, 424, 601, 954, 1000),
                ),
                correlation=-0.112,
            ),
        ),
        Preset(
            name="code",
            rate_rps=2.57,
            # Between pauses: the cv of the gaps is 13.2 with, 6.2 without the pauses of more than 30 s.
            cv=6.2,
            sizes=FittedSizes(
                prompt=QuantileTable(
                    mean_tokens=2047.8,
                    knots=_knots(3, 147, 578, 1469, 2744.5, 5187.6, 7436, 7436.5, 7437),
                ),
                output=QuantileTable(
                    mean_tokens=27.9,
                    knots=_knots(6, 6.5, 9, 13, 24, 55, 251.5, 825.3, 1899),
                ),
                correlation=0.001,
            ),
        ),
    )
}
