"""The chart as Helm renders it: safe pods, least rights, closed values, nothing that needs an absent kind."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram

from controller.cli.prometheus_option import access_of
from controller.operator.metrics import Metrics
from telemetry.sources.prometheus_access import PrometheusAccess, PrometheusServers
from tests.cluster.release import CHART, HelmError, rendered, run_helm

ROOT = CHART.parents[1]
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
AGENT: dict[str, Any] = {
    "enabled": True,
    "mode": "auto",
    "port": 9410,
    "journalPath": "/srv/ballast",
    "safeMaxMHz": 1050,
    "safeLimitWatts": 300,
    "nodeSelector": {"row": "a"},
    "podLabels": {"scrape": "yes"},
    "podAnnotations": {"note": "x"},
    "extraArgs": ["--period=0.5"],
}
EVERYTHING: dict[str, Any] = {
    "commonLabels": {"team": "serving"},
    "paused": True,
    "watchNamespaces": ["chat", "code"],
    "replicas": 3,
    "image": {"repository": "images.example/ballast", "tag": "9", "digest": DIGEST, "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "pull"}],
    "controller": {
        "planIntervalSeconds": 1000000,
        "debounceSeconds": 0.5,
        "solveLimitSeconds": 7,
        "gpuLabelKey": "cloud.example/gpu",
        "gpuResource": "amd.com/gpu",
        "logFormat": "console",
        "leaderElection": {"leaseDurationSeconds": 6, "renewDeadlineSeconds": 4, "retryPeriodSeconds": 1},
        "extraArgs": ["--flag"],
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "proxy:3128"}],
    },
    "database": {"existingSecret": "history", "existingSecretKey": "dsn"},
    "serviceAccount": {"annotations": {"a": "b"}},
    "resources": {"requests": {"cpu": 1}, "limits": {"memory": "4Gi"}},
    "priorityClassName": "system-cluster-critical",
    "podLabels": {"scrape": "yes"},
    "podAnnotations": {"note": "x"},
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 1,
                    "podAffinityTerm": {
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {"matchLabels": {"app": "x"}},
                    },
                }
            ]
        }
    },
    "topologySpreadKeys": ["rack"],
    "terminationGracePeriodSeconds": 60,
    "service": {"port": 9090, "annotations": {"c": "d"}},
    "serviceMonitor": {"interval": "1m", "labels": {"release": "prometheus"}},
    "prometheusRule": {"labels": {"release": "prometheus"}},
    "dashboard": {"annotations": {"folder": "GPU"}},
    "agent": AGENT,
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
        ],
        "extraEgress": [
            {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 8443, "protocol": "TCP"}]}
        ],
    },
    "extraObjects": [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "{{ .Release.Name }}-more"},
            "data": {"a": "b"},
        },
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}-text'}\n",
    ],
}
OFF: dict[str, Any] = {
    "crds": {"install": False},
    "admissionPolicies": {"enabled": False},
    "rbac": {"create": False, "aggregate": False},
    "serviceAccount": {"create": False, "name": "own"},
    "podDisruptionBudget": {"enabled": False},
    "serviceMonitor": {"enabled": False},
    "prometheusRule": {"enabled": False},
    "dashboard": {"enabled": False},
    "topologySpreadKeys": [],
}
SETTINGS = {"defaults": {}, "everything": EVERYTHING, "all-off": OFF, "one-replica": {"replicas": 1}}
CLUSTER_SCOPED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}


def access(**entry: Any) -> dict[str, Any]:
    """Return values with one access to a Prometheus."""
    return {"prometheus": {"access": [{"url": "https://prom", **entry}]}}


def of(objects: list[dict[str, Any]], kind: str, name: str = "ballast-controller") -> dict[str, Any]:
    """Return the object of a kind and name."""
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def pod_specs(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for found in objects:
        if found["kind"] == "Pod":
            yield found["spec"]
        elif found["kind"] == "Deployment":
            yield found["spec"]["template"]["spec"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_lint(helm: Path, setting: str) -> None:
    assert "0 chart(s) failed" in run_helm(helm, "lint", "--strict", str(CHART), values=SETTINGS[setting])


@pytest.mark.parametrize("setting", SETTINGS)
def test_pods_are_restricted(helm: Path, setting: str) -> None:
    specs = list(pod_specs(rendered(helm, SETTINGS[setting])))
    assert len(specs) == 2
    for spec in specs:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all("emptyDir" in volume for volume in spec["volumes"])
        assert spec["enableServiceLinks"] is False  # they would put BALLAST_* into the environment
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"name": "HOME", "value": "/tmp"} in container["env"]  # noqa: S108 - a volume of the pod
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}  # noqa: S108 - as above
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_objects_are_named_once_and_placed(helm: Path, setting: str) -> None:
    objects = rendered(helm, SETTINGS[setting])
    keys = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(set(keys)) == len(keys)
    for kind, namespace, name in keys:
        if name not in {"ballast-more", "ballast-text"}:
            assert (namespace is None) == (kind in CLUSTER_SCOPED)
    assert "Secret" not in {kind for kind, _, _ in keys}


@pytest.mark.parametrize("setting", ["defaults", "everything"])
def test_no_rule_has_a_wildcard_or_touches_secrets(helm: Path, setting: str) -> None:
    roles = [o for o in rendered(helm, SETTINGS[setting]) if o["kind"] in {"Role", "ClusterRole"}]
    assert len(roles) >= 6
    for role in roles:
        for rule in role["rules"]:
            words = {word for key in ("apiGroups", "resources", "verbs") for word in rule[key]}
            assert not any("*" in word for word in words)
            assert not words & {"secrets", "escalate", "bind", "impersonate"}
            names_to_come = (["create", "patch"], ["get", "list", "watch"])  # Leases of PowerDomains
            if "leases" in rule["resources"] and rule["verbs"] not in names_to_come:
                assert rule["resourceNames"] == ["ballast-controller"]


def test_namespace_mode_keeps_cluster_rights_to_reading_the_cluster(helm: Path) -> None:
    objects = rendered(helm, {"watchNamespaces": ["chat", "code"]})
    cluster = {r for rule in of(objects, "ClusterRole")["rules"] for r in rule["resources"]}
    assert cluster == {
        "nodes",
        "gpuprofiles",
        "gpuprofiles/status",
        "nodepowers",
        "powerdomains",
        "powerdomains/status",
        "resourceslices",
        "customresourcedefinitions",
        "selfsubjectaccessreviews",
    }
    inside = [o for o in objects if o["kind"] == "Role" and o["metadata"]["name"] == "ballast-controller"]
    assert {o["metadata"]["namespace"] for o in inside} == {"chat", "code"}
    everywhere = of(rendered(helm), "ClusterRole")["rules"]
    for role in inside:
        assert [r for r in everywhere if r in role["rules"]] == role["rules"]
    args = of(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--watch-namespaces=chat,code" in args
    binding = of(objects, "ValidatingAdmissionPolicyBinding", "ballast-controller-plan-writer")
    (place,) = binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"]
    assert place["values"] == ["chat", "code"]


def test_settings_reach_the_controller(helm: Path) -> None:
    (spec, *_) = pod_specs(rendered(helm, EVERYTHING))
    (container,) = spec["containers"]
    assert container["args"] == [
        "controller",
        "run",
        "--namespace=$(POD_NAMESPACE)",
        "--identity=$(POD_NAME)",
        "--watch-namespaces=chat,code",
        "--plan-interval=1000000",
        "--debounce=0.5",
        "--solve-limit=7",
        "--solver-memory-mib=1024",
        "--lease-duration=6",
        "--renew-deadline=4",
        "--retry-period=1",
        "--gpu-label=cloud.example/gpu",
        "--gpu-resource=amd.com/gpu",
        "--agent-port=9410",
        "--log-format=console",
        "--log-level=info",
        "--host=0.0.0.0",
        "--port=9090",
        "--paused",
        "--flag",
    ]
    environment = {entry["name"]: entry for entry in container["env"]}
    assert environment["POD_NAME"]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert environment["POD_NAMESPACE"]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}
    url = environment["BALLAST_CONTROLLER_RUN_DATABASE_URL"]
    assert url.get("valueFrom") == {"secretKeyRef": {"name": "history", "key": "dsn"}}
    assert "value" not in url
    assert container["ports"][0]["containerPort"] == 9090
    probes = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")]
    assert probes == ["/healthz", "/healthz", "/readyz"]
    assert spec["automountServiceAccountToken"] is True
    assert spec["priorityClassName"] == "system-cluster-critical"
    assert [c["topologyKey"] for c in spec["topologySpreadConstraints"]] == ["rack"]


def test_agents_are_off_and_read_only_unless_asked(helm: Path) -> None:
    assert not {o["kind"] for o in rendered(helm)} & {"DaemonSet"}
    objects = rendered(helm, {"agent": {"enabled": True}})
    spec = of(objects, "DaemonSet", "ballast-agent")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert "--mode=recommend" in container["args"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert all("emptyDir" in volume for volume in spec["volumes"])
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchExpressions"] == [{"key": "nvidia.com/gpu.present", "operator": "Exists"}]


def test_agents_that_act_may_do_that_and_nothing_else(helm: Path) -> None:
    objects = rendered(helm, EVERYTHING)
    spec = of(objects, "DaemonSet", "ballast-agent")["spec"]["template"]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert spec["enableServiceLinks"] is False
    (container,) = spec["containers"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert "privileged" not in security
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["SYS_ADMIN"]}
    assert [volume["hostPath"] for volume in spec["volumes"] if "hostPath" in volume] == [
        {"path": "/srv/ballast", "type": "DirectoryOrCreate"}
    ]
    assert container["args"] == [
        "agent",
        "run",
        "--node=$(NODE_NAME)",
        "--mode=auto",
        "--journal=/srv/ballast",
        "--host=0.0.0.0",
        "--port=9410",
        "--safe-max-mhz=1050",
        "--safe-limit-watts=300",
        "--log-format=console",
        "--log-level=info",
        "--period=0.5",
    ]
    rights = [
        (resource, verb)
        for kind in ("ClusterRole", "Role")
        for rule in of(objects, kind, "ballast-agent")["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]
    assert {pair for pair in rights if pair[1] not in {"get", "list", "watch"}} == {
        ("nodepowers/status", "patch")
    }
    assert {resource for resource, _ in rights} == {"nodepowers", "nodepowers/status", "leases"}
    own = of(objects, "ValidatingAdmissionPolicy", "ballast-controller-node-status")["spec"]
    assert "authentication.kubernetes.io/node-name" in own["variables"][0]["expression"]
    assert any("ballast:ballast-agent" in rule["expression"] for rule in own["validations"])


def test_agents_and_controller_share_a_certificate_and_a_token(helm: Path) -> None:
    secured: dict[str, Any] = {
        "enabled": True,
        "tls": {"existingSecret": "agent-tls"},
        "token": {"existingSecret": "agent-token", "existingSecretKey": "read"},
    }
    objects = rendered(helm, {"agent": secured})
    agent = of(objects, "DaemonSet", "ballast-agent")["spec"]["template"]["spec"]
    controller = of(objects, "Deployment")["spec"]["template"]["spec"]
    (asked,), (asks,) = agent["containers"], controller["containers"]
    assert {"--tls-cert=/tls/tls.crt", "--tls-key=/tls/tls.key", "--read-token-file=/token/token"} <= {
        *asked["args"]
    }
    assert {probe["httpGet"]["scheme"] for probe in (asked["livenessProbe"], asked["readinessProbe"])} == {
        "HTTPS"
    }
    assert "--agent-ca=/agent-tls/ca.crt" in asks["args"]
    assert "--agent-server-name=ballast-agent.ballast.svc" in asks["args"]
    assert "--agent-token-file=/agent-token/token" in asks["args"]
    secrets = [
        [
            (volume["secret"]["secretName"], [item["key"] for item in volume["secret"]["items"]])
            for volume in spec["volumes"]
            if "secret" in volume
        ]
        for spec in (agent, controller)
    ]
    # the controller has no use for the agents' key
    assert secrets == [
        [("agent-tls", ["tls.crt", "tls.key"]), ("agent-token", ["read"])],
        [("agent-tls", ["ca.crt"]), ("agent-token", ["read"])],
    ]
    for spec, container in ((agent, asked), (controller, asks)):
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert all(mounts[v["name"]]["readOnly"] for v in spec["volumes"] if "secret" in v)
    named = rendered(helm, {"agent": {**secured, "tls": {**secured["tls"], "serverName": "gpu-agents"}}})
    args = of(named, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--agent-server-name=gpu-agents" in args
    off = of(rendered(helm, {"agent": {**secured, "enabled": False}}), "Deployment")
    assert "agent-tls" not in str(off)


ACCESS: list[dict[str, Any]] = [
    {
        "url": "https://thanos.monitoring.svc:9091",
        "token": {"existingSecret": "thanos"},
        "ca": {"existingConfigMap": "openshift-service-ca.crt", "key": "service-ca.crt"},
    },
    {
        "url": "https://mimir.example/prometheus",
        "basicAuth": {"existingSecret": "mimir", "passwordKey": "pass"},
        "clientCertificate": {"existingSecret": "mtls"},
        "ca": {"existingSecret": "private"},
        "serverName": "mimir",
        "headers": {"X-Scope-OrgID": "a,b|c"},
        "namespaces": ["chat", "code"],
    },
    {"url": "http://mimir:8080", "headers": {"X-Scope-OrgID": "d"}},
    {
        "url": "http://mesh",
        "serviceAccountToken": {"audience": "prom", "expirationSeconds": 600},
        "allowHttp": True,
    },
]


def test_access_to_prometheus_names_files_and_shows_named_keys_only(helm: Path) -> None:
    values = {"prometheus": {"access": ACCESS}, "networkPolicy": {"enabled": True}}
    objects = rendered(helm, values)
    (spec, *_) = pod_specs(objects)
    (container,) = spec["containers"]
    written = [a.partition("=")[2] for a in container["args"] if a.startswith("--prometheus-access=")]
    assert written[0] == (
        "url=https://thanos.monitoring.svc:9091,token-file=/prometheus/0/token,ca-file=/prometheus/0/ca.crt"
    )
    found = [access_of(text) for text in written]  # as the controller reads it
    folder = Path("/prometheus/1")
    assert found[1:] == [
        PrometheusAccess(
            url="https://mimir.example/prometheus",
            username=folder / "username",
            password=folder / "password",
            authority=folder / "ca.crt",
            certificate=folder / "tls.crt",
            key=folder / "tls.key",
            server_name="mimir",
            headers=(("X-Scope-OrgID", "a,b|c"),),
            namespaces=("chat", "code"),
        ),
        PrometheusAccess(url="http://mimir:8080", headers=(("X-Scope-OrgID", "d"),)),
        PrometheusAccess(url="http://mesh", token=Path("/prometheus/3/token"), allow_http=True),
    ]
    PrometheusServers(accesses=tuple(found))
    volumes = {v["name"]: v["projected"]["sources"] for v in spec["volumes"] if "projected" in v}
    mounts = {m["name"]: m for m in container["volumeMounts"] if m["name"] in volumes}
    assert sorted(volumes) == ["prometheus-0", "prometheus-1", "prometheus-3"]  # a tenant alone needs no file
    assert {m["mountPath"] for m in mounts.values()} == {f"/prometheus/{index}" for index in (0, 1, 3)}
    assert all(mount["readOnly"] for mount in mounts.values())
    shown = {
        (kind, source[kind]["name"], item["key"], item["path"])
        for sources in volumes.values()
        for source in sources
        for kind in {"secret", "configMap"} & source.keys()
        for item in source[kind]["items"]
    }
    assert shown == {
        ("secret", "thanos", "token", "token"),
        ("configMap", "openshift-service-ca.crt", "service-ca.crt", "ca.crt"),
        ("secret", "mimir", "username", "username"),
        ("secret", "mimir", "pass", "password"),
        ("secret", "private", "ca.crt", "ca.crt"),
        ("secret", "mtls", "tls.crt", "tls.crt"),
        ("secret", "mtls", "tls.key", "tls.key"),
    }
    assert volumes["prometheus-3"] == [
        {"serviceAccountToken": {"path": "token", "audience": "prom", "expirationSeconds": 600}}
    ]
    rules = of(objects, "NetworkPolicy")["spec"]["egress"]
    assert {9091, 443, 8080, 80} <= {port["port"] for rule in rules for port in rule["ports"]}


def test_two_replicas_are_spread_and_drained_one_by_one(helm: Path) -> None:
    objects = rendered(helm)
    deployment = of(objects, "Deployment")["spec"]
    assert deployment["replicas"] == 2
    for constraint in deployment["template"]["spec"]["topologySpreadConstraints"]:
        assert constraint["labelSelector"] == deployment["selector"]
    assert of(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert of(objects, "PodDisruptionBudget")["spec"]["selector"] == deployment["selector"]
    assert of(objects, "Service")["spec"]["selector"] == deployment["selector"]["matchLabels"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    test = of(objects, "Pod", "ballast-controller-test")["metadata"]["labels"]
    assert not deployment["selector"]["matchLabels"].items() <= test.items()


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        ({}, "ghcr.io/kube-ballast/ballast:{version}"),
        ({"tag": "9"}, "ghcr.io/kube-ballast/ballast:9"),
        ({"tag": "9", "digest": DIGEST}, f"ghcr.io/kube-ballast/ballast@{DIGEST}"),
    ],
)
def test_a_digest_wins_over_a_tag(helm: Path, image: dict[str, str], wanted: str) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    images = {c["image"] for spec in pod_specs(rendered(helm, {"image": image})) for c in spec["containers"]}
    assert images == {wanted.format(version=version)}


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("ballast", {}, "ballast-controller"),
        ("prod", {}, "prod-ballast-controller"),
        ("prod-ballast", {}, "prod-ballast-controller"),
        ("prod", {"nameOverride": "gpu"}, "prod-gpu-controller"),
        ("prod", {"fullnameOverride": "planner"}, "planner"),
    ],
)
def test_names_follow_the_release(helm: Path, name: str, values: dict[str, Any], wanted: str) -> None:
    objects = rendered(helm, values, name=name)
    assert of(objects, "Deployment", wanted)["spec"]["template"]["spec"]["serviceAccountName"] == wanted
    (user,) = of(objects, "ClusterRoleBinding", wanted)["subjects"]
    assert (user["name"], user["namespace"]) == (wanted, "ballast")


def test_long_names_fit(helm: Path) -> None:
    for found in rendered(helm, name="a" * 53, namespace="n" * 63):
        assert len(found["metadata"]["name"]) <= 63


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replica": 2}, "additional properties 'replica' not allowed"),
        ({"image": {"name": "x"}}, "additional properties 'name' not allowed"),
        (
            {"controller": {"leaderElection": {"leaseSeconds": 1}}},
            "additional properties 'leaseSeconds' not allowed",
        ),
        ({"image": {"digest": "sha256:12"}}, "does not match pattern"),
        ({"replicas": 0}, "minimum"),
        ({"paused": "yes"}, "want boolean"),
        ({"database": {"password": "x"}}, "additional properties 'password' not allowed"),
        ({"watchNamespaces": ["*"]}, "does not match pattern"),
        (
            {"controller": {"leaderElection": {"renewDeadlineSeconds": 15}}},
            "renewDeadlineSeconds must be less than leaseDurationSeconds",
        ),
        (
            {"controller": {"leaderElection": {"retryPeriodSeconds": 10}}},
            "retryPeriodSeconds must be less than renewDeadlineSeconds",
        ),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name must name"),
        (access(token={"existingSecret": "s"}, password="x"), "additional properties 'password' not allowed"),  # noqa: S106 - none
        (access(url="https://me:x@prom"), "does not match pattern"),
        (access(url="prom:9090"), "does not match pattern"),
        (access(headers={"Authorization": "x"}), "header Authorization is not for headers; use token or"),
        (access(headers={"X-A": 'a"b'}), "does not match pattern"),
        (access(ca={"key": "ca.crt"}), "missing property 'existingSecret'"),
        (access(), "prometheus.access[0]: there is nothing to bring to https://prom"),
        (
            access(token={"existingSecret": "s"}, serviceAccountToken={}),
            "prometheus.access[0]: token and serviceAccountToken exclude each other",
        ),
        (access(url="http://prom", serviceAccountToken={}), "http shows serviceAccountToken to everybody"),
        (
            access(url="http://prom", ca={"existingSecret": "s"}),
            "ca, clientCertificate and serverName are of no use with http",
        ),
    ],
)
def test_wrong_values_are_refused(helm: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(HelmError, match=re.escape(message)):
        rendered(helm, values)


def test_the_schema_is_closed_and_covers_every_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def objects(part: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(part, dict):
            if part.get("type") == "object":
                yield path, part
            for key, inner in part.items():
                yield from objects(inner, f"{path}/{key}")
        elif isinstance(part, list):
            for index, inner in enumerate(part):
                yield from objects(inner, f"{path}/{index}")

    open_on_purpose = {"/properties/global"} | {
        f"/properties/controller/properties/extraEnv/items/properties/valueFrom/properties/{key}"
        for key in ("configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef", "fileKeyRef")
    }
    closed = {path: part.get("additionalProperties", True) is not True for path, part in objects(schema, "")}
    assert {path for path, is_closed in closed.items() if not is_closed} == open_on_purpose

    def covered(values: dict[str, Any], part: dict[str, Any], path: str) -> None:
        for key, value in values.items():
            if "properties" in part:
                assert key in part["properties"], f"{path}{key} is not in the schema"
                if isinstance(value, dict):
                    covered(value, part["properties"][key], f"{path}{key}.")

    covered(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")


def test_every_value_is_used() -> None:
    templates = "".join(p.read_text() for p in (CHART / "templates").rglob("*") if p.is_file())
    templates = templates.replace("$election.", ".Values.controller.leaderElection.")

    def leaves(values: dict[str, Any], path: str) -> Iterator[str]:
        for key, value in values.items():
            if isinstance(value, dict) and value and key not in {"resources", "labels"}:
                yield from leaves(value, f"{path}.{key}")
            else:
                yield f"{path}.{key}"

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    unused = [p for p in leaves(values, ".Values") if not re.search(rf"{re.escape(p)}\b", templates)]
    assert not unused


def test_readme_is_written_from_the_values() -> None:
    script = [sys.executable, str(CHART.parent / "readme.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_kinds_of_others_appear_only_where_they_are_known(helm: Path) -> None:
    kinds = {o["kind"] for o in rendered(helm, apis=())}
    assert not kinds & {"ServiceMonitor", "PrometheusRule"}
    objects = rendered(helm, EVERYTHING)
    assert of(objects, "ServiceMonitor")["metadata"]["labels"]["release"] == "prometheus"
    assert of(objects, "PrometheusRule")["metadata"]["labels"]["release"] == "prometheus"


def test_definitions_are_the_generated_ones_and_stay(helm: Path) -> None:
    definitions = [o for o in rendered(helm) if o["kind"] == "CustomResourceDefinition"]
    files = [yaml.safe_load(path.read_text()) for path in (CHART / "crd-files").glob("*.yaml")]
    assert {o["metadata"]["name"] for o in definitions} == {f["metadata"]["name"] for f in files}
    for found in definitions:
        assert found["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
        assert found["spec"] in [f["spec"] for f in files]
    off = rendered(helm, {"crds": {"install": False}})
    assert "CustomResourceDefinition" not in {o["kind"] for o in off}


def test_chart_metadata() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]
    assert chart["kubeVersion"] == ">=1.30.0-0"
    notes = {key.removeprefix("artifacthub.io/"): text for key, text in chart["annotations"].items()}
    assert notes["license"] == project["license"]
    named = {entry["name"] for entry in yaml.safe_load(notes["crds"])}
    assert named == {f"{path.stem}.ballast.dev" for path in (CHART / "crd-files").glob("*.yaml")}
    (image,) = yaml.safe_load(notes["images"])
    repository = yaml.safe_load((CHART / "values.yaml").read_text())["image"]["repository"]
    assert image["image"] == f"{repository}:{chart['appVersion']}"
    assert yaml.safe_load(notes["changes"])
    assert yaml.safe_load(notes["links"])


def metrics() -> dict[str, set[str]]:
    """Return what the controller exports: series, and their labels."""
    series: dict[str, set[str]] = {"up": set(), "process_resident_memory_bytes": set()}
    for metric in vars_of(Metrics()):
        base, labels = metric._name, set(metric._labelnames)
        if isinstance(metric, Histogram):
            series |= {f"{base}_count": labels, f"{base}_sum": labels, f"{base}_bucket": labels | {"le"}}
        else:
            series[f"{base}_total" if isinstance(metric, Counter) else base] = labels
    return series


def vars_of(every: Metrics) -> Iterator[Any]:
    for name in Metrics.__slots__:
        if isinstance(getattr(every, name), Counter | Gauge | Histogram):
            yield getattr(every, name)


def test_dashboard_and_alerts_ask_for_metrics_and_labels_that_exist(helm: Path) -> None:
    objects = rendered(helm, EVERYTHING)
    board = of(objects, "ConfigMap", "ballast-controller-dashboard")
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    panels = json.loads(board["data"]["ballast.json"])["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    rules = [rule for group in of(objects, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
    known = metrics()
    of_targets = {"job", "namespace", "pod"}
    for query in (*queries, *(rule["expr"] for rule in rules)):
        assert query.count("(") == query.count(")")
        selectors = re.findall(r"\b(up|ballast_\w+|process_\w+)(?:\{([^}]*)\})?", query)
        assert selectors
        labels = {label for name, _ in selectors for label in known[name]} | of_targets
        for name, matchers in selectors:
            asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert asked <= known[name] | of_targets, query
            if "namespace" in known[name]:  # ours, of a service
                assert 'namespace="ballast"' not in matchers, query
            assert "job" in asked, query
        for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
            assert {word.strip() for word in grouped.split(",")} <= labels, query
    for rule in rules:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"].endswith(".")


def test_network_policy_names_what_is_needed(helm: Path) -> None:
    objects = rendered(helm, EVERYTHING)
    policy = of(objects, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [
        {
            "ports": [{"port": "http", "protocol": "TCP"}],
            "from": EVERYTHING["networkPolicy"]["metricsFrom"],
        }
    ]
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 443, 6443, 8000, 30000, 9090, 5432, 8443, 9410}
    policy = of(objects, "NetworkPolicy", "ballast-agent")["spec"]
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": "telemetry", "protocol": "TCP"}]
    controllers, *readers = rule["from"]
    assert controllers["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "controller"
    assert readers == EVERYTHING["networkPolicy"]["metricsFrom"]
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 443, 6443}


def test_more_objects_are_templates(helm: Path) -> None:
    objects = rendered(helm, EVERYTHING)
    assert of(objects, "ConfigMap", "ballast-more")["data"] == {"a": "b"}
    assert of(objects, "ConfigMap", "ballast-text")
