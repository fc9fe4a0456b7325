"""Reads ``sweep/1`` files: which scenario, along which axes, how often, and where the results go.

It exists so that a sweep is a file that can be kept, resumed and sent to a cluster. It reads only the sweep file; the
scenario it names is read by `simulator.scenario_file`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simulator.sweep import Sweep
from simulator.yaml_document import read_yaml
from solver.domain.errors import InputError, Place

SCHEMA = "sweep/1"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    schema_: str = Field(alias="schema", description=f"schema: {SCHEMA}")
    base: str = Field(min_length=1, description="the path of a scenario file, relative to this one")
    axes: dict[str, list[Any]] = Field(description="a table like {pools.prompt.count: [20, 25]}")
    repeat_seeds: list[int] = Field(default=[0], description="a list of whole numbers from 0, e.g. [1, 2, 3]")
    out: str = Field(min_length=1, description="the path of a folder for the results, relative to this file")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    """A sweep with its places."""

    sweep: Sweep
    base: Path
    out: Path
    source: str


def read_sweep(path: str | Path) -> SweepSpec:
    """Read and check a sweep file.

    Raises
    ------
    InputError
        One line with file and field for the first thing that is wrong.
    """
    source = str(path)
    given, _ = read_yaml(Path(path), what="sweep")
    if not isinstance(given, dict):
        raise InputError("not a sweep", where=source, right=f"a table that begins with schema: {SCHEMA}")
    try:
        file = _File.model_validate(given)
    except ValidationError as error:
        raise _told(error, source) from None
    if file.schema_ != SCHEMA:
        raise InputError(
            f"got {file.schema_!r}", where=Place(source, field="schema"), right=f"schema: {SCHEMA}"
        )
    if any(seed < 0 for seed in file.repeat_seeds):
        raise InputError("a seed below 0", where=Place(source, field="repeat_seeds"), right="seeds from 0")
    for name, values in file.axes.items():
        _check_plain(values, Place(source, field=f"axes.{name}"))
    if not file.repeat_seeds or len(set(file.repeat_seeds)) < len(file.repeat_seeds):
        raise InputError(
            "must name at least one seed, each once",
            where=Place(source, field="repeat_seeds"),
            right="e.g. [1, 2, 3]",
        )
    try:
        sweep = Sweep(
            axes=tuple((name, tuple(values)) for name, values in file.axes.items()),
            seeds=tuple(file.repeat_seeds),
        )
    except InputError as error:
        raise InputError(error.what, where=Place(source, field="axes"), right=error.right) from None
    folder = Path(path).parent
    return SweepSpec(sweep=sweep, base=folder / file.base, out=folder / file.out, source=source)


def _check_plain(values: list[Any], place: Place) -> None:
    """Refuse what no JSON can say: results are kept as JSON, and points told apart by it."""
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError):
        right = "texts, finite numbers, true, false, null, lists and tables of them (dates in quotes)"
        raise InputError("a value that no JSON can hold", where=place, right=right) from None


def _told(error: ValidationError, source: str) -> InputError:
    found = error.errors(include_url=False, include_context=False)
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    path = ".".join(str(part) for part in first["loc"])
    names = [field.alias or name for name, field in _File.model_fields.items()]
    if first["type"] == "extra_forbidden":
        return InputError(
            f"unknown field {path!r}", where=Place(source, field=path), right=f"one of {', '.join(names)}"
        )
    described = next(f for name, f in _File.model_fields.items() if (f.alias or name) == str(first["loc"][0]))
    what = "missing" if first["type"] == "missing" else f"got {first['input']!r}"
    return InputError(what, where=Place(source, field=path), right=described.description)
