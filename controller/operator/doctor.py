"""Looks at a cluster as the controller will and says what is missing, exactly, and what to do about it.

It exists so that nobody has to guess why nothing happens. It reads only; what it may not read itself is said, too. How
findings are printed is the command's business.
"""

import datetime as dt
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pydantic import ValidationError

from controller.operator.api import (
    GPU_PROFILES,
    HTTP_ROUTES,
    LEADER_WORKER_SETS,
    LEADERSHIPS,
    LEASES,
    MODEL_SERVICES,
    NODES,
    RESOURCE_SLICES,
    SCALED_OBJECTS,
    Api,
    ApiError,
    Object,
    Resource,
)
from controller.operator.conditions import TELEMETRY_READY
from controller.operator.inventory import (
    InventoryRules,
    PoolKey,
    pool_key,
    published_devices,
    take_inventory,
)
from controller.operator.leader import LEASE_NAME
from controller.operator.permissions import CRDS, Permission, Question, questions
from controller.operator.profiles import ProfileBook
from controller.operator.times import parse_time
from controller.operator.views import first_problem
from controller.operator.world import Node, World
from controller.resources.gpu_profile import GpuProfileSpec
from controller.resources.installed import differences
from controller.resources.kinds import GROUP, KINDS, VERSION
from solver.domain.errors import InputError
from solver.domain.hardware import GpuType
from telemetry.catalogue.read import find_gpu, read_gpus

LEAST_VERSION = (1, 30)
"""ValidatingAdmissionPolicies are stable since; the chart asks for the same."""
ASKERS = 8
CLOCK_SLACK_S = 5.0
UNREACHABLE = {0, 401}
"""Codes of errors after which nothing else can be asked."""
DRA_DRIVER = "gpu.nvidia.com"
SELF_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
REVIEW = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
OPTIONAL_KINDS: tuple[tuple[Resource, str], ...] = (
    (LEADER_WORKER_SETS, "needed for replicas on several nodes"),
    (SCALED_OBJECTS, "needed only if KEDA is to scale for Ballast"),
    (HTTP_ROUTES, "needed only for traffic weights between variants"),
    (RESOURCE_SLICES, "needed only for GPUs by DRA"),
)


class Mark(StrEnum):
    """How a finding is meant."""

    OK = "ok"
    MISSING = "missing"
    """Something does not work without it."""
    WARNING = "warning"
    """It works, but somebody should know."""
    ABSENT = "absent"
    """Optional, and not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    area: str
    mark: Mark
    what: str
    do: str = ""
    """What to do; empty where there is nothing to be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """GPU nodes with one value of the product label."""

    label: str
    gpu_type: str
    """Name in the catalogue, or empty."""
    nodes: int
    gpus: int
    closed: int
    """Nodes that take no pods now: not ready, cordoned or tainted."""
    profiles: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What to look at."""

    namespace: str | None = None
    """Of the release; None: where the Lease is."""
    watched: tuple[str, ...] = ()
    """Namespaces that the controller watches; none: all."""
    account: tuple[str, str] | None = None
    """Namespace and name of the ServiceAccount whose rights are asked for; None: our own."""
    gpu_label: str = "nvidia.com/gpu.product"
    gpu_resource: str = "nvidia.com/gpu"
    database_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that was found."""

    server_version: str
    namespace: str
    """Of the release; empty if it was not found."""
    leader: str
    findings: tuple[Finding, ...]
    products: tuple[Product, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return all(finding.mark is not Mark.MISSING for finding in self.findings)


@dataclass(slots=True, kw_only=True)
class Doctor:
    """One examination of one cluster."""

    api: Api
    wishes: Wishes
    clock: Callable[[], float] = time.time
    pause: Callable[[float], None] = time.sleep
    book: ProfileBook = field(default_factory=ProfileBook)
    _catalogue: dict[str, GpuType] = field(default_factory=dict)
    _findings: list[Finding] = field(default_factory=list)
    _products: list[Product] = field(default_factory=list)
    _namespace: str = ""
    _leader: str = ""

    def examine(self) -> Report:
        """Look at everything.

        Raises
        ------
        ApiError
            If the API server cannot be reached at all, or does not know us.
        """
        version = self._version()
        has_kinds = self._definitions()
        self._lease()
        self._permissions()
        self._gpus(has_kinds)
        if has_kinds:
            self._services()
        self._optional()
        self._database()
        self._python()
        return Report(
            server_version=version,
            namespace=self._namespace,
            leader=self._leader,
            findings=tuple(self._findings),
            products=tuple(self._products),
        )

    def _note(self, area: str, mark: Mark, what: str, do: str = "") -> None:
        self._findings.append(Finding(area=area, mark=mark, what=what, do=do))

    def _unseen(self, area: str, what: str, error: ApiError) -> None:
        self._note(area, Mark.WARNING, f"{what} cannot be read: {error}", _another_way(error))

    # -- the API server and our definitions ----------------------------------------------------------------------

    def _version(self) -> str:
        answer = self.api.request("GET", "/version")
        version = str(answer.get("gitVersion") or "unknown")
        digits = [
            "".join(c for c in str(answer.get(part) or "") if c.isdigit()) for part in ("major", "minor")
        ]
        known = tuple(int(part) for part in digits if part)
        if len(known) == 2 and known < LEAST_VERSION:
            least = ".".join(map(str, LEAST_VERSION))
            self._note("api", Mark.MISSING, f"Kubernetes {version} is too old", f"use {least} or newer")
        else:
            self._note("api", Mark.OK, f"Kubernetes {version} answers")
        return version

    def _definitions(self) -> bool:
        """Compare the installed CustomResourceDefinitions with ours; whether all kinds are served."""
        served = True
        for kind in KINDS:
            try:
                body = self.api.get(CRDS, None, kind.crd_name)
            except ApiError as error:
                if error.code in UNREACHABLE:
                    raise
                if self._serves(f"{GROUP}/{VERSION}", kind.plural):
                    self._unseen("definitions", f"{kind.crd_name} is there, but its schema", error)
                else:
                    served = False
                    self._missing_definition(kind.crd_name)
                continue
            if body is None:
                served = False
                self._missing_definition(kind.crd_name)
                continue
            differing = [*differences(kind, body)]
            if differing:
                more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
                self._note(
                    "definitions",
                    Mark.MISSING,
                    f"{kind.crd_name} has another schema: {', '.join(differing[:3])}{more}",
                    "helm upgrade the chart of this version with crds.install=true",
                )
            else:
                self._note("definitions", Mark.OK, f"{kind.crd_name} is at our schema")
        if not self._serves(LEADERSHIPS.api_version, LEADERSHIPS.plural):
            self._note(
                "definitions",
                Mark.WARNING,
                f"{LEADERSHIPS.plural}.{GROUP} is not installed: writes of a replica that has lost its lease are"
                " not refused",
                "helm upgrade the chart with crds.install=true",
            )
        return served

    def _missing_definition(self, name: str) -> None:
        self._note(
            "definitions",
            Mark.MISSING,
            f"{name} is not installed",
            "helm upgrade --install ballast with crds.install=true",
        )

    def _serves(self, api_version: str, plural: str) -> bool:
        """Whether the API server has a resource; asked by discovery, which everybody may."""
        root = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
        try:
            answer = self.api.request("GET", root)
        except ApiError as error:
            if error.code == 404:
                return False
            raise
        return any(found.get("name") == plural for found in answer.get("resources") or [])

    # -- who leads, and what the controller may do ---------------------------------------------------------------

    def _lease(self) -> None:
        try:
            lease = self._find_lease()
        except ApiError as error:
            if error.code in UNREACHABLE:
                raise
            self._unseen("leader", f"Lease {LEASE_NAME}", error)
            self._namespace = self.wishes.namespace or ""
            return
        if lease is None:
            self._namespace = self.wishes.namespace or ""
            where = f"in {self.wishes.namespace}" if self.wishes.namespace else "in any namespace"
            self._note(
                "leader",
                Mark.MISSING,
                f"there is no Lease {LEASE_NAME} {where}: no controller runs",
                "install the chart, or look at the logs of its pods",
            )
            return
        self._namespace = str(lease["metadata"]["namespace"])
        name = f"{self._namespace}/{LEASE_NAME}"
        holder = str(lease["spec"].get("holderIdentity") or "")
        if not holder:
            self._note(
                "leader",
                Mark.MISSING,
                f"Lease {name} is held by nobody: the last controller has stopped",
                f"kubectl -n {self._namespace} get pods -l app.kubernetes.io/component=controller",
            )
            return
        lasts_s = float(lease["spec"].get("leaseDurationSeconds") or 15)
        age_s = self.clock() - parse_time(str(lease["spec"].get("renewTime") or ""))
        if -CLOCK_SLACK_S <= age_s <= lasts_s:
            self._leader = holder
            self._note(
                "leader", Mark.OK, f"{holder} leads (Lease {name}, renewed {max(0.0, age_s):.0f} s ago)"
            )
            return
        if self._is_renewed(lease, lasts_s):
            self._leader = holder
            self._note(
                "leader",
                Mark.WARNING,
                f"{holder} leads, but its clock is {_span(abs(age_s))} {'behind' if age_s > 0 else 'ahead of'}"
                " this machine's",
                "set the clocks right; Ballast compares no clocks, but people do",
            )
            return
        self._note(
            "leader",
            Mark.MISSING,
            f"Lease {name} of {holder} was last renewed {_span(age_s)} ago: no controller leads",
            f"kubectl -n {self._namespace} get pods -l app.kubernetes.io/component=controller",
        )

    def _find_lease(self) -> Object | None:
        if self.wishes.namespace is not None:
            return self.api.get(LEASES, self.wishes.namespace, LEASE_NAME)
        query = {"fieldSelector": f"metadata.name={LEASE_NAME}"}
        found = self.api.request("GET", LEASES.path(), query=query).get("items") or []
        return max(found, key=lambda lease: str(lease["spec"].get("renewTime") or ""), default=None)

    def _is_renewed(self, lease: Object, lasts_s: float) -> bool:
        """Whether somebody renews a Lease that looks old: clocks of machines may differ."""
        for _ in range(round(lasts_s) + 1):
            self.pause(1.0)
            now = self.api.get(LEASES, lease["metadata"]["namespace"], LEASE_NAME)
            if now is not None and now["spec"].get("renewTime") != lease["spec"].get("renewTime"):
                return bool(now["spec"].get("holderIdentity"))
        return False

    def _permissions(self) -> None:
        """Ask the API server about every verb of the list."""
        account = self.wishes.account
        who = f"ServiceAccount {account[0]}/{account[1]}" if account else "your account"
        own = self._namespace or (account[0] if account else "") or "default"
        absent = {
            (resource.api_version.rpartition("/")[0], resource.plural)
            for resource, _ in OPTIONAL_KINDS
            if not self._serves(resource.api_version, resource.plural)
        }
        asked = [
            question
            for question in questions(own, self.wishes.watched)
            if (question.permission.group, question.permission.resource) not in absent
        ]
        try:
            with ThreadPoolExecutor(ASKERS) as pool:
                answers = [*pool.map(self._may, asked)]
        except ApiError as error:
            if error.code in UNREACHABLE:
                raise
            self._unseen("permissions", f"the rights of {who}", error)
            return
        refused: dict[tuple[Permission, str], list[str]] = {}
        for question, allowed in zip(asked, answers, strict=True):
            if not allowed:
                refused.setdefault((question.permission, question.namespace), []).append(question.verb)
        if not any(answers):
            self._note(
                "permissions",
                Mark.MISSING,
                f"{who} has none of the {len(asked)} rights the controller needs",
                "install the chart with rbac.create=true, or name the account that it uses",
            )
            refused = {}
        for (permission, namespace), verbs in refused.items():
            where = f" in {namespace}" if namespace else ""
            resource = f"{permission.resource}/{permission.subresource}".removesuffix("/")
            rule = f'apiGroups: ["{permission.group}"], resources: [{resource}], verbs: [{", ".join(verbs)}]'
            self._note(
                "permissions",
                Mark.WARNING if permission.optional else Mark.MISSING,
                f"{who} may not {', '.join(verbs)} {permission.written}{where} (to {permission.why})",
                f"let its role allow {rule}",
            )
        if all(answers):
            self._note("permissions", Mark.OK, f"{who} has all {len(asked)} rights the controller needs")
        if account is None:
            self._note(
                "permissions",
                Mark.OK,
                "these were your own rights",
                f"for the controller's: --as-service-account {self._namespace or 'NAMESPACE'}/ballast-controller",
            )

    def _may(self, question: Question) -> bool:
        spec: Object = {"resourceAttributes": question.attributes()}
        account = self.wishes.account
        if account is not None:
            spec["user"] = f"system:serviceaccount:{account[0]}:{account[1]}"
            spec["groups"] = [
                "system:serviceaccounts",
                f"system:serviceaccounts:{account[0]}",
                "system:authenticated",
            ]
        kind = "SelfSubjectAccessReview" if account is None else "SubjectAccessReview"
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
        answer = self.api.request("POST", SELF_REVIEW if account is None else REVIEW, body=body)
        return bool((answer.get("status") or {}).get("allowed"))

    # -- GPUs and profiles ---------------------------------------------------------------------------------------

    def _gpus(self, has_kinds: bool) -> None:  # noqa: FBT001 - one caller
        try:
            bodies = self.api.list(NODES)
        except ApiError as error:
            if error.code in UNREACHABLE:
                raise
            self._unseen("gpus", "nodes", error)
            return
        world = World(gpu_resource=self.wishes.gpu_resource)
        for body in bodies:
            world.put(NODES.kind, body)
        devices = self._devices(world)
        nodes: dict[str, Node] = {node.name: node for node in world.all(NODES.kind).values()}
        label = self.wishes.gpu_label
        with_gpus = {name for name, node in nodes.items() if node.gpus or devices.get(name, 0)}
        bare = sorted(name for name, node in nodes.items() if label in node.labels and name not in with_gpus)
        if bare:
            self._note(
                "gpus",
                Mark.WARNING,
                f"{label} without {self.wishes.gpu_resource} on {_names(bare, 'node')}",
                "look at the device plugin (or DRA driver) there; see also --gpu-resource",
            )
        if not with_gpus:
            self._note(
                "gpus",
                Mark.MISSING,
                f"none of {len(nodes)} nodes offers {self.wishes.gpu_resource}",
                "install the GPU operator or device plugin, or name the resource by --gpu-resource",
            )
        profiles = self._profiles() if has_kinds else {}
        pools = {name: pool_key(spec, label, self.book.labels_of) for name, spec in profiles.items()}
        on_pool = self._nodes_by_pool(world, set(pools.values()), devices)
        if with_gpus:
            self._count(nodes, with_gpus, devices, pools, on_pool)
        for name, pool in pools.items():
            if not on_pool[pool.name]:
                wanted = ", ".join(f"{k}={v}" for k, v in pool.selector) or (
                    f"{label} in {', '.join(dict.fromkeys(self.book.labels_of(pool.gpu_type)))}"
                )
                self._note(
                    "profiles",
                    Mark.WARNING,
                    f"GpuProfile {name} has no node with GPUs (looked for {wanted})",
                    "add such nodes, or correct its gpuType or nodeSelector",
                )
        if has_kinds and not profiles:
            self._note(
                "profiles",
                Mark.WARNING,
                "there is no GpuProfile, so nothing can be planned",
                "kubectl apply one per model and GPU type; modelled: true needs no measurements",
            )
        elif profiles:
            self._note("profiles", Mark.OK, f"{len(profiles)} GpuProfiles can be read")

    def _gpu_type_of(self, label: str) -> str:
        """Name a product label's GPU type in the catalogue; empty for one that is not there."""
        if not self._catalogue:
            self._catalogue.update(read_gpus())
        try:
            return find_gpu(self._catalogue, label).name
        except InputError:
            return ""

    def _devices(self, world: World) -> dict[str, int]:
        """Count GPUs that only DRA publishes."""
        try:
            for body in self.api.list(RESOURCE_SLICES):
                world.put(RESOURCE_SLICES.kind, body)
        except ApiError as error:
            if error.code in UNREACHABLE:
                raise
        return published_devices(world.all(RESOURCE_SLICES.kind), DRA_DRIVER)

    def _profiles(self) -> dict[str, GpuProfileSpec]:
        try:
            bodies = self.api.list(GPU_PROFILES)
        except ApiError as error:
            if error.code in UNREACHABLE:
                raise
            self._unseen("profiles", "GpuProfiles", error)
            return {}
        found = {}
        for body in bodies:
            name = str(body["metadata"]["name"])
            try:
                found[name] = GpuProfileSpec.model_validate(body["spec"])
            except ValidationError as error:
                self._note(
                    "profiles",
                    Mark.MISSING,
                    f"GpuProfile {name} cannot be read: {first_problem(error)}",
                    "correct it, or upgrade the chart",
                )
        return found

    def _nodes_by_pool(
        self, world: World, pools: set[PoolKey], devices: Mapping[str, int]
    ) -> dict[str, list[str]]:
        """Name the nodes of each pool, also those that take no pods now."""
        inventory = take_inventory(
            world.all(NODES.kind),
            {},
            dict.fromkeys(pools, ()),
            ours=set(),
            rules=InventoryRules(gpu_label=self.wishes.gpu_label, labels_of=self.book.labels_of),
            devices=devices,
        )
        return {pool.name: [*inventory.by_node[pool.name], *inventory.closed[pool.name]] for pool in pools}

    def _count(
        self,
        nodes: Mapping[str, Node],
        with_gpus: set[str],
        devices: Mapping[str, int],
        pools: Mapping[str, PoolKey],
        on_pool: Mapping[str, Sequence[str]],
    ) -> None:
        label = self.wishes.gpu_label
        by_product: dict[str, list[Node]] = {}
        for name in sorted(with_gpus):
            by_product.setdefault(nodes[name].labels.get(label, ""), []).append(nodes[name])
        used: dict[str, set[str]] = {}
        for profile, pool in pools.items():
            for name in on_pool[pool.name]:
                used.setdefault(name, set()).add(profile)
        for product, found in sorted(by_product.items()):
            profiles = sorted(set().union(*(used.get(node.name, set()) for node in found)))
            self._products.append(
                Product(
                    label=product,
                    gpu_type=self._gpu_type_of(product),
                    nodes=len(found),
                    gpus=sum(node.gpus or devices.get(node.name, 0) for node in found),
                    closed=sum(not node.open for node in found),
                    profiles=tuple(profiles),
                )
            )
            unused = sorted(node.name for node in found if node.name not in used)
            if not unused:
                continue
            if not product:
                self._note(
                    "gpus",
                    Mark.MISSING,
                    f"GPUs without label {label} on {_names(unused, 'node')}",
                    "install GPU feature discovery, label them, or name the label by --gpu-label",
                )
            else:
                gpu_type = self._gpu_type_of(product) or product
                self._note(
                    "gpus",
                    Mark.WARNING,
                    f"no GpuProfile uses {_names(unused, 'node')} with {product}",
                    f"to plan with them, apply a GpuProfile with gpuType: {gpu_type}",
                )
        gpus = sum(product.gpus for product in self._products)
        self._note("gpus", Mark.OK, f"{gpus} GPUs on {len(with_gpus)} nodes")

    # -- services ------------------------------------------------------------------------------------------------

    def _services(self) -> None:
        try:
            bodies = [*self._everywhere(MODEL_SERVICES)]
        except ApiError as error:
            if error.code in UNREACHABLE:
                raise
            self._unseen("services", "ModelServices", error)
            return
        fine = 0
        for body in bodies:
            metadata, status = body["metadata"], body.get("status") or {}
            name = f"{metadata['namespace']}/{metadata['name']}"
            conditions = {c.get("type"): c for c in status.get("conditions") or []}
            telemetry = conditions.get(TELEMETRY_READY)
            if telemetry is None or int(status.get("observedGeneration") or 0) < int(
                metadata.get("generation") or 0
            ):
                self._note(
                    "services",
                    Mark.MISSING,
                    f"ModelService {name}: no controller has looked at it as it is now",
                    "see leader above; if --watch-namespaces is set, its namespace must be named there",
                )
            elif telemetry.get("status") != "True":
                self._note(
                    "services",
                    Mark.MISSING,
                    f"ModelService {name}: no traffic is known ({telemetry.get('reason')}):"
                    f" {telemetry.get('message')}",
                    _telemetry_advice(body, str(telemetry.get("reason"))),
                )
            else:
                fine += 1
        if bodies and fine:
            self._note("services", Mark.OK, f"the traffic of {fine} of {len(bodies)} ModelServices is known")
        elif not bodies:
            self._note("services", Mark.OK, "there is no ModelService yet")

    def _everywhere(self, resource: Resource) -> Iterator[Object]:
        for namespace in self.wishes.watched or (None,):
            yield from self.api.list(resource, namespace)

    # -- the rest ------------------------------------------------------------------------------------------------

    def _optional(self) -> None:
        for resource, consequence in OPTIONAL_KINDS:
            if self._serves(resource.api_version, resource.plural):
                self._note("optional", Mark.OK, f"{resource.kind} ({resource.api_version}) is served")
            else:
                what = f"{resource.kind} ({resource.api_version}) is not served: {consequence}"
                self._note("optional", Mark.ABSENT, what)

    def _database(self) -> None:
        if self.wishes.database_url:
            self._findings.append(database_finding(self.wishes.database_url))

    def _python(self) -> None:
        if importlib.util.find_spec("highspy") is not None:
            self._note(
                "python",
                Mark.WARNING,
                "highspy can be imported here; it cannot live in one process with ortools",
                "pip uninstall highspy, or give Ballast an environment of its own",
            )


def _another_way(error: ApiError) -> str:
    return "ask with an account that may" if error.code == 403 else "ask again"


def database_finding(url: str) -> Finding:
    """Try to read the history; a database that was never used is fine."""
    from telemetry.store.store import open_store, read_url  # noqa: PLC0415 - a second's import, for few

    parsed = read_url(url)
    shown = parsed.render_as_string()
    file = parsed.database or ""
    if parsed.get_backend_name() == "sqlite" and file not in {"", ":memory:"} and not Path(file).exists():
        if Path(file).parent.is_dir():
            return Finding(area="database", mark=Mark.OK, what=f"{shown} is made at the first start")
        return Finding(
            area="database",
            mark=Mark.MISSING,
            what=f"{shown}: folder {Path(file).parent} does not exist",
            do="make it, or name another file",
        )
    try:
        open_store(url).decisions("", most=1)
    except Exception as error:  # noqa: BLE001 - only telemetry knows the library's errors
        said = " ".join(str(getattr(error, "orig", None) or error).split())
        if "no such table" in said or ("does not exist" in said and "relation" in said):
            return Finding(
                area="database", mark=Mark.OK, what=f"{shown} answers; its tables are made at the first start"
            )
        return Finding(
            area="database",
            mark=Mark.MISSING,
            what=f"{shown} cannot be used: {said[:300]}",
            do="correct the URL or start the server; control goes on without, history is lost",
        )
    return Finding(area="database", mark=Mark.OK, what=f"{shown} answers")


def _telemetry_advice(body: Object, reason: str) -> str:
    traffic = body["spec"].get("traffic") or {}
    metadata = body["metadata"]
    if "scrape" in traffic:
        scrape = traffic["scrape"]
        return (
            f"see that the pods are Ready and serve {scrape.get('path', '/metrics')} on port"
            f" {scrape.get('port', 8000)} for {scrape.get('engine', 'vllm')}, and that no NetworkPolicy is in"
            " the way"
        )
    if "prometheus" in traffic:
        source = traffic["prometheus"]
        return (
            f"ask {source.get('url')} for the named series with selector {{{source.get('selector', '')}}};"
            " correct the selector, or let Prometheus scrape the pods"
        )
    if "traceConfigMap" in traffic:
        source = traffic["traceConfigMap"]
        return f"put the trace into ConfigMap {source.get('name')}, key {source.get('key', 'trace.csv')}"
    return f"ballast explain modelservice/{metadata['name']} -n {metadata['namespace']} ({reason})"


def _names(names: Sequence[str], noun: str) -> str:
    """Name at most three."""
    if len(names) <= 3:
        return f"{noun}{'s' if len(names) != 1 else ''} {', '.join(names)}"
    return f"{len(names)} {noun}s ({', '.join(names[:3])}, …)"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return str(dt.timedelta(seconds=round(seconds)))
