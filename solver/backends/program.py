"""Linear and mixed-integer programs as plain arrays, and what a backend answers.

It exists so that a formulation is written once and solved by any backend (MathOpt HiGHS, PuLP CBC), each checking
the other. It is not a modelling language: it collects sparse rows, nothing more.

A program is: minimise cost·v + offset subject to row_lower <= A v <= row_upper, lower <= v <= upper, some v integer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(slots=True)
class Expression:
    """A linear expression: coefficients of variables, without a constant."""

    columns: list[int] = field(default_factory=list)
    coefficients: list[float] = field(default_factory=list)

    def add(self, column: int, coefficient: float) -> None:
        """Add ``coefficient`` times a variable."""
        self.columns.append(column)
        self.coefficients.append(coefficient)

    def add_scaled(self, other: "Expression", factor: float) -> None:
        """Add ``factor`` times another expression."""
        self.columns.extend(other.columns)
        self.coefficients.extend(factor * coefficient for coefficient in other.coefficients)


class Program:
    """A program under construction; variables and rows are numbered from 0 in the order of their adding."""

    def __init__(self) -> None:
        self.lower: list[float] = []
        self.upper: list[float] = []
        self.cost: list[float] = []
        self.integer: list[bool] = []
        self.row_lower: list[float] = []
        self.row_upper: list[float] = []
        self.entry_rows: list[int] = []
        self.entry_columns: list[int] = []
        self.entry_values: list[float] = []
        self.offset = 0.0

    @property
    def variables(self) -> int:
        """Number of variables."""
        return len(self.lower)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.row_lower)

    def add_variable(
        self, *, lower: float = 0.0, upper: float = np.inf, cost: float = 0.0, integer: bool = False
    ) -> int:
        """Add one variable; returns its index."""
        self.lower.append(lower)
        self.upper.append(upper)
        self.cost.append(cost)
        self.integer.append(integer)
        return len(self.lower) - 1

    def add_shares(self, count: int, *, upper: float = 1.0) -> range:
        """Add ``count`` continuous variables in [0, ``upper``] without cost; returns their indices."""
        start = len(self.lower)
        self.lower.extend([0.0] * count)
        self.upper.extend([upper] * count)
        self.cost.extend([0.0] * count)
        self.integer.extend([False] * count)
        return range(start, start + count)

    def add_row(
        self,
        columns: Sequence[int],
        coefficients: Sequence[float],
        *,
        lower: float = -np.inf,
        upper: float = np.inf,
    ) -> int:
        """Add the row lower <= coefficients · v[columns] <= upper (repeated columns add up); returns its index."""
        row = len(self.row_lower)
        self.row_lower.append(lower)
        self.row_upper.append(upper)
        if len(set(columns)) < len(columns):
            merged: dict[int, float] = {}
            for column, coefficient in zip(columns, coefficients, strict=True):
                merged[column] = merged.get(column, 0.0) + coefficient
            columns, coefficients = list(merged), list(merged.values())
        self.entry_rows.extend([row] * len(columns))
        self.entry_columns.extend(columns)
        self.entry_values.extend(coefficients)
        return row

    def add_expression_row(
        self, expression: Expression, *, lower: float = -np.inf, upper: float = np.inf
    ) -> int:
        """Add the row lower <= expression <= upper; returns its index."""
        return self.add_row(expression.columns, expression.coefficients, lower=lower, upper=upper)

    def add_cost(self, expression: Expression, factor: float = 1.0) -> None:
        """Add ``factor`` times an expression to the objective."""
        for column, coefficient in zip(expression.columns, expression.coefficients, strict=True):
            self.cost[column] += factor * coefficient


class SolveStatus(StrEnum):
    """What a backend can say of a program."""

    OPTIMAL = "optimal"
    """Solved to the requested gap."""
    FEASIBLE = "feasible"
    """A limit was reached with an answer that is not proved."""
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    TIMED_OUT = "timed-out"
    """A limit was reached without an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A backend's answer; ``values`` is empty when there is none. ``row_duals`` only for programs without integers."""

    status: SolveStatus
    objective: float = float("nan")
    bound: float = float("-inf")
    values: Floats = field(default_factory=lambda: np.empty(0))
    row_duals: Floats = field(default_factory=lambda: np.empty(0))

    @property
    def found(self) -> bool:
        """Whether there is an answer to read."""
        return self.status in (SolveStatus.OPTIMAL, SolveStatus.FEASIBLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveLimits:
    """When a backend may stop: seconds, and gap between answer and proved bound."""

    time_limit_s: float = 60.0
    gap_ratio: float = 0.0
    gap_absolute: float = 0.0


class BackendError(RuntimeError):
    """A backend failed to give any verdict; never an answer about the problem."""


def worst_violation(program: Program, values: Floats, *, relaxed: bool) -> float:
    """How far a solution is outside its rows (relative to their size), bounds or whole numbers."""
    rows = np.asarray(program.entry_rows, dtype=np.int64)
    columns = np.asarray(program.entry_columns, dtype=np.int64)
    terms = np.asarray(program.entry_values, dtype=float) * values[columns]
    activity = np.bincount(rows, weights=terms, minlength=program.rows)
    size = np.maximum(1.0, np.bincount(rows, weights=np.abs(terms), minlength=program.rows))
    worst = [
        ((np.asarray(program.row_lower) - activity) / size).max(initial=0.0),
        ((activity - np.asarray(program.row_upper)) / size).max(initial=0.0),
        (np.asarray(program.lower) - values).max(initial=0.0),
        (values - np.asarray(program.upper)).max(initial=0.0),
    ]
    whole = np.asarray(program.integer, dtype=bool)
    if not relaxed and whole.any():
        worst.append(np.abs(values[whole] - np.round(values[whole])).max(initial=0.0))
    return float(max(worst))
