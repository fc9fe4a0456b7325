"""The ModelServices of a cluster: whether the controller sees them, their traffic, and what their profiles tell.

It exists so that a service that gets no plan is named with its reason. It measures no traffic: it reads what the
controller wrote into the status.
"""

from collections.abc import Mapping, Sequence

from controller.operator.api import MODEL_SERVICES, Api, ApiError, Object
from controller.operator.conditions import TELEMETRY_READY
from controller.operator.doctor.findings import Mark, Notes
from controller.operator.profiles import ADD_ROWS, rows_missing
from controller.resources.gpu_profile import GpuProfileSpec
from solver.domain.fleet import Role


def examine_services(
    api: Api, notes: Notes, watched: Sequence[str], profiles: Mapping[str, GpuProfileSpec]
) -> None:
    """Look at every ModelService of the watched namespaces (none: of all), with the profiles that could be read."""
    try:
        bodies = [body for namespace in watched or (None,) for body in api.list(MODEL_SERVICES, namespace)]
    except ApiError as error:
        notes.unseen("services", "ModelServices", error)
        return
    fine = 0
    for body in bodies:
        metadata, status = body["metadata"], body.get("status") or {}
        name = f"{metadata['namespace']}/{metadata['name']}"
        examine_roles(notes, name, body, profiles)
        conditions = {c.get("type"): c for c in status.get("conditions") or []}
        telemetry = conditions.get(TELEMETRY_READY)
        if telemetry is None or int(status.get("observedGeneration") or 0) < int(
            metadata.get("generation") or 0
        ):
            notes.note(
                "services",
                Mark.MISSING,
                f"ModelService {name}: no controller has looked at it as it is now",
                "see leader above; if --watch-namespaces is set, its namespace must be named there",
            )
        elif telemetry.get("status") != "True":
            notes.note(
                "services",
                Mark.MISSING,
                f"ModelService {name}: no traffic is known ({telemetry.get('reason')}):"
                f" {telemetry.get('message')}",
                _telemetry_advice(body, str(telemetry.get("reason"))),
            )
        else:
            fine += 1
    if bodies and fine:
        notes.note("services", Mark.OK, f"the traffic of {fine} of {len(bodies)} ModelServices is known")
    elif not bodies:
        notes.note("services", Mark.OK, "there is no ModelService yet")


def examine_roles(notes: Notes, name: str, body: Object, profiles: Mapping[str, GpuProfileSpec]) -> None:
    """Name the variants whose profile tells nothing of what they serve."""
    for variant in (body.get("spec") or {}).get("variants") or []:
        profile = profiles.get(str(variant.get("gpuProfile")))
        role = str(variant.get("role") or Role.BOTH)
        unknown = "" if profile is None or role not in set(Role) else rows_missing(profile, Role(role))
        if unknown:
            notes.note(
                "services",
                Mark.MISSING,
                f"ModelService {name}, variant {variant.get('name')}: GpuProfile {variant.get('gpuProfile')}:"
                f" {unknown}",
                ADD_ROWS,
            )


def _telemetry_advice(body: Object, reason: str) -> str:
    traffic = body["spec"].get("traffic") or {}
    metadata = body["metadata"]
    if "scrape" in traffic:
        scrape = traffic["scrape"]
        return (
            f"see that the pods are Ready and serve {scrape.get('path', '/metrics')} on port"
            f" {scrape.get('port', 8000)} for {scrape.get('engine', 'vllm')}, and that no NetworkPolicy is in"
            " the way"
        )
    if "prometheus" in traffic and reason == "AccessDenied":
        return "do what the message says; docs/traffic.md has the values, prometheus.access"
    if "prometheus" in traffic:
        source = traffic["prometheus"]
        outputs = source.get("outputSelector")
        others = f", and for outputs with {{{outputs}}}" if outputs else ""
        return (
            f"ask {source.get('url')} for the named series with selector {{{source.get('selector', '')}}}{others};"
            " correct the selector, or let Prometheus scrape the pods"
        )
    if "traceConfigMap" in traffic:
        source = traffic["traceConfigMap"]
        return f"put the trace into ConfigMap {source.get('name')}, key {source.get('key', 'trace.csv')}"
    return f"ballast explain modelservice/{metadata['name']} -n {metadata['namespace']} ({reason})"
