"""The largest rate a pool sustains when its replicas serve only one phase: prefill alone, or decode alone.

It exists because splitting changes the queue. A prefill pool is one first-come-first-served queue in front of c
servers, so the same share of busy time gives shorter waits the larger the pool; a decode pool balances its sequences
over c replicas, so their number fluctuates less. Both are economies of scale that one replica (`capacity`, which role
both is judged by) does not have. It is a steady-state approximation, no simulation: docs/fleet.md says how far off.

Prefill. Class i (share w_i) has P_i prompt tokens. One that finds an idle server runs alone, T(P_i) s. One that waits
shares its iteration with what arrives during the iteration before, q_i tokens up to the engine's budget: it takes
P_i T(q_i) / q_i s of a server and is done T(q_i) s after it began. x is the mean over both. M/G/c after Sakasegawa
(1977), solved together with the share that waits:

    rho = rate sum w_i x_i / c          P(wait) = rho^(sqrt(2 (c + 1)) - 1)
    W | wait ~ Exp, mean (1 + cv^2) / 2 x / (c (1 - rho))        (exact mean for c = 1: Pollaczek and Khinchine)

A TTFT target holds when sum w_i P(W > limit_i - T(q_i)) <= 1 - percentile, with T(P_i) and no W for those that do not
wait.

Decode. The pool is one processor-sharing queue of `capacity`: c replicas that share n sequences evenly take
D(n / c, K / c) per iteration, and have c times the slots. TBT and E2E targets hold as there, with no prompts in
between; E2E counts from the first token on (what came before is the prefill pool's TTFT).

How the linear sum of the planner is split over sizes: seconds of prefill per request; in decode what binds at the
largest rate: iterations x (share of a sequence + KV read), or KV tokens held x time; whole requests, both together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solver.domain.fleet import Role
from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import Slo, SloMetric, SloTarget
from solver.performance.capacity import DEFAULT_ENGINE, CapacityLimit, max_mixed_rate_rps
from solver.performance.iteration import EngineSettings, shared_s
from solver.performance.protocol import PerformanceModel, ReplicaKind

Array = NDArray[np.float64]

_LARGEST_RHO = 0.999
_BISECTIONS = 40
_FIXED_POINT_STEPS = 24
_TOKENS_ASKED = 48
_SMALLEST_S, _LARGEST_S = 1e-3, 600.0
_SMALLEST_RATIO, _LARGEST_RATIO = 0.01, 1000.0
_PREDICTION_TOLERANCE = 0.01
_LARGEST_POOL = 32
"""Beyond so many replicas a decode pool gains next to nothing more by being larger."""

PHASE_METRICS: dict[Role, frozenset[SloMetric]] = {
    Role.BOTH: frozenset(SloMetric),
    Role.PREFILL: frozenset({SloMetric.TTFT}),
    Role.DECODE: frozenset({SloMetric.TBT, SloMetric.E2E}),
}
"""Which metrics of an SLO the replicas of a role answer for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCapacity:
    """What one replica of a pool sustains on a mixture, and what keeps it from more."""

    rate_rps: float
    """Per replica; 0: the mixture cannot be served inside the SLO."""
    limit: CapacityLimit
    throughput_rps: tuple[float, ...]
    """Per bucket, such that loads add up to 1 at ``rate_rps`` of the mixture; 0: no replica can hold such a request."""


def slo_of_role(slo: Slo, role: Role) -> Slo:
    """Keep the targets that replicas of a role answer for."""
    return replace(slo, targets=tuple(t for t in slo.targets if t.metric in PHASE_METRICS[role]))


def pool_capacity(
    model: PerformanceModel,
    buckets: Sequence[RequestBucket],
    slo: Slo,
    engine: EngineSettings = DEFAULT_ENGINE,
    *,
    role: Role,
    replicas: int = 1,
    reference: PerformanceModel | None = None,
) -> PoolCapacity:
    """Return what one of ``replicas`` replicas of a pool sustains on the mixture of the buckets.

    Parameters
    ----------
    buckets
        With sizes; only the proportions of their rates matter. At least one rate above 0.
    reference
        The instance that relative targets compare with; ValueError if it is missing then.
    """
    if not buckets or not any(bucket.rate_rps > 0.0 for bucket in buckets):
        raise ValueError("a mixture needs at least one bucket with traffic")
    if replicas < 1:
        raise ValueError("a pool has at least one replica")
    own = slo_of_role(slo, role)
    if role is Role.PREFILL:
        return _Prefill(model, buckets, own, engine=engine, replicas=replicas, reference=reference).capacity()
    if role is Role.DECODE:
        return _decode(model, buckets, own, engine=engine, replicas=replicas, reference=reference)
    return _whole(model, buckets, own, engine=engine, reference=reference)


def predicted_at(
    model: PerformanceModel,
    buckets: Sequence[RequestBucket],
    target: SloTarget,
    engine: EngineSettings = DEFAULT_ENGINE,
    *,
    role: Role,
    replicas: int = 1,
    reference: PerformanceModel | None = None,
) -> float | None:
    """Predict what a target's percentile comes to in a pool that serves the buckets at their rates, to 1 %.

    In seconds, or times the request alone where the target is relative: the smallest limit whose largest rate is at
    least that rate. None where the pool cannot carry the rate however long requests may take, or the role does not
    answer for the metric.
    """
    if target.metric not in PHASE_METRICS[role]:
        return None
    rate_rps = sum(bucket.rate_rps for bucket in buckets)

    def carries(limit: float) -> bool:
        asked = replace(
            target,
            limit_s=None if target.limit_s is None else limit,
            limit_ratio=None if target.limit_ratio is None else limit,
        )
        found = pool_capacity(
            model,
            buckets,
            Slo(targets=(asked,)),
            engine,
            role=role,
            replicas=replicas,
            reference=reference,
        )
        return found.rate_rps * replicas >= rate_rps

    low, high = (_SMALLEST_S, _LARGEST_S) if target.limit_s is not None else (_SMALLEST_RATIO, _LARGEST_RATIO)
    if not carries(high):
        return None
    while high / low > 1.0 + _PREDICTION_TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if carries(middle) else (middle, high)
    return high


def _whole(
    model: PerformanceModel,
    buckets: Sequence[RequestBucket],
    slo: Slo,
    *,
    engine: EngineSettings,
    reference: PerformanceModel | None,
) -> PoolCapacity:
    """Judge whole requests by one replica (`capacity`); work is that of both phases."""
    estimate = max_mixed_rate_rps(model, buckets, slo, engine, reference=reference)
    shares, prompt, output = _sizes(buckets)
    gaps, context = output - 1.0, prompt + output / 2.0
    budget = float(engine.max_batch_tokens)
    per_token = max(model.prefill_s(budget) - shared_s(model), 1e-12) / budget
    if estimate.limit is CapacityLimit.KV_MEMORY:
        work = np.maximum(gaps, 0.5) * (prompt + output)
    else:
        batch = max(estimate.mean_batch, 1.0)
        kv_tokens = batch * float(shares * gaps @ context) / max(float(shares @ gaps), 1e-9)
        work = prompt * per_token + gaps * _marginal_s(model, batch, kv_tokens, context)
    fits = prompt + output <= float(model.kv_capacity_tokens())
    return PoolCapacity(
        rate_rps=estimate.rate_rps,
        limit=estimate.limit,
        throughput_rps=_throughputs(estimate.rate_rps, shares, work, fits),
    )


def _sizes(buckets: Sequence[RequestBucket]) -> tuple[Array, Array, Array]:
    """Shares, prompt tokens and output tokens."""
    rates = np.array([bucket.rate_rps for bucket in buckets])
    prompt = np.maximum(np.array([bucket.input_tokens or 1.0 for bucket in buckets]), 1.0)
    output = np.maximum(np.array([bucket.output_tokens or 1.0 for bucket in buckets]), 1.0)
    return rates / rates.sum(), prompt, output


def _throughputs(rate_rps: float, shares: Array, work: Array, fits: NDArray[np.bool_]) -> tuple[float, ...]:
    """Scale work per request so that the mixture fills one replica exactly at its rate."""
    if rate_rps <= 0.0:
        return (0.0,) * len(shares)
    filled = float(shares @ work) * rate_rps
    return tuple(float(filled / one) if ok and one > 0.0 else 0.0 for one, ok in zip(work, fits, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _PrefillPoint:
    """A prefill pool at one rate; arrays are [class]."""

    work: Array
    """Seconds of a server."""
    alone: Array
    """Seconds to the end of its iterations, alone in them."""
    packed: Array
    """The same with the prompts that came while all servers were busy."""
    waits: float
    mean_wait_s: float
    """Of those that wait."""
    rho: float


class _Prefill:
    """A pool that processes prompts only."""

    def __init__(
        self,
        model: PerformanceModel,
        buckets: Sequence[RequestBucket],
        slo: Slo,
        *,
        engine: EngineSettings,
        replicas: int,
        reference: PerformanceModel | None,
    ) -> None:
        self.shares, self.prompt, _ = _sizes(buckets)
        self.replicas = replicas
        self.budget = float(engine.max_batch_tokens)
        self.fits = self.prompt + 1.0 <= float(model.kv_capacity_tokens())
        longest = self.budget if engine.chunked_prefill else max(self.budget, float(self.prompt.max()))
        self.tokens = np.unique(
            np.concatenate(
                [np.geomspace(1.0, longest, _TOKENS_ASKED), [min(self.budget, longest)], self.prompt]
            )
        )
        self.tokens = self.tokens[self.tokens <= longest]
        self.seconds = np.array([model.prefill_s(float(t)) for t in self.tokens])
        self.chunked = engine.chunked_prefill
        # What later chunks of a long prompt take more than the first, for the tokens before them.
        self.attention = np.array([self._context_s(model, float(p)) for p in self.prompt])
        self.targets = [
            (
                target,
                np.full(len(self.prompt), target.limit_s)
                if target.limit_s is not None
                else (target.limit_ratio or 0.0) * self._alone(reference),
            )
            for target in slo.targets
        ]

    def _context_s(self, model: PerformanceModel, prompt: float) -> float:
        if not self.chunked or prompt <= self.budget:
            return 0.0
        first = model.prefill_s(self.budget)
        later = model.prefill_s(self.budget, context_tokens=(prompt - self.budget) / 2.0)
        return max(later - first, 0.0) * (prompt - self.budget) / self.budget

    def _alone(self, reference: PerformanceModel | None) -> Array:
        if reference is None:
            raise ValueError("a relative target needs a reference instance")
        return np.array([reference.prefill_s(float(p)) for p in self.prompt])

    def _at(self, rate_rps: float) -> _PrefillPoint:
        """Solve for the share of prompts that wait, which decides how full iterations are."""
        tokens_rps = rate_rps / self.replicas * float(self.shares @ self.prompt)
        most = (
            np.full_like(self.prompt, self.budget) if self.chunked else np.maximum(self.prompt, self.budget)
        )
        first = np.minimum(self.prompt, most)
        # By itself: all chunks in turn; with others: the share of a full iteration, and to its end.
        alone = self._seconds(first) * self.prompt / first + self.attention
        waits, mean_wait, rho = 0.5, 0.0, 0.0
        work = packed_own = alone
        for _ in range(_FIXED_POINT_STEPS):
            iteration = float(self.shares @ ((1.0 - waits) * alone + waits * packed_own))
            packed = np.minimum(first + tokens_rps * iteration, most)
            together = self.prompt * self._seconds(packed) / packed + self.attention
            packed_own = np.maximum(together, self._seconds(packed))
            work = (1.0 - waits) * alone + waits * together
            mean = float(self.shares @ work)
            rho = rate_rps * mean / self.replicas
            if rho >= _LARGEST_RHO:
                waits, mean_wait = 1.0, math.inf
                continue
            spread = float(self.shares @ work**2) / mean**2  # 1 + cv^2
            new = rho ** (math.sqrt(2.0 * (self.replicas + 1)) - 1.0)
            waits = 0.5 * (waits + new)
            mean_wait = spread / 2.0 * mean / (self.replicas * (1.0 - rho))
        return _PrefillPoint(
            work=work, alone=alone, packed=packed_own, waits=waits, mean_wait_s=mean_wait, rho=rho
        )

    def _seconds(self, tokens: Array) -> Array:
        result: Array = np.interp(tokens, self.tokens, self.seconds)
        return result

    def _excess(self, rate_rps: float) -> float:
        """Return the largest missed share over its allowance; infinite where the queue grows."""
        here = self._at(rate_rps)
        if here.rho >= _LARGEST_RHO:
            return math.inf
        worst = 0.0
        for target, limit in self.targets:
            left = limit - here.packed
            late = np.where(left < 0.0, 1.0, np.exp(-np.maximum(left, 0.0) / max(here.mean_wait_s, 1e-12)))
            missed = (1.0 - here.waits) * (here.alone > limit) + here.waits * late
            worst = max(worst, float(self.shares @ missed) / target.miss_ratio)
        return worst

    def capacity(self) -> PoolCapacity:
        """Search the largest rate."""
        nothing = (0.0,) * len(self.prompt)
        if not np.all(self.fits[self.shares > 0.0]):
            return PoolCapacity(rate_rps=0.0, limit=CapacityLimit.KV_MEMORY, throughput_rps=nothing)
        fastest = float(self.shares @ (self.prompt * np.min(self.seconds / self.tokens)))
        low, high = 0.0, 1.1 * self.replicas / fastest
        if self._excess(high * 1e-6) > 1.0:
            return PoolCapacity(rate_rps=0.0, limit=CapacityLimit.TTFT, throughput_rps=nothing)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self._excess(middle) <= 1.0 else (low, middle)
        rate = low / self.replicas
        work = self._at(low).work
        limit = CapacityLimit.COMPUTE if math.isinf(self._excess(high)) else CapacityLimit.TTFT
        return PoolCapacity(
            rate_rps=rate, limit=limit, throughput_rps=_throughputs(rate, self.shares, work, self.fits)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _SharedDecode:
    """A decode pool as one replica: its sequences are spread evenly, and prompts cost nothing."""

    model: PerformanceModel
    replicas: int

    @property
    def kind(self) -> ReplicaKind:
        return self.model.kind

    def prefill_s(self, new_tokens: float, *, context_tokens: float = 0.0) -> float:
        return 0.0 * (new_tokens + context_tokens)

    def decode_iteration_s(self, sequences: float, kv_tokens: float) -> float:
        if sequences <= 0.0:
            return 0.0
        each = max(sequences / self.replicas, 1.0)
        return self.model.decode_iteration_s(each, kv_tokens / sequences * each)

    def prefill_w(self, new_tokens: float) -> float:
        return self.model.prefill_w(new_tokens) * self.replicas

    def decode_w(self, sequences: float, kv_tokens: float) -> float:
        return self.model.decode_w(sequences / self.replicas, kv_tokens / self.replicas) * self.replicas

    def idle_w(self) -> float:
        return self.model.idle_w() * self.replicas

    def kv_capacity_tokens(self) -> int:
        return self.model.kv_capacity_tokens() * self.replicas


def _decode(
    model: PerformanceModel,
    buckets: Sequence[RequestBucket],
    slo: Slo,
    *,
    engine: EngineSettings,
    replicas: int,
    reference: PerformanceModel | None,
) -> PoolCapacity:
    shares, prompt, output = _sizes(buckets)
    capacity = float(model.kv_capacity_tokens())
    fits = prompt + output <= capacity
    nothing = (0.0,) * len(prompt)
    if not np.all(fits[shares > 0.0]):
        return PoolCapacity(rate_rps=0.0, limit=CapacityLimit.KV_MEMORY, throughput_rps=nothing)
    pooled = min(replicas, _LARGEST_POOL)
    # Prompts run whole, in no time: nothing but decodes is left of the approximation.
    alone = EngineSettings(
        max_batch=engine.max_batch * pooled,
        max_batch_tokens=engine.max_batch_tokens,
        chunked_prefill=False,
    )
    pool: PerformanceModel = _SharedDecode(model=model, replicas=pooled)
    estimate = max_mixed_rate_rps(pool, buckets, slo, alone, reference=reference)
    rate = estimate.rate_rps / pooled
    if rate <= 0.0:
        return PoolCapacity(rate_rps=0.0, limit=estimate.limit, throughput_rps=nothing)
    gaps, context = output - 1.0, prompt + output / 2.0
    batch = max(estimate.mean_batch / pooled, 1.0)
    kv_tokens = batch * float(shares * gaps @ context) / max(float(shares @ gaps), 1e-9)
    if estimate.limit is CapacityLimit.KV_MEMORY:
        work = np.maximum(gaps, 0.5) * (prompt + output)
    else:
        work = np.maximum(gaps, 0.5) * _marginal_s(model, batch, kv_tokens, context)
    return PoolCapacity(
        rate_rps=rate, limit=estimate.limit, throughput_rps=_throughputs(rate, shares, work, fits)
    )


def _marginal_s(model: PerformanceModel, batch: float, kv_tokens: float, context: Array) -> Array:
    """Seconds per iteration that a sequence answers for: its share of what all share, and its own KV."""
    here = model.decode_iteration_s(batch, kv_tokens)
    empty = model.decode_iteration_s(batch, batch)
    per_token = max(here - empty, 0.0) / max(kv_tokens - batch, 1.0)
    each: Array = max(empty, shared_s(model) / 2.0) / batch + per_token * context
    return each
