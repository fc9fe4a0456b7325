"""Reads the metrics page of a serving engine (vLLM, SGLang) into an `EngineSample`.

It exists so that the engines' names for things, which change from version to version, are known in one place. It
fetches nothing (`telemetry.sources.scrape` does) and counts no arrivals (`telemetry.traffic` does).

A value that is NaN, negative, infinite or at least 2^63 - 16 (how blanks of some exporters look) makes its quantity
missing, also if other engines of the same endpoint gave a sound one: a sum of some is not a sum.

Traps that are dealt with here:

- vLLM labels series by ``engine`` (data-parallel rank) and ``finished_reason``: they are summed.
- SGLang's tensor, pipeline and expert ranks may each tell the same queue: the largest of them counts; ranks of data
  parallelism are summed. With priorities the total stands under ``priority=""`` beside its parts.
- prometheus_client writes a labelled counter only after its first event. So a page that has the gauges, nothing in
  flight and none of the series that a finished request leaves is one on which nothing has finished yet: zero.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from solver.domain.errors import InputError, Place
from telemetry.engine_sample import CumulativeHistogram, EngineSample, merged

MOST_LINES = 20_000
"""Lines that matter; a page of vLLM has about 150 for each of its engines."""
BLANK = float(2**63 - 16)
_STARTED = "process_start_time_seconds"
_NAME = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)")
_LARGEST_QUOTE = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineNames:
    """Names of an engine's series: of several, the first that is there counts (newest first)."""

    running: tuple[str, ...]
    waiting: tuple[str, ...]
    further_queues: tuple[str, ...] = ()
    """Gauges of requests that are neither running nor waiting; all that are there are added."""
    finished: tuple[str, ...]
    preemptions: tuple[str, ...] = ()
    kv_use: tuple[str, ...]
    prompt_tokens: tuple[str, ...]
    generation_tokens: tuple[str, ...]
    prompt_total: tuple[str, ...]
    generation_total: tuple[str, ...]
    ttft: tuple[str, ...]
    inter_token: tuple[str, ...]
    e2e: tuple[str, ...]
    queue: tuple[str, ...]
    repeated_by: frozenset[str] = frozenset()
    """Labels whose values all tell the same."""
    parts_by: str | None = None
    """Label under whose empty value the whole stands, and under others its parts."""

    @property
    def histograms(self) -> tuple[str, ...]:
        """Names of all histograms."""
        return (
            *self.prompt_tokens,
            *self.generation_tokens,
            *self.ttft,
            *self.inter_token,
            *self.e2e,
            *self.queue,
        )

    @property
    def plain(self) -> tuple[str, ...]:
        """Names of all gauges and counters."""
        return (
            *self.running,
            *self.waiting,
            *self.further_queues,
            *self.finished,
            *self.preemptions,
            *self.kv_use,
            *self.prompt_total,
            *self.generation_total,
        )


ENGINES = {
    "vllm": EngineNames(
        running=("vllm:num_requests_running",),
        waiting=("vllm:num_requests_waiting",),
        further_queues=("vllm:num_requests_swapped",),  # version 0 engine
        finished=("vllm:request_success_total",),
        preemptions=("vllm:num_preemptions_total",),
        kv_use=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        prompt_tokens=("vllm:request_prompt_tokens",),
        generation_tokens=("vllm:request_generation_tokens",),
        prompt_total=("vllm:prompt_tokens_total",),
        generation_total=("vllm:generation_tokens_total",),
        ttft=("vllm:time_to_first_token_seconds",),
        inter_token=(
            "vllm:inter_token_latency_seconds",
            "vllm:request_time_per_output_token_seconds",
            "vllm:time_per_output_token_seconds",
        ),
        e2e=("vllm:e2e_request_latency_seconds",),
        queue=("vllm:request_queue_time_seconds",),
    ),
    "sglang": EngineNames(
        running=("sglang:num_running_reqs",),
        waiting=("sglang:num_queue_reqs",),
        further_queues=(
            "sglang:num_grammar_queue_reqs",
            "sglang:num_prefill_bootstrap_queue_reqs",
            "sglang:num_prefill_prealloc_queue_reqs",
            "sglang:num_prefill_inflight_queue_reqs",
            "sglang:num_prefill_infight_queue_reqs",  # as 0.4 spelt it
            "sglang:num_decode_prealloc_queue_reqs",
            "sglang:num_decode_transfer_queue_reqs",
        ),
        finished=("sglang:num_requests_total",),
        kv_use=("sglang:token_usage",),
        prompt_tokens=("sglang:prompt_tokens_histogram",),
        generation_tokens=("sglang:generation_tokens_histogram",),
        prompt_total=("sglang:prompt_tokens_total",),
        generation_total=("sglang:generation_tokens_total",),
        ttft=("sglang:time_to_first_token_seconds",),
        inter_token=("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"),
        e2e=("sglang:e2e_request_latency_seconds",),
        queue=("sglang:queue_time_seconds", "sglang:queue_time_s"),
        repeated_by=frozenset({"tp_rank", "pp_rank", "moe_ep_rank"}),
        parts_by="priority",
    ),
}


def engine_names(engine: str) -> EngineNames:
    """Return the names of an engine's series (InputError if the engine is not known)."""
    try:
        return ENGINES[engine]
    except KeyError:
        raise InputError(f"engine {engine!r} is not known", right=f"one of {', '.join(ENGINES)}") from None


def sound(value: float) -> float | None:
    """Return the value of a gauge or counter, None where it means nothing."""
    return value if 0 <= value < BLANK else None


def read_engine_metrics(
    text: str, *, engine: str, t_s: float, source: str, model_name: str | None = None
) -> EngineSample:
    """Read a Prometheus text exposition; quantities that are not there are None and named in ``missing``.

    ``t_s`` is when the page was received; stamps on the page itself, which are rare, win. With ``model_name``, series
    of other models are passed over.

    Raises
    ------
    InputError
        One line with ``source`` and the line if the text is no such page.
    """
    names = engine_names(engine)
    page = _Page(names, _samples(text, names, source), source, model_name)
    running = page.number(names.running)
    waiting = page.number(names.waiting)
    for name in names.further_queues:
        more = page.number((name,))
        if page.has((name,)):
            waiting = None if waiting is None or more is None else waiting + more
    finished = page.number(names.finished)
    prompt_total = page.number(names.prompt_total)
    generation_total = page.number(names.generation_total)
    prompt = page.histogram(names.prompt_tokens)
    generation = page.histogram(names.generation_tokens)
    if running == 0 and waiting == 0 and not page.has(_left_by_a_finished_request(names)):
        finished = prompt_total = generation_total = 0.0
    ttft = page.histogram(names.ttft)
    missing = [
        alternatives[0]
        for alternatives, known in (
            (names.running, running is not None),
            (names.waiting, waiting is not None),
            (names.finished, finished is not None),
            (names.prompt_tokens, prompt is not None or prompt_total is not None),
            (names.generation_tokens, generation is not None or generation_total is not None),
        )
        if not known
    ]
    return EngineSample(
        t_s=t_s if page.stamp_s is None else page.stamp_s,
        engine=engine,
        running=running,
        waiting=waiting,
        finished_total=finished,
        first_tokens_total=None if ttft is None else ttft.count,
        preemptions_total=page.number(names.preemptions),
        prompt_tokens=prompt,
        generation_tokens=generation,
        prompt_tokens_total=prompt_total,
        generation_tokens_total=generation_total,
        kv_use_ratio=page.number(names.kv_use, largest=True),
        ttft_s=ttft,
        inter_token_s=page.histogram(names.inter_token),
        e2e_s=page.histogram(names.e2e),
        queue_s=page.histogram(names.queue),
        started_s=page.number((_STARTED,)),
        series=tuple(sorted(page.used)),
        missing=tuple(missing),
    )


def _left_by_a_finished_request(names: EngineNames) -> tuple[str, ...]:
    return (
        *names.finished,
        *names.prompt_total,
        *names.generation_total,
        *names.prompt_tokens,
        *names.generation_tokens,
        *names.e2e,
    )


def _samples(text: str, names: EngineNames, source: str) -> list[Sample]:
    """Parse the lines that matter: parsing costs 16 µs a line, and most of a page is about other things."""
    wanted = {_STARTED, *names.plain}
    wanted.update(f"{name}{suffix}" for name in names.histograms for suffix in ("_bucket", "_sum", "_count"))
    kept: list[tuple[int, str]] = []
    first: tuple[int, str] | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        found = _NAME.match(line)
        if found is not None and found[1] in wanted:
            kept.append((number, line))
        elif first is None and line.strip() and not line.lstrip().startswith("#"):
            first = (number, line)
    if len(kept) > MOST_LINES:
        raise InputError(
            f"{len(kept)} lines about requests",
            where=source,
            right=f"at most {MOST_LINES}: is it one engine?",
        )
    if (
        not kept and first is not None
    ):  # another program's page names what it lacks; what is no page is refused
        _parsed([first], source)
    return _parsed(kept, source)


def _parsed(lines: list[tuple[int, str]], source: str) -> list[Sample]:
    try:
        return list(_parse("\n".join(line for _, line in lines)))
    except ValueError:
        for number, line in lines:
            try:
                list(_parse(line))
            except ValueError:
                quote = line.strip()
                quote = quote if len(quote) <= _LARGEST_QUOTE else f"{quote[:_LARGEST_QUOTE]}…"
                raise InputError(
                    f"{quote!r} is no line of metrics",
                    where=Place(source, line=number),
                    right="the engine's metrics page in Prometheus' text format",
                ) from None
        raise


def _parse(text: str) -> Iterator[Sample]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            # A label that is no number would be refused later, without the line.
            if "le" in sample.labels and math.isnan(float(sample.labels["le"])):
                raise ValueError(sample.labels["le"])
            yield sample


class _Page:
    """The samples of one page by name, each name's series kept apart by their labels."""

    def __init__(
        self, names: EngineNames, samples: Iterable[Sample], source: str, model_name: str | None
    ) -> None:
        self.used: set[str] = set()
        self.stamp_s: float | None = None
        self._names = names
        self._series: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for sample in samples:
            labels = sample.labels
            if model_name is not None and labels.get("model_name", model_name) != model_name:
                continue
            series = self._series.setdefault(sample.name, {})
            key = tuple(sorted(labels.items()))
            if key in series:
                raise InputError(
                    f"{sample.name} stands twice with the same labels", where=source, right="each series once"
                )
            series[key] = float(sample.value)
            if sample.timestamp is not None:
                stamp_s = float(sample.timestamp)
                self.stamp_s = stamp_s if self.stamp_s is None else min(self.stamp_s, stamp_s)

    def has(self, names: Iterable[str]) -> bool:
        """Whether any of the series is there, sound or not."""
        return any(name in self._series or f"{name}_count" in self._series for name in names)

    def number(self, alternatives: Iterable[str], *, largest: bool = False) -> float | None:
        """Add up the first of the series that is there (or take its largest value); None unless all are sound."""
        for name in alternatives:
            series = self._series.get(name)
            if series is None:
                continue
            groups: dict[tuple[tuple[str, str], ...], float] = {}
            for labels, value in series.items():
                if self._is_part(labels):
                    continue
                known = sound(value)
                if known is None:
                    return None
                group = tuple([label for label in labels if label[0] not in self._names.repeated_by])
                groups[group] = max(known, groups.get(group, 0.0))
            if not groups:
                return None
            self.used.add(name)
            return max(groups.values()) if largest else sum(groups.values())
        return None

    def _is_part(self, labels: tuple[tuple[str, str], ...]) -> bool:
        part = self._names.parts_by
        return part is not None and any(name == part and value for name, value in labels)

    def histogram(self, alternatives: Iterable[str]) -> CumulativeHistogram | None:
        """Add up the first of the histograms that is there; None unless all are sound."""
        for name in alternatives:
            buckets = self._series.get(f"{name}_bucket")
            if buckets is None:
                continue
            children: dict[tuple[tuple[str, str], ...], dict[float, float]] = {}
            for labels, value in buckets.items():
                edge = next((text for label, text in labels if label == "le"), "nan")
                rest = tuple([label for label in labels if label[0] != "le"])
                children.setdefault(rest, {})[float(edge)] = value
            sums = self._series.get(f"{name}_sum", {})
            whole = merged(histogram_of(child, sums.get(rest)) for rest, child in children.items())
            if whole is not None:
                self.used.add(name)
            return whole
        return None


def histogram_of(buckets: dict[float, float], total: float | None) -> CumulativeHistogram | None:
    """Build a histogram of counts by upper edge; None if a count is not sound, falls, or the last is missing."""
    edges = sorted(buckets)
    counts = [sound(buckets[edge]) for edge in edges]
    known = [count for count in counts if count is not None]
    checked = None if total is None else sound(total)
    if not edges or edges[-1] != math.inf or len(known) < len(edges) or checked is None:
        return None
    if any(later < earlier for earlier, later in pairwise(known)):
        return None
    return CumulativeHistogram(edges=tuple(edges[:-1]), cumulative=tuple(known), total=checked)
