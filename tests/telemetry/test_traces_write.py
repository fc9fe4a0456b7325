"""Writing traces: what is written reads back equal, files appear whole or not at all, and sorting sorts."""

import gzip
import io
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.trace import Labels, Requests, concatenate
from telemetry.sources.traces.read import open_trace, read_trace
from telemetry.sources.traces.sort import sorted_chunks
from telemetry.sources.traces.write import whole_file, whole_files, write_rows, write_trace

_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=8)


def _requests(rows: list[tuple[float, int, int, str]]) -> Requests:
    names = [name for *_, name in rows]
    return Requests(
        arrival_s=np.array([time for time, *_ in rows]),
        prompt_tokens=np.array([prompt for _, prompt, _, _ in rows]),
        output_tokens=np.array([output for _, _, output, _ in rows]),
        model=Labels(codes=np.arange(len(names)), names=tuple(names)),
    )


def requests(*, ordered: bool = True) -> st.SearchStrategy[Requests]:
    row = st.tuples(
        st.one_of(st.floats(0, 1e10), st.integers(0, 5).map(float)),
        st.integers(1, 10**9),
        st.integers(1, 10**9),
        _TEXT,
    )
    rows = st.lists(row, min_size=1, max_size=12)
    return rows.map(lambda drawn: _requests(sorted(drawn, key=lambda row: row[0]) if ordered else drawn))


@given(first=requests(), packed=st.booleans())
@settings(deadline=None)
def test_what_is_written_reads_back_equal(*, first: Requests, packed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("t.csv.gz" if packed else "t.csv")
        assert write_trace([first], path) == len(first)
        back = read_trace(path, format="plain").requests
        assert back.arrival_s.tolist() == first.arrival_s.tolist()
        assert back.prompt_tokens.tolist() == first.prompt_tokens.tolist()
        assert back.output_tokens.tolist() == first.output_tokens.tolist()
        assert back.model is not None
        assert first.model is not None
        assert back.model.to_list() == first.model.to_list()
        assert [entry.name for entry in Path(folder).iterdir()] == [path.name]


def test_equal_requests_give_equal_bytes(tmp_path: Path) -> None:
    row = _requests([(0.5, 1, 2, "a"), (1e-7, 3, 4, 'b,"')])
    for name in ("a.csv.gz", "b.csv.gz"):
        write_trace([row], tmp_path / name)
    packed = (tmp_path / "a.csv.gz").read_bytes()
    assert packed == (tmp_path / "b.csv.gz").read_bytes()
    assert gzip.decompress(packed).decode() == (
        'arrival_s,prompt_tokens,output_tokens,model\n0.5,1,2,a\n1e-07,3,4,"b,"""\n'
    )


def test_a_failed_write_leaves_nothing_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("old")

    def failing() -> Iterator[Requests]:
        yield _requests([(0.0, 1, 1, "a")])
        raise InputError("broken")

    for name in ("old.csv", "new.csv"):
        with pytest.raises(InputError, match="broken"):
            write_trace(failing(), tmp_path / name)

    def one_whole_one_broken() -> None:
        with whole_files() as begin:
            with begin(tmp_path / "one.csv") as write:
                write("one")
            with begin(tmp_path / "two.csv") as write:
                write_rows(failing(), write)

    with pytest.raises(InputError, match="broken"):
        one_whole_one_broken()
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.csv"]
    assert (tmp_path / "old.csv").read_text() == "old"


def test_a_written_file_has_ordinary_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with whole_file(tmp_path / "whole") as write:
        write("x")
    assert (tmp_path / "whole").stat().st_mode == plain.stat().st_mode


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no/t\.csv: cannot be written: No such file or directory; a file in"
    ):
        write_trace([], tmp_path / "no" / "t.csv")
    with pytest.raises(InputError, match="is a directory; the name of a file"):
        write_trace([], tmp_path)


def test_devices_and_links_stay_what_they_are(tmp_path: Path) -> None:
    rows = [_requests([(0.0, 1, 1, "a")])]
    device = Path("/dev/null")
    if device.is_char_device():
        assert write_trace(rows, device) == 1
        assert device.is_char_device()
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "real" / "t.csv")
    write_trace(rows, link)
    assert link.is_symlink()
    assert len(read_trace(tmp_path / "real" / "t.csv")) == 1
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text, "utf-8")
        write_trace(rows, pipe)
        assert read.result(timeout=10) == "arrival_s,prompt_tokens,output_tokens,model\n0.0,1,1,a\n"
    assert pipe.is_fifo()


def test_a_full_disk_is_told_in_one_line() -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full here")
    with pytest.raises(InputError, match=r"/dev/full: cannot be written: No space left on device; a file in"):
        write_trace([_requests([(0.0, 1, 1, "a")])], "/dev/full")


def test_chunks_may_lack_what_the_first_had() -> None:
    lines = io.StringIO()
    bare = Requests(arrival_s=np.array([2.0]), prompt_tokens=np.array([1]), output_tokens=np.array([1]))
    assert write_rows([_requests([(0.0, 1, 1, "a")]), bare], lines.write) == 2
    assert lines.getvalue() == "arrival_s,prompt_tokens,output_tokens,model\n0.0,1,1,a\n2.0,1,1,\n"


@given(
    chunks=st.lists(requests(ordered=False), min_size=1, max_size=6),
    run_rows=st.integers(1, 20),
    chunk_rows=st.integers(1, 5),
)
@settings(deadline=None)
def test_sorting_is_stable_whatever_the_runs(chunks: list[Requests], run_rows: int, chunk_rows: int) -> None:
    whole = concatenate(chunks)
    order = np.argsort(whole.arrival_s, kind="stable")
    wanted = whole.take(order)
    found = concatenate(sorted_chunks(chunks, run_rows=run_rows, chunk_rows=chunk_rows))
    assert found.arrival_s.tolist() == wanted.arrival_s.tolist()
    assert found.prompt_tokens.tolist() == wanted.prompt_tokens.tolist()
    assert found.model is not None
    assert wanted.model is not None
    assert found.model.to_list() == wanted.model.to_list()


def test_sorting_a_calendar_trace_moves_its_start(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01 00:00:05,5,1\n2024-01-01 00:00:02,2,1\n", "utf-8"
    )
    with open_trace(path, ordered=False) as stream:
        found = concatenate(sorted_chunks(stream))
    assert found.arrival_s.tolist() == [0.0, 3.0]
    assert found.prompt_tokens.tolist() == [2, 5]
