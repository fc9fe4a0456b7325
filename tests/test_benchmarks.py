"""The baselines of the benchmarks answer as their descriptions say, and the random problems are reproducible."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.hundredths import solve_hundredths
from benchmarks.instances import (
    FOUR_GPUS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    random_instance,
    roofline_throughput_rps,
)
from benchmarks.run import main
from benchmarks.slice_model import solve_slice_model
from solver.domain.gpu_mix import GpuMixInstance, GpuOffer, ModelDemand, RequestBucket, Variant
from telemetry.sources.gpu_mix_file import gpu_mix_instance_to_json

# The example that Mélange's own repository ships: its README gives 6.70 for one slice per bucket.
TOY = GpuMixInstance(
    name="toy",
    gpu_types=(GpuOffer(name="A10G", price_usd_per_h=1.01), GpuOffer(name="A100-80GB", price_usd_per_h=3.67)),
    models=(
        ModelDemand(
            name="toy",
            variants=(
                Variant(gpu_type="A10G", gpus_per_replica=1),
                Variant(gpu_type="A100-80GB", gpus_per_replica=1),
            ),
            buckets=tuple(RequestBucket(rate_rps=rate_rps) for rate_rps in (6.0, 3.0, 15.0, 6.0)),
            throughput_rps=((2.0, 20.0), (1.0, 20.0), (5.0, 40.0), (2.0, 20.0)),
        ),
    ),
)


def with_first_throughput(*row: float) -> GpuMixInstance:
    model = TOY.models[0]
    changed = ModelDemand(
        name=model.name,
        variants=model.variants,
        buckets=model.buckets,
        throughput_rps=(row, *model.throughput_rps[1:]),
    )
    return GpuMixInstance(name="changed", gpu_types=TOY.gpu_types, models=(changed,))


@pytest.mark.parametrize(("slice_factor", "cost_usd_per_h"), [(1, 6.70), (2, 5.69), (4, 5.69)])
def test_the_slice_model_answers_its_own_example(slice_factor: int, cost_usd_per_h: float) -> None:
    answer = solve_slice_model(TOY, slice_factor=slice_factor)
    assert answer.cost_usd_per_h == pytest.approx(cost_usd_per_h)
    assert answer.proved
    assert answer.gpus is not None
    assert answer.seconds > 0


def test_rounding_hundredths_up_costs_more() -> None:
    answer = solve_hundredths(TOY)
    assert answer.cost_usd_per_h == pytest.approx(7.34)
    assert answer.gpus == (0, 2)


def test_a_size_that_a_type_cannot_serve_stays_off_it() -> None:
    answer = solve_slice_model(with_first_throughput(0.0, 20.0))
    assert answer.gpus is not None
    assert answer.gpus[1] >= 1


def test_nothing_found_is_no_cost() -> None:
    answer = solve_slice_model(with_first_throughput(0.0, 0.0))
    assert (answer.cost_usd_per_h, answer.gpus, answer.proved) == (None, None, False)


def test_limits_are_refused_rather_than_ignored() -> None:
    limited = GpuMixInstance(
        name="limited",
        gpu_types=(GpuOffer(name="A10G", price_usd_per_h=1.01, available=0), TOY.gpu_types[1]),
        models=TOY.models,
    )
    with pytest.raises(ValueError, match="limited asks for more than the slice model can say"):
        solve_slice_model(limited)


@pytest.mark.parametrize(("large", "n_buckets", "n_types"), [(False, 60, 4), (True, 400, 20)])
def test_random_problems_are_reproducible_and_servable(*, large: bool, n_buckets: int, n_types: int) -> None:
    instance = random_instance(3, large=large)
    assert instance == random_instance(3, large=large)
    assert instance != random_instance(4, large=large)
    model = instance.models[0]
    assert (len(model.buckets), len(instance.gpu_types)) == (n_buckets, n_types)
    assert all(
        any(row)
        for bucket, row in zip(model.buckets, model.throughput_rps, strict=True)
        if bucket.rate_rps > 0
    )
    assert 1 <= model.rate_rps <= 10_000
    assert random_instance(3, rate_rps=32.0).models[0].rate_rps == pytest.approx(32.0)


def test_longer_requests_never_raise_the_throughput() -> None:
    for gpu in FOUR_GPUS:
        table = [[roofline_throughput_rps(gpu, i, o) for o in OUTPUT_TOKENS] for i in INPUT_TOKENS]
        for rates_rps in (*table, *map(list, zip(*table, strict=True))):
            assert all(shorter >= longer for shorter, longer in pairwise(rates_rps))
        assert table[0][0] > 0


@pytest.mark.parametrize(("cost_usd_per_h", "met"), [(4.68, True), (4.67, False)])
def test_the_table_is_printed_and_kept(
    *,
    cost_usd_per_h: float,
    met: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    problems = tmp_path / "gputype" / "instances"
    problems.mkdir(parents=True)
    expected = {"status": "optimal", "cost_per_hour": cost_usd_per_h}
    document = {**gpu_mix_instance_to_json(TOY), "expected": expected}
    (problems / "toy.json").write_text(json.dumps(document), encoding="utf-8")
    monkeypatch.setenv("BENCH_JSON", str(tmp_path / "bench.json"))
    main(["--only", "reference", "--data", str(tmp_path)])
    rows = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert set(rows[0]) == {"name", "value", "unit", "peer_value", "ratio", "target", "met"}
    assert [row["met"] for row in rows] == [met, met, None]
    printed = capfd.readouterr()
    assert "reference: wrong of 1 public problems" in printed.out
    assert printed.err.count("toy") == 1
