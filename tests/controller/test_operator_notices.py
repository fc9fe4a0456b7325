"""Events: each reason of an object seldom, and nothing remembered of what was told long ago."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import controller.operator.notices
from controller.operator.api import POWER_DOMAINS
from controller.operator.notices import QUIET_S, Notices


@dataclass(slots=True)
class Stage:
    """Notices whose clock is ours, and that write to nobody."""

    now_s: float = 0.0
    notices: Notices = field(init=False)

    def __post_init__(self) -> None:
        nobody: Any = None
        self.notices = Notices(api=nobody, instance="me", clock=lambda: self.now_s)

    def tell(self, message: str, uid: str = "row") -> bool:
        """Tell; returns whether it is to be written."""
        self.notices.event_for(POWER_DOMAINS, ("", uid, uid), "Normal", "Changed", message)
        queue = self.notices._queue
        return bool(not queue.empty() and queue.get_nowait())


@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from("abc"), st.sampled_from("xy")), max_size=40))
def test_the_same_is_told_again_only_after_ten_minutes(told: list[tuple[int, str, str]]) -> None:
    stage = Stage()
    last_s: dict[tuple[str, str], float] = {}
    for later_s, message, uid in told:
        stage.now_s += later_s
        news = stage.now_s - last_s.get((message, uid), float("-inf")) >= QUIET_S
        assert stage.tell(message, uid) == news
        if news:
            last_s[message, uid] = stage.now_s


def test_what_was_told_is_remembered_for_ten_minutes_only() -> None:
    stage = Stage()
    for digest in range(3000):  # a Plan a second
        stage.now_s += 1.0
        assert stage.tell(f"Plan {digest}")
        assert len(stage.notices._told_s) <= QUIET_S


def test_a_storm_of_events_is_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller.operator.notices, "MOST_TOLD", 50)
    stage = Stage()
    for digest in range(500):
        assert stage.tell(f"Plan {digest}")
        assert len(stage.notices._told_s) <= 50
    assert not stage.tell("Plan 499")
