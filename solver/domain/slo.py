"""What latency a served model promises: the SLO and its one grammar.

It exists so that flags, scenario files and resources mean the same by ``ttft_p99=1.0,tbt_p99=0.05,e2e_p50=10``:
seconds, or with an x (``ttft_p90=3x``) a factor over the same request alone on a reference instance. It measures
nothing; what TTFT, TBT and E2E are is said once, below. Percentiles are over all requests of a model.

- ttft: end of the iteration that yields the first token, minus arrival.
- tbt: (e2e - ttft) / (output tokens - 1) of one request; a request of one output token has none.
- e2e: last token minus arrival.
"""

import math
import re
from dataclasses import dataclass
from enum import StrEnum

from solver.domain.errors import InputError, Place

_TARGET = re.compile(r"(?P<metric>[a-z0-9]+)_p(?P<percentile>[0-9]+(?:\.[0-9]+)?)\s*=\s*(?P<limit>\S+)")
_RIGHT = (
    "write it like ttft_p99=1.0,tbt_p99=0.05,e2e_p50=10 (seconds) or ttft_p90=3x (times the request alone)"
)


class SloMetric(StrEnum):
    """What a target limits."""

    TTFT = "ttft"
    TBT = "tbt"
    E2E = "e2e"


@dataclass(frozen=True, slots=True, kw_only=True)
class SloTarget:
    """One percentile of one metric; exactly one of ``limit_s`` and ``limit_ratio`` is set."""

    metric: SloMetric
    percentile: float
    """Between 0 and 100, both excluded: 99 means that 1 % of the requests may be slower."""
    limit_s: float | None = None
    limit_ratio: float | None = None
    """Times the same request alone on the reference instance."""

    def __post_init__(self) -> None:
        if not 0.0 < self.percentile < 100.0:
            raise InputError(
                f"percentile {self.percentile:g} of {self.metric}",
                right="between 0 and 100, e.g. p99 or p99.9",
            )
        if (self.limit_s is None) == (self.limit_ratio is None):
            raise InputError(
                f"{self.metric} target needs one limit", right="in seconds or as a factor with x"
            )
        limit = self.limit_s if self.limit_s is not None else self.limit_ratio
        if limit is None or not math.isfinite(limit) or limit <= 0.0:
            raise InputError(f"{self.metric} limit {limit}", right="a finite number above 0")

    @property
    def key(self) -> str:
        """Metric and percentile as the grammar writes them, e.g. ``ttft_p99``."""
        return f"{self.metric}_p{_number(self.percentile)}"

    @property
    def miss_ratio(self) -> float:
        """Share of the requests that may be slower than the limit."""
        return 1.0 - self.percentile / 100.0

    def __str__(self) -> str:
        if self.limit_s is not None:
            return f"{self.key}={_number(self.limit_s)}"
        assert self.limit_ratio is not None  # noqa: S101 - __post_init__ holds this
        return f"{self.key}={_number(self.limit_ratio)}x"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """All targets of a model, in the order they were written; none at all means that only stability is asked."""

    targets: tuple[SloTarget, ...] = ()

    def __str__(self) -> str:
        return ",".join(str(target) for target in self.targets)

    @property
    def relative(self) -> bool:
        """Whether any target needs a reference instance."""
        return any(target.limit_ratio is not None for target in self.targets)


def parse_slo(text: str, *, where: Place | str | None = None) -> Slo:
    """Read the SLO grammar: ``metric_pNN=limit`` joined by commas, metric ttft, tbt or e2e.

    Raises
    ------
    InputError
        One line, for an unknown metric, a percentile outside (0, 100), a limit that is no finite number above 0,
        the same percentile of a metric twice, or an empty text.
    """
    if not text.strip():
        raise InputError("empty SLO", where=where, right=_RIGHT)
    targets: list[SloTarget] = []
    for part in text.split(","):
        target = _parse_target(part.strip(), where)
        if any(target.key == other.key for other in targets):
            raise InputError(f"SLO target {target.key} given twice", where=where, right="keep one of them")
        targets.append(target)
    return Slo(targets=tuple(targets))


def _parse_target(part: str, where: Place | str | None) -> SloTarget:
    match = _TARGET.fullmatch(part)
    if match is None:
        raise InputError(f"cannot read SLO target {part!r}", where=where, right=_RIGHT)
    name = match["metric"]
    if name not in [metric.value for metric in SloMetric]:
        raise InputError(f"unknown SLO metric {name!r}", where=where, right="one of ttft, tbt, e2e")
    limit_text = match["limit"]
    relative = limit_text.endswith("x")
    try:
        limit = float(limit_text.removesuffix("x"))
    except ValueError:
        raise InputError(f"cannot read SLO limit {limit_text!r}", where=where, right=_RIGHT) from None
    try:
        return SloTarget(
            metric=SloMetric(name),
            percentile=float(match["percentile"]),
            limit_s=None if relative else limit,
            limit_ratio=limit if relative else None,
        )
    except InputError as error:
        raise InputError(f"SLO target {part!r}: {error.what}", where=where, right=error.right) from None


def _number(value: float) -> str:
    """Shortest text that reads back as the same float, without a trailing .0."""
    return str(int(value)) if value.is_integer() and value < 1e15 else repr(value)
