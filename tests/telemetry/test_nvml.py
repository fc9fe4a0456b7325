"""The reader of NVML: the real nvidia-ml-py over a library that answers, fails and lies as told."""

import subprocess
import sys
from pathlib import Path

import pytest

from solver.domain.node_power import Failure
from telemetry.sources.nvml.energy import EnergyCounter
from telemetry.sources.nvml.failures import DriverGoneError, failure_of
from telemetry.sources.nvml.reader import NvmlReader
from tests.fake_nvml.node import Node, loaded


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "n.bin", gpus=3)


def test_a_sweep_tells_all_there_is(node: Node) -> None:
    node[1].load = 0.0
    node[2].bmc_mw = 250_000
    node[2].ecc = 4
    with loaded(node):
        reader = NvmlReader()
        reader.sweep(10.0)
        node[0].energy_j += 500.0
        first, idle, capped = reader.sweep(12.0)
        reader.close()
    assert first.uuid == node.uuids[0]
    assert first.instant_w == pytest.approx(63.0 + 0.7 * 345.0)
    assert first.power_w == first.average_w == first.instant_w
    assert first.energy_j == pytest.approx(500.0, abs=50.0)
    assert first.mean_w == pytest.approx(250.0, abs=25.0)
    assert (first.limit_w, first.enforced_w) == (400.0, 400.0)
    assert (first.sm_mhz, first.memory_mhz) == (1410, 1593)
    assert first.celsius == 40.0
    assert first.memory_celsius == 48.0
    assert (first.sm_ratio, first.memory_ratio) == (0.7, 0.35)
    assert first.missing == ()
    assert idle.power_w == 63.0
    assert idle.reason_names == ("Idle",)
    assert (capped.limit_w, capped.enforced_w) == (400.0, 250.0)
    assert capped.reason_names == ("SwPowerCap",)
    assert capped.ecc_uncorrected == 4


def test_a_gpu_says_what_it_can_be_set_to(node: Node) -> None:
    with loaded(node):
        identity = NvmlReader().identities[node.uuids[0]]
    assert identity.name.startswith("NVIDIA A100")
    assert identity.span.clocks_mhz[:2] == (210, 225)
    assert identity.span.clocks_mhz[-1] == 1410
    assert (identity.span.least_w, identity.span.most_w, identity.span.default_w) == (100.0, 400.0, 400.0)


def test_each_field_fails_for_itself(node: Node) -> None:
    node.fail("field:186", 3, gpu=0)
    node.fail("nvmlDeviceGetTemperatureV", 999, gpu=0)
    node.fail("nvmlDeviceGetUtilizationRates", 3, gpu=0)
    with loaded(node):
        reader = NvmlReader()
        sample, other, _ = reader.sweep(1.0)
        node.heal()
        again = reader.sweep(2.0)[0]
    assert sample.instant_w is None
    assert sample.power_w == sample.average_w
    assert sample.celsius is None
    assert sample.sm_ratio is None
    assert [text.partition(":")[0] for text in sample.missing] == ["instant_w", "celsius", "rates"]
    assert other.missing == ()
    assert again.celsius == 40.0
    assert again.sm_ratio is None  # what is not supported is not asked for again


def test_where_there_are_no_fields_single_calls_take_their_place(node: Node) -> None:
    without = ["nvmlDeviceGetFieldValues", "nvmlDeviceGetTemperatureV"]
    with loaded(node, without):
        sample = NvmlReader().sweep(1.0)[0]
    assert sample.average_w == pytest.approx(304.5)
    assert sample.instant_w is None
    assert sample.counter_j is not None
    assert (sample.limit_w, sample.enforced_w, sample.celsius) == (400.0, 400.0, 40.0)


def test_a_gpu_without_a_counter_has_no_energy_and_not_zero(node: Node) -> None:
    node[0].no_energy = 1
    with loaded(node):
        reader = NvmlReader()
        reader.sweep(1.0)
        sample = reader.sweep(2.0)[0]
    assert sample.energy_j is None
    assert sample.mean_w is None
    assert "energy_j: Not Supported" in sample.missing


def test_the_counter_of_a_driver_that_was_loaded_again_is_counted_on() -> None:
    energy = EnergyCounter()
    assert energy.take(1000.0, 10.0) is None
    assert energy.take(1600.0, 12.0) == 300.0
    assert energy.take(40.0, 14.0) is None
    assert (energy.total_j, energy.resets) == (640.0, 1)
    assert energy.take(440.0, 16.0) == 200.0


def test_a_mean_is_never_taken_over_a_moment() -> None:
    energy = EnergyCounter()
    energy.take(0.0, 0.0)
    assert energy.take(300.0, 1.0) == 300.0
    assert energy.take(300.0, 1.02) == 300.0  # the counter has not moved yet: not 0 W
    assert energy.take(330.0, 1.05) == 300.0
    assert energy.take(700.0, 2.0) == 400.0


def test_a_lost_gpu_is_told_by_its_uuid_and_the_others_go_on(node: Node) -> None:
    with loaded(node):
        reader = NvmlReader()
        node[1].lost = 1
        for now in range(40):
            samples = reader.sweep(float(now))
        assert [sample.uuid for sample in samples] == node.uuids
        assert [sample.failure for sample in samples] == [Failure.NONE, Failure.LOST, Failure.NONE]
        assert samples[1].power_w is None
        assert reader.unnamed == 1
        node[1].lost = 0
        assert reader.sweep(50.0)[1].failure is Failure.NONE


def test_a_gpu_that_is_lost_from_the_start_does_not_hide_the_others(node: Node) -> None:
    node[0].lost = 1
    with loaded(node):
        reader = NvmlReader()
        assert [sample.uuid for sample in reader.sweep(0.0)] == node.uuids[1:]
        assert reader.unnamed == 1


def test_xid_events_are_told_once(node: Node) -> None:
    with loaded(node):
        reader = NvmlReader()
        assert reader.events() == ()
        node.xid(2, 79)
        node.xid(0, 31)
        found = reader.events()
        assert reader.events() == ()
    assert {(event.uuid, event.xid) for event in found} == {(node.uuids[2], 79), (node.uuids[0], 31)}


def test_mig_instances_belong_to_their_gpu(node: Node) -> None:
    node[0].mig, node[0].mig_count = 1, 3
    with loaded(node):
        reader = NvmlReader()
        identity = reader.identities[node.uuids[0]]
        sample = reader.sweep(1.0)[0]
    assert identity.mig
    assert len(identity.instances) == 3
    assert all(name.startswith("MIG-") for name in identity.instances)
    assert sample.sm_ratio is None
    assert sample.power_w is not None


def test_an_exchanged_driver_ends_the_reader(node: Node) -> None:
    with loaded(node):
        reader = NvmlReader()
        node.reload_driver(upgrade=True)
        with pytest.raises(DriverGoneError, match="another process"):
            reader.sweep(1.0)


@pytest.mark.parametrize(("code", "word"), [(9, "a loaded NVIDIA driver"), (4, "Insufficient Permissions")])
def test_a_driver_that_does_not_start_is_one_line(node: Node, code: int, word: str) -> None:
    node.fail("nvmlInitWithFlags", code)
    with loaded(node), pytest.raises(DriverGoneError, match=word) as error:
        NvmlReader()
    assert "\n" not in str(error.value)


def test_no_library_is_one_line(tmp_path: Path) -> None:
    """In a process of its own, whose library path has none."""
    code = (
        "from telemetry.sources.nvml.reader import NvmlReader\n"
        "from telemetry.sources.nvml.failures import DriverGoneError\n"
        "try:\n    NvmlReader()\nexcept DriverGoneError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin", "LD_LIBRARY_PATH": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    if "NVML" not in done.stdout:
        pytest.skip("this machine has a real libnvidia-ml.so.1")
    assert done.stdout.count("\n") == 1


def test_another_process_finds_the_node_by_its_library_path(node: Node) -> None:
    code = "from telemetry.sources.nvml.reader import NvmlReader; print(len(NvmlReader().sweep(0.0)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=node.environment(),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "3\n"


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (0, Failure.NONE),
        (2, Failure.FAILED),
        (3, Failure.NOT_SUPPORTED),
        (4, Failure.NO_PERMISSION),
        (9, Failure.DRIVER_GONE),
        (15, Failure.LOST),
        (18, Failure.DRIVER_GONE),
        (999, Failure.FAILED),
    ],
)
def test_codes_ask_for_what_the_table_says(code: int, failure: Failure) -> None:
    assert failure_of(code) is failure


def test_the_setter_of_the_second_kind_is_not_used() -> None:
    """nvidia-ml-py's nvmlDeviceSetPowerManagementLimit_v2 swallows the library's answer: why we do without it."""
    root = Path(__file__).parents[2]
    for room in ("telemetry/sources", "controller/agent"):
        for path in (root / room).rglob("*.py"):
            assert "nvmlDeviceSetPowerManagementLimit_v2(" not in path.read_text(encoding="utf-8")
