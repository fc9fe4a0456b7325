"""Reads routed tokens by layer and expert from a Prometheus server: the growth of one counter over a window.

It exists for clusters whose engines (or a recorder beside them) count tokens per expert. The metric and its labels are
named by the user; the query is ours. An expert without a series is missing, not idle.
"""

import json
from typing import NoReturn

import numpy as np

from solver.domain.errors import InputError
from solver.domain.moe import Floats
from telemetry.sources.bounded_http import http_client
from telemetry.sources.prometheus import checked_selector
from telemetry.sources.prometheus_access import PrometheusServers

MOST_BYTES = 64 * 2**20
_OK = 200


async def expert_loads(
    url: str,
    *,
    metric: str,
    selector: str = "",
    layer_label: str = "layer",
    expert_label: str = "expert",
    layers: int,
    experts: int,
    first_layer: int = 0,
    window_s: float,
    servers: PrometheusServers | None = None,
    namespace: str | None = None,
) -> Floats:
    """Return routed tokens of the last ``window_s`` seconds, [L, E].

    Layers may be numbered from 0, or as in the model from ``first_layer`` on; all must be there. ``servers`` know what
    a server is brought for a resource of ``namespace``.

    Raises
    ------
    AccessError
        One line: the server refuses who asks.
    InputError
        One line: nobody answers, an answer that cannot be, series that are missing or too many.
    """
    query = (
        f"sum by ({layer_label}, {expert_label})"
        f" (increase({metric}{{{checked_selector(selector)}}}[{max(1, round(window_s))}s]))"
    )
    async with http_client() as client:
        status, body = await (servers or PrometheusServers()).query(
            client,
            url,
            {"query": query},
            namespace=namespace,
            source=url,
            most_bytes=MOST_BYTES,
            timeout_s=10.0,
        )
    if status != _OK:
        _fail(url, f"HTTP {status}")
    return _table(
        body,
        url,
        labels=(layer_label, expert_label),
        metric=metric,
        shape=(layers, experts),
        first_layer=first_layer,
    )


def _table(
    body: bytes,
    source: str,
    *,
    labels: tuple[str, str],
    metric: str,
    shape: tuple[int, int],
    first_layer: int,
) -> Floats:
    found: dict[tuple[int, int], float] = {}
    try:
        for element in json.loads(body)["data"]["result"]:
            layer, expert = (int(element["metric"][label]) for label in labels)
            found[layer, expert] = float(element["value"][1])
    except (ValueError, TypeError, LookupError, RecursionError, AttributeError):
        _fail(source, f"the answer is no vector of {metric} by {labels[0]} and {labels[1]}")
    if not found:
        _fail(source, f"no series {metric}")
    layers, experts = shape
    for first in sorted({0, first_layer}):
        wanted = {(first + layer, expert) for layer in range(layers) for expert in range(experts)}
        if found.keys() == wanted:
            break
    else:
        first = first_layer if max(layer for layer, _ in found) >= layers else 0
        wanted = {(first + layer, expert) for layer in range(layers) for expert in range(experts)}
        lacking, beyond = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
        layer, expert = (lacking or beyond)[0]
        what = f"{len(lacking)} series are missing" if lacking else f"{len(beyond)} series too many"
        _fail(source, f"{metric}: {what}, the first is layer {layer}, expert {expert}")
    counts = np.array([[found[first + row, e] for e in range(experts)] for row in range(layers)])
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        _fail(source, f"{metric}: values that are no counts")
    return counts


def _fail(source: str, what: str) -> NoReturn:
    raise InputError(what, where=source)
