"""Asks Prometheus servers, and brings each what the installation has for it: token, password, tenant, certificates.

It exists because addresses come from resources that many may write, credentials from the installation alone: what is
brought to one server must not reach another because somebody wrote its address into a resource. So every access is
for the addresses under one prefix, compared as the request is sent (scheme, host, port, whole parts of the path, no
dots and no escapes), and may be for some namespaces only. Files are read for every question, so what rotates is
followed. No secret is ever part of an error, a log line or a `repr`.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from solver.domain.errors import InputError
from telemetry.sources.bounded_http import MOST_BYTES, TIMEOUT_S, UntrustedError, fetched, http_client
from telemetry.sources.trust import Trust, secret_in

QUERY = "/api/v1/query"
GUIDE = "docs/traffic.md says how (chart value prometheus.access)"
_UNAUTHORIZED, _FORBIDDEN = 401, 403
_PORTS = {"http": 80, "https": 443}
_PATH = re.compile(r"(/[A-Za-z0-9_~:@=+,.-]+)*/?")
"""Parts that no server takes for something else: nothing empty, escaped or with parameters."""
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_VALUE = re.compile(r"[!-~]([ -~]{0,1022}[!-~])?")
_SECRET_HEADERS = {"authorization", "proxy-authorization", "cookie"}
_OUR_HEADERS = {
    "accept",
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
}


class AccessError(InputError):
    """A server wants to know who asks, or wants somebody else, or what it is to be brought cannot be read."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an address is, in the one form that is compared."""

    scheme: str
    host: bytes
    port: int
    parts: tuple[str, ...]

    def within(self, other: "_Place") -> bool:
        return (self.scheme, self.host, self.port) == (other.scheme, other.host, other.port) and (
            self.parts[: len(other.parts)] == other.parts
        )


def _place_of(address: str) -> _Place | None:
    """Return None for what may not be what it looks like; read by the library that sends the request."""
    try:
        url = httpx.URL(address)
        path = url.raw_path.decode("ascii")
        if url.scheme not in _PORTS or not url.raw_host or url.userinfo or url.fragment:
            return None
        port = url.port or _PORTS[url.scheme]
    except (httpx.InvalidURL, UnicodeError, ValueError):
        return None
    parts = tuple(path.strip("/").split("/")) if path.strip("/") else ()
    plain = _PATH.fullmatch(path) is not None and not any(set(part) == {"."} for part in parts)
    return _Place(url.scheme, url.raw_host, port, parts) if plain else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusAccess:
    """What the servers at one prefix are brought; files, which may be exchanged meanwhile.

    Parameters
    ----------
    url
        Scheme, host, port and the first parts of the path, such as ``https://thanos.monitoring:9091``.
    token
        Brought as a bearer token.
    username, password
        Brought by HTTP's basic scheme; both, and no token.
    authority
        Certificates (PEM) that sign the server's; None: the public authorities.
    certificate, key
        Who we are over TLS; both or none.
    server_name
        What the server's certificate is for, where that is not the host.
    headers
        Brought as they stand, such as the tenant: no secrets.
    namespaces
        Whose resources may have the server asked with this; none: everybody's, and those of the cluster.
    allow_http
        Secrets may go over a connection that everybody on the way can read.

    Raises
    ------
    InputError
        One line: what does not go together.
    """

    url: str
    token: Path | None = None
    username: Path | None = None
    password: Path | None = None
    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    namespaces: tuple[str, ...] = ()
    allow_http: bool = False
    place: _Place = field(init=False)

    def __post_init__(self) -> None:
        place = _place_of(self.url)
        if place is None:
            shown = "with a user in it" if "@" in self.url else repr(self.url)
            raise InputError(
                f"url {shown}", right="https://HOST[:PORT][/PATH], without user, ?, # and escapes"
            )
        object.__setattr__(self, "place", place)
        for pair in (("username", "password"), ("certificate", "key")):
            if len({getattr(self, name) is None for name in pair}) > 1:
                raise InputError(f"{pair[0]} and {pair[1]} go together", where=self.url, right="both or none")
        if self.token is not None and self.password is not None:
            raise InputError("a token and a password", where=self.url, right="one of them")
        over_tls = any((self.authority, self.certificate, self.server_name))
        if place.scheme == "http" and over_tls:
            raise InputError("certificates are of no use with http", where=self.url, right="https")
        if place.scheme == "http" and (self.token or self.password) and not self.allow_http:
            raise InputError(
                "http shows the secret to everybody on the way",
                where=self.url,
                right="https, or allow-http where something else encrypts",
            )
        for name, value in self.headers:
            self._check_header(name, value)
        if not (over_tls or self.token or self.password or self.headers):
            raise InputError(
                "there is nothing to bring", where=self.url, right="a token, a password, a CA, a header, …"
            )

    def _check_header(self, name: str, value: str) -> None:
        if name.lower() in _SECRET_HEADERS:
            raise InputError(f"header {name} is a secret", where=self.url, right="a token or password file")
        if name.lower() in _OUR_HEADERS or _HEADER.fullmatch(name) is None:
            raise InputError(f"header {name!r}", where=self.url, right="a name such as X-Scope-OrgID")
        if _VALUE.fullmatch(value) is None:
            raise InputError(
                f"header {name} with a value that cannot be sent", where=self.url, right="printable ASCII"
            )

    def brought(self) -> dict[str, str]:
        """Return the headers as the files are now.

        Raises
        ------
        InputError
            One line: a file is not there, is empty, or holds no secret.
        """
        headers = dict(self.headers)
        if self.token is not None:
            headers["Authorization"] = f"Bearer {secret_in(self.token)}"
        elif self.username is not None and self.password is not None:
            username, password = secret_in(self.username), secret_in(self.password)
            if ":" in username:
                raise InputError("a user name with a colon", where=str(self.username), right="one without")
            pair = base64.b64encode(f"{username}:{password}".encode("ascii")).decode("ascii")
            headers["Authorization"] = f"Basic {pair}"
        return headers

    def told(self) -> str:
        """Say what is brought, without a secret."""
        parts = [f"header {name}" for name, _ in self.headers]
        parts += [f"{path}" for path in (self.token, self.username, self.password, self.certificate) if path]
        return ", ".join(parts) or "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusServers:
    """Asks servers by address; may be used from several threads.

    Parameters
    ----------
    accesses
        What the installation has.

    Raises
    ------
    InputError
        Two accesses are for the same.
    """

    accesses: Sequence[PrometheusAccess] = ()
    _trusts: dict[PrometheusAccess, Trust] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, one in enumerate(self.accesses):
            for other in self.accesses[:index]:
                shared = {*one.namespaces} & {*other.namespaces} or one.namespaces == other.namespaces
                if one.place == other.place and shared:
                    raise InputError(
                        "two accesses for the same", where=one.url, right="one, or other namespaces"
                    )
            if one.authority is not None or one.certificate is not None:
                self._trusts[one] = Trust(authority=one.authority, certificate=one.certificate, key=one.key)

    def access_to(self, url: str, *, namespace: str | None) -> PrometheusAccess | None:
        """Return what to bring to a server: what is for the longest prefix, rather for the namespace than for all.

        ``namespace`` is that of the resource that wants to know; None: one of the cluster.

        Raises
        ------
        AccessError
            There is something for this server, but not for this namespace.
        """
        place = _place_of(f"{url.rstrip('/')}{QUERY}")
        found = [] if place is None else [each for each in self.accesses if place.within(each.place)]
        allowed = [each for each in found if not each.namespaces or namespace in each.namespaces]
        if found and not allowed:
            who = "the cluster's resources" if namespace is None else f"namespace {namespace}"
            raise AccessError(f"the access to it is not for {who}", where=url, right=f"one that is: {GUIDE}")
        return max(allowed, key=lambda each: (len(each.place.parts), bool(each.namespaces)), default=None)

    async def query(
        self,
        client: httpx.AsyncClient,
        url: str,
        form: Mapping[str, str],
        *,
        namespace: str | None,
        source: str,
        timeout_s: float = TIMEOUT_S,
        most_bytes: int = MOST_BYTES,
    ) -> tuple[int, bytes]:
        """Ask one question; return status, whatever it is but 401 and 403, and body.

        Parameters
        ----------
        client
            For servers that need no certificates of their own.
        url
            Of the server, up to where ``/api/v1`` begins.
        source
            What errors call it.

        Raises
        ------
        AccessError
            One line: the server refuses who asks, or there is nothing to bring, with what to do.
        UnreachableError, InputError
            As `telemetry.sources.bounded_http.fetched`.
        """
        access = self.access_to(url, namespace=namespace)
        trust = None if access is None else self._trusts.get(access)
        try:
            headers = {} if access is None else access.brought()
            context = None if trust is None else trust.context()
        except InputError as error:
            raise AccessError(f"what to bring cannot be read: {error}", where=source) from None
        try:
            async with AsyncExitStack() as stack:
                if context is not None:  # it keeps no connections, so a client of its own costs little
                    client = await stack.enter_async_context(http_client(verify=context))
                status, body = await fetched(
                    client,
                    f"{url.rstrip('/')}{QUERY}",
                    source=source,
                    form=dict(form),
                    timeout_s=timeout_s,
                    most_bytes=most_bytes,
                    refused=range(0),
                    headers=headers,
                    server_name="" if access is None else access.server_name,
                )
        except UntrustedError as error:
            right = "the certificates that sign its own" if access and access.authority else "its CA"
            raise UntrustedError(error.what, where=source, right=f"{right}: {GUIDE}") from None
        if status in {_UNAUTHORIZED, _FORBIDDEN}:
            raise _refusal(status, access, source)
        return status, body

    def troubles(self) -> list[str]:
        """Return one line for every access whose files cannot be used now."""
        found = []
        for each in self.accesses:
            try:
                each.brought()
                if each in self._trusts:
                    self._trusts[each].context()
            except InputError as error:
                found.append(f"{each.url}: {error}")
        return found


def _refusal(status: int, access: PrometheusAccess | None, source: str) -> AccessError:
    """Say who was refused and what to do."""
    if access is None:
        what = f"HTTP {status}: it wants to know who asks, and the controller has no access to it"
        return AccessError(what, where=source, right=f"give it one: {GUIDE}")
    if status == _UNAUTHORIZED:
        what = f"HTTP {status}: it does not accept what it is brought ({access.told()})"
        return AccessError(
            what, where=source, right="put what it accepts into the Secret; no restart is needed"
        )
    what = f"HTTP {status}: who asks ({access.told()}) may not read metrics there"
    return AccessError(what, where=source, right="let that user, ServiceAccount or tenant query it")
