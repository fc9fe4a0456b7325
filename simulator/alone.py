"""What each request takes alone on an instance: the yardstick of relative SLO targets.

It exists so that slowdowns compare with the same rules that the run itself follows: the prompt in chunks as the
scheduler cuts them, then one decode after the other over a growing cache. It is what `simulator.engine` yields for one
request on an idle instance, for all requests at once and without simulating.
"""

from collections.abc import Sequence

import numpy as np

from simulator.fleet import InstanceKind
from simulator.metrics import Alone
from simulator.step_table import PrefillForm, StepTable
from solver.domain.trace import Floats, Ints


def alone_on(
    kinds: Sequence[InstanceKind],
    kind_of_request: Ints,
    prompt_tokens: Ints,
    output_tokens: Ints,
    *,
    chunk_tokens: int | None,
) -> Alone:
    """Return the latencies of requests that have an instance of their kind to themselves.

    Parameters
    ----------
    chunk_tokens
        Largest number of prompt tokens of an iteration; None: prompts run whole.
    """
    ttft_s, e2e_s = np.zeros(len(prompt_tokens)), np.zeros(len(prompt_tokens))
    for k, kind in enumerate(kinds):
        mine = kind_of_request == k
        prompts, outputs = prompt_tokens[mine], output_tokens[mine]
        first_s = kind.accept_s + _prompt_s(kind.table, prompts, chunk_tokens) + kind.per_token_s
        later_s = _decodes_s(kind.table, prompts, outputs) + kind.per_token_s * (outputs - 1)
        ttft_s[mine], e2e_s[mine] = first_s, first_s + later_s + kind.finish_s
    tbt_s = np.full(len(prompt_tokens), np.nan)
    np.divide(e2e_s - ttft_s, output_tokens - 1, out=tbt_s, where=output_tokens > 1)
    return Alone(ttft_s=ttft_s, tbt_s=tbt_s, e2e_s=e2e_s)


def _prompt_s(table: StepTable, prompt_tokens: Ints, chunk_tokens: int | None) -> Floats:
    seconds = np.zeros(len(prompt_tokens))
    done = np.zeros(len(prompt_tokens), dtype=np.int64)
    while np.any(done < prompt_tokens):
        left = prompt_tokens - done
        tokens = left if chunk_tokens is None else np.minimum(left, chunk_tokens)
        now = tokens > 0
        seconds[now] += _chunk_s(table, tokens[now], done[now], prompt_tokens[now])
        done += tokens
    return seconds


def _decodes_s(table: StepTable, prompt_tokens: Ints, output_tokens: Ints) -> Floats:
    """Sum up the iterations that decode one sequence, from its prompt's tokens in the cache on."""
    ends = prompt_tokens + output_tokens - 1
    one_s = _decode_s(table, np.arange(int(ends.max(initial=0)), dtype=np.float64))
    summed_s = np.concatenate(([0.0], np.cumsum(one_s)))
    seconds: Floats = summed_s[ends] - summed_s[prompt_tokens]
    return seconds


def _chunk_s(table: StepTable, tokens: Ints, cached: Ints, whole: Ints) -> Floats:
    """Seconds of an iteration with one prompt chunk; equations in `simulator.step_table`."""
    alone_s = _at(table.prefill_s, tokens)
    if table.prefill_form is PrefillForm.ADDITIVE:
        before = whole if table.whole_prompt_pairs else cached
        pairs = tokens * (before + tokens / 2.0)
        attended: Floats = (
            alone_s + table.prompt_s + np.maximum(table.context_s * (cached + tokens), table.pair_s * pairs)
        )
        return attended
    grown: Floats = np.maximum(alone_s, _at(table.prefill_s, cached + tokens) - _at(table.prefill_s, cached))
    return grown


def _at(values: Floats, tokens: Ints) -> Floats:
    """Read a table at whole numbers of tokens; beyond its end the last slope goes on."""
    last = len(values) - 1
    beyond = np.maximum(tokens - last, 0)
    read: Floats = values[np.minimum(tokens, last)] + beyond * (values[last] - values[last - 1])
    return read


def _decode_s(table: StepTable, cached: Floats) -> Floats:
    knots = table.kv_knots_tokens
    at = np.searchsorted(knots, cached, side="right") - 1
    seconds: Floats = table.decode_s[1][at] + table.decode_slope_s[1][at] * (cached - knots[at])
    return seconds
