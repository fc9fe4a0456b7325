"""What latency percentile a replica is predicted to have at a given load: the capacity model, read the other way.

It exists so that a plan can be judged: the planner asks for the largest rate inside a limit, a reader asks for the
percentile at the planned rate. It is the smallest limit whose largest rate is at least that rate; no second model.
"""

from collections.abc import Sequence

from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import Slo, SloMetric, SloTarget
from solver.performance.capacity import DEFAULT_ENGINE, max_mixed_rate_rps
from solver.performance.iteration import EngineSettings
from solver.performance.protocol import PerformanceModel

_SMALLEST_S, _LARGEST_S = 1e-4, 3600.0
_STEPS = 26


def predicted_s(
    model: PerformanceModel,
    buckets: Sequence[RequestBucket],
    metric: SloMetric,
    percentile: float,
    engine: EngineSettings = DEFAULT_ENGINE,
) -> float | None:
    """Predict a percentile of a metric on one replica that serves the buckets at their rates.

    Returns None where the replica cannot carry the rate however long requests may take. Accurate to 1e-4 relative.
    """
    rate_rps = sum(bucket.rate_rps for bucket in buckets)

    def carries(limit_s: float) -> bool:
        slo = Slo(targets=(SloTarget(metric=metric, percentile=percentile, limit_s=limit_s),))
        return max_mixed_rate_rps(model, buckets, slo, engine).rate_rps >= rate_rps

    if not carries(_LARGEST_S):
        return None
    low, high = _SMALLEST_S, _LARGEST_S
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if carries(middle) else (middle, high)
        if high / low < 1.0001:
            break
    return high
