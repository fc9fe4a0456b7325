"""What PowerDomains drew, gathered in windows of ten seconds and handed to the history.

It exists so that an outage or a slow database costs the loop nothing: windows are added up in memory and put into the
buffered writer, which waits for nobody. What was not measured is missing, never zero and never a worst case. It reads
nothing back: no order depends on it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from controller.operator.power.figures import Figures
from telemetry.store.power_windows import DOMAIN, SAME_S, PowerWindow, PowerWindows, rolled_up
from telemetry.store.store import POWER_LEVELS

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Open:
    """Parts of windows of one domain that are not handed on yet."""

    start_s: int
    """Of the window that is open."""
    until_s: float = -math.inf
    """End of the last sample: no second is counted twice."""
    parts: list[PowerWindow] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class PowerHistory:
    """Gathers samples; for one thread."""

    put: Callable[[PowerWindows], None]
    """Takes windows to write; never waits."""
    window_s: int = POWER_LEVELS[0].window_s
    _domains: dict[str, _Open] = field(default_factory=dict)

    def take(self, domain: str, figures: Figures, *, end_s: float, covered_s: float) -> None:
        """Take what a domain drew in the ``covered_s`` seconds up to ``end_s`` on the wall clock; never fails."""
        try:
            self._take(domain, figures, end_s, covered_s)
        except Exception:  # a history that errs must not cost a decision
            log.exception("power is not kept", domain=domain)

    def close(self) -> None:
        """Hand on what is open; the next leader's samples add to it."""
        for name in list(self._domains):
            self._hand_on(name)
        self._domains.clear()

    def _take(self, domain: str, figures: Figures, end_s: float, covered_s: float) -> None:
        for name in [
            name for name, each in self._domains.items() if each.until_s < end_s - 3 * self.window_s
        ]:
            self._hand_on(name)  # nobody runs it any more
            del self._domains[name]
        watts = dict(figures.node_w)
        if figures.measured_w is not None:
            watts[DOMAIN] = figures.measured_w
        if not watts:
            return
        kept = self._domains.setdefault(domain, _Open(start_s=self._start_s(end_s - covered_s)))
        if kept.until_s > end_s + self.window_s:  # the clock was put back: time counts anew from here
            kept.until_s = -math.inf
        begin_s, first = max(end_s - covered_s, kept.until_s), True
        while begin_s < end_s - SAME_S:
            start_s = self._start_s(begin_s + SAME_S)
            if start_s != kept.start_s:
                self._hand_on(domain)
                kept.start_s = start_s
            stop_s = min(end_s, float(start_s + self.window_s))
            kept.parts += [
                PowerWindow(
                    domain=domain,
                    node=node,
                    start_s=start_s,
                    window_s=self.window_s,
                    energy_j=each_w * (stop_s - begin_s),
                    covered_s=stop_s - begin_s,
                    max_w=each_w,
                    samples=int(first),
                    first_s=begin_s,
                    last_s=stop_s,
                    theta_max=None if node != DOMAIN else figures.theta,
                    capped_s=None if node != DOMAIN else (stop_s - begin_s) * figures.capped,
                )
                for node, each_w in watts.items()
            ]
            begin_s, first = stop_s, False
        kept.until_s = max(kept.until_s, end_s)

    def _start_s(self, t_s: float) -> int:
        return int(t_s // self.window_s) * self.window_s

    def _hand_on(self, domain: str) -> None:
        kept = self._domains[domain]
        if kept.parts:
            self.put(PowerWindows(windows=rolled_up(kept.parts, self.window_s)))
            kept.parts = []
