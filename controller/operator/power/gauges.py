"""What the gauges of PowerDomains say, read from the loop when somebody asks.

It exists so that rows go with their object and a status and a gauge never differ. It knows no HTTP and decides nothing;
a replica that does not lead has no rows.
"""

from collections.abc import Callable, Iterator

from controller.operator.metrics import Metrics, Row
from controller.operator.power.figures import Figures
from controller.operator.power.loop import PowerLoop

Figure = Callable[[Figures], float | None]


def follow_power(metrics: Metrics, loop: PowerLoop) -> None:
    """Let the gauges tell what stands whenever they are read."""
    figures: dict[str, Figure] = {
        "power_watts": lambda now: now.power_w,
        "power_budget": lambda now: now.budget_w,
        "power_theta": lambda now: now.theta,
        "power_worst_theta": lambda now: now.worst_theta,
        "power_worst": lambda now: now.worst_w,
        "power_full": lambda now: now.full_w,
        "power_nodes": lambda now: float(now.nodes),
        "power_brakes": lambda now: float(now.brakes),
        "power_sample_age": lambda now: (
            None if now.sampled_s is None else max(0.0, loop.wall() - now.sampled_s)
        ),
    }
    for name, figure in figures.items():
        getattr(metrics, name).rows = _rows_of(loop, figure)
    metrics.power_cap.rows = lambda: _caps(loop, 2)
    metrics.power_capped.rows = lambda: _caps(loop, 3)
    metrics.power_condition.rows = lambda: _conditions(loop)
    metrics.power_round.rows = lambda: iter([((), loop.took_s)] if loop.rounds else [])


def _rows_of(loop: PowerLoop, figure: Figure) -> Callable[[], Iterator[Row]]:
    def rows() -> Iterator[Row]:
        for name, now in loop.present().items():
            value = figure(now)
            if value is not None:
                yield (name,), float(value)

    return rows


def _caps(loop: PowerLoop, index: int) -> Iterator[Row]:
    for name, now in loop.present().items():
        for cap in now.caps:
            yield (name, cap[0]), float(cap[index])


def _conditions(loop: PowerLoop) -> Iterator[Row]:
    for name, now in loop.present().items():
        for kind, finding in now.findings.items():
            if finding.status is not None:
                yield (name, kind), float(finding.status)
