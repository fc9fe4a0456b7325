"""The queries against a real Prometheus server: recorded series at fixed times, and engines it scrapes itself.

It runs where ``prometheus`` and ``promtool`` are on PATH (on Debian both are in the package prometheus).
"""

import asyncio
import math
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from telemetry.sources.prometheus import PrometheusTraffic, checked_selector
from telemetry.sources.prometheus_access import PrometheusAccess, PrometheusServers
from telemetry.sources.trust import Trust
from telemetry.traffic import MeasuredTraffic, StaleTraffic, Traffic
from tests.telemetry.certificates import made
from tests.telemetry.engine_pages import Engine
from tests.telemetry.loopback import say, serving

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not on PATH",
)

BEGIN_S = 1_700_000_000
INTERVAL_S = 15
ROUNDS = 40
END_S = BEGIN_S + (ROUNDS - 1) * INTERVAL_S
READY_WITHIN_S = 60


@dataclass
class Recording:
    """Pages as Prometheus would have scraped them, by namespace."""

    samples: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def add(self, namespace: str, pod: str, number: int, page: str) -> None:
        target = f'job="chat",namespace="{namespace}",pod="{pod}",instance="{pod}:8000"'
        for line in page.splitlines():
            if not line or line.startswith("#"):
                continue
            head, value = line.rsplit(" ", 1)
            name, _, labels = head.partition("{")
            labels = f"{target},{labels}" if labels else f"{target}}}"
            series = self.samples.setdefault(name, {}).setdefault(f"{name}{{{labels}", [])
            series.append(f"{value} {BEGIN_S + number * INTERVAL_S}")

    def text(self) -> str:
        lines = []
        for name, children in self.samples.items():
            lines.append(f"# TYPE {name} unknown")
            lines += [f"{labels} {sample}" for labels, samples in children.items() for sample in samples]
        return "\n".join([*lines, "# EOF", ""])


@dataclass
class Scene:
    """Pods of one namespace: what happens before each round, and what their pages then show."""

    pods: dict[str, Engine]
    before: Callable[[int, dict[str, Engine]], None]
    page: Callable[[int, str, Engine], str] = lambda _, __, engine: engine.vllm()


def load(
    arrivals: int, served: int | None = None, prompt: int = 100, output: int = 20
) -> Callable[..., None]:
    def act(_: int, pods: dict[str, Engine]) -> None:
        for engine in pods.values():
            for _ in range(arrivals):
                engine.arrive(prompt, output)
            if served is None:
                engine.serve_all()
            for _ in range(served or 0):
                engine.first_token()
                engine.finish()

    return act


def restarted(number: int, pods: dict[str, Engine]) -> None:
    """Restart ``a`` 45 s before the end with a queue; ``b`` lives on."""
    load(60, 30)(number, pods)
    if number == ROUNDS - 4:
        pods["a"].restart(0)


def aborted(_: int, pods: dict[str, Engine]) -> None:
    """Of 60 arrivals, 20 are aborted after their first token."""
    for engine in pods.values():
        for _ in range(60):
            engine.arrive(100, 20)
        for number in range(60):
            engine.first_token()
            (engine.abort if number % 3 == 0 else engine.finish)()


def mixed(_: int, pods: dict[str, Engine]) -> None:
    for engine in pods.values():
        for prompt, output in ((30, 150), (300, 15), (3000, 150), (4000, 15)):
            engine.arrive(prompt, output)
        engine.serve_all()


def ranks(_: int, __: str, engine: Engine) -> str:
    """Show an SGLang whose two tensor ranks both tell the queue, with priorities."""
    page = engine.sglang()
    gauges = [line for line in page.splitlines() if line.startswith("sglang:num_")]
    gauges = [line for line in gauges if "requests_total" not in line]
    more = [line.replace('tp_rank="0"', 'tp_rank="1"') for line in gauges]
    parts = [line.replace("{", '{priority="3",', 1) for line in gauges]
    return "\n".join([page, *more, *parts])


def with_value(name: str, value: str) -> Callable[[int, str, Engine], str]:
    def page(number: int, _: str, engine: Engine) -> str:
        lines = engine.vllm().splitlines()
        if number >= ROUNDS - 3:
            lines = [f"{line.rsplit(' ', 1)[0]} {value}" if line.startswith(name) else line for line in lines]
        return "\n".join(lines)

    return page


def without(name: str) -> Callable[[int, str, Engine], str]:
    return lambda _, __, engine: "\n".join(
        line for line in engine.vllm().splitlines() if not line.startswith(name)
    )


def late(number: int, pod: str, engine: Engine) -> str:
    """Show pod ``b`` only in the last five rounds."""
    return engine.vllm() if pod == "a" or number >= ROUNDS - 5 else ""


def two(**options: Any) -> dict[str, Engine]:
    return {"a": Engine(**options), "b": Engine(**options)}


SCENES = {
    "steady": Scene(two(), load(60)),
    "overload": Scene(two(places=50), load(150, 60)),
    "drain": Scene({"a": Engine()}, lambda number, pods: load(2000 if number == 0 else 0, 40)(number, pods)),
    "idle": Scene(two(), lambda number, pods: load(60 if number < 5 else 0)(number, pods)),
    "restart": Scene(two(places=10), restarted),
    "aborts": Scene({"a": Engine(places=10)}, aborted),
    "mixed": Scene({"a": Engine(), "b": Engine(edges=(1.0, 50.0, 500.0))}, mixed),
    "sglang": Scene({"a": Engine(places=50)}, load(150, 60), ranks),
    "sglang-totals": Scene({"a": Engine()}, load(60), lambda _, __, engine: engine.sglang(histograms=False)),
    "late": Scene(two(), load(60), late),
    "nan": Scene(two(), load(60), with_value("vllm:num_requests_running", "NaN")),
    "negative": Scene(two(), load(60), with_value("vllm:num_requests_waiting", "-4")),
    "blank": Scene(two(), load(60), with_value("vllm:request_success_total", "9223372036854775794")),
    "no-success": Scene(two(), load(60), without("vllm:request_success_total")),
}


@contextmanager
def running(folder: Path, config: str, *, web: str = "", **ready: Any) -> Iterator[str]:
    """Run a server on loopback over what is in ``folder/tsdb``.

    ``web``: who is let in, over TLS; ``ready``: with what it is asked whether it is ready.
    """
    (folder / "prometheus.yml").write_text(config)
    (folder / "web.yml").write_text(web)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder / "log").open("w")
    server = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--storage.tsdb.retention.time=100y",
            f"--web.config.file={folder / 'web.yml'}",
        ],
        stdout=log,
        stderr=log,
    )
    url = f"http{'s' if web else ''}://127.0.0.1:{port}"
    try:
        until_s = time.monotonic() + READY_WITHIN_S
        while not _ready(url, **ready):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until_s, (folder / "log").read_text()
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def _ready(url: str, **options: Any) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", trust_env=False, **options).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve all scenes."""
    folder = tmp_path_factory.mktemp("prometheus")
    recording = Recording()
    for namespace, scene in SCENES.items():
        for number in range(ROUNDS):
            scene.before(number, scene.pods)
            for pod, engine in scene.pods.items():
                recording.add(namespace, pod, number, scene.page(number, pod, engine))
    (folder / "recording.txt").write_text(recording.text())
    made = subprocess.run(
        ["promtool", "tsdb", "create-blocks-from", "openmetrics", folder / "recording.txt", folder / "tsdb"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    with running(folder, "global: {scrape_interval: 15s}\n") as url:
        yield url


def ask(
    url: str, namespace: str, *, at_s: float = END_S, expected_pods: int | None = None, **options: Any
) -> Traffic:
    service = PrometheusTraffic(
        url=url, selector=f'namespace="{namespace}"', interval_s=INTERVAL_S, **options
    )
    return asyncio.run(service.read(now_s=at_s, at_s=at_s, expected_pods=expected_pods))


def measured(answer: Traffic) -> MeasuredTraffic:
    assert isinstance(answer, MeasuredTraffic), answer
    return answer


def stale(answer: Traffic) -> StaleTraffic:
    assert isinstance(answer, StaleTraffic), answer
    return answer


def test_steady_traffic(recorded: str) -> None:
    answer = measured(ask(recorded, "steady", expected_pods=2))
    assert answer.rate_rps == pytest.approx(8)
    assert (answer.pods, answer.complete, answer.note) == (2, True, "")
    assert answer.sampled_at_s == END_S
    assert len(answer.buckets) == 1
    assert answer.buckets[0].input_tokens == pytest.approx(100)
    assert answer.buckets[0].output_tokens == pytest.approx(20)


def test_arrivals_not_completions(recorded: str) -> None:
    answer = measured(ask(recorded, "overload"))
    assert answer.rate_rps == pytest.approx(20)
    assert answer.complete


def test_a_drain_is_no_demand(recorded: str) -> None:
    answer = measured(ask(recorded, "drain"))
    assert answer.rate_rps == pytest.approx(0, abs=1e-6)
    assert answer.complete


def test_no_requests_are_zero_with_sizes_of_before(recorded: str) -> None:
    answer = measured(ask(recorded, "idle"))
    assert answer.rate_rps == 0
    assert answer.complete
    assert answer.buckets[0].input_tokens == pytest.approx(100)


def test_a_restart(recorded: str) -> None:
    answer = measured(ask(recorded, "restart"))
    # 2 x 4/s arrive; of the restarted pod only the 2/s that it finished can be seen (7 of 8 steps)
    assert 4 + 2 * 7 / 8 <= answer.rate_rps <= 8 * 1.01
    assert (answer.complete, answer.note) == (False, "a pod restarted")


def test_aborted_requests(recorded: str) -> None:
    assert measured(ask(recorded, "aborts")).rate_rps == pytest.approx(4)


def test_sizes_of_engines_with_other_edges(recorded: str) -> None:
    answer = measured(ask(recorded, "mixed"))
    assert len(answer.buckets) <= 16
    prompt = sum(b.rate_rps * (b.input_tokens or 0) for b in answer.buckets) / answer.rate_rps
    output = sum(b.rate_rps * (b.output_tokens or 0) for b in answer.buckets) / answer.rate_rps
    assert prompt == pytest.approx(7330 / 4)
    assert output == pytest.approx(330 / 4)


def test_sglang_counts_ranks_and_priorities_once(recorded: str) -> None:
    answer = measured(ask(recorded, "sglang", engine="sglang"))
    assert answer.rate_rps == pytest.approx(10)
    assert answer.buckets[0].output_tokens == pytest.approx(20)


def test_totals_stand_in_for_histograms(recorded: str) -> None:
    answer = measured(ask(recorded, "sglang-totals", engine="sglang"))
    assert answer.buckets[0].input_tokens == pytest.approx(100)
    assert answer.buckets[0].output_tokens == pytest.approx(20)


def test_a_new_pod_cannot_lower_a_plan(recorded: str) -> None:
    answer = measured(ask(recorded, "late"))
    assert 4 < answer.rate_rps <= 8.01
    assert (answer.complete, answer.note) == (False, "new pods: 1")


@pytest.mark.parametrize("namespace", ["nan", "negative", "blank"])
def test_values_that_mean_nothing(recorded: str, namespace: str) -> None:
    answer = stale(ask(recorded, namespace))
    assert answer.reason.endswith(": no pod has two sound samples in the window")
    before = measured(ask(recorded, namespace, at_s=END_S - 3 * INTERVAL_S))
    assert before.rate_rps == pytest.approx(8)


def test_missing_series_are_named(recorded: str) -> None:
    assert stale(ask(recorded, "no-success")).missing == ("vllm:request_success_total",)
    nobody = stale(ask(recorded, "nobody"))
    assert len(nobody.missing) == 3
    assert nobody.reason.endswith('with namespace="nobody"')


def test_old_samples(recorded: str) -> None:
    assert measured(ask(recorded, "steady", at_s=END_S + 2 * INTERVAL_S)).pods == 2
    answer = stale(ask(recorded, "steady", at_s=END_S + 2 * INTERVAL_S + 1))
    assert answer.age_s == 31
    assert answer.reason.endswith(": the newest of 2 pods' samples is 31 s old")


def test_a_clock_that_is_not_ours(recorded: str) -> None:
    service = PrometheusTraffic(url=recorded, selector='namespace="steady"', interval_s=INTERVAL_S)
    answer = stale(asyncio.run(service.read(now_s=time.time() - 3600)))
    assert "its clock is 36" in answer.reason
    assert "ahead of ours" in answer.reason


def test_a_regular_expression_that_is_none(recorded: str) -> None:
    service = PrometheusTraffic(url=recorded, selector='namespace=~"("', interval_s=INTERVAL_S)
    answer = stale(asyncio.run(service.read(now_s=time.time())))
    assert answer.reason.endswith(": HTTP 400 (bad_data)")


@pytest.mark.parametrize(
    "selector",
    ['namespace="}) or vector(1) #"', r'namespace="q\"uo\\te\n"', 'namespace=~"st.*y",pod!~""', "{}"],
)
def test_what_is_accepted_is_understood_by_the_server(recorded: str, selector: str) -> None:
    matchers = checked_selector(selector) or 'namespace="steady"'
    service = PrometheusTraffic(url=recorded, selector=matchers, interval_s=INTERVAL_S)
    answer = asyncio.run(service.read(now_s=END_S, at_s=END_S))
    if "steady" in matchers or "st.*y" in matchers:
        assert measured(answer).rate_rps == pytest.approx(8)
    else:
        assert len(stale(answer).missing) == 3


def test_engines_that_it_scrapes_itself(tmp_path: Path) -> None:
    """From pages to traffic with nothing made up in between; then the engine goes away."""
    engine = Engine(places=2)
    gone = threading.Event()

    def page(request: Any, form: dict[str, str]) -> None:
        engine.arrive(100, 20)  # one request with every look at it
        engine.first_token()
        engine.finish()
        text = "<html>" if gone.is_set() else engine.vllm()
        say(text, Content_Type="text/plain; version=0.0.4")(request, form)

    with serving(page) as url:
        config = (
            "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
            f"scrape_configs: [{{job_name: chat, static_configs: [{{targets: ['{url[7:]}']}}]}}]\n"
        )
        with running(tmp_path, config) as prometheus:
            service = PrometheusTraffic(
                url=prometheus, selector='model_name="m"', interval_s=5, window_s=3, size_window_s=10
            )

            def now() -> Traffic:
                return asyncio.run(service.read(now_s=time.time(), expected_pods=1))

            answer = eventually(
                now, lambda traffic: isinstance(traffic, MeasuredTraffic) and traffic.complete
            )
            assert 0 < measured(answer).rate_rps < 10
            assert measured(answer).buckets[0].input_tokens == pytest.approx(100)
            nowhere = PrometheusTraffic(
                url=prometheus, selector='model_name="m",instance="nowhere"', interval_s=5
            )
            assert len(stale(asyncio.run(nowhere.read(now_s=time.time()))).missing) == 3
            gone.set()
            answer = eventually(now, lambda traffic: isinstance(traffic, StaleTraffic))
            assert len(stale(answer).missing) == 3


PASSWORD = "at-the-gate"  # noqa: S105 - of a server on loopback
HASH = "$2b$04$abcdefghijklmnopqrstuuAwOzDO8j2Fdz/DYwA54.LozYmZ12K6K"
"""Its bcrypt, at the least cost."""


def test_a_server_that_wants_a_password_and_a_certificate(tmp_path: Path) -> None:
    server, client = made(tmp_path, "server"), made(tmp_path, "client")
    web = (
        f"basic_auth_users: {{ballast: '{HASH}'}}\n"
        f"tls_server_config: {{cert_file: '{server.certificate}', key_file: '{server.key}',"
        f" client_ca_file: '{client.certificate}', client_auth_type: RequireAndVerifyClientCert}}\n"
    )
    username, password = tmp_path / "username", tmp_path / "password"
    username.write_text("ballast")
    trust = Trust(authority=server.certificate, certificate=client.certificate, key=client.key)
    with running(
        tmp_path, "global: {}\n", web=web, verify=trust.context(), auth=("ballast", PASSWORD)
    ) as url:
        whole = PrometheusAccess(
            url=url,
            username=username,
            password=password,
            authority=server.certificate,
            certificate=client.certificate,
            key=client.key,
        )

        def told(access: PrometheusAccess) -> StaleTraffic:
            servers = PrometheusServers(accesses=(access,))
            service = PrometheusTraffic(url=url, selector='model_name="m"', servers=servers, namespace="n")
            return stale(asyncio.run(service.read(now_s=time.time())))

        for text, denied in (("wrong", True), (f"{PASSWORD}\n", False), ("", True), (PASSWORD, False)):
            password.write_text(text)
            answer = told(whole)
            assert answer.denied is denied, answer
            assert len(answer.missing) == (0 if denied else 3)  # it was asked, and knows no engine
        assert "HTTP 401" in told(replace(whole, username=None, password=None)).reason
        for access in (replace(whole, certificate=None, key=None), replace(whole, authority=None)):
            answer = told(access)
            assert "TLS: " in answer.reason or "the connection broke" in answer.reason
            assert not answer.missing


def eventually(ask_now: Callable[[], Traffic], holds: Callable[[Traffic], bool]) -> Traffic:
    until_s = time.monotonic() + READY_WITHIN_S
    answer: Traffic = StaleTraffic(reason="not asked", age_s=math.inf)
    while time.monotonic() < until_s:
        answer = ask_now()
        if holds(answer):
            return answer
        time.sleep(0.2)
    raise AssertionError(answer)
