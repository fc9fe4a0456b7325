"""The one way in which Ballast says that its input is wrong.

It exists so that every reader, from a trace to a custom resource, answers bad input in the same shape: one line
that says what is wrong, where, and what would be right. It is not for infeasible problems (those are answers,
not errors) and not for bugs.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the input something is wrong: a file, and a line or a field in it."""

    source: str
    line: int | None = None
    field: str | None = None

    def __str__(self) -> str:
        text = self.source if self.line is None else f"{self.source}:{self.line}"
        return text if self.field is None else f"{text}: {self.field}"


class InputError(ValueError):
    """Bad input, told in one line.

    Parameters
    ----------
    what
        What is wrong, with the offending value.
    where
        File, line and field; None only while no reader knows the place yet.
    right
        What would be right, so that the user can repair it without reading our code.
    """

    def __init__(self, what: str, *, where: Place | str | None = None, right: str | None = None) -> None:
        self.what = what
        self.where = where
        self.right = right
        parts = [] if where is None else [f"{where}: "]
        parts.append(what)
        if right is not None:
            parts.append(f"; {right}")
        super().__init__("".join(parts).replace("\n", " "))
