"""Reads reference runs of other simulators: one JSON file per run, and the times of every request.

It exists so that `ballast simulate golden` can be pointed at a folder of such runs. Two layouts are known, told apart
by what the JSON says: runs of splitwise-sim (``machine_order``; times in ``per_request/ID.csv.gz``) and of BLIS
(``routing``; times in ``ID.per_request.csv.gz``). It runs nothing and compares nothing.
"""

import csv
import gzip
import io
import json
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solver.domain.errors import InputError, Place
from solver.domain.trace import Floats, Requests
from telemetry.sources.traces.read import read_trace

_FIRST_ROWS = re.compile(r"first (\d+) rows of (.+)")
_MISSING = object()
_KINDS = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "an object"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenMachines:
    """So many machines of one kind in one role."""

    machine: str
    role: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitwiseSetup:
    """What a run of splitwise-sim simulated."""

    model: str
    machines: tuple[GoldenMachines, ...]
    """In the order in which they are created, which decides ties."""
    scheduler: str
    max_batch: int
    max_batch_tokens: int
    max_preemptions: int
    prompt_limit_tokens: int | None
    link_gib_per_s: float | None
    weights_bytes: int
    kv_bytes_per_token: int
    machine_memory_bytes: int
    counters: dict[str, int]
    """How often rules acted, by name; empty where the file does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlisSetup:
    """What a run of BLIS simulated."""

    model: str
    hardware: str
    tensor_parallel: int
    instances: int
    routing: str
    max_batch: int
    max_batch_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GoldenRun:
    """One reference run: what went in, and what came out for every request. NaN: the request did not finish."""

    id: str
    source: str
    peer: str
    setup: SplitwiseSetup | BlisSetup
    requests: Requests
    ttft_s: Floats
    e2e_s: Floats
    itl_mean_s: Floats | None
    metrics: dict[str, dict[str, float]]
    """Statistics as the peer's run gave them: metric (``ttft_s``), then statistic (``p50``)."""
    end_time_s: float | None


def read_golden_runs(folder: str | Path) -> tuple[GoldenRun, ...]:
    """Read all reference runs of a folder, by name.

    Raises
    ------
    InputError
        One line with file and field for everything that is not a sound reference run.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError("not a folder", where=str(folder), right="a folder with one JSON file per run")
    files = sorted(place.glob("*.json"))
    if not files:
        raise InputError("no JSON file in it", where=str(folder), right="one JSON file per reference run")
    return tuple(_read(path) for path in files)


class _Fields:
    """A JSON object whose fields are asked for by name and kind."""

    def __init__(self, source: str, path: str, value: Any) -> None:
        self.source, self.path = source, path
        if not isinstance(value, dict):
            raise InputError("not an object", where=self.place(), right="a JSON object with fields")
        self.values: dict[str, Any] = value

    def place(self, name: str = "") -> Place:
        return Place(self.source, field=".".join(part for part in (self.path, name) if part) or None)

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, name: str, kind: type) -> Any:
        value = self.values.get(name, _MISSING)
        if value is _MISSING or value is None:
            raise InputError("missing", where=self.place(name), right=_KINDS[kind])
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{value!r:.60}", where=self.place(name), right=_KINDS[kind])
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{value!r}", where=self.place(name), right="a finite number")
        return value

    def inner(self, name: str) -> "_Fields":
        return _Fields(self.source, f"{self.path}.{name}".lstrip("."), self.get(name, dict))

    def items(self, name: str) -> "list[_Fields]":
        return [
            _Fields(self.source, f"{name}[{index}]", item) for index, item in enumerate(self.get(name, list))
        ]


def _read(path: Path) -> GoldenRun:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}", where=str(path), right="one reference run") from None
    fields = _Fields(str(path), "", document)
    name = fields.get("id", str)
    if fields.has("machine_order"):
        setup: SplitwiseSetup | BlisSetup = _splitwise_setup(fields)
        columns: tuple[str, ...] = ("ttft_s", "e2e_s")
        table = path.parent / "per_request" / f"{path.stem}.csv.gz"
    elif fields.has("routing"):
        setup = _blis_setup(fields)
        columns = ("ttft_s", "e2e_s", "itl_mean_s")
        table = path.with_name(f"{path.stem}.per_request.csv.gz")
    else:
        raise InputError(
            "neither a run of splitwise-sim nor one of BLIS",
            where=str(path),
            right="the field machine_order or the field routing",
        )
    requests = _requests(fields, path.parent)
    times = _per_request(table, columns, len(requests))
    metrics = {
        metric: {statistic: inner.get(statistic, float) for statistic in inner.values}
        for metric in fields.inner("metrics").values
        for inner in (fields.inner("metrics").inner(metric),)
    }
    return GoldenRun(
        id=name,
        source=str(path),
        peer=fields.get("peer", str),
        setup=setup,
        requests=requests,
        ttft_s=times[0],
        e2e_s=times[1],
        itl_mean_s=times[2] if len(columns) > 2 else None,
        metrics=metrics,
        end_time_s=fields.get("end_time_s", float) if fields.has("end_time_s") else None,
    )


def _splitwise_setup(fields: _Fields) -> SplitwiseSetup:
    instance = fields.inner("instance")
    rules = fields.inner("rules_exercised") if fields.has("rules_exercised") else None
    counters = {name: rules.get(name, int) for name in rules.values} if rules else {}
    if fields.has("preemptions"):
        counters["preemptions"] = fields.get("preemptions", int)
    if fields.get("tensor_parallel", int) != 8:
        raise InputError(
            f"{fields.get('tensor_parallel', int)}", where=fields.place("tensor_parallel"), right="8"
        )
    return SplitwiseSetup(
        model=fields.get("model", str),
        machines=tuple(
            GoldenMachines(
                machine=group.get("machine", str), role=group.get("role", str), count=group.get("count", int)
            )
            for group in fields.items("machine_order")
        ),
        scheduler=fields.get("scheduler", str),
        max_batch=instance.get("max_batch_size", int),
        max_batch_tokens=instance.get("max_batch_tokens", int),
        max_preemptions=instance.get("max_preemptions", int),
        prompt_limit_tokens=(
            fields.get("prompt_max_pending_batch_tokens", int)
            if fields.has("prompt_max_pending_batch_tokens")
            else None
        ),
        link_gib_per_s=(
            fields.get("kv_transfer_gib_per_s", float) if fields.has("kv_transfer_gib_per_s") else None
        ),
        weights_bytes=fields.get("weights_bytes", int),
        kv_bytes_per_token=fields.get("kv_bytes_per_token", int),
        machine_memory_bytes=fields.get("machine_memory_bytes", int),
        counters=counters,
    )


def _blis_setup(fields: _Fields) -> BlisSetup:
    return BlisSetup(
        model=fields.get("model", str),
        hardware=fields.get("hardware", str),
        tensor_parallel=fields.get("tp", int),
        instances=fields.get("instances", int),
        routing=fields.get("routing", str),
        max_batch=fields.get("max_num_seqs", int),
        max_batch_tokens=fields.get("max_num_batched_tokens", int),
    )


def _requests(fields: _Fields, folder: Path) -> Requests:
    """Read the trace that a run names, beside it or one folder up; maybe only its first rows."""
    named = fields.get("trace", str)
    part = _FIRST_ROWS.fullmatch(named)
    name = part.group(2) if part else named
    path = folder / name
    if not path.exists() and (folder.parent / name).exists():
        path = folder.parent / name
    requests = read_trace(path).requests
    if part is None:
        return requests
    rows = int(part.group(1))
    if rows > len(requests):
        raise InputError(
            f"asks for {rows} rows of a trace of {len(requests)}", where=fields.place("trace"), right="fewer"
        )
    return requests.take(slice(0, rows))


def _per_request(path: Path, columns: tuple[str, ...], requests: int) -> list[Floats]:
    """Read the times of all requests, in the order of the trace; an empty cell is a request that did not finish."""
    try:
        text = gzip.GzipFile(fileobj=io.BytesIO(path.read_bytes())).read().decode("utf-8")
    except FileNotFoundError:
        raise InputError("not there", where=str(path), right="the times of every request") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"damaged: {error}", where=str(path), right="a CSV file packed by gzip") from None
    rows = csv.DictReader(io.StringIO(text))
    wanted = ("request_id", *columns)
    if not set(wanted).issubset(rows.fieldnames or ()):
        raise InputError(
            f"columns {', '.join(rows.fieldnames or ())}",
            where=Place(str(path), line=1),
            right=", ".join(wanted),
        )
    times = np.full((len(columns), requests), np.nan)
    number = 0
    for number, row in enumerate(rows, start=1):
        place = Place(str(path), line=number + 1)
        if number > requests or row["request_id"] != str(number - 1):
            raise InputError(
                f"request {row['request_id']}", where=place, right=f"requests 0 to {requests - 1} in order"
            )
        for index, column in enumerate(columns):
            try:
                times[index, number - 1] = float(row[column]) if row[column] else math.nan
            except (TypeError, ValueError):
                raise InputError(
                    f"{row[column]!r:.60}",
                    where=Place(str(path), line=number + 1, field=column),
                    right="seconds, or nothing if the request did not finish",
                ) from None
    if number < requests:
        raise InputError(f"{number} requests", where=str(path), right=f"the {requests} requests of the trace")
    return list(times)
