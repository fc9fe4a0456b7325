"""The report of a simulated cluster: stands alone, says what the run says, and has a dash where nothing is known."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.reports import cluster_plots as plots
from controller.reports.cluster import duration, figure, render_cluster_report, usd, write_cluster_report
from controller.simulation import SimulatedCluster, simulate_scenario
from simulator.limits import limits_of
from simulator.metrics import figures_of, percentile_with_missing
from simulator.record import RequestStatus, Series
from simulator.scenario import Scenario
from simulator.scenario_file import ScenarioDocument, scenario_of
from solver.domain.errors import InputError
from solver.domain.slo import Slo
from tests.controller.test_report import Reader

SECTIONS = [
    "headline",
    "slo",
    "limits",
    "latencies",
    "requests",
    "load",
    "pools",
    "power",
    "cost",
    "scenario",
    "definitions",
    "provenance",
]
SMALL = {"name": "small", "model": "meta-llama/Llama-3.1-8B"}
LARGE = {"name": "large", "model": "meta-llama/Llama-3.1-70B"}
CARD = {"gpu_type": "L40S", "gpus_per_instance": 1, "count": 2}
HEAVY = 5_000_000
"""Prompt tokens that fit no instance."""
MOST_BYTES = 1_500_000


def scenario(folder: Path, **fields: Any) -> Scenario:
    values: dict[str, Any] = {
        "schema": "scenario/1",
        "name": "<chat & co>",
        "models": [SMALL],
        "pools": [{"name": "_p$a$<c>", **CARD}],
        "slo": "ttft_p90=0.5,tbt_p99=0.02,e2e_p50=3x",
        "reference_instance": {"gpu_type": "L40S", "gpus": 1},
        "power": {"budget_w": 500},
        "trace": {"file": "t & <x>.csv", "warm_up_s": 5},
        **fields,
    }
    return scenario_of(ScenarioDocument(values=values, source="s.yaml", folder=folder))


def rows_of_trace(total: int, *, gap_s: float = 0.1, heavy_every: int = 0, columns: str = "") -> str:
    rows = ["arrival_s,prompt_tokens,output_tokens" + (",model" if columns else "")]
    for k in range(total):
        prompt = HEAVY if heavy_every and k % heavy_every == 0 else 200 + 37 * (k % 50)
        model = ("," + columns.split()[k % len(columns.split())]) if columns else ""
        rows.append(f"{k * gap_s:.3f},{prompt},{1 + 11 * (k % 20)}{model}")
    return "\n".join(rows) + "\n"


def simulated(folder: Path, text: str, *, stop: bool = False, **fields: Any) -> SimulatedCluster:
    (folder / "t & <x>.csv").write_text(text)
    return simulate_scenario(
        scenario(folder, **fields), stop_when_overloaded=stop, command="ballast simulate cluster 's & t.yaml'"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimulatedCluster:
    """One pool, some requests rejected."""
    return simulated(tmp_path_factory.mktemp("cluster"), rows_of_trace(400, heavy_every=50))


@pytest.fixture(scope="module")
def page(run: SimulatedCluster) -> str:
    """Render it once."""
    return render_cluster_report(run, version="1.2.3")


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">(.*?)</section>', page, flags=re.DOTALL)
    assert found is not None, name
    return found[1]


def rows(page: str, name: str) -> dict[str, list[str]]:
    """Return the cells of all table rows of a section, by the text of their first cell."""
    table = {}
    for row in re.findall(r"<tr[^>]*>(.*?)</tr>", section(page, name), flags=re.DOTALL):
        cells = [
            unescape(re.sub(r"<[^>]+>", "", cell)).strip()
            for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, flags=re.DOTALL)
        ]
        table[cells[0]] = cells[1:]
    return table


def test_is_whole_html_with_every_section(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert reader.sections == SECTIONS
    assert reader.plots == reader.spoken == 5
    assert len(reader.ids) == len(set(reader.ids))
    assert len(page.encode()) < MOST_BYTES


def test_points_to_nothing_outside(page: str) -> None:
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "://" not in without_names
    assert "@import" not in page
    assert "url(" not in re.sub(r"url\(#[^)]+\)", "", page)
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    pointed = set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'href="#([^"]+)"', page))
    assert pointed <= ids


def test_names_from_outside_are_escaped_and_shown_as_they_are(page: str) -> None:
    for raw in ("<c>", "<x>", "<chat"):
        assert raw not in page
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    assert "_p$a$&lt;c&gt;" in drawn


def test_equal_runs_give_equal_bytes_without_timings(run: SimulatedCluster, tmp_path: Path) -> None:
    again = simulated(tmp_path, rows_of_trace(400, heavy_every=50))
    assert again.wall_s != run.wall_s
    written = render_cluster_report(run, timings=False)
    assert render_cluster_report(again, timings=False) == written
    assert "<dt>Took</dt>" not in written


def test_latencies_are_those_of_the_record(run: SimulatedCluster, page: str) -> None:
    used = (run.record.status == RequestStatus.COMPLETED) & (run.requests.arrival_s >= 5.0)
    table = rows(page, "latencies")
    for name, values in (
        ("TTFT", run.record.ttft_s),
        ("End to end", run.record.e2e_s),
        ("Queue", run.record.queue_s),
    ):
        known = values[used]
        expected = [known.mean(), *np.percentile(known, [50, 90, 95, 99]), known.max()]
        assert table[name] == [figure(float(value)) for value in expected]
    gaps = (run.record.e2e_s - run.record.ttft_s)[used & (run.requests.output_tokens > 1)]
    gaps /= run.requests.output_tokens[used & (run.requests.output_tokens > 1)] - 1
    assert table["TBT"][1] == figure(float(np.percentile(gaps, 50)))


def test_targets_and_verdict_are_those_of_the_run(run: SimulatedCluster, page: str) -> None:
    slo = run.figures.slo
    assert slo.met is False
    assert "The SLO is missed" in section(page, "headline")
    cells = re.findall(r"<td[^>]*>(.*?)</td>", section(page, "slo"))
    for at, check in enumerate(slo.checks):
        row = cells[6 * at : 6 * at + 6]
        assert row[1] == f"p{check.target.percentile:g}"
        unit = "×" if check.target.limit_ratio is not None else "s"
        known = check.value is not None
        assert row[3] == (figure(check.value, unit) if known else "never: too many rejected")
        assert row[4] == (f"{100 * check.margin_ratio:,.1f} %" if known else "-")
        assert row[5] == ("yes" if check.met else "no")
    assert set(cells[5::6]) == {"yes", "no"}
    assert slo.attainment_ratio is not None
    assert f"{100 * slo.attainment_ratio:.2f} %" in section(page, "slo")
    for words in limits_of(run.figures):
        assert words[1:] in unescape(section(page, "limits"))


def test_requests_power_and_cost_are_those_of_the_run(run: SimulatedCluster, page: str) -> None:
    figures = run.figures
    counts = rows(page, "requests")
    assert figures.requests.rejected == 8
    assert counts["rejected"] == ["8", "2.00 %"]
    assert counts["completed"] == ["392", "98.00 %"]
    assert counts["counted: arrived after the warm-up"] == ["350", "87.50 %"]
    assert "fit the KV cache of no instance" in section(page, "requests")
    assert figures.power is not None
    assert figures.energy_j is not None
    assert figures.cost_usd is not None
    powers = next(cells for name, cells in rows(page, "power").items() if name.startswith("means over"))
    expected = [
        figures.power.mean_w,
        figures.power.p99_w,
        figures.power.max_w,
        500.0,
    ]
    assert powers[:4] == [figure(value) for value in expected]
    assert rows(page, "power")["together"][0] == figure(figures.energy_j / 3.6e6)
    price = run.pools[0].price_usd_per_h
    assert price is not None
    assert rows(page, "cost")["_p$a$<c>"] == [usd(price), usd(figures.cost_usd)]
    assert f"{usd(2 * price)} US$/h" in section(page, "cost")
    assert f"{usd(figures.cost_usd_per_million_tokens)} US$ per million output tokens" in page


def test_says_where_the_figures_come_from(run: SimulatedCluster, page: str) -> None:
    for words in (run.trace_sha256, run.pools[0].provenance, run.pools[0].known_error, "1.2.3"):
        assert words in unescape(page)
    assert "ballast simulate cluster 's & t.yaml'" in unescape(section(page, "provenance"))
    for words in run.definitions.values():
        assert words in unescape(section(page, "definitions"))
    assert "warm-up cut 5 s" in section(page, "scenario")


def test_what_is_not_known_is_a_dash(run: SimulatedCluster) -> None:
    blind = replace(
        run,
        pools=tuple(replace(pool, price_usd_per_h=None, idle_w=None) for pool in run.pools),
        figures=figures_of(
            run.record, run.requests, pools=["_p$a$<c>"], price_usd_per_h=[None], watts_known=False, slo=Slo()
        ),
    )
    page = render_cluster_report(blind)
    assert rows(page, "cost")["_p$a$<c>"] == ["-", "-"]
    assert "not known" in section(page, "power")
    assert "<svg" not in section(page, "power")
    assert "No SLO was asked for" in section(page, "headline")
    assert re.search(r"\b(nan|None|inf)\b", re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)) is None


def test_no_completed_request(tmp_path: Path) -> None:
    page = render_cluster_report(simulated(tmp_path, f"arrival_s,prompt_tokens,output_tokens\n9,{HEAVY},9\n"))
    table = rows(page, "latencies")
    assert all(table[name] == ["-"] * 6 for name in ("TTFT", "TBT", "End to end", "Queue"))
    assert "1 request of" in section(page, "headline")
    assert ">never<" in section(page, "headline")
    assert rows(page, "requests")["rejected"][0] == "1"


@pytest.mark.parametrize("output", [1, 30])
def test_one_request(tmp_path: Path, output: int) -> None:
    run = simulated(tmp_path, f"arrival_s,prompt_tokens,output_tokens\n9,100,{output}\n")
    page = render_cluster_report(run)
    table = rows(page, "latencies")
    assert table["TTFT"] == [figure(float(run.record.ttft_s[0]))] * 6
    assert (table["TBT"] == ["-"] * 6) is (output == 1)


def test_a_run_that_was_broken_off_says_so(tmp_path: Path) -> None:
    trace = rows_of_trace(6000, gap_s=0.001)
    run = simulated(tmp_path, trace, stop=True, trace={"file": "t & <x>.csv"})
    assert run.figures.stopped_early
    page = render_cluster_report(run)
    assert "the fleet fell behind for good" in section(page, "headline")
    assert "broken off" in section(page, "headline")
    assert f"{run.figures.requests.incomplete:,} are incomplete" in section(page, "headline")


def test_models_and_events_are_told_apart(tmp_path: Path) -> None:
    run = simulated(
        tmp_path,
        rows_of_trace(200, columns="small large"),
        models=[SMALL, LARGE],
        pools=[
            {"name": "a", "model": "small", **CARD},
            {"name": "b", "model": "large", "gpu_type": "H100-SXM", "gpus_per_instance": 4, "count": 1},
        ],
        slo="ttft_p90=2",
        reference_instance=None,
        events=[
            {"t_s": 8, "kind": "cap", "pool": "b", "value": 400},
            {"t_s": 4, "kind": "instance-down", "pool": "a", "index": 1},
        ],
    )
    page = render_cluster_report(run)
    lines = re.findall(r"<text[^>]*>([^<]*)</text>", section(page, "latencies"))
    assert {"all requests", "small", "large"} <= set(lines)
    medians = [
        figure(
            float(np.median(run.record.ttft_s[(run.model_of_request == m) & (run.requests.arrival_s >= 5)]))
        )
        for m in (0, 1)
    ]
    first_of_model = re.findall(
        r"<td>\N{NO-BREAK SPACE}+(small|large)</td><td[^>]*>[^<]*</td><td[^>]*>([^<]*)", page
    )
    assert first_of_model[:2] == [("small", medians[0]), ("large", medians[1])]
    assert "1 at 4 s: instance-down, instance 1 of a; 2 at 8 s: cap at 400 W per GPU, all of b." in section(
        page, "load"
    )


def test_many_pools_stay_readable_and_small(tmp_path: Path) -> None:
    run = simulated(
        tmp_path,
        rows_of_trace(3000, gap_s=0.01),
        pools=[{"name": f"pool-{k}", **CARD, "count": 1 + k % 3} for k in range(30)],
    )
    page = render_cluster_report(run)
    assert len(page.encode()) < MOST_BYTES
    named = {
        text for text in re.findall(r"<text[^>]*>([^<]*)</text>", section(page, "load")) if "pool" in text
    }
    assert len(named) == plots.MOST_LINES
    assert "23 other pools" in named
    assert "and 22 more pools" in section(page, "headline")
    assert len([name for name in rows(page, "pools") if name.startswith("pool-")]) == 30


def test_nothing_half_written(run: SimulatedCluster, tmp_path: Path) -> None:
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(InputError, match="directory"):
        write_cluster_report(tmp_path / "taken.html", run)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.html"]
    write_cluster_report(tmp_path / "new" / "run.html", run)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.html"]


def test_the_command_writes_it_and_says_how_to_run_it_again(tmp_path: Path) -> None:
    (tmp_path / "a b.csv").write_text(rows_of_trace(40))
    given_scenario = {
        "schema": "scenario/1",
        "models": [SMALL],
        "pools": [{"name": "p", **CARD}],
        "trace": {"file": "missing.csv"},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(given_scenario))
    asked = ["simulate", "cluster", "s.yaml", "--trace", "a b.csv", "--format", "plain", "--seed", "3"]
    asked += ["--no-timings", "--report", "out/run.html"]
    done = subprocess.run(
        [sys.executable, "-c", "from controller.cli.root import main; main()", *asked],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "run.html").read_text(encoding="utf-8")
    expected = "ballast simulate cluster s.yaml --trace 'a b.csv' --format plain --seed 3"
    assert f"<code>{expected}</code>" in unescape(page)
    assert "<dt>Took</dt>" not in page


@given(
    values=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60),
    lost=st.integers(0, 20),
    top=st.floats(0.3, 3.3),
)
def test_curves_are_percentiles(values: list[float], lost: int, top: float) -> None:
    curve = plots.Curve(label="", values_s=np.array(values), lost=lost)
    found, places = plots.curve_points(curve, top)
    assert 1 <= len(found) <= plots.MOST_POINTS
    for value, place in zip(found[::37], places[::37], strict=True):
        percentile = 100.0 * (1.0 - 10.0**-place)
        assert value == pytest.approx(percentile_with_missing(np.array(values), percentile, lost))


@given(
    bins=st.integers(1, 1200),
    pools=st.integers(1, 12),
    part=st.floats(0.02, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_timeline_loses_no_joule_and_no_request(bins: int, pools: int, part: float, seed: int) -> None:
    """Steps over time times their length add up to what the bins of the run hold, however many are merged."""
    draw = np.random.default_rng(seed)
    bin_s = 0.5
    watts = draw.random((pools, bins))
    watts[:, -1] *= part  # the run ends inside the last bin, whose mean is over the whole bin
    series = Series(bin_s=bin_s, power_w=watts, running=watts, waiting=watts, busy=watts, up=watts)
    horizon_s = (bins - 1 + part) * bin_s
    times_s = draw.random(50) * horizon_s
    line = plots.timeline(
        series, [f"p{p}" for p in range(pools)], horizon_s=horizon_s, arrivals_s=times_s, ends_s=times_s
    )
    assert line is not None
    assert len(line.widths_s) <= plots.MOST_BINS
    assert len(line.pools) <= plots.MOST_LINES
    assert line.edges_s[-1] == horizon_s
    joules = sum(float((pool.power_w * line.widths_s).sum()) for pool in line.pools)
    assert joules == pytest.approx(watts.sum() * bin_s)
    assert float((line.arrivals_rps * np.diff(line.rate_edges_s)).sum()) == pytest.approx(50.0)


def test_predicted_beside_simulated_is_drawn_for_other_reports() -> None:
    bars = [
        plots.TargetBars(label="TTFT", shares=(0.5, 1.5), words=("0.5 s", "1.5 s")),
        plots.TargetBars(label="TBT", shares=(None, float("inf")), words=("-", "never")),
    ]
    drawn = plots.targets(bars, ("predicted", "simulated"))
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert {"predicted", "simulated", "0.5 s", "1.5 s", "never", "TTFT", "TBT"} <= set(texts)
    assert drawn == plots.targets(bars, ("predicted", "simulated"))


def test_figures_are_written_for_people() -> None:
    assert [figure(value) for value in (None, float("nan"), float("inf"), 0.0)] == ["-", "-", "-", "0"]
    assert [figure(value) for value in (123456.7, 0.123456, 2e-6)] == ["123,457", "0.1235", "<0.0001"]
    assert figure(1.5, "s") == "1.5 s"
    assert [usd(value) for value in (None, 1234.5, 0.01234, 0.0)] == ["-", "1,234.50", "0.0123", "0.00"]
    assert [duration(s) for s in (12.34, 395.0, 7260.0)] == ["12.3 s", "6 min 35 s", "2 h 1 min"]
