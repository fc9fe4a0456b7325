"""The forecast of a service in the operator: windows from samples, the database before them, what is planned for."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from controller.operator.outlook import AGAIN_S, MOST_WINDOWS, Outlook, window_of
from controller.operator.rate_history import RateHistory
from controller.operator.sampler import Sampler
from controller.operator.status import Progress, status_of
from controller.operator.traffic import Traffic, foreseen, stated
from controller.operator.world import World
from controller.resources.model_service import ForecastSpec, ModelServiceSpec, ModelServiceStatus
from solver.domain.gpu_mix import RequestBucket
from telemetry.store.store import TrafficSample, open_store
from telemetry.traffic import MeasuredTraffic, StaleTraffic
from tests.controller.test_operator_status import FLOWING, NOW, conditions, ordinary, seen, service
from tests.solver.forecast.test_capacity import wandering

START_S = 1_795_132_800.0
"""A full ten minutes."""
SPEC = ForecastSpec(horizon=1800, violation_probability=0.01)


def answered(past: Sequence[tuple[float, float]] | Exception) -> "Future[Sequence[tuple[float, float]]]":
    future: Future[Sequence[tuple[float, float]]] = Future()
    if isinstance(past, Exception):
        future.set_exception(past)
    else:
        future.set_result(past)
    return future


def fed(outlook: Outlook, rates: Iterable[float], *, start_s: float = START_S) -> Outlook:
    """Give two samples a window."""
    for row, rate in enumerate(rates):
        for share in (0.0, 0.5):
            outlook.add(rate, start_s + (row + share) * outlook.window_s)
    return outlook


@pytest.mark.parametrize(
    ("horizon_s", "window_s"), [(60, 60), (240, 120), (600, 300), (1199, 300), (1200, 600), (86400, 600)]
)
def test_a_horizon_is_seen_in_two_windows_or_more(horizon_s: float, window_s: int) -> None:
    assert window_of(horizon_s) == window_s


def test_a_short_history_plans_for_what_was_just_seen_and_says_so() -> None:
    outlook = fed(Outlook(service="team/chat", spec=SPEC), [5.0, 6.0, 7.0])
    found = outlook.foreseen(8.0)
    assert (found.rate_rps, found.rule, found.reason) == (8.0, "largest sample", "ShortHistory")
    assert found.fallback.startswith("short history: 2 recorded windows")
    assert Outlook(service="team/chat", spec=SPEC).foreseen(1.0).fallback == "no whole window is known yet"


def test_after_a_day_plans_are_made_for_the_forecast() -> None:
    rates = wandering(200)
    outlook = fed(Outlook(service="team/chat", spec=SPEC), rates)
    found = outlook.foreseen(float(rates[-1]))
    assert (found.fallback, found.reason) == ("", "Forecasting")
    assert found.rate_rps > rates[-1]
    assert 0.9 < found.level_ratio < 1
    # What is seen now is never planned below.
    assert outlook.foreseen(1e6).rate_rps == 1e6


def test_the_database_fills_what_was_before() -> None:
    rates = wandering(300)
    past = [(START_S - (300 - row) * 600, float(rate)) for row, rate in enumerate(rates)]
    asked = []

    def read(
        name: str, window_s: int, since_s: float, until_s: float
    ) -> "Future[Sequence[tuple[float, float]]]":
        asked.append((name, window_s, until_s - since_s))
        return answered(past)

    outlook = fed(Outlook(service="team/chat", spec=SPEC, read=read), rates[:3])
    assert asked == [("team/chat", 600, MOST_WINDOWS * 600)]
    whole = fed(Outlook(service="team/chat", spec=SPEC), [*rates, *rates[:3]], start_s=past[0][0])
    assert outlook.foreseen(1.0) == whole.foreseen(1.0)
    assert outlook.foreseen(1.0).fallback == ""


def test_a_database_that_fails_is_named_and_asked_again() -> None:
    asked = []

    def read(*_: object) -> "Future[Sequence[tuple[float, float]]]":
        asked.append(1)
        return answered(OSError("the database: connection refused"))

    outlook = fed(Outlook(service="team/chat", spec=SPEC, read=read), [1.0])
    assert outlook.foreseen(1.0).note == "history: the database: connection refused"
    assert len(asked) == 1
    outlook.add(1.0, START_S + AGAIN_S)
    assert len(asked) == 2


def test_gaps_and_clocks_set_back_do_no_harm() -> None:
    rates = wandering(200)
    outlook = fed(Outlook(service="team/chat", spec=SPEC), rates)
    fed(outlook, rates[:50], start_s=START_S + 230 * 600)
    outlook.add(1e9, START_S)
    found = outlook.foreseen(1.0)
    assert found.fallback == ""
    assert found.rate_rps <= 1.1 * rates.max() + 0.1
    outlook.add(50.0, START_S + 1e8)
    assert outlook.foreseen(1.0).reason == "ShortHistory"


def test_the_present_sizes_are_planned_at_the_forecast_rate() -> None:
    buckets = (
        RequestBucket(rate_rps=3.0, input_tokens=100.0, output_tokens=10.0),
        RequestBucket(rate_rps=1.0, input_tokens=200.0, output_tokens=10.0),
    )
    found = replace(Outlook(service="team/chat", spec=SPEC).foreseen(8.0), fallback="")
    raised = foreseen(stated(buckets, at=""), found, ())
    assert [bucket.rate_rps for bucket in raised.buckets] == [6.0, 2.0]
    silent = Traffic(buckets=tuple(replace(b, rate_rps=0.0) for b in buckets), rate_rps=0.0, fresh=True)
    assert [b.rate_rps for b in foreseen(silent, found, buckets).buckets] == [6.0, 2.0]
    assert foreseen(silent, found, ()).buckets == silent.buckets


def test_the_store_gives_mean_rates_of_windows(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/history.db")
    store.migrate()
    store.write(
        TrafficSample(service="team/chat", t_s=START_S + 60.0 * k, rate_rps=float(k), desired=1, ready=1)
        for k in range(20)
    )
    history = RateHistory(store=store)
    past = history.read("team/chat", 600, START_S - 1e4, START_S + 1200).result(20)
    assert [(start_s, float(rate)) for start_s, rate in past] == [(START_S, 4.5), (START_S + 600, 14.5)]
    store.close()


class _Clock:
    """Stands in for `time` in the sampler."""

    def __init__(self) -> None:
        self.now_s = START_S

    def time(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s


def test_the_sampler_looks_ahead_where_it_is_wished(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr("controller.operator.sampler.time", clock)
    wish = service({"a": "a"}, traffic={"scrape": {}}, forecast={"horizon": "30m"})["spec"]
    spec = ModelServiceSpec.model_validate(wish)
    sampler = Sampler(world=World(), api=None)  # type: ignore[arg-type]
    key = ("team", "chat")
    rates = wandering(150)
    for rate in rates:
        measured = MeasuredTraffic(
            rate_rps=float(rate),
            buckets=(RequestBucket(rate_rps=float(rate), input_tokens=100.0, output_tokens=10.0),),
            sampled_at_s=clock.now_s,
            pods=1,
            expected_pods=1,
            series=(),
            complete=True,
        )
        sampler._judge(key, spec, measured)
        clock.now_s += 600.0
    traffic = sampler._read[key]
    assert traffic.forecast is not None
    assert traffic.forecast.fallback == ""
    planned = sum(bucket.rate_rps for bucket in traffic.buckets)
    assert planned == pytest.approx(traffic.forecast.rate_rps, rel=0.01)
    assert planned > rates[-1]
    # Without samples nothing falls.
    sampler._judge(key, spec, StaleTraffic(reason="no answer"))
    held = sampler._read[key]
    assert not held.fresh
    assert sum(bucket.rate_rps for bucket in held.buckets) == planned
    # Who wishes no forecast any more gets none.
    plain = ModelServiceSpec.model_validate({k: v for k, v in wish.items() if k != "forecast"})
    sampler._judge(key, plain, measured)
    assert sampler._read[key].forecast is None
    assert not sampler._outlooks


@pytest.mark.parametrize(
    ("written", "seconds"), [(90, 90), ("90", 90), ("90s", 90), ("30m", 1800), ("24h", 86400)]
)
def test_horizons_as_people_write_them(written: object, seconds: int) -> None:
    assert ForecastSpec.model_validate({"horizon": written}).horizon_s == seconds


@pytest.mark.parametrize("written", [59, "59", "25h", "1d", "-30m", "", "030m", 1.5])
def test_horizons_that_are_none(written: object) -> None:
    with pytest.raises(ValidationError):
        ForecastSpec.model_validate({"horizon": written})


def test_windows_are_means() -> None:
    outlook = Outlook(service="team/chat", spec=SPEC)
    for k in range(41):
        outlook.add(float(k % 20), START_S + 30.0 * k)
    np.testing.assert_allclose(outlook._rates, [9.5, 9.5])


def test_the_status_says_what_was_used() -> None:
    found = fed(Outlook(service="team/chat", spec=SPEC), wandering(200)).foreseen(150.0)
    flowing = replace(FLOWING, stated=False, forecast=found)
    view = seen(*ordinary(forecast={"horizon": "30m"}), traffic=flowing)
    status = status_of(view, Progress(), now=NOW)
    ModelServiceStatus.model_validate(status)
    assert status["forecast"]["rule"] == found.rule
    assert status["forecast"]["quantile"] == found.level_ratio
    assert "fallback" not in status["forecast"]
    condition = conditions(status)["ForecastReady"]
    assert (condition["status"], condition["reason"]) == ("True", "Forecasting")
    assert condition["message"].startswith(
        f"plans carry the next 30 min with probability 0.99: {found.rule} at quantile "
    )
    # Nearly the same is not worth a write.
    near = replace(found, rate_rps=1.02 * found.rate_rps)
    again = replace(view, body={**view.body, "status": status}, traffic=replace(flowing, forecast=near))
    assert status_of(again, Progress(), now=NOW)["forecast"] == status["forecast"]


@pytest.mark.parametrize(
    ("traffic", "reason"),
    [
        (FLOWING, "NotMeasured"),
        (Traffic(), "NeverSampled"),
        (
            replace(FLOWING, forecast=Outlook(service="team/chat", spec=SPEC).foreseen(4.0), stated=False),
            "ShortHistory",
        ),
    ],
)
def test_the_status_says_why_nothing_is_forecast(traffic: Traffic, reason: str) -> None:
    status = status_of(seen(*ordinary(forecast={}), traffic=traffic), Progress(), now=NOW)
    ModelServiceStatus.model_validate(status)
    condition = conditions(status)["ForecastReady"]
    assert (condition["status"], condition["reason"]) == ("False", reason)
    assert condition["message"]


def test_without_the_wish_nothing_is_said() -> None:
    assert "ForecastReady" not in conditions(status_of(seen(*ordinary()), Progress(), now=NOW))
