"""A serving engine as a queue, and the metrics pages it would show: what the tests of traffic measure.

Not a test. Pages are written in the shapes of vLLM 0.6 to 0.25 and SGLang 0.4 to 0.5; counts come from a simulated
queue, so tests know what really arrived.
"""

import bisect
import math
from dataclasses import dataclass, field
from itertools import accumulate

from telemetry.engine_sample import CumulativeHistogram, EngineSample

TOKEN_EDGES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
TTFT_EDGES = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SERIES = (
    "process_start_time_seconds",
    "vllm:generation_tokens_total",
    "vllm:inter_token_latency_seconds",
    "vllm:kv_cache_usage_perc",
    "vllm:num_preemptions_total",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:prompt_tokens_total",
    "vllm:request_generation_tokens",
    "vllm:request_prompt_tokens",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds",
)


@dataclass(slots=True)
class Counted:
    """A histogram of the exposition."""

    edges: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.edges) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.edges, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> list[str]:
        seen = 0
        out = []
        for edge, count in zip((*self.edges, math.inf), self.counts, strict=True):
            seen += count
            text = "+Inf" if edge == math.inf else repr(edge)
            out.append(f'{name}_bucket{{{labels},le="{text}"}} {seen}.0')
        return [*out, f"{name}_sum{{{labels}}} {self.total!r}", f"{name}_count{{{labels}}} {seen}.0"]

    def histogram(self) -> CumulativeHistogram:
        return CumulativeHistogram(
            edges=self.edges, cumulative=tuple(accumulate(map(float, self.counts))), total=float(self.total)
        )


@dataclass(slots=True)
class Engine:
    """A first-in first-out queue with so many places; the caller says what happens when."""

    places: int = 4
    edges: tuple[float, ...] = TOKEN_EDGES
    started_s: float = 0.0
    waiting: list[tuple[int, int]] = field(default_factory=list)
    prefilling: list[tuple[int, int]] = field(default_factory=list)
    decoding: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[tuple[int, int]] = field(default_factory=list)
    finished: int = 0
    preemptions: int = 0
    prompts: Counted = field(init=False)
    outputs: Counted = field(init=False)
    ttft: Counted = field(init=False)

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.prompts, self.outputs, self.ttft = Counted(self.edges), Counted(self.edges), Counted(TTFT_EDGES)

    @property
    def running(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    @property
    def queued(self) -> int:
        return len(self.waiting) + len(self.preempted)

    def arrive(self, prompt: int, output: int) -> None:
        self.waiting.append((prompt, output))
        self._fill()

    def first_token(self) -> None:
        if self.prefilling:
            self.decoding.append(self.prefilling.pop(0))
            self.ttft.observe(0.2)

    def finish(self) -> None:
        if self.decoding:
            prompt, output = self.decoding.pop(0)
            self.finished += 1
            self.prompts.observe(prompt)
            self.outputs.observe(output)
            self._fill()

    def abort(self) -> None:
        """Lose a request that got its first token, as vLLM does: nobody counts it."""
        if self.decoding:
            self.decoding.pop(0)
            self._fill()

    def preempt(self) -> None:
        """Put a request that has its first token back into the queue."""
        if self.decoding:
            self.preempted.append(self.decoding.pop(0))
            self.preemptions += 1

    def restart(self, at_s: float) -> None:
        self.waiting, self.prefilling, self.decoding, self.preempted = [], [], [], []
        self.finished = self.preemptions = 0
        self.started_s = at_s
        self._begin()

    def serve_all(self) -> None:
        while self.queued or self.running:
            self._fill()
            self.first_token()
            self.finish()

    def _fill(self) -> None:
        while self.preempted and self.running < self.places:
            self.decoding.append(self.preempted.pop(0))
        while self.waiting and self.running < self.places:
            self.prefilling.append(self.waiting.pop(0))

    def sample(self, t_s: float) -> EngineSample:
        """Return what a reader of `vllm` must find, without the detour (and the cost) of a page."""
        return EngineSample(
            t_s=t_s,
            engine="vllm",
            running=float(self.running),
            waiting=float(self.queued),
            finished_total=float(self.finished),
            first_tokens_total=float(sum(self.ttft.counts)),
            preemptions_total=float(self.preemptions),
            prompt_tokens=self.prompts.histogram(),
            generation_tokens=self.outputs.histogram(),
            prompt_tokens_total=float(self.prompts.total),
            generation_tokens_total=float(self.outputs.total),
            kv_use_ratio=0.25,
            ttft_s=self.ttft.histogram(),
            inter_token_s=Counted(TTFT_EDGES).histogram(),
            started_s=self.started_s,
            series=SERIES,
        )

    def vllm(self, model: str = "m", engine: str = "0", *, start_time: bool = True) -> str:
        """Show the page of a vLLM with one engine."""
        labels = f'engine="{engine}",model_name="{model}"'
        lines = [
            "# HELP vllm:num_requests_running Number of requests in model execution batches.",
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{{{labels}}} {self.running}.0",
            f"vllm:num_requests_waiting{{{labels}}} {self.queued}.0",
            f'vllm:num_requests_waiting_by_reason{{{labels},reason="capacity"}} {self.queued}.0',
            f"vllm:kv_cache_usage_perc{{{labels}}} 0.25",
            f"vllm:num_preemptions_total{{{labels}}} {self.preemptions}.0",
            f"vllm:prompt_tokens_total{{{labels}}} {self.prompts.total!r}",
            f"vllm:generation_tokens_total{{{labels}}} {self.outputs.total!r}",
            "# TYPE vllm:request_success_total counter",
            f'vllm:request_success_total{{{labels},finished_reason="stop"}} {self.finished}.0',
            f'vllm:request_success_total{{{labels},finished_reason="length"}} 0.0',
            f'vllm:request_success_total{{{labels},finished_reason="abort"}} 0.0',
            *self.prompts.lines("vllm:request_prompt_tokens", labels),
            *self.outputs.lines("vllm:request_generation_tokens", labels),
            *self.ttft.lines("vllm:time_to_first_token_seconds", labels),
            *Counted(TTFT_EDGES).lines("vllm:inter_token_latency_seconds", labels),
        ]
        if start_time:
            lines.append(f"process_start_time_seconds {self.started_s!r}")
        return "\n".join(lines) + "\n"

    def sglang(self, model: str = "m", *, histograms: bool = True) -> str:
        """Show the page of an SGLang; as there, counters are not there before their first event."""
        ranks = f'engine_type="unified",model_name="{model}",pp_rank="0",tp_rank="0"'
        labels = f'model_name="{model}"'
        lines = [
            f"sglang:num_running_reqs{{{ranks}}} {self.running}.0",
            f"sglang:num_queue_reqs{{{ranks}}} {self.queued}.0",
            f"sglang:num_grammar_queue_reqs{{{ranks}}} 0.0",
            f"sglang:token_usage{{{ranks}}} 0.5",
        ]
        if self.finished:
            lines += [
                f'sglang:num_requests_total{{{labels},is_streaming="true"}} {self.finished}.0',
                f'sglang:prompt_tokens_total{{{labels},is_streaming="true"}} {self.prompts.total!r}',
                f'sglang:generation_tokens_total{{{labels},is_streaming="true"}} {self.outputs.total!r}',
            ]
            if histograms:
                lines += self.prompts.lines("sglang:prompt_tokens_histogram", labels)
                lines += self.outputs.lines("sglang:generation_tokens_histogram", labels)
        return "\n".join(lines) + "\n"
