"""Traffic of a service as the planner sees it: buckets with rates, how fresh they are, and what is wrong if not.

It exists so that stated, scraped, queried and recorded traffic look alike. Reading is done elsewhere; here it is
judged: missing data is never zero, a fall counts only after a whole window of fresh samples, and a rise at once.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from controller.operator.outlook import Foreseen
from solver.domain.gpu_mix import RequestBucket


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What is known of a service's traffic. Without ``buckets`` nothing is."""

    buckets: tuple[RequestBucket, ...] = ()
    """To plan for."""
    rate_rps: float | None = None
    """As sampled last."""
    sampled_at: str = ""
    fresh: bool = False
    settled: bool = False
    """A whole window of fresh samples is known, so capacity may go down."""
    stated: bool = False
    """It is said, not measured."""
    reason: str = "NeverSampled"
    message: str = "the traffic was not sampled yet"
    forecast: Foreseen | None = None
    """Where the rate to plan for comes from, if it is forecast."""


def stated(buckets: Sequence[RequestBucket], *, at: str) -> Traffic:
    """Traffic that somebody states: always fresh."""
    return Traffic(
        buckets=tuple(buckets),
        rate_rps=sum(bucket.rate_rps for bucket in buckets),
        sampled_at=at,
        fresh=True,
        settled=True,
        stated=True,
        reason="Stated",
        message="",
    )


def foreseen(traffic: Traffic, found: Foreseen, mix: Sequence[RequestBucket]) -> Traffic:
    """Plan for the forecast rate: the present sizes at it; those of ``mix``, the last ones seen, if nothing arrives."""
    buckets = traffic.buckets if any(bucket.rate_rps for bucket in traffic.buckets) else tuple(mix)
    total = sum(bucket.rate_rps for bucket in buckets)
    planned = sum(bucket.rate_rps for bucket in traffic.buckets)
    if total <= 0 or found.rate_rps <= planned:
        return replace(traffic, forecast=found)
    factor = found.rate_rps / total
    return replace(
        traffic,
        buckets=tuple(replace(b, rate_rps=_rounded(b.rate_rps * factor)) for b in buckets),
        forecast=found,
    )


@dataclass(slots=True, kw_only=True)
class Window:
    """Samples of one service over its stabilisation window; plans are made for the largest rate in it."""

    window_s: float
    samples: deque[tuple[float, float]] = field(default_factory=deque)
    since_s: float | None = None
    """Since when samples came without a gap."""
    last: Traffic = field(default_factory=Traffic)

    def add(self, traffic: Traffic, *, now_s: float, gap_s: float) -> Traffic:
        """Take a sample; ``gap_s`` is the longest time between samples that is no gap. Returns what to plan for."""
        rate = traffic.rate_rps
        if not traffic.fresh or rate is None:
            self.since_s = None
            held = self.last
            self.last = replace(
                held, fresh=False, settled=False, reason=traffic.reason, message=traffic.message
            )
            return self.last
        if self.since_s is None or (self.samples and now_s - self.samples[-1][0] > gap_s):
            self.since_s = now_s
        self.samples.append((now_s, rate))
        while self.samples and self.samples[0][0] < now_s - self.window_s:
            self.samples.popleft()
        most = max(sample for _, sample in self.samples)
        factor = most / rate if rate > 0 else 1.0
        buckets = traffic.buckets
        if rate == 0.0 and most > 0.0:  # nothing arrives now: the last sizes at the largest rate
            total = sum(bucket.rate_rps for bucket in self.last.buckets)
            buckets = self.last.buckets
            factor = most / total if total > 0 else 1.0
        self.last = replace(
            traffic,
            buckets=tuple(replace(b, rate_rps=_rounded(b.rate_rps * factor)) for b in buckets),
            settled=now_s - self.since_s >= self.window_s,
        )
        return self.last


def _rounded(rate_rps: float) -> float:
    """Three digits: plans need not change for less."""
    return float(f"{rate_rps:.3g}")
