"""Recorded rates for a forecast: gaps, calendar time and daylight saving, and one line for what is wrong."""

from pathlib import Path

import numpy as np
import pytest

from solver.domain.errors import InputError
from telemetry.sources.demand_windows import read_demand_windows


def _file(folder: Path, text: str) -> Path:
    path = folder / "web.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_gaps_of_every_kind_are_not_recorded(tmp_path: Path) -> None:
    rows = ["m,0,1,2", "m,600,,2", "m,1200,NaN,2", "m,2400,0,0", "m,3000,0,3", "n,0,5,1", "n,60,6,1", ""]
    text = "\n".join(["model,t_s,rate_rps,active_clients", *rows])
    one, two = read_demand_windows(_file(tmp_path, text))
    np.testing.assert_array_equal(one.rate_rps, [1, np.nan, np.nan, np.nan, np.nan, 0])
    assert (one.window_s, one.start_s, two.name, two.window_s) == (600, 0, "n", 60)


def test_a_missing_second_row_does_not_lengthen_the_windows(tmp_path: Path) -> None:
    (series,) = read_demand_windows(_file(tmp_path, "t_s,rate_rps\n0,1\n120,2\n180,3\n"))
    assert (series.name, series.window_s, series.gaps) == ("web", 60, 1)


def test_an_hour_that_a_wall_clock_skips_or_repeats_is_no_jump(tmp_path: Path) -> None:
    """In the night of 29 March 2026 clocks in Berlin went from 02:00 +01:00 to 03:00 +02:00."""
    stamps = [
        "2026-03-29T00:00:00+01:00",
        "2026-03-29T01:00:00+01:00",
        "2026-03-29T03:00:00+02:00",
        "2026-03-29T02:00:00Z",
    ]
    rows = "".join(f"{stamp},{rate}\n" for rate, stamp in enumerate(stamps))
    (series,) = read_demand_windows(_file(tmp_path, "t_s,rate_rps\n" + rows))
    assert series.window_s == 3600
    assert series.gaps == 0
    assert series.start_s == 1774738800


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0,-1\n600,1\n", "2: rate_rps: '-1' is not a rate"),
        ("0,1\n600,inf\n", "3: rate_rps: 'inf' is not a rate"),
        ("0,1\n1200,1\n600,1\n", "4: t_s: a window from 600 s after one from 1200 s"),
        ("0,1\n600,1\n600,1\n", "4: t_s: a second window from 600 s"),
        ("0,1\n600,1\n1500,1\n", "4: t_s: a window from 1500 s among windows of 600 s"),
        (
            "0,1\n600,1\n1200,1\n1813,1\n2400,1\n3000,1\n",
            "5: t_s: a window from 1813 s among windows of 600 s",
        ),
        ("0,1\n", "only one window"),
        ("2026-03-29T00:00:00,1\n", "is a time without a zone; one such as"),
        ("2026-13-29T00:00:00Z,1\n", "is not a time stamp"),
        ("x,1\n", "'x' is not a time in seconds"),
        ("0,1\n1,1\n1e9,1\n", "more than"),
        ("", "no window in it"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_demand_windows(_file(tmp_path, "t_s,rate_rps\n" + rows))
    assert message in str(caught.value)


def test_other_files_are_told_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no windows of rates"):
        read_demand_windows(_file(tmp_path, "time,value\n0,1\n"))
    with pytest.raises(InputError, match="the file is empty; a file with columns model,t_s,rate_rps"):
        read_demand_windows(_file(tmp_path, ""))
    assert read_demand_windows(_file(tmp_path, "0,1,1,Gamma,1,1\n600,2,1,Gamma,1,1\n"))[0].window_s == 600
