"""Fetches a small answer over HTTP within a time and a size, or says in one line why not.

It exists because metrics come from other people's pods and servers: a page that never ends, trickles, or sends us
elsewhere must cost neither memory nor time. Redirects are not followed, proxies of the environment are not used, and
errors never quote what was received, so nobody can read through us what they could not read themselves.
"""

import asyncio
import os
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from solver.domain.errors import InputError

TIMEOUT_S = 5.0
MOST_BYTES = 4 * 2**20
_MOST_CONNECTIONS = 128
_REDIRECTS = range(300, 400)
_PORTS = 65536


class UnreachableError(InputError):
    """Nobody answered, or not in time: asking again at once is a waste."""


class UntrustedError(UnreachableError):
    """Somebody answered with a certificate that nobody we trust has signed for that name."""


def http_client(*, verify: ssl.SSLContext | bool = True) -> httpx.AsyncClient:
    """Return a client for `fetched`: no redirects, no proxies, a bounded number of connections."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(TIMEOUT_S),
        limits=httpx.Limits(max_connections=_MOST_CONNECTIONS, max_keepalive_connections=0),
        follow_redirects=False,
        trust_env=False,
        verify=verify,
        headers={"User-Agent": "ballast", "Accept-Encoding": "identity"},
    )


async def fetched(
    client: httpx.AsyncClient,
    url: str,
    *,
    source: str,
    form: dict[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    most_bytes: int = MOST_BYTES,
    refused: range = range(201, 600),
    headers: Mapping[str, str] | None = None,
    server_name: str = "",
) -> tuple[int, bytes]:
    """Get ``url`` (or post a form to it) and return status and body.

    Parameters
    ----------
    headers
        Are brought along: who asks.
    server_name
        What a certificate has to be for, where the address is a number.

    Raises
    ------
    UnreachableError
        One line with ``source``: nobody answers, too slow, the connection broke, a certificate is not trusted.
    InputError
        The same for: too large, sent elsewhere, a status in ``refused``.
    """
    address = _checked(url, source)
    options: dict[str, Any] = {"headers": {"Accept": "text/plain;version=0.0.4, application/json;q=0.5"}}
    if form is not None:
        options["data"] = form
    options["headers"] |= headers or {}
    if server_name:
        options["extensions"] = {"sni_hostname": server_name}
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream("GET" if form is None else "POST", address, **options) as answer,
        ):
            if answer.status_code in _REDIRECTS:
                raise InputError(
                    f"HTTP {answer.status_code}: a redirect, which is not followed",
                    where=source,
                    right="the address itself",
                )
            if answer.status_code in refused:
                raise InputError(f"HTTP {answer.status_code}", where=source)
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise InputError("the answer is packed, though that was not asked for", where=source)
            body = bytearray()
            async for part in answer.aiter_raw():
                body += part
                if len(body) > most_bytes:
                    raise InputError(
                        f"more than {most_bytes / 2**20:g} MiB", where=source, right="a page of metrics"
                    )
            return answer.status_code, bytes(body)
    except (TimeoutError, httpx.TimeoutException):
        raise UnreachableError(f"no answer within {timeout_s:g} s", where=source) from None
    except (httpx.HTTPError, OSError, ExceptionGroup) as error:
        untrusted = any(isinstance(each, ssl.SSLCertVerificationError) for each in _causes(error))
        raise (UntrustedError if untrusted else UnreachableError)(_told(error), where=source) from None


def _checked(url: str, source: str) -> httpx.URL:
    """Refuse what the layers below would trip over, each in its own way."""
    try:
        parsed = httpx.URL(url)
        sound = parsed.scheme in {"http", "https"} and parsed.host and 0 < (parsed.port or 80) < _PORTS
    except (httpx.InvalidURL, UnicodeError, ValueError):
        sound = False
    if not sound:
        raise InputError("not an address that can be asked", where=source, right="http://host:port/path")
    return parsed


def _causes(error: BaseException) -> Iterator[BaseException]:
    at: BaseException | None = error
    while at is not None:
        yield at
        at = at.exceptions[0] if isinstance(at, BaseExceptionGroup) else at.__cause__ or at.__context__


def _told(error: BaseException) -> str:
    """Say what went wrong as the operating system puts it, where it has an opinion."""
    for at in _causes(error):
        if isinstance(at, ssl.SSLError):
            return f"TLS: {at.reason or 'failed'}"
        if isinstance(at, OSError) and at.strerror:
            return os.strerror(at.errno) if at.errno and at.errno > 0 else at.strerror
    return f"the connection broke ({type(error).__name__})"
