"""Recorded power: both shapes, gzip, and one line for everything that is wrong."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.power_trace import RowPowerTrace, ServerPowerTrace
from telemetry.sources.power_trace import read_power_trace


def written(folder: Path, text: str, name: str = "power.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_a_table_per_server(tmp_path: Path) -> None:
    read = read_power_trace(written(tmp_path, "s00,t_s,s01\r\n10,0,20.5\r\n11,10,21\r\n12,20,22\r\n"))
    assert isinstance(read, ServerPowerTrace)
    assert read.servers == ("s00", "s01")
    assert read.period_s == 10.0
    assert read.server_w.tolist() == [[10.0, 20.5], [11.0, 21.0], [12.0, 22.0]]
    assert read.name == "power.csv"


def test_the_power_of_a_row(tmp_path: Path) -> None:
    text = "t_s,row_w,low_priority_w,high_priority_w\n100,10,4,6\n102,20,11,9\n"
    read = read_power_trace(written(tmp_path, text), servers_in_trace=40)
    assert isinstance(read, RowPowerTrace)
    assert (read.servers, read.period_s) == (40, 2.0)
    assert read.row_w.tolist() == [10.0, 20.0]
    assert read.low_w is not None
    assert read.low_w.tolist() == [4.0, 11.0]


def test_other_columns_of_a_row_are_passed_over(tmp_path: Path) -> None:
    read = read_power_trace(written(tmp_path, "t_s,note,row_w\n0,a b,1\n2,,3\n"), servers_in_trace=1)
    assert isinstance(read, RowPowerTrace)
    assert read.row_w.tolist() == [1.0, 3.0]
    assert read.low_w is None


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "power.csv.gz"
    path.write_bytes(gzip.compress(b"t_s,a\n0,1\n10,2\n"))
    assert read_power_trace(path).t_s.tolist() == [0.0, 10.0]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        read_power_trace(path)


@pytest.mark.parametrize(
    ("text", "servers", "words"),
    [
        ("", None, "empty"),
        ("\n\n", None, "empty"),
        ("t_s,a\n", None, "no samples"),
        ("t_s,a\n0,1\n", None, "one sample"),
        ("time,a\n0,1\n", None, "no column t_s in 'time,a'"),
        ("t_s\n0\n1\n", None, "no column with power"),
        ("t_s,a,a\n0,1,2\n", None, "column 'a' twice"),
        ("t_s,a,\n0,1,2\n", None, "a column without a name"),
        ("t_s,a\n0,1\n10,x\n", None, r"power.csv:3: a: 'x'"),
        ("t_s,a\n0,1\n10,\n", None, r"power.csv:3: a: an empty field"),
        ("t_s,a\n0,1\n10,nan\n", None, r"power.csv:3: a: 'nan'"),
        ("t_s,a\n0,1\n10,-5\n", None, r"power.csv:3: a: '-5'"),
        ("t_s,a\n0,1\n10,inf\n", None, r"power.csv:3: a: 'inf'"),
        ("t_s,a\n0,1\n10,1e30\n", None, r"power.csv:3: a: '1e30'"),
        ("t_s,a\n0,1\n10,1,2\n", None, r"power.csv:3: 3 values; give 2"),
        ("t_s,a\n0,1,2\n10,1,2\n", None, r"power.csv:2: 3 values; give 2"),
        ("t_s,a\n0,1\n\n10,1\n10,1\n", None, r"power.csv:5: t_s: 10 s after 10 s; times must rise"),
        ("t_s,a\n0,1\n10,1\n5,1\n", None, r"power.csv:4: t_s: 5 s after 10 s"),
        ("t_s,a\n0,1\n10,1\n20,1\n40,1\n", None, r"power.csv:5: t_s: a gap of 20 s in samples of 10 s"),
        ("t_s,a\n0,1\n61,1\n", None, "samples of 61 s; give samples of 60 s or less"),
        ("t_s,a\n0,1\n10,2\n", 40, "--servers-in-trace goes with a column row_w"),
        ("t_s,row_w\n0,1\n10,2\n", None, "give --servers-in-trace N"),
        ("t_s,row_w\n0,0\n10,0\n", 3, "the row never draws anything"),
        ("t_s,row_w\n0,1\n10,2\n", 0, "0 servers"),
        ("t_s,row_w,low_priority_w\n0,10,5\n2,10,15\n", 3, r"power.csv:3: low_priority_w"),
        (
            "t_s,row_w,low_priority_w,high_priority_w\n0,100,50,50\n2,100,50,10\n",
            3,
            "must add up to the row",
        ),
        ("\x00\x01", None, "no column t_s"),
    ],
)
def test_one_line_for_what_is_wrong(tmp_path: Path, text: str, servers: int | None, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_power_trace(written(tmp_path, text), servers_in_trace=servers)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_power_trace(tmp_path / "nothing.csv")
    path = tmp_path / "power.csv"
    path.write_bytes(b"t_s,\xff\xfe\n0,1\n")
    with pytest.raises(InputError, match="not text"):
        read_power_trace(path)


@given(st.text(alphabet="0123456789.,-\nt_saern \x00é", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "power.csv"
        path.write_text("t_s,a\n" + text, encoding="utf-8")
        try:
            read = read_power_trace(path)
        except InputError as error:
            told = str(error)
        else:
            assert isinstance(read, ServerPowerTrace)
            assert np.isfinite(read.server_w).all()
            told = ""
        assert "\n" not in told
