"""How fast the simulator is, beside the peers' ways of doing the same: objects in Python, one event per iteration.

It exists so that the speed targets are measured on one machine in one run. The peers' programs themselves are not here;
their methods are: `splitwise_plain` (objects and lists, the rules of splitwise-sim), `one_instance` (iteration by
iteration in Python, as most simulators of serving work), and our own engine told to take single steps.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.one_instance import LinearReplica
from benchmarks.one_instance import Requests as UnitRequests
from benchmarks.one_instance import simulate as simulate_iterations
from benchmarks.results import Result, Setting, at_most, say
from benchmarks.splitwise_plain import run_plain
from simulator.engine.run import simulate
from simulator.fleet import Fleet, InstanceKind, Pool, Router, RouterKind, Scheduler
from simulator.splitwise.machines import (
    MACHINES,
    MODELS,
    SplitwiseFleet,
    SplitwiseGroup,
    SplitwiseRole,
    SplitwiseScheduler,
)
from simulator.splitwise.run import simulate_splitwise
from simulator.step_models import instance_kind, table_of
from simulator.workload import PRESETS
from solver.domain.trace import Requests
from solver.performance.iteration import EngineSettings
from solver.performance.protocol import ReplicaKind
from solver.performance.roofline import Roofline
from solver.performance.trained_physics import TrainedPhysics
from telemetry.catalogue.read import read_gpus, read_models

MODEL = "meta-llama/Llama-3.1-70B"
SWEEP_RUNS, SWEEP_REQUESTS = 10_700, 8_400
MILLION = 1_000_000

_PARSE_AND_RUN = """
import resource, sys, time
from benchmarks.simulation import compat_fleet
from simulator.splitwise.run import simulate_splitwise
from telemetry.sources.traces.read import read_trace
simulate_splitwise(compat_fleet(40), read_trace(sys.argv[2]).requests)  # loads the kernel
began_s = time.perf_counter()
simulate_splitwise(compat_fleet(40), read_trace(sys.argv[1]).requests)
print(time.perf_counter() - began_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def conversation(number: int, rate_rps: float, seed: int = 1) -> Requests:
    """Draw conversation-like requests with Poisson arrivals."""
    randomness = np.random.default_rng(seed)
    prompt, output = PRESETS["conversation"].sizes.draw(randomness, number)
    return Requests(
        arrival_s=np.cumsum(randomness.exponential(1.0 / rate_rps, number)),
        prompt_tokens=prompt,
        output_tokens=output,
    )


def compat_fleet(machines: int) -> SplitwiseFleet:
    """H100 machines with mixed batching."""
    return SplitwiseFleet(
        model=MODELS["bloom-176b"],
        groups=(SplitwiseGroup(machine=MACHINES["dgx-h100"], count=machines, role=SplitwiseRole.MIXED),),
        scheduler=SplitwiseScheduler.TOKEN_JSQ,
    )


def split_fleet(prompt: str, prompts: int, token: str, tokens: int) -> SplitwiseFleet:
    """Prompt machines and token machines."""
    groups = [
        SplitwiseGroup(machine=MACHINES[token], count=tokens, role=SplitwiseRole.TOKEN),
        SplitwiseGroup(machine=MACHINES[prompt], count=prompts, role=SplitwiseRole.PROMPT),
    ]
    return SplitwiseFleet(
        model=MODELS["bloom-176b"], groups=tuple(groups), scheduler=SplitwiseScheduler.MIXED_POOL
    )


def physics_fleet(instances: int) -> Fleet:
    """Llama-3.1-70B on four H100 each, shortest queue."""
    gpus, models = read_gpus(), read_models()
    kind = ReplicaKind(model=MODEL, gpu_type="H100-SXM", gpus_per_replica=4, precision="bf16")
    model = TrainedPhysics(roofline=Roofline.of(kind, gpus["H100-SXM"], models[MODEL]))
    return Fleet(
        models=(MODEL,),
        kinds=(instance_kind("i", model, models[MODEL], max_batch=256, longest_step_tokens=2048),),
        pools=(Pool(name="p", kind=0, count=instances),),
        scheduler=Scheduler(max_batch=256),
        router=Router(kind=RouterKind.JSQ),
    )


def median_s(run: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of some runs, after one that does not count."""
    run()
    taken = []
    for _ in range(repeats):
        began_s = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began_s)
    return statistics.median(taken)


def bench_simulation(setting: Setting) -> Iterator[Result]:
    """Measure seconds per simulated request, beside objects in Python and one event per iteration."""
    repeats = 1 if setting.quick else 5
    number = 2_000 if setting.quick else 20_000
    yield from _compat(number, repeats)
    yield from _physics(number, repeats)
    yield from _one_replica(min(number, 4000), repeats)
    yield from _million(20_000 if setting.quick else MILLION)
    yield from _sweep(10 if setting.quick else 300)


def _compat(number: int, repeats: int) -> Iterator[Result]:
    for machines in (40, 200):
        load = conversation(number, 1.75 * machines)
        fleet = compat_fleet(machines)
        ours = median_s(partial(simulate_splitwise, fleet, load), repeats) / number * 1e6
        part = load.take(slice(0, min(number, 2000)))
        plain = median_s(partial(run_plain, fleet, part), 1) / len(part) * 1e6
        say(f"compat, {machines} machines: {ours:.2f} us, objects in Python {plain:.0f} us per request")
        yield at_most(
            f"compat, {machines} machines, against objects",
            ours,
            "us/request",
            5.0,
            peer_value=plain,
            ratio=plain / ours,
        )


def _physics(number: int, repeats: int) -> Iterator[Result]:
    for instances in (40, 200):
        load = conversation(number, 1.75 * instances)
        fleet = physics_fleet(instances)
        ours = median_s(partial(simulate, fleet, load), repeats) / number * 1e6
        steps = median_s(partial(simulate, fleet, load, single_steps=True), 1) / number * 1e6
        say(
            f"physics, {instances} instances: {ours:.2f} us, one event per iteration {steps:.2f} us per request"
        )
        yield at_most(
            f"physics, {instances} instances, against single steps",
            ours,
            "us/request",
            5.0,
            peer_value=steps,
            ratio=steps / ours,
        )


def _one_replica(number: int, repeats: int) -> Iterator[Result]:
    """One replica, the same step times: segments against iterations in Python."""
    replica = LinearReplica()
    load = conversation(number, 1.0)
    table = table_of(
        replica, max_batch=256, longest_step_tokens=2048, kv_capacity_tokens=replica.kv_capacity_tokens()
    )
    kind = InstanceKind(
        name="linear",
        gpu_type="linear",
        gpus=1,
        table=table,
        kv_capacity_tokens=replica.kv_capacity_tokens(),
        kv_bytes_per_token=1.0,
        layers=1,
    )
    fleet = Fleet(
        models=("m",),
        kinds=(kind,),
        pools=(Pool(name="p", kind=0, count=1),),
        scheduler=Scheduler(max_batch=256),
    )
    ours = median_s(lambda: simulate(fleet, load), repeats) / number * 1e6
    unit = UnitRequests(
        unit_arrival_s=load.arrival_s,
        input_tokens=load.prompt_tokens.astype(np.float64),
        output_tokens=load.output_tokens.astype(np.float64),
    )
    plain = median_s(lambda: simulate_iterations(replica, unit, 1.0, EngineSettings()), 1) / number * 1e6
    yield Result(
        name="one replica, against iterations in Python",
        value=ours,
        unit="us/request",
        peer_value=plain,
        ratio=plain / ours,
    )


def _million(number: int) -> Iterator[Result]:
    """Parse and simulate a million requests on 40 machines, in a process of its own for its memory."""
    load = conversation(number, 70.0)
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "large.csv", Path(folder) / "small.csv"
        for path, part in ((large, load), (small, load.take(slice(0, 1000)))):
            columns = np.stack((part.arrival_s, part.prompt_tokens, part.output_tokens), axis=1)
            header = "arrival_s,prompt_tokens,output_tokens"
            np.savetxt(path, columns, fmt=("%.6f", "%d", "%d"), delimiter=",", header=header, comments="")
        told = subprocess.run(
            [sys.executable, "-c", _PARSE_AND_RUN, str(large), str(small)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
    yield at_most(f"compat, parse and run {number:,}, 40 machines", float(told[0]), "s", 5.0)
    yield at_most(f"compat, {number:,} requests, memory", float(told[1]), "GiB", 1.0)


def _sweep(runs: int) -> Iterator[Result]:
    """Random points of the paper's provisioning grid, overload included; the whole grid is projected from them."""
    randomness = np.random.default_rng(7)
    load = conversation(SWEEP_REQUESTS, 70.0)
    fleets = []
    for _ in range(runs):
        prompt, token = randomness.choice(["dgx-a100", "dgx-h100"], 2)
        limits = [69 if name == "dgx-a100" else 39 for name in (prompt, token)]
        fleets.append(
            split_fleet(
                str(prompt),
                int(randomness.integers(1, limits[0])),
                str(token),
                int(randomness.integers(1, limits[1])),
            )
        )
    simulate_splitwise(fleets[0], load)
    began_s = time.process_time()
    for fleet in fleets:
        simulate_splitwise(fleet, load, stop_when_overloaded=True)
    per_run_s = (time.process_time() - began_s) / runs
    say(f"provisioning grid: {1e3 * per_run_s:.1f} ms per run of {SWEEP_REQUESTS} requests")
    yield at_most(
        f"grid of {SWEEP_RUNS:,} runs, 2 cores, from {runs}",
        per_run_s * SWEEP_RUNS / 2 / 60,
        "min",
        6.0,
    )
