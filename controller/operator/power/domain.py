"""One PowerDomain at work: what its agents say goes into the row's controller, what that orders goes to its nodes.

It exists to bring the pure controller (`solver.power.row_control`, the same that `ballast simulate row` runs), the
agents' answers and the NodePowers together. It decides no clock. What is not known is counted at its worst: a node that
does not answer draws what its clocks allow, an order counts when it is read back.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from controller.operator.conditions import Finding
from controller.operator.power import tree
from controller.operator.power.agents import Agents, Reading
from controller.operator.power.figures import ACCEPTED, CONDITIONS, Figures
from controller.operator.power.orders import NodeBook, OrderDesk, book_of, order_content
from controller.operator.power.reports import applied_mhz, failure_of, mirrored
from controller.operator.power.row import class_of, policy_of, row_of
from controller.operator.world import Node, Pod
from controller.resources.power_domain import (
    PowerDomainSpec,
    PowerMode,
    PowerState,
    TelemetrySource,
    Thresholds,
)
from solver.domain.power import Clocks, PowerRow, Priority
from solver.power.actuation import Reports
from solver.power.breaker import theta_after, worst_theta
from solver.power.row_control import (
    ACTUATORS_HEALTHY,
    GUARANTEE_HOLDS,
    LEASE_VALID,
    TELEMETRY_FRESH,
    RowController,
    Step,
)
from solver.power.vetting import Sample

CONTRACT_AFTER_S = 60.0
"""A lower budget that was kept for so long without going below any floor is no emergency any more."""
CLASS_HELD_S = 60.0
"""A node keeps the higher class for so long after its last pod of it, so that restarts change nothing."""
FIRST_LOOK_S = 8.0
"""A new leader waits so long for all agents: who is not heard yet is not at its worst, only not asked yet."""
BLIND_AFTER = 2
"""Windows without any sample after which nobody is told more than the safe clock, whatever the core still hopes for."""
WRITTEN_LATE_S = 10.0
"""A status is written that often; worse may have been seen since."""
SHOWN_EVERY_S = 10.0
"""In Recommend, orders are written for people only: no more often than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a tick is told beside the spec."""

    now_s: float
    """Of the grid, on the monotonic clock."""
    wall_s: float
    nodes: Mapping[str, Node]
    pods: Mapping[str, Sequence[Pod]]
    """With GPUs, by node."""
    held: bool = False
    """Paused: nothing is written."""
    release: bool = False
    trained: Thresholds | None = None
    """From recorded power."""


@dataclass(slots=True, kw_only=True)
class DomainRun:
    """What a leader remembers of a domain; after it, status and NodePowers are all that is known."""

    name: str
    lease: Mapping[str, str]
    """Namespace and name of the domain's Lease, which renews those of its nodes."""
    agents: Agents
    desk: OrderDesk
    found: Mapping[str, Mapping[str, Any]]
    """NodePowers as they were when this leader began."""
    status: Mapping[str, Any] = field(default_factory=dict)
    """Of the PowerDomain, as it was then."""
    books: dict[str, NodeBook] = field(default_factory=dict)
    figures: Figures | None = None
    _key: Any = None
    _controller: RowController | None = None
    _row: PowerRow | None = None
    _nodes: tuple[str, ...] = ()
    _high_s: dict[str, float] = field(default_factory=dict)
    _applied: dict[str, int] = field(default_factory=dict)
    _orders: int = 0
    _brake: bool = False
    _brakes: int = 0
    _capped_s: dict[str, float] = field(default_factory=dict)
    _findings: dict[str, Finding] = field(default_factory=dict)
    _sample: tuple[float, float] | None = None
    _began_s: float = math.inf
    _node_w: dict[str, float] = field(default_factory=dict)
    _measured_w: float | None = None
    _now_s: float = -math.inf
    _braked_until_s: dict[str, float] = field(default_factory=dict)
    """By node: it stays at the clock of the brake so long, though that is released."""
    _unheard: bool = False
    """Nothing is known of its breaker's past."""
    _kept_since_s: float = math.inf
    """Since when a contract below the row's is kept with no clock below its floor."""
    class_by_node: dict[str, int] = field(default_factory=dict)
    """As it was counted last."""
    _blind: int = 0
    """Windows in a row without any sample, once there was one."""

    @property
    def row(self) -> PowerRow | None:
        """Of the last decision; None before the first."""
        return self._row

    # -- a tick ---------------------------------------------------------------------------------------------------

    def tick(self, spec: PowerDomainSpec, place: tree.Place, moment: Moment) -> Figures:
        """Look, decide, tell the nodes.

        Raises
        ------
        InputError
            The spec describes no row.
        """
        self._began_s, self._now_s = min(self._began_s, moment.now_s), moment.now_s
        classes = self._classes(spec, place, moment)
        row = self._prepared(spec, place, classes, moment)
        controller = self._controller
        if controller is None:
            raise RuntimeError("prepared without a controller")
        controller.set_budget(place.budget_w)
        for book in self.books.values():
            self.desk.take_in(book)
        enforced = spec.mode is PowerMode.AUTO and not moment.held and not moment.release
        fresh = self._fresh(spec, moment.now_s)
        reports = self._reports(row, fresh) if enforced else mirrored(controller.ordered_mhz, self._orders)
        sample, missing = self._measured(spec, row, controller, fresh, moment)
        if sample is not None and self._unheard and math.isfinite(sample.row_w):
            # Nobody looked after it before: likely it has drawn so much for long; at most its rating.
            controller.stands_at(min((sample.row_w / place.budget_w) ** 2, 1.0))
            self._unheard = False
        failing = [book for book in self.books.values() if book.trouble]
        step = controller.step(
            moment.now_s,
            () if sample is None else (sample,),
            reports,
            wall_s=moment.wall_s,
            reachable=not enforced or len(failing) < len(self.books),
        )
        self._blind = 0 if sample is not None or self._sample is None else self._blind + 1
        if sample is not None:
            self._sample = (sample.row_w, moment.wall_s) if math.isfinite(sample.row_w) else self._sample
        if step.brake and not self._brake and enforced:
            self._brakes += 1
        if self._brake and not step.brake:
            self._let_go(spec, row, moment.now_s)
        self._brake = step.brake
        self._tell(spec, row, controller, step, moment, enforced=enforced, budget_w=place.budget_w)
        self.figures = self._stood(
            spec, place, row, controller, step, moment, enforced=enforced, missing=missing
        )
        return self.figures

    def _let_go(self, spec: PowerDomainSpec, row: PowerRow, now_s: float) -> None:
        """Release the brake node by node, higher priority first: all at once would be a jump of its own."""
        jitter_s = spec.brake.release_jitter_seconds
        order = sorted(range(row.servers), key=lambda server: bool(row.is_low[server]))
        self._braked_until_s = {
            self._nodes[server]: now_s + jitter_s * place / row.servers for place, server in enumerate(order)
        }

    def _brakes_still(self, node: str) -> bool:
        return self._brake or self._now_s < self._braked_until_s.get(node, -math.inf)

    def _classes(self, spec: PowerDomainSpec, place: tree.Place, moment: Moment) -> tuple[int, ...]:
        found = []
        for name in place.nodes:
            index = class_of(spec, moment.nodes.get(name), moment.pods.get(name, ()))
            if index:
                self._high_s[name] = moment.now_s
            elif moment.now_s - self._high_s.get(name, -math.inf) < CLASS_HELD_S:
                index = len(spec.classes) - 1
            found.append(min(index, len(spec.classes) - 1))
        self._high_s = {
            name: at_s for name, at_s in self._high_s.items() if moment.now_s - at_s < CLASS_HELD_S
        }
        self.class_by_node = dict(zip(place.nodes, found, strict=True))
        return tuple(found)

    def _prepared(
        self, spec: PowerDomainSpec, place: tree.Place, classes: tuple[int, ...], moment: Moment
    ) -> PowerRow:
        """Return the row, with a controller that goes on from the one before where anything changed.

        A lower budget alone changes no row: the contract stays, and the controller treats it as an emergency.
        """
        lasting = spec.model_copy(
            update={
                "budget_watts": 1.0,
                "provisioned_watts": None,
                "failover": None,
                "schedule": (),
                "demand_response": (),
                "admission": None,
            }
        )
        acts = spec.mode is not PowerMode.OBSERVE
        key = (lasting, place.nodes, classes, moment.held, moment.release, moment.trained)
        row = self._row
        if row is not None and key == self._key and not self._other_contract(row, place, moment.now_s):
            return row
        priorities = [Priority.HIGH if index else Priority.LOW for index in classes]
        row = row_of(spec, priorities, place.contract_w)
        before = self._controller
        if before is None:
            theta, most_theta = self._theta_before(row, spec, moment)
            self._unheard = not isinstance(self.status.get("theta"), int | float)
        else:
            theta, most_theta = before.theta, before.most_theta
        self._books(place.nodes)
        self._nodes = place.nodes
        enforced = spec.mode is PowerMode.AUTO and not moment.held and not moment.release
        self._orders = max([self._orders, *(book.done for book in self.books.values())])
        self._controller, self._brake = None, False
        if enforced:
            reports = self._reports(row, self._fresh(spec, moment.now_s))
        else:
            reports = mirrored(np.full(row.servers, row.server.max_mhz, dtype=np.int64), self._orders)
        self._controller = RowController(
            row,
            policy_of(spec, acts=acts and not moment.release, trained=moment.trained),
            theta=theta,
            budget_w=place.budget_w,
            reports=reports,
            now_s=moment.now_s,
        )
        self._controller.warm_to(most_theta)
        self._row, self._key, self._kept_since_s = row, key, math.inf
        self._findings = {
            kind: Finding(type=kind, status=None, reason="NotYetKnown")
            for kind in CONDITIONS
            if kind != ACCEPTED
        }
        return row

    def _other_contract(self, row: PowerRow, place: tree.Place, now_s: float) -> bool:
        """Whether the row has another contract: more at once, less after a while in which it was kept at ease.

        Until then less is an emergency, in which clocks may go below their floors.
        """
        controller = self._controller
        if place.contract_w >= row.budget_w or controller is None:
            self._kept_since_s = math.inf
            return place.contract_w > row.budget_w
        floors = np.where(row.is_low, row.low_floor_mhz, row.high_floor_mhz)
        drawn_w = math.inf if self._sample is None else self._sample[0]
        if drawn_w > place.contract_w or (controller.ordered_mhz < floors).any():
            self._kept_since_s = math.inf
            return False
        self._kept_since_s = min(self._kept_since_s, now_s)
        return now_s - self._kept_since_s >= CONTRACT_AFTER_S

    def _books(self, nodes: Sequence[str]) -> None:
        # In the order of the row; the lease of who is gone runs out, and it goes to its safe cap.
        self.books = {node: self.books.get(node) or book_of(node, self.found.get(node)) for node in nodes}
        self._applied = {node: mhz for node, mhz in self._applied.items() if node in self.books}

    def _theta_before(self, row: PowerRow, spec: PowerDomainSpec, moment: Moment) -> tuple[float, float]:
        """Return θ as the leader before wrote it, and the most that it can be by now.

        Since then the row drew its worst case until leases ran out, and at most its budget from then on: agents are at
        their safe caps. Of a domain that nobody looked after yet, as after a long time at its rating.
        """
        theta, worst_w = self.status.get("theta"), self.status.get("worstCaseWatts")
        if not isinstance(theta, int | float):
            return 1.0, 1.0
        age_s = max(moment.wall_s - float(self.status.get("_sampled_s") or 0.0), 0.0)
        full_w = row.servers * row.server.worst_w(row.server.max_mhz)
        worst = max((float(worst_w) if isinstance(worst_w, int | float) else full_w) / row.budget_w, 1.0)
        tau_s = row.curve.tau_s
        most = warmed(float(theta), worst, age_s=age_s, lease_s=spec.lease_duration_seconds, tau_s=tau_s)
        likely = theta_after(float(theta), 1.0, age_s, tau_s) if theta < 1.0 else float(theta)
        top = row.curve.trip_theta - 1e-6
        return min(likely, top), min(most, top)

    # -- what is seen ---------------------------------------------------------------------------------------------

    def _fresh(self, spec: PowerDomainSpec, now_s: float) -> dict[str, Reading]:
        """Return the newest answers that are not too old, by node."""
        found = {}
        for node in self.books:
            readings = self.agents.latest(node)
            if readings and now_s - readings[-1].looked_s <= spec.telemetry.max_age_seconds:
                found[node] = readings[-1]
        return found

    def _reports(self, row: PowerRow, fresh: Mapping[str, Reading]) -> Reports:
        """Return what the agents say, as the core counts: by server, in rounds of the row.

        Without a controller it is for a new one, whose rounds have to be numbered on from all that were told.
        """
        count, controller = row.servers, self._controller
        applied = np.full(count, row.server.max_mhz, dtype=np.int64)
        acknowledged = np.zeros(count, dtype=np.int64)
        failed = np.zeros(count, dtype=np.int64)
        leased = np.zeros(count, dtype=np.bool_)
        ordered = None if controller is None else controller.ordered_mhz
        for index, (node, book) in enumerate(self.books.items()):
            reading = fresh.get(node)
            acknowledged[index] = max(book.heard(reading), self._orders if controller is None else 0)
            if reading is not None:
                told = None if ordered is None else int(ordered[index])
                self._applied[node] = applied_mhz(reading, row, told, braked=self._brakes_still(node))
                leased[index] = reading.leased
                failed[index] = failure_of(reading)
            applied[index] = self._applied.get(node, row.server.max_mhz)
        return Reports(applied_mhz=applied, acknowledged=acknowledged, failed=failed, lease_valid=leased)

    def _measured(
        self,
        spec: PowerDomainSpec,
        row: PowerRow,
        controller: RowController,
        fresh: Mapping[str, Reading],
        moment: Moment,
    ) -> tuple[Sample | None, list[str]]:
        """Return the window that ends now, and whose agents are missing in it."""
        told, server, count = spec.telemetry, row.server, row.servers
        gain, offset_w = told.correction.gain, told.correction.offset / count
        static_w = (spec.members.static_watts if spec.members else 0.0) / count
        watts = np.zeros(count)
        missing = []
        self._node_w, self._measured_w = {}, None
        for index, node in enumerate(self._nodes):
            reading = fresh.get(node)
            recent = [
                each.gpu_w
                for each in self.agents.latest(node)
                if each.gpu_w is not None and moment.now_s - each.looked_s <= row.sample_s + 1.0
            ]
            if reading is None or reading.gpu_w is None:
                missing.append(node)
                mhz = max(self._applied.get(node, server.max_mhz), int(controller.ordered_mhz[index]))
                watts[index] = server.worst_w(mhz)
            else:
                gpu_w = sum(recent) / len(recent) if recent else reading.gpu_w
                own_w = spec.server.fixed_watts + server.draw_per_gpu_watt_ratio * gpu_w
                watts[index] = max(own_w * gain + offset_w, 0.0) + static_w
                self._node_w[node] = float(watts[index]) - static_w
        waits = self._sample is None and moment.now_s - self._began_s < FIRST_LOOK_S
        if len(missing) == count or (missing and waits):
            return None, missing
        row_w = float(watts.sum())
        low_w = float(watts[row.is_low].sum())
        shares = low_w / row_w if row_w > 0.0 else 0.0
        if told.source is not TelemetrySource.SUM_OF_NODES:
            metered = self.agents.metered(self.name)
            usable = metered is not None and moment.now_s - metered[1] <= told.max_age_seconds
            beside_w = static_w * count if told.source is TelemetrySource.PROMETHEUS else 0.0
            row_w = metered[0] + beside_w if metered is not None and usable else math.nan
            low_w = row_w * shares
        if math.isfinite(row_w) and not (missing and told.source is TelemetrySource.SUM_OF_NODES):
            self._measured_w = row_w
        servers = None if missing and told.source is not TelemetrySource.SUM_OF_NODES else watts
        return (
            Sample(stamp_s=moment.now_s, row_w=row_w, low_w=low_w, high_w=row_w - low_w, server_w=servers),
            missing,
        )

    # -- what is told ---------------------------------------------------------------------------------------------

    def _tell(
        self,
        spec: PowerDomainSpec,
        row: PowerRow,
        controller: RowController,
        step: Step,
        moment: Moment,
        *,
        enforced: bool,
        budget_w: float,
    ) -> None:
        clocks = controller.ordered_mhz
        order = step.order
        if order is not None:
            self._orders = order.generation
        if moment.held or (spec.mode is PowerMode.OBSERVE and not moment.release):
            return
        safe = row.server.safe_mhz(row.servers, budget_w) or row.server.min_mhz
        lease_s = spec.lease_duration_seconds
        for index, (node, book) in enumerate(self.books.items()):
            readings = self.agents.latest(node)
            mhz = row.server.brake_mhz if self._brakes_still(node) else int(clocks[index])
            if self._blind >= BLIND_AFTER:
                mhz = min(mhz, safe)
            content = order_content(spec, row, readings[-1] if readings else None, mhz, safe)
            content |= {
                "mode": "Auto" if enforced or moment.release else "Recommend",
                "oversubscribed": row.servers * row.server.worst_w(row.server.max_mhz) > budget_w,
                "release": moment.release,
                "lease": dict(self.lease),
            }
            if moment.release:
                content["gpus"] = []
            mine = order.generation if order is not None and order.to[index] else None
            changed_mode = bool(book.content) and book.content.get("mode") != content["mode"]
            book.told(content, mine, moment.now_s)
            if (
                readings
                and readings[-1].refused
                and readings[-1].acknowledged < book.written == book.generation
            ):
                book.again(readings[-1].observed)
            # The domain's Lease renews them all; who missed it is told in person.
            missed = bool(readings) and not readings[-1].leased and (enforced or moment.release)
            renew_s = lease_s / 3.0 if missed else math.inf
            if (
                not (enforced or moment.release or changed_mode)
                and moment.now_s - book.renewed_s < SHOWN_EVERY_S
            ):
                continue
            if book.due(moment.now_s, renew_s):
                self.desk.send(book, self.name, moment.now_s)

    # -- what is said ---------------------------------------------------------------------------------------------

    def _stood(  # noqa: PLR0917 - one tick's values
        self,
        spec: PowerDomainSpec,
        place: tree.Place,
        row: PowerRow,
        controller: RowController,
        step: Step,
        moment: Moment,
        *,
        enforced: bool,
        missing: Sequence[str],
    ) -> Figures:
        for change in step.changes:
            self._findings[change.kind] = Finding(
                type=change.kind,
                status=change.status,
                reason=change.reason,
                message=self._words(change.kind, change.reason, missing),
            )
        full_w = row.servers * row.server.worst_w(row.server.max_mhz)
        worst, worst_w = step.worst_theta, step.worst_ratio * place.budget_w
        findings = dict(self._findings)
        if not enforced:
            worst_w = full_w
            worst = worst_theta(controller.theta, full_w / place.budget_w, math.inf, row.curve)
            holds = worst < row.curve.trip_theta
            why = "released" if moment.release else "paused" if moment.held else f"mode {spec.mode.value}"
            for kind in (LEASE_VALID, ACTUATORS_HEALTHY):
                findings[kind] = Finding(
                    type=kind, status=None, reason="NotEnforced", message=f"{why}: nothing is set"
                )
            findings[GUARANTEE_HOLDS] = Finding(
                type=GUARANTEE_HOLDS,
                status=holds,
                reason="NotOversubscribed" if holds else "NotEnforced",
                message="" if holds else f"{why}: nothing would stop all servers at their largest draw",
            )
        if missing:
            findings[TELEMETRY_FRESH] = Finding(
                type=TELEMETRY_FRESH,
                status=False,
                reason="AgentsSilent",
                message=f"{self._named(missing)}: counted at the largest draw of the clocks in force",
            )
        odd = self._unlike(spec)
        if odd[0]:
            findings[GUARANTEE_HOLDS] = Finding(
                type=GUARANTEE_HOLDS, status=False, reason=odd[0], message=odd[1]
            )
        reason, message = place.odd if place.odd[0] else odd
        findings[ACCEPTED] = Finding(
            type=ACCEPTED, status=not reason, reason=reason or "Accepted", message=message
        )
        return Figures(
            budget_w=place.budget_w,
            power_w=None if self._sample is None else self._sample[0],
            theta=controller.theta,
            worst_theta=worst,
            worst_w=worst_w,
            full_w=full_w,
            recourse_s=step.recourse_s,
            safe_mhz=row.server.safe_mhz(row.servers, place.budget_w) or row.server.min_mhz,
            state=self._state(row, controller.ordered_mhz, findings),
            nodes=row.servers,
            sampled_s=None if self._sample is None else self._sample[1],
            caps=self._caps(spec, row, controller.ordered_mhz, enforced=enforced),
            brakes=self._brakes,
            findings=findings,
            node_w=self._node_w,
            measured_w=self._measured_w,
            capped=enforced and bool((controller.ordered_mhz < row.top_mhz).any()),
        )

    def _unlike(self, spec: PowerDomainSpec) -> tuple[str, str]:
        for node in self._nodes:
            readings = self.agents.latest(node)
            if not readings:
                continue
            gpus = readings[-1].gpus
            clocks = {gpu.max_mhz for gpu in gpus if gpu.max_mhz is not None}
            if len(gpus) > spec.server.gpus or any(mhz > spec.server.max_mhz for mhz in clocks):
                most = max(clocks, default=0)
                return "ServerUnlike", (
                    f"node {node} has {len(gpus)} GPUs of up to {most} MHz, spec.server says"
                    f" {spec.server.gpus} of {spec.server.max_mhz} MHz: its worst case is not known"
                )
        return "", ""

    def _named(self, nodes: Sequence[str]) -> str:
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        return f"{nodes[0]}{more} ({self.agents.trouble(nodes[0]) or 'its GPUs cannot be read'})"

    def _words(self, kind: str, reason: str, missing: Sequence[str]) -> str:
        """Say what a person should know."""
        if kind == LEASE_VALID and reason == "RenewalFailed":
            return next((book.trouble for book in self.books.values() if book.trouble), "")
        if kind == TELEMETRY_FRESH and missing:
            return self._named(missing)
        if kind == TELEMETRY_FRESH and reason != "Fresh":
            return self.agents.meter_trouble(self.name)
        if kind == ACTUATORS_HEALTHY and reason != "AsOrdered":
            for node in self.books:
                readings = self.agents.latest(node)
                if readings and not readings[-1].writes:
                    return f"the agent of {node} only shows orders: it runs without --mode auto"
                errors = [gpu.error for gpu in readings[-1].gpus if gpu.error] if readings else []
                if errors:
                    return f"{node}: {errors[0]}"
        return ""

    def _state(self, row: PowerRow, ordered: Clocks, findings: Mapping[str, Finding]) -> PowerState:
        largest = row.server.max_mhz
        low_top, high_top = (top or largest for top in (row.low_top_mhz, row.high_top_mhz))
        lows, highs = ordered[row.is_low], ordered[~row.is_low]
        low = int(lows.max()) if lows.size else low_top
        high = int(highs.max()) if highs.size else high_top
        if self._brake:
            return PowerState.BRAKE
        if self._blind >= BLIND_AFTER or findings[TELEMETRY_FRESH].reason == "NoSamples":
            return PowerState.SAFE
        if high < high_top - 2 * row.server.step_mhz:
            return PowerState.HP_CAPPED
        if lows.size and low < low_top and low <= row.low_floor_mhz:
            return PowerState.LP_DEEP
        return PowerState.LP_BASE if low < low_top or high < high_top else PowerState.FREE

    def _caps(
        self, spec: PowerDomainSpec, row: PowerRow, ordered: Clocks, *, enforced: bool
    ) -> tuple[tuple[str, int, int, float, float], ...]:
        rows = []
        most = row.server.max_mhz
        for index, each in enumerate(sorted(spec.classes, key=lambda c: c.priority)):
            mask = ~row.is_low if index else row.is_low
            clocks = ordered[mask]
            top = (row.high_top_mhz if index else row.low_top_mhz) or most
            mhz, least = (int(clocks.max()), int(clocks.min())) if clocks.size else (top, top)
            if enforced and clocks.size and mhz < top:
                self._capped_s[each.name] = self._capped_s.get(each.name, 0.0) + row.sample_s
            slowdown = most / (row.server.brake_mhz if self._brake else least) - 1.0
            rows.append((each.name, int(clocks.size), mhz, self._capped_s.get(each.name, 0.0), slowdown))
        return tuple(rows)

    def released(self) -> bool:
        """Whether all nodes that answer have taken what they were told last."""
        for node, book in self.books.items():
            readings = self.agents.latest(node)
            if readings and readings[-1].writes and readings[-1].acknowledged < book.generation:
                return False
        return True


def warmed(theta: float, worst: float, *, age_s: float, lease_s: float, tau_s: float) -> float:
    """Return the most that θ can be so long after it was written: worst case until leases ran out, then the budget."""
    warm_s = min(age_s, lease_s) + WRITTEN_LATE_S
    warm = theta_after(theta, max(worst, 1.0), warm_s, tau_s)
    return theta_after(warm, 1.0, max(age_s - warm_s, 0.0), tau_s)
