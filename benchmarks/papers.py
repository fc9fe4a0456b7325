"""What Splitwise's designs sustain, by the paper's simulator rules and by an honest reading of the same measurements.

It exists to say in one place (docs/papers.md) which of the paper's claims hold, and why the reading of the decode table
decides. It is not a recommendation: the best split is an answer per workload and model. Run it with
``python -m benchmarks.papers --data ../shared/data --out docs/papers.md``; it needs the Azure traces and no GPU.

Designs, budgets and the nine conditions of the SLO are those of the paper (Patel et al., ISCA 2024) and of the
notebooks of splitwise-sim (8f99e7dc, MIT). Traces: Poisson arrivals, prompt and output drawn independently from the
columns of the Azure traces, as there. One sequence of unit-rate arrivals and sizes per seed serves all rates and
designs.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.splitwise_designs import (
    BUDGETS,
    CLAIMS,
    DESIGN_SEEDS,
    READINGS,
    Laboratory,
    Notebook,
    Reading,
    best_of,
    buckets_of,
    grid,
    program_design,
    read_back,
    within,
    written,
)
from benchmarks.splitwise_runs import STEP_RPS, Design, Load, load_of, split, sustained_rps
from telemetry.sources.traces.write import whole_file

TRACES = {"conversation": "AzureLLMInferenceTrace_conv.csv", "code": "AzureLLMInferenceTrace_code.csv"}

BASELINES = (
    Design(name="Baseline-A100 70", prompt=("A", 70)),
    Design(name="Baseline-H100 40", prompt=("H", 40)),
)
ISO_POWER: Mapping[str, tuple[Design, ...]] = {
    "conversation": (
        *BASELINES,
        split("AA", "A", 45, "A", 25),
        split("HH", "H", 25, "H", 15),
        split("HA", "H", 25, "A", 26),
        split("HHcap", "H", 25, "C", 21),
    ),
    "code": (
        *BASELINES,
        split("AA", "A", 55, "A", 15),
        split("HH", "H", 35, "H", 5),
        split("HA", "H", 35, "A", 8),
        split("HHcap", "H", 35, "C", 7),
    ),
}
ISO_COST: Mapping[str, tuple[Design, ...]] = {
    "conversation": (
        Design(name="Baseline-A100 86", prompt=("A", 86)),
        Design(name="Baseline-H100 40", prompt=("H", 40)),
        split("AA", "A", 51, "A", 35),
        split("HH", "H", 25, "H", 15),
        split("HA", "H", 30, "A", 21),
        split("HHcap", "H", 30, "C", 10),
    ),
    "code": (
        Design(name="Baseline-A100 86", prompt=("A", 86)),
        Design(name="Baseline-H100 40", prompt=("H", 40)),
        split("AA", "A", 66, "A", 20),
        split("HH", "H", 35, "H", 5),
        split("HA", "H", 35, "A", 10),
        split("HHcap", "H", 35, "C", 7),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What all runs of the document share."""

    loads: Mapping[str, Sequence[Load]]
    """By trace, one per seed."""
    duration_s: float
    say: Callable[[str], None]
    design_loads: Mapping[str, Sequence[Load]] = field(default_factory=dict)
    """The program's designs are found on these, and reported on ``loads``."""
    notebook: Notebook = field(default_factory=lambda: Notebook(None))


Rates = dict[tuple[str, str], tuple[list[float], list[float]]]
"""By trace and design: the rates of all seeds, for both readings."""


def _rates(question: Question, trace: str, designs: Sequence[Design], known: Rates) -> None:
    for design in designs:
        if (trace, design.name) in known:
            continue

        def find(design: Design = design) -> dict[str, Any]:
            return {
                reading.name: [
                    sustained_rps(
                        design,
                        load,
                        reading.simulator,
                        duration_s=question.duration_s,
                        peers_tbt=reading.peers_tbt,
                    )
                    for load in question.loads[trace]
                ]
                for reading in READINGS
            }

        told = question.notebook.ask(f"paper/{trace}/{design.name}", find)
        peers, honest = (list(told[reading.name]) for reading in READINGS)
        known[trace, design.name] = (peers, honest)
        question.say(f"{trace}, {design.name}: {peers} {honest}")


def _median(rates: Rates, trace: str, name: str, reading: int) -> float:
    return float(np.median(rates[trace, name][reading]))


def _table(trace: str, designs: Sequence[Design], rates: Rates) -> list[str]:
    lines = [
        "| design | cost | power | splitwise-compat, req/s | × A | × H | table-kv, req/s | × A | × H |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for design in designs:
        cells = [design.name, f"{design.cost:.1f}", f"{design.power:.0f}"]
        for reading in (0, 1):
            median, found = _median(rates, trace, design.name, reading), rates[trace, design.name][reading]
            cells.append(f"{median:.0f} ({min(found):.0f} to {max(found):.0f})")
            for base in designs[:2]:
                against = _median(rates, trace, base.name, reading)
                cells.append(f"{median / against:.2f}" if against else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


class _Program:
    """The program's designs beside the whole grid, for one trace; all rates are medians of the same loads."""

    def __init__(self, question: Question, trace: str) -> None:
        self.question, self.trace = question, trace
        self.report = {
            reading.name: Laboratory(
                reading=reading, loads=question.loads[trace], duration_s=question.duration_s
            )
            for reading in READINGS
        }

    def rate_rps(self, reading: Reading, design: Design) -> float:
        """Simulate one design on the loads of the report."""

        def find() -> dict[str, Any]:
            return {"rate_rps": self.report[reading.name].rate_rps(design)}

        key = f"rate/{self.trace}/{reading.name}/{design.name}"
        return float(self.question.notebook.ask(key, find)["rate_rps"])

    def grid_best(self, reading: Reading, budget: str, family: str) -> tuple[Design, float, int, int]:
        """Find the best point of a family; returns its rate, the points and the runs."""
        points = grid(budget)[family]

        def find() -> dict[str, Any]:
            laboratory = self.report[reading.name]
            before = laboratory.runs
            design, rate = best_of(laboratory, points)
            return {**written(design), "rate_rps": rate, "runs": laboratory.runs - before}

        found = self.question.notebook.ask(f"grid/{self.trace}/{budget}/{reading.name}/{family}", find)
        self.question.say(f"{self.trace}, {budget}, {reading.name}, {family}: {found}")
        return read_back(found), float(found["rate_rps"]), len(points), int(found["runs"])

    def designed(self, reading: Reading, budget: str) -> tuple[Design, int]:
        """Ask the program, on the loads of the design; returns the runs too."""

        def find() -> dict[str, Any]:
            loads = self.question.design_loads[self.trace]
            found = program_design(
                Laboratory(reading=reading, loads=loads, duration_s=self.question.duration_s),
                buckets_of(loads[0]),
                {**BUDGETS, **CLAIMS}[budget],
                say=self.question.say,
            )
            return {**written(found.design), "rate_rps": found.rate_rps, "runs": found.runs}

        found = self.question.notebook.ask(f"program/{self.trace}/{budget}/{reading.name}", find)
        self.question.say(f"{self.trace}, {budget}, {reading.name}, program: {found}")
        return read_back(found), int(found["runs"])

    def table(self) -> list[str]:
        """Set the program's design beside the grid's best and the paper's best within the same budget."""
        lines = [
            "| budget of 40 H100 | reading | program | req/s | grid | req/s | program / grid | paper | req/s | runs |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for budget, limits in BUDGETS.items():
            named = {**_by_name(ISO_POWER[self.trace]), **_by_name(ISO_COST[self.trace])}
            for reading in READINGS:
                design, runs = self.designed(reading, budget)
                own = self.rate_rps(reading, design)
                bests = [self.grid_best(reading, budget, family) for family in grid(budget)]
                best, best_rate, _, _ = max(bests, key=lambda found: found[1])
                papers = max(
                    (self.rate_rps(reading, other), other.name)
                    for other in named.values()
                    if within(other, limits)
                )
                lines.append(
                    f"| {budget} | {reading.name} | {design.name} | {own:.0f} | {best.name} | {best_rate:.0f} |"
                    f" {own / best_rate:.3f} | {papers[1]} | {papers[0]:.0f} |"
                    f" {runs} / {sum(found[3] for found in bests)} |"
                )
        return lines

    def claimed(self) -> list[str]:
        """Ask the program the questions of the paper's abstract."""
        lines = []
        for (words, base), paper in zip(
            zip(CLAIMS, (ISO_POWER[self.trace][1], ISO_POWER[self.trace][0]), strict=True),
            ("1.4", "2.35"),
            strict=True,
        ):
            cells = [f"{self.trace}, {words}", paper]
            for reading in READINGS:
                design, _ = self.designed(reading, words)
                rate, against = self.rate_rps(reading, design), self.rate_rps(reading, base)
                cells += [f"{design.name}, {rate:.0f}", f"{rate / against:.2f}" if against else "-"]
            lines.append("| " + " | ".join(cells) + " |")
        return lines

    def best_splits(self) -> tuple[list[str], dict[str, tuple[str, float]]]:
        """Show the best split of each family at equal power; returns those by `table-kv`."""
        lines = [
            "| family | best split, splitwise-compat | req/s | best split, table-kv | req/s |",
            "|---|---|---|---|---|",
        ]
        best = {}
        for family in grid("power"):
            cells = [family]
            for reading in READINGS:
                design, rate, _, _ = self.grid_best(reading, "power", family)
                name = design.name.removeprefix(family).strip()
                cells += [name, f"{rate:.0f}"]
                best[family] = (name, rate)
            lines.append("| " + " | ".join(cells) + " |")
        return lines, best


def _by_name(designs: Sequence[Design]) -> dict[str, Design]:
    return {design.name: design for design in designs}


def _claims(
    rates: Rates, best: Mapping[str, Mapping[str, tuple[str, float]]], programs: Mapping[str, _Program]
) -> list[str]:
    """Set the paper's claims beside both readings."""
    a, h = "Baseline-A100 70", "Baseline-H100 40"
    asked = (
        (
            "AA against Baseline-A100, conversation, same cost and power",
            "2.15 (abstract: 2.35)",
            "conversation",
            "AA",
            "AA 45/25",
            a,
        ),
        (
            "HA against Baseline-H100, conversation, 7 % cheaper",
            "1.18 at 10 % less",
            "conversation",
            "HA",
            "HA 25/26",
            h,
        ),
        ("HH against Baseline-H100, conversation, same machines", "-", "conversation", "HH", "HH 25/15", h),
        ("AA against Baseline-H100, code, 19 % cheaper", "1.4 at 20 % less", "code", "AA", "AA 55/15", h),
        ("HH against Baseline-H100, code, same machines", "-", "code", "HH", "HH 35/5", h),
    )
    lines = [
        "| claim | paper | splitwise-compat | table-kv, the paper's split | table-kv, best split |",
        "|---|---|---|---|---|",
    ]
    for words, paper, trace, family, design, base in asked:
        ratios = [
            _median(rates, trace, design, reading) / _median(rates, trace, base, reading)
            for reading in (0, 1)
        ]
        name, rate = best[trace][family]
        against = ISO_POWER[trace][0 if base == a else 1]
        own = rate / programs[trace].rate_rps(READINGS[1], against)
        lines.append(f"| {words} | {paper} | {ratios[0]:.2f} | {ratios[1]:.2f} | {own:.2f} ({name}) |")
    return lines


def report(question: Question) -> str:
    """Run everything and return the document."""
    rates: Rates = {}
    best: dict[str, Mapping[str, tuple[str, float]]] = {}
    programs = {trace: _Program(question, trace) for trace in question.loads}
    sections: list[str] = []
    designed: list[str] = []
    claimed = [
        "| claim | paper | splitwise-compat | × | table-kv | × |",
        "|---|---|---|---|---|---|",
    ]
    for trace, program in programs.items():
        for title, table in (("equal power", ISO_POWER), ("equal cost", ISO_COST)):
            _rates(question, trace, table[trace], rates)
            sections += [f"### {trace.capitalize()}, {title}", "", *_table(trace, table[trace], rates), ""]
        designed += [f"### {trace.capitalize()}, the program's designs", "", *program.table(), ""]
        lines, best[trace] = program.best_splits()
        sections += [f"### {trace.capitalize()}, best splits at equal power", "", *lines, ""]
        claimed += program.claimed()
    template = (Path(__file__).parent / "papers.md.in").read_text(encoding="utf-8")
    return template.format(
        claims="\n".join(_claims(rates, best, programs)),
        claimed="\n".join(claimed),
        designed="\n".join(designed).rstrip(),
        tables="\n".join(sections).rstrip(),
        duration_s=f"{question.duration_s:g}",
        seeds=max(len(loads) for loads in question.loads.values()),
        design_seeds=max(len(loads) for loads in question.design_loads.values()),
        step=f"{STEP_RPS:g}",
    )


def main() -> None:
    """Write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--duration-s", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--notebook", type=Path, help="Keep what is found here, and go on from it.")
    given = parser.parse_args()
    began_s = time.monotonic()

    def loads(seeds: Sequence[int]) -> dict[str, list[Load]]:
        return {
            name: [
                load_of(given.data / "sim" / "azure" / file, seed=seed, duration_s=given.duration_s)
                for seed in seeds
            ]
            for name, file in TRACES.items()
        }

    text = report(
        Question(
            loads=loads(range(1, given.seeds + 1)),
            duration_s=given.duration_s,
            say=lambda words: print(words, flush=True),
            design_loads=loads(DESIGN_SEEDS),
            notebook=Notebook(given.notebook),
        )
    )
    print(f"took {time.monotonic() - began_s:.0f} s")
    with whole_file(given.out) as write:
        write(text)


if __name__ == "__main__":
    main()
