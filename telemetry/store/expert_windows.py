"""Windows of routed tokens by layer and expert: how they lie in the database, and what a recording holds of late.

It exists apart from the store because a window is an array, not a row of figures. Counts are packed without loss: two
characters (``u1``, ``u2``, ``u4``, ``u8``: whole numbers of so many bytes, the fewest that hold them all; ``f8``: any
others), then zlib over little-endian values in the order of their indices; of whole numbers all first bytes come first,
then all second ones.
A window that was not recorded is missing, not empty.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from sqlalchemy import Connection, Engine, or_, select

from solver.domain.errors import InputError
from solver.domain.moe import Floats
from telemetry.experts.recording import ExpertRecording
from telemetry.store.connections import reading
from telemetry.store.schema import ExpertWindowRow

MOST_PACKED_BYTES = 32 * 2**20
"""Of one window."""
ROWS_AT_ONCE = 16
_LEVEL = 3
"""Of zlib: beyond it, little is saved and transitions of a large model take seconds."""
_NAME_LENGTH = 512
_WHOLE = ("u1", "u2", "u4", "u8")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWindow:
    """Routed tokens of one window of one recording, packed."""

    recording: str
    model: str
    start_s: float
    end_s: float
    """Seconds since 1970."""
    layers: int
    experts: int
    load: bytes
    """[L, E]."""
    transitions: bytes | None = None
    """[L - 1, E, E], where they are known."""

    @property
    def packed_bytes(self) -> int:
        """What it takes in memory and in the database, nearly."""
        return len(self.load) + len(self.transitions or b"")


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedLoad:
    """The sum of the last windows of a recording."""

    recording: str
    model: str
    load: Floats
    """Routed tokens, [L, E]."""
    transitions: Floats | None
    """[L - 1, E, E]; None unless all windows have them."""
    windows: int
    covered_s: float
    """The length of all windows together: what lies between them was not recorded."""
    end_s: float
    """Of the newest."""


def packed(counts: Floats) -> bytes:
    """Pack counts of any shape without loss.

    Raises
    ------
    InputError
        If one of them is not finite or negative.
    """
    values = np.ascontiguousarray(counts, dtype=np.float64).ravel()
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise InputError("values that are no counts", right="counts are finite and not negative")
    largest = float(values.max(initial=0.0))
    kind = "f8"
    if largest < 2.0**63 and (values == np.floor(values)).all():
        kind = next(name for name in _WHOLE if largest < 2.0 ** (8 * int(name[1])))
    raw = values.astype(f"<{kind}").tobytes()
    if kind != "f8":
        raw = np.frombuffer(raw, dtype=np.uint8).reshape(values.size, int(kind[1])).T.tobytes()
    return kind.encode() + zlib.compress(raw, _LEVEL)


def unpacked(raw: bytes, shape: tuple[int, ...]) -> Floats:
    """Return packed counts of a shape.

    Raises
    ------
    InputError
        If they are damaged, or of another shape.
    """
    kind, size = raw[:2].decode("latin-1"), math.prod(shape)
    if kind not in {*_WHOLE, "f8"}:
        raise InputError("packed counts begin with no known type", right="windows that Ballast wrote")
    width = int(kind[1])
    unpacking = zlib.decompressobj()
    try:
        plain = unpacking.decompress(raw[2:], size * width + 1)
    except zlib.error:
        raise InputError("packed counts are damaged", right="windows that Ballast wrote") from None
    if len(plain) != size * width or (size and not unpacking.eof):
        raise InputError(f"packed counts do not fill {list(shape)}", right="windows that Ballast wrote")
    if kind != "f8":
        plain = np.frombuffer(plain, dtype=np.uint8).reshape(width, size).T.tobytes()
    counts = np.frombuffer(plain, dtype=f"<{kind}").astype(np.float64).reshape(shape)
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise InputError("values that are no counts", right="counts are finite and not negative")
    return counts


def windows_of(
    found: ExpertRecording, *, recording: str, model: str, end_s: float, window_s: float
) -> tuple[ExpertWindow, ...]:
    """Return what is recorded as windows of ``window_s`` each, the newest of which ended at ``end_s``.

    A recording that holds windows of its own becomes as many; with transitions, which are of all of them together, it
    stays one long window.

    Raises
    ------
    InputError
        If names are too long, times are none, or a window is too large.
    """
    for what, name in (("recording", recording), ("model", model)):
        if not (0 < len(name) <= _NAME_LENGTH and name.isprintable()):
            raise InputError(f"{what} {name[:80]!r}", right=f"1 to {_NAME_LENGTH} printable characters")
    if not (math.isfinite(end_s) and math.isfinite(window_s) and window_s > 0):
        raise InputError(f"a window of {window_s} s up to {end_s} s", right="finite times, a length above 0")
    transitions = found.transitions
    loads: Sequence[Floats] = [found.load]
    each_s = window_s
    if found.windows is not None and len(found.windows) > 1:
        if transitions is None:
            loads = list(found.windows)
        else:
            each_s = window_s * len(found.windows)
    steps = None if transitions is None else packed(transitions)
    windows = []
    for back, load in enumerate(reversed(loads)):
        own_end_s = end_s - back * each_s
        window = ExpertWindow(
            recording=recording,
            model=model,
            start_s=own_end_s - each_s,
            end_s=own_end_s,
            layers=found.layers,
            experts=found.experts,
            load=packed(load),
            transitions=steps,
        )
        if window.packed_bytes > MOST_PACKED_BYTES:
            raise InputError(
                f"a window of {recording} takes {window.packed_bytes} bytes",
                right=f"at most {MOST_PACKED_BYTES}; leave transitions out",
            )
        windows.append(window)
    return tuple(reversed(windows))


def put_windows(connection: Connection, windows: Iterable[ExpertWindow]) -> int:
    """Write windows; returns how many were new. Who calls is the only writer.

    A window that ends less than half its length before or after another of the same recording is a repetition: the same
    one, or one measured again after a restart.
    """
    table = ExpertWindowRow.__table__
    new = 0
    for window in sorted(windows, key=lambda one: one.end_s):
        half_s = (window.end_s - window.start_s) / 2
        same_end = table.c.end_s == window.end_s  # whatever the model: nothing is recorded twice at once
        near = (
            (table.c.end_s > window.end_s - half_s)
            & (table.c.end_s < window.end_s + half_s)
            & (table.c.model == window.model)
            & (table.c.layers == window.layers)
            & (table.c.experts == window.experts)
        )
        query = select(table.c.end_s).where(table.c.recording == window.recording, or_(same_end, near))
        if connection.execute(query.limit(1)).first() is None:
            connection.execute(table.insert(), asdict(window))  # type: ignore[attr-defined]
            new += 1
    return new


def last_windows(
    engine: Engine, recording: str, *, window_s: float, until_s: float = math.inf
) -> RecordedLoad | None:
    """Add up the newest window that ended by ``until_s`` and those before it within ``window_s``.

    None if there is none. A window counts if its middle lies in that time and it is of the newest one's model and
    shape.

    Raises
    ------
    InputError
        If a window is damaged.
    """
    table = ExpertWindowRow.__table__
    with reading(engine) as connection:
        newest = connection.execute(
            select(table.c.model, table.c.layers, table.c.experts, table.c.end_s)
            .where(table.c.recording == recording, table.c.end_s <= until_s)
            .order_by(table.c.end_s.desc())
            .limit(1)
        ).first()
        if newest is None:
            return None
        model, layers, experts, end_s = newest
        since_s = end_s - window_s
        query = (
            select(table.c.start_s, table.c.end_s, table.c.load, table.c.transitions)
            .where(
                table.c.recording == recording,
                table.c.model == model,
                table.c.layers == layers,
                table.c.experts == experts,
                table.c.end_s <= end_s,
                table.c.end_s > since_s,
                or_(table.c.end_s == end_s, table.c.start_s + table.c.end_s > 2 * since_s),
            )
            .order_by(table.c.end_s)
        )
        load = np.zeros((layers, experts))
        transitions: Floats | None = np.zeros((max(0, layers - 1), experts, experts))
        windows, covered_s = 0, 0.0
        try:
            with connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}) as rows:
                for row in rows:
                    load += unpacked(row.load, (layers, experts))
                    if row.transitions is None or transitions is None:
                        transitions = None
                    else:
                        transitions += unpacked(row.transitions, transitions.shape)
                    windows += 1
                    covered_s += row.end_s - row.start_s
        except InputError as error:
            raise InputError(error.what, where=f"recording {recording}", right=error.right) from None
    return RecordedLoad(
        recording=recording,
        model=model,
        load=load,
        transitions=transitions,
        windows=windows,
        covered_s=covered_s,
        end_s=end_s,
    )
