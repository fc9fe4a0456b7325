"""GPUs of the cluster counted by pool: taints, cordons, pods of others, overlapping selectors, DRA."""

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controller.operator.inventory import (
    Inventory,
    InventoryRules,
    OwnerKey,
    PoolKey,
    pool_key,
    published_devices,
    take_inventory,
    tolerated,
)
from controller.operator.world import Key, Node, Pod, Target
from controller.resources.gpu_profile import GpuProfileSpec

LABEL = "nvidia.com/gpu.product"
RULES = InventoryRules(gpu_label=LABEL, labels_of=lambda gpu_type: (gpu_type, f"NVIDIA-{gpu_type}"))
A = PoolKey(gpu_type="A")
OURS: OwnerKey = ("Deployment", "default", "ours")


def node(
    name: str,
    product: str = "A",
    *,
    gpus: int = 8,
    usable: bool = True,
    taints: Sequence[tuple[str, str, str]] = (),
    **labels: str,
) -> Node:
    return Node(name=name, labels={LABEL: product, **labels}, gpus=gpus, open=usable, taints=tuple(taints))


def pod(
    name: str, at: str, gpus: int, *, owner: tuple[str, str] = ("", ""), namespace: str = "default"
) -> Pod:
    return Pod(key=(namespace, name), node=at, gpus=gpus, owner=owner, ip="", ready=True, serves=True)


def target(tolerations: Sequence[Mapping[str, Any]] = ()) -> Target:
    return Target(
        kind="Deployment",
        key=("default", "ours"),
        uid="u",
        version="1",
        replicas=0,
        ready=0,
        running=0,
        observed=True,
        replicas_managers=(),
        annotations={},
        tolerations=tuple(tolerations),
        gpus_per_pod=1,
        owner=("", ""),
    )


def counted(
    nodes: Sequence[Node],
    pods: Sequence[Pod] = (),
    pools: Mapping[PoolKey, Sequence[Target]] | None = None,
    *,
    devices: Mapping[str, int] | None = None,
) -> Inventory:
    by_key: dict[Key, Node] = {("", one.name): one for one in nodes}
    return take_inventory(
        by_key,
        {one.key: one for one in pods},
        pools if pools is not None else {A: [target()]},
        ours={OURS},
        rules=RULES,
        devices=devices,
    )


def test_a_node_counts_by_any_label_value_of_its_gpu_type() -> None:
    inventory = counted([node("a"), node("b", "NVIDIA-A"), node("c", "B"), node("d", gpus=0)])
    assert inventory.gpus == {"A": 16}
    assert inventory.by_node == {"A": {"a": 8, "b": 8}}


def test_cordoned_and_tainted_nodes_are_named_and_take_no_pods() -> None:
    inventory = counted(
        [node("open"), node("cordoned", usable=False), node("tainted", taints=[("team", "x", "NoSchedule")])]
    )
    assert inventory.gpus == {"A": 8}
    assert sorted(inventory.closed["A"]) == ["cordoned", "tainted"]


def test_a_taint_counts_only_if_every_target_of_the_pool_tolerates_it() -> None:
    nodes = [node("n", taints=[("team", "x", "NoSchedule")])]
    tolerant = target([{"key": "team", "operator": "Exists"}])
    assert counted(nodes, pools={A: [tolerant]}).gpus == {"A": 8}
    assert counted(nodes, pools={A: [tolerant, target()]}).gpus == {"A": 0}
    assert counted(nodes, pools={A: []}).gpus == {"A": 0}


def test_the_taint_of_gpu_nodes_themselves_keeps_nobody_away() -> None:
    assert counted([node("n", taints=[("nvidia.com/gpu", "", "NoSchedule")])]).gpus == {"A": 8}


def test_tolerations_are_read_as_the_scheduler_reads_them() -> None:
    taint = ("team", "x", "NoSchedule")
    yes: list[Mapping[str, Any]] = [
        {"operator": "Exists"},
        {"key": "team", "operator": "Exists"},
        {"key": "team", "value": "x"},
        {"key": "team", "operator": "Equal", "value": "x", "effect": "NoSchedule"},
    ]
    no: list[Mapping[str, Any]] = [
        {"key": "team"},
        {"key": "team", "value": "y"},
        {"key": "other", "operator": "Exists"},
        {"key": "team", "operator": "Exists", "effect": "NoExecute"},
    ]
    assert [tolerated(taint, [one]) for one in yes] == [True] * len(yes)
    assert [tolerated(taint, [one]) for one in no] == [False] * len(no)
    assert not tolerated(taint, [])


def test_pods_of_others_take_gpus_and_ours_do_not() -> None:
    inventory = counted(
        [node("n")],
        [
            pod("theirs", "n", 3),
            pod("pending", "", 5),
            pod("own", "n", 2, owner=("Deployment", "ours")),
            pod("same-name-elsewhere", "n", 1, owner=("Deployment", "ours"), namespace="other"),
        ],
    )
    assert inventory.gpus == {"A": 4}
    assert [one.key[1] for one in inventory.pods[OURS]] == ["own"]


def test_more_taken_than_there_is_leaves_nothing_and_takes_from_no_other_node() -> None:
    inventory = counted([node("full", gpus=2), node("free", gpus=4)], [pod("theirs", "full", 6)])
    assert inventory.by_node == {"A": {"full": 0, "free": 4}}


def test_replicas_fit_node_by_node() -> None:
    inventory = counted([node("a", gpus=6), node("b", gpus=6), node("c", gpus=3)])
    assert inventory.replicas_that_fit("A", 4) == 2
    assert inventory.replicas_that_fit("A", 1) == 15
    assert inventory.replicas_that_fit("none", 1) == 0


@given(
    st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("xyz"), st.integers(0, 9)), max_size=12),
    st.lists(
        st.dictionaries(st.sampled_from(("zone", "rack")), st.sampled_from("xyz"), max_size=2),
        max_size=4,
        unique_by=lambda labels: tuple(sorted(labels.items())),
    ),
)
def test_overlapping_selectors_never_count_a_gpu_twice(
    places: list[tuple[str, str, int]], selectors: list[dict[str, str]]
) -> None:
    nodes = [node(f"n{i}", gpus=g, zone=z, rack=r) for i, (z, r, g) in enumerate(places)]
    pools = {PoolKey(gpu_type="A", selector=tuple(sorted(s.items()))): [target()] for s in selectors}
    inventory = counted(nodes, pools=pools)
    selected = {
        one.name: [p for p in pools if all(one.labels.get(k) == v for k, v in p.selector)] for one in nodes
    }
    assert sum(inventory.gpus.values()) == sum(one.gpus for one in nodes if selected[one.name])
    for one in nodes:
        owners = [name for name, known in inventory.by_node.items() if one.name in known]
        assert len(owners) <= 1
        if one.gpus and selected[one.name]:
            pool = next(p for p in pools if p.name == owners[0])
            assert len(pool.selector) == max(len(p.selector) for p in selected[one.name])


def test_a_selector_that_repeats_the_product_label_is_the_plain_pool() -> None:
    spec = {
        "model": "m",
        "gpuType": "A",
        "priceUsdPerHour": 1.0,
        "provenance": {"kind": "measured"},
        "modelled": True,
    }
    plain = pool_key(GpuProfileSpec.model_validate(spec), LABEL, RULES.labels_of)
    for selector in ({LABEL: "A"}, {LABEL: "NVIDIA-A"}):
        same = GpuProfileSpec.model_validate({**spec, "nodeSelector": selector})
        assert pool_key(same, LABEL, RULES.labels_of) == plain
    zone = GpuProfileSpec.model_validate({**spec, "nodeSelector": {LABEL: "A", "zone": "x"}})
    assert pool_key(zone, LABEL, RULES.labels_of).name == f"A[{LABEL}=A,zone=x]"


def published(
    at: str,
    count: int,
    *,
    driver: str = "gpu.nvidia.com",
    generation: int = 1,
    pool: str = "",
    kind: str = "gpu",
) -> dict[str, Any]:
    devices = [{"name": f"d{i}", "attributes": {"type": {"string": kind}}} for i in range(count)]
    spec = {
        "nodeName": at,
        "driver": driver,
        "pool": {"name": pool or at, "generation": generation},
        "devices": devices,
    }
    return {"spec": spec}


def test_resource_slices_count_where_no_device_plugin_does() -> None:
    slices: dict[Key, Any] = {
        ("", "a"): published("dra", 4),
        ("", "b"): published("dra", 3),
        ("", "c"): published("both", 8),
        ("", "d"): published("dra", 2, kind="mig"),
        ("", "e"): {"spec": {"driver": "gpu.nvidia.com", "allNodes": True, "pool": {}, "devices": [{}]}},
    }
    devices = published_devices(slices, "gpu.nvidia.com")
    assert devices == {"dra": 7, "both": 8}
    inventory = counted([node("dra", gpus=0), node("both", gpus=2)], devices=devices)
    assert inventory.by_node == {"A": {"dra": 7, "both": 2}}


def test_only_the_newest_generation_of_a_drivers_pool_counts() -> None:
    slices: dict[Key, Any] = {
        ("", "old"): published("n", 8, generation=1),
        ("", "new"): published("n", 5, generation=2),
    }
    assert published_devices(slices, "gpu.nvidia.com") == {"n": 5}


def test_another_drivers_pool_of_the_same_name_does_not_make_ours_old() -> None:
    slices: dict[Key, Any] = {
        ("", "ours"): published("n", 8, generation=1),
        ("", "theirs"): published("n", 2, generation=7, driver="dra.net"),
    }
    assert published_devices(slices, "gpu.nvidia.com") == {"n": 8}
