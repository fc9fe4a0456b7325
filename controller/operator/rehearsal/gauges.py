"""What the gauges of rehearsals say, made when somebody asks. It rehearses nothing."""

from collections.abc import Iterator

from controller.operator.metrics import Metrics, Row
from controller.operator.rehearsal.desk import RehearsalDesk


def follow_rehearsals(metrics: Metrics, desk: RehearsalDesk) -> None:
    """Let the gauges tell what the desk knows whenever they are read."""
    metrics.rehearsal_attainment.rows = lambda: _attainment(desk)
    metrics.rehearsal_waiting.rows = lambda: [((), float(desk.waiting))]


def _attainment(desk: RehearsalDesk) -> Iterator[Row]:
    for answered in desk.answers.values():
        answer = answered.answer
        for fleet, share in (("running", answer.running_ratio), ("planned", answer.planned_ratio)):
            if share is not None:
                yield (*answered.question.key, fleet), share
