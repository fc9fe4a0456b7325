"""Lists are read item by item, however they come; what is packed says what was put in; gauges tell what stands."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from controller.operator.api import items_of
from controller.operator.gauges import Standing, follow
from controller.operator.metrics import Metrics
from controller.operator.world import Body

words = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ['"items":[', "]", "}", "\\", "🜁", '"']
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(words, values, max_size=4)


def cut(raw: bytes, sizes: list[int]) -> Iterator[bytes]:
    place = 0
    for size in sizes:
        yield raw[place : place + size]
        place += size
    yield raw[place:]


@given(
    st.lists(objects, max_size=6),
    st.lists(st.integers(1, 40), max_size=30),
    st.permutations(["kind", "metadata", "items"]),
    st.sampled_from([{"separators": (",", ":")}, {"ensure_ascii": False}, {"indent": 1}]),
)
def test_items_are_the_same_however_the_list_is_cut(
    items: list[dict[str, Any]], sizes: list[int], order: list[str], manner: dict[str, Any]
) -> None:
    body = {"kind": "PodList", "metadata": {"resourceVersion": "7", "continue": ""}, "items": items}
    raw = json.dumps({name: body[name] for name in order}, **manner).encode()
    assert list(items_of(cut(raw, sizes))) == items


@given(st.lists(objects, min_size=1, max_size=4), st.data())
def test_a_list_that_breaks_off_is_not_taken_for_a_short_one(
    items: list[dict[str, Any]], data: st.DataObject
) -> None:
    raw = json.dumps({"items": items}).encode()
    end = data.draw(st.integers(0, len(raw) - 3))
    with pytest.raises(ValueError, match=r"ends before|Expecting|Unterminated|Invalid"):
        list(items_of([raw[:end]]))


@pytest.mark.parametrize("text", ['{"kind":"PodList","items":null}', '{"items": []}', "{}"])
def test_a_list_may_be_empty(text: str) -> None:
    assert list(items_of([text.encode()])) == []


@given(objects, objects)
def test_a_packed_object_says_what_was_put_in(spec: dict[str, Any], status: dict[str, Any]) -> None:
    body = Body({"name": "m"}, spec, status)
    plain = {"metadata": {"name": "m"}, "spec": spec, "status": status}
    assert dict(body) == plain
    assert body == plain
    assert body == Body({"name": "m"}, dict(reversed(spec.items())), status)
    assert body != Body({"name": "n"}, spec, status)
    assert body.get("kind") is None
    with pytest.raises(TypeError):
        hash(body)


def test_gauges_tell_what_stands_when_they_are_read() -> None:
    metrics = Metrics()
    standing = Standing()
    follow(metrics, lambda: standing)
    assert b"ballast_pool_gpus{" not in generate_latest(metrics.registry)
    standing = Standing(gpus={"free": {"H100": 3}})
    assert b'ballast_pool_gpus{pool="H100",state="free"} 3.0' in generate_latest(metrics.registry)
    standing = Standing(gpus={"free": {"L40S": 1}})
    assert b"H100" not in generate_latest(metrics.registry)
