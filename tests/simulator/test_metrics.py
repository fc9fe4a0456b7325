"""Figures of a run, on records made by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.metrics import (
    Alone,
    ClusterFigures,
    definitions,
    distribution,
    figures_of,
    percentile_with_missing,
    tbt_of,
)
from simulator.record import RunRecord
from solver.domain.slo import Slo, parse_slo
from solver.domain.trace import Requests
from tests.simulator.records import record_of, requests_of

NAN = float("nan")


def judged(record: RunRecord, requests: Requests, slo: str | None = None, **given: object) -> ClusterFigures:
    arguments: dict[str, object] = {"pools": ["p"], "price_usd_per_h": [3.6], **given}
    return figures_of(record, requests, slo=Slo() if slo is None else parse_slo(slo), **arguments)  # type: ignore[arg-type]


def test_latencies_are_over_completed_requests_after_the_warm_up() -> None:
    requests = requests_of([0, 1, 2, 3, 4])
    record = record_of([100, 2, 4, NAN, 6], status=[1, 1, 1, 2, 1])
    figures = judged(record, requests, warm_up_s=1.0)
    assert figures.e2e_s is not None
    assert (figures.e2e_s.mean, figures.e2e_s.p50, figures.e2e_s.max) == (4.0, 4.0, 6.0)
    assert figures.e2e_s.p90 == pytest.approx(np.percentile([2, 4, 6], 90))
    counts = figures.requests
    assert (counts.offered, counts.completed, counts.rejected, counts.incomplete) == (5, 4, 1, 0)
    assert counts.counted == 4


def test_nothing_completed_gives_no_percentile_rather_than_zero() -> None:
    figures = judged(record_of([NAN, NAN], end_time_s=0.0), requests_of([0, 1]), "e2e_p50=5")
    assert figures.ttft_s is figures.tbt_s is figures.e2e_s is None
    assert figures.slo.attainment_ratio is None
    assert figures.slo.met is False
    assert figures.energy_j_per_output_token is None
    assert figures.cost_usd_per_million_tokens is None


def test_a_request_of_one_token_has_no_gap() -> None:
    requests = requests_of([0, 1, 2], output=[1, 2, 5])
    record = record_of([3.0, 3.0, 9.0], ttft_s=[3.0, 1.0, 1.0])
    assert tbt_of(record, requests)[1:].tolist() == [2.0, 2.0]
    assert tbt_of(record, requests, per_output_token=True)[1:].tolist() == [1.0, 1.6]
    assert np.isnan(tbt_of(record, requests)[0])
    figures = judged(record, requests, "tbt_p50=2")
    assert figures.tbt_s is not None
    assert figures.tbt_s.mean == 2.0
    assert figures.slo.attainment_ratio == 1.0


def test_targets_are_met_at_their_limit_and_the_tightest_is_named() -> None:
    figures = judged(record_of([1.0, 2.0, 3.0]), requests_of([0, 1, 2]), "e2e_p50=2.0,ttft_p50=1.25")
    assert [check.met for check in figures.slo.checks] == [True, True]
    assert figures.slo.met is True
    assert figures.slo.limiting is figures.slo.checks[0]
    missed = judged(record_of([1.0, 2.0, 3.0]), requests_of([0, 1, 2]), "e2e_p50=2.0,ttft_p50=0.9")
    assert missed.slo.met is False
    assert missed.slo.limiting is missed.slo.checks[1]


def test_attainment_applies_every_target_to_each_request() -> None:
    # The tighter of two targets of one metric decides, whatever its percentile.
    figures = judged(record_of([1.0, 2.0, 3.0, 4.0]), requests_of(range(4)), "e2e_p50=2.5,e2e_p99=10")
    assert figures.slo.attainment_ratio == 0.5
    assert figures.slo.met is True


def test_relative_targets_compare_with_the_request_alone() -> None:
    alone = Alone(ttft_s=np.array([0.5, 1.0]), tbt_s=np.array([1.0, 1.0]), e2e_s=np.array([1.0, 4.0]))
    record, requests = record_of([2.0, 4.0]), requests_of([0, 1])
    figures = judged(record, requests, "e2e_p50=1.5x,ttft_p50=1.9x", alone=alone)
    assert [check.value for check in figures.slo.checks] == [1.5, 2.0]
    assert [check.met for check in figures.slo.checks] == [True, False]
    with pytest.raises(ValueError, match="alone"):
        judged(record, requests, "e2e_p50=1.5x")


def test_a_rejected_request_counts_as_infinitely_late() -> None:
    times = [1.0] * 8 + [NAN] * 2
    record = record_of(times, status=[1] * 8 + [2] * 2, reject_reason=[0] * 8 + [1, 2])
    figures = judged(record, requests_of(range(10)), "e2e_p50=2,e2e_p90=2")
    middle, high = figures.slo.checks
    assert (middle.value, middle.met) == (1.0, True)
    assert (high.value, high.met) == (None, False)
    assert figures.slo.met is False
    assert figures.slo.limiting is high
    assert sum(figures.rejected_because.values()) == 2
    assert len(figures.rejected_because) == 2


def test_no_slo_is_met_while_a_counted_request_is_incomplete() -> None:
    record = record_of([NAN, 1.0, 1.0, 1.0])
    assert judged(record, requests_of(range(4)), "e2e_p50=2").slo.met is False
    assert judged(record, requests_of(range(4)), "e2e_p50=2", warm_up_s=0.5).slo.met is True


def test_without_targets_nothing_is_met_or_missed() -> None:
    slo = judged(record_of([1.0]), requests_of([0])).slo
    assert (slo.met, slo.attainment_ratio, slo.checks, slo.limiting) == (None, None, (), None)


def test_cost_energy_and_power() -> None:
    record = record_of(
        [1.0, 2.0],
        up_s=(10.0, 5.0, 10.0),
        busy_s=(5.0, 4.0, 0.0),
        energy_j=(100.0, 50.0, 25.0),
        pool_of_instance=(0, 0, 1),
        power_w=((10.0, 20.0, 30.0, 1.0), (0.0, 5.0, 5.0, 0.0)),
    )
    figures = judged(
        record, requests_of([0, 1]), pools=["a", "b"], price_usd_per_h=[360.0, 36.0], budget_w=24.0
    )
    assert [pool.utilisation_ratio for pool in figures.pools] == [0.6, 0.0]
    assert [pool.cost_usd for pool in figures.pools] == pytest.approx([1.5, 0.1])
    assert figures.cost_usd == pytest.approx(1.6)
    # Two requests of 10 tokens in and 5 out.
    assert figures.cost_usd_per_million_tokens == pytest.approx(1.6 / 10 * 1e6)
    assert figures.cost_usd_per_million_tokens_in_and_out == pytest.approx(1.6 / 30 * 1e6)
    assert figures.energy_j == 175.0
    assert figures.energy_j_per_output_token == 17.5
    power = figures.power
    assert power is not None
    assert power.mean_w == 17.5
    assert power.max_w == 35.0  # the last bin is not whole and is left out
    assert power.over_budget_s == 5.0
    assert (
        judged(record, requests_of([0, 1]), pools=["a", "b"], price_usd_per_h=[360.0, None]).cost_usd is None
    )


def test_unknown_watts_are_not_zero_watts() -> None:
    figures = judged(record_of([1.0]), requests_of([0]), watts_known=False)
    assert figures.power is None
    assert figures.energy_j is figures.energy_j_per_output_token is None
    assert figures.pools[0].energy_j is None


def test_throughput_counts_completions_while_requests_arrive() -> None:
    # Ends at 1, 2, 3, 4 and 24 s; the window is from 1 to 4 s.
    requests, record = requests_of(range(5)), record_of([1.0, 1.0, 1.0, 1.0, 20.0], end_time_s=24.0)
    figures = judged(record, requests, warm_up_s=1.0)
    assert figures.requests_per_s == pytest.approx(4 / 3)
    assert figures.output_tokens_per_s == pytest.approx(20 / 3)
    at_once = judged(record_of([2.0, 4.0], end_time_s=4.0), requests_of([0, 0]))
    assert at_once.requests_per_s == 0.5


def test_definitions_say_which_divisor_is_used() -> None:
    assert "(output tokens - 1)" in definitions()["tbt_s"]
    assert "(output tokens)" in definitions(tbt_per_output_token=True)["tbt_s"]


FINITE = st.floats(min_value=0.0, max_value=1e6, allow_nan=False)


@given(st.lists(FINITE, max_size=30), st.integers(0, 10), st.floats(0.1, 99.9))
def test_percentiles_with_missing_requests_are_numpys_with_huge_values(
    values: list[float], missing: int, percentile: float
) -> None:
    found = percentile_with_missing(np.array(values), percentile, missing)
    if not values and not missing:
        assert np.isnan(found)
        return
    expected = float(np.percentile(np.array(values + [1e30] * missing), percentile))
    if expected > 1e12:
        assert found == np.inf
    else:
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.lists(FINITE, min_size=1, max_size=50))
def test_distributions_are_ordered(values: list[float]) -> None:
    found = distribution(np.array([*values, NAN]))
    assert found is not None
    assert found.p50 <= found.p90 <= found.p95 <= found.p99 <= found.max == max(values)


@given(st.lists(st.one_of(FINITE, st.just(NAN)), min_size=1, max_size=40), st.floats(0.0, 40.0))
def test_every_request_is_counted_once(ends: list[float], warm_up_s: float) -> None:
    figures = judged(record_of(ends), requests_of(range(len(ends))), "e2e_p90=10", warm_up_s=warm_up_s)
    counts = figures.requests
    assert counts.completed + counts.rejected + counts.incomplete == counts.offered == len(ends)
    assert counts.counted == sum(k >= warm_up_s for k in range(len(ends)))
    assert figures.slo.attainment_ratio is None or 0.0 <= figures.slo.attainment_ratio <= 1.0
