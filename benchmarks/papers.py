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
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from controller.splitwise_cluster import alone_on_machine
from simulator.engine.run import simulate
from simulator.fleet import Fleet, InstanceKind, Links, Overlap, Pool, Role, Router, RouterKind, Scheduler
from simulator.metrics import figures_of
from simulator.record import RunRecord
from simulator.search import Verdict, largest_step
from simulator.splitwise.machines import (
    MACHINES,
    MODELS,
    SplitwiseFleet,
    SplitwiseGroup,
    SplitwiseRole,
    SplitwiseScheduler,
)
from simulator.splitwise.run import simulate_splitwise
from simulator.step_models import instance_kind
from solver.domain.slo import parse_slo
from solver.domain.trace import Requests
from solver.performance.book import PerformanceBook
from solver.performance.profile_table import ProfileTable
from solver.performance.protocol import ReplicaKind
from telemetry.catalogue.read import read_gpus, read_models
from telemetry.catalogue.read_profiles import read_profiles
from telemetry.sources.traces.read import read_trace
from telemetry.sources.traces.write import whole_file

NINE_CONDITIONS = parse_slo(
    "ttft_p50=2x,ttft_p90=3x,ttft_p99=6x,tbt_p50=1.25x,tbt_p90=1.5x,tbt_p99=5x,e2e_p50=1.25x,e2e_p90=1.5x,e2e_p99=5x"
)
MODEL, SHAPE = "bloom-176b", "bigscience/bloom"
STEP_RPS, LAST_RPS = 2.0, 320.0
TRACES = {"conversation": "AzureLLMInferenceTrace_conv.csv", "code": "AzureLLMInferenceTrace_code.csv"}
GPU_OF = {"A": "A100-80-SXM", "H": "H100-SXM", "C": "H100-SXM"}
MACHINE_OF = {"A": "dgx-a100", "H": "dgx-h100", "C": "dgx-h100-pcap"}
CAP_PROMPT_RATIO = 1.3
"""The capped H100 of the paper's data: prompts 1.3 times as long, tokens as fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Prompt machines and token machines by letter (A: A100, H: H100, C: H100 capped at 70 %); no T: mixed."""

    name: str
    prompt: tuple[str, int]
    token: tuple[str, int] | None = None

    @property
    def parts(self) -> list[tuple[str, int]]:
        """Letters and counts."""
        return [self.prompt] if self.token is None else [self.prompt, self.token]

    @property
    def cost(self) -> float:
        """In the paper's unit: sum of machines times dollars per GPU-hour."""
        return sum(count * MACHINES[MACHINE_OF[letter]].cost_usd_per_gpu_h for letter, count in self.parts)

    @property
    def power(self) -> float:
        """In the paper's unit."""
        return sum(count * MACHINES[MACHINE_OF[letter]].power_units for letter, count in self.parts)


def split(name: str, prompt: str, prompts: int, token: str, tokens: int) -> Design:
    """Name a prefill/decode design as the paper does."""
    return Design(name=f"{name} {prompts}/{tokens}", prompt=(prompt, prompts), token=(token, tokens))


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


def splits_at_equal_power() -> dict[str, list[Design]]:
    """List splits of the power of 40 H100 machines, every few machines."""
    return {
        "AA": [split("AA", "A", p, "A", 70 - p) for p in (15, 20, 24, 28, 32, 36, 40, 45, 50, 55, 60)],
        "HH": [split("HH", "H", p, "H", 40 - p) for p in (10, 13, 16, 19, 22, 25, 28, 30, 33, 35, 37)],
        "HA": [
            split("HA", "H", p, "A", int(44 * (40 - p) // 24.8))
            for p in (10, 13, 15, 17, 20, 22, 25, 28, 30, 35)
        ],
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Load:
    """Requests of unit rate; the first ones of any rate are the same."""

    unit_arrival_s: np.ndarray[tuple[int], np.dtype[np.float64]]
    prompt_tokens: np.ndarray[tuple[int], np.dtype[np.int64]]
    output_tokens: np.ndarray[tuple[int], np.dtype[np.int64]]

    def at(self, rate_rps: float, duration_s: float) -> Requests:
        """Return the requests of so many seconds at a rate."""
        arrival_s = self.unit_arrival_s / rate_rps
        number = int(np.searchsorted(arrival_s, duration_s))
        return Requests(
            arrival_s=arrival_s[:number],
            prompt_tokens=self.prompt_tokens[:number],
            output_tokens=self.output_tokens[:number],
        )


def load_of(trace: Path, *, seed: int, duration_s: float) -> Load:
    """Draw Poisson arrivals and independent sizes from the columns of a trace."""
    columns = read_trace(trace).requests
    randomness = np.random.default_rng(seed)
    number = int(LAST_RPS * duration_s * 1.1) + 1000
    return Load(
        unit_arrival_s=np.cumsum(randomness.exponential(size=number)),
        prompt_tokens=randomness.choice(columns.prompt_tokens, number),
        output_tokens=randomness.choice(columns.output_tokens, number),
    )


Simulator = Callable[[Design, Requests], RunRecord]


def by_the_papers_rules(design: Design, requests: Requests) -> RunRecord:
    """Simulate as splitwise-sim does: decode charged by the number of sequences."""
    mixed = design.token is None
    # The capped and the cheaper machines are created first, which decides ties.
    order = (
        list(reversed(design.parts)) if design.token and design.token[0] != design.prompt[0] else design.parts
    )
    roles = {
        id(part): SplitwiseRole.PROMPT if part is design.prompt else SplitwiseRole.TOKEN
        for part in design.parts
    }
    fleet = SplitwiseFleet(
        model=MODELS[MODEL],
        groups=tuple(
            SplitwiseGroup(
                machine=MACHINES[MACHINE_OF[part[0]]],
                count=part[1],
                role=SplitwiseRole.MIXED if mixed else roles[id(part)],
            )
            for part in order
        ),
        scheduler=SplitwiseScheduler.TOKEN_JSQ if mixed else SplitwiseScheduler.MIXED_POOL,
    )
    return simulate_splitwise(fleet, requests, stop_when_overloaded=True)


@cache
def kinds() -> dict[str, InstanceKind]:
    """Tabulate the measured machines by batch and context."""
    gpus, models = read_gpus(), read_models()
    book = PerformanceBook(
        gpus=gpus, models=models, tables=read_profiles(gpus, models), extrapolate_tables=True
    )
    found = {}
    for letter, gpu in GPU_OF.items():
        kind = ReplicaKind(model=SHAPE, gpu_type=gpu, gpus_per_replica=8, precision="bf16")
        model = book.performance(kind)
        if letter == "C":
            assert isinstance(model, ProfileTable)  # noqa: S101 - the shipped profile has it
            slow = tuple(replace(p, seconds=p.seconds * CAP_PROMPT_RATIO) for p in model.prefill)
            model = replace(model, prefill=slow)
        found[letter] = instance_kind(letter, model, models[SHAPE], max_batch=512, longest_step_tokens=2048)
    return found


def by_batch_and_context(design: Design, requests: Requests) -> RunRecord:
    """Simulate with `table-kv`: the same measurements, decode charged by batch and context, prompts in chunks."""
    letters = sorted({letter for letter, _ in design.parts})
    mixed = design.token is None
    pools = [
        Pool(
            name=f"{letter}{place}",
            kind=letters.index(letter),
            count=count,
            role=Role.BOTH if mixed else (Role.PREFILL, Role.DECODE)[place],
        )
        for place, (letter, count) in enumerate(design.parts)
    ]
    fleet = Fleet(
        models=(MODEL,),
        kinds=tuple(kinds()[letter] for letter in letters),
        pools=tuple(pools),
        scheduler=Scheduler(max_batch=512, max_batch_tokens=2048),
        router=Router(kind=RouterKind.JSQ if mixed else RouterKind.MIXED_POOL),
        links=Links(overlap=Overlap.NONE),
    )
    return simulate(fleet, requests, stop_when_overloaded=True)


def sustained_rps(
    design: Design, load: Load, simulator: Simulator, *, duration_s: float, peers_tbt: bool
) -> float:
    """Return the largest rate on the grid that meets the nine conditions."""

    def judge(rate_rps: float) -> Verdict:
        requests = load.at(rate_rps, duration_s)
        record = simulator(design, requests)
        if record.stopped_early:
            return Verdict(met=False)
        alone = alone_on_machine(MACHINES["dgx-a100"], MODEL, requests.prompt_tokens, requests.output_tokens)
        figures = figures_of(
            record,
            requests,
            pools=[str(p) for p in range(len(design.parts))],
            price_usd_per_h=[None] * len(design.parts),
            slo=NINE_CONDITIONS,
            alone=alone,
            tbt_per_output_token=peers_tbt,
        )
        return Verdict(met=bool(figures.slo.met))

    return largest_step(judge, first=STEP_RPS, last=LAST_RPS, step=STEP_RPS).rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What all runs of the document share."""

    loads: Mapping[str, Sequence[Load]]
    """By trace, one per seed."""
    duration_s: float
    say: Callable[[str], None]


READINGS: tuple[tuple[Simulator, bool], ...] = ((by_the_papers_rules, True), (by_batch_and_context, False))
"""Simulator, and whether TBT is divided by output tokens as the peer does."""
Rates = dict[tuple[str, str], tuple[list[float], list[float]]]
"""By trace and design: the rates of all seeds, for both readings."""


def _rates(question: Question, trace: str, designs: Sequence[Design], known: Rates) -> None:
    for design in designs:
        if (trace, design.name) in known:
            continue
        peers, honest = (
            [
                sustained_rps(design, load, simulator, duration_s=question.duration_s, peers_tbt=peers_tbt)
                for load in question.loads[trace]
            ]
            for simulator, peers_tbt in READINGS
        )
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


def _best_splits(question: Question, trace: str) -> tuple[list[str], dict[str, tuple[str, float]]]:
    """Try splits on the first load; returns the table and the best by `table-kv` of each family."""
    best: dict[str, tuple[str, float]] = {}
    lines = [
        "| family | best split, splitwise-compat | req/s | best split, table-kv | req/s |",
        "|---|---|---|---|---|",
    ]
    for family, designs in splits_at_equal_power().items():
        cells = [family]
        for simulator, peers_tbt in READINGS:
            load = question.loads[trace][0]
            found = [
                (
                    sustained_rps(
                        design, load, simulator, duration_s=question.duration_s, peers_tbt=peers_tbt
                    ),
                    design.name.removeprefix(family).strip(),
                )
                for design in designs
            ]
            rate, name = max(found, key=lambda pair: pair[0])
            cells += [name, f"{rate:.0f}"]
            best[family] = (name, rate)
        question.say(f"{trace}, {family}: {cells}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines, best


def _claims(rates: Rates, best: Mapping[str, Mapping[str, tuple[str, float]]]) -> list[str]:
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
        "| claim | paper | splitwise-compat | table-kv, the paper's split | table-kv, best split tried |",
        "|---|---|---|---|---|",
    ]
    for words, paper, trace, family, design, base in asked:
        ratios = [
            _median(rates, trace, design, reading) / _median(rates, trace, base, reading)
            for reading in (0, 1)
        ]
        name, rate = best[trace][family]
        own = rate / rates[trace, base][1][0]
        lines.append(f"| {words} | {paper} | {ratios[0]:.2f} | {ratios[1]:.2f} | {own:.2f} ({name}) |")
    return lines


def report(question: Question) -> str:
    """Run everything and return the document."""
    rates: Rates = {}
    best: dict[str, Mapping[str, tuple[str, float]]] = {}
    sections: list[str] = []
    for trace in question.loads:
        for title, table in (("equal power", ISO_POWER), ("equal cost", ISO_COST)):
            _rates(question, trace, table[trace], rates)
            sections += [f"### {trace.capitalize()}, {title}", "", *_table(trace, table[trace], rates), ""]
        lines, best[trace] = _best_splits(question, trace)
        sections += [f"### {trace.capitalize()}, splits tried at equal power (first seed)", "", *lines, ""]
    template = (Path(__file__).parent / "papers.md.in").read_text(encoding="utf-8")
    return template.format(
        claims="\n".join(_claims(rates, best)),
        tables="\n".join(sections).rstrip(),
        duration_s=f"{question.duration_s:g}",
        seeds=max(len(loads) for loads in question.loads.values()),
        step=f"{STEP_RPS:g}",
    )


def main() -> None:
    """Write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--duration-s", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    began_s = time.monotonic()
    loads = {
        name: [
            load_of(given.data / "sim" / "azure" / file, seed=seed, duration_s=given.duration_s)
            for seed in range(1, given.seeds + 1)
        ]
        for name, file in TRACES.items()
    }
    text = report(Question(loads=loads, duration_s=given.duration_s, say=print))
    print(f"took {time.monotonic() - began_s:.0f} s")
    with whole_file(given.out) as write:
        write(text)


if __name__ == "__main__":
    main()
