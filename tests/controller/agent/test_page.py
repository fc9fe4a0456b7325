"""The agent's page: what it says, to whom, and in whose name."""

import json
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from controller.agent.page import Page
from controller.agent.state import AgentState, GpuState
from solver.domain.node_power import NO_CAP, Failure, GpuRange
from solver.power.agent_core import GpuVerdict
from telemetry.sources.nvml.sample import GpuIdentity, GpuSample


def gpu(uuid: str, sample: GpuSample, error: str | None = None) -> GpuState:
    verdict = GpuVerdict(
        wanted=NO_CAP, applied_mhz=None, applied_w=None, clock_confirmed=False, error=error, foreign_w=None
    )
    return GpuState(
        identity=GpuIdentity(uuid=uuid, name="A100", span=GpuRange(), mig=False),
        sample=sample,
        verdict=verdict,
    )


WELL = gpu("a", GpuSample(uuid="a", t_s=10.0, instant_w=300.0, energy_j=5.0, reasons=0x84))
LOST = gpu("b", GpuSample(uuid="b", t_s=10.0, failure=Failure.LOST), error="GpuLost")
STATE = AgentState(t_s=10.0, sequence=3, gpus=(WELL, LOST))


class Running:
    def __init__(self, page: Page) -> None:
        self.page, self.port = page, page.start()

    def get(self, path: str, token: str = "", scheme: str = "http") -> str:
        request = urllib.request.Request(f"{scheme}://127.0.0.1:{self.port}{path}")  # noqa: S310 - ours
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        context = ssl._create_unverified_context() if scheme == "https" else None  # noqa: S323 - its own certificate
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:  # noqa: S310 - ours
            return str(answer.read().decode())


def served(
    state: AgentState | None = STATE,
    *,
    now_s: float = 11.0,
    token: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
) -> Running:
    return Running(
        Page(
            host="127.0.0.1",
            port=0,
            node="n",
            state=lambda: state,
            clock=lambda: now_s,
            token=token,
            certificate=certificate,
            key=key,
        )
    )


@pytest.fixture
def page() -> Iterator[Running]:
    running = served()
    yield running
    running.page.stop()


def test_what_is_not_known_is_left_out_and_a_sum_of_some_is_not_told(page: Running) -> None:
    told = json.loads(page.get("/telemetry"))
    assert (told["schema"], told["node"], told["sequence"], told["age_s"]) == ("node-power/1", "n", 3, 1.0)
    assert told["gpuPowerWatts"] is None
    assert told["gpus"][0]["powerWatts"] == 300.0
    assert told["gpus"][0]["reasons"] == ["SwPowerCap", "HwPowerBrake"]
    assert "powerWatts" not in told["gpus"][1]
    assert told["gpus"][1]["error"] == "GpuLost"


def test_metrics_can_be_read(page: Running) -> None:
    families = {one.name: one for one in text_string_to_metric_families(page.get("/metrics"))}
    assert all(name.startswith("ballast_node_power_") for name in families)
    watts = families["ballast_node_power_gpu_watts"].samples
    assert [(sample.labels["gpu"], sample.value) for sample in watts] == [("a", 300.0)]
    assert families["ballast_node_power_gpu_error"].samples[0].labels == {"gpu": "b", "error": "GpuLost"}


@pytest.mark.parametrize(
    ("state", "now_s", "word"), [(None, 0.0, "no round yet"), (STATE, 60.0, "no round for 50 s")]
)
def test_a_loop_that_stands_still_is_not_healthy(state: AgentState | None, now_s: float, word: str) -> None:
    running = served(state, now_s=now_s)
    with pytest.raises(urllib.error.HTTPError) as error:
        running.get("/healthz")
    assert error.value.code == 503
    assert word in error.value.read().decode()
    error.value.close()
    running.page.stop()


def test_readers_bring_the_token_and_probes_do_not(tmp_path: Path) -> None:
    token = tmp_path / "token"
    running = served(token=token)
    for text, brought in (("", "x"), ("secret\n", ""), ("secret\n", "other")):
        token.write_text(text)
        for path in ("/metrics", "/telemetry"):
            with pytest.raises(urllib.error.HTTPError) as error:
                running.get(path, brought)
            assert error.value.code == 401
            error.value.close()
    assert running.get("/telemetry", "secret")
    assert running.get("/healthz") == "ok\n"
    running.page.stop()


def test_with_a_certificate_it_speaks_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", "/CN=n", "-days", "1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=False,
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("openssl makes no certificate here")
    running = served(certificate=certificate, key=key)
    assert running.get("/healthz", scheme="https") == "ok\n"
    with pytest.raises(OSError):  # noqa: PT011 - which one is the platform's affair
        running.get("/healthz")
    assert running.get("/healthz", scheme="https") == "ok\n"
    running.page.stop()
