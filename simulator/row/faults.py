"""Faults of a row, schema ``row-faults/1``: what happens when, read from JSON.

It exists so that one file says what breaks; what each kind does is written in docs/power.md and done by the meter, the
agents and the run. Reading refuses what it does not know: a fault that is spelt wrongly must not pass as none.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solver.domain.errors import InputError, Place
from solver.domain.power import DEFAULT_CURVE, START_THETA, BreakerCurve, breaker_curve

SCHEMA = "row-faults/1"
_LARGEST_BYTES = 16 * 2**20
_LARGEST_EVENTS = 10_000

# What each kind needs beside t and dur. True: dur may be left out, the fault has no end of its own.
KINDS: dict[str, tuple[tuple[str, ...], bool]] = {
    "row_telemetry_missing": ((), False),
    "row_telemetry_nan": ((), False),
    "row_telemetry_negative": ((), False),
    "row_telemetry_stuck": ((), False),
    "row_telemetry_scale": (("factor",), False),
    "telemetry_clock_skew": (("rack_offsets_s",), False),
    "telemetry_out_of_order": ((), False),
    "telemetry_duplicates": ((), False),
    "clock_step": (("seconds",), True),
    "actuator_ignored": (("servers",), False),
    "actuator_latency": (("seconds",), False),
    "actuator_drop": (("probability",), False),
    "set_returns_ok_but_readback_old": (("servers",), False),
    "budget_factor": (("factor",), False),
    "controller_down": ((), False),
    "apiserver_unreachable": ((), False),
    "agent_killed_sigkill": (("servers",), False),
    "driver_reload": (("servers",), True),
    "gpu_lost": (("server", "gpu"), False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One event. Fields that its kind does not use keep their defaults."""

    kind: str
    start_s: float
    dur_s: float
    factor: float = 1.0
    seconds: float = 0.0
    probability: float = 0.0
    rack_offsets_s: tuple[float, ...] = ()
    servers: tuple[int, ...] = ()
    gpu: int = 0

    @property
    def end_s(self) -> float:
        """When it is over."""
        return self.start_s + self.dur_s

    def active(self, now_s: float) -> bool:
        """Whether it acts."""
        return self.start_s <= now_s < self.end_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFaults:
    """Events, and what a file may say of budget and breaker; None where it does not."""

    events: tuple[Fault, ...] = ()
    budget_w: float | None = None
    curve: BreakerCurve | None = None
    start_theta: float | None = None
    kinds: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        """Note which kinds there are."""
        object.__setattr__(self, "kinds", frozenset(event.kind for event in self.events))

    def active(self, kind: str, now_s: float) -> list[Fault]:
        """Return the events of a kind that act now."""
        if kind not in self.kinds:
            return []
        return [event for event in self.events if event.kind == kind and event.active(now_s)]

    def any(self, kind: str, now_s: float) -> bool:
        """Whether an event of a kind acts now."""
        return bool(self.active(kind, now_s))


def read_row_faults(path: str | Path, *, servers: int) -> RowFaults:
    """Read a file of faults for a row of so many servers.

    Raises
    ------
    InputError
        With file and field: not JSON, another schema, an unknown kind or field, a value that has no meaning.
    """
    source = str(path)
    try:
        with Path(path).open("rb") as raw:
            data = raw.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=source) from None
    if len(data) > _LARGEST_BYTES:
        raise InputError("more than 16 MiB", where=source, right="give fewer events")
    try:
        document = json.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {str(error)[:80]}", where=source, right=f"a {SCHEMA} file") from None
    return row_faults_of(document, servers=servers, source=source)


def row_faults_of(document: Any, *, servers: int, source: str = "faults") -> RowFaults:
    """Take faults from a document as JSON loads it; errors as in `read_row_faults`."""
    if not isinstance(document, dict):
        _refuse(source, None, "not an object", f"a {SCHEMA} file")
    if document.get("schema") != SCHEMA:
        _refuse(source, "schema", f"{document.get('schema')!r:.60}", repr(SCHEMA))
    _only(document, ("schema", "budget_w", "breaker", "events"), source, None)
    budget_w = None
    if document.get("budget_w") is not None:
        budget_w = _number(document["budget_w"], source, "budget_w", above=0.0)
    curve, theta = _breaker(document.get("breaker"), source)
    events = document.get("events", [])
    if not isinstance(events, list) or len(events) > _LARGEST_EVENTS:
        _refuse(source, "events", "not a list", f"a list of at most {_LARGEST_EVENTS} events")
    return RowFaults(
        events=tuple(_event(event, f"events[{i}]", source, servers) for i, event in enumerate(events)),
        budget_w=budget_w,
        curve=curve,
        start_theta=theta,
    )


def _breaker(found: Any, source: str) -> tuple[BreakerCurve | None, float | None]:
    if found is None:
        return None, None
    if not isinstance(found, dict):
        _refuse(source, "breaker", "not an object", '{"curve": NAME, "theta0": 0.6}')
    _only(found, ("curve", "theta0", "tau_s", "trip_K"), source, "breaker")
    name = found.get("curve", DEFAULT_CURVE)
    constants = {
        key: None
        if found.get(theirs) is None
        else _number(found[theirs], source, f"breaker.{theirs}", above=0.0)
        for key, theirs in (("tau_s", "tau_s"), ("trip_ratio", "trip_K"))
    }
    try:
        curve = breaker_curve(str(name), **constants)
    except InputError as error:
        field_of = {"trip_ratio": "trip_K"}.get(str(error.where), str(error.where))
        raise InputError(
            error.what, where=Place(source, field=f"breaker.{field_of}"), right=error.right
        ) from None
    theta = _number(found.get("theta0", START_THETA), source, "breaker.theta0", least=0.0)
    if theta >= curve.trip_theta:
        _refuse(source, "breaker.theta0", f"{theta:g}", f"below the trip state {curve.trip_theta:g}")
    return curve, theta


def _event(found: Any, where: str, source: str, servers: int) -> Fault:
    if not isinstance(found, dict):
        _refuse(source, where, "not an object", '{"t": 60, "dur": 30, "kind": NAME}')
    kind = found.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        _refuse(source, f"{where}.kind", f"{kind!r:.60}", f"one of {', '.join(KINDS)}")
    needs, endless = KINDS[kind]
    _only(found, ("t", "dur", "kind", *needs), source, where)
    for name in ("t", *needs, *(() if endless else ("dur",))):
        if name not in found:
            _refuse(source, f"{where}.{name}", "missing", f"{kind} needs it")
    values: dict[str, Any] = {}
    start_s = _number(found["t"], source, f"{where}.t", least=0.0)
    dur_s = _number(found.get("dur", 0.0) or 0.0, source, f"{where}.dur", least=0.0)
    if "factor" in needs:
        values["factor"] = _number(found["factor"], source, f"{where}.factor", above=0.0)
    if "seconds" in needs:
        least = 0.0 if kind == "actuator_latency" else -1e9
        values["seconds"] = _number(found["seconds"], source, f"{where}.seconds", least=least)
    if "probability" in needs:
        value = _number(found["probability"], source, f"{where}.probability", least=0.0)
        if value > 1.0:
            _refuse(source, f"{where}.probability", f"{value:g}", "0 to 1")
        values["probability"] = value
    if "rack_offsets_s" in needs:
        offsets = found["rack_offsets_s"]
        if not isinstance(offsets, list) or not 0 < len(offsets) <= 10_000:
            _refuse(source, f"{where}.rack_offsets_s", "not a list of seconds", "one or more numbers")
        values["rack_offsets_s"] = tuple(
            _number(value, source, f"{where}.rack_offsets_s[{i}]", least=-1e9)
            for i, value in enumerate(offsets)
        )
    if "servers" in needs:
        listed = found["servers"]
        if not isinstance(listed, list) or len(listed) > 100_000:
            _refuse(source, f"{where}.servers", "not a list of servers", f"numbers from 0 to {servers - 1}")
        values["servers"] = tuple(
            _server(value, source, f"{where}.servers[{i}]", servers) for i, value in enumerate(listed)
        )
    if "server" in needs:
        values["servers"] = (_server(found["server"], source, f"{where}.server", servers),)
        values["gpu"] = _server(found["gpu"], source, f"{where}.gpu", 8)
    return Fault(kind=kind, start_s=start_s, dur_s=dur_s, **values)


def _server(value: Any, source: str, name: str, count: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        _refuse(source, name, f"{value!r:.60}", f"a whole number from 0 to {count - 1}")
    return int(value)


def _number(
    value: Any, source: str, name: str, *, least: float | None = None, above: float | None = None
) -> float:
    right = "a finite number"
    if least is not None and least > -1e9:
        right += f" of {least:g} or more"
    if above is not None:
        right += f" above {above:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(source, name, f"{value!r:.60}", right)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    wrong = not math.isfinite(number) or abs(number) > 1e12
    if wrong or (least is not None and number < least) or (above is not None and number <= above):
        _refuse(source, name, f"{value!r:.60}", right)
    return number


def _only(found: dict[str, Any], known: tuple[str, ...], source: str, where: str | None) -> None:
    for name in found:
        if name not in known:
            place = str(name)[:60] if where is None else f"{where}.{str(name)[:60]}"
            _refuse(source, place, "unknown field", f"one of {', '.join(known)}")


def _refuse(source: str, name: str | None, what: str, right: str) -> Any:
    raise InputError(what, where=Place(source, field=name), right=right)
