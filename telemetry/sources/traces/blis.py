"""TraceV2 of the BLIS simulator (inference-sim): the CSV file of the pair that ``blis run`` and ``blis observe`` write.

A TraceV2 is two files. The YAML header says how the trace came about (``mode``, ``warm_up_requests``, the server); no
request needs it, since the CSV names its units, and it is refused with a pointer to the CSV. Of the CSV's 27 or more
columns those are read that a replay needs:

- ``arrival_time_us``, from the start of the trace. ``send_time_us`` is not: an observed one is a clock of its own.
- ``input_tokens`` without the shared prefix, ``prefix_length`` for it: a prompt is both. Where the server counted
  (``server_input_tokens`` above 0) and there is no prefix, its count is taken, like ``blis replay`` does.
- Requests of one ``prefix_group`` share their first ``prefix_length`` tokens, as whole blocks of `BLOCK_TOKENS`: the
  rest of a prefix behind its last whole block counts as not shared.

What a request took (``first_chunk_time_us``, ``status``) is an answer, not a question, and passed over.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from solver.domain.errors import InputError
from solver.domain.trace import Ints, Labels, PrefixBlocks
from telemetry.sources.traces.csv_rows import find_columns, header_names, read_columns
from telemetry.sources.traces.fields import Kind
from telemetry.sources.traces.lines import LineSource
from telemetry.sources.traces.rows import Rows

BLOCK_TOKENS = 512
"""The size of Mooncake's blocks, so that a simulation needs one size whatever the trace."""
LARGEST_PREFIX_TOKENS = 1 << 20
"""Above it a prefix is a slip; it also keeps a chunk's blocks in memory."""
_HEADER_KEYS = ("trace_version:", "time_unit:")
_REQUIRED = {
    "arrival": ("arrival_time_us", Kind.MICROSECONDS),
    "prompt": ("input_tokens", Kind.TOKENS),
    "output": ("output_tokens", Kind.TOKENS),
}
_OPTIONAL = {
    "server_prompt": ("server_input_tokens", Kind.TOKENS),
    "prefix_length": ("prefix_length", Kind.TOKENS),
    "prefix_group": ("prefix_group", Kind.TEXT),
    "session": ("session_id", Kind.TEXT),
    "model": ("model", Kind.TEXT),
    "request_class": ("slo_class", Kind.TEXT),
}


class BlisFormat:
    """The format as `telemetry.sources.traces.rows.TraceFormat` wants it."""

    name = "blis"
    arrival_field = "arrival_time_us"
    layout = ",".join(name for name, _ in _REQUIRED.values())

    def recognises(self, first_line: str) -> bool:
        """Tell whether this is the CSV of a TraceV2, or its YAML header (which `rows` refuses)."""
        return first_line.startswith(_HEADER_KEYS) or header_names(first_line).issuperset(
            name for name, _ in _REQUIRED.values()
        )

    def rows(self, source: LineSource) -> Iterator[Rows]:
        """Read the table."""
        if source.first_line().startswith(tuple(key.encode() for key in _HEADER_KEYS)):
            raise InputError(
                "the YAML header of a BLIS trace",
                where=source.place(1),
                right=f"the CSV file beside it, with columns {self.layout}",
            )
        columns = find_columns(source, layout=self.layout, required=_REQUIRED, optional=_OPTIONAL)
        groups: dict[str, int] = {}
        for lines, values in read_columns(source, columns):
            if not len(lines):
                continue
            shared = _shared_tokens(values)
            over = np.flatnonzero(shared > LARGEST_PREFIX_TOKENS)
            if len(over):
                raise InputError(
                    f"{shared[over[0]]:,} tokens of a shared prefix",
                    where=source.place(int(lines[over[0]]), "prefix_length"),
                    right=f"a whole number from 0 to {LARGEST_PREFIX_TOKENS:,}",
                )
            yield Rows(
                lines=lines,
                arrival_s=values["arrival"],
                prompt_tokens=_prompt_tokens(values, shared),
                output_tokens=values["output"],
                session=values.get("session"),
                model=values.get("model"),
                request_class=values.get("request_class"),
                blocks=_blocks(values["prefix_group"], shared, groups)
                if "prefix_group" in values and "prefix_length" in values
                else None,
            )


BLIS = BlisFormat()


def _in_group(values: dict[str, Any]) -> Any:
    """Return the mask of the requests that belong to a prefix group; none does without such a column."""
    labels: Labels | None = values.get("prefix_group")
    if labels is None:
        return np.zeros(len(values["prompt"]), dtype=bool)
    named = np.array([bool(name.strip()) for name in labels.names], dtype=bool)
    return named[labels.codes]


def _shared_tokens(values: dict[str, Any]) -> Ints:
    shared: Ints = np.where(_in_group(values), values.get("prefix_length", 0), 0)
    return shared


def _prompt_tokens(values: dict[str, Any], shared: Ints) -> Ints:
    counted = values.get("server_prompt", np.zeros_like(shared))
    prompt: Ints = np.where((counted > 0) & ~_in_group(values), counted, values["prompt"] + shared)
    return prompt


def _blocks(labels: Labels, shared: Ints, groups: dict[str, int]) -> PrefixBlocks:
    """Give equal ids to equal places of a group; ``groups`` numbers the groups over the whole file."""
    most = LARGEST_PREFIX_TOKENS // BLOCK_TOKENS
    first_ids = np.array([groups.setdefault(name.strip(), len(groups)) * most for name in labels.names])
    counts = shared // BLOCK_TOKENS
    offsets = np.concatenate(([0], np.cumsum(counts)))
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    return PrefixBlocks(ids=np.repeat(first_ids[labels.codes], counts) + place, offsets=offsets)
