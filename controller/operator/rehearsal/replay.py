"""Rehearses one change: instances from the catalogues, requests recorded or drawn, both fleets simulated.

It exists as the work of the rehearsal's own process: it is the only part that loads the simulator and its compiled
kernels. The judgement is `controller.closed_loop.gate.rehearse_on`, the simulated cluster's own. Nothing is guessed: a
GPU, model or precision that no catalogue has, or rows of a load test that no performance model comes near, cannot be
rehearsed, and the answer says which.
"""

import hashlib
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from controller.closed_loop.gate import (
    FEWEST_REQUESTS,
    Manned,
    Rehearsed,
    drawn_window,
    rehearse_on,
    window_before,
)
from controller.operator.rehearsal.question import (
    CANNOT,
    FALLS,
    HOLDS,
    TOO_FEW,
    RehearsalAnswer,
    RehearsalQuestion,
    RehearsedVariant,
)
from controller.trace_planning import read_catalogues
from simulator.fleet import Fleet, InstanceKind, Links, Pool, Scheduler
from simulator.fleet import Role as SimulatedRole
from simulator.scenario import Scenario, ScenarioModel, ScenarioPool
from simulator.step_models import instance_kind
from solver.domain.bucket_windows import nearest_bucket
from solver.domain.errors import InputError
from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import parse_slo
from solver.domain.trace import Ints, Requests
from solver.performance.book import PerformanceBook
from solver.performance.capacity import DEFAULT_ENGINE
from solver.performance.pace import LARGEST_FACTOR, pace_that_carries
from solver.performance.protocol import ReplicaKind
from telemetry.catalogue.read import find_gpu, find_model
from telemetry.sources.traces.read import read_trace

FEWEST_DRAWN = 2000
"""So many say something of one request in a hundred."""
MOST_REQUESTS = 100_000
"""Of both fleets together that is about a second."""
MOST_KINDS = 256
NO_LIMIT = Links(bytes_per_s=1e15, contention=False)
SCHEDULER = Scheduler(
    max_batch=DEFAULT_ENGINE.max_batch,
    max_batch_tokens=DEFAULT_ENGINE.max_batch_tokens,
    chunked_prefill=DEFAULT_ENGINE.chunked_prefill,
)


@dataclass(slots=True, kw_only=True)
class Stage:
    """Rehearses; keeps the instances that it built."""

    book: PerformanceBook = field(
        default_factory=lambda: replace(read_catalogues().book, extrapolate_tables=True)
    )
    """The operator's own book of performance: planner and rehearsal charge the same seconds."""
    _kinds: dict[object, tuple[InstanceKind, float]] = field(default_factory=dict)

    def answer(self, question: RehearsalQuestion, trace: str = "") -> RehearsalAnswer:
        """Rehearse; ``trace`` is the text of the recorded trace, where the question names one."""
        began_s = time.monotonic()
        try:
            requests, bucket_of_request = _requests(question, trace)
            kinds, paces, troubles = [], [], []
            for variant in question.variants:
                try:
                    kind, pace = self._kind(variant, question)
                except InputError as error:
                    troubles.append(f"GpuProfile {variant.gpu_profile}: {error}")
                else:
                    kinds.append(kind)
                    paces.append(pace)
            if troubles:
                return _unknown(CANNOT, "; ".join(dict.fromkeys(troubles)))
            found = _rehearsed(question, kinds, requests, bucket_of_request)
        except InputError as error:
            return _unknown(CANNOT, str(error))
        return replace(_told(question, found, paces), wall_s=time.monotonic() - began_s)

    def _kind(self, variant: RehearsedVariant, question: RehearsalQuestion) -> tuple[InstanceKind, float]:
        """Build an instance of a variant: as the catalogues know it, at the pace of its measured rows."""
        key = (
            replace(variant, name="", running=0, planned=0),
            question.buckets,
            question.slo,
            question.kv_bytes_per_token,
        )
        if key not in self._kinds:
            if len(self._kinds) >= MOST_KINDS:
                self._kinds.clear()
            self._kinds[key] = self._built(variant, question)
        return self._kinds[key]

    def _built(self, variant: RehearsedVariant, question: RehearsalQuestion) -> tuple[InstanceKind, float]:
        shape = find_model(self.book.models, variant.model)
        replica = ReplicaKind(
            gpu_type=find_gpu(self.book.gpus, variant.gpu_type).name,
            gpus_per_replica=variant.gpus_per_replica,
            model=shape.name,
            precision=variant.precision,
        )
        model = self.book.performance(replica)
        kind = instance_kind(
            f"{replica.gpus_per_replica} x {replica.gpu_type}",
            model,
            shape,
            max_batch=SCHEDULER.max_batch,
            longest_step_tokens=SCHEDULER.max_batch_tokens,
        )
        if question.kv_bytes_per_token is not None:
            kind = replace(kind, kv_bytes_per_token=question.kv_bytes_per_token)
        if not variant.measured:
            return kind, 1.0
        served = [question.buckets[b] for b in variant.serves]
        slo = parse_slo(question.slo)
        pace = pace_that_carries(model, served, slo, variant.carried_rps, role=variant.role)
        if pace is None:
            raise InputError(
                f"its rows come to {variant.carried_rps:.3g} requests/s per replica, and the step times of {replica}"
                f" to nothing near that even {LARGEST_FACTOR:g} times as slow or as fast"
            )
        return replace(kind, table=kind.table.paced(pace)), pace


def _requests(question: RehearsalQuestion, trace: str) -> tuple[Requests, Ints]:
    """Take the last window of a recorded trace, else draw one; with the bucket of each request."""
    if question.trace is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(question.trace.key).name
            path.write_text(trace, encoding="utf-8")
            recorded = read_trace(path).requests
        end_s = float(np.nextafter(recorded.arrival_s[-1], np.inf)) if len(recorded) else 0.0
        window, _ = window_before(recorded, end_s, question.window_s)
        if len(window) > MOST_REQUESTS:
            window = window.take(slice(len(window) - MOST_REQUESTS, None))
            window = window.at_times(window.arrival_s - window.arrival_s[0])
        return window, nearest_bucket(question.buckets, window)
    return drawn_window(
        question.buckets,
        question.window_s,
        fewest=FEWEST_DRAWN,
        most=MOST_REQUESTS,
        seed=seed_of(question),
    )


def seed_of(question: RehearsalQuestion) -> int:
    """Return a seed that only this solve and service have."""
    digest = hashlib.sha256(f"{question.solve_id} {question.service}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _rehearsed(
    question: RehearsalQuestion, kinds: list[InstanceKind], requests: Requests, bucket_of_request: Ints
) -> Rehearsed:
    variants = question.variants
    scenario = Scenario(
        name=question.service,
        models=(ScenarioModel(name="served", model=variants[0].model),),
        pools=tuple(
            ScenarioPool(
                name=variant.name,
                gpu_type=variant.gpu_type,
                gpus_per_instance=variant.gpus_per_replica,
                count=variant.running,
                role=SimulatedRole(variant.role.value),
                model="served",
            )
            for variant in variants
        ),
        slo=parse_slo(question.slo),
    )
    fleet = Fleet(
        models=("served",),
        kinds=tuple(kinds),
        pools=tuple(
            Pool(name=variant.name, kind=place, count=variant.running, role=SimulatedRole(variant.role.value))
            for place, variant in enumerate(variants)
        ),
        scheduler=SCHEDULER,
        links=NO_LIMIT if question.link_bytes_per_s is None else Links(bytes_per_s=question.link_bytes_per_s),
    )
    everybody = np.zeros(len(requests), dtype=np.int64)
    running, planned = (
        Manned(
            counts={variant.name: count for variant, count in zip(variants, counts, strict=True)},
            weights=np.array(
                [[v.carried_rps * count for v, count in zip(variants, counts, strict=True)]]
                if question.by_size is None
                else question.by_size[which]
            ),
        )
        for which, counts in enumerate(([v.running for v in variants], [v.planned for v in variants]))
    )
    return rehearse_on(
        scenario,
        fleet,
        requests,
        everybody,
        running=running,
        planned=planned,
        row_of_request=everybody if question.by_size is None else bucket_of_request,
        seed=seed_of(question),
    )


def _told(question: RehearsalQuestion, found: Rehearsed, paces: list[float]) -> RehearsalAnswer:
    if found.running_ratio is None or found.planned_ratio is None:
        return _unknown(
            TOO_FEW, f"{found.requests} requests in the window, {FEWEST_REQUESTS} are needed to say anything"
        )
    asked = f"{question.percentile:g} % asked for"
    shares = (
        f"inside the SLO: {_percent(found.planned_ratio)} of {found.requests} requests with the plan,"
        f" {_percent(found.running_ratio)} with what runs ({asked})"
    )
    set_to = [
        f"{variant.gpu_profile} × {pace:.2f}"
        for variant, pace in zip(question.variants, paces, strict=True)
        if abs(pace - 1.0) >= 0.005
    ]
    if set_to:
        shares += f"; step times set by the rows of {', '.join(dict.fromkeys(set_to))}"
    return RehearsalAnswer(
        allowed=found.allowed,
        reason=HOLDS if found.allowed else FALLS,
        message=shares,
        running_ratio=found.running_ratio,
        planned_ratio=found.planned_ratio,
        requests=found.requests,
    )


def _percent(share: float) -> str:
    """Two digits, cut, not rounded: 99.999 % is not all."""
    return f"{int(share * 10_000) / 100:.2f} %"


def _unknown(reason: str, message: str) -> RehearsalAnswer:
    return RehearsalAnswer(allowed=None, reason=reason, message=message)


def warmed_up() -> Stage:
    """Return a stage whose kernels are compiled: that is no part of the time of a rehearsal."""
    stage = Stage()
    stage.answer(
        RehearsalQuestion(
            service="none/none",
            digest="",
            solve_id="",
            buckets=(RequestBucket(rate_rps=1.0, input_tokens=100.0, output_tokens=10.0),),
            trace=None,
            window_s=60.0,
            slo="ttft_p99=1.0,tbt_p99=0.1",
            percentile=99.0,
            variants=(
                RehearsedVariant(
                    name="v",
                    gpu_profile="p",
                    model="meta-llama/Llama-3.1-8B",
                    precision="bf16",
                    gpu_type="H100-SXM",
                    gpus_per_replica=1,
                    serves=(0,),
                    carried_rps=1.0,
                    measured=False,
                    running=2,
                    planned=1,
                ),
            ),
        )
    )
    return stage
