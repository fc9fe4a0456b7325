"""From pydantic models to definitions: what a structural schema may hold, bounds everywhere, and staleness."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import ConfigDict, Field, ValidationError

from controller.resources import generate
from controller.resources.generate import definition, structural
from controller.resources.kinds import AGE, KINDS, MODEL_SERVICE, PLAN, Column, Kind, Scale
from controller.resources.model_service import ModelServiceSpec
from controller.resources.schema import Label, ObjectName, Part, list_map, rules, spelled

Schema = dict[str, Any]


class Colour(StrEnum):
    """What it looks like."""

    RED = "red"
    BLUE = "blue"


class Inner(Part):
    """Inside."""

    name: Label
    weight_ratio: Annotated[float, Field(gt=0, le=0.5)] | None = None


class ToySpec(Part):
    """A toy."""

    model_config = ConfigDict(json_schema_extra=rules(("self.replicas >= 0", "less than nothing")))

    replicas: int = Field(default=1, ge=0, le=9, description="How\nmany.")
    colour: Colour = Colour.RED
    always: Literal["so"] = "so"
    inner: tuple[Inner, ...] = Field(default=(), max_length=3, json_schema_extra=list_map("name"))
    note: str = Field(default="", max_length=8)
    code: str = spelled("^[0-9]+$", "is no number", default="0", max_length=4)
    plain: str = Field(default="x", max_length=4, pattern="^x*$")


class ToyStatus(Part):
    """A toy's state."""

    replicas: int = Field(default=0, ge=0)
    selector: str = Field(default="", max_length=64)


TOY = Kind(
    kind="Toy",
    plural="toys",
    namespaced=True,
    spec=ToySpec,
    status=ToyStatus,
    description="For tests.",
    columns=(Column(name="Replicas", path=".spec.replicas", type="integer"), AGE),
    scale=Scale(
        spec_replicas=".spec.replicas", status_replicas=".status.replicas", selector=".status.selector"
    ),
)


def toy() -> Schema:
    return structural(ToySpec.model_json_schema(by_alias=True))


def nodes(schema: Schema, at: str = "") -> Iterator[tuple[str, Schema]]:
    """Every part of a schema with its path."""
    yield at, schema
    for name, part in schema.get("properties", {}).items():
        yield from nodes(part, f"{at}.{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from nodes(schema[name], f"{at}[]")


def whole(kind: Kind) -> Schema:
    (version,) = definition(kind)["spec"]["versions"]
    schema: Schema = version["schema"]["openAPIV3Schema"]
    return schema


def test_references_titles_and_nothing_are_gone() -> None:
    for _, part in nodes(toy()):
        assert not part.keys() & {"$ref", "$defs", "title", "anyOf", "const", "allOf"}
        assert part["type"] in {"object", "array", "string", "integer", "number", "boolean"}


def test_bounds_and_rules_are_kept() -> None:
    fields = toy()["properties"]
    assert fields["replicas"] == {
        "type": "integer",
        "default": 1,
        "minimum": 0,
        "maximum": 9,
        "description": "How many.",
    }
    weight = fields["inner"]["items"]["properties"]["weightRatio"]
    assert weight == {"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 0.5}
    assert fields["always"]["enum"] == ["so"]
    assert fields["colour"]["enum"] == ["red", "blue"]
    assert fields["colour"]["default"] == "red"
    assert fields["inner"]["x-kubernetes-list-map-keys"] == ["name"]
    assert toy()["x-kubernetes-validations"] == [
        {"rule": "self.replicas >= 0", "message": "less than nothing"}
    ]
    assert toy().get("required") is None
    assert fields["inner"]["items"]["required"] == ["name"]


def test_a_default_that_says_nothing_is_left_out() -> None:
    fields = toy()["properties"]
    assert "default" not in fields["note"]
    assert "default" not in fields["inner"]
    assert "default" not in fields["inner"]["items"]["properties"]["weightRatio"]


def test_a_spelled_text_has_a_rule_with_a_message_instead_of_a_pattern() -> None:
    fields = toy()["properties"]
    assert fields["plain"]["pattern"] == "^x*$"
    assert "pattern" not in fields["code"]
    assert fields["code"]["x-kubernetes-validations"] == [
        {"rule": 'self.matches("^[0-9]+$")', "message": "is no number"}
    ]
    with pytest.raises(ValidationError):  # the models hold to it all the same
        ToySpec(code="1a")


def test_a_fractional_minimum_is_refused_because_the_server_would_round_it() -> None:
    class Wrong(Part):
        share: Annotated[float, Field(ge=0.5)]

    with pytest.raises(ValueError, match=r"minimum 0\.5 does not keep 0 out"):
        structural(Wrong.model_json_schema(by_alias=True))


def test_a_union_is_refused() -> None:
    class Wrong(Part):
        either: int | str

    with pytest.raises(ValueError, match="a union of 2"):
        structural(Wrong.model_json_schema(by_alias=True))


def test_the_scale_subresource_is_written_where_a_kind_has_one() -> None:
    (version,) = definition(TOY)["spec"]["versions"]
    assert version["subresources"] == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    }
    (version,) = definition(MODEL_SERVICE)["spec"]["versions"]
    assert version["subresources"] == {"status": {}}


def test_names_scope_and_columns() -> None:
    body = definition(TOY)
    assert body["metadata"]["name"] == "toys.ballast.dev"
    assert body["spec"]["scope"] == "Namespaced"
    assert body["spec"]["names"] == {
        "kind": "Toy",
        "listKind": "ToyList",
        "plural": "toys",
        "singular": "toy",
        "categories": ["llm", "ballast"],
    }
    columns = body["spec"]["versions"][0]["additionalPrinterColumns"]
    assert columns[0] == {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_everything_that_grows_has_a_bound(kind: Kind) -> None:
    for at, part in nodes(whole(kind)):
        if at in {".apiVersion", ".kind", ".metadata"}:
            continue  # the server's own
        if part.get("x-kubernetes-int-or-string"):
            assert {"minimum", "maximum", "maxLength"} <= part.keys(), at
            assert "type" not in part, at
            continue
        if part["type"] == "string":
            assert "enum" in part or "maxLength" in part, at
        if part["type"] == "array":
            assert part.get("maxItems", 0) > 0, at
            assert part["x-kubernetes-list-type"] in {"map", "atomic"}, at
        if "additionalProperties" in part:
            assert part.get("maxProperties", 0) > 0, at
        if part["type"] in {"number", "integer"} and at.startswith(".spec") and kind is not PLAN:
            assert {"minimum", "maximum"} <= part.keys(), at


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_rule_has_a_message_and_every_key_of_a_list_is_required(kind: Kind) -> None:
    for at, part in nodes(whole(kind)):
        for rule in part.get("x-kubernetes-validations", ()):
            assert len(rule["message"].split()) > 2, at
        for key in part.get("x-kubernetes-list-map-keys", ()):
            assert key in part["items"]["required"], at


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_columns_name_fields_that_exist(kind: Kind) -> None:
    paths = {at for at, _ in nodes(whole(kind))} | {".metadata.creationTimestamp"}
    for column in kind.columns:
        assert column.path.partition("[?")[0] in paths, column


def test_class_letters_of_patterns_are_spelled_out() -> None:
    for kind in KINDS:
        for at, part in nodes(whole(kind)):
            for rule in part.get("x-kubernetes-validations", ()):
                assert not any(short in rule["rule"] for short in ("\\\\s", "\\\\S", "\\\\d", "\\\\w")), at


@pytest.mark.parametrize("name", ["a", "a-b", "a.b-c", "0"])
def test_names_of_objects(name: str) -> None:
    class Named(Part):
        name: ObjectName

    assert Named(name=name).name == name
    for wrong in (f"{name}.", f".{name}", f"{name}..b", f"{name}\n", f"{name}_", name.upper() + "A", ""):
        with pytest.raises(ValidationError):
            Named(name=wrong)


def test_an_older_version_reads_what_a_newer_one_wrote() -> None:
    assert ToySpec.model_validate({"replicas": 2, "fromTheFuture": True}).replicas == 2


def test_the_files_of_the_chart_are_the_generated_ones() -> None:
    assert generate.main(["--check"]) == 0
    for path, text in generate.texts().items():
        assert yaml.safe_load(text) == yaml.safe_load(path.read_text(encoding="utf-8"))


def test_a_stale_file_is_named_and_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "helm" / "ballast" / "crd-files"
    monkeypatch.setattr(generate, "FOLDER", folder)
    assert generate.main(["--check"]) == 1
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    capsys.readouterr()
    stale = folder / "plans.yaml"
    stale.write_text(stale.read_text(encoding="utf-8").replace("512", "513"), encoding="utf-8")
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().err == "helm/ballast/crd-files/plans.yaml is stale; run: make generate\n"
    assert "513" in stale.read_text(encoding="utf-8")  # checking changes nothing
    assert generate.main([]) == 0
    assert "513" not in stale.read_text(encoding="utf-8")


def test_what_is_written_is_read_again() -> None:
    spec = ModelServiceSpec.model_validate(
        {
            "model": "m",
            "slo": {"ttftSeconds": 1, "tbtSeconds": 0.05},
            "traffic": {"scrape": {}},
            "variants": [
                {"name": "a", "targetRef": {"kind": "Deployment", "name": "a"}, "gpuProfile": "p"},
            ],
        }
    )
    assert ModelServiceSpec.model_validate(spec.written()) == spec
    assert "histogram" not in spec.written()["traffic"]
