"""Files of text as checked values: JSON and YAML with their errors in one line.

It exists so that every reader of this room refuses unreadable, endless and malformed files alike. It knows no format.
"""

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import yaml

from solver.domain.errors import InputError, Place

LARGEST_TEXT_BYTES = 2**30
LARGEST_COUNT = 10**9
LARGEST_QUANTITY = 1e15
"""Above it, in any unit of these files, a number is a slip."""


def source_of(path: str | Path) -> str:
    """Return how errors call a path; ``-`` is standard input."""
    return "standard input" if str(path) == "-" else str(path)


def fail(source: str, what: str, *, field: str | None = None, right: str | None = None) -> NoReturn:
    """Refuse, naming the file and the field."""
    if field is not None and not field.isprintable():
        field = repr(field)
    raise InputError(what, where=Place(source, field=field), right=right)


def read_bytes(path: str | Path, *, largest: int = LARGEST_TEXT_BYTES) -> bytes:
    """Read a whole file, ``-`` for standard input.

    Raises
    ------
    InputError
        If it cannot be read or is larger than ``largest`` bytes.
    """
    source = source_of(path)
    try:
        if str(path) == "-":
            raw = sys.stdin.buffer.read(largest + 1)
        else:
            with Path(path).open("rb") as file:
                raw = file.read(largest + 1)
    except (OSError, ValueError) as error:
        fail(source, f"cannot be read: {getattr(error, 'strerror', None) or error}")
    if len(raw) > largest:
        fail(source, f"more than {largest} bytes", right="a smaller file")
    return raw


def text_of(raw: bytes, source: str) -> str:
    """Return bytes as text."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fail(source, f"not UTF-8 (byte {error.start})", right="a text file")


def json_of(raw: bytes, source: str) -> Any:
    """Parse JSON strictly: no NaN, no field twice.

    Raises
    ------
    InputError
        With the line where there is one.
    """

    def constant(name: str) -> NoReturn:
        fail(source, f"{name} is not JSON", right="a number")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            names = [name for name, _ in pairs]
            twin = next(name for index, name in enumerate(names) if name in names[:index])
            fail(source, f"the field {twin!r} stands twice in one object", right="once")
        return table

    text = text_of(raw, source)
    try:
        return json.loads(text, parse_constant=constant, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise InputError(
            f"not JSON: {error.msg} at column {error.colno}",
            where=Place(source, line=error.lineno),
            right="a JSON file",
        ) from None
    except RecursionError:
        fail(source, "nested too deeply", right="a JSON file")
    except InputError:
        raise
    except ValueError:  # Python refuses integers of more than some thousand digits
        fail(source, "a number has too many digits", right=f"numbers up to {LARGEST_QUANTITY:g}")


class _OnceLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain values only, as `yaml.safe_load`, and no key twice."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - theirs
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.start_mark
                )
        table: dict[Any, Any] = super().construct_mapping(node, deep)
        return table


def yaml_of(raw: bytes, source: str) -> Any:
    """Parse YAML of plain values.

    Raises
    ------
    InputError
        With the line where there is one.
    """
    text = text_of(raw, source)
    try:
        return yaml.load(text, Loader=_OnceLoader)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise InputError(
            f"not YAML: {error.problem}", where=Place(source, line=line), right="a YAML file"
        ) from None
    except yaml.YAMLError as error:
        fail(source, f"not YAML: {error}", right="a YAML file")
    except RecursionError:
        fail(source, "nested too deeply", right="a YAML file")
    except (ValueError, TypeError, AttributeError) as error:  # dates out of range, keys that are lists
        fail(source, f"not YAML that can be read: {error}", right="a YAML file")


def shown(value: Any) -> str:
    """Return a value as a message spells it, cut short."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, np.ndarray):
        return "an array"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        return "a number of too many digits"
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def table_of(value: Any, source: str, field: str | None, *, right: str) -> dict[Any, Any]:
    """Return an object."""
    if not isinstance(value, dict):
        fail(source, f"{shown(value)} is not an object", field=field, right=right)
    return value


def entry_of(table: dict[Any, Any], name: str, source: str, path: str = "", *, right: str) -> Any:
    """Return a field that must be there."""
    if name not in table:
        fail(source, "missing", field=f"{path}{name}", right=right)
    return table[name]


def list_of(value: Any, source: str, field: str, *, right: str) -> list[Any]:
    """Return a list."""
    if not isinstance(value, list):
        fail(source, f"{shown(value)} is not a list", field=field, right=right)
    return value


def count_of(value: Any, source: str, field: str, *, least: int = 0) -> int:
    """Return a whole number of at least ``least``; 8.0 is one, true and "8" are not."""
    right = f"a whole number of at least {least}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        fail(source, f"{shown(value)} is not a whole number", field=field, right=right)
    if value < least:
        fail(source, f"{shown(value)} is out of range", field=field, right=right)
    if value > LARGEST_COUNT:
        fail(source, f"{shown(value)} is too large", field=field, right=f"at most {LARGEST_COUNT}")
    return int(value)


def quantity_of(value: Any, source: str, field: str, *, right: str, above_0: bool = False) -> float:
    """Return a finite number of at least, or above, 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        fail(source, f"{shown(value)} is not a number", field=field, right=right)
    if value < 0 or (above_0 and value == 0):
        fail(source, f"{shown(value)} is out of range", field=field, right=right)
    if not value <= LARGEST_QUANTITY:
        fail(source, f"{shown(value)} is too large", field=field, right=f"at most {LARGEST_QUANTITY:g}")
    return float(value)


def slots_of(value: Any, source: str, field: str) -> npt.NDArray[np.int64]:
    """Return a list of lists of experts, [L][S], as an array.

    Raises
    ------
    InputError
        With the layer, and the slot: no list, rows of different length, a value that is no whole number.
    """
    rows = list_of(value, source, field, right="[layers][slots]")
    if not rows:
        fail(source, "there is no layer", field=field, right="[layers][slots]")
    for layer, row in enumerate(rows):
        if not isinstance(row, list) or not row:
            what = "is empty" if isinstance(row, list) else f"{shown(row)} is not a list"
            fail(source, f"layer {layer}: {what}", field=field, right="one expert per slot")
        if len(row) != len(rows[0]):
            fail(
                source,
                f"layer {layer} has {len(row)} slots, layer 0 has {len(rows[0])}",
                field=field,
                right="every layer has equally many",
            )
        for slot, expert in enumerate(row):
            if type(expert) is not int or abs(expert) > LARGEST_COUNT:
                fail(
                    source,
                    f"layer {layer}, slot {slot}: {shown(expert)} is not an expert",
                    field=field,
                    right="a whole number",
                )
    return np.array(rows, dtype=np.int64)
