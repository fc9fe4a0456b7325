"""Talks to the API server: reads, server-side apply, patches, each with a time limit and errors that can be told apart.

It exists so that every write of the operator goes through one door that names its field manager and refuses to act for
a leader whose lease may be over. It keeps nothing and decides nothing; watching is `controller.operator.runtime`'s.
"""

import codecs
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import urllib3.exceptions
import yaml
from kubernetes import client, config

from controller.resources.kinds import GROUP, VERSION
from solver.domain.errors import InputError

REQUEST_LIMIT_S = 10.0
CONTROLLER = "ballast-controller"
"""Field manager of specs, replicas and our annotations."""
STATUS = "ballast-status"
"""Field manager of statuses."""
ABSENT = "1"
"""A resource version that no object has: an apply on it creates, and fails with 409 if somebody was faster."""

Object = dict[str, Any]


def _as_yaml(body: Any) -> str:
    r"""Write JSON that is YAML, too: YAML knows no surrogate pairs (``\ud83d\ude00``) and takes few letters bare."""
    return re.sub(r"[^ -~]", _escaped, json.dumps(body, ensure_ascii=False))


def _escaped(letter: re.Match[str]) -> str:
    code = ord(letter[0])
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


ITEMS = re.compile(r'"items"\s*:\s*\[\s*')
"""Where the items of a list begin; before them a list only tells its kind, version and place in history."""
BETWEEN = re.compile(r"[\s,]*")
PIECE_BYTES = 2**17


def items_of(pieces: Iterable[bytes]) -> Iterator[Object]:
    """Read the items of a list one after another, so that no list is ever held as a whole.

    Raises
    ------
    ValueError
        If the answer is not whole.
    """
    decode = codecs.getincrementaldecoder("utf-8")().decode
    read = json.JSONDecoder().raw_decode
    text, inside, done = "", False, False
    for piece in pieces:  # to the end: what is left unread would cost the connection
        if done:
            continue
        text += decode(piece)
        place = 0
        if not inside:
            begin = ITEMS.search(text)
            if begin is None:
                continue
            inside, place = True, begin.end()
        while not done:
            between = BETWEEN.match(text, place)
            place = place if between is None else between.end()
            if text.startswith("]", place):
                done = True
                continue
            try:
                item, place = read(text, place)
            except ValueError:  # the rest of it is yet to come
                break
            yield item
        text = "" if done else text[place:]
    if not inside:
        json.loads(text)  # it may have none, but it must be whole
    elif not done:
        raise ValueError("the list ends before its items do")


class ApiError(Exception):
    """The API server refused, or could not be reached (``code`` 0)."""

    def __init__(self, code: int, message: str, body: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.body = body or {}

    @property
    def passing(self) -> bool:
        """Whether the same write may succeed in a moment: somebody was faster, or we are not yet known to lead."""
        return self.code == 409 or (self.code == 403 and "only the leader may write" in str(self))

    @property
    def field_owner(self) -> str | None:
        """The manager that owns a field we tried to apply, if that is why."""
        causes = (self.body.get("details") or {}).get("causes") or []
        for cause in causes:
            if cause.get("reason") == "FieldManagerConflict":
                message = str(cause.get("message", ""))
                return message.split('"')[1] if '"' in message else message
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """Where objects of a kind are found."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    def path(
        self, namespace: str | None = None, name: str | None = None, subresource: str | None = None
    ) -> str:
        """Return the path of a collection, an object or a subresource."""
        root = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        parts = [root]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part is not None]
        return "/".join(parts)


MODEL_SERVICES = Resource(api_version=f"{GROUP}/{VERSION}", kind="ModelService", plural="modelservices")
GPU_PROFILES = Resource(
    api_version=f"{GROUP}/{VERSION}", kind="GpuProfile", plural="gpuprofiles", namespaced=False
)
PLANS = Resource(api_version=f"{GROUP}/{VERSION}", kind="Plan", plural="plans")
EXPERT_PLACEMENTS = Resource(
    api_version=f"{GROUP}/{VERSION}", kind="ExpertPlacement", plural="expertplacements"
)
POWER_DOMAINS = Resource(
    api_version=f"{GROUP}/{VERSION}", kind="PowerDomain", plural="powerdomains", namespaced=False
)
NODE_POWERS = Resource(
    api_version=f"{GROUP}/{VERSION}", kind="NodePower", plural="nodepowers", namespaced=False
)
DEPLOYMENTS = Resource(api_version="apps/v1", kind="Deployment", plural="deployments")
STATEFUL_SETS = Resource(api_version="apps/v1", kind="StatefulSet", plural="statefulsets")
LEADER_WORKER_SETS = Resource(
    api_version="leaderworkerset.x-k8s.io/v1", kind="LeaderWorkerSet", plural="leaderworkersets"
)
NODES = Resource(api_version="v1", kind="Node", plural="nodes", namespaced=False)
PODS = Resource(api_version="v1", kind="Pod", plural="pods")
CONFIG_MAPS = Resource(api_version="v1", kind="ConfigMap", plural="configmaps")
AUTOSCALERS = Resource(
    api_version="autoscaling/v2", kind="HorizontalPodAutoscaler", plural="horizontalpodautoscalers"
)
SCALED_OBJECTS = Resource(api_version="keda.sh/v1alpha1", kind="ScaledObject", plural="scaledobjects")
RESOURCE_SLICES = Resource(
    api_version="resource.k8s.io/v1", kind="ResourceSlice", plural="resourceslices", namespaced=False
)
RESOURCE_CLAIMS = Resource(api_version="resource.k8s.io/v1", kind="ResourceClaim", plural="resourceclaims")
HTTP_ROUTES = Resource(api_version="gateway.networking.k8s.io/v1", kind="HTTPRoute", plural="httproutes")
EVENTS = Resource(api_version="events.k8s.io/v1", kind="Event", plural="events")
LEASES = Resource(api_version="coordination.k8s.io/v1", kind="Lease", plural="leases")
LEADERSHIPS = Resource(api_version=f"{GROUP}/{VERSION}", kind="Leadership", plural="leaderships")
"""What the chart's admission policy reads to refuse the writes of all but the leader."""
TARGETS = {resource.kind: resource for resource in (DEPLOYMENTS, STATEFUL_SETS, LEADER_WORKER_SETS)}


def _inside(settings: client.Configuration) -> bool:
    try:
        config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        return False
    return True


def _no_cluster(kubeconfig: str | None, reason: str) -> InputError:
    return InputError(
        " ".join(reason.split()).rstrip("."),
        where=kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config",
        right="--kubeconfig FILE and --context NAME choose another",
    )


def connect(kubeconfig: str | None = None, context: str | None = None) -> client.ApiClient:
    """Return a client for the cluster we run in, or for a kubeconfig and a context of it.

    Raises
    ------
    InputError
        If we run in none and there is no kubeconfig, or it cannot be read.
    """
    settings = client.Configuration()
    try:
        if kubeconfig is not None or context is not None or not _inside(settings):
            config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=kubeconfig, context=context, client_configuration=settings
            )
    except config.ConfigException as error:
        raise _no_cluster(kubeconfig, str(error)) from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:  # TypeError: a text, not a mapping
        raise _no_cluster(kubeconfig, f"not a kubeconfig: {error}") from None
    settings.retries = False
    return client.ApiClient(settings)


@dataclass(slots=True, kw_only=True)
class Api:
    """Requests to one API server; ``may_write`` is asked before each write."""

    client: client.ApiClient
    may_write: Callable[[], bool] = field(default=lambda: True)
    limit_s: float = REQUEST_LIMIT_S

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
        accept: str = "application/json",
    ) -> Object:
        """Send one request; `ApiError` for anything but success."""
        answer = self._sent(method, path, body=body, content_type=content_type, query=query, accept=accept)
        return self._whole(answer)

    def _sent(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
        accept: str = "application/json",
    ) -> Any:
        """Send one request; the answer is not read yet."""
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            prepared = self.client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=_as_yaml(body) if content_type.endswith("yaml") else body,
                auth_settings=["BearerToken"],
            )
            return self.client.call_api(*prepared, _request_timeout=(5.0, self.limit_s))
        except client.ApiException as error:
            raise ApiError(int(error.status or 0), str(error.reason)) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ApiError(0, f"the API server cannot be reached: {error}") from error

    def _whole(self, answer: Any) -> Object:
        """Read an answer; `ApiError` for anything but success."""
        try:
            raw = answer.read()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ApiError(0, f"the API server cannot be reached: {error}") from error
        try:
            parsed = json.loads(raw) if raw else {}
        except ValueError:
            parsed = {"message": raw[:200].decode(errors="replace")}
        if not 200 <= answer.status < 300:
            message = parsed.get("message", answer.reason) if isinstance(parsed, dict) else str(answer.reason)
            raise ApiError(answer.status, str(message), parsed if isinstance(parsed, dict) else None)
        return dict(parsed)

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """Read an object; None if it does not exist."""
        try:
            return self.request("GET", resource.path(namespace, name))
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def names(self, resource: Resource, namespace: str | None = None) -> dict[tuple[str, str], str] | None:
        """List (namespace, name) → resource version from the server's cache; None if the kind does not exist."""
        query = {"resourceVersion": "0"}
        accept = (
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=Table;q=0"
        )
        try:
            return {
                (sys.intern(metadata.get("namespace", "")), metadata["name"]): metadata["resourceVersion"]
                for item in self.each(resource, namespace, query=query, accept=accept)
                for metadata in (item["metadata"],)
            }
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def list(self, resource: Resource, namespace: str | None = None) -> list[Object]:
        """List objects."""
        return list(self.each(resource, namespace))

    def each(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        query: Mapping[str, str] | None = None,
        accept: str = "application/json",
    ) -> Iterator[Object]:
        """List objects one after another: of thousands, only one is held at a time."""
        answer = self._sent("GET", resource.path(namespace), query=query, accept=accept)
        if not 200 <= answer.status < 300:
            self._whole(answer)  # raises what the server says
            return
        whole = False
        try:
            yield from items_of(answer.response.stream(PIECE_BYTES))
            whole = True
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ApiError(0, f"the API server cannot be reached: {error}") from error
        finally:
            if whole:
                answer.response.release_conn()
            else:
                answer.response.close()

    def apply(
        self,
        resource: Resource,
        body: Object,
        *,
        manager: str,
        subresource: str | None = None,
        force: bool = False,
    ) -> Object:
        """Apply a body server-side; ``metadata.resourceVersion`` in it makes the write fail on any other version."""
        metadata = body["metadata"]
        self._fence()
        return self.request(
            "PATCH",
            resource.path(metadata.get("namespace"), metadata["name"], subresource),
            body={"apiVersion": resource.api_version, "kind": resource.kind, **body},
            content_type="application/apply-patch+yaml",
            query={"fieldManager": manager, "force": "true" if force else "false"},
        )

    def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: Any,
        *,
        content_type: str = "application/merge-patch+json",
        subresource: str | None = None,
        manager: str = CONTROLLER,
    ) -> Object:
        """Merge-patch or JSON-patch an object."""
        self._fence()
        return self.request(
            "PATCH",
            resource.path(namespace, name, subresource),
            body=body,
            content_type=content_type,
            query={"fieldManager": manager},
        )

    def create(self, resource: Resource, namespace: str | None, body: Object) -> Object:
        """Create an object."""
        self._fence()
        return self.request(
            "POST",
            resource.path(namespace),
            body={"apiVersion": resource.api_version, "kind": resource.kind, **body},
            query={"fieldManager": CONTROLLER},
        )

    def delete(self, resource: Resource, namespace: str | None, name: str) -> None:
        """Delete an object."""
        self._fence()
        self.request("DELETE", resource.path(namespace, name))

    def replace(self, resource: Resource, namespace: str | None, body: Object) -> Object:
        """Replace an object at the version it was read at."""
        return self.request("PUT", resource.path(namespace, body["metadata"]["name"]), body=body)

    def _fence(self) -> None:
        if not self.may_write():
            raise ApiError(0, "this replica is not the leader, or its lease may be over: nothing is written")
