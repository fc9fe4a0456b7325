"""Traffic from Prometheus: its answers over real HTTP, in the shapes a real server gives, and every way to fail."""

import asyncio
import json
import math
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.errors import InputError
from telemetry.sources.prometheus import AT_ONCE, PrometheusTraffic, all_read, checked_selector
from telemetry.traffic import MeasuredTraffic, StaleTraffic, Traffic
from tests.telemetry.loopback import Answer, say, serving
from tests.telemetry.test_scrape import free_port

NOW_S = 1_700_000_000.0
NEEDED = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:request_success_total")


@dataclass
class Pod:
    """What the server says of one pod."""

    stamp: float = NOW_S - 5
    before: bool = True
    finished: float | str = 4.0
    running: float | str = 0.0
    waiting: float | str = 0.0
    first: float | str | None = None
    preempted: float | str | None = 0.0
    restarts: float = 0
    prompts: dict[str, float] = field(default_factory=lambda: {"100.0": 0.0, "200.0": 40.0, "+Inf": 40.0})
    prompt_sum: float | str = 40 * 150.0
    outputs: dict[str, float] = field(default_factory=lambda: {"10.0": 0.0, "50.0": 40.0, "+Inf": 40.0})
    output_sum: float | str = 40 * 20.0


@dataclass
class Server:
    """A Prometheus of pods; it answers the three questions that are asked."""

    pods: dict[str, Pod] = field(default_factory=lambda: {"a": Pod(), "b": Pod()})
    now_s: float = NOW_S
    present: tuple[str, ...] = NEEDED
    asked: list[dict[str, str]] = field(default_factory=list)

    def __call__(self, request: BaseHTTPRequestHandler, form: dict[str, str]) -> None:
        self.asked.append(form)
        query = form["query"]
        if "__name__" in query:
            rows = [({"__name__": name}, "2") for name in self.present]
        elif "timestamp(" in query:
            rows = self._rates()
        else:
            rows = self._sizes(total="increase" not in query)
        result = [{"metric": labels, "value": [self.now_s, value]} for labels, value in rows]
        body = {"status": "success", "data": {"resultType": "vector", "result": result}}
        say(json.dumps(body), Content_Type="application/json")(request, form)

    def _rates(self) -> list[tuple[dict[str, str], str]]:
        rows: list[tuple[dict[str, str], str]] = [({"part": "now"}, str(self.now_s))]
        for name, pod in self.pods.items():
            labels = {"job": "chat", "namespace": "n", "pod": name, "instance": f"{name}:8000"}
            parts: dict[str, float | str | None] = {
                "stamp": pod.stamp if pod.stamp > 0 else None,
                "before": 3 if pod.before else None,
                "finished": pod.finished,
                "running": pod.running,
                "waiting": pod.waiting,
                "first": pod.first,
                "preempted": pod.preempted,
                "restarts": pod.restarts,
            }
            rows += [
                ({**labels, "part": part}, str(value))
                for part, value in parts.items()
                if value is not None and value != ""
            ]
        return rows

    def _sizes(self, *, total: bool) -> list[tuple[dict[str, str], str]]:
        rows: list[tuple[dict[str, str], str]] = [({"part": "now"}, str(self.now_s))]
        for name, pod in self.pods.items():
            labels = {"job": "chat", "namespace": "n", "pod": name, "instance": f"{name}:8000"}
            rows.append(({**labels, "part": "requests"}, str(pod.prompts["+Inf"])))
            for part, buckets, sizes in (
                ("prompt", pod.prompts, pod.prompt_sum),
                ("output", pod.outputs, pod.output_sum),
            ):
                rows += [({**labels, "part": part, "le": le}, str(count)) for le, count in buckets.items()]
                rows.append(({**labels, "part": f"{part}_sum"}, str(sizes)))
        return rows if not total or self.now_s > 0 else []


def reader(url: str, **options: Any) -> PrometheusTraffic:
    return PrometheusTraffic(**{"url": url, "selector": 'namespace="n"', "interval_s": 15.0, **options})


def ask(server: Answer, now_s: float = NOW_S, expected_pods: int | None = 2, **options: Any) -> Traffic:
    with serving(server) as url:
        return asyncio.run(reader(url, **options).read(now_s=now_s, expected_pods=expected_pods))


def measured(answer: Traffic) -> MeasuredTraffic:
    assert isinstance(answer, MeasuredTraffic), answer
    return answer


def stale(answer: Traffic) -> StaleTraffic:
    assert isinstance(answer, StaleTraffic), answer
    assert "\n" not in answer.reason
    assert len(answer.reason) < 400
    return answer


def told(answer: Traffic) -> str:
    """Return the reason without the address it begins with."""
    return stale(answer).reason.partition("/api/v1/query: ")[2]


def test_a_measurement() -> None:
    server = Server()
    answer = measured(ask(server))
    assert answer.rate_rps == pytest.approx(8)
    assert (answer.pods, answer.expected_pods, answer.complete, answer.note) == (2, 2, True, "")
    assert answer.sampled_at_s == NOW_S - 5
    assert answer.series == NEEDED
    assert len(answer.buckets) == 1
    assert answer.buckets[0].input_tokens == pytest.approx(150)
    assert answer.buckets[0].output_tokens == pytest.approx(20)
    assert server.asked[0].keys() == {"query", "timeout"}  # at the server's own time
    assert server.asked[1]["time"] == f"{NOW_S:.3f}"  # and the rest of that very time
    assert all('namespace="n"' in form["query"] for form in server.asked)


def test_arrivals_are_demand_not_completions() -> None:
    pods = {"a": Pod(finished=5, waiting=10, running=1), "b": Pod(finished=5, waiting=-20, first=1)}
    assert measured(ask(Server(pods))).rate_rps == pytest.approx(16)  # a drain is nobody's negative demand


def test_aborted_requests_count_once_they_had_a_token() -> None:
    assert (
        measured(
            ask(Server({"a": Pod(finished=4, first=9, waiting=1, preempted=2)}), expected_pods=1)
        ).rate_rps
        == 8
    )
    assert measured(ask(Server({"a": Pod(finished=4, first=3, waiting=1)}), expected_pods=1)).rate_rps == 5
    assert (
        measured(ask(Server({"a": Pod(finished=4, first="NaN", waiting=1)}), expected_pods=1)).rate_rps == 5
    )


def test_a_restart_makes_no_negative_arrivals_and_nothing_falls() -> None:
    with serving(server := Server()) as url:
        service = reader(url)
        assert measured(asyncio.run(service.read(now_s=NOW_S, expected_pods=2))).rate_rps == 8
        server.pods["a"] = Pod(finished=3, running=-7, waiting=-50, restarts=1)
        answer = measured(asyncio.run(service.read(now_s=NOW_S, expected_pods=2)))
        assert (answer.rate_rps, answer.complete, answer.note) == (8, False, "a pod restarted")
        server.pods["a"] = Pod(finished=9, running=-7, waiting=-50, restarts=1)
        assert measured(asyncio.run(service.read(now_s=NOW_S, expected_pods=2))).rate_rps == 13


def test_no_requests_are_a_real_zero_with_the_last_sizes() -> None:
    with serving(server := Server()) as url:
        service = reader(url)
        asyncio.run(service.read(now_s=NOW_S, expected_pods=2))
        for pod in server.pods.values():
            pod.finished = 0
            pod.prompts = dict.fromkeys(pod.prompts, 0.0)
            pod.outputs = dict.fromkeys(pod.outputs, 0.0)
            pod.prompt_sum = pod.output_sum = 0
        answer = measured(asyncio.run(service.read(now_s=NOW_S, expected_pods=2)))
    assert (answer.rate_rps, answer.complete) == (0, True)
    assert len(answer.buckets) == 1
    bucket = answer.buckets[0]
    assert (bucket.rate_rps, bucket.input_tokens, bucket.output_tokens) == pytest.approx((0, 150, 20))


@dataclass
class SplitServer(Server):
    """A Prometheus that knows by a label which pods prefill and which decode."""

    def _rates(self) -> list[tuple[dict[str, str], str]]:
        return [row for row in Server._rates(self) if row[0].get("pod", "p").startswith("p")]

    def _sizes(self, *, total: bool) -> list[tuple[dict[str, str], str]]:
        rows = []
        for labels, value in Server._sizes(self, total=total):
            decode = labels.get("pod", "p").startswith("d")
            if labels["part"] == "requests" and decode:
                rows.append(({**labels, "part": "output_requests"}, value))
            elif labels["part"] == "now" or labels["part"].startswith("output") is decode:
                rows.append((labels, value))
        return rows


def test_prefill_and_decode_pods_are_told_apart_by_selectors() -> None:
    once = {"1.0": 40.0, "+Inf": 40.0}
    server = SplitServer(
        {"p0": Pod(outputs=once, output_sum=40.0), "d0": Pod(finished=2.0), "d1": Pod(finished=2.0)}
    )
    selectors: dict[str, Any] = {"selector": 'role="p"', "output_selector": 'role="d"'}
    answer = measured(ask(server, expected_pods=1, **selectors))
    assert answer.rate_rps == pytest.approx(4)
    assert answer.complete
    assert [(b.input_tokens, b.output_tokens) for b in answer.buckets] == [pytest.approx((150, 20))]
    rates, sizes = (form["query"] for form in server.asked)
    assert 'role="d"' not in rates
    assert 'increase(vllm:request_prompt_tokens_bucket{role="p"}' in sizes
    assert 'increase(vllm:request_generation_tokens_bucket{role="d"}' in sizes
    assert 'vllm:request_generation_tokens_bucket{role="p"}' not in sizes


def test_without_decode_pods_the_output_sizes_are_not_known() -> None:
    server = SplitServer({"p0": Pod()})
    selectors: dict[str, Any] = {"selector": 'role="p"', "output_selector": 'role="d"'}
    answer = stale(ask(server, expected_pods=1, **selectors))
    assert answer.reason.startswith("no request has finished yet")


def test_traffic_without_any_sizes_is_not_measured() -> None:
    empty = {"100.0": 0.0, "+Inf": 0.0}
    pods = {"a": Pod(prompts=empty, outputs=empty, prompt_sum=0, output_sum=0)}
    assert stale(ask(Server(pods), expected_pods=1)).reason.startswith("no request has finished yet")


def test_engines_with_other_edges_are_added_and_broken_ones_left_out() -> None:
    pods = {
        "a": Pod(),
        "b": Pod(prompts={"100.0": 0.0, "200.0": 0.0, "500.0": 40.0, "+Inf": 40.0}, prompt_sum=40 * 350.0),
        "c": Pod(prompts={"100.0": 7.0, "200.0": 3.0, "+Inf": 40.0}),
        "d": Pod(prompt_sum="NaN"),
    }
    answer = measured(ask(Server(pods), expected_pods=4))
    mean = sum(b.rate_rps * (b.input_tokens or 0) for b in answer.buckets) / answer.rate_rps
    assert mean == pytest.approx(250)


def test_edges_that_fall_by_rounding_alone_are_not_broken() -> None:
    pods = {"a": Pod(prompts={"100.0": 1.0, "200.0": 40.00000001, "500.0": 40.0, "+Inf": 40.0})}
    answer = measured(ask(Server(pods), expected_pods=1))
    assert len(answer.buckets) == 2


# Pods that are missing, come and go.


def test_a_missing_pod_is_taken_to_get_as_much_as_the_others() -> None:
    answer = measured(ask(Server(), expected_pods=3))
    assert answer.rate_rps == pytest.approx(12)
    assert (answer.pods, answer.expected_pods, answer.complete) == (2, 3, False)
    assert answer.note == "pods that do not answer: 1"


def test_a_missing_pod_never_lowers_the_rate() -> None:
    with serving(server := Server()) as url:
        service = reader(url)
        asyncio.run(service.read(now_s=NOW_S, expected_pods=2))
        server.pods = {"a": Pod(finished=1)}
        answer = measured(asyncio.run(service.read(now_s=NOW_S, expected_pods=2)))
    assert (answer.rate_rps, answer.complete) == (8, False)


def test_less_than_half_of_the_pods_are_no_measurement() -> None:
    assert told(ask(Server(), expected_pods=5)) == "only 2 of 5 pods answer"


def test_a_pod_that_vanished_keeps_its_share_of_the_window() -> None:
    pods = {"a": Pod(), "b": Pod(stamp=0, finished=2)}
    answer = measured(ask(Server(pods), expected_pods=1))
    assert (answer.rate_rps, answer.complete) == (6, True)  # one is expected: b was removed
    answer = measured(ask(Server(pods), expected_pods=None))
    assert (answer.rate_rps, answer.complete) == (6, False)  # nobody says whether it was
    assert answer.note == "pods that vanished: 1"


def test_a_pod_that_vanished_is_not_counted_beside_its_stand_in() -> None:
    pods = {"a": Pod(), "b": Pod(), "c": Pod(stamp=0)}
    assert measured(ask(Server(pods), expected_pods=3)).rate_rps == pytest.approx(12)


def test_a_new_pod_is_not_missing() -> None:
    pods = {"a": Pod(), "b": Pod(before=False, finished="", running="", waiting="")}
    answer = measured(ask(Server(pods), expected_pods=2))
    assert (answer.rate_rps, answer.complete, answer.note) == (4, False, "new pods: 1")


def test_a_window_that_is_not_covered_cannot_lower_a_plan() -> None:
    answer = measured(ask(Server({"a": Pod(before=False)}), expected_pods=1))
    assert (answer.rate_rps, answer.complete) == (4, False)


# Faults (R8): hold, never scale down.


def test_old_samples() -> None:
    pods = {name: Pod(stamp=NOW_S - 31) for name in "ab"}
    answer = stale(ask(Server(pods)))
    assert told(answer) == "the newest of 2 pods' samples is 31 s old"
    assert answer.age_s == 31
    assert measured(ask(Server({name: Pod(stamp=NOW_S - 29) for name in "ab"}))).complete


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
@pytest.mark.parametrize("part", ["finished", "running", "waiting"])
def test_values_that_mean_nothing_are_missing_not_zero(part: str, value: str) -> None:
    pods = {name: Pod() for name in "ab"}
    for pod in pods.values():
        setattr(pod, part, value)
    assert told(ask(Server(pods))) == "no pod has two sound samples in the window"
    pods["a"] = Pod()
    answer = measured(ask(Server(pods)))
    assert (answer.rate_rps, answer.complete) == (8, False)


def test_missing_series_are_named() -> None:
    pods = {name: Pod(finished="") for name in "ab"}
    answer = stale(ask(Server(pods, present=NEEDED[:2])))
    assert answer.missing == ("vllm:request_success_total",)
    assert told(answer) == 'no vllm:request_success_total with namespace="n"'


def test_an_empty_answer_is_not_zero() -> None:
    answer = stale(ask(Server({}, present=()), expected_pods=None))
    assert answer.missing == NEEDED
    assert answer.age_s is None


@pytest.mark.parametrize(("ahead_s", "where"), [(600, "ahead of"), (-600, "behind")])
def test_a_server_of_another_time(ahead_s: float, where: str) -> None:
    server = Server({name: Pod(stamp=NOW_S + ahead_s) for name in "ab"}, now_s=NOW_S + ahead_s)
    assert told(ask(server)) == f"its clock is 600 s {where} ours"


def test_the_age_is_told_when_the_server_is_down() -> None:
    with serving(Server()) as url:
        service = reader(url)
        measured(asyncio.run(service.read(now_s=NOW_S, expected_pods=2)))
    answer = asyncio.run(service.read(now_s=NOW_S + 100))
    assert told(answer) == "Connection refused"
    assert stale(answer).age_s == 105


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (say("secret", 500), "HTTP 500"),
        (say("secret", 403), "HTTP 403"),
        (say('{"status":"error","errorType":"bad_data","error":"secret"}', 400), "HTTP 400 (bad_data)"),
        (say('{"status":"error","errorType":"secret","error":"secret"}', 422), "HTTP 422"),
        (say('{"status":"error","errorType":"timeout"}'), "HTTP 200 (timeout)"),
        (say("<html>secret</html>"), "the answer cannot be read: it is not JSON"),
        (say("[" * 100_000), "the answer cannot be read: it is not JSON"),
        (say("null"), "HTTP 200"),
        (say('{"status":"success"}'), "the answer cannot be read: it holds no vector"),
        (
            say('{"status":"success","data":{"resultType":"matrix","result":[]}}'),
            "the answer cannot be read: it holds no vector",
        ),
        (
            say('{"status":"success","data":{"resultType":"vector","result":[]}}'),
            "the answer cannot be read: it does not say of what time it is",
        ),
        (
            say('{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,2]}]}}'),
            "the answer cannot be read: an element is not a labelled value",
        ),
        (
            say(
                '{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"x"]}]}}'
            ),
            "the answer cannot be read: a value is not a number",
        ),
        (say("", 307, Location="http://127.0.0.1:1/"), "HTTP 307: a redirect, which is not followed"),
        (say("x" * 5_000_000), "more than 4 MiB"),
    ],
)
def test_answers_that_are_none(answer: Answer, reason: str) -> None:
    found = told(ask(answer))
    assert found.startswith(reason)
    assert "secret" not in found


def test_a_server_that_does_not_answer() -> None:
    def silent(_: BaseHTTPRequestHandler, __: dict[str, str]) -> None:
        time.sleep(2)

    assert told(ask(silent, timeout_s=0.3)) == "no answer within 0.3 s"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["metric", "value", "part", "le", "pod"]), inner, max_size=3)
    ),
    max_leaves=8,
)
ELEMENT = st.fixed_dictionaries(
    {
        "metric": st.dictionaries(
            st.sampled_from(["part", "pod", "le", "job"]),
            st.sampled_from(["now", "stamp", "finished", "prompt", "+Inf", "NaN", "5"]) | st.text(max_size=4),
        ),
        "value": st.tuples(
            st.floats(), st.sampled_from(["NaN", "-1", "0", "1", "1e308", "+Inf"]) | st.text(max_size=4)
        ),
    }
)


def test_no_answer_does_more_than_be_refused() -> None:
    given_now: list[list[Any]] = []

    def answer(request: BaseHTTPRequestHandler, form: dict[str, str]) -> None:
        now = {"metric": {"part": "now"}, "value": [NOW_S, str(NOW_S)]}
        result = [now, *(given_now.pop(0) if given_now else [])]
        body = {"status": "success", "data": {"resultType": "vector", "result": result}}
        say(json.dumps(body))(request, form)

    with serving(answer) as url:

        @settings(max_examples=60)
        @given(results=st.lists(st.lists(ELEMENT | JSON, max_size=8), min_size=3, max_size=3))
        def try_it(results: list[list[Any]]) -> None:
            given_now[:] = results
            found = asyncio.run(reader(url).read(now_s=NOW_S, expected_pods=2))
            assert isinstance(found, StaleTraffic) or 0 <= found.rate_rps < math.inf

        try_it()


def test_many_services_at_once() -> None:
    with serving(Server()) as url:
        services = {f"chat-{i}": reader(url) for i in range(20)}
        services["down"] = reader(f"http://127.0.0.1:{free_port()}")
        answers = all_read(services, now_s=NOW_S, expected_pods=dict.fromkeys(services, 2))
    assert list(answers) == list(services)
    assert told(answers.pop("down")) == "Connection refused"
    assert {measured(answer).rate_rps for answer in answers.values()} == {8}


def test_a_server_that_is_down_is_not_asked_for_every_service() -> None:
    asked = []

    def silent(_: BaseHTTPRequestHandler, form: dict[str, str]) -> None:
        asked.append(form)
        time.sleep(1)

    with serving(silent) as url:
        services = {i: reader(url, timeout_s=0.3) for i in range(3 * AT_ONCE)}
        answers = all_read(services, now_s=NOW_S, expected_pods={})
    assert {told(answer) for answer in answers.values()} == {"no answer within 0.3 s"}
    assert len(asked) <= AT_ONCE


# Selectors.


@pytest.mark.parametrize(
    ("selector", "canonical"),
    [
        ("", ""),
        ('model_name="m"', 'model_name="m"'),
        (' a = "x" , b=~"y|z.*" , ', 'a="x",b=~"y|z.*"'),
        ('{a!="x",b!~""}', 'a!="x",b!~""'),
        (r'a="q\"uo\\te\n"', r'a="q\"uo\\te\n"'),
        ('a="}) or vector(1) #"', 'a="}) or vector(1) #"'),  # inside quotes it is a value
        ('a="meta-llama/Llama 3 ü"', 'a="meta-llama/Llama 3 ü"'),
    ],
)
def test_selectors(selector: str, canonical: str) -> None:
    assert checked_selector(selector) == canonical


@pytest.mark.parametrize(
    "selector",
    [
        'a="x"} or up{b="y"',
        'a="x"}) or vector(0',
        "a=x",
        "a",
        "a='x'",
        "a=`x`",
        'a="x" b="y"',
        'a="x",,b="y"',
        ",",
        'a="x',
        'a="x\\"',
        'a="x\ny"',
        'a="\x00"',
        'a="\\d"',
        '__name__="up"',
        '{__name__=~".*"}',
        'a=="x"',
        "1",
        'a="x"[5m]',
        'a="x"} offset 1h #',
        "{{}}",
        'ä="x"',
        'a="' + "x" * 1024 + '"',
    ],
)
def test_selectors_that_would_change_the_query_are_refused(selector: str) -> None:
    with pytest.raises(InputError) as caught:
        checked_selector(selector)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet='ab="~!{},\\ n#()[]', max_size=20))
def test_what_is_accepted_stays_inside_its_braces(selector: str) -> None:
    try:
        accepted = checked_selector(selector)
    except InputError:
        return
    assert checked_selector(accepted) == accepted
    outside = []
    quoted = escaped = False
    for character in accepted:
        if quoted:
            quoted = escaped or character != '"'
            escaped = not escaped and character == "\\"
        else:
            quoted = character == '"'
            outside.append(character)
    assert not quoted
    assert not set(outside) & set("{}()[]# \\")


def test_without_a_selector_the_model_picks_the_engines() -> None:
    server = Server()
    measured(ask(server, selector="", model_name='meta "x"\\'))
    assert 'model_name="meta \\"x\\"\\\\"' in server.asked[0]["query"]
    with pytest.raises(InputError, match="an empty selector"):
        reader("http://127.0.0.1:1", selector=" ")
    with pytest.raises(InputError, match="is not understood"):
        reader("http://127.0.0.1:1", selector="", model_name="m\x00")
    with pytest.raises(InputError, match="one of vllm, sglang"):
        reader("http://127.0.0.1:1", engine="tgi")
