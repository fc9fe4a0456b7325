"""The loop in this process, in virtual time: hours pass at once, the journal's disk fails, GPUs come and go."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from controller.agent.journal import Journal
from controller.agent.loop import Agent
from controller.agent.orders import FileOrders, Heard
from controller.agent.restore import restore
from controller.agent.state import AgentState
from solver.domain.node_power import Cap, Mode, NodeOrders
from telemetry.sources.nvml.failures import DriverGoneError
from telemetry.sources.nvml.reader import NvmlReader
from tests.fake_nvml.node import Node, loaded


class Told:
    """Orders from a test."""

    def __init__(self) -> None:
        self.heard, self.wake = Heard(trouble="nothing yet"), threading.Event()
        self.published: list[AgentState] = []

    def start(self) -> None:
        """Nothing to begin."""

    def latest(self) -> Heard:
        return self.heard

    def publish(self, state: AgentState) -> None:
        self.published.append(state)

    def stop(self, final: AgentState | None) -> None:
        """Nothing to end."""


class World:
    """A node, its agent, and a clock that moves when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.node, self.folder, self.now_s = Node(folder / "n.bin", gpus=2), folder / "journal", 1000.0
        self.told = Told()
        self.agent = self.started()

    def started(self) -> Agent:
        return Agent(
            reader=NvmlReader(),
            journal=Journal(self.folder, "boot"),
            source=self.told,
            enforce=True,
            random=Random(3),  # noqa: S311 - a jitter
            jitter_s=0.0,
            clock=lambda: self.now_s,
            pause=self.wait,
        )

    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    def order(self, *, mhz: int = 1200, watts: float | None = None, lease_s: float = 15.0) -> None:
        before = self.told.heard.orders
        orders = NodeOrders(
            source="n",
            generation=1 if before is None else before.generation + 1,
            renewal=0 if before is None else before.renewal + 1,
            lease_s=lease_s,
            mode=Mode.AUTO,
            gpus={uuid: Cap(max_mhz=mhz, limit_w=watts) for uuid in self.node.uuids},
            safe=Cap(max_mhz=1050, limit_w=300.0),
        )
        self.told.heard = Heard(orders=orders, received_s=self.now_s)

    def renew(self) -> None:
        orders = self.told.heard.orders
        assert orders is not None
        self.told.heard = Heard(orders=replace(orders, renewal=orders.renewal + 1), received_s=self.now_s)

    def pass_s(self, seconds: float, *, renewing: bool = True) -> AgentState:
        """Let time pass, a round each second."""
        for _ in range(int(seconds)):
            self.now_s += 1.0
            if renewing:
                self.renew()
            state = self.agent.tick()
        return state

    def locks(self) -> list[int]:
        return [gpu.lock_most for gpu in self.node]

    def limits(self) -> list[float]:
        return [gpu.limit_mw / 1000.0 for gpu in self.node]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "w"
    folder.mkdir()
    node = Node(folder / "n.bin", gpus=2)
    with loaded(node):
        yield World(folder)


def test_orders_are_carried_out_and_the_lease_counts_in_our_time(world: World) -> None:
    world.order(watts=350.0)
    state = world.pass_s(5)
    assert (world.locks(), world.limits()) == ([1200, 1200], [350.0, 350.0])
    assert state.acknowledged_generation == 1
    state = world.pass_s(14, renewing=False)
    assert world.locks() == [1200, 1200]
    state = world.pass_s(2, renewing=False)
    assert (world.locks(), world.limits()) == ([1050, 1050], [300.0, 300.0])
    assert state.lease_state == "Expired"
    world.pass_s(7200, renewing=False)
    assert world.locks() == [1050, 1050]


def test_a_verdict_is_tried_again_later_and_taken_back(world: World) -> None:
    world.order(watts=350.0)
    world.pass_s(5)
    world.node[0].ignore_limit = 1
    world.order(watts=320.0)
    state = world.pass_s(3)
    assert [gpu.verdict.error for gpu in state.gpus] == ["ActuatorMismatch", None]
    assert world.limits() == [350.0, 320.0]
    world.node[0].ignore_limit = 0
    state = world.pass_s(40)
    assert [gpu.verdict.error for gpu in state.gpus] == [None, None]
    assert world.limits() == [320.0, 320.0]


def test_a_foreign_writer_is_written_over_three_times_an_hour(world: World) -> None:
    world.order(watts=350.0)
    world.pass_s(5)
    before = world.node[0].sets
    for _ in range(600):
        world.node[0].limit_mw = 400_000
        world.pass_s(6)
    assert world.node[0].sets - before == 3
    world.pass_s(3600)
    assert world.node[0].sets - before == 4
    assert world.limits() == [350.0, 350.0]


def test_where_the_journal_s_disk_fails_nothing_more_is_set(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.order(watts=350.0)
    world.pass_s(5)
    sets = [gpu.sets for gpu in world.node]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("controller.agent.journal._write", full)
        world.order(watts=200.0)
        state = world.pass_s(3)
        assert [gpu.sets for gpu in world.node] == sets
        assert "No space left on device" in state.journal_trouble
        told = {kind: (good, why) for kind, good, why in state.conditions()}
        assert told["ActuatorsHealthy"] == (False, "JournalFailed")
    state = world.pass_s(3)
    assert world.limits() == [200.0, 200.0]
    assert not state.journal_trouble


def test_what_was_found_is_on_disk_before_the_first_set(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    real = world.agent.journal.keep_standing

    def noted(*arguments: object) -> None:
        seen.append((world.folder / "originals.json").exists() and world.node[0].sets == 0)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(world.agent.journal, "keep_standing", noted)
    world.order(watts=350.0)
    world.pass_s(1)
    assert seen[0]
    assert world.node[0].sets > 0


def test_a_reload_that_is_seen_begins_new_originals_and_caps_again(world: World) -> None:
    world.order(watts=350.0)
    world.pass_s(5)
    world.node.reload_driver()
    state = world.pass_s(3)
    assert (world.locks(), world.limits()) == ([1200, 1200], [350.0, 350.0])
    assert state.gpus[0].sample.energy_resets == 1
    assert world.agent.journal.load is not None
    assert world.agent.journal.load.number == 1
    assert world.agent.journal.originals()[world.node.uuids[0]].limit_w == 400.0


def test_a_driver_that_goes_away_in_a_set_call_ends_the_loop(world: World) -> None:
    world.order(watts=350.0)
    world.node.fail("nvmlDeviceSetGpuLockedClocks", 9)
    with pytest.raises(DriverGoneError):
        world.pass_s(3)


def test_a_gpu_that_comes_back_is_capped_again(world: World) -> None:
    world.node[1].lost = 1
    world.agent = world.started()
    world.order(watts=350.0)
    state = world.pass_s(5)
    assert [gpu.identity.uuid for gpu in state.gpus] == [world.node.uuids[0]]
    assert state.unnamed == 1
    world.node[1].lost = 0
    world.pass_s(40)
    assert (world.locks(), world.limits()) == ([1200, 1200], [350.0, 350.0])
    assert world.agent.journal.originals()[world.node.uuids[1]].limit_w == 400.0


def test_the_end_is_safe_and_restore_gives_back(world: World) -> None:
    world.node[0].limit_mw = 380_000
    world.order(watts=350.0)
    world.pass_s(5)
    world.agent.leave()
    assert (world.locks(), world.limits()) == ([1050, 1050], [300.0, 300.0])
    boot = world.folder.parent / "boot_id"
    boot.write_text("boot\n")
    assert [one.outcome for one in restore(world.folder, dry_run=True, boot_id_file=boot)] == ["Restored"] * 2
    assert world.limits() == [300.0, 300.0]
    world.node.fail("nvmlDeviceSetPowerManagementLimit", 999, gpu=1, times=2)
    assert [one.good for one in restore(world.folder, boot_id_file=boot)] == [True, True]  # the third try
    assert (world.locks(), world.limits()) == ([0, 0], [380.0, 400.0])


def test_restore_says_what_it_could_not_do(world: World) -> None:
    world.order(watts=350.0)
    world.pass_s(5)
    boot = world.folder.parent / "boot_id"
    boot.write_text("boot\n")
    world.node[0].ignore_limit = 1
    world.node[1].lost = 1
    done = restore(world.folder, boot_id_file=boot)
    assert [one.outcome for one in done] == ["ActuatorMismatch"]  # a lost GPU has not even a name
    world.node[0].ignore_limit, world.node[1].lost = 0, 0
    boot.write_text("another boot\n")
    assert {one.outcome for one in restore(world.folder, boot_id_file=boot)} == {"NotInJournal"}
    assert {one.outcome for one in restore(world.folder, everything=True, boot_id_file=boot)} == {"Restored"}


def test_a_folder_of_orders_is_read_by_the_node_s_name(tmp_path: Path) -> None:
    source = FileOrders(tmp_path, "n7", clock=lambda: 5.0)
    source.read()
    assert source.latest().trouble == f"{tmp_path}: no file for node n7; n7.json"
    (tmp_path / "n7.yaml").write_text("generation: 3\nsafe: {lockMaxMHz: 990}\n")
    source.start()
    assert source.latest().orders == NodeOrders(source="file", generation=3, safe=Cap(max_mhz=990))
    assert source.wake.is_set()
    (tmp_path / "n7.yaml").write_text("generation: [")
    source.read()
    assert source.latest().orders is not None
    assert "not YAML" in source.latest().trouble
    (tmp_path / "n7.yaml").write_text("x" * 2**21)
    source.read()
    assert "more than 1 MiB" in source.latest().trouble
    source.stop(None)
