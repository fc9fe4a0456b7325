"""Where the test bed's programs are looked for, and what is said when they cannot be had."""

import sys
from pathlib import Path

import pytest

from tests.cluster import binaries
from tests.cluster.binaries import UnavailableError, pinned, program, required


def pretend(folder: Path, name: str, answer: str) -> Path:
    """Write a program that prints a version."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def _nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)


@pytest.mark.usefixtures("_nothing_cached")
def test_assets_come_before_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = pretend(tmp_path / "bin", "etcd", f"etcd Version: {pinned('etcd').removeprefix('v')}")
    monkeypatch.setenv("PATH", f"{on_path.parent}:/usr/bin:/bin")
    assert program("etcd") == on_path
    asset = pretend(tmp_path / "assets", "etcd", f"etcd Version: {pinned('etcd').removeprefix('v')}")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(asset.parent))
    assert program("etcd") == asset


@pytest.mark.usefixtures("_nothing_cached")
@pytest.mark.parametrize("wrong", ["v1.0.0", f"{binaries.VERSION}0", f"{binaries.VERSION}-rc.1"])
def test_another_version_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    pretend(tmp_path / "bin", "kube-apiserver", f"Kubernetes {wrong}")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    built = tmp_path / "cache" / "ballast" / "testbed" / binaries._cache("kubernetes").name / "kube-apiserver"
    built.parent.mkdir(parents=True)
    built.write_bytes(b"")
    assert program("kube-apiserver") == built


@pytest.mark.usefixtures("_nothing_cached")
def test_without_go_and_index_the_reason_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", pretend(tmp_path / "bin", "python", "no index").as_posix())
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\necho 'ERROR: no index' >&2\nexit 1\n")
    with pytest.raises(UnavailableError, match=r"no Go 1\.26 or newer on PATH .* ERROR: no index"):
        program("etcd")


@pytest.mark.usefixtures("_nothing_cached")
def test_a_go_that_is_too_old_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path / "bin", "go", "go: go.mod requires go >= 1.26")
    with (tmp_path / "bin" / "go").open("a") as script:
        script.write("exit 1\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UnavailableError, match=r"no Go 1\.26"):
        program("etcd")


@pytest.mark.parametrize(("value", "answer"), [("1", True), ("true", True), ("", False), ("false", False)])
def test_ci_requires_the_programs(monkeypatch: pytest.MonkeyPatch, value: str, answer: bool) -> None:  # noqa: FBT001 - a table
    monkeypatch.delenv("BALLAST_REQUIRE_CLUSTER", raising=False)
    monkeypatch.setenv("CI", value)
    assert required() is answer


def test_definitions_of_others_are_whole(definitions_of_others: list[Path]) -> None:
    names = {path.name.partition("_")[2].removesuffix(".yaml"): path for path in definitions_of_others}
    assert set(names) == {"leaderworkersets", "httproutes", "servicemonitors", "prometheusrules"}
    for path in names.values():
        assert "kind: CustomResourceDefinition" in path.read_text(encoding="utf-8")
