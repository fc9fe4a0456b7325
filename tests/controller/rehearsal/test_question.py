"""What is asked about a service's Plan."""

from dataclasses import replace

import pytest

from controller.operator.rehearsal.question import RehearsalQuestion, carried_of, question_of
from controller.resources.model_service import RouteRef
from solver.domain.fleet import Role
from solver.domain.gpu_mix import RequestBucket
from tests.controller.rehearsal.stand import Stand, partial


def test_it_tells_what_runs_what_is_planned_and_the_traffic() -> None:
    stand = Stand(
        running={"a": 5, "b": 0, "c": 0},
        wanted={"a": 2, "b": 1, "c": 0},
        rehearsal={"enabled": True, "windowSeconds": 120},
    )
    found = question_of(stand.view())
    assert isinstance(found, RehearsalQuestion)
    assert (found.service, found.key, found.digest, found.solve_id) == (
        "team/chat",
        ("team", "chat"),
        "d1",
        "s1",
    )
    assert (found.window_s, found.percentile, found.slo) == (120.0, 99.0, "ttft_p99=1.0,tbt_p99=0.05")
    assert (found.trace, found.rate_rps) == (None, 2.0)
    assert [(one.name, one.running, one.planned) for one in found.variants] == [("a", 5, 2), ("b", 0, 1)]
    one = found.variants[0]
    assert (one.measured, one.role) == (True, Role.BOTH)
    assert one.carried_rps == pytest.approx(1.0)
    assert (one.model, one.gpu_type, one.gpus_per_replica) == ("meta-llama/Llama-3.1-8B", "A100-80-SXM", 1)
    assert (found.link_bytes_per_s, found.kv_bytes_per_token) == (None, None)


def test_phases_go_with_the_slowest_link_between_them() -> None:
    view = Stand(running={"a": 5, "b": 3}, wanted={"a": 2, "b": 3}).view()
    assert view.state is not None
    first, second = view.state.variants
    variants = (
        replace(first, role=Role.PREFILL, kv_link_bytes_per_s=2e9),
        replace(second, role=Role.DECODE, kv_link_bytes_per_s=1e9),
    )
    state = replace(view.state, variants=variants, kv_bytes_per_prompt_token=131072.0)
    found = question_of(replace(view, state=state))
    assert isinstance(found, RehearsalQuestion)
    assert [one.role for one in found.variants] == [Role.PREFILL, Role.DECODE]
    assert (found.link_bytes_per_s, found.kv_bytes_per_token) == (1e9, 131072.0)


@pytest.mark.parametrize(("alone", "other"), [(Role.PREFILL, Role.DECODE), (Role.DECODE, Role.PREFILL)])
def test_one_phase_without_the_other_gets_no_requests(alone: Role, other: Role) -> None:
    view = Stand(running={"a": 5, "b": 1, "c": 0}, wanted={"a": 2, "b": 1, "c": 0}).view()
    assert view.state is not None
    whole, kept, none = view.state.variants
    state = replace(view.state, variants=(whole, replace(kept, role=alone), replace(none, role=other)))
    found = question_of(replace(view, state=state))
    assert isinstance(found, RehearsalQuestion)
    assert [one.name for one in found.variants] == ["a"]


def test_sizes_go_where_they_can_be_served() -> None:
    view = partial(Stand(running={"a": 5, "b": 1}, wanted={"a": 2, "b": 1}).view())
    found = question_of(view)
    assert isinstance(found, RehearsalQuestion)
    assert [one.serves for one in found.variants] == [(0, 1), (0,)]
    assert found.by_size is not None
    for shares in found.by_size:
        assert [sum(row) for row in shares] == pytest.approx([1.0, 1.0])
        assert shares[1] == (1.0, 0.0)
    assert found.by_size[1][0][1] > 0.0  # with two of a, b must help
    assert view.spec is not None
    assert view.state is not None
    routed = replace(view, spec=view.spec.model_copy(update={"http_route": RouteRef(name="r")}))
    assert "an HTTPRoute does not tell them apart" in str(question_of(routed))
    few = Stand(running={"a": 5, "b": 1}, wanted={"a": 0, "b": 1}).view()
    assert "do not carry the rest" in str(question_of(partial(few)))
    nobody = replace(
        view.state, variants=tuple(replace(v, throughput_rps=(0.0, 0.0)) for v in view.state.variants)
    )
    assert question_of(replace(view, state=nobody)) == (
        "no variant serves any of the request sizes within the SLO"
    )


def test_what_a_replica_carries_of_a_mixture_adds_its_loads_up() -> None:
    state = Stand(running={"a": 5}, wanted={"a": 2}).view().state
    assert state is not None
    buckets = (RequestBucket(rate_rps=3.0), RequestBucket(rate_rps=1.0), RequestBucket(rate_rps=0.0))
    mixed = replace(state, buckets=buckets)
    variant = replace(state.variants[0], throughput_rps=(6.0, 2.0, 0.0))
    assert carried_of(mixed, variant) == pytest.approx(4.0)  # half of a replica for each size
    assert carried_of(mixed, replace(variant, throughput_rps=(6.0, 0.0, 1.0))) == pytest.approx(6.0)
    assert carried_of(mixed, replace(variant, throughput_rps=(0.0, 0.0, 1.0))) == 0.0
    idle = replace(state, buckets=tuple(replace(bucket, rate_rps=0.0) for bucket in buckets))
    assert carried_of(idle, variant) == 0.0


def test_a_plan_that_is_not_there_cannot_be_asked_about() -> None:
    view = Stand(running={"a": 5}, wanted={"a": 2}).view()
    with pytest.raises(ValueError, match="nothing to rehearse"):
        question_of(replace(view, plan=None))
