"""``ballast plan power`` as users run it: both shapes of files, fields, exit codes, one line when it fails."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from controller.cli.power_names import CURVES, POLICY_NAMES
from controller.power_planning import Judged, _within_slo, read_targets
from solver.domain.errors import InputError
from solver.domain.power import BREAKER_CURVES
from solver.power.policies.named import POLICIES
from tests.controller.test_cli_plan import ballast

DATA = Path(__file__).parents[3] / "shared" / "data" / "power"
FIELDS = {
    "schema",
    "version",
    "servers_without_capping",
    "servers_with_capping",
    "interval_90",
    "binding",
    "expected_over_budget_s_per_year",
    "solve_s",
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Write three hours of 12 servers, 10 s means."""
    watts = np.random.default_rng(0).normal(4500, 300, size=(1080, 12)).clip(2006)
    lines = ["t_s," + ",".join(f"s{k:02}" for k in range(12))]
    lines += [f"{10 * t}," + ",".join(f"{w:.0f}" for w in row) for t, row in enumerate(watts)]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def row(tmp_path: Path) -> Path:
    """Write three hours of a row, 2 s means, without priorities."""
    watts = np.random.default_rng(1).normal(180_000, 4000, size=5400)
    path = tmp_path / "row.csv"
    path.write_text("t_s,row_w\n" + "".join(f"{2 * t},{w:.0f}\n" for t, w in enumerate(watts)))
    return path


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """Write two minutes of requests of 12 servers."""
    draw = np.random.default_rng(2)
    lines = ["t_ms,server,priority,class,prompt_tokens,output_tokens"]
    for t_ms in sorted(draw.integers(0, 119_000, size=300).tolist()):
        server = int(draw.integers(0, 12))
        lines.append(f"{t_ms},{server},{'low' if server % 2 == 0 else 'high'},chat,1024,64")
    lines.append("119000,11,high,chat,1024,64")
    path = tmp_path / "requests.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def answer(*args: str, code: int = 0) -> dict[str, Any]:
    done = ballast("plan", "power", *args, "-o", "json")
    assert done.returncode == code, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_the_lists_of_names_agree() -> None:
    assert tuple(POLICIES) == POLICY_NAMES
    assert tuple(BREAKER_CURVES) == CURVES


def test_a_table_per_server(table: Path) -> None:
    told = answer(str(table), "--budget-w", "40000")
    assert told.keys() >= FIELDS
    assert told["schema"] == "power-admission/1"
    low, high = told["interval_90"]
    assert low <= told["servers_without_capping"] <= high
    assert told["servers_without_capping"] < told["servers_with_capping"] <= 12
    assert told["binding"] == "risk at the floors"
    assert told["expected_over_budget_s_per_year"] == pytest.approx(
        60 * told["without_capping"]["risk_minutes_per_year"]
    )
    assert told["expected_over_budget_s_per_year"] <= 60


def test_the_power_of_a_row(row: Path) -> None:
    told = answer(str(row), "--servers-in-trace", "40", "--budget-w", "260000")
    assert told["servers_with_capping"] is None
    assert told["binding"] is None
    assert 45 <= told["servers_without_capping"] <= 55
    assert told["minutes"] == 120  # the first hour is warm-up
    assert answer(str(row), "--servers-in-trace", "40", "--warm-up", "0")["minutes"] == 180


def test_the_breaker_binds_out_of_band(table: Path) -> None:
    args = (str(table), "--budget-w", "52000", "--breaker", "ups_failover_133pct_10s")
    told = answer(*args, "--actuator-latency", "40")
    assert told["binding"] == "breaker"
    assert told["servers_with_capping"] == told["with_capping"]["servers_by_breaker"] == 8
    assert told["breaker"]["recourse_s"] == 46
    own = ("--breaker", "custom", "--breaker-tau-s", "18.97", "--breaker-trip-ratio", "1.05")
    same = answer(str(table), "--budget-w", "52000", *own, "--actuator-latency", "40")
    assert same["servers_with_capping"] == 8


def test_equal_runs_give_equal_bytes_and_yaml_says_the_same(table: Path) -> None:
    args = ("plan", "power", str(table), "--budget-w", "40000", "--no-timings")
    one, other = (ballast(*args, "-o", "json").stdout for _ in range(2))
    assert one == other
    assert yaml.safe_load(ballast(*args, "-o", "yaml").stdout) == json.loads(one)


def test_nobody_caps(table: Path) -> None:
    told = answer(str(table), "--budget-w", "40000", "--policy", "none")
    assert told["servers_with_capping"] is None


def test_no_server_fits(table: Path) -> None:
    assert answer(str(table), "--budget-w", "2100", code=3)["servers_without_capping"] == 0


def test_the_table_fits_its_width(table: Path, requests: Path) -> None:
    done = ballast("plan", "power", str(table), "--budget-w", "40000", "--requests", str(requests))
    assert done.returncode in (0, 3)
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "with capping, floors 1110/1305 MHz" in done.stdout
    assert "Simulated with policy guard" in done.stdout


def test_judged_by_simulation(table: Path, requests: Path) -> None:
    args = (str(table), "--budget-w", "40000", "--requests", str(requests))
    told = answer(*args)
    assert told["servers_within_slo"] == told["servers_with_capping"]
    judged = told["simulated"][0]
    assert (judged["servers"], judged["slo_met"]) == (told["servers_with_capping"], True)
    assert [target["name"] for target in judged["targets"]] == [
        "low_p50",
        "low_p99",
        "high_p50",
        "high_p99",
    ]
    assert judged["completed_ratio"] == 1


def test_the_largest_number_within_the_slo() -> None:
    def judge(servers: int) -> Judged:
        return Judged(
            servers=servers,
            increases=(),
            missed=("low_p50",) * (servers > keeps),
            seconds_over_budget=0,
            duration_s=60,
            brakes=0,
            trips=0,
            theta_max=0.5,
            guarantee_held=True,
            completed_ratio=1.0,
        )

    for most in range(1, 9):
        for keeps in range(10):
            for likely in range(9):
                told, within = _within_slo(judge, most, likely=likely)
                assert within == min(keeps, most)
                assert told[0].servers == most
    assert _within_slo(judge, 0, likely=0) == ((), 0)


@pytest.mark.parametrize(
    "slo", ["", "low_p50", "low_p95=0.1", "p50=0.1", "low_p50=-1", "low_p50=nan", "low_p50=x"]
)
def test_targets_that_are_none(slo: str) -> None:
    with pytest.raises(InputError, match="--slo"):
        read_targets(slo)


def test_bad_input_is_one_line(table: Path, row: Path, requests: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    few.write_text("\n".join([*requests.read_text().splitlines()[:1], "0,0,low,chat,10,10"]) + "\n")
    wrong = {
        (str(tmp_path / "nothing.csv"),): (1, "cannot be read"),
        (str(row),): (1, "--servers-in-trace"),
        (str(table), "--servers-in-trace", "12"): (1, "--servers-in-trace goes with"),
        (str(table), "--budget-w", "1000"): (1, "below what one idle server draws"),
        (str(table), "--budget-w", "-1"): (2, "--budget-w"),
        (str(table), "--risk", "nan"): (2, "--risk"),
        (str(table), "--low-floor-mhz", "5000"): (1, "low_floor_mhz"),
        (str(table), "--breaker", "custom"): (2, "--breaker-tau-s"),
        (str(table), "--breaker-tau-s", "5"): (2, "--breaker custom"),
        (str(table), "--breaker", "custom", "--breaker-tau-s", "-5", "--breaker-trip-ratio", "1.05"): (
            2,
            "--breaker-tau-s",
        ),
        (str(table), "--slo", "low_p50=0.1"): (2, "--requests"),
        (str(table), "--requests", str(requests), "--slo", "nobody_p50=0.1"): (1, "names nobody"),
        (str(table), "--requests", str(few)): (1, "requests of 1 servers only"),
        (str(table), "--warm-up", "20000"): (1, "warm-up"),
    }
    for args, (code, words) in wrong.items():
        done = ballast("plan", "power", *args)
        assert done.returncode == code, args
        assert done.stdout == ""
        assert words in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared recordings are not beside this checkout")
@pytest.mark.parametrize(
    ("more", "without", "capped", "binding"),
    [
        (("server_power_day_10s.csv.gz",), 49, 54, "risk at the floors"),
        (
            (
                "server_power_day_10s.csv.gz",
                "--breaker",
                "fast_thermal_135pct_60s",
                "--actuator-latency",
                "40",
            ),
            49,
            48,
            "breaker",
        ),
        (("server_power_day_10s.csv.gz", "--breaker", "ups_failover_133pct_10s"), 49, 48, "breaker"),
        (("row40_week_2s.csv.gz", "--servers-in-trace", "40"), 48, 52, "risk at the floors"),
    ],
)
def test_reference_answers(more: tuple[str, ...], without: int, capped: int, binding: str) -> None:
    told = answer(str(DATA / more[0]), *more[1:], "--budget-w", "260000", "--risk", "1")
    assert told["servers_without_capping"] == without
    assert told["servers_with_capping"] == capped
    assert told["binding"] == binding
