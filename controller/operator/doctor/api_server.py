"""The API server of a cluster: its version, our definitions there, and the kinds that are optional.

It exists so that what an installation lacks is told before anything that depends on it. It looks at no object of any
kind.
"""

from controller.operator.api import (
    HTTP_ROUTES,
    LEADER_WORKER_SETS,
    LEADERSHIPS,
    RESOURCE_SLICES,
    SCALED_OBJECTS,
    Api,
    ApiError,
    Resource,
)
from controller.operator.doctor.findings import Mark, Notes, end_if_unreachable
from controller.operator.permissions import CRDS
from controller.resources.installed import differences
from controller.resources.kinds import GROUP, KINDS, VERSION

LEAST_VERSION = (1, 30)
"""ValidatingAdmissionPolicies are stable since; the chart asks for the same."""
OPTIONAL_KINDS: tuple[tuple[Resource, str], ...] = (
    (LEADER_WORKER_SETS, "needed for replicas on several nodes"),
    (SCALED_OBJECTS, "needed only if KEDA is to scale for Ballast"),
    (HTTP_ROUTES, "needed only for traffic weights between variants"),
    (RESOURCE_SLICES, "needed only for GPUs by DRA"),
)


def examine_version(api: Api, notes: Notes) -> str:
    """Return the version of the API server.

    Raises
    ------
    ApiError
        If it cannot be reached, or does not know us.
    """
    answer = api.request("GET", "/version")
    version = str(answer.get("gitVersion") or "unknown")
    digits = ["".join(c for c in str(answer.get(part) or "") if c.isdigit()) for part in ("major", "minor")]
    known = tuple(int(part) for part in digits if part)
    if len(known) == 2 and known < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        notes.note("api", Mark.MISSING, f"Kubernetes {version} is too old", f"use {least} or newer")
    else:
        notes.note("api", Mark.OK, f"Kubernetes {version} answers")
    return version


def examine_definitions(api: Api, notes: Notes) -> bool:
    """Compare the installed CustomResourceDefinitions with ours; whether all kinds are served."""
    served = True
    for kind in KINDS:
        try:
            body = api.get(CRDS, None, kind.crd_name)
        except ApiError as error:
            end_if_unreachable(error)
            if serves(api, f"{GROUP}/{VERSION}", kind.plural):
                notes.unseen("definitions", f"{kind.crd_name} is there, but its schema", error)
            else:
                served = False
                _note_absent(notes, kind.crd_name)
            continue
        if body is None:
            served = False
            _note_absent(notes, kind.crd_name)
            continue
        differing = [*differences(kind, body)]
        if differing:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            notes.note(
                "definitions",
                Mark.MISSING,
                f"{kind.crd_name} has another schema: {', '.join(differing[:3])}{more}",
                "helm upgrade the chart of this version with crds.install=true",
            )
        else:
            notes.note("definitions", Mark.OK, f"{kind.crd_name} is at our schema")
    if not serves(api, LEADERSHIPS.api_version, LEADERSHIPS.plural):
        notes.note(
            "definitions",
            Mark.WARNING,
            f"{LEADERSHIPS.plural}.{GROUP} is not installed: writes of a replica that has lost its lease are"
            " not refused",
            "helm upgrade the chart with crds.install=true",
        )
    return served


def _note_absent(notes: Notes, name: str) -> None:
    notes.note(
        "definitions",
        Mark.MISSING,
        f"{name} is not installed",
        "helm upgrade --install ballast with crds.install=true",
    )


def examine_optional_kinds(api: Api, notes: Notes) -> None:
    """Say which kinds of others are served, and what is not possible without them."""
    for resource, consequence in OPTIONAL_KINDS:
        if serves(api, resource.api_version, resource.plural):
            notes.note("optional", Mark.OK, f"{resource.kind} ({resource.api_version}) is served")
        else:
            what = f"{resource.kind} ({resource.api_version}) is not served: {consequence}"
            notes.note("optional", Mark.ABSENT, what)


def serves(api: Api, api_version: str, plural: str) -> bool:
    """Whether the API server has a resource; asked by discovery, which everybody may."""
    root = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
    try:
        answer = api.request("GET", root)
    except ApiError as error:
        if error.code == 404:
            return False
        raise
    return any(found.get("name") == plural for found in answer.get("resources") or [])
