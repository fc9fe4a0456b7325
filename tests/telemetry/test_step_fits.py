"""Files of fits: what is written is read back, and nothing else passes."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.performance.fitted import StepFit
from solver.performance.protocol import ReplicaKind
from telemetry.sources.step_fits import read_step_fits, step_fits_document

FIT = StepFit(
    kind=ReplicaKind(model="m", gpu_type="H100-SXM", gpus_per_replica=4, precision="bf16"),
    prefill_s=0.02,
    prefill_token_s=6e-5,
    prefill_pair_s=2e-9,
    decode_s=0.015,
    sequence_s=5e-5,
    kv_token_s=1e-7,
    shared_s=0.0149,
    accept_s=0.003,
    prefills=100,
    decodes=90,
    prefill_ratio_90=(0.9, 1.2),
    decode_ratio_90=(0.95, 1.05),
    source="100 requests of served.csv",
)


@given(scale=st.floats(1e-6, 1e3))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, scale: float) -> None:
    fit = StepFit(
        kind=FIT.kind,
        prefill_s=scale,
        prefill_token_s=scale / 3.0,
        prefill_pair_s=0.0,
        decode_s=scale * 1.1,
        sequence_s=scale / 7.0,
        kv_token_s=scale / 1e6,
        shared_s=scale,
        prefills=1,
        decodes=0,
    )
    path = tmp_path_factory.mktemp("fits") / "fit.json"
    path.write_text(json.dumps(step_fits_document((fit,))))
    assert read_step_fits(path) == (fit,)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"decode_s": -1.0}, "fits[0].decode_s"),
        ({"decode_s": "0.1"}, "fits[0].decode_s"),
        ({"kv_token_s": float("nan")}, "fits[0].kv_token_s"),
        ({"prefill_pair_s": None}, "fits[0].prefill_pair_s"),
        ({"gpus_per_replica": 0}, "fits[0].gpus_per_replica"),
        ({"shared_s": 0.016}, "fits[0].shared_s: got 0.016; at most prefill_s and decode_s"),
        ({"decode_s": 0.0, "sequence_s": 0.0, "shared_s": 0.0}, "fits[0]: iterations that take no time"),
        ({"prefill_ratio_90": [1.0]}, "fits[0].prefill_ratio_90"),
    ],
)
def test_unsound_fits_are_refused_with_their_field(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    document = step_fits_document((FIT,))
    document["fits"][0].update(changes)
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError) as raised:
        read_step_fits(path)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "fit.json:1: not JSON"),
        ("[]", "schema"),
        ('{"schema": "fitted-steps/2", "fits": []}', "schema"),
        ('{"schema": "fitted-steps/1", "fits": []}', "fits"),
        ("[" * 100_000, "nested too deep"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_files_that_are_no_fits_are_refused(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "fit.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as raised:
        read_step_fits(path)
    assert told in str(raised.value)


def test_one_fit_per_kind_and_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(step_fits_document((FIT, FIT))))
    with pytest.raises(InputError, match=r"fits\[1\]: two fits of m on 4 x H100-SXM"):
        read_step_fits(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_step_fits(tmp_path / "none.json")
