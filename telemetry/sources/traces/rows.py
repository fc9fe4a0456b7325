"""What a trace format hands over: columns as they stand in the file, each row with its line number.

It exists so that formats only map fields to meanings, while order, starting time and unusable rows are judged in one
place (`telemetry.sources.traces.read`). Rows are not yet `solver.domain.trace.Requests`: times may go backwards and
token counts may be zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from solver.domain.trace import Floats, Ints, Labels, PrefixBlocks
from telemetry.sources.traces.lines import LineSource


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Rows of a block; ``lines`` are their line numbers in the file, ``arrival_s`` counts from the source's zero."""

    lines: Ints
    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    session: Labels | None = None
    model: Labels | None = None
    request_class: Labels | None = None
    blocks: PrefixBlocks | None = None


class TraceFormat(Protocol):
    """A way to write down a trace. One module of this room describes one."""

    @property
    def name(self) -> str:
        """Name for ``--format``."""
        ...

    @property
    def arrival_field(self) -> str:
        """Field that holds the arrival, for error messages."""
        ...

    @property
    def layout(self) -> str:
        """What the first line looks like, for error messages."""
        ...

    def recognises(self, first_line: str) -> bool:
        """Tell whether a file that begins so is of this format."""
        ...

    def rows(self, source: LineSource) -> Iterator[Rows]:
        """Read the file; bad input is an `InputError` with line and field."""
        ...
