"""Asking agents over a real connection: in the clear, over TLS with the right names, with a token, files exchanged."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from controller.agent.page import Page
from controller.agent.state import AgentState
from controller.operator.api import ApiError
from controller.operator.power.agents import ACCESS, LISTING, SELECTOR, AgentAccess, Agents
from telemetry.sources.bounded_http import http_client
from tests.telemetry.certificates import Pair, made
from tests.telemetry.loopback import say, serving

NODE = "node-a"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("tls")
    return {
        "ours": made(folder, "ours", served="DNS:ballast-agent"),
        "other": made(folder, "other", served="DNS:ballast-agent"),
        "elsewhere": made(folder, "elsewhere", served="DNS:somebody-else"),
    }


@dataclass
class Stage:
    """An agent's page, and who asks it."""

    page: Page
    agents: Agents
    sequence: int = 0

    def ask(self, times: int = 1) -> str:
        """Ask; returns what is wrong."""

        async def asked() -> None:
            async with http_client() as client:
                for _ in range(times):
                    await self.agents._ask_all(client)
            if self.agents._secured is not None:
                await self.agents._secured.aclose()
                self.agents._secured = None

        self.sequence += 1
        asyncio.run(asked())
        return self.agents.trouble(NODE) or self.agents._said.get("access to agents", "")

    @property
    def heard(self) -> int:
        return len(self.agents.latest(NODE))


@pytest.fixture
def staged() -> Iterator[Any]:
    pages = []

    def stage(pair: Pair | None = None, wanted: Path | None = None, **access: Any) -> Stage:
        def state() -> AgentState:
            return AgentState(t_s=10.0, sequence=built.sequence, gpus=())

        page = Page(
            host="127.0.0.1",
            port=0,
            node=NODE,
            state=state,
            clock=lambda: 10.5,
            token=wanted,
            certificate=pair.certificate if pair else None,
            key=pair.key if pair else None,
        )
        pages.append(page)
        api: Any = None
        agents = Agents(api=api, namespace="n", port=page.start(), access=AgentAccess(**access))
        agents.addresses = {NODE: "127.0.0.1"}
        agents.want((NODE,))
        built = Stage(page, agents)
        return built

    yield stage
    for page in pages:
        page.stop()


def test_in_the_clear(staged: Any) -> None:
    stage = staged()
    assert stage.ask() == ""
    assert stage.heard == 1


def test_over_tls_to_who_was_signed_for_that_name(staged: Any, pairs: dict[str, Pair]) -> None:
    stage = staged(pairs["ours"], authority=pairs["ours"].certificate)
    assert stage.ask(2) == ""
    assert stage.heard == 1
    named = staged(pairs["elsewhere"], authority=pairs["elsewhere"].certificate, server_name="somebody-else")
    assert named.ask() == ""
    for pair, authority in (("other", "ours"), ("elsewhere", "elsewhere")):
        stranger = staged(pairs[pair], authority=pairs[authority].certificate)
        assert "TLS" in stranger.ask()
        assert stranger.heard == 0
    clear = staged(authority=pairs["ours"].certificate)  # who speaks no TLS is not believed
    assert clear.ask()
    assert clear.heard == 0


def test_with_a_token(staged: Any, pairs: dict[str, Pair], tmp_path: Path) -> None:
    wanted, brought = tmp_path / "wanted", tmp_path / "brought"
    wanted.write_text("secret\n")
    brought.write_text("wrong")
    stage = staged(pairs["ours"], wanted, authority=pairs["ours"].certificate, token=brought)
    assert "HTTP 401" in stage.ask()
    brought.write_text("secret")
    assert stage.ask() == ""
    brought.unlink()
    assert "No such file" in stage.ask()
    assert stage.heard == 1


def test_files_are_exchanged_while_it_runs(staged: Any, pairs: dict[str, Pair], tmp_path: Path) -> None:
    authority = tmp_path / "ca.crt"
    authority.write_text("")
    stage = staged(pairs["ours"], authority=authority)
    assert "holds no certificates" in stage.ask()

    async def exchanged() -> list[int]:
        heard = []
        async with http_client() as client:
            for text in ("other", "ours", "", "ours"):
                authority.write_text(pairs[text].certificate.read_text() if text else "half written")
                stage.sequence += 1
                await stage.agents._ask_all(client)
                heard.append(stage.heard)
        await stage.agents._secured.aclose()
        return heard

    assert asyncio.run(exchanged()) == [0, 1, 2, 3]


# -- who is asked, and the meter --------------------------------------------------------------------------------------


def agent_pod(node: str, ip: str, **metadata: str) -> dict[str, Any]:
    return {"metadata": {"name": node, **metadata}, "spec": {"nodeName": node}, "status": {"podIP": ip}}


@dataclass
class FakeApi:
    """Lists pods, or does not answer."""

    pods: list[dict[str, Any]]
    down: bool = False

    def each(self, _resource: Any, namespace: str, *, query: dict[str, str]) -> Iterator[dict[str, Any]]:
        assert (namespace, query["labelSelector"]) == ("n", SELECTOR)
        if self.down:
            raise ApiError(0, "the API server cannot be reached")
        yield from self.pods


def eventually(so: Callable[[], object]) -> bool:
    until_s = time.monotonic() + 10.0
    while time.monotonic() < until_s:
        if so():
            return True
        time.sleep(0.02)
    return False


def test_pods_are_looked_for_and_asked_every_second_and_so_is_the_meter(staged: Any) -> None:
    answer = {"status": "success", "data": {"resultType": "vector", "result": [{"value": [1.0, "1234.5"]}]}}
    stage = staged()
    agents = stage.agents
    agents.addresses = {}
    pods = [
        agent_pod(NODE, "127.0.0.1"),
        agent_pod("ending", "10.0.0.1", deletionTimestamp="2026-11-21T10:00:00Z"),
        agent_pod("new", ""),
        agent_pod("six", "fd00::1"),
    ]
    agents.api = FakeApi(pods)
    assert agents.trouble(NODE) == f"no pod of an agent runs on {NODE}"
    with serving({"/api/v1/query": say(json.dumps(answer))}) as url:
        agents.meters = {"row": (f"{url}/", "sum(watts)"), "off": (f"{url}/none", "x")}
        thread = threading.Thread(target=agents.run)
        thread.start()
        assert eventually(lambda: stage.heard == 1 and agents.metered("row"))
        agents.stopping.set()
        thread.join()
    metered = agents.metered("row")
    assert metered is not None
    assert metered[0] == 1234.5
    assert agents.metered("off") is None
    assert agents.addresses == {NODE: "127.0.0.1", "six": "[fd00::1]"}
    agents.want(("six",))
    assert stage.heard == 0  # whose answers nobody wants are forgotten
    agents.api = FakeApi([], down=True)
    agents._list()
    assert NODE in agents.addresses  # what was known stays
    assert "cannot be reached" in agents._said["pods"]


@pytest.mark.parametrize(
    ("answer", "watts"),
    [
        ({"data": {"resultType": "scalar", "result": [1.0, "7"]}}, 7.0),
        ({"data": {"resultType": "vector", "result": []}}, None),
        ({"data": {"resultType": "vector", "result": [{"value": [1, "x"]}]}}, None),
        ({"error": "x"}, None),
        ([], None),
    ],
)
def test_a_meter_is_one_value_in_watts(staged: Any, answer: Any, watts: float | None) -> None:
    agents = staged().agents

    async def asked(url: str) -> None:
        async with http_client() as client:
            await agents._meter(client, "row", (url, "q"))

    with serving(say(json.dumps(answer))) as url:
        asyncio.run(asked(url))
    told = agents.metered("row")
    assert (None if told is None else told[0]) == watts
    assert bool(agents._said.get("meter of row")) is (watts is None)


def test_nothing_is_remembered_of_nodes_and_meters_that_are_gone() -> None:
    nobody: Any = None
    agents = Agents(api=nobody, namespace="n")
    agents.meters = {"row": ("http://here", "watts"), "hall": ("http://here", "watts")}
    agents.want(("a", "b"))
    for whom in ("a", "b", "meter of row", "meter of hall", ACCESS, LISTING):
        agents._say(whom, "it does not answer")
    agents._metered |= {"row": (1.0, 0.0), "hall": (1.0, 0.0)}
    agents.meters = {"row": ("http://here", "watts")}
    agents.want(("b",))
    assert set(agents._said) == {"b", "meter of row", ACCESS, LISTING}
    assert set(agents._metered) == {"row"}
    assert agents.meter_trouble("row") == "it does not answer"
