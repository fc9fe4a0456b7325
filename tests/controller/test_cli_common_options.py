"""Options that every command takes: a script may give all of them the same."""

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from controller.cli.options import CHANGES_NOTHING
from controller.cli.root import ballast

COMMON = ("--output", "--seed", "--time-limit", "--workers", "--no-timings", "--config")
PROMISED = (
    *("plan gpus", "plan fleet", "plan experts", "plan power"),
    *("simulate row", "simulate cluster", "simulate capacity", "simulate provision"),
    *("simulate golden", "simulate validate", "sweep", "compare"),
    *("forecast run", "forecast backtest"),
    *("trace describe", "trace import", "trace generate", "trace scale", "trace split"),
    *("catalogue gpus", "catalogue models"),
    *("doctor", "explain", "controller run", "agent run", "agent restore", "demo"),
)
"""Commands that scripts rely on."""


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield " ".join(words), command
        return
    with click.Context(command) as ctx:
        for name in command.list_commands(ctx):
            member = command.get_command(ctx, name)
            assert member is not None
            yield from commands(member, (*words, name))


FOUND = dict(commands(ballast))


def test_all_promised_commands_are_there() -> None:
    assert set(PROMISED) <= set(FOUND)


@pytest.mark.parametrize("words", FOUND)
def test_a_command_takes_every_common_option_once(words: str) -> None:
    names = [name for parameter in FOUND[words].params for name in parameter.opts]
    assert [names.count(name) for name in (*COMMON, "-o")] == [1] * (len(COMMON) + 1)
    assert len(names) == len(set(names))


def _said(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    ballast.main(args=list(words), prog_name="ballast", standalone_mode=False)
    return capsys.readouterr().out


def test_an_option_without_use_changes_nothing_and_help_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("catalogue", "gpus", "L4", "-o", "json")
    unused = ("--seed", "3", "--time-limit", "5", "--workers", "2", "--no-timings")
    plain = _said(*words, capsys=capsys)
    assert json.loads(plain)["gpus"]
    assert _said(*words, *unused, capsys=capsys) == plain
    file = tmp_path / "ballast.yaml"
    file.write_text("seed: 3\ntime-limit: 5\nworkers: 2\nno-timings: true\noutput: json\n")
    assert _said(*words[:3], "--config", str(file), capsys=capsys) == plain
    assert _said(*words[:2], "--help", capsys=capsys).count(CHANGES_NOTHING) == 4


@pytest.mark.parametrize(
    "wrong", [("--seed", "-1"), ("--time-limit", "0"), ("--time-limit", "nan"), ("--workers", "none")]
)
def test_an_option_without_use_is_checked_all_the_same(wrong: tuple[str, str]) -> None:
    with pytest.raises(click.BadParameter) as refused:
        ballast.main(args=["catalogue", "gpus", *wrong], prog_name="ballast", standalone_mode=False)
    assert refused.value.param is not None
    assert refused.value.param.opts == [wrong[0]]
