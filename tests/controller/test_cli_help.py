"""``--help`` of every command: an example to begin with, and nothing but text."""

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from controller.cli.options import FiniteRange
from controller.cli.root import ballast


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        with click.Context(command) as ctx:
            for name in command.list_commands(ctx):
                member = command.get_command(ctx, name)
                assert member is not None
                yield from commands(member, (*words, name))


def options(words: tuple[str, ...]) -> Iterator[click.Parameter]:
    """Give what a command takes; `words` are its name behind ``ballast``."""
    command: click.Command = ballast
    for word in words:
        assert isinstance(command, click.Group)
        with click.Context(command) as ctx:
            found = command.get_command(ctx, word)
        assert found is not None
        command = found
    yield from command.params


def test_a_missing_command_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from controller.cli.root import main; main()", "simulate"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    names = "capacity, cluster, golden, provision, row, validate"
    assert done.stderr == f"ballast: a command is missing; one of {names} (see 'ballast simulate --help')\n"


@pytest.mark.parametrize("words", list(commands(ballast)), ids=" ".join)
def test_help_shows_an_example_that_can_be_copied(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    ballast.main(args=[*words, "--help"], prog_name="ballast", standalone_mode=False)
    shown = capsys.readouterr().out
    examples = shown.split("Options:")[0].partition("Example")[2]
    assert f"ballast {' '.join(words)}".strip() in " ".join(examples.split())
    assert "\\" not in shown.split("Options:")[0]


@pytest.mark.parametrize("words", list(commands(ballast)), ids=" ".join)
def test_no_option_takes_what_is_not_a_number(words: tuple[str, ...]) -> None:
    for option in options(words):
        kinds = option.type.types if isinstance(option.type, click.Tuple) else (option.type,)
        for kind in kinds:
            assert not isinstance(kind, click.types.FloatParamType) or isinstance(kind, FiniteRange), option


@pytest.mark.parametrize(
    "kind", [FiniteRange(), FiniteRange(min=0), FiniteRange(0, 1, min_open=True, max_open=True)]
)
@pytest.mark.parametrize("text", ["nan", "-nan", "inf", "-inf", "infinity", "1e999"])
def test_a_number_is_finite(kind: FiniteRange, text: str) -> None:
    assert kind.convert("0.5", None, None) == 0.5
    with pytest.raises(click.BadParameter):
        kind.convert(text, None, None)
