"""Loads by expert from a Prometheus: the query, the numbering of layers, and that a missing series is no zero."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from solver.domain.errors import InputError
from solver.domain.moe import Floats
from telemetry.sources.prometheus_experts import expert_loads
from tests.telemetry.loopback import Answer, say, serving


def vector(values: dict[tuple[Any, Any], Any]) -> Answer:
    result = [
        {"metric": {"layer": str(layer), "expert": str(expert)}, "value": [0, str(value)]}
        for (layer, expert), value in values.items()
    ]
    return say(json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}))


def ask(answer: Answer, **more: Any) -> Floats:
    with serving({"/api/v1/query": answer}) as address:
        options = {"metric": "tokens_total", "layers": 2, "experts": 2, "window_s": 300.0, **more}
        return asyncio.run(expert_loads(address, **options))


@pytest.mark.parametrize("first", [0, 3])
def test_layers_count_from_0_or_as_in_the_model(first: int) -> None:
    values = {(first + layer, expert): 10 * layer + expert for layer in (1, 0) for expert in (1, 0)}
    found = ask(vector(values), first_layer=3)
    assert np.array_equal(found, [[0, 1], [10, 11]])


def test_the_growth_over_the_window_is_asked_for() -> None:
    asked: list[str] = []

    def answer(request: Any, form: dict[str, str]) -> None:
        asked.append(form["query"])
        vector({(layer, expert): 1 for layer in range(2) for expert in range(2)})(request, form)

    ask(answer, selector='{model="m"}')
    assert asked == ['sum by (layer, expert) (increase(tokens_total{model="m"}[300s]))']


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (vector({}), "no series tokens_total"),
        (vector({(0, 0): 1, (0, 1): 1, (1, 0): 1}), "1 series are missing, the first is layer 1, expert 1"),
        (vector({(r, c): 1 for r in range(2) for c in range(3)}), "2 series too many"),
        (vector({(r, c): "NaN" for r in range(2) for c in range(2)}), "values that are no counts"),
        (vector({(r, c): -1 for r in range(2) for c in range(2)}), "values that are no counts"),
        (vector({("x", "y"): 1}), "the answer is no vector"),
        (say("{}"), "the answer is no vector"),
        (say("[" * 10_000), "the answer is no vector"),
        (say("no", 503), "HTTP 503"),
    ],
)
def test_an_answer_without_all_loads_is_refused(answer: Answer, words: str) -> None:
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        ask(answer)


def test_a_selector_is_no_query() -> None:
    with pytest.raises(InputError, match="is not understood"):
        asyncio.run(
            expert_loads(
                "http://127.0.0.1:1",
                metric="m",
                selector='a="b"} or up{',
                layers=1,
                experts=1,
                window_s=1.0,
            )
        )
