"""Step times fitted to what a replica was seen to do: `Fitted`, and the fits behind it.

It exists because a replica that serves is its own best measurement: a few numbers, found from finished requests or from
single iterations, follow the engine, its version and its settings, which no table or formula does. It reads no file
and observes nothing itself; watts and memory come from the `Roofline` of the same replica.

    prefill(T, C) = p0 + p1 T + p2 T (C + T / 2)       T new tokens after C cached ones
    decode(n, K)  = a + b n + c K                      n sequences with K cached tokens
    both in one iteration: their sum less what they share, s <= min(p0, a)

All are at least 0 (least squares of relative errors, `nonnegative_least_squares`, over s, p0 - s, p1, p2, a - s, b, c).
Requests tell three times: the start of the iteration that took them, the end of their prompt, their last token. Between
the first two an instance has run some prompt iterations, between the last two one iteration per token. What else it
served meanwhile (n, K, prompt tokens, and in how many iterations) is put together from the times of the others:
`fit_from_requests`. The least wait of all is what a request costs before any iteration. KV transfers count as decode
time; requests that were preempted are not fitted, and load that was not recorded is not seen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from solver.domain.errors import InputError
from solver.domain.trace import Floats, Ints
from solver.performance.protocol import PerformanceModel, ReplicaKind, require_amount
from solver.performance.roofline_watts import RooflineWatts

FEWEST = 20
"""Fewer observations of a phase are no ground for a fit."""
_ROUNDS = 12
_SHORTEST_S = 1e-3
"""No iteration is shorter: smaller differences between two requests' times are how they were taken."""
_SLACK = 0.1
"""Of an iteration: how many decodes ride along is a mean, so a little more than fits is still one iteration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFit:
    """Fitted coefficients of one kind of replica, and how well they fit."""

    kind: ReplicaKind
    prefill_s: float
    """p0: of every iteration with prompt tokens."""
    prefill_token_s: float
    """p1"""
    prefill_pair_s: float
    """p2"""
    decode_s: float
    """a"""
    sequence_s: float
    """b"""
    kv_token_s: float
    """c"""
    shared_s: float
    """s: what prompts and decodes of one iteration pay once."""
    accept_s: float = 0.0
    """From arrival until an idle engine starts on a request."""
    prefills: int
    """Observations behind p0 to p2; 0: none, the numbers follow the model that was to stand in."""
    decodes: int
    prefill_ratio_90: tuple[float, float] = (1.0, 1.0)
    """5 % and 95 % points of observed over fitted seconds."""
    decode_ratio_90: tuple[float, float] = (1.0, 1.0)
    source: str = ""
    """What was observed, in one line."""

    @property
    def known_error(self) -> str:
        """The 90 % prediction intervals, in one line."""
        parts = [
            f"90 % of {count:,} {phase} within {low - 1.0:+.1%} to {high - 1.0:+.1%} of the fit"
            if count
            else f"{phase} not observed, as modelled"
            for phase, count, (low, high) in (
                ("prefills", self.prefills, self.prefill_ratio_90),
                ("decodes", self.decodes, self.decode_ratio_90),
            )
        ]
        return "; ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted(RooflineWatts):
    """`PerformanceModel` by fitted coefficients; watts and KV capacity by the roofline of the same replica."""

    fit: StepFit

    @property
    def base_s(self) -> float:
        """What prompts and decodes of one iteration share."""
        return self.fit.shared_s

    def prefill_s(self, new_tokens: float, *, context_tokens: float = 0.0) -> float:
        """Seconds of a prefill: p0 + p1 T + p2 T (C + T / 2)."""
        require_amount("new_tokens", new_tokens)
        require_amount("context_tokens", context_tokens)
        if new_tokens == 0.0:
            return 0.0
        pairs = new_tokens * (context_tokens + new_tokens / 2.0)
        return self.fit.prefill_s + self.fit.prefill_token_s * new_tokens + self.fit.prefill_pair_s * pairs

    def decode_iteration_s(self, sequences: float, kv_tokens: float) -> float:
        """Seconds of a decode iteration: a + b n + c K."""
        require_amount("sequences", sequences)
        require_amount("kv_tokens", kv_tokens)
        if sequences == 0.0:
            return 0.0
        return self.fit.decode_s + self.fit.sequence_s * sequences + self.fit.kv_token_s * kv_tokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObservedRequests:
    """Requests that were served, in the order of arrival; NaN: did not happen, or was not seen."""

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    queue_s: Floats
    """From arrival to the start of the iteration that first took the request."""
    ttft_s: Floats
    tbt_s: Floats
    e2e_s: Floats
    prefill_instance: Ints
    """Numbered in the order of creation; -1: none, or not known."""
    decode_instance: Ints
    preemptions: Ints

    def __len__(self) -> int:
        return len(self.arrival_s)

    def take(self, where: slice) -> "ObservedRequests":
        """Return a run of the requests."""
        return ObservedRequests(**{name: getattr(self, name)[where] for name in self.__slots__})


def nonnegative_least_squares(matrix: Floats, wanted: Floats) -> Floats:
    """Minimise the sum of squares of matrix x - wanted over x >= 0: the active-set method of Lawson and Hanson (1974).

    Columns are brought to length 1 first; a column of zeros gets 0.
    """
    lengths = np.sqrt(np.sum(matrix * matrix, axis=0))
    usable = lengths > 0.0
    unit = np.where(usable, lengths, 1.0)
    scaled = matrix / unit
    columns = matrix.shape[1]
    found = np.zeros(columns)
    free = np.zeros(columns, dtype=bool)
    slack = 1e-12 * float(np.sqrt(np.sum(wanted * wanted)))
    for _ in range(10 * columns):
        pull = scaled.T @ (wanted - scaled @ found)
        blocked = free | ~usable
        if np.all(blocked) or np.max(pull[~blocked]) <= slack:
            break
        free[np.argmax(np.where(blocked, -np.inf, pull))] = True
        while True:
            trial = np.zeros(columns)
            trial[free] = np.linalg.lstsq(scaled[:, free], wanted, rcond=None)[0]
            falling = free & (trial <= 0.0)
            if not np.any(falling):
                break
            # Walk towards the trial until the first number reaches 0, and hold that one there.
            steps = found[falling] / np.maximum(found[falling] - trial[falling], np.finfo(np.float64).tiny)
            share = min(float(np.min(steps)), 1.0)
            found = np.maximum(found + share * (trial - found), 0.0)
            free &= found > slack * 1e-3
            found[~free] = 0.0
        found = trial
    answer: Floats = found / unit
    return answer


def fit_iterations(
    kind: ReplicaKind, prefills: Floats, decodes: Floats, *, source: str = "iterations"
) -> StepFit:
    """Fit single iterations that held only prompts or only decodes.

    Parameters
    ----------
    prefills
        Rows of (new tokens, cached tokens, seconds).
    decodes
        Rows of (sequences, cached tokens, seconds).

    Raises
    ------
    InputError
        If there are fewer than `FEWEST` of either.
    """
    _enough("prompt iterations", len(prefills))
    _enough("decode iterations", len(decodes))
    new, context, prefill_s = prefills.T
    sequences, kv_tokens, decode_s = decodes.T
    prompt_terms = np.stack((np.ones_like(new), new, new * (context + new / 2.0)), axis=1)
    decode_terms = np.stack((np.ones_like(sequences), sequences, kv_tokens), axis=1)
    p = _relative_fit(prompt_terms, prefill_s)
    d = _relative_fit(decode_terms, decode_s)
    return _as_fit(
        kind,
        np.concatenate((p, d)),
        (len(prefills), len(decodes)),
        (_interval(prefill_s / (prompt_terms @ p)), _interval(decode_s / (decode_terms @ d))),
        source,
    )


def fit_from_requests(
    observed: ObservedRequests,
    kind: ReplicaKind,
    *,
    instances: Ints,
    chunk_tokens: int | None,
    otherwise: PerformanceModel,
    source: str = "requests",
) -> StepFit:
    """Fit finished requests (equations: module docstring).

    Parameters
    ----------
    instances
        Numbers of the instances of this kind.
    chunk_tokens
        Tokens of one iteration where prompts are cut and ride with decodes; None: prompts run whole and alone.
    otherwise
        Stands in for a phase that these instances do not serve.

    Raises
    ------
    InputError
        If fewer than `FEWEST` requests tell anything of the instances.
    """
    windows = _Windows(observed, chunk_tokens)
    prompt_rows, prompt_s = windows.prompts(instances)
    decode_rows, decode_s = windows.decodes(instances)
    counts = [len(prompt_s), len(decode_s)]
    _enough(f"requests of {kind} seen from start to end", max(counts))
    modelled = _sampled(otherwise)
    seen = [count >= FEWEST for count in counts]
    rows = np.concatenate((prompt_rows, decode_rows))
    seconds = np.concatenate((prompt_s, decode_s))
    phase = np.repeat((0, 1), counts)
    used = np.array(seen)[phase]
    rows, seconds, phase = rows[used], seconds[used], phase[used]
    if chunk_tokens is None or not all(seen):
        rows[:, 0] = 0.0  # nothing here tells what both phases share
    # Errors count relative to what the fit says, so that no badly timed short request outweighs all others.
    usual_s = np.array([float(np.median(seconds[phase == p])) if seen[p] else 0.0 for p in (0, 1)])[phase]
    found, told, weights = np.zeros(7), np.maximum(seconds, usual_s / 4.0), np.ones_like(seconds)
    for _ in range(_ROUNDS):
        scale_s = np.maximum(told, usual_s / 20.0)
        weight = weights / scale_s
        found = nonnegative_least_squares(rows * weight[:, None], seconds * weight)
        told = rows @ found
        misses = np.abs(seconds - told) / scale_s
        for p in np.unique(phase):
            mine = phase == p
            # The phase that the equations explain better counts for more; rows far off the rest, for less (Huber).
            usual = 1.4826 * float(np.median(misses[mine])) + 1e-4
            weights[mine] = np.minimum(1.0, np.sqrt(2.0 * usual / np.maximum(misses[mine], 1e-12))) / usual
    shared, *rest = found.tolist()
    coefficients = np.array(rest)
    coefficients[[0, 3]] += shared
    for p, phase_seen in enumerate(seen):
        if not phase_seen:
            coefficients[3 * p : 3 * p + 3] = modelled[3 * p : 3 * p + 3]
    ratios = seconds / np.maximum(told, 1e-12)
    intervals = [_interval(ratios[phase == p]) if seen[p] else (1.0, 1.0) for p in (0, 1)]
    told_counts = [count if phase_seen else 0 for count, phase_seen in zip(counts, seen, strict=True)]
    taken = np.isin(observed.prefill_instance, instances) & np.isfinite(observed.queue_s)
    return _as_fit(
        kind,
        coefficients,
        (told_counts[0], told_counts[1]),
        (intervals[0], intervals[1]),
        source,
        shared_s=shared if shared > 0.0 else None,
        accept_s=float(np.min(observed.queue_s[taken])) if np.any(taken) else 0.0,
    )


class _Windows:
    """Who was where when: integrals over time of what every instance did, from the requests' own times.

    Rows hold the counts behind s, p0 - s, p1, p2, a - s, b, c.
    """

    def __init__(self, observed: ObservedRequests, chunk_tokens: int | None) -> None:
        start_s = observed.arrival_s + observed.queue_s
        first_s = observed.arrival_s + observed.ttft_s
        last_s = observed.arrival_s + observed.e2e_s
        prompt = observed.prompt_tokens.astype(np.float64)
        output = observed.output_tokens.astype(np.float64)
        self._chunked = chunk_tokens is not None
        self._whole = observed.preemptions == 0
        # Requests that arrive later are not in the data: what runs on after the last arrival has unseen company.
        self._seen_until_s = float(observed.arrival_s[-1]) if len(observed) else 0.0
        self._observed = observed
        self._start_s, self._first_s, self._last_s = start_s, first_s, last_s
        self._prompt, self._gaps = prompt, output - 1.0
        self._chunk_tokens = np.inf if chunk_tokens is None else float(chunk_tokens)

    def prompts(self, instances: Ints) -> tuple[Floats, Floats]:
        rows, seconds = [np.zeros((0, 7))], [np.zeros(0)]
        for instance in instances.tolist():
            at = self._prompts_on(instance)
            if not np.any(at):
                continue
            used = (self._whole & (self._first_s <= self._seen_until_s))[at]
            begin, end = self._start_s[at][used], self._first_s[at][used]
            work = self._prompt_work(instance)
            chunks, tokens, pairs = (work.done[work.last] - work.done[work.first])[used].T
            sequences, kv_tokens = self._decode_load(instance, begin, end)
            riding = chunks if self._chunked else np.zeros_like(chunks)
            loads = (riding * np.minimum(sequences, 1.0), riding * sequences, riding * kv_tokens)
            rows.append(np.stack((chunks, chunks, tokens, pairs, *loads), axis=1))
            seconds.append(end - begin)
        return np.concatenate(rows), np.concatenate(seconds)

    def decodes(self, instances: Ints) -> tuple[Floats, Floats]:
        rows, seconds = [np.zeros((0, 7))], [np.zeros(0)]
        for instance in instances.tolist():
            at = self._decodes_on(instance)
            mine = at & self._whole & (self._last_s <= self._seen_until_s)
            begin, end, gaps = self._first_s[mine], self._last_s[mine], self._gaps[mine]
            chunks, tokens, pairs = self._prompt_work(instance).between(begin, end)
            sequences, kv_tokens = self._decode_load(instance, begin, end)
            sequences = np.maximum(sequences, 1.0)
            loads = (gaps, gaps * sequences, gaps * kv_tokens)
            rows.append(np.stack((gaps, chunks, tokens, pairs, *loads), axis=1))
            seconds.append(end - begin)
        return np.concatenate(rows), np.concatenate(seconds)

    def _prompts_on(self, instance: int) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        here = self._observed.prefill_instance == instance
        return np.asarray(here & (self._first_s - self._start_s > 0.0))

    def _decodes_on(self, instance: int) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        here = self._observed.decode_instance == instance
        return np.asarray(here & (self._gaps > 0.0) & (self._last_s - self._first_s > 0.0))

    def _prompt_work(self, instance: int) -> "_PromptWork":
        on = self._prompts_on(instance)
        starts, ends = self._start_s[on], self._first_s[on]
        edges, first, last = _moments(starts, ends)
        room = self._chunk_tokens - self._decode_load(instance, edges[:-1], edges[1:])[0]
        done = _in_order(self._prompt[on], edges, first, last, np.maximum(room, 1.0))
        return _PromptWork(edges=edges, done=done, first=first, last=last)

    def _decode_load(self, instance: int, begin: Floats, end: Floats) -> tuple[Floats, Floats]:
        """Mean sequences and mean cached tokens in each window."""
        on = self._decodes_on(instance)
        starts, ends = self._first_s[on], self._last_s[on]
        none = np.zeros_like(starts)
        sequences = _integral(starts, ends, none + 1.0, none)
        kv_tokens = _integral(starts, ends, self._prompt[on] + 1.0, self._gaps[on] / (ends - starts))
        width = end - begin
        return (
            np.maximum((sequences(end) - sequences(begin)) / width, 0.0),
            np.maximum((kv_tokens(end) - kv_tokens(begin)) / width, 0.0),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _PromptWork:
    """Prompt iterations, tokens and pairs that an instance has done by each moment."""

    edges: Floats
    done: Floats
    """[edges, 3]"""
    first: Ints
    """Of each prompt: the edge at which it starts."""
    last: Ints

    def between(self, begin: Floats, end: Floats) -> tuple[Floats, Floats, Floats]:
        chunks, tokens, pairs = (
            np.interp(end, self.edges, column) - np.interp(begin, self.edges, column)
            for column in self.done.T
        )
        return chunks, tokens, pairs


def _moments(starts: Floats, ends: Floats) -> tuple[Floats, Ints, Ints]:
    """Find ends of iterations, as prompts tell them, and between which two of them each prompt lies."""
    both = np.concatenate((starts, ends))
    if not len(both):
        return np.array([0.0, 1.0]), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    order = np.argsort(both, kind="stable")
    new = np.diff(both[order], prepend=-np.inf) > _SHORTEST_S
    number = np.empty(len(both), dtype=np.int64)
    number[order] = np.cumsum(new) - 1
    edges = both[order][new]
    if len(edges) == 1:
        edges = np.append(edges, edges[0] + 1.0)
    first = np.minimum(number[: len(starts)], len(edges) - 2)
    return edges, first, np.maximum(number[len(starts) :], first + 1)


def _in_order(prompt: Floats, edges: Floats, first: Ints, last: Ints, room: Floats) -> Floats:
    """Deal the prompts' tokens out to the iterations, first come first served, as engines do.

    A prompt takes what the earlier ones leave of each iteration, and what is left of it before its end. Between two
    edges there are as many iterations as the tokens need that must be done there, or as fall to them by time.
    """
    done = np.zeros((len(room) + 1, 3))
    ends, left = last.tolist(), prompt.tolist()
    waiting = np.argsort(first, kind="stable").tolist()[::-1]
    active: list[int] = []
    for gap, tokens_per_iteration in enumerate(room.tolist()):
        while waiting and first[waiting[-1]] == gap:
            active.append(waiting.pop())
        if not active:
            continue
        head = active[0]
        if ends[head] == gap + 1:
            due = sum(left[i] for i in active if ends[i] == gap + 1)
            iterations = max(1, math.ceil(due / tokens_per_iteration - _SLACK))
        else:
            # It goes on beyond this gap, which has its share, by time, of all the iterations that it needs.
            needed = math.ceil(left[head] / tokens_per_iteration - _SLACK)
            share = (edges[gap + 1] - edges[gap]) / (edges[ends[head]] - edges[gap])
            most = needed - (ends[head] - gap) + 1
            iterations = max(1, min(round(needed * share), most))
        budget = iterations * tokens_per_iteration
        tokens = pairs = 0.0
        for i in active:
            taken = left[i] if ends[i] == gap + 1 else min(left[i], max(budget, 0.0))
            pairs += taken * (prompt[i] - left[i] + taken / 2.0)
            tokens += taken
            budget -= taken
            left[i] -= taken
        done[gap + 1] = iterations, tokens, pairs
        active = [i for i in active if ends[i] != gap + 1]
    total: Floats = np.cumsum(done, axis=0)
    return total


def _integral(starts: Floats, ends: Floats, level: Floats, slope: Floats) -> Callable[[Floats], Floats]:
    """Integral up to a time of the sum of windows, each ``level + slope (t - start)`` high."""
    if not len(starts):
        return np.zeros_like
    origin = float(starts.min())
    starts, ends = starts - origin, ends - origin
    times = np.concatenate((starts, ends))
    order = np.argsort(times, kind="stable")
    times = times[order]
    constant = level - slope * starts
    constants = np.cumsum(np.concatenate((constant, -constant))[order])
    slopes = np.cumsum(np.concatenate((slope, -slope))[order])
    squares = times * times / 2.0
    pieces = constants[:-1] * np.diff(times) + slopes[:-1] * np.diff(squares)
    sums = np.concatenate(([0.0], np.cumsum(pieces)))

    def up_to(at: Floats) -> Floats:
        at = np.clip(at - origin, 0.0, times[-1])
        i = np.searchsorted(times, at, side="right") - 1
        answer: Floats = sums[i] + constants[i] * (at - times[i]) + slopes[i] * (at * at / 2.0 - squares[i])
        return answer

    return up_to


def _relative_fit(terms: Floats, seconds: Floats) -> Floats:
    return nonnegative_least_squares(terms / seconds[:, None], np.ones_like(seconds))


def _sampled(model: PerformanceModel) -> Floats:
    """Coefficients that follow another model over usual sizes."""
    tokens = np.geomspace(64.0, 8192.0, 24)
    prefills = np.array([(t, 0.0, model.prefill_s(float(t))) for t in tokens])
    decodes = np.array(
        [
            (n, n * context, model.decode_iteration_s(float(n), float(n * context)))
            for n in (1.0, 4.0, 16.0, 64.0)
            for context in (128.0, 512.0, 1024.0, 2048.0, 4096.0)
        ]
    )
    fit = fit_iterations(model.kind, prefills, decodes)
    return np.array(
        (
            fit.prefill_s,
            fit.prefill_token_s,
            fit.prefill_pair_s,
            fit.decode_s,
            fit.sequence_s,
            fit.kv_token_s,
        )
    )


def _as_fit(
    kind: ReplicaKind,
    coefficients: Floats,
    counts: tuple[int, int],
    ratios: tuple[tuple[float, float], tuple[float, float]],
    source: str,
    *,
    shared_s: float | None = None,
    accept_s: float = 0.0,
) -> StepFit:
    """Take p0 to c; where nothing tells what is shared, it is all that can be."""
    p0, p1, p2, a, b, c = coefficients.tolist()
    return StepFit(
        kind=kind,
        prefill_s=p0,
        prefill_token_s=p1,
        prefill_pair_s=p2,
        decode_s=a,
        sequence_s=b,
        kv_token_s=c,
        shared_s=min(p0, a) if shared_s is None else shared_s,
        accept_s=accept_s,
        prefills=counts[0],
        decodes=counts[1],
        prefill_ratio_90=ratios[0],
        decode_ratio_90=ratios[1],
        source=source,
    )


def _interval(ratios: Floats) -> tuple[float, float]:
    low, high = np.quantile(ratios, (0.05, 0.95)).tolist()
    return low, high


def _enough(what: str, count: int) -> None:
    if count < FEWEST:
        raise InputError(f"{count} {what}", right=f"at least {FEWEST} for a fit")
