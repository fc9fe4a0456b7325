"""Arrivals from looks at engines: nothing lost, nothing invented, nothing negative, and no answer rather than zero."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.domain.errors import InputError
from telemetry.engine_sample import EngineSample
from telemetry.sources.engines import read_engine_metrics
from telemetry.traffic import MeasuredTraffic, StaleTraffic, Traffic, TrafficEstimator
from tests.telemetry.engine_pages import Engine

INTERVAL_S = 15.0
WINDOW_S = 60.0
ONE_SAMPLE = "chat-0: one sample so far, a rate needs two (and 1 more)"
BEGIN_S = 1_700_000_000.0


def look(engine: Engine, t_s: float) -> EngineSample:
    return engine.sample(t_s)


@dataclass
class World:
    """Pods that are looked at every interval."""

    pods: dict[str, Engine] = field(default_factory=dict)
    estimator: TrafficEstimator = field(
        default_factory=lambda: TrafficEstimator(interval_s=INTERVAL_S, window_s=WINDOW_S)
    )
    now_s: float = BEGIN_S

    def round(self, instead: Mapping[str, EngineSample | str] | None = None) -> Traffic:
        """Take a round; ``instead`` says what some of the pods answer."""
        samples: dict[str, EngineSample | str] = {
            name: look(engine, self.now_s) for name, engine in self.pods.items()
        }
        samples.update(instead or {})
        self.estimator.update(self.now_s, samples)
        answer = self.estimator.measure(self.now_s)
        self.now_s += INTERVAL_S
        return answer

    def rounds(
        self,
        number: int,
        load: Mapping[str, int],
        instead: Callable[[float], Mapping[str, EngineSample | str]] = lambda _: {},
    ) -> Traffic:
        """Let so many requests arrive at each pod before each round; all are served at once."""
        for _ in range(number):
            for name, count in load.items():
                for _ in range(count):
                    self.pods[name].arrive(100, 20)
                self.pods[name].serve_all()
            answer = self.round(instead(self.now_s))
        return answer


def measured(answer: Traffic) -> MeasuredTraffic:
    assert isinstance(answer, MeasuredTraffic), answer
    return answer


def stale(answer: Traffic) -> StaleTraffic:
    assert isinstance(answer, StaleTraffic), answer
    assert "\n" not in answer.reason
    return answer


def steady(pods: int = 2, count: int = 75) -> World:
    """So many pods, each of which gets so many requests per interval, measured for a whole window."""
    world = World({f"chat-{i}": Engine() for i in range(pods)})
    world.round()
    answer = measured(world.rounds(5, dict.fromkeys(world.pods, count)))
    assert answer.complete
    assert answer.rate_rps == pytest.approx(pods * count / INTERVAL_S)
    return world


OPERATIONS = st.sampled_from(["arrive"] * 4 + ["first", "finish", "finish", "first", "preempt"])


def apply(engine: Engine, operation: str) -> None:
    match operation:
        case "arrive":
            engine.arrive(100, 20)
        case "first":
            engine.first_token()
        case "finish":
            engine.finish()
        case "preempt":
            engine.preempt()
        case "abort":
            engine.abort()


@given(
    rounds=st.lists(
        st.tuples(st.lists(OPERATIONS, max_size=30), st.booleans(), st.lists(OPERATIONS, max_size=30)),
        min_size=1,
        max_size=8,
    ),
    start_time=st.booleans(),
)
def test_every_arrival_is_counted_once_but_those_lost_at_restarts(
    *, rounds: list[tuple[list[str], bool, list[str]]], start_time: bool
) -> None:
    """Before each round come operations, perhaps a restart, and more operations."""
    engine = Engine()
    estimator = TrafficEstimator(interval_s=INTERVAL_S, window_s=1e6)
    now_s = BEGIN_S
    estimator.update(now_s, {"a": look(engine, now_s)})
    expected = 0
    for before, restart, after in rounds:
        seen = look(engine, now_s)
        arrived = before.count("arrive")
        for operation in before:
            apply(engine, operation)
        if restart:
            engine.restart(now_s + 1)
            arrived = 0  # since the last look, and lost
        for operation in after:
            apply(engine, operation)
        arrived += after.count("arrive")
        now_s += INTERVAL_S
        sample = look(engine, now_s)
        if not start_time:
            sample = replace(sample, started_s=None)
            if restart and not _shows(seen, sample):
                # Nothing tells this restart apart from requests that vanished; it is not worse than before it.
                return
        expected += arrived
        estimator.update(now_s, {"a": sample})
    answer = estimator.measure(now_s)
    if isinstance(answer, StaleTraffic):
        assert answer.reason == "no request has finished yet, so their sizes are not known"
        return
    assert answer.rate_rps * (now_s - BEGIN_S) == pytest.approx(expected)


def _shows(seen: EngineSample, sample: EngineSample) -> bool:
    return any(
        (now or 0) < (then or 0)
        for then, now in (
            (seen.finished_total, sample.finished_total),
            (seen.first_tokens_total, sample.first_tokens_total),
            (seen.preemptions_total, sample.preemptions_total),
        )
    )


@given(
    first=st.lists(OPERATIONS, max_size=20),
    later=st.lists(st.lists(st.one_of(OPERATIONS, st.just("abort")), max_size=30), min_size=1, max_size=6),
)
def test_aborted_requests_are_counted_once_they_had_a_token(first: list[str], later: list[list[str]]) -> None:
    engine = Engine()
    for operation in first:
        apply(engine, operation)
    estimator = TrafficEstimator(interval_s=INTERVAL_S, window_s=1e6)
    estimator.update(BEGIN_S, {"a": look(engine, BEGIN_S)})
    prefilling = len(engine.prefilling)
    for number, operations in enumerate(later, start=1):
        for operation in operations:
            apply(engine, operation)
        now_s = BEGIN_S + number * INTERVAL_S
        estimator.update(now_s, {"a": look(engine, now_s)})
    answer = estimator.measure(now_s)
    if isinstance(answer, StaleTraffic):
        return
    arrived = sum(operations.count("arrive") for operations in later)
    counted = answer.rate_rps * (now_s - BEGIN_S)
    assert counted <= arrived + prefilling + 1e-6
    if not any("preempt" in operations for operations in [first, *later]):
        assert counted >= arrived - len(engine.prefilling) - 1e-6


@given(
    loads=st.lists(st.lists(st.tuples(OPERATIONS, st.integers(0, 2)), max_size=40), min_size=2, max_size=8),
    outages=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2)), max_size=6),
)
def test_a_rate_is_never_negative_and_buckets_always_sum_to_it(
    loads: list[list[tuple[str, int]]], outages: list[tuple[int, int]]
) -> None:
    world = World({name: Engine() for name in "abc"})
    for number, load in enumerate(loads):
        for operation, pod in load:
            apply(world.pods["abc"[pod]], operation)
        answer = world.round({"abc"[pod]: "refused" for at, pod in outages if at == number})
        if isinstance(answer, MeasuredTraffic):
            assert answer.rate_rps >= 0
            assert answer.pods <= answer.expected_pods
            if answer.buckets:
                assert sum(each.rate_rps for each in answer.buckets) == pytest.approx(answer.rate_rps)
                assert all((each.input_tokens or 0) > 0 for each in answer.buckets)


def test_arrivals_are_demand_not_completions() -> None:
    """Overload: 20 requests/s arrive, 5 are served."""
    engine = Engine(places=4)
    world = World({"a": engine})
    world.round()
    for _ in range(6):
        for _ in range(300):
            engine.arrive(100, 20)
        for _ in range(75):
            engine.first_token()
            engine.finish()
        answer = measured(world.round())
    assert engine.finished == 6 * 75
    assert answer.rate_rps == pytest.approx(20)
    assert answer.complete
    assert answer.series[0].startswith("process_start_time")
    assert "vllm:request_success_total" in answer.series


def test_a_drain_is_not_demand() -> None:
    engine = Engine()
    for _ in range(1000):
        engine.arrive(100, 20)
    world = World({"a": engine})
    world.round()
    engine.serve_all()
    answer = measured(world.round())
    # The prefilling ones cannot be told from aborted ones: they count as arrivals at most.
    assert answer.rate_rps <= engine.places / INTERVAL_S


def test_preempted_requests_that_wait_again_did_not_arrive_again() -> None:
    world = World({"a": Engine(places=50)})
    world.round()
    engine = world.pods["a"]
    for _ in range(31):
        engine.arrive(100, 20)
        engine.first_token()
    engine.finish()
    for _ in range(20):
        engine.preempt()
    assert measured(world.round()).rate_rps == pytest.approx(31 / INTERVAL_S)


def test_requests_that_vanish_are_not_negative() -> None:
    """Requests aborted in the queue leave no trace; another pod's arrivals still count in full."""
    world = steady(pods=2)
    for _ in range(2):
        answer = measured(
            world.rounds(
                1,
                {"chat-1": 75},
                lambda now_s: {"chat-0": replace(look(world.pods["chat-0"], now_s), waiting=1000.0)},
            )
        )
    for _ in range(8):
        answer = measured(world.rounds(1, {"chat-1": 75}))
        assert answer.rate_rps >= 5 * 0.999
    assert answer.rate_rps == pytest.approx(5)


def test_one_stamp_gives_no_rate() -> None:
    world = World({"a": Engine()})
    stamp = world.now_s
    world.round()
    for _ in range(20):
        world.pods["a"].arrive(100, 20)
    world.pods["a"].serve_all()
    assert stale(world.round({"a": look(world.pods["a"], stamp)})).reason == "a: its stamp does not advance"


def test_sizes_before_a_restart_are_not_subtracted() -> None:
    engine = Engine()
    world = World({"a": engine})
    world.round()
    engine.arrive(1000, 20)
    engine.serve_all()
    world.round()
    engine.restart(world.now_s)
    for _ in range(50):
        engine.arrive(100, 20)
    engine.serve_all()
    answer = measured(world.round())
    mean = sum(b.rate_rps * (b.input_tokens or 0) for b in answer.buckets) / answer.rate_rps
    old = math.exp(-INTERVAL_S / (2 * WINDOW_S))
    assert mean == pytest.approx((50 * 100 + old * 1000) / (50 + old))


def test_gauges_of_another_instant_even_out() -> None:
    """SGLang's gauge of running requests may lag for half a minute."""
    world = World({"a": Engine()})
    world.rounds(2, {"a": 0})
    engine = world.pods["a"]
    for _ in range(30):
        engine.arrive(100, 20)
    engine.serve_all()
    lagging = replace(look(engine, world.now_s), running=30.0, first_tokens_total=None)
    assert measured(world.round({"a": lagging})).rate_rps == pytest.approx(60 / 30)
    assert measured(world.round()).rate_rps == pytest.approx(30 / 45)


def test_no_requests_are_a_real_zero_with_the_last_sizes() -> None:
    world = steady()
    answer = measured(world.rounds(6, {}))
    assert answer.rate_rps == 0
    assert answer.complete
    assert len(answer.buckets) == 1
    bucket = answer.buckets[0]
    assert (bucket.rate_rps, bucket.input_tokens, bucket.output_tokens) == pytest.approx((0, 100, 20))


def test_sizes_since_the_start_serve_until_there_are_others() -> None:
    engine = Engine()
    engine.arrive(700, 30)
    engine.serve_all()
    world = World({"a": engine})
    world.round()
    answer = measured(world.round())
    assert answer.rate_rps == 0
    assert answer.buckets[0].input_tokens == pytest.approx(700)
    engine.arrive(100, 20)
    answer = measured(world.round())
    assert answer.buckets[0].input_tokens == pytest.approx(700)
    engine.serve_all()
    answer = measured(world.round())
    assert answer.buckets[0].input_tokens == pytest.approx(100)


def test_an_idle_service_without_history_has_no_buckets() -> None:
    world = World({"a": Engine()})
    world.round()
    assert measured(world.round()).buckets == ()


def test_traffic_without_sizes_is_not_measured() -> None:
    world = World({"a": Engine()})
    world.round()
    world.pods["a"].arrive(100, 20)
    assert "no request has finished yet" in stale(world.round()).reason


def test_sizes_are_those_measured() -> None:
    world = World({"a": Engine(), "b": Engine(edges=(1.0, 50.0, 500.0))})
    world.round()
    for prompt, output in ((3, 150), (30, 15), (300, 150), (3000, 15)) * 10:
        for engine in world.pods.values():
            engine.arrive(prompt, output)
            engine.serve_all()
    answer = measured(world.round())
    rate = answer.rate_rps
    assert rate == pytest.approx(80 / INTERVAL_S)
    assert len(answer.buckets) <= 16
    assert sum(b.rate_rps * (b.input_tokens or 0) for b in answer.buckets) == pytest.approx(rate * 833.25)
    assert sum(b.rate_rps * (b.output_tokens or 0) for b in answer.buckets) == pytest.approx(rate * 82.5)


def test_one_look_is_no_rate() -> None:
    world = World({"a": Engine()})
    assert stale(world.round()).reason == "a: one sample so far, a rate needs two"
    answer = world.round()
    assert not measured(answer).complete
    assert measured(answer).note == "measured for less than half of the window"


def test_nothing_to_ask_is_no_zero() -> None:
    estimator = TrafficEstimator()
    assert stale(estimator.measure(0)).reason == "nothing was sampled yet"
    world = steady()
    world.pods.clear()
    answer = stale(world.round())
    assert answer.reason == "there is no pod to ask"
    assert answer.age_s == INTERVAL_S


def test_no_new_round_becomes_stale_after_two_intervals() -> None:
    world = steady()
    last_s = world.now_s - INTERVAL_S
    assert isinstance(world.estimator.measure(last_s + 2 * INTERVAL_S), MeasuredTraffic)
    answer = stale(world.estimator.measure(last_s + 2 * INTERVAL_S + 1))
    assert answer.reason == "chat-0: no new sample (and 1 more)"
    assert answer.age_s == 31


# Faults (R8): hold, never scale down.


def test_all_endpoints_down() -> None:
    world = steady()
    down = dict.fromkeys(world.pods, "connection refused")
    assert measured(world.round(down)).rate_rps == pytest.approx(10)
    assert measured(world.round(down)).rate_rps == pytest.approx(10)
    answer = stale(world.round(down))
    assert answer.reason == "chat-0: connection refused (and 1 more)"
    assert answer.age_s == 3 * INTERVAL_S
    assert answer.missing == ()


@pytest.mark.parametrize("value", ["NaN", "-5", "+Inf", "9223372036854775794"])
def test_values_that_mean_nothing(value: str) -> None:
    world = steady()

    def broken(name: str) -> EngineSample:
        lines = world.pods[name].vllm().splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith("vllm:num_requests_waiting{"))
        lines[at] = f"{lines[at].rsplit(' ', 1)[0]} {value}"
        return read_engine_metrics("\n".join(lines), engine="vllm", t_s=world.now_s, source=name)

    for _ in range(3):
        answer = world.round({name: broken(name) for name in world.pods})
    assert stale(answer).missing == ("vllm:num_requests_waiting",)
    assert "chat-0: no vllm:num_requests_waiting" in stale(answer).reason


def test_a_counter_reset_counts_from_zero() -> None:
    world = steady()
    for engine in world.pods.values():
        engine.restart(world.now_s - 1)
    for _ in range(3):  # as many as before, but the counters stand far lower
        answer = measured(world.rounds(1, dict.fromkeys(world.pods, 75)))
        assert answer.rate_rps == pytest.approx(10)
        assert answer.complete


def test_a_restart_with_requests_in_flight_is_not_negative() -> None:
    engine = Engine()
    world = World({"a": engine})
    engine.arrive(100, 20)
    engine.serve_all()
    world.round()
    for _ in range(300):
        engine.arrive(100, 20)
    before = measured(world.round())
    engine.restart(world.now_s - 1)
    after = measured(world.round())
    assert before.rate_rps == pytest.approx(20)
    assert after.rate_rps == pytest.approx(10)  # 300 in 30 s: what was lost in flight had come


def test_stamps_from_the_future_are_refused() -> None:
    world = steady()

    def ahead(now_s: float) -> dict[str, EngineSample | str]:
        return {name: look(engine, now_s + 600) for name, engine in world.pods.items()}

    for _ in range(3):
        answer = world.round(ahead(world.now_s))
    assert stale(answer).reason == "chat-0: stamped 600 s in the future (and 1 more)"
    # and they leave nothing behind
    assert stale(world.rounds(1, {})).reason == ONE_SAMPLE
    assert measured(world.rounds(3, dict.fromkeys(world.pods, 75))).rate_rps == pytest.approx(10)


def test_stamps_from_the_past_are_refused() -> None:
    world = steady()
    for _ in range(4):
        answer = world.round({name: look(engine, BEGIN_S) for name, engine in world.pods.items()})
    assert "chat-0: stamped" in stale(answer).reason


def test_stamps_that_do_not_advance_are_passed_over() -> None:
    world = steady(pods=1)
    old = look(world.pods["chat-0"], world.now_s - INTERVAL_S)
    assert measured(world.round({"chat-0": old})).rate_rps == pytest.approx(5)
    assert measured(world.round({"chat-0": old})).rate_rps == pytest.approx(5)
    assert isinstance(world.round({"chat-0": old}), StaleTraffic)


def test_the_clock_jumps_ahead() -> None:
    world = steady()
    world.now_s += 3600
    assert stale(world.rounds(1, dict.fromkeys(world.pods, 75))).reason == ONE_SAMPLE
    for _ in range(4):
        answer = measured(world.rounds(1, dict.fromkeys(world.pods, 75)))
        assert answer.rate_rps == pytest.approx(10)


def test_the_clock_goes_back() -> None:
    world = steady()
    world.now_s -= 3600
    assert stale(world.rounds(1, dict.fromkeys(world.pods, 75))).reason == ONE_SAMPLE
    for _ in range(4):
        answer = measured(world.rounds(1, dict.fromkeys(world.pods, 75)))
        assert answer.rate_rps == pytest.approx(10)
    assert answer.complete


# Pods that are missing, come and go.


def test_a_missing_pod_is_taken_to_get_as_much_as_the_others() -> None:
    world = steady(pods=3)
    gone: dict[str, EngineSample | str] = {"chat-1": "timed out"}
    load = dict.fromkeys(world.pods, 150)
    answer = measured(world.rounds(6, load, lambda _: gone))
    assert answer.rate_rps == pytest.approx(30)
    assert (answer.pods, answer.expected_pods, answer.complete) == (2, 3, False)
    assert answer.note == "pods that do not answer: 1; chat-1: timed out"


def test_a_missing_pod_never_lowers_the_rate() -> None:
    world = steady(pods=3)
    answer = measured(world.rounds(2, {}, lambda _: {"chat-1": "timed out"}))
    assert answer.complete  # not missing yet: the others do get less
    for _ in range(20):
        later = measured(world.rounds(1, {}, lambda _: {"chat-1": "timed out"}))
        assert later.rate_rps == answer.rate_rps
        assert not later.complete
    answer = measured(world.rounds(6, {}))  # it answers again: now the zero is real
    assert (answer.rate_rps, answer.complete) == (0, True)


def test_less_than_half_of_the_pods_are_no_measurement() -> None:
    world = steady(pods=3)
    answer = stale(world.rounds(6, {}, lambda _: {"chat-1": "timed out", "chat-2": "HTTP 500"}))
    assert answer.reason == "only 1 of 3 pods answer: chat-1: timed out (and 1 more)"


def test_traffic_that_moves_to_new_pods_stays_the_same() -> None:
    world = steady(pods=2, count=60)
    world.pods["chat-2"] = Engine(started_s=world.now_s)
    world.pods["chat-3"] = Engine(started_s=world.now_s)
    world.round()
    first = measured(world.rounds(1, dict.fromkeys(world.pods, 30)))
    for _ in range(6):
        answer = measured(world.rounds(1, dict.fromkeys(world.pods, 30)))
        assert 8 * 0.7 <= answer.rate_rps <= 8 * 1.01  # the round before held no request at all
    assert answer.rate_rps == pytest.approx(8)
    assert answer.complete
    assert first.expected_pods == 4


def test_a_new_pod_that_does_not_answer_yet_is_not_missing() -> None:
    world = steady(pods=1)
    load = {"chat-0": 75}
    world.pods["chat-1"] = Engine()
    for _ in range(2):
        answer = measured(world.rounds(1, load, lambda _: {"chat-1": "connection refused"}))
        assert answer.rate_rps == pytest.approx(5)
        assert not answer.complete
        assert answer.note == "new pods: 1"
    answer = measured(world.rounds(2, load, lambda _: {"chat-1": "connection refused"}))
    assert answer.rate_rps == pytest.approx(10)  # not new any more: missing
    assert answer.note == "pods that do not answer: 1; chat-1: connection refused"


def test_pods_that_go_take_their_requests_in_flight_with_them() -> None:
    world = steady(pods=2, count=75)
    for _ in range(500):
        world.pods["chat-1"].arrive(100, 20)
    before = measured(world.rounds(1, {"chat-0": 75}))
    assert before.rate_rps > 10
    del world.pods["chat-1"]
    for _ in range(6):
        answer = measured(world.rounds(1, {"chat-0": 75}))
        assert 5 * 0.99 <= answer.rate_rps <= before.rate_rps
        before = answer
    assert answer.rate_rps == pytest.approx(5)


def test_traffic_of_pods_that_go_moves_to_the_others() -> None:
    world = steady(pods=2, count=75)
    del world.pods["chat-1"]
    for _ in range(6):
        answer = measured(world.rounds(1, {"chat-0": 150}))
        assert answer.rate_rps == pytest.approx(10)


def test_a_pod_that_was_away_begins_anew() -> None:
    world = steady(pods=2)
    away: dict[str, EngineSample | str] = {"chat-1": "timed out"}
    world.rounds(10, dict.fromkeys(world.pods, 75), lambda _: away)
    for _ in range(6):
        answer = measured(world.rounds(1, dict.fromkeys(world.pods, 75)))
        assert answer.rate_rps == pytest.approx(10)
    assert answer.complete


def test_a_window_shorter_than_the_interval_is_refused() -> None:
    for interval_s, window_s in ((60, 15), (0, 60), (15, float("inf")), (float("nan"), 60)):
        with pytest.raises(InputError, match="interval <= window"):
            TrafficEstimator(interval_s=interval_s, window_s=window_s)


def test_a_service_of_many_pods_forgets_those_that_went() -> None:
    estimator = TrafficEstimator(interval_s=INTERVAL_S, window_s=WINDOW_S)
    sample = look(Engine(), BEGIN_S)
    for number in range(100):
        now_s = BEGIN_S + number * INTERVAL_S
        names = [f"pod-{number // 10}-{i}" for i in range(5)]
        estimator.update(now_s, {name: replace(sample, t_s=now_s) for name in names})
    assert len(estimator._pods) == 5
