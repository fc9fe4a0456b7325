"""What the gauges of ExpertPlacements say, read from their statuses and from the loop when somebody asks.

It exists so that a status and a gauge never differ, and so that rows go with their object. It knows no HTTP and decides
nothing; a replica that does not lead has no rows.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from controller.operator.experts.loop import ExpertLoop
from controller.operator.metrics import Metrics, Row

Figure = Callable[[Mapping[str, Any]], float | None]
MICRO = 1e-6


def follow_experts(metrics: Metrics, loop: ExpertLoop) -> None:
    """Let the gauges tell what stands whenever they are read."""
    figures: dict[str, Figure] = {
        "expert_objective": lambda status: _micro(status.get("objectiveUs")),
        "expert_lower_bound": lambda status: _micro(status.get("lowerBoundUs")),
        "expert_gap": lambda status: status.get("gap"),
        "expert_balance": lambda status: (status.get("balance") or {}).get("max"),
        "expert_moved": lambda status: status.get("movedRatio"),
        "expert_net_gain": lambda status: status.get("netGainSeconds"),
    }
    for name, figure in figures.items():
        getattr(metrics, name).rows = _rows_of(loop, figure)
    metrics.expert_load_age.rows = lambda: _ages(loop)
    metrics.expert_solve.rows = lambda: _solves(loop)
    metrics.expert_condition.rows = lambda: _conditions(loop)


def _micro(value: float | None) -> float | None:
    return None if value is None else value * MICRO


def _rows_of(loop: ExpertLoop, figure: Figure) -> Callable[[], Iterator[Row]]:
    def rows() -> Iterator[Row]:
        for key, (status, _) in loop.present().items():
            value = figure(status)
            if value is not None:
                yield key, float(value)

    return rows


def _ages(loop: ExpertLoop) -> Iterator[Row]:
    for key, (_, book) in loop.present().items():
        if book.look is not None and book.look.recording is not None:
            yield key, max(0.0, loop.clock() - book.look.at_s)


def _solves(loop: ExpertLoop) -> Iterator[Row]:
    for key, (_, book) in loop.present().items():
        if book.solve_s is not None:
            yield key, book.solve_s


def _conditions(loop: ExpertLoop) -> Iterator[Row]:
    for key, (status, _) in loop.present().items():
        for condition in status.get("conditions") or ():
            if condition["status"] in {"True", "False"}:
                yield (*key, condition["type"]), float(condition["status"] == "True")
