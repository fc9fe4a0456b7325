"""Runs one of Splitwise's designs on one load under either reading of the measurements.

It exists so that the paper's own designs (`papers`) and those of the program (`splitwise_designs`) are simulated and
judged in one way. It compares nothing and writes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from controller.splitwise_cluster import alone_on_machine
from simulator.engine.run import simulate
from simulator.fleet import Fleet, InstanceKind, Links, Overlap, Pool, Role, Router, RouterKind, Scheduler
from simulator.metrics import ClusterFigures, figures_of
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
from solver.performance.protocol import PerformanceModel, ReplicaKind
from telemetry.catalogue.read import read_gpus, read_models
from telemetry.catalogue.read_profiles import read_profiles
from telemetry.sources.traces.read import read_trace

NINE_CONDITIONS = parse_slo(
    "ttft_p50=2x,ttft_p90=3x,ttft_p99=6x,tbt_p50=1.25x,tbt_p90=1.5x,tbt_p99=5x,e2e_p50=1.25x,e2e_p90=1.5x,e2e_p99=5x"
)
MODEL, SHAPE = "bloom-176b", "bigscience/bloom"
STEP_RPS, LAST_RPS = 2.0, 320.0
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


def replica_kind(letter: str) -> ReplicaKind:
    """Name the replica that fills a machine."""
    return ReplicaKind(model=SHAPE, gpu_type=GPU_OF[letter], gpus_per_replica=8, precision="bf16")


@cache
def measured_steps(letter: str) -> PerformanceModel:
    """Read the measured machine by batch and context (`table-kv`)."""
    gpus, models = read_gpus(), read_models()
    book = PerformanceBook(
        gpus=gpus, models=models, tables=read_profiles(gpus, models), extrapolate_tables=True
    )
    model = book.performance(replica_kind(letter))
    if letter == "C":
        assert isinstance(model, ProfileTable)  # noqa: S101 - the shipped profile has it
        slow = tuple(replace(p, seconds=p.seconds * CAP_PROMPT_RATIO) for p in model.prefill)
        model = replace(model, prefill=slow)
    return model


@cache
def kinds() -> dict[str, InstanceKind]:
    """Tabulate the measured machines by batch and context."""
    shape = read_models()[SHAPE]
    return {
        letter: instance_kind(letter, measured_steps(letter), shape, max_batch=512, longest_step_tokens=2048)
        for letter in GPU_OF
    }


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


def judged(design: Design, requests: Requests, record: RunRecord, *, peers_tbt: bool) -> ClusterFigures:
    """Hold a run against the nine conditions."""
    alone = alone_on_machine(MACHINES["dgx-a100"], MODEL, requests.prompt_tokens, requests.output_tokens)
    return figures_of(
        record,
        requests,
        pools=[str(p) for p in range(len(design.parts))],
        price_usd_per_h=[None] * len(design.parts),
        slo=NINE_CONDITIONS,
        alone=alone,
        tbt_per_output_token=peers_tbt,
    )


def sustained_rps(
    design: Design, load: Load, simulator: Simulator, *, duration_s: float, peers_tbt: bool
) -> float:
    """Return the largest rate on the grid that meets the nine conditions."""

    def judge(rate_rps: float) -> Verdict:
        requests = load.at(rate_rps, duration_s)
        record = simulator(design, requests)
        if record.stopped_early:
            return Verdict(met=False)
        return Verdict(met=bool(judged(design, requests, record, peers_tbt=peers_tbt).slo.met))

    return largest_step(judge, first=STEP_RPS, last=LAST_RPS, step=STEP_RPS).rate
