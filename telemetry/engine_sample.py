"""One look at a serving engine: what is in flight, what was finished so far, how large the requests were.

It exists so that the readers of engines (`telemetry.sources.engines`) and the estimator of traffic
(`telemetry.traffic`) speak about the same values without knowing each other. It reads nothing and judges nothing; what
was not there, or made no sense, is None, never zero.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CumulativeHistogram:
    """A histogram that only grows: how many observations were at most so large, and the sum of all."""

    edges: tuple[float, ...]
    """Finite upper edges, rising; none at all if only count and sum are known."""
    cumulative: tuple[float, ...]
    """Observations up to and with each edge, and of all: one entry more than there are edges."""
    total: float
    """Sum of all observations."""

    @property
    def count(self) -> float:
        """Number of all observations."""
        return self.cumulative[-1]

    def since(self, earlier: "CumulativeHistogram | None") -> "CumulativeHistogram":
        """Return what was observed after ``earlier``; all of it if counting began anew in between."""
        if earlier is None or self.restarted_after(earlier):
            return self
        return CumulativeHistogram(
            edges=self.edges,
            cumulative=tuple(
                [now - then for now, then in zip(self.cumulative, earlier.cumulative, strict=True)]
            ),
            total=self.total - earlier.total,
        )

    def restarted_after(self, earlier: "CumulativeHistogram") -> bool:
        """Whether it cannot be a continuation of ``earlier``: other edges, or a count or the sum fell."""
        return (
            self.edges != earlier.edges
            or self.total < earlier.total
            or any(now < then for now, then in zip(self.cumulative, earlier.cumulative, strict=True))
        )


def merged(histograms: Iterable[CumulativeHistogram | None]) -> CumulativeHistogram | None:
    """Add histograms of the same edges; None if there is none, one is not known, or the edges differ."""
    known: list[CumulativeHistogram] = []
    for histogram in histograms:
        if histogram is None or (known and histogram.edges != known[0].edges):
            return None
        known.append(histogram)
    if not known:
        return None
    return CumulativeHistogram(
        edges=known[0].edges,
        cumulative=tuple(map(sum, zip(*(each.cumulative for each in known), strict=True))),
        total=sum(each.total for each in known),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSample:
    """What one endpoint said at one time, summed over its engines (data-parallel ranks).

    Counters count since the engine started. The mean of the sizes is known where a histogram or a total is.
    """

    t_s: float
    """When it was said: seconds since 1970."""
    engine: str
    running: float | None
    waiting: float | None
    """Requests that have arrived and do not run, whichever queue they are in."""
    finished_total: float | None
    first_tokens_total: float | None = None
    """Requests that got their first token, those included that were aborted later."""
    preemptions_total: float | None = None
    prompt_tokens: CumulativeHistogram | None = None
    generation_tokens: CumulativeHistogram | None = None
    prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    kv_use_ratio: float | None = None
    """Of the fullest engine."""
    ttft_s: CumulativeHistogram | None = None
    inter_token_s: CumulativeHistogram | None = None
    e2e_s: CumulativeHistogram | None = None
    queue_s: CumulativeHistogram | None = None
    started_s: float | None = None
    """When the process started, in seconds since 1970."""
    series: tuple[str, ...] = ()
    """Names of the series that were used."""
    missing: tuple[str, ...] = ()
    """Names of the series without which there is no traffic to be told."""

    @property
    def prompt_sizes(self) -> CumulativeHistogram | None:
        """Prompt sizes as finely as they are known."""
        return self._sizes(self.prompt_tokens, self.prompt_tokens_total)

    @property
    def generation_sizes(self) -> CumulativeHistogram | None:
        """Output sizes as finely as they are known."""
        return self._sizes(self.generation_tokens, self.generation_tokens_total)

    def _sizes(
        self, histogram: CumulativeHistogram | None, total: float | None
    ) -> CumulativeHistogram | None:
        if histogram is not None or total is None or self.finished_total is None:
            return histogram
        return CumulativeHistogram(edges=(), cumulative=(self.finished_total,), total=total)
