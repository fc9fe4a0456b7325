"""What the command tells the shell: the exit codes of the contracts. It holds no judgement of answers."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended; 130 and 128 + n are an interrupt's and a signal's."""

    DONE = 0
    ERROR = 1
    """Input or the environment was wrong."""
    USAGE = 2
    MISSED = 3
    """Nothing is feasible, or what was judged misses its target."""
    TIMED_OUT = 4
    """The time limit ended it before what was asked for was reached."""
