"""Trace readers against anything: a trace or one `InputError`, never another exception; fast and slow paths agree."""

import gzip
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.trace import Labels
from telemetry.sources.traces.blocks import parse_block
from telemetry.sources.traces.fields import READ, BadFieldError, Kind
from telemetry.sources.traces.read import FORMATS, read_trace
from tests.telemetry.test_traces_read import SAMPLES

ROWS = [sample.encode() for sample in SAMPLES.values()]


def _read_or_refuse(raw: bytes, form: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        path.write_bytes(raw)
        refusal, trace = "", None
        try:
            trace = read_trace(path, format=form)
        except InputError as error:
            refusal = str(error)
    if trace is None:
        assert refusal.isprintable()
        assert "\n" not in refusal
        return
    assert len(trace) > 0
    assert np.all(np.diff(trace.arrival_s) >= 0)
    assert trace.prompt_tokens.min() > 0
    assert trace.output_tokens.min() > 0


@given(raw=st.binary(max_size=400), form=st.sampled_from([None, *FORMATS]))
@settings(deadline=None)
def test_random_bytes(raw: bytes, form: str | None) -> None:
    _read_or_refuse(raw, form)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    raw = draw(st.sampled_from(ROWS))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(raw)))
        gone = draw(st.integers(0, 12))
        put = draw(
            st.one_of(
                st.binary(max_size=6),
                st.sampled_from(
                    [
                        b'"',
                        b",",
                        b"\r",
                        b"\n",
                        b"\r\n",
                        b"-",
                        b".",
                        b"e9",
                        b"NaN",
                        b"1e400",
                        b"9" * 30,
                        b"\0",
                        b"[[",
                        b"{}",
                    ]
                ),
            )
        )
        raw = raw[:at] + put + raw[at + gone :]
    return raw


@given(raw=mutated(), packed=st.booleans(), form=st.sampled_from([None, *FORMATS]))
@settings(deadline=None, max_examples=300)
def test_mutated_traces(*, raw: bytes, packed: bool, form: str | None) -> None:
    _read_or_refuse(gzip.compress(raw, 1, mtime=0) if packed else raw, form)


@given(sample=st.sampled_from(ROWS), data=st.data())
@settings(deadline=None)
def test_truncated_and_damaged_gzip(sample: bytes, data: st.DataObject) -> None:
    packed = bytearray(gzip.compress(sample, mtime=0))
    end = data.draw(st.integers(3, len(packed) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.gz"
        path.write_bytes(packed[:end])
        with pytest.raises(InputError):
            read_trace(path)
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    _read_or_refuse(bytes(packed), None)


_ODD = st.text(alphabet="0123456789.-+eEZT: \0é_", max_size=34)
_STAMPS = st.builds(
    "{:%Y-%m-%d}{}{:%H:%M:%S}{}{}".format,
    st.dates(),
    st.sampled_from([" ", "T"]),
    st.times(),
    st.one_of(st.just(""), st.from_regex(r"\.[0-9]{0,10}", fullmatch=True)),
    st.sampled_from(["", "Z", "+00:00", "-07:30", "+24:00", "+1:00", "+0100"]),
)
_DECIMALS = st.one_of(
    _ODD,
    st.floats(-1, 2e10).map(repr),
    st.decimals(0, 10**6, places=7).map(str),
    st.from_regex(r"[0-9]{0,12}\.?[0-9]{0,12}", fullmatch=True),
)
_FIELDS = {
    Kind.TOKENS: st.one_of(
        _ODD, st.integers(-5, 2 * 10**9).map(str), st.from_regex(r"0{0,3}[0-9]{1,11}", fullmatch=True)
    ),
    Kind.SECONDS: _DECIMALS,
    Kind.RATE: _DECIMALS,
    Kind.MICROSECONDS: st.one_of(
        _ODD, st.integers(-5, 2 * 10**16).map(str), st.from_regex(r"0{0,3}[0-9]{1,17}", fullmatch=True)
    ),
    Kind.STAMP: st.one_of(_ODD, _STAMPS),
    Kind.TEXT: st.text(st.characters(codec="utf-8", exclude_characters=',"\r\n'), max_size=70),
}


@st.composite
def columns(draw: st.DrawFn) -> tuple[tuple[Kind, ...], list[tuple[str, ...]]]:
    kinds = tuple(draw(st.lists(st.sampled_from(list(Kind)), min_size=2, max_size=4)))
    return kinds, draw(st.lists(st.tuples(*(_FIELDS[kind] for kind in kinds)), min_size=1, max_size=6))


@given(table=columns())
@example(table=((Kind.STAMP, Kind.SECONDS), [("1970-01-01T00:00:00+23:59", "9007199254740993")]))
@example(table=((Kind.STAMP, Kind.SECONDS), [("2024-02-29 00:00:00.123456789Z", "0.1234567890123456789")]))
@settings(deadline=None, max_examples=600, suppress_health_check=[HealthCheck.filter_too_much])
def test_a_block_is_read_as_its_fields_are(table: tuple[tuple[Kind, ...], list[tuple[str, ...]]]) -> None:
    kinds, rows = table
    block = "".join(",".join(row) + "\n" for row in rows).encode()
    parsed = parse_block(block, len(kinds), list(enumerate(kinds)))
    if parsed is None:  # handed back: always allowed
        return
    for kind, column, texts in zip(kinds, parsed, zip(*rows, strict=True), strict=True):
        try:
            meant = [READ[kind](text) for text in texts]
        except BadFieldError as error:
            pytest.fail(f"{kind} {texts}: read as {column}, but {error}")
        assert (column.to_list() if isinstance(column, Labels) else column.tolist()) == meant


@pytest.mark.parametrize("sample", [name for name in SAMPLES if name != "mooncake"])
def test_ordinary_blocks_are_not_handed_back(sample: str) -> None:
    header, _, rows = SAMPLES[sample].partition("\n")
    names = header.split(",")
    tokens = [
        (names.index(name), Kind.TOKENS)
        for name in (
            "ContextTokens",
            "Request tokens",
            "prompt_tokens",
            "prompt_size",
            "num_prefill_tokens",
            "input_tokens",
        )
        if name in names
    ]
    stamps = [(0, Kind.STAMP)] if "TIMESTAMP" in names else []
    times = ("arrival_s", "Timestamp", "arrival_timestamp", "arrived_at")
    seconds = [(names.index(name), Kind.SECONDS) for name in times if name in names]
    if "arrival_time_us" in names:
        seconds = [(names.index("arrival_time_us"), Kind.MICROSECONDS)]
    for block in (rows, rows.replace("\n", "\r\n")):
        parsed = parse_block(block.encode(), len(names), tokens + stamps + seconds)
        assert parsed is not None
        assert len(parsed) == 2
        assert parsed[0].tolist() == ([374, 374, 396] if sample == "burstgpt" else [374, 396])
