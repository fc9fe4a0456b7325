"""What an examination of a cluster finds, and where it is noted.

It exists so that all modules beside it say in the same way what they found, and what they could not read. It looks at
nothing itself, and prints nothing: that is the command's business.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from controller.operator.api import ApiError

_UNREACHABLE = {0, 401}
"""Codes of errors after which nothing else can be asked."""


class Mark(StrEnum):
    """How a finding is meant."""

    OK = "ok"
    MISSING = "missing"
    """Something does not work without it."""
    WARNING = "warning"
    """It works, but somebody should know."""
    ABSENT = "absent"
    """Optional, and not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    area: str
    mark: Mark
    what: str
    do: str = ""
    """What to do; empty where there is nothing to be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """GPU nodes with one value of the product label."""

    label: str
    gpu_type: str
    """Name in the catalogue, or empty."""
    nodes: int
    gpus: int
    closed: int
    """Nodes that take no pods now: not ready, cordoned or tainted."""
    profiles: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that was found."""

    server_version: str
    namespace: str
    """Of the release; empty if it was not found."""
    leader: str
    findings: tuple[Finding, ...]
    products: tuple[Product, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return all(finding.mark is not Mark.MISSING for finding in self.findings)


@dataclass(slots=True, kw_only=True)
class Notes:
    """What was found so far, in the order in which it was looked at."""

    findings: list[Finding] = field(default_factory=list)

    def note(self, area: str, mark: Mark, what: str, do: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(area=area, mark=mark, what=what, do=do))

    def unseen(self, area: str, what: str, error: ApiError) -> None:
        """Say what could not be read, and go on.

        Raises
        ------
        ApiError
            The same, if nothing else can be asked after it.
        """
        end_if_unreachable(error)
        another_way = "ask with an account that may" if error.code == 403 else "ask again"
        self.note(area, Mark.WARNING, f"{what} cannot be read: {error}", another_way)


def end_if_unreachable(error: ApiError) -> None:
    """Raise an error after which nothing else can be asked: no API server, or one that does not know us."""
    if error.code in _UNREACHABLE:
        raise error
