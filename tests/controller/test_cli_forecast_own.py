"""``plan gpus|fleet --forecast-own`` with traces that teach nothing: which file, why, and what to give instead."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from controller.cli.root import ballast
from solver.domain.errors import InputError

HEADER = "arrival_s,prompt_tokens,output_tokens\n"
KINDS = ("gpus", "fleet")


def _plan(kind: str, trace: str, *words: str) -> None:
    model = ("--model", "meta-llama/Llama-3.1-8B", "--gpu-types", "L4", "--no-explain")
    args: Sequence[str] = ("plan", kind, "--trace", trace, *model, *words)
    ballast.main(args=list(args), prog_name="ballast", standalone_mode=False)


def _refusal(kind: str, trace: str, *words: str) -> str:
    with pytest.raises(InputError) as refused:
        _plan(kind, trace, "--forecast-own", "sizes", *words)
    return str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_read_twice_is_refused_unread(kind: str, tmp_path: Path) -> None:
    assert _refusal(kind, "-") == "--trace: standard input cannot be read twice; a file"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # nobody writes: reading it would wait for ever
    assert _refusal(kind, str(fifo)) == f"{fifo}: a pipe cannot be read twice; a file as --trace"
    read, write = os.pipe()
    try:
        substituted = f"/dev/fd/{read}"  # as a shell's <(…)
        assert _refusal(kind, substituted) == f"{substituted}: a pipe cannot be read twice; a file as --trace"
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_trace_is_missing(kind: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, FileNotFoundError), match=re.escape(str(tmp_path / "no.csv"))):
        _plan(kind, str(tmp_path / "no.csv"), "--forecast-own", "sizes")


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_too_short_to_learn_from_is_named(kind: str, tmp_path: Path) -> None:
    one = tmp_path / "one.csv"
    one.write_text(HEADER + "0.0,300,50\n")
    assert _refusal(kind, str(one), "--window-s", "60") == (
        f"{one}: all requests arrive at one instant, which foretells nothing;"
        " a trace of more than one window of 60 s, or --rate peak instead of --forecast-own"
    )
    two = tmp_path / "two.csv"
    two.write_text(HEADER + "0.0,300,50\n5.0,300,50\n")
    assert (
        _refusal(kind, str(two), "--window-s", "60")
        == "two.csv: no whole window of 60 s in 5 s; a shorter --window-s"
    )


def test_its_advice_can_be_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = tmp_path / "one.csv"
    one.write_text(HEADER + "0.0,300,50\n")
    _plan("gpus", str(one), "--rate", "peak")
    assert "one.csv: optimal" in capsys.readouterr().out
