"""Recorded rates in windows: coarser ones begin at whole multiples and know what half of them knew."""

import numpy as np
import pytest

from solver.domain.errors import InputError
from solver.domain.rate_windows import RateWindows

GAP = np.nan


def _windows(rates: list[float], *, start_s: float = 0.0) -> RateWindows:
    return RateWindows(name="m", start_s=start_s, window_s=10.0, rate_rps=np.array(rates))


def test_coarser_windows_are_means_of_what_is_known() -> None:
    coarse = _windows([1, 3, GAP, 5, GAP, GAP, 7]).coarsened(20)
    np.testing.assert_array_equal(coarse.rate_rps, [2, 5, GAP])
    assert (coarse.start_s, coarse.window_s) == (0, 20)


def test_they_begin_at_whole_multiples_where_one_fits() -> None:
    coarse = _windows([1, 2, 3, 4, 5], start_s=10).coarsened(20)
    np.testing.assert_array_equal(coarse.rate_rps, [2.5, 4.5])
    assert coarse.start_s == 20
    alone = _windows([1, 2], start_s=10).coarsened(20)
    np.testing.assert_array_equal(alone.rate_rps, [1.5])
    assert alone.start_s == 10


def test_the_same_length_is_the_same() -> None:
    windows = _windows([1, 2])
    assert windows.coarsened(10) is windows


@pytest.mark.parametrize(
    ("window_s", "message"), [(15, "whole multiple"), (5, "whole multiple"), (30, "shorter")]
)
def test_what_cannot_be_is_said(window_s: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _windows([1, 2]).coarsened(window_s)
