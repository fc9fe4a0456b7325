"""The manner in which our custom resources are written down: camelCase, closed, with bounds and rules as data.

It exists so that every resource model says its CEL rules and list types beside its fields, where the generator
(`controller.resources.generate`) finds them. It holds no resource.
"""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

MOST_ITEMS = 64


class Part(BaseModel):
    """A part of a resource: frozen, camelCase outside, snake_case inside.

    Unknown fields are ignored when read: the API server prunes them, and an older Ballast must read what a newer one
    wrote.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore", allow_inf_nan=False
    )

    def written(self) -> dict[str, Any]:
        """Return the JSON of the part without what was never set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """Return CEL rules (rule, message) as the extra of a schema."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}


def list_map(*keys: str) -> dict[str, Any]:
    """Return the extra of a list whose items are told apart by keys."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


def spelled(pattern: str, message: str, *also: tuple[str, str], **more: Any) -> Any:
    r"""Return a text field that must match a pattern; who breaks it reads the message, not the pattern.

    Patterns name their characters one by one (no ``\\s``, no ``\\d``): Go and Rust mean different sets by the classes.
    """
    extra = rules((f"self.matches({json.dumps(pattern)})", message), *also)
    return Field(pattern=pattern, json_schema_extra=extra, **more)


ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}
MOST_REPLICAS = 100_000

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
ObjectName = Annotated[
    str,
    spelled(
        rf"^{_LABEL}(\.{_LABEL})*$",
        "is no name of an object: lower-case letters and digits, with - and . between them",
        min_length=1,
        max_length=253,
    ),
]
Label = Annotated[
    str,
    spelled(
        f"^{_LABEL}$",
        "is no name: lower-case letters and digits, with - between them",
        min_length=1,
        max_length=63,
    ),
]
ModelName = Annotated[
    str,
    spelled("^[!-~]+$", "is no name of a model: letters, digits and signs, no spaces", max_length=253),
]
PATH = '/[!-"$->@-~]*'
"""Printable ASCII without a space, # and ?."""
_HOST_LABEL = "[A-Za-z0-9]([-A-Za-z0-9_]{0,61}[A-Za-z0-9])?"
_HOST = rf"({_HOST_LABEL}(\.{_HOST_LABEL})*|\[[0-9A-Fa-f:.]+\])"
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_SPACE = r"[ \t\n]*"
_MATCHER = (
    rf'{_SPACE}[a-zA-Z_][a-zA-Z0-9_]*{_SPACE}(=~|!~|!=|=){_SPACE}"([^"\\\x00-\x1f]|\\["\\nt])*"{_SPACE}'
)
_MATCHERS = f"({_SPACE}|{_MATCHER}(,{_MATCHER})*,?{_SPACE})"
Url = Annotated[
    str,
    spelled(
        f"^https?://{_HOST}(:{_PORT})?({PATH})?$",
        "is no address such as http://prometheus.monitoring:9090, without user, ? and #",
        max_length=1024,
    ),
]
PROMETHEUS_URL = (
    "Of a Prometheus, up to where /api/v1 begins. Tokens, certificates and tenants for it are the installation's:"
    " chart value prometheus.access."
)
Selector = Annotated[
    str,
    spelled(
        rf"^({_MATCHERS}|{_SPACE}\{{{_MATCHERS}\}}{_SPACE})$",
        'is no list of label matchers such as namespace="chat",model_name="m"',
        ('!self.contains("__name__")', "names a series; labels only: Ballast names the series"),
        max_length=1024,
    ),
]
DataKey = Annotated[
    str,
    spelled(
        r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$",
        "is no key of a ConfigMap: letters, digits, -, _ and .",
        min_length=1,
        max_length=253,
    ),
]
"""A key of a ConfigMap."""
Amount = Annotated[float, Field(ge=0, le=1e12)]
Rate = Annotated[float, Field(ge=0, le=1e6)]
Money = Annotated[float, Field(ge=0, le=1e6)]
Watts = Annotated[float, Field(ge=0, le=1e6)]
Latency = Annotated[float, Field(gt=0, le=3600)]
Tokens = Annotated[int, Field(gt=0, le=10_000_000)]
Replicas = Annotated[int, Field(ge=0, le=MOST_REPLICAS)]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"}, max_length=40)]
Text = Annotated[str, Field(max_length=4096)]


class Condition(Part):
    """One condition in the shape of metav1.Condition."""

    type: str = Field(min_length=1, max_length=64)
    status: str = Field(json_schema_extra={"enum": ["True", "False", "Unknown"]})
    reason: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    message: Text = ""
    last_transition_time: Time
    observed_generation: int = Field(default=0, ge=0)


Conditions = Annotated[tuple[Condition, ...], Field(max_length=32, json_schema_extra=list_map("type"))]


class TargetRef(Part):
    """What is scaled: a Deployment, StatefulSet or LeaderWorkerSet in the namespace of the resource."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "self.kind == 'LeaderWorkerSet' ? self.apiVersion == 'leaderworkerset.x-k8s.io/v1'"
                    " : self.apiVersion == 'apps/v1'"
                ),
                (
                    "apiVersion is apps/v1 for Deployment and StatefulSet,"
                    " leaderworkerset.x-k8s.io/v1 for LeaderWorkerSet"
                ),
            )
        )
    )

    api_version: str = Field(default="apps/v1", max_length=64)
    kind: str = Field(json_schema_extra={"enum": ["Deployment", "StatefulSet", "LeaderWorkerSet"]})
    name: ObjectName


class PlanRef(Part):
    """The Plan in force or waiting for approval, in the same namespace."""

    name: ObjectName
    digest: str = Field(max_length=128)
