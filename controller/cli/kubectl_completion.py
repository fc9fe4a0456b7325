"""Completes ``kubectl ballast …``: the executable that kubectl asks when somebody presses the tab key.

It exists because kubectl completes a plugin through a program beside it, ``kubectl_complete-ballast``, which answers as
kubectl's own commands do: a line per word, then a directive. It knows no words but those of click's own completion.
"""

import sys

import click
from click.shell_completion import ShellComplete

from controller.cli.root import ballast

NO_FILES = 4
DEFAULT = 0
"""Directives of cobra, kubectl's command library: never complete file names; do as the shell does."""


def completions(words: list[str]) -> tuple[list[str], int]:
    """Complete the last of the words; returns lines and directive."""
    *before, incomplete = words or [""]
    found = ShellComplete(ballast, {}, "kubectl ballast", "_BALLAST_COMPLETE").get_completions(
        before, incomplete
    )
    files = any(item.type in {"file", "dir"} for item in found)
    lines = [
        f"{item.value}\t{item.help}" if item.help else str(item.value)
        for item in found
        if item.type not in {"file", "dir"}
    ]
    return lines, DEFAULT if files else NO_FILES


def main() -> None:
    """Print completions as kubectl reads them."""
    try:
        lines, directive = completions(sys.argv[1:])
    except click.ClickException:  # half a command line may be no command line
        lines, directive = [], NO_FILES
    click.echo("\n".join([*lines, f":{directive}"]))
