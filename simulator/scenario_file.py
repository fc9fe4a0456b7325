"""Reads ``scenario/1`` files, YAML or JSON, into `simulator.scenario.Scenario` values.

It exists so that only this module knows the layout of the file, and so that everything that can be wrong in one is told
in one line with file, line and field. It looks nothing up: whether a GPU type or a model is known, and whether a trace
can be read, is found out by who runs the scenario. docs/simulation.md describes the fields for users.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from simulator.fleet import EventKind, Links, Overlap, QueueOrder, Role, Router, RouterKind, Scheduler
from simulator.scenario import (
    SHIPPED_TRACE,
    PlannerPolicy,
    PlannerRules,
    PowerRules,
    RateHistory,
    ReferenceInstance,
    Scenario,
    ScenarioEvent,
    ScenarioModel,
    ScenarioPool,
    StepModelChoice,
    StepModelKind,
    TraceChoice,
)
from simulator.yaml_document import read_yaml, source_of
from solver.domain.errors import InputError, Place
from solver.domain.slo import Slo, parse_slo

SCHEMA = "scenario/1"
GIB = 2.0**30
_SHOWN = 60

# -- the file, field by field; a field's description says what would be right

# Upper bounds keep sums and squares finite; no real cluster comes near them.
_Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False, description="a number from 0 to 1e10")]
_Seconds_above_0 = Annotated[float, Field(gt=0, le=1e10, allow_inf_nan=False)]
_Between = Annotated[
    float, Field(ge=1, le=1e6, allow_inf_nan=False, description="a number from 1 to 1e6 seconds")
]
_Watts = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
_Bandwidth = Annotated[float, Field(ge=1e-6, le=1e9, allow_inf_nan=False)]
_Scale = Annotated[
    float, Field(ge=1e-9, le=1e9, allow_inf_nan=False, description="a number from 1e-9 to 1e9")
]
_Count = Annotated[int, Field(ge=1, description="a whole number of at least 1")]
_Count_or_0 = Annotated[int, Field(ge=0, description="a whole number of at least 0")]
_Instances = Annotated[int, Field(ge=0, le=32_767, description="a whole number from 1 to 32767")]
_Gpus = Annotated[int, Field(ge=1, le=1024, description="a whole number from 1 to 1024")]
_Batch = Annotated[int, Field(ge=1, le=8192, description="a whole number from 1 to 8192")]
_Tokens = Annotated[int, Field(ge=1, le=1 << 20, description="a whole number from 1 to 1048576")]
_Blocks = Annotated[int, Field(ge=0, le=10_000_000, description="a whole number from 0 to 10000000")]
_Text = Annotated[str, Field(min_length=1, description="a text")]
_Name = Annotated[str, Field(pattern=r'^[^\s,"]+$', description="a name without spaces, commas and quotes")]
_Flag = Annotated[bool, Field(description="true or false")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Model(_Part):
    name: _Name
    model: _Text
    precision: _Text | None = Field(
        default=None, description="a precision as bf16 or fp8, or null for the model's own"
    )


class _Pool(_Part):
    name: _Name
    gpu_type: _Text
    gpus_per_instance: _Gpus
    count: _Instances
    role: Literal["prefill", "decode", "both", "mixed"] = Field(
        default="both", description="prefill, decode or both"
    )
    model: _Text | None = Field(default=None, description="the name of one of the models")
    power_cap_w_per_gpu: _Watts | None = Field(
        default=None, description="watts above 0 (at most 1e12), or null for no cap"
    )
    start_s: _Seconds = 0.0
    drain_s: _Seconds = 0.0
    longest_prompt_tokens: _Tokens | None = Field(
        default=None, description="a whole number of tokens, or null for prompts of any length"
    )


class _StepModel(_Part):
    kind: Literal["splitwise-compat", "table-kv", "physics", "blis-compat", "fitted"] | None = Field(
        default=None, description="one of splitwise-compat, table-kv, physics, blis-compat, fitted"
    )
    table: _Text | None = Field(default=None, description="a profile file, or the name of a shipped profile")
    fit: _Text | None = Field(default=None, description="a file with fitted coefficients")


class _Scheduler(_Part):
    max_batch: _Batch = 512
    max_batch_tokens: _Tokens = 2048
    chunked_prefill: _Flag = True
    max_preemptions: _Batch = 4
    order: Literal["fcfs", "priority"] = Field(default="fcfs", description="fcfs or priority")
    priorities: dict[str, _Count_or_0] = Field(
        default_factory=dict, description="a whole number of at least 0 for each class, 0 served first"
    )


class _Router(_Part):
    kind: Literal["round-robin", "random", "jsq", "mixed-pool", "least-kv", "prefix-aware"] = Field(
        default="jsq", description="one of round-robin, random, jsq, mixed-pool, least-kv, prefix-aware"
    )
    prompt_limit_tokens: _Tokens = 8192


class _Kv(_Part):
    link_gib_per_s: _Bandwidth = Field(default=200.0, description="a bandwidth from 1e-6 to 1e9 GiB/s")
    contention: _Flag = True
    overlap: Literal["none", "layerwise"] = Field(default="layerwise", description="none or layerwise")
    prefix_cache_blocks: _Blocks = 0
    block_tokens: _Tokens = 512


class _Reference(_Part):
    gpu_type: _Text
    gpus: _Gpus


class _Power(_Part):
    budget_w: _Watts | None = Field(
        default=None, description="watts above 0 (at most 1e12), or null for no budget"
    )
    policy: Literal["none", "caps"] = Field(
        default="none", description="none, or caps with a budget and a planner"
    )


class _Event(_Part):
    t_s: _Seconds
    kind: Literal["instance-down", "instance-up", "instance-drain", "cap"] = Field(
        description="one of instance-down, instance-up, instance-drain, cap"
    )
    pool: _Text
    index: _Count_or_0 | None = Field(
        default=None, description="the number of an instance in the pool, from 0, or null for all"
    )
    value: _Watts | None = Field(
        default=None, description="for a cap, watts per GPU above 0 (at most 1e12), or null to lift it"
    )


class _History(_Part):
    file: _Text = Field(description="a file with windows of rates: model,t_s,rate_rps")
    service: _Text | None = Field(default=None, description="the name of a series of that file")
    until_s: _Seconds | None = Field(
        default=None, description="the second of the file at which the trace begins, or null for its end"
    )
    scale: _Scale = 1.0


class _Planner(_Part):
    policy: Literal["ballast", "static", "hpa", "oracle"] = Field(
        default="ballast", description="one of ballast, static, hpa, oracle"
    )
    mode: Literal["auto"] = Field(default="auto", description="auto: decisions are applied")
    interval_s: _Between = PlannerRules().interval_s
    start_s: _Seconds = PlannerRules().start_s
    drain_s: _Seconds = PlannerRules().drain_s
    horizon_s: _Between | None = Field(
        default=None, description="a number from 1 to 1e6, or null for start_s + interval_s"
    )
    window_s: _Between = PlannerRules().window_s
    judged_window_s: _Between = PlannerRules().judged_window_s
    sample_s: _Between = PlannerRules().sample_s
    stabilisation_s: _Seconds = 300.0
    min_interval_s: _Seconds = 300.0
    headroom_ratio: float = Field(
        default=0.1, ge=0, lt=1, allow_inf_nan=False, description="a number from 0 to below 1"
    )
    change_s: _Seconds = PlannerRules().change_s
    target_ratio: float = Field(
        default=0.7, gt=0, le=1, allow_inf_nan=False, description="a number above 0, at most 1"
    )
    forecast: _Flag = True
    violations: float = Field(
        default=PlannerRules().violations,
        ge=1e-4,
        le=0.25,
        allow_inf_nan=False,
        description="a probability from 0.0001 to 0.25",
    )
    rehearse: _Flag = False
    limits: dict[str, _Count_or_0] = Field(
        default_factory=dict, description="a number of GPUs for each GPU type, as {H100-SXM: 64}"
    )
    history: _History | None = Field(
        default=None, description="a table as {file: window_rates.csv, service: m-large}, or null"
    )
    sizes: _Text | None = Field(default=None, description=f"a trace file, {SHIPPED_TRACE!r}, or null")


class _Trace(_Part):
    file: _Text | None = Field(default=None, description=f"a trace file, {SHIPPED_TRACE!r}, or null")
    scale: _Scale = 1.0
    warm_up_s: _Seconds = 0.0
    duration_s: _Seconds_above_0 | None = Field(
        default=None, description="seconds above 0 (at most 1e10), or null for the whole trace"
    )


class _Document(_Part):
    schema_: Literal["scenario/1"] = Field(alias="schema", description=f"schema: {SCHEMA}")
    name: _Text | None = Field(default=None, description="a text")
    description: str | None = Field(default=None, description="a text")
    models: list[_Model] = Field(min_length=1, description="a list of at least one model")
    pools: list[_Pool] = Field(min_length=1, description="a list of at least one pool")
    step_model: _StepModel = Field(default=_StepModel(), description="a table as {kind: table-kv}")
    scheduler: _Scheduler = Field(default=_Scheduler(), description="a table as {max_batch: 512}")
    router: _Router = Field(default=_Router(), description="a table as {kind: jsq}")
    kv: _Kv = Field(default=_Kv(), description="a table as {link_gib_per_s: 200}")
    slo: _Text | None = Field(default=None, description="targets as ttft_p99=1.0,tbt_p99=0.05, or null")
    reference_instance: _Reference | None = Field(
        default=None, description="a table as {gpu_type: A100-80-SXM, gpus: 8}, or null"
    )
    power: _Power = Field(default=_Power(), description="a table as {budget_w: 100000}")
    planner: _Planner | None = Field(
        default=None, description="a table as {interval_s: 60, start_s: 120}, or null"
    )
    events: list[_Event] = Field(default_factory=list, description="a list of events")
    trace: _Trace = Field(default=_Trace(), description="a table as {file: trace.csv}")


# -- reading


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioDocument:
    """A scenario file as plain values, before it is checked; what sweeps change."""

    values: Mapping[str, Any]
    source: str
    folder: Path
    """Relative paths in it start here."""
    lines: Mapping[str, int] = field(default_factory=dict)
    """Line of each field that stands in the file."""


def read_scenario(path: str | Path) -> Scenario:
    """Read and check a scenario; ``-`` is standard input.

    Raises
    ------
    InputError
        One line with file, line and field for the first thing that is wrong.
    """
    return scenario_of(read_scenario_document(path))


def read_scenario_document(path: str | Path) -> ScenarioDocument:
    """Read a scenario file without checking its fields; raises as `read_scenario` does."""
    values, lines = read_yaml(path, what="scenario")
    source = source_of(path)
    if not isinstance(values, dict):
        raise InputError(
            f"{_shown(values)} is not a scenario",
            where=source,
            right=f"a table that begins with schema: {SCHEMA}",
        )
    folder = Path() if str(path) == "-" else Path(path).parent
    return ScenarioDocument(values=values, source=source, folder=folder, lines=lines)


# -- checking


def scenario_of(document: ScenarioDocument) -> Scenario:
    """Check a document; raises as `read_scenario` does."""
    try:
        checked = _Document.model_validate(dict(document.values))
    except ValidationError as error:
        raise _told(error, document) from None
    return _Checker(document).scenario(checked)


def _told(error: ValidationError, document: ScenarioDocument) -> InputError:
    """Turn the first thing that pydantic found into our one line; a misspelt name comes before what it lacks."""
    found = error.errors(include_url=False, include_context=False)
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    location = tuple(part for part in first["loc"] if part != "[key]")
    path = _path(location)
    place = Place(document.source, _line(document, path), path or None)
    if first["type"] == "extra_forbidden":
        names = _names(_field_of(location[:-1]))
        return _unknown("field", str(location[-1]), names, place)
    described = _field_of(location)
    right = described.description if isinstance(described, FieldInfo) else f"a table with schema: {SCHEMA}"
    what = "missing" if first["type"] == "missing" else f"got {_shown(first['input'])}"
    return InputError(what, where=place, right=right)


def _path(location: Sequence[str | int]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text


def _line(document: ScenarioDocument, path: str) -> int | None:
    """Find the line of a field, or of the nearest one around it that stands in the file."""
    while path and path not in document.lines:
        path = re.sub(r"(\.[^.\[\]]*|\[\d+\]|^[^.\[\]]*)$", "", path)
    return document.lines.get(path)


def _parts_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the tables that an annotation speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _parts_of(inner)


def _field_of(location: Sequence[str | int]) -> FieldInfo | type[BaseModel] | None:
    """Find what the schema says of a place: its deepest field, or the document."""
    at: FieldInfo | type[BaseModel] = _Document
    for part in location:
        if isinstance(part, int):
            continue
        table = at if isinstance(at, type) else next(_parts_of(at.annotation), None)
        inner = None if table is None else _fields(table).get(part)
        if inner is None:
            break
        at = inner
    return at


def _fields(table: type[BaseModel]) -> dict[str, FieldInfo]:
    return {info.alias or name: info for name, info in table.model_fields.items()}


def _names(at: FieldInfo | type[BaseModel] | None) -> list[str]:
    if isinstance(at, FieldInfo):
        at = next(_parts_of(at.annotation), None)
    return [] if at is None else list(_fields(at))


def _unknown(kind: str, name: str, known: Sequence[str], place: Place) -> InputError:
    close = difflib.get_close_matches(name, known, 1)
    right = f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}"
    return InputError(f"unknown {kind} {_shown(name)}", where=place, right=right)


def _shown(value: Any) -> str:
    """Show a value in an error: short, on one line."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = ascii(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


class _Checker:
    """What no single field can say: names that must agree, roles that belong together."""

    def __init__(self, document: ScenarioDocument) -> None:
        self._document = document

    def fail(self, what: str, path: str, right: str) -> NoReturn:
        raise InputError(what, where=self.place(path), right=right)

    def place(self, path: str) -> Place:
        return Place(self._document.source, _line(self._document, path), path)

    def file(self, name: str) -> str:
        """Make a path of the file start at the file's own folder."""
        return str(self._document.folder / name)

    def scenario(self, given: _Document) -> Scenario:
        for kind, parts in (("models", given.models), ("pools", given.pools)):
            names = [part.name for part in parts]
            for index, name in enumerate(names):
                if name in names[:index]:
                    self.fail(f"{name!r} stands twice", f"{kind}[{index}].name", "a name of its own")
        models = tuple(
            ScenarioModel(name=model.name, model=model.model, precision=model.precision)
            for model in given.models
        )
        pools = tuple(self.pool(pool, f"pools[{p}]", models) for p, pool in enumerate(given.pools))
        for p, pool in enumerate(pools):
            if pool.count < 1 and given.planner is None:
                self.fail("got 0", f"pools[{p}].count", "a whole number from 1 to 32767")
        self.roles(models, pools)
        self.lengths(given, models, pools)
        trace = given.trace
        if trace.duration_s is not None and trace.warm_up_s >= trace.duration_s:
            self.fail(
                f"a warm-up of {trace.warm_up_s:g} s leaves nothing of {trace.duration_s:g} s",
                "trace.warm_up_s",
                "a warm-up shorter than duration_s",
            )
        slo = Slo() if given.slo is None else parse_slo(given.slo, where=self.place("slo"))
        reference = given.reference_instance
        if slo.relative and reference is None:
            self.fail(
                f"missing, and the SLO {slo} is relative",
                "reference_instance",
                "a table as {gpu_type: A100-80-SXM, gpus: 8}",
            )
        name = given.name or Path(self._document.source).name.split(".")[0]
        return Scenario(
            name=name,
            models=models,
            pools=pools,
            step_model=self.step_model(given.step_model),
            scheduler=self.scheduler(given.scheduler),
            priorities=dict(given.scheduler.priorities),
            router=Router(
                kind=RouterKind(given.router.kind), prompt_limit_tokens=given.router.prompt_limit_tokens
            ),
            links=Links(
                bytes_per_s=given.kv.link_gib_per_s * GIB,
                contention=given.kv.contention,
                overlap=Overlap(given.kv.overlap),
                prefix_cache_blocks=given.kv.prefix_cache_blocks,
                block_tokens=given.kv.block_tokens,
            ),
            slo=slo,
            reference=None
            if reference is None
            else ReferenceInstance(gpu_type=reference.gpu_type, gpus=reference.gpus),
            power=self.power(given),
            planner=None if given.planner is None else self.planner(given.planner, given),
            events=tuple(self.event(event, f"events[{e}]", pools) for e, event in enumerate(given.events)),
            trace=TraceChoice(
                file=trace.file if trace.file in {None, SHIPPED_TRACE} else self.file(str(trace.file)),
                scale=trace.scale,
                warm_up_s=trace.warm_up_s,
                duration_s=trace.duration_s,
            ),
            source=self._document.source,
            lines=self._document.lines,
        )

    def pool(self, given: _Pool, path: str, models: Sequence[ScenarioModel]) -> ScenarioPool:
        names = [model.name for model in models]
        model = given.model
        if model is None:
            if len(names) > 1:
                self.fail(
                    "missing, and there are several models", f"{path}.model", f"one of {', '.join(names)}"
                )
            model = names[0]
        elif model not in names:
            raise _unknown("model", model, names, self.place(f"{path}.model"))
        return ScenarioPool(
            name=given.name,
            gpu_type=given.gpu_type,
            gpus_per_instance=given.gpus_per_instance,
            count=given.count,
            role=Role.BOTH if given.role == "mixed" else Role(given.role),
            model=model,
            power_cap_w_per_gpu=given.power_cap_w_per_gpu,
            start_s=given.start_s,
            drain_s=given.drain_s,
            longest_prompt_tokens=given.longest_prompt_tokens,
        )

    def lengths(
        self, given: _Document, models: Sequence[ScenarioModel], pools: Sequence[ScenarioPool]
    ) -> None:
        """Check that prompts of every length find all their phases, and that nothing else sends them elsewhere."""
        first = next((p for p, pool in enumerate(pools) if pool.longest_prompt_tokens is not None), None)
        if first is None:
            return
        path = f"pools[{first}].longest_prompt_tokens"
        if given.planner is not None:
            self.fail("a planner routes by itself", path, "null, or planner: null")
        if given.step_model.kind == "splitwise-compat":
            self.fail("splitwise-compat knows no routing by length", path, "null, or another step model")
        for model in models:
            roles: dict[int | None, set[Role]] = {}
            for pool in pools:
                if pool.model == model.name:
                    roles.setdefault(pool.longest_prompt_tokens, set()).add(pool.role)
            if None not in roles:
                right = "one pool of the model with null"
                self.fail(f"no pool takes the longest prompts of {model.name!r}", path, right)
            for p, pool in enumerate(pools):
                alone = roles.get(pool.longest_prompt_tokens, set()) - {Role.BOTH}
                if pool.model == model.name and len(alone) == 1 and pool.role in alone:
                    self.fail(
                        f"only {pool.role} pools take prompts of this length",
                        f"pools[{p}].longest_prompt_tokens",
                        "the same bound for prefill and decode pools that belong together",
                    )

    def roles(self, models: Sequence[ScenarioModel], pools: Sequence[ScenarioPool]) -> None:
        for m, model in enumerate(models):
            first = {pool.role: p for p, pool in reversed(list(enumerate(pools))) if pool.model == model.name}
            if not first:
                self.fail(f"no pool serves {model.name!r}", f"models[{m}]", "a pool with this model")
            if Role.PREFILL in first and Role.DECODE not in first:
                self.fail(
                    f"a prefill pool of {model.name!r} without a decode pool",
                    f"pools[{first[Role.PREFILL]}].role",
                    "a decode pool of the same model, or role both",
                )
            if Role.DECODE in first and Role.PREFILL not in first:
                self.fail(
                    f"a decode pool of {model.name!r} without a prefill pool",
                    f"pools[{first[Role.DECODE]}].role",
                    "a prefill pool of the same model, or role both",
                )

    def power(self, given: _Document) -> PowerRules:
        caps = given.power.policy == "caps"
        if caps and (given.power.budget_w is None or given.planner is None):
            self.fail(
                "caps without budget and planner", "power.policy", "budget_w and a planner, or policy: none"
            )
        return PowerRules(budget_w=given.power.budget_w, caps=caps)

    def planner(self, given: _Planner, document: _Document) -> PlannerRules:
        """Check what a planner can work with: prompts of any length, times that fit one another."""
        for p, pool in enumerate(document.pools):
            if pool.longest_prompt_tokens is not None:
                self.fail(
                    "a planner with a longest prompt",
                    f"pools[{p}].longest_prompt_tokens",
                    "null, or planner: null",
                )
        if document.events:
            self.fail("events beside a planner", "events[0]", "events: [], or planner: null")
        if document.step_model.kind in {"splitwise-compat", "blis-compat"}:
            self.fail(
                f"a planner with {document.step_model.kind}", "step_model.kind", "table-kv, physics or fitted"
            )
        if document.slo is None:
            self.fail("missing, and the planner needs an SLO", "slo", "targets as ttft_p99=1.0,tbt_p99=0.05")
        if given.horizon_s is not None and given.horizon_s <= given.start_s:
            self.fail(
                f"{given.horizon_s:g} s, and an instance takes {given.start_s:g} s to start",
                "planner.horizon_s",
                "more than start_s",
            )
        if given.history is not None and len(document.models) > 1:
            self.fail("one history for several models", "planner.history", "one model, or history: null")
        types = {pool.gpu_type for pool in document.pools}
        for name in given.limits:
            if name not in types:
                raise _unknown("GPU type", name, sorted(types), self.place(f"planner.limits.{name}"))
        history = given.history
        return PlannerRules(
            policy=PlannerPolicy(given.policy),
            interval_s=given.interval_s,
            start_s=given.start_s,
            drain_s=given.drain_s,
            horizon_s=given.horizon_s,
            window_s=given.window_s,
            judged_window_s=given.judged_window_s,
            sample_s=given.sample_s,
            stabilisation_s=given.stabilisation_s,
            min_interval_s=given.min_interval_s,
            headroom_ratio=given.headroom_ratio,
            change_s=given.change_s,
            target_ratio=given.target_ratio,
            forecast=given.forecast,
            violations=given.violations,
            rehearse=given.rehearse,
            limits=dict(given.limits),
            history=None
            if history is None
            else RateHistory(
                file=self.file(history.file),
                service=history.service,
                until_s=history.until_s,
                scale=history.scale,
            ),
            sizes=given.sizes if given.sizes in {None, SHIPPED_TRACE} else self.file(str(given.sizes)),
        )

    def step_model(self, given: _StepModel) -> StepModelChoice:
        kind = None if given.kind is None else StepModelKind(given.kind)
        if given.table is not None and kind not in {None, StepModelKind.TABLE_KV}:
            self.fail(f"{kind} reads no table", "step_model.table", "kind table-kv, or no table")
        if given.fit is not None and kind is not StepModelKind.FITTED:
            self.fail("a fit without kind fitted", "step_model.fit", "kind fitted, or no fit")
        if kind is StepModelKind.FITTED and given.fit is None:
            self.fail("missing, and kind is fitted", "step_model.fit", "a file with fitted coefficients")
        table = given.table
        if table is not None and (self._document.folder / table).is_file():
            table = self.file(table)
        return StepModelChoice(
            kind=kind, table=table, fit=None if given.fit is None else self.file(given.fit)
        )

    def scheduler(self, given: _Scheduler) -> Scheduler:
        if given.chunked_prefill and given.max_batch_tokens <= given.max_batch:
            self.fail(
                f"{given.max_batch_tokens} tokens leave a full batch of {given.max_batch} no room for prompts",
                "scheduler.max_batch_tokens",
                "more tokens than max_batch, or chunked_prefill: false",
            )
        order = QueueOrder(given.order)
        if given.priorities and order is not QueueOrder.PRIORITY:
            self.fail("priorities without order priority", "scheduler.priorities", "order: priority")
        return Scheduler(
            max_batch=given.max_batch,
            max_batch_tokens=given.max_batch_tokens,
            chunked_prefill=given.chunked_prefill,
            max_preemptions=given.max_preemptions,
            order=order,
        )

    def event(self, given: _Event, path: str, pools: Sequence[ScenarioPool]) -> ScenarioEvent:
        counts = {pool.name: pool.count for pool in pools}
        if given.pool not in counts:
            raise _unknown("pool", given.pool, list(counts), self.place(f"{path}.pool"))
        if given.index is not None and given.index >= counts[given.pool]:
            self.fail(
                f"got {given.index}, and the pool has {counts[given.pool]} instances",
                f"{path}.index",
                f"0 to {counts[given.pool] - 1}",
            )
        kind = EventKind(given.kind)
        if given.value is not None and kind is not EventKind.CAP:
            self.fail(f"a value for {kind}", f"{path}.value", "a value with kind cap only")
        return ScenarioEvent(
            time_s=given.t_s, kind=kind, pool=given.pool, index=given.index, value_w=given.value
        )
