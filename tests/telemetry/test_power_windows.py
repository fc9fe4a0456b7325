"""Windows of power in SQLite and in a real PostgreSQL: rolled up by covered time, once each, read back, let go of."""

import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from solver.domain.errors import InputError
from telemetry.store.buffered import BufferedStore
from telemetry.store.power_table import (
    PowerTable,
    gaps_of,
    longest_part,
    table_of,
    without_ragged_ends,
    write_table,
)
from telemetry.store.power_windows import (
    DOMAIN,
    SERVER_BYTES,
    PowerWindow,
    PowerWindows,
    joined,
    rolled_up,
)
from telemetry.store.store import POWER_LEVELS, Level, Store, open_store
from tests.telemetry.history_entries import emptied, eventually, sample
from tests.telemetry.postgres import Postgres

LEVELS_S = [level.window_s for level in POWER_LEVELS]
DAY_S = 86_400


def part(
    first_s: float,
    watts: float = 100.0,
    *,
    covered_s: float = 10.0,
    node: str = "a",
    domain: str = "row",
    samples: int = 5,
    theta: float | None = None,
    capped_s: float | None = None,
) -> PowerWindow:
    """Return what was measured from a time on, within one window of 10 s."""
    return PowerWindow(
        domain=domain,
        node=node,
        start_s=int(first_s // 10) * 10,
        window_s=10,
        energy_j=watts * covered_s,
        covered_s=covered_s,
        max_w=watts + 1.0,
        samples=samples,
        first_s=first_s,
        last_s=first_s + covered_s,
        theta_max=theta,
        capped_s=capped_s,
    )


def together(*windows: PowerWindow) -> PowerWindows:
    return PowerWindows(windows=windows)


def means(store: Store, window_s: int = 10, node: str = "a") -> list[tuple[int, float, float, int]]:
    found = store.power_windows("row", window_s=window_s, node=node)
    return [(each.start_s, each.mean_w, each.covered_s, each.samples) for each in found]


@st.composite
def recordings(draw: st.DrawFn) -> list[PowerWindow]:
    """Draw parts of windows of two nodes and their domain that share no second; whole numbers add up exactly."""
    found = []
    for node in draw(st.sampled_from([["a"], ["a", "b", DOMAIN]])):
        for start_s in draw(st.lists(st.integers(0, 900), unique=True, max_size=12).map(sorted)):
            cuts = sorted({0, 10, *draw(st.lists(st.integers(1, 9), max_size=3))})
            for begin, end in itertools.pairwise(cuts):
                if draw(st.booleans()):
                    found.append(
                        part(
                            10.0 * start_s + begin,
                            float(draw(st.integers(0, 8000))),
                            covered_s=float(end - begin),
                            node=node,
                            samples=draw(st.integers(0, 5)),
                            theta=draw(st.none() | st.floats(0, 2)),
                            capped_s=draw(st.none() | st.just(float(end - begin))),
                        )
                    )
    return found


@given(parts=recordings(), order=st.randoms(use_true_random=False))
def test_windows_of_windows_are_windows_of_samples(parts: list[PowerWindow], order: Random) -> None:
    tens = rolled_up(parts, 10)
    minutes = rolled_up(tens, 60)
    hours = rolled_up(minutes, 3600)
    assert rolled_up(parts, 60) == minutes
    assert rolled_up(parts, 3600) == rolled_up(tens, 3600) == hours
    mixed = list(parts)
    order.shuffle(mixed)
    assert rolled_up(mixed, 3600) == hours
    for window in (*tens, *minutes, *hours):
        own = [
            each
            for each in parts
            if each.node == window.node and 0 <= each.start_s - window.start_s < window.window_s
        ]
        assert window.covered_s == sum(each.covered_s for each in own) <= window.window_s
        assert math.isclose(
            window.mean_w, sum(e.mean_w * e.covered_s for e in own) / window.covered_s, abs_tol=1e-9
        )
        assert window.max_w == max(each.max_w for each in own)
        assert window.samples == sum(each.samples for each in own)
        assert (window.first_s, window.last_s) == (
            min(e.first_s for e in own),
            max(e.last_s for e in own),
        )
        thetas = [each.theta_max for each in own if each.theta_max is not None]
        assert window.theta_max == max(thetas, default=None)
        capped = [each.capped_s for each in own if each.capped_s is not None]
        assert window.capped_s == (sum(capped) if capped else None)


def test_what_was_not_measured_lowers_no_mean() -> None:
    (window,) = rolled_up([part(0.0, 300.0, covered_s=2.0), part(50.0, 100.0)], 60)
    assert (window.mean_w, window.covered_s, window.max_w) == (1600.0 / 12.0, 12.0, 301.0)
    assert rolled_up([], 60) == ()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_database_rolls_up_as_the_function_does(store: Store, data: st.DataObject) -> None:
    with store.engine.begin() as connection:
        connection.execute(text("DELETE FROM power"))
    parts = sorted(data.draw(recordings()), key=lambda each: each.first_s)
    at = 0
    while at < len(parts):  # in batches, some of which are tried again
        count = data.draw(st.integers(1, 8))
        batch = [together(each) for each in parts[at : at + count]]
        store.write(batch)
        if data.draw(st.booleans()):
            store.write(batch)
        at += count
    for window_s in (*LEVELS_S, 30, 120):
        assert tuple(store.power_windows("row", window_s=window_s)) == rolled_up(parts, window_s)


def test_a_second_is_there_once(store: Store) -> None:
    store.write([together(part(0.0, 100.0, covered_s=4.0))])
    store.write([together(part(0.0, 100.0, covered_s=4.0))])  # again
    store.write([together(part(2.0, 900.0, covered_s=8.0))])  # of a leader that did not know that it is none
    store.write([together(part(4.0, 200.0, covered_s=6.0))])  # of the next one
    for window_s in LEVELS_S:
        assert means(store, window_s) == [(0, 160.0, 10.0, 10)]


def test_parts_may_come_late(store: Store) -> None:
    store.write([together(part(3610.0, 200.0))])
    store.write([together(part(0.0, 100.0)), together(part(3600.0, 100.0))])
    assert means(store, 3600) == [(0, 100.0, 10.0, 5), (3600, 150.0, 20.0, 10)]
    assert means(store, 10) == [(0, 100.0, 10.0, 5), (3600, 100.0, 10.0, 5), (3610, 200.0, 10.0, 5)]


def test_domains_and_nodes_are_kept_apart(store: Store) -> None:
    store.write(
        [
            together(part(0.0, node="a"), part(0.0, node=DOMAIN, theta=0.5, capped_s=3.0)),
            together(part(0.0, 7.0, node="a", domain="other")),
        ]
    )
    assert store.power_domains() == ("other", "row")
    assert store.power_nodes("row") == ("a",)
    (whole,) = store.power_windows("row", window_s=60, node=DOMAIN)
    assert (whole.theta_max, whole.capped_s) == (0.5, 3.0)
    assert [each.node for each in store.power_windows("row", window_s=10)] == [DOMAIN, "a"]
    assert not list(store.power_windows("row", window_s=10, since_s=10.0))
    assert not list(store.power_windows("row", window_s=10, until_s=0.0))
    with pytest.raises(InputError, match="a multiple of one of 10, 60, 3600"):
        store.power_windows("row", window_s=15)


@pytest.mark.parametrize(
    "bad",
    [
        {"energy_j": -1.0},
        {"energy_j": math.nan},
        {"max_w": math.inf},
        {"covered_s": 0.0},
        {"covered_s": 10.1},
        {"covered_s": math.nan},
        {"theta_max": math.nan},
        {"window_s": 60},
        {"start_s": 3},
        {"node": "n" * 513},
    ],
)
def test_what_would_spoil_a_sum_is_refused(store: Store, bad: dict[str, float]) -> None:
    odd = replace(part(0.0), **bad)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        store.write([together(odd)])
    buffered = BufferedStore(store, clock=lambda: 0.0)
    buffered.start()
    for entry in (together(part(10.0)), together(odd), together(part(20.0))):
        buffered.put(entry)
    assert buffered.close(30)
    assert (buffered.refused, len(means(store))) == (1, 2)


def test_what_is_old_goes_by_level(empty: Store) -> None:
    store = replace(
        empty,
        power_levels=(
            Level(window_s=10, kept_s=100),
            Level(window_s=60, kept_s=1000),
            Level(window_s=3600, kept_s=DAY_S),
        ),
    )
    store.migrate()
    store.write([together(part(10.0 * k)) for k in range(720)])
    store.prune(7200.0)
    assert [len(means(store, window_s)) for window_s in LEVELS_S] == [10, 16, 2]
    store.prune(7200.0 + 2 * DAY_S)
    assert [len(means(store, window_s)) for window_s in LEVELS_S] == [0, 0, 0]


@pytest.mark.parametrize("levels", [(), (Level(window_s=10, kept_s=9), Level(window_s=15, kept_s=9))])
def test_levels_fit_into_each_other(levels: tuple[Level, ...]) -> None:
    with pytest.raises(InputError, match="level"):
        open_store("sqlite://", power_levels=levels)


def test_an_outage_costs_nothing_within_the_limit_and_the_oldest_power_beyond(postgres: Postgres) -> None:
    store = emptied(open_store(postgres.url))
    buffered = BufferedStore(
        store, clock=lambda: 0.0, first_wait_s=0.05, most_wait_s=0.2, most_power_bytes=300 * SERVER_BYTES
    )
    buffered.start()
    buffered.put(together(part(0.0)))
    assert eventually(lambda: not buffered.waiting)
    postgres.stop("immediate")
    try:
        for k in range(1, 301):
            buffered.put(together(part(10.0 * k)))
        assert (buffered.waiting, buffered.dropped) == (300, 0)
        for k in range(301, 311):
            buffered.put(together(part(10.0 * k)))
        buffered.put(sample(5.0))
        assert (buffered.waiting, buffered.dropped) == (301, 10)
    finally:
        postgres.start()
    assert eventually(lambda: not buffered.waiting)
    assert buffered.close(30)
    assert [row[0] for row in means(store)] == [0, *range(110, 3110, 10)]
    assert sum(row[3] for row in means(store, 3600)) == 5 * 301
    store.close()


def test_power_makes_room_before_traffic(store: Store) -> None:
    buffered = BufferedStore(store, most=3)
    for entry in (sample(1.0), together(part(0.0)), sample(2.0), sample(3.0)):
        buffered.put(entry)
    assert (buffered.waiting, buffered.dropped) == (3, 1)
    buffered.start()
    assert buffered.close(30)
    assert not means(store)


# -- tables -----------------------------------------------------------------------------------------------------------


def tabled(windows: Iterator[PowerWindow] | list[PowerWindow], **more: tuple[str, ...]) -> PowerTable:
    table = table_of(windows, domain="row", window_s=10, **more)
    assert table is not None
    return table


def test_a_table_has_a_column_per_server_and_no_value_for_what_is_missing() -> None:
    windows = [
        part(100.0, 5.0, node="b"),
        part(100.0, 6.0, node="a"),
        part(100.0, 11.0, node=DOMAIN, capped_s=4.0),
        part(110.0, 7.0, node="b", covered_s=5.0),
        part(110.0, 8.0, node="a", covered_s=4.9),
        part(130.0, 9.0, node="b"),
        part(130.0, 9.5, node="a"),
    ]
    table = tabled(windows)
    assert (table.servers, table.start_s, table.windows) == (("a", "b"), 100, 4)
    np.testing.assert_array_equal(table.server_w, [[6, 5], [math.nan, 7], [math.nan] * 2, [9.5, 9]])
    assert table.capped_s.tolist() == [4.0, 0.0, 0.0, 0.0]
    (gap,) = gaps_of(table)
    assert (gap.server, gap.first, gap.end) == ("a", 1, 3)
    assert tabled(windows, leave_out=("a",)).servers == ("b",)
    assert table_of(windows[2:3], domain="row", window_s=10) is None


def test_ragged_ends_are_left_out_and_gaps_are_not() -> None:
    table = tabled([part(3.0, covered_s=3.0), part(10.0), part(20.0), part(40.0), part(50.0, covered_s=1.0)])
    inner = without_ragged_ends(table)
    assert (inner.start_s, inner.windows) == (10, 4)
    assert len(gaps_of(inner)) == 1
    assert without_ragged_ends(tabled([part(3.0, covered_s=3.0)])).windows == 0


@given(known=st.lists(st.booleans(), min_size=1, max_size=30))
def test_the_longest_part_has_no_gap_and_none_is_longer(known: list[bool]) -> None:
    watts = np.where(np.array(known)[:, None], 1.0, math.nan)
    table = PowerTable(
        domain="row",
        window_s=10,
        start_s=0,
        servers=("a",),
        server_w=watts,
        capped_s=np.arange(float(len(known))),
    )
    lengths = [len(run) for run in "".join("x" if one else " " for one in known).split()]
    found = longest_part(table)
    assert (0 if found is None else found.windows) == max(lengths, default=0)
    if found is not None:
        assert not gaps_of(found)
        assert found.capped_s[0] * 10 == found.start_s


def test_a_table_is_written_as_it_is_read() -> None:
    out = io.StringIO()
    write_table(tabled([part(100.0, 5.25), part(110.0, 0.0)]), out.write)
    assert out.getvalue() == "t_s,a\n100,5.2\n110,0.0\n"


def test_joining_keeps_the_first_ones_place() -> None:
    assert joined(part(0.0), part(60.0)).start_s == 0
