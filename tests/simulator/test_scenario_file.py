"""Scenario files: what they mean, and one clear line for everything that can be wrong in one."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from simulator.fleet import EventKind, Overlap, QueueOrder, Role, RouterKind
from simulator.scenario import Scenario, StepModelKind
from simulator.scenario_file import ScenarioDocument, read_scenario, read_scenario_document, scenario_of
from solver.domain.errors import InputError

SPLIT = """\
schema: scenario/1
name: chat-split
models:
  - {name: bloom, model: bigscience/bloom, precision: bf16}
pools:
  - {name: prompt, gpu_type: H100-SXM, gpus_per_instance: 8, count: 25, role: prefill, model: bloom}
  - name: token
    gpu_type: H100-SXM
    gpus_per_instance: 8
    count: 15
    role: decode
    model: bloom
    power_cap_w_per_gpu: 500
step_model: {kind: table-kv, table: null}
scheduler: {max_batch: 256, max_batch_tokens: 2048, chunked_prefill: true, max_preemptions: 4, order: fcfs}
router: {kind: mixed-pool, prompt_limit_tokens: 8192}
kv: {link_gib_per_s: 200, contention: true, overlap: layerwise, prefix_cache_blocks: 0}
slo: ttft_p50=2x,e2e_p99=5
reference_instance: {gpu_type: A100-80-SXM, gpus: 8}
power: {budget_w: null, policy: none}
planner: null
events:
  - {t_s: 3, kind: instance-down, pool: token, index: 14}
trace: {file: t.csv, scale: 2, warm_up_s: 10, duration_s: 100}
"""
SMALLEST: dict[str, Any] = {
    "schema": "scenario/1",
    "models": [{"name": "m", "model": "bigscience/bloom"}],
    "pools": [{"name": "p", "gpu_type": "H100-SXM", "gpus_per_instance": 8, "count": 1}],
}


def written(folder: Path, text: str, name: str = "s.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def of(values: dict[str, Any]) -> Scenario:
    return scenario_of(ScenarioDocument(values=values, source="s.yaml", folder=Path()))


def test_the_contract_s_scenario_is_read(tmp_path: Path) -> None:
    scenario = read_scenario(written(tmp_path, SPLIT))
    assert scenario.name == "chat-split"
    assert [pool.role for pool in scenario.pools] == [Role.PREFILL, Role.DECODE]
    assert scenario.pools[1].power_cap_w_per_gpu == 500.0
    assert scenario.step_model.kind is StepModelKind.TABLE_KV
    assert scenario.scheduler.max_batch == 256
    assert scenario.router.kind is RouterKind.MIXED_POOL
    assert scenario.links.bytes_per_s == 200 * 2.0**30
    assert scenario.links.overlap is Overlap.LAYERWISE
    assert str(scenario.slo) == "ttft_p50=2x,e2e_p99=5"
    assert scenario.events[0].kind is EventKind.DOWN
    assert scenario.trace.file == str(tmp_path / "t.csv")
    assert (scenario.trace.scale, scenario.trace.warm_up_s, scenario.trace.duration_s) == (2.0, 10.0, 100.0)


def test_what_is_left_out_has_the_defaults_of_the_documentation() -> None:
    scenario = of(SMALLEST)
    assert scenario.name == "s"
    assert scenario.pools[0].role is Role.BOTH
    assert scenario.pools[0].model == "m"
    assert scenario.step_model.kind is None
    assert (scenario.scheduler.max_batch, scenario.scheduler.max_batch_tokens) == (512, 2048)
    assert scenario.scheduler.order is QueueOrder.FCFS
    assert scenario.router.kind is RouterKind.JSQ
    assert scenario.slo.targets == ()
    assert scenario.trace.file is None


def test_mixed_is_another_word_for_both() -> None:
    values = copy.deepcopy(SMALLEST)
    values["pools"][0]["role"] = "mixed"
    assert of(values).pools[0].role is Role.BOTH


def test_json_says_the_same_as_yaml(tmp_path: Path) -> None:
    from_yaml = read_scenario(written(tmp_path, SPLIT))
    text = json.dumps(yaml.safe_load(SPLIT), indent="\t")
    from_json = read_scenario(written(tmp_path, text, "s.json"))
    assert from_json == Scenario(
        **{name: getattr(from_yaml, name) for name in Scenario.__dataclass_fields__ if name != "source"},
        source=from_json.source,
    )
    assert from_json.lines["pools[1].count"] > from_json.lines["pools[0].count"]


def test_numbers_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    text = SPLIT.replace("scale: 2,", "scale: 5e-1,")
    assert read_scenario(written(tmp_path, text)).trace.scale == 0.5


def test_a_table_beside_the_scenario_is_found_and_a_name_stays_a_name(tmp_path: Path) -> None:
    written(tmp_path, "", "own.csv")
    for table, expected in (("own.csv", str(tmp_path / "own.csv")), ("splitwise_tp8", "splitwise_tp8")):
        scenario = read_scenario(written(tmp_path, SPLIT.replace("table: null", f"table: {table}")))
        assert scenario.step_model.table == expected


POOL_2 = "s.yaml:10: pools[1].count: "
WRONG = [
    # old, new, what is said
    ("count: 25", "count: 0", "s.yaml:6: pools[0].count: got 0; a whole number from 1 to 32767"),
    ("count: 15", "count: -3", f"{POOL_2}got -3; a whole number from 1 to 32767"),
    ("count: 15", "count: 2.5", f"{POOL_2}got 2.5; a whole number from 1 to 32767"),
    ("count: 15", "count: 99999", f"{POOL_2}got 99999; a whole number from 1 to 32767"),
    ("count: 15", "count: true", f"{POOL_2}got true; a whole number from 1 to 32767"),
    ("count: 15", "count: many", f"{POOL_2}got 'many'; a whole number from 1 to 32767"),
    ("    count: 15\n", "", "s.yaml:7: pools[1].count: missing; a whole number from 1 to 32767"),
    ("count: 25", "cuont: 25", "s.yaml:6: pools[0].cuont: unknown field 'cuont'; did you mean count?"),
    ("router:", "routers:", "s.yaml:16: routers: unknown field 'routers'; did you mean router?"),
    (
        "prompt_limit_tokens",
        "zzz",
        "s.yaml:16: router.zzz: unknown field 'zzz'; one of kind, prompt_limit_tokens",
    ),
    (
        "link_gib_per_s: 200",
        "link_gib_per_s: 0",
        "s.yaml:17: kv.link_gib_per_s: got 0; a bandwidth from 1e-6 to 1e9 GiB/s",
    ),
    (
        "link_gib_per_s: 200",
        "link_gib_per_s: .nan",
        "s.yaml:17: kv.link_gib_per_s: got nan; a bandwidth from 1e-6 to 1e9 GiB/s",
    ),
    (
        "link_gib_per_s: 200",
        "link_gib_per_s: .inf",
        "s.yaml:17: kv.link_gib_per_s: got inf; a bandwidth from 1e-6 to 1e9 GiB/s",
    ),
    ("overlap: layerwise", "overlap: some", "s.yaml:17: kv.overlap: got 'some'; none or layerwise"),
    (
        "role: decode",
        "role: prefill",
        (
            "s.yaml:6: pools[0].role: a prefill pool of 'bloom' without a decode pool; a decode pool of the same model,"
            " or role both"
        ),
    ),
    (
        "role: prefill",
        "role: both",
        (
            "s.yaml:11: pools[1].role: a decode pool of 'bloom' without a prefill pool; a prefill pool of the same"
            " model, or role both"
        ),
    ),
    ("role: decode", "role: token", "s.yaml:11: pools[1].role: got 'token'; prefill, decode or both"),
    (
        "model: bloom\n",
        "model: blom\n",
        "s.yaml:12: pools[1].model: unknown model 'blom'; did you mean bloom?",
    ),
    ("name: token", "name: prompt", "s.yaml:7: pools[1].name: 'prompt' stands twice; a name of its own"),
    (
        "name: token",
        "name: a b",
        "s.yaml:7: pools[1].name: got 'a b'; a name without spaces, commas and quotes",
    ),
    (
        "kind: table-kv",
        "kind: oracle",
        "s.yaml:14: step_model.kind: got 'oracle'; one of splitwise-compat, table-kv, physics, blis-compat, fitted",
    ),
    (
        "kind: table-kv, table: null",
        "kind: physics, table: x",
        "s.yaml:14: step_model.table: physics reads no table; kind table-kv, or no table",
    ),
    (
        "kind: table-kv",
        "kind: fitted",
        "s.yaml:14: step_model.fit: missing, and kind is fitted; a file with fitted coefficients",
    ),
    (
        "max_batch: 256",
        "max_batch: 2048",
        (
            "s.yaml:15: scheduler.max_batch_tokens: 2048 tokens leave a full batch of 2048 no room for prompts; more"
            " tokens than max_batch, or chunked_prefill: false"
        ),
    ),
    (
        "order: fcfs",
        "order: fcfs, priorities: {a: 1}",
        "s.yaml:15: scheduler.priorities: priorities without order priority; order: priority",
    ),
    (
        "order: fcfs",
        "order: priority, priorities: {a: -1}",
        "s.yaml:15: scheduler.priorities.a: got -1; a whole number of at least 0 for each class, 0 served first",
    ),
    (
        "slo: ttft_p50=2x",
        "slo: tfft_p50=2x",
        "s.yaml:18: slo: unknown SLO metric 'tfft'; one of ttft, tbt, e2e",
    ),
    (
        "reference_instance: {gpu_type: A100-80-SXM, gpus: 8}",
        "reference_instance: null",
        (
            "s.yaml:19: reference_instance: missing, and the SLO ttft_p50=2x,e2e_p99=5 is relative; a table as"
            " {gpu_type: A100-80-SXM, gpus: 8}"
        ),
    ),
    (
        "budget_w: null",
        "budget_w: -5",
        "s.yaml:20: power.budget_w: got -5; watts above 0 (at most 1e12), or null for no budget",
    ),
    (
        "policy: none",
        "policy: polca",
        "s.yaml:20: power.policy: got 'polca'; none, or caps with a budget and a planner",
    ),
    (
        "policy: none",
        "policy: caps",
        "s.yaml:20: power.policy: caps without budget and planner; budget_w and a planner, or policy: none",
    ),
    (
        "planner: null",
        "planner: {interval_s: 600}",
        "s.yaml:23: events[0]: events beside a planner; events: [], or planner: null",
    ),
    ("pool: token", "pool: tokens", "s.yaml:23: events[0].pool: unknown pool 'tokens'; did you mean token?"),
    ("index: 14", "index: 15", "s.yaml:23: events[0].index: got 15, and the pool has 15 instances; 0 to 14"),
    (
        "index: 14",
        "index: 1, value: 3",
        "s.yaml:23: events[0].value: a value for instance-down; a value with kind cap only",
    ),
    ("t_s: 3", "t_s: -1", "s.yaml:23: events[0].t_s: got -1; a number from 0 to 1e10"),
    ("t_s: 3", "t_s: 1e300", "s.yaml:23: events[0].t_s: got 1e+300; a number from 0 to 1e10"),
    ("scale: 2", "scale: 0", "s.yaml:24: trace.scale: got 0; a number from 1e-9 to 1e9"),
    ("scale: 2", "scale: 1e-320", "s.yaml:24: trace.scale: got 1e-320; a number from 1e-9 to 1e9"),
    (
        "warm_up_s: 10",
        "warm_up_s: 100",
        "s.yaml:24: trace.warm_up_s: a warm-up of 100 s leaves nothing of 100 s; a warm-up shorter than duration_s",
    ),
    ("schema: scenario/1", "schema: scenario/2", "s.yaml:1: schema: got 'scenario/2'; schema: scenario/1"),
    ("schema: scenario/1\n", "", "s.yaml: schema: missing; schema: scenario/1"),
    ("name: chat-split", "name: chat-split\nname: b", "s.yaml:3: name: given twice; one of them"),
    (
        "planner: null",
        "planner: [",
        "s.yaml:23: not YAML: expected the node content, but found '-'; a scenario in YAML or JSON",
    ),
]


@pytest.mark.parametrize(("old", "new", "said"), WRONG, ids=[f"{new[:30]}" for _, new, _ in WRONG])
def test_what_is_wrong_is_told_in_one_line(
    old: str, new: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert old in SPLIT
    written(tmp_path, SPLIT.replace(old, new, 1))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        read_scenario("s.yaml")
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "null is not a scenario"),
        ("[1, 2]", "a list is not a scenario"),
        ("a: &x [*x]", "nested too deep"),
        ("&a [*a]", "nested too deep"),
        ("a: !!python/object:os.system 3", "not YAML"),
        ("\tx: 1", "not YAML"),
        ("{", "not YAML"),
        ("[" * 5000, "nested too deep"),
        ("{a: " * 3000, "nested too deep"),
        ("models: []\npools: []\nschema: scenario/1", "got an empty list"),
    ],
)
def test_what_is_no_scenario_at_all_is_told_too(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_scenario(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_many_aliases_do_not_blow_up(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 9)]
    with pytest.raises(InputError, match="too many values"):
        read_scenario(written(tmp_path, "\n".join(lines)))


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"name: \xff")
    with pytest.raises(InputError, match=r"s\.yaml: not UTF-8 \(byte 6\)"):
        read_scenario(path)


def test_a_model_without_a_pool_is_refused() -> None:
    values = copy.deepcopy(SMALLEST)
    values["models"].append({"name": "n", "model": "bigscience/bloom"})
    values["pools"][0]["model"] = "m"
    with pytest.raises(InputError, match=r"models\[1\]: no pool serves 'n'; a pool with this model"):
        of(values)
    del values["pools"][0]["model"]
    with pytest.raises(
        InputError, match=r"pools\[0\]\.model: missing, and there are several models; one of m, n"
    ):
        of(values)


def test_documents_can_be_changed_before_they_are_checked(tmp_path: Path) -> None:
    document = read_scenario_document(written(tmp_path, SPLIT))
    values = copy.deepcopy(dict(document.values))
    values["pools"][0]["count"] = 3
    changed = ScenarioDocument(values=values, source=document.source, folder=document.folder)
    assert scenario_of(changed).pools[0].count == 3
    assert scenario_of(document).pools[0].count == 25


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**20),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
)


def paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, part in inner for found in paths(part, (*path, key)))]


@given(st.data())
def test_any_value_anywhere_is_read_or_told_in_one_line(data: st.DataObject) -> None:
    values = yaml.safe_load(SPLIT)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([p for p in paths(values) if p]))
        place = values
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = data.draw(LEAVES)
    try:
        scenario = of(values)
    except InputError as error:
        said = str(error)
    else:
        said = "s.yaml"
        assert all(pool.count >= 1 for pool in scenario.pools)
    assert said.startswith("s.yaml")
    assert "\n" not in said
