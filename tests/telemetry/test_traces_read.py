"""Trace readers: every format, what they refuse and in which words, and the published statistics of real traces."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from solver.domain.errors import InputError
from solver.domain.trace_summary import summarise
from telemetry.sources.traces.read import FORMATS, open_trace, read_trace

DATA = Path("../shared/data")
HEADER = "arrival_s,prompt_tokens,output_tokens\n"


def _file(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _refusal(path: Path | str, **options: str) -> str:
    with pytest.raises(InputError) as caught, open_trace(path, **options) as stream:  # type: ignore[arg-type]
        list(stream)
    assert "\n" not in str(caught.value)
    return str(caught.value)


SAMPLES = {
    "azure": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
    ),
    "azure-2024": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 23:59:59+00:00,374,44\n"
        "2024-05-11 00:00:03.314579+00:00,396,109\n"
    ),
    "azure-zones": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-02-29T23:59:59Z,374,44\n"
        "2024-03-01 01:30:03.314579+01:30,396,109\n"
    ),
    "azure-2025": (
        "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
        "2025-01-01 00:00:00.0,0,374,44\n"
        "2025-01-01 00:00:04.3145790,2,396,109\n"
    ),
    "blis": (
        "request_id,client_id,tenant_id,slo_class,session_id,round_index,prefix_group,prefix_length,streaming,"
        "input_tokens,output_tokens,text_tokens,image_tokens,audio_tokens,video_tokens,reason_ratio,model,"
        "deadline_us,server_input_tokens,arrival_time_us,send_time_us,first_chunk_time_us,last_chunk_time_us,"
        "num_chunks,status,error_message,finish_reason\n"
        "0,c,t,critical,s1,0,,0,true,374,44,0,0,0,0,0,m,0,0,0,0,0,0,0,ok,,stop\n"
        "1,c,t,batch,,0,,0,true,396,109,0,0,0,0,0.5,m,0,0,4314579,4314579,0,0,0,timeout,,\n"
    ),
    "burstgpt": (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "0,7,1.5,ChatGPT,374,44,418,Conversation log\n"
        "2,7,,ChatGPT,374,0,374,Conversation log\n"
        "4.314579,,2.5,GPT-4,396,109,505,API log\n"
    ),
    "mooncake": (
        '{"timestamp": 0, "input_length": 374, "output_length": 44, "hash_ids": [0, 1]}\n'
        '{"timestamp": 4314.579, "input_length": 396, "output_length": 109, "hash_ids": [0]}\n'
    ),
    "plain": f"{HEADER}0,374,44\n4.314579,396,109\n",
    "plain-golden": "request_id,arrival_s,prompt_tokens,output_tokens\n0,0.000000,374,44\n1,4.314579,396,109\n",
    "splitwise-sim": (
        "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
        "0,2,0,0.0,1,374,44\n1,2,0,4.314579,1,396,109\n"
    ),
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.314579,396,109\n",
}


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_every_format_gives_the_same_requests(
    *, tmp_path: Path, sample: str, packed: bool, ends: str, mark: str
) -> None:
    raw = (mark + SAMPLES[sample].replace("\n", ends)).encode()
    if packed:
        raw = gzip.compress(raw)
    path = _file(tmp_path, raw)
    named = next(name for name in sorted(FORMATS, key=len, reverse=True) if sample.startswith(name))
    with open_trace(path) as stream:
        assert stream.format == named
    for form in (None, named):
        trace = read_trace(path, format=form)
        assert trace.arrival_s.tolist() == [0.0, 4.314579]
        assert trace.prompt_tokens.tolist() == [374, 396]
        assert trace.output_tokens.tolist() == [44, 109]
        assert trace.sha256 == hashlib.sha256(raw).hexdigest()


def test_further_columns_are_kept(tmp_path: Path) -> None:
    burst = read_trace(_file(tmp_path, SAMPLES["burstgpt"])).requests
    assert burst.session is not None
    assert burst.model is not None
    assert burst.request_class is not None
    assert burst.session.to_list() == ["7", ""]
    assert burst.model.to_list() == ["ChatGPT", "GPT-4"]
    assert burst.request_class.to_list() == ["Conversation log", "API log"]
    blocks = read_trace(_file(tmp_path, SAMPLES["mooncake"])).requests.blocks
    assert blocks is not None
    assert blocks.ids.tolist() == [0, 1, 0]
    assert blocks.offsets.tolist() == [0, 2, 3]


def test_failed_requests_are_left_out_and_counted(tmp_path: Path) -> None:
    path = _file(tmp_path, f"{HEADER}0,5,0\n1,0,5\n2,0,0\n3,5,5\n")
    with open_trace(path) as stream:
        chunks = list(stream)
    assert [len(chunk) for chunk in chunks] == [1]
    assert stream.dropped == {"zero_prompt_tokens": 2, "zero_output_tokens": 1}
    assert stream.requests == 1


def test_quotes_blank_lines_and_spaces(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        'model,arrival_s, prompt_tokens ,output_tokens\n"a,b",0, 5 ,6.0\n\n"say ""x""",1e0,7,8\n  \n',
    )
    trace = read_trace(path)
    assert trace.arrival_s.tolist() == [0.0, 1.0]
    assert trace.prompt_tokens.tolist() == [5, 7]
    assert trace.output_tokens.tolist() == [6, 8]
    assert trace.requests.model is not None
    assert trace.requests.model.to_list() == ["a,b", 'say "x"']


def test_several_gzip_members_and_padding(tmp_path: Path) -> None:
    raw = gzip.compress(HEADER.encode()) + gzip.compress(b"0,1,2\n") + gzip.compress(b"1,3,4\n") + bytes(512)
    assert read_trace(_file(tmp_path, raw)).prompt_tokens.tolist() == [1, 3]


BAD: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "t.csv: the file is empty; a header line"),
    "header only": (HEADER, "t.csv: no request in it; at least one"),
    "only failures": (
        f"{HEADER}0,5,0\n",
        "t.csv: no usable request: 1 without prompt or output tokens; at least",
    ),
    "other columns": (
        "time,tokens\n1,2\n",
        "t.csv:1: not a trace: it begins with 'time,tokens'; one of azure (TIME",
    ),
    "backwards": (
        f"{HEADER}0,1,1\n2,1,1\n1,1,1\n",
        "t.csv:4: arrival_s: time runs backwards: 1 s after 2 s from the start; rows in the order of arrival (",
    ),
    "backwards calendar": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01 00:00:01,1,1\n2024-01-01 00:00:00,1,1\n",
        "t.csv:3: TIMESTAMP: time runs backwards: -1 s after 0 s",
    ),
    "negative tokens": (
        f"{HEADER}0,1,1\n1,-3,1\n",
        "t.csv:3: prompt_tokens: '-3' is not a number of tokens; a whole",
    ),
    "nan tokens": (f"{HEADER}0,1,nan\n", "t.csv:2: output_tokens: 'nan' is not a number of tokens"),
    "half a token": (f"{HEADER}0,1,2.5\n", "t.csv:2: output_tokens: '2.5' is not a number of tokens"),
    "no tokens": (f"{HEADER}0,,2\n", "t.csv:2: prompt_tokens: '' is not a number of tokens"),
    "too many tokens": (f"{HEADER}0,1000000001,2\n", "t.csv:2: prompt_tokens: '1000000001' is not a number"),
    "nan time": (
        f"{HEADER}nan,1,2\n",
        "t.csv:2: arrival_s: 'nan' is not a time in seconds; a decimal number",
    ),
    "negative time": (f"{HEADER}-1,1,2\n", "t.csv:2: arrival_s: '-1' is not a time in seconds"),
    "milliseconds since 1970": (f"{HEADER}1700000000000,1,2\n", "'1700000000000' is not a time in seconds"),
    "no such day": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-02-29 00:00:00,1,1\n",
        "t.csv:2: TIMESTAMP: '2023-02-29 00:00:00' is not a time stamp (day is out of range",
    ),
    "no stamp": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n",
        "t.csv:2: TIMESTAMP: 'yesterday' is not a time stamp; a time like 2024-05-10",
    ),
    "missing field": (f"{HEADER}0,1,1\n1,2\n", "t.csv:3: 2 fields ('1,2'); 3 as in the header"),
    "surplus field": (f"{HEADER}0,1,1\n1,2,3,4\n", "t.csv:3: 4 fields ('1,2,3,4'); 3 as in the header"),
    "balanced wrong fields": (f"{HEADER}0,1\n1,2,3,4\n", "t.csv:2: 2 fields"),
    "twice the column": (
        "arrival_s,prompt_tokens,output_tokens,arrival_s\n0,1,2,3\n",
        "t.csv:1: arrival_s: 2 columns",
    ),
    "not UTF-8": (HEADER.encode() + b"0,1,\xff\n", "t.csv:2: not UTF-8: byte 0xff at column 5; UTF-8 text"),
    "not UTF-8 in an unused column": (
        b"note,arrival_s,prompt_tokens,output_tokens\n\xe9,0,1,1\n",
        "t.csv:2: not UTF-8: byte 0xe9 at column 1",
    ),
    "not UTF-8 header": (b"\xe9," + HEADER.encode(), "t.csv:1: not UTF-8: byte 0xe9 at column 1"),
    "UTF-16": (HEADER.encode("utf-16"), "t.csv:1: not UTF-8: it begins with the mark of UTF-16"),
    "carriage returns": (
        f"{HEADER}0,1,1\n".replace("\n", "\r"),
        "t.csv:1: the lines end in lone carriage returns",
    ),
    "a carriage return": (f"{HEADER}0,1,1\r0,1,1\n", "t.csv:2: a carriage return inside the line"),
    "open quote": (f'{HEADER}0,1,"1\n', "t.csv:2: broken quotes: unexpected end of data; each quote closed"),
    "truncated gzip": (
        gzip.compress(f"{HEADER}0,1,1\n".encode(), mtime=0)[:-9],
        "damaged gzip data: it ends in the middle",
    ),
    "broken gzip": (b"\x1f\x8b\x08\x00" + b"\xff" * 40, "damaged gzip data: "),
    "gzip and rubbish": (
        gzip.compress(f"{HEADER}0,1,1\n".encode(), mtime=0) + b"rubbish",
        "damaged gzip data: ",
    ),
    "endless line": (
        HEADER.encode() + b"0" * (5 << 20),
        "t.csv:2: a line of more than 4 MiB; one request per line",
    ),
    "endless carriage returns": (b"0,1,1\r" * (1 << 20), "t.csv:1: the lines end in lone carriage returns"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    content, words = BAD[case]
    message = _refusal(_file(tmp_path, content))
    assert words in message
    assert message.startswith(str(tmp_path))
    assert "; " in message  # what would be right


MOONCAKE = '{"timestamp": 0, "input_length": 1, "output_length": 1}\n'
BAD_JSON = {
    "no JSON": ("{", "t.csv:2: '{' is not a JSON object"),
    "a list": ("[1]", "t.csv:2: '[1]' is not a JSON object"),
    "missing": (
        '{"timestamp": 0, "input_length": 1}',
        "t.csv:2: output_length: missing; a whole number from 0",
    ),
    "true": (MOONCAKE.replace("1,", "true,"), "t.csv:2: input_length: not a number"),
    "text": (MOONCAKE.replace("1,", '"1",'), "t.csv:2: input_length: '1' is no such number; a whole number"),
    "NaN": (MOONCAKE.replace("0,", "NaN,"), 't.csv:2: \'{"timestamp": NaN'),
    "negative": (
        MOONCAKE.replace("0,", "-1,"),
        "t.csv:2: timestamp: '-1' is no such number; a number from 0",
    ),
    "endless": (MOONCAKE.replace("0,", "1e999,"), "t.csv:2: timestamp: 'inf' is no such number"),
    "half": (MOONCAKE.replace("1,", "1.5,"), "t.csv:2: input_length: '1.5' is no such number"),
    "long number": (MOONCAKE.replace("1,", "1" * 5000 + ","), "is not a JSON object"),
    "deep": ("[" * 100_000, "is not a JSON object"),
    "ids": (
        MOONCAKE.replace("}", ', "hash_ids": [1.5]}'),
        "t.csv:2: hash_ids: not a list of block ids; a list",
    ),
    "large id": (MOONCAKE.replace("}", f', "hash_ids": [{2**70}]}}'), "t.csv:2: hash_ids: not a list"),
    "backwards": (MOONCAKE.replace("0,", "5,") + MOONCAKE, "t.csv:3: timestamp: time runs backwards"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_json_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    content, words = BAD_JSON[case]
    assert words in _refusal(_file(tmp_path, MOONCAKE + content))


def test_unreadable_files(tmp_path: Path) -> None:
    assert "none.csv: cannot be read: No such file or directory" in _refusal(tmp_path / "none.csv")
    assert "cannot be read: Is a directory" in _refusal(tmp_path)
    assert "cannot be read: embedded null byte" in _refusal("a\0b")


def test_named_format_must_fit(tmp_path: Path) -> None:
    path = _file(tmp_path, f"{HEADER}0,1,1\n")
    assert "t.csv:1: TIMESTAMP: no such column; a header with TIMESTAMP,ContextTokens" in _refusal(
        path, format="azure"
    )
    assert "unknown trace format 'excel'; one of azure, blis" in _refusal(path, format="excel")
    assert "t.csv:1: 'arrival_s,prompt_tokens,output_tokens' is not a JSON" in _refusal(
        path, format="mooncake"
    )


def test_error_beyond_the_first_block_names_its_line(tmp_path: Path) -> None:
    rows = "".join(f"{second},10,10\n" for second in range(150_000))
    for tail, words in (("150000,10,x\n", "'x' is not a number"), ("7,10,10\n", "time runs backwards")):
        message = _refusal(_file(tmp_path, HEADER + rows + tail))
        assert "t.csv:150002: " in message
        assert words in message


def test_blocks_of_any_size_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"{second / 8},{second % 700 + 1},{second % 90 + 1}\n" for second in range(3000))
    path = _file(tmp_path, HEADER + rows)
    whole = read_trace(path, spread_s=0.1, seed=3)
    monkeypatch.setattr("telemetry.sources.traces.lines.BLOCK_BYTES", 997)
    with open_trace(path) as stream:
        assert sum(1 for _ in stream) > 30
    cut = read_trace(path, spread_s=0.1, seed=3)
    assert cut.arrival_s.tolist() == whole.arrival_s.tolist()
    assert cut.prompt_tokens.tolist() == whole.prompt_tokens.tolist()
    assert cut.sha256 == whole.sha256


@pytest.mark.skipif(not (DATA / "sim/azure").is_dir(), reason="the recorded traces are not here")
class TestRecordedTraces:
    """Statistics as published with the recorded traces."""

    def test_azure_conversation(self) -> None:
        with open_trace(DATA / "sim/azure/AzureLLMInferenceTrace_conv.csv") as stream:
            summary = summarise(stream)
        assert summary.requests == 19_366
        assert summary.duration_s == pytest.approx(3501.7, abs=0.05)
        assert summary.mean_rps == pytest.approx(5.53, abs=0.005)
        assert [round(summary.prompt.mean, 1), *map(summary.prompt.quantile, (0.5, 0.9, 0.99, 1))] == [
            1154.7, 1020, 2734.5, 4142, 14050,
        ]  # fmt: skip
        assert [round(summary.output.mean, 1), *map(summary.output.quantile, (0, 0.5, 0.9, 0.99, 1))] == [
            211.1, 7, 129, 424, 601, 1000,
        ]  # fmt: skip
        assert summary.correlation == pytest.approx(-0.112, abs=5e-4)

    def test_azure_code(self) -> None:
        with open_trace(DATA / "sim/azure/AzureLLMInferenceTrace_code.csv") as stream:
            summary = summarise(stream)
        assert summary.requests == 8_819
        assert summary.duration_s == pytest.approx(3435.9, abs=0.05)
        assert summary.mean_rps == pytest.approx(2.57, abs=0.005)
        found = [summary.prompt.mean, *map(summary.prompt.quantile, (0.5, 0.9, 0.99, 1))]
        assert [round(value, 1) for value in found] == [2047.8, 1469, 5187.6, 7436, 7437]
        found = [summary.output.mean, *map(summary.output.quantile, (0, 0.5, 0.9, 0.99, 1))]
        assert [round(value, 1) for value in found] == [27.9, 6, 13, 55, 251.5, 1899]
        assert summary.correlation == pytest.approx(0.001, abs=5e-4)

    def test_golden_copy_of_the_azure_trace(self) -> None:
        azure = read_trace(DATA / "sim/azure/AzureLLMInferenceTrace_conv.csv")
        golden = read_trace(DATA / "sim/golden/traces/az_conv_x1.csv")
        assert np.abs(golden.arrival_s - 1.0 - azure.arrival_s).max() < 1e-6
        assert golden.prompt_tokens.tolist() == azure.prompt_tokens.tolist()

    def test_mooncake_steps_are_spread_in_order(self) -> None:
        path = DATA / "seeds/traces/mooncake/conversation_0-40min.jsonl.gz"
        if not path.exists():
            pytest.skip("the Mooncake trace is not here")
        recorded, spread = read_trace(path), read_trace(path, spread_s=3.0, seed=1)
        assert len(recorded) == 7_851
        assert round(float(recorded.prompt_tokens.mean())) == 12_428
        assert round(float(recorded.output_tokens.mean())) == 347
        late_s = spread.arrival_s - recorded.arrival_s
        assert late_s.min() >= 0
        assert 2.9 < late_s.max() < 3.0
        assert np.all(np.diff(spread.arrival_s) >= 0)
        with gzip.open(path, "rt") as lines:
            ids = [json.loads(line)["hash_ids"] for line in lines]
        blocks = recorded.requests.blocks
        assert blocks is not None
        assert blocks.ids.tolist() == [number for row in ids for number in row]
