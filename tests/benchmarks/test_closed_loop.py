"""The benchmark of the closed loop: what it says, on two generated hours."""

from pathlib import Path

from benchmarks.closed_loop import bench_closed_loop
from benchmarks.results import Setting


def test_rows_of_a_short_day_name_every_target(tmp_path: Path) -> None:
    rows = {
        row.name.split(": ")[1]: row
        for row in bench_closed_loop(Setting(data=tmp_path, n_instances=1, quick=True))
    }
    assert list(rows)[:6] == [
        "requests inside the SLO",
        "points of attainment below static peak",
        "cheaper than static peak",
        "cost of HPA",
        "points of attainment below HPA",
        "cost over the oracle's",
    ]
    for name in list(rows)[:6]:
        assert rows[name].met is not None
    assert rows["requests inside the SLO"].value > 99.0
    assert rows["cost over the oracle's"].value < 1.3
    assert (rows["cost with all roles"].ratio or 0.0) > 1.0
    assert rows["requests inside the SLO with all roles"].value > 95.0
