"""Generated requests: the same for the same seed, a larger row holds the smaller one, and like the recorded ones."""

from pathlib import Path

import numpy as np
import pytest

from simulator.row.generate import KINDS, RowLoad, generate_requests
from simulator.row.run import reference_row, run_uncapped
from solver.domain.errors import InputError

DATA = Path(__file__).parents[3] / "../shared/data/power"


def test_seeds() -> None:
    one = generate_requests(servers=4, seconds=3600, seed=1)
    two = generate_requests(servers=4, seconds=3600, seed=1)
    other = generate_requests(servers=4, seconds=3600, seed=2)
    np.testing.assert_array_equal(one.arrival_s, two.arrival_s)
    np.testing.assert_array_equal(one.output_tokens, two.output_tokens)
    assert one.count != other.count or not np.array_equal(one.arrival_s, other.arrival_s)


def test_a_larger_row_has_the_smaller_ones_requests() -> None:
    small = generate_requests(servers=5, seconds=7200, seed=3)
    large = generate_requests(servers=9, seconds=7200, seed=3)
    mine = large.by_server(5)
    np.testing.assert_array_equal(large.arrival_s[mine], small.arrival_s[small.by_server(5)])
    np.testing.assert_array_equal(large.prompt_tokens[mine], small.prompt_tokens[small.by_server(5)])


def test_sizes_and_classes() -> None:
    found = generate_requests(servers=8, seconds=86_400, seed=4)
    low = found.server % 2 == 0
    for name, on_low, on_high, prompt, output in (
        ("chat", 0.5, 0.5, (2048, 4096), (128, 2048)),
        ("search", 0.0, 0.5, (512, 2048), (1024, 2048)),
        ("summarize", 0.5, 0.0, (2048, 8192), (256, 512)),
    ):
        mine = found.kind == KINDS.index(name)
        assert mine[low].mean() == pytest.approx(on_low, abs=0.02)
        assert mine[~low].mean() == pytest.approx(on_high, abs=0.02)
        for values, (least, most) in ((found.prompt_tokens, prompt), (found.output_tokens, output)):
            assert (values[mine].min(), values[mine].max()) == (
                pytest.approx(least, abs=8),
                pytest.approx(most, abs=8),
            )
            assert values[mine].mean() == pytest.approx((least + most) / 2, rel=0.02)
    assert found.arrival_s.min() >= 0.0
    assert found.arrival_s.max() < found.duration_s


def test_a_week_is_like_the_recorded_one() -> None:
    """Mean .693, peak .790, quietest and busiest hour .652 and .725, spread within an hour .0137 (docs/power.md)."""
    week = generate_requests(servers=40, seconds=7 * 86_400, seed=1)
    assert week.count * 52 / 40 == pytest.approx(3.85e6, rel=0.05)
    run = run_uncapped(week, reference_row(40))
    draw = run.row_w.reshape(-1, 2).mean(axis=1) / 260_000
    hours = draw.reshape(7, 24, -1)
    assert draw[1800:].mean() == pytest.approx(0.693, abs=0.006)
    assert draw[1800:].max() == pytest.approx(0.790, abs=0.015)
    assert hours.mean(axis=(0, 2)).min() == pytest.approx(0.652, abs=0.012)
    assert hours.mean(axis=(0, 2)).max() == pytest.approx(0.725, abs=0.012)
    assert hours.std(axis=2).mean() == pytest.approx(0.0137, abs=0.002)


@pytest.mark.parametrize(
    "wrong", [{"low_rps": 0.0}, {"high_rps": float("nan")}, {"day_swing_ratio": 1.5}, {"common_ratio": -0.1}]
)
def test_refused_loads(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        RowLoad(**wrong)
    with pytest.raises(InputError):
        generate_requests(servers=0, seconds=10, seed=1)
