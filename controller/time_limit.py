"""Gives a run up at its time limit.

It exists for work that has no answer before its end, or a poorer one: a simulation, a search over simulations. Solvers
take a `Deadline` instead and stop by themselves. The limit is an alarm of the process: it acts where Python runs, so a
compiled stretch is finished first.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class TimeLimitError(Exception):
    """The time limit was reached before there was an answer."""


@contextmanager
def within(seconds: float | None, *, began_s: float) -> Iterator[None]:
    """Raise `TimeLimitError` in the body ``seconds`` after ``began_s`` (monotonic), in the main thread; None: never."""
    if seconds is None:
        yield
        return

    def give_up(_signal: int = 0, _frame: FrameType | None = None) -> NoReturn:
        raise TimeLimitError(f"the time limit of {seconds:g} s is reached; no answer")

    left_s = began_s + seconds - time.monotonic()
    if left_s <= 0.0:
        give_up()
    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, left_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
