"""Opens a trace of any known format and yields its requests in chunks, in bounded memory.

It exists as the one door to recorded traces. It recognises the format, puts times on a common footing, refuses time
that runs backwards and leaves out requests without prompt or output tokens, counted by reason: no performance model
has a meaning for them, and in the traces that have them (BurstGPT) they are failed requests. It judges nothing else.

To add a format, write a module beside this one and enter it in `FORMATS` (docs/traces.md).
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from solver.domain.errors import InputError
from solver.domain.trace import Requests, Trace, concatenate, spread
from telemetry.sources.traces.azure import AZURE
from telemetry.sources.traces.blis import BLIS
from telemetry.sources.traces.burstgpt import BURSTGPT
from telemetry.sources.traces.lines import LineSource, quoted
from telemetry.sources.traces.mooncake import MOONCAKE
from telemetry.sources.traces.plain import PLAIN
from telemetry.sources.traces.rows import Rows, TraceFormat
from telemetry.sources.traces.splitwise_sim import SPLITWISE_SIM
from telemetry.sources.traces.vidur import VIDUR

FORMATS: dict[str, TraceFormat] = {
    form.name: form for form in (AZURE, BLIS, BURSTGPT, MOONCAKE, PLAIN, SPLITWISE_SIM, VIDUR)
}


class TraceStream:
    """The chunks of a trace, read once; an iterator of `solver.domain.trace.Requests` that are never empty.

    ``format``, ``name`` are known at once; ``sha256`` and ``dropped`` are complete when all chunks were read.
    """

    def __init__(
        self, source: LineSource, form: TraceFormat, *, ordered: bool, spread_s: float, seed: int
    ) -> None:
        self.format = form.name
        self.name = Path(source.name).name
        self.requests = 0
        """Requests yielded so far."""
        self.dropped: dict[str, int] = {"zero_prompt_tokens": 0, "zero_output_tokens": 0}
        """Rows left out so far, by reason."""
        self._source = source
        self._form = form
        self._ordered = ordered
        chunks = self._usable()
        self._chunks = spread(chunks, within_s=spread_s, seed=seed) if spread_s > 0 else chunks

    @property
    def sha256(self) -> str:
        """Digest of the file's bytes on the disk, complete when all chunks were read."""
        return self._source.sha256

    @property
    def bytes_read(self) -> int:
        """Bytes of the file read so far, for progress."""
        return self._source.bytes_read

    def __iter__(self) -> Iterator[Requests]:
        return self

    def __next__(self) -> Requests:
        chunk = next(self._chunks)
        self.requests += len(chunk)
        return chunk

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.close()

    def _usable(self) -> Iterator[Requests]:
        latest_s = -np.inf
        found = False
        for rows in self._form.rows(self._source):
            if self._ordered:
                self._check_order(rows, latest_s)
                latest_s = rows.arrival_s[-1]
            no_prompt = rows.prompt_tokens == 0
            no_output = ~no_prompt & (rows.output_tokens == 0)
            self.dropped["zero_prompt_tokens"] += int(no_prompt.sum())
            self.dropped["zero_output_tokens"] += int(no_output.sum())
            requests = Requests(
                arrival_s=rows.arrival_s,
                prompt_tokens=rows.prompt_tokens,
                output_tokens=rows.output_tokens,
                session=rows.session,
                model=rows.model,
                request_class=rows.request_class,
                blocks=rows.blocks,
            )
            unusable = no_prompt | no_output
            if unusable.any():
                requests = requests.take(~unusable)
            if len(requests):
                found = True
                yield requests
        if not found:
            dropped = sum(self.dropped.values())
            raise InputError(
                f"no usable request: {dropped:,} without prompt or output tokens"
                if dropped
                else "no request in it",
                where=self._source.name,
                right="at least one request with tokens in and out",
            )

    def _check_order(self, rows: Rows, latest_s: float) -> None:
        steps = np.diff(rows.arrival_s, prepend=latest_s)
        if not np.any(steps < 0):
            return
        at = int((steps < 0).argmax())
        before_s = latest_s if at == 0 else rows.arrival_s[at - 1]
        raise InputError(
            f"time runs backwards: {rows.arrival_s[at]:.9g} s after {before_s:.9g} s from the start",
            where=self._source.place(int(rows.lines[at]), self._form.arrival_field),
            right="rows in the order of arrival ('ballast trace import --sort FILE --out SORTED.csv' makes them)",
        )


def open_trace(
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002 - the name that the command's option has
    seed: int = 0,
    spread_s: float = 0.0,
    ordered: bool = True,
) -> TraceStream:
    """Open a trace for one pass in bounded memory.

    Parameters
    ----------
    path
        File, gzip or not; ``-`` is standard input.
    format
        A name in `FORMATS`; None recognises it from the first line.
    seed, spread_s
        Spread requests that share a time stamp over so many seconds (`solver.domain.trace.spread`).
    ordered
        Refuse time that runs backwards. Only who sorts afterwards turns it off; then arrivals may be negative.

    Raises
    ------
    InputError
        One line with file, line and field, here or while reading, for everything that is not a sound trace.
    """
    if format is not None and format not in FORMATS:
        raise InputError(f"unknown trace format {quoted(format)}", right=f"one of {', '.join(FORMATS)}")
    source = LineSource(path)
    try:
        form = FORMATS[format] if format is not None else _recognised(source)
    except InputError:
        source.close()
        raise
    return TraceStream(source, form, ordered=ordered, spread_s=spread_s if ordered else 0.0, seed=seed)


def read_trace(
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002 - as in open_trace
    seed: int = 0,
    spread_s: float = 0.0,
) -> Trace:
    """Read a whole trace into memory: 24 bytes per request (more with text or blocks), an eighth more meanwhile."""
    with open_trace(path, format=format, seed=seed, spread_s=spread_s) as stream:
        requests = concatenate(stream)
        return Trace(name=stream.name, sha256=stream.sha256, requests=requests)


def _recognised(source: LineSource) -> TraceFormat:
    line = source.first_line()
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}",
            where=source.place(1),
            right="a trace as UTF-8 text, packed with gzip or not",
        ) from None
    for form in FORMATS.values():
        if form.recognises(text):
            return form
    layouts = ", ".join(f"{form.name} ({form.layout})" for form in FORMATS.values())
    raise InputError(
        f"not a trace: it begins with {quoted(text)}", where=source.place(1), right=f"one of {layouts}"
    )
