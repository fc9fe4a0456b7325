"""Splits traffic as planned: weights of an HTTPRoute's backends.

It exists because a cheaper mix of GPUs is only cheaper if requests go where they were planned to. It changes weights,
nothing else, on the version it read; backends that are no variant of the service are left alone.
"""

from controller.operator.api import HTTP_ROUTES, Api, Object
from controller.operator.views import ServiceView
from solver.domain.fleet import Role

WHOLE = 1000
"""Weights of all variants sum to about this."""


def wanted_weights(view: ServiceView) -> dict[str, int]:
    """Return the weight of each variant's Service from the planned requests per second.

    Requests arrive at prefill replicas and at those that serve whole requests; decode replicas get theirs from prefill
    replicas, never from the HTTPRoute: the weight of their Service, should one be named, is 0.
    """
    plan, spec = view.plan, view.spec
    if plan is None or spec is None:
        return {}
    entered = {variant.name for variant in spec.variants if variant.role is not Role.DECODE}
    rates: dict[str, float] = {}
    for route in plan.spec.routing:
        if route.variant in entered:
            rates[route.variant] = rates.get(route.variant, 0.0) + (route.requests_per_second or 0.0)
    total = sum(rates.values())
    weights = {}
    for variant in spec.variants:
        if variant.service is not None and total > 0:
            share = rates.get(variant.name, 0.0) / total
            weights[variant.service] = max(1, round(WHOLE * share)) if share > 0 else 0
    return weights


def shift(api: Api, view: ServiceView) -> str:
    """Set the weights; returns why that cannot be done, or an empty text when they are as wanted.

    Raises
    ------
    ApiError
        If the write is refused.
    """
    spec = view.spec
    if spec is None or spec.http_route is None:
        return ""
    name = spec.http_route.name
    weights = wanted_weights(view)
    if not weights:
        return ""  # no traffic to split
    route = api.get(HTTP_ROUTES, view.key[0], name)
    if route is None:
        return f"HTTPRoute {name} does not exist in {view.key[0]}"
    changes: list[Object] = []
    found = set()
    for r, rule in enumerate(route["spec"].get("rules") or []):
        for b, backend in enumerate(rule.get("backendRefs") or []):
            service = backend.get("name")
            if backend.get("kind", "Service") != "Service" or service not in weights:
                continue
            found.add(service)
            if backend.get("weight", 1) != weights[service]:
                path = f"/spec/rules/{r}/backendRefs/{b}/weight"
                changes.append({"op": "add", "path": path, "value": weights[service]})
    entered = {variant.service for variant in spec.variants if variant.role is not Role.DECODE}
    missing = sorted(service for service in weights if service in entered and service not in found)
    if missing:
        return f"HTTPRoute {name} has no backend {', '.join(missing)}"
    if changes:
        version = route["metadata"]["resourceVersion"]
        test = {"op": "test", "path": "/metadata/resourceVersion", "value": version}
        api.patch(
            HTTP_ROUTES, view.key[0], name, [test, *changes], content_type="application/json-patch+json"
        )
    return ""
