"""Mooncake traces: one JSON object per line (kvcache-ai/Mooncake, Qin et al., FAST 2025).

``timestamp`` in milliseconds, ``input_length``, ``output_length``, ``hash_ids`` of 512-token prefix blocks (optional).
The conversation trace has its stamps rounded to 3 s; `telemetry.sources.traces.read` spreads them on request.
"""

import json
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from solver.domain.errors import InputError
from solver.domain.trace import LARGEST_TIME_S, LARGEST_TOKEN_COUNT, PrefixBlocks
from telemetry.sources.traces.lines import LineSource, quoted
from telemetry.sources.traces.rows import Rows

_LARGEST_ID = 2**63 - 1
_LIMITS: dict[str, float] = {
    "timestamp": LARGEST_TIME_S * 1e3,
    "input_length": LARGEST_TOKEN_COUNT,
    "output_length": LARGEST_TOKEN_COUNT,
}


class MooncakeFormat:
    """The format as `telemetry.sources.traces.rows.TraceFormat` wants it."""

    name = "mooncake"
    arrival_field = "timestamp"
    layout = '{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [...]}'

    def recognises(self, first_line: str) -> bool:
        """Tell whether the first line is a JSON object with the three fields."""
        return first_line.lstrip().startswith("{") and all(f'"{field}"' in first_line for field in _LIMITS)

    def rows(self, source: LineSource) -> Iterator[Rows]:
        """Read all lines; blank ones are passed over."""
        for first, block in source.blocks():
            numbered = [
                (number, line)
                for number, line in enumerate(block.split(b"\n")[:-1], start=first)
                if line.strip()
            ]
            records = [_record(source, number, line) for number, line in numbered]
            if not records:
                continue
            ids = [record.get("hash_ids") or [] for record in records]
            yield Rows(
                lines=np.array([number for number, _ in numbered]),
                arrival_s=np.array([record["timestamp"] for record in records], dtype=np.float64) / 1e3,
                prompt_tokens=np.array([record["input_length"] for record in records], dtype=np.int64),
                output_tokens=np.array([record["output_length"] for record in records], dtype=np.int64),
                blocks=PrefixBlocks(
                    ids=np.array([number for row in ids for number in row], dtype=np.int64),
                    offsets=np.cumsum([0, *map(len, ids)]),
                ),
            )


MOONCAKE = MooncakeFormat()


def _constant(name: str) -> NoReturn:
    raise ValueError(name)


def _record(source: LineSource, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}",
            where=source.place(number),
            right="UTF-8 text (iconv makes it)",
        ) from None
    except (ValueError, RecursionError):
        raise InputError(
            f"{quoted(line)} is not a JSON object", where=source.place(number), right=MOONCAKE.layout
        ) from None
    if type(record) is not dict:
        raise InputError(
            f"{quoted(line)} is not a JSON object", where=source.place(number), right=MOONCAKE.layout
        )
    for field, limit in _LIMITS.items():
        value = record.get(field)
        right = f"a {'number' if field == 'timestamp' else 'whole number'} from 0 to {limit:,.0f}"
        if field not in record:
            raise InputError("missing", where=source.place(number, field), right=right)
        if (
            not (type(value) is int or type(value) is float)
            or not 0 <= value <= limit
            or (field != "timestamp" and value != int(value))
        ):
            shown = (
                f"{quoted(str(value))} is no such number"
                if type(value) in (int, float, str)
                else "not a number"
            )
            raise InputError(shown, where=source.place(number, field), right=right)
    ids = record.get("hash_ids")
    if ids is not None and not (
        type(ids) is list
        and all(type(value) is int and -_LARGEST_ID <= value <= _LARGEST_ID for value in ids)
    ):
        raise InputError(
            "not a list of block ids",
            where=source.place(number, "hash_ids"),
            right="a list of whole numbers of at most 64 bits",
        )
    return record
