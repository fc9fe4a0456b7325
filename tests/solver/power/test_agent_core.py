"""The agent's rules against GPUs that refuse, lie, fall off the bus and have other masters: searched for violations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.domain.errors import InputError
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
from solver.power.agent_core import (
    REWRITES,
    AgentCore,
    Original,
    Standing,
    goes_safe,
    obeys,
    original_of,
)

A100 = GpuRange(clocks_mhz=tuple(range(210, 1411, 15)), least_w=100.0, most_w=400.0, default_w=400.0)
UUIDS = ("GPU-a", "GPU-b", "GPU-c")


@dataclass
class Card:
    """A GPU as it really is."""

    limit_w: float = 400.0
    lock_mhz: float = math.inf
    busy: bool = True
    gone: bool = False
    deaf: bool = False
    answer: Failure = Failure.NONE

    def look(self) -> GpuSeen:
        if self.gone:
            return GpuSeen(failure=Failure.LOST)
        mhz = min(self.lock_mhz, 1410.0) if self.busy else min(self.lock_mhz, 210.0)
        return GpuSeen(limit_w=self.limit_w, enforced_w=self.limit_w, sm_mhz=int(mhz), power_w=100.0)

    def set(self, step: Step) -> Failure:
        if self.gone:
            return Failure.LOST
        if self.answer in {Failure.NO_PERMISSION, Failure.NOT_SUPPORTED}:
            return self.answer
        if not self.deaf:
            if step.knob is Knob.LIMIT:
                assert step.value is not None
                self.limit_w = step.value
            else:
                self.lock_mhz = math.inf if step.value is None else step.value
        return self.answer


@dataclass
class Node:
    """Cards and the core that rules them; time goes in seconds."""

    core: AgentCore
    cards: dict[str, Card]
    now_s: float = 100.0
    written: list[Step] = field(default_factory=list)
    standing: Standing = field(default_factory=Standing)

    def tick(self, seconds: float = 1.0) -> list[Step]:
        self.now_s += seconds
        done: list[Step] = []
        self.look()
        for _ in range(5):
            steps = self.core.steps(self.now_s)
            if not steps:
                break
            self.standing = self.core.intend(steps)
            for step in steps:
                self.core.answered(step, self.cards[step.uuid].set(step), self.now_s)
                done.append(step)
            self.look()
        self.written += done
        return done

    def look(self) -> None:
        self.core.see({uuid: card.look() for uuid, card in self.cards.items()}, self.now_s)


def node(
    *,
    standing: Standing | None = None,
    enforce: bool = True,
    cards: dict[str, Card] | None = None,
    jitter_s: float = 0.0,
) -> Node:
    cards = cards or {uuid: Card() for uuid in UUIDS}
    core = AgentCore(
        dict.fromkeys(cards, A100),
        random=Random(1),  # noqa: S311 - a jitter
        standing=standing,
        originals_w=dict.fromkeys(cards, 400.0),
        enforce=enforce,
        jitter_s=jitter_s,
    )
    return Node(core=core, cards=cards)


def orders(
    generation: int,
    caps: Mapping[str, Cap] | None = None,
    *,
    renewal: int = 0,
    mhz: int | None = None,
    mode: Mode = Mode.AUTO,
    safe: Cap | None = None,
    release: bool = False,
    oversubscribed: bool = True,
    floor_mhz: int | None = None,
    budget_w: float | None = None,
) -> NodeOrders:
    return NodeOrders(
        source="n",
        generation=generation,
        renewal=renewal,
        lease_s=15.0,
        mode=mode,
        gpus=caps if caps is not None else {uuid: Cap(max_mhz=mhz) for uuid in UUIDS},
        safe=Cap(max_mhz=1050, limit_w=300.0) if safe is None else safe,
        release=release,
        oversubscribed=oversubscribed,
        floor_mhz=floor_mhz,
        budget_w=budget_w,
    )


def led(mhz: int = 1200, jitter_s: float = 0.0) -> Node:
    """Return a node with a lease and everything at ``mhz``."""
    it = node(jitter_s=jitter_s)
    it.core.hear(orders(1, mhz=mhz), it.now_s)
    it.core.hear(orders(1, mhz=mhz, renewal=1), it.now_s)
    it.tick()
    assert all(card.lock_mhz == mhz for card in it.cards.values())
    return it


def locks(it: Node) -> list[float]:
    return [card.lock_mhz for card in it.cards.values()]


def test_nothing_is_set_in_recommend_mode_or_without_being_told_twice() -> None:
    for enforce, mode in ((True, Mode.RECOMMEND), (False, Mode.AUTO)):
        it = node(enforce=enforce)
        it.core.hear(orders(1, mhz=900, mode=mode), it.now_s)
        it.core.hear(orders(1, mhz=900, mode=mode, renewal=1), it.now_s)
        assert not it.tick()
        assert it.core.verdicts(it.now_s)["GPU-a"].wanted.max_mhz == 900


def test_what_is_first_seen_renews_nothing() -> None:
    it = node()
    it.core.hear(orders(7, mhz=1200, renewal=40), it.now_s)
    assert not it.core.leased(it.now_s)
    it.tick()
    assert locks(it) == [1050] * 3
    it.core.hear(orders(7, mhz=1200, renewal=41), it.now_s)
    assert it.core.leased(it.now_s)
    for _ in range(6):
        it.tick()
    assert locks(it) == [1200] * 3


def test_a_lease_that_is_over_leads_to_the_safe_clock_and_holds_what_is_below_it() -> None:
    above, below = led(1200), led(900)
    for it in (above, below):
        it.tick(15.0)
        for _ in range(100):
            it.tick()
    assert locks(above) == [1050] * 3
    assert locks(below) == [900] * 3


def test_orders_of_an_older_generation_and_of_two_minds_are_refused() -> None:
    it = led(1200)
    it.core.hear(orders(5, mhz=1110, renewal=2), it.now_s)
    refused = it.core.hear(orders(4, mhz=1410, renewal=3), it.now_s)
    assert refused is not None
    assert refused.startswith("OldGeneration")
    refused = it.core.hear(orders(5, mhz=1305, renewal=3), it.now_s)
    assert refused is not None
    assert refused.startswith("ConflictingOrders")
    it.tick()
    assert locks(it) == [1110] * 3


def test_raises_wait_until_everything_lowered_was_read_back() -> None:
    it = led(1200)
    it.cards["GPU-a"].deaf = True
    caps = {"GPU-a": Cap(max_mhz=900), "GPU-b": Cap(max_mhz=1410), "GPU-c": Cap(max_mhz=1200)}
    it.core.hear(orders(2, caps, renewal=2), it.now_s)
    for _ in range(5):
        it.tick()
    assert locks(it) == [1200] * 3
    assert it.core.verdicts(it.now_s)["GPU-a"].error == "ActuatorMismatch"
    assert it.core.verdicts(it.now_s)["GPU-a"].applied_mhz is None
    it.cards["GPU-a"].deaf = False
    it.core.hear(orders(3, caps | {"GPU-c": Cap(max_mhz=1185)}, renewal=3), it.now_s)
    it.tick(40.0)
    it.core.hear(orders(3, caps | {"GPU-c": Cap(max_mhz=1185)}, renewal=4), it.now_s)
    for _ in range(10):
        it.tick()
    assert locks(it) == [900, 1410, 1185]
    assert it.core.verdicts(it.now_s)["GPU-a"].error is None


def test_three_tries_then_the_verdict_and_no_more_for_a_while() -> None:
    it = led(1200)
    it.cards["GPU-a"].deaf = True
    it.core.hear(orders(2, mhz=1110, renewal=2), it.now_s)
    done = [step for _ in range(12) for step in it.tick() if step.uuid == "GPU-a"]
    assert len(done) == 3
    assert it.core.verdicts(it.now_s)["GPU-a"].error == "ActuatorMismatch"
    assert not it.core.settled(it.now_s)


def test_a_clock_that_is_only_lower_does_not_confirm_its_lock() -> None:
    it = node(cards={"GPU-a": Card(busy=False)})
    told = {"GPU-a": Cap(max_mhz=1110)}
    it.core.hear(orders(1, told), it.now_s)
    it.core.hear(orders(1, told, renewal=1), it.now_s)
    it.tick()
    assert it.core.verdicts(it.now_s)["GPU-a"].applied_mhz == 1110
    assert not it.core.verdicts(it.now_s)["GPU-a"].clock_confirmed
    it.cards["GPU-a"].busy = True
    it.tick()
    assert it.core.verdicts(it.now_s)["GPU-a"].clock_confirmed


def limits(generation: int, watts: float, *, renewal: int) -> NodeOrders:
    caps = {uuid: Cap(limit_w=watts) for uuid in UUIDS}
    return orders(generation, caps, renewal=renewal, safe=Cap(limit_w=300.0))


def limited(watts: float = 350.0) -> Node:
    it = node()
    it.core.hear(limits(1, watts, renewal=0), it.now_s)
    it.core.hear(limits(1, watts, renewal=1), it.now_s)
    it.tick()
    return it


def test_a_lower_limit_of_somebody_else_is_adopted() -> None:
    it = limited()
    it.cards["GPU-b"].limit_w = 250.0
    for renewal in range(2, 10):
        it.core.hear(limits(1, 350.0, renewal=renewal), it.now_s)
        assert not it.tick()
    assert it.core.verdicts(it.now_s)["GPU-b"].foreign_w == 250.0
    it.core.hear(limits(2, 380.0, renewal=10), it.now_s)
    it.tick()
    assert [card.limit_w for card in it.cards.values()] == [380.0, 250.0, 380.0]


def test_a_higher_limit_of_somebody_else_is_written_over_three_times_an_hour() -> None:
    it = limited()
    rewrites = 0
    for renewal in range(2, 62):
        it.cards["GPU-b"].limit_w = 400.0
        it.core.hear(limits(1, 350.0, renewal=renewal), it.now_s)
        rewrites += len(it.tick())
    assert rewrites == REWRITES
    assert it.core.verdicts(it.now_s)["GPU-b"].error == "ForeignWriter"
    assert it.core.verdicts(it.now_s)["GPU-b"].applied_w is None
    it.now_s += 3600.0
    it.core.hear(limits(1, 350.0, renewal=70), it.now_s)
    assert len(it.tick()) == 1
    assert it.cards["GPU-b"].limit_w == 350.0


def test_nothing_is_raised_above_what_was_there_first() -> None:
    it = node(cards={"GPU-a": Card(limit_w=250.0)})
    it.core.originals_w["GPU-a"] = 250.0
    it.core.hear(limits(1, 350.0, renewal=0), it.now_s)
    it.core.hear(limits(1, 350.0, renewal=1), it.now_s)
    for _ in range(3):
        it.tick()
    assert it.cards["GPU-a"].limit_w == 250.0


def test_a_lost_gpu_is_told_and_left_alone_and_the_others_go_on() -> None:
    it = led(1200)
    it.cards["GPU-c"].gone = True
    it.core.hear(orders(2, mhz=1110, renewal=2), it.now_s)
    it.tick()
    assert locks(it)[:2] == [1110, 1110]
    assert it.core.verdicts(it.now_s)["GPU-c"].error == "GpuLost"


def test_without_permission_it_is_said_and_hardly_tried() -> None:
    it = node()
    for card in it.cards.values():
        card.answer = Failure.NO_PERMISSION
    it.core.hear(orders(1, mhz=900), it.now_s)
    done = [step for _ in range(20) for step in it.tick()]
    assert len(done) == 6  # each knob of each GPU, once
    assert {verdict.error for verdict in it.core.verdicts(it.now_s).values()} == {"NoPermission"}
    for card in it.cards.values():
        card.answer = Failure.NONE
    it.tick(40.0)
    assert locks(it) == [1050] * 3


def test_what_a_gpu_cannot_do_is_left_and_the_other_knob_is_used() -> None:
    it = node(cards={"GPU-a": Card(answer=Failure.NOT_SUPPORTED)})
    it.core.hear(orders(1), it.now_s)
    assert {step.knob for step in it.tick()} == {Knob.CLOCK, Knob.LIMIT}
    assert not it.tick()
    it = node(cards={"GPU-a": Card()})
    it.core._gpus["GPU-a"].clock.absent = True
    it.core.hear(orders(1), it.now_s)
    assert [step.knob for step in it.tick()] == [Knob.LIMIT]


def test_locks_lost_with_the_driver_come_back_without_a_lease_at_most_as_they_were() -> None:
    it = led(900)
    it.tick(20.0)
    for card in it.cards.values():
        card.lock_mhz = math.inf
    it.tick()
    assert locks(it) == [900] * 3


@pytest.mark.parametrize(("before", "after"), [(1200, 1050), (900, 900)])
def test_an_agent_that_starts_again_goes_to_safe_and_holds_what_is_lower(before: int, after: int) -> None:
    it = led(before)
    again = node(standing=it.standing, cards=it.cards)
    again.now_s = 5.0  # another clock
    again.tick()
    assert locks(again) == [after] * 3
    again.core.hear(orders(1, mhz=before, renewal=2), again.now_s)
    again.tick()
    assert locks(again) == [after] * 3


def test_a_release_gives_back_what_was_there_one_gpu_after_another() -> None:
    it = led(900, jitter_s=5.0)
    it.core.hear(orders(2, mhz=900, renewal=2, release=True), it.now_s)
    free = []
    for _ in range(12):
        it.tick()
        free.append(sum(math.isinf(lock) for lock in locks(it)))
    assert free[-1] == 3
    assert all(later - earlier <= 1 for earlier, later in zip([0, *free], free, strict=False))
    assert it.core.settled(it.now_s)


def test_a_release_that_nobody_ordered_in_person_does_not_count() -> None:
    it = led(900)
    it.core.hear(orders(2, mhz=900, renewal=2, release=True), it.now_s)
    again = node(standing=it.core.standing(), cards={uuid: Card(lock_mhz=900) for uuid in UUIDS})
    for _ in range(20):
        again.tick()
    assert locks(again) == [900] * 3


@pytest.mark.parametrize(("oversubscribed", "left_at"), [(True, 1050.0), (False, math.inf)])
def test_leaving_goes_to_safe_caps_or_gives_back(oversubscribed: bool, left_at: float) -> None:  # noqa: FBT001 - drawn
    it = node()
    it.core.hear(orders(1, mhz=1200, oversubscribed=oversubscribed), it.now_s)
    it.core.hear(orders(1, mhz=1200, renewal=1, oversubscribed=oversubscribed), it.now_s)
    it.tick()
    it.core.leave()
    it.tick()
    assert locks(it) == [left_at] * 3


def test_the_strictest_of_all_mig_instances_rules_their_gpu() -> None:
    assert strictest([Cap(max_mhz=1200), Cap(max_mhz=1110, limit_w=300.0)]) == Cap(
        max_mhz=1110, limit_w=300.0
    )
    core = AgentCore(
        {"GPU-a": A100},
        random=Random(1),  # noqa: S311 - a jitter
        instances={"MIG-1": "GPU-a", "MIG-2": "GPU-a"},
        enforce=True,
    )
    it = Node(core=core, cards={"GPU-a": Card()})
    told = {"MIG-1": Cap(max_mhz=1305), "MIG-2": Cap(max_mhz=1110)}
    core.hear(orders(1, told), it.now_s)
    core.hear(orders(1, told, renewal=1), it.now_s)
    it.tick()
    assert it.cards["GPU-a"].lock_mhz == 1110


def test_the_node_goes_to_safe_by_itself_over_its_budget_and_comes_back_later() -> None:
    it = led(1200)
    told = orders(2, mhz=1200, renewal=2, budget_w=250.0)
    it.core.hear(told, it.now_s)
    it.tick()
    assert it.core.reflex == "OverNodeBudget"
    assert locks(it) == [1050] * 3


def test_caps_go_to_what_can_be_set() -> None:
    assert A100.clamped(Cap(max_mhz=1119, limit_w=350.00049)) == Cap(max_mhz=1110, limit_w=350.0)
    assert A100.clamped(Cap(max_mhz=30, limit_w=20.0)) == Cap(max_mhz=210, limit_w=100.0)
    assert A100.clamped(Cap(max_mhz=300), floor_mhz=1110) == Cap(max_mhz=1110)
    assert GpuRange().clamped(Cap(max_mhz=300, limit_w=200.0)) == NO_CAP
    it = node()
    it.core.hear(orders(1, mhz=300, floor_mhz=1110), it.now_s)
    it.core.hear(orders(1, mhz=300, floor_mhz=1110, renewal=1), it.now_s)
    it.tick()
    assert locks(it) == [1050] * 3  # a floor is never above the safe clock


def test_orders_that_cannot_be_are_refused() -> None:
    for wrong in (
        {"max_mhz": 0},
        {"limit_w": math.nan},
        {"limit_w": -3.0},
        {"min_mhz": 1200, "max_mhz": 900},
    ):
        with pytest.raises(InputError):
            Cap(**wrong)
    for wrong in (
        {"generation": 0},
        {"generation": 1, "lease_s": math.inf},
        {"generation": 1, "budget_w": 0.0},
    ):
        with pytest.raises(InputError):
            NodeOrders(**wrong)


def test_the_two_rules_of_a_row_hold_for_arrays_as_for_numbers() -> None:
    generation, newest = np.array([2, 1, 2, 2]), np.array([1, 1, 1, 1])
    until_s, wanted, in_force = np.array([9.0, 9.0, 3.0, 3.0]), np.array([9, 9, 9, 5]), np.array([7, 7, 7, 7])
    told = obeys(
        generation=generation,
        newest=newest,
        lease_until_s=until_s,
        now_s=4.0,
        wanted=wanted,
        in_force=in_force,
    )
    assert told.tolist() == [True, False, False, True]
    assert goes_safe(lease_until_s=until_s, now_s=4.0, in_force=in_force, safe=6).tolist() == [
        False,
        False,
        True,
        True,
    ]
    assert not goes_safe(lease_until_s=3.0, now_s=4.0, in_force=5, safe=6)


WATTS = st.one_of(st.none(), st.integers(100, 400).map(float))


@given(known=WATTS, found=WATTS, earlier=WATTS, ours=st.lists(st.integers(100, 400).map(float), max_size=4))
def test_an_original_is_never_written_over_and_never_ours(
    known: float | None, found: float | None, earlier: float | None, ours: list[float]
) -> None:
    def original(watts: float | None) -> Original | None:
        return None if watts is None else Original(limit_w=watts)

    now = Original(limit_w=found)
    answer = original_of(
        known=original(known), found=now, earlier=original(earlier), wrote_w=tuple(ours), default_w=400.0
    )
    if known is not None:
        assert answer.limit_w == known
    elif answer is now:
        assert found is not None
        assert not any(abs(found - mine) <= 0.5 for mine in ours)
    else:
        assert answer.limit_w == (400.0 if earlier is None else earlier)


CLOCKS = st.sampled_from(range(210, 1411, 15))
CAPS = st.builds(Cap, max_mhz=CLOCKS, limit_w=st.integers(100, 400).map(float))
EVENTS = st.one_of(
    st.tuples(st.just("orders"), st.tuples(CAPS, CAPS, CAPS)),
    st.tuples(st.just("renew"), st.none()),
    st.tuples(st.just("wait"), st.floats(0.1, 20.0)),
    st.tuples(st.just("deaf"), st.sampled_from(UUIDS)),
    st.tuples(st.just("hears"), st.sampled_from(UUIDS)),
    st.tuples(st.just("idle"), st.sampled_from(UUIDS)),
    st.tuples(st.just("busy"), st.sampled_from(UUIDS)),
    st.tuples(st.just("gone"), st.sampled_from(UUIDS)),
    st.tuples(st.just("back"), st.sampled_from(UUIDS)),
    st.tuples(st.just("failing"), st.sampled_from(UUIDS)),
    st.tuples(st.just("sound"), st.sampled_from(UUIDS)),
    st.tuples(st.just("reload"), st.none()),
    st.tuples(st.just("restart"), st.none()),
    st.tuples(st.just("old"), st.none()),
    st.tuples(st.just("foreign"), st.tuples(st.sampled_from(UUIDS), st.integers(100, 400).map(float))),
    st.tuples(st.just("leave"), st.none()),
)


@given(st.lists(EVENTS, min_size=1, max_size=40))
def test_nothing_is_ever_raised_without_a_lease(events: list[tuple[str, object]]) -> None:
    """Whatever happens: without a lease each value that is set is at most what was really in force."""
    it = node()
    generation, renewal = 1, 0
    caps: dict[str, Cap] = {uuid: Cap(max_mhz=1200, limit_w=350.0) for uuid in UUIDS}
    it.core.hear(orders(generation, caps), it.now_s)
    for kind, what in events:
        if kind == "orders":
            assert isinstance(what, tuple)
            caps = dict(zip(UUIDS, what, strict=True))
            generation += 1
            renewal += 1
        elif kind == "renew":
            renewal += 1
        elif kind == "wait":
            assert isinstance(what, float)
            it.now_s += what
        elif kind in {"deaf", "hears"}:
            it.cards[str(what)].deaf = kind == "deaf"
        elif kind in {"idle", "busy"}:
            it.cards[str(what)].busy = kind == "busy"
        elif kind in {"gone", "back"}:
            it.cards[str(what)].gone = kind == "gone"
        elif kind in {"failing", "sound"}:
            it.cards[str(what)].answer = Failure.FAILED if kind == "failing" else Failure.NONE
        elif kind == "reload":
            for card in it.cards.values():
                card.limit_w, card.lock_mhz = 400.0, math.inf
        elif kind == "foreign":
            assert isinstance(what, tuple)
            it.cards[what[0]].limit_w = what[1]
        elif kind == "restart":
            it = Node(core=node(standing=it.standing, cards=it.cards).core, cards=it.cards, now_s=it.now_s)
        if kind == "leave":
            it.core.leave()  # the domain is oversubscribed: to safe caps, nowhere else
        elif kind == "old":
            it.core.hear(orders(max(generation - 1, 1), mhz=1410, renewal=renewal + 1), it.now_s)
        elif kind in {"orders", "renew"}:
            it.core.hear(orders(generation, caps, renewal=renewal), it.now_s)
        _tick_and_check(it)


def _tick_and_check(it: Node) -> None:
    it.now_s += 1.0
    it.look()
    for _ in range(5):
        steps = it.core.steps(it.now_s)
        if not steps:
            return
        it.standing = it.core.intend(steps)
        for step in steps:
            card = it.cards[step.uuid]
            really = card.limit_w if step.knob is Knob.LIMIT else card.lock_mhz
            assert step.value is not None
            assert it.core.leased(it.now_s) or step.value <= really + 1e-9
            it.core.answered(step, card.set(step), it.now_s)
        it.look()


@given(
    before=st.tuples(CLOCKS, CLOCKS, CLOCKS),
    after=st.tuples(CLOCKS, CLOCKS, CLOCKS),
    deaf=st.sets(st.sampled_from(UUIDS)),
    failing=st.sets(st.sampled_from(UUIDS)),
    ticks=st.integers(1, 8),
)
def test_between_two_orders_the_worst_case_is_never_above_both(
    before: tuple[int, ...], after: tuple[int, ...], deaf: set[str], failing: set[str], ticks: int
) -> None:
    """The clocks stand for watts: the sum in force after each single set is at most the larger of the two sums."""
    it = node()
    it.core._gentle = False
    first = {uuid: Cap(max_mhz=mhz) for uuid, mhz in zip(UUIDS, before, strict=True)}
    safe = Cap(max_mhz=1410)
    it.core.hear(orders(1, first, safe=safe), it.now_s)
    it.core.hear(orders(1, first, safe=safe, renewal=1), it.now_s)
    for _ in range(3):
        it.tick()
    assert locks(it) == list(before)
    for uuid in deaf:
        it.cards[uuid].deaf = True
    for uuid in failing:
        it.cards[uuid].answer = Failure.FAILED
    then = {uuid: Cap(max_mhz=mhz) for uuid, mhz in zip(UUIDS, after, strict=True)}
    it.core.hear(orders(2, then, safe=safe, renewal=2), it.now_s)
    most = max(sum(before), sum(after))
    for _ in range(ticks):
        it.now_s += 1.0
        it.look()
        for _ in range(5):
            steps = it.core.steps(it.now_s)
            it.core.intend(steps)
            for step in steps:
                it.core.answered(step, it.cards[step.uuid].set(step), it.now_s)
                assert sum(locks(it)) <= most
            it.look()
    if not deaf and ticks > 1:
        assert locks(it) == list(after)
