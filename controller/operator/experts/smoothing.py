"""Exponentially weighted windows: what the loads of late are, with less weight on those of long ago.

It exists so that one odd window moves no experts. Transitions are smoothed alike, as long as every window has them.
"""

from dataclasses import dataclass

from solver.domain.moe import Floats
from telemetry.experts.recording import ExpertRecording


@dataclass(slots=True)
class Smoothed:
    """The mean so far; each new window takes a part ``alpha`` of it."""

    load: Floats | None = None
    transitions: Floats | None = None
    windows: int = 0
    """How many went in."""

    def add(self, recording: ExpertRecording, alpha: float) -> None:
        """Take a recording in. One that holds windows of its own starts anew: it brings its history along."""
        if recording.windows is not None and len(recording.windows) > 1:
            self.load = self.transitions = None
            for window in recording.windows:
                self._mix(window, None, alpha)
            # transitions come as the sum over all windows; loads as of one
            steps = recording.transitions
            self.transitions = None if steps is None else steps / len(recording.windows)
        else:
            self._mix(recording.load, recording.transitions, alpha)
        self.windows += 1

    def _mix(self, load: Floats, transitions: Floats | None, alpha: float) -> None:
        old, steps = self.load, self.transitions
        if old is None or old.shape != load.shape:
            self.load, self.transitions = load, transitions
            return
        self.load = alpha * load + (1.0 - alpha) * old
        self.transitions = None
        if transitions is not None and steps is not None and steps.shape == transitions.shape:
            self.transitions = alpha * transitions + (1.0 - alpha) * steps
