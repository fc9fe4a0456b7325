"""The machine on which the doctor is asked: the history's database as seen from it, and its Python.

It exists because these two are looked at without asking the cluster. It makes no table: a controller does, at its first
start.
"""

import importlib.util
from pathlib import Path

from controller.operator.doctor.findings import Finding, Mark, Notes


def examine_python(notes: Notes) -> None:
    """Warn of a package that ends the solver's process."""
    if importlib.util.find_spec("highspy") is not None:
        notes.note(
            "python",
            Mark.WARNING,
            "highspy can be imported here; it cannot live in one process with ortools",
            "pip uninstall highspy, or give Ballast an environment of its own",
        )


def database_finding(url: str) -> Finding:
    """Try to read the history; a database that was never used is fine."""
    from telemetry.store.store import open_store, read_url  # noqa: PLC0415 - a second's import, for few

    parsed = read_url(url)
    shown = parsed.render_as_string()
    file = parsed.database or ""
    if parsed.get_backend_name() == "sqlite" and file not in {"", ":memory:"} and not Path(file).exists():
        if Path(file).parent.is_dir():
            return Finding(area="database", mark=Mark.OK, what=f"{shown} is made at the first start")
        return Finding(
            area="database",
            mark=Mark.MISSING,
            what=f"{shown}: folder {Path(file).parent} does not exist",
            do="make it, or name another file",
        )
    try:
        open_store(url).decisions("", most=1)
    except Exception as error:  # noqa: BLE001 - only telemetry knows the library's errors
        said = " ".join(str(getattr(error, "orig", None) or error).split())
        if "no such table" in said or ("does not exist" in said and "relation" in said):
            return Finding(
                area="database", mark=Mark.OK, what=f"{shown} answers; its tables are made at the first start"
            )
        return Finding(
            area="database",
            mark=Mark.MISSING,
            what=f"{shown} cannot be used: {said[:300]}",
            do="correct the URL or start the server; control goes on without, history is lost",
        )
    return Finding(area="database", mark=Mark.OK, what=f"{shown} answers")
