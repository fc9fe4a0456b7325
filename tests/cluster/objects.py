"""Objects made from our own definitions: valid ones near every bound, and broken ones made of them by mutation.

It exists so that the API server and the operator meet what nobody thought of. A strategy follows the structural
schema; what only a rule says (``x-kubernetes-validations``) is repaired by a function named after the rule's message,
so a rule without one fails here at once. Nothing here judges.
"""

import copy
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from controller.resources.generate import SPELLED, structural
from controller.resources.kinds import Kind

Object = dict[str, Any]
Drawn = SearchStrategy[Any]
UNICODE = st.characters(codec="utf-8")
TIMES = (
    "2026-11-21T10:00:00Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "2026-11-21T10:00:00.123456789+13:45",
)
DATES = ("2026-11-21", "0001-01-01", "9999-12-31", "2024-02-29")
LONGEST = 2**13
"""What is longer (a map of experts) has tests of its own."""
ITEMS = 4
"""So many different items are made of a list; longer lists repeat them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Values that fields take, by ``owner.field``, so that objects meet each other and nobody else."""

    often: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Taken as often as not."""
    only: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Nothing else is taken."""


NO_NAMES = Names()


def valid_specs(kind: Kind, names: Names = NO_NAMES) -> Drawn:
    """Return specs that the server must take."""
    return _of(structural(kind.spec.model_json_schema(by_alias=True)), "spec", names)


def _of(schema: Object, name: str, names: Names) -> Drawn:
    if name in names.only:
        return st.sampled_from(list(names.only[name]))
    made = _plain(schema, name, names)
    if name in names.often:
        made = st.one_of(st.sampled_from(list(names.often[name])), made)
    return made


def _plain(schema: Object, name: str, names: Names) -> Drawn:
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):  # a time
        return st.one_of(_integers(schema), st.sampled_from(("60", "90s", "1440m", "24h", "86400")))
    kind = schema["type"]
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        return _integers(schema)
    if kind == "number":
        return _numbers(schema)
    if kind == "string":
        return _texts(schema)
    if kind == "array":
        return _lists(schema, name, names)
    if "additionalProperties" in schema:
        return _maps(schema, name, names)
    return _objects(schema, name.rpartition(".")[2], names)


def _integers(schema: Object) -> Drawn:
    low = int(schema.get("minimum", -(2**53))) + bool(schema.get("exclusiveMinimum"))
    high = int(schema.get("maximum", 2**53)) - bool(schema.get("exclusiveMaximum"))
    edges = {low, high, min(high, low + 1), max(low, high - 1), *(n for n in (1, 2, 100) if low <= n <= high)}
    return st.one_of(st.sampled_from(sorted(edges)), st.integers(low, high))


def _numbers(schema: Object) -> Drawn:
    low, high = float(schema.get("minimum", -1e300)), float(schema.get("maximum", 1e300))
    if schema.get("exclusiveMinimum"):
        low = math.nextafter(low, math.inf)
    for entry in schema.get("x-kubernetes-validations", ()):
        low = max(low, float(entry["rule"].removeprefix("self >= ")))
    if schema.get("exclusiveMaximum"):
        high = math.nextafter(high, -math.inf)
    near = (
        low,
        high,
        math.nextafter(low, math.inf),
        math.nextafter(high, -math.inf),
        1e-300,
        1e-9,
        0.1,
        1,
        -0.0,
    )
    edges = [value for value in near if low <= value <= high]
    return st.one_of(st.sampled_from(edges), st.floats(low, high))


def _texts(schema: Object) -> Drawn:
    most, least = int(schema.get("maxLength", 64)), int(schema.get("minLength", 0))
    if schema.get("format") == "date-time":
        return st.sampled_from(TIMES)
    if schema.get("format") == "date":
        return st.sampled_from(DATES)
    pattern = schema.get("pattern")
    forbidden = ""
    for entry in schema.get("x-kubernetes-validations", ()):
        rule = entry["rule"]
        if rule.startswith(SPELLED):
            pattern = json.loads(rule[len(SPELLED) : -1])
        elif rule.startswith("!self.contains("):
            forbidden = json.loads(rule[len("!self.contains(") : -1])
        else:
            raise NotImplementedError(f"a text cannot be made for the rule {rule}")
    longest = [letter * min(most, LONGEST) for letter in ("a", "A", "\U0001f600", "/", " ")]
    if pattern is None:
        made = st.text(UNICODE, min_size=least, max_size=min(most, 24))
        return st.one_of(made, st.sampled_from(longest))
    matching = re.compile(pattern)
    known = [text for text in longest if matching.fullmatch(text)]
    made = st.from_regex(matching, fullmatch=True, alphabet=UNICODE).filter(
        lambda text: least <= len(text) <= most and not (forbidden and forbidden in text)
    )
    return st.one_of(made, st.sampled_from(known)) if known else made


@st.composite
def _lists(draw: st.DrawFn, schema: Object, name: str, names: Names) -> list[Any]:
    least, most = int(schema.get("minItems", 0)), int(schema.get("maxItems", 8))
    item = _of(schema["items"], name, names)
    size = draw(
        st.one_of(
            st.integers(least, min(most, max(least, ITEMS))),
            st.sampled_from([least, most, max(least, most // 2)]),
        )
    )
    different = [draw(item) for _ in range(min(size, ITEMS))]
    items = [copy.deepcopy(different[index % len(different)]) for index in range(size)]
    for index, one in enumerate(items[ITEMS:], ITEMS):
        _vary(one, schema["items"], index)
    for key in schema.get("x-kubernetes-list-map-keys", ()):
        _make_unique(items, [key])
    return items


def _vary(item: Any, schema: Object, index: int) -> None:
    """Move the whole numbers of a repeated item within their bounds, where no rule ties them to each other."""
    if schema["type"] != "object" or "x-kubernetes-validations" in schema:
        return
    for name, part in schema.get("properties", {}).items():
        if part["type"] == "integer" and name in item:
            low = int(part.get("minimum", 0)) + bool(part.get("exclusiveMinimum"))
            high = int(part.get("maximum", 2**53))
            item[name] = low + (item[name] - low + 7 * index) % (high - low + 1)


def _make_unique(items: Sequence[Object], way: Sequence[str]) -> None:
    """Let the values that lie at a path in every item differ."""
    seen: set[Any] = set()
    for index, one in enumerate(items):
        place = one
        for part in way[:-1]:
            place = place[part]
        fresh: Any = f"u{index}" if isinstance(place[way[-1]], str) else index
        while place[way[-1]] in seen:
            place[way[-1]] = fresh
            fresh = f"{fresh}u" if isinstance(fresh, str) else fresh + len(items)
        seen.add(place[way[-1]])


@st.composite
def _maps(draw: st.DrawFn, schema: Object, name: str, names: Names) -> Object:
    most = int(schema.get("maxProperties", 4))
    (rule,) = [entry["rule"] for entry in schema.get("x-kubernetes-validations", ())]
    key = re.search(r'key\.matches\(("(?:[^"\\]|\\.)*")\)', rule)
    if key is None:
        raise NotImplementedError(f"keys cannot be made for the rule {rule}")
    keys = st.from_regex(json.loads(key[1]), fullmatch=True, alphabet=UNICODE).filter(
        lambda text: len(text) <= 300
    )
    inside = name.rpartition(".")[2]
    if f"{inside}.key" in names.only:
        keys = st.sampled_from(list(names.only[f"{inside}.key"]))
    value = _of(schema["additionalProperties"], f"{inside}.value", names)
    made: Object = draw(st.dictionaries(keys, value, max_size=min(most, ITEMS)))
    return made


@st.composite
def _objects(draw: st.DrawFn, schema: Object, owner: str, names: Names) -> Object:
    required = set(schema.get("required", ()))
    made = {
        name: draw(_of(part, f"{owner}.{name}", names))
        for name, part in schema["properties"].items()
        if name in required or draw(st.booleans())
    }
    for entry in schema.get("x-kubernetes-validations", ()):
        REPAIRS[entry["message"]](draw, made, schema, names)
    return made


# -- rules ----------------------------------------------------------------------------------------------------------

Repair = Callable[[st.DrawFn, Object, Object, Names], None]


def _one_source(draw: st.DrawFn, made: Object, schema: Object, names: Names) -> None:
    source = draw(st.sampled_from(list(names.only.get("traffic.source", sorted(schema["properties"])))))
    kept = made.get(source, None) or draw(_of(schema["properties"][source], f"traffic.{source}", names))
    made.clear()
    made[source] = kept


def _known_version(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    groups = made["kind"] == "LeaderWorkerSet"
    made["apiVersion"] = "leaderworkerset.x-k8s.io/v1" if groups else "apps/v1"


def _least_first(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    if "maxReplicas" in made:
        made["minReplicas"] = min(made.get("minReplicas", 0), made["maxReplicas"])


def _different_targets(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    _make_unique(made["variants"], ["targetRef", "name"])


def _own_services(draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    if "httpRoute" in made and draw(st.booleans()):
        for index, variant in enumerate(made["variants"]):
            variant["service"] = f"s{index}"
    else:
        made.pop("httpRoute", None)


def _some_left(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    most = [variant.get("maxReplicas") for variant in made["variants"]]
    if None not in most:
        made["survive"] = min(made.get("survive", 0), max(0, sum(most) - 1))


def _nothing(_draw: st.DrawFn, _made: Object, _schema: Object, _names: Names) -> None:
    """Leave it: the rule speaks of a change, or another repair saw to it."""


def _rows_or_model(draw: st.DrawFn, made: Object, schema: Object, names: Names) -> None:
    if draw(st.booleans()):
        made.pop("throughput", None)
        made["modelled"] = True
    else:
        made["modelled"] = False
        if not made.get("throughput"):
            made["throughput"] = [draw(_of(schema["properties"]["throughput"]["items"], "throughput", names))]


def _timed(name: str, but_for: str) -> Repair:
    """Return a repair that gives a row the time that all roles but one must have."""

    def repair(draw: st.DrawFn, made: Object, schema: Object, names: Names) -> None:
        if made.get("role", "both") != but_for and name not in made:
            made[name] = draw(_of(schema["properties"][name], f"throughput.{name}", names))

    return repair


def _both_phases(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    """Let no phase be without the other."""
    roles = {variant.get("role", "both") for variant in made["variants"]}
    for lonely, missing in (("prefill", "decode"), ("decode", "prefill")):
        if missing not in roles:
            for variant in made["variants"]:
                if variant.get("role") == lonely:
                    variant["role"] = "both"


def _two_selectors(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    source = made["traffic"].get("prometheus")
    if source is not None and any(variant.get("role", "both") != "both" for variant in made["variants"]):
        for name in ("selector", "outputSelector"):
            source[name] = source.get(name) or 'a="b"'


def _idle_least(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    if "idleWatts" in made:
        made["idleWatts"] = min(made.values())


def _one_load(draw: st.DrawFn, made: Object, schema: Object, names: Names) -> None:
    sources = [name for name, part in schema["properties"].items() if part["type"] == "object"]
    source = draw(st.sampled_from(sources))
    kept = made.get(source, None) or draw(_of(schema["properties"][source], f"loadSource.{source}", names))
    for name in sources:
        made.pop(name, None)
    made[source] = kept


def _few_of_many(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    made["topK"] = min(made["topK"], made["experts"])


def _even_groups(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    if "expertGroups" in made:
        made["expertGroups"] = math.gcd(made["expertGroups"], made["experts"])


def _all_layers(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    if "decoderLayers" in made:
        made["decoderLayers"] = max(made["decoderLayers"], made.get("firstMoeLayer", 0) + made["moeLayers"])


def _ranks(draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    """Let GPUs, ranks and slots agree."""
    nodes = made["topology"].get("nodes", ())
    if sum(len(node["gpus"]) for node in nodes) > 4096:
        for node in nodes:
            del node["gpus"][1:]
    gpus = [gpu for node in nodes for gpu in node["gpus"]]
    if gpus:
        made["epSize"] = len(gpus)
    experts, ranks = made["modelRef"]["experts"], made["epSize"]
    made["redundantExperts"] = -experts % ranks
    stated = draw(st.booleans())
    for gpu in gpus:
        gpu.pop("slots", None)
        if stated:
            gpu["slots"] = (experts + made["redundantExperts"]) // ranks


def _somewhere(draw: st.DrawFn, made: Object, schema: Object, names: Names) -> None:
    if "nodes" not in made["topology"] and "targetRef" not in made:
        made["targetRef"] = draw(_of(schema["properties"]["targetRef"], "spec.targetRef", names))


def _restartable(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    if "targetRef" not in made and made.get("apply") == "rolloutRestart":
        made["apply"] = "none"


def _one_of_two(draw: st.DrawFn, made: Object, schema: Object, names: Names) -> None:
    kept = draw(st.sampled_from(["modelServiceRef", "experts"]))
    made.pop("experts" if kept == "modelServiceRef" else "modelServiceRef", None)
    if kept not in made:
        made[kept] = draw(_of(schema["properties"][kept], f"spec.{kept}", names))


def _own_steps(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    if "experts" in made:
        for name in ("steps", "desired", "routing"):
            made.pop(name, None)


def _with_target(draw: st.DrawFn, made: Object, schema: Object, names: Names) -> None:
    if made["action"] == "Restart" and "targetRef" not in made:
        made["targetRef"] = draw(_of(schema["properties"]["targetRef"], "step.targetRef", names))


def _custom_only(draw: st.DrawFn, made: Object, schema: Object, names: Names) -> None:
    constants = ("tauSeconds", "tripFactor")
    for name in constants:
        made.pop(name, None)
    if made.get("curve") == "custom":
        for name in constants:
            made[name] = draw(_of(schema["properties"][name], f"breaker.{name}", names))


def _one_way_to_name(draw: st.DrawFn, made: Object, schema: Object, names: Names) -> None:
    ways = ["nodes", "nodeSelector"]
    kept = draw(st.sampled_from(ways))
    for name in ways:
        if name != kept:
            made.pop(name, None)
    if kept not in made:
        made[kept] = draw(_of(schema["properties"][kept], f"members.{kept}", names))


def _ordered(*pair: str) -> Repair:
    """Return a repair that lets one number, or its default, be at most the other."""
    least, most = pair

    def repair(_draw: st.DrawFn, made: Object, schema: Object, _names: Names) -> None:
        default = schema["properties"][most].get("default")
        high = made.get(most, default)
        low = made.get(least, schema["properties"][least].get("default"))
        if high is not None and low > high:
            made[least], made[most] = high, low

    return repair


def _small_margin(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    made["uncapMargin"] = min(made.get("uncapMargin", 0.05), made.get("t1", 0.8) / 2)


def _above_idle(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    nodes = made.get("members", {}).get("nodes")
    if nodes is None:
        return
    server = {"fixedWatts": 1250.0, "wattsPerGpuWatt": 1.5, "gpus": 8, "gpuIdleWatts": 63.0} | made.get(
        "server", {}
    )
    idle_w = server["fixedWatts"] + server["wattsPerGpuWatt"] * server["gpus"] * server["gpuIdleWatts"]
    least_w = len(nodes) * idle_w + made["members"].get("staticWatts", 0.0)
    if least_w >= 1e9 / 1.01:
        made["members"]["staticWatts"] = 0.0
        del nodes[1:]
        least_w = idle_w
    made["budgetWatts"] = max(made["budgetWatts"], least_w * 1.01)


def _only_with(field_name: str, algorithm: str) -> Repair:
    def repair(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
        if made.get("algorithm", "guard") != algorithm:
            made.pop(field_name, None)

    return repair


def _told_or_trained(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    if "thresholds" in made:
        made.pop("train", None)


def _ending(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    made["deadline"], made["until"] = "2026-11-21T17:00:00Z", "2026-11-21T20:00:00Z"


def _has_members(_draw: st.DrawFn, made: Object, _schema: Object, _names: Names) -> None:
    if "members" not in made and made.get("level", "row") not in {"site", "ups", "row"}:
        made["level"] = "row"


def _metered(draw: st.DrawFn, made: Object, schema: Object, names: Names) -> None:
    if made.get("source", "sumOfNodes") != "sumOfNodes":
        for name in ("url", "query"):
            if name not in made:
                made[name] = draw(_of(schema["properties"][name], f"telemetry.{name}", names))


REPAIRS: dict[str, Repair] = {
    "tauSeconds and tripFactor are given with curve custom only": _custom_only,
    "curve custom needs tauSeconds and tripFactor": _nothing,
    "exactly one of nodes and nodeSelector is needed": _one_way_to_name,
    "minMHz is larger than maxMHz": _ordered("minMHz", "maxMHz"),
    "gpuIdleWatts is larger than gpuTdpWatts": _ordered("gpuIdleWatts", "gpuTdpWatts"),
    "a meter needs url and query of a Prometheus": _metered,
    "t1 is larger than t2": _ordered("t1", "t2"),
    "uncapMargin is not smaller than t1": _small_margin,
    "budgetWatts is below what the nodes draw without work": _above_idle,
    "thresholds belong to algorithm polca": _only_with("thresholds", "polca"),
    "train belongs to algorithm polca": _only_with("train", "polca"),
    "thresholds are given or trained, not both": _told_or_trained,
    "until is not after deadline": _ending,
    "target belongs to algorithm guard": _only_with("target", "guard"),
    "a rack or node needs its members": _has_members,
    "Restart needs targetRef": _with_target,
    "exactly one of modelServiceRef and experts is needed": _one_of_two,
    "experts has steps of its own: steps, desired and routing are of a ModelService": _own_steps,
    "exactly one of configMap, pvc, prometheus, httpDump and sqlStore is needed": _one_load,
    "topK is larger than experts": _few_of_many,
    "expertGroups does not divide experts": _even_groups,
    "firstMoeLayer and moeLayers go beyond decoderLayers": _all_layers,
    "the model cannot change: make another ExpertPlacement": _nothing,
    "experts + redundantExperts is no multiple of epSize": _ranks,
    "the GPUs of topology.nodes are not as many as epSize": _nothing,
    "slots are needed of every GPU or of none, and their sum is experts + redundantExperts": _nothing,
    "topology.nodes or targetRef is needed: nobody says where the GPUs are": _somewhere,
    "rolloutRestart needs targetRef: what is to be restarted": _restartable,
    "exactly one of histogram, scrape, prometheus and traceConfigMap is needed": _one_source,
    "apiVersion is apps/v1 for Deployment and StatefulSet, leaderworkerset.x-k8s.io/v1 for LeaderWorkerSet": (
        _known_version
    ),
    "minReplicas is larger than maxReplicas": _least_first,
    "two variants name the same targetRef": _different_targets,
    "a variant of role prefill needs one of role decode, and the reverse: nobody would do the rest": (
        _both_phases
    ),
    (
        "traffic.prometheus needs selector and outputSelector with prefill and decode variants: the pods that take"
        " requests in, and those that give outputs"
    ): _two_selectors,
    "httpRoute needs the service of every variant but those of role decode": _own_services,
    "two variants name the same service: httpRoute could not tell them apart": _nothing,
    "survive is not smaller than the sum of maxReplicas: nothing would be left to serve": _some_left,
    "model cannot change: make another ModelService": _nothing,
    "give either rows of throughput or modelled: true": _rows_or_model,
    "ttftSeconds is needed, but for rows of role decode": _timed("ttftSeconds", "decode"),
    "tbtSeconds is needed, but for rows of role prefill": _timed("tbtSeconds", "prefill"),
    "idleWatts is larger than prefillWatts": _idle_least,
    "idleWatts is larger than decodeWatts": _idle_least,
}


# -- mutation -------------------------------------------------------------------------------------------------------

JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    0.5,
    2**63,
    10**40,
    -1e308,
    math.nan,
    math.inf,
    "",
    " ",
    "\u0000",
    "NaN",
    "1e3",
    "../../etc/passwd",
    "{{ .Values.x }}",
    "\u202e\U0001f4a5",
    "x" * 5000,
    [],
    [None],
    [[[[[]]]]],
    {},
    {"": ""},
    {"$ref": "#"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """What is done to an object, and where: both by numbers, so that it fits any object."""

    how: str
    where: int
    junk: Any

    def applied(self, spec: Object) -> Any:
        """Return a broken copy."""
        whole = {"spec": copy.deepcopy(spec)}
        holder, key = _place(whole, self.where)
        value = holder[key]
        if self.how == "remove":
            del holder[key]
        elif self.how == "add" and isinstance(value, dict):
            value["unheard"] = self.junk
        elif self.how == "repeat" and isinstance(value, list):
            value.extend(value * 600 or [self.junk])
        elif self.how == "wrap":
            holder[key] = [value]
        elif self.how == "stretch" and isinstance(value, str):
            holder[key] = value * 2000 + "!"
        elif self.how == "stretch" and isinstance(value, int | float):
            holder[key] = -value - 1
        else:
            holder[key] = self.junk
        return whole.get("spec")


def _place(whole: Object, where: int) -> tuple[Any, Any]:
    """Walk to a place, as likely a near as a far one; returns its holder and key."""
    holder: Any = whole
    while True:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        where, at = divmod(where, len(keys))
        where, deeper = divmod(where, 4)
        inner = holder[keys[at]]
        if not deeper or not isinstance(inner, dict | list) or not inner:
            return holder, keys[at]
        holder = inner


def mutations() -> Drawn:
    """Return ways to break an object."""
    return st.builds(
        Mutation,
        how=st.sampled_from(["replace", "replace", "remove", "add", "repeat", "wrap", "stretch"]),
        where=st.integers(0, 2**48),
        junk=st.sampled_from(JUNK),
    )
