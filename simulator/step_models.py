"""Builds the step table of an instance from its performance model: `table_of`.

It exists because planner and simulator must charge the same seconds: whatever `PerformanceModel` the planner asks, the
simulator tabulates. Exact for `Roofline` without sliding windows and up to ``EXACT_TOKENS`` new tokens per iteration,
for `TrainedPhysics`, `Fitted`, and `ProfileTable` (its own straight lines); elsewhere linear between the points that
are asked (tests state the error). Watts are asked at fewer points. A capped model keeps the form of the model it caps:
exact without cached tokens, and with them where the chunk is a full one; a smaller chunk's attention is charged at the
clock of a full one. It fits nothing.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from simulator.fleet import InstanceKind
from simulator.step_table import PrefillForm, StepTable
from solver.domain.errors import InputError
from solver.domain.llm import ModelShape
from solver.domain.trace import Floats
from solver.performance.capped import PREFILL_CLOCK_SHARE, Capped, stretched
from solver.performance.fitted import Fitted
from solver.performance.iteration import shared_s
from solver.performance.profile_table import ProfileTable
from solver.performance.protocol import PerformanceModel
from solver.performance.roofline import Roofline, step_terms
from solver.performance.trained_physics import ACCEPT_S, FINISH_S, PER_TOKEN_S, TrainedPhysics

EXACT_TOKENS = 4096
"""Up to so many new tokens every whole number is asked; beyond, every `_STRIDE_TOKENS`."""
_STRIDE_TOKENS = 64
LARGEST_CHUNK_TOKENS = 1 << 20
"""As the scheduler's ``max_batch_tokens`` may be."""
_KV_SHARES = (1 / 64, 1 / 16, 1 / 4, 1.0)
"""Knots over cached tokens, as shares of the KV capacity: joules bend there (seconds mostly do not)."""


def table_of(
    model: PerformanceModel, *, max_batch: int, longest_step_tokens: int, kv_capacity_tokens: int
) -> StepTable:
    """Tabulate a performance model.

    Parameters
    ----------
    max_batch
        Largest number of decodes in an iteration.
    longest_step_tokens
        Largest number of new prompt tokens in an iteration.
    kv_capacity_tokens
        Of the instance; bounds the cached tokens that are asked.

    Raises
    ------
    InputError, OutsideRangeError
        As the model's own methods, except that unknown watts give a table with ``watts_known`` False.
    """
    uncapped = model.model if isinstance(model, Capped) else model
    if isinstance(uncapped, ProfileTable) and uncapped.prefill:
        # Differences reach beyond a chunk: keep the table's own last slope.
        longest_step_tokens = max(longest_step_tokens, int(uncapped.prefill[-1].new_tokens))
    prompt_tokens = _prompt_points(longest_step_tokens)
    if isinstance(model, TrainedPhysics):
        form = _physics_prefill(model, longest_step_tokens)
    elif isinstance(uncapped, Roofline | TrainedPhysics | Fitted):
        form = _additive_prefill(model, uncapped, prompt_tokens, longest_step_tokens)
    else:
        seconds = np.array([model.prefill_s(float(t)) for t in prompt_tokens])
        form = {
            "prefill_form": PrefillForm.DIFFERENCES,
            "prefill_s": np.interp(np.arange(longest_step_tokens + 1), prompt_tokens, seconds),
        }
    knots = _kv_knots(uncapped, kv_capacity_tokens)
    decode_s, decode_slope_s = _over_batches(
        model.decode_iteration_s, _every_batch(model, max_batch), max_batch, knots
    )
    try:
        idle_w = model.idle_w()
        coarse = np.unique(np.append(np.rint(np.geomspace(1.0, longest_step_tokens, 96)), 0.0))
        watts = np.array([model.prefill_w(float(t)) for t in coarse])
        prefill_w = np.interp(np.arange(longest_step_tokens + 1), coarse, watts)

        def joules(sequences: float, kv_tokens: float) -> float:
            return model.decode_w(sequences, kv_tokens) * model.decode_iteration_s(sequences, kv_tokens)

        decode_j, decode_slope_j = _over_batches(joules, _some_batches(max_batch), max_batch, knots)
        watts_known = True
    except InputError:
        idle_w, watts_known = 0.0, False
        prefill_w = np.zeros(longest_step_tokens + 1)
        decode_j, decode_slope_j = np.zeros_like(decode_s), np.zeros_like(decode_s)
    shared = uncapped.base_s if isinstance(uncapped, TrainedPhysics | Fitted) else shared_s(model)
    return StepTable(
        **form,
        prefill_w=prefill_w,
        kv_knots_tokens=knots,
        decode_s=decode_s,
        decode_slope_s=decode_slope_s,
        decode_j=decode_j,
        decode_slope_j=decode_slope_j,
        shared_s=shared,
        idle_w=idle_w,
        watts_known=watts_known,
    )


def instance_kind(
    name: str,
    model: PerformanceModel,
    shape: ModelShape,
    *,
    max_batch: int,
    longest_step_tokens: int,
    kv_capacity_tokens: int | None = None,
    price_usd_per_h: float | None = None,
    provenance: str = "",
    known_error: str = "",
) -> InstanceKind:
    """Describe one kind of instance; KV bytes per token follow the shape (GQA and MLA), summed over the ranks."""
    capacity = model.kv_capacity_tokens() if kv_capacity_tokens is None else kv_capacity_tokens
    if capacity < 1:
        raise InputError(
            f"{model.kind}: the weights leave no room for KV cache", right="more or larger GPUs per instance"
        )
    uncapped = model.model if isinstance(model, Capped) else model
    accept_s, per_token_s, finish_s = (
        (ACCEPT_S, PER_TOKEN_S, FINISH_S)
        if isinstance(uncapped, TrainedPhysics)
        else (uncapped.fit.accept_s if isinstance(uncapped, Fitted) else 0.0, 0.0, 0.0)
    )
    gpus = model.kind.gpus_per_replica
    return InstanceKind(
        name=name,
        gpu_type=model.kind.gpu_type,
        gpus=gpus,
        table=table_of(
            model,
            max_batch=max_batch,
            # Longer prompts are rejected; a table as long as one of them would fill the memory.
            longest_step_tokens=min(longest_step_tokens, max(capacity, LARGEST_CHUNK_TOKENS)),
            kv_capacity_tokens=capacity,
        ),
        kv_capacity_tokens=capacity,
        kv_bytes_per_token=shape.kv_bytes_per_token(),
        layers=shape.layers,
        price_usd_per_h=price_usd_per_h,
        accept_s=accept_s,
        per_token_s=per_token_s,
        finish_s=finish_s,
        provenance=provenance,
        known_error=known_error,
    )


def _prompt_points(longest: int) -> Floats:
    dense = np.arange(min(longest, EXACT_TOKENS) + 1, dtype=np.float64)
    if longest <= EXACT_TOKENS:
        return dense
    return np.concatenate(
        (dense, np.arange(EXACT_TOKENS + _STRIDE_TOKENS, longest, _STRIDE_TOKENS), [longest])
    )


def _physics_prefill(model: TrainedPhysics, longest: int) -> dict[str, Any]:
    """Take the terms as they stand: BLIS cuts to whole microseconds, so no rounding may come in."""
    tokens = np.arange(longest + 1, dtype=np.float64)
    return {
        "prefill_s": np.where(tokens > 0, model.base_s + model.prompt_token_s * tokens, 0.0),
        "pair_s": model.pair_s,
        "prompt_s": model.prompt_s,
        "whole_prompt_pairs": True,
    }


def _additive_prefill(
    model: PerformanceModel, uncapped: Roofline | TrainedPhysics | Fitted, points: Floats, longest: int
) -> dict[str, Any]:
    """Split a prefill into what depends on the new tokens, prompts, and attention, max(u R, v A).

    A sliding window is credited to a prompt in one piece, as the model does, but not to the context of later chunks.
    """
    clock = model.prefill_clock_ratio(float(longest)) if isinstance(model, Capped) else 1.0
    whole_prompt = isinstance(uncapped, TrainedPhysics)
    if isinstance(uncapped, TrainedPhysics):
        factor = stretched(clock, PREFILL_CLOCK_SHARE)
        context_s, pair_s, prompt_s = 0.0, uncapped.pair_s * factor, uncapped.prompt_s * factor
    elif isinstance(uncapped, Fitted):
        factor = stretched(clock, PREFILL_CLOCK_SHARE)
        context_s, pair_s, prompt_s = 0.0, uncapped.fit.prefill_pair_s * factor, 0.0
    else:
        unit = step_terms(
            uncapped.gpu,
            uncapped.model,
            uncapped.precision,
            uncapped.gpus,
            new_tokens=0.0,
            sequences=0.0,
            kv_tokens=1.0,
            pairs=1.0,
            kv_element_bytes=uncapped.kv_element_bytes,
        )
        context_s = unit.kv_s / uncapped.coefficients.bandwidth_efficiency_ratio
        pair_s = unit.pairs_s / uncapped.coefficients.compute_efficiency_ratio / clock
        prompt_s = 0.0
    seconds = np.array([model.prefill_s(float(t)) for t in points])
    pairs = points * points * (1.5 if whole_prompt else 0.5)
    alone = np.where(points > 0, seconds - prompt_s - np.maximum(context_s * points, pair_s * pairs), 0.0)
    return {
        "prefill_s": np.interp(np.arange(longest + 1), points, alone),
        "context_s": context_s,
        "pair_s": pair_s,
        "prompt_s": prompt_s,
        "whole_prompt_pairs": whole_prompt,
    }


def _kv_knots(model: PerformanceModel, capacity: int) -> Floats:
    knots = {0.0} | {float(round(capacity * share)) for share in _KV_SHARES}
    if isinstance(model, ProfileTable):
        rows: dict[float, set[float]] = {}
        for point in model.decode:
            rows.setdefault(point.sequences, set()).add(point.kv_tokens)
        for row in rows.values():
            if len(row) > 1:
                knots |= row
    elif isinstance(model, Roofline) and model.model.sliding_window_tokens is not None:
        window = float(model.model.sliding_window_tokens)
        knots |= {window * 2.0**power for power in range(10) if window * 2.0**power < capacity}
    return np.array(sorted(knots))


def _every_batch(model: PerformanceModel, max_batch: int) -> Floats:
    """Numbers of decodes at which seconds must be asked: all, or the rows of a measured table (lines between)."""
    if isinstance(model, ProfileTable) and model.decode:
        rows = {point.sequences for point in model.decode if 1.0 <= point.sequences <= max_batch}
        return np.array(sorted(rows | {1.0, float(max_batch)}))
    if isinstance(model, TrainedPhysics | Fitted):
        return np.array([1.0, float(max_batch)]) if max_batch > 1 else np.ones(1)
    return np.arange(1.0, max_batch + 1.0)


def _some_batches(max_batch: int) -> Floats:
    few = (
        set(range(1, min(max_batch, 8) + 1)) | {2**p for p in range(3, 20) if 2**p < max_batch} | {max_batch}
    )
    few |= {3 * 2**p for p in range(2, 20) if 3 * 2**p < max_batch}
    return np.array(sorted(few), dtype=np.float64)


def _over_batches(
    ask: Callable[[float, float], float], batches: Floats, max_batch: int, knots: Floats
) -> tuple[Floats, Floats]:
    """Ask at some batches and at the knots; lines between batches, slopes to the next knot and beyond the last."""
    beyond = knots[-1] * 2.0 + 1.0
    points = np.append(knots, beyond)
    asked = np.array([[ask(float(n), float(kv)) for kv in points] for n in batches])
    every = np.arange(1, max_batch + 1, dtype=np.float64)
    values = np.stack([np.interp(every, batches, asked[:, j]) for j in range(len(points))], axis=1)
    at_knots = np.zeros((max_batch + 1, len(knots)))
    slopes = np.zeros_like(at_knots)
    at_knots[1:] = values[:, :-1]
    slopes[1:] = np.diff(values, axis=1) / np.diff(points)
    slopes[
        np.abs(slopes) * max(1.0, float(points[-1])) < 1e-12 * max(float(np.max(values)), math.ulp(1.0))
    ] = 0.0
    return at_knots, slopes
