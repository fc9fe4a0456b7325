"""Bad values in a trace: every format answers with one line that names the place, or counts the row as left out."""

from pathlib import Path

import pytest

from solver.domain.errors import InputError
from telemetry.sources.traces.read import FORMATS, open_trace, read_trace

# First line ("" if the format has none), a row, the times of 1, 2 and 3 seconds, and the names of the three fields.
SHAPES = {
    "azure": (
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "{},{},{}",
        ("2024-01-01 00:00:01", "2024-01-01 00:00:02", "2024-01-01 00:00:03"),
        ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    ),
    "azure-2025": (
        "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens",
        "{},3,{},{}",
        ("2025-01-01 00:00:01", "2025-01-01 00:00:02", "2025-01-01 00:00:03"),
        ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    ),
    "blis": (
        "arrival_time_us,input_tokens,output_tokens",
        "{},{},{}",
        ("1000000", "2000000", "3000000"),
        ("arrival_time_us", "input_tokens", "output_tokens"),
    ),
    "burstgpt": (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
        "{},GPT-4,{},{},0,API log",
        ("1", "2", "3"),
        ("Timestamp", "Request tokens", "Response tokens"),
    ),
    "mooncake": (
        "",
        '{{"timestamp": {}, "input_length": {}, "output_length": {}}}',
        ("1000", "2000", "3000"),
        ("timestamp", "input_length", "output_length"),
    ),
    "plain": (
        "arrival_s,prompt_tokens,output_tokens",
        "{},{},{}",
        ("1", "2", "3"),
        ("arrival_s", "prompt_tokens", "output_tokens"),
    ),
    "splitwise-sim": (
        "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size",
        "0,2,0,{},1,{},{}",
        ("1", "2", "3"),
        ("arrival_timestamp", "prompt_size", "token_size"),
    ),
    "vidur": (
        "arrived_at,num_prefill_tokens,num_decode_tokens",
        "{},{},{}",
        ("1", "2", "3"),
        ("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    ),
}


def test_every_format_is_here() -> None:
    assert set(FORMATS) <= set(SHAPES)


def _written(folder: Path, shape: str, *rows: tuple[str, str, str]) -> tuple[Path, int]:
    """Write a trace; return it and the number of lines before the first row."""
    first, row, _, _ = SHAPES[shape]
    lines = [first] * bool(first) + [row.format(*values) for values in rows]
    path = folder / "t.csv"
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path, int(bool(first))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("position", "value"),
    [
        *((0, value) for value in ("-1", "nan", "NaN", "inf", "-inf", "", "soon")),
        *((side, value) for side in (1, 2) for value in ("-1", "nan", "NaN", "inf", "", "1.5", "1e99")),
    ],
)
@pytest.mark.parametrize(
    "quotes", [False, True]
)  # a quote sends the block through the reader of single lines
def test_no_such_value(*, tmp_path: Path, shape: str, position: int, value: str, quotes: bool) -> None:
    _, _, times, fields = SHAPES[shape]
    good = (times[1], "5", "5")
    bad = tuple(value if at == position else text for at, text in enumerate(good))
    if quotes and shape != "mooncake":
        bad = tuple(f'"{text}"' for text in bad)
    path, before = _written(tmp_path, shape, (times[0], "5", "5"), (bad[0], bad[1], bad[2]))
    with pytest.raises(InputError) as caught:
        read_trace(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{before + 2}: ")
    assert "\n" not in message
    # A bare nan is no JSON at all; then the line is shown, not the field.
    assert fields[position] in message or (shape == "mooncake" and "is not a JSON object" in message)
    assert "; " in message


@pytest.mark.parametrize("shape", SHAPES)
def test_time_going_back(tmp_path: Path, shape: str) -> None:
    _, _, times, fields = SHAPES[shape]
    path, before = _written(tmp_path, shape, (times[0], "5", "5"), (times[2], "5", "5"), (times[1], "5", "5"))
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:{before + 3}: {fields[0]}: time runs backwards: ")


@pytest.mark.parametrize("shape", SHAPES)
def test_zero_tokens_are_left_out_and_counted(tmp_path: Path, shape: str) -> None:
    times = SHAPES[shape][2]
    path, _ = _written(
        tmp_path,
        shape,
        (times[0], "0", "5"),
        (times[0], "5", "0"),
        (times[1], "0", "0"),
        (times[2], "5", "6"),
    )
    with open_trace(path) as stream:
        chunks = list(stream)
    assert stream.dropped == {"zero_prompt_tokens": 2, "zero_output_tokens": 1}
    assert [chunk.output_tokens.tolist() for chunk in chunks] == [[6]]


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_but_zero_tokens(tmp_path: Path, shape: str) -> None:
    path, _ = _written(tmp_path, shape, (SHAPES[shape][2][0], "5", "0"))
    with pytest.raises(
        InputError, match="no usable request: 1 without prompt or output tokens; at least one"
    ):
        read_trace(path)
