"""``kubectl ballast``: the plugin is the same command under its own name, and completes as kubectl expects."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from controller.cli.kubectl_completion import completions

ROOT = Path(__file__).resolve().parents[2]
LAZY = (
    "import sys\n"
    "from controller.cli.root import ballast\n"
    "for name in ('doctor', 'explain', 'controller'):\n"
    "    try:\n"
    "        ballast.main(args=[name, '--help'], standalone_mode=False)\n"
    "    except SystemExit:\n"
    "        pass\n"
    "heavy = {'kubernetes', 'kopf', 'sqlalchemy', 'ortools', 'numba', 'pydantic'} & set(sys.modules)\n"
    "assert not heavy, heavy\n"
)


def test_help_of_cluster_commands_loads_no_client() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAZY], check=False, capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr


def plugin(name: str, *words: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run an entry point under its name, as pip's wrapper does."""
    module = {"kubectl-ballast": "root", "kubectl_complete-ballast": "kubectl_completion"}[name]
    script = tmp_path / name
    script.write_text(f"from controller.cli.{module} import main\nmain()\n", encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(script), *words],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )


def test_the_plugin_speaks_of_itself_as_people_called_it(tmp_path: Path) -> None:
    done = plugin("kubectl-ballast", "explain", "--help", tmp_path=tmp_path)
    assert done.stdout.startswith("Usage: kubectl ballast explain")
    wrong = plugin("kubectl-ballast", "explain", tmp_path=tmp_path)
    assert wrong.returncode == 2
    assert "kubectl ballast explain --help" in wrong.stderr


def test_both_are_declared(tmp_path: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts["kubectl-ballast"] == scripts["ballast"]
    assert scripts["kubectl_complete-ballast"] == "controller.cli.kubectl_completion:main"
    done = plugin("kubectl_complete-ballast", "expl", tmp_path=tmp_path)
    assert done.stdout.splitlines()[-1] == ":4"
    assert done.stdout.splitlines()[0].startswith("explain\t")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["do"], {"doctor"}),
        (["explain", "mod"], {"modelservice/"}),
        (["explain", "p"], {"plan/"}),
        (["explain", "e"], {"expertplacement/"}),
        (["doctor", "-o", "j"], {"json"}),
        (["controller", ""], {"run"}),
        (["explain", "--time"], {"--time-limit"}),
    ],
)
def test_completions(words: list[str], expected: set[str]) -> None:
    lines, directive = completions(words)
    assert expected <= {line.split("\t")[0] for line in lines}
    assert directive == 4


def test_files_are_left_to_the_shell() -> None:
    assert completions(["doctor", "--kubeconfig", ""]) == ([], 0)
