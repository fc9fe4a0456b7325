"""A plain simulation of one replica, iteration by iteration, to judge the capacity estimate against.

It exists to be obviously right, not fast: first come first served, continuous batching, prompt chunks under a token
budget, KV reserved for the whole request at admission (hence no preemption), Poisson arrivals whose sizes are drawn
from a mixture. It shares with `solver.performance.capacity` only the performance model and the rule of one iteration,
none of the queueing mathematics. It is not the cluster simulator.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import Slo, SloMetric
from solver.performance.iteration import EngineSettings, mixed_iteration_s, shared_s
from solver.performance.protocol import PerformanceModel, ReplicaKind

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearReplica:
    """The simplest performance model: prefill a + p T + q T (context + T/2), decode a + b n + c K. For tests."""

    floor_s: float = 16.6e-3
    per_sequence_s: float = 5.3e-6
    per_kv_token_s: float = 4.76e-8
    per_prompt_token_s: float = 4.0e-5
    per_pair_s: float = 1.0e-9
    kv_tokens: int = 400_000
    watts: tuple[float, float, float] = (300.0, 2600.0, 1700.0)
    """Idle, prefill, decode."""

    @property
    def kind(self) -> ReplicaKind:
        """No real replica."""
        return ReplicaKind(model="linear", gpu_type="linear", gpus_per_replica=1, precision="bf16")

    def prefill_s(self, new_tokens: float, *, context_tokens: float = 0.0) -> float:
        """As said in the class."""
        attention = self.per_pair_s * new_tokens * (context_tokens + new_tokens / 2.0)
        return self.floor_s + self.per_prompt_token_s * new_tokens + attention

    def decode_iteration_s(self, sequences: float, kv_tokens: float) -> float:
        """As said in the class."""
        return self.floor_s + self.per_sequence_s * sequences + self.per_kv_token_s * kv_tokens

    def prefill_w(self, new_tokens: float) -> float:
        """Watts of prefill."""
        return self.watts[1] if new_tokens > 0 else self.watts[0]

    def decode_w(self, sequences: float, kv_tokens: float) -> float:
        """Watts of decode."""
        return self.watts[2] if sequences > 0 or kv_tokens > 0 else self.watts[0]

    def idle_w(self) -> float:
        """Watts of nothing."""
        return self.watts[0]

    def kv_capacity_tokens(self) -> int:
        """Tokens that fit."""
        return self.kv_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Arrivals of unit rate (scaled by the caller) and sizes, one entry per request."""

    unit_arrival_s: Array
    input_tokens: Array
    output_tokens: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run measured. Latencies are of the requests after the warm-up, in order of arrival."""

    ttft_s: Array
    tbt_s: Array
    """Of the requests with more than one output token."""
    e2e_s: Array
    input_tokens: Array
    output_tokens: Array
    mean_in_service: float
    """Time average of the admitted requests over the whole run."""
    mean_residence_s: float
    """Mean time from admission to the last token over the whole run."""
    admitted_rps: float
    watts: float
    iterations: int
    gave_up: bool
    """The queue grew so long that the run was stopped: overloaded."""


def draw_requests(buckets: Sequence[RequestBucket], count: int, seed: int) -> Requests:
    """Draw Poisson arrivals at one request per second and sizes from the buckets, weighted by their rates."""
    rng = np.random.default_rng(seed)
    weights = np.array([bucket.rate_rps for bucket in buckets])
    chosen = rng.choice(len(buckets), size=count, p=weights / weights.sum())
    inputs = np.array([bucket.input_tokens or 0.0 for bucket in buckets])
    outputs = np.array([bucket.output_tokens or 0.0 for bucket in buckets])
    return Requests(
        unit_arrival_s=np.cumsum(rng.exponential(size=count)),
        input_tokens=np.round(inputs[chosen]),
        output_tokens=np.maximum(1.0, np.round(outputs[chosen])),
    )


def simulate(  # one loop, told in order
    model: PerformanceModel,
    requests: Requests,
    rate_rps: float,
    engine: EngineSettings,
    *,
    warm_up_ratio: float = 0.1,
    give_up_wait_s: float = float("inf"),
) -> Outcome:
    """Serve ``requests`` at ``rate_rps``; stop as overloaded once the head of the queue waited ``give_up_wait_s``."""
    arrival = (requests.unit_arrival_s / rate_rps).tolist()
    prompt = requests.input_tokens.tolist()
    output = requests.output_tokens.tolist()
    total = len(arrival)
    first = [0.0] * total
    last = [0.0] * total
    admitted_at = [0.0] * total
    capacity = model.kv_capacity_tokens()
    shared = shared_s(model)

    now = 0.0
    next_arrival = 0
    waiting: deque[int] = deque()
    prefilling: deque[tuple[int, float]] = deque()  # request, prompt tokens done
    decodes = 0
    kv = 0.0  # tokens cached by the decodes
    reserved = 0.0
    tick = 0  # iterations in which decodes went on
    ends: list[tuple[int, int]] = []
    served = 0
    in_service_time = 0.0
    joules = 0.0
    iterations = 0
    gave_up = False

    while served < total:
        while next_arrival < total and arrival[next_arrival] <= now:
            waiting.append(next_arrival)
            next_arrival += 1
        if waiting and now - arrival[waiting[0]] > give_up_wait_s:
            gave_up = True
            break
        while waiting and decodes + len(prefilling) < engine.max_batch:
            need = prompt[waiting[0]] + output[waiting[0]]
            if reserved + need > capacity:
                break
            request = waiting.popleft()
            reserved += need
            admitted_at[request] = now
            prefilling.append((request, 0.0))
        if not prefilling and not decodes:
            if next_arrival >= total:
                gave_up = bool(waiting)  # the head does not fit even an empty replica
                break
            joules += model.idle_w() * (arrival[next_arrival] - now)
            now = arrival[next_arrival]
            continue

        # Fill the iteration.
        taken = 0.0
        pairs = 0.0
        finished: list[int] = []
        runs_decode = decodes > 0
        if prefilling:
            if engine.chunked_prefill:
                room = engine.max_batch_tokens - decodes
                while prefilling and room > 0:
                    request, done = prefilling.popleft()
                    chunk = min(prompt[request] - done, room)
                    taken += chunk
                    pairs += chunk * (done + chunk / 2.0)
                    room -= chunk
                    if done + chunk < prompt[request]:
                        prefilling.appendleft((request, done + chunk))
                        break
                    finished.append(request)
            else:
                while prefilling and (
                    not finished or taken + prompt[prefilling[0][0]] <= engine.max_batch_tokens
                ):
                    request, _ = prefilling.popleft()
                    taken += prompt[request]
                    pairs += prompt[request] ** 2 / 2.0
                    finished.append(request)
                runs_decode = False
        # Attention is charged by (new token, token before it) pairs: the context that gives the same number of them.
        context = max(0.0, pairs / taken - taken / 2.0) if taken > 0 else 0.0
        in_batch = decodes if runs_decode else 0
        took = mixed_iteration_s(
            model,
            new_tokens=taken,
            context_tokens=context,
            sequences=float(in_batch),
            kv_tokens=kv if runs_decode else 0.0,
            shared=shared,
        )
        watts = model.decode_w(float(in_batch), kv) if taken <= 0 else model.prefill_w(taken)
        joules += watts * took
        in_service_time += took * (decodes + len(prefilling) + len(finished))
        now += took
        iterations += 1

        # End of the iteration.
        if runs_decode:
            tick += 1
            kv += in_batch
            while ends and ends[0][0] <= tick:
                _, request = heapq.heappop(ends)
                last[request] = now
                kv -= prompt[request] + output[request]
                reserved -= prompt[request] + output[request]
                decodes -= 1
                served += 1
        for request in finished:
            first[request] = now
            if output[request] <= 1:
                last[request] = now
                reserved -= prompt[request] + output[request]
                served += 1
            else:
                decodes += 1
                kv += prompt[request] + 1.0
                heapq.heappush(ends, (tick + int(output[request]) - 1, request))

    done_ids = np.array([r for r in range(total) if last[r] > 0.0], dtype=np.int64)
    keep = done_ids[done_ids >= int(warm_up_ratio * total)]
    arrivals = np.array(arrival)
    ttft = np.array(first)[keep] - arrivals[keep]
    e2e = np.array(last)[keep] - arrivals[keep]
    outputs = requests.output_tokens[keep]
    many = outputs > 1
    residence = np.array(last)[done_ids] - np.array(admitted_at)[done_ids]
    return Outcome(
        ttft_s=ttft,
        tbt_s=(e2e - ttft)[many] / (outputs[many] - 1.0),
        e2e_s=e2e,
        input_tokens=requests.input_tokens[keep],
        output_tokens=outputs,
        mean_in_service=in_service_time / now if now > 0 else 0.0,
        mean_residence_s=float(residence.mean()) if residence.size else 0.0,
        admitted_rps=len(done_ids) / now if now > 0 else 0.0,
        watts=joules / now if now > 0 else 0.0,
        iterations=iterations,
        gave_up=gave_up,
    )


def meets(outcome: Outcome, slo: Slo) -> bool:
    """Whether every absolute target holds over the measured requests."""
    if outcome.gave_up:
        return False
    values = {SloMetric.TTFT: outcome.ttft_s, SloMetric.TBT: outcome.tbt_s, SloMetric.E2E: outcome.e2e_s}
    for target in slo.targets:
        if target.limit_s is None:
            raise ValueError("the reference simulation judges targets in seconds only")
        measured = values[target.metric]
        if measured.size and float(np.percentile(measured, target.percentile)) > target.limit_s:
            return False
    return True


def largest_rate_rps(
    model: PerformanceModel,
    buckets: Sequence[RequestBucket],
    slo: Slo,
    engine: EngineSettings,
    *,
    guess_rps: float,
    count: int = 4000,
    duration_s: float = 300.0,
    seeds: Sequence[int] = (1,),
    tolerance: float = 0.01,
) -> float:
    """Largest rate that meets the SLO, by bisection with common random numbers; the mean over the seeds.

    A run has at least ``count`` requests and at the guessed rate lasts ``duration_s``, many times a request's stay.
    """
    limits = [t.limit_s for t in slo.targets if t.metric is not SloMetric.TBT and t.limit_s is not None]
    give_up = 20.0 * max(limits) if limits else 120.0
    found = []
    for seed in seeds:
        requests = draw_requests(buckets, max(count, int(duration_s * guess_rps)), seed)

        def good(rate: float, requests: Requests = requests) -> bool:
            return meets(simulate(model, requests, rate, engine, give_up_wait_s=give_up), slo)

        low, high = 0.0, guess_rps
        if good(guess_rps):
            low = guess_rps
            high = guess_rps * 1.15
            while good(high):
                low, high = high, high * 1.15
        else:
            high = guess_rps
            low = guess_rps / 1.15
            while not good(low):
                high, low = low, low / 1.15
                if low < guess_rps * 0.1:
                    low = 0.0
                    break
        while low > 0.0 and high - low > tolerance * high:
            middle = (low + high) / 2.0
            low, high = (middle, high) if good(middle) else (low, middle)
        found.append((low + high) / 2.0 if low > 0 else 0.0)
    return float(np.mean(found))
