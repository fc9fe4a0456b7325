"""``ballast trace``: what each command answers, its exit codes, and that it leaves nothing half-written."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from controller.cli.root import ballast as command_line
from controller.cli.trace import FORMATS
from solver.domain.errors import InputError
from telemetry.sources.traces.read import FORMATS as READERS
from telemetry.sources.traces.shipped import shipped_trace_path

HEADER = "arrival_s,prompt_tokens,output_tokens\n"


class Ballast:
    """Runs the command in this process; ``err`` is what the last call put on stderr."""

    def __init__(self) -> None:
        self.err = ""

    def __call__(self, *arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(command_line, ["trace", *map(str, arguments)])
        self.err = result.stderr
        if isinstance(result.exception, InputError):  # the root turns it into this line and code 1
            self.err += f"ballast: {result.exception}\n"
        elif result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, self.err
        return result.stdout

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "-o", "json"))


@pytest.fixture
def ballast() -> Ballast:
    return Ballast()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.csv"
    path.write_text(f"{HEADER}0,10,1\n30,20,2\n30,30,0\n90,30,3\n100.5,40,6\n", "utf-8")
    return path


def test_describe(ballast: Ballast, small: Path) -> None:
    answer = ballast.json("describe", small, "--window-s", "60", "--window-s", 1000)
    assert answer["schema"] == "trace-description/1"
    assert (answer["name"], answer["format"], answer["requests"]) == ("small.csv", "plain", 4)
    assert answer["dropped_rows"] == {"zero_prompt_tokens": 0, "zero_output_tokens": 1}
    assert answer["duration_s"] == 100.5
    assert answer["mean_rps"] == pytest.approx(4 / 100.5)
    assert answer["prompt_tokens"] == pytest.approx(
        {"mean": 25, "min": 10, "p50": 25, "p90": 37, "p99": 39.7, "max": 40, "total": 100}
    )
    assert answer["output_tokens"]["mean"] == 3
    assert answer["correlation"] == pytest.approx(0.956183)
    assert [row["window_s"] for row in answer["windows"]] == [60, 1000]
    assert answer["windows"][0]["peak_rps"] == pytest.approx(2 / 60)
    assert len(answer["sha256"]) == 64
    assert yaml.safe_load(ballast("describe", small, "-o", "yaml"))["requests"] == 4
    table = ballast("describe", small)
    assert "rows left out with zero output tokens" in table
    assert max(map(len, table.splitlines())) <= 100


def test_the_program_reads_standard_input_and_refuses_in_one_line() -> None:
    def describe(text: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [Path(sys.executable).with_name("ballast"), "trace", "describe", "-", "-o", "json"],
            input=gzip.compress(text.encode()),
            capture_output=True,
            check=False,
        )

    good = describe(f"{HEADER}0,10,1\n")
    assert (good.returncode, good.stderr) == (0, b"")
    answer = json.loads(good.stdout)
    assert (answer["name"], answer["requests"], answer["mean_rps"]) == ("standard input", 1, None)
    bad = describe(f"{HEADER}0,10,x\n")
    assert (bad.returncode, bad.stdout) == (1, b"")
    assert bad.stderr.startswith(b"ballast: standard input:2: output_tokens: 'x' is not a number of tokens; ")
    assert bad.stderr.count(b"\n") == 1


def test_equal_stamps_are_pointed_out(ballast: Ballast, tmp_path: Path) -> None:
    path = tmp_path / "stamps.csv"
    path.write_text(HEADER + "0,1,1\n" * 5 + "3,1,1\n" * 5, "utf-8")
    ballast("describe", path)
    assert "--spread-s" in ballast.err
    assert ballast.json("describe", path)["equal_stamps"] == 8
    assert ballast.json("describe", path, "--spread-s", 3)["equal_stamps"] == 0


def test_generate_is_the_same_every_time(ballast: Ballast, tmp_path: Path) -> None:
    options = (
        "generate",
        "--preset",
        "code",
        "--rate-rps",
        20,
        "--duration-s",
        30,
        "--arrivals",
        "weibull",
        "--cv",
        2,
    )
    first = ballast(*options, "--seed", 3)
    assert "requests written to standard output" in ballast.err
    assert first == ballast(*options, "--seed", 3) != ballast(*options, "--seed", 4)
    assert ballast(*options, "--seed", 3, "--out", tmp_path / "t.csv.gz") == ""
    assert gzip.decompress((tmp_path / "t.csv.gz").read_bytes()).decode() == first
    assert first.startswith(HEADER)


def test_generating_the_shipped_trace(ballast: Ballast, tmp_path: Path) -> None:
    path = tmp_path / "again.csv.gz"
    ballast("generate", "--preset", "conversation", "--duration-s", 3600, "--seed", 0, "--out", path)
    assert gzip.decompress(path.read_bytes()) == gzip.decompress(shipped_trace_path().read_bytes())


def test_generate_like_a_trace(ballast: Ballast, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "like.csv"
    ballast(
        "generate",
        "--from",
        small,
        "--rate-rps",
        50,
        "--duration-s",
        60,
        "--arrivals",
        "poisson",
        "--out",
        out,
    )
    pairs = {tuple(line.split(",")[1:]) for line in out.read_text("utf-8").splitlines()[1:]}
    assert pairs == {("10", "1"), ("20", "2"), ("30", "3"), ("40", "6")}
    ballast("generate", "--from", small, "--duration-s", 100_000, "--out", out)
    assert ballast.json("describe", out)["mean_rps"] == pytest.approx(4 / 100.5, rel=0.1)


def test_generate_after_recorded_rates(ballast: Ballast, small: Path, tmp_path: Path) -> None:
    rates, out = tmp_path / "rates.csv", tmp_path / "t.csv"
    rates.write_text("model,t_s,rate_rps\nm,0,10\nm,600,30\nn,0,1\nn,600,1\n", "utf-8")
    follow = (
        "generate",
        "--rates",
        rates,
        "--rates-model",
        "m",
        "--duration-s",
        1200,
        "--cv",
        1,
        "--out",
        out,
    )
    ballast(*follow, "--from", small)
    answer = ballast.json("describe", out, "--window-s", 500)
    assert answer["requests"] == pytest.approx(24_000, rel=0.02)
    assert answer["windows"][0]["peak_rps"] == pytest.approx((100 * 10 + 400 * 30) / 500, rel=0.05)
    ballast(*follow, "--rate-rps", 2)
    assert ballast.json("describe", out)["requests"] == pytest.approx(2_400, rel=0.1)
    ballast("generate", "--rates", rates, code=1)
    assert "rates.csv: several models; --rates-model with one of m, n" in ballast.err
    ballast("generate", "--rates", rates, "--rates-model", "o", code=1)
    assert "rates.csv: no model 'o'; --rates-model with one of m, n" in ballast.err
    ballast("generate", "--rates-model", "m", code=2)
    assert "--rates-model chooses from --rates" in ballast.err
    ballast("generate", "--rates", rates, "--rates-model", "m", "--duration-s", 1201, code=1)
    assert "1201 s of rates recorded for 1200 s" in ballast.err


def test_generate_refuses_contradictions(ballast: Ballast, small: Path, tmp_path: Path) -> None:
    ballast("generate", "--from", small, "--preset", "code", code=2)
    assert "either --preset or --from" in ballast.err
    ballast("generate", "--arrivals", "poisson", "--cv", 2, code=2)
    assert "poisson arrivals have a --cv of 1" in ballast.err
    ballast("generate", "--cv", 1000, code=1)
    assert ballast.err == "ballast: 1000 as cv; from 0.05 to 100\n"
    one = tmp_path / "one.csv"
    one.write_text(f"{HEADER}0,1,1\n", "utf-8")
    ballast("generate", "--from", one, code=1)
    assert "one.csv: all requests arrive at one instant: no rate to take; give --rate-rps" in ballast.err


def test_import_any_format(ballast: Ballast, tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,9,8,17,Conversation log\n3,GPT-4,7,0,7,API log\n2,GPT-4,7,6,13,API log\n",
        "utf-8",
    )
    ballast("import", path, code=1)
    assert "burst.csv:3: Timestamp: time runs backwards" in ballast.err
    assert "'ballast trace import --sort" in ballast.err
    assert ballast("import", path, "--sort") == (
        "arrival_s,prompt_tokens,output_tokens,model,class\n2.0,7,6,GPT-4,API log\n5.0,9,8,ChatGPT,Conversation log\n"
    )
    assert "2 requests written to standard output; 1 left out with zero output tokens" in ballast.err
    assert ballast("import", path, "--sort", "--limit", 1).count("\n") == 2


def test_import_spreads_stamps(ballast: Ballast, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    row = '{"timestamp": %d, "input_length": 5, "output_length": 5, "hash_ids": [1]}\n'
    path.write_text("".join(row % stamp for stamp in (0, 0, 0, 3000, 3000)), "utf-8")
    texts = [ballast("import", path, "--spread-s", 3, "--seed", seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    times = [float(line.split(",")[0]) for line in texts[0].splitlines()[1:]]
    assert times == sorted(times)
    assert len(set(times)) == 5
    assert [int(time // 3) for time in times] == [0, 0, 0, 1, 1]


def test_scale(ballast: Ballast, small: Path) -> None:
    assert ballast("scale", small, "--rate", 3, "--tokens", 0.1) == (
        f"{HEADER}0.0,1,1\n10.0,2,1\n30.0,3,1\n33.5,4,1\n"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("scale", "--tokens", "1e30"), "4e+31 in one request"),
        (("scale", "--tokens", "1e17"), "4e+18 in one request"),
        (("scale", "--tokens", "1e308"), "inf in one request"),
        (("scale", "--rate", "1e-300"), "1.005e+302 s from the start"),
        (("scale", "--rate", "1e-320"), "inf s from the start"),
        (("scale", "--rate", "1e-9"), "1.005e+11 s from the start"),
        (("import", "--spread-s", "1e300"), "1e+300 s from the start"),
        (("describe", "--spread-s", "1e300"), "1e+300 s from the start"),
        (("split", "--window-s", "1e-300"), "longer windows"),
        (("split", "--window-s", "1e-17"), "longer windows"),
    ],
)
def test_what_nobody_could_read_back_is_refused(
    ballast: Ballast, small: Path, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    command, *more = words
    out = tmp_path / "out"
    out.mkdir()
    to = {"split": ("--out-dir", out), "describe": ()}.get(command, ("--out", out / "t.csv"))
    assert ballast(command, small, *more, *to, code=1) == ""
    assert says in ballast.err
    assert ballast.err.count("\n") == 1
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("scale", "--tokens"),
        ("scale", "--rate"),
        ("import", "--spread-s"),
        ("describe", "--window-s"),
        ("split", "--at-s"),
        ("split", "--ratio"),
        ("split", "--window-s"),
    ],
)
def test_what_is_no_number_is_refused(
    ballast: Ballast, small: Path, tmp_path: Path, command: str, option: str
) -> None:
    to = ("--out-dir", tmp_path) if command == "split" else ()
    for number in ("nan", "inf"):
        assert ballast(command, small, option, number, *to, code=2) == ""
        assert option in ballast.err
    assert list(tmp_path.iterdir()) == [small]


def test_a_trace_of_more_than_any_reader_takes_is_not_generated(ballast: Ballast) -> None:
    ballast("generate", "--duration-s", "1e300", "--rate-rps", "1e-299", code=1)
    assert "1e+300 as duration_s" in ballast.err


def test_split(ballast: Ballast, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def pieces(*options: object) -> dict[str, list[str]]:
        for old in out.iterdir():
            old.unlink()
        ballast("split", small, *options, "--out-dir", out)
        return {path.name: path.read_text("utf-8").splitlines()[1:] for path in sorted(out.iterdir())}

    assert pieces("--at-s", 90) == {
        "small-0.csv": ["0.0,10,1", "30.0,20,2"],
        "small-1.csv": ["0.0,30,3", "10.5,40,6"],
    }
    assert pieces("--at-s", 90, "--keep-times")["small-1.csv"] == ["90.0,30,3", "100.5,40,6"]
    assert pieces("--ratio", 0.75)["small-1.csv"] == ["0.0,40,6"]
    assert pieces("--window-s", 20) == {
        "small-0.csv": ["0.0,10,1"],
        "small-1.csv": ["10.0,20,2"],
        "small-4.csv": ["10.0,30,3"],
        "small-5.csv": ["0.5,40,6"],
    }
    answer = ballast.json("split", small, "--window-s", 50, "--out-dir", out)
    assert answer["schema"] == "trace-pieces/1"
    assert [piece["requests"] for piece in answer["pieces"]] == [2, 1, 1]
    assert answer["dropped_rows"]["zero_output_tokens"] == 1


def test_split_wants_one_way_to_cut(ballast: Ballast, small: Path, tmp_path: Path) -> None:
    for options in ((), ("--at-s", 1, "--ratio", 0.5)):
        ballast("split", small, *options, "--out-dir", tmp_path, code=2)
        assert "exactly one of" in ballast.err
    ballast("split", "-", "--ratio", 0.5, "--out-dir", tmp_path, code=2)
    assert "FILE cannot be -" in ballast.err


@pytest.mark.parametrize("command", ["import", "scale", "split", "generate"])
def test_bad_input_leaves_no_file(ballast: Ballast, tmp_path: Path, command: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(
        HEADER + "".join(f"{second},1,1\n" for second in range(120_000)) + "120000,1,-1\n", "utf-8"
    )
    target = (
        ("--window-s", 50_000, "--out-dir", tmp_path)
        if command == "split"
        else ("--out", tmp_path / "new.csv")
    )
    source = ("--from", path) if command == "generate" else (path,)
    ballast(command, *source, *target, code=1)
    assert ballast.err == (
        f"ballast: {path}:120002: output_tokens: '-1' is not a number of tokens;"
        " a whole number from 0 to 1,000,000,000\n"
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.csv"]


def test_missing_file_and_folder(ballast: Ballast, small: Path, tmp_path: Path) -> None:
    ballast("describe", tmp_path / "none.csv", code=1)
    assert "none.csv: cannot be read: No such file or directory" in ballast.err
    ballast("split", small, "--at-s", 1, "--out-dir", tmp_path / "none", code=1)
    assert "cannot be written: No such file or directory" in ballast.err
    ballast("describe", small, "--format", "excel", code=2)


@pytest.mark.parametrize("command", ["describe", "generate", "import", "scale", "split"])
def test_help_has_an_example(ballast: Ballast, command: str) -> None:
    assert f"Example: ballast trace {command} " in ballast(command, "--help")


def test_the_command_offers_every_reader() -> None:
    assert tuple(READERS) == FORMATS
