"""Prints what all stories of ``ballast explain`` have in common: lines of words, conditions, what to do next.

It exists so that they look alike and stay within 100 columns. It knows no resource.
"""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from controller.operator.explain import Advice, Words

WIDTH = 100
APPROVAL = "WaitingForApproval"


def say(text: str, *, indent: str = "  ") -> None:
    """Print a line, wrapped."""
    if text:
        click.echo(
            textwrap.fill(
                text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
            )
        )


def print_list(title: str, lines: Sequence[str]) -> None:
    """Print lines under a title; nothing if there are none."""
    if lines:
        click.echo(title)
        for line in lines:
            say(f"  - {line}", indent="    ")
        click.echo()


def print_conditions(conditions: Sequence["Words"]) -> None:
    """Print conditions in words."""
    from controller.cli.output import print_table

    if not conditions:
        return
    rows = []
    for c in conditions:
        more = f": {c.message}" if c.message and c.reason != APPROVAL else ""
        rows.append((f"{c.type}={c.status}", f"{c.meaning} ({c.reason}){more}"))
    click.echo("Conditions")
    print_table("", ("condition", "in words"), rows)


def print_advice(advice: Sequence["Advice"]) -> None:
    """Print what to do next."""
    click.echo("What to do next")
    for one in advice:
        say(f"  - {one.text}", indent="    ")
        if one.command:
            click.echo(f"      {one.command}")  # whole, so that it can be copied


def conditions_answer(conditions: Sequence["Words"]) -> list[dict[str, Any]]:
    """Write conditions for programs."""
    return [
        {
            "type": c.type,
            "status": c.status,
            "reason": c.reason,
            "meaning": c.meaning,
            "message": c.message,
        }
        for c in conditions
    ]


def advice_answer(advice: Sequence["Advice"]) -> list[dict[str, Any]]:
    """Write what to do next for programs."""
    return [{"what": one.text, "command": one.command or None} for one in advice]


def step_state(phase: str, step: int, index: int) -> str:
    """Say in words how far one step of a Plan is, from the Plan's phase and the step under way."""
    if phase == "Proposed":
        return "proposed"
    if index < step or phase == "Applied":
        return "done"
    if phase == "Failed":
        return "failed" if index == step else "not reached"
    return "under way" if index == step else "to come"
