"""``ballast compare``: two answers side by side, with ratios.

It exists because the question after a run is whether the other one was better. It compares whatever numbers two answers
of one schema share, and knows none of them by name.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from controller.cli.options import common_options, no_timings_option, output_option

SCHEMA = "comparison/1"
LONGEST_SHOWN = 40
"""Digits of a wrong number that an error shows."""
TIMINGS = ("wall_s", "engine_s", "solve_s", "simulated_requests_per_wall_s")
"""Figures that time the run itself."""
_NOT_COMPARED = ("schema", "version")


@click.command()
@click.argument("first", metavar="RUN", type=click.Path(dir_okay=False))
@click.argument("second", metavar="RUN", type=click.Path(dir_okay=False))
@click.option("--all", "show_all", is_flag=True, help="Show figures that are equal, too.")
@common_options(output_option, no_timings_option)
def compare(first: str, second: str, show_all: bool, output: str, no_timings: bool) -> None:
    """Put two answers (JSON of the same schema) side by side.

    The ratio is second / first.

    Example: ballast compare before.json after.json
    """
    from controller.cli.answers import ballast_version
    from controller.cli.output import print_structured, print_table

    answers = [_read(Path(name)) for name in (first, second)]
    one, other = (dict(_values(answer, "")) for answer in answers)
    schemas = [str(answer["schema"]) for answer in answers]
    if schemas[0] != schemas[1]:
        from solver.domain.errors import InputError, Place

        raise InputError(
            f"{schemas[1]!r}, and {first} is {schemas[0]!r}",
            where=Place(second, field="schema"),
            right="two answers of the same schema",
        )
    rows = [
        {
            "figure": name,
            "first": one.get(name),
            "second": other.get(name),
            "ratio": _ratio(one.get(name), other.get(name)),
        }
        for name in dict.fromkeys((*one, *other))
        if (show_all or one.get(name) != other.get(name)) and not (no_timings and name in TIMINGS)
    ]
    if output != "table":
        print_structured(
            {
                "schema": SCHEMA,
                "version": ballast_version(),
                "of": schemas[0],
                "first": first,
                "second": second,
                "figures": rows,
            },
            output,
        )
        return
    if not rows:
        click.echo(f"{first} and {second} say the same")
        return
    shown = [(row["figure"], *(_shown(row[key]) for key in ("first", "second", "ratio"))) for row in rows]
    click.echo(f"first: {first}; second: {second}; ratio: second / first")
    print_table("", ("figure", "first", "second", "ratio"), shown, right=(1, 2, 3))


def _read(path: Path) -> dict[str, Any]:
    import json

    from solver.domain.errors import InputError, Place

    def no_number(text: str) -> float:
        raise InputError(f"{text} is no number of JSON", where=str(path), right="an answer of -o json")

    def finite(text: str) -> float:
        shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
        try:
            number = int(text) if text.lstrip("-").isdecimal() else float(text)
            float(number)  # an integer beyond it has no ratio
        except (ValueError, OverflowError):
            number = math.inf
        if not math.isfinite(number):
            raise InputError(f"{shown} is too large a number", where=str(path), right="an answer of -o json")
        return number

    try:
        text = path.read_text(encoding="utf-8-sig")
        answer = json.loads(text, parse_constant=no_number, parse_float=finite, parse_int=finite)
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 (byte {error.start})", where=str(path), right="an answer in JSON"
        ) from None
    except json.JSONDecodeError as error:
        where = Place(str(path), error.lineno)
        raise InputError(f"not JSON: {error.msg}", where=where, right="an answer of -o json") from None
    except RecursionError:
        raise InputError("nested too deep", where=str(path), right="an answer of -o json") from None
    if not isinstance(answer, dict) or not isinstance(answer.get("schema"), str):
        raise InputError("has no schema", where=str(path), right="an answer of -o json")
    return answer


def _values(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every figure with its path; members of a list go by their name where they have one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if path or key not in _NOT_COMPARED:
                yield from _values(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            name = inner.get("name", inner.get("target")) if isinstance(inner, dict) else None
            yield from _values(inner, f"{path}.{index if name is None else name}")
    else:
        yield path, value


def _ratio(first: Any, second: Any) -> float | None:
    numbers = [
        value for value in (first, second) if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    if len(numbers) < 2 or numbers[0] == 0:
        return None
    from controller.cli.answers import DIGITS

    return float(f"{numbers[1] / numbers[0]:.{DIGITS}g}")


def _shown(value: Any) -> str | None:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and len(value) > 24:
        return f"{value[:21]}..."
    return None if value is None else str(value)
