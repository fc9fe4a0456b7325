"""``--prometheus-access`` and what becomes of it: traffic, expert loads and a row's meter, refused and let in."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from controller.cli.prometheus_option import access_of
from controller.cli.root import ballast
from controller.operator.api import ApiError
from controller.operator.doctor.services import _telemetry_advice
from controller.operator.experts.recorded import look
from controller.operator.power.agents import Agents
from controller.operator.run import Operator, OperatorSettings
from controller.operator.sampler import Sampler
from controller.operator.status import Progress, status_of
from controller.operator.world import World
from controller.resources.model_service import ModelServiceSpec
from solver.domain.errors import InputError
from telemetry.sources.bounded_http import http_client
from telemetry.sources.prometheus_access import PrometheusAccess, PrometheusServers
from tests.controller.experts_stage import HOT_FIRST, KEY, SPACE, spec_of
from tests.controller.test_operator_power import Stage
from tests.controller.test_operator_power import spec_of as domain_of
from tests.controller.test_operator_status import NOW, conditions, ordinary, seen, service
from tests.telemetry.loopback import Answer, say, serving
from tests.telemetry.test_prometheus_access import SECRET, Heard


def wanting(answer: Answer, bearer: str = SECRET) -> Answer:
    """Answer who brings the token, and no one else."""

    def checked(request: Any, form: dict[str, str]) -> None:
        knows = request.headers.get("Authorization") == f"Bearer {bearer}"
        (answer if knows else say("who are you?", 401))(request, form)

    return checked


def vector(*rows: tuple[dict[str, str], float]) -> Answer:
    result = [{"metric": labels, "value": [0, str(value)]} for labels, value in rows]
    return say(json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}))


def servers_of(url: str, token: Path, *namespaces: str) -> PrometheusServers:
    access = PrometheusAccess(url=url, token=token, namespaces=namespaces, allow_http=True)
    return PrometheusServers(accesses=(access,))


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(SECRET)
    return path


def test_an_access_is_written_in_one_option() -> None:
    assert access_of("url=https://prom:9090/a,token-file=/t") == PrometheusAccess(
        url="https://prom:9090/a", token=Path("/t")
    )
    text = (
        "url=https://mimir,username-file=/u,password-file=/p,ca-file=/c,cert-file=/d,key-file=/k,"
        'server-name=m,header=X-Scope-OrgID:a|b,"header=X-More:c,d:e",namespace=one,namespace=two'
    )
    assert access_of(text) == PrometheusAccess(
        url="https://mimir",
        username=Path("/u"),
        password=Path("/p"),
        authority=Path("/c"),
        certificate=Path("/d"),
        key=Path("/k"),
        server_name="m",
        headers=(("X-Scope-OrgID", "a|b"), ("X-More", "c,d:e")),
        namespaces=("one", "two"),
    )
    assert access_of("url=http://prom,token-file=/t,allow-http").allow_http


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no url; url=https://"),
        ("token-file=/t", "no url"),
        ("url=", "'url' is not understood; KEY=VALUE with one of url"),
        ("url=https://p,token=hidden", "'token' is not understood"),
        ("url=https://p,allow-http=hidden", "'allow-http' is not understood"),
        ("url=https://p,url=https://q", "url twice; once"),
        ("url=https://p,header=X-Scope-OrgID", "a header without a value"),
        ('url=https://p,"token-file=/t', "no url"),
        ("url=p,token-file=/t", "url 'p'"),
    ],
)
def test_what_is_not_understood_is_one_line(text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        access_of(text)
    assert words in str(error.value)
    assert "hidden" not in str(error.value)


def test_it_is_wrong_usage_of_the_command() -> None:
    both = ["--prometheus-access", "url=https://p,token-file=/t"] * 2
    for words, told in (
        (["--prometheus-access", "x"], "is not understood"),
        (both, "two accesses for the same"),
    ):
        done = CliRunner().invoke(ballast, ["controller", "run", *words])
        assert done.exit_code == 2
        assert told in done.output


def test_the_operator_gives_it_to_all_who_ask_and_warns_of_files(
    token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Operator] = []

    def stopped(operator: Operator) -> None:
        begun.append(operator)
        operator.ending.set()

    monkeypatch.setattr("controller.operator.run.connect", lambda _: object())
    monkeypatch.setattr(Operator, "_resources", lambda _: ())
    monkeypatch.setattr(Operator, "_prime", stopped)
    monkeypatch.setattr("controller.operator.run.signal.signal", lambda *_: None)
    monkeypatch.setattr("controller.operator.run.Watch.run", lambda _: None)
    monkeypatch.setattr("controller.operator.run.Audit.run", lambda _: None)
    monkeypatch.setattr("controller.operator.run.Election.run", lambda _: None)
    servers = PrometheusServers(accesses=(access_of(f"url=https://prom,token-file={token}.gone"),))
    settings = OperatorSettings(namespace="n", identity="i", port=0, prometheus=servers)
    with capture_logs() as logs:
        assert Operator(settings).run() == 0
    (operator,) = begun
    assert [each.servers for each in (operator.sampler, operator.experts, operator.power.agents)] == [
        servers
    ] * 3
    (told,) = [entry["told"] for entry in logs if entry["event"] == "access to Prometheus"]
    assert told == f"https://prom: {token}.gone: No such file or directory"


def test_the_command_gives_it_to_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[OperatorSettings] = []

    def begun(settings: OperatorSettings) -> None:
        seen.append(settings)
        raise ApiError(0, "no cluster here")

    monkeypatch.setattr("controller.operator.run.Operator", begun)
    monkeypatch.setattr("controller.operator.logs.set_up_logs", lambda *_: None)
    words = ["controller", "run", "--namespace", "n"]
    for text in ("url=https://a,token-file=/a", "url=https://b,header=X-Scope-OrgID:b"):
        words += ["--prometheus-access", text]
    for more in (words, words[:4]):
        assert CliRunner().invoke(ballast, more).exit_code != 0
    assert [each.url for each in seen[0].prometheus.accesses] == ["https://a", "https://b"]
    assert seen[1].prometheus.accesses == ()


def test_telemetry_ready_says_that_access_is_denied_and_what_to_do(token: Path) -> None:
    server = Heard(401)
    with serving(server) as url:
        traffic = {"prometheus": {"url": url, "selector": 'm="m"'}}
        spec = ModelServiceSpec.model_validate(service({"a": "chat-a"}, traffic=traffic)["spec"])

        def told(servers: PrometheusServers) -> dict[str, Any]:
            sampler = Sampler(world=World(), api=None, servers=servers)  # type: ignore[arg-type]
            sampler.once({("team", "chat"): spec})
            view = seen(*ordinary(traffic=traffic), traffic=sampler._read["team", "chat"])
            return conditions(status_of(view, Progress(), now=NOW))["TelemetryReady"]

        for servers, words in (
            (PrometheusServers(), "the controller has no access to it; give it one: docs/traffic.md"),
            (servers_of(url, token), f"it does not accept what it is brought ({token})"),
            (servers_of(url, token, "others"), "the access to it is not for namespace team"),
            (servers_of(url, token.with_name("gone")), "gone: No such file or directory"),
        ):
            condition = told(servers)
            assert (condition["status"], condition["reason"]) == ("False", "AccessDenied")
            assert words in condition["message"]
            assert condition["message"].endswith("; the last plan stays")
            assert SECRET not in condition["message"]
    assert len(server.brought) == 2  # who may not is not asked for


def test_the_doctor_sends_no_one_to_look_for_series_where_access_is_denied() -> None:
    body = service({"a": "chat-a"}, traffic={"prometheus": {"url": "https://prom", "selector": 'm="m"'}})
    assert "prometheus.access" in _telemetry_advice(body, "AccessDenied")
    assert "for the named series" in _telemetry_advice(body, "SeriesMissing")


def test_loads_of_experts_are_read_with_the_token(token: Path) -> None:
    api: Any = None
    rows = [
        ({"layer": str(layer), "expert": str(expert)}, count)
        for layer, row in enumerate(HOT_FIRST)
        for expert, count in enumerate(row)
    ]
    with serving(wanting(vector(*rows))) as url:
        spec = spec_of({"prometheus": {"url": url, "metric": "tokens_total"}})
        denied = look(api, KEY, spec, folder="")
        assert denied.reason == "LoadUnreadable"
        assert "HTTP 401" in denied.message
        assert look(api, KEY, spec, folder="", servers=servers_of(url, token, "x")).reason == "LoadUnreadable"
        assert look(api, KEY, spec, folder="", servers=servers_of(url, token, SPACE)).recording is not None
        dump = spec_of({"httpDump": {"url": f"{url}/api/v1/query"}})  # no Prometheus: it is brought nothing
        assert "HTTP 401" in look(api, KEY, dump, folder="", servers=servers_of(url, token)).message


def test_a_meter_is_asked_with_the_token_and_says_why_not(token: Path) -> None:
    api: Any = None

    async def asked(agents: Agents, url: str) -> None:
        async with http_client() as client:
            await agents._meter(client, "row", (url, "sum(watts)"))

    with serving(wanting(vector(({}, 7.0)))) as url:
        for servers, words in (
            (PrometheusServers(), "HTTP 401"),
            (servers_of(url, token, "x"), "is not for"),
        ):
            agents = Agents(api=api, namespace="n", servers=servers)
            asyncio.run(asked(agents, url))
            assert agents.metered("row") is None
            assert words in agents.meter_trouble("row")
        agents.servers = servers_of(url, token)
        asyncio.run(asked(agents, url))
        told = agents.metered("row")
        assert told is not None
        assert told[0] == 7.0
        assert agents.meter_trouble("row") == ""
    with serving(say("{}", 503)) as url:
        asyncio.run(asked(agents, url))
    assert agents.meter_trouble("row") == "meter of row: HTTP 503"


def test_a_domain_says_why_its_meter_is_not_read() -> None:
    meter = {"source": "pdu", "url": "https://prom", "query": "sum(watts)"}
    stage = Stage(spec=domain_of(telemetry=meter))
    fresh = stage.go(30).findings["TelemetryFresh"]
    assert fresh.status is False
    assert fresh.message == "meter of d: HTTP 401"
