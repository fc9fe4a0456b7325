"""Recorded requests as values: columns of numpy arrays, and what can be asked of them whatever their source.

It exists so that readers of any format, the demand extraction, the simulator and the generator hand each other the
same thing. It reads no file (that is `telemetry.sources.traces`) and generates nothing (`simulator.workload`).

A `Requests` value may be a whole trace or one chunk of it: everything that has to work on traces larger than memory
takes an iterable of `Requests`. A `Trace` is a whole one in memory, with its name and the digest of its source.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solver.domain.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LARGEST_TOKEN_COUNT = 10**9
"""Of a request. Above it a token count is a slip; it also keeps sums over 10^9 requests inside 64 bits."""
LARGEST_TIME_S = 1e10
"""Above it (317 years) a time is not in seconds; seconds since 1970 are fine."""
LARGEST_WINDOW_COUNT = 4_000_000
"""More windows than this are refused: 32 MB of counts, a 10-second window over a year."""


def _frozen(array: Any, kind: type) -> NDArray[Any]:
    view: NDArray[Any] = np.asarray(array, dtype=kind).view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Labels:
    """A text column: request i carries ``names[codes[i]]``."""

    codes: Ints
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "codes", _frozen(self.codes, np.int64))

    def to_list(self) -> list[str]:
        """Return the text of every request."""
        return [self.names[code] for code in self.codes.tolist()]

    def take(self, where: Any) -> "Labels":
        """Return the requests that an index array, mask or slice names; names stay."""
        return Labels(codes=self.codes[where], names=self.names)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefixBlocks:
    """Ids of the prefix blocks of each prompt: request i has ``ids[offsets[i]:offsets[i + 1]]``.

    Equal ids mean a KV block that can be reused. How many tokens a block holds is a fact of the source (Mooncake: 512).
    """

    ids: Ints
    offsets: Ints

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", _frozen(self.ids, np.int64))
        object.__setattr__(self, "offsets", _frozen(self.offsets, np.int64))

    def take(self, where: Any) -> "PrefixBlocks":
        """Return the requests that an index array, mask or slice names."""
        starts, ends = self.offsets[:-1][where], self.offsets[1:][where]
        widths = ends - starts
        offsets = np.concatenate(([0], np.cumsum(widths)))
        index = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - starts, widths)
        return PrefixBlocks(ids=self.ids[index], offsets=offsets)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Requests:
    """Requests in the order of their arrival, one array element each; a column that the source lacks is None.

    ``arrival_s`` counts from the start of the trace (the time zero of the source, or its first row where the source
    has calendar time) and never falls. Token counts are at least 1.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    session: Labels | None = None
    model: Labels | None = None
    request_class: Labels | None = None
    blocks: PrefixBlocks | None = None

    def __post_init__(self) -> None:
        for name, kind in (
            ("arrival_s", np.float64),
            ("prompt_tokens", np.int64),
            ("output_tokens", np.int64),
        ):
            object.__setattr__(self, name, _frozen(getattr(self, name), kind))

    def __len__(self) -> int:
        return len(self.arrival_s)

    def take(self, where: Any) -> "Requests":
        """Return the requests that an index array, mask or slice names."""
        return Requests(
            arrival_s=self.arrival_s[where],
            prompt_tokens=self.prompt_tokens[where],
            output_tokens=self.output_tokens[where],
            session=None if self.session is None else self.session.take(where),
            model=None if self.model is None else self.model.take(where),
            request_class=None if self.request_class is None else self.request_class.take(where),
            blocks=None if self.blocks is None else self.blocks.take(where),
        )

    def at_times(self, arrival_s: Floats) -> "Requests":
        """Return the same requests at other times."""
        return replace(self, arrival_s=arrival_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """A whole recorded trace in memory."""

    name: str
    sha256: str
    """Of the bytes of the source file as they lie on the disk; what ``sha256sum FILE`` prints."""
    requests: Requests

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def arrival_s(self) -> Floats:
        """Arrivals in seconds from the start, never falling."""
        return self.requests.arrival_s

    @property
    def prompt_tokens(self) -> Ints:
        """Tokens of the prompts."""
        return self.requests.prompt_tokens

    @property
    def output_tokens(self) -> Ints:
        """Tokens of the answers."""
        return self.requests.output_tokens

    @property
    def duration_s(self) -> float:
        """Seconds from the first to the last arrival."""
        return float(self.arrival_s[-1] - self.arrival_s[0]) if len(self) else 0.0


def concatenate(chunks: Iterable[Requests]) -> Requests:
    """Join chunks in their order; a text or prefix column stays only if every chunk has it.

    Each chunk is let go before the next is asked for, so the peak is the result and an eighth of it, not twice.
    """
    numbers = _Growing(np.float64), _Growing(np.int64), _Growing(np.int64)
    texts = _GrowingLabels(), _GrowingLabels(), _GrowingLabels()
    blocks = _GrowingBlocks()
    for chunk in chunks:
        for column, more in zip(
            numbers, (chunk.arrival_s, chunk.prompt_tokens, chunk.output_tokens), strict=True
        ):
            column.extend(more)
        for text, labels in zip(texts, (chunk.session, chunk.model, chunk.request_class), strict=True):
            text.extend(labels)
        blocks.extend(chunk.blocks)
    arrival_s, prompt_tokens, output_tokens = (column.taken() for column in numbers)
    session, model, request_class = (text.taken() for text in texts)
    return Requests(
        arrival_s=arrival_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        session=session,
        model=model,
        request_class=request_class,
        blocks=blocks.taken(),
    )


class _Growing:
    """A column that grows in place, by an eighth at a time: large blocks of memory are enlarged, not copied."""

    def __init__(self, kind: type) -> None:
        self._values: NDArray[Any] = np.empty(0, dtype=kind)
        self._length = 0

    def extend(self, more: NDArray[Any]) -> None:
        end = self._length + len(more)
        if end > len(self._values):
            self._resize(max(end, len(self._values) + len(self._values) // 8))
        self._values[self._length : end] = more
        self._length = end

    def taken(self) -> NDArray[Any]:
        """Return the column; it must not grow any more."""
        self._resize(self._length)
        return self._values

    def _resize(self, length: int) -> None:
        # Nobody holds a view yet, which numpy cannot know while a debugger or a profiler looks on.
        self._values.resize(length, refcheck=False)


class _GrowingLabels:
    def __init__(self) -> None:
        self._codes: _Growing | None = _Growing(np.int64)
        self._numbers: dict[str, int] = {}
        self._chunks = 0

    def extend(self, more: Labels | None) -> None:
        self._chunks += 1
        if more is None:
            self._codes = None
            self._numbers.clear()
        if more is None or self._codes is None:
            return
        table = np.array(
            [self._numbers.setdefault(name, len(self._numbers)) for name in more.names], dtype=np.int64
        )
        self._codes.extend(table[more.codes] if len(table) else more.codes)

    def taken(self) -> Labels | None:
        if self._codes is None or not self._chunks:
            return None
        return Labels(codes=self._codes.taken(), names=tuple(self._numbers))


class _GrowingBlocks:
    def __init__(self) -> None:
        self._ids: _Growing | None = _Growing(np.int64)
        self._ends = _Growing(np.int64)
        self._ends.extend(np.zeros(1, dtype=np.int64))
        self._held = 0
        self._chunks = 0

    def extend(self, more: PrefixBlocks | None) -> None:
        self._chunks += 1
        if more is None:
            self._ids = None
        if more is None or self._ids is None:
            return
        self._ends.extend(more.offsets[1:] - more.offsets[0] + self._held)
        used = more.ids[more.offsets[0] : more.offsets[-1]]
        self._ids.extend(used)
        self._held += len(used)

    def taken(self) -> PrefixBlocks | None:
        if self._ids is None or not self._chunks:
            return None
        return PrefixBlocks(ids=self._ids.taken(), offsets=self._ends.taken())


def between(requests: Requests, start_s: float, end_s: float = math.inf) -> Requests:
    """Return the requests that arrive in [start_s, end_s), at their own times."""
    first, last = np.searchsorted(requests.arrival_s, [start_s, end_s], side="left").tolist()
    return requests.take(slice(first, last))


def scaled(requests: Requests, *, rate_ratio: float = 1.0, tokens_ratio: float = 1.0) -> Requests:
    """Return the requests arriving ``rate_ratio`` times as fast, with ``tokens_ratio`` times the tokens.

    The rate is changed by running the clock faster: every request stays, bursts keep their shape and become as much
    steeper, the trace gets shorter. Tokens are rounded to the nearest count, at least 1.

    Raises
    ------
    InputError
        If a request would have more than `LARGEST_TOKEN_COUNT` tokens or arrive after `LARGEST_TIME_S`: nobody could
        read it back.
    """
    if len(requests):
        most = float(max(requests.prompt_tokens.max(), requests.output_tokens.max())) * tokens_ratio
        if most > LARGEST_TOKEN_COUNT:
            raise InputError(
                f"{tokens_ratio:g} times as many tokens make {most:.4g} in one request",
                right=f"a ratio that leaves at most {LARGEST_TOKEN_COUNT:,}",
            )
        _refuse_late(
            float(requests.arrival_s.max()) / rate_ratio,
            f"a rate {rate_ratio:g} times as high",
            "a larger ratio",
        )
    return replace(
        requests,
        arrival_s=requests.arrival_s / rate_ratio,
        prompt_tokens=np.maximum(1, np.rint(requests.prompt_tokens * tokens_ratio)).astype(np.int64),
        output_tokens=np.maximum(1, np.rint(requests.output_tokens * tokens_ratio)).astype(np.int64),
    )


def _refuse_late(latest_s: float, why: str, right: str) -> None:
    if latest_s > LARGEST_TIME_S:
        raise InputError(
            f"{why} puts requests {latest_s:.4g} s from the start",
            right=f"{right}: at most {LARGEST_TIME_S:,.0f} s",
        )


def spread(chunks: Iterable[Requests], *, within_s: float, seed: int) -> Iterator[Requests]:
    """Spread requests that share a time stamp over the ``within_s`` seconds after it, at random but in order.

    A recording that rounds arrivals (Mooncake: to 3 s) makes bursts that never were. Each group of requests with
    one stamp t is spread uniformly over [t, min(t + within_s, next stamp)); where chunks begin makes no difference.

    Raises
    ------
    InputError
        If the last of them could arrive after `LARGEST_TIME_S`.
    """
    randomness = np.random.default_rng(seed)
    held: Requests | None = None
    for chunk in chunks:
        if not len(chunk):
            continue
        whole = chunk if held is None else concatenate((held, chunk))
        # The last stamp's group may go on in the next chunk.
        open_from = int(np.searchsorted(whole.arrival_s, whole.arrival_s[-1], side="left"))
        held = whole.take(slice(open_from, None))
        if open_from:
            yield _spread(whole.take(slice(None, open_from)), float(held.arrival_s[0]), within_s, randomness)
    if held is not None:
        latest_s = float(held.arrival_s[-1]) + within_s
        _refuse_late(latest_s, f"spreading over {within_s:g} s", "a shorter time")
        yield _spread(held, math.inf, within_s, randomness)


def _spread(requests: Requests, next_s: float, within_s: float, randomness: np.random.Generator) -> Requests:
    times = requests.arrival_s
    first = np.flatnonzero(np.concatenate(([True], np.diff(times) > 0)))
    sizes = np.diff(np.concatenate((first, [len(times)])))
    room = np.minimum(np.diff(np.concatenate((times[first], [next_s]))), within_s)
    offset = randomness.random(len(times)) * np.repeat(room, sizes)
    group = np.repeat(np.arange(len(first)), sizes)
    moved = times + offset[np.lexsort((offset, group))]  # in order within each group, groups in their order
    return requests.at_times(np.maximum.accumulate(moved))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """Requests counted in windows of equal length, the first of which starts at ``start_s``.

    ``count[i]`` requests arrived in [start_s + i window_s, start_s + (i+1) window_s). ``end_s`` is the last arrival.
    """

    window_s: float
    start_s: float
    end_s: float
    count: Ints

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", _frozen(self.count, np.int64))

    @property
    def rates_rps(self) -> Floats:
        """Rate of the windows that the trace covers in full; of the whole trace if it covers none.

        The last window is left out because its end was not seen. A trace of no length gives its count per window.
        """
        full = int((self.end_s - self.start_s) / self.window_s)
        if full == 0:
            length_s = self.end_s - self.start_s
            return np.array([self.count.sum() / (length_s if length_s > 0 else self.window_s)])
        return self.count[:full] / self.window_s

    @property
    def peak_rps(self) -> float:
        """Largest rate of any window; an unfinished last window counts with its full length (a lower bound)."""
        return max(float(self.rates_rps.max()), float(self.count.max() / self.window_s))

    def quantile_rps(self, share: float) -> float:
        """Rate that is not exceeded in ``share`` of the full windows (numpy's linear quantile)."""
        return float(np.quantile(self.rates_rps, share))

    def then(self, later: "Windows") -> "Windows":
        """Join the counts of a later part of the same trace, counted from the same start."""
        length = max(len(self.count), len(later.count))
        count = np.zeros(length, dtype=np.int64)
        count[: len(self.count)] += self.count
        count[: len(later.count)] += later.count
        return replace(self, end_s=max(self.end_s, later.end_s), count=count)


def windows(arrival_s: Floats, *, window_s: float, start_s: float | None = None) -> Windows:
    """Count arrivals in windows of ``window_s`` seconds from ``start_s`` (default: the first arrival).

    Raises
    ------
    InputError
        If there is no arrival, or there would be more than `LARGEST_WINDOW_COUNT` windows.
    """
    if not len(arrival_s):
        raise InputError("no request to count", right="a trace with at least one request")
    start = float(arrival_s[0]) if start_s is None else start_s
    end = float(arrival_s[-1])
    if (end - start) / window_s >= LARGEST_WINDOW_COUNT:
        raise InputError(
            f"windows of {window_s:g} s cut {end - start:.6g} s into more than {LARGEST_WINDOW_COUNT:,} pieces",
            right="longer windows",
        )
    index = ((arrival_s - start) / window_s).astype(np.int64)
    return Windows(window_s=window_s, start_s=start, end_s=end, count=np.bincount(index))
