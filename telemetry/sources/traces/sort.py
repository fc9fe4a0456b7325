"""Puts the requests of a trace that is out of order into the order of arrival, on the disk where memory is too small.

It exists for ``ballast trace import --sort`` alone: every other reader refuses a trace whose time runs backwards,
because sorting needs the whole of it.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solver.domain.trace import Labels, Requests

_TEXTS = ("session", "model", "request_class")
_ROW = np.dtype(
    [
        ("arrival_s", "f8"),
        ("prompt_tokens", "i8"),
        ("output_tokens", "i8"),
        *((text, "i8") for text in _TEXTS),
    ]
)


def sorted_chunks(
    chunks: Iterable[Requests], *, run_rows: int = 1 << 21, chunk_rows: int = 1 << 16
) -> Iterator[Requests]:
    """Yield the requests in the order of arrival, equal times in the order of the file.

    Runs of ``run_rows`` requests are sorted in memory and kept in a temporary folder, then merged. Memory: one run, one
    chunk per run, and each distinct text once. If the earliest arrival is before 0, it becomes the new 0. Prefix
    blocks are not kept.
    """
    numbers: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory(prefix="ballast-sort-") as folder:
        runs = _sorted_runs(chunks, Path(folder), run_rows, numbers)
        shift_s = min((float(run["arrival_s"][0]) for run in runs), default=0.0)
        for rows in _merged(runs, chunk_rows):
            yield _requests(rows, numbers, min(shift_s, 0.0))
        del runs


def _sorted_runs(
    chunks: Iterable[Requests], folder: Path, run_rows: int, numbers: dict[str, dict[str, int]]
) -> list[NDArray[Any]]:
    runs: list[NDArray[Any]] = []
    pending: list[NDArray[Any]] = []
    held = 0
    for chunk in chunks:
        pending.append(_rows(chunk, numbers))
        held += len(chunk)
        if held >= run_rows:
            runs.append(_stored(_in_order(pending), folder / f"{len(runs)}.rows"))
            pending, held = [], 0
    if pending:
        runs.append(_in_order(pending))
    return runs


def _in_order(parts: list[NDArray[Any]]) -> NDArray[Any]:
    rows = np.concatenate(parts)
    ordered: NDArray[Any] = rows[np.argsort(rows["arrival_s"], kind="stable")]
    return ordered


def _stored(rows: NDArray[Any], path: Path) -> NDArray[Any]:
    rows.tofile(path)
    return np.memmap(path, dtype=_ROW, mode="r")


def _merged(runs: list[NDArray[Any]], chunk_rows: int) -> Iterator[NDArray[Any]]:
    at = [0] * len(runs)
    while True:
        heads = [run[start : start + chunk_rows] for run, start in zip(runs, at, strict=True)]
        # A run that goes on behind its head has no row there before the head's last: so far all runs are known.
        ends = [
            (float(head["arrival_s"][-1]), index)
            for index, (run, start, head) in enumerate(zip(runs, at, heads, strict=True))
            if start + len(head) < len(run)
        ]
        known_s, shortest = min(ends, default=(np.inf, len(runs)))
        # Rows at that very time may follow in the shortest run, and they stand before those of later runs.
        taken = [
            int(np.searchsorted(head["arrival_s"], known_s, side="right" if index <= shortest else "left"))
            for index, head in enumerate(heads)
        ]
        if not sum(taken):
            return
        yield _in_order([head[:number] for head, number in zip(heads, taken, strict=True)])
        at = [start + number for start, number in zip(at, taken, strict=True)]


def _rows(chunk: Requests, numbers: dict[str, dict[str, int]]) -> NDArray[Any]:
    rows = np.zeros(len(chunk), dtype=_ROW)
    for column in ("arrival_s", "prompt_tokens", "output_tokens"):
        rows[column] = getattr(chunk, column)
    for text in _TEXTS:
        labels = getattr(chunk, text)
        if labels is not None:
            known = numbers.setdefault(text, {})
            table = np.array([known.setdefault(name, len(known)) for name in labels.names], dtype=np.int64)
            rows[text] = table[labels.codes]
    return rows


def _requests(rows: NDArray[Any], numbers: dict[str, dict[str, int]], shift_s: float) -> Requests:
    def labels(text: str) -> Labels | None:
        return _labels(rows[text], tuple(numbers[text])) if text in numbers else None

    return Requests(
        arrival_s=rows["arrival_s"] - shift_s,
        prompt_tokens=rows["prompt_tokens"],
        output_tokens=rows["output_tokens"],
        session=labels("session"),
        model=labels("model"),
        request_class=labels("request_class"),
    )


def _labels(codes: NDArray[Any], names: tuple[str, ...]) -> Labels:
    used, local = np.unique(codes, return_inverse=True)
    return Labels(codes=local, names=tuple(names[code] for code in used.tolist()))
