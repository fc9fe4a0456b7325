"""What a planner knows before the trace begins: earlier rates and request sizes, from the files that it names.

It exists so that a decision at time 0 has something to go by. It reads files; what may be known of them at a time is
the business of `controller.closed_loop.seen`.
"""

import math
from dataclasses import replace

from controller.closed_loop.seen import sizes_of
from simulator.scenario import SHIPPED_TRACE, PlannerRules, RateHistory, Scenario
from solver.domain.errors import InputError
from solver.domain.gpu_mix import RequestBucket
from solver.domain.rate_windows import RateWindows
from telemetry.sources.traces.read import read_trace
from telemetry.sources.traces.servegen import read_rate_windows
from telemetry.sources.traces.shipped import shipped_trace_path


def read_history(scenario: Scenario, named: RateHistory) -> RateWindows:
    """Read the windows before the trace and put them on its clock.

    Raises
    ------
    InputError
        If the file has no such series, or no window before the trace.
    """
    series = read_rate_windows(named.file)
    names = [one.name for one in series]
    if named.service is None and len(series) > 1:
        raise InputError(
            f"{named.file} holds {len(series)} series",
            where=scenario.place("planner.history.service"),
            right=f"one of {', '.join(names[:8])}",
        )
    if named.service is not None and named.service not in names:
        raise InputError(
            f"no series {named.service!r} in {named.file}",
            where=scenario.place("planner.history.service"),
            right=f"one of {', '.join(names[:8])}",
        )
    found = series[0] if named.service is None else series[names.index(named.service)]
    until_s = found.start_s + found.duration_s if named.until_s is None else named.until_s
    return before(found, until_s, scale=named.scale, where=str(scenario.place("planner.history.until_s")))


def before(
    windows: RateWindows, until_s: float, *, scale: float = 1.0, where: str | None = None
) -> RateWindows:
    """Return the windows that end by a time, with that time as 0 and rates multiplied.

    Raises
    ------
    InputError
        If there is none.
    """
    number = math.floor((until_s - windows.start_s) / windows.window_s + 1e-9)
    if number < 1:
        raise InputError(
            f"no window of {windows.name!r} ends by {until_s:g} s",
            where=where,
            right=f"from {windows.start_s + windows.window_s:g} s on",
        )
    kept = windows.rate_rps[:number]
    return replace(windows, start_s=windows.start_s - until_s, rate_rps=kept * scale)


def read_sizes(rules: PlannerRules) -> tuple[RequestBucket, ...]:
    """Read the request sizes that are known beforehand; none if the planner names no trace."""
    if rules.sizes is None:
        return ()
    path = shipped_trace_path() if rules.sizes == SHIPPED_TRACE else rules.sizes
    known = read_trace(path).requests
    return sizes_of(known.prompt_tokens, known.output_tokens)
