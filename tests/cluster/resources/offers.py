"""Offers objects to a real API server, and expects what it says.

It exists so that each kind is tested in a file of its own by the same few lines. Objects are made elsewhere.
"""

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest

from controller.operator.api import (
    EXPERT_PLACEMENTS,
    GPU_PROFILES,
    MODEL_SERVICES,
    NODE_POWERS,
    PLANS,
    POWER_DOMAINS,
    Api,
    ApiError,
    Resource,
)
from tests.cluster.control_plane import ControlPlane
from tests.cluster.scene import Object

SPACE = "resources"
NOW = "2026-11-21T10:00:00Z"
GONE: Any = ...
"""In place of a value: what is there is taken away."""
RESOURCES = {
    "ModelService": MODEL_SERVICES,
    "GpuProfile": GPU_PROFILES,
    "Plan": PLANS,
    "ExpertPlacement": EXPERT_PLACEMENTS,
    "PowerDomain": POWER_DOMAINS,
    "NodePower": NODE_POWERS,
}
URL = "is no address such as http://prometheus.monitoring:9090, without user, ? and #"
NAME = "is no name of an object: lower-case letters and digits, with - and . between them"

Rows = tuple[tuple[str, Any, str], ...]
"""Where an object is changed, to what, and words of the refusal."""


def changed(body: Object, path: str, value: Any) -> Object:
    """Set what lies at a path of dots; GONE takes it away."""
    place: Any = body
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        place = place[part]
    if value is GONE:
        del place[last]
    else:
        place[last] = copy.deepcopy(value)
    return body


def offered(api: Api, resource: Resource, body: Object, *, validation: str = "Strict") -> Object:
    """Ask the server whether it would take an object."""
    return api.request(
        "POST",
        resource.path(body["metadata"].get("namespace")),
        body={"apiVersion": resource.api_version, "kind": resource.kind, **body},
        query={"dryRun": "All", "fieldValidation": validation},
    )


def each_of(kind: str, rows: Rows) -> list[Any]:
    """Return the rows as parameters, each named by its kind, path and words."""
    return [pytest.param(*row, id=f"{kind} {row[0]} {row[2]}"[:90]) for row in rows]


def refuse(api: Api, resource: Resource, body: Object, words: str) -> None:
    """Expect that the server does not take an object, and says so in words that people read."""
    with pytest.raises(ApiError) as refused:
        offered(api, resource, body)
    assert refused.value.code in {400, 422}
    assert words in str(refused.value)
    assert "should match" not in str(refused.value)  # a pattern is no message


def kubectl_says(kubectl: Path, plane: ControlPlane, *words: str, text: str = "") -> str:
    """Return what kubectl prints, errors first."""
    command = [str(kubectl), f"--kubeconfig={plane.kubeconfig}", f"--namespace={SPACE}", *words]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout
