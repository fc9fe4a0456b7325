"""Catalogue and profile files: the shipped ones whole, users' files on top, bad input in one line."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.performance.protocol import ReplicaKind
from telemetry.catalogue.read import find_gpu, find_model, read_gpus, read_models
from telemetry.catalogue.read_profiles import COLUMNS, read_profiles

GPUS = read_gpus()
MODELS = read_models()
PUBLIC = Path(__file__).parents[2] / "../shared/data/catalogue"
HEAD = 'schema = "gpu-catalogue/1"\n'


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(act: Callable[[], object]) -> str:
    """Say why an input is refused; empty when it is not."""
    try:
        act()
    except InputError as error:
        return str(error)
    return ""


def gpu_error(folder: Path, text: str | bytes) -> str:
    path = write(folder, text)
    with pytest.raises(InputError) as caught:
        read_gpus([path])
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def test_everything_shipped_is_read() -> None:
    assert len(GPUS) >= 19
    assert len(MODELS) >= 24
    for gpu in GPUS.values():
        assert gpu.provenance.date
        assert gpu.provenance.sources
        assert gpu.price_mark in {"listed", "illustrative"}
        assert gpu.memory_bytes < 300 * 2**30
    for model in MODELS.values():
        assert model.provenance.date
        assert model.provenance.sources


def test_units_become_si() -> None:
    h100 = GPUS["H100-SXM"]
    assert h100.memory_bytes == 79.6 * 2**30
    assert h100.memory_bandwidth_bytes_per_s == 3.35e12
    assert h100.fp16_flops == 989.5e12
    assert h100.max_sm_hz == 1.98e9
    assert h100.interconnect_bytes_per_s == 450e9


def test_unknown_facts_are_none() -> None:
    assert GPUS["B300"].idle_w is None
    assert GPUS["A100-80-SXM"].fp8_flops is None
    assert GPUS["MI300X"].min_power_limit_w is None


def test_recalled_fields_stay_marked_under_their_inner_names() -> None:
    assert {"memory_bandwidth_bytes_per_s", "fp16_flops", "int8_ops"} <= GPUS["A10G"].provenance.recalled
    assert "price_usd_per_h" not in GPUS["A10G"].provenance.recalled
    assert "tdp_w" in GPUS["MI325X"].provenance.recalled
    assert "max_context_tokens" in MODELS["google/gemma-3-27b-it"].provenance.recalled


def _rows(name: str) -> list[dict[str, str]]:
    path = PUBLIC / name
    if not path.exists():
        pytest.skip(f"public facts not here: {path}")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_public_fact_of_the_gpus_is_carried_over() -> None:
    columns = {
        "memory_gib": ("memory_bytes", 2.0**30),
        "memory_marketed_gb": ("memory_marketed_gb", 1),
        "memory_bandwidth_gb_per_s": ("memory_bandwidth_bytes_per_s", 1e9),
        "tflops_fp16_bf16": ("fp16_flops", 1e12),
        "tflops_fp8": ("fp8_flops", 1e12),
        "tops_int8": ("int8_ops", 1e12),
        "tflops_fp4": ("fp4_flops", 1e12),
        "tdp_w": ("tdp_w", 1),
        "idle_w": ("idle_w", 1),
        "min_power_limit_w": ("min_power_limit_w", 1),
        "max_power_limit_w": ("max_power_limit_w", 1),
        "max_sm_mhz": ("max_sm_hz", 1e6),
        "interconnect_gb_per_s": ("interconnect_bytes_per_s", 1e9),
        "interconnect_domain_gpus": ("interconnect_domain_gpus", 1),
        "pcie_gb_per_s": ("pcie_bytes_per_s", 1e9),
        "gpus_per_node": ("gpus_per_node", 1),
        "on_demand_usd_per_h": ("price_usd_per_h", 1),
    }
    texts = ("vendor", "idle_kind", "interconnect_kind", "price_mark", "price_date", "price_from")
    for row in _rows("gpus.csv"):
        gpu = GPUS[row["name"]]
        for column, (attribute, factor) in columns.items():
            expected = float(row[column]) * factor if row[column] else None
            assert getattr(gpu, attribute) == (None if expected is None else pytest.approx(expected)), (
                gpu.name,
                column,
            )
        assert [getattr(gpu, text) or "" for text in texts] == [row[text] for text in texts]
        labels = [row["product_label"], *filter(None, row["product_label_aliases"].split("|"))]
        assert list(gpu.product_labels) == labels


def test_every_public_fact_of_the_models_is_carried_over() -> None:
    renamed = {
        "parameters_total": "parameters",
        "parameters_active": "active_parameters",
        "sliding_window": "sliding_window_tokens",
        "max_context": "max_context_tokens",
        "kv_elements_per_token": "kv_elements_per_token",
    }
    same = (
        "layers",
        "hidden_size",
        "heads",
        "kv_heads",
        "head_dim",
        "v_head_dim",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "full_attention_layers",
        "intermediate_size",
        "moe_intermediate_size",
        "experts",
        "experts_per_token",
        "vocab_size",
        "default_precision_bytes",
    )
    for row in _rows("models.csv"):
        model = MODELS[row["name"]]
        for column, attribute in (renamed | {name: name for name in same}).items():
            assert getattr(model, attribute) == (float(row[column]) if row[column] else None), (
                model.name,
                column,
            )
        for column, attribute in {
            "shared_experts": "shared_experts",
            "dense_layers_before_moe": "dense_layers_before_moe",
        }.items():
            assert getattr(model, attribute) == int(row[column] or 0)
        assert model.attention.value == row["attention"]
        assert model.default_precision.value == row["default_precision"]
        assert (model.gated_mlp, model.tied_embeddings) == (
            row["gated_mlp"] == "true",
            row["tied_embeddings"] == "true",
        )
        assert list(model.aliases) == [alias for alias in row["aliases"].split("|") if alias]
        assert model.parameters_from_shapes == pytest.approx(
            float(row["parameters_total_from_shapes"]), rel=5e-4
        )


# -- finding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("H100-SXM", "H100-SXM"),
        ("NVIDIA-H100-80GB-HBM3", "H100-SXM"),
        ("nvidia-h100-sxm5-80gb", "H100-SXM"),
        ("NVIDIA-L4-SHARED", "L4"),
        ("a100 80 sxm", "A100-80-SXM"),
        ("AMD_Instinct_MI300X", "MI300X"),
    ],
)
def test_gpus_are_found_by_name_and_label(text: str, name: str) -> None:
    assert find_gpu(GPUS, text).name == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
        ("llama-3.1-70b", "meta-llama/Llama-3.1-70B"),
        ("DeepSeek-R1", "deepseek-ai/DeepSeek-V3"),
        ("bloom-176b", "bigscience/bloom"),
    ],
)
def test_models_are_found_by_id_alias_and_short_name(text: str, name: str) -> None:
    assert find_model(MODELS, text).name == name


def test_unknown_names_get_close_matches() -> None:
    with pytest.raises(InputError, match=r"unknown gpu 'H100'; did you mean .*H100-SXM"):
        find_gpu(GPUS, "H100")
    with pytest.raises(InputError, match=r"unknown model 'Llama-3.1-80B'; did you mean .*Llama-3.1-8"):
        find_model(MODELS, "Llama-3.1-80B")
    with pytest.raises(InputError, match="'ballast catalogue gpus' lists the known"):
        find_gpu(GPUS, "zzz")
    with pytest.raises(InputError, match="is a MIG slice"):
        find_gpu(GPUS, "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb")


@given(text=st.text(max_size=30))
def test_any_name_is_found_or_refused_in_one_line(text: str) -> None:
    assert "\n" not in refusal(lambda: find_gpu(GPUS, text))
    assert "\n" not in refusal(lambda: find_model(MODELS, text))


# -- users' files ---------------------------------------------------------------------------------------------


def test_a_user_changes_only_a_price(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + "[gpu.L4]\nprice_usd_per_h = 0.3\n")
    gpu = read_gpus([path])["L4"]
    assert gpu.price_usd_per_h == 0.3
    assert (gpu.price_mark, gpu.price_date, gpu.price_from) == (None, None, str(path))
    assert "price_usd_per_h" not in gpu.provenance.recalled
    assert "memory_bytes" in gpu.provenance.recalled
    assert gpu.tdp_w == GPUS["L4"].tdp_w
    assert gpu.provenance.sources[-1] == f"{path}: price_usd_per_h"


def test_price_zero_is_valid(tmp_path: Path) -> None:
    assert read_gpus([write(tmp_path, HEAD + "[gpu.L4]\nprice_usd_per_h = 0\n")])["L4"].price_usd_per_h == 0


def test_a_user_adds_a_gpu_with_only_the_needed_facts(tmp_path: Path) -> None:
    text = (
        HEAD
        + '[gpu.X1]\nvendor = "acme"\nmemory_gib = 48\nmemory_bandwidth_gb_per_s = 1000\n'
        + "tflops_fp16 = 200\ntdp_w = 300\n"
    )
    gpu = read_gpus([write(tmp_path, text)])["X1"]
    assert gpu.memory_bytes == 48 * 2**30
    assert gpu.idle_w is None
    assert gpu.price_usd_per_h is None
    assert gpu.gpus_per_node is None


def test_later_files_win(tmp_path: Path) -> None:
    first = write(tmp_path, HEAD + "[gpu.L4]\nprice_usd_per_h = 0.3\ntdp_w = 70\n")
    second = tmp_path / "second.toml"
    second.write_text(HEAD + "[gpu.L4]\nprice_usd_per_h = 0.2\n", encoding="utf-8")
    gpu = read_gpus([first, second])["L4"]
    assert (gpu.price_usd_per_h, gpu.tdp_w) == (0.2, 70)


def test_a_user_adds_a_model(tmp_path: Path) -> None:
    text = (
        'schema = "model-catalogue/1"\n[model."me/tiny"]\nparameters = 1000000\nlayers = 2\nhidden_size = 64\n'
        'attention = "gqa"\nheads = 4\nkv_heads = 2\nhead_dim = 16\nintermediate_size = 128\nvocab_size = 1000\n'
        'default_precision = "bfloat16"\n'
    )
    model = read_models([write(tmp_path, text)])["me/tiny"]
    assert model.kv_bytes_per_token() == 2 * 2 * 2 * 16 * 2
    assert model.active_parameters == 1_000_000


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[gpu.L4]\ntdp_w = -1\n", ":3: gpu.L4.tdp_w: got -1; a number above 0"),
        ("[gpu.L4]\n\ntdp_w = nan\n", ":4: gpu.L4.tdp_w: got nan; a number above 0"),
        ("[gpu.L4]\nidle_w = 0\n", ":3: gpu.L4.idle_w: got 0; a number above 0 (leave the field out"),
        (
            '[gpu.L4]\nprice_usd_per_h = "free"\n',
            ":3: gpu.L4.price_usd_per_h: got 'free'; a number of at least 0",
        ),
        ("[gpu.L4]\nidle_w = 99\n", ":3: gpu.L4.idle_w: idle_w 99 is not below tdp_w 72"),
        ("[gpu.L4]\ntdp = 70\n", ":3: gpu.L4.tdp: unknown field 'tdp'; did you mean tdp_w?"),
        (
            "[gpu.L4]\ngpus_per_node = 2.5\n",
            ":3: gpu.L4.gpus_per_node: got 2.5; a whole number of at least 1",
        ),
        ("[gpu.L4]\nbf16 = 1\n", ":3: gpu.L4.bf16: got 1; true or false"),
        (
            '[gpu.L4]\nprice_mark = "cheap"\n',
            ":3: gpu.L4.price_mark: got 'cheap'; one of listed, illustrative",
        ),
        ("[gpu.L4]\nsources = [1]\n", ":3: gpu.L4.sources: got [1]; a list of texts"),
        ("[gpu.New]\nvendor = 'x'\n", ":2: gpu.New: a new gpu lacks 'memory_gib'"),
        ("[gpus.L4]\ntdp_w = 70\n", ": gpus: unknown table 'gpus'; tables named [gpu.NAME]"),
        ("gpu = 3\n", ": gpu: 'gpu' holds a value that is no table"),
        ("[gpu.L4\n", ":2: not TOML: "),
    ],
)
def test_bad_fields_get_one_clear_line(tmp_path: Path, body: str, message: str) -> None:
    assert gpu_error(tmp_path, HEAD + body).startswith(message)


def test_wrong_schema_and_encoding(tmp_path: Path) -> None:
    assert gpu_error(tmp_path, 'schema = "gpu-catalogue/9"\n') == (
        ":1: schema: schema is 'gpu-catalogue/9'; schema = \"gpu-catalogue/1\""
    )
    assert gpu_error(tmp_path, "[gpu.L4]\n").startswith(": schema: schema is None")
    assert gpu_error(tmp_path, b"\xff\xfe").startswith(": not UTF-8 (byte 0)")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('[model."deepseek-ai/DeepSeek-V3"]\nexperts_per_token = 300\n', "got 300 of 256 experts"),
        ('[model."microsoft/phi-2"]\nattention = "mla"\n', "lacks 'kv_lora_rank'"),
        ('[model."microsoft/phi-2"]\nexperts = 8\n', "lacks 'experts_per_token'"),
        ('[model."microsoft/phi-2"]\ndefault_precision = "bf17"\n', "got 'bf17'; a precision"),
    ],
)
def test_bad_models_get_one_clear_line(tmp_path: Path, body: str, message: str) -> None:
    path = write(tmp_path, 'schema = "model-catalogue/1"\n' + body)
    with pytest.raises(InputError) as caught:
        read_models([path])
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}:")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.one_of(st.binary(max_size=80), st.text(max_size=80).map(lambda text: (HEAD + text).encode())))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path: Path, raw: bytes) -> None:
    path = write(tmp_path, raw)
    message = refusal(lambda: read_gpus([path]))
    assert "\n" not in message
    assert message == "" or message.startswith(str(path))


# -- profiles -------------------------------------------------------------------------------------------------

ROW = "L4,NVIDIA-L4,1,fp8"
PROFILE_HEAD = ",".join(COLUMNS) + "\n"


def profile(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_shipped_profiles_are_read() -> None:
    kinds = {(table.kind.model, table.kind.gpu_type) for table in read_profiles(GPUS, MODELS)}
    assert kinds == {
        (model, gpu)
        for model in ("bigscience/bloom", "meta-llama/Llama-2-70b-hf")
        for gpu in ("A100-80-SXM", "H100-SXM")
    }


def test_shipped_knots_are_the_published_ones() -> None:
    path = PUBLIC.parent / "sim/perf/splitwise_knots_tp8_full_precision.csv"
    if not path.exists():
        pytest.skip(f"public knots not here: {path}")
    gpus = {"a100-80gb": "A100-80-SXM", "h100-80gb": "H100-SXM"}
    tables = {(table.kind.model, table.kind.gpu_type): table for table in read_profiles(GPUS, MODELS)}
    seen = 0
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["gpu"] in gpus:
                name = find_model(MODELS, row["model"].replace("llama2-70b", "Llama-2-70b-hf")).name
                table, x, seconds = (
                    tables[name, gpus[row["gpu"]]],
                    int(row["x_tokens"]),
                    float(row["seconds"]),
                )
                measured = (
                    table.prefill_s(x)
                    if row["table"] == "prompt"
                    else table.decode_iteration_s(max(1, x // 512), x)
                )
                assert measured == seconds
                seen += 1
    assert seen == 72


def test_a_user_adds_and_replaces_profiles(tmp_path: Path) -> None:
    text = (
        "# measured on a Tuesday\n" + PROFILE_HEAD + "Llama-3.1-8B,NVIDIA-L4,1,fp8,prefill,100,,,0.5,70\n"
        "Llama-3.1-8B,L4,1,fp8,prefill,200,,,0.9,\n"
        "bloom-176b,H100-SXM,8,bf16,decode,,1,0,0.25,\n"
    )
    tables = {table.kind: table for table in read_profiles(GPUS, MODELS, [profile(tmp_path, text)])}
    mine = tables[
        ReplicaKind(model="meta-llama/Llama-3.1-8B", gpu_type="L4", gpus_per_replica=1, precision="fp8")
    ]
    assert mine.prefill_s(150) == pytest.approx(0.7)
    assert mine.prefill_w(100) == 70
    assert mine.provenance == "mine.csv"
    bloom = tables[
        ReplicaKind(model="bigscience/bloom", gpu_type="H100-SXM", gpus_per_replica=8, precision="bf16")
    ]
    assert bloom.decode_iteration_s(1, 0) == 0.25
    assert bloom.prefill == ()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("Llama-3.1-8B,L4,1,fp8,prefill,100,,,-1,\n", ":2: seconds: got '-1'; a number above 0"),
        ("Llama-3.1-8B,L4,1,fp8,prefill,,,,1,\n", ":2: new_tokens: got ''; a number above 0"),
        ("Llama-3.1-8B,L4,1,fp8,decode,,1,x,1,\n", ":2: kv_tokens: got 'x'; a number of at least 0"),
        ("Llama-3.1-8B,L4,1.5,fp8,prefill,1,,,1,\n", ":2: gpus_per_replica: got 1.5; a whole number"),
        ("Llama-3.1-8B,L4,1,fp8,warm,1,,,1,\n", ":2: phase: got 'warm'; one of prefill, decode, kv-slope"),
        ("Llama-3.1-8B,L44,1,fp8,prefill,1,,,1,\n", ":2: unknown gpu 'L44'; did you mean "),
        ("Llama-3.1-8B,L4,1,fp8,prefill,1\n", ":2: 6 cells; 10 cells, as the header"),
        ("Llama-3.1-8B,L4,1,fp8,kv-slope,,,,1,\n", ":2: only a kv-slope for meta-llama/Llama-3.1-8B"),
        (
            "Llama-3.1-8B,L4,1,fp8,prefill,1,,,1,\nLlama-3.1-8B,L4,1,fp8,prefill,1,,,2,\n",
            ":3: the same point twice",
        ),
        ("Llama-3.1-8B,L4,1,fp8,prefill,1,,,nan,\n", ":2: seconds: got 'nan'"),
        (
            "Llama-3.1-8B,L4,1,fp8,prefill,1,,,1e308,\n",
            ":2: seconds: got '1e308'; a number above 0, at most 1e+06",
        ),
        (
            "Llama-3.1-8B,L4,1,fp8,prefill,1,,,1,1e308\n",
            ":2: watts: got '1e308'; a number above 0, at most 1e+09",
        ),
        (
            "Llama-3.1-8B,L4,1,fp8,prefill,1e9,,,1,\n",
            ":2: new_tokens: got '1e9'; a number above 0, at most 1e+07",
        ),
        (
            "Llama-3.1-8B,L4,1,fp8,decode,,1,1e308,1,\n",
            ":2: kv_tokens: got '1e308'; a number of at least 0, at most",
        ),
    ],
)
def test_bad_profile_rows_get_one_clear_line(tmp_path: Path, body: str, message: str) -> None:
    path = profile(tmp_path, PROFILE_HEAD + body)
    with pytest.raises(InputError) as caught:
        read_profiles(GPUS, MODELS, [path])
    assert str(caught.value).removeprefix(str(path)).startswith(message)


@pytest.mark.parametrize("raw", [b"", b"# only words\n", b"model,gpu\n", b"\xff\xfe\x00"])
def test_files_that_are_no_profile(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(InputError, match=r"lacks the columns|not UTF-8"):
        read_profiles(GPUS, MODELS, [profile(tmp_path, raw)])
