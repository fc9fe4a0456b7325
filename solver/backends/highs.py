"""OR-Tools MathOpt with HiGHS: the default backend.

It exists as the fast exact solver for linear and mixed-integer programs. Notes on its manners, all seen in runs:
the ``threads`` parameter makes MathOpt raise for HiGHS and is never set; CP-SAT through MathOpt discretises
continuous variables and is never used; highspy must not be installed beside ortools (symbol clash).
"""

from datetime import timedelta

import numpy as np
from ortools.math_opt import (
    callback_pb2,
    model_parameters_pb2,
    model_pb2,
    parameters_pb2,
    result_pb2,
    solution_pb2,
)
from ortools.math_opt.core.python import solver as math_opt_core
from pybind11_abseil.status import StatusNotOk

from solver.backends.program import BackendError, Program, Solution, SolveLimits, SolveStatus

FEASIBILITY_TOLERANCE = 1e-9
SMALLEST_TIME_LIMIT_S = 0.01

_Reason = result_pb2.TerminationReasonProto


def _model(program: Program, *, relaxed: bool) -> model_pb2.ModelProto:
    """Write the arrays as a MathOpt model; the message is built directly because modelling objects cost more."""
    model = model_pb2.ModelProto()
    model.variables.ids.extend(range(program.variables))
    model.variables.lower_bounds.extend(program.lower)
    model.variables.upper_bounds.extend(program.upper)
    model.variables.integers.extend([False] * program.variables if relaxed else program.integer)
    model.objective.offset = program.offset
    cost = np.asarray(program.cost, dtype=float)
    used = np.flatnonzero(cost)
    model.objective.linear_coefficients.ids.extend(used.tolist())
    model.objective.linear_coefficients.values.extend(cost[used].tolist())
    model.linear_constraints.ids.extend(range(program.rows))
    model.linear_constraints.lower_bounds.extend(program.row_lower)
    model.linear_constraints.upper_bounds.extend(program.row_upper)
    rows = np.asarray(program.entry_rows, dtype=np.int64)
    columns = np.asarray(program.entry_columns, dtype=np.int64)
    order = np.lexsort((columns, rows))  # the message wants entries sorted by row, then column
    matrix = model.linear_constraint_matrix
    matrix.row_ids.extend(rows[order].tolist())
    matrix.column_ids.extend(columns[order].tolist())
    matrix.coefficients.extend(np.asarray(program.entry_values, dtype=float)[order].tolist())
    return model


def _dense(vector: object, size: int) -> np.ndarray:
    """Turn a sparse MathOpt vector into an array."""
    dense = np.zeros(size)
    dense[np.asarray(vector.ids, dtype=np.int64)] = vector.values  # type: ignore[attr-defined]
    return dense


def solve_with_highs(program: Program, limits: SolveLimits, *, relaxed: bool = False) -> Solution:
    """Solve with HiGHS; ``relaxed`` drops integrality. Raises `BackendError` if HiGHS gives no verdict."""
    parameters = parameters_pb2.SolveParametersProto()
    parameters.time_limit.FromTimedelta(timedelta(seconds=max(limits.time_limit_s, SMALLEST_TIME_LIMIT_S)))
    parameters.relative_gap_tolerance = limits.gap_ratio
    parameters.absolute_gap_tolerance = limits.gap_absolute
    parameters.random_seed = 0
    options = parameters.highs.double_options
    options["primal_feasibility_tolerance"] = FEASIBILITY_TOLERANCE
    options["mip_feasibility_tolerance"] = FEASIBILITY_TOLERANCE
    model = _model(program, relaxed=relaxed)
    try:
        return _read(_run(model, parameters), program)
    except (BackendError, StatusNotOk):
        # Rare: HiGHS gives up on numbers at the edge of the tight tolerances; its own are wider.
        options.clear()
    try:
        return _read(_run(model, parameters), program)
    except StatusNotOk as error:
        raise BackendError(f"HiGHS failed: {error}") from None


def _run(
    model: model_pb2.ModelProto, parameters: parameters_pb2.SolveParametersProto
) -> result_pb2.SolveResultProto:
    return math_opt_core.solve(
        model,
        parameters_pb2.SOLVER_TYPE_HIGHS,
        parameters_pb2.SolverInitializerProto(),
        parameters,
        model_parameters_pb2.ModelSolveParametersProto(),
        None,
        callback_pb2.CallbackRegistrationProto(),
        None,
        None,
    )


def _read(result: result_pb2.SolveResultProto, program: Program) -> Solution:
    reason = result.termination.reason
    if reason in (_Reason.TERMINATION_REASON_INFEASIBLE, _Reason.TERMINATION_REASON_INFEASIBLE_OR_UNBOUNDED):
        # Our programs are bounded below unless built to be unbounded, so the doubtful verdict means infeasible.
        return Solution(status=SolveStatus.INFEASIBLE)
    if reason == _Reason.TERMINATION_REASON_UNBOUNDED:
        return Solution(status=SolveStatus.UNBOUNDED)
    bound = result.termination.objective_bounds.dual_bound
    solution = next(
        (
            s
            for s in result.solutions
            if s.HasField("primal_solution")
            and s.primal_solution.feasibility_status == solution_pb2.SOLUTION_STATUS_FEASIBLE
        ),
        None,
    )
    if solution is None:
        if reason == _Reason.TERMINATION_REASON_NO_SOLUTION_FOUND:
            return Solution(status=SolveStatus.TIMED_OUT, bound=bound)
        raise BackendError(
            f"HiGHS stopped with reason {reason} ({result.termination.detail}) and no solution"
        )
    proved = reason == _Reason.TERMINATION_REASON_OPTIMAL
    duals = np.empty(0)
    if solution.HasField("dual_solution"):
        duals = _dense(solution.dual_solution.dual_values, program.rows)
    return Solution(
        status=SolveStatus.OPTIMAL if proved else SolveStatus.FEASIBLE,
        objective=solution.primal_solution.objective_value,
        bound=bound,
        values=_dense(solution.primal_solution.variable_values, program.variables),
        row_duals=duals,
    )
