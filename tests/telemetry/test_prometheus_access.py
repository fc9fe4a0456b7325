"""What Prometheus servers are brought: to whom, as files rotate, and never to anybody else."""

import asyncio
import base64
import json
import logging
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from solver.domain.errors import InputError
from telemetry.sources.bounded_http import UnreachableError, UntrustedError, http_client
from telemetry.sources.prometheus import PrometheusTraffic, all_read
from telemetry.sources.prometheus_access import QUERY, AccessError, PrometheusAccess, PrometheusServers
from telemetry.sources.prometheus_experts import expert_loads
from telemetry.sources.trust import MOST_SECRET_BYTES, Trust, secret_in
from telemetry.traffic import MeasuredTraffic, StaleTraffic
from tests.telemetry.certificates import Pair, made
from tests.telemetry.loopback import say, serving
from tests.telemetry.test_prometheus import NOW_S, Server

SECRET = "s3cr3t-t0ken"  # noqa: S105 - of a server on loopback
EMPTY = json.dumps({"status": "success", "data": {"resultType": "vector", "result": []}})


@dataclass
class Heard:
    """A server that remembers what it was brought, and answers as it is told."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    brought: list[dict[str, str]] = field(default_factory=list)

    def __call__(self, request: BaseHTTPRequestHandler, form: dict[str, str]) -> None:
        self.brought.append({name.lower(): value for name, value in request.headers.items()})
        say(EMPTY, self.status, **self.headers)(request, form)

    @property
    def authorization(self) -> str | None:
        return self.brought[-1].get("authorization")


def asked(servers: PrometheusServers, url: str, *, namespace: str | None = "team") -> tuple[int, bytes]:
    async def ask() -> tuple[int, bytes]:
        async with http_client() as plain:
            return await servers.query(plain, url, {"query": "up"}, namespace=namespace, source=url)

    return asyncio.run(ask())


def with_token(url: str, token: Path, **more: Any) -> PrometheusServers:
    return PrometheusServers(accesses=(PrometheusAccess(url=url, token=token, allow_http=True, **more),))


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    return path


# -- what is brought --------------------------------------------------------------------------------------------------


def test_a_token_is_read_anew_for_every_question(token: Path) -> None:
    server = Heard()
    with serving(server) as url:
        servers = with_token(url, token)
        asked(servers, url)
        assert server.authorization == f"Bearer {SECRET}"
        fresh = token.with_name("fresh")  # as the kubelet does: another file takes the name
        fresh.write_text("rotated")
        fresh.replace(token)
        asked(servers, f"{url}/")
        assert server.authorization == "Bearer rotated"
        for text in ("", " \n", "two\nlines", "umläut", "a\x00b", "x" * (MOST_SECRET_BYTES + 1)):
            token.write_text(text)
            with pytest.raises(AccessError, match="what to bring cannot be read") as error:
                asked(servers, url)
            assert str(token) in str(error.value)
            assert not text.strip() or text.strip() not in str(error.value)
        token.unlink()
        with pytest.raises(AccessError, match="No such file"):
            asked(servers, url)
    assert len(server.brought) == 2


def test_a_user_with_a_password_and_a_tenant(tmp_path: Path) -> None:
    username, password = tmp_path / "username", tmp_path / "password"
    username.write_text("123456")
    password.write_text("p:w d\n")
    server = Heard()
    with serving(server) as url:
        access = PrometheusAccess(
            url=url,
            username=username,
            password=password,
            headers=(("X-Scope-OrgID", "team-a|team-b"),),
            allow_http=True,
        )
        servers = PrometheusServers(accesses=(access,))
        asked(servers, url)
        username.write_text("a:b")
        with pytest.raises(AccessError, match="a user name with a colon"):
            asked(servers, url)
    assert server.authorization == f"Basic {base64.b64encode(b'123456:p:w d').decode()}"
    assert server.brought[0]["x-scope-orgid"] == "team-a|team-b"


def test_a_tenant_alone_may_go_over_http() -> None:
    server = Heard()
    with serving(server) as url:
        access = PrometheusAccess(url=url, headers=(("X-Scope-OrgID", "a"),))
        asked(PrometheusServers(accesses=(access,)), f"{url}/prometheus")
    assert server.brought[0]["x-scope-orgid"] == "a"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "prom:9090"}, "url 'prom:9090'; https://HOST"),
        ({"url": "prom"}, "url 'prom'"),
        ({"url": "ftp://prom"}, "url 'ftp://prom'"),
        ({"url": "https://prom/a%2fb"}, "without user, ?, # and escapes"),
        ({"url": "https://prom?a"}, "url 'https"),
        ({"url": "https://user:hidden@prom"}, "url with a user in it"),
        ({"url": "http://prom"}, "http shows the secret to everybody on the way; https, or allow-http"),
        ({"url": "http://prom", "authority": Path("c"), "allow_http": True}, "of no use with http"),
        ({"token": None}, "there is nothing to bring"),
        ({"username": Path("u")}, "username and password go together"),
        ({"username": Path("u"), "password": Path("p")}, "a token and a password; one of them"),
        ({"certificate": Path("c")}, "certificate and key go together"),
        ({"headers": (("authorization", "Bearer hidden"),)}, "header authorization is a secret"),
        ({"headers": (("Cookie", "hidden"),)}, "header Cookie is a secret"),
        ({"headers": (("Host", "other"),)}, "header 'Host'; a name such as"),
        ({"headers": (("a b", "x"),)}, "header 'a b'"),
        ({"headers": (("X-A", "x\r\nAuthorization: hidden"),)}, "a value that cannot be sent"),
        ({"headers": (("X-A", ""),)}, "a value that cannot be sent"),
    ],
)
def test_what_does_not_go_together_is_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        PrometheusAccess(**{"url": "https://prom", "token": Path("t"), **options})
    assert words in str(error.value)
    assert "hidden" not in str(error.value)
    assert "\n" not in str(error.value)


# -- and to nobody else -----------------------------------------------------------------------------------------------


def test_a_resources_own_address_is_brought_nothing(token: Path) -> None:
    ours, theirs = Heard(), Heard()
    with serving(ours) as url, serving(theirs) as elsewhere:
        servers = with_token(f"{url}/team-a", token)
        for address in (elsewhere, f"{elsewhere}/team-a", url, f"{url}/team-ab", f"{url}/team-a/../team-b"):
            asked(servers, address)
        assert [server.authorization for server in (ours, theirs)] == [None, None]
        asked(servers, f"{url}/team-a/prometheus")
        assert ours.authorization == f"Bearer {SECRET}"
    assert all("authorization" not in brought for brought in [*theirs.brought, *ours.brought[:-1]])


ONE = PrometheusAccess(url="https://prom.example:9091/team-a", token=Path("t"))
KNOWN = PrometheusServers(accesses=(ONE,))


@pytest.mark.parametrize(
    "url",
    [
        "https://prom.example:9091/team-a",
        "https://prom.example:9091/team-a/",
        "https://PROM.example:9091/team-a/x",
        "https://prom.example:9091/x/../team-a",
    ],
)
def test_addresses_under_the_prefix(url: str) -> None:
    assert KNOWN.access_to(url, namespace="n") is ONE


@pytest.mark.parametrize(
    "url",
    [
        "http://prom.example:9091/team-a",  # where everybody on the way would read it
        "https://prom.example/team-a",
        "https://prom.example:9092/team-a",
        "https://prom.example.:9091/team-a",
        "https://prom.example.evil.test:9091/team-a",
        "https://prom.example:9091@evil.test/team-a",
        "https://prom.example:9091\\@evil.test/team-a",
        "https://user@prom.example:9091/team-a",
        "https://evil.test/team-a#@prom.example:9091/team-a",
        "https://evil.test?https://prom.example:9091/team-a",
        "https://prom.example:9091",
        "https://prom.example:9091/team-b",
        "https://prom.example:9091/team-ab",
        "https://prom.example:9091/team-a/../team-b",
        "https://prom.example:9091/team-a/%2e%2e/team-b",
        "https://prom.example:9091/team-a/..%2fteam-b",
        "https://prom.example:9091/team-a/..;/team-b",
        "https://prom.example:9091/team-a//team-b",
        "https://prom.example:9091/team-a\\..\\team-b",
        "https://prom.example:9091/team-a?x=",
        "https://prom.example:9091/team-a#",
        "//prom.example:9091/team-a",
        "https://",
        "https://prom.example:99999/team-a",
        "",
    ],
)
def test_addresses_that_only_look_like_it(url: str) -> None:
    assert KNOWN.access_to(url, namespace="n") is None


PIECES = st.sampled_from(
    (
        *("https:", "http:", "//", "/", "prom.example", ":9091", "/team-a", "evil", "-b", "é", " ", "\t"),
        *("@", "..", ".", "%2e", "%2F", "%00", "#", "?", "\\", ";", ":", "[", "]"),
    )
)
ADDRESSES = st.lists(PIECES, max_size=9).map("".join)


@given(ADDRESSES | ADDRESSES.map(lambda rest: f"https://prom.example:9091/team-a{rest}"))
@example("https://prom.example:9091/team-a")
@example("https://prom.example:9091/team-a/./x")
def test_who_is_brought_the_token_is_who_it_is_for(url: str) -> None:
    if KNOWN.access_to(url, namespace="n") is None:
        return
    request = httpx.Request("POST", f"{url.rstrip('/')}{QUERY}")  # as it is sent
    assert (request.url.scheme, request.url.host, request.url.port) == ("https", "prom.example", 9091)
    assert request.headers["Host"] == "prom.example:9091"
    path = request.url.raw_path.decode()
    assert path.startswith("/team-a/")
    assert not {"..", ".", ""} & set(path[1:].split("/"))
    assert "%" not in path


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(token: Path, status: int) -> None:
    theirs = Heard()
    with serving(theirs) as elsewhere:
        ours = Heard(status, {"Location": f"{elsewhere}{QUERY}"})
        with serving(ours) as url, pytest.raises(InputError, match="a redirect, which is not followed"):
            asked(with_token(url, token), url)
    assert len(ours.brought) == 1
    assert theirs.brought == []


def test_some_namespaces_only(token: Path) -> None:
    general = PrometheusAccess(url="https://mimir/", headers=(("X-Scope-OrgID", "all"),))
    team = replace(general, headers=(("X-Scope-OrgID", "a"),), namespaces=("team-a", "team-b"))
    deeper = replace(general, url="https://mimir/deep", token=token, namespaces=("team-c",))
    some = PrometheusServers(accesses=(team, deeper))
    every = PrometheusServers(accesses=(general, team, deeper))
    assert every.access_to("https://mimir/prometheus", namespace="team-a") is team
    assert every.access_to("https://mimir/deep", namespace="team-a") is team
    assert every.access_to("https://mimir/deep", namespace="team-c") is deeper
    assert every.access_to("https://mimir/deep", namespace=None) is general
    assert every.access_to("https://other", namespace="team-a") is None
    for namespace, who in (("team-c", "namespace team-c"), (None, "the cluster's resources")):
        with pytest.raises(AccessError, match=f"is not for {who}"):
            some.access_to("https://mimir", namespace=namespace)
    for twice in (
        (team, replace(team, namespaces=("team-b",))),
        (general, replace(general, server_name="x")),
    ):
        with pytest.raises(InputError, match="two accesses for the same"):
            PrometheusServers(accesses=twice)


def test_no_secret_is_logged_shown_or_told(token: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = Heard(401)
    with serving(server) as url:
        servers = with_token(url, token)
        for status in (401, 403, 307):
            server.status = status
            with pytest.raises(InputError) as error:
                asked(servers, url)
            assert SECRET not in str(error.value)
        servers = with_token("http://127.0.0.1:1", token)
        with pytest.raises(UnreachableError) as error:
            asked(servers, "http://127.0.0.1:1")
    assert server.authorization == f"Bearer {SECRET}"
    assert SECRET not in f"{caplog.text}{error.value}{servers!r}{servers.accesses[0].told()}"


# -- what a refusal says ----------------------------------------------------------------------------------------------


def test_a_refusal_says_what_to_do(token: Path) -> None:
    server = Heard(401)
    with serving(server) as url:
        with pytest.raises(AccessError) as error:
            asked(PrometheusServers(), url)
        assert "HTTP 401: it wants to know who asks, and the controller has no access to it" in str(
            error.value
        )
        assert "prometheus.access" in str(error.value)
        with pytest.raises(AccessError) as error:
            asked(with_token(url, token), url)
        assert f"HTTP 401: it does not accept what it is brought ({token})" in str(error.value)
        server.status = 403
        with pytest.raises(AccessError) as error:
            asked(with_token(url, token, headers=(("X-Scope-OrgID", "a"),)), url)
        assert f"HTTP 403: who asks (header X-Scope-OrgID, {token}) may not read metrics there" in str(
            error.value
        )
        server.status = 500
        assert asked(with_token(url, token), url)[0] == 500


def test_traffic_and_loads_are_denied_not_unanswered(token: Path) -> None:
    with serving(Heard(403)) as url:
        servers = with_token(url, token, namespaces=("team",))
        services = {
            namespace: PrometheusTraffic(url=url, selector='m="m"', servers=servers, namespace=namespace)
            for namespace in ("team", "stranger")
        }
        answers = all_read(services, now_s=NOW_S, expected_pods={})
        for namespace, words in (("team", "HTTP 403"), ("stranger", "is not for namespace stranger")):
            answer = answers[namespace]
            assert isinstance(answer, StaleTraffic)
            assert answer.denied
            assert words in answer.reason
        with pytest.raises(AccessError, match="HTTP 403"):
            asyncio.run(
                expert_loads(
                    url, metric="m", layers=1, experts=1, window_s=60.0, servers=servers, namespace="team"
                )
            )
        alone = asyncio.run(services["stranger"].read(now_s=NOW_S))
        assert isinstance(alone, StaleTraffic)
        assert alone.denied
    gone = PrometheusTraffic(url="http://127.0.0.1:1", selector='m="m"')
    answer = all_read({"a": gone}, now_s=NOW_S, expected_pods={})["a"]
    assert isinstance(answer, StaleTraffic)
    assert not answer.denied


# -- certificates -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("tls")
    return {
        "ours": made(folder, "ours"),
        "other": made(folder, "other"),
        "named": made(folder, "named", served="DNS:thanos.test"),
    }


def context_of(pair: Pair, *, clients: Pair | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients.certificate)
    return context


@pytest.fixture
def measuring(pairs: dict[str, Pair]) -> Iterator[str]:
    with serving(Server(), tls=context_of(pairs["ours"])) as url:
        yield url


def test_traffic_over_tls_from_a_private_authority(
    measuring: str, pairs: dict[str, Pair], token: Path
) -> None:
    def read(**access: Any) -> Any:
        servers = PrometheusServers(accesses=(PrometheusAccess(url=measuring, token=token, **access),))
        service = PrometheusTraffic(url=measuring, selector='m="m"', servers=servers, namespace="team")
        return asyncio.run(service.read(now_s=NOW_S, expected_pods=2))

    assert isinstance(read(authority=pairs["ours"].certificate), MeasuredTraffic)
    for access, words in (
        ({}, "TLS: CERTIFICATE_VERIFY_FAILED; its CA: docs/traffic.md"),
        ({"authority": pairs["other"].certificate}, "the certificates that sign its own"),
    ):
        answer = read(**access)
        assert isinstance(answer, StaleTraffic)
        assert words in answer.reason


def test_a_certificate_for_another_name(pairs: dict[str, Pair], token: Path) -> None:
    server = Heard()
    with serving(server, tls=context_of(pairs["named"])) as url:
        for name, fits in (("", False), ("prometheus.test", False), ("thanos.test", True)):
            servers = with_token(url, token, authority=pairs["named"].certificate, server_name=name)
            if fits:
                assert asked(servers, url)[0] == 200
            else:
                with pytest.raises(UntrustedError):
                    asked(servers, url)
                assert server.brought == []


def test_an_authority_is_exchanged_while_it_runs(pairs: dict[str, Pair], tmp_path: Path, token: Path) -> None:
    authority = tmp_path / "ca.crt"
    server = Heard()
    with serving(server, tls=context_of(pairs["ours"])) as url:
        servers = with_token(url, token, authority=authority)
        assert "No such file" in servers.troubles()[0]
        for text, told in (("", "it holds no certificates"), ("half", "it holds no certificates")):
            authority.write_text(text)
            with pytest.raises(AccessError, match=told):
                asked(servers, url)
        for pair, reached in (("other", False), ("ours", True), ("", True), ("other", False), ("ours", True)):
            authority.write_text(pairs[pair].certificate.read_text() if pair else "half written")
            if reached:
                assert asked(servers, url)[0] == 200
            else:
                with pytest.raises(UntrustedError):
                    asked(servers, url)
        assert servers.troubles() == []


def test_a_server_that_wants_a_certificate(pairs: dict[str, Pair], tmp_path: Path) -> None:
    ours, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    server = Heard()
    with serving(server, tls=context_of(pairs["ours"], clients=pairs["other"])) as url:
        access = PrometheusAccess(url=url, authority=pairs["ours"].certificate)
        with pytest.raises(UnreachableError):
            asked(PrometheusServers(accesses=(access,)), url)
        servers = PrometheusServers(accesses=(replace(access, certificate=ours, key=key),))
        ours.write_text(pairs["other"].certificate.read_text())
        key.write_text(pairs["ours"].key.read_text())
        with pytest.raises(AccessError, match="no certificate with its key"):
            asked(servers, url)
        key.write_text(pairs["other"].key.read_text())
        assert asked(servers, url)[0] == 200
        ours.write_text(pairs["ours"].certificate.read_text())  # half exchanged: the pair before still serves
        assert asked(servers, url)[0] == 200
    assert len(server.brought) == 2


def test_trust_is_the_same_while_the_files_are(pairs: dict[str, Pair]) -> None:
    trust = Trust(authority=pairs["ours"].certificate)
    assert trust.context() is trust.context()
    public = Trust(certificate=pairs["ours"].certificate, key=pairs["ours"].key).context()
    assert public.verify_mode is ssl.CERT_REQUIRED
    assert public.check_hostname


def test_a_key_with_a_passphrase_is_not_asked_about(tmp_path: Path, pairs: dict[str, Pair]) -> None:
    key = tmp_path / "locked.key"
    key.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIGj\n-----END ENCRYPTED PRIVATE KEY-----\n")
    with pytest.raises(InputError, match="without a passphrase"):
        Trust(certificate=pairs["ours"].certificate, key=key).context()


def test_a_folder_is_no_secret(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Is a directory"):
        secret_in(tmp_path)
