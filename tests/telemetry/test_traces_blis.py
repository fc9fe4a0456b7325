"""BLIS traces: shared prefixes as blocks, whose count of the prompt holds, what is refused."""

from pathlib import Path

import pytest

from solver.domain.errors import InputError
from solver.domain.trace import PrefixBlocks, Requests
from telemetry.sources.traces.blis import BLOCK_TOKENS
from telemetry.sources.traces.read import open_trace, read_trace

HEADER = (
    "slo_class,session_id,prefix_group,prefix_length,input_tokens,output_tokens,server_input_tokens,"
    "arrival_time_us,model\n"
)


def _read(folder: Path, *rows: str, header: str = HEADER) -> Requests:
    path = folder / "trace.csv"
    path.write_text(header + "".join(f"{row}\n" for row in rows), "utf-8")
    with open_trace(path) as stream:
        assert stream.format == "blis"
    return read_trace(path).requests


def _refusal(folder: Path, *rows: str) -> str:
    with pytest.raises(InputError) as caught:
        _read(folder, *rows)
    return str(caught.value).removeprefix(f"{folder}/")


def _ids(blocks: PrefixBlocks | None) -> list[list[int]]:
    assert blocks is not None
    return [
        blocks.ids[start:end].tolist()
        for start, end in zip(blocks.offsets[:-1].tolist(), blocks.offsets[1:].tolist(), strict=True)
    ]


def test_text_columns(tmp_path: Path) -> None:
    found = _read(tmp_path, "critical,s1,,0,10,5,0,0,llama", "batch,,,0,11,6,0,1500001,")
    assert found.request_class is not None
    assert found.session is not None
    assert found.model is not None
    assert found.request_class.to_list() == ["critical", "batch"]
    assert found.session.to_list() == ["s1", ""]
    assert found.model.to_list() == ["llama", ""]
    assert found.arrival_s.tolist() == [0.0, 1.500001]


def test_a_prompt_is_its_prefix_and_the_rest(tmp_path: Path) -> None:
    found = _read(
        tmp_path,
        "a,,,0,10,5,0,0,",
        "a,,g,1000,10,5,0,0,",
        "a,,,0,10,5,17,0,",  # the server counted
        "a,,g,1000,10,5,1017,0,",  # ... which does not count with a prefix
        "a,,,1000,10,5,0,0,",  # a length without a group is shared with nobody
        "a,,g,1000,0,5,0,0,",  # nothing but the prefix
    )
    assert found.prompt_tokens.tolist() == [10, 1010, 17, 1010, 10, 1000]


def test_groups_share_whole_blocks(tmp_path: Path) -> None:
    long, short = 2 * BLOCK_TOKENS + 7, BLOCK_TOKENS
    found = _read(
        tmp_path,
        f"a,,g,{long},10,5,0,0,",
        f"a,,h,{long},10,5,0,0,",
        "a,,,0,10,5,0,0,",
        f"a,,g,{short},10,5,0,0,",
        f"a,,g,{BLOCK_TOKENS - 1},10,5,0,0,",
        f"a,, g ,{long},10,5,0,0,",
    )
    first, other, none, shorter, shortest, spaced = _ids(found.blocks)
    assert len(first) == 2
    assert len(set(first + other)) == 4
    assert none == shortest == []
    assert shorter == first[:1]
    assert spaced == first


def test_groups_are_the_same_in_every_block_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"a,,g{index * index % 7},{BLOCK_TOKENS * (1 + index % 3)},10,5,0,0," for index in range(300)]
    whole = _read(tmp_path, *rows)
    monkeypatch.setattr("telemetry.sources.traces.lines.BLOCK_BYTES", 199)
    with open_trace(tmp_path / "trace.csv") as stream:
        assert sum(1 for _ in stream) > 20
    cut = read_trace(tmp_path / "trace.csv").requests
    assert {tuple(row) for row in _ids(whole.blocks)} == {tuple(row) for row in _ids(cut.blocks)}
    seen: dict[tuple[int, ...], tuple[int, ...]] = {}
    for there, here in zip(_ids(whole.blocks), _ids(cut.blocks), strict=True):
        assert seen.setdefault(tuple(there), tuple(here)) == tuple(here)


def test_old_traces_without_prefix_lengths_have_no_blocks(tmp_path: Path) -> None:
    found = _read(
        tmp_path,
        "g,10,5,0",
        header="prefix_group,input_tokens,output_tokens,arrival_time_us\n",
    )
    assert found.blocks is None
    assert found.prompt_tokens.tolist() == [10]


def test_the_header_file_is_not_the_trace(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the YAML header of a BLIS trace; the CSV file beside it, with col"):
        _read(tmp_path, "time_unit: microseconds", header="trace_version: 2\n")


def test_refusals(tmp_path: Path) -> None:
    assert _refusal(tmp_path, "a,,g,0,1,1,0,0,", "a,,g,2000000,1,1,0,0,").startswith(
        "trace.csv:3: prefix_length: 2,000,000 tokens of a shared prefix; a whole number from 0 to 1,048,576"
    )
    assert _refusal(tmp_path, "a,,,0,1,1,0,1.5,").startswith(
        "trace.csv:2: arrival_time_us: '1.5' is not a time in microseconds; a whole number from 0 to 10,000,"
    )
    assert "'20000000000000000' is not a time in" in _refusal(tmp_path, "a,,,0,1,1,0,20000000000000000,")
    assert "prefix_length: '-1' is not a number of tokens" in _refusal(tmp_path, "a,,g,-1,1,1,0,0,")
