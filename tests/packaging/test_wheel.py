"""What is shipped: exactly four packages with their data, and libraries that can be loaded in any order."""

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"controller", "simulator", "solver", "telemetry"}


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = out.glob("kube_ballast-*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_top_level_names_are_exactly_ours(wheel_names: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel_names}
    (info,) = (name for name in top if name.endswith(".dist-info"))
    assert top - {info} == PACKAGES


def test_data_files_are_shipped(wheel_names: list[str]) -> None:
    assert "telemetry/catalogue/gpus.toml" in wheel_names
    assert "telemetry/catalogue/models.toml" in wheel_names
    assert "telemetry/catalogue/profiles/splitwise_tp8.csv" in wheel_names
    assert "telemetry/traces/conversation.csv.gz" in wheel_names


def test_import_contracts_cover_every_package() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter")
    assert set(parser["importlinter"]["root_packages"].split()) == PACKAGES


@pytest.mark.parametrize("order", ["import ortools, pulp", "import pulp, ortools"])
def test_ortools_and_pulp_load_in_either_order(order: str) -> None:
    code = (
        f"{order}\nfrom ortools.math_opt.python import mathopt\n"
        "assert pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path).available()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_highspy_is_not_installed() -> None:
    code = (
        "import importlib.util as u; assert u.find_spec('highspy') is None and u.find_spec('torch') is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
