"""A block of plain CSV lines read with array operations, a few hundred nanoseconds per row.

It exists for speed only: `parse_block` returns what `telemetry.sources.traces.fields` would return for every row, or
None if anything in the block is out of the ordinary (quotes, blank lines, exponents, a bad value); then the caller
reads it line by line, which is also where errors get their words. It never guesses and never raises.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solver.domain.trace import LARGEST_TIME_S, LARGEST_TOKEN_COUNT, Floats, Ints, Labels
from telemetry.sources.traces.fields import (
    FIRST_YEAR,
    LARGEST_RATE_RPS,
    LAST_YEAR,
    Kind,
)

Bytes = NDArray[np.uint8]
_ZERO, _DOT, _COMMA, _LINE_FEED = b"0.,\n"
_WIDEST_NUMBER = 24
_WIDEST_TEXT = 64
_EXACT_DIGITS = 15
"""So many digits, read as an integer and divided by a power of ten once, give the nearest double."""
_NINE = 9


def parse_block(block: bytes, width: int, wanted: Sequence[tuple[int, Kind]]) -> list[Any] | None:
    """Read the wanted columns of a block of whole lines.

    Parameters
    ----------
    block
        Lines ending in a line feed, or in a carriage return and a line feed.
    width
        Fields in every row, at least 2.
    wanted
        (index of the column, what it holds).

    Returns
    -------
    list or None
        Per wanted column an int64 array (tokens, nanoseconds), a float64 array (seconds, rates) or `Labels`.
    """
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    if b'"' in block or b"\r" in block or width < 2:
        return None
    if not block.isascii():
        try:
            block.decode("utf-8")
        except UnicodeDecodeError:
            return None
    data = np.frombuffer(block + bytes(_WIDEST_TEXT), dtype=np.uint8)  # room behind the last field
    ends = np.flatnonzero(data == _LINE_FEED)
    commas = np.flatnonzero(data == _COMMA)
    if len(commas) != len(ends) * (width - 1):
        return None
    of_row = commas.reshape(len(ends), width - 1)
    starts = np.concatenate(([0], ends[:-1] + 1))
    # Commas rise, so if the first and last of each group lie in their row, all do.
    if np.any(of_row[:, 0] < starts) or np.any(of_row[:, -1] > ends):
        return None
    columns: list[Any] = []
    for index, kind in wanted:
        first = starts if index == 0 else of_row[:, index - 1] + 1
        behind = ends if index == width - 1 else of_row[:, index]
        column = _READ[kind](data, first, behind - first)
        if column is None:
            return None
        columns.append(column)
    return columns


def _characters(data: Bytes, first: Ints, widths: Ints, widest: int) -> Bytes:
    """Return the fields as rows of ``widest`` characters, padded with zero bytes behind."""
    characters: Bytes = np.lib.stride_tricks.sliding_window_view(data, widest)[first]
    characters *= np.arange(widest) < widths[:, None]
    return characters


def _tokens(data: Bytes, first: Ints, widths: Ints) -> Ints | None:
    value = _whole_numbers(data, first, widths, widest=10)
    return None if value is None or value.max() > LARGEST_TOKEN_COUNT else value


def _microseconds(data: Bytes, first: Ints, widths: Ints) -> Floats | None:
    # As many digits as a double holds exactly; what is longer is rare enough to be read line by line.
    value = _whole_numbers(data, first, widths, widest=_EXACT_DIGITS)
    return None if value is None else value / 1e6


def _whole_numbers(data: Bytes, first: Ints, widths: Ints, *, widest: int) -> Ints | None:
    if widths.min() < 1 or widths.max() > widest:
        return None
    value = np.zeros(len(first), dtype=np.int64)
    last = first + widths - 1
    for place in range(int(widths.max())):  # from the last digit to the first
        digit = data[np.maximum(last - place, 0)] - np.uint8(_ZERO)
        inside = place < widths
        if np.any(inside & (digit > _NINE)):
            return None
        value += np.where(inside, digit, 0) * np.int64(10**place)
    return value


def _seconds(data: Bytes, first: Ints, widths: Ints) -> Floats | None:
    value = _decimals(data, first, widths)
    return None if value is None or value.max() > LARGEST_TIME_S else value


def _rates(data: Bytes, first: Ints, widths: Ints) -> Floats | None:
    value = _decimals(data, first, widths)
    return None if value is None or value.max() > LARGEST_RATE_RPS else value


def _decimals(data: Bytes, first: Ints, widths: Ints) -> Floats | None:
    widest = int(widths.max())
    if widths.min() < 1 or widest > _WIDEST_NUMBER:
        return None
    characters = _characters(data, first, widths, widest)
    dots = characters == _DOT
    digits = (characters - np.uint8(_ZERO)) <= _NINE
    dot_count = dots.sum(axis=1)
    digit_count = digits.sum(axis=1)
    if np.any(dot_count > 1) or np.any(digit_count < 1) or np.any(dot_count + digit_count != widths):
        return None
    value: Floats
    if int(digit_count.max()) <= _EXACT_DIGITS:
        mantissa = np.zeros(len(first), dtype=np.int64)
        for place in range(widest):
            digit = characters[:, place] - np.uint8(_ZERO)
            mantissa = np.where(digits[:, place], mantissa * 10 + digit, mantissa)
        decimals = np.where(dot_count == 1, widths - 1 - dots.argmax(axis=1), 0)
        value = mantissa / 10.0 ** np.arange(_EXACT_DIGITS + 1)[decimals]
    else:
        value = np.ascontiguousarray(characters).view(f"S{widest}")[:, 0].astype(np.float64)
    return value


def _stamps(data: Bytes, first: Ints, widths: Ints) -> Ints | None:
    if widths.min() < 19 or widths.max() > 35:
        return None
    characters = _characters(data, first, widths, 19)
    layout = np.frombuffer(b"0000-00-00 00:00:00", dtype=np.uint8)
    fixed = layout != _ZERO
    characters[characters[:, 10] == ord("T"), 10] = ord(" ")
    marks = characters[:, fixed]
    digits = characters[:, ~fixed] - np.uint8(_ZERO)
    if np.any(marks != layout[fixed]) or np.any(digits > _NINE):
        return None
    number = digits.astype(np.int64)
    year = number[:, :4] @ np.array([1000, 100, 10, 1])
    month, day, hour, minute, second = (number[:, i] * 10 + number[:, i + 1] for i in range(4, 14, 2))
    if np.any((year < FIRST_YEAR) | (year > LAST_YEAR) | (month < 1) | (month > 12) | (day < 1)):
        return None
    leap = ((year % 4 == 0) & (year % 100 != 0)) | (year % 400 == 0)
    month_days = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])[month - 1] + (leap & (month == 2))
    if np.any((day > month_days) | (hour > 23) | (minute > 59) | (second > 59)):
        return None
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]").astype(np.int64) + day - 1
    whole_s = ((days * 24 + hour) * 60 + minute) * 60 + second
    rest = _fraction_and_zone(data, first + 19, widths - 19)
    return None if rest is None else whole_s * 10**9 + rest


def _fraction_and_zone(data: Bytes, first: Ints, widths: Ints) -> Ints | None:
    """Return nanoseconds to add for what follows the seconds: ``.123``, ``Z``, ``+01:00``, or nothing."""
    characters = _characters(data, first, widths, 16)
    zone_width = np.zeros(len(first), dtype=np.int64)
    last = data[np.maximum(first + widths - 1, 0)]
    zone_width[(widths >= 1) & (last == ord("Z"))] = 1
    sixth = data[np.maximum(first + widths - 6, 0)]
    offset = (widths >= 6) & ((sixth == ord("+")) | (sixth == ord("-")))
    zone_width[offset] = 6
    nanoseconds = np.zeros(len(first), dtype=np.int64)
    if offset.any():
        zone = _characters(data, (first + widths - 6)[offset], np.full(int(offset.sum()), 6), 6)
        digits = (zone[:, [1, 2, 4, 5]] - np.uint8(_ZERO)).astype(np.int64)
        hours, minutes = digits[:, 0] * 10 + digits[:, 1], digits[:, 2] * 10 + digits[:, 3]
        if np.any(zone[:, 3] != ord(":")) or np.any(digits > _NINE) or np.any((hours > 23) | (minutes > 59)):
            return None
        minutes_east = np.where(zone[:, 0] == ord("+"), 1, -1) * (hours * 60 + minutes)
        nanoseconds[offset] = -minutes_east * 60 * 10**9
    fraction_width = widths - zone_width  # with its dot
    if np.any((fraction_width == 1) | (fraction_width > 10)):
        return None
    if np.any((fraction_width > 1) & (characters[:, 0] != _DOT)):
        return None
    for place in range(1, int(fraction_width.max()) if len(first) else 0):
        digit = characters[:, place] - np.uint8(_ZERO)
        inside = place < fraction_width
        if np.any(inside & (digit > _NINE)):
            return None
        nanoseconds += np.where(inside, digit, 0) * np.int64(10 ** (9 - place))
    return nanoseconds


def _text(data: Bytes, first: Ints, widths: Ints) -> Labels | None:
    widest = max(1, int(widths.max()))
    if widest > _WIDEST_TEXT:
        return None
    characters = _characters(data, first, widths, widest)
    if np.any((characters == 0).sum(axis=1) != widest - widths):  # a zero byte inside would be lost
        return None
    values, codes = np.unique(np.ascontiguousarray(characters).view(f"S{widest}")[:, 0], return_inverse=True)
    return Labels(codes=codes, names=tuple(value.decode("utf-8") for value in values.tolist()))


_READ = {
    Kind.TOKENS: _tokens,
    Kind.SECONDS: _seconds,
    Kind.MICROSECONDS: _microseconds,
    Kind.RATE: _rates,
    Kind.STAMP: _stamps,
    Kind.TEXT: _text,
}
