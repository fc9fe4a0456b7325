"""Commands that talk to a cluster, and a kubeconfig that leads to none: the same line from all of them."""

from pathlib import Path

import pytest
from kubernetes.config import kube_config

from controller.operator.api import connect
from solver.domain.errors import InputError
from tests.commands import ballast

COMMANDS = (("doctor",), ("controller", "run"), ("agent", "run", "--port", "0"))
BROKEN = {
    "absent": None,
    "cut": b"a: [",
    "empty": b"",
    "text": b"hello",
    "binary": b"\xff\xfe",
    "no-context": b"{}",
    "no-authority": b"""
        apiVersion: v1
        kind: Config
        current-context: a
        contexts: [{name: a, context: {cluster: c, user: u}}]
        clusters: [{name: c, cluster: {server: "https://127.0.0.1:1", certificate-authority: /no/ca}}]
        users: [{name: u, user: {token: x}}]
    """,
}


def test_all_commands_say_the_same(tmp_path: Path) -> None:
    for words in COMMANDS:
        done = ballast(*words, "--kubeconfig", "none", at=tmp_path)
        assert (done.returncode, done.stdout) == (1, ""), words
        assert done.stderr == (
            "ballast: none: Invalid kube-config file. No configuration found; "
            "--kubeconfig FILE and --context NAME choose another\n"
        )


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_kubeconfig_is_refused(kind: str, tmp_path: Path) -> None:
    path, content = tmp_path / "config", BROKEN[kind]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        connect(str(path))
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_neither_inside_a_cluster_nor_with_a_kubeconfig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"^~/\.kube/config: .*--kubeconfig FILE"):
        connect()
