"""Judges `solver.performance.capacity` by simulated replicas: ``python -m benchmarks.capacity_accuracy --out FILE``.

It exists because a queueing approximation is worth what it predicts: for several models, GPU types, SLOs and mixtures
it puts the predicted largest rate beside the one that the iteration-by-iteration simulation finds, and beside both what
the solver's linear sum says with either rule of the throughput matrix. Same seeds, same file.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.azure_mixtures import CODE, CONVERSATION
from benchmarks.one_instance import LinearReplica, largest_rate_rps
from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import parse_slo
from solver.performance.capacity import CapacityEstimate, MatrixRule, max_mixed_rate_rps, throughput_rps
from solver.performance.iteration import EngineSettings
from solver.performance.protocol import PerformanceModel
from solver.performance.roofline import Roofline
from telemetry.catalogue.read import find_gpu, find_model, read_gpus, read_models

TARGET = 0.10
NEARLY_IDLE_RPS = 1e-3
"""Where a prediction of 0 is tried: requests that hardly ever meet."""
CHUNKS = EngineSettings()
SMALL_CHUNKS = EngineSettings(max_batch_tokens=512)
WHOLE = EngineSettings(chunked_prefill=False)


_INTRODUCTION = """\
Made by `python -m benchmarks.capacity_accuracy --out docs/capacity-accuracy.md`. Predicted: `max_mixed_rate_rps`.
Simulated: the largest Poisson rate that meets the SLO in `benchmarks/one_instance.py` (at least {count} requests and
300 s per run, mean of {seeds} seeds; ± is the seed farthest from the mean). Error above 0: the prediction is too high.
Linear: what the solver's sum of rate / throughput says of the same mixture against the prediction, with each bucket's
throughput standalone and mixed; `-` where one bucket alone cannot meet the SLO. The performance models are the
catalogue's rooflines as far as a replica is named after a GPU, so this judges the queueing, not the step times
(docs/accuracy.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the table."""

    replica: str
    model: PerformanceModel
    mixture: str
    buckets: Sequence[RequestBucket]
    slo: str
    engine: EngineSettings = CHUNKS

    @property
    def engine_name(self) -> str:
        """Engine settings in a word."""
        return f"chunks of {self.engine.max_batch_tokens}" if self.engine.chunked_prefill else "whole prompts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Predicted against simulated."""

    case: Case
    predicted: CapacityEstimate
    standalone_rps: float
    mixed_rule_rps: float
    simulated_rps: float
    spread_ratio: float
    """Largest deviation of one seed from the mean."""

    @property
    def error(self) -> float:
        """Relative error of the prediction; positive is optimistic."""
        if self.simulated_rps <= 0.0:
            return 0.0 if self.predicted.rate_rps <= 0.0 else float("inf")
        return self.predicted.rate_rps / self.simulated_rps - 1.0


def _one(prompt: float, output: float) -> tuple[RequestBucket, ...]:
    return (RequestBucket(rate_rps=1.0, input_tokens=prompt, output_tokens=output),)


def _cases() -> Iterator[Case]:
    gpus, models = read_gpus(), read_models()

    def roofline(gpu: str, model: str, count: int, precision: str) -> Roofline:
        shape = find_model(models, model)
        return Roofline(
            gpu=find_gpu(gpus, gpu),
            model=shape,
            gpus=count,
            precision=type(shape.default_precision)(precision),
        )

    large = "meta-llama/Llama-3.1-70B-Instruct"
    small = "meta-llama/Llama-3.1-8B-Instruct"
    replicas: list[tuple[str, PerformanceModel]] = [
        ("Llama-3.1-70B, 4 x H100-SXM", roofline("H100-SXM", large, 4, "bf16")),
        ("Llama-3.1-70B, 8 x A100-80-SXM", roofline("A100-80-SXM", large, 8, "bf16")),
        ("Llama-3.1-8B, 1 x H100-SXM", roofline("H100-SXM", small, 1, "bf16")),
        ("Llama-3.1-8B, 1 x L40S", roofline("L40S", small, 1, "bf16")),
        ("Llama-3.1-8B, 1 x A10G", roofline("A10G", small, 1, "bf16")),
    ]
    slos = ("ttft_p99=2,tbt_p99=0.1", "ttft_p90=1,tbt_p90=0.06", "ttft_p99=5,e2e_p50=20")
    for name, model in replicas:
        for mixture, buckets in (("conversation", CONVERSATION), ("code", CODE)):
            for slo in slos:
                yield Case(replica=name, model=model, mixture=mixture, buckets=buckets, slo=slo)
    name, model = replicas[0]
    for engine in (SMALL_CHUNKS, WHOLE):
        for mixture, buckets in (("conversation", CONVERSATION), ("code", CODE)):
            yield Case(
                replica=name, model=model, mixture=mixture, buckets=buckets, slo=slos[0], engine=engine
            )
    for mixture, buckets in (
        ("512 + 128", _one(512, 128)),
        ("60 + 30", _one(60, 30)),
        ("6000 + 300", _one(6000, 300)),
    ):
        yield Case(replica=name, model=model, mixture=mixture, buckets=buckets, slo=slos[0])
    # Decode as BLIS fits Llama-3.1-70B on 4 x H100 (16.6 ms + 5.3 us n + 0.0476 us K), prompts at 40 us a token.
    linear = LinearReplica()
    yield Case(
        replica="linear test model", model=linear, mixture="conversation", buckets=CONVERSATION, slo=slos[0]
    )
    tight = LinearReplica(kv_tokens=60_000)
    yield Case(
        replica="linear, 60k KV", model=tight, mixture="conversation", buckets=CONVERSATION, slo=slos[0]
    )


def judge(case: Case, *, seeds: Sequence[int], count: int) -> Judged:
    """Predict, then simulate."""
    slo = parse_slo(case.slo)
    predicted = max_mixed_rate_rps(case.model, case.buckets, slo, case.engine)
    share = np.array([bucket.rate_rps for bucket in case.buckets])
    share /= share.sum()
    linear = {}
    for rule in MatrixRule:
        column = np.array(throughput_rps(case.model, case.buckets, slo, case.engine, rule=rule))
        linear[rule] = 0.0 if np.any(column <= 0.0) else float(1.0 / (share / column).sum())
    found = [
        largest_rate_rps(
            case.model,
            case.buckets,
            slo,
            case.engine,
            guess_rps=predicted.rate_rps or NEARLY_IDLE_RPS,
            count=count if predicted.rate_rps > 0.0 else count // 10,
            seeds=(seed,),
        )
        for seed in seeds
    ]
    mean = float(np.mean(found))
    return Judged(
        case=case,
        predicted=predicted,
        standalone_rps=linear[MatrixRule.STANDALONE],
        mixed_rule_rps=linear[MatrixRule.MIXED],
        simulated_rps=mean,
        spread_ratio=max(abs(rate / mean - 1.0) for rate in found) if mean > 0.0 else 0.0,
    )


def report(rows: Sequence[Judged], *, seeds: Sequence[int], count: int) -> str:
    """Write the table and its summary as Markdown."""
    served = [row for row in rows if row.simulated_rps > 0.0 or row.predicted.rate_rps > 0.0]
    lines = [
        "# Accuracy of the capacity estimate",
        "",
        _INTRODUCTION.format(count=count, seeds=len(seeds)),
        "",
    ]
    columns: tuple[str, ...] = (
        "replica",
        "mixture",
        "engine",
        "SLO",
        "predicted rps",
        "limit",
        "simulated rps",
        "±",
        "error",
    )
    columns += ("linear, standalone", "linear, mixed")
    lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        case = row.case
        error = (
            f"{row.error:+.1%}"
            if row.simulated_rps > 0.0
            else "both 0"
            if row.predicted.rate_rps <= 0.0
            else "-"
        )
        linear = [
            f"{rate / row.predicted.rate_rps - 1.0:+.1%}"
            if rate > 0.0 and row.predicted.rate_rps > 0.0
            else "-"
            for rate in (row.standalone_rps, row.mixed_rule_rps)
        ]
        lines.append(
            f"| {case.replica} | {case.mixture} | {case.engine_name} | {case.slo} | {row.predicted.rate_rps:.3g} |"
            f" {row.predicted.limit} | {row.simulated_rps:.3g} | {row.spread_ratio:.0%} | {error} |"
            f" {linear[0]} | {linear[1]} |"
        )
    lines += ["", "| rows | median abs. error | largest | within 10 % |", "|---|---|---|---|"]
    groups = {
        "all": served,
        "conversation": [row for row in served if row.case.mixture == "conversation"],
        "code": [row for row in served if row.case.mixture == "code"],
        "limit ttft": [row for row in served if row.predicted.limit == "ttft"],
        "limit tbt": [row for row in served if row.predicted.limit == "tbt"],
        "limit e2e": [row for row in served if row.predicted.limit == "e2e"],
        "limit kv-memory or batch": [row for row in served if row.predicted.limit in ("kv-memory", "batch")],
    }
    for name, group in groups.items():
        if group:
            errors = np.abs([row.error for row in group])
            within = int((errors <= TARGET).sum())
            lines.append(
                f"| {name} | {np.median(errors):.1%} | {errors.max():.1%} | {within} of {len(group)} |"
            )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all cases and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="Markdown file; standard output without it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=4000)
    options = parser.parse_args(arguments)
    seeds = range(1, options.seeds + 1)
    rows = []
    for case in _cases():
        row = judge(case, seeds=seeds, count=options.count)
        print(
            f"{case.replica} {case.mixture} {case.slo}: {row.predicted.rate_rps:.3g} {row.simulated_rps:.3g}",
            file=sys.stderr,
            flush=True,
        )
        rows.append(row)
    text = report(rows, seeds=seeds, count=options.count)
    if options.out is None:
        print(text)
    else:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
