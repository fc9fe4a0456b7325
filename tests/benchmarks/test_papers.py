"""The comparison with the papers: small runs of what docs/papers.md is made of."""

import numpy as np
import pytest

from benchmarks.papers import (
    ISO_COST,
    ISO_POWER,
    Design,
    Load,
    Question,
    by_batch_and_context,
    by_the_papers_rules,
    report,
    sustained_rps,
)


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


@pytest.mark.slow
def test_the_document_is_made_from_short_runs() -> None:
    said: list[str] = []
    small = {"conversation": [load(6000)], "code": [load(6000)]}
    text = report(Question(loads=small, duration_s=15.0, say=said.append))
    assert "| AA 45/25 | 154.7 | 1736 |" in text
    assert text.count("### ") == 6
    assert "{" not in text
    assert len(said) >= 20
