"""The solver's child process: what it answers, and what becomes of one that hangs, dies, or has no memory."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.operator.brain import CRASHED, MEMORY, OVERRUN, Brain, BrainLimits
from solver.domain.cluster import ClusterState, GpuPool, ServiceState, Stance, VariantState
from solver.domain.gpu_mix import RequestBucket


def service(name: str, rate: float, *, buckets: int = 1) -> ServiceState:
    one = VariantState(
        name="a",
        pool="A",
        gpus_per_replica=1,
        price_usd_per_h=1.0,
        throughput_rps=(1.0,) * buckets,
        replicas=0,
        ready=0,
        held=0,
    )
    wanted = tuple(
        RequestBucket(rate_rps=rate / buckets, input_tokens=10.0 + i, output_tokens=10.0)
        for i in range(buckets)
    )
    return ServiceState(name=name, stance=Stance.APPLIED, buckets=wanted, variants=(one,))


def cluster(*services: ServiceState) -> ClusterState:
    return ClusterState(pools=(GpuPool(name="A", gpus=1000),), services=services)


def counts(brain: Brain, *services: ServiceState) -> dict[str, tuple[int, ...] | None] | None:
    decisions = brain.decide(cluster(*services))
    return None if decisions is None else {d.service: d.replicas for d in decisions}


@pytest.fixture
def brain() -> Iterator[Brain]:
    """Return a brain with half a second for a solve."""
    one = Brain(limits=BrainLimits(solve_s=0.5))
    yield one
    one.close()


def test_services_that_come_change_and_go_are_decided(brain: Brain) -> None:
    first, second = service("first", 2.0), service("second", 3.0)
    assert counts(brain, first, second) == {"first": (2,), "second": (3,)}
    child = brain.pid
    assert counts(brain, service("first", 5.0), second) == {"first": (5,), "second": (3,)}
    assert counts(brain, second) == {"second": (3,)}
    assert counts(brain) == {}
    assert brain.pid == child
    assert brain.setbacks == {}


def test_a_decision_that_stays_is_the_same_object(brain: Brain) -> None:
    first, second = service("first", 2.0), service("second", 3.0)
    before = brain.decide(cluster(first, second))
    after = brain.decide(cluster(service("first", 5.0), second))
    assert before is not None
    assert after is not None
    assert after[1] is before[1]
    assert counts(brain, replace(first, stance=Stance.FIXED), second) == {"second": (3,)}
    assert counts(brain, service("first", 5.0), second) == {"first": (5,), "second": (3,)}
    assert counts(brain, service("first", 2.0)) == {"first": (2,)}
    assert counts(brain, second, service("first", 2.0)) == {"second": (3,), "first": (2,)}


def test_a_child_that_dies_is_replaced(brain: Brain) -> None:
    assert counts(brain, service("s", 2.0)) == {"s": (2,)}
    child = brain.pid
    assert child is not None
    os.kill(child, signal.SIGSTOP)
    os.kill(child, signal.SIGKILL)
    answer = counts(brain, service("s", 3.0))
    if answer is None:  # it was seen to be alive still
        assert brain.setbacks["s"].reason == CRASHED
        answer = counts(brain, service("s", 3.0))
    assert answer == {"s": (3,)}
    assert brain.pid != child
    assert brain.setbacks == {}


def test_a_child_that_hangs_is_killed_and_its_services_wait_longer_each_time(brain: Brain) -> None:
    waits = []
    for times in (1, 2):
        assert counts(brain) == {}
        child = brain.pid
        assert child is not None
        os.kill(child, signal.SIGSTOP)
        assert counts(brain, service("s", 2.0)) is None
        setback = brain.setbacks["s"]
        assert (setback.reason, setback.times) == (OVERRUN, times)
        assert "within 0.5 s" in setback.message
        assert not Path(f"/proc/{child}").exists()
        now_s = time.monotonic()
        waits.append(setback.until_s - now_s)
        assert brain.held("s", now_s) == setback.message
        assert brain.held("s", setback.until_s) == ""
        assert brain.held("other", now_s) == ""
    assert waits[1] > waits[0]
    assert counts(brain, service("s", 2.0)) == {"s": (2,)}
    assert brain.setbacks == {}


def test_a_child_that_no_longer_reads_is_killed_too(brain: Brain) -> None:
    assert counts(brain) == {}
    child = brain.pid
    assert child is not None
    os.kill(child, signal.SIGSTOP)
    many = [service(f"s{i}", 1.0, buckets=200) for i in range(50)]  # more than a pipe holds
    assert counts(brain, *many) is None
    assert {setback.reason for setback in brain.setbacks.values()} == {OVERRUN}
    assert len(brain.setbacks) == len(many)
    assert not Path(f"/proc/{child}").exists()


def test_what_the_solver_cannot_stand_is_named_and_nobody_else_waits(brain: Brain) -> None:
    sound = service("sound", 2.0)
    broken = replace(service("broken", 2.0), variants=(replace(sound.variants[0], throughput_rps=()),))
    assert counts(brain, sound, broken) is None
    assert set(brain.setbacks) <= {"broken", "sound"}
    assert "broken" in brain.setbacks
    assert brain.setbacks["broken"].reason == CRASHED
    assert counts(brain, sound) == {"sound": (2,)}


def test_a_child_that_has_less_memory_than_it_already_uses_is_told_so() -> None:
    brain = Brain(limits=BrainLimits(memory_mib=64))
    try:
        for _ in range(2):
            assert counts(brain, service("s", 2.0)) is None
            assert brain.setbacks["s"].reason == MEMORY
            assert "64 MiB" in brain.setbacks["s"].message
    finally:
        brain.close()
    assert brain.pid is None
