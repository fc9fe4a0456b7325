"""How a parent's budget is shared out: by priority, to like clocks, never too much, nobody up before others down."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.operator.power.shares import SETTLE_S, ClassShare, Grants, Part, Watts, shared
from solver.domain.errors import InputError
from solver.domain.power import REFERENCE_SERVER

IDLE_W, TOP_W = REFERENCE_SERVER.idle_w, REFERENCE_SERVER.worst_w(1410)


def part(
    name: str,
    budget_w: float,
    parent: str | None = None,
    *,
    low: int = 0,
    high: int = 0,
    factor: float = 1.0,
    static_w: float = 0.0,
) -> Part:
    return Part(
        name=name,
        parent=parent,
        budget_w=budget_w,
        factor=factor,
        static_w=static_w,
        server=REFERENCE_SERVER,
        low=ClassShare(servers=low, floor_mhz=1110, top_mhz=1410),
        high=ClassShare(servers=high, floor_mhz=1305, top_mhz=1410),
    )


def now_w(*parts: Part) -> dict[str, float]:
    return {name: watts[1] for name, watts in shared(parts).items()}


def clock(each_w: float) -> float:
    """Return the clock at which a server draws at most this."""
    return max(mhz for mhz in REFERENCE_SERVER.clocks_mhz if REFERENCE_SERVER.worst_w(mhz) <= each_w + 1.0)


def test_priorities_are_served_stage_by_stage_over_two_levels() -> None:
    def rows(budget_w: float) -> tuple[float, float]:
        found = now_w(
            part("site", 2 * budget_w),
            part("ups", budget_w, "site"),
            part("gold", 1e6, "ups", high=10),
            part("bulk", 1e6, "ups", low=10),
        )
        return found["gold"] / 10, found["bulk"] / 10

    worst = REFERENCE_SERVER.worst_w
    assert rows(10 * (worst(1305) + IDLE_W)) == pytest.approx((worst(1305), IDLE_W), abs=1.0)
    assert rows(10 * (worst(1305) + worst(900))) == pytest.approx((worst(1305), worst(900)), abs=1.0)
    assert rows(10 * (worst(1410) + worst(1110))) == pytest.approx((worst(1410), worst(1110)), abs=1.0)
    assert rows(10 * (worst(1410) + worst(1300))) == pytest.approx((worst(1410), worst(1300)), abs=1.0)
    assert rows(10 * 2 * worst(1410) + 100.0) == pytest.approx(
        (worst(1410) + 5.0, worst(1410) + 5.0), abs=1.0
    )


def test_like_servers_come_to_like_clocks_however_many_a_row_has() -> None:
    worst_w = REFERENCE_SERVER.worst_w(1250)
    found = now_w(part("ups", 50 * worst_w), part("a", 1e6, "ups", low=10), part("b", 1e6, "ups", low=40))
    assert clock(found["a"] / 10) == pytest.approx(1250, abs=45)
    assert clock(found["b"] / 40) == pytest.approx(1250, abs=45)


def test_what_is_drawn_always_comes_off_and_factors_count_now() -> None:
    parts = (
        part("ups", 40_000.0, factor=0.75, static_w=1_000.0),
        part("a", 20_000.0, "ups", low=3),
        part("b", 20_000.0, "ups", low=3, static_w=500.0),
    )
    found = shared(parts)
    assert found["ups"] == (40_000.0, 30_000.0)
    assert found["a"][0] + found["b"][0] == pytest.approx(39_000.0, abs=2.0)
    assert found["a"][1] + found["b"][1] == pytest.approx(29_000.0, abs=2.0)
    assert found["b"][1] - found["a"][1] == pytest.approx(500.0, abs=2.0)
    scarce = shared((part("ups", 40_000.0, factor=0.25), *parts[1:]))  # less than idle, for a while
    assert scarce["a"][1] + scarce["b"][1] <= 10_000.0
    with pytest.raises(InputError):
        shared((part("ups", 10_000.0), *parts[1:]))
    deep = tuple(part(str(k), 1e6, str(k - 1) if k else None) for k in range(6))
    with pytest.raises(InputError, match="6 levels"):
        shared(deep)


leaves = st.tuples(st.integers(0, 6), st.integers(0, 6), st.floats(0.3, 1.0), st.floats(30_000.0, 90_000.0))


@given(
    rows=st.lists(st.lists(leaves, min_size=1, max_size=3), min_size=1, max_size=3), tight=st.floats(0.4, 1.2)
)
def test_no_sum_is_above_what_is_there(rows: list[list[tuple[int, int, float, float]]], tight: float) -> None:
    needs = [sum((low + high) * TOP_W for low, high, _, _ in row) for row in rows]
    parts = [part("site", max(tight * sum(needs), 1.0))]
    parts += [part(f"u{k}", max(0.9 * need, 1.0), "site") for k, need in enumerate(needs)]
    for k, row in enumerate(rows):
        for n, (low, high, factor, budget_w) in enumerate(row):
            parts.append(part(f"u{k}r{n}", budget_w, f"u{k}", low=low, high=high, factor=factor))
    by_name = {each.name: each for each in parts}
    found = shared(tuple(parts))
    for at in (0, 1):
        for k, row in enumerate(rows):
            sums = sum(found[f"u{k}r{n}"][at] for n in range(len(row)))
            assert sums <= found[f"u{k}"][at] + 1e-6
        leaf_sum = sum(w[at] for name, w in found.items() if "r" in name)
        assert leaf_sum <= by_name["site"].budget_w + 1e-6
    for name, (usual, now) in found.items():
        assert usual <= by_name[name].budget_w
        assert now <= by_name[name].budget_w * by_name[name].factor + 1e-9
        if "r" in name:
            assert usual >= (by_name[name].low.servers + by_name[name].high.servers) * IDLE_W


@given(
    moves=st.lists(
        st.tuples(
            st.lists(st.floats(0.05, 1.0), min_size=4, max_size=4), st.sampled_from([1.0, 2.0, 7.0, 30.0])
        ),
        min_size=2,
        max_size=12,
    )
)
def test_while_shares_move_their_sum_stays(moves: list[tuple[list[float], float]]) -> None:
    grants, now_s = Grants(), 0.0
    parents: dict[str, str | None] = {"a": "x", "b": "x", "x": "top", "c": "top", "d": "top", "top": None}
    seen: list[tuple[float, dict[str, Watts]]] = []
    for weights, for_s in moves:
        wanted = {name: (0.0, 1000.0 * w / sum(weights)) for name, w in zip("abcd", weights, strict=True)}
        until_s = now_s + for_s
        while now_s < until_s:
            seen.append((now_s, grants.settled(wanted, parents, now_s)))
            # who was told less may draw what it had before for so long
            may = [
                max(told[name][1] for t_s, told in seen if t_s == now_s or now_s - t_s < SETTLE_S)
                for name in "abcd"
            ]
            assert sum(may) <= 1000.0 + 4 * 0.5
            now_s += 1.0
    now_s += SETTLE_S
    grants.settled(wanted, parents, now_s)
    assert grants.settled(wanted, parents, now_s + SETTLE_S) == wanted
    assert not grants._fell_s  # it is over: parents that are gone stay nowhere
