"""What a planner may know at a time, the pools it changes, and the rule of Kubernetes' autoscaler."""

import numpy as np
import pytest

from controller.closed_loop.deciders import Asked, Hpa
from controller.closed_loop.history import before
from controller.closed_loop.pools import TrackedPool
from controller.closed_loop.seen import RELEARN_S, Seen
from simulator.fleet import EventKind
from solver.domain.cluster import ServiceState, Stance, VariantState
from solver.domain.errors import InputError
from solver.domain.gpu_mix import RequestBucket
from solver.domain.rate_windows import RateWindows
from tests.controller.closed_loop.days import history, requests


def seen(rates: tuple[float, ...] = (2.0, 4.0), before_rates: tuple[float, ...] | None = None) -> Seen:
    """Make requests at these rates, after a history."""
    given = requests(rates)
    return Seen(
        name="m",
        arrival_s=given.arrival_s,
        prompt_tokens=given.prompt_tokens,
        output_tokens=given.output_tokens,
        history=None if before_rates is None else history(before_rates),
    )


def test_only_windows_that_have_ended_are_shown() -> None:
    known = seen(before_rates=(1.0, np.nan, 3.0))
    shown = known.windows(600.0, now_s=599.0)
    assert shown.start_s == -1800.0
    assert shown.rate_rps[[0, 2]].tolist() == [1.0, 3.0]
    assert np.isnan(shown.rate_rps[1])
    assert len(known.windows(600.0, now_s=600.0)) == 4
    assert len(known.windows(600.0, now_s=-600.0)) == 2
    assert known.windows(600.0, now_s=3600.0).rate_rps[-1] == 0.0


def test_other_windows_are_means_over_time() -> None:
    known = seen(before_rates=(1.0, 2.0, np.nan, np.nan, 4.0, 2.0))
    assert known.windows(1200.0, now_s=0.0).rate_rps[[0, 2]].tolist() == [1.5, 3.0]
    assert np.isnan(known.windows(1200.0, now_s=0.0).rate_rps[1])
    assert known.windows(300.0, now_s=0.0).rate_rps[:4].tolist() == [1.0, 1.0, 2.0, 2.0]


def test_rates_reach_back_into_the_history() -> None:
    known = seen(before_rates=(6.0, 3.0))
    assert known.rate_rps(-600.0, 0.0) == 3.0
    own = known.rate_rps(0.0, 60.0)
    assert own is not None
    assert known.rate_rps(-60.0, 60.0) == pytest.approx((3.0 + own) / 2.0)
    assert known.rate_rps(-1300.0, -1200.0) is None
    assert seen().rate_rps(-10.0, 50.0) is None


def test_sizes_are_those_known_then_those_seen() -> None:
    known = seen(rates=(1.0,) * 40)
    assert known.sizes(now_s=10.0) == ()
    first = known.sizes(now_s=600.0)
    assert sum(size.rate_rps for size in first) == pytest.approx(1.0)
    assert known.sizes(now_s=1200.0) is first
    assert known.sizes(now_s=RELEARN_S) is not first
    told = Seen(
        name="m",
        arrival_s=known.arrival_s,
        prompt_tokens=known.prompt_tokens,
        output_tokens=known.output_tokens,
        known_sizes=(RequestBucket(rate_rps=1.0, input_tokens=10.0, output_tokens=10.0),),
    )
    assert told.sizes(now_s=0.0) == told.known_sizes


def test_a_history_that_ends_too_early_is_told() -> None:
    windows = RateWindows(name="w", start_s=100.0, window_s=10.0, rate_rps=np.array([1.0, 2.0, 3.0]))
    cut = before(windows, 120.0, scale=2.0)
    assert cut.start_s == -20.0
    assert cut.rate_rps.tolist() == [2.0, 4.0]
    with pytest.raises(InputError, match="no window of 'w' ends by 105 s"):
        before(windows, 105.0)


def pool(drain_s: float = 60.0) -> TrackedPool:
    """No instance yet."""
    return TrackedPool(
        name="p",
        gpu_type="H100-SXM",
        gpus_per_instance=8,
        tdp_w=700.0,
        price_usd_per_h=20.0,
        own_cap_w=None,
        start_s=120.0,
        drain_s=drain_s,
    )


def test_an_instance_that_may_still_drain_is_not_taken_back() -> None:
    one = pool()
    one.scale(2, 0.0, cap_w=None)
    assert (one.asked, one.ready(119.0), one.ready(120.0), one.next_ready_s(0.0)) == (2, 0, 2, 120.0)
    one.scale(1, 200.0, cap_w=None)
    assert (one.held(200.0), one.held(260.0)) == (2, 1)
    one.scale(2, 230.0, cap_w=None)
    assert one.slots == 3
    one.scale(1, 300.0, cap_w=None)  # the one that is still starting goes first, and holds nothing
    assert (one.ready(300.0), one.held(300.0)) == (1, 1)
    one.scale(2, 301.0, cap_w=500.0)
    assert one.slots == 3
    kinds = [event.kind for event in one.events]
    assert kinds.count(EventKind.UP) == 4
    assert kinds.count(EventKind.DRAIN) == 2
    assert one.events[-2].kind is EventKind.CAP


def service(rate_rps: float, replicas: int) -> ServiceState:
    """Two pools; the second carries a request cheaper."""
    variants = tuple(
        VariantState(
            name=name,
            pool=name,
            gpus_per_replica=8,
            price_usd_per_h=price,
            throughput_rps=(carried,),
            replicas=count,
            ready=count,
            held=count,
        )
        for name, price, carried, count in (("a", 10.0, 1.0, 0), ("b", 20.0, 4.0, replicas))
    )
    return ServiceState(
        name="m", stance=Stance.APPLIED, buckets=(RequestBucket(rate_rps=rate_rps),), variants=variants
    )


def test_autoscaler_follows_kubernetes_rule() -> None:
    hpa = Hpa(gpus={"a": 80, "b": 80}, target_ratio=0.7)
    asked = {"m": Asked(rate_rps=0.0, rule="")}

    def wish(rate_rps: float, replicas: int, now_s: float) -> tuple[int, ...] | None:
        wishes = hpa.wishes([service(rate_rps, replicas)], asked, now_s)
        return wishes[0].replicas if wishes else None

    assert wish(10.0, 2, 0.0) == (0, 4)  # 10 / (0.7 x 4) = 3.6
    assert wish(11.5, 4, 15.0) is None  # 4.1: within the tolerance of 10 %
    assert wish(5.0, 4, 30.0) is None  # fewer only when 300 s did without
    assert wish(5.0, 4, 316.0) == (0, 2)
    assert wish(1000.0, 2, 330.0) == (0, 10)  # no more than there are GPUs
