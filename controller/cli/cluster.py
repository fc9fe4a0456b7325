"""Options of commands that look at a cluster, and how they connect: kubeconfig, context, namespace, as in kubectl.

It exists so that all of them connect alike and fail alike, in one line. It loads the Kubernetes client only when a
command asks for a connection.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from solver.domain.errors import InputError

if TYPE_CHECKING:
    from controller.operator.api import Api

REACHABLE = "a reachable cluster; kubectl cluster-info shows the present one"

kubeconfig_option = click.option(
    "--kubeconfig",
    type=click.Path(),
    metavar="FILE",
    help="Cluster to talk to.  [default: KUBECONFIG, else ~/.kube/config]",
)
context_option = click.option(
    "--context", metavar="NAME", help="Context of the kubeconfig.  [default: the current one]"
)


def namespace_option(help_text: str) -> Callable[[Any], Any]:
    """Return ``--namespace`` with what it means to the command."""
    return click.option("-n", "--namespace", metavar="NAME", help=help_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A connection, and what to call it."""

    api: "Api"
    server: str
    namespace: str
    """Of the context."""


@contextmanager
def talking_to(kubeconfig: str | None, context: str | None) -> Iterator[Cluster]:
    """Connect; what the API server then refuses, or its silence, becomes one line.

    Raises
    ------
    InputError
        If there is no such configuration, or the API server cannot be reached or refuses.
    """
    import logging

    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it says each failure twice
    from controller.operator.api import Api, ApiError, connect

    client = connect(kubeconfig, context)
    namespace = _namespace(kubeconfig, context)
    server = str(client.configuration.host)
    try:
        yield Cluster(api=Api(client=client), server=server, namespace=namespace)
    except ApiError as error:
        if error.code == 0:
            raise InputError(_short(str(error)), where=server, right=REACHABLE) from None
        right = "credentials that it knows" if error.code == 401 else "an account that may"
        raise InputError(f"{error} ({error.code})", where=server, right=right) from None


def _short(message: str) -> str:
    """Leave out the objects that the HTTP library names."""
    _, _, cause = message.rpartition("Caused by ")
    text = cause.rstrip(")") if cause else message
    if ">: " in text:
        text = text.rpartition(">: ")[2]
    elif "): " in text:
        text = text.rpartition("): ")[2]
    return f"the API server cannot be reached: {text.removeprefix('the API server cannot be reached: ')}"


def _namespace(kubeconfig: str | None, context: str | None) -> str:
    """Return the namespace of the context, or of the pod we run in."""
    from kubernetes import config

    try:
        contexts, current = config.list_kube_config_contexts(config_file=kubeconfig)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        from controller.cli.controller import own_namespace

        return own_namespace()
    chosen = next((found for found in contexts if found["name"] == context), current)
    return str(((chosen or {}).get("context") or {}).get("namespace") or "default")
