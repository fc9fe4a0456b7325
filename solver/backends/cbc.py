"""PuLP with its bundled CBC: the second, independent backend.

It exists as the second opinion on every formulation and as the fallback where OR-Tools cannot be used. It runs CBC
as a process over temporary files (PuLP's way), so it is slower to start than HiGHS. PuLP calls a solve that was cut
by the time limit "Optimal"; here the solution status decides and the proved bound is read from CBC's log.
"""

import math
import re
import tempfile
from pathlib import Path

import numpy as np
import pulp

from solver.backends.program import (
    BackendError,
    Program,
    Solution,
    SolveLimits,
    SolveStatus,
    worst_violation,
)

_BOUND = re.compile(r"^Lower bound:\s+([-+0-9.eE]+)", re.MULTILINE)
_STOPPED = re.compile(r"stopped on (time|node|iteration)|Exiting on maximum", re.IGNORECASE)
_CONTINUOUS = re.compile(r"^Continuous objective value is ([-+0-9.eE]+)", re.MULTILINE)
SMALLEST_TIME_LIMIT_S = 0.5
VIOLATION_TOLERANCE = 1e-5
LOG_ROUNDING = 1e-3
"""The log prints bounds with three decimals."""


def _model(
    program: Program, *, relaxed: bool
) -> tuple[pulp.LpProblem, list[pulp.LpVariable], list[list[pulp.LpConstraint]]]:
    """Write the arrays as a PuLP problem; a row with two different sides becomes two constraints."""
    problem = pulp.LpProblem("ballast", pulp.LpMinimize)
    variables = [
        problem.add_variable(
            f"v{j}",
            None if math.isinf(program.lower[j]) else program.lower[j],
            None if math.isinf(program.upper[j]) else program.upper[j],
            pulp.LpInteger if program.integer[j] and not relaxed else pulp.LpContinuous,
        )
        for j in range(program.variables)
    ]
    problem += pulp.LpAffineExpression(
        [(variables[j], c) for j, c in enumerate(program.cost)], program.offset
    )
    rows: list[list[tuple[pulp.LpVariable, float]]] = [[] for _ in range(program.rows)]
    for row, column, value in zip(
        program.entry_rows, program.entry_columns, program.entry_values, strict=True
    ):
        rows[row].append((variables[column], value))
    constraints: list[list[pulp.LpConstraint]] = []
    for index, terms in enumerate(rows):
        lower, upper = program.row_lower[index], program.row_upper[index]
        sides = [(pulp.LpConstraintEQ, f"e{index}", lower)] if lower == upper else []
        if lower != upper and not math.isinf(lower):
            sides.append((pulp.LpConstraintGE, f"l{index}", lower))
        if lower != upper and not math.isinf(upper):
            sides.append((pulp.LpConstraintLE, f"u{index}", upper))
        made = [
            pulp.LpConstraint(pulp.LpAffineExpression(terms), sense, name, side)
            for sense, name, side in sides
        ]
        for constraint in made:
            problem += constraint
        constraints.append(made)
    return problem, variables, constraints


def _proved_bound(log: str, offset: float) -> float:
    """Read the best proved lower bound from CBC's log (its objective leaves the constant out)."""
    found = _BOUND.findall(log)
    if found:
        return float(found[-1]) - LOG_ROUNDING + offset
    found = _CONTINUOUS.findall(log)
    return float(found[-1]) * (1 - 1e-5) - LOG_ROUNDING + offset if found else -math.inf


def solve_with_cbc(program: Program, limits: SolveLimits, *, relaxed: bool = False) -> Solution:
    """Solve with CBC, one thread; ``relaxed`` drops integrality. Raises `BackendError` without a verdict."""
    problem, variables, constraints = _model(program, relaxed=relaxed)
    with tempfile.TemporaryDirectory(prefix="ballast-cbc-") as folder:
        log_path = Path(folder, "cbc.log")
        problem.solve(
            pulp.COIN_CMD(
                path=pulp.PULP_CBC_CMD.pulp_cbc_path,  # the CBC that PuLP brings along
                msg=False,
                threads=1,
                timeLimit=max(limits.time_limit_s, SMALLEST_TIME_LIMIT_S),
                gapRel=limits.gap_ratio,
                gapAbs=limits.gap_absolute,
                logPath=str(log_path),
                options=["primalTolerance 1e-9", "randomSeed 1", "randomCbcSeed 1"],
            )
        )
        log = log_path.read_text(errors="replace") if log_path.exists() else ""
    if problem.status == pulp.LpStatusInfeasible or problem.sol_status == pulp.LpSolutionInfeasible:
        if _STOPPED.search(log):  # whatever CBC calls it, a run that was cut off proves nothing
            return Solution(status=SolveStatus.TIMED_OUT, bound=_proved_bound(log, program.offset))
        return Solution(status=SolveStatus.INFEASIBLE)
    if problem.status == pulp.LpStatusUnbounded:
        return Solution(status=SolveStatus.UNBOUNDED)
    if problem.sol_status == pulp.LpSolutionNoSolutionFound:
        if "time" not in log:
            raise BackendError(f"CBC stopped with status {pulp.LpStatus[problem.status]} and no solution")
        return Solution(status=SolveStatus.TIMED_OUT, bound=_proved_bound(log, program.offset))
    values = np.array([variable.value() or 0.0 for variable in variables])
    broken = worst_violation(program, values, relaxed=relaxed)
    if broken > VIOLATION_TOLERANCE:
        raise BackendError(f"CBC's answer breaks its constraints by {broken:.2g}; try --backend highs")
    objective = float(np.dot(program.cost, values)) + program.offset
    if problem.sol_status == pulp.LpSolutionOptimal:
        allowed = max(limits.gap_absolute, limits.gap_ratio * abs(objective))
        bound = max(objective - allowed, _proved_bound(log, program.offset)) if allowed > 0 else objective
        duals = np.empty(0)
        if relaxed or not any(program.integer):
            duals = np.array([sum(side.pi or 0.0 for side in sides) for sides in constraints])
        return Solution(
            status=SolveStatus.OPTIMAL,
            objective=objective,
            bound=min(bound, objective),
            values=values,
            row_duals=duals,
        )
    return Solution(
        status=SolveStatus.FEASIBLE,
        objective=objective,
        bound=min(_proved_bound(log, program.offset), objective),
        values=values,
    )
