"""Prefill and decode by different pods: every request is counted once, prompts on one side, outputs on the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.domain.fleet import Role
from telemetry.engine_sample import EngineSample
from telemetry.sources.engines import read_engine_metrics
from telemetry.traffic import MeasuredTraffic, StaleTraffic, Traffic, TrafficEstimator
from tests.telemetry.engine_pages import Engine

INTERVAL_S = 15.0
WINDOW_S = 60.0
BEGIN_S = 1_700_000_000.0
PROMPT, OUTPUT = 1500, 300
QUEUES = {
    Role.PREFILL: ("num_prefill_bootstrap_queue_reqs", "num_prefill_inflight_queue_reqs"),
    Role.DECODE: ("num_decode_prealloc_queue_reqs", "num_decode_transfer_queue_reqs"),
}
"""Gauges that an SGLang shows in a disaggregated set-up only."""


def page(engine: Engine, kind: str, role: Role) -> str:
    """Show the page that an engine of a role has: a prefill pod of vLLM ends every request for its length."""
    if kind == "vllm":
        text = engine.vllm()
        if role is Role.PREFILL:
            swap = {'finished_reason="stop"': "X", 'finished_reason="length"': 'finished_reason="stop"'}
            for old, new in {**swap, "X": 'finished_reason="length"'}.items():
                text = text.replace(old, new)
        return text
    text = engine.sglang().replace('engine_type="unified"', f'engine_type="{role.value}"')
    labels = f'engine_type="{role.value}",model_name="m",pp_rank="0",tp_rank="0"'
    return text + "".join(f"sglang:{name}{{{labels}}} 0.0\n" for name in QUEUES.get(role, ()))


@dataclass
class Split:
    """A disaggregated service that is looked at every interval."""

    roles: Mapping[str, Role]
    kind: str = "vllm"
    pages: bool = True
    """By way of pages, not only of samples."""
    now_s: float = BEGIN_S
    estimator: TrafficEstimator = field(
        default_factory=lambda: TrafficEstimator(interval_s=INTERVAL_S, window_s=WINDOW_S)
    )
    engines: dict[str, Engine] = field(init=False)

    def __post_init__(self) -> None:
        self.engines = {name: Engine() for name in self.roles}

    def of(self, role: Role) -> list[str]:
        return [name for name, own in self.roles.items() if own is role]

    def request(self, number: int, prompt: int = PROMPT, output: int = OUTPUT) -> None:
        """Serve a request: whole, or its prompt here (one token comes of it) and the rest there."""
        first, second, whole = self.of(Role.PREFILL), self.of(Role.DECODE), self.of(Role.BOTH)
        if whole and (not first or number % 3 == 0):
            self.engines[whole[number % len(whole)]].arrive(prompt, output)
        else:
            self.engines[first[number % len(first)]].arrive(prompt, 1)
            self.engines[second[number % len(second)]].arrive(prompt, output)
        for engine in self.engines.values():
            engine.serve_all()

    def look(self, instead: Mapping[str, str] | None = None) -> Traffic:
        samples: dict[str, EngineSample | str] = {
            name: read_engine_metrics(
                page(engine, self.kind, self.roles[name]), engine=self.kind, t_s=self.now_s, source=name
            )
            if self.pages
            else engine.sample(self.now_s)
            for name, engine in self.engines.items()
        }
        self.estimator.update(self.now_s, {**samples, **(instead or {})}, roles=self.roles)
        answer = self.estimator.measure(self.now_s)
        self.now_s += INTERVAL_S
        return answer

    def rounds(self, number: int, count: int, instead: Mapping[str, str] | None = None) -> Traffic:
        for _ in range(number):
            for index in range(count):
                self.request(index)
            answer = self.look(instead)
        return answer


def measured(answer: Traffic) -> MeasuredTraffic:
    assert isinstance(answer, MeasuredTraffic), answer
    return answer


def named(prefill: int, decode: int, whole: int = 0) -> dict[str, Role]:
    counts = {Role.PREFILL: prefill, Role.DECODE: decode, Role.BOTH: whole}
    return {f"{role.value}-{i}": role for role, count in counts.items() for i in range(count)}


def means(answer: MeasuredTraffic) -> tuple[float, float]:
    """Return mean prompt and output tokens."""
    prompts = sum(b.rate_rps * (b.input_tokens or 0) for b in answer.buckets) / answer.rate_rps
    outputs = sum(b.rate_rps * (b.output_tokens or 0) for b in answer.buckets) / answer.rate_rps
    return prompts, outputs


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize(("prefill", "decode", "whole"), [(1, 1, 0), (2, 5, 0), (2, 3, 2)])
def test_a_request_counts_once_with_its_whole_size(kind: str, prefill: int, decode: int, whole: int) -> None:
    split = Split(named(prefill, decode, whole), kind=kind)
    split.look()
    answer = measured(split.rounds(5, 60))
    assert answer.rate_rps == pytest.approx(60 / INTERVAL_S)
    assert means(answer) == pytest.approx((PROMPT, OUTPUT))
    assert (answer.complete, answer.note) == (True, "")
    assert answer.pods == answer.expected_pods == prefill + decode + whole


def test_without_roles_it_would_count_twice() -> None:
    split = Split(named(2, 3))
    split.roles = dict.fromkeys(split.roles, Role.BOTH)
    first, second = list(split.engines)[:2], list(split.engines)[2:]
    split.look()
    for _ in range(5):
        for index in range(60):
            split.engines[first[index % 2]].arrive(PROMPT, 1)
            split.engines[second[index % 3]].arrive(PROMPT, OUTPUT)
        for engine in split.engines.values():
            engine.serve_all()
        answer = measured(split.look())
    assert answer.rate_rps == pytest.approx(2 * 60 / INTERVAL_S)
    assert means(answer)[1] == pytest.approx((OUTPUT + 1) / 2)


def test_sizes_since_the_start_are_told_apart_as_well() -> None:
    split = Split(named(1, 2))
    for index in range(40):
        split.request(index)
    split.look()
    answer = measured(split.look())
    assert answer.rate_rps == 0.0
    assert [(b.input_tokens, b.output_tokens) for b in answer.buckets] == [(PROMPT, OUTPUT)]


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 30), st.lists(st.booleans(), min_size=8, max_size=8)),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_decode_pods_do_only_what_comes_in_counts(
    rounds: Sequence[tuple[int, int, Sequence[bool]]],
) -> None:
    split = Split(named(2, 2), pages=False)
    split.estimator = TrafficEstimator(interval_s=INTERVAL_S, window_s=1e6)
    split.look()
    came = 0
    for entered, decoded, served in rounds:
        came += entered
        for index in range(entered):
            split.engines[f"prefill-{index % 2}"].arrive(PROMPT, 1)
        for index in range(decoded):
            split.engines[f"decode-{index % 2}"].arrive(PROMPT, OUTPUT)
        for engine, done in zip(split.engines.values(), served, strict=False):
            if done:
                engine.serve_all()
        answer = split.look()
    rate = came / (INTERVAL_S * len(rounds))
    if isinstance(answer, MeasuredTraffic):
        assert answer.rate_rps == pytest.approx(rate, abs=1e-9)
    else:
        assert "sizes are not known" in answer.reason


def test_decode_pods_alone_tell_no_arrivals() -> None:
    split = Split(named(0, 2))
    split.look()
    answer = split.look()
    assert isinstance(answer, StaleTraffic)
    assert answer.reason == "there is no pod that takes requests in, only those of role decode"


def test_prefill_pods_that_are_silent_are_no_measurement_however_many_decode_pods_answer() -> None:
    split = Split(named(2, 6))
    split.look()
    split.rounds(5, 60)
    away = {"prefill-0": "timed out", "prefill-1": "timed out"}
    answer = split.rounds(8, 60, away)
    assert isinstance(answer, StaleTraffic)
    assert answer.reason.startswith("prefill-0: timed out")


def test_a_missing_prefill_pod_is_taken_to_get_as_much_as_the_others() -> None:
    split = Split(named(2, 2))
    split.look()
    split.rounds(5, 60)
    answer = measured(split.rounds(8, 120, {"prefill-1": "timed out"}))
    assert answer.rate_rps == pytest.approx(120 / INTERVAL_S)
    assert not answer.complete


def test_a_missing_decode_pod_changes_no_rate_but_nothing_is_lowered() -> None:
    split = Split(named(2, 2))
    split.look()
    split.rounds(5, 60)
    answer = measured(split.rounds(8, 90, {"decode-1": "timed out"}))
    assert answer.rate_rps == pytest.approx(90 / INTERVAL_S)
    assert not answer.complete


def test_what_goes_to_decode_pods_alone_is_not_counted_but_said() -> None:
    split = Split(named(1, 2))
    split.look()
    for _ in range(5):
        for index in range(30):
            split.request(index)
            split.engines["decode-0"].arrive(200, 50)
        for engine in split.engines.values():
            engine.serve_all()
        answer = measured(split.look())
    assert answer.rate_rps == pytest.approx(30 / INTERVAL_S)
    assert answer.note == (
        "decode pods get over a quarter more requests than those that take them in: what is sent to decode pods alone"
        " is not counted"
    )
