"""The compiled plant beside a plain second writing of its rule, and laws that hold whatever the clocks do."""

import math
import os
import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.row.model import REFERENCE_PLANT
from simulator.row.plant import Plant
from simulator.row.requests import RowRequests
from simulator.row.run import reference_row
from solver.domain.power import REFERENCE_SERVER
from tests.simulator.row.plain_plant import run_plain

SERVERS = 3
Drawn = list[tuple[float, int, int, int]]


def requests_of(drawn: Drawn, seconds: int) -> RowRequests:
    drawn = drawn or []
    columns = list(zip(*drawn, strict=True)) if drawn else [(), (), (), ()]
    return RowRequests(
        name="drawn",
        arrival_s=np.array(columns[0], dtype=np.float64),
        server=np.array(columns[1], dtype=np.int32),
        kind=np.zeros(len(drawn), dtype=np.int8),
        kinds=("chat",),
        prompt_tokens=np.array(columns[2], dtype=np.int32),
        output_tokens=np.array(columns[3], dtype=np.int32),
        duration_s=seconds,
    )


request = st.tuples(
    st.floats(0, 60).map(lambda x: round(x, 3)),
    st.integers(0, SERVERS - 1),
    st.integers(1, 9000),
    st.integers(1, 400),
)
changes = st.dictionaries(
    st.integers(0, 110),
    st.tuples(st.lists(st.sampled_from(REFERENCE_SERVER.clocks_mhz), min_size=3, max_size=3), st.booleans()),
    max_size=6,
)


@given(drawn=st.lists(request, max_size=60), changes=changes)
@settings(max_examples=60)
def test_agrees_with_the_plain_rule(drawn: Drawn, changes: dict[int, tuple[list[int], bool]]) -> None:
    drawn = sorted(drawn, key=lambda r: r[0])
    seconds = 120

    def clock(t: int, server: int) -> tuple[int, bool]:
        before = [k for k in changes if k <= t]
        if not before:
            return 1410, False
        clocks, braked = changes[max(before)]
        return clocks[server], braked

    watts, finish = run_plain(drawn, SERVERS, seconds, clock)
    plant = Plant(
        row=reference_row(SERVERS),
        model=REFERENCE_PLANT,
        requests=requests_of(drawn, seconds),
        seconds=seconds,
        start_theta=0.6,
    )
    for t in range(seconds):
        if t in changes:
            clocks, braked = changes[t]
            plant.set_clocks(np.array(clocks), braked=braked)
        plant.advance_to(t + 1)
        np.testing.assert_allclose(plant.server_mean_w(1), watts[t], rtol=1e-7)
        assert math.isclose(plant.row_w[t], sum(watts[t]), rel_tol=1e-7)
    for place, index in enumerate(plant.order):
        if index in finish:
            assert plant.finish_s[place] == finish[index]
        else:
            assert np.isnan(plant.finish_s[place])


@given(
    drawn=st.lists(request, min_size=1, max_size=40),
    clocks=st.lists(st.sampled_from(REFERENCE_SERVER.clocks_mhz), min_size=3, max_size=3),
)
@settings(max_examples=40)
def test_nothing_is_lost_and_nothing_exceeds_the_worst_case(drawn: Drawn, clocks: list[int]) -> None:
    seconds = 6000
    plant = Plant(
        row=reference_row(SERVERS),
        model=REFERENCE_PLANT,
        requests=requests_of(drawn, seconds),
        seconds=seconds,
        start_theta=0.6,
    )
    plant.set_clocks(np.array(clocks), braked=False)
    plant.advance_to(seconds)
    assert plant.is_empty
    arrival = np.array([r[0] for r in drawn])[plant.order]
    assert (plant.finish_s > arrival).all()
    assert plant.row_w.max() <= sum(REFERENCE_SERVER.worst_w(f) for f in clocks) + 1e-6
    assert plant.row_w.min() >= SERVERS * REFERENCE_SERVER.idle_w - 1e-6
    np.testing.assert_allclose(plant.low_w + plant.high_w, plant.row_w)


def test_a_span_is_the_sum_of_its_seconds() -> None:
    drawn = [(0.5 * i, i % SERVERS, 1000 + 37 * i, 50 + i) for i in range(80)]
    rows = []
    for step in (1, 7, 16):
        plant = Plant(
            row=reference_row(SERVERS),
            model=REFERENCE_PLANT,
            requests=requests_of(drawn, 200),
            seconds=200,
            start_theta=0.6,
        )
        for t in range(0, 200, step):
            plant.advance_to(min(t + step, 200))
        rows.append((plant.row_w, plant.theta_after, plant.finish_s))
    for other in rows[1:]:
        for one, two in zip(rows[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_theta_follows_the_equation_and_counts_a_crossing_once() -> None:
    drawn = [(0.0, s, 8000, 2000) for s in range(SERVERS) for _ in range(200)]
    row = reference_row(SERVERS, curve="ups_failover_133pct_10s", budget_w=3 * 4500.0)
    plant = Plant(
        row=row, model=REFERENCE_PLANT, requests=requests_of(drawn, 300), seconds=300, start_theta=0.6
    )
    plant.advance_to(300)
    theta = 0.6
    for t in range(300):
        u = plant.row_w[t] / row.budget_w
        theta = u * u + (theta - u * u) * math.exp(-1 / 18.97)
        assert math.isclose(plant.theta_after[t], theta, rel_tol=1e-12)
    above = plant.theta_after >= 1.05**2
    crossings = int(above[0]) + int((above[1:] & ~above[:-1]).sum())
    assert plant.trips == crossings >= 1


def test_a_stopped_server_waits_with_its_work() -> None:
    drawn = [(0.0, 0, 500, 100)]
    plant = Plant(
        row=reference_row(1),
        model=REFERENCE_PLANT,
        requests=requests_of(drawn, 60),
        seconds=60,
        start_theta=0.6,
    )
    plant.advance_to(2)
    plant.stop(0, 1)
    plant.advance_to(30)
    assert np.isnan(plant.finish_s[0])
    np.testing.assert_allclose(plant.row_w[2:30], 1250 + 1.5 * 7 * 63)
    plant.start(0)
    plant.advance_to(60)
    assert plant.finish_s[0] > 30


def test_uncompiled_kernels_agree() -> None:
    program = (
        "import numpy as np\n"
        "from tests.simulator.row.test_plant import requests_of\n"
        "from simulator.row.plant import Plant\n"
        "from simulator.row.model import REFERENCE_PLANT\n"
        "from simulator.row.run import reference_row\n"
        "drawn = [(0.4 * i, i % 3, 900 + 61 * i, 40 + 3 * i) for i in range(40)]\n"
        "p = Plant(row=reference_row(3), model=REFERENCE_PLANT, requests=requests_of(drawn, 90), seconds=90,"
        " start_theta=0.6)\n"
        "p.advance_to(40)\n"
        "p.set_clocks(np.array([1110, 1305, 600]), braked=False)\n"
        "p.advance_to(90)\n"
        "print(p.row_w.tobytes().hex(), p.theta_after.tobytes().hex(), p.finish_s.tobytes().hex())\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "NUMBA_DISABLE_JIT": flag},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for flag in ("0", "1")
    ]
    assert outputs[0] == outputs[1]
