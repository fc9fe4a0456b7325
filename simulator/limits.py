"""What limits a run, in sentences: the first thing a reader wants to know after the percentiles.

It exists so that table and report say the same. It explains from the figures; it runs no what-if.
"""

from simulator.metrics import ClusterFigures, SloCheck
from simulator.record import Saturation

BUSY_RATIO = 0.9
_SATURATION_WORDS = {
    Saturation.STABLE: "stable: the fleet kept up",
    Saturation.BACKLOGGED: "backlogged: for a time the fleet fell behind",
    Saturation.OVERLOADED: "overloaded: the fleet fell behind for good, so percentiles tell the trace's length",
}


def limits_of(figures: ClusterFigures) -> tuple[str, ...]:
    """Say what limits a run, the most important first."""
    lines = [_SATURATION_WORDS[figures.saturation]]
    if figures.stopped_early:
        lines.append("the run was broken off because the backlog grew without end")
    counts = figures.requests
    if counts.incomplete:
        lines.append(
            f"{counts.incomplete:,} requests are incomplete; no SLO is met with such among those that count"
        )
    lines += [
        f"{number:,} requests rejected: {reason}" for reason, number in figures.rejected_because.items()
    ]
    tightest = figures.slo.limiting
    if tightest is not None:
        lines.append(_tightest(tightest))
    known = [pool for pool in figures.pools if pool.utilisation_ratio is not None]
    busiest = max(known, key=lambda pool: pool.utilisation_ratio or 0.0, default=None)
    if busiest is not None:
        share = 100.0 * (busiest.utilisation_ratio or 0.0)
        lines.append(f"busiest pool: {busiest.name}, at work {share:.1f} % of its time")
    waiting = max(figures.pools, key=lambda pool: pool.mean_waiting, default=None)
    if waiting is not None and waiting.mean_waiting >= 1.0:
        lines.append(
            f"longest queues: {waiting.name}, {waiting.mean_waiting:.1f} requests per instance in the mean"
        )
    if figures.preemptions:
        lines.append(f"KV memory: {figures.preemptions:,} preemptions")
    power = figures.power
    if power is not None and power.over_budget_s:
        lines.append(f"power: above the budget of {power.budget_w:,.0f} W for {power.over_budget_s:,.1f} s")
    return tuple(lines)


def _tightest(check: SloCheck) -> str:
    if check.value is None and check.met:
        return f"SLO target {check.target}: no completed request to judge it by"
    if check.value is None:
        return f"SLO target {check.target} cannot be met: too many requests were rejected"
    share = 100.0 * check.margin_ratio
    verb = "missed" if not check.met else "nearest to its limit"
    return f"SLO target {check.target}: {verb}, at {share:.1f} % of it"
