"""Guard: predicts the draw of every choice of clocks from what servers are doing, and slows those that feel it least.

It exists because a loop on the draw alone wastes room twice: its own steps add to the noise of the row, and it slows
servers with work waiting as much as those without. Three ideas carry it.

1. Activity. A server's draw above idle, divided by (f/F)^e of the clock it ran at, is what it would draw at F. Smoothed
   over about a minute it predicts the draw at any clocks, so clocks are set, not stepped, and latency cannot make the
   loop swing. A change that cannot be noise is believed within seconds.
2. A margin in standard deviations of the prediction's error, not in per cent: a calm row runs closer to its budget.
3. Within a class the least active servers slow first. Where work waits, lost speed grows into a queue that everybody
   behind it feels; where nothing waits, it costs just itself.

Between the classes clocks go down in stages (high priority a little, low priority nearly to its floor, high priority a
little more, low priority to its floor, high priority to its own). The brake, on θ, is for what is left.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from solver.domain.errors import InputError
from solver.domain.power import Clocks, PowerRow, Watts
from solver.power.policies.braking import BrakeAtTheta, BrakeLever, BrakeRule
from solver.power.policies.protocol import Orders, PolicyRun, Seen

T = TypeVar("T")

START_DEVIATION_W = 500.0
"""Of one server's 2 s means about its own level: before anything is known of a row."""
BRAKE_OVER_S = 12.0
"""So long after a brake windows still hold seconds of it."""
_SAME_S = 0.5
"""Times closer than this are the same decision's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Settings; ratios of clocks are of the largest, ratios of draw of the budget."""

    caps: ClassVar[bool] = True
    guarded: ClassVar[bool] = True

    margin_deviations: float = 3.74
    """The predicted draw stays so many standard deviations of its error (2 s means) below the budget."""
    least_margin_ratio: float = 0.005
    most_target_ratio: float = 1.0
    """The predicted draw stays below this too."""
    first_high_ratio: float = 1380.0 / 1410.0
    deep_low_ratio: float = 1140.0 / 1410.0
    second_high_ratio: float = 1365.0 / 1410.0
    """High priority to the first, low to the second, high to the third, low to its floor, high to its floor."""
    level_s: float = 60.0
    """Time constant of a class's activity, ..."""
    server_s: float = 90.0
    """... of one server's, ..."""
    error_s: float = 600.0
    """... and of the error's variance."""
    jump_s: float = 10.0
    jump_deviations: float = 4.0
    """Errors whose mean over ``jump_s`` is so far from 0 are no noise: the level then follows as fast."""
    spread_ratio: float = 0.5
    """Within a class the most active server keeps so much more of its draw above idle than the least active one."""
    brake: BrakeRule | None = field(default_factory=BrakeAtTheta)
    label: str = "guard"

    def __post_init__(self) -> None:
        """Refuse margins and times that are none."""
        for name in ("margin_deviations", "least_margin_ratio", "spread_ratio"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise InputError(f"{value:g}", where=f"guard.{name}", right="it must be 0 or more")
        for name in (
            "most_target_ratio",
            "first_high_ratio",
            "deep_low_ratio",
            "second_high_ratio",
            "level_s",
            "server_s",
            "error_s",
            "jump_s",
            "jump_deviations",
        ):
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise InputError(f"{value:g}", where=f"guard.{name}", right="it must be above 0")

    @property
    def name(self) -> str:
        """As in the answers."""
        return self.label

    @property
    def brakes(self) -> bool:
        """Whether it ever orders the brake."""
        return self.brake is not None

    def begin(self, row: PowerRow) -> PolicyRun:
        """Start without memory, uncapped."""
        return _Run(self, row)


class _Run:
    """It remembers what servers did, never what it ordered: it goes on from any clocks, whoever set them."""

    def __init__(self, policy: Guard, row: PowerRow) -> None:
        self._policy, self._row = policy, row
        server = row.server
        self._scale: Watts = (np.arange(server.max_mhz + 1) / server.max_mhz) ** server.exponent
        self._classes = (np.flatnonzero(row.is_low), np.flatnonzero(~row.is_low))
        self._largest = np.full(row.servers, server.max_mhz, dtype=np.int64)
        self._top = row.top_mhz
        # What a standing cap leaves of a class's draw above idle.
        low_top, high_top = (top or server.max_mhz for top in (row.low_top_mhz, row.high_top_mhz))
        self._most = (float(self._scale[low_top]), float(self._scale[high_top]))
        # What one sample counts for in a mean over so long.
        self._level_share, self._server_share, self._jump_share = (
            1.0 - math.exp(-row.sample_s / mean_s)
            for mean_s in (policy.level_s, policy.server_s, policy.jump_s)
        )
        # What is left of each server's draw above idle, of that at F; None: all run at F.
        self._in_force: deque[tuple[float, Watts | None]] = deque()
        self._levels: deque[tuple[float, tuple[float, float]]] = deque()
        self._level_w: tuple[float, float] | None = None
        self._server_w: Watts | None = None
        self._offsets = {
            each.size: policy.spread_ratio * (np.arange(each.size) / max(each.size - 1, 1) - 0.5)
            for each in self._classes
        }
        self._variance = (START_DEVIATION_W * math.sqrt(row.servers) / row.budget_w) ** 2
        self._mean_error = 0.0
        self._braked_s = -math.inf
        self._brake = BrakeLever(policy.brake)

    def decide(self, seen: Seen) -> Orders:
        brake = self._brake.pulled(seen)
        if seen.braked or brake:
            self._braked_s = seen.t_s
        capped = np.count_nonzero(seen.in_force_mhz != self._largest)
        self._in_force.append((seen.t_s, self._scale[seen.in_force_mhz] if capped else None))
        if self._level_w is None or seen.t_s - self._braked_s > BRAKE_OVER_S:
            self._learn(seen)
        low_scale, high_scale = self._stages(seen)
        low_most, high_most = self._most
        if low_scale >= low_most and high_scale >= high_most:
            return Orders(server_mhz=self._top, brake=brake)
        clocks = self._top.copy()
        for servers, scale, most, floor_mhz in (
            (self._classes[0], low_scale, low_most, seen.low_floor_mhz),
            (self._classes[1], high_scale, high_most, seen.high_floor_mhz),
        ):
            if servers.size and scale < most:
                clocks[servers] = self._spread(servers, scale, most, floor_mhz)
        return Orders(server_mhz=clocks, brake=brake)

    def _learn(self, seen: Seen) -> None:
        """Take a sample into the activities and the variance of the prediction's error."""
        policy, row = self._policy, self._row
        began_s = seen.sample_s - row.sample_s
        _forget(self._in_force, began_s)
        scale = self._in_force[0][1]
        low_scale = high_scale = 1.0
        idle_w = row.server.idle_w
        if seen.server_w is not None:
            above_w = np.maximum(seen.server_w - idle_w, 0.0)
            at_top_w = above_w
            low_w, high_w = self._by_class(above_w)
            if scale is not None:
                low_above_w, high_above_w = low_w, high_w
                at_top_w = above_w / scale
                low_w, high_w = self._by_class(at_top_w)
                low_scale = low_above_w / low_w if low_w > 0.0 else 1.0
                high_scale = high_above_w / high_w if high_w > 0.0 else 1.0
            if self._server_w is None:
                self._server_w = at_top_w
            else:
                self._server_w += self._server_share * (at_top_w - self._server_w)
        else:
            low, high = self._classes
            if scale is not None:
                low_scale = float(scale[low].mean()) if low.size else 1.0
                high_scale = float(scale[high].mean()) if high.size else 1.0
            low_w = max(seen.low_w - idle_w * low.size, 0.0) / low_scale
            high_w = max(seen.high_w - idle_w * high.size, 0.0) / high_scale
        if self._level_w is None:
            self._level_w = (low_w, high_w)
        level_low_w, level_high_w = self._level_w
        # The error that counts is that of the prediction which the orders in force were made with.
        given_s = began_s - seen.clock_latency_s
        _forget(self._levels, given_s)
        known = bool(self._levels) and self._levels[0][0] <= given_s + _SAME_S
        then_low_w, then_high_w = self._levels[0][1] if known else self._level_w
        error = ((low_w - then_low_w) * low_scale + (high_w - then_high_w) * high_scale) / seen.budget_w
        fresh = ((low_w - level_low_w) * low_scale + (high_w - level_high_w) * high_scale) / seen.budget_w
        deviation = math.sqrt(self._variance)
        self._variance += (
            row.sample_s / policy.error_s * (min(error * error, 9.0 * self._variance) - self._variance)
        )
        quick = self._jump_share
        self._mean_error += quick * (fresh - self._mean_error)
        noise = deviation * math.sqrt(quick / (2.0 - quick))
        share = self._level_share
        if self._mean_error > policy.jump_deviations * noise:
            share = max(share, quick)
        elif self._mean_error < -1.5 * policy.jump_deviations * noise:
            share = max(share, quick / 2.0)  # more proof and less haste on the way up
        self._mean_error *= 1.0 - share
        self._level_w = (
            level_low_w + share * (low_w - level_low_w),
            level_high_w + share * (high_w - level_high_w),
        )
        self._levels.append((seen.t_s, self._level_w))

    def _by_class(self, watts: Watts) -> tuple[float, float]:
        """Return the sums over low and high priority."""
        low, high = self._classes
        return float(np.add.reduce(watts[low])), float(np.add.reduce(watts[high]))

    def _stages(self, seen: Seen) -> tuple[float, float]:
        """Return by class the draw above idle that is to be left, of that at F."""
        policy, row = self._policy, self._row
        if self._level_w is None:
            return self._most
        margin = max(policy.margin_deviations * math.sqrt(self._variance), policy.least_margin_ratio)
        target = min(1.0 - margin, policy.most_target_ratio)
        room_w = target * seen.budget_w - row.server.idle_w * row.servers
        scales = [*self._most]
        for which, ratio in (
            (1, policy.first_high_ratio),
            (0, policy.deep_low_ratio),
            (1, policy.second_high_ratio),
            (0, 0.0),
            (1, 0.0),
        ):
            over_w = scales[0] * self._level_w[0] + scales[1] * self._level_w[1] - room_w
            if over_w <= 0.0:
                break
            floor_ratio = (seen.high_floor_mhz if which else seen.low_floor_mhz) / row.server.max_mhz
            least = max(ratio, floor_ratio) ** row.server.exponent
            level_w = self._level_w[which]
            if level_w > 0.0:
                scales[which] = min(scales[which], max(least, scales[which] - over_w / level_w))
        return scales[0], scales[1]

    def _spread(self, servers: npt.NDArray[np.intp], scale: float, most: float, floor_mhz: int) -> Clocks:
        """Return clocks that leave a class ``scale`` of its draw above idle, more to the more active, [n].

        No server keeps more than ``most`` of its own.
        """
        server = self._row.server
        least = (floor_mhz / server.max_mhz) ** server.exponent
        if self._server_w is None:
            left = np.full(servers.size, scale)
        else:
            activity_w = self._server_w[servers]
            offset = np.empty(servers.size)
            offset[np.argsort(activity_w, kind="stable")] = self._offsets[servers.size]
            # What is left of the draw grows piecewise linearly in the middle; it bends where a server meets a limit.
            bends = np.sort(np.concatenate((least - offset, most - offset)))
            left_w = np.minimum(np.maximum(bends[:, None] + offset, least), most) @ activity_w
            middle = float(np.interp(scale / most * left_w[-1], left_w, bends))
            left = np.minimum(np.maximum(middle + offset, least), most)
        exact_mhz = server.max_mhz * left ** (1.0 / server.exponent)
        steps = np.floor((server.max_mhz - exact_mhz) / server.step_mhz + 0.5).astype(np.int64)
        return np.maximum(server.max_mhz - server.step_mhz * steps, floor_mhz)


def _forget(kept: deque[tuple[float, T]], t_s: float) -> None:
    """Forget what held before a time: the first that is left is what held then, or the first that is known."""
    while len(kept) > 1 and kept[1][0] <= t_s + _SAME_S:
        kept.popleft()
