"""``ballast doctor``: what a cluster lacks for Ballast, and what to do about it."""

from typing import TYPE_CHECKING, Any

import click

from controller.cli.cluster import context_option, kubeconfig_option, namespace_option, talking_to
from controller.cli.exit_codes import ExitCode
from controller.cli.options import common_options, output_option

if TYPE_CHECKING:
    from controller.operator.doctor.findings import Report

SIGNS = {"ok": "ok", "missing": "MISSING", "warning": "warning", "absent": "absent"}
MOST_ROWS = 40


def _account(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, str] | None:
    if value is None:
        return None
    namespace, slash, name = value.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise click.BadParameter(f"{value!r} is not NAMESPACE/NAME, as in ballast/ballast-controller")
    return namespace, name


@click.command()
@kubeconfig_option
@context_option
@namespace_option("Namespace of the release.  [default: where its Lease is found]")
@click.option(
    "--as-service-account",
    "account",
    metavar="NS/NAME",
    callback=_account,
    help="Ask for the rights of this ServiceAccount (the controller's) instead of your own.",
)
@click.option(
    "--watch-namespaces", metavar="A,B", default="", help="As given to the controller; all by default."
)
@click.option(
    "--gpu-label", default="nvidia.com/gpu.product", show_default=True, help="Node label of the GPU."
)
@click.option("--gpu-resource", default="nvidia.com/gpu", show_default=True, help="What counts GPUs.")
@click.option(
    "--database-url",
    default="",
    metavar="URL",
    help="History that the controller uses; it is tried from this machine.",
)
@common_options(output_option)
def doctor(
    *,
    kubeconfig: str | None,
    context: str | None,
    namespace: str | None,
    account: tuple[str, str] | None,
    watch_namespaces: str,
    gpu_label: str,
    gpu_resource: str,
    database_url: str,
    output: str,
) -> int:
    """Say what a cluster lacks for Ballast, exactly, and what to do about it. Nothing is changed.

    Exit code: 0 nothing is missing, 3 something is, 1 the cluster cannot be reached.

    Example: ballast doctor --as-service-account ballast/ballast-controller
    """
    from controller.cli.output import print_structured
    from controller.operator.doctor.examination import Doctor, Wishes

    wishes = Wishes(
        namespace=namespace,
        watched=tuple(name.strip() for name in watch_namespaces.split(",") if name.strip()),
        account=account,
        gpu_label=gpu_label,
        gpu_resource=gpu_resource,
        database_url=database_url,
    )
    with talking_to(kubeconfig, context) as cluster:
        report = Doctor(api=cluster.api, wishes=wishes).examine()
    if output == "table":
        print_report(cluster.server, report)
    else:
        print_structured(doctor_answer(cluster.server, report), output)
    return ExitCode.DONE if report.complete else ExitCode.MISSED


def doctor_answer(server: str, report: "Report") -> dict[str, Any]:
    """Write ``doctor/1``."""
    from controller.cli.answers import ballast_version

    return {
        "schema": "doctor/1",
        "version": ballast_version(),
        "server": server,
        "server_version": report.server_version,
        "namespace": report.namespace or None,
        "leader": report.leader or None,
        "complete": report.complete,
        "findings": [
            {"area": f.area, "mark": str(f.mark), "what": f.what, "do": f.do or None} for f in report.findings
        ],
        "gpu_nodes": [
            {
                "product": p.label or None,
                "gpu_type": p.gpu_type or None,
                "nodes": p.nodes,
                "gpus": p.gpus,
                "closed_nodes": p.closed,
                "profiles": list(p.profiles),
            }
            for p in report.products
        ],
    }


def print_report(server: str, report: "Report") -> None:
    """Print what was found, worst last, so that it stands above the prompt."""
    from controller.cli.output import print_table

    click.echo(f"{server}, Kubernetes {report.server_version.removeprefix('v')}")
    if report.products:
        click.echo("\nGPU nodes")
        print_table(
            "",
            ("label", "GPU type", "nodes", "GPUs", "closed", "profiles"),
            [
                (
                    p.label or "(none)",
                    p.gpu_type or "not in the catalogue",
                    p.nodes,
                    p.gpus,
                    p.closed,
                    _some(p.profiles),
                )
                for p in report.products
            ],
            right=(2, 3, 4),
        )
    order = ("ok", "absent", "warning", "missing")
    found = sorted(report.findings, key=lambda finding: order.index(finding.mark))
    hidden = max(0, len(found) - MOST_ROWS)
    click.echo("What was looked at" if report.products else "\nWhat was looked at")
    print_table(
        "",
        ("", "area", "finding"),
        [(SIGNS[f.mark], f.area, f.what + (f"\n  → {f.do}" if f.do else "")) for f in found[hidden:]],
    )
    if hidden:
        click.echo(f"{hidden} more; -o json has all of them\n")
    missing = sum(finding.mark == "missing" for finding in report.findings)
    warnings = sum(finding.mark == "warning" for finding in report.findings)
    if missing:
        click.echo(f"{missing} missing, {warnings} warnings: do what the arrows (→) say, then ask again.")
    else:
        click.echo(f"Nothing is missing ({warnings} warnings).")


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3]) or "none"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
