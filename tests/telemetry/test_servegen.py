"""ServeGen's windows of rates: three layouts, gaps that are no idleness, and what is refused."""

import gzip
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.rate_windows import RateWindows
from telemetry.sources.traces.servegen import read_rate_windows

DATA = Path("../shared/data/seeds/traces/servegen/window_rates.csv.gz")
HEADER = "model,t_s,rate_rps,active_clients\n"
CLIENT = "0,1.5,8.6,Weibull,0.375,0.397\n600,0,0,,0,0\n1200,0.25,1.2,Gamma,0.7,5.5\n"


def _file(folder: Path, content: str | bytes, name: str = "rates.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_series_of_several_models(tmp_path: Path) -> None:
    raw = gzip.compress(f"{HEADER}a,0,2,3\nb,300,4.5,1\na,600,0,0\na,1200,3,1\nb,360,0,2\n".encode())
    first, second = read_rate_windows(_file(tmp_path, raw))
    assert (first.name, first.start_s, first.window_s, first.duration_s) == ("a", 0.0, 600.0, 1800.0)
    assert first.gaps == 1
    np.testing.assert_array_equal(first.rate_rps, [2.0, np.nan, 3.0])
    np.testing.assert_array_equal(first.filled().rate_rps, [2.0, 2.5, 3.0])
    assert (second.name, second.start_s, second.window_s) == ("b", 300.0, 60.0)
    assert second.rate_rps.tolist() == [4.5, 0.0]  # somebody was there and asked nothing


def test_without_a_count_of_clients_zero_is_zero(tmp_path: Path) -> None:
    (series,) = read_rate_windows(_file(tmp_path, "rate_rps,model,t_s\n0,m,0\n1,m,5\n"))
    assert series.rate_rps.tolist() == [0.0, 1.0]


def test_windows_left_out_are_gaps(tmp_path: Path) -> None:
    (series,) = read_rate_windows(_file(tmp_path, f"{HEADER}m,0,1,1\nm,10,2,1\nm,40,5,1\n"))
    np.testing.assert_array_equal(series.rate_rps, [1, 2, np.nan, np.nan, 5])
    assert series.filled().rate_rps.tolist() == [1, 2, 3, 4, 5]


def test_a_client_file(tmp_path: Path) -> None:
    (series,) = read_rate_windows(_file(tmp_path, CLIENT, "chunk-7-trace.csv"))
    assert series.name == "chunk-7-trace"
    assert series.rate_rps.tolist() == [1.5, 0.0, 0.25]


def test_a_folder_of_clients_is_summed(tmp_path: Path) -> None:
    folder = tmp_path / "m-small"
    folder.mkdir()
    _file(folder, CLIENT, "chunk-0-trace.csv")
    _file(folder, CLIENT + "1800,2,1,Gamma,1,1\n", "chunk-10-trace.csv")
    _file(folder, "{}", "chunk-0-dataset.json")
    (series,) = read_rate_windows(folder)
    assert series.name == "m-small"
    np.testing.assert_array_equal(series.rate_rps, [3.0, np.nan, 0.5, 2.0])
    _file(folder, CLIENT.replace("600", "60").replace("1200", "120"), "chunk-2-trace.csv")
    with pytest.raises(
        InputError, match="m-small: chunk-2-trace has windows of 60 s from 0 s, chunk-0-trace of 600"
    ):
        read_rate_windows(folder)


BAD = {
    "empty": ("", "the file is empty"),
    "no window": (HEADER, "rates.csv: no window in it; a file with columns model,t_s,rate_rps"),
    "another file": (
        "arrival_s,prompt_tokens\n",
        "rates.csv:1: no windows of rates: it begins with 'arrival_s,",
    ),
    "one window": (f"{HEADER}m,0,1,1\n", "rates.csv:2: t_s: only one window of 'm'; at least two"),
    "backwards": (
        f"{HEADER}m,5,1,1\nm,0,1,1\n",
        "rates.csv:3: t_s: a window from 0 s after one from 5 s; each",
    ),
    "twice": (f"{HEADER}m,5,1,1\nm,5,1,1\n", "rates.csv:3: t_s: a window from 5 s after one from 5 s"),
    "uneven": (
        f"{HEADER}m,0,1,1\nm,10,1,1\nm,25,1,1\n",
        "rates.csv:4: t_s: a window from 25 s among windows of 10 s from 0 s; windows of equal length",
    ),
    "negative": (f"{HEADER}m,0,-1,1\n", "rates.csv:2: rate_rps: '-1' is not a rate; a decimal number from 0"),
    "nan": (f"{HEADER}m,0,nan,1\n", "rates.csv:2: rate_rps: 'nan' is not a rate"),
    "nan in a client": ("0,nan,1,Gamma,1,1\n", "rates.csv:1: rate_rps: 'nan' is not a rate"),
    "half a row": ("0,1,1,Gamma,1,1\n600,1\n", "rates.csv:2: 2 fields ('600,1'); 6"),
    "too long": (f"{HEADER}m,0,1,1\nm,1,1,1\nm,9e9,1,1\n", "rates.csv:4: t_s: more than 4,000,000 windows"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_windows_are_told_in_one_line(tmp_path: Path, case: str) -> None:
    content, words = BAD[case]
    with pytest.raises(InputError) as caught:
        read_rate_windows(_file(tmp_path, content))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: cannot be read: No such file"):
        read_rate_windows(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"no chunk-\*-trace.csv in it; a folder of ServeGen's clients"):
        read_rate_windows(tmp_path)


@given(
    raw=st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda head, rows: (head + rows).encode(),
            st.sampled_from([HEADER, ""]),
            st.text(alphabet='m0159.,-eE\n\r"N', max_size=80),
        ),
    )
)
@settings(deadline=None)
def test_anything_is_read_or_refused(raw: bytes) -> None:
    refusal = ""
    series: tuple[RateWindows, ...] = ()
    with tempfile.TemporaryDirectory() as folder:
        try:
            series = read_rate_windows(_file(Path(folder), raw))
        except InputError as error:
            refusal = str(error)
    assert bool(series) != bool(refusal)
    assert "\n" not in refusal
    assert all(len(one) >= 2 and one.window_s > 0 for one in series)


@pytest.mark.skipif(not DATA.exists(), reason="ServeGen's windows are not here")
def test_the_recorded_windows() -> None:
    series = {one.name: one for one in read_rate_windows(DATA)}
    assert {name: (len(one), one.gaps) for name, one in series.items()} == {
        "m-large": (1296, 0),
        "m-mid": (1296, 38),
        "m-small": (1296, 1),
        "deepseek-r1": (96, 0),
        "mm-image": (96, 0),
    }
    assert {one.window_s for one in series.values()} == {600.0}
