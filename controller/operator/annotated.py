"""The annotation-only start: a ModelService in mode Observe for a target that carries Ballast's annotations.

It exists so that nobody has to write a resource to begin. What it makes belongs to the target (owner reference), only
observes, and is never changed again: people take it from there.
"""

from pydantic import ValidationError

from controller.operator.api import TARGETS, Object
from controller.operator.inventory import OwnerKey
from controller.operator.views import MANAGED, first_problem
from controller.operator.world import Target
from controller.resources.model_service import ModelServiceSpec
from solver.domain.errors import InputError
from solver.domain.slo import SloMetric, parse_slo

MODEL = "ballast.dev/model"
GPU_PROFILE = "ballast.dev/gpu-profile"
SLO = "ballast.dev/slo"


def wanted_services(target: Target, named: set[OwnerKey]) -> tuple[Object | None, str]:
    """Return the ModelService to make for a target, or None, and what its annotations lack."""
    annotations = target.annotations
    if annotations.get(MANAGED) != "true" or (target.kind, *target.key) in named:
        return None, ""
    missing = [name for name in (MODEL, GPU_PROFILE, SLO) if not annotations.get(name)]
    if missing:
        return None, f"{MANAGED} needs {', '.join(missing)} beside it"
    try:
        slo = parse_slo(annotations[SLO])
    except InputError as error:
        return None, f"{SLO}: {error}"
    limits = {t.metric: t for t in slo.targets if t.limit_s is not None}
    if SloMetric.TTFT not in limits or SloMetric.TBT not in limits:
        return (
            None,
            f"{SLO}: {annotations[SLO]!r}; limits in seconds are needed, as ttft_p99=1.0,tbt_p99=0.05",
        )
    spec: Object = {
        "model": annotations[MODEL],
        "mode": "Observe",
        "slo": {
            "ttftSeconds": limits[SloMetric.TTFT].limit_s,
            "tbtSeconds": limits[SloMetric.TBT].limit_s,
            "percentile": round(limits[SloMetric.TTFT].percentile),
        },
        "traffic": {"scrape": {"engine": "vllm", "port": 8000, "path": "/metrics"}},
        "variants": [
            {
                "name": "default",
                "targetRef": {
                    "apiVersion": TARGETS[target.kind].api_version,
                    "kind": target.kind,
                    "name": target.key[1],
                },
                "gpuProfile": annotations[GPU_PROFILE],
            }
        ],
    }
    try:
        ModelServiceSpec.model_validate(spec)
    except ValidationError as error:
        return None, f"the annotations make no ModelService: {first_problem(error)}"
    owner = {
        "apiVersion": TARGETS[target.kind].api_version,
        "kind": target.kind,
        "name": target.key[1],
        "uid": target.uid,
    }
    metadata: Object = {
        "name": target.key[1],
        "namespace": target.key[0],
        "labels": {"app.kubernetes.io/managed-by": "ballast"},
        "ownerReferences": [owner],
    }
    return {"metadata": metadata, "spec": spec}, ""
