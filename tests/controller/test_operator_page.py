"""docs/operator.md names every field, reason, metric, annotation and event that there is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import Counter, Gauge, Histogram
from pydantic import BaseModel

from controller.operator import annotated, brain, views
from controller.operator.experts import outputs, restart
from controller.operator.metrics import Metrics
from controller.operator.power import loop
from controller.operator.rehearsal import question
from controller.resources.expert_placement import ExpertPhase, ExpertPlacementSpec
from controller.resources.gpu_profile import GpuProfileSpec
from controller.resources.kinds import KINDS
from controller.resources.model_service import Mode, ModelServiceSpec
from controller.resources.plan import Action, Phase, PlanSpec
from controller.resources.power_domain import PowerDomainSpec, PowerState
from solver.domain.gpu_mix import InfeasibleKind, PlanStatus
from solver.domain.moe import ExpertPlanStatus

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operator.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
NAMED = set(re.findall(r"[\w./-]+", " ".join(re.findall(r"`([^`]+)`", PROSE))))
OPERATOR = ROOT / "controller" / "operator"
OF_AGENTS = {"NoPermission"}
"""What an agent says of a GPU: docs/agent.md."""
REASON = re.compile(r"^[A-Z][a-z]+([A-Z][a-z]+)*$")


def camel(text: str) -> str:
    return "".join(part.capitalize() for part in re.split("[- ]", text))


def reasons() -> Iterator[str]:
    """Find reasons as they stand in the code: of findings, traffic, conflicts and held traffic."""
    for name in ("status", "sampler", "traffic", "outlook", "profile_status"):
        for node in ast.walk(ast.parse((OPERATOR / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "reason":
                for inner in ast.walk(node.value):
                    if isinstance(inner, ast.Constant) and REASON.match(str(inner.value)):
                        yield str(inner.value)
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "_held":
                reason = node.args[1]
                assert isinstance(reason, ast.Constant)
                yield str(reason.value)
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "reason":
                assert isinstance(node.value, ast.Constant)
                yield str(node.value.value)
    for node in ast.walk(ast.parse((OPERATOR / "views.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            first = node.value.elts[0]
            if isinstance(first, ast.Constant) and getattr(node.targets[0], "id", "") == "conflict":
                yield str(first.value)


def test_every_reason_is_explained() -> None:
    found = set(reasons())
    assert {"Stated", "SeriesMissing", "TraceInvalid", "FieldOwned", "WaitingForApproval", "NoNodes"} <= found
    found |= {brain.CRASHED, brain.OVERRUN, brain.MEMORY}
    found |= {text for text in vars(question).values() if isinstance(text, str) and REASON.match(text)}
    found |= {camel(kind) for kind in get_args(InfeasibleKind)}
    found |= {camel(status) for status in PlanStatus if status is not PlanStatus.INFEASIBLE}
    found |= set(Phase) | set(Mode) | set(Action)
    assert sorted(found - NAMED) == []


def test_every_reason_of_experts_is_explained() -> None:
    found = set()
    for path in (OPERATOR / "experts").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and REASON.match(text) and len(re.findall("[A-Z]", text)) > 1:
                found.add(text)
    assert {"MoveRefused", "LoadInvalid", "EngineRefuses", "ConfigMapTaken", "CheckFailed"} <= found
    found |= {phase.value for phase in ExpertPhase} | {camel(status) for status in ExpertPlanStatus}
    assert sorted(found - NAMED) == []


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        path = f"{prefix}{info.alias or name}"
        parts = [info.annotation, *get_args(info.annotation)]
        parts += [inner for part in parts for inner in get_args(part)]
        inner = next((p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)), None)
        if inner is None:
            yield path
        else:
            yield from fields(inner, f"{path}.")


@pytest.mark.parametrize("model", [ModelServiceSpec, GpuProfileSpec, PlanSpec, ExpertPlacementSpec])
def test_every_field_is_in_a_table(model: type[BaseModel]) -> None:
    words = {part for name in NAMED for part in name.split(".")}
    missing = [path for path in fields(model) if path.rpartition(".")[2] not in words]
    if model is PlanSpec:  # written by Ballast: its parts are told in a sentence
        missing = [path for path in missing if "." not in path]
    assert missing == []


def test_every_field_reason_and_annotation_of_power_is_on_its_page() -> None:
    text = (ROOT / "docs" / "power-cluster.md").read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    named = set(re.findall(r"[\w./-]+", " ".join(re.findall(r"`([^`]+)`", text))))
    words = {part for name in named for part in name.split(".")}
    missing = [path for path in fields(PowerDomainSpec) if path.rpartition(".")[2] not in words]
    assert missing == []
    found = set()
    for path in (OPERATOR / "power").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            word = node.value if isinstance(node, ast.Constant) else None
            if isinstance(word, str) and REASON.match(word) and len(re.findall("[A-Z]", word)) > 1:
                found.add(word)
    assert {"NodeTaken", "AgentsSilent", "NotEnforced", "BudgetBelowIdle"} <= found
    assert sorted(found - named - OF_AGENTS) == []
    assert {loop.FAILOVER, loop.RELEASE, loop.FINALIZER} <= named
    assert {state.value for state in PowerState} <= named


def test_every_kind_metric_annotation_and_event_is_named() -> None:
    assert all(f"## {kind.kind}" in PAGE for kind in KINDS)
    metrics = [m for m in vars_of(Metrics()) if isinstance(m, Counter | Gauge | Histogram)]
    assert len(metrics) > 10
    for metric in metrics:
        name = next(iter(metric.describe())).name
        name = f"{name}_total" if isinstance(metric, Counter) else name
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}`")]
        told = [word.strip() for word in row.split("|")[2].split(",") if word.strip()]
        assert told == list(metric._labelnames), name
    annotations = {
        value
        for module in (annotated, views, outputs, restart)
        for value in vars(module).values()
        if isinstance(value, str) and value.startswith("ballast.dev/") and not value.endswith("v1alpha1")
    }
    assert len(annotations) == 11
    assert annotations <= NAMED
    events = set()
    for path in OPERATOR.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        events |= set(re.findall(r'"(?:Normal|Warning)",\s*"(\w+)"', text))
    assert {"PlanMade", "Released", "Adopted"} <= events
    assert sorted(events - NAMED) == []


def vars_of(metrics: Metrics) -> Iterator[object]:
    for name in Metrics.__slots__:
        yield getattr(metrics, name)
