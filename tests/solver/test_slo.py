"""The SLO grammar: what it reads, that it round-trips, and that bad text is one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.domain.errors import InputError, Place
from solver.domain.slo import Slo, SloMetric, SloTarget, parse_slo

TARGETS = st.builds(
    lambda metric, percentile, limit, relative: SloTarget(
        metric=metric,
        percentile=percentile,
        limit_s=None if relative else limit,
        limit_ratio=limit if relative else None,
    ),
    st.sampled_from(SloMetric),
    st.one_of(st.integers(1, 99).map(float), st.sampled_from([99.9, 99.99, 0.5])),
    st.floats(1e-6, 1e6),
    st.booleans(),
)


def test_reads_the_example_of_the_contract() -> None:
    slo = parse_slo("ttft_p99=1.0,tbt_p99=0.05,e2e_p50=10")
    assert [(t.metric, t.percentile, t.limit_s) for t in slo.targets] == [
        (SloMetric.TTFT, 99.0, 1.0),
        (SloMetric.TBT, 99.0, 0.05),
        (SloMetric.E2E, 50.0, 10.0),
    ]
    assert not slo.relative
    assert str(slo) == "ttft_p99=1,tbt_p99=0.05,e2e_p50=10"


def test_reads_relative_targets_of_a_scenario() -> None:
    slo = parse_slo("ttft_p50=2x, ttft_p90=3x ,tbt_p99.9=1.25x")
    assert [t.limit_ratio for t in slo.targets] == [2.0, 3.0, 1.25]
    assert slo.relative
    assert slo.targets[2].miss_ratio == pytest.approx(0.001)


@given(st.lists(TARGETS, min_size=1, max_size=6, unique_by=lambda t: t.key))
def test_round_trips(targets: list[SloTarget]) -> None:
    slo = Slo(targets=tuple(targets))
    assert parse_slo(str(slo)) == slo


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty SLO"),
        ("ttft_p99", "cannot read SLO target 'ttft_p99'"),
        ("ttft_p99=1,", "cannot read SLO target ''"),
        ("itl_p99=1", "unknown SLO metric 'itl'"),
        ("ttft_p100=1", "percentile 100"),
        ("ttft_p0=1", "percentile 0"),
        ("ttft_p99=0", "limit 0"),
        ("ttft_p99=-1", "limit -1"),
        ("ttft_p99=nan", "limit nan"),
        ("ttft_p99=inf", "limit inf"),
        ("ttft_p99=1s", "cannot read SLO limit '1s'"),
        ("ttft_p99=x", "cannot read SLO limit 'x'"),
        ("ttft_p99=1,ttft_p99=2", "ttft_p99 given twice"),
    ],
)
def test_bad_text_is_one_line(text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_slo(text, where=Place("flags", field="--slo"))
    assert str(caught.value).startswith("flags: --slo: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.right


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        slo = parse_slo(text)
    except InputError:
        return
    assert parse_slo(str(slo)) == slo


def test_a_target_needs_exactly_one_limit() -> None:
    with pytest.raises(InputError, match="one limit"):
        SloTarget(metric=SloMetric.TTFT, percentile=99.0)
    with pytest.raises(InputError, match="one limit"):
        SloTarget(metric=SloMetric.TTFT, percentile=99.0, limit_s=1.0, limit_ratio=2.0)
