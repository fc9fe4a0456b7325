"""``ballast forecast`` as users run it: fields, tables, the report, exit codes, one line when it fails."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from controller.cli.root import ballast
from solver.domain.errors import InputError

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "rates.csv"
BACKTEST_FIELDS = {
    "name",
    "chosen",
    "violation_ratio",
    "replica_hours",
    "cost_ratio_to_oracle",
    "cost_ratio_to_best_rule",
    "crps",
    "coverage_90_ratio",
}


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    """Write two days of a service with a gap, and half a day of another."""
    draw = np.random.default_rng(0)
    lines = ["model,t_s,rate_rps"]
    for name, windows in (("chat", 288), ("code <b>", 72)):
        for i in range(windows):
            rate = 0.0 if 100 <= i < 104 else 50 + 20 * np.sin(i / 23) + draw.normal(0, 3)
            lines.append(f"{name},{600 * i},{rate:.3f}")
    path = tmp_path / "rates.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run in this process; what goes wrong is raised."""
    ballast.main(args=["forecast", *args], prog_name="ballast", standalone_mode=False)
    return capsys.readouterr().out


def _answer(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(_printed(capsys, *args, "-o", "json"))
    return answer


def test_backtest_answer(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = _answer(capsys, "backtest", str(rates), "--lead-s", "1800")
    assert answer["schema"] == "forecast-backtest/1"
    chat, code = answer["series"]
    assert chat.keys() >= BACKTEST_FIELDS
    assert (chat["name"], chat["gaps"], chat["judged_windows"]) == ("chat", 4, 86)
    assert chat["best_rule"] == chat["rules"][0]
    assert chat["cost_ratio_to_best_rule"] == pytest.approx(
        chat["replica_hours"] / chat["best_rule"]["replica_hours"]
    )
    assert "short history" in code["fallback"]


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    chat, code = _answer(capsys, "backtest", str(EXAMPLE))["series"]
    assert (chat["gaps"], chat["fallback"], code["fallback"]) == (6, None, None)
    assert max(chat["violation_ratio"], code["violation_ratio"]) < 0.02


def test_equal_runs_give_equal_bytes(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("backtest", str(rates), "--no-timings", "-o", "json")
    assert _printed(capsys, *args) == _printed(capsys, *args)


def test_finer_records_are_made_coarser(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (chat,) = _answer(capsys, "run", str(rates), "--model", "chat", "--window-s", "1800")["series"]
    assert (chat["windows"], chat["window_s"], chat["gaps"]) == (96, 1800, 2)
    with pytest.raises(InputError, match="a whole multiple"):
        _printed(capsys, "run", str(rates), "--window-s", "900")
    with pytest.raises(InputError, match="shorter windows"):
        _printed(capsys, "run", str(rates), "--window-s", "86400")


def test_backtest_table_fits(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = _printed(capsys, "backtest", str(rates))
    assert max(map(len, out.partition("were not recorded")[0].splitlines()[:-1])) <= 100
    assert "chat: 4 of 288 windows were not recorded" in out
    assert "the reactive rule stood in: short history" in out


def test_backtest_report(rates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "report.html"
    _printed(capsys, "backtest", str(rates), "--report", str(path))
    text = path.read_text(encoding="utf-8")
    assert "code &lt;b&gt;" in text
    assert "code <b>" not in text
    assert text.count("<svg") == 3
    assert "http" not in text.replace("http://www.w3.org/", "")


def test_run_answer(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = _answer(capsys, "run", str(rates), "--model", "chat", "--replica-rps", "10")
    (chat,) = answer["series"]
    assert (answer["schema"], chat["end_s"], chat["gaps"]) == ("forecast-run/1", 172800, 4)
    for forecast in chat["forecasts"]:
        assert forecast["replicas"] == -(-forecast["capacity_rps"] // 10)
        quantiles = list(forecast["quantiles_rps"].values())
        assert quantiles == sorted(quantiles)
    assert [forecast["lead_s"] for forecast in chat["forecasts"]] == [600, 1800]


def test_prices_say_how_often(rates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = ("--replica-rps", "10", "--replica-usd-per-h", "3.6", "--penalty-usd-per-request", "0.002")
    answer = _answer(capsys, "run", str(rates), *prices)
    assert answer["violations"] == pytest.approx(0.05)
    assert "exceeded with probability 0.05" in _printed(capsys, "run", str(rates), *prices)


@pytest.mark.parametrize(
    ("args", "kind", "message"),
    [
        (("--model", "none"), InputError, "no series 'none'; one of chat, code <b>"),
        (("--replica-usd-per-h", "1"), click.UsageError, "go together"),
        (("--violations", "0.5"), click.UsageError, "not in the range"),
        (("--lead-s", "nan"), click.UsageError, "not a finite number"),
        (("--lead-s", "1e7"), InputError, "recorded windows to judge"),
        (("--lead-s", "1e9"), InputError, "at most 100,000 windows"),
    ],
)
def test_what_goes_wrong_is_said(
    rates: Path,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind, match=message.replace("(", r"\(")):
        _printed(capsys, "backtest", str(rates), *args)


def test_negative_rates_and_nothing_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("t_s,rate_rps\n0,1\n600,-3\n")
    with pytest.raises(InputError, match=r"bad\.csv:3: rate_rps: '-3' is not a rate; a decimal number"):
        _printed(capsys, "run", str(bad))
    bad.write_text("t_s,rate_rps\n0,\n600,nan\n")
    with pytest.raises(InputError, match="no window of 'bad' was recorded"):
        _printed(capsys, "run", str(bad))


def _planned(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[dict[str, Any], str]:
    ballast.main(args=["plan", "gpus", *args], prog_name="ballast", standalone_mode=False)
    read = capsys.readouterr()
    return json.loads(read.out), read.err


def test_a_plan_is_made_for_the_forecast_rate(
    rates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, kept = tmp_path / "trace.csv", tmp_path / "instance.json"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},500,50\n" for i in range(60)))
    common = (
        "--trace",
        str(trace),
        "--model",
        "meta-llama/Llama-3.1-8B",
        "--gpu-types",
        "L4,A100-80-SXM",
        "-o",
        "json",
    )
    forecast = ("--forecast", str(rates), "--forecast-model", "chat", "--lead-s", "1200")
    _, err = _planned(capsys, *common, *forecast, "--write-instance", str(kept))
    (chat,) = _answer(capsys, "run", str(rates), "--model", "chat", "--lead-s", "1200", "--hold-s", "1200")[
        "series"
    ]
    wanted = chat["forecasts"][0]["capacity_rps"]
    (model,) = json.loads(kept.read_text())["models"]
    assert sum(bucket["rate_rps"] for bucket in model["buckets"]) == pytest.approx(wanted)
    assert f"{wanted:.3f} req/s (forecast of the next 20 min: {chat['forecasts'][0]['rule']}" in err
    with pytest.raises(InputError, match="2 series; --forecast-model with one of chat, code <b>"):
        _planned(capsys, *common, "--forecast", str(rates))
    with pytest.raises(click.UsageError, match="give either --rate or --forecast"):
        _planned(capsys, *common, *forecast, "--rate", "mean")
    with pytest.raises(click.UsageError, match="--lead-s goes with --forecast"):
        _planned(capsys, *common, "--lead-s", "60")


def _drifting(path: Path) -> None:
    """Write 4000 s of traffic at 2 requests/s: long prompts are rare at first and common in the end."""
    draw = np.random.default_rng(3)
    rows = []
    for at_s in np.sort(draw.uniform(0, 4000, 8000)):
        long = draw.random() < (0.02 if at_s < 3000 else 0.4)
        rows.append(f"{at_s:.3f},{6000 if long else 300},{50}\n")
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(rows))


def test_a_plan_follows_the_mix_of_the_trace_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    _drifting(trace)
    model = "meta-llama/Llama-3.1-8B"
    common = ("--trace", str(trace), "--model", model, "--gpu-types", "L4", "-o", "json", "--no-explain")
    own = ("--lead-s", "40", "--violations", "0.05", "--window-s", "20", "--forecast-own")
    loads = {}
    for by in ("sizes", "total"):
        kept = tmp_path / f"{by}.json"
        _, err = _planned(capsys, *common, *own, by, "--write-instance", str(kept))
        (planned,) = json.loads(kept.read_text())["models"]
        assert len(planned["buckets"]) == 2
        loads[by] = [bucket["rate_rps"] for bucket in planned["buckets"]]
        words = "sizes" if by == "sizes" else "their total"
        assert f"{model}: planning for {sum(loads[by]):.3f} req/s, the forecast of the next 0.66" in err
        assert f" by {words}: " in err
        assert " of 199 windows of 20 s" in err
    assert loads["sizes"][1] > 2 * loads["total"][1]  # long prompts, as they come now
    scaled = tmp_path / "scaled.json"
    _planned(capsys, *common, *own, "sizes", "--rate-scale", "3", "--write-instance", str(scaled))
    (planned,) = json.loads(scaled.read_text())["models"]
    assert [bucket["rate_rps"] for bucket in planned["buckets"]] == pytest.approx(
        [3 * rate for rate in loads["sizes"]]
    )
    _, err = _planned(capsys, *common, "--forecast-own", "sizes")
    assert "by their total" in err
    assert (
        "short history: 13 recorded windows, 105 teach a quantile of 0.99: all sizes are scaled alike" in err
    )
    with pytest.raises(click.UsageError, match="give either --rate or --forecast-own"):
        _planned(capsys, *common, *own, "sizes", "--rate", "mean")
    with pytest.raises(click.UsageError, match="--forecast-model goes with --forecast"):
        _planned(capsys, *common, *own, "sizes", "--forecast-model", "x")
