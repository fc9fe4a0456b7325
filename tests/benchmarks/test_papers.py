"""The comparison with the papers: small runs of what docs/papers.md is made of."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import papers, splitwise_designs
from benchmarks.papers import ISO_COST, ISO_POWER, Question, report
from benchmarks.splitwise_designs import (
    BUDGETS,
    READINGS,
    Laboratory,
    Notebook,
    best_of,
    buckets_of,
    grid,
    moved,
    program_design,
    read_back,
    within,
    written,
)
from benchmarks.splitwise_runs import (
    Design,
    Load,
    by_batch_and_context,
    by_the_papers_rules,
    split,
    sustained_rps,
)
from solver.domain.fleet import FleetBudgets


def load(number: int = 3000) -> Load:
    randomness = np.random.default_rng(3)
    return Load(
        unit_arrival_s=np.cumsum(randomness.exponential(size=number)),
        prompt_tokens=randomness.integers(50, 3000, number),
        output_tokens=randomness.integers(10, 400, number),
    )


def test_cost_and_power_are_the_papers() -> None:
    """Simulation results published with splitwise-sim: equal power is 40 H100 machines, 1760 units."""
    told = {design.name: (round(design.cost, 1), round(design.power)) for design in ISO_POWER["conversation"]}
    assert told["Baseline-A100 70"] == (154.7, 1736)
    assert told["HA 25/26"] == (176.5, 1745)
    assert told["HHcap 25/21"] == (219.0, 1747)
    assert all(abs(design.cost / 190.4 - 1) < 0.01 for design in ISO_COST["code"][:4])


@pytest.mark.parametrize("simulator", [by_the_papers_rules, by_batch_and_context])
def test_twice_the_machines_sustain_more(simulator: object) -> None:
    rates = [
        sustained_rps(
            Design(name="b", prompt=("H", count)),
            load(),
            simulator,  # type: ignore[arg-type]
            duration_s=60.0,
            peers_tbt=True,
        )
        for count in (2, 4)
    ]
    assert 0.0 < rates[0] < rates[1]


def test_the_grid_is_every_split_within_the_budget() -> None:
    for budget, limits in BUDGETS.items():
        for points in grid(budget).values():
            assert len(points) >= 39
            assert len(set(points)) == len(points)
            assert all(within(point, limits) for point in points)
    assert split("AA", "A", 45, "A", 25) in grid("power")["AA"]
    assert split("HHcap", "H", 25, "C", 21) in grid("power")["HHcap"]
    assert split("HA", "H", 30, "A", 21) in grid("cost")["HA"]


def test_machines_move_within_the_budget() -> None:
    found = moved(split("HA", "H", 25, "A", 26), BUDGETS["power"], 2)
    assert [design.name for design in found] == ["HA 23/30", "HA 26/24"]
    assert all(within(design, BUDGETS["power"]) for design in found)
    assert moved(Design(name="b", prompt=("H", 40)), BUDGETS["power"], 1) == []


def test_what_was_found_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    design = split("HA", "H", 25, "A", 26)
    book = Notebook(path)
    assert book.ask("a", lambda: written(design)) == book.ask("a", dict)
    assert read_back(Notebook(path).ask("a", dict)) == design


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.name)
def test_the_programs_design_is_near_the_best_of_a_small_grid(reading: splitwise_designs.Reading) -> None:
    """Six H100 machines on a load of its own."""
    limits = FleetBudgets(machines=6)
    loads = [load(4000)]
    points = [split("HH", "H", p, "H", 6 - p) for p in range(1, 6)]
    laboratory = Laboratory(reading=reading, loads=loads, duration_s=40.0)
    _, best = best_of(laboratory, points)
    assert laboratory.rate_rps(points[1]) <= best
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitwise_designs, "FAMILIES", ("H", "HH"))
        found = program_design(
            Laboratory(reading=reading, loads=loads, duration_s=40.0), buckets_of(loads[0]), limits
        )
    assert found.rate_rps >= 0.98 * best
    assert found.runs > 0


@pytest.mark.slow
def test_the_document_is_made_from_short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(papers, "grid", lambda budget: {k: v[20:22] for k, v in grid(budget).items()})
    monkeypatch.setattr(splitwise_designs, "FAMILIES", ("H", "HH"))
    said: list[str] = []
    small = {"conversation": [load(4000)], "code": [load(4000)]}
    text = report(Question(loads=small, duration_s=8.0, say=said.append, design_loads=small))
    assert "| AA 45/25 | 154.7 | 1736 |" in text
    assert text.count("### ") == 8
    assert "{" not in text
    assert len(said) >= 20
