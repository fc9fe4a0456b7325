"""Reads and writes GPU-type selection problems: JSON of schema ``gputype-instance/1`` and ``/2``.

It exists so that only this module knows the file layout and its foreign unit names; everybody else speaks
`solver.domain.gpu_mix`. It refuses what has no meaning (with file and field) and it never guesses: a limit
that is absent is no limit, power that is absent is not zero. It does not judge whether a problem can be
solved: a bucket that no configuration serves is an answer of the solver, not bad input.

Fields it does not know are passed over, so files may carry ``description``, ``expected`` and the like.
"""

from pathlib import Path
from typing import Any

from solver.domain.gpu_mix import GpuMixInstance, GpuOffer, ModelDemand, Variant
from telemetry.sources.instance_document import (
    MISSING,
    InstanceReader,
    join,
    offer_to_json,
    put,
    read_document,
    shown,
)

SCHEMA_1 = "gputype-instance/1"
SCHEMA_2 = "gputype-instance/2"

_VERSION_2_FIELDS = {
    "gpu_types": ("whole_nodes", "gpus_per_node", "reserved", "spot_price_per_hour", "spot_available"),
    "configs": ("spot", "quality"),
    "models": ("min_quality", "max_spot_load_ratio", "survive"),
    "buckets": (),
    "": ("budget_usd_per_hour", "horizon_hours"),
}


def read_gpu_mix_instance(path: str | Path) -> GpuMixInstance:
    """Read an instance file; ``-`` is standard input, gzip is recognised by its first bytes.

    Raises
    ------
    InputError
        One line with the file and the field (or line) for everything that is not a sound instance.
    """
    return read_document(
        path, schema=SCHEMA_2, parse=lambda document, source: _Reader(source).instance(document)
    )


def gpu_mix_instance_to_json(instance: GpuMixInstance) -> dict[str, Any]:
    """Return the document that `read_gpu_mix_instance` reads back as an equal instance.

    It is version 1 where version 1 can say it, so that other readers of the older format can use it.

    Raises
    ------
    ValueError
        If a variant has a least or most of replicas (the operator's problems do): the format has no word for it.
    """
    if any(v.min_replicas or v.max_replicas is not None for model in instance.models for v in model.variants):
        raise ValueError(
            f"{instance.name}: gputype-instance files cannot say how many replicas a variant may have"
        )
    body: dict[str, Any] = {
        "name": instance.name,
        "gpu_types": [offer_to_json(offer) for offer in instance.gpu_types],
        "models": [_model_to_json(model) for model in instance.models],
    }
    put(body, "start_cost", instance.start_cost_usd, 0.0)
    put(body, "stop_cost", instance.stop_cost_usd, 0.0)
    put(body, "horizon_hours", instance.horizon_h, 1.0)
    put(body, "power_limit_watts", instance.power_limit_w, None)
    put(body, "budget_usd_per_hour", instance.budget_usd_per_h, None)
    parts = {
        "gpu_types": body["gpu_types"],
        "models": body["models"],
        "configs": [config for model in body["models"] for config in model["configs"]],
        "buckets": [],
        "": [body],
    }
    needs_2 = any(
        field in part
        for where, fields in _VERSION_2_FIELDS.items()
        for part in parts[where]
        for field in fields
    )
    return {"schema": SCHEMA_2 if needs_2 else SCHEMA_1, **body}


def _model_to_json(model: ModelDemand) -> dict[str, Any]:
    part: dict[str, Any] = {"name": model.name, "configs": [], "buckets": []}
    for variant in model.variants:
        config: dict[str, Any] = {"gpu_type": variant.gpu_type, "gpus_per_replica": variant.gpus_per_replica}
        put(config, "spot", variant.spot, False)  # noqa: FBT003 - the field's default
        put(config, "precision", variant.precision, None)
        put(config, "quality", variant.quality_ratio, 1.0)
        put(config, "current_replicas", variant.current_replicas, None)
        part["configs"].append(config)
    for bucket in model.buckets:
        cell: dict[str, Any] = {}
        put(cell, "input_tokens", bucket.input_tokens, None)
        put(cell, "output_tokens", bucket.output_tokens, None)
        part["buckets"].append({**cell, "rate_rps": bucket.rate_rps})
    part["throughput_rps"] = [list(row) for row in model.throughput_rps]
    put(part, "headroom", model.headroom_ratio, 0.0)
    put(part, "min_total_replicas", model.min_total_replicas, 0)
    put(part, "min_quality", model.min_quality_ratio, 0.0)
    put(part, "max_spot_load_ratio", model.max_spot_load_ratio, 1.0)
    put(part, "survive", model.survive, 0)
    return part


class _Reader(InstanceReader):
    """Walks one parsed document; every method takes the field path it stands at."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.version = 2

    def table(self, value: Any, path: str, kind: str) -> dict[str, Any]:
        part = super().table(value, path, kind)
        if self.version == 1:
            for field in _VERSION_2_FIELDS[kind]:
                if field in part:
                    self.fail(
                        f"belongs to schema {SCHEMA_2!r}, but the file says {SCHEMA_1!r}",
                        join(path, field),
                        f'"schema": "{SCHEMA_2}"',
                    )
        return part

    def instance(self, document: Any) -> GpuMixInstance:
        if not isinstance(document, dict):
            self.fail(f"{shown(document)} is not an object", "", f"a JSON object of schema {SCHEMA_2!r}")
        schema = document.get("schema", MISSING)
        if schema not in (SCHEMA_1, SCHEMA_2):
            self.fail(
                "missing" if schema is MISSING else f"{shown(schema)} is not a schema known here",
                "schema",
                f"{SCHEMA_1!r} or {SCHEMA_2!r}",
            )
        self.version = 1 if schema == SCHEMA_1 else 2
        top = self.table(document, "", "")
        offers = tuple(
            self.offer(entry, f"gpu_types[{index}]")
            for index, entry in enumerate(self.entries(top, "gpu_types", "", at_least=1))
        )
        self.no_twins([offer.name for offer in offers], "gpu_types")
        by_name = {offer.name: offer for offer in offers}
        models = tuple(
            self.model(entry, f"models[{index}]", by_name)
            for index, entry in enumerate(self.entries(top, "models", "", at_least=1))
        )
        self.no_twins([model.name for model in models], "models")
        cost = "a number of at least 0 (US$ per GPU)"
        horizon_h = self.number(
            top, "horizon_hours", "", right="more than 0 hours", fits=lambda hours: hours >= 1e-6
        )
        instance = GpuMixInstance(
            name=self.text(top, "name", "") if "name" in top else Path(self.source).name.split(".")[0],
            gpu_types=offers,
            models=models,
            start_cost_usd=self.number(top, "start_cost", "", right=cost) or 0.0,
            stop_cost_usd=self.number(top, "stop_cost", "", right=cost) or 0.0,
            horizon_h=1.0 if horizon_h is None else horizon_h,
            power_limit_w=self.number(top, "power_limit_watts", "", right="a number of at least 0 (watts)"),
            budget_usd_per_h=self.number(
                top, "budget_usd_per_hour", "", right="a number of at least 0 (US$ per hour)"
            ),
        )
        if instance.power_limit_w is not None:
            used = {variant.gpu_type for model in models for variant in model.variants}
            for index, offer in enumerate(offers):
                if offer.name in used and offer.power_w is None:
                    self.fail(
                        f"missing, but power_limit_watts is set and configurations use {offer.name}",
                        f"gpu_types[{index}].power_watts",
                        "watts per GPU",
                    )
        return instance

    def model(self, value: Any, path: str, offers: dict[str, GpuOffer]) -> ModelDemand:
        part = self.table(value, path, "models")
        name = self.text(part, "name", path)
        variants = tuple(
            self.variant(entry, f"{path}.configs[{index}]", offers)
            for index, entry in enumerate(self.entries(part, "configs", path, at_least=1))
        )
        buckets = tuple(
            self.bucket(entry, f"{path}.buckets[{index}]")
            for index, entry in enumerate(self.entries(part, "buckets", path))
        )
        headroom = self.number(
            part, "headroom", path, right="a number from 0 to below 1", fits=lambda ratio: 0 <= ratio < 1
        )
        return ModelDemand(
            name=name,
            variants=variants,
            buckets=buckets,
            throughput_rps=self.throughput(part, path, len(buckets), len(variants)),
            headroom_ratio=headroom or 0.0,
            min_total_replicas=self.count(part, "min_total_replicas", path) or 0,
            min_quality_ratio=self.ratio(part, "min_quality", path, 0.0),
            max_spot_load_ratio=self.ratio(part, "max_spot_load_ratio", path, 1.0),
            survive=self.count(part, "survive", path) or 0,
        )

    def variant(self, value: Any, path: str, offers: dict[str, GpuOffer]) -> Variant:
        part = self.table(value, path, "configs")
        gpu_type = self.text(part, "gpu_type", path)
        offer = offers.get(gpu_type)
        if offer is None:
            self.fail(
                f"{gpu_type!r} is not declared in gpu_types",
                f"{path}.gpu_type",
                f"declared are {', '.join(offers)}",
            )
        spot = self.flag(part, "spot", path)
        if spot and offer.whole_nodes:
            self.fail(
                f"{gpu_type} is bought in whole nodes and has no spot GPUs",
                f"{path}.spot",
                "false, or a GPU type without whole_nodes",
            )
        if spot and offer.spot_price_usd_per_h is None:
            self.fail(
                f"{gpu_type} has no spot price", f"{path}.spot", "set spot_price_per_hour of that GPU type"
            )
        if "gpus_per_replica" not in part:
            self.fail("missing", f"{path}.gpus_per_replica", "a whole number of at least 1")
        return Variant(
            gpu_type=gpu_type,
            gpus_per_replica=self.count_at(part["gpus_per_replica"], f"{path}.gpus_per_replica", least=1),
            spot=spot,
            precision=None if part.get("precision") is None else self.text(part, "precision", path),
            quality_ratio=self.ratio(part, "quality", path, 1.0),
            current_replicas=self.count(part, "current_replicas", path),
        )
