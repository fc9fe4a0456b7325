"""The reader of GPU-type selection problems: what it accepts, and its one line for everything else."""

import copy
import gzip
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.gpu_mix import GpuMixInstance
from telemetry.sources.gpu_mix_file import gpu_mix_instance_to_json, read_gpu_mix_instance
from tests.solver.strategies import gpu_mix_instances

INSTANCES = Path("../shared/data/gputype/instances")

FULL: dict[str, Any] = {
    "schema": "gputype-instance/2",
    "name": "full",
    "description": "every field once",
    "expected": {"status": "unknown"},
    "gpu_types": [
        {
            "name": "L4",
            "price_per_hour": 0.7,
            "available": None,
            "power_watts": 72,
            "spot_price_per_hour": 0.3,
            "spot_available": 4,
        },
        {
            "name": "H100",
            "price_per_hour": 0,
            "available": 16,
            "power_watts": 700.0,
            "gpus_per_node": 8,
            "whole_nodes": True,
            "reserved": 8,
        },
    ],
    "models": [
        {
            "name": "chat",
            "tpot_slo_ms": 40,
            "configs": [
                {"gpu_type": "L4", "gpus_per_replica": 1, "current_replicas": 3},
                {"gpu_type": "L4", "gpus_per_replica": 1, "spot": True, "precision": "fp8", "quality": 0.9},
                {"gpu_type": "H100", "gpus_per_replica": 2.0},
            ],
            "buckets": [{"input_tokens": 100, "output_tokens": 20, "rate_rps": 3}, {"rate_rps": 0}],
            "throughput_rps": [[1, 2.5, 8], [0, 0, 4]],
            "headroom": 0.1,
            "min_total_replicas": 1,
            "min_quality": 0.5,
            "max_spot_load_ratio": 0.25,
            "survive": 1,
        },
        {
            "name": "idle",
            "configs": [{"gpu_type": "L4", "gpus_per_replica": 4}],
            "buckets": [],
            "throughput_rps": [],
        },
    ],
    "start_cost": 2,
    "stop_cost": 0.5,
    "horizon_hours": 6,
    "budget_usd_per_hour": 100,
    "power_limit_watts": 9000,
}
PLAIN: dict[str, Any] = {
    "schema": "gputype-instance/1",
    "name": "plain",
    "gpu_types": [{"name": "L4", "price_per_hour": 0.7}],
    "models": [
        {
            "name": "chat",
            "configs": [{"gpu_type": "L4", "gpus_per_replica": 1}],
            "buckets": [{"rate_rps": 3.0}],
            "throughput_rps": [[1.0]],
        }
    ],
}


def put(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy with the field at ``path`` set, or taken out where the value is Ellipsis."""
    changed = copy.deepcopy(document)
    steps = [int(step) if step.isdigit() else step for step in re.findall(r"\w+", path)]
    part: Any = changed
    for step in steps[:-1]:
        part = part[step]
    if value is ...:
        del part[steps[-1]]
    else:
        part[steps[-1]] = value
    return changed


def write(folder: Path, document: object, name: str = "p.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def message_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_gpu_mix_instance(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), path.name)


def test_every_field_arrives(tmp_path: Path) -> None:
    instance = read_gpu_mix_instance(write(tmp_path, FULL))
    l4, h100 = instance.gpu_types
    assert (l4.available, l4.power_w, l4.spot_price_usd_per_h, l4.spot_available) == (None, 72.0, 0.3, 4)
    assert (h100.price_usd_per_h, h100.available, h100.whole_nodes, h100.gpus_per_node) == (0.0, 16, True, 8)
    assert (l4.whole_nodes, l4.reserved, h100.reserved, h100.spot_available) == (False, 0, 8, None)
    chat, idle = instance.models
    assert [variant.current_replicas for variant in chat.variants] == [3, None, None]
    assert [variant.spot for variant in chat.variants] == [False, True, False]
    assert [variant.quality_ratio for variant in chat.variants] == [1.0, 0.9, 1.0]
    assert [variant.precision for variant in chat.variants] == [None, "fp8", None]
    assert chat.variants[2].gpus_per_replica == 2
    assert chat.throughput_rps == ((1.0, 2.5, 8.0), (0.0, 0.0, 4.0))
    assert (chat.buckets[0].input_tokens, chat.buckets[1].input_tokens) == (100.0, None)
    assert (chat.headroom_ratio, chat.min_total_replicas, chat.min_quality_ratio) == (0.1, 1, 0.5)
    assert (chat.max_spot_load_ratio, chat.survive) == (0.25, 1)
    assert (idle.headroom_ratio, idle.min_quality_ratio, idle.max_spot_load_ratio, idle.survive) == (
        0,
        0,
        1,
        0,
    )
    assert (instance.start_cost_usd, instance.stop_cost_usd, instance.horizon_h) == (2.0, 0.5, 6.0)
    assert (instance.budget_usd_per_h, instance.power_limit_w) == (100.0, 9000.0)


def test_absent_limits_are_no_limits_and_the_file_names_the_instance(tmp_path: Path) -> None:
    instance = read_gpu_mix_instance(write(tmp_path, put(PLAIN, "name", ...), "night.json"))
    assert instance.name == "night"
    assert (instance.power_limit_w, instance.budget_usd_per_h, instance.horizon_h) == (None, None, 1.0)
    assert instance.gpu_types[0].power_w is None
    assert instance.gpu_types[0].available is None


@pytest.mark.parametrize(
    ("document", "schema"), [(PLAIN, "gputype-instance/1"), (FULL, "gputype-instance/2")]
)
def test_written_instances_read_back_equal(document: dict[str, Any], schema: str, tmp_path: Path) -> None:
    instance = read_gpu_mix_instance(write(tmp_path, document))
    written = gpu_mix_instance_to_json(instance)
    assert written["schema"] == schema
    assert read_gpu_mix_instance(write(tmp_path, written, "again.json")) == instance


@given(instance=gpu_mix_instances(limits=False))
def test_any_instance_reads_back_equal(
    instance: GpuMixInstance, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.getbasetemp(), gpu_mix_instance_to_json(instance))
    assert read_gpu_mix_instance(path) == instance


def test_what_the_format_cannot_say_is_not_dropped_in_silence(tmp_path: Path) -> None:
    instance = read_gpu_mix_instance(write(tmp_path, PLAIN))
    model = instance.models[0]
    limited = replace(model, variants=(replace(model.variants[0], max_replicas=3), *model.variants[1:]))
    with pytest.raises(ValueError, match="how many replicas"):
        gpu_mix_instance_to_json(replace(instance, models=(limited, *instance.models[1:])))


def test_gzip_and_byte_order_mark_are_read(tmp_path: Path) -> None:
    text = json.dumps(PLAIN)
    plain = read_gpu_mix_instance(write(tmp_path, PLAIN))
    packed = tmp_path / "p.json.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    marked = tmp_path / "marked.json"
    marked.write_text(text, encoding="utf-8-sig")
    assert read_gpu_mix_instance(packed) == plain
    assert read_gpu_mix_instance(marked) == plain


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with write(tmp_path, PLAIN).open(encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert read_gpu_mix_instance("-").name == "plain"
    with write(tmp_path, put(PLAIN, "schema", "x")).open(encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        with pytest.raises(InputError, match=r"^standard input: schema: 'x' is not a schema"):
            read_gpu_mix_instance("-")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "models[0].configs[2].gpu_type",
            "H999",
            "models[0].configs[2].gpu_type: 'H999' is not declared in gpu_types; declared are L4, H100",
        ),
        (
            "models[0].buckets[0].rate_rps",
            -3,
            "models[0].buckets[0].rate_rps: -3 is out of range; a number of at least 0 (requests per second)",
        ),
        (
            "models[0].buckets[0].rate_rps",
            math.nan,
            "models[0].buckets[0].rate_rps: NaN is not a finite number; a number of at least 0",
        ),
        ("models[0].buckets[0].rate_rps", math.inf, "rate_rps: infinity is not a finite number;"),
        ("models[0].buckets[0].rate_rps", "3", "rate_rps: '3' is not a number;"),
        ("models[0].buckets[0].rate_rps", True, "rate_rps: true is not a number;"),
        ("models[0].buckets[0].rate_rps", None, "rate_rps: null is not a number;"),
        ("models[0].buckets[0].rate_rps", ..., "rate_rps: missing; a number of at least 0"),
        ("models[0].buckets[0].rate_rps", 10**400, "rate_rps: a number of about 400 digits is too large;"),
        ("models[0].buckets[0].rate_rps", 1e300, "rate_rps: 1e+300 is too large;"),
        ("models[0].buckets[0].input_tokens", -1, "input_tokens: -1 is out of range;"),
        ("models[0].buckets[0]", 3, "models[0].buckets[0]: 3 is not an object;"),
        (
            "gpu_types[1].available",
            -1,
            "gpu_types[1].available: -1 is out of range; a whole number of at least 0",
        ),
        ("gpu_types[1].available", 1.5, "available: 1.5 is not a whole number;"),
        ("gpu_types[1].available", False, "available: false is not a number;"),
        ("gpu_types[1].available", 10**11, "available: 100000000000 is too large; at most 1000000000"),
        ("gpu_types[0].spot_available", -2, "gpu_types[0].spot_available: -2 is out of range;"),
        ("gpu_types[0].price_per_hour", math.nan, "gpu_types[0].price_per_hour: NaN is not a finite number;"),
        ("gpu_types[0].price_per_hour", -0.1, "price_per_hour: -0.1 is out of range; a number of at least 0"),
        ("gpu_types[0].price_per_hour", ..., "gpu_types[0].price_per_hour: missing;"),
        ("gpu_types[0].spot_price_per_hour", -1, "gpu_types[0].spot_price_per_hour: -1 is out of range;"),
        ("gpu_types[0].power_watts", -1, "gpu_types[0].power_watts: -1 is out of range;"),
        ("gpu_types[0].name", "H100", "gpu_types[1].name: 'H100' is already the name of gpu_types[0];"),
        ("gpu_types[0].name", " ", "gpu_types[0].name: ' ' is not a name;"),
        ("gpu_types[0].name", "a\nb", "gpu_types[0].name: 'a\\nb' is not a name;"),
        ("gpu_types[0].name", 4, "gpu_types[0].name: 4 is not a name;"),
        ("gpu_types[0].name", ..., "gpu_types[0].name: missing;"),
        ("gpu_types", [], "gpu_types: the list is empty; at least 1 entry"),
        ("gpu_types", {}, "gpu_types: an object is not a list"),
        ("gpu_types[1].gpus_per_node", ..., "gpu_types[1].gpus_per_node: missing, but whole_nodes is true;"),
        ("gpu_types[1].gpus_per_node", 0, "gpu_types[1].gpus_per_node: 0 is out of range;"),
        ("gpu_types[1].whole_nodes", 1, "gpu_types[1].whole_nodes: 1 is neither true nor false;"),
        (
            "gpu_types[1].reserved",
            12,
            "gpu_types[1].reserved: 12 is not a multiple of the node's 8 GPUs; 0, 8, 16, ...",
        ),
        ("models", [], "models: the list is empty; at least 1 entry"),
        ("models", ..., "models: missing; a list"),
        ("models[1].name", "chat", "models[1].name: 'chat' is already the name of models[0];"),
        ("models[0].configs", [], "models[0].configs: the list is empty;"),
        ("models[0].configs[0].gpus_per_replica", 0, "configs[0].gpus_per_replica: 0 is out of range;"),
        ("models[0].configs[0].gpus_per_replica", 0.5, "gpus_per_replica: 0.5 is not a whole number;"),
        ("models[0].configs[0].gpus_per_replica", ..., "models[0].configs[0].gpus_per_replica: missing;"),
        ("models[0].configs[0].gpus_per_replica", [1], "gpus_per_replica: a list is not a number;"),
        ("models[0].configs[0].current_replicas", -1, "current_replicas: -1 is out of range;"),
        (
            "models[0].configs[1].quality",
            1.1,
            "models[0].configs[1].quality: 1.1 is out of range; a number from 0",
        ),
        ("models[0].configs[1].precision", 8, "models[0].configs[1].precision: 8 is not a name;"),
        (
            "models[0].configs[2].spot",
            True,
            "models[0].configs[2].spot: H100 is bought in whole nodes and has no spot GPUs;",
        ),
        ("gpu_types[0].spot_price_per_hour", ..., "models[0].configs[1].spot: L4 has no spot price;"),
        ("models[0].configs[1].spot", "yes", "models[0].configs[1].spot: 'yes' is neither true nor false;"),
        ("models[0].throughput_rps[0][1]", -1, "models[0].throughput_rps[0][1]: -1 is out of range;"),
        ("models[0].throughput_rps[0][1]", math.nan, "throughput_rps[0][1]: NaN is not a finite number;"),
        ("models[0].throughput_rps[0][1]", None, "throughput_rps[0][1]: null is not a number;"),
        ("models[0].throughput_rps[0][1]", 1e-12, "throughput_rps[0][1]: 1e-12 is out of range;"),
        ("models[0].throughput_rps[0]", [1, 2], "throughput_rps[0]: has 2 numbers for 3 configurations;"),
        ("models[0].throughput_rps[0]", 1, "throughput_rps[0]: 1 is not a list;"),
        ("models[0].throughput_rps", [[1, 2, 3]], "models[0].throughput_rps: has 1 rows for 2 buckets;"),
        ("models[0].throughput_rps", ..., "models[0].throughput_rps: missing; a list"),
        ("models[0].headroom", 1, "models[0].headroom: 1 is out of range; a number from 0 to below 1"),
        ("models[0].headroom", -0.1, "models[0].headroom: -0.1 is out of range;"),
        ("models[0].min_quality", 2, "models[0].min_quality: 2 is out of range; a number from 0 to 1"),
        ("models[0].max_spot_load_ratio", 1.5, "models[0].max_spot_load_ratio: 1.5 is out of range;"),
        ("models[0].survive", -1, "models[0].survive: -1 is out of range;"),
        ("models[0].survive", 0.5, "models[0].survive: 0.5 is not a whole number;"),
        ("models[0].min_total_replicas", -1, "models[0].min_total_replicas: -1 is out of range;"),
        ("start_cost", -1, "start_cost: -1 is out of range;"),
        ("stop_cost", "free", "stop_cost: 'free' is not a number;"),
        ("horizon_hours", 0, "horizon_hours: 0 is out of range; more than 0 hours"),
        ("horizon_hours", -1, "horizon_hours: -1 is out of range;"),
        ("budget_usd_per_hour", -1, "budget_usd_per_hour: -1 is out of range;"),
        ("power_limit_watts", math.inf, "power_limit_watts: infinity is not a finite number;"),
        (
            "gpu_types[1].power_watts",
            ...,
            "gpu_types[1].power_watts: missing, but power_limit_watts is set and configurations use H100;",
        ),
        ("schema", "gputype-instance/3", "schema: 'gputype-instance/3' is not a schema known here;"),
        ("schema", 2, "schema: 2 is not a schema known here;"),
        ("schema", ["gputype-instance/2"], "schema: a list is not a schema known here;"),
        ("schema", ..., "schema: missing; 'gputype-instance/1' or 'gputype-instance/2'"),
        ("name", 7, "name: 7 is not a name;"),
    ],
)
def test_each_wrong_field_gets_its_line(path: str, value: object, message: str, tmp_path: Path) -> None:
    told = message_of(write(tmp_path, put(FULL, path, value)))
    assert told.startswith("p.json: ")
    assert message in told


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gpu_types[0].whole_nodes", False),
        ("gpu_types[0].gpus_per_node", 8),
        ("gpu_types[0].reserved", 0),
        ("gpu_types[0].spot_price_per_hour", 0.1),
        ("gpu_types[0].spot_available", 3),
        ("models[0].configs[0].spot", False),
        ("models[0].configs[0].quality", 1),
        ("models[0].min_quality", 0),
        ("models[0].max_spot_load_ratio", 1),
        ("models[0].survive", 0),
        ("budget_usd_per_hour", 10),
        ("horizon_hours", 1),
    ],
)
def test_version_1_refuses_fields_of_version_2(path: str, value: object, tmp_path: Path) -> None:
    told = message_of(write(tmp_path, put(PLAIN, path, value)))
    assert f"p.json: {path}: belongs to schema 'gputype-instance/2'" in told


def test_power_of_a_type_that_no_configuration_uses_may_be_unknown(tmp_path: Path) -> None:
    document = put(put(FULL, "gpu_types[1].power_watts", ...), "models[0].configs[2].gpu_type", "L4")
    assert read_gpu_mix_instance(write(tmp_path, document)).gpu_types[1].power_w is None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "p.json: the file is empty;"),
        (b" \n", "p.json: the file is empty;"),
        (b'{"schema":\n x}', "p.json:2: not JSON: Expecting value at column 2;"),
        (b'{"a": 1} {', "p.json:1: not JSON: Extra data at column 10;"),
        (b'{"name": "caf\xe9"}', "p.json:1: byte 0xe9 is not UTF-8;"),
        ('{"name": "x"}'.encode("utf-16"), "p.json:1: byte 0xff is not UTF-8;"),
        (b"[]", "p.json: a list is not an object; a JSON object of schema"),
        (b"null", "p.json: null is not an object;"),
        (b"[" * 100_000, "p.json: not an instance: nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "p.json: a number has too many digits;"),
        (b'{"a": 1, "a": 2}', "p.json: the field 'a' stands twice in one object;"),
        (gzip.compress(json.dumps(PLAIN).encode(), mtime=0)[:-12], "p.json: damaged gzip data: "),
        (gzip.compress(json.dumps(PLAIN).encode(), mtime=0)[:30], "p.json: damaged gzip data: "),
        (b"\x1f\x8bjunk and more of it", "p.json: damaged gzip data: "),
    ],
)
def test_each_unreadable_file_gets_its_line(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(raw)
    assert message_of(path).startswith(message)


def test_nan_in_a_field_nobody_reads_is_still_not_json(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({**PLAIN, "note": "NaN", "x": math.nan}, indent=1), encoding="utf-8")
    lines = path.read_text(encoding="utf-8").splitlines()
    line = 1 + next(index for index, text in enumerate(lines) if '"x"' in text)
    assert message_of(path) == f"p.json:{line}: NaN is not JSON; a number or null"


def test_absent_file_folder_and_false_ending(tmp_path: Path) -> None:
    assert message_of(tmp_path / "none.json") == "none.json: cannot be read: No such file or directory"
    assert "cannot be read" in message_of(tmp_path)
    text = tmp_path / "p.json.gz"
    text.write_text(json.dumps(PLAIN), encoding="utf-8")
    assert message_of(text).startswith("p.json.gz: not gzip data, though the name ends in .gz;")
    with pytest.raises(InputError, match="cannot be read"):
        read_gpu_mix_instance("a\0b")


def outcome(path: Path) -> str:
    """Return "read", or the message of the refusal; any other exception is a failure."""
    try:
        read_gpu_mix_instance(path)
    except InputError as error:
        return str(error)
    return "read"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def paths_of(part: object, path: str = "") -> list[str]:
    """Return the paths of all fields and list entries below a value."""
    if isinstance(part, dict):
        below = [(f"{path}.{key}" if path else key, value) for key, value in part.items()]
    elif isinstance(part, list):
        below = [(f"{path}[{index}]", value) for index, value in enumerate(part)]
    else:
        below = []
    return [at for here, value in below for at in (here, *paths_of(value, here))]


@given(path=st.sampled_from(paths_of(FULL)), value=JSON_VALUES)
def test_any_value_in_any_field_is_read_or_refused_in_one_line(
    path: str, value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = write(tmp_path_factory.getbasetemp(), put(FULL, path, value))
    assert re.fullmatch(rf"read|{re.escape(str(file))}: .*", outcome(file))


@given(change=st.binary(max_size=6), at=st.floats(0, 1), cut=st.floats(0, 1), pack=st.booleans())
def test_damaged_bytes_are_read_or_refused_in_one_line(
    *, change: bytes, at: float, cut: float, pack: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    squeeze: Callable[[bytes], bytes] = gzip.compress if pack else bytes
    raw = squeeze(json.dumps(FULL).encode())
    place = int(at * len(raw))
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes((raw[:place] + change + raw[place + len(change) :])[: int((0.5 + cut) * len(raw))])
    assert re.fullmatch(rf"read|{re.escape(str(file))}[:0-9]*: .*", outcome(file))


@pytest.mark.skipif(not INSTANCES.is_dir(), reason="../shared/data is not present")
def test_public_instances_are_read() -> None:
    names = [read_gpu_mix_instance(path).name for path in sorted(INSTANCES.glob("*.json"))]
    assert len(names) == 26
    assert names == sorted(path.stem for path in INSTANCES.glob("*.json"))
