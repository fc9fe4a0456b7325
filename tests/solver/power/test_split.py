"""A budget split between pools: the published optimum, brute force on small draws, and the integer program."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.power import REFERENCE_SERVER
from solver.domain.power_tree import PowerDomain, PowerLevel, PowerTree
from solver.power.split import (
    ClockLevel,
    Pool,
    phase_levels,
    single_budget,
    split_budget,
    split_by_program,
    split_with_one_clock,
)

PREFILL = phase_levels(REFERENCE_SERVER, tdp_ratio=1.02, clock_share=0.8)
DECODE = phase_levels(REFERENCE_SERVER, tdp_ratio=0.68, clock_share=0.2)
FULL_W = 16 * PREFILL[-1].server_w + 36 * DECODE[-1].server_w
FEW = (1410, 1305, 1275, 1200, 1110, 1005, 900, 795)


def reference_pools(clocks: tuple[int, ...] | None = None) -> list[Pool]:
    def only(levels: tuple[ClockLevel, ...]) -> tuple[ClockLevel, ...]:
        return tuple(level for level in levels if clocks is None or level.mhz in clocks)

    return [
        Pool(name="prefill", place="budget", servers=16, levels=only(PREFILL)),
        Pool(name="decode", place="budget", servers=36, levels=only(DECODE)),
    ]


def test_full_draw_of_the_reference_pools() -> None:
    assert pytest.approx(260_840.0) == FULL_W


@pytest.mark.parametrize(
    ("share", "one", "one_mhz", "best", "mhz"),
    [
        (0.95, 0.9395, 1305, 0.9743, (1365, 1260)),
        (0.90, 0.8681, 1185, 0.9483, (1320, 1110)),
        (0.85, 0.8036, 1080, 0.9130, (1260, 960)),
        (0.80, 0.7370, 975, 0.8710, (1200, 810)),
    ],
)
def test_the_published_optimum(
    share: float, one: float, one_mhz: int, best: float, mhz: tuple[int, int]
) -> None:
    pools, tree = reference_pools(), single_budget(share * FULL_W)
    split = split_budget(pools, tree)
    assert split.speed_ratio == pytest.approx(best, abs=5e-5)
    assert split.mhz == mhz
    assert sum(split.pool_w) <= share * FULL_W
    assert split.next_speed_ratio is not None
    assert split.next_speed_ratio > split.speed_ratio
    assert split.exceeded[0][1] > 0
    same = split_with_one_clock(pools, tree)
    assert same.speed_ratio == pytest.approx(one, abs=5e-5)
    assert same.mhz == (one_mhz, one_mhz)
    assert split_by_program(pools, tree).speed_ratio == pytest.approx(split.speed_ratio, abs=1e-9)


@pytest.mark.parametrize(
    ("share", "one", "best"),
    [(0.95, 0.9395, 0.9662), (0.9, 0.8222, 0.9395), (0.85, 0.7562, 0.8982), (0.8, 0.6881, 0.8660)],
)
def test_the_published_optimum_with_eight_clocks(share: float, one: float, best: float) -> None:
    pools, tree = reference_pools(FEW), single_budget(share * FULL_W)
    assert split_budget(pools, tree).speed_ratio == pytest.approx(best, abs=5e-5)
    assert split_with_one_clock(pools, tree).speed_ratio == pytest.approx(one, abs=5e-5)


def test_nothing_is_taken_where_there_is_enough() -> None:
    split = split_budget(reference_pools(), single_budget(FULL_W))
    assert split.speed_ratio == 1.0
    assert split.mhz == (1410, 1410)
    assert split.next_speed_ratio is None
    assert split.exceeded == ()


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Pool], PowerTree]:
    """Draw up to four pools below a site with two rows; draws need not rise with speed."""
    pools = []
    for index in range(draw(st.integers(1, 4))):
        levels = tuple(
            ClockLevel(
                mhz=100 * k,
                server_w=float(draw(st.integers(1, 20))),
                speed_ratio=draw(st.integers(1, 10)) / 10,
            )
            for k in range(draw(st.integers(1, 4)))
        )
        pools.append(
            Pool(
                name=f"p{index}",
                place=draw(st.sampled_from(["site", "a", "b"])),
                servers=draw(st.integers(1, 3)),
                levels=levels,
            )
        )
    limits = [float(draw(st.integers(1, 120))) for _ in range(3)]
    tree = PowerTree(
        domains=(
            PowerDomain(name="site", level=PowerLevel.SITE, budget_w=limits[0]),
            PowerDomain(name="a", level=PowerLevel.ROW, parent="site", budget_w=limits[1]),
            PowerDomain(name="b", level=PowerLevel.ROW, parent="site", budget_w=limits[2]),
        )
    )
    return pools, tree


def brute_force(pools: list[Pool], tree: PowerTree) -> float | None:
    best = None
    limit = {domain.name: domain.budget_w for domain in tree.domains}
    for chosen in itertools.product(*(pool.levels for pool in pools)):
        drawn = dict.fromkeys(limit, 0.0)
        for pool, level in zip(pools, chosen, strict=True):
            for name in {pool.place, "site"}:
                drawn[name] += pool.servers * level.server_w
        if all(drawn[name] <= limit[name] for name in limit):
            speed = min(level.speed_ratio for level in chosen)
            best = speed if best is None else max(best, speed)
    return best


@given(problems())
@settings(max_examples=150)
def test_brute_force_and_the_integer_program_agree(drawn: tuple[list[Pool], PowerTree]) -> None:
    pools, tree = drawn
    best = brute_force(pools, tree)
    if best is None:
        with pytest.raises(InputError, match="below what its pools draw"):
            split_budget(pools, tree)
        with pytest.raises(InputError, match="below what its pools draw"):
            split_by_program(pools, tree)
        return
    split = split_budget(pools, tree)
    assert split.speed_ratio == best
    assert split_by_program(pools, tree).speed_ratio == pytest.approx(best, abs=1e-6)
    for pool, mhz, watts in zip(pools, split.mhz, split.pool_w, strict=True):
        assert any(level.mhz == mhz and pool.servers * level.server_w == watts for level in pool.levels)


def test_sixty_servers_with_a_clock_each() -> None:
    pools = [
        Pool(name=f"s{k}", place=f"rack{k // 10}", servers=1, levels=PREFILL if k % 3 == 0 else DECODE)
        for k in range(60)
    ]
    racks = tuple(
        PowerDomain(name=f"rack{k}", level=PowerLevel.RACK, parent="row", budget_w=46_000.0 + 800 * k)
        for k in range(6)
    )
    tree = PowerTree(domains=(PowerDomain(name="row", level=PowerLevel.ROW, budget_w=280_000.0), *racks))
    split = split_budget(pools, tree)
    assert 0.8 < split.speed_ratio < 1.0
    assert split.exceeded[0][0] == "rack0"


def test_the_backends_agree() -> None:
    pools, tree = reference_pools(FEW), single_budget(0.85 * FULL_W)
    assert split_by_program(pools, tree, backend="cbc").speed_ratio == pytest.approx(
        split_by_program(pools, tree).speed_ratio, abs=1e-6
    )


def test_pools_that_are_none() -> None:
    with pytest.raises(InputError, match="0 servers with"):
        Pool(name="p", place="budget", servers=0, levels=DECODE)
    with pytest.raises(InputError, match="p: 1 servers with 0 clocks"):
        Pool(name="p", place="budget", servers=1, levels=())
    with pytest.raises(InputError, match="p: levels: -5 W"):
        Pool(
            name="p",
            place="budget",
            servers=1,
            levels=(ClockLevel(mhz=1, server_w=-5.0, speed_ratio=1.0),),
        )
    with pytest.raises(InputError, match="no pools"):
        split_budget([], single_budget(1.0))
    with pytest.raises(InputError, match="unknown domain"):
        split_budget([Pool(name="p", place="x", servers=1, levels=DECODE)], single_budget(1.0))
    with pytest.raises(InputError, match="budget: budget_w: 1000 W is"):
        split_budget(reference_pools(), single_budget(1000.0))
    with pytest.raises(InputError, match="budget: budget_w: 1000 W is"):
        split_with_one_clock(reference_pools(), single_budget(1000.0))
    other = Pool(
        name="p", place="budget", servers=1, levels=(ClockLevel(mhz=1, server_w=1.0, speed_ratio=1.0),)
    )
    with pytest.raises(InputError, match="share no clock"):
        split_with_one_clock([*reference_pools(), other], single_budget(1e6))
