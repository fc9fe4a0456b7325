"""The image without a container: the Containerfile's steps run as plain commands in a clean directory.

Images cannot be built everywhere. What a build would copy and run is read from the Containerfile, its two absolute
folders are moved under a temporary one, and the result must stand on its own.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = ROOT / "Containerfile"
STEP_LIMIT_S = 900
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)


def instructions() -> list[tuple[str, str]]:
    """Return instruction and words of every line, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", CONTAINERFILE.read_text(encoding="utf-8"))
    lines = (line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#"))
    return [(name, words) for name, words in lines]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for name, words in instructions():
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, words))
    return found


def reachable(folder: Path) -> bool:
    """Return whether the package index gives out a small package."""
    words = ("download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", str(folder), "pluggy")
    pip = [sys.executable, "-m", "pip", *words]
    return subprocess.run(pip, capture_output=True, check=False, timeout=STEP_LIMIT_S).returncode == 0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder that would be the image's root after the build stage."""
    root = tmp_path_factory.mktemp("image")
    if not reachable(root / "probe"):
        if os.environ.get("CI"):
            pytest.fail("no package index is reachable")
        pytest.skip("no package index is reachable")
    (root / "bin").mkdir()
    (root / "bin" / "python").symlink_to(sys.executable)
    place = root / "build"
    for name, words in stages()[0]:
        if name == "WORKDIR":
            assert words == "/build"
            place.mkdir()
        elif name == "COPY":
            *sources, target = words.split()
            for source in sources:
                copy(ROOT / source, place / target)
        elif name == "RUN":
            run(moved(words, root), place, root)
    yield root
    shutil.rmtree(root)


def copy(source: Path, target: Path) -> None:
    """Copy as COPY does: a folder's content, or a file into a folder."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def moved(words: str, root: Path) -> str:
    return re.sub(r"(?<![\w./])/(build|opt)\b", lambda match: f"{root}/{match[1]}", words)


def run(words: str, place: Path, root: Path) -> str:
    """Run a step; only the pip configuration of this machine is let in."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
    kept |= {"PIP_NO_COMPILE": "1"}  # compiled when first imported: most modules never are here
    kept |= {name: os.environ[name] for name in ("HOME", "http_proxy", "https_proxy") if name in os.environ}
    done = subprocess.run(
        ["bash", "-euc", words],
        cwd=place,
        env={**kept, "PATH": f"{root / 'bin'}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=STEP_LIMIT_S,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def in_image(built: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program as the image would: nothing on PATH but its own, nothing of the checkout."""
    return subprocess.run(
        [built / "opt" / "ballast" / "bin" / words[0], *words[1:]],
        cwd=folder,
        env={"PATH": f"{built / 'opt' / 'ballast' / 'bin'}:/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.slow
def test_the_image_holds_a_command_that_works_anywhere(built: Path, tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    said = in_image(built, tmp_path, "ballast", "--version")
    assert (said.returncode, said.stdout.split()[-1]) == (0, version), said.stderr
    for words in (("controller", "run", "--help"), ("catalogue", "gpus", "-o", "json")):
        done = in_image(built, tmp_path, "ballast", *words)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_image_has_all_that_is_imported_and_nothing_for_developers(built: Path, tmp_path: Path) -> None:
    code = (
        "import importlib, pkgutil\n"
        "for package in ('controller', 'simulator', 'solver', 'telemetry'):\n"
        "    found = importlib.import_module(package)\n"
        "    for module in pkgutil.walk_packages(found.__path__, package + '.'):\n"
        "        if '.migrations' not in module.name:  # alembic runs those\n"
        "            importlib.import_module(module.name)\n"
        "import psycopg\n"
    )
    done = in_image(built, tmp_path, "python", "-W", "ignore", "-c", code)
    assert done.returncode == 0, done.stderr
    library = next((built / "opt" / "ballast" / "lib").glob("python3*")) / "site-packages"
    present = {path.name.partition("-")[0].lower() for path in library.glob("*.dist-info")}
    assert "kube_ballast" in present
    assert not present & {"pip", "pytest", "mypy", "ruff", "hatchling", "highspy"}


@pytest.mark.slow
def test_the_chart_s_check_runs_with_the_image_s_libraries(built: Path, tmp_path: Path) -> None:
    script = (ROOT / "helm" / "ballast" / "files" / "check_install.py").read_text(encoding="utf-8")
    done = in_image(built, tmp_path, "python", "-c", script)
    assert "ConfigException" in done.stderr  # no cluster here: it got as far as looking for one


def test_the_image_runs_as_nobody_from_a_locked_environment() -> None:
    (build, image) = stages()
    assert ("USER", "65532:65532") in image
    assert ("ENTRYPOINT", '["ballast"]') in image
    assert not [words for name, words in image if name in {"RUN", "ADD"}]
    assert {words for name, words in image if name == "COPY"} == {"--from=build /opt/ballast /opt/ballast"}
    assert {words.split()[0] for name, words in (*build, *image) if name == "FROM"} == {"${PYTHON_IMAGE}"}
    for name, words in build:
        if name == "RUN" and " install " in words:
            assert "--require-hashes" in words or "--no-index" in words
        assert name != "ADD"
    caching = [words for name, words in build if name == "ENV"]
    assert any("PIP_NO_CACHE_DIR=1" in words for words in caching)


def test_the_chart_s_user_is_the_image_s() -> None:
    templates = (ROOT / "helm" / "ballast" / "templates" / "_helpers.tpl").read_text(encoding="utf-8")
    assert "runAsUser: 65532\nrunAsGroup: 65532\n" in templates


def test_only_what_is_copied_is_sent_to_the_build() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = {
        source.removeprefix("./")
        for name, words in stages()[0]
        if name == "COPY"
        for source in words.split()[:-1]
    }
    assert copied == allowed


@pytest.mark.parametrize("lock", ["requirements-image.lock", "requirements-build.lock"])
def test_the_image_s_locks_pin_what_the_tests_ran_with(lock: str) -> None:
    everything = set(PIN.findall((ROOT / "requirements.lock").read_text(encoding="utf-8")))
    pins = set(PIN.findall((ROOT / lock).read_text(encoding="utf-8")))
    assert pins
    assert pins <= everything, "run: make lock"


def test_the_release_workflow_names_things_as_the_chart_does() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yaml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    for step in steps:
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@v\d+(\.\d+)*", step["uses"]), step["uses"]
    script = "\n".join(step.get("run", "") for step in steps)
    for needed in ("make check", "make test", "helm package", "helm push", "cosign sign", "cosign attest"):
        assert needed in script, needed
    assert "password" not in script.lower().replace("password-stdin", "")
    assert workflow["permissions"] == {"contents": "read"}
