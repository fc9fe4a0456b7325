"""The Lease of the controller: whether somebody leads, and where the release is.

It exists so that a controller that does not run, one that has stopped and one with a wrong clock are told apart. It
takes no Lease and compares no clocks beyond what people should know (`controller.operator.leader` elects).
"""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from controller.operator.api import LEASES, Api, ApiError, Object
from controller.operator.doctor.findings import Mark, Notes
from controller.operator.leader import LEASE_NAME
from controller.operator.times import parse_time

CLOCK_SLACK_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Where the controller is, and who of its replicas leads."""

    namespace: str
    """Empty if it was not found."""
    leader: str = ""
    """Empty if nobody leads, as far as is known."""


def examine_lease(
    api: Api,
    notes: Notes,
    namespace: str | None,
    *,
    clock: Callable[[], float],
    pause: Callable[[float], None],
) -> Release:
    """Look for the Lease in a namespace (None: in all), and whether it is renewed.

    ``clock`` tells the time since the epoch, ``pause`` waits; both in seconds.
    """
    try:
        lease = _found(api, namespace)
    except ApiError as error:
        notes.unseen("leader", f"Lease {LEASE_NAME}", error)
        return Release(namespace=namespace or "")
    if lease is None:
        where = f"in {namespace}" if namespace else "in any namespace"
        notes.note(
            "leader",
            Mark.MISSING,
            f"there is no Lease {LEASE_NAME} {where}: no controller runs",
            "install the chart, or look at the logs of its pods",
        )
        return Release(namespace=namespace or "")
    own = str(lease["metadata"]["namespace"])
    name = f"{own}/{LEASE_NAME}"
    holder = str(lease["spec"].get("holderIdentity") or "")
    its_pods = f"kubectl -n {own} get pods -l app.kubernetes.io/component=controller"
    if not holder:
        notes.note(
            "leader",
            Mark.MISSING,
            f"Lease {name} is held by nobody: the last controller has stopped",
            its_pods,
        )
        return Release(namespace=own)
    lasts_s = float(lease["spec"].get("leaseDurationSeconds") or 15)
    age_s = clock() - parse_time(str(lease["spec"].get("renewTime") or ""))
    if -CLOCK_SLACK_S <= age_s <= lasts_s:
        notes.note("leader", Mark.OK, f"{holder} leads (Lease {name}, renewed {max(0.0, age_s):.0f} s ago)")
        return Release(namespace=own, leader=holder)
    if _is_renewed(api, lease, lasts_s, pause):
        notes.note(
            "leader",
            Mark.WARNING,
            f"{holder} leads, but its clock is {_span(abs(age_s))} {'behind' if age_s > 0 else 'ahead of'}"
            " this machine's",
            "set the clocks right; Ballast compares no clocks, but people do",
        )
        return Release(namespace=own, leader=holder)
    notes.note(
        "leader",
        Mark.MISSING,
        f"Lease {name} of {holder} was last renewed {_span(age_s)} ago: no controller leads",
        its_pods,
    )
    return Release(namespace=own)


def _found(api: Api, namespace: str | None) -> Object | None:
    if namespace is not None:
        return api.get(LEASES, namespace, LEASE_NAME)
    query = {"fieldSelector": f"metadata.name={LEASE_NAME}"}
    found = api.request("GET", LEASES.path(), query=query).get("items") or []
    return max(found, key=lambda lease: str(lease["spec"].get("renewTime") or ""), default=None)


def _is_renewed(api: Api, lease: Object, lasts_s: float, pause: Callable[[float], None]) -> bool:
    """Whether somebody renews a Lease that looks old: clocks of machines may differ."""
    for _ in range(round(lasts_s) + 1):
        pause(1.0)
        now = api.get(LEASES, lease["metadata"]["namespace"], LEASE_NAME)
        if now is not None and now["spec"].get("renewTime") != lease["spec"].get("renewTime"):
            return bool(now["spec"].get("holderIdentity"))
    return False


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return str(dt.timedelta(seconds=round(seconds)))
