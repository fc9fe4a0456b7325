"""``ballast trace``: describe, generate, import, scale and split request traces.

It exists as the thin shell around `telemetry.sources.traces` (reading and writing), `solver.domain` (what a trace says)
and `simulator.workload` (generating). Every command works in bounded memory, and files appear only when they are
complete. It decides nothing.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controller.cli.options import FiniteRange, common_options, output_option, seed_option

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from controller.cli.output import Advance
    from simulator.workload import Workload
    from solver.domain.rate_windows import RateWindows
    from solver.domain.trace import Requests
    from solver.domain.trace_summary import TokenCounts, TraceSummary
    from telemetry.sources.traces.read import TraceStream

FORMATS = ("azure", "blis", "burstgpt", "mooncake", "plain", "splitwise-sim", "vidur")
_QUANTILES = (0.5, 0.9, 0.99)
_TIME_DECIMALS = 9
"""Computed times are written in whole nanoseconds, so that 0.1 + 0.2 does not read as 0.30000000000000004."""
_LARGEST_FILE_COUNT = 10_000
_LARGEST_WINDOW = 2**53
"""From here on a time divided by the length of a window no longer tells neighbours apart."""

_positive = FiniteRange(min=0, min_open=True)
_file = click.argument("file", type=click.Path())
_format_option = click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default=None,
    envvar="BALLAST_TRACE_FORMAT",
    help="Format of FILE.  [default: recognised by its first line]",
)
_spread_option = click.option(
    "--spread-s",
    type=FiniteRange(min=0),
    default=0.0,
    show_default=True,
    help="Spread requests that share a time stamp over so many seconds (Mooncake: 3).",
)
_out_option = click.option(
    "--out", type=click.Path(), default="-", help="CSV file to write (.gz is packed).  [default: stdout]"
)


@click.group()
def trace() -> None:
    """Describe, generate, convert and cut request traces.

    Reads Azure, BurstGPT, Mooncake, SplitwiseSim, Vidur and plain CSV traces, packed with gzip or not;
    FILE may be - for standard input. Writes the plain CSV arrival_s,prompt_tokens,output_tokens.

    Example: ballast trace describe AzureLLMInferenceTrace_conv.csv
    """


@contextmanager
def _opened(
    file: str, *, form: str | None, seed: int = 0, spread_s: float = 0.0, ordered: bool = True
) -> "Iterator[tuple[TraceStream, Iterator[Requests]]]":
    """Open a trace with a progress bar that follows the bytes read."""
    from controller.cli.output import progress
    from telemetry.sources.traces.read import open_trace

    path = Path(file)
    size = path.stat().st_size if file != "-" and path.is_file() else None
    with (
        open_trace(file, format=form, seed=seed, spread_s=spread_s, ordered=ordered) as stream,
        progress(f"reading {stream.name}", size) as advance,
    ):
        yield stream, _followed(stream, advance)


def _followed(stream: "TraceStream", advance: "Advance") -> "Iterator[Requests]":
    before = 0
    for chunk in stream:
        advance(stream.bytes_read - before)
        before = stream.bytes_read
        yield chunk


def _written(number: int, out: str, dropped: dict[str, int]) -> None:
    """Say on stderr what was written and what was left out."""
    left_out = ", ".join(f"{rows:,} left out with {reason}" for reason, rows in _reasons(dropped))
    target = "standard output" if out == "-" else out
    click.echo(f"{number:,} requests written to {target}{'; ' if left_out else ''}{left_out}", err=True)


def _reasons(dropped: dict[str, int]) -> list[tuple[str, int]]:
    return [(reason.replace("_", " "), rows) for reason, rows in dropped.items() if rows]


@trace.command()
@_file
@_format_option
@click.option(
    "--window-s",
    "windows_s",
    type=_positive,
    multiple=True,
    default=(10.0, 60.0, 600.0),
    show_default=True,
    help="Length of the windows in which requests are counted; may be repeated.",
)
@_spread_option
@common_options(output_option, seed_option)
def describe(
    *, file: str, form: str | None, windows_s: tuple[float, ...], spread_s: float, output: str, seed: int
) -> None:
    """Say how many requests FILE holds, when they come and how large they are.

    Example: ballast trace describe conv.csv.gz --window-s 60 -o json
    """
    from controller.cli.output import print_structured
    from solver.domain.trace_summary import summarise

    with _opened(file, form=form, seed=seed, spread_s=spread_s) as (stream, chunks):
        summary = summarise(chunks, windows_s=sorted(set(windows_s)))
    if output == "table":
        _print_description(stream, summary)
    else:
        print_structured(_description(stream, summary), output)


def _description(stream: "TraceStream", summary: "TraceSummary") -> dict[str, Any]:
    from controller.cli.answers import ballast_version

    return {
        "schema": "trace-description/1",
        "version": ballast_version(),
        "name": stream.name,
        "format": stream.format,
        "sha256": stream.sha256,
        "requests": summary.requests,
        "dropped_rows": dict(stream.dropped),
        "first_arrival_s": summary.first_s,
        "duration_s": summary.duration_s,
        "mean_rps": summary.mean_rps,
        "burstiness_cv": summary.burstiness_cv,
        "equal_stamps": summary.equal_stamps,
        "windows": [
            {
                "window_s": counted.window_s,
                "windows": len(counted.rates_rps),
                "mean_rps": float(counted.rates_rps.mean()),
                **{f"p{share * 100:g}_rps": counted.quantile_rps(share) for share in _QUANTILES},
                "peak_rps": counted.peak_rps,
            }
            for counted in summary.windows
        ],
        "prompt_tokens": _tokens(summary.prompt),
        "output_tokens": _tokens(summary.output),
        "correlation": summary.correlation,
    }


def _tokens(counts: "TokenCounts") -> dict[str, float]:
    return {
        "mean": counts.mean,
        "min": counts.smallest,
        **{f"p{share * 100:g}": counts.quantile(share) for share in _QUANTILES},
        "max": counts.largest,
        "total": counts.total,
    }


def _print_description(stream: "TraceStream", summary: "TraceSummary") -> None:
    from controller.cli.output import print_table

    answer = _description(stream, summary)
    rows: list[tuple[str, object]] = [
        ("format", answer["format"]),
        ("requests", f"{summary.requests:,}"),
        ("duration", f"{summary.duration_s:,.1f} s"),
        ("mean rate", "-" if summary.mean_rps is None else f"{summary.mean_rps:,.3f} requests/s"),
        ("burstiness (cv of gaps, Poisson 1)", _short(summary.burstiness_cv)),
        ("correlation of prompt and output", _short(summary.correlation)),
        *((f"rows left out with {reason}", f"{rows:,}") for reason, rows in _reasons(stream.dropped)),
        ("sha256", answer["sha256"]),
    ]
    print_table(stream.name, ("", "value"), rows)
    columns = ("mean", "min", "p50", "p90", "p99", "max")
    print_table(
        "Tokens per request",
        ("", *columns),
        [
            (side, *(f"{answer[f'{side}_tokens'][column]:,.1f}".removesuffix(".0") for column in columns))
            for side in ("prompt", "output")
        ],
        right=range(1, 7),
    )
    print_table(
        "Requests per second, in windows",
        ("window", "count", "mean", "p50", "p90", "p99", "peak"),
        [
            (
                f"{row['window_s']:g} s",
                row["windows"],
                *(f"{row[f'{key}_rps']:,.3f}" for key in ("mean", "p50", "p90", "p99", "peak")),
            )
            for row in answer["windows"]
        ],
        right=range(1, 7),
    )
    if summary.equal_stamps > summary.requests / 2:
        click.echo("Most requests share their time stamp with others: --spread-s spreads them.", err=True)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@trace.command()
@click.option(
    "--preset",
    type=click.Choice(["conversation", "code"]),
    default=None,
    help="Traffic with the published statistics of an Azure trace.  [default: conversation]",
)
@click.option("--from", "source", type=click.Path(), help="Take rate, burstiness and sizes from this trace.")
@_format_option
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "gamma", "weibull"]),
    default=None,
    help="Distribution of the gaps between arrivals.  [default: gamma]",
)
@click.option(
    "--cv",
    type=_positive,
    default=None,
    help="Coefficient of variation of the gaps.  [default: as the source]",
)
@click.option("--rate-rps", type=_positive, default=None, help="Mean rate.  [default: as the source]")
@click.option(
    "--rates",
    type=click.Path(),
    default=None,
    help="Let the rate follow recorded windows: CSV with model,t_s,rate_rps, or ServeGen's clients.",
)
@click.option("--rates-model", default=None, help="Which model of --rates.  [default: the only one]")
@click.option(
    "--duration-s", type=_positive, default=3600.0, show_default=True, help="Length of the trace in seconds."
)
@click.option(
    "--diurnal",
    "diurnal_ratio",
    type=FiniteRange(min=0, max=1, max_open=True),
    default=0.0,
    show_default=True,
    help="Daily swing: the rate runs from (1 - x) to (1 + x) times the mean, beginning at its low.",
)
@click.option(
    "--diurnal-period-s", type=_positive, default=86400.0, show_default=True, help="Length of a 'day'."
)
@_out_option
@common_options(seed_option)
@click.pass_context
def generate(
    ctx: click.Context,
    /,
    *,
    preset: str | None,
    source: str | None,
    form: str | None,
    out: str,
    seed: int,
    **given: Any,
) -> None:
    """Generate a trace; the same options and seed give the same bytes.

    Example: ballast trace generate --preset conversation --rate-rps 20 --duration-s 600 --out t.csv.gz
    """
    from simulator.workload import PRESETS, generate
    from telemetry.sources.traces.write import write_trace

    if source is not None and preset is not None:
        raise click.UsageError("give either --preset or --from", ctx)
    if given["rates_model"] is not None and given["rates"] is None:
        raise click.UsageError("--rates-model chooses from --rates; give both", ctx)
    if given["arrivals"] == "poisson" and given["cv"] not in (None, 1.0):
        raise click.UsageError("poisson arrivals have a --cv of 1; use gamma or weibull", ctx)
    if source is not None:
        workload = _workload_like(source, form, seed, given)
    else:
        kind = PRESETS[preset or "conversation"]
        workload = _workload(kind.sizes, rate_rps=kind.rate_rps, cv=kind.cv, given=given)
    from controller.cli.output import progress

    with progress("generating", workload.duration_s) as advance:
        number = write_trace(_timed(generate(workload, seed=seed), advance), out)
    _written(number, out, {})


def _timed(chunks: "Iterable[Requests]", advance: "Advance") -> "Iterator[Requests]":
    before_s = 0.0
    for chunk in chunks:
        latest_s = float(chunk.arrival_s[-1])
        advance(latest_s - before_s)
        before_s = latest_s
        yield chunk


def _workload_like(source: str, form: str | None, seed: int, given: dict[str, Any]) -> "Workload":
    """Take from a trace what was not given: sizes in any case, mean rate, burstiness."""
    from simulator.workload import resampled_sizes
    from solver.domain.errors import InputError
    from solver.domain.trace_summary import TraceSummary, summarise_part

    summary: TraceSummary | None = None
    with _opened(source, form=form) as (_, chunks):

        def watched() -> "Iterator[Requests]":
            nonlocal summary
            for chunk in chunks:
                part = summarise_part(chunk, windows_s=())
                summary = part if summary is None else summary.then(part)
                yield chunk

        sizes = resampled_sizes(watched(), seed=seed)
    rate_rps = None if summary is None else summary.mean_rps
    cv = None if summary is None else summary.burstiness_cv
    if rate_rps is None and given["rate_rps"] is None and given["rates"] is None:
        raise InputError(
            "all requests arrive at one instant: no rate to take",
            where=source,
            right="give --rate-rps or --rates",
        )
    return _workload(sizes, rate_rps=rate_rps or 0.0, cv=min(max(cv or 1.0, 0.05), 100.0), given=given)


def _workload(sizes: Any, *, rate_rps: float, cv: float, given: dict[str, Any]) -> "Workload":
    from simulator.workload import Arrivals, Workload

    arrivals = Arrivals(given["arrivals"] or "gamma")
    own_cv = 1.0 if arrivals is Arrivals.POISSON else cv
    rates = None if given["rates"] is None else _rates(given["rates"], given["rates_model"])
    recorded_rps = rate_rps if rates is None else float(rates.filled().rate_rps.mean())
    return Workload(
        sizes=sizes,
        rate_rps=given["rate_rps"] or recorded_rps,
        duration_s=given["duration_s"],
        arrivals=arrivals,
        cv=given["cv"] or own_cv,
        diurnal_ratio=given["diurnal_ratio"],
        diurnal_period_s=given["diurnal_period_s"],
        rates=rates,
    )


def _rates(path: str, model: str | None) -> "RateWindows":
    from solver.domain.errors import InputError
    from telemetry.sources.traces.servegen import read_rate_windows

    series = {rates.name: rates for rates in read_rate_windows(path)}
    if model is None and len(series) == 1:
        return next(iter(series.values()))
    if model not in series:
        what = "several models" if model is None else f"no model {model!r}"
        raise InputError(what, where=path, right=f"--rates-model with one of {', '.join(series)}")
    return series[model]


@trace.command("import")
@_file
@_format_option
@click.option("--sort", "sort", is_flag=True, help="Put the rows into the order of arrival.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=None, help="Take only the first so many requests."
)
@_spread_option
@_out_option
@common_options(seed_option)
def import_(
    *, file: str, form: str | None, sort: bool, limit: int | None, spread_s: float, out: str, seed: int
) -> None:
    """Turn FILE, of any known format, into the plain CSV.

    Prefix blocks are not kept. Rows without prompt or output tokens are left out and counted.

    Example: ballast trace import BurstGPT_1.csv --sort --out burst.csv.gz
    """
    from solver.domain.trace import spread
    from telemetry.sources.traces.sort import sorted_chunks
    from telemetry.sources.traces.write import write_trace

    with _opened(file, form=form, ordered=not sort) as (stream, chunks):
        requests: Iterable[Requests] = sorted_chunks(chunks) if sort else chunks
        if spread_s > 0:
            requests = spread(requests, within_s=spread_s, seed=seed)
        if limit is not None:
            requests = _first(requests, limit)
        number = write_trace(requests, out)
    _written(number, out, stream.dropped)


def _first(chunks: "Iterable[Requests]", limit: int) -> "Iterator[Requests]":
    left = limit
    for chunk in chunks:
        yield chunk.take(slice(None, left))
        left -= len(chunk)
        if left <= 0:
            return


@trace.command()
@_file
@_format_option
@click.option(
    "--rate", "rate_ratio", type=_positive, default=1.0, help="Let requests come so many times as fast."
)
@click.option("--tokens", "tokens_ratio", type=_positive, default=1.0, help="Multiply prompts and outputs.")
@_out_option
@common_options()
def scale(file: str, form: str | None, rate_ratio: float, tokens_ratio: float, out: str) -> None:
    """Change the rate or the sizes of FILE.

    The rate is changed by a faster or slower clock: every request stays, the trace gets shorter or longer.

    Example: ballast trace scale conv.csv --rate 4 --out conv-x4.csv
    """
    from solver.domain.trace import scaled
    from telemetry.sources.traces.write import write_trace

    with _opened(file, form=form) as (stream, chunks):
        number = write_trace(
            (_tidy(scaled(chunk, rate_ratio=rate_ratio, tokens_ratio=tokens_ratio)) for chunk in chunks),
            out,
        )
    _written(number, out, stream.dropped)


def _tidy(requests: "Requests") -> "Requests":
    return requests.at_times(requests.arrival_s.round(_TIME_DECIMALS))


@trace.command()
@_file
@_format_option
@click.option("--at-s", type=_positive, default=None, help="Cut in two at this time of the trace.")
@click.option(
    "--ratio",
    type=FiniteRange(min=0, max=1, min_open=True, max_open=True),
    default=None,
    help="Cut in two behind this share of the requests.",
)
@click.option("--window-s", type=_positive, default=None, help="Cut into pieces of this length.")
@click.option(
    "--keep-times", is_flag=True, help="Keep the arrivals as they are.  [default: pieces begin at 0]"
)
@click.option(
    "--out-dir",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Existing folder to write to.",
)
@common_options(output_option)
@click.pass_context
def split(
    ctx: click.Context, /, *, file: str, form: str | None, out_dir: Path, output: str, **given: Any
) -> None:
    """Cut FILE into several traces, NAME-0.csv, NAME-1.csv and so on; empty windows make no file.

    The files appear together when all are complete.

    Example: ballast trace split conv.csv --ratio 0.7 --out-dir pieces
    """
    from controller.cli.answers import ballast_version
    from controller.cli.output import print_structured, print_table

    if sum(given[name] is not None for name in ("at_s", "ratio", "window_s")) != 1:
        raise click.UsageError("give exactly one of --at-s, --ratio, --window-s", ctx)
    if file == "-" and given["ratio"] is not None:
        raise click.UsageError("--ratio counts the requests first, so FILE cannot be -", ctx)
    cut = _cut(file, form, **{name: given[name] for name in ("at_s", "ratio", "window_s")})
    with _opened(file, form=form) as (stream, chunks):
        stem = stream.name.removesuffix(".gz").rsplit(".", 1)[0].replace(" ", "-")
        written = _write_pieces(_pieces(chunks, cut, keep_times=given["keep_times"]), out_dir, stem)
    if output == "table":
        print_table("", ("file", "requests"), [(name, f"{number:,}") for name, number in written], right=(1,))
    else:
        pieces = [{"file": name, "requests": number} for name, number in written]
        answer = {"schema": "trace-pieces/1", "version": ballast_version(), "pieces": pieces}
        print_structured({**answer, "dropped_rows": dict(stream.dropped)}, output)


Cut = Callable[["Requests", int], "tuple[NDArray[Any], Callable[[int], float | None]]"]
"""From a chunk and the number of requests before it to the piece of each request and the start of a piece, if known."""


def _cut(
    file: str, form: str | None, *, at_s: float | None, ratio: float | None, window_s: float | None
) -> Cut:
    import numpy as np

    if at_s is not None:
        return lambda chunk, _: ((chunk.arrival_s >= at_s).astype(int), lambda piece: piece * at_s)
    if window_s is not None:
        return lambda chunk, _: (_windows(chunk, window_s), lambda piece: piece * window_s)
    with _opened(file, form=form) as (_, chunks):
        total = sum(len(chunk) for chunk in chunks)
    head = min(max(math.floor((ratio or 0.0) * total + 0.5), 1), total)
    return lambda chunk, before: (
        (np.arange(before, before + len(chunk)) >= head).astype(int),
        lambda piece: None if piece else 0.0,
    )


def _windows(requests: "Requests", window_s: float) -> "NDArray[Any]":
    """Return the number of the window that each request is in."""
    import numpy as np

    from solver.domain.errors import InputError

    latest_s = float(requests.arrival_s[-1]) if len(requests) else 0.0
    if latest_s / window_s > _LARGEST_WINDOW:
        raise InputError(
            f"windows of {window_s:g} s are too many until {latest_s:g} s", right="longer windows"
        )
    return np.floor(requests.arrival_s / window_s).astype(int)


def _pieces(chunks: "Iterable[Requests]", cut: Cut, *, keep_times: bool) -> "Iterator[tuple[int, Requests]]":
    """Yield (piece, requests of it), pieces rising; times from the piece's start unless kept."""
    import numpy as np

    before = 0
    starts: dict[int, float] = {}
    for chunk in chunks:
        piece_of, start_of = cut(chunk, before)
        before += len(chunk)
        for piece in np.unique(piece_of).tolist():
            part = chunk.take(piece_of == piece)
            if piece not in starts:
                known_s = start_of(piece)
                starts = {piece: float(part.arrival_s[0]) if known_s is None else known_s}
            yield piece, part if keep_times else _tidy(part.at_times(part.arrival_s - starts[piece]))


def _write_pieces(
    pieces: "Iterable[tuple[int, Requests]]", out_dir: Path, stem: str
) -> list[tuple[str, int]]:
    from solver.domain.errors import InputError
    from telemetry.sources.traces.write import whole_files, write_rows

    written: list[tuple[str, int]] = []
    with whole_files() as begin:
        for piece, parts in itertools.groupby(pieces, key=lambda pair: pair[0]):
            if len(written) == _LARGEST_FILE_COUNT:
                raise InputError(f"more than {_LARGEST_FILE_COUNT:,} pieces", right="longer windows")
            path = out_dir / f"{stem}-{piece}.csv"
            with begin(path) as write:
                written.append((str(path), write_rows((part for _, part in parts), write)))
    return written
