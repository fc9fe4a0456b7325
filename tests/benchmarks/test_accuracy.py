"""The accuracy report: its fast path equals the model, its fit is sound, and the shipped defaults are what it finds."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy import (
    POWER_NAMES,
    TIME_NAMES,
    Row,
    _columns,
    fit_shipped,
    fit_times,
    leave_groups_out,
    main,
    times_of,
)
from solver.domain.hardware import Precision
from solver.performance.roofline import (
    DEFAULT_COEFFICIENTS,
    SPLITWISE_COEFFICIENTS,
    RooflineCoefficients,
    step_s,
    step_terms,
)
from telemetry.catalogue.read import read_gpus, read_models

ROOT = Path(__file__).parents[2]
DATA = ROOT / "../shared/data"
GPUS = read_gpus()
MODELS = read_models()


def made_up_rows(coefficients: RooflineCoefficients) -> list[Row]:
    """Rows that follow the formula exactly, for several models, GPUs and sizes."""
    rows = []
    for model in (MODELS["meta-llama/Llama-3.1-8B"], MODELS["meta-llama/Llama-3.1-70B"]):
        for gpu in (GPUS["A100-80-SXM"], GPUS["H100-SXM"]):
            for gpus in (1, 8):
                for tokens, sequences in ((1, 1), (8, 8), (64, 64), (512, 512), (512, 1), (4096, 1)):
                    terms = step_terms(
                        gpu,
                        model,
                        Precision.BF16,
                        gpus,
                        new_tokens=tokens,
                        sequences=sequences,
                        kv_tokens=500 * sequences,
                        pairs=500 * sequences,
                    )
                    row = Row(
                        table="made up",
                        group=f"{model.name} on {gpu.name}",
                        gpu=gpu,
                        terms=terms,
                        seconds=step_s(terms, coefficients),
                    )
                    rows.append(row)
    return rows


def test_many_rows_at_once_equal_one_by_one() -> None:
    rows = made_up_rows(DEFAULT_COEFFICIENTS)
    values = np.array([getattr(DEFAULT_COEFFICIENTS, name) for name in TIME_NAMES])
    assert times_of(values, _columns(rows)) == pytest.approx([row.seconds for row in rows], rel=1e-12)


def test_the_fit_finds_the_coefficients_behind_exact_rows() -> None:
    truth = dataclasses.replace(DEFAULT_COEFFICIENTS, compute_efficiency_ratio=0.5, hop_s=1e-5)
    found = fit_times(made_up_rows(truth))
    assert found == pytest.approx([getattr(truth, name) for name in TIME_NAMES], rel=1e-3)


def test_left_out_groups_are_judged_without_themselves() -> None:
    """One group is made three times slower: its own error shows it, as it could not if it had been fitted on."""
    rows = [
        dataclasses.replace(row, seconds=3 * row.seconds)
        if "A100" in row.group and "8B" in row.group
        else row
        for row in made_up_rows(DEFAULT_COEFFICIENTS)
    ]
    errors, _ = leave_groups_out(rows, rows)
    odd = errors.only(lambda row: "A100" in row.group and "8B" in row.group)
    assert odd.median == pytest.approx(2 / 3, abs=0.05)


def test_missing_data_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "x.md")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "x.md").exists()


def test_shipped_coefficients_and_report_are_what_the_fit_finds(tmp_path: Path) -> None:
    if not DATA.exists():
        pytest.skip(f"measured tables not here: {DATA}")
    for shipped, found in zip((DEFAULT_COEFFICIENTS, SPLITWISE_COEFFICIENTS), fit_shipped(DATA), strict=True):
        for name in (*TIME_NAMES, *POWER_NAMES):
            assert math.isclose(getattr(shipped, name), getattr(found, name), rel_tol=2e-3), name
    out = tmp_path / "accuracy.md"
    assert main(["--data", str(DATA), "--out", str(out)]) == 0
    assert "| missed |" not in out.read_text(encoding="utf-8").split("## Roofline: watts")[0]
