"""The largest rate one replica sustains inside an SLO, from a performance model alone: Mélange's throughput matrix.

It exists because Mélange measures this matrix for an hour per GPU type, and we want it in milliseconds for GPUs
nobody has at hand. It is a steady-state queueing approximation, no simulation: docs/capacity.md derives it and
docs/capacity-accuracy.md says how far it is from simulated replicas.

The replica runs iterations; each decodes one token for all n running sequences, D(n, K) seconds, and may carry
prompt tokens that add x seconds. Class i (share w_i of the rate λ) has P_i prompt and g_i + 1 output tokens.

1. Work. X_i: seconds that the prompt of a class adds to iterations; φ = λ Σ w_i X_i: share of time they take. An
   iteration lasts τ(n) = D(n, n κ) / (1 - φ) in the mean, κ the mean context of a running sequence.
2. Decode is a processor-sharing queue whose speed depends on n; its law is insensitive to the law of the output
   sizes (Kelly 1979, ch. 3): p(n) ∝ Π_{k<=n} ν τ(k) / k with ν = λ Σ w_i g_i. By Little: τ̄ = E[n] / ν.
3. Slots (batch limit, or KV tokens reserved per request): beyond m slots p(n) decays with u = ν τ(m) / m; an
   arrival waits with probability p(m) / (1 - u), then exponentially with mean (1 + c²)/2 · u / (λ (1 - u))
   (M/G/m after Lee and Longton 1959). Unequal sizes count in units of their peakedness z (Fredericks 1980).
4. TTFT. Prompts queue first come first served: M/G/1 with service X_i + D · (chunks of P_i); the wait at a busy
   server has a gamma law with its first two moments (Takács 1962); an idle one leaves the rest of an iteration.
   The next prompts fill the last chunk. Slot waits come on top.
5. TBT of a request, mean over its g_i gaps: its decode phase is a delay busy period (Conway, Maxwell and Miller
   1967, ch. 8) that starts with g_i D and the prompts it left behind and is stopped by prompts that arrive. With
   the probability that none does as an atom; the variance of n comes on top, averaged over the stay.
6. E2E: TTFT plus g_i TBT, moments added.

A target holds when Σ w_i P_i(metric > limit) <= 1 - percentile. Gamma tails by Wilson and Hilferty 1931.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from solver.domain.errors import InputError
from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import Slo, SloMetric, SloTarget
from solver.performance.iteration import EngineSettings, shared_s
from solver.performance.protocol import PerformanceModel

Array = NDArray[np.float64]

DEFAULT_ENGINE = EngineSettings()

_CLIMB = (0.01, 0.04, 0.1, 0.18, 0.27, 0.36, 0.46, 0.56, 0.67, 0.8)
_BISECTIONS = 18
_NEAR_BISECTIONS = 16
_FIXED_POINT_STEPS = 4
_DERIVATIVE_STEP = 0.02
_LEAST_MARGINAL = 0.5
_NEARLY_IDLE = 1e-5
_TINY = 1e-300


class CapacityLimit(StrEnum):
    """What keeps a replica from taking more."""

    TTFT = "ttft"
    TBT = "tbt"
    E2E = "e2e"
    KV_MEMORY = "kv-memory"
    BATCH = "batch"
    COMPUTE = "compute"


class MatrixRule(StrEnum):
    """How the throughput of one bucket is told, given that the solver adds loads linearly (see docs/capacity.md)."""

    STANDALONE = "standalone"
    """The bucket alone on the replica, as Mélange measures it."""
    MIXED = "mixed"
    """The bucket's marginal load in the model's own mixture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityEstimate:
    """The largest rate and the operating point there (at rate 0: of a nearly idle replica)."""

    rate_rps: float
    limit: CapacityLimit
    mean_batch: float
    """Decoding sequences, time average."""
    utilisation_ratio: float
    """Share of time with any request in service."""
    prefill_ratio: float
    """Share of time that prompts add to iterations."""
    ttft_mean_s: float
    tbt_mean_s: float
    watts: float | None
    """Mean draw of all GPUs; None where the performance model does not know it."""


def max_rate_rps(
    model: PerformanceModel,
    input_tokens: float,
    output_tokens: float,
    slo: Slo,
    engine: EngineSettings = DEFAULT_ENGINE,
    *,
    reference: PerformanceModel | None = None,
) -> CapacityEstimate:
    """Largest rate of requests of one size, nothing else on the replica; 0 where the SLO cannot be met at all.

    ``reference`` is the instance that relative targets (``3x``) compare with; ValueError if it is missing then.
    """
    bucket = RequestBucket(rate_rps=1.0, input_tokens=input_tokens, output_tokens=output_tokens)
    return max_mixed_rate_rps(model, [bucket], slo, engine, reference=reference)


def max_mixed_rate_rps(
    model: PerformanceModel,
    buckets: Sequence[RequestBucket],
    slo: Slo,
    engine: EngineSettings = DEFAULT_ENGINE,
    *,
    reference: PerformanceModel | None = None,
) -> CapacityEstimate:
    """Largest total rate of requests mixed in proportion to the buckets' rates; percentiles are over all of them."""
    replica = _Replica(model, buckets, engine, slo, reference)
    weights = np.array([[bucket.rate_rps for bucket in buckets]])
    cases = _Cases(replica, weights, np.arange(len(buckets))[None, :])
    return cases.estimates()[0]


def standalone_rates_rps(
    model: PerformanceModel,
    buckets: Sequence[RequestBucket],
    slo: Slo,
    engine: EngineSettings = DEFAULT_ENGINE,
    *,
    reference: PerformanceModel | None = None,
) -> tuple[CapacityEstimate, ...]:
    """`max_rate_rps` of every bucket at once (their rates do not matter): one column of the throughput matrix."""
    if not buckets:
        return ()
    replica = _Replica(model, buckets, engine, slo, reference)
    cases = _Cases(replica, np.ones((len(buckets), 1)), np.arange(len(buckets))[:, None])
    return tuple(cases.estimates())


def throughput_rps(
    model: PerformanceModel,
    buckets: Sequence[RequestBucket],
    slo: Slo,
    engine: EngineSettings = DEFAULT_ENGINE,
    *,
    rule: MatrixRule = MatrixRule.STANDALONE,
    reference: PerformanceModel | None = None,
) -> tuple[float, ...]:
    """One column of the throughput matrix: requests/s per bucket such that loads add up; 0: cannot be served.

    `MatrixRule.STANDALONE` is the bucket alone. `MatrixRule.MIXED` is the marginal load in the mixture of all servable
    buckets with traffic: L(λ) = 1 / (largest feasible multiple of λ) is homogeneous of degree one, hence
    Σ_b λ_b ∂L/∂λ_b = L (Euler), so 1 / throughput_b = ∂L/∂λ_b makes the linear sum exact at that mixture and right to
    first order near it. No marginal load is taken below half the standalone one (percentiles are over all
    requests, so one that is always fast can have a marginal load below zero); all are then scaled to be exact.
    """
    if not buckets:
        return ()
    replica = _Replica(model, buckets, engine, slo, reference)
    classes = np.arange(len(buckets))
    alone = _Cases(replica, np.ones((len(buckets), 1)), classes[:, None]).rates_rps()
    rates = np.array([bucket.rate_rps for bucket in buckets])
    part = np.flatnonzero((alone > 0.0) & (rates > 0.0))
    if rule is MatrixRule.STANDALONE or len(part) < 2:
        return tuple(float(rate) for rate in alone)
    mix = rates[part] / rates[part].sum()
    step = _DERIVATIVE_STEP * alone[part] * (mix @ (1.0 / alone[part]))
    whole = float(_Cases(replica, mix[None, :], part[None, :]).rates_rps()[0])
    if whole <= 0.0:
        return tuple(float(rate) for rate in alone)
    weights = np.concatenate([mix[None, :], mix[None, :] + np.diag(step)])
    mixed = _Cases(replica, weights, np.tile(part, (len(weights), 1))).rates_rps(near=whole)
    if np.any(mixed <= 0.0):
        return tuple(float(rate) for rate in alone)
    load = weights.sum(axis=1) / mixed
    least = _LEAST_MARGINAL / alone[part]
    marginal = np.maximum((load[1:] - load[0]) / step, least)
    marginal *= load[0] / (marginal @ mix)
    result = alone.copy()
    result[part] = 1.0 / marginal
    return tuple(float(rate) for rate in result)


class _Replica:
    """Samples of a performance model, so that the search itself calls no model."""

    def __init__(
        self,
        model: PerformanceModel,
        buckets: Sequence[RequestBucket],
        engine: EngineSettings,
        slo: Slo,
        reference: PerformanceModel | None,
    ) -> None:
        if not buckets:
            raise ValueError("at least one bucket is needed")
        self.model = model
        self.engine = engine
        self.slo = slo
        inputs = [bucket.input_tokens for bucket in buckets]
        outputs = [bucket.output_tokens for bucket in buckets]
        if any(size is None for size in (*inputs, *outputs)):
            raise ValueError("every bucket needs input_tokens and output_tokens")
        self.prompt = np.maximum(np.array(inputs, dtype=np.float64), 1.0)
        self.gaps = np.maximum(np.array(outputs, dtype=np.float64), 1.0) - 1.0
        self.reserve = self.prompt + self.gaps + 1.0
        self.context = self.prompt + (self.gaps + 1.0) / 2.0
        self.kv_capacity = float(model.kv_capacity_tokens())
        self.shared = shared_s(model)

        # Prompt tokens of one iteration -> seconds they add.
        budget = float(engine.max_batch_tokens)
        most = budget if engine.chunked_prefill else max(budget, float(self.prompt.max()))
        self.tokens = np.unique(np.concatenate([np.geomspace(1.0, most, 24), [min(budget, most)]]))
        seconds = np.array([model.prefill_s(float(t)) for t in self.tokens])
        self.added = np.maximum(seconds - self.shared, 0.0) if engine.chunked_prefill else seconds
        self.attention = np.array([self._context_s(float(p)) for p in self.prompt])

        # Decode: at each n linear in the cached tokens between the least and the greatest context.
        low, high = float(self.context.min()), float(self.context.max())
        high = max(high, low + 1.0)
        self.nodes = np.unique(np.round(np.geomspace(1.0, engine.max_batch, 16)))
        at_low = np.array([model.decode_iteration_s(float(n), float(n) * low) for n in self.nodes])
        at_high = np.array([model.decode_iteration_s(float(n), float(n) * high) for n in self.nodes])
        self.per_kv = (at_high - at_low) / (self.nodes * (high - low))
        self.per_batch = at_low - self.per_kv * self.nodes * low

        self.limits = [(target, self._limits(target, buckets, reference)) for target in slo.targets]

    def _context_s(self, prompt: float) -> float:
        """Seconds that later chunks of a long prompt take more than the first, for its earlier tokens."""
        chunk = float(self.engine.max_batch_tokens)
        if not self.engine.chunked_prefill or prompt <= chunk:
            return 0.0
        # Linear in the context, so all later chunks cost what their mean context costs.
        more = self.model.prefill_s(chunk, context_tokens=(prompt - chunk) / 2.0) - self.model.prefill_s(
            chunk
        )
        return max(more, 0.0) * prompt / chunk

    def _limits(
        self, target: SloTarget, buckets: Sequence[RequestBucket], reference: PerformanceModel | None
    ) -> Array:
        if target.limit_s is not None:
            return np.full(len(buckets), target.limit_s)
        if reference is None:
            raise ValueError(f"the target {target} is relative: a reference instance is needed")
        first = np.array([reference.prefill_s(float(p)) for p in self.prompt])
        gap = np.array([reference.decode_iteration_s(1.0, float(k)) for k in self.context])
        alone = {SloMetric.TTFT: first, SloMetric.TBT: gap, SloMetric.E2E: first + gap * self.gaps}
        return (target.limit_ratio or 0.0) * alone[target.metric]

    def decode_s(self, sequences: Array, context: Array) -> Array:
        """D(n, n κ), fractions of sequences allowed."""
        n = np.maximum(sequences, 1.0)
        fixed: Array = np.interp(n, self.nodes, self.per_batch)
        slope: Array = np.interp(n, self.nodes, self.per_kv)
        return fixed + slope * n * context

    def added_s(self, tokens: Array) -> Array:
        """Seconds that so many prompt tokens add to an iteration (chunked) or take by themselves (whole)."""
        result: Array = np.interp(tokens, self.tokens, self.added)
        return result


@dataclass(slots=True, kw_only=True)
class _Point:
    """What the approximation says at one rate per case; [case] unless said otherwise."""

    stable: NDArray[np.bool_]
    excess: Array
    """[target][case]: missed share over allowed share."""
    slot_miss: Array
    """[target][case]: part of the missed share that waits for a slot."""
    mean_batch: Array
    phi: Array
    idle: Array
    ttft_mean_s: Array
    tbt_mean_s: Array
    decode_s: Array
    chunk: Array


class _Cases:
    """Several mixtures on one replica, evaluated at once; arrays are [case, class] or [case]."""

    def __init__(self, replica: _Replica, weights: Array, classes: NDArray[np.int64]) -> None:
        self.r = r = replica
        total = weights.sum(axis=1, keepdims=True)
        if np.any(total <= 0.0) or np.any(weights < 0.0):
            raise ValueError("a mixture needs rates >= 0 and at least one above 0")
        self.w = w = weights / total
        self.prompt = r.prompt[classes]
        self.gaps = r.gaps[classes]
        self.attention = r.attention[classes]
        self.limits = [(target, limit[classes]) for target, limit in r.limits]
        reserve = r.reserve[classes]
        context = r.context[classes]

        self.g = (w * self.gaps).sum(axis=1)  # decode iterations per request
        self.p = (w * self.prompt).sum(axis=1)
        stay = w * np.maximum(self.gaps, 1e-9)
        stay /= stay.sum(axis=1, keepdims=True)
        # Residence by class, roughly, for what a slot's holder reserves: prompt iterations count too.
        budget = np.array([float(r.engine.max_batch_tokens)])
        one_gap = r.decode_s(np.ones(len(w)), (stay * context).sum(axis=1))[:, None]
        residence = (
            self.gaps * one_gap + self.prompt * (r.added_s(budget)[0] / budget[0]) + self.attention + one_gap
        )
        held = w * residence
        held /= held.sum(axis=1, keepdims=True)
        self.kappa = (stay * context).sum(axis=1)
        # Variance of one running sequence's context: between classes, and its growth while it runs.
        self.kappa_var = (stay * (context**2 + self.gaps**2 / 12.0)).sum(axis=1) - self.kappa**2
        g2 = (w * self.gaps**2).sum(axis=1)
        self.residual_gaps = g2 / (2.0 * np.maximum(self.g, _TINY))
        self.cv2 = np.where(self.g > 0, g2 / np.maximum(self.g, 1e-9) ** 2 - 1.0, 0.0)

        # Slots: the batch limit, or KV tokens in units of requests.
        largest = np.where(w > 0, reserve, 0.0).max(axis=1)
        smallest = np.where(w > 0, reserve, np.inf).min(axis=1)
        self.fits = largest <= r.kv_capacity
        mean = (held * reserve).sum(axis=1)
        peaked = (held * reserve**2).sum(axis=1) / mean**2
        head = (w * reserve**2).sum(axis=1) / (2.0 * (w * reserve).sum(axis=1))
        same = largest - smallest < 0.5
        kv_slots = np.where(same, np.floor(r.kv_capacity / largest), (r.kv_capacity - head) / mean)
        self.by_kv = kv_slots < r.engine.max_batch
        self.z = np.where(self.by_kv, peaked, 1.0)
        self.m = np.maximum(np.where(self.by_kv, kv_slots, r.engine.max_batch) / self.z, 1.0)
        units = np.arange(1, int(self.m.max()) + 1, dtype=np.float64)
        self.units = units
        self.whole_m = np.floor(self.m).astype(np.int64)
        self.decode_units = r.decode_s(units[None, :] * self.z[:, None], self.kappa[:, None])
        self.no_slot = units[None, :] > self.whole_m[:, None]
        self.decode_m = r.decode_s(self.m * self.z, self.kappa)
        self.decode_1 = r.decode_s(np.ones_like(self.m), self.kappa)

    # -- the approximation ------------------------------------------------------------------------------------------

    def at(self, rate: Array) -> _Point:
        """Evaluate at one rate per case."""
        r = self.r
        w, prompt, gaps = self.w, self.prompt, self.gaps
        chunked = r.engine.chunked_prefill
        budget = float(r.engine.max_batch_tokens)
        nu = rate * self.g
        slots_n = self.m * self.z

        # Mean-field operating point: n = ν D(n) / (1 - φ), a Newton step each.
        n = np.minimum(nu * self.decode_1, slots_n)
        decode = r.decode_s(n, self.kappa)
        iteration = decode
        stable = self.fits.copy()
        for _ in range(_FIXED_POINT_STEPS):
            room = np.maximum(budget - n, 1.0) if chunked else np.full_like(n, budget)
            packed = np.minimum(prompt + (rate * self.p * iteration)[:, None], room[:, None])
            if not chunked:
                packed = np.maximum(packed, prompt)
            x = prompt * r.added_s(packed) / packed + self.attention
            phi = rate * (w * x).sum(axis=1)
            free = np.maximum(1.0 - phi, 1e-6)
            speed = nu / free
            slope = r.decode_s(n + 1.0, self.kappa) - r.decode_s(n, self.kappa)
            n_new = speed * (decode - n * slope) / np.maximum(1.0 - speed * slope, 1e-6)
            n = np.clip(n_new, 0.0, slots_n)
            decode = r.decode_s(n, self.kappa)
            iteration = decode / free
        stable &= phi < 1.0

        # Prompt service.
        if chunked:
            full = r.added_s(room)
            chunks = np.ceil(prompt / room[:, None] - 1e-9)
            fluid = prompt / room[:, None]
            own = chunks * decode[:, None] + x
            service = fluid * (decode + full)[:, None] + self.attention
            # A last chunk that no other prompt fills up costs a whole iteration all the same.
            busy = np.minimum(rate * (w * service).sum(axis=1), 1.0)
            unfilled = (1.0 - busy) * np.exp(-rate * iteration)
            service += (unfilled * decode)[:, None] * (chunks - fluid)
        else:
            service = x
            own = x
        rho = rate * (w * service).sum(axis=1)
        stable &= rho < 1.0
        rho = np.minimum(rho, 1.0)
        spare = np.maximum(1.0 - rho, 1e-6)
        s2 = (w * service**2).sum(axis=1)
        s3 = (w * service**3).sum(axis=1)
        backlog = rate * s2 / (2.0 * spare)
        backlog2 = 2.0 * backlog**2 + rate * s3 / (3.0 * spare)

        rest = (
            iteration  # an arrival to an idle prompt queue waits for the iteration's end, uniform up to this
        )
        if chunked:
            # Prompts behind this one fill its last chunk: its first token comes later, less is left behind.
            spare_s = full[:, None] * (chunks - fluid)
            before = own - (decode[:, None] + r.added_s(np.minimum(prompt, room[:, None])))
            before = np.maximum(before, 0.0) + (backlog + (1.0 - rho) * rest / 2.0)[:, None]
            behind = 1.0 - np.exp(-rate[:, None] * before)
            behind_mean = phi[:, None] * before / np.maximum(behind, 1e-12) + 1e-12
            absorbed = behind * behind_mean * (1.0 - np.exp(-spare_s / behind_mean))
            own = own + absorbed
            left_over = behind * np.exp(-spare_s / behind_mean)
        else:
            before = np.zeros_like(own)
            absorbed = np.zeros_like(own)
            left_over = np.zeros_like(own)
        prompt_wait = own + (backlog + (1.0 - rho) * rest / 2.0)[:, None]

        # Sequences in service: those in prefill hold a slot too.
        in_prefill = (w * prompt_wait).sum(axis=1)
        more = 1.0 + in_prefill / np.maximum(self.g * iteration, 1e-9)
        nothing = self.g <= 0.0
        stay = (self.g / free)[:, None] * self.decode_units + in_prefill[:, None]
        arrivals = rate / self.z
        log_p = np.cumsum(np.log(np.maximum(arrivals[:, None] * stay / self.units, _TINY)), axis=1)
        log_p[self.no_slot] = -np.inf
        u = arrivals * (self.g / free * self.decode_m + in_prefill) / self.m
        stable &= u < 1.0
        beyond = np.minimum(u, 1.0 - 1e-6)
        top = np.maximum(log_p.max(axis=1), 0.0)
        p = np.exp(log_p - top[:, None])
        empty = np.exp(-top)
        last = p[np.arange(len(n)), self.whole_m - 1]
        tail = last * beyond / (1.0 - beyond)
        norm = p.sum(axis=1) + empty + tail
        p /= norm[:, None]
        tail /= norm
        idle = empty / norm
        mean_units = (p * self.units).sum(axis=1) + tail * self.m
        var_units = (p * self.units**2).sum(axis=1) + tail * self.m**2 - mean_units**2
        mean_n = mean_units * self.z / more
        var_n = np.maximum(var_units, 0.0) * self.z**2 / more**2
        tau = np.where(nothing, iteration, mean_n / np.maximum(nu, _TINY))
        tau = np.maximum(tau, self.decode_1 / free)
        slot_wait = np.minimum((last / norm) / (1.0 - beyond), 1.0)
        slot_mean = (1.0 + self.cv2) / 2.0 * self.z * beyond / (np.maximum(rate, _TINY) * (1.0 - beyond))

        # Waits before the first iteration.
        wait_mean = backlog + (1.0 - rho) * rest / 2.0 + slot_wait * slot_mean
        wait_var = (
            np.maximum(backlog2 - backlog**2, 0.0)
            + rest**2 / 12.0
            + slot_wait * (2.0 - slot_wait) * slot_mean**2
        )

        # TBT: its decode phase is a delay busy period that starts with g D and the prompts left behind.
        safe_gaps = np.maximum(gaps, 1.0)
        stop2 = rate * (w * x**2).sum(axis=1)
        base = tau * free
        left_mean = np.maximum(phi[:, None] * prompt_wait - absorbed, 0.0)
        left_var = stop2[:, None] * prompt_wait + (phi**2 * np.maximum(backlog2 - backlog**2, 0.0))[:, None]
        start = safe_gaps * base[:, None] + left_mean
        stop_mean = start / free[:, None] / safe_gaps - base[:, None]
        stop_var = (start * (stop2 / free**3)[:, None] + left_var / free[:, None] ** 2) / safe_gaps**2
        slope_n = r.decode_s(mean_n + 1.0, self.kappa) - r.decode_s(mean_n, self.kappa)
        relax = np.maximum(self.residual_gaps * np.maximum(var_n / np.maximum(mean_n, 1e-9), 1.0), 1.0)
        per_kv = np.interp(np.maximum(mean_n, 1.0), r.nodes, r.per_kv)
        batch_var = (slope_n**2 * var_n + per_kv**2 * mean_n * self.kappa_var)[:, None] * _averaging(
            safe_gaps / relax[:, None]
        )
        if chunked:
            # No gap holds more than one full chunk, which bounds the variance as well.
            stop_mean = np.minimum(stop_mean, full[:, None])
            stop_var = np.minimum(stop_var, stop_mean * (full[:, None] - stop_mean))
        tbt_mean = base[:, None] + stop_mean
        tbt_var = batch_var / free[:, None] ** 2 + stop_var
        floor = self.decode_1[:, None]
        over = np.maximum(base[:, None] - floor, 0.0)
        calm = (1.0 - left_over) * np.exp(
            -rate[:, None] * (prompt_wait - before + (safe_gaps - 1.0) * base[:, None])
        )
        hit = np.maximum(1.0 - calm, 1e-9)
        hit_mean = stop_mean / hit
        hit_var = np.maximum((stop_var + stop_mean**2) / hit - hit_mean**2, 0.0)
        most_stop = full[:, None] if chunked else np.full((len(n), 1), np.inf)

        busy_mean = backlog / np.maximum(rho, _TINY)
        busy_second = backlog2 / np.maximum(rho, _TINY)
        e2e_mean = own + wait_mean[:, None] + gaps * tbt_mean
        e2e_var = wait_var[:, None] + gaps**2 * tbt_var

        excess = np.zeros((len(self.limits), len(n)))
        slot_miss = np.zeros_like(excess)
        for index, (target, limit) in enumerate(self.limits):
            weight = w
            if target.metric is SloMetric.TTFT:
                left = limit - own
                missed = rho[:, None] * _gamma_tail(
                    left, busy_mean[:, None], np.maximum(busy_second - busy_mean**2, 0.0)[:, None]
                ) + (1.0 - rho[:, None]) * np.clip(1.0 - left / rest[:, None], 0.0, 1.0)
                after = np.maximum(left - (backlog + (1.0 - rho) * rest / 2.0)[:, None], 0.0)
                slots = slot_wait[:, None] * np.exp(-after / np.maximum(slot_mean, 1e-12)[:, None])
                missed = np.where(left < 0.0, 1.0, missed + (1.0 - missed) * slots)
                slot_miss[index] = (w * np.where(left < 0.0, 0.0, slots)).sum(axis=1)
            elif target.metric is SloMetric.TBT:
                weight = np.where(gaps >= 1.0, w, 0.0)
                weight = weight / np.maximum(weight.sum(axis=1, keepdims=True), _TINY)
                undisturbed = _gamma_tail(limit - floor, over, batch_var)
                disturbed = _gamma_tail(
                    limit - floor, over + hit_mean, batch_var / free[:, None] ** 2 + hit_var
                )
                # No gap holds more than one full chunk.
                most = _gamma_tail(limit - most_stop - floor, over, batch_var)
                missed = np.minimum(calm * undisturbed + hit * disturbed, most)
            else:
                least = own + gaps * floor
                missed = _gamma_tail(limit - least, e2e_mean - least, e2e_var)
            excess[index] = (weight * missed).sum(axis=1) / target.miss_ratio
        return _Point(
            stable=stable,
            excess=excess,
            slot_miss=slot_miss,
            mean_batch=np.where(nothing, 0.0, mean_n),
            phi=phi,
            idle=idle,
            ttft_mean_s=(w * own).sum(axis=1) + wait_mean,
            tbt_mean_s=(w * tbt_mean).sum(axis=1),
            decode_s=decode,
            chunk=np.minimum(packed, prompt).max(axis=1),
        )

    # -- the search -------------------------------------------------------------------------------------------------

    def _upper_rps(self) -> Array:
        """No stable rate is above this: prompts at their best packing, decodes at the fullest batch."""
        budget = np.array([float(self.r.engine.max_batch_tokens)])
        least = float((self.r.added_s(budget) / budget)[0])
        prefill = (self.w * (0.5 * least * self.prompt + self.attention)).sum(axis=1)
        decode = self.g * np.min(self.decode_units / (self.units * self.z[:, None]), axis=1)
        upper: Array = 1.5 / np.maximum(prefill + decode, 1e-9)
        return upper

    def rates_rps(self, *, near: float | None = None) -> Array:
        """Largest feasible rate per case; 0 where even a nearly idle replica misses the SLO.

        ``near`` is a guess for all cases: where they all lie within 10 % of it the search is shorter.
        """
        if near is not None:
            guess = np.full(len(self.w), near)
            if np.all(self._feasible(self.at(0.9 * guess))) and not np.any(
                self._feasible(self.at(1.1 * guess))
            ):
                return self._bisect(0.9 * guess, 1.1 * guess, _NEAR_BISECTIONS)
        high = self._upper_rps()
        possible = self.fits & self._feasible(self.at(high * _NEARLY_IDLE))
        # The fitted laws need not be monotone far beyond capacity: climb to the first rate that fails.
        low = np.zeros_like(high)
        top = high.copy()
        climbing = np.ones(len(high), dtype=np.bool_)
        for step in _CLIMB:
            rate = high * step
            good = self._feasible(self.at(rate))
            top = np.where(climbing & ~good, rate, top)
            climbing &= good
            low = np.where(climbing, rate, low)
        return np.where(possible, self._bisect(low, top, _BISECTIONS), 0.0)

    def _bisect(self, low: Array, high: Array, steps: int) -> Array:
        for _ in range(steps):
            middle = 0.5 * (low + high)
            good = self._feasible(self.at(middle))
            low = np.where(good, middle, low)
            high = np.where(good, high, middle)
        return low

    @staticmethod
    def _feasible(point: _Point) -> NDArray[np.bool_]:
        good: NDArray[np.bool_] = point.stable & np.all(point.excess <= 1.0, axis=0)
        return good

    def estimates(self) -> list[CapacityEstimate]:
        """Rates with what binds and the operating point there."""
        rates = self.rates_rps()
        shown = np.where(rates > 0.0, rates, self._upper_rps() * _NEARLY_IDLE)
        here = self.at(shown)
        above = self.at(shown * (1.0 + 1e-3))
        return [self._estimate(case, float(rates[case]), here, above) for case in range(len(rates))]

    def _estimate(self, case: int, rate: float, here: _Point, above: _Point) -> CapacityEstimate:
        model = self.r.model
        batch = float(here.mean_batch[case])
        phi = float(here.phi[case])
        idle = float(here.idle[case])
        running = max(batch / max(1.0 - idle, 1e-9), 1.0)
        try:
            watts: float | None = (
                idle * model.idle_w()
                + min(phi, 1.0) * model.prefill_w(max(float(here.chunk[case]), 1.0))
                + max(1.0 - idle - phi, 0.0) * model.decode_w(running, running * float(self.kappa[case]))
            )
        except InputError:  # the power of this card is not known: say so, as None
            watts = None
        return CapacityEstimate(
            rate_rps=rate,
            limit=self._limit(case, above),
            mean_batch=batch,
            utilisation_ratio=1.0 - idle,
            prefill_ratio=phi,
            ttft_mean_s=float(here.ttft_mean_s[case]),
            tbt_mean_s=float(here.tbt_mean_s[case]),
            watts=watts,
        )

    def _limit(self, case: int, point: _Point) -> CapacityLimit:
        slots = CapacityLimit.KV_MEMORY if self.by_kv[case] else CapacityLimit.BATCH
        if not self.fits[case]:
            return CapacityLimit.KV_MEMORY
        if len(self.limits) > 0:
            worst = int(np.argmax(point.excess[:, case]))
            target = self.limits[worst][0]
            if point.excess[worst, case] > 1.0:
                mostly_slots = (
                    point.slot_miss[worst, case] > 0.5 * point.excess[worst, case] * target.miss_ratio
                )
                return slots if mostly_slots else CapacityLimit(target.metric.value)
        # No target fails, so stability does: slots first, where full batches are cut by memory.
        if self.by_kv[case] and point.mean_batch[case] > 0.9 * self.m[case] * self.z[case]:
            return slots
        return CapacityLimit.COMPUTE


def _averaging(ratio: Array) -> Array:
    """Variance left when a process with exponential autocorrelation is averaged over ``ratio`` relaxation times."""
    safe = np.maximum(ratio, 1e-3)
    left: Array = np.minimum(2.0 * (safe - 1.0 + np.exp(-safe)) / safe**2, 1.0)
    return left


def _gamma_tail(limit: Array, mean: Array, variance: Array) -> Array:
    """P(Y > limit) of a gamma law with these moments, by the cube-root normal of Wilson and Hilferty (1931)."""
    mean = np.maximum(mean, 1e-12)
    variance = np.maximum(variance, 1e-12 * mean**2 + 1e-24)
    spread = variance / mean**2 / 9.0
    score = (np.cbrt(np.maximum(limit, 0.0) / mean) - 1.0 + spread) / np.sqrt(spread)
    tail = _normal_tail(score)
    result: Array = np.where(limit <= 0.0, 1.0, tail)
    return result


def _normal_tail(score: Array) -> Array:
    """P(Z > score); Abramowitz and Stegun 7.1.26, absolute error below 1e-7."""
    y = np.abs(score) / np.sqrt(2.0)
    t = 1.0 / (1.0 + 0.3275911 * y)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    half = 0.5 * poly * np.exp(-(y**2))
    result: Array = np.where(score >= 0.0, half, 1.0 - half)
    return result
