"""The rules of a node agent (power.md §12), as a state machine without a clock: what to set next, and what came of it.

It exists so that what the agent may do is decided in one place that can be searched for violations without a GPU. The
caller looks at the GPUs, passes what it saw to `AgentCore.see`, sets what `AgentCore.steps` asks for, tells the answers
to `AgentCore.answered`, and looks again. It reads no clock: ``now_s`` is always of one monotonic clock. It keeps
nothing on disk: `AgentCore.standing` is what the caller has to write down before it sets anything.

Two rules are functions of their own (`obeys`, `goes_safe`), for numbers and arrays alike, so that a simulated row of
agents follows them too.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType
from typing import Any

from solver.domain.node_power import (
    NO_CAP,
    Cap,
    Failure,
    GpuRange,
    GpuSeen,
    Knob,
    Mode,
    NodeOrders,
    Step,
    strictest,
)

LEASE_S = 15.0
TRIES = 3
"""Of one value, before the verdict is that it does not take."""
RETRY_S = 30.0
"""Between tries after that verdict, and where nothing may be set."""
SETTLE_S = 0.5
"""What a clock may take to follow its lock."""
REWRITES = 3
REWRITE_WINDOW_S = 3600.0
STAGGER_S = 0.8
"""Between one GPU and the next, when many caps are let go at once."""
JITTER_S = 5.0
"""Longest random wait before a node begins to let go, so that a row of nodes does not jump as one."""
REFLEX_HOLD_S = 10.0
"""After the hardware braked, or the node was over its budget."""
_NEAR_MHZ = 7  # half a step
_NEAR_W = 0.5
_REMEMBERED = 16


def obeys(*, generation: Any, newest: Any, lease_until_s: Any, now_s: Any, wanted: Any, in_force: Any) -> Any:
    """Return whether an order may be carried out: a newer one than the last, and no raise without a lease.

    Numbers, or arrays by server.
    """
    return (generation > newest) & ((lease_until_s > now_s) | (wanted <= in_force))


def goes_safe(*, lease_until_s: Any, now_s: Any, in_force: Any, safe: Any) -> Any:
    """Return whether a cap has to be lowered to the safe one: the lease is over, and it is not at or below it.

    Numbers, or arrays by server.
    """
    return (lease_until_s <= now_s) & (in_force > safe)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuStanding:
    """What has to be known of a GPU after a restart."""

    max_mhz: int | None = None
    """The lock in force; the lower one of two while one was being set."""
    limit_w: float | None = None
    ceiling_w: float | None = None
    """A limit that somebody else set below ours."""
    wrote_w: tuple[float, ...] = ()
    """Limits we set, the last ones: what is found among them is nobody's original."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What has to be known after a restart. It says nothing of a lease: none survives."""

    orders: NodeOrders | None = None
    gpus: Mapping[str, GpuStanding] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """What was found on a GPU before the first write of a boot and driver load."""

    limit_w: float | None
    enforced_w: float | None = None
    sm_mhz: int | None = None
    """The clock at that time: NVML does not tell locks."""
    assumed: bool = False
    """Not found but the driver's default: what was found may have been ours."""


def original_of(
    *,
    known: Original | None,
    found: Original,
    earlier: Original | None,
    wrote_w: tuple[float, ...],
    default_w: float | None,
) -> Original:
    """Return the original of a GPU: once known it stays, and a value that we wrote is never taken for one.

    Parameters
    ----------
    known
        Of this boot and driver load.
    found
        What is read now.
    earlier
        Of a load before this one.
    wrote_w
        Limits that we set on it.
    default_w
        The driver's.
    """
    if known is not None:
        return known
    if found.limit_w is not None and not any(abs(found.limit_w - ours) <= _NEAR_W for ours in wrote_w):
        return found
    if earlier is not None:
        return earlier
    return Original(limit_w=default_w, enforced_w=None, sm_mhz=found.sm_mhz, assumed=True)


@dataclass(slots=True)
class _Setting:
    """One knob of one GPU."""

    in_force: float = math.inf
    """The highest value that may be in force; infinite: nothing is capped, or it is not known."""
    ours: float | None = None
    """What we set last."""
    held: float = math.inf
    """The lowest value known to have been in force under our hand: without a lease we stay there."""
    pending: bool = False
    before: float | None = None
    """What was read before the last set: what an ignored one leaves."""
    set_s: float = -math.inf
    failures: int = 0
    """Sets in a row after which another value was read back."""
    mismatch: bool = False
    verified: bool = False
    confirmed: bool = False
    """The value itself was seen; a clock that is merely lower says nothing about its lock."""
    absent: bool = False
    failure: Failure = Failure.NONE
    ceiling: float = math.inf
    """Somebody else's lower value."""
    rewrites: deque[float] = field(default_factory=deque)
    astray: bool = False
    """Somebody else raised it."""

    def at(self, value: float) -> bool:
        """Whether there is nothing to be set for ``value``."""
        if self.ours is None:
            return self.in_force == value and (not math.isinf(value) or math.isinf(self.held))
        return self.ours == value and self.verified


@dataclass(slots=True)
class _Gpu:
    span: GpuRange
    seen: GpuSeen = field(default_factory=GpuSeen)
    looked: bool = False
    clock: _Setting = field(default_factory=_Setting)
    limit: _Setting = field(default_factory=_Setting)
    wrote_w: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def setting(self, knob: Knob) -> _Setting:
        return self.clock if knob is Knob.CLOCK else self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuVerdict:
    """What is to be said about a GPU."""

    wanted: Cap
    """What it is on its way to."""
    applied_mhz: int | None
    """The lock that was read back; None where there is none."""
    applied_w: float | None
    clock_confirmed: bool
    """The clock itself was seen at its lock, not only below it."""
    error: str | None
    """ActuatorMismatch, ForeignWriter, GpuLost, NoPermission, Failed; None while all is as ordered."""
    foreign_w: float | None
    """A lower limit that somebody else set, and that is respected."""


class AgentCore:
    """The rules of one node's agent.

    Parameters
    ----------
    ranges
        By UUID, what each GPU can be set to.
    random
        Draws the wait before caps are let go.
    standing
        What an agent before this one wrote down; there is no lease after a restart, whatever it says.
    fallback
        Safe cap while no orders are known.
    originals_w
        By UUID, the limit before the first write.
    instances
        By UUID of a MIG instance, the UUID of its GPU.
    enforce
        Whether anything may be set at all; orders have to ask for it, too.
    """

    def __init__(
        self,
        ranges: Mapping[str, GpuRange],
        *,
        random: Random,
        standing: Standing | None = None,
        fallback: Cap = NO_CAP,
        originals_w: Mapping[str, float] | None = None,
        instances: Mapping[str, str] | None = None,
        enforce: bool = False,
        jitter_s: float = JITTER_S,
    ) -> None:
        self._gpus = {uuid: _Gpu(span=span) for uuid, span in ranges.items()}
        self._random, self._fallback, self._jitter_s = random, fallback, jitter_s
        self.originals_w: dict[str, float] = dict(originals_w or {})
        self._instances = dict(instances or {})
        self.enforce = enforce
        self.orders: NodeOrders | None = None
        self._lease_until_s = -math.inf
        self._seen_renewal: tuple[str, int] | None = None
        self._heard = False
        """Whether orders came in person, not from an agent before this one."""
        self._gentle = True
        """The next raises are those of everybody: after a start, a lost lease, or a release."""
        self._raise_from_s = -math.inf
        self._drawn = False
        self.leaving = False
        self.reflex = ""
        """Why this node is at its safe caps of its own accord: PowerBrake, OverNodeBudget."""
        self._reflex_s = -math.inf
        self._permitted_s = -math.inf
        self.permitted = True
        if standing is not None:
            self._continue(standing)

    def _continue(self, standing: Standing) -> None:
        self.orders = standing.orders
        for uuid, known in standing.gpus.items():
            gpu = self._gpus.get(uuid)
            if gpu is None:
                continue
            gpu.wrote_w.extend(known.wrote_w)
            if known.max_mhz is not None:
                gpu.clock.held = known.max_mhz
            if known.limit_w is not None:
                gpu.limit.held = known.limit_w
            if known.ceiling_w is not None:
                gpu.limit.ceiling = known.ceiling_w

    def adopt(self, ranges: Mapping[str, GpuRange], instances: Mapping[str, str]) -> None:
        """Take GPUs that were not there before, and MIG instances as they are now."""
        self._instances = dict(instances)
        for uuid, span in ranges.items():
            if uuid not in self._gpus:
                self._gpus[uuid] = _Gpu(span=span)

    # --- orders and the lease ------------------------------------------------------------------------------------

    def hear(self, orders: NodeOrders, now_s: float) -> str | None:
        """Take orders as they are read, as often as they are read; returns why they are refused, None if not.

        The lease counts from the moment a renewal is first seen here. What is first seen after a start may be old: it
        renews nothing.
        """
        known = self.orders
        same_source = known is not None and known.source == orders.source
        if known is not None and same_source:
            if orders.generation < known.generation:
                return f"OldGeneration: {orders.generation} after {known.generation}"
            if orders.generation == known.generation and not orders.says_the_same(known):
                return f"ConflictingOrders: generation {orders.generation} says something else than before"
        if orders.release and not (known is not None and same_source and known.release):
            self._gentle, self._drawn = True, False
        self.orders, self._heard = orders, True
        seen = self._seen_renewal
        if seen is not None and seen[0] == orders.source and orders.renewal > seen[1]:
            if self._lease_until_s <= now_s:
                self._gentle, self._drawn = True, False
            self._lease_until_s = now_s + orders.lease_s
        if seen is None or seen[0] != orders.source or orders.renewal > seen[1]:
            self._seen_renewal = (orders.source, orders.renewal)
        return None

    def leased(self, now_s: float) -> bool:
        """Whether the lease runs."""
        return self._lease_until_s > now_s

    @property
    def was_leased(self) -> bool:
        """Whether there ever was a lease in this process."""
        return math.isfinite(self._lease_until_s)

    def carried_out(self, now_s: float) -> bool:
        """Whether the orders themselves are in force, as read back: with a lease, not of our own accord."""
        if not self.writes or self.orders is None or self.reflex or self.leaving:
            return False
        return (self.leased(now_s) or self.releases) and self.settled(now_s)

    def lease_left_s(self, now_s: float) -> float:
        """Return the seconds until the lease is over; 0 without one."""
        return max(self._lease_until_s - now_s, 0.0) if math.isfinite(self._lease_until_s) else 0.0

    def leave(self) -> None:
        """Tell that the process ends: safe caps in an oversubscribed domain, else what was found."""
        self.leaving = True
        if self.orders is not None and not self.orders.oversubscribed:
            self._gentle = False

    @property
    def writes(self) -> bool:
        """Whether what is ordered is carried out."""
        if self.orders is None:  # an agent that is told its safe caps needs nobody to go there
            return self.enforce and self._fallback != NO_CAP
        return self.enforce and self.orders.mode is Mode.AUTO

    @property
    def releases(self) -> bool:
        """Whether the GPUs go back to what was found on them."""
        if self.orders is None or not self._heard:
            return False
        return self.orders.release or (self.leaving and not self.orders.oversubscribed)

    # --- what is seen --------------------------------------------------------------------------------------------

    def see(self, seen: Mapping[str, GpuSeen], now_s: float) -> None:
        """Take a look at GPUs; those that are not in it are as they were."""
        for uuid, look in seen.items():
            gpu = self._gpus.get(uuid)
            if gpu is None:
                continue
            gpu.seen, gpu.looked = look, True
            if look.failure is Failure.NONE:
                self._see_limit(gpu, look)
                self._see_clock(gpu, look, now_s)
        self._watch_node(now_s)

    def _watch_node(self, now_s: float) -> None:
        """Go to safe caps without being told, where the hardware brakes or the node's own budget is exceeded."""
        cause = "PowerBrake" if any(gpu.seen.power_brake for gpu in self._gpus.values()) else ""
        budget_w = None if self.orders is None else self.orders.budget_w
        drawn_w = sum(gpu.seen.power_w for gpu in self._gpus.values() if gpu.seen.power_w is not None)
        if not cause and budget_w is not None and drawn_w > budget_w:
            cause = "OverNodeBudget"
        if cause:
            self.reflex, self._reflex_s = cause, now_s
        elif self.reflex and now_s - self._reflex_s > REFLEX_HOLD_S:
            self.reflex, self._gentle, self._drawn = "", True, False

    @staticmethod
    def _see_limit(gpu: _Gpu, look: GpuSeen) -> None:
        """Compare the limit with ours: as set, not taken, or somebody else's."""
        setting, limit_w = gpu.limit, look.limit_w
        if limit_w is None:
            return
        ours = setting.ours
        if ours is None:
            setting.in_force = min(limit_w, look.enforced_w or limit_w)
            return
        if abs(limit_w - ours) <= _NEAR_W:
            _taken(setting)
            setting.confirmed = True
        elif limit_w < ours and _others_lower(setting, limit_w):
            setting.ceiling = limit_w  # somebody lowers: theirs
            setting.verified, setting.astray, setting.pending = True, False, False
            setting.ours = setting.in_force = setting.held = limit_w
        elif setting.verified:  # somebody raises
            setting.ceiling = math.inf
            setting.in_force, setting.astray = limit_w, True
            setting.verified = setting.confirmed = False
        else:
            setting.in_force = max(limit_w, ours)
            _not_taken(setting)

    @staticmethod
    def _see_clock(gpu: _Gpu, look: GpuSeen, now_s: float) -> None:
        """Compare the clock with its lock: NVML has no getter for locks, a clock above one shows that there is none."""
        setting, mhz = gpu.clock, look.sm_mhz
        ours = setting.ours
        if mhz is None or ours is None:
            return
        above = mhz > ours + _NEAR_MHZ
        if not above:
            setting.confirmed = (setting.confirmed and setting.verified) or abs(mhz - ours) <= _NEAR_MHZ
            _taken(setting)
        elif setting.pending and now_s - setting.set_s < SETTLE_S:
            return
        else:
            setting.astray = setting.astray or setting.verified
            setting.in_force, setting.verified, setting.confirmed = math.inf, False, False
            _not_taken(setting)

    # --- what is to be done --------------------------------------------------------------------------------------

    def steps(self, now_s: float) -> tuple[Step, ...]:
        """Return what to set now: all that lowers; what raises only when nothing is left to lower.

        The values in force of all GPUs together are thereby never above both what was and what is ordered.
        """
        if not self.writes or (not self.permitted and now_s - self._permitted_s < RETRY_S):
            return ()
        lower: list[Step] = []
        higher: list[Step] = []
        waiting = False
        for uuid, gpu in self._gpus.items():
            if not gpu.looked:
                waiting = True
                continue
            goal = self._goal(uuid, gpu, now_s)
            for knob in Knob:
                setting, value = gpu.setting(knob), goal.value(knob)
                if value is None or setting.absent or setting.at(value):
                    continue
                lowers = value < setting.in_force - 1e-9
                waiting = waiting or lowers
                if gpu.seen.failure is not Failure.NONE or not _may_try(setting, value, now_s):
                    continue
                lock = knob is Knob.CLOCK and not math.isinf(value)
                step = Step(
                    uuid=uuid,
                    knob=knob,
                    value=None if math.isinf(value) else value,
                    least=(goal.min_mhz or gpu.span.clocks_mhz[0]) if lock else None,
                    lowers=lowers,
                )
                (lower if lowers else higher).append(step)
        if waiting:
            return tuple(lower)
        return self._raised(higher, now_s)

    def _raised(self, higher: list[Step], now_s: float) -> tuple[Step, ...]:
        if not higher:
            # Whoever was let go once is done with it: later raises are those of single orders.
            if self.leased(now_s) and not self.releases:
                self._gentle = False
            return ()
        if not self._gentle:
            return tuple(higher)
        if not self._drawn:
            self._drawn = True
            self._raise_from_s = now_s + self._random.uniform(0.0, self._jitter_s)
        if now_s < self._raise_from_s:
            return ()
        self._raise_from_s = now_s + STAGGER_S
        first = higher[0].uuid
        return tuple(step for step in higher if step.uuid == first)

    def _goal(self, uuid: str, gpu: _Gpu, now_s: float) -> "_Goal":
        """Return where a GPU has to be."""
        orders = self.orders
        original_w = self.originals_w.get(uuid, math.inf)
        if self.releases:
            wrote = gpu.limit.ours is not None or not math.isinf(gpu.limit.held)
            limit_w = min(original_w, gpu.limit.ceiling)
            return _Goal(mhz=math.inf, limit_w=limit_w if wrote and not math.isinf(limit_w) else None)
        safe = self._fallback if orders is None or orders.safe == NO_CAP else orders.safe
        safe = gpu.span.clamped(safe)
        told = self._told(uuid)
        if orders is None or told is None or not self.leased(now_s) or self.leaving or self.reflex:
            return _held(gpu, safe)
        floor = orders.floor_mhz
        if floor is not None and safe.max_mhz is not None:
            floor = min(floor, safe.max_mhz)
        cap = gpu.span.clamped(told, floor_mhz=floor)
        limit_w = math.inf if cap.limit_w is None else cap.limit_w
        if cap.limit_w is not None:  # never above what others set, before us or since
            limit_w = min(limit_w, original_w, gpu.limit.ceiling)
        return _Goal(mhz=cap.max_mhz, min_mhz=cap.min_mhz, limit_w=None if math.isinf(limit_w) else limit_w)

    def _told(self, uuid: str) -> Cap | None:
        """Return the cap ordered for a GPU: its own and those of its MIG instances, the strictest."""
        if self.orders is None:
            return None
        caps = [cap for whom, cap in self.orders.gpus.items() if uuid in {whom, self._instances.get(whom)}]
        return strictest(caps) if caps else None

    def intend(self, steps: tuple[Step, ...]) -> Standing:
        """Note what is about to be set and return what has to be on disk before it is."""
        for step in steps:
            gpu = self._gpus[step.uuid]
            setting = gpu.setting(step.knob)
            value = math.inf if step.value is None else step.value
            setting.held = min(setting.held, value)
            if step.knob is Knob.LIMIT and step.value is not None and step.value not in gpu.wrote_w:
                gpu.wrote_w.append(step.value)
        return self.standing()

    def answered(self, step: Step, failure: Failure, now_s: float) -> None:
        """Tell what a set call said. Success says nothing yet: `see` does."""
        gpu = self._gpus[step.uuid]
        setting = gpu.setting(step.knob)
        value = math.inf if step.value is None else step.value
        if failure is Failure.NOT_SUPPORTED:
            setting.absent = True
            return
        if failure is Failure.NO_PERMISSION:
            self.permitted, self._permitted_s = False, now_s
            setting.failure = failure
            return
        self.permitted = True
        setting.failure = failure
        if failure in {Failure.LOST, Failure.DRIVER_GONE}:
            return
        if math.isinf(value):  # let go: nothing of ours is left to be read back
            if failure is Failure.NONE:
                setting.ours, setting.in_force, setting.held = None, math.inf, math.inf
                setting.pending = setting.astray = setting.mismatch = False
                setting.failures = 0
            return
        if setting.astray and setting.ours == value:
            setting.rewrites.append(now_s)
        setting.ours, setting.set_s, setting.pending = value, now_s, True
        setting.before = gpu.seen.limit_w if step.knob is Knob.LIMIT else None
        setting.verified = setting.confirmed = False
        setting.in_force = max(
            setting.in_force, value
        )  # a raise counts at once, a lower value once it is read back

    # --- what is said --------------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """Return what an agent after this one has to know."""
        return Standing(
            orders=self.orders,
            gpus={
                uuid: GpuStanding(
                    max_mhz=None if math.isinf(gpu.clock.held) else int(gpu.clock.held),
                    limit_w=None if math.isinf(gpu.limit.held) else gpu.limit.held,
                    ceiling_w=None if math.isinf(gpu.limit.ceiling) else gpu.limit.ceiling,
                    wrote_w=tuple(gpu.wrote_w),
                )
                for uuid, gpu in self._gpus.items()
            },
        )

    def verdicts(self, now_s: float) -> dict[str, GpuVerdict]:
        """Return what is to be said about each GPU."""
        return {uuid: self._verdict(uuid, gpu, now_s) for uuid, gpu in self._gpus.items()}

    def _verdict(self, uuid: str, gpu: _Gpu, now_s: float) -> GpuVerdict:
        goal = self._goal(uuid, gpu, now_s)
        clock, limit = gpu.clock, gpu.limit
        return GpuVerdict(
            wanted=Cap(
                max_mhz=None if goal.mhz is None or math.isinf(goal.mhz) else int(goal.mhz),
                limit_w=goal.limit_w,
            ),
            applied_mhz=int(clock.in_force) if clock.verified and not math.isinf(clock.in_force) else None,
            applied_w=limit.in_force if limit.verified else None,
            clock_confirmed=clock.confirmed,
            error=self._error(gpu),
            foreign_w=None if math.isinf(limit.ceiling) else limit.ceiling,
        )

    def _error(self, gpu: _Gpu) -> str | None:
        if gpu.seen.failure is not Failure.NONE:
            return gpu.seen.failure.value
        settings = [gpu.setting(knob) for knob in Knob]
        if not self.permitted:
            return Failure.NO_PERMISSION.value
        if any(setting.mismatch for setting in settings):
            return "ActuatorMismatch"
        if any(setting.astray and len(setting.rewrites) >= REWRITES for setting in settings):
            return "ForeignWriter"
        failed = [setting.failure for setting in settings if setting.failure is not Failure.NONE]
        return failed[0].value if failed else None

    def settled(self, now_s: float) -> bool:
        """Whether everything is where it has to be, as read back."""
        if not self.writes:
            return True
        for uuid, gpu in self._gpus.items():
            goal = self._goal(uuid, gpu, now_s)
            for knob in Knob:
                value = goal.value(knob)
                if value is not None and not gpu.setting(knob).absent and not gpu.setting(knob).at(value):
                    return False
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Goal:
    """Where a GPU has to be; None leaves a knob alone, an infinite clock is one without a lock."""

    mhz: float | None = None
    min_mhz: int | None = None
    limit_w: float | None = None

    def value(self, knob: Knob) -> float | None:
        return self.mhz if knob is Knob.CLOCK else self.limit_w


def _held(gpu: _Gpu, safe: Cap) -> _Goal:
    """Return the goal without a lease: as it is if that is at or below the safe cap, else the safe cap."""
    clock, limit = gpu.clock, gpu.limit
    mhz = min(clock.held, clock.in_force)
    limit_w = min(limit.held, limit.in_force, limit.ceiling)
    if safe.max_mhz is not None and mhz > safe.max_mhz:
        mhz = safe.max_mhz
    if safe.limit_w is not None and limit_w > safe.limit_w:
        limit_w = safe.limit_w
    return _Goal(mhz=None if math.isinf(mhz) else mhz, limit_w=None if math.isinf(limit_w) else limit_w)


def _others_lower(setting: _Setting, value: float) -> bool:
    """Whether a lower value than ours is somebody else's, and not what was there before a set that did not take."""
    if setting.pending:
        return setting.before is not None and value < setting.before - _NEAR_W
    return setting.verified or setting.astray


def _taken(setting: _Setting) -> None:
    """Note that our value was read back."""
    if setting.ours is not None:
        setting.in_force = setting.held = setting.ours
    setting.pending = setting.astray = setting.mismatch = False
    setting.failures = 0
    setting.verified, setting.failure = True, Failure.NONE


def _not_taken(setting: _Setting) -> None:
    """Note that another value was read back after a set, if there was one."""
    if setting.pending:
        setting.pending = False
        setting.failures += 1
        setting.mismatch = setting.mismatch or setting.failures >= TRIES


def _may_try(setting: _Setting, value: float, now_s: float) -> bool:
    """Whether to set now: not while a clock settles, not a fourth time, not against somebody else's hand."""
    if setting.pending and now_s - setting.set_s < SETTLE_S:
        return False
    if setting.ours != value:
        return True
    if setting.astray:
        while setting.rewrites and now_s - setting.rewrites[0] >= REWRITE_WINDOW_S:
            setting.rewrites.popleft()
        if len(setting.rewrites) >= REWRITES:
            return False
    return setting.failures < TRIES or now_s - setting.set_s >= RETRY_S
