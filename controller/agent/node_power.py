"""Reads the orders of a NodePower and writes what its status says: the only module that knows the fields' names.

It exists so that the agent's rules see `NodeOrders`, whether they came from a file or from the API server, without a
schema library: an agent has to start fast and stay small. Fields are those of power.md §11; what is added to them is
``mode``, ``oversubscribed``, ``release``, ``floorMHz``, ``budgetWatts`` and ``lease`` (the domain's Lease).
"""

import math
from collections.abc import Mapping
from typing import Any

from controller.agent.state import AgentState
from solver.domain.errors import InputError, Place
from solver.domain.node_power import NO_CAP, Cap, Mode, NodeOrders, strictest

SCHEMA = "node-power/1"
_SPEC = frozenset(
    {
        "generation",
        "renewSequence",
        "leaseDurationSeconds",
        "mode",
        "oversubscribed",
        "release",
        "floorMHz",
        "budgetWatts",
        "lease",
        "gpus",
        "safe",
    }
)
_GPU = frozenset({"uuid", "lockMinMHz", "lockMaxMHz", "limitWatts"})
_SAFE = frozenset({"lockMaxMHz", "limitWatts"})


def orders_of(document: Any, source: str) -> NodeOrders:
    """Read a NodePower, or only its spec.

    Raises
    ------
    InputError
        With ``source`` and the field, for what is missing, of another kind, out of range or unknown.
    """
    if not isinstance(document, dict):
        raise InputError("not a table", where=source, right="a NodePower object, or its spec")
    spec = document.get("spec", document)
    if not isinstance(spec, dict):
        raise InputError("not a table", where=Place(source, field="spec"), right="the orders")
    metadata = document.get("metadata")
    identity = str(metadata.get("uid") or "") if isinstance(metadata, dict) else ""
    _only(spec, _SPEC, source, "spec")
    try:
        return NodeOrders(
            source=identity or "file",
            generation=_whole(spec, "generation", source, needed=True) or 0,
            renewal=_whole(spec, "renewSequence", source) or 0,
            lease_s=_number(spec, "leaseDurationSeconds", source, "spec", 15.0) or 0.0,
            mode=_mode(spec.get("mode", Mode.RECOMMEND.value), source),
            gpus=_caps([] if spec.get("gpus") is None else spec["gpus"], source),
            safe=_cap({} if spec.get("safe") is None else spec["safe"], source, "spec.safe", _SAFE),
            oversubscribed=_flag(spec, "oversubscribed", source, otherwise=True),
            release=_flag(spec, "release", source, otherwise=False),
            floor_mhz=_whole(spec, "floorMHz", source),
            budget_w=_number(spec, "budgetWatts", source, "spec", None),
            lease=_lease(spec.get("lease"), source),
        )
    except InputError as error:
        if isinstance(error.where, Place):
            raise
        raise InputError(
            error.what, where=Place(source, field=f"spec.{error.where}"), right=error.right
        ) from None


def _only(table: Mapping[str, Any], known: frozenset[str], source: str, where: str) -> None:
    for name in table:
        if name not in known:
            raise InputError(
                "unknown field",
                where=Place(source, field=f"{where}.{name}"),
                right=f"one of {', '.join(sorted(known))}",
            )


def _mode(value: Any, source: str) -> Mode:
    try:
        return Mode(value)
    except ValueError:
        raise InputError(
            f"{value!r}", where=Place(source, field="spec.mode"), right="Recommend or Auto"
        ) from None


def _lease(value: Any, source: str) -> str:
    if value is None:
        return ""
    fields = [value.get("namespace"), value.get("name")] if isinstance(value, dict) else []
    names = [field for field in fields if isinstance(field, str) and field and "/" not in field]
    if len(names) != 2:
        raise InputError(
            f"{value!r}", where=Place(source, field="spec.lease"), right="namespace and name of a Lease"
        )
    return "/".join(names)


def _flag(table: Mapping[str, Any], name: str, source: str, *, otherwise: bool) -> bool:
    value = table.get(name, otherwise)
    if not isinstance(value, bool):
        raise InputError(f"{value!r}", where=Place(source, field=f"spec.{name}"), right="true or false")
    return value


def _whole(
    table: Mapping[str, Any], name: str, source: str, where: str = "spec", *, needed: bool = False
) -> int | None:
    value = table.get(name)
    if value is None and not needed:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        what = "missing" if value is None else f"{value!r}"
        raise InputError(what, where=Place(source, field=f"{where}.{name}"), right="a whole number")
    return value


def _number(
    table: Mapping[str, Any], name: str, source: str, where: str, otherwise: float | None
) -> float | None:
    value = table.get(name, otherwise)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{value!r}", where=Place(source, field=f"{where}.{name}"), right="a finite number")
    return float(value)


def _caps(entries: Any, source: str) -> dict[str, Cap]:
    if not isinstance(entries, list):
        raise InputError("not a list", where=Place(source, field="spec.gpus"), right="one entry per GPU")
    caps: dict[str, list[Cap]] = {}
    for index, entry in enumerate(entries):
        where = f"spec.gpus[{index}]"
        cap = _cap(entry, source, where, _GPU)
        uuid = entry.get("uuid")
        if not isinstance(uuid, str) or not uuid:
            raise InputError("missing", where=Place(source, field=f"{where}.uuid"), right="a GPU's UUID")
        caps.setdefault(uuid, []).append(cap)
    return {uuid: strictest(told) for uuid, told in caps.items()}


def _cap(entry: Any, source: str, where: str, known: frozenset[str]) -> Cap:
    if not isinstance(entry, dict):
        raise InputError("not a table", where=Place(source, field=where), right=", ".join(sorted(known)))
    _only(entry, known, source, where)
    try:
        return Cap(
            max_mhz=_whole(entry, "lockMaxMHz", source, where),
            min_mhz=_whole(entry, "lockMinMHz", source, where),
            limit_w=_number(entry, "limitWatts", source, where, None),
        )
    except InputError as error:
        if isinstance(error.where, Place):
            raise
        names = {"max_mhz": "lockMaxMHz", "min_mhz": "lockMinMHz", "limit_w": "limitWatts"}
        field = f"{where}.{names.get(str(error.where), '')}"
        raise InputError(error.what, where=Place(source, field=field), right=error.right) from None


def spec_of(orders: NodeOrders) -> dict[str, Any]:
    """Write orders as a spec; `orders_of` reads the same from it."""
    spec: dict[str, Any] = {
        "generation": orders.generation,
        "renewSequence": orders.renewal,
        "leaseDurationSeconds": orders.lease_s,
        "mode": orders.mode.value,
        "oversubscribed": orders.oversubscribed,
        "release": orders.release,
        "gpus": [{"uuid": uuid, **_cap_fields(cap)} for uuid, cap in orders.gpus.items()],
    }
    if orders.safe != NO_CAP:
        spec["safe"] = _cap_fields(orders.safe)
    if orders.floor_mhz is not None:
        spec["floorMHz"] = orders.floor_mhz
    if orders.lease:
        namespace, _, name = orders.lease.partition("/")
        spec["lease"] = {"namespace": namespace, "name": name}
    if orders.budget_w is not None:
        spec["budgetWatts"] = orders.budget_w
    return spec


def _cap_fields(cap: Cap) -> dict[str, Any]:
    fields = {"lockMinMHz": cap.min_mhz, "lockMaxMHz": cap.max_mhz, "limitWatts": cap.limit_w}
    return {name: value for name, value in fields.items() if value is not None}


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def status_of(state: AgentState) -> dict[str, Any]:
    """Write a NodePower's status. What is not known is left out, never zero."""
    return {
        **_known(
            {
                "observedGeneration": state.observed_generation,
                "acknowledgedGeneration": state.acknowledged_generation,
            }
        ),
        "leaseState": state.lease_state,
        "writes": state.writes,
        **_known({"refused": state.refused, "reflex": state.reflex or None}),
        "gpus": [
            _known(
                {
                    "uuid": gpu.sample.uuid,
                    "originalLimitWatts": gpu.original_w,
                    "originalClocks": None if gpu.original_w is None else "unlocked",
                    "constraints": _known(
                        {
                            "minWatts": gpu.identity.span.least_w,
                            "maxWatts": gpu.identity.span.most_w,
                            "defaultWatts": gpu.identity.span.default_w,
                            "minMHz": gpu.identity.span.clocks_mhz[0]
                            if gpu.identity.span.clocks_mhz
                            else None,
                            "maxMHz": gpu.identity.span.clocks_mhz[-1]
                            if gpu.identity.span.clocks_mhz
                            else None,
                        }
                    ),
                    "wanted": _cap_fields(gpu.verdict.wanted),
                    "appliedMHz": gpu.verdict.applied_mhz,
                    "clockConfirmed": gpu.verdict.clock_confirmed if gpu.verdict.applied_mhz else None,
                    "appliedWatts": gpu.verdict.applied_w,
                    "foreignWatts": gpu.verdict.foreign_w,
                    "enforcedWatts": gpu.sample.enforced_w,
                    "powerWatts": _rounded(gpu.sample.power_w),
                    "energyJ": _rounded(gpu.sample.energy_j),
                    "reasons": list(gpu.sample.reason_names),
                    "mig": gpu.identity.mig,
                    "error": gpu.verdict.error,
                }
            )
            for gpu in state.gpus
        ],
        "conditions": [
            {"type": kind, "status": "True" if good else "False", "reason": reason}
            for kind, good, reason in state.conditions()
        ],
    }


def telemetry_of(state: AgentState, *, node: str, now_s: float) -> dict[str, Any]:
    """Write what the controller reads every second or two: the status, and each field of the last sweep.

    ``age_s`` counts on this node's monotonic clock, so that no two machines' clocks are compared.
    """
    powers = [gpu.sample.power_w for gpu in state.gpus]
    known = [power_w for power_w in powers if power_w is not None]
    status = status_of(state)
    for entry, gpu in zip(status["gpus"], state.gpus, strict=True):
        sample = gpu.sample
        entry["telemetry"] = _known(
            {
                "instantWatts": _rounded(sample.instant_w),
                "averageWatts": _rounded(sample.average_w),
                "meanWatts": _rounded(sample.mean_w),
                "energyResets": sample.energy_resets,
                "limitWatts": sample.limit_w,
                "smMHz": sample.sm_mhz,
                "memoryMHz": sample.memory_mhz,
                "celsius": sample.celsius,
                "memoryCelsius": sample.memory_celsius,
                "eccCorrected": sample.ecc_corrected,
                "eccUncorrected": sample.ecc_uncorrected,
                "smRatio": sample.sm_ratio,
                "memoryRatio": sample.memory_ratio,
                "xids": list(gpu.xids),
                "missing": list(sample.missing),
            }
        )
    return {
        "schema": SCHEMA,
        "node": node,
        "sequence": state.sequence,
        "age_s": round(now_s - state.t_s, 3),
        "lease_left_s": round(max(state.lease_until_s - now_s, 0.0), 3)
        if math.isfinite(state.lease_until_s)
        else 0.0,
        # A sum of some is not a sum: with a GPU unread the node's power is not known.
        "gpuPowerWatts": _rounded(sum(known)) if len(known) == len(powers) and powers else None,
        **status,
    }
