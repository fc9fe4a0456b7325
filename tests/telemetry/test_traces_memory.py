"""A trace far larger than the memory it may take is described and copied; a whole one takes little more than itself."""

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from solver.domain.trace_summary import summarise
from telemetry.sources.traces.read import open_trace, read_trace
from telemetry.sources.traces.write import write_trace

MIB = 1 << 20
BLOCK_ROWS = 1_000


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in blocks of 64 KiB, so that the same bound is proved with a smaller file."""
    monkeypatch.setattr("telemetry.sources.traces.lines.BLOCK_BYTES", 64 << 10)


def _large_trace(path: Path, blocks: int) -> None:
    """Write ``blocks`` times the same 1,000 rows, each time at one instant."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"arrival_s,prompt_tokens,output_tokens,model\n")
        for block in range(blocks):
            file.writelines(
                b"%d.5,%d,%d,chat\n" % (block, row * 37 % 9000 + 1, row % 700 + 1)
                for row in range(BLOCK_ROWS)
            )


def _peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_describing_takes_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.csv.gz"
    _large_trace(path, 1_000)

    def describe() -> None:
        with open_trace(path) as stream:
            summary = summarise(stream)
        assert summary.requests == 1_000 * BLOCK_ROWS

    assert _peak(describe) < 4 * MIB  # the columns alone take 31 MiB


def test_copying_takes_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.csv.gz"
    _large_trace(path, 200)

    def copy() -> None:
        with open_trace(path) as stream:
            write_trace(stream, tmp_path / "copy.csv")

    assert _peak(copy) < 3 * MIB  # the columns alone take 6 MiB
    with open_trace(tmp_path / "copy.csv") as stream:
        assert sum(len(chunk) for chunk in stream) == 200 * BLOCK_ROWS


def test_a_whole_trace_takes_little_more_than_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "large.csv.gz"
    _large_trace(path, 400)

    def read() -> None:
        assert len(read_trace(path)) == 400 * BLOCK_ROWS

    # Three columns and the model's: 12.2 MiB, an eighth of that, and what describing takes. Twice would be 24.4 MiB.
    assert _peak(read) < 17 * MIB
