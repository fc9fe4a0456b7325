"""Reads and writes GPU-type selection problems: JSON of schema ``gputype-instance/1`` and ``/2``.

It exists so that only this module knows the file layout and its foreign unit names; everybody else speaks
`solver.domain.gpu_mix`. It refuses what has no meaning (with file and field) and it never guesses: a limit
that is absent is no limit, power that is absent is not zero. It does not judge whether a problem can be
solved: a bucket that no configuration serves is an answer of the solver, not bad input.

Fields it does not know are passed over, so files may carry ``description``, ``expected`` and the like.
"""

import gzip
import io
import json
import math
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from solver.domain.errors import InputError, Place
from solver.domain.gpu_mix import GpuMixInstance, GpuOffer, ModelDemand, RequestBucket, Variant

SCHEMA_1 = "gputype-instance/1"
SCHEMA_2 = "gputype-instance/2"

LARGEST_COUNT = 10**9
LARGEST_QUANTITY = 1e12
"""Above it (in any unit of the format) a number is a slip; it also keeps every product far from overflow."""
SMALLEST_THROUGHPUT_RPS = 1e-9
"""Below it a replica serves less than one request in 30 years; 0 says "cannot serve"."""

_VERSION_2_FIELDS = {
    "gpu_types": ("whole_nodes", "gpus_per_node", "reserved", "spot_price_per_hour", "spot_available"),
    "configs": ("spot", "quality"),
    "models": ("min_quality", "max_spot_load_ratio", "survive"),
    "buckets": (),
    "": ("budget_usd_per_hour", "horizon_hours"),
}
_MISSING = object()
_STRING_OR_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)')


def read_gpu_mix_instance(path: str | Path) -> GpuMixInstance:
    """Read an instance file; ``-`` is standard input, gzip is recognised by its first bytes.

    Raises
    ------
    InputError
        One line with the file and the field (or line) for everything that is not a sound instance.
    """
    source = "standard input" if str(path) == "-" else str(path)
    text = _text(path, source)
    document, has_constants = _json(text, source)
    instance = _Reader(source).instance(document)
    if has_constants:  # outside all fields we read, or the reader would have named the field
        _refuse_constant(text, source)
    return instance


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
        "gpu_types": [_offer_to_json(offer) for offer in instance.gpu_types],
        "models": [_model_to_json(model) for model in instance.models],
    }
    _put(body, "start_cost", instance.start_cost_usd, 0.0)
    _put(body, "stop_cost", instance.stop_cost_usd, 0.0)
    _put(body, "horizon_hours", instance.horizon_h, 1.0)
    _put(body, "power_limit_watts", instance.power_limit_w, None)
    _put(body, "budget_usd_per_hour", instance.budget_usd_per_h, None)
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


def _put(part: dict[str, Any], field: str, value: Any, default: Any) -> None:
    """Write a field only where it says something."""
    if value != default:
        part[field] = value


def _offer_to_json(offer: GpuOffer) -> dict[str, Any]:
    part: dict[str, Any] = {
        "name": offer.name,
        "price_per_hour": offer.price_usd_per_h,
        "available": offer.available,
    }
    _put(part, "power_watts", offer.power_w, None)
    _put(part, "gpus_per_node", offer.gpus_per_node, None)
    _put(part, "whole_nodes", offer.whole_nodes, False)  # noqa: FBT003 - the field's default
    _put(part, "reserved", offer.reserved, 0)
    _put(part, "spot_price_per_hour", offer.spot_price_usd_per_h, None)
    _put(part, "spot_available", offer.spot_available, None)
    return part


def _model_to_json(model: ModelDemand) -> dict[str, Any]:
    part: dict[str, Any] = {"name": model.name, "configs": [], "buckets": []}
    for variant in model.variants:
        config: dict[str, Any] = {"gpu_type": variant.gpu_type, "gpus_per_replica": variant.gpus_per_replica}
        _put(config, "spot", variant.spot, False)  # noqa: FBT003 - the field's default
        _put(config, "precision", variant.precision, None)
        _put(config, "quality", variant.quality_ratio, 1.0)
        _put(config, "current_replicas", variant.current_replicas, None)
        part["configs"].append(config)
    for bucket in model.buckets:
        cell: dict[str, Any] = {}
        _put(cell, "input_tokens", bucket.input_tokens, None)
        _put(cell, "output_tokens", bucket.output_tokens, None)
        part["buckets"].append({**cell, "rate_rps": bucket.rate_rps})
    part["throughput_rps"] = [list(row) for row in model.throughput_rps]
    _put(part, "headroom", model.headroom_ratio, 0.0)
    _put(part, "min_total_replicas", model.min_total_replicas, 0)
    _put(part, "min_quality", model.min_quality_ratio, 0.0)
    _put(part, "max_spot_load_ratio", model.max_spot_load_ratio, 1.0)
    _put(part, "survive", model.survive, 0)
    return part


def _text(path: str | Path, source: str) -> str:
    """Return the whole file as text, unpacked."""
    if str(path) == "-" and sys.stdin is None:
        raise InputError("standard input is closed", where=source, right="a file, or something piped in")
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"cannot be read: {reason}", where=source) from None
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.GzipFile(fileobj=io.BytesIO(raw)).read()
        except (EOFError, OSError, zlib.error) as error:
            raise InputError(
                f"damaged gzip data: {error}", where=source, right="copy or compress the file again"
            ) from None
    elif str(path).endswith(".gz"):
        raise InputError(
            "not gzip data, though the name ends in .gz", where=source, right="a file made by gzip"
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"byte 0x{raw[error.start]:02x} is not UTF-8",
            where=Place(source, line=line),
            right="save the file as UTF-8",
        ) from None
    if not text.strip():
        raise InputError("the file is empty", where=source, right=f"a JSON object of schema {SCHEMA_2!r}")
    return text


def _json(text: str, source: str) -> tuple[Any, bool]:
    """Return the parsed document and whether NaN or Infinity occurs in it (which JSON does not know)."""
    constants: list[str] = []

    def constant(word: str) -> float:
        constants.append(word)
        return float(word)

    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            names = [name for name, _ in pairs]
            twin = next(name for index, name in enumerate(names) if name in names[:index])
            raise InputError(f"the field {twin!r} stands twice in one object", where=source, right="once")
        return table

    try:
        return json.loads(text, parse_constant=constant, object_pairs_hook=no_twins), bool(constants)
    except json.JSONDecodeError as error:
        raise InputError(
            f"not JSON: {error.msg} at column {error.colno}",
            where=Place(source, line=error.lineno),
            right=f"a JSON object of schema {SCHEMA_2!r}",
        ) from None
    except RecursionError:
        raise InputError("not an instance: nested too deeply", where=source) from None
    except InputError:
        raise
    except ValueError:  # Python refuses integers of more than some thousand digits
        raise InputError(
            "a number has too many digits", where=source, right=f"numbers up to {LARGEST_QUANTITY:g}"
        ) from None


def _refuse_constant(text: str, source: str) -> NoReturn:
    """Point at the first NaN or Infinity outside strings."""
    found = next(match for match in _STRING_OR_CONSTANT.finditer(text) if match.group(1))
    line = text.count("\n", 0, found.start()) + 1
    raise InputError(
        f"{found.group(1)} is not JSON", where=Place(source, line=line), right="a number or null"
    )


def _shown(value: Any) -> str:
    """Return a value as the file would spell it, cut short."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("infinity" if value > 0 else "-infinity")
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, dict):
        text = "an object"
    elif isinstance(value, list):
        text = "a list"
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        text = f"a number of about {round(math.log10(abs(value)))} digits"
    else:
        text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _at_least_0(value: float) -> bool:
    return value >= 0


class _Reader:
    """Walks one parsed document; every method takes the field path it stands at."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.version = 2

    def fail(self, what: str, path: str, right: str | None = None) -> NoReturn:
        raise InputError(what, where=Place(self.source, field=path or None), right=right)

    # Values

    def table(self, value: Any, path: str, kind: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(f"{_shown(value)} is not an object", path, "an object in braces")
        if self.version == 1:
            for field in _VERSION_2_FIELDS[kind]:
                if field in value:
                    self.fail(
                        f"belongs to schema {SCHEMA_2!r}, but the file says {SCHEMA_1!r}",
                        _join(path, field),
                        f'"schema": "{SCHEMA_2}"',
                    )
        return value

    def entries(self, part: dict[str, Any], field: str, path: str, *, at_least: int = 0) -> list[Any]:
        path = _join(path, field)
        value = part.get(field, _MISSING)
        if value is _MISSING:
            self.fail("missing", path, "a list")
        if not isinstance(value, list):
            self.fail(f"{_shown(value)} is not a list", path)
        if len(value) < at_least:
            self.fail("the list is empty", path, f"at least {at_least} entry")
        return value

    def text(self, part: dict[str, Any], field: str, path: str) -> str:
        path = _join(path, field)
        value = part.get(field, _MISSING)
        if value is _MISSING:
            self.fail("missing", path, "a name")
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            self.fail(f"{_shown(value)} is not a name", path, "text of printable characters")
        return value

    def flag(self, part: dict[str, Any], field: str, path: str) -> bool:
        value = part.get(field)
        if value is None:
            return False
        if not isinstance(value, bool):
            self.fail(f"{_shown(value)} is neither true nor false", _join(path, field), "true or false")
        return value

    def number(
        self,
        part: dict[str, Any],
        field: str,
        path: str,
        *,
        right: str,
        fits: Callable[[float], bool] = _at_least_0,
    ) -> float | None:
        """Return a finite number that ``fits`` (told by ``right``); None where it is absent or null."""
        value = part.get(field)
        return None if value is None else self.number_at(value, _join(path, field), right=right, fits=fits)

    def required_number(self, part: dict[str, Any], field: str, path: str, *, right: str) -> float:
        path = _join(path, field)
        if field not in part:
            self.fail("missing", path, right)
        return self.number_at(part[field], path, right=right, fits=_at_least_0)

    def number_at(self, value: Any, path: str, *, right: str, fits: Callable[[float], bool]) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(f"{_shown(value)} is not a number", path, right)
        if isinstance(value, float) and not math.isfinite(value):
            self.fail(f"{_shown(value)} is not a finite number", path, right)
        if abs(value) > LARGEST_QUANTITY:
            self.fail(f"{_shown(value)} is too large", path, f"{right}, at most {LARGEST_QUANTITY:g}")
        if not fits(value):
            self.fail(f"{_shown(value)} is out of range", path, right)
        return float(value)

    def count(self, part: dict[str, Any], field: str, path: str, *, least: int = 0) -> int | None:
        """Return a whole number of at least ``least``; None where it is absent or null."""
        value = part.get(field)
        return None if value is None else self.count_at(value, _join(path, field), least=least)

    def count_at(self, value: Any, path: str, *, least: int) -> int:
        right = f"a whole number of at least {least}"
        number = self.number_at(value, path, right=right, fits=lambda _: True)
        if not number.is_integer():
            self.fail(f"{_shown(value)} is not a whole number", path, right)
        if number < least:
            self.fail(f"{_shown(value)} is out of range", path, right)
        if number > LARGEST_COUNT:
            self.fail(f"{_shown(value)} is too large", path, f"at most {LARGEST_COUNT}")
        return int(number)

    def ratio(self, part: dict[str, Any], field: str, path: str, default: float) -> float:
        value = self.number(
            part, field, path, right="a number from 0 to 1", fits=lambda ratio: 0 <= ratio <= 1
        )
        return default if value is None else value

    # Parts

    def instance(self, document: Any) -> GpuMixInstance:
        if not isinstance(document, dict):
            self.fail(f"{_shown(document)} is not an object", "", f"a JSON object of schema {SCHEMA_2!r}")
        schema = document.get("schema", _MISSING)
        if schema not in (SCHEMA_1, SCHEMA_2):
            self.fail(
                "missing" if schema is _MISSING else f"{_shown(schema)} is not a schema known here",
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

    def no_twins(self, names: list[str], field: str) -> None:
        seen: dict[str, int] = {}
        for index, name in enumerate(names):
            if name in seen:
                self.fail(
                    f"{name!r} is already the name of {field}[{seen[name]}]",
                    f"{field}[{index}].name",
                    "a name of its own",
                )
            seen[name] = index

    def offer(self, value: Any, path: str) -> GpuOffer:
        part = self.table(value, path, "gpu_types")
        price = "a number of at least 0 (US$ per GPU and hour)"
        name = self.text(part, "name", path)
        price_usd_per_h = self.required_number(part, "price_per_hour", path, right=price)
        gpus_per_node = self.count(part, "gpus_per_node", path, least=1)
        whole_nodes = self.flag(part, "whole_nodes", path)
        reserved = self.count(part, "reserved", path) or 0
        if whole_nodes and gpus_per_node is None:
            self.fail("missing, but whole_nodes is true", f"{path}.gpus_per_node", "GPUs per node")
        if whole_nodes and gpus_per_node is not None and reserved % gpus_per_node:
            self.fail(
                f"{reserved} is not a multiple of the node's {gpus_per_node} GPUs",
                f"{path}.reserved",
                f"0, {gpus_per_node}, {2 * gpus_per_node}, ...",
            )
        return GpuOffer(
            name=name,
            price_usd_per_h=price_usd_per_h,
            available=self.count(part, "available", path),
            power_w=self.number(part, "power_watts", path, right="a number of at least 0 (watts per GPU)"),
            gpus_per_node=gpus_per_node,
            whole_nodes=whole_nodes,
            reserved=reserved,
            spot_price_usd_per_h=self.number(part, "spot_price_per_hour", path, right=price),
            spot_available=self.count(part, "spot_available", path),
        )

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

    def bucket(self, value: Any, path: str) -> RequestBucket:
        part = self.table(value, path, "buckets")
        size = "a number of at least 0 (tokens)"
        return RequestBucket(
            rate_rps=self.required_number(
                part, "rate_rps", path, right="a number of at least 0 (requests per second)"
            ),
            input_tokens=self.number(part, "input_tokens", path, right=size),
            output_tokens=self.number(part, "output_tokens", path, right=size),
        )

    def throughput(
        self, part: dict[str, Any], path: str, n_buckets: int, n_variants: int
    ) -> tuple[tuple[float, ...], ...]:
        rows = self.entries(part, "throughput_rps", path)
        path = f"{path}.throughput_rps"
        if len(rows) != n_buckets:
            self.fail(f"has {len(rows)} rows for {n_buckets} buckets", path, "one row per bucket")
        table = []
        for b, row in enumerate(rows):
            if not isinstance(row, list):
                self.fail(f"{_shown(row)} is not a list", f"{path}[{b}]", "one number per configuration")
            if len(row) != n_variants:
                self.fail(
                    f"has {len(row)} numbers for {n_variants} configurations",
                    f"{path}[{b}]",
                    "one number per configuration",
                )
            table.append(tuple([self.cell(value, path, b, c) for c, value in enumerate(row)]))
        return tuple(table)

    def cell(self, value: Any, path: str, b: int, c: int) -> float:
        if type(value) is float and SMALLEST_THROUGHPUT_RPS <= value <= LARGEST_QUANTITY:
            return value  # the usual case, without building a path: large files have 100,000 cells
        return self.number_at(
            value,
            f"{path}[{b}][{c}]",
            right=f"requests per second, 0 (cannot serve) or at least {SMALLEST_THROUGHPUT_RPS:g}",
            fits=lambda rate: rate == 0 or rate >= SMALLEST_THROUGHPUT_RPS,
        )


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field
