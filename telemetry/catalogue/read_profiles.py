"""Reads measured profiles (CSV) into `ProfileTable` values: the ones that ship with Ballast, then the user's own.

It exists so that a measurement of a replica can be added as a file and wins over the formula. It fits nothing; the
columns are described in docs/performance.md.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from solver.domain.errors import InputError, Place
from solver.domain.hardware import GpuType, parse_precision
from solver.domain.llm import ModelShape
from solver.performance.profile_table import DecodePoint, PrefillPoint, ProfileTable
from solver.performance.protocol import ReplicaKind
from telemetry.catalogue.read import find_gpu, find_model

COLUMNS = (
    "model",
    "gpu_type",
    "gpus_per_replica",
    "precision",
    "phase",
    "new_tokens",
    "sequences",
    "kv_tokens",
    "seconds",
    "watts",
)
LARGEST = {
    "gpus_per_replica": 1e5,
    "new_tokens": 1e7,
    "sequences": 1e7,
    "kv_tokens": 1e12,
    "seconds": 1e6,
    "watts": 1e9,
}
"""What no measurement passes: it keeps sums finite and tables in memory."""
PHASES = ("prefill", "decode", "kv-slope")
SHIPPED = ("splitwise_tp8.csv",)


@dataclass(slots=True)
class _Draft:
    """The points of one replica kind while a file is read."""

    line: int
    """Where the kind appears first."""
    prefill: dict[float, PrefillPoint] = field(default_factory=dict)
    decode: dict[tuple[float, float], DecodePoint] = field(default_factory=dict)
    slope: float | None = None


def _number(row: Mapping[str, str], key: str, place: Place, *, zero: bool = False) -> float:
    text = (row.get(key) or "").strip()
    largest = LARGEST[key]
    right = f"a number {'of at least' if zero else 'above'} 0, at most {largest:g}"
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"got {text!r}", where=Place(place.source, place.line, key), right=right) from None
    if not math.isfinite(value) or not 0 <= value <= largest or (value == 0 and not zero):
        raise InputError(f"got {text!r}", where=Place(place.source, place.line, key), right=right)
    return value


def _twice(place: Place) -> InputError:
    return InputError("the same point twice", where=place, right="each point once: the median of its runs")


def _read_file(
    name: str, raw: bytes, gpus: Mapping[str, GpuType], models: Mapping[str, ModelShape]
) -> list[ProfileTable]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (byte {error.start})", where=name, right="a CSV file in UTF-8") from None
    # Comment lines become empty ones, so that line numbers stay true.
    lines = ["" if line.startswith("#") else line for line in text.splitlines()]
    first = next((index for index, line in enumerate(lines) if line), None)
    header = [] if first is None else [cell.strip() for cell in lines[first].split(",")]
    missing = [column for column in COLUMNS if column not in header and column != "watts"]
    if first is None or missing:
        raise InputError(
            f"lacks the columns {', '.join(missing)}",
            where=Place(name, 1 if first is None else first + 1),
            right=f"the header {','.join(COLUMNS)}",
        )
    drafts: dict[ReplicaKind, _Draft] = {}
    for number, line in enumerate(lines[first + 1 :], first + 2):
        if not line.strip():
            continue
        cells = next(csv.reader([line]))
        place = Place(name, number)
        if len(cells) != len(header):
            raise InputError(f"{len(cells)} cells", where=place, right=f"{len(header)} cells, as the header")
        row = dict(zip(header, cells, strict=True))
        try:
            gpu, model = find_gpu(gpus, row["gpu_type"].strip()), find_model(models, row["model"].strip())
            precision = parse_precision(row["precision"])
        except InputError as error:
            raise InputError(error.what, where=place, right=error.right) from None
        count = _number(row, "gpus_per_replica", place)
        if count != int(count):
            where = Place(name, number, "gpus_per_replica")
            raise InputError(f"got {count:g}", where=where, right="a whole number of at least 1")
        kind = ReplicaKind(
            model=model.name, gpu_type=gpu.name, gpus_per_replica=int(count), precision=precision.value
        )
        draft = drafts.setdefault(kind, _Draft(line=number))
        phase, seconds = row["phase"].strip(), _number(row, "seconds", place)
        watts = _number(row, "watts", place) if row.get("watts", "").strip() else None
        if phase == "prefill":
            tokens = _number(row, "new_tokens", place)
            if tokens in draft.prefill:
                raise _twice(place)
            draft.prefill[tokens] = PrefillPoint(new_tokens=tokens, seconds=seconds, watts=watts)
        elif phase == "decode":
            key = (_number(row, "sequences", place), _number(row, "kv_tokens", place, zero=True))
            if key in draft.decode:
                raise _twice(place)
            draft.decode[key] = DecodePoint(sequences=key[0], kv_tokens=key[1], seconds=seconds, watts=watts)
        elif phase == "kv-slope":
            draft.slope = seconds
        else:
            raise InputError(
                f"got {phase!r}", where=Place(name, number, "phase"), right=f"one of {', '.join(PHASES)}"
            )
    for kind, draft in drafts.items():
        if not draft.prefill and not draft.decode:
            raise InputError(
                f"only a kv-slope for {kind}",
                where=Place(name, draft.line),
                right="prefill or decode points too",
            )
    return [
        ProfileTable(
            kind=kind,
            prefill=tuple(draft.prefill.values()),
            decode=tuple(draft.decode.values()),
            kv_slope_s_per_token=draft.slope,
            provenance=Path(name).name,
        )
        for kind, draft in drafts.items()
    ]


def read_profiles(
    gpus: Mapping[str, GpuType], models: Mapping[str, ModelShape], extra: Sequence[Path] = ()
) -> tuple[ProfileTable, ...]:
    """Read the shipped profiles, then the user's files; a later profile of the same replica kind replaces an earlier.

    Raises
    ------
    InputError
        For the first row that is wrong: file, line, field and what would be right.
    """
    folder = files("telemetry.catalogue").joinpath("profiles")
    sources = [(name, folder.joinpath(name).read_bytes()) for name in SHIPPED]
    sources += [(str(path), path.read_bytes()) for path in extra]
    tables: dict[ReplicaKind, ProfileTable] = {}
    for name, raw in sources:
        tables.update({table.kind: table for table in _read_file(name, raw, gpus, models)})
    return tuple(tables.values())
