"""Served requests: empty cells, missing columns, and values that make no sense."""

from pathlib import Path

import numpy as np
import pytest

from solver.domain.errors import InputError
from telemetry.sources.observed_requests import read_observed

HEADER = (
    "arrival_s,prompt_tokens,output_tokens,model,prefill_instance,decode_instance,"
    "queue_s,ttft_s,tbt_s,e2e_s,preemptions,status\n"
)


def written(folder: Path, text: str) -> Path:
    path = folder / "served.csv"
    path.write_text(text)
    return path


def test_all_columns(tmp_path: Path) -> None:
    read = read_observed(
        written(
            tmp_path,
            HEADER
            + "0.5,100,5,m,0,3,0.01,0.2,0.1,0.6,1,completed\n"
            + "1,10,1,m,1,,0.02,0.3,,0.3,0,completed\n"
            + "2,10,4,m,,,,,,,0,rejected\n",
        )
    )
    assert read.arrival_s.tolist() == [0.5, 1.0, 2.0]
    assert read.prefill_instance.tolist() == [0, 1, -1]
    assert read.decode_instance.tolist() == [3, -1, -1]
    assert read.preemptions.tolist() == [1, 0, 0]
    assert np.array_equal(read.e2e_s, [0.6, 0.3, np.nan], equal_nan=True)
    assert read.tbt_s[0] == pytest.approx(0.1)
    assert np.isnan(read.tbt_s[1:]).all()


def test_columns_that_may_be_missing_and_rows_without_tokens(tmp_path: Path) -> None:
    read = read_observed(
        written(tmp_path, "e2e_s,ttft_s,arrival_s,prompt_tokens,output_tokens\n3,1,0,7,2\n3,1,0,0,2\n")
    )
    assert len(read) == 1
    assert np.isnan(read.queue_s[0])
    assert (read.prefill_instance[0], read.decode_instance[0], read.preemptions[0]) == (-1, -1, 0)
    assert read.tbt_s[0] == 2.0


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("0,1,1,m,0,0,0,0.5,,0.4,0,x", ":2: e2e_s: e2e_s 0.4 is before ttft_s 0.5"),
        ("0,1,1,m,0,0,0.6,0.5,,0.9,0,x", ":2: ttft_s: ttft_s 0.5 is before queue_s 0.6"),
        ("0,1,1,m,0,0,0,fast,,0.4,0,x", ":2: ttft_s: 'fast' is not a time in seconds"),
        ("0,1,1,m,0,0,0,nan,,0.4,0,x", "'nan' is not a time"),
        ("0,1,1,m,0,0,0,-1,,0.4,0,x", "'-1' is not a time"),
        ("0,1,1,m,0,0,0,1,,inf,0,x", "'inf' is not a time"),
        ("0,1,1,m,0.5,0,0,1,,2,0,x", "prefill_instance: '0.5' is not a whole number"),
        ("0,1,1,m,0,99999,0,1,,2,0,x", "decode_instance: '99999' is not a whole number"),
        ("0,1,1,m,0,0,0,1,,2", "10 fields"),
        ("", "no request in it"),
    ],
)
def test_nonsense_is_told_with_its_place(row: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read_observed(written(tmp_path, HEADER + row + "\n"))
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="e2e_s: no such column"):
        read_observed(written(tmp_path, "arrival_s,prompt_tokens,output_tokens,ttft_s\n0,1,1,1\n"))
