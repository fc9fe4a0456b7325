"""Variants that serve one phase only: from the objects to the problem, and from the answer back to the cluster."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.operator.api import HTTP_ROUTES
from controller.operator.doctor.findings import Mark, Notes
from controller.operator.doctor.services import examine_roles
from controller.operator.explain import _traffic
from controller.operator.plans import write_plan
from controller.operator.profiles import ProfileBook
from controller.operator.route import shift, wanted_weights
from controller.operator.sampler import NOTHING_RUNS, Sampler
from controller.operator.status import Progress, status_of
from controller.operator.traffic import Traffic
from controller.operator.views import ServiceView, Views
from controller.operator.world import World
from controller.resources.gpu_profile import GpuProfileSpec
from controller.resources.kinds import KINDS
from controller.resources.model_service import ModelServiceSpec, ModelServiceStatus, SloSpec
from controller.resources.plan import Action, Phase, PlanSpec
from solver.domain.cluster import ClusterState, GpuPool, ServiceDecision, VariantState
from solver.domain.fleet import FleetInfeasibleKind, Role
from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import parse_slo
from solver.performance.phase_capacity import pool_capacity
from solver.services.decide import DecideOptions, decide
from solver.services.explain import ServiceLimits, explain_service
from solver.services.steps import Rollout, RolloutStep, plan_steps
from telemetry.engine_sample import EngineSample
from telemetry.traffic import MeasuredTraffic
from tests.controller.test_operator_status import (
    LABEL,
    NODE,
    NOW,
    conditions,
    plan,
    seen,
    service,
    target,
)
from tests.telemetry.engine_pages import Engine

ROOT = Path(__file__).parents[2]
SLO = SloSpec(ttft_seconds=1.0, tbt_seconds=0.05, percentile=99)
ROLES = {"h100": "prefill", "a100": "decode", "l40": "both"}
SIZES = ((256.0, 128.0), (1024.0, 256.0), (4096.0, 512.0))


def buckets(*sizes: tuple[float, float]) -> list[RequestBucket]:
    return [RequestBucket(rate_rps=1.0, input_tokens=i, output_tokens=o) for i, o in sizes]


def row(role: str | None, i: int, o: int, rps: float, **times: float) -> dict[str, Any]:
    written = {"inputTokens": i, "outputTokens": o, "maxRps": rps, **times}
    return written if role is None else {"role": role, **written}


def profile_spec(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "gpuType": "A",
        "priceUsdPerHour": 1.0,
        "provenance": {"kind": "measured"},
        "throughput": list(rows),
        **more,
    }


ROWS = (
    row("prefill", 4096, 1, 8.0, ttftSeconds=0.5),
    row("decode", 4096, 1024, 3.0, tbtSeconds=0.02),
    row(None, 4096, 1024, 1.0, ttftSeconds=0.5, tbtSeconds=0.02),
)


def sustained(
    rows: Sequence[dict[str, Any]], role: Role, *sizes: tuple[float, float], slo: SloSpec = SLO
) -> tuple[tuple[float, ...], str]:
    spec = GpuProfileSpec.model_validate(profile_spec(*rows))
    answer = ProfileBook().sustained(spec, "v", slo, buckets(*sizes), role=role)
    return answer.throughput_rps, answer.trouble


# -- profiles ------------------------------------------------------------------------------------------------------


def test_each_role_has_its_own_rows() -> None:
    for role, rate in ((Role.PREFILL, 8.0), (Role.DECODE, 3.0), (Role.BOTH, 1.0)):
        assert sustained(ROWS, role, (512, 128)) == ((rate,), "")


@given(st.floats(0.01, 2.0), st.floats(0.001, 0.1))
def test_a_row_counts_if_it_keeps_what_its_role_answers_for(ttft_s: float, tbt_s: float) -> None:
    slo = SloSpec(ttft_seconds=ttft_s, tbt_seconds=tbt_s, percentile=99)
    rows = [
        row(role, 4096, 1024, 2.0, ttftSeconds=0.5, tbtSeconds=0.02) for role in ("prefill", "decode", None)
    ]
    counts = {
        Role.PREFILL: ttft_s >= 0.5,
        Role.DECODE: tbt_s >= 0.02,
        Role.BOTH: ttft_s >= 0.5 and tbt_s >= 0.02,
    }
    for role, within in counts.items():
        assert sustained(rows, role, (512, 128), slo=slo)[0] == ((2.0,) if within else (0.0,))


def test_outputs_do_not_matter_to_prompts_alone() -> None:
    rows = [row("prefill", 512, 1, 8.0, ttftSeconds=0.5), row("prefill", 2048, 64, 2.0, ttftSeconds=0.5)]
    rates, trouble = sustained(rows, Role.PREFILL, (512, 100_000), (1280, 7), (2048, 1))
    assert rates == pytest.approx((8.0, 1.0 / (0.5 / 8.0 + 0.5 / 2.0), 2.0))
    assert trouble == ""
    assert (
        "no row of role prefill within the SLO covers 4096 input tokens"
        in sustained(rows, Role.PREFILL, (4096, 1))[1]
    )


def test_a_time_that_is_missing_is_not_kept() -> None:
    """Such rows are refused by the server; what comes by another way is not taken for 0 s."""
    rows = [row(None, 4096, 1024, 1.0, ttftSeconds=0.5), row("prefill", 4096, 1024, 1.0, tbtSeconds=0.01)]
    for role in (Role.BOTH, Role.PREFILL):
        assert sustained(rows, role, (512, 128))[0] == (0.0,)


def test_a_profile_without_rows_of_the_role_says_what_it_has() -> None:
    rates, trouble = sustained(ROWS[1:], Role.PREFILL, (512, 128))
    assert rates == (0.0,)
    assert trouble == (
        "it has no rows of role prefill (of both and decode only); add rows measured so, or use modelled: true"
    )


def modelled(**more: Any) -> GpuProfileSpec:
    names = {"model": "meta-llama/Llama-3.1-8B", "gpuType": "H100-SXM", "modelled": True}
    return GpuProfileSpec.model_validate(profile_spec(**{**names, **more}))


@pytest.mark.parametrize("slo", ["ttft_p99=1.0,tbt_p99=0.05", "ttft_p99=0.4,tbt_p99=0.03"])
@pytest.mark.parametrize("gpu_type", ["H100-SXM", "A100-80-SXM"])
def test_a_modelled_phase_promises_no_more_than_its_mixture_gives(gpu_type: str, slo: str) -> None:
    book = ProfileBook()
    spec = modelled(gpuType=gpu_type)
    ttft_s, tbt_s = (target.limit_s for target in parse_slo(slo).targets)
    assert ttft_s is not None
    assert tbt_s is not None
    shares = (6 / 11, 4 / 11, 1 / 11)
    mixture = [
        RequestBucket(rate_rps=share, input_tokens=i, output_tokens=o)
        for share, (i, o) in zip(shares, SIZES, strict=True)
    ]
    model = book.performance(spec)
    for role in (Role.PREFILL, Role.DECODE):
        for size in (1, 4):
            told = book.sustained(
                spec,
                "v",
                SloSpec(ttft_seconds=ttft_s, tbt_seconds=tbt_s, percentile=99),
                mixture,
                role=role,
                pool_size=size,
            )
            assert told.trouble == ""
            alone = 1.0 / sum(share / rate for share, rate in zip(shares, told.throughput_rps, strict=True))
            whole = pool_capacity(model, mixture, parse_slo(slo), role=role, replicas=size).rate_rps
            assert alone <= 1.02 * whole


def test_a_size_that_no_replica_prefills_in_time_is_named() -> None:
    book, spec = ProfileBook(), modelled(gpuType="A10G")
    told = book.sustained(spec, "v", SLO, buckets((256, 10), (8192, 10), (8192, 99)), role=Role.PREFILL)
    assert told.throughput_rps[0] > 0.0 == told.throughput_rps[1]
    assert told.trouble == "as modelled, 8192 input tokens are not served within ttft 1 s"
    assert len(book._phases) == 2  # outputs do not matter


def test_more_replicas_at_least_let_each_do_more() -> None:
    book, spec = ProfileBook(), modelled()
    tight = SloSpec(ttft_seconds=0.4, tbt_seconds=0.03, percentile=99)
    rates = [
        book.sustained(spec, "v", tight, buckets(*SIZES), role=Role.PREFILL, pool_size=size).throughput_rps
        for size in (0, 1, 4)
    ]
    assert rates[0] == rates[1]
    assert all(more > less for less, more in zip(rates[1], rates[2], strict=True))


def test_whole_requests_are_modelled_as_ever() -> None:
    book, spec = ProfileBook(), modelled()
    assert (
        book.sustained(spec, "v", SLO, buckets(*SIZES), pool_size=8)
        == book.sustained(spec, "v", SLO, buckets(*SIZES))
        == ProfileBook().sustained(spec, "v", SLO, buckets(*SIZES), role=Role.BOTH)
    )


# -- from the objects to the problem ---------------------------------------------------------------------------------


def split(
    roles: Mapping[str, str] = ROLES,
    *,
    profiles: Mapping[str, dict[str, Any]] | None = None,
    replicas: Mapping[str, int] | None = None,
    services: Mapping[str, str] | None = None,
    link: float | None = None,
    **spec: Any,
) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects of a service whose variants have roles."""
    body = service({name: f"chat-{name}" for name in roles}, **spec)
    more = {} if link is None else {"kvLinkGbytesPerSecond": link}
    objects: list[tuple[str, dict[str, Any]]] = [("ModelService", body), ("Node", NODE)]
    for variant in body["spec"]["variants"]:
        name = variant["name"]
        variant |= {"role": roles[name], "gpuProfile": name}
        if services and name in services:
            variant["service"] = services[name]
        own = (profiles or {}).get(name, profile_spec(*ROWS, **more))
        objects.append(
            ("GpuProfile", {"metadata": {"name": name, "uid": name, "generation": 1}, "spec": own})
        )
        objects.append(("Deployment", target(f"chat-{name}", (replicas or {}).get(name, 1))))
    return objects


def states(view: ServiceView) -> dict[str, VariantState]:
    assert view.state is not None
    return {variant.name: variant for variant in view.state.variants}


def test_roles_links_and_bytes_reach_the_problem() -> None:
    view = seen(*split(link=25.0, kvBytesPerPromptToken=160_000))
    found = states(view)
    assert {name: str(state.role) for name, state in found.items()} == ROLES
    assert {name: state.throughput_rps for name, state in found.items()} == {
        "h100": (8.0,),
        "a100": (3.0,),
        "l40": (1.0,),
    }
    assert [found[name].kv_link_bytes_per_s for name in ROLES] == [25e9, 25e9, None]
    assert view.state is not None
    assert view.state.splits
    assert view.state.kv_bytes_per_prompt_token == 160_000
    assert view.unlimited == ""


def test_bytes_of_known_models_are_those_of_the_catalogue() -> None:
    known = seen(*split(link=25.0, model="meta-llama/Llama-3.1-8B-Instruct"))
    assert known.state is not None
    assert known.state.kv_bytes_per_prompt_token == 2 * 2 * 8 * 128 * 32  # K and V, bf16, heads, size, layers
    unlinked = seen(*split(model="meta-llama/Llama-3.1-8B-Instruct"))
    assert unlinked.state is not None
    assert unlinked.state.kv_bytes_per_prompt_token == 0.0


def test_a_link_without_bytes_limits_nothing_and_says_so() -> None:
    objects = [*split(link=25.0), ("Plan", plan(Phase.APPLIED, {"h100": 1, "a100": 1, "l40": 1}, step=1))]
    view = seen(*objects)
    assert view.state is not None
    assert view.state.kv_bytes_per_prompt_token == 0.0
    status = status_of(view, Progress(decision=DECISION), now=NOW)
    found = conditions(status)["SolverReady"]
    assert found["status"] == "True"
    assert "kvLinkGbytesPerSecond of GpuProfile a100, h100 limits nothing" in found["message"]
    assert "set kvBytesPerPromptToken" in found["message"]


def test_a_plan_of_sixteen_variants_with_the_longest_names_can_be_written() -> None:
    names = [f"{'v' * 60}{index:03}" for index in range(16)]
    roles = {name: "prefill" if index % 2 else "decode" for index, name in enumerate(names)}
    objects = split(roles, link=1.0, model="m" * 253)
    for kind, body in objects:
        if kind == "GpuProfile":
            body["metadata"]["name"] += "p" * (253 - 63)
    for variant in objects[0][1]["spec"]["variants"]:
        variant["gpuProfile"] += "p" * (253 - 63)
    view = seen(*objects)
    assert view.unlimited
    assert view.state is not None
    decision = replace(DECISION, replicas=(100_000,) * 16)
    told = write_plan(view, view.state, decision, Rollout(), solve_id="s", made_at=NOW, why="first plan")
    assert PlanSpec.model_validate(told.written()) == told
    ModelServiceStatus.model_validate(status_of(view, Progress(decision=decision), now=NOW))


def test_a_service_without_roles_is_as_it_was() -> None:
    view = seen(*split(dict.fromkeys(ROLES, "both"), link=25.0))
    assert view.state is not None
    assert not view.state.splits
    assert view.state.kv_bytes_per_prompt_token == 0.0
    assert {state.throughput_rps for state in view.state.variants} == {(1.0,)}
    status = status_of(view, Progress(), now=NOW)
    assert "role" not in json.dumps(status)


def test_a_variant_whose_role_nobody_measured_stays_as_it_is() -> None:
    whole_only = profile_spec(ROWS[2])
    view = seen(*split(profiles={"a100": whole_only}, replicas={"a100": 2}))
    found = states(view)["a100"]
    assert (found.locked, found.replicas, found.throughput_rps) == (True, 2, (0.0,))
    status = status_of(view, Progress(), now=NOW)
    ModelServiceStatus.model_validate(status)
    degraded = conditions(status)["Degraded"]
    assert (degraded["status"], degraded["reason"]) == ("True", "VariantUnusable")
    assert degraded["message"] == (
        "variant decode a100: GpuProfile a100: it has no rows of role decode (of both only); add rows measured so, or"
        " use modelled: true; its replicas stay as they are"
    )
    decision = ServiceDecision(
        service="team/chat",
        status="infeasible",
        reason="bucket-unservable",
        message="nobody decodes bucket 0",
    )
    solver = conditions(status_of(view, Progress(decision=decision), now=NOW))["SolverReady"]
    assert solver["message"].startswith("nobody decodes bucket 0; ")
    assert solver["message"].count("no rows of role decode") == 1


def test_a_phase_whose_target_is_missing_is_named_where_no_plan_exists() -> None:
    objects = [o for o in split() if o[1]["metadata"]["name"] != "chat-a100"]
    view = seen(*objects)
    decision = ServiceDecision(
        service="team/chat", status="infeasible", reason="combination", message="no plan keeps all limits"
    )
    solver = conditions(status_of(view, Progress(decision=decision), now=NOW))["SolverReady"]
    assert "variant decode a100: Deployment chat-a100 does not exist in team" in solver["message"]


def test_doctor_names_profiles_that_tell_nothing_of_a_role() -> None:
    objects = split(profiles={"a100": profile_spec(ROWS[2])})
    profiles = {
        body["metadata"]["name"]: GpuProfileSpec.model_validate(body["spec"])
        for kind, body in objects
        if kind == "GpuProfile"
    }
    (body,) = [body for kind, body in objects if kind == "ModelService"]
    notes = Notes()
    examine_roles(notes, "team/chat", body, profiles)
    (finding,) = notes.findings
    assert finding.what == (
        "ModelService team/chat, variant a100: GpuProfile a100: it has no rows of role decode (of both only)"
    )
    assert finding.mark is Mark.MISSING


# -- from the answer back to the cluster ------------------------------------------------------------------------------

DECISION = ServiceDecision(
    service="team/chat",
    status="optimal",
    replicas=(3, 6, 1),
    cost_usd_per_h=10.0,
    lower_bound_usd_per_h=10.0,
    gap_ratio=0.0,
    routing=((0, 0, 0.75), (0, 1, 0.75), (0, 2, 0.25)),
)
MOVES = Rollout(
    steps=(
        RolloutStep(variant=0, from_replicas=2, to_replicas=3),
        RolloutStep(variant=1, from_replicas=4, to_replicas=6),
        RolloutStep(variant=2, from_replicas=2, to_replicas=1),
    )
)
NOW_ASKED = {"h100": 2, "a100": 4, "l40": 2}
SERVICES = {"h100": "pre", "l40": "whole"}


def written(view: ServiceView) -> PlanSpec:
    assert view.state is not None
    return write_plan(view, view.state, DECISION, MOVES, solve_id="s", made_at=NOW, why="first plan")


def proposed(**spec: Any) -> ServiceView:
    """Return the view of a service with the plan of `DECISION`."""
    objects = split(replicas=NOW_ASKED, **spec)
    body = {
        "metadata": {"name": "chat", "namespace": "team"},
        "spec": written(seen(*objects)).written(),
        "status": {"phase": "Applying"},
    }
    return seen(*objects, ("Plan", body))


def test_a_plan_says_the_role_of_what_it_moves() -> None:
    told = written(seen(*split(replicas=NOW_ASKED, services=SERVICES, httpRoute={"name": "r"})))
    assert [(w.variant, w.role, w.replicas) for w in told.desired] == [
        ("h100", Role.PREFILL, 3),
        ("a100", Role.DECODE, 6),
        ("l40", None, 1),
    ]
    assert [(s.action, s.role) for s in told.steps] == [
        (Action.SCALE_UP, Role.PREFILL),
        (Action.SCALE_UP, Role.DECODE),
        (Action.SHIFT, Role.PREFILL),
        (Action.SCALE_DOWN, None),
    ]
    assert [(r.variant, r.role, r.share) for r in told.routing] == [
        ("h100", Role.PREFILL, 0.75),
        ("a100", Role.DECODE, 0.75),
        ("l40", None, 0.25),
    ]
    assert "prompts and what follows are planned apart: prefill h100 3, decode a100 6, l40 1" in told.reasons
    assert PlanSpec.model_validate(told.written()) == told


def test_people_see_the_role_beside_the_replicas() -> None:
    status = status_of(proposed(), Progress(decision=DECISION), now=NOW)
    ModelServiceStatus.model_validate(status)
    assert status["summary"] == "prefill h100 2→3, decode a100 4→6, l40 2→1"
    assert status["current"][0] == {"variant": "h100", "role": "prefill", "replicas": 2, "ready": 2}
    assert status["desired"] == [
        {"variant": "h100", "role": "prefill", "replicas": 3},
        {"variant": "a100", "role": "decode", "replicas": 6},
        {"variant": "l40", "replicas": 1},
    ]


def test_requests_are_routed_to_where_they_arrive() -> None:
    assert wanted_weights(proposed(services=SERVICES)) == {"pre": 750, "whole": 250}
    both = wanted_weights(proposed(services={**SERVICES, "a100": "dec"}))
    assert both == {"pre": 750, "dec": 0, "whole": 250}


class _Routes:
    """An API with one HTTPRoute."""

    def __init__(self, *backends: str) -> None:
        refs = [{"name": name, "port": 80} for name in backends]
        self.route = {"metadata": {"resourceVersion": "7"}, "spec": {"rules": [{"backendRefs": refs}]}}
        self.changes: list[dict[str, Any]] = []

    def get(self, resource: object, *_: str) -> dict[str, Any]:
        assert resource is HTTP_ROUTES
        return self.route

    def patch(self, _resource: object, _space: str, _name: str, changes: Any, **_: Any) -> None:
        self.changes = changes[1:]


@pytest.mark.parametrize(
    ("backends", "expected"), [(("pre", "whole"), [750, 250]), (("pre", "dec", "whole"), [750, 0, 250])]
)
def test_a_decode_service_is_no_backend_or_one_without_weight(
    backends: tuple[str, ...], expected: list[int]
) -> None:
    view = proposed(services={**SERVICES, "a100": "dec"}, httpRoute={"name": "r"})
    api = _Routes(*backends)
    assert shift(api, view) == ""  # type: ignore[arg-type]
    assert [change["value"] for change in api.changes] == expected
    assert "no backend whole" in shift(_Routes("pre"), view)  # type: ignore[arg-type]


def test_the_traffic_of_a_plan_is_told_once() -> None:
    view = proposed(traffic={"scrape": {}})
    traffic, source = _traffic((view.body, view.spec, ""), view.plan)
    assert traffic.rate_rps == pytest.approx(4.0)
    assert source == "plan"


def test_links_that_call_for_more_replicas_are_told() -> None:
    """160 kB for each of 512 tokens at 4 requests/s are 0.33 GB/s: seven links of 0.05 GB/s."""
    view = seen(
        *split(link=0.05, kvBytesPerPromptToken=160_000, headroomRatio=0.0),
    )
    assert view.state is not None
    apart = replace(view.state, variants=view.state.variants[:2])
    limits = ServiceLimits(own_max=(None, None), fit=(None, None), free_gpus=None)
    found = explain_service(apart, limits, time_limit_s=20.0, clock=time.monotonic)
    assert found.replicas == (7, 7)
    (binding,) = [one for one in found.binding if one.kind == "kv-links"]
    # without: 1 prefill and 2 decode replicas, 1 US$/h each
    assert binding.saving_usd_per_h is not None
    assert binding.saving_usd_per_h >= 14.0 - 3.0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_roles_rows_and_targets_there_are_it_is_judged(data: st.DataObject) -> None:
    draw = data.draw
    names = [f"v{index}" for index in range(draw(st.integers(1, 4)))]
    some_role = st.sampled_from([role.value for role in Role])
    times = {"ttftSeconds": 0.5, "tbtSeconds": 0.02}
    rows = {
        name: [
            row(draw(some_role), draw(st.sampled_from([512, 4096])), 256, draw(st.floats(0.1, 9.0)), **times)
            for _ in range(draw(st.integers(1, 3)))
        ]
        for name in names
    }
    links = {"kvLinkGbytesPerSecond": draw(st.sampled_from([0.001, 25.0]))} if draw(st.booleans()) else {}
    more: dict[str, Any] = {"survive": draw(st.integers(0, 1))}
    if draw(st.booleans()):
        more["kvBytesPerPromptToken"] = draw(st.sampled_from([1.0, 1e9]))
    objects = split(
        {name: draw(some_role) for name in names},
        profiles={name: profile_spec(*rows[name], **links) for name in names},
        replicas={name: draw(st.integers(0, 3)) for name in names},
        **more,
    )
    gone = {f"chat-{name}" for name in names if draw(st.integers(0, 4)) == 0}
    objects = [one for one in objects if one[1]["metadata"]["name"] not in gone]
    view = seen(*objects)
    decision = None
    if view.state is not None:
        pools = tuple(GpuPool(name=pool, gpus=8) for pool in {v.pool for v in view.state.variants})
        state = ClusterState(pools=pools, services=(view.state,))
        (decision,) = decide(state, options=DecideOptions(time_limit_s=10.0), clock=time.monotonic)
        if decision.replicas is not None:
            for variant, count in zip(view.state.variants, decision.replicas, strict=True):
                assert count == variant.replicas or not variant.locked
            rollout = plan_steps(view.state, decision.replicas, {pool.name: 8 for pool in pools})
            told = write_plan(view, view.state, decision, rollout, solve_id="s", made_at=NOW, why="w")
            assert PlanSpec.model_validate(told.written()) == told
        else:
            assert decision.message
    ModelServiceStatus.model_validate(status_of(view, Progress(decision=decision), now=NOW))


# -- the example -----------------------------------------------------------------------------------------------------


def test_every_object_of_the_examples_is_read() -> None:
    kinds = {kind.kind: kind for kind in KINDS}
    read = {}
    for path in sorted((ROOT / "examples" / "operator").glob("*.yaml")):
        for body in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            kind = kinds.get(body["kind"])
            if kind is not None:
                read[body["kind"], body["metadata"]["name"]] = kind.spec.model_validate(body["spec"])
    assist = read["ModelService", "assist"]
    assert isinstance(assist, ModelServiceSpec)
    assert [variant.role for variant in assist.variants] == [Role.PREFILL, Role.DECODE, Role.BOTH]
    for variant in assist.variants:
        profile = read["GpuProfile", variant.gpu_profile]
        assert isinstance(profile, GpuProfileSpec)
        assert profile.kv_link_gbytes_per_second is not None


def test_the_split_example_is_cheaper_than_whole_requests() -> None:
    world = World()
    for path in sorted((ROOT / "examples" / "operator").glob("*.yaml")):
        for body in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            body["metadata"] |= {"uid": body["metadata"]["name"], "generation": 1}
            world.put(body["kind"], body)
    for index, product in enumerate(["NVIDIA-A100-SXM4-80GB"] * 3 + ["NVIDIA-H100-80GB-HBM3"] * 2):
        node = json.loads(json.dumps(NODE))
        node["metadata"] = {"name": f"n{index}", "labels": {LABEL: product}}
        node["status"]["allocatable"] = {"nvidia.com/gpu": "8"}
        world.put("Node", node)
    views = Views(world=world, book=ProfileBook(), gpu_label=LABEL)
    specs, key = views.specs(), ("team-a", "assist")
    owners = views.owners(specs)
    inventory = views.inventory(specs, owners, dra_driver="gpu.nvidia.com")
    traffic, _ = _traffic(specs[key], None)
    view = views.view(key, specs[key], traffic=traffic, owners=owners, autoscaled={}, inventory=inventory)
    assert view.state is not None
    assert (view.unserved, view.unlimited) == ("", "")
    assert view.state.kv_bytes_per_prompt_token > 0
    pools = tuple(GpuPool(name=name, gpus=gpus) for name, gpus in inventory.gpus.items())
    whole = replace(view.state, variants=view.state.variants[2:])
    split, alone = (
        decide(ClusterState(pools=pools, services=(state,)), options=DecideOptions(), clock=time.monotonic)[0]
        for state in (view.state, whole)
    )
    assert (split.status, alone.status) == ("optimal", "optimal")
    assert split.replicas is not None
    assert min(split.replicas[:2]) >= 2
    assert split.cost_usd_per_h is not None
    assert alone.cost_usd_per_h is not None
    assert split.cost_usd_per_h < alone.cost_usd_per_h


def test_every_reason_of_the_joint_program_is_explained() -> None:
    page = (ROOT / "docs" / "operator.md").read_text(encoding="utf-8")
    unsaid = {"machine-limit"}  # services have no such budget
    for kind in set(get_args(FleetInfeasibleKind)) - unsaid:
        assert f"`{''.join(part.capitalize() for part in kind.split('-'))}`" in page


# -- traffic -----------------------------------------------------------------------------------------------------------


class _Clock:
    """Stands in for `time` in the sampler."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def time(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s


def pod(name: str, owner: str) -> dict[str, Any]:
    labels = {"pod-template-hash": "x"}
    owners = [{"kind": "ReplicaSet", "name": f"{owner}-x", "controller": True}]
    return {
        "metadata": {"name": name, "namespace": "team", "labels": labels, "ownerReferences": owners},
        "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    }


def sampled(
    monkeypatch: pytest.MonkeyPatch, roles: Mapping[str, str], replicas: Mapping[str, int], rounds: int = 8
) -> Traffic:
    """Let requests come by way of prefill to decode pods, and scrape all of them."""
    clock = _Clock()
    engines = {f"{name}-{i}": Engine() for name, count in replicas.items() for i in range(count)}
    world = World()
    for name, count in replicas.items():
        world.put("Deployment", target(f"chat-{name}", count))
        for i in range(count):
            world.put("Pod", pod(f"{name}-{i}", f"chat-{name}"))

    def answers(addresses: Mapping[str, str], **_: Any) -> dict[str, EngineSample | str]:
        return {name: engines[name.removeprefix("team/")].sample(clock.now_s) for name in addresses}

    monkeypatch.setattr("controller.operator.sampler.time", clock)
    monkeypatch.setattr("controller.operator.sampler.scraped", answers)
    wish = service({name: f"chat-{name}" for name in roles}, traffic={"scrape": {}})["spec"]
    for variant in wish["variants"]:
        variant["role"] = roles[variant["name"]]
    sampler = Sampler(world=world, api=None, sample_s=15.0)  # type: ignore[arg-type]
    spec = ModelServiceSpec.model_validate(wish)
    for _ in range(rounds):
        for name, engine in engines.items():
            role = roles[name.rpartition("-")[0]]
            for _ in range(30):
                engine.arrive(1500, 1 if role == "prefill" else 300)
            engine.serve_all()
        sampler.once({("team", "chat"): spec})
        clock.now_s += 15.0
    return sampler._read["team", "chat"]


def test_only_arrivals_at_prefill_and_whole_pods_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = sampled(monkeypatch, ROLES, {"h100": 2, "a100": 3, "l40": 1})
    assert traffic.fresh
    assert traffic.rate_rps == pytest.approx(3 * 30 / 15.0)
    assert {(b.input_tokens, b.output_tokens) for b in traffic.buckets} == {(1500.0, 300.0)}


def test_decode_replicas_alone_are_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = sampled(monkeypatch, ROLES, {"h100": 0, "a100": 3, "l40": 0}, rounds=2)
    assert traffic == NOTHING_RUNS


def test_prometheus_is_asked_with_both_selectors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    expected: dict[Any, int] = {}

    class Reader:
        def __init__(self, **options: Any) -> None:
            asked.append(options)

    def read(readers: Mapping[Any, Any], *, expected_pods: Mapping[Any, int], **_: Any) -> dict[Any, Any]:
        expected.update(expected_pods)
        measured = MeasuredTraffic(
            rate_rps=1.0,
            buckets=tuple(buckets((100, 10))),
            sampled_at_s=0.0,
            pods=1,
            expected_pods=1,
            series=(),
            complete=True,
        )
        return dict.fromkeys(readers, measured)

    monkeypatch.setattr("controller.operator.sampler.PrometheusTraffic", Reader)
    monkeypatch.setattr("controller.operator.sampler.all_read", read)
    source = {"url": "http://p:9090", "selector": 'role="p"', "outputSelector": 'role="d"'}
    wish = service({name: f"chat-{name}" for name in ROLES}, traffic={"prometheus": source})["spec"]
    world = World()
    for variant in wish["variants"]:
        variant["role"] = ROLES[variant["name"]]
        world.put("Deployment", target(f"chat-{variant['name']}", 2))
    sampler = Sampler(world=world, api=None)  # type: ignore[arg-type]
    sampler.once({("team", "chat"): ModelServiceSpec.model_validate(wish)})
    assert (asked[0]["selector"], asked[0]["output_selector"]) == ('role="p"', 'role="d"')
    assert expected == {("team", "chat"): 4}  # decode pods are not expected to tell arrivals
    assert sampler._read["team", "chat"].fresh
