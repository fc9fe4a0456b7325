"""Exchanges of replicas: what is listed keeps the limits, is better by the cuts, and cuts never promise too little."""

import time
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fleet_instances import random_fleet
from solver.domain.deadline import Deadline
from solver.domain.fleet import FleetGoal
from solver.phases.cuts import carried
from solver.phases.exchange import TIMES, exchanges, promised_factor
from solver.phases.prepare import serve_all
from solver.phases.projected import FleetSearch


def searched(seed: int) -> FleetSearch:
    """Return a search that has an answer, but did not go on."""
    instance = random_fleet(seed, goal=FleetGoal.RATE, types=3, buckets=6, rate_rps=40.0)
    search = FleetSearch(
        instance, tuple(serve_all(instance)), Deadline.after(60.0, time.monotonic), 0.5, "highs"
    )
    search.run()
    return search


@settings(max_examples=12)
@given(st.integers(0, 500))
def test_exchanges_keep_the_limits_and_promise_no_less_than_they_carry(seed: int) -> None:
    search = searched(seed)
    if not search.best:
        return
    counts = [np.array(row, dtype=float) for row in search.best]
    listed = exchanges(search.holdings, search.models, search.cuts, counts, -search.best_objective)
    for trial, position in listed:
        change = trial[position] - counts[position]
        assert change.sum() + 1 in TIMES
        assert change.min() >= -1
        assert search.holdings.fits(trial)
        assert promised_factor(search.cuts, trial, position) > -search.best_objective
    for trial, position in listed[:5]:
        factor = carried(search.models[position], trial[position], "highs").factor
        assert min(factor, search.most) <= promised_factor(search.cuts, trial, position) * (1 + 1e-6)


def test_a_wrong_replica_is_exchanged_for_a_better_one() -> None:
    search = searched(3)
    best = [np.array(row, dtype=float) for row in search.best]
    model = search.models[0]
    worse = None
    for c in np.flatnonzero(best[0] > 0):
        for other in model.usable:
            trial = [row.copy() for row in best]
            trial[0][c] -= 1
            trial[0][other] += 1
            if other == c or not search.holdings.fits(trial):
                continue
            if 0 < carried(model, trial[0], "highs").factor < -search.best_objective * 0.999:
                worse = trial
    assert worse is not None
    fresh = replace(search, best=(), best_objective=np.inf, gap_ratio=0.0)
    fresh.holdings, fresh.step = search.holdings, search.step
    found = fresh.judge(worse)
    fresh.offer(worse, found)
    before = fresh.best_objective
    fresh.exchange(worse, found)
    assert fresh.best_objective < before
