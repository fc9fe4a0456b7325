"""Root of the ``ballast`` command: mounts its groups lazily and turns every failure into one line and an exit code.

It exists so that a command loads only what it needs (the planner never loads a Kubernetes client) and so that exit
codes mean the same everywhere: 0 done, 1 error in the input or the run, 2 wrong usage, 3 infeasible or a missed
target, 4 stopped at the time limit.
"""

import os
import sys
import time
from typing import NoReturn, TextIO

import click

from controller.cli.answers import ballast_version
from controller.cli.exit_codes import ExitCode
from controller.cli.lazy import LazyGroup
from controller.time_limit import TimeLimitError
from solver.domain.errors import InputError

COMMANDS = {
    "agent": "controller.cli.agent:agent",
    "catalogue": "controller.cli.catalogue:catalogue",
    "compare": "controller.cli.compare:compare",
    "controller": "controller.cli.controller:controller",
    "demo": "controller.cli.demo:demo",
    "doctor": "controller.cli.doctor:doctor",
    "experts": "controller.cli.experts:experts",
    "explain": "controller.cli.explain:explain",
    "forecast": "controller.cli.forecast:forecast",
    "plan": "controller.cli.plan:plan",
    "power": "controller.cli.power:power",
    "simulate": "controller.cli.simulate:simulate",
    "sweep": "controller.cli.sweep:sweep",
    "trace": "controller.cli.trace:trace",
}


@click.command(
    cls=LazyGroup,
    members=COMMANDS,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "auto_envvar_prefix": "BALLAST",
    },
)
@click.version_option(ballast_version(), prog_name="ballast")
@click.pass_context
def ballast(ctx: click.Context) -> None:
    """Plan GPUs, phases, experts and power for LLM serving.

    Example: ballast demo
    """
    ctx.obj = time.monotonic()  # a time limit counts from here: loading and reading are part of the wait


def _called() -> str:
    """Name the command as people called it: kubectl runs ``kubectl-ballast`` for ``kubectl ballast``."""
    return "kubectl ballast" if os.path.basename(sys.argv[0]).startswith("kubectl-") else "ballast"  # noqa: PTH119 - a name, no path to open


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"ballast: {message}", err=True)
    raise SystemExit(code)


def _keep_stdout_for_answers() -> None:
    """Send what native libraries print on file descriptor 1 away from our answers.

    HiGHS prints a line of its own now and then, which would break JSON on a pipe. Python keeps writing to the real
    standard output; workers inherit the redirected descriptor. BALLAST_DEBUG shows such lines on stderr.
    """
    answers = os.dup(1)
    target = 2 if os.environ.get("BALLAST_DEBUG") else os.open(os.devnull, os.O_WRONLY)
    os.dup2(target, 1)
    sys.stdout = open(answers, "w", encoding=sys.stdout.encoding, errors="replace")  # noqa: SIM115, PTH123 - lives as long as the process


def _drop_pending_output() -> None:
    """Let what standard output still holds go nowhere, so that closing it at exit cannot fail once more."""
    if sys.stdout is not None:  # None when it was closed before we began
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line; never returns and never shows a stack trace (BALLAST_DEBUG=1 shows it)."""
    ours: TextIO | None = None
    try:
        _keep_stdout_for_answers()
        ours = sys.stdout
        result = ballast.main(args=args, prog_name=_called(), standalone_mode=False)
        sys.stdout.flush()  # here, where a full disk still gets its line
    except click.exceptions.NoArgsIsHelpError as error:
        ctx = error.ctx
        names = ", ".join(ctx.command.list_commands(ctx)) if isinstance(ctx.command, click.Group) else ""
        _fail(f"a command is missing; one of {names} (see '{ctx.command_path} --help')", ExitCode.USAGE)
    except click.UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx is not None else ""
        _fail(f"{error.format_message()}{hint}".replace("\n", " "), ExitCode.USAGE)
    except click.ClickException as error:
        _fail(error.format_message().replace("\n", " "), ExitCode.ERROR)
    except InputError as error:
        _fail(str(error), ExitCode.ERROR)
    except TimeLimitError as error:
        _fail(str(error), ExitCode.TIMED_OUT)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output went away: not our failure
        _drop_pending_output()
        raise SystemExit(ExitCode.DONE) from None
    except SystemExit as stop:
        # The same, as Rich (an exit while it handles the error) and Click (another standard output) hand it on.
        if not isinstance(stop.__context__, BrokenPipeError) and sys.stdout is ours:
            raise
        _drop_pending_output()
        raise SystemExit(ExitCode.DONE) from None
    except OSError as error:
        _drop_pending_output()
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}", ExitCode.ERROR)
    except Exception as error:  # the last line of defence: a bug still answers in one line
        if os.environ.get("BALLAST_DEBUG"):
            raise
        _fail(
            f"internal error: {type(error).__name__}: {error}; BALLAST_DEBUG=1 shows where".replace(
                "\n", " "
            ),
            ExitCode.ERROR,
        )
    raise SystemExit(result if isinstance(result, int) else ExitCode.DONE)
