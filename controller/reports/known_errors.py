"""What is known of the error of the performance models, for reports that may be read far from the documentation.

It exists because a report stands alone and docs/ is no part of the installed package. It judges nothing: the figures
are copied from docs/accuracy.md and docs/capacity-accuracy.md, and a test holds them equal.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownError:
    """One line: what was compared with what, on how many rows, median error."""

    what: str
    rows: int
    median: str


STEP_TIMES = (
    KnownError(what="ML.ENERGY, groups left out of the fit", rows=415, median="14.1 %"),
    KnownError(what="Vidur operators, groups left out of the fit", rows=377, median="11.1 %"),
    KnownError(what="Splitwise prompt, an engine of 2023 the fit never saw", rows=102, median="26.2 %"),
    KnownError(what="Splitwise token, an engine of 2023 the fit never saw", rows=102, median="38.1 %"),
)
"""Seconds of the shipped roofline; a group is a model on a GPU type."""
WATTS = KnownError(what="ML.ENERGY, groups left out of the fit", rows=415, median="9.7 %")
CAPACITY = KnownError(what="simulated replicas, conversation mixtures", rows=19, median="3.8%")
"""Largest rate within the SLO, predicted against a request-by-request simulation."""
JUDGED_GPU_TYPES = frozenset({"A100-80-SXM", "H100-SXM", "B200-SXM", "A40"})
"""Types with measurements in those tables; for all others the formula is used on faith."""
