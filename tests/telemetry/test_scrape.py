"""Asking engines over real HTTP: many at once, and those that are down, slow, endless, elsewhere or not engines."""

import gzip
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest

from telemetry.engine_sample import EngineSample
from telemetry.sources.scrape import metrics_url, scraped
from telemetry.traffic import MeasuredTraffic, TrafficEstimator
from tests.telemetry.engine_pages import Engine
from tests.telemetry.loopback import Answer, say, serving

FOREVER = threading.Event()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def reason(answer: Answer, timeout_s: float = 5.0) -> str:
    """Say why a pod that answers so gives no sample."""
    with serving(answer) as url:
        found = scraped({"chat-0": url}, engine="vllm", clock=lambda: 7.0, timeout_s=timeout_s)["chat-0"]
    assert isinstance(found, str)
    assert "\n" not in found
    return found


def test_many_engines_at_once() -> None:
    pages = {f"/{i}": say(Engine(places=i).vllm()) for i in range(50)}
    with serving(pages) as url:
        found = scraped(
            {f"chat-{i}": f"{url}/{i}" for i in range(50)} | {"gone": f"{url}/gone"},
            engine="vllm",
            clock=lambda: 7.0,
        )
    assert list(found) == [*(f"chat-{i}" for i in range(50)), "gone"]
    assert found.pop("gone") == "HTTP 404"
    for sample in found.values():
        assert isinstance(sample, EngineSample)
        assert (sample.t_s, sample.missing) == (7.0, ())


def test_from_engines_to_a_rate() -> None:
    """The whole way: pages over HTTP, samples, arrivals."""
    engines = {"a": Engine(), "b": Engine()}
    now_s = [1000.0]
    estimator = TrafficEstimator(interval_s=15, window_s=60)

    def page(name: str) -> Answer:
        def answer(request: BaseHTTPRequestHandler, form: dict[str, str]) -> None:
            say(engines[name].vllm())(request, form)

        return answer

    with serving({f"/{name}": page(name) for name in engines}) as url:
        for _ in range(5):
            estimator.update(
                now_s[0],
                scraped({name: f"{url}/{name}" for name in engines}, engine="vllm", clock=lambda: now_s[0]),
            )
            answer = estimator.measure(now_s[0])
            now_s[0] += 15
            for engine in engines.values():
                for _ in range(30):
                    engine.arrive(300, 40)
                engine.serve_all()
    assert isinstance(answer, MeasuredTraffic)
    assert answer.rate_rps == pytest.approx(4)
    assert answer.complete
    assert answer.buckets[0].output_tokens == pytest.approx(40)


def test_nobody_there() -> None:
    url = f"http://127.0.0.1:{free_port()}/metrics"
    assert scraped({"a": url}, engine="vllm", clock=lambda: 7.0) == {"a": "Connection refused"}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gopher://127.0.0.1/metrics",
        "http://127.0.0.1:99999/metrics",
        "http://",
        "http://[::1/",
        "http://a\nb/",
    ],
)
def test_addresses_that_lead_nowhere(url: str) -> None:
    found = scraped({"a": url}, engine="vllm", clock=lambda: 7.0)["a"]
    assert found == "not an address that can be asked; http://host:port/path"


def test_statuses_and_redirects() -> None:
    assert reason(say("secret", 500)) == "HTTP 500"
    assert reason(say("secret", 401)) == "HTTP 401"
    assert reason(say("", 204)) == "HTTP 204"
    with serving(say(Engine().vllm())) as elsewhere:
        told = reason(say("", 302, Location=elsewhere))
    assert told == "HTTP 302: a redirect, which is not followed; the address itself"


def test_a_page_that_is_none_is_not_quoted_at_length() -> None:
    told = reason(say("<html>" + "x" * 100_000))
    assert told.startswith("chat-0:1: '<html>xxx")
    assert len(told) < 250


def test_an_endless_page() -> None:
    def endless(request: BaseHTTPRequestHandler, _: dict[str, str]) -> None:
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(b"# and so on\n" * 10_000)

    assert reason(endless) == "more than 4 MiB; a page of metrics"
    assert reason(say(b"#" * (4 * 2**20 + 1))) == "more than 4 MiB; a page of metrics"


def test_a_page_packed_to_look_small() -> None:
    bomb = gzip.compress(b"# and so on\n" * 2_000_000)
    assert len(bomb) < 100_000
    assert reason(say(bomb, Content_Encoding="gzip")) == "the answer is packed, though that was not asked for"


def test_a_page_that_trickles_does_not_hold_up_the_others() -> None:
    def trickling(request: BaseHTTPRequestHandler, _: dict[str, str]) -> None:
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(b"#")
            time.sleep(0.05)

    def silent(_: BaseHTTPRequestHandler, __: dict[str, str]) -> None:
        FOREVER.wait(6)

    pages = {f"/slow-{i}": trickling for i in range(10)} | {"/silent": silent, "/a": say(Engine().vllm())}
    with serving(pages) as url:
        found = scraped({path: url + path for path in pages}, engine="vllm", clock=lambda: 7.0, timeout_s=2)
    assert isinstance(found.pop("/a"), EngineSample)
    assert set(found.values()) == {"no answer within 2 s"}


def test_a_connection_that_breaks() -> None:
    def broken(request: BaseHTTPRequestHandler, _: dict[str, str]) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b"vllm:num_requests_running 1\n")
        request.close_connection = True

    assert "the connection broke" in reason(broken)

    def nonsense(request: BaseHTTPRequestHandler, _: dict[str, str]) -> None:
        request.wfile.write(b"\x00\xff\r\n\r\n")

    assert "the connection broke" in reason(nonsense)


def test_bytes_that_are_no_text() -> None:
    page = b"# \xff\xfe\n" + Engine().vllm().encode()
    with serving(say(page)) as url:
        found = scraped({"a": url}, engine="vllm", clock=lambda: 7.0)["a"]
    assert isinstance(found, EngineSample)


def test_addresses() -> None:
    assert metrics_url("10.0.0.7", 8000) == "http://10.0.0.7:8000/metrics"
    assert metrics_url("fd00::7", 8000, "/m") == "http://[fd00::7]:8000/m"
