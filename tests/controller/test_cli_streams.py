"""Closed pipes and missing streams: what shells and schedulers do to a command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BALLAST = f"{sys.executable} -c 'from controller.cli.root import main; main()'"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODELS = f"{BALLAST} catalogue models"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line], check=False, capture_output=True, text=True, env=dict(os.environ), timeout=120
    )


@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_a_reader_that_leaves_is_no_failure(output: str) -> None:
    done = shell(f"{MODELS} -o {output} | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize("closed", ["2>&-", "<&-", "2>&- <&-"])
def test_an_answer_needs_no_other_stream(closed: str) -> None:
    done = shell(f"{BALLAST} simulate cluster {EXAMPLES / 'two-models.yaml'} -o json {closed}")
    assert (done.returncode, done.stdout[:1]) == (0, "{")
