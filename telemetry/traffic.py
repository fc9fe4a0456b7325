"""Estimates a service's traffic from successive looks at its engines: how many requests arrive, and of what sizes.

It exists because demand is what arrives, and engines do not count that: under overload completions level off just when
more GPUs are needed. It reads no clock and no network: rounds of samples come in with their time, a measurement or the
reason why there is none comes out. Missing data is never zero.

Arrivals between two looks at one pod = Δ finished + Δ (running + waiting). All of it telescopes, so what a gauge tells
too early or too late evens out. vLLM does not count aborted requests as finished; but it counts first tokens, so
Δ first tokens + Δ waiting - Δ preemptions is a second lower bound (a preempted request waits again), and the larger of
the two is taken over the window. Requests aborted before their first token are seen by neither.

- A counter that fell, or another start time, is a restart: all that is counted or in flight since is new, what was in
  flight before is lost and not negative. Pods that vanish take their requests in flight with them in the same way.
- Looks that do not advance (duplicates, out of order) are passed over; stamps from the future are refused. After a gap
  of more than `LARGEST_GAP` intervals, and after the clock went back, counting begins anew, so a clock that jumps ahead
  cannot stretch the time over which few requests came.
- A pod's rate is its arrivals over the time it was looked at; a pod that came or went within the window counts with the
  part of the window in which it was there.
- Pods that give no sample for more than two intervals are missing. If at least half of the pods answer, the others are
  taken to get as much as those on average, and the rate is never below that of the last complete measurement: then
  traffic can raise a plan but not lower it (``complete`` is False). If fewer answer, there is no measurement.
- Where prefill and decode are served by different pods, every request is seen twice: a vLLM prefill pod counts one
  that ends after its first token, a vLLM or SGLang decode pod counts the same request with its whole prompt and output.
  So arrivals and prompt sizes are those of prefill pods (and of pods that serve whole requests), output sizes those of
  decode pods (and of the latter). A request that a router gives to a decode pod alone is not counted; more than a few
  of them are said in ``note``.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from solver.domain.errors import InputError
from solver.domain.fleet import Role
from solver.domain.gpu_mix import RequestBucket
from telemetry.engine_sample import CumulativeHistogram, EngineSample
from telemetry.request_sizes import SizeGroup, SizeRecord, request_buckets, sizes_of

STALE_AFTER = 2.0
"""Intervals without a sample after which a pod is missing."""
LARGEST_GAP = 2.5
"""Intervals between two samples up to which arrivals are counted across; half an interval is for jitter."""
LARGEST_LEAD_S = 5.0
"""Stamps further ahead than this are from the future."""
LARGEST_STEP_BACK_S = 1.0
"""How far back the clock may go before counting begins anew: what slewing it does."""
_RESTART_S = 1.0
UNSEEN_RATIO = 1.25
"""Arrivals at decode pods over those at prefill pods from which on it is said that they differ."""
UNSEEN_COUNT = 20.0
"""And so many requests more, within the window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTraffic:
    """The traffic of a service as it was measured."""

    rate_rps: float
    buckets: tuple[RequestBucket, ...]
    """Rates sum to ``rate_rps``; at rate 0 the last known sizes; none if none were ever seen."""
    sampled_at_s: float
    """Of the oldest sample in it, in seconds since 1970."""
    pods: int
    """Pods that were measured."""
    expected_pods: int
    series: tuple[str, ...]
    """Names of the series that were used."""
    complete: bool
    """False: part of the traffic is assumed; it may raise a plan, never lower it."""
    note: str = ""
    """What is missing, if anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleTraffic:
    """There is no measurement: the last plan holds."""

    reason: str
    """One line: what is missing, and where."""
    age_s: float | None = None
    """Age of the newest sample; None if there never was one."""
    missing: tuple[str, ...] = ()
    """Names of series that are needed and were not there."""
    denied: bool = False
    """The source refuses who asks, or what it is to be brought cannot be read: somebody has to do something."""


Traffic = MeasuredTraffic | StaleTraffic


@dataclass(frozen=True, slots=True)
class Step:
    """What came in between two looks at a pod."""

    from_s: float
    to_s: float
    arrivals: float
    """Δ finished + Δ in flight: may be negative where gauge and counter are not of the same instant."""
    starts: float | None
    """Δ first tokens + Δ waiting - Δ preemptions, where these are known."""
    restarted: bool


def arrivals_between(earlier: EngineSample, later: EngineSample) -> Step:
    """Return what arrived at a pod between two sound samples of it."""
    restarted = _restarted(earlier, later)
    before = replace(
        earlier,
        running=0.0,
        waiting=0.0,
        finished_total=0.0,
        first_tokens_total=None if earlier.first_tokens_total is None else 0.0,
        preemptions_total=None if earlier.preemptions_total is None else 0.0,
    )
    since = before if restarted else earlier
    starts, started_before = _started(later), _started(since)
    return Step(
        from_s=earlier.t_s,
        to_s=later.t_s,
        arrivals=_arrived(later) - _arrived(since),
        starts=None if starts is None or started_before is None else starts - started_before,
        restarted=restarted,
    )


def _arrived(sample: EngineSample) -> float:
    if sample.finished_total is None or sample.running is None or sample.waiting is None:
        raise InputError(
            "a sample without its requests was counted", right="samples that miss no series are counted"
        )
    return sample.finished_total + sample.running + sample.waiting


def _started(sample: EngineSample) -> float | None:
    if sample.first_tokens_total is None or sample.preemptions_total is None or sample.waiting is None:
        return None
    return sample.first_tokens_total + sample.waiting - sample.preemptions_total


def _restarted(earlier: EngineSample, later: EngineSample) -> bool:
    if (
        earlier.started_s is not None
        and later.started_s is not None
        and abs(later.started_s - earlier.started_s) > _RESTART_S
    ):
        return True
    pairs = (
        (earlier.finished_total, later.finished_total),
        (earlier.first_tokens_total, later.first_tokens_total),
        (earlier.preemptions_total, later.preemptions_total),
        (_count(earlier.prompt_tokens), _count(later.prompt_tokens)),
    )
    return any(then is not None and now is not None and now < then for then, now in pairs)


def _count(histogram: CumulativeHistogram | None) -> float | None:
    return None if histogram is None else histogram.count


@dataclass(slots=True, kw_only=True)
class _Pod:
    """What is remembered of one pod."""

    listed_since_s: float
    role: Role = Role.BOTH
    listed: bool = True
    last: EngineSample | None = None
    steps: deque[Step] = field(default_factory=deque)
    reason: str = "not sampled yet"
    missing: tuple[str, ...] = ()

    @property
    def enters(self) -> bool:
        """Whether requests come to it first, so that they are counted here."""
        return self.role is not Role.DECODE


class TrafficEstimator:
    """Remembers the last look at every pod of one service and what came in since.

    Parameters
    ----------
    interval_s
        Time between two rounds.
    window_s
        Time over which the rate is taken.
    memory_s
        Time after which a request's size weighs 1/e; twice the window if left out.
    """

    def __init__(
        self, *, interval_s: float = 15.0, window_s: float = 60.0, memory_s: float | None = None
    ) -> None:
        if not 0 < interval_s <= window_s < math.inf:
            raise InputError(
                f"interval {interval_s:g} s and window {window_s:g} s",
                right="0 < interval <= window, both in seconds",
            )
        self.interval_s = interval_s
        self.window_s = window_s
        memory = 2 * window_s if memory_s is None else memory_s
        self._prompts = SizeRecord(memory_s=memory)
        self._outputs = SizeRecord(memory_s=memory)
        self._pods: dict[str, _Pod] = {}
        self._first_s: float | None = None
        self._round_s = -math.inf
        self._complete_rps: float | None = None
        self._known: tuple[tuple[SizeGroup, ...], tuple[SizeGroup, ...]] | None = None

    def update(
        self,
        now_s: float,
        samples: Mapping[str, EngineSample | str],
        *,
        roles: Mapping[str, Role] | None = None,
    ) -> None:
        """Take in a round: for every pod that should answer now its sample, or why there is none.

        ``roles``: which pods serve only one phase; the others serve whole requests.
        """
        if now_s < self._round_s - LARGEST_STEP_BACK_S:
            for pod in self._pods.values():
                pod.last = None
                pod.steps.clear()
                pod.listed_since_s = now_s
            self._first_s = now_s
        if self._first_s is None:
            self._first_s = now_s
        self._round_s = now_s
        for pod in self._pods.values():
            pod.listed = False
        prompts: list[CumulativeHistogram] = []
        outputs: list[CumulativeHistogram] = []
        for name, sample in samples.items():
            pod = self._pods.setdefault(name, _Pod(listed_since_s=now_s))
            pod.listed = True
            pod.role = (roles or {}).get(name, Role.BOTH)
            refused = self._refused(sample, now_s)
            if isinstance(sample, str) or refused:
                pod.reason = refused
                pod.missing = () if isinstance(sample, str) else sample.missing
            else:
                for prompt, output in self._accept(pod, sample):
                    if pod.role is not Role.DECODE:
                        prompts.append(prompt)
                    if pod.role is not Role.PREFILL:
                        outputs.append(output)
        self._prompts.add(prompts, t_s=now_s)
        self._outputs.add(outputs, t_s=now_s)
        for name, pod in list(self._pods.items()):
            while pod.steps and pod.steps[0].to_s <= now_s - self.window_s:
                pod.steps.popleft()
            if not pod.listed and not pod.steps:
                del self._pods[name]

    def _refused(self, sample: EngineSample | str, now_s: float) -> str:
        """Say why a sample cannot be used; empty if it can."""
        if isinstance(sample, str):
            return sample or "no answer"
        if sample.missing:
            return f"no {', '.join(sample.missing)}"
        if not sample.t_s <= now_s + LARGEST_LEAD_S:
            return f"stamped {sample.t_s - now_s:.0f} s in the future"
        if now_s - sample.t_s > STALE_AFTER * self.interval_s:
            return f"stamped {now_s - sample.t_s:.0f} s ago"
        return ""

    def _accept(
        self, pod: _Pod, sample: EngineSample
    ) -> Iterable[tuple[CumulativeHistogram, CumulativeHistogram]]:
        """Count what came since the last sample; return the sizes of what was finished since."""
        last = pod.last
        pod.last = replace(sample, ttft_s=None, inter_token_s=None, e2e_s=None, queue_s=None)  # memory
        pod.reason, pod.missing = "", ()
        if last is None:
            return ()
        if sample.t_s <= last.t_s:
            pod.last = last
            pod.reason = "its stamp does not advance"
            return ()
        if sample.t_s - last.t_s > LARGEST_GAP * self.interval_s:
            return ()
        step = arrivals_between(last, sample)
        pod.steps.append(step)
        prompts, outputs = sample.prompt_sizes, sample.generation_sizes
        if prompts is None or outputs is None:
            return ()
        if step.restarted:
            return ((prompts, outputs),)
        return ((prompts.since(last.prompt_sizes), outputs.since(last.generation_sizes)),)

    def measure(self, now_s: float) -> Traffic:
        """Return the traffic as it stands, or why it is not known."""
        listed = [pod for pod in self._pods.values() if pod.listed]
        newest = max((pod.last.t_s for pod in self._pods.values() if pod.last is not None), default=None)
        age_s = None if newest is None else max(0.0, now_s - newest)
        if self._first_s is None:
            return StaleTraffic(reason="nothing was sampled yet")
        if not listed:
            return StaleTraffic(reason="there is no pod to ask", age_s=age_s)
        since_s = max(self._round_s - self.window_s, self._first_s)
        span_s = self._round_s - since_s
        rated, starting, absent = self._sorted(now_s)
        asked, lost = [pod for pod in listed if pod.enters], [pod for pod in absent if pod.enters]
        heard = [pod for pod in rated if pod.enters]
        if not asked:
            reason = "there is no pod that takes requests in, only those of role decode"
            return StaleTraffic(reason=reason, age_s=age_s)
        if not heard:
            return self._unmeasured([pod for pod in starting if pod.enters], lost, now_s, age_s)
        if len(heard) < len(lost):
            return StaleTraffic(
                reason=f"only {len(heard)} of {len(asked)} pods answer: {self._why(lost, now_s)}",
                age_s=age_s,
                missing=_missing(lost),
            )
        rate = self._arrivals(heard, len(lost), since_s, span_s)
        complete = not absent and not starting and span_s >= self.window_s / 2
        if complete:
            self._complete_rps = rate
        elif self._complete_rps is not None:
            rate = max(rate, self._complete_rps)
        prompts, outputs = self._sizes()
        if rate > 0 and not (prompts and outputs):
            return StaleTraffic(
                reason="no request has finished yet, so their sizes are not known", age_s=age_s
            )
        samples = [pod.last for pod in rated if pod.last is not None]
        return MeasuredTraffic(
            rate_rps=rate,
            buckets=request_buckets(rate, prompts, outputs),
            sampled_at_s=min(sample.t_s for sample in samples),
            pods=len(rated),
            expected_pods=len(listed),
            series=tuple(sorted({name for sample in samples for name in sample.series})),
            complete=complete,
            note=self._note(absent, starting, now_s, complete=complete)
            or self._unseen(rate, [pod for pod in rated if not pod.enters], since_s, span_s),
        )

    def _arrivals(self, heard: list[_Pod], lost: int, since_s: float, span_s: float) -> float:
        """Return what came per second to pods that take requests in; the lost ones are taken to get the mean."""
        rate = sum(self._rate(pod, since_s, span_s) for pod in heard) * (1 + lost / len(heard))
        gone = [pod for pod in self._pods.values() if pod.enters and not pod.listed]
        return rate + sum(self._rate(pod, since_s, span_s) for pod in gone)

    def _unseen(self, rate: float, decoding: list[_Pod], since_s: float, span_s: float) -> str:
        """Say that decode pods are sent what no other pod sees."""
        decoded = sum(self._rate(pod, since_s, span_s) for pod in decoding)
        if decoded <= UNSEEN_RATIO * rate or (decoded - rate) * span_s < UNSEEN_COUNT:
            return ""
        return (  # without figures: what is said anew at every look is written anew
            "decode pods get over a quarter more requests than those that take them in: what is sent to decode pods"
            " alone is not counted"
        )

    def _sorted(self, now_s: float) -> tuple[list[_Pod], list[_Pod], list[_Pod]]:
        """Return the listed pods that have a rate, those too new to have one, and those that are missing."""
        rated: list[_Pod] = []
        starting: list[_Pod] = []
        absent: list[_Pod] = []
        for pod in self._pods.values():
            if not pod.listed:
                continue
            if pod.steps and self._fresh(pod, now_s):
                rated.append(pod)
            elif now_s - pod.listed_since_s <= LARGEST_GAP * self.interval_s:
                starting.append(pod)
            else:
                absent.append(pod)
        return rated, starting, absent

    def _rate(self, pod: _Pod, since_s: float, span_s: float) -> float:
        """Return what came to a pod, per second of the window."""
        seen_s = sum(step.to_s - step.from_s for step in pod.steps)
        if not pod.steps or span_s <= 0:
            return 0.0
        arrivals = sum(step.arrivals for step in pod.steps)
        starts = sum(-math.inf if step.starts is None else step.starts for step in pod.steps)
        until_s = self._round_s if pod.listed else pod.steps[-1].to_s
        there_s = until_s - max(since_s, pod.listed_since_s)
        return max(0.0, arrivals, starts) / seen_s * min(1.0, max(0.0, there_s) / span_s)

    def _sizes(self) -> tuple[tuple[SizeGroup, ...], tuple[SizeGroup, ...]]:
        """Return the sizes of late; if none was seen, those of all requests since the engines started."""
        prompts, outputs = self._prompts.groups(), self._outputs.groups()
        if prompts and outputs:
            return prompts, outputs
        if self._known is not None:
            return self._known
        samples = [(pod.role, pod.last) for pod in self._pods.values() if pod.last is not None]
        prompts = sizes_of(sample.prompt_sizes for role, sample in samples if role is not Role.DECODE)
        outputs = sizes_of(sample.generation_sizes for role, sample in samples if role is not Role.PREFILL)
        if prompts and outputs:
            self._known = prompts, outputs  # a restart of the engines must not forget them
        return prompts, outputs

    def _unmeasured(
        self, starting: list[_Pod], absent: list[_Pod], now_s: float, age_s: float | None
    ) -> StaleTraffic:
        silent = [*absent, *starting]
        return StaleTraffic(reason=self._why(silent, now_s), age_s=age_s, missing=_missing(silent))

    def _note(self, absent: list[_Pod], starting: list[_Pod], now_s: float, *, complete: bool) -> str:
        if absent:
            return f"pods that do not answer: {len(absent)}; {self._why(absent, now_s)}"
        if starting:
            return f"new pods: {len(starting)}"
        return "" if complete else "measured for less than half of the window"

    def _why(self, pods: list[_Pod], now_s: float) -> str:
        """Say what is wrong with the first of the pods, and how many others there are."""
        name = next(name for name, pod in self._pods.items() if pod is pods[0])
        others = f" (and {len(pods) - 1} more)" if len(pods) > 1 else ""
        reason = pods[0].reason
        if not reason:
            reason = "one sample so far, a rate needs two" if self._fresh(pods[0], now_s) else "no new sample"
        return f"{name}: {reason}{others}"

    def _fresh(self, pod: _Pod, now_s: float) -> bool:
        return pod.last is not None and now_s - pod.last.t_s <= STALE_AFTER * self.interval_s


def _missing(pods: Iterable[_Pod]) -> tuple[str, ...]:
    return tuple(sorted({name for pod in pods for name in pod.missing}))
