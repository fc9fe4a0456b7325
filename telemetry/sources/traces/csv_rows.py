"""Traces that are CSV tables with a header: which column means what, and how the table is read.

It exists so that a CSV format is a value of a few lines (`CsvFormat`), or, where a row needs more than naming its
columns, a small class around `header_names`, `find_columns` and `read_columns`. Columns are found by name in any order,
columns it does not know are passed over. Blocks go through the fast reader; a block that it hands back is read line
by line with the csv module, so that quoted fields work and every error names its line and field. A field cannot
hold a line break.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from solver.domain.errors import InputError
from solver.domain.trace import Floats, Ints, Labels
from telemetry.sources.traces.blocks import parse_block
from telemetry.sources.traces.fields import READ, BadFieldError, Kind
from telemetry.sources.traces.lines import LineSource, quoted
from telemetry.sources.traces.rows import Rows

_FLOATS = (Kind.SECONDS, Kind.MICROSECONDS, Kind.RATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvFormat:
    """A trace format that is a CSV table: the names of its columns.

    ``arrival_kind`` is `Kind.SECONDS` (from the start of the trace) or `Kind.STAMP` (calendar time; the first row is
    the start). The optional columns may be absent.
    """

    name: str
    arrival: str
    prompt: str
    output: str
    arrival_kind: Kind = Kind.SECONDS
    session: str | None = None
    model: str | None = None
    request_class: str | None = None
    markers: tuple[str, ...] = ()
    """Further columns that must be there for a file to be recognised as this format."""

    @property
    def arrival_field(self) -> str:
        """Column that holds the arrival."""
        return self.arrival

    @property
    def layout(self) -> str:
        """Columns that the header must have."""
        return ",".join((self.arrival, *self.markers, self.prompt, self.output))

    def recognises(self, first_line: str) -> bool:
        """Tell whether the header has all required columns."""
        return header_names(first_line).issuperset((self.arrival, self.prompt, self.output, *self.markers))

    def rows(self, source: LineSource) -> Iterator[Rows]:
        """Read the table."""
        columns = find_columns(
            source,
            layout=self.layout,
            required={
                "arrival": (self.arrival, self.arrival_kind),
                "prompt": (self.prompt, Kind.TOKENS),
                "output": (self.output, Kind.TOKENS),
            },
            optional={
                role: (name, Kind.TEXT)
                for role, name in (
                    ("session", self.session),
                    ("model", self.model),
                    ("request_class", self.request_class),
                )
                if name is not None
            },
        )
        start_ns: int | None = None
        for lines, values in read_columns(source, columns):
            if not len(lines):
                continue
            arrival_s: Floats
            if self.arrival_kind is Kind.STAMP:
                if start_ns is None:
                    start_ns = int(values["arrival"][0])
                arrival_s = (values["arrival"] - start_ns) / 1e9
            else:
                arrival_s = values["arrival"]
            yield Rows(
                lines=lines,
                arrival_s=arrival_s,
                prompt_tokens=values["prompt"],
                output_tokens=values["output"],
                session=values.get("session"),
                model=values.get("model"),
                request_class=values.get("request_class"),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Where the columns that are wanted stand in a file."""

    names: tuple[str, ...]
    """All of the header."""
    wanted: dict[str, tuple[int, Kind]]
    """Index and kind of each column, by the role it plays."""
    header: bool = True
    """Whether the first line names the columns, or is a row already."""


def header_names(first_line: str) -> set[str]:
    """Return the names in a header; none if it is not one."""
    try:
        return set(_fields(first_line))
    except csv.Error:
        return set()


def find_columns(
    source: LineSource,
    *,
    layout: str,
    required: Mapping[str, tuple[str, Kind]],
    optional: Mapping[str, tuple[str, Kind]],
) -> Columns:
    """Find columns, given by role as (name, kind), in the header of a file; ``layout`` says how it should look.

    Raises
    ------
    InputError
        If a required column is missing, one of them all is there twice, or the first line is no header.
    """
    header = source.first_line()
    try:
        names = _fields(header.decode("utf-8"))
    except (UnicodeDecodeError, csv.Error):
        raise InputError(
            f"{quoted(header)} is not a CSV header", where=source.place(1), right=f"columns {layout}"
        ) from None
    wanted = {**required, **{role: column for role, column in optional.items() if column[0] in names}}
    for name, _ in wanted.values():
        if names.count(name) != 1:
            what = "no such column" if name not in names else f"{names.count(name)} columns of this name"
            raise InputError(what, where=source.place(1, name), right=f"a header with {layout}")
    return Columns(
        names=tuple(names), wanted={role: (names.index(name), kind) for role, (name, kind) in wanted.items()}
    )


def _fields(line: str) -> list[str]:
    """Split a header; the names lose the space around them."""
    if "\0" in line or "\n" in line:
        raise csv.Error
    return [name.strip() for name in next(csv.reader([line], strict=True), [])]


def read_columns(source: LineSource, columns: Columns) -> Iterator[tuple[Ints, dict[str, Any]]]:
    """Yield (line numbers, values by role) of each block: Ints, Floats or `Labels` as the kind is."""
    for first_line, whole in source.blocks():
        block, first = whole, first_line
        if first == 1 and columns.header:
            block, first = whole[whole.index(b"\n") + 1 :], 2
        if not block:
            continue
        parsed = parse_block(block, len(columns.names), tuple(columns.wanted.values()))
        if parsed is not None:
            lines = first + np.arange(block.count(b"\n"))
            yield lines, dict(zip(columns.wanted, parsed, strict=True))
        else:
            yield _read_line_by_line(source, block, first, columns)


def _read_line_by_line(
    source: LineSource, block: bytes, first: int, columns: Columns
) -> tuple[Ints, dict[str, Any]]:
    lines: list[int] = []
    values: dict[str, list[Any]] = {role: [] for role in columns.wanted}
    for number, raw in enumerate(block.split(b"\n")[:-1], start=first):
        line = raw.removesuffix(b"\r")
        if not line.strip():
            continue
        fields = _split(source, line, number, len(columns.names))
        lines.append(number)
        for role, (index, kind) in columns.wanted.items():
            try:
                values[role].append(READ[kind](fields[index]))
            except BadFieldError as error:
                raise InputError(
                    error.what, where=source.place(number, columns.names[index]), right=error.right
                ) from None
    return np.array(lines, dtype=np.int64), {
        role: _array(kind, values[role]) for role, (_, kind) in columns.wanted.items()
    }


def _split(source: LineSource, line: bytes, number: int, width: int) -> list[str]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}",
            where=source.place(number),
            right="UTF-8 text (iconv makes it)",
        ) from None
    if "\r" in text:
        raise InputError(
            "a carriage return inside the line", where=source.place(number), right="line feeds between rows"
        )
    try:
        fields = next(csv.reader([text], strict=True)) if '"' in text else text.split(",")
    except csv.Error as error:
        raise InputError(
            f"broken quotes: {error}", where=source.place(number), right="each quote closed"
        ) from None
    if len(fields) != width:
        raise InputError(
            f"{len(fields)} fields ({quoted(text)})",
            where=source.place(number),
            right=f"{width} as in the header",
        )
    return fields


def _array(kind: Kind, values: list[Any]) -> Any:
    if kind is Kind.TEXT:
        names = {name: code for code, name in enumerate(dict.fromkeys(values))}
        return Labels(codes=np.array([names[value] for value in values], dtype=np.int64), names=tuple(names))
    return np.array(values, dtype=np.float64 if kind in _FLOATS else np.int64)
