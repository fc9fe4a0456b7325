"""``ballast controller run``: the operator of a cluster, as the chart's Deployment starts it."""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import click

from controller.cli.lazy import LazyGroup
from controller.cli.options import FiniteRange, common_options
from controller.cli.prometheus_option import prometheus_access_option

NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"


@click.group(cls=LazyGroup, members={"run": "controller.cli.controller:run"})
def controller() -> None:
    """Run the operator.

    Example: ballast controller run --namespace ballast-system
    """


def own_namespace() -> str:
    """Return the namespace of the pod we run in."""
    try:
        with open(NAMESPACE_FILE, encoding="utf-8") as file:  # noqa: PTH123 - a path of the kubelet's
            return file.read().strip()
    except OSError:
        return os.environ.get("POD_NAMESPACE", "ballast-system")


@click.command("run")
@click.option("--namespace", metavar="NAME", help="Namespace of the Lease; the pod's own by default.")
@click.option("--identity", metavar="NAME", help="Name in the Lease; the pod's (or host's) name by default.")
@click.option("--kubeconfig", type=click.Path(), help="Cluster to talk to; the one it runs in by default.")
@click.option("--watch-namespaces", metavar="A,B", default="", help="Only these namespaces; all by default.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address for /metrics and probes.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--plan-interval", type=FiniteRange(1), default=60.0, show_default=True, help="Seconds.")
@click.option(
    "--debounce",
    type=FiniteRange(0),
    default=2.0,
    show_default=True,
    help="Quiet seconds before a solve.",
)
@click.option("--solve-limit", type=FiniteRange(0.1), default=30.0, show_default=True, help="Seconds.")
@click.option("--solver-memory-mib", type=click.IntRange(64), default=4096, show_default=True)
@click.option("--sample-interval", type=FiniteRange(0.1), default=15.0, show_default=True, help="Seconds.")
@click.option("--traffic-window", type=FiniteRange(1), default=60.0, show_default=True, help="Seconds.")
@click.option("--audit-interval", type=FiniteRange(0.5), default=30.0, show_default=True, help="Seconds.")
@click.option("--watch-inactivity", type=FiniteRange(1), default=70.0, show_default=True, help="Seconds.")
@click.option("--lease-duration", type=FiniteRange(1), default=15.0, show_default=True, help="Seconds.")
@click.option("--renew-deadline", type=FiniteRange(0.5), default=10.0, show_default=True, help="Seconds.")
@click.option("--retry-period", type=FiniteRange(0.1), default=2.0, show_default=True, help="Seconds.")
@click.option(
    "--gpu-label", default="nvidia.com/gpu.product", show_default=True, help="Node label of the GPU."
)
@click.option("--gpu-resource", default="nvidia.com/gpu", show_default=True)
@click.option(
    "--database-url",
    default="",
    help="History: sqlite:///FILE or postgresql+psycopg://…; none: kept nowhere.",
)
@click.option(
    "--loads-folder",
    type=click.Path(),
    default="",
    help="Where volumes with recordings of expert loads are mounted, one folder per claim.",
)
@click.option(
    "--agent-port",
    type=click.IntRange(1, 65535),
    default=9409,
    show_default=True,
    help="Where the agents of nodes answer.",
)
@click.option(
    "--agent-ca",
    type=click.Path(dir_okay=False),
    help="Certificates (PEM) that sign those of the agents; without, agents are asked in the clear.",
)
@click.option(
    "--agent-server-name",
    default="ballast-agent",
    show_default=True,
    help="Name that the agents' certificates are for, with --agent-ca.",
)
@click.option(
    "--agent-token-file", type=click.Path(dir_okay=False), help="Bearer token that agents want to be brought."
)
@prometheus_access_option
@click.option("--paused", is_flag=True, help="Hold everything as it is; only say what is seen.")
@click.option("--log-format", type=click.Choice(["json", "console"]), default="json", show_default=True)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning"]), default="info", show_default=True
)
@common_options()
def run(**options: Any) -> None:
    """Watch ModelServices, plan, and bring approved plans about, as one of several replicas.

    Example: ballast controller run --kubeconfig ~/.kube/config --namespace ballast-system --log-format console
    """
    from controller.operator.logs import set_up_logs

    set_up_logs(options["log_format"], options["log_level"])
    from controller.operator.api import ApiError
    from controller.operator.brain import BrainLimits
    from controller.operator.leader import LeaseTimes
    from controller.operator.loop import LoopSettings
    from controller.operator.power.agents import AgentAccess
    from controller.operator.run import Operator, OperatorSettings
    from solver.domain.errors import InputError
    from telemetry.sources.prometheus_access import PrometheusServers

    try:
        times = LeaseTimes(
            duration_s=options["lease_duration"],
            renew_deadline_s=options["renew_deadline"],
            retry_s=options["retry_period"],
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    settings = OperatorSettings(
        namespace=options["namespace"] or own_namespace(),
        identity=options["identity"] or os.environ.get("POD_NAME") or socket.gethostname(),
        kubeconfig=options["kubeconfig"],
        watch_namespaces=tuple(n.strip() for n in options["watch_namespaces"].split(",") if n.strip()),
        host=options["host"],
        port=options["port"],
        lease=times,
        loop=LoopSettings(
            plan_interval_s=options["plan_interval"],
            debounce_s=options["debounce"],
            paused=options["paused"],
            gpu_label=options["gpu_label"],
            whole_cluster=not options["watch_namespaces"],
        ),
        brain=BrainLimits(solve_s=options["solve_limit"], memory_mib=options["solver_memory_mib"]),
        gpu_resource=options["gpu_resource"],
        sample_s=options["sample_interval"],
        traffic_window_s=max(options["traffic_window"], options["sample_interval"]),
        audit_s=options["audit_interval"],
        loads_folder=options["loads_folder"] or "",
        watch_inactivity_s=options["watch_inactivity"],
        database_url=options["database_url"],
        agent_port=options["agent_port"],
        agent_access=AgentAccess(
            authority=Path(options["agent_ca"]) if options["agent_ca"] else None,
            server_name=options["agent_server_name"],
            token=Path(options["agent_token_file"]) if options["agent_token_file"] else None,
        ),
        prometheus=options["prometheus"] or PrometheusServers(),
    )
    try:
        operator = Operator(settings)
    except ApiError as error:
        raise InputError(
            str(error), right="a reachable cluster with the chart installed; see: ballast doctor"
        ) from error
    code = operator.run()
    sys.stderr.flush()
    os._exit(code)  # the lease is handed over; threads of the watch need not be waited for
