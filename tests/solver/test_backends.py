"""Both backends against each other and against plain enumeration, on programs small enough to enumerate."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.backends.choose import BackendName, solve_program
from solver.backends.program import Expression, Program, SolveLimits, SolveStatus, worst_violation

BACKENDS: tuple[BackendName, ...] = ("highs", "cbc")


def knapsack_cover(costs: list[int], weights: list[int], need: int, upper: int) -> Program:
    """Cover a need with whole pieces at least cost."""
    program = Program()
    columns = [program.add_variable(upper=float(upper), cost=float(c), integer=True) for c in costs]
    program.add_row(columns, [float(w) for w in weights], lower=float(need))
    return program


def hard_program(size: int = 40) -> Program:
    """Many equal-looking pieces: far too hard to prove in a moment."""
    rng = np.random.default_rng(7)
    program = Program()
    columns = [
        program.add_variable(upper=1.0, cost=float(c), integer=True) for c in rng.integers(80, 120, size)
    ]
    for _ in range(30):
        program.add_row(
            columns, rng.integers(20, 60, size).astype(float).tolist(), lower=float(15 * size + 0.5)
        )
    return program


@settings(max_examples=25, deadline=None)
@given(
    costs=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    weights=st.lists(st.integers(1, 7), min_size=3, max_size=3),
    need=st.integers(0, 25),
)
def test_both_backends_find_the_enumerated_optimum(costs: list[int], weights: list[int], need: int) -> None:
    best = min(
        (
            sum(c * n for c, n in zip(costs, counts, strict=True))
            for counts in product(range(6), repeat=3)
            if sum(w * n for w, n in zip(weights, counts, strict=True)) >= need
        ),
        default=None,
    )
    for backend in BACKENDS:
        solution = solve_program(knapsack_cover(costs, weights, need, 5), SolveLimits(), backend=backend)
        if best is None:
            assert solution.status == SolveStatus.INFEASIBLE
        else:
            assert solution.status == SolveStatus.OPTIMAL
            assert solution.objective == pytest.approx(best)
            assert solution.bound == pytest.approx(best)


@pytest.mark.parametrize("backend", BACKENDS)
def test_relaxation_gives_duals_that_price_the_rows(backend: BackendName) -> None:
    def program(need: float) -> Program:
        made = Program()
        x, y = made.add_variable(cost=3.0, integer=True), made.add_variable(cost=2.0, integer=True)
        made.add_row([x, y], [2.0, 1.0], lower=need)
        made.add_row([y], [1.0], upper=1.0)
        made.offset = 10.0
        return made

    now = solve_program(program(7.0), SolveLimits(), backend=backend, relaxed=True)
    more = solve_program(program(8.0), SolveLimits(), backend=backend, relaxed=True)
    assert now.objective == pytest.approx(20.5)
    assert now.row_duals[0] == pytest.approx(more.objective - now.objective)
    assert now.row_duals[1] == pytest.approx(0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_time_limit_is_not_called_optimal(backend: BackendName) -> None:
    solution = solve_program(hard_program(), SolveLimits(time_limit_s=0.5), backend=backend)
    assert solution.status in (SolveStatus.FEASIBLE, SolveStatus.TIMED_OUT)
    if solution.status == SolveStatus.FEASIBLE:
        assert solution.bound < solution.objective - 1e-6
        assert np.isfinite(solution.bound)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_requested_gap_is_kept_and_told(backend: BackendName) -> None:
    limits = SolveLimits(time_limit_s=20.0, gap_ratio=0.2)
    solution = solve_program(hard_program(20), limits, backend=backend)
    assert solution.status == SolveStatus.OPTIMAL
    assert solution.objective * (1 - 0.2) - 1e-6 <= solution.bound <= solution.objective


@pytest.mark.parametrize("backend", BACKENDS)
def test_unbounded_and_infeasible_are_told_apart(backend: BackendName) -> None:
    falling = Program()
    x = falling.add_variable(cost=-1.0)
    falling.add_row([x], [1.0], lower=1.0)
    assert solve_program(falling, SolveLimits(), backend=backend).status == SolveStatus.UNBOUNDED
    clash = Program()
    y = clash.add_variable(cost=1.0, upper=1.0)
    clash.add_row([y], [1.0], lower=2.0)
    assert solve_program(clash, SolveLimits(), backend=backend).status == SolveStatus.INFEASIBLE


def test_repeated_columns_of_a_row_add_up() -> None:
    program = Program()
    x = program.add_variable(cost=1.0)
    program.add_expression_row(Expression([x, x], [1.0, 2.0]), lower=6.0)
    assert solve_program(program, SolveLimits()).objective == pytest.approx(2.0)


def test_violations_are_measured_on_rows_bounds_and_whole_numbers() -> None:
    program = knapsack_cover([1, 1], [2, 3], 6, 5)
    assert worst_violation(program, np.array([0.0, 2.0]), relaxed=False) == 0.0
    assert worst_violation(program, np.array([0.0, 1.0]), relaxed=False) == pytest.approx(3.0 / 3.0)
    assert worst_violation(program, np.array([1.5, 1.0]), relaxed=False) == pytest.approx(0.5)
    assert worst_violation(program, np.array([1.5, 1.0]), relaxed=True) == 0.0
    assert worst_violation(program, np.array([0.0, 7.0]), relaxed=False) == pytest.approx(2.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiny_costs_are_solved_as_exactly_as_large_ones(backend: BackendName) -> None:
    large = solve_program(knapsack_cover([5, 4, 3], [5, 3, 2], 11, 9), SolveLimits(), backend=backend)
    small = knapsack_cover([5, 4, 3], [5, 3, 2], 11, 9)
    small.cost = [cost * 1e-8 for cost in small.cost]
    scaled = solve_program(small, SolveLimits(), backend=backend)
    assert scaled.objective == pytest.approx(large.objective * 1e-8, rel=1e-9)
    assert scaled.bound == pytest.approx(large.bound * 1e-8, rel=1e-9)
    assert small.cost[0] == pytest.approx(5e-8)
