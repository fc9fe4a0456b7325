"""The journal against crashes and boots: originals survive all of them, and no cap of ours becomes one."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.agent.journal import Journal, boot_id
from solver.domain.errors import InputError
from solver.domain.node_power import Cap, GpuRange, Mode, NodeOrders
from solver.power.agent_core import GpuStanding, Standing
from telemetry.sources.nvml.sample import GpuIdentity, GpuSample

IDENTITY = {"a": GpuIdentity(uuid="a", name="A100", span=GpuRange(default_w=400.0), mig=False)}


def seen(limit_w: float) -> Mapping[str, GpuSample]:
    return {"a": GpuSample(uuid="a", t_s=0.0, limit_w=limit_w, enforced_w=limit_w)}


def began(folder: Path, boot: str = "b", counter_j: float = 10.0, version: str = "550") -> Journal:
    journal = Journal(folder, boot)
    journal.begin(version, {"a": counter_j})
    return journal


def stand(journal: Journal, *wrote_w: float, counter_j: float = 10.0) -> None:
    standing = Standing(
        orders=NodeOrders(source="u", generation=3, mode=Mode.AUTO, safe=Cap(max_mhz=990)),
        gpus={"a": GpuStanding(max_mhz=900, limit_w=wrote_w[-1] if wrote_w else None, wrote_w=wrote_w)},
    )
    journal.keep_standing(standing, {"a": counter_j})


def test_what_was_found_first_stays(tmp_path: Path) -> None:
    journal = began(tmp_path)
    assert journal.keep_originals(seen(380.0), IDENTITY)["a"].limit_w == 380.0
    for limit_w in (300.0, 200.0):
        stand(journal, limit_w)
        journal = began(tmp_path)
        assert journal.keep_originals(seen(limit_w), IDENTITY)["a"].limit_w == 380.0


def test_where_it_stands_is_read_again(tmp_path: Path) -> None:
    journal = began(tmp_path)
    assert journal.standing() is None
    stand(journal, 300.0, 250.0)
    found = Journal(tmp_path, "b").standing()
    assert found is not None
    assert found.orders is not None
    assert (found.orders.generation, found.orders.safe.max_mhz) == (3, 990)
    assert found.gpus["a"] == GpuStanding(max_mhz=900, limit_w=250.0, wrote_w=(300.0, 250.0))


def test_another_boot_leaves_nothing_in_force_but_the_orders(tmp_path: Path) -> None:
    journal = began(tmp_path)
    journal.keep_originals(seen(380.0), IDENTITY)
    stand(journal, 300.0)
    after = began(tmp_path, boot="c", counter_j=0.5)
    found = after.standing()
    assert found is not None
    assert found.gpus == {}
    assert found.orders is not None
    assert after.originals() == {}
    assert after.keep_originals(seen(300.0), IDENTITY)["a"].limit_w == 300.0  # a boot script's, not ours
    assert began(tmp_path).originals()["a"].limit_w == 380.0  # the old ones are still there


@pytest.mark.parametrize(("counter_j", "version"), [(1.0, "550"), (12.0, "560")])
def test_a_driver_that_was_loaded_again_is_noticed(tmp_path: Path, counter_j: float, version: str) -> None:
    journal = began(tmp_path)
    journal.keep_originals(seen(380.0), IDENTITY)
    stand(journal, 300.0)
    again = began(tmp_path, counter_j=counter_j, version=version)
    assert again.load is not None
    assert again.load.number == 1
    assert again.keep_originals(seen(300.0), IDENTITY)["a"].limit_w == 380.0  # ours: something kept it
    assert not again.originals()["a"].assumed


def test_torn_files_are_kept_aside_and_the_default_is_assumed(tmp_path: Path) -> None:
    journal = began(tmp_path)
    journal.keep_originals(seen(380.0), IDENTITY)
    stand(journal, 300.0)
    for name in ("originals.json", "standing.json"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    again = began(tmp_path)
    assert "is not whole" in again.trouble
    assert again.standing() is None
    kept = again.keep_originals(seen(300.0), IDENTITY)["a"]
    assert (kept.limit_w, kept.assumed) == (400.0, True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "originals.json",
        "originals.json.broken-0",
        "standing.json.broken-0",
    }


def test_what_was_half_written_is_not_read(tmp_path: Path) -> None:
    journal = began(tmp_path)
    journal.keep_originals(seen(380.0), IDENTITY)
    (tmp_path / ".originals.json.new").write_text("{")
    (tmp_path / ".standing.json.new").write_text("{")
    assert began(tmp_path).originals()["a"].limit_w == 380.0


def test_a_file_that_somebody_changed_is_known_for_one(tmp_path: Path) -> None:
    journal = began(tmp_path)
    journal.keep_originals(seen(380.0), IDENTITY)
    raw = json.loads((tmp_path / "originals.json").read_text())
    raw["content"][0]["gpus"]["a"]["limit_w"] = 100.0
    (tmp_path / "originals.json").write_text(json.dumps(raw))
    assert began(tmp_path).originals() == {}


def test_the_boot_id_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the kernel's boot id"):
        boot_id(tmp_path / "none")


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("cap"), st.integers(100, 399).map(float)),
        st.tuples(
            st.sampled_from(["kill", "tear standing", "reload", "intend"]), st.integers(100, 399).map(float)
        ),
    ),
    max_size=12,
)


@given(EVENTS)
def test_no_cap_of_ours_is_ever_kept_as_an_original(events: list[tuple[str, float]]) -> None:
    """Within one boot, whatever happens: the original is 400 W, which it was, or the default, which is the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        journal, limit_w, counter_j, wrote = began(folder), 400.0, 10.0, []
        journal.keep_originals(seen(limit_w), IDENTITY)
        for what, watts in events:
            counter_j += 5.0
            if what in {"cap", "intend"}:
                wrote.append(watts)
                stand(journal, *wrote[-16:], counter_j=counter_j)
                limit_w = watts if what == "cap" else limit_w
            elif what == "tear standing" and (folder / "standing.json").exists():
                (folder / "standing.json").write_text("{")
            elif what == "reload":
                limit_w, counter_j = 400.0, 0.0
            if what not in {"cap", "intend"}:
                journal = began(folder, counter_j=counter_j)
            assert journal.keep_originals(seen(limit_w), IDENTITY)["a"].limit_w == 400.0
