"""Step times and watts from measured points: `ProfileTable`.

It exists because a measurement of the very replica beats any formula. It interpolates between points and
refuses to answer outside them unless it was told to extrapolate. It fits nothing and reads no file
(`telemetry.catalogue.read_profiles` does).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from solver.domain.errors import InputError
from solver.performance.protocol import OutsideRangeError, PerformanceModel, ReplicaKind, require_amount


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillPoint:
    """One measured prefill."""

    new_tokens: float
    seconds: float
    watts: float | None = None
    """Of all GPUs; None: not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePoint:
    """One measured decode iteration."""

    sequences: float
    kv_tokens: float
    """Cached tokens of all sequences together."""
    seconds: float
    watts: float | None = None


Knots = tuple[tuple[float, float], ...]


def _line(knots: Knots, at: float) -> float:
    """Piecewise linear through sorted knots; constant before the first, the last slope after the last."""
    if at <= knots[0][0] or len(knots) == 1:
        return knots[0][1]
    right = min(bisect_right([x for x, _ in knots], at), len(knots) - 1)
    (x0, y0), (x1, y1) = knots[right - 1], knots[right]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileTable:
    """`PerformanceModel` from points measured on one kind of replica.

    Prefill is piecewise linear in tokens. Decode is a row per measured number of sequences: inside a row
    piecewise linear in cached tokens, beyond a row's own points (but inside the table's) by
    ``kv_slope_s_per_token``, between two rows linear in sequences at equal cached tokens. With one point per
    row at a fixed context this is the ``table-kv`` form token(n) + c·(KV − KV(n)).

    ``fallback`` answers what the table has no points for (watts, KV capacity, idle power, a whole phase);
    without it that raises `InputError`. ``extrapolate`` allows answers outside the points: constant below,
    the last slope above.
    """

    kind: ReplicaKind
    prefill: tuple[PrefillPoint, ...] = ()
    decode: tuple[DecodePoint, ...] = ()
    kv_slope_s_per_token: float | None = None
    """Seconds per further cached token; None: least squares inside the rows that have several points."""
    provenance: str = ""
    fallback: PerformanceModel | None = None
    extrapolate: bool = False

    def __post_init__(self) -> None:
        if not self.prefill and not self.decode:
            raise ValueError("a profile table needs at least one point")
        keys: list[tuple[float, ...]] = [(point.new_tokens,) for point in self.prefill]
        keys += [(point.sequences, point.kv_tokens) for point in self.decode]
        if len(set(keys)) < len(keys):
            raise ValueError("a profile table holds each point once; take the median of repeated runs")
        seconds = [point.seconds for point in self.prefill] + [point.seconds for point in self.decode]
        if min(seconds) <= 0:
            raise ValueError("measured seconds are positive")
        object.__setattr__(self, "prefill", tuple(sorted(self.prefill, key=lambda point: point.new_tokens)))
        order = sorted(self.decode, key=lambda point: (point.sequences, point.kv_tokens))
        object.__setattr__(self, "decode", tuple(order))
        if self.kv_slope_s_per_token is None:
            object.__setattr__(self, "kv_slope_s_per_token", _inner_slope(order))

    def _else(self, what: str) -> PerformanceModel:
        if self.fallback is None:
            raise InputError(
                f"{what} was not measured for {self.kind}",
                right="a row for it in the profile file, or a model to fall back on",
            )
        return self.fallback

    def _inside(self, quantity: str, value: float, measured: Sequence[float]) -> None:
        low, high = min(measured), max(measured)
        if not self.extrapolate and not low <= value <= high:
            raise OutsideRangeError(quantity, value, low, high)

    def prefill_s(self, new_tokens: float, *, context_tokens: float = 0.0) -> float:
        """Seconds of a prefill; with cached context, the larger of T(new) and T(context + new) − T(context).

        The table has no chunks: the difference carries the growing attention, the first the cost of a step of
        its own. Raises `OutsideRangeError` outside the points.
        """
        require_amount("new_tokens", new_tokens)
        require_amount("context_tokens", context_tokens)
        if new_tokens == 0.0:
            return 0.0
        if not self.prefill:
            return self._else("prefill time").prefill_s(new_tokens, context_tokens=context_tokens)
        knots = tuple((point.new_tokens, point.seconds) for point in self.prefill)
        measured = [x for x, _ in knots]
        self._inside("new_tokens", new_tokens, measured)
        alone = _line(knots, new_tokens)
        if context_tokens == 0.0:
            return alone
        end = context_tokens + new_tokens
        if not self.extrapolate and end > measured[-1]:
            raise OutsideRangeError("context_tokens + new_tokens", end, measured[0], measured[-1])
        return max(alone, _line(knots, end) - _line(knots, context_tokens))

    def _decode_at(
        self, sequences: float, kv_tokens: float, values: Sequence[tuple[float, float, float]]
    ) -> float:
        """Interpolate sorted (sequences, kv_tokens, value), with the kv slope where a row ends."""
        rows: dict[float, list[tuple[float, float]]] = {}
        for count, kv, value in values:
            rows.setdefault(count, []).append((kv, value))
        slope = self.kv_slope_s_per_token or 0.0

        def row_at(row: list[tuple[float, float]]) -> float:
            nearest = min(max(kv_tokens, row[0][0]), row[-1][0])
            return _line(tuple(row), nearest) + slope * (kv_tokens - nearest)

        return _line(tuple((count, row_at(row)) for count, row in rows.items()), sequences)

    def decode_iteration_s(self, sequences: float, kv_tokens: float) -> float:
        """Seconds of a decode iteration; raises `OutsideRangeError` outside the points."""
        require_amount("sequences", sequences)
        require_amount("kv_tokens", kv_tokens)
        if sequences == 0.0:
            return 0.0
        if not self.decode:
            return self._else("decode time").decode_iteration_s(sequences, kv_tokens)
        self._inside("sequences", sequences, [point.sequences for point in self.decode])
        self._inside("kv_tokens", kv_tokens, [point.kv_tokens for point in self.decode])
        values = [(point.sequences, point.kv_tokens, point.seconds) for point in self.decode]
        return max(self._decode_at(sequences, kv_tokens, values), 0.0)

    def prefill_w(self, new_tokens: float) -> float:
        """Watts of a prefill, from the points that have them, else from the fallback."""
        require_amount("new_tokens", new_tokens)
        if new_tokens == 0.0:
            return self.idle_w()
        knots = tuple((point.new_tokens, point.watts) for point in self.prefill if point.watts is not None)
        if not knots:
            return self._else("prefill power").prefill_w(new_tokens)
        self._inside("new_tokens", new_tokens, [x for x, _ in knots])
        # Watts level off, so the last value is held where seconds would go on rising.
        return _line(knots, min(new_tokens, knots[-1][0]))

    def decode_w(self, sequences: float, kv_tokens: float) -> float:
        """Watts of a decode iteration, linear in sequences, where measured, else from the fallback."""
        require_amount("sequences", sequences)
        require_amount("kv_tokens", kv_tokens)
        if sequences == 0.0:
            return self.idle_w()
        rows: dict[float, list[float]] = {}
        for point in self.decode:
            if point.watts is not None:
                rows.setdefault(point.sequences, []).append(point.watts)
        if not rows:
            return self._else("decode power").decode_w(sequences, kv_tokens)
        knots = tuple((count, sum(watts) / len(watts)) for count, watts in sorted(rows.items()))
        self._inside("sequences", sequences, [x for x, _ in knots])
        return _line(knots, min(sequences, knots[-1][0]))

    def idle_w(self) -> float:
        """Idle watts are not in a profile: always the fallback's."""
        return self._else("idle power").idle_w()

    def kv_capacity_tokens(self) -> int:
        """KV capacity is not in a profile: always the fallback's."""
        return self._else("KV capacity").kv_capacity_tokens()


def _inner_slope(points: Sequence[DecodePoint]) -> float | None:
    """Least-squares slope of seconds over cached tokens inside rows of equal sequences; None without such a row."""
    rows: dict[float, list[DecodePoint]] = {}
    for point in points:
        rows.setdefault(point.sequences, []).append(point)
    over = under = 0.0
    for row in rows.values():
        mean_kv = sum(point.kv_tokens for point in row) / len(row)
        mean_s = sum(point.seconds for point in row) / len(row)
        over += sum((point.kv_tokens - mean_kv) * (point.seconds - mean_s) for point in row)
        under += sum((point.kv_tokens - mean_kv) ** 2 for point in row)
    return max(over / under, 0.0) if under > 0.0 else None
