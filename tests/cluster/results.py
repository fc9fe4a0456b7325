"""Keeps what the long fault tests measured, and writes docs/reliability.md from it.

It exists so that figures in the documentation are those of a run, with its date and commit. Tests call `record`; it
writes only where ``BALLAST_CHAOS_RESULTS`` names a file (JSON lines).
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

RESULTS = "BALLAST_CHAOS_RESULTS"
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
FIGURES = "<!-- figures -->"


def record(name: str, value: float, unit: str, *, limit: str = "", met: bool = True) -> None:
    """Keep one figure of the fault (R1 ...) that ``name`` begins with."""
    path = os.environ.get(RESULTS)
    if not path:
        return
    entry = {"name": name, "value": value, "unit": unit, "limit": limit, "met": met}
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _order(entry: dict[str, object]) -> tuple[int, str]:
    first = str(entry["name"]).split(" ", 1)[0]
    number = first.removeprefix("R")
    return (int(number) if number.isdigit() else 99, str(entry["name"]))


def _met(entry: dict[str, object]) -> str:
    if not entry["limit"]:
        return ""
    return "yes" if entry["met"] else "**no**"


def write_page(results: Path) -> None:
    """Put the figures into the page, after what people wrote."""
    entries = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines() if line]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    rows = [
        f"Measured on {time.strftime('%Y-%m-%d')} at commit {commit}, on a machine shared with other work.",
        "",
        "| fault | measured | limit | met |",
        "|---|---|---|---|",
    ]
    rows += [
        f"| {e['name']} | {e['value']:.4g} {e['unit']} | {e['limit']} | {_met(e)} |"
        for e in sorted(entries, key=_order)
    ]
    head = PAGE.read_text(encoding="utf-8").split(FIGURES, maxsplit=1)[0]
    PAGE.write_text(head + FIGURES + "\n" + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
