"""One field of a trace at a time: tokens, seconds, calendar stamps, read strictly.

It exists as the meaning of a field: `telemetry.sources.traces.blocks` reads whole blocks at once and must agree with it
wherever it does not hand back, and every error message of a CSV reader is made here.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import Enum

from solver.domain.trace import LARGEST_TIME_S, LARGEST_TOKEN_COUNT
from telemetry.sources.traces.lines import quoted

LARGEST_RATE_RPS = 1e10
"""Above it, more than one request per second for every human, a rate is a slip."""
FIRST_YEAR, LAST_YEAR = 1970, 2261  # nanoseconds since 1970 in 64 bits

_TOKENS = re.compile(r"0*([0-9]{1,10})(?:\.0*)?")
_MICROSECONDS = re.compile(r"[0-9]{1,16}")
_DECIMAL = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_STAMP = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[ T]([0-9]{2}):([0-9]{2}):([0-9]{2})"
    r"(?:\.([0-9]{1,9}))?(?:Z|([+-])([0-9]{2}):([0-9]{2}))?"
)


class Kind(Enum):
    """What a column holds."""

    TOKENS = "tokens"
    SECONDS = "seconds"
    MICROSECONDS = "microseconds"
    """Whole microseconds; read as seconds."""
    RATE = "requests per second"
    STAMP = "stamp"
    TEXT = "text"


class BadFieldError(ValueError):
    """A field that is not what its column holds; the reader adds the place."""

    def __init__(self, what: str, right: str) -> None:
        super().__init__(what)
        self.what = what
        self.right = right


def tokens(text: str) -> int:
    """Read a token count; a whole number written with decimals (``12.0``) is one."""
    match = _TOKENS.fullmatch(text.strip())
    if match is None or int(match[1]) > LARGEST_TOKEN_COUNT:
        raise BadFieldError(
            f"{quoted(text)} is not a number of tokens", f"a whole number from 0 to {LARGEST_TOKEN_COUNT:,}"
        )
    return int(match[1])


def seconds(text: str) -> float:
    """Read a time in seconds, not negative."""
    return _decimal(text, "a time in seconds", LARGEST_TIME_S)


def rate_rps(text: str) -> float:
    """Read a rate in requests per second, not negative."""
    return _decimal(text, "a rate", LARGEST_RATE_RPS)


def _decimal(text: str, what: str, largest: float) -> float:
    match = _DECIMAL.fullmatch(text.strip())
    value = float(match[0]) if match else float("inf")
    if value > largest:
        raise BadFieldError(f"{quoted(text)} is not {what}", f"a decimal number from 0 to {largest:,.0f}")
    return value


def microseconds(text: str) -> float:
    """Read a time in whole microseconds, not negative, as seconds."""
    match = _MICROSECONDS.fullmatch(text.strip())
    value = int(match[0]) if match else LARGEST_TIME_S * 2e6
    if value > LARGEST_TIME_S * 1e6:
        raise BadFieldError(
            f"{quoted(text)} is not a time in microseconds",
            f"a whole number from 0 to {LARGEST_TIME_S * 1e6:,.0f}",
        )
    return value / 1e6


def stamp_ns(text: str) -> int:
    """Read a calendar time as nanoseconds since 1970; without a zone it is taken as UTC."""
    right = "a time like 2024-05-10 00:00:00.0099300 (with Z or +00:00 behind it or without)"
    match = _STAMP.fullmatch(text.strip())
    if match is None:
        raise BadFieldError(f"{quoted(text)} is not a time stamp", right)
    year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise BadFieldError(f"{quoted(text)} is not a time stamp ({error})", right) from None
    if not FIRST_YEAR <= year <= LAST_YEAR:
        raise BadFieldError(
            f"{quoted(text)} is not a time stamp of our age", f"a year from {FIRST_YEAR} to {LAST_YEAR}"
        )
    if match[8]:
        zone_hours, zone_minutes = int(match[9]), int(match[10])
        if zone_hours > 23 or zone_minutes > 59:
            raise BadFieldError(f"{quoted(text)} has no time zone of this earth", right)
        offset = timedelta(hours=zone_hours, minutes=zone_minutes)
        moment = moment - offset if match[8] == "+" else moment + offset
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 10**9 + int((match[7] or "0").ljust(9, "0"))


READ: dict[Kind, Callable[[str], int | float | str]] = {
    Kind.TOKENS: tokens,
    Kind.SECONDS: seconds,
    Kind.MICROSECONDS: microseconds,
    Kind.RATE: rate_rps,
    Kind.STAMP: stamp_ns,
    Kind.TEXT: str,
}
