"""``--prometheus-access``: what the Prometheus servers at one address are brought, as ``KEY=VALUE,KEY=VALUE``.

It exists because one server's settings belong together and there may be several servers. Values that are secrets are
never written here, only the files that hold them; whatever else is wrong with them is
`telemetry.sources.prometheus_access`'s to say.
"""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from solver.domain.errors import InputError

if TYPE_CHECKING:
    from telemetry.sources.prometheus_access import PrometheusAccess, PrometheusServers

FILES = {
    "token-file": "token",
    "username-file": "username",
    "password-file": "password",
    "ca-file": "authority",
    "cert-file": "certificate",
    "key-file": "key",
}
WORDS = {"url": "url", "server-name": "server_name"}
REPEATED = ("header", "namespace")
FLAG = "allow-http"
KEYS = (*WORDS, *FILES, *REPEATED)


def access_of(text: str) -> "PrometheusAccess":
    """Read one access; a part with a comma in it stands in double quotes, as in CSV.

    Raises
    ------
    InputError
        One line: what is not understood or does not go together.
    """
    from telemetry.sources.prometheus_access import PrometheusAccess

    try:
        parts = next(csv.reader([text], strict=True), [])
    except csv.Error:
        parts = []
    found: dict[str, Any] = {}
    headers: list[tuple[str, str]] = []
    namespaces: list[str] = []
    for part in parts:
        key, _, value = part.partition("=")
        field = FILES.get(key) or WORDS.get(key)
        if part == FLAG:
            found["allow_http"] = True
        elif key not in KEYS or not value:
            # what stands after the sign may be a secret that does not belong here
            right = f"KEY=VALUE with one of {', '.join(KEYS)}, or {FLAG}"
            raise InputError(f"{key[:40]!r} is not understood", right=right)
        elif key == "header":
            name, colon, said = value.partition(":")
            if not colon:
                raise InputError("a header without a value", right="header=X-Scope-OrgID:team-a")
            headers.append((name, said))
        elif key == "namespace":
            namespaces.append(value)
        elif field is None or field in found:
            raise InputError(f"{key} twice", right="once")
        else:
            found[field] = Path(value) if key in FILES else value
    if "url" not in found:
        raise InputError("no url", right="url=https://thanos.monitoring:9091,token-file=/prometheus/0/token")
    return PrometheusAccess(**found, headers=tuple(headers), namespaces=tuple(namespaces))


def servers_of(
    _ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> "PrometheusServers | None":
    """Read all accesses; None where there are none."""
    if not values:
        return None
    from telemetry.sources.prometheus_access import PrometheusServers

    try:
        return PrometheusServers(accesses=tuple(access_of(text) for text in values))
    except InputError as error:
        raise click.BadParameter(str(error), param=parameter) from None


prometheus_access_option = click.option(
    "--prometheus-access",
    "prometheus",
    multiple=True,
    metavar="KEY=VALUE,…",
    callback=servers_of,
    help="What Prometheus servers at one url are brought; may be repeated. Keys: url, token-file, or username-file"
    " and password-file, ca-file, cert-file and key-file, server-name, header=NAME:VALUE, namespace (whose resources"
    " may use it; all by default), allow-http. Files are read anew when they change.",
)
