"""Reads and writes prefill/decode fleet problems: JSON of schema ``fleet-instance/1``.

It exists so that only this module knows the file layout and its foreign unit names; everybody else speaks
`solver.domain.fleet`. It refuses what has no meaning (with file and field), fields it does not know and rules that
fleets do not have: a misspelt limit would otherwise silently be none. It does not judge whether a problem can be
solved: a bucket that no machine serves is an answer of the solver, not bad input.

Next to the fields of the format an object may carry ``description``, ``comment``, ``note``, ``source`` or
``provenance``; the document itself may carry anything more (``expected`` and the like).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from solver.domain.fleet import FleetBudgets, FleetConfig, FleetGoal, FleetInstance, FleetModel, Role
from solver.domain.gpu_mix import GpuOffer
from telemetry.sources.instance_document import (
    MISSING,
    InstanceReader,
    join,
    offer_to_json,
    put,
    read_document,
    shown,
    source_of,
)

SCHEMA = "fleet-instance/1"
GBYTE = 1e9
REMARKS = ("description", "comment", "note", "source", "provenance")

_FIELDS = {
    "gpu_types": (
        "name",
        "price_per_hour",
        "available",
        "power_watts",
        "gpus_per_node",
        "whole_nodes",
        "reserved",
    ),
    "models": (
        "name",
        "configs",
        "buckets",
        "throughput_rps",
        "headroom",
        "min_total_replicas",
        "kv_bytes_per_prompt_token",
        "kv_utilisation_max",
        "ttft_slo_s",
        "tbt_slo_ms",
    ),
    "configs": (
        "gpu_type",
        "gpus_per_replica",
        "role",
        "power_watts",
        "power_cap_watts_per_gpu",
        "kv_link_gbytes_per_s",
        "precision",
        "name",
    ),
    "buckets": ("input_tokens", "output_tokens", "rate_rps", "name"),
    "objective": ("minimise", "maximise", "budgets"),
    "budgets": ("cost_usd_per_hour", "power_watts", "machines"),
}
_ELSEWHERE = {
    "budget_usd_per_hour": "objective.budgets.cost_usd_per_hour says it for fleets",
    "power_limit_watts": "objective.budgets.power_watts says it for fleets",
    "start_cost": "fleets have no change cost; leave it out",
    "stop_cost": "fleets have no change cost; leave it out",
    "horizon_hours": "fleets have no change cost; leave it out",
}
"""Fields of gputype-instance/2 that would change its meaning, and what to write instead."""
_MINIMISED = {"cost": FleetGoal.COST, "power": FleetGoal.POWER, "machines": FleetGoal.MACHINES}
_MAXIMISED = {"rate": FleetGoal.RATE}


def read_fleet_instance(path: str | Path) -> FleetInstance:
    """Read an instance file; ``-`` is standard input, gzip is recognised by its first bytes.

    Raises
    ------
    InputError
        One line with the file and the field (or line) for everything that is not a sound instance.
    """
    return read_document(
        path, schema=SCHEMA, parse=lambda document, source: _Reader(source).instance(document)
    )


def require_figures(instance: FleetInstance, source: str, *, also: Iterable[FleetGoal] = ()) -> None:
    """Refuse GPU types without the figure that the goal, a budget or one of the goals in ``also`` asks about.

    Raises
    ------
    InputError
        One line with the file and the field.
    """
    goals = {instance.goal, *also}
    budgets = instance.budgets
    watts = FleetGoal.POWER in goals or budgets.power_w is not None
    machines = FleetGoal.MACHINES in goals or budgets.machines is not None
    used = {config.gpu_type for model in instance.models for config in model.configs}
    reader = InstanceReader(source_of(source))
    for index, offer in enumerate(instance.gpu_types):
        if offer.name not in used:
            continue
        if watts and offer.power_w is None:
            reader.fail(
                f"missing, but the question is about power and configurations use {offer.name}",
                f"gpu_types[{index}].power_watts",
                "watts per GPU",
            )
        if machines and offer.gpus_per_node is None:
            reader.fail(
                f"missing, but the question is about machines and configurations use {offer.name}",
                f"gpu_types[{index}].gpus_per_node",
                "GPUs per machine",
            )


def fleet_instance_to_json(instance: FleetInstance) -> dict[str, Any]:
    """Return the document that `read_fleet_instance` reads back as an equal instance."""
    budgets: dict[str, Any] = {}
    put(budgets, "cost_usd_per_hour", instance.budgets.cost_usd_per_h, None)
    put(budgets, "power_watts", instance.budgets.power_w, None)
    put(budgets, "machines", instance.budgets.machines, None)
    objective: dict[str, Any] = {"maximise" if instance.goal.maximised else "minimise": instance.goal.value}
    put(objective, "budgets", budgets, {})
    return {
        "schema": SCHEMA,
        "name": instance.name,
        "objective": objective,
        "gpu_types": [offer_to_json(offer) for offer in instance.gpu_types],
        "models": [_model_to_json(model) for model in instance.models],
    }


def _model_to_json(model: FleetModel) -> dict[str, Any]:
    part: dict[str, Any] = {"name": model.name}
    put(part, "ttft_slo_s", model.ttft_slo_s, None)
    put(part, "tbt_slo_ms", None if model.tbt_slo_s is None else model.tbt_slo_s * 1e3, None)
    part["kv_bytes_per_prompt_token"] = model.kv_bytes_per_prompt_token
    put(part, "kv_utilisation_max", model.kv_utilisation_max_ratio, 1.0)
    put(part, "headroom", model.headroom_ratio, 0.0)
    put(part, "min_total_replicas", model.min_total_replicas, 0)
    part["configs"] = []
    for config in model.configs:
        entry: dict[str, Any] = {
            "gpu_type": config.gpu_type,
            "gpus_per_replica": config.gpus_per_replica,
            "role": config.role.value,
        }
        put(entry, "power_watts", config.power_w, None)
        put(entry, "power_cap_watts_per_gpu", config.power_cap_w, None)
        link = config.kv_link_bytes_per_s
        put(entry, "kv_link_gbytes_per_s", None if link is None else link / GBYTE, None)
        part["configs"].append(entry)
    part["buckets"] = []
    for bucket in model.buckets:
        cell: dict[str, Any] = {}
        put(cell, "input_tokens", bucket.input_tokens, None)
        put(cell, "output_tokens", bucket.output_tokens, None)
        part["buckets"].append({**cell, "rate_rps": bucket.rate_rps})
    part["throughput_rps"] = [list(row) for row in model.throughput_rps]
    return part


class _Reader(InstanceReader):
    """Walks one parsed document; every method takes the field path it stands at."""

    def table(self, value: Any, path: str, kind: str) -> dict[str, Any]:
        part = super().table(value, path, kind)
        known = _FIELDS[kind]
        for field in part:
            if field not in known and field not in REMARKS:
                self.fail("unknown field", join(path, field), f"one of {', '.join(known)}")
        return part

    def instance(self, document: Any) -> FleetInstance:
        if not isinstance(document, dict):
            self.fail(f"{shown(document)} is not an object", "", f"a JSON object of schema {SCHEMA!r}")
        schema = document.get("schema", MISSING)
        if schema != SCHEMA:
            self.fail(
                "missing" if schema is MISSING else f"{shown(schema)} is not a schema known here",
                "schema",
                repr(SCHEMA),
            )
        for field, right in _ELSEWHERE.items():
            if field in document:
                self.fail("not a field of fleets", field, right)
        goal, budgets = self.objective(document)
        offers = tuple(
            self.offer(entry, f"gpu_types[{index}]")
            for index, entry in enumerate(self.entries(document, "gpu_types", "", at_least=1))
        )
        self.no_twins([offer.name for offer in offers], "gpu_types")
        by_name = {offer.name: offer for offer in offers}
        models = tuple(
            self.model(entry, f"models[{index}]", by_name)
            for index, entry in enumerate(self.entries(document, "models", "", at_least=1))
        )
        self.no_twins([model.name for model in models], "models")
        instance = FleetInstance(
            name=self.text(document, "name", "")
            if "name" in document
            else Path(self.source).name.split(".")[0],
            gpu_types=offers,
            models=models,
            goal=goal,
            budgets=budgets,
        )
        require_figures(instance, self.source)
        return instance

    def objective(self, document: dict[str, Any]) -> tuple[FleetGoal, FleetBudgets]:
        right = 'like {"minimise": "cost"} or {"maximise": "rate", "budgets": {"power_watts": 440000}}'
        if "objective" not in document:
            self.fail("missing", "objective", right)
        part = self.table(document["objective"], "objective", "objective")
        if ("minimise" in part) == ("maximise" in part):
            what = "both minimise and maximise" if "minimise" in part else "neither minimise nor maximise"
            self.fail(what, "objective", right)
        field, goals = ("minimise", _MINIMISED) if "minimise" in part else ("maximise", _MAXIMISED)
        word = part[field]
        if not isinstance(word, str) or word not in goals:
            self.fail(f"{shown(word)} cannot be {field}d", f"objective.{field}", f"one of {', '.join(goals)}")
        budgets = FleetBudgets()
        if part.get("budgets") is not None:
            path = "objective.budgets"
            limits = self.table(part["budgets"], path, "budgets")
            budgets = FleetBudgets(
                cost_usd_per_h=self.number(
                    limits, "cost_usd_per_hour", path, right="US$ per hour, at least 0"
                ),
                power_w=self.number(limits, "power_watts", path, right="watts, at least 0"),
                machines=self.number(limits, "machines", path, right="a number of machines, at least 0"),
            )
        return goals[word], budgets

    def model(self, value: Any, path: str, offers: dict[str, GpuOffer]) -> FleetModel:
        part = self.table(value, path, "models")
        name = self.text(part, "name", path)
        configs = tuple(
            self.config(entry, f"{path}.configs[{index}]", offers)
            for index, entry in enumerate(self.entries(part, "configs", path, at_least=1))
        )
        buckets = tuple(
            self.bucket(entry, f"{path}.buckets[{index}]")
            for index, entry in enumerate(self.entries(part, "buckets", path))
        )
        headroom = self.number(
            part, "headroom", path, right="a number from 0 to below 1", fits=lambda ratio: 0 <= ratio < 1
        )
        kv_bytes = self.number(part, "kv_bytes_per_prompt_token", path, right="bytes per token, at least 0")
        limited = any(c.role is not Role.BOTH and c.kv_link_bytes_per_s is not None for c in configs)
        if limited and kv_bytes is None:
            self.fail(
                "missing, but configurations have kv_link_gbytes_per_s",
                f"{path}.kv_bytes_per_prompt_token",
                "bytes per token, at least 0",
            )
        if limited and kv_bytes:
            for index, bucket in enumerate(buckets):
                if bucket.input_tokens is None:
                    self.fail(
                        "missing, but KV links are limited",
                        f"{path}.buckets[{index}].input_tokens",
                        "a number of at least 0 (tokens)",
                    )
        tbt_slo_ms = self.number(part, "tbt_slo_ms", path, right="milliseconds, at least 0")
        return FleetModel(
            name=name,
            configs=configs,
            buckets=buckets,
            throughput_rps=self.throughput(part, path, len(buckets), len(configs)),
            headroom_ratio=headroom or 0.0,
            min_total_replicas=self.count(part, "min_total_replicas", path) or 0,
            kv_bytes_per_prompt_token=kv_bytes or 0.0,
            kv_utilisation_max_ratio=self.ratio(part, "kv_utilisation_max", path, 1.0),
            ttft_slo_s=self.number(part, "ttft_slo_s", path, right="seconds, at least 0"),
            tbt_slo_s=None if tbt_slo_ms is None else tbt_slo_ms / 1e3,
        )

    def config(self, value: Any, path: str, offers: dict[str, GpuOffer]) -> FleetConfig:
        part = self.table(value, path, "configs")
        gpu_type = self.text(part, "gpu_type", path)
        if gpu_type not in offers:
            self.fail(
                f"{gpu_type!r} is not declared in gpu_types",
                f"{path}.gpu_type",
                f"declared are {', '.join(offers)}",
            )
        role = part.get("role", MISSING)
        roles = [role.value for role in Role]
        if not isinstance(role, str) or role not in roles:
            what = "missing" if role is MISSING else f"{shown(role)} is not a role"
            self.fail(what, f"{path}.role", f"one of {', '.join(roles)}")
        if "gpus_per_replica" not in part:
            self.fail("missing", f"{path}.gpus_per_replica", "a whole number of at least 1")
        link = self.number(part, "kv_link_gbytes_per_s", path, right="10^9 bytes per second, 0: no transfer")
        return FleetConfig(
            gpu_type=gpu_type,
            gpus_per_replica=self.count_at(part["gpus_per_replica"], f"{path}.gpus_per_replica", least=1),
            role=Role(role),
            power_w=self.number(part, "power_watts", path, right="a number of at least 0 (watts per GPU)"),
            power_cap_w=self.number(
                part, "power_cap_watts_per_gpu", path, right="a number of at least 0 (watts per GPU)"
            ),
            kv_link_bytes_per_s=None if link is None else link * GBYTE,
        )
