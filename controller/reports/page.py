"""The page of a report: how templates are read, and how a finished page is written.

It exists so that all reports escape what they show, fail on what a template names and nobody gave, and are whole or not
there. What a report says is each report's own module.
"""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from telemetry.sources.traces.write import whole_file

TEMPLATES = Path(__file__).resolve().parent / "templates"


def page_environment() -> Environment:
    """Return what reads templates, for filters to be added."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: Path, text: str) -> None:
    """Write a page; its folder is made if it is missing.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as write:
        write(text)
