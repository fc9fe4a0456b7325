"""Random small fleets and requests for the tests of the general engine: every rule should act in some of them.

Numbers are irregular on purpose: where two things happen at the very same time, rounding decides their order, and two
correct engines may part ways.
"""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from simulator.fleet import (
    EventKind,
    Fleet,
    FleetEvent,
    InstanceKind,
    Links,
    Overlap,
    Pool,
    QueueOrder,
    Role,
    Router,
    RouterKind,
    Scheduler,
)
from simulator.step_table import PrefillForm, StepTable
from solver.domain.trace import Ints, PrefixBlocks, Requests

_LARGEST_BATCH = 6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scenario:
    """A fleet and what it is asked."""

    fleet: Fleet
    requests: Requests
    models: Ints | None
    priorities: Ints | None
    seed: int


def random_table(random: np.random.Generator, *, knots: int, truncated: bool = False) -> StepTable:
    """Return a table whose entries follow no formula."""
    tokens = int(random.integers(4, 30))
    unit = 7.0 if truncated else 0.01
    knot_tokens = np.concatenate(([0.0], np.cumsum(random.integers(3, 60, knots - 1).astype(float))))
    shape = (_LARGEST_BATCH + 1, knots)
    rows = np.arange(_LARGEST_BATCH + 1)[:, None]
    return StepTable(
        prefill_form=PrefillForm.DIFFERENCES if random.random() < 0.4 else PrefillForm.ADDITIVE,
        prefill_s=unit * np.cumsum(random.uniform(0.0, 0.2, tokens)),
        prefill_w=random.uniform(100.0, 700.0, tokens),
        context_s=unit * 0.01 * random.random(),
        pair_s=unit * 0.002 * random.random(),
        prompt_s=unit * 0.1 * random.random(),
        whole_prompt_pairs=bool(random.random() < 0.3),
        kv_knots_tokens=knot_tokens,
        decode_s=unit * (1.0 + 0.1 * rows + random.uniform(0.0, 0.5, shape)),
        decode_slope_s=unit * random.uniform(0.0, 0.01, shape) * (random.random(shape) < 0.8),
        decode_j=random.uniform(1.0, 5.0, shape),
        decode_slope_j=random.uniform(0.0, 0.02, shape),
        shared_s=unit * random.uniform(0.0, 1.5),
        idle_w=float(random.uniform(10.0, 100.0)),
        truncated=truncated,
    )


def _pools(draw: st.DrawFn, kinds: int, models: int, *, disaggregated: bool) -> list[Pool]:
    pools = []
    for model in range(models):
        roles = [Role.BOTH]
        if disaggregated:
            roles = [Role.PREFILL, Role.DECODE]
            if draw(st.booleans()):
                roles.insert(
                    draw(st.integers(0, 2)), draw(st.sampled_from([Role.BOTH, Role.DECODE, Role.PREFILL]))
                )
        pools += [
            Pool(
                name=f"p{model}{at}",
                kind=draw(st.integers(0, kinds - 1)),
                count=draw(st.integers(1, 2 if disaggregated else 3)),
                role=role,
                model=model,
                start_s=draw(st.sampled_from([0.0, 0.0517, 0.731])),
                drain_s=draw(st.sampled_from([0.0, 0.0313, 0.413])),
            )
            for at, role in enumerate(roles)
        ]
    return pools


def _scheduler(draw: st.DrawFn) -> Scheduler:
    batch = draw(st.sampled_from([1, 2, 3, _LARGEST_BATCH, _LARGEST_BATCH]))
    return Scheduler(
        max_batch=batch,
        max_batch_tokens=batch + draw(st.sampled_from([1, 3, 10, 40, 200])),
        chunked_prefill=draw(st.booleans()),
        max_preemptions=draw(st.sampled_from([0, 1, 4])),
        order=draw(st.sampled_from(list(QueueOrder))),
        watermark_ratio=draw(st.sampled_from([0.0, 0.01, 0.3])),
    )


@st.composite
def scenarios(draw: st.DrawFn, *, most_requests: int = 24) -> Scenario:
    """Draw the structure with hypothesis and the sizes from a seed."""
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    truncated = draw(st.sampled_from([False, False, False, True]))
    disaggregated = draw(st.booleans())
    models = draw(st.sampled_from([1, 1, 1, 2]))
    room = draw(st.sampled_from(["tight", "mixed", "ample"]))
    ranges = {"tight": (50, 90), "mixed": (50, 400), "ample": (900, 1000)}
    kinds = tuple(
        InstanceKind(
            name=f"k{k}",
            gpu_type="none",
            gpus=1,
            table=random_table(random, knots=int(random.integers(1, 5)), truncated=truncated),
            kv_capacity_tokens=int(random.integers(*ranges[room])),
            kv_bytes_per_token=float(random.uniform(0.5, 2.0)),
            layers=int(random.integers(1, 9)),
        )
        for k in range(draw(st.integers(1, 3)))
    )
    pools = _pools(draw, len(kinds), models, disaggregated=disaggregated)
    total = draw(st.integers(1, most_requests))
    step_s = 7.0 if truncated else 0.01
    span_s = step_s * total * draw(st.sampled_from([0.3, 3.0, 20.0]))
    arrival_s = np.sort(random.uniform(0.0, span_s, total))
    prompt_tokens = random.integers(1, draw(st.sampled_from([8, 25, 60])), total)
    output_tokens = random.integers(1, draw(st.sampled_from([2, 10, 50, 50])), total)
    blocks = None
    block_tokens = draw(st.sampled_from([4, 16]))
    if draw(st.booleans()):
        widths = -(-prompt_tokens // block_tokens)
        families = random.integers(0, 3, total)
        ids = [
            1000 * families[r] + (b if b < 2 else 10 * r + b) for r in range(total) for b in range(widths[r])
        ]
        blocks = PrefixBlocks(ids=np.array(ids), offsets=np.concatenate(([0], np.cumsum(widths))))
    events = tuple(
        FleetEvent(
            time_s=float(random.uniform(0.0, 1.3 * span_s)),
            kind=draw(st.sampled_from(list(EventKind))),
            pool=(pool := draw(st.integers(0, len(pools) - 1))),
            index=draw(st.integers(0, pools[pool].count - 1)),
            instance_kind=draw(st.integers(0, len(kinds) - 1)),
        )
        for _ in range(draw(st.sampled_from([0, 0, 2, 6, 12])))
    )
    return Scenario(
        fleet=Fleet(
            models=tuple(f"m{model}" for model in range(models)),
            kinds=kinds,
            pools=tuple(pools),
            scheduler=_scheduler(draw),
            router=Router(
                kind=draw(st.sampled_from(list(RouterKind))),
                prompt_limit_tokens=draw(st.sampled_from([20, 100, 8192])),
            ),
            links=Links(
                bytes_per_s=draw(st.sampled_from([30.0, 1e3, 1e6])) / step_s,
                contention=draw(st.booleans()),
                overlap=draw(st.sampled_from(list(Overlap))),
                prefix_cache_blocks=draw(st.sampled_from([0, 3, 20])),
                block_tokens=block_tokens,
            ),
            events=events,
        ),
        requests=Requests(
            arrival_s=arrival_s, prompt_tokens=prompt_tokens, output_tokens=output_tokens, blocks=blocks
        ),
        models=random.integers(0, models, total) if models > 1 else None,
        priorities=random.integers(0, 3, total),
        seed=seed % 1000,
    )
