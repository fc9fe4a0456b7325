"""PyTorch's archives without PyTorch: tensors as they were, and a refusal for every program."""

import os
import pickle
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.errors import InputError
from telemetry.experts.torch_archive import read_torch
from tests.telemetry.experts.engine_files import torch_archive, torch_bytes


def _read(raw: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dump.pt"
        path.write_bytes(raw)
        return read_torch(path)


def test_values_and_tensors() -> None:
    counts = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    found = _read(
        torch_bytes(
            {
                "rank": 0,
                "logical_count": counts,
                "rate": 0.5,
                "none": None,
                "flags": [True, False, (1, "two")],
                "half": np.array([1.5], dtype=np.float32),
            }
        )
    )
    assert np.array_equal(found["logical_count"], counts)
    assert found["logical_count"].dtype == np.int32
    assert found["flags"] == [True, False, (1, "two")]
    assert (found["rank"], found["rate"], found["none"]) == (0, 0.5, None)
    assert found["half"].tolist() == [1.5]


_TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n%s\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK%ctQK%c(K%cK%ct(K%cK%ct\x89NtR"
)


def _view(kind: bytes, count: int, offset: int, shape: tuple[int, int], strides: tuple[int, int]) -> bytes:
    return b"\x80\x02" + _TENSOR % (kind, count, offset, *shape, *strides) + b"."


def test_views() -> None:
    numbers = np.arange(6, dtype=np.int32)
    transposed = torch_archive(_view(b"IntStorage", 6, 0, (3, 2), (1, 3)), [numbers])
    assert _read(transposed).tolist() == [[0, 3], [1, 4], [2, 5]]
    expanded = torch_archive(_view(b"IntStorage", 6, 2, (4, 2), (0, 1)), [numbers])
    assert _read(expanded).tolist() == [[2, 3]] * 4
    widened = torch_archive(
        _view(b"BFloat16Storage", 2, 0, (1, 2), (2, 1)), [np.array([0x3FC0, 0xC000], "<u2")]
    )
    assert _read(widened).tolist() == [[1.5, -2.0]]
    empty = torch_archive(_view(b"IntStorage", 6, 0, (0, 2), (2, 1)), [numbers])
    assert _read(empty).shape == (0, 2)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (_view(b"IntStorage", 6, 1, (3, 2), (2, 1)), "reaches beyond its numbers"),
        (_view(b"IntStorage", 6, 0, (3, 2), (200, 1)), "reaches beyond its numbers"),
        (_view(b"IntStorage", 7, 0, (3, 2), (2, 1)), "the tensor '0' is cut off"),
        (_view(b"LongStorage", 6, 0, (3, 2), (2, 1)), "the tensor '0' is cut off"),
        (_view(b"IntStorage", 6, 0, (3, 2), (2, 1)).replace(b"\x000X\x03", b"\x001X\x03"), "'1' is missing"),
    ],
)
def test_tensors_beyond_their_numbers(program: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _read(torch_archive(program, [np.arange(6, dtype=np.int32)]))


def test_a_huge_view() -> None:
    shape = b"(" + b"J\xff\xff\xff\x7f" * 3 + b"t(K\x00K\x00K\x00t"
    program = _view(b"IntStorage", 6, 0, (1, 1), (0, 0)).replace(b"(K\x01K\x01t(K\x00K\x00t", shape)
    with pytest.raises(InputError, match="reaches beyond its numbers"):
        _read(torch_archive(program, [np.arange(6, dtype=np.int32)]))


class _Runs:
    def __init__(self, called: Callable[..., Any], *arguments: Any) -> None:
        self.what = (called, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.what


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("called", "arguments"),
    [
        (os.system, ("touch {}",)),
        (eval, ("open({!r}, 'w')",)),
        (exec, ("open({!r}, 'w')",)),
        (open, ("{}", "w")),
        (subprocess.call, (["touch", "{}"],)),
        (getattr, (os, "system")),
        (__import__, ("os",)),
        (pickle.loads, (b"",)),
    ],
)
def test_programs_are_refused_and_do_not_run(
    tmp_path: Path, protocol: int, called: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    trace = tmp_path / "ran"
    filled = tuple(part.format(str(trace)) if isinstance(part, str) else part for part in arguments)
    if called is getattr:
        filled = ("text", "upper")
    value = {"logical_count": [_Runs(called, *filled)]}
    with pytest.raises(InputError, match=r"data\.pkl: the pickle(?:'s instruction| names)") as caught:
        _read(torch_archive(pickle.dumps(value, protocol=protocol)))
    assert not trace.exists()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"N",
        b"\x80\x02",
        b"\x80\x02(.",
        b"\x80\x02ctorch\nIntStorage\n.",
        b"\x80\x02ctorch\nIntStorage\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nNR.",
        b"\x80\x02ccollections\nOrderedDict\n}b.",
        b"\x80\x02ccollections\nOrderedDict\n(K\x01K\x02tR.",
        b"\x80\x02NQ.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02h\x07.",
        b"\x80\x02r\xff\xff\xff\xff.",
        b"\x80\x02t.",
        b"\x80\x02(\x85.",
        b"\x80\x02(X\x01\x00\x00\x00actorch\nIntStorage\nNNNtQ.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR.",
        b"\x80\x02a.",
        b"\x80\x02NNa.",
        b"\x80\x02](N(e.",
        b"\x80\x02}(NNNu.",
        b"\x80\x02}](]Ns.",
        b"\x80\x02}]Ns.",
        b"\x80\x02X\xff\xff\xff\xffa.",
        b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x80\x02X\x01\x00\x00\x00\xff.",
        b"\x80\x02P7\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    ],
)
def test_damaged_programs(program: bytes) -> None:
    with pytest.raises(InputError, match=r"data\.pkl: "):
        _read(torch_archive(program))


def test_archives_of_other_kinds(tmp_path: Path) -> None:
    for raw in (b"", b"PK", pickle.dumps({"a": 1}, protocol=2), b"\x80\x02}."):
        with pytest.raises(InputError, match="not a whole zip archive"):
            _read(raw)
    np.savez(tmp_path / "a.npz", a=np.zeros(1))
    with pytest.raises(InputError, match=r"no data\.pkl in the archive"):
        read_torch(tmp_path / "a.npz")


def test_tensors_with_sizes_below_0_or_half_a_number() -> None:
    program = _view(b"IntStorage", 6, 0, (3, 2), (2, 1))
    for what, raw in ((b"J\xff\xff\xff\xff", bytes(24)), (b"K\x03", bytes(23))):
        with pytest.raises(InputError, match=r"damaged|cut off"):
            _read(torch_archive(program.replace(b"K\x03", what, 1), [np.frombuffer(raw, dtype=np.uint8)]))
    keyed_by_number = program.replace(b"X\x01\x00\x00\x000X", b"K\x00X")
    with pytest.raises(InputError, match="damaged"):
        _read(torch_archive(keyed_by_number))


def _refused_or_read(raw: bytes) -> None:
    refusal = ""
    try:
        _read(raw)
    except InputError as error:
        refusal = str(error)
    assert refusal.isprintable()


@given(st.binary(max_size=80))
@settings(max_examples=300)
def test_any_program_is_read_or_refused(program: bytes) -> None:
    _refused_or_read(torch_archive(program, [np.arange(6, dtype=np.int32)]))


@given(st.data())
@settings(max_examples=100)
def test_mutated_programs(data: st.DataObject) -> None:
    program = bytearray(_view(b"IntStorage", 6, 0, (3, 2), (2, 1)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(program) - 1))
        put = data.draw(
            st.sampled_from([b"(", b"t", b"R", b"h\x00", b"q\x00", b"}", b"N", b"0", b"\x93", b"c\n\n"])
        )
        gone = data.draw(st.integers(0, 3))
        program[at : at + gone] = put
    _refused_or_read(torch_archive(bytes(program), [np.arange(6, dtype=np.int32)]))


def test_archives_cut_off_or_damaged_at_every_byte() -> None:
    whole = torch_bytes({"logical_count": np.arange(12, dtype=np.int64).reshape(3, 4)})
    for end in range(len(whole)):
        with pytest.raises(InputError):
            _read(whole[:end])
    for at in range(len(whole)):
        raw = bytearray(whole)
        raw[at] ^= 0xFF
        _refused_or_read(bytes(raw))
