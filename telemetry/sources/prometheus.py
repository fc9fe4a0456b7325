"""Reads a service's traffic from a Prometheus server (``/api/v1/query``), with the meaning of `telemetry.traffic`.

It exists for clusters in which engines are scraped already, or must not be scraped by others. It keeps no samples:
rates over the window are the server's, per pod, so that a pod that restarts or vanishes spoils nobody else's.

Per pod (``P`` below is job, namespace, pod and instance):

    arrivals = rate(finished) + deriv(running) + deriv(waiting)     or, where it is larger and no pod restarted,
               rate(first tokens) + deriv(waiting) - rate(preemptions)

never below 0; after a restart in the window, falling queues are not counted as negative arrivals. Sizes come from
``increase`` of the histograms' buckets, also per pod, because engines of one service may have other edges.

Where prefill and decode are served by different pods (``output_selector``), arrivals and prompt sizes are those of the
pods of ``selector``, output sizes those of the pods of ``output_selector``: Prometheus itself cannot tell them apart,
and every request is seen by one of each.

What must be known for a rate to be complete: every pod's newest sample is at most two intervals old, it was there at
the start of the window, none restarted, and as many answer as are expected. Prometheus forgets a target it cannot
reach within an interval, so without ``expected_pods`` a pod that is only unreachable looks like one that was removed.
"""

import asyncio
import json
import math
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from solver.domain.errors import InputError
from telemetry.engine_sample import CumulativeHistogram
from telemetry.request_sizes import SizeGroup, request_buckets, sizes_of
from telemetry.sources.bounded_http import TIMEOUT_S, UnreachableError, http_client
from telemetry.sources.engines import BLANK, engine_names, histogram_of, sound
from telemetry.sources.prometheus_access import (
    QUERY,
    AccessError,
    PrometheusAccess,
    PrometheusServers,
)
from telemetry.traffic import STALE_AFTER, MeasuredTraffic, StaleTraffic, Traffic

LONGEST_SELECTOR = 1024
AT_ONCE = 16
_POD_LABELS = ("job", "namespace", "pod", "instance")
_BY_POD = f"by ({', '.join(_POD_LABELS)})"
_MATCHER = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*("(?:[^"\\\x00-\x1f]|\\["\\nt])*")\s*')
_OK = 200
_ERROR_TYPES = {"bad_data", "canceled", "execution", "internal", "not_found", "timeout", "unavailable"}
_ROUNDING_RATIO = 1e-6

Key = TypeVar("Key", bound=Hashable)
Pod = tuple[str, ...]
Sizes = tuple[tuple[SizeGroup, ...], tuple[SizeGroup, ...]]


def checked_selector(selector: str) -> str:
    """Return label matchers in one form, such as ``namespace="chat",model_name="m"``.

    Raises
    ------
    InputError
        If it is anything but label matchers: it goes into queries as it stands.
    """
    right = 'label matchers such as namespace="chat",model_name="m"'
    if len(selector) > LONGEST_SELECTOR:
        raise InputError(
            f"a selector of {len(selector)} characters", right=f"at most {LONGEST_SELECTOR} characters"
        )
    text = selector.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1].strip()
    matchers: list[str] = []
    at = 0
    while at < len(text):
        found = _MATCHER.match(text, at)
        if found is None:
            raise InputError(
                f"selector {selector!r} is not understood at {text[at : at + 20]!r}", right=right
            )
        if found[1] == "__name__":
            raise InputError("the selector names a series", right="labels only: Ballast names the series")
        matchers.append(f"{found[1]}{found[2]}{found[3]}")
        at = found.end()
        if at < len(text):
            if text[at] != ",":
                raise InputError(
                    f"selector {selector!r} is not understood at {text[at : at + 20]!r}", right=right
                )
            at += 1
    return ",".join(matchers)


@dataclass(frozen=True, slots=True)
class _Row:
    """One element of an answer: the part of the query it belongs to, its pod, its edge, its value."""

    part: str
    pod: Pod
    edge: float | None
    value: float


class PrometheusTraffic:
    """Reads one service's traffic; remembers its last sizes and the last complete rate.

    Parameters
    ----------
    url
        Address of the server, up to where ``/api/v1`` begins.
    selector
        Label matchers that pick the service's engines; if empty, the model's name does.
    output_selector
        Label matchers of the engines that tell how long outputs are, if they are others.
    engine
        ``vllm`` or ``sglang``.
    model_name
        The name that the engines give the model.
    interval_s
        How often Prometheus scrapes them, at most.
    window_s, size_window_s
        Over how long the rate and the sizes are taken.
    timeout_s
        For each of the two questions.
    servers
        What servers are brought.
    namespace
        Who wants to know, as far as that decides what is brought.
    """

    def __init__(
        self,
        *,
        url: str,
        selector: str,
        output_selector: str | None = None,
        engine: str = "vllm",
        model_name: str | None = None,
        interval_s: float = 60.0,
        window_s: float = 120.0,
        size_window_s: float = 300.0,
        timeout_s: float = TIMEOUT_S,
        servers: PrometheusServers | None = None,
        namespace: str | None = None,
    ) -> None:
        self._url = url
        self._address = f"{url.rstrip('/')}{QUERY}"
        self._servers = servers or PrometheusServers()
        self._namespace = namespace
        self._names = engine_names(engine)
        matchers = checked_selector(selector)
        if not matchers and model_name:
            matchers = f"model_name={json.dumps(model_name, ensure_ascii=False)}"
            matchers = checked_selector(matchers)
        if not matchers:
            raise InputError("an empty selector", right='label matchers such as model_name="m"')
        self._matchers = matchers
        self._output_matchers = checked_selector(output_selector or "") or matchers
        self._split = self._output_matchers != matchers
        self._interval_s = interval_s
        self._window_s = window_s
        self._size_window_s = size_window_s
        self._timeout_s = timeout_s
        self._known: Sizes | None = None
        self._complete_rps: float | None = None
        self._newest_s: float | None = None
        self.unreachable = ""
        """Why the server did not answer the last time; empty if it did."""

    def server(self) -> tuple[str, PrometheusAccess | None]:
        """Return where questions go, and what they bring.

        Raises
        ------
        AccessError
            There is nothing that may be brought for this namespace.
        """
        return self._address, self._servers.access_to(self._url, namespace=self._namespace)

    async def read(
        self,
        *,
        now_s: float,
        expected_pods: int | None = None,
        at_s: float | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> Traffic:
        """Ask for the traffic now (or as it was ``at_s``); whatever goes wrong is the reason why there is none.

        ``expected_pods``: how many engines should answer now.
        """
        if client is None:
            async with http_client() as own:
                return await self.read(now_s=now_s, expected_pods=expected_pods, at_s=at_s, client=own)
        self.unreachable = ""
        try:
            told_s, rows = await self._ask(client, self._rate_query(), at_s)
            self._check_clock(told_s - (now_s if at_s is None else at_s))
            return await self._judged(client, told_s, rows, expected_pods)
        except InputError as error:
            self.unreachable = str(error) if isinstance(error, UnreachableError) else ""
            return self.unread(str(error), now_s=now_s, denied=isinstance(error, AccessError))

    def unread(self, reason: str, *, now_s: float, denied: bool = False) -> StaleTraffic:
        """Say that there is no measurement, for a reason known elsewhere."""
        age_s = None if self._newest_s is None else max(0.0, now_s - self._newest_s)
        return StaleTraffic(reason=reason, age_s=age_s, denied=denied)

    def _check_clock(self, ahead_s: float) -> None:
        if abs(ahead_s) > STALE_AFTER * self._interval_s:
            where = "ahead of" if ahead_s > 0 else "behind"
            raise InputError(f"its clock is {abs(ahead_s):.0f} s {where} ours", where=self._address)

    async def _judged(
        self, client: httpx.AsyncClient, told_s: float, rows: Iterable[_Row], expected_pods: int | None
    ) -> Traffic:
        parts: dict[str, dict[Pod, float]] = {}
        for row in rows:
            parts.setdefault(row.part, {})[row.pod] = row.value
        stamps = parts.get("stamp", {})
        newest_s = max(stamps.values(), default=-math.inf)
        if math.isfinite(newest_s):
            self._newest_s = newest_s
        rates = {pod: rate for pod in _pods(parts) if (rate := _arrivals(parts, pod)) is not None}
        fresh = {pod for pod, stamp_s in stamps.items() if told_s - stamp_s <= STALE_AFTER * self._interval_s}
        rated = fresh & rates.keys()
        before = parts.get("before", {}).keys()
        starting = fresh - rated - before
        absent = max(len(stamps), expected_pods or 0) - len(rated) - len(starting)
        if not rated or len(rated) < absent:
            return await self._unmeasured(client, told_s, stamps, rated, absent)
        gone = rates.keys() - stamps.keys()
        rate = sum(rates[pod] for pod in rated) * (1 + absent / len(rated))
        if not absent:
            rate += sum(rates[pod] for pod in gone)
        notes = [
            f"pods that do not answer: {absent}" if absent else "",
            f"new pods: {len(starting | (rated - before))}" if starting or rated - before else "",
            "a pod restarted" if any(value != 0 for value in parts.get("restarts", {}).values()) else "",
            f"pods that vanished: {len(gone)}" if gone and expected_pods is None else "",
        ]
        complete = not any(notes)
        if complete:
            self._complete_rps = rate
        elif self._complete_rps is not None:
            rate = max(rate, self._complete_rps)
        sizes = await self._sizes(client, told_s)
        if rate > 0 and sizes is None:
            return StaleTraffic(
                reason="no request has finished yet, so their sizes are not known", age_s=told_s - newest_s
            )
        return MeasuredTraffic(
            rate_rps=rate,
            buckets=() if sizes is None else request_buckets(rate, *sizes),
            sampled_at_s=min(stamps[pod] for pod in rated),
            pods=len(rated),
            expected_pods=len(rated) + len(starting) + absent,
            series=self._needed(),
            complete=complete,
            note="; ".join(note for note in notes if note),
        )

    async def _unmeasured(
        self,
        client: httpx.AsyncClient,
        told_s: float,
        stamps: Mapping[Pod, float],
        rated: set[Pod],
        absent: int,
    ) -> StaleTraffic:
        """Find out what is missing."""
        age_s = None if self._newest_s is None else max(0.0, told_s - self._newest_s)
        present = await self._present(client, told_s)
        missing = tuple(name for name in self._needed() if name not in present)
        if missing:
            reason = f"no {', '.join(missing)} with {self._matchers}"
        elif rated:
            reason = f"only {len(rated)} of {len(rated) + absent} pods answer"
        elif age_s is not None and age_s > STALE_AFTER * self._interval_s:
            reason = f"the newest of {len(stamps)} pods' samples is {age_s:.0f} s old"
        else:
            reason = "no pod has two sound samples in the window"
        return StaleTraffic(reason=f"{self._address}: {reason}", age_s=age_s, missing=missing)

    async def _present(self, client: httpx.AsyncClient, told_s: float) -> set[str]:
        pattern = "|".join(self._needed())
        query = f'count by (__name__) ({{__name__=~"{pattern}",{self._matchers}}})'
        elements = await self._elements(client, query, told_s)
        return {labels.get("__name__", "") for labels, _ in elements}

    def _needed(self) -> tuple[str, ...]:
        names = self._names
        return (names.running[0], names.waiting[0], names.finished[0])

    async def _sizes(self, client: httpx.AsyncClient, told_s: float) -> Sizes | None:
        """Return the sizes of late, else the last known, else those since the engines started."""
        for window_s in (self._size_window_s, None):
            _, rows = await self._ask(client, self._size_query(window_s), told_s)
            prompts, outputs = _size_groups(rows, split=self._split)
            if prompts and outputs:
                self._known = prompts, outputs
            if self._known is not None:
                return self._known
        return None

    def _selected(self, name: str, window_s: float | None = None, *, matchers: str | None = None) -> str:
        part = self._names.parts_by
        whole = "" if part is None or name not in self._gauges() else f',{part}=""'
        span = "" if window_s is None else f"[{_seconds(window_s)}]"
        return f"{name}{{{matchers or self._matchers}{whole}}}{span}"

    def _gauges(self) -> tuple[str, ...]:
        return (*self._names.running, *self._names.waiting)

    def _once(self, vector: str) -> str:
        """Count ranks that tell the same once."""
        repeated = ", ".join(sorted(self._names.repeated_by))
        return f"max without ({repeated}) ({vector})" if repeated else vector

    def _rate_query(self) -> str:
        names, window_s = self._names, self._window_s
        running, waiting = names.running[0], names.waiting[0]
        finished = self._selected(names.finished[0], window_s)
        queries = {
            "stamp": f"max {_BY_POD} (timestamp({self._selected(running)}))",
            "before": f"max {_BY_POD} ({self._selected(running)} offset {_seconds(window_s)})",
            "finished": f"sum {_BY_POD} (rate({finished})) {_sound(finished)}",
            "restarts": f"sum {_BY_POD} (resets({finished}))",
        }
        for part, name in (("running", running), ("waiting", waiting)):
            selected = self._selected(name, window_s)
            queries[part] = f"sum {_BY_POD} ({self._once(f'deriv({selected})')}) {_sound(selected)}"
        if names.preemptions:
            queries["first"] = f"sum {_BY_POD} (rate({self._selected(f'{names.ttft[0]}_count', window_s)}))"
            queries["preempted"] = f"sum {_BY_POD} (rate({self._selected(names.preemptions[0], window_s)}))"
        return _joined(queries)

    def _size_query(self, window_s: float | None) -> str:
        def grown(name: str, matchers: str) -> str:
            selected = self._selected(name, window_s, matchers=matchers)
            return selected if window_s is None else f"increase({selected})"

        names = self._names
        by_edge = _BY_POD.replace(")", ", le)")
        queries = {"requests": f"sum {_BY_POD} ({grown(names.finished[0], self._matchers)})"}
        if self._split:
            finished = grown(names.finished[0], self._output_matchers)
            queries["output_requests"] = f"sum {_BY_POD} ({finished})"
        for part, matchers, histogram, total in (
            ("prompt", self._matchers, names.prompt_tokens[0], names.prompt_total[0]),
            ("output", self._output_matchers, names.generation_tokens[0], names.generation_total[0]),
        ):
            queries[part] = f"sum {by_edge} ({grown(f'{histogram}_bucket', matchers)})"
            queries[f"{part}_sum"] = f"sum {_BY_POD} ({grown(f'{histogram}_sum', matchers)})"
            queries[f"{part}_total"] = f"sum {_BY_POD} ({grown(total, matchers)})"
        return _joined(queries)

    async def _ask(
        self, client: httpx.AsyncClient, query: str, at_s: float | None
    ) -> tuple[float, list[_Row]]:
        """Return the time of the answer and its rows."""
        elements = await self._elements(client, query, at_s)
        told_s = next((value for labels, value in elements if labels.get("part") == "now"), None)
        if told_s is None or not math.isfinite(told_s):
            raise self._malformed("it does not say of what time it is")
        rows = []
        for labels, value in elements:
            edge = labels.get("le")
            rows.append(
                _Row(
                    labels.get("part", ""),
                    tuple(labels.get(label, "") for label in _POD_LABELS),
                    None if edge is None else self._number(edge),
                    value,
                )
            )
        return told_s, rows

    async def _elements(
        self, client: httpx.AsyncClient, query: str, at_s: float | None
    ) -> list[tuple[dict[str, str], float]]:
        form = {"query": query, "timeout": _seconds(self._timeout_s)}
        if at_s is not None:
            form["time"] = f"{at_s:.3f}"
        status, body = await self._servers.query(
            client,
            self._url,
            form,
            namespace=self._namespace,
            source=self._address,
            timeout_s=self._timeout_s,
        )
        return self._parsed(status, body)

    def _parsed(self, status: int, body: bytes) -> list[tuple[dict[str, str], float]]:
        """Take an answer apart; nothing of it but known words is ever quoted."""
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            if status != _OK:
                raise InputError(f"HTTP {status}", where=self._address) from None
            raise self._malformed("it is not JSON") from None
        table = answer if isinstance(answer, dict) else {}
        if status != _OK or table.get("status") != "success":
            kind = table.get("errorType")
            told = f" ({kind})" if isinstance(kind, str) and kind in _ERROR_TYPES else ""
            raise InputError(f"HTTP {status}{told}", where=self._address)
        data = table.get("data")
        result = data.get("result") if isinstance(data, dict) else None
        if not isinstance(result, list) or (isinstance(data, dict) and data.get("resultType") != "vector"):
            raise self._malformed("it holds no vector")
        return [self._element(each) for each in result]

    def _element(self, each: Any) -> tuple[dict[str, str], float]:
        labels = each.get("metric") if isinstance(each, dict) else None
        pair = each.get("value") if isinstance(each, dict) else None
        if (
            not isinstance(labels, dict)
            or not all(isinstance(value, str) for value in labels.values())
            or not isinstance(pair, list)
            or len(pair) != 2
            or not isinstance(pair[1], str)
        ):
            raise self._malformed("an element is not a labelled value")
        return labels, self._number(pair[1])

    def _number(self, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise self._malformed("a value is not a number") from None

    def _malformed(self, what: str) -> InputError:
        return InputError(
            f"the answer cannot be read: {what}",
            where=self._address,
            right="the address of a Prometheus server",
        )


def _joined(queries: Mapping[str, str]) -> str:
    """Ask several questions at once; each element says in its label ``part`` which it answers."""
    parts = {"now": "vector(time())", **queries}
    return " or ".join(f'label_replace({query}, "part", "{part}", "", "")' for part, query in parts.items())


def _sound(selected: str) -> str:
    """Leave out pods with values that mean nothing; NaN comes through to the answer by itself."""
    return (
        f"and (min {_BY_POD} (min_over_time({selected})) >= 0)"
        f" and (max {_BY_POD} (max_over_time({selected})) < {BLANK:.0f})"
    )


def _seconds(duration_s: float) -> str:
    return f"{duration_s:.0f}s" if duration_s == round(duration_s) else f"{duration_s * 1000:.0f}ms"


def _pods(parts: Mapping[str, Mapping[Pod, float]]) -> set[Pod]:
    return {pod for part in ("finished", "running", "waiting") for pod in parts.get(part, {})}


def _arrivals(parts: Mapping[str, Mapping[Pod, float]], pod: Pod) -> float | None:
    """Return a pod's arrivals per second; None if something of it is not known."""
    finished, running, waiting, first, preempted = (
        parts.get(part, {}).get(pod, math.nan)
        for part in ("finished", "running", "waiting", "first", "preempted")
    )
    queues = running + waiting
    if sound(finished) is None or not abs(queues) < BLANK:
        return None
    if parts.get("restarts", {}).get(pod, 0.0) != 0:
        return finished + max(0.0, queues)
    started = first + waiting - preempted
    return max(0.0, finished + queues, started if started < BLANK else 0.0)


def _size_groups(rows: Iterable[_Row], *, split: bool) -> Sizes:
    """Return prompt and output sizes over all pods, each as finely as it is known.

    ``split``: outputs are told by other pods than prompts.
    """
    plain: dict[str, dict[Pod, float]] = {}
    edged: dict[str, dict[Pod, dict[float, float]]] = {}
    for row in rows:
        if row.edge is None:
            plain.setdefault(row.part, {})[row.pod] = row.value
        else:
            edged.setdefault(row.part, {}).setdefault(row.pod, {})[row.edge] = row.value
    found: list[tuple[SizeGroup, ...]] = []
    for part, finished in (("prompt", "requests"), ("output", "output_requests" if split else "requests")):
        histograms: list[CumulativeHistogram | None] = []
        for pod, requests in plain.get(finished, {}).items():
            buckets = _rising(edged.get(part, {}).get(pod, {}))
            histogram = histogram_of(buckets, plain.get(f"{part}_sum", {}).get(pod))
            if histogram is None:
                count, total = sound(requests), sound(plain.get(f"{part}_total", {}).get(pod, math.nan))
                if count is not None and total is not None:
                    histogram = CumulativeHistogram(edges=(), cumulative=(count,), total=total)
            histograms.append(histogram)
        found.append(sizes_of(histograms))
    return found[0], found[1]


def _rising(buckets: Mapping[float, float]) -> dict[float, float]:
    """Even out what rounding alone made fall: ``increase`` extrapolates every edge by itself."""
    evened: dict[float, float] = {}
    most = 0.0
    for edge in sorted(buckets):
        value = buckets[edge]
        evened[edge] = most if most * (1 - _ROUNDING_RATIO) <= value < most else value
        most = max(most, evened[edge])
    return evened


async def read_all(
    services: Mapping[Key, PrometheusTraffic], *, now_s: float, expected_pods: Mapping[Key, int]
) -> dict[Key, Traffic]:
    """Read many services, some at once; a server that did not answer one is not asked for the next."""
    places = asyncio.Semaphore(AT_ONCE)
    down: dict[tuple[str, PrometheusAccess | None], str] = {}

    async def one(key: Key, service: PrometheusTraffic, client: httpx.AsyncClient) -> Traffic:
        async with places:
            try:
                server = service.server()
            except AccessError as error:
                return service.unread(str(error), now_s=now_s, denied=True)
            if server in down:
                return service.unread(down[server], now_s=now_s)
            answer = await service.read(now_s=now_s, expected_pods=expected_pods.get(key), client=client)
            if service.unreachable:
                down[server] = service.unreachable
            return answer

    async with http_client() as client:
        answers = await asyncio.gather(*(one(key, each, client) for key, each in services.items()))
    return dict(zip(services, answers, strict=True))


def all_read(
    services: Mapping[Key, PrometheusTraffic], *, now_s: float, expected_pods: Mapping[Key, int]
) -> dict[Key, Traffic]:
    """Do `read_all` from a thread that runs no event loop."""
    return asyncio.run(read_all(services, now_s=now_s, expected_pods=expected_pods))
