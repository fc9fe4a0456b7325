"""The agent's loop: once a second look at the GPUs, let the rules decide, set, read back.

It exists to bring the pure rules (`solver.power.agent_core`), the GPUs, the journal and the orders together. It decides
nothing by itself. What has to be on disk is there before anything is set; where it cannot be written, nothing is set.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import structlog

from controller.agent.actuator import set_step
from controller.agent.journal import Journal
from controller.agent.orders import OrderSource
from controller.agent.state import LEASE_EXPIRED, LEASE_NEVER, LEASE_VALID, AgentState, GpuState
from solver.domain.node_power import Cap, Failure, NodeOrders
from solver.power.agent_core import AgentCore, Standing
from telemetry.sources.nvml.failures import DriverGoneError
from telemetry.sources.nvml.reader import NvmlReader
from telemetry.sources.nvml.sample import GpuSample

ROUNDS = 8
"""Of setting and reading back within one period: lower, raise, and tries of both."""
FOLLOW_S = 0.02
"""What a clock gets to follow its lock before it is read back."""
KEEP_EVERY_S = 30.0
"""Between writings of the standing where nothing changes: it shows later whether the driver was loaded again."""
log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Agent:
    """One node's agent."""

    reader: NvmlReader
    journal: Journal
    source: OrderSource
    enforce: bool
    random: Random
    fallback: Cap = field(default_factory=Cap)
    jitter_s: float = 5.0
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    state: AgentState | None = None
    _core: AgentCore = field(init=False)
    _samples: dict[str, GpuSample] = field(default_factory=dict)
    _xids: dict[str, deque[int]] = field(default_factory=dict)
    _sequence: int = 0
    _refused: str | None = None
    _acknowledged: int | None = None
    _journal_trouble: str = ""
    _kept_s: float = float("-inf")
    _kept_orders: NodeOrders | None = None
    _said: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        now_s = self.clock()
        self._samples = {sample.uuid: sample for sample in self.reader.sweep(now_s)}
        self.journal.begin(self.reader.driver_version, self._counters())
        if self.journal.trouble:
            self._say("journal", self.journal.trouble)
        originals = self.journal.originals()
        identities = self.reader.identities
        self._core = AgentCore(
            {uuid: identity.span for uuid, identity in identities.items()},
            random=self.random,
            standing=self.journal.standing() if self.enforce else None,
            fallback=self.fallback,
            originals_w={
                uuid: found.limit_w for uuid, found in originals.items() if found.limit_w is not None
            },
            instances={name: uuid for uuid, one in identities.items() for name in one.instances},
            enforce=self.enforce,
            jitter_s=self.jitter_s,
        )

    @property
    def core(self) -> AgentCore:
        """The rules."""
        return self._core

    def _counters(self) -> dict[str, float]:
        return {
            sample.uuid: sample.counter_j for sample in self._samples.values() if sample.counter_j is not None
        }

    def _say(self, what: str, text: str) -> None:
        """Log what is new, once."""
        if self._said.get(what) != text:
            self._said[what] = text
            log.warning(what, told=text) if text else log.info(what, told="well again")

    # --- one round -----------------------------------------------------------------------------------------------

    def tick(self) -> AgentState:
        """Do one round.

        Raises
        ------
        DriverGoneError
            NVML is gone: this process cannot go on.
        """
        core, now_s = self._core, self.clock()
        self._sequence += 1
        self._hear(now_s)
        began_s = time.thread_time()
        samples = self.reader.sweep(now_s)
        events = self.reader.events()
        cpu_s = time.thread_time() - began_s
        for event in events:
            self._xids.setdefault(event.uuid, deque(maxlen=8)).append(event.xid)
            log.warning("xid", gpu=event.uuid, xid=event.xid)
        identities = self.reader.identities
        core.adopt(
            {uuid: one.span for uuid, one in identities.items()},
            {name: uuid for uuid, one in identities.items() for name in one.instances},
        )
        self._take(samples, now_s)
        self._act()
        self._note_standing(now_s)
        if core.carried_out(self.clock()) and core.orders is not None:
            self._acknowledged = core.orders.generation
        self.state = self._state(now_s, cpu_s)
        self.source.publish(self.state)
        return self.state

    def _hear(self, now_s: float) -> None:
        heard = self.source.latest()
        self._say("orders", heard.trouble)
        if heard.orders is None:
            return
        self._refused = self._core.hear(heard.orders, min(heard.received_s, now_s))
        self._say("refused", self._refused or "")

    def _take(self, samples: tuple[GpuSample, ...], now_s: float) -> None:
        known = self._samples
        again = any(
            sample.uuid in known and sample.energy_resets > known[sample.uuid].energy_resets
            for sample in samples
        )
        known.update({sample.uuid: sample for sample in samples})
        if again:
            log.warning("driver", told="it was loaded again: limits and locks are gone")
            self.journal.begin(self.reader.driver_version, self._counters(), reloaded=True)
        self._core.see({sample.uuid: sample.seen for sample in samples}, now_s)

    def _act(self) -> None:
        """Set and read back until the rules ask for nothing more."""
        if not self._core.writes:
            return
        for _ in range(ROUNDS):
            if not self._found_written_down():
                return
            steps = self._core.steps(self.clock())
            if not steps or not self._keep(self._core.intend(steps)):
                return
            for step in steps:
                failure = set_step(self.reader, step)
                self._core.answered(step, failure, self.clock())
                log.info("set", gpu=step.uuid, knob=step.knob.value, value=step.value, answer=failure.value)
                if failure is Failure.DRIVER_GONE:
                    raise DriverGoneError(
                        "the driver went away in a set call",
                        where="NVML",
                        right="another process finds the new one",
                    )
            self.pause(FOLLOW_S)
            now_s = self.clock()
            self._take(self.reader.look({step.uuid for step in steps}, now_s), now_s)

    def _found_written_down(self) -> bool:
        """Have on disk what was found on every GPU, before the first write; False: nothing may be set."""
        known = self.journal.originals()
        new = {
            uuid: sample
            for uuid, sample in self._samples.items()
            if uuid not in known and sample.limit_w is not None
        }
        if new and not self._on_disk(lambda: self.journal.keep_originals(new, self.reader.identities)):
            return False
        if new:
            found = self.journal.originals()
            self._core.originals_w = {
                uuid: one.limit_w for uuid, one in found.items() if one.limit_w is not None
            }
        return True

    def _keep(self, standing: Standing) -> bool:
        """Have on disk where we stand."""
        if not self._on_disk(lambda: self.journal.keep_standing(standing, self._counters())):
            return False
        self._kept_s, self._kept_orders = self.clock(), standing.orders
        return True

    def _on_disk(self, write: Callable[[], object]) -> bool:
        try:
            write()
        except OSError as error:
            self._journal_trouble = f"{self.journal.folder}: {error.strerror or error}"
        else:
            self._journal_trouble = ""
        self._say("journal", self._journal_trouble)
        return not self._journal_trouble

    def _note_standing(self, now_s: float) -> None:
        """Keep the standing up to date where anything was ever set: orders, counters, what was read back."""
        if not self.enforce or not self.journal.originals():
            return
        orders, kept = self._core.orders, self._kept_orders
        changed = orders is not None and (kept is None or not orders.says_the_same(kept))
        if changed or now_s - self._kept_s >= KEEP_EVERY_S:
            self._keep(self._core.standing())

    def _state(self, now_s: float, cpu_s: float) -> AgentState:
        core = self._core
        orders = core.orders
        verdicts = core.verdicts(now_s)
        identities = self.reader.identities
        lease_until_s = now_s + core.lease_left_s(now_s)
        heard = self.source.latest()
        return AgentState(
            t_s=now_s,
            sequence=self._sequence,
            gpus=tuple(
                GpuState(
                    identity=identities[uuid],
                    sample=sample,
                    verdict=verdicts[uuid],
                    original_w=core.originals_w.get(uuid),
                    xids=tuple(self._xids.get(uuid, ())),
                )
                for uuid, sample in self._samples.items()
            ),
            unnamed=self.reader.unnamed,
            observed_generation=None if orders is None else orders.generation,
            acknowledged_generation=self._acknowledged,
            lease_state=LEASE_VALID
            if core.leased(now_s)
            else (LEASE_EXPIRED if core.was_leased else LEASE_NEVER),
            lease_until_s=lease_until_s,
            writes=core.writes,
            refused=self._refused,
            reflex=core.reflex,
            order_trouble=heard.trouble,
            journal_trouble=self._journal_trouble,
            cpu_s=cpu_s,
        )

    # --- the end -------------------------------------------------------------------------------------------------

    def leave(self, *, within_s: float = 5.0) -> AgentState:
        """Go to safe caps in an oversubscribed domain, else back to what was found; then nothing more is set."""
        until_s = self.clock() + within_s
        self._core.leave()
        state = self.tick()
        while not self._core.settled(self.clock()) and self.clock() < until_s:
            self.pause(0.2)
            state = self.tick()
        if self.enforce and self.journal.originals():
            self._keep(self._core.standing())
        return state
