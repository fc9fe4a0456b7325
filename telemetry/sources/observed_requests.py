"""Reads requests that were served: CSV with the columns of ``ballast simulate cluster --requests-out``.

It exists so that simulations can be held against what happened (`controller.validation`), whoever wrote the file: a
run of Ballast, or an export of a real cluster's request log. Arrivals and sizes are read a second time, as a trace, by
who simulates them; this reader leaves out the same rows as that one (no prompt or output tokens).
"""

from pathlib import Path

import numpy as np

from solver.domain.errors import InputError
from solver.domain.trace import LARGEST_TIME_S, Floats, Ints, Labels
from solver.performance.fitted import ObservedRequests
from telemetry.sources.traces.csv_rows import find_columns, read_columns
from telemetry.sources.traces.fields import Kind
from telemetry.sources.traces.lines import LineSource, quoted

LAYOUT = "arrival_s,prompt_tokens,output_tokens,ttft_s,e2e_s"
"""What must be there; queue_s, prefill_instance, decode_instance and preemptions may be."""
_LARGEST_NUMBER = 32_767.0
_TIMES = ("queue_s", "ttft_s", "e2e_s")
_NUMBERS = ("prefill_instance", "decode_instance", "preemptions")


def read_observed(path: str | Path) -> ObservedRequests:
    """Read a file of served requests; an empty cell did not happen, a column that is not there was not seen.

    Raises
    ------
    InputError
        With the line and the column, for everything that makes no sense.
    """
    source = LineSource(path)
    columns = find_columns(
        source,
        layout=LAYOUT,
        required={
            "arrival_s": ("arrival_s", Kind.SECONDS),
            "prompt_tokens": ("prompt_tokens", Kind.TOKENS),
            "output_tokens": ("output_tokens", Kind.TOKENS),
            "ttft_s": ("ttft_s", Kind.TEXT),
            "e2e_s": ("e2e_s", Kind.TEXT),
        },
        optional={name: (name, Kind.TEXT) for name in ("queue_s", *_NUMBERS)},
    )
    blocks: list[dict[str, Floats]] = []
    for lines, values in read_columns(source, columns):
        block = {name: values[name] for name in ("arrival_s", "prompt_tokens", "output_tokens")}
        for name in (*_TIMES, *_NUMBERS):
            largest = LARGEST_TIME_S if name in _TIMES else _LARGEST_NUMBER
            block[name] = (
                _cells(source, name, lines, values[name], largest)
                if name in values
                else np.full(len(lines), np.nan)
            )
        _check(source, lines, block)
        usable = (block["prompt_tokens"] > 0) & (block["output_tokens"] > 0)
        blocks.append({name: column[usable] for name, column in block.items()})
    if not sum(len(block["arrival_s"]) for block in blocks):
        raise InputError("no request in it", where=source.name, right=f"rows of {LAYOUT}")
    whole = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    gaps = np.maximum(whole["output_tokens"] - 1, 1)
    tbt_s = np.where(whole["output_tokens"] > 1, (whole["e2e_s"] - whole["ttft_s"]) / gaps, np.nan)
    return ObservedRequests(
        arrival_s=whole["arrival_s"],
        prompt_tokens=whole["prompt_tokens"].astype(np.int64),
        output_tokens=whole["output_tokens"].astype(np.int64),
        queue_s=whole["queue_s"],
        ttft_s=whole["ttft_s"],
        tbt_s=tbt_s,
        e2e_s=whole["e2e_s"],
        prefill_instance=_whole(whole["prefill_instance"], -1),
        decode_instance=_whole(whole["decode_instance"], -1),
        preemptions=_whole(whole["preemptions"], 0),
    )


def _cells(source: LineSource, name: str, lines: Ints, cells: Labels, largest: float) -> Floats:
    numbers = [_number(text, largest, whole=name in _NUMBERS) for text in cells.names]
    for code, number in enumerate(numbers):
        if number is None:
            at = int(np.argmax(cells.codes == code))
            right = "a whole number" if name in _NUMBERS else "a time in seconds"
            raise InputError(
                f"{quoted(cells.names[code])} is not {right}",
                where=source.place(int(lines[at]), name),
                right=f"{right} from 0 to {largest:,.0f}, or an empty cell for what did not happen",
            )
    values: Floats = np.array(numbers, dtype=np.float64)[cells.codes]
    return values


def _number(text: str, largest: float, *, whole: bool) -> float | None:
    """Read a cell; NaN where it is empty, None where it is no such number."""
    if not text.strip():
        return np.nan
    try:
        value = float(text)
    except ValueError:
        return None
    if not 0.0 <= value <= largest or (whole and not value.is_integer()):
        return None
    return value


def _check(source: LineSource, lines: Ints, block: dict[str, Floats]) -> None:
    """Refuse times in the wrong order; comparisons with what did not happen are false."""
    for earlier, later in (("queue_s", "ttft_s"), ("ttft_s", "e2e_s")):
        wrong = block[earlier] > block[later]
        if np.any(wrong):
            at = int(wrong.argmax())
            raise InputError(
                f"{later} {block[later][at]:.9g} is before {earlier} {block[earlier][at]:.9g}",
                where=source.place(int(lines[at]), later),
                right="queue_s, ttft_s and e2e_s all counted from the arrival, so never falling",
            )


def _whole(values: Floats, missing: int) -> Ints:
    numbers: Ints = np.nan_to_num(values, nan=float(missing)).astype(np.int64)
    return numbers
