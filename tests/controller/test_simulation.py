"""Scenarios resolved and run, without the command around them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.cluster_fleet import catalogues_for, resolve
from controller.simulation import SimulatedCluster, TraceInUse, read_requests, simulate_scenario
from simulator.blis import simulate_blis
from simulator.scenario import Scenario
from simulator.scenario_file import ScenarioDocument, scenario_of
from solver.domain.errors import InputError
from solver.performance.protocol import ReplicaKind
from solver.performance.roofline import Roofline
from solver.performance.trained_physics import TrainedPhysics
from telemetry.catalogue.read import read_gpus, read_models
from telemetry.sources.traces.read import read_trace

SMALL = {"name": "small", "model": "meta-llama/Llama-3.1-8B"}
LARGE = {"name": "large", "model": "meta-llama/Llama-3.1-70B"}
H100 = {"gpu_type": "H100-SXM", "gpus_per_instance": 4, "count": 2}


def scenario(folder: Path, **fields: Any) -> Scenario:
    values: dict[str, Any] = {
        "schema": "scenario/1",
        "models": [SMALL],
        "pools": [{"name": "p", **H100}],
        "trace": {"file": "t.csv"},
        **fields,
    }
    return scenario_of(ScenarioDocument(values=values, source="s.yaml", folder=folder))


def trace_file(folder: Path, text: str) -> None:
    (folder / "t.csv").write_text(text)


def steady(folder: Path, *, total: int = 200, gap_s: float = 0.25) -> None:
    rows = [f"{k * gap_s},{200 + 37 * (k % 50)},{1 + 11 * (k % 20)}" for k in range(total)]
    trace_file(folder, "\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")


def read(chosen: Scenario) -> TraceInUse:
    return read_requests(chosen, catalogues_for(chosen))


def run(chosen: Scenario, **given: Any) -> SimulatedCluster:
    return simulate_scenario(chosen, **given)


TWO = {
    "models": [SMALL, LARGE],
    "pools": [{"name": "a", "model": "small", **H100}, {"name": "b", "model": "large", **H100}],
}
ASKED = "arrival_s,prompt_tokens,output_tokens,model,class\n0,9,9,large,low\n1,9,9,meta-llama/Meta-Llama-3.1-8B,high\n"


def test_models_of_a_trace_go_by_name_or_by_alias(tmp_path: Path) -> None:
    trace_file(tmp_path, ASKED)
    assert read(scenario(tmp_path, **TWO)).model_of_request.tolist() == [1, 0]


def test_one_model_serves_whatever_the_trace_asks_for(tmp_path: Path) -> None:
    trace_file(tmp_path, ASKED.replace("large", "GPT-4"))
    assert read(scenario(tmp_path)).model_of_request.tolist() == [0, 0]


def test_a_model_that_no_pool_serves_is_told(tmp_path: Path) -> None:
    trace_file(tmp_path, ASKED.replace("large", "GPT-4"))
    with pytest.raises(InputError, match=r"models: t\.csv asks for model 'GPT-4'; only small, large"):
        read(scenario(tmp_path, **TWO))


def test_classes_become_priorities(tmp_path: Path) -> None:
    trace_file(tmp_path, ASKED)
    ordered = {"order": "priority", "priorities": {"high": 0, "low": 5}}
    priorities = read(scenario(tmp_path, **TWO, scheduler=ordered)).priority_of_request
    assert priorities is not None
    assert priorities.tolist() == [5, 0]
    assert read(scenario(tmp_path, **TWO)).priority_of_request is None
    with pytest.raises(InputError, match="has a class 'low'; classes high"):
        read(scenario(tmp_path, **TWO, scheduler={"order": "priority", "priorities": {"high": 0}}))
    with pytest.raises(InputError, match="has a class 'high'; classes whole numbers"):
        read(scenario(tmp_path, **TWO, scheduler={"order": "priority"}))


def test_cuts_count_in_the_trace_s_own_seconds_and_the_clock_runs_faster_after_them(tmp_path: Path) -> None:
    steady(tmp_path)
    choice = {"file": "t.csv", "scale": 2, "warm_up_s": 10, "duration_s": 20}
    used = read(scenario(tmp_path, trace=choice))
    assert len(used.requests) == 80
    assert used.requests.arrival_s[-1] == pytest.approx(19.75 / 2)
    assert used.warm_up_s == 5.0
    faster = used.faster(2.0)
    assert faster.requests.arrival_s[-1] == pytest.approx(19.75 / 4)
    assert faster.warm_up_s == 2.5
    assert np.array_equal(faster.requests.prompt_tokens, used.requests.prompt_tokens)
    trace_file(tmp_path, "arrival_s,prompt_tokens,output_tokens\n5,1,1\n")
    with pytest.raises(InputError, match=r"no request of t\.csv arrives in the first 0\.1 s"):
        read(scenario(tmp_path, trace={"file": "t.csv", "duration_s": 0.1}))


def test_a_table_wins_where_there_is_one_and_the_answer_says_so(tmp_path: Path) -> None:
    steady(tmp_path)
    mixed = {
        "models": [{"name": "bloom", "model": "bigscience/bloom"}],
        "pools": [
            {"name": "measured", "gpu_type": "H100-SXM", "gpus_per_instance": 8, "count": 1},
            {"name": "modelled", "gpu_type": "H200-SXM", "gpus_per_instance": 8, "count": 1},
        ],
    }
    simulated = run(scenario(tmp_path, **mixed))
    assert [pool.step_model for pool in simulated.pools] == ["table-kv", "physics"]
    assert simulated.step_model == "table-kv, physics"
    assert all(pool.provenance and pool.known_error for pool in simulated.pools)
    forced = run(scenario(tmp_path, **mixed, step_model={"kind": "physics"}))
    assert forced.step_model == "physics"


def test_prices_are_the_catalogue_s_and_may_be_unknown(tmp_path: Path) -> None:
    steady(tmp_path)
    simulated = run(scenario(tmp_path))
    price = read_gpus()["H100-SXM"].price_usd_per_h
    assert price is not None
    hours = simulated.figures.horizon_s / 3600.0
    assert simulated.figures.cost_usd == pytest.approx(2 * 4 * price * hours)


def test_a_cap_slows_prompts_and_draws_less(tmp_path: Path) -> None:
    steady(tmp_path)
    free = run(scenario(tmp_path)).figures
    pools = [{"name": "p", **H100, "power_cap_w_per_gpu": 300}]
    capped = run(scenario(tmp_path, pools=pools)).figures
    later = run(scenario(tmp_path, events=[{"t_s": 25, "kind": "cap", "pool": "p", "value": 300}])).figures
    assert free.ttft_s is not None
    assert capped.ttft_s is not None
    assert later.ttft_s is not None
    assert free.ttft_s.mean < later.ttft_s.mean < capped.ttft_s.mean
    assert free.power is not None
    assert capped.power is not None
    assert capped.power.max_w < 2 * 4 * 300 + 1e-6 < free.power.max_w
    with pytest.raises(
        InputError, match=r"pools\[0\]\.power_cap_w_per_gpu: H100-SXM takes no power limit of 5 W"
    ):
        run(scenario(tmp_path, pools=[{**pools[0], "power_cap_w_per_gpu": 5}]))
    with pytest.raises(InputError, match=r"events\[0\]\.value: H100-SXM takes no power limit of 5 W"):
        run(scenario(tmp_path, events=[{"t_s": 25, "kind": "cap", "pool": "p", "value": 5}]))


def test_the_peer_s_replay_is_run_by_its_own_engine(tmp_path: Path) -> None:
    steady(tmp_path)
    chosen = scenario(
        tmp_path,
        step_model={"kind": "blis-compat"},
        scheduler={"max_batch": 64},
        router={"kind": "round-robin"},
    )
    gpus, models = read_gpus(), read_models()
    kind = ReplicaKind(
        model="meta-llama/Llama-3.1-8B", gpu_type="H100-SXM", gpus_per_replica=4, precision="bf16"
    )
    model = TrainedPhysics(roofline=Roofline.of(kind, gpus["H100-SXM"], models[kind.model]))
    expected = simulate_blis(
        model, read_trace(tmp_path / "t.csv").requests, instances=2, max_batch=64, max_batch_tokens=2048
    )
    record = run(chosen).record
    assert np.array_equal(record.ttft_s, expected.ttft_s)
    assert np.array_equal(record.e2e_s, expected.e2e_s)


def test_a_request_alone_on_the_reference_instance_is_its_own_yardstick(tmp_path: Path) -> None:
    trace_file(tmp_path, "arrival_s,prompt_tokens,output_tokens\n0,5000,100\n100,30,7\n")
    chosen = scenario(
        tmp_path,
        slo="ttft_p50=1.001x,tbt_p50=1.001x,e2e_p99=1.001x",
        reference_instance={"gpu_type": "H100-SXM", "gpus": 4},
    )
    slo = run(chosen).figures.slo
    assert slo.met is True
    assert [check.value for check in slo.checks] == pytest.approx([1.0, 1.0, 1.0], rel=1e-9)


def test_an_overloaded_run_can_stop_early_and_says_so(tmp_path: Path) -> None:
    steady(tmp_path, total=6000, gap_s=0.001)
    chosen = scenario(
        tmp_path,
        pools=[{"name": "p", "gpu_type": "L40S", "gpus_per_instance": 1, "count": 1}],
        slo="e2e_p50=1000",
    )
    figures = run(chosen, stop_when_overloaded=True).figures
    assert figures.stopped_early
    assert figures.saturation == "overloaded"
    assert figures.requests.incomplete > 0
    assert figures.slo.met is False
    whole = run(chosen).figures
    assert whole.saturation == "overloaded"
    assert whole.requests.incomplete == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"pools": [{"name": "p", **H100}]},
            r"pools\[0\]\.gpus_per_instance: .* knows no 4 GPUs per instance; 8",
        ),
        ({"router": {"kind": "random"}}, r"router\.kind: .* knows no router random; one of jsq, mixed-pool"),
        ({"kv": {"prefix_cache_blocks": 4}}, r"kv\.prefix_cache_blocks: .* knows no prefix caches; 0"),
        (
            {"events": [{"t_s": 1, "kind": "instance-down", "pool": "p", "index": 0}]},
            r"events: .* knows no events; no events",
        ),
        ({"scheduler": {"order": "priority"}}, r"scheduler\.order: .* knows no priorities; order fcfs"),
        (
            {"pools": [{"name": "p", "gpu_type": "L40S", "gpus_per_instance": 8, "count": 1}]},
            r"pools\[0\]\.gpu_type: .* knows no L40S; one of A100-80-SXM, H100-SXM",
        ),
        (
            {
                "pools": [
                    {
                        "name": "p",
                        "gpu_type": "A100-80-SXM",
                        "gpus_per_instance": 8,
                        "count": 1,
                        "power_cap_w_per_gpu": 200,
                    }
                ]
            },
            r"pools\[0\]\.power_cap_w_per_gpu: .* knows no capped A100-80-SXM; one of H100-SXM",
        ),
    ],
)
def test_what_the_splitting_peer_has_no_word_for_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {
        "models": [{"name": "bloom", "model": "bigscience/bloom"}],
        "pools": [{"name": "p", "gpu_type": "H100-SXM", "gpus_per_instance": 8, "count": 1}],
        "step_model": {"kind": "splitwise-compat"},
        **changes,
    }
    chosen = scenario(tmp_path, **fields)
    with pytest.raises(InputError, match=said):
        resolve(chosen, catalogues_for(chosen), longest_prompt_tokens=10)


GOLDEN = Path(__file__).resolve().parents[3] / "shared/data/sim/golden"
MACHINES = {
    "dgx-a100": ("A100-80-SXM", None),
    "dgx-h100": ("H100-SXM", None),
    "dgx-h100-pcap": ("H100-SXM", 490),
}
ROLES = {"prompt": "prefill", "token": "decode"}


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="no recorded runs here")
@pytest.mark.parametrize("run_id", ["AA45-25_conv70", "BH5_azconv_x1", "HHcap25-21_conv70"])
def test_a_scenario_reaches_the_peer_s_percentiles_and_slowdowns(run_id: str, tmp_path: Path) -> None:
    recorded = json.loads((GOLDEN / f"{run_id}.json").read_text())
    pools = []
    for p, group in enumerate(recorded["machine_order"]):
        gpu_type, cap_w = MACHINES[group["machine"]]
        role = ROLES.get(group.get("role", ""), "both")
        pools.append(
            {
                "name": f"p{p}",
                "gpu_type": gpu_type,
                "gpus_per_instance": 8,
                "count": group["count"],
                "role": role,
                "power_cap_w_per_gpu": cap_w,
            }
        )
    percentiles = (50, 90, 99)
    targets = [f"{metric}_p{p}=9x" for metric in ("ttft", "tbt", "e2e") for p in percentiles]
    chosen = scenario(
        tmp_path,
        models=[{"name": "bloom", "model": "bigscience/bloom"}],
        pools=pools,
        step_model={"kind": "splitwise-compat"},
        router={"kind": "mixed-pool" if recorded["scheduler"] == "mixed_pool" else "jsq"},
        slo=",".join(targets),
        reference_instance={"gpu_type": "A100-80-SXM", "gpus": 8},
    )
    figures = run(chosen, trace_file=GOLDEN / recorded["trace"]).figures
    for metric, expected in recorded["metrics"].items():
        found = getattr(figures, metric)
        for name, value in expected.items():
            assert getattr(found, name) == pytest.approx(value, rel=1e-9), (metric, name)
    assert figures.end_time_s == pytest.approx(recorded["end_time_s"], rel=1e-12)
    slowdowns = [
        value for metric in ("ttft", "tbt", "e2e") for value in recorded["slowdown_p50_p90_p99"][metric]
    ]
    assert [check.value for check in figures.slo.checks] == pytest.approx(slowdowns, abs=6e-4)
