"""The agent as a process over a node that fails: killed, cut off, lied to, without rights, without driver."""

import json
import signal
import time
from pathlib import Path

import pytest

from tests.controller.agent.running import Host, wait_for


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def raised(before: list[int], after: list[int]) -> bool:
    """Whether any lock is higher, or gone."""
    return any(now == 0 or now > then for then, now in zip(before, after, strict=True))


def test_in_recommend_mode_nothing_is_set_and_nothing_written(host: Host) -> None:
    host.order(mhz=900, watts=200.0)
    with host.agent(mode="recommend") as agent:
        agent.listening()
        host.renew()
        wait_for(lambda: agent.telemetry()["leaseState"] == "Valid", "a lease")
        told = agent.telemetry()
        assert not told["writes"]
        assert told["gpus"][0]["wanted"] == {"lockMaxMHz": 900, "limitWatts": 200.0}
        assert agent.stop() == 0
    assert [gpu.sets for gpu in host.node] == [0, 0]
    assert not host.journal.exists()


def test_orders_that_only_recommend_set_nothing_in_auto_mode(host: Host) -> None:
    host.order(mhz=900, mode="Recommend")
    with host.agent() as agent:
        agent.listening()
        host.renew()
        wait_for(lambda: agent.telemetry()["leaseState"] == "Valid", "a lease")
    assert [gpu.sets for gpu in host.node] == [0, 0]


def test_leased_orders_are_carried_out_and_acknowledged_when_read_back(host: Host) -> None:
    with host.leading(mhz=1200, watts=350.0) as agent:
        host.order(mhz=1110, watts=320.0)
        wait_for(lambda: agent.telemetry().get("acknowledgedGeneration") == host.generation, "acknowledged")
        assert host.locks() == [1110, 1110]
        assert host.limits() == [320.0, 320.0]
        gpu = agent.telemetry()["gpus"][0]
        assert (gpu["appliedMHz"], gpu["appliedWatts"], gpu["originalLimitWatts"]) == (1110, 320.0, 400.0)
        assert gpu["clockConfirmed"]
        assert 'ballast_node_power_gpu_applied_mhz{gpu="GPU-n-0"} 1110.0' in agent.get("/metrics")
        assert agent.get("/healthz") == "ok\n"


def test_a_lease_that_ends_leads_to_safe_caps_and_nothing_is_raised_again(host: Host) -> None:
    with host.leading(mhz=1200, lease_s=2.0) as agent:
        wait_for(lambda: host.locks() == [1050, 1050], "safe clocks")
        assert host.limits() == [300.0, 300.0]
        wait_for(lambda: agent.telemetry()["leaseState"] == "Expired", "an expired lease")
        before = agent.telemetry()["sequence"]
        wait_for(lambda: agent.telemetry()["sequence"] > before + 20, "twenty rounds")
        assert host.locks() == [1050, 1050]
        assert agent.conditions()["LeaseValid"] == "False LeaseExpired"
        host.renew()
        wait_for(lambda: host.locks() == [1200, 1200], "leased again")


def test_killed_its_originals_survive_and_restore_needs_nobody(host: Host) -> None:
    host.node[1].limit_mw = 330_000  # somebody's own limit
    with host.leading(mhz=1200, watts=280.0) as agent:
        agent.kill()
    kept = (host.journal / "originals.json").read_bytes()
    assert host.locks() == [1200, 1200]
    host.orders_file.unlink()
    with host.agent() as agent:  # neither orders nor a lease: what was lowered stays lowered
        wait_for(lambda: host.locks() == [1050, 1050], "safe clocks after a restart")
        agent.listening()
        refused = host.restore()
        assert refused.returncode == 1
        assert "another agent runs on this node" in refused.stderr
        agent.kill()
    assert (host.journal / "originals.json").read_bytes() == kept
    shown = host.restore("--dry-run")
    assert shown.returncode == 0
    assert host.limits() == [280.0, 280.0]
    done = host.restore("-o", "json")
    assert done.returncode == 0, done.stderr
    assert host.limits() == [400.0, 330.0]
    assert host.locks() == [0, 0]
    assert {gpu["outcome"] for gpu in json.loads(done.stdout)["gpus"]} == {"Restored"}


def test_killed_again_and_again_it_never_takes_a_cap_for_an_original(host: Host) -> None:
    watts = 350.0
    for _ in range(4):
        with host.leading(mhz=1110, watts=watts) as agent:
            wait_for(lambda: host.limits() == [watts] * 2, f"limits at {watts}")  # noqa: B023 - called at once
            agent.kill()
        watts -= 20.0
    assert host.restore().returncode == 0
    assert host.limits() == [400.0, 400.0]


def test_asked_to_end_it_goes_to_safe_caps_where_the_domain_is_oversubscribed(host: Host) -> None:
    with host.leading(mhz=1200) as agent:
        assert agent.stop() == 0
    assert host.locks() == [1050, 1050]
    assert host.limits() == [300.0, 300.0]


def test_stopped_for_a_while_it_goes_on_as_if_nothing_had_been(host: Host) -> None:
    """A debugger does this, or a checkpoint. CPython's sigtimedwait then tells of a signal that never came."""
    with host.leading(mhz=1200) as agent:
        for _ in range(3):
            agent.process.send_signal(signal.SIGSTOP)
            time.sleep(0.7)
            agent.process.send_signal(signal.SIGCONT)
            before = agent.telemetry()["sequence"]
            wait_for(lambda: agent.telemetry()["sequence"] > before + 3, "rounds")  # noqa: B023 - called at once
        assert host.locks() == [1200, 1200]
        assert agent.stop() == 0


def test_asked_to_end_it_gives_back_what_was_found_where_it_is_not(host: Host) -> None:
    with host.leading(mhz=1200, watts=300.0, oversubscribed=False) as agent:
        assert agent.stop() == 0
    assert host.locks() == [0, 0]
    assert host.limits() == [400.0, 400.0]


def test_an_operator_s_release_gives_back_what_was_found(host: Host) -> None:
    with host.leading(mhz=1200, watts=300.0):
        host.order(mhz=1200, watts=300.0, release=True)
        wait_for(lambda: host.locks() == [0, 0] and host.limits() == [400.0, 400.0], "originals")


def test_a_set_that_is_silently_ignored_is_seen_and_no_other_gpu_is_raised(host: Host) -> None:
    with host.leading(mhz=1200) as agent:
        host.node[0].ignore_clock = 1
        uuids = host.node.uuids
        host.order()
        host.spec["gpus"] = [
            {"uuid": uuids[0], "lockMaxMHz": 900},
            {"uuid": uuids[1], "lockMaxMHz": 1410},
        ]
        host.generation += 1
        host.renew()
        wait_for(lambda: agent.errors() == ["ActuatorMismatch", None], "a verdict")
        assert host.locks()[1] <= 1200
        assert "appliedMHz" not in agent.telemetry()["gpus"][0]
        assert agent.conditions()["ActuatorsHealthy"] == "False ActuatorMismatch"
        assert agent.telemetry()["acknowledgedGeneration"] < host.generation


def test_a_higher_limit_from_elsewhere_is_written_over_three_times(host: Host) -> None:
    with host.leading(mhz=1200, watts=350.0) as agent:
        wait_for(lambda: agent.telemetry().get("acknowledgedGeneration") == host.generation, "acknowledged")
        before = host.node[0].sets
        for _ in range(5):
            sequence = agent.telemetry()["sequence"]
            host.node[0].limit_mw = 400_000
            wait_for(lambda: agent.telemetry()["sequence"] > sequence + 4, "some rounds")  # noqa: B023 - called at once
        assert host.node[0].sets - before == 3
        assert agent.errors()[0] == "ForeignWriter"
        assert host.limits() == [400.0, 350.0]


def test_a_lower_limit_from_elsewhere_is_respected_also_by_restore(host: Host) -> None:
    with host.leading(mhz=1200, watts=350.0) as agent:
        wait_for(lambda: agent.telemetry().get("acknowledgedGeneration") == host.generation, "acknowledged")
        host.node[1].limit_mw = 220_000
        wait_for(lambda: agent.telemetry()["gpus"][1].get("foreignWatts") == 220.0, "noticed")
        host.order(mhz=1200, watts=380.0)
        wait_for(lambda: host.limits() == [380.0, 220.0], "raised where nobody minds")
        agent.kill()
    assert host.restore().returncode == 0
    assert host.limits() == [400.0, 220.0]
    assert host.restore("--all").returncode == 0
    assert host.limits() == [400.0, 400.0]


def test_a_lost_gpu_is_told_and_the_other_one_is_ruled_on(host: Host) -> None:
    with host.leading(mhz=1200) as agent:
        host.node[0].lost = 1
        host.node.xid(0, 79)
        host.order(mhz=1110)
        wait_for(lambda: host.locks()[1] == 1110, "the other one lowered")
        wait_for(lambda: agent.errors() == ["GpuLost", None], "told")
        told = agent.telemetry()
        assert told["gpuPowerWatts"] is None
        assert told["gpus"][0]["telemetry"]["xids"] == [79]
        assert agent.conditions()["GpuLost"] == "True GpuLost"


def test_a_reloaded_driver_is_capped_again_and_originals_are_found_anew(host: Host) -> None:
    with host.leading(mhz=900, watts=250.0) as agent:
        wait_for(lambda: host.limits() == [250.0, 250.0], "limits")
        host.node.fail("nvmlDeviceSetGpuLockedClocks", 9, times=1)
        host.node.reload_driver()
        assert agent.process.wait(30) == 1  # the set call failed: another process is needed
    with host.agent():
        wait_for(lambda: not raised([1050] * 2, host.locks()) and host.limits() <= [300.0] * 2, "safe again")
    entries = json.loads((host.journal / "originals.json").read_text())["content"]
    assert [entry["load"] for entry in entries] == [0, 1]
    assert [entry["gpus"]["GPU-n-0"]["limit_w"] for entry in entries] == [400.0, 400.0]
    assert not any(gpu["assumed"] for entry in entries for gpu in entry["gpus"].values())


def test_an_exchanged_driver_ends_the_process(host: Host) -> None:
    with host.leading(mhz=1200) as agent:
        host.node.reload_driver(upgrade=True)
        assert agent.process.wait(30) == 1
    with host.agent() as again:
        again.listening()
        wait_for(lambda: host.locks() == [1050, 1050], "safe clocks under the new driver")


def test_without_the_right_to_set_it_reads_on_and_says_so(host: Host) -> None:
    host.node.state.unprivileged = 1
    host.order(mhz=900)
    with host.agent() as agent:
        wait_for(lambda: agent.errors() == ["NoPermission"] * 2, "told")
        assert agent.telemetry()["gpuPowerWatts"] > 100.0
        assert agent.conditions()["ActuatorsHealthy"] == "False NoPermission"
    done = host.restore()
    assert done.returncode == 3
    assert "NoPermission" in done.stdout


def test_gpus_without_clock_locks_are_limited(host: Host) -> None:
    host.node.fail("nvmlDeviceSetGpuLockedClocks", 3)
    host.order(mhz=900, watts=250.0)
    with host.agent() as agent:
        agent.listening()
        host.renew()
        wait_for(lambda: host.limits() == [250.0, 250.0], "limits")
        assert agent.errors() == [None, None]


def test_a_torn_journal_is_put_aside_and_a_cap_is_not_taken_for_an_original(host: Host) -> None:
    with host.leading(mhz=1110, watts=280.0) as agent:
        wait_for(lambda: host.limits() == [280.0, 280.0], "limits")
        agent.kill()
    for name in ("originals.json", "standing.json"):
        file = host.journal / name
        file.write_bytes(file.read_bytes()[:120])
    (host.journal / ".originals.json.new").write_text('{"half')
    with host.leading(mhz=1110, watts=260.0) as agent:
        wait_for(lambda: host.limits() == [260.0, 260.0], "limits")
        agent.kill()
    assert (host.journal / "originals.json.broken-0").exists()
    found = json.loads((host.journal / "originals.json").read_text())["content"][-1]["gpus"]
    assert [gpu["limit_w"] for gpu in found.values()] == [400.0, 400.0]  # the driver's default
    assert all(gpu["assumed"] for gpu in found.values())


def test_where_the_journal_cannot_be_written_nothing_is_set(host: Host) -> None:
    host.journal.write_text("a file, not a folder")
    host.order(mhz=900)
    done = host.command(
        "run", "--mode", "auto", "--orders", str(host.orders_file), "--journal", str(host.journal)
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"ballast: {host.journal}/.lock: cannot be written")
    assert [gpu.sets for gpu in host.node] == [0, 0]


def test_a_second_agent_on_a_node_is_refused(host: Host) -> None:
    with host.leading(mhz=1200):
        done = host.command(
            "run", "--mode", "auto", "--orders", str(host.orders_file), "--journal", str(host.journal)
        )
    assert done.returncode == 1
    assert "another agent runs on this node" in done.stderr


def test_without_a_driver_it_is_one_line_and_exit_code_1(host: Host) -> None:
    host.node.fail("nvmlInitWithFlags", 9)
    done = host.command("run", "--orders", str(host.orders_file))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "a loaded NVIDIA driver" in done.stderr


def test_orders_that_cannot_be_read_change_nothing_and_renew_nothing(host: Host) -> None:
    with host.leading(mhz=1200, lease_s=4.0) as agent:
        for text in ("{", "[]", '{"generation": "x"}', '{"generation": 9, "modus": "Auto"}'):
            host.orders_file.write_text(text)
            time.sleep(0.6)  # the file is read every half second
            assert agent.conditions()["OrdersAccepted"] == "False Unreadable"
            assert set(host.locks()) <= {1200, 1050}
        wait_for(lambda: host.locks() == [1050, 1050], "the lease is over")


def test_orders_of_an_older_generation_are_refused(host: Host) -> None:
    with host.leading(mhz=1110) as agent:
        host.order(mhz=1110)
        wait_for(lambda: agent.telemetry()["observedGeneration"] == host.generation, "observed")
        host.generation -= 2
        host.order(mhz=1410)
        wait_for(lambda: agent.conditions()["OrdersAccepted"] == "False OldGeneration", "refused")
        assert host.locks() == [1110, 1110]


def test_told_its_safe_caps_it_needs_no_orders(host: Host) -> None:
    with host.agent("--safe-max-mhz", "990", "--safe-limit-watts", "250") as agent:
        wait_for(lambda: host.locks() == [990, 990] and host.limits() == [250.0, 250.0], "safe caps")
        assert agent.telemetry()["leaseState"] == "Never"
