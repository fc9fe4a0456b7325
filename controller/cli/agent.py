"""``ballast agent run``: the agent of a node with GPUs; ``ballast agent restore``: what it set is undone."""

import os
import socket
from pathlib import Path
from typing import Any

import click

from controller.cli.exit_codes import ExitCode
from controller.cli.lazy import LazyGroup
from controller.cli.options import FiniteRange, common_options, output_option

JOURNAL = "/var/lib/ballast"


@click.group(
    cls=LazyGroup, members={"run": "controller.cli.agent:run", "restore": "controller.cli.agent:restore"}
)
def agent() -> None:
    """Read and cap the GPUs of this node.

    Example: ballast agent run --orders node.json
    """


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


@click.command("run")
@click.option("--node", metavar="NAME", help="Name of this node; NODE_NAME or the host's name by default.")
@click.option(
    "--orders",
    type=click.Path(),
    help="File with the orders, or a folder with NODE.json; the node's NodePower by default.",
)
@click.option("--kubeconfig", type=click.Path(), help="Cluster to talk to; the one it runs in by default.")
@click.option(
    "--mode",
    type=click.Choice(["recommend", "auto"]),
    default="recommend",
    show_default=True,
    help="recommend sets nothing; auto sets what orders in mode Auto say.",
)
@click.option("--journal", type=click.Path(), default=JOURNAL, show_default=True, help="Folder of the host.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address for telemetry and metrics.")
@click.option("--port", type=click.IntRange(0, 65535), default=9409, show_default=True)
@click.option("--tls-cert", type=click.Path(), help="Certificate (PEM): the page speaks TLS. With --tls-key.")
@click.option("--tls-key", type=click.Path(), help="Key of the certificate.")
@click.option(
    "--read-token-file", type=click.Path(), help="File with the bearer token that readers of the page bring."
)
@click.option(
    "--period", type=FiniteRange(0.05, 10.0), default=1.0, show_default=True, help="Seconds per round."
)
@click.option("--safe-max-mhz", type=click.IntRange(1), help="Safe clock while no orders are known.")
@click.option(
    "--safe-limit-watts", type=FiniteRange(1.0), help="Safe limit of a GPU while no orders are known."
)
@click.option(
    "--release-jitter",
    type=FiniteRange(0.0, 60.0),
    default=5.0,
    show_default=True,
    help="Longest random wait, in seconds, before caps are let go.",
)
@click.option("--boot-id-file", type=click.Path(), default="/proc/sys/kernel/random/boot_id", hidden=True)
@click.option("--log-format", type=click.Choice(["json", "console"]), default="json", show_default=True)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning"]), default="info", show_default=True
)
@common_options()
def run(**options: Any) -> int:
    """Look at the GPUs every second, carry out leased orders, go to safe caps without a lease.

    Nothing is set unless both --mode and the orders say auto.

    Example: ballast agent run --mode auto --orders /etc/ballast/orders --safe-max-mhz 1050
    """
    from controller.agent.orders import FileOrders, OrderSource
    from controller.agent.run import AgentSettings
    from controller.agent.run import run as run_agent
    from controller.operator.logs import set_up_logs
    from solver.domain.node_power import Cap

    if (options["tls_cert"] is None) != (options["tls_key"] is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    set_up_logs(options["log_format"], options["log_level"])
    node = options["node"] or os.environ.get("NODE_NAME") or socket.gethostname()
    source: OrderSource
    if options["orders"]:
        source = FileOrders(Path(options["orders"]), node)
    else:
        from controller.agent.cluster_orders import ClusterOrders

        if options["kubeconfig"] is not None:
            from controller.operator.api import connect

            # A slip is told at once; inside a cluster no round waits for loading.
            connect(options["kubeconfig"])
        source = ClusterOrders(node, options["kubeconfig"])
    return run_agent(
        AgentSettings(
            node=node,
            journal=Path(options["journal"]),
            enforce=options["mode"] == "auto",
            period_s=options["period"],
            host=options["host"],
            port=options["port"],
            fallback=Cap(max_mhz=options["safe_max_mhz"], limit_w=options["safe_limit_watts"]),
            jitter_s=options["release_jitter"],
            boot_id_file=Path(options["boot_id_file"]),
            certificate=_path(options["tls_cert"]),
            key=_path(options["tls_key"]),
            token=_path(options["read_token_file"]),
        ),
        source,
    )


@click.command("restore")
@click.option("--journal", type=click.Path(), default=JOURNAL, show_default=True, help="Folder of the host.")
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Also limits changed by others since; GPUs not in the journal get the default.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--boot-id-file", type=click.Path(), default="/proc/sys/kernel/random/boot_id", hidden=True)
@common_options(output_option)
def restore(journal: str, everything: bool, dry_run: bool, boot_id_file: str, output: str) -> int:
    """Give GPUs back the limits found before the first write, without locks; needs no API server.

    Refused while an agent runs in mode auto. Exit code 3 if a GPU is not as it was.

    Example: ballast agent restore --dry-run
    """
    from controller.agent.restore import restore as restored
    from controller.agent.run import only_one
    from controller.cli.answers import ballast_version
    from controller.cli.output import print_structured, print_table

    lock = None if dry_run else only_one(Path(journal))
    gpus = restored(Path(journal), everything=everything, dry_run=dry_run, boot_id_file=Path(boot_id_file))
    if lock is not None:
        lock.close()
    if output == "table":
        rows = [(gpu.uuid, gpu.outcome, gpu.limit_w, gpu.original_w) for gpu in gpus]
        print_table("", ("GPU", "outcome", "limit W", "original W"), rows, right=(2, 3))
    else:
        answer = {
            "schema": "agent-restore/1",
            "version": ballast_version(),
            "dry_run": dry_run,
            "gpus": [
                {
                    "uuid": gpu.uuid,
                    "outcome": gpu.outcome,
                    "limit_w": gpu.limit_w,
                    "original_w": gpu.original_w,
                    "unlocked": gpu.unlocked,
                }
                for gpu in gpus
            ],
        }
        print_structured(answer, output)
    known = [gpu for gpu in gpus if gpu.outcome != "NotInJournal"]
    return ExitCode.DONE if all(gpu.good for gpu in known) else ExitCode.MISSED
