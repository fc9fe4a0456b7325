"""Reading the requests of a row: what is taken, what is refused with file and line."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.row.plant_file import read_plant
from simulator.row.request_file import read_row_requests
from solver.domain.errors import InputError
from solver.domain.power import REFERENCE_SERVER, Priority

HEADER = "t_ms,server,priority,class,prompt_tokens,output_tokens\n"
GOOD = HEADER + "23,1,high,chat,3575,795\n24,0,low,chat,1581,1466\n61000,3,high,search,10,1\n"


def test_columns(tmp_path: Path) -> None:
    for name, data in (
        ("r.csv", GOOD.encode()),
        ("r.csv.gz", gzip.compress(GOOD.replace("\n", "\r\n").encode())),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        found = read_row_requests(path)
        assert (found.count, found.duration_s, found.kinds) == (3, 120, ("chat", "search"))
        assert found.arrival_s.tolist() == [0.023, 0.024, 61.0]
        assert found.server.tolist() == [1, 0, 3]
        assert found.prompt_tokens.tolist() == [3575, 1581, 10]
        assert found.kind.tolist() == [0, 0, 1]
        assert found.by_server(2).tolist() == [1, 0]
    short = read_row_requests(tmp_path / "r.csv", duration_s=60)
    assert (short.count, short.duration_s) == (2, 60)


def test_a_server_has_the_priority_that_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text(HEADER + "1,0,high,chat,5,5\n", encoding="utf-8")
    assert read_row_requests(path).priorities(3) == (Priority.HIGH, Priority.HIGH, Priority.LOW)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", ":1: "),
        ("a,b\n1,2\n", ":1: "),
        (HEADER, ": no requests"),
        (HEADER + "1,0,low,chat,5\n", ":2: 5 values"),
        (HEADER + "1,0,low,chat,5,5\nx,0,low,chat,5,5\n", ":3: t_ms"),
        (HEADER + "-1,0,low,chat,5,5\n", ":2: t_ms"),
        (HEADER + "nan,0,low,chat,5,5\n", ":2: t_ms"),
        (HEADER + "1,0.5,low,chat,5,5\n", ":2: server"),
        (HEADER + "1,0,middle,chat,5,5\n", ":2: priority"),
        (HEADER + "1,0,low,chat,5,5\n2,0,high,chat,5,5\n", ":3: priority"),
        (HEADER + "1,0,low,,5,5\n", ": class"),
        (HEADER + "1,0,low,low,5,5\n", ": class"),
        (HEADER + "1,0,low,chat,0,5\n", ":2: prompt_tokens"),
        (HEADER + "1,0,low,chat,5,1e99\n", ":2: output_tokens"),
    ],
)
def test_refused(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_row_requests(path)
    assert str(caught.value).startswith(f"{path}{where}")
    assert "\n" not in str(caught.value)


@given(
    st.binary(max_size=300)
    | st.text("0123456789.,-elowhighcat\n", max_size=200).map(lambda t: (HEADER + t).encode())
)
def test_whatever_comes_in_only_one_line_comes_out(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    for form in (data, gzip.compress(data), gzip.compress(data)[:-5]):
        path.write_bytes(form)
        try:
            assert read_row_requests(path).duration_s >= 60
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


PLANT: dict[str, Any] = {
    "gpu": {
        "tdp_w": 400, "idle_w": 63, "max_mhz": 1410, "base_mhz": 1275, "min_mhz": 210, "gpus_per_server": 8,
        "prompt_power_frac": 1.02, "token_power_frac_batch0": 0.58, "token_power_frac_batch16": 0.68,
        "power_exponent": 1.13,
    },
    "server": {"fixed_w": 1250.0, "per_gpu_watt_factor": 1.5, "provisioned_w": 6500, "max_batch": 16},
    "timing": {
        "prompt_tokens": [128, 8192], "prompt_s": [0.08, 3.6], "batch": [1, 64], "token_s": [0.05, 0.1],
        "prompt_freq_sensitivity": 0.8, "token_freq_sensitivity": 0.2, "brake_prompt_sensitivity": 1.0,
        "brake_token_sensitivity": 0.5,
    },
    "row": {"base_servers": 40, "budget_w": 260000},
}  # fmt: skip


def test_a_plant(tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(PLANT), encoding="utf-8")
    plant = read_plant(path)
    assert plant.server.worst_w(1410) == REFERENCE_SERVER.worst_w(1410)
    assert plant.server.worst_w(600) == REFERENCE_SERVER.worst_w(600)
    assert (plant.base_servers, plant.budget_w) == (40, 260_000.0)
    np.testing.assert_allclose(
        plant.timing.prompt_s_of(np.array([1, 128, 8192, 16256])), [0.08, 0.08, 3.6, 7.12]
    )


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("gpu", "idle_w", -1),
        ("gpu", "idle_w", 900),
        ("gpu", "max_mhz", 100),
        ("gpu", "gpus_per_server", 0.5),
        ("server", "max_batch", "many"),
        ("timing", "prompt_s", [1]),
        ("timing", "prompt_tokens", [5, 5]),
        ("timing", "token_s", [2, 1]),
        ("timing", "token_freq_sensitivity", 1.5),
        ("row", "budget_w", None),
    ],
)
def test_a_plant_that_is_none(tmp_path: Path, part: str, name: str, value: Any) -> None:
    path = tmp_path / "plant.json"
    path.write_text(json.dumps({**PLANT, part: {**PLANT[part], name: value}}), encoding="utf-8")
    with pytest.raises(InputError, match=r"plant\.json: "):
        read_plant(path)
    lacking = {**PLANT, part: {key: kept for key, kept in PLANT[part].items() if key != name}}
    path.write_text(json.dumps(lacking), encoding="utf-8")
    with pytest.raises(InputError, match=f"{part}.{name}: missing"):
        read_plant(path)
