"""Compares an installed CustomResourceDefinition with the one that this version generates.

It exists so that a cluster whose schema is older or newer is found by its fields, not by what goes wrong later. Labels,
annotations and printed columns may differ; version, scope, schema and subresources may not.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from controller.resources.generate import definition
from controller.resources.kinds import VERSION, Kind

PASSED_OVER = {"properties", "items"}
"""Words of the schema language that people need not see in a field's path."""


def differences(kind: Kind, body: Mapping[str, Any]) -> Iterator[str]:
    """Name what differs between an installed definition and ours; nothing if it is the same."""
    yield from _differing(_contract(definition(kind)["spec"]), _contract(body["spec"]), "")


def _contract(spec: Mapping[str, Any]) -> dict[str, Any]:
    version: Mapping[str, Any] = next(
        (found for found in spec.get("versions") or [] if found.get("name") == VERSION), {}
    )
    schema = (version.get("schema") or {}).get("openAPIV3Schema") or {}
    return {
        "scope": spec.get("scope"),
        "served": version.get("served"),
        "subresources": version.get("subresources"),
        **(schema.get("properties") or {}),
    }


def _differing(wanted: Any, found: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in sorted(wanted.keys() | found.keys()):
            inner = path if key in PASSED_OVER and path else f"{path}.{key}".removeprefix(".")
            if key not in found:
                yield f"{inner} is missing"
            elif key not in wanted:
                yield f"{inner} is not ours"
            else:
                yield from _differing(wanted[key], found[key], inner)
    elif wanted != found:
        yield f"{path} differs"
