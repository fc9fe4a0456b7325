"""The compiled engine of the phase-splitting peer's rules against hand calculation, laws and a second implementation.

Agreement with the peer's own recorded runs is tested where the command that checks it is tested.
"""

import csv
import hashlib
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.splitwise_plain import run_plain
from simulator.record import RequestStatus, RunRecord
from simulator.splitwise import run as engine
from simulator.splitwise.machines import (
    MACHINES,
    MODELS,
    STEP_KNOTS_TOKENS,
    SplitwiseFleet,
    SplitwiseGroup,
    SplitwiseRole,
    SplitwiseScheduler,
)
from simulator.splitwise.run import LATE_RATIO, alone_s, run_splitwise, simulate_splitwise
from solver.domain.errors import InputError
from solver.domain.trace import Requests

KNOTS = Path(__file__).resolve().parents[3] / "shared/data/sim/perf/splitwise_knots_tp8_full_precision.csv"
BLOOM = MODELS["bloom-176b"]
A100, H100, CAPPED = (MACHINES[name] for name in ("dgx-a100", "dgx-h100", "dgx-h100-pcap"))
PROMPT, TOKEN, MIXED = SplitwiseRole.PROMPT, SplitwiseRole.TOKEN, SplitwiseRole.MIXED


@pytest.fixture(autouse=True)
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with little room, so that every test also makes the kernel ask for more."""
    monkeypatch.setattr(engine, "_FIRST_SLOTS", 2)
    monkeypatch.setattr(engine, "_SPARE_BLOCKS", 8)


def pooled(machines: int = 1) -> SplitwiseFleet:
    return SplitwiseFleet(
        model=BLOOM,
        groups=(SplitwiseGroup(machine=H100, count=machines),),
        scheduler=SplitwiseScheduler.TOKEN_JSQ,
    )


def split(prompt: int = 1, token: int = 1) -> SplitwiseFleet:
    return SplitwiseFleet(
        model=BLOOM,
        groups=(
            SplitwiseGroup(machine=H100, count=prompt, role=PROMPT),
            SplitwiseGroup(machine=A100, count=token, role=TOKEN),
        ),
        scheduler=SplitwiseScheduler.MIXED_POOL,
    )


def asked(*rows: tuple[float, int, int]) -> Requests:
    arrival_s, prompt_tokens, output_tokens = zip(*rows, strict=True)
    return Requests(
        arrival_s=np.array(arrival_s),
        prompt_tokens=np.array(prompt_tokens),
        output_tokens=np.array(output_tokens),
    )


def traffic(requests: int, *, rate_rps: float, seed: int = 5, largest_prompt: int = 4000) -> Requests:
    randomness = np.random.default_rng(seed)
    return Requests(
        arrival_s=np.cumsum(randomness.exponential(1 / rate_rps, requests)),
        prompt_tokens=randomness.integers(1, largest_prompt, requests),
        output_tokens=randomness.integers(1, 400, requests),
    )


def knot(times: tuple[float, ...], tokens: int) -> float:
    return times[STEP_KNOTS_TOKENS.index(tokens)]


H100_TIMES, A100_TIMES = H100.step_times["bloom-176b"], A100.step_times["bloom-176b"]


def one_decode(times: tuple[float, ...], decodes: int = 1) -> float:
    """Seconds of an iteration of so many decodes: left of the first knot the first slope goes on."""
    return (times[1] - times[0]) / 128 * (decodes - 128) + times[0]


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_one_request_alone() -> None:
    record = simulate_splitwise(pooled(), asked((2.0, 512, 11)))
    prompt_s, decode_s = knot(H100_TIMES.prompt_s, 512), one_decode(H100_TIMES.token_s)
    assert record.ttft_s[0] == pytest.approx(prompt_s, rel=1e-12)
    assert record.e2e_s[0] == pytest.approx(prompt_s + 10 * decode_s, rel=1e-12)
    assert record.queue_s[0] == 0.0
    assert (record.iterations, record.segments, record.transfers) == (11, 2, 0)
    joules = 8 * (700 * prompt_s + 380 * 10 * decode_s)
    assert record.energy_j[0] == pytest.approx(joules, rel=1e-12)
    assert record.idle_j[0] == pytest.approx(8 * 75 * 2.0, rel=1e-12)
    assert record.end_time_s == record.horizon_s == pytest.approx(2.0 + record.e2e_s[0])
    assert record.prompt_tokens_done.tolist() == [512.0]
    assert record.output_tokens_done.tolist() == [11.0]


def test_an_arrival_ends_the_decodes_at_an_iteration_boundary_and_runs_beside_them() -> None:
    prompt_s, decode_s = knot(H100_TIMES.prompt_s, 512), one_decode(H100_TIMES.token_s)
    arrival_s = prompt_s + 2.5 * decode_s  # in the third decode iteration of the first request
    record = simulate_splitwise(pooled(), asked((0.0, 512, 100), (arrival_s, 511, 2)))
    slope = (knot(H100_TIMES.prompt_s, 512) - knot(H100_TIMES.prompt_s, 256)) / 256
    mixed_s = 1.1 * (slope * (512 - 256) + knot(H100_TIMES.prompt_s, 256))  # 511 tokens and one decode
    assert record.queue_s[1] == pytest.approx(0.5 * decode_s)
    assert record.ttft_s[1] == pytest.approx(0.5 * decode_s + mixed_s)
    pair_s = one_decode(H100_TIMES.token_s, 2)
    assert record.e2e_s[1] == pytest.approx(0.5 * decode_s + mixed_s + pair_s)
    assert record.e2e_s[0] == pytest.approx(prompt_s + 3 * decode_s + mixed_s + pair_s + 94 * decode_s)
    shared_j = 8 * 700 * mixed_s / 512
    assert record.energy_j[1] == pytest.approx(511 * shared_j + 8 * 380 * pair_s / 2)


def test_a_prompt_that_fills_the_batch_puts_a_decode_out_of_it() -> None:
    ours = run_splitwise(pooled(), asked((0.0, 128, 50), (0.1, 2048, 2)))
    assert ours.record.preemptions.tolist() == [1, 0]
    assert ours.rules.preemptions == 1


def test_the_kv_of_the_prompt_moves_to_the_decode_machine() -> None:
    record = simulate_splitwise(split(), asked((1.0, 1024, 3)))
    prompt_s = knot(H100_TIMES.prompt_s, 1024)
    move_s = BLOOM.kv_bytes_per_token * 1024 / (200 * 2**30)
    decode_s = one_decode(A100_TIMES.token_s)
    assert record.ttft_s[0] == pytest.approx(prompt_s, rel=1e-12)
    assert record.e2e_s[0] == pytest.approx(prompt_s + move_s + 2 * decode_s, rel=1e-12)
    assert (record.transfers, record.transfer_bytes) == (1, 1024 * BLOOM.kv_bytes_per_token)
    assert (record.prefill_instance.tolist(), record.decode_instance.tolist()) == ([0], [1])
    assert record.occupancy_request_s == pytest.approx([prompt_s + move_s, 2 * decode_s])


def test_a_transfer_without_room_is_tried_again_every_second() -> None:
    """Room for two prompts and one answer at the decode machine: the second waits for the first to end."""
    kv = BLOOM.kv_bytes_per_token
    small = replace(A100, memory_bytes=BLOOM.weights_bytes + kv * 150)
    large = replace(H100, memory_bytes=BLOOM.weights_bytes + kv * 10_000)
    fleet = replace(
        split(),
        groups=(
            SplitwiseGroup(machine=large, count=1, role=PROMPT),
            SplitwiseGroup(machine=small, count=1, role=TOKEN),
        ),
    )
    ours = run_splitwise(fleet, asked((0.0, 100, 40), (0.0001, 100, 40)))
    assert ours.record.completed().all()
    assert ours.rules.transfer_retries + ours.rules.moves_to_mixed > 0


def test_machines_change_over_and_go_home() -> None:
    rules = run_splitwise(split(1, 1), traffic(300, rate_rps=15)).rules
    assert rules.moves_to_mixed > 0
    assert 0 < rules.moves_back <= rules.moves_to_mixed


def test_one_output_token_ends_with_the_prompt() -> None:
    for fleet in (pooled(), split()):
        record = simulate_splitwise(fleet, asked((0.0, 512, 1), (10.0, 512, 2)))
        assert record.e2e_s[0] == record.ttft_s[0]
        assert record.completed().all()
        assert record.output_tokens_done.sum() == 3


def test_a_request_too_large_for_every_machine_is_rejected_with_its_reason() -> None:
    room = (H100.memory_bytes - BLOOM.weights_bytes) // BLOOM.kv_bytes_per_token
    record = simulate_splitwise(pooled(), asked((0.0, room, 10), (1.0, room - 10, 10)))
    assert record.status.tolist() == [RequestStatus.REJECTED, RequestStatus.COMPLETED]
    assert record.reject_reason.tolist() == [1, 0]
    assert math.isnan(record.ttft_s[0])


def test_requests_that_sleep_for_ever_are_incomplete() -> None:
    """All memory is held by finished prompts whose decodes do not fit: nothing ever wakes the machine."""
    kv = BLOOM.kv_bytes_per_token
    machine = replace(H100, memory_bytes=BLOOM.weights_bytes + kv * 1000)
    fleet = replace(pooled(), groups=(SplitwiseGroup(machine=machine, count=1),))
    record = simulate_splitwise(fleet, asked((0.0, 450, 300), (0.001, 450, 300)))
    assert record.status.tolist() == [RequestStatus.INCOMPLETE] * 2
    assert not np.isnan(record.ttft_s).any()
    assert np.isnan(record.e2e_s).all()


def test_equal_arrivals_and_arrivals_at_the_end_of_an_iteration() -> None:
    prompt_s = knot(H100_TIMES.prompt_s, 512)
    decode_s = one_decode(H100_TIMES.token_s)
    ends = [prompt_s + decode_s * steps for steps in range(1, 9)]
    requests = asked((0.0, 512, 10), *((end_s, 100, 3) for end_s in ends), *((2.0, 100, 3) for _ in range(5)))
    assert simulate_splitwise(pooled(), requests).completed().all()


# -- against the second implementation --------------------------------------------------------------------------------


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[SplitwiseFleet, Requests]:
    """Small fleets with limits so narrow that every rule acts."""
    kv = BLOOM.kv_bytes_per_token
    room = kv * draw(st.integers(250, 1200))
    machines = [replace(m, memory_bytes=BLOOM.weights_bytes + room) for m in (A100, H100, CAPPED)]
    scheduler = draw(st.sampled_from(SplitwiseScheduler))
    roles = [PROMPT, TOKEN] if scheduler is SplitwiseScheduler.MIXED_POOL else [MIXED]
    if scheduler is SplitwiseScheduler.MIXED_POOL and draw(st.booleans()):
        roles.append(MIXED)
    fleet = SplitwiseFleet(
        model=BLOOM,
        groups=tuple(
            SplitwiseGroup(machine=draw(st.sampled_from(machines)), count=draw(st.integers(1, 3)), role=role)
            for role in draw(st.permutations(roles))
        ),
        scheduler=scheduler,
        max_batch=draw(st.integers(1, 8)),
        max_batch_tokens=draw(st.integers(1, 200)),
        max_preemptions=draw(st.integers(1, 4)),
        prompt_limit_tokens=draw(st.integers(10, 400)),
        link_bytes_per_s=draw(st.sampled_from((2.0**30, 200 * 2.0**30))),
    )
    randomness = np.random.default_rng(draw(st.integers(0, 2**32)))
    number = draw(st.integers(1, 150))
    largest_gap_ms = draw(st.integers(1, 120))
    return fleet, Requests(
        arrival_s=np.cumsum(randomness.integers(0, largest_gap_ms, number))
        / 1000,  # some at the same instant
        prompt_tokens=randomness.integers(1, draw(st.integers(2, 260)), number),
        output_tokens=randomness.integers(1, draw(st.integers(2, 260)), number),
    )


def check_against_plain(fleet: SplitwiseFleet, requests: Requests) -> None:
    ours = run_splitwise(fleet, requests)
    plain, theirs = run_plain(fleet, requests)
    record = ours.record

    def column(name: str) -> list[float]:
        return [math.nan if getattr(r, name) is None else float(getattr(r, name)) for r in theirs]

    for found, name in (
        (record.ttft_s, "ttft"),
        (record.e2e_s, "e2e"),
        (record.queue_s, "scheduled"),
        (record.preemptions.astype(float), "preempted"),
    ):
        np.testing.assert_array_equal(found, column(name), err_msg=name)
    for index, which in ((record.prefill_instance, "prompt_at"), (record.decode_instance, "token_at")):
        places = [getattr(request, which) for request in theirs]
        assert index.tolist() == [-1 if place is None else place.number for place in places]
    for name in ("moves_to_mixed", "moves_back", "preempted_4", "memory_stops", "transfer_retries"):
        assert getattr(ours.rules, name) == plain.counters[name], name
    assert ours.rules.source_wakeups == plain.counters["source_wakeups"]
    assert ours.rules.preemptions == plain.counters["preemptions"]
    assert record.end_time_s == plain.end
    np.testing.assert_array_equal(record.busy_s, [machine.busy for machine in plain.machines])
    assert record.energy_j_of_instance - record.idle_j == pytest.approx(
        [machine.busy_joules for machine in plain.machines], rel=1e-9, abs=1e-6
    )
    check_laws(record, requests)


@settings(max_examples=150)
@given(scenario=scenarios())
def test_every_bit_agrees_with_the_second_implementation(scenario: tuple[SplitwiseFleet, Requests]) -> None:
    check_against_plain(*scenario)


@pytest.mark.parametrize("fleet", [pooled(1), split(2, 1)], ids=["pooled", "split"])
def test_long_queues_agree_with_the_second_implementation(fleet: SplitwiseFleet) -> None:
    """More pending tasks on a machine than one block of its list holds, several times over."""
    check_against_plain(fleet, traffic(1500, rate_rps=400))


def test_the_real_limits_agree_with_the_second_implementation() -> None:
    check_against_plain(split(3, 2), traffic(800, rate_rps=25, largest_prompt=9000))


# -- laws -------------------------------------------------------------------------------------------------------------


def check_laws(record: RunRecord, requests: Requests) -> None:
    """Nothing is lost: requests, tokens, joules, presence."""
    completed = record.completed()
    prompt_over = ~np.isnan(record.ttft_s)
    assert np.array_equal(completed, ~np.isnan(record.e2e_s))
    assert np.all(record.queue_s[prompt_over] < record.ttft_s[prompt_over])
    assert np.all(record.ttft_s[completed] <= record.e2e_s[completed])
    busy_j = record.energy_j_of_instance - record.idle_j
    assert record.energy_j.sum() == pytest.approx(busy_j.sum(), rel=1e-9, abs=1e-6)
    assert record.prompt_tokens_done.sum() == requests.prompt_tokens[prompt_over].sum()
    incomplete = (record.status == RequestStatus.INCOMPLETE) & (requests.arrival_s <= record.horizon_s)
    if not incomplete.any():
        assert record.output_tokens_done.sum() == requests.output_tokens[completed].sum()
    in_system_s = np.where(incomplete, record.horizon_s - requests.arrival_s, record.e2e_s)
    assert record.occupancy_request_s.sum() == pytest.approx(np.nansum(in_system_s), rel=1e-9, abs=1e-9)
    series = record.series
    energy_j = series.power_w.sum() * series.bin_s
    assert energy_j == pytest.approx(record.energy_j_of_instance.sum(), rel=1e-9, abs=1e-6)
    assert series.busy.sum() * series.bin_s == pytest.approx(record.busy_s.sum(), rel=1e-9, abs=1e-9)
    present_s = (series.running + series.waiting).sum() * series.bin_s
    assert present_s == pytest.approx(record.occupancy_request_s.sum(), rel=1e-6, abs=1e-6)
    assert series.up.sum() * series.bin_s == pytest.approx(record.up_s.sum(), rel=1e-9, abs=1e-9)


def test_laws_on_a_day_of_bursts() -> None:
    requests = traffic(5000, rate_rps=30)
    record = simulate_splitwise(split(12, 8), requests)
    assert record.completed().all()
    check_laws(record, requests)
    idle_w = 8 * np.where(record.pool_of_instance == 0, 75.0, 63.0)
    assert record.idle_j == pytest.approx(idle_w * (record.up_s - record.busy_s), rel=1e-9)
    assert len(record.backlog_at_arrivals) == 256


# -- compiled and uncompiled ------------------------------------------------------------------------------------------


def digest(record: RunRecord) -> str:
    parts = (
        record.queue_s,
        record.ttft_s,
        record.e2e_s,
        record.energy_j,
        record.preemptions,
        record.energy_j_of_instance,
        record.idle_j,
        record.occupancy_request_s,
        record.series.power_w,
        record.series.running,
        record.series.waiting,
        record.backlog_at_arrivals,
    )
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def digests() -> list[str]:
    requests = traffic(250, rate_rps=25)
    return [digest(simulate_splitwise(fleet, requests)) for fleet in (pooled(2), split(2, 2))]


def test_the_uncompiled_source_gives_the_same_bytes() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from tests.simulator.test_splitwise import digests; print(*digests())"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == digests()


# -- stopping early ---------------------------------------------------------------------------------------------------


def test_a_hopeless_run_stops_early_and_its_requests_were_late() -> None:
    requests = traffic(2000, rate_rps=40)
    fleet = pooled(1)
    stopped = simulate_splitwise(fleet, requests, stop_when_overloaded=True)
    assert stopped.stopped_early
    assert stopped.horizon_s < requests.arrival_s[-1]
    check_laws(stopped, requests)
    whole = simulate_splitwise(fleet, requests)
    assert not whole.stopped_early
    late = whole.e2e_s > LATE_RATIO * alone_s(H100, "bloom-176b", requests)
    assert late.mean() > 0.1
    assert np.array_equal(stopped.ttft_s[:10], whole.ttft_s[:10])


def test_a_run_that_keeps_up_does_not_stop() -> None:
    requests = traffic(600, rate_rps=5)
    runs = [simulate_splitwise(split(3, 3), requests, stop_when_overloaded=stop) for stop in (False, True)]
    assert not runs[1].stopped_early
    assert digest(runs[0]) == digest(runs[1])


def test_alone_is_what_a_run_alone_takes() -> None:
    requests = asked((0.0, 777, 20))
    record = simulate_splitwise(pooled(), requests)
    assert record.e2e_s == pytest.approx(alone_s(H100, "bloom-176b", requests), rel=1e-12)


# -- values and bad input ---------------------------------------------------------------------------------------------


def test_the_paper_s_designs_cost_what_the_paper_says() -> None:
    assert split(45, 25).machines == 70
    baseline = replace(pooled(), groups=(SplitwiseGroup(machine=A100, count=70),))
    assert baseline.cost_usd_per_h == pytest.approx(8 * 154.7)
    assert baseline.power_units == pytest.approx(1736)


@pytest.mark.skipif(not KNOTS.exists(), reason="the measured step times are not at hand")
def test_the_step_times_are_the_measured_medians() -> None:
    with KNOTS.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 81
    for row in rows:
        machine = next(machine for machine in MACHINES.values() if machine.gpu == row["gpu"])
        times = machine.step_times[row["model"]]
        values = times.prompt_s if row["table"] == "prompt" else times.token_s
        assert knot(values, int(row["x_tokens"])) == float(row["seconds"]), row
    for name in MODELS:
        assert CAPPED.step_times[name].token_s == H100.step_times[name].token_s


@pytest.mark.parametrize(
    ("fleet", "requests", "word"),
    [
        (pooled(0), asked((0.0, 1, 1)), "0 machines"),
        (pooled(-1), asked((0.0, 1, 1)), "-1 machines"),
        (replace(pooled(), model=replace(BLOOM, name="other")), asked((0.0, 1, 1)), "no step times of other"),
        (replace(pooled(), model=replace(BLOOM, weights_bytes=10**12)), asked((0.0, 1, 1)), "does not fit"),
        (replace(pooled(), max_batch=0), asked((0.0, 1, 1)), "max_batch of 0"),
        (replace(pooled(), link_bytes_per_s=0.0), asked((0.0, 1, 1)), "link of 0"),
        (replace(pooled(), link_bytes_per_s=math.nan), asked((0.0, 1, 1)), "link of nan"),
        (pooled(), asked((0.0, 1, 1)).take(slice(0, 0)), "no request"),
        (pooled(), asked((1.0, 1, 1), (0.0, 1, 1)), "back in time"),
        (pooled(), asked((math.nan, 1, 1)), "not finite"),
        (pooled(), asked((0.0, 0, 1)), "prompt_tokens"),
        (pooled(), asked((0.0, 1, -5)), "output_tokens"),
    ],
)
def test_bad_input_is_one_line(fleet: SplitwiseFleet, requests: Requests, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        simulate_splitwise(fleet, requests)
    assert "\n" not in str(caught.value)
