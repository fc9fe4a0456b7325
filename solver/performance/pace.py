"""Another pace of a replica: all its seconds times one factor, so that it carries what somebody measured.

It exists because a measured rate says how much a replica carries, and a performance model how it does so: with the
factor at which both agree, requests can be simulated one by one on what was measured. One number cannot mend a model
whose phases are wrong in different ways: that is what `LARGEST_FACTOR` is for. It measures nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from solver.domain.fleet import Role
from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import Slo
from solver.performance.capacity import DEFAULT_ENGINE, max_mixed_rate_rps
from solver.performance.iteration import EngineSettings
from solver.performance.phase_capacity import pool_capacity
from solver.performance.protocol import PerformanceModel, ReplicaKind

LARGEST_FACTOR = 3.0
"""A model that must be made so many times as slow or as fast says nothing of the replica."""
TOLERANCE_RATIO = 0.005
"""Of the rate that is carried."""
_STEPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced:
    """`PerformanceModel` whose phases take ``factor`` times as long at the same watts."""

    model: PerformanceModel
    factor: float

    @property
    def kind(self) -> ReplicaKind:
        """The replica this model speaks of."""
        return self.model.kind

    def prefill_s(self, new_tokens: float, *, context_tokens: float = 0.0) -> float:
        """Seconds of the model times the factor."""
        return self.factor * self.model.prefill_s(new_tokens, context_tokens=context_tokens)

    def decode_iteration_s(self, sequences: float, kv_tokens: float) -> float:
        """Seconds of the model times the factor."""
        return self.factor * self.model.decode_iteration_s(sequences, kv_tokens)

    def prefill_w(self, new_tokens: float) -> float:
        """As the model says."""
        return self.model.prefill_w(new_tokens)

    def decode_w(self, sequences: float, kv_tokens: float) -> float:
        """As the model says."""
        return self.model.decode_w(sequences, kv_tokens)

    def idle_w(self) -> float:
        """As the model says."""
        return self.model.idle_w()

    def kv_capacity_tokens(self) -> int:
        """As the model says."""
        return self.model.kv_capacity_tokens()


def pace_that_carries(
    model: PerformanceModel,
    buckets: Sequence[RequestBucket],
    slo: Slo,
    rate_rps: float,
    *,
    engine: EngineSettings = DEFAULT_ENGINE,
    role: Role = Role.BOTH,
) -> float | None:
    """Find the factor on all seconds at which a replica carries a mixture at just this rate inside the SLO.

    The largest rate of `max_mixed_rate_rps` (for one phase, of `pool_capacity`) falls as the factor rises: false
    position (the Illinois rule) on the logarithms of both, between 1 / `LARGEST_FACTOR` and `LARGEST_FACTOR`.

    Parameters
    ----------
    buckets
        Sizes with their weights in the mixture; at least one.
    rate_rps
        Measured, of the whole mixture; above 0.
    role
        What the replica serves: whole requests, or only their prefill or decode.

    Returns
    -------
    float or None
        None: no factor within the bounds does.
    """

    def excess(log_factor: float) -> float:
        """Logarithm of what is carried over what was measured; it falls."""
        paced = Paced(model=model, factor=math.exp(log_factor))
        if role is Role.BOTH:
            most_rps = max_mixed_rate_rps(paced, buckets, slo, engine).rate_rps
        else:
            most_rps = pool_capacity(paced, buckets, slo, engine, role=role).rate_rps
        return math.log(most_rps / rate_rps) if most_rps > 0.0 else -math.inf

    largest = math.log(LARGEST_FACTOR)
    own = excess(0.0)
    if abs(own) <= TOLERANCE_RATIO:
        return 1.0
    # carried at the first, not at the second
    fast, slow = (0.0, largest) if own >= 0.0 else (-largest, 0.0)
    above, below = (own, excess(slow)) if own >= 0.0 else (excess(fast), own)
    if above < 0.0 or below > 0.0:
        return None
    last = 0.0
    for _ in range(_STEPS):
        falls = math.isfinite(below) and above > below
        middle = (fast * below - slow * above) / (below - above) if falls else (fast + slow) / 2.0
        found = excess(middle)
        if abs(found) <= TOLERANCE_RATIO:
            return math.exp(middle)
        if found > 0.0:
            fast, above, below = middle, found, below / 2.0 if last > 0.0 else below
        else:
            slow, below, above = middle, found, above / 2.0 if last < 0.0 else above
        last = found
    return math.exp(fast)
