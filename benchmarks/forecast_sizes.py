"""Capacity that follows every request size against one that scales the total, on generated and recorded mixes.

It exists because following sizes costs margin where the mix stands still and keeps the promise where it drifts; which
of the two a record needs is measured here. Nothing of the method was chosen on these records.
"""

import csv
import gzip
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.results import Result, Setting, at_most, say
from controller.trace_planning import TraceQuestion, build_instance, read_catalogues
from solver.domain.bucket_windows import BucketWindows, bucket_windows
from solver.domain.demand import demand_of
from solver.domain.gpu_mix import GpuMixInstance, GpuOffer, ModelDemand, RequestBucket, Variant
from solver.domain.slo import parse_slo
from solver.domain.trace import Floats, Requests, concatenate
from solver.domain.trace_summary import summarise
from solver.forecast.backtest_by_size import JudgedBySize, backtest_by_size
from solver.forecast.by_size import capacity_by_size, capacity_by_total
from solver.forecast.follow import Followed
from solver.forecast.work import mix_weights
from solver.gpu_mix.prepare import serve_model
from solver.gpu_mix.routing import route
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix
from telemetry.sources.traces.read import open_trace

KINDS = ("one mix", "independent", "drift", "daily", "step")
SHARES = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
WEIGHTS = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
CLIENT_WEIGHTS = 8
"""Draws of weights between 1 and 16 for ServeGen's clients, of which only the rates are known."""
TRACES = (
    ("Azure conversation, 10 s", "sim/azure/AzureLLMInferenceTrace_conv.csv", 10.0, 0.05),
    ("Azure code, 10 s", "sim/azure/AzureLLMInferenceTrace_code.csv", 10.0, 0.05),
    ("Mooncake conversation, 10 s", "seeds/traces/mooncake/conversation_0-40min.jsonl.gz", 10.0, 0.05),
    ("generated row of 60 servers, 8 h, 30 s", "power/requests_row60_8h.csv.gz", 30.0, 0.01),
)
"""Name, file, window and violations: as many as so short a record can teach."""
SIZES = ((200, 50), (500, 200), (1000, 100), (2000, 400), (4000, 200), (8000, 800))
TYPES = (("small", 0.7, 1.0), ("large", 2.5, 3.2), ("prompts", 1.2, 1.5))
THROUGHPUT = ((9, 9.5, 16), (4, 4.4, 5.5), (3.2, 3.2, 4), (1.1, 1.5, 1.5), (0.8, 1.2, 0.9), (0.2, 0.45, 0.25))
"""Of the three types relative to their speed: each is best for other sizes."""


def bench_forecast_sizes(setting: Setting) -> Iterator[Result]:
    """Judge generated mixes, ServeGen's clients, traces, and fleets of several GPU types."""
    for kind in KINDS:
        for lead_s in (600.0, 1800.0):
            found = [
                backtest_by_size(generated_mix(kind, seed), weights=WEIGHTS, lead_s=lead_s)
                for seed in range(2 if setting.quick else 6)
            ]
            yield from _told(f"generated {kind}, lead {lead_s / 60:g} min", found, 0.01)
    yield from _clients(setting)
    yield from _traces(setting)
    for kind in ("independent", "drift", "daily"):
        yield from _fleets(kind, setting)


def generated_mix(kind: str, seed: int, *, windows: int = 1500) -> BucketWindows:
    """Draw ten days of ten-minute windows of six sizes, 100 requests/s in the mean."""
    draw = np.random.default_rng(seed)
    clock = 2 * np.pi * np.arange(windows) / 144
    base = 100 * (1 + 0.4 * np.sin(clock))[:, None] * SHARES
    if kind == "one mix":
        rates = base * np.exp(0.1 * draw.standard_normal((windows, 1)))
    elif kind == "independent":
        rates = base * np.exp(0.25 * draw.standard_normal((windows, len(SHARES))))
    elif kind == "drift":  # the shares wander, the total does not
        walk = np.zeros((windows, len(SHARES)))
        for i in range(1, windows):
            walk[i] = 0.98 * walk[i - 1] + 0.08 * draw.standard_normal(len(SHARES))
        mix = SHARES * np.exp(walk)
        mix /= mix.sum(axis=1, keepdims=True)
        rates = base.sum(axis=1, keepdims=True) * mix * np.exp(0.05 * draw.standard_normal((windows, 1)))
    elif kind == "daily":  # each size has its own time of the day
        phases = np.linspace(0, 2 * np.pi, len(SHARES), endpoint=False)
        noise = np.exp(0.08 * draw.standard_normal((windows, len(SHARES))))
        rates = 100 * SHARES * (1 + 0.8 * np.sin(clock[:, None] + phases)) * noise
    else:  # one step: in the last quarter the heavy sizes are the many
        rates = base * np.exp(0.08 * draw.standard_normal((windows, len(SHARES))))
        rates[windows * 3 // 4 :] *= SHARES[::-1] / SHARES
    return BucketWindows(name=kind, start_s=0.0, window_s=600.0, rates_rps=rates)


def _told(
    name: str, found: list[JudgedBySize], violations: float, *, same_windows: bool = False
) -> Iterator[Result]:
    """Give violations, capacity and loss of both rules, means over the runs; the peer scales the total.

    ``same_windows``: the runs judge one record with other weights, so they are no more evidence than one of them.
    """
    ours = [one.by_size for one in found]
    peers = [one.by_total for one in found]
    windows = found[0].judged_windows if same_windows else sum(one.judged_windows for one in found)
    # What two standard errors of so few windows allow.
    limit = violations + 2 * (violations * (1 - violations) / windows) ** 0.5
    yield at_most(
        f"sizes: {name}: violated",
        statistics.fmean(one.violation_ratio for one in ours),
        "ratio",
        round(limit, 4),
        peer_value=statistics.fmean(one.violation_ratio for one in peers),
    )
    for what in ("cost_ratio_to_oracle", "loss_ratio"):
        own = statistics.fmean(getattr(one, what) for one in ours)
        peer = statistics.fmean(getattr(one, what) for one in peers)
        yield Result(
            name=f"sizes: {name}: {what.split('_')[0]}",
            value=own,
            unit="ratio",
            peer_value=peer,
            ratio=peer / own,
        )


def _clients(setting: Setting) -> Iterator[Result]:
    path = setting.data / "seeds" / "traces" / "servegen" / "top_clients.csv.gz"
    if not path.exists():
        say(f"{path} is not there: ServeGen's clients are left out (--data DIR)")
        return
    for record in client_windows(path):
        for lead_s in (600.0, 1800.0):
            draws = [
                np.exp(np.random.default_rng(seed).uniform(0, np.log(16), record.rates_rps.shape[1]))
                for seed in range(CLIENT_WEIGHTS)
            ]
            found = [
                backtest_by_size(record, weights=weights, lead_s=lead_s, judge_last=0.3) for weights in draws
            ]
            yield from _told(
                f"clients of {record.name}, lead {lead_s / 60:g} min", found, 0.01, same_windows=True
            )


def client_windows(path: Path) -> list[BucketWindows]:
    """Read the largest clients of the three nine-day models, each taken for one size."""
    rates: dict[str, dict[str, dict[int, float]]] = {}
    with gzip.open(path, "rt") as lines:
        for row in csv.DictReader(lines):
            windows = rates.setdefault(row["model"], {}).setdefault(row["client"], {})
            windows[round(float(row["t_s"]) / 600)] = float(row["rate_rps"])
    records = []
    for model in ("m-large", "m-mid", "m-small"):
        clients = list(rates[model].values())
        table = np.zeros((1 + max(max(windows) for windows in clients), len(clients)))
        for column, windows in enumerate(clients):
            table[list(windows), column] = list(windows.values())
        table[table.sum(axis=1) == 0] = np.nan
        records.append(BucketWindows(name=model, start_s=0.0, window_s=600.0, rates_rps=table))
    return records


def _traces(setting: Setting) -> Iterator[Result]:
    catalogues = read_catalogues()
    question = TraceQuestion(
        models=("meta-llama/Llama-3.1-8B",),
        slo=parse_slo("ttft_p99=4.0,tbt_p99=0.1"),
        gpu_types=("H100-SXM", "A100-80-SXM", "L4"),
    )
    for name, file, window_s, violations in TRACES:
        if not (setting.data / file).exists():
            say(f"{file} is not there: {name} is left out (--data DIR)")
            continue
        requests = _requests(setting.data / file)
        buckets = demand_of(summarise((requests,)), largest_bucket_count=12).buckets
        weights = mix_weights(build_instance(buckets, question, catalogues, name=name).instance, 0)
        record = bucket_windows((requests,), buckets, window_s=window_s, name=name)
        for lead in (1, 3):
            found = backtest_by_size(record, weights=weights, lead_s=lead * window_s, violations=violations)
            yield from _told(f"{name}, lead {lead * window_s:g} s", [found], violations)


def _requests(path: Path) -> Requests:
    if path.name.endswith(".jsonl.gz"):
        with open_trace(path, spread_s=3.0) as stream:
            return concatenate(stream)
    if path.suffix != ".gz":
        with open_trace(path) as stream:
            return concatenate(stream)
    with gzip.open(path, "rt") as lines:
        rows = [
            (int(row["t_ms"]), int(row["prompt_tokens"]), int(row["output_tokens"]))
            for row in csv.DictReader(lines)
        ]
    stamps, prompts, outputs = np.array(rows).T
    return Requests(arrival_s=stamps / 1e3, prompt_tokens=prompts, output_tokens=outputs)


def _mix_problem(rates: Floats) -> GpuMixInstance:
    speeds = np.array([speed for _, _, speed in TYPES])
    return GpuMixInstance(
        name="sizes",
        gpu_types=tuple(GpuOffer(name=name, price_usd_per_h=price) for name, price, _ in TYPES),
        models=(
            ModelDemand(
                name="m",
                variants=tuple(Variant(gpu_type=name, gpus_per_replica=1) for name, _, _ in TYPES),
                buckets=tuple(
                    RequestBucket(
                        rate_rps=float(rate), input_tokens=float(prompt), output_tokens=float(output)
                    )
                    for rate, (prompt, output) in zip(rates, SIZES, strict=True)
                ),
                throughput_rps=tuple(map(tuple, (np.array(THROUGHPUT) * speeds).tolist())),
            ),
        ),
    )


def _fleets(kind: str, setting: Setting) -> Iterator[Result]:
    """Buy fleets of three types for both answers at 5 %; violated: what comes cannot be routed."""
    violated, cost, tried = [0, 0], [0.0, 0.0], 0
    for seed in range(1 if setting.quick else 3):
        whole = generated_mix(kind, seed)
        rates = whole.rates_rps * 0.3
        weights = mix_weights(_mix_problem(rates.mean(axis=0)), 0)
        learnt: list[Followed | None] = [None, None]
        for now in range(900, 1499, 40 if setting.quick else 8):
            past = BucketWindows(name=kind, start_s=0.0, window_s=600.0, rates_rps=rates[:now])
            by_size = capacity_by_size(
                past, weights=weights, lead_s=600.0, violations=0.05, earlier=learnt[0]
            )
            by_total = capacity_by_total(past, lead_s=600.0, violations=0.05, earlier=learnt[1])
            learnt = [by_size.learnt, by_total.learnt]
            tried += 1
            for place, answer in enumerate((by_size, by_total)):
                plan = solve_gpu_mix(
                    _mix_problem(answer.rates_rps),
                    options=SolveOptions(time_limit_s=10.0),
                    clock=time.monotonic,
                )
                routing = route(serve_model(_mix_problem(rates[now]), 0), plan.replicas[0])
                violated[place] += routing is None or not routing.fits
                cost[place] += plan.objective or 0.0
    yield at_most(
        f"sizes: fleets of three types, {kind}: violated",
        violated[0] / tried,
        "ratio",
        round(0.05 + 2 * (0.05 * 0.95 / tried) ** 0.5, 4),
        peer_value=violated[1] / tried,
    )
    yield Result(
        name=f"sizes: fleets of three types, {kind}: mean cost",
        value=cost[0] / tried,
        unit="USD/h",
        peer_value=cost[1] / tried,
        ratio=cost[1] / cost[0],
    )
