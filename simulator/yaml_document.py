"""Reads one YAML or JSON file as plain values with the line of each field; what scenarios and sweeps share.

It exists so that both are refused in the same words where they are no YAML, hold a key twice, or have no end. It knows
no field (`simulator.scenario_file` and `simulator.sweep_file` do).
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from solver.domain.errors import InputError, Place

LARGEST_VALUES = 200_000
"""A file with more values than this (aliases followed) is refused."""
DEEPEST = 20


def read_yaml(path: str | Path, *, what: str) -> tuple[Any, Mapping[str, int]]:
    """Read the values of a file, and the line of each field; ``-`` is standard input, ``what`` the file should be.

    Raises
    ------
    InputError
        One line with file and line if it is no YAML in UTF-8, says a key twice or is too large.
    """
    source = source_of(path)
    raw = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 (byte {error.start})", where=source, right="YAML or JSON in UTF-8"
        ) from None
    if text.lstrip().startswith("{"):
        text = text.replace("\t", " ")  # JSON may be indented by tabs, YAML not
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines = {} if node is None else dict(_lines_of(node, "", source, what, [0]))
            return (None if node is None else loader.construct_document(node)), lines
        finally:
            loader.dispose()
    except RecursionError:
        raise _endless(source, what) from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error)
        place = Place(source, None if mark is None else mark.line + 1)
        raise InputError(f"not YAML: {reason}", where=place, right=f"a {what} in YAML or JSON") from None


def source_of(path: str | Path) -> str:
    """Name a file in errors."""
    return "standard input" if str(path) == "-" else str(path)


class _Loader(yaml.SafeLoader):
    """Plain YAML, with 1e-3 read as the number it is in JSON."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _endless(source: str, what: str) -> InputError:
    return InputError("too many values, or nested too deep", where=source, right=f"a {what}")


def _lines_of(
    node: yaml.Node, path: str, source: str, what: str, seen: list[int]
) -> Iterator[tuple[str, int]]:
    """Yield the line of every field; refuse keys that stand twice, and documents without end."""
    seen[0] += 1
    if seen[0] > LARGEST_VALUES or path.count(".") + path.count("[") > DEEPEST:
        raise _endless(source, what)
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            inside = f"{path}.{name}" if path else name
            line = key.start_mark.line + 1
            if name in keys:
                raise InputError("given twice", where=Place(source, line, inside), right="one of them")
            keys.add(name)
            yield inside, line
            yield from _lines_of(value, inside, source, what, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inside = f"{path}[{index}]"
            yield inside, value.start_mark.line + 1
            yield from _lines_of(value, inside, source, what, seen)
