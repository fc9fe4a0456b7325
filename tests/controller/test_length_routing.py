"""Routing by length in scenarios: who takes which prompts, and what makes no sense."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.simulation import simulate_scenario
from simulator.record import RequestStatus
from simulator.scenario import Scenario
from simulator.scenario_file import ScenarioDocument, scenario_of
from solver.domain.errors import InputError

MODEL = {"name": "m", "model": "meta-llama/Llama-3.1-8B"}
OTHER = {"name": "o", "model": "meta-llama/Llama-3.1-8B"}
H100 = {"gpu_type": "H100-SXM", "gpus_per_instance": 1, "count": 2}


def scenario(folder: Path, *pools: dict[str, Any], **fields: Any) -> Scenario:
    values: dict[str, Any] = {
        "schema": "scenario/1",
        "models": [MODEL],
        "pools": [{**H100, **pool} for pool in pools],
        "trace": {"file": "t.csv"},
        **fields,
    }
    return scenario_of(ScenarioDocument(values=values, source="s.yaml", folder=folder))


def trace_file(folder: Path, *, models: bool = False) -> None:
    named = ",model" if models else ""
    rows = [
        f"{k * 0.1},{100 + 41 * (k % 60)},{2 + k % 30}{(',m', ',o')[k % 2] if models else ''}"
        for k in range(240)
    ]
    (folder / "t.csv").write_text("\n".join([f"arrival_s,prompt_tokens,output_tokens{named}", *rows]) + "\n")


def test_a_prompt_goes_where_the_least_bound_holds_it(tmp_path: Path) -> None:
    trace_file(tmp_path)
    done = simulate_scenario(
        scenario(
            tmp_path,
            {"name": "long"},
            {"name": "short", "longest_prompt_tokens": 500},
            {"name": "middle", "longest_prompt_tokens": 1330},
        )
    )
    prompts = done.requests.prompt_tokens
    pool = done.record.pool_of_instance[done.record.prefill_instance]
    assert np.all(done.record.status == RequestStatus.COMPLETED)
    assert np.array_equal(pool, np.where(prompts <= 500, 1, np.where(prompts <= 1330, 2, 0)))
    assert 1330 in prompts.tolist()
    assert sum(figures.output_tokens for figures in done.figures.pools) == done.requests.output_tokens.sum()


def test_split_pools_keep_to_their_length(tmp_path: Path) -> None:
    trace_file(tmp_path)
    done = simulate_scenario(
        scenario(
            tmp_path,
            {"name": "p1", "role": "prefill", "longest_prompt_tokens": 900},
            {"name": "d1", "role": "decode", "longest_prompt_tokens": 900},
            {"name": "p2", "role": "prefill"},
            {"name": "d2", "role": "decode"},
        )
    )
    short = done.requests.prompt_tokens <= 900
    pools = done.record.pool_of_instance
    assert np.array_equal(pools[done.record.prefill_instance], np.where(short, 0, 2))
    assert np.array_equal(pools[done.record.decode_instance], np.where(short, 1, 3))


def test_models_have_bounds_of_their_own(tmp_path: Path) -> None:
    trace_file(tmp_path, models=True)
    done = simulate_scenario(
        scenario(
            tmp_path,
            {"name": "o", "model": "o"},
            {"name": "m1", "model": "m", "longest_prompt_tokens": 700},
            {"name": "m2", "model": "m"},
            models=[MODEL, OTHER],
        )
    )
    pool = done.record.pool_of_instance[done.record.prefill_instance]
    prompts, model = done.requests.prompt_tokens, done.model_of_request
    assert np.array_equal(pool, np.where(model == 1, 0, np.where(prompts <= 700, 1, 2)))


def test_one_bound_for_all_changes_nothing(tmp_path: Path) -> None:
    trace_file(tmp_path)
    plain = simulate_scenario(scenario(tmp_path, {"name": "a"}))
    bounded = simulate_scenario(scenario(tmp_path, {"name": "a"}, {"name": "b", "longest_prompt_tokens": 50}))
    assert np.array_equal(plain.record.e2e_s, bounded.record.e2e_s)


@pytest.mark.parametrize(
    ("pools", "fields", "said"),
    [
        (({"name": "a", "longest_prompt_tokens": 900},), {}, "longest prompts"),
        (({"name": "a"}, {"name": "b", "longest_prompt_tokens": 0}), {}, "longest_prompt_tokens"),
        (
            (
                {"name": "a"},
                {"name": "p", "role": "prefill", "longest_prompt_tokens": 900},
                {"name": "d", "role": "decode", "longest_prompt_tokens": 800},
            ),
            {},
            "only",
        ),
        (
            ({"name": "a"}, {"name": "b", "longest_prompt_tokens": 900}),
            {"planner": {"interval_s": 60, "start_s": 30}},
            "planner",
        ),
        (
            ({"name": "a"}, {"name": "b", "longest_prompt_tokens": 900}),
            {"step_model": {"kind": "splitwise-compat"}},
            "splitwise-compat",
        ),
    ],
)
def test_bounds_that_make_no_sense_are_told_with_their_field(
    pools: tuple[dict[str, Any], ...], fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        scenario(tmp_path, *pools, **fields)
    assert "longest_prompt_tokens" in str(caught.value)
