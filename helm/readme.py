# ruff: noqa: INP001 - a script, no part of a package
"""Writes the table of values in the chart's README from values.yaml; ``--check`` says whether it is stale.

It exists because a table kept by hand drifts. A value's text is the comment before it that begins with two hyphens, as
helm-docs has it; every value needs one. It renders no templates.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "ballast"
BEGIN, END = "<!-- values: written by helm/readme.py -->\n", "<!-- end of values -->\n"


def rows(text: str) -> list[tuple[str, str, str, str]]:
    """Return key, type, default and description of every value."""
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        raise SystemExit("values.yaml: its top level must be a mapping")
    return list(_described(root, yaml.safe_load(text), text.splitlines(), ""))


def _described(
    node: yaml.MappingNode, values: dict[str, Any], lines: list[str], prefix: str
) -> list[tuple[str, str, str, str]]:
    found = []
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        default = values[key.value]
        before = lines[key.start_mark.line - 1].strip() if key.start_mark.line else ""
        if before.startswith("# --"):
            text = before.removeprefix("# --").strip()
            found.append((path, _kind(default), json.dumps(default, ensure_ascii=False), text))
        elif isinstance(value, yaml.MappingNode) and value.value:
            found += _described(value, default, lines, f"{path}.")
        else:
            raise SystemExit(f"values.yaml line {key.start_mark.line + 1}: {path} needs a comment '# -- …'")
    return found


def _kind(value: Any) -> str:
    kinds = ((bool, "bool"), (int, "int"), (float, "number"), (str, "string"), (list, "list"), (dict, "map"))
    return next(name for kind, name in kinds if isinstance(value, kind))


def readme(present: str, values: str) -> str:
    """Return the README with the present values in it."""
    before, _, rest = present.partition(BEGIN)
    _, _, after = rest.partition(END)
    if END not in rest:
        raise SystemExit(f"README.md: the lines {BEGIN.strip()} and {END.strip()} are missing")
    lines = ["| Value | Type | Default | What it is |", "|---|---|---|---|"]
    for path, kind, default, text in rows(values):
        lines.append(f"| `{path}` | {kind} | `{default}` | {text.replace('|', chr(92) + '|')} |")
    return f"{before}{BEGIN}{chr(10).join(lines)}\n{END}{after}"


def main() -> None:
    """Write or check the README."""
    path = CHART / "README.md"
    present = path.read_text(encoding="utf-8")
    wanted = readme(present, (CHART / "values.yaml").read_text(encoding="utf-8"))
    if "--check" not in sys.argv[1:]:
        path.write_text(wanted, encoding="utf-8")
    elif wanted != present:
        sys.exit("helm/ballast/README.md is stale: run python helm/readme.py")


if __name__ == "__main__":
    main()
