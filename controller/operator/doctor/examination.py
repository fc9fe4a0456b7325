"""Looks at a cluster as the controller will and says what is missing, exactly, and what to do about it.

It exists so that nobody has to guess why nothing happens. It reads only; what it may not read itself is said, too. It
says what is looked at and in which order; each thing is looked at in a module of its own beside this one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from controller.operator.api import Api
from controller.operator.doctor.api_server import (
    examine_definitions,
    examine_optional_kinds,
    examine_version,
)
from controller.operator.doctor.findings import Notes, Report
from controller.operator.doctor.gpus import Gpus
from controller.operator.doctor.lease import examine_lease
from controller.operator.doctor.machine import database_finding, examine_python
from controller.operator.doctor.rights import Account, examine_rights
from controller.operator.doctor.services import examine_services
from controller.operator.profiles import ProfileBook


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What to look at."""

    namespace: str | None = None
    """Of the release; None: where the Lease is."""
    watched: tuple[str, ...] = ()
    """Namespaces that the controller watches; none: all."""
    account: Account | None = None
    """Whose rights are asked for; None: our own."""
    gpu_label: str = "nvidia.com/gpu.product"
    gpu_resource: str = "nvidia.com/gpu"
    database_url: str = ""


@dataclass(slots=True, kw_only=True)
class Doctor:
    """One examination of one cluster."""

    api: Api
    wishes: Wishes
    clock: Callable[[], float] = time.time
    pause: Callable[[float], None] = time.sleep
    book: ProfileBook = field(default_factory=ProfileBook)

    def examine(self) -> Report:
        """Look at everything.

        Raises
        ------
        ApiError
            If the API server cannot be reached at all, or does not know us.
        """
        api, wishes, notes = self.api, self.wishes, Notes()
        version = examine_version(api, notes)
        has_kinds = examine_definitions(api, notes)
        release = examine_lease(api, notes, wishes.namespace, clock=self.clock, pause=self.pause)
        examine_rights(
            api, notes, namespace=release.namespace, watched=wishes.watched, account=wishes.account
        )
        gpus = Gpus(
            api=api, notes=notes, label=wishes.gpu_label, resource=wishes.gpu_resource, book=self.book
        )
        gpus.examine(has_kinds=has_kinds)
        if has_kinds:
            examine_services(api, notes, wishes.watched, gpus.profiles)
        examine_optional_kinds(api, notes)
        if wishes.database_url:
            notes.findings.append(database_finding(wishes.database_url))
        examine_python(notes)
        return Report(
            server_version=version,
            namespace=release.namespace,
            leader=release.leader,
            findings=tuple(notes.findings),
            products=tuple(gpus.products),
        )
