"""``ballast compare``: two answers side by side."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import commands

FIRST: dict[str, Any] = {
    "schema": "cluster-simulation/1",
    "version": "1",
    "ttft_s": {"mean": 1.0, "p99": None},
    "slo": {"met": True, "checks": [{"target": "ttft_p99=2", "value": 1.5}]},
    "pools": [{"name": "a", "cost_usd": 0.0}],
    "seed": 3,
}


def compare(tmp_path: Path, first: str, second: str, *args: str) -> subprocess.CompletedProcess[str]:
    for name, text in (("a.json", first), ("b.json", second)):
        (tmp_path / name).write_text(text)
    return commands.ballast("compare", "a.json", "b.json", *args, at=tmp_path)


def changed(**changes: Any) -> str:
    return json.dumps({**FIRST, **changes})


def figures(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[Any, Any, Any]]:
    assert done.returncode == 0, done.stderr
    return {
        row["figure"]: (row["first"], row["second"], row["ratio"])
        for row in json.loads(done.stdout)["figures"]
    }


def test_what_differs_stands_side_by_side_with_its_ratio(tmp_path: Path) -> None:
    second = changed(
        version="2",
        ttft_s={"mean": 1.5, "p99": 2.0},
        slo={"met": False, "checks": [{"target": "ttft_p99=2", "value": 3.0}]},
        pools=[{"name": "a", "cost_usd": 4.0}],
    )
    done = compare(tmp_path, changed(), second, "-o", "json")
    assert figures(done) == {
        "ttft_s.mean": (1.0, 1.5, 1.5),
        "ttft_s.p99": (None, 2.0, None),
        "slo.met": (True, False, None),
        "slo.checks.ttft_p99=2.value": (1.5, 3.0, 2.0),
        "pools.a.cost_usd": (0.0, 4.0, None),
    }
    answer = json.loads(done.stdout)
    assert (answer["schema"], answer["of"]) == ("comparison/1", "cluster-simulation/1")
    assert list(answer)[:2] == ["schema", "version"]


def test_all_figures_can_be_shown(tmp_path: Path) -> None:
    found = figures(compare(tmp_path, changed(), changed(seed=6), "-o", "json", "--all"))
    assert found["seed"] == (3, 6, 2.0)
    assert found["ttft_s.mean"] == (1.0, 1.0, 1.0)


def test_a_figure_that_one_lacks_is_shown(tmp_path: Path) -> None:
    found = figures(compare(tmp_path, changed(), changed(more=1), "-o", "json"))
    assert found == {"more": (None, 1, None)}


def test_figures_that_time_the_run_can_be_left_out(tmp_path: Path) -> None:
    first, second = changed(wall_s=1.0, solve_s=2.0), changed(wall_s=2.0, solve_s=1.0, seed=6)
    assert figures(compare(tmp_path, first, second, "-o", "json")).keys() == {"wall_s", "solve_s", "seed"}
    assert figures(compare(tmp_path, first, second, "-o", "json", "--no-timings")).keys() == {"seed"}


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert figures(compare(tmp_path, changed(), "\ufeff" + changed(seed=6), "-o", "json"))["seed"] == (
        3,
        6,
        2.0,
    )


def test_the_table_is_for_people(tmp_path: Path) -> None:
    done = compare(tmp_path, changed(), changed(seed=6))
    assert done.returncode == 0
    assert "seed" in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines())
    assert "say the same" in compare(tmp_path, changed(), changed()).stdout


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (
            changed(schema="gpu-mix-plan/1"),
            "b.json: schema: 'gpu-mix-plan/1', and a.json is 'cluster-simulation/1'; two answers of the same schema",
        ),
        ("{", "b.json:1: not JSON: Expecting property name enclosed in double quotes; an answer of -o json"),
        ("[]", "b.json: has no schema; an answer of -o json"),
        ('{"seed": 1}', "b.json: has no schema; an answer of -o json"),
        ("[" * 100_000, "b.json: nested too deep; an answer of -o json"),
        (changed(seed=float("nan")), "b.json: NaN is no number of JSON; an answer of -o json"),
        (changed(seed=float("-inf")), "b.json: -Infinity is no number of JSON; an answer of -o json"),
        (
            changed(seed=0.5).replace("0.5", "1e999"),
            "b.json: 1e999 is too large a number; an answer of -o json",
        ),
        (
            changed(seed=0.5).replace("0.5", "9" * 5000),
            f"b.json: {'9' * 40}... is too large a number; an answer of -o json",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(second: str, said: str, tmp_path: Path) -> None:
    done = compare(tmp_path, changed(), second)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"ballast: {said}\n"
