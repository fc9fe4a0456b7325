"""The ground under readers of instance files: JSON text, its values, and the parts that several formats share.

It exists so that GPU-mix and fleet problems are refused in the same words: one line with file, field and what would be
right. It knows no schema; each format subclasses `InstanceReader` and says which fields its objects have.
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
from typing import Any, NoReturn, TypeVar

from solver.domain.errors import InputError, Place
from solver.domain.gpu_mix import GpuOffer, RequestBucket

LARGEST_COUNT = 10**9
LARGEST_QUANTITY = 1e12
"""Above it (in any unit of the format) a number is a slip; it also keeps every product far from overflow."""
SMALLEST_THROUGHPUT_RPS = 1e-9
"""Below it a replica serves less than one request in 30 years; 0 says "cannot serve"."""

MISSING = object()
Instance = TypeVar("Instance")
_STRING_OR_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)')


def source_of(path: str | Path) -> str:
    """Name a file in errors; ``-`` is standard input."""
    return "standard input" if str(path) == "-" else str(path)


def read_document(path: str | Path, *, schema: str, parse: Callable[[Any, str], Instance]) -> Instance:
    """Read a JSON file (``-``: standard input; gzip is recognised) as ``parse`` understands document and name.

    Raises
    ------
    InputError
        One line with the file and the field (or line) for everything that is not a sound document.
    """
    source = source_of(path)
    text = _text(path, source, schema=schema)
    document, has_constants = _json(text, source, schema=schema)
    instance = parse(document, source)
    if has_constants:  # outside all fields that were read, or the reader would have named the field
        _refuse_constant(text, source)
    return instance


def _text(path: str | Path, source: str, *, schema: str) -> str:
    """Return the whole file as text, unpacked (gzip is recognised by its first bytes)."""
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
        raise InputError("the file is empty", where=source, right=f"a JSON object of schema {schema!r}")
    return text


def _json(text: str, source: str, *, schema: str) -> tuple[Any, bool]:
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
            right=f"a JSON object of schema {schema!r}",
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


def shown(value: Any) -> str:
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


def put(part: dict[str, Any], field: str, value: Any, default: Any) -> None:
    """Write a field only where it says something."""
    if value != default:
        part[field] = value


def offer_to_json(offer: GpuOffer) -> dict[str, Any]:
    """Write an offer as `InstanceReader.offer` reads it."""
    part: dict[str, Any] = {
        "name": offer.name,
        "price_per_hour": offer.price_usd_per_h,
        "available": offer.available,
    }
    put(part, "power_watts", offer.power_w, None)
    put(part, "gpus_per_node", offer.gpus_per_node, None)
    put(part, "whole_nodes", offer.whole_nodes, False)  # noqa: FBT003 - the field's default
    put(part, "reserved", offer.reserved, 0)
    put(part, "spot_price_per_hour", offer.spot_price_usd_per_h, None)
    put(part, "spot_available", offer.spot_available, None)
    return part


class InstanceReader:
    """Walks one parsed document; every method takes the field path it stands at."""

    def __init__(self, source: str) -> None:
        self.source = source

    def fail(self, what: str, path: str, right: str | None = None) -> NoReturn:
        """Refuse the document: what is wrong, where, and what would be right."""
        raise InputError(what, where=Place(self.source, field=path or None), right=right)

    # Values

    def table(self, value: Any, path: str, kind: str) -> dict[str, Any]:  # noqa: ARG002 - for subclasses
        """Return an object; ``kind`` tells subclasses which fields it may have."""
        if not isinstance(value, dict):
            self.fail(f"{shown(value)} is not an object", path, "an object in braces")
        return value

    def entries(self, part: dict[str, Any], field: str, path: str, *, at_least: int = 0) -> list[Any]:
        """Return a list that must be there."""
        path = join(path, field)
        value = part.get(field, MISSING)
        if value is MISSING:
            self.fail("missing", path, "a list")
        if not isinstance(value, list):
            self.fail(f"{shown(value)} is not a list", path)
        if len(value) < at_least:
            self.fail("the list is empty", path, f"at least {at_least} entry")
        return value

    def text(self, part: dict[str, Any], field: str, path: str) -> str:
        """Return a name that must be there."""
        path = join(path, field)
        value = part.get(field, MISSING)
        if value is MISSING:
            self.fail("missing", path, "a name")
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            self.fail(f"{shown(value)} is not a name", path, "text of printable characters")
        return value

    def flag(self, part: dict[str, Any], field: str, path: str) -> bool:
        """Return true or false; false where it is absent or null."""
        value = part.get(field)
        if value is None:
            return False
        if not isinstance(value, bool):
            self.fail(f"{shown(value)} is neither true nor false", join(path, field), "true or false")
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
        return None if value is None else self.number_at(value, join(path, field), right=right, fits=fits)

    def required_number(self, part: dict[str, Any], field: str, path: str, *, right: str) -> float:
        """Return a number of at least 0 that must be there."""
        path = join(path, field)
        if field not in part:
            self.fail("missing", path, right)
        return self.number_at(part[field], path, right=right, fits=_at_least_0)

    def number_at(self, value: Any, path: str, *, right: str, fits: Callable[[float], bool]) -> float:
        """Return a finite number that ``fits``."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(f"{shown(value)} is not a number", path, right)
        if isinstance(value, float) and not math.isfinite(value):
            self.fail(f"{shown(value)} is not a finite number", path, right)
        if abs(value) > LARGEST_QUANTITY:
            self.fail(f"{shown(value)} is too large", path, f"{right}, at most {LARGEST_QUANTITY:g}")
        if not fits(value):
            self.fail(f"{shown(value)} is out of range", path, right)
        return float(value)

    def count(self, part: dict[str, Any], field: str, path: str, *, least: int = 0) -> int | None:
        """Return a whole number of at least ``least``; None where it is absent or null."""
        value = part.get(field)
        return None if value is None else self.count_at(value, join(path, field), least=least)

    def count_at(self, value: Any, path: str, *, least: int) -> int:
        """Return a whole number of at least ``least``."""
        right = f"a whole number of at least {least}"
        number = self.number_at(value, path, right=right, fits=lambda _: True)
        if not number.is_integer():
            self.fail(f"{shown(value)} is not a whole number", path, right)
        if number < least:
            self.fail(f"{shown(value)} is out of range", path, right)
        if number > LARGEST_COUNT:
            self.fail(f"{shown(value)} is too large", path, f"at most {LARGEST_COUNT}")
        return int(number)

    def ratio(self, part: dict[str, Any], field: str, path: str, default: float) -> float:
        """Return a number from 0 to 1."""
        value = self.number(
            part, field, path, right="a number from 0 to 1", fits=lambda ratio: 0 <= ratio <= 1
        )
        return default if value is None else value

    # Parts

    def no_twins(self, names: list[str], field: str) -> None:
        """Refuse a name that stands twice."""
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
        """Read a GPU type."""
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

    def bucket(self, value: Any, path: str) -> RequestBucket:
        """Read a request size and its rate."""
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
        """Read a table [bucket][configuration] of rates."""
        rows = self.entries(part, "throughput_rps", path)
        path = f"{path}.throughput_rps"
        if len(rows) != n_buckets:
            self.fail(f"has {len(rows)} rows for {n_buckets} buckets", path, "one row per bucket")
        table = []
        for b, row in enumerate(rows):
            if not isinstance(row, list):
                self.fail(f"{shown(row)} is not a list", f"{path}[{b}]", "one number per configuration")
            if len(row) != n_variants:
                self.fail(
                    f"has {len(row)} numbers for {n_variants} configurations",
                    f"{path}[{b}]",
                    "one number per configuration",
                )
            table.append(tuple([self.cell(value, path, b, c) for c, value in enumerate(row)]))
        return tuple(table)

    def cell(self, value: Any, path: str, b: int, c: int) -> float:
        """Read one rate of the table."""
        if type(value) is float and SMALLEST_THROUGHPUT_RPS <= value <= LARGEST_QUANTITY:
            return value  # the usual case, without building a path: large files have 100,000 cells
        return self.number_at(
            value,
            f"{path}[{b}][{c}]",
            right=f"requests per second, 0 (cannot serve) or at least {SMALLEST_THROUGHPUT_RPS:g}",
            fits=lambda rate: rate == 0 or rate >= SMALLEST_THROUGHPUT_RPS,
        )


def join(path: str, field: str) -> str:
    """Extend a field path."""
    return f"{path}.{field}" if path else field
