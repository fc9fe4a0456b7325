"""Runs requests by the exact rules of BLIS's replay: the general engine, counting in whole microseconds.

It exists to be compared with that peer request by request: every iteration is cut to a whole microsecond, so nothing is
summed in closed form. For anything else use `physics`, which has the same equation.
"""

from dataclasses import replace

import numpy as np

from simulator.engine.run import simulate
from simulator.fleet import Fleet, InstanceKind, Links, Pool, Router, RouterKind, Scheduler
from simulator.record import RunRecord, Series
from simulator.step_models import table_of
from simulator.step_table import StepTable
from solver.domain.trace import Requests
from solver.performance.trained_physics import TrainedPhysics

ACCEPT_US, PER_TOKEN_US, FINISH_US = 15563.0, 45.0, 777.0
"""What a request spends outside the iterations, in whole microseconds as the peer cuts them."""
NO_LIMIT_TOKENS = 1 << 40
_US = 1e6


def blis_table(table: StepTable) -> StepTable:
    """Return a table that counts in whole microseconds (joules per microsecond-second stay joules)."""
    return replace(
        table,
        prefill_s=table.prefill_s * _US,
        prefill_w=table.prefill_w / _US,
        context_s=table.context_s * _US,
        pair_s=table.pair_s * _US,
        prompt_s=table.prompt_s * _US,
        decode_s=table.decode_s * _US,
        decode_slope_s=table.decode_slope_s * _US,
        shared_s=table.shared_s * _US,
        idle_w=table.idle_w / _US,
        truncated=True,
    )


def simulate_blis(
    model: TrainedPhysics,
    requests: Requests,
    *,
    instances: int,
    max_batch: int = 256,
    max_batch_tokens: int = 2048,
    router: RouterKind = RouterKind.ROUND_ROBIN,
) -> RunRecord:
    """Serve requests with equal instances; the record is in seconds.

    The cache has no limit here: the peer's own limit (which counts the blocks of a whole group per GPU) never binds in
    the recorded run.
    """
    table = table_of(
        model,
        max_batch=max_batch,
        longest_step_tokens=max_batch_tokens,
        kv_capacity_tokens=max(1, model.kv_capacity_tokens()),
    )
    kind = InstanceKind(
        name=str(model.kind),
        gpu_type=model.kind.gpu_type,
        gpus=model.kind.gpus_per_replica,
        table=blis_table(table),
        kv_capacity_tokens=NO_LIMIT_TOKENS,
        kv_bytes_per_token=model.roofline.model.kv_bytes_per_token(),
        layers=model.roofline.model.layers,
        accept_s=ACCEPT_US,
        per_token_s=PER_TOKEN_US,
        finish_s=FINISH_US,
    )
    fleet = Fleet(
        models=(model.kind.model,),
        kinds=(kind,),
        pools=(Pool(name="blis", kind=0, count=instances),),
        scheduler=Scheduler(max_batch=max_batch, max_batch_tokens=max_batch_tokens, watermark_ratio=0.0),
        router=Router(kind=router),
        links=Links(),
    )
    return in_seconds(simulate(fleet, at_microseconds(requests)))


def in_seconds(record: RunRecord) -> RunRecord:
    """Return a record that was counted in microseconds in seconds."""
    series = record.series
    return replace(
        record,
        queue_s=record.queue_s / _US,
        ttft_s=record.ttft_s / _US,
        e2e_s=record.e2e_s / _US,
        busy_s=record.busy_s / _US,
        up_s=record.up_s / _US,
        occupancy_request_s=record.occupancy_request_s / _US,
        end_time_s=record.end_time_s / _US,
        horizon_s=record.horizon_s / _US,
        series=Series(
            bin_s=series.bin_s / _US,
            power_w=series.power_w * _US,
            running=series.running,
            waiting=series.waiting,
            busy=series.busy,
            up=series.up,
        ),
    )


def in_microseconds(fleet: Fleet) -> Fleet:
    """Return a fleet of `physics` instances that counts in whole microseconds; run it with `at_microseconds`."""
    return replace(
        fleet,
        kinds=tuple(
            replace(
                kind,
                table=blis_table(kind.table),
                accept_s=ACCEPT_US,
                per_token_s=PER_TOKEN_US,
                finish_s=FINISH_US,
            )
            for kind in fleet.kinds
        ),
        pools=tuple(
            replace(pool, start_s=pool.start_s * _US, drain_s=pool.drain_s * _US) for pool in fleet.pools
        ),
        links=replace(fleet.links, bytes_per_s=fleet.links.bytes_per_s / _US),
        events=tuple(replace(event, time_s=event.time_s * _US) for event in fleet.events),
    )


def at_microseconds(requests: Requests) -> Requests:
    """Return the same requests at whole microseconds, cut as the peer cuts them."""
    return requests.at_times(np.floor(requests.arrival_s * _US))
