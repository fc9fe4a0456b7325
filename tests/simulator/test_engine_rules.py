"""Single rules of the general engine, on fleets whose times can be worked out on paper."""

import numpy as np
import pytest

from simulator.engine.run import simulate
from simulator.fleet import (
    EventKind,
    FleetEvent,
    Links,
    Overlap,
    QueueOrder,
    Role,
    Router,
    RouterKind,
    Scheduler,
)
from simulator.record import RejectReason, RequestStatus
from solver.domain.trace import PrefixBlocks
from tests.simulator.simple_fleets import DECODE_S, PROMPT_TOKEN_S, fleet, kind, pool, requests, table


def event(time_s: float, what: EventKind, *, at: tuple[int, int] = (0, 0), kind: int = -1) -> FleetEvent:
    """Something that happens at (pool, index)."""
    return FleetEvent(time_s=time_s, kind=what, pool=at[0], index=at[1], instance_kind=kind)


def test_one_request_alone() -> None:
    record = simulate(fleet(), requests((1.0, 100, 11)))
    assert record.queue_s[0] == 0.0
    assert record.ttft_s[0] == pytest.approx(0.1, abs=1e-12)
    assert record.e2e_s[0] == pytest.approx(0.2, abs=1e-12)
    assert record.energy_j[0] == pytest.approx(0.1 * 300 + 10 * 2.0)
    assert record.idle_j[0] == pytest.approx(50.0)


def test_decoder_must_hold_the_answer_but_for_its_last_token() -> None:
    """A decode pool that is one token short is passed over even when it has less to do."""
    small, large = kind(100 + 20 - 2), kind(100 + 20 - 1)
    pools = (pool(Role.PREFILL), pool(Role.DECODE), pool(Role.DECODE, kind=1))
    record = simulate(fleet(*pools, kinds=(small, large)), requests((0.0, 100, 20)))
    assert record.decode_instance.tolist() == [2]
    assert record.status.tolist() == [RequestStatus.COMPLETED]
    alone = simulate(fleet(*pools[:2], kinds=(small,)), requests((0.0, 100, 20)))
    assert alone.reject_reason.tolist() == [RejectReason.TOO_LONG]


def test_whole_instances_serve_what_no_decoder_can_hold() -> None:
    """The prefiller comes first, but its decoder is too small."""
    pools = (pool(Role.PREFILL), pool(Role.DECODE), pool(Role.BOTH, kind=1))
    record = simulate(fleet(*pools, kinds=(kind(100), kind(1000))), requests((0.0, 50, 100), (9.0, 50, 50)))
    assert record.status.tolist() == [RequestStatus.COMPLETED] * 2
    assert record.prefill_instance.tolist() == [2, 0]


def test_arrived_kv_decodes_after_the_whole_batch_lost_its_own() -> None:
    """Two prompts have arrived, one place: when the first loses its KV for lack of room, the second goes on."""
    built = fleet(
        pool(Role.PREFILL),
        pool(Role.DECODE),
        kinds=(kind(100),),
        scheduler=Scheduler(max_batch=1, max_batch_tokens=2048, watermark_ratio=0.0),
    )
    record = simulate(built, requests((0.0, 40, 50), (0.0, 40, 50)))
    assert record.status.tolist() == [RequestStatus.COMPLETED] * 2
    assert record.preemptions.sum() > 0


def test_mixed_pool_decodes_where_the_prompt_was_when_its_decoder_fails() -> None:
    """The last prompt runs on a decode machine and was to decode on the other one, which fails: nothing moves."""
    built = fleet(
        pool(Role.PREFILL),
        pool(Role.DECODE, count=2),
        events=(event(0.05, EventKind.DOWN, at=(1, 1)),),
        router=Router(kind=RouterKind.MIXED_POOL, prompt_limit_tokens=150),
    )
    asked = requests((0.0, 100, 700), (0.01, 10, 20), (0.02, 10, 20), (0.03, 100, 30))
    record = simulate(built, asked)
    assert record.prefill_instance.tolist() == [0, 0, 0, 1]
    assert record.decode_instance.tolist() == [1, 1, 1, 1]
    assert record.transfers == 3
    assert record.status.tolist() == [RequestStatus.COMPLETED] * 4
    assert record.ttft_s[3] == pytest.approx(100 * PROMPT_TOKEN_S)


def test_mixed_pool_waits_for_an_instance_that_starts() -> None:
    built = fleet(
        pool(Role.PREFILL, start_s=1.0),
        pool(Role.DECODE, start_s=1.0),
        events=(
            event(0.0, EventKind.DOWN, at=(0, 0)),
            event(0.0, EventKind.DOWN, at=(1, 0)),
            event(0.5, EventKind.UP, at=(0, 0)),
        ),
        router=Router(kind=RouterKind.MIXED_POOL),
    )
    record = simulate(built, requests((0.2, 10, 2), (0.7, 10, 2)))
    assert record.reject_reason.tolist() == [RejectReason.NO_INSTANCE, RejectReason.NONE]
    assert record.queue_s[1] == pytest.approx(0.8)


def test_drain_ends_when_another_failure_takes_the_last_work_away() -> None:
    """A prompt of 1 s is done at 1 s; its only decoder fails at 2 s, and the drained prefiller has nothing left."""
    built = fleet(
        pool(Role.PREFILL),
        pool(Role.DECODE),
        pool(Role.BOTH),
        kinds=(kind(2000),),
        links=Links(bytes_per_s=1.0),
        router=Router(kind=RouterKind.ROUND_ROBIN),
        events=(event(1.5, EventKind.DRAIN, at=(0, 0)), event(2.0, EventKind.DOWN, at=(1, 0))),
    )
    record = simulate(built, requests((0.0, 1000, 5), (5.0, 1000, 5)))
    assert record.reject_reason.tolist() == [RejectReason.NO_INSTANCE, RejectReason.NONE]
    assert record.up_s[0] == pytest.approx(2.0)


def test_the_last_cap_counts_when_an_instance_fails_between_two() -> None:
    fast, slow, slower = (
        kind(step_table=table(prefill_s=np.arange(2) * f * PROMPT_TOKEN_S)) for f in (1, 2, 3)
    )
    built = fleet(
        pool(),
        kinds=(fast, slow, slower),
        events=(
            event(0.1, EventKind.CAP, kind=1),
            event(0.2, EventKind.DOWN),
            event(0.3, EventKind.CAP, kind=2),
            event(0.4, EventKind.UP),
        ),
    )
    record = simulate(built, requests((0.0, 500, 1), (1.0, 100, 1)))
    assert record.reject_reason[0] == RejectReason.NO_INSTANCE
    assert record.ttft_s[1] == pytest.approx(3 * 0.1)


def test_a_broken_off_iteration_draws_its_own_watts() -> None:
    """Iteration k takes 10 (1 + k) ms and 2 J: the one broken off after half of its time has drawn 1 J."""
    shape = (65, 1)
    steep = table(
        decode_slope_s=np.full(shape, 10e-3), decode_s=np.zeros(shape), decode_j=np.full(shape, 2.0)
    )
    built = fleet(
        kinds=(kind(step_table=steep),), events=(event(0.001 + 0.010 + 0.020 + 0.015, EventKind.DOWN),)
    )
    record = simulate(built, requests((0.0, 1, 50)))
    assert record.iterations == 3
    assert record.energy_j_of_instance[0] == pytest.approx(0.001 * 300 + 2 * 2.0 + 1.0)
    assert record.idle_j[0] == pytest.approx(1.0)


@pytest.mark.parametrize("overlap", list(Overlap))
def test_kv_sent_again_after_a_failure_is_sent_whole(overlap: Overlap) -> None:
    """100 bytes over 1000 bytes/s take 0.1 s, whatever overlapped the first time."""
    built = fleet(
        pool(Role.PREFILL),
        pool(Role.DECODE, count=2),
        links=Links(bytes_per_s=1000.0, overlap=overlap, contention=False),
        events=(event(0.12, EventKind.DOWN, at=(1, 0)),),
    )
    record = simulate(built, requests((0.0, 100, 2)))
    assert record.transfers == 2
    assert record.decode_instance.tolist() == [2]
    assert record.e2e_s[0] == pytest.approx(0.12 + 0.1 + DECODE_S)


def test_layers_move_while_the_prompt_runs() -> None:
    """Two layers: the first leaves after 0.05 s, the transfer takes 0.1 s, the last layer half of it."""
    built = fleet(pool(Role.PREFILL), pool(Role.DECODE))
    record = simulate(built, requests((0.0, 100, 2)))
    assert record.e2e_s[0] == pytest.approx(0.15 + DECODE_S)


def test_a_cached_block_covers_no_more_than_the_prompt() -> None:
    """Prompts of 10 tokens in blocks of 16: what a preempted request had generated is not cached."""
    asked = requests(
        (0.0, 10, 50),
        (1.0, 10, 60),
        (1.0, 10, 60),
        blocks=PrefixBlocks(ids=np.array([7, 7, 7]), offsets=np.arange(4)),
    )
    built = fleet(kinds=(kind(100),), links=Links(prefix_cache_blocks=4, block_tokens=16))
    record = simulate(built, asked)
    assert record.preemptions.sum() == 1
    assert record.cached_tokens == 9 + 9 + 10
    assert record.prompt_tokens_done.sum() + record.cached_tokens == 30 + 10 + 40


def test_requests_of_a_failed_instance_start_again_in_the_order_of_arrival() -> None:
    """Whatever ended before: later requests take the places of earlier ones in the engine's memory."""
    built = fleet(
        pool(count=2),
        scheduler=Scheduler(max_batch=1, max_batch_tokens=2048),
        router=Router(kind=RouterKind.ROUND_ROBIN),
        events=(
            event(0.9, EventKind.DRAIN, at=(0, 1)),
            event(1.04, EventKind.UP, at=(0, 1)),
            event(1.05, EventKind.DOWN),
        ),
    )
    asked = requests((0.0, 10, 1), (0.0, 20, 1), (1.0, 100, 1), (1.01, 100, 1), (1.02, 100, 1))
    record = simulate(built, asked)
    assert record.prefill_instance.tolist() == [0, 1, 1, 1, 1]
    assert (asked.arrival_s + record.ttft_s)[2:].tolist() == pytest.approx([1.15, 1.25, 1.35])


def test_scheduler_takes_the_lower_class_first() -> None:
    built = fleet(scheduler=Scheduler(max_batch=1, max_batch_tokens=2048, order=QueueOrder.PRIORITY))
    asked = requests((0.0, 100, 1), (0.01, 100, 1), (0.02, 100, 1))
    record = simulate(built, asked, priority_of_request=np.array([1, 1, 0]))
    assert record.ttft_s.tolist() == pytest.approx([0.1, 0.29, 0.18])
    first_come = simulate(built, asked)
    assert first_come.ttft_s.tolist() == pytest.approx([0.1, 0.19, 0.28])
