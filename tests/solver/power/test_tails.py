"""The tail of recorded minutes: fits that are known, and resamplings beside doing them one by one."""

import numpy as np
import pytest

from solver.power.tails import Tails


def test_a_known_pareto_is_found() -> None:
    draw = np.random.default_rng(0)
    for shape, scale in ((-0.3, 0.05), (0.0, 0.02), (0.2, 0.03)):
        uniform = draw.random(400_000)
        excess = -scale * np.log(uniform) if shape == 0.0 else scale * (uniform**-shape - 1.0) / shape
        tails = Tails(0.2 + excess)
        found, sigma = tails.pareto
        assert found[0] == pytest.approx(shape, abs=0.03)
        # The excess over a higher threshold is of the same shape, its scale moved along.
        assert sigma[0] == pytest.approx(scale + shape * (tails.h[0] - 0.2), rel=0.05)


def test_an_exponential_tail_has_one_risk() -> None:
    draw = np.random.default_rng(1)
    tails = Tails(0.5 + draw.exponential(0.04, 400_000))
    true = 525_600.0 * np.exp(-(1.0 - 0.5) / 0.04)
    assert tails.risk()[0] == pytest.approx(true, rel=0.25)
    assert tails.pareto_risk()[0] == pytest.approx(true, rel=0.6)


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.25, 1.6])
def test_resamplings_are_those_of_repeated_hours(scale: float) -> None:
    draw = np.random.default_rng(2)
    maxima = draw.normal(0.7, 0.08, 60 * 7 + 31)
    counts = np.stack([np.bincount(draw.integers(0, 7, 7), minlength=7) for _ in range(20)])
    together = Tails(maxima, counts)
    for index, count in enumerate(counts):
        repeated = np.concatenate(
            [np.tile(maxima[60 * hour : 60 * hour + 60], times) for hour, times in enumerate(count)]
        )
        alone = Tails(repeated)
        assert together.h[index] == alone.h[0]
        assert together.risk(scale)[index] == pytest.approx(alone.risk(scale)[0], rel=1e-9)
        assert together.pareto[0][index] == pytest.approx(alone.pareto[0][0], rel=1e-9)
        assert together.pareto_risk(scale)[index] == pytest.approx(alone.pareto_risk(scale)[0], rel=1e-9)


def test_scaling_is_scaling_the_draws() -> None:
    maxima = np.random.default_rng(3).normal(0.7, 0.08, 600)
    for scale in (0.5, 1.0, 1.2, 1.5):
        assert Tails(maxima).risk(scale)[0] == pytest.approx(Tails(scale * maxima).risk()[0], rel=1e-9)
        assert Tails(maxima).pareto_risk(scale)[0] == pytest.approx(
            Tails(scale * maxima).pareto_risk()[0], rel=1e-6
        )


def test_minutes_that_are_all_alike() -> None:
    for value, risk in ((0.9, 0.0), (1.0, 0.0), (1.1, 525_600.0)):
        tails = Tails(np.full(30, value))
        assert tails.risk()[0] == tails.pareto_risk()[0] == risk
        assert np.isnan(tails.pareto[0][0])
    one_higher = Tails(np.array([0.5] * 39 + [0.9]))
    assert one_higher.pareto_risk()[0] == one_higher.risk()[0]
